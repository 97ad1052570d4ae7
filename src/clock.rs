//! The clock a loop lives by: the system's, or one that a test moves.
//!
//! The loop reads it after each wait, and in between where a deadline is computed from "now".
//! Inside the crate a point in time is a [`Ticks`]: nanoseconds from the loop's creation, signed,
//! because a deadline in the past still has its place among other deadlines of the past.
//!
//! What must always hold: conversions saturate, they never overflow. A deadline more than 292 years
//! away is "never": it is kept, it can be cancelled, and it does not come.

use std::time::{Duration, Instant};

/// Tells a loop the time.
///
/// [`SystemClock`] is the default; [`testing::Clock`](crate::testing::Clock) stands still until a
/// test moves it or the loop jumps. A clock may repeat itself, and even step back: no timer fires
/// twice and none is lost.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc, time::{Duration, Instant}};
/// use coloop::{Clock, EventLoop};
///
/// /// Time runs a thousand times as fast.
/// struct Fast(Instant);
/// impl Clock for Fast {
///     fn now(&self) -> Instant {
///         self.0 + self.0.elapsed() * 1000
///     }
/// }
///
/// let event_loop = EventLoop::builder().clock(Rc::new(Fast(Instant::now()))).build()?;
/// let before = event_loop.time();
/// event_loop.run_until_complete(coloop::sleep(Duration::from_millis(1)))?;
/// assert!(event_loop.time() >= before + Duration::from_millis(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Clock {
    /// Reads the clock.
    fn now(&self) -> Instant;

    /// Moves a virtual clock to `deadline` and says that it did.
    ///
    /// The loop calls it in place of waiting when nothing is ready and nothing outside could make
    /// something ready before `deadline`. The default is a clock that cannot be moved.
    fn jump(&self, deadline: Instant) -> bool {
        let _ = deadline;
        false
    }

    /// Tells whether time stands still unless [`jump`](Clock::jump) or a test moves it.
    fn is_virtual(&self) -> bool {
        false
    }
}

/// Reads the monotonic clock of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A point in time: nanoseconds from the origin of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticks(pub(crate) i64);

impl Ticks {
    /// The deadline that does not come.
    pub(crate) const NEVER: Self = Self(i64::MAX);

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(nanos(delay)))
    }

    /// How long it is from `now` until here; nothing if it is past.
    pub(crate) fn since(self, now: Self) -> Duration {
        let nanos = i128::from(self.0) - i128::from(now.0);
        Duration::from_nanos(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// The instant that a loop calls zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin(pub(crate) Instant);

impl Origin {
    pub(crate) fn ticks(self, instant: Instant) -> Ticks {
        match instant.checked_duration_since(self.0) {
            Some(after) => Ticks(nanos(after)),
            None => Ticks(-nanos(self.0.saturating_duration_since(instant))),
        }
    }

    /// The instant of `ticks`, or the nearest one the platform can express.
    pub(crate) fn instant(self, ticks: Ticks) -> Instant {
        let distance = Duration::from_nanos(ticks.0.unsigned_abs());
        let instant = if ticks.0 < 0 {
            self.0.checked_sub(distance)
        } else {
            self.0.checked_add(distance)
        };
        instant.unwrap_or(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_keep_the_past_in_order_and_saturate_in_the_future() {
        let origin = Origin(Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(origin.ticks(origin.0), Ticks(0));
        assert_eq!(origin.ticks(origin.0 + second), Ticks(1_000_000_000));
        if let Some(past) = origin.0.checked_sub(second) {
            assert_eq!(origin.ticks(past), Ticks(-1_000_000_000));
            assert_eq!(origin.instant(Ticks(-1_000_000_000)), past);
        }
        assert_eq!(Ticks(5).after(Duration::MAX), Ticks::NEVER);
        assert_eq!(Ticks(-5).after(second), Ticks(999_999_995));
        assert_eq!(
            Ticks::NEVER.since(Ticks(i64::MIN)),
            Duration::from_nanos(u64::MAX)
        );
        assert_eq!(Ticks(3).since(Ticks(9)), Duration::ZERO);
    }
}
