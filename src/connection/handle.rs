//! How a program reaches the protocol of its connection, and gets it back when that is over.
//!
//! The protocol is shared by two: its transport, which takes it out for each call, and its handle.
//! Whoever has it out has it alone; the other is told "busy". It lives for as long as either.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};

use crate::core::Core;
use crate::error::drop_quietly;
use crate::record::On;

/// A protocol that a transport and a handle share.
///
/// The transport knows how it is called (`S`), the handle need not.
pub(super) struct Shared<P, S: ?Sized = dyn Kind> {
    /// Empty while the protocol is in a call. Boxed, so that taking it out moves a pointer.
    protocol: Cell<Option<Box<P>>>,
    standing: Cell<Standing>,
    /// What only a handle asks for.
    end: Cell<Option<Box<End>>>,
    _kind: S,
}

/// Any way in which a protocol is called.
pub(super) trait Kind {}

/// How a protocol stands with its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Seated,
    Replaced,
    Lost,
}

#[derive(Default)]
struct End {
    error: Option<io::Error>,
    waker: Option<Waker>,
}

impl<P, S> Shared<P, S> {
    pub(super) fn new(protocol: P, kind: S) -> Self {
        Self {
            protocol: Cell::new(Some(Box::new(protocol))),
            standing: Cell::new(Standing::Seated),
            end: Cell::new(None),
            _kind: kind,
        }
    }
}

impl<P, S: ?Sized> Shared<P, S> {
    #[inline]
    pub(super) fn take(&self) -> Option<Box<P>> {
        self.protocol.take()
    }

    #[inline]
    pub(super) fn put(&self, protocol: Box<P>) {
        let before = self.protocol.replace(Some(protocol));
        debug_assert!(before.is_none(), "whoever puts it back has taken it out");
    }

    pub(super) fn is_here(&self) -> bool {
        let protocol = self.protocol.take();
        let free = protocol.is_some();
        self.protocol.set(protocol);
        free
    }

    /// Notes that the transport has let go, and tells the handle.
    pub(super) fn let_go(&self, standing: Standing, error: Option<io::Error>) {
        self.standing.set(standing);
        let mut end = self.end.take().unwrap_or_default();
        end.error = error;
        let waker = end.waker.take();
        self.end.set(Some(end));
        if let Some(waker) = waker
            && let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake()))
        {
            drop_quietly(payload);
        }
    }
}

/// Reaches the protocol of a connection, and gets it back when the connection is over.
///
/// The protocol lives for as long as its handle, also after the connection. Dropping the handle does
/// nothing to the connection.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::{Protocol, Transport};
///
/// #[derive(Default)]
/// struct Counter(usize);
/// impl Protocol for Counter {
///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
///         self.0 += data.len();
///     }
/// }
///
/// coloop::testing::run_virtual(async {
///     let loop_ = coloop::current();
///     let (near, far) = coloop::testing::stream_pair(&loop_, 1024)?;
///     let (transport, counter) = loop_.create_connection_over(Counter::default, near).await?;
///     assert_eq!(counter.with(|counter| counter.0).unwrap(), 0);
///     coloop::ByteStream::send(&far, b"four")?;
///     drop(far);
///     let (counter, error) = counter.closed().await;
///     assert_eq!((counter.0, error.is_none()), (4, true));
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[doc(alias = "get_protocol")]
pub struct ProtocolHandle<P>(Rc<Shared<P>>);

impl<P> ProtocolHandle<P> {
    pub(super) fn new(shared: Rc<Shared<P>>) -> Self {
        Self(shared)
    }

    /// Lends the protocol to `look`.
    ///
    /// It works also when the connection is over.
    ///
    /// # Errors
    ///
    /// [`Unreachable::Busy`] within one of the protocol's own calls, and within `look` itself;
    /// [`Unreachable::Replaced`] after `set_protocol`.
    pub fn with<R>(&self, look: impl FnOnce(&mut P) -> R) -> Result<R, Unreachable> {
        if self.0.standing.get() == Standing::Replaced {
            return Err(Unreachable::Replaced);
        }
        let mut lent = Lent(&self.0, self.0.take());
        match &mut lent.1 {
            Some(protocol) => Ok(look(protocol)),
            None => Err(Unreachable::Busy),
        }
    }

    /// Waits for the end of the connection, and gives the protocol back with the reason.
    ///
    /// The reason is what `connection_lost` was told: none after an orderly end. A protocol that
    /// has been replaced comes back at once; so does one whose loop has been closed, with an error
    /// of kind [`NotConnected`](io::ErrorKind::NotConnected).
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves the protocol to its transport.
    ///
    /// # Coming from asyncio
    ///
    /// The future that protocols there make in `__init__` and settle in `connection_lost`.
    #[track_caller]
    pub fn closed(self) -> Closed<P> {
        Closed {
            shared: self.0,
            place: Location::caller(),
            wait: None,
        }
    }
}

/// A protocol that is lent out: it comes back also when the borrower panics.
struct Lent<'a, P>(&'a Shared<P>, Option<Box<P>>);

impl<P> Drop for Lent<'_, P> {
    fn drop(&mut self) {
        if let Some(protocol) = self.1.take() {
            self.0.put(protocol);
        }
    }
}

impl<P> fmt::Debug for ProtocolHandle<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtocolHandle")
            .field("protocol", &std::any::type_name::<P>())
            .field("standing", &self.0.standing.get())
            .finish()
    }
}

/// Says why a protocol cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreachable {
    /// It is in a call of its own.
    Busy,
    /// Another protocol has taken its place.
    Replaced,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the protocol is in a call of its own: use `self` there",
            Self::Replaced => "another protocol has taken its place: `closed` gives it back",
        })
    }
}

impl Error for Unreachable {}

impl From<Unreachable> for io::Error {
    fn from(unreachable: Unreachable) -> Self {
        Self::new(io::ErrorKind::ResourceBusy, unreachable)
    }
}

/// Resolves when a connection is over; made by [`ProtocolHandle::closed`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Closed<P> {
    shared: Rc<Shared<P>>,
    place: &'static Location<'static>,
    wait: Option<(Rc<Core>, u32)>,
}

impl<P> Closed<P> {
    fn stop_waiting(&mut self) {
        if let Some((core, wait)) = self.wait.take() {
            core.records.end_wait(wait);
        }
    }
}

impl<P> Future for Closed<P> {
    type Output = (P, Option<io::Error>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let over = self.shared.standing.get() != Standing::Seated;
        if over && let Some(protocol) = self.shared.take() {
            self.stop_waiting();
            let end = self.shared.end.take();
            return Poll::Ready((*protocol, end.and_then(|end| end.error)));
        }
        let waker = cx.waker().clone();
        let mut end = self.shared.end.take().unwrap_or_default();
        let before = end.waker.replace(waker);
        self.shared.end.set(Some(end));
        drop(before);
        match &self.wait {
            Some((core, wait)) => core.records.renew_wait(*wait),
            None => {
                let place = self.place;
                self.wait = Core::current().map(|core| {
                    let wait = core.records.begin_wait(On::Connection, place, core.now());
                    (core, wait)
                });
            }
        }
        Poll::Pending
    }
}

impl<P> Drop for Closed<P> {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl<P> fmt::Debug for Closed<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closed")
            .field("protocol", &std::any::type_name::<P>())
            .finish_non_exhaustive()
    }
}
