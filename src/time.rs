//! Waiting for time to pass, and for nothing but a turn.
//!
//! A sleep shelves its waker at its first poll and takes it down when it is dropped. A timeout is a
//! future beside a sleep: when the sleep is over first, the future is dropped.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;

use crate::clock::Ticks;
use crate::core::Core;
use crate::error::{Elapsed, TimeoutOver};
use crate::handle::current;
use crate::key::TimerKey;
use crate::timers::Renewed;

/// Waits for `delay`, counted from the first poll by a fresh reading of the clock.
///
/// A delay of zero gives everybody else in the line one turn, as [`yield_now`] does. A delay of
/// more than 292 years does not end.
///
/// # Panics
///
/// When it is polled where no loop runs.
///
/// # Cancellation
///
/// Dropping it takes its timer off the shelf.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let before = event_loop.time();
/// event_loop.run_until_complete(coloop::sleep(Duration::from_millis(1)))?;
/// assert!(event_loop.time() >= before + Duration::from_millis(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn sleep(delay: Duration) -> Sleep {
    let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
    Sleep(State::New {
        nanos,
        place: Location::caller(),
    })
}

/// Waits for time to pass; made by [`sleep`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Sleep(State);

enum State {
    New {
        nanos: u64,
        place: &'static Location<'static>,
    },
    Yielded,
    Shelved {
        core: Rc<Core>,
        key: TimerKey,
    },
    Over,
}

impl Sleep {
    /// Shelves a sleep until `deadline`.
    fn shelve(
        core: Rc<Core>,
        deadline: Ticks,
        waker: &Waker,
        place: &'static Location<'static>,
    ) -> Self {
        let task = core.records.current().number;
        let since_millis = (core.now().0 / 1_000_000) as u32;
        let key = core
            .timers
            .insert_sleep(deadline, waker.clone(), task, place, since_millis);
        Self(State::Shelved { core, key })
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<()> {
        match &self.0 {
            State::New { nanos: 0, .. } => {
                self.0 = State::Yielded;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            State::New { nanos, place } => {
                let core = current().0;
                let deadline = core.read_clock().after(Duration::from_nanos(*nanos));
                *self = Self::shelve(core, deadline, cx.waker(), place);
                Poll::Pending
            }
            State::Shelved { core, key } => {
                let task = core.records.current().number;
                match core.timers.renew_sleep(*key, cx.waker(), task) {
                    Renewed::Pending => return Poll::Pending,
                    Renewed::WakesAnother => {
                        let before = core.timers.replace_waker(*key, cx.waker().clone());
                        drop(before);
                        return Poll::Pending;
                    }
                    Renewed::Over => {}
                }
                self.0 = State::Over;
                Poll::Ready(())
            }
            State::Yielded | State::Over => {
                self.0 = State::Over;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let State::Shelved { core, key } = &self.0 {
            let removed = core.timers.remove(*key);
            drop(removed);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = matches!(self.0, State::Over);
        f.debug_struct("Sleep")
            .field("over", &over)
            .finish_non_exhaustive()
    }
}

/// Gives everybody else in the line one turn.
///
/// # Examples
///
/// ```
/// use std::{cell::Cell, rc::Rc};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let called = Rc::new(Cell::new(false));
/// let flag = Rc::clone(&called);
/// event_loop.run_until_complete(async {
///     coloop::current().call_soon(move || flag.set(true));
///     coloop::yield_now().await;
///     assert!(called.get());
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "sleep(0)")]
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// Gives others a turn; made by [`yield_now`].
#[derive(Debug)]
#[must_use = "futures do nothing unless they are awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Awaits `future` for at most `limit`, counted from the first poll.
///
/// If the future is complete when the deadline passes, its output wins. A body that never waits
/// cannot be interrupted.
///
/// # Errors
///
/// [`Elapsed`] when the deadline passed first; the future has been dropped then.
///
/// # Panics
///
/// When it is polled where no loop runs.
///
/// # Examples
///
/// ```
/// use std::{future::pending, time::Duration};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let timeout = coloop::timeout(Duration::from_millis(1), pending::<()>());
/// assert!(event_loop.run_until_complete(timeout)?.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// `asyncio.timeout` and `wait_for`. The task is not cancelled and its counter does not move: the
/// future inside is dropped.
#[doc(alias = "wait_for")]
#[track_caller]
pub fn timeout<F: Future>(limit: Duration, future: F) -> Timeout<F> {
    Timeout {
        future: Some(future),
        sleep: sleep(limit),
        limit,
        place: Location::caller(),
        shared: None,
    }
}

/// Awaits `future` until `deadline`.
///
/// As [`timeout`], with a point in time: several waits can share one deadline. If it has passed
/// already, the future is polled once and has one turn.
///
/// # Errors
///
/// [`Elapsed`] when the deadline passed first; the future has been dropped then.
///
/// # Panics
///
/// When it is polled where no loop runs.
///
/// # Examples
///
/// ```
/// use std::{future::pending, time::Duration};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let deadline = event_loop.time() + Duration::from_millis(1);
/// for _ in 0..2 {
///     let timeout = coloop::timeout_at(deadline, pending::<()>());
///     assert!(event_loop.run_until_complete(timeout)?.is_err());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[track_caller]
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    let mut timeout = timeout(Duration::MAX, future);
    let shared = timeout.handle().0;
    shared.deadline.set(Some(deadline));
    shared.moved.set(true);
    timeout
}

pin_project! {
    /// Awaits a future for a limited time; made by [`timeout`](crate::timeout()) and [`timeout_at`].
    #[must_use = "futures do nothing unless they are awaited"]
    pub struct Timeout<F> {
        #[pin]
        future: Option<F>,
        sleep: Sleep,
        limit: Duration,
        place: &'static Location<'static>,
        shared: Option<Rc<Shared>>,
    }

    impl<F> PinnedDrop for Timeout<F> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(shared) = this.project().shared {
                shared.end(Phase::Completed);
            }
        }
    }
}

/// What a timeout and its handle share.
struct Shared {
    phase: Cell<Phase>,
    deadline: Cell<Option<Instant>>,
    moved: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Shared {
    /// Notes how the timeout ended, once.
    fn end(&self, phase: Phase) {
        if matches!(self.phase.get(), Phase::New | Phase::Active) {
            self.phase.set(phase);
            drop(self.waker.take());
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Active,
    Completed,
    Expired,
}

impl<F: Future> Timeout<F> {
    /// Returns a handle that can move the deadline while the future is pending.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let mut timeout = coloop::timeout(Duration::from_millis(1), async {
    ///     coloop::sleep(Duration::from_millis(3)).await;
    ///     "slept well"
    /// });
    /// let handle = timeout.handle();
    /// event_loop.call_later(Duration::ZERO, move || handle.reschedule(None).unwrap());
    /// assert_eq!(event_loop.run_until_complete(timeout)?, Ok("slept well"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn handle(&mut self) -> TimeoutHandle {
        let shared = self.shared.get_or_insert_with(|| {
            Rc::new(Shared {
                phase: Cell::new(Phase::New),
                deadline: Cell::new(None),
                moved: Cell::new(false),
                waker: Cell::new(None),
            })
        });
        TimeoutHandle(Rc::clone(shared))
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(Elapsed));
        };
        if let Some(shared) = this
            .shared
            .as_ref()
            .filter(|shared| shared.phase.get() == Phase::New)
        {
            shared.phase.set(Phase::Active);
            if !shared.moved.get() {
                let deadline = current().time().checked_add(*this.limit);
                shared.deadline.set(deadline);
            }
        }
        let ended = match future.poll(cx) {
            Poll::Ready(output) => Some(Ok(output)),
            Poll::Pending => {
                if let Some(shared) = &this.shared {
                    drop(shared.waker.replace(Some(cx.waker().clone())));
                    if shared.moved.take() {
                        let core = current().0;
                        let deadline = shared.deadline.get();
                        let ticks = deadline.map_or(Ticks::NEVER, |at| core.origin().ticks(at));
                        *this.sleep = Sleep::shelve(core, ticks, cx.waker(), this.place);
                    }
                }
                let zero = matches!(this.sleep.0, State::New { nanos: 0, .. });
                let over = zero || Pin::new(&mut *this.sleep).poll(cx).is_ready();
                over.then_some(Err(Elapsed))
            }
        };
        let Some(ended) = ended else {
            return Poll::Pending;
        };
        if let Some(shared) = &this.shared {
            shared.end(if ended.is_ok() {
                Phase::Completed
            } else {
                Phase::Expired
            });
        }
        *this.sleep = Sleep(State::Over);
        this.future.set(None);
        Poll::Ready(ended)
    }
}

impl<F> fmt::Debug for Timeout<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout")
            .field("over", &self.future.is_none())
            .finish_non_exhaustive()
    }
}

/// Moves the deadline of a [`Timeout`]; made by [`Timeout::handle`].
#[derive(Clone)]
pub struct TimeoutHandle(Rc<Shared>);

impl TimeoutHandle {
    /// Returns the deadline; `None` after it was taken away, and before the first poll unless it was
    /// given.
    pub fn when(&self) -> Option<Instant> {
        self.0.deadline.get()
    }

    /// Moves the deadline; `None` takes it away.
    ///
    /// # Errors
    ///
    /// [`TimeoutOver`] before the timeout was first polled and after it has ended.
    pub fn reschedule(&self, when: Option<Instant>) -> Result<(), TimeoutOver> {
        if self.0.phase.get() != Phase::Active {
            return Err(TimeoutOver);
        }
        self.0.deadline.set(when);
        self.0.moved.set(true);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    /// Tells whether the deadline passed before the future was complete.
    #[doc(alias = "expired")]
    pub fn is_expired(&self) -> bool {
        self.0.phase.get() == Phase::Expired
    }
}

impl fmt::Debug for TimeoutHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutHandle")
            .field("when", &self.when())
            .finish_non_exhaustive()
    }
}
