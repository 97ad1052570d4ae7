//! The client: so many connections, each with one message under way, until all have come back.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{SockAddr, Socket};

use super::child::Server;
use super::plan::SIZE;
use super::servers::Kind;

struct Connection {
    socket: Socket,
    /// Bytes of the message that have not been sent yet.
    unsent: usize,
    /// Bytes of the message that have not come back yet.
    missing: usize,
}

impl Connection {
    fn begin(&mut self, pause: Duration) {
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        (self.unsent, self.missing) = (SIZE, SIZE);
    }

    /// Sends what can be sent of the message.
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        while self.unsent > 0 {
            match (&self.socket).write(&message[message.len() - self.unsent..]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what has come; a short read means that no more is there.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        loop {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(got) if got > self.missing => {
                    return Err(io::Error::other("more came back than was sent"));
                }
                Ok(got) => {
                    self.missing -= got;
                    if got < buffer.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) struct Load {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    message: Vec<u8>,
    buffer: Vec<u8>,
}

impl Load {
    pub(crate) fn connect(to: &SockAddr, connections: usize) -> io::Result<Self> {
        let poll = Poll::new()?;
        let connections = (0..connections)
            .map(|at| {
                let socket = connect(to)?;
                socket.set_nonblocking(true)?;
                poll.registry().register(
                    &mut SourceFd(&socket.as_raw_fd()),
                    Token(at),
                    Interest::READABLE | Interest::WRITABLE,
                )?;
                Ok(Connection {
                    socket,
                    unsent: 0,
                    missing: 0,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            connections,
            message: vec![7; SIZE],
            buffer: vec![0; 64 * 1024],
        })
    }

    /// Sends exactly `messages`, each after a `pause`, and returns when all have come back.
    ///
    /// # Errors
    ///
    /// If the server closes a connection or is silent for ten seconds.
    pub(crate) fn run(&mut self, messages: u64, pause: Duration) -> io::Result<()> {
        let (mut begun, mut done) = (0, 0);
        for connection in &mut self.connections {
            if begun < messages {
                begun += 1;
                connection.begin(pause);
                connection.send(&self.message)?;
            }
        }
        while done < messages {
            self.poll
                .poll(&mut self.events, Some(Duration::from_secs(10)))?;
            if self.events.is_empty() {
                return Err(io::Error::other("the server was silent for 10 s"));
            }
            for event in &self.events {
                let connection = &mut self.connections[event.token().0];
                if connection.missing == 0 {
                    continue;
                }
                if event.is_readable() {
                    connection.receive(&mut self.buffer)?;
                    if connection.missing == 0 {
                        done += 1;
                        if begun < messages {
                            begun += 1;
                            connection.begin(pause);
                        }
                    }
                }
                connection.send(&self.message)?;
            }
        }
        Ok(())
    }
}

/// A connection that is reset, not closed, so that no port is kept waiting afterwards.
pub(super) fn connect(to: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(to.domain(), socket2::Type::STREAM, None)?;
    socket.connect(to)?;
    socket.set_linger(Some(Duration::ZERO))?;
    if Kind::of(to) == Kind::Tcp {
        socket.set_tcp_nodelay(true)?;
    }
    Ok(socket)
}

/// Bytes by which the server's resident memory grows for each of so many connections that have had
/// one message each and then rest.
pub(crate) fn idle(server: &Server, connections: usize) -> io::Result<f64> {
    const FIRST: usize = 10;
    let one = || {
        let mut socket = connect(server.address())?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut note = [7; 64];
        socket.write_all(&note)?;
        socket.read_exact(&mut note)?;
        io::Result::Ok(socket)
    };
    // What is made once is not the connections'.
    let first = (0..FIRST).map(|_| one()).collect::<io::Result<Vec<_>>>()?;
    let before = server.resident();
    let rest = (0..connections)
        .map(|_| one())
        .collect::<io::Result<Vec<_>>>()?;
    thread::sleep(Duration::from_millis(100));
    let grown = server.resident().saturating_sub(before);
    drop((first, rest));
    Ok(grown as f64 / connections as f64)
}
