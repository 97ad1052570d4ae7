//! Writing: what a transport sends at once and what it buffers, when it asks for a pause, and how a
//! connection ends with bytes still waiting.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

use coloop::{ByteStream, Transport, WriteLimits, WriteRefused};

use crate::grounds::{Ground, Side, Stage, broken_promises, on_every_ground};
use crate::scripted::{BLOCK, Desk, INTERRUPT, Step};
use crate::verbs::Trace;

const AFTER_EOF: &str = "write after write_eof: the data was discarded";
const IN_VAIN: &str = "write to a connection that is closed: the data was discarded";
/// More than any ground takes at once.
const BIG: usize = 1024 * 1024;
const ROOM: usize = 16 * 1024;

fn write_all(transport: &dyn Transport, parts: &[&[u8]]) {
    let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    transport.write_vectored(&parts);
}

fn limits(high: usize, low: usize) -> WriteLimits {
    WriteLimits { high, low }
}

// ---- At once, or later -------------------------------------------------------------------------

#[test]
fn c_298_a_write_is_sent_at_once_and_no_writer_is_watched() {
    let desk = Desk::new(64, Side::new());
    desk.t().write(b"data");
    desk.assert(&["send 4: 4"], &[]);
    assert_eq!(desk.arrived(), b"data");
    assert_eq!(desk.t().write_buffer_size(), 0);
    desk.turns();
    desk.assert(&[], &[]);
}

#[test]
fn c_299_what_is_not_taken_is_buffered_and_a_writer_is_watched() {
    let cases = [
        (Step::Some(1), "send 4: 1", "send 3: 3"),
        (BLOCK, "send 4: WouldBlock", "send 4: 4"),
        (Step::Some(0), "send 4: 0", "send 4: 4"),
    ];
    for (step, first, second) in cases {
        let desk = Desk::new(64, Side::new());
        desk.script.sends([step]);
        let mut data = *b"data";
        desk.t().write(&data);
        // What is buffered is a copy.
        data.fill(b'?');
        desk.assert(&[first], &["rw"]);
        let sent: usize = first.split(": ").nth(1).unwrap().parse().unwrap_or(0);
        assert_eq!(desk.t().write_buffer_size(), 4 - sent);
        desk.turns();
        desk.assert(&[second], &["r-"]);
        assert_eq!(desk.arrived(), b"data");
    }
}

#[test]
fn c_299_what_every_ground_takes_of_a_large_write() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        let waits = stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().pause_reading();
            near.t().write(&vec![b'x'; BIG]);
            near.t().write_buffer_size()
        });
        if ground.writes_in_part() {
            assert!((1..BIG).contains(&waits), "{waits} on {ground:?}");
        } else {
            assert_eq!(waits, BIG - ROOM, "on {ground:?}");
        }
    }
}

#[test]
fn c_299_a_send_that_is_interrupted_is_made_again() {
    let desk = Desk::new(64, Side::new());
    desk.script.sends([INTERRUPT, INTERRUPT]);
    desk.t().write(b"data");
    desk.assert(
        &["send 4: Interrupted", "send 4: Interrupted", "send 4: 4"],
        &[],
    );
    // Of several buffers, and of what was buffered.
    desk.script
        .sends([INTERRUPT, Step::Some(1), INTERRUPT, Step::Some(1)]);
    write_all(&*desk.t(), &[b"ab", b"cd"]);
    desk.turns();
    let calls = [
        "send_vectored [2, 2]: Interrupted",
        "send_vectored [2, 2]: 1",
        "send 3: Interrupted",
        "send 3: 1",
        "send 2: 2",
    ];
    desk.assert(&calls, &["rw", "r-"]);
    assert_eq!(desk.arrived(), b"dataabcd");
}

#[test]
fn c_300_what_is_written_while_something_waits_is_appended_without_an_attempt() {
    let desk = Desk::new(64, Side::new());
    desk.script.sends([BLOCK]);
    desk.t().write(b"a");
    desk.t().write(b"b");
    write_all(&*desk.t(), &[b"c", b"d"]);
    desk.t().try_write(b"e").unwrap();
    desk.assert(&["send 1: WouldBlock"], &["rw"]);
    assert_eq!(desk.t().write_buffer_size(), 5);
    desk.turns();
    desk.assert(&["send 5: 5"], &["r-"]);
    assert_eq!(desk.arrived(), b"abcde");
}

#[test]
fn c_301_a_write_of_nothing_is_nothing() {
    let desk = Desk::new(64, Side::new());
    let nothing = |transport: &dyn Transport| {
        transport.write(b"");
        write_all(transport, &[]);
        write_all(transport, &[b"", b""]);
    };
    nothing(&*desk.t());
    desk.t().try_write(b"").unwrap();
    desk.turns();
    desk.assert(&[], &[]);
    desk.reports.assert(&[""; 0]);
    desk.t().write_eof().unwrap();
    nothing(&*desk.t());
    assert_eq!(desk.t().try_write(b""), Err(WriteRefused::Ended));
    desk.reports.assert(&[AFTER_EOF; 3]);
}

#[test]
fn c_301_a_write_of_nothing_to_a_connection_that_has_gone_does_not_count() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new(), Side::new());
            let _handles = stage.pair(ROOM, &near, &far).await;
            near.t().abort();
            for _ in 0..10 {
                near.t().write(b"");
                write_all(&*near.t(), &[b""]);
            }
            // Four are in vain and said nothing of.
            (0..4).for_each(|_| near.t().write(b"x"));
            near.until_lost().await;
            near.t().write(b"");
            near.trace.take()
        },
        &["made", "lost"],
    );
}

#[test]
fn c_310_c_311_several_buffers_are_sent_as_one_and_the_rest_is_buffered() {
    let desk = Desk::new(64, Side::new());
    write_all(&*desk.t(), &[b"data1", b"", b"data2"]);
    desk.assert(&["send_vectored [5, 0, 5]: 10"], &[]);
    assert_eq!(desk.arrived(), b"data1data2");
    for (count, rest) in [(2, 8), (5, 5), (7, 3), (0, 10)] {
        desk.script.sends([Step::Some(count)]);
        write_all(&*desk.t(), &[b"data1", b"data2"]);
        assert_eq!(desk.t().write_buffer_size(), rest);
        let sent = format!("send_vectored [5, 5]: {count}");
        desk.assert(&[&sent], &["rw"]);
        desk.turns();
        let sent = format!("send {rest}: {rest}");
        desk.assert(&[&sent], &["r-"]);
        assert_eq!(desk.arrived(), b"data1data2");
    }
    // Above the high-water mark it asks for a pause as a single write does.
    desk.t().set_write_buffer_limits(limits(3, 0)).unwrap();
    desk.script.sends([Step::Some(2)]);
    write_all(&*desk.t(), &[b"abc", b"def"]);
    assert!(desk.t().is_writing_paused());
    desk.turns();
    desk.side.trace.assert(&["pause", "resume"]);
}

#[test]
fn fault_k4_more_slices_than_the_system_takes_and_large_writes_arrive_whole() {
    let piece = |i: usize| [i as u8; 3];
    let pieces: Vec<[u8; 3]> = (0..5_000).map(piece).collect();
    let large: Vec<u8> = (0..16 * 1024 * 1024)
        .map(|i: usize| (i / 7) as u8)
        .collect();
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let _handles = stage.pair(256 * 1024, &near, &far).await;
            let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            near.t().write_vectored(&slices);
            near.t().write(&large);
            near.t().write(b"");
            near.t().close();
            far.until_lost().await;
        });
        assert!(
            far.received() == [pieces.concat(), large.clone()].concat(),
            "on {ground:?}"
        );
        stage.reports.assert(&[""; 0]);
    }
}

// ---- Marks -------------------------------------------------------------------------------------

#[test]
fn c_303_c_304_the_marks_and_what_is_refused() {
    assert_eq!(WriteLimits::low(16_385), limits(65_540, 16_385));
    assert_eq!(WriteLimits::high(10), limits(10, 2));
    assert_eq!(WriteLimits::high(0), limits(0, 0));
    assert_eq!(WriteLimits::low(usize::MAX).high, usize::MAX);
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new(), Side::new());
            let _handles = stage.pair(ROOM, &near, &far).await;
            let t = near.t();
            assert_eq!(t.write_buffer_limits(), limits(65_536, 16_384));
            let error = t.set_write_buffer_limits(limits(1, 2)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(t.write_buffer_limits(), limits(65_536, 16_384), "as before");
            vec![error.to_string()]
        },
        &["the low-water mark (2) is above the high-water mark (1)"],
    );
}

/// Exact marks, on the grounds on which nothing is under way: there is no room at all.
#[test]
fn c_305_fault_k5_writing_is_paused_above_the_high_water_mark_and_the_protocol_told_by_the_line() {
    for ground in [Ground::Memory, Ground::Wire] {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let _handles = stage.pair(0, &near, &far).await;
            let t = near.t();
            far.t().pause_reading();
            near.trace.take();
            t.set_write_buffer_limits(limits(4, 2)).unwrap();
            t.write(b"1234");
            assert_eq!((t.write_buffer_size(), t.is_writing_paused()), (4, false));
            t.write(b"5");
            assert_eq!((t.write_buffer_size(), t.is_writing_paused()), (5, true));
            // Nothing that is called calls back.
            near.trace.assert(&[""; 0]);
            t.write(b"6");
            stage.turns().await;
            near.trace.assert(&["pause"]);
            assert_eq!(t.try_write(b"7"), Err(WriteRefused::Paused));
            assert_eq!(t.write_buffer_size(), 6);
            // A higher mark does not resume by itself; a lower one does not pause again.
            t.set_write_buffer_limits(limits(usize::MAX, usize::MAX))
                .unwrap();
            t.set_write_buffer_limits(limits(1, 0)).unwrap();
            stage.turns().await;
            assert!(t.is_writing_paused());
            near.trace.assert(&[""; 0]);
        });
    }
}

#[test]
fn fault_k5_a_mark_below_what_waits_pauses_at_once_and_the_greatest_never_does() {
    for ground in [Ground::Memory, Ground::Wire] {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let _handles = stage.pair(0, &near, &far).await;
            let t = near.t();
            t.set_write_buffer_limits(limits(usize::MAX, 0)).unwrap();
            t.write(&vec![0; 4 * 1024 * 1024]);
            stage.turns().await;
            assert!(!t.is_writing_paused());
            t.set_write_buffer_limits(limits(0, 0)).unwrap();
            assert!(t.is_writing_paused());
            stage.turns().await;
        });
        // A wire hands on what it has to a peer that reads; a stream without room never does.
        let trace = near.trace.take();
        let expected: &[&str] = match ground {
            Ground::Wire => &["made"],
            _ => &["made", "pause"],
        };
        assert_eq!(&trace[..expected.len()], expected, "on {ground:?}");
    }
}

#[test]
fn c_306_writing_is_resumed_once_when_the_low_water_mark_is_reached() {
    let desk = Desk::new(64, Side::new());
    desk.t().set_write_buffer_limits(limits(8, 4)).unwrap();
    desk.script
        .sends([BLOCK, Step::Some(4), Step::Some(1), BLOCK, Step::Some(2)]);
    desk.t().write(b"123456789");
    while desk.t().write_buffer_size() > 4 {
        assert!(desk.t().is_writing_paused());
        assert!(!desk.side.has("resume"));
        desk.turn();
    }
    desk.side.trace.assert(&["pause", "resume"]);
    assert!(!desk.t().is_writing_paused());
    desk.turns();
    desk.side.trace.assert(&[""; 0]);
    assert_eq!(desk.arrived(), b"123456789");
    let calls = desk.script.calls.take();
    let expected = [
        "send 9: WouldBlock",
        "send 9: 4",
        "send 5: 1",
        "send 4: WouldBlock",
        "send 4: 2",
        "send 2: 2",
    ];
    assert_eq!(calls, expected);
}

/// Who was refused a write waits for `resume_writing`: it comes, even if everything is written before
/// the protocol has been told of the pause.
#[test]
fn c_306_a_pause_that_is_over_before_it_is_told_is_told_with_its_end() {
    let desk = Desk::new(64, Side::new());
    desk.t().set_write_buffer_limits(limits(2, 1)).unwrap();
    desk.script.sends([BLOCK, BLOCK]);
    desk.t().write(b"1");
    let transport = desk.t();
    // The writer's side stands in the line behind this callback, which stands before the news.
    desk.event_loop.call_soon(move || {
        let transport_too = Rc::clone(&transport);
        coloop::current().call_soon(move || {
            transport_too.write(b"23");
            assert_eq!(transport_too.try_write(b"4"), Err(WriteRefused::Paused));
        });
    });
    desk.turns();
    desk.side.trace.assert(&["pause", "resume"]);
    assert_eq!(desk.t().try_write(b"4"), Ok(()));
    assert_eq!(desk.arrived(), b"1234");
    // On a wire, what is delivered first makes room before the news is told.
    let stage = Stage::new(Ground::Wire);
    let (near, far) = (Side::new(), Side::new());
    stage.run(async {
        let _handles = stage.pair(ROOM, &near, &far).await;
        near.t().write(b"x");
        near.t().write(&vec![b'x'; 128 * 1024]);
        assert_eq!(near.t().try_write(b"y"), Err(WriteRefused::Paused));
        near.until_call("resume").await;
    });
    near.trace.assert(&["made", "pause", "resume"]);
}

#[test]
fn c_308_a_panic_in_pause_or_resume_is_reported_and_the_connection_goes_on() {
    for ground in Ground::ALL {
        for (within, name) in [("pause", "pause_writing"), ("resume", "resume_writing")] {
            let stage = Stage::new(ground);
            let near = Side::new().reacts(move |call, _| assert!(call != within, "boom"));
            let far = Side::new();
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                near.t().write(&vec![b'x'; BIG]);
                near.until_call("resume").await;
                near.t().write(b"end");
                near.t().close();
                far.until_lost().await;
            });
            stage.reports.assert(&[format!("panic in {name}: boom")]);
            near.trace.assert(&["made", "pause", "resume", "lost"]);
            assert_eq!(far.count(), BIG + 3, "on {ground:?}");
        }
    }
}

#[test]
fn c_309_resume_writing_may_write_to_its_own_transport_and_to_another() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let other: Rc<RefCell<Option<Rc<dyn Transport>>>> = Rc::default();
        let to = Rc::clone(&other);
        let near = Side::new().reacts(move |call, transport| {
            if call == "resume" {
                transport.write(b"behind");
                to.borrow().as_ref().unwrap().write(b"beside");
            }
        });
        let (far, second, second_far) = (Side::new(), Side::new(), Side::new());
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            let _others = stage.pair(ROOM, &second, &second_far).await;
            *other.borrow_mut() = Some(second.t());
            near.t().write(&vec![b'x'; BIG]);
            near.until_call("resume").await;
            near.t().write(b"last");
            second.t().close();
            near.t().close();
            far.until_lost().await;
            second_far.until_lost().await;
        });
        let received = far.received();
        assert_eq!(&received[BIG..], b"behindlast", "on {ground:?}");
        assert_eq!(second_far.received(), b"beside");
    }
}

// ---- In vain -----------------------------------------------------------------------------------

#[test]
fn c_313_c_314_the_fifth_write_in_vain_and_each_one_after_it_is_reported() {
    for ground in Ground::ALL {
        for aborts in [true, false] {
            let stage = Stage::new(ground);
            let (near, far) = (Side::new(), Side::new());
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                if aborts {
                    near.t().abort();
                } else {
                    near.t().close();
                }
                near.t().write(b"1");
                write_all(&*near.t(), &[b"2", b"2"]);
                near.until_lost().await;
                near.t().write(b"3");
                write_all(&*near.t(), &[b"4"]);
                stage.reports.assert(&[""; 0]);
                near.t().write(b"5");
                write_all(&*near.t(), &[b"6"]);
                assert_eq!(near.t().try_write(b"-"), Err(WriteRefused::Closing));
                far.until_lost().await;
            });
            stage.reports.assert(&[IN_VAIN; 2]);
            assert_eq!(near.t().write_buffer_size(), 0);
            assert_eq!(far.received(), b"", "on {ground:?}");
        }
    }
}

#[test]
fn c_329_fault_d4_a_write_to_a_peer_that_has_gone_is_a_lost_connection() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let near = Side::new();
        let far = Side::new();
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            near.t().pause_reading();
            far.t().close();
            far.until_lost().await;
            // The first may go out before the system knows; reading is paused all the while.
            while !near.t().is_closing() {
                near.t().write(b"x");
                coloop::yield_now().await;
            }
            near.until_lost().await;
        });
        let trace = near.trace.take();
        let reasons = ["lost: BrokenPipe", "lost: ConnectionReset"];
        assert_eq!(trace[0], "made");
        assert!(
            reasons.contains(&&*trace[1]) && trace.len() == 2,
            "{trace:?} on {ground:?}"
        );
    }
}

/// A peer that closes without having read what is still to be flushed to it.
#[test]
fn c_329_a_flush_to_a_peer_that_goes_is_a_lost_connection() {
    for ground in Ground::ALL {
        for closes in [true, false] {
            let stage = Stage::new(ground);
            let (near, far) = (Side::new(), Side::new());
            stage.run(async {
                let _handles = stage.pair(ROOM, &near, &far).await;
                far.t().pause_reading();
                near.t().pause_reading();
                near.t().write(&vec![b'x'; BIG]);
                if closes {
                    near.t().close();
                }
                far.t().close();
                near.until_lost().await;
                far.until_lost().await;
            });
            let mut trace = near.trace.take();
            let last = trace.pop().unwrap();
            let reasons = ["lost: BrokenPipe", "lost: ConnectionReset"];
            assert!(reasons.contains(&&*last), "{last} on {ground:?}");
            trace.retain(|call| call != "pause");
            assert_eq!(trace, ["made"], "on {ground:?}");
        }
    }
}

// ---- Closing -----------------------------------------------------------------------------------

#[test]
fn c_315_fault_d5_close_writes_what_waits_to_a_slow_reader_and_reads_no_more() {
    let data: Vec<u8> = (0..BIG).map(|i| (i / 3) as u8).collect();
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().pause_reading();
            near.t().write(&data);
            near.t().close();
            assert!(!near.t().is_reading());
            // Not on TCP: there a socket that is closed with something unread resets its peer.
            if ground != Ground::Tcp {
                far.t().write(b"too late");
            }
            for _ in 0..3 {
                stage.turns().await;
                assert!(!near.has("lost"), "on {ground:?}");
            }
            // It reads now and then.
            while !far.has("lost") && !far.has("eof") {
                far.t().resume_reading();
                let before = far.count();
                far.until(|side| side.count() > before || side.has("eof") || side.has("lost"))
                    .await;
                far.t().pause_reading();
                coloop::yield_now().await;
            }
            near.until_lost().await;
        });
        near.trace.assert(&["made", "pause", "resume", "lost"]);
        assert!(far.received() == data, "on {ground:?}");
        assert_eq!(near.received(), b"");
    }
}

#[test]
fn c_316_what_is_written_while_a_close_flushes_is_sent_as_well() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let said = Trace::new();
        let log = said.clone();
        let near = Side::new().reacts(move |call, transport| {
            if call == "resume" {
                // It is closing: it takes what comes while something waits.
                log.log(transport.write_buffer_size() > 0);
                transport.write(b"more");
            }
        });
        let far = Side::new();
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            far.t().pause_reading();
            // So that something waits still when it is resumed.
            near.t()
                .set_write_buffer_limits(limits(64 * 1024, 64 * 1024))
                .unwrap();
            near.t().write(&vec![b'x'; BIG]);
            near.t().close();
            near.t().write(b"late");
            near.until_call("pause").await;
            far.t().resume_reading();
            near.until_lost().await;
            far.until_lost().await;
        });
        near.trace.assert(&["made", "pause", "resume", "lost"]);
        let received = far.received();
        assert_eq!(&received[BIG..BIG + 4], b"late", "on {ground:?}");
        // Where the system takes large pieces, nothing may wait any more by then.
        let waited = said.take() == ["true"];
        let expected: &[u8] = if waited { b"more" } else { b"" };
        assert!(waited || ground != Ground::Memory);
        assert_eq!(&received[BIG + 4..], expected, "on {ground:?}");
        stage.reports.assert(&[""; 0]);
    }
}

#[test]
fn c_318_a_write_after_write_eof_is_discarded_and_reported_even_of_nothing() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new().keeps_open());
        stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            assert!(near.t().can_write_eof());
            near.t().write(b"before");
            near.t().write_eof().unwrap();
            near.t().write_eof().unwrap();
            near.t().write(b"after");
            near.t().write(b"");
            write_all(&*near.t(), &[b"after"]);
            assert_eq!(near.t().try_write(b"after"), Err(WriteRefused::Ended));
            far.until_call("eof").await;
            far.t().close();
            near.until_lost().await;
        });
        stage.reports.assert(&[AFTER_EOF; 3]);
        far.trace.assert(&["made", "data", "eof", "lost"]);
        assert_eq!(far.received(), b"before", "on {ground:?}");
    }
}

#[test]
fn c_319_what_comes_after_write_eof_is_received_until_the_peer_ends_too() {
    on_every_ground(
        async |stage| {
            let (near, far) = (Side::new(), Side::new().keeps_open());
            let _handles = stage.pair(ROOM, &near, &far).await;
            near.t().write_eof().unwrap();
            far.until_call("eof").await;
            for count in 1..=3 {
                far.t().write(b"x");
                near.until(|side| side.times("data") == count).await;
            }
            far.t().close();
            near.until_lost().await;
            near.trace.take()
        },
        &["made", "data", "data", "data", "eof", "lost"],
    );
}

#[test]
fn c_320_c_328_abort_drops_what_waits_and_watches_nothing_any_more() {
    let desk = Desk::new(64, Side::new());
    desk.script.sends([BLOCK]);
    desk.t().write(b"first");
    desk.t().write(b"second");
    desk.assert(&["send 5: WouldBlock"], &["rw"]);
    desk.t().abort();
    assert_eq!(desk.t().write_buffer_size(), 0);
    desk.watches.assert(&["delete"]);
    desk.side.trace.assert(&[""; 0]);
    desk.t().write(b"third");
    desk.t().abort();
    desk.t().close();
    desk.turns();
    desk.side.trace.assert(&["lost"]);
    desk.assert(&["abort", "closed"], &[]);
    assert_eq!(desk.arrived(), b"");
}

#[test]
fn c_321_c_323_the_end_is_told_once_and_never_from_within_close() {
    type End = fn(&dyn Transport);
    let ends: [(&str, End); 4] = [
        ("close, abort, close", |t| {
            t.close();
            t.abort();
            t.close();
        }),
        ("abort, close, abort", |t| {
            t.abort();
            t.close();
            t.abort();
        }),
        ("close", |t| t.close()),
        ("abort", |t| t.abort()),
    ];
    for (what, end) in ends {
        for waits in [false, true] {
            for ground in Ground::ALL {
                let stage = Stage::new(ground);
                let (near, far) = (Side::new(), Side::new());
                stage.run(async {
                    let _handles = stage.pair(ROOM, &near, &far).await;
                    if waits {
                        far.t().pause_reading();
                        near.t().write(&vec![b'x'; BIG]);
                        near.until_call("pause").await;
                    }
                    let before = near.seen().len();
                    end(&*near.t());
                    assert_eq!(near.seen().len(), before, "{what} on {ground:?}");
                    far.t().resume_reading();
                    near.until_lost().await;
                    stage.turns().await;
                });
                let trace = near.trace.take();
                let expected: &[&str] = match (waits, what) {
                    (false, _) => &["made", "lost"],
                    (true, "close") => &["made", "pause", "resume", "lost"],
                    (true, _) => &["made", "pause", "lost"],
                };
                assert_eq!(trace, expected, "{what} on {ground:?}");
                assert_eq!(broken_promises(&near.seen(), &trace), [""; 0]);
            }
        }
    }
}

/// What the system says ends the connection and is told to it; what a protocol does wrong is
/// reported as well.
#[test]
fn c_324_fatal_errors() {
    let cases = [
        (ErrorKind::ConnectionReset, "lost: ConnectionReset"),
        (ErrorKind::TimedOut, "lost: TimedOut"),
        (ErrorKind::Other, "lost: Other"),
    ];
    for (kind, told) in cases {
        // When it reads, when it writes at once, when it flushes, when it ends its half.
        let desk = Desk::new(64, Side::new());
        desk.script.recvs([Step::Fail(kind)]);
        desk.far.send(b"x").unwrap();
        desk.turns();
        desk.side.trace.assert(&[told]);
        desk.reports.assert(&[""; 0]);
        let close = ["closed"];
        assert_eq!(desk.script.calls.take()[1..], close);

        let desk = Desk::new(64, Side::new());
        desk.script.sends([Step::Fail(kind)]);
        desk.t().write(b"x");
        assert!(desk.t().is_closing());
        desk.side.trace.assert(&[""; 0]);
        desk.turns();
        desk.side.trace.assert(&[told]);
        desk.reports.assert(&[""; 0]);

        let desk = Desk::new(64, Side::new());
        desk.script.sends([BLOCK, Step::Fail(kind)]);
        desk.t().write(b"x");
        desk.t().close();
        desk.turns();
        desk.side.trace.assert(&[told]);

        let desk = Desk::new(64, Side::new());
        desk.script.sends([BLOCK]);
        desk.script.shutdowns([Step::Fail(kind)]);
        desk.t().write(b"x");
        desk.t().write_eof().unwrap();
        desk.turns();
        desk.side.trace.assert(&[told]);

        // Asked at once, it is said at once.
        let desk = Desk::new(64, Side::new());
        desk.script.shutdowns([Step::Fail(kind)]);
        assert_eq!(desk.t().write_eof().unwrap_err().kind(), kind);
        desk.turns();
        desk.side.trace.assert(&[""; 0]);
    }
    let side = Side::new().reacts(|call, _| assert!(call != "data", "boom"));
    let desk = Desk::new(64, side);
    desk.far.send(b"x").unwrap();
    desk.turns();
    desk.side
        .trace
        .assert(&["data", "lost: panic in data_received: boom"]);
    desk.reports.assert(&["panic in data_received: boom"]);
    desk.assert(&["recv: 1", "abort", "closed"], &["delete"]);
}

#[test]
fn c_325_many_small_writes_arrive_whole() {
    const COUNT: usize = 20_014;
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let (near, far) = (Side::new(), Side::new());
        let written = stage.run(async {
            let _handles = stage.pair(ROOM, &near, &far).await;
            let mut written = Vec::new();
            for number in 0..COUNT {
                let piece = [number as u8; 100];
                if near.t().is_writing_paused() {
                    near.until(|side| !side.t().is_writing_paused()).await;
                }
                near.t().write(&piece);
                written.extend(piece);
            }
            near.t().close();
            far.until_lost().await;
            written
        });
        assert!(far.received() == written, "on {ground:?}");
    }
}

#[test]
fn c_326_each_of_many_connections_may_end_its_half_twice() {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let ends = |call: &str, transport: &Rc<dyn Transport>| {
            if call == "data" {
                transport.write(b"bye");
                transport.write_eof().unwrap();
                transport.write_eof().unwrap();
            }
        };
        stage.run(async {
            let mut pairs = Vec::new();
            for _ in 0..100 {
                let (near, far) = (Side::new(), Side::new().reacts(ends));
                let handles = stage.pair(ROOM, &near, &far).await;
                near.t().write(b"hello");
                pairs.push((near, far, handles));
            }
            for (near, far, _handles) in &pairs {
                near.until_lost().await;
                far.until_lost().await;
                near.trace.assert(&["made", "data", "eof", "lost"]);
                far.trace.assert(&["made", "data", "eof", "lost"]);
                assert_eq!(near.received(), b"bye");
            }
        });
        stage.reports.assert(&[""; 0]);
    }
}

// ---- A stream that calls its own transport -----------------------------------------------------

/// What a transport's user does within `send`, `recv` and `shutdown` of its own stream.
#[test]
fn a_stream_that_writes_to_its_own_transport_within_send_keeps_the_order() {
    let sends: [&[Step]; 4] = [&[], &[Step::Some(2)], &[BLOCK], &[Step::Some(0)]];
    for steps in sends {
        for flushes in [false, true] {
            let desk = Desk::new(64, Side::new());
            if flushes {
                desk.script.sends([BLOCK]);
            }
            desk.script.sends(steps.iter().copied());
            let (first, second) = (desk.t(), desk.t());
            if flushes {
                // The first attempt has no visitor.
                desk.script.within("send", || ());
            }
            desk.script.within("send", move || {
                first.write(b"-inner");
                write_all(&*second, &[b"-ves", b"sel"]);
                assert_eq!(first.write_buffer_size(), 13);
            });
            desk.t().write(b"outer");
            desk.t().write(b"-last");
            desk.turns();
            let arrived = desk.arrived();
            let expected: &[u8] = if flushes {
                // What had been written by then was before it.
                b"outer-last-inner-vessel"
            } else {
                b"outer-inner-vessel-last"
            };
            assert_eq!(
                String::from_utf8_lossy(&arrived),
                String::from_utf8_lossy(expected),
                "{steps:?}, flushes: {flushes}"
            );
            desk.reports.assert(&[""; 0]);
        }
    }
}

#[test]
fn a_stream_that_ends_its_own_transport_within_send() {
    type End = fn(&dyn Transport);
    let ends: [(&str, End); 3] = [
        ("close", |t| t.close()),
        ("abort", |t| t.abort()),
        ("write_eof", |t| t.write_eof().unwrap()),
    ];
    let sends: [(&[Step], &str); 3] = [
        (&[], "whole"),
        (&[Step::Some(2)], "part"),
        (&[BLOCK], "none"),
    ];
    for (what, end) in ends {
        for (steps, taken) in sends {
            for vectored in [false, true] {
                let desk = Desk::new(64, Side::new().keeps_open());
                desk.script.sends(steps.iter().copied());
                let transport = desk.t();
                desk.script.within("send", move || end(&*transport));
                if vectored {
                    write_all(&*desk.t(), &[b"ou", b"ter"]);
                } else {
                    desk.t().write(b"outer");
                }
                desk.side.trace.assert(&[""; 0]);
                desk.turns();
                let place = format!("{what} within a send of {taken}");
                let mut calls = desk.script.calls.take();
                let first = calls.remove(0);
                assert!(first.starts_with("send"), "{place}");
                // Behind what was being written.
                let expected: &[&str] = match (what, taken) {
                    ("close", "whole") => &["closed"],
                    ("close", "part") => &["send 3: 3", "closed"],
                    ("close", _) => &["send 5: 5", "closed"],
                    ("write_eof", "whole") => &["shutdown Write: 0"],
                    ("write_eof", "part") => &["send 3: 3", "shutdown Write: 0"],
                    ("write_eof", _) => &["send 5: 5", "shutdown Write: 0"],
                    _ => &["abort", "closed"],
                };
                assert_eq!(calls, expected, "{place}");
                let arrived = desk.arrived();
                let whole: &[u8] = match (what, taken) {
                    ("abort", "part") => b"ou",
                    ("abort", "none") => b"",
                    _ => b"outer",
                };
                assert_eq!(arrived, whole, "{place}");
                let told: &[&str] = if what == "write_eof" { &[] } else { &["lost"] };
                desk.side.trace.assert(told);
                desk.reports.assert(&[""; 0]);
            }
        }
    }
}

#[test]
fn a_stream_that_ends_its_own_transport_within_a_flush() {
    type End = fn(&dyn Transport);
    let ends: [(&str, End, &[&str]); 3] = [
        (
            "close",
            |t| t.close(),
            &["send 5: 2", "send 3: 3", "closed"],
        ),
        ("abort", |t| t.abort(), &["send 5: 2", "abort", "closed"]),
        (
            "write_eof",
            |t| t.write_eof().unwrap(),
            &["send 5: 2", "send 3: 3", "shutdown Write: 0"],
        ),
    ];
    for (what, end, expected) in ends {
        let desk = Desk::new(64, Side::new().keeps_open());
        desk.script.sends([BLOCK, Step::Some(2)]);
        desk.t().write(b"outer");
        let transport = desk.t();
        desk.script.within("send", move || end(&*transport));
        desk.script.calls.take();
        desk.turns();
        desk.script.calls.assert(expected);
        let told: &[&str] = if what == "write_eof" { &[] } else { &["lost"] };
        desk.side.trace.assert(told);
    }
}

#[test]
fn a_stream_that_calls_its_own_transport_within_recv() {
    type Act = fn(&dyn Transport);
    let acts: [(&str, Act, &[&str], &[&str]); 6] = [
        (
            "write",
            |t| t.write(b"w"),
            &["recv: 1", "send 1: 1"],
            &["data"],
        ),
        ("close", |t| t.close(), &["recv: 1", "closed"], &["lost"]),
        (
            "abort",
            |t| t.abort(),
            &["recv: 1", "abort", "closed"],
            &["lost"],
        ),
        (
            "write_eof",
            |t| t.write_eof().unwrap(),
            &["recv: 1", "shutdown Write: 0"],
            &["data"],
        ),
        (
            "pause_reading",
            |t| t.pause_reading(),
            &["recv: 1"],
            &["data"],
        ),
        (
            "write and close",
            |t| {
                t.write(b"w");
                t.close();
            },
            &["recv: 1", "send 1: 1", "closed"],
            &["lost"],
        ),
    ];
    for lends in [false, true] {
        for (what, act, calls, told) in acts {
            let desk = Desk::new(64, Side::of_kind(lends).keeps_open());
            let transport = desk.t();
            desk.script.within("recv", move || act(&*transport));
            desk.far.send(b"x").unwrap();
            desk.turns();
            desk.script.calls.assert(calls);
            desk.side.trace.assert(told);
            let sent: &[u8] = if what.starts_with("write") && what != "write_eof" {
                b"w"
            } else {
                b""
            };
            assert_eq!(desk.arrived(), sent, "{what}");
            desk.reports.assert(&[""; 0]);
        }
    }
}

#[test]
fn a_stream_that_asks_its_own_transport_is_answered() {
    let desk = Desk::new(64, Side::new());
    let transport = desk.t();
    let asked = Rc::new(Cell::new(false));
    let answered = Rc::clone(&asked);
    desk.script.within("send", move || {
        assert_eq!(transport.write_buffer_size(), 0);
        assert_eq!(transport.local_addr(), None, "the stream is in use");
        assert!(!transport.with_fd(&mut |_| ()));
        assert!(transport.is_reading() && !transport.is_closing());
        assert!(!format!("{transport:?}").is_empty());
        transport.set_write_buffer_limits(limits(0, 0)).unwrap();
        transport.pause_reading();
        transport.resume_reading();
        answered.set(true);
    });
    desk.t().write(b"x");
    assert!(asked.get());
    desk.turns();
    assert_eq!(desk.arrived(), b"x");
}

/// A stall that the system ends at last with an error.
#[test]
fn fault_d15_fault_d16_a_stream_that_stalls_and_then_times_out_is_lost_once_with_that_error() {
    for reads in [true, false] {
        let desk = Desk::new(64, Side::new());
        let stall = [BLOCK; 40];
        desk.script.hush();
        if reads {
            desk.script.recvs(stall);
            desk.script.recvs([Step::Fail(ErrorKind::TimedOut)]);
            desk.far.send(b"x").unwrap();
        } else {
            desk.t().set_write_buffer_limits(limits(2, 1)).unwrap();
            desk.script.sends([Step::Some(3)]);
            desk.script.sends(stall);
            desk.script.sends([Step::Fail(ErrorKind::TimedOut)]);
            desk.t().write(b"123456789");
        }
        (0..39).for_each(|_| desk.turn());
        let before: &[&str] = if reads { &[] } else { &["pause"] };
        desk.side.trace.assert(before);
        desk.turns();
        desk.side.trace.assert(&["lost: TimedOut"]);
        desk.turns();
        desk.side.trace.assert(&[""; 0]);
        desk.reports.assert(&[""; 0]);
        let error: io::Error = ErrorKind::TimedOut.into();
        assert!(!error.to_string().is_empty());
    }
}
