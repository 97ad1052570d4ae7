//! Closing: every cycle is broken, on the loop's own thread.
//!
//! Called by the owner of the loop, once. Tasks, closures, watches and what they hold die here, in
//! rounds, since what dies may wake and schedule; then the letter-box is closed and the selector goes.

use super::home::move_out;
use super::{Core, State};
use crate::error::drop_quietly;
use crate::ready::Ready;
use crate::selector::table::Removed;
use crate::sys::fork;

impl Core {
    /// Breaks every cycle: all tasks, closures, watches die here, on the loop's thread.
    pub(crate) fn close(&self) {
        if self.is_closed() {
            return;
        }
        self.state.set(State::Closed);
        self.letters.refuse();
        loop {
            // What dies may wake and schedule; it is dropped in its turn, until nothing is left.
            for waker in self.records.wakers() {
                self.wake(waker);
            }
            self.take_letters();
            let mut idle = true;
            idle &= self.line.is_empty();
            self.drop_line();
            for removed in self.timers.drain() {
                idle = false;
                drop_quietly(removed);
            }
            if self.line.is_empty() && self.letters.is_empty() && idle {
                if self.records.count() == 0 {
                    break;
                }
                // Another thread is about to post a task that it has woken.
                std::thread::yield_now();
            }
        }
        self.letters.close();
        // What came between the last look and the closing; from now on nothing comes.
        while let Some(letter) = self.letters.take() {
            drop_quietly(Ready::from(letter));
        }
        if self.forks == fork::generation() {
            let (removed, selector) = self.table.drain();
            // All let go before the first is dropped: what one of them held may reach another.
            removed.iter().for_each(Removed::let_go);
            removed.into_iter().for_each(drop_quietly);
            drop_quietly(selector);
        } else {
            // The registrations are the parent's: a child that took its copy apart would change
            // them.
            self.table.leak_selector();
        }
        self.handler.set(None);
        self.slow_hook.set(None);
        let extensions = self.extensions.take();
        drop_quietly(extensions);
        // A handle that outlives its loop keeps none of its memory.
        self.line.shrink();
        self.records.shrink();
        self.table.shrink();
        drop((
            self.reported.take(),
            self.due.take(),
            self.read_buffer.take(),
        ));
        move_out(self);
    }
}
