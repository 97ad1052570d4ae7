//! The echo servers, one a file. Each takes a listening socket that does not block, says its
//! process number when it is about to serve, and sets `TCP_NODELAY` on what it accepts.

#[cfg(feature = "coloop")]
mod coloop;
pub(crate) mod libuv;
mod limit;
mod mio;
mod session;
mod smol;
mod tokio;

use std::io::{self, Write};
use std::os::fd::AsFd;

use socket2::{Domain, SockAddr, Socket};

use super::plan::LIMIT;
use crate::measure::pin;

/// What each connection's buffer holds where a server keeps one for each.
const OWN_BUFFER: usize = 16 * 1024;
/// What the buffer holds that a server keeps for all of its connections.
const SHARED_BUFFER: usize = 64 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Unix]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    pub(crate) fn of(address: &SockAddr) -> Self {
        match address.domain() {
            Domain::UNIX => Self::Unix,
            _ => Self::Tcp,
        }
    }
}

/// What runs in the child.
pub(crate) fn serve(name: &str, kind: Kind) -> io::Result<()> {
    pin(0);
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    match name {
        #[cfg(feature = "coloop")]
        crate::plan::OURS => coloop::serve(listener),
        LIMIT => limit::serve(&listener.into(), kind),
        "mio" => mio::serve(&listener.into(), kind),
        "tokio" => tokio::serve(listener, kind, false),
        "tokio-shared" => tokio::serve(listener, kind, true),
        "smol" => smol::serve(listener, kind),
        other => Err(io::Error::other(format!("{other} is not served here"))),
    }
}

/// Tells the parent that connections are about to be taken.
fn announce() -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", std::process::id())?;
    out.flush()
}

/// The next connection that waits, if any.
fn accept(listener: &Socket, kind: Kind) -> io::Result<Option<Socket>> {
    match listener.accept() {
        Ok((socket, _)) => {
            socket.set_nonblocking(true)?;
            if kind == Kind::Tcp {
                socket.set_tcp_nodelay(true)?;
            }
            Ok(Some(socket))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
