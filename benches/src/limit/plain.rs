//! `limit-plain`: tasks without async-task: an `Arc`, two plain flags, one waiter.
//!
//! What a hand-written task could save. It is a sketch that is sound only for what the cases do: its
//! wakers may be cloned, dropped and woken on other threads, but the last of them goes here.

use std::cell::{Cell, UnsafeCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::{Item, Letter, Letters, Loop, On, Poster, Work, is_home, push_here};
use crate::cases::Tasks;

struct Task<F> {
    letters: Arc<Letters<Ready>>,
    queued: Cell<bool>,
    waiter: Cell<Option<Waker>>,
    /// `None` once it is done.
    body: UnsafeCell<Option<F>>,
}

// SAFETY: all but `letters` is touched on the loop's thread alone: a wake elsewhere only posts.
unsafe impl<F> Send for Task<F> {}
// SAFETY: as above.
unsafe impl<F> Sync for Task<F> {}

impl<F> Task<F> {
    fn is_done(&self) -> bool {
        // SAFETY: nothing holds a reference to the body but a poll of it, which does not ask this.
        unsafe { (*self.body.get()).is_none() }
    }
}

trait Step: Send + Sync {
    fn step(self: Arc<Self>);
}

impl<F: Future<Output = ()> + 'static> Step for Task<F> {
    #[inline]
    fn step(self: Arc<Self>) {
        self.queued.set(false);
        let task = Arc::as_ptr(&self);
        // The reference that was in the line becomes the waker: a poll touches no count.
        let waker = Waker::from(self);
        // SAFETY: `waker` keeps the task alive to the end of this function.
        let task = unsafe { &*task };
        // SAFETY: only the line polls a task, on this thread, and no poll of it is under way.
        let body = unsafe { &mut *task.body.get() };
        let Some(future) = body else { return };
        // SAFETY: the body lies in an `Arc` and is never moved, only dropped in place.
        let future = unsafe { Pin::new_unchecked(future) };
        if future.poll(&mut Context::from_waker(&waker)).is_ready() {
            *body = None;
            if let Some(waiter) = task.waiter.take() {
                waiter.wake();
            }
        }
    }
}

impl<F: Future<Output = ()> + 'static> Wake for Task<F> {
    #[inline]
    fn wake(self: Arc<Self>) {
        if !is_home(&self.letters) {
            let letters = self.letters.clone();
            letters.post(Letter::Task(Ready(self)));
        } else if !self.queued.replace(true) {
            push_here(Ready(self));
        }
    }

    #[inline]
    fn wake_by_ref(self: &Arc<Self>) {
        if !(is_home(&self.letters) && self.queued.get()) {
            self.clone().wake();
        }
    }
}

pub(crate) struct Ready(Arc<dyn Step>);

impl Work for Ready {
    #[inline]
    fn run(self) {
        self.0.step();
    }
}

struct Join<F>(Arc<Task<F>>);

impl<F> Future for Join<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0.is_done() {
            return Poll::Ready(());
        }
        self.0.waiter.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

pub(crate) type Plain = On<Ready>;

impl Tasks for Plain {
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
        let task = Arc::new(Task {
            letters: self.0.letters.clone(),
            queued: Cell::new(true),
            waiter: Cell::new(None),
            body: UnsafeCell::new(Some(body)),
        });
        self.0.push(Item::Task(Ready(task.clone())));
        Join(task)
    }

    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + use<> + 'static {
        self.0.sleep(delay)
    }

    fn post(&self) -> Option<Self::Post> {
        Some(Poster(self.0.letters.clone()))
    }
}
