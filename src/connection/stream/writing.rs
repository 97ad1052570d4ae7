//! What goes out: sent at once if nothing is before it, else kept in the outbox until there is room.
//!
//! What is asked for while the stream is in use further up in the stack, which only a stream of the
//! program's own make can bring about, is put off until that use returns.

use std::io;
use std::net::Shutdown;
use std::rc::Rc;

use super::super::opening::Unless;
use super::super::outbox::Outbox;
use super::super::seat::SeatError;
use super::super::state::State;
use super::super::transport::Transport;
use super::Stream;
use crate::key::Direction;
use crate::report::ExceptionContext;
use crate::selector::table::{Later, Wants};
use crate::socket::ByteStream;

/// From this write on, writes to a connection that has gone are reported.
const WRITES_IN_VAIN: u8 = 5;

/// What became of an attempt to send.
pub(super) enum Sent {
    /// So many bytes were taken.
    Some(usize),
    /// Something is before it: in the outbox, or in a use of the stream further up in the stack.
    Behind,
    Failed(io::Error),
}

impl<S: ByteStream> Stream<S> {
    /// Tells whether bytes are taken, and complains of those that are written in vain.
    pub(super) fn accepts(&self, size: usize) -> bool {
        if self.state.any(State::EOF_ASKED) {
            let report = "write after write_eof: the data was discarded";
            self.report(ExceptionContext::new(report));
            return false;
        }
        if size == 0 {
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

    pub(super) fn report(&self, report: ExceptionContext) {
        self.core.report(report.with_place(Some(self.seat.place())));
    }

    /// Sends at once what the stream takes, if nothing is before it.
    #[inline]
    pub(super) fn send(&self, send: impl Fn(&S) -> io::Result<usize>) -> Sent {
        if let Some(outbox) = self.outbox.take() {
            let waits = !outbox.is_empty();
            self.outbox.set(Some(outbox));
            if waits {
                return Sent::Behind;
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
                None => return Sent::Behind,
            }
        }
    }

    /// Buffers what comes behind all that waits.
    pub(super) fn keep(&self, keep: impl FnOnce(&mut Outbox)) {
        let mut outbox = self.outbox.take().unwrap_or_default();
        keep(&mut outbox);
        self.buffer(outbox);
    }

    /// Buffers what was not sent of a write that had nothing before it. What a stream of the
    /// program's own make has written meanwhile comes behind.
    pub(super) fn keep_rest(&self, keep: impl FnOnce(&mut Outbox)) {
        let late = self.outbox.take();
        let mut outbox = Box::<Outbox>::default();
        keep(&mut outbox);
        if let Some(late) = late {
            outbox.append(*late);
        }
        self.buffer(outbox);
    }

    fn buffer(&self, outbox: Box<Outbox>) {
        if self.state.any(State::ENDING) {
            return;
        }
        let size = outbox.len();
        self.outbox.set(Some(outbox));
        self.watch(Direction::Write, true);
        self.look_at_high_mark(size);
    }

    pub(super) fn look_at_high_mark(&self, size: usize) {
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

    pub(super) fn queue_flow(self: Rc<Self>) {
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
    pub(super) fn flush(self: &Rc<Self>) -> Wants {
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

    /// A write went out whole; the stream may have called its transport meanwhile.
    #[inline]
    pub(super) fn sent_whole(&self) {
        if self.state.any(State::CLOSING | State::EOF_ASKED) {
            self.do_what_was_put_off();
        }
    }

    /// Does what was asked for while the stream was in use, unless something waits to be written.
    #[cold]
    pub(super) fn do_what_was_put_off(&self) {
        if self.write_buffer_size() == 0 {
            self.flushed();
        }
    }

    pub(super) fn shut_down(&self) -> io::Result<()> {
        let shut = self.with_stream(|stream| stream.shutdown(Shutdown::Write));
        shut.unwrap_or(Ok(()))
    }
}
