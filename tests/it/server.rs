//! Servers, on real sockets: where they listen, how they end, what becomes of their connections.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Waker};

use coloop::{
    Address, BufferedProtocol, Cancelled, CreateServer, Endpoint, Family, LookupFlags, Protocol,
    Server, Transport, buffered, current,
};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::sockets::{Peer, Scribe, address, has_v6, listener, look, refusing, run, turns, until};
use crate::verbs::{Trace, real_loop};

/// What became of an attempt that was to fail.
#[track_caller]
fn refused<T>(result: io::Result<T>) -> (ErrorKind, String) {
    match result {
        Ok(_) => panic!("it is no error"),
        Err(error) => (error.kind(), error.to_string()),
    }
}

/// A factory of protocols that send back what they get.
pub(crate) fn echo(trace: &Trace) -> impl Fn() -> Scribe + use<> {
    let trace = trace.clone();
    move || Scribe::echoing(&trace)
}

/// A server on one free port.
pub(crate) async fn serving(trace: &Trace) -> Server {
    let server = current().create_server(echo(trace), ("127.0.0.1", 0));
    server.await.unwrap()
}

/// Connects to it and has something echoed.
pub(crate) async fn client(to: SocketAddr) -> Peer {
    let peer = Peer::to(to);
    peer.say("hello").await;
    assert_eq!(peer.hear(5).await, "hello");
    peer
}

/// Whether something is complete when it is polled once.
pub(crate) fn is_ready(future: impl Future) -> bool {
    let mut cx = PollContext::from_waker(Waker::noop());
    pin!(future).poll(&mut cx).is_ready()
}

fn addresses(server: &Server) -> Vec<SocketAddr> {
    let sockets = server.sockets();
    let each = sockets.iter().map(|socket| socket.local_addr().as_inet());
    each.map(Option::unwrap).collect()
}

/// Asserts that nobody listens there, and that no socket is bound there. Each test of this has an
/// address of its own, at which the system puts no connection of anybody else.
#[track_caller]
fn assert_free(address: SocketAddr) {
    let error = TcpStream::connect(address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    let bound = socket.bind(&address.into());
    bound.unwrap_or_else(|error| panic!("{address}: {error}"));
}

// ---- Where it listens ----------------------------------------------------------------------------

#[test]
fn c_254_a_server_on_a_port_that_the_system_chooses() {
    let trace = Trace::new();
    run(async {
        let peers = Rc::new(RefCell::new(Vec::new()));
        let (log, known) = (trace.clone(), Rc::clone(&peers));
        let factory = move || {
            let known = Rc::clone(&known);
            Scribe::acting(&log, move |transport, call| {
                if call == "made" {
                    let both = (transport.local_addr(), transport.peer_addr());
                    known.borrow_mut().push(both);
                }
            })
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        let listens = addresses(&server);
        assert_eq!(listens.len(), 1);
        assert_ne!(listens[0].port(), 0);
        assert!(server.is_serving());
        assert_eq!(address(&server), listens[0]);
        assert!(!server.handle().is_closed());

        let peer = Peer::to(listens[0]);
        peer.say("xxx").await;
        until(|| trace.has("data xxx")).await;
        let ours = peer.socket().local_addr().unwrap().as_socket().unwrap();
        let both = (Some(listens[0].into()), Some(ours.into()));
        assert_eq!(*peers.borrow(), [both]);
        drop(peer);
        until(|| trace.has("lost")).await;
        server.close();
    });
    trace.assert(&["made", "data xxx", "eof", "lost"]);
}

#[test]
fn c_254_a_socket_for_each_address_and_a_port_for_each_socket() {
    run(async {
        let trace = Trace::new();
        let hosts = (["127.0.0.1", "127.0.0.2", "127.0.0.3"], 0);
        let server = current().create_server(echo(&trace), hosts).await.unwrap();
        let listens = addresses(&server);
        let ips: Vec<_> = listens.iter().map(|at| at.ip().to_string()).collect();
        assert_eq!(ips, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        for at in listens {
            assert_ne!(at.port(), 0);
            client(at).await;
        }
        server.close();
    });
}

#[test]
fn c_255_hosts_that_are_named_twice_are_bound_once() {
    let serve = |endpoint: Endpoint| {
        run(async {
            let server = current().create_server(echo(&Trace::new()), endpoint);
            let server = server.await.unwrap();
            let ips = addresses(&server).into_iter().map(|at| at.ip().to_string());
            let ips: Vec<_> = ips.collect();
            server.close();
            ips
        })
    };
    let twice = ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1"];
    assert_eq!(serve((twice, 0).into()), ["127.0.0.1", "127.0.0.2"]);
    assert_eq!(serve((&twice[..], "0").into()), ["127.0.0.1", "127.0.0.2"]);
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    assert_eq!(serve(vec![address; 3].into()), ["127.0.0.1"]);
    // A name and the address that it stands for.
    let both = (["localhost", "127.0.0.1", "localhost"], 0);
    let ips = serve(both.into());
    let v4 = ips.iter().filter(|ip| *ip == "127.0.0.1").count();
    assert_eq!(v4, 1, "{ips:?}");
    if has_v6() {
        assert_eq!(serve((["::1", "::1"], 0).into()), ["::1"]);
    }
}

/// Makes a server at a port that is free for it, which nobody can keep free for us.
async fn at_a_free_port<F: coloop::ServerFactory + 'static>(
    make: impl Fn(u16) -> CreateServer<F>,
) -> (Server, u16) {
    for _ in 0..100 {
        let port = refusing("127.0.0.1").1.port();
        match make(port).await {
            Ok(server) => return (server, port),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}"),
        }
    }
    panic!("no port is free for long enough");
}

#[test]
fn c_256_without_a_host_it_is_on_all_interfaces_of_both_families() {
    if !has_v6() {
        return;
    }
    for form in 0..3 {
        run(async {
            let trace = Trace::new();
            let (server, port) = at_a_free_port(|port| {
                let endpoint = match form {
                    0 => Endpoint::from(port),
                    1 => Endpoint::from(("", port)),
                    _ => Endpoint::from(format!(":{port}")),
                };
                current().create_server(echo(&trace), endpoint)
            })
            .await;
            let mut listens = addresses(&server);
            listens.sort();
            let expected: [SocketAddr; 2] = [
                SocketAddr::new("0.0.0.0".parse().unwrap(), port),
                SocketAddr::new("::".parse().unwrap(), port),
            ];
            assert_eq!(listens, expected);
            for socket in server.sockets() {
                let only_v6 = |fd: std::os::fd::BorrowedFd<'_>| SockRef::from(&fd).only_v6().ok();
                let only_v6 = socket.with_fd(only_v6).unwrap();
                let v6 = socket.local_addr().as_inet().unwrap().is_ipv6();
                assert_eq!(only_v6 == Some(true), v6);
            }
            for ip in ["127.0.0.1", "127.9.9.9", "::1"] {
                let peer = client(SocketAddr::new(ip.parse().unwrap(), port)).await;
                let from = peer.socket().peer_addr().unwrap().as_socket().unwrap();
                assert_eq!(from.ip().to_string(), ip);
            }
            server.close();
        });
    }
}

#[test]
fn c_256_a_family_of_all_interfaces_and_the_port_of_the_system_s_choice() {
    for (family, all) in [(Family::V4, "0.0.0.0"), (Family::V6, "::")] {
        if family == Family::V6 && !has_v6() {
            return;
        }
        run(async {
            let server = current().create_server(echo(&Trace::new()), 0);
            let server = server.family(family).await.unwrap();
            let listens = addresses(&server);
            assert_eq!(listens.len(), 1);
            assert_eq!(listens[0].ip().to_string(), all);
            server.close();
        });
    }
}

/// Without `PASSIVE`, the resolver gives what to connect to: the machine itself.
#[test]
fn flags_are_the_resolver_s() {
    run(async {
        let server = current().create_server(echo(&Trace::new()), 0);
        let server = server.flags(LookupFlags::default()).await.unwrap();
        for listens in addresses(&server) {
            assert!(listens.ip().is_loopback(), "{listens}");
        }
        server.close();
        let server = current().create_server(echo(&Trace::new()), ("localhost", 0));
        let (kind, text) = refused(server.flags(LookupFlags::NUMERIC_HOST).await);
        assert_eq!(kind, ErrorKind::NotFound, "{text}");
    });
}

#[test]
fn c_258_an_address_in_use_leaves_no_socket_behind() {
    run(async {
        let (_taken, taken) = refusing("127.2.5.8");
        let before = SocketAddr::new("127.1.5.8".parse().unwrap(), taken.port());
        let trace = Trace::new();
        let hosts = (["127.1.5.8", "127.2.5.8"], taken.port());
        let server = current().create_server(echo(&trace), hosts);
        let expected = format!("cannot listen at {taken}: Address already in use (os error 98)");
        let told = refused(server.await);
        assert_eq!(told, (ErrorKind::AddrInUse, expected));
        assert_free(before);
    });
}

#[test]
fn c_258_an_address_at_which_another_server_listens() {
    run(async {
        let first = serving(&Trace::new()).await;
        let at = address(&first);
        let second = current().create_server(echo(&Trace::new()), at);
        let expected = format!("cannot listen at {at}: Address already in use (os error 98)");
        assert_eq!(refused(second.await), (ErrorKind::AddrInUse, expected));
        first.close();
    });
}

/// Two may be bound where nobody listens yet; the second to listen is told.
#[test]
fn c_258_an_address_that_is_taken_between_binding_and_listening() {
    run(async {
        let trace = Trace::new();
        let first = current()
            .create_server(echo(&trace), ("127.0.0.1", 0))
            .start_later();
        let first = first.await.unwrap();
        let at = address(&first);
        let second = current().create_server(echo(&trace), at).await.unwrap();
        let expected = format!("cannot listen at {at}: Address already in use (os error 98)");
        let told = refused(first.start_serving());
        assert_eq!(told, (ErrorKind::AddrInUse, expected));
        assert!(!first.is_serving());
        second.close();
        first.start_serving().unwrap();
        client(at).await;
        first.close();
    });
}

/// A unix socket's peer has an address if it was bound to a path.
#[test]
fn a_unix_peer_is_known_by_its_path() {
    struct Who(Rc<RefCell<Vec<Option<Address>>>>);
    impl Protocol for Who {
        fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
            self.0.borrow_mut().push(transport.peer_addr());
        }
        fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}
    }

    let path = |end: &str| {
        let name = format!("coloop-{}-peer-{end}", std::process::id());
        std::env::temp_dir().join(name)
    };
    let (here, there) = (path("server"), path("client"));
    let (seen, at, from) = (Rc::default(), here.clone(), there.clone());
    let log = Rc::clone(&seen);
    run(async move {
        let listener = UnixListener::bind(&at).unwrap();
        let factory = move || Who(Rc::clone(&log));
        let server = current().create_server_on(factory, listener).await.unwrap();
        let named = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        named.bind(&SockAddr::unix(&from).unwrap()).unwrap();
        named.connect(&SockAddr::unix(&at).unwrap()).unwrap();
        until(|| seen.borrow().len() == 1).await;
        let _unnamed = UnixStream::connect(&at).unwrap();
        until(|| seen.borrow().len() == 2).await;
        assert_eq!(*seen.borrow(), [Some(Address::Unix(from)), None]);
        server.close();
        server.close_clients();
        server.wait_closed().await;
    });
    for path in [here, there] {
        std::fs::remove_file(path).unwrap();
    }
}

/// The first socket listens when the second cannot: nobody may connect to a server that never looks.
#[test]
fn a_server_of_which_only_a_part_could_listen_is_closed() {
    run(async {
        let trace = Trace::new();
        let taken = free_port();
        let both = vec![address_at(0), taken];
        let server = current().create_server(echo(&trace), both).start_later();
        let server = server.await.unwrap();
        let at = address(&server);
        let other = current().create_server(echo(&trace), taken).await.unwrap();
        let (kind, _) = refused(server.start_serving());
        assert_eq!(kind, ErrorKind::AddrInUse);
        assert_eq!((server.is_serving(), server.sockets().len()), (false, 0));
        let error = TcpStream::connect(at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        other.close();
    });
}

/// An address of this machine.
fn address_at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// An address that nobody listens at.
fn free_port() -> SocketAddr {
    let socket = TcpListener::bind(address_at(0)).unwrap();
    socket.local_addr().unwrap()
}

/// Why nobody can bind to an address.
fn refusing_fails(ip: &str) -> Option<i32> {
    let address = SocketAddr::new(ip.parse().unwrap(), 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
    let bound = socket.and_then(|socket| socket.bind(&address.into()));
    bound.err().and_then(|error| error.raw_os_error())
}

#[test]
fn c_259_an_address_that_the_machine_does_not_have_is_left_out() {
    // Of blocks that are for documentation alone.
    let mut foreign = [
        "192.0.2.77",
        "198.51.100.77",
        "203.0.113.77",
        "2001:db8::77",
    ];
    foreign.sort_by_key(|ip| refusing_fails(ip) != Some(libc::EADDRNOTAVAIL));
    let [one, other, ..] = foreign;
    if refusing_fails(other) != Some(libc::EADDRNOTAVAIL) {
        println!("skipped: every address is this machine's own");
        return;
    }
    run(async {
        let trace = Trace::new();
        let hosts = ([one, "127.0.0.1", other], 0);
        let server = current().create_server(echo(&trace), hosts).await.unwrap();
        let listens = addresses(&server);
        assert_eq!(listens.len(), 1);
        client(listens[0]).await;
        server.close();

        let nowhere = current().create_server(echo(&trace), ([one, other], 7));
        let (kind, text) = refused(nowhere.await);
        assert_eq!(kind, ErrorKind::AddrNotAvailable);
        let each = [one, other].map(|ip| SocketAddr::new(ip.parse().unwrap(), 7));
        let expected = format!(
            "cannot listen at {}: Cannot assign requested address (os error 99); \
             at {}: Cannot assign requested address (os error 99)",
            each[0], each[1]
        );
        assert_eq!(text, expected);
    });
}

#[test]
fn endpoints_that_are_no_place_to_listen_at() {
    let wrong = [
        (
            Endpoint::from(([""; 0], 80)),
            "the list of hosts is empty: name one, or give the port alone for all",
        ),
        (
            Endpoint::from(Vec::<SocketAddr>::new()),
            "the list of addresses is empty",
        ),
        (
            Endpoint::from("localhost"),
            "\"localhost\" is no address: a port is missing, as in \"localhost:80\"",
        ),
        (
            Endpoint::from("localhost:70000"),
            "\"localhost:70000\" is no address: ports are numbers up to 65535",
        ),
        (
            Endpoint::from("::1"),
            "\"::1\" is no address: an IPv6 address stands in brackets, as in \"[::1]:80\"",
        ),
        (
            Endpoint::from(("127.0.0.1", "65536")),
            "\"65536\" is no port: those are 0 to 65535",
        ),
        (
            Endpoint::from((["127.0.0.1", "a\0b"], 0)),
            "the host \"a\\0b\" cannot be looked up: it has a NUL byte",
        ),
    ];
    run(async {
        for (endpoint, why) in wrong {
            let server = current().create_server(echo(&Trace::new()), endpoint);
            let expected = (ErrorKind::InvalidInput, why.to_owned());
            assert_eq!(refused(server.await), expected);
        }
        let v4: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = current()
            .create_server(echo(&Trace::new()), v4)
            .family(Family::V6);
        let expected = "no address is of the family that was asked for".to_owned();
        assert_eq!(refused(server.await), (ErrorKind::InvalidInput, expected));
    });
}

#[test]
fn a_closed_loop_serves_nothing() {
    let event_loop = real_loop();
    let handle = event_loop.handle();
    let trace = Trace::new();
    let later = handle
        .create_server(echo(&trace), ("127.0.0.1", 0))
        .start_later();
    let later = event_loop.run_until_complete(later).unwrap().unwrap();
    drop(event_loop);
    run(async move {
        let listener = TcpListener::bind("127.3.5.8:0").unwrap();
        let at = listener.local_addr().unwrap();
        let server = handle.create_server(echo(&trace), ("127.0.0.1", 0)).await;
        assert_eq!(refused(server).0, ErrorKind::NotConnected);
        let server = handle.create_server_on(echo(&trace), listener).await;
        assert_eq!(refused(server).0, ErrorKind::NotConnected);
        assert_free(at);
        assert_eq!(refused(later.start_serving()).0, ErrorKind::NotConnected);
    });
}

// ---- Options -------------------------------------------------------------------------------------

/// What the sockets of a server say of themselves.
#[track_caller]
fn options<R>(server: &Server, look: impl Fn(SockRef<'_>) -> io::Result<R>) -> Vec<R> {
    let sockets = server.sockets();
    let each = sockets
        .iter()
        .map(|socket| socket.with_fd(|fd| look(SockRef::from(&fd))));
    each.map(|seen| seen.unwrap().unwrap()).collect()
}

#[test]
fn options_are_those_of_the_sockets_that_listen() {
    run(async {
        let trace = Trace::new();
        let new = || current().create_server(echo(&trace), (["127.0.0.1", "127.0.0.2"], 0));
        let options = |server: &Server| {
            options(server, |socket| {
                Ok((
                    socket.is_listener()?,
                    socket.reuse_address()?,
                    socket.reuse_port()?,
                    socket.keepalive()?,
                    socket.nonblocking()?,
                ))
            })
        };
        let plain = new().await.unwrap();
        assert_eq!(options(&plain), [(true, true, false, false, true); 2]);
        let other = new().no_reuse_address().reuse_port().keep_alive();
        let other = other.start_later().await.unwrap();
        assert_eq!(options(&other), [(false, false, true, true, true); 2]);
        plain.close();
        other.close();
    });
}

#[test]
fn accepted_connections_do_not_delay_small_writes_unless_they_are_asked_to() {
    for slow in [false, true] {
        run(async {
            let seen = Rc::new(RefCell::new(Vec::new()));
            let told = Rc::clone(&seen);
            let factory = move || {
                let told = Rc::clone(&told);
                Scribe::acting(&Trace::new(), move |transport, call| {
                    if call == "made" {
                        let both = |socket: SockRef<'_>| {
                            let nodelay = socket.tcp_nodelay().unwrap();
                            (nodelay, socket.keepalive().unwrap())
                        };
                        told.borrow_mut().push(look(transport, both));
                    }
                })
            };
            let new = || {
                current()
                    .create_server(factory.clone(), ("127.0.0.1", 0))
                    .keep_alive()
            };
            let server = if slow { new().delay() } else { new() };
            let server = server.await.unwrap();
            let _peer = Peer::to(address(&server));
            until(|| !seen.borrow().is_empty()).await;
            // Whoever is accepted inherits the question whether he is still there.
            assert_eq!(*seen.borrow(), [(!slow, true)]);
            server.close();
        });
    }
}

/// As many wait as the backlog says, and one more; who comes then is not answered.
#[test]
fn a_backlog_is_the_system_s() {
    run(async {
        let server = current().create_server(echo(&Trace::new()), ("127.0.0.1", 0));
        let server = server.backlog(1).start_later().await.unwrap();
        server.start_serving().unwrap();
        let at = address(&server);
        let connect = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&at.into());
            socket
        };
        // Nobody accepts as long as no turn is made.
        let clients: Vec<_> = (0..8).map(|_| connect()).collect();
        let connected = clients.iter().filter(|socket| socket.peer_addr().is_ok());
        assert_eq!(connected.count(), 2);
        server.close();
    });
}

/// Which connection which of them gets is the system's choice.
#[test]
fn servers_share_a_port() {
    run(async {
        let (first, second) = (Trace::new(), Trace::new());
        let new =
            |trace: &Trace, at: Endpoint| current().create_server(echo(trace), at).reuse_port();
        let one = new(&first, ("127.0.0.1", 0).into()).await.unwrap();
        let at = address(&one);
        let other = new(&second, at.into()).await.unwrap();
        let stranger = current().create_server(echo(&first), at).await;
        assert_eq!(refused(stranger).0, ErrorKind::AddrInUse);

        let mut clients = Vec::new();
        while !(first.has("made") && second.has("made")) {
            assert!(clients.len() < 200, "one of them gets nothing");
            clients.push(client(at).await);
        }
        // Whoever stays gets what comes from now on.
        one.close();
        let before = second.take().len();
        for _ in 0..10 {
            clients.push(client(at).await);
        }
        assert_eq!(
            second.take().iter().filter(|call| *call == "made").count(),
            10
        );
        assert!(before > 0);
        other.close();
    });
}

/// A connection that its server has closed lingers at the address.
#[test]
fn an_address_at_which_a_connection_lingers_can_be_refused() {
    run(async {
        let trace = Trace::new();
        let log = trace.clone();
        let factory = move || {
            Scribe::acting(&log, |transport, call| {
                if call == "data bye" {
                    transport.close();
                }
            })
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        let at = address(&server);
        let peer = Peer::to(at);
        peer.say("bye").await;
        assert_eq!(peer.hear_end().await, (String::new(), None));
        drop(peer);
        server.close();
        server.wait_closed().await;

        let again = current()
            .create_server(echo(&trace), at)
            .no_reuse_address()
            .await;
        assert_eq!(refused(again).0, ErrorKind::AddrInUse);
        let again = current().create_server(echo(&trace), at).await.unwrap();
        client(at).await;
        again.close();
    });
}

#[test]
fn a_server_that_is_to_start_later_is_bound_and_does_not_listen() {
    let trace = Trace::new();
    run(async {
        let server = current()
            .create_server(echo(&trace), ("127.0.0.1", 0))
            .start_later();
        let server = server.await.unwrap();
        let at = address(&server);
        assert!(!server.is_serving());
        let error = TcpStream::connect(at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        server.start_serving().unwrap();
        server.start_serving().unwrap();
        assert!(server.is_serving());
        client(at).await;
        server.close();
        assert_eq!(
            refused(server.start_serving()),
            (
                ErrorKind::NotConnected,
                "the server is closed: make a new one".to_owned()
            )
        );
    });
}

#[test]
fn a_server_that_never_starts_goes_with_its_last_handle() {
    run(async {
        let server = current()
            .create_server(echo(&Trace::new()), ("127.4.5.8", 0))
            .start_later();
        let server = server.await.unwrap();
        let at = address(&server);
        drop(server.clone());
        drop(server);
        assert_free(at);
    });
}

#[test]
fn a_server_that_serves_needs_no_handle_and_ends_with_its_loop() {
    let event_loop = real_loop();
    let at = event_loop
        .run_until_complete(async {
            let at = address(&serving(&Trace::new()).await);
            client(at).await;
            at
        })
        .unwrap();
    drop(TcpStream::connect(at).unwrap());
    drop(event_loop);
    let error = TcpStream::connect(at).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_service_and_a_name_stand_for_where_it_listens() {
    run(async {
        let server = current().create_server(echo(&Trace::new()), "localhost:0");
        let server = server.family(Family::V4).await.unwrap();
        assert_eq!(address(&server).ip(), IpAddr::from([127, 0, 0, 1]));
        client(address(&server)).await;
        server.close();
        // A privileged port, or one that is taken: where it would be is told in any case.
        let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
        let known = |line: &str| line.split_whitespace().take(2).eq(["echo", "7/tcp"]);
        if !services.lines().any(known) {
            println!("skipped: the system does not know the service echo");
            return;
        }
        let echo = current().create_server(echo(&Trace::new()), ("127.0.0.1", "echo"));
        match echo.await {
            Ok(server) => {
                assert_eq!(address(&server).port(), 7);
                server.close();
            }
            Err(error) => assert!(error.to_string().contains("127.0.0.1:7: "), "{error}"),
        }
    });
}

#[test]
fn a_server_can_make_buffered_protocols() {
    #[derive(Default)]
    struct Echo([u8; 3]);
    impl BufferedProtocol for Echo {
        fn get_buffer(&mut self, _: Option<usize>) -> &mut [u8] {
            &mut self.0
        }
        fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize) {
            transport.write(&self.0[..count]);
        }
    }

    run(async {
        let server = current().create_server(buffered(Echo::default), ("127.0.0.1", 0));
        let server = server.await.unwrap();
        client(address(&server)).await;
        server.close();
    });
}

// ---- Sockets of the program's own ----------------------------------------------------------------

#[test]
fn c_280_a_socket_that_is_given_is_the_one_that_listens() {
    run(async {
        let (listener, at) = listener();
        let number = listener.as_raw_fd();
        let trace = Trace::new();
        let server = current()
            .create_server_on(echo(&trace), listener)
            .await
            .unwrap();
        let sockets = server.sockets();
        assert_eq!(sockets.len(), 1);
        assert_eq!(*sockets[0].local_addr(), at.into());
        assert_eq!(sockets[0].with_fd(|fd| fd.as_raw_fd()), Some(number));
        assert_eq!(options(&server, |socket| socket.nonblocking()), [true]);
        client(at).await;
        server.close();
        assert_eq!(sockets[0].with_fd(|fd| fd.as_raw_fd()), None);
        let error = TcpStream::connect(at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn c_280_a_socket_that_is_given_may_be_bound_and_not_listen_yet() {
    run(async {
        let (bound, at) = refusing("127.0.0.1");
        let server = current()
            .create_server_on(echo(&Trace::new()), bound)
            .start_later();
        let server = server.await.unwrap();
        let error = TcpStream::connect(at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        server.start_serving().unwrap();
        client(at).await;
        server.close();
    });
}

#[test]
fn c_280_a_unix_socket_can_be_served() {
    let path = std::env::temp_dir().join(format!("coloop-server-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let trace = Trace::new();
    run(async {
        let server = current()
            .create_server_on(echo(&trace), listener)
            .backlog(3)
            .delay();
        let server = server.await.unwrap();
        assert_eq!(
            *server.sockets()[0].local_addr(),
            Address::Unix(path.clone())
        );
        let peer = Peer::of(UnixStream::connect(&path).unwrap());
        peer.say("hello").await;
        assert_eq!(peer.hear(5).await, "hello");
        drop(peer);
        until(|| trace.has("lost")).await;
        server.close();
        let error = UnixStream::connect(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    std::fs::remove_file(&path).unwrap();
    trace.assert(&["made", "data hello", "eof", "lost"]);
}

#[test]
fn c_280_a_socket_that_is_connected_is_refused() {
    run(async {
        let (tcp, _far) = crate::sockets::tcp_pair();
        let (unix, _other) = UnixStream::pair().unwrap();
        for socket in [OwnedFd::from(tcp), OwnedFd::from(unix)] {
            let server = current()
                .create_server_on(echo(&Trace::new()), socket)
                .await;
            let expected = "the socket is connected: give it to `connect_accepted_socket`";
            assert_eq!(
                refused(server),
                (ErrorKind::InvalidInput, expected.to_owned())
            );
        }
    });
}

#[test]
fn c_278_a_server_s_sockets_can_be_looked_at() {
    run(async {
        let server = current().create_server(echo(&Trace::new()), ("127.6.5.8", 0));
        let server = server.await.unwrap();
        let socket = server.sockets().remove(0);
        let copy = socket
            .with_fd(|fd| fd.try_clone_to_owned().unwrap())
            .unwrap();
        assert!(SockRef::from(&copy).is_listener().unwrap());
        let kind = socket.with_fd(|fd| SockRef::from(&fd).r#type().unwrap());
        assert_eq!(kind, Some(Type::STREAM));
        server.close();
        assert_eq!(socket.with_fd(|_| ()), None, "it keeps nothing open");
        // The copy is the program's: as long as it is there the system listens.
        drop(TcpStream::connect(socket.local_addr().as_inet().unwrap()).unwrap());
        drop(copy);
        assert_free(socket.local_addr().as_inet().unwrap());
    });
}

// ---- The end -------------------------------------------------------------------------------------

#[test]
fn c_260_a_closed_server_refuses_and_its_connections_go_on() {
    let trace = Trace::new();
    run(async {
        let server = serving(&trace).await;
        let at = address(&server);
        let peer = client(at).await;
        server.close();
        let error = TcpStream::connect(at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        peer.say("still there?").await;
        assert_eq!(peer.hear(12).await, "still there?");
        drop(peer);
        server.wait_closed().await;
    });
    trace.assert(&["made", "data hello", "data still there?", "eof", "lost"]);
}

#[test]
fn c_261_closing_empties_the_list_of_sockets_and_can_be_repeated() {
    run(async {
        let server = current().create_server(echo(&Trace::new()), ("127.5.5.8", 0));
        let server = server.await.unwrap();
        let at = address(&server);
        let sockets = server.sockets();
        assert!(server.is_serving());
        server.close();
        for _ in 0..2 {
            assert!(!server.is_serving());
            assert!(server.sockets().is_empty());
            server.close();
        }
        assert_eq!(sockets.len(), 1, "a copy");
        assert_eq!(
            format!("{server:?}"),
            "Server { stage: Closed, sockets: [], clients: 0 }"
        );
        assert_free(at);
    });
}

#[test]
fn c_263_whoever_waits_waits_for_the_last_connection() {
    let trace = Trace::new();
    run(async {
        let server = serving(&trace).await;
        let peer = client(address(&server)).await;
        trace.take();
        let wait = |name: &'static str| {
            let (server, log) = (server.clone(), trace.clone());
            current().create_task(async move {
                server.wait_closed().await;
                log.log(name);
            })
        };
        let before = [wait("before"), wait("also before")];
        turns(3).await;
        assert!(!is_ready(server.wait_closed()));
        server.close();
        let after = wait("after");
        turns(3).await;
        trace.assert(&[""; 0]);
        drop(peer);
        for task in before.into_iter().chain([after]) {
            task.await.unwrap();
        }
        trace.assert(&["eof", "lost", "before", "also before", "after"]);
        assert!(is_ready(server.wait_closed()));
    });
}

#[test]
fn c_263_who_gives_up_waiting_is_forgotten() {
    run(async {
        let server = serving(&Trace::new()).await;
        let waiting = server.clone();
        let task = current().create_task(async move { waiting.wait_closed().await });
        turns(1).await;
        task.cancel();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!is_ready(server.wait_closed()));
        server.close();
        server.wait_closed().await;
    });
}

#[test]
fn c_264_server_and_client_that_close_in_one_turn() {
    for server_first in [true, false] {
        let trace = Trace::new();
        run(async {
            let kept: Rc<RefCell<Option<Rc<dyn Transport>>>> = Rc::default();
            let (log, keep) = (trace.clone(), Rc::clone(&kept));
            let factory = move || {
                let keep = Rc::clone(&keep);
                Scribe::acting(&log, move |transport, _| {
                    *keep.borrow_mut() = Some(Rc::clone(transport));
                })
            };
            let server = current()
                .create_server(factory, ("127.0.0.1", 0))
                .await
                .unwrap();
            let _peer = Peer::to(address(&server));
            until(|| trace.has("made")).await;
            let transport = kept.take().unwrap();
            if server_first {
                server.close();
                transport.close();
            } else {
                transport.close();
                server.close();
            }
            server.wait_closed().await;
            trace.assert(&["made", "lost"]);
            // The protocol's last call has put it back.
            drop(kept.take());
        });
    }
}

#[test]
fn c_265_closing_the_clients_ends_it_within_two_turns() {
    let trace = Trace::new();
    run(async {
        let server = serving(&trace).await;
        let peers = [
            client(address(&server)).await,
            client(address(&server)).await,
        ];
        trace.take();
        server.close();
        server.close_clients();
        turns(2).await;
        assert!(is_ready(server.wait_closed()));
        for peer in peers {
            assert_eq!(peer.hear_end().await, (String::new(), None));
        }
    });
    trace.assert(&["lost", "lost"]);
}

#[test]
fn c_266_aborting_the_clients_ends_it_within_two_turns() {
    let trace = Trace::new();
    run(async {
        let log = trace.clone();
        let factory = move || {
            Scribe::acting(&log, |transport, call| {
                // More than the system takes of a peer that does not read.
                while call == "made" && !transport.is_writing_paused() {
                    transport.write(&[b'x'; 65_536]);
                }
            })
        };
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        let peer = Peer::to(address(&server));
        until(|| trace.has("pause")).await;
        server.close();
        server.close_clients();
        turns(2).await;
        assert!(
            !is_ready(server.wait_closed()),
            "it has still something to send"
        );
        server.abort_clients();
        turns(2).await;
        assert!(is_ready(server.wait_closed()));
        assert_eq!(peer.hear_end().await.1, Some(ErrorKind::ConnectionReset));
    });
    trace.assert(&["made", "pause", "lost"]);
}

#[test]
fn closing_the_clients_leaves_the_server_serving() {
    let trace = Trace::new();
    run(async {
        let server = serving(&trace).await;
        let peer = client(address(&server)).await;
        server.close_clients();
        assert_eq!(peer.hear_end().await, (String::new(), None));
        let peer = client(address(&server)).await;
        server.abort_clients();
        assert_eq!(peer.hear_end().await.1, Some(ErrorKind::ConnectionReset));
        client(address(&server)).await;
        assert!(server.is_serving());
        server.close();
    });
}

#[test]
fn c_268_dropping_serve_forever_closes_the_server_and_its_connections_go_on() {
    run(async {
        let server = serving(&Trace::new()).await;
        let at = address(&server);
        let serves = server.clone();
        let task = current().create_task(async move { serves.serve_forever().await });
        let peer = client(at).await;
        task.cancel();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!server.is_serving());
        let error = TcpStream::connect(at).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(!is_ready(server.wait_closed()));
        peer.say("on").await;
        assert_eq!(peer.hear(2).await, "on");
        drop(peer);
        server.wait_closed().await;
    });
}

#[test]
fn c_269_serve_forever_is_for_one_at_a_time() {
    run(async {
        let server = serving(&Trace::new()).await;
        let serves = server.clone();
        let first = current().create_task(async move { serves.serve_forever().await });
        turns(1).await;
        let second = server.serve_forever().await.map(|never| match never {});
        assert_eq!(
            refused::<()>(second),
            (
                ErrorKind::ResourceBusy,
                "somebody is in `serve_forever` of this server already".to_owned()
            )
        );
        assert!(server.is_serving(), "the first one is not disturbed");
        client(address(&server)).await;
        server.close();
        assert!(first.await.unwrap().is_err());
        let third = server.serve_forever().await.map(|never| match never {});
        assert_eq!(
            refused::<()>(third),
            (
                ErrorKind::NotConnected,
                "the server is closed: make a new one".to_owned()
            )
        );
    });
}

#[test]
fn c_270_closing_ends_serve_forever() {
    run(async {
        // It may also be what starts it.
        let server = current().create_server(echo(&Trace::new()), ("127.0.0.1", 0));
        let server = server.start_later().await.unwrap();
        let serves = server.clone();
        let task = current().create_task(async move { serves.serve_forever().await });
        until(|| server.is_serving()).await;
        client(address(&server)).await;
        server.close();
        let error = task.await.unwrap().map(|never| match never {});
        let error: io::Error = error.map(|(): ()| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        let cancelled: &Cancelled = error.get_ref().unwrap().downcast_ref().unwrap();
        assert_eq!(cancelled.reason(), Some("the server was closed"));
    });
}

#[test]
fn c_271_a_scope_closes_the_server_and_waits_for_its_connections() {
    let trace = Trace::new();
    run(async {
        let server = serving(&trace).await;
        let at = address(&server);
        let peer = client(at).await;
        let log = trace.clone();
        let (inside, scoped) = (server.clone(), server.clone());
        let task = current().create_task(async move {
            let result = scoped.scope(async {
                log.log(format!("inside, serving: {}", inside.is_serving()));
                6 * 7
            });
            let result = result.await;
            log.log("outside");
            result
        });
        until(|| !server.is_serving()).await;
        turns(2).await;
        assert!(!task.is_finished());
        drop(peer);
        assert_eq!(task.await.unwrap(), 42);
    });
    trace.assert(&[
        "made",
        "data hello",
        "inside, serving: true",
        "eof",
        "lost",
        "outside",
    ]);
}

#[test]
fn c_271_a_scope_that_is_dropped_closes_the_server() {
    run(async {
        let server = serving(&Trace::new()).await;
        let scoped = server.clone();
        let task = current().create_task(async move {
            scoped.scope(std::future::pending::<()>()).await;
        });
        turns(1).await;
        assert!(server.is_serving());
        task.cancel();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(!server.is_serving());
    });
}
