//! `limit-vecdeque`: boxed closures in a `VecDeque`, and nothing else.
//!
//! No tasks, no timers, no threads, no system: what `call_soon` cannot be cheaper than.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use crate::cases::Callbacks;

#[derive(Default)]
struct Line {
    waiting: RefCell<VecDeque<Box<dyn FnOnce()>>>,
    stopped: Cell<bool>,
}

#[derive(Clone)]
pub(crate) struct Queue(Rc<Line>);

impl Callbacks for Queue {
    fn drive(start: impl FnOnce(Self) + 'static) {
        let queue = Self(Rc::default());
        start(queue.clone());
        let line = queue.0;
        while !line.stopped.get() {
            let next = line.waiting.borrow_mut().pop_front();
            let Some(callback) = next else { break };
            callback();
        }
    }

    #[inline]
    fn call_soon(&self, callback: impl FnOnce() + 'static) {
        self.0.waiting.borrow_mut().push_back(Box::new(callback));
    }

    fn stop(&self) {
        self.0.stopped.set(true);
    }
}
