//! The table: who is to be told when a watched source is ready.
//!
//! One entry per source, with a reader's and a writer's side. The heart asks it which items a
//! selector's report makes, and who is behind an item when the line has come to it. It runs
//! nothing.
//!
//! What must always hold:
//!
//! 1. The selector is told at once: when a side is removed the system has forgotten it before the
//!    call returns, so that a descriptor may be closed and its number used again.
//! 2. Keys carry a generation: a report for an entry that has been removed is dropped.
//! 3. A side stands in the line at most once.
//! 4. What is removed is returned, and the selector is called outside every borrow.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;

use slab::Slab;

use super::{Interest, Readiness, Selector, Source};
use crate::error::{LoopClosed, RunError, drop_quietly};
use crate::key::{Direction, WatchKey};
use crate::sys::fork;

/// Is told that a side of a source is ready.
pub(crate) trait Watcher {
    /// Runs as an item of the line. Says whether it still wants to be told.
    fn ready(&self) -> Wants;

    /// Where it was made.
    fn place(&self) -> &'static Location<'static>;
}

/// What a watcher wants after it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// To be told again.
    More,
    /// Nothing, until it asks again: its interest is taken off.
    Pause,
}

/// Who watches a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The program, by `add_reader` and `add_writer`.
    User,
    /// One object of the loop, such as a transport: nobody else may watch its descriptor.
    Object(u64),
}

struct Side {
    /// No other side of this table ever has it.
    number: u64,
    watcher: Rc<dyn Watcher>,
    /// Keeps the descriptor open, also when the entry is registered by the other side's source.
    source: Source,
    on: bool,
    queued: bool,
}

struct Entry {
    generation: u32,
    owner: Owner,
    id: SourceId,
    read: Option<Side>,
    write: Option<Side>,
}

impl Entry {
    fn side(&mut self, direction: Direction) -> &mut Option<Side> {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }

    fn interest(&self) -> Interest {
        let on = |side: &Option<Side>| side.as_ref().is_some_and(|side| side.on);
        Interest {
            readable: on(&self.read),
            writable: on(&self.write),
        }
    }
}

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

/// What was removed: dropped by the caller, after every borrow has ended.
///
/// The callback and the descriptor's owner may both panic when they go, and both at once would be the
/// end of the process: so each goes by itself.
pub(crate) struct Removed {
    watcher: Option<Rc<dyn Watcher>>,
    sources: [Option<Source>; 2],
}

impl Drop for Removed {
    fn drop(&mut self) {
        drop_quietly(self.watcher.take());
        for source in &mut self.sources {
            drop_quietly(source.take());
        }
    }
}

#[derive(Default)]
struct Entries {
    slab: Slab<Entry>,
    by_source: HashMap<SourceId, u32>,
    generation: u32,
    sides: u64,
}

/// All watched sources of a loop.
pub(crate) struct Table {
    selector: RefCell<Option<Rc<dyn Selector>>>,
    /// The registrations belong to the process that made them; a child leaves them alone.
    forks: u32,
    entries: RefCell<Entries>,
}

impl Table {
    pub(crate) fn new(selector: Rc<dyn Selector>) -> Self {
        Self {
            selector: RefCell::new(Some(selector)),
            forks: fork::generation(),
            entries: RefCell::default(),
        }
    }

    /// The selector, until the loop is closed, and never in a child of the process that made it.
    pub(crate) fn selector(&self) -> Option<Rc<dyn Selector>> {
        self.reach().ok()
    }

    fn reach(&self) -> io::Result<Rc<dyn Selector>> {
        if self.forks != fork::generation() {
            return Err(RunError::Forked.into());
        }
        self.selector
            .borrow()
            .clone()
            .ok_or_else(|| LoopClosed.into())
    }

    /// An owner unlike any other.
    pub(crate) fn new_owner(&self) -> Owner {
        let mut entries = self.entries.borrow_mut();
        entries.sides += 1;
        Owner::Object(entries.sides)
    }

    /// Watches one direction of a source, in place of whoever watched it before.
    pub(crate) fn watch(
        &self,
        source: Source,
        direction: Direction,
        owner: Owner,
        watcher: Rc<dyn Watcher>,
        on: bool,
    ) -> io::Result<(WatchKey, u64, Option<Removed>)> {
        // `as_fd` is the user's code: it is called before anything is borrowed.
        let id = SourceId::of(&source);
        let mut entries = self.entries.borrow_mut();
        entries.sides += 1;
        let number = entries.sides;
        let side = Side {
            number,
            watcher,
            source: source.clone(),
            on,
            queued: false,
        };

        let known = entries.by_source.get(&id).copied();
        let (slot, before, replaced) = match known {
            Some(slot) => {
                let entry = &mut entries.slab[slot as usize];
                if entry.owner != owner {
                    drop(entries);
                    return Err(in_use(id));
                }
                let before = entry.interest();
                let replaced = entry.side(direction).replace(side);
                (slot, Some(before), replaced)
            }
            None => {
                entries.generation = WatchKey::next_generation(entries.generation);
                let generation = entries.generation;
                let mut entry = Entry {
                    generation,
                    owner,
                    id,
                    read: None,
                    write: None,
                };
                *entry.side(direction) = Some(side);
                let slot = entries.slab.insert(entry) as u32;
                entries.by_source.insert(id, slot);
                (slot, None, None)
            }
        };
        let entry = &entries.slab[slot as usize];
        let key = WatchKey {
            slot,
            generation: entry.generation,
        };
        let interest = entry.interest();
        drop(entries);

        // The selector may be the caller's, and asks the source for its descriptor.
        let told = panic::catch_unwind(AssertUnwindSafe(|| {
            let selector = self.reach()?;
            match before {
                None => selector.add(key.packed(), source, interest),
                Some(before) if before == interest => Ok(()),
                Some(_) => selector.modify(key.packed(), interest),
            }
        }));
        if !matches!(told, Ok(Ok(()))) {
            // As it was before: the earlier side back in its seat, or no entry at all.
            let undone = self.undo(key, direction, replaced);
            drop(undone);
            return match told {
                Ok(told) => told.and(Err(io::ErrorKind::Other.into())),
                Err(payload) => panic::resume_unwind(payload),
            };
        }
        Ok((key, number, replaced.map(|side| Removed::of(side, None))))
    }

    fn undo(&self, key: WatchKey, direction: Direction, before: Option<Side>) -> Option<Side> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.slab.get_mut(key.slot as usize)?;
        let refused = std::mem::replace(entry.side(direction), before);
        if entry.read.is_none() && entry.write.is_none() {
            let id = entry.id;
            entries.slab.remove(key.slot as usize);
            entries.by_source.remove(&id);
        }
        refused
    }

    /// Turns the interest of one side on or off.
    pub(crate) fn set_on(&self, key: WatchKey, direction: Direction, on: bool) -> io::Result<()> {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get(key) else {
            return Ok(());
        };
        let Some(side) = entry.side(direction) else {
            return Ok(());
        };
        if std::mem::replace(&mut side.on, on) == on {
            return Ok(());
        }
        let interest = entry.interest();
        drop(entries);
        let told = self
            .reach()
            .and_then(|selector| selector.modify(key.packed(), interest));
        if told.is_err() {
            let mut entries = self.entries.borrow_mut();
            if let Some(side) = entries
                .get(key)
                .and_then(|entry| entry.side(direction).as_mut())
            {
                side.on = !on;
            }
        }
        told
    }

    /// Stops watching one side; with `number`, only if it is still that one.
    pub(crate) fn unwatch(
        &self,
        key: WatchKey,
        direction: Direction,
        number: Option<u64>,
    ) -> Option<Removed> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get(key)?;
        let before = entry.interest();
        let side = entry
            .side(direction)
            .take_if(|side| number.is_none_or(|n| n == side.number))?;
        let (interest, id) = (entry.interest(), entry.id);
        let empty = entry.read.is_none() && entry.write.is_none();
        if empty {
            entries.slab.remove(key.slot as usize);
            entries.by_source.remove(&id);
        }
        drop(entries);

        let selector = self.selector();
        let registered = match selector {
            Some(selector) if empty => selector.delete(key.packed()),
            Some(selector) if interest != before => {
                // A failure here means that the descriptor is gone: nothing is reported any more.
                let _ = selector.modify(key.packed(), interest);
                None
            }
            _ => None,
        };
        Some(Removed::of(side, registered))
    }

    /// The entry of a source, and who owns it.
    pub(crate) fn find(&self, id: SourceId) -> Option<(WatchKey, Owner)> {
        let entries = self.entries.borrow();
        let slot = *entries.by_source.get(&id)?;
        let entry = &entries.slab[slot as usize];
        Some((
            WatchKey {
                slot,
                generation: entry.generation,
            },
            entry.owner,
        ))
    }

    /// The items that a report makes: the reader's before the writer's.
    pub(crate) fn ready(&self, report: Readiness) -> [Option<(WatchKey, Direction)>; 2] {
        let key = WatchKey::unpacked(report.key);
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get(key) else {
            return [None, None];
        };
        let mut queue = |ready: bool, direction: Direction| match entry.side(direction) {
            Some(side) if ready && side.on && !side.queued => {
                side.queued = true;
                Some((key, direction))
            }
            _ => None,
        };
        [
            queue(report.readable, Direction::Read),
            queue(report.writable, Direction::Write),
        ]
    }

    /// Who is behind an item, when the line has come to it.
    pub(crate) fn arrived(&self, key: WatchKey, direction: Direction) -> Option<Rc<dyn Watcher>> {
        let mut entries = self.entries.borrow_mut();
        let side = entries.get(key)?.side(direction).as_mut()?;
        // A side that has taken another's place was not the one that is ready.
        std::mem::take(&mut side.queued).then(|| Rc::clone(&side.watcher))
    }

    /// Whether a descriptor is watched that could bring something from outside.
    pub(crate) fn has_outside(&self) -> bool {
        let entries = self.entries.borrow();
        let mut watched = entries.slab.iter().map(|(_, entry)| entry);
        watched.any(|entry| matches!(entry.id, SourceId::Fd(_)) && !entry.interest().is_none())
    }

    /// Names every descriptor that could bring something from outside.
    pub(crate) fn outside(&self) -> Vec<(i32, &'static Location<'static>)> {
        let watchers: Vec<_> = {
            let entries = self.entries.borrow();
            let watched = entries.slab.iter().filter_map(|(_, entry)| {
                let SourceId::Fd(fd) = entry.id else {
                    return None;
                };
                let sides = [&entry.read, &entry.write];
                let side = sides.into_iter().flatten().find(|side| side.on)?;
                Some((fd, Rc::clone(&side.watcher)))
            });
            watched.collect()
        };
        watchers
            .into_iter()
            .map(|(fd, watcher)| (fd, watcher.place()))
            .collect()
    }

    /// Gives back the memory of entries that are all gone.
    pub(crate) fn shrink(&self) {
        let mut entries = self.entries.borrow_mut();
        entries.slab.shrink_to_fit();
        entries.by_source.shrink_to_fit();
    }

    /// Leaves the selector to the process that made it.
    pub(crate) fn leak_selector(&self) {
        std::mem::forget(self.selector.borrow().clone());
    }

    /// Forgets everything and lets go of the selector.
    pub(crate) fn drain(&self) -> (Vec<Removed>, Option<Rc<dyn Selector>>) {
        let mut removed = Vec::new();
        loop {
            let next = {
                let entries = self.entries.borrow();
                let mut sides = entries.slab.iter().map(|(slot, entry)| {
                    let key = WatchKey {
                        slot: slot as u32,
                        generation: entry.generation,
                    };
                    let direction = if entry.read.is_some() {
                        Direction::Read
                    } else {
                        Direction::Write
                    };
                    (key, direction)
                });
                sides.next()
            };
            let Some((key, direction)) = next else { break };
            removed.extend(self.unwatch(key, direction, None));
        }
        (removed, self.selector.borrow_mut().take())
    }
}

impl Entries {
    fn get(&mut self, key: WatchKey) -> Option<&mut Entry> {
        self.slab
            .get_mut(key.slot as usize)
            .filter(|entry| entry.generation == key.generation)
    }
}

impl Removed {
    fn of(side: Side, registered: Option<Source>) -> Self {
        Self {
            watcher: Some(side.watcher),
            sources: [Some(side.source), registered],
        }
    }
}

pub(crate) fn in_use(id: SourceId) -> io::Error {
    let what = match id {
        SourceId::Fd(fd) => format!("descriptor {fd}"),
        SourceId::Sim(id) => format!("in-memory source {id}"),
    };
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("{what} is used by a transport or a watch of this loop: close that first"),
    )
}
