//! Names of things that live in a loop's tables.
//!
//! Each names a slot and, so that a name that has outlived its owner is recognised, the generation
//! of the slot or the number of its owner. They are plain values: who holds one holds nothing.

/// Names a timer on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TimerKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Names a watched source in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WatchKey {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Half of a machine word holds the slot, the other half the generation.
const HALF: u32 = usize::BITS / 2;

impl WatchKey {
    /// Names nothing.
    pub(crate) const NONE: Self = Self {
        slot: u32::MAX,
        generation: u32::MAX,
    };

    /// The form in which a selector carries the key.
    pub(crate) fn packed(self) -> usize {
        ((self.generation as usize) << HALF) | self.slot as usize
    }

    pub(crate) fn unpacked(key: usize) -> Self {
        let slot = (key & ((1 << HALF) - 1)) as u32;
        Self {
            slot,
            generation: (key >> HALF) as u32,
        }
    }

    /// The generation that follows, kept within what a packed key can carry.
    pub(crate) fn next_generation(generation: u32) -> u32 {
        // The highest value is left out: with the highest slot it would be `usize::MAX`, which
        // pollers keep for themselves.
        (generation + 1) % (((1_u64 << HALF) - 1) as u32)
    }
}

/// Which way a source is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Names a task: where its record is, and the how-manieth task of the loop it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TaskKey {
    pub(crate) slot: u32,
    pub(crate) number: u32,
}

impl TaskKey {
    /// Stands for "no task".
    pub(crate) const NONE: Self = Self {
        slot: u32::MAX,
        number: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_key_survives_packing_and_is_never_the_poller_s_own() {
        let last = ((1_u64 << HALF) - 2) as u32;
        for generation in [0, 1, last] {
            for slot in [0, 1, u32::MAX >> (32 - HALF.min(32))] {
                let key = WatchKey { slot, generation };
                assert_eq!(WatchKey::unpacked(key.packed()), key);
                assert_ne!(key.packed(), usize::MAX);
            }
        }
        assert_eq!(WatchKey::next_generation(last), 0);
    }
}
