//! Bytes that wait to be written, and the marks that say when there are enough of them.
//!
//! Pure: it knows neither sockets nor protocols. A transport has one only while something waits, or
//! once it has marks of its own, so an idle connection pays a null pointer for it.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::transport::WriteLimits;

/// What a transport has taken and the system has not.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: VecDeque<u8>,
    pub(super) limits: WriteLimits,
}

impl Outbox {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Gives back the memory of bytes that have left, and says whether anything is left to keep.
    pub(super) fn is_needed(&mut self) -> bool {
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
        !self.bytes.is_empty() || self.limits != WriteLimits::DEFAULT
    }

    /// Appends a copy of some bytes.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.bytes.extend(data);
    }

    /// Appends what is behind the first `skip` bytes of several buffers.
    pub(super) fn push_vectored(&mut self, buffers: &[IoSlice<'_>], mut skip: usize) {
        for buffer in buffers {
            let gone = skip.min(buffer.len());
            skip -= gone;
            self.bytes.extend(&buffer[gone..]);
        }
    }

    /// What is to be written next, in one piece or in two.
    pub(super) fn front(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.bytes.as_slices();
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Removes what has been written.
    pub(super) fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }

    /// Puts another's bytes behind its own, and takes over its marks if it has any.
    pub(super) fn append(&mut self, mut other: Self) {
        self.bytes.append(&mut other.bytes);
        if other.limits != WriteLimits::DEFAULT {
            self.limits = other.limits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Seeded operations against the plainest model there is.
    #[test]
    fn bytes_leave_in_the_order_in_which_they_came() {
        let mut random = Random::new(7);
        let (mut outbox, mut model) = (Outbox::default(), Vec::new());
        let mut next = 0_u8;
        for _ in 0..20_000 {
            let mut fresh = |most: u64| {
                let count = random.next() % most;
                let bytes: Vec<u8> = (0..count).map(|i| next.wrapping_add(i as u8)).collect();
                next = next.wrapping_add(count as u8);
                bytes
            };
            let (a, b) = (fresh(40), fresh(40));
            match random.next() % 5 {
                0 => {
                    outbox.push(&a);
                    model.extend(&a);
                }
                1 => {
                    let skip = random.next() as usize % (a.len() + b.len() + 1);
                    outbox.push_vectored(&[IoSlice::new(&a), IoSlice::new(&b)], skip);
                    model.extend([a, b].concat().split_off(skip));
                }
                2 => {
                    let mut other = Outbox::default();
                    other.push(&b);
                    outbox.append(other);
                    model.extend(&b);
                }
                _ => {
                    let count = random.next() as usize % 60;
                    outbox.consume(count);
                    model.drain(..count.min(model.len()));
                }
            }
            let front: Vec<u8> = outbox
                .front()
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(front, model);
            assert_eq!(
                (outbox.len(), outbox.is_empty()),
                (model.len(), model.is_empty())
            );
        }
    }
}
