//! What comes in: read into the loop's buffer, or into the protocol's own, and given to it.
//!
//! One read a turn, whatever it gives: a short one means that there is no more, and what is left after
//! a long one is reported again.

use std::io;
use std::rc::Rc;

use super::super::opening::Unless;
use super::super::protocol::Eof;
use super::super::seat::SeatError;
use super::super::state::State;
use super::super::transport::Transport;
use super::Stream;
use crate::selector::table::Wants;
use crate::socket::ByteStream;

impl<S: ByteStream> Stream<S> {
    #[inline]
    pub(super) fn read(self: &Rc<Self>) -> Wants {
        if !self.state.wants_reading() {
            return Wants::Pause;
        }
        let transport: Rc<dyn Transport> = Rc::<Self>::clone(self);
        if self.seat.is_buffered() {
            let mut read = |buffer: &mut [u8]| {
                // `get_buffer` may have ended or paused it.
                if self.state.wants_reading() {
                    self.recv(buffer)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                }
            };
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
        let item = Unless::new(Rc::clone(self));
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

    #[inline(always)]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let before = self.state.bits();
        let received = loop {
            match self.with_stream(|stream| stream.recv(buffer)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(received) => break received,
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
        };
        if self.state.bits() != before {
            return self.received_and_more(received, before);
        }
        received
    }

    /// The stream has called its transport from within `recv`.
    #[cold]
    fn received_and_more(&self, received: io::Result<usize>, before: u8) -> io::Result<usize> {
        match received {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ if (self.state.bits() ^ before) & (State::CLOSING | State::EOF_ASKED) == 0 => {}
            _ => self.do_what_was_put_off(),
        }
        if self.state.any(State::CLOSING) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        received
    }

    fn end_of_input(self: &Rc<Self>, transport: &Rc<dyn Transport>) {
        self.state.note(State::ENDED);
        self.watch_reading();
        match self.seat.eof_received(transport) {
            Ok(Eof::Close) => self.close(),
            Ok(Eof::KeepOpen) | Err(SeatError::Empty) => {}
            Err(SeatError::Failed(error)) => self.fail(Some(error)),
            Err(SeatError::Busy) => {
                let item = Unless::new(Rc::clone(self));
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
}
