//! Timers: made, cancelled, weighed, and how late they are.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::{Later, Tasks, yield_once};
use crate::measure::{Memory, Random, Span, emit_quantiles, roomy};

fn far(random: &mut Random) -> Duration {
    Duration::from_millis(60_000 + random.below(3_600_000))
}

/// Each sleep is boxed, as if a task held it, and polled once. They are made by the hundred with a
/// yield between, because tokio lets a task poll no more than 128 of its own futures a turn.
pub(super) async fn sleeps<L: Tasks>(l: L, n: u64, bytes: bool) {
    let mut random = Random(42);
    let mut sleeps = roomy(n);
    let memory = bytes.then(Memory::start);
    let span = Span::start();
    while (sleeps.len() as u64) < n {
        let from = sleeps.len();
        for _ in 0..100.min(n - from as u64) {
            sleeps.push(Box::pin(l.sleep(far(&mut random))));
        }
        poll_fn(|cx| {
            for sleep in &mut sleeps[from..] {
                assert!(sleep.as_mut().poll(cx).is_pending());
            }
            Poll::Ready(())
        })
        .await;
        yield_once().await;
    }
    if let Some(memory) = memory {
        return memory.emit("sleep", n);
    }
    span.emit("sleep-create", n);
    let span = Span::start();
    sleeps.clear();
    yield_once().await;
    span.emit("sleep-cancel", n);
}

/// `n` tasks sleep until random moments of the same second.
pub(super) async fn lateness<L: Tasks>(l: L, n: u64) {
    let mut random = Random(7);
    let late = Rc::new(RefCell::new(Vec::with_capacity(n as usize)));
    let mut tasks = roomy(n);
    let span = Span::start();
    let start = Instant::now() + Duration::from_millis(100);
    for _ in 0..n {
        let due = start + Duration::from_nanos(random.below(1_000_000_000));
        let late = late.clone();
        let sleeper = l.clone();
        tasks.push(l.spawn(async move {
            let delay = due.saturating_duration_since(Instant::now());
            sleeper.sleep(delay).await;
            let after = Instant::now().saturating_duration_since(due);
            late.borrow_mut().push(after.as_nanos() as u64);
        }));
    }
    for task in tasks {
        task.await;
    }
    span.emit("fired-sleep", n);
    emit_quantiles("lateness", late.take());
}

/// The same deadlines as [`sleeps`], as callbacks.
pub(super) fn call_laters<L: Later>(l: L, n: u64, bytes: bool) {
    let mut random = Random(42);
    let count = Rc::new(Cell::new(0));
    let mut timers = roomy(n);
    let memory = bytes.then(Memory::start);
    let span = Span::start();
    for _ in 0..n {
        let count = count.clone();
        let delay = far(&mut random);
        timers.push(l.call_later(delay, move || count.set(count.get() + 1)));
    }
    if let Some(memory) = memory {
        memory.emit("call-later", n);
        return l.stop();
    }
    span.emit("call-later-create", n);
    let span = Span::start();
    for timer in timers {
        l.cancel(timer);
    }
    let last = l.clone();
    l.call_soon(move || {
        span.emit("call-later-cancel", n);
        assert_eq!(count.get(), 0);
        last.stop();
    });
}
