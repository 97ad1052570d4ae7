//! Timers: when they fire, in which order, and how they are cancelled. What the shelf itself must
//! hold (c_074, c_075) is tested beside it.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coloop::testing::Clock;
use coloop::{LoopHandle, PanicPolicy, TimerHandle, sleep};

use crate::order::{SECOND, chain, noting_loop, tracing_loop};
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Delays of which asyncio and libuv know that they must not overflow.
const ENDLESS: [Duration; 4] = [
    Duration::MAX,
    Duration::from_secs(u64::MAX),
    Duration::from_secs(1 << 54),
    Duration::from_secs(1 << 55),
];

#[test]
fn c_069_a_timer_fires_once_at_its_deadline() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let (fired, hand) = (trace.clone(), Rc::clone(&clock));
    event_loop.call_later(100 * MILLISECOND, move || {
        fired.log(format!("{:?}", hand.elapsed()));
    });
    event_loop.run_until_complete(sleep(SECOND)).unwrap();
    trace.assert(&["100ms"]);
}

#[test]
fn c_069_a_timer_of_the_system_s_clock_does_not_fire_too_early() {
    let event_loop = real_loop();
    let (began, handle) = (Instant::now(), event_loop.handle());
    event_loop.call_later(5 * MILLISECOND, move || handle.stop());
    event_loop.run_forever().unwrap();
    assert!(began.elapsed() >= 5 * MILLISECOND);
}

/// A delay cannot be negative; an instant can be past.
#[test]
fn c_070_instants_in_the_past_are_due_at_once_the_earlier_first() {
    let (event_loop, clock) = virtual_loop();
    let (trace, now) = (Trace::new(), event_loop.time());
    event_loop.call_later(Duration::ZERO, trace.logs("now"));
    event_loop.call_at(now - SECOND, trace.logs("a second ago"));
    event_loop.call_at(now - 2 * SECOND, trace.logs("two seconds ago"));
    event_loop.call_at(now - SECOND, trace.logs("a second ago, too"));
    one_turn(&event_loop);
    trace.assert(&[
        "two seconds ago",
        "a second ago",
        "a second ago, too",
        "now",
    ]);
    assert_eq!(clock.elapsed(), Duration::ZERO);
}

#[test]
fn c_071_a_callback_made_after_a_timer_without_delay_runs_before_it() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    event_loop.call_later(Duration::ZERO, trace.logs("timer"));
    event_loop.call_soon(trace.logs("callback"));
    one_turn(&event_loop);
    trace.assert(&["callback", "timer"]);
}

/// asyncio leaves the order open.
#[test]
fn c_073_timers_of_one_deadline_fire_in_one_turn_in_order_of_creation() {
    let (event_loop, clock) = virtual_loop();
    let (trace, when) = (Trace::new(), event_loop.time() + SECOND);
    for number in 0..8 {
        event_loop.call_at(when, trace.logs(number));
    }
    clock.advance(SECOND);
    one_turn(&event_loop);
    trace.assert(&["0", "1", "2", "3", "4", "5", "6", "7"]);
}

#[test]
fn c_076_when_is_the_time_of_scheduling_and_the_delay_and_stays_so() {
    let (event_loop, clock) = virtual_loop();
    clock.advance(3 * SECOND);
    let when = event_loop.time() + SECOND;
    let fires = event_loop.call_later(SECOND, || ());
    let cancelled = event_loop.call_later(SECOND, || ());
    let at = event_loop.call_at(when, || ());
    let whens = || [fires.when(), cancelled.when(), at.when()];
    assert_eq!(whens(), [when; 3]);
    cancelled.cancel();
    assert_eq!(whens(), [when; 3]);
    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    assert!(!fires.cancel(), "it has fired");
    assert_eq!(whens(), [when; 3]);
    event_loop.close().unwrap();
    assert_eq!(whens(), [when; 3]);
}

#[test]
fn c_078_a_delay_counts_from_now_also_after_work_that_blocked() {
    let (event_loop, clock) = virtual_loop();
    let hand = Rc::clone(&clock);
    event_loop
        .run_until_complete(async move {
            hand.advance(5 * SECOND); // stands for the work
            sleep(10 * MILLISECOND).await;
        })
        .unwrap();
    assert_eq!(clock.elapsed(), 5 * SECOND + 10 * MILLISECOND);
}

#[test]
fn c_079_delays_without_end_are_kept_do_not_fire_and_can_be_cancelled() {
    let (event_loop, clock) = virtual_loop();
    let (trace, now) = (Trace::new(), event_loop.time());
    let mut timers: Vec<_> = ENDLESS
        .iter()
        .map(|delay| event_loop.call_later(*delay, trace.logs("after")))
        .collect();
    let instants = ENDLESS.iter().filter_map(|delay| now.checked_add(*delay));
    timers.extend(instants.map(|when| event_loop.call_at(when, trace.logs("at"))));
    let sleepers = ENDLESS.map(|delay| event_loop.create_task(sleep(delay)));

    let century = 36_525 * 24 * 3600 * SECOND;
    event_loop.run_until_complete(sleep(century)).unwrap();
    assert_eq!(clock.elapsed(), century);
    trace.assert::<&str>(&[]);
    assert!(sleepers.iter().all(|task| !task.is_finished()));
    for timer in timers {
        assert!(timer.when() > now + century);
        assert!(timer.cancel() && timer.is_cancelled());
    }
}

// c_080: impossible by type: a delay is a `Duration` and a time an `Instant`, and neither can be
// nothing.

#[test]
fn c_081_of_two_timers_of_one_instant_only_the_live_one_fires() {
    let (event_loop, clock) = virtual_loop();
    let (trace, when) = (Trace::new(), event_loop.time() + SECOND);
    let cancelled = event_loop.call_at(when, trace.logs("cancelled"));
    let (log, hand) = (trace.clone(), Rc::clone(&clock));
    event_loop.call_at(when, move || log.log(format!("{:?}", hand.elapsed())));
    cancelled.cancel();
    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    trace.assert(&["1s"]);
}

#[test]
fn c_083_timers_without_delay_fire_in_the_order_in_which_they_were_made() {
    for order in [["a", "b"], ["b", "a"]] {
        let (event_loop, _) = virtual_loop();
        let trace = Trace::new();
        for word in order {
            event_loop.call_later(Duration::ZERO, trace.logs(word));
        }
        one_turn(&event_loop);
        trace.assert(&order);
    }
}

#[test]
fn c_084_a_timer_without_delay_that_restarts_itself_fires_once_a_turn() {
    fn restart(handle: LoopHandle, trace: Trace) {
        handle.clone().call_later(Duration::ZERO, move || {
            trace.log("fires");
            restart(handle, trace);
        });
    }
    let trace = Trace::new();
    let event_loop = tracing_loop(&trace);
    restart(event_loop.handle(), trace.clone());
    for _ in 0..3 {
        one_turn(&event_loop);
    }
    trace.assert(&["wait", "fires", "wait", "fires", "wait", "fires"]);
}

/// There is no repeating timer: this is what its loop looks like.
#[test]
fn c_085_a_repeating_timer_that_is_overdue_by_several_periods_fires_once_a_turn() {
    fn repeat(handle: LoopHandle, when: Instant, trace: Trace) {
        handle.clone().call_at(when, move || {
            trace.log("fires");
            repeat(handle, when + SECOND, trace);
        });
    }
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    repeat(
        event_loop.handle(),
        event_loop.time() + SECOND,
        trace.clone(),
    );
    clock.advance(3 * SECOND);
    for _ in 0..3 {
        one_turn(&event_loop);
        trace.assert(&["fires"]);
    }
    one_turn(&event_loop);
    trace.assert::<&str>(&[]);
}

#[test]
fn c_086_of_a_timer_that_was_started_again_only_the_last_start_fires() {
    let (event_loop, clock) = virtual_loop();
    let (trace, timer) = (Trace::new(), RefCell::new(None::<TimerHandle>));
    for seconds in [1, 5, 3] {
        if let Some(before) = timer.take() {
            before.cancel();
        }
        let (log, hand) = (trace.clone(), Rc::clone(&clock));
        let fires = move || log.log(format!("{:?}", hand.elapsed()));
        timer.replace(Some(event_loop.call_later(seconds * SECOND, fires)));
    }
    event_loop.run_until_complete(sleep(10 * SECOND)).unwrap();
    trace.assert(&["3s"]);
}

#[test]
fn timers_fire_in_order_of_deadline_whatever_the_order_of_their_making() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    for seconds in [5, 1, 4, 2, 3] {
        let (log, hand) = (trace.clone(), Rc::clone(&clock));
        event_loop.call_later(seconds * SECOND, move || {
            log.log(format!("{seconds} at {:?}", hand.elapsed()));
        });
    }
    event_loop.run_until_complete(sleep(10 * SECOND)).unwrap();
    trace.assert(&["1 at 1s", "2 at 2s", "3 at 3s", "4 at 4s", "5 at 5s"]);
}

#[test]
fn a_timer_that_cancels_itself_has_fired() {
    let (event_loop, clock) = virtual_loop();
    let (trace, own) = (Trace::new(), Rc::new(RefCell::new(None::<TimerHandle>)));
    let (log, seat) = (trace.clone(), Rc::clone(&own));
    let timer = event_loop.call_later(SECOND, move || {
        let own = seat.take().unwrap();
        log.log(own.cancel());
        log.log(own.is_cancelled());
    });
    own.replace(Some(timer));
    clock.advance(SECOND);
    one_turn(&event_loop);
    trace.assert(&["false", "false"]);
}

/// The new timer takes the place on the shelf of one that still stands in the line.
#[test]
fn a_timer_made_in_place_of_a_due_one_waits_for_its_own_turn() {
    let trace = Trace::new();
    let event_loop = tracing_loop(&trace);
    let due = Rc::new(Cell::new(None::<TimerHandle>));
    let (log, seat, handle) = (trace.clone(), Rc::clone(&due), event_loop.handle());
    event_loop.call_later(Duration::ZERO, move || {
        log.log(seat.take().unwrap().cancel());
        handle.call_later(Duration::ZERO, log.logs("new"));
    });
    due.set(Some(
        event_loop.call_later(Duration::ZERO, trace.logs("due")),
    ));
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["wait", "true", "wait", "new"]);
}

/// A run that a panic has left keeps what was due in the line: one more chance to take the wrong one.
#[test]
fn a_timer_in_place_of_one_that_was_due_in_an_earlier_run_has_a_place_of_its_own() {
    let (event_loop, _) = virtual_loop();
    event_loop.set_panic_policy(PanicPolicy::Propagate);
    let trace = Trace::new();
    let due = Rc::new(Cell::new(None::<TimerHandle>));
    let (log, seat, handle) = (trace.clone(), Rc::clone(&due), event_loop.handle());
    event_loop.call_later(Duration::ZERO, move || {
        log.log(seat.take().unwrap().cancel());
        handle.call_later(Duration::ZERO, log.logs("new"));
        panic!("out of the run");
    });
    due.set(Some(
        event_loop.call_later(Duration::ZERO, trace.logs("due")),
    ));
    let left = catch_unwind(AssertUnwindSafe(|| one_turn(&event_loop)));
    assert!(left.is_err());
    event_loop.call_soon(trace.logs("callback"));
    one_turn(&event_loop);
    trace.assert(&["true", "callback", "new"]);
}

#[test]
fn cancelling_the_nearest_timer_makes_the_loop_wait_for_the_next_one() {
    let (event_loop, _, waits) = noting_loop();
    let first = event_loop.call_later(SECOND, || unreachable!("cancelled"));
    let handle = event_loop.handle();
    event_loop.call_later(4 * SECOND, move || handle.stop());
    first.cancel();
    event_loop.run_forever().unwrap();
    assert_eq!(waits.take(), [Some(4 * SECOND)]);
}

#[test]
fn with_slack_timers_gather_and_none_is_early() {
    let clock = Clock::new();
    let builder = builder().clock(Rc::<Clock>::clone(&clock));
    let event_loop = builder.timer_slack(10 * MILLISECOND).build().unwrap();
    let (trace, began) = (Trace::new(), event_loop.time());
    for millis in [100, 105, 120] {
        let (log, hand) = (trace.clone(), Rc::clone(&clock));
        event_loop.call_later(millis * MILLISECOND, move || {
            log.log(format!("{millis}ms at {:?}", hand.elapsed()));
        });
    }
    assert_eq!(event_loop.deadline(), Some(began + 110 * MILLISECOND));
    for _ in 0..2 {
        event_loop.turn(None).unwrap();
    }
    trace.assert(&["100ms at 110ms", "105ms at 110ms", "120ms at 130ms"]);
}

#[test]
fn handles_of_timers_are_ordered_by_deadline() {
    let (event_loop, _) = virtual_loop();
    let when = event_loop.time() + SECOND;
    let first = event_loop.call_at(when, || ());
    let tie = event_loop.call_at(when, || ());
    let last = event_loop.call_at(when + SECOND, || ());
    assert!(first < last && last > tie);
    assert!(first != tie && first.partial_cmp(&tie).is_none());
    first.cancel();
    assert!(first == first && first < last);
}

/// Whoever posts callbacks without end does not keep a timer from its turn.
#[test]
fn a_timer_that_is_due_already_fires_in_the_next_turn_of_a_busy_loop() {
    let (event_loop, _) = virtual_loop();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    let log = trace.clone();
    chain(&event_loop, 5, move |at| {
        log.log(at);
        match at {
            2 => drop(handle.call_at(handle.time() - SECOND, log.logs("overdue"))),
            5 => handle.stop(),
            _ => {}
        }
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["1", "2", "3", "overdue", "4", "5"]);
}
