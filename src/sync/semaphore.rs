//! A number of permits: how many may be in a section at once.
//!
//! What must always hold: a permit is free, or held, or has been forgotten on purpose. A bounded
//! semaphore takes back only what was forgotten, so that there are never more than its bound.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};

use super::error::AboveBound;
use super::permits::{Answer, Asking, Permits};
use crate::record::On;

/// Lets a number of tasks at a time into a section.
///
/// # Examples
///
/// ```
/// use coloop::sync::Semaphore;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let cups = Semaphore::new(2);
/// event_loop.run_until_complete(async {
///     let first = cups.acquire().await;
///     let _second = cups.acquire().await;
///     assert!(cups.is_locked() && cups.try_acquire().is_none());
///     drop(first);
///     assert_eq!(cups.available(), 1);
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// A permit is released by being dropped. `release()` by somebody else is
/// [`Permit::forget`] and [`add_permits`](Self::add_permits).
pub struct Semaphore {
    permits: Permits,
    forgotten: Cell<usize>,
}

impl Semaphore {
    /// Makes a semaphore with so many permits; none is fine, if some are added later.
    pub const fn new(permits: usize) -> Self {
        Self {
            permits: Permits::new(permits),
            forgotten: Cell::new(0),
        }
    }

    /// Waits for a permit.
    ///
    /// # Cancellation
    ///
    /// Dropping the future gives up the place in the line. A permit that was handed over in that
    /// moment goes to the next.
    #[track_caller]
    pub fn acquire(&self) -> AcquirePermit<'_> {
        AcquirePermit {
            semaphore: self,
            asking: self.permits.ask(On::Semaphore, Location::caller()),
        }
    }

    /// Takes a permit if one is free, which it is not while somebody waits.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.permits.try_take().then(|| Permit(Some(self)))
    }

    /// Adds permits: those who have waited longest have them first. A count that would not fit into
    /// a `usize` stays at the largest.
    #[doc(alias = "release")]
    pub fn add_permits(&self, count: usize) {
        self.permits.release_many(count);
    }

    /// Returns how many permits are free.
    pub fn available(&self) -> usize {
        self.permits.free()
    }

    /// Tells whether no permit is free.
    #[doc(alias = "locked")]
    pub fn is_locked(&self) -> bool {
        self.available() == 0
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore")
            .field("available", &self.available())
            .field("waiting", &self.permits.waiting())
            .finish()
    }
}

/// Waits for a permit; made by [`Semaphore::acquire`] and [`BoundedSemaphore::acquire`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct AcquirePermit<'a> {
    semaphore: &'a Semaphore,
    asking: Asking<'a>,
}

impl<'a> Future for AcquirePermit<'a> {
    type Output = Permit<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Permit<'a>> {
        // A semaphore is never closed.
        match self.asking.poll(cx) {
            Poll::Ready(Answer::Yours) => Poll::Ready(Permit(Some(self.semaphore))),
            Poll::Ready(Answer::Closed) | Poll::Pending => Poll::Pending,
        }
    }
}

impl fmt::Debug for AcquirePermit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AcquirePermit")
            .field(self.semaphore)
            .finish()
    }
}

/// Holds a permit, and releases it when it is dropped.
#[must_use = "the permit is released when it is dropped"]
pub struct Permit<'a>(Option<&'a Semaphore>);

impl Permit<'_> {
    /// Keeps the permit from being released: there is one fewer from now on, until
    /// [`Semaphore::add_permits`] or [`BoundedSemaphore::release`] puts it back.
    pub fn forget(mut self) {
        if let Some(semaphore) = self.0.take() {
            let forgotten = semaphore.forgotten.get();
            semaphore.forgotten.set(forgotten.saturating_add(1));
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(semaphore) = self.0 {
            semaphore.permits.release();
        }
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

/// Is a [`Semaphore`] whose permits never become more than they were at first.
///
/// # Examples
///
/// ```
/// use coloop::sync::BoundedSemaphore;
///
/// let cups = BoundedSemaphore::new(1);
/// let permit = cups.try_acquire().unwrap();
/// assert!(cups.release().is_err()); // the permit will come back by itself
/// permit.forget();
/// assert!(cups.release().is_ok());
/// assert_eq!((cups.available(), cups.bound()), (1, 1));
/// ```
pub struct BoundedSemaphore {
    semaphore: Semaphore,
    bound: usize,
}

impl BoundedSemaphore {
    /// Makes a semaphore with so many permits and no more.
    pub const fn new(bound: usize) -> Self {
        Self {
            semaphore: Semaphore::new(bound),
            bound,
        }
    }

    /// Waits for a permit, as [`Semaphore::acquire`] does.
    #[track_caller]
    pub fn acquire(&self) -> AcquirePermit<'_> {
        self.semaphore.acquire()
    }

    /// Takes a permit if one is free, which it is not while somebody waits.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.semaphore.try_acquire()
    }

    /// Puts back a permit that was [forgotten](Permit::forget).
    ///
    /// # Errors
    ///
    /// [`AboveBound`] if none was: all permits are free, or are held and will come back.
    pub fn release(&self) -> Result<(), AboveBound> {
        let Some(forgotten) = self.semaphore.forgotten.get().checked_sub(1) else {
            return Err(AboveBound);
        };
        self.semaphore.forgotten.set(forgotten);
        self.semaphore.permits.release();
        Ok(())
    }

    /// Returns how many permits are free.
    pub fn available(&self) -> usize {
        self.semaphore.available()
    }

    /// Returns how many permits there are, free or not.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Tells whether no permit is free.
    #[doc(alias = "locked")]
    pub fn is_locked(&self) -> bool {
        self.semaphore.is_locked()
    }
}

impl fmt::Debug for BoundedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedSemaphore")
            .field("available", &self.available())
            .field("bound", &self.bound)
            .field("waiting", &self.semaphore.permits.waiting())
            .finish()
    }
}
