//! A transport that exists only in memory, with a protocol at either end.
//!
//! It is built on what any crate can use: a [`Seat`], `call_soon`, a task. So it is a pattern for
//! transports of other makes, and the proof that they fit. Unlike the streams of
//! [`stream_pair`](super::stream_pair), it knows neither descriptors nor a selector: it works on
//! every loop, and a virtual clock does not wait for it.
//!
//! Each end has a queue of bytes that the other end has not received yet. As many of them as the wire
//! holds are under way; the rest is the write buffer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::rc::{Rc, Weak};

use crate::address::Address;
use crate::connection::{
    AnyProtocol, Eof, Factory, ProtocolHandle, Seat, SeatError, Transport, WriteLimits,
    WriteRefused,
};
use crate::core::LoopHandle;
use crate::promise::Resolver;
use crate::report::ExceptionContext;

/// The most that one call of a protocol is given.
const MOST: usize = 256 * 1024;
/// From this write on, writes to a connection that has gone are reported.
const WRITES_IN_VAIN: u32 = 5;

/// One end of a connection in memory.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::{Protocol, Transport, testing::Wire};
///
/// struct Echo;
/// impl Protocol for Echo {
///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
///         transport.write(data);
///     }
/// }
/// #[derive(Default)]
/// struct Heard(Vec<u8>);
/// impl Protocol for Heard {
///     fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
///         transport.write(b"hello");
///     }
///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
///         self.0.extend(data);
///         transport.close();
///     }
/// }
///
/// coloop::testing::run_virtual(async {
///     let (_echo, (_near, heard)) =
///         Wire::connect(&coloop::current(), 1024, || Echo, Heard::default);
///     let (heard, error) = heard.closed().await;
///     assert_eq!((&heard.0[..], error.is_none()), (&b"hello"[..], true));
/// });
/// ```
pub struct Wire {
    this: Weak<Self>,
    handle: LoopHandle,
    peer: RefCell<Weak<Self>>,
    seat: Seat,
    number: u64,
    /// How much is under way before it counts as buffered.
    capacity: usize,
    /// What the peer has not received.
    out: RefCell<VecDeque<u8>>,
    limits: Cell<WriteLimits>,
    over: Cell<Option<Resolver<()>>>,
    flags: Flags,
}

#[derive(Default)]
struct Flags {
    begun: Cell<bool>,
    paused: Cell<bool>,
    /// The peer will send no more, and the protocol knows.
    ended: Cell<bool>,
    eof_asked: Cell<bool>,
    closing: Cell<bool>,
    ending: Cell<bool>,
    /// A delivery stands in the line.
    delivering: Cell<bool>,
    in_vain: Cell<u32>,
}

/// What an end of a wire gives to whoever made it.
type End<F> = (Rc<dyn Transport>, ProtocolHandle<<F as Factory>::Protocol>);

impl Wire {
    /// Connects two protocols by a wire that holds `capacity` bytes each way.
    ///
    /// `connection_made` of the first and of the second are put in the line.
    #[track_caller]
    pub fn connect<A: Factory, B: Factory>(
        handle: &LoopHandle,
        capacity: usize,
        first: A,
        second: B,
    ) -> (End<A>, End<B>) {
        let (a, a_handle) = first.make();
        let (b, b_handle) = second.make();
        let (a_over, a_is_over) = handle.create_future();
        let (b_over, b_is_over) = handle.create_future();
        let a = Self::new(handle, capacity, a, a_over);
        let b = Self::new(handle, capacity, b, b_over);
        *a.peer.borrow_mut() = Rc::downgrade(&b);
        *b.peer.borrow_mut() = Rc::downgrade(&a);
        // A task keeps the two alive until both are over, and lets go of them with its loop.
        let kept = (Kept(Rc::clone(&a)), Kept(Rc::clone(&b)));
        drop(handle.task().name("a wire").create(async move {
            let _kept = kept;
            a_is_over.await.ok();
            b_is_over.await.ok();
        }));
        for end in [&a, &b] {
            let end = Rc::clone(end);
            handle.call_soon(move || end.begin());
        }
        ((a, a_handle), (b, b_handle))
    }

    #[track_caller]
    fn new(
        handle: &LoopHandle,
        capacity: usize,
        protocol: AnyProtocol,
        over: Resolver<()>,
    ) -> Rc<Self> {
        let seat = Seat::new(protocol);
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            handle: handle.clone(),
            peer: RefCell::default(),
            seat,
            number: handle.random(),
            capacity,
            out: RefCell::default(),
            limits: Cell::default(),
            over: Cell::new(Some(over)),
            flags: Flags::default(),
        })
    }

    /// Puts a method in the line.
    fn soon(&self, run: impl FnOnce(Rc<Self>) + 'static) {
        if let Some(this) = self.this.upgrade() {
            self.handle.call_soon(move || run(this));
        }
    }

    fn peer(&self) -> Option<Rc<Self>> {
        self.peer.borrow().upgrade()
    }

    fn begin(self: Rc<Self>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&self);
        self.seat.connection_made(&transport).ok();
        self.flags.begun.set(true);
        self.expect();
    }

    fn wants_reading(&self) -> bool {
        self.flags.begun.get() && self.is_reading()
    }

    /// Puts a delivery in the line if there is something to deliver.
    fn expect(&self) {
        let comes = self
            .peer()
            .is_none_or(|peer| !peer.out.borrow().is_empty() || peer.has_ended());
        if comes && self.wants_reading() && !self.flags.delivering.replace(true) {
            self.soon(Self::deliver);
        }
    }

    /// Whether this end will send no more.
    fn has_ended(&self) -> bool {
        self.flags.ending.get() || self.flags.eof_asked.get()
    }

    fn deliver(self: Rc<Self>) {
        self.flags.delivering.set(false);
        if !self.wants_reading() {
            return;
        }
        if !self.seat.is_free() {
            return self.expect();
        }
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&self);
        let peer = self.peer();
        let data: Vec<u8> = match &peer {
            Some(peer) => {
                let mut out = peer.out.borrow_mut();
                let count = out.len().min(MOST);
                out.drain(..count).collect()
            }
            None => Vec::new(),
        };
        let told = if data.is_empty() {
            self.flags.ended.set(true);
            self.seat.eof_received(&transport).map(|eof| {
                if eof == Eof::Close {
                    self.close();
                }
            })
        } else {
            self.seat.data_received(&transport, &data)
        };
        if let Err(SeatError::Failed(error)) = told {
            self.break_off(Some(error));
        }
        if let Some(peer) = peer {
            peer.drained();
        }
        self.expect();
    }

    /// The peer has received some of what waited.
    fn drained(&self) {
        let flags = &self.flags;
        if flags.ending.get() {
            return;
        }
        if self.seat.is_writing_paused()
            && self.write_buffer_size() <= self.limits.get().low
            && self.seat.set_writing_paused(false)
        {
            self.soon(Self::tell_flow);
        }
        if flags.closing.get() && self.write_buffer_size() == 0 {
            // What `resume_writing` still has to say comes first.
            self.soon(|this| {
                if this.write_buffer_size() == 0 {
                    this.end(None);
                }
            });
        }
    }

    fn tell_flow(self: Rc<Self>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&self);
        if matches!(self.seat.tell_flow(&transport), Err(SeatError::Busy)) {
            self.soon(Self::tell_flow);
        }
    }

    fn end(&self, error: Option<io::Error>) {
        if self.flags.ending.replace(true) {
            return;
        }
        self.flags.closing.set(true);
        self.seat.silence();
        self.soon(|this| this.lose(error));
        if let Some(peer) = self.peer() {
            if peer.write_buffer_size() > 0 {
                // What it has still to write has nowhere to go.
                peer.end(Some(io::ErrorKind::BrokenPipe.into()));
            }
            peer.expect();
        }
    }

    fn lose(self: Rc<Self>, mut error: Option<io::Error>) {
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(&self);
        let told = self.seat.connection_lost(&transport, &mut error);
        if matches!(told, Err(SeatError::Busy)) {
            self.soon(|this| this.lose(error));
        } else if let Some(over) = self.over.take() {
            over.settle(()).ok();
        }
    }

    /// Ends both ends, this one with `error`, and the other with a reset.
    fn break_off(&self, error: Option<io::Error>) {
        if self.flags.ending.get() {
            return;
        }
        self.out.borrow_mut().clear();
        self.end(error);
        if let Some(peer) = self.peer() {
            peer.out.borrow_mut().clear();
            peer.end(Some(io::ErrorKind::ConnectionReset.into()));
        }
    }

    fn report(&self, text: &'static str) {
        self.handle
            .call_exception_handler(&ExceptionContext::new(text));
    }

    /// Tells whether bytes are taken, and complains of those that are written in vain.
    fn accepts(&self, size: usize) -> bool {
        let flags = &self.flags;
        if flags.eof_asked.get() {
            self.report("write after write_eof: the data was discarded");
            return false;
        }
        if size == 0 {
            return false;
        }
        if !flags.ending.get() && (!flags.closing.get() || self.write_buffer_size() > 0) {
            return true;
        }
        flags.in_vain.set(flags.in_vain.get().saturating_add(1));
        if flags.in_vain.get() >= WRITES_IN_VAIN {
            self.report("write to a connection that is closed: the data was discarded");
        }
        false
    }

    fn look_at_high_mark(&self) {
        let above = self.write_buffer_size() > self.limits.get().high;
        if above && !self.seat.is_writing_paused() && self.seat.set_writing_paused(true) {
            self.soon(Self::tell_flow);
        }
    }
}

impl Transport for Wire {
    fn write(&self, data: &[u8]) {
        self.write_vectored(&[IoSlice::new(data)]);
    }

    fn write_vectored(&self, buffers: &[IoSlice<'_>]) {
        if !self.accepts(buffers.iter().map(|buffer| buffer.len()).sum()) {
            return;
        }
        match self.peer() {
            Some(peer) if !peer.flags.ending.get() => {
                let mut out = self.out.borrow_mut();
                buffers.iter().for_each(|buffer| out.extend(&**buffer));
                drop(out);
                self.look_at_high_mark();
                peer.expect();
            }
            _ => self.end(Some(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn try_write(&self, data: &[u8]) -> Result<(), WriteRefused> {
        if self.flags.closing.get() {
            return Err(WriteRefused::Closing);
        }
        if self.flags.eof_asked.get() {
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
        if !self.flags.closing.get()
            && !self.flags.eof_asked.replace(true)
            && let Some(peer) = self.peer()
        {
            peer.expect();
        }
        Ok(())
    }

    fn write_buffer_size(&self) -> usize {
        self.out.borrow().len().saturating_sub(self.capacity)
    }

    fn write_buffer_limits(&self) -> WriteLimits {
        self.limits.get()
    }

    fn set_write_buffer_limits(&self, limits: WriteLimits) -> io::Result<()> {
        self.limits.set(limits.check()?);
        self.look_at_high_mark();
        Ok(())
    }

    fn is_writing_paused(&self) -> bool {
        self.seat.is_writing_paused()
    }

    fn is_reading(&self) -> bool {
        let flags = &self.flags;
        !flags.paused.get() && !flags.ended.get() && !flags.closing.get()
    }

    fn pause_reading(&self) {
        if self.is_reading() {
            self.flags.paused.set(true);
        }
    }

    fn resume_reading(&self) {
        self.flags.paused.set(false);
        self.expect();
    }

    fn close(&self) {
        if !self.flags.closing.replace(true) && self.write_buffer_size() == 0 {
            self.end(None);
        }
    }

    fn abort(&self) {
        self.break_off(None);
    }

    fn is_closing(&self) -> bool {
        self.flags.closing.get()
    }

    fn set_protocol(&self, protocol: AnyProtocol) {
        self.seat.set_protocol(protocol);
    }

    fn local_addr(&self) -> Option<Address> {
        Some(Address::Memory(self.number))
    }

    fn peer_addr(&self) -> Option<Address> {
        Some(Address::Memory(self.peer()?.number))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport: &dyn Transport = self;
        transport.fmt(f)
    }
}

/// Keeps one end of a wire, and breaks its cycles when the loop is closed.
struct Kept(Rc<Wire>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.flags.closing.set(true);
        self.0.flags.ending.set(true);
        self.0.seat.let_go();
    }
}
