//! A program's hand in the making of its tasks.
//!
//! A factory is foreign code, called while a task is made and under no borrow. The output passes by
//! it: a wrapper sees a body without a value, and the value waits beside it.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use futures::future::LocalBoxFuture;

use super::TaskBuilder;
use crate::core::LoopHandle;

/// Sees every task before it is made, and may change its settings or wrap its body.
///
/// # Examples
///
/// A factory that gives tasks a name and counts their polls:
///
/// ```
/// use std::{cell::Cell, future::poll_fn, rc::Rc};
/// use coloop::{LocalBoxFuture, TaskBuilder, TaskFactory};
///
/// #[derive(Default)]
/// struct Counting(Rc<Cell<u32>>);
///
/// impl TaskFactory for Counting {
///     fn build(&self, builder: TaskBuilder) -> TaskBuilder {
///         builder.name("counted")
///     }
///     fn wrap(&self, mut body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
///         let polls = self.0.clone();
///         Box::pin(poll_fn(move |cx| {
///             polls.set(polls.get() + 1);
///             body.as_mut().poll(cx)
///         }))
///     }
/// }
///
/// let event_loop = coloop::EventLoop::new()?;
/// let counting = Rc::new(Counting::default());
/// event_loop.set_task_factory(counting.clone());
/// let task = event_loop.create_task(coloop::yield_now());
/// assert_eq!(&*task.name(), "counted");
/// event_loop.run_until_complete(task)?.unwrap();
/// assert_eq!(counting.0.get(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// A task factory there makes the task; here the task stays the loop's, and what surrounds it is
/// yours.
pub trait TaskFactory {
    /// Changes the settings of a task that is about to be made.
    fn build(&self, builder: TaskBuilder) -> TaskBuilder {
        builder
    }

    /// Wraps the body of a task. A wrapper that ends without running the body to its end cancels
    /// the task.
    fn wrap(&self, body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
        body
    }
}

/// The factory of a loop, in its seat among the loop's extensions.
pub(super) struct Seat(Cell<Option<Rc<dyn TaskFactory>>>);

impl Seat {
    pub(super) fn get(&self) -> Option<Rc<dyn TaskFactory>> {
        let factory = self.0.take();
        let copy = factory.clone();
        self.0.set(factory);
        copy
    }
}

impl LoopHandle {
    /// Lets `factory` see every task before it is made.
    pub fn set_task_factory(&self, factory: Rc<dyn TaskFactory>) {
        self.put_task_factory(Some(factory));
    }

    /// Goes back to making tasks plainly.
    #[doc(alias = "set_task_factory(None)")]
    pub fn reset_task_factory(&self) {
        self.put_task_factory(None);
    }

    fn put_task_factory(&self, factory: Option<Rc<dyn TaskFactory>>) {
        if self.is_closed() {
            return;
        }
        self.0.has_task_factory.set(factory.is_some());
        match self.0.extension::<Seat>() {
            Some(seat) => drop(seat.0.replace(factory)),
            None => self.0.extend(Rc::new(Seat(Cell::new(factory)))),
        }
    }

    /// Returns the factory that was set, or `None` for the default.
    #[doc(alias = "get_task_factory")]
    pub fn task_factory(&self) -> Option<Rc<dyn TaskFactory>> {
        if !self.0.has_task_factory.get() {
            return None;
        }
        self.0.extension::<Seat>()?.get()
    }
}

/// Lets a factory wrap a body whose output it cannot see.
pub(super) fn wrap<F: Future + 'static>(
    factory: &dyn TaskFactory,
    future: F,
) -> impl Future<Output = Option<F::Output>> + 'static {
    let output = Rc::new(Cell::new(None));
    let body = {
        let output = Rc::clone(&output);
        Box::pin(async move { output.set(Some(future.await)) })
    };
    let wrapped = factory.wrap(body);
    async move {
        wrapped.await;
        output.take()
    }
}
