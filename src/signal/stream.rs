//! Signals as a stream.
//!
//! A stream has a mailbox, which the loop's lookout fills. Each kind of signal is in it at most once,
//! as in the kernel, so that a stream which nobody polls does not grow.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};

use futures::Stream;

use super::{Lookout, Signal};
use crate::core::Core;
use crate::error::drop_quietly;
use crate::record::On;

/// What has come for one stream, and who waits for it.
pub(super) struct Mailbox {
    /// What it listens to, in order.
    signals: Vec<i32>,
    came: RefCell<VecDeque<i32>>,
    waiter: Cell<Option<Waker>>,
}

impl Mailbox {
    pub(super) fn new(signals: Vec<i32>) -> Self {
        Self {
            signals,
            came: RefCell::default(),
            waiter: Cell::new(None),
        }
    }

    pub(super) fn signals(&self) -> &[i32] {
        &self.signals
    }

    /// Notes that a signal came, if it is one of those, and returns who is to be woken.
    pub(super) fn put(&self, signal: i32) -> Option<Waker> {
        self.signals.binary_search(&signal).ok()?;
        let mut came = self.came.borrow_mut();
        if !came.contains(&signal) {
            came.push_back(signal);
        }
        self.take_waiter()
    }

    pub(super) fn take_waiter(&self) -> Option<Waker> {
        self.waiter.take()
    }

    fn take(&self) -> Option<i32> {
        self.came.borrow_mut().pop_front()
    }
}

/// Gives the signals that come, one after the other; made by
/// [`LoopHandle::signals`](crate::LoopHandle::signals).
///
/// It ends when the loop is closed, after what had come before. Dropping it stops listening. It may
/// be polled by anything that polls futures, as long as the loop runs.
#[must_use = "a stream of signals that is dropped stops listening"]
pub struct Signals {
    core: Rc<Core>,
    lookout: Rc<Lookout>,
    mailbox: Rc<Mailbox>,
    place: &'static Location<'static>,
    wait: Option<u32>,
}

impl Signals {
    pub(super) fn new(
        core: &Rc<Core>,
        lookout: Rc<Lookout>,
        mailbox: Rc<Mailbox>,
        place: &'static Location<'static>,
    ) -> Self {
        Self {
            core: Rc::clone(core),
            lookout,
            mailbox,
            place,
            wait: None,
        }
    }

    /// Resolves to the next signal, or to `None` when the loop is closed.
    ///
    /// # Cancellation
    ///
    /// Dropping it loses nothing: what comes stays in the stream.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::Signal;
    /// use signal_hook::low_level::raise;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let mut signals = event_loop.signals([Signal::HUP])?;
    /// let reloads = event_loop.create_task(async move {
    ///     let mut reloads = 0;
    ///     while signals.recv().await.is_some() {
    ///         reloads += 1;
    ///         if reloads == 2 {
    ///             break;
    ///         }
    ///     }
    ///     reloads
    /// });
    /// raise(Signal::HUP.as_raw())?;
    /// event_loop.call_later(std::time::Duration::from_millis(1), || {
    ///     raise(Signal::HUP.as_raw()).unwrap();
    /// });
    /// assert_eq!(event_loop.run_until_complete(reloads)?.unwrap(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn recv(&mut self) -> NextSignal<'_> {
        NextSignal {
            signals: self,
            place: Location::caller(),
        }
    }

    fn poll_at(
        &mut self,
        cx: &mut PollContext<'_>,
        place: &'static Location<'static>,
    ) -> Poll<Option<Signal>> {
        // The waker is foreign; what it does when it is cloned is done before anything is looked at.
        let waker = cx.waker().clone();
        let came = self.mailbox.take();
        if came.is_some() || self.core.is_closed() {
            self.stop_waiting();
            return Poll::Ready(came.map(Signal::from));
        }
        match self.wait {
            Some(wait) => self.core.records.renew_wait(wait),
            None => {
                let now = self.core.now();
                self.wait = Some(self.core.records.begin_wait(On::Signal, place, now));
            }
        }
        let before = self.mailbox.waiter.replace(Some(waker));
        drop(before);
        Poll::Pending
    }

    fn stop_waiting(&mut self) {
        if let Some(wait) = self.wait.take() {
            self.core.records.end_wait(wait);
        }
        drop_quietly(self.mailbox.take_waiter());
    }
}

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Option<Signal>> {
        let place = self.place;
        self.poll_at(cx, place)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.lookout.stop_listening(&self.mailbox);
        self.stop_waiting();
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signals = self.mailbox.signals.iter().copied().map(Signal::from);
        f.debug_set().entries(signals).finish()
    }
}

/// Resolves to the next signal of a stream; made by [`Signals::recv`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct NextSignal<'a> {
    signals: &'a mut Signals,
    place: &'static Location<'static>,
}

impl Future for NextSignal<'_> {
    type Output = Option<Signal>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Option<Signal>> {
        let place = self.place;
        self.signals.poll_at(cx, place)
    }
}

impl Drop for NextSignal<'_> {
    fn drop(&mut self) {
        self.signals.stop_waiting();
    }
}

impl fmt::Debug for NextSignal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NextSignal").field(&self.signals).finish()
    }
}
