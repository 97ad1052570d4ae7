//! Signals: handlers and streams, what is set in the process and what is put back.
//!
//! What signals do is the whole process's business, so every test here runs in a process of its own.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod alone;

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fs;
use std::future::{Future, pending};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context as PollContext, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use coloop::{
    Bell, ByteStream, ContextVar, EventLoop, Interest, InvalidSignal, LoopHandle, PanicPolicy,
    Readiness, RunError, Selector, Signal, Signals, Source, WaitOn, default_selector, sleep,
    testing,
};
use futures::StreamExt;
use rustix::process::{Signal as Kill, getpid, kill_process};
use signal_hook::low_level;

use alone::{PATIENCE, descriptors, forked, in_a_process, inject_into, is_child, run_child};

// ---- Verbs -------------------------------------------------------------------------------------

/// What has happened, in order.
#[derive(Clone, Default)]
struct Trace(Rc<RefCell<Vec<String>>>);

impl Trace {
    fn log(&self, what: impl ToString) {
        self.0.borrow_mut().push(what.to_string());
    }

    /// A closure that logs.
    fn logger(&self, what: impl ToString) -> impl Fn() + 'static {
        let (trace, what) = (self.clone(), what.to_string());
        move || trace.log(&what)
    }

    /// Asserts what has happened since this was last asked.
    #[track_caller]
    fn assert(&self, expected: &[&str]) {
        assert_eq!(self.0.take(), expected);
    }
}

/// Sends a signal to this thread: the system's handler has run when this returns.
fn raise(signal: Signal) {
    low_level::raise(signal.as_raw()).unwrap();
}

/// Sends a signal to this process, to whichever thread takes it.
fn kill(signal: Kill) {
    kill_process(getpid(), signal).unwrap();
}

/// Two turns: the loop looks at its pipe in the first and calls handlers in the second.
#[track_caller]
fn turns(event_loop: &EventLoop) {
    for _ in 0..2 {
        event_loop.stop();
        event_loop.run_forever().unwrap();
    }
}

#[track_caller]
fn run<F: Future>(event_loop: &EventLoop, future: F) -> F::Output {
    let limited = coloop::timeout(PATIENCE, future);
    event_loop.run_until_complete(limited).unwrap().unwrap()
}

/// The reason inside of an error.
fn reason(error: &io::Error) -> Option<InvalidSignal> {
    error.get_ref()?.downcast_ref().copied()
}

/// What the process does on its signals: the handler's address and the flags of each.
fn actions() -> Vec<(libc::sighandler_t, i32)> {
    (1..32).map(action).collect()
}

#[expect(unsafe_code, reason = "no crate reads an action")]
fn action(signal: i32) -> (libc::sighandler_t, i32) {
    // SAFETY: a zeroed `sigaction` is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the action is written to a live variable, and none is set.
    let done = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    assert_eq!(done, 0);
    // The C library's own flag, which it adds to whatever is set.
    const SA_RESTORER: i32 = 0x0400_0000;
    (action.sa_sigaction, action.sa_flags & !SA_RESTORER)
}

static FOREIGN: AtomicU32 = AtomicU32::new(0);

/// Installs a handler that no loop knows of, which counts.
fn install_foreign_handler(signal: Signal) {
    extern "C" fn count(_: libc::c_int) {
        FOREIGN.fetch_add(1, Ordering::Relaxed);
    }

    install(
        signal,
        count as extern "C" fn(libc::c_int) as libc::sighandler_t,
    );
}

/// Lets a signal do what it does by default. Whoever has started this process may have had it
/// ignored, as a shell does for what it runs in the background.
fn install_default(signal: Signal) {
    install(signal, libc::SIG_DFL);
}

#[expect(unsafe_code, reason = "it stands for foreign code")]
fn install(signal: Signal, handler: libc::sighandler_t) {
    // SAFETY: the handler is the default or `count`, which only adds to an atomic and is there for
    // as long as the process is.
    let before = unsafe { libc::signal(signal.as_raw(), handler) };
    assert_ne!(before, libc::SIG_ERR);
}

fn foreign_calls() -> u32 {
    FOREIGN.swap(0, Ordering::Relaxed)
}

/// Lets this thread take a signal, or not.
#[expect(unsafe_code, reason = "no crate at hand sets a thread's mask")]
fn set_blocked(signal: Signal, blocked: bool) {
    let how = if blocked {
        libc::SIG_BLOCK
    } else {
        libc::SIG_UNBLOCK
    };
    // SAFETY: a zeroed set is memory that `sigemptyset` may write to.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is a live variable.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: the set has been initialised.
    unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
    // SAFETY: the set lives to the end of the call; nothing is written back.
    let done = unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) };
    assert_eq!(done, 0);
}

/// The default selector, and something to do when it is told of a source, when it is to forget one,
/// and right before it waits for longer than no time: after the loop has looked at everything else.
struct Hooked<F>(Rc<dyn Selector>, F);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    Add,
    Delete,
    Sleep,
}

impl<F: Fn(Moment)> Selector for Hooked<F> {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.1(Moment::Add);
        self.0.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.0.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        self.1(Moment::Delete);
        self.0.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        if timeout != Some(Duration::ZERO) {
            self.1(Moment::Sleep);
        }
        self.0.wait(ready, timeout)
    }

    fn bell(&self) -> Arc<dyn Bell> {
        self.0.bell()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.0.descriptor()
    }
}

fn hooked_loop(f: impl Fn(Moment) + 'static) -> EventLoop {
    let selector = Rc::new(Hooked(default_selector().unwrap(), f));
    EventLoop::builder().selector(selector).build().unwrap()
}

fn loop_that_does_before_sleep(f: impl Fn() + 'static) -> EventLoop {
    hooked_loop(move |moment| {
        if moment == Moment::Sleep {
            f();
        }
    })
}

/// Counts how often it is woken.
#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut PollContext::from_waker(Waker::noop()))
}

// ---- Signals by name ---------------------------------------------------------------------------

#[test]
fn signals_are_numbers_with_names() {
    assert_eq!(Signal::from(libc::SIGINT), Signal::INT);
    assert_eq!(Signal::TERM.as_raw(), libc::SIGTERM);
    assert_eq!(Signal::WINCH.to_string(), "SIGWINCH");
    assert_eq!(format!("{:>8}|", Signal::INT), "  SIGINT|");
    assert_eq!(Signal::from(40).to_string(), "signal 40");
    assert_eq!(format!("{:?}", Signal::USR1), "Signal(SIGUSR1)");
    assert!(Signal::HUP < Signal::TERM);
}

// ---- Handlers ----------------------------------------------------------------------------------

#[test]
fn c_205_a_handler_runs_after_the_code_that_runs_once_for_all_that_came() {
    in_a_process(
        "c_205_a_handler_runs_after_the_code_that_runs_once_for_all_that_came",
        || {
            let event_loop = EventLoop::new().unwrap();
            let trace = Trace::default();
            for signal in [Signal::USR2, Signal::HUP, Signal::USR1] {
                event_loop
                    .add_signal_handler(signal, trace.logger(signal))
                    .unwrap();
            }
            let log = trace.clone();
            event_loop.call_soon(move || {
                log.log("begins");
                raise(Signal::USR1);
                raise(Signal::USR1);
                log.log("ends");
            });
            turns(&event_loop);
            // The turn that runs the callback has waited before.
            trace.assert(&["begins", "ends"]);
            turns(&event_loop);
            trace.assert(&["SIGUSR1"]);
            turns(&event_loop);
            trace.assert(&[]);
            // Kinds are told in the order of their numbers.
            for signal in [Signal::USR2, Signal::USR1, Signal::HUP, Signal::USR2] {
                raise(signal);
            }
            turns(&event_loop);
            let mut kinds = [Signal::HUP, Signal::USR1, Signal::USR2];
            kinds.sort();
            let kinds = kinds.map(|signal| signal.to_string());
            trace.assert(&kinds.each_ref().map(String::as_str));
        },
    );
}

#[test]
fn a_handler_is_an_item_of_the_line() {
    in_a_process("a_handler_is_an_item_of_the_line", || {
        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        event_loop
            .add_signal_handler(Signal::USR1, trace.logger("handler"))
            .unwrap();
        raise(Signal::USR1);
        let (handle, log) = (event_loop.handle(), trace.clone());
        event_loop.call_soon(move || {
            log.log("before the loop looks at its pipe");
            handle.call_soon(log.logger("what that has added"));
            handle.call_later(Duration::ZERO, log.logger("a timer of the second turn"));
        });
        turns(&event_loop);
        trace.assert(&[
            "before the loop looks at its pipe",
            "what that has added",
            "handler",
            "a timer of the second turn",
        ]);
    });
}

#[test]
fn c_206_a_signal_ends_the_wait() {
    in_a_process("c_206_a_signal_ends_the_wait", || {
        let (tell, told) = mpsc::channel();
        let event_loop = loop_that_does_before_sleep(move || {
            // A wait that the signal has cut short is followed by another one.
            let _ = tell.send(thread_state());
        });
        let handle = event_loop.handle();
        event_loop
            .add_signal_handler(Signal::USR1, move || handle.stop())
            .unwrap();
        let killer = thread::spawn(move || {
            let state = told.recv().unwrap();
            // Until the system says that the thread sleeps.
            while !state() {
                thread::yield_now();
            }
            kill(Kill::USR1);
        });
        event_loop.run_forever().unwrap();
        killer.join().unwrap();
    });
}

/// Asks the system whether this thread sleeps; where it cannot be asked, it is taken to do so.
fn thread_state() -> impl Fn() -> bool + Send + 'static {
    let this = fs::read_link("/proc/thread-self").ok();
    move || {
        let Some(this) = &this else { return true };
        let stat = fs::read_to_string(std::path::Path::new("/proc").join(this).join("stat"));
        stat.unwrap().contains(") S ")
    }
}

#[test]
fn c_208_what_cannot_be_caught_is_refused_before_anything_is_changed() {
    in_a_process(
        "c_208_what_cannot_be_caught_is_refused_before_anything_is_changed",
        || {
            let event_loop = EventLoop::new().unwrap();
            let before = (actions(), descriptors());
            let refused = [
                (0, InvalidSignal::OutOfRange(0)),
                (-1, InvalidSignal::OutOfRange(-1)),
                (10_000, InvalidSignal::OutOfRange(10_000)),
                (i32::MIN, InvalidSignal::OutOfRange(i32::MIN)),
                (libc::SIGKILL, InvalidSignal::Uncatchable(Signal::KILL)),
                (libc::SIGSTOP, InvalidSignal::Uncatchable(Signal::STOP)),
                (libc::SIGSEGV, InvalidSignal::Fault(Signal::SEGV)),
                (libc::SIGILL, InvalidSignal::Fault(Signal::ILL)),
                (libc::SIGFPE, InvalidSignal::Fault(Signal::FPE)),
                (libc::SIGBUS, InvalidSignal::Fault(Signal::BUS)),
            ];
            for (number, expected) in refused {
                let error = event_loop.add_signal_handler(number, || ()).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                assert_eq!(reason(&error), Some(expected));
                let error = event_loop.signals([libc::SIGUSR1, number]).unwrap_err();
                assert_eq!(reason(&error), Some(expected));
                assert!(!event_loop.remove_signal_handler(number));
            }
            assert_eq!((actions(), descriptors()), before);
            let said = |error: InvalidSignal| error.to_string();
            assert_eq!(
                [
                    said(InvalidSignal::OutOfRange(0)),
                    said(InvalidSignal::Uncatchable(Signal::KILL)),
                    said(InvalidSignal::Fault(Signal::SEGV)),
                ],
                [
                    "a program has no signal of number 0",
                    "SIGKILL cannot be caught",
                    "SIGSEGV is a fault of the thread that runs: a loop cannot handle it",
                ]
            );
            assert!(InvalidSignal::OutOfRange(0).source().is_none());
            // What the C library keeps for itself is refused, the first after it is not.
            #[cfg(target_os = "linux")]
            {
                let last = libc::SIGRTMIN() - 1;
                let error = event_loop.add_signal_handler(last, || ()).unwrap_err();
                assert_eq!(reason(&error), Some(InvalidSignal::OutOfRange(last)));
                let trace = Trace::default();
                for number in [libc::SIGRTMIN(), libc::SIGRTMAX()] {
                    let log = trace.logger(Signal::from(number));
                    event_loop.add_signal_handler(number, log).unwrap();
                    raise(number.into());
                }
                turns(&event_loop);
                let numbers = [libc::SIGRTMIN(), libc::SIGRTMAX()];
                let names = numbers.map(|number| Signal::from(number).to_string());
                trace.assert(&names.each_ref().map(String::as_str));
            }
        },
    );
}

#[test]
fn c_209_a_handler_that_was_removed_leaves_the_default_behind() {
    const NAME: &str = "c_209_a_handler_that_was_removed_leaves_the_default_behind";
    if is_child(NAME) {
        install_default(Signal::INT);
        let event_loop = EventLoop::new().unwrap();
        let before = actions();
        let open = descriptors();
        assert!(!event_loop.remove_signal_handler(Signal::INT));
        let trace = Trace::default();
        event_loop
            .add_signal_handler(Signal::INT, trace.logger("interrupted"))
            .unwrap();
        assert_ne!(actions(), before);
        raise(Signal::INT);
        turns(&event_loop);
        trace.assert(&["interrupted"]);
        assert!(event_loop.remove_signal_handler(Signal::INT));
        assert!(!event_loop.remove_signal_handler(Signal::INT));
        assert_eq!((actions(), descriptors()), (before, open));
        println!("and now the default");
        raise(Signal::INT);
        unreachable!("the default is to end the process");
    }
    let ended = run_child(NAME, &[]);
    assert!(ended.stdout.contains("and now the default"), "{ended:?}");
    assert!(ended.status.contains("SIGINT"), "{ended:?}");
}

#[test]
fn c_210_a_second_handler_replaces_the_first() {
    in_a_process("c_210_a_second_handler_replaces_the_first", || {
        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        let add = |what: &str| {
            let log = trace.logger(what);
            event_loop.add_signal_handler(Signal::USR1, log).unwrap();
        };
        add("first");
        add("second");
        raise(Signal::USR1);
        turns(&event_loop);
        trace.assert(&["second"]);
        // Also one that stands in the line: what came is not lost.
        raise(Signal::USR1);
        event_loop.stop();
        event_loop.run_forever().unwrap();
        add("third");
        turns(&event_loop);
        trace.assert(&["third"]);
        // And itself, while it runs.
        let (handle, log) = (event_loop.handle(), trace.clone());
        let held = OnDrop(trace.clone());
        event_loop
            .add_signal_handler(Signal::USR1, move || {
                let next = log.logger("the next");
                handle.add_signal_handler(Signal::USR1, next).unwrap();
                log.log("goes on");
                let _ = &held;
            })
            .unwrap();
        for _ in 0..2 {
            raise(Signal::USR1);
            turns(&event_loop);
        }
        trace.assert(&["goes on", "dropped", "the next"]);
        assert!(event_loop.remove_signal_handler(Signal::USR1));
        assert!(!event_loop.remove_signal_handler(Signal::USR1));
    });
}

/// Logs its end.
struct OnDrop(Trace);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.log("dropped");
    }
}

#[test]
fn c_211_arguments_are_what_the_closure_has_captured() {
    in_a_process("c_211_arguments_are_what_the_closure_has_captured", || {
        static NAME: ContextVar<&str> = ContextVar::new("name");

        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        let (log, some, arg) = (trace.clone(), "some", vec![1, 2, 3]);
        let mut calls = 0;
        NAME.set("of the caller");
        event_loop
            .add_signal_handler(Signal::USR1, move || {
                calls += 1;
                log.log(format!("{some} {arg:?} {calls} {:?}", NAME.get()));
                NAME.set("of the handler");
            })
            .unwrap();
        NAME.set("of the caller, later");
        for _ in 0..2 {
            raise(Signal::USR1);
            turns(&event_loop);
        }
        // A copy of the caller's context, and one for all calls.
        trace.assert(&[
            "some [1, 2, 3] 1 Some(\"of the caller\")",
            "some [1, 2, 3] 2 Some(\"of the handler\")",
        ]);
        assert_eq!(NAME.get(), Some("of the caller, later"));
    });
}

#[test]
fn c_213_a_loop_of_any_thread_may_have_handlers() {
    in_a_process("c_213_a_loop_of_any_thread_may_have_handlers", || {
        let (ready, is_ready) = mpsc::channel();
        let other = thread::spawn(move || {
            let event_loop = EventLoop::new().unwrap();
            let ran_in = Rc::new(Cell::new(None));
            let (handle, seen) = (event_loop.handle(), Rc::clone(&ran_in));
            event_loop
                .add_signal_handler(Signal::USR1, move || {
                    seen.set(Some(thread::current().id()));
                    handle.stop();
                })
                .unwrap();
            ready.send(()).unwrap();
            event_loop.run_forever().unwrap();
            assert_eq!(ran_in.get(), Some(thread::current().id()));
        });
        is_ready.recv().unwrap();
        // The system's handler runs in this thread, the loop's in its own.
        raise(Signal::USR1);
        other.join().unwrap();
    });
}

/// Not a test of its own: it adds a handler, which may be refused, and then does so again.
#[test]
fn helper_adds_a_handler() {
    if std::env::var("COLOOP_TEST_CHILD").is_err() {
        return;
    }
    let event_loop = EventLoop::new().unwrap();
    let trace = Trace::default();
    let before = (action(libc::SIGUSR1), descriptors());
    println!("\n- begins");
    let added = event_loop.add_signal_handler(Signal::USR1, trace.logger("handler"));
    let error = match added {
        Ok(()) => {
            println!("- added");
            return;
        }
        Err(error) => error,
    };
    println!("- refused: {:?} {:?}", error.kind(), error.raw_os_error());
    assert_eq!((action(libc::SIGUSR1), descriptors()), before);
    assert!(!event_loop.remove_signal_handler(Signal::USR1));
    for _ in 0..2 {
        event_loop
            .add_signal_handler(Signal::USR1, trace.logger("handler"))
            .unwrap();
        raise(Signal::USR1);
        turns(&event_loop);
        trace.assert(&["handler"]);
        assert!(event_loop.remove_signal_handler(Signal::USR1));
        assert_eq!((action(libc::SIGUSR1), descriptors()), before);
    }
    println!("- and then added");
}

#[test]
fn c_214_a_refusal_of_the_system_is_an_error_and_leaves_nothing() {
    let mut refused = 0;
    // The first calls are the runtime's own, which does not survive their failure.
    for number in 1..100 {
        let fault = format!("rt_sigaction:error=EINVAL:when={number}");
        let Some(injected) = inject_into("helper_adds_a_handler", &[&fault], &[]) else {
            return;
        };
        let said = injected.said();
        if !said.contains(&"begins") || injected.count > 0 && said == ["begins"] {
            // The test's own reading of actions has failed, or something before it.
            assert_eq!(refused, 0, "{said:?}");
            continue;
        }
        injected.assert_sound(&[&fault]);
        if said == ["begins", "added"] {
            if refused == 0 {
                continue;
            }
            break;
        }
        let einval = format!("refused: InvalidInput Some({})", libc::EINVAL);
        assert_eq!(said, ["begins", &einval, "and then added"]);
        refused += 1;
    }
    // Five: reading what is there; reading and setting, by the crate; reading that; setting it. A
    // sanitizer, which stands between, makes fewer calls of them.
    assert!(refused >= 2, "{refused}");
}

#[test]
fn c_215_closing_the_loop_removes_all_handlers() {
    in_a_process("c_215_closing_the_loop_removes_all_handlers", || {
        let before = (actions(), descriptors());
        for drops in [false, true] {
            let event_loop = EventLoop::new().unwrap();
            let handle = event_loop.handle();
            let trace = Trace::default();
            for signal in [Signal::USR1, Signal::USR2, Signal::TERM] {
                let held = OnDrop(trace.clone());
                event_loop
                    .add_signal_handler(signal, move || {
                        let _ = &held;
                    })
                    .unwrap();
            }
            let mut outside = event_loop.signals([Signal::HUP]).unwrap();
            let mut inside = event_loop.signals([Signal::HUP]).unwrap();
            drop(event_loop.create_task(async move { inside.recv().await }));
            turns(&event_loop);
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(Arc::clone(&wakes));
            let mut cx = PollContext::from_waker(&waker);
            assert!(outside.poll_next_unpin(&mut cx).is_pending());
            // One of them stands in the line, and one has not been seen yet.
            raise(Signal::USR1);
            event_loop.stop();
            event_loop.run_forever().unwrap();
            raise(Signal::HUP);
            if drops {
                drop(event_loop);
            } else {
                event_loop.close().unwrap();
            }
            trace.assert(&["dropped"; 3]);
            assert_eq!((actions(), descriptors()), before);
            // A stream that has outlived its loop has ended.
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
            assert!(matches!(poll_once(&mut outside.recv()), Poll::Ready(None)));
            assert!(matches!(poll_once(&mut outside.next()), Poll::Ready(None)));
            let closed = |error: io::Error| error.kind() == io::ErrorKind::NotConnected;
            let added = handle.add_signal_handler(Signal::USR1, || ());
            assert!(added.is_err_and(closed));
            assert!(handle.signals([Signal::USR1]).is_err_and(closed));
            assert!(!handle.remove_signal_handler(Signal::USR1));
            drop(outside);
            assert_eq!((actions(), descriptors()), before);
        }
    });
}

#[test]
fn c_216_one_signal_reports_and_another_ends_while_a_server_runs() {
    in_a_process(
        "c_216_one_signal_reports_and_another_ends_while_a_server_runs",
        || {
            let event_loop = EventLoop::new().unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let served = Rc::new(Cell::new(0));
            let count = Rc::clone(&served);
            let listener = event_loop.watch(Rc::new(listener)).unwrap();
            drop(event_loop.create_task(async move {
                loop {
                    let accepted = listener.read_with(|listener| listener.accept()).await;
                    let (socket, _) = accepted.unwrap();
                    socket.set_nonblocking(true).unwrap();
                    let socket = coloop::current().watch(Rc::new(socket)).unwrap();
                    let mut byte = [0];
                    socket
                        .read_with(|socket| socket.recv(&mut byte))
                        .await
                        .unwrap();
                    socket
                        .write_with(|socket| socket.send(&byte))
                        .await
                        .unwrap();
                    count.set(count.get() + 1);
                }
            }));
            let (report, reported) = mpsc::channel();
            event_loop
                .add_signal_handler(Signal::HUP, move || report.send(served.get()).unwrap())
                .unwrap();
            let handle = event_loop.handle();
            event_loop
                .add_signal_handler(Signal::INT, move || handle.stop())
                .unwrap();
            let client = thread::spawn(move || {
                for round in 1..=3 {
                    let mut socket = TcpStream::connect(address).unwrap();
                    socket.write_all(&[round]).unwrap();
                    let mut byte = [0];
                    socket.read_exact(&mut byte).unwrap();
                    // The end: the server has counted.
                    assert_eq!(socket.read(&mut byte).unwrap(), 0);
                    assert_eq!(byte, [round]);
                    kill(Kill::HUP);
                    assert_eq!(reported.recv().unwrap(), u32::from(round));
                }
                kill(Kill::INT);
            });
            event_loop.run_forever().unwrap();
            client.join().unwrap();
        },
    );
}

#[test]
fn c_218_a_run_changes_nothing_of_the_process() {
    in_a_process("c_218_a_run_changes_nothing_of_the_process", || {
        let fresh = actions();
        let event_loop = EventLoop::new().unwrap();
        let open = descriptors();
        run(&event_loop, sleep(Duration::ZERO));
        assert_eq!((actions(), descriptors()), (fresh.clone(), open.clone()));
        event_loop.add_signal_handler(Signal::USR1, || ()).unwrap();
        let with_handler = (actions(), descriptors());
        for _ in 0..3 {
            raise(Signal::USR1);
            run(&event_loop, sleep(Duration::ZERO));
            assert_eq!((actions(), descriptors()), with_handler);
        }
        assert!(event_loop.remove_signal_handler(Signal::USR1));
        assert_eq!((actions(), descriptors()), (fresh, open));
    });
}

#[test]
fn c_219_a_signal_of_a_forked_child_does_not_run_the_parent_s_handler() {
    in_a_process(
        "c_219_a_signal_of_a_forked_child_does_not_run_the_parent_s_handler",
        || {
            let event_loop = EventLoop::new().unwrap();
            let trace = Trace::default();
            event_loop
                .add_signal_handler(Signal::USR1, trace.logger("handler"))
                .unwrap();
            let mut signals = event_loop.signals([Signal::USR1]).unwrap();
            forked("a child that is sent signals", || {
                for _ in 0..1_000 {
                    raise(Signal::USR1);
                }
                trace.assert(&[]);
            });
            turns(&event_loop);
            turns(&event_loop);
            trace.assert(&[]);
            assert!(poll_once(&mut signals.recv()).is_pending());

            // Whatever a child does with its copy of the loop, the parent does not notice.
            let before = actions();
            forked("a child that uses the loop", || {
                let error = event_loop
                    .add_signal_handler(Signal::HUP, || ())
                    .unwrap_err();
                let error = error.downcast::<RunError>().unwrap();
                assert!(matches!(error, RunError::Forked));
                assert!(event_loop.signals([Signal::HUP]).is_err());
                assert_eq!(actions(), before);
            });
            forked("a child that removes and closes", || {
                assert!(event_loop.remove_signal_handler(Signal::USR1));
                event_loop.close().unwrap();
                assert_eq!(action(libc::SIGUSR1).0, libc::SIG_DFL);
                // And has a loop of its own.
                let own = EventLoop::new().unwrap();
                let log = Trace::default();
                own.add_signal_handler(Signal::USR1, log.logger("own"))
                    .unwrap();
                raise(Signal::USR1);
                turns(&own);
                log.assert(&["own"]);
            });
            turns(&event_loop);
            trace.assert(&[]);
            assert_eq!(actions(), before);
            raise(Signal::USR1);
            turns(&event_loop);
            trace.assert(&["handler"]);
            assert_eq!(run(&event_loop, signals.recv()), Some(Signal::USR1));
        },
    );
}

#[test]
fn c_220_every_loop_of_every_thread_is_told() {
    in_a_process("c_220_every_loop_of_every_thread_is_told", || {
        const THREADS: usize = 4;
        const ROUNDS: usize = 50;
        let before = actions();
        let round = Arc::new(Barrier::new(THREADS + 1));
        let threads = [(); THREADS].map(|()| {
            let round = Arc::clone(&round);
            thread::spawn(move || {
                let event_loop = EventLoop::new().unwrap();
                let calls = Rc::new(Cell::new(0));
                let (count, handle) = (Rc::clone(&calls), event_loop.handle());
                event_loop
                    .add_signal_handler(Signal::USR1, move || {
                        count.set(count.get() + 1);
                        handle.stop();
                    })
                    .unwrap();
                for _ in 0..ROUNDS {
                    round.wait();
                    event_loop.run_forever().unwrap();
                    round.wait();
                }
                assert_eq!(calls.get(), ROUNDS);
            })
        });
        for _ in 0..ROUNDS {
            round.wait();
            kill(Kill::USR1);
            round.wait();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(actions(), before);
    });
}

#[test]
fn c_220_loops_of_one_thread_are_told_and_the_last_puts_the_old_action_back() {
    in_a_process(
        "c_220_loops_of_one_thread_are_told_and_the_last_puts_the_old_action_back",
        || {
            let before = actions();
            let trace = Trace::default();
            let [first, second] = ["first", "second"].map(|name| {
                let event_loop = EventLoop::new().unwrap();
                event_loop
                    .add_signal_handler(Signal::USR1, trace.logger(name))
                    .unwrap();
                event_loop
            });
            raise(Signal::USR1);
            turns(&second);
            turns(&first);
            trace.assert(&["second", "first"]);
            // One of them lets go: the other is still told.
            assert!(first.remove_signal_handler(Signal::USR1));
            assert_ne!(actions(), before);
            raise(Signal::USR1);
            turns(&first);
            turns(&second);
            trace.assert(&["second"]);
            drop(second);
            assert_eq!(actions(), before);
            // And from the start, in the loop that is left.
            first
                .add_signal_handler(Signal::USR1, trace.logger("again"))
                .unwrap();
            raise(Signal::USR1);
            turns(&first);
            trace.assert(&["again"]);
            drop(first);
            assert_eq!(actions(), before);
        },
    );
}

#[test]
fn c_221_a_handler_that_was_removed_does_not_run_any_more() {
    in_a_process(
        "c_221_a_handler_that_was_removed_does_not_run_any_more",
        || {
            let event_loop = EventLoop::new().unwrap();
            let trace = Trace::default();
            let add = |what: &str| {
                let log = trace.logger(what);
                event_loop.add_signal_handler(Signal::USR1, log).unwrap();
            };
            // It has come, and the loop has not looked yet.
            add("unseen");
            raise(Signal::USR1);
            assert!(event_loop.remove_signal_handler(Signal::USR1));
            turns(&event_loop);
            trace.assert(&[]);
            // The handler stands in the line.
            add("in the line");
            raise(Signal::USR1);
            event_loop.stop();
            event_loop.run_forever().unwrap();
            assert!(event_loop.remove_signal_handler(Signal::USR1));
            // What came for it is not told to a later one.
            add("the later one");
            turns(&event_loop);
            trace.assert(&[]);
            raise(Signal::USR1);
            turns(&event_loop);
            trace.assert(&["the later one"]);
            // One handler removes the next in the same turn.
            let (handle, log) = (event_loop.handle(), trace.clone());
            event_loop
                .add_signal_handler(Signal::HUP, move || {
                    log.log("removes");
                    assert!(handle.remove_signal_handler(Signal::USR1));
                })
                .unwrap();
            raise(Signal::USR1);
            raise(Signal::HUP);
            turns(&event_loop);
            trace.assert(&["removes"]);
        },
    );
}

// ---- Inside a handler --------------------------------------------------------------------------

#[test]
fn everything_of_the_loop_is_allowed_inside_a_handler() {
    in_a_process("everything_of_the_loop_is_allowed_inside_a_handler", || {
        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        let (handle, log) = (event_loop.handle(), trace.clone());
        event_loop
            .add_signal_handler(Signal::USR1, move || {
                log.log("handler");
                handle.call_soon(log.logger("callback"));
                let task = log.clone();
                drop(handle.create_task(async move { task.log("task") }));
                handle
                    .add_signal_handler(Signal::USR2, log.logger("another handler"))
                    .unwrap();
                assert!(handle.remove_signal_handler(Signal::USR1));
                assert!(!handle.remove_signal_handler(Signal::USR1));
                let nested = EventLoop::new().unwrap().run_forever();
                assert!(matches!(nested, Err(RunError::AnotherLoopRunning)));
                raise(Signal::USR2);
                log.log("still here");
            })
            .unwrap();
        raise(Signal::USR1);
        turns(&event_loop);
        trace.assert(&["handler", "still here"]);
        turns(&event_loop);
        trace.assert(&["callback", "task", "another handler"]);
    });
}

/// What a hooked selector does next time, once.
type Next = Rc<RefCell<Option<(Moment, Box<dyn FnOnce()>)>>>;

#[test]
fn a_selector_may_come_back_to_the_signals_of_its_loop() {
    in_a_process(
        "a_selector_may_come_back_to_the_signals_of_its_loop",
        || {
            let before = (actions(), descriptors());
            let next: Next = Rc::default();
            let hook = Rc::clone(&next);
            let event_loop = Rc::new(hooked_loop(move |moment| {
                let armed = hook.borrow_mut().take_if(|(when, _)| *when == moment);
                if let Some((_, act)) = armed {
                    act();
                }
            }));
            let open = descriptors();
            let handle = event_loop.handle();
            let trace = Trace::default();
            let arm = |when: Moment, act: Box<dyn FnOnce()>| *next.borrow_mut() = Some((when, act));
            let add = |handle: &LoopHandle, signal: Signal, what: &str| {
                let added = handle.add_signal_handler(signal, trace.logger(what));
                added.map_err(|error| error.kind())
            };

            // While it is told of the pipe: another handler, which is there first.
            let inner = handle.clone();
            let log = trace.logger("from the selector");
            arm(
                Moment::Add,
                Box::new(move || inner.add_signal_handler(Signal::USR2, log).unwrap()),
            );
            add(&handle, Signal::USR1, "from outside").unwrap();
            raise(Signal::USR1);
            raise(Signal::USR2);
            turns(&event_loop);
            turns(&event_loop);
            trace.assert(&["from outside", "from the selector"]);

            // While it is to forget the pipe: the same signal again.
            assert!(handle.remove_signal_handler(Signal::USR2));
            let inner = handle.clone();
            let log = trace.logger("again");
            arm(
                Moment::Delete,
                Box::new(move || inner.add_signal_handler(Signal::USR1, log).unwrap()),
            );
            assert!(handle.remove_signal_handler(Signal::USR1));
            raise(Signal::USR1);
            turns(&event_loop);
            trace.assert(&["again"]);
            assert!(handle.remove_signal_handler(Signal::USR1));
            assert_eq!((actions(), descriptors()), (before.0.clone(), open));

            // While it is told: the loop is closed.
            let closes = Rc::clone(&event_loop);
            arm(Moment::Add, Box::new(move || closes.close().unwrap()));
            assert_eq!(
                add(&handle, Signal::USR1, "never"),
                Err(io::ErrorKind::NotConnected)
            );
            assert!(event_loop.is_closed());
            drop(event_loop);
            drop(next);
            assert_eq!((actions(), descriptors()), before);
        },
    );
}

#[test]
fn a_handler_that_panics_is_reported_and_stays() {
    in_a_process("a_handler_that_panics_is_reported_and_stays", || {
        std::panic::set_hook(Box::new(|_| ()));
        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        let log = trace.clone();
        event_loop.set_exception_handler(move |_, report| {
            let here = report.place().map(|place| place.file());
            log.log(format!(
                "{}: {}, {here:?}",
                report.message(),
                report.panic_message().unwrap()
            ));
        });
        let mut calls = 0;
        event_loop
            .add_signal_handler(Signal::USR1, move || {
                calls += 1;
                panic!("call {calls}");
            })
            .unwrap();
        event_loop
            .add_signal_handler(Signal::USR2, trace.logger("the other"))
            .unwrap();
        for _ in 0..2 {
            raise(Signal::USR1);
            raise(Signal::USR2);
            turns(&event_loop);
        }
        trace.assert(&[
            "panic in callback: call 1, Some(\"tests/signals.rs\")",
            "the other",
            "panic in callback: call 2, Some(\"tests/signals.rs\")",
            "the other",
        ]);
        // Where panics leave the run, the line behind this one stays.
        event_loop.set_panic_policy(PanicPolicy::Propagate);
        raise(Signal::USR1);
        raise(Signal::USR2);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            turns(&event_loop);
        }));
        unwound.unwrap_err();
        turns(&event_loop);
        trace.assert(&["the other"]);
    });
}

// ---- Streams -----------------------------------------------------------------------------------

#[test]
fn a_stream_gives_what_came_and_a_handler_is_told_as_well() {
    in_a_process(
        "a_stream_gives_what_came_and_a_handler_is_told_as_well",
        || {
            let before = actions();
            let event_loop = EventLoop::new().unwrap();
            let trace = Trace::default();
            let mut signals = event_loop.signals([Signal::TERM, Signal::INT]).unwrap();
            assert_eq!(format!("{signals:?}"), "{Signal(SIGINT), Signal(SIGTERM)}");
            event_loop
                .add_signal_handler(Signal::INT, trace.logger("handler"))
                .unwrap();
            let log = trace.clone();
            drop(event_loop.create_task(async move {
                while let Some(signal) = signals.recv().await {
                    log.log(signal);
                }
            }));
            turns(&event_loop);
            // The same kind twice is one, and what came together is ordered by number.
            for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
                raise(signal);
            }
            turns(&event_loop);
            trace.assert(&["handler", "SIGINT", "SIGTERM"]);
            // The handler goes, and the stream is still told.
            assert!(event_loop.remove_signal_handler(Signal::INT));
            raise(Signal::INT);
            turns(&event_loop);
            trace.assert(&["SIGINT"]);
            assert!(!event_loop.remove_signal_handler(Signal::INT));
            event_loop.close().unwrap();
            assert_eq!(actions(), before);
        },
    );
}

#[test]
fn a_stream_that_is_dropped_stops_listening() {
    in_a_process("a_stream_that_is_dropped_stops_listening", || {
        let event_loop = EventLoop::new().unwrap();
        let before = (actions(), descriptors());
        let open = || event_loop.signals([Signal::USR1, Signal::USR2, Signal::USR1]);
        let (first, mut second) = (open().unwrap(), open().unwrap());
        drop(first);
        raise(Signal::USR2);
        assert_eq!(run(&event_loop, second.recv()), Some(Signal::USR2));
        drop(second);
        assert_eq!((actions(), descriptors()), before);
        // One that listens to nothing has nothing to let go of.
        let mut none = event_loop.signals([] as [Signal; 0]).unwrap();
        assert_eq!((actions(), descriptors()), before);
        assert!(poll_once(&mut none.recv()).is_pending());
        event_loop.close().unwrap();
        assert!(matches!(poll_once(&mut none.recv()), Poll::Ready(None)));
    });
}

#[test]
fn a_recv_that_is_dropped_loses_nothing() {
    in_a_process("a_recv_that_is_dropped_loses_nothing", || {
        let event_loop = EventLoop::new().unwrap();
        let mut signals = event_loop.signals([Signal::USR1, Signal::USR2]).unwrap();
        assert!(poll_once(&mut signals.recv()).is_pending());
        raise(Signal::USR1);
        turns(&event_loop);
        drop(signals.recv());
        raise(Signal::USR2);
        raise(Signal::USR1);
        turns(&event_loop);
        let both = run(&event_loop, async {
            [signals.recv().await, signals.next().await]
        });
        assert_eq!(both, [Some(Signal::USR1), Some(Signal::USR2)]);
        assert!(poll_once(&mut signals.recv()).is_pending());
        // What came before the loop was closed comes before the end.
        raise(Signal::USR1);
        turns(&event_loop);
        drop(event_loop);
        assert!(matches!(
            poll_once(&mut signals.recv()),
            Poll::Ready(Some(Signal::USR1))
        ));
        assert!(matches!(poll_once(&mut signals.recv()), Poll::Ready(None)));
    });
}

#[test]
fn a_task_that_waits_for_a_signal_says_so() {
    in_a_process("a_task_that_waits_for_a_signal_says_so", || {
        let event_loop = EventLoop::new().unwrap();
        let signals = Rc::new(RefCell::new(Some(
            event_loop.signals([Signal::USR1]).unwrap(),
        )));
        let given = signals.take().unwrap();
        let line = Rc::new(Cell::new(0));
        let at = Rc::clone(&line);
        let task = event_loop.create_task(async move {
            let mut signals: Signals = given;
            at.set(line!() + 1);
            signals.recv().await;
            let second = coloop::timeout(Duration::ZERO, signals.recv()).await;
            second.unwrap_err();
            pending::<()>().await;
        });
        turns(&event_loop);
        let waits = task.to_ref().waits();
        let [wait] = &waits[..] else {
            panic!("{waits:?}")
        };
        assert_eq!((&wait.on, wait.place.line()), (&WaitOn::Signal, line.get()));
        raise(Signal::USR1);
        turns(&event_loop);
        turns(&event_loop);
        // The wait that was dropped is none any more.
        assert_eq!(task.to_ref().waits().len(), 0);
    });
}

#[test]
fn a_virtual_clock_does_not_wait_for_signals() {
    in_a_process("a_virtual_clock_does_not_wait_for_signals", || {
        let clock = testing::Clock::new();
        let event_loop = EventLoop::builder().clock(clock).build().unwrap();
        event_loop.add_signal_handler(Signal::USR1, || ()).unwrap();
        let mut signals = event_loop.signals([Signal::USR1]).unwrap();
        let hour = Duration::from_secs(3_600);
        event_loop
            .run_until_complete(async {
                coloop::timeout(hour, signals.recv()).await.unwrap_err();
                coloop::current().call_later(hour, || raise(Signal::USR1));
                assert_eq!(signals.recv().await, Some(Signal::USR1));
            })
            .unwrap();
    });
}

// ---- Faults ------------------------------------------------------------------------------------

#[test]
fn fault_g11_a_storm_loses_no_kind() {
    in_a_process("fault_g11_a_storm_loses_no_kind", || {
        // The last of the storm may still be on its way when the loop is gone.
        install_foreign_handler(Signal::USR1);
        // All of it before the loop looks: the pipe has been full for long when SIGTERM comes.
        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        for signal in [Signal::USR1, Signal::TERM] {
            event_loop
                .add_signal_handler(signal, trace.logger(signal))
                .unwrap();
        }
        for _ in 0..100_000 {
            raise(Signal::USR1);
        }
        raise(Signal::TERM);
        for _ in 0..100_000 {
            raise(Signal::USR1);
        }
        turns(&event_loop);
        trace.assert(&["SIGUSR1", "SIGTERM"]);
        // The bytes that are left, if any, run nothing.
        for _ in 0..100 {
            turns(&event_loop);
        }
        trace.assert(&[]);

        // And while the loop runs, allocates and does other work.
        let storm = thread::spawn(|| {
            for number in 0..100_000 {
                kill(Kill::USR1);
                if number == 50_000 {
                    kill(Kill::TERM);
                }
            }
        });
        let seen = Rc::new(Cell::new((0_u32, 0_u32)));
        let count = Rc::clone(&seen);
        event_loop
            .add_signal_handler(Signal::USR1, move || {
                count.set((count.get().0 + 1, count.get().1));
            })
            .unwrap();
        let count = Rc::clone(&seen);
        event_loop
            .add_signal_handler(Signal::TERM, move || {
                count.set((count.get().0, count.get().1 + 1));
            })
            .unwrap();
        let mut beats = 0_u32;
        run(&event_loop, async {
            while !storm.is_finished() || seen.get().0 == 0 || seen.get().1 == 0 {
                beats += vec![1; 10].len() as u32 / 10;
                sleep(Duration::from_micros(10)).await;
            }
        });
        storm.join().unwrap();
        let (storms, ends) = seen.get();
        assert!((1..=100_000).contains(&storms), "{storms}");
        // The storm does not keep others from running.
        assert_eq!((ends, beats > 0), (1, true));
    });
}

#[test]
fn fault_g12_a_signal_between_the_last_look_and_the_sleep_is_seen() {
    in_a_process(
        "fault_g12_a_signal_between_the_last_look_and_the_sleep_is_seen",
        || {
            let rounds = Rc::new(Cell::new(0));
            let event_loop = loop_that_does_before_sleep(|| raise(Signal::USR1));
            let (handle, count) = (event_loop.handle(), Rc::clone(&rounds));
            event_loop
                .add_signal_handler(Signal::USR1, move || {
                    count.set(count.get() + 1);
                    if count.get() == 1_000 {
                        handle.stop();
                    }
                })
                .unwrap();
            event_loop.run_forever().unwrap();
            assert_eq!(rounds.get(), 1_000);
        },
    );
}

#[test]
fn fault_g12_a_signal_that_comes_while_the_loop_looks_is_seen() {
    struct Raises;
    impl Wake for Raises {
        fn wake(self: Arc<Self>) {
            raise(Signal::USR2);
        }
    }

    in_a_process(
        "fault_g12_a_signal_that_comes_while_the_loop_looks_is_seen",
        || {
            let event_loop = EventLoop::new().unwrap();
            let trace = Trace::default();
            event_loop
                .add_signal_handler(Signal::USR2, trace.logger("handler"))
                .unwrap();
            let mut signals = event_loop.signals([Signal::USR1]).unwrap();
            let waker = Waker::from(Arc::new(Raises));
            let mut cx = PollContext::from_waker(&waker);
            assert!(signals.poll_next_unpin(&mut cx).is_pending());
            raise(Signal::USR1);
            turns(&event_loop);
            turns(&event_loop);
            trace.assert(&["handler"]);
        },
    );
}

#[test]
fn fault_g12_signals_from_a_thread_whenever_the_loop_is_about_to_sleep() {
    in_a_process(
        "fault_g12_signals_from_a_thread_whenever_the_loop_is_about_to_sleep",
        || {
            const ROUNDS: u32 = 2_000;
            let (tell, told) = mpsc::channel();
            let event_loop = loop_that_does_before_sleep(move || {
                // After the last round nobody listens.
                let _ = tell.send(());
            });
            let calls = Arc::new(AtomicU32::new(0));
            let (count, handle) = (Arc::clone(&calls), event_loop.handle());
            event_loop
                .add_signal_handler(Signal::USR1, move || {
                    if count.fetch_add(1, Ordering::SeqCst) + 1 == ROUNDS {
                        handle.stop();
                    }
                })
                .unwrap();
            let killer = thread::spawn(move || {
                for round in 0..ROUNDS {
                    told.recv().unwrap();
                    kill(Kill::USR1);
                    // Each arrives by itself: the next is sent when this one has been handled.
                    while calls.load(Ordering::SeqCst) == round {
                        thread::yield_now();
                    }
                }
            });
            event_loop.run_forever().unwrap();
            killer.join().unwrap();
        },
    );
}

#[test]
fn fault_g12_every_signal_has_somebody_while_loops_come_and_go() {
    in_a_process(
        "fault_g12_every_signal_has_somebody_while_loops_come_and_go",
        || {
            // The default would be to end the process.
            install_foreign_handler(Signal::USR1);
            let before = actions();
            let stop = Arc::new(AtomicBool::new(false));
            let asked = Arc::clone(&stop);
            let storm = thread::spawn(move || {
                let mut sent = 0_u32;
                while !asked.load(Ordering::Relaxed) || sent == 0 {
                    raise(Signal::USR1);
                    sent += 1;
                }
                sent
            });
            let steady = EventLoop::new().unwrap();
            let seen = Rc::new(Cell::new(0));
            for _ in 0..300 {
                let event_loop = EventLoop::new().unwrap();
                for event_loop in [&steady, &event_loop] {
                    let count = Rc::clone(&seen);
                    event_loop
                        .add_signal_handler(Signal::USR1, move || count.set(count.get() + 1))
                        .unwrap();
                }
                turns(&event_loop);
                turns(&steady);
                drop(event_loop);
                assert!(steady.remove_signal_handler(Signal::USR1));
                assert_eq!(actions(), before);
            }
            stop.store(true, Ordering::Relaxed);
            let mut sent = storm.join().unwrap();
            let (count, seen_before) = (Rc::clone(&seen), seen.get());
            steady
                .add_signal_handler(Signal::USR1, move || count.set(count.get() + 1))
                .unwrap();
            raise(Signal::USR1);
            sent += 1;
            turns(&steady);
            assert_eq!(seen.get(), seen_before + 1);
            // The earlier handler has been called for each, directly or by ours.
            assert_eq!(foreign_calls(), sent);
        },
    );
}

#[test]
fn fault_g13_the_system_s_handler_keeps_errno_also_when_the_pipe_is_full() {
    in_a_process(
        "fault_g13_the_system_s_handler_keeps_errno_also_when_the_pipe_is_full",
        || {
            let event_loop = EventLoop::new().unwrap();
            event_loop.add_signal_handler(Signal::USR1, || ()).unwrap();
            for _ in 0..10_000 {
                fs::File::open("/no/such/file").unwrap_err();
                let errno = io::Error::last_os_error();
                assert_eq!(errno.raw_os_error(), Some(libc::ENOENT));
                raise(Signal::USR1);
                let errno = io::Error::last_os_error();
                assert_eq!(errno.raw_os_error(), Some(libc::ENOENT));
            }
        },
    );
}

#[test]
fn fault_g13_system_calls_go_on_after_a_signal_and_the_handler_uses_the_signal_stack() {
    in_a_process(
        "fault_g13_system_calls_go_on_after_a_signal_and_the_handler_uses_the_signal_stack",
        || {
            let event_loop = EventLoop::new().unwrap();
            let wanted = libc::SA_RESTART | libc::SA_ONSTACK;
            // The second time nobody installs anything: it is set again.
            for _ in 0..2 {
                event_loop.add_signal_handler(Signal::USR1, || ()).unwrap();
                assert_eq!(action(libc::SIGUSR1).1 & wanted, wanted);
                assert!(event_loop.remove_signal_handler(Signal::USR1));
                assert_eq!(action(libc::SIGUSR1).0, libc::SIG_DFL);
            }
        },
    );
}

#[test]
fn fault_g13_what_was_there_before_is_put_back() {
    in_a_process("fault_g13_what_was_there_before_is_put_back", || {
        // Ignored by the runtime of every Rust program.
        assert_eq!(action(libc::SIGPIPE).0, libc::SIG_IGN);
        install_foreign_handler(Signal::USR1);
        let before = actions();
        let event_loop = EventLoop::new().unwrap();
        let trace = Trace::default();
        for round in 0..3 {
            for signal in [Signal::PIPE, Signal::USR1] {
                event_loop
                    .add_signal_handler(signal, trace.logger(signal))
                    .unwrap();
                raise(signal);
            }
            // A handler that was there before is called too.
            assert_eq!(foreign_calls(), 1);
            turns(&event_loop);
            if Signal::USR1 < Signal::PIPE {
                trace.assert(&["SIGUSR1", "SIGPIPE"]);
            } else {
                trace.assert(&["SIGPIPE", "SIGUSR1"]);
            }
            if round < 2 {
                assert!(event_loop.remove_signal_handler(Signal::PIPE));
                assert!(event_loop.remove_signal_handler(Signal::USR1));
            } else {
                event_loop.close().unwrap();
            }
            assert_eq!(actions(), before);
            raise(Signal::USR1);
            assert_eq!(foreign_calls(), 1);
        }
        // What other users of the crate have registered before goes on as it did.
        let came = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(libc::SIGTERM, Arc::clone(&came)).unwrap();
        let before = actions();
        let event_loop = EventLoop::new().unwrap();
        event_loop
            .add_signal_handler(Signal::TERM, trace.logger("with others"))
            .unwrap();
        raise(Signal::TERM);
        turns(&event_loop);
        trace.assert(&["with others"]);
        assert!(came.swap(false, Ordering::Relaxed));
        drop(event_loop);
        assert_eq!(actions(), before);
        raise(Signal::TERM);
        assert!(came.load(Ordering::Relaxed));
        // Whoever sets an action after the loop keeps it.
        let event_loop = EventLoop::new().unwrap();
        event_loop.add_signal_handler(Signal::HUP, || ()).unwrap();
        install_foreign_handler(Signal::HUP);
        let set = actions();
        drop(event_loop);
        assert_eq!(actions(), set);
        raise(Signal::HUP);
        assert_eq!(foreign_calls(), 1);
    });
}

#[test]
fn fault_g13_a_loop_without_descriptors_to_spare_refuses_and_changes_nothing() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    in_a_process(
        "fault_g13_a_loop_without_descriptors_to_spare_refuses_and_changes_nothing",
        || {
            let event_loop = EventLoop::new().unwrap();
            let limit = getrlimit(Resource::Nofile);
            let before = (actions(), descriptors());
            // Two for the pipe, and one for each signal.
            for spare in 0..4 {
                let highest = before.1.iter().map(|(number, _)| *number).max().unwrap();
                let limited = Rlimit {
                    current: Some(highest as u64 + 10),
                    ..limit
                };
                setrlimit(Resource::Nofile, limited).unwrap();
                let mut taken = Vec::new();
                while let Ok(file) = fs::File::open("/dev/null") {
                    taken.push(file);
                }
                taken.truncate(taken.len() - spare);
                let refused = [
                    event_loop.add_signal_handler(Signal::USR1, || ()).err(),
                    event_loop.signals([Signal::USR1, Signal::USR2]).err(),
                ];
                event_loop.remove_signal_handler(Signal::USR1);
                drop(taken);
                setrlimit(Resource::Nofile, limit).unwrap();
                let codes = refused.map(|error| error.and_then(|error| error.raw_os_error()));
                let none_left = Some(libc::EMFILE);
                // A handler has been there when the stream came, and the pipe with it.
                let expected = match spare {
                    0..3 => [none_left, none_left],
                    _ => [None, none_left],
                };
                assert_eq!(codes, expected, "{spare}");
                assert_eq!((actions(), descriptors()), before, "{spare}");
            }
        },
    );
}

#[test]
fn fault_g16_a_signal_finds_the_loop_whichever_thread_takes_it() {
    in_a_process(
        "fault_g16_a_signal_finds_the_loop_whichever_thread_takes_it",
        || {
            // Who takes it: the loop's thread, and then a helper that computes meanwhile.
            for loop_takes_it in [true, false] {
                set_blocked(Signal::USR1, true);
                let stop = Arc::new(AtomicBool::new(false));
                let (asked, (tell, told)) = (Arc::clone(&stop), mpsc::channel());
                // The mask is inherited.
                let helper = thread::spawn(move || {
                    set_blocked(Signal::USR1, loop_takes_it);
                    tell.send(()).unwrap();
                    let mut steps = 0_u64;
                    while !asked.load(Ordering::Relaxed) {
                        steps = steps.wrapping_mul(31).wrapping_add(7);
                    }
                    std::hint::black_box(steps);
                });
                told.recv().unwrap();
                set_blocked(Signal::USR1, !loop_takes_it);
                let event_loop = EventLoop::new().unwrap();
                let (handle, calls) = (event_loop.handle(), Rc::new(Cell::new(0)));
                let count = Rc::clone(&calls);
                event_loop
                    .add_signal_handler(Signal::USR1, move || {
                        count.set(count.get() + 1);
                        handle.stop();
                    })
                    .unwrap();
                for _ in 0..100 {
                    kill(Kill::USR1);
                    event_loop.run_forever().unwrap();
                }
                assert_eq!(calls.get(), 100);
                stop.store(true, Ordering::Relaxed);
                helper.join().unwrap();
                drop(event_loop);
                // One that every thread blocks waits in the kernel, and comes when one lets it.
                set_blocked(Signal::USR1, true);
                let event_loop = EventLoop::new().unwrap();
                let trace = Trace::default();
                event_loop
                    .add_signal_handler(Signal::USR1, trace.logger("handler"))
                    .unwrap();
                raise(Signal::USR1);
                turns(&event_loop);
                trace.assert(&[]);
                set_blocked(Signal::USR1, false);
                turns(&event_loop);
                trace.assert(&["handler"]);
            }
        },
    );
}

/// A handle is all that a program needs for this.
#[test]
fn a_handle_is_enough() {
    in_a_process("a_handle_is_enough", || {
        let event_loop = EventLoop::new().unwrap();
        let handle: LoopHandle = event_loop.handle();
        let answer = run(&event_loop, async {
            let mut signals = handle.signals([Signal::USR1]).unwrap();
            handle.call_soon(|| raise(Signal::USR1));
            let mut next = pin!(signals.recv());
            next.as_mut().await
        });
        assert_eq!(answer, Some(Signal::USR1));
    });
}
