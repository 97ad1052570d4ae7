//! Tasks: futures that the loop owns and polls as items of its line.
//!
//! `body` is what the loop polls, `builder` makes tasks, `cancel` ends them early, `reference` is
//! what can be known of them, `factory` lets a program have its hand in their making. This file is
//! the handle.

mod body;
mod builder;
mod cancel;
mod factory;
mod reference;

use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll, Waker};

use async_task::FallibleTask;

use self::body::Outcome;
pub(crate) use self::builder::spawn_forwarding;
pub use self::builder::{Report, TaskBuilder};
pub use self::cancel::{
    CancelledFuture, DeferCancel, Shield, UntilCancelled, cancelled, defer_cancel, shield,
    until_cancelled,
};
pub(crate) use self::cancel::{cancel, take_request};
pub use self::factory::TaskFactory;
pub use self::reference::{TaskRef, Wait, WaitOn, current_task};
use crate::context::Context;
use crate::core::{Core, LoopHandle};
use crate::error::{Cancelled, JoinError};
use crate::handle::boxed;
use crate::key::TaskKey;
use crate::ready::Letters;
use crate::record::On;

/// Awaits a task, or ends it; made by [`LoopHandle::create_task`].
///
/// Dropping it detaches the task, which runs on. If it panics then, nobody can observe that, and
/// the panic goes to the loop's exception handler with the task's name and the place where it was
/// created.
///
/// # Examples
///
/// ```
/// let event_loop = coloop::EventLoop::new()?;
/// let value = event_loop.run_until_complete(async {
///     let task = coloop::current().create_task(async { 1 + 1 });
///     task.await
/// })?;
/// assert_eq!(value.unwrap(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropping a task detaches it: write `drop(task)` if that is meant"]
pub struct Task<T: 'static> {
    /// `None` once it has given its value, and for a task that a closed loop has refused.
    task: Option<FallibleTask<Outcome<T>, Arc<Letters>>>,
    core: Rc<Core>,
    key: TaskKey,
    wait: Option<u32>,
    /// How it ended, where that was seen before the value was taken.
    seen: Option<Box<Outcome<T>>>,
}

impl<T: 'static> Task<T> {
    fn new(task: FallibleTask<Outcome<T>, Arc<Letters>>, core: &Rc<Core>, key: TaskKey) -> Self {
        Self {
            task: Some(task),
            core: Rc::clone(core),
            key,
            wait: None,
            seen: None,
        }
    }

    /// A task that has been refused: it has ended before it began.
    fn refused(core: &Rc<Core>) -> Self {
        Self {
            task: None,
            core: Rc::clone(core),
            key: TaskKey::NONE,
            wait: None,
            seen: None,
        }
    }

    /// Asks the task to end, and says whether it had not ended yet.
    ///
    /// Its future is dropped at its next turn, and the task ends with [`JoinError::Cancelled`],
    /// also if its body returns a value in this very step: a request that precedes the body's
    /// return wins. A task that was made with a grace period is asked first, see
    /// [`TaskBuilder::grace`].
    ///
    /// # Coming from asyncio
    ///
    /// No exception is thrown into the body: it is dropped at its await. A body that wants to clean
    /// up with awaits has a grace period and [`until_cancelled`].
    pub fn cancel(&self) -> bool {
        cancel(&self.core, self.key, None)
    }

    /// Asks the task to end, with a reason that whoever awaits it can read.
    #[doc(alias = "cancel(msg)")]
    pub fn cancel_with(&self, reason: impl Into<Arc<str>>) -> bool {
        cancel(&self.core, self.key, Some(reason.into()))
    }

    /// Returns how many requests to end have not been taken back; none once the task has ended.
    pub fn cancelling(&self) -> u32 {
        self.to_ref().cancelling()
    }

    /// Takes back one request to end, and returns how many are left.
    pub fn uncancel(&self) -> u32 {
        self.to_ref().uncancel()
    }

    /// Tells whether the task has ended.
    #[doc(alias = "done")]
    pub fn is_finished(&self) -> bool {
        self.to_ref().is_finished()
    }

    /// Returns the name; `Task-` and a number where none was given.
    #[doc(alias = "get_name")]
    pub fn name(&self) -> Rc<str> {
        self.to_ref().name()
    }

    /// Gives the task a name.
    pub fn set_name(&self, name: impl Into<Rc<str>>) {
        self.to_ref().set_name(name);
    }

    /// Returns a reference that does not have the value.
    pub fn to_ref(&self) -> TaskRef {
        TaskRef::new(&self.core, self.key)
    }

    /// Lets a callback have the result, called through the line.
    ///
    /// The callback is queued when the task ends, behind what its last step has queued; if the task
    /// has ended already, at once. It runs in a copy of the current context.
    #[doc(alias = "add_done_callback")]
    #[track_caller]
    pub fn on_done(mut self, f: impl FnOnce(Result<T, JoinError>) + 'static) {
        let (core, key, place) = (Rc::clone(&self.core), self.key, Location::caller());
        // Whoever polled it before does not wait for it any more.
        if let Some(wait) = self.wait.take() {
            core.records.end_wait(wait);
        }
        let call = move || {
            let mut cx = PollContext::from_waker(Waker::noop());
            if let Poll::Ready(result) = Pin::new(&mut self).poll(&mut cx) {
                f(result);
            }
        };
        let mut call = Some(boxed(call, Context::capture().as_ref()));
        core.records.with(key, |task| {
            if !task.ended {
                task.rare().on_done = call.take().map(|call| (call, place));
            }
        });
        if let Some(call) = call {
            core.queue(call, place);
        }
    }

    /// Wraps the task so that it is plain that dropping the wrapper leaves it running.
    pub fn shield(self) -> Shield<T> {
        Shield::new(self)
    }

    /// Waits for the end of the task and shows how it ended, without taking the value.
    ///
    /// Nothing is shown of a task that was refused, that awaits itself, or whose value is taken.
    pub(crate) fn poll_end(
        &mut self,
        cx: &mut PollContext<'_>,
    ) -> Poll<Option<&Result<T, Box<JoinError>>>> {
        if self.seen.is_none() {
            let Some(task) = &mut self.task else {
                return Poll::Ready(None);
            };
            if self.core.records.current() == self.key {
                return Poll::Ready(None);
            }
            match Pin::new(task).poll(cx) {
                Poll::Pending => {
                    self.begin_wait();
                    return Poll::Pending;
                }
                Poll::Ready(outcome) => {
                    let outcome =
                        outcome.unwrap_or_else(|| Outcome::failed(Cancelled::new().into()));
                    self.seen = Some(Box::new(outcome));
                    if let Some(wait) = self.wait.take() {
                        self.core.records.end_wait(wait);
                    }
                }
            }
        }
        Poll::Ready(self.seen.as_ref().and_then(|outcome| outcome.result()))
    }

    /// Notes who waits for the task, and since when.
    fn begin_wait(&mut self) {
        let records = &self.core.records;
        match self.wait {
            Some(wait) => records.renew_wait(wait),
            None => {
                let place = records.with(self.key, |task| task.place);
                let place = place.unwrap_or_else(Location::caller);
                let on = On::Task(self.key.number);
                self.wait = Some(records.begin_wait(on, place, self.core.now()));
            }
        }
    }

    fn release(&mut self) {
        if let Some(wait) = self.wait.take() {
            self.core.records.end_wait(wait);
        }
        if let Some(task) = self.task.take() {
            task.detach();
            reference::release(&self.core, self.key);
        }
    }
}

impl<T: 'static> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(outcome) = this.seen.take() {
            this.release();
            return Poll::Ready(outcome.take());
        }
        let Some(task) = &mut this.task else {
            return Poll::Ready(Err(Cancelled::new().into()));
        };
        let records = &this.core.records;
        if records.current() == this.key {
            return Poll::Ready(Err(JoinError::AwaitsItself));
        }
        match Pin::new(task).poll(cx) {
            Poll::Pending => {
                this.begin_wait();
                Poll::Pending
            }
            Poll::Ready(outcome) => {
                this.release();
                // Without an outcome the task died with its loop.
                Poll::Ready(outcome.map_or_else(|| Err(Cancelled::new().into()), Outcome::take))
            }
        }
    }
}

impl<T: 'static> Drop for Task<T> {
    fn drop(&mut self) {
        self.release();
        // It reports what nobody has observed.
        drop(self.seen.take());
    }
}

impl<T> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("name", &self.name())
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

impl LoopHandle {
    /// Makes a task of a future: it is polled as an item of the line from now on.
    ///
    /// Nothing of it runs before this returns. It runs in a copy of the current context. The future
    /// need not be `Send`. On a closed loop the future is dropped and the task has ended with
    /// [`JoinError::Cancelled`]; [`try_create_task`](Self::try_create_task) says so.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let word = Rc::new("hello");
    /// let task = event_loop.create_task(async move { word.len() });
    /// assert_eq!(event_loop.run_until_complete(task)?.unwrap(), 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "ensure_future")]
    #[doc(alias = "spawn")]
    #[track_caller]
    pub fn create_task<F: Future + 'static>(&self, future: F) -> Task<F::Output> {
        if self.0.has_task_factory.get() || self.is_closed() {
            return self.task().create(future);
        }
        builder::spawn_plain(&self.0, future, Location::caller())
    }

    /// Makes a task of a future, unless the loop is closed.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`](crate::LoopClosed); the future has been dropped.
    #[track_caller]
    pub fn try_create_task<F: Future + 'static>(
        &self,
        future: F,
    ) -> Result<Task<F::Output>, crate::LoopClosed> {
        self.open()?;
        Ok(self.task().create(future))
    }

    /// Makes a task whose error goes to the exception handler if nobody has observed it.
    ///
    /// Panics always do; errors need this, because a `Result` inside a generic output cannot be
    /// seen.
    ///
    /// # Examples
    ///
    /// ```
    /// let event_loop = coloop::EventLoop::new()?;
    /// event_loop.set_exception_handler(|handle, context| {
    ///     assert_eq!(context.error(), Some("out of tea"));
    ///     handle.stop();
    /// });
    /// drop(event_loop.create_reporting(async { Err::<(), _>("out of tea") }));
    /// event_loop.run_forever()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn create_reporting<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: Report,
    {
        self.task().create_reporting(future)
    }

    /// Configures a task before it is made.
    ///
    /// # Examples
    ///
    /// ```
    /// let event_loop = coloop::EventLoop::new()?;
    /// let task = event_loop.task().name("reader").create(async {});
    /// assert_eq!(&*task.name(), "reader");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn task(&self) -> TaskBuilder {
        TaskBuilder::new(self)
    }
}
