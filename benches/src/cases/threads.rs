//! Work from another thread, by the loop's own door and through a channel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use futures::StreamExt;
use futures::channel::{mpsc, oneshot};

use super::{Post, Tasks};
use crate::measure::{Span, emit_quantiles, pin, wall};

static POSTED: AtomicU64 = AtomicU64::new(0);

/// Not empty, so that boxing it allocates; what it counts is touched by the loop's thread alone.
fn posted(value: u64) -> impl FnOnce() + Send {
    move || {
        POSTED.fetch_add(value, Ordering::Relaxed);
    }
}

type Job = Box<dyn FnOnce() + Send>;

pub(super) async fn post_own<L: Tasks>(l: L, n: u64) {
    let Some(door) = l.post() else { return };
    let (done, wait) = oneshot::channel();
    let span = Span::start();
    let poster = thread::spawn(move || {
        pin(1);
        for value in 1..=n {
            door.post(posted(value));
        }
        door.post(move || done.send(()).unwrap());
        door
    });
    wait.await.unwrap();
    span.emit("post-own", n);
    assert_eq!(POSTED.load(Ordering::Relaxed), n * (n + 1) / 2);
    drop(poster.join().unwrap());
}

pub(super) async fn post_channel(n: u64) {
    let (sender, mut receiver) = mpsc::unbounded::<Job>();
    let span = Span::start();
    let poster = thread::spawn(move || {
        pin(1);
        for value in 1..=n {
            sender.unbounded_send(Box::new(posted(value))).unwrap();
        }
    });
    while let Some(job) = receiver.next().await {
        job();
    }
    span.emit("post-channel", n);
    assert_eq!(POSTED.load(Ordering::Relaxed), n * (n + 1) / 2);
    poster.join().unwrap();
}

pub(super) async fn round_trip_own<L: Tasks>(l: L, n: u64) {
    let Some(door) = l.post() else { return };
    let (done, wait) = oneshot::channel();
    let caller = thread::spawn(move || {
        let times = round_trips(n, |trip| door.post(move || trip.end()));
        done.send(times).unwrap();
        door
    });
    emit_quantiles("round-trip-own", wait.await.unwrap());
    drop(caller.join().unwrap());
}

pub(super) async fn round_trip_channel(n: u64) {
    let (sender, mut receiver) = mpsc::unbounded::<Job>();
    let caller = thread::spawn(move || {
        round_trips(n, |trip| {
            sender.unbounded_send(Box::new(move || trip.end())).unwrap();
        })
    });
    while let Some(job) = receiver.next().await {
        job();
    }
    emit_quantiles("round-trip-channel", caller.join().unwrap());
}

struct Trip {
    number: u64,
    caller: Thread,
}

impl Trip {
    fn end(self) {
        POSTED.store(self.number, Ordering::Release);
        self.caller.unpark();
    }
}

/// Thread → loop → thread, `n` times. Each side is asleep when the other one calls.
fn round_trips(n: u64, post: impl Fn(Trip)) -> Vec<u64> {
    pin(1);
    thread::sleep(Duration::from_millis(20));
    let mut times = Vec::with_capacity(n as usize);
    for number in 1..=n {
        let start = wall();
        post(Trip {
            number,
            caller: thread::current(),
        });
        while POSTED.load(Ordering::Acquire) != number {
            thread::park();
        }
        times.push(wall() - start);
    }
    times
}
