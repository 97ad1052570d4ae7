//! Client connections, on real sockets: the order of events, options, errors.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;

use coloop::{
    Address, ConnectErrors, Endpoint, Eof, Family, LookupFlags, Protocol, ProtocolHandle,
    Transport, buffered, current,
};
use socket2::{Domain, SockRef, Socket, Type};

use crate::errors::reports;
use crate::sockets::{
    PATIENCE, Peer, Scribe, has_v6, listener, look, refusing, run, run_reporting, scribe, tcp_pair,
    turns, until,
};
use crate::verbs::{Trace, builder, one_turn, real_loop};

type Pair = (Rc<dyn Transport>, ProtocolHandle<Scribe>);

/// What became of an attempt that was to fail.
#[track_caller]
fn refused<T>(result: io::Result<T>) -> (ErrorKind, String) {
    match result {
        Ok(_) => panic!("it is no error"),
        Err(error) => (error.kind(), error.to_string()),
    }
}

// ---- The order of events -------------------------------------------------------------------------

#[test]
fn a_connection_is_made_and_then_told_and_then_given_to_the_caller() {
    let trace = Trace::new();
    run(async {
        let (listener, address) = listener();
        let log = trace.clone();
        let factory = move || {
            log.log("factory");
            Scribe::new(&log)
        };
        let (transport, scribe) = current().create_connection(factory, address).await.unwrap();
        trace.log("caller");
        let peer = Peer::of(listener.accept().unwrap().0);
        assert_eq!(transport.peer_addr(), Some(Address::Inet(address)));
        let ours = peer.socket().peer_addr().unwrap().as_socket().unwrap();
        assert_eq!(transport.local_addr(), Some(Address::Inet(ours)));
        transport.write(b"to the peer");
        assert_eq!(peer.hear(11).await, "to the peer");
        peer.say("and back").await;
        until(|| trace.has("data and back")).await;
        drop(peer);
        let (_scribe, error) = scribe.closed().await;
        assert!(error.is_none());
    });
    trace.assert(&["factory", "made", "caller", "data and back", "eof", "lost"]);
}

#[test]
fn c_223_the_caller_resumes_before_the_first_data() {
    let trace = Trace::new();
    run(async {
        let (near, mut far) = tcp_pair();
        far.write_all(b"early").unwrap();
        let connecting = current().create_connection_on(scribe(&trace), near);
        let _pair = connecting.await.unwrap();
        trace.log("caller");
        until(|| trace.has("data early")).await;
    });
    trace.assert(&["made", "caller", "data early"]);
}

/// With asyncio's order exactly; otherwise it may be either way round.
#[test]
fn c_223_through_a_task_the_data_may_come_first() {
    let trace = Trace::new();
    let event_loop = builder().poll_every(1).build().unwrap();
    let (near, mut far) = tcp_pair();
    far.write_all(b"early").unwrap();
    let log = trace.clone();
    event_loop
        .run_until_complete(async {
            let task = current().create_task(async move {
                let connecting = current().create_connection_on(scribe(&log), near);
                connecting.await.unwrap()
            });
            let _pair = task.await.unwrap();
            trace.log("caller");
            until(|| trace.has("data early")).await;
        })
        .unwrap();
    trace.assert(&["made", "data early", "caller"]);
}

#[test]
fn c_224_a_panic_in_connection_made_is_reported_and_the_connection_goes_on() {
    let trace = Trace::new();
    let ((), reported) = run_reporting(async {
        let (listener, address) = listener();
        let scribe = Scribe::acting(&trace, |_, call| {
            assert_ne!(call, "made", "not today");
        });
        let connecting = current().create_connection(move || scribe, address);
        let (transport, scribe) = connecting.await.unwrap();
        let peer = Peer::of(listener.accept().unwrap().0);
        peer.say("hello").await;
        until(|| trace.has("data hello")).await;
        transport.close();
        assert!(scribe.closed().await.1.is_none());
        assert_eq!(peer.hear_end().await, (String::new(), None));
    });
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(
        reported[0].starts_with("panic in connection_made: "),
        "{reported:?}"
    );
    assert!(reported[0].contains("not today"), "{reported:?}");
    trace.assert(&["made", "data hello", "lost"]);
}

#[test]
fn c_225_abort_in_connection_made() {
    let trace = Trace::new();
    run(async {
        let (listener, address) = listener();
        let scribe = Scribe::acting(&trace, |transport, call| {
            if call == "made" {
                transport.abort();
            }
        });
        let connecting = current().create_connection(move || scribe, address);
        let (transport, _scribe) = connecting.await.unwrap();
        trace.log("caller");
        assert!(transport.is_closing());
        let peer = Peer::of(listener.accept().unwrap().0);
        let reset = Some(ErrorKind::ConnectionReset);
        assert_eq!(peer.hear_end().await, (String::new(), reset));
        turns(3).await;
    });
    trace.assert(&["made", "lost", "caller"]);
}

#[test]
fn c_226_write_and_close_in_connection_made() {
    let trace = Trace::new();
    run(async {
        let (listener, address) = listener();
        let scribe = Scribe::acting(&trace, |transport, call| {
            if call == "made" {
                transport.write(b"all I have to say");
                transport.close();
            }
        });
        let connecting = current().create_connection(move || scribe, address);
        let (transport, _scribe) = connecting.await.unwrap();
        trace.log("caller");
        assert!(transport.is_closing());
        let peer = Peer::of(listener.accept().unwrap().0);
        assert_eq!(peer.hear_end().await, ("all I have to say".into(), None));
        turns(3).await;
    });
    trace.assert(&["made", "lost", "caller"]);
}

#[test]
fn a_buffered_protocol_can_be_connected() {
    #[derive(Default)]
    struct Four([u8; 4], Vec<u8>);
    impl coloop::BufferedProtocol for Four {
        fn get_buffer(&mut self, _: Option<usize>) -> &mut [u8] {
            &mut self.0
        }
        fn buffer_updated(&mut self, _: &Rc<dyn Transport>, count: usize) {
            self.1.extend(&self.0[..count]);
        }
    }

    run(async {
        let (near, mut far) = tcp_pair();
        let connecting = current().create_connection_on(buffered(Four::default), near);
        let (_transport, four) = connecting.await.unwrap();
        far.write_all(b"more than four bytes").unwrap();
        drop(far);
        let (four, error) = four.closed().await;
        assert!(error.is_none());
        assert_eq!(four.1, b"more than four bytes");
    });
}

#[test]
fn a_panic_of_the_factory_is_its_caller_s_and_closes_the_socket() {
    run(async {
        let (listener, address) = listener();
        let task = current().create_task(async move {
            let factory = || -> Scribe { panic!("no protocol today") };
            current()
                .create_connection(factory, address)
                .await
                .map(drop)
        });
        let error = task.await.unwrap_err();
        assert!(error.to_string().contains("no protocol today"), "{error}");
        let peer = Peer::of(listener.accept().unwrap().0);
        assert_eq!(peer.hear_end().await, (String::new(), None));
    });
}

// ---- Errors --------------------------------------------------------------------------------------

#[test]
fn c_230_one_address_that_refuses() {
    let (_bound, address) = refusing("127.0.0.1");
    let trace = Trace::new();
    let error = run(async {
        let connecting = current().create_connection(scribe(&trace), address);
        connecting.await.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let text = format!("cannot connect to {address}: Connection refused (os error 111)");
    assert_eq!(error.to_string(), text);
    trace.assert(&[""; 0]);
}

#[test]
fn c_230_several_addresses_that_fail_differently() {
    if !has_v6() {
        return;
    }
    let ((_v4, v4), (_v6, v6)) = (refusing("127.0.0.1"), refusing("::1"));
    let ask = |addresses: [SocketAddr; 2]| {
        run(async move {
            let trace = Trace::new();
            current()
                .create_connection(scribe(&trace), &addresses[..])
                .local_addr("127.0.0.1:0")
                .await
                .unwrap_err()
        })
    };
    let error = ask([v4, v6]);
    assert_eq!(
        error.kind(),
        ErrorKind::ConnectionRefused,
        "the first one's"
    );
    assert_eq!(
        error.to_string(),
        format!(
            "cannot connect to {v4}: Connection refused (os error 111); \
             to {v6}: no local address is of the family of {v6}"
        )
    );
    let error = ask([v6, v4]);
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "the first one's");
}

#[test]
fn c_231_all_errors_are_kept_also_a_single_one() {
    let (_first, first) = refusing("127.0.0.1");
    let (_second, second) = refusing("127.0.0.1");
    for addresses in [vec![first], vec![first, second]] {
        let error = run(async {
            let trace = Trace::new();
            let connecting = current().create_connection(scribe(&trace), &addresses[..]);
            connecting.await.unwrap_err()
        });
        let errors: &ConnectErrors = error.get_ref().unwrap().downcast_ref().unwrap();
        let attempts = errors.attempts();
        let told: Vec<_> = attempts.iter().map(|attempt| attempt.address).collect();
        assert_eq!(told, addresses);
        for attempt in attempts {
            assert_eq!(attempt.error.raw_os_error(), Some(libc::ECONNREFUSED));
            assert!(attempt.took < PATIENCE);
        }
    }
}

#[test]
fn addresses_are_tried_in_order_until_one_is_connected() {
    let trace = Trace::new();
    run(async {
        let (_bound, refuses) = refusing("127.0.0.1");
        let ((first, accepts), (second, is_too_late)) = (listener(), listener());
        let addresses = vec![refuses, accepts, is_too_late];
        let connecting = current().create_connection(scribe(&trace), addresses);
        let (transport, _scribe) = connecting.await.unwrap();
        assert_eq!(transport.peer_addr(), Some(accepts.into()));
        first.accept().unwrap();
        second.set_nonblocking(true).unwrap();
        assert_eq!(refused(second.accept()).0, ErrorKind::WouldBlock);
    });
    trace.assert(&["made"]);
}

#[test]
fn c_234_an_empty_list_of_addresses() {
    let (_listener, address) = listener();
    let trace = Trace::new();
    let nothing = || Endpoint::from(Vec::<SocketAddr>::new());
    let (remote, local) = run(async {
        let to = |endpoint: Endpoint| current().create_connection(scribe(&trace), endpoint);
        let remote = to(nothing()).await;
        let local = to(address.into()).local_addr(nothing()).await;
        (refused(remote), refused(local))
    });
    let expected = (
        ErrorKind::InvalidInput,
        "the list of addresses is empty".to_owned(),
    );
    assert_eq!((remote, local), (expected.clone(), expected));
}

#[test]
fn c_243_a_failed_connect_leaves_a_loop_that_can_be_closed() {
    let (_bound, address) = refusing("127.0.0.1");
    let event_loop = real_loop();
    let trace = reports(&event_loop);
    for _ in 0..3 {
        let connecting = event_loop.create_connection(scribe(&Trace::new()), address);
        let error = event_loop.run_until_complete(connecting).unwrap();
        assert_eq!(refused(error).0, ErrorKind::ConnectionRefused);
    }
    assert!(event_loop.is_idle(), "nothing is left in the line");
    assert!(event_loop.all_tasks().is_empty());
    event_loop.close().unwrap();
    trace.assert(&[""; 0]);
}

#[test]
fn a_closed_loop_connects_nothing() {
    let event_loop = real_loop();
    let handle = event_loop.handle();
    drop(event_loop);
    let (listener, address) = listener();
    let (near, _far) = tcp_pair();
    run(async move {
        let trace = Trace::new();
        let connecting = handle.create_connection(scribe(&trace), address);
        assert_eq!(refused(connecting.await).0, ErrorKind::NotConnected);
        let connecting = handle.create_connection_on(scribe(&trace), near);
        assert_eq!(refused(connecting.await).0, ErrorKind::NotConnected);
        trace.assert(&[""; 0]);
    });
    listener.set_nonblocking(true).unwrap();
    assert_eq!(refused(listener.accept()).0, ErrorKind::WouldBlock);
}

#[test]
fn a_loop_that_is_closed_meanwhile_is_an_error_of_the_connection() {
    let (_listener, address) = listener();
    let (near, _far) = tcp_pair();
    let outer = real_loop();
    for own in [None, Some(near)] {
        let inner = Rc::new(real_loop());
        let trace = Trace::new();
        let log = trace.clone();
        let factory = scribe(&log);
        let connecting: coloop::LocalBoxFuture<'static, io::Result<Pair>> = match own {
            None => IntoFuture::into_future(inner.create_connection(factory, address)),
            Some(socket) => IntoFuture::into_future(inner.create_connection_on(factory, socket)),
        };
        let task = outer.create_task(connecting);
        one_turn(&outer);
        inner.close().unwrap();
        let result = outer.run_until_complete(task).unwrap().unwrap();
        assert_eq!(refused(result).0, ErrorKind::NotConnected);
        trace.assert(&[""; 0]);
    }
}

/// Every form of an endpoint that makes no sense, and what is said of it.
#[test]
fn endpoints_that_are_no_place_to_connect_to() {
    const BRACKETS: &str = "an IPv6 address stands in brackets, as in \"[::1]:80\"";
    const MISSING: &str = "a port is missing, as in \"localhost:80\"";
    const BEHIND: &str = "a port is missing behind the colon";
    const NUMBERS: &str = "ports are numbers up to 65535";
    const NOT_CLOSED: &str = "the bracket is not closed";
    const EVERYWHERE: &str = "a host is missing: only a server can be on all interfaces";
    const SEVERAL: &str = "a connection goes to one host: try the hosts one after the other";
    const NO_HOSTS: &str = "the list of hosts is empty: name one, or give the port alone for all";

    let texts = [
        ("", MISSING),
        ("localhost", MISSING),
        ("127.0.0.1", MISSING),
        ("[::1]", NOT_CLOSED),
        ("localhost:", BEHIND),
        ("[::1]:", BEHIND),
        ("::1", BRACKETS),
        ("::1:80", BRACKETS),
        ("a:b:80", BRACKETS),
        ("localhost:65536", NUMBERS),
        ("localhost:99999999999999999999", NUMBERS),
        ("[::1:80", NOT_CLOSED),
        ("[::1]x:80", NOT_CLOSED),
        ("[]:80", "an address is missing in the brackets"),
    ];
    let texts = texts.map(|(text, why)| {
        let why = format!("{text:?} is no address: {why}");
        (Endpoint::from(text), why)
    });
    let others = [
        (Endpoint::from(":80"), EVERYWHERE),
        (Endpoint::from(80), EVERYWHERE),
        (Endpoint::from(("", 80)), EVERYWHERE),
        (Endpoint::from((String::new(), "http")), EVERYWHERE),
        (Endpoint::from(([""], 80)), EVERYWHERE),
        (Endpoint::from((["127.0.0.1", "::1"], 80)), SEVERAL),
        (Endpoint::from((["", "127.0.0.1"], 80)), SEVERAL),
        (Endpoint::from((&["a", "b", "c"][..], "http")), SEVERAL),
        (Endpoint::from((vec!["a".to_owned(); 2], 80)), SEVERAL),
        (Endpoint::from(([""; 0], 80)), NO_HOSTS),
        (Endpoint::from((Vec::<String>::new(), 80)), NO_HOSTS),
    ];
    let others = others.map(|(endpoint, why)| (endpoint, why.to_owned()));
    let asked = [
        (
            Endpoint::from(("127.0.0.1", "65536")),
            "\"65536\" is no port: those are 0 to 65535",
        ),
        (
            Endpoint::from(("localhost", "-1")),
            "\"-1\" is no port: those are 0 to 65535",
        ),
        (
            Endpoint::from(("localhost", " 80")),
            "\" 80\" is no port: those are 0 to 65535",
        ),
        (
            Endpoint::from("local\0host:80"),
            "the host \"local\\0host\" cannot be looked up: it has a NUL byte",
        ),
        (
            Endpoint::from("local..host:80"),
            "the host \"local..host\" cannot be looked up: it has an empty label",
        ),
        (
            Endpoint::from("localhost:ht\0tp"),
            "\"ht\\0tp\" is no service: it has a NUL byte",
        ),
    ];
    let asked = asked.map(|(endpoint, why)| (endpoint, why.to_owned()));

    let (_listener, address) = listener();
    let trace = Trace::new();
    run(async {
        for (endpoint, why) in texts.into_iter().chain(others).chain(asked) {
            let expected = (ErrorKind::InvalidInput, why);
            let to = |remote: Endpoint| current().create_connection(scribe(&trace), remote);
            let told = refused(to(endpoint.clone()).await);
            assert_eq!(told, expected, "{endpoint:?} as where to connect to");
            let told = refused(to(address.into()).local_addr(endpoint.clone()).await);
            assert_eq!(told, expected, "{endpoint:?} as the local address");
        }
    });
    trace.assert(&[""; 0]);
}

#[test]
fn a_host_and_a_service_that_the_resolver_does_not_know() {
    let trace = Trace::new();
    run(async {
        let to = |remote: Endpoint| current().create_connection(scribe(&trace), remote);
        // Both are answered without a name server.
        let unknown = to(("localhost", "no-such-service").into()).await;
        let (kind, text) = refused(unknown);
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(
            text.starts_with("cannot look up the host \"localhost\": "),
            "{text}"
        );
        let numeric = to(("localhost", 80).into()).flags(LookupFlags::NUMERIC_HOST);
        let (kind, text) = refused(numeric.await);
        assert_eq!(kind, ErrorKind::NotFound);
        assert!(
            text.starts_with("cannot look up the host \"localhost\": "),
            "{text}"
        );
    });
    trace.assert(&[""; 0]);
}

// ---- Options -------------------------------------------------------------------------------------

#[test]
fn c_235_a_local_address_is_the_socket_s_name() {
    let trace = Trace::new();
    run(async {
        let (listener, address) = listener();
        let free = {
            let (_bound, free) = refusing("127.0.0.2");
            free
        };
        for local in [
            Endpoint::from(("127.0.0.2", 0)),
            Endpoint::from(free),
            Endpoint::from("127.0.0.2:0"),
        ] {
            let connecting = current().create_connection(scribe(&trace), address);
            let (transport, _scribe) = connecting.local_addr(local).await.unwrap();
            let ours = transport.local_addr().unwrap();
            assert_eq!(ours.ip(), Some(free.ip()));
            let (_peer, from) = listener.accept().unwrap();
            assert_eq!(ours, from.into());
            transport.abort();
        }
    });
}

#[test]
fn c_235_a_local_address_that_is_in_use() {
    let trace = Trace::new();
    let (_listener, address) = listener();
    let (_bound, taken) = refusing("127.0.0.1");
    let error = run(async {
        let connecting = current().create_connection(scribe(&trace), address);
        connecting.local_addr(taken).await.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let text = format!(
        "cannot connect to {address}: cannot bind to {taken}: Address already in use (os error 98)"
    );
    assert_eq!(error.to_string(), text);
    trace.assert(&[""; 0]);
}

#[test]
fn c_236_local_addresses_of_another_family_are_left_out() {
    let trace = Trace::new();
    run(async {
        let (_listener, address) = listener();
        let to = || current().create_connection(scribe(&trace), address);
        let v6: SocketAddr = "[::1]:0".parse().unwrap();
        let told = refused(to().local_addr(v6).await);
        assert_eq!(told.0, ErrorKind::AddrNotAvailable);
        let text =
            format!("cannot connect to {address}: no local address is of the family of {address}");
        assert_eq!(told.1, text);

        let v4: SocketAddr = "127.0.0.3:0".parse().unwrap();
        let (transport, _scribe) = to().local_addr(vec![v6, v4]).await.unwrap();
        assert_eq!(transport.local_addr().unwrap().ip(), Some(v4.ip()));
    });
}

/// Of several that fit, the first that can be bound to.
#[test]
fn local_addresses_are_tried_in_order() {
    let trace = Trace::new();
    run(async {
        let (_listener, address) = listener();
        let (_bound, taken) = refusing("127.0.0.1");
        let free: SocketAddr = "127.0.0.2:0".parse().unwrap();
        let connecting = current().create_connection(scribe(&trace), address);
        let (transport, _scribe) = connecting.local_addr(vec![taken, free]).await.unwrap();
        assert_eq!(transport.local_addr().unwrap().ip(), Some(free.ip()));
    });
}

#[test]
fn c_239_a_connection_does_not_delay_small_writes_unless_it_is_asked_to() {
    let trace = Trace::new();
    run(async {
        let (listener, address) = listener();
        let to = || current().create_connection(scribe(&trace), address);
        let (prompt, _scribe) = to().await.unwrap();
        let (slow, _scribe) = to().delay().await.unwrap();
        let ((one, _first), (other, _second)) = (tcp_pair(), tcp_pair());
        let on = |socket| current().create_connection_on(scribe(&trace), socket);
        let (own, _scribe) = on(one).await.unwrap();
        let (own_slow, _scribe) = on(other).delay().await.unwrap();
        let accepted = listener.accept().unwrap().0;
        let accepting = current().connect_accepted_socket(scribe(&trace), accepted);
        let (accepted, _scribe) = accepting.await.unwrap();
        let nodelay = [prompt, slow, own, own_slow, accepted]
            .map(|transport| look(&transport, |socket| socket.tcp_nodelay().unwrap()));
        assert_eq!(nodelay, [true, false, true, false, true]);
    });
}

#[test]
fn only_addresses_of_the_family_that_is_asked_for_are_taken() {
    if !has_v6() {
        return;
    }
    let trace = Trace::new();
    run(async {
        let (v4, v4_address) = listener();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let v6_address = v6.local_addr().unwrap();
        let to = |remote: Endpoint| current().create_connection(scribe(&trace), remote);
        let both = vec![v6_address, v4_address];
        for (family, address) in [(Family::V4, v4_address), (Family::V6, v6_address)] {
            let connecting = to(both.clone().into()).family(family);
            let (transport, _scribe) = connecting.await.unwrap();
            assert_eq!(transport.peer_addr(), Some(address.into()));
        }
        let none = to(v4_address.into()).family(Family::V6);
        let expected = "no address is of the family that was asked for";
        assert_eq!(
            refused(none.await),
            (ErrorKind::InvalidInput, expected.to_owned())
        );
        let literal = to(("127.0.0.1", v4_address.port()).into()).family(Family::V6);
        let (kind, text) = refused(literal.await);
        assert_eq!(kind, ErrorKind::NotFound, "{text}");
        assert!(
            text.starts_with("cannot look up the host \"127.0.0.1\": "),
            "{text}"
        );
        let literal = to(("127.0.0.1", v4_address.port()).into()).family(Family::V4);
        literal.await.unwrap();
        drop((v4, v6));
    });
}

#[test]
fn a_protocol_number_is_the_socket_s() {
    let trace = Trace::new();
    run(async {
        let (_listener, address) = listener();
        for endpoint in [
            Endpoint::from(address),
            Endpoint::from((address.ip().to_string(), address.port())),
        ] {
            let to = || current().create_connection(scribe(&trace), endpoint.clone());
            let (transport, _scribe) = to().proto(libc::IPPROTO_TCP).await.unwrap();
            let proto = look(&transport, |socket| socket.protocol().unwrap());
            assert_eq!(proto, Some(socket2::Protocol::TCP));
            // There is no stream over UDP.
            let (kind, text) = refused(to().proto(libc::IPPROTO_UDP).await.map(drop));
            assert_ne!(kind, ErrorKind::ConnectionRefused, "{text}");
            assert!(text.contains(&address.ip().to_string()), "{text}");
        }
    });
    trace.assert(&["made", "made"]);
}

#[test]
fn hosts_are_looked_up_by_name() {
    let trace = Trace::new();
    run(async {
        let (_listener, address) = listener();
        let port = address.port();
        let to = |remote: Endpoint| current().create_connection(scribe(&trace), remote);
        for endpoint in [
            Endpoint::from(("localhost", port)),
            Endpoint::from(("localhost".to_owned(), port)),
            Endpoint::from(format!("localhost:{port}")),
            Endpoint::from((["localhost"], port)),
        ] {
            let (transport, _scribe) = to(endpoint).family(Family::V4).await.unwrap();
            assert_eq!(transport.peer_addr(), Some(address.into()));
            transport.abort();
        }
        let local = to(address.into()).local_addr(("localhost", 0));
        let (transport, _scribe) = local.family(Family::V4).await.unwrap();
        assert_eq!(transport.local_addr().unwrap().ip(), Some(address.ip()));
    });
}

#[test]
fn addresses_need_no_look_up_in_whatever_form_they_come() {
    let trace = Trace::new();
    run(async {
        let (_listener, address) = listener();
        let port = address.port();
        for endpoint in [
            Endpoint::from(address),
            Endpoint::from(&[address][..]),
            Endpoint::from((address.ip(), port)),
            Endpoint::from(([127, 0, 0, 1], port)),
            Endpoint::from(address.to_string()),
            Endpoint::from(("127.0.0.1", port)),
            Endpoint::from(("127.0.0.1", port.to_string())),
        ] {
            let connecting = current().create_connection(scribe(&trace), endpoint);
            let (transport, _scribe) = connecting.await.unwrap();
            assert_eq!(transport.peer_addr(), Some(address.into()));
            transport.abort();
        }
    });
}

#[test]
fn a_service_stands_for_its_port() {
    let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
    let known = |line: &str| line.split_whitespace().take(2).eq(["http", "80/tcp"]);
    if !services.lines().any(known) {
        println!("skipped: the system does not know the service http");
        return;
    }
    let trace = Trace::new();
    for endpoint in [
        Endpoint::from(("127.0.0.1", "http")),
        Endpoint::from("127.0.0.1:http"),
        Endpoint::from(("localhost", "http")),
    ] {
        let connected = run(async {
            let connecting = current().create_connection(scribe(&trace), endpoint);
            connecting.family(Family::V4).await
        });
        // Whether anybody listens there is not the question.
        let port = match connected {
            Ok((transport, _scribe)) => transport.peer_addr().unwrap().port(),
            Err(error) => {
                let errors: Option<&ConnectErrors> = error.get_ref().unwrap().downcast_ref();
                Some(errors.unwrap().attempts()[0].address.port())
            }
        };
        assert_eq!(port, Some(80));
    }
}

// ---- Sockets of the program's own ----------------------------------------------------------------

#[test]
fn a_connected_socket_is_taken_over_whatever_its_family() {
    let (tcp, unix) = (tcp_pair(), UnixStream::pair().unwrap());
    let address = tcp.1.local_addr().unwrap();
    let pairs: [(OwnedFd, OwnedFd, _); 2] = [
        (tcp.0.into(), tcp.1.into(), Some(Address::Inet(address))),
        (unix.0.into(), unix.1.into(), None),
    ];
    for (near, far, address) in pairs {
        let trace = Trace::new();
        run(async {
            let number = near.as_raw_fd();
            assert!(!SockRef::from(&near).nonblocking().unwrap());
            let connecting = current().create_connection_on(scribe(&trace), near);
            let (transport, scribe) = connecting.await.unwrap();
            assert_eq!(transport.peer_addr(), address);
            assert!(look(&transport, |socket| socket.nonblocking().unwrap()));
            assert_eq!(look(&transport, |socket| socket.as_raw_fd()), number);
            let peer = Peer::of(far);
            transport.write(b"hello");
            assert_eq!(peer.hear(5).await, "hello");
            peer.say("back").await;
            until(|| trace.has("data back")).await;
            transport.close();
            assert!(scribe.closed().await.1.is_none());
            assert_eq!(peer.hear_end().await, (String::new(), None));
        });
        trace.assert(&["made", "data back", "lost"]);
    }
}

/// A named unix socket has an address.
#[test]
fn a_unix_socket_that_has_a_name_says_it() {
    let folder = std::env::temp_dir().join(format!("coloop-connect-{}", std::process::id()));
    let listener = UnixListener::bind(&folder).unwrap();
    let near = UnixStream::connect(&folder).unwrap();
    let (far, _) = listener.accept().unwrap();
    std::fs::remove_file(&folder).unwrap();
    run(async {
        let trace = Trace::new();
        let connecting = current().create_connection_on(scribe(&trace), near);
        let (near, _scribe) = connecting.await.unwrap();
        let accepting = current().connect_accepted_socket(scribe(&trace), far);
        let (far, _scribe) = accepting.await.unwrap();
        let name = Some(Address::Unix(folder.clone()));
        assert_eq!((near.peer_addr(), near.local_addr()), (name.clone(), None));
        assert_eq!((far.peer_addr(), far.local_addr()), (None, name));
    });
}

#[test]
fn c_229_a_socket_that_is_no_stream() {
    let seqpacket = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
    let pair = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
    let wrong: [(OwnedFd, &str); 4] = [
        (
            datagram.into(),
            "a stream socket was expected, and this is a datagram one",
        ),
        (
            pair.0.into(),
            "a stream socket was expected, and this is a datagram one",
        ),
        (
            seqpacket.0.into(),
            "a stream socket was expected, and this is SOCK_SEQPACKET",
        ),
        (
            File::open("/dev/null").unwrap().into(),
            "a stream socket was expected: Socket operation on non-socket (os error 88)",
        ),
    ];
    let trace = Trace::new();
    run(async {
        for (socket, text) in wrong {
            let expected = (ErrorKind::InvalidInput, text.to_owned());
            let again = socket.try_clone().unwrap();
            let listens = socket.try_clone().unwrap();
            let connecting = current().create_connection_on(scribe(&trace), socket);
            assert_eq!(refused(connecting.await), expected);
            let accepting = current().connect_accepted_socket(scribe(&trace), again);
            assert_eq!(refused(accepting.await), expected);
            let log = trace.clone();
            let serving = current().create_server_on(scribe(&log), listens);
            assert_eq!(refused(serving.await), expected);
        }
    });
    trace.assert(&[""; 0]);
}

#[test]
fn c_229_a_stream_socket_that_was_made_with_flags() {
    let (listener, address) = listener();
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
    // In one go, on this machine.
    let _ = socket.connect(&address.into());
    let _far = listener.accept().unwrap();
    let trace = Trace::new();
    run(async {
        let connecting = current().create_connection_on(scribe(&trace), socket);
        connecting.await.unwrap();
    });
    trace.assert(&["made"]);
}

#[test]
fn a_socket_in_the_wrong_state() {
    let (_bound, address) = refusing("127.0.0.1");
    let trace = Trace::new();
    run(async {
        let new = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let not_connected = (
            ErrorKind::NotConnected,
            "the socket is not connected: connect it first \
             (Transport endpoint is not connected (os error 107))"
                .to_owned(),
        );
        let connecting = current().create_connection_on(scribe(&trace), new);
        assert_eq!(refused(connecting.await), not_connected);

        let failed = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        failed.connect(&address.into()).unwrap_err();
        let connecting = current().create_connection_on(scribe(&trace), failed);
        assert_eq!(refused(connecting.await), not_connected);

        let listens = (
            ErrorKind::InvalidInput,
            "the socket listens: give it to `create_server_on`".to_owned(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let again = listener.try_clone().unwrap();
        let connecting = current().create_connection_on(scribe(&trace), listener);
        assert_eq!(refused(connecting.await), listens);
        let accepting = current().connect_accepted_socket(scribe(&trace), again);
        assert_eq!(refused(accepting.await), listens);
    });
    trace.assert(&[""; 0]);
}

#[test]
fn c_240_a_connection_that_is_given_up_before_it_is_told_is_closed() {
    let trace = Trace::new();
    run(async {
        let (near, far) = tcp_pair();
        let log = trace.clone();
        let task = current().create_task(async move {
            let connecting = current().create_connection_on(scribe(&log), near);
            connecting.await.map(drop)
        });
        // It has made its transport, whose beginning stands in the line behind this.
        turns(1).await;
        task.cancel();
        let peer = Peer::of(far);
        assert_eq!(peer.hear_end().await, (String::new(), None));
        assert!(task.await.unwrap_err().is_cancelled());
        turns(3).await;
    });
    trace.assert(&["made", "lost"]);
}

#[test]
fn c_240_a_connection_that_is_never_awaited_closes_its_socket() {
    let trace = Trace::new();
    run(async {
        let (near, far) = tcp_pair();
        drop(current().create_connection_on(scribe(&trace), near));
        let peer = Peer::of(far);
        assert_eq!(peer.hear_end().await, (String::new(), None));
    });
    trace.assert(&[""; 0]);
}

#[test]
fn c_241_an_accepted_socket_exchanges_data_and_both_ends_close_cleanly() {
    let trace = Trace::new();
    run(async {
        let (listener, address) = listener();
        let (log, client_log) = (trace.clone(), trace.clone());
        let client = move || Scribe::new(&client_log).named("client ");
        let (client, client_protocol) = current().create_connection(client, address).await.unwrap();
        let (socket, peer) = listener.accept().unwrap();
        let server = move || Scribe::echoing(&log).named("server ");
        let (transport, server_protocol) = current()
            .connect_accepted_socket(server, socket)
            .await
            .unwrap();
        assert_eq!(transport.peer_addr(), Some(peer.into()));
        assert_eq!(transport.local_addr(), Some(address.into()));
        client.write(b"hello");
        until(|| trace.has("client data hello")).await;
        client.close();
        assert!(server_protocol.closed().await.1.is_none());
        assert!(client_protocol.closed().await.1.is_none());
    });
    trace.assert(&[
        "client made",
        "server made",
        "server data hello",
        "client data hello",
        "client lost",
        "server eof",
        "server lost",
    ]);
}

/// A peer that has reset the connection in the queue is no error of who accepted it.
#[test]
fn c_241_an_accepted_socket_whose_peer_has_gone_is_told_so() {
    let trace = Trace::new();
    run(async {
        let (near, far) = tcp_pair();
        SockRef::from(&near)
            .set_linger(Some(std::time::Duration::ZERO))
            .unwrap();
        drop(near);
        let accepting = current().connect_accepted_socket(scribe(&trace), far);
        let (transport, scribe) = accepting.await.unwrap();
        assert_eq!(transport.peer_addr(), None);
        let (_scribe, error) = scribe.closed().await;
        assert_eq!(error.unwrap().kind(), ErrorKind::ConnectionReset);
    });
    trace.assert(&["made", "lost ConnectionReset"]);
}

// ---- What a protocol may be ----------------------------------------------------------------------

/// A factory is any closure, also one that gives away what was there before.
#[test]
fn a_factory_may_give_a_protocol_that_was_there_before() {
    struct Existing(Rc<RefCell<Vec<u8>>>);
    impl Protocol for Existing {
        fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
            self.0.borrow_mut().extend(data);
        }
        fn eof_received(&mut self, _: &Rc<dyn Transport>) -> Eof {
            Eof::Close
        }
    }

    let received = Rc::new(RefCell::new(b"before, ".to_vec()));
    run(async {
        let existing = Existing(Rc::clone(&received));
        let (near, mut far) = tcp_pair();
        let connecting = current().create_connection_on(move || existing, near);
        let (_transport, handle) = connecting.await.unwrap();
        far.write_all(b"after").unwrap();
        drop::<TcpStream>(far);
        handle.closed().await;
    });
    assert_eq!(*received.borrow(), b"before, after");
}
