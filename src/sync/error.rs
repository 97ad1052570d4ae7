//! What the tools of this room refuse, and why.
//!
//! Small types, each of which converts into an [`io::Error`] of a fitting kind. Where an item was
//! refused it comes back in the error; on the way into an `io::Error` it is dropped.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use crate::error::into_io_error;

/// Says that a barrier was broken, or reset, before all had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "BrokenBarrierError")]
pub struct BrokenBarrier;

impl fmt::Display for BrokenBarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the barrier is broken or was reset before all had come")
    }
}

/// Says that a barrier was asked for that waits for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoParties;

impl fmt::Display for NoParties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a barrier needs at least one party")
    }
}

/// Says that a semaphore has all its permits, or will have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AboveBound;

impl fmt::Display for AboveBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no permit was forgotten: permits that are held come back when they are dropped",
        )
    }
}

/// Says that a queue was asked for that holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoCapacity;

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a queue needs room for at least one item: `new` makes one without a limit")
    }
}

/// Says that more items were done than had been put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TooManyDone;

impl fmt::Display for TooManyDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no item is unfinished: call task_done once for each item")
    }
}

/// Says that a queue has no item that is free to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEmpty;

impl fmt::Display for QueueEmpty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is empty")
    }
}

/// Says that a queue has no place, and gives the item back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QueueFull<T>(pub T);

impl<T> fmt::Display for QueueFull<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full")
    }
}

/// Says that a queue has been shut down; a refused item comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
#[doc(alias = "QueueShutDown")]
pub struct QueueShutdown<T = ()>(pub T);

impl<T> fmt::Display for QueueShutdown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue has been shut down")
    }
}

/// Says why an item was not put.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryPutError<T> {
    /// There is no place, or those who wait have it.
    Full(QueueFull<T>),
    /// The queue has been shut down.
    Shutdown(QueueShutdown<T>),
}

impl<T> TryPutError<T> {
    /// Returns the item.
    pub fn into_item(self) -> T {
        match self {
            Self::Full(QueueFull(item)) | Self::Shutdown(QueueShutdown(item)) => item,
        }
    }
}

impl<T> fmt::Display for TryPutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(error) => error.fmt(f),
            Self::Shutdown(error) => error.fmt(f),
        }
    }
}

/// Says why no item was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryGetError {
    /// There is no item, or those who wait have it.
    Empty(QueueEmpty),
    /// The queue has been shut down, and nothing is left.
    Shutdown(QueueShutdown),
}

impl fmt::Display for TryGetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(error) => error.fmt(f),
            Self::Shutdown(error) => error.fmt(f),
        }
    }
}

// Without the item, whose own `Debug` may be anything or missing.
impl<T> fmt::Debug for QueueFull<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QueueFull").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for QueueShutdown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QueueShutdown").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for TryPutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(error) => error.fmt(f),
            Self::Shutdown(error) => error.fmt(f),
        }
    }
}

impl Error for BrokenBarrier {}
impl Error for NoParties {}
impl Error for AboveBound {}
impl Error for NoCapacity {}
impl Error for TooManyDone {}
impl Error for QueueEmpty {}
impl<T> Error for QueueFull<T> {}
impl<T> Error for QueueShutdown<T> {}
impl<T> Error for TryPutError<T> {}
impl Error for TryGetError {}

into_io_error! {
    BrokenBarrier => ErrorKind::Interrupted;
    NoParties => ErrorKind::InvalidInput;
    AboveBound => ErrorKind::InvalidInput;
    NoCapacity => ErrorKind::InvalidInput;
    TooManyDone => ErrorKind::InvalidInput;
    QueueEmpty => ErrorKind::WouldBlock;
}

impl<T> From<QueueFull<T>> for io::Error {
    fn from(_: QueueFull<T>) -> Self {
        Self::new(ErrorKind::WouldBlock, QueueFull(()))
    }
}

impl<T> From<QueueShutdown<T>> for io::Error {
    fn from(_: QueueShutdown<T>) -> Self {
        Self::new(ErrorKind::BrokenPipe, QueueShutdown(()))
    }
}

impl<T> From<TryPutError<T>> for io::Error {
    fn from(error: TryPutError<T>) -> Self {
        match error {
            TryPutError::Full(error) => error.into(),
            TryPutError::Shutdown(error) => error.into(),
        }
    }
}

impl From<TryGetError> for io::Error {
    fn from(error: TryGetError) -> Self {
        match error {
            TryGetError::Empty(error) => error.into(),
            TryGetError::Shutdown(error) => error.into(),
        }
    }
}
