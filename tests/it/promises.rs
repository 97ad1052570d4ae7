//! Promises and resolvers: who is told, in which order, and who has the value.

use std::cell::{Cell, RefCell};
use std::future::{Future, IntoFuture, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll, RawWaker, RawWakerVTable, Wake, Waker};

use coloop::{Cancelled, LoopHandle, Promise, Resolver, yield_now};

use crate::errors::reports;
use crate::verbs::{Trace, one_turn, real_loop};

/// A value that says when it is cloned and dropped, and may do something then.
struct Noisy {
    trace: Trace,
    number: Rc<Cell<u32>>,
    name: String,
    on_clone: Rc<dyn Fn()>,
    on_drop: Rc<dyn Fn()>,
}

impl Noisy {
    fn new(trace: &Trace) -> Self {
        Self::doing(trace, || (), || ())
    }

    fn doing(trace: &Trace, on_clone: impl Fn() + 'static, on_drop: impl Fn() + 'static) -> Self {
        Self {
            trace: trace.clone(),
            number: Rc::default(),
            name: "original".to_owned(),
            on_clone: Rc::new(on_clone),
            on_drop: Rc::new(on_drop),
        }
    }
}

impl Clone for Noisy {
    fn clone(&self) -> Self {
        self.number.set(self.number.get() + 1);
        let name = format!("clone {}", self.number.get());
        self.trace.log(format!("{name} is made"));
        (self.on_clone)();
        Self {
            trace: self.trace.clone(),
            number: Rc::clone(&self.number),
            name,
            on_clone: Rc::clone(&self.on_clone),
            on_drop: Rc::clone(&self.on_drop),
        }
    }
}

impl Drop for Noisy {
    fn drop(&mut self) {
        self.trace.log(format!("{} is dropped", self.name));
        (self.on_drop)();
    }
}

/// A waker that does something when it is woken, and when it is dropped.
fn waker(on_wake: impl FnOnce() + 'static, on_drop: impl FnOnce() + 'static) -> Waker {
    type Call = Option<Box<dyn FnOnce()>>;
    thread_local! {
        static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
    }

    /// The numbers of its two calls: a waker is `Send`, what it does here is not.
    struct Calls(usize, usize);

    fn keep(call: impl FnOnce() + 'static) -> usize {
        CALLS.with_borrow_mut(|calls| {
            calls.push(Some(Box::new(call)));
            calls.len() - 1
        })
    }

    fn call(number: usize) {
        if let Some(call) = CALLS.with_borrow_mut(|calls| calls[number].take()) {
            call();
        }
    }

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            call(self.0);
        }
    }

    impl Drop for Calls {
        fn drop(&mut self) {
            call(self.1);
        }
    }

    Waker::from(Arc::new(Calls(keep(on_wake), keep(on_drop))))
}

/// Polls once.
fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut PollContext::from_waker(waker))
}

fn promise<T: 'static>(handle: &LoopHandle) -> (Resolver<T>, Promise<T>) {
    handle.create_future()
}

/// Logs the value under a name when it comes.
fn logs<T: std::fmt::Debug>(
    trace: &Trace,
    name: &'static str,
) -> impl FnOnce(Result<T, Cancelled>) + use<T> {
    let trace = trace.clone();
    move |value| trace.log(format!("{name}: {value:?}"))
}

#[test]
fn c_099_a_pending_promise_has_no_result_yet() {
    let event_loop = real_loop();
    let (resolver, mut promise) = promise(&event_loop);
    assert_eq!(promise.try_result(), None);
    assert!(!promise.is_done() && !promise.is_cancelled());

    resolver.settle(1).unwrap();

    assert!(promise.is_done() && !promise.is_cancelled());
    assert_eq!(promise.try_result(), Some(Ok(1)));
}

// c_100: that a promise cannot be settled twice is the compile-fail example of `create_future`.
#[test]
fn c_100_a_settled_promise_cannot_be_cancelled() {
    let event_loop = real_loop();
    let (resolver, mut promise) = promise(&event_loop);
    resolver.settle(1).unwrap();
    assert!(!promise.cancel());
    assert!(promise.is_done() && !promise.is_cancelled());
    assert_eq!(promise.try_result(), Some(Ok(1)));
}

#[test]
fn c_101_a_cancelled_promise_is_done_and_gives_cancelled() {
    let event_loop = real_loop();
    let (resolver, mut promise) = promise::<()>(&event_loop);
    assert!(promise.cancel());
    assert!(promise.is_done() && promise.is_cancelled());
    assert!(!promise.cancel(), "it is cancelled already");
    assert!(resolver.is_cancelled() && !resolver.is_wanted());
    assert_eq!(promise.try_result(), Some(Err(Cancelled::new())));
    assert_eq!(
        event_loop.run_until_complete(promise).unwrap(),
        Err(Cancelled::new())
    );
}

#[test]
fn c_103_a_callback_on_a_promise_that_is_done_is_queued() {
    let event_loop = real_loop();
    let trace = Trace::new();
    for name in ["settled", "cancelled"] {
        let (resolver, promise) = promise(&event_loop);
        if name == "settled" {
            resolver.settle(1).unwrap();
        } else {
            resolver.cancel();
        }
        event_loop.call_soon(trace.logs("before"));
        drop(promise.on_done(logs(&trace, name)));
        event_loop.call_soon(trace.logs("behind"));
        trace.log("nothing has run");
    }

    one_turn(&event_loop);

    trace.assert(&[
        "nothing has run",
        "nothing has run",
        "before",
        "settled: Ok(1)",
        "behind",
        "before",
        "cancelled: Err(Cancelled { reason: None })",
        "behind",
    ]);
}

#[test]
fn c_104_each_done_callback_is_removed_by_its_own_handle_once() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    let handles: Vec<_> = (0..6)
        .map(|_| promise.clone().on_done(logs(&trace, "removed")))
        .collect();
    let kept = promise.on_done(logs(&trace, "kept"));

    let removed = handles.iter().filter(|handle| handle.remove()).count();
    let again = handles.iter().filter(|handle| handle.remove()).count();
    resolver.settle(1).unwrap();
    one_turn(&event_loop);

    assert_eq!((removed, again), (6, 0));
    assert!(!kept.remove(), "it has run");
    trace.assert(&["kept: Ok(1)"]);
}

#[test]
fn c_105_a_callback_that_stands_in_the_line_is_not_removed_by_another() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    let later = Rc::new(Cell::new(None));
    let (log, handle) = (trace.clone(), Rc::clone(&later));
    drop(promise.clone().on_done(move |_| {
        let handle: Option<coloop::DoneHandle> = handle.take();
        log.log(format!(
            "first removes second: {}",
            handle.unwrap().remove()
        ));
    }));
    later.set(Some(promise.clone().on_done(logs(&trace, "second"))));
    drop(promise.on_done(logs(&trace, "third")));

    resolver.settle(1).unwrap();
    one_turn(&event_loop);

    trace.assert(&[
        "first removes second: false",
        "second: Ok(1)",
        "third: Ok(1)",
    ]);
}

#[test]
fn c_106_awaiting_a_promise_that_is_done_gives_nobody_a_turn() {
    let event_loop = real_loop();
    let trace = Trace::new();
    event_loop
        .run_until_complete(async {
            let (resolver, promise) = coloop::current().create_future();
            resolver.settle(1).unwrap();
            let handle = coloop::current().call_soon(trace.logs("another"));
            let value = promise.await;
            trace.log(format!("{value:?}"));
            handle.cancel();
        })
        .unwrap();
    trace.assert(&["Ok(1)"]);
}

#[test]
fn c_108_whoever_is_to_settle_learns_that_the_promise_was_cancelled() {
    let event_loop = real_loop();
    let (pending, cancelled) = promise(&event_loop);
    let (settled, mut too_late) = promise(&event_loop);
    settled.settle("kept").unwrap();

    assert!(cancelled.cancel() && !too_late.cancel());

    assert!(pending.is_cancelled() && !pending.is_wanted());
    assert_eq!(pending.settle("given back"), Err("given back"));
    assert_eq!(too_late.try_result(), Some(Ok("kept")));
}

#[test]
fn c_109_a_promise_is_a_future_without_a_wrapper() {
    let event_loop = real_loop();
    let (resolver, promise) = promise(&event_loop);
    let mut same: Promise<i32> = promise.into_future();
    resolver.settle(1).unwrap();
    assert_eq!(same.try_result(), Some(Ok(1)));
}

#[test]
fn c_110_settling_a_cancelled_promise_gives_the_value_back_and_calls_nobody() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    drop(promise.clone().on_done(logs(&trace, "callback")));
    promise.cancel();
    one_turn(&event_loop);
    trace.assert(&["callback: Err(Cancelled { reason: None })"]);

    assert_eq!(resolver.settle(1), Err(1));
    one_turn(&event_loop);

    trace.assert::<&str>(&[]);
    assert!(promise.is_cancelled());
}

#[test]
fn tasks_and_callbacks_that_wait_for_one_promise_are_told_in_the_order_in_which_they_came() {
    for cancelled in [false, true] {
        let event_loop = real_loop();
        let trace = Trace::new();
        let (resolver, promise) = promise(&event_loop);
        for number in 1..=3 {
            let (log, awaited) = (trace.clone(), promise.clone());
            drop(event_loop.create_task(async move {
                log.log(format!("task {number} waits"));
                awaited.await.ok();
                log.log(format!("task {number} is told"));
            }));
            let (log, called) = (trace.clone(), promise.clone());
            event_loop.call_soon(move || {
                let told = log.clone();
                log.log(format!("callback {number} waits"));
                drop(called.on_done(move |_| told.log(format!("callback {number} is told"))));
            });
        }
        one_turn(&event_loop);
        event_loop.call_soon(trace.logs("in the line before"));
        if cancelled {
            drop(resolver);
        } else {
            resolver.settle(7).unwrap();
        }
        event_loop.call_soon(trace.logs("in the line behind"));
        trace.log("settled");
        one_turn(&event_loop);

        trace.assert(&[
            "task 1 waits",
            "callback 1 waits",
            "task 2 waits",
            "callback 2 waits",
            "task 3 waits",
            "callback 3 waits",
            "settled",
            "in the line before",
            "task 1 is told",
            "callback 1 is told",
            "task 2 is told",
            "callback 2 is told",
            "task 3 is told",
            "callback 3 is told",
            "in the line behind",
        ]);
    }
}

#[test]
fn a_waiter_that_is_polled_again_keeps_its_place() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    let waits = |name: &'static str| {
        let (log, promise) = (trace.clone(), promise.clone());
        event_loop.create_task(async move {
            let mut promise = pin!(promise);
            let mut polls = 0;
            poll_fn(|cx| {
                polls += 1;
                if polls == 1 {
                    cx.waker().wake_by_ref();
                }
                promise.as_mut().poll(cx)
            })
            .await
            .unwrap();
            log.log(format!("{name} is told at poll {polls}"));
        })
    };
    drop([waits("first"), waits("second")]);
    one_turn(&event_loop);
    drop(promise.clone().on_done(logs(&trace, "third")));
    one_turn(&event_loop);

    resolver.settle(1).unwrap();
    one_turn(&event_loop);

    trace.assert(&[
        "first is told at poll 3",
        "second is told at poll 3",
        "third: Ok(1)",
    ]);
}

#[test]
fn one_promise_has_the_value_itself() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    let spare = promise.clone();
    drop(spare);
    assert!(resolver.settle(Noisy::new(&trace)).is_ok());

    let value = event_loop.run_until_complete(promise).unwrap().unwrap();

    assert_eq!(value.name, "original");
    trace.assert::<&str>(&[]);
    drop(value);
    trace.assert(&["original is dropped"]);
}

#[test]
fn of_several_promises_the_last_has_the_value_and_the_others_clones() {
    for cloned_after_settling in [false, true] {
        let event_loop = real_loop();
        let trace = Trace::new();
        let (resolver, first) = promise(&event_loop);
        let (second, third);
        if cloned_after_settling {
            assert!(resolver.settle(Noisy::new(&trace)).is_ok());
            (second, third) = (first.clone(), first.clone());
        } else {
            (second, third) = (first.clone(), first.clone());
            assert!(resolver.settle(Noisy::new(&trace)).is_ok());
        }
        for promise in [second, first, third] {
            let value = event_loop.run_until_complete(promise).unwrap().unwrap();
            trace.log(format!("{} arrives", value.name));
        }

        trace.assert(&[
            "clone 1 is made",
            "clone 1 arrives",
            "clone 1 is dropped",
            "clone 2 is made",
            "clone 2 arrives",
            "clone 2 is dropped",
            "original arrives",
            "original is dropped",
        ]);
    }
}

#[test]
fn a_value_nobody_takes_is_dropped_with_the_last_promise() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, first) = promise(&event_loop);
    let second = first.clone();
    assert!(resolver.settle(Noisy::new(&trace)).is_ok());
    drop(first);
    trace.log("one is left");
    drop(second);

    trace.assert(&["one is left", "original is dropped"]);
}

#[test]
fn a_clone_that_panics_fails_its_own_waiter_and_no_other() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let (resolver, first) = promise::<Noisy>(&event_loop);
    let (second, third) = (first.clone(), first.clone());
    let clones = Rc::new(Cell::new(0));
    let value = Noisy::doing(
        &trace,
        move || {
            clones.set(clones.get() + 1);
            assert!(clones.get() != 1, "cannot be cloned");
        },
        || (),
    );
    let unlucky =
        event_loop.create_task(async move { first.await.map(|value| value.name.clone()) });
    let lucky = event_loop.create_task(async move { second.await.map(|value| value.name.clone()) });
    assert!(resolver.settle(value).is_ok());

    let unlucky = event_loop.run_until_complete(unlucky).unwrap();
    let lucky = event_loop.run_until_complete(lucky).unwrap();
    let last = event_loop.run_until_complete(third).unwrap();

    assert_eq!(
        unlucky.unwrap_err().to_string(),
        "the task panicked: cannot be cloned"
    );
    assert_eq!(lucky.unwrap(), Ok("clone 2".to_owned()));
    assert_eq!(last.unwrap().name, "original");
    trace.assert(&[
        "clone 1 is made",
        "clone 2 is made",
        "clone 2 is dropped",
        "original is dropped",
    ]);
    told.assert::<&str>(&[]);
}

#[test]
fn a_clone_that_panics_in_a_done_callback_is_reported_and_the_others_are_called() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let (resolver, promise) = promise(&event_loop);
    let value = Noisy::doing(&trace, || panic!("cannot be cloned"), || ());
    let log = |name: &'static str| {
        let trace = trace.clone();
        move |value: Result<Noisy, Cancelled>| trace.log(format!("{name}: {}", value.unwrap().name))
    };
    drop(promise.clone().on_done(log("first")));
    drop(promise.on_done(log("second")));
    assert!(resolver.settle(value).is_ok());
    one_turn(&event_loop);

    trace.assert(&["clone 1 is made", "original is dropped", "second: original"]);
    told.assert(&["panic in callback: cannot be cloned"]);
}

#[test]
fn a_resolver_that_is_dropped_cancels_its_promise() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise::<()>(&event_loop);
    drop(promise.clone().on_done(logs(&trace, "callback")));
    drop(resolver);
    assert!(promise.is_cancelled());

    assert_eq!(
        event_loop.run_until_complete(promise).unwrap(),
        Err(Cancelled::new())
    );
    trace.assert(&["callback: Err(Cancelled { reason: None })"]);
}

#[test]
fn cancelling_one_promise_cancels_its_clones() {
    let event_loop = real_loop();
    let (resolver, promise) = promise::<()>(&event_loop);
    let clone = promise.clone();
    assert!(promise.cancel());
    assert!(clone.is_cancelled() && !clone.cancel());
    assert!(resolver.settle(()).is_err());
    assert_eq!(
        event_loop.run_until_complete(clone).unwrap(),
        Err(Cancelled::new())
    );
}

#[test]
fn settling_gives_the_value_back_when_nobody_can_have_it() {
    let event_loop = real_loop();
    let trace = Trace::new();

    let (resolver, dropped) = promise(&event_loop);
    let clone = dropped.clone();
    drop(dropped);
    assert!(resolver.is_wanted(), "a clone is left");
    drop(clone);
    assert!(!resolver.is_wanted() && !resolver.is_cancelled());
    assert_eq!(resolver.settle("dropped"), Err("dropped"));

    let (resolver, removed) = promise(&event_loop);
    let handle = removed.on_done(logs(&trace, "removed"));
    assert!(resolver.is_wanted());
    assert!(handle.remove());
    assert!(!resolver.is_wanted());
    assert_eq!(resolver.settle("removed"), Err("removed"));

    let (resolver, awaited) = promise(&event_loop);
    let task = event_loop.create_task(awaited);
    one_turn(&event_loop);
    assert!(resolver.is_wanted());
    task.cancel();
    one_turn(&event_loop);
    assert!(!resolver.is_wanted());
    assert_eq!(resolver.settle("cancelled"), Err("cancelled"));

    trace.assert::<&str>(&[]);
}

#[test]
fn a_promise_that_two_tasks_poll_wakes_the_last() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    let shared = Rc::new(RefCell::new(promise));
    let poller = |name: &'static str| {
        let (log, shared) = (trace.clone(), Rc::clone(&shared));
        event_loop.create_task(poll_fn(move |cx| {
            let polled = Pin::new(&mut *shared.borrow_mut()).poll(cx);
            log.log(format!("{name}: {polled:?}"));
            polled
        }))
    };
    let (first, second) = (poller("first"), poller("second"));
    one_turn(&event_loop);
    let waits = [first.to_ref().waits().len(), second.to_ref().waits().len()];
    resolver.settle(1).unwrap();
    one_turn(&event_loop);

    trace.assert(&["first: Pending", "second: Pending", "second: Ready(Ok(1))"]);
    assert_eq!(waits, [0, 1], "the wait has moved with the promise");
}

#[test]
fn a_promise_that_has_given_its_value_gives_cancelled() {
    let event_loop = real_loop();
    let (resolver, mut promise) = promise(&event_loop);
    resolver.settle(1).unwrap();
    let twice =
        event_loop.run_until_complete(async { ((&mut promise).await, (&mut promise).await) });
    assert_eq!(twice.unwrap(), (Ok(1), Err(Cancelled::new())));
    assert!(promise.is_done() && !promise.is_cancelled() && !promise.cancel());
    assert_eq!(promise.try_result(), Some(Err(Cancelled::new())));

    let trace = Trace::new();
    let clone = promise.clone();
    assert_eq!(
        event_loop.run_until_complete(clone).unwrap(),
        Err(Cancelled::new())
    );
    assert!(!promise.on_done(logs(&trace, "never")).remove());
}

#[test]
fn a_promise_that_is_dropped_while_it_waits_is_told_nothing() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, mut first) = promise(&event_loop);
    let second = first.clone();
    let woken = trace.clone();
    let waker = waker(move || woken.log("woken"), || ());
    assert!(poll(&mut first, &waker).is_pending());
    drop(first);

    resolver.settle(1).unwrap();

    trace.assert::<&str>(&[]);
    assert_eq!(event_loop.run_until_complete(second).unwrap(), Ok(1));
}

#[test]
fn closing_the_loop_drops_pending_callbacks_and_awaiting_tasks_once() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise::<i32>(&event_loop);
    let in_callback = Noisy::new(&trace);
    drop(promise.clone().on_done(move |_| drop(in_callback)));
    let (log, awaited) = (Noisy::new(&trace), promise);
    drop(event_loop.create_task(async move {
        let _log = log;
        awaited.await.ok();
    }));
    one_turn(&event_loop);

    drop(event_loop);
    trace.assert(&["original is dropped"]);
    trace.log("closed");
    drop(resolver);

    trace.assert(&["closed", "original is dropped"]);
}

#[test]
fn a_callback_that_stands_in_the_line_is_dropped_with_its_value_when_the_loop_closes() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    drop(promise.on_done(|_: Result<Noisy, _>| unreachable!("the loop is closed")));
    assert!(resolver.settle(Noisy::new(&trace)).is_ok());
    trace.log("settled");

    drop(event_loop);

    trace.assert(&["settled", "original is dropped"]);
}

#[test]
fn on_a_closed_loop_a_promise_still_has_its_value_and_its_callbacks_are_dropped() {
    let event_loop = real_loop();
    let handle = event_loop.handle();
    drop(event_loop);
    let trace = Trace::new();

    let (resolver, mut awaited) = promise(&handle);
    resolver.settle(1).unwrap();
    assert_eq!(awaited.try_result(), Some(Ok(1)));

    let (resolver, pending) = promise::<i32>(&handle);
    let held = Noisy::new(&trace);
    drop(pending.on_done(move |_| drop(held)));
    trace.log("settle");
    resolver.settle(2).unwrap();
    trace.assert(&["settle", "original is dropped"]);

    let (resolver, done) = promise(&handle);
    resolver.settle(3).unwrap();
    let held = Noisy::new(&trace);
    drop(done.on_done(move |_| drop(held)));
    trace.assert(&["original is dropped"]);
}

/// Everything a promise and a loop can be asked, from inside some piece of user code.
fn ask_everything(
    handle: &LoopHandle,
    promise: &RefCell<Option<Promise<Noisy>>>,
    resolver: &RefCell<Option<Resolver<Noisy>>>,
    trace: &Trace,
) {
    if let Some(resolver) = &*resolver.borrow() {
        assert!(!resolver.is_cancelled());
        let _ = resolver.is_wanted();
    }
    let Some(mut asked) = promise.borrow_mut().take() else {
        return;
    };
    let (done, cancelled) = (asked.is_done(), asked.is_cancelled());
    trace.log(format!("asked: done {done}, cancelled {cancelled}"));
    let clone = asked.clone();
    let _ = clone.cancel();
    let handle_of_callback = clone.on_done(drop);
    let _ = handle_of_callback.remove();
    let _ = poll(&mut asked, Waker::noop());
    let _ = asked.try_result();
    let _ = format!("{asked:?} {handle:?}");
    handle.call_soon(|| ());
    drop(asked);
}

#[test]
fn user_code_that_a_promise_runs_may_ask_the_promise_everything() {
    let event_loop = real_loop();
    let told = reports(&event_loop);
    for place in [
        "wake",
        "drop of a waker",
        "clone",
        "drop of the value",
        "callback",
        "drop of a callback",
    ] {
        let trace = Trace::new();
        let (resolver, mut first) = promise(&event_loop);
        let other = Rc::new(RefCell::new(Some(first.clone())));
        let resolver = Rc::new(RefCell::new(Some(resolver)));
        let ask = {
            let (handle, trace) = (event_loop.handle(), trace.clone());
            let (other, resolver) = (Rc::clone(&other), Rc::clone(&resolver));
            move || ask_everything(&handle, &other, &resolver, &trace)
        };
        let here = |wanted: &str| {
            let (ask, wanted) = (ask.clone(), wanted == place);
            move || {
                if wanted {
                    ask();
                }
            }
        };
        let (wake, dropped) = (here("wake"), here("drop of a waker"));
        let waker = waker(wake, dropped);
        let (clone, drop_value) = (here("clone"), here("drop of the value"));
        let value = Noisy::doing(&Trace::new(), clone, drop_value);

        assert!(poll(&mut first, &waker).is_pending());
        drop(waker);
        let callback = here("callback");
        drop(first.clone().on_done(move |_| callback()));
        struct OnDrop<F: FnMut()>(F);
        impl<F: FnMut()> Drop for OnDrop<F> {
            fn drop(&mut self) {
                (self.0)();
            }
        }
        let in_callback = OnDrop(here("drop of a callback"));
        drop(first.clone().on_done(move |_| drop(in_callback)));
        let settled = resolver.take().unwrap();
        assert!(settled.settle(value).is_ok());
        one_turn(&event_loop);
        drop(poll(&mut first, Waker::noop()));
        drop(first);
        one_turn(&event_loop);

        trace.assert(&["asked: done true, cancelled false"]);
        told.assert::<&str>(&[]);
    }
}

#[test]
fn a_waker_that_is_replaced_may_settle_the_promise_when_it_is_dropped() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, mut promise) = promise(&event_loop);
    let settle = move || resolver.settle(1).unwrap();
    let first = waker(|| unreachable!("it was replaced"), settle);
    let log = trace.clone();
    let second = waker(move || log.log("second is woken"), || ());

    assert!(poll(&mut promise, &first).is_pending());
    drop(first);
    assert!(poll(&mut promise, &second).is_pending());
    trace.log("polled");

    trace.assert(&["second is woken", "polled"]);
    assert_eq!(poll(&mut promise, Waker::noop()), Poll::Ready(Ok(1)));
}

#[test]
fn a_waker_that_settles_the_promise_when_it_is_cloned_is_told() {
    thread_local! {
        static ON_CLONE: Cell<Option<Resolver<i32>>> = const { Cell::new(None) };
        static WOKEN: Cell<u32> = const { Cell::new(0) };
    }
    fn clone(_: *const ()) -> RawWaker {
        if let Some(resolver) = ON_CLONE.take() {
            resolver.settle(1).unwrap();
        }
        RawWaker::new(std::ptr::null(), &TABLE)
    }
    fn wake(_: *const ()) {
        WOKEN.set(WOKEN.get() + 1);
    }
    static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, |_| ());

    let event_loop = real_loop();
    let (resolver, mut promise) = promise(&event_loop);
    ON_CLONE.set(Some(resolver));
    #[expect(
        unsafe_code,
        reason = "only a raw waker can do something when it is cloned"
    )]
    // SAFETY: the functions of the table do not look at the pointer, and touch nothing but what
    // belongs to their thread.
    let waker = unsafe { Waker::new(std::ptr::null(), &TABLE) };

    let told = poll(&mut promise, &waker).is_ready() || WOKEN.get() > 0;

    assert!(told, "it waits for what has come already");
}

#[test]
fn a_waker_that_panics_is_reported_and_the_waiters_behind_it_are_told() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let (resolver, mut first) = promise(&event_loop);
    let second = first.clone();
    assert!(poll(&mut first, &waker(|| panic!("no waking"), || ())).is_pending());
    drop(second.on_done(logs(&trace, "second")));

    resolver.settle(1).unwrap();
    told.assert(&["panic in a waker: no waking"]);
    one_turn(&event_loop);

    trace.assert(&["second: Ok(1)"]);
    assert_eq!(poll(&mut first, Waker::noop()), Poll::Ready(Ok(1)));
}

#[test]
fn a_promise_of_another_loop_can_be_awaited() {
    let (running, other) = (real_loop(), real_loop());
    let trace = Trace::new();
    let (resolver, promise) = promise(&other);
    let task = running.create_task(promise);
    let log = trace.clone();
    running.call_soon(move || {
        log.log("settled");
        resolver.settle(1).unwrap();
    });

    let value = running.run_until_complete(task).unwrap().unwrap();

    assert_eq!(value, Ok(1));
    trace.assert(&["settled"]);
}

#[test]
fn a_promise_settled_in_a_turn_is_told_in_the_next() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (resolver, promise) = promise(&event_loop);
    drop(promise.on_done(logs(&trace, "told")));
    let log = trace.clone();
    event_loop.call_soon(move || {
        resolver.settle(1).unwrap();
        log.log("settled");
    });
    one_turn(&event_loop);
    trace.log("turn");
    one_turn(&event_loop);

    trace.assert(&["settled", "turn", "told: Ok(1)"]);
}

#[test]
fn a_done_callback_that_panics_is_reported_and_the_next_is_called() {
    let event_loop = real_loop();
    let (trace, told) = (Trace::new(), reports(&event_loop));
    let (resolver, promise) = promise(&event_loop);
    drop(promise.clone().on_done(|_| panic!("in a done-callback")));
    drop(promise.on_done(logs(&trace, "second")));
    resolver.settle(1).unwrap();
    one_turn(&event_loop);

    trace.assert(&["second: Ok(1)"]);
    told.assert(&["panic in callback: in a done-callback"]);
}

#[test]
fn a_promise_can_be_awaited_through_joins_of_others() {
    let event_loop = real_loop();
    let (resolvers, promises): (Vec<_>, Vec<_>) = (0..3).map(|_| promise(&event_loop)).unzip();
    for (number, resolver) in resolvers.into_iter().enumerate().rev() {
        event_loop.call_soon(move || resolver.settle(number).unwrap());
    }
    let values = event_loop.run_until_complete(async {
        let joined = futures::future::join_all(promises).await;
        yield_now().await;
        joined
    });
    assert_eq!(values.unwrap(), [Ok(0), Ok(1), Ok(2)]);
}
