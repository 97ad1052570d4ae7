//! What a loop watches: the trait of selectors, and the values that pass through it.
//!
//! A [`Selector`] owns what it watches, so that safe code can neither close a descriptor under it
//! nor leave one registered. The default serves descriptors; the memory selector of
//! [`testing`](crate::testing) wraps any other and serves sources that exist only in memory.
//!
//! What must always hold:
//!
//! 1. Level-triggered: a source that is still ready is reported by the next wait again.
//! 2. A source with no interest is not registered with the system at all, because a hang-up is
//!    reported even to those who asked for nothing, and would spin.
//! 3. Nothing is reported for a key after [`Selector::delete`] has returned, except what an earlier
//!    wait has reported already: the table drops that by the key's generation.

mod polling;
pub(crate) mod source_id;
pub(crate) mod table;

use std::fmt;
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use self::polling::default_selector;
use crate::doorbell::Bell;

/// Waits until a watched source is ready.
///
/// A loop calls it from its own thread only, and never while it holds a borrow of its own, so an
/// implementation may use a plain `RefCell`. Pass one to
/// [`Builder::selector`](crate::Builder::selector).
///
/// # Examples
///
/// A selector that counts its waits and leaves the work to the default one:
///
/// ```
/// use std::{cell::Cell, io, rc::Rc, sync::Arc, time::Duration};
/// use coloop::{Bell, EventLoop, Interest, Readiness, Selector, Source, default_selector};
///
/// struct Counting(Rc<dyn Selector>, Cell<u32>);
///
/// impl Selector for Counting {
///     fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
///         self.0.add(key, source, interest)
///     }
///     fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
///         self.0.modify(key, interest)
///     }
///     fn delete(&self, key: usize) -> Option<Source> {
///         self.0.delete(key)
///     }
///     fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
///         self.1.set(self.1.get() + 1);
///         self.0.wait(ready, timeout)
///     }
///     fn bell(&self) -> Arc<dyn Bell> {
///         self.0.bell()
///     }
/// }
///
/// let counting = Rc::new(Counting(default_selector()?, Cell::new(0)));
/// let event_loop = EventLoop::builder().selector(counting.clone()).build()?;
/// event_loop.run_until_complete(coloop::yield_now())?;
/// assert_eq!(counting.1.get(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// This is the `selector` argument of `SelectorEventLoop`, with the methods of `BaseSelector` that
/// a loop uses: `register`, `modify`, `unregister`, `select`.
pub trait Selector {
    /// Watches `source` under `key` until [`delete`](Selector::delete).
    ///
    /// # Errors
    ///
    /// What the system says, or [`Unsupported`](io::ErrorKind::Unsupported) for a kind of source
    /// that this selector does not serve. Nothing is registered then.
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()>;

    /// Changes what the source under `key` is watched for; nothing at all is allowed.
    ///
    /// # Errors
    ///
    /// What the system says, or [`NotFound`](io::ErrorKind::NotFound) for an unknown key.
    fn modify(&self, key: usize, interest: Interest) -> io::Result<()>;

    /// Stops watching and gives the source back.
    fn delete(&self, key: usize) -> Option<Source>;

    /// Appends what is ready to `ready`, waiting for at most `timeout` (`None` = until something
    /// is).
    ///
    /// It may return early with nothing.
    ///
    /// # Errors
    ///
    /// What the system says; the run that waits ends with it.
    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()>;

    /// Returns the bell that ends a wait from another thread.
    fn bell(&self) -> Arc<dyn Bell>;

    /// Returns the descriptor that is readable when a wait would return at once, if there is one.
    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What a selector watches.
#[derive(Clone)]
#[non_exhaustive]
pub enum Source {
    /// A descriptor, kept open by the selector for as long as it is watched.
    #[cfg(unix)]
    Fd(Rc<dyn AsFd>),
    /// A source that exists only in memory; a memory selector serves it.
    Sim(SimId),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The owner is foreign: what `as_fd` does is its business, so it is not asked here.
            #[cfg(unix)]
            Self::Fd(_) => f.write_str("Fd(..)"),
            Self::Sim(id) => write!(f, "Sim({})", id.0),
        }
    }
}

/// Names a source that exists only in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SimId(pub u64);

/// What a source is watched for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Whether there is something to read, or the peer has closed.
    pub readable: bool,
    /// Whether there is room to write, or the peer has gone.
    pub writable: bool,
}

impl Interest {
    /// Nothing.
    pub const NONE: Self = Self {
        readable: false,
        writable: false,
    };

    /// Tells whether there is no interest at all.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Says that a source is ready.
///
/// Errors and hang-ups count as both: whoever reads or writes next is told by the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// The key under which the source was added.
    pub key: usize,
    /// Whether a read would not block.
    pub readable: bool,
    /// Whether a write would not block.
    pub writable: bool,
}
