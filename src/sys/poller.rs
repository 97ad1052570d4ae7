//! A poller that owns what it watches.
//!
//! `polling` asks its callers for one promise: a source is deleted before it is closed. Here the
//! source is handed over with its registration and comes back when it has been deleted, so the
//! promise is kept by construction.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use polling::{Event, PollMode};

use crate::doorbell::Bell;
use crate::selector::{Interest, Readiness, Source};

/// A source and what it is registered for.
pub(crate) struct Registered {
    source: Source,
    #[cfg(unix)]
    fd: std::os::fd::RawFd,
    interest: Interest,
}

/// A poller and, where the system has epoll, the way past it.
pub(crate) struct Poller {
    poller: Arc<polling::Poller>,
    #[cfg(all(target_os = "linux", not(coloop_poller_wait)))]
    events: std::cell::RefCell<super::epoll::Events>,
    #[cfg(not(all(target_os = "linux", not(coloop_poller_wait))))]
    events: std::cell::RefCell<polling::Events>,
}

impl Poller {
    /// Watches `source`; it stays open until [`delete`](Self::delete) gives it back.
    pub(crate) fn add(
        &self,
        key: usize,
        source: Source,
        interest: Interest,
    ) -> io::Result<Registered> {
        match &source {
            #[cfg(unix)]
            Source::Fd(owner) => {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&owner.as_fd());
                let mut registered = Registered {
                    source,
                    fd,
                    interest: Interest::NONE,
                };
                self.modify(key, &mut registered, interest)?;
                Ok(registered)
            }
            Source::Sim(_) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this selector serves descriptors only: give the loop a memory selector",
            )),
        }
    }

    #[cfg(unix)]
    #[expect(unsafe_code, reason = "the contract of polling::Poller::add_with_mode")]
    pub(crate) fn modify(
        &self,
        key: usize,
        registered: &mut Registered,
        interest: Interest,
    ) -> io::Result<()> {
        use std::os::fd::BorrowedFd;

        let event = Event::new(key, interest.readable, interest.writable);
        // SAFETY: `registered.source` owns the descriptor and lends it for as long as it lives
        // (`AsFd` on a value that is not moved out of its `Rc`), so the number is open.
        let fd = unsafe { BorrowedFd::borrow_raw(registered.fd) };
        match (registered.interest.is_none(), interest.is_none()) {
            (true, true) => {}
            (true, false) => {
                // SAFETY: `add_with_mode` wants the source to be deleted before it is closed:
                // `registered` keeps it open, and only `delete` below takes it out again.
                unsafe {
                    self.poller
                        .add_with_mode(registered.fd, event, PollMode::Level)?;
                };
            }
            (false, true) => self.poller.delete(fd)?,
            (false, false) => self.poller.modify_with_mode(fd, event, PollMode::Level)?,
        }
        registered.interest = interest;
        Ok(())
    }

    #[cfg(not(unix))]
    pub(crate) fn modify(&self, _: usize, _: &mut Registered, _: Interest) -> io::Result<()> {
        Ok(())
    }

    /// Stops watching and gives the source back.
    pub(crate) fn delete(&self, mut registered: Registered) -> Source {
        // A failure means that the system has forgotten the descriptor already.
        let _ = self.modify(0, &mut registered, Interest::NONE);
        registered.source
    }
}

#[cfg(all(target_os = "linux", not(coloop_poller_wait)))]
mod linux {
    use std::cell::RefCell;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::{Errno, read, write};

    use super::*;
    use crate::sys::epoll::Events;

    /// The key of the doorbell; `usize::MAX` is the poller's own.
    const BELL: usize = usize::MAX - 1;

    const READABLE: u32 =
        (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR | libc::EPOLLPRI)
            as u32;
    const WRITABLE: u32 = (libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR) as u32;

    struct EventFd(OwnedFd);

    impl Bell for EventFd {
        fn ring(&self) {
            // The count is full after 2^64 - 2 rings: reading it makes room. The bound is for a
            // system that answers so for ever.
            for _ in 0..1000 {
                match write(&self.0, &1_u64.to_ne_bytes()) {
                    Err(Errno::AGAIN) => {
                        let _ = read(&self.0, &mut [0; 8]);
                    }
                    Err(Errno::INTR) => {}
                    _ => return,
                }
            }
        }
    }

    impl Poller {
        pub(crate) fn new() -> io::Result<(Self, Arc<dyn Bell>)> {
            let poller = Arc::new(polling::Poller::new()?);
            let bell = Arc::new(EventFd(eventfd(
                0,
                EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
            )?));
            register(&poller, &bell.0)?;
            let events = RefCell::new(Events::new());
            Ok((Self { poller, events }, bell))
        }

        pub(crate) fn wait(
            &self,
            ready: &mut Vec<Readiness>,
            timeout: Option<Duration>,
        ) -> io::Result<()> {
            let mut events = self.events.borrow_mut();
            events.wait(self.poller.as_fd(), timeout)?;
            for (key, flags) in events.iter() {
                let key = key as usize;
                if key < BELL {
                    let (readable, writable) = (flags & READABLE != 0, flags & WRITABLE != 0);
                    ready.push(Readiness {
                        key,
                        readable,
                        writable,
                    });
                }
            }
            Ok(())
        }

        pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            Some(self.poller.as_fd())
        }
    }

    #[expect(unsafe_code, reason = "the contract of polling::Poller::add_with_mode")]
    fn register(poller: &polling::Poller, bell: &OwnedFd) -> io::Result<()> {
        // SAFETY: `add_with_mode` wants the source to be deleted before it is closed. The bell may
        // outlive the poller or be closed first; for epoll, which this module is for, either is
        // allowed: the kernel removes a closed descriptor from the set by itself, and no copy of
        // this one is ever made.
        unsafe { poller.add_with_mode(bell.as_raw_fd(), Event::readable(BELL), PollMode::Edge) }
    }
}

#[cfg(not(all(target_os = "linux", not(coloop_poller_wait))))]
mod portable {
    use std::cell::RefCell;

    use super::*;

    struct Notifier(Arc<polling::Poller>);

    impl Bell for Notifier {
        fn ring(&self) {
            let _ = self.0.notify();
        }
    }

    impl Poller {
        pub(crate) fn new() -> io::Result<(Self, Arc<dyn Bell>)> {
            let poller = Arc::new(polling::Poller::new()?);
            let bell = Arc::new(Notifier(Arc::clone(&poller)));
            Ok((
                Self {
                    poller,
                    events: RefCell::new(polling::Events::new()),
                },
                bell,
            ))
        }

        pub(crate) fn wait(
            &self,
            ready: &mut Vec<Readiness>,
            timeout: Option<Duration>,
        ) -> io::Result<()> {
            let mut events = self.events.borrow_mut();
            events.clear();
            match self.poller.wait(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            ready.extend(events.iter().map(|event| {
                let broken = event.is_err() == Some(true) || event.is_interrupt();
                Readiness {
                    key: event.key,
                    readable: event.readable || broken,
                    writable: event.writable || broken,
                }
            }));
            Ok(())
        }

        #[cfg(unix)]
        pub(crate) fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            return Some(std::os::fd::AsFd::as_fd(&*self.poller));
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            None
        }
    }
}
