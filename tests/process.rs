//! What needs a process of its own: forks, faults injected into system calls, signals, counts of
//! descriptors and threads, and whatever could take the process down with it or never end.
//!
//! A test runs this binary again for itself alone; what it finds there is its child's outcome. Faults
//! are injected by `strace`; where that cannot be used a line says so and the test passes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::cell::{Cell, RefCell};
use std::fs;
use std::future::{Future, pending};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{self, AssertUnwindSafe};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context as PollContext, Waker};
use std::thread;
use std::time::Duration;

mod alone;

use alone::{Injected, PATIENCE, descriptors, forked, in_a_process, inject_into, is_child};
use coloop::{Context, ContextVar, EventLoop, RunError, Watched, current_task, try_current};

// ---- Verbs -------------------------------------------------------------------------------------

fn pair() -> (UnixStream, Rc<UnixStream>) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, Rc::new(far))
}

fn drain(mut socket: &UnixStream) -> String {
    let mut buffer = [0; 256];
    match socket.read(&mut buffer) {
        Ok(count) => String::from_utf8_lossy(&buffer[..count]).into_owned(),
        Err(error) => format!("{:?}", error.kind()),
    }
}

#[track_caller]
fn one_turn(event_loop: &EventLoop) {
    event_loop.stop();
    event_loop.run_forever().unwrap();
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// What the system watches for this loop.
fn watched_by_the_system(event_loop: &EventLoop) -> String {
    let poller = event_loop.descriptor().unwrap();
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", poller.as_raw_fd())).unwrap();
    let entries = info.lines().filter(|line| line.starts_with("tfd:"));
    let mut entries: Vec<_> = entries.collect();
    entries.sort_unstable();
    entries.join("\n")
}

/// Panics when it is dropped.
struct Explosive(&'static str);

impl Drop for Explosive {
    fn drop(&mut self) {
        println!("dropped: {}", self.0);
        panic!("destructor of {}", self.0);
    }
}

// ---- What could take the process down or never end ---------------------------------------------

#[test]
fn fault_a4_what_the_default_handler_says_when_a_handler_panics() {
    const NAME: &str = "fault_a4_what_the_default_handler_says_when_a_handler_panics";
    let said = in_a_process(NAME, || {
        let event_loop = EventLoop::new().unwrap();
        event_loop.call_soon(|| panic!("the first"));
        one_turn(&event_loop);
        event_loop.set_exception_handler(|_, _| panic!("the handler fails"));
        event_loop.call_soon(|| panic!("the second"));
        one_turn(&event_loop);
    });
    if is_child(NAME) {
        return;
    }
    let lines: Vec<_> = said.lines().filter(|l| l.starts_with("coloop: ")).collect();
    assert_eq!(lines.len(), 2, "{said}");
    let [first, second] = lines[..] else { return };
    assert!(
        first.starts_with("coloop: panic in callback, created at "),
        "{first}"
    );
    assert!(first.ends_with(": the first"), "{first}");
    // The context of the first error is not lost.
    assert!(
        second.starts_with("coloop: unhandled error in exception handler"),
        "{second}"
    );
    assert!(second.contains("the handler fails"), "{second}");
    assert!(second.contains("the second"), "{second}");
}

#[test]
fn fault_a4_a_closed_standard_error_stream_is_no_reason_to_panic() {
    in_a_process(
        "fault_a4_a_closed_standard_error_stream_is_no_reason_to_panic",
        || {
            panic::set_hook(Box::new(|_| ()));
            let event_loop = EventLoop::new().unwrap();
            let ran = Rc::new(Cell::new(false));
            event_loop.call_soon(|| panic!("who hears it?"));
            let flag = Rc::clone(&ran);
            event_loop.call_soon(move || flag.set(true));
            // Whatever opens a file next gets number 2: it is a read-only one.
            let null = fs::File::open("/dev/null").unwrap();
            let saved = rustix::io::dup(io::stderr()).unwrap();
            put_in_place_of_stderr(null.as_fd());
            one_turn(&event_loop);
            put_in_place_of_stderr(saved.as_fd());
            assert!(ran.get());
        },
    );
}

#[expect(unsafe_code, reason = "no safe call takes a descriptor's number")]
fn put_in_place_of_stderr(fd: BorrowedFd<'_>) {
    // SAFETY: `dup2` has no requirement on memory, and number 2 is nobody's property.
    assert_eq!(unsafe { libc::dup2(fd.as_raw_fd(), 2) }, 2);
}

/// Logs in a variable of a context, and panics there.
static VALUE: ContextVar<Rc<Explosive>> = ContextVar::new("value");

#[test]
fn fault_a5_a_value_of_a_task_s_context_that_panics_when_it_is_dropped() {
    in_a_process(
        "fault_a5_a_value_of_a_task_s_context_that_panics_when_it_is_dropped",
        || {
            let event_loop = EventLoop::new().unwrap();
            let ended = event_loop.create_task(async {
                VALUE.set(Rc::new(Explosive("value of a task that ends")));
                "the result"
            });
            let cancelled = event_loop.create_task(async {
                VALUE.set(Rc::new(Explosive("value of a task that is cancelled")));
                pending::<()>().await;
            });
            let closed = event_loop.create_task(async {
                VALUE.set(Rc::new(Explosive(
                    "value of a task that dies with its loop",
                )));
                pending::<()>().await;
            });
            one_turn(&event_loop);
            cancelled.cancel();
            one_turn(&event_loop);
            assert!(ended.is_finished() && cancelled.is_finished() && !closed.is_finished());
            let result = event_loop.run_until_complete(ended).unwrap();
            assert_eq!(result.unwrap(), "the result");
            // A task that is not known to have ended would keep this from ending.
            event_loop.close().unwrap();
            assert!(closed.is_finished());
        },
    );
}

#[test]
fn fault_a5_a_value_of_a_callback_s_context_that_panics_when_it_is_dropped() {
    in_a_process(
        "fault_a5_a_value_of_a_callback_s_context_that_panics_when_it_is_dropped",
        || {
            for fails in [false, true] {
                let event_loop = EventLoop::new().unwrap();
                let ran = Rc::new(Cell::new(0));
                let schedule = |f: Box<dyn FnOnce()>| {
                    let context = Context::new();
                    context.run(|| VALUE.set(Rc::new(Explosive("value of a callback"))));
                    drop(event_loop.call_soon_in(&context, f));
                };
                for _ in 0..2 {
                    let flag = Rc::clone(&ran);
                    schedule(Box::new(move || {
                        flag.set(flag.get() + 1);
                        assert!(!fails, "the callback fails too");
                    }));
                }
                let flag = Rc::clone(&ran);
                event_loop.call_soon(move || flag.set(flag.get() + 10));
                one_turn(&event_loop);
                assert_eq!(ran.get(), 12);
                one_turn(&event_loop);
            }
        },
    );
}

/// Owns a descriptor, and panics when it is dropped.
struct BadOwner(
    UnixStream,
    #[expect(dead_code, reason = "it is there to be dropped")] Explosive,
);

impl AsFd for BadOwner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Two values of different owners that panic one after the other must not abort the process.
#[test]
fn fault_a5_a_callback_and_what_it_belongs_to_that_both_panic_when_they_are_dropped() {
    in_a_process(
        "fault_a5_a_callback_and_what_it_belongs_to_that_both_panic_when_they_are_dropped",
        || {
            let bad_reader = |event_loop: &EventLoop| {
                let (near, _far) = UnixStream::pair().unwrap();
                let owner = BadOwner(near, Explosive("owner"));
                let held = Explosive("reader");
                event_loop
                    .add_reader(owner, move || {
                        let _ = &held;
                    })
                    .unwrap()
            };
            let event_loop = EventLoop::new().unwrap();
            let watch = bad_reader(&event_loop);
            assert!(event_loop.remove_reader(watch));
            bad_reader(&event_loop);
            drop(event_loop);

            let in_bad_context = |event_loop: &EventLoop| {
                let context = Context::new();
                context.run(|| VALUE.set(Rc::new(Explosive("value"))));
                let held = Explosive("callback");
                drop(event_loop.call_soon_in(&context, move || {
                    let _ = &held;
                }));
            };
            let event_loop = EventLoop::new().unwrap();
            in_bad_context(&event_loop);
            drop(event_loop);
        },
    );
}

#[test]
fn fault_a21_a_long_chain_of_done_callbacks_dies_without_recursion() {
    in_a_process(
        "fault_a21_a_long_chain_of_done_callbacks_dies_without_recursion",
        || {
            let builder = thread::Builder::new().stack_size(256 * 1024);
            let small = builder.spawn(|| {
                let event_loop = EventLoop::new().unwrap();
                let (first, mut last) = event_loop.create_future::<u32>();
                for _ in 0..100_000 {
                    let (resolver, next) = event_loop.create_future();
                    std::mem::replace(&mut last, next).on_done(move |value| {
                        if let Ok(value) = value {
                            resolver.settle(value + 1).unwrap();
                        }
                    });
                }
                event_loop.call_soon(move || drop(first));
                // The first resolver dies with the loop, and each cancels the next.
                event_loop.close().unwrap();
                assert!(last.is_cancelled());
            });
            small.unwrap().join().unwrap();
        },
    );
}

// ---- What is left behind -----------------------------------------------------------------------

/// Uses a loop for everything that opens, starts or registers something.
fn a_whole_life() {
    let event_loop = EventLoop::new().unwrap();
    let (peer, socket) = pair();
    let (other_peer, other) = pair();
    let handle = event_loop.handle();
    let source = Rc::clone(&socket);
    event_loop
        .add_reader(socket, move || {
            drain(&source);
            handle.stop();
        })
        .unwrap();
    let watched = event_loop.watch(other).unwrap();
    drop(event_loop.create_task(async move {
        watched.readable().await.unwrap();
        watched.writable().await.unwrap();
        pending::<()>().await;
    }));
    event_loop.call_later(Duration::from_secs(60), || ());
    let remote = event_loop.remote();
    let poster = thread::spawn(move || {
        remote.create_task(|| async {}).unwrap().join().unwrap();
        (&peer).write_all(b"x").unwrap();
        (peer, remote)
    });
    event_loop.run_forever().unwrap();
    (&other_peer).write_all(b"x").unwrap();
    let own = event_loop.descriptor().unwrap();
    one_turn(&event_loop);
    drop((event_loop, own));
    poster.join().unwrap();
}

#[test]
fn a_thousand_loops_leave_no_descriptor_and_no_thread() {
    in_a_process("a_thousand_loops_leave_no_descriptor_and_no_thread", || {
        a_whole_life();
        let before = (descriptors(), threads());
        for _ in 0..1_000 {
            drop(EventLoop::new().unwrap());
        }
        for _ in 0..50 {
            a_whole_life();
        }
        assert_eq!((descriptors(), threads()), before);
        // Who keeps a way in, or a handle, keeps no descriptor.
        let event_loop = EventLoop::new().unwrap();
        let kept = (event_loop.handle(), event_loop.remote());
        let timer = event_loop.call_later(Duration::from_secs(1), || ());
        assert_ne!(descriptors(), before.0);
        drop(event_loop);
        assert_eq!((descriptors(), threads()), before);
        drop((kept, timer));
    });
}

#[test]
fn c_035_a_loop_changes_nothing_of_the_standard_descriptors() {
    in_a_process(
        "c_035_a_loop_changes_nothing_of_the_standard_descriptors",
        || {
            let flags = || {
                let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
                [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].map(|fd| {
                    (
                        rustix::io::fcntl_getfd(fd).unwrap(),
                        rustix::fs::fcntl_getfl(fd).unwrap(),
                    )
                })
            };
            let (before, open) = (flags(), descriptors());
            let event_loop = EventLoop::new().unwrap();
            assert_eq!(flags(), before);
            one_turn(&event_loop);
            assert_eq!(flags(), before);
            // And a program that is started inherits nothing of the loop's.
            let own = descriptors();
            let own: Vec<_> = own.iter().filter(|fd| !open.contains(fd)).collect();
            assert!(own.len() >= 2, "{own:?}");
            for (number, target) in own {
                let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
                let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
                assert_ne!(flags & libc::O_CLOEXEC as u32, 0, "{target}");
            }
            drop(event_loop);
            assert_eq!(flags(), before);
        },
    );
}

// ---- Forks -------------------------------------------------------------------------------------

#[test]
fn c_034_a_forked_child_is_in_nobody_s_loop_and_can_have_its_own() {
    in_a_process(
        "c_034_a_forked_child_is_in_nobody_s_loop_and_can_have_its_own",
        || {
            let event_loop = EventLoop::new().unwrap();
            let check = || {
                assert!(try_current().is_err());
                assert!(current_task().is_none());
                let fresh = EventLoop::new().unwrap();
                let answer = fresh.run_until_complete(async {
                    assert!(current_task().is_some());
                    coloop::sleep(Duration::from_millis(1)).await;
                    let task = coloop::current().create_task(async { 6 * 7 });
                    task.await.unwrap()
                });
                assert_eq!(answer.unwrap(), 42);
                let remote = fresh.remote();
                let poster =
                    thread::spawn(move || remote.create_task(|| async { 7 }).unwrap().join());
                while !poster.is_finished() {
                    fresh.turn(Some(Duration::from_millis(10))).unwrap();
                }
                assert_eq!(poster.join().unwrap().unwrap(), 7);
                fresh.close().unwrap();
                assert!(try_current().is_err());
            };
            event_loop.call_soon(move || forked("in a callback", check));
            event_loop.call_later(Duration::ZERO, move || forked("in a timer", check));
            let task = event_loop.create_task(async move {
                forked("in a task", check);
                coloop::yield_now().await;
                forked("after an await", check);
                "and the parent goes on"
            });
            let said = event_loop.run_until_complete(async {
                forked("in the future of a run", check);
                assert!(coloop::current().is_running());
                task.await.unwrap()
            });
            assert_eq!(said.unwrap(), "and the parent goes on");
            forked("outside of a run", check);
        },
    );
}

#[test]
fn c_034_a_parent_s_loop_does_not_run_in_the_child() {
    in_a_process("c_034_a_parent_s_loop_does_not_run_in_the_child", || {
        let event_loop = Rc::new(EventLoop::new().unwrap());
        let refused = |event_loop: &EventLoop| {
            let forked = |outcome: Result<(), RunError>| matches!(outcome, Err(RunError::Forked));
            assert!(forked(event_loop.run_forever()));
            assert!(forked(event_loop.run_until_complete(async {})));
            assert!(forked(event_loop.turn(Some(Duration::ZERO)).map(drop)));
            let error = io::Error::from(event_loop.run_forever().unwrap_err());
            assert_eq!(
                error.to_string(),
                "the event loop belongs to the parent process: make a new one"
            );
        };
        forked("outside of a run", || refused(&event_loop));

        // A child that comes back out of a callback finds that the run is over.
        let ours = Rc::clone(&event_loop);
        let parent = std::process::id();
        event_loop.call_soon(move || {
            forked("in a callback", || {
                // The run that goes on is the parent's.
                assert!(ours.run_forever().is_err());
            });
            assert_eq!(std::process::id(), parent);
        });
        one_turn(&event_loop);
        let status = Rc::new(Cell::new(0));
        let pid = Rc::clone(&status);
        event_loop.call_soon(move || pid.set(fork_and_come_back()));
        let outcome = event_loop.run_until_complete(async {
            while status.get() == 0 && std::process::id() == parent {
                coloop::yield_now().await;
            }
            // In the child this does not come to its end: the run is over when it would wait.
            for _ in 0..1_000 {
                coloop::yield_now().await;
            }
        });
        if std::process::id() != parent {
            leave(matches!(outcome, Err(RunError::Forked)) && try_current().is_err());
        }
        outcome.unwrap();
        assert_eq!(wait_for(status.get()), 0);
    });
}

/// Forks, and returns in both processes: the child's id in the parent, zero in the child.
#[expect(unsafe_code, reason = "no crate forks")]
fn fork_and_come_back() -> i32 {
    // SAFETY: the child goes on in this thread alone, and leaves by `_exit` below.
    unsafe { libc::fork() }
}

#[expect(
    unsafe_code,
    reason = "no crate leaves without running destructors and handlers"
)]
fn leave(content: bool) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(i32::from(!content)) }
}

#[expect(unsafe_code, reason = "waits for one child and for no other")]
fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the status is written to a live variable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    status
}

/// What a parent has: a reader, a task that waits, a watch nobody waits for now.
struct Parent {
    event_loop: EventLoop,
    peers: [UnixStream; 3],
    reader: Rc<UnixStream>,
    read: Rc<RefCell<Vec<String>>>,
    watched: Option<Watched<Rc<UnixStream>>>,
}

impl Parent {
    fn new() -> Self {
        let event_loop = EventLoop::new().unwrap();
        let ((peer, reader), (task_peer, awaited), (watch_peer, watched)) =
            (pair(), pair(), pair());
        let read: Rc<RefCell<Vec<String>>> = Rc::default();
        let (log, source) = (Rc::clone(&read), Rc::clone(&reader));
        event_loop
            .add_reader(Rc::clone(&reader), move || {
                log.borrow_mut().push(drain(&source));
            })
            .unwrap();
        let (log, awaited) = (Rc::clone(&read), event_loop.watch(awaited).unwrap());
        drop(event_loop.create_task(async move {
            loop {
                let text = awaited
                    .read_with(|socket| {
                        let mut buffer = [0; 64];
                        let count = (&**socket).read(&mut buffer)?;
                        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
                    })
                    .await;
                log.borrow_mut().push(text.unwrap());
            }
        }));
        let watched = event_loop.watch(watched).unwrap();
        poll_once(watched.readable());
        one_turn(&event_loop);
        Self {
            event_loop,
            peers: [peer, task_peer, watch_peer],
            reader,
            read,
            watched: Some(watched),
        }
    }

    /// Asserts that everything of it is still told of what arrives.
    fn is_undisturbed(&self, what: &str) {
        for (peer, text) in self.peers.iter().zip(["reader", "task", "watch"]) {
            let mut peer = peer;
            peer.write_all(text.as_bytes()).unwrap();
        }
        for _ in 0..3 {
            one_turn(&self.event_loop);
        }
        let mut read = self.read.take();
        read.sort();
        assert_eq!(read, ["reader", "task"], "after: {what}");
        let watched = self.watched.as_ref().unwrap();
        let readable = async {
            watched.readable().await.unwrap();
            drain(watched.get_ref())
        };
        let read = self
            .event_loop
            .run_until_complete(coloop::timeout(PATIENCE, readable));
        assert_eq!(read.unwrap().as_deref(), Ok("watch"), "after: {what}");
        poll_once(watched.readable());
    }
}

fn poll_once(future: impl Future) {
    let mut cx = PollContext::from_waker(Waker::noop());
    assert!(pin!(future).poll(&mut cx).is_pending());
}

#[test]
fn fault_c15_whatever_a_child_does_with_its_parent_s_loop_the_parent_does_not_notice() {
    in_a_process(
        "fault_c15_whatever_a_child_does_with_its_parent_s_loop_the_parent_does_not_notice",
        || {
            type Abuse = fn(&mut Parent);
            let abuses: [(&str, Abuse); 12] = [
                ("nothing", |_| ()),
                ("runs the loop", |parent| {
                    let ran = parent.event_loop.run_until_complete(async {});
                    assert!(matches!(ran, Err(RunError::Forked)));
                }),
                ("closes the loop", |parent| {
                    parent.event_loop.close().unwrap();
                    assert!(parent.event_loop.is_closed());
                }),
                ("drops the loop", |parent| {
                    drop(std::mem::replace(
                        &mut parent.event_loop,
                        EventLoop::new().unwrap(),
                    ));
                }),
                ("removes the reader", |parent| {
                    parent.event_loop.remove_reader(parent.reader.as_raw_fd());
                }),
                ("adds a reader", |parent| {
                    let added = parent.event_loop.add_reader(pair().1, || ());
                    added.unwrap_err();
                }),
                ("adds a writer beside the reader", |parent| {
                    let socket = Rc::clone(&parent.reader);
                    parent.event_loop.add_writer(socket, || ()).unwrap_err();
                }),
                ("replaces the reader", |parent| {
                    let socket = Rc::clone(&parent.reader);
                    let _ = parent.event_loop.add_reader(socket, || ());
                }),
                ("watches something else", |parent| {
                    if let Ok(watched) = parent.event_loop.watch(pair().1) {
                        let mut cx = PollContext::from_waker(Waker::noop());
                        let polled = pin!(watched.readable()).poll(&mut cx);
                        assert!(matches!(polled, std::task::Poll::Ready(Err(_))));
                    }
                }),
                ("drops the watch", |parent| drop(parent.watched.take())),
                ("waits for something else of the watch", |parent| {
                    let watched = parent.watched.as_ref().unwrap();
                    let mut cx = PollContext::from_waker(Waker::noop());
                    let polled = pin!(watched.writable()).poll(&mut cx);
                    assert!(matches!(polled, std::task::Poll::Ready(Err(_))));
                }),
                ("cancels and posts", |parent| {
                    for task in parent.event_loop.all_tasks() {
                        task.cancel();
                    }
                    let _ = parent.event_loop.remote().call_soon(|| ());
                    parent.event_loop.call_soon(|| ());
                    parent.event_loop.remote().stop();
                }),
            ];
            let mut disturbed = Vec::new();
            for (what, abuse) in abuses {
                let mut parent = Parent::new();
                let before = watched_by_the_system(&parent.event_loop);
                let checked = panic::catch_unwind(AssertUnwindSafe(|| {
                    forked(what, || abuse(&mut parent));
                }));
                let after = watched_by_the_system(&parent.event_loop);
                if checked.is_err() || after != before {
                    disturbed.push(what);
                    continue;
                }
                parent.is_undisturbed(what);
            }
            assert!(
                disturbed.is_empty(),
                "the parent is disturbed by a child that: {disturbed:?}"
            );
        },
    );
}

// ---- Signals -----------------------------------------------------------------------------------

static SIGNALS: AtomicU32 = AtomicU32::new(0);

/// Interrupts this process a thousand times a second, without `SA_RESTART`.
#[expect(
    unsafe_code,
    reason = "no crate sets a handler without SA_RESTART, or a timer"
)]
fn interrupt_everything() {
    extern "C" fn count(_: libc::c_int) {
        SIGNALS.fetch_add(1, Ordering::Relaxed);
    }

    // SAFETY: a zeroed `sigaction` is a valid one: no flags and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler only adds to an atomic, and is there for as long as the process is.
    let set = unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    let millisecond = libc::timeval {
        tv_sec: 0,
        tv_usec: 1_000,
    };
    let every = libc::itimerval {
        it_interval: millisecond,
        it_value: millisecond,
    };
    // SAFETY: the value lives to the end of the call.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const every, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

#[test]
fn fault_c9_a_loop_that_is_interrupted_a_thousand_times_a_second() {
    in_a_process(
        "fault_c9_a_loop_that_is_interrupted_a_thousand_times_a_second",
        || {
            interrupt_everything();
            let event_loop = EventLoop::new().unwrap();
            let (near, far) = pair();
            let near = event_loop.watch(Rc::new(near)).unwrap();
            let far = event_loop.watch(far).unwrap();
            drop(event_loop.create_task(async move {
                let mut byte = [0];
                loop {
                    far.read_with(|far| (&**far).read(&mut byte)).await.unwrap();
                    far.write_with(|far| (&**far).write(&byte)).await.unwrap();
                }
            }));
            let remote = event_loop.remote();
            let poster = thread::spawn(move || {
                (0..100_u32)
                    .map(|number| {
                        let task = remote.create_task(move || async move {
                            coloop::sleep(Duration::from_micros(200)).await;
                            number
                        });
                        task.unwrap().join().unwrap()
                    })
                    .sum::<u32>()
            });
            let rounds = event_loop.run_until_complete(async move {
                let (mut rounds, mut byte) = (0_u32, [0]);
                // Until a good many waits have been cut short.
                while SIGNALS.load(Ordering::Relaxed) < 100 || !poster.is_finished() {
                    near.write_with(|near| (&**near).write(&[rounds as u8]))
                        .await
                        .unwrap();
                    near.read_with(|near| (&**near).read(&mut byte))
                        .await
                        .unwrap();
                    assert_eq!(byte[0], rounds as u8);
                    let due = coloop::current().time() + Duration::from_micros(700);
                    coloop::sleep(Duration::from_micros(700)).await;
                    assert!(coloop::current().time() >= due, "early");
                    rounds += 1;
                }
                assert_eq!(poster.join().unwrap(), 4_950);
                rounds
            });
            assert!(rounds.unwrap() > 0);
        },
    );
}

// ---- Faults injected into system calls ---------------------------------------------------------

/// Runs the helper under faults; `None` where that is not possible.
fn inject(faults: &[&str], options: &[&str]) -> Option<Injected> {
    inject_into("helper_makes_a_loop_and_uses_it", faults, options)
}

/// Not a test of its own: what the faults are injected into. It takes every error that is an `Err`.
#[test]
fn helper_makes_a_loop_and_uses_it() {
    let said = RefCell::new(Vec::new());
    let say = |what: String| said.borrow_mut().push(what);
    use_a_loop(&say);
    // At the end, in one piece: the calls that it takes to write are not under test.
    println!();
    for line in said.take() {
        println!("- {line}");
    }
}

fn use_a_loop(say: &dyn Fn(String)) {
    let event_loop = match EventLoop::new() {
        Ok(event_loop) => event_loop,
        Err(error) => return say(format!("no loop: {:?}", error.raw_os_error())),
    };
    let ((near, first), (far, second), (_third_peer, third)) = (pair(), pair(), pair());
    let read = Rc::new(RefCell::new(String::new()));
    let reader = || {
        let (log, source) = (Rc::clone(&read), Rc::clone(&first));
        move || log.borrow_mut().push_str(&drain(&source))
    };
    match event_loop.add_reader(Rc::clone(&first), reader()) {
        Ok(_) => {}
        Err(error) => {
            say(format!("no reader: {:?}", error.raw_os_error()));
            assert!(
                !event_loop.remove_reader(first.as_raw_fd()),
                "it is registered"
            );
            assert_eq!(Rc::strong_count(&first), 1, "it is kept");
            event_loop.add_reader(Rc::clone(&first), reader()).unwrap();
        }
    }
    match event_loop.add_writer(Rc::clone(&first), || ()) {
        Ok(_) => {}
        Err(error) => {
            say(format!("no writer: {:?}", error.raw_os_error()));
            assert!(
                !event_loop.remove_writer(first.as_raw_fd()),
                "it is registered"
            );
            event_loop.add_writer(Rc::clone(&first), || ()).unwrap();
        }
    }
    assert!(event_loop.remove_writer(first.as_raw_fd()));
    let watched = event_loop.watch(second).unwrap();
    let idle = event_loop.watch(third).unwrap();

    let remote = event_loop.remote();
    let poster = thread::spawn(move || {
        let answer = remote.create_task(|| async { 6 * 7 }).unwrap().join();
        (&near).write_all(b"hello").unwrap();
        (&far).write_all(b"x").unwrap();
        (answer.unwrap(), near, far)
    });
    let mut attempts = 0;
    loop {
        let run = event_loop.run_until_complete(async {
            while let Err(error) = watched.readable().await {
                attempts += 1;
                say(format!("not readable: {:?}", error.raw_os_error()));
                assert!(attempts < 10);
            }
            coloop::timeout(Duration::from_millis(1), idle.readable())
                .await
                .ok();
            while read.borrow().is_empty() {
                coloop::sleep(Duration::from_millis(1)).await;
            }
        });
        match run {
            Ok(()) => break,
            Err(RunError::Io(error)) => say(format!("run: {:?}", error.raw_os_error())),
            Err(error) => panic!("{error}"),
        }
        attempts += 1;
        assert!(attempts < 10, "again and again");
    }
    assert_eq!(poster.join().unwrap().0, 42);
    assert_eq!(read.take(), "hello");
    assert!(event_loop.remove_reader(first.as_raw_fd()));
    drop((watched, idle));
    event_loop.close().unwrap();
    assert_eq!(Rc::strong_count(&first), 1);
    say("content".to_owned());
}

const EMFILE: i32 = libc::EMFILE;
/// Under `cfg(coloop_poller_wait)` the doorbell is the poller's, which can do with a pipe.
const OWN_WAIT: bool = !cfg!(coloop_poller_wait);

#[test]
fn fault_c11_a_loop_that_cannot_be_made_is_an_error() {
    let calls = ["epoll_create1", "eventfd2", "timerfd_create", "pipe2"];
    for (error, number) in [
        ("EMFILE", EMFILE),
        ("ENFILE", libc::ENFILE),
        ("ENOMEM", libc::ENOMEM),
    ] {
        for call in calls {
            let fault = format!("{call}:error={error}");
            let Some(injected) = inject(&[&fault], &[]) else {
                return;
            };
            injected.assert_sound(&[&fault]);
            let needed = call == "epoll_create1" || (OWN_WAIT && call == "eventfd2");
            let expected = if needed {
                format!("no loop: Some({number})")
            } else {
                "content".to_owned()
            };
            assert_eq!(injected.said(), [expected], "{fault}");
        }
        let every_bell = [
            &*format!("eventfd2:error={error}"),
            &*format!("pipe2,?pipe:error={error}"),
        ];
        if let Some(injected) = inject(&every_bell, &[]) {
            injected.assert_sound(&every_bell);
            assert_eq!(injected.said(), [format!("no loop: Some({number})")]);
        }
    }
}

#[test]
fn fault_c12_a_registration_that_fails_at_the_kth_call_is_an_error_and_leaves_nothing() {
    for (error, number) in [("ENOSPC", libc::ENOSPC), ("ENOMEM", libc::ENOMEM)] {
        let mut told = std::collections::BTreeSet::new();
        for k in 1.. {
            let fault = format!("epoll_ctl:error={error}:when={k}");
            let Some(injected) = inject(&[&fault], &[]) else {
                return;
            };
            injected.assert_sound(&[&fault]);
            if injected.count == 0 {
                assert_eq!(injected.said(), ["content"], "{fault}");
                assert!(k > 8, "the helper makes more calls than {k}");
                break;
            }
            assert_eq!(injected.count, 1, "{fault}");
            let said = injected.said();
            let (last, before) = said.split_last().unwrap();
            assert!(before.len() <= 1, "{fault}: {said:?}");
            match before.first() {
                Some(refused) => {
                    assert!(
                        refused.ends_with(&format!("Some({number})")),
                        "{fault}: {said:?}"
                    );
                    assert_eq!(*last, "content", "{fault}");
                    told.insert(refused.split(':').next().unwrap().to_owned());
                }
                // What takes something away does not fail.
                None if *last == "content" => {}
                None => {
                    assert_eq!(*last, format!("no loop: Some({number})"), "{fault}");
                    told.insert("no loop".to_owned());
                }
            }
        }
        if !OWN_WAIT {
            // The poller's own wait registers its timer and its bell anew.
            assert!(told.remove("run"));
        }
        let told: Vec<_> = told.into_iter().collect();
        assert_eq!(told, ["no loop", "no reader", "no writer", "not readable"]);
    }
}

#[test]
fn fault_c13_a_wait_that_fails_is_surfaced_once() {
    let waits = if OWN_WAIT {
        "epoll_pwait2"
    } else {
        "?epoll_wait,?epoll_pwait"
    };
    for (error, number) in [("EBADF", libc::EBADF), ("ENOMEM", libc::ENOMEM)] {
        let fault = format!("{waits}:error={error}:when=1");
        let Some(injected) = inject(&[&fault], &[]) else {
            return;
        };
        injected.assert_sound(&[&fault]);
        assert_eq!(injected.count, 1, "{fault}");
        assert_eq!(
            injected.said(),
            [&*format!("run: Some({number})"), "content"]
        );
    }
}

#[test]
fn fault_c9_a_wait_that_is_interrupted_goes_on() {
    let waits = if OWN_WAIT {
        "epoll_pwait2"
    } else {
        "?epoll_wait,?epoll_pwait"
    };
    for when in ["1", "1+2", "2+3"] {
        let fault = format!("{waits}:error=EINTR:when={when}");
        let Some(injected) = inject(&[&fault], &[]) else {
            return;
        };
        injected.assert_sound(&[&fault]);
        assert!(injected.count > 0, "{fault}");
        assert_eq!(injected.said(), ["content"], "{fault}");
    }
}

#[test]
fn fault_b8_waits_that_return_late_make_no_difference() {
    let waits = if OWN_WAIT {
        "epoll_pwait2"
    } else {
        "?epoll_wait,?epoll_pwait"
    };
    let fault = format!("{waits}:delay_exit=20000");
    if let Some(injected) = inject(&[&fault], &[]) {
        injected.assert_sound(&[&fault]);
        assert_eq!(injected.said(), ["content"]);
    }
}

#[test]
fn fault_b9_a_loop_needs_no_timerfd() {
    let fault = "timerfd_create:error=EMFILE";
    if let Some(injected) = inject(&[fault], &[]) {
        injected.assert_sound(&[fault]);
        assert!(injected.count > 0);
        assert_eq!(injected.said(), ["content"]);
    }
}

/// On kernels before 5.11, and in sandboxes that do not know the call.
#[test]
fn a_kernel_without_epoll_pwait2_is_waited_on_by_epoll_wait() {
    if !OWN_WAIT {
        println!("skipped: this build waits through the poller");
        return;
    }
    for error in ["ENOSYS", "EPERM"] {
        let fault = format!("epoll_pwait2:error={error}");
        let Some(injected) = inject(&[&fault], &[]) else {
            return;
        };
        injected.assert_sound(&[&fault]);
        assert_eq!(injected.said(), ["content"], "{fault}");
        assert_eq!(injected.count, 1, "it is asked once and remembered");
        let both = [&*fault, "?epoll_wait,?epoll_pwait:error=EINTR:when=1+2"];
        if let Some(injected) = inject(&both, &[]) {
            injected.assert_sound(&both);
            assert!(injected.count > 1);
            assert_eq!(injected.said(), ["content"], "{both:?}");
        }
    }
}

#[test]
fn fault_a13_a_doorbell_that_is_full_is_emptied_and_rung() {
    if !OWN_WAIT {
        println!("skipped: the doorbell of this build is the poller's");
        return;
    }
    let only_the_bell = ["-P", "anon_inode:[eventfd]"];
    for fault in [
        "write:error=EAGAIN:when=1..3",
        "write:error=EINTR:when=1..3",
    ] {
        let Some(injected) = inject(&[fault], &only_the_bell) else {
            return;
        };
        injected.assert_sound(&[fault]);
        assert!(injected.count >= 1, "{fault}");
        assert_eq!(injected.said(), ["content"], "{fault}");
    }
}
