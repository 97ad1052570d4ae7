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
use std::marker::PhantomData;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;

use self::sealed::{Answer, Calls, Method};
use super::handle::{ProtocolHandle, Shared, Standing};
use super::protocol::{BufferedProtocol, Eof, Protocol};
use super::transport::Transport;
use crate::context::{self, Context};
use crate::core::{Core, default_handler};
use crate::error::{LoopClosed, drop_quietly, panic_message};
use crate::report::ExceptionContext;

/// A protocol of any type, as a transport keeps it; made by [`seat`](seat()) and [`seat_buffered`].
pub trait AnyProtocol: Calls {}

mod sealed {
    use std::io;
    use std::rc::Rc;
    use std::thread;

    use super::super::handle::Standing;
    use super::super::protocol::Eof;
    use super::super::transport::Transport;

    /// A call of a protocol.
    #[expect(
        missing_debug_implementations,
        unnameable_types,
        reason = "between a seat and what sits in it"
    )]
    pub enum Method<'a> {
        Made,
        Received(&'a [u8]),
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
    #[derive(Debug)]
    #[expect(unnameable_types, reason = "between a seat and what sits in it")]
    pub enum Answer {
        Done,
        Eof(Eof),
        Filled(io::Result<usize>),
        NoBuffer,
        /// It takes no data: it lends the memory to read into.
        Lends,
    }

    #[expect(unnameable_types, reason = "nobody else is to implement it")]
    pub trait Calls {
        /// Calls the protocol, unless it is in a call already.
        fn call(
            &self,
            transport: &Rc<dyn Transport>,
            method: Method<'_>,
        ) -> Option<thread::Result<Answer>>;

        fn is_free(&self) -> bool;

        fn is_buffered(&self) -> bool;

        /// The transport lets go of it.
        fn end(&self, standing: Standing, error: Option<io::Error>);
    }
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
pub fn seat<P: Protocol + 'static>(protocol: P) -> (Box<dyn AnyProtocol>, ProtocolHandle<P>) {
    seated::<P, Plain>(protocol)
}

/// Seats a protocol that lends the memory to read into.
pub fn seat_buffered<P: BufferedProtocol + 'static>(
    protocol: P,
) -> (Box<dyn AnyProtocol>, ProtocolHandle<P>) {
    seated::<P, Lending>(protocol)
}

fn seated<P: 'static, S: Style<P> + 'static>(
    protocol: P,
) -> (Box<dyn AnyProtocol>, ProtocolHandle<P>) {
    let shared = Rc::new(Shared::new(protocol));
    let handle = ProtocolHandle::new(&shared);
    let seated: Seated<P, S> = Seated(shared, PhantomData);
    (Box::new(seated), handle)
}

struct Seated<P, S>(Rc<Shared<P>>, PhantomData<S>);

/// How a protocol of one kind is called.
trait Style<P> {
    const BUFFERED: bool;

    fn perform(protocol: &mut P, transport: &Rc<dyn Transport>, method: Method<'_>) -> Answer;
}

enum Plain {}
enum Lending {}

impl<P: Protocol> Style<P> for Plain {
    const BUFFERED: bool = false;

    #[inline]
    fn perform(protocol: &mut P, transport: &Rc<dyn Transport>, method: Method<'_>) -> Answer {
        match method {
            Method::Received(data) => protocol.data_received(transport, data),
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
            Method::Received(_) => return Answer::Lends,
            Method::Made => protocol.connection_made(transport),
            Method::Eof => return Answer::Eof(protocol.eof_received(transport)),
            Method::Pause => protocol.pause_writing(transport),
            Method::Resume => protocol.resume_writing(transport),
            Method::Lost(error) => protocol.connection_lost(transport, error),
        }
        Answer::Done
    }
}

impl<P: 'static, S: Style<P>> Calls for Seated<P, S> {
    #[inline]
    fn call(
        &self,
        transport: &Rc<dyn Transport>,
        method: Method<'_>,
    ) -> Option<std::thread::Result<Answer>> {
        let mut protocol = self.0.take()?;
        let called = panic::catch_unwind(AssertUnwindSafe(|| {
            S::perform(&mut protocol, transport, method)
        }));
        self.0.put(protocol);
        Some(called)
    }

    fn is_free(&self) -> bool {
        self.0.is_free()
    }

    fn is_buffered(&self) -> bool {
        S::BUFFERED
    }

    fn end(&self, standing: Standing, error: Option<io::Error>) {
        self.0.end(standing, error);
    }
}

impl<P: 'static, S: Style<P>> AnyProtocol for Seated<P, S> {}

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
    protocol: Cell<Option<Box<dyn AnyProtocol>>>,
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
    pub fn new(protocol: Box<dyn AnyProtocol>) -> Self {
        Self::at(protocol, Context::capture(), Location::caller())
    }

    pub(crate) fn at(
        protocol: Box<dyn AnyProtocol>,
        context: Option<Context>,
        place: &'static Location<'static>,
    ) -> Self {
        Self {
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
        self.look(|protocol| protocol.is_free())
    }

    /// Tells whether the protocol lends the memory to read into.
    pub fn is_buffered(&self) -> bool {
        self.look(|protocol| protocol.is_buffered())
    }

    fn look(&self, look: impl FnOnce(&dyn AnyProtocol) -> bool) -> bool {
        let protocol = self.protocol.take();
        let seen = protocol.as_deref().is_some_and(look);
        self.protocol.set(protocol);
        seen
    }

    /// Lets another protocol take the seat. One that is in a call leaves when it returns.
    pub fn set_protocol(&self, protocol: Box<dyn AnyProtocol>) {
        if self.lost.get() {
            retire(protocol, Standing::Replaced, None, self.place);
            return;
        }
        if let Some(before) = self.protocol.replace(Some(protocol)) {
            retire(before, Standing::Replaced, None, self.place);
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
    #[inline]
    pub fn data_received(
        &self,
        transport: &Rc<dyn Transport>,
        data: &[u8],
    ) -> Result<(), SeatError> {
        let name = Cell::new("data_received");
        match self.call(transport, &name, Method::Received(data))? {
            Answer::Lends => self.fill(transport, data),
            _ => Ok(()),
        }
    }

    /// Fills one buffer after the other. Another protocol that takes the seat meanwhile gets what
    /// is left; one that closes its transport gets no more.
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
            retire(protocol, Standing::Lost, error, self.place);
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
        self.owes_a_call() && !self.silent.get() && self.look(|_| true)
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

    /// Makes a call, and behind it the ones that fell due within it.
    #[inline]
    fn call(
        &self,
        transport: &Rc<dyn Transport>,
        name: &Cell<&'static str>,
        method: Method<'_>,
    ) -> Result<Answer, SeatError> {
        let called = self.call_alone(transport, name, method);
        if self.owes_a_call() {
            // Busy is what a handle's `with` further up in the stack makes of it; it comes again.
            let _ = self.tell_flow(transport);
        }
        called
    }

    #[inline]
    fn call_alone(
        &self,
        transport: &Rc<dyn Transport>,
        name: &Cell<&'static str>,
        method: Method<'_>,
    ) -> Result<Answer, SeatError> {
        let Some(seated) = self.protocol.take() else {
            return Err(if self.lost.get() {
                SeatError::Empty
            } else {
                SeatError::Busy
            });
        };
        let entered = context::enter(self.context.take());
        let called = seated.call(transport, method);
        // The context itself, which the call may have begun.
        self.context.set(context::current());
        drop(entered);
        // Back in its seat, unless another has taken that meanwhile.
        match self.protocol.take() {
            None => self.protocol.set(Some(seated)),
            newer => {
                self.protocol.set(newer);
                retire(seated, Standing::Replaced, None, self.place);
            }
        }
        match called {
            Some(Ok(answer)) => Ok(answer),
            None => Err(SeatError::Busy),
            Some(Err(payload)) => Err(self.panicked(name.get(), payload)),
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

/// Lets a protocol go; it dies here unless somebody holds its handle.
fn retire(
    protocol: Box<dyn AnyProtocol>,
    standing: Standing,
    error: Option<io::Error>,
    place: &'static Location<'static>,
) {
    protocol.end(standing, error);
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(protocol)));
    if let Err(payload) = dropped {
        let report = ExceptionContext::new("panic in the destructor of a protocol");
        let report = report.with_payload(payload).with_place(Some(place));
        match Core::current() {
            Some(core) => core.report(report),
            None => default_handler(&report),
        }
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
