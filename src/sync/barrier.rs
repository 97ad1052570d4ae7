//! A place where a number of tasks wait for one another.
//!
//! What must always hold: each who waits is told once, its index or that the barrier broke. The
//! round is over as soon as all have been told, before any of them runs, so that whoever comes next
//! belongs to the next round.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};

use super::error::{BrokenBarrier, NoParties};
use super::waiters::{Waiters, Waiting, wake};
use crate::record::On;

/// Holds tasks back until a number of them have come.
///
/// # Examples
///
/// ```
/// use coloop::sync::Barrier;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let barrier = Barrier::new(2)?;
/// let both = futures::future::join(barrier.wait(), barrier.wait());
/// assert_eq!(event_loop.run_until_complete(both)?, (Ok(0), Ok(1)));
/// assert!(Barrier::new(0).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Barrier {
    parties: usize,
    broken: Cell<bool>,
    waiters: Waiters<Result<usize, BrokenBarrier>>,
}

impl Barrier {
    /// Makes a barrier for so many tasks.
    ///
    /// # Errors
    ///
    /// [`NoParties`] for none.
    pub const fn new(parties: usize) -> Result<Self, NoParties> {
        if parties == 0 {
            return Err(NoParties);
        }
        Ok(Self {
            parties,
            broken: Cell::new(false),
            waiters: Waiters::new(),
        })
    }

    /// Waits until all have come, and gives each its index, by the order in which they came.
    ///
    /// # Errors
    ///
    /// [`BrokenBarrier`] if the barrier is broken, or is reset or broken meanwhile.
    ///
    /// # Cancellation
    ///
    /// Whoever is dropped while it waits has not come: the others wait for one more. The barrier is
    /// not broken by that.
    #[track_caller]
    pub fn wait(&self) -> BarrierWait<'_> {
        BarrierWait {
            barrier: self,
            waiting: Waiting::new(On::Barrier, Location::caller()),
        }
    }

    /// Sends all who wait away, with [`BrokenBarrier`], and begins anew; a broken barrier is whole
    /// again.
    pub fn reset(&self) {
        self.broken.set(false);
        self.send_away();
    }

    /// Breaks the barrier: all who wait and who come have [`BrokenBarrier`], until it is
    /// [reset](Self::reset).
    pub fn abort(&self) {
        self.broken.set(true);
        self.send_away();
    }

    fn send_away(&self) {
        wake(self.waiters.give_each(usize::MAX, |_| Err(BrokenBarrier)));
    }

    /// Returns how many the barrier waits for.
    pub fn parties(&self) -> usize {
        self.parties
    }

    /// Returns how many wait.
    #[doc(alias = "n_waiting")]
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Tells whether the barrier is broken.
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// What one who comes is told at once.
    fn arrive(&self) -> Option<Result<usize, BrokenBarrier>> {
        if self.is_broken() {
            return Some(Err(BrokenBarrier));
        }
        if self.waiting() + 1 < self.parties {
            return None;
        }
        wake(self.waiters.give_each(self.parties - 1, Ok));
        Some(Ok(self.parties - 1))
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties)
            .field("waiting", &self.waiting())
            .field("broken", &self.is_broken())
            .finish()
    }
}

/// Waits for others; made by [`Barrier::wait`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct BarrierWait<'a> {
    barrier: &'a Barrier,
    waiting: Waiting,
}

impl Future for BarrierWait<'_> {
    type Output = Result<usize, BrokenBarrier>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let barrier = self.barrier;
        self.waiting.poll(&barrier.waiters, cx, || barrier.arrive())
    }
}

impl Drop for BarrierWait<'_> {
    fn drop(&mut self) {
        // An index that nobody looks at is nobody else's.
        self.waiting.leave(&self.barrier.waiters);
    }
}

impl fmt::Debug for BarrierWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BarrierWait").field(self.barrier).finish()
    }
}
