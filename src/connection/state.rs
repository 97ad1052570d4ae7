//! What has happened to a connection, as bits.
//!
//! Most questions that a transport asks of itself are about several of them at once, and the one that
//! is asked for every message (`wants_reading`) is a single comparison.

use std::cell::Cell;

/// What has happened to a connection.
#[derive(Default)]
pub(super) struct State(Cell<u8>);

impl State {
    /// The protocol knows of the connection.
    pub(super) const BEGUN: u8 = 1;
    /// Reading is paused.
    pub(super) const PAUSED: u8 = 1 << 1;
    /// Something that was read is kept for a protocol that was busy.
    pub(super) const KEPT: u8 = 1 << 2;
    /// The peer will send no more.
    pub(super) const ENDED: u8 = 1 << 3;
    /// This side will send no more once the outbox is empty.
    pub(super) const EOF_ASKED: u8 = 1 << 4;
    pub(super) const CLOSING: u8 = 1 << 5;
    /// `lose` stands in the line, or has run.
    pub(super) const ENDING: u8 = 1 << 6;
    /// The stream is to be closed abruptly.
    pub(super) const ABRUPT: u8 = 1 << 7;

    /// All of it, to see whether anything changes.
    #[inline]
    pub(super) fn bits(&self) -> u8 {
        self.0.get()
    }

    /// Whether any of these has happened.
    #[inline]
    pub(super) fn any(&self, bits: u8) -> bool {
        self.0.get() & bits != 0
    }

    /// Notes that something has happened; says whether it had before.
    pub(super) fn note(&self, bit: u8) -> bool {
        let before = self.0.get();
        self.0.set(before | bit);
        before & bit != 0
    }

    /// Takes a note back; says whether there was one.
    pub(super) fn forget(&self, bit: u8) -> bool {
        let before = self.0.get();
        self.0.set(before & !bit);
        before & bit != 0
    }

    /// Whether what comes in is to be read.
    #[inline]
    pub(super) fn wants_reading(&self) -> bool {
        const ASKED: u8 =
            State::BEGUN | State::PAUSED | State::KEPT | State::ENDED | State::CLOSING;
        self.0.get() & ASKED == Self::BEGUN
    }
}
