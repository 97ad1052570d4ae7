//! Reaching a protocol by its handle, getting it back, and putting another in its place.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use coloop::{Closed, ProtocolHandle, Unreachable, seat};

use crate::grounds::{Ground, Plain, Side, Stage, broken_promises};
use crate::protocol_calls::{BIG, CALLS, ROOM, far, through_all_calls};
use crate::verbs::Trace;

type Kept = Rc<RefCell<Option<ProtocolHandle<Plain>>>>;

// ---- Lending -----------------------------------------------------------------------------------

#[test]
fn within_its_own_calls_a_protocol_is_busy_for_its_handle() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (kept, said) = (Kept::default(), Trace::new());
        let (held, log) = (Rc::clone(&kept), said.clone());
        let near = Side::new().keeps_open().reacts(move |call, _| {
            if let Some(handle) = &*held.borrow() {
                log.log(format!("{call}: {:?}", handle.with(|_| ()).unwrap_err()));
            }
        });
        let far = far();
        stage.run(async {
            let (handle, _far) = stage.pair(ROOM, &near, &far).await.plain();
            assert_eq!(handle.with(|_| 7), Ok(7));
            let nested = handle.with(|_| handle.with(|_| ()));
            assert_eq!(nested, Ok(Err(Unreachable::Busy)));
            *kept.borrow_mut() = Some(handle);
            through_all_calls(&stage, &near, &far).await;
        });
        let handle = kept.take().unwrap();
        assert_eq!(handle.with(|_| 7), Ok(7), "it outlives the connection");
        drop(handle);
        let expected = CALLS[1..].iter().map(|call| format!("{call}: Busy"));
        said.assert(&expected.collect::<Vec<_>>());
        stage.reports.assert(&[""; 0]);
    }
}

#[test]
fn a_borrower_that_panics_gives_the_protocol_back() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let (handle, _far) = stage.pair(ROOM, &near, &far).await.plain();
            let lent = std::panic::AssertUnwindSafe(|| handle.with(|_| panic!("boom")));
            std::panic::catch_unwind(lent).unwrap_err();
            assert_eq!(handle.with(|_| 7), Ok(7));
            far.t().close();
            near.until_lost().await;
        });
        near.trace.assert(&["made", "eof", "lost"]);
    }
}

/// What happens to a connection while its protocol is lent comes when it is back: nothing is lost,
/// nothing is called meanwhile.
#[test]
fn calls_wait_for_a_protocol_that_is_lent_while_turns_are_made() {
    type Happens = fn(&Stage, &Rc<Side>, &Rc<Side>);
    let cases: [(&str, Happens, &[&str]); 6] = [
        (
            "the peer writes and ends",
            |_, _, far| {
                far.t().write(b"hello");
                far.t().close();
            },
            &["made", "data", "eof", "lost"],
        ),
        (
            "the peer ends without a word",
            |_, _, far| far.t().close(),
            &["made", "eof", "lost"],
        ),
        (
            "it is aborted",
            |_, near, _| near.t().abort(),
            &["made", "lost"],
        ),
        (
            "it is closed",
            |_, near, _| near.t().close(),
            &["made", "lost"],
        ),
        (
            "writing is paused",
            |_, near, _| {
                near.t().write(&vec![0; BIG]);
                assert!(near.t().is_writing_paused());
            },
            &["made", "pause", "resume", "eof", "lost"],
        ),
        (
            "another takes its place",
            |_, near, far| {
                near.t().set_protocol(near.seated("2: ", false));
                far.t().write(b"hello");
                far.t().close();
            },
            &["made", "2: data", "2: eof", "2: lost"],
        ),
    ];
    for ground in Ground::ALL {
        for (what, happens, expected) in cases {
            let stage = Stage::new(ground);
            let (near, far) = (Side::new(), far());
            let (handle, _far) = stage.run(stage.pair(ROOM, &near, &far)).plain();
            let turns = |count| {
                for _ in 0..count {
                    stage.event_loop.turn(Some(Duration::ZERO)).unwrap();
                }
            };
            let replaces = what == "another takes its place";
            let lent = handle.with(|_| {
                happens(&stage, &near, &far);
                turns(20);
                if !replaces {
                    near.trace.assert(&["made"]);
                    near.trace.log("made");
                }
            });
            assert_eq!(lent, Ok(()), "{what} on {ground:?}");
            stage.run(async {
                far.t().resume_reading();
                if near.t().is_writing_paused() {
                    near.until(|side| side.has("resume")).await;
                    far.until(|side| side.count() == BIG).await;
                }
                far.t().close();
                near.until_lost().await;
                far.until(|side| side.has("lost") || side.has("eof")).await;
                far.until_lost().await;
                stage.turns().await;
            });
            let trace = near.trace.take();
            assert_eq!(trace, expected, "{what} on {ground:?}");
            assert_eq!(
                broken_promises(&near.seen(), &trace),
                [""; 0],
                "{what} on {ground:?}"
            );
            stage.reports.assert(&[""; 0]);
        }
    }
}

// ---- The end -----------------------------------------------------------------------------------

fn told(error: Option<&io::Error>) -> String {
    match error {
        None => "nothing".to_owned(),
        Some(error) if error.get_ref().is_some() => error.to_string(),
        Some(error) => format!("{:?}", error.kind()),
    }
}

#[test]
fn closed_gives_the_protocol_back_with_the_reason() {
    type End = fn(&Stage, &Rc<Side>, &Rc<Side>);
    let cases: [(&str, End); 6] = [
        ("the peer closes", |_, _, far| far.t().close()),
        ("it closes", |_, near, _| near.t().close()),
        ("it aborts", |_, near, _| near.t().abort()),
        ("the peer aborts", |_, _, far| far.t().abort()),
        ("it panics", |_, _, far| far.t().write(b"x")),
        ("it is replaced", |_, near, _| {
            near.t().set_protocol(near.seated("2: ", false));
        }),
    ];
    for ground in Ground::ALL {
        for (what, end) in cases {
            let stage = Stage::new(ground);
            let (near, far) = (Side::new(), Side::new());
            let near = near.reacts(|call, _| assert!(call != "data", "boom"));
            let reason = stage.run(async {
                let (handle, _far) = stage.pair(ROOM, &near, &far).await.plain();
                end(&stage, &near, &far);
                let (protocol, error) = handle.closed().await;
                let over = near.has("lost") || what == "it is replaced";
                assert!(over, "{what} on {ground:?}");
                drop(protocol);
                // What is left, for a connection that goes on with another protocol.
                near.t().close();
                near.until_lost().await;
                told(error.as_ref())
            });
            let expected = match what {
                "the peer aborts" if ground.resets() => "ConnectionReset",
                "it panics" => "panic in data_received: boom",
                _ => "nothing",
            };
            assert_eq!(reason, expected, "{what} on {ground:?}");
        }
    }
}

#[test]
fn closed_may_be_polled_by_one_task_and_then_by_another() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        let reason = stage.run(async {
            let (handle, _far) = stage.pair(ROOM, &near, &far).await.plain();
            let mut closed: Pin<Box<Closed<Plain>>> = Box::pin(handle.closed());
            let first = stage.event_loop.create_task(poll_fn(move |cx| {
                assert!(closed.as_mut().poll(cx).is_pending());
                let kept = std::mem::replace(&mut closed, Box::pin(seat_of_nobody()));
                Poll::Ready(kept)
            }));
            let closed = first.await.unwrap();
            let second = stage.event_loop.create_task(closed);
            stage.turns().await;
            far.t().close();
            let (_protocol, error) = second.await.unwrap();
            told(error.as_ref())
        });
        assert_eq!(reason, "nothing", "on {ground:?}");
        near.trace.assert(&["made", "eof", "lost"]);
    }
}

/// A future of the same type that never resolves.
fn seat_of_nobody() -> Closed<Plain> {
    seat(Side::new().plain()).1.closed()
}

#[test]
fn a_handle_or_its_future_that_is_dropped_leaves_the_protocol_to_its_transport() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let (handle, _far) = stage.pair(ROOM, &near, &far).await.plain();
            let mut closed = Box::pin(handle.closed());
            let mut cx = Context::from_waker(Waker::noop());
            assert!(closed.as_mut().poll(&mut cx).is_pending());
            drop(closed);
            far.t().write(b"x");
            near.until_call("data").await;
            assert_eq!(Rc::strong_count(&near), 2, "the protocol's and this one");
            far.t().close();
            near.until_lost().await;
            stage.turns().await;
            near.forget();
            assert_eq!(Rc::strong_count(&near), 1);
        });
        near.trace.assert(&["made", "data", "eof", "lost"]);
    }
}

// ---- A loop that is closed ---------------------------------------------------------------------

#[test]
fn c_330_a_loop_that_is_closed_lets_go_of_its_connections_and_reports_them_in_debug_mode() {
    for ground in Ground::ALL {
        for debug in [true, false] {
            let stage = Stage::with(ground, |builder| builder.debug(debug));
            let (near, far) = (Side::new(), Side::new());
            let (closed, _far) = stage.run(async {
                let (near_handle, far_handle) = stage.pair(ROOM, &near, &far).await.plain();
                near.t().write(&vec![0; BIG]);
                let mut closed = Box::pin(near_handle.closed());
                let mut cx = Context::from_waker(Waker::noop());
                assert!(closed.as_mut().poll(&mut cx).is_pending());
                (closed, far_handle)
            });
            let mut closed = closed;
            near.trace.take();
            far.trace.take();
            stage.event_loop.close().unwrap();
            // Nobody is called any more.
            near.trace.assert(&[""; 0]);
            far.trace.assert(&[""; 0]);
            let expected = if debug { ground.leak_reports() } else { &[] };
            stage.reports.assert(expected);
            let mut cx = Context::from_waker(Waker::noop());
            let Poll::Ready((_protocol, error)) = closed.as_mut().poll(&mut cx) else {
                panic!("it waits for a loop that is closed");
            };
            assert_eq!(error.unwrap().kind(), io::ErrorKind::NotConnected);
            // The transport stays what it is to those that hold it, without a descriptor.
            let transport = near.t();
            assert!(transport.is_closing());
            transport.write(b"x");
            transport.close();
            transport.abort();
            assert!(!transport.with_fd(&mut |_| ()));
            assert_eq!(far.t().write_buffer_size(), 0);
        }
    }
}

#[test]
fn c_330_the_descriptor_of_a_connection_is_closed_with_its_loop() {
    for transport_is_held in [true, false] {
        let stage = Stage::new(Ground::Unix);
        let (near, mut peer) = UnixStream::pair().unwrap();
        let side = Side::new();
        stage.run(async {
            let protocol = side.plain();
            let handle = stage.event_loop.handle();
            let pair = handle
                .create_connection_on(|| protocol, near)
                .await
                .unwrap();
            if !transport_is_held {
                side.forget();
            }
            drop(pair);
            stage.turns().await;
        });
        // Dropping the transport and the handle has changed nothing.
        peer.set_nonblocking(true).unwrap();
        let kind = peer.read(&mut [0]).unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        stage.event_loop.close().unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "it is closed");
        side.trace.assert(&["made"]);
        side.forget();
        assert_eq!(Rc::strong_count(&side), 1);
    }
}

#[test]
fn an_end_that_stands_in_the_line_when_the_loop_is_closed_is_not_told() {
    for ground in Ground::ALL {
        let stage = Stage::with(ground, |builder| builder.debug(true));
        let (near, far) = (Side::new(), Side::new());
        let (handle, _far) = stage.run(stage.pair(ROOM, &near, &far)).plain();
        near.t().abort();
        stage.event_loop.close().unwrap();
        near.trace.assert(&["made"]);
        let mut closed = Box::pin(handle.closed());
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready((protocol, error)) = closed.as_mut().poll(&mut cx) else {
            panic!("it waits for a loop that is closed");
        };
        assert_eq!(error.unwrap().kind(), io::ErrorKind::NotConnected);
        drop(protocol);
    }
}

// ---- Another in its place ----------------------------------------------------------------------

#[test]
fn set_protocol_from_outside_takes_effect_from_the_next_call_on() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let (handle, _far) = stage.pair(ROOM, &near, &far).await.plain();
            let marks = [("2: ", true), ("3: ", false), ("4: ", true)];
            for (count, (mark, lends)) in (1..).zip(marks) {
                near.t().set_protocol(near.seated(mark, lends));
                far.t().write(b"x");
                near.until(|side| side.times("data") == count).await;
            }
            assert_eq!(handle.with(|_| ()), Err(Unreachable::Replaced));
            far.t().close();
            near.until_lost().await;
        });
        near.trace
            .assert(&["made", "2: data", "3: data", "4: data", "4: eof", "4: lost"]);
        assert_eq!(near.received(), b"xxx");
        stage.reports.assert(&[""; 0]);
    }
}

#[test]
fn a_protocol_that_comes_too_late_is_dropped() {
    for ground in Ground::ALL {
        for within in [true, false] {
            let stage = Stage::new(ground);
            let late = Rc::new(Cell::new(None));
            let other = Side::new();
            let (new, seated) = (Rc::clone(&other), Rc::clone(&late));
            let take_place = move |transport: &Rc<dyn coloop::Transport>| {
                let (protocol, handle) = seat(new.plain());
                transport.set_protocol(protocol);
                seated.set(Some(handle));
            };
            let inside = take_place.clone();
            let near = Side::new().reacts(move |call, transport| {
                if within && call == "lost" {
                    inside(transport);
                }
            });
            let far = Side::new();
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                far.t().close();
                near.until_lost().await;
                if !within {
                    take_place(&near.t());
                }
                let handle: ProtocolHandle<Plain> = late.take().unwrap();
                stage.turns().await;
                let (protocol, error) = handle.closed().await;
                drop(protocol);
                assert_eq!(told(error.as_ref()), "nothing");
            });
            near.trace.assert(&["made", "eof", "lost"]);
            other.trace.assert(&[""; 0]);
            drop(take_place);
        }
    }
}

/// The first bytes of a block are the last of one protocol's, and the rest are the next one's.
#[test]
fn a_buffered_protocol_hands_over_in_the_middle_of_what_has_come() {
    for ground in Ground::ALL {
        for lends in [true, false] {
            let stage = Stage::new(ground);
            let next = Side::lending().lends(3);
            let taken = Rc::clone(&next);
            let mut count = 0;
            let near = Side::lending().lends(4).reacts(move |call, transport| {
                count += usize::from(call == "data");
                if call == "data" && count == 2 {
                    transport.set_protocol(taken.seated("2: ", lends));
                }
            });
            let far = Side::new();
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                far.t().write(b"0123456789abcdef");
                far.t().close();
                next.until_lost().await;
            });
            assert_eq!(near.received(), b"01234567", "on {ground:?}");
            assert_eq!(next.received(), b"89abcdef", "on {ground:?}");
            near.trace.assert(&["made", "data", "data"]);
            let calls = if lends { 3 } else { 1 };
            let mut expected = vec!["2: data"; calls];
            expected.extend(["2: eof", "2: lost"]);
            next.trace.assert(&expected);
        }
    }
}
