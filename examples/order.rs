//! Who runs when: callbacks, tasks, timers, a reader and a letter from another thread, turn by turn.
//! The output is the trace, and the program asserts all of it.

use std::cell::RefCell;
use std::error::Error;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use coloop::{EventLoop, yield_now};

thread_local! {
    static TRACE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn log(text: impl Into<String>) {
    let text = text.into();
    println!("{text}");
    TRACE.with_borrow_mut(|trace| trace.push(text));
}

fn main() -> Result<(), Box<dyn Error>> {
    let event_loop = EventLoop::new()?;

    // ANCHOR: timers
    let now = event_loop.time();
    event_loop.call_later(Duration::ZERO, || log("  a timer without delay"));
    event_loop.call_at(now, || log("  a timer with an earlier deadline"));
    let doomed = event_loop.call_at(now, || log("  never"));
    // ANCHOR_END: timers

    // ANCHOR: line
    let handle = event_loop.handle();
    event_loop.call_soon(move || {
        log("  a callback, which adds another and cancels a timer");
        handle.call_soon(|| log("  the callback that was added"));
        doomed.cancel();
    });
    let (resolver, promise) = event_loop.create_future();
    let task = event_loop.create_task(async move {
        log("  a task, which waits for a promise");
        let settled_by = promise.await.unwrap_or("nobody");
        log(format!("  the task, told by {settled_by}; it yields"));
        yield_now().await;
        log("  the task, which ends");
    });
    event_loop.call_soon(|| log("  a callback that came after the task"));
    // ANCHOR_END: line

    // ANCHOR: outside
    let (mut near, far) = UnixStream::pair()?;
    near.write_all(b"!")?;
    let (handle, fd) = (event_loop.handle(), far.as_raw_fd());
    let mut resolver = Some(resolver);
    event_loop.add_reader(far, move || {
        log("  a reader, which settles the promise");
        if let Some(resolver) = resolver.take() {
            resolver.settle("the reader").ok();
        }
        handle.remove_reader(fd);
    })?;

    let remote = event_loop.remote();
    let posted = thread::spawn(move || remote.call_soon(|| log("  a letter from a thread")));
    assert!(matches!(posted.join(), Ok(Ok(_))));
    // ANCHOR_END: outside

    // ANCHOR: turns
    for turn in 1..=3 {
        log(format!("turn {turn}"));
        event_loop.turn(Some(Duration::ZERO))?;
    }
    // ANCHOR_END: turns

    assert!(task.is_finished() && event_loop.is_idle());
    // ANCHOR: trace
    let expected = [
        "turn 1",
        // What was in the line before the poll, first in, first out.
        "  a callback, which adds another and cancels a timer",
        "  a task, which waits for a promise",
        "  a callback that came after the task",
        // Then letters, then descriptors, then timers: by deadline, not by creation.
        "  a letter from a thread",
        "  a reader, which settles the promise",
        "  a timer with an earlier deadline",
        "  a timer without delay",
        "turn 2",
        // What the first turn added, in the order in which it was added.
        "  the callback that was added",
        "  the task, told by the reader; it yields",
        "turn 3",
        "  the task, which ends",
    ];
    // ANCHOR_END: trace
    TRACE.with_borrow(|trace| assert_eq!(*trace, expected));
    Ok(())
}
