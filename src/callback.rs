//! Handles of scheduled callbacks.
//!
//! A handle is a number: of a place in the line, or of a slot on the shelf. Dropping it does
//! nothing; the callback belongs to the loop.

use std::cell::Cell;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::time::Instant;

use crate::clock::Ticks;
use crate::context::Context;
use crate::core::Core;
use crate::error::drop_quietly;
use crate::key::TimerKey;

/// Cancels a callback that has not run yet; made by
/// [`LoopHandle::call_soon`](crate::LoopHandle::call_soon).
///
/// Dropping a handle does not cancel.
pub struct Handle {
    core: Rc<Core>,
    number: u64,
    cancelled: Cell<bool>,
    context: Option<Context>,
}

impl Handle {
    pub(crate) fn new(core: &Rc<Core>, number: u64, context: Option<Context>) -> Self {
        Self {
            core: Rc::clone(core),
            number,
            cancelled: Cell::new(false),
            context,
        }
    }

    /// The handle of a callback that a closed loop has refused.
    pub(crate) fn refused(core: &Rc<Core>) -> Self {
        Self {
            core: Rc::clone(core),
            number: u64::MAX,
            cancelled: Cell::new(true),
            context: None,
        }
    }

    /// Cancels the callback and says whether that was still possible.
    ///
    /// The closure, and what it holds, is dropped before this returns. It has no effect on a
    /// callback that has run, is running, or is cancelled already.
    ///
    /// # Examples
    ///
    /// ```
    /// let event_loop = coloop::EventLoop::new()?;
    /// let handle = event_loop.call_soon(|| unreachable!("it was cancelled"));
    /// assert!(handle.cancel());
    /// assert!(handle.is_cancelled() && !handle.cancel());
    /// event_loop.stop();
    /// event_loop.run_forever()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cancel(&self) -> bool {
        let taken = self.core.line.take(self.number);
        let cancelled = taken.is_some();
        if cancelled {
            self.cancelled.set(true);
        }
        drop_quietly(taken);
        cancelled
    }

    /// Tells whether the callback was cancelled; `false` once it has run.
    #[doc(alias = "cancelled")]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Returns the context in which the callback runs.
    #[doc(alias = "get_context")]
    pub fn context(&self) -> Context {
        self.context.clone().unwrap_or_default()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Cancels a timer that has not fired yet; made by
/// [`LoopHandle::call_later`](crate::LoopHandle::call_later) and
/// [`LoopHandle::call_at`](crate::LoopHandle::call_at).
///
/// Dropping a handle does not cancel. Handles are ordered by deadline.
pub struct TimerHandle {
    core: Rc<Core>,
    key: TimerKey,
    deadline: Ticks,
    cancelled: Cell<bool>,
    context: Option<Context>,
}

impl TimerHandle {
    pub(crate) fn new(
        core: &Rc<Core>,
        key: TimerKey,
        deadline: Ticks,
        context: Option<Context>,
    ) -> Self {
        Self {
            core: Rc::clone(core),
            key,
            deadline,
            cancelled: Cell::new(false),
            context,
        }
    }

    pub(crate) fn refused(core: &Rc<Core>, deadline: Ticks) -> Self {
        let key = TimerKey {
            slot: u32::MAX,
            generation: 0,
        };
        Self {
            core: Rc::clone(core),
            key,
            deadline,
            cancelled: Cell::new(true),
            context: None,
        }
    }

    /// Cancels the timer and says whether that was still possible.
    ///
    /// The closure is dropped before this returns. A timer that is due but has not run yet, because
    /// others are before it in the same turn, can still be cancelled.
    pub fn cancel(&self) -> bool {
        let removed = self.core.timers.remove(self.key);
        let cancelled = removed.is_some();
        if cancelled {
            self.cancelled.set(true);
        }
        drop_quietly(removed);
        cancelled
    }

    /// Tells whether the timer was cancelled; `false` once it has fired.
    #[doc(alias = "cancelled")]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.get()
    }

    /// Returns the deadline; it stays the same after the timer has fired or was cancelled.
    ///
    /// A deadline more than 292 years away is shown as the farthest instant that can be shown.
    pub fn when(&self) -> Instant {
        self.core.origin().instant(self.deadline)
    }

    /// Returns the context in which the callback runs.
    #[doc(alias = "get_context")]
    pub fn context(&self) -> Context {
        self.context.clone().unwrap_or_default()
    }
}

impl fmt::Debug for TimerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerHandle")
            .field("when", &self.when())
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl PartialEq for TimerHandle {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && Rc::ptr_eq(&self.core, &other.core)
    }
}

impl Eq for TimerHandle {}

impl Hash for TimerHandle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl PartialOrd for TimerHandle {
    /// Orders two timers of one loop by deadline; different timers of one deadline are not ordered.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.when().cmp(&other.when()) {
            Ordering::Equal => (self == other).then_some(Ordering::Equal),
            unequal => Some(unequal),
        }
    }
}
