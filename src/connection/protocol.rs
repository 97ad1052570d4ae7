//! What a program implements: protocols, which are told of what happens to a connection.
//!
//! A transport calls one method at a time, from the loop's line. A method has the protocol to itself
//! (`&mut self`) and may call anything of its transport and of the loop.

use std::io;
use std::rc::Rc;

use super::transport::Transport;

/// Is told of what happens to a connection, and given the bytes as they come.
///
/// The calls come in this order: [`connection_made`](Protocol::connection_made) once; any number of
/// [`data_received`](Protocol::data_received); [`eof_received`](Protocol::eof_received) at most
/// once; [`connection_lost`](Protocol::connection_lost) once, and nothing after it.
/// [`pause_writing`](Protocol::pause_writing) and [`resume_writing`](Protocol::resume_writing)
/// alternate in between. No call begins before the one before it has returned.
///
/// A method that panics is reported to the exception handler. After a panic in `data_received` or
/// `eof_received` the connection is aborted, and `connection_lost` is told so; after one in another
/// method it goes on.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::{Protocol, Transport};
///
/// /// Sends back what it gets; while the peer does not read, it does not read either.
/// struct Echo;
///
/// impl Protocol for Echo {
///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
///         transport.write(data);
///     }
///     fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
///         transport.pause_reading();
///     }
///     fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
///         transport.resume_reading();
///     }
/// }
///
/// coloop::testing::run_virtual(async {
///     let loop_ = coloop::current();
///     let (near, far) = coloop::testing::stream_pair(&loop_, 1024)?;
///     let (_transport, echo) = loop_.create_connection_over(|| Echo, near).await?;
///     let far = loop_.watch(far)?;
///     far.write_with(|far| coloop::ByteStream::send(far, b"hello")).await?;
///     let mut buffer = [0; 16];
///     let count = far.read_with(|far| coloop::ByteStream::recv(far, &mut buffer)).await?;
///     assert_eq!(&buffer[..count], b"hello");
///     drop(far);
///     let (_echo, error) = echo.closed().await;
///     assert!(error.is_none());
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Coming from asyncio
///
/// `asyncio.Protocol`. The transport is passed to each call, so there is nothing to store.
#[doc(alias = "BaseProtocol")]
#[doc(alias = "asyncio.Protocol")]
pub trait Protocol {
    /// Is called once, first.
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        let _ = transport;
    }

    /// Is called with the bytes that have come, never none, at most once a turn.
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]);

    /// Is called once when the peer will send no more, and says what becomes of the connection.
    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        let _ = transport;
        Eof::Close
    }

    /// Is called when more than the high-water mark waits to be written.
    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        let _ = transport;
    }

    /// Is called when no more than the low-water mark waits to be written.
    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        let _ = transport;
    }

    /// Is called once, last: with no error after an orderly end or when this side has ended it.
    fn connection_lost(&mut self, transport: &Rc<dyn Transport>, error: Option<&io::Error>) {
        let _ = (transport, error);
    }
}

/// Is told of what happens to a connection, and lends the memory that is read into.
///
/// In place of `data_received` there are two calls: [`get_buffer`](BufferedProtocol::get_buffer)
/// lends memory, and [`buffer_updated`](BufferedProtocol::buffer_updated) says how much of it has
/// been filled. Nothing is copied in between. The other calls are those of [`Protocol`]. Functions
/// that take a factory take `coloop::buffered(factory)` for it.
///
/// # Coming from asyncio
///
/// `asyncio.BufferedProtocol`. A size hint of -1 is `None`.
pub trait BufferedProtocol {
    /// Is called once, first.
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        let _ = transport;
    }

    /// Lends memory to read into: about `size_hint` bytes, or as many as it likes.
    ///
    /// An empty buffer is an error that ends the connection.
    fn get_buffer(&mut self, size_hint: Option<usize>) -> &mut [u8];

    /// Is told that the first `count` bytes of the buffer are new.
    fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize);

    /// Is called once when the peer will send no more, and says what becomes of the connection.
    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        let _ = transport;
        Eof::Close
    }

    /// Is called when more than the high-water mark waits to be written.
    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        let _ = transport;
    }

    /// Is called when no more than the low-water mark waits to be written.
    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        let _ = transport;
    }

    /// Is called once, last: with no error after an orderly end or when this side has ended it.
    fn connection_lost(&mut self, transport: &Rc<dyn Transport>, error: Option<&io::Error>) {
        let _ = (transport, error);
    }
}

/// Says what becomes of a connection whose peer will send no more.
///
/// # Coming from asyncio
///
/// `eof_received` returns false or true there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a half-closed connection is kept or not"
)]
pub enum Eof {
    /// What is buffered is written, then the connection is closed.
    #[default]
    Close,
    /// It stays open for writing, until the program closes it.
    KeepOpen,
}

impl<P: Protocol + ?Sized> Protocol for Box<P> {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        (**self).connection_made(transport);
    }

    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        (**self).data_received(transport, data);
    }

    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        (**self).eof_received(transport)
    }

    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        (**self).pause_writing(transport);
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        (**self).resume_writing(transport);
    }

    fn connection_lost(&mut self, transport: &Rc<dyn Transport>, error: Option<&io::Error>) {
        (**self).connection_lost(transport, error);
    }
}

impl<P: BufferedProtocol + ?Sized> BufferedProtocol for Box<P> {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        (**self).connection_made(transport);
    }

    fn get_buffer(&mut self, size_hint: Option<usize>) -> &mut [u8] {
        (**self).get_buffer(size_hint)
    }

    fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize) {
        (**self).buffer_updated(transport, count);
    }

    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        (**self).eof_received(transport)
    }

    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        (**self).pause_writing(transport);
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        (**self).resume_writing(transport);
    }

    fn connection_lost(&mut self, transport: &Rc<dyn Transport>, error: Option<&io::Error>) {
        (**self).connection_lost(transport, error);
    }
}
