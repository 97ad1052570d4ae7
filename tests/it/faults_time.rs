//! Faults of time: durations beyond reason, clocks that jump, stall and step back, waits that return
//! too early or too late.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use coloop::{
    Bell, Clock, EventLoop, Interest, Readiness, Selector, Source, TimerHandle, default_selector,
    testing,
};

use crate::faults_core::Random;
use crate::fd::{Probe, drain, pair, send};
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Beyond reason, in ascending order; those from the third on are "never".
const LONG: [Duration; 7] = [
    Duration::from_millis(2_151_360_000), // 24.9 days: more milliseconds than an i32 has
    Duration::from_secs(30 * 365 * 24 * 60 * 60),
    Duration::from_nanos(i64::MAX as u64),
    Duration::from_secs(1 << 54),
    Duration::from_secs(u64::MAX / 10),
    Duration::from_secs(u64::MAX),
    Duration::MAX,
];

#[test]
fn fault_b1_long_timers_do_not_fire_and_can_be_cancelled() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let timers: Vec<_> = LONG
        .iter()
        .map(|delay| event_loop.call_later(*delay, trace.logs(format!("{delay:?}"))))
        .collect();
    clock.advance(DAY);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    assert!(timers.is_sorted_by_key(TimerHandle::when));
    assert!(timers[0].when() > event_loop.time());

    // The two that come, come; the others stay.
    event_loop
        .run_until_complete(coloop::sleep(LONG[1]))
        .unwrap();
    trace.assert(&[format!("{:?}", LONG[0]), format!("{:?}", LONG[1])]);
    for (number, timer) in timers.iter().enumerate() {
        assert_eq!(timer.cancel(), number >= 2);
    }
    assert_eq!(event_loop.deadline(), None);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
}

#[test]
fn fault_b1_a_deadline_that_is_never_is_no_deadline() {
    let (event_loop, _) = virtual_loop();
    event_loop.call_later(Duration::MAX, || unreachable!("never"));
    assert_eq!(
        event_loop.deadline(),
        None,
        "a host has nothing to wait for"
    );
    let limited = coloop::timeout(Duration::MAX, async {
        coloop::sleep(DAY).await;
        "slept"
    });
    assert_eq!(event_loop.run_until_complete(limited).unwrap(), Ok("slept"));
}

/// The system is given a timeout it can take, and the loop sleeps on it.
#[test]
fn fault_b1_the_system_sleeps_on_any_timeout() {
    for delay in LONG {
        let probe = Probe::new();
        let event_loop = probe.real_loop();
        let timer = event_loop.call_later(delay, || unreachable!("not in this life"));
        let remote = event_loop.remote();
        let waker = thread::spawn(move || {
            // The first is taken by the loop on its way in, or ends its sleep; the second ends it.
            remote.call_soon(|| ()).unwrap();
            let task = remote.create_task(|| async {}).unwrap();
            task.join().unwrap();
            remote.stop();
        });
        event_loop.run_forever().unwrap();
        waker.join().unwrap();
        assert!(timer.cancel());
        let waits = probe.waits();
        assert!(waits <= 8, "{waits} waits for {delay:?}");
    }
    // And without a selector of the caller's.
    let event_loop = real_loop();
    for delay in LONG {
        event_loop.call_later(delay, || unreachable!("not in this life"));
    }
    let remote = event_loop.remote();
    let waker = thread::spawn(move || {
        remote.create_task(|| async {}).unwrap().join().unwrap();
        remote.stop();
    });
    event_loop.run_forever().unwrap();
    waker.join().unwrap();
}

#[test]
fn fault_b1_short_and_past_deadlines_come_at_once_and_in_order() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    clock.advance(DAY);
    let now = event_loop.time();
    event_loop.call_later(Duration::from_nanos(1), trace.logs("in a nanosecond"));
    event_loop.call_later(Duration::ZERO, trace.logs("now"));
    let past = [
        ("an hour ago", now.checked_sub(Duration::from_secs(3600))),
        ("before the loop was made", now.checked_sub(DAY * 2)),
        (
            "long before",
            now.checked_sub(Duration::from_secs(3600 * 24 * 3)),
        ),
    ];
    for (what, when) in past {
        match when {
            Some(when) => drop(event_loop.call_at(when, trace.logs(what))),
            // A machine that has just been started has no such instant.
            None => drop(event_loop.call_at(now - DAY * 2, trace.logs(what))),
        }
    }
    event_loop.call_soon(trace.logs("soon"));
    one_turn(&event_loop);
    trace.assert(&[
        "soon",
        "long before",
        "before the loop was made",
        "an hour ago",
        "now",
    ]);
    clock.advance(Duration::from_nanos(1));
    one_turn(&event_loop);
    trace.assert(&["in a nanosecond"]);
}

/// A clock that is off by so much from the system's.
struct Off(Rc<testing::Clock>, Duration, bool);

impl Clock for Off {
    fn now(&self) -> Instant {
        let (now, by) = (self.0.now(), self.1);
        let off = if self.2 {
            now.checked_add(by)
        } else {
            now.checked_sub(by)
        };
        off.unwrap_or(now)
    }

    fn jump(&self, deadline: Instant) -> bool {
        let by = deadline.saturating_duration_since(self.now());
        self.0.advance(by);
        true
    }

    fn is_virtual(&self) -> bool {
        true
    }
}

#[test]
fn fault_b2_a_clock_far_from_zero_makes_no_difference() {
    let years = |years: u64| Duration::from_secs(years * 365 * 24 * 60 * 60);
    let program = |by: Duration, ahead: bool| {
        let clock = Rc::new(Off(testing::Clock::new(), by, ahead));
        let event_loop = builder().clock(clock).build().unwrap();
        let trace = Trace::new();
        let start = event_loop.time();
        for seconds in [3, 1, 2, 1] {
            let (log, handle) = (trace.clone(), event_loop.handle());
            event_loop.call_later(Duration::from_secs(seconds), move || {
                log.log(format!("{seconds} at {:?}", handle.time() - start));
            });
        }
        event_loop.call_at(start + DAY, trace.logs("a day"));
        event_loop
            .run_until_complete(coloop::sleep(DAY * 2))
            .unwrap();
        trace.log(format!("{:?}", event_loop.time() - start));
        trace.take()
    };
    let plain = program(Duration::ZERO, true);
    assert_eq!(
        plain,
        [
            "1 at 1s", "1 at 1s", "2 at 2s", "3 at 3s", "a day", "172800s"
        ]
    );
    for (by, ahead) in [
        (years(126), true), // 4,000,000,000 s
        (years(290), true),
        (years(1_000), true),
        (Duration::from_secs(30), false),
    ] {
        assert_eq!(program(by, ahead), plain);
    }
}

/// The wall clock may be set to any time: nothing here reads it.
#[test]
fn fault_b3_the_wall_clock_is_not_read() {
    fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path, found);
            } else {
                found.push(path);
            }
        }
    }

    let mut sources = Vec::new();
    files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut sources,
    );
    assert!(sources.len() > 20);
    for source in sources {
        let text = fs::read_to_string(&source).unwrap();
        for wall_clock in ["SystemTime", "UNIX_EPOCH", "CLOCK_REALTIME", "gettimeofday"] {
            assert!(
                !text.contains(wall_clock),
                "{} reads {wall_clock}",
                source.display()
            );
        }
    }
}

/// A clock whose next readings are known; after them it stays at the last one.
struct Readings {
    origin: Instant,
    millis: RefCell<Vec<u64>>,
}

impl Readings {
    /// Gives the readings in this order.
    fn new(millis: &[u64]) -> Rc<Self> {
        Rc::new(Self {
            origin: Instant::now() + DAY,
            millis: RefCell::new(millis.iter().rev().copied().collect()),
        })
    }
}

impl Clock for Readings {
    fn now(&self) -> Instant {
        let mut millis = self.millis.borrow_mut();
        let reading = if millis.len() > 1 {
            millis.pop()
        } else {
            millis.last().copied()
        };
        self.origin + Duration::from_millis(reading.unwrap_or(0))
    }
}

/// Runs turns that do not wait until `count` entries are in the trace.
#[track_caller]
fn turns_until(event_loop: &EventLoop, trace: &Trace, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..10_000 {
        all.extend(trace.take());
        if all.len() >= count {
            return all;
        }
        one_turn(event_loop);
    }
    panic!("a timer is lost: {all:?}");
}

#[test]
fn fault_b4_a_clock_that_repeats_itself_or_steps_back_loses_no_timer_and_fires_none_twice() {
    let mut random = Random::new(4);
    for round in 0..200 {
        // It goes to and fro, and comes to a second in the end.
        let mut readings: Vec<u64> = vec![500];
        for _ in 0..300 {
            let last = *readings.last().unwrap();
            readings.push(match random.below(4) {
                0 => last,
                1 => last.saturating_sub(random.below(400)),
                _ => (last + random.below(300)).min(1_000),
            });
        }
        readings.push(2_000);
        let clock = Readings::new(&readings);
        let origin = clock.origin;
        let event_loop = builder().clock(clock).build().unwrap();
        let trace = Trace::new();
        let deadlines: Vec<u64> = (0..20).map(|_| random.below(1_000)).collect();
        for (number, deadline) in deadlines.iter().enumerate() {
            let when = origin + Duration::from_millis(*deadline);
            event_loop.call_at(when, trace.logs(number));
        }
        let fired = turns_until(&event_loop, &trace, deadlines.len());
        let mut numbers: Vec<usize> = fired.iter().map(|n| n.parse().unwrap()).collect();
        // The shelf's order, whatever the clock does: nothing is added in the meantime.
        let mut expected: Vec<usize> = (0..deadlines.len()).collect();
        expected.sort_by_key(|number| deadlines[*number]);
        assert_eq!(numbers, expected, "round {round}");
        one_turn(&event_loop);
        numbers.clear();
        trace.assert(&[""; 0]);
    }
}

#[test]
fn fault_b4_a_clock_that_steps_back_while_the_loop_is_busy_keeps_io_alive() {
    // Between two waits the clock goes back by an hour: "not long ago" must not last an hour.
    let hour = 3_600_000;
    let clock = Readings::new(&[hour, hour, hour, hour, 0]);
    let event_loop = builder().clock(clock).build().unwrap();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let (log, source, handle) = (trace.clone(), Rc::clone(&socket), event_loop.handle());
    event_loop
        .add_reader(socket, move || {
            log.log(drain(&source));
            handle.stop();
        })
        .unwrap();
    let links = Rc::new(Cell::new(0));
    chain(&event_loop, Rc::clone(&links), Some(peer));
    event_loop.run_forever().unwrap();
    trace.assert(&["in time"]);
    assert!(links.get() < 200, "{} links", links.get());
}

/// Reschedules itself for ever; its tenth link writes.
fn chain(
    handle: &coloop::LoopHandle,
    links: Rc<Cell<u32>>,
    peer: Option<std::os::unix::net::UnixStream>,
) {
    links.set(links.get() + 1);
    let mut peer = peer;
    if links.get() == 10
        && let Some(peer) = &peer
    {
        send(peer, "in time");
    }
    if links.get() > 1_000 {
        peer = None;
        handle.stop();
    }
    let again = handle.clone();
    handle.call_soon(move || chain(&again, links, peer));
}

#[test]
fn fault_b4_time_at_fifty_times_its_pace_and_time_that_stalls() {
    /// Runs fifty times as fast.
    struct Fast(Instant);
    impl Clock for Fast {
        fn now(&self) -> Instant {
            self.0 + self.0.elapsed() * 50
        }
    }

    let event_loop = builder()
        .clock(Rc::new(Fast(Instant::now())))
        .build()
        .unwrap();
    let trace = Trace::new();
    for millis in [20, 5, 10] {
        let duration = Duration::from_millis(millis);
        event_loop.call_later(duration, trace.logs(millis));
    }
    let before = event_loop.time();
    event_loop
        .run_until_complete(coloop::sleep(Duration::from_millis(30)))
        .unwrap();
    assert!(event_loop.time() - before >= Duration::from_millis(30));
    trace.assert(&["5", "10", "20"]);

    // It stands still: a loop that waits for it asks the system to, and does not spin.
    let probe = Probe::new();
    let clock = Readings::new(&[0]);
    let selector: Rc<Probe> = Rc::clone(&probe);
    let event_loop = builder().clock(clock).selector(selector).build().unwrap();
    event_loop.call_later(DAY, || unreachable!("time stands still"));
    let remote = event_loop.remote();
    let waker = thread::spawn(move || {
        remote.create_task(|| async {}).unwrap().join().unwrap();
        remote.stop();
    });
    event_loop.run_forever().unwrap();
    waker.join().unwrap();
    let waits = probe.waits();
    assert!(waits <= 8, "{waits} waits");
}

#[test]
fn fault_b5_a_timer_that_cancels_itself_or_rearms_in_its_own_callback() {
    fn rearm(handle: coloop::LoopHandle, trace: Trace, left: u32) -> Rc<RefCell<Vec<TimerHandle>>> {
        let timers: Rc<RefCell<Vec<TimerHandle>>> = Rc::default();
        let (own, shared) = (Rc::clone(&timers), handle.clone());
        let timer = handle.call_later(Duration::from_secs(1), move || {
            let cancelled = own.borrow()[0].cancel();
            trace.log(format!("{left}, cancelled: {cancelled}"));
            if left > 0 {
                let next = rearm(shared, trace, left - 1);
                // Armed and cancelled and armed again, from inside.
                assert!(next.borrow()[0].cancel());
                let again = next.borrow()[0].is_cancelled();
                own.borrow_mut().append(&mut next.borrow_mut());
                assert!(again);
            }
        });
        timers.borrow_mut().push(timer);
        timers
    }

    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    rearm(event_loop.handle(), trace.clone(), 2);
    event_loop
        .run_until_complete(coloop::sleep(Duration::from_secs(10)))
        .unwrap();
    trace.assert(&["2, cancelled: false"]);
    assert_eq!(event_loop.deadline(), None);
}

/// A hundred thousand times armed, cancelled, armed again, and let go, against a naive model.
#[test]
fn fault_b5_a_storm_of_timers_agrees_with_a_naive_model() {
    const NAMES: u64 = 300;
    let mut random = Random::new(5);
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let held = Rc::new(());
    let start = event_loop.time();
    let (mut now, mut made) = (0_u64, 0_u64);
    let mut armed: Vec<Option<(TimerHandle, (u64, u64))>> = Vec::new();
    armed.resize_with(NAMES as usize, || None);
    let mut model: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    for _ in 0..100_000 {
        let name = random.below(NAMES);
        let seat = &mut armed[name as usize];
        match random.below(20) {
            0 => {
                now += random.below(30);
                clock.set(start + Duration::from_millis(now));
                one_turn(&event_loop);
                let due: Vec<_> = model.range(..=(now, u64::MAX)).map(|(k, _)| *k).collect();
                let expected: Vec<String> = due
                    .iter()
                    .map(|key| model.remove(key).unwrap().to_string())
                    .collect();
                trace.assert(&expected);
            }
            _ => {
                if let Some((timer, key)) = seat.take() {
                    assert_eq!(timer.cancel(), model.remove(&key).is_some());
                    assert!(!timer.cancel(), "once");
                }
                let deadline = now + random.below(1_000);
                let (log, token) = (trace.clone(), Rc::clone(&held));
                let timer =
                    event_loop.call_at(start + Duration::from_millis(deadline), move || {
                        let _ = &token;
                        log.log(name);
                    });
                made += 1;
                model.insert((deadline, made), name);
                *seat = Some((timer, (deadline, made)));
            }
        }
        assert_eq!(Rc::strong_count(&held), model.len() + 1);
    }
    drop(event_loop);
    assert_eq!(Rc::strong_count(&held), 1);
}

#[test]
fn fault_b6_zero_delays_made_by_due_timers_wait_for_the_next_turn_and_io_is_served() {
    fn again(handle: coloop::LoopHandle, trace: Trace, name: char, left: u32) {
        trace.log(format!("{name}{left}"));
        if left > 0 {
            let inner = handle.clone();
            handle.call_later(Duration::ZERO, move || again(inner, trace, name, left - 1));
        }
    }

    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let (log, source) = (trace.clone(), Rc::clone(&socket));
    event_loop
        .add_reader(socket, move || log.log(drain(&source)))
        .unwrap();
    for name in ['a', 'b'] {
        let (handle, log) = (event_loop.handle(), trace.clone());
        event_loop.call_later(Duration::ZERO, move || again(handle, log, name, 2));
    }
    for word in ["one", "two", "three"] {
        send(&peer, word);
        one_turn(&event_loop);
        trace.log("turn");
    }
    trace.assert(&[
        "one", "a2", "b2", "turn", "two", "a1", "b1", "turn", "three", "a0", "b0", "turn",
    ]);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
}

#[test]
fn fault_b7_ten_thousand_timers_that_are_all_late_fire_once_each_and_in_order() {
    let (event_loop, clock) = virtual_loop();
    let trace = Trace::new();
    let mut random = Random::new(7);
    let mut deadlines: Vec<(u64, usize)> = Vec::new();
    for number in 0..10_000 {
        let millis = random.below(5_000);
        deadlines.push((millis, number));
        event_loop.call_later(Duration::from_millis(millis), trace.logs(number));
    }
    let log = trace.clone();
    drop(event_loop.create_task(async move {
        coloop::sleep(Duration::from_secs(2)).await;
        log.log("sleeper");
    }));
    one_turn(&event_loop);
    trace.take();
    // The machine sleeps for an hour.
    clock.advance(Duration::from_secs(3600));
    one_turn(&event_loop);
    deadlines.retain(|(millis, _)| *millis > 0);
    deadlines.push((2_000, usize::MAX)); // the sleeper, shelved after all the others
    deadlines.sort_unstable();
    let name = |number| match number {
        usize::MAX => "sleeper".to_owned(),
        number => number.to_string(),
    };
    let expected: Vec<String> = deadlines.iter().map(|(_, number)| name(*number)).collect();
    trace.assert(&expected);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    assert_eq!(event_loop.deadline(), None);
}

/// Waits too long by a tenth of a second, by the clock the loop lives by.
struct Late(Rc<dyn Selector>, Rc<testing::Clock>);

impl Selector for Late {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.0.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.0.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        self.0.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        self.1.advance(Duration::from_millis(100));
        self.0.wait(ready, timeout)
    }

    fn bell(&self) -> Arc<dyn Bell> {
        self.0.bell()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor()
    }
}

#[test]
fn fault_b8_a_wait_that_returns_early_fires_nothing_early() {
    let probe = Probe::new();
    probe.early.set(1_000);
    let event_loop = probe.real_loop();
    let trace = Trace::new();
    let due = event_loop.time() + Duration::from_millis(5);
    let (log, handle) = (trace.clone(), event_loop.handle());
    event_loop.call_at(due, move || {
        log.log(format!("in time: {}", handle.time() >= due));
        handle.stop();
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["in time: true"]);
    // Every wait that came too early was told how much is left, and never nothing at all.
    let timeouts = probe.timeouts.borrow();
    let told: Vec<_> = timeouts.iter().map(|timeout| timeout.unwrap()).collect();
    assert!(
        told.iter()
            .all(|timeout| *timeout <= Duration::from_millis(5))
    );
    assert!(told.is_sorted_by(|earlier, later| earlier >= later));
}

#[test]
fn fault_b8_a_wait_that_returns_late_fires_everything_that_is_due_in_order() {
    let clock = testing::Clock::new();
    let selector = Rc::new(Late(default_selector().unwrap(), Rc::clone(&clock)));
    let event_loop = builder()
        .clock(Rc::<testing::Clock>::clone(&clock))
        .selector(selector)
        .build()
        .unwrap();
    let trace = Trace::new();
    let start = event_loop.time();
    for millis in [250, 90, 50, 150, 99] {
        let (log, handle) = (trace.clone(), event_loop.handle());
        event_loop.call_later(Duration::from_millis(millis), move || {
            let at = handle.time() - start;
            assert!(at >= Duration::from_millis(millis), "early");
            log.log(format!("{millis} at {}", at.as_millis()));
        });
    }
    for _ in 0..3 {
        one_turn(&event_loop);
    }
    trace.assert(&[
        "50 at 100",
        "90 at 100",
        "99 at 100",
        "150 at 200",
        "250 at 300",
    ]);
}

#[test]
fn fault_b8_a_wait_that_is_interrupted_is_one_that_returned_early() {
    let probe = Probe::new();
    probe.failures.borrow_mut().extend([libc::EINTR; 3]);
    let event_loop = probe.real_loop();
    let trace = Trace::new();
    let due = event_loop.time() + Duration::from_millis(1);
    let (log, handle) = (trace.clone(), event_loop.handle());
    event_loop.call_at(due, move || {
        log.log(format!("in time: {}", handle.time() >= due));
        handle.stop();
    });
    event_loop.run_forever().unwrap();
    trace.assert(&["in time: true"]);
    assert!(
        probe.failures.borrow().len() < 3,
        "the first wait was interrupted"
    );
}
