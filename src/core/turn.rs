//! The turn: the seven steps of the law, and how often a busy loop looks at the system.
//!
//! Called by whoever has entered the loop. What a step finds it moves to the line; only step 6 runs
//! anything. A panic of foreign code is caught once for all items, and the turn goes on behind it.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use super::Core;
use crate::clock::Ticks;
use crate::context;
use crate::error::RunError;
use crate::key::{Direction, TimerKey, WatchKey};
use crate::ready::Ready;
use crate::report::{self, SlowCallback};
use crate::selector::table::Wants;
use crate::selector::{Readiness, Selector};
use crate::sys::fork;
use crate::timers::Due;

/// Who drives a turn.
#[derive(Clone, Copy)]
pub(crate) enum Driver {
    /// The loop itself, until it is stopped.
    Run,
    /// A host, which says how long the turn may wait.
    Host(Option<Duration>),
}

/// How often a busy loop looks at the system.
///
/// A wait costs far more than an item. While the line is not empty the loop waits only once so many
/// items have run since the last wait, or 200 µs have passed by a clock that it reads every 8
/// items. It never skips the wait on a run's first turn, on a turn that begins with a stop asked,
/// in debug mode, when a host drives the turns, or with a caller's selector.
pub(super) struct Pace {
    poll_every: u32,
    own_selector: bool,
    /// How many items may still run before the next wait; at zero the turn waits.
    fuel: Cell<u32>,
    /// How many items may still run before the next reading of the clock.
    until_reading: Cell<u32>,
    /// When the last wait ended: the last reading of the clock, until there is a later one.
    waited_at: Cell<Option<Ticks>>,
}

impl Pace {
    pub(super) fn new(poll_every: u32, own_selector: bool) -> Self {
        Self {
            poll_every,
            own_selector,
            fuel: Cell::new(0),
            until_reading: Cell::new(0),
            waited_at: Cell::new(Some(Ticks(0))),
        }
    }

    /// Lets the next turn wait.
    pub(super) fn wait_next(&self) {
        self.fuel.set(0);
    }

    /// Notes that the clock has been read.
    pub(super) fn clock_read(&self) {
        self.until_reading.set(ITEMS_BETWEEN_READINGS);
    }

    /// Notes that the last reading of the clock was made at the end of a wait.
    pub(super) fn waited(&self) {
        self.waited_at.set(None);
    }

    /// Whether the end of the last wait is known by the last reading of the clock alone.
    pub(super) fn waited_at_last_reading(&self) -> bool {
        self.waited_at.get().is_none()
    }

    /// Keeps what that reading said: another one is about to take its place.
    pub(super) fn keep_waited_at(&self, now: Ticks) {
        self.waited_at.set(Some(now));
    }

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

impl Core {
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
        self.table.ready(&mut reported, |key, direction| {
            self.line.push(Ready::Io(key, direction));
        });
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
        if pace.fuel.get() == 0 || self.line.is_empty() || self.letters.stop_asked() {
            return false;
        }
        if pace.until_reading.get() == 0 {
            self.read_clock();
        }
        let waited_at = pace.waited_at.get().unwrap_or_else(|| self.now());
        self.now().0.saturating_sub(waited_at.0) < MOST_BETWEEN_WAITS
    }

    fn park(&self, driver: Driver, reported: &mut Vec<Readiness>) -> Result<(), RunError> {
        let selector = self.table.selector().ok_or(RunError::Closed)?;
        // Letters are looked at once more by who says "asleep".
        let busy = self.stopping.get() || !self.line.is_empty();
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
        } else if self.virtual_clock {
            self.park_virtually(&*selector, driver, reported)?;
        } else {
            self.sleep(&*selector, timeout, reported)?;
        }
        self.note_wait();
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
        self.timers.expire(self.now(), &mut due);
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

    #[inline(always)]
    fn run_watcher(&self, key: WatchKey, direction: Direction) {
        let Some(watcher) = self.table.arrived(key, direction) else {
            return;
        };
        if watcher.ready(direction, &self.here) == Wants::Pause {
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
