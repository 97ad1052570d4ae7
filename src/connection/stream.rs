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
//! 2. No method of [`Transport`] calls the protocol. `ready`, `begin` and `lose` do, as items of the
//!    line.
//! 3. Once `end` has been called the stream is not watched any more, and `lose` stands in the line:
//!    it calls `connection_lost` and closes the stream. A loop that is closed first lets go of the
//!    protocol without that call.
//! 4. The stream is out of its cell while it is used: whoever comes then writes to the outbox.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, SocketAddrV4};
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::panic::Location;
use std::rc::Rc;

use super::clients::Clients;
use super::outbox::Outbox;
use super::protocol::Eof;
use super::seat::{AnyProtocol, Seat, SeatError};
use super::state::State;
use super::transport::{Transport, WriteLimits, WriteRefused};
use crate::address::Address;
use crate::context::Context;
use crate::core::Core;
use crate::error::drop_quietly;
use crate::key::{Direction, WatchKey};
use crate::report::ExceptionContext;
use crate::selector::table::{Here, Later, Wants, Watcher};
use crate::selector::{Interest, Source};
use crate::socket::{ByteStream, Watchable};

/// From this write on, writes to a connection that has gone are reported.
const WRITES_IN_VAIN: u8 = 5;

/// What a new transport is made of.
pub(crate) struct Opening {
    pub(crate) protocol: AnyProtocol,
    pub(crate) context: Option<Context>,
    pub(crate) place: &'static Location<'static>,
    pub(crate) peer: Option<Address>,
    /// The connections of the server that has accepted it.
    pub(crate) clients: Option<Rc<Clients>>,
}

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
    let beginning = Unless(Some(Rc::clone(&transport)));
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

/// The peer's address in as little room as the usual kind needs.
enum Peer {
    Unknown,
    V4(SocketAddrV4),
    Other(Box<Address>),
}

impl From<Option<Address>> for Peer {
    fn from(address: Option<Address>) -> Self {
        match address {
            None => Self::Unknown,
            Some(Address::Inet(SocketAddr::V4(address))) => Self::V4(address),
            Some(other) => Self::Other(Box::new(other)),
        }
    }
}

/// An item of the line that holds a transport: dropped unrun, it breaks the transport's cycles.
struct Unless<S: ByteStream + 'static>(Option<Rc<Stream<S>>>);

impl<S: ByteStream> Unless<S> {
    /// Runs the item.
    fn run(mut self, run: impl FnOnce(Rc<Stream<S>>)) {
        if let Some(transport) = self.0.take() {
            run(transport);
        }
    }
}

impl<S: ByteStream> Drop for Unless<S> {
    fn drop(&mut self) {
        if let Some(transport) = self.0.take() {
            transport.let_go();
        }
    }
}

/// What became of an attempt to send.
enum Sent {
    /// So many bytes were taken.
    Some(usize),
    /// The stream is in use further up in the stack: nothing may overtake that.
    InUse,
    Failed(io::Error),
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
        drop_quietly(self.stream.take());
        self.leave_server();
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
        let item = Unless(Some(self));
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
            self.with_stream(ByteStream::abort);
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

    fn watch_reading(&self) {
        self.watch(Direction::Read, self.state.wants_reading());
    }

    fn watch(&self, direction: Direction, on: bool) {
        if let Err(error) = self.core.table.set_on(self.key.get(), direction, on) {
            // The system has no room to watch it, or has lost it: it would never be heard of again.
            self.end(Some(error));
        }
    }

    // ---- Reading -------------------------------------------------------------------------------

    #[inline]
    fn read(self: &Rc<Self>) -> Wants {
        if !self.state.wants_reading() {
            return Wants::Pause;
        }
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(self);
        if self.seat.is_buffered() {
            let mut read = |buffer: &mut [u8]| self.recv(buffer);
            match self.seat.read_with(&transport, None, &mut read) {
                Ok(received) => self.received(received, &transport),
                Err(error) => self.not_taken(error, &[]),
            }
            return Wants::More;
        }
        let mut buffer = self.core.lend_buffer();
        match self.recv(&mut buffer) {
            Ok(count @ 1..) => {
                let data = buffer.get(..count).unwrap_or(&buffer);
                if let Err(error) = self.seat.data_received(&transport, data) {
                    self.not_taken(error, data);
                }
            }
            received => self.received(received, &transport),
        }
        self.core.return_buffer(buffer);
        Wants::More
    }

    /// Acts on what a read has given other than data.
    #[cold]
    fn received(self: &Rc<Self>, received: io::Result<usize>, transport: &Rc<dyn Transport>) {
        match received {
            Ok(0) => self.end_of_input(transport),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.end(Some(error)),
        }
    }

    /// The protocol has not taken what has come.
    #[cold]
    fn not_taken(self: &Rc<Self>, error: SeatError, data: &[u8]) {
        match error {
            SeatError::Failed(error) => self.fail(Some(error)),
            // The protocol is lent to a `with` that makes turns: what has come is kept for it.
            SeatError::Busy if !data.is_empty() => {
                self.state.note(State::KEPT);
                self.watch_reading();
                self.queue_kept(data.into());
            }
            SeatError::Busy | SeatError::Empty => {}
        }
    }

    fn queue_kept(self: &Rc<Self>, data: Box<[u8]>) {
        let item = Unless(Some(Rc::clone(self)));
        let deliver = move || {
            item.run(|this| {
                this.state.forget(State::KEPT);
                let transport: Rc<dyn Transport> = Rc::<Self>::clone(&this);
                if !this.state.any(State::CLOSING)
                    && let Err(error) = this.seat.data_received(&transport, &data)
                {
                    this.not_taken(error, &data);
                }
                this.watch_reading();
            });
        };
        self.core.queue(Box::new(deliver), self.seat.place());
    }

    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.with_stream(|stream| stream.recv(buffer)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(received) => return received,
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }

    fn end_of_input(self: &Rc<Self>, transport: &Rc<dyn Transport>) {
        self.state.note(State::ENDED);
        self.watch_reading();
        match self.seat.eof_received(transport) {
            Ok(Eof::Close) => self.close(),
            Ok(Eof::KeepOpen) | Err(SeatError::Empty) => {}
            Err(SeatError::Failed(error)) => self.fail(Some(error)),
            Err(SeatError::Busy) => {
                let item = Unless(Some(Rc::clone(self)));
                let again = move || {
                    item.run(|this| {
                        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&this);
                        this.end_of_input(&transport);
                    });
                };
                self.core.queue(Box::new(again), self.seat.place());
            }
        }
    }

    // ---- Writing -------------------------------------------------------------------------------

    /// Tells whether bytes are taken, and complains of those that are written in vain.
    fn accepts(&self) -> bool {
        if self.state.any(State::EOF_ASKED) {
            let report = "write after write_eof: the data was discarded";
            self.report(ExceptionContext::new(report));
            return false;
        }
        let flushing = || !self.state.any(State::ENDING) && self.write_buffer_size() > 0;
        if !self.state.any(State::CLOSING) || flushing() {
            return true;
        }
        let count = self.in_vain.get().saturating_add(1);
        self.in_vain.set(count);
        if count >= WRITES_IN_VAIN {
            let report = "write to a connection that is closed: the data was discarded";
            self.report(ExceptionContext::new(report));
        }
        false
    }

    fn report(&self, report: ExceptionContext) {
        self.core.report(report.with_place(Some(self.seat.place())));
    }

    /// Sends at once what the stream takes, if nothing is before it.
    #[inline]
    fn send(&self, send: impl Fn(&S) -> io::Result<usize>) -> Sent {
        if let Some(outbox) = self.outbox.take() {
            let waits = !outbox.is_empty();
            self.outbox.set(Some(outbox));
            if waits {
                return Sent::Some(0);
            }
        }
        loop {
            match self.with_stream(&send) {
                Some(Ok(count)) => return Sent::Some(count),
                Some(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Sent::Some(0),
                    io::ErrorKind::Interrupted => {}
                    _ => return Sent::Failed(error),
                },
                None => return Sent::InUse,
            }
        }
    }

    /// Buffers what was not sent.
    fn keep(&self, keep: impl FnOnce(&mut Outbox)) {
        let mut outbox = self.outbox.take().unwrap_or_default();
        keep(&mut outbox);
        let size = outbox.len();
        self.outbox.set(Some(outbox));
        self.watch(Direction::Write, true);
        self.look_at_high_mark(size);
    }

    fn look_at_high_mark(&self, size: usize) {
        if size > self.write_buffer_limits().high && !self.seat.is_writing_paused() {
            self.set_writing_paused(true);
        }
    }

    fn set_writing_paused(&self, paused: bool) {
        if self.seat.set_writing_paused(paused)
            && let Some(this) = self.core.table.object(self.key.get())
        {
            this.later(Later::Flow);
        }
    }

    fn queue_flow(self: Rc<Self>) {
        let (core, place) = (Rc::clone(&self.core), self.seat.place());
        let item = Unless(Some(self));
        core.queue(Box::new(move || item.run(Self::tell_flow)), place);
    }

    fn tell_flow(self: Rc<Self>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&self);
        if matches!(self.seat.tell_flow(&transport), Err(SeatError::Busy)) {
            self.queue_flow();
        }
    }

    /// Sends what waits, as far as the stream takes it.
    fn flush(self: &Rc<Self>) -> Wants {
        let Some(mut outbox) = self.outbox.take() else {
            return Wants::Pause;
        };
        let sent = loop {
            let send = |stream: &S| match outbox.front() {
                [first, second] if second.is_empty() => stream.send(&first),
                both => stream.send_vectored(&both),
            };
            match self.with_stream(send) {
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(sent) => break sent,
                None => break Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        match sent {
            Ok(count) => outbox.consume(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                self.end(Some(error));
                return Wants::Pause;
            }
        }
        // What a stream of the program's own make has written meanwhile comes behind.
        if let Some(late) = self.outbox.take() {
            outbox.append(*late);
        }
        let size = outbox.len();
        let needed = outbox.is_needed();
        self.outbox.set(needed.then_some(outbox));
        if self.state.any(State::ENDING) {
            return Wants::Pause;
        }
        if self.seat.is_writing_paused() && size <= self.write_buffer_limits().low {
            self.seat.set_writing_paused(false);
            Rc::clone(self).tell_flow();
        }
        if self.write_buffer_size() > 0 {
            return Wants::More;
        }
        self.flushed();
        Wants::Pause
    }

    /// Everything is written: what was put off until then is done.
    fn flushed(&self) {
        if self.state.any(State::CLOSING) {
            self.end(None);
        } else if self.state.any(State::EOF_ASKED)
            && let Err(error) = self.shut_down()
        {
            self.end(Some(error));
        }
    }

    fn shut_down(&self) -> io::Result<()> {
        let shut = self.with_stream(|stream| stream.shutdown(Shutdown::Write));
        shut.unwrap_or(Ok(()))
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
        drop_quietly(self.stream.take());
        self.leave_server();
    }
}

impl<S: ByteStream> Transport for Stream<S> {
    #[inline]
    fn write(&self, data: &[u8]) {
        if self.state.any(State::CLOSING | State::EOF_ASKED) && !self.accepts() {
            return;
        }
        if data.is_empty() {
            return;
        }
        match self.send(|stream| stream.send(data)) {
            Sent::Some(count) if count >= data.len() => {}
            Sent::Some(count) => self.keep(|outbox| outbox.push(&data[count..])),
            Sent::InUse => self.keep(|outbox| outbox.push(data)),
            Sent::Failed(error) => self.end(Some(error)),
        }
    }

    fn write_vectored(&self, buffers: &[IoSlice<'_>]) {
        if self.state.any(State::CLOSING | State::EOF_ASKED) && !self.accepts() {
            return;
        }
        let size: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if size == 0 {
            return;
        }
        match self.send(|stream| stream.send_vectored(buffers)) {
            Sent::Some(count) if count >= size => {}
            Sent::Some(count) => self.keep(|outbox| outbox.push_vectored(buffers, count)),
            Sent::InUse => self.keep(|outbox| outbox.push_vectored(buffers, 0)),
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
        if self.write_buffer_size() > 0 {
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
        if self.write_buffer_size() > 0 {
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
        match &self.peer {
            Peer::Unknown => None,
            Peer::V4(address) => Some(Address::Inet(SocketAddr::V4(*address))),
            Peer::Other(address) => Some((**address).clone()),
        }
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
