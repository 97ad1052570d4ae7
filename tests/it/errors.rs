//! Errors nobody else can see: who is told, once, and in which words.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::env;
use std::error::Error;
use std::fs::File;
use std::future::pending;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use coloop::{
    Cancelled, EventLoop, ExceptionContext, JoinError, LoopHandle, PanicPolicy, RunError,
    SlowCallback, yield_now,
};

use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

/// Lets what the loop reports go into a trace, without the places.
pub(crate) fn reports(handle: &LoopHandle) -> Trace {
    let trace = Trace::new();
    let log = trace.clone();
    handle.set_exception_handler(move |_, context| log.log(told(context)));
    trace
}

/// What a report says, without the place.
pub(crate) fn told(context: &ExceptionContext) -> String {
    let task = context.task_name().map(|name| format!(" `{name}`"));
    let text = context.panic_message().or_else(|| context.error());
    let text = text.map(|text| format!(": {text}"));
    format!(
        "{}{}{}",
        context.message(),
        task.unwrap_or_default(),
        text.unwrap_or_default()
    )
}

/// Runs what is to panic, and says what the panic carried.
#[track_caller]
fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("it did not panic"),
        Err(payload) => match payload.downcast_ref::<&str>() {
            Some(text) => (*text).to_owned(),
            None => payload.downcast_ref::<String>().unwrap().clone(),
        },
    }
}

/// A socket that has something to read, and room to write.
///
/// It is a byte and not a hang-up: while a test starts a process, that may have a copy of the peer.
pub(crate) fn ready_socket() -> UnixStream {
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(b"x").unwrap();
    near
}

/// Watches a socket that is readable, and stays so.
#[track_caller]
fn add_ready_reader(handle: &LoopHandle, callback: impl FnMut() + 'static) -> coloop::WatchId {
    handle.add_reader(ready_socket(), callback).unwrap()
}

// ---- The default handler, in a process of its own ------------------------------------------------

/// Set in the process that a test runs itself in again.
const CHILD: &str = "COLOOP_TEST_CHILD";

fn in_child() -> bool {
    let child = env::var_os(CHILD).is_some();
    if child {
        // What stands on the standard error stream is the library's alone.
        panic::set_hook(Box::new(|_| ()));
    }
    child
}

/// The command that runs one test of this binary again, as the child.
fn child(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .env_remove("COLOOP_DEBUG");
    command
}

/// Runs a child and returns the lines of its standard error stream.
#[track_caller]
fn lines_of(command: &mut Command) -> Vec<String> {
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {stdout}", output.status);
    assert!(
        stdout.contains("test result: ok. 1 passed"),
        "there is such a test: {stdout}"
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    stderr.lines().map(str::to_owned).collect()
}

/// Lets everything go wrong that is reported.
fn fail_in_every_way(event_loop: &EventLoop) {
    event_loop.call_soon(|| panic!("in a callback"));
    event_loop.call_later(Duration::ZERO, || panic!("in a timer"));
    drop(event_loop.create_task(async { panic!("in a task") }));
    drop(
        event_loop
            .task()
            .name("reader")
            .create_reporting(async { Err::<(), _>("out of tea") }),
    );
    let (resolver, promise) = event_loop.create_future::<()>();
    drop(promise.on_done(|_| panic!("in a done-callback")));
    drop(resolver);
    let handle = event_loop.handle();
    let id = Rc::new(Cell::new(None::<coloop::WatchId>));
    let own = Rc::clone(&id);
    id.set(Some(add_ready_reader(event_loop, move || {
        handle.remove_reader(own.get().unwrap());
        panic!("in a reader");
    })));
    one_turn(event_loop);
    one_turn(event_loop);
    event_loop.call_exception_handler(&ExceptionContext::new("by hand").with_error("no tea"));
    event_loop.call_exception_handler(&ExceptionContext::new("nothing but a message"));
}

#[test]
fn c_156_the_default_handler_writes_each_report_as_one_line() {
    if in_child() {
        return fail_in_every_way(&real_loop());
    }
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| log.log(format!("coloop: {context}")));
    fail_in_every_way(&event_loop);
    let expected = trace.take();

    let lines = lines_of(&mut child(
        "errors::c_156_the_default_handler_writes_each_report_as_one_line",
    ));

    assert_eq!(lines, expected);
    let without_places: Vec<_> = lines.iter().map(|line| without_place(line)).collect();
    assert_eq!(
        without_places,
        [
            "coloop: panic in callback, created at tests/it/errors.rs: in a callback",
            "coloop: panic in task, never observed `Task-1`, created at tests/it/errors.rs: in a task",
            "coloop: error in task, never observed `reader`, created at tests/it/errors.rs: out of tea",
            "coloop: panic in callback, created at tests/it/errors.rs: in a done-callback",
            "coloop: panic in callback, created at tests/it/errors.rs: in a reader",
            "coloop: panic in callback, created at tests/it/errors.rs: in a timer",
            "coloop: by hand: no tea",
            "coloop: nothing but a message",
        ]
    );
}

/// Takes the line and the column out of a report.
fn without_place(line: &str) -> String {
    let Some((before, after)) = line.split_once(".rs:") else {
        return line.to_owned();
    };
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
    format!("{before}.rs:{after}")
}

#[test]
fn a_report_of_several_lines_is_written_as_one() {
    if in_child() {
        let event_loop = real_loop();
        event_loop.call_soon(|| assert_eq!(1, 2, "two\nlines"));
        return one_turn(&event_loop);
    }
    let lines = lines_of(&mut child(
        "errors::a_report_of_several_lines_is_written_as_one",
    ));
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [
        "coloop: panic in callback",
        "two",
        "lines",
        "left: 1",
        "right: 2",
    ] {
        assert!(lines[0].contains(part), "{part} is missing in {lines:?}");
    }
}

#[test]
fn c_153_resetting_the_handler_goes_back_to_the_default() {
    if in_child() {
        let event_loop = real_loop();
        let told = reports(&event_loop);
        let fail = |message: &'static str| {
            event_loop.call_soon(move || panic!("{message}"));
            one_turn(&event_loop);
        };
        fail("to the handler");
        event_loop.reset_exception_handler();
        fail("to the default");
        event_loop.set_exception_handler(|handle, context| {
            handle.default_exception_handler(context);
        });
        fail("left to the default");
        told.assert(&["panic in callback: to the handler"]);
        return;
    }
    let lines = lines_of(&mut child(
        "errors::c_153_resetting_the_handler_goes_back_to_the_default",
    ));
    let lines: Vec<_> = lines.iter().map(|line| without_place(line)).collect();
    assert_eq!(
        lines,
        [
            "coloop: panic in callback, created at tests/it/errors.rs: to the default",
            "coloop: panic in callback, created at tests/it/errors.rs: left to the default",
        ]
    );
}

#[test]
fn c_154_a_handler_that_panics_is_reported_with_the_first_error_and_the_loop_goes_on() {
    if in_child() {
        let event_loop = real_loop();
        event_loop.set_exception_handler(|_, _| panic!("the handler is broken"));
        event_loop.call_soon(|| panic!("the first error"));
        event_loop.call_soon(|| println!("the loop goes on"));
        one_turn(&event_loop);
        return assert!(event_loop.exception_handler().is_some());
    }
    let test =
        "errors::c_154_a_handler_that_panics_is_reported_with_the_first_error_and_the_loop_goes_on";
    let output = child(test).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("the loop goes on"));
    let lines = lines_of(&mut child(test));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let parts = [
        "unhandled error in exception handler",
        "the handler is broken",
        "the first error",
    ];
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is missing in {lines:?}");
    }
}

#[test]
fn c_155_a_loop_whose_reports_cannot_be_written_goes_on() {
    if in_child() {
        let event_loop = builder().debug(true).build().unwrap();
        event_loop.set_slow_callback_duration(Duration::ZERO);
        fail_in_every_way(&event_loop);
        event_loop.set_exception_handler(|_, _| panic!("the handler is broken"));
        fail_in_every_way(&event_loop);
        event_loop.call_soon(|| println!("the loop goes on"));
        return one_turn(&event_loop);
    }
    let (reader, nobody_reads) = io::pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(nobody_reads), Stdio::from(full)] {
        let mut command = child("errors::c_155_a_loop_whose_reports_cannot_be_written_goes_on");
        let output = command
            .stderr(stderr)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = output.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}: {stdout}", output.status);
        assert!(stdout.contains("the loop goes on"), "{stdout}");
    }
}

#[test]
fn c_158_the_environment_turns_debug_mode_on_for_new_loops() {
    if in_child() {
        let built = |builder: coloop::Builder| builder.build().unwrap().debug();
        println!("by default {}", built(EventLoop::builder()));
        println!("turned on {}", built(EventLoop::builder().debug(true)));
        return println!("turned off {}", built(EventLoop::builder().debug(false)));
    }
    let test = "errors::c_158_the_environment_turns_debug_mode_on_for_new_loops";
    for (value, expected) in [(Some("1"), true), (Some(""), false), (None, false)] {
        let mut command = child(test);
        if let Some(value) = value {
            command.env("COLOOP_DEBUG", value);
        }
        let output = command.output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let expected = format!("by default {expected}\nturned on true\nturned off false\n");
        assert!(stdout.contains(&expected), "{value:?}: {stdout}");
        assert_eq!(output.stderr, b"", "{value:?}");
    }
}

#[test]
fn a_slow_item_is_written_as_one_line_where_no_hook_is_set() {
    if in_child() {
        let clock = coloop::testing::Clock::new();
        let clock_of_loop = Rc::<coloop::testing::Clock>::clone(&clock);
        let event_loop = builder().clock(clock_of_loop).debug(true).build().unwrap();
        let work = Rc::clone(&clock);
        event_loop.call_soon(move || work.advance(Duration::from_millis(1_500)));
        drop(event_loop.task().name("worker").create(async move {
            clock.advance(Duration::from_millis(100));
        }));
        event_loop.set_slow_hook(|_| unreachable!("it is reset"));
        event_loop.reset_slow_hook();
        return one_turn(&event_loop);
    }
    let lines = lines_of(&mut child(
        "errors::a_slow_item_is_written_as_one_line_where_no_hook_is_set",
    ));
    let lines: Vec<_> = lines.iter().map(|line| without_place(line)).collect();
    assert_eq!(
        lines,
        [
            "coloop: a callback, created at tests/it/errors.rs:, held the loop for 1.5s",
            "coloop: task `worker`, created at tests/it/errors.rs:, held the loop for 100ms",
        ]
    );
}

// ---- The handler ---------------------------------------------------------------------------------

#[test]
fn the_handler_that_was_set_is_shown_and_gets_every_report_once() {
    let event_loop = real_loop();
    assert!(event_loop.exception_handler().is_none());
    let told = reports(&event_loop);
    assert!(event_loop.exception_handler().is_some());
    fail_in_every_way(&event_loop);

    told.assert(&[
        "panic in callback: in a callback",
        "panic in task, never observed `Task-1`: in a task",
        "error in task, never observed `reader`: out of tea",
        "panic in callback: in a done-callback",
        "panic in callback: in a reader",
        "panic in callback: in a timer",
        "by hand: no tea",
        "nothing but a message",
    ]);
    event_loop.reset_exception_handler();
    assert!(event_loop.exception_handler().is_none());
}

#[test]
fn a_report_names_the_place_where_the_callback_was_scheduled() {
    let (event_loop, _clock) = virtual_loop();
    let lines = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&lines);
    event_loop.set_exception_handler(move |_, context| {
        let place = context.place().unwrap();
        assert_eq!(place.file(), file!());
        log.borrow_mut().push(place.line());
    });
    let line = line!();
    event_loop.call_soon(|| panic!("soon"));
    event_loop.call_later(Duration::ZERO, || panic!("later"));
    event_loop.call_at(event_loop.time(), || panic!("at"));
    event_loop.call_soon_in(&coloop::Context::new(), || panic!("in"));
    event_loop.try_call_soon(|| panic!("try")).unwrap();
    let (resolver, promise) = event_loop.create_future::<()>();
    drop(promise.on_done(|_| panic!("done")));
    drop(resolver);
    event_loop.remote().call_soon(|| panic!("remote")).unwrap();
    one_turn(&event_loop);
    let lines: Vec<_> = lines.take().into_iter().map(|at| at - line).collect();
    assert_eq!(lines, [1, 4, 5, 7, 9, 2, 3]);
}

#[test]
fn a_handler_may_replace_and_remove_itself() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let fail = |message: &'static str| {
        event_loop.call_soon(move || panic!("{message}"));
    };
    let log = trace.clone();
    let held = crate::tasks::OnDrop::new(&trace, "the first is dropped");
    event_loop.set_exception_handler(move |handle, context| {
        let _held = &held;
        let second = log.clone();
        handle.set_exception_handler(move |handle, context| {
            second.log(format!("second: {}", context.panic_message().unwrap()));
            let third = second.clone();
            handle.reset_exception_handler();
            assert!(handle.exception_handler().is_none());
            handle.set_exception_handler(move |_, context| {
                third.log(format!("third: {}", context.panic_message().unwrap()));
            });
        });
        log.log(format!("first: {}", context.panic_message().unwrap()));
    });
    fail("a");
    fail("b");
    fail("c");
    one_turn(&event_loop);
    trace.assert(&["first: a", "the first is dropped", "second: b", "third: c"]);
}

#[test]
fn a_handler_may_use_its_loop() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |handle, context| {
        log.log(told(context));
        handle.call_soon(log.logs("scheduled by the handler"));
        let in_task = log.clone();
        drop(handle.create_task(async move { in_task.log("a task of the handler") }));
        let (resolver, promise) = handle.create_future();
        let in_callback = log.clone();
        drop(promise.on_done(move |value| in_callback.log(format!("{value:?}"))));
        resolver.settle(1).unwrap();
        assert!(matches!(handle_is_running(handle), Ok(true)));
        handle.stop();
    });
    event_loop.call_soon(|| panic!("in a callback"));
    event_loop.call_soon(trace.logs("the next callback"));
    event_loop.run_forever().unwrap();
    trace.log("stopped");
    one_turn(&event_loop);

    trace.assert(&[
        "panic in callback: in a callback",
        "the next callback",
        "stopped",
        "scheduled by the handler",
        "a task of the handler",
        "Ok(1)",
    ]);

    fn handle_is_running(handle: &LoopHandle) -> io::Result<bool> {
        Ok(handle.is_running() && coloop::try_current()?.is_running())
    }
}

#[test]
fn a_handler_may_call_the_handler() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |handle, context| {
        log.log(told(context));
        if context.panic_message().is_some() {
            handle.call_exception_handler(&ExceptionContext::new("again"));
        }
    });
    event_loop.call_soon(|| panic!("first"));
    one_turn(&event_loop);
    trace.assert(&["panic in callback: first", "again"]);
}

#[test]
fn a_closed_loop_keeps_no_handler() {
    let event_loop = real_loop();
    let held = Rc::new(());
    let set = |event_loop: &EventLoop| {
        let (in_handler, in_hook) = (Rc::clone(&held), Rc::clone(&held));
        event_loop.set_exception_handler(move |_, _| drop(Rc::clone(&in_handler)));
        event_loop.set_slow_hook(move |_| drop(Rc::clone(&in_hook)));
    };
    set(&event_loop);
    assert_eq!(Rc::strong_count(&held), 3);
    event_loop.close().unwrap();
    assert_eq!(Rc::strong_count(&held), 1);
    set(&event_loop);
    assert_eq!(Rc::strong_count(&held), 1);
    assert!(event_loop.exception_handler().is_none());
}

#[test]
fn a_payload_is_at_hand_in_the_report() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |handle, context| {
        let payload = context.payload().unwrap();
        let value = payload.with(|value| value.downcast_ref::<u8>().copied());
        log.log(format!(
            "{value:?}, {:?}, {payload:?}",
            context.panic_message()
        ));
        log.log(format!("{:?}, {:?}", context.error(), context.task_name()));
        assert!(context.task(handle).is_none());
    });
    event_loop.call_soon(|| panic::panic_any(42_u8));
    let number = 7;
    event_loop.call_soon(move || panic!("formatted {number}"));
    one_turn(&event_loop);
    let stand_in = "a panic whose payload is not text";
    trace.assert(&[
        format!("Some(42), Some({stand_in:?}), Payload({stand_in:?})"),
        "None, None".to_owned(),
        "None, Some(\"formatted 7\"), Payload(\"formatted 7\")".to_owned(),
        "None, None".to_owned(),
    ]);
}

#[test]
fn a_payload_that_panics_when_it_is_dropped_harms_nobody() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in the payload's destructor");
        }
    }

    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    event_loop.call_soon(|| panic::panic_any(Bomb));
    drop(event_loop.create_task(async { panic::panic_any(Bomb) }));
    event_loop.call_soon(trace.logs("the next callback"));
    let observed = event_loop.create_task(async { panic::panic_any(Bomb) });
    let ended: Result<(), _> = event_loop.run_until_complete(observed).unwrap();
    assert!(ended.unwrap_err().is_panicked());
    trace.assert(&["the next callback"]);
    told.assert(&[
        "panic in callback: a panic whose payload is not text",
        "panic in task, never observed `Task-1`: a panic whose payload is not text",
    ]);
}

// ---- The policy ----------------------------------------------------------------------------------

fn propagating_loop() -> EventLoop {
    builder()
        .panic_policy(PanicPolicy::Propagate)
        .build()
        .unwrap()
}

#[test]
fn a_panic_is_reported_and_the_loop_goes_on_unless_told_otherwise() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    assert_eq!(event_loop.panic_policy(), PanicPolicy::Report);
    event_loop.call_soon(|| panic!("reported"));
    event_loop.call_soon(trace.logs("the next callback"));
    one_turn(&event_loop);
    trace.assert(&["the next callback"]);
    told.assert(&["panic in callback: reported"]);
}

#[test]
fn a_panic_that_propagates_leaves_the_run_with_the_line_behind_it_intact() {
    type Fail = fn(&EventLoop);
    let ways: [(&str, Fail); 7] = [
        ("a callback", |event_loop| {
            drop(event_loop.call_soon(|| panic!("on purpose")));
        }),
        ("a task", |event_loop| {
            drop(event_loop.create_task(async { panic!("on purpose") }));
        }),
        ("a task's destructor", |event_loop| {
            struct Bomb;
            impl Drop for Bomb {
                fn drop(&mut self) {
                    panic!("on purpose");
                }
            }
            let bomb = Bomb;
            let task = event_loop.create_task(async move {
                let _bomb = bomb;
                pending::<()>().await;
            });
            task.cancel();
        }),
        ("a done-callback", |event_loop| {
            let (resolver, promise) = event_loop.create_future::<()>();
            drop(promise.on_done(|_| panic!("on purpose")));
            drop(resolver);
        }),
        ("the end of a handle", |event_loop| {
            let task = event_loop.create_task(async { panic!("on purpose") });
            one_turn(event_loop);
            event_loop.call_soon(move || drop(task));
        }),
        ("a callback from outside", |event_loop| {
            event_loop
                .remote()
                .call_soon(|| panic!("on purpose"))
                .unwrap();
        }),
        ("a remote task that nobody joins", |event_loop| {
            drop(
                event_loop
                    .remote()
                    .create_task(|| async { panic!("on purpose") })
                    .unwrap(),
            );
            one_turn(event_loop);
        }),
    ];
    for (way, fail) in ways {
        let event_loop = propagating_loop();
        let (trace, told) = (Trace::new(), reports(&event_loop));
        fail(&event_loop);
        event_loop.call_soon(trace.logs("behind it"));
        let log = trace.clone();
        drop(event_loop.create_task(async move { log.log("a task behind it") }));

        event_loop.stop();
        assert_eq!(panic_of(|| event_loop.run_forever()), "on purpose", "{way}");
        trace.log(format!("left: {}", event_loop.is_running()));
        assert!(coloop::try_current().is_err(), "{way}");
        one_turn(&event_loop);

        let expected = ["left: false", "behind it", "a task behind it"];
        assert_eq!(trace.take(), expected, "{way}");
        assert_eq!(told.take(), [""; 0], "{way}");
    }
}

#[test]
fn a_timer_and_a_reader_propagate_too() {
    let event_loop = propagating_loop();
    let trace = Trace::new();
    event_loop.call_later(Duration::ZERO, || panic!("in a timer"));
    event_loop.call_later(Duration::ZERO, trace.logs("the timer behind it"));
    assert_eq!(panic_of(|| one_turn(&event_loop)), "in a timer");
    trace.assert::<&str>(&[]);
    one_turn(&event_loop);
    trace.assert(&["the timer behind it"]);

    let mut calls = 0;
    let log = trace.clone();
    add_ready_reader(&event_loop, move || {
        calls += 1;
        log.log(format!("reader: call {calls}"));
        assert!(calls != 1, "in a reader");
    });
    assert_eq!(panic_of(|| one_turn(&event_loop)), "in a reader");
    one_turn(&event_loop);
    trace.assert(&["reader: call 1", "reader: call 2"]);
}

#[test]
fn each_of_two_panics_leaves_a_run_of_its_own() {
    let event_loop = propagating_loop();
    let trace = Trace::new();
    event_loop.call_soon(|| panic!("first"));
    event_loop.call_soon(trace.logs("between"));
    event_loop.call_soon(|| panic!("second"));
    event_loop.call_soon(trace.logs("last"));
    for expected in ["first", "second"] {
        assert_eq!(panic_of(|| one_turn(&event_loop)), expected);
        trace.log("left");
    }
    one_turn(&event_loop);
    trace.assert(&["left", "between", "left", "last"]);
}

#[test]
fn a_panic_that_propagates_drops_the_future_of_the_run_and_leaves_a_turn() {
    let event_loop = propagating_loop();
    let trace = Trace::new();
    let held = crate::tasks::OnDrop::new(&trace, "the future is dropped");
    event_loop.call_soon(|| panic!("on purpose"));
    let run = || {
        event_loop.run_until_complete(async move {
            let _held = held;
            pending::<()>().await;
        })
    };
    assert_eq!(panic_of(run), "on purpose");
    trace.assert(&["the future is dropped"]);
    assert!(event_loop.all_tasks().is_empty());

    event_loop.call_soon(|| panic!("in a host's turn"));
    event_loop.call_soon(trace.logs("behind it"));
    assert_eq!(
        panic_of(|| event_loop.turn(Some(Duration::ZERO))),
        "in a host's turn"
    );
    assert!(!event_loop.is_idle());
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    trace.assert(&["behind it"]);
}

#[test]
fn what_somebody_observes_does_not_propagate_and_an_error_is_reported() {
    let event_loop = propagating_loop();
    let told = reports(&event_loop);
    let task = event_loop.create_task(async { panic!("observed") });
    drop(event_loop.create_reporting(async { Err::<(), _>("out of tea") }));
    let ended: Result<(), _> = event_loop.run_until_complete(task).unwrap();
    assert!(ended.unwrap_err().is_panicked());
    told.assert(&["error in task, never observed `Task-2`: out of tea"]);
}

#[test]
fn a_panic_outside_of_a_run_is_reported_whatever_the_policy() {
    let event_loop = propagating_loop();
    let told = reports(&event_loop);
    let task = event_loop
        .task()
        .name("late")
        .create(async { panic!("unseen") });
    one_turn(&event_loop);
    drop(task);
    told.assert(&["panic in task, never observed `late`: unseen"]);
}

#[test]
fn the_policy_can_be_changed_while_the_loop_runs() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    let handle = event_loop.handle();
    event_loop.call_soon(|| panic!("reported"));
    event_loop.call_soon(move || handle.set_panic_policy(PanicPolicy::Propagate));
    event_loop.call_soon(|| panic!("propagated"));
    assert_eq!(panic_of(|| one_turn(&event_loop)), "propagated");
    assert_eq!(event_loop.panic_policy(), PanicPolicy::Propagate);
    told.assert(&["panic in callback: reported"]);
}

#[test]
fn the_panic_of_the_future_of_a_run_is_the_caller_s_whatever_the_policy() {
    for policy in [PanicPolicy::Report, PanicPolicy::Propagate] {
        let event_loop = builder().panic_policy(policy).build().unwrap();
        let (trace, told) = (Trace::new(), reports(&event_loop));
        let run = || {
            event_loop.run_until_complete(async {
                coloop::current().call_soon(trace.logs("in the next turn"));
                yield_now().await;
                coloop::current().call_soon(trace.logs("in the next run"));
                panic!("in main");
            })
        };
        event_loop.call_soon(trace.logs("before"));
        assert_eq!(panic_of::<Result<(), _>>(run), "in main");
        trace.assert(&["before", "in the next turn"]);
        assert_eq!(event_loop.run_until_complete(async { 7 }).unwrap(), 7);
        trace.assert(&["in the next run"]);
        told.assert::<&str>(&[]);
    }
}

// ---- Debug mode ----------------------------------------------------------------------------------

/// A loop in debug mode whose clock the items move, and what its slow hook is told.
fn slow_loop() -> (
    EventLoop,
    Rc<coloop::testing::Clock>,
    Rc<RefCell<Vec<SlowCallback>>>,
) {
    let (event_loop, clock) = virtual_loop();
    event_loop.set_debug(true);
    let slow = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&slow);
    event_loop.set_slow_hook(move |slow| log.borrow_mut().push(slow.clone()));
    (event_loop, clock, slow)
}

#[test]
fn a_slow_item_of_every_kind_is_reported_with_its_name_and_place() {
    let (event_loop, clock, slow) = slow_loop();
    let works = |millis| {
        let clock = Rc::clone(&clock);
        move || clock.advance(Duration::from_millis(millis))
    };
    let mut reader = Some(works(203));
    let worker = event_loop.task().name("worker");
    let (worker_s, task_s, main_s) = (works(204), works(205), works(206));
    let line = line!();
    event_loop.call_soon(works(201));
    event_loop.call_later(Duration::ZERO, works(202));
    let id = add_ready_reader(&event_loop, move || reader.take().map_or((), |work| work()));
    drop(worker.create(async move { worker_s() }));
    let task = event_loop.create_task(async move {
        yield_now().await;
        task_s();
    });
    let main = async {
        task.await.unwrap();
        main_s();
    };
    event_loop.run_until_complete(main).unwrap();
    event_loop.remove_reader(id);

    let mut slow: Vec<_> = slow
        .take()
        .into_iter()
        .map(|slow| {
            let place = slow.place.unwrap();
            assert_eq!(place.file(), file!());
            (
                slow.duration.as_millis(),
                slow.task.as_deref().map(str::to_owned),
                place.line(),
            )
        })
        .collect();
    slow.sort_unstable();
    let task = |name: &str| Some(name.to_owned());
    assert_eq!(
        slow,
        [
            (201, None, line + 1),
            (202, None, line + 2),
            (203, None, line + 3),
            (204, task("worker"), line + 4),
            (205, task("Task-2"), line + 5),
            (206, task("Task-3"), line + 13),
        ]
    );
}

#[test]
fn an_item_is_slow_from_the_set_duration_on() {
    let (event_loop, clock, slow) = slow_loop();
    assert_eq!(
        event_loop.slow_callback_duration(),
        Duration::from_millis(100)
    );
    let mut reported = Vec::new();
    for (limit, works) in [(100, 99), (100, 100), (20, 19), (20, 20), (0, 0)] {
        event_loop.set_slow_callback_duration(Duration::from_millis(limit));
        let clock = Rc::clone(&clock);
        event_loop.call_soon(move || clock.advance(Duration::from_millis(works)));
        one_turn(&event_loop);
        reported.push((limit, works, slow.take().len()));
    }
    let expected = [
        (100, 99, 0),
        (100, 100, 1),
        (20, 19, 0),
        (20, 20, 1),
        (0, 0, 1),
    ];
    assert_eq!(reported, expected);
}

#[test]
fn c_159_debug_mode_takes_effect_with_the_next_item() {
    let (event_loop, clock, slow) = slow_loop();
    event_loop.set_debug(false);
    let works = |millis| {
        let clock = Rc::clone(&clock);
        move || clock.advance(Duration::from_millis(millis))
    };
    let (on, off) = (event_loop.handle(), event_loop.handle());
    event_loop.call_soon(works(101));
    let work = works(102);
    event_loop.call_soon(move || {
        on.set_debug(true);
        work();
    });
    event_loop.call_soon(works(103));
    let work = works(104);
    event_loop.call_soon(move || {
        off.set_debug(false);
        work();
    });
    event_loop.call_soon(works(105));
    one_turn(&event_loop);

    let slow: Vec<_> = slow
        .take()
        .iter()
        .map(|slow| slow.duration.as_millis())
        .collect();
    assert_eq!(slow, [103, 104]);
    assert!(!event_loop.debug());
}

#[test]
fn a_slow_callback_is_named_also_when_it_starts_an_eager_task() {
    let (event_loop, clock, slow) = slow_loop();
    let line = line!() + 1;
    event_loop.call_soon(move || {
        drop(coloop::current().task().eager().create(async {}));
        clock.advance(Duration::from_millis(200));
    });
    one_turn(&event_loop);
    let slow = slow.take();
    assert_eq!(slow.len(), 1);
    assert_eq!(
        (slow[0].task.as_deref(), slow[0].place.map(|at| at.line())),
        (None, Some(line))
    );
}

#[test]
fn a_panic_behind_an_eager_task_is_reported_with_the_callback_s_place() {
    for debug in [false, true] {
        let event_loop = builder().debug(debug).build().unwrap();
        let lines = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&lines);
        event_loop.set_exception_handler(move |_, context| {
            log.borrow_mut().push(context.place().unwrap().line());
        });
        let line = line!() + 1;
        event_loop.call_soon(|| {
            drop(coloop::current().task().eager().create(async {}));
            panic!("behind it");
        });
        one_turn(&event_loop);
        assert_eq!(lines.take(), [line], "debug {debug}");
    }
}

#[test]
fn a_slow_hook_that_panics_or_uses_the_loop_harms_nobody() {
    let (event_loop, clock) = virtual_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    event_loop.set_debug(true);
    let log = trace.clone();
    let handle = event_loop.handle();
    event_loop.set_slow_hook(move |slow| {
        log.log(slow.duration.as_millis());
        handle.call_soon(log.logs("scheduled by the hook"));
        handle.reset_slow_hook();
        handle.set_slow_hook(|_| ());
        panic!("in the hook");
    });
    event_loop.call_soon(move || clock.advance(Duration::from_millis(200)));
    event_loop.call_soon(trace.logs("the next callback"));
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["200", "the next callback", "scheduled by the hook"]);
    assert_eq!(told.take().len(), 1);
}

#[test]
fn closing_a_loop_in_debug_mode_reports_the_tasks_that_are_pending() {
    for debug in [false, true] {
        let event_loop = builder().debug(debug).build().unwrap();
        let trace = Trace::new();
        let log = trace.clone();
        event_loop.set_exception_handler(move |_, context| {
            let line = context.place().unwrap().line();
            log.log(format!("{} of line {line}", told(context)));
        });
        let line = line!();
        let waits = event_loop.task().name("waits").create(pending::<()>());
        drop(event_loop.create_task(pending::<()>()));
        let ended = event_loop.create_task(async {});
        one_turn(&event_loop);
        drop(event_loop.create_task(async {}));
        drop(event_loop);

        let report = |name: &str, offset: u32| {
            let what = "the loop is closed with a task still pending:";
            format!("{what} `{name}` of line {}", line + offset)
        };
        let expected = [report("waits", 1), report("Task-2", 2), report("Task-4", 5)];
        trace.assert(if debug { &expected[..] } else { &[] });
        assert!(waits.is_finished() && ended.is_finished());
    }
}

// ---- The types -----------------------------------------------------------------------------------

#[test]
fn every_error_is_an_io_error_of_its_kind_and_says_so_in_lower_case_without_a_full_stop() {
    fn row<E>(error: E, kind: ErrorKind, text: &str) -> (String, io::Error, ErrorKind, String)
    where
        E: Error + Send + Sync + 'static,
        io::Error: From<E>,
    {
        (error.to_string(), error.into(), kind, text.to_owned())
    }

    let (event_loop, _clock) = virtual_loop();
    let panicked: Result<(), JoinError> = event_loop
        .run_until_complete(event_loop.create_task(async { panic!("on purpose") }))
        .unwrap();
    let mut limited = coloop::timeout(Duration::ZERO, pending::<()>());
    let handle = limited.handle();
    let elapsed = event_loop.run_until_complete(limited).unwrap().unwrap_err();
    let over = handle.reschedule(None).unwrap_err();
    let nested = event_loop.run_until_complete(async {
        let other = real_loop();
        (
            event_loop.run_forever().unwrap_err(),
            other.run_forever().unwrap_err(),
        )
    });
    let (already, another) = nested.unwrap();
    let stopped = {
        event_loop.stop();
        event_loop.run_until_complete(pending::<()>()).unwrap_err()
    };
    let cancelled = event_loop.run_until_complete(async {
        coloop::current_task().unwrap().cancel_with("rain");
        yield_now().await;
    });
    event_loop.close().unwrap();
    let closed = event_loop.try_call_soon(|| ()).unwrap_err();
    let mut unset = coloop::policy::NoCurrentLoop::here();
    unset.thread = Some("main".to_owned());

    let rows = [
        row(Cancelled::new(), ErrorKind::Interrupted, "cancelled"),
        row(
            Cancelled::with_reason("rain"),
            ErrorKind::Interrupted,
            "cancelled: rain",
        ),
        row(elapsed, ErrorKind::TimedOut, "the deadline has passed"),
        row(
            over,
            ErrorKind::InvalidInput,
            "the timeout is over: move it while its future is pending",
        ),
        row(closed, ErrorKind::NotConnected, "the event loop is closed"),
        row(
            coloop::try_current().unwrap_err(),
            ErrorKind::NotFound,
            "no event loop runs in this thread: call this from a callback, a task or the future \
             given to run_until_complete",
        ),
        row(
            unset,
            ErrorKind::NotFound,
            "there is no current event loop in thread `main`: set one, or use `coloop::run`",
        ),
        row(
            JoinError::from(Cancelled::new()),
            ErrorKind::Interrupted,
            "the task was cancelled",
        ),
        row(
            panicked.unwrap_err(),
            ErrorKind::Other,
            "the task panicked: on purpose",
        ),
        row(
            JoinError::WouldDeadlock,
            ErrorKind::Deadlock,
            "the loop's own thread cannot wait for its task: await the task instead",
        ),
        row(
            JoinError::AwaitsItself,
            ErrorKind::Deadlock,
            "a task cannot await itself: it would never end",
        ),
        row(
            already,
            ErrorKind::Other,
            "this event loop is already running",
        ),
        row(
            another,
            ErrorKind::Other,
            "cannot run this event loop while another loop is running in the thread",
        ),
        row(
            event_loop.run_forever().unwrap_err(),
            ErrorKind::NotConnected,
            "the event loop is closed",
        ),
        row(
            stopped,
            ErrorKind::Interrupted,
            "the event loop was stopped before the future was complete",
        ),
        row(
            cancelled.unwrap_err(),
            ErrorKind::Interrupted,
            "the future of the run was cancelled",
        ),
        row(
            RunError::Forked,
            ErrorKind::Other,
            "the event loop belongs to the parent process: make a new one",
        ),
        row(
            RunError::Stalled("`job`".to_owned()),
            ErrorKind::TimedOut,
            "the virtual clock stood still for 5 s of real time, waiting for `job`",
        ),
    ];
    for (text, error, kind, expected) in rows {
        assert_eq!(text, expected);
        assert_eq!(error.kind(), kind, "{text}");
        assert_eq!(error.to_string(), text, "the io::Error says the same");
        assert!(
            text.starts_with(|c: char| c.is_lowercase() || c == '`'),
            "{text}"
        );
        assert!(!text.ends_with('.'), "{text}");
    }
}

#[test]
fn what_the_system_says_keeps_its_kind_and_its_source() {
    let refused = || io::Error::new(ErrorKind::AddrInUse, "taken");
    let error = RunError::from(refused());
    assert_eq!(error.to_string(), "the selector failed");
    assert_eq!(error.source().unwrap().to_string(), "taken");
    let error = io::Error::from(error);
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::AddrInUse, "taken".to_owned())
    );

    let error = RunError::Cancelled(Cancelled::with_reason("rain"));
    assert_eq!(error.source().unwrap().to_string(), "cancelled: rain");
    assert!(RunError::Stopped.source().is_none());
}

#[test]
fn a_join_error_tells_cancelled_from_panicked_and_gives_the_payload() {
    let event_loop = real_loop();
    let cancelled = JoinError::from(Cancelled::with_reason("rain"));
    assert!(cancelled.is_cancelled() && !cancelled.is_panicked());
    let task = event_loop.create_task(async { panic::panic_any(42_u8) });
    let panicked: Result<(), _> = event_loop.run_until_complete(task).unwrap();
    let panicked = panicked.unwrap_err();
    assert!(!panicked.is_cancelled() && panicked.is_panicked());
    let JoinError::Panicked(payload) = panicked else {
        panic!("it did not panic");
    };
    let value: Box<dyn Any + Send> = payload.into_inner();
    assert_eq!(*value.downcast::<u8>().unwrap(), 42);
}
