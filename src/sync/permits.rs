//! Permits that are handed from one to the next: what locks, semaphores and queues are made of.
//!
//! What must always hold: while somebody waits nothing is free, since what is released goes to
//! whoever has waited longest, at once. So a newcomer has nothing to take, and nobody is overtaken.
//! A permit that was handed to one who is dropped before it looked is released again.

use std::cell::Cell;
use std::panic::Location;
use std::task::{Context as PollContext, Poll};

use super::waiters::{Waiters, Waiting, wake};
use crate::record::On;

/// A number of permits, and those who wait for one.
pub(super) struct Permits {
    free: Cell<usize>,
    /// Nobody waits any more: what is free can be had, and then there is nothing.
    closed: Cell<bool>,
    waiters: Waiters<Answer>,
}

/// What one who asks for a permit is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yours,
    Closed,
}

impl Permits {
    pub(super) const fn new(free: usize) -> Self {
        Self {
            free: Cell::new(free),
            closed: Cell::new(false),
            waiters: Waiters::new(),
        }
    }

    pub(super) fn free(&self) -> usize {
        self.free.get()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    pub(super) fn try_take(&self) -> bool {
        let free = self.free.get();
        self.free.set(free.saturating_sub(1));
        free > 0
    }

    /// Takes all that are free.
    pub(super) fn take_all(&self) {
        self.free.set(0);
    }

    pub(super) fn release(&self) {
        match self.waiters.give(Answer::Yours) {
            Some(waker) => wake([waker]),
            None => self.free.set(self.free.get().saturating_add(1)),
        }
    }

    pub(super) fn release_many(&self, count: usize) {
        let wakers = self.waiters.give_each(count, |_| Answer::Yours);
        let left = count - wakers.len();
        self.free.set(self.free.get().saturating_add(left));
        wake(wakers);
    }

    /// Tells all who wait, and who will come, that there is nothing to wait for.
    pub(super) fn close(&self) {
        self.closed.set(true);
        wake(self.waiters.give_each(usize::MAX, |_| Answer::Closed));
    }

    pub(super) const fn ask(&self, on: On, place: &'static Location<'static>) -> Asking<'_> {
        Asking {
            permits: self,
            waiting: Waiting::new(on, place),
        }
    }

    fn answer_at_once(&self) -> Option<Answer> {
        if self.try_take() {
            Some(Answer::Yours)
        } else {
            self.closed.get().then_some(Answer::Closed)
        }
    }
}

/// Asks for a permit. Dropping it passes on what it was given and has not looked at.
pub(super) struct Asking<'a> {
    permits: &'a Permits,
    waiting: Waiting,
}

impl Asking<'_> {
    pub(super) fn poll(&mut self, cx: &PollContext<'_>) -> Poll<Answer> {
        let permits = self.permits;
        self.waiting
            .poll(&permits.waiters, cx, || permits.answer_at_once())
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.waiting.leave(&self.permits.waiters) == Some(Answer::Yours) {
            self.permits.release();
        }
    }
}
