//! Faults in the heart: wakes that race with the end of a loop, panics everywhere, re-entry, teardown.
//!
//! What could take the process down with it, or never end, is in `tests/process.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::io::{self, ErrorKind};
use std::panic::{self, AssertUnwindSafe, panic_any};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context as PollContext, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use coloop::{
    Bell, Cancelled, Clock, Context, ContextVar, EventLoop, Interest, JoinError, LocalBoxFuture,
    LoopHandle, PanicPolicy, Readiness, RunError, Selector, Source, Task, TaskBuilder, TaskFactory,
    current_task, defer_cancel, until_cancelled,
};

use crate::fd::{Probe, drain, pair, send};
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

/// A sequence that depends on its seed alone.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Lets the exception handler write what it is told into the trace.
fn report_into(event_loop: &LoopHandle, trace: &Trace) {
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| {
        let what = context.panic_message().or_else(|| context.error());
        log.log(format!(
            "{}: {}",
            context.message(),
            what.unwrap_or_default()
        ));
    });
}

/// Logs a word when it is dropped.
struct Noted(Trace, &'static str);

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.log(format!("{} dropped", self.1));
    }
}

/// Logs a word and panics when it is dropped.
struct Explosive(Trace, &'static str);

impl Drop for Explosive {
    fn drop(&mut self) {
        self.0.log(format!("{} dropped", self.1));
        panic!("destructor of {}", self.1);
    }
}

thread_local! {
    /// The trace that payloads, which must be `Send`, write into.
    static TRACE: Trace = Trace::new();
}

/// A payload that logs a word and panics when it is dropped.
struct Bomb(&'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        TRACE.with(|trace| trace.log(format!("{} dropped", self.0)));
        panic!("destructor of {}", self.0);
    }
}

/// A future that is pending for ever and holds something.
struct Holds<T>(T);

impl<T: Unpin> Future for Holds<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut PollContext<'_>) -> Poll<()> {
        Poll::Pending
    }
}

// ---- A1, A2: wakers in other threads -----------------------------------------------------------

#[test]
fn fault_a1_wakes_from_eight_threads_race_with_the_end_of_loops() {
    const ROUNDS: usize = 400;
    const TASKS: usize = 8;
    let wakers: Arc<Mutex<Vec<Waker>>> = Arc::default();
    let over = Arc::new(AtomicBool::new(false));
    let wakes = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..8)
        .map(|seed| {
            let (wakers, over, wakes) = (wakers.clone(), over.clone(), wakes.clone());
            thread::spawn(move || {
                let mut random = Random::new(seed);
                while !over.load(Ordering::Relaxed) {
                    let picked = {
                        let wakers = wakers.lock().unwrap();
                        let at = random.below(wakers.len().max(1) as u64) as usize;
                        wakers.get(at).cloned()
                    };
                    match picked {
                        Some(waker) if random.below(2) == 0 => waker.wake(),
                        Some(waker) => waker.wake_by_ref(),
                        None => thread::yield_now(),
                    }
                    wakes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    let (polled, dropped) = (Rc::new(Cell::new(0_usize)), Rc::new(Cell::new(0)));
    struct Counted(Rc<Cell<usize>>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    for round in 0..ROUNDS {
        let event_loop = real_loop();
        for number in 0..TASKS {
            let (wakers, polled) = (wakers.clone(), polled.clone());
            let counted = Counted(Rc::clone(&dropped));
            drop(event_loop.create_task(poll_fn(move |cx| {
                let _ = &counted;
                polled.set(polled.get() + 1);
                let mut wakers = wakers.lock().unwrap();
                if wakers.len() <= number {
                    wakers.push(cx.waker().clone());
                } else {
                    wakers[number] = cx.waker().clone();
                }
                // Some end, so that late wakes meet tasks that have ended.
                if number == 0 && round % 2 == 0 {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })));
        }
        for _ in 0..round % 4 + 1 {
            one_turn(&event_loop);
        }
        drop(event_loop);
        assert_eq!(
            dropped.get(),
            (round + 1) * TASKS,
            "all died with their loop"
        );
    }
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(polled.get() >= ROUNDS * TASKS && wakes.load(Ordering::Relaxed) > 0);
}

/// Notes in which thread it was dropped.
struct DiesIn(Arc<Mutex<Vec<ThreadId>>>, Rc<()>);

impl Drop for DiesIn {
    fn drop(&mut self) {
        let _ = &self.1;
        self.0.lock().unwrap().push(thread::current().id());
    }
}

#[test]
fn fault_a2_a_future_dies_in_the_loop_s_thread_whoever_has_its_last_waker() {
    let deaths: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let home = thread::current().id();
    let wakers: Rc<RefCell<Vec<Waker>>> = Rc::default();
    let body = |ends: bool| {
        let (dies, wakers) = (DiesIn(deaths.clone(), Rc::new(())), Rc::clone(&wakers));
        poll_fn(move |cx| {
            let _ = &dies;
            wakers.borrow_mut().push(cx.waker().clone());
            if ends { Poll::Ready(()) } else { Poll::Pending }
        })
    };
    let event_loop = real_loop();

    // It has ended; another thread drops the last waker, another one wakes it.
    drop(event_loop.create_task(body(true)));
    drop(event_loop.create_task(body(true)));
    one_turn(&event_loop);
    assert_eq!(
        deaths.lock().unwrap().drain(..).collect::<Vec<_>>(),
        [home; 2]
    );
    let late = wakers.take();
    thread::spawn(move || {
        let mut late = late.into_iter();
        drop(late.next());
        late.next().unwrap().wake();
    })
    .join()
    .unwrap();

    // It is pending and nobody has its handle; another thread drops every waker it knows of.
    drop(event_loop.create_task(body(false)));
    one_turn(&event_loop);
    let known = wakers.take();
    thread::spawn(move || drop(known)).join().unwrap();
    assert!(deaths.lock().unwrap().is_empty());

    // It is cancelled from another thread.
    let task = event_loop.create_task(body(false));
    let (reference, remote) = (task.to_ref(), event_loop.remote());
    one_turn(&event_loop);
    let asked = wakers.take();
    thread_local!(static TASK: RefCell<Option<coloop::TaskRef>> = const { RefCell::new(None) });
    TASK.set(Some(reference));
    thread::spawn(move || {
        remote
            .call_soon(|| assert!(TASK.take().unwrap().cancel()))
            .unwrap();
        asked
    })
    .join()
    .unwrap();
    one_turn(&event_loop);
    one_turn(&event_loop);
    assert!(task.is_finished());
    assert_eq!(deaths.lock().unwrap().drain(..).collect::<Vec<_>>(), [home]);

    // Its loop ends while another thread has its waker, which is the last to go.
    drop(event_loop.create_task(body(false)));
    one_turn(&event_loop);
    drop(event_loop);
    assert_eq!(
        deaths.lock().unwrap().drain(..).collect::<Vec<_>>(),
        [home; 2]
    );
    let late = wakers.take();
    thread::spawn(move || late.into_iter().for_each(Waker::wake))
        .join()
        .unwrap();
    assert!(deaths.lock().unwrap().is_empty());
}

#[test]
fn fault_a2_a_remote_task_cancelled_by_another_thread_dies_at_home() {
    let deaths: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    let event_loop = real_loop();
    let remote = event_loop.remote();
    let shared = deaths.clone();
    let canceller = thread::spawn(move || {
        let (started, is_started) = mpsc::channel();
        let task = remote
            .create_task(move || {
                let dies = DiesIn(shared, Rc::new(()));
                async move {
                    started.send(()).unwrap();
                    let _dies = dies;
                    pending::<()>().await;
                }
            })
            .unwrap();
        is_started.recv().unwrap();
        task.cancel();
        let result = task.join();
        remote.stop();
        result.unwrap_err().is_cancelled()
    });
    event_loop.run_forever().unwrap();
    assert!(canceller.join().unwrap());
    assert_eq!(*deaths.lock().unwrap(), [thread::current().id()]);
}

// ---- A3 to A5: panics --------------------------------------------------------------------------

type Job = Box<dyn FnOnce()>;

thread_local! {
    /// What a `Send` closure cannot carry.
    static JOBS: RefCell<Vec<Option<Job>>> = const { RefCell::new(Vec::new()) };
}

fn run_job(number: usize) {
    let job = JOBS.with_borrow_mut(|jobs| jobs[number].take()).unwrap();
    job();
}

type Schedule = fn(&EventLoop, usize, Job);

/// Every kind of item, each in the order in which it was scheduled.
const KINDS: [(&str, Schedule); 11] = [
    ("call_soon", |event_loop, _, f| {
        event_loop.call_soon(f);
    }),
    ("call_soon in a context", |event_loop, _, f| {
        static VALUE: ContextVar<u8> = ContextVar::new("value");
        let context = Context::new();
        context.run(|| VALUE.set(1));
        event_loop.call_soon_in(&context, f);
    }),
    ("timer", |event_loop, _, f| {
        event_loop.call_later(Duration::ZERO, f);
    }),
    ("reader", |event_loop, _, f| {
        let (peer, socket) = pair();
        let mut f = Some(f);
        let reader = move || {
            let _ = &peer;
            if let Some(f) = f.take() {
                f();
            }
        };
        socket.shutdown(std::net::Shutdown::Read).unwrap();
        event_loop.add_reader(socket, reader).unwrap();
    }),
    ("writer", |event_loop, _, f| {
        let (peer, socket) = pair();
        let mut f = Some(f);
        let writer = move || {
            let _ = &peer;
            if let Some(f) = f.take() {
                f();
            }
        };
        event_loop.add_writer(socket, writer).unwrap();
    }),
    ("done-callback of a promise", |event_loop, _, f| {
        let (resolver, promise) = event_loop.create_future();
        promise.on_done(move |_| f());
        event_loop.call_soon(move || resolver.settle(()).unwrap());
    }),
    ("done-callback of a task", |event_loop, _, f| {
        event_loop.create_task(async {}).on_done(move |_| f());
    }),
    ("task", |event_loop, _, f| {
        drop(event_loop.create_task(async move { f() }));
    }),
    ("task after an await", |event_loop, _, f| {
        drop(event_loop.create_task(async move {
            coloop::yield_now().await;
            f();
        }));
    }),
    ("remote call", |event_loop, number, f| {
        JOBS.with_borrow_mut(|jobs| jobs.push(Some(f)));
        let remote = event_loop.remote();
        thread::spawn(move || remote.call_soon(move || run_job(number)).is_ok())
            .join()
            .unwrap();
    }),
    ("remote task", |event_loop, number, f| {
        JOBS.with_borrow_mut(|jobs| jobs.push(Some(f)));
        let remote = event_loop.remote();
        thread::spawn(move || {
            remote
                .create_task(move || async move { run_job(number) })
                .is_ok()
        })
        .join()
        .unwrap();
    }),
];

const ITEMS: usize = 5;

/// Five items of a kind, of which the k-th panics; all of them have a turn of their own to come.
fn schedule_five(event_loop: &EventLoop, trace: &Trace, schedule: Schedule, k: usize) {
    JOBS.set(Vec::new());
    for number in 0..ITEMS {
        let log = trace.clone();
        let job = move || {
            log.log(number);
            if number == k {
                panic!("item {number}");
            }
        };
        schedule(event_loop, number, Box::new(job));
    }
}

#[test]
fn fault_a3_a_panic_at_the_kth_item_is_reported_and_the_rest_runs_in_order() {
    for (kind, schedule) in KINDS {
        for k in 0..ITEMS {
            let event_loop = real_loop();
            let trace = Trace::new();
            let log = trace.clone();
            event_loop.set_exception_handler(move |_, context| {
                assert!(context.place().is_some(), "{kind}: where it came from");
                log.log(context.panic_message().unwrap());
            });
            schedule_five(&event_loop, &trace, schedule, k);
            for _ in 0..4 {
                one_turn(&event_loop);
            }
            let mut expected: Vec<String> = (0..ITEMS).map(|number| number.to_string()).collect();
            expected.insert(k + 1, format!("item {k}"));
            assert_eq!(trace.take(), expected, "{kind}, item {k}");
        }
    }
}

#[test]
fn fault_a3_a_propagated_panic_leaves_the_run_with_the_line_behind_it_intact() {
    for (kind, schedule) in KINDS {
        for k in 0..ITEMS {
            let event_loop = builder()
                .panic_policy(PanicPolicy::Propagate)
                .build()
                .unwrap();
            let trace = Trace::new();
            schedule_five(&event_loop, &trace, schedule, k);
            for _ in 0..5 {
                let run = panic::catch_unwind(AssertUnwindSafe(|| one_turn(&event_loop)));
                if let Err(payload) = run {
                    trace.log(payload.downcast_ref::<String>().unwrap());
                    assert!(!event_loop.is_running(), "{kind}");
                    assert!(coloop::try_current().is_err(), "{kind}");
                    assert!(current_task().is_none(), "{kind}");
                }
            }
            let mut expected: Vec<String> = (0..ITEMS).map(|number| number.to_string()).collect();
            expected.insert(k + 1, format!("item {k}"));
            assert_eq!(trace.take(), expected, "{kind}, item {k}");
        }
    }
}

#[test]
fn fault_a3_a_panic_is_reported_in_the_context_of_what_failed_and_in_no_other() {
    static WHO: ContextVar<&str> = ContextVar::new("who");
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| {
        log.log(format!(
            "{} in {:?}",
            context.panic_message().unwrap(),
            WHO.get()
        ));
    });
    let context = Context::new();
    context.run(|| WHO.set("first"));
    event_loop.call_soon_in(&context, || panic!("one"));
    event_loop.call_soon(|| panic!("two"));
    let other = context;
    event_loop.call_soon(move || {
        // A panic that the program catches itself is nobody else's.
        let caught = panic::catch_unwind(AssertUnwindSafe(|| other.run(|| panic!("three"))));
        caught.unwrap_err();
    });
    event_loop.call_soon(|| panic!("four"));
    one_turn(&event_loop);
    trace.assert(&[r#"one in Some("first")"#, "two in None", "four in None"]);
    assert_eq!(WHO.get(), None);
}

/// A waker that panics.
struct Bad;

impl Wake for Bad {
    fn wake(self: Arc<Self>) {
        panic!("bad waker");
    }
}

#[test]
fn fault_a3_a_waker_that_panics_costs_the_other_waiters_nothing() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    report_into(&event_loop, &trace);
    let bad = Waker::from(Arc::new(Bad));
    let mut cx = PollContext::from_waker(&bad);

    // A promise for two.
    let (resolver, mut promise) = event_loop.create_future();
    let second = promise.clone();
    assert!(Pin::new(&mut promise).poll(&mut cx).is_pending());
    let log = trace.clone();
    drop(event_loop.create_task(async move { log.log(second.await.unwrap()) }));
    one_turn(&event_loop);
    event_loop.call_soon(move || resolver.settle("settled").unwrap());
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["panic in a waker: bad waker", "settled"]);

    // A descriptor for two.
    let (peer, socket) = pair();
    let watched = Rc::new(event_loop.watch(socket).unwrap());
    let mut first = Box::pin(watched.readable());
    assert!(first.as_mut().poll(&mut cx).is_pending());
    let (log, second) = (trace.clone(), Rc::clone(&watched));
    drop(event_loop.create_task(async move {
        second.readable().await.unwrap();
        log.log("readable");
    }));
    one_turn(&event_loop);
    send(&peer, "x");
    one_turn(&event_loop);
    one_turn(&event_loop);
    let told = trace.take();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].ends_with("bad waker"), "{told:?}");
    assert_eq!(told[1], "readable");
    drop(first);

    // A deadline for two.
    let log = trace.clone();
    let mut sleep = Box::pin(coloop::sleep(Duration::from_secs(1)));
    let polled = event_loop.run_until_complete(async { sleep.as_mut().poll(&mut cx).is_pending() });
    assert!(polled.unwrap());
    let task = event_loop.create_task(coloop::sleep(Duration::from_secs(1)));
    task.on_done(move |_| log.log("slept"));
    event_loop
        .run_until_complete(coloop::sleep(Duration::from_secs(2)))
        .unwrap();
    trace.assert(&["panic in a waker: bad waker", "slept"]);
}

/// A clock and a selector that panic, at the k-th call.
struct Panicky<T> {
    inner: T,
    left: Cell<u32>,
}

impl<T> Panicky<T> {
    fn new(inner: T, k: u32) -> Rc<Self> {
        let left = Cell::new(k);
        Rc::new(Self { inner, left })
    }

    fn count(&self) {
        let left = self.left.get();
        self.left.set(left.wrapping_sub(1));
        assert_ne!(left, 0, "panicky");
    }
}

impl Clock for Panicky<Rc<coloop::testing::Clock>> {
    fn now(&self) -> Instant {
        self.count();
        self.inner.now()
    }

    fn jump(&self, deadline: Instant) -> bool {
        self.inner.jump(deadline)
    }

    fn is_virtual(&self) -> bool {
        true
    }
}

impl Selector for Panicky<Rc<dyn Selector>> {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.inner.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.inner.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        self.inner.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        self.count();
        self.inner.wait(ready, timeout)?;
        self.count();
        Ok(())
    }

    fn bell(&self) -> Arc<dyn Bell> {
        self.inner.bell()
    }
}

#[test]
fn fault_a3_a_clock_or_a_selector_that_panics_leaves_a_loop_that_runs_on() {
    const NEVER: u32 = u32::MAX;
    let mut panics = [0, 0];
    for k in 0..20 {
        for which in [0, 1] {
            let clock = Panicky::new(coloop::testing::Clock::new(), NEVER);
            let selector = Panicky::new(coloop::default_selector().unwrap(), NEVER);
            let event_loop = builder()
                .clock(Rc::<Panicky<_>>::clone(&clock))
                .selector(Rc::<Panicky<_>>::clone(&selector))
                .build()
                .unwrap();
            let trace = Trace::new();
            let log = trace.clone();
            event_loop.call_soon(trace.logs("callback"));
            drop(event_loop.create_task(async move {
                log.log("task");
                coloop::yield_now().await;
                log.log("task again");
            }));
            event_loop.call_later(Duration::ZERO, trace.logs("timer"));
            let (peer, socket) = pair();
            let (log, source) = (trace.clone(), Rc::clone(&socket));
            event_loop
                .add_reader(socket, move || log.log(drain(&source)))
                .unwrap();
            send(&peer, "read");

            [&clock.left, &selector.left][which].set(k);
            for _ in 0..6 {
                let turn = panic::catch_unwind(AssertUnwindSafe(|| one_turn(&event_loop)));
                panics[which] += u32::from(turn.is_err());
                assert!(!event_loop.is_running() && coloop::try_current().is_err());
            }
            let mut happened = trace.take();
            // What a wait had found when it panicked is found again, in a later turn.
            let at = happened.iter().position(|entry| entry == "read").unwrap();
            happened.remove(at);
            let at = happened.iter().position(|entry| entry == "timer").unwrap();
            happened.remove(at);
            assert_eq!(happened, ["callback", "task", "task again"], "k = {k}");
        }
    }
    assert!(panics[0] > 3 && panics[1] > 3, "{panics:?}");
}

#[test]
fn fault_a4_a_slow_hook_and_a_task_factory_that_panic_do_so_at_their_place() {
    struct Bad(&'static str);
    impl TaskFactory for Bad {
        fn build(&self, builder: TaskBuilder) -> TaskBuilder {
            assert_ne!(self.0, "build", "the factory fails to build");
            builder
        }

        fn wrap(&self, body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
            assert_ne!(self.0, "wrap", "the factory fails to wrap");
            body
        }
    }

    let event_loop = builder().debug(true).build().unwrap();
    let trace = Trace::new();
    report_into(&event_loop, &trace);
    event_loop.set_slow_callback_duration(Duration::ZERO);
    let log = trace.clone();
    event_loop.set_slow_hook(move |_| {
        log.log("slow");
        panic!("the hook fails");
    });
    event_loop.call_soon(trace.logs("one"));
    event_loop.call_soon(trace.logs("two"));
    one_turn(&event_loop);
    let failed = "panic in callback: the hook fails";
    trace.assert(&["one", "slow", failed, "two", "slow", failed]);

    event_loop.set_debug(false);
    for what in ["build", "wrap"] {
        event_loop.set_task_factory(Rc::new(Bad(what)));
        // Whoever makes the task is told, and nothing of it is left.
        let token = Rc::new(());
        let held = Rc::clone(&token);
        let made = panic::catch_unwind(AssertUnwindSafe(|| {
            drop(event_loop.create_task(async move { drop(held) }));
        }));
        assert!(made.is_err());
        assert_eq!(
            (Rc::strong_count(&token), event_loop.all_tasks().len()),
            (1, 0)
        );
        // In a callback it is the callback that fails; from another thread, the task.
        event_loop.call_soon(|| drop(coloop::current().create_task(async {})));
        let remote = event_loop.remote().create_task(|| async {}).unwrap();
        one_turn(&event_loop);
        let told = trace.take();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(
            told.iter()
                .all(|entry| entry.contains(&format!("fails to {what}")))
        );
        let error = remote.join().unwrap_err();
        assert!(error.is_panicked(), "{error}");
    }
    event_loop.reset_task_factory();
    let task = event_loop.create_task(async { "made" });
    assert_eq!(
        event_loop.run_until_complete(task).unwrap().unwrap(),
        "made"
    );
}

#[test]
fn fault_a4_a_handler_that_panics_is_called_again_for_the_next_error() {
    let event_loop = real_loop();
    let trace = TRACE.with(Trace::clone);
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| {
        log.log(format!("told of {}", context.panic_message().unwrap()));
        if context.panic_message() == Some("one") {
            panic_any(Bomb("payload of the handler"));
        }
        panic!("the handler fails");
    });
    event_loop.call_soon(|| panic!("one"));
    event_loop.call_soon(|| panic!("two"));
    event_loop.call_soon(trace.logs("three"));
    one_turn(&event_loop);
    trace.assert(&[
        "told of one",
        "payload of the handler dropped",
        "told of two",
        "three",
    ]);
}

#[test]
fn fault_a4_a_payload_that_panics_when_it_is_dropped_goes_no_further() {
    let event_loop = real_loop();
    let trace = TRACE.with(Trace::clone);
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| {
        assert_eq!(
            context.panic_message(),
            Some("a panic whose payload is not text")
        );
        log.log("told");
    });
    let explode = |name| move || panic_any(Bomb(name));
    let (soon, later) = (explode("soon"), explode("later"));
    let (task, awaited) = (explode("task"), explode("awaited"));
    event_loop.call_soon(soon);
    event_loop.call_later(Duration::ZERO, later);
    drop(event_loop.create_task(async move { task() }));
    let task = event_loop.create_task(async move { awaited() });
    one_turn(&event_loop);
    trace.assert(&[
        "told",
        "soon dropped",
        "told",
        "task dropped",
        "told",
        "later dropped",
    ]);
    let error = event_loop.run_until_complete(task).unwrap().unwrap_err();
    assert!(error.is_panicked());
    drop(error);
    trace.assert(&["awaited dropped"]);

    // One that nobody takes before the loop is gone.
    let forgotten = explode("forgotten");
    let task = event_loop.create_task(async move { forgotten() });
    one_turn(&event_loop);
    drop(event_loop);
    drop(task);
    let told = trace.take();
    assert_eq!(told.last().unwrap(), "forgotten dropped");
}

#[test]
fn fault_a5_a_future_that_panics_when_it_is_cancelled_is_reported_and_its_siblings_are_not_lost() {
    let event_loop = real_loop();
    let trace = Trace::new();
    report_into(&event_loop, &trace);
    let bad = event_loop.create_task(Holds(Explosive(trace.clone(), "bad")));
    let unpolled = event_loop.create_task(Holds(Explosive(trace.clone(), "unpolled")));
    unpolled.cancel();
    let good = event_loop.create_task(Holds(Noted(trace.clone(), "good")));
    one_turn(&event_loop);
    trace.assert(&[
        "unpolled dropped",
        "panic in the destructor of task: destructor of unpolled",
    ]);
    bad.cancel();
    good.cancel();
    one_turn(&event_loop);
    trace.assert(&[
        "bad dropped",
        "panic in the destructor of task: destructor of bad",
        "good dropped",
    ]);
    for task in [bad, unpolled, good] {
        let error = event_loop.run_until_complete(task).unwrap().unwrap_err();
        assert!(error.is_cancelled());
    }
    assert!(event_loop.all_tasks().is_empty());
}

#[test]
fn fault_a5_an_output_that_panics_when_it_is_dropped_goes_no_further() {
    let event_loop = real_loop();
    let trace = Trace::new();
    report_into(&event_loop, &trace);
    let output = |name| Explosive(trace.clone(), name);

    // Nobody wants it, before and after it is there.
    let (early, late) = (output("early"), output("late"));
    drop(event_loop.create_task(async move { early }));
    let task = event_loop.create_task(async move { late });
    // A request that came first makes it nobody's.
    let too_late = output("too late");
    let asked = event_loop.create_task(async move {
        current_task().unwrap().cancel();
        too_late
    });
    one_turn(&event_loop);
    trace.assert(&[
        "early dropped",
        "panic in the destructor of the output of task: destructor of early",
        "too late dropped",
        "panic in the destructor of the output of task: destructor of too late",
    ]);
    drop(task);
    trace.assert(&[
        "late dropped",
        "panic in the destructor of the output of task: destructor of late",
    ]);
    let error = event_loop.run_until_complete(asked).unwrap().err().unwrap();
    assert!(error.is_cancelled());

    // A promise's value that nobody takes.
    let (resolver, promise) = event_loop.create_future();
    resolver.settle(output("value")).ok();
    drop(promise);
    trace.assert(&["value dropped"]);
    one_turn(&event_loop);
}

#[test]
fn fault_a5_everything_is_dropped_with_its_loop_though_some_of_it_panics() {
    struct Factory(#[expect(dead_code, reason = "it is there to be dropped")] Explosive);
    impl TaskFactory for Factory {}

    let event_loop = real_loop();
    let trace = Trace::new();
    let bad = |name| Explosive(trace.clone(), name);
    let good = |name| Noted(trace.clone(), name);
    let mut sockets = Vec::new();
    let mut reader = |held: Box<dyn std::any::Any>| {
        let (peer, socket) = pair();
        sockets.push(peer);
        event_loop
            .add_reader(socket, move || {
                let _ = &held;
            })
            .unwrap();
    };

    reader(Box::new(bad("bad reader")));
    reader(Box::new(good("good reader")));
    drop(event_loop.create_task(Holds(bad("bad task"))));
    drop(event_loop.create_task(Holds(good("good task"))));
    one_turn(&event_loop);
    let (a, b) = (bad("bad callback"), good("good callback"));
    event_loop.call_soon(move || drop(a));
    event_loop.call_soon(move || drop(b));
    let (a, b) = (bad("bad timer"), good("good timer"));
    event_loop.call_later(Duration::from_secs(9), move || drop(a));
    event_loop.call_later(Duration::from_secs(9), move || drop(b));
    drop(event_loop.create_task(Holds(bad("bad new task"))));
    drop(event_loop.create_task(Holds(good("good new task"))));
    let (a, b) = (bad("bad done-callback"), good("good done-callback"));
    let (resolver, promise) = event_loop.create_future::<()>();
    promise.clone().on_done(move |_| drop(a));
    promise.on_done(move |_| drop(b));
    event_loop.call_soon(move || drop(resolver));
    let (hook, handler) = (bad("slow hook"), bad("exception handler"));
    event_loop.set_slow_hook(move |_| {
        let _ = &hook;
    });
    event_loop.set_exception_handler(move |_, _| {
        let _ = &handler;
    });
    event_loop.set_task_factory(Rc::new(Factory(bad("factory"))));
    trace.assert(&[""; 0]);

    event_loop.close().unwrap();
    let mut dropped = trace.take();
    dropped.sort();
    let mut expected: Vec<String> = [
        "reader",
        "task",
        "callback",
        "timer",
        "new task",
        "done-callback",
    ]
    .iter()
    .flat_map(|what| ["bad", "good"].map(|kind| format!("{kind} {what} dropped")))
    .chain(["slow hook", "exception handler", "factory"].map(|what| format!("{what} dropped")))
    .collect();
    expected.sort();
    assert_eq!(dropped, expected);
    for peer in &sockets {
        assert_eq!(drain(peer), "", "the loop's end of it is closed");
    }
}

#[test]
fn fault_a5_a_callback_that_panics_when_it_is_cancelled_or_removed_goes_no_further() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let bad = |name| {
        let held = Explosive(trace.clone(), name);
        move || {
            let _ = &held;
        }
    };
    assert!(event_loop.call_soon(bad("soon")).cancel());
    let timer = event_loop.call_later(Duration::from_secs(1), bad("timer"));
    assert!(timer.cancel());
    let (_peer, socket) = pair();
    let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
    event_loop
        .add_reader(Rc::clone(&socket), bad("replaced"))
        .unwrap();
    event_loop.add_reader(socket, bad("reader")).unwrap();
    assert!(event_loop.remove_reader(number));
    let (_resolver, promise) = event_loop.create_future::<()>();
    let f = bad("done-callback");
    assert!(promise.on_done(move |_| f()).remove());
    let hook = Explosive(trace.clone(), "hook");
    event_loop.set_slow_hook(move |_| {
        let _ = &hook;
    });
    event_loop.reset_slow_hook();
    let handler = Explosive(trace.clone(), "handler");
    event_loop.set_exception_handler(move |_, _| {
        let _ = &handler;
    });
    event_loop.reset_exception_handler();
    trace.assert(&[
        "soon dropped",
        "timer dropped",
        "replaced dropped",
        "reader dropped",
        "done-callback dropped",
        "hook dropped",
        "handler dropped",
    ]);
}

// ---- A6, A7: re-entry --------------------------------------------------------------------------

#[test]
fn fault_a6_running_or_closing_a_loop_from_inside_is_an_error_that_changes_nothing() {
    let (event_loop, other) = (Rc::new(real_loop()), Rc::new(real_loop()));
    let trace = Trace::new();
    let attempts = {
        let (event_loop, other, trace) = (Rc::clone(&event_loop), Rc::clone(&other), trace.clone());
        move |place: &str| {
            let outcomes = [
                event_loop.run_forever().map_err(|e| format!("{e:?}")),
                event_loop
                    .run_until_complete(pending::<()>())
                    .map_err(|e| format!("{e:?}")),
                event_loop
                    .turn(Some(Duration::ZERO))
                    .map(drop)
                    .map_err(|e| format!("{e:?}")),
                event_loop.close().map_err(|e| format!("{e:?}")),
                other.run_forever().map_err(|e| format!("{e:?}")),
                other
                    .turn(Some(Duration::ZERO))
                    .map(drop)
                    .map_err(|e| format!("{e:?}")),
            ];
            let outcomes = outcomes.map(Result::unwrap_err);
            trace.log(format!("{place}: {}", outcomes.join(" ")));
            assert!(event_loop.is_running() && !event_loop.is_closed() && !other.is_running());
            assert!(coloop::current().is_running());
        }
    };
    let refused = "AlreadyRunning AlreadyRunning AlreadyRunning AlreadyRunning \
                   AnotherLoopRunning AnotherLoopRunning";

    let try_in_callback = attempts.clone();
    event_loop.call_soon(move || try_in_callback("callback"));
    let try_in_timer = attempts.clone();
    event_loop.call_later(Duration::ZERO, move || try_in_timer("timer"));
    let try_in_task = attempts.clone();
    let task = event_loop.create_task(async move {
        try_in_task("task");
        assert!(current_task().is_some());
        coloop::yield_now().await;
        try_in_task("task again");
        "done"
    });
    other.call_soon(trace.logs("the other loop"));
    let done = event_loop.run_until_complete(async {
        attempts("main");
        task.await.unwrap()
    });
    assert_eq!(done.unwrap(), "done");
    let expected = ["callback", "task", "main", "timer", "task again"];
    trace.assert(&expected.map(|place| format!("{place}: {refused}")));
    one_turn(&other);
    trace.assert(&["the other loop"]);
}

/// Whoever uses a canary after it has died is found by AddressSanitizer, and by this.
fn canary() -> Rc<String> {
    Rc::new("alive".to_owned())
}

#[test]
fn fault_a7_a_callback_may_drop_whatever_it_runs_in() {
    struct Factory(Rc<String>, Trace);
    impl TaskFactory for Factory {
        fn build(&self, builder: TaskBuilder) -> TaskBuilder {
            coloop::current().reset_task_factory();
            self.1.log(format!("factory builds, {}", self.0));
            builder
        }

        fn wrap(&self, body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
            self.1.log(format!("factory wraps, {}", self.0));
            body
        }
    }

    let event_loop = builder().debug(true).build().unwrap();
    event_loop.set_slow_callback_duration(Duration::MAX);
    let trace = Trace::new();
    let (log, canary) = (|| trace.clone(), canary);

    // Its own handle.
    let own: Rc<Cell<Option<coloop::Handle>>> = Rc::default();
    let (seat, log1, alive) = (Rc::clone(&own), log(), canary());
    own.set(Some(event_loop.call_soon(move || {
        let handle = seat.take().unwrap();
        log1.log(format!("callback cancels itself: {}", handle.cancel()));
        drop((handle, seat));
        log1.log(alive);
    })));
    let own: Rc<Cell<Option<coloop::TimerHandle>>> = Rc::default();
    let (seat, log1, alive) = (Rc::clone(&own), log(), canary());
    own.set(Some(event_loop.call_later(Duration::ZERO, move || {
        let handle = seat.take().unwrap();
        log1.log(format!("timer cancels itself: {}", handle.cancel()));
        drop((handle, seat));
        log1.log(alive);
    })));

    // Its own watch, with the descriptor.
    let (peer, socket) = pair();
    send(&peer, "x");
    let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
    let (log1, alive) = (log(), canary());
    event_loop
        .add_reader(socket, move || {
            let removed = coloop::current().remove_reader(number);
            log1.log(format!("reader removes itself: {removed}, {alive}"));
        })
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&[
        "callback cancels itself: false",
        "alive",
        "reader removes itself: true, alive",
        "timer cancels itself: false",
        "alive",
    ]);

    // Its own task.
    let own: Rc<Cell<Option<Task<()>>>> = Rc::default();
    let (seat, log1, alive) = (Rc::clone(&own), log(), canary());
    own.set(Some(event_loop.create_task(async move {
        let task = seat.take().unwrap();
        task.cancel();
        drop((task, seat));
        log1.log(format!("task, {alive}"));
        coloop::yield_now().await;
        log1.log("is never reached");
    })));
    // Its own done-callback's handle.
    let own: Rc<Cell<Option<coloop::DoneHandle>>> = Rc::default();
    let (seat, log1, alive) = (Rc::clone(&own), log(), canary());
    let (resolver, promise) = event_loop.create_future();
    own.set(Some(promise.on_done(move |_| {
        let handle = seat.take().unwrap();
        log1.log(format!(
            "done-callback removes itself: {}, {alive}",
            handle.remove()
        ));
    })));
    resolver.settle(()).unwrap();
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["task, alive", "done-callback removes itself: false, alive"]);

    // Its own seat as a handler, a hook, a factory.
    let (log1, alive) = (log(), canary());
    event_loop.set_exception_handler(move |handle, _| {
        handle.reset_exception_handler();
        log1.log(format!("handler, {alive}"));
    });
    event_loop.call_soon(|| panic!("told to a handler that goes"));
    let (log1, alive) = (log(), canary());
    event_loop.set_slow_hook(move |_| {
        coloop::current().reset_slow_hook();
        coloop::current().set_slow_callback_duration(Duration::MAX);
        log1.log(format!("hook, {alive}"));
    });
    let handle = event_loop.handle();
    event_loop.call_soon(move || handle.set_slow_callback_duration(Duration::ZERO));
    let (log1, alive) = (log(), canary());
    event_loop.set_task_factory(Rc::new(Factory(alive, log1)));
    event_loop.call_soon(|| drop(coloop::current().create_task(async {})));
    one_turn(&event_loop);
    trace.assert(&[
        "handler, alive",
        "hook, alive",
        "factory builds, alive",
        "factory wraps, alive",
    ]);
    assert!(event_loop.exception_handler().is_none() && event_loop.task_factory().is_none());
}

#[test]
fn fault_a7_a_callback_may_drop_every_handle_of_its_loop() {
    let trace = Trace::new();
    let event_loop = Rc::new(real_loop());
    let (owner, handle, remote) = (
        Rc::clone(&event_loop),
        event_loop.handle(),
        event_loop.remote(),
    );
    let log = trace.clone();
    event_loop.call_soon(move || {
        drop((owner, handle, remote));
        log.log("the loop goes on");
    });
    event_loop.call_soon(trace.logs("with the next"));
    one_turn(&event_loop);
    trace.assert(&["the loop goes on", "with the next"]);
    assert_eq!(Rc::strong_count(&event_loop), 1);
}

// ---- A10 to A12: nobody starves, nothing is lost -----------------------------------------------

/// A chain of callbacks that never ends, with a timer and a reader beside it that serve one another.
struct Beside {
    handle: LoopHandle,
    peer: std::os::unix::net::UnixStream,
    trace: Trace,
    links: Cell<u32>,
    written_at: Cell<u32>,
}

impl Beside {
    fn chain(self: Rc<Self>) {
        self.links.set(self.links.get() + 1);
        let handle = self.handle.clone();
        handle.call_soon(move || self.chain());
    }

    fn write_soon(self: &Rc<Self>) {
        let (this, at) = (Rc::clone(self), self.links.get());
        self.handle.call_later(Duration::ZERO, move || {
            let waited = this.links.get() - at;
            this.trace.log(format!("timer after {waited}"));
            this.written_at.set(this.links.get());
            send(&this.peer, "x");
        });
    }
}

#[test]
fn fault_a10_a_callback_that_reschedules_itself_starves_nobody() {
    let between_waits = std::env::var("COLOOP_TEST_POLL_EVERY").map_or(64, |n| n.parse().unwrap());
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let beside = Rc::new(Beside {
        handle: event_loop.handle(),
        peer,
        trace: trace.clone(),
        links: Cell::new(0),
        written_at: Cell::new(0),
    });
    let (this, source) = (Rc::clone(&beside), Rc::clone(&socket));
    let rounds = Cell::new(0);
    event_loop
        .add_reader(socket, move || {
            drain(&source);
            let waited = this.links.get() - this.written_at.get();
            let in_time = waited <= between_waits + 1;
            this.trace.log(format!("read in time: {in_time}"));
            rounds.set(rounds.get() + 1);
            if rounds.get() == 3 {
                this.handle.stop();
            } else {
                this.write_soon();
            }
        })
        .unwrap();
    Rc::clone(&beside).chain();
    beside.write_soon();
    event_loop.run_forever().unwrap();
    let round = ["timer after 1", "read in time: true"];
    trace.assert(&[round, round, round].concat());
}

#[test]
fn fault_a11_a_descriptor_that_is_always_ready_starves_nobody() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let ((flood, always), (peer, other)) = (pair(), pair());
    send(&flood, "never read");
    let log = trace.clone();
    event_loop
        .add_reader(always, move || log.log("always"))
        .unwrap();
    let (log, source) = (trace.clone(), Rc::clone(&other));
    event_loop
        .add_reader(other, move || log.log(drain(&source)))
        .unwrap();
    let log = trace.clone();
    event_loop.call_later(Duration::ZERO, move || log.log("timer"));
    for word in ["one", "two", "three"] {
        send(&peer, word);
        one_turn(&event_loop);
    }
    let mut first = trace.take();
    let rest = first.split_off(3);
    first.sort();
    assert_eq!(first, ["always", "one", "timer"]);
    let mut rest: Vec<_> = rest.chunks(2).map(<[String]>::to_vec).collect();
    rest.iter_mut().for_each(|turn| turn.sort());
    assert_eq!(rest, [["always", "two"], ["always", "three"]]);
}

#[test]
fn fault_a12_a_million_posts_from_eight_threads_to_a_loop_that_sleeps() {
    const THREADS: usize = 8;
    const EACH: usize = 125_000;
    thread_local!(static NEXT: RefCell<[usize; THREADS]> = const { RefCell::new([0; THREADS]) });

    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let start = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (remote, start) = (event_loop.remote(), start.clone());
            thread::spawn(move || {
                start.wait();
                for count in 0..EACH {
                    let arrive = move || {
                        NEXT.with_borrow_mut(|next| {
                            assert_eq!(next[number], count, "those of one thread keep their order");
                            next[number] += 1;
                            if next.iter().sum::<usize>() == THREADS * EACH {
                                coloop::current().stop();
                            }
                        });
                    };
                    remote.call_soon(arrive).unwrap();
                }
            })
        })
        .collect();
    event_loop.set_panic_policy(PanicPolicy::Propagate);
    event_loop.run_forever().unwrap();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(NEXT.take(), [EACH; THREADS]);
    let (rings, waits) = (probe.rings.load(Ordering::SeqCst), probe.waits());
    // Once for each time it fell asleep, also where it found a letter at its last look; a loop that
    // has not started is asleep too.
    assert!(rings <= waits + 1, "{rings} rings for {waits} waits");
}

// ---- A14 to A17: the end -----------------------------------------------------------------------

#[test]
fn fault_a14_posts_race_with_the_end_of_their_loop_and_none_is_lost() {
    const ROUNDS: usize = 4_000;
    /// Counts how often it was dropped.
    struct Token(Arc<AtomicUsize>);
    impl Drop for Token {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    let (made, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for round in 0..ROUNDS {
        let event_loop = real_loop();
        let (ready, closing) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let poster = {
            let (remote, ready, closing) = (event_loop.remote(), ready.clone(), closing.clone());
            let (made, dropped) = (made.clone(), dropped.clone());
            thread::spawn(move || {
                ready.wait();
                while !closing.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
                let mut tasks = Vec::new();
                loop {
                    made.fetch_add(1, Ordering::SeqCst);
                    let token = Token(dropped.clone());
                    let refused = if round % 2 == 0 {
                        remote.call_soon(move || drop(token)).is_err()
                    } else {
                        let task = remote.create_task(move || async move { drop(token) });
                        task.map(|task| tasks.push(task)).is_err()
                    };
                    if refused {
                        return (remote, tasks);
                    }
                }
            })
        };
        ready.wait();
        closing.store(true, Ordering::SeqCst);
        if round % 4 > 1 {
            one_turn(&event_loop);
        }
        event_loop.close().unwrap();
        // Whoever still has a way in keeps nothing alive with it.
        let (_remote, tasks) = poster.join().unwrap();
        assert_eq!(
            dropped.load(Ordering::SeqCst),
            made.load(Ordering::SeqCst),
            "round {round}: a closure was run or dropped, exactly once"
        );
        for mut task in tasks {
            // Only a task that was lost would make this wait.
            let joined = task.join_timeout(Duration::from_secs(10));
            let joined = joined.expect("a task that its loop has accepted ends with the loop");
            assert!(!matches!(
                joined,
                Err(JoinError::Panicked(_) | JoinError::WouldDeadlock)
            ));
        }
    }
}

#[test]
fn fault_a14_a_closed_loop_refuses_posts_and_drops_them_where_they_were_made() {
    let event_loop = real_loop();
    let remote = event_loop.remote();
    drop(event_loop);
    let deaths: Arc<Mutex<Vec<ThreadId>>> = Arc::default();
    struct Dies(Arc<Mutex<Vec<ThreadId>>>);
    impl Drop for Dies {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(thread::current().id());
        }
    }
    let shared = deaths.clone();
    let poster = thread::spawn(move || {
        let (call, task) = (Dies(shared.clone()), Dies(shared));
        assert!(remote.is_closed());
        let closed = remote.call_soon(|| ()).unwrap_err();
        assert_eq!(closed.to_string(), "the event loop is closed");
        assert_eq!(remote.call_soon(move || drop(call)).err(), Some(closed));
        let refused = remote.create_task(move || async move { drop(task) });
        assert_eq!(refused.err(), Some(closed));
        remote.stop();
        drop(remote.hold("nothing"));
        thread::current().id()
    });
    let poster = poster.join().unwrap();
    assert_eq!(*deaths.lock().unwrap(), [poster; 2]);
}

/// The part of it that needs no executor: work outside that comes back to a loop that is gone.
#[test]
fn fault_a15_work_outside_that_ends_after_its_loop_is_dropped_quietly() {
    let event_loop = real_loop();
    let remote = event_loop.remote();
    let (go, gone) = mpsc::channel::<()>();
    let (posted, is_posted) = mpsc::channel();
    let outside = thread::spawn(move || {
        let hold = remote.hold("work outside");
        let mut task = remote.create_task(pending::<()>).unwrap();
        let call = remote.call_soon(|| ()).unwrap();
        posted.send(()).unwrap();
        gone.recv().unwrap();
        drop(hold);
        let late = remote.call_soon(|| ()).is_err();
        task.cancel();
        let ended = task.join_timeout(Duration::from_secs(10)).unwrap();
        (late, call.is_cancelled(), ended.unwrap_err().is_cancelled())
    });
    is_posted.recv().unwrap();
    drop(event_loop);
    go.send(()).unwrap();
    assert_eq!(outside.join().unwrap(), (true, true, true));
}

/// Makes new work of every kind when it is dropped, which does so again.
struct Breeds {
    handle: LoopHandle,
    left: u32,
    dropped: Rc<Cell<u32>>,
}

impl Drop for Breeds {
    fn drop(&mut self) {
        self.dropped.set(self.dropped.get() + 1);
        if self.left == 0 {
            return;
        }
        let child = || Self {
            handle: self.handle.clone(),
            left: self.left - 1,
            dropped: Rc::clone(&self.dropped),
        };
        let (a, b, c, d) = (child(), child(), child(), child());
        assert!(self.handle.call_soon(move || drop(a)).is_cancelled());
        let timer = self.handle.call_later(Duration::ZERO, move || drop(b));
        assert!(timer.is_cancelled());
        let task = self.handle.create_task(async move { drop(c) });
        assert!(task.is_finished());
        let (resolver, promise) = self.handle.create_future::<()>();
        promise.on_done(move |_| drop(d));
        drop(resolver);
        for task in self.handle.all_tasks() {
            task.cancel();
        }
    }
}

#[test]
fn fault_a16_work_that_is_made_while_the_loop_is_torn_down_is_dropped_too() {
    let dropped = Rc::new(Cell::new(0));
    let event_loop = real_loop();
    let breeds = || Breeds {
        handle: event_loop.handle(),
        left: 3,
        dropped: Rc::clone(&dropped),
    };
    drop(event_loop.create_task(Holds(breeds())));
    one_turn(&event_loop);
    drop(event_loop.create_task(Holds(breeds())));
    drop(
        event_loop
            .task()
            .grace(Duration::from_secs(1))
            .create(Holds(breeds())),
    );
    let (a, b, c) = (breeds(), breeds(), breeds());
    event_loop.call_soon(move || drop(a));
    event_loop.call_later(Duration::from_secs(1), move || drop(b));
    let (_peer, socket) = pair();
    event_loop
        .add_reader(socket, move || {
            let _ = &c;
        })
        .unwrap();
    drop(event_loop);
    let family = 1 + 4 + 16 + 64;
    assert_eq!(dropped.get(), 6 * family);
    assert_eq!(Rc::strong_count(&dropped), 1, "nothing was left behind");
}

/// The part of it that needs no transport: a loop and what it holds, holding one another.
#[test]
fn fault_a17_a_loop_breaks_the_cycles_it_is_part_of() {
    struct Factory(#[expect(dead_code, reason = "it is there to be held")] (LoopHandle, Rc<()>));
    impl TaskFactory for Factory {}

    let token = Rc::new(());
    type Hold = fn(&EventLoop, (LoopHandle, Rc<()>));
    let holders: [(&str, Hold); 12] = [
        ("callback", |event_loop, held| {
            event_loop.call_soon(move || drop(held));
        }),
        ("timer", |event_loop, held| {
            event_loop.call_later(Duration::MAX, move || drop(held));
        }),
        ("timer with its own handle", |event_loop, held| {
            let seat: Rc<Cell<Option<coloop::TimerHandle>>> = Rc::default();
            let own = Rc::clone(&seat);
            seat.set(Some(
                event_loop.call_later(Duration::MAX, move || drop((held, own))),
            ));
        }),
        ("reader", |event_loop, held| {
            let reader = move || {
                let _ = &held;
            };
            event_loop.add_reader(pair().1, reader).unwrap();
        }),
        ("task", |event_loop, held| {
            drop(event_loop.create_task(Holds(held)));
        }),
        ("task with its own handle", |event_loop, held| {
            let seat: Rc<Cell<Option<Task<()>>>> = Rc::default();
            let own = Rc::clone(&seat);
            seat.set(Some(event_loop.create_task(Holds((held, own)))));
        }),
        ("task with its own watch", |event_loop, held| {
            let watched = event_loop.watch(pair().1).unwrap();
            drop(event_loop.create_task(async move {
                let _held = held;
                watched.readable().await.unwrap();
            }));
        }),
        ("done-callback of a task", |event_loop, held| {
            event_loop
                .create_task(pending::<()>())
                .on_done(move |_| drop(held));
        }),
        ("done-callback of a promise", |event_loop, held| {
            let (resolver, promise) = event_loop.create_future::<()>();
            promise.on_done(move |_| drop(held));
            event_loop.call_later(Duration::MAX, move || drop(resolver));
        }),
        ("exception handler", |event_loop, held| {
            event_loop.set_exception_handler(move |_, _| {
                let _ = &held;
            });
        }),
        ("slow hook", |event_loop, held| {
            event_loop.set_slow_hook(move |_| {
                let _ = &held;
            });
        }),
        ("task factory", |event_loop, held| {
            event_loop.set_task_factory(Rc::new(Factory(held)));
        }),
    ];
    for turns in 0..2 {
        for (name, hold) in &holders {
            let event_loop = real_loop();
            hold(&event_loop, (event_loop.handle(), Rc::clone(&token)));
            if turns == 1 && *name != "callback" {
                one_turn(&event_loop);
            }
            assert_eq!(Rc::strong_count(&token), 2, "{name} holds it");
            drop(event_loop);
            assert_eq!(Rc::strong_count(&token), 1, "{name} lets go");
        }
    }
    // A loop that is closed takes nothing more that it would never let go.
    for (name, hold) in &holders {
        if ["reader", "task with its own watch"].contains(name) {
            continue; // refused with an error
        }
        let event_loop = real_loop();
        event_loop.close().unwrap();
        hold(&event_loop, (event_loop.handle(), Rc::clone(&token)));
        drop(event_loop);
        assert_eq!(Rc::strong_count(&token), 1, "{name} after the end");
    }
}

// ---- A18, A19: against models ------------------------------------------------------------------

/// What a body does the next time it is polled.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Wait,
    WakeItself,
    WakeItselfTwice,
    WakeAnother(usize),
    End,
}

/// A task whose polls are scripted, and that wakes itself when it dies.
struct Scripted {
    number: usize,
    world: Rc<World>,
}

/// All of them.
struct World {
    wakers: RefCell<Vec<Vec<Waker>>>,
    steps: RefCell<Vec<Step>>,
    polled: RefCell<Vec<usize>>,
}

impl World {
    fn waker(&self, number: usize) -> Option<Waker> {
        self.wakers.borrow()[number].last().cloned()
    }
}

impl Future for Scripted {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<()> {
        let world = &self.world;
        world.polled.borrow_mut().push(self.number);
        world.wakers.borrow_mut()[self.number].push(cx.waker().clone());
        let step = std::mem::replace(&mut world.steps.borrow_mut()[self.number], Step::Wait);
        match step {
            Step::Wait => {}
            Step::WakeItself => cx.waker().wake_by_ref(),
            Step::WakeItselfTwice => {
                cx.waker().wake_by_ref();
                let by_value = cx.waker().clone();
                by_value.wake();
            }
            Step::WakeAnother(number) => {
                if let Some(waker) = world.waker(number) {
                    waker.wake();
                }
            }
            Step::End => return Poll::Ready(()),
        }
        Poll::Pending
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(waker) = self.world.waker(self.number) {
            waker.wake_by_ref();
            waker.wake();
        }
    }
}

/// What the line has to be: a task stands in it at most once, and not at all when it has ended.
struct Model {
    line: VecDeque<usize>,
    ended: Vec<bool>,
}

impl Model {
    fn wake(&mut self, number: usize) {
        if !self.ended[number] && !self.line.contains(&number) {
            self.line.push_back(number);
        }
    }
}

#[test]
fn fault_a18_polls_follow_wakes_as_in_the_model() {
    const TASKS: usize = 4;
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let event_loop = real_loop();
        let world = Rc::new(World {
            wakers: RefCell::new(vec![Vec::new(); TASKS]),
            steps: RefCell::new(vec![Step::Wait; TASKS]),
            polled: RefCell::default(),
        });
        let mut model = Model {
            line: (0..TASKS).collect(),
            ended: vec![false; TASKS],
        };
        for number in 0..TASKS {
            let world = Rc::clone(&world);
            drop(event_loop.create_task(Scripted { number, world }));
        }
        for _ in 0..400 {
            let number = random.below(TASKS as u64) as usize;
            match random.below(10) {
                0 | 1 => {
                    if let Some(waker) = world.waker(number) {
                        waker.wake_by_ref();
                        model.wake(number);
                    }
                }
                2 => {
                    let waker = world.wakers.borrow_mut()[number].pop();
                    if let Some(waker) = waker {
                        waker.wake();
                        model.wake(number);
                    }
                }
                3 => drop(world.wakers.borrow_mut()[number].pop()),
                4 => {
                    if let Some(waker) = world.waker(number) {
                        thread::spawn(move || waker.wake()).join().unwrap();
                        model.wake(number);
                    }
                }
                5 | 6 => {
                    let step = match random.below(12) {
                        0..3 => Step::WakeItself,
                        3..6 => Step::WakeItselfTwice,
                        6..11 => Step::WakeAnother(random.below(TASKS as u64) as usize),
                        _ => Step::End,
                    };
                    world.steps.borrow_mut()[number] = step;
                }
                _ => {
                    let steps = world.steps.borrow().clone();
                    let has_waker: Vec<bool> = world
                        .wakers
                        .borrow()
                        .iter()
                        .map(|w| !w.is_empty())
                        .collect();
                    one_turn(&event_loop);
                    let batch: Vec<usize> = model.line.drain(..).collect();
                    for (at, number) in batch.iter().enumerate() {
                        let number = *number;
                        match steps[number] {
                            Step::Wait => {}
                            Step::WakeItself | Step::WakeItselfTwice => model.wake(number),
                            // Whoever is still to come in this turn stands in the line already.
                            Step::WakeAnother(other) => {
                                let to_come = batch[at + 1..].contains(&other);
                                let known = has_waker[other] || batch[..=at].contains(&other);
                                if !to_come && known {
                                    model.wake(other);
                                }
                            }
                            Step::End => {
                                model.ended[number] = true;
                                model.line.retain(|other| *other != number);
                            }
                        }
                    }
                    assert_eq!(world.polled.take(), batch, "seed {seed}");
                }
            }
            assert!(world.polled.borrow().is_empty(), "polled outside of a turn");
        }
        drop(event_loop);
        assert_eq!(Rc::strong_count(&world), 1);
        for waker in world.wakers.take().into_iter().flatten() {
            waker.wake(); // the loop is gone
        }
    }
}

/// How the body of a task takes requests to end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manners {
    /// It is dropped.
    Plain,
    /// It puts them off to its end.
    Defers,
    /// It has ten seconds to clean up.
    Graceful,
}

const GRACE: Duration = Duration::from_secs(10);

/// What a task with a request to end has to do next.
struct Cancelling {
    manners: Manners,
    requests: u32,
    started: bool,
    settled: bool,
    cleaning: bool,
    cleaned: bool,
    woken: bool,
    /// When the grace is over, in seconds, and whether it is.
    grace_until: Option<u64>,
    overdue: bool,
    now: u64,
    ended: Option<&'static str>,
}

impl Cancelling {
    fn cancel(&mut self) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.requests += 1;
        self.woken = true;
        if self.manners == Manners::Graceful && self.requests == 1 && self.started {
            self.grace_until = Some(self.now + GRACE.as_secs());
        }
        true
    }

    fn uncancel(&mut self) -> u32 {
        self.requests = self.requests.saturating_sub(1);
        if self.requests == 0 {
            self.overdue = false;
            self.grace_until = None;
        }
        self.requests
    }

    fn settle(&mut self) {
        self.settled = true;
        self.woken |= !self.cleaning;
    }

    fn clean(&mut self) {
        self.cleaned = true;
        self.woken |= self.cleaning;
    }

    fn turn(&mut self) {
        if self.ended.is_none() && self.woken {
            self.woken = false;
            self.poll();
        }
        // Timers come after what was in the line; who is woken by them has the next turn.
        if self.ended.is_none() && self.grace_until.is_some_and(|at| at <= self.now) {
            self.grace_until = None;
            self.overdue = true;
            self.woken = true;
        }
    }

    fn poll(&mut self) {
        let asked = self.requests > 0;
        let gentle = match self.manners {
            Manners::Plain => false,
            Manners::Defers => self.started,
            Manners::Graceful => self.started && !self.overdue,
        };
        if asked && !gentle {
            self.ended = Some("cancelled");
            return;
        }
        self.started = true;
        match self.manners {
            Manners::Plain if self.settled => self.ended = Some("value"),
            Manners::Defers if self.settled => {
                self.ended = Some(if asked { "cancelled" } else { "value" });
            }
            Manners::Graceful => {
                if !self.cleaning && asked {
                    self.cleaning = true;
                }
                if self.cleaning && self.cleaned {
                    self.ended = Some("cleaned up");
                } else if !self.cleaning && self.settled {
                    self.ended = Some("value");
                }
            }
            _ => {}
        }
    }
}

#[test]
fn fault_a19_tasks_end_as_in_the_model() {
    let mut ends = std::collections::BTreeMap::new();
    for manners in [Manners::Plain, Manners::Defers, Manners::Graceful] {
        for seed in 0..400 {
            let mut random = Random::new(seed);
            let (event_loop, clock) = virtual_loop();
            let (resolver, promise) = event_loop.create_future::<()>();
            let (cleaner, cleanup) = event_loop.create_future::<()>();
            let wait = async move { promise.await.map(|()| "value").unwrap() };
            let task = match manners {
                Manners::Plain => event_loop.create_task(wait),
                Manners::Defers => event_loop.create_task(defer_cancel(wait)),
                Manners::Graceful => event_loop.task().grace(GRACE).create(async move {
                    match until_cancelled(wait).await {
                        Ok(value) => value,
                        Err(Cancelled { .. }) => {
                            cleanup.await.unwrap();
                            "cleaned up"
                        }
                    }
                }),
            };
            let mut model = Cancelling {
                manners,
                requests: 0,
                started: false,
                settled: false,
                cleaning: false,
                cleaned: false,
                woken: true,
                grace_until: None,
                overdue: false,
                now: 0,
                ended: None,
            };
            let (mut resolver, mut cleaner) = (Some(resolver), Some(cleaner));
            let mut history = Vec::new();
            for _ in 0..14 {
                let told = |history: &Vec<&str>| format!("{manners:?}, seed {seed}: {history:?}");
                match random.below(12) {
                    0..2 => {
                        history.push("cancel");
                        assert_eq!(task.cancel(), model.cancel(), "{}", told(&history));
                    }
                    2 if model.ended.is_none() => {
                        history.push("uncancel");
                        assert_eq!(task.uncancel(), model.uncancel(), "{}", told(&history));
                    }
                    3 => {
                        if let Some(resolver) = resolver.take() {
                            history.push("settle");
                            resolver.settle(()).ok();
                            model.settle();
                        }
                    }
                    4 => {
                        if let Some(cleaner) = cleaner.take() {
                            history.push("clean");
                            cleaner.settle(()).ok();
                            model.clean();
                        }
                    }
                    5 => {
                        history.push("advance");
                        clock.advance(Duration::from_secs(6));
                        model.now += 6;
                    }
                    _ => {
                        history.push("turn");
                        one_turn(&event_loop);
                        model.turn();
                    }
                }
                let ended = model.ended.is_some();
                assert_eq!(task.is_finished(), ended, "{}", told(&history));
                if !ended {
                    assert_eq!(task.cancelling(), model.requests, "{}", told(&history));
                }
            }
            if let Some(expected) = model.ended {
                let outcome = match event_loop.run_until_complete(task).unwrap() {
                    Ok(value) => value,
                    Err(JoinError::Cancelled(_)) => "cancelled",
                    Err(error) => panic!("{error}"),
                };
                assert_eq!(outcome, expected, "{manners:?}, seed {seed}: {history:?}");
                *ends.entry((format!("{manners:?}"), expected)).or_insert(0) += 1;
            }
        }
    }
    // The sequences reach every end.
    let reached: Vec<_> = ends
        .keys()
        .map(|(manners, end)| format!("{manners} {end}"))
        .collect();
    let expected = [
        "Defers cancelled",
        "Defers value",
        "Graceful cancelled",
        "Graceful cleaned up",
        "Graceful value",
        "Plain cancelled",
        "Plain value",
    ];
    assert_eq!(reached, expected);
}

// ---- A20 to A24 --------------------------------------------------------------------------------

#[test]
fn fault_a20_what_is_cancelled_in_the_batch_it_stands_in_is_not_run_and_is_freed_at_once() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let token = Rc::new(());
    let seats: Rc<RefCell<(Option<coloop::Handle>, Option<coloop::TimerHandle>)>> = Rc::default();
    let (log, seat, count) = (trace.clone(), Rc::clone(&seats), Rc::downgrade(&token));
    event_loop.call_soon(move || {
        let (soon, timer) = seat.take();
        let tell = |cancelled| {
            log.log(format!(
                "cancelled: {cancelled}, held {}",
                Weak::strong_count(&count)
            ));
        };
        tell(soon.unwrap().cancel());
        tell(timer.unwrap().cancel());
    });
    let held = Rc::clone(&token);
    let soon = event_loop.call_soon(move || unreachable!("{held:?} was cancelled"));
    let held = Rc::clone(&token);
    let timer = event_loop.call_later(Duration::ZERO, move || unreachable!("{held:?} was too"));
    seats.replace((Some(soon), Some(timer)));
    event_loop.call_soon(trace.logs("the next"));
    event_loop.call_later(Duration::ZERO, trace.logs("the next timer"));
    assert_eq!(Rc::strong_count(&token), 3);
    one_turn(&event_loop);
    trace.assert(&[
        "cancelled: true, held 2",
        "cancelled: true, held 1",
        "the next",
        "the next timer",
    ]);
}

/// Runs `f` in a thread with a small stack.
fn on_a_small_stack(f: impl FnOnce() + Send + 'static) {
    let builder = thread::Builder::new().stack_size(256 * 1024);
    builder.spawn(f).unwrap().join().unwrap();
}

const LONG: u32 = 100_000;

/// A promise at the end of a chain of done-callbacks, and the resolver at its start.
fn chain_of_promises(handle: &LoopHandle) -> (coloop::Resolver<u32>, coloop::Promise<u32>) {
    let (first, mut last) = handle.create_future::<u32>();
    for _ in 0..LONG {
        let (resolver, next) = handle.create_future();
        std::mem::replace(&mut last, next).on_done(move |value| {
            if let Ok(value) = value {
                resolver.settle(value + 1).unwrap();
            }
        });
    }
    (first, last)
}

#[test]
fn fault_a21_a_long_chain_of_done_callbacks_needs_no_stack() {
    on_a_small_stack(|| {
        let event_loop = real_loop();
        let (first, last) = chain_of_promises(&event_loop);
        first.settle(0).unwrap();
        assert_eq!(event_loop.run_until_complete(last).unwrap(), Ok(LONG));

        // A resolver that is dropped cancels, one after the other.
        let (first, last) = chain_of_promises(&event_loop);
        drop(first);
        assert!(event_loop.run_until_complete(last).unwrap().is_err());
    });
}

#[test]
fn fault_a21_a_long_chain_of_tasks_needs_no_stack() {
    fn chain(handle: &LoopHandle, first: impl Future<Output = u32> + 'static) -> Task<u32> {
        let mut last = handle.create_task(first);
        for _ in 0..LONG {
            last = handle.create_task(async move { last.await.map_or(0, |value| value + 1) });
        }
        last
    }

    on_a_small_stack(|| {
        let event_loop = real_loop();
        let last = chain(&event_loop, async { 0 });
        assert_eq!(event_loop.run_until_complete(last).unwrap().unwrap(), LONG);

        // The first is cancelled; the others go on from there.
        let (resolver, promise) = event_loop.create_future::<u32>();
        let last = chain(&event_loop, async move { promise.await.unwrap_or(7) });
        one_turn(&event_loop);
        drop(resolver);
        assert_eq!(
            event_loop.run_until_complete(last).unwrap().unwrap(),
            LONG + 7
        );

        // They die with their loop.
        drop(chain(&event_loop, pending()));
        one_turn(&event_loop);
        drop(event_loop);
    });
}

#[test]
fn fault_a22_loops_in_turn_and_loops_in_many_threads_do_not_know_of_one_another() {
    static VALUE: ContextVar<usize> = ContextVar::new("value");
    let (one, other) = (real_loop(), real_loop());
    let trace = Trace::new();
    for round in 0..3 {
        for (name, event_loop) in [("one", &one), ("other", &other)] {
            let (log, handle) = (trace.clone(), event_loop.handle());
            event_loop.call_soon(move || {
                assert!(handle.is_running());
                VALUE.set(round);
                log.log(format!("{name} {round}"));
            });
            let task = event_loop.create_task(async { VALUE.get() });
            assert_eq!(event_loop.run_until_complete(task).unwrap().unwrap(), None);
        }
    }
    trace.assert(&["one 0", "other 0", "one 1", "other 1", "one 2", "other 2"]);

    let threads = [0_u32; 4].map(|_| {
        thread::spawn(|| {
            for round in 0..250_u32 {
                let event_loop = real_loop();
                let sum = event_loop.run_until_complete(async {
                    let task = coloop::current().create_task(async move { round });
                    coloop::yield_now().await;
                    task.await.unwrap() + 1
                });
                assert_eq!(sum.unwrap(), round + 1);
                assert!(coloop::try_current().is_err());
            }
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

// `fault_a23` (a loop or a handle in the wrong thread) does not compile: see the doctests of
// `EventLoop` and `LoopHandle`.

/// A loop that dies when its thread does.
struct InThread(EventLoop);

thread_local! {
    static BEFORE: RefCell<Option<InThread>> = const { RefCell::new(None) };
    static AFTER: RefCell<Option<InThread>> = const { RefCell::new(None) };
}

fn full_loop(token: &Arc<()>) -> InThread {
    let event_loop = real_loop();
    let hold = || Arc::clone(token);
    let (a, b, c, d, e, f) = (hold(), hold(), hold(), hold(), hold(), hold());
    drop(event_loop.create_task(async move {
        let _a = a;
        coloop::sleep(Duration::from_secs(60)).await;
    }));
    let watched = event_loop.watch(pair().1).unwrap();
    drop(event_loop.create_task(async move {
        let _b = b;
        watched.readable().await.unwrap();
    }));
    one_turn(&event_loop);
    drop(event_loop.create_task(async move { drop(c) }));
    event_loop.call_soon(move || drop(d));
    event_loop.call_later(Duration::from_secs(60), move || drop(e));
    let reader = move || {
        let _ = &f;
    };
    event_loop.add_reader(pair().1, reader).unwrap();
    event_loop.set_exception_handler(|_, _| ());
    InThread(event_loop)
}

#[test]
fn fault_a24_a_loop_may_die_in_the_destructor_of_a_thread_local() {
    let token = Arc::new(());
    let held = Arc::clone(&token);
    thread::spawn(move || {
        // One is registered before the crate's own thread-locals and one after them, so that one of
        // the two dies when those are gone.
        BEFORE.with_borrow_mut(|seat| assert!(seat.is_none()));
        let before = full_loop(&held);
        BEFORE.with_borrow_mut(|seat| *seat = Some(before));
        let after = full_loop(&held);
        AFTER.with_borrow_mut(|seat| *seat = Some(after));
        assert!(Arc::strong_count(&held) > 12);
    })
    .join()
    .unwrap();
    assert_eq!(Arc::strong_count(&token), 1);

    // The same through the door of policies.
    let held = Arc::clone(&token);
    thread::spawn(move || {
        coloop::policy::set_event_loop(None);
        let InThread(event_loop) = full_loop(&held);
        coloop::policy::set_event_loop(Some(Rc::new(event_loop)));
    })
    .join()
    .unwrap();
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn run_error_of_a_failed_attempt_is_told_apart_from_the_system_s() {
    let event_loop = real_loop();
    event_loop.close().unwrap();
    let error = event_loop.run_forever().unwrap_err();
    assert!(matches!(error, RunError::Closed));
    assert_eq!(io::Error::from(error).kind(), ErrorKind::NotConnected);
}
