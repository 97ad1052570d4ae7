//! What every module of the suite says: make a loop, keep a trace, run some turns.

use std::cell::RefCell;
use std::env;
use std::fmt::Debug;
use std::rc::Rc;

use coloop::testing::Clock;
use coloop::{Builder, EventLoop};

/// Configures a loop as the suite is asked to run: `COLOOP_TEST_POLL_EVERY` sets `poll_every`.
pub(crate) fn builder() -> Builder {
    match env::var("COLOOP_TEST_POLL_EVERY") {
        Ok(items) => EventLoop::builder().poll_every(items.parse().unwrap()),
        Err(_) => EventLoop::builder(),
    }
}

/// A loop that lives by the system's clock.
pub(crate) fn real_loop() -> EventLoop {
    builder().build().unwrap()
}

/// A loop whose clock jumps, and the clock.
pub(crate) fn virtual_loop() -> (EventLoop, Rc<Clock>) {
    let clock = Clock::new();
    let event_loop = builder().clock(Rc::<Clock>::clone(&clock)).build().unwrap();
    (event_loop, clock)
}

/// Makes one turn of the loop, without waiting.
#[track_caller]
pub(crate) fn one_turn(event_loop: &EventLoop) {
    event_loop.stop();
    event_loop.run_forever().unwrap();
}

/// What has happened, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace(Rc<RefCell<Vec<String>>>);

impl Trace {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn log(&self, what: impl ToString) {
        self.0.borrow_mut().push(what.to_string());
    }

    /// A closure that logs a word.
    pub(crate) fn logs(&self, what: impl ToString) -> impl FnOnce() + 'static {
        let (trace, what) = (self.clone(), what.to_string());
        move || trace.log(what)
    }

    /// Whether this has happened.
    pub(crate) fn has(&self, what: &str) -> bool {
        self.count(what) > 0
    }

    /// How often this has happened.
    pub(crate) fn count(&self, what: &str) -> usize {
        self.0.borrow().iter().filter(|line| *line == what).count()
    }

    /// How much has happened.
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(crate) fn take(&self) -> Vec<String> {
        self.0.take()
    }

    /// Asserts the whole trace, and starts a new one.
    #[track_caller]
    pub(crate) fn assert<S: AsRef<str> + Debug>(&self, expected: &[S]) {
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        assert_eq!(self.take(), expected);
    }
}
