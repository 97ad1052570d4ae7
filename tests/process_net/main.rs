//! Connections and servers where a process of their own is needed: counts of descriptors, threads and
//! system calls, signals, limits, faults injected into system calls, crowds.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::cell::{Cell, RefCell};
use std::env;
use std::fs;
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};
use std::time::Duration;

use coloop::{
    Endpoint, EventLoop, Family, LocalBoxFuture, LoopHandle, Protocol, Server, Transport, current,
    timeout,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, SockRef, Socket, Type};

#[path = "../alone/mod.rs"]
mod alone;
mod crowd;
mod injected;

use alone::{Ended, PATIENCE, descriptors, forked, in_a_process, inject_into, run_child};

// ---- Verbs -------------------------------------------------------------------------------------

const ZERO: Duration = Duration::ZERO;

/// How many protocols have been made, have been told of their end, and are alive.
#[derive(Default)]
struct Counts {
    made: Cell<usize>,
    lost: Cell<usize>,
    failed: Cell<usize>,
    alive: Cell<usize>,
}

/// Sends back what it gets, and is counted.
struct Echo {
    counts: Rc<Counts>,
    /// The circle that a protocol must not be able to keep.
    transport: Option<Rc<dyn Transport>>,
}

impl Echo {
    fn new(counts: &Rc<Counts>) -> Self {
        counts.alive.set(counts.alive.get() + 1);
        Self {
            counts: Rc::clone(counts),
            transport: None,
        }
    }

    fn factory(counts: &Rc<Counts>) -> impl Fn() -> Self + use<> {
        let counts = Rc::clone(counts);
        move || Self::new(&counts)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.counts.alive.set(self.counts.alive.get() - 1);
    }
}

impl Protocol for Echo {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.transport = Some(Rc::clone(transport));
        self.counts.made.set(self.counts.made.get() + 1);
    }
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        transport.write(data);
    }
    fn connection_lost(&mut self, _: &Rc<dyn Transport>, error: Option<&io::Error>) {
        self.counts.lost.set(self.counts.lost.get() + 1);
        if error.is_some() {
            self.counts.failed.set(self.counts.failed.get() + 1);
        }
    }
}

#[track_caller]
fn run<F: Future>(event_loop: &EventLoop, future: F) -> F::Output {
    let done = event_loop.run_until_complete(timeout(PATIENCE, future));
    done.unwrap().expect("it hangs")
}

/// Makes turns until something is so.
#[track_caller]
fn turn_until(event_loop: &EventLoop, so: impl Fn() -> bool) {
    run(event_loop, async {
        while !so() {
            coloop::yield_now().await;
        }
    });
}

#[track_caller]
fn serve(event_loop: &EventLoop, counts: &Rc<Counts>) -> (Server, SocketAddr) {
    let server = event_loop.create_server(Echo::factory(counts), ("127.0.0.1", 0));
    let server = run(event_loop, server.backlog(1_000).into_future()).unwrap();
    let at = server.sockets()[0].local_addr().as_inet().unwrap();
    (server, at)
}

fn reset(socket: TcpStream) {
    SockRef::from(&socket).set_linger(Some(ZERO)).unwrap();
}

/// How much the system watches for the loops of this process.
fn watched_by_the_system() -> usize {
    let pollers = descriptors()
        .into_iter()
        .filter(|(_, target)| target.contains("eventpoll"));
    let watched = pollers.map(|(number, _)| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        info.lines().filter(|line| line.starts_with("tfd:")).count()
    });
    watched.sum()
}

/// The threads that look names up.
fn resolvers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names
        .filter(|name| name.starts_with("coloop-resolve"))
        .count()
}

/// A socket that is bound and does not listen, and its address.
fn refusing() -> (Socket, SocketAddr) {
    let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

// ---- Nothing half-made is left -----------------------------------------------------------------

/// Makes something that is an error.
type Attempt = Box<dyn FnOnce(&LoopHandle) -> LocalBoxFuture<'static, io::Result<()>>>;

fn connects(endpoint: impl Into<Endpoint>) -> Attempt {
    let endpoint = endpoint.into();
    Box::new(|handle| {
        let made = handle.create_connection(|| Echo::new(&Rc::default()), endpoint);
        Box::pin(async { made.await.map(drop) })
    })
}

fn connects_from(local: impl Into<Endpoint>, to: SocketAddr) -> Attempt {
    let local = local.into();
    Box::new(move |handle| {
        let made = handle.create_connection(|| Echo::new(&Rc::default()), to);
        Box::pin(async { made.local_addr(local).await.map(drop) })
    })
}

fn serves(endpoint: impl Into<Endpoint>) -> Attempt {
    let endpoint = endpoint.into();
    Box::new(|handle| {
        let made = handle.create_server(|| Echo::new(&Rc::default()), endpoint);
        Box::pin(async { made.await.map(drop) })
    })
}

fn takes_over(socket: OwnedFd) -> [Attempt; 3] {
    let (other, third) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
    [
        Box::new(|handle| {
            let made = handle.create_connection_on(|| Echo::new(&Rc::default()), socket);
            Box::pin(async { made.await.map(drop) })
        }),
        Box::new(|handle| {
            let made = handle.connect_accepted_socket(|| Echo::new(&Rc::default()), other);
            Box::pin(async { made.await.map(drop) })
        }),
        Box::new(|handle| {
            let made = handle.create_server_on(|| Echo::new(&Rc::default()), third);
            Box::pin(async { made.await.map(drop) })
        }),
    ]
}

fn attempts(listener: SocketAddr, refuses: SocketAddr) -> Vec<Attempt> {
    let port = listener.port();
    let mut attempts = vec![
        connects(refuses),
        connects(vec![refuses, refuses]),
        connects(vec![]),
        connects(""),
        connects("127.0.0.1"),
        connects("[::1"),
        connects(80),
        connects((["a", "b"], 80)),
        connects(([""; 0], 80)),
        connects(("127.0.0.1", "65536")),
        connects(("local\0host", 80)),
        connects(("localhost", "no-such-service")),
        connects_from(refuses, listener),
        connects_from("127.0.0.1", listener),
        connects_from("[::1]:0", listener),
        serves(listener),
        serves((["127.0.0.2", "127.0.0.3", "127.0.0.1"], port)),
        serves(([""; 0], 80)),
        serves("localhost"),
        serves(("127.0.0.1", "no-such-service")),
        serves((["127.0.0.2", "local..host"], 0)),
    ];
    attempts.extend(takes_over(fs::File::open("/dev/null").unwrap().into()));
    let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    attempts.extend(takes_over(datagrams.into()));
    // Each is right for one or two of the three, which are left out.
    let [_, _, serves] = takes_over(UnixStream::pair().unwrap().0.into());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let [connects, accepts, _] = takes_over(listener.into());
    attempts.extend([serves, connects, accepts]);
    attempts
}

#[test]
fn what_cannot_be_made_leaves_no_descriptor_and_no_registration() {
    in_a_process(
        "what_cannot_be_made_leaves_no_descriptor_and_no_registration",
        || {
            let (listener, (_bound, refuses)) =
                (TcpListener::bind("127.0.0.1:0").unwrap(), refusing());
            let at = listener.local_addr().unwrap();
            let event_loop = EventLoop::new().unwrap();
            // The first look-up opens what it needs.
            drop(run(
                &event_loop,
                connects(("localhost", "no-such-service"))(&event_loop),
            ));
            let before = (descriptors(), watched_by_the_system());
            for round in 0..3 {
                for (number, attempt) in attempts(at, refuses).into_iter().enumerate() {
                    let result = run(&event_loop, attempt(&event_loop));
                    assert!(result.is_err(), "number {number} is no error");
                }
                let after = (descriptors(), watched_by_the_system());
                assert_eq!(after, before, "round {round}");
                assert!(event_loop.all_tasks().is_empty());
            }
            // And each of them dropped before it is polled, and after it was polled once.
            for polls in [false, true] {
                for attempt in attempts(at, refuses) {
                    let mut future = attempt(&event_loop);
                    if polls {
                        let mut cx = PollContext::from_waker(Waker::noop());
                        let _ = future.as_mut().poll(&mut cx);
                    }
                }
                let after = (descriptors(), watched_by_the_system());
                assert_eq!(after, before, "polled: {polls}");
            }
        },
    );
}

#[test]
fn a_literal_address_starts_no_thread() {
    in_a_process("a_literal_address_starts_no_thread", || {
        let event_loop = EventLoop::new().unwrap();
        let counts = Rc::default();
        run(&event_loop, async {
            let mut hosts = vec!["127.0.0.1".to_owned()];
            if TcpListener::bind("[::1]:0").is_ok() {
                hosts.push("::1".to_owned());
            }
            let server = current().create_server(Echo::factory(&counts), (hosts, 0));
            let server = server.await.unwrap();
            for socket in server.sockets() {
                let at = socket.local_addr().as_inet().unwrap();
                let (ip, port) = (at.ip().to_string(), at.port());
                for endpoint in [
                    Endpoint::from(at),
                    Endpoint::from(vec![at]),
                    Endpoint::from(at.to_string()),
                    Endpoint::from((at.ip(), port)),
                    Endpoint::from((ip.clone(), port)),
                    Endpoint::from((ip.clone(), port.to_string())),
                ] {
                    let connecting = current().create_connection(Echo::factory(&counts), endpoint);
                    let local = Endpoint::from((ip.clone(), 0));
                    let (transport, _) = connecting.local_addr(local).await.unwrap();
                    transport.abort();
                }
            }
            server.close();
            server.wait_closed().await;
        });
        assert_eq!(resolvers(), 0);
        let named = event_loop.create_server(Echo::factory(&counts), ("localhost", 0));
        run(&event_loop, named.into_future()).unwrap().close();
        assert_eq!(resolvers(), 1, "a name does");
    });
}

// ---- Giving up ---------------------------------------------------------------------------------

/// Polls a future so many times, then drops it; `None` says that it was not complete by then.
struct Impatient<'a, T> {
    future: Option<LocalBoxFuture<'a, T>>,
    polls: usize,
}

impl<T> Future for Impatient<'_, T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Option<T>> {
        if self.polls == 0 {
            self.future = None;
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let future = self.future.as_mut().unwrap();
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.polls == 0 => {
                self.future = None;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[test]
fn fault_d9_a_connection_that_is_given_up_at_any_await_leaves_nothing() {
    in_a_process(
        "fault_d9_a_connection_that_is_given_up_at_any_await_leaves_nothing",
        || {
            let event_loop = EventLoop::new().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let at = listener.local_addr().unwrap();
            listener.set_nonblocking(true).unwrap();
            // Opens what the resolver needs.
            let named = connects(("localhost", "no-such-service"));
            run(&event_loop, named(&event_loop)).unwrap_err();
            let counts: Rc<Counts> = Rc::default();
            let before = (descriptors(), watched_by_the_system());
            for kind in 0..4 {
                let mut polls = 0;
                loop {
                    let mut complete = false;
                    for _ in 0..50 {
                        complete = give_up(&event_loop, kind, polls, at, &counts);
                        while listener.accept().is_ok() {}
                        assert_eq!(
                            counts.made.get(),
                            counts.lost.get(),
                            "{kind}, {polls} polls"
                        );
                    }
                    let after = (descriptors(), watched_by_the_system());
                    assert_eq!(after, before, "{kind}, {polls} polls");
                    assert_eq!(counts.alive.get(), 0, "{kind}, {polls} polls");
                    assert!(event_loop.all_tasks().is_empty());
                    assert!(event_loop.is_idle());
                    if complete {
                        break;
                    }
                    polls += 1;
                }
                let least = [3, 3, 4, 2][kind];
                assert!(
                    polls >= least,
                    "kind {kind} is complete after {polls} polls"
                );
            }
        },
    );
}

/// Connects, gives up after so many polls, and lets the loop come to rest; says whether the
/// connection was made.
fn give_up(
    event_loop: &EventLoop,
    kind: usize,
    polls: usize,
    at: SocketAddr,
    counts: &Rc<Counts>,
) -> bool {
    let factory = Echo::factory(counts);
    let (_bound, refuses) = refusing();
    let future: LocalBoxFuture<'_, io::Result<Rc<dyn Transport>>> = match kind {
        0 => {
            let made = event_loop.create_connection(factory, at);
            Box::pin(async { Ok(made.await?.0) })
        }
        // The first address is refused before the second is tried.
        1 => {
            let made = event_loop.create_connection(factory, vec![refuses, at]);
            Box::pin(async { Ok(made.await?.0) })
        }
        2 => {
            let made = event_loop.create_connection(factory, ("localhost", at.port()));
            let made = made.family(Family::V4).local_addr(("localhost", 0));
            Box::pin(async { Ok(made.await?.0) })
        }
        _ => {
            let socket = TcpStream::connect(at).unwrap();
            let made = event_loop.create_connection_on(factory, socket);
            Box::pin(async { Ok(made.await?.0) })
        }
    };
    let impatient = Impatient {
        future: Some(future),
        polls,
    };
    let complete = run(event_loop, impatient);
    let made = complete.is_some();
    if let Some(transport) = complete {
        transport.unwrap().abort();
    }
    turn_until(event_loop, || {
        event_loop.is_idle() && counts.made.get() == counts.lost.get()
    });
    made
}

// ---- Many --------------------------------------------------------------------------------------

#[test]
fn fault_a17_ten_thousand_connections_one_after_the_other_leave_nothing() {
    in_a_process(
        "fault_a17_ten_thousand_connections_one_after_the_other_leave_nothing",
        || {
            let event_loop = EventLoop::new().unwrap();
            let (server_side, client_side): (Rc<Counts>, Rc<Counts>) = Default::default();
            let (server, at) = serve(&event_loop, &server_side);
            let before = (descriptors(), watched_by_the_system());
            for number in 0..10_000 {
                run(&event_loop, async {
                    let factory = Echo::factory(&client_side);
                    let connecting = current().create_connection(factory, at);
                    let (transport, handle) = connecting.await.unwrap();
                    // Each ends in one of the ways in which a connection can end.
                    match number % 4 {
                        0 => transport.close(),
                        1 => transport.abort(),
                        2 => server.abort_clients(),
                        _ => {
                            transport.write(b"x");
                            transport.abort();
                        }
                    }
                    if number % 4 == 2 {
                        // It may not have been accepted yet.
                        while server_side.lost.get() <= number {
                            server.abort_clients();
                            coloop::yield_now().await;
                        }
                    }
                    let (protocol, _) = handle.closed().await;
                    drop(protocol);
                });
            }
            turn_until(&event_loop, || server_side.lost.get() == 10_000);
            for counts in [&server_side, &client_side] {
                let counts = (counts.made.get(), counts.lost.get(), counts.alive.get());
                assert_eq!(counts, (10_000, 10_000, 0));
            }
            let after = (descriptors(), watched_by_the_system());
            assert_eq!(after, before);
            assert!(event_loop.all_tasks().is_empty());
            server.close();
            run(&event_loop, server.wait_closed());
        },
    );
}

#[test]
fn fault_d2_twenty_thousand_resets() {
    in_a_process("fault_d2_twenty_thousand_resets", || {
        const RESETS: usize = 20_000;
        let event_loop = EventLoop::new().unwrap();
        let counts: Rc<Counts> = Rc::default();
        let (server, at) = serve(&event_loop, &counts);
        let mut healthy = TcpStream::connect(at).unwrap();
        turn_until(&event_loop, || counts.made.get() == 1);
        let before = (descriptors(), watched_by_the_system());
        let mut turns = 0;
        for batch in 0..RESETS / 50 {
            for number in 0..50 {
                let mut client = TcpStream::connect(at).unwrap();
                if number % 2 == 0 {
                    client.write_all(b"some of it").unwrap();
                }
                reset(client);
            }
            // Meanwhile somebody is served as ever.
            healthy.write_all(b"ping").unwrap();
            while counts.lost.get() < 50 * (batch + 1) {
                event_loop.turn(Some(PATIENCE)).unwrap();
                turns += 1;
            }
            healthy.read_exact(&mut [0; 4]).unwrap();
        }
        assert!(turns <= RESETS, "{turns} turns for {RESETS} resets");
        let lost = (counts.lost.get(), counts.failed.get(), counts.alive.get());
        assert_eq!(lost, (RESETS, RESETS, 1));
        let after = (descriptors(), watched_by_the_system());
        assert_eq!(after, before);
        assert!(server.is_serving());
        drop(healthy);
        turn_until(&event_loop, || counts.alive.get() == 0);
    });
}

#[test]
fn fault_d18_a_sibling_in_another_process_shares_the_port() {
    in_a_process(
        "fault_d18_a_sibling_in_another_process_shares_the_port",
        || {
            let event_loop = EventLoop::new().unwrap();
            let counts: Rc<Counts> = Rc::default();
            let serve = |event_loop: &EventLoop, counts: &Rc<Counts>, at: Endpoint| {
                let server = event_loop
                    .create_server(Echo::factory(counts), at)
                    .reuse_port();
                run(event_loop, server.into_future()).unwrap()
            };
            let server = serve(&event_loop, &counts, ("127.0.0.1", 0).into());
            let at = server.sockets()[0].local_addr().as_inet().unwrap();
            forked("a sibling", || {
                let event_loop = EventLoop::new().unwrap();
                let counts: Rc<Counts> = Rc::default();
                let sibling = serve(&event_loop, &counts, at.into());
                // Some go to the parent, which does not look; they end with this process.
                let mut clients = Vec::new();
                while counts.made.get() == 0 {
                    clients.push(TcpStream::connect(at).unwrap());
                    assert!(clients.len() < 500, "all go to the parent");
                    event_loop.turn(Some(ZERO)).unwrap();
                }
                sibling.close();
                sibling.abort_clients();
                run(&event_loop, sibling.wait_closed());
                assert_eq!(
                    (counts.lost.get(), counts.alive.get()),
                    (counts.made.get(), 0)
                );
            });
            // The parent's registrations are as they were, and so is what it has in its queue.
            let mut client = TcpStream::connect(at).unwrap();
            client.write_all(b"hello").unwrap();
            client.set_nonblocking(true).unwrap();
            let heard = RefCell::new(client);
            turn_until(&event_loop, || {
                heard.borrow_mut().read_exact(&mut [0; 5]).is_ok()
            });
            server.close();
            drop(heard);
            run(&event_loop, server.wait_closed());
            assert_eq!(
                (counts.lost.get(), counts.alive.get()),
                (counts.made.get(), 0)
            );
        },
    );
}

// ---- Limits ------------------------------------------------------------------------------------

/// Runs the rest of this process with so many descriptors at most.
fn limit_descriptors(most: u64) {
    let limit = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: Some(most),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Moves a descriptor to a number out of the way.
fn out_of_the_way(socket: TcpStream) -> TcpStream {
    rustix::io::fcntl_dupfd_cloexec(&socket, 500)
        .unwrap()
        .into()
}

#[test]
fn fault_d10_a_flood_with_few_descriptors_left_is_served_in_the_end() {
    in_a_process(
        "fault_d10_a_flood_with_few_descriptors_left_is_served_in_the_end",
        || {
            const CLIENTS: usize = 60;
            let event_loop = EventLoop::new().unwrap();
            let reports = Rc::new(RefCell::new(Vec::new()));
            let log = Rc::clone(&reports);
            event_loop.set_exception_handler(move |_, context| {
                log.borrow_mut().push(context.to_string());
            });
            let counts: Rc<Counts> = Rc::default();
            let (server, at) = serve(&event_loop, &counts);
            let mut healthy = out_of_the_way(TcpStream::connect(at).unwrap());
            turn_until(&event_loop, || counts.made.get() == 1);
            let mut clients: Vec<_> = (0..CLIENTS)
                .map(|_| {
                    let mut client = out_of_the_way(TcpStream::connect(at).unwrap());
                    client.write_all(b"hello").unwrap();
                    client.set_nonblocking(true).unwrap();
                    client
                })
                .collect();
            limit_descriptors(32);

            let (mut turns, mut most, mut pinged) = (0, 0, 0);
            while !clients.is_empty() {
                assert!(turns < 50 * CLIENTS, "it spins");
                // In each pause somebody is served as ever.
                let pings = reports.borrow().len() > pinged;
                if pings {
                    pinged += 1;
                    healthy.write_all(b"ping").unwrap();
                }
                event_loop.turn(Some(PATIENCE)).unwrap();
                turns += 1;
                most = most.max(counts.made.get() - counts.lost.get());
                if pings {
                    healthy.read_exact(&mut [0; 4]).unwrap();
                }
                // Whoever has his answer makes room, but not before there is none.
                if !reports.borrow().is_empty() {
                    clients.retain_mut(|client| client.read(&mut [0; 5]).is_err());
                }
            }
            assert!(pinged > 0);
            assert!(most < 32, "{most} at a time");
            turn_until(&event_loop, || counts.lost.get() == CLIENTS);
            let reports = reports.take();
            assert!(
                !reports.is_empty() && reports.len() <= CLIENTS,
                "{reports:?}"
            );
            for report in &reports {
                assert!(report.contains("accept failed"), "{report}");
                assert!(report.contains("Too many open files"), "{report}");
            }
            assert!(server.is_serving());
        },
    );
}

// ---- Signals -----------------------------------------------------------------------------------

/// Lets writes to nobody end the process, as they do by default.
#[expect(unsafe_code, reason = "no crate sets the default of a signal")]
fn let_sigpipe_kill() {
    // SAFETY: the default needs no handler.
    let before = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    assert_ne!(before, libc::SIG_ERR);
}

#[test]
fn fault_d4_writing_to_a_peer_that_has_gone_is_no_signal() {
    in_a_process(
        "fault_d4_writing_to_a_peer_that_has_gone_is_no_signal",
        || {
            let_sigpipe_kill();
            write_to_peers_that_have_gone();
        },
    );
}

/// Writes by every way there is to sockets whose peers have gone.
fn write_to_peers_that_have_gone() {
    let event_loop = EventLoop::new().unwrap();
    for unix in [false, true] {
        for way in 0..4 {
            let (near, far): (OwnedFd, OwnedFd) = if unix {
                let (near, far) = UnixStream::pair().unwrap();
                (near.into(), far.into())
            } else {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                (near.into(), listener.accept().unwrap().0.into())
            };
            let counts: Rc<Counts> = Rc::default();
            let connecting = event_loop.create_connection_on(Echo::factory(&counts), near);
            let (transport, handle) = run(&event_loop, connecting.into_future()).unwrap();
            transport.pause_reading();
            if way == 2 {
                // So that the writing comes from the outbox.
                while !transport.is_writing_paused() {
                    transport.write(&[b'x'; 65_536]);
                }
            }
            let far = Socket::from(far);
            far.set_linger(Some(ZERO)).unwrap();
            drop(far);
            // The first may be told of the reset; what comes then would be a signal.
            transport.with_fd(&mut |fd| drop(SockRef::from(&fd).take_error()));
            match way {
                0 => transport.write(b"hello"),
                1 => transport.write_vectored(&[io::IoSlice::new(b"hel"), io::IoSlice::new(b"lo")]),
                2 => transport.write(b"behind the rest"),
                _ => drop(transport.try_write(b"hello")),
            }
            let (_echo, error) = run(&event_loop, handle.closed());
            assert_eq!(
                error.unwrap().kind(),
                ErrorKind::BrokenPipe,
                "unix: {unix}, {way}"
            );
            assert_eq!((counts.made.get(), counts.lost.get()), (1, 1));
        }
    }
}

/// Not a test of its own: what is traced.
#[test]
fn helper_writes_to_peers_that_have_gone() {
    write_to_peers_that_have_gone();
}

/// Runs a helper behind `strace` with these options, and gives the lines that that has written;
/// `None` where it cannot be used.
fn traced(helper: &str, options: &[&str]) -> Option<(Ended, String)> {
    // It says so, and why.
    inject_into("helper_does_nothing", &["epoll_pwait2:error=ENOSYS"], &[])?;
    let log = env::temp_dir().join(format!("coloop-{helper}-{}.strace", std::process::id()));
    let mut words = vec!["strace", "-f", "-qq", "-o", log.to_str().unwrap()];
    words.extend(options);
    let ended = run_child(helper, &words);
    let calls = fs::read_to_string(&log).unwrap();
    fs::remove_file(&log).unwrap();
    Some((ended, calls))
}

/// Not a test of its own: it ends.
#[test]
fn helper_does_nothing() {}

#[test]
fn fault_d4_every_write_to_a_socket_forbids_the_signal() {
    let helper = "helper_writes_to_peers_that_have_gone";
    let Some((ended, calls)) = traced(helper, &["-e", "trace=sendto,sendmsg,writev"]) else {
        return;
    };
    assert!(ended.success, "{ended:?}");
    let sends = calls.lines().filter(|call| call.contains("send"));
    let mut count = 0;
    for call in sends {
        assert!(call.contains("MSG_NOSIGNAL"), "{call}");
        count += 1;
    }
    assert!(count > 8, "{calls}");
}
