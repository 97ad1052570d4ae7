//! `epoll_pwait2` on a poller's descriptor: one system call a wait, to the nanosecond.
//!
//! Kernels before 5.11, and some sandboxes, do not have the call; that is remembered, and
//! `epoll_wait` takes its place with the timeout rounded up to the next millisecond.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Room for one wait's events; what does not fit is reported by the next wait.
pub(crate) struct Events(Vec<libc::epoll_event>);

const CAPACITY: usize = 1024;

/// The kernel's own form of a timeout, the same on every architecture.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(CAPACITY))
    }

    /// The events of the last wait: key and flags.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.0.iter().map(|event| (event.u64, event.events))
    }

    /// Waits; an interrupted wait counts as one with no events.
    pub(crate) fn wait(
        &mut self,
        epoll: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        static NO_PWAIT2: AtomicBool = AtomicBool::new(false);

        self.0.clear();
        let mut count = -1;
        if !NO_PWAIT2.load(Ordering::Relaxed) {
            count = self.pwait2(epoll, timeout);
            if count < 0 {
                let error = io::Error::last_os_error();
                // EPERM is what a sandbox answers that does not know the call.
                if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
                    return interrupted_is_fine(error);
                }
                NO_PWAIT2.store(true, Ordering::Relaxed);
            }
        }
        if count < 0 {
            count = self.wait_millis(epoll, timeout);
            if count < 0 {
                return interrupted_is_fine(io::Error::last_os_error());
            }
        }
        self.filled(count);
        Ok(())
    }

    #[expect(
        unsafe_code,
        reason = "no crate calls epoll_pwait2 where the kernel may lack it"
    )]
    fn pwait2(&mut self, epoll: BorrowedFd<'_>, timeout: Option<Duration>) -> i64 {
        let timeout = timeout.map(|timeout| Timespec {
            seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            nanos: i64::from(timeout.subsec_nanos()),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: `epoll_pwait2(2)` writes at most `CAPACITY` events to the buffer, whose capacity
        // that is, and reads the timeout and no signal mask; both pointers live to the end of the
        // call, and the descriptor is borrowed for it.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                epoll.as_raw_fd(),
                self.0.as_mut_ptr(),
                CAPACITY as libc::c_int,
                timeout,
                ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        i64::from(count as i32)
    }

    #[expect(unsafe_code, reason = "shares its buffer with the call above")]
    fn wait_millis(&mut self, epoll: BorrowedFd<'_>, timeout: Option<Duration>) -> i64 {
        let millis = timeout.map_or(-1, |timeout| {
            let up = timeout.as_nanos().div_ceil(1_000_000);
            libc::c_int::try_from(up).unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: `epoll_wait(2)` writes at most `CAPACITY` events to the buffer, whose capacity
        // that is; the pointer lives to the end of the call and the descriptor is borrowed for it.
        let count = unsafe {
            libc::epoll_wait(
                epoll.as_raw_fd(),
                self.0.as_mut_ptr(),
                CAPACITY as libc::c_int,
                millis,
            )
        };
        i64::from(count)
    }

    #[expect(unsafe_code, reason = "the kernel has filled the buffer")]
    fn filled(&mut self, count: i64) {
        let count = usize::try_from(count).unwrap_or(0).min(CAPACITY);
        // SAFETY: the kernel has just written `count` events to the start of the buffer, and
        // `count` is no more than its capacity.
        unsafe { self.0.set_len(count) };
    }
}

fn interrupted_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted {
        Ok(())
    } else {
        Err(error)
    }
}
