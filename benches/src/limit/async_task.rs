//! `limit-async-task`: tasks of the crate async-task on the bare loop.
//!
//! The honest limit of a design that stands on async-task: its allocation, its atomics, its check of
//! the thread are all in it, and nothing else. Ratios "to the limit" are to this one. Where a task
//! belongs is in its metadata, so that the schedule function captures nothing: for one that does,
//! async-task clones and drops a waker at every wake.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_task::{Builder, Runnable};

use super::{Item, Letter, Letters, Loop, On, Poster, Work, is_home, push_here};
use crate::cases::Tasks;

struct Home(Arc<Letters<Ready>>);

pub(crate) struct Ready(Runnable<Home>);

impl Work for Ready {
    #[inline]
    fn run(self) {
        self.0.run();
    }
}

#[inline]
fn schedule(task: Runnable<Home>) {
    if is_home(&task.metadata().0) {
        push_here(Ready(task));
    } else {
        let letters = task.metadata().0.clone();
        letters.post(Letter::Task(Ready(task)));
    }
}

pub(crate) type AsyncTask = On<Ready>;

impl Tasks for AsyncTask {
    type Post = Poster<Ready>;

    fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Self) -> F + 'static) {
        let on = Self(Loop::new());
        let (inside, body) = (on.clone(), main(on.clone()));
        let task = on.spawn(async move {
            body.await;
            inside.0.stopped.set(true);
        });
        on.0.run();
        drop(task);
    }

    #[inline]
    fn spawn<F>(&self, body: F) -> impl Future<Output = ()> + use<F> + 'static
    where
        F: Future<Output = ()> + 'static,
    {
        let home = Home(self.0.letters.clone());
        let (task, join) = Builder::new()
            .metadata(home)
            .spawn_local(|_| body, schedule);
        self.0.push(Item::Task(Ready(task)));
        join
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> + 'static {
        self.0.sleep(delay)
    }

    fn post(&self) -> Option<Self::Post> {
        Some(Poster(self.0.letters.clone()))
    }
}
