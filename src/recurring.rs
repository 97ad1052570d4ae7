//! A callback that is called again and again, in its seat, and the one context of all its calls.
//!
//! The callback is taken out of its seat for the call and put back after it, also when it panics: so
//! no borrow is alive meanwhile, and it may remove or replace itself. Watched descriptors and signals
//! call what sits here; when, is their business.

use std::cell::Cell;
use std::panic::Location;

use crate::context::{self, Context};
use crate::error::drop_quietly;

/// A callback in its seat.
pub(crate) struct Recurring<F> {
    callback: Cell<Option<F>>,
    /// One context for all its calls, begun by the first that sets something.
    context: Cell<Option<Context>>,
    pub(crate) place: &'static Location<'static>,
}

impl<F: FnMut()> Recurring<F> {
    /// Seats a callback, with a copy of the current context.
    pub(crate) fn new(callback: F, place: &'static Location<'static>) -> Self {
        Self {
            callback: Cell::new(Some(callback)),
            context: Cell::new(Context::capture()),
            place,
        }
    }

    /// Calls the callback as an item of the line.
    pub(crate) fn call(&self) {
        /// Puts the callback back also when it panics.
        struct Seated<'a, F>(&'a Cell<Option<F>>, Option<F>);
        impl<F> Drop for Seated<'_, F> {
            fn drop(&mut self) {
                self.0.set(self.1.take());
            }
        }

        let mut seated = Seated(&self.callback, self.callback.take());
        let mut call = || {
            if let Some(callback) = &mut seated.1 {
                callback();
            }
        };
        match self.context.take() {
            Some(context) => {
                self.context.set(Some(context.clone()));
                context::run_item(context, call);
            }
            None => {
                call();
                self.context.set(context::current());
            }
        }
    }
}

/// The closure and the values of its context may both panic when they go: each goes by itself.
impl<F> Drop for Recurring<F> {
    fn drop(&mut self) {
        drop_quietly(self.callback.take());
        drop_quietly(self.context.take());
    }
}
