//! Running a whole program on a loop.
//!
//! What most programs call: a loop is made, the program's future runs on it, what it leaves behind is
//! ended with its grace, and the loop is closed.

use std::future::{Future, poll_fn};
use std::task::Poll;

use crate::error::RunError;
use crate::event_loop::EventLoop;

/// Makes a loop, runs `main` on it, ends what is left, and closes it.
///
/// When `main` is complete, tasks that are still pending are cancelled; those with a grace period
/// are given it.
///
/// # Panics
///
/// If the system refuses the loop's descriptors, or if a loop runs in this thread already. A panic
/// of `main` goes on here.
///
/// # Examples
///
/// ```
/// let greeting = coloop::run(async {
///     let task = coloop::current().create_task(async { "hello" });
///     task.await.unwrap()
/// });
/// assert_eq!(greeting, "hello");
/// ```
#[track_caller]
pub fn run<F: Future>(main: F) -> F::Output {
    let event_loop = match EventLoop::new() {
        Ok(event_loop) => event_loop,
        Err(error) => panic!("the system refuses an event loop: {error}"),
    };
    let ended = event_loop.run_until_complete(main);
    // A loop that could not run has nothing to end; its error is told below.
    let _ = cancel_all(&event_loop);
    match ended {
        Ok(output) => output,
        Err(error) => panic!("{error}"),
    }
}

/// Cancels every task and runs the loop until all have ended.
pub(crate) fn cancel_all(event_loop: &EventLoop) -> Result<(), RunError> {
    loop {
        let tasks = event_loop.all_tasks();
        if tasks.is_empty() {
            return Ok(());
        }
        for task in tasks {
            task.cancel();
        }
        event_loop.run_until_complete(poll_fn(|cx| {
            let core = &event_loop.0;
            // The future of this run counts as a task itself.
            if core.records.all().len() <= 1 {
                return Poll::Ready(());
            }
            drop(core.records.tell_of_end(cx.waker().clone()));
            Poll::Pending
        }))?;
    }
}
