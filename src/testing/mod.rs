//! Tests without a clock and without sockets.
//!
//! [`Clock`] stands still until the loop has nothing to do but wait, and then jumps to the next
//! deadline; a day of timeouts takes no time. [`stream_pair`] makes two ends of a connection that
//! exists only in memory, and [`Wire`] a transport between two protocols. [`run`] and [`run_virtual`] are what `#[coloop::test]` calls.

mod clock;
mod memory;
mod wire;

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

pub use self::clock::Clock;
pub use self::memory::{Memory, MemoryStream, stream_pair};
pub use self::wire::Wire;
use crate::error::RunError;
use crate::event_loop::{Builder, EventLoop};
use crate::selector::default_selector;

/// Runs a test on a loop that lives by the system's clock.
///
/// # Panics
///
/// If the loop cannot be made or run, and if anything was reported to the exception handler, so
/// that no error is lost in a test. A panic of `test` goes on here.
#[track_caller]
pub fn run<F: Future>(test: F) -> F::Output {
    run_on(build(EventLoop::builder()), test)
}

/// Runs a test on a loop whose clock jumps, and which serves in-memory streams.
///
/// # Panics
///
/// As [`run`], and when the clock has stood still for five seconds of real time.
///
/// # Examples
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let began = Instant::now();
/// coloop::testing::run_virtual(async {
///     let before = coloop::current().time();
///     coloop::sleep(Duration::from_secs(24 * 60 * 60)).await;
///     assert_eq!(coloop::current().time() - before, Duration::from_secs(24 * 60 * 60));
/// });
/// assert!(began.elapsed() < Duration::from_secs(60));
/// ```
#[track_caller]
pub fn run_virtual<F: Future>(test: F) -> F::Output {
    let memory = match default_selector() {
        Ok(selector) => Memory::over(selector),
        Err(error) => panic!("the system refuses an event loop: {error}"),
    };
    let builder = EventLoop::builder().clock(Clock::new());
    let event_loop = build(builder.selector(Rc::<Memory>::clone(&memory)));
    event_loop.0.extend(memory);
    run_on(event_loop, test)
}

#[track_caller]
fn build(builder: Builder) -> EventLoop {
    match builder.build() {
        Ok(event_loop) => event_loop,
        Err(error) => panic!("the system refuses an event loop: {error}"),
    }
}

#[track_caller]
fn run_on<F: Future>(event_loop: EventLoop, test: F) -> F::Output {
    let reported = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&reported);
    event_loop.set_exception_handler(move |_, context| log.borrow_mut().push(context.to_string()));
    let ended = event_loop.run_until_complete(test);
    let ended = ended.and_then(|output| crate::run::cancel_all(&event_loop).map(|()| output));
    drop(event_loop);
    let reported = reported.take();
    match ended {
        Err(error @ RunError::Stalled(_)) => panic!("{error}"),
        Err(error) => panic!("the test did not run to its end: {error}"),
        Ok(_) if !reported.is_empty() => panic!("reported to the loop: {}", reported.join("; ")),
        Ok(output) => output,
    }
}
