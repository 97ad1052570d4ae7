//! The seam between the loop and what carries bytes.
//!
//! Whatever can be watched is a [`Watchable`]; what also moves bytes without blocking is a
//! [`ByteStream`]. Sockets are both, behind an `Rc`; so are the in-memory streams of
//! [`testing`](crate::testing), so that what is written against these traits runs on either.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::rc::Rc;
#[cfg(unix)]
use std::time::Duration;

#[cfg(unix)]
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags};
#[cfg(unix)]
use socket2::SockRef;

use crate::address::Address;
use crate::selector::Source;

/// Can be watched by a loop.
pub trait Watchable {
    /// Returns what the selector is to watch; the same for the whole life of the value.
    fn source(&self) -> Source;
}

#[cfg(unix)]
impl<T: std::os::fd::AsFd + 'static> Watchable for Rc<T> {
    fn source(&self) -> Source {
        let owner: Self = Self::clone(self);
        Source::Fd(owner)
    }
}

/// Moves bytes in both directions without blocking.
///
/// Every call either does something at once or fails with
/// [`WouldBlock`](io::ErrorKind::WouldBlock).
pub trait ByteStream: Watchable {
    /// Reads what is there; zero bytes is the end of the stream.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if nothing is there, or what the system says.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as there is room for.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is no room, or what the system says.
    fn send(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Writes as much of several buffers as there is room for.
    ///
    /// # Errors
    ///
    /// As [`send`](ByteStream::send).
    fn send_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends one direction or both.
    ///
    /// # Errors
    ///
    /// What the system says, for instance when the peer has gone.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;

    /// Lets the close that follows be an abrupt one, where there is such a thing.
    fn abort(&self) {}

    /// Returns the address of this end, where it has one.
    fn local_address(&self) -> Option<Address> {
        None
    }

    /// Returns the address of the other end, where it is known.
    fn peer_address(&self) -> Option<Address> {
        None
    }
}

/// Any stream socket of the system.
///
/// Writing to a peer that has gone is an error and never a signal (`SIGPIPE`), whatever the program
/// has made of that.
#[cfg(unix)]
impl<T: std::os::fd::AsFd + 'static> ByteStream for Rc<T> {
    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(net::recv(&**self, buffer, RecvFlags::empty())?.0)
    }

    #[inline]
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(net::send(&**self, bytes, NO_SIGNAL)?)
    }

    fn send_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let buffers = &buffers[..buffers.len().min(MOST_SLICES)];
        let mut ancillary = SendAncillaryBuffer::default();
        Ok(net::sendmsg(&**self, buffers, &mut ancillary, NO_SIGNAL)?)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        SockRef::from(&**self).shutdown(how)
    }

    fn abort(&self) {
        // What the system has not sent yet is thrown away, and the peer is told. A socket that has
        // no such option, or no peer any more, is closed as any other.
        let _ = SockRef::from(&**self).set_linger(Some(Duration::ZERO));
    }

    fn local_address(&self) -> Option<Address> {
        Address::of(&SockRef::from(&**self).local_addr().ok()?)
    }

    fn peer_address(&self) -> Option<Address> {
        Address::of(&SockRef::from(&**self).peer_addr().ok()?)
    }
}

/// The least that any system takes in one call is 16; Linux, the BSDs and macOS take this many.
#[cfg(unix)]
const MOST_SLICES: usize = 1024;

#[cfg(all(unix, not(target_vendor = "apple")))]
const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
/// There it is an option of the socket, set when a transport is made.
#[cfg(target_vendor = "apple")]
const NO_SIGNAL: SendFlags = SendFlags::empty();
