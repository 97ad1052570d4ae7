//! The transport over any stream of bytes: a socket of the system, or one that exists in memory.
//!
//! It is watched by the loop's table, which keeps it alive while the connection lasts. A write tries
//! the stream at once when nothing waits; what the stream does not take goes to the outbox, and the
//! writer's side is watched until that is empty. A read goes into one buffer of the loop's, lent to
//! the protocol. An idle connection has no buffer at all.
//!
//! What must always hold:
//!
//! 1. Bytes leave in the order in which they were written.
//! 2. No method of [`Transport`] calls the protocol. What does is an item of the line: `begin`,
//!    `ready`, `tell_flow`, `lose`, and what was kept for a protocol that was busy.
//! 3. Once `end` has been called the stream is not watched any more, and `lose` stands in the line:
//!    it calls `connection_lost` and closes the stream. A loop that is closed first lets go of the
//!    protocol without that call.
//! 4. The stream is out of its cell while it is used: whoever comes then writes to the outbox.

mod reading;
mod writing;

use std::cell::Cell;
use std::io::{self, IoSlice};
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::panic::Location;
use std::rc::Rc;

use self::writing::Sent;
use super::clients::Clients;
use super::erased::AnyProtocol;
use super::opening::{Opening, Unless};
use super::outbox::Outbox;
use super::peer::Peer;
use super::seat::{Seat, SeatError};
use super::state::State;
use super::transport::{Transport, WriteLimits, WriteRefused};
use crate::address::Address;
use crate::core::Core;
use crate::error::drop_quietly;
use crate::key::{Direction, WatchKey};
use crate::report::ExceptionContext;
use crate::selector::table::{Here, Later, Wants, Watcher};
use crate::selector::{Interest, Source};
use crate::socket::{ByteStream, Watchable};

/// Makes a transport, and puts its beginning in the line: `connection_made`, then reading, then
/// `begun`.
pub(crate) fn open<S: ByteStream + 'static>(
    core: &Rc<Core>,
    stream: S,
    opening: Opening,
    begun: impl FnOnce() + 'static,
) -> io::Result<Rc<dyn Transport>> {
    let Opening {
        protocol,
        context,
        place,
        peer,
        clients,
    } = opening;
    let source = stream.source();
    let seat = Seat::at(protocol, context, place);
    let transport = Rc::new(Stream {
        core: Rc::clone(core),
        key: Cell::new(WatchKey::NONE),
        seat,
        stream: Cell::new(Some(stream)),
        outbox: Cell::new(None),
        peer: peer.into(),
        clients: Cell::new(None),
        number: Cell::new(0),
        in_vain: Cell::new(0),
        state: State::default(),
    });
    let watcher: Rc<Stream<S>> = Rc::clone(&transport);
    match core.table.watch_object(source, Interest::NONE, watcher) {
        Ok(key) => transport.key.set(key),
        Err(error) => {
            transport.seat.let_go();
            return Err(error);
        }
    }
    if let Some(clients) = clients {
        let this = Rc::downgrade(&transport);
        transport.number.set(clients.came(this));
        transport.clients.set(Some(clients));
    }
    let beginning = Unless::new(Rc::clone(&transport));
    let begin = move || {
        beginning.run(|transport| transport.begin());
        begun();
    };
    core.queue(Box::new(begin), place);
    Ok(transport)
}

/// A connection over a stream of bytes.
struct Stream<S: ByteStream + 'static> {
    core: Rc<Core>,
    /// Names its entry in the table, while it is watched.
    key: Cell<WatchKey>,
    seat: Seat,
    stream: Cell<Option<S>>,
    /// There is one while something waits, or when it has marks of its own.
    outbox: Cell<Option<Box<Outbox>>>,
    peer: Peer,
    /// The server's connections, and which of them this is.
    clients: Cell<Option<Rc<Clients>>>,
    number: Cell<u32>,
    in_vain: Cell<u8>,
    state: State,
}

impl<S: ByteStream> Stream<S> {
    /// The first item of a connection.
    fn begin(self: &Rc<Self>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(self);
        // It was made here, nobody has its handle yet: nothing can be in the way.
        let _ = self.seat.connection_made(&transport);
        self.state.note(State::BEGUN);
        self.watch_reading();
    }

    /// The last item of a connection.
    fn lose(self: Rc<Self>, mut error: Option<io::Error>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&self);
        if matches!(
            self.seat.connection_lost(&transport, &mut error),
            Err(SeatError::Busy)
        ) {
            return self.queue_lose(error);
        }
        self.drop_stream();
        self.leave_server();
    }

    fn drop_stream(&self) {
        if self.state.any(State::ABRUPT) {
            self.with_stream(ByteStream::abort);
        }
        drop_quietly(self.stream.take());
    }

    /// The server that has accepted the connection has one less.
    fn leave_server(&self) {
        if let Some(clients) = self.clients.take() {
            for waker in clients.left(self.number.get()) {
                self.core.wake(waker);
            }
        }
    }

    fn queue_lose(self: Rc<Self>, error: Option<io::Error>) {
        let (core, place) = (Rc::clone(&self.core), self.seat.place());
        let item = Unless::new(self);
        core.queue(
            Box::new(move || item.run(|transport| transport.lose(error))),
            place,
        );
    }

    /// Stops watching and puts the end in the line.
    fn end(&self, error: Option<io::Error>) {
        if self.state.note(State::ENDING) {
            return;
        }
        self.state.note(State::CLOSING);
        self.seat.silence();
        drop_quietly(self.outbox.take());
        let key = self.key.replace(WatchKey::NONE);
        if let Some(removed) = self.core.table.unwatch_object(key) {
            removed.later(Later::Lost(error));
            drop_quietly(removed);
        }
    }

    /// Ends the connection abruptly.
    fn fail(&self, error: Option<io::Error>) {
        if !self.state.any(State::ENDING) {
            self.state.note(State::ABRUPT);
            self.end(error);
        }
    }

    /// Uses the stream, unless it is in use already or gone.
    #[inline]
    fn with_stream<R>(&self, f: impl FnOnce(&S) -> R) -> Option<R> {
        let stream = self.stream.take()?;
        let result = f(&stream);
        self.stream.set(Some(stream));
        Some(result)
    }

    /// Tells whether the stream is in use further up in the stack: by a stream of the program's own
    /// make, which calls its transport.
    fn is_in_use(&self) -> bool {
        let stream = self.stream.take();
        let in_use = stream.is_none();
        self.stream.set(stream);
        in_use
    }

    fn watch_reading(&self) {
        self.watch(Direction::Read, self.state.wants_reading());
    }

    fn watch(&self, direction: Direction, on: bool) {
        if let Err(error) = self.core.table.set_on(self.key.get(), direction, on) {
            // The system has no room to watch it, or has lost it: it would never be heard of again.
            self.end(Some(error));
        }
    }
}

impl<S: ByteStream> Watcher for Stream<S> {
    fn ready(self: Rc<Self>, direction: Direction, here: &Here) -> Wants {
        here.set(Some(self.seat.place()));
        match direction {
            Direction::Read => self.read(),
            Direction::Write => self.flush(),
        }
    }

    fn place(&self) -> &'static Location<'static> {
        self.seat.place()
    }

    fn later(self: Rc<Self>, what: Later) {
        match what {
            Later::Flow => self.queue_flow(),
            Later::Lost(error) => self.queue_lose(error),
        }
    }

    fn let_go(&self) {
        if self.core.debug.get() && !self.state.any(State::CLOSING) {
            let report = "a connection was still open when its loop was closed";
            self.report(ExceptionContext::new(report));
        }
        self.state.note(State::CLOSING);
        self.state.note(State::ENDING);
        drop_quietly(self.outbox.take());
        let key = self.key.replace(WatchKey::NONE);
        drop_quietly(self.core.table.unwatch_object(key));
        self.seat.let_go();
        self.drop_stream();
        self.leave_server();
    }
}

impl<S: ByteStream> Transport for Stream<S> {
    #[inline]
    fn write(&self, data: &[u8]) {
        if self.state.any(State::CLOSING | State::EOF_ASKED) && !self.accepts(data.len()) {
            return;
        }
        if data.is_empty() {
            return;
        }
        match self.send(|stream| stream.send(data)) {
            Sent::Some(count) if count >= data.len() => self.sent_whole(),
            Sent::Some(count) => self.keep_rest(|outbox| outbox.push(&data[count..])),
            Sent::Behind => self.keep(|outbox| outbox.push(data)),
            Sent::Failed(error) => self.end(Some(error)),
        }
    }

    fn write_vectored(&self, buffers: &[IoSlice<'_>]) {
        let size: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if self.state.any(State::CLOSING | State::EOF_ASKED) && !self.accepts(size) {
            return;
        }
        if size == 0 {
            return;
        }
        match self.send(|stream| stream.send_vectored(buffers)) {
            Sent::Some(count) if count >= size => self.sent_whole(),
            Sent::Some(count) => self.keep_rest(|outbox| outbox.push_vectored(buffers, count)),
            Sent::Behind => self.keep(|outbox| outbox.push_vectored(buffers, 0)),
            Sent::Failed(error) => self.end(Some(error)),
        }
    }

    fn try_write(&self, data: &[u8]) -> Result<(), WriteRefused> {
        if self.state.any(State::CLOSING) {
            return Err(WriteRefused::Closing);
        }
        if self.state.any(State::EOF_ASKED) {
            return Err(WriteRefused::Ended);
        }
        if self.seat.is_writing_paused() {
            return Err(WriteRefused::Paused);
        }
        self.write(data);
        Ok(())
    }

    fn can_write_eof(&self) -> bool {
        true
    }

    fn write_eof(&self) -> io::Result<()> {
        if self.state.any(State::CLOSING) || self.state.note(State::EOF_ASKED) {
            return Ok(());
        }
        if self.write_buffer_size() > 0 || self.is_in_use() {
            return Ok(());
        }
        self.shut_down()
    }

    fn write_buffer_size(&self) -> usize {
        let outbox = self.outbox.take();
        let size = outbox.as_ref().map_or(0, |outbox| outbox.len());
        self.outbox.set(outbox);
        size
    }

    fn write_buffer_limits(&self) -> WriteLimits {
        let outbox = self.outbox.take();
        let limits = outbox
            .as_ref()
            .map_or(WriteLimits::DEFAULT, |outbox| outbox.limits);
        self.outbox.set(outbox);
        limits
    }

    fn set_write_buffer_limits(&self, limits: WriteLimits) -> io::Result<()> {
        let limits = limits.check()?;
        let mut outbox = self.outbox.take().unwrap_or_default();
        outbox.limits = limits;
        let needed = outbox.is_needed();
        self.outbox.set(needed.then_some(outbox));
        self.look_at_high_mark(self.write_buffer_size());
        Ok(())
    }

    fn is_writing_paused(&self) -> bool {
        self.seat.is_writing_paused()
    }

    fn is_reading(&self) -> bool {
        !self
            .state
            .any(State::PAUSED | State::ENDED | State::CLOSING)
    }

    fn pause_reading(&self) {
        if self.is_reading() {
            self.state.note(State::PAUSED);
            self.watch_reading();
        }
    }

    fn resume_reading(&self) {
        if self.state.forget(State::PAUSED) {
            self.watch_reading();
        }
    }

    fn close(&self) {
        if self.state.note(State::CLOSING) {
            return;
        }
        if self.write_buffer_size() > 0 || self.is_in_use() {
            self.watch_reading();
        } else {
            self.end(None);
        }
    }

    fn abort(&self) {
        self.fail(None);
    }

    fn is_closing(&self) -> bool {
        self.state.any(State::CLOSING)
    }

    fn set_protocol(&self, protocol: AnyProtocol) {
        self.seat.set_protocol(protocol);
    }

    fn local_addr(&self) -> Option<Address> {
        self.with_stream(ByteStream::local_address).flatten()
    }

    fn peer_addr(&self) -> Option<Address> {
        self.peer.address()
    }

    #[cfg(unix)]
    fn with_fd(&self, f: &mut dyn FnMut(BorrowedFd<'_>)) -> bool {
        match self.with_stream(Watchable::source) {
            Some(Source::Fd(fd)) => {
                f(fd.as_fd());
                true
            }
            _ => false,
        }
    }
}
