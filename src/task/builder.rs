//! The making of tasks.
//!
//! Every task is made by one function here: a key, a body around the future, a record in the loop, and
//! a place in the line. A task factory, where there is one, sees the settings first.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, Location, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::body::{Body, Check, Reporting, Silent};
use super::cancel::end_now;
use super::{Task, factory, until_cancelled};
use crate::context::Context;
use crate::core::{Core, LoopHandle, schedule};
use crate::error::{Cancelled, LoopClosed};
use crate::key::TaskKey;
use crate::ready::Ready;
use crate::record::{Rare, Record};

/// Configures a task before it is made; made by [`LoopHandle::task`].
#[must_use = "a builder makes nothing until `create`"]
pub struct TaskBuilder {
    handle: LoopHandle,
    settings: Settings,
}

#[derive(Default)]
struct Settings {
    name: Option<Rc<str>>,
    context: Option<Context>,
    grace: Option<Duration>,
    eager: bool,
}

/// Says what is wrong with the output of a task, if anything is.
///
/// Implemented for `()` and for `Result` with an error that can be shown.
pub trait Report {
    /// Returns the text of the error.
    fn error(&self) -> Option<String>;
}

impl Report for () {
    fn error(&self) -> Option<String> {
        None
    }
}

impl<T, E: fmt::Display> Report for Result<T, E> {
    fn error(&self) -> Option<String> {
        self.as_ref().err().map(ToString::to_string)
    }
}

impl TaskBuilder {
    pub(super) fn new(handle: &LoopHandle) -> Self {
        Self {
            handle: handle.clone(),
            settings: Settings::default(),
        }
    }

    /// Gives the task a name. The default is `Task-` and a number that grows.
    pub fn name(mut self, name: impl Into<Rc<str>>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Lets the task run in `context` itself, in place of a copy of the current one.
    ///
    /// Tasks of one context share what they set.
    pub fn context(mut self, context: Context) -> Self {
        self.settings.context = Some(context);
        self
    }

    /// Polls the task for the first time when it is made, before `create` returns.
    ///
    /// A body that does not wait has then ended, without ever having been in the line. It has no
    /// effect while the loop is not running. Mind that it changes the order of things.
    #[doc(alias = "eager_start")]
    #[doc(alias = "eager_task_factory")]
    pub fn eager(mut self) -> Self {
        self.settings.eager = true;
        self
    }

    /// Gives the task time to clean up after it has been asked to end.
    ///
    /// When it is cancelled, [`cancelled`](crate::cancelled) and [`until_cancelled`] resolve in it,
    /// and what its body returns is its result. When `grace` is over it is dropped.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = Some(grace);
        self
    }

    /// Makes the task.
    #[track_caller]
    pub fn create<F: Future + 'static>(self, future: F) -> Task<F::Output> {
        self.make::<F, Silent>(future, Location::caller())
    }

    /// Makes the task, unless the loop is closed.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`]; the future has been dropped.
    #[track_caller]
    pub fn try_create<F: Future + 'static>(self, future: F) -> Result<Task<F::Output>, LoopClosed> {
        self.handle.open()?;
        Ok(self.make::<F, Silent>(future, Location::caller()))
    }

    /// Makes a task whose error goes to the exception handler if nobody has observed it.
    #[track_caller]
    pub fn create_reporting<F>(self, future: F) -> Task<F::Output>
    where
        F: Future + 'static,
        F::Output: Report,
    {
        self.make::<F, Reporting>(future, Location::caller())
    }

    fn make<F, C>(self, future: F, place: &'static Location<'static>) -> Task<F::Output>
    where
        F: Future + 'static,
        C: Check<F::Output> + 'static,
    {
        let Self { handle, settings } = self;
        let factory = handle.task_factory();
        let core = &handle.0;
        if core.is_closed() {
            drop(future);
            return Task::refused(core);
        }
        match factory {
            None => spawn::<F, C>(core, future, settings, place),
            Some(factory) => {
                let builder = Self {
                    handle: handle.clone(),
                    settings,
                };
                let Self { settings, .. } = factory.build(builder);
                let wrapped = factory::wrap(&*factory, future);
                let body = async move {
                    match wrapped.await {
                        Some(output) => output,
                        // The wrapper gave up: the task ends as if it had been asked to.
                        None => {
                            if let Some(core) = Core::current() {
                                let key = core.records.current();
                                end_now(&core, key, "the task factory's wrapper ended early");
                            }
                            std::future::pending().await
                        }
                    }
                };
                if core.is_closed() {
                    // The factory has closed the loop.
                    drop(body);
                    return Task::refused(core);
                }
                spawn::<_, C>(core, body, settings, place)
            }
        }
    }
}

impl fmt::Debug for TaskBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder")
            .field("name", &self.settings.name)
            .field("grace", &self.settings.grace)
            .field("eager", &self.settings.eager)
            .finish_non_exhaustive()
    }
}

#[inline]
fn spawn<F, C>(
    core: &Rc<Core>,
    future: F,
    settings: Settings,
    place: &'static Location<'static>,
) -> Task<F::Output>
where
    F: Future + 'static,
    C: Check<F::Output> + 'static,
{
    let Settings {
        name,
        context,
        grace,
        eager,
    } = settings;
    let context = context.or_else(Context::capture);
    let key = core.records.next_key();
    let body = Body::<F, C>::new(future, Rc::clone(core), key);
    let letters = Arc::clone(&core.letters);
    let builder = async_task::Builder::new().metadata(letters);
    let (runnable, task) = builder.spawn_local(|_| body, schedule);

    let mut record = Record::new(place);
    record.waker = Some(runnable.waker());
    record.held = true;
    if name.is_some() || grace.is_some() || context.is_some() {
        record.noisy = context.is_some() || grace.is_some();
        record.rare = Some(Box::new(Rare {
            name,
            grace,
            context,
            ..Rare::default()
        }));
    }
    core.records.insert(key, record);

    let task = Task::new(task.fallible(), core, key);
    if eager && core.is_running() {
        runnable.run();
    } else {
        core.line.push(Ready::Task(runnable));
    }
    task
}

/// Makes a task with nothing special about it.
pub(super) fn spawn_plain<F: Future + 'static>(
    core: &Rc<Core>,
    future: F,
    place: &'static Location<'static>,
) -> Task<F::Output> {
    spawn::<F, Silent>(core, future, Settings::default(), place)
}

/// Makes a task whose result, or panic, goes to `deliver`; what that gives back is nobody's.
pub(crate) fn spawn_forwarding<F, D>(
    core: &Rc<Core>,
    future: F,
    place: &'static Location<'static>,
    deliver: D,
) -> TaskKey
where
    F: Future + 'static,
    D: FnOnce(Result<F::Output, Box<dyn Any + Send>>) -> Option<Box<dyn Any + Send>> + 'static,
{
    let body = async move {
        let result = AssertUnwindSafe(future).catch_unwind().await;
        if let Some(payload) = deliver(result) {
            resume_unwind(payload);
        }
    };
    let builder = TaskBuilder::new(&LoopHandle(Rc::clone(core)));
    let task = builder.make::<_, Silent>(body, place);
    task.key
}

impl LoopHandle {
    /// Makes a task with code that runs, awaits and all, when it was asked to end.
    ///
    /// When the task is cancelled `body` is dropped, and `cleanup` makes the future that the task
    /// ends with; its value is the task's. After `grace` that is dropped too. A task that is
    /// cancelled before it has begun runs neither.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{future::pending, time::Duration};
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let task = event_loop.create_with_cleanup(
    ///     Duration::from_secs(1),
    ///     pending::<&str>(),
    ///     async |_| "said goodbye",
    /// );
    /// event_loop.run_until_complete(coloop::yield_now())?;
    /// task.cancel();
    /// assert_eq!(event_loop.run_until_complete(task)?.unwrap(), "said goodbye");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn create_with_cleanup<B, C>(&self, grace: Duration, body: B, cleanup: C) -> Task<B::Output>
    where
        B: Future + 'static,
        C: AsyncFnOnce(Cancelled) -> B::Output + 'static,
    {
        self.task().grace(grace).create(async move {
            match until_cancelled(body).await {
                Ok(value) => value,
                Err(cancelled) => cleanup(cancelled).await,
            }
        })
    }
}
