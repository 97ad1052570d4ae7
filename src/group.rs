//! Groups of tasks: all have ended when the group has.
//!
//! The body is a future that the group polls in place, so it may borrow; the children are tasks of
//! the loop. The first failure ends the rest. Outcomes are taken from the tasks by the group alone,
//! and no cell is borrowed while a child, a waker or the body runs.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};

use futures::Stream;
use futures::stream::FuturesUnordered;

use crate::error::JoinError;
use crate::handle::current;
use crate::promise::Promise;
use crate::task::{Task, TaskRef};

/// Runs `body` with a group of tasks, and is complete when the body and all tasks have ended.
///
/// The first failure, of a task or of the body, drops the body at its await, cancels the tasks that
/// have not ended, and waits for them; those with an error of their own then add it. A task that was
/// cancelled has not failed. The task that awaits the group is not cancelled by it, and its count of
/// requests does not move.
///
/// # Errors
///
/// [`GroupError`], with all errors in the order in which they came. A panic of a task is one, as a
/// [`JoinError`].
///
/// # Panics
///
/// When it is polled where no loop runs. A panic of the body goes on, and cancels the tasks.
///
/// # Cancellation
///
/// Dropping it drops the body and cancels the tasks; a cancellation from outside thus wins over
/// whatever has failed inside. The tasks end in their next turns.
///
/// # Examples
///
/// ```
/// use std::io;
///
/// let sum = coloop::run(coloop::task_group(async |group| {
///     let one = group.create_task(async { Ok::<_, io::Error>(1) });
///     let two = group.create_task(async { Ok(2) });
///     Ok(one.await.unwrap_or(0) + two.await.unwrap_or(0))
/// }))?;
/// assert_eq!(sum, 3);
///
/// let failed = coloop::run(coloop::task_group(async |group| {
///     drop(group.create_task(async { Err::<(), _>(io::Error::other("no tea")) }));
///     std::future::pending::<Result<(), _>>().await
/// }));
/// assert_eq!(failed.unwrap_err().errors()[0].to_string(), "no tea");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// `async with TaskGroup() as group`. What follows in the block is what the body returns.
#[doc(alias = "TaskGroup")]
pub async fn task_group<R, E, F>(body: F) -> Result<R, GroupError<E>>
where
    F: AsyncFnOnce(TaskGroup<E>) -> Result<R, E>,
    E: From<JoinError> + 'static,
{
    let group = TaskGroup(Rc::new(Shared {
        is_closed: Cell::new(false),
        new: RefCell::new(Vec::new()),
        waker: Cell::new(None),
    }));
    let mut members = Members {
        group: group.clone(),
        pending: FuturesUnordered::new(),
        refs: Vec::new(),
        errors: Vec::new(),
    };
    let mut body = pin!(Some(body(group)));
    let mut value = None;
    poll_fn(move |cx| {
        // What is made from here on is seen before this returns.
        drop(members.group.0.waker.take());
        if let Some(running) = body.as_mut().as_pin_mut()
            && let Poll::Ready(result) = running.poll(cx)
        {
            body.set(None);
            match result {
                Ok(returned) => value = Some(returned),
                Err(error) => members.fail(error),
            }
        }
        loop {
            members.take_new();
            match Pin::new(&mut members.pending).poll_next(cx) {
                Poll::Ready(Some(Ok(Ok(())))) => {}
                Poll::Ready(Some(Ok(Err(error)))) => members.fail(error),
                Poll::Ready(Some(Err(error))) if error.is_cancelled() => {}
                Poll::Ready(Some(Err(error))) => members.fail(error.into()),
                Poll::Ready(None) | Poll::Pending => break,
            }
            if !members.errors.is_empty() {
                body.set(None);
            }
        }
        if body.is_some() || !members.pending.is_empty() {
            drop(members.group.0.waker.replace(Some(cx.waker().clone())));
            return Poll::Pending;
        }
        members.group.0.is_closed.set(true);
        let errors = mem::take(&mut members.errors);
        Poll::Ready(match value.take() {
            Some(value) if errors.is_empty() => Ok(value),
            _ => Err(GroupError { errors }),
        })
    })
    .await
}

/// Makes tasks that belong together; given to the body of [`task_group`].
pub struct TaskGroup<E: 'static>(Rc<Shared<E>>);

struct Shared<E: 'static> {
    is_closed: Cell<bool>,
    /// What the group has not seen yet.
    new: RefCell<Vec<Task<Result<(), E>>>>,
    waker: Cell<Option<Waker>>,
}

impl<E: From<JoinError> + 'static> TaskGroup<E> {
    /// Makes a task of the group, and gives a promise of its value.
    ///
    /// The promise is cancelled when the task fails or is cancelled; its error is the group's. Once
    /// a task of the group has failed, or the group has ended, the future is dropped and the promise
    /// is cancelled from the start.
    ///
    /// # Panics
    ///
    /// If no loop runs in this thread.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::JoinError;
    ///
    /// let words = coloop::run(coloop::task_group(async |group| {
    ///     let word = group.create_task(async { Ok::<_, JoinError>("tea") });
    ///     Ok(word.await)
    /// }))?;
    /// assert_eq!(words, Ok("tea"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn create_task<T: 'static>(
        &self,
        future: impl Future<Output = Result<T, E>> + 'static,
    ) -> Promise<T> {
        let handle = current();
        let (resolver, promise) = handle.create_future();
        if self.0.is_closed.get() {
            return promise;
        }
        let task = handle.create_task(async move {
            let value = future.await?;
            // Nobody has to want the value.
            drop(resolver.settle(value));
            Ok(())
        });
        self.0.new.borrow_mut().push(task);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
        promise
    }
}

impl<E> Clone for TaskGroup<E> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<E> fmt::Debug for TaskGroup<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("closed", &self.0.is_closed.get())
            .finish_non_exhaustive()
    }
}

/// What the group's own future holds; it cancels what has not ended when it is dropped.
struct Members<E: 'static> {
    group: TaskGroup<E>,
    pending: FuturesUnordered<Task<Result<(), E>>>,
    refs: Vec<TaskRef>,
    errors: Vec<E>,
}

impl<E> Members<E> {
    fn take_new(&mut self) {
        let new = self.group.0.new.take();
        for task in new {
            self.refs.push(task.to_ref());
            self.pending.push(task);
        }
        // The references of tasks that have ended are of no use.
        if self.refs.len() > 2 * self.pending.len() + 32 {
            self.refs.retain(|task| !task.is_finished());
        }
    }

    fn fail(&mut self, error: E) {
        self.errors.push(error);
        if self.errors.len() == 1 {
            self.cancel();
        }
    }

    fn cancel(&mut self) {
        self.group.0.is_closed.set(true);
        self.take_new();
        for task in &self.refs {
            task.cancel();
        }
    }
}

impl<E> Drop for Members<E> {
    fn drop(&mut self) {
        self.cancel();
        drop(self.group.0.waker.take());
    }
}

/// Holds the errors of a group of tasks, in the order in which they came.
#[derive(Debug)]
pub struct GroupError<E> {
    errors: Vec<E>,
}

impl<E> GroupError<E> {
    /// Returns the errors; there is at least one.
    #[doc(alias = "exceptions")]
    pub fn errors(&self) -> &[E] {
        &self.errors
    }

    /// Returns the errors themselves.
    pub fn into_errors(self) -> Vec<E> {
        self.errors
    }
}

impl<E: fmt::Display> fmt::Display for GroupError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the group has failed: ")?;
        for (at, error) in self.errors.iter().enumerate() {
            write!(f, "{}{error}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl<E: fmt::Debug + fmt::Display> Error for GroupError<E> {}

impl<E: Error + Send + Sync + 'static> From<GroupError<E>> for io::Error {
    fn from(error: GroupError<E>) -> Self {
        Self::other(error)
    }
}
