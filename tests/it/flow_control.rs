//! Flow control: what waits to be written has a bound on every path, pauses and resumptions are
//! balanced, and no byte is lost, whatever the peer and the system do.

use std::cell::Cell;
use std::io::IoSlice;
use std::rc::Rc;

use coloop::{ByteStream, Transport, WriteLimits, WriteRefused};

use crate::grounds::{Ground, Side, Stage, broken_promises};
use crate::scripted::{Desk, Random};

const ROOM: usize = 16 * 1024;
const HIGH: usize = 64 * 1024;

/// A way to write.
type Path = fn(&dyn Transport, &[u8]);

const PATHS: [(&str, Path); 3] = [
    ("write", |t, data| t.write(data)),
    ("write_vectored", |t, data| {
        let (a, b) = data.split_at(data.len() / 3);
        t.write_vectored(&[IoSlice::new(a), IoSlice::new(b)]);
    }),
    ("try_write", |t, data| t.try_write(data).unwrap()),
];

/// The bytes of a stream that cannot be mistaken for its own later part.
fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

/// A side that writes pieces of a size until it has written so much, and heeds what it is told.
fn writer(path: Path, piece: usize, total: usize, worst: &Rc<Cell<usize>>) -> Rc<Side> {
    let (written, worst) = (Cell::new(0), Rc::clone(worst));
    Side::new().reacts(move |call, transport| {
        if call != "made" && call != "resume" {
            return;
        }
        while !transport.is_writing_paused() && written.get() < total {
            path(&**transport, &bytes(written.get(), piece));
            written.set(written.get() + piece);
            worst.set(worst.get().max(transport.write_buffer_size()));
        }
        if written.get() >= total {
            transport.write_eof().unwrap();
        }
    })
}

/// A side that reads a piece, and the next one some turns later.
fn slow_reader() -> Rc<Side> {
    Side::new().reacts(|call, transport| {
        if call == "data" {
            transport.pause_reading();
            let again = Rc::clone(transport);
            let later = move || {
                coloop::current().call_soon(move || again.resume_reading());
            };
            coloop::current().call_soon(later);
        }
    })
}

#[test]
fn fault_d13_what_waits_for_a_slow_reader_is_bounded_on_every_path() {
    const TOTAL: usize = 1024 * 1024;
    for ground in Ground::ALL {
        for (name, path) in PATHS {
            for piece in [1_000, 50_000, 300_000] {
                let place = format!("{name} of {piece} on {ground:?}");
                let stage = Stage::new(ground);
                let worst = Rc::default();
                let near = writer(path, piece, TOTAL, &worst);
                let far = slow_reader();
                stage.run(async {
                    let _handles = stage.pair(ROOM, &near, &far).await;
                    near.until_lost().await;
                    far.until_lost().await;
                });
                let whole = bytes(0, TOTAL.next_multiple_of(piece));
                assert!(far.received() == whole, "{place}");
                assert!(worst.get() <= HIGH + piece, "{} in {place}", worst.get());
                assert!(worst.get() > HIGH, "it was never too much in {place}");
                for side in [&near, &far] {
                    let trace = side.trace.take();
                    assert_eq!(broken_promises(&side.seen(), &trace), [""; 0], "{place}");
                }
                assert_eq!(near.times("pause"), near.times("resume"), "{place}");
                assert!(near.has("pause"), "{place}");
                stage.reports.assert(&[""; 0]);
            }
        }
    }
}

/// A window that stays shut for a long time, and then opens; or is never opened.
#[test]
fn fault_d14_fault_d5_a_peer_that_does_not_read_is_waited_for_or_given_up() {
    const TOTAL: usize = 2 * 1024 * 1024;
    for ground in Ground::ALL {
        for (name, path) in PATHS {
            for opens in [true, false] {
                let place = format!("{name} on {ground:?}");
                let stage = Stage::new(ground);
                let worst = Rc::default();
                let near = writer(path, 10_000, TOTAL, &worst);
                let far = Side::new().reacts(|call, transport| {
                    if call == "made" {
                        transport.pause_reading();
                    }
                });
                stage.run(async {
                    let _handles = stage.pair(ROOM, &near, &far).await;
                    near.until_call("pause").await;
                    for _ in 0..50 {
                        stage.turns().await;
                    }
                    assert!(near.t().is_writing_paused(), "{place}");
                    assert_eq!(near.t().try_write(b"x"), Err(WriteRefused::Paused));
                    assert!(worst.get() <= HIGH + 10_000, "{place}");
                    if opens {
                        far.t().resume_reading();
                        far.until_lost().await;
                    } else {
                        near.t().abort();
                        near.until_lost().await;
                        far.t().resume_reading();
                        far.until_lost().await;
                    }
                    near.until_lost().await;
                });
                let trace = near.trace.take();
                assert_eq!(broken_promises(&near.seen(), &trace), [""; 0], "{place}");
                let told = far.trace.take().pop().unwrap();
                if opens {
                    assert!(
                        far.received() == bytes(0, TOTAL.next_multiple_of(10_000)),
                        "{place}"
                    );
                    assert_eq!(told, "lost", "{place}");
                } else {
                    // A part of it is never taken for all of it where that can be told.
                    assert!(far.count() < TOTAL, "{place}");
                    let expected = if ground.resets() {
                        "lost: ConnectionReset"
                    } else {
                        "lost"
                    };
                    assert_eq!(told, expected, "{place}");
                    assert_eq!(trace, ["made", "pause", "lost"], "{place}");
                }
            }
        }
    }
}

/// Both sides write, pause, resume, and change their marks, as a seed has it.
#[test]
fn pauses_and_resumptions_are_balanced_and_no_byte_is_lost_whatever_the_schedule() {
    const TOTAL: usize = 150_000;
    for ground in Ground::ALL {
        for seed in 0..12 {
            let place = format!("seed {seed} on {ground:?}");
            let stage = Stage::new(ground);
            let sides = [Side::new().keeps_open(), Side::new().keeps_open()];
            stage.run(async {
                let [near, far] = &sides;
                let _handles = stage.pair(4_096, near, far).await;
                let mut random = Random::new(seed);
                let mut written = [0, 0];
                while written.iter().any(|count| *count < TOTAL) {
                    let which = random.below(2) as usize;
                    let (t, sent) = (sides[which].t(), &mut written[which]);
                    match random.below(12) {
                        0 => t.pause_reading(),
                        1 | 2 => t.resume_reading(),
                        3 => {
                            let high = random.below(20_000) as usize;
                            let low = high * random.below(5) as usize / 4;
                            t.set_write_buffer_limits(WriteLimits { high, low })
                                .unwrap();
                        }
                        4..=8 => {
                            let most = TOTAL - *sent;
                            let piece = (random.below(30_000) as usize).min(most);
                            let data = bytes(*sent, piece);
                            let before = t.write_buffer_size();
                            if t.is_writing_paused() {
                                assert_eq!(t.try_write(&data), Err(WriteRefused::Paused));
                                assert_eq!(t.write_buffer_size(), before);
                            } else {
                                PATHS[random.below(3) as usize].1(&*t, &data);
                                *sent += piece;
                                let high = t.write_buffer_limits().high;
                                assert!(t.write_buffer_size() <= high + piece, "{place}");
                                assert!(t.is_writing_paused() || t.write_buffer_size() <= high);
                            }
                        }
                        _ => coloop::yield_now().await,
                    }
                }
                for side in &sides {
                    side.t().resume_reading();
                    side.t().write_eof().unwrap();
                }
                for side in &sides {
                    side.until_call("eof").await;
                }
                // Its own half is written by then, or will be before it closes.
                for side in &sides {
                    side.t().close();
                    side.until_lost().await;
                }
            });
            for side in &sides {
                assert!(side.received() == bytes(0, TOTAL), "{place}");
                let trace = side.trace.take();
                assert_eq!(broken_promises(&side.seen(), &trace), [""; 0], "{place}");
                assert_eq!(side.times("pause"), side.times("resume"), "{place}");
            }
            stage.reports.assert(&[""; 0]);
        }
    }
}

/// How much is in flight each way; what lives in memory is slower to move.
fn in_flight(ground: Ground) -> usize {
    if ground.has_descriptor() {
        10 * 1024 * 1024
    } else {
        1024 * 1024
    }
}

#[test]
fn fault_d3_a_connection_that_is_half_closed_in_any_order_loses_no_byte() {
    #[derive(Clone, Copy, Debug)]
    enum Order {
        NearFirst,
        FarFirst,
        Together,
    }
    for ground in Ground::ALL {
        let data = bytes(0, in_flight(ground));
        for order in [Order::NearFirst, Order::FarFirst, Order::Together] {
            for (near_keeps, far_keeps) in
                [(true, true), (true, false), (false, true), (false, false)]
            {
                let place =
                    format!("{order:?}, keeps open: {near_keeps}, {far_keeps}, on {ground:?}");
                let side = |keeps| {
                    let side = Side::new();
                    if keeps { side.keeps_open() } else { side }
                };
                let stage = Stage::new(ground);
                let (near, far) = (side(near_keeps), side(far_keeps));
                stage.run(async {
                    let _handles = stage.pair(256 * 1024, &near, &far).await;
                    // All of it is under way before anybody ends.
                    near.t().write(&data);
                    far.t().write(&data);
                    match order {
                        Order::NearFirst => {
                            near.t().write_eof().unwrap();
                            far.until_call("eof").await;
                            far.t().write_eof().unwrap();
                        }
                        Order::FarFirst => {
                            far.t().write_eof().unwrap();
                            near.until_call("eof").await;
                            near.t().write_eof().unwrap();
                        }
                        Order::Together => {
                            near.t().write_eof().unwrap();
                            far.t().write_eof().unwrap();
                        }
                    }
                    near.until_call("eof").await;
                    far.until_call("eof").await;
                    near.t().close();
                    far.t().close();
                    near.until_lost().await;
                    far.until_lost().await;
                });
                for side in [&near, &far] {
                    assert_eq!(side.count(), data.len(), "{place}");
                    assert!(side.received() == data, "{place}");
                    let trace = side.trace.take();
                    assert_eq!(broken_promises(&side.seen(), &trace), [""; 0], "{place}");
                    assert_eq!(trace.last().unwrap(), "lost", "{place}");
                }
                stage.reports.assert(&[""; 0]);
            }
        }
    }
}

/// A system that has nothing, is interrupted, and moves 1 to 8 bytes at a time.
#[test]
fn fault_c8_fault_c9_fault_c10_a_stream_in_small_pieces_carries_all_bytes_both_ways() {
    for (seed, lends, total) in [(1, false, 1024 * 1024), (2, true, 128 * 1024)] {
        let near = Side::of_kind(lends).lends(100).keeps_open();
        let desk = Desk::new(4_096, near);
        desk.script.hush();
        desk.script.chaos(seed);
        let mut random = Random::new(seed);
        let (out, into) = (bytes(0, total), bytes(7, total));
        let mut buffer = [0; 4_096];
        let (mut written, mut sent, mut arrived) = (0, 0, Vec::<u8>::new());
        while arrived.len() < total || desk.side.count() < total {
            let t = desk.t();
            if written < total && !t.is_writing_paused() {
                let piece = (1 + random.below(5_000) as usize).min(total - written);
                t.write(&out[written..written + piece]);
                written += piece;
            }
            match random.below(64) {
                0 => t.pause_reading(),
                1..=8 => t.resume_reading(),
                _ => {}
            }
            sent += desk.far.send(&into[sent..]).unwrap_or(0);
            desk.turn();
            let count = desk.far.recv(&mut buffer).unwrap_or(0);
            arrived.extend(&buffer[..count]);
            assert!(t.write_buffer_size() <= HIGH + 5_000);
        }
        assert!(
            arrived == out && desk.side.received() == into,
            "seed {seed}"
        );
        desk.t().close();
        desk.turns();
        let trace = desk.side.trace.take();
        assert_eq!(trace.last().unwrap(), "lost");
        assert!(desk.side.times("pause") > 0);
        assert_eq!(broken_promises(&desk.side.seen(), &trace), [""; 0]);
        desk.reports.assert(&[""; 0]);
    }
}
