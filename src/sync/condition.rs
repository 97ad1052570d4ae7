//! Waiting until what a lock guards has changed.
//!
//! What must always hold: a guard that exists holds its lock, so `wait` consumes it and gives one
//! back. A notice counts as consumed when the wait gives the guard back; a wait that is dropped
//! before passes it on.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};

use super::lock::{Acquire, Lock, LockGuard};
use super::waiters::{Waiters, Waiting, wake};
use crate::record::On;

/// Lets tasks that hold a [`Lock`] wait for a change, with the lock let go meanwhile.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc};
/// use coloop::sync::{Condition, Lock};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let shared = Rc::new((Lock::new(), Condition::new(), Cell::new(0)));
/// let theirs = Rc::clone(&shared);
/// let task = event_loop.create_task(async move {
///     let (lock, changed, cups) = &*theirs;
///     let guard = lock.acquire().await;
///     let _guard = changed.wait_for(guard, || cups.get() == 2).await;
///     "tea for two"
/// });
/// event_loop.run_until_complete(async {
///     let (lock, changed, cups) = &*shared;
///     for _ in 0..2 {
///         let _guard = lock.acquire().await;
///         cups.set(cups.get() + 1);
///         changed.notify_all();
///         coloop::yield_now().await;
///     }
/// })?;
/// assert_eq!(event_loop.run_until_complete(task)?.unwrap(), "tea for two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// The lock is not part of the condition: the guard says which it is, so that several conditions
/// can share one lock. Notifying needs no lock, since no other task runs in between.
#[doc(alias = "Condvar")]
pub struct Condition(Waiters<()>);

impl Condition {
    /// Makes a condition that nobody waits for.
    pub const fn new() -> Self {
        Self(Waiters::new())
    }

    /// Lets the lock go, waits to be notified, and gives the lock back.
    ///
    /// The lock is let go at the first poll.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves the lock let go: nobody has a guard. A notice that it had been
    /// given goes to the next who waits.
    #[track_caller]
    pub fn wait<'a>(&'a self, guard: LockGuard<'a>) -> ConditionWait<'a> {
        self.wait_at(guard, Location::caller())
    }

    fn wait_at<'a>(
        &'a self,
        guard: LockGuard<'a>,
        place: &'static Location<'static>,
    ) -> ConditionWait<'a> {
        ConditionWait {
            condition: self,
            lock: guard.lock(),
            guard: Some(guard),
            waiting: Waiting::new(On::Condition, place),
            acquiring: None,
        }
    }

    /// Waits until `predicate` holds, which is asked with the lock held: at once, and after each
    /// notice.
    ///
    /// # Cancellation
    ///
    /// As that of [`wait`](Self::wait).
    #[track_caller]
    pub fn wait_for<'a, P>(
        &'a self,
        guard: LockGuard<'a>,
        mut predicate: P,
    ) -> impl Future<Output = LockGuard<'a>> + use<'a, P>
    where
        P: FnMut() -> bool + 'a,
    {
        let place = Location::caller();
        async move {
            let mut guard = guard;
            while !predicate() {
                guard = self.wait_at(guard, place).await;
            }
            guard
        }
    }

    /// Notifies the `count` tasks that have waited longest, or all if there are fewer.
    pub fn notify(&self, count: usize) {
        wake(self.0.give_each(count, |_| ()));
    }

    /// Notifies all who wait.
    pub fn notify_all(&self) {
        self.notify(usize::MAX);
    }
}

impl Default for Condition {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition")
            .field("waiting", &self.0.len())
            .finish()
    }
}

/// Waits to be notified; made by [`Condition::wait`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct ConditionWait<'a> {
    condition: &'a Condition,
    lock: &'a Lock,
    guard: Option<LockGuard<'a>>,
    waiting: Waiting,
    /// It has been notified, and waits for the lock.
    acquiring: Option<Acquire<'a>>,
}

impl<'a> Future for ConditionWait<'a> {
    type Output = LockGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<LockGuard<'a>> {
        let this = &mut *self;
        let (condition, lock) = (this.condition, this.lock);
        if this.acquiring.is_none() && this.waiting.poll(&condition.0, cx, || None).is_pending() {
            drop(this.guard.take());
            return Poll::Pending;
        }
        let place = this.waiting.place();
        let acquiring = this.acquiring.get_or_insert_with(|| lock.acquire_at(place));
        let acquired = Pin::new(acquiring).poll(cx);
        if acquired.is_ready() {
            this.acquiring = None;
        }
        acquired
    }
}

impl Drop for ConditionWait<'_> {
    fn drop(&mut self) {
        let unseen = self.waiting.leave(&self.condition.0).is_some();
        if unseen || self.acquiring.is_some() {
            self.condition.notify(1);
        }
    }
}

impl fmt::Debug for ConditionWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConditionWait")
            .field("notified", &self.acquiring.is_some())
            .field("lock", self.lock)
            .finish_non_exhaustive()
    }
}
