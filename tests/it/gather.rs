//! Many tasks at once: gathered, waited for, as they come; and one for a limited time.

use std::cell::Cell;
use std::future::{Future, pending, poll_fn, ready};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};
use std::time::Duration;

use coloop::{
    EventLoop, JoinError, Task, Until, as_completed, current, gather, gather_all, sleep, timeout,
    timeout_at, until_cancelled, wait, wait_for, yield_now,
};
use futures::{Stream, StreamExt};

use crate::errors::reports;
use crate::tasks::{OnDrop, in_words, outcome};
use crate::verbs::{Trace, one_turn, real_loop, virtual_loop};

const SECOND: Duration = Duration::from_secs(1);

/// What a child of a gathering fails with.
#[derive(Clone, Debug, PartialEq)]
enum Failure {
    Own(&'static str),
    Join(String),
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        Self::Join(error.to_string())
    }
}

/// Sleeps for some seconds, says so, and gives its name or fails with it.
async fn child(
    trace: Trace,
    name: &'static str,
    seconds: u32,
    fails: bool,
) -> Result<&'static str, Failure> {
    let _held = OnDrop::new(&trace, name);
    sleep(seconds * SECOND).await;
    trace.log(format!("{name} ends"));
    if fails {
        Err(Failure::Own(name))
    } else {
        Ok(name)
    }
}

/// A task that ends after some seconds.
fn nap(event_loop: &EventLoop, seconds: u32) -> Task<u32> {
    event_loop.create_task(async move {
        sleep(seconds * SECOND).await;
        seconds
    })
}

/// Whether tasks have ended, by a letter each.
fn states<T>(tasks: &[Task<T>]) -> String {
    let letter = |task: &Task<T>| if task.is_finished() { 'e' } else { 'p' };
    tasks.iter().map(letter).collect()
}

// ---- gather ------------------------------------------------------------------------------------

#[test]
fn results_come_in_the_order_of_the_futures_and_not_of_their_ends() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let values = event_loop.run_until_complete(async move {
        let times = [("slow", 3), ("quick", 1), ("middling", 2)];
        gather(times.map(|(name, seconds)| child(log.clone(), name, seconds, false))).await
    });
    assert_eq!(values.unwrap(), Ok(vec!["slow", "quick", "middling"]));
    trace.assert(&[
        "quick ends",
        "quick",
        "middling ends",
        "middling",
        "slow ends",
        "slow",
    ]);
    assert_eq!(clock.elapsed(), 3 * SECOND);
}

#[test]
fn c_463_the_first_error_comes_at_once_and_the_others_go_on_in_silence() {
    let (event_loop, clock) = virtual_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let log = trace.clone();
    let main = event_loop.create_task(async move {
        let panics = current().create_task(async {
            sleep(4 * SECOND).await;
            panic!("late")
        });
        let panics = async move { panics.await.map_err(Failure::from) };
        let children: [coloop::LocalBoxFuture<'static, _>; 4] = [
            Box::pin(child(log.clone(), "long", 2, false)),
            Box::pin(child(log.clone(), "fails", 1, true)),
            Box::pin(child(log.clone(), "fails later", 3, true)),
            Box::pin(panics),
        ];
        let result = gather(children).await;
        log.log(format!("{result:?}"));
        log.log(format!("{} tasks", current().all_tasks().len()));
        sleep(5 * SECOND).await;
        "done"
    });
    assert_eq!(outcome(&event_loop, main), "done");
    trace.assert(&[
        "fails ends",
        "fails",
        "Err(Own(\"fails\"))",
        "6 tasks",
        "long ends",
        "long",
        "fails later ends",
        "fails later",
    ]);
    told.assert::<&str>(&[]);
    assert_eq!(clock.elapsed(), 6 * SECOND);
}

#[test]
fn c_463_a_late_panic_of_a_task_that_was_given_is_silent_too() {
    let (event_loop, _clock) = virtual_loop();
    let told = reports(&event_loop);
    let result = event_loop.run_until_complete(async {
        let first: Task<()> = current().create_task(async { panic!("first") });
        let second: Task<()> = current().create_task(async {
            sleep(SECOND).await;
            panic!("second")
        });
        let result = gather([first, second]).await;
        sleep(2 * SECOND).await;
        result
    });
    assert!(result.unwrap().unwrap_err().is_panicked());
    told.assert::<&str>(&[]);
}

#[test]
fn c_464_all_results_stay_in_their_places() {
    let (event_loop, _clock) = virtual_loop();
    let trace = Trace::new();
    let results = event_loop.run_until_complete(async {
        let cancelled = current().create_task(pending::<()>());
        cancelled.cancel();
        let cancelled = async move { cancelled.await.map(|()| "never").map_err(Failure::from) };
        let children: [coloop::LocalBoxFuture<'static, _>; 4] = [
            Box::pin(child(trace.clone(), "fails", 2, true)),
            Box::pin(child(trace.clone(), "good", 1, false)),
            Box::pin(cancelled),
            Box::pin(async { panic!("lost") }),
        ];
        gather_all(children).await
    });
    let joined = |words: &str| Err(Failure::Join(words.to_owned()));
    assert_eq!(
        results.unwrap(),
        [
            Err(Failure::Own("fails")),
            Ok("good"),
            joined("the task was cancelled"),
            joined("the task panicked: lost"),
        ]
    );
}

#[test]
fn c_465_a_child_that_is_cancelled_fails_the_gathering_which_is_not_cancelled() {
    let event_loop = real_loop();
    let task = event_loop.create_task(async {
        let child = current().create_task(pending::<()>());
        let canceller = child.to_ref();
        let gathering = gather([child, current().create_task(pending())]);
        canceller.cancel_with("rain");
        let error = gathering.await.unwrap_err();
        yield_now().await;
        format!(
            "{error}, requests: {}",
            coloop::current_task().unwrap().cancelling()
        )
    });
    assert_eq!(
        outcome(&event_loop, task),
        "the task was cancelled: rain, requests: 0"
    );
}

#[test]
fn c_466_dropping_a_gathering_at_any_poll_cancels_what_has_not_ended() {
    for all in [false, true] {
        for turns in 1..5 {
            let event_loop = real_loop();
            let trace = Trace::new();
            let log = trace.clone();
            let outer = event_loop.create_task(async move {
                let children = ["a", "b"].map(|name| {
                    let held = OnDrop::new(&log, name);
                    async move {
                        let _held = held;
                        for _ in 0..if name == "a" { 1 } else { 100 } {
                            yield_now().await;
                        }
                        Ok::<_, JoinError>(name)
                    }
                });
                if all {
                    drop(gather_all(children).await);
                } else {
                    drop(gather(children).await);
                }
            });
            for _ in 0..turns {
                one_turn(&event_loop);
            }
            outer.cancel();
            for _ in 0..3 {
                one_turn(&event_loop);
            }
            assert_eq!(event_loop.all_tasks(), [], "after {turns} turns");
            trace.assert(&["a", "b"]);
        }
    }
}

#[test]
fn c_466_children_that_have_not_begun_never_begin() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let begins = event_loop.run_until_complete(async move {
        let begin = move || {
            log.log("begins");
            ready(Ok::<_, JoinError>(()))
        };
        drop(gather([async move { begin().await }]));
        yield_now().await;
        current().all_tasks().len()
    });
    assert_eq!(begins.unwrap(), 1);
    trace.assert::<&str>(&[]);
}

#[test]
fn a_task_is_taken_as_it_is_and_a_future_becomes_one() {
    let event_loop = real_loop();
    event_loop
        .run_until_complete(async {
            let tasks = [1, 2].map(|n| current().create_task(async move { n }));
            let gathering = gather(tasks);
            assert_eq!(current().all_tasks().len(), 3);
            assert_eq!(gathering.await.unwrap(), [1, 2]);

            let made = gather([ready(Ok::<_, JoinError>(3)), ready(Ok(4))]);
            let here = current().all_tasks()[1].place().unwrap();
            assert!(here.file().ends_with("gather.rs"));
            assert_eq!(current().all_tasks().len(), 3);
            assert_eq!(made.await.unwrap(), [3, 4]);
        })
        .unwrap();
}

#[test]
fn nothing_to_gather_is_complete_at_once() {
    let event_loop = real_loop();
    event_loop
        .run_until_complete(async {
            let mut cx = PollContext::from_waker(Waker::noop());
            let mut none = gather(Vec::<Task<()>>::new());
            assert!(
                matches!(Pin::new(&mut none).poll(&mut cx), Poll::Ready(Ok(v)) if v.is_empty())
            );
            // What is over stays over.
            assert!(matches!(
                Pin::new(&mut none).poll(&mut cx),
                Poll::Ready(Err(_))
            ));
            let mut none = gather_all(Vec::<Task<()>>::new());
            assert!(matches!(Pin::new(&mut none).poll(&mut cx), Poll::Ready(v) if v.is_empty()));
            let mut none = as_completed(Vec::<Task<()>>::new());
            assert!(matches!(
                Pin::new(&mut none).poll_next(&mut cx),
                Poll::Ready(None)
            ));
        })
        .unwrap();
}

#[test]
fn a_gathering_is_polled_as_often_as_it_is_woken() {
    let event_loop = real_loop();
    let polls = Rc::new(Cell::new(0));
    let counted = Rc::clone(&polls);
    let sum = event_loop.run_until_complete(async move {
        let mut gathering = gather((0..10_000_u64).map(|n| async move {
            yield_now().await;
            Ok::<_, JoinError>(n)
        }));
        poll_fn(move |cx| {
            counted.set(counted.get() + 1);
            Pin::new(&mut gathering).poll(cx)
        })
        .await
    });
    assert_eq!(sum.unwrap().unwrap().iter().sum::<u64>(), 49_995_000);
    assert!(polls.get() < 200, "{} polls", polls.get());
}

// ---- shield ------------------------------------------------------------------------------------

#[test]
fn c_469_a_shielded_child_goes_on_when_its_gathering_is_dropped() {
    let (event_loop, clock) = virtual_loop();
    let inner = nap(&event_loop, 2);
    let watched = inner.to_ref();
    let shielded = inner.shield();
    let late = event_loop.run_until_complete(timeout(SECOND, async { gather([shielded]).await }));
    assert!(late.unwrap().is_err());
    assert!(!watched.is_finished());
    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    assert!(watched.is_finished());
    assert_eq!(clock.elapsed(), 3 * SECOND);
}

/// However often it is shielded: who is left without anybody to look at it is reported once.
#[test]
fn c_470_what_fails_behind_a_shield_that_was_cancelled_is_reported_once() {
    let (event_loop, _clock) = virtual_loop();
    let reported = reports(&event_loop);
    let inner = event_loop.task().name("inner").create(async {
        sleep(2 * SECOND).await;
        panic!("too late for anybody");
    });
    let shielded: Task<()> = inner.shield().into_task();
    let outer = event_loop.create_task(shielded.shield());
    event_loop.call_later(SECOND, {
        let outer = outer.to_ref();
        move || assert!(outer.cancel())
    });
    let ended = event_loop.run_until_complete(outer).unwrap();
    assert!(ended.unwrap_err().is_cancelled());
    reported.assert::<&str>(&[]);
    event_loop.run_until_complete(sleep(5 * SECOND)).unwrap();
    reported.assert(&["panic in task, never observed `inner`: too late for anybody"]);
}

// ---- wait --------------------------------------------------------------------------------------

#[test]
fn c_471_a_limit_ends_the_waiting_and_nothing_else() {
    let (event_loop, clock) = virtual_loop();
    let tasks = [3, 1, 2].map(|seconds| nap(&event_loop, seconds));
    let waiting = wait(tasks, Until::All).limit(2 * SECOND + SECOND / 2);
    let (done, left) = event_loop.run_until_complete(waiting).unwrap();
    assert_eq!(
        (states(&done), states(&left)),
        ("ee".to_owned(), "p".to_owned())
    );
    let mut values = Vec::new();
    for task in done.into_iter().chain(left) {
        values.push(outcome(&event_loop, task));
    }
    assert_eq!(values, ["1", "2", "3"]);
    assert_eq!((clock.elapsed(), event_loop.deadline()), (3 * SECOND, None));
}

#[test]
fn the_first_that_is_complete_ends_the_waiting() {
    let (event_loop, clock) = virtual_loop();
    let tasks = [3, 1, 2, 1].map(|seconds| nap(&event_loop, seconds));
    let waiting = wait(tasks, Until::FirstCompleted);
    let (done, left) = event_loop.run_until_complete(waiting).unwrap();
    // Both that ended in that turn are there, in the order in which they were given.
    assert_eq!(
        (states(&done), states(&left)),
        ("ee".to_owned(), "pp".to_owned())
    );
    assert_eq!(clock.elapsed(), SECOND);
}

#[test]
fn c_473_the_first_error_ends_the_waiting_and_a_cancelled_task_is_none() {
    let (event_loop, clock) = virtual_loop();
    let told = reports(&event_loop);
    let cancelled = nap(&event_loop, 60);
    cancelled.cancel();
    let panics = event_loop.create_task(async {
        sleep(2 * SECOND).await;
        panic!("lost")
    });
    let tasks = [cancelled, nap(&event_loop, 1), panics, nap(&event_loop, 3)];
    let waiting = wait(tasks, Until::FirstError);
    let (done, left) = event_loop.run_until_complete(waiting).unwrap();
    assert_eq!(
        (states(&done), states(&left)),
        ("eee".to_owned(), "p".to_owned())
    );
    assert_eq!(clock.elapsed(), 2 * SECOND);
    // To have seen that it failed is not to have observed its error.
    told.assert::<&str>(&[]);
    drop(done);
    one_turn(&event_loop);
    assert_eq!(told.len(), 1);
}

#[test]
fn c_473_errors_that_are_values_count_where_that_is_said() {
    for counting in [false, true] {
        let (event_loop, clock) = virtual_loop();
        let tasks = [1, 2, 3].map(|seconds| {
            event_loop.create_task(async move {
                sleep(seconds * SECOND).await;
                if seconds == 2 {
                    Err(seconds)
                } else {
                    Ok(seconds)
                }
            })
        });
        let mut waiting = wait(tasks, Until::FirstError);
        if counting {
            waiting = waiting.counting_errors();
        }
        event_loop.run_until_complete(waiting).unwrap();
        assert_eq!(clock.elapsed(), if counting { 2 } else { 3 } * SECOND);
    }
}

#[test]
fn c_474_whoever_stops_waiting_ends_no_task_and_loses_no_error() {
    let (event_loop, _clock) = virtual_loop();
    let told = reports(&event_loop);
    let panics: Task<u32> = event_loop.create_task(async { panic!("lost") });
    let long = nap(&event_loop, 2);
    let watched = long.to_ref();
    let limited = timeout(SECOND, wait([panics, long], Until::All));
    assert!(event_loop.run_until_complete(limited).unwrap().is_err());
    assert!(!watched.is_finished());
    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    assert!(watched.is_finished());
    assert_eq!(watched.cancelling(), 0);
    assert_eq!(told.len(), 1);
}

// c_475: what `until` can be, and that tasks are waited for, is the types' affair.
#[test]
fn c_475_no_task_to_wait_for_is_complete_at_once() {
    let event_loop = real_loop();
    for until in [Until::FirstCompleted, Until::FirstError, Until::All] {
        let none = wait(Vec::<Task<()>>::new(), until);
        let (done, left) = event_loop.run_until_complete(none).unwrap();
        assert_eq!((done.len(), left.len()), (0, 0));
    }
}

#[test]
fn what_was_waited_for_tells_its_done_callback() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let task = event_loop.create_task(async { 7 });
    let (done, _) = event_loop
        .run_until_complete(wait([task], Until::All))
        .unwrap();
    for task in done {
        let log = trace.clone();
        task.on_done(move |result| log.log(in_words(result)));
    }
    one_turn(&event_loop);
    trace.assert(&["7"]);
}

// ---- wait_for ----------------------------------------------------------------------------------

#[test]
fn c_476_a_task_that_is_late_is_cancelled_and_waited_for() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let task = event_loop.task().grace(60 * SECOND).create(async move {
        let asked = until_cancelled(pending::<()>()).await;
        log.log("asked");
        sleep(5 * SECOND).await;
        log.log("cleaned up");
        coloop::current_task().unwrap().cancel();
        // It does not come to a value.
        sleep(600 * SECOND).await;
        drop(asked);
    });
    let result = event_loop.run_until_complete(wait_for(SECOND, task));
    trace.log(format!("{:?}", result.unwrap().is_err()));
    trace.assert(&["asked", "cleaned up", "true"]);
    assert_eq!(clock.elapsed(), 61 * SECOND);
}

#[test]
fn c_478_a_value_within_the_grace_wins() {
    let (event_loop, _clock) = virtual_loop();
    let task = event_loop.task().grace(60 * SECOND).create(async {
        until_cancelled(pending::<()>()).await.ok();
        sleep(SECOND).await;
        "saved"
    });
    let result = event_loop.run_until_complete(wait_for(SECOND, task));
    assert_eq!(in_words(result.unwrap().unwrap()), "saved");
}

#[test]
fn c_479_a_panic_during_the_clean_up_is_told() {
    let (event_loop, _clock) = virtual_loop();
    let task: Task<()> = event_loop.task().grace(60 * SECOND).create(async {
        until_cancelled(pending::<()>()).await.ok();
        panic!("spilt")
    });
    let result = event_loop.run_until_complete(wait_for(SECOND, task));
    assert!(result.unwrap().unwrap().unwrap_err().is_panicked());
}

#[test]
fn c_480_whoever_stops_waiting_for_a_task_cancels_it() {
    for turns in 0..3 {
        let event_loop = real_loop();
        let inner = event_loop.create_task(pending::<()>());
        let watched = inner.to_ref();
        let outer = event_loop.create_task(wait_for(SECOND, inner));
        for _ in 0..turns {
            one_turn(&event_loop);
        }
        outer.cancel();
        one_turn(&event_loop);
        one_turn(&event_loop);
        assert!(watched.is_finished(), "after {turns} turns");
    }
}

#[test]
fn c_480_the_request_wins_over_a_task_that_ended_in_that_turn() {
    let event_loop = real_loop();
    let (resolver, promise) = event_loop.create_future();
    let inner = event_loop.create_task(promise);
    let outer = event_loop.create_task(wait_for(SECOND, inner));
    one_turn(&event_loop);
    resolver.settle(7).unwrap();
    outer.cancel();
    assert!(
        event_loop
            .run_until_complete(outer)
            .unwrap()
            .unwrap_err()
            .is_cancelled()
    );
}

#[test]
fn c_481_a_shielded_task_that_is_late_goes_on() {
    let (event_loop, _clock) = virtual_loop();
    let task = nap(&event_loop, 2);
    let watched = task.to_ref();
    let late = event_loop.run_until_complete(timeout(SECOND, task.shield()));
    assert!(late.unwrap().is_err() && !watched.is_finished());
}

#[test]
fn a_limit_of_nothing_takes_what_is_there_and_ends_the_rest() {
    let event_loop = real_loop();
    let ready = event_loop.create_task(async { 7 });
    one_turn(&event_loop);
    let waiting = wait_for(Duration::ZERO, ready);
    assert_eq!(
        in_words(event_loop.run_until_complete(waiting).unwrap().unwrap()),
        "7"
    );
    let never = event_loop.create_task(pending::<()>());
    let waiting = wait_for(Duration::ZERO, never);
    assert!(event_loop.run_until_complete(waiting).unwrap().is_err());
}

#[test]
fn a_task_that_another_has_cancelled_is_not_late() {
    let event_loop = real_loop();
    let task = event_loop.create_task(pending::<()>());
    task.cancel();
    let result = event_loop.run_until_complete(wait_for(SECOND, task));
    assert_eq!(
        in_words(result.unwrap().unwrap().map(|()| 0)),
        "the task was cancelled"
    );
}

// ---- as_completed ------------------------------------------------------------------------------

#[test]
fn c_483_what_is_complete_comes_first_and_then_the_deadline() {
    let (event_loop, clock) = virtual_loop();
    let tasks = [3, 1, 2].map(|seconds| nap(&event_loop, seconds));
    let watched = tasks[0].to_ref();
    let came = event_loop.run_until_complete(async {
        let deadline = current().time() + 2 * SECOND + SECOND / 2;
        let mut results = pin!(as_completed(tasks));
        let mut came = Vec::new();
        while let Ok(Some(result)) = timeout_at(deadline, results.next()).await {
            came.push(result.unwrap());
        }
        assert_eq!(results.size_hint(), (1, Some(1)));
        came
    });
    assert_eq!(came.unwrap(), [1, 2]);
    // The stream is gone, the task goes on.
    assert!(!watched.is_finished());
    event_loop.run_until_complete(sleep(SECOND)).unwrap();
    assert!(watched.is_finished());
    assert_eq!(clock.elapsed(), 3 * SECOND + SECOND / 2);
}

// ---- timeout_at --------------------------------------------------------------------------------

#[test]
fn a_deadline_is_a_point_in_time_and_can_be_moved() {
    let (event_loop, clock) = virtual_loop();
    let start = event_loop.time();
    event_loop
        .run_until_complete(async {
            let mut limited = timeout_at(start + SECOND, pending::<()>());
            let handle = limited.handle();
            assert_eq!(handle.when(), Some(start + SECOND));
            sleep(SECOND / 2).await;
            assert!(limited.await.is_err() && handle.is_expired());
            assert_eq!(current().time(), start + SECOND);

            // It has passed already: the future is polled, and its output wins.
            assert!(timeout_at(start, pending::<()>()).await.is_err());
            assert_eq!(timeout_at(start, ready(7)).await, Ok(7));

            let mut limited = timeout_at(start + 2 * SECOND, pending::<()>());
            let handle = limited.handle();
            current().call_soon(move || handle.reschedule(Some(start + 3 * SECOND)).unwrap());
            assert!(limited.await.is_err());
        })
        .unwrap();
    assert_eq!((clock.elapsed(), event_loop.deadline()), (3 * SECOND, None));
}
