//! Tasks: their beginning, their end, and every way in between.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, poll_fn};
use std::hash::BuildHasher;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll};
use std::thread;
use std::time::Duration;

use coloop::{
    Cancelled, EventLoop, JoinError, LocalBoxFuture, LoopHandle, Resolver, RunError, Task,
    TaskBuilder, TaskFactory, TaskRef, WaitOn, cancelled, current_task, defer_cancel, shield,
    sleep, until_cancelled, yield_now,
};

use crate::errors::reports;
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

const SECOND: Duration = Duration::from_secs(1);

/// Says so when it is dropped.
pub(crate) struct OnDrop(Trace, &'static str);

impl OnDrop {
    pub(crate) fn new(trace: &Trace, word: &'static str) -> Self {
        Self(trace.clone(), word)
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.log(self.1);
    }
}

/// Panics when it is dropped.
#[derive(Debug)]
struct Bomb(&'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

/// A future that gives what it is told to, and holds something that is dropped after its last poll.
struct Holding<T, F>(T, F);

impl<T: Unpin, F: FnMut() -> Poll<R> + Unpin, R> Future for Holding<T, F> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, _: &mut PollContext<'_>) -> Poll<R> {
        (self.1)()
    }
}

/// A result in one word or sentence.
pub(crate) fn in_words<T: ToString>(result: Result<T, JoinError>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Runs until the task has ended, and says how.
#[track_caller]
pub(crate) fn outcome<T: ToString + 'static>(event_loop: &EventLoop, task: Task<T>) -> String {
    in_words(event_loop.run_until_complete(task).unwrap())
}

fn names(tasks: &[TaskRef]) -> Vec<String> {
    tasks.iter().map(|task| task.name().to_string()).collect()
}

fn here() -> String {
    current_task().map_or_else(|| "no task".to_owned(), |task| task.name().to_string())
}

// ---- Beginning -----------------------------------------------------------------------------------

#[test]
fn c_111_a_task_begins_after_the_callback_that_made_it_and_within_one_turn() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (log, handle) = (trace.clone(), event_loop.handle());
    event_loop.call_soon(move || {
        let first = log.clone();
        drop(handle.create_task(async move { first.log("first step") }));
        log.log("the callback ends");
    });
    one_turn(&event_loop);
    trace.log("turn");
    one_turn(&event_loop);
    event_loop
        .run_until_complete(async {
            let log = trace.clone();
            let child = coloop::current().create_task(async move {
                log.log("child's first step");
                pending::<()>().await;
            });
            trace.log("the spawner goes on");
            sleep(Duration::ZERO).await;
            trace.log("after one sleep(0)");
            drop(child);
        })
        .unwrap();

    trace.assert(&[
        "the callback ends",
        "turn",
        "first step",
        "the spawner goes on",
        "child's first step",
        "after one sleep(0)",
    ]);
}

#[test]
fn c_128_names_count_upwards_unless_given_and_can_be_changed() {
    let event_loop = real_loop();
    let first = event_loop.create_task(async {});
    let named = event_loop.task().name("reader").create(async {});
    let third = event_loop.create_task(async {});
    let converted = event_loop.task().name(7.to_string()).create(async {});
    let names = [&first, &named, &third, &converted].map(|task| task.name());
    assert_eq!(
        names.each_ref().map(|name| &**name),
        ["Task-1", "reader", "Task-3", "7"]
    );

    third.set_name("third");
    named.to_ref().set_name("writer");
    assert_eq!(
        (&*third.name(), &*named.to_ref().name()),
        ("third", "writer")
    );

    event_loop.run_until_complete(third).unwrap().unwrap();
    assert_eq!(
        &*named.name(),
        "writer",
        "it stays while the handle is held"
    );
    assert!(named.is_finished());
}

#[test]
fn c_129_current_task_is_right_after_each_resume_and_none_outside() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let body = |trace: Trace| async move {
        for _ in 0..2 {
            trace.log(here());
            yield_now().await;
        }
    };
    assert_eq!(here(), "no task");
    let tasks = ["a", "b"].map(|name| event_loop.task().name(name).create(body(trace.clone())));
    let log = trace.clone();
    event_loop.call_soon(move || log.log(here()));
    event_loop.call_later(Duration::ZERO, {
        let trace = trace.clone();
        move || trace.log(here())
    });

    event_loop
        .run_until_complete(async {
            current_task().unwrap().set_name("main");
            trace.log(here());
            for task in tasks {
                task.await.unwrap();
                trace.log(here());
            }
        })
        .unwrap();

    trace.assert(&[
        "a", "b", "no task", "main", "no task", "a", "b", "main", "main",
    ]);
    assert_eq!(here(), "no task");
    assert_eq!(event_loop.current_task(), None);
}

#[test]
fn all_tasks_are_shown_in_the_order_of_their_creation_the_future_of_the_run_too() {
    let event_loop = real_loop();
    let kept: Vec<_> = ["a", "b", "c"]
        .map(|name| event_loop.task().name(name).create(pending::<()>()))
        .into();
    kept[1].cancel();
    one_turn(&event_loop);
    let reuses = event_loop.task().name("d").create(pending::<()>());
    kept[2].to_ref().set_name("renamed");
    reuses.on_done(|_| ());
    assert_eq!(names(&event_loop.all_tasks()), ["a", "renamed", "d"]);

    let during = event_loop.run_until_complete(async {
        current_task().unwrap().set_name("main");
        coloop::current().all_tasks()
    });

    assert_eq!(names(&during.unwrap()[..3]), ["a", "renamed", "d"]);
    assert_eq!(
        names(&event_loop.all_tasks()),
        ["a", "renamed", "d"],
        "main has ended"
    );
    drop(event_loop);
}

#[test]
fn the_future_of_a_run_is_a_task_among_others() {
    let event_loop = real_loop();
    let during = event_loop.run_until_complete(async {
        let main = current_task().unwrap();
        let all = coloop::current().all_tasks();
        (all == [main.clone()], main.is_finished(), main)
    });
    let (alone, finished, main) = during.unwrap();
    assert!(alone && !finished && main.is_finished());
    assert_eq!(&*main.name(), "Task-1");
    assert!(event_loop.all_tasks().is_empty());
}

// ---- Eager ---------------------------------------------------------------------------------------

#[test]
fn c_133_an_eager_task_that_does_not_wait_has_ended_when_it_is_made() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop
        .run_until_complete(async {
            let behind = coloop::current().call_soon(trace.logs("in the line"));
            let ready = format!("{:?}", coloop::current());
            let log = trace.clone();
            let eager = coloop::current().task().eager();
            let task = eager.create(async move {
                log.log("eager");
                7
            });
            assert_eq!(
                format!("{:?}", coloop::current()),
                ready,
                "it was never in the line"
            );
            trace.log(format!("finished: {}", task.is_finished()));
            trace.log(in_words(task.await));
            behind.cancel();
        })
        .unwrap();
    trace.assert(&["eager", "finished: true", "7"]);
}

#[test]
fn an_eager_task_that_waits_goes_on_by_the_line() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop
        .run_until_complete(async {
            let (resolver, promise) = coloop::current().create_future();
            let log = trace.clone();
            let task = coloop::current().task().eager().create(async move {
                log.log("begins");
                let value: i32 = promise.await.unwrap();
                log.log("goes on");
                value
            });
            trace.log(format!("finished: {}", task.is_finished()));
            resolver.settle(7).unwrap();
            trace.log("settled");
            trace.log(in_words(task.await));
        })
        .unwrap();
    trace.assert(&["begins", "finished: false", "settled", "goes on", "7"]);
}

#[test]
fn eager_has_no_effect_while_the_loop_is_not_running() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let task = event_loop
        .task()
        .eager()
        .create(async move { log.log("begins") });
    trace.log("made");
    event_loop.run_until_complete(task).unwrap().unwrap();
    trace.assert(&["made", "begins"]);
}

#[test]
fn c_134_an_eager_task_is_current_during_its_first_step_and_its_creator_after_it() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop
        .run_until_complete(async {
            current_task().unwrap().set_name("creator");
            let log = trace.clone();
            let eager = coloop::current().task().eager().name("eager");
            let task = eager.create(async move {
                let all = names(&coloop::current().all_tasks());
                log.log(format!("{} of {all:?}", here()));
                yield_now().await;
                log.log(here());
            });
            trace.log(here());
            task.await.unwrap();
            trace.log(here());
        })
        .unwrap();
    let log = trace.clone();
    event_loop.call_soon(move || {
        let inner = log.clone();
        let eager = coloop::current().task().name("in a callback").eager();
        drop(eager.create(async move { inner.log(here()) }));
        log.log(here());
    });
    one_turn(&event_loop);

    trace.assert(&[
        "eager of [\"creator\", \"eager\"]",
        "creator",
        "eager",
        "creator",
        "in a callback",
        "no task",
    ]);
}

#[test]
fn c_135_an_eager_task_can_be_cancelled_once_it_waits_but_not_once_it_has_ended() {
    let event_loop = real_loop();
    let results = event_loop.run_until_complete(async {
        let eager = || coloop::current().task().eager();
        let ended = eager().create(async { "ended" });
        let waiting = eager().create(pending::<&str>());
        let asked = (ended.cancel(), waiting.cancel_with("enough"));
        (asked, in_words(ended.await), in_words(waiting.await))
    });
    let expected = (
        (false, true),
        "ended".to_owned(),
        "the task was cancelled: enough".to_owned(),
    );
    assert_eq!(results.unwrap(), expected);
}

// c_136: `contexts` shows that an eager task does not change its creator's variables.

#[test]
fn an_eager_task_that_panics_at_once_fails_whoever_awaits_it_and_not_its_creator() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    let result = event_loop.run_until_complete(async {
        let eager = coloop::current().task().eager();
        let task = eager.create(async { panic!("at once") });
        (task.is_finished(), in_words::<String>(task.await))
    });
    assert_eq!(
        result.unwrap(),
        (true, "the task panicked: at once".to_owned())
    );
    told.assert::<&str>(&[]);
}

// ---- Cancelling ----------------------------------------------------------------------------------

#[test]
fn c_113_a_task_cancelled_before_its_first_step_never_begins() {
    for grace in [None, Some(SECOND)] {
        let event_loop = real_loop();
        let trace = Trace::new();
        let held = OnDrop::new(&trace, "dropped");
        let log = trace.clone();
        let mut task = event_loop.task();
        if let Some(grace) = grace {
            task = task.grace(grace);
        }
        let task = task.create(async move {
            let _held = held;
            log.log("begins");
        });
        assert!(task.cancel());
        trace.log("asked");
        let error = event_loop.run_until_complete(task).unwrap().unwrap_err();

        assert!(error.is_cancelled());
        trace.assert(&["asked", "dropped"]);
    }
}

#[test]
fn c_114_a_cancelled_task_is_dropped_at_its_next_turn_and_what_it_awaits_with_it() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = event_loop.create_future::<()>();
    let held = OnDrop::new(&trace, "dropped");
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        let _held = held;
        promise.await.ok();
        log.log("goes on");
        "its value"
    });
    one_turn(&event_loop);
    assert!(task.cancel());
    trace.log(format!("asked: wanted {}", resolver.is_wanted()));
    assert!(!task.is_finished());
    one_turn(&event_loop);
    trace.log(format!("next turn: wanted {}", resolver.is_wanted()));

    trace.assert(&["asked: wanted true", "dropped", "next turn: wanted false"]);
    assert!(task.is_finished());
    assert_eq!(outcome(&event_loop, task), "the task was cancelled");
}

#[test]
fn c_115_a_task_with_a_grace_period_may_return_a_value_when_it_is_asked_to_end() {
    let event_loop = real_loop();
    let task = event_loop
        .task()
        .grace(SECOND)
        .create(async { until_cancelled(pending::<i32>()).await.unwrap_or(42) });
    one_turn(&event_loop);
    assert!(task.cancel());
    assert_eq!(outcome(&event_loop, task), "42");
}

#[test]
fn c_116_a_task_that_was_asked_may_await_something_else_that_is_left_alone() {
    let event_loop = real_loop();
    let (first, awaited_first) = event_loop.create_future::<&str>();
    let (second, awaited_second) = event_loop.create_future();
    let task = event_loop.task().grace(SECOND).create(async move {
        let _ = until_cancelled(awaited_first).await;
        awaited_second.await.unwrap()
    });
    one_turn(&event_loop);
    task.cancel();
    one_turn(&event_loop);
    assert!(!first.is_wanted() && second.is_wanted() && !task.is_finished());
    second.settle("another").unwrap();
    assert_eq!(outcome(&event_loop, task), "another");
}

#[test]
fn c_118_a_request_that_precedes_the_body_s_return_wins() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let value = OnDrop::new(&trace, "the value is dropped");
    let task = event_loop.create_task(async move {
        current_task().unwrap().cancel();
        value
    });
    let error = event_loop.run_until_complete(task).unwrap().err().unwrap();
    assert!(error.is_cancelled());
    trace.assert(&["the value is dropped"]);
}

#[test]
fn c_118_a_request_that_precedes_the_return_of_the_run_s_future_wins() {
    let event_loop = real_loop();
    let ended = event_loop.run_until_complete(async {
        current_task().unwrap().cancel_with("itself");
        12
    });
    let expected = Cancelled::with_reason("itself");
    assert!(matches!(ended, Err(RunError::Cancelled(reason)) if reason == expected));
}

#[test]
fn c_119_a_request_wins_over_a_result_that_has_not_been_delivered() {
    let event_loop = real_loop();
    let (resolver, promise) = event_loop.create_future();
    let task = event_loop.create_task(async move { promise.await.unwrap() });
    one_turn(&event_loop);
    resolver.settle(42).unwrap();
    task.cancel();
    assert_eq!(outcome(&event_loop, task), "the task was cancelled");
}

#[test]
fn c_120_a_request_that_is_taken_back_in_time_leaves_the_result() {
    let event_loop = real_loop();
    let (resolver, promise) = event_loop.create_future();
    let task = event_loop.create_task(async move { promise.await.unwrap() });
    one_turn(&event_loop);
    resolver.settle(42).unwrap();
    task.cancel_with("a mistake");
    assert_eq!(
        (task.cancelling(), task.uncancel(), task.cancelling()),
        (1, 0, 0)
    );
    assert_eq!(outcome(&event_loop, task), "42");
}

#[test]
fn c_121_requests_are_counted_on_a_live_task_and_refused_on_one_that_has_ended() {
    let event_loop = real_loop();
    let task = event_loop.create_task(pending::<i32>());
    one_turn(&event_loop);
    assert_eq!(
        (task.cancel(), task.cancel(), task.cancelling()),
        (true, true, 2)
    );
    assert_eq!(task.uncancel(), 1);
    one_turn(&event_loop);
    assert!(task.is_finished());
    assert_eq!((task.cancel(), task.to_ref().cancel()), (false, false));
    assert_eq!(outcome(&event_loop, task), "the task was cancelled");
}

#[test]
fn c_123_a_hand_written_time_limit_leaves_the_rest_of_the_task_unaffected() {
    let (event_loop, clock) = virtual_loop();
    let task = event_loop.task().grace(SECOND).create(async {
        let task = current_task().unwrap();
        let impatient = task.clone();
        coloop::current().call_later(Duration::from_millis(10), move || {
            impatient.cancel();
        });
        let limited = until_cancelled(sleep(60 * SECOND)).await;
        let left = task.uncancel();

        let unaffected = until_cancelled(sleep(5 * SECOND)).await;
        format!(
            "{limited:?}, {left} left, then {unaffected:?}, {} left",
            task.cancelling()
        )
    });
    let expected = "Err(Cancelled { reason: None }), 0 left, then Ok(()), 0 left";
    assert_eq!(outcome(&event_loop, task), expected);
    assert_eq!(clock.elapsed(), Duration::from_millis(5010));
}

#[test]
fn c_124_the_reason_of_a_request_reaches_who_awaits_the_task() {
    type Ask = fn(&Task<()>);
    let cases: [(Ask, Option<&str>); 6] = [
        (|task| _ = task.cancel(), None),
        (|task| _ = task.cancel_with("rain"), Some("rain")),
        (|task| _ = task.to_ref().cancel_with("rain"), Some("rain")),
        (
            |task| {
                task.cancel_with("rain");
                task.cancel_with("snow");
            },
            Some("snow"),
        ),
        (
            |task| {
                task.cancel_with("rain");
                task.cancel();
            },
            Some("rain"),
        ),
        (
            |task| {
                task.cancel_with("rain");
                task.uncancel();
                task.cancel();
            },
            None,
        ),
    ];
    for (number, (ask, reason)) in cases.into_iter().enumerate() {
        let event_loop = real_loop();
        let task = event_loop.create_task(pending::<()>());
        one_turn(&event_loop);
        ask(&task);
        let Err(JoinError::Cancelled(cancelled)) = event_loop.run_until_complete(task).unwrap()
        else {
            panic!("case {number} was not cancelled");
        };
        assert_eq!(cancelled.reason(), reason, "case {number}");
    }
}

#[test]
fn c_124_the_reason_of_a_request_reaches_the_task_that_is_asked() {
    let event_loop = real_loop();
    let body = || async { cancelled().await.reason().unwrap_or("nothing").to_owned() };
    let task = event_loop.task().grace(SECOND).create(body());
    one_turn(&event_loop);
    task.cancel_with("rain");
    assert_eq!(outcome(&event_loop, task), "rain");
}

#[test]
fn cancel_in_every_state_of_a_task() {
    /// Brings a task into a state.
    type Reach = fn(&EventLoop, &Trace) -> Task<&'static str>;
    let states: [(&str, Reach, bool, u32, &str); 13] = [
        (
            "not begun",
            |event_loop, _| event_loop.create_task(async { "value" }),
            true,
            1,
            "the task was cancelled",
        ),
        (
            "waiting",
            |event_loop, _| {
                let task = event_loop.create_task(pending());
                one_turn(event_loop);
                task
            },
            true,
            1,
            "the task was cancelled",
        ),
        (
            "woken",
            |event_loop, _| {
                let task = event_loop.create_task(async {
                    yield_now().await;
                    "value"
                });
                one_turn(event_loop);
                task
            },
            true,
            1,
            "the task was cancelled",
        ),
        (
            "asked already",
            |event_loop, _| {
                let task = event_loop.create_task(pending());
                one_turn(event_loop);
                task.cancel();
                task
            },
            true,
            2,
            "the task was cancelled",
        ),
        (
            "asked, and taken back",
            |event_loop, _| {
                let task = event_loop.create_task(pending());
                task.cancel();
                task.uncancel();
                one_turn(event_loop);
                task
            },
            true,
            1,
            "the task was cancelled",
        ),
        (
            "inside defer_cancel",
            |event_loop, trace| {
                let trace = trace.clone();
                let task = event_loop.create_task(async move {
                    defer_cancel(yield_now()).await;
                    trace.log("behind defer_cancel");
                    pending().await
                });
                one_turn(event_loop);
                task
            },
            true,
            1,
            "the task was cancelled",
        ),
        (
            "with grace, not begun",
            |event_loop, _| event_loop.task().grace(SECOND).create(async { "value" }),
            true,
            1,
            "the task was cancelled",
        ),
        (
            "with grace, waiting for the request",
            |event_loop, _| {
                let task = event_loop.task().grace(SECOND).create(async {
                    cancelled().await;
                    "asked"
                });
                one_turn(event_loop);
                task
            },
            true,
            1,
            "asked",
        ),
        (
            "with grace, deaf",
            |event_loop, _| {
                let task = event_loop.task().grace(SECOND).create(pending());
                one_turn(event_loop);
                task
            },
            true,
            1,
            "the task was cancelled",
        ),
        (
            "with grace, cleaning up",
            |event_loop, _| {
                let task = event_loop.task().grace(SECOND).create(async {
                    cancelled().await;
                    yield_now().await;
                    "cleaned up"
                });
                one_turn(event_loop);
                task.cancel();
                one_turn(event_loop);
                task
            },
            true,
            2,
            "cleaned up",
        ),
        (
            "ended with a value",
            |event_loop, _| {
                let task = event_loop.create_task(async { "value" });
                one_turn(event_loop);
                task
            },
            false,
            0,
            "value",
        ),
        (
            "ended by a panic",
            |event_loop, _| {
                let task = event_loop.create_task(async { panic!("on purpose") });
                one_turn(event_loop);
                task
            },
            false,
            0,
            "the task panicked: on purpose",
        ),
        (
            "refused by a closed loop",
            |_, _| {
                let closed = real_loop();
                closed.close().unwrap();
                closed.create_task(async { "value" })
            },
            false,
            0,
            "the task was cancelled",
        ),
    ];
    for (state, reach, accepted, count, ended) in states {
        let (event_loop, _clock) = virtual_loop();
        let (trace, told) = (Trace::new(), reports(&event_loop));
        let task = reach(&event_loop, &trace);
        assert_eq!(task.cancel(), accepted, "{state}");
        assert_eq!(task.cancelling(), count, "{state}");
        assert_eq!(outcome(&event_loop, task), ended, "{state}");
        assert_eq!(
            event_loop.deadline(),
            None,
            "{state}: the grace timer is off the shelf"
        );
        let deferred = state == "inside defer_cancel";
        assert_eq!(trace.take().len(), usize::from(deferred), "{state}");
        told.assert::<&str>(&[]);
    }
}

#[test]
fn a_task_that_is_cancelled_is_polled_no_more() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let task = event_loop.create_task(poll_fn(move |cx| {
        log.log("polled");
        cx.waker().wake_by_ref();
        Poll::<()>::Pending
    }));
    one_turn(&event_loop);
    task.cancel();
    trace.log("asked");
    for _ in 0..3 {
        one_turn(&event_loop);
    }
    trace.assert(&["polled", "asked"]);
    assert!(task.is_finished());
}

#[test]
fn the_future_of_a_run_can_be_cancelled() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let held = OnDrop::new(&trace, "dropped");
    let ended = event_loop.run_until_complete(async {
        let _held = held;
        let main = current_task().unwrap();
        coloop::current().call_soon(move || assert!(main.cancel_with("by a callback")));
        pending::<()>().await;
    });
    let expected = Cancelled::with_reason("by a callback");
    assert!(matches!(ended, Err(RunError::Cancelled(reason)) if reason == expected));
    trace.assert(&["dropped"]);
    assert!(event_loop.all_tasks().is_empty());
    assert_eq!(
        event_loop.run_until_complete(async { "again" }).unwrap(),
        "again"
    );
}

#[test]
fn a_task_with_grace_is_dropped_when_its_time_is_over() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let (log, held) = (trace.clone(), OnDrop::new(&trace, "dropped"));
    let task = event_loop.task().grace(3 * SECOND).create(async move {
        let _held = held;
        let asked = until_cancelled(pending::<()>()).await;
        log.log(format!("asked: {asked:?}"));
        sleep(60 * SECOND).await;
        log.log("cleaned up");
    });
    one_turn(&event_loop);
    clock.advance(SECOND);
    task.cancel_with("closing");
    let error = event_loop.run_until_complete(task).unwrap().unwrap_err();

    assert_eq!(error.to_string(), "the task was cancelled: closing");
    assert_eq!(clock.elapsed(), 4 * SECOND);
    trace.assert(&[
        "asked: Err(Cancelled { reason: Some(\"closing\") })",
        "dropped",
    ]);
}

#[test]
fn more_requests_do_not_lengthen_the_grace_period() {
    let (event_loop, clock) = virtual_loop();
    let task = event_loop.task().grace(3 * SECOND).create(pending::<()>());
    one_turn(&event_loop);
    task.cancel();
    let again = task.to_ref();
    event_loop.call_later(2 * SECOND, move || {
        again.cancel();
    });
    assert!(event_loop.run_until_complete(task).unwrap().is_err());
    assert_eq!(clock.elapsed(), 3 * SECOND);
}

#[test]
fn a_request_that_is_taken_back_stops_the_grace_period_and_the_next_starts_it_afresh() {
    let (event_loop, clock) = virtual_loop();
    let task = event_loop.task().grace(3 * SECOND).create(pending::<()>());
    one_turn(&event_loop);
    task.cancel();
    clock.advance(2 * SECOND);
    assert_eq!(task.uncancel(), 0);
    assert_eq!(event_loop.deadline(), None);
    clock.advance(10 * SECOND);
    one_turn(&event_loop);
    assert!(!task.is_finished());

    task.cancel();
    assert!(event_loop.run_until_complete(task).unwrap().is_err());
    assert_eq!(clock.elapsed(), 15 * SECOND);
}

#[test]
fn until_cancelled_gives_the_value_where_nobody_asks() {
    let event_loop = real_loop();
    let task = event_loop.create_task(async { until_cancelled(async { 7 }).await.unwrap() });
    assert_eq!(outcome(&event_loop, task), "7");
}

#[test]
fn until_cancelled_prefers_the_request_where_both_come_in_one_turn() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = event_loop.create_future();
    let held = OnDrop::new(&trace, "the future is dropped");
    let log = trace.clone();
    let task = event_loop.task().grace(SECOND).create(async move {
        let body = async move {
            let _held = held;
            promise.await.unwrap()
        };
        let result = until_cancelled(body).await;
        log.log("code behind it");
        result.map_or_else(
            |cancelled| cancelled.to_string(),
            |value: i32| value.to_string(),
        )
    });
    one_turn(&event_loop);
    resolver.settle(7).unwrap();
    task.cancel_with("first");
    assert_eq!(outcome(&event_loop, task), "cancelled: first");
    trace.assert(&["the future is dropped", "code behind it"]);
}

#[test]
fn a_task_that_was_asked_stays_asked_until_the_request_is_taken_back() {
    let event_loop = real_loop();
    let task = event_loop.task().grace(SECOND).create(async {
        let mut results = vec![until_cancelled(pending::<u32>()).await];
        results.push(until_cancelled(async { 1 }).await);
        current_task().unwrap().uncancel();
        results.push(until_cancelled(async { 2 }).await);
        results
            .into_iter()
            .map(|result| result.unwrap_or(0))
            .map(|n| n.to_string())
            .collect()
    });
    one_turn(&event_loop);
    task.cancel();
    let collected: Task<String> = task;
    assert_eq!(outcome(&event_loop, collected), "002");
}

#[test]
fn several_parts_of_a_task_are_told_of_the_request() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let task = event_loop.task().grace(SECOND).create(async move {
        let part = |name: &'static str| {
            let log = log.clone();
            async move {
                cancelled().await;
                log.log(name);
            }
        };
        let parts = ["a", "b", "c"].map(part);
        // Each part of this combinator has a waker of its own.
        let mut parts: futures::stream::FuturesUnordered<_> = parts.into_iter().collect();
        while futures::StreamExt::next(&mut parts).await.is_some() {}
    });
    one_turn(&event_loop);
    task.cancel();
    event_loop.run_until_complete(task).unwrap().unwrap();
    let mut told = trace.take();
    told.sort();
    assert_eq!(told, ["a", "b", "c"]);
}

#[test]
fn create_with_cleanup_ends_with_the_cleanup_s_value_once_the_body_has_begun() {
    let (event_loop, _clock) = virtual_loop();
    let trace = Trace::new();
    let task = |body: LocalBoxFuture<'static, &'static str>| {
        let log = trace.clone();
        event_loop.create_with_cleanup(SECOND, body, async move |cancelled| {
            log.log(format!("cleanup: {cancelled}"));
            yield_now().await;
            "cleaned up"
        })
    };
    let held = OnDrop::new(&trace, "the body is dropped");
    let asked = task(Box::pin(async move {
        let _held = held;
        pending().await
    }));
    let done = task(Box::pin(async { "done" }));
    let unbegun = task(Box::pin(async { "never" }));
    unbegun.cancel();
    one_turn(&event_loop);
    asked.cancel_with("closing");

    assert_eq!(outcome(&event_loop, asked), "cleaned up");
    assert_eq!(outcome(&event_loop, done), "done");
    assert_eq!(outcome(&event_loop, unbegun), "the task was cancelled");
    trace.assert(&["the body is dropped", "cleanup: cancelled: closing"]);
}

#[test]
fn a_cleanup_that_takes_too_long_is_dropped() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let held = OnDrop::new(&trace, "the cleanup is dropped");
    let task = event_loop.create_with_cleanup(SECOND, pending::<()>(), async move |_| {
        let _held = held;
        sleep(60 * SECOND).await;
    });
    one_turn(&event_loop);
    task.cancel();
    assert!(event_loop.run_until_complete(task).unwrap().is_err());
    assert_eq!(clock.elapsed(), SECOND);
    trace.assert(&["the cleanup is dropped"]);
}

#[test]
fn defer_cancel_puts_requests_off_until_its_future_is_complete() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        defer_cancel(async {
            for step in 1..=3 {
                log.log(format!("step {step}"));
                yield_now().await;
            }
        })
        .await;
        log.log("behind it");
        yield_now().await;
        log.log("never");
        "its value"
    });
    one_turn(&event_loop);
    task.cancel_with("enough");
    trace.log("asked");
    assert_eq!(outcome(&event_loop, task), "the task was cancelled: enough");
    trace.assert(&["step 1", "asked", "step 2", "step 3", "behind it"]);
}

#[test]
fn a_request_put_off_until_the_return_wins_over_the_value() {
    let event_loop = real_loop();
    let task = event_loop.create_task(defer_cancel(async {
        yield_now().await;
        7
    }));
    one_turn(&event_loop);
    task.cancel();
    assert_eq!(outcome(&event_loop, task), "the task was cancelled");
}

#[test]
fn a_request_put_off_and_taken_back_is_not_felt() {
    let event_loop = real_loop();
    let task = event_loop.create_task(async {
        defer_cancel(yield_now()).await;
        yield_now().await;
        7
    });
    one_turn(&event_loop);
    task.cancel();
    task.uncancel();
    assert_eq!(outcome(&event_loop, task), "7");
}

#[test]
fn deferrals_nest_and_a_dropped_one_counts_no_more() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        defer_cancel(async {
            defer_cancel(yield_now()).await;
            log.log("inside the outer one");
            yield_now().await;
        })
        .await;
        log.log("behind both");
        yield_now().await;
        log.log("never");
    });
    one_turn(&event_loop);
    task.cancel();
    assert!(event_loop.run_until_complete(task).unwrap().is_err());
    trace.assert(&["inside the outer one", "behind both"]);

    let log = trace.clone();
    let task = event_loop.create_task(async move {
        let mut deferred = Box::pin(defer_cancel(pending::<()>()));
        poll_fn(|cx| Poll::Ready(deferred.as_mut().poll(cx).is_pending())).await;
        log.log("put off");
        yield_now().await;
        drop(deferred);
        log.log("dropped");
        yield_now().await;
        log.log("never");
    });
    one_turn(&event_loop);
    task.cancel();
    assert!(event_loop.run_until_complete(task).unwrap().is_err());
    trace.assert(&["put off", "dropped"]);
}

#[test]
fn the_future_of_a_run_may_put_requests_off() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let ended = event_loop.run_until_complete(async {
        let main = current_task().unwrap();
        coloop::current().call_soon(move || assert!(main.cancel()));
        defer_cancel(async {
            yield_now().await;
            yield_now().await;
            trace.log("complete");
        })
        .await;
        pending::<()>().await;
    });
    assert!(matches!(ended, Err(RunError::Cancelled(_))));
    trace.assert(&["complete"]);
}

#[test]
fn a_shield_that_is_dropped_leaves_its_task_running() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let awaiter = event_loop.create_task(async move {
        let work = async move {
            yield_now().await;
            yield_now().await;
            log.log("the work is done");
        };
        shield(work).await
    });
    one_turn(&event_loop);
    one_turn(&event_loop);
    awaiter.cancel();
    one_turn(&event_loop);
    trace.log(format!("the awaiter has ended: {}", awaiter.is_finished()));
    one_turn(&event_loop);
    trace.assert(&["the awaiter has ended: true", "the work is done"]);
}

#[test]
fn a_shield_gives_what_its_task_gives() {
    let event_loop = real_loop();
    let done = event_loop.create_task(async { 1 });
    one_turn(&event_loop);
    let results = event_loop.run_until_complete(async move {
        let behind = coloop::current().call_soon(|| unreachable!("no turn was given"));
        let done = done.shield().await;
        behind.cancel();
        let cancelled = coloop::current().create_task(pending::<i32>());
        cancelled.cancel_with("the inner one");
        let task = coloop::current().shield(async { 2 }).into_task();
        [done, cancelled.shield().await, task.await].map(in_words)
    });
    assert_eq!(
        results.unwrap(),
        ["1", "the task was cancelled: the inner one", "2"]
    );
}

#[test]
fn a_shielded_task_that_panics_after_its_awaiter_has_gone_is_reported_once() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    let (resolver, promise) = event_loop.create_future::<()>();
    let awaiter = event_loop.create_task(async move {
        let inner = async move {
            promise.await.ok();
            panic!("too late");
        };
        let inner = coloop::current().task().name("inner").create(inner);
        inner.shield().await.map(|()| 0)
    });
    one_turn(&event_loop);
    awaiter.cancel();
    one_turn(&event_loop);
    resolver.settle(()).unwrap();
    one_turn(&event_loop);
    drop(awaiter);
    drop(event_loop);
    told.assert(&["panic in task, never observed `inner`: too late"]);
}

/// A naive model of one task, and the task itself, taken through the same random operations.
mod against_a_model {
    use super::*;

    /// What the body of the task does with the two promises it has.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        /// Awaits the first, and ends with its value.
        Plain,
        /// Awaits the first until it is asked to end; then the second.
        Graceful,
        /// Awaits the first with requests put off; then the second.
        Deferring,
    }

    #[derive(Debug)]
    struct Model {
        kind: Kind,
        grace: Option<u64>,
        now: u64,
        requests: u32,
        reason: Option<u32>,
        grace_until: Option<u64>,
        overdue: bool,
        started: bool,
        deferred: bool,
        /// It stands in the line.
        woken: bool,
        /// It is past its first promise.
        second_phase: bool,
        /// Waits for this promise, which wakes it.
        waits_for: Option<usize>,
        settled: [bool; 2],
        ended: Option<String>,
        trace: Vec<String>,
    }

    impl Model {
        fn must_end(&self) -> bool {
            let graceful = self.grace.is_some() && self.started && !self.overdue;
            self.requests > 0 && !self.deferred && !graceful
        }

        fn in_words(&self) -> String {
            match self.reason {
                Some(reason) => format!("cancelled: {reason}"),
                None => "cancelled".to_owned(),
            }
        }

        fn cancel(&mut self, reason: Option<u32>) -> bool {
            if self.ended.is_some() {
                return false;
            }
            self.requests += 1;
            self.reason = reason.or(self.reason);
            self.woken = true;
            if self.requests == 1 && self.started {
                self.grace_until = self.grace.map(|grace| self.now + grace);
            }
            true
        }

        fn uncancel(&mut self) -> u32 {
            self.requests = self.requests.saturating_sub(1);
            if self.requests == 0 {
                (self.overdue, self.reason, self.grace_until) = (false, None, None);
            }
            self.requests
        }

        /// Whether the value is taken.
        fn settle(&mut self, promise: usize) -> bool {
            let gone = promise == 0 && self.second_phase;
            if self.ended.is_some() || gone || self.settled[promise] {
                return false;
            }
            self.settled[promise] = true;
            self.woken |= self.waits_for == Some(promise);
            true
        }

        fn turn(&mut self) {
            let due = self.grace_until.is_some_and(|at| at <= self.now);
            if std::mem::take(&mut self.woken) {
                self.poll();
            }
            if due && self.ended.is_none() {
                (self.overdue, self.woken, self.grace_until) = (true, true, None);
            }
        }

        fn poll(&mut self) {
            if self.must_end() {
                return self.end(None);
            }
            self.started = true;
            self.waits_for = None;
            if !self.second_phase {
                self.deferred = self.kind == Kind::Deferring;
                if self.kind == Kind::Graceful && self.requests > 0 {
                    self.trace.push(format!("asked, {}", self.in_words()));
                } else if !self.settled[0] {
                    self.waits_for = Some(0);
                    return;
                } else if self.kind != Kind::Deferring {
                    return self.end(Some("first"));
                }
                if std::mem::take(&mut self.deferred) {
                    self.woken = self.must_end();
                }
                self.second_phase = true;
            }
            if self.settled[1] {
                return self.end(Some("second"));
            }
            self.waits_for = Some(1);
        }

        fn end(&mut self, value: Option<&str>) {
            let value = value.filter(|_| !self.must_end());
            self.ended = Some(match value {
                Some(value) => value.to_owned(),
                None => format!("the task was {}", self.in_words()),
            });
            (self.woken, self.grace_until, self.requests) = (false, None, 0);
        }
    }

    async fn body(
        kind: Kind,
        trace: Trace,
        promises: [coloop::Promise<&'static str>; 2],
    ) -> &'static str {
        let [first, second] = promises;
        match kind {
            Kind::Plain => first.await.unwrap(),
            Kind::Graceful => match until_cancelled(first).await {
                Ok(value) => value.unwrap(),
                Err(asked) => {
                    trace.log(format!("asked, {asked}"));
                    second.await.unwrap()
                }
            },
            Kind::Deferring => {
                defer_cancel(first).await.unwrap();
                second.await.unwrap()
            }
        }
    }

    #[test]
    fn cancel_uncancel_and_grace_agree_with_a_naive_model() {
        for seed in 0..10 {
            let clock = coloop::testing::Clock::new();
            let clock_of_loop = Rc::<coloop::testing::Clock>::clone(&clock);
            let event_loop = builder().seed(seed).clock(clock_of_loop).build().unwrap();
            let chance = |of: u64| event_loop.random() % of;
            // A task with a grace period, so that the others cannot count on being alone.
            let bystander = event_loop.task().grace(Duration::MAX);
            let _bystander = (seed % 2 == 0).then(|| bystander.create(pending::<()>()));
            let mut steps = 0;
            let mut ends = std::collections::BTreeSet::new();
            while steps < 1_000 {
                let kind = [Kind::Plain, Kind::Graceful, Kind::Deferring][chance(3) as usize];
                let grace = (chance(2) == 0).then(|| chance(4));
                let trace = Trace::new();
                let (first, second) = (event_loop.create_future(), event_loop.create_future());
                let mut resolvers = [Some(first.0), Some(second.0)];
                let mut task = event_loop.task();
                if let Some(grace) = grace {
                    task = task.grace(Duration::from_secs(grace));
                }
                let task = task.create(body(kind, trace.clone(), [first.1, second.1]));
                let mut model = Model {
                    kind,
                    grace,
                    now: 0,
                    requests: 0,
                    reason: None,
                    grace_until: None,
                    overdue: false,
                    started: false,
                    deferred: false,
                    woken: true,
                    second_phase: false,
                    waits_for: None,
                    settled: [false; 2],
                    ended: None,
                    trace: Vec::new(),
                };
                // A few more operations after the end, which change nothing.
                let mut after_the_end = 0;
                while after_the_end < 3 {
                    after_the_end += u32::from(model.ended.is_some());
                    steps += 1;
                    let what = match chance(12) {
                        0 | 1 => {
                            assert_eq!(task.cancel(), model.cancel(None), "seed {seed}, {model:?}");
                            "cancel"
                        }
                        2 => {
                            let reason = steps;
                            let (ours, theirs) = (
                                task.cancel_with(reason.to_string()),
                                model.cancel(Some(reason)),
                            );
                            assert_eq!(ours, theirs, "seed {seed}, {model:?}");
                            "cancel_with"
                        }
                        3 | 4 => {
                            assert_eq!(task.uncancel(), model.uncancel(), "seed {seed}, {model:?}");
                            "uncancel"
                        }
                        5 => {
                            let seconds = 1 + chance(2);
                            clock.advance(Duration::from_secs(seconds));
                            model.now += seconds;
                            "advance"
                        }
                        6 | 7 => {
                            let which = chance(2) as usize;
                            if let Some(resolver) = resolvers[which].take() {
                                let value = ["first", "second"][which];
                                let taken = resolver.settle(value).is_ok();
                                assert_eq!(taken, model.settle(which), "seed {seed}, {model:?}");
                            }
                            "settle"
                        }
                        _ => {
                            one_turn(&event_loop);
                            model.turn();
                            "turn"
                        }
                    };
                    let about = format!("seed {seed}, step {steps}: {what}, {model:?}");
                    assert_eq!(task.is_finished(), model.ended.is_some(), "{about}");
                    assert_eq!(task.cancelling(), model.requests, "{about}");
                    let deadline = event_loop.deadline().is_some();
                    assert_eq!(deadline, model.grace_until.is_some(), "{about}");
                }
                let ended = outcome(&event_loop, task);
                assert_eq!(Some(&ended), model.ended.as_ref(), "seed {seed}, {model:?}");
                assert_eq!(trace.take(), model.trace, "seed {seed}");
                ends.insert(ended.chars().take(22).collect::<String>());
            }
            let all = ["first", "second", "the task was cancelled"].map(str::to_owned);
            assert_eq!(ends, all.into(), "every way to end has come up");
        }
    }
}

// ---- Awaiting ------------------------------------------------------------------------------------

#[test]
fn c_125_a_task_that_awaits_itself_is_told_so() {
    let event_loop = real_loop();
    let seat = Rc::new(RefCell::new(None::<Task<String>>));
    let own = Rc::clone(&seat);
    let task = event_loop.create_task(async move {
        let mut own = own.borrow_mut().take().unwrap();
        let error = (&mut own).await.unwrap_err();
        assert!(matches!(error, JoinError::AwaitsItself));
        error.to_string()
    });
    let (observer, observed) = event_loop.create_future();
    seat.replace(Some(task));
    event_loop.call_soon(move || observer.settle(()).unwrap());
    event_loop.run_until_complete(observed).unwrap().unwrap();
    // The handle is gone with the body: the task itself has ended well.
    assert!(seat.borrow().is_none());
    assert!(event_loop.all_tasks().is_empty());
}

#[test]
fn c_126_a_task_of_another_loop_can_be_awaited_in_the_same_thread() {
    let (first, second) = (real_loop(), real_loop());
    let theirs = second.create_task(async { "from the other loop" });
    let ours = first.create_task(theirs);
    one_turn(&first);
    assert!(!ours.is_finished());
    one_turn(&second);
    let value = first.run_until_complete(ours).unwrap().unwrap().unwrap();
    assert_eq!(value, "from the other loop");
}

#[test]
fn awaiting_a_task_that_has_ended_gives_nobody_a_turn() {
    let event_loop = real_loop();
    let task = event_loop.create_task(async { 7 });
    one_turn(&event_loop);
    let value = event_loop.run_until_complete(async {
        let behind = coloop::current().call_soon(|| unreachable!("no turn was given"));
        let value = task.await.unwrap();
        behind.cancel();
        value
    });
    assert_eq!(value.unwrap(), 7);
}

#[test]
fn a_task_that_has_given_its_value_gives_cancelled() {
    let event_loop = real_loop();
    let mut task = event_loop.create_task(async { 7 });
    let twice = event_loop
        .run_until_complete(async { [(&mut task).await, (&mut task).await].map(in_words) });
    assert_eq!(twice.unwrap(), ["7", "the task was cancelled"]);
    assert!(task.is_finished());
}

#[test]
fn a_stopped_run_leaves_a_task_that_was_lent_to_it() {
    let event_loop = real_loop();
    let mut task = event_loop.create_task(async {
        coloop::current().stop();
        yield_now().await;
        7
    });
    let stopped = event_loop.run_until_complete(&mut task);
    assert!(matches!(stopped, Err(RunError::Stopped)));
    assert_eq!(outcome(&event_loop, task), "7");
}

#[test]
fn on_done_callbacks_come_by_the_line_in_the_order_of_the_ends() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let logs = |name: &'static str| {
        let trace = trace.clone();
        move |result| trace.log(format!("{name}: {} in {}", in_words::<i32>(result), here()))
    };
    let slow = event_loop.create_task(async {
        yield_now().await;
        1
    });
    let fast = event_loop.create_task(async { 2 });
    let cancelled = event_loop.create_task(pending::<i32>());
    let ended = event_loop.create_task(async { 3 });
    cancelled.cancel();
    slow.on_done(logs("slow"));
    fast.on_done(logs("fast"));
    cancelled.on_done(logs("cancelled"));
    one_turn(&event_loop);
    trace.log("turn");
    ended.on_done(logs("ended"));
    trace.log("nothing has run");
    for _ in 0..3 {
        one_turn(&event_loop);
    }

    trace.assert(&[
        "turn",
        "nothing has run",
        "fast: 2 in no task",
        "cancelled: the task was cancelled in no task",
        "ended: 3 in no task",
        "slow: 1 in no task",
    ]);
}

#[test]
fn an_on_done_callback_that_panics_is_reported_as_a_callback() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    event_loop
        .create_task(async {})
        .on_done(|_| panic!("in on_done"));
    one_turn(&event_loop);
    one_turn(&event_loop);
    told.assert(&["panic in callback: in on_done"]);
}

#[test]
fn on_done_observes_the_panic_of_its_task() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let log = trace.clone();
    let task = event_loop.create_task(async { panic!("seen") });
    task.on_done(move |result: Result<i32, _>| log.log(in_words(result)));
    one_turn(&event_loop);
    one_turn(&event_loop);
    drop(event_loop);
    trace.assert(&["the task panicked: seen"]);
    told.assert::<&str>(&[]);
}

#[test]
fn a_task_that_gives_another_s_end_to_a_callback_does_not_wait_for_it_any_more() {
    let event_loop = real_loop();
    let mut other = event_loop.create_task(pending::<()>());
    let task = event_loop.create_task(async move {
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut other).poll(cx))).await;
        let before = current_task().unwrap().waits().len();
        other.on_done(|_| ());
        let after = current_task().unwrap().waits().len();
        format!("{}, {before}, {after}", polled.is_pending())
    });
    assert_eq!(outcome(&event_loop, task), "true, 1, 0");
}

// ---- References and waits ------------------------------------------------------------------------

#[test]
fn a_reference_knows_only_the_number_once_the_task_and_its_handle_have_gone() {
    let event_loop = real_loop();
    let task = event_loop.task().name("named").create(async {});
    let place = (file!(), line!() - 1);
    let reference = task.to_ref();
    let before = (reference.name(), reference.is_finished(), reference.place());
    assert_eq!((&*before.0, before.1), ("named", false));
    assert_eq!(
        before.2.map(|place| (place.file(), place.line())),
        Some(place)
    );

    one_turn(&event_loop);
    assert_eq!(
        (&*reference.name(), reference.is_finished()),
        ("named", true)
    );
    drop(task);
    reference.set_name("too late");

    assert_eq!(
        (&*reference.name(), reference.is_finished()),
        ("Task-1", true)
    );
    assert_eq!(reference.place(), None);
    assert!(!reference.cancel() && !reference.cancel_with("late"));
    assert_eq!((reference.cancelling(), reference.uncancel()), (0, 0));
    assert!(reference.waits().is_empty());
    let another = event_loop.create_task(async {}).to_ref();
    assert_ne!(
        reference, another,
        "also where the other has taken its place"
    );
    assert!(!another.is_finished());
}

#[test]
fn references_of_one_task_are_equal_and_of_two_loops_are_not() {
    let (first, second) = (real_loop(), real_loop());
    let tasks = [first.create_task(async {}), second.create_task(async {})];
    let [a, b] = tasks.each_ref().map(Task::to_ref);
    assert_eq!(a, tasks[0].to_ref());
    assert_ne!(a, b);
    let hasher = std::collections::hash_map::RandomState::new();
    assert_eq!(hasher.hash_one(&a), hasher.hash_one(tasks[0].to_ref()));
    assert_eq!(b, tasks[1].to_ref());
}

/// What a task waits for, in words, with the line where that was made relative to `line`.
fn waits(task: &TaskRef, line: u32) -> Vec<String> {
    let in_words = |wait: coloop::Wait| {
        let on = match wait.on {
            WaitOn::Timer(_) => "timer".to_owned(),
            WaitOn::Task(task) => format!("task {}", task.name()),
            WaitOn::Readable(_) => "readable".to_owned(),
            WaitOn::Writable(_) => "writable".to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(wait.place.file(), file!());
        format!(
            "{on} of line {:+}",
            i64::from(wait.place.line()) - i64::from(line)
        )
    };
    task.waits().into_iter().map(in_words).collect()
}

#[test]
fn a_task_says_what_it_waits_for() {
    let (event_loop, clock) = virtual_loop();
    let (near, mut far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let fd = near.as_raw_fd();
    let near = event_loop.watch(Rc::new(near)).unwrap();
    let line = line!();
    let joined = event_loop.task().name("joined").create(pending::<()>());
    let (resolver, promise) = event_loop.create_future::<()>();
    let task = event_loop.create_task(async move {
        let _near = &near;
        promise.await.ok();
        joined.await.ok();
        sleep(SECOND).await;
        coloop::timeout(SECOND, pending::<()>()).await.ok();
        near.readable().await.ok();
        cancelled().await;
    });
    let reference = task.to_ref();
    let joined = event_loop.all_tasks()[0].clone();
    assert!(reference.waits().is_empty(), "it has not begun");

    let turn = || {
        one_turn(&event_loop);
        waits(&reference, line)
    };
    assert_eq!(turn(), ["Promise of line +2"]);
    resolver.settle(()).unwrap();
    assert_eq!(turn(), ["task joined of line +1"]);
    joined.cancel();
    one_turn(&event_loop);
    assert_eq!(turn(), ["timer of line +7"]);
    clock.advance(SECOND);
    one_turn(&event_loop);
    assert_eq!(turn(), ["timer of line +8"]);
    clock.advance(SECOND);
    one_turn(&event_loop);
    assert_eq!(turn(), ["readable of line +9"]);
    assert_eq!(reference.waits()[0].on, WaitOn::Readable(fd));
    far.write_all(b"x").unwrap();
    one_turn(&event_loop);
    assert_eq!(turn(), ["Cancellation of line +10"]);
    reference.cancel();
    one_turn(&event_loop);
    assert!(reference.is_finished() && reference.waits().is_empty());
}

#[test]
fn a_wait_tells_its_deadline_and_since_when() {
    let (event_loop, clock) = virtual_loop();
    let start = event_loop.time();
    clock.advance(Duration::from_millis(2_500));
    let (_resolver, promise) = event_loop.create_future::<()>();
    let task = event_loop.create_task(async move {
        futures::future::join(sleep(3 * SECOND), promise)
            .await
            .1
            .ok();
    });
    one_turn(&event_loop);
    clock.advance(SECOND);
    one_turn(&event_loop);

    let waits = task.to_ref().waits();
    let since: Vec<_> = waits.iter().map(|wait| wait.since - start).collect();
    let on: Vec<_> = waits.into_iter().map(|wait| wait.on).collect();
    let at = Duration::from_millis(2_500);
    assert_eq!(
        on,
        [WaitOn::Promise, WaitOn::Timer(start + at + 3 * SECOND)]
    );
    assert_eq!(since, [at, at]);
}

#[test]
fn the_future_of_a_run_says_what_it_waits_for() {
    let (event_loop, _clock) = virtual_loop();
    let trace = Trace::new();
    let line = line!();
    let log = trace.clone();
    event_loop.call_later(SECOND, move || {
        let main = coloop::current().all_tasks().remove(0);
        log.log(waits(&main, line).join(", "));
    });
    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    trace.assert(&["timer of line +6"]);
}

#[test]
fn a_sleep_that_changes_hands_is_what_the_new_task_waits_for() {
    let (event_loop, _clock) = virtual_loop();
    let shared = Rc::new(RefCell::new(Box::pin(sleep(SECOND))));
    let poller = || {
        let shared = Rc::clone(&shared);
        event_loop.create_task(poll_fn(move |cx| shared.borrow_mut().as_mut().poll(cx)))
    };
    let (first, second) = (poller(), poller());
    one_turn(&event_loop);
    let waits = [&first, &second].map(|task| task.to_ref().waits().len());
    assert_eq!(waits, [0, 1]);
    event_loop.run_until_complete(second).unwrap().unwrap();
    assert!(!first.is_finished());
}

#[test]
fn waits_of_a_dropped_operation_are_gone() {
    let (event_loop, _clock) = virtual_loop();
    let (_resolver, promise) = event_loop.create_future::<()>();
    let joined = event_loop.create_task(pending::<()>());
    let task = event_loop.create_task(async move {
        let mut operations = Box::pin(async {
            let all = (promise, joined, sleep(SECOND), cancelled());
            futures::future::select(
                futures::future::select(all.0, all.1),
                futures::future::select(all.2, all.3),
            )
            .await;
        });
        poll_fn(|cx| Poll::Ready(operations.as_mut().poll(cx).is_pending())).await;
        let during = current_task().unwrap().waits().len();
        drop(operations);
        format!("{during}, then {}", current_task().unwrap().waits().len())
    });
    assert_eq!(outcome(&event_loop, task), "4, then 0");
}

// ---- The factory ---------------------------------------------------------------------------------

/// A factory that says what it sees.
struct Tracing(Trace);

impl TaskFactory for Tracing {
    fn build(&self, builder: TaskBuilder) -> TaskBuilder {
        self.0.log("build");
        builder.name("from the factory")
    }

    fn wrap(&self, mut body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
        self.0.log("wrap");
        let trace = self.0.clone();
        Box::pin(poll_fn(move |cx| {
            trace.log(format!("before a poll of {}", here()));
            let polled = body.as_mut().poll(cx);
            trace.log("after it");
            polled
        }))
    }
}

#[test]
fn c_131_a_task_factory_sees_every_task_until_it_is_reset() {
    let event_loop = real_loop();
    let trace = Trace::new();
    assert!(event_loop.task_factory().is_none());
    event_loop.set_task_factory(Rc::new(Tracing(trace.clone())));
    assert!(event_loop.task_factory().is_some());

    let log = trace.clone();
    let task = event_loop.create_task(async move {
        log.log("the body");
        7
    });
    assert_eq!(&*task.name(), "from the factory");
    assert_eq!(outcome(&event_loop, task), "7");
    trace.assert(&[
        "build",
        "wrap",
        "before a poll of from the factory",
        "the body",
        "after it",
    ]);

    event_loop.reset_task_factory();
    assert!(event_loop.task_factory().is_none());
    let plain = event_loop.create_task(async { 8 });
    assert_eq!(outcome(&event_loop, plain), "8");
    trace.assert::<&str>(&[]);
}

#[test]
fn a_task_factory_sees_builders_grace_and_reporting_tasks_and_not_the_loop_s_own() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop.set_task_factory(Rc::new(Tracing(trace.clone())));
    let counts = |made: Task<()>| {
        drop(made);
        trace.take()
    };
    let both = ["build", "wrap"];
    assert_eq!(counts(event_loop.task().create(async {})), both);
    assert_eq!(counts(event_loop.try_create_task(async {}).unwrap()), both);
    assert_eq!(counts(event_loop.create_reporting(async {})), both);
    assert_eq!(
        counts(event_loop.create_with_cleanup(SECOND, async {}, async |_| ())),
        both
    );
    let task = event_loop.shield(async {}).into_task();
    trace.take();
    task.on_done(|_| ());
    event_loop.run_until_complete(async {}).unwrap();
    assert!(
        !trace.take().contains(&"build".to_owned()),
        "what follows an end is no task of yours"
    );
}

#[test]
fn a_wrapper_may_be_cancelled_with_its_body_in_it() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop.set_task_factory(Rc::new(Tracing(trace.clone())));
    let held = OnDrop::new(&trace, "the body is dropped");
    let task = event_loop.create_task(async move {
        let _held = held;
        pending::<i32>().await
    });
    one_turn(&event_loop);
    trace.take();
    task.cancel_with("enough");
    assert_eq!(outcome(&event_loop, task), "the task was cancelled: enough");
    trace.assert(&["the body is dropped"]);
}

#[test]
fn a_wrapper_that_gives_up_cancels_its_task() {
    struct GivesUp;
    impl TaskFactory for GivesUp {
        fn wrap(&self, _: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
            Box::pin(async {})
        }
    }

    let (event_loop, clock) = virtual_loop();
    event_loop.set_task_factory(Rc::new(GivesUp));
    for grace in [None, Some(3 * SECOND)] {
        let trace = Trace::new();
        let held = OnDrop::new(&trace, "the body is dropped");
        let mut task = event_loop.task();
        if let Some(grace) = grace {
            task = task.grace(grace);
        }
        let task = task.create(async move {
            let _held = held;
            7
        });
        let began = clock.elapsed();
        let ended = outcome(&event_loop, task);
        let expected = "the task was cancelled: the task factory's wrapper ended early";
        assert_eq!(ended, expected);
        trace.assert(&["the body is dropped"]);
        assert_eq!(
            clock.elapsed(),
            began,
            "there is nobody to give a grace period to"
        );
    }
}

#[test]
fn c_141_a_panic_of_the_factory_leaves_create_task_and_no_task_behind() {
    #[derive(Clone, Copy, PartialEq)]
    enum Where {
        Build,
        Wrap,
    }
    struct Panics(Where);
    impl TaskFactory for Panics {
        fn build(&self, builder: TaskBuilder) -> TaskBuilder {
            assert!(self.0 != Where::Build, "in build");
            builder
        }
        fn wrap(&self, body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
            assert!(self.0 != Where::Wrap, "in wrap");
            body
        }
    }

    for place in [Where::Build, Where::Wrap] {
        let event_loop = real_loop();
        let (trace, told) = (Trace::new(), reports(&event_loop));
        event_loop.set_task_factory(Rc::new(Panics(place)));
        let held = OnDrop::new(&trace, "the future is dropped");
        let made = catch_unwind(AssertUnwindSafe(|| {
            drop(event_loop.create_task(async move { drop(held) }));
        }));
        assert!(made.is_err());
        trace.assert(&["the future is dropped"]);
        assert!(event_loop.all_tasks().is_empty());

        event_loop.reset_task_factory();
        let task = event_loop.create_task(async { 7 });
        assert_eq!(outcome(&event_loop, task), "7", "the loop is fine");
        told.assert::<&str>(&[]);
    }
}

#[test]
fn c_141_a_closed_loop_refuses_tasks_and_shows_none() {
    let event_loop = real_loop();
    event_loop.close().unwrap();
    let trace = Trace::new();
    let body = |name| {
        let held = OnDrop::new(&trace, name);
        async move { drop(held) }
    };
    assert!(event_loop.try_create_task(body("try_create_task")).is_err());
    assert!(event_loop.task().try_create(body("try_create")).is_err());
    let tasks = [
        event_loop.create_task(body("create_task")),
        event_loop.task().eager().name("x").create(body("create")),
        event_loop.create_reporting(body("create_reporting")),
        event_loop.shield(body("shield")).into_task(),
    ];
    trace.log("on_done");
    for task in tasks {
        assert!(task.is_finished() && !task.cancel() && task.to_ref().waits().is_empty());
        task.on_done(|_| unreachable!("the loop is closed"));
    }

    trace.assert(&[
        "try_create_task",
        "try_create",
        "create_task",
        "create",
        "create_reporting",
        "shield",
        "on_done",
    ]);
    assert!(event_loop.all_tasks().is_empty());
}

#[test]
fn a_factory_that_holds_its_loop_is_let_go_when_the_loop_closes() {
    struct Holds(#[expect(dead_code, reason = "held, not used")] LoopHandle);
    impl TaskFactory for Holds {}

    let event_loop = real_loop();
    let before = Rc::new(Holds(event_loop.handle()));
    event_loop.set_task_factory(Rc::<Holds>::clone(&before));
    event_loop.close().unwrap();
    assert_eq!(Rc::strong_count(&before), 1, "a factory set before");

    let after = Rc::new(Holds(event_loop.handle()));
    event_loop.set_task_factory(Rc::<Holds>::clone(&after));
    assert_eq!(Rc::strong_count(&after), 1, "a factory set after");
}

// ---- Closing -------------------------------------------------------------------------------------

#[test]
fn closing_drops_the_tasks_in_the_line_first_and_then_the_others_by_age() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let thread = thread::current().id();
    let body = |name: &'static str, wakes: bool| {
        let held = OnDrop::new(&trace, name);
        let begun = trace.clone();
        async move {
            let _held = held;
            begun.log(format!("{name} begins"));
            if wakes {
                yield_now().await;
            }
            pending::<()>().await;
        }
    };
    struct SameThread(thread::ThreadId);
    impl Drop for SameThread {
        fn drop(&mut self) {
            assert_eq!(thread::current().id(), self.0);
        }
    }
    for (name, wakes) in [("first", false), ("second", false), ("woken", true)] {
        let (body, here) = (body(name, wakes), SameThread(thread));
        drop(event_loop.create_task(async move {
            let _here = here;
            body.await;
        }));
    }
    one_turn(&event_loop);
    drop(event_loop.create_task(body("unbegun", false)));
    let held = OnDrop::new(&trace, "callback");
    event_loop.call_soon(move || drop(held));
    trace.take();

    let told = reports(&event_loop);
    event_loop.close().unwrap();

    trace.assert(&["woken", "unbegun", "callback", "first", "second"]);
    told.assert::<&str>(&[]);
    assert!(event_loop.all_tasks().is_empty());
}

#[test]
fn destructors_that_run_while_the_loop_closes_are_refused_new_work() {
    struct Persistent(LoopHandle, Trace);
    impl Drop for Persistent {
        fn drop(&mut self) {
            let Self(handle, trace) = self;
            trace.log(format!("closed: {}", handle.is_closed()));
            let refused = [
                handle.call_soon(|| ()).is_cancelled(),
                handle.call_later(SECOND, || ()).is_cancelled(),
                handle.try_call_soon(|| ()).is_err(),
                handle.create_task(async {}).is_finished(),
                handle.try_create_task(async {}).is_err(),
                handle.remote().call_soon(|| ()).is_err(),
                handle.remote().create_task(|| async {}).is_err(),
            ];
            trace.log(format!(
                "refused: {}",
                refused.iter().all(|refused| *refused)
            ));
            for task in handle.all_tasks() {
                task.cancel();
            }
        }
    }

    for in_line in [false, true] {
        let event_loop = real_loop();
        let (trace, told) = (Trace::new(), reports(&event_loop));
        for _ in 0..2 {
            let persistent = Persistent(event_loop.handle(), trace.clone());
            drop(event_loop.create_task(async move {
                let _persistent = persistent;
                pending::<()>().await;
            }));
        }
        if !in_line {
            one_turn(&event_loop);
        }
        event_loop.close().unwrap();
        let each = ["closed: true", "refused: true"];
        trace.assert(&[each, each].concat());
        told.assert::<&str>(&[]);
    }
}

#[test]
fn a_handle_outlives_its_loop() {
    let (closed, running) = (real_loop(), real_loop());
    let finished = closed.create_task(async { "kept" });
    let panicked = closed.create_task(async { panic!("kept too") });
    let waiting = closed.task().name("waiting").create(pending());
    let awaiting = running.create_task(closed.create_task(pending::<&str>()));
    one_turn(&closed);
    one_turn(&running);
    closed.close().unwrap();

    assert!(waiting.is_finished() && !waiting.cancel());
    assert_eq!((&*waiting.name(), waiting.cancelling()), ("waiting", 0));
    assert_eq!(outcome(&running, finished), "kept");
    assert_eq!(
        outcome::<String>(&running, panicked),
        "the task panicked: kept too"
    );
    assert_eq!(
        outcome::<String>(&running, waiting),
        "the task was cancelled"
    );
    let awaited = running.run_until_complete(awaiting).unwrap().unwrap();
    assert_eq!(in_words(awaited), "the task was cancelled");
}

#[test]
fn c_130_a_task_that_everybody_has_dropped_stays_until_the_loop_closes() {
    for debug in [false, true] {
        let event_loop = builder().debug(debug).build().unwrap();
        let (trace, told) = (Trace::new(), reports(&event_loop));
        let held = OnDrop::new(&trace, "dropped");
        let task = event_loop.task().name("forgotten").create(async move {
            let _held = held;
            pending::<()>().await;
        });
        drop(task);
        // Neither what follows an end nor the future of a run is reported.
        event_loop.create_task(pending::<()>()).on_done(|_| ());
        let ended = event_loop.all_tasks()[1].clone();
        event_loop.run_until_complete(yield_now()).unwrap();
        ended.cancel();
        event_loop.run_until_complete(yield_now()).unwrap();
        trace.assert::<&str>(&[]);
        event_loop.close().unwrap();

        trace.assert(&["dropped"]);
        let report = "the loop is closed with a task still pending: `forgotten`";
        let expected = debug.then_some(report);
        told.assert(expected.as_slice());
    }
}

// ---- Errors nobody sees --------------------------------------------------------------------------

#[test]
fn a_panic_nobody_can_observe_is_reported_once_with_name_and_place() {
    type Lose = fn(&EventLoop, Task<()>);
    let ways: [(&str, Lose); 4] = [
        ("dropped before the end", |event_loop, task| {
            drop(task);
            one_turn(event_loop);
        }),
        ("dropped after the end", |event_loop, task| {
            one_turn(event_loop);
            drop(task);
        }),
        (
            "its awaiter is dropped before the end",
            |event_loop, task| {
                let awaiter = event_loop.create_task(task);
                awaiter.cancel();
                one_turn(event_loop);
            },
        ),
        ("dropped in another task", |event_loop, task| {
            one_turn(event_loop);
            drop(event_loop.create_task(async move { drop(task) }));
            one_turn(event_loop);
        }),
    ];
    for (way, lose) in ways {
        let event_loop = real_loop();
        let trace = Trace::new();
        let log = trace.clone();
        event_loop.set_exception_handler(move |handle, context| {
            let place = context.place().unwrap();
            log.log(format!("{}:{}", place.file(), place.line()));
            log.log(context);
            log.log(context.task(handle).unwrap().is_finished());
        });
        let task = event_loop
            .task()
            .name("fragile")
            .create(async { panic!("unseen") });
        let line = line!() - 1;
        lose(&event_loop, task);
        one_turn(&event_loop);
        drop(event_loop);

        let place = format!("{}:{line}", file!());
        let reported = trace.take();
        assert_eq!(reported.len(), 3, "{way}: {reported:?}");
        assert_eq!(reported[0], place, "{way}");
        let begin = format!("panic in task, never observed `fragile`, created at {place}:");
        assert!(reported[1].starts_with(&begin), "{way}: {}", reported[1]);
        assert!(reported[1].ends_with(": unseen"), "{way}: {}", reported[1]);
        assert_eq!(reported[2], "true", "{way}");
    }
}

#[test]
fn a_task_that_holds_its_own_handle_is_observed_by_nobody() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    let seat = Rc::new(RefCell::new(None::<Task<()>>));
    let own = Rc::clone(&seat);
    let body = async move {
        let _own = own.borrow_mut().take();
        panic!("unseen");
    };
    seat.replace(Some(event_loop.task().name("selfish").create(body)));
    one_turn(&event_loop);
    one_turn(&event_loop);
    assert!(seat.borrow().is_none());
    drop(event_loop);
    told.assert(&["panic in task, never observed `selfish`: unseen"]);
}

#[test]
fn a_panic_somebody_has_observed_is_never_reported() {
    type Observe = fn(&EventLoop, Task<()>);
    let ways: [(&str, Observe); 4] = [
        ("by the run", |event_loop, task| {
            assert!(event_loop.run_until_complete(task).unwrap().is_err());
        }),
        ("by another task", |event_loop, task| {
            drop(event_loop.create_task(async { drop(task.await) }));
        }),
        ("by on_done", |_, task| task.on_done(drop)),
        ("by a shield", |event_loop, task| {
            drop(event_loop.create_task(async { drop(task.shield().await) }));
        }),
    ];
    for (way, observe) in ways {
        let event_loop = real_loop();
        let told = reports(&event_loop);
        observe(
            &event_loop,
            event_loop.create_task(async { panic!("seen") }),
        );
        for _ in 0..3 {
            one_turn(&event_loop);
        }
        drop(event_loop);
        assert_eq!(told.take(), [""; 0], "{way}");
    }
}

#[test]
fn an_error_of_a_reporting_task_is_reported_once_where_nobody_observes_it() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    let failing = |name: &'static str| {
        let builder = event_loop.task().name(name);
        builder.create_reporting(async { Err::<i32, _>("out of tea") })
    };
    drop(failing("dropped before"));
    let after = failing("dropped after");
    let observed = failing("observed");
    drop(event_loop.create_reporting(async { Ok::<_, String>(7) }));
    drop(event_loop.create_reporting(async {}));
    drop(event_loop.task().name("panics").create_reporting(async {
        if true {
            panic!("not an error");
        }
    }));
    drop(event_loop.create_task(async { Err::<i32, _>("not a reporting task") }));
    let cancelled = failing("cancelled");
    cancelled.cancel();
    drop(cancelled);
    let value = event_loop.run_until_complete(observed).unwrap().unwrap();
    assert_eq!(value, Err("out of tea"));
    told.assert(&[
        "error in task, never observed `dropped before`: out of tea",
        "panic in task, never observed `panics`: not an error",
    ]);
    drop(after);
    drop(event_loop);

    told.assert(&["error in task, never observed `dropped after`: out of tea"]);
}

#[test]
fn a_report_of_an_error_names_the_place_where_the_task_was_made() {
    let event_loop = real_loop();
    let places = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&places);
    event_loop.set_exception_handler(move |_, context| {
        log.borrow_mut().push(context.place().unwrap().line());
    });
    let builder = event_loop.task();
    let line = line!();
    drop(event_loop.create_reporting(async { Err::<(), _>("by the handle") }));
    drop(builder.create_reporting(async { Err::<(), _>("by the builder") }));
    one_turn(&event_loop);
    assert_eq!(places.take(), [line + 1, line + 2]);
}

#[test]
fn an_error_that_cannot_be_shown_is_reported_all_the_same() {
    struct Unspeakable;
    impl std::fmt::Display for Unspeakable {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("cannot be shown");
        }
    }

    let event_loop = real_loop();
    let names = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&names);
    event_loop.set_exception_handler(move |_, context| {
        log.borrow_mut()
            .push(context.task_name().map(str::to_owned));
    });
    let builder = event_loop.task().name("speechless");
    drop(builder.create_reporting(async { Err::<(), _>(Unspeakable) }));
    one_turn(&event_loop);
    assert_eq!(names.take(), [Some("speechless".to_owned())]);
}

#[test]
fn a_destructor_of_a_future_that_panics_is_reported_and_harms_nobody_else() {
    let (event_loop, _clock) = virtual_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let task = |name: &'static str, polls: fn() -> Poll<i32>| {
        event_loop
            .task()
            .name(name)
            .create(Holding(Bomb(name), polls))
    };
    let sibling = |name: &'static str| {
        let log = trace.clone();
        drop(event_loop.create_task(async move {
            log.log(format!("{name} begins"));
            yield_now().await;
            log.log(format!("{name} ends"));
        }));
    };
    let returns = task("returns", || Poll::Ready(7));
    sibling("one");
    let panics = task("panics", || panic!("in poll"));
    let unbegun = task("unbegun", || Poll::Pending);
    sibling("two");
    let waiting = task("waiting", || Poll::Pending);
    unbegun.cancel();
    one_turn(&event_loop);
    waiting.cancel();
    let detached = task("closed", || Poll::Pending);
    drop(detached);
    one_turn(&event_loop);

    trace.assert(&["one begins", "two begins", "one ends", "two ends"]);
    let told_of = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .map(|name| format!("panic in the destructor of task `{name}`: {name}"))
            .collect()
    };
    told.assert(&told_of(&["returns", "panics", "unbegun", "waiting"]));
    assert_eq!(outcome(&event_loop, returns), "7");
    assert_eq!(outcome(&event_loop, panics), "the task panicked: in poll");
    assert_eq!(outcome(&event_loop, unbegun), "the task was cancelled");
    assert_eq!(outcome(&event_loop, waiting), "the task was cancelled");
    drop(event_loop);
    told.assert(&told_of(&["closed"]));
}

#[test]
fn a_destructor_of_an_output_that_panics_is_reported_and_harms_nobody_else() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let task = |name: &'static str| {
        event_loop
            .task()
            .name(name)
            .create(async move { Bomb(name) })
    };
    drop(task("detached"));
    let late = task("dropped later");
    let cancels = event_loop.task().name("cancelled").create(async {
        current_task().unwrap().cancel();
        Bomb("cancelled")
    });
    let unseen = task("closed with the loop");
    drop(event_loop.create_task(async move { trace_it(&trace) }));
    one_turn(&event_loop);
    drop(late);
    drop(unseen);

    assert!(
        event_loop
            .run_until_complete(cancels)
            .unwrap()
            .err()
            .unwrap()
            .is_cancelled()
    );
    let expected = [
        "detached",
        "cancelled",
        "dropped later",
        "closed with the loop",
    ]
    .map(|name| format!("panic in the destructor of the output of task `{name}`: {name}"));
    told.assert(&expected);

    fn trace_it(trace: &Trace) {
        trace.log("the sibling runs");
        trace.assert(&["the sibling runs"]);
    }
}

#[test]
fn a_panic_in_a_task_leaves_the_others_running() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    drop(event_loop.create_task(async { panic!("in the middle") }));
    let log = trace.clone();
    drop(event_loop.create_task(async move { log.log("the next task") }));
    event_loop.call_soon(trace.logs("the next callback"));
    one_turn(&event_loop);
    trace.assert(&["the next task", "the next callback"]);
    told.assert(&["panic in task, never observed `Task-1`: in the middle"]);
}

#[test]
fn a_payload_comes_to_who_awaits_the_task() {
    let event_loop = real_loop();
    let task = event_loop.create_task(async { std::panic::panic_any(42_u8) });
    let error: Result<(), _> = event_loop.run_until_complete(task).unwrap();
    let Err(JoinError::Panicked(payload)) = error else {
        panic!("it did not panic");
    };
    assert_eq!(payload.message(), "a panic whose payload is not text");
    assert_eq!(
        payload.with(|value| value.downcast_ref::<u8>().copied()),
        Some(42)
    );
    let resumed = catch_unwind(AssertUnwindSafe(|| payload.resume()));
    let resumed: Box<dyn std::any::Any + Send> = resumed.err().unwrap();
    assert_eq!(*resumed.downcast::<u8>().unwrap(), 42);
}

#[test]
fn a_dropped_wait_for_the_request_keeps_no_waker() {
    let event_loop = real_loop();
    struct Silent;
    impl std::task::Wake for Silent {
        fn wake(self: std::sync::Arc<Self>) {}
    }
    let silent = std::sync::Arc::new(Silent);
    let waker = std::task::Waker::from(std::sync::Arc::clone(&silent));
    let task = event_loop.task().grace(SECOND).create(async move {
        for _ in 0..3 {
            let mut asked = cancelled();
            let mut cx = PollContext::from_waker(&waker);
            assert!(Pin::new(&mut asked).poll(&mut cx).is_pending());
        }
        drop(waker);
        pending::<()>().await;
    });
    one_turn(&event_loop);
    assert_eq!(std::sync::Arc::strong_count(&silent), 1);
    drop(task);
}

#[test]
fn a_task_may_end_others_and_settle_what_they_wait_for_in_its_destructor() {
    struct Ends(Option<Task<()>>, Option<Resolver<i32>>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.take().unwrap().cancel();
            self.1.take().unwrap().settle(7).unwrap();
        }
    }

    let event_loop = real_loop();
    let (resolver, promise) = event_loop.create_future();
    let other = event_loop.create_task(pending::<()>());
    let other_ref = other.to_ref();
    let ends = Ends(Some(other), Some(resolver));
    let task = event_loop.create_task(async move {
        let _ends = ends;
        pending::<()>().await;
    });
    let settled = event_loop.create_task(async move { promise.await.unwrap() });
    one_turn(&event_loop);
    task.cancel();
    assert_eq!(outcome(&event_loop, settled), "7");
    assert!(other_ref.is_finished() && task.is_finished());
}

#[test]
fn a_thousand_tasks_end_and_leave_nothing() {
    let event_loop = real_loop();
    let count = Rc::new(Cell::new(0));
    let tasks: Vec<_> = (0..1_000)
        .map(|number| {
            let count = Rc::clone(&count);
            event_loop.create_task(async move {
                for _ in 0..number % 4 {
                    yield_now().await;
                }
                count.set(count.get() + number);
            })
        })
        .collect();
    let ended = event_loop
        .run_until_complete(futures::future::join_all(tasks))
        .unwrap();
    assert!(ended.iter().all(Result::is_ok));
    assert_eq!(count.get(), 499_500);
    assert_eq!(Rc::strong_count(&count), 1);
    assert!(event_loop.all_tasks().is_empty());
}
