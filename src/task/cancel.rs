//! Ending tasks early: requests, grace, and futures that know of them.
//!
//! A request is counted, not thrown. At its next turn a task with a request is dropped, unless it
//! was made with a grace period or is inside a `defer_cancel`.
//!
//! What must always hold:
//!
//! 1. A request that precedes the body's return wins, except where the body was asked and has a
//!    grace period: then what it returns is its result.
//! 2. A task that has not begun when the request comes never begins.
//! 3. Requests that have been taken back before the task's turn leave no trace.

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll};

use pin_project_lite::pin_project;

use super::Task;
use crate::core::{Core, LoopHandle};
use crate::error::{Cancelled, JoinError};
use crate::key::TaskKey;
use crate::record::On;

/// Asks a task to end, and says whether it had not ended yet.
pub(crate) fn cancel(core: &Rc<Core>, key: TaskKey, reason: Option<Arc<str>>) -> bool {
    let asked = core.records.with(key, |task| {
        if task.ended {
            return None;
        }
        core.records.make_noisy(task);
        task.rare().requests += 1;
        let before = reason.map(|reason| task.rare().reason.replace(reason));
        let first = task.requests() == 1;
        let grace = task
            .rare
            .as_ref()
            .and_then(|rare| rare.grace.filter(|_| first && rare.started));
        let asked = task
            .rare
            .as_mut()
            .map(|rare| std::mem::take(&mut rare.asked));
        Some((task.waker.clone(), grace, asked, before))
    });
    let Some((waker, grace, asked, _before)) = asked.flatten() else {
        return false;
    };
    if let Some(grace) = grace {
        let expire = {
            let core = Rc::clone(core);
            move || {
                let waker = core.records.with(key, |task| {
                    task.rare().overdue = true;
                    task.waker.clone()
                });
                if let Some(waker) = waker.flatten() {
                    core.wake(waker);
                }
            }
        };
        let deadline = core.read_clock().after(grace);
        let timer = core
            .timers
            .insert_callback(deadline, Box::new(expire), Location::caller());
        core.records
            .with(key, |task| task.rare().grace_timer = Some(timer));
    }
    for (_, waker) in asked.into_iter().flatten() {
        core.wake(waker);
    }
    if let Some(waker) = waker {
        core.wake(waker);
    }
    true
}

/// Ends a task without asking it.
pub(super) fn end_now(core: &Rc<Core>, key: TaskKey, reason: &'static str) {
    core.records.with(key, |task| task.rare().overdue = true);
    cancel(core, key, Some(reason.into()));
}

/// Takes back one request, and returns how many are left.
pub(super) fn uncancel(core: &Rc<Core>, key: TaskKey) -> u32 {
    let left = core.records.with(key, |task| {
        let rare = task.rare.as_mut()?;
        rare.requests = rare.requests.saturating_sub(1);
        if rare.requests > 0 {
            return Some((rare.requests, None));
        }
        rare.overdue = false;
        rare.reason = None;
        Some((0, rare.grace_timer.take()))
    });
    let left = left.flatten();
    let (left, timer) = left.unwrap_or((0, None));
    if let Some(timer) = timer {
        drop(core.timers.remove(timer));
    }
    left
}

/// The request that decides how a body that is over has ended.
pub(crate) fn take_request(core: &Core, key: TaskKey) -> Option<Cancelled> {
    core.records
        .with(key, |task| requested(task, task.must_end()))
        .flatten()
}

fn requested(task: &crate::record::Record, counts: bool) -> Option<Cancelled> {
    let reason = || task.rare.as_ref().and_then(|rare| rare.reason.clone());
    counts.then(|| reason().map_or_else(Cancelled::new, Cancelled::with_reason))
}

/// The request that the current task is to feel, if there is one that is not put off.
fn felt(core: &Core) -> Option<Cancelled> {
    let current = core.records.current();
    core.records
        .with(current, |task| requested(task, task.is_asked()))
        .flatten()
}

/// Resolves when the task that awaits it is asked to end, and says for what reason.
///
/// Only a task made with a grace period lives to see it, see
/// [`TaskBuilder::grace`](crate::TaskBuilder::grace).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let task = event_loop.task().grace(Duration::from_secs(1)).create(async {
///     let asked = coloop::cancelled().await;
///     format!("closed because of {}", asked.reason().unwrap_or("nothing"))
/// });
/// event_loop.run_until_complete(coloop::yield_now())?;
/// task.cancel_with("rain");
/// assert_eq!(event_loop.run_until_complete(task)?.unwrap(), "closed because of rain");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn cancelled() -> CancelledFuture {
    CancelledFuture {
        place: Location::caller(),
        waiting: None,
    }
}

/// Resolves when its task is asked to end; made by [`cancelled`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct CancelledFuture {
    place: &'static Location<'static>,
    waiting: Option<Waiting>,
}

/// Where a future that waits for a request is known.
struct Waiting {
    core: Rc<Core>,
    task: TaskKey,
    wait: u32,
}

impl CancelledFuture {
    fn stop_waiting(&mut self) {
        let Some(Waiting { core, task, wait }) = self.waiting.take() else {
            return;
        };
        core.records.end_wait(wait);
        let removed = core
            .records
            .with(task, |task| task.rare().stop_asking(wait));
        drop(removed);
    }
}

impl Future for CancelledFuture {
    type Output = Cancelled;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Cancelled> {
        let core = crate::handle::current().0;
        if let Some(cancelled) = felt(&core) {
            self.stop_waiting();
            return Poll::Ready(cancelled);
        }
        let task = core.records.current();
        if self
            .waiting
            .as_ref()
            .is_some_and(|waiting| waiting.task != task)
        {
            // Polled by another task from now on.
            self.stop_waiting();
        }
        let place = self.place;
        let waiting = self.waiting.get_or_insert_with(|| {
            let wait = core.records.begin_wait(On::Cancellation, place, core.now());
            Waiting {
                core: Rc::clone(&core),
                task,
                wait,
            }
        });
        let (wait, waker) = (waiting.wait, cx.waker().clone());
        let before = core.records.with(task, |task| {
            let rare = task.rare();
            let before = rare.stop_asking(wait);
            rare.asked.push((wait, waker));
            before
        });
        drop(before);
        Poll::Pending
    }
}

impl Drop for CancelledFuture {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl fmt::Debug for CancelledFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelledFuture").finish_non_exhaustive()
    }
}

/// Awaits `future` until the task is asked to end; then drops it and says so.
///
/// If both happen in one turn the request wins. The code behind it can clean up with awaits, within
/// the task's grace period. Once the task has been asked it stays asked: a second `until_cancelled`
/// gives [`Cancelled`] at once, unless the request is taken back.
///
/// # Errors
///
/// [`Cancelled`], with the reason, when the task was asked to end first.
///
/// # Examples
///
/// ```
/// use std::{future::pending, time::Duration};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let task = event_loop.task().grace(Duration::from_secs(1)).create(async {
///     if coloop::until_cancelled(pending::<()>()).await.is_err() {
///         coloop::yield_now().await; // says goodbye
///     }
///     "cleaned up"
/// });
/// event_loop.run_until_complete(coloop::yield_now())?;
/// task.cancel();
/// assert_eq!(event_loop.run_until_complete(task)?.unwrap(), "cleaned up");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn until_cancelled<F: Future>(future: F) -> UntilCancelled<F> {
    UntilCancelled {
        future: Some(future),
        asked: cancelled(),
    }
}

pin_project! {
    /// Awaits a future until the task is asked to end; made by [`until_cancelled`].
    #[must_use = "futures do nothing unless they are awaited"]
    #[derive(Debug)]
    pub struct UntilCancelled<F> {
        #[pin]
        future: Option<F>,
        asked: CancelledFuture,
    }
}

impl<F: Future> Future for UntilCancelled<F> {
    type Output = Result<F::Output, Cancelled>;

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(cancelled) = Pin::new(&mut *this.asked).poll(cx) {
            this.future.set(None);
            return Poll::Ready(Err(cancelled));
        }
        match this.future.as_mut().as_pin_mut() {
            Some(future) => match future.poll(cx) {
                Poll::Ready(value) => {
                    this.future.set(None);
                    this.asked.stop_waiting();
                    Poll::Ready(Ok(value))
                }
                Poll::Pending => Poll::Pending,
            },
            None => Poll::Ready(Err(Cancelled::new())),
        }
    }
}

/// Awaits `future` with requests to end put off until it is complete.
///
/// The task then ends at its next await, or at its return. Until then [`cancelled`] and
/// [`until_cancelled`] inside `future` do not feel the request either.
///
/// # Cancellation
///
/// Dropping it drops `future`: it protects against [`Task::cancel`], not against a caller that
/// drops its own future.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let committed = Rc::new(Cell::new(false));
/// let seen = Rc::clone(&committed);
/// let task = event_loop.create_task(coloop::defer_cancel(async move {
///     for _ in 0..3 {
///         coloop::yield_now().await;
///     }
///     seen.set(true);
/// }));
/// event_loop.run_until_complete(coloop::yield_now())?;
/// task.cancel();
/// assert!(event_loop.run_until_complete(task)?.is_err());
/// assert!(committed.get());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn defer_cancel<F: Future>(future: F) -> DeferCancel<F> {
    DeferCancel {
        future,
        deferral: Deferral(None),
    }
}

pin_project! {
    /// Awaits a future with requests to end put off; made by [`defer_cancel`].
    #[must_use = "futures do nothing unless they are awaited"]
    #[derive(Debug)]
    pub struct DeferCancel<F> {
        #[pin]
        future: F,
        deferral: Deferral,
    }
}

/// Puts off the requests of one task until it is dropped.
struct Deferral(Option<(Rc<Core>, TaskKey)>);

impl Drop for Deferral {
    fn drop(&mut self) {
        let Some((core, key)) = self.0.take() else {
            return;
        };
        // The request that was put off is felt now, by the task and by who waits for it.
        let told = core.records.with(key, |task| {
            task.rare().deferred -= 1;
            let asked = task
                .is_asked()
                .then(|| std::mem::take(&mut task.rare().asked));
            asked.map(|asked| (task.waker.clone(), asked))
        });
        let Some((waker, asked)) = told.flatten() else {
            return;
        };
        for waker in asked.into_iter().map(|(_, waker)| waker).chain(waker) {
            core.wake(waker);
        }
    }
}

impl fmt::Debug for Deferral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deferral").field(&self.0.is_some()).finish()
    }
}

impl<F: Future> Future for DeferCancel<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.deferral.0.is_none()
            && let Some(core) = Core::current()
        {
            let key = core.records.current();
            if core
                .records
                .with(key, |task| task.rare().deferred += 1)
                .is_some()
            {
                this.deferral.0 = Some((core, key));
            }
        }
        let polled = this.future.poll(cx);
        if polled.is_ready() {
            *this.deferral = Deferral(None);
        }
        polled
    }
}

/// Runs `future` as a task of its own, which goes on when whoever awaits it is cancelled.
///
/// # Panics
///
/// If no loop runs in this thread.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let event_loop = coloop::EventLoop::new()?;
/// event_loop.run_until_complete(async {
///     let work = coloop::shield(coloop::sleep(Duration::from_millis(2)));
///     let impatient = coloop::timeout(Duration::from_millis(1), work).await;
///     assert!(impatient.is_err());
///     assert_eq!(coloop::current().all_tasks().len(), 2, "the work goes on");
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn shield<F: Future + 'static>(future: F) -> Shield<F::Output> {
    crate::handle::current().create_task(future).shield()
}

impl LoopHandle {
    /// Runs `future` as a task of its own, which goes on when whoever awaits it is cancelled.
    #[track_caller]
    pub fn shield<F: Future + 'static>(&self, future: F) -> Shield<F::Output> {
        self.create_task(future).shield()
    }
}

/// Awaits a task that goes on when this is dropped; made by [`shield`] and [`Task::shield`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Shield<T: 'static>(Task<T>);

impl<T: 'static> Shield<T> {
    pub(super) fn new(task: Task<T>) -> Self {
        Self(task)
    }

    /// Returns the task itself.
    pub fn into_task(self) -> Task<T> {
        self.0
    }
}

impl<T: 'static> Future for Shield<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl<T> fmt::Debug for Shield<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shield").field(&self.0).finish()
    }
}
