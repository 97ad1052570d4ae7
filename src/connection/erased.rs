//! A protocol with its type erased: what sits in a seat.
//!
//! One trait stands for all protocols. Its implementations know the type and the kind of theirs: they
//! take it out for the call, catch its panics and put it back. They call what they are told to; when,
//! is the seat's business.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::panic::{self, AssertUnwindSafe, Location};
use std::rc::Rc;

use super::handle::{Kind, ProtocolHandle, Shared, Standing};
use super::protocol::{BufferedProtocol, Eof, Protocol};
use super::transport::Transport;
use crate::core::{Core, default_handler};
use crate::report::ExceptionContext;

/// A protocol of any type, as a transport keeps it; made by [`seat`](seat()) and [`seat_buffered`].
pub struct AnyProtocol(pub(super) Rc<dyn Calls>);

impl AnyProtocol {
    /// Lets it go; it dies here unless somebody holds its handle.
    pub(super) fn retire(
        self,
        standing: Standing,
        error: Option<io::Error>,
        place: &'static Location<'static>,
    ) {
        if Rc::strong_count(&self.0) > 1 {
            self.0.end(standing, error);
        }
        if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(self))) {
            let report = ExceptionContext::new("panic in the destructor of a protocol");
            let report = report.with_payload(payload).with_place(Some(place));
            match Core::current() {
                Some(core) => core.report(report),
                None => default_handler(&report),
            }
        }
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
pub(super) enum Method<'a> {
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
pub(super) enum Answer {
    Done,
    Eof(Eof),
    Filled(io::Result<usize>),
    NoBuffer,
}

/// What became of a call.
pub(super) enum Called<T> {
    Done(T),
    /// The protocol is in a call already.
    Busy,
    Panicked(Box<dyn Any + Send>),
}

/// What became of the call that is made for every message: it fits a register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Taken,
    /// It takes no data: it lends the memory to read into.
    Lends,
    /// The protocol is in a call already.
    Busy,
    /// `PANIC` has the rest.
    Panicked,
}

thread_local! {
    /// What a call has panicked with, on its way to the seat that has made it.
    pub(super) static PANIC: Cell<Option<Box<dyn Any + Send>>> = const { Cell::new(None) };
}

/// What sits in a seat, with its type erased.
pub(super) trait Calls {
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

    /// Gives it what has come, unless it takes no data but lends the memory to read into.
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

    fn received(_: &mut P, _: &Rc<dyn Transport>, _: &[u8]) -> bool {
        false
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
            Called::Done(false) => Received::Lends,
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
