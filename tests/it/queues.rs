//! Queues: order, places, shutting down, and that no item is lost whenever a future is dropped.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;

use coloop::sync::{
    LifoQueue, PriorityQueue, Queue, QueueEmpty, QueueFull, QueueShutdown, TryGetError, TryPutError,
};
use coloop::{LocalBoxFuture, yield_now};

use crate::sync::{Dice, now, poll, settle};
use crate::verbs::{Trace, one_turn, real_loop};

const EMPTY: TryGetError = TryGetError::Empty(QueueEmpty);
const SHUT: TryGetError = TryGetError::Shutdown(QueueShutdown(()));

fn full<T>(item: T) -> Result<(), TryPutError<T>> {
    Err(TryPutError::Full(QueueFull(item)))
}

#[test]
fn items_come_out_in_the_order_of_the_queue_s_kind() {
    let all = |queue: &Queue<(u32, &'static str)>| {
        for item in [(2, "a"), (1, "b"), (3, "c"), (1, "a")] {
            queue.try_put(item).unwrap();
        }
        assert_eq!(queue.len(), 4);
        let items: Vec<_> = std::iter::from_fn(|| queue.try_get().ok()).collect();
        assert!(queue.is_empty());
        items
    };
    let (a, b, c, d) = ((2, "a"), (1, "b"), (3, "c"), (1, "a"));
    assert_eq!(all(&Queue::new()), [a, b, c, d]);
    assert_eq!(all(&LifoQueue::new()), [d, c, b, a]);
    assert_eq!(all(&PriorityQueue::new()), [d, b, a, c]);
}

/// Compares by its first half alone.
#[derive(Debug)]
struct Ranked(u32, &'static str);

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Ranked {}

#[test]
fn equal_priorities_keep_the_order_in_which_they_were_put() {
    let queue = PriorityQueue::new();
    for name in ["a", "b", "c", "d", "e"] {
        queue.try_put(Ranked(1, name)).unwrap();
    }
    queue.try_put(Ranked(0, "first")).unwrap();
    let names: Vec<_> = std::iter::from_fn(|| queue.try_get().ok())
        .map(|ranked| ranked.1)
        .collect();
    assert_eq!(names, ["first", "a", "b", "c", "d", "e"]);
}

#[test]
fn a_bounded_queue_makes_who_puts_wait_and_nobody_overtakes() {
    let event_loop = real_loop();
    let queue = Rc::new(Queue::bounded(1).unwrap());
    let trace = Trace::new();
    for item in ["a", "b", "c"] {
        let (queue, log) = (Rc::clone(&queue), trace.clone());
        drop(event_loop.create_task(async move {
            queue.put(item).await.unwrap();
            log.log(format!("put {item}"));
        }));
    }
    one_turn(&event_loop);
    assert!(queue.is_full());
    assert_eq!(queue.try_put("newcomer"), full("newcomer"));
    trace.log(format!("got {}", queue.try_get().unwrap()));
    // The place is promised to b.
    assert!(!queue.is_full());
    assert_eq!(queue.try_put("newcomer"), full("newcomer"));
    settle(&event_loop);
    trace.log(format!("got {}", queue.try_get().unwrap()));
    settle(&event_loop);
    trace.log(format!("got {}", queue.try_get().unwrap()));
    trace.assert(&["put a", "got a", "put b", "got b", "put c", "got c"]);
    assert_eq!(queue.capacity(), Some(1));
}

#[test]
fn an_item_goes_to_who_waited_longest_and_on_when_that_one_is_dropped() {
    let queue = Queue::new();
    let (mut first, mut second) = (queue.get(), queue.get());
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    queue.try_put(1).unwrap();
    assert_eq!((queue.try_get(), queue.len()), (Err(EMPTY), 1));
    drop(first);
    assert_eq!(poll(&mut second), Poll::Ready(Ok(1)));
    assert!(queue.is_empty());
}

#[test]
fn a_put_that_is_dropped_leaves_the_queue_as_it_was_and_can_give_its_item_back() {
    let queue = Queue::bounded(1).unwrap();
    queue.try_put(Rc::new(1)).unwrap();
    let item = Rc::new(2);
    let (mut first, mut second) = (queue.put(Rc::clone(&item)), queue.put(Rc::new(3)));
    assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
    assert_eq!(queue.try_get(), Ok(Rc::new(1)));
    // The place was handed to the first, which passes it on.
    assert_eq!(first.into_item(), Some(item));
    assert_eq!(poll(&mut second), Poll::Ready(Ok(())));
    assert_eq!(second.into_item(), None);

    let item = Rc::new(4);
    let mut third = queue.put(Rc::clone(&item));
    assert!(poll(&mut third).is_pending());
    drop(third);
    assert_eq!(Rc::strong_count(&item), 1);
    assert_eq!((queue.len(), queue.unfinished()), (1, 2));
}

#[test]
fn c_528_more_done_than_put_is_an_error_and_join_returns_at_none() {
    let event_loop = real_loop();
    let queue = Rc::new(Queue::new());
    assert!(queue.task_done().is_err());
    now(queue.join());
    queue.try_put(1).unwrap();
    queue.try_put(2).unwrap();
    let joined = Rc::clone(&queue);
    let join = event_loop.create_task(async move { joined.join().await });
    for _ in 0..2 {
        one_turn(&event_loop);
        assert!(!join.is_finished());
        queue.try_get().unwrap();
        queue.task_done().unwrap();
    }
    // Who waited at that moment goes on, whatever is put before its turn.
    queue.try_put(3).unwrap();
    one_turn(&event_loop);
    assert!(join.is_finished());
    let error = io::Error::from({
        queue.task_done().unwrap();
        queue.task_done().unwrap_err()
    });
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn c_529_a_queue_that_is_shut_down_drains_and_then_fails() {
    let queue = Queue::bounded(2).unwrap();
    queue.try_put(1).unwrap();
    queue.try_put(2).unwrap();
    let mut blocked = queue.put(3);
    assert!(poll(&mut blocked).is_pending());
    queue.shutdown();
    queue.shutdown();
    assert!(queue.is_shut_down());
    assert_eq!(poll(&mut blocked), Poll::Ready(Err(QueueShutdown(3))));
    assert_eq!(now(queue.put(4)), Err(QueueShutdown(4)));
    assert_eq!(queue.try_put(5).unwrap_err().into_item(), 5);
    assert_eq!((now(queue.get()), queue.try_get()), (Ok(1), Ok(2)));
    assert_eq!(now(queue.get()), Err(QueueShutdown(())));
    assert_eq!(queue.try_get(), Err(SHUT));
    let error = io::Error::from(SHUT);
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

    let queue = Queue::<u32>::new();
    let mut blocked = queue.get();
    assert!(poll(&mut blocked).is_pending());
    queue.shutdown();
    assert_eq!(poll(&mut blocked), Poll::Ready(Err(QueueShutdown(()))));
}

#[test]
fn c_529_a_queue_that_is_shut_down_now_gives_its_items_back_and_releases_join() {
    let queue = Queue::bounded(2).unwrap();
    let mut promised = queue.get();
    assert!(poll(&mut promised).is_pending());
    for item in [1, 2] {
        queue.try_put(item).unwrap();
    }
    let (mut join, mut blocked) = (queue.join(), queue.put(3));
    assert!(poll(&mut join).is_pending() && poll(&mut blocked).is_pending());
    assert_eq!(queue.shutdown_now(), [1, 2]);
    assert_eq!((queue.len(), queue.unfinished()), (0, 0));
    assert!(poll(&mut join).is_ready());
    assert_eq!(poll(&mut promised), Poll::Ready(Err(QueueShutdown(()))));
    assert_eq!(poll(&mut blocked), Poll::Ready(Err(QueueShutdown(3))));
    assert_eq!(queue.try_get(), Err(SHUT));
    assert!(queue.task_done().is_err());
    assert!(queue.shutdown_now().is_empty());

    // What was taken and is not done keeps join waiting.
    let queue = PriorityQueue::new();
    for item in [2, 3, 1] {
        queue.try_put(item).unwrap();
    }
    assert_eq!(queue.try_get(), Ok(1));
    assert_eq!((queue.shutdown_now(), queue.unfinished()), (vec![2, 3], 1));
    assert!(poll(&mut queue.join()).is_pending());
    queue.task_done().unwrap();
    now(queue.join());
}

#[test]
fn a_queue_without_room_is_refused() {
    assert!(Queue::<u32>::bounded(0).is_err());
    assert!(LifoQueue::<u32>::bounded(0).is_err());
    assert!(PriorityQueue::<u32>::bounded(0).is_err());
    assert_eq!(
        Queue::<u32>::bounded(usize::MAX).unwrap().capacity(),
        Some(usize::MAX)
    );
}

thread_local! {
    /// What a comparison does, once.
    static COMPARING: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

#[derive(Debug, PartialEq, Eq)]
struct Fussy(u32);

impl Ord for Fussy {
    fn cmp(&self, other: &Self) -> Ordering {
        if let Some(act) = COMPARING.take() {
            act();
        }
        self.0.cmp(&other.0)
    }
}
impl PartialOrd for Fussy {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[test]
fn a_comparison_may_use_its_queue() {
    let queue = Rc::new(PriorityQueue::new());
    queue.try_put(Fussy(2)).unwrap();
    let inside = Rc::clone(&queue);
    COMPARING.set(Some(Box::new(move || {
        assert_eq!(inside.try_get(), Err(EMPTY));
        assert!(poll(&mut inside.get()).is_pending());
        inside.try_put(Fussy(1)).unwrap();
        assert_eq!(inside.len(), 2);
    })));
    queue.try_put(Fussy(3)).unwrap();
    let items: Vec<_> = std::iter::from_fn(|| queue.try_get().ok()).collect();
    assert_eq!(items, [Fussy(1), Fussy(2), Fussy(3)]);
    assert_eq!(queue.len(), 0);
}

#[test]
fn a_comparison_that_panics_loses_no_place() {
    let panics = || COMPARING.set(Some(Box::new(|| panic!("incomparable"))));
    let queue = PriorityQueue::bounded(3).unwrap();
    queue.try_put(Fussy(1)).unwrap();
    panics();
    catch_unwind(AssertUnwindSafe(|| queue.try_put(Fussy(2)))).unwrap_err();
    queue.try_put(Fussy(3)).unwrap();
    assert!(queue.is_full());
    panics();
    catch_unwind(AssertUnwindSafe(|| queue.try_get())).unwrap_err();
    assert_eq!((queue.len(), queue.unfinished()), (2, 2));
    queue.try_put(Fussy(4)).unwrap();
    assert_eq!(std::iter::from_fn(|| queue.try_get().ok()).count(), 3);

    // What came in from inside of a comparison is compared by the next, which panics.
    let queue = Rc::new(PriorityQueue::new());
    queue.try_put(Fussy(2)).unwrap();
    let inside = Rc::clone(&queue);
    COMPARING.set(Some(Box::new(move || inside.try_put(Fussy(1)).unwrap())));
    queue.try_put(Fussy(3)).unwrap();
    panics();
    catch_unwind(AssertUnwindSafe(|| queue.try_get())).unwrap_err();
    assert_eq!((queue.len(), queue.unfinished()), (3, 3));
    assert_eq!(std::iter::from_fn(|| queue.try_get().ok()).count(), 3);
}

/// Puts and gets are made, polled and dropped at random. Every item that was put is got, in order,
/// and in the end all places are there.
#[test]
fn no_item_and_no_place_is_lost_whenever_a_future_is_dropped() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let capacity = 1 + dice.roll(3);
        let queue = Queue::bounded(capacity).unwrap();
        let (put, got) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let last = Cell::new(0);
        let mut futures: Vec<Option<LocalBoxFuture<'_, ()>>> = Vec::new();
        for _ in 0..300 {
            match dice.roll(6) {
                0 => futures.push(Some(Box::pin(async {
                    last.set(last.get() + 1);
                    let item = last.get();
                    queue.put(item).await.unwrap();
                    put.borrow_mut().push(item);
                    yield_now().await;
                }))),
                1 => futures.push(Some(Box::pin(async {
                    let item = queue.get().await.unwrap();
                    got.borrow_mut().push(item);
                    queue.task_done().unwrap();
                    yield_now().await;
                }))),
                2 if !futures.is_empty() => {
                    let at = dice.roll(futures.len());
                    drop(futures[at].take());
                }
                _ if !futures.is_empty() => {
                    let at = dice.roll(futures.len());
                    let future = &mut futures[at];
                    if future
                        .as_mut()
                        .is_some_and(|future| poll(future).is_ready())
                    {
                        *future = None;
                    }
                }
                _ => {}
            }
            assert!(queue.len() <= capacity, "seed {seed}");
        }
        drop(futures);
        let left: Vec<_> = std::iter::from_fn(|| queue.try_get().ok()).collect();
        for _ in &left {
            queue.task_done().unwrap();
        }
        got.borrow_mut().extend(left);
        assert_eq!(put, got, "seed {seed}");
        assert_eq!((queue.len(), queue.unfinished()), (0, 0), "seed {seed}");
        let places = (0..)
            .take_while(|item| queue.try_put(*item).is_ok())
            .count();
        assert_eq!(places, capacity, "seed {seed}");
    }
}
