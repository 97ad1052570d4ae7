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
//! 5–7. The steps stand in `turn`; `home` knows whose loop is whose, `reports` where errors go, and
//! `close` takes everything down.
//!
//! What must always hold: no borrow is alive while foreign code runs, which is why every organ
//! keeps its cells to itself; and a panic of foreign code ends at its item.

mod close;
mod home;
mod reports;
mod turn;

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use self::home::{Running, home, schedule};
use self::reports::{ExceptionHandler, SlowHook};
pub(crate) use self::reports::{Noted, Shared, default_handler};
pub(crate) use self::turn::Driver;
use self::turn::Pace;
use crate::clock::{Clock, Origin, Ticks};
use crate::error::drop_quietly;
use crate::random::Random;
use crate::ready::{Letters, Line, Ready};
use crate::record::Records;
use crate::report::PanicPolicy;
use crate::selector::table::Table;
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

/// What makes up a loop.
pub(crate) struct Core {
    this: Weak<Self>,
    pub(crate) line: Line,
    pub(crate) letters: Arc<Letters>,
    pub(crate) timers: Timers,
    pub(crate) table: Table,
    pub(crate) records: Records,
    pub(crate) handler: Shared<ExceptionHandler>,
    pub(crate) slow_hook: Shared<SlowHook>,
    pub(crate) policy: Cell<PanicPolicy>,
    pub(crate) debug: Cell<bool>,
    pub(crate) slow: Cell<Duration>,
    pub(crate) has_task_factory: Cell<bool>,
    extensions: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    random: RefCell<Random>,
    clock: Rc<dyn Clock>,
    virtual_clock: bool,
    origin: Origin,
    /// The last reading of the clock, and its ticks, worked out for whoever asks first.
    read: Cell<Instant>,
    now: Cell<Option<Ticks>>,
    state: Cell<State>,
    stopping: Cell<bool>,
    /// The line of a closed loop is being dropped, further up in this thread.
    dropping: Cell<bool>,
    /// Whether a turn is at its items, and how many it has still to run.
    working: Cell<bool>,
    left: Cell<usize>,
    pace: Pace,
    /// Scratch of the turn, empty between its steps.
    reported: Cell<Vec<Readiness>>,
    due: Cell<Vec<Due>>,
    /// What sockets are read into, lent to one at a time.
    read_buffer: Cell<Option<Box<[u8]>>>,
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

/// The most that one call of a protocol is given, asyncio's figure.
const READ_BUFFER: usize = 256 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    Closed,
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
            handler: Shared::new(),
            slow_hook: Shared::new(),
            policy: Cell::new(parts.policy),
            debug: Cell::new(parts.debug),
            slow: Cell::new(Duration::from_millis(100)),
            has_task_factory: Cell::new(false),
            extensions: RefCell::default(),
            random: RefCell::new(parts.seed.map_or_else(Random::from_entropy, Random::new)),
            virtual_clock: parts.clock.is_virtual(),
            clock: parts.clock,
            origin,
            read: Cell::new(origin.0),
            now: Cell::new(Some(Ticks(0))),
            state: Cell::new(State::Idle),
            stopping: Cell::new(false),
            dropping: Cell::new(false),
            working: Cell::new(false),
            left: Cell::new(0),
            pace: Pace::new(parts.poll_every, parts.own_selector),
            reported: Cell::default(),
            due: Cell::default(),
            read_buffer: Cell::new(None),
            here: Cell::new(None),
            here_task: Cell::new(None),
            escaped: Cell::new(None),
            escaping: Cell::new(false),
            timer_slack: parts.timer_slack,
            runs: Cell::new(0),
            forks: fork::generation(),
        });
        home::move_in(&core);
        core
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
        self.pace.wait_next();
    }

    pub(crate) fn set_debug(&self, debug: bool) {
        self.debug.set(debug);
        self.pace.wait_next();
    }

    /// The time of the last reading.
    #[inline]
    pub(crate) fn now(&self) -> Ticks {
        match self.now.get() {
            Some(now) => now,
            None => self.work_out_now(),
        }
    }

    fn work_out_now(&self) -> Ticks {
        let now = self.origin.ticks(self.read.get());
        self.now.set(Some(now));
        now
    }

    /// Reads the clock.
    pub(crate) fn read_clock(&self) -> Ticks {
        if self.pace.waited_at_last_reading() {
            self.pace.keep_waited_at(self.now());
        }
        self.take_reading();
        self.now()
    }

    /// Reads the clock at the end of a wait, and leaves it to others to ask what it said.
    fn note_wait(&self) {
        self.take_reading();
        self.pace.waited();
    }

    fn take_reading(&self) {
        self.read.set(self.clock.now());
        self.now.set(None);
        self.pace.clock_read();
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

    /// Lends the buffer that sockets are read into.
    #[inline]
    pub(crate) fn lend_buffer(&self) -> Box<[u8]> {
        match self.read_buffer.take() {
            Some(buffer) => buffer,
            None => vec![0; READ_BUFFER].into_boxed_slice(),
        }
    }

    #[inline]
    pub(crate) fn return_buffer(&self, buffer: Box<[u8]>) {
        self.read_buffer.set(Some(buffer));
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

    /// Puts a callback of the loop's own at the end of the line; a closed loop drops it.
    pub(crate) fn queue(&self, f: Box<dyn FnOnce()>, place: &'static Location<'static>) {
        self.line.push(Ready::Callback(f, place));
        if self.is_closed() {
            self.drop_line();
        }
    }

    /// Drops what stands in the line, one after the other: what dies may queue more, and a long chain
    /// of that must not be a deep one.
    fn drop_line(&self) {
        if self.dropping.replace(true) {
            return;
        }
        while let Some(item) = self.line.pop() {
            drop_quietly(item);
        }
        self.dropping.set(false);
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
}
