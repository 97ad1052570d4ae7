//! Running, stopping and closing a loop; being driven by a host.

use std::cell::Cell;
use std::env;
use std::fs;
use std::future::{Future, IntoFuture, Ready, pending, ready};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use coloop::testing::Clock;
use coloop::{
    EventLoop, JoinError, LoopClosed, LoopHandle, PanicPolicy, RunError, Turn, yield_now,
};
use rustix::io::fcntl_getfd;

use crate::order::{
    Drops, SECOND, SharedTrace, Tap, chain, elsewhere, is_readable, log_bytes, noting_loop,
    readable_socket, reports, tracing_loop,
};
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

/// Runs `f`, which looks at the whole process, in a process that does nothing else.
///
/// `test` is the full name of the calling test: this very binary is run again for it alone.
#[track_caller]
pub(crate) fn in_child(test: &str, f: impl FnOnce()) {
    const CHILD: &str = "COLOOP_TEST_CHILD";
    if env::var_os(CHILD).is_some_and(|child| child == test) {
        return f();
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args([test, "--exact", "--nocapture", "--test-threads=1"]);
    let output = child.env(CHILD, test).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The panic of `f`, as text.
fn panic_of<R>(f: impl FnOnce() -> R) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    payload.downcast_ref::<&str>().map(ToString::to_string)
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

// ---- Stopping ------------------------------------------------------------------------------------

#[test]
fn c_001_a_loop_stopped_before_its_run_polls_once_without_waiting_and_runs_what_is_ready() {
    let (event_loop, _, waits) = noting_loop();
    let (trace, (near, _far)) = (Trace::new(), readable_socket());
    log_bytes(&event_loop, &near, &trace, "read");
    event_loop.call_soon(trace.logs("ready"));
    event_loop.stop();
    event_loop.run_forever().unwrap();
    trace.assert(&["ready", "read"]);
    assert_eq!(waits.take(), [Some(Duration::ZERO)]);
}

#[test]
fn c_003_a_stop_ends_one_run_and_not_the_next() {
    let (event_loop, clock) = virtual_loop();
    let handle = event_loop.handle();
    event_loop.call_soon(move || handle.stop());
    event_loop.run_forever().unwrap();
    assert_eq!(clock.elapsed(), Duration::ZERO);

    let handle = event_loop.handle();
    event_loop.call_later(SECOND, move || handle.stop());
    event_loop.run_forever().unwrap();
    assert_eq!(clock.elapsed(), SECOND, "it waited for the timer");
}

#[test]
fn c_004_a_stopped_loop_fires_what_is_overdue_in_its_one_turn_the_earlier_first() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    event_loop.call_later(Duration::ZERO, trace.logs("now"));
    event_loop.call_at(event_loop.time() - SECOND, trace.logs("a second ago"));
    one_turn(&event_loop);
    trace.assert(&["a second ago", "now"]);
}

#[test]
fn c_005_one_turn_runs_what_is_ready_then_io_then_timers() {
    let (event_loop, _) = virtual_loop();
    let (trace, (near, _far)) = (Trace::new(), readable_socket());
    event_loop.call_at(event_loop.time() - SECOND, trace.logs("timer"));
    log_bytes(&event_loop, &near, &trace, "io");
    event_loop.call_soon(trace.logs("ready"));
    one_turn(&event_loop);
    trace.assert(&["ready", "io", "timer"]);
}

#[test]
fn c_006_what_a_callback_schedules_runs_in_the_next_turn_after_another_poll() {
    let trace = Trace::new();
    let event_loop = tracing_loop(&trace);
    let (log, handle) = (trace.clone(), event_loop.handle());
    event_loop.call_soon(move || {
        log.log("first");
        let stop = handle.clone();
        handle.call_soon(move || {
            log.log("second");
            stop.stop();
        });
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["wait", "first", "wait", "second"]);
}

#[test]
fn c_010_a_future_that_stops_the_loop_and_goes_on_waiting_can_be_finished_by_a_later_run() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let mut task = event_loop.create_task(async move {
        log.log("stops");
        coloop::current().stop();
        yield_now().await;
        log.log("goes on");
        7
    });
    let stopped = event_loop.run_until_complete(&mut task);
    assert!(matches!(stopped, Err(RunError::Stopped)));
    assert!(!task.is_finished());
    trace.assert(&["stops"]);
    assert_eq!(event_loop.run_until_complete(task).unwrap().unwrap(), 7);
    trace.assert(&["goes on"]);
}

#[test]
fn c_010_a_future_that_stops_the_loop_and_goes_on_waiting_can_be_cancelled_after_it() {
    let (event_loop, _) = virtual_loop();
    let mut task = event_loop.create_task(async {
        coloop::current().stop();
        pending::<()>().await;
    });
    let stopped = event_loop.run_until_complete(&mut task);
    assert!(matches!(stopped, Err(RunError::Stopped)));
    assert!(task.cancel());
    let ended = event_loop.run_until_complete(task).unwrap();
    assert!(matches!(ended, Err(JoinError::Cancelled(_))));
}

/// Without `&mut` the future is dropped when the run ends.
#[test]
fn a_future_whose_run_was_stopped_has_been_dropped() {
    let (event_loop, _) = virtual_loop();
    let drops = Drops::default();
    let token = drops.token();
    event_loop.stop();
    let stopped = event_loop.run_until_complete(async move {
        let _token = token;
        pending::<()>().await;
    });
    assert!(matches!(stopped, Err(RunError::Stopped)));
    assert_eq!(drops.count(), 1);
}

#[test]
fn a_future_that_completes_in_the_turn_of_a_stop_has_its_output() {
    let (event_loop, _) = virtual_loop();
    event_loop.stop();
    assert_eq!(event_loop.run_until_complete(ready(7)).unwrap(), 7);
}

#[test]
fn c_026_what_was_reported_while_the_loop_stopped_is_called_once_in_total() {
    let (event_loop, _) = virtual_loop();
    let (trace, (near, _far)) = (Trace::new(), readable_socket());
    let handle = event_loop.handle();
    event_loop.call_soon(move || handle.stop());
    log_bytes(&event_loop, &near, &trace, "read");
    event_loop.run_forever().unwrap();
    one_turn(&event_loop);
    trace.assert(&["read"]);
}

#[test]
fn c_028_a_loop_stopped_before_its_run_does_not_wait_for_a_far_timer() {
    let (event_loop, _, waits) = noting_loop();
    let trace = Trace::new();
    event_loop.call_later(3600 * SECOND, trace.logs("timer"));
    event_loop.stop();
    event_loop.run_forever().unwrap();
    assert_eq!(waits.take(), [Some(Duration::ZERO)]);
    trace.assert::<&str>(&[]);
}

#[test]
fn c_029_a_stop_from_a_timer_lets_its_turn_finish_and_the_next_run_goes_on_behind_it() {
    let (event_loop, clock) = virtual_loop();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    let log = trace.clone();
    event_loop.call_later(SECOND, move || {
        log.log("stop");
        handle.call_soon(log.logs("added"));
        handle.stop();
    });
    event_loop.call_later(SECOND, trace.logs("same turn"));
    let handle = event_loop.handle();
    event_loop.call_later(2 * SECOND, move || handle.stop());
    event_loop.run_forever().unwrap();
    trace.assert(&["stop", "same turn"]);
    event_loop.run_forever().unwrap();
    trace.assert(&["added"]);
    assert_eq!(clock.elapsed(), 2 * SECOND);
}

// ---- Running until complete ----------------------------------------------------------------------

// What is neither a future nor becomes one is refused by the compiler: see the example of `EventLoop`.
#[test]
fn c_008_whatever_becomes_a_future_can_be_run() {
    struct Order;
    impl IntoFuture for Order {
        type Output = &'static str;
        type IntoFuture = Ready<&'static str>;
        fn into_future(self) -> Self::IntoFuture {
            ready("tea")
        }
    }
    let (event_loop, _) = virtual_loop();
    assert_eq!(event_loop.run_until_complete(Order).unwrap(), "tea");
}

/// asyncio refuses this; here a promise wakes whoever awaits it, on any loop of the thread.
#[test]
fn c_009_a_promise_of_one_loop_can_be_awaited_on_another_of_the_same_thread() {
    let ((a, _), (b, clock)) = (virtual_loop(), virtual_loop());
    let (resolver, promise) = a.create_future();
    b.call_later(SECOND, move || resolver.settle("settled").unwrap());
    assert_eq!(b.run_until_complete(promise).unwrap(), Ok("settled"));
    assert_eq!(clock.elapsed(), SECOND);
}

#[test]
fn c_011_a_future_whose_run_was_left_by_a_panic_does_not_stop_the_next_run() {
    let (event_loop, _) = virtual_loop();
    event_loop.set_panic_policy(PanicPolicy::Propagate);
    let (resolver, promise) = event_loop.create_future::<()>();
    let mut orphan = event_loop.create_task(promise);
    event_loop.call_soon(|| panic!("interrupt"));
    let left = panic_of(|| event_loop.run_until_complete(&mut orphan));
    assert_eq!(left.as_deref(), Some("interrupt"));

    resolver.settle(()).unwrap();
    let trace = Trace::new();
    event_loop.call_soon(trace.logs("before the second"));
    let log = trace.clone();
    let seen = event_loop.run_until_complete(async {
        for turn in 0..3 {
            log.log(turn);
            yield_now().await;
        }
        orphan.is_finished()
    });
    assert!(seen.unwrap(), "the orphan ended during the second run");
    // The first run's place in the line is nobody's.
    trace.assert(&["before the second", "0", "1", "2"]);
}

#[test]
fn c_013_a_panic_that_left_the_run_is_not_reported_again() {
    let (event_loop, _) = virtual_loop();
    let reported = reports(&event_loop);
    let left = panic_of(|| event_loop.run_until_complete(async { panic!("interrupt") }));
    assert_eq!(left.as_deref(), Some("interrupt"));
    event_loop.close().unwrap();
    drop(event_loop);
    reported.assert::<&str>(&[]);
}

#[test]
fn a_loop_runs_on_after_the_panic_of_a_main_future() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    let handle = event_loop.handle();
    let log = trace.clone();
    let left = panic_of(|| {
        event_loop.run_until_complete(async {
            handle.call_soon(log.logs("left in the line"));
            panic!("main")
        })
    });
    assert_eq!(left.as_deref(), Some("main"));
    assert!(!event_loop.is_running() && coloop::try_current().is_err());
    assert_eq!(event_loop.run_until_complete(ready(7)).unwrap(), 7);
    trace.assert(&["left in the line"]);
}

#[test]
fn c_014_a_future_that_is_complete_already_still_takes_a_turn() {
    let (event_loop, _) = virtual_loop();
    let (resolver, promise) = event_loop.create_future();
    resolver.settle(7).unwrap();
    let trace = Trace::new();
    event_loop.call_soon(trace.logs("ready"));
    assert_eq!(event_loop.run_until_complete(promise).unwrap(), Ok(7));
    trace.assert(&["ready"]);
}

#[test]
fn the_main_future_may_borrow_from_the_caller() {
    let (event_loop, _) = virtual_loop();
    let (mut words, text) = (Vec::new(), String::from("first second"));
    let count = event_loop
        .run_until_complete(async {
            for word in text.split(' ') {
                coloop::sleep(SECOND).await;
                words.push(word);
            }
            words.len()
        })
        .unwrap();
    assert_eq!((count, words), (2, vec!["first", "second"]));
}

#[test]
fn the_turn_in_which_the_main_future_completes_is_finished() {
    let (event_loop, _) = virtual_loop();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    event_loop
        .run_until_complete(async {
            handle.call_soon(trace.logs("next turn"));
            yield_now().await;
            handle.call_soon(trace.logs("after the run"));
            trace.log("complete");
        })
        .unwrap();
    trace.assert(&["next turn", "complete"]);
    one_turn(&event_loop);
    trace.assert(&["after the run"]);
}

#[test]
fn tasks_that_are_pending_stay_so_until_the_next_run() {
    let (event_loop, clock) = virtual_loop();
    let task = event_loop.create_task(coloop::sleep(2 * SECOND));
    event_loop
        .run_until_complete(coloop::sleep(SECOND))
        .unwrap();
    assert!(!task.is_finished());
    event_loop.run_until_complete(task).unwrap().unwrap();
    assert_eq!(clock.elapsed(), 2 * SECOND);
}

/// A waker of an earlier run is silent, also when it is called from another thread.
#[test]
fn a_waker_that_outlives_its_run_does_nothing() {
    let (event_loop, _) = virtual_loop();
    let mut waker = None;
    event_loop
        .run_until_complete(std::future::poll_fn(|cx| {
            waker = Some(cx.waker().clone());
            std::task::Poll::Ready(())
        }))
        .unwrap();
    let waker = waker.unwrap();
    elsewhere(|| waker.wake_by_ref());
    waker.wake();
    assert!(event_loop.is_idle());
    let trace = Trace::new();
    let log = trace.clone();
    event_loop
        .run_until_complete(async move {
            log.log("polled");
            yield_now().await;
            log.log("polled");
        })
        .unwrap();
    trace.assert(&["polled", "polled"]);
}

// ---- Nested runs ---------------------------------------------------------------------------------

/// Runs `nested` from a callback that has asked to stop, and logs what it comes to.
fn nest(nested: impl FnOnce(&EventLoop) -> Result<(), RunError> + 'static) -> Trace {
    let (event_loop, _) = virtual_loop();
    let event_loop = Rc::new(event_loop);
    let (trace, inner) = (Trace::new(), Rc::clone(&event_loop));
    let log = trace.clone();
    event_loop.call_soon(move || {
        inner.stop();
        log.log(nested(&inner).unwrap_err());
        log.log(format!("running: {}", inner.is_running()));
        log.log(format!("current: {}", coloop::try_current().is_ok()));
        inner.call_soon(log.logs("next run"));
    });
    event_loop.call_soon(trace.logs("same turn"));
    event_loop.run_forever().unwrap();
    trace.log("stopped");
    one_turn(&event_loop);
    trace
}

#[test]
fn c_015_a_run_of_the_running_loop_is_refused_and_leaves_the_outer_run_undisturbed() {
    type Nested = fn(&EventLoop) -> Result<(), RunError>;
    let ways: [Nested; 4] = [
        |event_loop| event_loop.run_forever(),
        |event_loop| event_loop.run_until_complete(pending()),
        |event_loop| event_loop.run_until_complete(async { unreachable!("it does not run") }),
        |event_loop| event_loop.turn(None).map(drop),
    ];
    for nested in ways {
        nest(nested).assert(&[
            "this event loop is already running",
            "running: true",
            "current: true",
            "same turn",
            "stopped",
            "next run",
        ]);
    }
}

#[test]
fn c_016_another_loop_cannot_run_inside_a_running_one() {
    let ((other, _), trace) = (virtual_loop(), Trace::new());
    let other = Rc::new(other);
    other.call_soon(trace.logs("other"));
    type Nested = fn(&EventLoop) -> Result<(), RunError>;
    let ways: [Nested; 3] = [
        |event_loop| event_loop.run_forever(),
        |event_loop| event_loop.run_until_complete(ready(())),
        |event_loop| event_loop.turn(None).map(drop),
    ];
    for nested in ways {
        let inner = Rc::clone(&other);
        nest(move |_| nested(&inner)).assert(&[
            "cannot run this event loop while another loop is running in the thread",
            "running: true",
            "current: true",
            "same turn",
            "stopped",
            "next run",
        ]);
    }
    trace.assert::<&str>(&[]);
    one_turn(&other);
    trace.assert(&["other"]);
}

#[test]
fn c_018_closing_a_running_loop_is_refused_and_the_loop_stays_usable() {
    nest(EventLoop::close).assert(&[
        "this event loop is already running",
        "running: true",
        "current: true",
        "same turn",
        "stopped",
        "next run",
    ]);
}

// ---- Closing -------------------------------------------------------------------------------------

#[test]
fn c_019_closing_again_does_nothing() {
    let (event_loop, _) = virtual_loop();
    for _ in 0..3 {
        event_loop.close().unwrap();
        assert!(event_loop.is_closed() && !event_loop.is_running());
    }
}

#[test]
fn c_020_a_closed_loop_does_not_run() {
    let (event_loop, _) = virtual_loop();
    event_loop.close().unwrap();
    let refusals = [
        event_loop.run_forever(),
        event_loop.run_until_complete(async { unreachable!("it does not run") }),
        event_loop.turn(None).map(drop),
    ];
    for refused in refusals {
        assert!(matches!(refused, Err(RunError::Closed)));
    }
    assert_eq!(
        event_loop.descriptor().unwrap_err().kind(),
        io::ErrorKind::NotConnected
    );
}

/// asyncio raises; here destructors may schedule, so work is dropped quietly.
#[test]
fn c_020_a_closed_loop_drops_what_it_is_given_and_its_handle_is_cancelled() {
    let (event_loop, _) = virtual_loop();
    let (drops, now) = (Drops::default(), event_loop.time());
    event_loop.close().unwrap();
    let give = || {
        let token = drops.token();
        move || drop(token)
    };

    assert!(event_loop.call_soon(give()).is_cancelled());
    assert_eq!(drops.count(), 1);
    let timers = [
        event_loop.call_later(SECOND, give()),
        event_loop.call_at(now, give()),
    ];
    assert_eq!(drops.count(), 3);
    for timer in timers {
        assert!(timer.is_cancelled() && !timer.cancel());
    }
    let (token, task) = (drops.token(), event_loop.task());
    let task = task.create(async move { drop(token) });
    assert_eq!(drops.count(), 4);
    assert!(task.is_finished());
}

#[test]
fn c_020_a_closed_loop_says_so_to_those_who_ask() {
    let (event_loop, _) = virtual_loop();
    let (drops, now, remote) = (Drops::default(), event_loop.time(), event_loop.remote());
    event_loop.close().unwrap();
    let give = || {
        let token = drops.token();
        move || drop(token)
    };
    let future = || {
        let token = drops.token();
        async move { drop(token) }
    };
    let refusals = [
        event_loop.try_call_soon(give()).err(),
        event_loop.try_call_later(SECOND, give()).err(),
        event_loop.try_call_at(now, give()).err(),
        event_loop.try_create_task(future()).err(),
        event_loop.task().try_create(future()).err(),
        remote.call_soon(|| ()).err(),
        elsewhere(|| remote.call_soon(|| ()).err()),
        remote.create_task(|| ready(())).err(),
        elsewhere(|| remote.create_task(|| ready(())).err()),
    ];
    for refused in refusals {
        let refused: LoopClosed = refused.unwrap();
        assert_eq!(refused.to_string(), "the event loop is closed");
    }
    assert_eq!(drops.count(), 5);
    assert!(remote.is_closed());
}

#[test]
fn c_021_a_closed_loop_watches_nothing_and_has_nothing_to_remove() {
    let (event_loop, _) = virtual_loop();
    let (near, _far) = readable_socket();
    let watched = event_loop.add_reader(Rc::clone(&near), || ()).unwrap();
    event_loop.close().unwrap();
    assert_eq!(Rc::strong_count(&near), 1, "the descriptor came back");

    let refusals = [
        event_loop.add_reader(Rc::clone(&near), || ()),
        event_loop.add_writer(Rc::clone(&near), || ()),
    ];
    for refused in refusals {
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
    assert_eq!(Rc::strong_count(&near), 1);
    assert!(!event_loop.remove_reader(watched) && !event_loop.remove_writer(watched));
    let fd = std::os::fd::AsRawFd::as_raw_fd(&*near);
    assert!(!event_loop.remove_reader(fd) && !event_loop.remove_writer(fd));
}

#[test]
fn c_023_a_future_that_a_closed_loop_refuses_is_dropped_without_a_report() {
    let (event_loop, _) = virtual_loop();
    let (reported, drops) = (reports(&event_loop), Drops::default());
    event_loop.close().unwrap();
    let token = drops.token();
    let mut task = event_loop.create_task(async move {
        let _token = token;
        pending::<()>().await;
    });
    assert_eq!(drops.count(), 1);
    let waker = std::task::Waker::noop();
    let ended = std::pin::Pin::new(&mut task).poll(&mut std::task::Context::from_waker(waker));
    assert!(matches!(
        ended,
        std::task::Poll::Ready(Err(JoinError::Cancelled(_)))
    ));
    drop(task);
    reported.assert::<&str>(&[]);
}

/// Also while handles and ways in from other threads are still there.
#[test]
fn c_024_closing_gives_back_the_loop_s_own_descriptors() {
    in_child(
        "lifecycle::c_024_closing_gives_back_the_loop_s_own_descriptors",
        || {
            let before = entries("/proc/self/fd");
            let event_loop = EventLoop::new().unwrap();
            assert!(entries("/proc/self/fd") > before);
            let (handle, remote) = (event_loop.handle(), event_loop.remote());
            event_loop.run_until_complete(yield_now()).unwrap();
            event_loop.close().unwrap();
            assert_eq!(entries("/proc/self/fd"), before);
            drop((event_loop, handle, remote));
            assert_eq!(entries("/proc/self/fd"), before);
        },
    );
}

#[test]
fn a_thousand_loops_leave_no_descriptor_and_no_thread() {
    in_child(
        "lifecycle::a_thousand_loops_leave_no_descriptor_and_no_thread",
        || {
            let counts = || (entries("/proc/self/fd"), entries("/proc/self/task"));
            let before = counts();
            for round in 0..1_000 {
                let event_loop = EventLoop::new().unwrap();
                let (near, far) = readable_socket();
                event_loop.add_reader(near, || ()).unwrap();
                event_loop.call_later(3600 * SECOND, || ());
                let task = event_loop.create_task(pending::<()>());
                let remote = event_loop.remote();
                remote.call_soon(move || drop(far)).unwrap();
                event_loop.run_until_complete(yield_now()).unwrap();
                if round % 2 == 0 {
                    event_loop.close().unwrap();
                }
                drop((event_loop, task, remote));
            }
            assert_eq!(counts(), before);
        },
    );
}

#[test]
fn closing_drops_what_is_scheduled_without_running_it() {
    let (event_loop, _) = virtual_loop();
    let (drops, trace) = (Drops::default(), Trace::new());
    let give = |word: &'static str| {
        let (token, log) = (drops.token(), trace.clone());
        move || {
            log.log(word);
            drop(token);
        }
    };
    event_loop.call_soon(give("callback"));
    event_loop.call_later(SECOND, give("timer"));
    event_loop.call_at(event_loop.time() - SECOND, give("overdue timer"));
    let run = give("unpolled task");
    let unpolled = event_loop.create_task(async move { run() });
    let (resolver, promise) = event_loop.create_future();
    let run = give("done-callback");
    promise.on_done(move |_| run());
    resolver.settle(()).unwrap();
    let (near, _far) = readable_socket();
    let token = drops.token();
    let reader = move || {
        let _ = &token;
        unreachable!("the reader");
    };
    event_loop.add_reader(near, reader).unwrap();

    assert_eq!(drops.count(), 0);
    event_loop.close().unwrap();
    assert_eq!(drops.count(), 6);
    trace.assert::<&str>(&[]);
    assert!(unpolled.is_finished());
}

#[test]
fn dropping_a_loop_closes_it_and_breaks_cycles_through_its_handles() {
    let (event_loop, _) = virtual_loop();
    let (drops, handle) = (Drops::default(), event_loop.handle());
    let (token, inner) = (drops.token(), event_loop.handle());
    let task = event_loop.create_task(async move {
        let _token = token;
        let _cycle = inner.create_task(pending::<()>());
        pending::<()>().await;
    });
    one_turn(&event_loop);
    drop(event_loop);
    assert_eq!(drops.count(), 1);
    assert!(handle.is_closed() && task.is_finished());
    assert!(handle.all_tasks().is_empty());
}

#[test]
fn what_dies_with_its_loop_may_schedule_and_is_refused() {
    struct Schedules(LoopHandle, Trace);
    impl Drop for Schedules {
        fn drop(&mut self) {
            let callback = self.0.call_soon(|| unreachable!("the loop is closed"));
            let task = self
                .0
                .create_task(async { unreachable!("the loop is closed") });
            self.1.log(callback.is_cancelled() && task.is_finished());
            drop::<coloop::Task<()>>(task);
        }
    }
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    let dying = || Schedules(event_loop.handle(), trace.clone());
    let in_line = dying();
    event_loop.call_soon(move || drop(in_line));
    let on_shelf = dying();
    event_loop.call_later(SECOND, move || drop(on_shelf));
    let in_task = dying();
    let task = event_loop.create_task(async move {
        let _in_task = in_task;
        pending::<()>().await;
    });
    event_loop.close().unwrap();
    trace.assert(&["true", "true", "true"]);
    assert!(task.is_finished());
}

// ---- Driven by a host ----------------------------------------------------------------------------

#[test]
fn c_025_a_host_makes_ten_turns() {
    let waits = Rc::new(Cell::new(0));
    let count = Rc::clone(&waits);
    let tap = Tap::new(move |_| {
        count.set(count.get() + 1);
        Some(Duration::ZERO)
    });
    let event_loop = builder().selector(tap).build().unwrap();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    let log = trace.clone();
    event_loop.call_soon(move || log.log(format!("running: {}", handle.is_running())));
    for _ in 0..10 {
        assert!(!event_loop.is_running() && coloop::try_current().is_err());
        assert_eq!(event_loop.turn(None).unwrap(), Turn::Done);
    }
    assert_eq!(waits.get(), 10);
    trace.assert(&["running: true"]);
}

#[test]
fn a_turn_waits_for_the_deadline_or_for_as_long_as_its_host_allows() {
    let (event_loop, _, waits) = noting_loop();
    let trace = Trace::new();
    event_loop.turn(Some(5 * SECOND)).unwrap();
    event_loop.call_later(3 * SECOND, trace.logs("timer"));
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    event_loop.turn(Some(2 * SECOND)).unwrap();
    trace.assert::<&str>(&[]);
    event_loop.turn(Some(2 * SECOND)).unwrap();
    trace.assert(&["timer"]);
    event_loop.call_soon(|| ());
    event_loop.turn(Some(5 * SECOND)).unwrap();
    let seconds = [5, 0, 2, 1, 0].map(|seconds| Some(seconds * SECOND));
    assert_eq!(waits.take(), seconds);
}

#[test]
fn a_turn_of_a_virtual_loop_jumps_no_further_than_its_host_allows() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    event_loop.call_later(3 * SECOND, trace.logs("timer"));
    for (limit, elapsed) in [(Some(0), 0), (Some(1), 1), (None, 3)] {
        trace.assert::<&str>(&[]);
        let limit = limit.map(|seconds| seconds * SECOND);
        assert_eq!(event_loop.turn(limit).unwrap(), Turn::Done);
        assert_eq!(clock.elapsed(), elapsed * SECOND);
    }
    trace.assert(&["timer"]);
}

#[test]
fn a_turn_says_that_a_stop_was_asked_before_or_in_it() {
    let (event_loop, _) = virtual_loop();
    let turn = || event_loop.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(turn(), Turn::Done);
    event_loop.stop();
    assert_eq!(turn(), Turn::StopAsked);
    assert_eq!(turn(), Turn::Done, "once");

    let handle = event_loop.handle();
    event_loop.call_soon(move || handle.stop());
    assert_eq!(turn(), Turn::StopAsked);
    let remote = event_loop.remote();
    event_loop.call_soon(move || elsewhere(move || remote.stop()));
    assert_eq!(turn(), Turn::StopAsked);
    assert_eq!(turn(), Turn::Done);
}

#[test]
fn the_deadline_is_that_of_the_next_live_timer() {
    let (event_loop, _) = virtual_loop();
    let began = event_loop.time();
    assert_eq!(event_loop.deadline(), None);
    event_loop.call_later(Duration::MAX, || ());
    assert_eq!(event_loop.deadline(), None, "it never comes");
    event_loop.call_later(5 * SECOND, || ());
    let first = event_loop.call_later(SECOND, || ());
    assert_eq!(event_loop.deadline(), Some(began + SECOND));
    first.cancel();
    assert_eq!(event_loop.deadline(), Some(began + 5 * SECOND));
    event_loop.turn(None).unwrap();
    assert_eq!(event_loop.deadline(), None);
}

#[test]
fn a_loop_is_idle_while_nothing_is_ready() {
    let (event_loop, _) = virtual_loop();
    let turn = || event_loop.turn(Some(Duration::ZERO)).unwrap();
    let remote = event_loop.remote();
    let works: [&dyn Fn(); 5] = [
        &|| drop(event_loop.call_soon(|| ())),
        &|| drop(event_loop.create_task(async {})),
        &|| drop(elsewhere(|| remote.call_soon(|| ()))),
        &|| event_loop.stop(),
        &|| elsewhere(|| remote.stop()),
    ];
    for work in works {
        assert!(event_loop.is_idle());
        work();
        assert!(!event_loop.is_idle());
        turn();
    }
    event_loop.call_later(SECOND, || ());
    assert!(event_loop.is_idle(), "a host may sleep until the deadline");
}

#[test]
fn the_descriptor_is_readable_when_a_turn_would_find_something() {
    let (event_loop, _) = virtual_loop();
    let (trace, (near, far)) = (Trace::new(), readable_socket());
    let door = event_loop.descriptor().unwrap();
    assert!(!is_readable(&door));
    log_bytes(&event_loop, &near, &trace, "read");
    assert!(is_readable(&door));
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    assert!(!is_readable(&door));
    drop(far);
    assert!(is_readable(&door), "a hang-up counts");
    event_loop.remove_reader(std::os::fd::AsRawFd::as_raw_fd(&*near));
    assert!(!is_readable(&door));
    trace.assert(&["read"]);
}

/// A host that knows nothing of the loop but its descriptor, its deadline and whether it is idle.
#[test]
fn a_host_can_run_a_program_to_its_end() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let (resolver, promise) = event_loop.create_future();
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        log.log(promise.await.unwrap());
        coloop::sleep(SECOND).await;
        log.log("slept");
        coloop::current().stop();
    });
    event_loop.call_later(SECOND, move || resolver.settle("settled").unwrap());
    loop {
        if event_loop.is_idle() {
            clock.set(event_loop.deadline().unwrap());
        }
        if event_loop.turn(Some(Duration::ZERO)).unwrap() == Turn::StopAsked {
            break;
        }
    }
    trace.assert(&["settled", "slept"]);
    assert_eq!(clock.elapsed(), 2 * SECOND);
    assert!(task.is_finished());
}

// ---- Starvation, rounding, the system ------------------------------------------------------------

#[test]
#[expect(unsafe_code, reason = "no crate of ours installs signal handlers")]
fn c_030_a_wait_that_a_signal_interrupts_goes_on() {
    use std::sync::atomic::{AtomicU32, Ordering};

    static HANDLED: AtomicU32 = AtomicU32::new(0);

    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }

    in_child(
        "lifecycle::c_030_a_wait_that_a_signal_interrupts_goes_on",
        || {
            let handler: extern "C" fn(libc::c_int) = handle;
            // SAFETY: an all-zero `sigaction` is a valid one (no flags: calls are interrupted).
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handler as libc::sighandler_t;
            // SAFETY: the action is initialised and its handler only adds to an atomic.
            let installed =
                unsafe { libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()) };
            assert_eq!(installed, 0);

            let (began, waits) = mpsc::channel();
            let tap = Tap::new(move |timeout| {
                // Nobody listens any more when the loop is about to stop.
                let _ = began.send(());
                timeout
            });
            let event_loop = builder().selector(tap).build().unwrap();
            let (trace, remote) = (SharedTrace::default(), event_loop.remote());
            // SAFETY: it has no preconditions.
            let runner = unsafe { libc::pthread_self() };
            let log = trace.clone();
            let interrupter = thread::spawn(move || {
                for round in 0..100 {
                    waits.recv().unwrap();
                    // SAFETY: the thread runs until this one has been joined.
                    let sent = unsafe { libc::pthread_kill(runner, libc::SIGUSR2) };
                    assert_eq!(sent, 0);
                    while HANDLED.load(Ordering::SeqCst) == round {
                        thread::yield_now();
                    }
                    remote.call_soon(log.logs(round)).unwrap();
                }
                // Not `remote.stop()`, which need not wait for the last letter.
                remote.call_soon(|| coloop::current().stop()).unwrap();
            });
            event_loop.run_forever().unwrap();
            interrupter.join().unwrap();
            trace.assert(&(0..100).map(|round| round.to_string()).collect::<Vec<_>>());
        },
    );
}

#[test]
fn c_031_a_callback_that_reschedules_itself_does_not_starve_timers() {
    for (poll_every, items) in [(1, 51), (64, 57)] {
        let clock = Clock::new();
        let event_loop = EventLoop::builder()
            .poll_every(poll_every)
            .clock(Rc::<Clock>::clone(&clock))
            .build()
            .unwrap();
        let (seen, handle) = (Rc::new(Cell::new(0)), event_loop.handle());
        event_loop.call_later(Duration::from_micros(50), move || handle.stop());
        let last = Rc::clone(&seen);
        chain(&event_loop, 1_000_000, move |at| {
            last.set(at);
            clock.advance(Duration::from_micros(1));
        });
        event_loop.run_forever().unwrap();
        assert_eq!(seen.get(), items, "poll_every({poll_every})");
    }
}

#[test]
fn c_033_tiny_sleeps_do_not_keep_the_loop_busy() {
    let waits = Rc::new(Cell::new(0));
    let count = Rc::clone(&waits);
    let tap = Tap::new(move |timeout| {
        count.set(count.get() + 1);
        timeout
    });
    let event_loop = builder().selector(tap).build().unwrap();
    event_loop
        .run_until_complete(async {
            for seconds in [1e-2, 1e-4, 1e-6, 1e-8, 1e-10] {
                coloop::sleep(Duration::from_secs_f64(seconds)).await;
            }
        })
        .unwrap();
    assert!(waits.get() <= 20, "{} turns", waits.get());
}

#[test]
fn c_035_the_standard_descriptors_are_left_as_they_are() {
    let flags = || {
        [
            fcntl_getfd(io::stdin()).unwrap(),
            fcntl_getfd(io::stdout()).unwrap(),
            fcntl_getfd(io::stderr()).unwrap(),
        ]
    };
    let before = flags();
    let event_loop = real_loop();
    assert_eq!(flags(), before);
    event_loop.run_until_complete(yield_now()).unwrap();
    drop(event_loop);
    assert_eq!(flags(), before);
}
