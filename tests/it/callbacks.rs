//! Callbacks in the line, and the handles that cancel them, here and from other threads.

use std::cell::RefCell;
use std::fs;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use coloop::{EventLoop, Handle, LoopHandle, RemoteCall, TimerHandle};

use crate::order::{
    SECOND, SharedTrace, elsewhere, is_readable, loop_that_sleeps, readable_socket,
};
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

// ---- Cancelling ----------------------------------------------------------------------------------

#[test]
fn c_046_a_cancelled_callback_does_not_run_and_its_neighbours_do() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    event_loop.call_soon(trace.logs("a"));
    let b = event_loop.call_soon(trace.logs("b"));
    event_loop.call_soon(trace.logs("c"));
    assert!(b.cancel());
    one_turn(&event_loop);
    trace.assert(&["a", "c"]);
}

#[test]
fn c_048_a_due_timer_can_still_be_cancelled_by_what_runs_before_it() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let timer = Rc::new(event_loop.call_later(SECOND, trace.logs("timer")));
    let (log, due) = (trace.clone(), Rc::clone(&timer));
    event_loop.call_soon(move || log.log(format!("cancelled: {}", due.cancel())));
    clock.advance(SECOND);
    one_turn(&event_loop);
    trace.assert(&["cancelled: true"]);
    assert!(timer.is_cancelled());
}

#[test]
fn a_callback_can_be_cancelled_by_one_before_it_in_the_same_turn() {
    let (event_loop, _) = virtual_loop();
    let (trace, later) = (Trace::new(), Rc::new(RefCell::new(None)));
    let (log, seat) = (trace.clone(), Rc::clone(&later));
    event_loop.call_soon(move || {
        let cancelled = seat.take().is_some_and(|handle: Handle| handle.cancel());
        log.log(format!("cancelled: {cancelled}"));
    });
    let handle = event_loop.call_soon(trace.logs("later"));
    later.replace(Some(handle));
    event_loop.call_soon(trace.logs("last"));
    one_turn(&event_loop);
    trace.assert(&["cancelled: true", "last"]);
}

/// There are no arguments: what the closure has captured is what it gets.
#[test]
fn c_049_a_callback_has_exactly_what_it_captured() {
    let (event_loop, _) = virtual_loop();
    let seen = Rc::new(RefCell::new(None));
    let (seat, text, list) = (Rc::clone(&seen), String::from("tea"), vec![1, 2]);
    event_loop.call_soon(move || drop(seat.replace(Some((text, list, 7_u8)))));
    one_turn(&event_loop);
    assert_eq!(seen.take(), Some(("tea".to_owned(), vec![1, 2], 7)));
}

#[test]
fn c_050_a_handle_says_cancelled_only_if_its_callback_never_ran() {
    let (event_loop, _) = virtual_loop();
    let ran = event_loop.call_soon(|| ());
    let cancelled = event_loop.call_soon(|| ());
    assert!(!ran.is_cancelled() && !cancelled.is_cancelled());
    assert!(cancelled.cancel() && cancelled.is_cancelled());
    one_turn(&event_loop);
    assert!(!ran.cancel() && !ran.is_cancelled(), "it is too late");
    assert!(!cancelled.cancel() && cancelled.is_cancelled());
}

#[test]
fn a_callback_that_cancels_itself_has_run() {
    let (event_loop, _) = virtual_loop();
    let (trace, own) = (Trace::new(), Rc::new(RefCell::new(None::<Handle>)));
    let (log, seat) = (trace.clone(), Rc::clone(&own));
    let handle = event_loop.call_soon(move || {
        let own = seat.take().unwrap();
        log.log(own.cancel());
        log.log(own.is_cancelled());
    });
    own.replace(Some(handle));
    one_turn(&event_loop);
    trace.assert(&["false", "false"]);
}

#[test]
fn dropping_a_handle_does_not_cancel() {
    let (event_loop, _) = virtual_loop();
    let trace = SharedTrace::default();
    drop(event_loop.call_soon(trace.logs("here")));
    drop(event_loop.call_later(Duration::ZERO, trace.logs("later")));
    drop(event_loop.remote().call_soon(trace.logs("afar")).unwrap());
    one_turn(&event_loop);
    trace.assert(&["here", "afar", "later"]);
}

#[test]
fn c_051_what_a_cancelled_callback_holds_is_released_at_once() {
    let (event_loop, _) = virtual_loop();
    let (here, afar) = (Rc::new(()), Arc::new(()));
    let held = Rc::clone(&here);
    let callback = event_loop.call_soon(move || drop(held));
    let held = Rc::clone(&here);
    let timer = event_loop.call_later(SECOND, move || drop(held));
    let held = Arc::clone(&afar);
    let remote = event_loop.remote().call_soon(move || drop(held)).unwrap();
    assert_eq!((Rc::strong_count(&here), Arc::strong_count(&afar)), (3, 2));

    assert!(callback.cancel());
    assert_eq!(Rc::strong_count(&here), 2);
    assert!(timer.cancel());
    assert_eq!(Rc::strong_count(&here), 1);
    assert!(remote.cancel());
    assert_eq!(Arc::strong_count(&afar), 1);
}

/// asyncio does not queue a handle that is cancelled already. Here such a thing is a timer that was
/// cancelled before it was due.
#[test]
fn c_066_a_timer_cancelled_before_it_is_due_never_joins_the_line() {
    let trace = Trace::new();
    let (event_loop, clock) = virtual_loop();
    let timer = event_loop.call_later(SECOND, trace.logs("timer"));
    assert!(timer.cancel());
    assert!(event_loop.is_idle() && event_loop.deadline().is_none());
    clock.advance(2 * SECOND);
    one_turn(&event_loop);
    trace.assert::<&str>(&[]);
}

// ---- Panics --------------------------------------------------------------------------------------

/// Has the reports of panics logged: what happened, the panic's message, and the line it came from.
fn log_reports(event_loop: &EventLoop, trace: &Trace) {
    let log = trace.clone();
    event_loop.set_exception_handler(move |_: &LoopHandle, report| {
        let place = report.place().unwrap();
        assert_eq!(place.file(), file!());
        log.log(format!(
            "{}: {} (line {})",
            report.message(),
            report.panic_message().unwrap(),
            place.line()
        ));
    });
}

#[test]
fn c_053_a_panic_goes_to_the_exception_handler_and_later_callbacks_still_run() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    log_reports(&event_loop, &trace);
    let line = line!() + 1;
    event_loop.call_soon(|| panic!("no tea"));
    event_loop.call_later(Duration::ZERO, || panic!("no milk"));
    event_loop.call_soon(trace.logs("same turn"));
    one_turn(&event_loop);
    event_loop.call_soon(trace.logs("next turn"));
    one_turn(&event_loop);
    trace.assert(&[
        format!("panic in callback: no tea (line {line})").as_str(),
        "same turn",
        &format!("panic in callback: no milk (line {})", line + 1),
        "next turn",
    ]);
}

#[test]
fn c_053_a_watcher_that_panics_is_reported_and_called_again() {
    let (event_loop, _) = virtual_loop();
    let (trace, (near, _far)) = (Trace::new(), readable_socket());
    log_reports(&event_loop, &trace);
    let reader = || panic!("unreadable");
    let line = line!() + 1;
    event_loop.add_reader(near, reader).unwrap();
    one_turn(&event_loop);
    one_turn(&event_loop);
    let report = format!("panic in callback: unreadable (line {line})");
    trace.assert(&[&report, &report]);
}

#[test]
fn c_068_in_debug_mode_a_report_says_where_the_callback_was_scheduled() {
    let event_loop = builder().debug(true).build().unwrap();
    let trace = Trace::new();
    log_reports(&event_loop, &trace);
    let remote = event_loop.remote();
    let line = line!() + 1;
    event_loop.call_soon(|| panic!("soon"));
    event_loop.call_later(Duration::ZERO, || panic!("later"));
    elsewhere(|| remote.call_soon(|| panic!("afar")).map(drop)).unwrap();
    one_turn(&event_loop);
    trace.assert(&[
        format!("panic in callback: soon (line {line})"),
        format!("panic in callback: afar (line {})", line + 2),
        format!("panic in callback: later (line {})", line + 1),
    ]);
}

// ---- From other threads --------------------------------------------------------------------------

#[test]
fn c_054_a_call_from_another_thread_wakes_the_loop_from_its_sleep() {
    let trace = SharedTrace::default();
    let log = trace.clone();
    let (event_loop, _) = loop_that_sleeps(builder(), move |remote| {
        log.log("asleep");
        let log = log.clone();
        let called = move || {
            log.log("called");
            coloop::current().stop();
        };
        elsewhere(|| remote.call_soon(called).map(drop)).unwrap();
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["asleep", "called"]);
}

#[test]
fn c_055_a_remote_call_and_then_a_plain_one_from_the_loop_s_thread_run_in_this_order() {
    let (event_loop, _) = virtual_loop();
    let (trace, handle) = (SharedTrace::default(), event_loop.handle());
    let log = trace.clone();
    event_loop.call_soon(move || {
        handle.remote().call_soon(log.logs("remote")).unwrap();
        handle.call_soon(log.logs("plain"));
    });
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["remote", "plain"]);
}

/// Each call makes two timers and cancels one of them.
#[test]
fn c_056_thousands_of_remote_calls_among_timers_run_exactly_once_each() {
    const CALLS: usize = 4096;
    let event_loop = real_loop();
    let (calls, timers) = (SharedTrace::default(), SharedTrace::default());
    let (remote, called, fired) = (event_loop.remote(), calls.clone(), timers.clone());
    let poster = thread::spawn(move || {
        for number in 0..CALLS {
            let (called, fired) = (called.clone(), fired.logs(number));
            let call = move || {
                called.log(number);
                let handle = coloop::current();
                let cancelled = handle.call_later(Duration::ZERO, || unreachable!("cancelled"));
                handle.call_later(Duration::ZERO, fired);
                assert!(cancelled.cancel());
            };
            remote.call_soon(call).unwrap();
        }
        let stop =
            || drop(coloop::current().call_later(Duration::ZERO, || coloop::current().stop()));
        remote.call_soon(stop).unwrap();
    });
    event_loop.run_forever().unwrap();
    poster.join().unwrap();
    let expected: Vec<_> = (0..CALLS).map(|number| number.to_string()).collect();
    calls.assert(&expected);
    timers.assert(&expected);
}

/// Asks about a remote call while its callback is running, from another thread. The callback ends
/// when that thread waits, or has its answer. Returns the answer, whether the callback had ended when
/// it came, and the call.
fn ask_while_it_runs(ask: fn(&RemoteCall) -> bool) -> (bool, bool, RemoteCall) {
    let event_loop = real_loop();
    let remote = event_loop.remote();
    let (running, runs) = mpsc::channel();
    let (asking, asks) = mpsc::channel::<PathBuf>();
    let ended = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicBool::new(false));
    let (ends, is_answered) = (Arc::clone(&ended), Arc::clone(&answered));
    let callback = move || {
        running.send(()).unwrap();
        let asker = asks.recv().unwrap();
        while !is_answered.load(Ordering::SeqCst) && !is_waiting(&asker) {
            thread::yield_now();
        }
        ends.store(true, Ordering::SeqCst);
    };
    let asker = thread::spawn(move || {
        let call = remote.call_soon(callback).unwrap();
        runs.recv().unwrap();
        asking
            .send(fs::read_link("/proc/thread-self").unwrap())
            .unwrap();
        let answer = ask(&call);
        let had_ended = ended.load(Ordering::SeqCst);
        answered.store(true, Ordering::SeqCst);
        remote.stop();
        (answer, had_ended, call)
    });
    event_loop.run_forever().unwrap();
    asker.join().unwrap()
}

/// Tells whether a thread sleeps in the system.
fn is_waiting(thread: &PathBuf) -> bool {
    let path = PathBuf::from("/proc").join(thread).join("stat");
    let stat = fs::read_to_string(path).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|state| state.starts_with(" S"))
}

#[test]
fn c_058_asking_whether_a_running_callback_is_cancelled_waits_for_its_end() {
    let (cancelled, had_ended, _) = ask_while_it_runs(RemoteCall::is_cancelled);
    assert_eq!((cancelled, had_ended), (false, true));
}

#[test]
fn c_059_cancelling_a_running_callback_waits_for_its_end_and_comes_too_late() {
    let (cancelled, had_ended, call) = ask_while_it_runs(RemoteCall::cancel);
    assert_eq!((cancelled, had_ended), (false, true));
    assert!(!call.is_cancelled(), "what it did stands");
}

#[test]
fn c_060_a_remote_callback_that_cancels_itself_completes_and_counts_as_cancelled() {
    let (event_loop, _) = virtual_loop();
    let (trace, own) = (
        SharedTrace::default(),
        Arc::new(OnceLock::<RemoteCall>::new()),
    );
    let (log, seat) = (trace.clone(), Arc::clone(&own));
    let callback = move || {
        let own = seat.get().unwrap();
        log.log(own.is_cancelled());
        log.log(own.cancel());
        log.log(own.is_cancelled());
        log.log("completes");
    };
    let call = event_loop.remote().call_soon(callback).unwrap();
    own.set(call.clone()).unwrap();
    one_turn(&event_loop);
    trace.assert(&["false", "false", "true", "completes"]);
    assert!(call.is_cancelled() && elsewhere(|| call.is_cancelled()));
}

#[test]
fn c_061_a_remote_callback_cancelled_before_it_starts_never_runs() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let posted = elsewhere(|| remote.call_soon(trace.logs("posted")).unwrap());
    remote.call_soon(trace.logs("last")).unwrap();
    assert!(elsewhere(|| posted.cancel()));
    assert!(posted.is_cancelled() && !posted.cancel(), "once");
    one_turn(&event_loop);
    trace.assert(&["last"]);
    assert!(posted.is_cancelled());
}

/// The doorbell is never read; however often it rings, nothing of it is left behind.
#[test]
fn c_063_many_rings_wake_once_and_leave_nothing_behind() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let door = event_loop.descriptor().unwrap();
    for round in 0..1_000 {
        elsewhere(|| {
            remote.stop();
            remote.call_soon(trace.logs(round)).map(drop)
        })
        .unwrap();
        assert!(is_readable(&door));
        event_loop.turn(Some(Duration::ZERO)).unwrap();
        assert!(!is_readable(&door) && event_loop.is_idle());
    }
    let rounds: Vec<_> = (0..1_000).map(|round| round.to_string()).collect();
    trace.assert(&rounds);
}

// ---- What types make impossible ------------------------------------------------------------------
//
// Two blanket implementations of one trait: the method can be called only on a type that has one of
// them and not both.

/// asyncio checks the thread in debug mode; here a handle cannot be sent at all.
#[test]
fn c_064_a_handle_cannot_leave_its_thread() {
    trait UnlessSend<Which> {
        fn compiles(&self) {}
    }
    struct Also;
    impl<T> UnlessSend<()> for PhantomData<T> {}
    impl<T: Send> UnlessSend<Also> for PhantomData<T> {}

    PhantomData::<EventLoop>.compiles();
    PhantomData::<LoopHandle>.compiles();
    PhantomData::<Handle>.compiles();
    PhantomData::<TimerHandle>.compiles();
}

#[test]
fn c_065_what_is_not_a_callback_is_refused_by_the_compiler() {
    trait UnlessCallback<Which> {
        fn compiles(&self) {}
    }
    struct Also;
    impl<T> UnlessCallback<()> for PhantomData<T> {}
    impl<T: FnOnce()> UnlessCallback<Also> for PhantomData<T> {}
    fn type_of<T>(_: T) -> PhantomData<T> {
        PhantomData
    }

    type_of(7).compiles();
    type_of(async {}).compiles();
    type_of(async || ()).compiles();
}
