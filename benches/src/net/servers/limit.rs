//! `limit-polling`: what a loop on the crate polling cannot do without.
//!
//! Sockets are registered with a `Poller` once, level-triggered, and the wait is an `epoll_wait` on
//! its descriptor. `Poller::wait` would make four more system calls: it sets a timer and arms and
//! clears its own means of being woken.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use polling::{Event, PollMode, Poller};
use socket2::Socket;

use super::session::{Next, Session, Until};
use super::{Kind, SHARED_BUFFER, accept, announce};

pub(super) fn serve(listener: &Socket, kind: Kind) -> io::Result<()> {
    let poller = Poller::new()?;
    let door = listener.as_raw_fd() as usize;
    // SAFETY: the listener outlives the poller.
    unsafe { poller.add_with_mode(listener, Event::readable(door), PollMode::Level)? };
    // The place of a session is its descriptor.
    let mut sessions: Vec<Option<Session>> = Vec::new();
    let mut buffer = vec![0; SHARED_BUFFER];
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; 1024];
    announce()?;
    loop {
        let (set, room) = (poller.as_raw_fd(), events.len() as libc::c_int);
        // SAFETY: `events` has room for so many and outlives the call.
        let count = unsafe { libc::epoll_wait(set, events.as_mut_ptr(), room, -1) };
        for event in &events[..count.max(0) as usize] {
            let key = event.u64 as usize;
            if key == door {
                while let Some(socket) = accept(listener, kind)? {
                    let key = socket.as_raw_fd() as usize;
                    // SAFETY: the socket is deleted from the poller before it is closed.
                    unsafe {
                        poller.add_with_mode(&socket, Event::readable(key), PollMode::Level)?;
                    }
                    if sessions.len() <= key {
                        sessions.resize_with(key + 1, || None);
                    }
                    sessions[key] = Some(Session::new(socket));
                }
                continue;
            }
            let Some(Some(session)) = sessions.get_mut(key) else {
                continue;
            };
            let wrote = session.waits_to_write();
            let interest = match session.step(&mut buffer, Until::Once) {
                Next::Close => {
                    poller.delete(session.socket.as_fd())?;
                    sessions[key] = None;
                    continue;
                }
                Next::Read if wrote => Event::readable(key),
                Next::Write if !wrote => Event::writable(key),
                _ => continue,
            };
            poller.modify_with_mode(session.socket.as_fd(), interest, PollMode::Level)?;
        }
    }
}
