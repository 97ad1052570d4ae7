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
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;

use super::handle::{Kind, ProtocolHandle, Shared, Standing};
use super::protocol::{BufferedProtocol, Eof, Protocol};
use super::transport::Transport;
use crate::context::{self, Context};
use crate::core::{Core, default_handler};
use crate::error::{LoopClosed, drop_quietly, panic_message};
use crate::report::ExceptionContext;

/// A protocol of any type, as a transport keeps it; made by [`seat`](seat()) and [`seat_buffered`].
pub struct AnyProtocol(Rc<dyn Calls>);

impl AnyProtocol {
    /// Lets it go; it dies here unless somebody holds its handle.
    fn retire(self, standing: Standing, error: Option<io::Error>) {
        if Rc::strong_count(&self.0) > 1 {
            self.0.end(standing, error);
        }
        drop_quietly(self);
    }
}

impl fmt::Debug for AnyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyProtocol")
            .field("buffered", &self.0.is_buffered())
            .finish_non_exhaustive()
    }
}

/// A call of a protocol, other than the one that is made for every message.
enum Method<'a> {
    Made,
    /// Reads into the protocol's own buffer.
    Fill(
        Option<usize>,
        &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>,
    ),
    Eof,
    Pause,
    Resume,
    Lost(Option<&'a io::Error>),
}

/// What a call gives.
enum Answer {
    Done,
    Eof(Eof),
    Filled(io::Result<usize>),
    NoBuffer,
}

/// What became of a call.
enum Called<T> {
    Done(T),
    /// The protocol is in a call already.
    Busy,
    Panicked(Box<dyn Any + Send>),
}

/// What became of the call that is made for every message: it fits a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Received {
    Taken,
    /// The protocol has lent no memory.
    NoBuffer,
    /// The protocol is in a call already.
    Busy,
    /// `PANIC` has the rest.
    Panicked,
}

thread_local! {
    /// What a call has panicked with, on its way to the seat that has made it.
    static PANIC: Cell<Option<Box<dyn Any + Send>>> = const { Cell::new(None) };
}

/// What sits in a seat, with its type erased.
trait Calls {
    /// Calls the protocol, unless it is in a call already.
    fn call(&self, transport: &Rc<dyn Transport>, method: Method<'_>) -> Called<Answer>;

    /// Gives the protocol what has come.
    fn received(&self, transport: &Rc<dyn Transport>, data: &[u8]) -> Received;

    fn is_free(&self) -> bool;

    fn is_buffered(&self) -> bool;

    /// The transport lets go of it, and somebody holds its handle.
    fn end(&self, standing: Standing, error: Option<io::Error>);
}

/// Seats a protocol, for [`Transport::set_protocol`] and for transports of other makes.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::{Protocol, Transport, seat};
///
/// struct Greeting;
/// struct Talk(Vec<u8>);
///
/// impl Protocol for Greeting {
///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
///         assert_eq!(data, b"hello");
///         let (talk, _handle) = seat(Talk(Vec::new()));
///         transport.set_protocol(talk); // it gets what comes next
///     }
/// }
/// impl Protocol for Talk {
///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
///         self.0.extend(data);
///     }
/// }
/// ```
pub fn seat<P: Protocol + 'static>(protocol: P) -> (AnyProtocol, ProtocolHandle<P>) {
    seated(protocol, Plain)
}

/// Seats a protocol that lends the memory to read into.
pub fn seat_buffered<P: BufferedProtocol + 'static>(
    protocol: P,
) -> (AnyProtocol, ProtocolHandle<P>) {
    seated(protocol, Lending)
}

fn seated<P: 'static, S: Style<P> + 'static>(
    protocol: P,
    style: S,
) -> (AnyProtocol, ProtocolHandle<P>) {
    let shared = Rc::new(Shared::new(protocol, style));
    let handle = ProtocolHandle::new(Rc::<Shared<P, S>>::clone(&shared));
    (AnyProtocol(shared), handle)
}

/// How a protocol of one kind is called.
trait Style<P>: Kind {
    const BUFFERED: bool;

    fn received(protocol: &mut P, transport: &Rc<dyn Transport>, data: &[u8]) -> bool;

    fn perform(protocol: &mut P, transport: &Rc<dyn Transport>, method: Method<'_>) -> Answer;
}

struct Plain;
struct Lending;

impl Kind for Plain {}
impl Kind for Lending {}

impl<P: Protocol> Style<P> for Plain {
    const BUFFERED: bool = false;

    #[inline]
    fn received(protocol: &mut P, transport: &Rc<dyn Transport>, data: &[u8]) -> bool {
        protocol.data_received(transport, data);
        true
    }

    fn perform(protocol: &mut P, transport: &Rc<dyn Transport>, method: Method<'_>) -> Answer {
        match method {
            Method::Made => protocol.connection_made(transport),
            Method::Eof => return Answer::Eof(protocol.eof_received(transport)),
            Method::Pause => protocol.pause_writing(transport),
            Method::Resume => protocol.resume_writing(transport),
            Method::Lost(error) => protocol.connection_lost(transport, error),
            Method::Fill(..) => return Answer::NoBuffer,
        }
        Answer::Done
    }
}

impl<P: BufferedProtocol> Style<P> for Lending {
    const BUFFERED: bool = true;

    fn received(protocol: &mut P, transport: &Rc<dyn Transport>, mut data: &[u8]) -> bool {
        while !data.is_empty() && !transport.is_closing() {
            let buffer = protocol.get_buffer(Some(data.len()));
            if buffer.is_empty() {
                return false;
            }
            let count = buffer.len().min(data.len());
            buffer[..count].copy_from_slice(&data[..count]);
            data = &data[count..];
            protocol.buffer_updated(transport, count);
        }
        true
    }

    fn perform(protocol: &mut P, transport: &Rc<dyn Transport>, method: Method<'_>) -> Answer {
        match method {
            Method::Fill(size_hint, read) => {
                let buffer = protocol.get_buffer(size_hint);
                if buffer.is_empty() {
                    return Answer::NoBuffer;
                }
                let most = buffer.len();
                let filled = read(buffer).map(|count| count.min(most));
                if let Ok(count @ 1..) = filled {
                    protocol.buffer_updated(transport, count);
                }
                return Answer::Filled(filled);
            }
            Method::Made => protocol.connection_made(transport),
            Method::Eof => return Answer::Eof(protocol.eof_received(transport)),
            Method::Pause => protocol.pause_writing(transport),
            Method::Resume => protocol.resume_writing(transport),
            Method::Lost(error) => protocol.connection_lost(transport, error),
        }
        Answer::Done
    }
}

/// Takes a protocol out for a call; it comes back also when that panics.
#[inline]
fn out<P, S, T>(shared: &Shared<P, S>, call: impl FnOnce(&mut P) -> T) -> Called<T> {
    let Some(mut protocol) = shared.take() else {
        return Called::Busy;
    };
    let called = panic::catch_unwind(AssertUnwindSafe(|| call(&mut protocol)));
    shared.put(protocol);
    match called {
        Ok(done) => Called::Done(done),
        Err(payload) => Called::Panicked(payload),
    }
}

impl<P: 'static, S: Style<P>> Calls for Shared<P, S> {
    fn call(&self, transport: &Rc<dyn Transport>, method: Method<'_>) -> Called<Answer> {
        out(self, |protocol| S::perform(protocol, transport, method))
    }

    #[inline]
    fn received(&self, transport: &Rc<dyn Transport>, data: &[u8]) -> Received {
        match out(self, |protocol| S::received(protocol, transport, data)) {
            Called::Done(true) => Received::Taken,
            Called::Done(false) => Received::NoBuffer,
            Called::Busy => Received::Busy,
            Called::Panicked(payload) => {
                let _ = PANIC.try_with(|panic| panic.set(Some(payload)));
                Received::Panicked
            }
        }
    }

    fn is_free(&self) -> bool {
        self.is_here()
    }

    fn is_buffered(&self) -> bool {
        S::BUFFERED
    }

    fn end(&self, standing: Standing, error: Option<io::Error>) {
        self.let_go(standing, error);
    }
}

/// Where a transport keeps its protocol and makes every call of it.
///
/// It is for those who write transports. A seat keeps the promises that [`Protocol`] makes: calls
/// are not nested, panics are reported, `pause_writing` and `resume_writing` alternate, the context
/// is the one in which the seat was made, nothing comes after `connection_lost`. What the transport
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
            protocol.retire(Standing::Replaced, None);
            return;
        }
        self.buffered.set(protocol.0.is_buffered());
        if let Some(before) = self.protocol.replace(Some(protocol)) {
            before.retire(Standing::Replaced, None);
        }
    }

    /// Calls `connection_made`; a panic of it is reported and no more.
    ///
    /// # Errors
    ///
    /// [`SeatError::Busy`] and [`SeatError::Empty`].
    pub fn connection_made(&self, transport: &Rc<dyn Transport>) -> Result<(), SeatError> {
        let called = self.call(transport, "connection_made", Method::Made);
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
        if self.told.get() != self.paused.get() {
            self.tell_flow_behind(transport);
        }
        match received {
            Some(Received::Taken) => Ok(()),
            received => Err(self.not_received(received.unwrap_or(Received::Busy))),
        }
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
        match self.call(transport, "buffer_updated", Method::Fill(size_hint, read))? {
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
        match self.call(transport, "eof_received", Method::Eof)? {
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
        let called = self.call(transport, "connection_lost", Method::Lost(error.as_ref()));
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
            protocol.retire(Standing::Lost, error);
        }
        drop_quietly(self.context.take());
    }

    /// Says whether writing is paused.
    ///
    /// It returns `true` if the protocol has to be told, and is not in a call behind which it will
    /// be: then put [`tell_flow`](Seat::tell_flow) in the line.
    pub fn set_writing_paused(&self, paused: bool) -> bool {
        self.paused.set(paused);
        paused != self.told.get() && !self.silent.get() && self.is_here()
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
        while self.told.get() != self.paused.get() && !self.silent.get() {
            let paused = self.paused.get();
            let (name, method) = if paused {
                ("pause_writing", Method::Pause)
            } else {
                ("resume_writing", Method::Resume)
            };
            self.told.set(paused);
            match self.call_alone(transport, name, method) {
                Err(SeatError::Failed(_)) | Ok(_) => {}
                Err(error) => {
                    self.told.set(!paused);
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
        name: &'static str,
        method: Method<'_>,
    ) -> Result<Answer, SeatError> {
        let called = self.call_alone(transport, name, method);
        if self.told.get() != self.paused.get() {
            self.tell_flow_behind(transport);
        }
        called
    }

    fn call_alone(
        &self,
        transport: &Rc<dyn Transport>,
        name: &'static str,
        method: Method<'_>,
    ) -> Result<Answer, SeatError> {
        match self.seated(|protocol| protocol.call(transport, method)) {
            Some(Called::Done(answer)) => Ok(answer),
            Some(Called::Busy) | None => Err(self.busy()),
            Some(Called::Panicked(payload)) => Err(self.panicked(name, payload)),
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
            older.retire(Standing::Replaced, None);
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
        if received == Received::NoBuffer {
            return SeatError::Failed(no_buffer(self.place));
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
