//! The shelf: everything that waits for a deadline.
//!
//! The heart puts callbacks and wakers on it and takes down what is due; it runs nothing. A heap of
//! small entries orders the deadlines, a slab of slots holds what they are for.
//!
//! What must always hold:
//!
//! 1. Due timers come by (deadline, order of creation). The order is a counter; when it is used up,
//!    all entries are numbered afresh, so ties are never decided by a number that has wrapped.
//! 2. Cancelling frees what the timer held at once and leaves its entry in the heap. The next
//!    deadline is always that of a live timer; dead entries go when they come to the front, or all
//!    together when more than a hundred are shelved and most of them are dead.
//! 3. A slot is used again only after its entry has left the heap, and its generation tells old
//!    keys from new ones.
//! 4. What is removed is returned: closures and wakers are dropped by the caller, outside the
//!    borrow.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::panic::Location;
use std::task::Waker;

use crate::clock::Ticks;
use crate::key::TimerKey;

/// What is due.
pub(crate) enum Due {
    Callback(TimerKey),
    Wake(Waker),
}

/// A closure and where it was scheduled.
pub(crate) type Scheduled = (Box<dyn FnOnce()>, &'static Location<'static>);

/// What a cancelled timer held.
pub(crate) enum Removed {
    Callback { _closure: Box<dyn FnOnce()> },
    Waker { _waker: Waker },
}

/// What has become of a sleep that is polled again.
pub(crate) enum Renewed {
    Over,
    Pending,
    /// It is pending and would wake somebody else.
    WakesAnother,
}

/// A sleep that is pending, for those who ask.
pub(crate) struct SleepWait {
    /// The number of the task that sleeps.
    pub(crate) task: u32,
    pub(crate) place: &'static Location<'static>,
    pub(crate) since_millis: u32,
    pub(crate) deadline: Ticks,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    deadline: Ticks,
    order: u32,
    slot: u32,
}

/// The heap is a max-heap: the earliest entry is the greatest.
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.deadline, other.order).cmp(&(self.deadline, self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

enum Slot {
    Vacant {
        generation: u32,
        next: u32,
    },
    /// Cancelled; its entry is still in the heap.
    Dead {
        generation: u32,
    },
    Callback {
        generation: u32,
        due: bool,
        place: &'static Location<'static>,
        f: Box<dyn FnOnce()>,
    },
    /// A sleep. `since` is in milliseconds and wraps, so that the slot stays at five words.
    Sleep {
        generation: u32,
        task: u32,
        since_millis: u32,
        place: &'static Location<'static>,
        waker: Waker,
    },
}

impl Slot {
    fn generation(&self) -> u32 {
        match self {
            Self::Vacant { generation, .. }
            | Self::Dead { generation }
            | Self::Callback { generation, .. }
            | Self::Sleep { generation, .. } => *generation,
        }
    }
}

const NO_SLOT: u32 = u32::MAX;

struct Shelf {
    heap: BinaryHeap<Entry>,
    slots: Vec<Slot>,
    free: u32,
    next_order: u32,
    dead: usize,
    /// Callbacks that have left the heap and stand in the line.
    in_line: usize,
}

/// All timers of a loop.
pub(crate) struct Timers {
    shelf: RefCell<Shelf>,
    /// Whether the heap has entries, so that a loop without timers does not look.
    any: Cell<bool>,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            shelf: RefCell::new(Shelf {
                heap: BinaryHeap::new(),
                slots: Vec::new(),
                free: NO_SLOT,
                next_order: 0,
                dead: 0,
                in_line: 0,
            }),
            any: Cell::new(false),
        }
    }

    pub(crate) fn insert_callback(
        &self,
        deadline: Ticks,
        f: Box<dyn FnOnce()>,
        place: &'static Location<'static>,
    ) -> TimerKey {
        self.any.set(true);
        self.shelf
            .borrow_mut()
            .insert(deadline, |generation| Slot::Callback {
                generation,
                due: false,
                place,
                f,
            })
    }

    pub(crate) fn insert_sleep(
        &self,
        deadline: Ticks,
        waker: Waker,
        task: u32,
        place: &'static Location<'static>,
        since_millis: u32,
    ) -> TimerKey {
        self.any.set(true);
        self.shelf
            .borrow_mut()
            .insert(deadline, |generation| Slot::Sleep {
                generation,
                task,
                since_millis,
                place,
                waker,
            })
    }

    /// Notes that a sleep is polled by the task with this number. Says whether it is still pending,
    /// and if so whether it would wake `waker`.
    pub(crate) fn renew_sleep(&self, key: TimerKey, waker: &Waker, polled_by: u32) -> Renewed {
        let mut shelf = self.shelf.borrow_mut();
        match shelf.sleep(key) {
            Some(Slot::Sleep {
                task, waker: old, ..
            }) => {
                *task = polled_by;
                if old.will_wake(waker) {
                    Renewed::Pending
                } else {
                    Renewed::WakesAnother
                }
            }
            _ => Renewed::Over,
        }
    }

    /// Lets a sleep wake another, and returns the waker that was replaced.
    pub(crate) fn replace_waker(&self, key: TimerKey, new: Waker) -> Option<Waker> {
        match self.shelf.borrow_mut().sleep(key) {
            Some(Slot::Sleep { waker, .. }) => Some(std::mem::replace(waker, new)),
            _ => Some(new),
        }
    }

    /// Takes a timer down before it has run.
    pub(crate) fn remove(&self, key: TimerKey) -> Option<Removed> {
        self.shelf.borrow_mut().remove(key)
    }

    /// Takes the closure of a due timer, when the line has come to it.
    pub(crate) fn take_due(&self, key: TimerKey) -> Option<Scheduled> {
        let mut shelf = self.shelf.borrow_mut();
        let due = matches!(
            shelf.slots.get(key.slot as usize),
            Some(Slot::Callback { generation, due: true, .. }) if *generation == key.generation
        );
        if !due {
            return None;
        }
        shelf.in_line -= 1;
        match shelf.vacate(key.slot) {
            Slot::Callback { f, place, .. } => Some((f, place)),
            _ => None,
        }
    }

    /// Whether there may be something on the shelf.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.get()
    }

    /// The deadline of the next live timer.
    pub(crate) fn next_deadline(&self) -> Option<Ticks> {
        if !self.any.get() {
            return None;
        }
        let mut shelf = self.shelf.borrow_mut();
        shelf.drop_dead_front();
        let next = shelf.heap.peek().map(|entry| entry.deadline);
        self.any.set(next.is_some());
        next
    }

    /// Appends everything that is due at `now` to `out`, in order.
    pub(crate) fn expire(&self, now: Ticks, out: &mut Vec<Due>) {
        let mut shelf = self.shelf.borrow_mut();
        loop {
            shelf.drop_dead_front();
            match shelf.heap.peek() {
                Some(entry) if entry.deadline <= now && entry.deadline != Ticks::NEVER => {}
                _ => break,
            }
            let Some(entry) = shelf.heap.pop() else { break };
            match &mut shelf.slots[entry.slot as usize] {
                Slot::Callback {
                    generation, due, ..
                } => {
                    *due = true;
                    let key = TimerKey {
                        slot: entry.slot,
                        generation: *generation,
                    };
                    shelf.in_line += 1;
                    out.push(Due::Callback(key));
                }
                Slot::Sleep { .. } => {
                    if let Slot::Sleep { waker, .. } = shelf.vacate(entry.slot) {
                        out.push(Due::Wake(waker));
                    }
                }
                Slot::Vacant { .. } | Slot::Dead { .. } => {}
            }
        }
        self.any.set(!shelf.heap.is_empty());
    }

    /// Takes everything off the shelf.
    pub(crate) fn drain(&self) -> Vec<Removed> {
        let mut shelf = self.shelf.borrow_mut();
        let mut removed = Vec::new();
        for slot in 0..shelf.slots.len() {
            match shelf.vacate(u32::try_from(slot).unwrap_or(NO_SLOT)) {
                Slot::Callback { f, .. } => removed.push(Removed::Callback { _closure: f }),
                Slot::Sleep { waker, .. } => removed.push(Removed::Waker { _waker: waker }),
                Slot::Vacant { .. } | Slot::Dead { .. } => {}
            }
        }
        shelf.heap = BinaryHeap::new();
        shelf.slots = Vec::new();
        shelf.free = NO_SLOT;
        shelf.dead = 0;
        shelf.in_line = 0;
        self.any.set(false);
        removed
    }

    /// Every pending sleep.
    pub(crate) fn sleeps(&self) -> Vec<SleepWait> {
        let shelf = self.shelf.borrow();
        let waiting =
            shelf
                .heap
                .iter()
                .filter_map(|entry| match &shelf.slots[entry.slot as usize] {
                    Slot::Sleep {
                        task,
                        place,
                        since_millis,
                        ..
                    } => Some(SleepWait {
                        task: *task,
                        place,
                        since_millis: *since_millis,
                        deadline: entry.deadline,
                    }),
                    _ => None,
                });
        waiting.collect()
    }
}

impl Shelf {
    fn sleep(&mut self, key: TimerKey) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        (slot.generation() == key.generation).then_some(slot)
    }

    fn insert(&mut self, deadline: Ticks, fill: impl FnOnce(u32) -> Slot) -> TimerKey {
        if self.next_order == u32::MAX {
            self.renumber();
        }
        let order = self.next_order;
        self.next_order += 1;
        let slot = match self.slots.get(self.free as usize) {
            Some(Slot::Vacant { next, .. }) => std::mem::replace(&mut self.free, *next),
            _ => {
                assert!(self.slots.len() < NO_SLOT as usize, "four billion timers");
                self.slots.push(Slot::Vacant {
                    generation: 0,
                    next: NO_SLOT,
                });
                (self.slots.len() - 1) as u32
            }
        };
        let generation = self.slots[slot as usize].generation();
        self.slots[slot as usize] = fill(generation);
        self.heap.push(Entry {
            deadline,
            order,
            slot,
        });
        TimerKey { slot, generation }
    }

    fn remove(&mut self, key: TimerKey) -> Option<Removed> {
        let slot = self.slots.get(key.slot as usize)?;
        if slot.generation() != key.generation {
            return None;
        }
        let removed = match slot {
            Slot::Vacant { .. } | Slot::Dead { .. } => return None,
            Slot::Callback { due: true, .. } => {
                self.in_line -= 1;
                self.vacate(key.slot)
            }
            Slot::Callback { .. } | Slot::Sleep { .. } => {
                let dead = Slot::Dead {
                    generation: key.generation,
                };
                self.dead += 1;
                std::mem::replace(&mut self.slots[key.slot as usize], dead)
            }
        };
        if self.heap.len() > 100 && self.dead * 2 > self.heap.len() {
            self.sweep();
        }
        match removed {
            Slot::Callback { f, .. } => Some(Removed::Callback { _closure: f }),
            Slot::Sleep { waker, .. } => Some(Removed::Waker { _waker: waker }),
            Slot::Vacant { .. } | Slot::Dead { .. } => None,
        }
    }

    /// Frees a slot whose entry is not in the heap (any more).
    fn vacate(&mut self, slot: u32) -> Slot {
        let generation = self.slots[slot as usize].generation().wrapping_add(1);
        let vacant = Slot::Vacant {
            generation,
            next: self.free,
        };
        self.free = slot;
        std::mem::replace(&mut self.slots[slot as usize], vacant)
    }

    fn drop_dead_front(&mut self) {
        while self.dead > 0 {
            let Some(entry) = self.heap.peek().copied() else {
                return;
            };
            if !matches!(self.slots[entry.slot as usize], Slot::Dead { .. }) {
                return;
            }
            self.heap.pop();
            self.vacate(entry.slot);
            self.dead -= 1;
        }
    }

    /// Rebuilds the heap without its dead entries.
    fn sweep(&mut self) {
        let mut heap = std::mem::take(&mut self.heap);
        heap.retain(|entry| {
            let dead = matches!(self.slots[entry.slot as usize], Slot::Dead { .. });
            if dead {
                self.vacate(entry.slot);
            }
            !dead
        });
        if heap.len() * 4 < heap.capacity() {
            heap.shrink_to(heap.len() * 2);
        }
        self.heap = heap;
        self.dead = 0;
    }

    /// Gives every entry a fresh number, in the order they have now.
    #[cold]
    fn renumber(&mut self) {
        let mut entries = std::mem::take(&mut self.heap).into_vec();
        entries.sort_unstable_by_key(|entry| entry.order);
        for (order, entry) in (0..).zip(&mut entries) {
            entry.order = order;
        }
        self.next_order = u32::try_from(entries.len()).unwrap_or(u32::MAX - 1);
        self.heap = entries.into();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::*;

    fn shelve(timers: &Timers, deadline: i64) -> TimerKey {
        timers.insert_callback(Ticks(deadline), Box::new(|| {}), Location::caller())
    }

    fn expired(timers: &Timers, now: i64) -> Vec<TimerKey> {
        let mut due = Vec::new();
        timers.expire(Ticks(now), &mut due);
        let keys = due.into_iter().map(|due| match due {
            Due::Callback(key) => key,
            Due::Wake(_) => unreachable!("no sleeps here"),
        });
        keys.collect()
    }

    fn counts(timers: &Timers) -> (usize, usize) {
        let shelf = timers.shelf.borrow();
        (shelf.heap.len(), shelf.dead)
    }

    #[test]
    fn a_slot_is_five_words_and_an_entry_two() {
        assert_eq!(size_of::<Slot>(), 5 * 8);
        assert_eq!(size_of::<Entry>(), 2 * 8);
    }

    #[test]
    fn c_075_dead_timers_stay_up_to_a_hundred_and_are_swept_when_most_are_dead() {
        let timers = Timers::new();
        let keys: Vec<_> = (0..100).map(|at| shelve(&timers, at)).collect();
        for key in &keys[1..90] {
            assert!(timers.remove(*key).is_some());
        }
        assert_eq!(
            counts(&timers),
            (100, 89),
            "a hundred is not enough to sweep"
        );

        let more: Vec<_> = (0..100).map(|at| shelve(&timers, 1000 + at)).collect();
        assert_eq!(counts(&timers), (200, 89));
        for key in &more[1..12] {
            assert!(timers.remove(*key).is_some());
        }
        assert_eq!(counts(&timers), (200, 100), "exactly half is not most");
        assert!(timers.remove(more[12]).is_some());
        assert_eq!(counts(&timers), (99, 0), "swept");
        assert_eq!(expired(&timers, 999).len(), 11);
        assert_eq!(timers.next_deadline(), Some(Ticks(1000)));
    }

    #[test]
    fn c_074_the_next_deadline_is_that_of_a_live_timer() {
        let timers = Timers::new();
        let first = shelve(&timers, 1);
        let second = shelve(&timers, 2);
        shelve(&timers, 3);
        assert!(timers.remove(first).is_some() && timers.remove(second).is_some());
        assert!(timers.remove(first).is_none(), "it is cancelled already");
        assert_eq!(timers.next_deadline(), Some(Ticks(3)));
        assert_eq!(counts(&timers), (1, 0));
    }

    #[test]
    fn a_stale_key_does_not_reach_the_next_owner_of_its_slot() {
        let timers = Timers::new();
        let old = shelve(&timers, 1);
        assert_eq!(expired(&timers, 1), [old]);
        assert!(timers.take_due(old).is_some());
        let new = shelve(&timers, 2);
        assert_eq!((old.slot, timers.remove(old).is_none()), (new.slot, true));
        assert_eq!(expired(&timers, 2), [new]);
    }

    #[test]
    fn ties_stay_in_order_when_the_counter_is_used_up() {
        let timers = Timers::new();
        timers.shelf.borrow_mut().next_order = u32::MAX - 2;
        let keys: Vec<_> = (0..6).map(|_| shelve(&timers, 5)).collect();
        assert_eq!(expired(&timers, 5), keys);
    }

    #[test]
    fn never_does_not_come() {
        let timers = Timers::new();
        let key = timers.insert_callback(Ticks::NEVER, Box::new(|| {}), Location::caller());
        assert_eq!(expired(&timers, i64::MAX), []);
        assert!(timers.remove(key).is_some());
        assert_eq!(timers.next_deadline(), None);
    }

    /// A million random operations against a map ordered by (deadline, creation).
    #[test]
    fn fault_b5_a_million_operations_agree_with_a_naive_model() {
        let timers = Timers::new();
        let mut model = BTreeMap::new();
        let mut live = Vec::new();
        let mut random = crate::random::Random::new(75);
        let (mut now, mut created, mut most_dead) = (0_i64, 0_u64, 0);
        let alive = Rc::new(());
        for _ in 0..1_000_000 {
            match random.next() % 8 {
                0..=3 => {
                    let deadline = now + (random.next() % 1000) as i64 - 10;
                    let token = Rc::clone(&alive);
                    let f = Box::new(move || drop(token));
                    let key = timers.insert_callback(Ticks(deadline), f, Location::caller());
                    model.insert((deadline, created), key);
                    live.push((deadline, created));
                    created += 1;
                }
                4..=6 if !live.is_empty() => {
                    let at = (random.next() % live.len() as u64) as usize;
                    let entry = live.swap_remove(at);
                    // One that is not in the model has fired.
                    if let Some(key) = model.remove(&entry) {
                        assert!(timers.remove(key).is_some());
                    }
                }
                _ => {
                    now += (random.next() % 20) as i64;
                    let due: Vec<_> = model.range(..=(now, u64::MAX)).map(|(at, _)| *at).collect();
                    let keys: Vec<_> = due.iter().filter_map(|at| model.remove(at)).collect();
                    assert_eq!(expired(&timers, now), keys);
                    for key in keys {
                        assert!(timers.take_due(key).is_some() && timers.take_due(key).is_none());
                    }
                    assert_eq!(
                        timers.next_deadline(),
                        model.keys().next().map(|at| Ticks(at.0))
                    );
                }
            }
            let (heap, dead) = counts(&timers);
            assert_eq!(heap - dead, model.len());
            assert_eq!(
                Rc::strong_count(&alive),
                model.len() + 1,
                "closures die when cancelled"
            );
            most_dead = most_dead.max(dead.saturating_sub(heap / 2).saturating_sub(100));
        }
        assert_eq!(
            most_dead, 0,
            "dead entries never outnumber the live ones by much"
        );
        assert_eq!(timers.drain().len(), model.len());
        assert_eq!(Rc::strong_count(&alive), 1);
    }
}
