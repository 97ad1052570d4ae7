//! Living with async-io: its futures in our tasks, with and without its reactor in our thread.
//!
//! A binary of its own, because async-io keeps one reactor and one thread for the whole process.

#![cfg(all(feature = "async-io", unix))]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use async_io::{Async, Timer};
use coloop::EventLoop;

/// One test at a time: they count threads.
static ALONE: Mutex<()> = Mutex::new(());

#[cfg(target_os = "linux")]
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| {
        let name = std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap();
        name.trim().to_owned()
    });
    names.collect()
}

/// Echoes over a pair of sockets by async-io, sleeps by its timer, and logs what happened.
async fn exchange() -> Vec<&'static str> {
    let log = Rc::new(RefCell::new(Vec::new()));
    let (near, far) = UnixStream::pair().unwrap();
    let (near, far) = (Async::new(near).unwrap(), Async::new(far).unwrap());
    let echo = coloop::current().create_task({
        let log = Rc::clone(&log);
        async move {
            let mut buffer = [0; 5];
            far.read_with(|mut socket| socket.read_exact(&mut buffer))
                .await
                .unwrap();
            log.borrow_mut().push("read");
            far.write_with(|mut socket| socket.write_all(&buffer))
                .await
                .unwrap();
        }
    });
    let before = Instant::now();
    Timer::after(Duration::from_millis(2)).await;
    assert!(before.elapsed() >= Duration::from_millis(2));
    log.borrow_mut().push("timer");
    near.write_with(|mut socket| socket.write_all(b"hello"))
        .await
        .unwrap();
    let mut buffer = [0; 5];
    near.read_with(|mut socket| socket.read_exact(&mut buffer))
        .await
        .unwrap();
    assert_eq!(&buffer, b"hello");
    log.borrow_mut().push("echoed");
    echo.await.unwrap();
    log.take()
}

#[test]
fn its_futures_work_in_our_tasks_through_the_letter_box() {
    let _alone = ALONE.lock();
    let event_loop = EventLoop::new().unwrap();
    let log = event_loop.run_until_complete(exchange()).unwrap();
    assert_eq!(log, ["timer", "read", "echoed"]);
}

#[test]
fn our_thread_can_drive_its_reactor() {
    let _alone = ALONE.lock();
    let event_loop = EventLoop::new().unwrap();
    let log = event_loop.run_with_async_io(exchange()).unwrap();
    assert_eq!(log, ["timer", "read", "echoed"]);
}

#[test]
#[cfg(target_os = "linux")]
fn no_thread_is_added_but_async_io_s_own() {
    let _alone = ALONE.lock();
    // The reactor starts its thread with the first use.
    let event_loop = EventLoop::new().unwrap();
    event_loop.run_with_async_io(exchange()).unwrap();
    let before = threads();
    assert_eq!(before.iter().filter(|name| *name == "async-io").count(), 1);
    for _ in 0..10 {
        let event_loop = EventLoop::new().unwrap();
        event_loop.run_with_async_io(exchange()).unwrap();
    }
    assert_eq!(threads().len(), before.len());
}

#[test]
fn our_timers_callbacks_and_letters_go_on_beside_it() {
    let _alone = ALONE.lock();
    let event_loop = EventLoop::new().unwrap();
    let log = Rc::new(RefCell::new(Vec::new()));
    let (timer, letter) = (Rc::clone(&log), event_loop.remote());
    event_loop.call_later(Duration::from_millis(1), move || {
        timer.borrow_mut().push("call_later");
    });
    let (resolver, promise) = event_loop.create_future();
    let settled = event_loop.create_task({
        let log = Rc::clone(&log);
        async move {
            promise.await.unwrap();
            log.borrow_mut().push("promise");
        }
    });
    let resolver = RefCell::new(Some(resolver));
    event_loop
        .run_with_async_io(async {
            Timer::after(Duration::from_millis(3)).await;
            log.borrow_mut().push("its timer");
            let posted = thread::spawn(move || letter.create_task(|| async { 7 }).unwrap());
            let remote = posted.join().unwrap();
            assert_eq!(remote.await.unwrap(), 7);
            log.borrow_mut().push("letter");
            resolver.take().unwrap().settle(()).unwrap();
            settled.await.unwrap();
        })
        .unwrap();
    assert_eq!(log.take(), ["call_later", "its timer", "letter", "promise"]);
}

#[test]
fn a_panic_a_stop_and_a_virtual_clock_are_told() {
    let _alone = ALONE.lock();
    let event_loop = EventLoop::new().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        event_loop.run_with_async_io(async { panic!("no tea") })
    }));
    assert!(panicked.is_err());

    let stopped = event_loop.run_with_async_io(async {
        coloop::current().stop();
        std::future::pending::<()>().await;
    });
    assert!(matches!(stopped, Err(coloop::RunError::Stopped)));

    let clock = coloop::testing::Clock::new();
    let virtual_loop = EventLoop::builder().clock(clock).build().unwrap();
    let refused = virtual_loop.run_with_async_io(async {});
    assert!(matches!(refused, Err(coloop::RunError::Io(error))
        if error.kind() == std::io::ErrorKind::Unsupported));
}
