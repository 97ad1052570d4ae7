//! The handshake that lets another thread wake the loop exactly when it sleeps.
//!
//! Called by the letter-box on both sides: the loop says when it falls asleep and when it is awake,
//! a poster asks after its push whether it has to ring. It holds one flag and no queue, so that
//! `tests/loom.rs` can include this file alone and explore every interleaving.
//!
//! What must always hold:
//!
//! 1. The loop calls [`Doorbell::sleep`] and *then* looks at its letters once more before it waits.
//! 2. A poster pushes its letter and *then* calls [`Doorbell::must_ring`].
//! 3. So either the loop sees the letter or the poster sees the sleeper; one ring wakes one sleep.
//!
//! It does not ring: what a [`Bell`] is belongs to the selector.

#[cfg(coloop_loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(coloop_loom))]
use std::sync::atomic::{AtomicBool, Ordering};

/// Wakes a loop that sleeps in its selector, from any thread.
///
/// Made by a [`Selector`](crate::Selector) and rung only while the loop is asleep, once a sleep.
pub trait Bell: Send + Sync {
    /// Makes the selector's current wait return, or its next one if none is going on.
    fn ring(&self);
}

/// The flag of the handshake.
pub(crate) struct Doorbell {
    asleep: AtomicBool,
}

impl Doorbell {
    /// Makes the doorbell of a loop that has not started: it counts as asleep.
    pub(crate) fn new() -> Self {
        Self {
            asleep: AtomicBool::new(true),
        }
    }

    /// Says "asleep". The caller looks at its letters once more before it waits.
    pub(crate) fn sleep(&self) {
        // A plain store in place of the swap loses wakes, and the model checker shows it: the store
        // need not see the poster's swap, so the look that follows need not see its letter either.
        // Two read-modify-writes of one flag are always ordered, whichever comes first.
        self.asleep.swap(true, Ordering::AcqRel);
    }

    /// Says "awake": from now on nobody has to ring.
    pub(crate) fn wake(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Tells a poster that has pushed its letter whether it is the one to ring.
    pub(crate) fn must_ring(&self) -> bool {
        self.asleep.swap(false, Ordering::AcqRel)
    }
}
