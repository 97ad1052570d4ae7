//! tokio on one thread: `tokio-localset` (a current-thread runtime that drives a `LocalSet`) and
//! `tokio-local` (its `LocalRuntime`).

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, LocalOptions};
use tokio::task::LocalSet;

use crate::cases::{Post, Tasks};

#[derive(Clone, Copy)]
pub(crate) struct Tokio<const LOCAL_RUNTIME: bool>;

impl<const LOCAL_RUNTIME: bool> Tasks for Tokio<LOCAL_RUNTIME> {
    type Post = Spawner;

    fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Self) -> F + 'static) {
        let mut builder = Builder::new_current_thread();
        builder.enable_all();
        let main = main(Self);
        if LOCAL_RUNTIME {
            builder
                .build_local(LocalOptions::default())
                .unwrap()
                .block_on(main);
        } else {
            LocalSet::new().block_on(&builder.build().unwrap(), main);
        }
    }

    fn spawn<F>(&self, body: F) -> impl Future<Output = ()> + use<F, LOCAL_RUNTIME> + 'static
    where
        F: Future<Output = ()> + 'static,
    {
        let task = tokio::task::spawn_local(body);
        async move { task.await.unwrap() }
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<LOCAL_RUNTIME> + 'static {
        tokio::time::sleep(delay)
    }

    const OWN_YIELD: bool = true;
    fn own_yield(&self) -> impl Future<Output = ()> + use<LOCAL_RUNTIME> + 'static {
        tokio::task::yield_now()
    }

    fn post(&self) -> Option<Spawner> {
        Some(Spawner(Handle::current()))
    }
}

/// Its way in from another thread: a `Send` task.
pub(crate) struct Spawner(Handle);

impl Post for Spawner {
    fn post(&self, closure: impl FnOnce() + Send + 'static) {
        self.0.spawn(async move { closure() });
    }
}
