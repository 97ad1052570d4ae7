//! The lane on a whole loop, with resolvers that hang, fail and answer when they are told to.
//!
//! Only a few tests ask the system: for what it knows without a network. A resolver that hangs does
//! so at a [`Gate`]; every test opens its gates and joins its threads, so nothing is left behind.

use std::env;
use std::net::ToSocketAddrs;
use std::pin::pin;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Condvar, Mutex};
use std::task::Wake;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::lane::MAX_THREADS;
use super::*;
use crate::clock::Clock as _;
use crate::event_loop::{Builder, EventLoop};
use crate::task::WaitOn;
use crate::testing::Clock;
use crate::time::{sleep, timeout, yield_now};

const HOUR: Duration = Duration::from_secs(3600);

/// Holds up whoever comes, until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

type Threads = Rc<Cell<Vec<JoinHandle<()>>>>;

/// A loop whose look-ups are answered by the test.
struct Bench {
    event_loop: EventLoop,
    threads: Threads,
}

impl Bench {
    fn new(resolve: impl Fn(&Query) -> Answer + Send + Sync + 'static) -> Self {
        Self::with(EventLoop::builder(), HOUR, |_| Ok(()), resolve)
    }

    /// `may_start` is asked before each thread, with the number of those there have been.
    fn with(
        builder: Builder,
        rest: Duration,
        may_start: impl Fn(usize) -> io::Result<()> + 'static,
        resolve: impl Fn(&Query) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let event_loop = builder.build().unwrap();
        let threads = Threads::default();
        let started = Rc::clone(&threads);
        let start = move |run: Box<dyn FnOnce() + Send>| {
            let mut threads = started.take();
            let may = may_start(threads.len());
            if may.is_ok() {
                threads.push(thread::spawn(run));
            }
            started.set(threads);
            may
        };
        let lane = Lane::of_threads(Box::new(start), rest);
        let core = &event_loop.0;
        core.extend(Rc::new(Desk::new(core, lane, Arc::new(resolve))));
        Self {
            event_loop,
            threads,
        }
    }

    #[track_caller]
    fn lookup(&self, host: &str) -> Lookup {
        lookup(&self.event_loop.0, query(host))
    }

    #[track_caller]
    fn answer(&self, query: Query) -> Answer {
        let lookup = lookup(&self.event_loop.0, query);
        self.event_loop.run_until_complete(lookup).unwrap()
    }

    /// Makes a few turns, without waiting.
    fn turns(&self) {
        for _ in 0..3 {
            self.event_loop.run_until_complete(yield_now()).unwrap();
        }
    }

    fn started(&self) -> usize {
        let threads = self.threads.take();
        let started = threads.len();
        self.threads.set(threads);
        started
    }

    /// Waits for the end of all threads; none of them may have panicked.
    fn join(&self) {
        for thread in self.threads.take() {
            thread.join().unwrap();
        }
    }

    fn end(self) {
        self.event_loop.close().unwrap();
        self.join();
    }
}

fn query(host: &str) -> Query {
    Query {
        host: Some(host.to_owned()),
        service: Service::Port(80),
        ..Query::default()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn found() -> Answer {
    Ok(vec![address("192.0.2.1:80")])
}

/// A resolver that says who comes, and hangs at a gate.
fn hanging() -> (
    Gate,
    Receiver<String>,
    impl Fn(&Query) -> Answer + Send + Sync,
) {
    let gate = Gate::default();
    let (asked, came) = mpsc::channel();
    let held = gate.clone();
    let resolve = move |query: &Query| {
        asked.send(query.host.clone().unwrap_or_default()).ok();
        held.pass();
        found()
    };
    (gate, came, resolve)
}

/// Counts how often it is called.
#[derive(Default)]
struct Count(Mutex<usize>);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() += 1;
    }
}

#[test]
fn c_199_a_name_has_the_addresses_that_the_synchronous_call_gives() {
    let event_loop = EventLoop::new().unwrap();
    let answer = event_loop.run_until_complete(lookup(&event_loop.0, query("localhost")));
    let mut expected: Vec<_> = ("localhost", 80).to_socket_addrs().unwrap().collect();
    expected.dedup();
    assert_eq!(answer.unwrap().unwrap(), expected);
}

#[test]
fn c_199_an_error_of_the_system_names_the_host_and_has_a_kind() {
    let event_loop = EventLoop::new().unwrap();
    let mut mismatch = query("127.0.0.1");
    mismatch.family = Some(Family::V6);
    let mut numeric = query("localhost");
    numeric.flags |= LookupFlags::NUMERIC_HOST;
    let mut flags = query("localhost");
    flags.flags = LookupFlags::from_bits(0x4000_0000);
    for (query, kind) in [
        (numeric, ErrorKind::NotFound),
        (mismatch, ErrorKind::NotFound),
        (flags, ErrorKind::InvalidInput),
    ] {
        let host = query.host.clone().unwrap();
        let lookup = lookup(&event_loop.0, query);
        let error = event_loop.run_until_complete(lookup).unwrap().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let text = error.to_string();
        let start = format!("cannot look up the host {host:?}: ");
        assert!(
            text.starts_with(&start) && text.len() > start.len(),
            "{text}"
        );
    }
}

#[test]
fn without_a_host_the_system_says_where_to_listen_and_what_is_near() {
    let event_loop = EventLoop::new().unwrap();
    for (flags, near) in [
        (LookupFlags::PASSIVE, false),
        (LookupFlags::default(), true),
    ] {
        let query = Query {
            flags,
            ..Query::default()
        };
        let answer = event_loop.run_until_complete(lookup(&event_loop.0, query));
        let answer = answer.unwrap().unwrap();
        assert!(!answer.is_empty());
        for address in answer {
            let ip = address.ip();
            assert_eq!((ip.is_loopback(), ip.is_unspecified()), (near, !near));
            assert_eq!(address.port(), 0);
        }
    }
}

#[test]
fn c_200_a_literal_address_is_answered_without_a_thread() {
    let event_loop = EventLoop::new().unwrap();
    let tcp = Protocol::TCP.into();
    for (host, service, family, proto, expected) in [
        ("1.2.3.4", Service::Port(80), None, 0, "1.2.3.4:80"),
        ("1.2.3.4", Service::from("80"), None, tcp, "1.2.3.4:80"),
        (
            "1.2.3.4",
            Service::from(""),
            Some(Family::V4),
            0,
            "1.2.3.4:0",
        ),
        ("1.2.3.4", Service::Name("7".into()), None, 0, "1.2.3.4:7"),
        ("::3", Service::default(), None, 0, "[::3]:0"),
        (
            "::3",
            Service::Port(65535),
            Some(Family::V6),
            tcp,
            "[::3]:65535",
        ),
        (
            "::ffff:1.2.3.4",
            Service::Port(1),
            None,
            0,
            "[::ffff:1.2.3.4]:1",
        ),
    ] {
        let query = Query {
            host: Some(host.to_owned()),
            service,
            family,
            proto,
            flags: LookupFlags::ADDRCONFIG,
        };
        let answer = event_loop.run_until_complete(lookup(&event_loop.0, query));
        assert_eq!(answer.unwrap().unwrap(), [address(expected)]);
    }
    assert!(
        event_loop.0.extension::<Desk>().is_none(),
        "there is no lane"
    );
}

#[test]
fn c_201_what_is_not_quite_a_literal_address_is_the_resolver_s_to_judge() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let bench = Bench::new(move |query| {
        log.lock().unwrap().push(query.clone());
        found()
    });
    let plain = query("1.2.3.4");
    let queries = [
        query("::3%lo0"),
        query("127.1"),
        query("010.0.0.1"),
        query("1.2.3.4."),
        query("[::1]"),
        Query {
            family: Some(Family::V6),
            flags: LookupFlags::V4MAPPED,
            ..plain.clone()
        },
        Query {
            family: Some(Family::V4),
            ..query("::3")
        },
        Query {
            service: Service::from("http"),
            ..plain.clone()
        },
        Query {
            proto: Protocol::UDP.into(),
            ..plain.clone()
        },
        Query {
            host: None,
            flags: LookupFlags::PASSIVE,
            ..plain
        },
    ];
    for query in &queries {
        assert_eq!(bench.answer(query.clone()).unwrap(), found().unwrap());
    }
    assert_eq!(*asked.lock().unwrap(), queries);
    assert_eq!(bench.started(), 1, "one after the other needs one thread");
    bench.end();
}

#[test]
fn c_203_a_loop_is_closed_while_look_ups_are_going_on() {
    let (gate, came, resolve) = hanging();
    let bench = Bench::new(resolve);
    let task = bench.event_loop.create_task(bench.lookup("of.a.task"));
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut cx = PollContext::from_waker(&waker);
    let mut outside = pin!(bench.lookup("of.nobody"));
    assert!(outside.as_mut().poll(&mut cx).is_pending());
    bench.turns();
    let mut names = [came.recv().unwrap(), came.recv().unwrap()];
    names.sort();
    assert_eq!(names, ["of.a.task", "of.nobody"]);

    // Nobody has passed the gate when the loop is closed already.
    bench.event_loop.close().unwrap();
    assert!(task.is_finished());
    assert_eq!(*count.0.lock().unwrap(), 1, "whoever still waits is told");
    let Poll::Ready(Err(error)) = outside.as_mut().poll(&mut cx) else {
        panic!("a look-up outlives its loop");
    };
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    gate.open();
    bench.join();
    assert_eq!(*count.0.lock().unwrap(), 1, "what comes late tells nobody");
}

/// The process of a test of its own ends although a thread of the lane hangs for ever.
#[test]
fn c_203_a_process_ends_while_a_look_up_hangs() {
    const TEST: &str = "resolve::tests::c_203_a_process_ends_while_a_look_up_hangs";
    const CHILD: &str = "COLOOP_TEST_CHILD";
    if env::var_os(CHILD).is_some_and(|child| child == TEST) {
        let event_loop = EventLoop::new().unwrap();
        let (_gate, came, resolve) = hanging();
        let desk = Desk::new(&event_loop.0, Lane::new(), Arc::new(resolve));
        event_loop.0.extend(Rc::new(desk));
        drop(event_loop.create_task(lookup(&event_loop.0, query("somewhere"))));
        event_loop.run_until_complete(yield_now()).unwrap();
        assert_eq!(came.recv().unwrap(), "somewhere");
        return;
    }
    let mut child = Command::new(env::current_exe().unwrap());
    child.args([TEST, "--exact"]).env(CHILD, TEST);
    let output = child.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
}

#[test]
fn c_204_a_name_that_is_too_long_is_refused_and_not_cut() {
    let bench = Bench::new(|_| panic!("nobody may be asked"));
    // Cut to 255 bytes, the first would be the address of the machine itself.
    let hex = format!("0x{}7f000001.example.com", "0".repeat(246));
    let long = format!("{}.{}", "a".repeat(63), "b.".repeat(96));
    for host in [
        &*hex,
        &*long,
        "",
        ".",
        "a..b",
        ".a",
        "a\0b",
        "127.0.0.1\0.example.com",
    ] {
        let error = bench.answer(query(host)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        let text = error.to_string();
        let name: String = host.chars().take(60).collect();
        let name = format!("{name:?}");
        assert!(text.contains(name.trim_end_matches('"')), "{text}");
        assert!(text.len() < 200, "{text}");
        // For what is shorter the platform might ask a name server.
        if name.len() > 60 || host.contains('\0') {
            assert!(
                (host, 80).to_socket_addrs().is_err(),
                "the platform refuses it too"
            );
        }
    }
    assert_eq!(bench.started(), 0);
    bench.end();
}

#[test]
fn a_name_of_the_greatest_length_reaches_the_resolver_whole() {
    let bench = Bench::new(|query| {
        assert!(query.host.as_ref().unwrap().len() >= 253);
        found()
    });
    let longest = format!("{}a", "b.".repeat(126));
    assert_eq!(longest.len(), 253);
    bench.answer(query(&longest)).unwrap();
    bench.answer(query(&format!("{longest}."))).unwrap();
    bench.end();
}

#[test]
fn a_port_that_is_none_is_refused_and_not_cut() {
    let bench = Bench::new(|_| panic!("nobody may be asked"));
    for service in ["65536", "70000", "-1", " 80", "+4294967376", "http\0"] {
        let query = Query {
            service: service.into(),
            ..query("127.0.0.1")
        };
        let error = bench.answer(query).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(
            error.to_string().contains(&format!("{service:?}")),
            "{error}"
        );
    }
    bench.end();
}

#[test]
fn addresses_come_in_the_resolver_s_order_each_once_and_never_none() {
    let bench = Bench::new(|query| {
        let answers: &[&str] = match query.host.as_deref() {
            Some("twice") => &["192.0.2.2:80", "[::1]:80", "192.0.2.2:80", "192.0.2.1:80"],
            _ => &[],
        };
        Ok(answers.iter().copied().map(address).collect())
    });
    let expected = ["192.0.2.2:80", "[::1]:80", "192.0.2.1:80"].map(address);
    assert_eq!(bench.answer(query("twice")).unwrap(), expected);
    let error = bench.answer(query("nowhere.example")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        "the host \"nowhere.example\" has no address"
    );
    bench.end();
}

#[test]
fn fault_h8_an_entry_of_an_unknown_family_is_skipped() {
    let hints = AddrInfoHints::default();
    let entry = |text| AddrInfo {
        flags: hints.flags,
        address: hints.address,
        socktype: hints.socktype,
        protocol: hints.protocol,
        sockaddr: address(text),
        canonname: None,
    };
    let entries = [
        Ok(entry("192.0.2.1:80")),
        Err(io::Error::other("found unknown address family: 77")),
        Ok(entry("[::1]:80")),
    ];
    let expected = ["192.0.2.1:80", "[::1]:80"].map(address);
    assert_eq!(known(entries.into_iter()), expected);
}

#[test]
fn an_error_and_a_panic_of_the_resolver_are_the_answer() {
    let bench = Bench::new(|query| match query.host.as_deref() {
        Some("refused") => Err(ErrorKind::PermissionDenied.into()),
        Some("panics") => panic!("out of cheese"),
        _ => found(),
    });
    let error = bench.answer(query("refused")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    let error = bench.answer(query("panics")).unwrap_err();
    assert_eq!(error.to_string(), "the resolver panicked: out of cheese");
    assert_eq!(bench.answer(query("works")).unwrap(), found().unwrap());
    assert_eq!(bench.started(), 1, "the thread has survived it");
    bench.end();
}

#[test]
fn fault_h4_a_look_up_that_is_dropped_leaves_the_queue_or_its_result_is_dropped() {
    let (gate, came, resolve) = hanging();
    let one = |count| match count {
        0 => Ok(()),
        _ => Err(ErrorKind::WouldBlock.into()),
    };
    let bench = Bench::with(EventLoop::builder(), HOUR, one, resolve);
    let gone = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&gone));
    let mut cx = PollContext::from_waker(&waker);
    let mut lookups = ["goes.on", "waits"].map(|host| Box::pin(bench.lookup(host)));
    for lookup in &mut lookups {
        assert!(lookup.as_mut().poll(&mut cx).is_pending());
    }
    let stays = bench.event_loop.create_task(bench.lookup("stays"));
    bench.turns();
    assert_eq!(came.recv().unwrap(), "goes.on");
    drop(lookups);
    assert_eq!(
        Arc::strong_count(&gone),
        2,
        "nobody else has a waker of theirs"
    );
    gate.open();
    let answer = bench.event_loop.run_until_complete(stays).unwrap().unwrap();
    assert_eq!(answer.unwrap(), found().unwrap());
    assert_eq!(
        came.try_iter().collect::<Vec<_>>(),
        ["stays"],
        "nobody asked for the other"
    );
    assert_eq!(*gone.0.lock().unwrap(), 0, "who has gone is not told");
    bench.end();
}

/// All threads hang; the loop goes on, literal addresses too, and closing waits for nobody.
#[test]
fn fault_h6_sixty_four_hanging_look_ups_do_not_hold_up_the_loop() {
    let (gate, came, resolve) = hanging();
    let bench = Bench::new(resolve);
    let tasks: Vec<_> = (0..64)
        .map(|number| bench.lookup(&format!("host-{number}")))
        .map(|lookup| bench.event_loop.create_task(lookup))
        .collect();
    bench.turns();
    assert_eq!(bench.started(), MAX_THREADS);
    let mut names: Vec<_> = came.iter().take(MAX_THREADS).collect();
    names.sort_by_key(|name| name[5..].parse::<u32>().unwrap());
    let first: Vec<_> = (0..MAX_THREADS)
        .map(|number| format!("host-{number}"))
        .collect();
    assert_eq!(names, first, "first in, first out");
    assert_eq!(
        bench.answer(query("1.2.3.4")).unwrap(),
        [address("1.2.3.4:80")]
    );

    let mut outside = pin!(bench.lookup("of.nobody"));
    let mut cx = PollContext::from_waker(Waker::noop());
    assert!(outside.as_mut().poll(&mut cx).is_pending());
    bench.event_loop.close().unwrap();
    assert!(tasks.iter().all(|task| task.is_finished()));
    gate.open();
    bench.join();
    assert_eq!(
        came.try_iter().count(),
        0,
        "what stood in the queue was never begun"
    );
}

#[test]
fn fault_h5_fewer_threads_do_the_work_where_more_cannot_be_started() {
    let (gate, came, resolve) = hanging();
    let two = |count| match count {
        0 | 1 => Ok(()),
        _ => Err(ErrorKind::WouldBlock.into()),
    };
    let bench = Bench::with(EventLoop::builder(), HOUR, two, resolve);
    let tasks: Vec<_> = (0..8)
        .map(|_| bench.event_loop.create_task(bench.lookup("somewhere")))
        .collect();
    bench.turns();
    assert_eq!(bench.started(), 2);
    gate.open();
    for task in tasks {
        let answer = bench.event_loop.run_until_complete(task).unwrap().unwrap();
        assert_eq!(answer.unwrap(), found().unwrap());
    }
    assert_eq!(came.try_iter().count(), 8);
    bench.end();
}

#[test]
fn fault_h5_a_look_up_fails_where_no_thread_can_be_started() {
    let none = |_| Err(io::Error::from_raw_os_error(11));
    let bench = Bench::with(EventLoop::builder(), HOUR, none, |_| found());
    for _ in 0..2 {
        let error = bench.answer(query("somewhere")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(11));
    }
    assert!(bench.event_loop.0.letters.holds().is_empty());
    bench.end();
}

#[test]
fn an_idle_thread_ends_after_a_while_and_another_is_started() {
    let none = Duration::ZERO;
    let bench = Bench::with(EventLoop::builder(), none, |_| Ok(()), |_| found());
    for _ in 0..3 {
        bench.answer(query("somewhere")).unwrap();
        // It ends although the loop is open.
        bench.join();
    }
    bench.end();
}

#[test]
fn a_thread_of_the_lane_has_a_name() {
    let event_loop = EventLoop::new().unwrap();
    let core = &event_loop.0;
    let (told, name) = mpsc::channel();
    let resolve = move |_: &Query| {
        told.send(thread::current().name().map(str::to_owned)).ok();
        found()
    };
    core.extend(Rc::new(Desk::new(core, Lane::new(), Arc::new(resolve))));
    let answer = event_loop.run_until_complete(lookup(core, query("somewhere")));
    answer.unwrap().unwrap();
    assert_eq!(name.recv().unwrap().as_deref(), Some("coloop-resolve"));
}

#[test]
fn a_pending_look_up_shows_in_its_task_and_holds_a_virtual_clock() {
    let (gate, _came, resolve) = hanging();
    let clock = Clock::new();
    let builder = EventLoop::builder().clock(Rc::<Clock>::clone(&clock));
    let bench = Bench::with(builder, HOUR, |_| Ok(()), resolve);
    let began = clock.now();
    let line = line!() + 1;
    let task = bench.event_loop.create_task(bench.lookup("somewhere"));
    let limited = timeout(HOUR, bench.lookup("elsewhere"));
    let limited = bench.event_loop.create_task(limited);
    bench.turns();

    let waits = task.to_ref().waits();
    assert_eq!((waits.len(), &waits[0].on), (1, &WaitOn::Lookup));
    let place = waits[0].place;
    assert_eq!((place.file(), place.line()), (file!(), line));
    let letters = &bench.event_loop.0.letters;
    assert_eq!(letters.holds(), ["a name look-up"]);

    gate.open();
    let answer = bench.event_loop.run_until_complete(task).unwrap().unwrap();
    assert_eq!(answer.unwrap(), found().unwrap());
    let answer = bench
        .event_loop
        .run_until_complete(limited)
        .unwrap()
        .unwrap();
    assert_eq!(answer.unwrap().unwrap(), found().unwrap());
    assert_eq!(clock.now(), began, "it has not jumped to the deadline");
    assert!(letters.holds().is_empty());
    assert!(bench.event_loop.0.records.waits().is_empty());
    bench.event_loop.run_until_complete(sleep(HOUR)).unwrap();
    assert_eq!(clock.now(), began + HOUR, "and is free again");
    bench.end();
}

/// A look-up may be moved from one task to another while it is pending.
#[test]
fn who_polled_last_is_told() {
    let (gate, came, resolve) = hanging();
    let bench = Bench::new(resolve);
    let counts = [(); 2].map(|()| Arc::new(Count::default()));
    let mut lookup = pin!(bench.lookup("somewhere"));
    for count in &counts {
        let waker = Waker::from(Arc::clone(count));
        let mut cx = PollContext::from_waker(&waker);
        assert!(lookup.as_mut().poll(&mut cx).is_pending());
    }
    came.recv().unwrap();
    gate.open();
    let answer = bench
        .event_loop
        .run_until_complete(lookup.as_mut())
        .unwrap();
    assert_eq!(answer.unwrap(), found().unwrap());
    assert_eq!(*counts[0].0.lock().unwrap(), 0);
    bench.end();
}
