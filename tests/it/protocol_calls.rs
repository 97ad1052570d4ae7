//! What a protocol may do within its calls: anything of its transport, in each of them, with the same
//! outcome on every ground.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::IntoFuture;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};
use std::time::Duration;

use coloop::{PanicPolicy, Protocol, Server, Transport, WriteLimits};

use crate::grounds::{Ground, Side, Stage, broken_promises};

/// The calls of a protocol, in the order in which the scenario brings them about.
pub(crate) const CALLS: [&str; 6] = ["made", "data", "pause", "resume", "eof", "lost"];

/// So much that no ground takes it without asking for a pause.
pub(crate) const BIG: usize = 512 * 1024;
pub(crate) const ROOM: usize = 16 * 1024;

/// What a protocol does within a call.
type Act = fn(&Rc<Side>, &Rc<dyn Transport>);

const ACTS: [(&str, Act); 16] = [
    ("write", |_, t| t.write(b"w")),
    ("write nothing", |_, t| t.write(b"")),
    ("write_vectored", |_, t| {
        let [a, b] = [b"v", b"w"].map(|part| std::io::IoSlice::new(part));
        t.write_vectored(&[a, b]);
    }),
    ("try_write", |side, t| {
        let said = match t.try_write(b"t") {
            Ok(()) => "taken".to_owned(),
            Err(refused) => format!("{refused:?}"),
        };
        side.trace.log(format!("> {said}"));
    }),
    ("write much", |side, t| {
        t.write(&vec![b'm'; BIG]);
        if t.is_writing_paused() {
            side.trace.log("> paused");
        }
    }),
    ("write_eof", |_, t| t.write_eof().unwrap()),
    ("pause_reading", |side, t| {
        t.pause_reading();
        assert!(!t.is_reading());
        side.trace.log("> pause_reading");
    }),
    ("resume_reading", |_, t| t.resume_reading()),
    ("pause and resume reading", |_, t| {
        t.pause_reading();
        t.resume_reading();
    }),
    ("close", |side, t| {
        t.close();
        assert!(t.is_closing() && !t.is_reading());
        side.trace.log("> close");
    }),
    ("abort", |side, t| {
        t.abort();
        assert!(t.is_closing() && !t.is_reading() && t.write_buffer_size() == 0);
        side.trace.log("> abort");
    }),
    ("close, abort, close", |side, t| {
        t.close();
        t.abort();
        t.close();
        side.trace.log("> abort");
    }),
    ("set_protocol", |side, t| {
        t.set_protocol(side.seated("2: ", false));
    }),
    ("set_protocol of the other kind", |side, t| {
        t.set_protocol(side.seated("2: ", true));
    }),
    ("set_write_buffer_limits", |_, t| {
        t.set_write_buffer_limits(WriteLimits {
            high: 65_536,
            low: 0,
        })
        .unwrap();
        t.set_write_buffer_limits(WriteLimits { high: 0, low: 1 })
            .unwrap_err();
    }),
    ("the getters", |_, t| {
        assert_eq!(t.write_buffer_limits(), WriteLimits::DEFAULT);
        assert!(t.can_write_eof());
        let _ = (t.write_buffer_size(), t.is_writing_paused(), t.is_reading());
        let _ = (t.is_closing(), t.local_addr(), t.peer_addr());
        t.with_fd(&mut |fd| assert!(std::os::fd::AsRawFd::as_raw_fd(&fd) >= 0));
        assert!(!format!("{t:?}").is_empty());
        assert!(t.fact::<String>().is_none());
    }),
];

/// The life of a connection in which each call comes once, if nobody interferes.
async fn scenario(stage: &Stage, near: &Rc<Side>, far: &Rc<Side>) {
    let _handles = stage.pair(ROOM, near, far).await;
    through_all_calls(stage, near, far).await;
}

pub(crate) async fn through_all_calls(stage: &Stage, near: &Rc<Side>, far: &Rc<Side>) {
    far.t().write(b"ping");
    near.t().resume_reading();
    near.until(|side| side.has("data") || side.has("lost") || !side.t().is_reading())
        .await;
    near.t().resume_reading();
    near.until_call("data").await;
    let before = near.times("pause");
    near.t().write(&vec![b'b'; BIG]);
    if near.t().is_writing_paused() && before == 0 {
        near.until_call("pause").await;
    }
    // Where the protocol was paused within its call, the same may happen here once more.
    far.t().resume_reading();
    near.until(|side| side.has("lost") || !side.t().is_writing_paused())
        .await;
    near.until(|side| side.has("lost") || side.times("pause") == side.times("resume"))
        .await;
    // The near side may be gone, and the system know it first.
    far.t().write_eof().ok();
    near.t().resume_reading();
    near.until_call("eof").await;
    near.t().close();
    near.until_lost().await;
    far.until(|side| side.has("lost") || side.has("eof")).await;
    far.t().close();
    far.until_lost().await;
    stage.turns().await;
    near.forget();
    far.forget();
}

/// A far side that does not read before it is told to, and lets the near side end.
pub(crate) fn far() -> Rc<Side> {
    Side::new().keeps_open().reacts(|call, transport| {
        if call == "made" {
            transport.pause_reading();
        }
    })
}

/// What comes of an act within a call, from what each of them promises: the trace of the near side,
/// and what is reported. `buffer` is `get_buffer`, which comes before `data`.
fn expected(act: &str, within: &str) -> (Vec<String>, Vec<String>) {
    let mut calls: Vec<String> = CALLS.map(str::to_owned).to_vec();
    let place = |name: &str| CALLS.iter().position(|call| *call == name);
    // Where the next call stands.
    let next = place(within).map_or(1, |at| at + 1);
    let mut reports = Vec::new();
    match act {
        "try_write" => {
            let said = match within {
                "pause" => "> Paused",
                "lost" => "> Closing",
                _ => "> taken",
            };
            calls.insert(next, said.to_owned());
        }
        "write much" if within != "lost" => {
            calls.insert(next, "> paused".to_owned());
            // Told right behind the call, before anything else; and once, where the next write
            // finds writing paused already.
            let told = if within == "buffer" {
                next + 2
            } else {
                next + 1
            };
            if matches!(within, "made" | "data" | "buffer") {
                calls.retain(|call| call != "pause");
                calls.insert(told, "pause".to_owned());
            } else if within != "pause" {
                calls.splice(told..told, ["pause", "resume"].map(str::to_owned));
            }
        }
        "write_eof" if matches!(within, "made" | "data" | "buffer") => {
            calls.retain(|call| call != "pause" && call != "resume");
            reports.push("write after write_eof: the data was discarded".to_owned());
        }
        "pause_reading" => calls.insert(next, "> pause_reading".to_owned()),
        "close" | "abort" | "close, abort, close" => {
            let said = if act == "close" { "> close" } else { "> abort" };
            let left: &[&str] = match within {
                "lost" => &[],
                "pause" if act == "close" => &["resume", "lost"],
                _ => &["lost"],
            };
            calls.truncate(next);
            calls.push(said.to_owned());
            calls.extend(left.iter().map(|call| (*call).to_owned()));
        }
        "set_protocol" | "set_protocol of the other kind" => {
            // A buffer that was lent is filled for the one that lent it.
            let from = if within == "buffer" { 2 } else { next };
            for call in &mut calls[from..] {
                *call = format!("2: {call}");
            }
        }
        _ => {}
    }
    (calls, reports)
}

/// How many bytes the far side receives; what is dropped by an abort may have gone out in part.
fn expected_bytes(act: &str, within: &str) -> Option<usize> {
    let early = matches!(within, "made" | "data" | "buffer");
    let ends = matches!(act, "close" | "write_eof" | "abort" | "close, abort, close");
    if act.contains("abort") && matches!(within, "pause" | "resume" | "eof") {
        return None;
    }
    let written = if ends && early { 0 } else { BIG };
    let by_act = match act {
        _ if within == "lost" => 0,
        "write" => 1,
        "write_vectored" => 2,
        "try_write" if within != "pause" => 1,
        "write much" => BIG,
        _ => 0,
    };
    Some(written + by_act)
}

/// A near side that does something once, within one call.
fn near(lends: bool, within: &'static str, act: Act) -> Rc<Side> {
    let near = Side::of_kind(lends).keeps_open();
    let itself = Rc::downgrade(&near);
    let mut armed = true;
    near.reacts(move |call, transport| {
        if call == within && std::mem::take(&mut armed) {
            act(&itself.upgrade().unwrap(), transport);
        }
    })
}

/// Tries every act within every call on every ground.
fn try_product(lends: bool, calls: &[&'static str]) {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for ground in Ground::ALL {
        for (name, act) in ACTS {
            for within in calls {
                tried += 1;
                let stage = Stage::new(ground);
                let (near, far) = (near(lends, within, act), far());
                stage.run(scenario(&stage, &near, &far));
                let mut note = |what: String| {
                    wrong.push(format!("{name} within {within} on {ground:?}: {what}"));
                };
                let found = (near.trace.take(), stage.reports.take());
                let expected = expected(name, within);
                if found != expected {
                    note(format!("{found:?}, not {expected:?}"));
                }
                if let Some(bytes) = expected_bytes(name, within)
                    && far.count() != bytes
                {
                    note(format!("{} bytes have come, not {bytes}", far.count()));
                }
                let far_trace = far.trace.take();
                let aborted = name == "abort" && *within != "lost";
                if aborted
                    && ground.resets()
                    && !far_trace.ends_with(&["lost: ConnectionReset".into()])
                {
                    note(format!("the peer is not told of an abort: {far_trace:?}"));
                }
                for (side, trace) in [(&near, &found.0), (&far, &far_trace)] {
                    broken_promises(&side.seen(), trace)
                        .into_iter()
                        .for_each(&mut note);
                }
                if Rc::strong_count(&near) != 1 || Rc::strong_count(&far) != 1 {
                    note("a protocol outlives its connection".to_owned());
                }
            }
        }
    }
    assert_eq!(tried, Ground::ALL.len() * ACTS.len() * calls.len());
    assert!(
        wrong.is_empty(),
        "{} of {tried}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn fault_a8_anything_of_its_transport_may_be_called_within_each_call_of_a_protocol() {
    try_product(false, &CALLS);
}

#[test]
fn fault_a8_anything_of_its_transport_may_be_called_within_each_call_of_a_buffered_protocol() {
    try_product(true, &CALLS);
}

#[test]
fn fault_a8_anything_of_its_transport_may_be_called_within_get_buffer() {
    try_product(true, &["buffer"]);
}

/// What the product says of these, word by word.
#[test]
fn fault_a9_a_connection_that_ends_when_it_is_told_of_the_flow_is_lost_once_and_never_resumed() {
    let cases: [(&str, Act, &[&str]); 4] = [
        (
            "pause",
            |_, t| t.abort(),
            &["made", "data", "pause", "lost"],
        ),
        (
            "pause",
            |_, t| t.close(),
            &["made", "data", "pause", "resume", "lost"],
        ),
        (
            "resume",
            |_, t| t.abort(),
            &["made", "data", "pause", "resume", "lost"],
        ),
        (
            "resume",
            |_, t| t.close(),
            &["made", "data", "pause", "resume", "lost"],
        ),
    ];
    for ground in Ground::ALL {
        for (within, act, expected) in cases {
            let stage = Stage::new(ground);
            let (near, far) = (near(false, within, act), far());
            stage.run(scenario(&stage, &near, &far));
            near.trace.assert(expected);
            stage.reports.assert(&[""; 0]);
        }
    }
}

// ---- Panics ------------------------------------------------------------------------------------

/// The name of a call as reports have it.
fn full_name(call: &str, lends: bool) -> &'static str {
    match call {
        "made" => "connection_made",
        "buffer" => "get_buffer",
        "data" if lends => "buffer_updated",
        "data" => "data_received",
        "pause" => "pause_writing",
        "resume" => "resume_writing",
        "eof" => "eof_received",
        _ => "connection_lost",
    }
}

/// A panic in what moves bytes ends the connection, with the panic for a reason; one in any other
/// call is reported and no more.
fn expected_of_panic(call: &str, lends: bool) -> (Vec<String>, Vec<String>) {
    let text = format!("panic in {}: boom", full_name(call, lends));
    let mut calls: Vec<String> = CALLS.map(str::to_owned).to_vec();
    if matches!(call, "buffer" | "data" | "eof") {
        let next = CALLS
            .iter()
            .position(|name| *name == call)
            .map_or(1, |at| at + 1);
        calls.truncate(next);
        calls.push(format!("lost: {text}"));
    }
    (calls, vec![text])
}

#[test]
fn fault_a3_a_panic_in_a_call_is_reported_once_and_the_connection_goes_on_or_is_lost() {
    for ground in Ground::ALL {
        for (lends, within) in each_call() {
            let stage = Stage::new(ground);
            let (near, far) = (near(lends, within, |_, _| panic!("boom")), far());
            stage.run(scenario(&stage, &near, &far));
            let found = (near.trace.take(), stage.reports.take());
            let place = format!("{within} on {ground:?}");
            assert_eq!(found, expected_of_panic(within, lends), "{place}");
            assert_eq!(broken_promises(&near.seen(), &found.0), [""; 0], "{place}");
            let far_trace = far.trace.take();
            assert_eq!(broken_promises(&far.seen(), &far_trace), [""; 0], "{place}");
            if found.0.last().unwrap() != "lost" && ground.resets() {
                assert_eq!(
                    far_trace.last().unwrap(),
                    "lost: ConnectionReset",
                    "{place}"
                );
            }
            assert_eq!(Rc::strong_count(&near), 1, "{place}");
        }
    }
}

/// Each call of each kind of protocol.
fn each_call() -> impl Iterator<Item = (bool, &'static str)> {
    let plain = CALLS.iter().map(|call| (false, *call));
    let lending = CALLS.iter().map(|call| (true, *call));
    plain.chain(lending).chain([(true, "buffer")])
}

#[test]
fn fault_a3_a_panic_in_a_call_leaves_the_run_if_the_policy_says_so() {
    for ground in Ground::ALL {
        for (lends, within) in each_call() {
            let place = format!("{within} on {ground:?}");
            let stage = Stage::with(ground, |builder| {
                builder.panic_policy(PanicPolicy::Propagate)
            });
            let (near, far) = (near(lends, within, |_, _| panic!("boom")), far());
            let run = AssertUnwindSafe(|| stage.run(scenario(&stage, &near, &far)));
            let payload = catch_unwind(run).unwrap_err();
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"boom"), "{place}");
            // What stands behind it in the line has its turn in the next run.
            stage.run(async {
                near.until_call("made").await;
                far.until_call("made").await;
                near.t().close();
                far.t().close();
                near.until_lost().await;
                far.until_lost().await;
                stage.turns().await;
            });
            let trace = near.trace.take();
            assert_eq!(broken_promises(&near.seen(), &trace), [""; 0], "{place}");
            let (expected, _) = expected_of_panic(within, lends);
            let is_fatal = expected.last().unwrap() != "lost";
            if is_fatal {
                assert_eq!(trace, expected, "{place}");
            }
            assert_eq!(stage.reports.take(), [""; 0], "{place}");
        }
    }
}

/// A protocol that panics when it goes.
struct Bomb;

impl Protocol for Bomb {
    fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}
}

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("boom");
    }
}

#[test]
fn fault_a3_a_protocol_that_panics_when_it_is_dropped_is_reported_once() {
    const REPORT: &str = "panic in the destructor of a protocol: boom";
    for ground in Ground::ALL {
        // At the end of its connection.
        let stage = Stage::new(ground);
        let far = Side::new();
        stage.run(async {
            let side = far.plain();
            let ((near, handle), _far) = stage.connect(ROOM, || Bomb, || side).await;
            far.until_call("made").await;
            drop(handle);
            near.close();
            far.until_lost().await;
            stage.turns().await;
        });
        stage.reports.assert(&[REPORT]);
        far.trace.assert(&["made", "eof", "lost"]);
        // When another takes its place, in an open connection that goes on.
        let (near, far) = (Side::new(), Side::new());
        stage.run(async {
            let side = far.plain();
            let ((transport, handle), _far) = stage.connect(ROOM, || Bomb, || side).await;
            far.until_call("made").await;
            drop(handle);
            transport.set_protocol(near.seated("2: ", false));
            far.t().write(b"x");
            near.until_call("data").await;
            transport.close();
            near.until_lost().await;
            far.until_lost().await;
        });
        stage.reports.assert(&[REPORT]);
        near.trace.assert(&["2: data", "2: lost"]);
    }
}

#[test]
fn fault_a3_a_factory_that_panics_ends_its_own_connection_only() {
    let stage = Stage::new(Ground::Tcp);
    let served = Rc::new(Cell::new(0));
    let count = Rc::clone(&served);
    let server_side = Side::new();
    let made = Rc::clone(&server_side);
    stage.run(async {
        let handle = stage.event_loop.handle();
        let factory = move || {
            count.set(count.get() + 1);
            assert!(count.get() > 1, "boom");
            made.plain()
        };
        let server = handle.create_server(factory, "127.0.0.1:0").await.unwrap();
        let address = server.sockets()[0].local_addr().as_inet().unwrap();
        for side in [Side::new(), Side::new()] {
            let near = side.plain();
            let (transport, _near) = handle.create_connection(|| near, address).await.unwrap();
            transport.write(b"x");
            if served.get() == 2 {
                server_side.until_call("data").await;
                transport.close();
            }
            side.until_lost().await;
        }
        server.close();
        server.wait_closed().await;
        // A client's panics in the task that connects.
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        let bad = || -> Bomb { panic!("boom") };
        let connecting = handle.create_connection_on(bad, near).into_future();
        let error = handle.create_task(connecting).await.unwrap_err();
        assert!(error.is_panicked());
    });
    assert_eq!(served.get(), 2);
    stage.reports.assert(&["panic in a protocol factory: boom"]);
    server_side.trace.assert(&["made", "data", "eof", "lost"]);
}

// ---- Letting go within a call ------------------------------------------------------------------

#[test]
fn fault_a7_a_call_may_drop_the_transport_and_the_handle_it_comes_through() {
    for ground in Ground::ALL {
        for within in &CALLS[1..] {
            let stage = Stage::new(ground);
            let belongings: Rc<RefCell<Vec<Box<dyn Any>>>> = Rc::default();
            let held = Rc::clone(&belongings);
            let near = Side::new().keeps_open().reacts(move |call, _| {
                if call == *within {
                    let dropped = held.take();
                    assert!(!dropped.is_empty());
                }
            });
            let far = far();
            stage.run(async {
                let handles = stage.pair(ROOM, &near, &far).await;
                let transport: Box<dyn Any> = Box::new(near.t());
                *belongings.borrow_mut() = vec![transport, Box::new(handles)];
                through_all_calls(&stage, &near, &far).await;
            });
            near.trace.assert(&CALLS);
            stage.reports.assert(&[""; 0]);
            assert_eq!(Rc::strong_count(&near), 1, "{within} on {ground:?}");
        }
    }
}

#[test]
fn fault_a7_a_call_may_close_and_drop_the_server_it_comes_from() {
    for within in CALLS {
        let stage = Stage::new(Ground::Tcp);
        let kept: Rc<RefCell<Option<Server>>> = Rc::default();
        let held = Rc::clone(&kept);
        let near = Side::new().keeps_open().reacts(move |call, _| {
            if call == within {
                let server = held.take().unwrap();
                server.close();
                drop(server);
            }
        });
        let far = far();
        stage.run(async {
            let handle = stage.event_loop.handle();
            let (served, client) = (Rc::clone(&near), far.plain());
            let server = handle.create_server(move || served.plain(), "127.0.0.1:0");
            let server = server.await.unwrap();
            let address = server.sockets()[0].local_addr().as_inet().unwrap();
            *kept.borrow_mut() = Some(server);
            let client = handle.create_connection(|| client, address).await;
            near.until_call("made").await;
            far.until_call("made").await;
            through_all_calls(&stage, &near, &far).await;
            drop(client);
        });
        near.trace.assert(&CALLS);
        stage.reports.assert(&[""; 0]);
        assert!(kept.borrow().is_none());
        // The server's factory went with it.
        assert_eq!(Rc::strong_count(&near), 1, "{within}");
    }
}

#[test]
fn fault_a17_circles_of_transport_protocol_and_closure_are_broken_at_the_end() {
    for ground in Ground::ALL {
        for ends in [true, false] {
            let stage = Stage::new(ground);
            let weak: Vec<Weak<Side>> = stage.run(async {
                let mut sides = Vec::new();
                for _ in 0..100 {
                    // The protocol keeps its side, which keeps the transport; the loop keeps a
                    // closure that keeps both.
                    let (near, far) = (Side::new(), Side::new());
                    drop(stage.pair(ROOM, &near, &far).await);
                    sides.extend([Rc::downgrade(&near), Rc::downgrade(&far)]);
                    let kept = (Rc::clone(&near), near.t());
                    let day = Duration::from_secs(24 * 60 * 60);
                    let timer = stage.event_loop.call_later(day, move || drop(kept));
                    if ends {
                        near.t().close();
                        near.until_lost().await;
                        far.until_lost().await;
                        timer.cancel();
                    }
                }
                stage.turns().await;
                sides
            });
            let alive = || weak.iter().filter(|side| side.strong_count() > 0).count();
            if !ends {
                assert_eq!(alive(), 200, "on {ground:?}");
                stage.event_loop.close().unwrap();
            }
            assert_eq!(alive(), 0, "on {ground:?}");
        }
    }
}
