//! A list of those who wait, and what each has been given: one for every tool of this room.
//!
//! Whoever waits has a slot, from its first poll until it has what it waited for or is dropped.
//! Slots that wait are linked in the order in which they came, so that giving, joining and leaving
//! cost the same however many there are.
//!
//! What must always hold:
//!
//! 1. What is given lies in the slot until its owner takes it. An owner that leaves without having
//!    looked gets it back from `leave`, and must pass it on.
//! 2. No waker is cloned, called or dropped while the list is borrowed.
//! 3. Giving changes the list first and wakes last.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};

use slab::Slab;

use crate::core::Core;
use crate::error::drop_quietly;
use crate::record::On;

/// Those who wait.
pub(super) struct Waiters<T>(RefCell<Line<T>>);

struct Line<T> {
    slots: Slab<Slot<T>>,
    first: Option<usize>,
    last: Option<usize>,
    waiting: usize,
}

enum Slot<T> {
    Waiting {
        waker: Waker,
        before: Option<usize>,
        behind: Option<usize>,
    },
    Given(T),
}

impl<T> Line<T> {
    fn push(&mut self, waker: Waker) -> usize {
        let before = self.last;
        let key = self.slots.insert(Slot::Waiting {
            waker,
            before,
            behind: None,
        });
        self.link(before, Some(key), Side::Behind);
        if before.is_none() {
            self.first = Some(key);
        }
        self.last = Some(key);
        self.waiting += 1;
        key
    }

    /// Lets a slot know its new neighbour.
    fn link(&mut self, at: Option<usize>, neighbour: Option<usize>, side: Side) {
        let slot = at.and_then(|key| self.slots.get_mut(key));
        if let Some(Slot::Waiting { before, behind, .. }) = slot {
            match side {
                Side::Before => *before = neighbour,
                Side::Behind => *behind = neighbour,
            }
        }
    }

    /// Takes a slot that waited out of the order.
    fn unlink(&mut self, before: Option<usize>, behind: Option<usize>) {
        self.link(before, behind, Side::Behind);
        self.link(behind, before, Side::Before);
        if before.is_none() {
            self.first = behind;
        }
        if behind.is_none() {
            self.last = before;
        }
        self.waiting -= 1;
    }

    fn give_first(&mut self, value: T) -> Option<Waker> {
        let slot = self.slots.get_mut(self.first?)?;
        let Slot::Waiting {
            waker,
            before,
            behind,
        } = std::mem::replace(slot, Slot::Given(value))
        else {
            return None;
        };
        self.unlink(before, behind);
        Some(waker)
    }
}

enum Side {
    Before,
    Behind,
}

impl<T> Waiters<T> {
    pub(super) const fn new() -> Self {
        Self(RefCell::new(Line {
            slots: Slab::new(),
            first: None,
            last: None,
            waiting: 0,
        }))
    }

    /// How many wait and have not been given anything.
    pub(super) fn len(&self) -> usize {
        self.0.borrow().waiting
    }

    /// Gives something to whoever has waited longest. The caller wakes it by [`wake`].
    #[must_use = "whoever was given something has to be woken"]
    pub(super) fn give(&self, value: T) -> Option<Waker> {
        self.0.borrow_mut().give_first(value)
    }

    /// Gives something to each of the `most` who have waited longest. The caller wakes them.
    #[must_use = "whoever was given something has to be woken"]
    pub(super) fn give_each(&self, most: usize, value: impl Fn(usize) -> T) -> Vec<Waker> {
        let mut line = self.0.borrow_mut();
        let count = most.min(line.waiting);
        (0..count)
            .filter_map(|index| line.give_first(value(index)))
            .collect()
    }

    fn take(&self, key: usize) -> Option<T> {
        let mut line = self.0.borrow_mut();
        match line.slots.get(key) {
            Some(Slot::Given(_)) => match line.slots.remove(key) {
                Slot::Given(value) => Some(value),
                Slot::Waiting { .. } => None,
            },
            _ => None,
        }
    }
}

/// Wakes who was given something. A waker that panics is reported by the loop that runs.
pub(super) fn wake(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        match Core::current() {
            Some(core) => core.wake(waker),
            None => {
                let woken = panic::catch_unwind(AssertUnwindSafe(|| waker.wake()));
                drop_quietly(woken);
            }
        }
    }
}

/// One who waits, or will, or has.
pub(super) struct Waiting {
    key: Option<usize>,
    /// The loop that knows of this wait, and its number there.
    note: Option<(Rc<Core>, u32)>,
    on: On,
    place: &'static Location<'static>,
}

impl Waiting {
    pub(super) const fn new(on: On, place: &'static Location<'static>) -> Self {
        Self {
            key: None,
            note: None,
            on,
            place,
        }
    }

    pub(super) const fn place(&self) -> &'static Location<'static> {
        self.place
    }

    /// Has what was given, or what can be had `at_once` by who does not wait yet; else waits.
    pub(super) fn poll<T>(
        &mut self,
        waiters: &Waiters<T>,
        cx: &PollContext<'_>,
        at_once: impl Fn() -> Option<T>,
    ) -> Poll<T> {
        let look = |key: Option<usize>| match key {
            Some(key) => waiters.take(key),
            None => at_once(),
        };
        let mut found = look(self.key);
        if found.is_none() {
            // Foreign code, which may have given something: look again.
            let waker = cx.waker().clone();
            found = look(self.key);
            if found.is_none() {
                self.wait(waiters, waker);
                return Poll::Pending;
            }
            drop_quietly(waker);
        }
        self.key = None;
        self.forget_note();
        found.map_or(Poll::Pending, Poll::Ready)
    }

    fn wait<T>(&mut self, waiters: &Waiters<T>, waker: Waker) {
        match self.key {
            None => self.key = Some(waiters.0.borrow_mut().push(waker)),
            Some(key) => {
                let replaced = match waiters.0.borrow_mut().slots.get_mut(key) {
                    Some(Slot::Waiting { waker: known, .. }) => std::mem::replace(known, waker),
                    _ => waker,
                };
                drop_quietly(replaced);
            }
        }
        let core = Core::current();
        match (&self.note, &core) {
            (Some((known, wait)), Some(core)) if Rc::ptr_eq(known, core) => {
                known.records.renew_wait(*wait);
            }
            _ => {
                self.forget_note();
                self.note = core.map(|core| {
                    let wait = core.records.begin_wait(self.on, self.place, core.now());
                    (core, wait)
                });
            }
        }
    }

    /// Waits no more. What was given and not looked at comes back, to be passed on.
    pub(super) fn leave<T>(&mut self, waiters: &Waiters<T>) -> Option<T> {
        self.forget_note();
        let key = self.key.take()?;
        let removed = {
            let mut line = waiters.0.borrow_mut();
            let removed = line.slots.try_remove(key);
            if let Some(Slot::Waiting { before, behind, .. }) = &removed {
                line.unlink(*before, *behind);
            }
            removed
        };
        match removed? {
            Slot::Given(value) => Some(value),
            Slot::Waiting { waker, .. } => {
                drop_quietly(waker);
                None
            }
        }
    }

    fn forget_note(&mut self) {
        if let Some((core, wait)) = self.note.take() {
            core.records.end_wait(wait);
        }
    }
}
