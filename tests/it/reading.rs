//! Reading: how much comes at a time, how often, and what becomes of the end of it.

use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use coloop::{BufferedProtocol, ByteStream, SeatError, Transport, seat_buffered};

use crate::grounds::{Ground, Side, Stage, broken_promises, on_every_ground};
use crate::scripted::{BLOCK, Desk, INTERRUPT, Step};
use crate::verbs::Trace;

const ROOM: usize = 16 * 1024;
/// The most that one call is given.
const MOST: usize = 256 * 1024;

// ---- How much ----------------------------------------------------------------------------------

/// Logs what a call brought, and between two calls a word for each turn.
fn counting(trace: &Trace, most: &Rc<Cell<usize>>) -> Rc<Side> {
    let (trace, most) = (trace.clone(), Rc::clone(most));
    let before = Cell::new(0);
    let side = Side::new();
    let itself = Rc::downgrade(&side);
    side.reacts(move |call, _| {
        if call == "data" {
            let count = itself.upgrade().unwrap().count();
            most.set(most.get().max(count - before.replace(count)));
            trace.log("data");
        }
    })
}

/// A callback that puts itself into the line again, until it is told to end.
fn ticks(handle: &coloop::LoopHandle, trace: &Trace, goes_on: &Rc<Cell<bool>>) {
    let (again, trace, goes_on) = (handle.clone(), trace.clone(), Rc::clone(goes_on));
    handle.call_soon(move || {
        trace.log("tick");
        if goes_on.get() {
            ticks(&again, &trace, &goes_on);
        }
    });
}

/// One that never waits, from a timer.
fn timer_ticks(handle: &coloop::LoopHandle, trace: &Trace, goes_on: &Rc<Cell<bool>>) {
    let (again, trace, goes_on) = (handle.clone(), trace.clone(), Rc::clone(goes_on));
    handle.call_later(Duration::ZERO, move || {
        trace.log("timer");
        if goes_on.get() {
            timer_ticks(&again, &trace, &goes_on);
        }
    });
}

#[test]
fn c_283_fault_a10_fault_a11_a_peer_that_is_always_readable_gets_one_call_a_turn() {
    const TOTAL: usize = 2 * 1024 * 1024;
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (trace, most) = (Trace::new(), Rc::default());
        let near = counting(&trace, &most);
        // It writes again as soon as it is told that there is room.
        let far = Side::new();
        stage.run(async {
            let _handles = stage.pair(TOTAL, &near, &far).await;
            let handle = stage.event_loop.handle();
            let goes_on = Rc::new(Cell::new(true));
            ticks(&handle, &trace, &goes_on);
            timer_ticks(&handle, &trace, &goes_on);
            far.t().write(&vec![b'x'; TOTAL]);
            near.until(|side| side.count() == TOTAL).await;
            goes_on.set(false);
        });
        assert!(most.get() <= MOST, "{} on {ground:?}", most.get());
        let words = trace.take();
        let calls = words.iter().filter(|word| *word == "data").count();
        if matches!(ground, Ground::Memory | Ground::Wire) {
            assert_eq!(calls, 8, "on {ground:?}");
        }
        // Between two calls the others have had their turn: a callback, and a timer.
        let between: Vec<&[String]> = words.split(|word| word == "data").collect();
        for others in &between[1..between.len() - 1] {
            for other in ["tick", "timer"] {
                let has = others.iter().any(|word| word == other);
                assert!(has, "no {other} between two calls on {ground:?}");
            }
        }
        assert!(calls >= 8, "{calls} on {ground:?}");
    }
}

// ---- The end -----------------------------------------------------------------------------------

#[test]
fn c_284_a_connection_closes_at_the_end_of_input() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new(), Side::new().keeps_open());
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().write_eof().unwrap();
            near.until_call("eof").await;
            assert!(near.t().is_closing());
            near.until_lost().await;
            near.trace.take()
        },
        &["made", "eof", "lost"],
    );
}

#[test]
fn c_285_a_connection_that_is_kept_open_still_writes_until_it_is_closed() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new().keeps_open(), Side::new().keeps_open());
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().write_eof().unwrap();
            near.until_call("eof").await;
            assert!(!near.t().is_closing() && !near.t().is_reading());
            near.t().write(b"still here");
            far.until_call("data").await;
            near.t().close();
            near.until_lost().await;
            far.until_call("eof").await;
            assert_eq!(far.received(), b"still here");
            near.trace.take()
        },
        &["made", "eof", "lost"],
    );
}

#[test]
fn c_285_the_reader_of_a_half_open_connection_is_not_watched() {
    let desk = Desk::new(64, Side::new().keeps_open());
    desk.far.shutdown(std::net::Shutdown::Write).unwrap();
    desk.turns();
    desk.assert(&["recv: 0"], &["--"]);
    desk.side.trace.assert(&["eof"]);
    desk.turns();
    desk.assert(&[], &[]);
}

#[test]
fn c_286_the_end_of_input_is_told_once_also_when_reading_is_paused_and_resumed() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new().keeps_open(), Side::new().keeps_open());
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().write_eof().unwrap();
            near.until_call("eof").await;
            for _ in 0..3 {
                near.t().pause_reading();
                near.t().resume_reading();
                stage.turns().await;
                assert!(!near.t().is_reading());
            }
            near.t().close();
            near.until_lost().await;
            near.trace.take()
        },
        &["made", "eof", "lost"],
    );
}

#[test]
fn c_288_a_panic_in_eof_received_is_fatal() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let near = Side::new().reacts(|call, _| assert!(call != "eof", "boom"));
        let far = Side::new().keeps_open();
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().write_eof().unwrap();
            near.until_lost().await;
            far.until(|side| side.has("lost") || side.has("eof")).await;
        });
        near.trace
            .assert(&["made", "eof", "lost: panic in eof_received: boom"]);
        stage.reports.assert(&["panic in eof_received: boom"]);
        let far = far.trace.take();
        let told = if ground.resets() {
            "lost: ConnectionReset"
        } else {
            "eof"
        };
        assert_eq!(far, ["made", told], "on {ground:?}");
    }
}

// ---- What goes wrong ---------------------------------------------------------------------------

#[test]
fn c_289_nothing_there_and_an_interruption_are_nothing() {
    for lends in [false, true] {
        let desk = Desk::new(64, Side::of_kind(lends));
        desk.script.recvs([BLOCK, BLOCK, INTERRUPT, INTERRUPT]);
        desk.far.send(b"x").unwrap();
        desk.turn();
        desk.turn();
        desk.side.trace.assert(&[""; 0]);
        desk.turns();
        let calls = [
            "recv: WouldBlock",
            "recv: WouldBlock",
            "recv: Interrupted",
            "recv: Interrupted",
            "recv: 1",
        ];
        desk.assert(&calls, &[]);
        desk.side.trace.assert(&["data"]);
        desk.reports.assert(&[""; 0]);
    }
}

#[test]
fn c_290_a_reset_is_told_and_not_reported() {
    let desk = Desk::new(64, Side::new());
    desk.script.recvs([Step::Fail(ErrorKind::ConnectionReset)]);
    desk.far.send(b"x").unwrap();
    desk.turns();
    desk.side.trace.assert(&["lost: ConnectionReset"]);
    desk.reports.assert(&[""; 0]);
    desk.assert(&["recv: ConnectionReset", "closed"], &["delete"]);
    // A real one.
    for ground in Ground::ALL.into_iter().filter(|ground| ground.resets()) {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().abort();
            near.until_lost().await;
        });
        near.trace.assert(&["made", "lost: ConnectionReset"]);
        far.trace.assert(&["made", "lost"]);
        stage.reports.assert(&[""; 0]);
    }
}

// ---- Pausing -----------------------------------------------------------------------------------

#[test]
fn c_291_pausing_and_resuming_twice_is_doing_it_once() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new(), Side::new());
            let _handles = stage.pair(ROOM, &near, &far).await;
            let t = near.t();
            assert!(t.is_reading());
            t.resume_reading();
            for _ in 0..2 {
                t.pause_reading();
                assert!(!t.is_reading());
            }
            far.t().write(b"x");
            stage.turns().await;
            assert!(!near.has("data"));
            for _ in 0..2 {
                t.resume_reading();
                assert!(t.is_reading());
            }
            near.until_call("data").await;
            t.pause_reading();
            t.close();
            t.resume_reading();
            assert!(!t.is_reading());
            t.pause_reading();
            near.until_lost().await;
            t.resume_reading();
            assert!(!t.is_reading());
            near.trace.take()
        },
        &["made", "data", "lost"],
    );
}

#[test]
fn c_291_the_reader_is_watched_while_it_reads_and_forgotten_with_the_connection() {
    let desk = Desk::new(64, Side::new());
    desk.t().pause_reading();
    desk.t().pause_reading();
    desk.watches.assert(&["--"]);
    desk.t().resume_reading();
    desk.t().resume_reading();
    desk.watches.assert(&["r-"]);
    desk.t().close();
    desk.watches.assert(&["delete"]);
    desk.t().resume_reading();
    desk.turns();
    desk.assert(&["closed"], &[]);
    // With something to write it goes on without the reader.
    let desk = Desk::new(64, Side::new());
    desk.script.sends([BLOCK]);
    desk.t().write(b"x");
    desk.t().close();
    desk.turns();
    desk.assert(
        &["send 1: WouldBlock", "send 1: 1", "closed"],
        &["rw", "-w", "delete"],
    );
}

#[test]
fn fault_c6_a_peer_that_goes_while_reading_is_paused_is_noticed_when_it_goes_on() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new(), Side::new());
            let _handles = stage.pair(ROOM, &near, &far).await;
            near.t().pause_reading();
            far.t().write(b"last words");
            far.t().close();
            far.until_lost().await;
            stage.turns().await;
            assert_eq!(near.seen(), ["made"]);
            near.t().resume_reading();
            near.until_lost().await;
            assert_eq!(near.received(), b"last words");
            near.trace.take()
        },
        &["made", "data", "eof", "lost"],
    );
}

// ---- Lent memory -------------------------------------------------------------------------------

/// Notes the hints it is given.
struct Hinted(Trace, [u8; 8]);

impl BufferedProtocol for Hinted {
    fn get_buffer(&mut self, size_hint: Option<usize>) -> &mut [u8] {
        self.0.log(format!("buffer {size_hint:?}"));
        &mut self.1
    }
    fn buffer_updated(&mut self, _: &Rc<dyn Transport>, count: usize) {
        let text = String::from_utf8_lossy(&self.1[..count]);
        self.0.log(format!("updated {text}"));
    }
}

#[test]
fn c_293_a_buffered_protocol_lends_the_memory_that_is_read_into() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (trace, far) = (Trace::new(), Side::new());
        stage.run(async {
            let hinted = Hinted(trace.clone(), [0; 8]);
            let (side, protocol) = (far.plain(), coloop::buffered(|| hinted));
            let ((_near, handle), _far) = stage.connect(ROOM, protocol, || side).await;
            far.until_call("made").await;
            far.t().write(b"hello");
            far.t().close();
            handle.closed().await;
        });
        match ground {
            // It knows what has come.
            Ground::Wire => trace.assert(&["buffer Some(5)", "updated hello"]),
            // The last one is for the end of it.
            _ => trace.assert(&["buffer None", "updated hello", "buffer None"]),
        }
    }
}

#[test]
fn c_294_a_buffer_that_fails_or_is_empty_is_fatal() {
    const EMPTY: &str = "get_buffer returned an empty buffer";
    for ground in Ground::ALL {
        for (within, text) in [
            ("buffer", "panic in get_buffer: boom"),
            ("data", "panic in buffer_updated: boom"),
            ("", EMPTY),
        ] {
            let stage = Stage::new(ground);
            let near = Side::lending().reacts(move |call, _| assert!(call != within, "boom"));
            let near = if within.is_empty() {
                near.lends(0)
            } else {
                near
            };
            let far = Side::new();
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                far.t().write(b"x");
                near.until_lost().await;
            });
            let trace = near.trace.take();
            let lost = format!("lost: {text}");
            let expected: &[&str] = match within {
                "data" => &["made", "data", &lost],
                _ => &["made", &lost],
            };
            assert_eq!(trace, expected, "on {ground:?}");
            assert_eq!(broken_promises(&near.seen(), &trace), [""; 0]);
            stage.reports.assert(&[text]);
        }
    }
}

#[test]
fn c_295_the_next_read_is_in_the_style_of_the_protocol_that_has_the_seat() {
    for ground in Ground::ALL {
        for first_lends in [false, true] {
            let stage = Stage::new(ground);
            let near = Side::of_kind(first_lends);
            let far = Side::new();
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                far.t().write(b"one");
                near.until(|side| side.times("data") == 1).await;
                let buffers = near.times("buffer");
                assert_eq!(buffers > 0, first_lends);
                near.t().set_protocol(near.seated("2: ", !first_lends));
                far.t().write(b"two");
                near.until(|side| side.times("data") == 2).await;
                assert_eq!(near.times("buffer") > buffers, !first_lends);
                far.t().close();
                near.until_lost().await;
            });
            near.trace
                .assert(&["made", "data", "2: data", "2: eof", "2: lost"]);
            assert_eq!(near.received(), b"onetwo");
        }
    }
}

#[test]
fn c_296_a_block_is_split_over_small_buffers() {
    let block: Vec<u8> = (0..=255).collect();
    for ground in Ground::ALL {
        for size in [1, 2, 4, 100, 256, 1_000] {
            let stage = Stage::new(ground);
            let near = Side::lending().lends(size);
            let far = Side::new();
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                far.t().write(&block);
                far.t().close();
                near.until_lost().await;
            });
            let calls = block.len().div_ceil(size);
            assert_eq!(near.times("data"), calls, "{size} on {ground:?}");
            assert_eq!(near.received(), block, "{size} on {ground:?}");
        }
    }
}

/// A seat by itself, as a transport of another make uses it.
#[test]
fn c_296_a_seat_feeds_a_block_to_small_buffers_and_stops_when_the_transport_closes() {
    let stage = Stage::new(Ground::Wire);
    let (near, far) = (Side::new(), Side::new());
    stage.run(async {
        let _handles = stage.pair(ROOM, &near, &far).await;
        let transport = near.t();
        for (size, calls) in [(1, 9), (2, 5), (4, 3), (100, 1)] {
            let fed = Side::lending().lends(size);
            let seat = coloop::Seat::new(seat_buffered(fed.lender()).0);
            seat.data_received(&transport, b"123456789").unwrap();
            assert_eq!(
                (fed.received().as_slice(), fed.times("data")),
                (&b"123456789"[..], calls)
            );
        }
        let empty = Side::lending().lends(0);
        let seat = coloop::Seat::new(seat_buffered(empty.lender()).0);
        let error = seat.data_received(&transport, b"1").unwrap_err();
        assert!(matches!(error, SeatError::Failed(_)), "{error:?}");
        stage
            .reports
            .assert(&["get_buffer returned an empty buffer"]);

        let closes = Side::lending().lends(4).reacts(|call, transport| {
            if call == "data" {
                transport.close();
            }
        });
        let seat = coloop::Seat::new(seat_buffered(closes.lender()).0);
        seat.data_received(&transport, b"123456789").unwrap();
        assert_eq!(closes.received(), b"1234");
    });
}
