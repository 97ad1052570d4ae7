//! The way into a loop from other threads: calls, tasks, stops and holds.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, ready};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use coloop::{
    ContextVar, EventLoop, Hold, JoinError, RemoteHandle, RemoteTask, TaskBuilder, TaskFactory,
    sleep, yield_now,
};
use futures::channel::oneshot;

use crate::order::{Drops, SECOND, SharedTrace, elsewhere, loop_that_sleeps, reports};
use crate::verbs::{builder, one_turn, real_loop, virtual_loop};

/// Runs a loop here while `f` has its way in, in another thread; the loop stops when `f` is done.
fn while_running<R: Send + 'static>(
    event_loop: &EventLoop,
    f: impl FnOnce(&RemoteHandle) -> R + Send,
) -> R {
    let remote = event_loop.remote();
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            /// Stops the loop also when `f` fails.
            struct Stop(RemoteHandle);
            impl Drop for Stop {
                fn drop(&mut self) {
                    self.0.stop();
                }
            }
            let stop = Stop(remote);
            f(&stop.0)
        });
        event_loop.run_forever().unwrap();
        thread.join().unwrap()
    })
}

/// The simplest executor: polls, and parks its thread until it is woken.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[track_caller]
fn assert_cancelled<T>(result: Result<T, JoinError>) {
    assert!(matches!(result, Err(JoinError::Cancelled(_))));
}

#[track_caller]
fn panic_of<T>(result: Result<T, JoinError>) -> String {
    match result {
        Err(JoinError::Panicked(payload)) => payload.message().to_owned(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("a value"),
    }
}

// ---- Calls ---------------------------------------------------------------------------------------

#[test]
fn calls_of_one_thread_run_in_the_order_in_which_they_were_posted() {
    let event_loop = real_loop();
    let trace = SharedTrace::default();
    while_running(&event_loop, |remote| {
        for number in 0..10_000 {
            remote.call_soon(trace.logs(number)).unwrap();
        }
    });
    one_turn(&event_loop);
    trace.assert(
        &(0..10_000)
            .map(|number| number.to_string())
            .collect::<Vec<_>>(),
    );
}

#[test]
fn calls_of_several_threads_run_once_each_and_in_the_order_of_each_thread() {
    const THREADS: usize = 4;
    let event_loop = real_loop();
    let traces: [SharedTrace; THREADS] = Default::default();
    while_running(&event_loop, |remote| {
        thread::scope(|scope| {
            for trace in &traces {
                scope.spawn(move || {
                    for number in 0..2_000 {
                        remote.call_soon(trace.logs(number)).unwrap();
                    }
                });
            }
        });
    });
    one_turn(&event_loop);
    for trace in traces {
        trace.assert(
            &(0..2_000)
                .map(|number| number.to_string())
                .collect::<Vec<_>>(),
        );
    }
}

#[test]
fn a_posted_callback_runs_in_an_empty_context() {
    static VARIABLE: ContextVar<u32> = ContextVar::new("variable");
    let (event_loop, _) = virtual_loop();
    let trace = SharedTrace::default();
    let seen = || {
        let log = trace.clone();
        move || log.log(format!("{:?}", VARIABLE.get()))
    };
    let token = VARIABLE.set(7);
    event_loop.call_soon(seen());
    event_loop.remote().call_soon(seen()).unwrap();
    VARIABLE.reset(token).unwrap();
    one_turn(&event_loop);
    trace.assert(&["Some(7)", "None"]);
}

#[test]
fn a_wake_and_a_call_of_one_thread_keep_their_order() {
    let trace = SharedTrace::default();
    let seat = Rc::new(RefCell::new(None::<oneshot::Sender<()>>));
    let (log, sender) = (trace.clone(), Rc::clone(&seat));
    let (event_loop, _) = loop_that_sleeps(builder(), move |remote| {
        let sender = sender.take().unwrap();
        elsewhere(|| {
            sender.send(()).unwrap();
            remote.call_soon(log.logs("called")).unwrap();
            remote.stop();
        });
    });
    let (sender, receiver) = oneshot::channel();
    seat.replace(Some(sender));
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        receiver.await.unwrap();
        log.log("woken");
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["woken", "called"]);
    assert!(task.is_finished());
}

#[test]
fn a_posted_closure_is_dropped_exactly_once() {
    let drops = Drops::default();
    let give = || {
        let token = drops.token();
        move || drop(token)
    };
    let (event_loop, _) = virtual_loop();
    let remote = event_loop.remote();

    let ran = remote.call_soon(give()).unwrap();
    one_turn(&event_loop);
    assert_eq!(drops.count(), 1, "run");
    let cancelled = elsewhere(|| remote.call_soon(give()).unwrap());
    assert!(elsewhere(|| cancelled.cancel()));
    assert_eq!(drops.count(), 2, "cancelled");
    one_turn(&event_loop);
    let closed = [
        remote.call_soon(give()).unwrap(),
        elsewhere(|| remote.call_soon(give()).unwrap()),
    ];
    assert_eq!(drops.count(), 2);
    drop(event_loop);
    assert_eq!(drops.count(), 4, "closed");
    assert!(
        closed
            .iter()
            .all(|call| call.is_cancelled() && !call.cancel())
    );
    assert!(elsewhere(|| remote.call_soon(give())).is_err());
    assert_eq!(drops.count(), 5, "refused");
    drop((ran, cancelled, closed));
    assert_eq!(drops.count(), 5);
}

/// The destructor of what a cancelled callback holds may use the call itself.
#[test]
fn a_closure_that_is_cancelled_may_cancel_its_own_call_as_it_dies() {
    struct Cancels(SharedTrace, Arc<OnceLock<coloop::RemoteCall>>);
    impl Drop for Cancels {
        fn drop(&mut self) {
            let call = self.1.get().unwrap();
            self.0
                .log(format!("{} {}", call.cancel(), call.is_cancelled()));
        }
    }
    let (event_loop, _) = virtual_loop();
    let (trace, own) = (SharedTrace::default(), Arc::new(OnceLock::new()));
    let dying = Cancels(trace.clone(), Arc::clone(&own));
    let call = event_loop.remote().call_soon(move || drop(dying)).unwrap();
    own.set(call.clone()).unwrap();
    assert!(call.cancel());
    trace.assert(&["false true"]);
}

// ---- Stopping ------------------------------------------------------------------------------------

#[test]
fn a_stop_from_another_thread_wakes_the_loop_from_its_sleep() {
    let trace = SharedTrace::default();
    let log = trace.clone();
    let (event_loop, _) = loop_that_sleeps(builder(), move |remote| {
        log.log("asleep");
        elsewhere(|| remote.stop());
    });
    event_loop.run_forever().unwrap();
    event_loop.run_forever().unwrap();
    trace.assert(&["asleep", "asleep"]);
}

#[test]
fn a_stop_from_another_thread_ends_the_turn_in_which_it_comes() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let (log, handle) = (trace.clone(), event_loop.handle());
    event_loop.call_soon(move || {
        elsewhere(move || remote.stop());
        handle.call_soon(log.logs("next turn"));
    });
    event_loop.call_soon(trace.logs("same turn"));
    event_loop.run_forever().unwrap();
    trace.assert(&["same turn"]);
}

// ---- Tasks ---------------------------------------------------------------------------------------

/// Makes a remote task that says when it has begun and when it is dropped, and never ends.
fn endless_task(remote: &RemoteHandle, trace: &SharedTrace) -> RemoteTask<()> {
    struct Logs(SharedTrace);
    impl Drop for Logs {
        fn drop(&mut self) {
            self.0.log("dropped");
        }
    }
    let (begins, has_begun) = mpsc::channel();
    let logs = Logs(trace.clone());
    let make = move || async move {
        let logs = logs;
        logs.0.log("begun");
        begins.send(()).unwrap();
        pending::<()>().await;
    };
    let task = remote.create_task(make).unwrap();
    has_begun.recv().unwrap();
    task
}

#[test]
fn c_138_the_result_of_a_remote_task_reaches_the_thread() {
    let event_loop = real_loop();
    let value = while_running(&event_loop, |remote| {
        let make = || async {
            let word = Rc::new("tea"); // the future need not be `Send`
            yield_now().await;
            *word
        };
        remote.create_task(make).unwrap().join()
    });
    assert_eq!(value.unwrap(), "tea");
}

#[test]
fn c_138_the_panic_of_a_remote_task_reaches_the_thread_and_nobody_else() {
    let event_loop = real_loop();
    let reported = reports(&event_loop);
    let panic = while_running(&event_loop, |remote| {
        let make = || async { panic!("no tea") };
        panic_of(remote.create_task::<_, _>(make).unwrap().join())
    });
    assert_eq!(panic, "no tea");
    reported.assert::<&str>(&[]);
}

#[test]
fn c_138_a_thread_that_has_waited_for_too_long_can_cancel_the_task() {
    let event_loop = real_loop();
    let trace = SharedTrace::default();
    while_running(&event_loop, |remote| {
        let mut task = endless_task(remote, &trace);
        assert!(task.join_timeout(Duration::from_millis(1)).is_none());
        assert!(!task.is_finished());
        trace.assert(&["begun"]);
        task.cancel();
        assert_cancelled(task.join());
    });
    trace.assert(&["dropped"]);
    assert!(event_loop.all_tasks().is_empty());
}

#[test]
fn c_139_a_task_factory_that_panics_is_reported_once_and_reaches_the_thread() {
    struct Broken;
    impl TaskFactory for Broken {
        fn build(&self, _: TaskBuilder) -> TaskBuilder {
            panic!("no tasks today")
        }
    }
    let event_loop = real_loop();
    let reported = reports(&event_loop);
    event_loop.set_task_factory(Rc::new(Broken));
    let panic = while_running(&event_loop, |remote| {
        panic_of(remote.create_task(|| ready(())).unwrap().join())
    });
    assert_eq!(panic, "no tasks today");
    reported.assert(&["panic while a remote task was made: no tasks today"]);
    assert!(event_loop.all_tasks().is_empty());
}

#[test]
fn c_139_a_closure_that_panics_is_reported_once_and_reaches_the_thread() {
    let event_loop = real_loop();
    let reported = reports(&event_loop);
    let panic = while_running(&event_loop, |remote| {
        let make = || -> std::future::Ready<()> { panic!("no future") };
        panic_of(remote.create_task(make).unwrap().join())
    });
    assert_eq!(panic, "no future");
    reported.assert(&["panic while a remote task was made: no future"]);
}

#[test]
fn c_140_a_remote_task_can_be_cancelled_from_the_loop_s_own_thread() {
    let event_loop = real_loop();
    let trace = SharedTrace::default();
    let joined = while_running(&event_loop, |remote| {
        let task = Arc::new(endless_task(remote, &trace));
        let (cancelled, is_cancelled) = mpsc::channel();
        let shared = Arc::clone(&task);
        let cancel = move || {
            shared.cancel();
            drop(shared);
            cancelled.send(()).unwrap();
        };
        remote.call_soon(cancel).unwrap();
        is_cancelled.recv().unwrap();
        Arc::into_inner(task).unwrap().join()
    });
    assert_cancelled(joined);
    trace.assert(&["begun", "dropped"]);
}

#[test]
fn a_remote_task_cancelled_at_home_before_it_is_made_is_never_made() {
    let (event_loop, _) = virtual_loop();
    let (trace, drops) = (SharedTrace::default(), Drops::default());
    let (log, token) = (trace.clone(), drops.token());
    let make = move || {
        log.log("made");
        async move { drop(token) }
    };
    let task = event_loop.remote().create_task(make).unwrap();
    task.cancel();
    one_turn(&event_loop);
    trace.assert::<&str>(&[]);
    assert_eq!(drops.count(), 1);
    assert_cancelled(task.join());
}

#[test]
fn a_remote_task_cancelled_by_another_thread_before_it_begins_never_begins() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let log = trace.clone();
    let make = move || async move { log.log("begun") };
    let task = elsewhere(|| {
        let task = remote.create_task(make).unwrap();
        task.cancel();
        task
    });
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert::<&str>(&[]);
    assert_cancelled(task.join());
}

#[test]
fn cancelling_a_remote_task_that_has_ended_does_nothing() {
    let (event_loop, _) = virtual_loop();
    let task = event_loop.remote().create_task(|| ready(7)).unwrap();
    one_turn(&event_loop);
    one_turn(&event_loop);
    assert!(task.is_finished());
    task.cancel();
    let task = elsewhere(move || {
        task.cancel();
        task
    });
    one_turn(&event_loop);
    assert_eq!(task.join().unwrap(), 7);
}

#[test]
fn a_remote_task_can_be_awaited_by_another_executor() {
    let event_loop = real_loop();
    let (first, second) = while_running(&event_loop, |remote| {
        let second = remote.create_task(|| ready(2)).unwrap();
        let first = block_on(
            remote
                .create_task(async || {
                    yield_now().await;
                    1
                })
                .unwrap(),
        );
        (first, block_on(second))
    });
    assert_eq!((first.unwrap(), second.unwrap()), (1, 2));
}

#[test]
fn a_remote_task_can_be_awaited_on_another_loop() {
    let event_loop = real_loop();
    let (value, panic) = while_running(&event_loop, |remote| {
        let other = real_loop();
        let value = remote.create_task(|| async { 7 }).unwrap();
        let panics = remote.create_task(|| async { panic!("afar") }).unwrap();
        let run = |task| other.run_until_complete(task).unwrap();
        (run(value).unwrap(), panic_of::<i32>(run(panics)))
    });
    assert_eq!((value, panic), (7, "afar".to_owned()));
}

/// Awaiting does not keep the loop's thread, joining would.
#[test]
fn a_remote_task_can_be_awaited_on_its_own_loop() {
    let (event_loop, clock) = virtual_loop();
    let task = event_loop.remote().create_task(|| sleep(SECOND)).unwrap();
    event_loop.run_until_complete(task).unwrap().unwrap();
    assert_eq!(clock.elapsed(), SECOND);
}

#[test]
fn joining_on_the_loop_s_own_thread_is_refused_until_the_task_has_ended() {
    let (event_loop, _) = virtual_loop();
    let remote = event_loop.remote();
    let trace = SharedTrace::default();
    let refused = |result| assert!(matches!(result, Err(JoinError::WouldDeadlock)));

    let log = trace.clone();
    let detached = remote
        .create_task(|| async move { log.log("runs on") })
        .unwrap();
    refused(detached.join());
    let mut task = remote.create_task(|| sleep(SECOND)).unwrap();
    refused(task.join_timeout(SECOND).unwrap());
    event_loop
        .run_until_complete(async { refused(task.join_timeout(SECOND).unwrap()) })
        .unwrap();

    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    assert!(matches!(task.join_timeout(Duration::ZERO), Some(Ok(()))));
    trace.assert(&["runs on"]);
}

#[test]
fn a_result_can_be_had_once() {
    let (event_loop, _) = virtual_loop();
    let mut task = event_loop.remote().create_task(|| ready(7)).unwrap();
    event_loop.run_until_complete(sleep(SECOND)).unwrap();
    assert!(matches!(task.join_timeout(Duration::ZERO), Some(Ok(7))));
    assert_cancelled(task.join());
}

#[test]
fn dropping_a_remote_task_detaches_it() {
    let (event_loop, clock) = virtual_loop();
    let trace = SharedTrace::default();
    let log = trace.clone();
    let make = || async move {
        sleep(SECOND).await;
        log.log("done");
    };
    drop(event_loop.remote().create_task(make).unwrap());
    event_loop.run_until_complete(sleep(2 * SECOND)).unwrap();
    trace.assert(&["done"]);
    assert_eq!(clock.elapsed(), 2 * SECOND);
}

#[test]
fn the_panic_of_a_remote_task_that_nobody_waits_for_is_reported() {
    let (event_loop, _) = virtual_loop();
    let (reported, remote) = (reports(&event_loop), event_loop.remote());
    elsewhere(|| drop(remote.create_task(|| async { panic!("alone") })));
    event_loop.run_until_complete(sleep(SECOND)).unwrap();
    reported.assert(&["panic in task, never observed: alone"]);
}

#[test]
fn the_panic_of_a_remote_task_that_nobody_has_looked_at_is_reported_when_its_handle_goes() {
    for at_home in [true, false] {
        let (event_loop, _) = virtual_loop();
        let (reported, remote) = (reports(&event_loop), event_loop.remote());
        let task = remote.create_task(|| async { panic!("unseen") }).unwrap();
        event_loop.run_until_complete(sleep(SECOND)).unwrap();
        reported.assert::<&str>(&[]);
        assert!(task.is_finished());
        if at_home {
            drop::<RemoteTask<()>>(task);
        } else {
            elsewhere(move || drop::<RemoteTask<()>>(task));
        }
        one_turn(&event_loop);
        reported.assert(&["panic in remote task, never observed: unseen"]);
    }
}

#[test]
fn an_output_that_nobody_takes_is_dropped_once() {
    let (event_loop, _) = virtual_loop();
    let (drops, remote) = (Drops::default(), event_loop.remote());
    let make = || {
        let token = drops.token();
        move || ready(token)
    };
    let held = remote.create_task(make()).unwrap();
    drop(remote.create_task(make()).unwrap());
    event_loop.run_until_complete(sleep(SECOND)).unwrap();
    assert_eq!(drops.count(), 1, "that of the detached task");
    drop(held);
    assert_eq!(drops.count(), 2);
    drop(event_loop);
    assert_eq!(drops.count(), 2);
}

// ---- Closing -------------------------------------------------------------------------------------

#[test]
fn closing_the_loop_cancels_its_remote_tasks_and_releases_who_waits_for_them() {
    let event_loop = real_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let (begun, log) = (remote.clone(), trace.clone());
    let waiter = thread::spawn(move || {
        let task = endless_task(&begun, &log);
        begun.stop();
        task.join()
    });
    event_loop.run_forever().unwrap();
    let late = remote
        .create_task(|| async { unreachable!("the loop is closed") })
        .unwrap();
    event_loop.close().unwrap();
    assert_cancelled(waiter.join().unwrap());
    trace.assert(&["begun", "dropped"]);
    assert_cancelled::<()>(late.join());
}

#[test]
fn a_way_in_does_not_keep_the_loop_alive() {
    let (event_loop, _) = virtual_loop();
    let remote = event_loop.remote();
    assert!(!remote.is_closed());
    drop(event_loop);
    assert!(remote.is_closed());
    remote.stop();
    drop(remote.hold("nothing"));
    let error = remote.call_soon(|| unreachable!("closed")).unwrap_err();
    assert_eq!(error.to_string(), "the event loop is closed");
}

/// Whatever a thread posts while the loop is being closed is either run, dropped or refused: nobody
/// waits for ever.
#[test]
fn a_task_posted_while_the_loop_closes_is_joined_all_the_same() {
    for _ in 0..200 {
        let (event_loop, _) = virtual_loop();
        let (remote, drops) = (event_loop.remote(), Drops::default());
        let given = drops.clone();
        let poster = thread::spawn(move || {
            let mut posted = 0;
            loop {
                let token = given.token();
                posted += 1;
                let make = move || {
                    drop(token);
                    ready(())
                };
                match remote.create_task(make) {
                    Ok(task) => assert_cancelled(task.join()),
                    Err(_) => return posted,
                }
            }
        });
        while event_loop.is_idle() {
            thread::yield_now();
        }
        event_loop.close().unwrap();
        let posted = poster.join().unwrap();
        assert_eq!(drops.count(), posted, "each closure is dropped");
    }
}

// ---- Holds ---------------------------------------------------------------------------------------

/// Keeps the holds of a loop, and each time the loop sleeps lets go of one, in another thread.
fn loop_with_holds(
    names: &[&'static str],
    trace: &SharedTrace,
) -> (EventLoop, Rc<coloop::testing::Clock>) {
    let clock = coloop::testing::Clock::new();
    let holds = Rc::new(RefCell::new(Vec::<Hold>::new()));
    let (log, held, hand) = (trace.clone(), Rc::clone(&holds), Rc::clone(&clock));
    let builder = builder().clock(Rc::<coloop::testing::Clock>::clone(&clock));
    let (event_loop, _) = loop_that_sleeps(builder, move |remote| {
        log.log(format!("asleep at {:?}", hand.elapsed()));
        let hold = held.borrow_mut().pop().unwrap();
        elsewhere(|| {
            remote.call_soon(log.logs("letter")).unwrap();
            drop(hold);
        });
    });
    let remote = event_loop.remote();
    holds.replace(names.iter().map(|name| remote.hold(name)).collect());
    (event_loop, clock)
}

#[test]
fn a_virtual_clock_stands_still_until_the_work_outside_has_come_back() {
    for names in [&["one"][..], &["one", "two", "three"]] {
        let trace = SharedTrace::default();
        let (event_loop, clock) = loop_with_holds(names, &trace);
        event_loop.call_later(3600 * SECOND, trace.logs("timer"));
        event_loop.run_until_complete(sleep(3600 * SECOND)).unwrap();
        let mut expected = ["asleep at 0ns", "letter"].repeat(names.len());
        expected.push("timer");
        trace.assert(&expected);
        assert_eq!(clock.elapsed(), 3600 * SECOND);
    }
}

#[test]
fn a_hold_makes_no_difference_to_a_timer_of_the_system_s_clock() {
    let event_loop = real_loop();
    let hold = event_loop.remote().hold("nothing");
    let fired = Rc::new(Cell::new(false));
    let flag = Rc::clone(&fired);
    event_loop.call_later(Duration::from_millis(1), move || flag.set(true));
    event_loop
        .run_until_complete(sleep(Duration::from_millis(2)))
        .unwrap();
    assert!(fired.get());
    drop(hold);
}
