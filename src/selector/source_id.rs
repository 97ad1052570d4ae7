//! What tells one source from another, and how the table finds the entry of one.
//!
//! Descriptors are small numbers, the least that is free each time, so they index a plain list.
//! Sources that exist only in memory have numbers of their own.

use std::collections::HashMap;
use std::io;

use super::Source;

/// What tells one source from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SourceId {
    Fd(i32),
    Sim(u64),
}

impl SourceId {
    pub(crate) fn of(source: &Source) -> Self {
        match source {
            #[cfg(unix)]
            Source::Fd(fd) => Self::Fd(std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd())),
            Source::Sim(id) => Self::Sim(id.0),
        }
    }
}

/// A [`SourceId`] in one word: there is an entry for every connection.
#[derive(Clone, Copy)]
pub(super) struct PackedId(u64);

impl PackedId {
    const FD: u64 = 1 << 63;

    pub(super) fn of(id: SourceId) -> io::Result<Self> {
        match id {
            SourceId::Fd(fd) => Ok(Self(Self::FD | u64::from(fd as u32))),
            SourceId::Sim(sim) if sim < Self::FD => Ok(Self(sim)),
            SourceId::Sim(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the numbers of in-memory sources end below 2^63",
            )),
        }
    }

    pub(super) fn id(self) -> SourceId {
        if self.0 & Self::FD == 0 {
            SourceId::Sim(self.0)
        } else {
            SourceId::Fd(self.0 as u32 as i32)
        }
    }
}

/// Finds the entry of a source: descriptors are small numbers, the least that is free each time.
#[derive(Default)]
pub(super) struct Index {
    /// By descriptor, one more than the slot; zero is nobody.
    fds: Vec<u32>,
    sims: HashMap<u64, u32>,
}

impl Index {
    pub(super) fn get(&self, id: SourceId) -> Option<u32> {
        match id {
            SourceId::Fd(fd) => {
                let at = usize::try_from(fd).ok()?;
                self.fds.get(at)?.checked_sub(1)
            }
            SourceId::Sim(sim) => self.sims.get(&sim).copied(),
        }
    }

    pub(super) fn set(&mut self, id: SourceId, slot: Option<u32>) {
        match (id, slot) {
            (SourceId::Fd(fd), slot) => {
                let Ok(at) = usize::try_from(fd) else { return };
                if at >= self.fds.len() {
                    self.fds.resize(at + 1, 0);
                }
                self.fds[at] = slot.map_or(0, |slot| slot + 1);
            }
            (SourceId::Sim(sim), Some(slot)) => drop(self.sims.insert(sim, slot)),
            (SourceId::Sim(sim), None) => drop(self.sims.remove(&sim)),
        }
    }

    pub(super) fn shrink(&mut self) {
        self.fds = Vec::new();
        self.sims.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_packing() {
        for id in [
            SourceId::Fd(0),
            SourceId::Fd(i32::MAX),
            SourceId::Sim(0),
            SourceId::Sim(u64::MAX >> 1),
        ] {
            assert_eq!(PackedId::of(id).unwrap().id(), id);
        }
        assert!(PackedId::of(SourceId::Sim(1 << 63)).is_err());
    }
}
