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
use crate::key::WatchKey;
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
    sources: RefCell<Sources>,
}

/// What is registered, by key.
///
/// The keys that a loop gives out name slots, the least that is free each time: those stand in a
/// plain list. Any other key is as good, and stands in a map.
#[derive(Default)]
struct Sources {
    slots: Vec<Option<(u32, Registered)>>,
    others: HashMap<usize, Registered>,
}

impl Sources {
    fn insert(&mut self, key: usize, registered: Registered) -> Option<Registered> {
        let WatchKey { slot, generation } = WatchKey::unpacked(key);
        let slot = slot as usize;
        if slot == self.slots.len() {
            self.slots.push(None);
        }
        match self.slots.get_mut(slot) {
            Some(seat @ None) => {
                *seat = Some((generation, registered));
                None
            }
            Some(Some((other, seat))) if *other == generation => {
                Some(std::mem::replace(seat, registered))
            }
            _ => self.others.insert(key, registered),
        }
    }

    fn get(&mut self, key: usize) -> Option<&mut Registered> {
        let WatchKey { slot, generation } = WatchKey::unpacked(key);
        match self.slots.get_mut(slot as usize) {
            Some(Some((other, registered))) if *other == generation => Some(registered),
            _ => self.others.get_mut(&key),
        }
    }

    fn remove(&mut self, key: usize) -> Option<Registered> {
        let WatchKey { slot, generation } = WatchKey::unpacked(key);
        let seat = self.slots.get_mut(slot as usize);
        let here = seat.and_then(|seat| seat.take_if(|(other, _)| *other == generation));
        match here {
            Some((_, registered)) => Some(registered),
            None => self.others.remove(&key),
        }
    }

    fn drain(&mut self) -> impl Iterator<Item = Registered> + '_ {
        let here = self.slots.drain(..).flatten();
        let others = self.others.drain().map(|(_, registered)| registered);
        here.map(|(_, registered)| registered).chain(others)
    }
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
        let Some(registered) = sources.get(key) else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no source has this key",
            ));
        };
        self.poller.modify(key, registered, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        let registered = self.sources.borrow_mut().remove(key)?;
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
        for registered in self.sources.get_mut().drain() {
            drop(self.poller.delete(registered));
        }
    }
}
