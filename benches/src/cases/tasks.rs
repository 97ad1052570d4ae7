//! Spawning and switching, and what a task weighs.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::{Tasks, WARM, yield_once};
use crate::measure::{Memory, Span, roomy};

/// The smallest body that still carries something: one count.
async fn add_one(count: Rc<Cell<u64>>) {
    count.set(count.get() + 1);
}

pub(super) async fn spawn_all<L: Tasks>(l: L, n: u64) {
    let count = Rc::new(Cell::new(0));
    let mut tasks = roomy(n);
    let span = Span::start();
    for _ in 0..n {
        tasks.push(l.spawn(add_one(count.clone())));
    }
    for task in tasks {
        task.await;
    }
    span.emit("spawn", n);
    assert_eq!(count.get(), n);
}

pub(super) async fn spawn_await<L: Tasks>(l: L, n: u64, name: &str) {
    let count = Rc::new(Cell::new(0));
    for _ in 0..WARM {
        l.spawn(add_one(count.clone())).await;
    }
    let span = Span::start();
    for _ in 0..n {
        l.spawn(add_one(count.clone())).await;
    }
    span.emit(name, n);
    assert_eq!(count.get(), WARM + n);
}

pub(super) async fn yield_one(n: u64) {
    for _ in 0..WARM {
        yield_once().await;
    }
    let span = Span::start();
    for _ in 0..n {
        yield_once().await;
    }
    span.emit("yield-1", n);
}

pub(super) async fn yield_one_own<L: Tasks>(l: L, n: u64) {
    for _ in 0..WARM {
        l.own_yield().await;
    }
    let span = Span::start();
    for _ in 0..n {
        l.own_yield().await;
    }
    span.emit("yield-1-own", n);
}

pub(super) async fn yield_hundred<L: Tasks>(l: L, n: u64) {
    const TASKS: u64 = 100;
    let each = n / TASKS;
    let span = Span::start();
    let mut tasks = roomy(TASKS);
    for _ in 0..TASKS {
        tasks.push(l.spawn(async move {
            for _ in 0..each {
                yield_once().await;
            }
        }));
    }
    for task in tasks {
        task.await;
    }
    span.emit("yield-100", each * TASKS);
}

/// One slot, one waiter, one thread: the same for all, so that only the schedulers differ.
#[derive(Default)]
struct Note {
    set: Cell<bool>,
    waiter: Cell<Option<Waker>>,
}

impl Note {
    fn set(&self) {
        self.set.set(true);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    fn taken(&self) -> impl Future<Output = ()> {
        poll_fn(|cx| {
            if self.set.replace(false) {
                return Poll::Ready(());
            }
            self.waiter.set(Some(cx.waker().clone()));
            Poll::Pending
        })
    }
}

/// One operation is a whole exchange: two wakes, two switches.
pub(super) async fn ping_pong<L: Tasks>(l: L, n: u64) {
    let (ping, pong) = (Rc::new(Note::default()), Rc::new(Note::default()));
    let second = l.spawn({
        let (ping, pong) = (ping.clone(), pong.clone());
        async move {
            for _ in 0..WARM + n {
                ping.taken().await;
                pong.set();
            }
        }
    });
    let first = l.spawn(async move {
        let mut span = Span::start();
        for at in 0..WARM + n {
            if at == WARM {
                span = Span::start();
            }
            ping.set();
            pong.taken().await;
        }
        span.emit("ping-pong", n);
    });
    first.await;
    second.await;
}

pub(super) async fn task_bytes<L: Tasks>(l: L, n: u64) {
    let count = Rc::new(Cell::new(0));
    let mut tasks = roomy(n);
    let memory = Memory::start();
    for _ in 0..n {
        tasks.push(l.spawn(add_one(count.clone())));
    }
    memory.emit("task", n);
    for task in tasks {
        task.await;
    }
}
