//! Accepting: what goes wrong with one connection is that one's own affair, and a server may be closed
//! at any moment of it.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;

use coloop::{Server, current};

use crate::server::{client, echo, is_ready, serving};
use crate::sockets::{Peer, Scribe, address, listener, run, run_reporting, turns, until};
use crate::verbs::Trace;

/// Of two that are told of one connection, one finds nothing.
#[test]
fn c_275_an_accept_that_would_block_closes_nothing() {
    run(async {
        let (listener, at) = listener();
        let trace = Trace::new();
        let copy = listener.try_clone().unwrap();
        let one = current()
            .create_server_on(echo(&trace), listener)
            .await
            .unwrap();
        let other = current()
            .create_server_on(echo(&trace), copy)
            .await
            .unwrap();
        for _ in 0..5 {
            client(at).await;
        }
        turns(3).await;
        assert!(one.is_serving() && other.is_serving());
        one.close();
        client(at).await;
        other.close();
    });
}

#[test]
fn c_276_a_factory_that_panics_costs_one_connection() {
    let trace = Trace::new();
    let ((), reported) = run_reporting(async {
        let (log, count) = (trace.clone(), Cell::new(0));
        let factory = move || {
            count.set(count.get() + 1);
            assert_ne!(count.get(), 2, "not the second");
            Scribe::echoing(&log)
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        let at = address(&server);
        let first = client(at).await;
        let second = Peer::to(at);
        assert_eq!(second.hear_end().await, (String::new(), None));
        let third = client(at).await;
        first.say("on").await;
        assert_eq!(first.hear(2).await, "on");
        assert!(server.is_serving());
        server.close();
        drop((first, third));
        server.wait_closed().await;
    });
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(
        reported[0].starts_with("panic in a protocol factory: "),
        "{reported:?}"
    );
    assert!(reported[0].contains("not the second"), "{reported:?}");
}

#[test]
fn c_276_a_connection_made_that_panics_costs_nothing() {
    let trace = Trace::new();
    let ((), reported) = run_reporting(async {
        let log = trace.clone();
        let factory = move || {
            Scribe::acting(&log, |transport, call| {
                assert_ne!(call, "made", "not today");
                transport.write(b"got it");
            })
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        let peer = Peer::to(address(&server));
        peer.say("x").await;
        assert_eq!(peer.hear(6).await, "got it");
        server.close();
        server.abort_clients();
    });
    assert_eq!(reported.len(), 1, "{reported:?}");
}

/// A factory is called in the line and owns itself meanwhile: it may do anything, also end its server.
#[test]
fn fault_d18_a_factory_that_closes_its_own_server() {
    let trace = Trace::new();
    run(async {
        let mine: Rc<RefCell<Option<Server>>> = Rc::default();
        let (log, own) = (trace.clone(), Rc::clone(&mine));
        let factory = move || {
            log.log("factory");
            let server = own.borrow().clone().unwrap();
            server.close();
            server.close();
            server.close_clients();
            assert!(!server.is_serving() && server.sockets().is_empty());
            Scribe::echoing(&log)
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        *mine.borrow_mut() = Some(server.clone());
        let at = address(&server);
        // All are in the queue before the first is accepted.
        let (first, others) = (Peer::to(at), [Peer::to(at), Peer::to(at)]);
        first.say("hello").await;
        assert_eq!(first.hear(5).await, "hello", "who was accepted is served");
        for peer in others {
            // The system resets what it has not handed out.
            let reset = Some(ErrorKind::ConnectionReset);
            assert_eq!(peer.hear_end().await, (String::new(), reset));
        }
        drop(first);
        server.wait_closed().await;
        mine.take();
    });
    trace.assert(&["factory", "made", "data hello", "eof", "lost"]);
}

#[test]
fn fault_d18_a_server_that_is_closed_in_each_callback() {
    for call in ["made", "data hello", "eof", "lost"] {
        let trace = Trace::new();
        run(async {
            let mine: Rc<RefCell<Option<Server>>> = Rc::default();
            let (log, own) = (trace.clone(), Rc::clone(&mine));
            let factory = move || {
                let own = Rc::clone(&own);
                Scribe::acting(&log, move |_, now| {
                    if now == call {
                        let server = own.borrow().clone().unwrap();
                        server.close();
                        server.close();
                        assert!(!is_ready(server.wait_closed()), "it is not over in {call}");
                    }
                })
            };
            let server = current()
                .create_server(factory, ("127.0.0.1", 0))
                .await
                .unwrap();
            *mine.borrow_mut() = Some(server.clone());
            let peer = Peer::to(address(&server));
            peer.say("hello").await;
            until(|| trace.has("data hello")).await;
            drop(peer);
            server.wait_closed().await;
            mine.take();
        });
        trace.assert(&["made", "data hello", "eof", "lost"]);
    }
}

/// Closed between the report of the system and the item that accepts.
#[test]
fn fault_d18_a_server_that_is_closed_while_connections_wait() {
    let trace = Trace::new();
    run(async {
        let server = serving(&trace).await;
        let peers = [Peer::to(address(&server)), Peer::to(address(&server))];
        server.close();
        for peer in peers {
            let reset = Some(ErrorKind::ConnectionReset);
            assert_eq!(peer.hear_end().await, (String::new(), reset));
        }
        assert!(is_ready(server.wait_closed()));
    });
    trace.assert(&[""; 0]);
}

/// What was accepted in the turn in which the server closes is a connection or is gone.
#[test]
fn fault_d18_no_connection_is_accepted_and_forgotten() {
    let trace = Trace::new();
    run(async {
        for after in 0..6 {
            trace.take();
            let server = serving(&trace).await;
            let peers: Vec<_> = (0..10).map(|_| Peer::to(address(&server))).collect();
            turns(after).await;
            server.close();
            server.close_clients();
            let mut clean = 0;
            for peer in peers {
                match peer.hear_end().await.1 {
                    None => clean += 1,
                    Some(error) => assert_eq!(error, ErrorKind::ConnectionReset),
                }
            }
            server.wait_closed().await;
            let calls = trace.take();
            let count = |word: &str| calls.iter().filter(|call| *call == word).count();
            assert_eq!(
                (count("made"), count("lost")),
                (clean, clean),
                "after {after} turns"
            );
        }
    });
}
