//! A flag that tasks wait for.
//!
//! What must always hold: whoever waited when the flag was set goes on, whatever happens to the
//! flag before its turn comes.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};

use super::waiters::{Waiters, Waiting, wake};
use crate::record::On;

/// Lets tasks wait until something has happened.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::sync::Event;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let served = Rc::new(Event::new());
/// let flag = Rc::clone(&served);
/// event_loop.call_soon(move || flag.set());
/// event_loop.run_until_complete(served.wait())?;
/// assert!(served.is_set());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Event {
    set: Cell<bool>,
    waiters: Waiters<()>,
}

impl Event {
    /// Makes an event that has not happened.
    pub const fn new() -> Self {
        Self {
            set: Cell::new(false),
            waiters: Waiters::new(),
        }
    }

    /// Sets the flag: all who wait go on, in the order in which they came.
    pub fn set(&self) {
        self.set.set(true);
        wake(self.waiters.give_each(usize::MAX, |_| ()));
    }

    /// Takes the flag down. Whoever waited when it was set goes on all the same.
    pub fn clear(&self) {
        self.set.set(false);
    }

    /// Tells whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    /// Waits until the flag is set; goes on at once if it is.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing for others.
    #[track_caller]
    pub fn wait(&self) -> EventWait<'_> {
        self.wait_on(On::Event, Location::caller())
    }

    pub(super) const fn wait_on(&self, on: On, place: &'static Location<'static>) -> EventWait<'_> {
        EventWait {
            event: self,
            waiting: Waiting::new(on, place),
        }
    }
}

impl Default for Event {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("set", &self.is_set())
            .field("waiting", &self.waiters.len())
            .finish()
    }
}

/// Waits for an event; made by [`Event::wait`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct EventWait<'a> {
    event: &'a Event,
    waiting: Waiting,
}

impl Future for EventWait<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<()> {
        let event = self.event;
        self.waiting
            .poll(&event.waiters, cx, || event.is_set().then_some(()))
    }
}

impl Drop for EventWait<'_> {
    fn drop(&mut self) {
        self.waiting.leave(&self.event.waiters);
    }
}

impl fmt::Debug for EventWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventWait").field(self.event).finish()
    }
}
