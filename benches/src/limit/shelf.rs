//! Timers of the bare limits: a binary heap of (deadline in ns, number, slot) over a slab.
//!
//! A removed timer leaves its heap entry behind, which is known as dead by its number; when more
//! than half are dead, they are swept out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;
use std::num::NonZeroU64;
use std::task::Waker;

use crate::measure::wall;

pub(super) enum Alarm {
    Wake(Waker),
    Call(Box<dyn FnOnce()>),
}

#[derive(Clone, Copy)]
pub(crate) struct Key {
    number: NonZeroU64,
    slot: u32,
}

struct Slot {
    number: Option<NonZeroU64>,
    alarm: Option<Alarm>,
}

#[derive(Default)]
pub(super) struct Shelf {
    heap: BinaryHeap<Reverse<(u64, NonZeroU64, u32)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    made: u64,
    dead: usize,
}

impl Shelf {
    pub(super) fn add(&mut self, due: u64, alarm: Alarm) -> Key {
        self.made += 1;
        let number = NonZeroU64::MIN.saturating_add(self.made);
        let filled = Slot {
            number: Some(number),
            alarm: Some(alarm),
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = filled;
                slot
            }
            None => {
                self.slots.push(filled);
                (self.slots.len() - 1) as u32
            }
        };
        self.heap.push(Reverse((due, number, slot)));
        Key { number, slot }
    }

    pub(super) fn holds(&self, key: Key) -> bool {
        self.slots[key.slot as usize].number == Some(key.number)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Alarm> {
        let alarm = self.take(key)?;
        self.dead += 1;
        if self.dead > 64 && self.dead * 2 > self.heap.len() {
            let Self {
                heap, slots, dead, ..
            } = self;
            heap.retain(|Reverse((_, number, slot))| slots[*slot as usize].number == Some(*number));
            *dead = 0;
        }
        Some(alarm)
    }

    /// Moves what is due into `due`, in order. Reads the clock only if there is a timer.
    pub(super) fn expire(&mut self, due: &mut Vec<Alarm>) {
        if self.heap.is_empty() {
            return;
        }
        let now = wall();
        while let Some(&Reverse((at, number, slot))) = self.heap.peek() {
            let key = Key { number, slot };
            if self.holds(key) {
                if at > now {
                    break;
                }
                due.extend(self.take(key));
            } else {
                self.dead -= 1;
            }
            self.heap.pop();
        }
    }

    /// The earliest deadline; it may be a dead one's.
    pub(super) fn next(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due, ..))| *due)
    }

    fn take(&mut self, key: Key) -> Option<Alarm> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.number != Some(key.number) {
            return None;
        }
        slot.number = None;
        self.free.push(key.slot);
        mem::take(&mut slot.alarm)
    }
}
