//! What makes the protocol of a connection: any closure, called once the connection is there.
//!
//! A closure that returns a [`Protocol`] is a factory as it stands; one that returns a
//! [`BufferedProtocol`] is wrapped by [`buffered`].

use super::erased::{AnyProtocol, seat, seat_buffered};
use super::handle::ProtocolHandle;
use super::protocol::{BufferedProtocol, Protocol};

/// Makes the protocol of one connection.
///
/// Every `FnOnce() -> P` is one, where `P` is a [`Protocol`]; and so is what [`buffered`] makes.
pub trait Factory {
    /// What it makes.
    type Protocol: 'static;

    /// Makes a protocol and seats it.
    fn make(self) -> (AnyProtocol, ProtocolHandle<Self::Protocol>);
}

/// Makes a protocol for each connection of a server.
///
/// Every `FnMut() -> P` is one, where `P` is a [`Protocol`]; and so is what [`buffered`] makes.
pub trait ServerFactory {
    /// Makes a protocol and seats it.
    fn make(&mut self) -> AnyProtocol;
}

impl<F, P> Factory for F
where
    F: FnOnce() -> P,
    P: Protocol + 'static,
{
    type Protocol = P;

    fn make(self) -> (AnyProtocol, ProtocolHandle<P>) {
        seat(self())
    }
}

impl<F, P> ServerFactory for F
where
    F: FnMut() -> P,
    P: Protocol + 'static,
{
    fn make(&mut self) -> AnyProtocol {
        seat(self()).0
    }
}

/// A factory of protocols that lend their memory; made by [`buffered`].
#[derive(Clone, Debug)]
pub struct Buffered<F>(F);

/// Makes a factory of a closure that returns a [`BufferedProtocol`].
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::{BufferedProtocol, ByteStream, Transport, buffered};
///
/// #[derive(Default)]
/// struct Echo([u8; 4]);
/// impl BufferedProtocol for Echo {
///     fn get_buffer(&mut self, _size_hint: Option<usize>) -> &mut [u8] {
///         &mut self.0
///     }
///     fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize) {
///         transport.write(&self.0[..count]);
///     }
/// }
///
/// coloop::testing::run_virtual(async {
///     let loop_ = coloop::current();
///     let (near, far) = coloop::testing::stream_pair(&loop_, 1024)?;
///     let (_transport, echo) =
///         loop_.create_connection_over(buffered(Echo::default), near).await?;
///     far.send(b"more than four")?;
///     far.shutdown(std::net::Shutdown::Write)?;
///     echo.closed().await;
///     let mut echoed = [0; 32];
///     let count = far.recv(&mut echoed)?;
///     assert_eq!(&echoed[..count], b"more than four");
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn buffered<F>(factory: F) -> Buffered<F> {
    Buffered(factory)
}

impl<F, P> Factory for Buffered<F>
where
    F: FnOnce() -> P,
    P: BufferedProtocol + 'static,
{
    type Protocol = P;

    fn make(self) -> (AnyProtocol, ProtocolHandle<P>) {
        seat_buffered((self.0)())
    }
}

impl<F, P> ServerFactory for Buffered<F>
where
    F: FnMut() -> P,
    P: BufferedProtocol + 'static,
{
    fn make(&mut self) -> AnyProtocol {
        seat_buffered((self.0)()).0
    }
}
