//! Faults of descriptors: numbers used again, copies, hang-ups nobody asked for, registrations and
//! waits that the system refuses.

use std::cell::Cell;
use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::{Context as PollContext, Waker};
use std::time::Duration;

use coloop::{
    EventLoop, PanicPolicy, Readiness, RunError, Selector, Watched, default_selector, testing,
};
use rustix::io::{dup, fcntl_dupfd_cloexec};

use crate::faults_core::Random;
use crate::fd::{Probe, at_high_number, drain, pair, raise_limit, send, watched_by_the_system};
use crate::verbs::{Trace, builder, one_turn, real_loop, virtual_loop};

type Socket = Watched<Rc<UnixStream>>;

/// Reads some bytes; none at the end.
async fn read_some(socket: &Socket, most: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; most];
    let count = socket
        .read_with(|socket| (&**socket).read(&mut buffer))
        .await?;
    buffer.truncate(count);
    Ok(buffer)
}

#[test]
fn fault_c1_a_descriptor_closed_behind_our_back_tells_its_new_owner_nothing() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let ((peer, socket), (other_peer, other)) = (pair(), pair());
    // The number is the loop's; in one step it is closed and becomes a stranger's.
    let ours = at_high_number(&*socket);
    let number = ours.as_raw_fd();
    drop(socket);
    let log = trace.clone();
    event_loop
        .add_reader(ours, move || log.log("called"))
        .unwrap();
    send(&peer, "x");
    one_turn(&event_loop);
    trace.assert(&["called"]);

    steal(other.as_fd(), number);
    send(&other_peer, "for the stranger");
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
    assert!(!watched_by_the_system(&event_loop).contains(&number));

    // Who asks for more is told; who removes is not refused; the loop lives.
    let (_, harmless) = pair();
    let error = event_loop
        .add_writer(Lent(Rc::clone(&harmless), number), || {})
        .unwrap_err();
    assert!(error.raw_os_error().is_some(), "{error}");
    assert!(event_loop.remove_reader(number));
    assert!(!event_loop.remove_reader(number) && !event_loop.remove_writer(number));
    event_loop.call_soon(trace.logs("the loop lives"));
    one_turn(&event_loop);
    trace.assert(&["the loop lives"]);
    assert_eq!(drain(&other), "for the stranger");
}

/// Puts a copy of `fd` in the place of `number`, whoever it belongs to.
#[expect(
    unsafe_code,
    reason = "plays a program that does not keep to its own descriptors"
)]
fn steal(fd: BorrowedFd<'_>, number: i32) {
    // SAFETY: `dup2` has no requirement on memory; that it takes a number that is somebody else's is
    // what is being tested. The number stays open, and is the loop's to close.
    let copied = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    assert_eq!(copied, number);
}

/// Lends a number that is open for as long as the test runs.
struct Lent(
    #[expect(dead_code, reason = "keeps the peer")] Rc<UnixStream>,
    i32,
);

impl AsFd for Lent {
    #[expect(unsafe_code, reason = "plays a program that knows a number by heart")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is open: the loop owns it, and removes it after this value is gone.
        unsafe { BorrowedFd::borrow_raw(self.1) }
    }
}

#[test]
fn fault_c2_a_copy_that_stays_open_keeps_no_interest_alive() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let copy = dup(&*socket).unwrap();
    let log = trace.clone();
    let watch = event_loop
        .add_reader(socket, move || log.log("called"))
        .unwrap();
    send(&peer, "x");
    // The loop closes the descriptor; the socket lives on in its copy, and is readable.
    assert!(event_loop.remove_reader(watch));
    one_turn(&event_loop);
    trace.assert(&[""; 0]);

    // The same with what a `Watched` and a loop's end let go.
    let (peer, socket) = pair();
    let second = dup(&*socket).unwrap();
    let watched = event_loop.watch(socket).unwrap();
    let mut readable = Box::pin(watched.readable());
    let mut cx = PollContext::from_waker(Waker::noop());
    assert!(readable.as_mut().poll(&mut cx).is_pending());
    drop(readable);
    send(&peer, "x");
    drop(watched);
    let before = watched_by_the_system(&event_loop);
    one_turn(&event_loop);
    assert_eq!(watched_by_the_system(&event_loop), before);
    drop((copy, second));
}

#[test]
fn fault_c3_of_two_events_in_one_batch_the_second_s_descriptor_may_be_closed_and_taken() {
    for remove_all in [false, true] {
        let event_loop = real_loop();
        let trace = Trace::new();
        let ((near, first), (far, second), (peer, fresh)) = (pair(), pair(), pair());
        let second = at_high_number(&*second);
        let number = second.as_raw_fd();
        let log = trace.clone();
        let handle = event_loop.handle();
        event_loop
            .add_reader(Rc::clone(&first), move || {
                drain(&first);
                assert!(handle.remove_reader(number));
                if remove_all {
                    assert!(handle.remove_writer(number));
                    let recycled = fcntl_dupfd_cloexec(&*fresh, number).unwrap();
                    assert_eq!(recycled.as_raw_fd(), number);
                    let recycled = Rc::new(recycled);
                    let (read, write) = (log.clone(), log.clone());
                    handle
                        .add_reader(Rc::clone(&recycled), move || read.log("new reader"))
                        .unwrap();
                    handle
                        .add_writer(recycled, move || write.log("new writer"))
                        .unwrap();
                }
                log.log("first");
            })
            .unwrap();
        let second = Rc::new(second);
        let (read, write) = (trace.clone(), trace.clone());
        event_loop
            .add_reader(Rc::clone(&second), move || read.log("old reader"))
            .unwrap();
        event_loop
            .add_writer(second, move || write.log("old writer"))
            .unwrap();
        // The second is writable from the start; both become readable, the first one first.
        send(&near, "x");
        send(&far, "x");
        let batch = loop {
            one_turn(&event_loop);
            let batch = trace.take();
            if batch.iter().any(|entry| entry == "first") {
                break batch;
            }
        };
        let after = batch.iter().skip_while(|entry| *entry != "first").skip(1);
        let after: Vec<_> = after.collect();
        if remove_all {
            assert!(after.is_empty(), "{after:?}: neither the old nor the new");
            one_turn(&event_loop);
            trace.assert(&["new writer"]);
            send(&peer, "x");
            one_turn(&event_loop);
            trace.assert(&["new reader", "new writer"]);
        } else {
            assert!(
                after.iter().all(|entry| *entry == "old writer"),
                "{after:?}"
            );
            one_turn(&event_loop);
            trace.assert(&["old writer"]);
        }
    }
}

#[test]
fn fault_c4_a_registration_that_the_system_refuses_changes_nothing() {
    // The k-th registration fails, for every k of a little program.
    for k in 0..7 {
        let probe = Probe::new();
        let event_loop = probe.real_loop();
        let token = Rc::new(());
        let held = || {
            let token = Rc::clone(&token);
            move || drop(Rc::clone(&token))
        };
        let ((_a, first), (_b, second)) = (pair(), pair());
        probe.refusal.set(Some((k, libc::ENOSPC)));
        let mut refused = 0;
        let mut expect = |outcome: io::Result<_>| match outcome {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "k = {k}");
                refused += 1;
                false
            }
        };
        let reads = expect(event_loop.add_reader(Rc::clone(&first), held()).map(drop));
        let writes = expect(event_loop.add_writer(Rc::clone(&first), held()).map(drop));
        let watches = expect(event_loop.add_writer(Rc::clone(&second), held()).map(drop));
        assert_eq!(
            Rc::strong_count(&token),
            1 + usize::from(reads) + usize::from(writes) + usize::from(watches),
            "k = {k}: what was refused has been dropped"
        );
        let numbers = (first.as_raw_fd(), second.as_raw_fd());
        let known = watched_by_the_system(&event_loop);
        assert_eq!(known.contains(&numbers.0), reads || writes, "k = {k}");
        assert_eq!(known.contains(&numbers.1), watches, "k = {k}");
        one_turn(&event_loop);
        // Nothing stands in the way of another try.
        probe.refusal.set(None);
        event_loop.add_reader(Rc::clone(&first), held()).unwrap();
        event_loop.add_writer(Rc::clone(&second), held()).unwrap();
        assert!(event_loop.remove_reader(numbers.0));
        assert_eq!(event_loop.remove_writer(numbers.0), writes, "k = {k}");
        assert!(event_loop.remove_writer(numbers.1));
        assert_eq!(Rc::strong_count(&token), 1);
        assert_eq!(
            (Rc::strong_count(&first), Rc::strong_count(&second)),
            (1, 1)
        );
        assert_eq!(refused, u32::from(k < 3));
    }
}

#[test]
fn fault_c4_a_readiness_that_the_system_refuses_is_refused_again_and_awaited_when_it_is_not() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let (peer, socket) = pair();
    let watched = event_loop.watch(socket).unwrap();
    for _ in 0..3 {
        probe.refusal.set(Some((0, libc::ENOMEM)));
        let mut readable = Box::pin(watched.readable());
        let mut cx = PollContext::from_waker(Waker::noop());
        let polled = readable.as_mut().poll(&mut cx);
        let refused = match polled {
            std::task::Poll::Ready(outcome) => outcome.unwrap_err(),
            std::task::Poll::Pending => panic!("it would wait for what the system has refused"),
        };
        assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM));
    }
    probe.refusal.set(None);
    let log = Trace::new();
    let seen = log.clone();
    let task = event_loop.create_task(async move {
        let bytes = read_some(&watched, 8).await.unwrap();
        seen.log(String::from_utf8(bytes).unwrap());
    });
    one_turn(&event_loop);
    send(&peer, "hello");
    one_turn(&event_loop);
    one_turn(&event_loop);
    log.assert(&["hello"]);
    assert!(task.is_finished());
}

#[test]
fn fault_c4_an_owner_that_panics_when_it_is_asked_for_its_descriptor_leaves_nothing_behind() {
    /// Panics at the k-th question.
    struct Moody(Rc<UnixStream>, Rc<Cell<u32>>);
    impl AsFd for Moody {
        fn as_fd(&self) -> BorrowedFd<'_> {
            let left = self.1.get();
            self.1.set(left.wrapping_sub(1));
            assert_ne!(left, 0, "moody");
            self.0.as_fd()
        }
    }

    for k in 0..4 {
        let event_loop = real_loop();
        let trace = Trace::new();
        let (peer, socket) = pair();
        let left = Rc::new(Cell::new(k));
        let moody = Moody(Rc::clone(&socket), Rc::clone(&left));
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            event_loop.add_reader(moody, || {})
        }));
        left.set(u32::MAX);
        match asked {
            Ok(watch) => assert!(event_loop.remove_reader(watch.unwrap()), "k = {k}"),
            Err(_) => assert!(!event_loop.remove_reader(socket.as_raw_fd()), "k = {k}"),
        }
        assert_eq!(Rc::strong_count(&socket), 1, "k = {k}");
        let log = trace.clone();
        event_loop
            .add_reader(socket, move || log.log("called"))
            .unwrap();
        send(&peer, "x");
        one_turn(&event_loop);
        trace.assert(&["called"]);
    }
}

/// The owner is a `Watched`; transports come later.
#[test]
fn fault_c5_a_reader_on_somebody_else_s_descriptor_is_refused_and_disturbs_nothing() {
    let (event_loop, _) = virtual_loop();
    let (peer, socket) = pair();
    let watched = event_loop.watch(Rc::clone(&socket)).unwrap();
    let task = event_loop.create_task(async move {
        let word = read_some(&watched, 8).await.unwrap();
        String::from_utf8(word).unwrap()
    });
    one_turn(&event_loop);
    let error = event_loop
        .add_reader(Rc::clone(&socket), || unreachable!("it was refused"))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(!event_loop.remove_reader(socket.as_raw_fd()));
    send(&peer, "mine");
    assert_eq!(
        event_loop.run_until_complete(task).unwrap().unwrap(),
        "mine"
    );
}

#[test]
fn fault_c6_a_hang_up_that_nobody_waits_for_does_not_spin() {
    let probe = Probe::new();
    let selector: Rc<Probe> = Rc::clone(&probe);
    let event_loop = builder()
        .clock(testing::Clock::new())
        .selector(selector)
        .build()
        .unwrap();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let watched = event_loop.watch(socket).unwrap();
    // Somebody has waited once, and given up.
    let mut readable = Box::pin(watched.readable());
    let mut cx = PollContext::from_waker(Waker::noop());
    assert!(readable.as_mut().poll(&mut cx).is_pending());
    drop(readable);
    send(&peer, "last words");
    drop(peer);

    // The clock jumps only when nothing outside is waited for: so it sleeps, and for how many waits.
    event_loop
        .run_until_complete(async {
            for _ in 0..10 {
                coloop::sleep(Duration::from_secs(3600)).await;
            }
        })
        .unwrap();
    let waits = probe.waits();
    assert!(waits <= 10 * 4, "{waits} waits for ten sleeps");
    probe.asked.assert(&["add -", "modify r", "modify -"]);

    // It is all still there for who asks.
    let log = trace.clone();
    let read = event_loop.run_until_complete(async {
        log.log(String::from_utf8(read_some(&watched, 64).await.unwrap()).unwrap());
        watched.readable().await.unwrap();
        log.log(format!("{:?}", read_some(&watched, 64).await.unwrap()));
    });
    read.unwrap();
    trace.assert(&["last words", "[]"]);
}

#[test]
fn fault_c6_a_hang_up_on_a_removed_reader_does_not_spin() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let (peer, socket) = pair();
    let kept = Rc::clone(&socket);
    let watch = event_loop.add_reader(socket, || {}).unwrap();
    assert!(event_loop.remove_reader(watch));
    drop(peer);
    let before = probe.waits();
    event_loop
        .run_until_complete(coloop::sleep(Duration::from_millis(2)))
        .unwrap();
    let waits = probe.waits() - before;
    assert!(waits <= 6, "{waits} waits");
    assert_eq!(drain(&kept), "");
}

/// What arrives between a read that would block and the wait that follows is not missed.
#[test]
fn fault_c7_data_that_arrives_between_the_attempt_and_the_wait_is_not_lost() {
    let (event_loop, _) = virtual_loop();
    let (peer, socket) = pair();
    let watched = event_loop.watch(socket).unwrap();
    let attempts = Cell::new(0);
    for _ in 0..100 {
        attempts.set(0);
        let read = event_loop.run_until_complete(watched.read_with(|socket| {
            let mut byte = [0];
            let outcome = (&**socket).read(&mut byte).map(|_| byte[0]);
            attempts.set(attempts.get() + 1);
            if outcome.is_err() {
                send(&peer, "!");
            }
            outcome
        }));
        assert_eq!((read.unwrap().unwrap(), attempts.get()), (b'!', 2));
    }
}

#[test]
fn fault_c7_twenty_thousand_ping_pongs_lose_no_wake() {
    const ROUNDS: u32 = 20_000;
    let event_loop = real_loop();
    let (near, far) = pair();
    let near = event_loop.watch(Rc::new(near)).unwrap();
    let far = event_loop.watch(far).unwrap();
    let echo = event_loop.create_task(async move {
        let mut count = 0;
        while let [byte] = read_some(&far, 1).await.unwrap()[..] {
            far.write_with(|far| (&**far).write(&[byte.wrapping_add(1)]))
                .await
                .unwrap();
            count += 1;
        }
        count
    });
    let count = event_loop.run_until_complete(async move {
        for round in 0..ROUNDS {
            let byte = round as u8;
            near.write_with(|near| (&**near).write(&[byte]))
                .await
                .unwrap();
            assert_eq!(read_some(&near, 1).await.unwrap(), [byte.wrapping_add(1)]);
        }
        drop(near);
        echo.await.unwrap()
    });
    assert_eq!(count.unwrap(), ROUNDS);
}

#[test]
fn fault_c8_readiness_that_was_none_is_no_error() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let trace = Trace::new();
    let ((peer, socket), (other_peer, other)) = (pair(), pair());
    let watched = event_loop.watch(socket).unwrap();
    let log = trace.clone();
    drop(event_loop.create_task(async move {
        let bytes = read_some(&watched, 8).await.unwrap();
        log.log(String::from_utf8(bytes).unwrap());
    }));
    let (log, source) = (trace.clone(), Rc::clone(&other));
    event_loop
        .add_reader(other, move || {
            log.log(format!("called: {:?}", drain(&source)));
        })
        .unwrap();
    one_turn(&event_loop);
    let keys = probe.keys.borrow().clone();
    for _ in 0..5 {
        let invented = keys.iter().map(|key| Readiness {
            key: *key,
            readable: true,
            writable: true,
        });
        probe.invented.borrow_mut().extend(invented);
        one_turn(&event_loop);
        trace.assert(&["called: \"\""]);
    }
    send(&peer, "awaited");
    send(&other_peer, "read");
    one_turn(&event_loop);
    one_turn(&event_loop);
    let mut seen = trace.take();
    seen.sort();
    assert_eq!(seen, ["awaited", "called: \"read\""]);
    // A key that was never given out is nobody's.
    let nobody = Readiness {
        key: usize::MAX - 7,
        readable: true,
        writable: true,
    };
    probe.invented.borrow_mut().push(nobody);
    one_turn(&event_loop);
    trace.assert(&[""; 0]);
}

#[test]
fn fault_c9_interrupted_calls_are_made_again() {
    let probe = Probe::new();
    let event_loop = probe.real_loop();
    let (peer, socket) = pair();
    let watched = event_loop.watch(socket).unwrap();
    probe
        .failures
        .borrow_mut()
        .extend([libc::EINTR, libc::EINTR, libc::EINTR]);
    let calls = Cell::new(0);
    let interrupted = |calls: &Cell<u32>| {
        calls.set(calls.get() + 1);
        !calls.get().is_multiple_of(3)
    };
    send(&peer, "x");
    let outcome = event_loop.run_until_complete(async {
        let read = watched
            .read_with(|socket| {
                if interrupted(&calls) {
                    return Err(ErrorKind::Interrupted.into());
                }
                (&**socket).read(&mut [0; 8])
            })
            .await?;
        let written = watched
            .write_with(|socket| {
                if interrupted(&calls) {
                    return Err(ErrorKind::Interrupted.into());
                }
                (&**socket).write(b"y")
            })
            .await?;
        Ok::<_, io::Error>((read, written))
    });
    assert_eq!(outcome.unwrap().unwrap(), (1, 1));
    assert_eq!(calls.get(), 6);
    assert_eq!(drain(&peer), "y");
}

#[test]
fn fault_c10_short_reads_and_writes_make_the_same_stream() {
    const LENGTH: usize = 64 * 1024;
    let mut random = Random::new(10);
    let sent: Rc<Vec<u8>> = Rc::new((0..LENGTH).map(|_| random.below(256) as u8).collect());
    let event_loop = real_loop();
    let (near, far) = pair();
    rustix::net::sockopt::set_socket_send_buffer_size(&near, 1).unwrap();
    let near = event_loop.watch(Rc::new(near)).unwrap();
    let far = event_loop.watch(far).unwrap();

    let bytes = Rc::clone(&sent);
    let writer = event_loop.create_task(async move {
        let mut random = Random::new(11);
        let mut written = 0;
        let mut waited = 0;
        while written < bytes.len() {
            let cut = (1 + random.below(8) as usize).min(bytes.len() - written);
            let piece = &bytes[written..written + cut];
            written += near
                .write_with(|near| {
                    let outcome = (&**near).write(piece);
                    waited += u32::from(outcome.is_err());
                    outcome
                })
                .await
                .unwrap();
        }
        waited
    });
    let mut random = Random::new(12);
    let received = event_loop.run_until_complete(async move {
        let mut received = Vec::new();
        loop {
            let bytes = read_some(&far, 1 + random.below(8) as usize).await.unwrap();
            if bytes.is_empty() {
                return received;
            }
            received.extend(bytes);
        }
    });
    assert_eq!(received.unwrap(), *sent);
    let waited = event_loop.run_until_complete(writer).unwrap().unwrap();
    assert!(waited > 0, "the little buffer was never full");
}

/// The part of it that needs no injection: a selector of the caller's fails.
#[test]
fn fault_c13_a_wait_that_fails_ends_the_run_once_and_the_next_run_goes_on() {
    for error in [libc::ENOMEM, libc::EBADF] {
        let probe = Probe::new();
        let event_loop = probe.real_loop();
        let trace = Trace::new();
        event_loop.call_soon(trace.logs("kept"));
        probe.failures.borrow_mut().push_back(error);
        let failed = event_loop.run_forever().unwrap_err();
        assert!(matches!(&failed, RunError::Io(io) if io.raw_os_error() == Some(error)));
        assert_eq!(probe.waits(), 1, "surfaced at once");
        assert!(!event_loop.is_running() && coloop::try_current().is_err());
        trace.assert(&[""; 0]);

        let main = event_loop.run_until_complete(async { "the next run" });
        assert_eq!(main.unwrap(), "the next run");
        trace.assert(&["kept"]);
    }
}

/// More tasks than one wait can report for, each of which waits for its own descriptor.
#[test]
fn fault_c14_two_thousand_tasks_whose_descriptors_are_ready_at_once_are_all_served() {
    let count = (raise_limit() as usize / 8).clamp(1_100, 2_000);
    let event_loop = real_loop();
    let trace = Trace::new();
    let mut peers = Vec::new();
    for number in 0..count {
        let (peer, socket) = pair();
        let (log, watched) = (trace.clone(), event_loop.watch(socket).unwrap());
        peers.push(peer);
        drop(event_loop.create_task(async move {
            read_some(&watched, 8).await.unwrap();
            log.log(number);
        }));
    }
    one_turn(&event_loop);
    peers.iter().for_each(|peer| send(peer, "x"));
    let mut turns = 0;
    while !event_loop.all_tasks().is_empty() {
        one_turn(&event_loop);
        turns += 1;
        assert!(turns <= 2 + count.div_ceil(1_000), "somebody starves");
    }
    let mut served: Vec<usize> = trace.take().iter().map(|n| n.parse().unwrap()).collect();
    served.sort_unstable();
    assert_eq!(served, (0..count).collect::<Vec<_>>());
}

#[test]
fn an_in_memory_source_is_refused_by_a_selector_that_serves_descriptors_only() {
    let event_loop = EventLoop::new().unwrap();
    event_loop.set_panic_policy(PanicPolicy::Propagate);
    let memory = testing::Memory::over(default_selector().unwrap());
    let (near, _far) = memory.stream_pair(8);
    let error = event_loop.watch(near).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let elsewhere: Rc<dyn Selector> = testing::Memory::over(default_selector().unwrap());
    let other = builder().selector(elsewhere).build().unwrap();
    let (near, _far) = memory.stream_pair(8);
    assert_eq!(other.watch(near).unwrap_err().kind(), ErrorKind::NotFound);
    one_turn(&event_loop);
    one_turn(&other);
}

#[test]
fn several_tasks_may_wait_for_one_descriptor_and_one_that_gives_up_costs_the_others_nothing() {
    let (event_loop, _) = virtual_loop();
    let trace = Trace::new();
    let (peer, socket) = pair();
    let watched = Rc::new(event_loop.watch(socket).unwrap());
    let tasks: Vec<_> = ["one", "two", "three"]
        .into_iter()
        .map(|name| {
            let (log, watched) = (trace.clone(), Rc::clone(&watched));
            event_loop.create_task(async move {
                watched.readable().await.unwrap();
                log.log(name);
            })
        })
        .collect();
    one_turn(&event_loop);
    tasks[1].cancel();
    one_turn(&event_loop);
    send(&peer, "x");
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["one", "three"]);

    // Polled again by somebody else, it tells the last one who asked.
    assert_eq!(drain(watched.get_ref()), "x");
    let owner = Rc::clone(&watched);
    let mut moved = Box::pin(async move { owner.readable().await });
    let mut cx = PollContext::from_waker(Waker::noop());
    assert!(moved.as_mut().poll(&mut cx).is_pending());
    let log = trace.clone();
    drop(event_loop.create_task(async move {
        moved.await.unwrap();
        log.log("the last one who asked");
    }));
    one_turn(&event_loop);
    send(&peer, "x");
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["the last one who asked"]);
}
