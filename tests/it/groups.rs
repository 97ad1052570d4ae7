//! Groups of tasks: what ends them, and what comes of their errors.

use std::future::{pending, ready};
use std::io;
use std::time::Duration;

use coloop::{
    Cancelled, EventLoop, JoinError, current, current_task, sleep, task_group, timeout,
    until_cancelled, yield_now,
};

use crate::errors::reports;
use crate::tasks::{OnDrop, outcome};
use crate::verbs::{Trace, one_turn, real_loop, virtual_loop};

const SECOND: Duration = Duration::from_secs(1);

/// The error of a task, in words.
#[derive(Debug, PartialEq)]
struct Words(String);

impl From<JoinError> for Words {
    fn from(error: JoinError) -> Self {
        Self(error.to_string())
    }
}

fn words(text: &str) -> Words {
    Words(text.to_owned())
}

/// Runs a group to its end, and gives its errors.
#[track_caller]
fn errors<R>(
    event_loop: &EventLoop,
    group: impl Future<Output = Result<R, coloop::GroupError<Words>>>,
) -> Vec<Words> {
    match event_loop.run_until_complete(group).unwrap() {
        Ok(_) => panic!("the group has not failed"),
        Err(error) => error.into_errors(),
    }
}

#[test]
fn a_group_has_ended_when_its_body_and_all_its_tasks_have() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let mut borrowed = 0;
    let value = event_loop.run_until_complete(task_group(async |group| {
        for seconds in [2, 1] {
            let log = trace.clone();
            drop(group.create_task(async move {
                sleep(seconds * SECOND).await;
                log.log(format!("{seconds} s"));
                Ok::<_, Words>(())
            }));
        }
        trace.log("body");
        borrowed += 1;
        Ok("value")
    }));
    assert_eq!(value.unwrap().unwrap(), "value");
    trace.assert(&["body", "1 s", "2 s"]);
    assert_eq!((borrowed, clock.elapsed()), (1, 2 * SECOND));
}

#[test]
fn c_498_the_first_failure_ends_the_rest_which_is_waited_for() {
    let (event_loop, clock) = virtual_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let failed = errors(
        &event_loop,
        task_group(async |group| {
            let _body = OnDrop::new(&trace, "body is dropped");
            let held = OnDrop::new(&trace, "plain sibling is dropped");
            drop(group.create_task(async move {
                let _held = held;
                pending::<Result<(), _>>().await
            }));
            drop(group.create_task(async {
                sleep(SECOND).await;
                Err::<(), _>(words("no tea"))
            }));
            let log = trace.clone();
            let graceful = current().task().grace(60 * SECOND).create(async move {
                until_cancelled(pending::<()>()).await.ok();
                sleep(SECOND).await;
                log.log("not of the group");
            });
            drop(graceful);
            drop(group.create_task(async { panic!("spilt") as Result<(), Words> }));
            pending::<Result<(), Words>>().await
        }),
    );
    // The panic came a second before the error, which therefore never came.
    assert_eq!(failed, [words("the task panicked: spilt")]);
    trace.assert(&["body is dropped", "plain sibling is dropped"]);
    told.assert::<&str>(&[]);
    assert_eq!(clock.elapsed(), Duration::ZERO);
}

#[test]
fn c_498_errors_of_one_turn_are_all_there_in_the_order_in_which_they_came() {
    let event_loop = real_loop();
    let failed = errors(
        &event_loop,
        task_group(async |group| {
            for name in ["first", "second", "third"] {
                drop(group.create_task(async move { Err::<(), _>(words(name)) }));
            }
            pending::<Result<(), Words>>().await
        }),
    );
    assert_eq!(failed, ["first", "second", "third"].map(words));
}

#[test]
fn c_499_a_task_that_is_cancelled_has_not_failed() {
    let event_loop = real_loop();
    let value = event_loop.run_until_complete(task_group(async |group| {
        let never = group.create_task(async { pending::<Result<(), Words>>().await });
        yield_now().await;
        let tasks = current().all_tasks();
        assert!(tasks[1].cancel());
        Ok(never.await)
    }));
    assert_eq!(value.unwrap().unwrap(), Err(Cancelled::new()));
}

#[test]
fn c_500_a_body_that_fails_ends_the_tasks_and_those_that_have_not_begun_never_begin() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let failed = errors(
        &event_loop,
        task_group(async |group| {
            let log = trace.clone();
            drop(group.create_task(async move {
                log.log("begun");
                Ok::<_, Words>(())
            }));
            Err::<(), _>(words("body"))
        }),
    );
    assert_eq!(failed, [words("body")]);
    trace.assert::<&str>(&[]);
    assert_eq!(event_loop.all_tasks(), []);
}

#[test]
fn c_501_a_cancellation_from_outside_wins_at_every_poll() {
    for turns in 1..5 {
        let event_loop = real_loop();
        let trace = Trace::new();
        let log = trace.clone();
        let outer = event_loop.create_task(task_group(async move |group| {
            let _body = OnDrop::new(&log, "body");
            for (name, fails) in [("a", false), ("b", true)] {
                let held = OnDrop::new(&log, name);
                drop(group.create_task(async move {
                    let _held = held;
                    for _ in 0..if fails { 3 } else { 100 } {
                        yield_now().await;
                    }
                    Err::<(), _>(words(name))
                }));
            }
            pending::<Result<(), Words>>().await
        }));
        for _ in 0..turns {
            one_turn(&event_loop);
        }
        outer.cancel();
        let ended = event_loop.run_until_complete(outer).unwrap();
        assert!(ended.unwrap_err().is_cancelled(), "after {turns} turns");
        one_turn(&event_loop);
        assert_eq!(event_loop.all_tasks(), []);
        let mut dropped = trace.take();
        dropped.sort();
        assert_eq!(dropped, ["a", "b", "body"], "after {turns} turns");
    }
}

#[test]
fn c_504_a_group_that_fails_leaves_the_count_of_requests_alone() {
    let event_loop = real_loop();
    let task = event_loop.create_task(async {
        let group = task_group(async |group| {
            drop(group.create_task(async { Err::<(), _>(words("no tea")) }));
            pending::<Result<(), Words>>().await
        });
        let failed = group.await.unwrap_err();
        yield_now().await;
        let requests = current_task().unwrap().cancelling();
        format!("{:?}, requests: {requests}", failed.errors())
    });
    assert_eq!(
        outcome(&event_loop, task),
        "[Words(\"no tea\")], requests: 0"
    );
}

#[test]
fn c_505_nested_groups_that_fail_in_one_turn_fail_each_for_itself() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let failed = errors(
        &event_loop,
        task_group(async |outer| {
            drop(outer.create_task(async { Err::<(), _>(words("outer")) }));
            let inner = task_group(async |inner| {
                drop(inner.create_task(async { Err::<(), _>(words("inner")) }));
                pending::<Result<(), Words>>().await
            });
            trace.log(format!("{:?}", inner.await.unwrap_err().into_errors()));
            pending::<Result<(), Words>>().await
        }),
    );
    assert_eq!(failed, [words("outer")]);
    trace.assert(&["[Words(\"inner\")]"]);
}

#[test]
fn c_506_a_group_that_is_over_makes_no_task() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop
        .run_until_complete(async {
            let kept = task_group(async |group| Ok::<_, Words>(group))
                .await
                .unwrap();
            let held = OnDrop::new(&trace, "the future is dropped");
            let refused = kept.create_task(async move {
                let _held = held;
                Ok(())
            });
            trace.assert(&["the future is dropped"]);
            assert_eq!(refused.await, Err(Cancelled::new()));
            assert_eq!(current().all_tasks().len(), 1);
        })
        .unwrap();
}

#[test]
fn a_task_of_a_group_can_make_others_after_the_body() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let ended = event_loop.run_until_complete(task_group(async |group| {
        let (log, again) = (trace.clone(), group.clone());
        drop(group.create_task(async move {
            sleep(SECOND).await;
            drop(again.create_task(async move {
                sleep(SECOND).await;
                log.log("the last");
                Ok(())
            }));
            Ok::<_, Words>(())
        }));
        Ok(())
    }));
    assert!(ended.unwrap().is_ok());
    trace.assert(&["the last"]);
    assert_eq!(clock.elapsed(), 2 * SECOND);
}

#[test]
fn c_496_a_timeout_around_a_group_ends_it_and_lets_its_errors_through() {
    let (event_loop, _clock) = virtual_loop();
    event_loop
        .run_until_complete(async {
            let late = timeout(
                SECOND,
                task_group(async |group| {
                    drop(group.create_task(async { pending::<Result<(), Words>>().await }));
                    Ok(())
                }),
            );
            assert!(late.await.is_err());
            yield_now().await;
            assert_eq!(current().all_tasks().len(), 1);

            let fails = timeout(SECOND, task_group(async |_| Err::<(), _>(words("body"))));
            assert_eq!(fails.await.unwrap().unwrap_err().errors(), [words("body")]);
        })
        .unwrap();
}

#[test]
fn the_errors_of_a_group_say_themselves() {
    let event_loop = real_loop();
    let failed = event_loop.run_until_complete(task_group(async |group| {
        drop(group.create_task(ready(Err::<(), _>(io::Error::other("no tea")))));
        drop(group.create_task(ready(Err::<(), _>(io::Error::other("no milk")))));
        pending::<io::Result<()>>().await
    }));
    let error = failed.unwrap().unwrap_err();
    assert_eq!(error.errors().len(), 2);
    let error = io::Error::from(error);
    assert_eq!(error.to_string(), "the group has failed: no tea; no milk");
}
