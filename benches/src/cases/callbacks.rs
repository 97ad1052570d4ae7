//! Plain callbacks: by the thousand, one after the other, and what one weighs.

use std::cell::Cell;
use std::rc::Rc;

use super::{Callbacks, WARM};
use crate::measure::{Memory, Span};

const BATCH: u64 = 1_000;

struct Batches<L> {
    on: L,
    left: Cell<u64>,
    count: Rc<Cell<u64>>,
    span: Cell<Option<Span>>,
}

/// Two batches to warm up, then `n` callbacks by the thousand, each batch run before the next.
pub(super) fn batches<L: Callbacks>(l: L, n: u64) {
    let batches = Batches {
        on: l,
        left: Cell::new(n / BATCH + WARM / BATCH),
        count: Rc::default(),
        span: Cell::new(None),
    };
    batch(Rc::new(batches), n / BATCH);
}

fn batch<L: Callbacks>(all: Rc<Batches<L>>, timed: u64) {
    let left = all.left.get();
    if left == timed {
        all.span.set(Some(Span::start()));
    }
    if left == 0 {
        if let Some(span) = all.span.take() {
            span.emit("call-soon-batch", timed * BATCH);
        }
        assert_eq!(all.count.get(), timed * BATCH + WARM);
        return all.on.stop();
    }
    all.left.set(left - 1);
    for _ in 0..BATCH {
        let count = all.count.clone();
        all.on.call_soon(move || count.set(count.get() + 1));
    }
    let next = all.clone();
    all.on.call_soon(move || batch(next, timed));
}

/// Each callback makes the next one: a turn each.
pub(super) fn link<L: Callbacks>(l: L, left: u64, timed: u64, span: Option<Span>) {
    let span = if left == timed {
        Some(Span::start())
    } else {
        span
    };
    if left == 0 {
        if let Some(span) = span {
            span.emit("call-soon-chain", timed);
        }
        return l.stop();
    }
    let next = l.clone();
    l.call_soon(move || link(next, left - 1, timed, span));
}

pub(super) fn call_soon_bytes<L: Callbacks>(l: L, n: u64) {
    let count = Rc::new(Cell::new(0));
    let memory = Memory::start();
    for _ in 0..n {
        let count = count.clone();
        l.call_soon(move || count.set(count.get() + 1));
    }
    memory.emit("call-soon", n);
    let last = l.clone();
    l.call_soon(move || last.stop());
}
