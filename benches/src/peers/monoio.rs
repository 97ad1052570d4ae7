//! `monoio` with its epoll driver, as the others have it: io_uring is refused in many containers.

use std::future::Future;
use std::time::Duration;

use monoio::{LegacyDriver, RuntimeBuilder};

use crate::cases::{NoPost, Tasks};

#[derive(Clone, Copy)]
pub(crate) struct Monoio;

impl Tasks for Monoio {
    type Post = NoPost;

    fn run<F: Future<Output = ()> + 'static>(main: impl FnOnce(Self) -> F + 'static) {
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .unwrap();
        runtime.block_on(main(Self));
    }

    fn spawn<F>(&self, body: F) -> impl Future<Output = ()> + use<F> + 'static
    where
        F: Future<Output = ()> + 'static,
    {
        monoio::spawn(body)
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> + 'static {
        monoio::time::sleep(delay)
    }
}
