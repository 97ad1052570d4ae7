//! The seam between the loop and what carries bytes.
//!
//! Whatever can be watched is a [`Watchable`]; what also moves bytes without blocking is a
//! [`ByteStream`]. Sockets are both, behind an `Rc`; so are the in-memory streams of
//! [`testing`](crate::testing), so that what is written against these traits runs on either.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::rc::Rc;

use socket2::SockRef;

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
}

/// Any stream socket of the system.
#[cfg(unix)]
impl<T: std::os::fd::AsFd + 'static> ByteStream for Rc<T> {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*SockRef::from(&**self)).read(buffer)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        (&*SockRef::from(&**self)).write(bytes)
    }

    fn send_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*SockRef::from(&**self)).write_vectored(buffers)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        SockRef::from(&**self).shutdown(how)
    }
}
