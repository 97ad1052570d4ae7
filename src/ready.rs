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
    /// How many items have left the line: the number of the one in front.
    left: Cell<u64>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self {
            items: RefCell::new(VecDeque::new()),
            left: Cell::new(0),
        }
    }

    /// Puts an item at the end and returns its number.
    #[inline]
    pub(crate) fn push(&self, item: Ready) -> u64 {
        let mut items = self.items.borrow_mut();
        let number = self.left.get() + items.len() as u64;
        items.push_back(item);
        number
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<Ready> {
        let item = self.items.borrow_mut().pop_front();
        if item.is_some() {
            self.left.set(self.left.get() + 1);
        }
        item
    }

    /// Takes the callback with this number out of its place, if it is still in the line.
    pub(crate) fn take(&self, number: u64) -> Option<Ready> {
        let place = number.checked_sub(self.left.get())?;
        let mut items = self.items.borrow_mut();
        let item = items.get_mut(usize::try_from(place).ok()?)?;
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

/// Work from another thread.
pub(crate) enum Letter {
    Callback(Box<dyn FnOnce() + Send>, &'static Location<'static>),
    Task(Runnable<Arc<Letters>>),
    Main(u32),
}

impl From<Letter> for Ready {
    fn from(letter: Letter) -> Self {
        match letter {
            Letter::Callback(f, place) => Self::Callback(f, place),
            Letter::Task(runnable) => Self::Task(runnable),
            Letter::Main(run) => Self::Main(run),
        }
    }
}

/// The letter-box, its doorbell, and what other threads may know of a loop.
pub(crate) struct Letters {
    queue: ConcurrentQueue<Letter>,
    /// Set after each push; read in every turn, where asking the queue itself would cost more.
    mail: AtomicBool,
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
            mail: AtomicBool::new(false),
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
        // Before the bell, so that a loop that falls asleep in between sees it when it looks again.
        self.mail.store(true, Ordering::Release);
        self.ring_if_asleep();
        Ok(())
    }

    pub(crate) fn take(&self) -> Option<Letter> {
        self.queue.pop().ok()
    }

    /// Whether a letter has come since [`notice_mail`](Self::notice_mail).
    #[inline]
    pub(crate) fn has_mail(&self) -> bool {
        self.mail.load(Ordering::Acquire)
    }

    /// Says that the box is about to be emptied; what comes from now on is new mail.
    pub(crate) fn notice_mail(&self) {
        self.mail.swap(false, Ordering::AcqRel);
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
