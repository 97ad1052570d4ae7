//! The grounds on which one and the same code tries the contract between transports and protocols:
//! sockets of the system, streams in memory, and a transport that is built like a third party's.
//!
//! A [`Stage`] is a loop on one ground. It connects a near and a far [`Side`]: a protocol that logs
//! every call, and reacts as the test says. What a ground does otherwise than others is data, in
//! [`Ground`]. Nothing here sleeps: who waits for something is woken by the call that brings it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::AsyncFn;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use coloop::testing::{Clock, Memory, Wire};
use coloop::{
    AnyProtocol, BufferedProtocol, Eof, EventLoop, Factory, LoopHandle, Protocol, ProtocolHandle,
    ServerFactory, Transport, buffered, seat, seat_buffered,
};
use socket2::SockRef;

use crate::verbs::{Trace, builder};

/// Where a pair of protocols is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// A server and a client on the loopback interface.
    Tcp,
    /// A pair of unix sockets, each adopted.
    Unix,
    /// Two ends of a stream in memory, under a virtual clock.
    Memory,
    /// Two ends of a wire, under a virtual clock.
    Wire,
}

impl Ground {
    pub(crate) const ALL: [Self; 4] = [Self::Tcp, Self::Unix, Self::Memory, Self::Wire];

    /// The peer of an end that is aborted is told of a reset; elsewhere of an orderly end.
    pub(crate) fn resets(self) -> bool {
        matches!(self, Self::Tcp | Self::Wire)
    }

    /// A write may be taken in part. A wire takes everything, and counts what is too much as
    /// buffered.
    pub(crate) fn writes_in_part(self) -> bool {
        self != Self::Wire
    }

    /// What is reported in debug mode of a pair that is open when its loop is closed: each end by
    /// itself, or the task that keeps both.
    pub(crate) fn leak_reports(self) -> &'static [&'static str] {
        const OPEN: &str = "a connection was still open when its loop was closed";
        match self {
            Self::Wire => &["the loop is closed with a task still pending:"],
            _ => &[OPEN, OPEN],
        }
    }

    /// There is a descriptor under it.
    pub(crate) fn has_descriptor(self) -> bool {
        matches!(self, Self::Tcp | Self::Unix)
    }

    /// Time is the loop's own there.
    fn is_virtual(self) -> bool {
        !self.has_descriptor()
    }
}

/// A loop on one ground, and what was reported to it.
pub(crate) struct Stage {
    pub(crate) ground: Ground,
    pub(crate) event_loop: EventLoop,
    pub(crate) reports: Trace,
    memory: Option<Rc<Memory>>,
}

impl Stage {
    pub(crate) fn new(ground: Ground) -> Self {
        Self::with(ground, |builder| builder)
    }

    pub(crate) fn with(
        ground: Ground,
        configure: impl FnOnce(coloop::Builder) -> coloop::Builder,
    ) -> Self {
        let mut builder = configure(builder());
        let memory =
            (ground == Ground::Memory).then(|| Memory::over(coloop::default_selector().unwrap()));
        if ground.is_virtual() {
            builder = builder.clock(Clock::new());
        }
        if let Some(memory) = &memory {
            builder = builder.selector(Rc::<Memory>::clone(memory));
        }
        let event_loop = builder.build().unwrap();
        let reports = Trace::new();
        let log = reports.clone();
        event_loop.set_exception_handler(move |_, report| log.log(worded(report)));
        Self {
            ground,
            event_loop,
            reports,
            memory,
        }
    }

    /// Runs a scenario. One that hangs fails: at once where the clock is virtual.
    #[track_caller]
    pub(crate) fn run<T>(&self, scenario: impl Future<Output = T>) -> T {
        let limited = coloop::timeout(Duration::from_secs(120), scenario);
        match self.event_loop.run_until_complete(limited).unwrap() {
            Ok(output) => output,
            Err(_) => panic!("it hangs on {:?}", self.ground),
        }
    }

    /// Two streams of bytes of this ground, connected; none on a wire.
    pub(crate) fn streams(&self, room: usize) -> (MemoryEnd, MemoryEnd) {
        self.memory.as_ref().unwrap().stream_pair(room)
    }

    /// Connects two protocols. About `room` bytes are under way each way before writing has to wait.
    pub(crate) async fn connect<A, B>(
        &self,
        room: usize,
        near: A,
        far: B,
    ) -> (
        (Rc<dyn Transport>, ProtocolHandle<A::Protocol>),
        ProtocolHandle<B::Protocol>,
    )
    where
        A: Factory + 'static,
        B: Factory + 'static,
    {
        let handle = self.event_loop.handle();
        match self.ground {
            Ground::Tcp => connect_tcp(&handle, near, far).await,
            Ground::Unix => {
                let (a, b) = UnixStream::pair().unwrap();
                for socket in [&a, &b] {
                    SockRef::from(socket).set_send_buffer_size(room).unwrap();
                }
                let far = handle.create_connection_on(far, b).await.unwrap();
                let near = handle.create_connection_on(near, a).await.unwrap();
                (near, far.1)
            }
            Ground::Memory => {
                let (a, b) = self.streams(room);
                let far = handle.create_connection_over(far, b).await.unwrap();
                let near = handle.create_connection_over(near, a).await.unwrap();
                (near, far.1)
            }
            Ground::Wire => {
                let (near, far) = Wire::connect(&handle, room, near, far);
                (near, far.1)
            }
        }
    }

    /// Connects two sides, and waits until both know of it.
    pub(crate) async fn pair(&self, room: usize, near: &Rc<Side>, far: &Rc<Side>) -> Handles {
        let handles = match near.is_buffered {
            false => {
                let (near, far) = (near.plain(), far.plain());
                let ((_, near), far) = self.connect(room, || near, || far).await;
                Handles::Plain(near, far)
            }
            true => {
                let (near, far) = (near.lender(), far.plain());
                let ((_, near), far) = self.connect(room, buffered(|| near), || far).await;
                Handles::Buffered(near, far)
            }
        };
        near.until(|side| side.has("made")).await;
        far.until(|side| side.has("made")).await;
        handles
    }

    /// Lets several turns go by, so that what should not come would have come.
    pub(crate) async fn turns(&self) {
        for _ in 0..8 {
            coloop::yield_now().await;
        }
    }
}

pub(crate) type MemoryEnd = coloop::testing::MemoryStream;

/// The handles of a pair, for as long as it is to live.
#[expect(dead_code, reason = "what nobody asks for is held all the same")]
pub(crate) enum Handles {
    Plain(ProtocolHandle<Plain>, ProtocolHandle<Plain>),
    Buffered(ProtocolHandle<Lender>, ProtocolHandle<Plain>),
}

impl Handles {
    /// The handles of a pair of plain protocols.
    pub(crate) fn plain(self) -> (ProtocolHandle<Plain>, ProtocolHandle<Plain>) {
        match self {
            Self::Plain(near, far) => (near, far),
            Self::Buffered(..) => panic!("the near side lends its memory"),
        }
    }
}

/// A report as tests assert it.
pub(crate) fn worded(report: &coloop::ExceptionContext) -> String {
    match report.panic_message() {
        Some(panic) => format!("{}: {panic}", report.message()),
        None => report.message().to_owned(),
    }
}

/// Runs a scenario on every ground; what it returns is the same on all of them.
#[track_caller]
pub(crate) fn on_every_ground(scenario: impl AsyncFn(&Stage) -> Vec<String>, expected: &[&str]) {
    for ground in Ground::ALL {
        let stage = Stage::new(ground);
        let trace = stage.run(scenario(&stage));
        assert_eq!(trace, expected, "on {ground:?}");
        assert_eq!(stage.reports.take(), [""; 0], "on {ground:?}");
    }
}

/// The factory of a server that makes one protocol and keeps its handle for the test.
struct Once<F: Factory> {
    factory: Option<F>,
    handle: Rc<Cell<Option<ProtocolHandle<F::Protocol>>>>,
}

impl<F: Factory> ServerFactory for Once<F> {
    fn make(&mut self) -> AnyProtocol {
        let (protocol, handle) = self.factory.take().unwrap().make();
        self.handle.set(Some(handle));
        protocol
    }
}

async fn connect_tcp<A: Factory + 'static, B: Factory + 'static>(
    handle: &LoopHandle,
    near: A,
    far: B,
) -> (
    (Rc<dyn Transport>, ProtocolHandle<A::Protocol>),
    ProtocolHandle<B::Protocol>,
) {
    let kept = Rc::new(Cell::new(None));
    let once = Once {
        factory: Some(far),
        handle: Rc::clone(&kept),
    };
    let server = handle.create_server(once, "127.0.0.1:0").await.unwrap();
    let address = server.sockets()[0].local_addr().as_inet().unwrap();
    let near = handle.create_connection(near, address).await.unwrap();
    let far = loop {
        match kept.take() {
            Some(far) => break far,
            None => coloop::yield_now().await,
        }
    };
    server.close();
    (near, far)
}

/// How much is under way on a TCP connection: a side says so when its connection is made. With less,
/// the windows of the loopback interface make the system wait for its timers.
const TCP_ROOM: usize = 64 * 1024;

fn limit_room(transport: &Rc<dyn Transport>) {
    if let Some(coloop::Address::Inet(_)) = transport.local_addr() {
        transport.with_fd(&mut |fd| {
            SockRef::from(&fd).set_send_buffer_size(TCP_ROOM).unwrap();
        });
    }
}

// ---- Sides -------------------------------------------------------------------------------------

/// What a side does within a call: it is given the name of the call and the transport.
type React = Box<dyn FnMut(&str, &Rc<dyn Transport>)>;

/// One side of a connection: what its protocol was told, and what it is to do.
pub(crate) struct Side {
    pub(crate) trace: Trace,
    is_buffered: bool,
    react: Cell<Option<React>>,
    eof: Cell<Eof>,
    /// How much a buffered one lends at a time.
    lends: Cell<usize>,
    transport: RefCell<Option<Rc<dyn Transport>>>,
    received: RefCell<Vec<u8>>,
    seen: RefCell<Vec<&'static str>>,
    depth: Cell<u32>,
    waiting: Cell<Option<Waker>>,
}

impl Side {
    pub(crate) fn new() -> Rc<Self> {
        Self::of_kind(false)
    }

    /// One whose protocol lends the memory to read into.
    pub(crate) fn lending() -> Rc<Self> {
        Self::of_kind(true)
    }

    pub(crate) fn of_kind(is_buffered: bool) -> Rc<Self> {
        Rc::new(Self {
            trace: Trace::new(),
            is_buffered,
            react: Cell::new(None),
            eof: Cell::default(),
            lends: Cell::new(64 * 1024),
            transport: RefCell::default(),
            received: RefCell::default(),
            seen: RefCell::default(),
            depth: Cell::new(0),
            waiting: Cell::new(None),
        })
    }

    pub(crate) fn is_buffered(&self) -> bool {
        self.is_buffered
    }

    /// Stays open when the peer will send no more.
    pub(crate) fn keeps_open(self: Rc<Self>) -> Rc<Self> {
        self.eof.set(Eof::KeepOpen);
        self
    }

    pub(crate) fn lends(self: Rc<Self>, size: usize) -> Rc<Self> {
        self.lends.set(size);
        self
    }

    pub(crate) fn reacts(
        self: Rc<Self>,
        react: impl FnMut(&str, &Rc<dyn Transport>) + 'static,
    ) -> Rc<Self> {
        self.react.set(Some(Box::new(react)));
        self
    }

    pub(crate) fn plain(self: &Rc<Self>) -> Plain {
        Plain(Rc::clone(self), "")
    }

    pub(crate) fn lender(self: &Rc<Self>) -> Lender {
        Lender(Rc::clone(self), "", Vec::new())
    }

    /// Another protocol of this side, to take the place of the first; its calls are marked so.
    pub(crate) fn seated(self: &Rc<Self>, mark: &'static str, lends: bool) -> AnyProtocol {
        if lends {
            seat_buffered(Lender(Rc::clone(self), mark, Vec::new())).0
        } else {
            seat(Plain(Rc::clone(self), mark)).0
        }
    }

    /// The transport, from `connection_made` on.
    pub(crate) fn t(&self) -> Rc<dyn Transport> {
        Rc::clone(self.transport.borrow().as_ref().unwrap())
    }

    /// Lets go of the transport.
    pub(crate) fn forget(&self) {
        let transport = self.transport.take();
        drop(transport);
    }

    pub(crate) fn received(&self) -> Vec<u8> {
        self.received.borrow().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.received.borrow().len()
    }

    /// Tells whether a call of this name was made.
    pub(crate) fn has(&self, call: &str) -> bool {
        self.times(call) > 0
    }

    pub(crate) fn times(&self, call: &str) -> usize {
        self.seen
            .borrow()
            .iter()
            .filter(|seen| **seen == call)
            .count()
    }

    pub(crate) fn seen(&self) -> Vec<&'static str> {
        self.seen.borrow().clone()
    }

    /// Waits until something is so, asked after each call of the protocol.
    pub(crate) async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        poll_fn(|cx| {
            if is_so(self) {
                return Poll::Ready(());
            }
            self.waiting.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    /// Waits for a call of this name, or for the end.
    pub(crate) async fn until_call(&self, call: &str) {
        self.until(|side| side.has(call) || side.has("lost")).await;
    }

    pub(crate) async fn until_lost(&self) {
        self.until(|side| side.has("lost")).await;
    }

    fn call<R>(
        &self,
        call: &'static str,
        shown: &str,
        transport: &Rc<dyn Transport>,
        then: impl FnOnce() -> R,
    ) -> R {
        let _entered = self.enter();
        self.trace.log(shown);
        self.seen.borrow_mut().push(call);
        if call == "made" {
            limit_room(transport);
        }
        *self.transport.borrow_mut() = Some(Rc::clone(transport));
        self.react_to(call, transport);
        then()
    }

    fn react_to(&self, call: &str, transport: &Rc<dyn Transport>) {
        if let Some(mut react) = self.react.take() {
            // A reaction that panics is gone.
            react(call, transport);
            self.react.set(Some(react));
        }
    }

    /// A call within a call breaks the first promise: it is in the trace then.
    fn enter(&self) -> Entered<'_> {
        if self.depth.replace(self.depth.get() + 1) > 0 {
            self.trace.log("NESTED");
        }
        Entered(self)
    }
}

struct Entered<'a>(&'a Side);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.depth.set(self.0.depth.get() - 1);
        if let Some(waker) = self.0.waiting.take() {
            waker.wake();
        }
    }
}

/// The protocol of a side that is given its bytes.
pub(crate) struct Plain(Rc<Side>, &'static str);

/// The protocol of a side that lends memory to read into.
pub(crate) struct Lender(Rc<Side>, &'static str, Vec<u8>);

/// The calls that protocols of both kinds know.
macro_rules! common_calls {
    () => {
        fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
            let shown = format!("{}made", self.1);
            self.0.call("made", &shown, transport, || ());
        }
        fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
            let shown = format!("{}eof", self.1);
            self.0.call("eof", &shown, transport, || self.0.eof.get())
        }
        fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
            let shown = format!("{}pause", self.1);
            self.0.call("pause", &shown, transport, || ());
        }
        fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
            let shown = format!("{}resume", self.1);
            self.0.call("resume", &shown, transport, || ());
        }
        fn connection_lost(&mut self, transport: &Rc<dyn Transport>, error: Option<&io::Error>) {
            let shown = match error {
                None => format!("{}lost", self.1),
                Some(error) if error.get_ref().is_some() => format!("{}lost: {error}", self.1),
                Some(error) => format!("{}lost: {:?}", self.1, error.kind()),
            };
            self.0.call("lost", &shown, transport, || ());
        }
    };
}

impl Protocol for Plain {
    common_calls!();

    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        assert!(!data.is_empty());
        self.0.received.borrow_mut().extend(data);
        let shown = format!("{}data", self.1);
        self.0.call("data", &shown, transport, || ());
    }
}

impl BufferedProtocol for Lender {
    common_calls!();

    fn get_buffer(&mut self, _: Option<usize>) -> &mut [u8] {
        let side = Rc::clone(&self.0);
        let _entered = side.enter();
        side.seen.borrow_mut().push("buffer");
        let transport = side.transport.borrow().clone();
        // One that has been seated later does not know it yet.
        if let Some(transport) = transport {
            side.react_to("buffer", &transport);
        }
        self.2.resize(side.lends.get(), 0);
        &mut self.2
    }

    fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize) {
        self.0.received.borrow_mut().extend(&self.2[..count]);
        let shown = format!("{}data", self.1);
        self.0.call("data", &shown, transport, || ());
    }
}

/// Says what every trace of a protocol's calls must keep to, and finds what does not.
pub(crate) fn broken_promises(seen: &[&'static str], trace: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    let calls: Vec<_> = seen.iter().filter(|call| **call != "buffer").collect();
    let times = |name: &str| calls.iter().filter(|call| **call == &name).count();
    if trace.iter().any(|line| line == "NESTED") {
        wrong.push("a call within a call".to_owned());
    }
    if times("made") != 1 || calls.first() != Some(&&"made") {
        wrong.push("made is not once and first".to_owned());
    }
    if times("lost") != 1 || calls.last() != Some(&&"lost") {
        wrong.push("lost is not once and last".to_owned());
    }
    if times("eof") > 1 {
        wrong.push("eof twice".to_owned());
    }
    let flow: Vec<_> = calls
        .iter()
        .filter(|call| ["pause", "resume"].contains(**call))
        .collect();
    for (at, call) in flow.iter().enumerate() {
        if ***call != ["pause", "resume"][at % 2] {
            wrong.push(format!("{call} twice"));
        }
    }
    let eof = calls.iter().position(|call| **call == "eof");
    if eof.is_some_and(|at| calls[at..].iter().any(|call| **call == "data")) {
        wrong.push("data after the end of it".to_owned());
    }
    wrong
}
