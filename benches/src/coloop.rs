//! `coloop`, by the handle that a program of it keeps.

use std::future::Future;
use std::time::Duration;

use coloop::{EventLoop, LoopHandle, RemoteHandle, TimerHandle};

use crate::cases::{Callbacks, Later, Post, Tasks};

impl Tasks for LoopHandle {
    type Post = RemoteHandle;

    fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Self) -> F + 'static) {
        let event_loop = EventLoop::new().unwrap();
        event_loop
            .run_until_complete(main(event_loop.handle()))
            .unwrap();
    }

    fn spawn<F>(&self, body: F) -> impl Future<Output = ()> + use<F> + 'static
    where
        F: Future<Output = ()> + 'static,
    {
        let task = self.create_task(body);
        async move { task.await.unwrap() }
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> + 'static {
        coloop::sleep(delay)
    }

    const OWN_YIELD: bool = true;
    fn own_yield(&self) -> impl Future<Output = ()> + use<> + 'static {
        coloop::yield_now()
    }

    fn post(&self) -> Option<RemoteHandle> {
        Some(self.remote())
    }
}

impl Post for RemoteHandle {
    fn post(&self, closure: impl FnOnce() + Send + 'static) {
        drop(self.call_soon(closure).unwrap());
    }
}

impl Callbacks for LoopHandle {
    fn drive(start: impl FnOnce(Self) + 'static) {
        let event_loop = EventLoop::new().unwrap();
        start(event_loop.handle());
        event_loop.run_forever().unwrap();
    }

    fn call_soon(&self, callback: impl FnOnce() + 'static) {
        drop(Self::call_soon(self, callback));
    }

    fn stop(&self) {
        Self::stop(self);
    }
}

impl Later for LoopHandle {
    type Timer = TimerHandle;

    fn call_later(&self, delay: Duration, callback: impl FnOnce() + 'static) -> TimerHandle {
        Self::call_later(self, delay, callback)
    }

    fn cancel(&self, timer: TimerHandle) {
        timer.cancel();
    }
}
