//! The methods of [`LoopHandle`] that schedule callbacks, tell the time and say where reports go.
//!
//! Other methods stand with their nouns: `create_task` in `task`, `add_reader` in `watch`, and so
//! on.

use std::panic::Location;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::callback::{Handle, TimerHandle};
use crate::clock::Ticks;
use crate::context::{self, Context};
use crate::core::{Core, LoopHandle, default_handler};
use crate::error::{LoopClosed, NoRunningLoop, drop_quietly};
use crate::ready::Ready;
use crate::report::{ExceptionContext, PanicPolicy, SlowCallback};

/// Returns the loop that runs in this thread.
///
/// # Panics
///
/// If none does; [`try_current`] returns an error instead.
///
/// # Examples
///
/// ```
/// let event_loop = coloop::EventLoop::new()?;
/// event_loop.run_until_complete(async {
///     assert!(coloop::current().is_running());
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "get_running_loop")]
#[track_caller]
pub fn current() -> LoopHandle {
    match try_current() {
        Ok(handle) => handle,
        Err(error) => no_running_loop(error),
    }
}

#[cold]
#[track_caller]
fn no_running_loop(error: NoRunningLoop) -> ! {
    panic!("{error}")
}

/// Returns the loop that runs in this thread, if one does.
///
/// # Errors
///
/// [`NoRunningLoop`] if none does, and in a process that has forked out of a running loop.
#[doc(alias = "_get_running_loop")]
pub fn try_current() -> Result<LoopHandle, NoRunningLoop> {
    Core::current().map(LoopHandle).ok_or(NoRunningLoop)
}

/// Boxes a callback; a context, where there is one, comes into the same box.
#[inline]
pub(crate) fn boxed(f: impl FnOnce() + 'static, context: Option<&Context>) -> Box<dyn FnOnce()> {
    match context {
        None => Box::new(f),
        Some(context) => {
            let mut item = InContext(Some((f, context.clone())));
            Box::new(move || {
                if let Some((f, context)) = item.0.take() {
                    context::run_item(context, f);
                }
            })
        }
    }
}

/// A callback and its context, both foreign: unrun, each is dropped by itself.
struct InContext<F>(Option<(F, Context)>);

impl<F> Drop for InContext<F> {
    fn drop(&mut self) {
        if let Some((f, context)) = self.0.take() {
            drop_quietly(f);
            drop_quietly(context);
        }
    }
}

/// Scheduling.
impl LoopHandle {
    /// Puts a callback at the end of the line.
    ///
    /// It runs in the loop's next turn (or in this one, if the line is not being worked off yet),
    /// once, after everything that is in the line already, in a copy of the current context. On a
    /// closed loop the closure is dropped and the handle is cancelled, so that this can be called
    /// from destructors; [`try_call_soon`](Self::try_call_soon) says so.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, rc::Rc};
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let trace = Rc::new(RefCell::new(Vec::new()));
    /// for word in ["first", "second"] {
    ///     let trace = Rc::clone(&trace);
    ///     event_loop.call_soon(move || trace.borrow_mut().push(word));
    /// }
    /// event_loop.run_until_complete(coloop::yield_now())?;
    /// assert_eq!(*trace.borrow(), ["first", "second"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Coming from asyncio
    ///
    /// Arguments are captured by the closure. From other threads:
    /// [`RemoteHandle::call_soon`](crate::RemoteHandle::call_soon).
    #[track_caller]
    pub fn call_soon(&self, f: impl FnOnce() + 'static) -> Handle {
        self.soon(f, Context::capture(), Location::caller())
    }

    /// Puts a callback at the end of the line, to run in `context` itself.
    #[track_caller]
    pub fn call_soon_in(&self, context: &Context, f: impl FnOnce() + 'static) -> Handle {
        self.soon(f, Some(context.clone()), Location::caller())
    }

    /// Puts a callback at the end of the line, unless the loop is closed.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`]; the closure has been dropped.
    #[track_caller]
    pub fn try_call_soon(&self, f: impl FnOnce() + 'static) -> Result<Handle, LoopClosed> {
        self.open()?;
        Ok(self.soon(f, Context::capture(), Location::caller()))
    }

    #[inline]
    fn soon(
        &self,
        f: impl FnOnce() + 'static,
        context: Option<Context>,
        place: &'static Location<'static>,
    ) -> Handle {
        if self.is_closed() {
            drop(f);
            return Handle::refused(&self.0);
        }
        let item = Ready::Callback(boxed(f, context.as_ref()), place);
        Handle::new(&self.0, self.0.line.push(item), context)
    }

    /// Schedules a callback after `delay`.
    ///
    /// The delay counts from now, by a fresh reading of the clock. A delay of zero still goes by
    /// way of the shelf: the callback runs after every `call_soon` made before it. Timers with the
    /// same deadline fire in the order in which they were created. Any [`Duration`] is allowed; one
    /// of more than 292 years does not come.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let handle = event_loop.handle();
    /// event_loop.call_later(Duration::from_millis(1), move || handle.stop());
    /// event_loop.run_forever()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn call_later(&self, delay: Duration, f: impl FnOnce() + 'static) -> TimerHandle {
        let deadline = self.0.read_clock().after(delay);
        self.shelve(deadline, f, Context::capture(), Location::caller())
    }

    /// Schedules a callback after `delay`, to run in `context` itself.
    #[track_caller]
    pub fn call_later_in(
        &self,
        context: &Context,
        delay: Duration,
        f: impl FnOnce() + 'static,
    ) -> TimerHandle {
        let deadline = self.0.read_clock().after(delay);
        self.shelve(deadline, f, Some(context.clone()), Location::caller())
    }

    /// Schedules a callback after `delay`, unless the loop is closed.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`]; the closure has been dropped.
    #[track_caller]
    pub fn try_call_later(
        &self,
        delay: Duration,
        f: impl FnOnce() + 'static,
    ) -> Result<TimerHandle, LoopClosed> {
        self.open()?;
        Ok(self.call_later(delay, f))
    }

    /// Schedules a callback at an instant of the loop's clock.
    ///
    /// An instant in the past is due in the next turn, and still in its order among others.
    #[track_caller]
    pub fn call_at(&self, when: Instant, f: impl FnOnce() + 'static) -> TimerHandle {
        let deadline = self.0.origin().ticks(when);
        self.shelve(deadline, f, Context::capture(), Location::caller())
    }

    /// Schedules a callback at an instant of the loop's clock, to run in `context` itself.
    #[track_caller]
    pub fn call_at_in(
        &self,
        context: &Context,
        when: Instant,
        f: impl FnOnce() + 'static,
    ) -> TimerHandle {
        let deadline = self.0.origin().ticks(when);
        self.shelve(deadline, f, Some(context.clone()), Location::caller())
    }

    /// Schedules a callback at an instant of the loop's clock, unless the loop is closed.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`]; the closure has been dropped.
    #[track_caller]
    pub fn try_call_at(
        &self,
        when: Instant,
        f: impl FnOnce() + 'static,
    ) -> Result<TimerHandle, LoopClosed> {
        self.open()?;
        Ok(self.call_at(when, f))
    }

    fn shelve(
        &self,
        deadline: Ticks,
        f: impl FnOnce() + 'static,
        context: Option<Context>,
        place: &'static Location<'static>,
    ) -> TimerHandle {
        if self.is_closed() {
            drop(f);
            return TimerHandle::refused(&self.0, deadline);
        }
        let key = self
            .0
            .timers
            .insert_callback(deadline, boxed(f, context.as_ref()), place);
        TimerHandle::new(&self.0, key, deadline, context)
    }

    pub(crate) fn open(&self) -> Result<(), LoopClosed> {
        if self.is_closed() {
            Err(LoopClosed)
        } else {
            Ok(())
        }
    }

    /// Returns the time by the loop's clock, the one that deadlines refer to.
    pub fn time(&self) -> Instant {
        self.0.clock().now()
    }

    /// Draws a number from the loop's sequence.
    ///
    /// The sequence depends on the seed alone (see [`Builder::seed`](crate::Builder::seed)), so a
    /// run that draws here can be run again. It is not fit for secrets.
    pub fn random(&self) -> u64 {
        self.0.random()
    }
}

/// State.
impl LoopHandle {
    /// Asks the loop to stop.
    ///
    /// The turn that is going on is finished. What its items add stays in the line for the next
    /// run. Before a run: it makes one turn, which does not wait, and returns.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Tells whether the loop is running.
    pub fn is_running(&self) -> bool {
        self.0.is_running()
    }

    /// Tells whether the loop is closed.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// Errors and debugging.
impl LoopHandle {
    /// Says where errors go that nobody else can see.
    ///
    /// The handler runs in the context of what failed. If it panics, the default handler is told of
    /// that and of the first error.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, rc::Rc};
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let seen = Rc::new(RefCell::new(Vec::new()));
    /// let log = Rc::clone(&seen);
    /// event_loop.set_exception_handler(move |_, context| {
    ///     log.borrow_mut().push(context.panic_message().map(str::to_owned));
    /// });
    /// event_loop.call_soon(|| panic!("no tea"));
    /// event_loop.run_until_complete(coloop::yield_now())?;
    /// assert_eq!(*seen.borrow(), [Some("no tea".to_owned())]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_exception_handler(&self, handler: impl Fn(&Self, &ExceptionContext) + 'static) {
        if !self.is_closed() {
            self.0.handler.set(Some(Rc::new(handler)));
        }
    }

    /// Goes back to the default handler.
    #[doc(alias = "set_exception_handler(None)")]
    pub fn reset_exception_handler(&self) {
        self.0.handler.set(None);
    }

    /// Returns the handler that was set, or `None` for the default.
    #[doc(alias = "get_exception_handler")]
    #[expect(clippy::type_complexity, reason = "an alias would only hide it")]
    pub fn exception_handler(&self) -> Option<Rc<dyn Fn(&Self, &ExceptionContext)>> {
        self.0.handler.get()
    }

    /// Gives an error to the current handler.
    pub fn call_exception_handler(&self, context: &ExceptionContext) {
        self.0.call_handler(context);
    }

    /// Writes an error on the standard error stream, as one line.
    ///
    /// Handlers may leave to it what they do not care for.
    pub fn default_exception_handler(&self, context: &ExceptionContext) {
        default_handler(context);
    }

    /// Says what happens to panics that nobody can observe.
    pub fn set_panic_policy(&self, policy: PanicPolicy) {
        self.0.policy.set(policy);
    }

    /// Returns what happens to panics that nobody can observe.
    pub fn panic_policy(&self) -> PanicPolicy {
        self.0.policy.get()
    }

    /// Turns debug mode on or off; it takes effect with the next item.
    ///
    /// In debug mode every item is timed, slow ones are reported (see
    /// [`set_slow_callback_duration`](Self::set_slow_callback_duration)), each turn waits on the
    /// selector, and closing the loop reports tasks that are still pending.
    pub fn set_debug(&self, debug: bool) {
        self.0.set_debug(debug);
    }

    /// Tells whether debug mode is on.
    ///
    /// It is on from the start where the environment variable `COLOOP_DEBUG` is set and not empty.
    #[doc(alias = "get_debug")]
    pub fn debug(&self) -> bool {
        self.0.debug.get()
    }

    /// Sets how long an item may hold the loop before it is reported. The default is 100 ms.
    pub fn set_slow_callback_duration(&self, duration: Duration) {
        self.0.slow.set(duration);
    }

    /// Returns how long an item may hold the loop before it is reported.
    pub fn slow_callback_duration(&self) -> Duration {
        self.0.slow.get()
    }

    /// Says where reports of slow items go.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::Cell, rc::Rc, time::Duration};
    /// use coloop::{EventLoop, testing};
    ///
    /// let clock = testing::Clock::new();
    /// let event_loop = EventLoop::builder().clock(clock.clone()).debug(true).build()?;
    /// let line = Rc::new(Cell::new(0));
    /// let seen = Rc::clone(&line);
    /// event_loop.set_slow_hook(move |slow| seen.set(slow.place.map_or(0, |place| place.line())));
    /// event_loop.call_soon(move || clock.advance(Duration::from_millis(150))); // stands for work
    /// let scheduled = line!() - 1;
    /// event_loop.run_until_complete(coloop::yield_now())?;
    /// assert_eq!(line.get(), scheduled);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_slow_hook(&self, hook: impl Fn(&SlowCallback) + 'static) {
        if !self.is_closed() {
            self.0.slow_hook.set(Some(Rc::new(hook)));
        }
    }

    /// Goes back to reporting slow items on the standard error stream.
    pub fn reset_slow_hook(&self) {
        self.0.slow_hook.set(None);
    }
}
