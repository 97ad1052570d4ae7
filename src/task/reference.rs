//! What can be known of a task without having its value.
//!
//! A reference is the loop and a key, and keeps nothing alive. This file also ends a task's record,
//! and says what a report will tell of it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::body::About;
use super::cancel;
use crate::clock::Ticks;
use crate::context::{self, Context};
use crate::core::{Core, LoopHandle};
use crate::error::drop_quietly;
use crate::key::TaskKey;
use crate::record::{On, Rare, Record};
use crate::report::ExceptionContext;

/// Refers to a task: its name, its state, what it waits for, and the means to end it.
///
/// It keeps neither the task nor its value alive. After the task has ended, and its
/// [`Task`](crate::Task) has been dropped, only its number is known.
#[derive(Clone)]
pub struct TaskRef {
    core: Rc<Core>,
    key: TaskKey,
}

impl TaskRef {
    pub(super) fn new(core: &Rc<Core>, key: TaskKey) -> Self {
        Self {
            core: Rc::clone(core),
            key,
        }
    }

    fn with<R>(&self, look: impl FnOnce(&mut Record) -> R) -> Option<R> {
        self.core.records.with(self.key, look)
    }

    /// Returns the name; `Task-` and a number where none was given.
    #[doc(alias = "get_name")]
    pub fn name(&self) -> Rc<str> {
        self.with(|task| task.name())
            .unwrap_or_else(|| format!("Task-{}", self.key.number).into())
    }

    /// Gives the task a name.
    pub fn set_name(&self, name: impl Into<Rc<str>>) {
        let name = name.into();
        let before = self.with(|task| task.rare().name.replace(name));
        drop(before);
    }

    /// Returns where the task was created, as long as that is known.
    pub fn place(&self) -> Option<&'static Location<'static>> {
        self.with(|task| task.place)
    }

    /// Returns the context in which the task runs; an empty one once it has ended.
    #[doc(alias = "get_context")]
    pub fn context(&self) -> Context {
        if self.core.records.current() == self.key {
            return Context::current();
        }
        self.with(|task| task.rare.as_ref().and_then(|rare| rare.context.clone()))
            .flatten()
            .unwrap_or_default()
    }

    /// Tells whether the task has ended.
    #[doc(alias = "done")]
    pub fn is_finished(&self) -> bool {
        self.with(|task| task.ended).unwrap_or(true)
    }

    /// Asks the task to end, and says whether it had not ended yet; see
    /// [`Task::cancel`](crate::Task::cancel).
    pub fn cancel(&self) -> bool {
        cancel(&self.core, self.key, None)
    }

    /// Asks the task to end, with a reason that whoever awaits it can read.
    pub fn cancel_with(&self, reason: impl Into<Arc<str>>) -> bool {
        cancel(&self.core, self.key, Some(reason.into()))
    }

    /// Returns how many requests to end have not been taken back; none once the task has ended.
    pub fn cancelling(&self) -> u32 {
        self.with(|task| task.requests()).unwrap_or(0)
    }

    /// Takes back one request to end, and returns how many are left.
    ///
    /// At none, a request that the task has not felt yet is withdrawn: the task goes on.
    pub fn uncancel(&self) -> u32 {
        cancel::uncancel(&self.core, self.key)
    }

    /// Returns what the task waits for: its leaf operations that are pending.
    ///
    /// Operations of foreign futures are not known.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use coloop::{EventLoop, WaitOn};
    ///
    /// let event_loop = EventLoop::new()?;
    /// let task = event_loop.create_task(coloop::sleep(Duration::from_secs(60)));
    /// event_loop.run_until_complete(coloop::yield_now())?;
    /// let waits = task.to_ref().waits();
    /// assert!(matches!(waits[..], [coloop::Wait { on: WaitOn::Timer(_), .. }]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn waits(&self) -> Vec<Wait> {
        if self.is_finished() {
            return Vec::new();
        }
        let core = &self.core;
        let origin = core.origin();
        let pending = core.records.waits().into_iter();
        let waits = pending
            .filter(|wait| wait.task == self.key.number)
            .map(|wait| Wait {
                on: match wait.on {
                    On::Promise => WaitOn::Promise,
                    On::Task(number) => {
                        let key = core.records.by_number(number);
                        let key = key.unwrap_or(TaskKey {
                            number,
                            ..TaskKey::NONE
                        });
                        WaitOn::Task(Self::new(core, key))
                    }
                    On::Read(fd) => WaitOn::Readable(fd),
                    On::Write(fd) => WaitOn::Writable(fd),
                    On::Lookup => WaitOn::Lookup,
                    On::Signal => WaitOn::Signal,
                    On::Cancellation => WaitOn::Cancellation,
                    On::Connection => WaitOn::Connection,
                    On::Server => WaitOn::Server,
                    On::Lock => WaitOn::Lock,
                    On::Event => WaitOn::Event,
                    On::Condition => WaitOn::Condition,
                    On::Semaphore => WaitOn::Semaphore,
                    On::Barrier => WaitOn::Barrier,
                    On::Queue => WaitOn::Queue,
                },
                place: wait.place,
                since: origin.instant(wait.since),
            });
        let sleeps = core.timers.sleeps().into_iter();
        let sleeps = sleeps
            .filter(|sleep| sleep.task == self.key.number)
            .map(|sleep| Wait {
                on: WaitOn::Timer(origin.instant(sleep.deadline)),
                place: sleep.place,
                since: origin.instant(millis_back(core.now(), sleep.since_millis)),
            });
        waits.chain(sleeps).collect()
    }
}

/// The time of a reading of which only the milliseconds, modulo 2^32, are known.
fn millis_back(now: Ticks, millis: u32) -> Ticks {
    let now_millis = now.0 / 1_000_000;
    let ago = i64::from((now_millis as u32).wrapping_sub(millis));
    Ticks((now_millis - ago) * 1_000_000)
}

impl PartialEq for TaskRef {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && Rc::ptr_eq(&self.core, &other.core)
    }
}

impl Eq for TaskRef {}

impl Hash for TaskRef {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Debug for TaskRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskRef")
            .field("name", &self.name())
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// Describes one operation that a task waits for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Wait {
    /// What it waits for.
    pub on: WaitOn,
    /// Where in the source the operation, or what it waits for, was made.
    pub place: &'static Location<'static>,
    /// Since when, by the clock's reading of that turn; for sleeps, to the millisecond.
    pub since: Instant,
}

/// Says what an operation waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitOn {
    /// A deadline.
    Timer(Instant),
    /// A promise that has not been settled.
    Promise,
    /// The end of a task.
    Task(TaskRef),
    /// This descriptor, to be readable.
    Readable(i32),
    /// This descriptor, to be writable.
    Writable(i32),
    /// The addresses of a name.
    Lookup,
    /// One of the signals of a stream.
    Signal,
    /// To be asked to end.
    Cancellation,
    /// The end of a connection.
    Connection,
    /// The end of a server and of its connections.
    Server,
    /// A [lock](crate::sync::Lock) that another holds.
    Lock,
    /// An [event](crate::sync::Event) that has not happened.
    Event,
    /// A [condition](crate::sync::Condition)'s notice.
    Condition,
    /// A [semaphore](crate::sync::Semaphore)'s permit.
    Semaphore,
    /// Others, at a [barrier](crate::sync::Barrier).
    Barrier,
    /// An item or a place of a [queue](crate::sync::Queue), or that all its items are done.
    Queue,
}

/// Returns the task that is being polled in this thread; `None` in a callback or outside a loop.
///
/// The future given to `run_until_complete` counts as a task.
pub fn current_task() -> Option<TaskRef> {
    LoopHandle(Core::current()?).current_task()
}

impl LoopHandle {
    /// Returns the task of this loop that is being polled; `None` in a callback.
    pub fn current_task(&self) -> Option<TaskRef> {
        let key = self.0.records.current();
        self.0
            .records
            .is_live(key)
            .then(|| TaskRef::new(&self.0, key))
    }

    /// Returns the tasks that have not ended, in the order in which they were created.
    pub fn all_tasks(&self) -> Vec<TaskRef> {
        self.0
            .records
            .all()
            .into_iter()
            .map(|key| TaskRef::new(&self.0, key))
            .collect()
    }
}

impl ExceptionContext {
    /// Returns the task that failed, on the loop that reports it.
    pub fn task(&self, handle: &LoopHandle) -> Option<TaskRef> {
        Some(TaskRef::new(&handle.0, self.task_key()?))
    }
}

/// What a report will say of a task.
pub(super) fn about(core: &Rc<Core>, key: TaskKey) -> About {
    let known = core.records.with(key, |task| {
        let name = task.rare.as_ref().and_then(|rare| rare.name.clone());
        (name, task.place)
    });
    let (name, place) = known.unwrap_or_else(|| (None, Location::caller()));
    About {
        core: Rc::clone(core),
        key,
        place,
        name,
        context: context::current(),
    }
}

/// Notes that a task has ended. A name that was given stays for whoever holds the task's handle.
pub(super) fn end(core: &Core, key: TaskKey) {
    let mut record = core.records.remove(key);
    if let Some(task) = &mut record {
        // The waker is the loop's own; what else there may be is foreign.
        drop(task.waker.take());
        if task.rare.is_some() {
            end_rare(core, key, record);
        }
    }
    if let Some(waker) = core.records.take_end_waker() {
        core.wake(waker);
    }
}

#[cold]
fn end_rare(core: &Core, key: TaskKey, record: Option<Record>) {
    let Some(mut record) = record else { return };
    let mut rare = record.rare.take().map(|rare| *rare).unwrap_or_default();
    if let Some((on_done, place)) = rare.on_done.take() {
        core.queue(on_done, place);
    }
    if let Some(timer) = rare.grace_timer {
        drop(core.timers.remove(timer));
    }
    if record.held && rare.name.is_some() {
        let name = Rare {
            name: rare.name.clone(),
            ..Rare::default()
        };
        record.rare = Some(Box::new(name));
        record.ended = true;
        record.noisy = false;
        core.records.put_back(key, record);
    }
    // All of it is foreign: each goes by itself.
    drop_quietly(rare.context);
    for (_, waker) in rare.asked {
        drop_quietly(waker);
    }
}

/// Notes that nobody holds the handle of a task any more.
pub(super) fn release(core: &Core, key: TaskKey) {
    let ended = core.records.with(key, |task| {
        task.held = false;
        task.ended
    });
    if ended == Some(true) {
        drop(core.records.remove(key));
    }
}
