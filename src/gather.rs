//! Many at once: all results in order, or each as it comes.
//!
//! Every child is a task of the loop, so that it goes on by itself and is polled only when it was
//! woken. A future is made a task; a task is taken as it is, also where it is given as just another
//! future. Nobody's value is kept in a cell while foreign code runs.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context as PollContext, Poll, ready};

use futures::Stream;
use futures::stream::FuturesUnordered;

use crate::error::{Cancelled, JoinError};
use crate::handle::current;
use crate::task::{Task, TaskRef};

/// Runs all `futures` at once, as tasks, and gives their values in order, or the first error.
///
/// The futures become tasks when this is called; a [`Task`] is taken as it is. The first error is
/// given at once. The others go on then, and what comes of them, an error or a panic too, is
/// nobody's affair any more; [`gather_all`] waits for everybody. Nothing to wait for gives an empty
/// vector at once.
///
/// For futures whose output is no `Result`, make tasks of them yourself: the error is a
/// [`JoinError`] then. For a few futures of different types, or such that borrow, `futures::join!`
/// and `futures::try_join!` are the better choice: they need no task.
///
/// # Errors
///
/// The first error by time, not by place. A child that was cancelled, or that panicked, fails with a
/// [`JoinError`].
///
/// # Panics
///
/// If no loop runs in this thread.
///
/// # Cancellation
///
/// Dropping it cancels the children that have not ended.
///
/// # Examples
///
/// ```
/// use std::io;
///
/// async fn length(word: &'static str) -> io::Result<usize> {
///     coloop::yield_now().await;
///     Ok(word.len())
/// }
///
/// let lengths = coloop::run(async {
///     coloop::gather(["one", "three"].map(length)).await
/// })?;
/// assert_eq!(lengths, [3, 5]);
///
/// // Tasks are taken as they are, whatever their output is.
/// let squares = coloop::run(async {
///     coloop::gather((1..4).map(|n| coloop::current().create_task(async move { n * n }))).await
/// })?;
/// assert_eq!(squares, [1, 4, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// `gather(*futures)`. The future cannot be given twice, so nothing collapses. A cancelled child is
/// an error like any other, and the task that awaits is not cancelled by it.
#[doc(alias = "join_all")]
#[doc(alias = "try_join_all")]
#[track_caller]
pub fn gather<I, T, E>(futures: I) -> Gather<T, E>
where
    I: IntoIterator,
    I::Item: Future<Output = Result<T, E>> + 'static,
    T: 'static,
    E: From<JoinError> + 'static,
{
    let children = Children::new(futures);
    Gather {
        values: (0..children.refs.len()).map(|_| None).collect(),
        children,
    }
}

/// Runs all `futures` at once, as tasks, and gives all results in order, errors too.
///
/// As [`gather`], but nobody's error ends it: it waits for everybody.
///
/// # Panics
///
/// If no loop runs in this thread.
///
/// # Cancellation
///
/// Dropping it cancels the children that have not ended.
///
/// # Examples
///
/// ```
/// use std::io;
///
/// async fn half(n: u32) -> io::Result<u32> {
///     if n % 2 == 0 { Ok(n / 2) } else { Err(io::Error::other("odd")) }
/// }
///
/// let halves = coloop::run(async { coloop::gather_all([2, 3].map(half)).await });
/// assert_eq!(halves[0].as_ref().ok(), Some(&1));
/// assert!(halves[1].is_err());
/// ```
///
/// # Coming from asyncio
///
/// `gather(*futures, return_exceptions=True)`.
#[doc(alias = "return_exceptions")]
#[track_caller]
pub fn gather_all<I, T, E>(futures: I) -> GatherAll<T, E>
where
    I: IntoIterator,
    I::Item: Future<Output = Result<T, E>> + 'static,
    T: 'static,
    E: From<JoinError> + 'static,
{
    let children = Children::new(futures);
    GatherAll {
        results: (0..children.refs.len()).map(|_| None).collect(),
        children,
    }
}

/// Runs all `futures` at once, as tasks, and streams their results in the order of completion.
///
/// The futures become tasks when this is called; a [`Task`] is taken as it is. To stop at a
/// deadline, await each item with [`timeout_at`](crate::timeout_at): what has come until then has
/// been given.
///
/// # Panics
///
/// If no loop runs in this thread.
///
/// # Cancellation
///
/// Dropping the future of an item loses nothing. Dropping the stream detaches the children that
/// have not ended: they go on.
///
/// # Examples
///
/// ```
/// use std::{io, time::Duration};
/// use futures::StreamExt;
///
/// async fn nap(millis: u64) -> io::Result<u64> {
///     coloop::sleep(Duration::from_millis(millis)).await;
///     Ok(millis)
/// }
///
/// let shortest = coloop::run(async {
///     let mut naps = coloop::as_completed([2_000, 1].map(nap));
///     naps.next().await
/// });
/// assert_eq!(shortest.transpose()?, Some(1));
/// # Ok::<(), io::Error>(())
/// ```
///
/// # Coming from asyncio
///
/// `as_completed`, iterated with `async for`. It gives results, not tasks.
#[track_caller]
pub fn as_completed<I, T, E>(futures: I) -> AsCompleted<T, E>
where
    I: IntoIterator,
    I::Item: Future<Output = Result<T, E>> + 'static,
    T: 'static,
    E: From<JoinError> + 'static,
{
    AsCompleted(Children::new(futures))
}

/// Awaits the values of many tasks; made by [`gather`].
#[must_use = "dropping it cancels the tasks that have not ended"]
pub struct Gather<T: 'static, E: 'static> {
    values: Vec<Option<T>>,
    children: Children<T, E>,
}

/// Awaits the results of many tasks; made by [`gather_all`].
#[must_use = "dropping it cancels the tasks that have not ended"]
pub struct GatherAll<T: 'static, E: 'static> {
    results: Vec<Option<Result<T, E>>>,
    children: Children<T, E>,
}

/// Streams the results of many tasks; made by [`as_completed`].
#[must_use = "streams do nothing unless they are polled"]
pub struct AsCompleted<T: 'static, E: 'static>(Children<T, E>);

impl<T, E> Unpin for Gather<T, E> {}
impl<T, E> Unpin for GatherAll<T, E> {}
impl<T, E> Unpin for AsCompleted<T, E> {}

impl<T: 'static, E: From<JoinError> + 'static> Future for Gather<T, E> {
    type Output = Result<Vec<T>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.children.is_over {
            return Poll::Ready(Err(JoinError::from(Cancelled::new()).into()));
        }
        while let Some((at, result)) = ready!(this.children.poll_next(cx)) {
            match result {
                Ok(value) => this.values[at] = Some(value),
                Err(error) => {
                    this.children.let_go();
                    return Poll::Ready(Err(error));
                }
            }
        }
        this.children.is_over = true;
        Poll::Ready(Ok(mem::take(&mut this.values)
            .into_iter()
            .flatten()
            .collect()))
    }
}

impl<T, E> Drop for Gather<T, E> {
    fn drop(&mut self) {
        self.children.cancel();
    }
}

impl<T: 'static, E: From<JoinError> + 'static> Future for GatherAll<T, E> {
    type Output = Vec<Result<T, E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Some((at, result)) = ready!(this.children.poll_next(cx)) {
            this.results[at] = Some(result);
        }
        this.children.is_over = true;
        Poll::Ready(mem::take(&mut this.results).into_iter().flatten().collect())
    }
}

impl<T, E> Drop for GatherAll<T, E> {
    fn drop(&mut self) {
        self.children.cancel();
    }
}

impl<T: 'static, E: From<JoinError> + 'static> Stream for AsCompleted<T, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.0.poll_next(cx));
        Poll::Ready(next.map(|(_, result)| result))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.0.pending.len();
        (left, Some(left))
    }
}

impl<T, E> fmt::Debug for Gather<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.children.fmt_as("Gather", f)
    }
}

impl<T, E> fmt::Debug for GatherAll<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.children.fmt_as("GatherAll", f)
    }
}

impl<T, E> fmt::Debug for AsCompleted<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_as("AsCompleted", f)
    }
}

/// The tasks that are awaited together.
struct Children<T: 'static, E: 'static> {
    pending: FuturesUnordered<Numbered<T, E>>,
    /// In the order in which they were given, which is that of cancelling them.
    refs: Vec<TaskRef>,
    is_over: bool,
}

impl<T: 'static, E: From<JoinError> + 'static> Children<T, E> {
    #[track_caller]
    fn new<I>(futures: I) -> Self
    where
        I: IntoIterator,
        I::Item: Future<Output = Result<T, E>> + 'static,
    {
        let mut children = Self {
            pending: FuturesUnordered::new(),
            refs: Vec::new(),
            is_over: false,
        };
        let handle = current();
        // A loop, so that the place is the caller's and not a closure's.
        for future in futures {
            let mut given = Some(future);
            let task = (&mut given as &mut dyn Any)
                .downcast_mut::<Option<Task<T>>>()
                .and_then(Option::take);
            let child = match (task, given) {
                (Some(task), _) => Child::Given(task),
                (None, Some(future)) => Child::Made(handle.create_task(future)),
                (None, None) => continue,
            };
            children.refs.push(match &child {
                Child::Given(task) => task.to_ref(),
                Child::Made(task) => task.to_ref(),
            });
            let at = children.refs.len() - 1;
            children.pending.push(Numbered { at, child });
        }
        children
    }

    fn poll_next(&mut self, cx: &mut PollContext<'_>) -> Poll<Option<(usize, Result<T, E>)>> {
        Pin::new(&mut self.pending).poll_next(cx)
    }

    /// Lets the tasks go on; what comes of them is taken and dropped.
    fn let_go(&mut self) {
        self.is_over = true;
        for Numbered { child, .. } in mem::take(&mut self.pending) {
            match child {
                Child::Given(task) => task.on_done(drop),
                Child::Made(task) => task.on_done(drop),
            }
        }
    }
}

impl<T, E> Children<T, E> {
    fn cancel(&mut self) {
        if !self.is_over {
            for task in &self.refs {
                task.cancel();
            }
        }
    }

    fn fmt_as(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

/// A task and its place.
struct Numbered<T: 'static, E: 'static> {
    at: usize,
    child: Child<T, E>,
}

enum Child<T: 'static, E: 'static> {
    /// It was a task when it came.
    Given(Task<T>),
    Made(Task<Result<T, E>>),
}

impl<T: 'static, E: From<JoinError> + 'static> Future for Numbered<T, E> {
    type Output = (usize, Result<T, E>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let result = match &mut self.child {
            Child::Given(task) => ready!(Pin::new(task).poll(cx)).map_err(E::from),
            Child::Made(task) => match ready!(Pin::new(task).poll(cx)) {
                Ok(result) => result,
                Err(error) => Err(error.into()),
            },
        };
        Poll::Ready((self.at, result))
    }
}
