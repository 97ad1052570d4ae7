//! What the loop polls: a future with everything that keeps its failures from spreading.
//!
//! `async-task` holds the body and polls it on the loop's thread. It would abort the process if a
//! destructor of ours panicked, so no panic leaves this file: not from a poll, not from the drop of
//! a future that was never polled, not from the drop of an output that nobody took.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::mem;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll};
use std::thread;

use pin_project_lite::pin_project;

use super::{Report, cancel, reference};
use crate::context::{self, Context};
use crate::core::{Core, Noted};
use crate::error::{Cancelled, JoinError, Payload, drop_quietly};
use crate::key::TaskKey;
use crate::report::ExceptionContext;

/// Says what is wrong with an output that nobody took, if anything is.
pub(super) trait Check<T> {
    /// The question, if there is one.
    const ERROR: Option<fn(&T) -> Option<String>>;
}

/// Nobody looks at the output.
pub(super) struct Silent;

impl<T> Check<T> for Silent {
    const ERROR: Option<fn(&T) -> Option<String>> = None;
}

/// The output says itself whether it is an error.
pub(super) struct Reporting;

impl<T: Report> Check<T> for Reporting {
    const ERROR: Option<fn(&T) -> Option<String>> = Some(T::error);
}

pin_project! {
    /// The future of a task, as `async-task` polls it.
    pub(super) struct Body<F: Future, C> {
        #[pin]
        future: Option<F>,
        core: Rc<Core>,
        key: TaskKey,
        check: PhantomData<C>,
    }

    impl<F: Future, C> PinnedDrop for Body<F, C> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.future.is_some() {
                // Its loop is closing: it is dropped as it would have been by a poll.
                let (core, key) = (&**this.core, *this.key);
                let outer = core.records.enter(key);
                let before = Before::of(core, key);
                if let Err(payload) = quietly(|| this.future.set(None)) {
                    let about = reference::about(this.core, key);
                    about.report_panic("panic in the destructor of task", payload);
                }
                before.leave(core);
                core.records.enter(outer);
                reference::end(core, key);
            }
        }
    }
}

impl<F: Future, C> Body<F, C> {
    pub(super) fn new(future: F, core: Rc<Core>, key: TaskKey) -> Self {
        Self {
            future: Some(future),
            core,
            key,
            check: PhantomData,
        }
    }
}

impl<F: Future, C: Check<F::Output>> Future for Body<F, C> {
    type Output = Outcome<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (core, key) = (&**this.core, *this.key);
        let quiet = core.records.is_quiet() && !context::is_used() && !core.debug.get();
        let outer = core.records.enter(key);
        let before = if quiet {
            Before::default()
        } else {
            Before::of(core, key)
        };
        let (step, dropped) = step(this.future.as_mut(), before.must_end, cx);
        if let Step::Pending = step {
            if !quiet || context::is_used() {
                before.suspend(core, key);
            }
            core.records.enter(outer);
            return Poll::Pending;
        }

        // Everything of the task, its destructors too, runs as the task and in its context.
        let about = || reference::about(this.core, key);
        if let Some(payload) = dropped {
            about().report_panic("panic in the destructor of task", payload);
        }
        let asked = if core.records.is_quiet() {
            None
        } else {
            cancel::take_request(core, key)
        };
        let outcome = match (step, asked) {
            (Step::Returned(value), None) => {
                let whose = Whose::of_value(this.core, key, C::ERROR);
                Outcome {
                    result: Some(Ok(value)),
                    whose,
                }
            }
            (Step::Returned(value), Some(cancelled)) => {
                // The request came before the body's return: the value is nobody's.
                if let Err(payload) = quietly(|| drop(value)) {
                    about().report_panic("panic in the destructor of the output of task", payload);
                }
                Outcome::failed(cancelled.into())
            }
            (Step::Panicked(payload), _) => Outcome {
                result: Some(Err(Box::new(JoinError::Panicked(Payload::new(payload))))),
                whose: Whose::Known(Box::new((about(), None))),
            },
            (Step::Dropped | Step::Pending, cancelled) => {
                Outcome::failed(cancelled.unwrap_or_default().into())
            }
        };
        before.leave(core);
        core.records.enter(outer);
        reference::end(core, key);
        Poll::Ready(outcome)
    }
}

/// What a task needs before it is polled.
#[derive(Default)]
struct Before {
    must_end: bool,
    /// The context that was current.
    outer: Option<Context>,
    /// What was noted as running, if this is inside it.
    noted: Option<Noted>,
}

impl Before {
    /// Enters the task's context.
    fn of(core: &Core, key: TaskKey) -> Self {
        let begun = core.records.with(key, |task| {
            let must_end = task.must_end();
            if let Some(rare) = &mut task.rare {
                rare.started |= !must_end;
            }
            (
                must_end,
                task.take_context(),
                task.place,
                core.debug.get().then(|| task.name()),
            )
        });
        let Some((must_end, context, place, name)) = begun else {
            return Self::default();
        };
        let noted = match name {
            Some(name) => core.note_item(Noted {
                place,
                task: Some(name),
            }),
            None => None,
        };
        Self {
            must_end,
            outer: context::swap(context),
            noted,
        }
    }

    /// Leaves the context of a task that has ended; what it held is foreign.
    fn leave(self, core: &Core) {
        if self.outer.is_some() || context::is_used() {
            drop_quietly(context::swap(self.outer));
        }
        if let Some(noted) = self.noted {
            core.note_item(noted);
        }
    }

    /// Leaves the task's context, which stays with the task until its next poll.
    fn suspend(self, core: &Core, key: TaskKey) {
        if let Some(noted) = self.noted {
            core.note_item(noted);
        }
        let context = context::swap(self.outer);
        if context.is_some() {
            let before = core.records.with(key, |task| {
                core.records.make_noisy(task);
                mem::replace(&mut task.rare().context, context)
            });
            drop(before);
        }
    }
}

/// Polls a future, or drops it; drops it also when it is over. Neither lets a panic out.
fn step<F: Future>(
    mut future: Pin<&mut Option<F>>,
    must_end: bool,
    cx: &mut PollContext<'_>,
) -> (Step<F::Output>, Option<Box<dyn Any + Send>>) {
    let mut step = Step::Dropped;
    let polled = quietly(|| {
        if !must_end && let Some(polled) = future.as_mut().as_pin_mut() {
            match polled.poll(cx) {
                Poll::Pending => {
                    step = Step::Pending;
                    return;
                }
                Poll::Ready(value) => step = Step::Returned(value),
            }
        }
        future.set(None);
    });
    let Err(payload) = polled else {
        return (step, None);
    };
    if future.is_some() {
        // The poll itself panicked: the future has still to be dropped.
        let dropped = quietly(|| future.set(None)).err();
        return (Step::Panicked(payload), dropped);
    }
    (step, Some(payload))
}

/// How a step of a body ended.
enum Step<T> {
    Returned(T),
    Panicked(Box<dyn Any + Send>),
    /// Not at all.
    Pending,
    /// It was asked to end, and was not polled again.
    Dropped,
}

fn quietly<R>(f: impl FnOnce() -> R) -> thread::Result<R> {
    panic::catch_unwind(AssertUnwindSafe(f))
}

/// What a report says of a task that may be gone by then.
pub(super) struct About {
    pub(super) core: Rc<Core>,
    pub(super) key: TaskKey,
    pub(super) place: &'static Location<'static>,
    /// A name of its own; else it is known by its number.
    pub(super) name: Option<Rc<str>>,
    pub(super) context: Option<Context>,
}

impl About {
    fn report(&self, message: &str, add: impl FnOnce(ExceptionContext) -> ExceptionContext) {
        let number = || format!("Task-{}", self.key.number).into();
        let report = ExceptionContext::new(message)
            .with_task(self.name.clone().unwrap_or_else(number), self.key)
            .with_place(Some(self.place));
        self.core.report_in(self.context.clone(), add(report));
    }

    fn report_panic(&self, message: &str, payload: Box<dyn Any + Send>) {
        self.report(message, |report| report.with_payload(payload));
    }
}

type ErrorOf<T> = fn(&T) -> Option<String>;

/// The result of a task, which reports itself if nobody takes it.
pub(super) struct Outcome<T> {
    result: Option<Result<T, Box<JoinError>>>,
    whose: Whose<T>,
}

/// What a result needs to report itself.
enum Whose<T> {
    /// There is nothing to report.
    Nobody,
    /// The value's destructor might panic.
    Numbered {
        core: Rc<Core>,
        key: TaskKey,
        place: &'static Location<'static>,
    },
    Known(Box<(About, Option<ErrorOf<T>>)>),
}

impl<T> Whose<T> {
    /// What a value needs, given the question whether it is an error.
    fn of_value(core: &Rc<Core>, key: TaskKey, question: Option<ErrorOf<T>>) -> Self {
        if question.is_none() && !mem::needs_drop::<T>() {
            return Self::Nobody;
        }
        let about = reference::about(core, key);
        if question.is_some() || about.name.is_some() || about.context.is_some() {
            return Self::Known(Box::new((about, question)));
        }
        let About {
            core, key, place, ..
        } = about;
        Self::Numbered { core, key, place }
    }
}

impl<T> Outcome<T> {
    pub(super) fn failed(error: JoinError) -> Self {
        Self {
            result: Some(Err(Box::new(error))),
            whose: Whose::Nobody,
        }
    }

    pub(super) fn result(&self) -> Option<&Result<T, Box<JoinError>>> {
        self.result.as_ref()
    }

    pub(super) fn take(mut self) -> Result<T, JoinError> {
        match self.result.take() {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(*error),
            None => Err(Cancelled::new().into()),
        }
    }
}

impl<T> Drop for Outcome<T> {
    fn drop(&mut self) {
        let Some(result) = self.result.take() else {
            return;
        };
        let (about, question) = match mem::replace(&mut self.whose, Whose::Nobody) {
            Whose::Nobody => return drop_quietly(result),
            Whose::Numbered { core, key, place } => (
                About {
                    core,
                    key,
                    place,
                    name: None,
                    context: None,
                },
                None,
            ),
            Whose::Known(known) => *known,
        };
        match result {
            Ok(value) => {
                match quietly(|| question.and_then(|question| question(&value))) {
                    Ok(None) => {}
                    Ok(Some(error)) => about.report("error in task, never observed", |report| {
                        report.with_error(error)
                    }),
                    Err(payload) => about.report_panic(
                        "error in task, never observed, which panics when it is shown,",
                        payload,
                    ),
                }
                if let Err(payload) = quietly(|| drop(value)) {
                    about.report_panic("panic in the destructor of the output of task", payload);
                }
            }
            Err(error) => {
                if let JoinError::Panicked(payload) = *error {
                    about.report_panic("panic in task, never observed", payload.into_inner());
                }
            }
        }
    }
}
