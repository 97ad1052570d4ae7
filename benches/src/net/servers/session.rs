//! One connection of a server that is told of readiness and does the rest itself: one read, one
//! write, and nothing is read while something is still to be written.

use std::io::{ErrorKind, Read, Write};

use socket2::Socket;

pub(super) struct Session {
    pub(super) socket: Socket,
    unsent: Vec<u8>,
}

/// What the session waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Read,
    Write,
    Close,
}

/// How long a session reads on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// One read: readiness that stands is told again.
    Once,
    /// To a short read, which says that no more data is there, without another call.
    Short,
    /// To a read that would block, or to the end of the stream, which no short read tells.
    Empty,
}

impl Session {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            unsent: Vec::new(),
        }
    }

    pub(super) fn waits_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Does what can be done now.
    #[inline]
    pub(super) fn step(&mut self, buffer: &mut [u8], mut until: Until) -> Next {
        if self.waits_to_write() {
            let next = self.flush();
            if next != Next::Read || until == Until::Once {
                return next;
            }
            // What came meanwhile has been told already, the end of the stream perhaps too.
            until = Until::Empty;
        }
        loop {
            let got = match (&self.socket).read(buffer) {
                Ok(0) => return Next::Close,
                Ok(got) => got,
                Err(error) => return after(error.kind(), Next::Read),
            };
            let sent = match (&self.socket).write(&buffer[..got]) {
                Ok(sent) => sent,
                Err(error) if after(error.kind(), Next::Write) == Next::Write => 0,
                Err(_) => return Next::Close,
            };
            if sent < got {
                self.unsent.extend_from_slice(&buffer[sent..got]);
                return Next::Write;
            }
            match until {
                Until::Once => return Next::Read,
                Until::Short if got < buffer.len() => return Next::Read,
                Until::Short | Until::Empty => {}
            }
        }
    }

    #[cold]
    fn flush(&mut self) -> Next {
        while self.waits_to_write() {
            match (&self.socket).write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) => return after(error.kind(), Next::Write),
            }
        }
        self.unsent = Vec::new();
        Next::Read
    }
}

fn after(error: ErrorKind, again: Next) -> Next {
    match error {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => again,
        _ => Next::Close,
    }
}
