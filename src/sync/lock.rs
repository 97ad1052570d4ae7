//! A lock across awaits.
//!
//! What must always hold: there is one guard at most, and whoever has it holds the lock. A lock
//! that is let go belongs to the next in line before anybody else can ask.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};

use super::permits::{Answer, Asking, Permits};
use crate::record::On;

/// Lets one task at a time into a section that awaits.
///
/// Tasks have the lock in the order in which they first asked for it. Between two awaits no other
/// task of the thread runs, so a section that does not await needs no lock.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::sync::Lock;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let lock = Rc::new(Lock::new());
/// let theirs = Rc::clone(&lock);
/// event_loop.run_until_complete(async move {
///     let guard = lock.acquire().await;
///     let task = coloop::current().create_task(async move {
///         let _guard = theirs.acquire().await;
///         "after the first"
///     });
///     coloop::yield_now().await;
///     assert!(lock.is_locked() && lock.try_acquire().is_none());
///     drop(guard);
///     assert_eq!(task.await.unwrap(), "after the first");
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// `async with lock:` is a guard in a scope. There is no `release()` that could be called by who
/// does not hold the lock.
#[doc(alias = "Mutex")]
pub struct Lock(Permits);

impl Lock {
    /// Makes a lock that nobody holds.
    pub const fn new() -> Self {
        Self(Permits::new(1))
    }

    /// Waits for the lock; the guard lets it go when it is dropped.
    ///
    /// # Cancellation
    ///
    /// Dropping the future gives up the place in the line. A lock that was handed over in that
    /// moment goes to the next.
    #[track_caller]
    pub fn acquire(&self) -> Acquire<'_> {
        self.acquire_at(Location::caller())
    }

    pub(super) const fn acquire_at(&self, place: &'static Location<'static>) -> Acquire<'_> {
        Acquire {
            lock: self,
            asking: self.0.ask(On::Lock, place),
        }
    }

    /// Takes the lock if nobody holds it or waits for it.
    pub fn try_acquire(&self) -> Option<LockGuard<'_>> {
        self.0.try_take().then(|| LockGuard(self))
    }

    /// Tells whether somebody holds the lock.
    #[doc(alias = "locked")]
    pub fn is_locked(&self) -> bool {
        self.0.free() == 0
    }
}

impl Default for Lock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("locked", &self.is_locked())
            .field("waiting", &self.0.waiting())
            .finish()
    }
}

/// Waits for a lock; made by [`Lock::acquire`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Acquire<'a> {
    lock: &'a Lock,
    asking: Asking<'a>,
}

impl<'a> Future for Acquire<'a> {
    type Output = LockGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<LockGuard<'a>> {
        // A lock is never closed.
        match self.asking.poll(cx) {
            Poll::Ready(Answer::Yours) => Poll::Ready(LockGuard(self.lock)),
            Poll::Ready(Answer::Closed) | Poll::Pending => Poll::Pending,
        }
    }
}

impl fmt::Debug for Acquire<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acquire").field(self.lock).finish()
    }
}

/// Holds a [`Lock`], and lets it go when it is dropped.
#[doc(alias = "release")]
#[must_use = "the lock is let go when the guard is dropped"]
pub struct LockGuard<'a>(&'a Lock);

impl<'a> LockGuard<'a> {
    pub(super) const fn lock(&self) -> &'a Lock {
        self.0
    }
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        self.0.0.release();
    }
}

impl fmt::Debug for LockGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockGuard").field(self.0).finish()
    }
}
