//! Watching descriptors by callbacks: what is called, when, and what the system is told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use coloop::{
    Bell, ContextVar, EventLoop, Interest, Readiness, Selector, Source, default_selector,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{dup, fcntl_dupfd_cloexec};
use rustix::pipe::pipe;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::verbs::{Trace, builder, one_turn, real_loop};

/// A selector that notes what the loop asks of it, and misbehaves where it is told to.
pub(crate) struct Probe {
    inner: Rc<dyn Selector>,
    /// "add r", "modify rw", "delete", in order.
    pub(crate) asked: Trace,
    /// The keys under which sources were added.
    pub(crate) keys: RefCell<Vec<usize>>,
    /// The timeout of every wait.
    pub(crate) timeouts: RefCell<Vec<Option<Duration>>>,
    /// What the next wait reports although it is not so.
    pub(crate) invented: RefCell<Vec<Readiness>>,
    /// The errors with which the next waits end.
    pub(crate) failures: RefCell<VecDeque<i32>>,
    /// How many registrations succeed before one fails, and its error.
    pub(crate) refusal: Cell<Option<(u32, i32)>>,
    /// How many waits return at once with nothing.
    pub(crate) early: Cell<u32>,
    /// How often the bell was rung.
    pub(crate) rings: Arc<AtomicUsize>,
}

impl Probe {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            inner: default_selector().unwrap(),
            asked: Trace::new(),
            keys: RefCell::default(),
            timeouts: RefCell::default(),
            invented: RefCell::default(),
            failures: RefCell::default(),
            refusal: Cell::new(None),
            early: Cell::new(0),
            rings: Arc::default(),
        })
    }

    /// A loop that lives by the system's clock and waits on this.
    pub(crate) fn real_loop(self: &Rc<Self>) -> EventLoop {
        let selector: Rc<Self> = Rc::clone(self);
        builder().selector(selector).build().unwrap()
    }

    pub(crate) fn waits(&self) -> usize {
        self.timeouts.borrow().len()
    }

    fn register(&self) -> io::Result<()> {
        match self.refusal.take() {
            Some((0, error)) => Err(io::Error::from_raw_os_error(error)),
            Some((left, error)) => {
                self.refusal.set(Some((left - 1, error)));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn letters(interest: Interest) -> &'static str {
    match (interest.readable, interest.writable) {
        (true, true) => "rw",
        (true, false) => "r",
        (false, true) => "w",
        (false, false) => "-",
    }
}

impl Selector for Probe {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.asked.log(format!("add {}", letters(interest)));
        self.register()?;
        self.keys.borrow_mut().push(key);
        self.inner.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.asked.log(format!("modify {}", letters(interest)));
        self.register()?;
        self.inner.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        self.asked.log("delete");
        self.inner.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        self.timeouts.borrow_mut().push(timeout);
        if let Some(error) = self.failures.borrow_mut().pop_front() {
            return Err(io::Error::from_raw_os_error(error));
        }
        if self.early.get() > 0 {
            self.early.set(self.early.get() - 1);
            return Ok(());
        }
        ready.append(&mut self.invented.borrow_mut());
        let timeout = if ready.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        self.inner.wait(ready, timeout)
    }

    fn bell(&self) -> Arc<dyn Bell> {
        struct Counted(Arc<dyn Bell>, Arc<AtomicUsize>);
        impl Bell for Counted {
            fn ring(&self) {
                self.1.fetch_add(1, Ordering::SeqCst);
                self.0.ring();
            }
        }
        Arc::new(Counted(self.inner.bell(), Arc::clone(&self.rings)))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }
}

/// Two ends of a stream, neither of which blocks.
pub(crate) fn pair() -> (UnixStream, Rc<UnixStream>) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, Rc::new(far))
}

/// Writes all of a short text.
#[track_caller]
pub(crate) fn send(mut socket: &UnixStream, text: &str) {
    socket.write_all(text.as_bytes()).unwrap();
}

/// Reads what is there.
#[track_caller]
pub(crate) fn drain(mut socket: &UnixStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("cannot read: {error}"),
        }
    }
    String::from_utf8(text).unwrap()
}

/// Lets this process open as many descriptors as it may, and says how many.
pub(crate) fn raise_limit() -> u64 {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        let maximum = limit.maximum.unwrap_or(20_000).min(20_000);
        if limit.current.is_some_and(|current| current < maximum) {
            let raised = Rlimit {
                current: Some(maximum),
                maximum: limit.maximum,
            };
            setrlimit(Resource::Nofile, raised).unwrap();
        }
    });
    getrlimit(Resource::Nofile).current.unwrap_or(20_000)
}

/// Gives a descriptor a number so high that no other test takes it when it is free again.
pub(crate) fn at_high_number(fd: impl AsFd) -> OwnedFd {
    static TAKEN: AtomicI32 = AtomicI32::new(0);
    let number = raise_limit() as i32 - 1 - TAKEN.fetch_add(1, Ordering::Relaxed);
    let high = fcntl_dupfd_cloexec(fd, number).unwrap();
    assert_eq!(high.as_raw_fd(), number);
    high
}

/// What the system watches for this loop, besides the loop's own bell.
pub(crate) fn watched_by_the_system(event_loop: &EventLoop) -> Vec<RawFd> {
    let poller = event_loop.descriptor().unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", poller.as_raw_fd())).unwrap();
    info.lines()
        .filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next())
        .map(|number| number.parse().unwrap())
        .collect()
}

/// Lends a number that may not be open.
#[derive(Debug)]
struct Number(RawFd);

impl AsFd for Number {
    #[expect(
        unsafe_code,
        reason = "stands for a program that breaks the promise of AsFd"
    )]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is not -1; that it is not open is what is being tested, and the only
        // use made of it is an `epoll_ctl`, which refuses it.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

#[test]
fn c_165_a_reader_is_called_each_time_data_arrives_until_it_is_removed() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let (log, source) = (trace.clone(), Rc::clone(&socket));
    let reader = move || log.log(drain(&source));
    let watch = event_loop.add_reader(Rc::clone(&socket), reader).unwrap();

    for text in ["one", "two", "three"] {
        send(&peer, text);
        one_turn(&event_loop);
        one_turn(&event_loop);
    }
    assert!(event_loop.remove_reader(watch));
    send(&peer, "four");
    one_turn(&event_loop);
    trace.assert(&["one", "two", "three"]);
    assert_eq!(drain(&socket), "four", "it is left to whoever reads next");
}

#[test]
fn c_166_a_reader_that_leaves_the_data_is_called_again_in_every_turn() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let log = trace.clone();
    event_loop
        .add_reader(Rc::clone(&socket), move || log.log("ready"))
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    send(&peer, "x");
    for _ in 0..3 {
        one_turn(&event_loop);
        trace.assert(&["ready"]);
    }
    assert_eq!(drain(&socket), "x");
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
}

#[test]
fn c_168_removing_one_side_narrows_the_registration_and_the_last_one_ends_it() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    send(&peer, "x");
    let (read, write) = (trace.clone(), trace.clone());
    let reader = event_loop
        .add_reader(Rc::clone(&socket), move || read.log("read"))
        .unwrap();
    let writer = event_loop
        .add_writer(Rc::clone(&socket), move || write.log("write"))
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&["read", "write"]);

    assert!(event_loop.remove_reader(reader));
    one_turn(&event_loop);
    trace.assert(&["write"]);
    assert_eq!(
        watched_by_the_system(&event_loop)
            .iter()
            .filter(|fd| **fd == socket.as_raw_fd())
            .count(),
        1
    );

    assert!(event_loop.remove_writer(writer));
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    probe
        .asked
        .assert(&["add r", "modify rw", "modify w", "delete"]);
    assert!(!watched_by_the_system(&event_loop).contains(&socket.as_raw_fd()));
}

#[test]
fn c_169_removing_says_whether_something_was_watched() {
    let event_loop = real_loop();
    let (_peer, socket) = pair();
    let number = socket.as_raw_fd();
    assert!(!event_loop.remove_reader(number) && !event_loop.remove_writer(number));

    let writer = event_loop.add_writer(Rc::clone(&socket), || {}).unwrap();
    assert!(!event_loop.remove_reader(number), "it is a writer");
    assert!(!event_loop.remove_reader(writer), "it is a writer");
    assert!(event_loop.remove_writer(number));
    assert!(!event_loop.remove_writer(number), "the second time");
    assert!(!event_loop.remove_writer(writer), "the second time");
    assert!(!event_loop.remove_reader(-1) && !event_loop.remove_reader(RawFd::MAX));

    let reader = event_loop.add_reader(socket, || {}).unwrap();
    event_loop.close().unwrap();
    assert!(!event_loop.remove_reader(reader), "the loop is closed");
}

#[test]
fn c_170_a_reader_removed_by_the_one_before_it_is_not_run() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let ((near, first), (far, second)) = (pair(), pair());
    send(&near, "x");
    send(&far, "x");
    let (log, handle) = (trace.clone(), event_loop.handle());
    let number = second.as_raw_fd();
    event_loop
        .add_reader(first, move || {
            log.log(format!("first removes: {}", handle.remove_reader(number)));
        })
        .unwrap();
    let log = trace.clone();
    event_loop
        .add_reader(second, move || log.log("second"))
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&["first removes: true"]);
    one_turn(&event_loop);
    trace.assert(&["first removes: false"]);
}

/// The owner is a `Watched` here; transports, which come later, own theirs in the same way.
#[test]
fn c_171_a_descriptor_that_has_an_owner_is_refused_until_the_owner_is_gone() {
    let event_loop = real_loop();
    let (peer, socket) = pair();
    let number = socket.as_raw_fd();
    let watched = event_loop.watch(Rc::clone(&socket)).unwrap();

    let refused = [
        event_loop
            .add_reader(Rc::clone(&socket), || {})
            .unwrap_err(),
        event_loop
            .add_writer(Rc::clone(&socket), || {})
            .unwrap_err(),
        event_loop.watch(Rc::clone(&socket)).unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        assert_eq!(
            error.to_string(),
            format!(
                "descriptor {number} is used by a transport or a watch of this loop: close that first"
            )
        );
    }
    assert!(!event_loop.remove_reader(number) && !event_loop.remove_writer(number));

    send(&peer, "still watched");
    let read = event_loop.run_until_complete(watched.read_with(|socket| {
        let mut buffer = [0; 64];
        let count = (&**socket).read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }));
    assert_eq!(read.unwrap().unwrap(), "still watched");

    drop(watched);
    let watch = event_loop.add_reader(Rc::clone(&socket), || {}).unwrap();
    assert_eq!(
        event_loop.watch(Rc::clone(&socket)).unwrap_err().kind(),
        ErrorKind::ResourceBusy,
        "and the other way round"
    );
    assert!(event_loop.remove_reader(watch));
    event_loop.watch(socket).unwrap();
}

#[test]
fn c_173_a_report_for_a_watch_that_is_gone_is_not_queued() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let trace = Trace::new();
    let (_peer, socket) = pair();
    let log = trace.clone();
    let watch = event_loop
        .add_reader(Rc::clone(&socket), move || log.log("reader"))
        .unwrap();
    let invented = Readiness {
        key: probe.keys.borrow()[0],
        readable: true,
        writable: true,
    };
    probe.invented.borrow_mut().push(invented);
    one_turn(&event_loop);
    trace.assert(&["reader"]);

    assert!(event_loop.remove_reader(watch));
    probe.invented.borrow_mut().push(invented);
    one_turn(&event_loop);
    let log = trace.clone();
    event_loop
        .add_reader(socket, move || log.log("the next reader"))
        .unwrap();
    probe.invented.borrow_mut().push(invented);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    probe.asked.assert(&["add r", "delete", "add r"]);
}

#[test]
fn c_174_removing_and_closing_at_once_leaves_no_error_and_no_event() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    send(&peer, "x");
    let log = trace.clone();
    let (handle, number) = (event_loop.handle(), socket.as_raw_fd());
    event_loop
        .add_reader(socket, move || {
            log.log(format!("removed: {}", handle.remove_reader(number)));
        })
        .unwrap();
    // The watch held the socket: what removes it closes it.
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["removed: true"]);
    assert_eq!(
        (&peer).read(&mut [0; 8]).map_err(|e| e.kind()),
        Err(ErrorKind::ConnectionReset)
    );
}

#[test]
fn c_175_the_system_has_forgotten_the_descriptor_when_remove_returns() {
    let event_loop = real_loop();
    let (_peer, socket) = pair();
    let number = socket.as_raw_fd();
    let before = watched_by_the_system(&event_loop);
    assert!(!before.contains(&number));
    let reader = event_loop.add_reader(Rc::clone(&socket), || {}).unwrap();
    assert!(watched_by_the_system(&event_loop).contains(&number));
    assert!(event_loop.remove_reader(reader));
    assert_eq!(watched_by_the_system(&event_loop), before);

    let watched = event_loop.watch(socket).unwrap();
    drop(watched);
    assert_eq!(watched_by_the_system(&event_loop), before);
}

#[test]
fn c_176_an_object_and_its_number_are_one_registration() {
    /// Another kind of owner of the same descriptor.
    struct Wrapped(Rc<UnixStream>);
    impl AsFd for Wrapped {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let (_peer, socket) = pair();
    let number = socket.as_raw_fd();
    event_loop.add_reader(Rc::clone(&socket), || {}).unwrap();
    event_loop
        .add_writer(Wrapped(Rc::clone(&socket)), || {})
        .unwrap();
    let by_object = event_loop
        .add_reader(Wrapped(Rc::clone(&socket)), || {})
        .unwrap();
    assert!(event_loop.remove_reader(by_object));
    assert!(event_loop.remove_writer(number));
    probe
        .asked
        .assert(&["add r", "modify rw", "modify w", "delete"]);
    assert_eq!(Rc::strong_count(&socket), 1, "nobody keeps it");
}

#[test]
fn c_178_what_is_always_ready_is_refused_and_nothing_is_changed() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for path in [manifest, env!("CARGO_MANIFEST_DIR"), "/dev/null"] {
        let file = Rc::new(File::open(path).unwrap());
        let number = file.as_raw_fd();
        let refused = [
            event_loop.add_reader(Rc::clone(&file), || {}).unwrap_err(),
            event_loop.add_writer(Rc::clone(&file), || {}).unwrap_err(),
        ];
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}");
            let start = format!("descriptor {number} cannot be watched");
            assert!(error.to_string().starts_with(&start), "{error}");
        }
        assert!(!event_loop.remove_reader(number) && !event_loop.remove_writer(number));
        assert!(!watched_by_the_system(&event_loop).contains(&number));
        assert_eq!(Rc::strong_count(&file), 1, "nobody keeps {path}");
    }
    one_turn(&event_loop);
}

#[test]
fn c_178_what_is_always_ready_cannot_be_awaited_either() {
    let event_loop = real_loop();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for path in [manifest, env!("CARGO_MANIFEST_DIR"), "/dev/null"] {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = Rc::new(options.open(path).unwrap());
        let error = event_loop.watch(Rc::clone(&file)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{path}");
        let start = format!("descriptor {} cannot be watched", file.as_raw_fd());
        assert!(error.to_string().starts_with(&start), "{error}");
        assert_eq!(Rc::strong_count(&file), 1, "nobody keeps {path}");
    }
}

#[test]
fn c_179_a_stale_event_does_not_reach_the_next_owner_of_the_number() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let ((near, first), (far, second), (peer, fresh)) = (pair(), pair(), pair());
    send(&near, "x");
    send(&far, "x");
    let second = at_high_number(&*second);
    let number = second.as_raw_fd();

    let (log, handle) = (trace.clone(), event_loop.handle());
    event_loop
        .add_reader(Rc::clone(&first), move || {
            drain(&first);
            log.log(format!("first removes: {}", handle.remove_reader(number)));
            let recycled = fcntl_dupfd_cloexec(&*fresh, number).unwrap();
            assert_eq!(recycled.as_raw_fd(), number);
            let (log, source) = (log.clone(), Rc::clone(&fresh));
            handle
                .add_reader(recycled, move || log.log(drain(&source)))
                .unwrap();
        })
        .unwrap();
    let log = trace.clone();
    event_loop
        .add_reader(second, move || log.log("second"))
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&["first removes: true"]);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    send(&peer, "for the new owner");
    one_turn(&event_loop);
    trace.assert(&["for the new owner"]);
}

#[test]
fn c_180_the_descriptor_of_another_loop_can_be_watched() {
    let (outer, inner) = (real_loop(), real_loop());
    let trace = Trace::new();
    let log = trace.clone();
    let watch = outer
        .add_reader(inner.descriptor().unwrap(), move || {
            log.log("inner has something");
        })
        .unwrap();
    one_turn(&outer);
    trace.assert(&[""; 0]);

    let (peer, socket) = pair();
    let (log, source) = (trace.clone(), Rc::clone(&socket));
    inner
        .add_reader(socket, move || log.log(drain(&source)))
        .unwrap();
    send(&peer, "hello");
    one_turn(&outer);
    inner.turn(Some(Duration::ZERO)).unwrap();
    one_turn(&outer);
    trace.assert(&["inner has something", "hello"]);

    let remote = inner.remote();
    let posted = std::thread::spawn(move || remote.call_soon(|| {}).is_ok());
    assert!(posted.join().unwrap());
    one_turn(&outer);
    inner.turn(Some(Duration::ZERO)).unwrap();
    one_turn(&outer);
    trace.assert(&["inner has something"]);
    assert!(outer.remove_reader(watch));
}

#[test]
fn c_180_a_loop_cannot_watch_itself_nor_two_one_another() {
    let (one, other) = (real_loop(), real_loop());
    let own = Rc::new(one.descriptor().unwrap());
    one.add_reader(Rc::clone(&own), || {}).unwrap_err();
    assert!(!one.remove_reader(own.as_raw_fd()));
    assert_eq!(Rc::strong_count(&own), 1);

    one.add_reader(other.descriptor().unwrap(), || {}).unwrap();
    other.add_reader(Rc::clone(&own), || {}).unwrap_err();
    assert!(!other.remove_reader(own.as_raw_fd()));
    one_turn(&one);
    one_turn(&other);
}

#[test]
fn a_closed_descriptor_is_refused_with_the_system_s_error() {
    let event_loop = real_loop();
    let (peer, socket) = pair();
    let open = at_high_number(&*socket);
    let number = open.as_raw_fd();
    drop(open);
    let error = event_loop.add_reader(Number(number), || {}).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    let error = event_loop.watch(Rc::new(Number(number))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    assert!(!event_loop.remove_reader(number));

    // The number is nobody's yet.
    let trace = Trace::new();
    let log = trace.clone();
    let open = fcntl_dupfd_cloexec(&*socket, number).unwrap();
    assert_eq!(open.as_raw_fd(), number);
    event_loop
        .add_reader(open, move || log.log("read"))
        .unwrap();
    send(&peer, "x");
    one_turn(&event_loop);
    trace.assert(&["read"]);
}

#[test]
fn after_a_hang_up_a_reader_reads_what_is_left_and_then_the_end() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (reading, writing) = pipe().unwrap();
    rustix::io::write(&writing, b"last words").unwrap();
    drop(writing);
    let reading = Rc::new(reading);
    let (log, source) = (trace.clone(), Rc::clone(&reading));
    let watch = event_loop
        .add_reader(reading, move || {
            let mut buffer = [0; 8];
            let count = rustix::io::read(&*source, &mut buffer).unwrap();
            log.log(String::from_utf8_lossy(&buffer[..count]));
        })
        .unwrap();
    for _ in 0..4 {
        one_turn(&event_loop);
    }
    trace.assert(&["last wor", "ds", "", ""]);
    assert!(event_loop.remove_reader(watch));
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
}

#[test]
fn a_writer_is_told_when_the_reading_end_of_its_pipe_is_gone() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (reading, writing) = pipe().unwrap();
    rustix::fs::fcntl_setfl(&writing, rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writing, &[0; 4096]).is_ok() {}
    let writing = Rc::new(writing);
    let (log, sink) = (trace.clone(), Rc::clone(&writing));
    event_loop
        .add_writer(writing, move || {
            log.log(rustix::io::write(&*sink, b"x").unwrap_err());
        })
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    drop(reading);
    one_turn(&event_loop);
    trace.assert(&[rustix::io::Errno::PIPE.to_string()]);
}

#[test]
fn a_reader_may_remove_or_replace_itself_and_the_writer() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    send(&peer, "x");
    let number = socket.as_raw_fd();
    let writer = trace.clone();
    event_loop
        .add_writer(Rc::clone(&socket), move || writer.log("writer"))
        .unwrap();
    let (log, handle) = (trace.clone(), event_loop.handle());
    let owner = Rc::clone(&socket);
    event_loop
        .add_reader(Rc::clone(&socket), move || {
            log.log("reader replaces both");
            let (again, other) = (log.clone(), log.clone());
            let inner = handle.clone();
            handle
                .add_reader(Rc::clone(&owner), move || {
                    again.log(format!(
                        "reader removes itself: {}",
                        inner.remove_reader(number)
                    ));
                    again.log(format!("and once more: {}", inner.remove_reader(number)));
                })
                .unwrap();
            handle
                .add_writer(Rc::clone(&owner), move || other.log("other writer"))
                .unwrap();
        })
        .unwrap();

    one_turn(&event_loop);
    // The writer stood in the line; the one in its place was not the one that was ready.
    trace.assert(&["reader replaces both"]);
    one_turn(&event_loop);
    trace.assert(&[
        "reader removes itself: true",
        "and once more: false",
        "other writer",
    ]);
    one_turn(&event_loop);
    trace.assert(&["other writer"]);
    drop(event_loop);
    assert_eq!(Rc::strong_count(&socket), 1, "nobody keeps it");
}

#[test]
fn a_callback_that_panics_is_reported_and_stays_registered() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| log.log(context.panic_message().unwrap()));
    let (peer, socket) = pair();
    send(&peer, "x");
    let times = Cell::new(0);
    event_loop
        .add_reader(Rc::clone(&socket), move || {
            times.set(times.get() + 1);
            panic!("reader, time {}", times.get());
        })
        .unwrap();
    event_loop.add_writer(socket, || panic!("writer")).unwrap();
    one_turn(&event_loop);
    trace.assert(&["reader, time 1", "writer"]);
    one_turn(&event_loop);
    trace.assert(&["reader, time 2", "writer"]);
}

#[test]
fn a_callback_runs_in_a_copy_of_the_context_it_was_added_in() {
    static COUNT: ContextVar<u32> = ContextVar::new("count");
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    send(&peer, "x");
    let context = coloop::Context::new();
    context.run(|| {
        COUNT.set(1);
        let log = trace.clone();
        event_loop
            .add_reader(socket, move || {
                log.log(COUNT.get().unwrap());
                COUNT.set(COUNT.get().unwrap() + 1);
            })
            .unwrap();
        COUNT.set(10);
    });
    one_turn(&event_loop);
    one_turn(&event_loop);
    // One copy, taken when it was added: what the callback sets there stays there.
    trace.assert(&["1", "2"]);
    assert_eq!((context.get(&COUNT), COUNT.get()), (Some(10), None));
}

#[test]
fn a_watch_replaced_while_it_stands_in_the_line_is_not_run_in_that_turn() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let ((near, first), (far, second)) = (pair(), pair());
    send(&near, "x");
    send(&far, "x");
    let (log, handle, owner) = (trace.clone(), event_loop.handle(), Rc::clone(&second));
    event_loop
        .add_reader(Rc::clone(&first), move || {
            log.log(drain(&first));
            let log = log.clone();
            handle
                .add_reader(Rc::clone(&owner), move || log.log("replacement"))
                .unwrap();
        })
        .unwrap();
    let log = trace.clone();
    event_loop
        .add_reader(second, move || log.log("replaced"))
        .unwrap();
    one_turn(&event_loop);
    trace.assert(&["x"]);
    one_turn(&event_loop);
    trace.assert(&["replacement"]);
}

#[test]
fn a_watch_id_removes_its_own_watch_and_no_later_one() {
    let event_loop = real_loop();
    let (_peer, socket) = pair();
    let first = event_loop.add_reader(Rc::clone(&socket), || {}).unwrap();
    let second = event_loop.add_reader(Rc::clone(&socket), || {}).unwrap();
    assert_ne!(first, second);
    assert!(!event_loop.remove_reader(first), "it was replaced");
    assert!(event_loop.remove_reader(second));
    let third = event_loop.add_reader(Rc::clone(&socket), || {}).unwrap();
    assert!(!event_loop.remove_reader(first) && !event_loop.remove_reader(second));
    assert!(
        event_loop.remove_reader(socket.as_raw_fd()),
        "a number is any watch"
    );
    assert!(!event_loop.remove_reader(third));
}

#[test]
fn what_a_watch_holds_is_dropped_before_its_removal_returns() {
    let event_loop = real_loop();
    let (_peer, socket) = pair();
    let number = socket.as_raw_fd();
    let token = Rc::new(());
    let held = || {
        let token = Rc::clone(&token);
        move || drop(Rc::clone(&token))
    };
    event_loop.add_reader(Rc::clone(&socket), held()).unwrap();
    event_loop.add_reader(Rc::clone(&socket), held()).unwrap();
    assert_eq!(Rc::strong_count(&token), 2, "the first has been replaced");
    event_loop.add_writer(Rc::clone(&socket), held()).unwrap();
    assert_eq!(Rc::strong_count(&token), 3);
    assert!(event_loop.remove_reader(number));
    assert_eq!(Rc::strong_count(&token), 2);
    assert!(event_loop.remove_writer(number));
    assert_eq!(
        (Rc::strong_count(&token), Rc::strong_count(&socket)),
        (1, 1)
    );

    event_loop.add_writer(Rc::clone(&socket), held()).unwrap();
    event_loop.close().unwrap();
    assert_eq!(
        (Rc::strong_count(&token), Rc::strong_count(&socket)),
        (1, 1)
    );
    let error = event_loop.add_reader(socket, held()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert_eq!(Rc::strong_count(&token), 1);
}

#[test]
fn a_descriptor_stays_open_for_as_long_as_it_is_watched() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let log = trace.clone();
    let watch = event_loop
        .add_reader(socket, move || log.log("read"))
        .unwrap();
    send(&peer, "x");
    one_turn(&event_loop);
    trace.assert(&["read"]);
    assert!(event_loop.remove_reader(watch));
    let closed = (&peer).write(b"x").unwrap_err();
    assert_eq!(closed.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn the_reader_of_a_descriptor_comes_before_its_writer() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let sockets: Vec<_> = (0..3).map(|_| pair()).collect();
    for (number, (peer, socket)) in sockets.iter().enumerate() {
        let (read, write) = (trace.clone(), trace.clone());
        let writer = move || write.log(format!("write {number}"));
        event_loop.add_writer(Rc::clone(socket), writer).unwrap();
        let reader = move || read.log(format!("read {number}"));
        event_loop.add_reader(Rc::clone(socket), reader).unwrap();
        send(peer, "x");
    }
    one_turn(&event_loop);
    let mut by_descriptor = trace.take();
    // Which descriptor comes first is the system's business.
    by_descriptor.sort_by_key(|entry| entry.split(' ').nth(1).unwrap().to_owned());
    let expected = [
        "read 0", "write 0", "read 1", "write 1", "read 2", "write 2",
    ];
    assert_eq!(by_descriptor, expected);
}

/// More than one wait can report.
#[test]
fn five_thousand_descriptors_that_are_ready_at_once_are_all_served() {
    let count = (raise_limit() as usize / 2).clamp(1_100, 5_000);
    let event_loop = real_loop();
    let times: Rc<Vec<Cell<u32>>> = Rc::new((0..count).map(|_| Cell::new(0)).collect());
    for number in 0..count {
        let ready = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let times = Rc::clone(&times);
        let reader = move || times[number].set(times[number].get() + 1);
        event_loop.add_reader(ready, reader).unwrap();
    }
    let mut turns = 0;
    while times.iter().any(|times| times.get() == 0) {
        one_turn(&event_loop);
        turns += 1;
        assert!(turns <= count.div_ceil(1_000), "somebody starves");
    }
    // They all stay ready: nobody is served twice before everybody has been served once.
    let most = times.iter().map(Cell::get).max();
    assert_eq!(most, Some(if count.is_multiple_of(1_024) { 1 } else { 2 }));
}

#[test]
fn a_copy_of_a_descriptor_is_another_descriptor() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let copy = dup(&*socket).unwrap();
    let number = copy.as_raw_fd();
    let (first, second) = (trace.clone(), trace.clone());
    event_loop
        .add_reader(socket, move || first.log("original"))
        .unwrap();
    event_loop
        .add_reader(copy, move || second.log("copy"))
        .unwrap();
    send(&peer, "x");
    one_turn(&event_loop);
    let mut called = trace.take();
    called.sort(); // which comes first is the system's business
    assert_eq!(called, ["copy", "original"]);
    assert!(event_loop.remove_reader(number));
    one_turn(&event_loop);
    trace.assert(&["original"]);
}
