//! The way into a loop from other threads.
//!
//! Everything here is a letter in the loop's box. On the loop's own thread the box is emptied first
//! and the work joins the line directly, so that one order holds for both ways.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context as PollContext, Poll, Waker};
use std::time::{Duration, Instant};

use crate::core::{Core, LoopHandle, home};
use crate::error::{Cancelled, JoinError, LoopClosed, Payload, panic_message};
use crate::key::TaskKey;
use crate::ready::{Letter, Letters, Posted, Ready};
use crate::report::ExceptionContext;
use crate::task;

/// Brings work into a loop from any thread; made by [`LoopHandle::remote`].
///
/// It does not keep the loop alive.
///
/// # Examples
///
/// ```
/// use std::thread;
///
/// let event_loop = coloop::EventLoop::new()?;
/// let remote = event_loop.remote();
/// let thread = thread::spawn(move || {
///     let task = remote.create_task(|| async { 6 * 7 })?;
///     let answer = task.join();
///     remote.stop();
///     Ok::<_, coloop::LoopClosed>(answer)
/// });
/// event_loop.run_forever()?;
/// assert_eq!(thread.join().unwrap()?.unwrap(), 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RemoteHandle {
    letters: Arc<Letters>,
}

impl LoopHandle {
    /// Returns the way in for other threads.
    pub fn remote(&self) -> RemoteHandle {
        RemoteHandle {
            letters: Arc::clone(&self.0.letters),
        }
    }
}

impl RemoteHandle {
    /// Puts a callback at the end of the loop's line and wakes the loop if it sleeps.
    ///
    /// Callbacks posted by one thread run in the order in which they were posted. They run in an
    /// empty context, because contexts stay in their thread.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`]; the closure has been dropped, in the calling thread.
    ///
    /// # Coming from asyncio
    ///
    /// `call_soon_threadsafe`. It must not be called from an operating system's signal handler.
    #[doc(alias = "call_soon_threadsafe")]
    #[track_caller]
    pub fn call_soon(&self, f: impl FnOnce() + Send + 'static) -> Result<RemoteCall, LoopClosed> {
        if self.is_closed() {
            return Err(LoopClosed);
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(CallState::Waiting(f)),
            ended: Condvar::new(),
            letters: Arc::clone(&self.letters),
        });
        self.post(Arc::<Shared<_>>::clone(&shared), Location::caller())?;
        Ok(RemoteCall(shared))
    }

    fn post(
        &self,
        posted: Arc<dyn Posted>,
        place: &'static Location<'static>,
    ) -> Result<(), LoopClosed> {
        if let Some(core) = home(&self.letters) {
            core.join(Ready::posted(posted, place));
            return Ok(());
        }
        self.letters
            .post(Letter::Callback(posted, place))
            .map_err(|_| LoopClosed)
    }

    /// Posts a closure that nobody will want to cancel.
    #[track_caller]
    fn post_closure(&self, f: impl FnOnce() + Send + 'static) -> Result<(), LoopClosed> {
        self.post(Arc::new(Closure(Mutex::new(Some(f)))), Location::caller())
    }

    /// Makes a future on the loop's thread and runs it there as a task.
    ///
    /// The closure crosses threads; the future need not be able to.
    ///
    /// # Errors
    ///
    /// [`LoopClosed`]; the closure has been dropped, in the calling thread.
    ///
    /// # Cancellation
    ///
    /// Dropping the [`RemoteTask`] detaches it; [`RemoteTask::cancel`] cancels the task.
    #[doc(alias = "run_coroutine_threadsafe")]
    #[track_caller]
    pub fn create_task<M, F>(&self, make: M) -> Result<RemoteTask<F::Output>, LoopClosed>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future + 'static,
        F::Output: Send,
    {
        if self.is_closed() {
            return Err(LoopClosed);
        }
        let place = Location::caller();
        let join = Arc::new(Join {
            state: Mutex::new(JoinState {
                result: None,
                waker: None,
                task: None,
                cancel: None,
                finished: false,
                awaited: false,
                abandoned: false,
            }),
            finished: Condvar::new(),
        });
        let promise = JoinPromise(Some(Arc::clone(&join)));
        self.post_closure(move || start(make, promise, place))?;
        Ok(RemoteTask {
            join,
            remote: self.clone(),
        })
    }

    /// Asks the loop to stop, and wakes it.
    ///
    /// It does not stand in the line: what was posted before may still wait for the next run. To stop
    /// behind it, post a callback that calls [`LoopHandle::stop`].
    pub fn stop(&self) {
        self.letters.ask_to_stop();
    }

    /// Tells whether the loop is closed.
    pub fn is_closed(&self) -> bool {
        self.letters.is_refusing()
    }

    /// Says that work outside will come back to the loop, so that a virtual clock stands still.
    ///
    /// It makes no difference to a loop that lives by the system's clock. The name appears in the
    /// error of a loop that has waited for too long.
    pub fn hold(&self, name: &'static str) -> Hold {
        Hold {
            number: self.letters.hold(name),
            letters: Arc::clone(&self.letters),
        }
    }
}

impl fmt::Debug for RemoteHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHandle")
            .field("closed", &self.is_closed())
            .finish()
    }
}

/// Keeps a virtual clock still until it is dropped; made by [`RemoteHandle::hold`].
#[must_use = "the clock stands still only while this is alive"]
pub struct Hold {
    number: u64,
    letters: Arc<Letters>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.letters.release(self.number);
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

/// Cancels a callback that was posted from another thread; made by [`RemoteHandle::call_soon`].
///
/// Its methods wait while the callback is running, so that what they say is true when they return.
/// Inside the callback itself they do not wait. Dropping it does not cancel.
///
/// # Coming from asyncio
///
/// The thread-safe handles of Python 3.14.
#[derive(Clone)]
pub struct RemoteCall(Arc<dyn Call>);

impl RemoteCall {
    /// Cancels the callback and says whether that kept it from running.
    pub fn cancel(&self) -> bool {
        self.0.cancel()
    }

    /// Tells whether the callback was cancelled; `false` once it has run.
    ///
    /// A callback that cancels itself while it runs counts as cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl fmt::Debug for RemoteCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteCall").finish_non_exhaustive()
    }
}

trait Call: Send + Sync {
    fn cancel(&self) -> bool;
    fn is_cancelled(&self) -> bool;
}

enum CallState<F> {
    Waiting(F),
    /// On the loop's thread; it may cancel itself there.
    Running {
        cancelled: bool,
        awaited: bool,
    },
    Done,
    Cancelled,
}

struct Shared<F> {
    state: Mutex<CallState<F>>,
    ended: Condvar,
    letters: Arc<Letters>,
}

impl<F> Shared<F> {
    /// The state, once the callback is not running in another thread.
    fn settled(&self) -> MutexGuard<'_, CallState<F>> {
        let mut state = lock(&self.state);
        if matches!(*state, CallState::Running { .. }) && home(&self.letters).is_none() {
            while let CallState::Running { awaited, .. } = &mut *state {
                *awaited = true;
                state = self
                    .ended
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        state
    }

    /// Cancels a callback that is waiting, and drops it outside the lock.
    fn withdraw(&self, mut state: MutexGuard<'_, CallState<F>>) -> bool {
        if !matches!(*state, CallState::Waiting(_)) {
            return false;
        }
        let before = std::mem::replace(&mut *state, CallState::Cancelled);
        drop(state);
        drop(before);
        true
    }
}

impl<F: FnOnce() + Send> Posted for Shared<F> {
    fn run(&self) {
        let mut state = lock(&self.state);
        if !matches!(*state, CallState::Waiting(_)) {
            return;
        }
        let running = CallState::Running {
            cancelled: false,
            awaited: false,
        };
        let before = std::mem::replace(&mut *state, running);
        drop(state);
        // Whoever waits for the end is told of it also when the callback panics.
        let _ended = Ended(self);
        if let CallState::Waiting(f) = before {
            f();
        }
    }

    fn refuse(&self) {
        self.withdraw(lock(&self.state));
    }
}

struct Ended<'a, F>(&'a Shared<F>);

impl<F> Drop for Ended<'_, F> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        let CallState::Running { cancelled, awaited } = *state else {
            return;
        };
        *state = if cancelled {
            CallState::Cancelled
        } else {
            CallState::Done
        };
        drop(state);
        // To notify nobody would still be a system call.
        if awaited {
            self.0.ended.notify_all();
        }
    }
}

impl<F: FnOnce() + Send> Call for Shared<F> {
    fn cancel(&self) -> bool {
        let mut state = self.settled();
        if let CallState::Running { cancelled, .. } = &mut *state {
            *cancelled = true;
            return false;
        }
        self.withdraw(state)
    }

    fn is_cancelled(&self) -> bool {
        matches!(
            *self.settled(),
            CallState::Cancelled
                | CallState::Running {
                    cancelled: true,
                    ..
                }
        )
    }
}

/// A posted closure that cannot be cancelled.
struct Closure<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send> Posted for Closure<F> {
    fn run(&self) {
        let f = lock(&self.0).take();
        if let Some(f) = f {
            f();
        }
    }

    fn refuse(&self) {
        let f = lock(&self.0).take();
        drop(f);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Awaits, or waits for, a task that another thread gave to a loop; made by
/// [`RemoteHandle::create_task`].
///
/// Dropping it detaches the task.
pub struct RemoteTask<T> {
    join: Arc<Join<T>>,
    remote: RemoteHandle,
}

struct Join<T> {
    state: Mutex<JoinState<T>>,
    finished: Condvar,
}

struct JoinState<T> {
    result: Option<Result<T, JoinError>>,
    waker: Option<Waker>,
    task: Option<TaskKey>,
    /// Asked before the task was made.
    cancel: Option<Cancelled>,
    finished: bool,
    /// A thread waits for the end.
    awaited: bool,
    /// The other end has been dropped.
    abandoned: bool,
}

impl<T> Join<T> {
    fn finish(&self, result: Result<T, JoinError>) {
        let mut state = lock(&self.state);
        state.result = Some(result);
        state.finished = true;
        let waker = state.waker.take();
        let awaited = state.awaited;
        drop(state);
        if awaited {
            self.finished.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The loop's end: dropped without a result, the task counts as cancelled.
struct JoinPromise<T>(Option<Arc<Join<T>>>);

impl<T> JoinPromise<T> {
    fn finish(mut self, result: Result<T, JoinError>) {
        if let Some(join) = self.0.take() {
            join.finish(result);
        }
    }

    /// Whether the other end has been dropped.
    fn is_abandoned(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|join| lock(&join.state).abandoned)
    }
}

impl<T> Drop for JoinPromise<T> {
    fn drop(&mut self) {
        if let Some(join) = self.0.take() {
            let reason = lock(&join.state).cancel.take();
            join.finish(Err(reason.unwrap_or_default().into()));
        }
    }
}

/// Runs on the loop's thread: makes the future and its task.
fn start<M, F>(make: M, promise: JoinPromise<F::Output>, place: &'static Location<'static>)
where
    M: FnOnce() -> F,
    F: Future + 'static,
    F::Output: Send,
{
    let Some(core) = Core::current() else { return };
    let join = match &promise.0 {
        Some(join) if lock(&join.state).cancel.is_none() => Arc::clone(join),
        _ => return,
    };
    let promise = Rc::new(Cell::new(Some(promise)));
    let deliver = {
        let promise = Rc::clone(&promise);
        move |result| match (promise.take(), result) {
            // Nobody is there to see it: it goes to the exception handler.
            (Some(promise), Err(payload)) if promise.is_abandoned() => Some(payload),
            (Some(promise), Err(payload)) => {
                promise.finish(Err(JoinError::Panicked(Payload::new(payload))));
                None
            }
            (Some(promise), Ok(value)) => {
                promise.finish(Ok(value));
                None
            }
            (None, _) => None,
        }
    };
    let made = panic::catch_unwind(AssertUnwindSafe(|| {
        task::spawn_forwarding(&core, make(), place, deliver)
    }));
    match made {
        Ok(key) => lock(&join.state).task = Some(key),
        Err(payload) => {
            let message = panic_message(&*payload).to_owned();
            core.report(
                ExceptionContext::new("panic while a remote task was made")
                    .with_payload(payload)
                    .with_place(Some(place)),
            );
            if let Some(promise) = promise.take() {
                promise.finish(Err(JoinError::Panicked(Payload::new(Box::new(message)))));
            }
        }
    }
}

impl<T: Send + 'static> RemoteTask<T> {
    /// Asks the task to end, as [`Task::cancel`](crate::Task::cancel) does.
    pub fn cancel(&self) {
        let letters = Arc::clone(&self.remote.letters);
        let join = Arc::clone(&self.join);
        let ask = move || {
            let task = {
                let mut state = lock(&join.state);
                state.cancel.get_or_insert_default();
                state.task
            };
            if let (Some(core), Some(task)) = (home(&letters), task) {
                task::cancel(&core, task, None);
            }
        };
        if home(&self.remote.letters).is_some() {
            return ask();
        }
        // What a closed loop had has been cancelled.
        let _ = self.remote.post_closure(ask);
    }

    /// Tells whether the task has ended.
    pub fn is_finished(&self) -> bool {
        lock(&self.join.state).finished
    }

    /// Waits in this thread until the task has ended.
    ///
    /// # Errors
    ///
    /// [`JoinError`] if the task was cancelled or panicked, or if this is the loop's own thread,
    /// where waiting would keep the task from ever ending.
    #[doc(alias = "result")]
    pub fn join(mut self) -> Result<T, JoinError> {
        self.wait(None).unwrap_or(Err(JoinError::WouldDeadlock))
    }

    /// Waits in this thread for at most `timeout`; `None` if the task has not ended by then.
    pub fn join_timeout(&mut self, timeout: Duration) -> Option<Result<T, JoinError>> {
        self.wait(Some(timeout))
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Option<Result<T, JoinError>> {
        let at_home = home(&self.remote.letters).is_some();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = lock(&self.join.state);
        loop {
            if state.finished {
                // A result that has been taken is as good as cancelled.
                let result = state.result.take();
                return Some(result.unwrap_or_else(|| Err(Cancelled::new().into())));
            }
            if at_home {
                return Some(Err(JoinError::WouldDeadlock));
            }
            state.awaited = true;
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            state = match left {
                None => self
                    .join
                    .finished
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => {
                    let waited = self.join.finished.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl<T> Future for RemoteTask<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let waker = cx.waker().clone();
        let mut state = lock(&self.join.state);
        if state.finished {
            let result = state.result.take();
            return Poll::Ready(result.unwrap_or_else(|| Err(Cancelled::new().into())));
        }
        let before = state.waker.replace(waker);
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl<T> Drop for RemoteTask<T> {
    fn drop(&mut self) {
        let result = {
            let mut state = lock(&self.join.state);
            state.abandoned = true;
            state.result.take()
        };
        if let Some(Err(JoinError::Panicked(payload))) = result {
            let report = move || {
                if let Some(core) = Core::current() {
                    let report = ExceptionContext::new("panic in remote task, never observed");
                    core.report(report.with_payload(payload.into_inner()));
                }
            };
            // A closed loop has nobody to tell.
            let _ = self.remote.post_closure(report);
        }
    }
}

impl<T> fmt::Debug for RemoteTask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let finished = lock(&self.join.state).finished;
        f.debug_struct("RemoteTask")
            .field("finished", &finished)
            .finish_non_exhaustive()
    }
}
