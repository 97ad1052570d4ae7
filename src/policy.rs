//! The compatibility door: a current loop for each thread, and policies that decide on it.
//!
//! New programs need nothing here: [`run`](crate::run()) makes a loop, [`current`](crate::current)
//! finds the one that runs. Ported programs that call `get_event_loop`, `set_event_loop` and
//! `new_event_loop` find them here, with the rules of Python 3.14: no loop is ever made behind the
//! caller's back.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;

use crate::core::{Core, LoopHandle};
use crate::event_loop::EventLoop;

/// Says that no loop has been set for this thread.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NoCurrentLoop {
    /// The name of the thread, if it has one.
    pub thread: Option<String>,
}

impl NoCurrentLoop {
    /// Names the calling thread.
    pub fn here() -> Self {
        Self {
            thread: thread::current().name().map(str::to_owned),
        }
    }
}

impl fmt::Display for NoCurrentLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.thread.as_deref().unwrap_or("without a name");
        write!(
            f,
            "there is no current event loop in thread `{thread}`: set one, or use `coloop::run`"
        )
    }
}

impl Error for NoCurrentLoop {}

impl From<NoCurrentLoop> for io::Error {
    fn from(error: NoCurrentLoop) -> Self {
        Self::new(io::ErrorKind::NotFound, error)
    }
}

/// Decides which loop is current, and how loops are made; one for the whole process.
#[doc(alias = "AbstractEventLoopPolicy")]
pub trait Policy: Send + Sync {
    /// Returns the loop that was set for the calling thread.
    ///
    /// # Errors
    ///
    /// [`NoCurrentLoop`] if none was.
    fn event_loop(&self) -> Result<Rc<EventLoop>, NoCurrentLoop>;

    /// Sets the loop of the calling thread.
    fn set_event_loop(&self, event_loop: Option<Rc<EventLoop>>);

    /// Makes a loop, without setting it.
    ///
    /// # Errors
    ///
    /// What the system says when it refuses a descriptor.
    fn new_event_loop(&self) -> io::Result<EventLoop>;
}

/// Keeps one loop for each thread and makes loops by [`EventLoop::new`].
#[doc(alias = "DefaultEventLoopPolicy")]
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultPolicy;

thread_local! {
    static SET: RefCell<Option<Rc<EventLoop>>> = const { RefCell::new(None) };
}

impl Policy for DefaultPolicy {
    fn event_loop(&self) -> Result<Rc<EventLoop>, NoCurrentLoop> {
        SET.with(|set| set.borrow().clone())
            .ok_or_else(NoCurrentLoop::here)
    }

    fn set_event_loop(&self, event_loop: Option<Rc<EventLoop>>) {
        let before = SET.with(|set| set.replace(event_loop));
        drop(before);
    }

    fn new_event_loop(&self) -> io::Result<EventLoop> {
        EventLoop::new()
    }
}

static POLICY: RwLock<Option<Arc<dyn Policy>>> = RwLock::new(None);

/// Returns the process's policy.
#[doc(alias = "get_event_loop_policy")]
pub fn policy() -> Arc<dyn Policy> {
    let policy = POLICY
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    policy.unwrap_or_else(|| Arc::new(DefaultPolicy))
}

/// Sets the process's policy; `None` goes back to the default.
#[doc(alias = "set_event_loop_policy")]
pub fn set_policy(policy: Option<Arc<dyn Policy>>) {
    let before = {
        let mut current = POLICY.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, policy)
    };
    drop(before);
}

/// Returns the running loop, or else the one that the policy has for this thread.
///
/// In a callback or a task it is always the running loop, whatever the policy says.
///
/// # Errors
///
/// [`NoCurrentLoop`] if there is neither. No loop is made.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::policy;
///
/// assert!(policy::event_loop().is_err());
/// policy::set_event_loop(Some(Rc::new(policy::new_event_loop()?)));
/// assert_eq!(policy::event_loop()?.run_until_complete(async { 1 })?, 1);
/// policy::set_event_loop(None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "get_event_loop")]
pub fn event_loop() -> Result<Rc<EventLoop>, NoCurrentLoop> {
    match Core::current() {
        Some(core) => Ok(Rc::new(EventLoop::guest(LoopHandle(core)))),
        None => policy().event_loop(),
    }
}

/// Sets this thread's loop through the policy; `None` clears it.
pub fn set_event_loop(event_loop: Option<Rc<EventLoop>>) {
    policy().set_event_loop(event_loop);
}

/// Makes a loop through the policy, without setting it.
///
/// # Errors
///
/// What the system says when it refuses a descriptor.
pub fn new_event_loop() -> io::Result<EventLoop> {
    policy().new_event_loop()
}
