//! Which loop is whose: the one that runs in a thread, and the ones that were made in it.
//!
//! A waker asks first whether this is its loop, by one thread-local pointer. If it is not, the loop
//! may still be at home here without running; else the work goes by the letter-box.

use std::cell::RefCell;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use async_task::Runnable;

use super::turn::Driver;
use super::{Core, State};
use crate::context::{self, Context};
use crate::error::{RunError, drop_quietly};
use crate::key::TaskKey;
use crate::ready::{Letter, Letters, Ready};
use crate::sys::fork;

thread_local! {
    /// The loop that runs in this thread.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
    /// The loops that were made in this thread, running or not.
    static HOMES: RefCell<Vec<Weak<Core>>> = const { RefCell::new(Vec::new()) };
}

impl Core {
    /// The loop that runs in this thread.
    pub(crate) fn current() -> Option<Rc<Self>> {
        let core = CURRENT
            .try_with(|current| current.borrow().clone())
            .ok()
            .flatten()?;
        // A child that forked out of a running loop is in nobody's loop.
        (core.forks == fork::generation()).then_some(core)
    }

    /// Enters the loop, unless it or another one is running in this thread.
    pub(crate) fn begin(self: &Rc<Self>, driver: Driver) -> Result<Running, RunError> {
        if self.forks != fork::generation() {
            return Err(RunError::Forked);
        }
        match self.state.get() {
            State::Running => return Err(RunError::AlreadyRunning),
            State::Closed => return Err(RunError::Closed),
            State::Idle => {}
        }
        if Self::current().is_some() {
            return Err(RunError::AnotherLoopRunning);
        }
        let entered = CURRENT.try_with(|current| current.replace(Some(Rc::clone(self))));
        match entered {
            Ok(before) => drop(before),
            Err(_) => return Err(RunError::Io(io::Error::other("the thread is ending"))),
        }
        self.state.set(State::Running);
        self.working.set(false);
        self.pace.wait_next();
        self.letters.doorbell().wake();
        Ok(Running {
            core: Rc::clone(self),
            driver,
            task: self.records.enter(TaskKey::NONE),
            context: context::swap(None),
        })
    }
}

/// Notes that a loop was made in this thread.
pub(super) fn move_in(core: &Rc<Core>) {
    // In a thread that is ending there are no homes any more: wakes go by the letter-box.
    let _ = HOMES.try_with(|homes| {
        let mut homes = homes.borrow_mut();
        homes.retain(|home| home.strong_count() > 0);
        homes.push(Rc::downgrade(core));
    });
}

/// Notes that a loop is no more.
pub(super) fn move_out(core: &Core) {
    let _ = HOMES.try_with(|homes| {
        homes
            .borrow_mut()
            .retain(|home| !std::ptr::eq(home.as_ptr(), core));
    });
}

/// A loop that has been entered; dropping it leaves the loop again.
pub(crate) struct Running {
    core: Rc<Core>,
    driver: Driver,
    task: TaskKey,
    context: Option<Context>,
}

impl Running {
    /// The number of this run.
    pub(crate) fn number(&self) -> u32 {
        let number = self.core.runs.get().wrapping_add(1);
        self.core.runs.set(number);
        number
    }

    /// A copy of the context in which the run was started.
    pub(crate) fn context(&self) -> Option<Context> {
        self.context.as_ref().map(Context::copy)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let core = &self.core;
        core.stopping.set(false);
        core.state.set(State::Idle);
        drop_quietly(context::swap(self.context.take()));
        core.records.enter(self.task);
        let before = CURRENT.try_with(|current| current.take());
        drop(before);
        core.letters.doorbell().sleep();
        let came = !core.letters.is_empty() || core.letters.stop_asked();
        if matches!(self.driver, Driver::Host(_)) && came {
            // What came while the loop was awake must still reach a host that now sleeps.
            core.letters.ring();
        }
    }
}

/// Puts a woken task in its loop's line, or in the letter-box from another thread.
pub(crate) fn schedule(runnable: Runnable<Arc<Letters>>) {
    let mut runnable = Some(runnable);
    // The usual case first, without touching a count: the loop that runs in this thread.
    let _ = CURRENT.try_with(|current| {
        let current = current.borrow();
        if let (Some(core), Some(woken)) = (&*current, &runnable)
            && Arc::ptr_eq(&core.letters, woken.metadata())
            && let Some(woken) = runnable.take()
        {
            core.join(Ready::Task(woken));
        }
    });
    if let Some(runnable) = runnable {
        schedule_elsewhere(runnable);
    }
}

#[cold]
fn schedule_elsewhere(runnable: Runnable<Arc<Letters>>) {
    let letters = Arc::clone(runnable.metadata());
    match home(&letters) {
        Some(core) => core.join(Ready::Task(runnable)),
        None => {
            if let Err(Letter::Task(runnable)) = letters.post(Letter::Task(runnable)) {
                // Cannot happen: the box is closed only when no task is left. A task must not die
                // on a foreign thread, so it would rather not die at all.
                std::mem::forget(runnable);
            }
        }
    }
}

/// The loop of these letters, if this is its home thread.
pub(crate) fn home(letters: &Arc<Letters>) -> Option<Rc<Core>> {
    let is_it = |core: &Rc<Core>| Arc::ptr_eq(&core.letters, letters);
    let current = CURRENT.try_with(|current| {
        current
            .borrow()
            .as_ref()
            .filter(|core| is_it(core))
            .cloned()
    });
    match current {
        Ok(Some(core)) => Some(core),
        _ => HOMES
            .try_with(|homes| homes.borrow().iter().filter_map(Weak::upgrade).find(is_it))
            .ok()
            .flatten(),
    }
}
