//! `smol`: async-executor's `LocalExecutor` under `async_io::block_on`, so that this thread drives
//! the reactor.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use async_executor::LocalExecutor;
use async_io::Timer;

use crate::cases::{NoPost, Tasks};

#[derive(Clone)]
pub(crate) struct Smol(Rc<LocalExecutor<'static>>);

impl Tasks for Smol {
    type Post = NoPost;

    fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Self) -> F + 'static) {
        let smol = Self(Rc::new(LocalExecutor::new()));
        async_io::block_on(smol.0.run(main(smol.clone())));
    }

    fn spawn<F>(&self, body: F) -> impl Future<Output = ()> + use<F> + 'static
    where
        F: Future<Output = ()> + 'static,
    {
        self.0.spawn(body)
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> + 'static {
        let timer = Timer::after(delay);
        async move {
            timer.await;
        }
    }
}
