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
use std::net::Shutdown;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::panic::Location;
use std::rc::{Rc, Weak};

use super::opening::{Keeper, Opening, Unless};
use super::outbox::Outbox;
use super::protocol::Eof;
use super::seat::{AnyProtocol, Seat, SeatError};
use super::transport::{Transport, WriteLimits, WriteRefused};
use crate::address::Address;
use crate::core::Core;
use crate::error::drop_quietly;
use crate::key::{Direction, WatchKey};
use crate::report::ExceptionContext;
use crate::selector::table::{Wants, Watcher};
use crate::selector::{Interest, Source};
use crate::socket::{ByteStream, Watchable};

/// From this write on, writes to a connection that has gone are reported.
const WRITES_IN_VAIN: u8 = 5;

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
        keeper,
    } = opening;
    let source = stream.source();
    let seat = Seat::at(protocol, context, place);
    let transport = Rc::new_cyclic(|this| Stream {
        this: this.clone(),
        core: Rc::clone(core),
        key: Cell::new(None),
        seat,
        stream: Cell::new(Some(stream)),
        outbox: Cell::new(None),
        rare: Cell::new(None),
        peer,
        keeper: Cell::new(None),
        in_vain: Cell::new(0),
        begun: Cell::new(false),
        paused: Cell::new(false),
        ended: Cell::new(false),
        eof_asked: Cell::new(false),
        closing: Cell::new(false),
        ending: Cell::new(false),
        abrupt: Cell::new(false),
    });
    let watcher: Rc<Stream<S>> = Rc::clone(&transport);
    match core.table.watch_object(source, Interest::NONE, watcher) {
        Ok(key) => transport.key.set(Some(key)),
        Err(error) => {
            transport.seat.let_go();
            return Err(error);
        }
    }
    if let Some(keeper) = keeper {
        let kept: Weak<Stream<S>> = transport.this.clone();
        let number = keeper.came(kept);
        transport.keeper.set(Some((keeper, number)));
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
    this: Weak<Self>,
    core: Rc<Core>,
    key: Cell<Option<WatchKey>>,
    seat: Seat,
    stream: Cell<Option<S>>,
    /// There is one while something waits.
    outbox: Cell<Option<Box<Outbox>>>,
    rare: Cell<Option<Box<Rare>>>,
    peer: Option<Address>,
    keeper: Cell<Option<(Rc<dyn Keeper>, usize)>>,
    in_vain: Cell<u8>,
    /// The protocol knows of the connection.
    begun: Cell<bool>,
    /// Reading is paused.
    paused: Cell<bool>,
    /// The peer will send no more.
    ended: Cell<bool>,
    /// This side will send no more once the outbox is empty.
    eof_asked: Cell<bool>,
    closing: Cell<bool>,
    /// `lose` stands in the line, or has run.
    ending: Cell<bool>,
    /// The stream is to be closed abruptly.
    abrupt: Cell<bool>,
}

/// What few transports have.
struct Rare {
    limits: WriteLimits,
}

/// What became of an attempt to send.
enum Sent {
    /// So many bytes were taken.
    Some(usize),
    /// Something is before it: in the outbox, or in a use of the stream further up in the stack.
    Behind,
    Failed(io::Error),
}

impl<S: ByteStream> Stream<S> {
    /// The first item of a connection.
    fn begin(self: &Rc<Self>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(self);
        // It was made here, nobody has its handle yet: nothing can be in the way.
        let _ = self.seat.connection_made(&transport);
        self.begun.set(true);
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
        if let Some((keeper, number)) = self.keeper.take() {
            keeper.left(number);
        }
    }

    fn drop_stream(&self) {
        if self.abrupt.get() {
            self.with_stream(ByteStream::abort);
        }
        drop_quietly(self.stream.take());
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
        if self.ending.replace(true) {
            return;
        }
        self.closing.set(true);
        self.seat.silence();
        drop_quietly(self.outbox.take());
        if let Some(key) = self.key.take() {
            drop_quietly(self.core.table.unwatch_object(key));
        }
        if let Some(this) = self.this.upgrade() {
            this.queue_lose(error);
        }
    }

    /// Ends the connection abruptly.
    fn fail(&self, error: Option<io::Error>) {
        if !self.ending.get() {
            self.abrupt.set(true);
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

    fn wants_reading(&self) -> bool {
        self.begun.get() && !self.paused.get() && !self.ended.get() && !self.closing.get()
    }

    fn watch_reading(&self) {
        self.watch(Direction::Read, self.wants_reading());
    }

    fn watch(&self, direction: Direction, on: bool) {
        if let Some(key) = self.key.get()
            && let Err(error) = self.core.table.set_on(key, direction, on)
        {
            // The system has no room to watch it, or has lost it: it would never be heard of again.
            self.end(Some(error));
        }
    }

    // ---- Reading -------------------------------------------------------------------------------

    fn read(self: &Rc<Self>) -> Wants {
        if !self.wants_reading() {
            return Wants::Pause;
        }
        if !self.seat.is_free() {
            // The protocol is lent to a `with` that makes turns; what has come waits in the stream.
            return Wants::More;
        }
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(self);
        let received = if self.seat.is_buffered() {
            let mut read = |buffer: &mut [u8]| {
                // `get_buffer` may have ended or paused it.
                if self.wants_reading() {
                    self.recv(buffer)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                }
            };
            self.seat.read_with(&transport, None, &mut read)
        } else {
            let mut buffer = self.core.lend_buffer();
            let received = self.recv(&mut buffer);
            let told = match received {
                Ok(count @ 1..) => {
                    let data = buffer.get(..count).unwrap_or(&buffer);
                    self.seat.data_received(&transport, data)
                }
                _ => Ok(()),
            };
            self.core.return_buffer(buffer);
            told.map(|()| received)
        };
        match received {
            Ok(Ok(1..)) => {}
            Ok(Ok(0)) => self.end_of_input(&transport),
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Err(error)) => self.end(Some(error)),
            Err(SeatError::Failed(error)) => self.fail(Some(error)),
            Err(_) => {}
        }
        Wants::More
    }

    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let eof_asked = self.eof_asked.get();
        let received = loop {
            match self.with_stream(|stream| stream.recv(buffer)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(received) => break received,
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        if self.closing.get() || self.eof_asked.get() != eof_asked {
            return self.received_and_more(received);
        }
        received
    }

    /// The stream has called its transport from within `recv`.
    #[cold]
    fn received_and_more(&self, received: io::Result<usize>) -> io::Result<usize> {
        match received {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => self.do_what_was_put_off(),
        }
        if self.closing.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        received
    }

    fn end_of_input(&self, transport: &Rc<dyn Transport>) {
        self.ended.set(true);
        self.watch_reading();
        match self.seat.eof_received(transport) {
            Ok(Eof::Close) => self.close(),
            Err(SeatError::Failed(error)) => self.fail(Some(error)),
            Ok(Eof::KeepOpen) | Err(_) => {}
        }
    }

    // ---- Writing -------------------------------------------------------------------------------

    /// Tells whether bytes are taken, and complains of those that are written in vain.
    fn accepts(&self, size: usize) -> bool {
        if self.eof_asked.get() {
            let report = "write after write_eof: the data was discarded";
            self.report(ExceptionContext::new(report));
            return false;
        }
        if size == 0 {
            return false;
        }
        let flushing = || !self.ending.get() && self.write_buffer_size() > 0;
        if !self.closing.get() || flushing() {
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
        let outbox = self.outbox.take();
        if outbox.is_some() {
            self.outbox.set(outbox);
            return Sent::Behind;
        }
        loop {
            match self.with_stream(&send) {
                Some(Ok(count)) => return Sent::Some(count),
                Some(Err(error)) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Sent::Some(0),
                    io::ErrorKind::Interrupted => {}
                    _ => return Sent::Failed(error),
                },
                None => return Sent::Behind,
            }
        }
    }

    /// Buffers what comes behind all that waits.
    fn keep(&self, keep: impl FnOnce(&mut Outbox)) {
        let mut outbox = self.outbox.take().unwrap_or_default();
        keep(&mut outbox);
        self.buffer(outbox);
    }

    /// Buffers what was not sent of a write that had nothing before it. What a stream of the
    /// program's own make has written meanwhile comes behind.
    fn keep_rest(&self, keep: impl FnOnce(&mut Outbox)) {
        let late = self.outbox.take();
        let mut outbox = Box::<Outbox>::default();
        keep(&mut outbox);
        if let Some(late) = late {
            outbox.append(*late);
        }
        self.buffer(outbox);
    }

    fn buffer(&self, outbox: Box<Outbox>) {
        if self.ending.get() {
            return;
        }
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
            && let Some(this) = self.this.upgrade()
        {
            this.queue_flow();
        }
    }

    fn queue_flow(self: Rc<Self>) {
        let (core, place) = (Rc::clone(&self.core), self.seat.place());
        let item = Unless::new(self);
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
        let empty = outbox.is_empty();
        self.outbox.set((!empty).then_some(outbox));
        if self.ending.get() {
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
        if self.closing.get() {
            self.end(None);
        } else if self.eof_asked.get()
            && let Err(error) = self.shut_down()
        {
            self.end(Some(error));
        }
    }

    /// A write went out whole; the stream may have called its transport meanwhile.
    #[inline]
    fn sent_whole(&self) {
        if self.closing.get() || self.eof_asked.get() {
            self.do_what_was_put_off();
        }
    }

    /// Does what was asked for while the stream was in use, unless something waits to be written.
    #[cold]
    fn do_what_was_put_off(&self) {
        if self.write_buffer_size() == 0 {
            self.flushed();
        }
    }

    fn shut_down(&self) -> io::Result<()> {
        let shut = self.with_stream(|stream| stream.shutdown(Shutdown::Write));
        shut.unwrap_or(Ok(()))
    }
}

impl<S: ByteStream> Watcher for Stream<S> {
    fn ready(self: Rc<Self>, direction: Direction) -> Wants {
        match direction {
            Direction::Read => self.read(),
            Direction::Write => self.flush(),
        }
    }

    fn place(&self) -> &'static Location<'static> {
        self.seat.place()
    }

    fn let_go(&self) {
        if self.core.debug.get() && !self.closing.get() {
            let report = "a connection was still open when its loop was closed";
            self.report(ExceptionContext::new(report));
        }
        self.closing.set(true);
        self.ending.set(true);
        drop_quietly(self.outbox.take());
        if let Some(key) = self.key.take() {
            drop_quietly(self.core.table.unwatch_object(key));
        }
        self.seat.let_go();
        self.drop_stream();
        if let Some((keeper, number)) = self.keeper.take() {
            keeper.left(number);
        }
    }
}

impl<S: ByteStream> Transport for Stream<S> {
    #[inline]
    fn write(&self, data: &[u8]) {
        if (self.closing.get() || self.eof_asked.get()) && !self.accepts(data.len()) {
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
        if (self.closing.get() || self.eof_asked.get()) && !self.accepts(size) {
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
        if self.closing.get() {
            return Err(WriteRefused::Closing);
        }
        if self.eof_asked.get() {
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
        if self.closing.get() || self.eof_asked.replace(true) {
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
        let rare = self.rare.take();
        let limits = rare
            .as_ref()
            .map_or(WriteLimits::DEFAULT, |rare| rare.limits);
        self.rare.set(rare);
        limits
    }

    fn set_write_buffer_limits(&self, limits: WriteLimits) -> io::Result<()> {
        let limits = limits.check()?;
        self.rare.set(Some(Box::new(Rare { limits })));
        self.look_at_high_mark(self.write_buffer_size());
        Ok(())
    }

    fn is_writing_paused(&self) -> bool {
        self.seat.is_writing_paused()
    }

    fn is_reading(&self) -> bool {
        !self.paused.get() && !self.ended.get() && !self.closing.get()
    }

    fn pause_reading(&self) {
        if self.is_reading() {
            self.paused.set(true);
            self.watch_reading();
        }
    }

    fn resume_reading(&self) {
        if self.paused.replace(false) {
            self.watch_reading();
        }
    }

    fn close(&self) {
        if self.closing.replace(true) {
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
        self.closing.get()
    }

    fn set_protocol(&self, protocol: Box<dyn AnyProtocol>) {
        self.seat.set_protocol(protocol);
    }

    fn local_addr(&self) -> Option<Address> {
        self.with_stream(ByteStream::local_address).flatten()
    }

    fn peer_addr(&self) -> Option<Address> {
        self.peer.clone()
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
