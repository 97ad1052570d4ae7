//! Tells a process that has forked from the one that made a loop.
//!
//! A child that goes on with its copy of a loop would change its parent's registrations, because
//! both share one kernel object. So every loop remembers the generation it was made in, and a child
//! is a generation on.

use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How often this process, or an ancestor, has forked since the first loop was made.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// Starts to count forks.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no crate covers pthread_atfork")]
pub(crate) fn watch() {
    use std::sync::Once;

    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is allowed after a fork, and it is a
        // function of this program: it is there for as long as the process is. A failure (no
        // memory) leaves forks unnoticed, as on other systems.
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn watch() {}
