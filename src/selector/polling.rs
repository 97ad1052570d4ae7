//! The default selector: descriptors, through the `polling` crate.
//!
//! Registration always goes through a [`Poller`](polling::Poller), level-triggered. On Linux the
//! wait does not: `Poller::wait` costs five system calls, so the loop waits on the poller's own
//! descriptor (`sys::epoll`) and rings an eventfd of its own that is registered once,
//! edge-triggered, and never read. Everywhere else, and under `cfg(coloop_poller_wait)`, it is
//! `Poller::wait` and `Poller::notify`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Interest, Readiness, Selector, Source};
use crate::doorbell::Bell;
use crate::sys::poller::{Poller, Registered};

/// Makes the selector that a loop has when none is given.
///
/// # Errors
///
/// What the system says when it refuses a descriptor.
pub fn default_selector() -> io::Result<Rc<dyn Selector>> {
    let (poller, bell) = Poller::new()?;
    Ok(Rc::new(Polling {
        poller,
        bell,
        sources: RefCell::default(),
    }))
}

struct Polling {
    poller: Poller,
    bell: Arc<dyn Bell>,
    sources: RefCell<HashMap<usize, Registered>>,
}

impl Selector for Polling {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        let registered = self.poller.add(key, source, interest)?;
        let before = self.sources.borrow_mut().insert(key, registered);
        drop(before);
        Ok(())
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        let mut sources = self.sources.borrow_mut();
        let Some(registered) = sources.get_mut(&key) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no source has this key",
            ));
        };
        self.poller.modify(key, registered, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        let registered = self.sources.borrow_mut().remove(&key)?;
        Some(self.poller.delete(registered))
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        self.poller.wait(ready, timeout)
    }

    fn bell(&self) -> Arc<dyn Bell> {
        Arc::clone(&self.bell)
    }

    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.poller.descriptor()
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        for (_, registered) in self.sources.get_mut().drain() {
            drop(self.poller.delete(registered));
        }
    }
}
