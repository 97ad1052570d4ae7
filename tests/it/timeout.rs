//! Waiting for a limited time, and for time to pass.

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};
use std::time::Duration;

use coloop::{EventLoop, TimeoutHandle, current_task, sleep, timeout, yield_now};

use crate::errors::reports;
use crate::tasks::{OnDrop, outcome};
use crate::verbs::{Trace, one_turn, real_loop, virtual_loop};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What came of a timeout, in words.
fn in_words<T: ToString>(result: Result<T, coloop::Elapsed>) -> String {
    result.map_or_else(|elapsed| elapsed.to_string(), |value| value.to_string())
}

// ---- sleep ---------------------------------------------------------------------------------------

#[test]
fn c_484_a_sleep_of_nothing_is_exactly_one_pass() {
    type Pass = (&'static str, fn() -> coloop::LocalBoxFuture<'static, ()>);
    let passes: [Pass; 2] = [
        ("sleep(0)", || Box::pin(sleep(Duration::ZERO))),
        ("yield_now", || Box::pin(yield_now())),
    ];
    for (name, pass) in passes {
        let event_loop = real_loop();
        let trace = Trace::new();
        let log = trace.clone();
        let task = event_loop.create_task(async move {
            let logs = log.clone();
            coloop::current().call_soon(log.logs("queued before it"));
            coloop::current().call_soon(move || {
                coloop::current().call_soon(logs.logs("queued by what was queued"));
            });
            pass().await;
            log.log("behind it");
            7
        });
        event_loop.call_soon(trace.logs("in the line"));
        one_turn(&event_loop);
        trace.log("turn");
        one_turn(&event_loop);
        trace.log("turn");
        one_turn(&event_loop);

        let expected = [
            "in the line",
            "turn",
            "queued before it",
            "behind it",
            "turn",
            "queued by what was queued",
        ];
        // The task was woken when it began to wait: after its two callbacks, before theirs.
        assert_eq!(trace.take(), expected, "{name}");
        assert_eq!(outcome(&event_loop, task), "7");
    }
}

// c_485: that a delay is a number, and not negative, is the type's affair.
#[test]
fn c_485_a_sleep_that_is_dropped_takes_its_timer_off_the_shelf() {
    let (event_loop, clock) = virtual_loop();
    let task = event_loop.create_task(sleep(60 * SECOND));
    one_turn(&event_loop);
    assert_eq!(event_loop.deadline(), Some(event_loop.time() + 60 * SECOND));
    task.cancel();
    one_turn(&event_loop);
    assert_eq!(event_loop.deadline(), None);

    let seen = event_loop.run_until_complete(async {
        let mut napping = sleep(60 * SECOND);
        poll_fn(|cx| Poll::Ready(Pin::new(&mut napping).poll(cx).is_pending())).await;
        drop(napping);
        sleep(SECOND).await;
    });
    seen.unwrap();
    assert_eq!((clock.elapsed(), event_loop.deadline()), (SECOND, None));
}

#[test]
fn a_sleep_counts_from_its_first_poll() {
    let (event_loop, clock) = virtual_loop();
    event_loop
        .run_until_complete(async {
            let later = sleep(2 * SECOND);
            sleep(SECOND).await;
            later.await;
        })
        .unwrap();
    assert_eq!(clock.elapsed(), 3 * SECOND);
}

#[test]
fn a_sleep_that_is_over_stays_over() {
    for delay in [Duration::ZERO, SECOND] {
        let (event_loop, clock) = virtual_loop();
        let mut napping = sleep(delay);
        event_loop
            .run_until_complete(async {
                (&mut napping).await;
                (&mut napping).await;
            })
            .unwrap();
        assert_eq!((clock.elapsed(), event_loop.deadline()), (delay, None));
    }
}

#[test]
fn a_sleep_wakes_whoever_polled_it_last() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let shared = Rc::new(RefCell::new(sleep(SECOND)));
    for name in ["first", "second"] {
        let (log, shared) = (trace.clone(), Rc::clone(&shared));
        drop(event_loop.create_task(poll_fn(move |cx| {
            let polled = Pin::new(&mut *shared.borrow_mut()).poll(cx);
            log.log(format!("{name}: {polled:?}"));
            polled
        })));
    }
    one_turn(&event_loop);
    clock.advance(SECOND);
    one_turn(&event_loop);
    trace.assert(&["first: Pending", "second: Pending", "second: Ready(())"]);
}

#[test]
fn a_sleep_that_never_ends_sets_no_deadline_and_can_be_dropped() {
    let (event_loop, _clock) = virtual_loop();
    let task = event_loop.create_task(sleep(Duration::MAX));
    one_turn(&event_loop);
    assert_eq!(event_loop.deadline(), None);
    assert_eq!(task.to_ref().waits().len(), 1);
    task.cancel();
    one_turn(&event_loop);
    assert!(task.is_finished());
}

#[test]
fn a_day_of_sleep_takes_no_time() {
    let (event_loop, clock) = virtual_loop();
    let before = event_loop.time();
    event_loop.run_until_complete(sleep(DAY)).unwrap();
    assert_eq!((event_loop.time() - before, clock.elapsed()), (DAY, DAY));
}

#[test]
fn sleep_and_timeout_panic_where_no_loop_runs() {
    fn polls<F: Future>(future: F) -> String {
        let mut future = Box::pin(future);
        let mut cx = PollContext::from_waker(Waker::noop());
        let polled = catch_unwind(AssertUnwindSafe(|| drop(future.as_mut().poll(&mut cx))));
        let payload = polled.unwrap_err();
        payload.downcast_ref::<String>().unwrap().clone()
    }

    let event_loop = real_loop();
    for message in [
        polls(sleep(SECOND)),
        polls(timeout(SECOND, pending::<()>())),
    ] {
        assert_eq!(message, coloop::try_current().unwrap_err().to_string());
    }
    assert_eq!(event_loop.deadline(), None);
}

// ---- timeout -------------------------------------------------------------------------------------

#[test]
fn c_486_a_deadline_that_passes_drops_the_future_and_leaves_the_task_alone() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let (log, held) = (trace.clone(), OnDrop::new(&trace, "the future is dropped"));
    let task = event_loop.create_task(async move {
        let mut limited = timeout(SECOND, async move {
            let _held = held;
            pending::<i32>().await
        });
        let handle = limited.handle();
        log.log(in_words(limited.await));
        log.log(format!("expired: {}", handle.is_expired()));
        let task = current_task().unwrap();
        log.log(format!("requests: {}", task.cancelling()));
        sleep(SECOND).await;
        "goes on"
    });

    assert_eq!(outcome(&event_loop, task), "goes on");

    trace.assert(&[
        "the future is dropped",
        "the deadline has passed",
        "expired: true",
        "requests: 0",
    ]);
    assert_eq!(clock.elapsed(), 2 * SECOND);
}

#[test]
fn a_future_that_is_complete_in_time_gives_its_value_and_its_timer_is_off_the_shelf() {
    for limit in [SECOND, Duration::MAX] {
        let (event_loop, clock) = virtual_loop();
        let mut limited = timeout(limit, async {
            yield_now().await;
            7
        });
        let handle = limited.handle();
        let results = event_loop.run_until_complete(async {
            let value = limited.await;
            (in_words(value), coloop::current().time())
        });
        assert_eq!(results.unwrap().0, "7");
        assert!(!handle.is_expired());
        assert_eq!(
            (clock.elapsed(), event_loop.deadline()),
            (Duration::ZERO, None)
        );
    }
}

#[test]
fn timeouts_that_are_met_leave_no_timers_behind() {
    let (event_loop, clock) = virtual_loop();
    event_loop
        .run_until_complete(async {
            for _ in 0..100 {
                timeout(60 * SECOND, sleep(SECOND)).await.unwrap();
            }
        })
        .unwrap();
    assert_eq!(
        (clock.elapsed(), event_loop.deadline()),
        (100 * SECOND, None)
    );
}

#[test]
fn c_488_a_body_that_overruns_without_waiting_is_not_timed_out() {
    let (event_loop, clock) = virtual_loop();
    let work = Rc::clone(&clock);
    let limited = timeout(SECOND, async move {
        work.advance(60 * SECOND);
        7
    });
    assert_eq!(
        in_words(event_loop.run_until_complete(limited).unwrap()),
        "7"
    );

    let work = Rc::clone(&clock);
    let limited = timeout(SECOND, async move {
        yield_now().await;
        work.advance(60 * SECOND);
        8
    });
    assert_eq!(
        in_words(event_loop.run_until_complete(limited).unwrap()),
        "8"
    );
}

#[test]
fn a_future_that_is_complete_when_the_deadline_passes_wins() {
    let (event_loop, clock) = virtual_loop();
    let limited = timeout(SECOND, sleep(SECOND));
    assert!(event_loop.run_until_complete(limited).unwrap().is_ok());
    assert_eq!((clock.elapsed(), event_loop.deadline()), (SECOND, None));
}

#[test]
fn c_489_of_nested_timeouts_that_expire_together_the_inner_converts() {
    let (event_loop, clock) = virtual_loop();
    let mut inner = timeout(SECOND, pending::<i32>());
    let inner_handle = inner.handle();
    let mut outer = timeout(SECOND, async move { in_words(inner.await) });
    let outer_handle = outer.handle();

    let result = event_loop.run_until_complete(outer).unwrap();

    assert_eq!(in_words(result), "the deadline has passed");
    assert!(inner_handle.is_expired() && !outer_handle.is_expired());
    assert_eq!((clock.elapsed(), event_loop.deadline()), (SECOND, None));
}

#[test]
fn nested_timeouts_expire_each_at_its_own_time() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let result = event_loop.run_until_complete(async {
        timeout(2 * SECOND, async {
            trace.log(in_words(timeout(SECOND, pending::<i32>()).await));
            trace.log(in_words(timeout(5 * SECOND, pending::<i32>()).await));
        })
        .await
    });
    assert!(result.unwrap().is_err());
    trace.assert(&["the deadline has passed"]);
    assert_eq!((clock.elapsed(), event_loop.deadline()), (2 * SECOND, None));
}

#[test]
fn c_490_an_inner_timeout_that_comes_late_converts_and_the_outer_interrupts_the_next_await() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let (log, busy) = (trace.clone(), Rc::clone(&clock));
    let task = event_loop.create_task(async move {
        let mut outer = timeout(2 * SECOND, async {
            log.log(in_words(timeout(SECOND, pending::<i32>()).await));
            log.log("between");
            yield_now().await;
            log.log("never");
        });
        let handle = outer.handle();
        let result = outer.await;
        format!(
            "outer: {}, expired {}",
            result.is_err(),
            handle.is_expired()
        )
    });
    event_loop.call_soon(move || busy.advance(10 * SECOND));

    assert_eq!(outcome(&event_loop, task), "outer: true, expired true");

    trace.assert(&["the deadline has passed", "between"]);
    assert_eq!(clock.elapsed(), 10 * SECOND);
}

#[test]
fn c_491_a_task_that_is_cancelled_in_time_is_cancelled_and_not_timed_out() {
    let (event_loop, clock) = virtual_loop();
    let mut limited = timeout(SECOND, pending::<i32>());
    let handle = limited.handle();
    let task = event_loop.create_task(async move { in_words(limited.await) });
    one_turn(&event_loop);
    assert!(handle.when().is_some());
    task.cancel_with("from outside");

    assert_eq!(
        outcome(&event_loop, task),
        "the task was cancelled: from outside"
    );

    assert!(!handle.is_expired());
    assert_eq!(
        (clock.elapsed(), event_loop.deadline()),
        (Duration::ZERO, None)
    );
}

#[test]
fn c_493_a_destructor_that_panics_at_the_deadline_fails_whoever_awaits() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a destructor");
        }
    }

    let (event_loop, _clock) = virtual_loop();
    let told = reports(&event_loop);
    let task = event_loop.create_task(async {
        let bomb = Bomb;
        let limited = timeout(SECOND, async move {
            let _bomb = bomb;
            pending::<i32>().await
        });
        in_words(limited.await)
    });
    assert_eq!(
        outcome(&event_loop, task),
        "the task panicked: in a destructor"
    );
    told.assert::<&str>(&[]);
    assert_eq!(event_loop.deadline(), None);
}

#[test]
fn c_493_an_error_of_the_body_passes_through() {
    let (event_loop, _clock) = virtual_loop();
    let limited = timeout(SECOND, async {
        sleep(SECOND).await;
        Err::<(), _>("its own")
    });
    assert_eq!(
        event_loop.run_until_complete(limited).unwrap().unwrap(),
        Err("its own")
    );
}

/// A timeout of a second around a sleep of a day, in a task; its handle, and what it comes to.
fn limited_day(event_loop: &EventLoop) -> (TimeoutHandle, coloop::Task<String>) {
    let mut limited = timeout(SECOND, async {
        sleep(DAY).await;
        "slept"
    });
    let handle = limited.handle();
    (
        handle,
        event_loop.create_task(async move { in_words(limited.await) }),
    )
}

#[test]
fn c_494_a_deadline_moves_only_while_the_future_is_pending() {
    let (event_loop, _clock) = virtual_loop();
    let (handle, task) = limited_day(&event_loop);
    let start = event_loop.time();
    assert_eq!(handle.when(), None);
    assert!(handle.reschedule(Some(start)).is_err(), "it has not begun");
    assert!(handle.reschedule(None).is_err(), "it has not begun");
    one_turn(&event_loop);
    assert_eq!(handle.when(), Some(start + SECOND));
    assert!(handle.reschedule(Some(start + 2 * SECOND)).is_ok());
    assert_eq!(handle.when(), Some(start + 2 * SECOND));

    assert_eq!(outcome(&event_loop, task), "the deadline has passed");

    assert!(handle.is_expired());
    let error = handle.reschedule(Some(start + DAY)).unwrap_err();
    let expected = "the timeout is over: move it while its future is pending";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn c_494_a_timeout_that_was_dropped_does_not_move() {
    type Drops = fn(&EventLoop, coloop::Task<String>);
    let ways: [(&str, Drops); 2] = [
        ("cancelled", |event_loop, task| {
            task.cancel();
            one_turn(event_loop);
        }),
        ("closed with its loop", |event_loop, _| {
            event_loop.close().unwrap();
        }),
    ];
    for (way, drops) in ways {
        let (event_loop, _clock) = virtual_loop();
        let (handle, task) = limited_day(&event_loop);
        one_turn(&event_loop);
        drops(&event_loop, task);
        assert!(handle.reschedule(None).is_err(), "{way}");
        assert!(!handle.is_expired(), "{way}");
    }
}

#[test]
fn c_494_a_completed_timeout_does_not_move() {
    let event_loop = real_loop();
    let mut limited = timeout(SECOND, async { 7 });
    let handle = limited.handle();
    assert_eq!(
        in_words(event_loop.run_until_complete(limited).unwrap()),
        "7"
    );
    assert!(handle.reschedule(None).is_err());
    assert!(!handle.is_expired());
}

#[test]
fn a_deadline_that_is_moved_counts_from_then_on() {
    // The seconds to which the deadline is moved, what comes of it, and after how many seconds.
    let day = DAY.as_secs();
    let cases: [(&[Option<u64>], &str, u64); 8] = [
        (&[], "the deadline has passed", 1),
        (&[Some(3)], "the deadline has passed", 3),
        (&[Some(0)], "the deadline has passed", 0),
        (&[Some(day + 1)], "slept", day),
        (&[None], "slept", day),
        (&[None, Some(2)], "the deadline has passed", 2),
        (&[Some(5), Some(4)], "the deadline has passed", 4),
        (&[Some(4), None, None], "slept", day),
    ];
    for (moves, expected, seconds) in cases {
        let (event_loop, clock) = virtual_loop();
        let (handle, task) = limited_day(&event_loop);
        let start = event_loop.time();
        one_turn(&event_loop);
        for to in moves {
            let to = to.map(|seconds| start + Duration::from_secs(seconds));
            handle.reschedule(to).unwrap();
            assert_eq!(handle.when(), to, "{moves:?}");
            one_turn(&event_loop);
        }

        // A deadline that is due already takes a turn to come.
        assert_eq!(outcome(&event_loop, task), expected, "{moves:?}");
        assert_eq!(clock.elapsed().as_secs(), seconds, "{moves:?}");
        assert_eq!(event_loop.deadline(), None, "{moves:?}");
    }
}

#[test]
fn two_moves_between_two_polls_leave_the_last() {
    let (event_loop, clock) = virtual_loop();
    let (handle, task) = limited_day(&event_loop);
    let start = event_loop.time();
    one_turn(&event_loop);
    handle.reschedule(Some(start)).unwrap();
    handle.reschedule(Some(start + 3 * SECOND)).unwrap();
    assert_eq!(outcome(&event_loop, task), "the deadline has passed");
    assert_eq!(clock.elapsed(), 3 * SECOND);
}

#[test]
fn a_deadline_can_be_moved_in_the_very_turn_in_which_it_passes() {
    let (event_loop, clock) = virtual_loop();
    let (handle, task) = limited_day(&event_loop);
    let start = event_loop.time();
    let mover = handle.clone();
    event_loop.call_at(start + SECOND, move || {
        mover.reschedule(Some(start + 2 * SECOND)).unwrap();
    });
    assert_eq!(outcome(&event_loop, task), "the deadline has passed");
    assert_eq!(clock.elapsed(), 2 * SECOND);
    assert!(handle.is_expired());
}

#[test]
fn a_deadline_can_be_moved_from_inside_the_future() {
    let (event_loop, clock) = virtual_loop();
    let seat = Rc::new(RefCell::new(None::<TimeoutHandle>));
    let own = Rc::clone(&seat);
    let mut limited = timeout(SECOND, async move {
        let own = own.borrow_mut().take().unwrap();
        own.reschedule(None).unwrap();
        sleep(DAY).await;
        "slept"
    });
    seat.replace(Some(limited.handle()));
    assert_eq!(
        in_words(event_loop.run_until_complete(limited).unwrap()),
        "slept"
    );
    assert_eq!((clock.elapsed(), event_loop.deadline()), (DAY, None));
}

// c_495: a timeout is entered by awaiting it, which consumes it; where no loop runs it panics (see
// `sleep_and_timeout_panic_where_no_loop_runs`).
#[test]
fn c_495_a_timeout_needs_a_loop_and_no_task() {
    let (event_loop, clock) = virtual_loop();
    let limited = event_loop.run_until_complete(timeout(SECOND, pending::<i32>()));
    assert!(limited.unwrap().is_err());
    assert_eq!(clock.elapsed(), SECOND);
}

// c_496: what a timeout around a group comes to belongs to the groups.

#[test]
fn a_limit_of_nothing_gives_the_value_of_a_future_that_is_ready_and_no_turn_to_another() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let results = event_loop.run_until_complete(async {
        let behind = coloop::current().call_soon(|| unreachable!("no turn was given"));
        let ready = timeout(Duration::ZERO, async { 7 }).await;
        let held = OnDrop::new(&trace, "the future is dropped");
        let mut waiting = timeout(Duration::ZERO, async move {
            let _held = held;
            yield_now().await;
            8
        });
        let handle = waiting.handle();
        let waiting = waiting.await;
        behind.cancel();
        [
            in_words(ready),
            in_words(waiting),
            handle.is_expired().to_string(),
        ]
    });
    assert_eq!(results.unwrap(), ["7", "the deadline has passed", "true"]);
    trace.assert(&["the future is dropped"]);
}

#[test]
fn a_limit_that_never_comes_sets_no_deadline() {
    let (event_loop, clock) = virtual_loop();
    let mut limited = timeout(Duration::MAX, sleep(DAY));
    let handle = limited.handle();
    let start = event_loop.time();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.call_later(SECOND, move || log.log(format!("{:?}", handle.when())));
    let result = event_loop.run_until_complete(async {
        yield_now().await;
        limited.await
    });
    assert!(result.unwrap().is_ok());
    assert_eq!((clock.elapsed(), event_loop.deadline()), (DAY, None));
    assert_eq!(event_loop.time(), start + DAY);
    trace.assert(&["None"]);
}

#[test]
fn a_timeout_on_a_task_that_is_shielded_leaves_it_running() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let work = event_loop.create_task(async move {
        sleep(3 * SECOND).await;
        log.log("done");
    });
    let reference = work.to_ref();
    let limited = timeout(SECOND, work.shield());
    assert!(event_loop.run_until_complete(limited).unwrap().is_err());
    assert_eq!((clock.elapsed(), reference.is_finished()), (SECOND, false));
    event_loop.run_until_complete(sleep(5 * SECOND)).unwrap();
    trace.assert(&["done"]);
}

#[test]
fn a_day_of_timeouts_takes_no_time() {
    let (event_loop, clock) = virtual_loop();
    let count = event_loop.run_until_complete(async {
        let mut expired = 0;
        for _ in 0..24 {
            let hour = DAY / 24;
            expired += u32::from(timeout(hour, sleep(DAY)).await.is_err());
        }
        expired
    });
    assert_eq!(count.unwrap(), 24);
    assert_eq!((clock.elapsed(), event_loop.deadline()), (DAY, None));
}
