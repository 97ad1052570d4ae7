//! Where reports go: to the handler, or out of the run.
//!
//! Everything foreign that is called here, a handler, a hook, a waker, may panic; that ends here too.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;
use std::task::Waker;

use super::{Core, LoopHandle};
use crate::context::{self, Context};
use crate::error::drop_quietly;
use crate::key::TaskKey;
use crate::report::{self, ExceptionContext, PanicPolicy, SlowCallback};

pub(crate) type ExceptionHandler = dyn Fn(&LoopHandle, &ExceptionContext);
pub(crate) type SlowHook = dyn Fn(&SlowCallback);

/// A cell for a shared piece of foreign code, which is never dropped under the borrow.
pub(crate) struct Shared<T: ?Sized>(RefCell<Option<Rc<T>>>);

impl<T: ?Sized> Shared<T> {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(None))
    }

    pub(crate) fn get(&self) -> Option<Rc<T>> {
        self.0.borrow().clone()
    }

    pub(crate) fn set(&self, value: Option<Rc<T>>) {
        let before = self.0.replace(value);
        drop_quietly(before);
    }
}

/// What runs, for reports.
pub(crate) struct Noted {
    pub(crate) place: &'static Location<'static>,
    pub(crate) task: Option<Rc<str>>,
}

impl Core {
    /// Calls a waker, which may be foreign.
    pub(crate) fn wake(&self, waker: Waker) {
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            self.report(ExceptionContext::new("panic in a waker").with_payload(payload));
        }
    }

    /// Notes what runs, for reports, and returns what is to be noted again after it: whoever polls
    /// a task that begins eagerly. An item of the line has nobody above it.
    pub(crate) fn note_item(&self, item: Noted) -> Option<Noted> {
        let place = self.here.replace(Some(item.place));
        let task = self.here_task.replace(item.task);
        Some(Noted {
            place: place?,
            task,
        })
    }

    pub(super) fn item_panicked(&self, payload: Box<dyn Any + Send>) {
        let context = context::take_unwound();
        self.records.enter(TaskKey::NONE);
        context::clear();
        let place = self.here.take();
        let report = ExceptionContext::new("panic in callback")
            .with_payload(payload)
            .with_place(place);
        self.report_in(context, report);
    }

    /// Reports an error that nobody else can see.
    pub(crate) fn report(&self, report: ExceptionContext) {
        self.report_in(None, report);
    }

    /// Reports an error in the context of what failed.
    pub(crate) fn report_in(&self, context: Option<Context>, mut report: ExceptionContext) {
        if self.policy.get() == PanicPolicy::Propagate
            && self.is_running()
            && !self.escaping.get()
            && let Some(payload) = report.take_payload()
        {
            self.escaping.set(true);
            self.escaped.set(Some(payload.into_inner()));
            return;
        }
        let _entered = context::enter(context);
        self.call_handler(&report);
    }

    /// Calls the exception handler; whatever it does, the loop goes on.
    pub(crate) fn call_handler(&self, report: &ExceptionContext) {
        let (Some(handler), Some(core)) = (self.handler.get(), self.this.upgrade()) else {
            return default_handler(report);
        };
        let handle = LoopHandle(core);
        let called = panic::catch_unwind(AssertUnwindSafe(|| handler(&handle, report)));
        // The handler may have taken its own place: the last of it dies here, quietly.
        drop_quietly(handler);
        if let Err(payload) = called {
            let broken = ExceptionContext::new("unhandled error in exception handler")
                .with_error(format_args!("while it was told of \"{report}\""))
                .with_payload(payload);
            default_handler(&broken);
        }
    }
}

/// Writes a report on the standard error stream.
pub(crate) fn default_handler(report: &ExceptionContext) {
    let told = panic::catch_unwind(AssertUnwindSafe(|| report::line(report)));
    if let Err(payload) = told {
        drop_quietly(payload);
        report::line(&format_args!(
            "{} (and it could not be shown)",
            report.message()
        ));
    }
}
