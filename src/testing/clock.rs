//! A clock that a test holds in its hand.
//!
//! It moves when the test moves it, and when the loop has nothing to do before the next deadline.
//! Nothing else makes time pass, so a test of a day takes no time and never flakes.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Stands still, until a test moves it or a loop has nothing to do but wait for a deadline.
///
/// The loop jumps only when nothing outside could come first: no watched descriptor, no
/// [`Hold`](crate::Hold). Where something could, it waits for it in real time, and gives up after
/// five seconds with [`RunError::Stalled`](crate::RunError::Stalled), naming what it waited for.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use coloop::{EventLoop, testing};
///
/// let clock = testing::Clock::new();
/// let event_loop = EventLoop::builder().clock(clock.clone()).build()?;
/// event_loop.run_until_complete(coloop::sleep(Duration::from_secs(3600)))?;
/// assert_eq!(clock.elapsed(), Duration::from_secs(3600));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Clock {
    origin: Instant,
    now: Cell<Instant>,
}

impl Clock {
    /// Makes a clock that starts now.
    pub fn new() -> Rc<Self> {
        let origin = Instant::now();
        Rc::new(Self {
            origin,
            now: Cell::new(origin),
        })
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.now.set(self.now.get() + by);
    }

    /// Sets the clock, also to an earlier time: a loop must survive that.
    pub fn set(&self, now: Instant) {
        self.now.set(now);
    }

    /// Returns how far the clock has been moved from where it started.
    pub fn elapsed(&self) -> Duration {
        self.now.get().saturating_duration_since(self.origin)
    }
}

impl crate::Clock for Clock {
    fn now(&self) -> Instant {
        self.now.get()
    }

    fn jump(&self, deadline: Instant) -> bool {
        self.now.set(self.now.get().max(deadline));
        true
    }

    fn is_virtual(&self) -> bool {
        true
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("elapsed", &self.elapsed())
            .finish()
    }
}
