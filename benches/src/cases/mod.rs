//! The cases, generic over what a contestant can do.
//!
//! A contestant implements [`Tasks`], [`Callbacks`], [`Later`], or some of them, on the handle that
//! its users would hold. Every case runs once in a process of its own. Bodies run inside a spawned
//! task, not in the runtime's main future, which some runtimes wake the long way round; the one case
//! that asks about the main future says so in its name. Loops warm up by [`WARM`] operations, a
//! number that does not grow with `n`, so that a difference of two counts cancels it.

mod callbacks;
mod tasks;
mod threads;
mod timers;

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use self::callbacks::{batches, call_soon_bytes, link};
use self::tasks::{
    ping_pong, spawn_all, spawn_await, task_bytes, yield_hundred, yield_one, yield_one_own,
};
use self::threads::{post_channel, post_own, round_trip_channel, round_trip_own};
use self::timers::{call_laters, lateness, sleeps};

/// A loop of tasks; the value is the handle that a user of it holds.
pub(crate) trait Tasks: Clone + 'static {
    type Post: Post;

    /// Makes a loop and runs `main` on this thread to its end.
    fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Self) -> F + 'static);

    /// Starts a task that need not be `Send`; what it gives back joins the task.
    fn spawn<F>(&self, body: F) -> impl Future<Output = ()> + use<Self, F> + 'static
    where
        F: Future<Output = ()> + 'static;

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<Self> + 'static;

    /// The loop's own yield, where it has one.
    const OWN_YIELD: bool = false;
    fn own_yield(&self) -> impl Future<Output = ()> + use<Self> + 'static {
        yield_once()
    }

    /// The loop's own door for closures from other threads, where it has one.
    fn post(&self) -> Option<Self::Post> {
        None
    }
}

/// What another thread holds to run closures on the loop.
pub(crate) trait Post: Send + 'static {
    fn post(&self, closure: impl FnOnce() + Send + 'static);
}

/// For loops without such a door.
pub(crate) enum NoPost {}

impl Post for NoPost {
    fn post(&self, _: impl FnOnce() + Send + 'static) {
        match *self {}
    }
}

/// A loop of plain callbacks.
pub(crate) trait Callbacks: Clone + 'static {
    /// Makes a loop, calls `start` on it, runs it until [`Callbacks::stop`].
    fn drive(start: impl FnOnce(Self) + 'static);
    fn call_soon(&self, callback: impl FnOnce() + 'static);
    fn stop(&self);
}

/// A loop of callbacks that has timers too.
pub(crate) trait Later: Callbacks {
    type Timer: 'static;
    fn call_later(&self, delay: Duration, callback: impl FnOnce() + 'static) -> Self::Timer;
    fn cancel(&self, timer: Self::Timer);
}

const WARM: u64 = 2_000;

/// Runs a case of tasks; does nothing for a name it does not know.
pub(crate) fn tasks<L: Tasks>(case: &str, n: u64) {
    match case {
        "spawn" => in_task(move |l: L| spawn_all(l, n)),
        "spawn-await" => in_task(move |l: L| spawn_await(l, n, "spawn-await")),
        "spawn-await-main" => L::run(move |l| spawn_await(l, n, "spawn-await-main")),
        "yield-1" => in_task(move |_: L| yield_one(n)),
        "yield-1-own" if L::OWN_YIELD => in_task(move |l: L| yield_one_own(l, n)),
        "yield-100" => in_task(move |l: L| yield_hundred(l, n)),
        "ping-pong" => in_task(move |l: L| ping_pong(l, n)),
        "sleep" => in_task(move |l: L| sleeps(l, n, false)),
        "sleep-bytes" => in_task(move |l: L| sleeps(l, n, true)),
        "lateness" => in_task(move |l: L| lateness(l, n)),
        "task-bytes" => in_task(move |l: L| task_bytes(l, n)),
        "post-own" => in_task(move |l: L| post_own(l, n)),
        "post-channel" => in_task(move |_: L| post_channel(n)),
        "round-trip-own" => in_task(move |l: L| round_trip_own(l, n)),
        "round-trip-channel" => in_task(move |_: L| round_trip_channel(n)),
        _ => {}
    }
}

/// Runs a case of callbacks; does nothing for a name it does not know.
pub(crate) fn callbacks<L: Callbacks>(case: &str, n: u64) {
    match case {
        "call-soon-batch" => L::drive(move |l| batches(l, n)),
        "call-soon-chain" => L::drive(move |l| link(l, WARM + n, n, None)),
        "call-soon-bytes" => L::drive(move |l| call_soon_bytes(l, n)),
        _ => {}
    }
}

/// Runs a case of timed callbacks; does nothing for a name it does not know.
pub(crate) fn later<L: Later>(case: &str, n: u64) {
    match case {
        "call-later" => L::drive(move |l| call_laters(l, n, false)),
        "call-later-bytes" => L::drive(move |l| call_laters(l, n, true)),
        _ => {}
    }
}

fn in_task<L: Tasks, F>(body: impl FnOnce(L) -> F + 'static)
where
    F: Future<Output = ()> + 'static,
{
    L::run(move |l| async move {
        let task = l.spawn(body(l.clone()));
        task.await;
    });
}

/// Suspends once, with the task woken already.
fn yield_once() -> impl Future<Output = ()> {
    let mut woken = false;
    poll_fn(move |cx| {
        if woken {
            return Poll::Ready(());
        }
        woken = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}
