//! The connections of one server: who they are, and when the last of them is over.
//!
//! A transport that a server has opened keeps a number here and takes it back when its connection is
//! lost. The list does not keep transports alive.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Waker;

use slab::Slab;

use super::transport::Transport;

/// The connections of a server.
#[derive(Default)]
pub(crate) struct Clients {
    transports: RefCell<Slab<Weak<dyn Transport>>>,
    /// Who waits for something that has to do with the server.
    waiting: RefCell<Slab<Waker>>,
    /// Whether those who wait are to be told when there is no connection any more.
    telling: Cell<bool>,
}

impl Clients {
    /// Notes a connection, and returns its number.
    pub(super) fn came(&self, transport: Weak<dyn Transport>) -> u32 {
        self.transports.borrow_mut().insert(transport) as u32
    }

    /// Forgets a connection that is over. Returns the wakers that are to be told of it.
    #[must_use]
    pub(super) fn left(&self, number: u32) -> Vec<Waker> {
        let gone = self.transports.borrow_mut().try_remove(number as usize);
        drop(gone);
        if self.telling.get() && self.is_empty() {
            self.take_waiting()
        } else {
            Vec::new()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.transports.borrow().is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.transports.borrow().len()
    }

    /// The transports of all connections.
    pub(crate) fn all(&self) -> Vec<Rc<dyn Transport>> {
        let transports = self.transports.borrow();
        let each = transports.iter();
        each.filter_map(|(_, transport)| transport.upgrade())
            .collect()
    }

    /// From now on the end of the last connection is told. Returns who is to be told at once.
    #[must_use]
    pub(crate) fn tell_of_end(&self) -> Vec<Waker> {
        self.telling.set(true);
        self.take_waiting()
    }

    /// Takes the wakers of all who wait; each keeps its number, and asks again when it is polled.
    fn take_waiting(&self) -> Vec<Waker> {
        let mut waiting = self.waiting.borrow_mut();
        let each = waiting.iter_mut();
        each.map(|(_, waker)| std::mem::replace(waker, Waker::noop().clone()))
            .collect()
    }

    /// Notes a waker, and returns its number.
    pub(crate) fn wait(&self, waker: Waker) -> usize {
        self.waiting.borrow_mut().insert(waker)
    }

    /// Puts a waker in the place of an earlier one, which is returned.
    pub(crate) fn wait_on(&self, number: usize, waker: Waker) -> Option<Waker> {
        let mut waiting = self.waiting.borrow_mut();
        let seat = waiting.get_mut(number)?;
        Some(std::mem::replace(seat, waker))
    }

    /// Takes back a waker.
    pub(crate) fn stop_waiting(&self, number: usize) -> Option<Waker> {
        self.waiting.borrow_mut().try_remove(number)
    }
}
