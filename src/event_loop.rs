//! The owner of a loop: making it, running it, driving it turn by turn, closing it.
//!
//! Everything else is done through the handle it derefs to. The future of a run is a task whose body
//! is on the caller's stack: it has a record, a waker and a place in the line as other tasks have.

use std::env;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::io;
use std::ops::Deref;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as PollContext, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::{Clock, SystemClock};
use crate::context::{self};
use crate::core::{Core, Driver, LoopHandle, Noted, Parts, Running, home};
use crate::error::{RunError, drop_quietly};
use crate::key::TaskKey;
use crate::ready::{Letter, Letters, Ready};
use crate::record::Record;
use crate::report::{ExceptionContext, PanicPolicy};
use crate::selector::{Selector, default_selector};

/// Owns a loop and runs it; everything else is done through the [`LoopHandle`] it derefs to.
///
/// A loop stays in the thread that made it. Dropping it closes it.
///
/// # Examples
///
/// ```
/// use coloop::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// let answer = event_loop.run_until_complete(async {
///     coloop::current().create_task(async { 42 }).await
/// })?;
/// assert_eq!(answer.unwrap(), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A loop cannot leave its thread:
///
/// ```compile_fail,E0277
/// let event_loop = coloop::EventLoop::new().unwrap();
/// std::thread::spawn(move || event_loop.run_forever());
/// ```
///
/// # Coming from asyncio
///
/// `EventLoop` is `AbstractEventLoop`'s owning half. What is not a future or a callback is refused
/// by the compiler:
///
/// ```compile_fail,E0277
/// coloop::EventLoop::new().unwrap().run_until_complete(42);
/// ```
#[doc(alias = "AbstractEventLoop")]
#[doc(alias = "SelectorEventLoop")]
#[doc(alias = "new_event_loop")]
pub struct EventLoop {
    handle: LoopHandle,
    /// A guest gives access to a loop that somebody else owns.
    guest: bool,
}

/// Configures a loop; made by [`EventLoop::builder`].
#[must_use = "a builder makes nothing until `build`"]
pub struct Builder {
    selector: Option<Rc<dyn Selector>>,
    clock: Rc<dyn Clock>,
    poll_every: u32,
    debug: Option<bool>,
    policy: PanicPolicy,
    seed: Option<u64>,
    timer_slack: Duration,
}

impl Builder {
    /// Lets the loop wait on a selector of the caller's. The loop then waits in every turn.
    pub fn selector(mut self, selector: Rc<dyn Selector>) -> Self {
        self.selector = Some(selector);
        self
    }

    /// Gives the loop a clock. The default is [`SystemClock`].
    pub fn clock(mut self, clock: Rc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Says how many items may run between two waits while the line is not empty.
    ///
    /// The default is 64. With 1 the loop waits in every turn, which is asyncio's order exactly:
    /// I/O that becomes ready while callbacks are being worked off joins the line one turn later,
    /// not some turns later.
    pub fn poll_every(mut self, items: u32) -> Self {
        self.poll_every = items;
        self
    }

    /// Turns debug mode on or off, whatever `COLOOP_DEBUG` says.
    pub fn debug(mut self, debug: bool) -> Self {
        self.debug = Some(debug);
        self
    }

    /// Says what happens to panics that nobody can observe. The default is to report them.
    pub fn panic_policy(mut self, policy: PanicPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the seed of what the loop leaves to chance. The default is one that nobody chose.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Lets timers be late by up to `slack`, so that one wait serves several.
    ///
    /// A loop that sleeps wakes `slack` after the nearest deadline and fires everything that is due
    /// by then, in order. The default is zero: every deadline has its own wait, to the nanosecond
    /// where the system can do that. A timer never fires early.
    pub fn timer_slack(mut self, slack: Duration) -> Self {
        self.timer_slack = slack;
        self
    }

    /// Makes the loop.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for `poll_every(0)`; otherwise what the system
    /// says when it refuses a descriptor. Nothing is left behind then.
    pub fn build(self) -> io::Result<EventLoop> {
        if self.poll_every == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "poll_every(0) would never wait: 1 waits in every turn",
            ));
        }
        let own_selector = self.selector.is_none();
        let selector = match self.selector {
            Some(selector) => selector,
            None => default_selector()?,
        };
        let from_environment =
            || env::var_os("COLOOP_DEBUG").is_some_and(|value| !value.is_empty());
        let core = Core::new(Parts {
            selector,
            own_selector,
            clock: self.clock,
            poll_every: self.poll_every,
            debug: self.debug.unwrap_or_else(from_environment),
            policy: self.policy,
            seed: self.seed,
            timer_slack: self.timer_slack,
        });
        Ok(EventLoop {
            handle: LoopHandle(core),
            guest: false,
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("poll_every", &self.poll_every)
            .field("debug", &self.debug)
            .field("panic_policy", &self.policy)
            .field("seed", &self.seed)
            .finish_non_exhaustive()
    }
}

/// Says what one turn, driven from outside, has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Turn {
    /// The turn is done.
    Done,
    /// The turn is done, and [`LoopHandle::stop`] was called before or in it.
    StopAsked,
}

impl EventLoop {
    /// Makes a loop with the default selector and clock.
    ///
    /// # Errors
    ///
    /// What the system says when it refuses a descriptor, for instance when too many are open.
    pub fn new() -> io::Result<Self> {
        Self::builder().build()
    }

    /// Configures a loop.
    pub fn builder() -> Builder {
        Builder {
            selector: None,
            clock: Rc::new(SystemClock),
            poll_every: 64,
            debug: None,
            policy: PanicPolicy::Report,
            seed: None,
            timer_slack: Duration::ZERO,
        }
    }

    /// Gives access to a loop that somebody else owns.
    pub(crate) fn guest(handle: LoopHandle) -> Self {
        Self {
            handle,
            guest: true,
        }
    }

    /// Returns a handle to this loop.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    /// Runs the loop until `future` is complete, and returns its output.
    ///
    /// The future is polled in place, as an item of the line, so it may borrow from the caller. Its
    /// first poll comes after what is in the line already. The turn in which it completes is
    /// finished before this returns. Dropping the loop's other work is not part of it: tasks that
    /// are pending stay pending until the next run.
    ///
    /// # Errors
    ///
    /// [`RunError::Stopped`] if the loop was stopped first; `future` has then been dropped, so pass
    /// `&mut task` to be able to go on. The other variants say why the loop did not run.
    ///
    /// # Panics
    ///
    /// A panic of `future` goes on in the caller; the loop is fine and can run again.
    ///
    /// # Examples
    ///
    /// ```
    /// let event_loop = coloop::EventLoop::new()?;
    /// let mut words = vec!["hello"];
    /// event_loop.run_until_complete(async {
    ///     coloop::yield_now().await;
    ///     words.push("world");
    /// })?;
    /// assert_eq!(words.join(" "), "hello world");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn run_until_complete<F: IntoFuture>(&self, future: F) -> Result<F::Output, RunError> {
        let core = &self.handle.0;
        let running = core.begin(Driver::Run)?;
        let mut main = Main::new(core, &running, Location::caller());
        let mut future = pin!(future.into_future());
        core.turns(Driver::Run, &mut |run| main.poll(run, future.as_mut()))?;
        main.outcome()
    }

    /// Runs the loop until [`LoopHandle::stop`] is called.
    ///
    /// # Errors
    ///
    /// [`RunError`] says why the loop did not run, or that its selector failed.
    pub fn run_forever(&self) -> Result<(), RunError> {
        let core = &self.handle.0;
        let _running = core.begin(Driver::Run)?;
        core.turns(Driver::Run, &mut |_| ())?;
        Ok(())
    }

    /// Makes one turn, for a host with a loop of its own.
    ///
    /// The turn waits for at most `timeout` if nothing is ready; with `None` it waits as long as
    /// the loop itself would. Between turns the loop counts as asleep: a letter from another thread
    /// makes [`descriptor`](Self::descriptor) readable.
    ///
    /// # Errors
    ///
    /// [`RunError`] says why there was no turn, or that the selector failed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// event_loop.call_soon(|| println!("called by the host's loop"));
    /// assert!(!event_loop.is_idle());
    /// event_loop.turn(Some(Duration::ZERO))?;
    /// assert!(event_loop.is_idle());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "_run_once")]
    pub fn turn(&self, timeout: Option<Duration>) -> Result<Turn, RunError> {
        let core = &self.handle.0;
        let driver = Driver::Host(timeout);
        let _running = core.begin(driver)?;
        let stop_asked = core.turns(driver, &mut |_| ())?;
        Ok(if stop_asked {
            Turn::StopAsked
        } else {
            Turn::Done
        })
    }

    /// Returns the next deadline, at which a host has to make a turn.
    ///
    /// Timers that never come are not counted; the loop's slack is.
    pub fn deadline(&self) -> Option<Instant> {
        let core = &self.handle.0;
        Some(core.origin().instant(core.wake_up_time()?))
    }

    /// Tells whether nothing is ready, so that a host may sleep until [`deadline`](Self::deadline)
    /// or until [`descriptor`](Self::descriptor) is readable.
    pub fn is_idle(&self) -> bool {
        let core = &self.handle.0;
        core.line.is_empty() && core.letters.is_empty() && !core.is_stopping()
    }

    /// Returns a descriptor of the host's own that is readable when a turn would find something.
    ///
    /// # Errors
    ///
    /// What the system says when it refuses a descriptor, or
    /// [`Unsupported`](io::ErrorKind::Unsupported) where the selector has none; on a closed loop
    /// [`NotConnected`](io::ErrorKind::NotConnected).
    #[cfg(unix)]
    pub fn descriptor(&self) -> io::Result<std::os::fd::OwnedFd> {
        let selector = self
            .handle
            .0
            .table
            .selector()
            .ok_or(crate::error::LoopClosed)?;
        match selector.descriptor() {
            Some(fd) => fd.try_clone_to_owned(),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the selector of this loop has no descriptor to wait on",
            )),
        }
    }

    /// Closes the loop: what is scheduled is dropped without being run.
    ///
    /// Tasks, closures, watches and what they hold are dropped here, in this thread; descriptors
    /// and memory are given back. Handles refuse new work from then on. Closing again does nothing.
    ///
    /// # Errors
    ///
    /// [`RunError::AlreadyRunning`] while the loop runs; nothing is changed then.
    pub fn close(&self) -> Result<(), RunError> {
        let core = &self.handle.0;
        if core.is_running() {
            return Err(RunError::AlreadyRunning);
        }
        if core.debug.get() && !core.is_closed() {
            self.report_pending_tasks();
        }
        core.close();
        Ok(())
    }

    fn report_pending_tasks(&self) {
        let core = &self.handle.0;
        for key in core.records.all() {
            let about = core.records.with(key, |task| (task.name(), task.place));
            if let Some((name, place)) = about {
                core.report(
                    ExceptionContext::new("the loop is closed with a task still pending:")
                        .with_task(name, key)
                        .with_place(Some(place)),
                );
            }
        }
    }
}

impl Deref for EventLoop {
    type Target = LoopHandle;

    fn deref(&self) -> &LoopHandle {
        &self.handle
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        if !self.guest {
            // It is not running: a run borrows the loop.
            let _ = self.close();
        }
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EventLoop").field(&self.handle).finish()
    }
}

/// The future of a run, while it runs: a task whose body is on the caller's stack.
struct Main<'a, T> {
    core: &'a Rc<Core>,
    run: u32,
    key: TaskKey,
    waker: Waker,
    queue: Arc<MainWaker>,
    outcome: Option<Result<T, Ended>>,
}

/// How the future of a run ended, other than by its output.
enum Ended {
    Panicked(Box<dyn std::any::Any + Send>),
    Cancelled,
}

impl<'a, T> Main<'a, T> {
    fn new(core: &'a Rc<Core>, running: &Running, place: &'static Location<'static>) -> Self {
        let run = running.number();
        let queue = Arc::new(MainWaker {
            letters: Arc::clone(&core.letters),
            run,
            queued: AtomicBool::new(true),
        });
        let waker = Waker::from(Arc::clone(&queue));
        let mut record = Record::new(place);
        record.waker = Some(waker.clone());
        record.rare().context = running.context();
        let key = core.records.next_key();
        core.records.insert(key, record);
        core.join(Ready::Main(run));
        Self {
            core,
            run,
            key,
            waker,
            queue,
            outcome: None,
        }
    }

    fn poll<F: Future<Output = T>>(&mut self, run: u32, future: Pin<&mut F>) {
        if run != self.run || self.outcome.is_some() {
            return;
        }
        self.queue.queued.store(false, Ordering::Release);
        let records = &self.core.records;
        let begun = records.with(self.key, |task| {
            (task.must_end(), task.take_context(), task.place)
        });
        let Some((must_end, context, place)) = begun else {
            return;
        };
        if must_end {
            self.outcome = Some(Err(Ended::Cancelled));
            return self.core.stop();
        }

        let outer = records.enter(self.key);
        let entered = context::swap(context);
        if self.core.debug.get() {
            let task = records.with(self.key, |task| task.name());
            self.core.note_item(Noted { place, task });
        }
        let mut cx = PollContext::from_waker(&self.waker);
        let polled = panic::catch_unwind(AssertUnwindSafe(|| future.poll(&mut cx)));
        let context = context::swap(entered);
        records.enter(outer);
        drop(records.with(self.key, |task| {
            std::mem::replace(&mut task.rare().context, context)
        }));
        self.outcome = match polled {
            Ok(Poll::Pending) => return,
            // A request that precedes the return wins.
            Ok(Poll::Ready(_)) if records.with(self.key, |task| task.must_end()) == Some(true) => {
                Some(Err(Ended::Cancelled))
            }
            Ok(Poll::Ready(value)) => Some(Ok(value)),
            Err(payload) => Some(Err(Ended::Panicked(payload))),
        };
        self.core.stop();
    }

    fn outcome(&mut self) -> Result<T, RunError> {
        match self.outcome.take() {
            Some(Ok(value)) => Ok(value),
            Some(Err(Ended::Cancelled)) => {
                let asked = crate::task::take_request(self.core, self.key);
                Err(RunError::Cancelled(asked.unwrap_or_default()))
            }
            Some(Err(Ended::Panicked(payload))) => panic::resume_unwind(payload),
            None => Err(RunError::Stopped),
        }
    }
}

impl<T> Drop for Main<'_, T> {
    fn drop(&mut self) {
        // From now on its wakers are silent, and its record is gone.
        self.queue.queued.store(true, Ordering::Release);
        let record: Option<Record> = self.core.records.remove(self.key);
        drop_quietly(record);
        if let (Some(Err(Ended::Panicked(payload))), false) =
            (self.outcome.take(), thread::panicking())
        {
            drop_quietly(payload);
        }
    }
}

struct MainWaker {
    letters: Arc<Letters>,
    run: u32,
    queued: AtomicBool,
}

impl Wake for MainWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        match home(&self.letters) {
            Some(core) => core.join(Ready::Main(self.run)),
            // A closed loop has no run to wake.
            None => drop(self.letters.post(Letter::Main(self.run))),
        }
    }
}

#[cfg(feature = "async-io")]
mod with_async_io {
    //! Driving async-io's reactor from the loop's thread.

    use super::*;

    impl EventLoop {
        /// Runs the loop until `future` is complete, driving async-io's reactor in the same thread.
        ///
        /// Futures of async-io work in any task of any loop, because a wake from its own thread
        /// comes in by the letter-box. Here the loop's thread waits for both, so that no wake has
        /// to cross threads (async-io keeps its thread all the same, asleep).
        ///
        /// # Errors
        ///
        /// As [`run_until_complete`](EventLoop::run_until_complete); a virtual clock is refused
        /// with [`Unsupported`](io::ErrorKind::Unsupported), since async-io lives by the system's.
        ///
        /// # Panics
        ///
        /// A panic of `future` goes on in the caller.
        ///
        /// # Examples
        ///
        /// ```
        /// use std::time::Duration;
        ///
        /// let event_loop = coloop::EventLoop::new()?;
        /// event_loop.run_with_async_io(async {
        ///     async_io::Timer::after(Duration::from_millis(1)).await;
        /// })?;
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[track_caller]
        pub fn run_with_async_io<F: IntoFuture>(&self, future: F) -> Result<F::Output, RunError> {
            let core = &self.handle.0;
            if core.clock().is_virtual() {
                return Err(RunError::Io(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "async-io lives by the system's clock: run this loop by itself",
                )));
            }
            let driver = Driver::Host(Some(Duration::ZERO));
            let place = Location::caller();
            let mut running = Some(core.begin(driver)?);
            let mut main = match &running {
                Some(running) => Main::new(core, running, place),
                None => return Err(RunError::Closed),
            };
            let mut future = pin!(future.into_future());
            let door = async_io::Async::new(self.descriptor()?)?;
            async_io::block_on(async {
                loop {
                    // Entered for each turn only: while async-io waits, the loop counts as asleep.
                    let entered = match running.take() {
                        Some(running) => running,
                        None => core.begin(driver)?,
                    };
                    let leave = core.turns(driver, &mut |run| main.poll(run, future.as_mut()))?;
                    drop(entered);
                    if leave {
                        return main.outcome();
                    }
                    if !self.is_idle() {
                        crate::time::yield_now().await;
                        continue;
                    }
                    let readable = pin!(door.readable());
                    match self.deadline() {
                        None => readable.await?,
                        Some(at) => {
                            let timer = async_io::Timer::at(at);
                            futures::future::select(readable, timer).await;
                        }
                    }
                }
            })
        }
    }
}
