//! The table: who is to be told when a watched source is ready.
//!
//! One entry per source. It belongs to the program, with a reader's and a writer's side of their own,
//! or to one object of the loop, such as a transport, which is told of both directions. The heart
//! asks the table which items a selector's report makes, and who is behind an item when the line has
//! come to it. It runs nothing.
//!
//! What must always hold:
//!
//! 1. The selector is told at once: when a side is removed the system has forgotten it before the
//!    call returns, so that a descriptor may be closed and its number used again.
//! 2. Keys carry a generation: a report for an entry that has been removed is dropped.
//! 3. A side stands in the line at most once.
//! 4. What is removed is returned, and the selector is called outside every borrow.

use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;

use slab::Slab;

use super::source_id::{Index, PackedId, SourceId};
use super::{Interest, Readiness, Selector, Source};
use crate::error::{LoopClosed, RunError, drop_quietly};
use crate::key::{Direction, WatchKey};
use crate::sys::fork;

/// Is told that a side of a source is ready.
pub(crate) trait Watcher {
    /// Runs as an item of the line, notes in `here` where it was made, and says whether it still
    /// wants to be told.
    fn ready(self: Rc<Self>, direction: Direction, here: &Here) -> Wants;

    /// Where it was made.
    fn place(&self) -> &'static Location<'static>;

    /// Is asked, by whoever has only its key, to put something in the line.
    fn later(self: Rc<Self>, what: Later) {
        let _ = what;
    }

    /// Is told that the loop is closed, so that it can let go of what may hold it.
    fn let_go(&self) {}

    /// Whether something outside may come by its source, for which a virtual clock has to wait.
    fn is_outside(&self) -> bool {
        true
    }
}

/// What a connection has to put in the line.
pub(crate) enum Later {
    /// Its protocol is to be told that writing is paused or resumed.
    Flow,
    /// It is over.
    Lost(Option<io::Error>),
}

/// Where the item that runs was made, for reports.
pub(crate) type Here = Cell<Option<&'static Location<'static>>>;

/// What a watcher wants after it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// To be told again.
    More,
    /// Nothing, until it asks again: its interest is taken off.
    Pause,
}

/// One direction of what the program watches, by `add_reader` or `add_writer`.
struct Side {
    /// No other side of this table ever has it.
    number: u64,
    watcher: Rc<dyn Watcher>,
    /// Keeps the descriptor open, also when the entry is registered by the other side's source.
    source: Source,
}

/// Both directions of what the program watches.
#[derive(Default)]
struct Sides {
    read: Option<Box<Side>>,
    write: Option<Box<Side>>,
}

enum Watched {
    /// The program's.
    Sides(Box<Sides>),
    /// One object's: nobody else may watch its descriptor.
    Object(Rc<dyn Watcher>),
}

struct Entry {
    generation: u32,
    /// What it is watched for, and which directions stand in the line.
    on: Interest,
    queued: Interest,
    id: PackedId,
    watched: Watched,
}

impl Entry {
    fn side(&mut self, direction: Direction) -> Option<&mut Option<Box<Side>>> {
        match (&mut self.watched, direction) {
            (Watched::Sides(sides), Direction::Read) => Some(&mut sides.read),
            (Watched::Sides(sides), Direction::Write) => Some(&mut sides.write),
            (Watched::Object(_), _) => None,
        }
    }

    fn watcher(&self, direction: Direction) -> Option<&Rc<dyn Watcher>> {
        let side = match (&self.watched, direction) {
            (Watched::Object(watcher), _) => return Some(watcher),
            (Watched::Sides(sides), Direction::Read) => &sides.read,
            (Watched::Sides(sides), Direction::Write) => &sides.write,
        };
        side.as_ref().map(|side| &side.watcher)
    }

    fn is_empty(&self) -> bool {
        matches!(&self.watched, Watched::Sides(sides) if sides.read.is_none() && sides.write.is_none())
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

impl Removed {
    fn of(side: Side, registered: Option<Source>) -> Self {
        Self {
            watcher: Some(side.watcher),
            sources: [Some(side.source), registered],
        }
    }

    /// Asks the watcher to put something in the line.
    pub(crate) fn later(&self, what: Later) {
        if let Some(watcher) = &self.watcher {
            Rc::clone(watcher).later(what);
        }
    }

    /// Tells the watcher that its loop is closed.
    pub(crate) fn let_go(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.let_go();
        }
    }
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
    by_source: Index,
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

/// A side that is new, and what it has taken the place of.
pub(crate) struct NewSide {
    pub(crate) number: u64,
    pub(crate) replaced: Option<Removed>,
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

    /// Watches one direction of a source for the program, in place of whoever watched it before.
    pub(crate) fn watch(
        &self,
        source: Source,
        direction: Direction,
        watcher: Rc<dyn Watcher>,
    ) -> io::Result<NewSide> {
        // `as_fd` is the user's code: it is called before anything is borrowed.
        let id = SourceId::of(&source);
        let packed = PackedId::of(id)?;
        let mut entries = self.entries.borrow_mut();
        entries.sides += 1;
        let number = entries.sides;
        let side = Box::new(Side {
            number,
            watcher,
            source: source.clone(),
        });
        let known = entries.by_source.get(id);
        let slot = match known {
            Some(slot) => slot,
            None => entries.insert(packed, Interest::NONE, Watched::Sides(Box::default())),
        };
        let entry = &mut entries.slab[slot as usize];
        let before = entry.on;
        let Some(seat) = entry.side(direction) else {
            drop(entries);
            return Err(in_use(id));
        };
        let replaced = seat.replace(side);
        // A side that has taken another's place is not the one that was ready.
        entry.queued.set(direction, false);
        entry.on.set(direction, true);
        let (key, on) = (entry.key(slot), entry.on);
        drop(entries);

        let told = self.tell(key, source, known.is_none(), before, on);
        if !matches!(told, Ok(Ok(()))) {
            // As it was before: the earlier side back in its seat, or no entry at all.
            let undone = self.undo(key, direction, replaced);
            drop(undone);
            return told_error(told);
        }
        let replaced = replaced.map(|side| Removed::of(*side, None));
        Ok(NewSide { number, replaced })
    }

    /// Watches a source for one object, which nobody else may watch meanwhile.
    ///
    /// With no interest at all the system is not asked whether it can be watched.
    pub(crate) fn watch_object(
        &self,
        source: Source,
        on: Interest,
        watcher: Rc<dyn Watcher>,
    ) -> io::Result<WatchKey> {
        let id = SourceId::of(&source);
        let packed = PackedId::of(id)?;
        let mut entries = self.entries.borrow_mut();
        if entries.by_source.get(id).is_some() {
            drop(entries);
            return Err(in_use(id));
        }
        let slot = entries.insert(packed, on, Watched::Object(watcher));
        let key = entries.slab[slot as usize].key(slot);
        drop(entries);

        let told = self.tell(key, source, true, Interest::NONE, on);
        if !matches!(told, Ok(Ok(()))) {
            let undone = self.entries.borrow_mut().remove(key);
            drop(undone);
            return told_error(told);
        }
        Ok(key)
    }

    /// Tells the selector, which may be the caller's, and asks the source for its descriptor.
    fn tell(
        &self,
        key: WatchKey,
        source: Source,
        new: bool,
        before: Interest,
        on: Interest,
    ) -> std::thread::Result<io::Result<()>> {
        panic::catch_unwind(AssertUnwindSafe(|| {
            let selector = self.reach()?;
            if new {
                selector.add(key.packed(), source, on)
            } else if before == on {
                Ok(())
            } else {
                selector.modify(key.packed(), on)
            }
        }))
    }

    fn undo(
        &self,
        key: WatchKey,
        direction: Direction,
        before: Option<Box<Side>>,
    ) -> Option<Box<Side>> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get(key)?;
        entry.on.set(direction, before.is_some());
        let refused = std::mem::replace(entry.side(direction)?, before);
        if entry.is_empty() {
            entries.remove(key);
        }
        refused
    }

    /// Turns the interest of one direction on or off.
    pub(crate) fn set_on(&self, key: WatchKey, direction: Direction, on: bool) -> io::Result<()> {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get(key) else {
            return Ok(());
        };
        if entry.watcher(direction).is_none() || entry.on.get(direction) == on {
            return Ok(());
        }
        entry.on.set(direction, on);
        let interest = entry.on;
        drop(entries);
        let told = self
            .reach()
            .and_then(|selector| selector.modify(key.packed(), interest));
        if told.is_err()
            && let Some(entry) = self.entries.borrow_mut().get(key)
        {
            entry.on.set(direction, !on);
        }
        told
    }

    /// Stops watching one direction for the program; with `number`, only if it is still that side.
    pub(crate) fn unwatch(
        &self,
        id: SourceId,
        direction: Direction,
        number: Option<u64>,
    ) -> Option<Removed> {
        let mut entries = self.entries.borrow_mut();
        let slot = entries.by_source.get(id)?;
        let entry = &mut entries.slab[slot as usize];
        let before = entry.on;
        let side = entry
            .side(direction)?
            .take_if(|side| number.is_none_or(|n| n == side.number))?;
        entry.on.set(direction, false);
        let (key, on, empty) = (entry.key(slot), entry.on, entry.is_empty());
        if empty {
            entries.remove(key);
        }
        drop(entries);

        let registered = match self.selector() {
            Some(selector) if empty => selector.delete(key.packed()),
            Some(selector) if on != before => {
                // A failure here means that the descriptor is gone: nothing is reported any more.
                let _ = selector.modify(key.packed(), on);
                None
            }
            _ => None,
        };
        Some(Removed::of(*side, registered))
    }

    /// Stops watching for an object.
    pub(crate) fn unwatch_object(&self, key: WatchKey) -> Option<Removed> {
        let removed = {
            let mut entries = self.entries.borrow_mut();
            entries
                .get(key)
                .filter(|entry| matches!(entry.watched, Watched::Object(_)))?;
            entries.remove(key)
        };
        let watcher = match removed?.watched {
            Watched::Object(watcher) => Some(watcher),
            Watched::Sides(_) => None,
        };
        let registered = self
            .selector()
            .and_then(|selector| selector.delete(key.packed()));
        Some(Removed {
            watcher,
            sources: [registered, None],
        })
    }

    /// Who watches a source as one object.
    pub(crate) fn object(&self, key: WatchKey) -> Option<Rc<dyn Watcher>> {
        match &self.entries.borrow_mut().get(key)?.watched {
            Watched::Object(watcher) => Some(Rc::clone(watcher)),
            Watched::Sides(_) => None,
        }
    }

    /// Whether a source is watched by anybody.
    pub(crate) fn is_watched(&self, id: SourceId) -> bool {
        self.entries.borrow().by_source.get(id).is_some()
    }

    /// Makes the items of reports, in their order: of each, the reader's before the writer's.
    #[inline]
    pub(crate) fn ready(
        &self,
        reports: &mut Vec<Readiness>,
        mut item: impl FnMut(WatchKey, Direction),
    ) {
        let mut entries = self.entries.borrow_mut();
        for report in reports.drain(..) {
            let key = WatchKey::unpacked(report.key);
            let Some(entry) = entries.get(key) else {
                continue;
            };
            for direction in [Direction::Read, Direction::Write] {
                let ready = match direction {
                    Direction::Read => report.readable,
                    Direction::Write => report.writable,
                };
                if ready && entry.on.get(direction) && !entry.queued.get(direction) {
                    entry.queued.set(direction, true);
                    item(key, direction);
                }
            }
        }
    }

    /// Who is behind an item, when the line has come to it.
    #[inline]
    pub(crate) fn arrived(&self, key: WatchKey, direction: Direction) -> Option<Rc<dyn Watcher>> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get(key)?;
        if !entry.queued.get(direction) {
            return None;
        }
        entry.queued.set(direction, false);
        entry.watcher(direction).cloned()
    }

    /// Whether a descriptor is watched that could bring something from outside.
    pub(crate) fn has_outside(&self) -> bool {
        self.outside_watchers()
            .iter()
            .any(|(_, watcher)| watcher.is_outside())
    }

    /// Names every descriptor that could bring something from outside.
    pub(crate) fn outside(&self) -> Vec<(i32, &'static Location<'static>)> {
        self.outside_watchers()
            .into_iter()
            .filter(|(_, watcher)| watcher.is_outside())
            .map(|(fd, watcher)| (fd, watcher.place()))
            .collect()
    }

    fn outside_watchers(&self) -> Vec<(i32, Rc<dyn Watcher>)> {
        let entries = self.entries.borrow();
        let watched = entries.slab.iter().filter_map(|(_, entry)| {
            let SourceId::Fd(fd) = entry.id.id() else {
                return None;
            };
            let direction = match entry.on {
                Interest { readable: true, .. } => Direction::Read,
                Interest { writable: true, .. } => Direction::Write,
                _ => return None,
            };
            Some((fd, Rc::clone(entry.watcher(direction)?)))
        });
        watched.collect()
    }

    /// Gives back the memory of entries that are all gone.
    pub(crate) fn shrink(&self) {
        let mut entries = self.entries.borrow_mut();
        entries.slab.shrink_to_fit();
        entries.by_source.shrink();
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
                let mut slots = entries.slab.iter();
                slots.next().map(|(slot, entry)| {
                    let direction = match &entry.watched {
                        Watched::Object(_) => None,
                        Watched::Sides(sides) if sides.read.is_some() => Some(Direction::Read),
                        Watched::Sides(_) => Some(Direction::Write),
                    };
                    (entry.key(slot as u32), entry.id.id(), direction)
                })
            };
            match next {
                Some((_, id, Some(direction))) => {
                    removed.extend(self.unwatch(id, direction, None));
                }
                Some((key, _, None)) => removed.extend(self.unwatch_object(key)),
                None => break,
            }
        }
        (removed, self.selector.borrow_mut().take())
    }
}

impl Entry {
    fn key(&self, slot: u32) -> WatchKey {
        WatchKey {
            slot,
            generation: self.generation,
        }
    }
}

impl Entries {
    #[inline]
    fn get(&mut self, key: WatchKey) -> Option<&mut Entry> {
        self.slab
            .get_mut(key.slot as usize)
            .filter(|entry| entry.generation == key.generation)
    }

    fn insert(&mut self, id: PackedId, on: Interest, watched: Watched) -> u32 {
        self.generation = WatchKey::next_generation(self.generation);
        let slot = self.slab.insert(Entry {
            generation: self.generation,
            on,
            queued: Interest::NONE,
            id,
            watched,
        }) as u32;
        self.by_source.set(id.id(), Some(slot));
        slot
    }

    fn remove(&mut self, key: WatchKey) -> Option<Entry> {
        self.get(key)?;
        let entry = self.slab.remove(key.slot as usize);
        self.by_source.set(entry.id.id(), None);
        Some(entry)
    }
}

impl Interest {
    #[inline]
    fn get(self, direction: Direction) -> bool {
        match direction {
            Direction::Read => self.readable,
            Direction::Write => self.writable,
        }
    }

    fn set(&mut self, direction: Direction, on: bool) {
        match direction {
            Direction::Read => self.readable = on,
            Direction::Write => self.writable = on,
        }
    }
}

fn told_error<T>(told: std::thread::Result<io::Result<()>>) -> io::Result<T> {
    match told {
        Ok(told) => told.and(Err(io::ErrorKind::Other.into())),
        Err(payload) => panic::resume_unwind(payload),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_four_words() {
        assert_eq!(size_of::<Entry>(), 4 * size_of::<u64>());
    }
}
