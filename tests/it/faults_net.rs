//! Peers that vanish, flood, or speak out of turn, on real sockets of this machine.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use coloop::{EventLoop, ProtocolHandle, Transport, current, timeout};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SendFlags;

use crate::errors::reports;
use crate::sockets::{
    PATIENCE, Peer, Scribe, address, listener, run, scribe, tcp_pair, turns, until,
};
use crate::verbs::{Trace, real_loop};

const ZERO: Duration = Duration::ZERO;

/// Whether the loop would go to sleep now, and not find something to do at once.
#[track_caller]
fn is_asleep(event_loop: &EventLoop) -> bool {
    let descriptor = event_loop.descriptor().unwrap();
    let mut ready = [PollFd::new(&descriptor, PollFlags::IN)];
    let now = rustix::time::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    event_loop.is_idle() && poll(&mut ready, Some(&now)).unwrap() == 0
}

/// Makes turns until something is so.
#[track_caller]
fn turn_until(event_loop: &EventLoop, so: impl Fn() -> bool) {
    let waited = event_loop.run_until_complete(timeout(PATIENCE, until(so)));
    waited.unwrap().expect("it hangs");
}

/// Connects a socket and a protocol; the client's side, a server's, and a socket of the program's.
async fn connected(role: usize, scribe: Scribe) -> (Rc<dyn Transport>, Peer) {
    match role {
        0 => {
            let (listener, at) = listener();
            let connecting = current().create_connection(move || scribe, at);
            let (transport, _) = connecting.await.unwrap();
            (transport, Peer::of(listener.accept().unwrap().0))
        }
        1 => {
            // The transport is the server's, and its protocol is put there when it is made.
            let made: Rc<RefCell<Option<Rc<dyn Transport>>>> = Rc::default();
            let (tell, scribe) = (Rc::clone(&made), Cell::new(Some(scribe)));
            let factory = move || {
                let tell = Rc::clone(&tell);
                scribe.take().unwrap().and_tells(move |transport| {
                    *tell.borrow_mut() = Some(Rc::clone(transport));
                })
            };
            let server = current()
                .create_server(factory, ("127.0.0.1", 0))
                .await
                .unwrap();
            let peer = Peer::to(address(&server));
            until(|| made.borrow().is_some()).await;
            server.close();
            (made.take().unwrap(), peer)
        }
        _ => {
            let (near, far) = tcp_pair();
            let connecting = current().create_connection_on(move || scribe, near);
            (connecting.await.unwrap().0, Peer::of(far))
        }
    }
}

const ROLES: std::ops::Range<usize> = 0..3;

// ---- Resets --------------------------------------------------------------------------------------

#[test]
fn fault_d1_a_reset_in_the_accept_queue() {
    let trace = Trace::new();
    run(async {
        let server = current().create_server(scribe(&trace), ("127.0.0.1", 0));
        let server = server.await.unwrap();
        let at = address(&server);
        Peer::to(at).reset();
        let healthy = Peer::to(at);
        healthy.say("x").await;
        until(|| trace.has("data x")).await;
        drop(healthy);
        server.close();
        server.wait_closed().await;
    });
    let mut calls = trace.take();
    let reset = calls.iter().position(|call| call == "lost ConnectionReset");
    calls.remove(reset.expect("the reset is told"));
    assert_eq!(calls, ["made", "made", "data x", "eof", "lost"]);
}

#[test]
fn fault_d1_a_reset_in_the_accept_queue_leaves_an_address() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&seen);
    let seen = run(async move {
        let factory = move || {
            let told = Rc::clone(&told);
            Scribe::acting(&Trace::new(), move |transport, call| {
                let known = (
                    transport.local_addr().is_some(),
                    transport.peer_addr().is_some(),
                );
                told.borrow_mut().push((call.to_owned(), known));
            })
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        Peer::to(address(&server)).reset();
        until(|| seen.borrow().len() == 2).await;
        server.close();
        server.wait_closed().await;
        seen.take()
    });
    // The system tells the peer's when it hands the connection out, and never again.
    let known = (true, true);
    let expected = [("made", known), ("lost ConnectionReset", known)];
    let seen: Vec<_> = seen.iter().map(|(call, known)| (&**call, *known)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn fault_d1_a_reset_before_the_first_read() {
    for role in ROLES {
        let trace = Trace::new();
        run(async {
            let (_transport, peer) = connected(role, Scribe::new(&trace)).await;
            peer.reset();
            until(|| trace.has("lost ConnectionReset")).await;
            turns(3).await;
        });
        trace.assert(&["made", "lost ConnectionReset"]);
    }
}

#[test]
fn fault_d1_a_reset_between_reads() {
    for role in ROLES {
        let trace = Trace::new();
        run(async {
            let (transport, peer) = connected(role, Scribe::new(&trace)).await;
            peer.say("first").await;
            until(|| trace.has("data first")).await;
            transport.pause_reading();
            peer.say("second").await;
            peer.reset();
            turns(3).await;
            transport.resume_reading();
            until(|| trace.has("lost ConnectionReset")).await;
            turns(3).await;
        });
        // What came before the reset may be read or not; Linux keeps it.
        let calls = trace.take();
        let expected = ["made", "data first", "data second", "lost ConnectionReset"];
        assert_eq!(calls, expected, "role {role}");
    }
}

#[test]
fn fault_d1_a_reset_with_pending_writes() {
    for role in ROLES {
        for reading in [true, false] {
            let trace = Trace::new();
            run(async {
                let (transport, peer) = connected(role, Scribe::new(&trace)).await;
                if !reading {
                    transport.pause_reading();
                }
                while !transport.is_writing_paused() {
                    transport.write(&[b'x'; 65_536]);
                }
                until(|| trace.has("pause")).await;
                peer.reset();
                until(|| trace.has("lost ConnectionReset")).await;
                assert_eq!(transport.write_buffer_size(), 0, "nothing is kept");
                turns(3).await;
            });
            trace.assert(&["made", "pause", "lost ConnectionReset"]);
        }
    }
}

#[test]
fn fault_d1_a_reset_while_closing() {
    for role in ROLES {
        let trace = Trace::new();
        run(async {
            let (transport, peer) = connected(role, Scribe::new(&trace)).await;
            while !transport.is_writing_paused() {
                transport.write(&[b'x'; 65_536]);
            }
            transport.close();
            turns(3).await;
            assert!(transport.write_buffer_size() > 0);
            peer.reset();
            until(|| trace.has("lost ConnectionReset")).await;
            turns(3).await;
        });
        trace.assert(&["made", "pause", "lost ConnectionReset"]);
    }
}

/// The write that finds the peer gone is the last, and the loss comes by the line.
#[test]
fn fault_d4_a_write_after_the_peer_s_reset() {
    for role in ROLES {
        let trace = Trace::new();
        run(async {
            let (transport, peer) = connected(role, Scribe::new(&trace)).await;
            transport.pause_reading();
            peer.reset();
            turns(3).await;
            assert!(
                !transport.is_closing(),
                "it does not read, so it does not know"
            );
            transport.write(b"is anybody there?");
            trace.log("written");
            assert!(transport.is_closing());
            for _ in 0..3 {
                transport.write(b"nobody");
            }
            turns(3).await;
        });
        let calls = trace.take();
        assert_eq!(calls[..2], ["made", "written"]);
        let last = ["lost ConnectionReset", "lost BrokenPipe"];
        assert!(last.contains(&&*calls[2]) && calls.len() == 3, "{calls:?}");
    }
}

#[test]
fn fault_d4_write_eof_after_the_peer_s_reset_is_an_error_or_nothing() {
    let trace = Trace::new();
    run(async {
        let (transport, peer) = connected(0, Scribe::new(&trace)).await;
        transport.pause_reading();
        peer.reset();
        turns(3).await;
        if let Err(error) = transport.write_eof() {
            assert_eq!(error.kind(), ErrorKind::NotConnected);
        }
        transport.resume_reading();
        until(|| trace.has("lost ConnectionReset")).await;
    });
    trace.assert(&["made", "lost ConnectionReset"]);
}

// ---- Gone while nobody looks ---------------------------------------------------------------------

/// Both ends of a connection, of the program's own make.
fn ends(unix: bool) -> (OwnedFd, OwnedFd) {
    if unix {
        let (near, far) = UnixStream::pair().unwrap();
        (near.into(), far.into())
    } else {
        let (near, far) = tcp_pair();
        (near.into(), far.into())
    }
}

type Pair = (Rc<dyn Transport>, ProtocolHandle<Scribe>);

/// A connection whose reading is paused, and its peer.
fn paused(event_loop: &EventLoop, unix: bool, trace: &Trace) -> (Pair, OwnedFd) {
    let (near, far) = ends(unix);
    let connecting = event_loop.create_connection_on(scribe(trace), near);
    let (transport, handle) = event_loop.run_until_complete(connecting).unwrap().unwrap();
    transport.pause_reading();
    ((transport, handle), far)
}

#[test]
fn fault_c6_a_peer_that_goes_while_reading_is_paused_is_noticed_once_and_later() {
    for unix in [false, true] {
        for reset in [false, true] {
            let (event_loop, trace) = (real_loop(), Trace::new());
            let reported = reports(&event_loop);
            let ((transport, _handle), far) = paused(&event_loop, unix, &trace);
            let socket = socket2::Socket::from(far);
            if reset && unix {
                // A unix socket is reset by a peer that has not read everything.
                transport.write(b"unread");
            } else if reset {
                socket.set_linger(Some(ZERO)).unwrap();
            }
            drop(socket);
            for _ in 0..5 {
                event_loop.turn(Some(ZERO)).unwrap();
                assert!(is_asleep(&event_loop), "unix: {unix}, reset: {reset}");
            }
            trace.assert(&["made"]);
            transport.resume_reading();
            let end = if reset {
                "lost ConnectionReset"
            } else {
                "lost"
            };
            turn_until(&event_loop, || trace.has(end));
            event_loop.turn(Some(ZERO)).unwrap();
            assert!(is_asleep(&event_loop));
            let told: &[&str] = if reset { &[end] } else { &["eof", end] };
            trace.assert(told);
            reported.assert(&[""; 0]);
        }
    }
}

/// After the peer's end only writing is left: nothing comes by reading any more.
#[test]
fn fault_c6_a_connection_that_is_kept_open_after_its_end_does_not_spin() {
    for unix in [false, true] {
        let (event_loop, trace) = (real_loop(), Trace::new());
        let (near, far) = ends(unix);
        let log = trace.clone();
        let factory = move || Scribe::new(&log).keeping_open();
        let connecting = event_loop.create_connection_on(factory, near);
        let (transport, _handle) = event_loop.run_until_complete(connecting).unwrap().unwrap();
        let far = socket2::Socket::from(far);
        far.shutdown(Shutdown::Write).unwrap();
        turn_until(&event_loop, || trace.has("eof"));
        for _ in 0..5 {
            event_loop.turn(Some(ZERO)).unwrap();
            assert!(is_asleep(&event_loop), "half-closed, unix: {unix}");
        }
        transport.write(b"still");
        let mut heard = [0; 8];
        assert_eq!((&far).read(&mut heard).unwrap(), 5);
        // Now both directions are at their end, which the system would report at any time.
        drop(far);
        for _ in 0..5 {
            event_loop.turn(Some(ZERO)).unwrap();
            assert!(is_asleep(&event_loop), "closed, unix: {unix}");
        }
        transport.close();
        turn_until(&event_loop, || trace.has("lost"));
        trace.assert(&["made", "eof", "lost"]);
    }
}

#[test]
fn fault_c6_a_paused_connection_with_something_to_write_notices_at_once() {
    for unix in [false, true] {
        let (event_loop, trace) = (real_loop(), Trace::new());
        let ((transport, _handle), far) = paused(&event_loop, unix, &trace);
        while !transport.is_writing_paused() {
            transport.write(&[b'x'; 65_536]);
        }
        drop(far);
        let lost = ["lost ConnectionReset", "lost BrokenPipe"];
        turn_until(&event_loop, || lost.iter().any(|call| trace.has(call)));
        event_loop.turn(Some(ZERO)).unwrap();
        assert!(is_asleep(&event_loop));
        assert_eq!(trace.take()[..2], ["made", "pause"]);
    }
}

// ---- Out of turn ---------------------------------------------------------------------------------

#[test]
fn fault_d17_a_byte_out_of_band_does_not_spin_and_nothing_is_lost() {
    for (before, after) in [("", ""), ("before", ""), ("", "after"), ("before", "after")] {
        let (event_loop, trace) = (real_loop(), Trace::new());
        let (near, mut far) = tcp_pair();
        let received = Rc::new(RefCell::new(String::new()));
        let (log, text) = (trace.clone(), Rc::clone(&received));
        let factory = move || {
            Scribe::acting(&log, move |_, call| {
                text.borrow_mut()
                    .push_str(call.strip_prefix("data ").unwrap_or_default());
            })
        };
        let connecting = event_loop.create_connection_on(factory, near);
        let (_transport, _handle) = event_loop.run_until_complete(connecting).unwrap().unwrap();
        far.write_all(before.as_bytes()).unwrap();
        rustix::net::send(&far, b"!", SendFlags::OOB).unwrap();
        far.write_all(after.as_bytes()).unwrap();
        let expected = format!("{before}{after}");
        turn_until(&event_loop, || *received.borrow() == expected);
        // The mark itself takes a read or two, which give nothing.
        for _ in 0..3 {
            event_loop.turn(Some(ZERO)).unwrap();
        }
        assert!(is_asleep(&event_loop), "{before:?}, {after:?}");
        far.write_all(b", and on").unwrap();
        drop(far);
        turn_until(&event_loop, || trace.has("lost"));
        assert_eq!(*received.borrow(), expected + ", and on");
    }
}

#[test]
fn fault_d17_a_byte_out_of_band_while_reading_is_paused() {
    let (event_loop, trace) = (real_loop(), Trace::new());
    let ((transport, _handle), far) = paused(&event_loop, false, &trace);
    let mut far = TcpStream::from(far);
    rustix::net::send(&far, b"!", SendFlags::OOB).unwrap();
    far.write_all(b"in line").unwrap();
    for _ in 0..3 {
        event_loop.turn(Some(ZERO)).unwrap();
        assert!(is_asleep(&event_loop));
    }
    trace.assert(&["made"]);
    transport.resume_reading();
    turn_until(&event_loop, || trace.has("data in line"));
}

// ---- Floods --------------------------------------------------------------------------------------

/// So many are accepted in a turn, whatever the backlog.
const MOST_ACCEPTS: usize = 64;

#[test]
fn fault_d11_a_flood_of_connections_leaves_the_others_their_turn() {
    let (event_loop, trace) = (real_loop(), Trace::new());
    let accepted = Rc::new(Cell::new(0));
    let (log, count) = (trace.clone(), Rc::clone(&accepted));
    let factory = move || {
        count.set(count.get() + 1);
        Scribe::echoing(&log)
    };
    let server = event_loop
        .create_server(factory, ("127.0.0.1", 0))
        .backlog(1_000);
    let server = event_loop.run_until_complete(server).unwrap().unwrap();
    let at = address(&server);
    let mut healthy = TcpStream::connect(at).unwrap();
    turn_until(&event_loop, || trace.has("made"));
    healthy.set_nonblocking(true).unwrap();

    let flood: Vec<_> = (0..300).map(|_| TcpStream::connect(at).unwrap()).collect();
    let mut turns = 0;
    let mut least = usize::MAX;
    while accepted.get() < 301 {
        healthy.write_all(b"ping").unwrap();
        let before = accepted.get();
        event_loop.turn(Some(ZERO)).unwrap();
        turns += 1;
        let in_this_turn = accepted.get() - before;
        assert!(in_this_turn <= MOST_ACCEPTS, "{in_this_turn} in one turn");
        least = least.min(in_this_turn);
        // It is answered in the very turn.
        let mut pong = [0; 8];
        assert_eq!(healthy.read(&mut pong).unwrap(), 4, "in turn {turns}");
    }
    assert_eq!(turns, 300_usize.div_ceil(MOST_ACCEPTS));
    assert!(least > 0, "and the flood has its own turn too");
    server.close();
    drop((flood, healthy));
    turn_until(&event_loop, || trace.count("lost") == 301);
}

/// A small backlog is also the most that is accepted at once.
#[test]
fn fault_d11_a_server_accepts_no_more_at_once_than_its_backlog() {
    let event_loop = real_loop();
    let accepted = Rc::new(Cell::new(0));
    let count = Rc::clone(&accepted);
    let factory = move || {
        count.set(count.get() + 1);
        Scribe::new(&Trace::new())
    };
    let server = event_loop
        .create_server(factory, ("127.0.0.1", 0))
        .backlog(3);
    let server = event_loop.run_until_complete(server).unwrap().unwrap();
    let clients: Vec<_> = (0..4)
        .map(|_| TcpStream::connect(address(&server)).unwrap())
        .collect();
    event_loop.turn(Some(ZERO)).unwrap();
    assert_eq!(accepted.get(), 3);
    event_loop.turn(Some(ZERO)).unwrap();
    assert_eq!(accepted.get(), 4);
    drop(clients);
}
