//! Locks, events, conditions, semaphores and barriers: who goes on, in which order, and that
//! nothing is lost whenever a future is dropped. Queues are in `queues`.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};

use coloop::sync::{
    Barrier, BoundedSemaphore, BrokenBarrier, Condition, Event, Lock, Queue, Semaphore,
};
use coloop::{EventLoop, LocalBoxFuture, Task, WaitOn, yield_now};

use crate::verbs::{Trace, one_turn, real_loop};

/// Polls once, with a waker that nobody hears.
pub(crate) fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut PollContext::from_waker(Waker::noop()))
}

/// The output of a future that does not wait.
#[track_caller]
pub(crate) fn now<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match poll(&mut future) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// Runs until there is nothing to do.
pub(crate) fn settle(event_loop: &EventLoop) {
    for _ in 0..8 {
        one_turn(event_loop);
    }
}

/// Numbers that look random and are the same for each seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// A task that takes the lock, says so, holds it for a turn, and says that it lets go.
fn holder(event_loop: &EventLoop, lock: &Rc<Lock>, trace: &Trace, name: &'static str) -> Task<()> {
    let (lock, log) = (Rc::clone(lock), trace.clone());
    event_loop.create_task(async move {
        let _guard = lock.acquire().await;
        log.log(format!("{name} has it"));
        yield_now().await;
        log.log(format!("{name} lets go"));
    })
}

// ---- Lock
// ----------------------------------------------------------------------------------------

#[test]
fn c_520_a_released_lock_goes_to_who_waited_longest_and_a_newcomer_does_not_overtake() {
    let event_loop = real_loop();
    let (lock, trace) = (Rc::new(Lock::new()), Trace::new());
    let guard = now(lock.acquire());
    for name in ["B", "C"] {
        drop(holder(&event_loop, &lock, &trace, name));
    }
    one_turn(&event_loop);
    drop(guard);
    trace.log(format!("locked: {}", lock.is_locked()));
    trace.log(format!("newcomer: {}", lock.try_acquire().is_some()));
    drop(holder(&event_loop, &lock, &trace, "newcomer"));
    settle(&event_loop);
    trace.assert(&[
        "locked: true",
        "newcomer: false",
        "B has it",
        "B lets go",
        "C has it",
        "C lets go",
        "newcomer has it",
        "newcomer lets go",
    ]);
    assert!(!lock.is_locked());
}

#[test]
fn c_521_a_waiter_that_is_cancelled_at_the_moment_of_its_hand_off_passes_it_on() {
    let event_loop = real_loop();
    for release_first in [true, false] {
        let (lock, trace) = (Rc::new(Lock::new()), Trace::new());
        let guard = now(lock.acquire());
        let first = holder(&event_loop, &lock, &trace, "first");
        drop(holder(&event_loop, &lock, &trace, "second"));
        one_turn(&event_loop);
        if release_first {
            drop(guard);
            first.cancel();
        } else {
            first.cancel();
            drop(guard);
        }
        settle(&event_loop);
        trace.assert(&["second has it", "second lets go"]);
        assert!(!lock.is_locked());
    }
}

#[test]
fn a_lock_needs_no_loop_and_serves_several() {
    let (lock, trace) = (Rc::new(Lock::new()), Trace::new());
    let (one, two) = (real_loop(), real_loop());
    let guard = now(lock.acquire());
    drop(holder(&one, &lock, &trace, "one"));
    drop(holder(&two, &lock, &trace, "two"));
    one_turn(&two);
    one_turn(&one);
    drop(guard);
    settle(&one);
    trace.assert::<&str>(&[]);
    settle(&two);
    settle(&one);
    trace.assert(&["two has it", "two lets go", "one has it", "one lets go"]);
}

// ---- Event
// ---------------------------------------------------------------------------------------

#[test]
fn c_523_who_waited_when_the_event_was_set_goes_on_though_it_is_cleared() {
    let event_loop = real_loop();
    let (event, trace) = (Rc::new(Event::new()), Trace::new());
    for name in ["first", "second"] {
        let (event, log) = (Rc::clone(&event), trace.clone());
        drop(event_loop.create_task(async move {
            event.wait().await;
            log.log(name);
            event.wait().await;
            log.log(format!("{name} again"));
        }));
    }
    one_turn(&event_loop);
    event.set();
    event.clear();
    settle(&event_loop);
    trace.assert(&["first", "second"]);
    event.set();
    settle(&event_loop);
    trace.assert(&["first again", "second again"]);
    now(event.wait());
}

// ---- Condition
// -----------------------------------------------------------------------------------

#[test]
fn c_524_a_condition_s_wait_gives_the_lock_back_and_passes_a_notice_on_when_it_is_dropped() {
    let event_loop = real_loop();
    let shared = Rc::new((Lock::new(), Condition::new()));
    let trace = Trace::new();
    let waiter = |name: &'static str| {
        let (shared, log) = (Rc::clone(&shared), trace.clone());
        event_loop.create_task(async move {
            let (lock, condition) = &*shared;
            let guard = lock.acquire().await;
            log.log(format!("{name} waits"));
            let _guard = condition.wait(guard).await;
            log.log(format!("{name} goes on, locked: {}", lock.is_locked()));
        })
    };
    let (first, _second, third) = (waiter("first"), waiter("second"), waiter("third"));
    settle(&event_loop);
    trace.assert(&["first waits", "second waits", "third waits"]);
    // Notified, and dropped before its turn.
    let (lock, condition) = &*shared;
    condition.notify(1);
    first.cancel();
    settle(&event_loop);
    trace.assert(&["second goes on, locked: true"]);
    // Notified, and dropped while it waits for the lock.
    drop(waiter("fourth"));
    settle(&event_loop);
    let guard = now(lock.acquire());
    condition.notify(1);
    settle(&event_loop);
    assert_eq!(waits(&third), [WaitOn::Lock]);
    third.cancel();
    settle(&event_loop);
    drop(guard);
    settle(&event_loop);
    trace.assert(&["fourth waits", "fourth goes on, locked: true"]);
    assert!(!lock.is_locked());
}

#[test]
fn a_condition_waits_for_what_is_true_and_asks_with_the_lock_held() {
    let event_loop = real_loop();
    let shared = Rc::new((Lock::new(), Condition::new(), Cell::new(0)));
    let trace = Trace::new();
    let (theirs, log) = (Rc::clone(&shared), trace.clone());
    let task = event_loop.create_task(async move {
        let (lock, condition, count) = &*theirs;
        let guard = lock.acquire().await;
        let asks = || {
            log.log(format!("{} locked: {}", count.get(), lock.is_locked()));
            count.get() == 2
        };
        drop(condition.wait_for(guard, asks).await);
    });
    for count in 0..3 {
        settle(&event_loop);
        shared.2.set(count);
        shared.1.notify_all();
    }
    settle(&event_loop);
    trace.assert(&[
        "0 locked: true",
        "0 locked: true",
        "1 locked: true",
        "2 locked: true",
    ]);
    assert!(task.is_finished() && !shared.0.is_locked());
}

// ---- Semaphores
// ----------------------------------------------------------------------------------

#[test]
fn c_525_permits_go_round_in_order_and_a_cancelled_waiter_s_is_not_lost() {
    let event_loop = real_loop();
    let (semaphore, trace) = (Rc::new(Semaphore::new(1)), Trace::new());
    let permit = now(semaphore.acquire());
    let tasks: Vec<_> = ["A", "B", "C", "D"]
        .into_iter()
        .map(|name| {
            let (semaphore, log) = (Rc::clone(&semaphore), trace.clone());
            event_loop.create_task(async move {
                let _permit = semaphore.acquire().await;
                log.log(name);
                yield_now().await;
            })
        })
        .collect();
    one_turn(&event_loop);
    drop(permit);
    assert!(semaphore.try_acquire().is_none());
    tasks[0].cancel();
    settle(&event_loop);
    trace.assert(&["B", "C", "D"]);
    assert_eq!(semaphore.available(), 1);
}

#[test]
fn permits_that_are_added_go_to_those_who_wait_first() {
    let event_loop = real_loop();
    let (semaphore, trace) = (Rc::new(Semaphore::new(0)), Trace::new());
    for name in ["A", "B", "C"] {
        let (semaphore, log) = (Rc::clone(&semaphore), trace.clone());
        drop(event_loop.create_task(async move {
            semaphore.acquire().await.forget();
            log.log(name);
        }));
    }
    one_turn(&event_loop);
    semaphore.add_permits(2);
    settle(&event_loop);
    trace.assert(&["A", "B"]);
    semaphore.add_permits(usize::MAX);
    semaphore.add_permits(usize::MAX);
    settle(&event_loop);
    trace.assert(&["C"]);
    assert_eq!(semaphore.available(), usize::MAX);
}

#[test]
fn a_bounded_semaphore_takes_back_what_was_forgotten_and_no_more() {
    let semaphore = BoundedSemaphore::new(2);
    assert!(semaphore.release().is_err());
    let (kept, forgotten) = (now(semaphore.acquire()), now(semaphore.acquire()));
    forgotten.forget();
    assert!(semaphore.is_locked());
    semaphore.release().unwrap();
    let error = io::Error::from(semaphore.release().unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    drop(kept);
    assert_eq!((semaphore.available(), semaphore.bound()), (2, 2));
}

// ---- Barrier
// -------------------------------------------------------------------------------------

#[test]
fn c_526_a_barrier_lets_all_through_together_each_with_an_index() {
    let event_loop = real_loop();
    let (barrier, trace) = (Rc::new(Barrier::new(3).unwrap()), Trace::new());
    let come = |name: &'static str| {
        let (barrier, log) = (Rc::clone(&barrier), trace.clone());
        event_loop.create_task(async move {
            match barrier.wait().await {
                Ok(index) => log.log(format!("{name}: {index}")),
                Err(error) => log.log(format!("{name}: {error}")),
            }
        })
    };
    let gone = come("gone");
    drop(come("A"));
    one_turn(&event_loop);
    assert_eq!((barrier.waiting(), barrier.parties()), (2, 3));
    gone.cancel();
    drop(come("B"));
    settle(&event_loop);
    trace.assert::<&str>(&[]);
    drop(come("C"));
    drop(come("next round"));
    settle(&event_loop);
    trace.assert(&["C: 2", "A: 0", "B: 1"]);
    let broken = BrokenBarrier.to_string();
    barrier.reset();
    settle(&event_loop);
    trace.assert(&[format!("next round: {broken}")]);
    drop(come("waits"));
    one_turn(&event_loop);
    barrier.abort();
    drop(come("comes later"));
    settle(&event_loop);
    trace.assert(&[format!("waits: {broken}"), format!("comes later: {broken}")]);
    assert!(barrier.is_broken());
    barrier.reset();
    drop((come("A"), come("B"), come("C")));
    settle(&event_loop);
    trace.assert(&["C: 2", "A: 0", "B: 1"]);
    assert!(Barrier::new(0).is_err());
    assert_eq!(now(Barrier::new(1).unwrap().wait()), Ok(0));
}

// ---- All of them
// ---------------------------------------------------------------------------------

/// What a task waits for.
fn waits<T>(task: &Task<T>) -> Vec<WaitOn> {
    task.to_ref()
        .waits()
        .into_iter()
        .map(|wait| wait.on)
        .collect()
}

#[test]
fn a_pending_wait_is_among_those_of_its_task_and_gone_when_it_is_over() {
    let event_loop = real_loop();
    type Make = fn() -> LocalBoxFuture<'static, ()>;
    let made: [(WaitOn, Make); 8] = [
        (WaitOn::Event, || {
            Box::pin(async { Event::new().wait().await })
        }),
        (WaitOn::Lock, || {
            Box::pin(async {
                let lock = Lock::new();
                let _guard = lock.acquire().await;
                drop(lock.acquire().await);
            })
        }),
        (WaitOn::Condition, || {
            Box::pin(async {
                let (lock, condition) = (Lock::new(), Condition::new());
                drop(condition.wait(lock.acquire().await).await);
            })
        }),
        (WaitOn::Semaphore, || {
            Box::pin(async { drop(Semaphore::new(0).acquire().await) })
        }),
        (WaitOn::Barrier, || {
            Box::pin(async {
                let _ = Barrier::new(2).unwrap().wait().await;
            })
        }),
        (WaitOn::Queue, || {
            Box::pin(async {
                let _ = Queue::<u32>::new().get().await;
            })
        }),
        (WaitOn::Queue, || {
            Box::pin(async {
                let queue = Queue::bounded(1).unwrap();
                queue.put(1).await.unwrap();
                queue.put(2).await.unwrap();
            })
        }),
        (WaitOn::Queue, || {
            Box::pin(async {
                let queue = Queue::new();
                queue.put(1).await.unwrap();
                queue.join().await;
            })
        }),
    ];
    for (on, make) in made {
        let task = event_loop.create_task(make());
        one_turn(&event_loop);
        assert_eq!(waits(&task), [on]);
        let place = task.to_ref().waits()[0].place;
        assert!(place.file().ends_with("sync.rs"), "{place}");
        task.cancel();
        one_turn(&event_loop);
        assert_eq!(waits(&task), []);
    }
}

/// Wakers whose clone, drop and wake use what they wait for.
#[test]
fn a_foreign_waker_may_use_what_it_is_told_of() {
    use std::sync::Arc;
    use std::task::Wake;

    thread_local!(static TOOLS: (Lock, Event, Semaphore, Queue<u32>) =
        (Lock::new(), Event::new(), Semaphore::new(0), Queue::new()));

    fn use_them() {
        TOOLS.with(|(lock, event, semaphore, queue)| {
            drop(lock.try_acquire());
            event.set();
            event.clear();
            drop(semaphore.try_acquire());
            semaphore.add_permits(1);
            let _ = (queue.try_get(), queue.try_put(1));
        });
    }

    struct Foreign;
    impl Wake for Foreign {
        fn wake(self: Arc<Self>) {
            use_them();
        }
    }
    impl Drop for Foreign {
        fn drop(&mut self) {
            use_them();
        }
    }

    TOOLS.with(|(lock, event, semaphore, queue)| {
        let guard = now(lock.acquire());
        let mut waits: [LocalBoxFuture<'_, ()>; 4] = [
            Box::pin(async { drop(lock.acquire().await) }),
            Box::pin(event.wait()),
            Box::pin(async { drop(semaphore.acquire().await) }),
            Box::pin(async {
                let _ = queue.get().await;
            }),
        ];
        for wait in &mut waits {
            // Each poll replaces the waker of the one before, and drops it.
            for _ in 0..3 {
                let waker = Waker::from(Arc::new(Foreign));
                let mut cx = PollContext::from_waker(&waker);
                if wait.as_mut().poll(&mut cx).is_ready() {
                    break;
                }
            }
        }
        drop(guard);
        drop(waits);
        assert!(!lock.is_locked());
    });
}

/// Futures of all kinds are made, polled and dropped at random, whatever they have been handed.
/// What is left when all are gone is what there was.
#[test]
fn nothing_is_lost_whenever_a_future_is_dropped() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let permits = 1 + dice.roll(3);
        let semaphore = Semaphore::new(permits);
        let (lock, other) = (Lock::new(), Lock::new());
        let condition = Condition::new();
        let (inside, locked) = (Cell::new(0), Cell::new(0));
        let notices = RefCell::new((0, 0));
        let mut futures: Vec<Option<LocalBoxFuture<'_, ()>>> = Vec::new();
        for _ in 0..200 {
            match dice.roll(8) {
                0 => futures.push(Some(Box::pin(async {
                    let _permit = semaphore.acquire().await;
                    let _inside = Count::new(&inside);
                    assert!(inside.get() <= permits, "seed {seed}");
                    yield_now().await;
                }))),
                1 => futures.push(Some(Box::pin(async {
                    let _guard = lock.acquire().await;
                    let _locked = Count::new(&locked);
                    assert_eq!(locked.get(), 1, "seed {seed}");
                    yield_now().await;
                }))),
                2 => futures.push(Some(Box::pin(async {
                    let guard = other.acquire().await;
                    drop(condition.wait(guard).await);
                    notices.borrow_mut().1 += 1;
                }))),
                3 => {
                    condition.notify(1);
                    notices.borrow_mut().0 += 1;
                }
                4 if !futures.is_empty() => {
                    let at = dice.roll(futures.len());
                    drop(futures[at].take());
                }
                _ if !futures.is_empty() => {
                    let at = dice.roll(futures.len());
                    let future = &mut futures[at];
                    let done = future
                        .as_mut()
                        .is_some_and(|future| poll(future).is_ready());
                    if done {
                        *future = None;
                    }
                }
                _ => {}
            }
        }
        // Whoever is left gets through, in a few rounds.
        for _ in 0..futures.len() + 3 {
            condition.notify_all();
            for future in &mut futures {
                if future
                    .as_mut()
                    .is_some_and(|future| poll(future).is_ready())
                {
                    *future = None;
                }
            }
        }
        assert!(futures.iter().all(Option::is_none), "seed {seed}");
        drop(futures);
        assert_eq!(semaphore.available(), permits, "seed {seed}");
        assert!(!lock.is_locked() && !other.is_locked(), "seed {seed}");
        assert_eq!((inside.get(), locked.get()), (0, 0));
    }
}

/// Counts those who are inside.
struct Count<'a>(&'a Cell<usize>);

impl<'a> Count<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A waiter is dropped at each of its polls; the one behind it always has its turn.
#[test]
fn whoever_stands_behind_a_waiter_that_is_dropped_has_its_turn() {
    for polls in 0..3 {
        for dropped_before_release in [true, false] {
            let semaphore = Semaphore::new(1);
            let held = now(semaphore.acquire());
            let (mut first, mut second) = (semaphore.acquire(), semaphore.acquire());
            for _ in 0..polls {
                assert!(poll(&mut first).is_pending());
            }
            assert!(poll(&mut second).is_pending());
            if dropped_before_release {
                drop(first);
                drop(held);
            } else {
                drop(held);
                drop(first);
            }
            assert!(poll(&mut second).is_ready());
            assert_eq!(semaphore.available(), 1);
        }
    }
    for polls in 0..3 {
        let (lock, condition) = (Lock::new(), Condition::new());
        let mut first = condition.wait(now(lock.acquire()));
        assert!(poll(&mut first).is_pending());
        let mut second = condition.wait(now(lock.acquire()));
        assert!(poll(&mut second).is_pending());
        let guard = now(lock.acquire());
        condition.notify(1);
        for _ in 0..polls {
            assert!(poll(&mut first).is_pending());
        }
        drop(first);
        drop(guard);
        assert!(poll(&mut second).is_ready());
        assert!(!lock.is_locked());
    }
}
