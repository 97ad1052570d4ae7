//! Where a transport keeps its protocol.
//!
//! A [`Seat`] makes every call of a protocol, for all transports alike. It takes the protocol out for
//! the call and puts it back, so that no borrow is alive in foreign code; it catches panics; it enters
//! the context of the connection; and behind each call it delivers the `pause_writing` or
//! `resume_writing` that fell due within it.
//!
//! What must always hold:
//!
//! 1. A protocol is never called while a call of it is on the stack: whoever tries is told
//!    [`SeatError::Busy`] and comes back by the line.
//! 2. `pause_writing` and `resume_writing` alternate: what has been told is remembered.
//! 3. Nothing is called after `connection_lost`.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::io;
use std::panic::Location;
use std::rc::Rc;

use super::erased::{Answer, AnyProtocol, Called, Calls, Method, PANIC, Received};
use super::handle::Standing;
use super::protocol::Eof;
use super::transport::Transport;
use crate::context::{self, Context};
use crate::core::{Core, default_handler};
use crate::error::{LoopClosed, drop_quietly, panic_message};
use crate::report::ExceptionContext;

/// Where a transport keeps its protocol and makes every call of it.
///
/// It is for those who write transports. A seat keeps the promises that
/// [`Protocol`](crate::Protocol) makes: calls are not nested, panics are reported, `pause_writing`
/// and `resume_writing` alternate, the context is the one in which the seat was made, nothing comes after `connection_lost`. What the transport
/// has to do is to call it from items of the line (`call_soon` and the like), and to abort when it
/// is told [`SeatError::Failed`].
///
/// # Examples
///
/// [`testing::Wire`](crate::testing::Wire) is a transport in memory that is built on it.
pub struct Seat {
    protocol: Cell<Option<AnyProtocol>>,
    /// Whether it lends the memory to read into: asked for every message.
    buffered: Cell<bool>,
    context: Cell<Option<Context>>,
    place: &'static Location<'static>,
    /// Whether writing is paused, and what the protocol has been told of that.
    paused: Cell<bool>,
    told: Cell<bool>,
    /// It was paused and resumed, and the protocol has been told of neither.
    missed: Cell<bool>,
    /// Nothing more is said of pausing.
    silent: Cell<bool>,
    lost: Cell<bool>,
}

impl Seat {
    /// Seats a protocol. Its calls will run in a copy of the current context.
    #[track_caller]
    pub fn new(protocol: AnyProtocol) -> Self {
        Self::at(protocol, Context::capture(), Location::caller())
    }

    pub(crate) fn at(
        protocol: AnyProtocol,
        context: Option<Context>,
        place: &'static Location<'static>,
    ) -> Self {
        Self {
            buffered: Cell::new(protocol.0.is_buffered()),
            protocol: Cell::new(Some(protocol)),
            context: Cell::new(context),
            place,
            paused: Cell::new(false),
            told: Cell::new(false),
            missed: Cell::new(false),
            silent: Cell::new(false),
            lost: Cell::new(false),
        }
    }

    pub(crate) fn place(&self) -> &'static Location<'static> {
        self.place
    }

    /// Tells whether the protocol can be called: it is here, and not in a call.
    pub fn is_free(&self) -> bool {
        let protocol = self.protocol.take();
        let free = protocol
            .as_ref()
            .is_some_and(|protocol| protocol.0.is_free());
        self.protocol.set(protocol);
        free
    }

    /// Tells whether the protocol lends the memory to read into.
    #[inline]
    pub fn is_buffered(&self) -> bool {
        self.buffered.get()
    }

    /// Lets another protocol take the seat. One that is in a call leaves when it returns.
    pub fn set_protocol(&self, protocol: AnyProtocol) {
        if self.lost.get() {
            protocol.retire(Standing::Replaced, None, self.place);
            return;
        }
        self.buffered.set(protocol.0.is_buffered());
        if let Some(before) = self.protocol.replace(Some(protocol)) {
            before.retire(Standing::Replaced, None, self.place);
        }
    }

    /// Calls `connection_made`; a panic of it is reported and no more.
    ///
    /// # Errors
    ///
    /// [`SeatError::Busy`] and [`SeatError::Empty`].
    pub fn connection_made(&self, transport: &Rc<dyn Transport>) -> Result<(), SeatError> {
        let called = self.call(transport, &Cell::new("connection_made"), Method::Made);
        match called {
            Err(SeatError::Failed(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Calls `data_received`, or fills the buffers that the protocol lends.
    ///
    /// # Errors
    ///
    /// [`SeatError`]; nothing of `data` was delivered when it says `Busy` or `Empty`.
    #[inline(always)]
    pub fn data_received(
        &self,
        transport: &Rc<dyn Transport>,
        data: &[u8],
    ) -> Result<(), SeatError> {
        let received = self.seated(|protocol| protocol.received(transport, data));
        if self.owes_a_call() {
            self.tell_flow_behind(transport);
        }
        match received {
            Some(Received::Taken) => Ok(()),
            Some(Received::Lends) => self.fill(transport, data),
            received => Err(self.not_received(received.unwrap_or(Received::Busy))),
        }
    }

    /// Fills one buffer after the other. Another protocol that takes the seat meanwhile gets what
    /// is left; one that closes its transport gets no more.
    #[cold]
    fn fill(&self, transport: &Rc<dyn Transport>, mut data: &[u8]) -> Result<(), SeatError> {
        while !data.is_empty() && !transport.is_closing() {
            if !self.is_buffered() {
                return self.data_received(transport, data);
            }
            let size_hint = Some(data.len());
            let mut copy = |buffer: &mut [u8]| {
                if transport.is_closing() {
                    return Err(io::ErrorKind::NotConnected.into());
                }
                let (now, later) = data.split_at(buffer.len().min(data.len()));
                buffer[..now.len()].copy_from_slice(now);
                data = later;
                Ok(now.len())
            };
            self.read_with(transport, size_hint, &mut copy)?.ok();
        }
        Ok(())
    }

    /// Lets `read` fill the memory that the protocol lends, and tells it how much there is.
    ///
    /// It is for a protocol for which [`is_buffered`](Seat::is_buffered) is true. Zero bytes are
    /// the end of what comes; the protocol is not told of them here.
    ///
    /// # Errors
    ///
    /// [`SeatError`], and inside it what `read` has returned.
    pub fn read_with(
        &self,
        transport: &Rc<dyn Transport>,
        size_hint: Option<usize>,
        read: &mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> Result<io::Result<usize>, SeatError> {
        let name = Cell::new("get_buffer");
        let mut read = |buffer: &mut [u8]| {
            name.set("buffer_updated");
            read(buffer)
        };
        match self.call(transport, &name, Method::Fill(size_hint, &mut read))? {
            Answer::Filled(filled) => Ok(filled),
            _ => Err(SeatError::Failed(no_buffer(self.place))),
        }
    }

    /// Calls `eof_received` and says what becomes of the connection.
    ///
    /// # Errors
    ///
    /// [`SeatError`].
    pub fn eof_received(&self, transport: &Rc<dyn Transport>) -> Result<Eof, SeatError> {
        match self.call(transport, &Cell::new("eof_received"), Method::Eof)? {
            Answer::Eof(eof) => Ok(eof),
            _ => Ok(Eof::Close),
        }
    }

    /// Calls `connection_lost` and lets go of the protocol.
    ///
    /// # Errors
    ///
    /// [`SeatError::Busy`], with the protocol still in its seat: try again by the line.
    pub fn connection_lost(
        &self,
        transport: &Rc<dyn Transport>,
        error: &mut Option<io::Error>,
    ) -> Result<(), SeatError> {
        self.silent.set(true);
        let called = self.call(
            transport,
            &Cell::new("connection_lost"),
            Method::Lost(error.as_ref()),
        );
        if matches!(called, Err(SeatError::Busy)) {
            return Err(SeatError::Busy);
        }
        self.vacate(error.take());
        Ok(())
    }

    /// Lets go of the protocol without a call, since its loop has been closed.
    ///
    /// A protocol may hold its transport; this breaks that circle.
    pub fn let_go(&self) {
        self.vacate(Some(LoopClosed.into()));
    }

    fn vacate(&self, error: Option<io::Error>) {
        self.silent.set(true);
        self.lost.set(true);
        let protocol = self.protocol.take();
        if let Some(protocol) = protocol {
            protocol.retire(Standing::Lost, error, self.place);
        }
        drop_quietly(self.context.take());
    }

    /// Says whether writing is paused.
    ///
    /// It returns `true` if the protocol has to be told, and is not in a call behind which it will
    /// be: then put [`tell_flow`](Seat::tell_flow) in the line.
    ///
    /// Whoever has seen that writing is paused may rely on a `resume_writing`: it comes, behind its
    /// `pause_writing`, also when writing is resumed before either was told.
    pub fn set_writing_paused(&self, paused: bool) -> bool {
        if self.paused.replace(paused) && !paused && !self.told.get() {
            self.missed.set(true);
        }
        self.owes_a_call() && !self.silent.get() && self.is_here()
    }

    #[inline]
    fn owes_a_call(&self) -> bool {
        self.told.get() != self.paused.get() || self.missed.get()
    }

    /// Tells whether writing is paused.
    pub fn is_writing_paused(&self) -> bool {
        self.paused.get()
    }

    /// Says that writing will be neither paused nor resumed any more: the connection is ending.
    pub fn silence(&self) {
        self.silent.set(true);
    }

    /// Calls `pause_writing` or `resume_writing` if the protocol has not been told yet.
    ///
    /// # Errors
    ///
    /// [`SeatError::Busy`]: try again by the line.
    pub fn tell_flow(&self, transport: &Rc<dyn Transport>) -> Result<(), SeatError> {
        while self.owes_a_call() && !self.silent.get() {
            // Whichever it is, it is the other one than the last.
            let (paused, missed) = (!self.told.get(), self.missed.replace(false));
            let (name, method) = if paused {
                ("pause_writing", Method::Pause)
            } else {
                ("resume_writing", Method::Resume)
            };
            self.told.set(paused);
            match self.call_alone(transport, &Cell::new(name), method) {
                Err(SeatError::Failed(_)) | Ok(_) => {}
                Err(error) => {
                    self.told.set(!paused);
                    self.missed.set(missed);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether the protocol is here, and not in a call that this seat has made.
    fn is_here(&self) -> bool {
        let protocol = self.protocol.take();
        let here = protocol.is_some();
        self.protocol.set(protocol);
        here
    }

    /// Makes a call, and behind it the ones that fell due within it.
    fn call(
        &self,
        transport: &Rc<dyn Transport>,
        name: &Cell<&'static str>,
        method: Method<'_>,
    ) -> Result<Answer, SeatError> {
        let called = self.call_alone(transport, name, method);
        if self.owes_a_call() {
            self.tell_flow_behind(transport);
        }
        called
    }

    fn call_alone(
        &self,
        transport: &Rc<dyn Transport>,
        name: &Cell<&'static str>,
        method: Method<'_>,
    ) -> Result<Answer, SeatError> {
        match self.seated(|protocol| protocol.call(transport, method)) {
            Some(Called::Done(answer)) => Ok(answer),
            Some(Called::Busy) | None => Err(self.busy()),
            Some(Called::Panicked(payload)) => Err(self.panicked(name.get(), payload)),
        }
    }

    /// Takes what sits here out for a call, in the context of the connection; `None` if it is out.
    #[inline(always)]
    fn seated<T>(&self, call: impl FnOnce(&dyn Calls) -> T) -> Option<T> {
        let seated = self.protocol.take()?;
        let context = self.context.take();
        // Most connections and most loops have no context at all.
        let outcome = if context.is_some() || context::is_used() {
            self.in_context(context, || call(&*seated.0))
        } else {
            let outcome = call(&*seated.0);
            if context::is_used() {
                self.keep_begun_context();
            }
            outcome
        };
        // Back in its seat, unless another has taken that meanwhile.
        if let Some(newer) = self.protocol.replace(Some(seated)) {
            self.make_way(newer);
        }
        Some(outcome)
    }

    /// Keeps the context itself: the call may change it, or begin it.
    #[cold]
    fn in_context<T>(&self, context: Option<Context>, call: impl FnOnce() -> T) -> T {
        let _entered = context::enter(context);
        let outcome = call();
        self.context.set(context::current());
        outcome
    }

    /// The call has set a variable where there was no context: it is the connection's now.
    #[cold]
    fn keep_begun_context(&self) {
        self.context.set(context::swap(None));
    }

    #[cold]
    fn make_way(&self, newer: AnyProtocol) {
        if let Some(older) = self.protocol.replace(Some(newer)) {
            older.retire(Standing::Replaced, None, self.place);
        }
    }

    /// Tells of pausing and resuming behind a call.
    #[cold]
    fn tell_flow_behind(&self, transport: &Rc<dyn Transport>) {
        // Busy is what a handle's `with` further up in the stack makes of it; it comes again.
        let _ = self.tell_flow(transport);
    }

    fn busy(&self) -> SeatError {
        if self.lost.get() {
            SeatError::Empty
        } else {
            SeatError::Busy
        }
    }

    #[cold]
    fn not_received(&self, received: Received) -> SeatError {
        if received == Received::Busy {
            return self.busy();
        }
        match PANIC.try_with(Cell::take) {
            Ok(Some(payload)) => self.panicked("data_received", payload),
            _ => self.busy(),
        }
    }

    #[cold]
    fn panicked(&self, name: &'static str, payload: Box<dyn Any + Send>) -> SeatError {
        let error = format!("panic in {name}: {}", panic_message(&*payload));
        let report = ExceptionContext::new(format!("panic in {name}"))
            .with_payload(payload)
            .with_place(Some(self.place));
        let context = self.context.take();
        self.context.set(context.clone());
        match Core::current() {
            Some(core) => core.report_in(context, report),
            None => default_handler(&report),
        }
        SeatError::Failed(io::Error::other(error))
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("free", &self.is_free())
            .field("paused", &self.paused.get())
            .field("lost", &self.lost.get())
            .finish_non_exhaustive()
    }
}

#[cold]
fn no_buffer(place: &'static Location<'static>) -> io::Error {
    const TEXT: &str = "get_buffer returned an empty buffer";
    if let Some(core) = Core::current() {
        core.report(ExceptionContext::new(TEXT).with_place(Some(place)));
    }
    io::Error::new(io::ErrorKind::InvalidData, TEXT)
}

/// Says why a protocol was not called, or what came of it.
#[derive(Debug)]
#[non_exhaustive]
pub enum SeatError {
    /// It is in a call: come back by the line.
    Busy,
    /// Its connection is over.
    Empty,
    /// It panicked, which has been reported, or lent no memory: abort, with this error for
    /// `connection_lost`.
    Failed(io::Error),
}

impl fmt::Display for SeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the protocol is in a call: come back by the line",
            Self::Empty => "the connection of the protocol is over",
            Self::Failed(_) => "the protocol failed",
        })
    }
}

impl Error for SeatError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}
