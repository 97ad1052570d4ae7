//! Listening: `create_server`, and sockets that are bound already.
//!
//! All sockets of a server are made before any of them listens; if one cannot be, none is left.

use std::fmt;
use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::Location;

use futures::future::LocalBoxFuture;
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

use super::connect::check_stream;
use super::endpoint::{Endpoint, Hints};
use super::server::{Making, Server};
use crate::connection::ServerFactory;
use crate::core::LoopHandle;
use crate::resolve::{Family, LookupFlags};

/// The backlog of a server for which none is chosen.
const BACKLOG: u32 = 100;

impl LoopHandle {
    /// Listens at an endpoint; `factory` makes a protocol for each connection.
    ///
    /// Await what it returns; options are methods before that. There is a socket for each address
    /// of the endpoint, and port 0 is another free port for each of them. IPv6 sockets are for IPv6
    /// alone, so that one for IPv4 can stand beside it.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for an endpoint that is none; what the look-up
    /// says; [`NotConnected`](io::ErrorKind::NotConnected) on a closed loop; an error that names the
    /// address, with the kind that the system says, such as
    /// [`AddrInUse`](io::ErrorKind::AddrInUse). An address that the machine does not have is left
    /// out if others can be listened at. No socket is left then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::rc::Rc;
    /// use coloop::{Protocol, Transport};
    ///
    /// #[derive(Default)]
    /// struct Echo;
    /// impl Protocol for Echo {
    ///     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
    ///         transport.write(data);
    ///     }
    /// }
    ///
    /// coloop::run(async {
    ///     let server = coloop::current()
    ///         .create_server(Echo::default, "127.0.0.1:0")
    ///         .backlog(512)
    ///         .await?;
    ///     assert!(server.is_serving());
    ///     server.close();
    ///     server.wait_closed().await;
    ///     Ok::<(), std::io::Error>(())
    /// })?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Coming from asyncio
    ///
    /// `host=None` is the port alone; `sock=` is [`create_server_on`](Self::create_server_on);
    /// `start_serving=False` is [`start_later`](CreateServer::start_later).
    #[track_caller]
    pub fn create_server<F: ServerFactory>(
        &self,
        factory: F,
        endpoint: impl Into<Endpoint>,
    ) -> CreateServer<F> {
        CreateServer {
            handle: self.clone(),
            factory,
            endpoint: endpoint.into(),
            hints: Hints {
                flags: LookupFlags::PASSIVE,
                ..Hints::default()
            },
            backlog: BACKLOG,
            delay: false,
            start_later: false,
            reuse_address: true,
            reuse_port: false,
            keep_alive: false,
            place: Location::caller(),
        }
    }

    /// Serves on a socket that is bound already.
    ///
    /// The socket belongs to the server from then on and is put into non-blocking mode. It may be of
    /// any family of stream sockets, and may listen already.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is no stream socket, or a connected one;
    /// [`NotConnected`](io::ErrorKind::NotConnected) on a closed loop; otherwise what the system
    /// says. The socket is closed then.
    ///
    /// # Coming from asyncio
    ///
    /// `create_server(factory, sock=sock)`.
    #[doc(alias = "create_server(sock=)")]
    #[track_caller]
    pub fn create_server_on<F: ServerFactory>(
        &self,
        factory: F,
        socket: impl Into<OwnedFd>,
    ) -> ServeSocket<F> {
        ServeSocket {
            handle: self.clone(),
            factory,
            socket: socket.into(),
            backlog: BACKLOG,
            delay: false,
            start_later: false,
            place: Location::caller(),
        }
    }
}

/// Configures a server; made by [`LoopHandle::create_server`], and awaited.
#[must_use = "nothing listens until this is awaited"]
pub struct CreateServer<F> {
    handle: LoopHandle,
    factory: F,
    endpoint: Endpoint,
    hints: Hints,
    backlog: u32,
    delay: bool,
    start_later: bool,
    reuse_address: bool,
    reuse_port: bool,
    keep_alive: bool,
    place: &'static Location<'static>,
}

impl<F> CreateServer<F> {
    /// Takes only addresses of this family.
    pub fn family(mut self, family: Family) -> Self {
        self.hints.family = Some(family);
        self
    }

    /// Passes flags to the resolver. The default is [`LookupFlags::PASSIVE`].
    pub fn flags(mut self, flags: LookupFlags) -> Self {
        self.hints.flags = flags;
        self
    }

    /// Says how many connections may wait to be accepted. The default is 100; the system has an
    /// upper bound of its own.
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Refuses an address of which connections of an earlier server still linger.
    ///
    /// Without it `SO_REUSEADDR` is on, so that a server can be started again at once.
    #[doc(alias = "reuse_address")]
    pub fn no_reuse_address(mut self) -> Self {
        self.reuse_address = false;
        self
    }

    /// Shares the address with other sockets that say the same; the system spreads connections over
    /// them.
    pub fn reuse_port(mut self) -> Self {
        self.reuse_port = true;
        self
    }

    /// Lets the system ask peers that are silent for long whether they are still there.
    pub fn keep_alive(mut self) -> Self {
        self.keep_alive = true;
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

    /// Binds the sockets and does not listen yet: [`Server::start_serving`] and
    /// [`Server::serve_forever`] do.
    #[doc(alias = "start_serving=False")]
    pub fn start_later(mut self) -> Self {
        self.start_later = true;
        self
    }
}

impl<F: ServerFactory + 'static> IntoFuture for CreateServer<F> {
    type Output = io::Result<Server>;
    type IntoFuture = LocalBoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.handle.open()?;
            let addresses = self
                .endpoint
                .clone()
                .resolve(&self.handle, self.hints)
                .await?;
            self.handle.open()?;
            let sockets = self.bind_all(&addresses)?;
            let making = Making {
                factory: Box::new(self.factory),
                sockets,
                backlog: self.backlog,
                delay: self.delay,
                place: self.place,
            };
            Server::make(&self.handle, making, self.start_later)
        })
    }
}

impl<F> CreateServer<F> {
    /// Binds a socket to each address; those that the machine does not have are left out.
    fn bind_all(&self, addresses: &[SocketAddr]) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        let mut missing: Option<io::Error> = None;
        for address in addresses {
            match self.bind(*address) {
                Ok(socket) => sockets.push(socket),
                Err(error) => {
                    let lacking = error.kind() == io::ErrorKind::AddrNotAvailable
                        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
                    let text = match &missing {
                        Some(before) if lacking => format!("{before}; at {address}: {error}"),
                        _ => format!("cannot listen at {address}: {error}"),
                    };
                    let error = io::Error::new(error.kind(), text);
                    if !lacking {
                        return Err(error);
                    }
                    missing = Some(error);
                }
            }
        }
        match missing {
            Some(error) if sockets.is_empty() => Err(error),
            _ => Ok(sockets),
        }
    }

    fn bind(&self, address: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if self.reuse_address {
            socket.set_reuse_address(true)?;
        }
        if self.reuse_port {
            socket.set_reuse_port(true)?;
        }
        if self.keep_alive {
            socket.set_keepalive(true)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    }
}

impl<F> fmt::Debug for CreateServer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateServer")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Configures a server on a socket; made by [`LoopHandle::create_server_on`], and awaited.
#[must_use = "nothing listens until this is awaited"]
pub struct ServeSocket<F> {
    handle: LoopHandle,
    factory: F,
    socket: OwnedFd,
    backlog: u32,
    delay: bool,
    start_later: bool,
    place: &'static Location<'static>,
}

impl<F> ServeSocket<F> {
    /// Says how many connections may wait to be accepted. The default is 100.
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Lets the system delay small writes to join them (Nagle's algorithm).
    #[doc(alias = "TCP_NODELAY")]
    pub fn delay(mut self) -> Self {
        self.delay = true;
        self
    }

    /// Does not listen yet: [`Server::start_serving`] and [`Server::serve_forever`] do.
    #[doc(alias = "start_serving=False")]
    pub fn start_later(mut self) -> Self {
        self.start_later = true;
        self
    }
}

impl<F: ServerFactory + 'static> IntoFuture for ServeSocket<F> {
    type Output = io::Result<Server>;
    type IntoFuture = LocalBoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.handle.open()?;
            check_stream(self.socket.as_fd())?;
            let sock = SockRef::from(&self.socket);
            if sock.peer_addr().is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the socket is connected: give it to `connect_accepted_socket`",
                ));
            }
            sock.set_nonblocking(true)?;
            let making = Making {
                factory: Box::new(self.factory),
                sockets: vec![Socket::from(self.socket)],
                backlog: self.backlog,
                delay: self.delay,
                place: self.place,
            };
            Server::make(&self.handle, making, self.start_later)
        })
    }
}

impl<F> fmt::Debug for ServeSocket<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeSocket")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}
