//! An asyncio-shaped event loop in which plain callbacks and futures share one line.
//!
//! Callbacks (`call_soon`, `call_later`, `add_reader`, the methods of protocols) and tasks (`async`
//! code that may hold `Rc`s across its awaits) are items of one queue, first in, first out. The
//! order is written down and tested sentence by sentence. There is no process-wide reactor, and no
//! helper thread but those that look names up; the loop can be driven by another one, and tested
//! with a clock that stands still.
//!
//! An echo server. A client that does not read its echo is not read either:
//!
//! ```
//! # #[cfg(unix)] {
//! use std::{io, rc::Rc};
//! use coloop::{Protocol, Transport};
//!
//! struct Echo;
//!
//! impl Protocol for Echo {
//!     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
//!         transport.write(data);
//!     }
//!     fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
//!         transport.pause_reading();
//!     }
//!     fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
//!         transport.resume_reading();
//!     }
//! }
//! # struct Client(Vec<u8>);
//! # impl Protocol for Client {
//! #     fn connection_made(&mut self, transport: &Rc<dyn Transport>) { transport.write(b"tea?"); }
//! #     fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
//! #         self.0.extend(data);
//! #         transport.close();
//! #     }
//! # }
//!
//! coloop::run(async {
//!     let server = coloop::current().create_server(|| Echo, "127.0.0.1:0").await?;
//!     println!("listening on {}", server.sockets()[0].local_addr());
//! #   let (closed_by, at) = (server.clone(), server.sockets()[0].local_addr().as_inet().unwrap());
//! #   coloop::current().call_soon(move || drop(coloop::current().create_task(async move {
//! #       let connecting = coloop::current().create_connection(|| Client(Vec::new()), at);
//! #       let (client, error) = connecting.await.unwrap().1.closed().await;
//! #       assert_eq!((&client.0[..], error.is_none()), (&b"tea?"[..], true));
//! #       closed_by.close();
//! #   })));
//!     let Err(ended) = server.serve_forever().await; // by `server.close()`, say
//! #   assert_eq!(ended.kind(), io::ErrorKind::Interrupted);
//!     println!("{ended}");
//!     Ok::<(), io::Error>(())
//! })
//! # .unwrap();
//! # }
//! ```
//!
//! Callbacks and tasks in one line:
//!
//! ```
//! use std::time::Duration;
//! use coloop::EventLoop;
//!
//! let event_loop = EventLoop::new()?;
//! let handle = event_loop.handle();
//!
//! // A promise that a plain callback settles …
//! let (resolver, promise) = handle.create_future();
//! handle.call_later(Duration::from_millis(1), move || {
//!     resolver.settle("settled by a timer").ok();
//! });
//!
//! // … and a task awaits.
//! let task = handle.create_task(async move { promise.await });
//! assert_eq!(event_loop.run_until_complete(task)?.unwrap(), Ok("settled by a timer"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The law
//!
//! A loop owns one line (the ready queue), one shelf (timers), one table (watched sources) and one
//! letter-box (work from other threads). Nothing else wakes user code. One turn, in this order:
//!
//! 1. Timeout: 0 if the line is not empty or a stop was asked; else until the nearest deadline;
//!    else none.
//! 2. Park: say "asleep", look at the letter-box once more, wait on the selector, say "awake".
//! 3. Empty the letter-box onto the end of the line, in arrival order.
//! 4. For each I/O event, put the watcher at the end of the line, in the order the selector
//!    reported them.
//! 5. Read the clock; move every deadline that is due to the end of the line, by (deadline, order
//!    of creation).
//! 6. Count the line: n. Run exactly n, from the front. What they add waits for the next turn.
//! 7. If a stop was asked, leave.
//!
//! While the line is not empty the loop leaves out most system waits; [`Builder::poll_every`] says
//! how many, and the book's chapter on the turn what that changes.
//!
//! # A map
//!
//! | to | use |
//! | --- | --- |
//! | run a program | [`run`](run()), `#[coloop::main]` |
//! | own a loop and run it by hand | [`EventLoop`] |
//! | schedule, create, watch | [`LoopHandle`], by [`current`] or [`EventLoop::handle`] |
//! | come in from another thread | [`RemoteHandle`] |
//! | run something later, once | [`call_soon`](LoopHandle::call_soon), [`call_later`](LoopHandle::call_later), [`call_at`](LoopHandle::call_at) |
//! | run `async` code | [`create_task`](LoopHandle::create_task), [`Task`], [`TaskBuilder`] |
//! | await what a callback gives | [`create_future`](LoopHandle::create_future), [`Promise`], [`Resolver`] |
//! | wait | [`sleep`], [`timeout`](timeout()), [`timeout_at`], [`yield_now`] |
//! | run many at once | [`gather`](gather()), [`gather_all`], [`as_completed`] |
//! | make tasks that end together | [`task_group`], [`TaskGroup`] |
//! | wait for tasks | [`wait`](wait()), [`Until`], [`wait_for`] |
//! | take turns, wait for one another, pass items on | [`sync`]: locks, events, semaphores, queues |
//! | end work early | [`Task::cancel`], [`until_cancelled`], [`defer_cancel`], [`shield`] |
//! | connect | [`create_connection`](LoopHandle::create_connection), [`create_connection_on`](LoopHandle::create_connection_on), [`Endpoint`] |
//! | serve | [`create_server`](LoopHandle::create_server), [`create_server_on`](LoopHandle::create_server_on), [`Server`] |
//! | be told of a connection | [`Protocol`], [`BufferedProtocol`] with [`buffered`], [`ProtocolHandle`] |
//! | send and steer | [`Transport`], [`WriteLimits`] |
//! | write a transport | [`Seat`], [`seat`](seat()), [`testing::Wire`] |
//! | watch descriptors | [`add_reader`](LoopHandle::add_reader), [`watch`](LoopHandle::watch) |
//! | handle signals | [`add_signal_handler`](LoopHandle::add_signal_handler), [`signals`](LoopHandle::signals), [`Signal`] |
//! | carry values along | [`ContextVar`] |
//! | see errors nobody else saw | [`set_exception_handler`](LoopHandle::set_exception_handler) |
//! | test | [`testing`], `#[coloop::test]` |
//!
//! # What is not here
//!
//! Spreading CPU-heavy work over many cores (use a work-stealing runtime) and `no_std`.
//!
//! # Features
//!
//! * `macros` (default): `#[coloop::main]` and `#[coloop::test]`.
//! * `async-io`: `EventLoop::run_with_async_io` drives async-io's reactor from the loop's thread.
//!
//! A feature adds items and changes nothing else.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests fail by panicking"))]

mod address;
mod callback;
mod clock;
mod connection;
mod context;
mod core;
mod doorbell;
mod error;
mod event_loop;
mod gather;
mod group;
mod handle;
mod key;
#[cfg(unix)]
mod net;
pub mod policy;
mod promise;
mod random;
mod ready;
mod record;
mod recurring;
mod remote;
mod report;
mod resolve;
mod run;
mod selector;
#[cfg(unix)]
mod signal;
mod socket;
pub mod sync;
mod sys;
mod task;
pub mod testing;
mod time;
mod timers;
mod wait;
mod watch;

pub use futures::future::LocalBoxFuture;

pub use self::address::Address;
pub use self::callback::{Handle, TimerHandle};
pub use self::clock::{Clock, SystemClock};
pub use self::connection::{
    AnyProtocol, Buffered, BufferedProtocol, Closed, Eof, Factory, Protocol, ProtocolHandle, Seat,
    SeatError, ServerFactory, Transport, Unreachable, WriteLimits, WriteRefused, buffered, seat,
    seat_buffered,
};
pub use self::context::{Context, ContextVar, Token, WrongToken};
pub use self::core::LoopHandle;
pub use self::doorbell::Bell;
pub use self::error::{
    Cancelled, Elapsed, JoinError, LoopClosed, NoRunningLoop, Payload, RunError, TimeoutOver,
};
pub use self::event_loop::{Builder, EventLoop, Turn};
pub use self::gather::{AsCompleted, Gather, GatherAll, as_completed, gather, gather_all};
pub use self::group::{GroupError, TaskGroup, task_group};
pub use self::handle::{current, try_current};
#[cfg(unix)]
pub use self::net::{
    ConnectAttempt, ConnectErrors, ConnectSocket, CreateConnection, CreateServer, Endpoint,
    ServeSocket, Server, ServerSocket, WaitClosed,
};
pub use self::promise::{DoneHandle, Promise, Resolver};
pub use self::remote::{Hold, RemoteCall, RemoteHandle, RemoteTask};
pub use self::report::{ExceptionContext, PanicPolicy, SlowCallback};
pub use self::resolve::{Family, LookupFlags, Service};
pub use self::run::run;
pub use self::selector::{Interest, Readiness, Selector, SimId, Source, default_selector};
#[cfg(unix)]
pub use self::signal::{InvalidSignal, NextSignal, Signal, Signals};
pub use self::socket::{ByteStream, Watchable};
pub use self::task::{
    CancelledFuture, DeferCancel, Report, Shield, Task, TaskBuilder, TaskFactory, TaskRef,
    UntilCancelled, Wait, WaitOn, cancelled, current_task, defer_cancel, shield, until_cancelled,
};
pub use self::time::{
    Sleep, Timeout, TimeoutHandle, YieldNow, sleep, timeout, timeout_at, yield_now,
};
pub use self::wait::{Until, WaitFor, WaitTasks, wait, wait_for};
pub use self::watch::{Readable, WatchId, WatchTarget, Watched};
#[cfg(feature = "macros")]
pub use coloop_macros::{main, test};

/// The fragments of the book and of the README are tests.
#[cfg(doctest)]
mod pages {
    macro_rules! pages {
        ($($name:ident: $path:literal,)*) => {$(
            #[doc = include_str!($path)]
            mod $name {}
        )*};
    }

    pages! {
        readme: "../README.md",
        callbacks_and_time: "../book/src/callbacks-and-time.md",
        descriptors: "../book/src/descriptors.md",
        design: "../book/src/design.md",
        differences: "../book/src/differences.md",
        echo_by_protocol: "../book/src/echo-by-protocol.md",
        first_loop: "../book/src/first-loop.md",
        flow_control: "../book/src/flow-control.md",
        life_of_a_connection: "../book/src/life-of-a-connection.md",
        names: "../book/src/names.md",
        preface: "../book/src/preface.md",
        signals: "../book/src/signals.md",
        tasks_and_awaiting: "../book/src/tasks-and-awaiting.md",
        testing: "../book/src/testing.md",
        the_turn: "../book/src/the-turn.md",
        threads: "../book/src/threads.md",
    }
}
