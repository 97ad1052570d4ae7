//! The heart: one turn of the loop, and what a loop consists of.
//!
//! A loop owns one line (the ready queue), one shelf (timers), one table (watched sources) and one
//! letter-box (work from other threads). Nothing else wakes user code. One turn, in this order:
//!
//! 1. Timeout: 0 if the line is not empty or a stop was asked; else until the nearest deadline;
//!    else none.
//! 2. Park: say "asleep", look at the letter-box once more, wait on the selector, say "awake".
//! 3. Empty the letter-box onto the end of the line, in arrival order.
//! 4. For each I/O event, put the watcher at the end of the line, in the order the selector
//!    reported them.
//! 5. Read the clock; move every deadline that is due to the end of the line, by (deadline, order
//!    of creation).
//! 6. Count the line: n. Run exactly n, from the front. What they add waits for the next turn.
//! 7. If a stop was asked, leave.
//!
//! A turn with a non-empty line may leave out the system wait (see [`Pace`]), never steps 3 and
//! 5–7.
//!
//! What must always hold: no borrow is alive while foreign code runs, which is why every organ
//! keeps its cells to itself; and a panic of foreign code ends at its item.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use async_task::Runnable;

use crate::clock::{Clock, Origin, Ticks};
use crate::context::{self, Context};
use crate::error::{RunError, drop_quietly};
use crate::key::{Direction, TaskKey, TimerKey, WatchKey};
use crate::random::Random;
use crate::ready::{Letter, Letters, Line, Ready};
use crate::record::Records;
use crate::report::{self, ExceptionContext, PanicPolicy, SlowCallback};
use crate::selector::table::{Table, Wants};
use crate::selector::{Readiness, Selector};
use crate::sys::fork;
use crate::timers::{Due, Timers};

/// Uses a loop from its own thread: schedules callbacks, creates tasks, watches descriptors.
///
/// Clones are cheap and refer to the same loop. A handle does not keep the loop alive: when the
/// [`EventLoop`](crate::EventLoop) is dropped the loop is closed, and its handles refuse new work.
///
/// A handle cannot leave its thread; [`remote`](LoopHandle::remote) gives the way in from others:
///
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// let event_loop = coloop::EventLoop::new().unwrap();
/// send(event_loop.handle());
/// ```
#[derive(Clone)]
pub struct LoopHandle(pub(crate) Rc<Core>);

impl fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopHandle")
            .field("running", &self.0.is_running())
            .field("closed", &self.0.is_closed())
            .field("ready", &self.0.line.len())
            .field("tasks", &self.0.records.count())
            .finish()
    }
}

pub(crate) type ExceptionHandler = dyn Fn(&LoopHandle, &ExceptionContext);
pub(crate) type SlowHook = dyn Fn(&SlowCallback);

/// What makes up a loop.
pub(crate) struct Core {
    this: Weak<Self>,
    pub(crate) line: Line,
    pub(crate) letters: Arc<Letters>,
    pub(crate) timers: Timers,
    pub(crate) table: Table,
    pub(crate) records: Records,
    pub(crate) handler: Slot<ExceptionHandler>,
    pub(crate) slow_hook: Slot<SlowHook>,
    pub(crate) policy: Cell<PanicPolicy>,
    pub(crate) debug: Cell<bool>,
    pub(crate) slow: Cell<Duration>,
    pub(crate) has_task_factory: Cell<bool>,
    extensions: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    random: RefCell<Random>,
    clock: Rc<dyn Clock>,
    origin: Origin,
    /// The last reading of the clock.
    now: Cell<Ticks>,
    state: Cell<State>,
    stopping: Cell<bool>,
    /// Whether a turn is at its items, and how many it has still to run.
    working: Cell<bool>,
    left: Cell<usize>,
    pace: Pace,
    /// Scratch of the turn, empty between its steps.
    reported: Cell<Vec<Readiness>>,
    due: Cell<Vec<Due>>,
    /// Where the running item was made, and the task it is, for reports.
    here: Cell<Option<&'static Location<'static>>>,
    here_task: Cell<Option<Rc<str>>>,
    /// A panic that is to leave the run, and whether there is one.
    escaped: Cell<Option<Box<dyn Any + Send>>>,
    escaping: Cell<bool>,
    timer_slack: Duration,
    runs: Cell<u32>,
    forks: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    Closed,
}

/// How often a busy loop looks at the system.
///
/// A wait costs far more than an item. While the line is not empty the loop waits only once so many
/// items have run since the last wait, or 200 µs have passed by a clock that it reads every 8
/// items. It never skips the wait on a run's first turn, on a turn that begins with a stop asked,
/// in debug mode, when a host drives the turns, or with a caller's selector.
struct Pace {
    poll_every: u32,
    own_selector: bool,
    /// How many items may still run before the next wait; at zero the turn waits.
    fuel: Cell<u32>,
    /// How many items may still run before the next reading of the clock.
    until_reading: Cell<u32>,
    waited_at: Cell<Ticks>,
}

impl Pace {
    /// Counts what a turn is about to run.
    #[inline]
    fn count(&self, items: usize) {
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        self.fuel.set(self.fuel.get().saturating_sub(items));
        self.until_reading
            .set(self.until_reading.get().saturating_sub(items));
    }
}

const MOST_BETWEEN_WAITS: i64 = 200_000;
const ITEMS_BETWEEN_READINGS: u32 = 8;
/// How long a virtual clock waits for work outside, in real time.
const STALL: Duration = Duration::from_secs(5);

/// A cell for a shared piece of foreign code, which is never dropped under the borrow.
pub(crate) struct Slot<T: ?Sized>(RefCell<Option<Rc<T>>>);

impl<T: ?Sized> Slot<T> {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(None))
    }

    pub(crate) fn get(&self) -> Option<Rc<T>> {
        self.0.borrow().clone()
    }

    pub(crate) fn set(&self, value: Option<Rc<T>>) {
        let before = self.0.replace(value);
        drop_quietly(before);
    }
}

/// What a new loop is made of.
pub(crate) struct Parts {
    pub(crate) selector: Rc<dyn Selector>,
    pub(crate) own_selector: bool,
    pub(crate) clock: Rc<dyn Clock>,
    pub(crate) poll_every: u32,
    pub(crate) debug: bool,
    pub(crate) policy: PanicPolicy,
    pub(crate) seed: Option<u64>,
    pub(crate) timer_slack: Duration,
}

/// What runs, for reports.
pub(crate) struct Noted {
    pub(crate) place: &'static Location<'static>,
    pub(crate) task: Option<Rc<str>>,
}

/// Who drives a turn.
#[derive(Clone, Copy)]
pub(crate) enum Driver {
    /// The loop itself, until it is stopped.
    Run,
    /// A host, which says how long the turn may wait.
    Host(Option<Duration>),
}

thread_local! {
    /// The loop that runs in this thread.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
    /// The loops that were made in this thread, running or not.
    static HOMES: RefCell<Vec<Weak<Core>>> = const { RefCell::new(Vec::new()) };
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Rc<Self> {
        fork::watch();
        let letters = Arc::new(Letters::new(parts.selector.bell()));
        let origin = Origin(parts.clock.now());
        let core = Rc::new_cyclic(|this| Self {
            this: this.clone(),
            line: Line::new(),
            letters,
            timers: Timers::new(),
            table: Table::new(parts.selector),
            records: Records::new(),
            handler: Slot::new(),
            slow_hook: Slot::new(),
            policy: Cell::new(parts.policy),
            debug: Cell::new(parts.debug),
            slow: Cell::new(Duration::from_millis(100)),
            has_task_factory: Cell::new(false),
            extensions: RefCell::default(),
            random: RefCell::new(parts.seed.map_or_else(Random::from_entropy, Random::new)),
            clock: parts.clock,
            origin,
            now: Cell::new(Ticks(0)),
            state: Cell::new(State::Idle),
            stopping: Cell::new(false),
            working: Cell::new(false),
            left: Cell::new(0),
            pace: Pace {
                poll_every: parts.poll_every,
                own_selector: parts.own_selector,
                fuel: Cell::new(0),
                until_reading: Cell::new(0),
                waited_at: Cell::new(Ticks(0)),
            },
            reported: Cell::default(),
            due: Cell::default(),
            here: Cell::new(None),
            here_task: Cell::new(None),
            escaped: Cell::new(None),
            escaping: Cell::new(false),
            timer_slack: parts.timer_slack,
            runs: Cell::new(0),
            forks: fork::generation(),
        });
        // In a thread that is ending there are no homes any more: wakes go by the letter-box.
        let _ = HOMES.try_with(|homes| {
            let mut homes = homes.borrow_mut();
            homes.retain(|home| home.strong_count() > 0);
            homes.push(Rc::downgrade(&core));
        });
        core
    }

    /// The loop that runs in this thread.
    pub(crate) fn current() -> Option<Rc<Self>> {
        let core = CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()?;
        // A child that forked out of a running loop is in nobody's loop.
        (core.forks == fork::generation()).then_some(core)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state.get() == State::Running
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.get() == State::Closed
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get() || self.letters.stop_asked()
    }

    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        // A turn that begins with a stop asked waits.
        self.pace.fuel.set(0);
    }

    pub(crate) fn set_debug(&self, debug: bool) {
        self.debug.set(debug);
        self.pace.fuel.set(0);
    }

    /// The time of the last reading.
    pub(crate) fn now(&self) -> Ticks {
        self.now.get()
    }

    /// Reads the clock.
    pub(crate) fn read_clock(&self) -> Ticks {
        let now = self.origin.ticks(self.clock.now());
        self.now.set(now);
        self.pace.until_reading.set(ITEMS_BETWEEN_READINGS);
        now
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().next()
    }

    /// What a higher layer keeps for this loop.
    pub(crate) fn extension<T: Any>(&self) -> Option<Rc<T>> {
        let found = self.extensions.borrow().get(&TypeId::of::<T>()).cloned()?;
        found.downcast().ok()
    }

    pub(crate) fn extend<T: Any>(&self, value: Rc<T>) {
        let before = self
            .extensions
            .borrow_mut()
            .insert(TypeId::of::<T>(), value);
        drop(before);
    }

    /// Puts an item in the line from the loop's home thread: letters that came before go first.
    pub(crate) fn join(&self, item: Ready) {
        self.take_letters();
        self.line.push(item);
        if !self.is_running() {
            // Between the turns of a host, which may be asleep further up in this very thread.
            self.letters.ring_if_asleep();
        }
    }

    /// Puts a callback of the loop's own at the end of the line, unless the loop is closed.
    pub(crate) fn queue(&self, f: Box<dyn FnOnce()>, place: &'static Location<'static>) {
        if self.is_closed() {
            drop_quietly(f);
        } else {
            self.line.push(Ready::Callback(f, place));
        }
    }

    #[inline]
    fn take_letters(&self) {
        if !self.letters.is_empty() {
            self.empty_letter_box();
        }
    }

    #[cold]
    fn empty_letter_box(&self) {
        while let Some(letter) = self.letters.take() {
            self.line.push(letter.into());
        }
    }

    // ---- Running -----------------------------------------------------------------------------

    /// Enters the loop, unless it or another one is running in this thread.
    pub(crate) fn begin(self: &Rc<Self>, driver: Driver) -> Result<Running, RunError> {
        if self.forks != fork::generation() {
            return Err(RunError::Forked);
        }
        match self.state.get() {
            State::Running => return Err(RunError::AlreadyRunning),
            State::Closed => return Err(RunError::Closed),
            State::Idle => {}
        }
        if Self::current().is_some() {
            return Err(RunError::AnotherLoopRunning);
        }
        let entered = CURRENT.try_with(|current| current.replace(Some(Rc::clone(self))));
        match entered {
            Ok(before) => drop(before),
            Err(_) => return Err(RunError::Io(io::Error::other("the thread is ending"))),
        }
        self.state.set(State::Running);
        self.working.set(false);
        self.pace.fuel.set(0);
        self.letters.doorbell().wake();
        Ok(Running {
            core: Rc::clone(self),
            driver,
            task: self.records.enter(TaskKey::NONE),
            context: context::swap(None),
        })
    }

    /// Makes turns: one for a host, else until a stop is asked. Says whether one was.
    ///
    /// `main` polls the future of the run with the number it is given.
    pub(crate) fn turns(
        &self,
        driver: Driver,
        main: &mut dyn FnMut(u32),
    ) -> Result<bool, RunError> {
        loop {
            // One guard against panics for all turns: an item pays nothing for it.
            let made = panic::catch_unwind(AssertUnwindSafe(|| self.make_turns(driver, main)));
            match made {
                Ok(made) => return made,
                Err(payload) if self.working.get() => self.item_panicked(payload),
                // A caller's selector or clock; no item is to blame.
                Err(payload) => panic::resume_unwind(payload),
            }
            if self.escaping.get() {
                self.leave_by_panic();
            }
        }
    }

    fn make_turns(&self, driver: Driver, main: &mut dyn FnMut(u32)) -> Result<bool, RunError> {
        loop {
            // After a panic the turn goes on with the items that are left of it.
            if !self.working.get() {
                // 1. to 4.
                if self.may_skip_wait() {
                    self.take_letters();
                } else {
                    self.wait(driver)?;
                }

                // 5.
                if self.timers.any() {
                    self.expire();
                }

                // 6.
                let count = self.line.len();
                self.left.set(count);
                self.pace.count(count);
                self.working.set(true);
            }
            while self.left.get() > 0 {
                self.left.set(self.left.get() - 1);
                if self.debug.get() {
                    self.run_timed(main);
                } else {
                    self.run_item(main);
                }
                if self.escaping.get() {
                    self.leave_by_panic();
                }
            }
            self.working.set(false);

            // 7.
            self.notice_remote_stop();
            if self.stopping.get() || matches!(driver, Driver::Host(_)) {
                return Ok(self.stopping.get());
            }
        }
    }

    /// Lets a panic leave the run; the line behind it stays as it is.
    #[cold]
    fn leave_by_panic(&self) {
        self.working.set(false);
        self.escaping.set(false);
        if let Some(payload) = self.escaped.take() {
            panic::resume_unwind(payload);
        }
    }

    /// Steps 1 to 4 of a turn that waits.
    fn wait(&self, driver: Driver) -> Result<(), RunError> {
        if self.forks != fork::generation() {
            return Err(RunError::Forked);
        }
        self.notice_remote_stop();
        let mut reported = self.reported.take();
        let parked = self.park(driver, &mut reported);
        self.take_letters();
        for report in reported.drain(..) {
            for (key, direction) in self.table.ready(report).into_iter().flatten() {
                self.line.push(Ready::Io(key, direction));
            }
        }
        self.reported.set(reported);
        let pace = &self.pace;
        let skips = pace.own_selector && !self.debug.get() && matches!(driver, Driver::Run);
        pace.fuel.set(if skips && !self.stopping.get() {
            pace.poll_every
        } else {
            0
        });
        parked
    }

    fn notice_remote_stop(&self) {
        if self.letters.stop_asked() {
            self.letters.clear_stop();
            self.stopping.set(true);
        }
    }

    /// Whether this turn may leave out the system wait.
    #[inline]
    fn may_skip_wait(&self) -> bool {
        let pace = &self.pace;
        if pace.fuel.get() == 0 || self.line.is_empty() {
            return false;
        }
        if pace.until_reading.get() == 0 {
            self.read_clock();
        }
        self.now.get().0.saturating_sub(pace.waited_at.get().0) < MOST_BETWEEN_WAITS
    }

    fn park(&self, driver: Driver, reported: &mut Vec<Readiness>) -> Result<(), RunError> {
        let selector = self.table.selector().ok_or(RunError::Closed)?;
        let busy = self.stopping.get() || !self.line.is_empty() || !self.letters.is_empty();
        let mut timeout = if busy {
            Some(Duration::ZERO)
        } else {
            let deadline = self.wake_up_time();
            deadline.map(|at| at.since(self.read_clock()))
        };
        if let Driver::Host(Some(limit)) = driver {
            timeout = Some(timeout.map_or(limit, |timeout| timeout.min(limit)));
        }
        if timeout == Some(Duration::ZERO) {
            wait_on(&*selector, reported, timeout)?;
        } else if self.clock.is_virtual() {
            self.park_virtually(&*selector, driver, reported)?;
        } else {
            self.sleep(&*selector, timeout, reported)?;
        }
        self.pace.waited_at.set(self.read_clock());
        Ok(())
    }

    /// When the next timers are to be fired, if ever: the slack lets them gather.
    pub(crate) fn wake_up_time(&self) -> Option<Ticks> {
        let deadline = self
            .timers
            .next_deadline()
            .filter(|at| *at != Ticks::NEVER)?;
        Some(deadline.after(self.timer_slack))
    }

    /// Waits in the selector, unless a letter has come in the meantime.
    fn sleep(
        &self,
        selector: &dyn Selector,
        timeout: Option<Duration>,
        reported: &mut Vec<Readiness>,
    ) -> Result<(), RunError> {
        self.letters.doorbell().sleep();
        let came = !self.letters.is_empty() || self.letters.stop_asked();
        let waited = wait_on(
            selector,
            reported,
            if came { Some(Duration::ZERO) } else { timeout },
        );
        self.letters.doorbell().wake();
        Ok(waited?)
    }

    /// Jumps to the next deadline, unless something outside could come first.
    fn park_virtually(
        &self,
        selector: &dyn Selector,
        driver: Driver,
        reported: &mut Vec<Readiness>,
    ) -> Result<(), RunError> {
        let started = Instant::now();
        loop {
            wait_on(selector, reported, Some(Duration::ZERO))?;
            // Asked before the letters are looked at: a hold ends after its letter was posted.
            let alone = !self.letters.is_held() && !self.table.has_outside();
            if !reported.is_empty() || !self.letters.is_empty() || self.letters.stop_asked() {
                return Ok(());
            }
            let deadline = self.wake_up_time();
            let now = self.read_clock();
            if deadline.is_some_and(|at| at <= now) {
                return Ok(());
            }
            // The patience of a host is counted by the loop's clock as far as that can be moved.
            let limit = match driver {
                Driver::Host(limit) => limit.map(|limit| now.after(limit)),
                Driver::Run => None,
            };
            let target = [deadline, limit].into_iter().flatten().min();
            if let Some(at) = target
                && alone
                && self.clock.jump(self.origin.instant(at))
            {
                return Ok(());
            }
            if let Driver::Host(limit) = driver {
                return self.sleep(selector, limit, reported);
            }
            let patience = STALL.saturating_sub(started.elapsed());
            if patience.is_zero() {
                return Err(RunError::Stalled(self.outside()));
            }
            self.sleep(selector, Some(patience), reported)?;
            if !reported.is_empty() {
                return Ok(());
            }
        }
    }

    /// Names the work outside that may still bring something.
    fn outside(&self) -> String {
        let holds = self.letters.holds().into_iter().map(str::to_owned);
        let watched = self.table.outside().into_iter();
        let watched = watched.map(|(fd, place)| format!("descriptor {fd} (watched at {place})"));
        let names: Vec<_> = holds.chain(watched).collect();
        if names.is_empty() {
            "nothing: no timer is set, and nothing outside is known that could wake the loop".into()
        } else {
            names.join(", ")
        }
    }

    fn expire(&self) {
        if self.pace.until_reading.get() == 0 {
            self.read_clock();
        }
        let mut due = self.due.take();
        self.timers.expire(self.now.get(), &mut due);
        for due in due.drain(..) {
            match due {
                Due::Callback(key) => {
                    self.line.push(Ready::Timer(key));
                }
                Due::Wake(waker) => self.wake(waker),
            }
        }
        self.due.set(due);
    }

    /// Calls a waker, which may be foreign.
    pub(crate) fn wake(&self, waker: Waker) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            self.report(ExceptionContext::new("panic in a waker").with_payload(payload));
        }
    }

    /// Runs the item in front of the line.
    #[inline(always)]
    fn run_item(&self, main: &mut dyn FnMut(u32)) {
        match self.line.pop() {
            Some(Ready::Task(runnable)) => {
                runnable.run();
            }
            Some(Ready::Callback(f, place)) => {
                self.here.set(Some(place));
                f();
                context::clear();
            }
            Some(Ready::Io(key, direction)) => self.run_watcher(key, direction),
            Some(Ready::Timer(key)) => self.run_timer(key),
            Some(Ready::Main(run)) => main(run),
            Some(Ready::Cancelled) | None => {}
        }
    }

    #[inline(never)]
    fn run_watcher(&self, key: WatchKey, direction: Direction) {
        let Some(watcher) = self.table.arrived(key, direction) else {
            return;
        };
        self.here.set(Some(watcher.place()));
        if watcher.ready() == Wants::Pause {
            // A failure means that the descriptor is gone, and with it the interest.
            let _ = self.table.set_on(key, direction, false);
        }
        context::clear();
    }

    #[inline(never)]
    fn run_timer(&self, key: TimerKey) {
        let Some((f, place)) = self.timers.take_due(key) else {
            return;
        };
        self.here.set(Some(place));
        f();
        context::clear();
    }

    /// Runs an item and reports it if it held the loop for too long.
    #[cold]
    fn run_timed(&self, main: &mut dyn FnMut(u32)) {
        self.here.set(None);
        self.here_task.set(None);
        let began = self.read_clock();
        self.run_item(main);
        let duration = self.read_clock().since(began);
        if duration < self.slow.get() {
            return;
        }
        let slow = SlowCallback {
            duration,
            place: self.here.get(),
            task: self.here_task.take(),
        };
        match self.slow_hook.get() {
            Some(hook) => hook(&slow),
            None => report::line(&slow),
        }
    }

    /// Notes what runs, for reports, and returns what is to be noted again after it: whoever polls
    /// a task that begins eagerly. An item of the line has nobody above it.
    pub(crate) fn note_item(&self, item: Noted) -> Option<Noted> {
        let place = self.here.replace(Some(item.place));
        let task = self.here_task.replace(item.task);
        Some(Noted {
            place: place?,
            task,
        })
    }

    fn item_panicked(&self, payload: Box<dyn Any + Send>) {
        let context = context::take_unwound();
        self.records.enter(TaskKey::NONE);
        context::clear();
        let place = self.here.take();
        let report = ExceptionContext::new("panic in callback")
            .with_payload(payload)
            .with_place(place);
        self.report_in(context, report);
    }

    // ---- Reports -----------------------------------------------------------------------------

    /// Reports an error that nobody else can see.
    pub(crate) fn report(&self, report: ExceptionContext) {
        self.report_in(None, report);
    }

    /// Reports an error in the context of what failed.
    pub(crate) fn report_in(&self, context: Option<Context>, mut report: ExceptionContext) {
        if self.policy.get() == PanicPolicy::Propagate
            && self.is_running()
            && !self.escaping.get()
            && let Some(payload) = report.take_payload()
        {
            self.escaping.set(true);
            self.escaped.set(Some(payload.into_inner()));
            return;
        }
        let _entered = context::enter(context);
        self.call_handler(&report);
    }

    /// Calls the exception handler; whatever it does, the loop goes on.
    pub(crate) fn call_handler(&self, report: &ExceptionContext) {
        let (Some(handler), Some(core)) = (self.handler.get(), self.this.upgrade()) else {
            return default_handler(report);
        };
        let handle = LoopHandle(core);
        let called = panic::catch_unwind(AssertUnwindSafe(|| handler(&handle, report)));
        // The handler may have taken its own place: the last of it dies here, quietly.
        drop_quietly(handler);
        if let Err(payload) = called {
            let broken = ExceptionContext::new("unhandled error in exception handler")
                .with_error(format_args!("while it was told of \"{report}\""))
                .with_payload(payload);
            default_handler(&broken);
        }
    }

    // ---- Closing -----------------------------------------------------------------------------

    /// Breaks every cycle: all tasks, closures, watches die here, on the loop's thread.
    pub(crate) fn close(&self) {
        if self.is_closed() {
            return;
        }
        self.state.set(State::Closed);
        self.letters.refuse();
        loop {
            // What dies may wake and schedule; it is dropped in its turn, until nothing is left.
            for waker in self.records.wakers() {
                self.wake(waker);
            }
            self.take_letters();
            let mut idle = true;
            while let Some(item) = self.line.pop() {
                idle = false;
                drop_quietly(item);
            }
            for removed in self.timers.drain() {
                idle = false;
                drop_quietly(removed);
            }
            if self.line.is_empty() && self.letters.is_empty() && idle {
                if self.records.count() == 0 {
                    break;
                }
                // Another thread is about to post a task that it has woken.
                std::thread::yield_now();
            }
        }
        self.letters.close();
        // What came between the last look and the closing; from now on nothing comes.
        while let Some(letter) = self.letters.take() {
            drop_quietly(Ready::from(letter));
        }
        if self.forks == fork::generation() {
            let (removed, selector) = self.table.drain();
            removed.into_iter().for_each(drop_quietly);
            drop_quietly(selector);
        } else {
            // The registrations are the parent's: a child that took its copy apart would change
            // them.
            std::mem::forget(self.table.selector());
        }
        self.handler.set(None);
        self.slow_hook.set(None);
        let extensions = self.extensions.take();
        drop_quietly(extensions);
        self.line.shrink();
        let _ = HOMES.try_with(|homes| {
            homes
                .borrow_mut()
                .retain(|home| !std::ptr::eq(home.as_ptr(), self));
        });
    }
}

/// A loop that has been entered; dropping it leaves the loop again.
pub(crate) struct Running {
    core: Rc<Core>,
    driver: Driver,
    task: TaskKey,
    context: Option<Context>,
}

impl Running {
    /// The number of this run.
    pub(crate) fn number(&self) -> u32 {
        let number = self.core.runs.get().wrapping_add(1);
        self.core.runs.set(number);
        number
    }

    /// A copy of the context in which the run was started.
    pub(crate) fn context(&self) -> Option<Context> {
        self.context.as_ref().map(Context::copy)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let core = &self.core;
        core.stopping.set(false);
        core.state.set(State::Idle);
        drop_quietly(context::swap(self.context.take()));
        core.records.enter(self.task);
        let before = CURRENT.try_with(|current| current.take());
        drop(before);
        core.letters.doorbell().sleep();
        if matches!(self.driver, Driver::Host(_)) && !core.letters.is_empty() {
            // A letter that came while the loop was awake must still reach a host that now sleeps.
            core.letters.ring();
        }
    }
}

/// Waits; to be interrupted is to return early.
fn wait_on(
    selector: &dyn Selector,
    reported: &mut Vec<Readiness>,
    timeout: Option<Duration>,
) -> io::Result<()> {
    match selector.wait(reported, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        waited => waited,
    }
}

/// Puts a woken task in its loop's line, or in the letter-box from another thread.
pub(crate) fn schedule(runnable: Runnable<Arc<Letters>>) {
    let mut runnable = Some(runnable);
    // The usual case first, without touching a count: the loop that runs in this thread.
    let _ = CURRENT.try_with(|current| {
        let current = current.borrow();
        if let (Some(core), Some(woken)) = (&*current, &runnable)
            && Arc::ptr_eq(&core.letters, woken.metadata())
            && let Some(woken) = runnable.take()
        {
            core.join(Ready::Task(woken));
        }
    });
    if let Some(runnable) = runnable {
        schedule_elsewhere(runnable);
    }
}

#[cold]
fn schedule_elsewhere(runnable: Runnable<Arc<Letters>>) {
    let letters = Arc::clone(runnable.metadata());
    match home(&letters) {
        Some(core) => core.join(Ready::Task(runnable)),
        None => {
            if let Err(Letter::Task(runnable)) = letters.post(Letter::Task(runnable)) {
                // Cannot happen: the box is closed only when no task is left. A task must not die
                // on a foreign thread, so it would rather not die at all.
                std::mem::forget(runnable);
            }
        }
    }
}

/// The loop of these letters, if this is its home thread.
pub(crate) fn home(letters: &Arc<Letters>) -> Option<Rc<Core>> {
    let is_it = |core: &Rc<Core>| Arc::ptr_eq(&core.letters, letters);
    let current = CURRENT.try_with(|current| {
        current
            .borrow()
            .as_ref()
            .filter(|core| is_it(core))
            .cloned()
    });
    match current {
        Ok(Some(core)) => Some(core),
        _ => HOMES
            .try_with(|homes| homes.borrow().iter().filter_map(Weak::upgrade).find(is_it))
            .ok()
            .flatten(),
    }
}

/// Writes a report on the standard error stream.
pub(crate) fn default_handler(report: &ExceptionContext) {
    let told = panic::catch_unwind(AssertUnwindSafe(|| report::line(report)));
    if let Err(payload) = told {
        drop_quietly(payload);
        report::line(&format_args!(
            "{} (and it could not be shown)",
            report.message()
        ));
    }
}
