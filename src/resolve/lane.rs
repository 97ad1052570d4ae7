//! Threads for the calls that block: a lane beside the loop, started when it is first needed.
//!
//! The look-ups of a loop go through one lane. What must always hold:
//!
//! 1. At most [`MAX_THREADS`] calls go on at once; the others wait, first in, first out. As many
//!    wait as there are tickets: a ticket that is dropped leaves the queue, and the answer of a call
//!    that goes on already is dropped when it comes.
//! 2. A thread ends when it has been idle for a while, and when the lane is closed. It ends only
//!    while the queue is empty or the lane closed, so nothing waits without a thread.
//! 3. Nobody waits for a thread. One that hangs in the system goes on alone, holds nothing of the
//!    loop's but the lane's own state, and ends when the system lets it go, or with the process.
//! 4. A thread that cannot be started is done without as long as there is another.
//! 5. No lock is held while work runs, a waker is called or either is dropped. A panic of the work
//!    is its answer.
//!
//! A child that forked has this state and none of the threads, perhaps with the lock taken: there,
//! nothing touches it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use crate::error::{LoopClosed, drop_quietly, panic_message};
use crate::sys::fork;

/// How many calls of one loop block at once.
pub(super) const MAX_THREADS: usize = 16;

/// How long a thread stays without work.
const REST: Duration = Duration::from_secs(10);

/// What comes of a call.
pub(super) type Answer = io::Result<Vec<SocketAddr>>;

/// A call that blocks.
pub(super) type Work = Box<dyn FnOnce() -> Answer + Send>;

/// Starts a thread that runs this to its end.
pub(super) type Start = dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<()>;

/// The loop's end of its threads. Dropping it closes the lane and waits for nobody.
pub(super) struct Lane {
    shared: Arc<Shared>,
    start: Box<Start>,
    rest: Duration,
    forks: u32,
}

/// What the loop's thread and the lane's have in common.
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// What no thread has begun yet, by number.
    queue: BTreeMap<u64, Work>,
    /// Every call that somebody has a ticket of.
    jobs: BTreeMap<u64, Job>,
    last: u64,
    threads: usize,
    /// How many threads are inside of a call.
    busy: usize,
    closed: bool,
}

struct Job {
    waker: Option<Waker>,
    answer: Option<Answer>,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self::of_threads(Box::new(start_thread), REST)
    }

    /// A lane whose threads are started by `start` and end after `rest` without work.
    pub(super) fn of_threads(start: Box<Start>, rest: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                work: Condvar::new(),
            }),
            start,
            rest,
            forks: fork::generation(),
        }
    }

    /// Has `work` done in a thread; `waker` is told of its end, in that thread.
    ///
    /// Fails only when there is no thread and none can be started.
    pub(super) fn submit(&self, work: Work, waker: Waker) -> io::Result<Ticket> {
        let mut state = self.shared.lock();
        state.last += 1;
        let number = state.last;
        let job = Job {
            waker: Some(waker),
            answer: None,
        };
        state.jobs.insert(number, job);
        state.queue.insert(number, work);
        // Each thread that is not in a call, also one that has hardly been started, will take one
        // from the queue.
        let free = state.threads - state.busy;
        let more = state.queue.len() > free && state.threads < MAX_THREADS;
        state.threads += usize::from(more);
        drop(state);
        let ticket = Ticket {
            shared: Arc::clone(&self.shared),
            number,
            forks: self.forks,
        };
        if more && let Err(error) = self.start_one() {
            let mut state = self.shared.lock();
            state.threads -= 1;
            if state.threads == 0 {
                drop(state);
                return Err(error);
            }
        }
        self.shared.work.notify_one();
        Ok(ticket)
    }

    fn start_one(&self) -> io::Result<()> {
        let (shared, rest) = (Arc::clone(&self.shared), self.rest);
        (self.start)(Box::new(move || shared.serve(rest)))
    }
}

fn start_thread(run: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    let builder = thread::Builder::new().name("coloop-resolve".to_owned());
    builder.spawn(run).map(drop)
}

impl Drop for Lane {
    fn drop(&mut self) {
        if self.forks != fork::generation() {
            return;
        }
        let mut state = self.shared.lock();
        state.closed = true;
        let queue = std::mem::take(&mut state.queue);
        let mut wakers = Vec::new();
        for job in state.jobs.values_mut().filter(|job| job.answer.is_none()) {
            job.answer = Some(Err(LoopClosed.into()));
            wakers.extend(job.waker.take());
        }
        drop(state);
        self.shared.work.notify_all();
        queue.into_values().for_each(drop_quietly);
        wakers.into_iter().for_each(wake_quietly);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
    fn serve(&self, rest: Duration) {
        let mut state = self.lock();
        loop {
            if let Some((number, work)) = state.queue.pop_first() {
                state.busy += 1;
                drop(state);
                let answer = panic::catch_unwind(AssertUnwindSafe(work));
                self.finish(number, answer.unwrap_or_else(panicked));
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            let waited = self.work.wait_timeout(state, rest);
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.queue.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }

    /// Ends a call, and brings its answer to whoever still has the ticket.
    fn finish(&self, number: u64, answer: Answer) {
        let mut state = self.lock();
        state.busy -= 1;
        let job = state.jobs.get_mut(&number);
        let Some(job) = job.filter(|job| job.answer.is_none()) else {
            drop(state);
            return drop_quietly(answer);
        };
        job.answer = Some(answer);
        let waker = job.waker.take();
        drop(state);
        if let Some(waker) = waker {
            wake_quietly(waker);
        }
    }
}

/// Calls a waker where nobody could be told of its panic.
fn wake_quietly(waker: Waker) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        drop_quietly(payload);
    }
}

fn panicked(payload: Box<dyn std::any::Any + Send>) -> Answer {
    let error = io::Error::other(format!(
        "the resolver panicked: {}",
        panic_message(&*payload)
    ));
    drop_quietly(payload);
    Err(error)
}

/// Stands for one call. Dropping it takes the call out of the queue, or lets go of its answer.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    number: u64,
    forks: u32,
}

impl Ticket {
    /// Takes the answer, once; until it is there, `waker` is the one that will be told.
    pub(super) fn poll(&self, waker: Waker) -> Option<Answer> {
        let mut state = self.shared.lock();
        let job = state.jobs.get_mut(&self.number)?;
        let answer = job.answer.take();
        let before = match answer {
            Some(_) => state.jobs.remove(&self.number).and_then(|job| job.waker),
            None => job.waker.replace(waker),
        };
        drop(state);
        drop(before);
        answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.forks != fork::generation() {
            return;
        }
        let mut state = self.shared.lock();
        let work = state.queue.remove(&self.number);
        let job = state.jobs.remove(&self.number);
        drop(state);
        drop_quietly(work);
        if let Some(job) = job {
            drop_quietly(job.waker);
            drop_quietly(job.answer);
        }
    }
}
