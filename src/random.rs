//! Chance that can be repeated: one seed, one sequence.
//!
//! A loop draws everything it leaves to chance from here (SplitMix64, of Steele, Lea and Flood,
//! 2014), so that a run with a given seed can be run again. It is not fit for secrets.

use std::hash::{BuildHasher, RandomState};

/// A generator of numbers from a seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator whose seed nobody chose.
    pub(crate) fn from_entropy() -> Self {
        Self(RandomState::new().hash_one(0))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
