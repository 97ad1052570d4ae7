//! What a loop knows of each task: its record, and what it waits for.
//!
//! A record is made with its task and goes with it. The future itself lives elsewhere (in
//! `async-task`); the record has what must be found from outside: the name, the context, the place
//! where it was created, the requests to cancel it, and the waker that keeps it reachable until it
//! has died on the loop's thread.
//!
//! A leaf operation that is pending says so here: for which task, on what, where in the source and
//! since when. It carries the task's number, not the other way round, so that a task is no larger
//! for waiting; whoever asks what a task waits for looks through the list.
//!
//! What must always hold: nothing here is foreign code. What is taken out is returned, and dropped
//! by the caller.

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use slab::Slab;

use crate::clock::Ticks;
use crate::context::Context;
use crate::key::{TaskKey, TimerKey};

/// What is known of one task.
pub(crate) struct Record {
    pub(crate) number: u32,
    /// The task has ended; its record stays for the name's sake while somebody holds its handle.
    pub(crate) ended: bool,
    /// Somebody holds its handle.
    pub(crate) held: bool,
    /// It has a request, a context or a grace period.
    pub(crate) noisy: bool,
    pub(crate) place: &'static Location<'static>,
    /// Wakes the task, and keeps it reachable until it has ended.
    pub(crate) waker: Option<Waker>,
    /// What few tasks have.
    pub(crate) rare: Option<Box<Rare>>,
}

/// A closure and where it was scheduled.
type Scheduled = (Box<dyn FnOnce()>, &'static Location<'static>);

/// What few tasks have.
#[derive(Default)]
pub(crate) struct Rare {
    pub(crate) name: Option<Rc<str>>,
    pub(crate) context: Option<Context>,
    /// How many requests to cancel have not been taken back, and the reason of the last.
    pub(crate) requests: u32,
    pub(crate) reason: Option<Arc<str>>,
    /// How many `defer_cancel` the task is inside of.
    pub(crate) deferred: u32,
    /// The body has been polled.
    pub(crate) started: bool,
    /// The grace period is over.
    pub(crate) overdue: bool,
    /// How long the task may clean up once it has been asked to end.
    pub(crate) grace: Option<Duration>,
    pub(crate) grace_timer: Option<TimerKey>,
    /// Who is to be told when the task is asked to end, by the numbers of their waits.
    pub(crate) asked: Vec<(u32, Waker)>,
    /// What is to be called, and from where, when the task has ended.
    pub(crate) on_done: Option<Scheduled>,
}

impl Rare {
    /// Takes out who waits by this number.
    pub(crate) fn stop_asking(&mut self, wait: u32) -> Option<Waker> {
        let at = self.asked.iter().position(|(number, _)| *number == wait)?;
        Some(self.asked.remove(at).1)
    }
}

impl Record {
    pub(crate) fn new(place: &'static Location<'static>) -> Self {
        Self {
            number: 0,
            ended: false,
            held: false,
            noisy: false,
            place,
            waker: None,
            rare: None,
        }
    }

    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// How many requests to end have not been taken back.
    pub(crate) fn requests(&self) -> u32 {
        self.rare.as_ref().map_or(0, |rare| rare.requests)
    }

    pub(crate) fn take_context(&mut self) -> Option<Context> {
        self.rare.as_mut().and_then(|rare| rare.context.take())
    }

    pub(crate) fn name(&self) -> Rc<str> {
        match self.rare.as_ref().and_then(|rare| rare.name.clone()) {
            Some(name) => name,
            None => format!("Task-{}", self.number).into(),
        }
    }

    /// Whether the task has been asked to end, and is not putting that off.
    pub(crate) fn is_asked(&self) -> bool {
        self.rare
            .as_ref()
            .is_some_and(|rare| rare.requests > 0 && rare.deferred == 0)
    }

    /// Whether the future is to be dropped at the task's next turn.
    pub(crate) fn must_end(&self) -> bool {
        self.is_asked()
            && self
                .rare
                .as_ref()
                .is_none_or(|rare| rare.grace.is_none() || rare.overdue || !rare.started)
    }
}

/// What a leaf operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Promise,
    /// The end of the task with this number.
    Task(u32),
    Read(i32),
    Write(i32),
    /// The addresses of a name.
    Lookup,
    /// One of a stream's signals.
    Signal,
    /// To be asked to end.
    Cancellation,
    /// The end of a connection.
    Connection,
    /// The end of a server and of its connections.
    Server,
    /// A lock that another holds.
    Lock,
    /// An event that has not happened.
    Event,
    /// A condition's notice.
    Condition,
    /// A semaphore's permit.
    Semaphore,
    /// Others, at a barrier.
    Barrier,
    /// An item or a place of a queue, or that all its items are done.
    Queue,
}

/// A leaf operation that is pending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    /// The number of the task, 0 outside of any.
    pub(crate) task: u32,
    pub(crate) on: On,
    pub(crate) place: &'static Location<'static>,
    pub(crate) since: Ticks,
}

/// All records of a loop.
pub(crate) struct Records {
    tasks: RefCell<Slab<Record>>,
    waits: RefCell<Slab<Pending>>,
    /// The task whose future is being polled.
    current: Cell<TaskKey>,
    last_number: Cell<u32>,
    /// How many tasks have something that must be looked at in each of their polls.
    noisy: Cell<u32>,
    /// Is told of every task that ends.
    on_end: Cell<Option<Waker>>,
}

impl Records {
    pub(crate) fn new() -> Self {
        Self {
            tasks: RefCell::new(Slab::new()),
            waits: RefCell::new(Slab::new()),
            current: Cell::new(TaskKey::NONE),
            last_number: Cell::new(0),
            noisy: Cell::new(0),
            on_end: Cell::new(None),
        }
    }

    /// The key of a task that is about to be made.
    pub(crate) fn next_key(&self) -> TaskKey {
        // Zero stands for "no task", so the count steps over it.
        let number = self.last_number.get().checked_add(1).unwrap_or(1);
        self.last_number.set(number);
        TaskKey {
            slot: self.tasks.borrow().vacant_key() as u32,
            number,
        }
    }

    /// Puts the record of a new task in the place of its key, which was the last one given out.
    pub(crate) fn insert(&self, key: TaskKey, mut record: Record) {
        record.number = key.number;
        if record.noisy {
            self.noisy.set(self.noisy.get() + 1);
        }
        let slot = self.tasks.borrow_mut().insert(record);
        debug_assert_eq!(slot, key.slot as usize);
    }

    /// Takes the record of a task that has ended.
    pub(crate) fn remove(&self, key: TaskKey) -> Option<Record> {
        let mut tasks = self.tasks.borrow_mut();
        let known = tasks
            .get(key.slot as usize)
            .is_some_and(|task| task.number == key.number);
        let record = known.then(|| tasks.remove(key.slot as usize))?;
        if record.noisy {
            self.noisy.set(self.noisy.get() - 1);
        }
        Some(record)
    }

    /// Puts a record back that was taken a moment ago, with nothing in between.
    pub(crate) fn put_back(&self, key: TaskKey, record: Record) {
        self.insert(key, record);
    }

    /// Whether no task has anything that must be looked at before or after a poll: a request, a
    /// context, a grace period.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.noisy.get() == 0
    }

    /// Notes that a task is to be looked at in each of its polls from now on.
    pub(crate) fn make_noisy(&self, task: &mut Record) {
        if !std::mem::replace(&mut task.noisy, true) {
            self.noisy.set(self.noisy.get() + 1);
        }
    }

    /// Looks at a live task's record; `look` runs no foreign code.
    pub(crate) fn with<R>(&self, key: TaskKey, look: impl FnOnce(&mut Record) -> R) -> Option<R> {
        let mut tasks = self.tasks.borrow_mut();
        tasks
            .get_mut(key.slot as usize)
            .filter(|task| task.number == key.number)
            .map(look)
    }

    pub(crate) fn is_live(&self, key: TaskKey) -> bool {
        self.with(key, |task| !task.ended).unwrap_or(false)
    }

    /// Finds a live task by its number.
    pub(crate) fn by_number(&self, number: u32) -> Option<TaskKey> {
        let tasks = self.tasks.borrow();
        let (slot, _) = tasks.iter().find(|(_, task)| task.number == number)?;
        Some(TaskKey {
            slot: slot as u32,
            number,
        })
    }

    /// The live tasks that are shown, in the order in which they were created.
    pub(crate) fn all(&self) -> Vec<TaskKey> {
        let tasks = self.tasks.borrow();
        let shown = tasks.iter().filter(|(_, task)| !task.ended);
        let mut keys: Vec<_> = shown
            .map(|(slot, task)| TaskKey {
                slot: slot as u32,
                number: task.number,
            })
            .collect();
        let last = self.last_number.get();
        // Numbers may have wrapped: the newest is the one nearest to the last given out.
        keys.sort_unstable_by_key(|key| std::cmp::Reverse(last.wrapping_sub(key.number)));
        keys
    }

    /// Lets `waker` be told of the next task that ends; returns the one it takes the place of.
    pub(crate) fn tell_of_end(&self, waker: Waker) -> Option<Waker> {
        self.on_end.replace(Some(waker))
    }

    #[inline]
    pub(crate) fn take_end_waker(&self) -> Option<Waker> {
        self.on_end.take()
    }

    /// How many tasks have not ended.
    pub(crate) fn count(&self) -> usize {
        self.tasks
            .borrow()
            .iter()
            .filter(|(_, task)| !task.ended)
            .count()
    }

    /// The wakers of all live tasks.
    pub(crate) fn wakers(&self) -> Vec<Waker> {
        self.tasks
            .borrow()
            .iter()
            .filter_map(|(_, task)| task.waker.clone())
            .collect()
    }

    /// Gives back the memory of records and waits that are all gone.
    pub(crate) fn shrink(&self) {
        self.tasks.borrow_mut().shrink_to_fit();
        self.waits.borrow_mut().shrink_to_fit();
    }

    pub(crate) fn current(&self) -> TaskKey {
        self.current.get()
    }

    /// Makes a task the current one and returns the one that was.
    #[inline]
    pub(crate) fn enter(&self, key: TaskKey) -> TaskKey {
        self.current.replace(key)
    }

    pub(crate) fn begin_wait(
        &self,
        on: On,
        place: &'static Location<'static>,
        since: Ticks,
    ) -> u32 {
        let task = self.current.get().number;
        self.waits.borrow_mut().insert(Pending {
            task,
            on,
            place,
            since,
        }) as u32
    }

    /// Notes that an operation is now polled by another task.
    pub(crate) fn renew_wait(&self, wait: u32) {
        if let Some(pending) = self.waits.borrow_mut().get_mut(wait as usize) {
            pending.task = self.current.get().number;
        }
    }

    pub(crate) fn end_wait(&self, wait: u32) {
        self.waits.borrow_mut().try_remove(wait as usize);
    }

    /// Every pending operation except sleeps, which the shelf knows.
    pub(crate) fn waits(&self) -> Vec<Pending> {
        self.waits
            .borrow()
            .iter()
            .map(|(_, pending)| *pending)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_its_key_and_not_by_its_slot_alone() {
        let records = Records::new();
        let insert = || {
            let key = records.next_key();
            records.insert(key, Record::new(Location::caller()));
            key
        };
        let first = insert();
        assert!(records.remove(first).is_some());
        let second = insert();
        assert_eq!(
            (first.slot, first.number, second.number),
            (second.slot, 1, 2)
        );
        assert!(!records.is_live(first) && records.remove(first).is_none());
        assert_eq!(
            records.with(second, |task| task.name()).as_deref(),
            Some("Task-2")
        );
    }

    #[test]
    fn a_record_is_five_words() {
        assert_eq!(size_of::<Record>(), 5 * 8);
    }
}
