//! The line (what runs next) and the letter-box (work from other threads).
//!
//! The heart pushes and pops the line; the letter-box is shared with every waker and every
//! [`RemoteHandle`](crate::RemoteHandle). Neither runs anything.
//!
//! What must always hold:
//!
//! 1. First in, first out, without exception. An item that is cancelled keeps its place as an empty
//!    one, so a place in the line never moves.
//! 2. The line's n-th push is number n, for ever. That number is the whole link between a
//!    [`Handle`](crate::Handle) and its callback: no second allocation, no table.
//! 3. A letter is pushed first and the bell is rung after; see [`Doorbell`].
//! 4. The box is closed only when no task is left, so a waker never meets a closed box with a task
//!    in its hand.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_task::Runnable;
use concurrent_queue::ConcurrentQueue;

use crate::doorbell::{Bell, Doorbell};
use crate::key::{Direction, TimerKey, WatchKey};

/// One item of the line.
pub(crate) enum Ready {
    /// A plain callback, and where it was scheduled.
    Callback(Box<dyn FnOnce()>, &'static Location<'static>),
    /// A task that has been woken.
    Task(Runnable<Arc<Letters>>),
    /// A watched source that is ready: a key of the table.
    Io(WatchKey, Direction),
    /// A timer that is due: a key of the shelf.
    Timer(TimerKey),
    /// The future of `run_until_complete`, by the number of its run.
    Main(u32),
    /// What is left of a callback that was cancelled.
    Cancelled,
}

/// The ready queue.
pub(crate) struct Line {
    items: RefCell<VecDeque<Ready>>,
    /// How many items have been pushed: the number of the next one.
    pushed: Cell<u64>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self {
            items: RefCell::new(VecDeque::new()),
            pushed: Cell::new(0),
        }
    }

    /// Puts an item at the end and returns its number.
    #[inline(always)]
    pub(crate) fn push(&self, item: Ready) -> u64 {
        self.items.borrow_mut().push_back(item);
        let number = self.pushed.get();
        self.pushed.set(number + 1);
        number
    }

    #[inline(always)]
    pub(crate) fn pop(&self) -> Option<Ready> {
        self.items.borrow_mut().pop_front()
    }

    /// Takes the callback with this number out of its place, if it is still in the line.
    pub(crate) fn take(&self, number: u64) -> Option<Ready> {
        let mut items = self.items.borrow_mut();
        let front = self.pushed.get() - items.len() as u64;
        let place = usize::try_from(number.checked_sub(front)?).ok()?;
        let item = items.get_mut(place)?;
        match item {
            Ready::Callback(..) => Some(std::mem::replace(item, Ready::Cancelled)),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.items.borrow().len()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.items.borrow().is_empty()
    }

    /// Gives back the memory of a line that has been emptied for good.
    pub(crate) fn shrink(&self) {
        self.items.borrow_mut().shrink_to_fit();
    }
}

/// A callback from another thread.
///
/// One that is dropped without having been run tells whoever waits for it.
pub(crate) trait Posted: Send + Sync {
    /// Runs as an item of the line.
    fn run(&self);

    /// Is told that it will never run.
    fn refuse(&self);
}

/// The loop's end of a posted callback.
struct Delivered(Option<Arc<dyn Posted>>);

impl Drop for Delivered {
    fn drop(&mut self) {
        if let Some(posted) = self.0.take() {
            posted.refuse();
        }
    }
}

impl Ready {
    pub(crate) fn posted(posted: Arc<dyn Posted>, place: &'static Location<'static>) -> Self {
        let mut delivered = Delivered(Some(posted));
        let run = move || {
            if let Some(posted) = delivered.0.take() {
                posted.run();
            }
        };
        Self::Callback(Box::new(run), place)
    }
}

/// Work from another thread.
pub(crate) enum Letter {
    Callback(Arc<dyn Posted>, &'static Location<'static>),
    Task(Runnable<Arc<Letters>>),
    Main(u32),
}

impl From<Letter> for Ready {
    fn from(letter: Letter) -> Self {
        match letter {
            // The box is made here: freed in the thread that made it, it costs least.
            Letter::Callback(posted, place) => Self::posted(posted, place),
            Letter::Task(runnable) => Self::Task(runnable),
            Letter::Main(run) => Self::Main(run),
        }
    }
}

/// The letter-box, its doorbell, and what other threads may know of a loop.
pub(crate) struct Letters {
    queue: ConcurrentQueue<Letter>,
    doorbell: Doorbell,
    /// Gone once the loop is closed, so that who keeps a way in keeps no descriptor open.
    bell: Mutex<Option<Arc<dyn Bell>>>,
    /// Set before the box is: remote callers are refused while the last tasks die.
    closing: AtomicBool,
    stop: AtomicBool,
    /// Work outside that has said that it will come back: a number and a name each.
    holds: Mutex<Vec<(u64, &'static str)>>,
}

impl Letters {
    pub(crate) fn new(bell: Arc<dyn Bell>) -> Self {
        Self {
            queue: ConcurrentQueue::unbounded(),
            doorbell: Doorbell::new(),
            bell: Mutex::new(Some(bell)),
            closing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            holds: Mutex::new(Vec::new()),
        }
    }

    /// Puts a letter in the box and rings if the loop sleeps; gives it back if the box is closed.
    pub(crate) fn post(&self, letter: Letter) -> Result<(), Letter> {
        let pushed = self.queue.push(letter);
        pushed.map_err(|refused| refused.into_inner())?;
        self.ring_if_asleep();
        Ok(())
    }

    pub(crate) fn take(&self) -> Option<Letter> {
        self.queue.pop().ok()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn doorbell(&self) -> &Doorbell {
        &self.doorbell
    }

    pub(crate) fn ring_if_asleep(&self) {
        if self.doorbell.must_ring() {
            self.ring();
        }
    }

    pub(crate) fn ring(&self) {
        let bell = self
            .bell
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(bell) = bell {
            bell.ring();
        }
    }

    /// Asks the loop to stop; the flag is seen when it wakes.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.ring_if_asleep();
    }

    pub(crate) fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn clear_stop(&self) {
        self.stop.store(false, Ordering::Release);
    }

    /// From now on other threads are refused; wakes still come in.
    pub(crate) fn refuse(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(crate) fn is_refusing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.queue.close();
        drop(
            self.bell
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Notes work outside under a name, and returns the number that ends it.
    pub(crate) fn hold(&self, name: &'static str) -> u64 {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let number = holds.last().map_or(0, |(number, _)| number + 1);
        holds.push((number, name));
        number
    }

    pub(crate) fn release(&self, number: u64) {
        self.holds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(other, _)| *other != number);
        self.ring_if_asleep();
    }

    /// Whether there is work outside that has said that it will come back.
    pub(crate) fn is_held(&self) -> bool {
        let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        !holds.is_empty()
    }

    /// The names of the work outside.
    pub(crate) fn holds(&self) -> Vec<&'static str> {
        let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.iter().map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn callback() -> Ready {
        Ready::Callback(Box::new(|| {}), Location::caller())
    }

    #[test]
    fn an_item_keeps_its_number_while_others_leave_and_are_cancelled() {
        let line = Line::new();
        assert_eq!(
            [
                line.push(callback()),
                line.push(callback()),
                line.push(callback())
            ],
            [0, 1, 2]
        );
        assert!(matches!(line.take(1), Some(Ready::Callback(..))));
        assert!(line.take(1).is_none(), "it is gone already");
        assert!(matches!(line.pop(), Some(Ready::Callback(..))));
        assert!(line.take(0).is_none(), "it has left the line");
        assert!(matches!(line.pop(), Some(Ready::Cancelled)));
        assert_eq!(line.push(callback()), 3);
        assert!(line.take(7).is_none(), "it has not come yet");
        assert!(matches!(line.take(2), Some(Ready::Callback(..))));
        assert_eq!(line.len(), 2);
    }

    #[test]
    fn an_item_of_the_line_is_four_words() {
        assert_eq!(size_of::<Ready>(), 4 * size_of::<usize>());
    }
}
