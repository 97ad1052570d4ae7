//! System calls that fail: connecting, listening, accepting, registering.
//!
//! Faults are injected by `strace` into helpers, which are tests of this binary run as a child.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use coloop::{EventLoop, Protocol, ProtocolHandle, RunError, Server, Transport, current};

use crate::alone::{PATIENCE, descriptors, inject_into, is_child, run_child};
use crate::{Counts, Echo, connects, run, serve, turn_until, watched_by_the_system};

/// Says something, and that this was all; then it waits for the answer and for the end.
struct Client {
    heard: Vec<u8>,
}

impl Protocol for Client {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        transport.write(b"hello");
    }
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        self.heard.extend(data);
        if self.heard.len() >= 5 && transport.write_eof().is_err() {
            transport.abort();
        }
    }
}

/// What went wrong, as the helpers say it.
fn told(what: &str, error: &io::Error) -> String {
    format!("{what}: {:?}", error.kind())
}

/// Makes a server of two sockets and a client, has something echoed, does the same on a socket of
/// its own, and ends everything.
fn serve_and_connect(say: &Rc<RefCell<Vec<String>>>) -> Result<(), String> {
    let event_loop = EventLoop::new().map_err(|error| told("no loop", &error))?;
    let log = Rc::clone(say);
    event_loop.set_exception_handler(move |_, context| {
        let error = context.error().map(str::to_owned).unwrap_or_default();
        log.borrow_mut()
            .push(format!("report: {}: {error}", context.message()));
    });
    let counts: Rc<Counts> = Rc::default();
    let registered = watched_by_the_system();
    let done = event_loop.run_until_complete(async {
        let hosts = (["127.0.0.1", "127.0.0.2"], 0);
        let server = current()
            .create_server(Echo::factory(&counts), hosts)
            .keep_alive();
        let server = server.await.map_err(|error| told("no server", &error))?;
        let echoed = use_server(&server).await;
        server.close();
        server.abort_clients();
        server.wait_closed().await;
        echoed
    });
    match done {
        Err(RunError::Io(error)) => return Err(told("run", &error)),
        Err(error) => panic!("{error}"),
        Ok(done) => done?,
    }
    assert_eq!(watched_by_the_system(), registered);
    drop(event_loop);
    assert_eq!(
        (counts.made.get(), counts.alive.get()),
        (counts.lost.get(), 0)
    );
    Ok(())
}

async fn use_server(server: &Server) -> Result<(), String> {
    for socket in server.sockets() {
        let at = socket.local_addr().as_inet().unwrap();
        let client = || Client { heard: Vec::new() };
        let connecting = current()
            .create_connection(client, at)
            .local_addr(("127.0.0.1", 0));
        let (_, handle) = connecting
            .await
            .map_err(|error| told("no connection", &error))?;
        echoed(handle).await?;
    }
    let (near, far) = UnixStream::pair().unwrap();
    let counts = Rc::default();
    let accepting = current().connect_accepted_socket(Echo::factory(&counts), far);
    let accepted = accepting
        .await
        .map_err(|error| told("not accepted", &error))?;
    let connecting = current().create_connection_on(|| Client { heard: Vec::new() }, near);
    let client = match connecting.await {
        Ok((_, handle)) => echoed(handle).await,
        Err(error) => Err(told("not taken over", &error)),
    };
    accepted.0.abort();
    accepted.1.closed().await;
    client
}

async fn echoed(handle: ProtocolHandle<Client>) -> Result<(), String> {
    match handle.closed().await {
        (_, Some(error)) => Err(told("lost", &error)),
        (client, None) if client.heard == b"hello" => Ok(()),
        (client, None) => Err(format!("only {} bytes came back", client.heard.len())),
    }
}

const SERVES_AND_CONNECTS: &str = "injected::helper_serves_and_connects";

/// Not a test of its own: what the faults are injected into. It takes every error that is an `Err`,
/// begins anew after that, and looks whether everything is given back.
#[test]
fn helper_serves_and_connects() {
    if !is_child(SERVES_AND_CONNECTS) {
        return;
    }
    let said: Rc<RefCell<Vec<String>>> = Rc::default();
    let before = descriptors();
    for attempt in 0.. {
        let done = serve_and_connect(&said);
        assert_eq!(descriptors(), before, "after {done:?}");
        match done {
            Ok(()) => break,
            Err(error) => said.borrow_mut().push(error),
        }
        assert!(attempt < 5, "again and again: {said:?}");
    }
    // At the end, in one piece: the calls that it takes to write are not under test.
    println!();
    for line in said.take() {
        println!("- {line}");
    }
    println!("- content");
}

/// Runs the helper under one fault, and gives what it has said and how often the call has failed.
#[track_caller]
fn inject(fault: &str) -> Option<(Vec<String>, usize)> {
    let injected = inject_into(SERVES_AND_CONNECTS, &[fault], &[])?;
    injected.assert_sound(&[fault]);
    let said = injected.said().into_iter().map(str::to_owned).collect();
    Some((said, injected.count))
}

#[test]
fn fault_d6_a_connect_that_fails_is_an_error_of_that_kind() {
    let kinds = [
        ("ECONNREFUSED", ErrorKind::ConnectionRefused),
        ("ENETUNREACH", ErrorKind::NetworkUnreachable),
        ("EHOSTUNREACH", ErrorKind::HostUnreachable),
        ("ETIMEDOUT", ErrorKind::TimedOut),
        ("EADDRNOTAVAIL", ErrorKind::AddrNotAvailable),
        ("EACCES", ErrorKind::PermissionDenied),
        // Of a TCP socket that is no "in progress".
        ("EAGAIN", ErrorKind::WouldBlock),
    ];
    for (error, kind) in kinds {
        let Some((said, count)) = inject(&format!("connect:error={error}:when=1")) else {
            return;
        };
        assert_eq!(count, 1, "{error}");
        assert_eq!(
            said,
            [format!("no connection: {kind:?}"), "content".into()],
            "{error}"
        );
    }
    let Some((said, count)) = inject("connect:error=EINTR:when=1..3") else {
        return;
    };
    assert_eq!(
        (said, count),
        (vec!["content".to_owned()], 3),
        "I8: it is tried again"
    );
}

#[test]
fn fault_d6_a_network_that_leads_nowhere() {
    // Networks that are for documentation alone, each with its own way to be nowhere.
    const SETUP: &str = "ip link set lo up && ip route add unreachable 192.0.2.0/24 \
        && ip route add prohibit 198.51.100.0/24 \
        && echo 1024 1025 >/proc/sys/net/ipv4/ip_local_port_range";
    let apart = |then: &str| {
        vec!["unshare", "-n", "sh", "-c"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("{SETUP} && {then}")])
            .collect::<Vec<_>>()
    };
    let probe = apart("true");
    let probe = Command::new(&probe[0])
        .args(&probe[1..])
        .stderr(Stdio::null())
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: a network of its own takes root, unshare and ip");
        return;
    }
    let words = apart("exec \"$0\" \"$@\"");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ended = run_child("injected::helper_in_a_network_that_leads_nowhere", &words);
    assert!(ended.success, "{}{}", ended.stdout, ended.stderr);
    let said: Vec<_> = ended
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("- "))
        .collect();
    let expected = [
        "192.0.2.1:7: HostUnreachable",
        "198.51.100.1:7: PermissionDenied",
        "203.0.113.1:7: NetworkUnreachable",
        "no port is left: AddrNotAvailable",
    ];
    assert_eq!(said, expected);
}

/// Not a test of its own: it runs in a network that has been made for it.
#[test]
fn helper_in_a_network_that_leads_nowhere() {
    if !is_child("injected::helper_in_a_network_that_leads_nowhere") {
        return;
    }
    println!();
    let event_loop = EventLoop::new().unwrap();
    let before = descriptors();
    for address in ["192.0.2.1:7", "198.51.100.1:7", "203.0.113.1:7"] {
        let error = run(&event_loop, connects(address)(&event_loop)).unwrap_err();
        println!("- {address}: {:?}", error.kind());
        assert_eq!(descriptors(), before);
    }
    let listener = TcpListener::bind("127.0.0.1:9").unwrap();
    let at = listener.local_addr().unwrap();
    let mut kept = Vec::new();
    let error = loop {
        let connecting = event_loop.create_connection(|| Echo::new(&Rc::default()), at);
        match run(&event_loop, connecting.into_future()) {
            Ok((transport, _)) => kept.push(transport),
            Err(error) => break error,
        }
        assert!(kept.len() <= 2);
    };
    println!("- no port is left: {:?}", error.kind());
}

#[test]
fn fault_c12_a_registration_that_fails_is_an_error_or_a_loss_and_leaves_nothing() {
    let mut told = BTreeSet::new();
    for (error, kind) in [
        ("ENOSPC", ErrorKind::StorageFull),
        ("ENOMEM", ErrorKind::OutOfMemory),
    ] {
        for k in 1.. {
            let fault = format!("epoll_ctl:error={error}:when={k}");
            let Some((mut said, count)) = inject(&fault) else {
                return;
            };
            assert_eq!(said.pop().as_deref(), Some("content"), "{fault}");
            if count == 0 {
                assert_eq!(said, Vec::<String>::new(), "{fault}");
                assert!(k > 10, "the helper makes more calls than {k}");
                break;
            }
            assert!(said.len() <= 1, "{fault}: {said:?}");
            if let Some(said) = said.pop() {
                // It was the other end's; or one that takes something away, which only here fails.
                let others = [
                    "only 0 bytes",
                    "lost: Conn",
                    "lost: Broken",
                    "lost: Already",
                ];
                let others = others.iter().any(|other| said.starts_with(other));
                assert!(
                    others || said.ends_with(&format!("{kind:?}")),
                    "{fault}: {said}"
                );
                told.insert(said.split(':').next().unwrap().to_owned());
            }
        }
    }
    for what in [
        "no loop",
        "no server",
        "no connection",
        "lost",
        "only 0 bytes came back",
    ] {
        assert!(told.contains(what), "{what}: {told:?}");
    }
}

/// Not a test of its own: a server of which accepting is made to fail when the second client comes.
#[test]
fn helper_accepts() {
    if !is_child("injected::helper_accepts") {
        return;
    }
    let event_loop = EventLoop::new().unwrap();
    let said: Rc<RefCell<Vec<String>>> = Rc::default();
    let log = Rc::clone(&said);
    event_loop.set_exception_handler(move |_, context| {
        log.borrow_mut().push(context.to_string());
    });
    let counts: Rc<Counts> = Rc::default();
    let (server, at) = serve(&event_loop, &counts);
    let mut healthy = TcpStream::connect(at).unwrap();
    turn_until(&event_loop, || counts.made.get() == 1);
    let before = event_loop.time();
    let mut second = TcpStream::connect(at).unwrap();
    let mut turns = 0;
    let mut reports = 0;
    while counts.made.get() < 2 {
        event_loop.turn(Some(PATIENCE)).unwrap();
        turns += 1;
        if said.borrow().len() > reports {
            reports = said.borrow().len();
            // The retry, and nothing else, is what the loop waits for.
            assert!(event_loop.deadline().is_some());
            healthy.write_all(b"ping").unwrap();
            event_loop.turn(Some(PATIENCE)).unwrap();
            healthy.read_exact(&mut [0; 4]).unwrap();
            assert_eq!((counts.made.get(), server.is_serving()), (1, true));
        }
        assert!(turns < 100, "it spins");
    }
    let paused = event_loop.time() - before;
    assert!(
        paused >= Duration::from_secs(reports as u64),
        "it accepts too early"
    );
    assert!(event_loop.deadline().is_none(), "a retry is left");
    second.write_all(b"pong").unwrap();
    event_loop.turn(Some(PATIENCE)).unwrap();
    second.read_exact(&mut [0; 4]).unwrap();
    // And what was behind it.
    drop(TcpStream::connect(at).unwrap());
    turn_until(&event_loop, || counts.lost.get() == 1);
    server.close();
    println!();
    for line in said.take() {
        println!("- {line}");
    }
    println!("- content");
}

#[test]
fn c_274_fault_d10_a_system_without_room_is_reported_and_asked_again_a_second_later() {
    for (error, text) in [
        ("EMFILE", "Too many open files (os error 24)"),
        ("ENFILE", "Too many open files in system (os error 23)"),
        ("ENOBUFS", "No buffer space available (os error 105)"),
        ("ENOMEM", "Cannot allocate memory (os error 12)"),
    ] {
        // The first accept gives the healthy one, the second says that there are no more.
        let when = if error == "EMFILE" { "3..4" } else { "3" };
        let fault = format!("accept4:error={error}:when={when}");
        let Some(injected) = inject_into("injected::helper_accepts", &[&fault], &[]) else {
            return;
        };
        injected.assert_sound(&[&fault]);
        let said = injected.said();
        let (last, reports) = said.split_last().unwrap();
        assert_eq!(*last, "content");
        assert_eq!(
            reports.len(),
            injected.count,
            "one report for each: {said:?}"
        );
        assert!(injected.count > 0);
        for report in reports {
            assert!(
                report.contains("accept failed") && report.contains(text),
                "{report}"
            );
        }
    }
}

#[test]
fn c_273_fault_d10_a_connection_that_was_aborted_is_passed_over() {
    for error in [
        "ECONNABORTED",
        "EPROTO",
        "EPERM",
        "EINTR",
        "ENETDOWN",
        "EHOSTUNREACH",
    ] {
        let fault = format!("accept4:error={error}:when=3..4");
        let Some(injected) = inject_into("injected::helper_accepts", &[&fault], &[]) else {
            return;
        };
        injected.assert_sound(&[&fault]);
        assert_eq!(injected.said(), ["content"], "{error}");
        assert_eq!(injected.count, 2, "{error}");
    }
}
