//! How a transport begins, and what holds it in the line.
//!
//! What a new one is made of, and the items of the line that it stands in, which break its cycles if
//! the loop is closed before they run.

use std::panic::Location;
use std::rc::Rc;

use super::clients::Clients;
use super::erased::AnyProtocol;
use crate::address::Address;
use crate::context::Context;
use crate::selector::table::Watcher;

/// What a new transport is made of.
pub(crate) struct Opening {
    pub(crate) protocol: AnyProtocol,
    pub(crate) context: Option<Context>,
    pub(crate) place: &'static Location<'static>,
    pub(crate) peer: Option<Address>,
    /// The connections of the server that has accepted it.
    pub(crate) clients: Option<Rc<Clients>>,
}

/// An item of the line that holds a transport: dropped unrun, it breaks the transport's cycles.
pub(super) struct Unless<T: Watcher>(Option<Rc<T>>);

impl<T: Watcher> Unless<T> {
    pub(super) fn new(transport: Rc<T>) -> Self {
        Self(Some(transport))
    }

    /// Runs the item.
    pub(super) fn run(mut self, run: impl FnOnce(Rc<T>)) {
        if let Some(transport) = self.0.take() {
            run(transport);
        }
    }
}

impl<T: Watcher> Drop for Unless<T> {
    fn drop(&mut self) {
        if let Some(transport) = self.0.take() {
            transport.let_go();
        }
    }
}
