//! `mio`: its `Poll`, edge-triggered as it always is, each socket registered once for both ways.

use std::io;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::Socket;

use super::session::{Next, Session, Until};
use super::{Kind, SHARED_BUFFER, accept, announce};

pub(super) fn serve(listener: &Socket, kind: Kind) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let door = listener.as_raw_fd();
    poll.registry().register(
        &mut SourceFd(&door),
        Token(door as usize),
        Interest::READABLE,
    )?;
    let mut sessions: Vec<Option<Session>> = Vec::new();
    let mut buffer = vec![0; SHARED_BUFFER];
    let mut events = Events::with_capacity(1024);
    announce()?;
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let key = event.token().0;
            if key == door as usize {
                while let Some(socket) = accept(listener, kind)? {
                    let fd = socket.as_raw_fd();
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry()
                        .register(&mut SourceFd(&fd), Token(fd as usize), both)?;
                    if sessions.len() <= fd as usize {
                        sessions.resize_with(fd as usize + 1, || None);
                    }
                    sessions[fd as usize] = Some(Session::new(socket));
                }
                continue;
            }
            let Some(Some(session)) = sessions.get_mut(key) else {
                continue;
            };
            // The first event of a connection may say no more than that it can be written to.
            if !event.is_readable() && !session.waits_to_write() {
                continue;
            }
            let until = if event.is_read_closed() {
                Until::Empty
            } else {
                Until::Short
            };
            if session.step(&mut buffer, until) == Next::Close {
                let fd = session.socket.as_raw_fd();
                poll.registry().deregister(&mut SourceFd(&fd))?;
                sessions[key] = None;
            }
        }
    }
}
