//! A value that comes later: settled on one side, awaited on the other.
//!
//! asyncio's `Future` in two halves, so that settling twice does not compile. Both stay in the
//! loop's thread.
//!
//! What must always hold:
//!
//! 1. Waiters are told in the order in which they came, be they wakers or done-callbacks, and
//!    always through the line: settling runs nobody's code.
//! 2. The value is given once for each promise. As long as there is one, it is moved; with several
//!    it is shared, and cloned for all but the last.
//! 3. A resolver that is dropped cancels: nobody waits for ever.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};

use crate::context::Context;
use crate::core::{Core, LoopHandle};
use crate::error::{Cancelled, drop_quietly};
use crate::handle::boxed;
use crate::record::On;

impl LoopHandle {
    /// Makes a promise and the resolver that settles it.
    ///
    /// # Examples
    ///
    /// A callback settles what a task awaits:
    ///
    /// ```
    /// let event_loop = coloop::EventLoop::new()?;
    /// let (resolver, promise) = event_loop.create_future();
    /// event_loop.call_soon(move || {
    ///     resolver.settle("tea").ok();
    /// });
    /// assert_eq!(event_loop.run_until_complete(promise)?, Ok("tea"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Coming from asyncio
    ///
    /// `loop.create_future()`; `set_exception` is a `Result` as the value. The resolver is consumed
    /// by settling, so that a second time is an error of the compiler:
    ///
    /// ```compile_fail,E0382
    /// let event_loop = coloop::EventLoop::new().unwrap();
    /// let (resolver, promise) = event_loop.create_future();
    /// resolver.settle(1);
    /// resolver.settle(2);
    /// ```
    #[track_caller]
    pub fn create_future<T: 'static>(&self) -> (Resolver<T>, Promise<T>) {
        let state = Rc::new(State {
            core: Rc::clone(&self.0),
            place: Location::caller(),
            value: RefCell::new(Value::Pending),
            waiters: RefCell::new(Waiters {
                first: None,
                rest: Vec::new(),
            }),
            clone: Cell::new(None),
            claims: Cell::new(1),
            last_waiter: Cell::new(0),
        });
        let claim = Claim(Some(Rc::clone(&state)));
        (
            Resolver(state),
            Promise {
                claim,
                waiter: None,
                wait: None,
            },
        )
    }
}

enum Value<T> {
    Pending,
    Settled(T),
    /// Several will have it.
    Shared(Rc<T>),
    Cancelled(Cancelled),
    Gone,
}

type CloneFn<T> = fn(&T) -> T;

struct State<T> {
    core: Rc<Core>,
    place: &'static Location<'static>,
    value: RefCell<Value<T>>,
    waiters: RefCell<Waiters>,
    /// How to clone the value: known once a promise has been cloned.
    clone: Cell<Option<CloneFn<T>>>,
    /// How many are still to have the value.
    claims: Cell<usize>,
    last_waiter: Cell<u64>,
}

/// The list of waiters; one, the usual number, needs no allocation.
struct Waiters {
    first: Option<Waiter>,
    rest: Vec<Waiter>,
}

struct Waiter {
    number: u64,
    how: How,
}

enum How {
    Wake(Waker),
    Call(Box<dyn FnOnce()>, &'static Location<'static>),
}

impl Waiters {
    fn push(&mut self, waiter: Waiter) {
        if self.first.is_none() && self.rest.is_empty() {
            self.first = Some(waiter);
        } else {
            self.rest.push(waiter);
        }
    }

    fn get(&mut self, number: u64) -> Option<&mut Waiter> {
        self.first
            .iter_mut()
            .chain(&mut self.rest)
            .find(|waiter| waiter.number == number)
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        if let Some(first) = self.first.take_if(|first| first.number == number) {
            return Some(first);
        }
        let at = self
            .rest
            .iter()
            .position(|waiter| waiter.number == number)?;
        Some(self.rest.remove(at))
    }
}

impl<T> State<T> {
    fn is_pending(&self) -> bool {
        matches!(*self.value.borrow(), Value::Pending)
    }

    fn is_cancelled(&self) -> bool {
        matches!(*self.value.borrow(), Value::Cancelled(_))
    }

    fn wait(&self, how: How) -> u64 {
        let number = self.last_waiter.get() + 1;
        self.last_waiter.set(number);
        self.waiters.borrow_mut().push(Waiter { number, how });
        number
    }

    /// Ends the waiting: everybody is told, through the line.
    fn finish(&self, value: Value<T>) {
        let before = self.value.replace(value);
        drop(before);
        let (first, rest) = {
            let mut waiters = self.waiters.borrow_mut();
            (waiters.first.take(), std::mem::take(&mut waiters.rest))
        };
        for waiter in first.into_iter().chain(rest) {
            match waiter.how {
                How::Wake(waker) => self.core.wake(waker),
                How::Call(f, place) => self.core.queue(f, place),
            }
        }
    }

    fn cancel(&self) -> bool {
        let pending = self.is_pending();
        if pending {
            self.finish(Value::Cancelled(Cancelled::new()));
        }
        pending
    }
}

/// The right to have the value once.
struct Claim<T>(Option<Rc<State<T>>>);

impl<T> Claim<T> {
    fn state(&self) -> Option<&Rc<State<T>>> {
        self.0.as_ref()
    }

    /// Has the value of a promise that is not pending.
    fn have(&mut self) -> Result<T, Cancelled> {
        let Some(state) = self.0.take() else {
            return Err(Cancelled::new());
        };
        let claims = state.claims.get() - 1;
        state.claims.set(claims);
        let value = state.value.replace(Value::Gone);
        match value {
            Value::Settled(value) => Ok(value),
            Value::Shared(shared) if claims > 0 => {
                state.value.replace(Value::Shared(Rc::clone(&shared)));
                match state.clone.get() {
                    Some(clone) => Ok(clone(&shared)),
                    None => Err(Cancelled::new()),
                }
            }
            Value::Shared(shared) => match (Rc::try_unwrap(shared), state.clone.get()) {
                (Ok(value), _) => Ok(value),
                (Err(shared), Some(clone)) => Ok(clone(&shared)),
                (Err(_), None) => Err(Cancelled::new()),
            },
            Value::Cancelled(cancelled) => {
                state.value.replace(Value::Cancelled(cancelled.clone()));
                Err(cancelled)
            }
            other @ (Value::Pending | Value::Gone) => {
                state.value.replace(other);
                Err(Cancelled::new())
            }
        }
    }
}

impl<T> Drop for Claim<T> {
    fn drop(&mut self) {
        if let Some(state) = self.0.take() {
            let claims = state.claims.get() - 1;
            state.claims.set(claims);
            if claims == 0 {
                let settled = matches!(*state.value.borrow(), Value::Settled(_) | Value::Shared(_));
                if settled {
                    let value = state.value.replace(Value::Gone);
                    drop_quietly(value);
                }
            }
        }
    }
}

/// Settles a [`Promise`], once; made by [`LoopHandle::create_future`].
///
/// Dropping it unsettled cancels the promise.
#[must_use = "a resolver that is dropped cancels its promise"]
pub struct Resolver<T: 'static>(Rc<State<T>>);

impl<T: 'static> Resolver<T> {
    /// Settles the promise. Who waits for it is told through the line.
    ///
    /// # Errors
    ///
    /// The value comes back if nobody can have it: the promise was cancelled or dropped.
    #[doc(alias = "set_result")]
    #[doc(alias = "set_exception")]
    pub fn settle(self, value: T) -> Result<(), T> {
        if !self.is_wanted() {
            return Err(value);
        }
        let value = if self.0.claims.get() > 1 {
            Value::Shared(Rc::new(value))
        } else {
            Value::Settled(value)
        };
        self.0.finish(value);
        Ok(())
    }

    /// Cancels the promise.
    pub fn cancel(self) {
        self.0.cancel();
    }

    /// Tells whether the promise was cancelled from the other side.
    #[doc(alias = "cancelled")]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Tells whether somebody can still have the value.
    pub fn is_wanted(&self) -> bool {
        self.0.is_pending() && self.0.claims.get() > 0
    }
}

impl<T: 'static> Drop for Resolver<T> {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl<T> fmt::Debug for Resolver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Gives a value that comes later; made by [`LoopHandle::create_future`].
///
/// Awaiting a promise that is settled goes on at once, without giving others a turn. A promise that
/// has given its value gives [`Cancelled`] from then on.
///
/// # Cancellation
///
/// Dropping a promise gives up its claim. When the last one has gone,
/// [`Resolver::settle`] gives the value back.
#[doc(alias = "Future")]
#[must_use = "a promise does nothing unless it is awaited or given a callback"]
pub struct Promise<T: 'static> {
    claim: Claim<T>,
    waiter: Option<u64>,
    wait: Option<u32>,
}

impl<T: 'static> Promise<T> {
    /// Cancels the promise for everybody, and says whether it was pending.
    pub fn cancel(&self) -> bool {
        self.claim.state().is_some_and(|state| state.cancel())
    }

    /// Tells whether the promise is settled or cancelled.
    #[doc(alias = "done")]
    pub fn is_done(&self) -> bool {
        self.claim.state().is_none_or(|state| !state.is_pending())
    }

    /// Tells whether the promise was cancelled, or its resolver dropped.
    #[doc(alias = "cancelled")]
    pub fn is_cancelled(&self) -> bool {
        self.claim.state().is_some_and(|state| state.is_cancelled())
    }

    /// Takes the value if it is there; `None` while the promise is pending.
    #[doc(alias = "result")]
    #[doc(alias = "exception")]
    pub fn try_result(&mut self) -> Option<Result<T, Cancelled>> {
        if !self.is_done() {
            return None;
        }
        self.forget_waiter();
        Some(self.claim.have())
    }

    /// Lets a callback have the value. It is always called through the line, never from here.
    ///
    /// A promise that is done already queues the callback at once. Callbacks and tasks that wait
    /// for one promise are told in the order in which they came. Clone the promise to add more than
    /// one.
    ///
    /// # Examples
    ///
    /// ```
    /// let event_loop = coloop::EventLoop::new()?;
    /// let (resolver, promise) = event_loop.create_future();
    /// let handle = event_loop.handle();
    /// promise.on_done(move |value| {
    ///     assert_eq!(value, Ok(7));
    ///     handle.stop();
    /// });
    /// resolver.settle(7).ok();
    /// event_loop.run_forever()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "add_done_callback")]
    #[track_caller]
    pub fn on_done(self, f: impl FnOnce(Result<T, Cancelled>) + 'static) -> DoneHandle {
        self.add_callback(f, Context::capture(), Location::caller())
    }

    /// Lets a callback have the value, in `context` itself.
    #[track_caller]
    pub fn on_done_in(
        self,
        context: &Context,
        f: impl FnOnce(Result<T, Cancelled>) + 'static,
    ) -> DoneHandle {
        self.add_callback(f, Some(context.clone()), Location::caller())
    }

    fn add_callback(
        mut self,
        f: impl FnOnce(Result<T, Cancelled>) + 'static,
        context: Option<Context>,
        place: &'static Location<'static>,
    ) -> DoneHandle {
        self.forget_waiter();
        let Some(state) = self.claim.state().cloned() else {
            return DoneHandle(None);
        };
        let mut claim = Claim(self.claim.0.take());
        let f = boxed(move || f(claim.have()), context.as_ref());
        if state.is_pending() {
            let number = state.wait(How::Call(f, place));
            DoneHandle(Some((state, number)))
        } else {
            state.core.queue(f, place);
            DoneHandle(None)
        }
    }

    fn forget_waiter(&mut self) {
        let Some(state) = self.claim.state() else {
            return;
        };
        if let Some(number) = self.waiter.take() {
            let waiter = state.waiters.borrow_mut().remove(number);
            drop(waiter);
        }
        if let Some(wait) = self.wait.take() {
            state.core.records.end_wait(wait);
        }
    }
}

impl<T: Clone + 'static> Clone for Promise<T> {
    /// Makes another promise of the same value, which is cloned for it.
    fn clone(&self) -> Self {
        let claim = Claim(self.claim.state().cloned());
        if let Some(state) = claim.state() {
            state.claims.set(state.claims.get() + 1);
            state.clone.set(Some(T::clone));
            let mut value = state.value.borrow_mut();
            *value = match std::mem::replace(&mut *value, Value::Gone) {
                Value::Settled(value) => Value::Shared(Rc::new(value)),
                other => other,
            };
        }
        Self {
            claim,
            waiter: None,
            wait: None,
        }
    }
}

impl<T: 'static> Future for Promise<T> {
    type Output = Result<T, Cancelled>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // First, because it is foreign code: it may settle the promise.
        let waker = cx.waker().clone();
        let Some(state) = this.claim.state() else {
            return Poll::Ready(Err(Cancelled::new()));
        };
        if !state.is_pending() {
            this.forget_waiter();
            return Poll::Ready(this.claim.have());
        }
        let records = &state.core.records;
        match (this.waiter, this.wait) {
            (Some(number), Some(wait)) => {
                records.renew_wait(wait);
                let known = state
                    .waiters
                    .borrow_mut()
                    .get(number)
                    .map(|waiter| std::mem::replace(&mut waiter.how, How::Wake(waker)));
                drop(known);
            }
            _ => {
                this.waiter = Some(state.wait(How::Wake(waker)));
                this.wait = Some(records.begin_wait(On::Promise, state.place, state.core.now()));
            }
        }
        Poll::Pending
    }
}

impl<T: 'static> Drop for Promise<T> {
    fn drop(&mut self) {
        self.forget_waiter();
    }
}

impl<T> fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promise")
            .field("done", &self.is_done())
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// Removes a done-callback; made by [`Promise::on_done`]. Dropping it does not.
pub struct DoneHandle(Option<(Rc<dyn Removable>, u64)>);

impl DoneHandle {
    /// Removes the callback, and says whether it was still waiting.
    ///
    /// Once the promise is done the callback stands in the line, and it will run.
    ///
    /// # Coming from asyncio
    ///
    /// `remove_done_callback`, which finds callbacks by equality and counts them. Here each has its
    /// handle.
    #[doc(alias = "remove_done_callback")]
    pub fn remove(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|(promise, number)| promise.remove(*number))
    }
}

impl fmt::Debug for DoneHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoneHandle").finish_non_exhaustive()
    }
}

trait Removable {
    fn remove(&self, number: u64) -> bool;
}

impl<T> Removable for State<T> {
    fn remove(&self, number: u64) -> bool {
        let removed = self.waiters.borrow_mut().remove(number);
        let was_there = removed.is_some();
        drop_quietly(removed);
        was_there
    }
}
