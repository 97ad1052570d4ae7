//! Every public method from inside every kind of user code.
//!
//! `VERBS` has an entry for each public function, which a scan of the sources checks; `PLACES` has one
//! for each way in which a loop, or a value of its makings, comes to run code of the program's. Each
//! verb is done once in each place. Nothing may panic, and the loop still works afterwards.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::future::{Future, IntoFuture, pending, poll_fn};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe, resume_unwind};
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::Stream;

use coloop::policy::{self, DefaultPolicy, NoCurrentLoop};
use coloop::sync;
use coloop::testing::{self, Memory, Wire};
use coloop::{
    Address, Bell, BufferedProtocol, ByteStream, Cancelled, Clock, Context, ContextVar, Eof,
    EventLoop, ExceptionContext, Family, Interest, JoinError, LocalBoxFuture, LookupFlags,
    LoopHandle, PanicPolicy, Payload, Protocol, Readiness, Seat, Selector, Server, Signal, Source,
    Task, TaskBuilder, TaskFactory, TaskRef, Transport, Until, Watched, WriteLimits, as_completed,
    buffered, cancelled, current, current_task, default_selector, defer_cancel, gather, gather_all,
    seat, seat_buffered, sleep, timeout, timeout_at, try_current, until_cancelled, wait, wait_for,
    yield_now,
};

use crate::fd::{pair, send};
use crate::lifecycle::in_child;
use crate::verbs::builder;

// ---- Moments -----------------------------------------------------------------------------------

type Armed = (&'static str, Rc<dyn Fn()>);

thread_local! {
    /// What happens at which moment: once, in the place that is being tried.
    static ARMED: RefCell<Option<Armed>> = const { RefCell::new(None) };
}

/// The program's code runs here: what it was armed with is done.
fn moment(place: &str) {
    let armed = ARMED.with_borrow_mut(|armed| armed.take_if(|(name, _)| *name == place));
    if let Some((_, act)) = armed {
        act();
    }
}

/// Its destructor is a moment.
#[derive(Debug)]
struct OnDrop(&'static str);

impl Drop for OnDrop {
    fn drop(&mut self) {
        moment(self.0);
    }
}

/// Its clones are moments.
#[derive(Debug)]
struct OnClone(&'static str);

impl Clone for OnClone {
    fn clone(&self) -> Self {
        moment(self.0);
        Self(self.0)
    }
}

/// Waking it is a moment.
struct OnWake(&'static str);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        moment(self.0);
    }
}

/// The last of its wakers that is dropped is a moment.
struct OnWakerDrop(OnDrop);

impl Wake for OnWakerDrop {
    fn wake(self: Arc<Self>) {
        let _ = &self.0;
    }
}

/// Sends a signal to this thread.
fn raise(signal: Signal) {
    signal_hook::low_level::raise(signal.as_raw()).unwrap();
}

/// A closure that holds something and does nothing.
fn holds<T: 'static>(held: T) -> impl Fn() + 'static {
    move || {
        let _ = &held;
    }
}

/// A future that holds something and is never ready.
async fn pending_with<T>(held: T) {
    pending::<()>().await;
    drop(held);
}

/// A clock, a selector and a bell whose every call is a moment.
struct HookedClock(Rc<testing::Clock>);

impl Clock for HookedClock {
    fn now(&self) -> Instant {
        moment("the clock is read");
        self.0.now()
    }

    fn jump(&self, deadline: Instant) -> bool {
        moment("the clock jumps");
        self.0.jump(deadline)
    }

    fn is_virtual(&self) -> bool {
        true
    }
}

struct HookedSelector(Rc<dyn Selector>);

impl Selector for HookedSelector {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        moment("the selector adds");
        self.0.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        moment("the selector modifies");
        self.0.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        moment("the selector deletes");
        self.0.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        moment("the selector waits");
        self.0.wait(ready, timeout)
    }

    fn bell(&self) -> Arc<dyn Bell> {
        struct Hooked(Arc<dyn Bell>);
        impl Bell for Hooked {
            fn ring(&self) {
                moment("the bell is rung");
                self.0.ring();
            }
        }
        Arc::new(Hooked(self.0.bell()))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor()
    }
}

/// A loop, and what verbs and places have at hand.
struct World {
    event_loop: EventLoop,
    handle: LoopHandle,
    clock: Rc<testing::Clock>,
    memory: Rc<Memory>,
    payloads: RefCell<Vec<Payload>>,
}

impl World {
    fn new() -> Rc<Self> {
        let clock = testing::Clock::new();
        let hooked = Rc::new(HookedSelector(default_selector().unwrap()));
        let memory = Memory::over(hooked);
        let event_loop = builder()
            .clock(Rc::new(HookedClock(Rc::clone(&clock))))
            .selector(Rc::<Memory>::clone(&memory))
            .build()
            .unwrap();
        // The payloads that the verbs look at; thrown without the panic hook's noise.
        let mut payloads = Vec::new();
        let task = event_loop.create_task(async { resume_unwind(Box::new("a payload")) });
        if let Ok(Err(JoinError::Panicked(payload))) = event_loop.run_until_complete(task) {
            payloads.push(payload);
        }
        Rc::new(Self {
            handle: event_loop.handle(),
            event_loop,
            clock,
            memory,
            payloads: RefCell::new(payloads),
        })
    }

    /// One turn that does not wait, however the loop is by now.
    fn turn(&self) {
        self.handle.stop();
        // Closed, or running already: a verb has seen to that.
        let _ = self.event_loop.run_forever();
    }

    fn turns(&self) {
        for _ in 0..4 {
            self.turn();
        }
    }

    /// Another loop, to be used beside this one.
    fn another(&self) -> EventLoop {
        builder().build().unwrap()
    }

    fn task<F: Future + 'static>(&self, future: F) -> Task<F::Output> {
        self.handle.create_task(future)
    }

    fn timeout_handle(&self) -> (coloop::Timeout<impl Future>, coloop::TimeoutHandle) {
        let mut limited = timeout(Duration::from_secs(1), pending::<()>());
        let handle = limited.handle();
        (limited, handle)
    }

    /// A transport in memory; its loop may be closed already.
    fn wire(&self) -> Rc<dyn Transport> {
        Wire::connect(&self.handle, 64, mute, mute).0.0
    }

    /// Looks at a new server, where a loop runs in which one can be made.
    fn server(&self, look: impl FnOnce(&Server)) {
        let mut making = self.handle.create_server_on(mute, listener()).into_future();
        let mut cx = PollContext::from_waker(Waker::noop());
        if let Poll::Ready(Ok(server)) = making.as_mut().poll(&mut cx) {
            look(&server);
            server.close();
        }
    }

    fn watched(&self) -> Option<(UnixStream, Watched<Rc<UnixStream>>)> {
        let (peer, socket) = pair();
        Some((peer, self.handle.watch(socket).ok()?))
    }
}

/// Polls a future once, with a waker that does nothing.
fn poll_once(future: impl Future) {
    let mut cx = PollContext::from_waker(Waker::noop());
    let _ = pin!(future).poll(&mut cx);
}

/// Polls a future that needs a running loop, where one runs.
fn poll_in_loop(future: impl Future) {
    if try_current().is_ok() {
        poll_once(future);
    }
}

/// What a verb gives is nobody's.
fn ignore<T>(_: T) {}

/// What panics by its contract, and by that alone.
fn may_panic(f: impl FnOnce()) {
    let _ = panic::catch_unwind(AssertUnwindSafe(f));
}

/// A protocol that says nothing.
struct Mute;
impl Protocol for Mute {
    fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}
}

fn mute() -> Mute {
    Mute
}

/// A protocol that lends its memory.
#[derive(Default)]
struct Lender([u8; 8]);
impl BufferedProtocol for Lender {
    fn get_buffer(&mut self, _: Option<usize>) -> &mut [u8] {
        &mut self.0
    }
    fn buffer_updated(&mut self, _: &Rc<dyn Transport>, _: usize) {}
}

fn a_seat() -> Seat {
    Seat::new(seat(Mute).0)
}

fn here() -> Address {
    Address::Inet(([127, 0, 0, 1], 0).into())
}

/// One end of a pair of sockets; the other is closed.
fn near_end() -> UnixStream {
    UnixStream::pair().unwrap().0
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

fn a_barrier() -> sync::Barrier {
    sync::Barrier::new(2).unwrap()
}

/// A queue that is full.
fn a_queue() -> sync::Queue<u32> {
    let queue = sync::Queue::bounded(1).unwrap();
    queue.try_put(1).unwrap();
    queue
}

// ---- Verbs -------------------------------------------------------------------------------------

static VARIABLE: ContextVar<u32> = ContextVar::new("variable");
static HELD: ContextVar<Rc<OnDrop>> = ContextVar::new("held");

struct Plain;
impl TaskFactory for Plain {}

const SECOND: Duration = Duration::from_secs(1);

type Verb = (&'static str, fn(&World));

/// One for each public function, by its type and name.
const VERBS: &[Verb] = &[
    // sync
    ("Lock::new", |_| ignore(sync::Lock::new())),
    ("Lock::acquire", |_| poll_once(sync::Lock::new().acquire())),
    ("Lock::try_acquire", |_| {
        assert!(sync::Lock::new().try_acquire().is_some());
    }),
    ("Lock::is_locked", |_| {
        assert!(!sync::Lock::new().is_locked());
    }),
    ("Event::new", |_| ignore(sync::Event::new())),
    ("Event::set", |_| sync::Event::new().set()),
    ("Event::clear", |_| sync::Event::new().clear()),
    ("Event::is_set", |_| assert!(!sync::Event::new().is_set())),
    ("Event::wait", |_| poll_once(sync::Event::new().wait())),
    ("Condition::new", |_| ignore(sync::Condition::new())),
    ("Condition::wait", |_| {
        let (lock, condition) = (sync::Lock::new(), sync::Condition::new());
        poll_once(condition.wait(lock.try_acquire().unwrap()));
    }),
    ("Condition::wait_for", |_| {
        let (lock, condition) = (sync::Lock::new(), sync::Condition::new());
        poll_once(condition.wait_for(lock.try_acquire().unwrap(), || false));
    }),
    ("Condition::notify", |_| sync::Condition::new().notify(1)),
    ("Condition::notify_all", |_| {
        sync::Condition::new().notify_all();
    }),
    ("Semaphore::new", |_| ignore(sync::Semaphore::new(1))),
    ("Semaphore::acquire", |_| {
        poll_once(sync::Semaphore::new(0).acquire());
    }),
    ("Semaphore::try_acquire", |_| {
        assert!(sync::Semaphore::new(0).try_acquire().is_none());
    }),
    ("Semaphore::add_permits", |_| {
        sync::Semaphore::new(0).add_permits(2);
    }),
    ("Semaphore::available", |_| {
        assert_eq!(sync::Semaphore::new(2).available(), 2);
    }),
    ("Semaphore::is_locked", |_| {
        assert!(sync::Semaphore::new(0).is_locked());
    }),
    ("Permit::forget", |_| {
        sync::Semaphore::new(1).try_acquire().unwrap().forget();
    }),
    ("BoundedSemaphore::new", |_| {
        ignore(sync::BoundedSemaphore::new(1));
    }),
    ("BoundedSemaphore::acquire", |_| {
        poll_once(sync::BoundedSemaphore::new(0).acquire());
    }),
    ("BoundedSemaphore::try_acquire", |_| {
        assert!(sync::BoundedSemaphore::new(1).try_acquire().is_some());
    }),
    ("BoundedSemaphore::release", |_| {
        assert!(sync::BoundedSemaphore::new(1).release().is_err());
    }),
    ("BoundedSemaphore::available", |_| {
        assert_eq!(sync::BoundedSemaphore::new(1).available(), 1);
    }),
    ("BoundedSemaphore::bound", |_| {
        assert_eq!(sync::BoundedSemaphore::new(1).bound(), 1);
    }),
    ("BoundedSemaphore::is_locked", |_| {
        assert!(!sync::BoundedSemaphore::new(1).is_locked());
    }),
    ("Barrier::new", |_| ignore(sync::Barrier::new(0))),
    ("Barrier::wait", |_| poll_once(a_barrier().wait())),
    ("Barrier::reset", |_| a_barrier().reset()),
    ("Barrier::abort", |_| a_barrier().abort()),
    ("Barrier::parties", |_| {
        assert_eq!(a_barrier().parties(), 2);
    }),
    ("Barrier::waiting", |_| {
        assert_eq!(a_barrier().waiting(), 0);
    }),
    ("Barrier::is_broken", |_| assert!(!a_barrier().is_broken())),
    ("Queue::new", |_| ignore(sync::Queue::<u32>::new())),
    ("Queue::bounded", |_| ignore(sync::Queue::<u32>::bounded(0))),
    ("Queue::put", |_| poll_once(a_queue().put(2))),
    ("Queue::get", |_| poll_once(a_queue().get())),
    ("Queue::try_put", |_| {
        assert!(a_queue().try_put(2).is_err());
    }),
    ("Queue::try_get", |_| assert_eq!(a_queue().try_get(), Ok(1))),
    ("Queue::len", |_| assert_eq!(a_queue().len(), 1)),
    ("Queue::is_empty", |_| assert!(!a_queue().is_empty())),
    ("Queue::is_full", |_| assert!(a_queue().is_full())),
    ("Queue::capacity", |_| {
        assert_eq!(a_queue().capacity(), Some(1));
    }),
    ("Queue::task_done", |_| {
        a_queue().task_done().unwrap();
    }),
    ("Queue::unfinished", |_| {
        assert_eq!(a_queue().unfinished(), 1);
    }),
    ("Queue::join", |_| poll_once(a_queue().join())),
    ("Queue::shutdown", |_| a_queue().shutdown()),
    ("Queue::shutdown_now", |_| {
        assert_eq!(a_queue().shutdown_now(), [1]);
    }),
    ("Queue::is_shut_down", |_| {
        assert!(!a_queue().is_shut_down());
    }),
    ("Put::into_item", |_| {
        assert_eq!(a_queue().put(2).into_item(), Some(2));
    }),
    ("PriorityQueue::new", |_| {
        ignore(sync::PriorityQueue::<u32>::new());
    }),
    ("PriorityQueue::bounded", |_| {
        ignore(sync::PriorityQueue::<u32>::bounded(0));
    }),
    ("LifoQueue::new", |_| ignore(sync::LifoQueue::<u32>::new())),
    ("LifoQueue::bounded", |_| {
        ignore(sync::LifoQueue::<u32>::bounded(0));
    }),
    ("TryPutError::into_item", |_| {
        assert_eq!(a_queue().try_put(2).unwrap_err().into_item(), 2);
    }),
    // address
    ("Address::as_inet", |_| ignore(here().as_inet())),
    ("Address::ip", |_| ignore(here().ip())),
    ("Address::port", |_| assert_eq!(here().port(), Some(0))),
    // connection
    ("buffered", |_| ignore(buffered(Lender::default))),
    ("seat", |_| ignore(seat(Mute))),
    ("seat_buffered", |_| {
        ignore(seat_buffered(Lender::default()));
    }),
    ("ProtocolHandle::with", |_| {
        seat(Mute).1.with(|_| ()).unwrap();
    }),
    ("ProtocolHandle::closed", |_| {
        poll_once(seat(Mute).1.closed());
    }),
    ("WriteLimits::high", |_| ignore(WriteLimits::high(1))),
    ("WriteLimits::low", |_| ignore(WriteLimits::low(1))),
    ("dyn::fact", |w| {
        ignore(w.wire().fact::<u32>());
    }),
    ("Seat::new", |_| ignore(a_seat())),
    ("Seat::is_free", |_| assert!(a_seat().is_free())),
    ("Seat::is_buffered", |_| assert!(!a_seat().is_buffered())),
    ("Seat::set_protocol", |_| {
        a_seat().set_protocol(seat(Mute).0);
    }),
    ("Seat::connection_made", |w| {
        a_seat().connection_made(&w.wire()).unwrap();
    }),
    ("Seat::data_received", |w| {
        a_seat().data_received(&w.wire(), b"x").unwrap();
    }),
    ("Seat::read_with", |w| {
        let seat = Seat::new(seat_buffered(Lender::default()).0);
        let read = seat.read_with(&w.wire(), None, &mut |_| Ok(1));
        assert_eq!(read.unwrap().unwrap(), 1);
    }),
    ("Seat::eof_received", |w| {
        assert_eq!(a_seat().eof_received(&w.wire()).unwrap(), Eof::Close);
    }),
    ("Seat::connection_lost", |w| {
        a_seat().connection_lost(&w.wire(), &mut None).unwrap();
    }),
    ("Seat::let_go", |_| a_seat().let_go()),
    ("Seat::set_writing_paused", |_| {
        assert!(a_seat().set_writing_paused(true));
    }),
    ("Seat::is_writing_paused", |_| {
        assert!(!a_seat().is_writing_paused());
    }),
    ("Seat::silence", |_| a_seat().silence()),
    ("Seat::tell_flow", |w| {
        a_seat().tell_flow(&w.wire()).unwrap();
    }),
    ("testing::Wire::connect", |w| ignore(w.wire())),
    // net
    ("LoopHandle::create_connection", |w| {
        poll_in_loop(
            w.handle
                .create_connection(mute, "127.0.0.1:9")
                .into_future(),
        );
    }),
    ("LoopHandle::create_connection_on", |w| {
        poll_in_loop(
            w.handle
                .create_connection_on(mute, near_end())
                .into_future(),
        );
    }),
    ("LoopHandle::connect_accepted_socket", |w| {
        poll_in_loop(
            w.handle
                .connect_accepted_socket(mute, near_end())
                .into_future(),
        );
    }),
    ("LoopHandle::create_connection_over", |w| {
        let near = Rc::new(near_end());
        poll_in_loop(w.handle.create_connection_over(mute, near));
    }),
    ("ConnectErrors::attempts", |_| {}),
    ("ConnectSocket::delay", |w| {
        poll_in_loop(
            w.handle
                .create_connection_on(mute, near_end())
                .delay()
                .into_future(),
        );
    }),
    ("CreateConnection::delay", |w| {
        ignore(w.handle.create_connection(mute, "nowhere").delay());
    }),
    ("CreateConnection::family", |w| {
        ignore(
            w.handle
                .create_connection(mute, "nowhere")
                .family(Family::V6),
        );
    }),
    ("CreateConnection::flags", |w| {
        let flags = LookupFlags::default();
        ignore(w.handle.create_connection(mute, "nowhere").flags(flags));
    }),
    ("CreateConnection::local_addr", |w| {
        ignore(
            w.handle
                .create_connection(mute, "nowhere")
                .local_addr("here"),
        );
    }),
    ("CreateConnection::proto", |w| {
        ignore(w.handle.create_connection(mute, "nowhere").proto(6));
    }),
    ("LoopHandle::create_server", |w| {
        poll_in_loop(w.handle.create_server(mute, "127.0.0.1:0").into_future());
    }),
    ("LoopHandle::create_server_on", |w| {
        poll_in_loop(w.handle.create_server_on(mute, listener()).into_future());
    }),
    ("CreateServer::backlog", |w| {
        ignore(w.handle.create_server(mute, 0).backlog(1));
    }),
    ("CreateServer::delay", |w| {
        ignore(w.handle.create_server(mute, 0).delay());
    }),
    ("CreateServer::family", |w| {
        ignore(w.handle.create_server(mute, 0).family(Family::V4));
    }),
    ("CreateServer::flags", |w| {
        ignore(w.handle.create_server(mute, 0).flags(LookupFlags::PASSIVE));
    }),
    ("CreateServer::keep_alive", |w| {
        ignore(w.handle.create_server(mute, 0).keep_alive());
    }),
    ("CreateServer::no_reuse_address", |w| {
        ignore(w.handle.create_server(mute, 0).no_reuse_address());
    }),
    ("CreateServer::reuse_port", |w| {
        ignore(w.handle.create_server(mute, 0).reuse_port());
    }),
    ("CreateServer::start_later", |w| {
        ignore(w.handle.create_server(mute, 0).start_later());
    }),
    ("ServeSocket::backlog", |w| {
        ignore(w.handle.create_server_on(mute, listener()).backlog(1));
    }),
    ("ServeSocket::delay", |w| {
        ignore(w.handle.create_server_on(mute, listener()).delay());
    }),
    ("ServeSocket::start_later", |w| {
        ignore(w.handle.create_server_on(mute, listener()).start_later());
    }),
    ("Server::handle", |w| {
        w.server(|server| ignore(server.handle()));
    }),
    ("Server::start_serving", |w| {
        w.server(|server| server.start_serving().unwrap());
    }),
    ("Server::serve_forever", |w| {
        w.server(|server| poll_once(server.serve_forever()));
    }),
    ("Server::scope", |w| {
        w.server(|server| poll_once(server.scope(pending::<()>())));
    }),
    ("Server::is_serving", |w| {
        w.server(|server| assert!(server.is_serving()));
    }),
    ("Server::sockets", |w| {
        w.server(|server| assert_eq!(server.sockets().len(), 1));
    }),
    ("Server::close", |w| w.server(Server::close)),
    ("Server::close_clients", |w| {
        w.server(Server::close_clients);
    }),
    ("Server::abort_clients", |w| {
        w.server(Server::abort_clients);
    }),
    ("Server::wait_closed", |w| {
        w.server(|server| poll_once(server.wait_closed()));
    }),
    ("ServerSocket::local_addr", |w| {
        w.server(|server| assert!(server.sockets()[0].local_addr().port() > Some(0)));
    }),
    ("ServerSocket::with_fd", |w| {
        w.server(|server| assert!(server.sockets()[0].with_fd(|_| ()).is_some()));
    }),
    // callback
    ("Handle::cancel", |w| {
        ignore(w.handle.call_soon(|| ()).cancel());
    }),
    ("Handle::is_cancelled", |w| {
        ignore(w.handle.call_soon(|| ()).is_cancelled());
    }),
    ("Handle::context", |w| {
        ignore(w.handle.call_soon(|| ()).context());
    }),
    ("TimerHandle::cancel", |w| {
        ignore(w.handle.call_later(SECOND, || ()).cancel());
    }),
    ("TimerHandle::is_cancelled", |w| {
        w.handle.call_later(SECOND, || ()).is_cancelled();
    }),
    ("TimerHandle::when", |w| {
        w.handle.call_later(SECOND, || ()).when();
    }),
    ("TimerHandle::context", |w| {
        ignore(w.handle.call_later(SECOND, || ()).context());
    }),
    // context
    ("ContextVar::new", |_| ignore(ContextVar::<u32>::new("new"))),
    ("ContextVar::name", |_| {
        assert_eq!(VARIABLE.name(), "variable");
    }),
    ("ContextVar::get", |_| ignore(VARIABLE.get())),
    ("ContextVar::set", |_| ignore(VARIABLE.set(1))),
    ("ContextVar::reset", |_| {
        let token = VARIABLE.set(1);
        VARIABLE.reset(token).unwrap();
    }),
    ("Context::new", |_| ignore(Context::new())),
    ("Context::current", |_| ignore(Context::current())),
    ("Context::copy", |_| ignore(Context::current().copy())),
    ("Context::run", |_| {
        Context::current().run(|| ignore(VARIABLE.set(2)));
    }),
    ("Context::get", |_| {
        ignore(Context::current().get(&VARIABLE));
    }),
    // error
    ("Cancelled::new", |_| ignore(Cancelled::new())),
    ("Cancelled::with_reason", |_| {
        ignore(Cancelled::with_reason("rain"));
    }),
    ("Cancelled::reason", |_| {
        ignore(Cancelled::with_reason("rain").reason().is_some());
    }),
    ("JoinError::is_cancelled", |_| {
        assert!(JoinError::from(Cancelled::new()).is_cancelled());
    }),
    ("JoinError::is_panicked", |_| {
        assert!(!JoinError::from(Cancelled::new()).is_panicked());
    }),
    ("Payload::message", |w| {
        for payload in w.payloads.take() {
            assert_eq!(payload.message(), "a payload");
        }
    }),
    ("Payload::into_inner", |w| {
        for payload in w.payloads.take() {
            ignore(payload.into_inner());
        }
    }),
    ("Payload::resume", |w| {
        for payload in w.payloads.take() {
            may_panic(|| payload.resume());
        }
    }),
    ("Payload::with", |w| {
        for payload in w.payloads.take() {
            payload.with(|value| assert!(value.is::<&str>()));
        }
    }),
    // event_loop
    ("Builder::selector", |_| {
        let selector = default_selector().unwrap();
        ignore(EventLoop::builder().selector(selector).build().unwrap());
    }),
    ("Builder::clock", |_| {
        ignore(
            EventLoop::builder()
                .clock(testing::Clock::new())
                .build()
                .unwrap(),
        );
    }),
    ("Builder::poll_every", |_| {
        ignore(EventLoop::builder().poll_every(1).build().unwrap());
    }),
    ("Builder::debug", |_| {
        ignore(EventLoop::builder().debug(false).build().unwrap());
    }),
    ("Builder::panic_policy", |_| {
        ignore(
            EventLoop::builder()
                .panic_policy(PanicPolicy::Report)
                .build()
                .unwrap(),
        );
    }),
    ("Builder::seed", |_| {
        ignore(EventLoop::builder().seed(7).build().unwrap());
    }),
    ("Builder::timer_slack", |_| {
        ignore(EventLoop::builder().timer_slack(SECOND).build().unwrap());
    }),
    ("Builder::build", |_| {
        ignore(EventLoop::builder().build().unwrap());
    }),
    ("EventLoop::new", |_| ignore(EventLoop::new().unwrap())),
    ("EventLoop::builder", |_| ignore(EventLoop::builder())),
    ("EventLoop::handle", |w| ignore(w.event_loop.handle())),
    ("EventLoop::run_until_complete", |w| {
        ignore(w.event_loop.run_until_complete(async { yield_now().await }));
        ignore(w.another().run_until_complete(async { yield_now().await }));
    }),
    ("EventLoop::run_forever", |w| {
        w.turn();
        let another = w.another();
        another.stop();
        ignore(another.run_forever());
    }),
    ("EventLoop::turn", |w| {
        ignore(w.event_loop.turn(Some(Duration::ZERO)));
        ignore(w.another().turn(Some(Duration::ZERO)));
    }),
    ("EventLoop::deadline", |w| {
        w.event_loop.deadline();
    }),
    ("EventLoop::is_idle", |w| {
        w.event_loop.is_idle();
    }),
    ("EventLoop::descriptor", |w| {
        ignore(w.event_loop.descriptor());
    }),
    ("EventLoop::close", |w| {
        let running = w.event_loop.is_running();
        assert_eq!(w.event_loop.close().is_err(), running);
    }),
    ("EventLoop::run_with_async_io", |w| {
        #[cfg(feature = "async-io")]
        ignore(w.event_loop.run_with_async_io(async {}));
        let _ = w;
    }),
    // handle
    ("current", |_| {
        if try_current().is_ok() {
            ignore(current());
        }
    }),
    ("try_current", |_| ignore(try_current())),
    ("LoopHandle::call_soon", |w| {
        ignore(w.handle.call_soon(|| ()));
    }),
    ("LoopHandle::call_soon_in", |w| {
        ignore(w.handle.call_soon_in(&Context::new(), || ()));
    }),
    ("LoopHandle::try_call_soon", |w| {
        ignore(w.handle.try_call_soon(|| ()));
    }),
    ("LoopHandle::call_later", |w| {
        ignore(w.handle.call_later(Duration::ZERO, || ()));
    }),
    ("LoopHandle::call_later_in", |w| {
        ignore(
            w.handle
                .call_later_in(&Context::new(), Duration::ZERO, || ()),
        );
    }),
    ("LoopHandle::try_call_later", |w| {
        ignore(w.handle.try_call_later(Duration::ZERO, || ()));
    }),
    ("LoopHandle::call_at", |w| {
        ignore(w.handle.call_at(w.clock.now(), || ()));
    }),
    ("LoopHandle::call_at_in", |w| {
        ignore(w.handle.call_at_in(&Context::new(), w.clock.now(), || ()));
    }),
    ("LoopHandle::try_call_at", |w| {
        ignore(w.handle.try_call_at(w.clock.now(), || ()));
    }),
    ("LoopHandle::time", |w| {
        w.handle.time();
    }),
    ("LoopHandle::random", |w| {
        w.handle.random();
    }),
    ("LoopHandle::stop", |w| w.handle.stop()),
    ("LoopHandle::is_running", |w| {
        w.handle.is_running();
    }),
    ("LoopHandle::is_closed", |w| {
        w.handle.is_closed();
    }),
    ("LoopHandle::set_exception_handler", |w| {
        w.handle.set_exception_handler(|_, _| ());
    }),
    ("LoopHandle::reset_exception_handler", |w| {
        w.handle.reset_exception_handler();
    }),
    ("LoopHandle::exception_handler", |w| {
        ignore(w.handle.exception_handler());
    }),
    ("LoopHandle::call_exception_handler", |w| {
        w.handle.set_exception_handler(|_, _| ());
        w.handle
            .call_exception_handler(&ExceptionContext::new("called by hand"));
    }),
    ("LoopHandle::default_exception_handler", |w| {
        let context = ExceptionContext::new("a line of the re-entrancy test, and no error");
        w.handle.default_exception_handler(&context);
    }),
    ("LoopHandle::set_panic_policy", |w| {
        w.handle.set_panic_policy(PanicPolicy::Report);
    }),
    ("LoopHandle::panic_policy", |w| {
        w.handle.panic_policy();
    }),
    ("LoopHandle::set_debug", |w| {
        w.handle.set_debug(!w.handle.debug());
    }),
    ("LoopHandle::debug", |w| {
        w.handle.debug();
    }),
    ("LoopHandle::set_slow_callback_duration", |w| {
        w.handle.set_slow_callback_duration(Duration::MAX);
    }),
    ("LoopHandle::slow_callback_duration", |w| {
        w.handle.slow_callback_duration();
    }),
    ("LoopHandle::set_slow_hook", |w| {
        w.handle.set_slow_hook(|_| ());
    }),
    ("LoopHandle::reset_slow_hook", |w| {
        w.handle.reset_slow_hook();
    }),
    // policy: done in a process of its own, see below
    ("policy::NoCurrentLoop::here", |_| {
        ignore(NoCurrentLoop::here());
    }),
    ("policy::policy", |_| ignore(policy::policy())),
    ("policy::set_policy", |_| {
        policy::set_policy(Some(Arc::new(DefaultPolicy)));
        policy::set_policy(None);
    }),
    ("policy::event_loop", |_| ignore(policy::event_loop())),
    ("policy::set_event_loop", |w| {
        policy::set_event_loop(Some(Rc::new(w.another())));
        policy::set_event_loop(None);
    }),
    ("policy::new_event_loop", |_| {
        ignore(policy::new_event_loop());
    }),
    // promise
    ("LoopHandle::create_future", |w| {
        ignore(w.handle.create_future::<u32>());
    }),
    ("Resolver::settle", |w| {
        let (resolver, promise) = w.handle.create_future();
        promise.on_done(ignore);
        resolver.settle(1).unwrap();
    }),
    ("Resolver::cancel", |w| {
        let (resolver, promise) = w.handle.create_future::<u32>();
        promise.on_done(ignore);
        resolver.cancel();
    }),
    ("Resolver::is_cancelled", |w| {
        assert!(!w.handle.create_future::<u32>().0.is_cancelled());
    }),
    ("Resolver::is_wanted", |w| {
        let (resolver, promise) = w.handle.create_future::<u32>();
        assert!(resolver.is_wanted());
        ignore(promise);
        assert!(!resolver.is_wanted());
    }),
    ("Promise::cancel", |w| {
        let (_resolver, promise) = w.handle.create_future::<u32>();
        let other = promise.clone();
        poll_once(other);
        assert!(promise.cancel());
    }),
    ("Promise::is_done", |w| {
        let (_resolver, promise) = w.handle.create_future::<u32>();
        assert!(!promise.is_done());
    }),
    ("Promise::is_cancelled", |w| {
        let (_resolver, promise) = w.handle.create_future::<u32>();
        assert!(!promise.is_cancelled());
    }),
    ("Promise::try_result", |w| {
        let (resolver, mut promise) = w.handle.create_future();
        resolver.settle(1).unwrap();
        assert_eq!(promise.try_result(), Some(Ok(1)));
    }),
    ("Promise::on_done", |w| {
        w.handle.create_future::<u32>().1.on_done(ignore);
    }),
    ("Promise::on_done_in", |w| {
        let (_resolver, promise) = w.handle.create_future::<u32>();
        promise.on_done_in(&Context::new(), ignore);
    }),
    ("DoneHandle::remove", |w| {
        let (_resolver, promise) = w.handle.create_future::<u32>();
        assert!(promise.on_done(ignore).remove());
    }),
    // remote
    ("LoopHandle::remote", |w| ignore(w.handle.remote())),
    ("RemoteHandle::call_soon", |w| {
        ignore(w.handle.remote().call_soon(|| ()));
    }),
    ("RemoteHandle::create_task", |w| {
        ignore(w.handle.remote().create_task(|| async {}));
    }),
    ("RemoteHandle::stop", |w| w.handle.remote().stop()),
    ("RemoteHandle::is_closed", |w| {
        w.handle.remote().is_closed();
    }),
    ("RemoteHandle::hold", |w| {
        ignore(w.handle.remote().hold("a moment"));
    }),
    ("RemoteCall::cancel", |w| {
        if let Ok(call) = w.handle.remote().call_soon(|| ()) {
            assert!(call.cancel());
        }
    }),
    ("RemoteCall::is_cancelled", |w| {
        if let Ok(call) = w.handle.remote().call_soon(|| ()) {
            assert!(!call.is_cancelled());
        }
    }),
    ("RemoteTask::cancel", |w| {
        if let Ok(task) = w.handle.remote().create_task(|| async {}) {
            task.cancel();
        }
    }),
    ("RemoteTask::is_finished", |w| {
        if let Ok(task) = w.handle.remote().create_task(|| async {}) {
            task.is_finished();
        }
    }),
    ("RemoteTask::join", |w| {
        if let Ok(task) = w.handle.remote().create_task(|| async {}) {
            task.join().unwrap_err();
        }
    }),
    ("RemoteTask::join_timeout", |w| {
        if let Ok(mut task) = w.handle.remote().create_task(|| async {}) {
            task.join_timeout(SECOND).unwrap().unwrap_err();
        }
    }),
    // report
    ("ExceptionContext::new", |_| {
        ignore(ExceptionContext::new("new"));
    }),
    ("ExceptionContext::with_error", |_| {
        ignore(ExceptionContext::new("new").with_error("error"));
    }),
    ("ExceptionContext::message", |_| {
        assert_eq!(ExceptionContext::new("new").message(), "new");
    }),
    ("ExceptionContext::payload", |_| {
        assert!(ExceptionContext::new("new").payload().is_none());
    }),
    ("ExceptionContext::panic_message", |_| {
        assert!(ExceptionContext::new("new").panic_message().is_none());
    }),
    ("ExceptionContext::error", |_| {
        assert!(ExceptionContext::new("new").error().is_none());
    }),
    ("ExceptionContext::place", |_| {
        assert!(ExceptionContext::new("new").place().is_none());
    }),
    ("ExceptionContext::task_name", |_| {
        assert!(ExceptionContext::new("new").task_name().is_none());
    }),
    ("ExceptionContext::task", |w| {
        assert!(ExceptionContext::new("new").task(&w.handle).is_none());
    }),
    // run: they panic where a loop runs already
    ("run", |_| {
        may_panic(|| coloop::run(async { yield_now().await }));
    }),
    ("testing::run", |_| {
        may_panic(|| testing::run(async { yield_now().await }));
    }),
    ("testing::run_virtual", |_| {
        may_panic(|| testing::run_virtual(async { yield_now().await }));
    }),
    // resolve
    ("LookupFlags::from_bits", |_| {
        assert_eq!(LookupFlags::from_bits(0), LookupFlags::default());
    }),
    ("LookupFlags::bits", |_| {
        assert_ne!(LookupFlags::PASSIVE.bits(), 0);
    }),
    // time
    ("sleep", |_| poll_in_loop(sleep(SECOND))),
    ("yield_now", |_| poll_once(yield_now())),
    ("timeout", |_| {
        poll_in_loop(timeout(SECOND, pending::<()>()));
    }),
    ("timeout_at", |_| {
        poll_in_loop(timeout_at(Instant::now(), pending::<()>()));
    }),
    // gather, wait
    ("gather", |w| {
        let task = w.handle.create_task(yield_now());
        if try_current().is_ok() {
            poll_once(gather([task]));
        }
    }),
    ("gather_all", |w| {
        let task = w.handle.create_task(yield_now());
        if try_current().is_ok() {
            poll_once(gather_all([task]));
        }
    }),
    ("as_completed", |w| {
        let task = w.handle.create_task(yield_now());
        if try_current().is_ok() {
            let mut results = as_completed([task]);
            poll_once(poll_fn(|cx| Pin::new(&mut results).poll_next(cx)));
        }
    }),
    ("task_group", |_| {
        poll_in_loop(coloop::task_group(async |_| Ok::<_, JoinError>(())));
    }),
    ("TaskGroup::create_task", |_| {
        poll_in_loop(coloop::task_group(async |group| {
            ignore(group.create_task(pending::<Result<(), JoinError>>()));
            Ok(())
        }));
    }),
    ("GroupError::errors", |_| {
        poll_in_loop(async {
            let group = coloop::task_group(async |_| Err::<(), _>(JoinError::AwaitsItself));
            assert_eq!(group.await.unwrap_err().errors().len(), 1);
        });
    }),
    ("GroupError::into_errors", |_| {
        poll_in_loop(async {
            let group = coloop::task_group(async |_| Err::<(), _>(JoinError::AwaitsItself));
            assert_eq!(group.await.unwrap_err().into_errors().len(), 1);
        });
    }),
    ("wait", |w| {
        poll_once(wait([w.handle.create_task(yield_now())], Until::All));
    }),
    ("WaitTasks::limit", |w| {
        let task = w.handle.create_task(pending::<()>());
        poll_in_loop(wait([task], Until::All).limit(SECOND));
    }),
    ("WaitTasks::counting_errors", |w| {
        let task = w.handle.create_task(async { Err::<(), _>("no") });
        poll_once(wait([task], Until::FirstError).counting_errors());
    }),
    ("wait_for", |w| {
        poll_in_loop(wait_for(SECOND, w.handle.create_task(pending::<()>())));
    }),
    ("Timeout::handle", |w| ignore(w.timeout_handle())),
    ("TimeoutHandle::when", |w| {
        let (limited, handle) = w.timeout_handle();
        poll_in_loop(limited);
        handle.when();
    }),
    ("TimeoutHandle::reschedule", |w| {
        let (limited, handle) = w.timeout_handle();
        poll_in_loop(limited);
        ignore(handle.reschedule(Some(w.clock.now())));
    }),
    ("TimeoutHandle::is_expired", |w| {
        w.timeout_handle().1.is_expired();
    }),
    // selector
    ("Interest::is_none", |_| assert!(Interest::NONE.is_none())),
    ("default_selector", |_| ignore(default_selector().unwrap())),
    // watch
    ("LoopHandle::add_reader", |w| {
        let (peer, socket) = pair();
        ignore(w.handle.add_reader(socket, holds(peer)));
    }),
    ("LoopHandle::add_writer", |w| {
        let (peer, socket) = pair();
        let number = socket.as_raw_fd();
        ignore(w.handle.add_writer(socket, holds(peer)));
        w.handle.remove_writer(number);
    }),
    ("LoopHandle::remove_reader", |w| {
        // Whatever the place has: its own reader too.
        for number in 0..256 {
            w.handle.remove_reader(number);
        }
    }),
    ("LoopHandle::remove_writer", |w| {
        for number in 0..256 {
            w.handle.remove_writer(number);
        }
    }),
    ("LoopHandle::watch", |w| ignore(w.watched())),
    ("Watched::get_ref", |w| {
        if let Some((_peer, watched)) = w.watched() {
            watched.get_ref().as_raw_fd();
        }
    }),
    ("Watched::readable", |w| {
        if let Some((_peer, watched)) = w.watched() {
            poll_once(watched.readable());
        }
    }),
    ("Watched::writable", |w| {
        if let Some((_peer, watched)) = w.watched() {
            poll_once(watched.writable());
        }
    }),
    ("Watched::read_with", |w| {
        if let Some((_peer, watched)) = w.watched() {
            poll_once(watched.read_with(|socket| socket.recv(&mut [0; 8])));
        }
    }),
    ("Watched::write_with", |w| {
        if let Some((_peer, watched)) = w.watched() {
            poll_once(watched.write_with(|socket| socket.send(b"x")));
        }
    }),
    // task
    ("LoopHandle::create_task", |w| ignore(w.task(yield_now()))),
    ("LoopHandle::try_create_task", |w| {
        ignore(w.handle.try_create_task(yield_now()));
    }),
    ("LoopHandle::create_reporting", |w| {
        ignore(w.handle.create_reporting(yield_now()));
    }),
    ("LoopHandle::create_with_cleanup", |w| {
        let task = w
            .handle
            .create_with_cleanup(SECOND, pending::<()>(), async |_| ());
        task.cancel();
    }),
    ("LoopHandle::task", |w| ignore(w.handle.task())),
    ("TaskBuilder::name", |w| {
        ignore(w.handle.task().name("named").create(yield_now()));
    }),
    ("TaskBuilder::context", |w| {
        ignore(w.handle.task().context(Context::new()).create(yield_now()));
    }),
    ("TaskBuilder::eager", |w| {
        ignore(w.handle.task().eager().create(yield_now()));
    }),
    ("TaskBuilder::grace", |w| {
        ignore(w.handle.task().grace(SECOND).create(yield_now()));
    }),
    ("TaskBuilder::create", |w| {
        ignore(w.handle.task().create(yield_now()));
    }),
    ("TaskBuilder::try_create", |w| {
        ignore(w.handle.task().try_create(yield_now()));
    }),
    ("TaskBuilder::create_reporting", |w| {
        ignore(w.handle.task().create_reporting(yield_now()));
    }),
    ("Task::cancel", |w| ignore(w.task(pending::<()>()).cancel())),
    ("Task::cancel_with", |w| {
        ignore(w.task(pending::<()>()).cancel_with("rain"));
    }),
    ("Task::cancelling", |w| {
        w.task(async {}).cancelling();
    }),
    ("Task::uncancel", |w| {
        let task = w.task(async {});
        task.cancel();
        task.uncancel();
    }),
    ("Task::is_finished", |w| {
        ignore(w.task(async {}).is_finished());
    }),
    ("Task::name", |w| ignore(w.task(async {}).name())),
    ("Task::set_name", |w| w.task(async {}).set_name("named")),
    ("Task::to_ref", |w| ignore(w.task(async {}).to_ref())),
    ("Task::on_done", |w| w.task(yield_now()).on_done(ignore)),
    ("Task::shield", |w| ignore(w.task(async {}).shield())),
    ("TaskRef::name", |w| {
        on_all_tasks(w, |task| ignore(task.name()));
    }),
    ("TaskRef::set_name", |w| {
        on_all_tasks(w, |task| task.set_name("renamed"));
    }),
    ("TaskRef::place", |w| {
        on_all_tasks(w, |task| ignore(task.place().is_some()));
    }),
    ("TaskRef::context", |w| {
        on_all_tasks(w, |task| ignore(task.context()));
    }),
    ("TaskRef::is_finished", |w| {
        on_all_tasks(w, |task| ignore(task.is_finished()));
    }),
    // The task that is running is one of them.
    ("TaskRef::cancel", |w| {
        on_all_tasks(w, |task| ignore(task.cancel()));
    }),
    ("TaskRef::cancel_with", |w| {
        on_all_tasks(w, |task| ignore(task.cancel_with("rain")));
    }),
    ("TaskRef::cancelling", |w| {
        on_all_tasks(w, |task| {
            task.cancelling();
        });
    }),
    ("TaskRef::uncancel", |w| {
        on_all_tasks(w, |task| {
            task.cancel();
            task.uncancel();
        });
    }),
    ("TaskRef::waits", |w| {
        on_all_tasks(w, |task| ignore(task.waits()));
    }),
    ("current_task", |_| ignore(current_task())),
    ("LoopHandle::current_task", |w| {
        ignore(w.handle.current_task());
    }),
    ("LoopHandle::all_tasks", |w| ignore(w.handle.all_tasks())),
    ("cancelled", |_| poll_in_loop(cancelled())),
    ("until_cancelled", |_| {
        poll_in_loop(until_cancelled(pending::<()>()));
    }),
    ("defer_cancel", |_| poll_once(defer_cancel(pending::<()>()))),
    ("shield", |_| {
        if try_current().is_ok() {
            ignore(coloop::shield(yield_now()));
        }
    }),
    ("LoopHandle::shield", |w| {
        ignore(w.handle.shield(yield_now()));
    }),
    ("Shield::into_task", |w| {
        ignore(w.handle.shield(yield_now()).into_task());
    }),
    ("LoopHandle::set_task_factory", |w| {
        w.handle.set_task_factory(Rc::new(Plain));
    }),
    ("LoopHandle::reset_task_factory", |w| {
        w.handle.reset_task_factory();
    }),
    ("LoopHandle::task_factory", |w| {
        ignore(w.handle.task_factory());
    }),
    // signal: by default nothing is done on those that are used here, and the streams are polled
    ("Signal::as_raw", |_| {
        assert_eq!(Signal::from(1).as_raw(), 1);
    }),
    ("LoopHandle::add_signal_handler", |w| {
        // Its own, and in the place of one that may run.
        for signal in [Signal::WINCH, Signal::URG] {
            ignore(w.handle.add_signal_handler(signal, || ()));
        }
    }),
    ("LoopHandle::remove_signal_handler", |w| {
        ignore(w.handle.add_signal_handler(Signal::WINCH, || ()));
        for signal in [Signal::WINCH, Signal::URG] {
            w.handle.remove_signal_handler(signal);
        }
    }),
    ("LoopHandle::signals", |w| {
        ignore(w.handle.signals([Signal::WINCH, Signal::URG]));
    }),
    ("Signals::recv", |w| {
        if let Ok(mut signals) = w.handle.signals([Signal::WINCH, Signal::URG]) {
            poll_once(signals.recv());
            raise(Signal::WINCH);
            poll_once(signals.recv());
        }
    }),
    // testing
    ("testing::Clock::new", |_| ignore(testing::Clock::new())),
    ("testing::Clock::advance", |w| w.clock.advance(SECOND)),
    ("testing::Clock::set", |w| w.clock.set(w.clock.now())),
    ("testing::Clock::elapsed", |w| {
        w.clock.elapsed();
    }),
    ("testing::Memory::over", |_| {
        ignore(Memory::over(default_selector().unwrap()));
    }),
    ("testing::Memory::stream_pair", |w| {
        let (near, far) = w.memory.stream_pair(4);
        if let Ok(far) = w.handle.watch(far) {
            poll_once(far.readable());
            near.send(b"x").unwrap();
            poll_once(far.read_with(|far| far.recv(&mut [0; 4])));
        }
    }),
    ("testing::stream_pair", |w| {
        ignore(testing::stream_pair(&w.handle, 4));
    }),
];

fn on_all_tasks(w: &World, f: impl Fn(&TaskRef)) {
    w.handle.all_tasks().iter().for_each(f);
}

// ---- Places ------------------------------------------------------------------------------------

type Place = (&'static str, fn(&World, &'static str));

/// One for each way in which the program's code is run. Each arranges for its moment and waits for it;
/// `at` is its name.
const PLACES: &[Place] = &[
    ("callback", |w, at| {
        w.handle.call_soon(move || moment(at));
        w.turns();
    }),
    ("callback in a context", |w, at| {
        let context = Context::new();
        context.run(|| VARIABLE.set(7));
        w.handle.call_soon_in(&context, move || moment(at));
        w.turns();
    }),
    ("callback in debug mode", |w, at| {
        w.handle.set_debug(true);
        w.handle.call_soon(move || moment(at));
        w.turns();
    }),
    ("timer", |w, at| {
        w.handle.call_later(Duration::ZERO, move || moment(at));
        w.turns();
    }),
    ("reader", |w, at| {
        let (peer, socket) = pair();
        send(&peer, "x");
        w.handle.add_reader(socket, move || moment(at)).unwrap();
        w.turns();
    }),
    ("writer", |w, at| {
        let (peer, socket) = pair();
        w.handle.add_writer(socket, move || moment(at)).unwrap();
        w.turns();
        drop(peer);
    }),
    ("reader in a host's turn", |w, at| {
        let (peer, socket) = pair();
        send(&peer, "x");
        w.handle.add_reader(socket, move || moment(at)).unwrap();
        let _ = w.event_loop.turn(Some(Duration::ZERO));
    }),
    ("done-callback of a promise", |w, at| {
        let (resolver, promise) = w.handle.create_future();
        promise.on_done(move |_| moment(at));
        resolver.settle(()).unwrap();
        w.turns();
    }),
    ("done-callback of a task", |w, at| {
        w.task(yield_now()).on_done(move |_| moment(at));
        w.turns();
    }),
    ("task", |w, at| {
        drop(w.task(async move { moment(at) }));
        w.turns();
    }),
    ("task after an await", |w, at| {
        drop(w.task(async move {
            yield_now().await;
            moment(at);
            yield_now().await;
        }));
        w.turns();
    }),
    ("eager task", |w, at| {
        let handle = w.handle.clone();
        w.handle.call_soon(move || {
            drop(handle.task().eager().create(async move { moment(at) }));
        });
        w.turns();
    }),
    ("task that puts requests off", |w, at| {
        drop(w.task(defer_cancel(async move {
            moment(at);
            yield_now().await;
        })));
        w.turns();
    }),
    ("task that cleans up", |w, at| {
        let body = pending::<()>();
        let task = w
            .handle
            .create_with_cleanup(SECOND, body, async move |_| moment(at));
        w.turn();
        task.cancel();
        w.turns();
    }),
    ("future of a run", |w, at| {
        let _ = w.event_loop.run_until_complete(async { moment(at) });
    }),
    ("future of a run, dropped", |w, at| {
        w.handle.stop();
        let _ = w.event_loop.run_until_complete(pending_with(OnDrop(at)));
    }),
    ("remote call", |w, at| {
        w.handle.remote().call_soon(move || moment(at)).unwrap();
        w.turns();
    }),
    ("remote task's closure", |w, at| {
        let make = move || {
            moment(at);
            async {}
        };
        drop(w.handle.remote().create_task(make).unwrap());
        w.turns();
    }),
    ("remote task", |w, at| {
        drop(
            w.handle
                .remote()
                .create_task(move || async move { moment(at) }),
        );
        w.turns();
    }),
    ("closure of a read", |w, at| {
        let (peer, watched) = w.watched().unwrap();
        drop(w.task(async move {
            let _peer = peer;
            let read = watched.read_with(|socket| {
                moment(at);
                socket.recv(&mut [0; 4])
            });
            drop(read.await);
        }));
        w.turns();
    }),
    ("exception handler", |w, at| {
        w.handle.set_exception_handler(move |_, _| moment(at));
        w.handle.call_soon(|| resume_unwind(Box::new("told")));
        w.turns();
    }),
    ("exception handler, told of a task", |w, at| {
        w.handle.set_exception_handler(move |_, _| moment(at));
        drop(w.task(async { resume_unwind(Box::new("told")) }));
        w.turns();
    }),
    (
        "exception handler of a loop that is being closed",
        |w, at| {
            w.handle.set_debug(true);
            w.handle.set_exception_handler(move |_, _| moment(at));
            drop(w.task(pending::<()>()));
            w.event_loop.close().unwrap();
        },
    ),
    ("exception handler, dropped", |w, at| {
        let held = holds(OnDrop(at));
        w.handle.set_exception_handler(move |_, _| held());
        w.handle.reset_exception_handler();
    }),
    ("slow hook", |w, at| {
        w.handle.set_debug(true);
        w.handle.set_slow_callback_duration(Duration::ZERO);
        w.handle.set_slow_hook(move |_| moment(at));
        w.handle.call_soon(|| ());
        w.turns();
    }),
    ("slow hook, dropped", |w, at| {
        let held = holds(OnDrop(at));
        w.handle.set_slow_hook(move |_| held());
        w.handle.set_slow_hook(|_| ());
    }),
    ("task factory, building", |w, at| {
        struct Builds(&'static str);
        impl TaskFactory for Builds {
            fn build(&self, builder: TaskBuilder) -> TaskBuilder {
                moment(self.0);
                builder
            }
        }
        w.handle.set_task_factory(Rc::new(Builds(at)));
        drop(w.task(async {}));
        w.turns();
    }),
    ("task factory, wrapping", |w, at| {
        struct Wraps(&'static str);
        impl TaskFactory for Wraps {
            fn wrap(&self, body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
                moment(self.0);
                body
            }
        }
        w.handle.set_task_factory(Rc::new(Wraps(at)));
        drop(w.task(async {}));
        w.turns();
    }),
    ("task factory's wrapper", |w, at| {
        struct Wrapper(&'static str);
        impl TaskFactory for Wrapper {
            fn wrap(&self, body: LocalBoxFuture<'static, ()>) -> LocalBoxFuture<'static, ()> {
                let at = self.0;
                Box::pin(async move {
                    moment(at);
                    body.await;
                })
            }
        }
        w.handle.set_task_factory(Rc::new(Wrapper(at)));
        drop(w.task(yield_now()));
        w.turns();
    }),
    ("task factory, dropped", |w, at| {
        struct Held(#[expect(dead_code, reason = "it is there to be dropped")] OnDrop);
        impl TaskFactory for Held {}
        w.handle.set_task_factory(Rc::new(Held(OnDrop(at))));
        w.handle.reset_task_factory();
    }),
    ("error that is shown", |w, at| {
        #[derive(Debug)]
        struct Shown(&'static str);
        impl fmt::Display for Shown {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                moment(self.0);
                f.write_str("shown")
            }
        }
        w.handle.set_exception_handler(|_, _| ());
        drop(
            w.handle
                .create_reporting(async move { Err::<(), _>(Shown(at)) }),
        );
        w.turns();
    }),
    ("future, dropped by a request", |w, at| {
        let task = w.task(pending_with(OnDrop(at)));
        w.turn();
        task.cancel();
        w.turns();
    }),
    ("future, dropped before its first poll", |w, at| {
        let held = OnDrop(at);
        w.task(async move { drop(held) }).cancel();
        w.turns();
    }),
    ("future, dropped with its loop", |w, at| {
        drop(w.task(pending_with(OnDrop(at))));
        drop(w.task(pending::<()>()));
        w.turn();
        w.event_loop.close().unwrap();
    }),
    ("future, refused by a closed loop", |w, at| {
        w.event_loop.close().unwrap();
        drop(w.task(pending_with(OnDrop(at))));
    }),
    ("future inside a timeout, dropped", |w, at| {
        let limited = timeout(Duration::ZERO, pending_with(OnDrop(at)));
        drop(w.task(async move { ignore(limited.await) }));
        w.turns();
    }),
    ("output, dropped", |w, at| {
        drop(w.task(async move { OnDrop(at) }));
        w.turns();
    }),
    ("output, dropped with its handle", |w, at| {
        let task = w.task(async move { OnDrop(at) });
        w.turn();
        drop(task);
    }),
    ("closure, dropped when it is cancelled", |w, at| {
        w.handle.call_soon(holds(OnDrop(at))).cancel();
    }),
    ("closure, dropped after its call", |w, at| {
        w.handle.call_soon(holds(OnDrop(at)));
        w.turns();
    }),
    ("closure, refused by a closed loop", |w, at| {
        w.event_loop.close().unwrap();
        w.handle.call_soon(holds(OnDrop(at)));
    }),
    ("closure, dropped with its loop", |w, at| {
        w.handle.call_soon(holds(OnDrop(at)));
        w.handle.call_soon(|| ());
        w.event_loop.close().unwrap();
    }),
    ("timer, dropped when it is cancelled", |w, at| {
        w.handle.call_later(SECOND, holds(OnDrop(at))).cancel();
    }),
    ("timer, dropped with its loop", |w, at| {
        w.handle.call_later(SECOND, || ());
        w.handle.call_later(SECOND, holds(OnDrop(at)));
        w.handle.call_later(SECOND, || ());
        w.event_loop.close().unwrap();
    }),
    ("remote call, dropped when it is cancelled", |w, at| {
        let held = OnDrop(at);
        let call = w.handle.remote().call_soon(move || drop(held)).unwrap();
        call.cancel();
    }),
    ("reader, dropped when it is removed", |w, at| {
        let watch = w.handle.add_reader(pair().1, holds(OnDrop(at))).unwrap();
        w.handle.remove_reader(watch);
    }),
    ("reader, dropped when it is replaced", |w, at| {
        let (_peer, socket) = pair();
        w.handle
            .add_reader(Rc::clone(&socket), holds(OnDrop(at)))
            .unwrap();
        drop(w.handle.add_reader(socket, || ()));
    }),
    ("reader, dropped with its loop", |w, at| {
        w.handle.add_reader(pair().1, || ()).unwrap();
        w.handle.add_reader(pair().1, holds(OnDrop(at))).unwrap();
        w.handle.add_reader(pair().1, || ()).unwrap();
        w.event_loop.close().unwrap();
    }),
    ("owner of a descriptor, asked for it", |w, at| {
        let owner = Owner(pair().1, Some(at), None);
        drop(w.handle.add_reader(owner, || ()));
    }),
    ("signal handler", |w, at| {
        w.handle
            .add_signal_handler(Signal::URG, move || moment(at))
            .unwrap();
        raise(Signal::URG);
        w.turns();
    }),
    ("signal handler, dropped when it is removed", |w, at| {
        w.handle
            .add_signal_handler(Signal::URG, holds(OnDrop(at)))
            .unwrap();
        w.handle.remove_signal_handler(Signal::URG);
    }),
    ("signal handler, dropped when it is replaced", |w, at| {
        w.handle
            .add_signal_handler(Signal::URG, holds(OnDrop(at)))
            .unwrap();
        ignore(w.handle.add_signal_handler(Signal::URG, || ()));
    }),
    ("signal handler, dropped with its loop", |w, at| {
        w.handle
            .add_signal_handler(Signal::URG, holds(OnDrop(at)))
            .unwrap();
        w.event_loop.close().unwrap();
    }),
    ("waker that a signal wakes", |w, at| {
        let mut signals = w.handle.signals([Signal::URG]).unwrap();
        let waker = Waker::from(Arc::new(OnWake(at)));
        let mut cx = PollContext::from_waker(&waker);
        assert!(pin!(&mut signals).poll_next(&mut cx).is_pending());
        raise(Signal::URG);
        w.turns();
    }),
    (
        "waker that the end of a stream of signals wakes",
        |w, at| {
            let mut signals = w.handle.signals([Signal::URG]).unwrap();
            let waker = Waker::from(Arc::new(OnWake(at)));
            let mut cx = PollContext::from_waker(&waker);
            assert!(pin!(&mut signals).poll_next(&mut cx).is_pending());
            w.event_loop.close().unwrap();
        },
    ),
    ("waker that a stream of signals drops", |w, at| {
        let mut signals = w.handle.signals([Signal::URG]).unwrap();
        let waker = Waker::from(Arc::new(OnWakerDrop(OnDrop(at))));
        let mut cx = PollContext::from_waker(&waker);
        assert!(pin!(&mut signals).poll_next(&mut cx).is_pending());
        drop(waker);
    }),
    (
        "owner of a descriptor, dropped when it is removed",
        |w, at| {
            let owner = Owner(pair().1, None, Some(OnDrop(at)));
            let watch = w.handle.add_reader(owner, || ()).unwrap();
            w.handle.remove_reader(watch);
        },
    ),
    ("owner of a descriptor, dropped with its watch", |w, at| {
        let owner = Rc::new(Owner(pair().1, None, Some(OnDrop(at))));
        let watched = w.handle.watch(owner).unwrap();
        poll_once(watched.readable());
        drop(watched);
    }),
    ("owner of a descriptor, dropped with its loop", |w, at| {
        w.handle.add_reader(pair().1, || ()).unwrap();
        let owner = Owner(pair().1, None, Some(OnDrop(at)));
        w.handle.add_writer(owner, || ()).unwrap();
        w.event_loop.close().unwrap();
    }),
    ("payload of a panic, dropped", |w, at| {
        w.handle.set_exception_handler(|_, _| ());
        w.handle
            .call_soon(move || resume_unwind(Box::new(OnDrop(at))));
        w.turns();
    }),
    ("payload of an observed panic, dropped", |w, at| {
        let task = w.task(async move { resume_unwind(Box::new(OnDrop(at))) });
        let observed: Result<Result<(), _>, _> = w.event_loop.run_until_complete(task);
        drop(observed);
    }),
    ("waker that a promise wakes", |w, at| {
        let (resolver, mut promise) = w.handle.create_future();
        let waker = Waker::from(Arc::new(OnWake(at)));
        let mut cx = PollContext::from_waker(&waker);
        assert!(Pin::new(&mut promise).poll(&mut cx).is_pending());
        resolver.settle(()).unwrap();
    }),
    ("waker that a promise drops", |w, at| {
        let (_resolver, mut promise) = w.handle.create_future::<()>();
        let waker = Waker::from(Arc::new(OnWakerDrop(OnDrop(at))));
        let mut cx = PollContext::from_waker(&waker);
        assert!(Pin::new(&mut promise).poll(&mut cx).is_pending());
        drop(waker);
        // Another one takes its place.
        let mut cx = PollContext::from_waker(Waker::noop());
        let _ = Pin::new(&mut promise).poll(&mut cx);
    }),
    ("waker that a task wakes", |w, at| {
        let mut task = w.task(async {});
        let waker = Waker::from(Arc::new(OnWake(at)));
        let mut cx = PollContext::from_waker(&waker);
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        w.turns();
    }),
    ("waker that a task drops", |w, at| {
        let mut task = w.task(pending::<()>());
        let waker = Waker::from(Arc::new(OnWakerDrop(OnDrop(at))));
        let mut cx = PollContext::from_waker(&waker);
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        drop(waker);
        let mut cx = PollContext::from_waker(Waker::noop());
        let _ = Pin::new(&mut task).poll(&mut cx);
    }),
    ("waker that a sleep wakes", |w, at| {
        let waker = Waker::from(Arc::new(OnWake(at)));
        let mut slumber = Box::pin(sleep(SECOND));
        let asleep = slumber.as_mut();
        let polled = w.event_loop.run_until_complete(async move {
            asleep
                .poll(&mut PollContext::from_waker(&waker))
                .is_pending()
        });
        assert!(polled.unwrap());
        w.clock.advance(SECOND);
        w.turns();
    }),
    ("waker that a sleep drops", |w, at| {
        let waker = Waker::from(Arc::new(OnWakerDrop(OnDrop(at))));
        let mut slumber = Box::pin(sleep(SECOND));
        let asleep = slumber.as_mut();
        let polled = w.event_loop.run_until_complete(async move {
            asleep
                .poll(&mut PollContext::from_waker(&waker))
                .is_pending()
        });
        assert!(polled.unwrap());
        drop(slumber);
    }),
    ("waker that a descriptor wakes", |w, at| {
        let (peer, watched) = w.watched().unwrap();
        let waker = Waker::from(Arc::new(OnWake(at)));
        let mut readable = Box::pin(watched.readable());
        let polled = readable.as_mut().poll(&mut PollContext::from_waker(&waker));
        assert!(polled.is_pending());
        send(&peer, "x");
        w.turns();
    }),
    ("waker that a remote task wakes", |w, at| {
        let mut task = w.handle.remote().create_task(|| async {}).unwrap();
        let waker = Waker::from(Arc::new(OnWake(at)));
        let mut cx = PollContext::from_waker(&waker);
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        w.turns();
    }),
    ("waker that a moved timeout wakes", |w, at| {
        let (limited, handle) = w.timeout_handle();
        let mut limited = Box::pin(limited);
        let waker = Waker::from(Arc::new(OnWake(at)));
        let polled = limited.as_mut();
        let polled = w.event_loop.run_until_complete(async move {
            polled
                .poll(&mut PollContext::from_waker(&waker))
                .is_pending()
        });
        assert!(polled.unwrap());
        ignore(handle.reschedule(None));
    }),
    ("waker that is told of a request", |w, at| {
        let waker = Waker::from(Arc::new(OnWake(at)));
        let task = w.handle.task().grace(SECOND).create(async move {
            let mut asked = pin!(cancelled());
            let mut cx = PollContext::from_waker(&waker);
            assert!(asked.as_mut().poll(&mut cx).is_pending());
            pending::<()>().await;
        });
        w.turn();
        task.cancel();
        w.turns();
    }),
    ("value of a promise, dropped unwanted", |w, at| {
        let (resolver, promise) = w.handle.create_future();
        resolver.settle(OnDrop(at)).unwrap();
        drop(promise);
    }),
    ("value of a promise, dropped by a done-callback", |w, at| {
        let (resolver, promise) = w.handle.create_future();
        promise.on_done(drop);
        resolver.settle(OnDrop(at)).unwrap();
        w.turns();
    }),
    ("value of a promise, dropped with its loop", |w, at| {
        let (resolver, promise) = w.handle.create_future();
        promise.on_done(drop);
        resolver.settle(OnDrop(at)).unwrap();
        w.event_loop.close().unwrap();
    }),
    ("value of a promise, cloned", |w, at| {
        let (resolver, promise) = w.handle.create_future();
        let mut second = promise.clone();
        resolver.settle(OnClone(at)).unwrap();
        drop(second.try_result().unwrap());
        drop(promise);
    }),
    ("done-callback, dropped when it is removed", |w, at| {
        let (_resolver, promise) = w.handle.create_future::<()>();
        let held = OnDrop(at);
        promise.on_done(move |_| drop(held)).remove();
    }),
    ("value of a context, dropped with its task", |w, at| {
        drop(w.task(async move { ignore(HELD.set(Rc::new(OnDrop(at)))) }));
        w.turns();
    }),
    ("value of a context, dropped after its callback", |w, at| {
        w.handle
            .call_soon(move || drop(HELD.set(Rc::new(OnDrop(at)))));
        w.turns();
    }),
    (
        "value of a context, dropped with its callback's context",
        |w, at| {
            let context = Context::new();
            context.run(|| HELD.set(Rc::new(OnDrop(at))));
            drop(w.handle.call_soon_in(&context, || ()));
            drop(context);
            w.turns();
        },
    ),
    ("value of a context, replaced", |_, at| {
        Context::new().run(|| {
            drop(HELD.set(Rc::new(OnDrop(at))));
            drop(HELD.set(Rc::new(OnDrop("nobody's"))));
        });
    }),
    ("value of a context, cloned by get", |_, at| {
        static CLONED: ContextVar<OnClone> = ContextVar::new("cloned");
        Context::new().run(|| {
            ignore(CLONED.set(OnClone(at)));
            ignore(CLONED.get());
        });
    }),
    ("the clock is read", |w, _| {
        w.handle.call_later(SECOND, || ());
        w.turns();
    }),
    ("the clock jumps", |w, _| {
        let _ = w.event_loop.run_until_complete(sleep(SECOND));
    }),
    ("the selector waits", |w, _| w.turns()),
    ("the selector adds", |w, _| {
        drop(w.handle.add_reader(pair().1, || ()));
    }),
    ("the selector modifies", |w, _| {
        let (_peer, socket) = pair();
        drop(w.handle.add_reader(Rc::clone(&socket), || ()));
        drop(w.handle.add_writer(socket, || ()));
    }),
    ("the selector deletes", |w, _| {
        let watch = w.handle.add_reader(pair().1, || ()).unwrap();
        w.handle.remove_reader(watch);
    }),
    ("the bell is rung", |w, _| {
        drop(w.handle.remote().call_soon(|| ()));
        w.turns();
    }),
];

/// Owns a descriptor: being asked for it, or dropped, is a moment.
struct Owner(
    Rc<UnixStream>,
    Option<&'static str>,
    #[expect(dead_code, reason = "it is there to be dropped")] Option<OnDrop>,
);

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        if let Some(at) = self.1 {
            moment(at);
        }
        self.0.as_fd()
    }
}

// ---- The product -------------------------------------------------------------------------------

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic whose payload is not text".to_owned())
}

/// Does the verb in the place, and says what went wrong.
fn try_one((_verb, act): Verb, (place, arrange): Place) -> Vec<String> {
    let wrong: Rc<RefCell<Vec<String>>> = Rc::default();
    let done = Rc::new(Cell::new(false));
    let note = |what: &str, outcome: Result<(), Box<dyn std::any::Any + Send>>| {
        if let Err(payload) = outcome {
            wrong
                .borrow_mut()
                .push(format!("{what} panics: {}", panic_text(&*payload)));
        }
    };

    let world = World::new();
    let (stage, flag, log) = (Rc::clone(&world), Rc::clone(&done), Rc::clone(&wrong));
    let armed = move || {
        flag.set(true);
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| act(&stage)));
        if let Err(payload) = outcome {
            log.borrow_mut()
                .push(format!("the verb panics: {}", panic_text(&*payload)));
        }
    };
    ARMED.set(Some((place, Rc::new(armed))));
    let arranged = panic::catch_unwind(AssertUnwindSafe(|| arrange(&world, place)));
    note("the place", arranged);
    ARMED.set(None);
    if !done.get() {
        wrong
            .borrow_mut()
            .push("the place was never reached".to_owned());
    }

    // The loop still works: a callback, a timer and a task come, in order.
    let after = panic::catch_unwind(AssertUnwindSafe(|| {
        if world.event_loop.is_closed() {
            assert!(world.handle.call_soon(|| ()).is_cancelled());
            return;
        }
        world.handle.reset_task_factory();
        let trace: Rc<RefCell<Vec<&str>>> = Rc::default();
        let log = |word| {
            let trace = Rc::clone(&trace);
            move || trace.borrow_mut().push(word)
        };
        world.handle.call_later(Duration::ZERO, log("timer"));
        world.handle.call_soon(log("callback"));
        let task = log("task");
        drop(world.task(async move { task() }));
        world.turns();
        assert_eq!(*trace.borrow(), ["callback", "task", "timer"]);
        assert!(!world.event_loop.is_running() && try_current().is_err());
    }));
    note("the loop afterwards", after);
    let clock = Rc::clone(&world.clock);
    let dropped = panic::catch_unwind(AssertUnwindSafe(|| {
        world.event_loop.close().unwrap();
        assert_eq!(Rc::strong_count(&world), 1);
        drop(world);
    }));
    note("closing it", dropped);
    // The loop holds its clock, and nobody holds the loop.
    if Rc::strong_count(&clock) != 1 {
        wrong
            .borrow_mut()
            .push("the loop is never freed".to_owned());
    }
    wrong.take()
}

fn try_all(verbs: impl Fn(&str) -> bool) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for verb in VERBS.iter().filter(|verb| verbs(verb.0)) {
        for place in PLACES {
            count += 1;
            // What a verb leaves in the thread's own context is nobody else's.
            let found = Context::new().run(|| try_one(*verb, *place));
            wrong.extend(
                found
                    .iter()
                    .map(|what| format!("{} in {}: {what}", verb.0, place.0)),
            );
        }
    }
    assert!(count > PLACES.len());
    let shown: Vec<_> = wrong.iter().take(40).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        shown.join("\n")
    );
}

#[test]
fn every_public_method_can_be_called_from_inside_every_kind_of_user_code() {
    try_all(|verb| !verb.starts_with("policy::"));
}

/// These see and change the whole process, so they are tried in one of their own.
#[test]
fn the_policy_can_be_used_from_inside_every_kind_of_user_code() {
    in_child(
        "reentrancy::the_policy_can_be_used_from_inside_every_kind_of_user_code",
        || try_all(|verb| verb.starts_with("policy::")),
    );
}

#[test]
fn places_and_verbs_have_names_of_their_own() {
    let places: BTreeSet<_> = PLACES.iter().map(|place| place.0).collect();
    let verbs: BTreeSet<_> = VERBS.iter().map(|verb| verb.0).collect();
    assert_eq!((places.len(), verbs.len()), (PLACES.len(), VERBS.len()));
}

// ---- The scan ----------------------------------------------------------------------------------

/// The public functions of a source file, as `Type::name` or `name`, behind the public module's name.
fn public_functions(text: &str, module: &str, found: &mut BTreeSet<String>) {
    let mut owner = None;
    for line in text.lines() {
        // What follows is tests.
        if line.starts_with("#[cfg(test)]") {
            return;
        }
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if code.starts_with("impl") && code.ends_with('{') || code.starts_with("impl<") {
            owner = implemented_type(code).map(|name| (indent, name));
        }
        if code == "}" && owner.as_ref().is_some_and(|(at, _)| *at == indent) {
            owner = None;
        }
        let Some(code) = code.strip_prefix("pub ") else {
            continue;
        };
        let code = code
            .trim_start_matches("const ")
            .trim_start_matches("async ");
        if let Some(name) = code.strip_prefix("fn ") {
            let name = name.split(['(', '<']).next().unwrap();
            let owner = owner.as_ref().map_or("", |(_, owner)| owner);
            let words = [module, owner, name]
                .into_iter()
                .filter(|word| !word.is_empty());
            found.insert(words.collect::<Vec<_>>().join("::"));
        }
    }
}

/// `Task` of `impl<T: 'static> Task<T> {`; nothing of an `impl` of a trait.
fn implemented_type(code: &str) -> Option<String> {
    if code.contains(" for ") {
        return None;
    }
    let mut depth = 0;
    let mut rest = code.trim_start_matches("impl");
    if rest.starts_with('<') {
        let end = rest.find(|c| {
            depth += i32::from(c == '<') - i32::from(c == '>');
            depth == 0
        })?;
        rest = &rest[end + 1..];
    }
    let name = rest.trim_start();
    let end = name.find(|c: char| !c.is_alphanumeric())?;
    Some(name[..end].to_owned())
}

fn scan(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            // The folder that nothing outside of the crate can name.
            if name != "sys" {
                scan(&path, found);
            }
            continue;
        }
        let in_testing = path.parent().unwrap().ends_with("testing");
        let module = match &*name {
            _ if in_testing => "testing",
            "policy" => "policy",
            _ => "",
        };
        public_functions(&fs::read_to_string(&path).unwrap(), module, found);
    }
}

#[test]
fn every_public_function_is_a_verb() {
    let mut found = BTreeSet::new();
    scan(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert!(found.len() > 150, "the scan finds nothing");
    let verbs: BTreeSet<String> = VERBS.iter().map(|verb| verb.0.to_owned()).collect();
    let missing: Vec<_> = found.difference(&verbs).collect();
    let gone: Vec<_> = verbs.difference(&found).collect();
    assert!(
        missing.is_empty(),
        "public functions that are no verb here: {missing:#?}"
    );
    assert!(
        gone.is_empty(),
        "verbs that are no public function: {gone:#?}"
    );
}

#[test]
fn the_scan_knows_whose_a_function_is() {
    let text = "
impl<T: Into<Vec<u8>> + 'static> Thing<T> {
    pub const fn new() -> Self {
    pub(crate) fn hidden() {}
}
impl Clone for Thing {
    fn clone(&self) {}
}
pub fn free<T>() {}
mod inside {
    impl Other {
        pub async fn later(&self) {}
    }
}
#[cfg(test)]
pub fn test() {}
";
    let mut found = BTreeSet::new();
    public_functions(text, "", &mut found);
    let found: Vec<_> = found.iter().map(String::as_str).collect();
    assert_eq!(found, ["Other::later", "Thing::new", "free"]);
}

/// A poll that calls its own waker while the loop is in the middle of it.
#[test]
fn a_future_may_wake_itself_and_others_from_its_poll_and_its_destructor() {
    struct WakesAll(Rc<RefCell<Vec<Waker>>>, u32);
    impl Future for WakesAll {
        type Output = u32;
        fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<u32> {
            self.0.borrow_mut().push(cx.waker().clone());
            self.1 += 1;
            let wakers = self.0.borrow().clone();
            wakers.iter().for_each(Waker::wake_by_ref);
            if self.1 == 3 {
                Poll::Ready(self.1)
            } else {
                Poll::Pending
            }
        }
    }
    impl Drop for WakesAll {
        fn drop(&mut self) {
            self.0.take().into_iter().for_each(Waker::wake);
        }
    }

    let world = World::new();
    let wakers = Rc::default();
    let tasks = [(); 3].map(|()| world.task(WakesAll(Rc::clone(&wakers), 0)));
    world.turns();
    for task in tasks {
        assert_eq!(
            world.event_loop.run_until_complete(task).unwrap().unwrap(),
            3
        );
    }
}
