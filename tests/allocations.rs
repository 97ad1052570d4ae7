//! How much memory a loop asks for, counted by an allocator of this binary's own.
//!
//! Each test counts in its own thread, so that the harness's threads do not disturb. What grows by
//! doubling (the line, the shelf, the tables) is warmed up first: what is asserted is what one more
//! item costs in the long run.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::{pending, poll_fn};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use coloop::testing::Clock;
use coloop::{ContextVar, EventLoop, ExceptionContext, Protocol, Resolver, Transport};

/// Counts what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(allocations: usize, bytes: isize) {
    // At the end of a thread there is nobody left to ask.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + allocations));
    let _ = BYTES.try_with(|count| count.set(count.get() + bytes));
}

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
// SAFETY: every call is handed on to the system's allocator as it came; the counters are plain cells
// without destructors and do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as isize - layout.size() as isize);
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How many allocations `f` makes in this thread.
fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

/// Bytes that this thread has asked for and not given back.
fn bytes() -> isize {
    BYTES.get()
}

const MANY: usize = 1_000;

#[track_caller]
fn one_turn(event_loop: &EventLoop) {
    event_loop.stop();
    event_loop.run_forever().unwrap();
}

/// A loop in which everything that grows has grown.
fn warm_loop() -> (EventLoop, Rc<Clock>) {
    let clock = Clock::new();
    let event_loop = EventLoop::builder()
        .clock(Rc::<Clock>::clone(&clock))
        .build()
        .unwrap();
    for _ in 0..2 {
        let mut timers = Vec::new();
        for _ in 0..2 * MANY {
            event_loop.call_soon(|| ());
            timers.push(event_loop.call_later(Duration::from_secs(1), || ()));
            drop(event_loop.create_task(async {
                coloop::sleep(Duration::from_secs(1)).await;
            }));
        }
        let task = event_loop.create_task(coloop::yield_now());
        drop(event_loop.create_task(async move { task.await.unwrap() }));
        one_turn(&event_loop);
        clock.advance(Duration::from_secs(2));
        one_turn(&event_loop);
        one_turn(&event_loop);
    }
    assert!(event_loop.all_tasks().is_empty() && event_loop.is_idle());
    (event_loop, clock)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(Box::new([0_u8; 100])))), 1);
    let before = bytes();
    let held = black_box(vec![0_u8; 100]);
    assert_eq!(bytes() - before, 100);
    drop(held);
    assert_eq!(bytes(), before);
}

#[test]
fn a_callback_with_its_handle_is_one_allocation() {
    let (event_loop, _) = warm_loop();
    let value = [7_u64; 4];
    let sum = Rc::new(Cell::new(0));
    let made = allocations(|| {
        for _ in 0..MANY {
            let sum = Rc::clone(&sum);
            let handle = event_loop.call_soon(move || sum.set(sum.get() + value[3]));
            assert!(!handle.is_cancelled());
        }
    });
    assert_eq!(made, MANY);
    assert_eq!(
        allocations(|| one_turn(&event_loop)),
        0,
        "nor any to run them"
    );
    assert_eq!(sum.get(), 7 * MANY as u64);
    let cancelled = allocations(|| {
        for _ in 0..MANY {
            let sum = Rc::clone(&sum);
            assert!(event_loop.call_soon(move || sum.set(0)).cancel());
        }
    });
    assert_eq!(cancelled, MANY, "cancelling takes none");
    one_turn(&event_loop);
}

#[test]
fn a_callback_in_a_context_is_one_allocation_and_a_copy_of_the_context() {
    static VALUE: ContextVar<u32> = ContextVar::new("value");
    let (event_loop, _) = warm_loop();
    coloop::Context::new().run(|| {
        VALUE.set(7);
        let made = allocations(|| {
            for _ in 0..MANY {
                event_loop.call_soon(|| assert_eq!(VALUE.get(), Some(7)));
            }
        });
        assert_eq!(made, 2 * MANY);
        assert_eq!(allocations(|| one_turn(&event_loop)), 0);
    });
}

#[test]
fn a_timer_with_its_handle_is_one_allocation() {
    let (event_loop, clock) = warm_loop();
    let sum = Rc::new(Cell::new(0));
    let made = allocations(|| {
        for _ in 0..MANY {
            let sum = Rc::clone(&sum);
            event_loop.call_later(Duration::from_secs(1), move || sum.set(sum.get() + 1));
        }
    });
    assert_eq!(made, MANY);
    clock.advance(Duration::from_secs(1));
    assert_eq!(
        allocations(|| one_turn(&event_loop)),
        0,
        "nor any to fire them"
    );
    assert_eq!(sum.get(), MANY);
    // Armed and cancelled over and over: the shelf sweeps itself, and what it grows by then is spread
    // over many. A closure that holds nothing is no allocation.
    let rearmed = allocations(|| {
        for _ in 0..10 * MANY {
            assert!(
                event_loop
                    .call_later(Duration::from_secs(1), || ())
                    .cancel()
            );
        }
    });
    assert!(rearmed <= MANY, "{rearmed} for {} timers", 10 * MANY);
    assert_eq!(event_loop.deadline(), None);
}

#[test]
fn a_task_is_one_allocation() {
    let (event_loop, _) = warm_loop();
    let made = allocations(|| {
        for number in 0..MANY {
            drop(event_loop.create_task(async move {
                coloop::yield_now().await;
                number
            }));
        }
    });
    assert_eq!(made, MANY);
    let run = allocations(|| {
        one_turn(&event_loop);
        one_turn(&event_loop);
    });
    assert_eq!(run, 0, "nor any to poll, wake and end it");
    assert!(event_loop.all_tasks().is_empty());
    // Awaited by another one.
    let sum = Rc::new(Cell::new(0));
    let total = Rc::clone(&sum);
    let awaited = allocations(|| {
        let outer = event_loop.create_task(async move {
            for number in 0..MANY {
                let task = coloop::current().create_task(async move { number });
                total.set(total.get() + task.await.unwrap());
            }
        });
        for _ in 0..2 * MANY + 2 {
            one_turn(&event_loop);
        }
        assert!(outer.is_finished());
    });
    assert_eq!(awaited, MANY + 1);
    assert_eq!(sum.get(), MANY * (MANY - 1) / 2);
}

#[test]
fn a_wake_is_no_allocation() {
    let (event_loop, _) = warm_loop();
    let waker: Rc<Cell<Option<Waker>>> = Rc::default();
    let polls = Rc::new(Cell::new(0));
    let (seat, counted) = (Rc::clone(&waker), Rc::clone(&polls));
    drop(event_loop.create_task(poll_fn(move |cx| {
        seat.set(Some(cx.waker().clone()));
        counted.set(counted.get() + 1);
        Poll::<()>::Pending
    })));
    one_turn(&event_loop);
    let woken = allocations(|| {
        for _ in 0..MANY {
            let held = waker.take().unwrap();
            held.wake_by_ref();
            let by_value = held.clone();
            by_value.wake();
            drop(held);
            one_turn(&event_loop);
        }
    });
    assert_eq!((woken, polls.get()), (0, MANY + 1));
}

#[test]
fn a_sleep_is_no_allocation_beyond_its_entry() {
    let (event_loop, clock) = warm_loop();
    let slept = Rc::new(Cell::new(0));
    for _ in 0..MANY {
        let slept = Rc::clone(&slept);
        drop(event_loop.create_task(async move {
            loop {
                coloop::sleep(Duration::from_secs(1)).await;
                slept.set(slept.get() + 1);
            }
        }));
    }
    one_turn(&event_loop);
    let made = allocations(|| {
        for _ in 0..10 {
            clock.advance(Duration::from_secs(1));
            one_turn(&event_loop);
        }
    });
    assert_eq!((made, slept.get()), (0, 10 * MANY));
}

#[test]
fn a_promise_is_one_allocation_and_its_callback_another() {
    let (event_loop, _) = warm_loop();
    let sum = Rc::new(Cell::new(0));
    let made = allocations(|| {
        for number in 0..MANY {
            let (resolver, promise) = event_loop.create_future();
            let sum = Rc::clone(&sum);
            promise.on_done(move |value| sum.set(sum.get() + value.unwrap_or(0)));
            resolver.settle(number).unwrap();
        }
    });
    assert_eq!(made, 2 * MANY);
    assert_eq!(allocations(|| one_turn(&event_loop)), 0);
    assert_eq!(sum.get(), MANY * (MANY - 1) / 2);
}

#[test]
fn an_idle_turn_is_no_allocation_and_neither_is_a_ready_descriptor() {
    let (event_loop, _) = warm_loop();
    let idle = allocations(|| {
        for _ in 0..MANY {
            one_turn(&event_loop);
            event_loop.turn(Some(Duration::ZERO)).unwrap();
        }
    });
    assert_eq!(idle, 0);

    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(b"x").unwrap();
    let calls = Rc::new(Cell::new(0));
    let counted = Rc::clone(&calls);
    event_loop
        .add_reader(socket, move || counted.set(counted.get() + 1))
        .unwrap();
    one_turn(&event_loop);
    let ready = allocations(|| {
        for _ in 0..MANY {
            one_turn(&event_loop);
        }
    });
    assert_eq!((ready, calls.get()), (0, MANY + 1));
}

const MESSAGE: usize = 1_024;

/// Sends back what it gets, and counts what that asks for once it is warm.
struct Echo {
    received: usize,
    before: usize,
    counted: Rc<Cell<Option<usize>>>,
    over: Option<Resolver<()>>,
}

impl Echo {
    fn new(counted: &Rc<Cell<Option<usize>>>, over: Option<Resolver<()>>) -> Self {
        Self {
            over,
            received: 0,
            before: 0,
            counted: Rc::clone(counted),
        }
    }
}

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        transport.write(data);
        self.received += data.len();
        if self.received == MESSAGE * MANY {
            self.before = ALLOCATIONS.get();
        } else if self.received == 2 * MESSAGE * MANY {
            self.counted.set(Some(ALLOCATIONS.get() - self.before));
        }
    }

    fn connection_lost(&mut self, _: &Rc<dyn Transport>, _: Option<&io::Error>) {
        if let Some(over) = self.over.take() {
            over.settle(()).unwrap();
        }
    }
}

/// A client in a thread of its own: one message after the other, and back.
fn talk(mut stream: impl Read + Write + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (out, mut back) = ([7; MESSAGE], [0; MESSAGE]);
        for _ in 0..2 * MANY {
            stream.write_all(&out).unwrap();
            stream.read_exact(&mut back).unwrap();
            assert_eq!(back, out);
        }
    })
}

#[test]
fn a_message_over_a_unix_socket_is_no_allocation() {
    let counted = Rc::new(Cell::new(None));
    let event_loop = EventLoop::new().unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let client = talk(far);
    event_loop
        .run_until_complete(async {
            let handle = event_loop.handle();
            let echo = Echo::new(&counted, None);
            let (_, echo) = handle.create_connection_on(|| echo, near).await.unwrap();
            echo.closed().await;
        })
        .unwrap();
    client.join().unwrap();
    assert_eq!(counted.get(), Some(0), "for {MANY} messages");
}

#[test]
fn a_message_over_tcp_is_no_allocation() {
    let counted = Rc::new(Cell::new(None));
    let event_loop = EventLoop::new().unwrap();
    event_loop
        .run_until_complete(async {
            let handle = event_loop.handle();
            let count = Rc::clone(&counted);
            let (over, is_over) = handle.create_future();
            let mut over = Some(over);
            let factory = move || Echo::new(&count, over.take());
            let server = handle.create_server(factory, "127.0.0.1:0").await.unwrap();
            let address = server.sockets()[0].local_addr().as_inet().unwrap();
            let client = talk(TcpStream::connect(address).unwrap());
            is_over.await.unwrap();
            client.join().unwrap();
        })
        .unwrap();
    assert_eq!(counted.get(), Some(0), "for {MANY} messages");
}

/// One that is told nothing, and holds nothing.
struct Idle;

impl Protocol for Idle {
    fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}
}

#[test]
fn an_idle_connection_costs_few_bytes() {
    // As many as its table's capacity: what grows by doubling is full.
    const COUNT: usize = 256;
    let event_loop = EventLoop::new().unwrap();
    let pairs: Vec<_> = (0..COUNT).map(|_| UnixStream::pair().unwrap()).collect();
    event_loop
        .run_until_complete(async {
            let handle = event_loop.handle();
            // The loop's own buffer and lists are there after the first connection.
            let (warm, mut peer) = UnixStream::pair().unwrap();
            peer.write_all(b"x").unwrap();
            drop(peer);
            let (_, idle) = handle.create_connection_on(|| Idle, warm).await.unwrap();
            idle.closed().await;
            let (near, _far): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            let before = bytes();
            let sockets = near.capacity() * size_of::<UnixStream>();
            for socket in near {
                drop(handle.create_connection_on(|| Idle, socket).await.unwrap());
            }
            let each = (bytes() - before + sockets as isize) / COUNT as isize;
            println!("{each} bytes for an idle connection");
            assert!(each <= 400, "{each} bytes for an idle connection");
            assert!(each > 100, "{each} bytes cannot be all");
        })
        .unwrap();
}

#[test]
fn the_heap_is_back_where_it_was_when_a_loop_is_closed() {
    static VALUE: ContextVar<u32> = ContextVar::new("value");
    let life = |kept: &mut Vec<Box<dyn std::any::Any>>| {
        let (event_loop, clock) = warm_loop();
        let (peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let watched = event_loop.watch(Rc::new(socket)).unwrap();
        coloop::Context::new().run(|| {
            VALUE.set(1);
            event_loop.call_soon(|| ());
            event_loop.call_later(Duration::MAX, || ());
            drop(event_loop.create_task(pending::<()>()));
        });
        drop(event_loop.task().name("waits").create(async move {
            let _peer = peer;
            watched.readable().await.unwrap();
        }));
        drop(event_loop.task().grace(Duration::MAX).create(async {
            coloop::cancelled().await;
            pending::<()>().await;
        }));
        let (resolver, promise) = event_loop.create_future::<String>();
        let second = promise.clone();
        drop(event_loop.create_task(async move { second.await.unwrap_or_default() }));
        promise.on_done(|_| ());
        event_loop.call_later(Duration::MAX, move || drop(resolver));
        let (near, _far) = UnixStream::pair().unwrap();
        event_loop.add_reader(near, || ()).unwrap();
        event_loop.set_exception_handler(|_, _| ());
        event_loop.set_slow_hook(|_| ());
        one_turn(&event_loop);
        clock.advance(Duration::from_secs(1));
        for task in event_loop.all_tasks().iter().skip(1) {
            task.cancel();
        }
        one_turn(&event_loop);
        event_loop.call_exception_handler(&ExceptionContext::new("to be reported"));
        kept.push(Box::new((event_loop.handle(), event_loop.remote())));
        drop(event_loop);
    };
    // What the process keeps for good, such as its thread-locals, is there after the first time.
    life(&mut Vec::new());
    let before = bytes();
    for _ in 0..3 {
        life(&mut Vec::new());
        assert_eq!(bytes(), before, "bytes are not given back");
    }
    // Who keeps a handle keeps the loop's frame, and nothing of what was in it.
    let mut kept = Vec::with_capacity(8);
    let before = bytes();
    life(&mut kept);
    let frame = bytes() - before;
    assert!(frame < 4_096, "{frame} bytes for a handle to a closed loop");
    drop(kept.pop());
    assert_eq!(bytes(), before);
}
