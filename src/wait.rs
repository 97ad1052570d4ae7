//! Waiting for tasks without ending them, and for one task for a limited time.
//!
//! The end of a task is seen here before its value is taken: whoever stops waiting has lost
//! nothing, and what no one takes reports itself as it would have.

use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream::FuturesUnordered;

use crate::error::{Elapsed, JoinError};
use crate::task::{Task, TaskRef};
use crate::time::{Sleep, sleep};

/// Says for how many tasks [`wait`] waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Until {
    /// One has ended, no matter how.
    FirstCompleted,
    /// One has failed, or all have ended. A cancelled task has not failed.
    FirstError,
    /// All have ended.
    All,
}

/// Waits until tasks have ended, and gives those that have and those that have not.
///
/// Both are in the order in which they were given. No task is ever cancelled by this, and no value
/// is taken: await a task that has ended to have it. Without a task it is complete at once.
///
/// # Cancellation
///
/// Dropping it detaches the tasks: they go on. Keep a [`TaskRef`] of those that you want to cancel
/// even so.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use coloop::{Until, sleep, wait};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let nap = |millis| event_loop.create_task(sleep(Duration::from_millis(millis)));
/// let tasks = [nap(60_000), nap(1)];
/// let (done, pending) = event_loop.run_until_complete(wait(tasks, Until::FirstCompleted))?;
/// assert_eq!((done.len(), pending.len()), (1, 1));
/// for task in pending {
///     task.cancel();
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// `wait(tasks, timeout=…, return_when=…)`. The `Err` that a task returns is a value; it counts as a
/// failure if [`WaitTasks::counting_errors`] says so.
#[doc(alias = "return_when")]
#[track_caller]
pub fn wait<T: 'static>(tasks: impl IntoIterator<Item = Task<T>>, until: Until) -> WaitTasks<T> {
    let pending: FuturesUnordered<_> = tasks
        .into_iter()
        .enumerate()
        .map(|(at, task)| End {
            at,
            task: Some(task),
            is_error: |_| false,
        })
        .collect();
    WaitTasks {
        has_failed: false,
        done: Vec::with_capacity(pending.len()),
        pending,
        until,
        limit: None,
        place: Location::caller(),
    }
}

/// Waits for tasks; made by [`wait`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct WaitTasks<T: 'static> {
    pending: FuturesUnordered<End<T>>,
    done: Vec<(usize, Task<T>)>,
    has_failed: bool,
    until: Until,
    limit: Option<Sleep>,
    place: &'static Location<'static>,
}

impl<T: 'static> WaitTasks<T> {
    /// Waits for at most `limit`, counted from the first poll.
    ///
    /// When it is over, the tasks that have not ended are among the pending ones; that is no error.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{future::pending, time::Duration};
    /// use coloop::{Until, wait};
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let task = event_loop.create_task(pending::<()>());
    /// let waiting = wait([task], Until::All).limit(Duration::from_millis(1));
    /// let (done, pending) = event_loop.run_until_complete(waiting)?;
    /// assert_eq!((done.len(), pending.len()), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "timeout")]
    #[track_caller]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(sleep(limit));
        self
    }
}

impl<V: 'static, E: 'static> WaitTasks<Result<V, E>> {
    /// Lets a task that returns `Err` count as one that has failed.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::{Until, wait};
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let tasks = [Ok(1), Err("no tea")].map(|result| {
    ///     event_loop.create_task(async move {
    ///         if result.is_ok() { std::future::pending().await }
    ///         result
    ///     })
    /// });
    /// let waiting = wait(tasks, Until::FirstError).counting_errors();
    /// let (done, pending) = event_loop.run_until_complete(waiting)?;
    /// assert_eq!((done.len(), pending.len()), (1, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn counting_errors(mut self) -> Self {
        for end in self.pending.iter_mut() {
            end.is_error = Result::is_err;
        }
        self
    }
}

impl<T> Unpin for WaitTasks<T> {}

impl<T: 'static> Future for WaitTasks<T> {
    type Output = (Vec<Task<T>>, Vec<Task<T>>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match Pin::new(&mut this.pending).poll_next(cx) {
                Poll::Ready(Some(ended)) => {
                    this.has_failed |= ended.failed;
                    this.done.push((ended.at, ended.task));
                }
                Poll::Ready(None) => break,
                Poll::Pending => {
                    let enough = match this.until {
                        Until::FirstCompleted => !this.done.is_empty(),
                        Until::FirstError => this.has_failed,
                        Until::All => false,
                    };
                    let over = |limit: &mut Sleep| Pin::new(limit).poll(cx).is_ready();
                    if enough || this.limit.as_mut().is_some_and(over) {
                        break;
                    }
                    return Poll::Pending;
                }
            }
        }
        this.limit = None;
        let mut done = mem::take(&mut this.done);
        let mut pending: Vec<_> = mem::take(&mut this.pending)
            .into_iter()
            .filter_map(|end| Some((end.at, end.task?)))
            .collect();
        done.sort_unstable_by_key(|(at, _)| *at);
        pending.sort_unstable_by_key(|(at, _)| *at);
        let tasks = |numbered: Vec<(usize, Task<T>)>| numbered.into_iter().map(|(_, task)| task);
        Poll::Ready((tasks(done).collect(), tasks(pending).collect()))
    }
}

impl<T> fmt::Debug for WaitTasks<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitTasks")
            .field("until", &self.until)
            .field("done", &self.done.len())
            .field("pending", &self.pending.len())
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Waits for the end of one task and gives the task back.
struct End<T: 'static> {
    at: usize,
    task: Option<Task<T>>,
    is_error: fn(&T) -> bool,
}

/// A task that has ended.
struct Ended<T: 'static> {
    at: usize,
    task: Task<T>,
    failed: bool,
}

impl<T: 'static> Future for End<T> {
    type Output = Ended<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Ended<T>> {
        let Self { at, task, is_error } = &mut *self;
        let Some(running) = task else {
            return Poll::Pending;
        };
        let Poll::Ready(result) = running.poll_end(cx) else {
            return Poll::Pending;
        };
        let failed = match result {
            Some(Ok(value)) => is_error(value),
            Some(Err(error)) => !error.is_cancelled(),
            None => false,
        };
        match task.take() {
            Some(task) => Poll::Ready(Ended {
                at: *at,
                task,
                failed,
            }),
            None => Poll::Pending,
        }
    }
}

/// Awaits a task for at most `limit`, counted from the first poll; then cancels it and waits for its
/// end.
///
/// A task with a grace period has that time to end, and a value that it returns wins: nothing that
/// was done is lost. For a plain future [`timeout`](crate::timeout()) is the better choice, which
/// drops it at the deadline; a [`Shield`](crate::Shield) goes on behind a `timeout`.
///
/// # Errors
///
/// [`Elapsed`] when the deadline passed and the task has ended without a value since. The inner
/// result is the task's own: a panic during its clean-up is told there.
///
/// # Panics
///
/// When it is polled where no loop runs.
///
/// # Cancellation
///
/// Dropping it cancels the task.
///
/// # Examples
///
/// ```
/// use std::{future::pending, time::Duration};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let task = event_loop.task().grace(Duration::from_secs(1)).create(async {
///     coloop::until_cancelled(pending::<()>()).await.ok();
///     "half of it"
/// });
/// let waiting = coloop::wait_for(Duration::from_millis(1), task);
/// assert_eq!(event_loop.run_until_complete(waiting)??.unwrap(), "half of it");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn wait_for<T: 'static>(limit: Duration, task: Task<T>) -> WaitFor<T> {
    WaitFor {
        about: task.to_ref(),
        task,
        limit: Some(sleep(limit)),
        is_over: false,
        is_zero: limit.is_zero(),
    }
}

/// Awaits a task for a limited time; made by [`wait_for`].
#[must_use = "dropping it cancels the task"]
pub struct WaitFor<T: 'static> {
    task: Task<T>,
    about: TaskRef,
    /// `None` once the task has been asked to end.
    limit: Option<Sleep>,
    is_over: bool,
    is_zero: bool,
}

impl<T: 'static> Future for WaitFor<T> {
    type Output = Result<Result<T, JoinError>, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(result) = Pin::new(&mut this.task).poll(cx) {
            let asked = this.limit.take().is_none() && !this.is_over;
            this.is_over = true;
            return Poll::Ready(match result {
                Err(error) if asked && error.is_cancelled() => Err(Elapsed),
                result => Ok(result),
            });
        }
        let over = |limit: &mut Sleep| this.is_zero || Pin::new(limit).poll(cx).is_ready();
        if this.limit.as_mut().is_some_and(over) {
            this.limit = None;
            this.task.cancel();
        }
        Poll::Pending
    }
}

impl<T> Drop for WaitFor<T> {
    fn drop(&mut self) {
        if !self.is_over {
            self.about.cancel();
        }
    }
}

impl<T> fmt::Debug for WaitFor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitFor")
            .field("task", &self.task)
            .field("asked", &self.limit.is_none())
            .finish_non_exhaustive()
    }
}
