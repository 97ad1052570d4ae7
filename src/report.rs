//! What a loop reports: errors nobody else can see, and callbacks that took too long.
//!
//! These are the values; the heart makes them, and [`LoopHandle`](crate::LoopHandle) has the
//! methods that say where they go. The default is one line on the standard error stream.

use std::any::Any;
use std::fmt;
use std::io::{self, Write};
use std::panic::Location;
use std::rc::Rc;
use std::time::Duration;

use crate::error::Payload;
use crate::key::TaskKey;

/// Describes an error that reached the loop because nobody else could see it.
///
/// # Coming from asyncio
///
/// The `context` dict of an exception handler: its keys are methods here. More may come.
#[derive(Debug)]
pub struct ExceptionContext {
    message: Box<str>,
    payload: Option<Payload>,
    error: Option<Box<str>>,
    place: Option<&'static Location<'static>>,
    task: Option<Rc<str>>,
    task_key: Option<TaskKey>,
}

impl ExceptionContext {
    /// Describes an error by a message.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::ExceptionContext;
    ///
    /// let context = ExceptionContext::new("the peer sent nonsense").with_error("bad magic");
    /// assert_eq!(context.to_string(), "the peer sent nonsense: bad magic");
    /// ```
    pub fn new(message: impl Into<Box<str>>) -> Self {
        Self {
            message: message.into(),
            payload: None,
            error: None,
            place: None,
            task: None,
            task_key: None,
        }
    }

    /// Adds the text of an error.
    #[must_use]
    pub fn with_error(mut self, error: impl fmt::Display) -> Self {
        self.error = Some(error.to_string().into());
        self
    }

    pub(crate) fn with_payload(mut self, payload: Box<dyn Any + Send>) -> Self {
        self.payload = Some(Payload::new(payload));
        self
    }

    pub(crate) fn with_place(mut self, place: Option<&'static Location<'static>>) -> Self {
        self.place = place;
        self
    }

    pub(crate) fn with_task(mut self, name: Rc<str>, key: TaskKey) -> Self {
        self.task = Some(name);
        self.task_key = Some(key);
        self
    }

    pub(crate) fn task_key(&self) -> Option<TaskKey> {
        self.task_key
    }

    /// Returns what happened, in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns what a panic carried, where there was one.
    #[doc(alias = "exception")]
    pub fn payload(&self) -> Option<&Payload> {
        self.payload.as_ref()
    }

    /// Returns the message of a panic, where there was one.
    pub fn panic_message(&self) -> Option<&str> {
        self.payload.as_ref().map(Payload::message)
    }

    /// Returns the text of an error, where there was one.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Returns where the callback was scheduled or the task created.
    #[doc(alias = "source_traceback")]
    pub fn place(&self) -> Option<&'static Location<'static>> {
        self.place
    }

    /// Returns the name of the task that failed.
    pub fn task_name(&self) -> Option<&str> {
        self.task.as_deref()
    }

    pub(crate) fn take_payload(&mut self) -> Option<Payload> {
        self.payload.take()
    }
}

impl fmt::Display for ExceptionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(task) = &self.task {
            write!(f, " `{task}`")?;
        }
        if let Some(place) = self.place {
            write!(f, ", created at {place}")?;
        }
        match (self.panic_message(), self.error()) {
            (Some(text), None) | (None, Some(text)) => write!(f, ": {text}"),
            (Some(panic), Some(error)) => write!(f, ": {panic} ({error})"),
            (None, None) => Ok(()),
        }
    }
}

/// Says what happens to a panic that nobody can observe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PanicPolicy {
    /// It goes to the exception handler and the loop goes on.
    #[default]
    Report,
    /// It leaves the run, as if the callback had been called there. The line behind it is intact:
    /// the next run goes on with what was next.
    Propagate,
}

/// Describes a callback, or a step of a task, that held the loop for too long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlowCallback {
    /// How long it took.
    pub duration: Duration,
    /// Where the callback was scheduled or the task created.
    pub place: Option<&'static Location<'static>>,
    /// The name of the task, if it was one.
    pub task: Option<Rc<str>>,
}

impl fmt::Display for SlowCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.task {
            Some(task) => write!(f, "task `{task}`")?,
            None => f.write_str("a callback")?,
        }
        if let Some(place) = self.place {
            write!(f, ", created at {place},")?;
        }
        write!(f, " held the loop for {:?}", self.duration)
    }
}

/// Writes one line to the standard error stream.
pub(crate) fn line(text: &impl fmt::Display) {
    // One report, one line, so that logs can be read line by line. And not `eprintln!`, which
    // panics when the stream is closed.
    let text = format!("coloop: {text}").replace('\n', "\\n");
    let _ = writeln!(io::stderr(), "{text}");
}
