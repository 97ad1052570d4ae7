//! Connecting: `create_connection`, and sockets that are connected already.
//!
//! What is made on the way (a socket, a transport whose protocol has not been told yet) belongs to
//! the future: dropped at any await, it closes them.

use std::error::Error;
use std::fmt;
use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::Location;
use std::rc::Rc;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::endpoint::{Endpoint, Hints};
use crate::connection::{Factory, Opening, ProtocolHandle, Transport, open};
use crate::context::Context;
use crate::core::LoopHandle;
use crate::error::LoopClosed;
use crate::resolve::{Family, LookupFlags};
use crate::socket::ByteStream;

/// What a connection consists of, as the program has it.
type Pair<F> = (Rc<dyn Transport>, ProtocolHandle<<F as Factory>::Protocol>);

impl LoopHandle {
    /// Connects to a host, and gives the transport and the protocol that `factory` makes.
    ///
    /// Await what it returns; options are methods before that. The addresses of the host are tried
    /// one after the other. Once there is a connection the factory is called, then
    /// `connection_made`, then the future resolves; what the peer sends comes after that. A literal
    /// address needs no look-up, a name is looked up in a thread of its own.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for an endpoint that is none;
    /// [`NotConnected`](io::ErrorKind::NotConnected) on a closed loop; what the look-up says. If no
    /// address can be connected to, an error of the first one's kind, whose
    /// [`get_ref`](io::Error::get_ref) is a [`ConnectErrors`] with all of them.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes what it has made. A protocol that has been made by then, and was
    /// to be told, is told that its connection is made and lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{cell::RefCell, io, rc::Rc};
    /// use coloop::{Protocol, Transport};
    ///
    /// struct Client(Rc<RefCell<Vec<u8>>>);
    /// impl Protocol for Client {
    ///     fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
    ///         transport.write(b"hello");
    ///     }
    ///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
    ///         self.0.borrow_mut().extend(data);
    ///         transport.close();
    ///     }
    /// }
    /// struct Echo;
    /// impl Protocol for Echo {
    ///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
    ///         transport.write(data);
    ///     }
    /// }
    ///
    /// coloop::run(async {
    ///     let loop_ = coloop::current();
    ///     let server = loop_.create_server(|| Echo, ("127.0.0.1", 0)).await?;
    ///     let received = Rc::new(RefCell::new(Vec::new()));
    ///     let heard = Rc::clone(&received);
    ///     let (_transport, client) = loop_
    ///         .create_connection(|| Client(heard), server.sockets()[0].local_addr())
    ///         .await?;
    ///     client.closed().await;
    ///     assert_eq!(*received.borrow(), b"hello");
    ///     Ok::<(), io::Error>(())
    /// })?;
    /// # Ok::<(), io::Error>(())
    /// ```
    ///
    /// # Coming from asyncio
    ///
    /// `sock=` is [`create_connection_on`](Self::create_connection_on). All errors are kept, as with
    /// `all_errors=True`.
    #[track_caller]
    pub fn create_connection<F: Factory>(
        &self,
        factory: F,
        endpoint: impl Into<Endpoint>,
    ) -> CreateConnection<F> {
        CreateConnection {
            handle: self.clone(),
            factory,
            endpoint: endpoint.into(),
            local: None,
            hints: Hints::default(),
            delay: false,
            place: Location::caller(),
        }
    }

    /// Makes a connection of a socket that is connected already.
    ///
    /// The socket belongs to the transport from then on and is put into non-blocking mode. It may be
    /// of any family of stream sockets.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no stream socket, or one that listens;
    /// [`NotConnected`](io::ErrorKind::NotConnected) if it is not connected, and on a closed loop;
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if it is watched. The socket is closed then.
    ///
    /// # Cancellation
    ///
    /// As [`create_connection`](Self::create_connection).
    ///
    /// # Coming from asyncio
    ///
    /// `create_connection(factory, sock=sock)`.
    #[doc(alias = "create_connection(sock=)")]
    #[track_caller]
    pub fn create_connection_on<F: Factory>(
        &self,
        factory: F,
        socket: impl Into<OwnedFd>,
    ) -> ConnectSocket<F> {
        ConnectSocket {
            handle: self.clone(),
            factory,
            socket: socket.into(),
            accepted: false,
            delay: false,
            place: Location::caller(),
        }
    }

    /// Makes a connection of a socket that was accepted elsewhere.
    ///
    /// It differs from [`create_connection_on`](Self::create_connection_on) in one thing: a peer
    /// that has gone already is no error here. The protocol is told, as it would be of a peer that
    /// goes a moment later.
    ///
    /// # Errors
    ///
    /// As [`create_connection_on`](Self::create_connection_on).
    #[track_caller]
    pub fn connect_accepted_socket<F: Factory>(
        &self,
        factory: F,
        socket: impl Into<OwnedFd>,
    ) -> ConnectSocket<F> {
        ConnectSocket {
            accepted: true,
            ..self.create_connection_on(factory, socket)
        }
    }

    /// Makes a connection over a stream of bytes, such as one in memory.
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected) on a closed loop;
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) if the stream is watched; what the loop's
    /// selector says, for instance that it does not serve this kind of stream.
    ///
    /// # Cancellation
    ///
    /// As [`create_connection`](Self::create_connection).
    pub async fn create_connection_over<F: Factory>(
        &self,
        factory: F,
        stream: impl ByteStream + 'static,
    ) -> io::Result<(Rc<dyn Transport>, ProtocolHandle<F::Protocol>)> {
        establish(self, factory, stream, Location::caller()).await
    }
}

/// Configures a connection; made by [`LoopHandle::create_connection`], and awaited.
#[must_use = "nothing is connected until this is awaited"]
pub struct CreateConnection<F> {
    handle: LoopHandle,
    factory: F,
    endpoint: Endpoint,
    local: Option<Endpoint>,
    hints: Hints,
    delay: bool,
    place: &'static Location<'static>,
}

impl<F> CreateConnection<F> {
    /// Binds the socket to an address of this machine first. Port 0 is any that is free.
    ///
    /// It is looked up as the endpoint is; addresses of another family than the remote one's are
    /// left out.
    pub fn local_addr(mut self, local: impl Into<Endpoint>) -> Self {
        self.local = Some(local.into());
        self
    }

    /// Takes only addresses of this family.
    pub fn family(mut self, family: Family) -> Self {
        self.hints.family = Some(family);
        self
    }

    /// Asks for a protocol of this number, both of the resolver and of the system. The default is 0:
    /// what the system takes for a stream, which is TCP.
    pub fn proto(mut self, proto: i32) -> Self {
        self.hints.proto = proto;
        self
    }

    /// Passes flags to the resolver. The default is none.
    pub fn flags(mut self, flags: LookupFlags) -> Self {
        self.hints.flags = flags;
        self
    }

    /// Lets the system delay small writes to join them (Nagle's algorithm).
    ///
    /// Without it they leave at once: `TCP_NODELAY` is on.
    #[doc(alias = "TCP_NODELAY")]
    pub fn delay(mut self) -> Self {
        self.delay = true;
        self
    }
}

impl<F: Factory + 'static> IntoFuture for CreateConnection<F> {
    type Output = io::Result<(Rc<dyn Transport>, ProtocolHandle<F::Protocol>)>;
    type IntoFuture = LocalBoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.connect())
    }
}

impl<F: Factory> CreateConnection<F> {
    async fn connect(self) -> io::Result<Pair<F>> {
        let Self {
            handle,
            factory,
            endpoint,
            local,
            hints,
            delay,
            place,
        } = self;
        handle.open()?;
        endpoint.check_single()?;
        if let Some(local) = &local {
            local.check_single()?;
        }
        let remote = endpoint.resolve(&handle, hints).await?;
        let local = match local {
            Some(local) => Some(local.resolve(&handle, hints).await?),
            None => None,
        };
        let mut errors = ConnectErrors {
            attempts: Vec::new(),
        };
        for address in remote {
            let began = handle.time();
            match connect(&handle, address, local.as_deref(), hints.proto).await {
                Ok(socket) => {
                    if !delay {
                        socket.set_tcp_nodelay(true).ok();
                    }
                    return establish(&handle, factory, socket, place).await;
                }
                Err(error) => errors.attempts.push(ConnectAttempt {
                    address,
                    error,
                    took: handle.time().saturating_duration_since(began),
                }),
            }
        }
        Err(errors.into())
    }
}

impl<F> fmt::Debug for CreateConnection<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateConnection")
            .field("endpoint", &self.endpoint)
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

/// Connects a new socket to one address.
async fn connect(
    handle: &LoopHandle,
    address: SocketAddr,
    local: Option<&[SocketAddr]>,
    proto: i32,
) -> io::Result<Rc<Socket>> {
    let proto = (proto != 0).then(|| Protocol::from(proto));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, proto)?;
    socket.set_nonblocking(true)?;
    if let Some(local) = local {
        bind(&socket, address, local)?;
    }
    let connected = begin(&socket, address)?;
    let socket = Rc::new(socket);
    if !connected {
        let watched = handle.watch(Rc::clone(&socket))?;
        watched.writable().await?;
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
    }
    Ok(socket)
}

/// Begins to connect, and says whether that was all.
fn begin(socket: &Socket, address: SocketAddr) -> io::Result<bool> {
    loop {
        let Err(error) = socket.connect(&address.into()) else {
            return Ok(true);
        };
        match Errno::from_io_error(&error) {
            // Whether it was begun by then, the next call will say.
            Some(Errno::INTR) => {}
            Some(Errno::INPROGRESS | Errno::ALREADY) => return Ok(false),
            Some(Errno::ISCONN) => return Ok(true),
            _ => return Err(error),
        }
    }
}

/// Binds to the first local address that fits.
fn bind(socket: &Socket, remote: SocketAddr, local: &[SocketAddr]) -> io::Result<()> {
    let mut refused = None;
    for address in local.iter().filter(|a| a.is_ipv4() == remote.is_ipv4()) {
        match socket.bind(&(*address).into()) {
            Ok(()) => return Ok(()),
            Err(error) => {
                let text = format!("cannot bind to {address}: {error}");
                refused = Some(io::Error::new(error.kind(), text));
            }
        }
    }
    Err(refused.unwrap_or_else(|| {
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!("no local address is of the family of {remote}"),
        )
    }))
}

/// Configures a connection on a socket; made by [`LoopHandle::create_connection_on`] and
/// [`LoopHandle::connect_accepted_socket`], and awaited.
#[must_use = "nothing is connected until this is awaited"]
pub struct ConnectSocket<F> {
    handle: LoopHandle,
    factory: F,
    socket: OwnedFd,
    accepted: bool,
    delay: bool,
    place: &'static Location<'static>,
}

impl<F> ConnectSocket<F> {
    /// Leaves `TCP_NODELAY` as it is. Without it, it is turned on for a TCP socket.
    #[doc(alias = "TCP_NODELAY")]
    pub fn delay(mut self) -> Self {
        self.delay = true;
        self
    }
}

impl<F: Factory + 'static> IntoFuture for ConnectSocket<F> {
    type Output = io::Result<(Rc<dyn Transport>, ProtocolHandle<F::Protocol>)>;
    type IntoFuture = LocalBoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                handle,
                factory,
                socket,
                accepted,
                delay,
                place,
            } = self;
            handle.open()?;
            check_stream(socket.as_fd())?;
            let sock = SockRef::from(&socket);
            if sock.is_listener()? {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the socket listens: give it to `create_server_on`",
                ));
            }
            if let Err(error) = sock.peer_addr()
                && !accepted
            {
                let text = format!("the socket is not connected: connect it first ({error})");
                return Err(io::Error::new(error.kind(), text));
            }
            sock.set_nonblocking(true)?;
            if !delay && is_inet(&sock) {
                sock.set_tcp_nodelay(true).ok();
            }
            establish(&handle, factory, Rc::new(socket), place).await
        })
    }
}

impl<F> fmt::Debug for ConnectSocket<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectSocket")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// Refuses what is not a stream socket.
pub(super) fn check_stream(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    let wrong = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    match SockRef::from(&fd).r#type() {
        Ok(Type::STREAM) => Ok(()),
        Ok(Type::DGRAM) => wrong("a stream socket was expected, and this is a datagram one".into()),
        Ok(other) => wrong(format!(
            "a stream socket was expected, and this is {other:?}"
        )),
        Err(error) => wrong(format!("a stream socket was expected: {error}")),
    }
}

pub(super) fn is_inet(socket: &SockRef<'_>) -> bool {
    let local = socket.local_addr();
    local.is_ok_and(|address| address.is_ipv4() || address.is_ipv6())
}

/// Makes the transport and the protocol of a stream, and waits until the protocol has been told.
async fn establish<F: Factory, S: ByteStream + 'static>(
    handle: &LoopHandle,
    factory: F,
    stream: S,
    place: &'static Location<'static>,
) -> io::Result<Pair<F>> {
    /// Closes the transport of a future that is dropped.
    struct Pending(Option<Rc<dyn Transport>>);
    impl Drop for Pending {
        fn drop(&mut self) {
            if let Some(transport) = self.0.take() {
                transport.close();
            }
        }
    }

    handle.open()?;
    let (protocol, protocol_handle) = factory.make();
    let opening = Opening {
        protocol,
        context: Context::capture(),
        place,
        peer: stream.peer_address(),
        clients: None,
    };
    let (resolver, begun) = handle.create_future();
    let transport = open(&handle.0, stream, opening, move || {
        resolver.settle(()).ok();
    })?;
    let mut pending = Pending(Some(Rc::clone(&transport)));
    // Only a loop that is closed forgets to say so.
    begun.await.map_err(|_| LoopClosed)?;
    pending.0 = None;
    Ok((transport, protocol_handle))
}

/// Lists every address that could not be connected to, with its error.
///
/// It is inside the [`io::Error`] that a connection which could not be made gives.
///
/// # Examples
///
/// ```
/// use std::{io, net::TcpListener, rc::Rc};
/// use coloop::{ConnectErrors, Protocol, Transport};
///
/// struct Nobody;
/// impl Protocol for Nobody {
///     fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}
/// }
///
/// // A port that is bound, and that nobody listens at.
/// let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
/// bound.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())?;
/// let address = bound.local_addr()?.as_socket().unwrap();
///
/// let error = coloop::run(async move {
///     coloop::current().create_connection(|| Nobody, address).await.unwrap_err()
/// });
/// assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
/// let errors: &ConnectErrors = error.get_ref().unwrap().downcast_ref().unwrap();
/// assert_eq!(errors.attempts()[0].address, address);
/// # Ok::<(), io::Error>(())
/// ```
///
/// # Coming from asyncio
///
/// The `ExceptionGroup` of `all_errors=True`.
#[doc(alias = "all_errors")]
#[derive(Debug)]
pub struct ConnectErrors {
    attempts: Vec<ConnectAttempt>,
}

/// One address that could not be connected to.
#[derive(Debug)]
#[non_exhaustive]
pub struct ConnectAttempt {
    /// The address.
    pub address: SocketAddr,
    /// What the system said.
    pub error: io::Error,
    /// How long that took.
    pub took: Duration,
}

impl ConnectErrors {
    /// Returns the attempts, in the order in which they were made.
    pub fn attempts(&self) -> &[ConnectAttempt] {
        &self.attempts
    }
}

impl fmt::Display for ConnectErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot connect")?;
        for (at, attempt) in self.attempts.iter().enumerate() {
            let before = if at == 0 { " to " } else { "; to " };
            write!(f, "{before}{}: {}", attempt.address, attempt.error)?;
        }
        Ok(())
    }
}

impl Error for ConnectErrors {}

impl From<ConnectErrors> for io::Error {
    fn from(errors: ConnectErrors) -> Self {
        let first = errors.attempts.first();
        let kind = first.map_or(io::ErrorKind::NotFound, |first| first.error.kind());
        Self::new(kind, errors)
    }
}
