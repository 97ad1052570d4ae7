//! The trait of transports, and the small values that pass through it.
//!
//! Every method takes `&self` and returns at once; none of them calls a protocol. The trait can be
//! made an object, so that transports of other makes (in memory, encrypted, multiplexed) fit wherever
//! an `Rc<dyn Transport>` does. Those keep their protocol in a [`Seat`](super::Seat).

use std::any::{Any, TypeId};
use std::error::Error;
use std::fmt;
use std::io::{self, IoSlice};
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use super::erased::AnyProtocol;
use crate::address::Address;

/// Moves the bytes of one connection.
///
/// Everything here may be called from anywhere on the loop's thread, also from within the protocol's
/// own methods. Nothing blocks, and nothing calls the protocol back: what follows from a call comes
/// to the protocol by the loop's line.
///
/// # Coming from asyncio
///
/// `ReadTransport`, `WriteTransport` and `Transport` in one. `get_extra_info` is typed: the methods
/// [`local_addr`](Transport::local_addr), [`peer_addr`](Transport::peer_addr), `with_fd`, and
/// [`fact`](trait.Transport.html#method.fact) for what other transports know.
#[doc(alias = "WriteTransport")]
#[doc(alias = "ReadTransport")]
pub trait Transport {
    /// Writes at once what the system takes, and buffers the rest.
    ///
    /// What is written while a [`close`](Transport::close) is flushing is sent as well. What is
    /// written after the connection has gone is discarded; from the fifth such write on that is
    /// reported. A write after [`write_eof`](Transport::write_eof), even of nothing, is discarded
    /// and reported.
    fn write(&self, data: &[u8]);

    /// Writes several buffers as if they were one, without joining them first.
    #[doc(alias = "writelines")]
    fn write_vectored(&self, buffers: &[IoSlice<'_>]);

    /// Writes, unless the program has been asked to pause.
    ///
    /// # Errors
    ///
    /// [`WriteRefused`] says why nothing of `data` was taken.
    fn try_write(&self, data: &[u8]) -> Result<(), WriteRefused>;

    /// Tells whether [`write_eof`](Transport::write_eof) can be used.
    fn can_write_eof(&self) -> bool;

    /// Ends this side's half of the connection once everything buffered is written.
    ///
    /// What the peer sends is still received. A second call does nothing.
    ///
    /// # Errors
    ///
    /// [`Unsupported`](io::ErrorKind::Unsupported) where there is no half-close, or what the system
    /// says when it is asked at once.
    fn write_eof(&self) -> io::Result<()>;

    /// Returns how many bytes wait to be written.
    #[doc(alias = "get_write_buffer_size")]
    fn write_buffer_size(&self) -> usize;

    /// Returns the marks between which writing is paused and resumed.
    #[doc(alias = "get_write_buffer_limits")]
    fn write_buffer_limits(&self) -> WriteLimits;

    /// Sets the marks between which writing is paused and resumed.
    ///
    /// If more than the new high-water mark waits already, writing is paused. It is never resumed
    /// by this alone.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the low mark is above the high one.
    fn set_write_buffer_limits(&self, limits: WriteLimits) -> io::Result<()>;

    /// Tells whether more than the high-water mark has come to wait, and not yet gone down to the
    /// low one.
    ///
    /// It is true at once, also when the protocol will be told a moment later.
    fn is_writing_paused(&self) -> bool;

    /// Tells whether the protocol is given what comes in.
    fn is_reading(&self) -> bool;

    /// Stops reading, until [`resume_reading`](Transport::resume_reading).
    ///
    /// A peer that has gone meanwhile is noticed when reading goes on. No effect when reading is
    /// paused already, or over.
    fn pause_reading(&self);

    /// Reads again. No effect when reading was not paused, or is over.
    fn resume_reading(&self);

    /// Closes the connection once everything buffered is written.
    ///
    /// Nothing is received any more. It waits for a peer that does not read as long as that takes:
    /// follow it by [`abort`](Transport::abort) after a time of your choice.
    fn close(&self);

    /// Closes the connection now; what is buffered is dropped.
    ///
    /// The peer of a TCP connection sees a reset, so that it cannot take half of the bytes for all.
    /// After a [`close`](Transport::close) that had nothing to write there is nothing to abort.
    fn abort(&self);

    /// Tells whether the connection is closing or closed.
    fn is_closing(&self) -> bool;

    /// Lets another protocol take the place of this one, from the next call on.
    ///
    /// The new one is not told that a connection has been made. [`seat`](super::seat()) and
    /// [`seat_buffered`](super::seat_buffered) make the argument.
    fn set_protocol(&self, protocol: AnyProtocol);

    /// Returns this end's address, as long as the connection lasts.
    #[doc(alias = "sockname")]
    fn local_addr(&self) -> Option<Address>;

    /// Returns the peer's address, where it is known: a peer may be gone before it can be asked.
    #[doc(alias = "peername")]
    fn peer_addr(&self) -> Option<Address>;

    /// Lends the descriptor under it, and says whether there was one.
    ///
    /// It is for options of the socket. A borrow that was handed out would dangle across an await.
    #[cfg(unix)]
    fn with_fd(&self, f: &mut dyn FnMut(BorrowedFd<'_>)) -> bool {
        let _ = f;
        false
    }

    /// Returns what a transport knows of this kind; [`fact`](trait.Transport.html#method.fact) is
    /// the way to ask.
    fn extra(&self, kind: TypeId) -> Option<Rc<dyn Any>> {
        let _ = kind;
        None
    }
}

impl dyn Transport {
    /// Returns what this transport knows of a kind that its maker has documented.
    ///
    /// # Coming from asyncio
    ///
    /// `get_extra_info(name)`, with a type in place of a name.
    #[doc(alias = "get_extra_info")]
    pub fn fact<T: Any>(&self) -> Option<Rc<T>> {
        self.extra(TypeId::of::<T>())?.downcast().ok()
    }
}

impl fmt::Debug for dyn Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("local", &self.local_addr())
            .field("peer", &self.peer_addr())
            .field("reading", &self.is_reading())
            .field("buffered", &self.write_buffer_size())
            .field("closing", &self.is_closing())
            .finish()
    }
}

/// The marks of a transport's write buffer, in bytes.
///
/// Writing is paused when more than `high` bytes wait, and resumed when no more than `low` do.
///
/// # Examples
///
/// ```
/// use coloop::WriteLimits;
///
/// assert_eq!(WriteLimits::default(), WriteLimits { high: 65_536, low: 16_384 });
/// assert_eq!(WriteLimits::high(10), WriteLimits { high: 10, low: 2 });
/// assert_eq!(WriteLimits::low(16_385), WriteLimits { high: 65_540, low: 16_385 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "two marks, by name")]
pub struct WriteLimits {
    /// More than this pauses.
    pub high: usize,
    /// No more than this resumes.
    pub low: usize,
}

impl WriteLimits {
    /// The default: 64 KiB and 16 KiB.
    pub const DEFAULT: Self = Self {
        high: 64 * 1024,
        low: 16 * 1024,
    };

    /// Gives a high mark and a fourth of it.
    pub const fn high(high: usize) -> Self {
        Self {
            high,
            low: high / 4,
        }
    }

    /// Gives a low mark and four times it.
    pub const fn low(low: usize) -> Self {
        Self {
            high: low.saturating_mul(4),
            low,
        }
    }

    /// Refuses marks that are the wrong way round.
    pub(crate) fn check(self) -> io::Result<Self> {
        if self.low <= self.high {
            return Ok(self);
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the low-water mark ({}) is above the high-water mark ({})",
                self.low, self.high
            ),
        ))
    }
}

impl Default for WriteLimits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Says why [`Transport::try_write`] has taken nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteRefused {
    /// More than the high-water mark waits: write after `resume_writing`.
    Paused,
    /// `write_eof` was called: this side has nothing more to say.
    Ended,
    /// The connection is closing or closed.
    Closing,
}

impl fmt::Display for WriteRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "the write buffer is full: write after `resume_writing`",
            Self::Ended => "nothing can be written after `write_eof`",
            Self::Closing => "the connection is closing or closed",
        })
    }
}

impl Error for WriteRefused {}

impl From<WriteRefused> for io::Error {
    fn from(refused: WriteRefused) -> Self {
        let kind = match refused {
            WriteRefused::Paused => io::ErrorKind::WouldBlock,
            WriteRefused::Ended => io::ErrorKind::InvalidInput,
            WriteRefused::Closing => io::ErrorKind::NotConnected,
        };
        Self::new(kind, refused)
    }
}
