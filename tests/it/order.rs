//! The law, sentence by sentence: what one turn does, and in which order.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coloop::testing::Clock;
use coloop::{
    Bell, Builder, EventLoop, ExceptionContext, Interest, LoopHandle, PanicPolicy, Readiness,
    RemoteHandle, Selector, Source, Turn, default_selector,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::verbs::{Trace, builder, one_turn, virtual_loop};

// ---- Tools, also for the other modules -----------------------------------------------------------

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A trace that work from other threads can write to as well.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedTrace(Arc<Mutex<Vec<String>>>);

impl SharedTrace {
    pub(crate) fn log(&self, what: impl ToString) {
        self.0.lock().unwrap().push(what.to_string());
    }

    /// A closure that logs a word.
    pub(crate) fn logs(&self, what: impl ToString) -> impl FnOnce() + Send + 'static {
        let (trace, what) = (self.clone(), what.to_string());
        move || trace.log(what)
    }

    /// Asserts the whole trace, and starts a new one.
    #[track_caller]
    pub(crate) fn assert<S: AsRef<str> + Debug>(&self, expected: &[S]) {
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        assert_eq!(std::mem::take(&mut *self.0.lock().unwrap()), expected);
    }
}

/// What the loop reports from now on: the message and the panic's.
pub(crate) fn reports(event_loop: &EventLoop) -> Trace {
    let trace = Trace::new();
    let log = trace.clone();
    let handler = move |_: &LoopHandle, report: &ExceptionContext| {
        let panic = report.panic_message().unwrap_or("no panic");
        log.log(format!("{}: {panic}", report.message()));
    };
    event_loop.set_exception_handler(handler);
    trace
}

/// Counts how often it is dropped, in any thread.
#[derive(Clone, Default)]
pub(crate) struct Drops(Arc<AtomicUsize>);

pub(crate) struct Dropped(Drops);

impl Drops {
    pub(crate) fn token(&self) -> Dropped {
        Dropped(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Does something in another thread, and waits until it is done.
pub(crate) fn elsewhere<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| scope.spawn(f).join().unwrap())
}

type Before = dyn Fn(Option<Duration>) -> Option<Duration>;
type After = dyn Fn(&mut Vec<Readiness>);

/// The default selector with a hand on it.
pub(crate) struct Tap {
    inner: Rc<dyn Selector>,
    rings: Arc<Rings>,
    before: Box<Before>,
    after: Box<After>,
}

struct Rings {
    inner: Arc<dyn Bell>,
    count: AtomicUsize,
}

impl Bell for Rings {
    fn ring(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.inner.ring();
    }
}

impl Tap {
    /// `before` is told the timeout of each wait, and says how long the wait is to be.
    pub(crate) fn new(before: impl Fn(Option<Duration>) -> Option<Duration> + 'static) -> Rc<Self> {
        Self::with(before, |_| ())
    }

    /// `after` may change what a wait reports.
    fn with(
        before: impl Fn(Option<Duration>) -> Option<Duration> + 'static,
        after: impl Fn(&mut Vec<Readiness>) + 'static,
    ) -> Rc<Self> {
        let inner = default_selector().unwrap();
        let rings = Arc::new(Rings {
            inner: inner.bell(),
            count: AtomicUsize::new(0),
        });
        Rc::new(Self {
            inner,
            rings,
            before: Box::new(before),
            after: Box::new(after),
        })
    }

    /// How often the bell has been rung.
    fn rings(&self) -> usize {
        self.rings.count.load(Ordering::SeqCst)
    }
}

impl Selector for Tap {
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
        self.inner.wait(ready, (self.before)(timeout))?;
        (self.after)(ready);
        Ok(())
    }

    fn bell(&self) -> Arc<dyn Bell> {
        let rings: Arc<Rings> = Arc::clone(&self.rings);
        rings
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }
}

/// A clock moved by hand that the loop takes for the system's: it waits where it would jump.
pub(crate) struct HandClock {
    now: Cell<Instant>,
    readings: Cell<usize>,
    at_next_reading: Cell<Option<Box<dyn FnOnce()>>>,
}

impl HandClock {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(Instant::now()),
            readings: Cell::new(0),
            at_next_reading: Cell::new(None),
        })
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.now.set(self.now.get() + by);
    }
}

impl coloop::Clock for HandClock {
    fn now(&self) -> Instant {
        self.readings.set(self.readings.get() + 1);
        if let Some(f) = self.at_next_reading.take() {
            f();
        }
        self.now.get()
    }
}

/// The timeouts of a loop's waits.
pub(crate) type Waits = Rc<RefCell<Vec<Option<Duration>>>>;

/// A loop whose waits take no time: each is noted, and the clock is put forward by it.
pub(crate) fn noting_loop() -> (EventLoop, Rc<HandClock>, Waits) {
    let (clock, waits) = (HandClock::new(), Waits::default());
    let (hand, notes) = (Rc::clone(&clock), Rc::clone(&waits));
    let tap = Tap::new(move |timeout| {
        notes.borrow_mut().push(timeout);
        hand.advance(timeout.unwrap_or_default());
        Some(Duration::ZERO)
    });
    let event_loop = builder()
        .selector(tap)
        .clock(Rc::<HandClock>::clone(&clock))
        .build()
        .unwrap();
    (event_loop, clock, waits)
}

/// A loop that logs "wait" whenever it waits.
pub(crate) fn tracing_loop(trace: &Trace) -> EventLoop {
    let log = trace.clone();
    let tap = Tap::new(move |timeout| {
        log.log("wait");
        timeout
    });
    builder().selector(tap).build().unwrap()
}

/// A loop that calls `f` each time it has fallen asleep: now a letter has to ring.
pub(crate) fn loop_that_sleeps(
    builder: Builder,
    mut f: impl FnMut(&RemoteHandle) + 'static,
) -> (EventLoop, Rc<Tap>) {
    let seat = Rc::new(OnceCell::new());
    let remote = Rc::clone(&seat);
    let f = RefCell::new(move |timeout| {
        if timeout != Some(Duration::ZERO) {
            f(remote.get().unwrap());
        }
        timeout
    });
    let tap = Tap::new(move |timeout| (f.borrow_mut())(timeout));
    let event_loop = builder.selector(Rc::<Tap>::clone(&tap)).build().unwrap();
    seat.set(event_loop.remote()).unwrap();
    (event_loop, tap)
}

/// A socket that has a byte to read, and its peer.
pub(crate) fn readable_socket() -> (Rc<UnixStream>, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    (&far).write_all(b"x").unwrap();
    (Rc::new(near), far)
}

pub(crate) fn read_byte(mut socket: &UnixStream) {
    socket.read_exact(&mut [0]).unwrap();
}

/// Watches a socket, and logs a word for each byte that it reads.
pub(crate) fn log_bytes(handle: &LoopHandle, socket: &Rc<UnixStream>, trace: &Trace, word: &str) {
    let (near, trace, word) = (Rc::clone(socket), trace.clone(), word.to_owned());
    let reader = move || {
        read_byte(&near);
        trace.log(&word);
    };
    handle.add_reader(Rc::clone(socket), reader).unwrap();
}

/// Tells whether a descriptor is readable now.
pub(crate) fn is_readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).unwrap() == 1
}

/// Calls `f` with 1 to `last`, one number a turn.
pub(crate) fn chain(handle: &LoopHandle, last: usize, f: impl FnMut(usize) + 'static) {
    fn link(handle: LoopHandle, at: usize, last: usize, mut f: impl FnMut(usize) + 'static) {
        handle.clone().call_soon(move || {
            f(at);
            if at < last {
                link(handle, at + 1, last, f);
            }
        });
    }
    link(handle.clone(), 1, last, f);
}

fn numbers(range: impl Iterator<Item = usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

// ---- The seven steps -----------------------------------------------------------------------------

#[test]
fn step_1_the_timeout_is_zero_if_the_line_is_not_empty() {
    let (event_loop, _, waits) = noting_loop();
    event_loop.call_later(SECOND, || ());
    let handle = event_loop.handle();
    chain(&event_loop, 3, move |at| {
        if at == 3 {
            handle.stop();
        }
    });
    event_loop.run_forever().unwrap();
    assert_eq!(waits.take(), [Some(Duration::ZERO); 3]);
}

#[test]
fn step_1_the_timeout_is_zero_if_a_stop_was_asked() {
    let (event_loop, _, waits) = noting_loop();
    event_loop.call_later(SECOND, || ());
    event_loop.stop();
    event_loop.run_forever().unwrap();
    event_loop.remote().stop();
    event_loop.run_forever().unwrap();
    assert_eq!(waits.take(), [Some(Duration::ZERO); 2]);
}

#[test]
fn step_1_else_the_timeout_lasts_until_the_nearest_deadline() {
    let (event_loop, _, waits) = noting_loop();
    let handle = event_loop.handle();
    event_loop.call_later(5 * SECOND, move || handle.stop());
    event_loop.call_later(2 * SECOND, || ());
    event_loop.run_forever().unwrap();
    assert_eq!(waits.take(), [Some(2 * SECOND), Some(3 * SECOND)]);
}

#[test]
fn step_1_else_there_is_no_timeout() {
    let (event_loop, _, waits) = noting_loop();
    event_loop.turn(None).unwrap();
    event_loop.call_later(Duration::MAX, || ());
    event_loop.turn(None).unwrap();
    assert_eq!(waits.take(), [None; 2], "a timer that never comes is none");
}

/// The letter comes after the loop has looked whether there is anything to do, and before it sleeps.
#[test]
fn step_2_the_loop_looks_at_the_letter_box_once_more_before_it_waits() {
    let (event_loop, clock, waits) = noting_loop();
    event_loop.call_later(SECOND, || ());
    let remote = event_loop.remote();
    clock
        .at_next_reading
        .set(Some(Box::new(move || elsewhere(move || remote.stop()))));
    event_loop.run_forever().unwrap();
    assert_eq!(waits.take(), [Some(Duration::ZERO)]);

    let (remote, trace) = (event_loop.remote(), SharedTrace::default());
    let letter = trace.logs("letter");
    let post = move || elsewhere(move || remote.call_soon(letter).map(drop)).unwrap();
    clock.at_next_reading.set(Some(Box::new(post)));
    event_loop.turn(None).unwrap();
    assert_eq!(waits.take(), [Some(Duration::ZERO)]);
    trace.assert(&["letter"]);
}

#[test]
fn step_2_a_letter_that_comes_while_the_loop_says_asleep_rings_and_the_next_ones_do_not() {
    let trace = SharedTrace::default();
    let log = trace.clone();
    let (event_loop, tap) = loop_that_sleeps(builder(), move |remote| {
        log.log("asleep");
        elsewhere(|| {
            for number in 1..=3 {
                remote.call_soon(log.logs(number)).unwrap();
            }
            remote.stop();
        });
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["asleep", "1", "2", "3"]);
    assert_eq!(tap.rings(), 1);
}

/// First before the loop has ever slept, then after a sleep that a deadline has ended.
#[test]
fn step_2_a_letter_that_comes_while_the_loop_says_awake_does_not_ring() {
    let clock = HandClock::new();
    let hand = Rc::clone(&clock);
    let tap = Tap::new(move |timeout| {
        hand.advance(timeout.unwrap());
        Some(Duration::ZERO)
    });
    let builder = builder().selector(Rc::<Tap>::clone(&tap)).clock(clock);
    let event_loop = builder.build().unwrap();
    let trace = SharedTrace::default();
    let post = |word: &'static str, then: fn()| {
        let (log, remote) = (trace.clone(), event_loop.remote());
        let letter = move || {
            log.log(word);
            then();
        };
        move || elsewhere(|| remote.call_soon(letter).map(drop)).unwrap()
    };
    event_loop.call_soon(post("before the sleep", || ()));
    event_loop.call_later(SECOND, post("after it", || coloop::current().stop()));
    event_loop.run_forever().unwrap();
    trace.assert(&["before the sleep", "after it"]);
    assert_eq!(tap.rings(), 0);
}

#[test]
fn step_3_letters_join_the_end_of_the_line_in_arrival_order() {
    let (event_loop, _) = virtual_loop();
    let trace = SharedTrace::default();
    let (log, handle, remote) = (trace.clone(), event_loop.handle(), event_loop.remote());
    event_loop.call_soon(move || {
        handle.call_soon(log.logs("before"));
        elsewhere(|| {
            for number in 1..=3 {
                remote.call_soon(log.logs(number)).unwrap();
            }
        });
        handle.call_soon(log.logs("after"));
    });
    one_turn(&event_loop);
    trace.assert::<&str>(&[]);
    one_turn(&event_loop);
    trace.assert(&["before", "after", "1", "2", "3"]);
}

#[test]
fn step_4_watchers_join_the_line_in_the_order_in_which_the_selector_reported_them() {
    for backwards in [false, true] {
        let tap = Tap::with(
            |timeout| timeout,
            move |ready| {
                ready.sort_by_key(|one| one.key);
                if backwards {
                    ready.reverse();
                }
            },
        );
        let event_loop = builder().selector(tap).build().unwrap();
        let trace = Trace::new();
        let sockets = [readable_socket(), readable_socket(), readable_socket()];
        let mut expected = ["first", "second", "third"];
        for ((near, _), word) in sockets.iter().zip(expected) {
            log_bytes(&event_loop, near, &trace, word);
        }
        // Keys grow with each watch that is made.
        if backwards {
            expected.reverse();
        }
        one_turn(&event_loop);
        trace.assert(&expected);
    }
}

#[test]
fn step_5_the_clock_is_read_after_the_wait() {
    let clock = HandClock::new();
    let hand = Rc::clone(&clock);
    let overslept = Tap::new(move |_| {
        hand.advance(3 * SECOND);
        Some(Duration::ZERO)
    });
    let event_loop = builder().selector(overslept).clock(clock).build().unwrap();
    let trace = Trace::new();
    for seconds in [1, 2, 3, 4] {
        event_loop.call_later(seconds * SECOND, trace.logs(seconds));
    }
    one_turn(&event_loop);
    trace.assert(&["1", "2", "3"]);
}

#[test]
fn step_5_what_is_due_joins_by_deadline_and_then_by_order_of_creation() {
    let (event_loop, clock) = virtual_loop();
    let (trace, began) = (Trace::new(), event_loop.time());
    for (seconds, word) in [(2, "2a"), (1, "1a"), (2, "2b"), (3, "3"), (1, "1b")] {
        event_loop.call_at(began + seconds * SECOND, trace.logs(word));
    }
    clock.advance(2 * SECOND);
    one_turn(&event_loop);
    trace.assert(&["1a", "1b", "2a", "2b"]);
}

#[test]
fn step_6_what_the_items_of_a_turn_add_waits_for_the_next_turn() {
    let trace = Trace::new();
    let event_loop = tracing_loop(&trace);
    for word in ["a", "b"] {
        let (trace, handle) = (trace.clone(), event_loop.handle());
        event_loop.call_soon(move || {
            trace.log(word);
            handle.call_soon(trace.logs(format!("{word} of {word}")));
        });
    }
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["wait", "a", "b", "wait", "a of a", "b of b"]);
}

#[test]
fn step_7_a_stop_leaves_when_the_turn_is_finished() {
    let (event_loop, _) = virtual_loop();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    let log = trace.clone();
    event_loop.call_soon(move || {
        handle.stop();
        handle.call_soon(log.logs("next"));
        log.log("stop");
    });
    event_loop.call_soon(trace.logs("same turn"));
    event_loop.run_forever().unwrap();
    trace.assert(&["stop", "same turn"]);
    one_turn(&event_loop);
    trace.assert(&["next"]);
}

// ---- So -----------------------------------------------------------------------------------------

#[test]
fn what_was_ready_before_the_poll_comes_first_then_letters_then_io_then_timers() {
    let (event_loop, _) = virtual_loop();
    let trace = SharedTrace::default();
    event_loop.call_later(Duration::ZERO, trace.logs("timer"));
    let (near, _far) = readable_socket();
    let log = trace.clone();
    let writer = move || log.log("writer");
    event_loop.add_writer(Rc::clone(&near), writer).unwrap();
    let log = trace.clone();
    event_loop
        .add_reader(near, move || log.log("reader"))
        .unwrap();
    let remote = event_loop.remote();
    elsewhere(|| remote.call_soon(trace.logs("letter")).map(drop)).unwrap();
    event_loop.call_soon(trace.logs("ready"));
    one_turn(&event_loop);
    trace.assert(&["ready", "letter", "reader", "writer", "timer"]);
}

#[test]
fn items_of_every_kind_are_first_in_first_out() {
    let (event_loop, _) = virtual_loop();
    let trace = SharedTrace::default();
    let (resolver, promise) = event_loop.create_future();
    let (log, waiter) = (trace.clone(), trace.clone());
    let awaiting = event_loop.create_task(async move {
        promise.await.unwrap();
        waiter.log("woken task");
    });
    one_turn(&event_loop);

    event_loop.call_soon(trace.logs("callback"));
    let task = event_loop.create_task(async move { log.log("task") });
    event_loop.remote().call_soon(trace.logs("remote")).unwrap();
    resolver.settle(()).unwrap();
    let (settled, promise) = event_loop.create_future();
    settled.settle(()).unwrap();
    let log = trace.clone();
    promise.on_done(move |_| log.log("done-callback"));
    event_loop.call_soon(trace.logs("last"));
    let log = trace.clone();
    event_loop
        .run_until_complete(async move { log.log("main") })
        .unwrap();
    trace.assert(&[
        "callback",
        "task",
        "remote",
        "woken task",
        "done-callback",
        "last",
        "main",
    ]);
    assert!(awaiting.is_finished() && task.is_finished());
}

#[test]
fn ten_thousand_callbacks_are_first_in_first_out() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    for number in 0..10_000 {
        event_loop.call_soon(trace.logs(number));
    }
    one_turn(&event_loop);
    trace.assert(&numbers(0..10_000));
}

#[test]
fn call_later_zero_runs_after_every_call_soon_made_before_it() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    event_loop.call_soon(trace.logs("a"));
    event_loop.call_later(Duration::ZERO, trace.logs("later"));
    event_loop.call_soon(trace.logs("b"));
    one_turn(&event_loop);
    trace.assert(&["a", "b", "later"]);

    // The same from inside a turn.
    let (handle, log) = (event_loop.handle(), trace.clone());
    event_loop.call_soon(move || {
        handle.call_soon(log.logs("a"));
        handle.call_later(Duration::ZERO, log.logs("later"));
    });
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["a", "later"]);
}

#[test]
fn ties_between_timers_of_either_kind_are_in_order_of_creation() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let sleeper = event_loop.create_task(async move {
        coloop::sleep(SECOND).await;
        log.log("sleep");
    });
    event_loop.call_later(SECOND, trace.logs("before"));
    one_turn(&event_loop);
    event_loop.call_later(SECOND, trace.logs("after"));
    clock.advance(SECOND);
    one_turn(&event_loop);
    trace.assert(&["before", "sleep", "after"]);
    assert!(sleeper.is_finished());
}

// ---- Letters keep their order --------------------------------------------------------------------

#[test]
fn before_a_run_a_callback_a_task_and_a_callback_run_in_this_order() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.call_soon(trace.logs("a"));
    let task = event_loop.create_task(async move { log.log("b") });
    event_loop.call_soon(trace.logs("c"));
    one_turn(&event_loop);
    trace.assert(&["a", "b", "c"]);
    assert!(task.is_finished());
}

/// A remote task is made by an item of the line, and its first step is the next one.
#[test]
fn remote_calls_on_the_home_thread_before_a_run_keep_their_order_too() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let log = trace.clone();
    remote.call_soon(trace.logs("a")).unwrap();
    let task = remote.create_task(move || {
        log.log("b is made");
        async move { log.log("b") }
    });
    remote.call_soon(trace.logs("c")).unwrap();
    event_loop.call_soon(trace.logs("d"));
    one_turn(&event_loop);
    trace.assert(&["a", "b is made", "c", "d"]);
    one_turn(&event_loop);
    trace.assert(&["b"]);
    assert!(task.unwrap().is_finished());
}

#[test]
fn a_remote_call_on_the_home_thread_first_empties_the_letter_box() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    elsewhere(|| remote.call_soon(trace.logs("letter")).map(drop)).unwrap();
    remote.call_soon(trace.logs("home")).unwrap();
    event_loop.call_soon(trace.logs("last"));
    one_turn(&event_loop);
    trace.assert(&["letter", "home", "last"]);
}

#[test]
fn a_wake_on_the_home_thread_first_empties_the_letter_box() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let (resolver, promise) = event_loop.create_future();
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        promise.await.unwrap();
        log.log("woken");
    });
    one_turn(&event_loop);

    elsewhere(|| remote.call_soon(trace.logs("letter")).map(drop)).unwrap();
    resolver.settle(()).unwrap();
    event_loop.call_soon(trace.logs("last"));
    one_turn(&event_loop);
    trace.assert(&["letter", "woken", "last"]);
    assert!(task.is_finished());
}

#[test]
fn a_plain_call_soon_does_not_look_at_the_letter_box() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    elsewhere(|| remote.call_soon(trace.logs("letter")).map(drop)).unwrap();
    event_loop.call_soon(trace.logs("plain"));
    one_turn(&event_loop);
    trace.assert(&["plain", "letter"]);
}

// ---- The clock -----------------------------------------------------------------------------------

/// How often the clock had been read in the run when each item of a chain ran.
fn readings_seen_by(builder: Builder, items: usize) -> Vec<usize> {
    let clock = HandClock::new();
    let event_loop = builder
        .clock(Rc::<HandClock>::clone(&clock))
        .build()
        .unwrap();
    let (seen, before) = (Rc::new(RefCell::new(Vec::new())), clock.readings.get());
    let (notes, handle) = (Rc::clone(&seen), event_loop.handle());
    chain(&event_loop, items, move |at| {
        notes.borrow_mut().push(clock.readings.get() - before);
        if at == items {
            handle.stop();
        }
    });
    event_loop.run_forever().unwrap();
    seen.take()
}

#[test]
fn the_clock_is_read_after_each_wait() {
    let every_turn = readings_seen_by(EventLoop::builder().poll_every(1), 20);
    assert_eq!(every_turn, (1..=20).collect::<Vec<_>>());
}

#[test]
fn the_clock_is_read_every_eight_items_while_waits_are_skipped() {
    let skipping = readings_seen_by(EventLoop::builder().poll_every(64), 64);
    let expected: Vec<_> = (0..64).map(|item| item / 8 + 1).collect();
    assert_eq!(skipping, expected);
}

#[test]
fn call_later_reads_the_clock_itself() {
    let (event_loop, clock) = virtual_loop();
    let (handle, when) = (event_loop.handle(), Rc::new(Cell::new(None)));
    let (seat, hand) = (Rc::clone(&when), Rc::clone(&clock));
    event_loop.call_soon(move || {
        hand.advance(5 * SECOND);
        seat.set(Some(handle.call_later(SECOND, || ()).when()));
    });
    let began = event_loop.time();
    one_turn(&event_loop);
    assert_eq!(when.take(), Some(began + 6 * SECOND));
}

#[test]
fn since_when_a_task_waits_is_the_reading_of_its_turn() {
    let (event_loop, clock) = virtual_loop();
    let began = event_loop.time();
    event_loop.call_soon(move || clock.advance(5 * SECOND));
    let (_resolver, promise) = event_loop.create_future::<()>();
    let task = event_loop.create_task(promise);
    one_turn(&event_loop);
    let since: Vec<_> = task
        .to_ref()
        .waits()
        .iter()
        .map(|wait| wait.since)
        .collect();
    assert_eq!(since, [began]);
}

// ---- Skipping the system wait --------------------------------------------------------------------

const ITEMS: usize = 150;

/// The trace of a chain whose first item makes a watched socket readable.
fn chain_with_socket(
    builder: Builder,
    first: impl FnOnce(&Clock) + 'static,
    drive: impl FnOnce(&EventLoop),
) -> Vec<String> {
    let clock = Clock::new();
    let event_loop = builder.clock(Rc::<Clock>::clone(&clock)).build().unwrap();
    let (trace, (near, far)) = (Trace::new(), UnixStream::pair().unwrap());
    log_bytes(&event_loop, &Rc::new(near), &trace, "read");
    let (log, handle, mut first) = (trace.clone(), event_loop.handle(), Some(first));
    chain(&event_loop, ITEMS, move |at| {
        log.log(at);
        if let Some(first) = first.take() {
            (&far).write_all(b"x").unwrap();
            first(&clock);
        }
        if at == ITEMS {
            handle.stop();
        }
    });
    drive(&event_loop);
    trace.take()
}

/// The trace where the reader joined the line behind this item.
fn joined_behind(item: usize) -> Vec<String> {
    let mut trace = numbers(1..=ITEMS);
    trace.insert(item, "read".to_owned());
    trace
}

fn run(event_loop: &EventLoop) {
    event_loop.run_forever().unwrap();
}

fn drive(event_loop: &EventLoop) {
    while event_loop.turn(Some(Duration::ZERO)).unwrap() != Turn::StopAsked {}
}

fn default_builder() -> Builder {
    EventLoop::builder().debug(false)
}

/// The first turn waits, and the next wait is that of the turn that 64 items precede.
#[test]
fn a_busy_loop_waits_once_64_items_have_run_since_the_last_wait() {
    assert_eq!(
        chain_with_socket(default_builder(), |_| (), run),
        joined_behind(65)
    );
}

#[test]
fn what_counts_is_items_not_turns() {
    for (batch, expected) in [
        (63, ["a", "b", "c", "read"]),
        (64, ["a", "b", "read", "c"]),
        (65, ["a", "b", "read", "c"]),
    ] {
        let event_loop = default_builder().clock(Clock::new()).build().unwrap();
        let (trace, (near, far)) = (Trace::new(), UnixStream::pair().unwrap());
        log_bytes(&event_loop, &Rc::new(near), &trace, "read");
        for _ in 0..batch - 1 {
            event_loop.call_soon(|| ());
        }
        let (log, handle) = (trace.clone(), event_loop.handle());
        chain(&event_loop, 3, move |at| {
            log.log(["a", "b", "c"][at - 1]);
            match at {
                1 => (&far).write_all(b"x").unwrap(),
                2 => {}
                _ => handle.stop(),
            }
        });
        event_loop.run_forever().unwrap();
        assert_eq!(trace.take(), expected, "{batch} items in the first turn");
    }
}

#[test]
fn poll_every_says_how_many_items() {
    for (items, item) in [(1, 2), (2, 3), (8, 9), (100, 101)] {
        let builder = default_builder().poll_every(items);
        let trace = chain_with_socket(builder, |_| (), run);
        assert_eq!(trace, joined_behind(item), "poll_every({items})");
    }
}

/// The ninth turn reads the clock, and sees that the time is over.
#[test]
fn a_busy_loop_waits_after_200_microseconds_by_a_clock_read_every_8_items() {
    for (micros, item) in [(199, 65), (200, 9)] {
        let advance = move |clock: &Clock| clock.advance(Duration::from_micros(micros));
        let trace = chain_with_socket(default_builder(), advance, run);
        assert_eq!(trace, joined_behind(item), "after {micros} µs");
    }
}

#[test]
fn it_never_skips_in_debug_mode() {
    let trace = chain_with_socket(EventLoop::builder().debug(true), |_| (), run);
    assert_eq!(trace, joined_behind(2));
    let switch_on = |_: &Clock| coloop::current().set_debug(true);
    let trace = chain_with_socket(default_builder(), switch_on, run);
    assert_eq!(trace, joined_behind(2), "switched on by the first item");
}

#[test]
fn it_never_skips_when_a_host_drives_the_turns() {
    let trace = chain_with_socket(default_builder(), |_| (), drive);
    assert_eq!(trace, joined_behind(2));
}

#[test]
fn it_never_skips_with_a_caller_s_selector() {
    let waits = Rc::new(Cell::new(0));
    let count = Rc::clone(&waits);
    let tap = Tap::new(move |timeout| {
        count.set(count.get() + 1);
        timeout
    });
    let trace = chain_with_socket(default_builder().selector(tap), |_| (), run);
    assert_eq!(trace, joined_behind(2));
    assert_eq!(waits.get(), ITEMS, "it waits in every turn");
}

#[test]
fn it_never_skips_on_a_run_s_first_turn() {
    let ways_to_end_a_run: [fn(&LoopHandle); 3] = [
        LoopHandle::stop,
        |handle| handle.remote().stop(),
        |_| panic!("out of the run"),
    ];
    for end in ways_to_end_a_run {
        let event_loop = default_builder().clock(Clock::new()).build().unwrap();
        event_loop.set_panic_policy(PanicPolicy::Propagate);
        let (trace, (near, far)) = (Trace::new(), UnixStream::pair().unwrap());
        log_bytes(&event_loop, &Rc::new(near), &trace, "read");
        let (log, handle) = (trace.clone(), event_loop.handle());
        chain(&event_loop, 3, move |at| {
            log.log(at);
            if at == 2 {
                handle.stop();
            }
        });
        let handle = event_loop.handle();
        event_loop.call_soon(move || end(&handle));
        let _ = catch_unwind(AssertUnwindSafe(|| event_loop.run_forever().unwrap()));
        (&far).write_all(b"x").unwrap();
        event_loop.run_forever().unwrap();
        one_turn(&event_loop);
        trace.assert(&["1", "2", "read", "3"]);
    }
}

#[test]
fn it_never_skips_on_a_turn_that_begins_with_a_stop_asked() {
    for ask in [
        |h: &LoopHandle| h.stop(),
        |h: &LoopHandle| h.remote().stop(),
    ] {
        let event_loop = default_builder().clock(Clock::new()).build().unwrap();
        let (trace, (near, _far)) = (Trace::new(), readable_socket());
        log_bytes(&event_loop, &near, &trace, "read");
        event_loop.call_soon(trace.logs("ready"));
        ask(&event_loop);
        event_loop.run_forever().unwrap();
        trace.assert(&["ready", "read"]);
    }
}

#[test]
fn a_turn_that_skips_the_wait_still_empties_the_letter_box() {
    let event_loop = default_builder().clock(Clock::new()).build().unwrap();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let (log, handle) = (trace.clone(), event_loop.handle());
    chain(&event_loop, 4, move |at| {
        log.log(at);
        match at {
            2 => elsewhere(|| remote.call_soon(log.logs("letter")).map(drop)).unwrap(),
            4 => handle.stop(),
            _ => {}
        }
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["1", "2", "3", "letter", "4"]);
}

#[test]
fn a_turn_that_skips_the_wait_still_moves_what_is_due() {
    let event_loop = default_builder().clock(Clock::new()).build().unwrap();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    let log = trace.clone();
    chain(&event_loop, 4, move |at| {
        log.log(at);
        match at {
            2 => drop(handle.call_later(Duration::ZERO, log.logs("due"))),
            4 => handle.stop(),
            _ => {}
        }
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["1", "2", "3", "due", "4"]);
}

/// Less time passes than would make it wait, so the timer is seen by the reading of the ninth turn.
#[test]
fn a_turn_that_skips_the_wait_reads_the_clock_for_a_deadline() {
    let clock = Clock::new();
    let builder = default_builder().clock(Rc::<Clock>::clone(&clock));
    let event_loop = builder.build().unwrap();
    let (trace, handle) = (Trace::new(), event_loop.handle());
    let timer = Duration::from_micros(150);
    event_loop.call_later(timer, trace.logs("due"));
    let log = trace.clone();
    chain(&event_loop, 10, move |at| {
        log.log(at);
        match at {
            1 => clock.advance(timer),
            10 => handle.stop(),
            _ => {}
        }
    });
    event_loop.run_forever().unwrap();
    let mut expected = numbers(1..=10);
    expected.insert(9, "due".to_owned());
    trace.assert(&expected);
}

#[test]
fn a_turn_that_skips_the_wait_still_leaves_when_a_stop_was_asked() {
    for from_afar in [false, true] {
        let event_loop = default_builder().clock(Clock::new()).build().unwrap();
        let (trace, handle) = (Trace::new(), event_loop.handle());
        let log = trace.clone();
        chain(&event_loop, 5, move |at| {
            log.log(at);
            match (at, from_afar) {
                (3, false) => handle.stop(),
                (3, true) => {
                    let remote = handle.remote();
                    elsewhere(move || remote.stop());
                }
                _ => {}
            }
        });
        event_loop.run_forever().unwrap();
        trace.assert(&["1", "2", "3"]);
    }
}

// ---- Asleep unless in a turn ---------------------------------------------------------------------

#[test]
fn a_letter_posted_between_a_host_s_turns_always_rings() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let door = event_loop.descriptor().unwrap();
    for round in 0..3 {
        assert!(!is_readable(&door));
        elsewhere(|| remote.call_soon(trace.logs(round)).map(drop)).unwrap();
        assert!(is_readable(&door) && !event_loop.is_idle());
        event_loop.turn(Some(Duration::ZERO)).unwrap();
        trace.assert(&[round.to_string()]);
    }
    assert!(!is_readable(&door) && event_loop.is_idle());
}

#[test]
fn a_stop_asked_between_a_host_s_turns_rings() {
    let (event_loop, _) = virtual_loop();
    let remote = event_loop.remote();
    let door = event_loop.descriptor().unwrap();
    elsewhere(move || remote.stop());
    assert!(is_readable(&door));
    let turn = event_loop.turn(Some(Duration::ZERO)).unwrap();
    assert_eq!(turn, Turn::StopAsked);
    assert!(!is_readable(&door) && event_loop.is_idle());
}

/// The host may be asleep further up in this very thread.
#[test]
fn a_remote_call_on_the_home_thread_between_turns_rings() {
    let (event_loop, _) = virtual_loop();
    let (trace, door) = (SharedTrace::default(), event_loop.descriptor().unwrap());
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    event_loop.remote().call_soon(trace.logs("home")).unwrap();
    assert!(is_readable(&door));
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    trace.assert(&["home"]);
    assert!(!is_readable(&door));
}

#[test]
fn a_letter_that_came_in_a_turn_keeps_the_host_from_falling_asleep() {
    let (event_loop, _) = virtual_loop();
    let (trace, remote) = (SharedTrace::default(), event_loop.remote());
    let (door, letter) = (event_loop.descriptor().unwrap(), trace.logs("letter"));
    event_loop.call_soon(move || elsewhere(|| remote.call_soon(letter).map(drop)).unwrap());
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    trace.assert::<&str>(&[]);
    assert!(is_readable(&door) && !event_loop.is_idle());
    event_loop.turn(Some(Duration::ZERO)).unwrap();
    trace.assert(&["letter"]);
    assert!(!is_readable(&door) && event_loop.is_idle());
}

/// Before its first run the loop is not in a turn either.
#[test]
fn a_letter_posted_before_the_first_turn_rings() {
    let (event_loop, _) = virtual_loop();
    let (remote, door) = (event_loop.remote(), event_loop.descriptor().unwrap());
    assert!(!is_readable(&door));
    elsewhere(|| remote.call_soon(|| ()).map(drop)).unwrap();
    assert!(is_readable(&door));
}
