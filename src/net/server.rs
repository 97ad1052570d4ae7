//! A server: sockets that listen, and the connections that were accepted on them.
//!
//! Each socket that listens is watched by an `Acceptor`, an item of the line like any other. It
//! accepts a bounded number of connections and leaves the rest to the next turn, so that a flood of
//! them does not starve those that are there. When the system has no descriptor or no memory left,
//! the socket would stay ready and the loop would spin: it is left alone for a second, which one
//! timer ends.
//!
//! What must always hold:
//!
//! 1. A connection counts from when its transport is made until its `connection_lost` has returned.
//! 2. A connection that was accepted has a transport, or is closed: there is no third.
//! 3. The factory is out of its seat while it is called.
//! 4. The table holds the server through its acceptors; a server that does not serve goes with its
//!    last handle. Its connections hold their list and not the server.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
#[cfg(not(target_vendor = "apple"))]
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context as PollContext, Poll};
use std::time::Duration;

use rustix::io::Errno;
#[cfg(not(target_vendor = "apple"))]
use rustix::net::{SocketAddrAny, SocketAddrUnix};
use socket2::Socket;

use crate::address::Address;
use crate::callback::TimerHandle;
use crate::connection::{AnyProtocol, Clients, Opening, ServerFactory, open};
use crate::context::{self, Context};
use crate::core::{Core, LoopHandle};
use crate::error::{Cancelled, LoopClosed, drop_quietly};
use crate::key::{Direction, WatchKey};
use crate::record::On;
use crate::report::ExceptionContext;
use crate::selector::table::{Here, Wants, Watcher};
use crate::selector::{Interest, Source};

/// How long a socket is left alone after the system had no room for another connection.
const PAUSE: Duration = Duration::from_secs(1);
/// So many connections are accepted at once; then the others in the line have their turn.
const MOST_ACCEPTS: u32 = 64;

/// What a server is made of.
pub(super) struct Making {
    pub(super) factory: Box<dyn ServerFactory>,
    pub(super) sockets: Vec<Socket>,
    pub(super) backlog: u32,
    pub(super) delay: bool,
    pub(super) place: &'static Location<'static>,
}

/// Accepts connections, and knows those that it has accepted.
///
/// Clones are cheap and mean the same server. Dropping the last of them changes nothing for one that
/// serves: it ends by [`close`](Server::close), or with its loop.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::{Protocol, Transport};
///
/// struct Hello;
/// impl Protocol for Hello {
///     fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
///         transport.write(b"hello\n");
///         transport.close();
///     }
///     fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}
/// }
///
/// coloop::run(async {
///     let server = coloop::current().create_server(|| Hello, "127.0.0.1:0").await?;
///     let address = server.sockets()[0].local_addr().clone();
///     assert!(address.port().is_some_and(|port| port != 0));
///     server.close();
///     server.wait_closed().await;
///     assert!(server.sockets().is_empty());
///     Ok::<(), std::io::Error>(())
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Coming from asyncio
///
/// `async with server` is [`scope`](Server::scope).
#[derive(Clone)]
pub struct Server(Rc<Shared>);

struct Shared {
    core: Rc<Core>,
    place: &'static Location<'static>,
    context: Option<Context>,
    factory: Cell<Option<Box<dyn ServerFactory>>>,
    backlog: u32,
    delay: bool,
    stage: Cell<Stage>,
    /// Somebody is in `serve_forever`.
    forever: Cell<bool>,
    sockets: RefCell<Vec<Listening>>,
    clients: Rc<Clients>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Bound,
    Serving,
    Closed,
}

/// A socket that is bound, and listens once the server serves.
struct Listening {
    socket: Rc<Socket>,
    address: Address,
    key: Option<WatchKey>,
    retry: Option<TimerHandle>,
}

impl Server {
    pub(super) fn make(handle: &LoopHandle, making: Making, start_later: bool) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for socket in making.sockets {
            let address = Address::of(&socket.local_addr()?);
            sockets.push(Listening {
                socket: Rc::new(socket),
                // An unnamed unix socket is a unix socket all the same.
                address: address.unwrap_or_else(|| Address::Unix("".into())),
                key: None,
                retry: None,
            });
        }
        let server = Self(Rc::new(Shared {
            core: Rc::clone(&handle.0),
            place: making.place,
            context: Context::capture(),
            factory: Cell::new(Some(making.factory)),
            backlog: making.backlog,
            delay: making.delay,
            stage: Cell::new(Stage::Bound),
            forever: Cell::new(false),
            sockets: RefCell::new(sockets),
            clients: Rc::default(),
        }));
        if !start_later {
            server.start_serving()?;
        }
        Ok(server)
    }

    /// Returns the loop that it belongs to.
    #[doc(alias = "get_loop")]
    pub fn handle(&self) -> LoopHandle {
        LoopHandle(Rc::clone(&self.0.core))
    }

    /// Listens, and accepts what comes. No effect on a server that serves.
    ///
    /// # Errors
    ///
    /// [`NotConnected`](io::ErrorKind::NotConnected) if the server or its loop is closed; otherwise
    /// what the system says. If some of its sockets listen by then the server is closed, so that
    /// nobody connects to a socket that is never looked at; else it can be tried again.
    pub fn start_serving(&self) -> io::Result<()> {
        let shared = &self.0;
        match shared.stage.get() {
            Stage::Serving => return Ok(()),
            Stage::Closed => return Err(closed()),
            Stage::Bound if shared.core.is_closed() => return Err(LoopClosed.into()),
            Stage::Bound => {}
        }
        let sockets: Vec<_> = {
            let sockets = shared.sockets.borrow();
            let each = sockets.iter();
            each.map(|at| (Rc::clone(&at.socket), at.address.clone()))
                .collect()
        };
        let backlog = i32::try_from(shared.backlog).unwrap_or(i32::MAX);
        let mut watched: Vec<WatchKey> = Vec::new();
        let mut listening = false;
        for (at, (socket, address)) in sockets.into_iter().enumerate() {
            let listens = socket.listen(backlog).and_then(|()| {
                listening = true;
                let acceptor = Rc::new(Acceptor {
                    server: Rc::clone(shared),
                    at,
                });
                let on = Interest {
                    readable: true,
                    writable: false,
                };
                shared
                    .core
                    .table
                    .watch_object(Source::Fd(socket), on, acceptor)
            });
            match listens {
                Ok(key) => watched.push(key),
                Err(error) => {
                    for key in watched {
                        drop_quietly(shared.core.table.unwatch_object(key));
                    }
                    if listening {
                        self.close();
                    }
                    let text = format!("cannot listen at {address}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        shared.stage.set(Stage::Serving);
        let mut sockets = shared.sockets.borrow_mut();
        for (at, key) in sockets.iter_mut().zip(watched) {
            at.key = Some(key);
        }
        Ok(())
    }

    /// Serves until the server is closed or the future is dropped, which closes it.
    ///
    /// # Errors
    ///
    /// It never ends well: [`Interrupted`](io::ErrorKind::Interrupted), with [`Cancelled`] inside,
    /// when the server is closed meanwhile; [`ResourceBusy`](io::ErrorKind::ResourceBusy) if
    /// somebody is in it already; otherwise as [`start_serving`](Server::start_serving).
    ///
    /// # Cancellation
    ///
    /// Dropping it closes the server. Connections go on; await [`wait_closed`](Server::wait_closed)
    /// for their end.
    pub async fn serve_forever(&self) -> io::Result<Infallible> {
        if self.0.stage.get() == Stage::Closed {
            return Err(closed());
        }
        if self.0.forever.get() {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "somebody is in `serve_forever` of this server already",
            ));
        }
        self.start_serving()?;
        self.0.forever.set(true);
        let _closing = Closing(self);
        self.wait(Until::Closing).await;
        Err(Cancelled::with_reason("the server was closed").into())
    }

    /// Runs `body`, then closes the server and waits until its connections are over.
    ///
    /// # Cancellation
    ///
    /// Dropping it closes the server.
    ///
    /// # Coming from asyncio
    ///
    /// `async with server: …`
    #[doc(alias = "async with")]
    pub async fn scope<T>(&self, body: impl Future<Output = T>) -> T {
        let closing = Closing(self);
        let result = body.await;
        drop(closing);
        self.wait_closed().await;
        result
    }

    /// Tells whether it accepts connections.
    pub fn is_serving(&self) -> bool {
        self.0.stage.get() == Stage::Serving
    }

    /// Returns the sockets, none once the server is closed.
    pub fn sockets(&self) -> Vec<ServerSocket> {
        let sockets = self.0.sockets.borrow();
        let each = sockets.iter().map(|at| ServerSocket {
            socket: Rc::downgrade(&at.socket),
            address: at.address.clone(),
        });
        each.collect()
    }

    /// Closes the sockets. Connections go on. A second call does nothing.
    pub fn close(&self) {
        let shared = &self.0;
        if shared.stage.replace(Stage::Closed) == Stage::Closed {
            return;
        }
        for at in shared.sockets.take() {
            if let Some(key) = at.key {
                drop_quietly(shared.core.table.unwatch_object(key));
            }
            if let Some(retry) = at.retry {
                retry.cancel();
            }
        }
        drop_quietly(shared.factory.take());
        for waker in shared.clients.tell_of_end() {
            shared.core.wake(waker);
        }
    }

    /// Calls `close` of each connection's transport.
    pub fn close_clients(&self) {
        for transport in self.0.clients.all() {
            transport.close();
        }
    }

    /// Calls `abort` of each connection's transport.
    pub fn abort_clients(&self) {
        for transport in self.0.clients.all() {
            transport.abort();
        }
    }

    /// Resolves when the server is closed and all its connections are over.
    ///
    /// A connection is over when its `connection_lost` has returned. Any number of tasks may wait,
    /// from before the closing or after it.
    ///
    /// # Coming from asyncio
    ///
    /// The meaning it has since 3.12.1.
    #[track_caller]
    pub fn wait_closed(&self) -> WaitClosed<'_> {
        self.wait(Until::Over)
    }

    #[track_caller]
    fn wait(&self, until: Until) -> WaitClosed<'_> {
        WaitClosed {
            server: self,
            until,
            place: Location::caller(),
            waiting: None,
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the server is closed: make a new one",
    )
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sockets = self.sockets();
        f.debug_struct("Server")
            .field("stage", &self.0.stage.get())
            .field("sockets", &sockets)
            .field("clients", &self.0.clients.len())
            .finish()
    }
}

/// Closes a server when the future that serves is done or dropped.
struct Closing<'a>(&'a Server);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stage.get() == Stage::Closed && self.clients.is_empty()
    }

    /// Makes a connection of what was accepted.
    fn welcome(self: &Rc<Self>, fd: OwnedFd, peer: Option<Address>) {
        let socket = Rc::new(fd);
        if !self.delay && matches!(peer, Some(Address::Inet(_))) {
            // Refused only for a peer that has gone, of which the transport will hear.
            let _ = socket2::SockRef::from(&*socket).set_tcp_nodelay(true);
        }
        // Each connection has a copy of the server's context for its own.
        let context = self.context.as_ref().map(Context::copy);
        let Some(protocol) = self.make_protocol(context.clone()) else {
            return;
        };
        let opening = Opening {
            protocol,
            context,
            place: self.place,
            peer,
            clients: Some(Rc::clone(&self.clients)),
        };
        if let Err(error) = open(&self.core, socket, opening, || {}) {
            let report = ExceptionContext::new("an accepted connection was dropped");
            self.report(report.with_error(error));
        }
    }

    fn make_protocol(&self, context: Option<Context>) -> Option<AnyProtocol> {
        let mut factory = self.factory.take()?;
        let entered = context::enter(context);
        let made = panic::catch_unwind(AssertUnwindSafe(|| factory.make()));
        drop(entered);
        // It may have closed its own server.
        if self.stage.get() == Stage::Closed {
            drop_quietly(factory);
        } else {
            self.factory.set(Some(factory));
        }
        match made {
            Ok(protocol) => Some(protocol),
            Err(payload) => {
                let report = ExceptionContext::new("panic in a protocol factory");
                self.report(report.with_payload(payload));
                None
            }
        }
    }

    fn report(&self, report: ExceptionContext) {
        self.core.report(report.with_place(Some(self.place)));
    }

    /// Leaves a socket alone for a while.
    fn pause(self: &Rc<Self>, at: usize, why: &io::Error) {
        let report = ExceptionContext::new("no new connections for 1 s: accept failed");
        self.report(report.with_error(why));
        let server = Rc::clone(self);
        let retry = LoopHandle(Rc::clone(&self.core)).call_later(PAUSE, move || server.retry(at));
        match self.sockets.borrow_mut().get_mut(at) {
            Some(socket) => socket.retry = Some(retry),
            // The exception handler has closed the server.
            None => drop(retry.cancel()),
        }
    }

    fn retry(self: &Rc<Self>, at: usize) {
        let key = self.sockets.borrow().get(at).and_then(|socket| socket.key);
        if let Some(key) = key
            && let Err(error) = self.core.table.set_on(key, Direction::Read, true)
        {
            self.pause(at, &error);
        }
    }
}

/// Accepts on one of a server's sockets.
struct Acceptor {
    server: Rc<Shared>,
    at: usize,
}

impl Watcher for Acceptor {
    fn ready(self: Rc<Self>, _: Direction, here: &Here) -> Wants {
        let server = &self.server;
        here.set(Some(server.place));
        for _ in 0..server.backlog.clamp(1, MOST_ACCEPTS) {
            let socket = {
                let sockets = server.sockets.borrow();
                sockets.get(self.at).map(|at| Rc::clone(&at.socket))
            };
            // A factory may close the server.
            let Some(socket) = socket else {
                return Wants::Pause;
            };
            match accept(&socket) {
                Ok((fd, peer)) => server.welcome(fd, peer),
                Err(Errno::AGAIN) => return Wants::More,
                Err(error) if is_peer_s(error) => {}
                Err(error) => {
                    server.pause(self.at, &error.into());
                    return Wants::Pause;
                }
            }
        }
        Wants::More
    }

    fn place(&self) -> &'static Location<'static> {
        self.server.place
    }

    fn let_go(&self) {
        Server(Rc::clone(&self.server)).close();
    }
}

/// Whether an error of `accept` concerns the one connection that would have been accepted.
///
/// Linux passes on what has happened to that connection meanwhile; see accept(2).
fn is_peer_s(error: Errno) -> bool {
    [
        Errno::CONNABORTED,
        Errno::INTR,
        Errno::PROTO,
        Errno::PERM,
        Errno::NETDOWN,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
        Errno::TIMEDOUT,
    ]
    .contains(&error)
}

/// Accepts one connection, in non-blocking mode and not to be inherited.
#[cfg(not(target_vendor = "apple"))]
fn accept(socket: &Socket) -> Result<(OwnedFd, Option<Address>), Errno> {
    use rustix::net::{SocketFlags, acceptfrom_with};

    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (fd, peer) = acceptfrom_with(socket, flags)?;
    Ok((fd, peer.and_then(address)))
}

/// What the system says of a peer; an unnamed one has no address.
#[cfg(not(target_vendor = "apple"))]
fn address(peer: SocketAddrAny) -> Option<Address> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    match SocketAddr::try_from(peer.clone()) {
        Ok(inet) => Some(Address::Inet(inet)),
        Err(_) => {
            let unix = SocketAddrUnix::try_from(peer).ok()?;
            let path = OsStr::from_bytes(unix.path_bytes()?);
            Some(Address::Unix(path.into()))
        }
    }
}

/// There the flags are set after the fact.
#[cfg(target_vendor = "apple")]
fn accept(socket: &Socket) -> Result<(OwnedFd, Option<Address>), Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
    let (accepted, peer) = socket.accept().map_err(errno)?;
    accepted.set_nonblocking(true).map_err(errno)?;
    Ok((accepted.into(), Address::of(&peer)))
}

/// One of a server's sockets, as much of it as others may use.
///
/// It keeps nothing open: once the server is closed there is no descriptor behind it.
///
/// # Coming from asyncio
///
/// `TransportSocket`: what would disturb the loop, such as blocking mode, cannot be reached but
/// through the descriptor.
#[derive(Clone)]
#[doc(alias = "TransportSocket")]
pub struct ServerSocket {
    socket: Weak<Socket>,
    address: Address,
}

impl ServerSocket {
    /// Returns where it listens; the port is the one that the system has chosen, if it was left to
    /// it.
    pub fn local_addr(&self) -> &Address {
        &self.address
    }

    /// Lends the descriptor, for options of the socket; `None` once the server is closed.
    pub fn with_fd<R>(&self, f: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
        let socket = self.socket.upgrade()?;
        Some(f(socket.as_fd()))
    }
}

impl fmt::Debug for ServerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerSocket").field(&self.address).finish()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Closing,
    Over,
}

/// Resolves when a server is over; made by [`Server::wait_closed`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct WaitClosed<'a> {
    server: &'a Server,
    until: Until,
    place: &'static Location<'static>,
    /// The number of the waker, and of the wait.
    waiting: Option<(usize, u32)>,
}

impl WaitClosed<'_> {
    fn stop_waiting(&mut self) {
        let Some((number, wait)) = self.waiting.take() else {
            return;
        };
        let shared = &self.server.0;
        shared.core.records.end_wait(wait);
        drop(shared.clients.stop_waiting(number));
    }
}

impl Future for WaitClosed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<()> {
        let shared = &self.server.0;
        let over = match self.until {
            Until::Closing => shared.stage.get() == Stage::Closed,
            Until::Over => shared.is_over(),
        };
        if over || shared.core.is_closed() {
            self.stop_waiting();
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        match self.waiting {
            Some((number, wait)) => {
                shared.core.records.renew_wait(wait);
                drop(shared.clients.wait_on(number, waker));
            }
            None => {
                let number = shared.clients.wait(waker);
                let records = &shared.core.records;
                let wait = records.begin_wait(On::Server, self.place, shared.core.now());
                self.waiting = Some((number, wait));
            }
        }
        Poll::Pending
    }
}

impl Drop for WaitClosed<'_> {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl fmt::Debug for WaitClosed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WaitClosed").field(self.server).finish()
    }
}
