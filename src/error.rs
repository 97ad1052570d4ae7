//! What the loop itself refuses or reports.
//!
//! What the system says is an [`io::Error`] with its kind untouched. The few types here are what
//! the loop says; each converts into an [`io::Error`] of a fitting kind, so that `?` works in a
//! function that returns `io::Result`. There is no error type for the whole crate. Texts are lower
//! case, without a full stop, and say what to do about it.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::panic;
use std::sync::{Arc, Mutex, PoisonError};

/// Says that what was awaited has been cancelled.
///
/// # Coming from asyncio
///
/// `CancelledError` is thrown into a coroutine. Here a cancelled task is dropped at its await, so
/// this value is seen by whoever awaits the task or the promise, and inside a task only by
/// [`until_cancelled`](crate::until_cancelled).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cancelled {
    reason: Option<Arc<str>>,
}

impl Cancelled {
    /// Makes a cancellation without a reason.
    pub const fn new() -> Self {
        Self { reason: None }
    }

    /// Makes a cancellation that carries a reason.
    pub fn with_reason(reason: impl Into<Arc<str>>) -> Self {
        Self {
            reason: Some(reason.into()),
        }
    }

    /// Returns the reason that was given to `cancel_with`.
    #[doc(alias = "msg")]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            Some(reason) => write!(f, "cancelled: {reason}"),
            None => f.write_str("cancelled"),
        }
    }
}

/// Says that the deadline of a [`timeout`](crate::timeout()) passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the deadline has passed")
    }
}

/// Says that a timeout has ended, so that it cannot be moved any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeoutOver;

impl fmt::Display for TimeoutOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the timeout is over: move it while its future is pending")
    }
}

/// Says that the loop has been closed and takes no more work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoopClosed;

impl fmt::Display for LoopClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the event loop is closed")
    }
}

/// Says that no loop runs in this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoRunningLoop;

impl fmt::Display for NoRunningLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no event loop runs in this thread: call this from a callback, a task or the future \
             given to run_until_complete",
        )
    }
}

/// Says why a loop did not run, or did not run to the end.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError {
    /// This loop runs already; the run that was going on is undisturbed.
    AlreadyRunning,
    /// Another loop runs in this thread; it is undisturbed.
    AnotherLoopRunning,
    /// The loop has been closed.
    Closed,
    /// The loop was stopped before the future was complete; the future has been dropped.
    Stopped,
    /// The future was cancelled through its [`TaskRef`](crate::TaskRef).
    Cancelled(Cancelled),
    /// The process forked after the loop was made, and this is the child.
    Forked,
    /// A virtual clock stood still for five seconds of real time; the text names what it waited
    /// for.
    Stalled(String),
    /// The selector failed.
    Io(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyRunning => f.write_str("this event loop is already running"),
            Self::AnotherLoopRunning => f.write_str(
                "cannot run this event loop while another loop is running in the thread",
            ),
            Self::Closed => f.write_str("the event loop is closed"),
            Self::Stopped => {
                f.write_str("the event loop was stopped before the future was complete")
            }
            Self::Cancelled(_) => f.write_str("the future of the run was cancelled"),
            Self::Forked => {
                f.write_str("the event loop belongs to the parent process: make a new one")
            }
            Self::Stalled(what) => {
                write!(
                    f,
                    "the virtual clock stood still for 5 s of real time, waiting for {what}"
                )
            }
            Self::Io(_) => f.write_str("the selector failed"),
        }
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Cancelled(cancelled) => Some(cancelled),
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<RunError> for io::Error {
    fn from(error: RunError) -> Self {
        let kind = match error {
            RunError::Io(error) => return error,
            RunError::Closed => ErrorKind::NotConnected,
            RunError::Stopped | RunError::Cancelled(_) => ErrorKind::Interrupted,
            RunError::Stalled(_) => ErrorKind::TimedOut,
            _ => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

/// Says why a task has no value.
#[derive(Debug)]
#[non_exhaustive]
pub enum JoinError {
    /// The task was cancelled, or its loop was closed first.
    Cancelled(Cancelled),
    /// The task panicked.
    Panicked(Payload),
    /// The loop's own thread was about to wait for a task that only the loop can finish.
    WouldDeadlock,
    /// The task awaited itself.
    AwaitsItself,
}

impl JoinError {
    /// Tells whether the task was cancelled.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Cancelled(_))
    }

    /// Tells whether the task panicked.
    pub fn is_panicked(&self) -> bool {
        matches!(self, Self::Panicked(_))
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled(cancelled) => write!(f, "the task was {cancelled}"),
            Self::Panicked(payload) => write!(f, "the task panicked: {}", payload.message()),
            Self::WouldDeadlock => f.write_str(
                "the loop's own thread cannot wait for its task: await the task instead",
            ),
            Self::AwaitsItself => f.write_str("a task cannot await itself: it would never end"),
        }
    }
}

impl Error for JoinError {}

impl From<Cancelled> for JoinError {
    fn from(cancelled: Cancelled) -> Self {
        Self::Cancelled(cancelled)
    }
}

/// Holds what a panic carried.
///
/// The value itself is behind a lock, since a panic's payload is `Send` but not `Sync`.
pub struct Payload {
    message: Box<str>,
    value: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Payload {
    pub(crate) fn new(value: Box<dyn Any + Send>) -> Self {
        let message = panic_message(&*value).into();
        Self {
            message,
            value: Mutex::new(Some(value)),
        }
    }

    /// Returns the panic's message, or a stand-in where the payload is not text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns what the panic carried.
    pub fn into_inner(mut self) -> Box<dyn Any + Send> {
        let value = self
            .value
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        value.unwrap_or_else(|| Box::new(()))
    }

    /// Goes on with the panic in the caller.
    ///
    /// # Panics
    ///
    /// Always: that is what it is for.
    pub fn resume(self) -> ! {
        panic::resume_unwind(self.into_inner())
    }

    /// Looks at what the panic carried.
    pub fn with<R>(&self, look: impl FnOnce(&(dyn Any + Send)) -> R) -> R {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        match &*value {
            Some(value) => look(&**value),
            None => look(&()),
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Payload").field(&self.message).finish()
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let value = self
            .value
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop_quietly(value);
    }
}

/// Drops a value of foreign make; a panic of its destructor ends here.
pub(crate) fn drop_quietly<T>(value: T) {
    let dropped = panic::catch_unwind(panic::AssertUnwindSafe(|| drop(value)));
    if let Err(payload) = dropped {
        let dropped = panic::catch_unwind(panic::AssertUnwindSafe(|| drop(payload)));
        // A payload that panics in its own destructor has another: that one is let be.
        if let Err(payload) = dropped {
            std::mem::forget(payload);
        }
    }
}

pub(crate) fn panic_message(value: &(dyn Any + Send)) -> &str {
    if let Some(text) = value.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = value.downcast_ref::<String>() {
        text
    } else {
        "a panic whose payload is not text"
    }
}

/// Lets small errors become an `io::Error` of a fitting kind.
macro_rules! into_io_error {
    ($($type:ty => $kind:expr;)*) => {$(
        impl From<$type> for io::Error {
            fn from(error: $type) -> Self {
                Self::new($kind, error)
            }
        }
    )*};
}

pub(crate) use into_io_error;

into_io_error! {
    Cancelled => ErrorKind::Interrupted;
    Elapsed => ErrorKind::TimedOut;
    TimeoutOver => ErrorKind::InvalidInput;
    LoopClosed => ErrorKind::NotConnected;
    NoRunningLoop => ErrorKind::NotFound;
}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> Self {
        let kind = match error {
            JoinError::Cancelled(_) => ErrorKind::Interrupted,
            JoinError::WouldDeadlock | JoinError::AwaitsItself => ErrorKind::Deadlock,
            JoinError::Panicked(_) => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Error for Cancelled {}
impl Error for Elapsed {}
impl Error for TimeoutOver {}
impl Error for LoopClosed {}
impl Error for NoRunningLoop {}

impl From<LoopClosed> for RunError {
    fn from(_: LoopClosed) -> Self {
        Self::Closed
    }
}
