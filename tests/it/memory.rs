//! In-memory streams, and sources that tasks watch.

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::future::{Future, pending, poll_fn};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll, Wake, Waker};
use std::time::Duration;

use coloop::testing::{Memory, MemoryStream, stream_pair};
use coloop::{
    Bell, ByteStream, EventLoop, Interest, Readiness, Selector, Source, Task, Watched, current,
    default_selector, sleep, timeout, yield_now,
};

use crate::errors::reports;
use crate::verbs::{Trace, builder, one_turn, real_loop};

const SECOND: Duration = Duration::from_secs(1);

/// What a call on a stream gives: a count, or the kind of the error.
fn count(result: io::Result<usize>) -> Result<usize, ErrorKind> {
    result.map_err(|error| error.kind())
}

fn send(stream: &MemoryStream, bytes: &str) -> Result<usize, ErrorKind> {
    count(stream.send(bytes.as_bytes()))
}

fn recv(stream: &MemoryStream, most: usize) -> Result<String, ErrorKind> {
    let mut buffer = vec![0; most];
    let count = count(stream.recv(&mut buffer))?;
    buffer.truncate(count);
    Ok(String::from_utf8(buffer).unwrap())
}

/// Two ends outside of any loop.
fn pair(capacity: usize) -> (MemoryStream, MemoryStream) {
    Memory::over(default_selector().unwrap()).stream_pair(capacity)
}

fn got(text: &str) -> Result<String, ErrorKind> {
    Ok(text.to_owned())
}

const BLOCKS: ErrorKind = ErrorKind::WouldBlock;
const BROKEN: ErrorKind = ErrorKind::BrokenPipe;

// ---- Streams -------------------------------------------------------------------------------------

#[test]
fn a_stream_takes_what_there_is_room_for_and_gives_what_is_there() {
    let (near, far) = pair(4);
    for (from, to) in [(&near, &far), (&far, &near)] {
        assert_eq!(recv(to, 8), Err(BLOCKS));
        assert_eq!(send(from, "abcdef"), Ok(4));
        assert_eq!(send(from, "ef"), Err(BLOCKS));
        assert_eq!(recv(to, 3), got("abc"));
        assert_eq!(send(from, "ef"), Ok(2));
        assert_eq!(send(from, "gh"), Ok(1));
        assert_eq!(recv(to, 8), got("defg"));
        assert_eq!(recv(to, 8), Err(BLOCKS));
    }
}

#[test]
fn the_two_directions_of_a_stream_know_nothing_of_each_other() {
    let (near, far) = pair(2);
    assert_eq!((send(&near, "ab"), send(&near, "c")), (Ok(2), Err(BLOCKS)));
    assert_eq!((send(&far, "xy"), send(&far, "z")), (Ok(2), Err(BLOCKS)));
    assert_eq!((recv(&near, 9), recv(&far, 9)), (got("xy"), got("ab")));
}

#[test]
fn nothing_can_always_be_sent_and_received() {
    let (near, far) = pair(1);
    assert_eq!((send(&near, ""), recv(&far, 0)), (Ok(0), got("")));
    assert_eq!(send(&near, "a"), Ok(1));
    assert_eq!((send(&near, ""), recv(&far, 0)), (Ok(0), got("")));
    assert_eq!(recv(&far, 1), got("a"));
}

#[test]
fn a_stream_without_room_blocks_for_ever() {
    let (near, far) = pair(0);
    assert_eq!(
        (send(&near, "a"), recv(&far, 1)),
        (Err(BLOCKS), Err(BLOCKS))
    );
}

#[test]
fn ending_one_direction_leaves_the_other() {
    let (near, far) = pair(8);
    assert_eq!(send(&near, "rest"), Ok(4));
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(send(&near, "more"), Err(BROKEN));
    assert_eq!(recv(&far, 3), got("res"));
    assert_eq!(
        (recv(&far, 3), recv(&far, 3), recv(&far, 3)),
        (got("t"), got(""), got(""))
    );
    assert_eq!((send(&far, "back"), recv(&near, 8)), (Ok(4), got("back")));
    assert_eq!(recv(&near, 8), Err(BLOCKS));
}

#[test]
fn a_stream_that_reads_no_more_breaks_its_peer_s_pipe() {
    let (near, far) = pair(8);
    assert_eq!(send(&far, "unread"), Ok(6));
    near.shutdown(Shutdown::Read).unwrap();
    assert_eq!(recv(&near, 8), got(""));
    assert_eq!(send(&far, "more"), Err(BROKEN));
    assert_eq!((send(&near, "still"), recv(&far, 8)), (Ok(5), got("still")));
    assert_eq!(recv(&far, 8), Err(BLOCKS));
}

#[test]
fn ending_both_directions_ends_both_sides() {
    let (near, far) = pair(8);
    assert_eq!((send(&near, "rest"), send(&far, "unread")), (Ok(4), Ok(6)));
    near.shutdown(Shutdown::Both).unwrap();
    assert_eq!(
        (send(&near, "a"), send(&far, "a")),
        (Err(BROKEN), Err(BROKEN))
    );
    assert_eq!((recv(&near, 8), recv(&near, 8)), (got(""), got("")));
    assert_eq!((recv(&far, 8), recv(&far, 8)), (got("rest"), got("")));
    near.shutdown(Shutdown::Both).unwrap();
    far.shutdown(Shutdown::Both).unwrap();
    assert_eq!((recv(&near, 8), recv(&far, 8)), (got(""), got("")));
}

#[test]
fn a_stream_whose_peer_is_gone_reads_what_is_left_and_cannot_write() {
    let (near, far) = pair(8);
    assert_eq!((send(&near, "rest"), send(&far, "unread")), (Ok(4), Ok(6)));
    drop(near);
    assert_eq!(send(&far, "more"), Err(BROKEN));
    assert_eq!((recv(&far, 8), recv(&far, 8)), (got("rest"), got("")));
    drop(far);
}

#[test]
fn several_buffers_are_sent_as_one() {
    fn send_all(stream: &MemoryStream, parts: &[&str]) -> Result<usize, ErrorKind> {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| IoSlice::new(part.as_bytes()))
            .collect();
        count(stream.send_vectored(&parts))
    }

    let (near, far) = pair(6);
    assert_eq!(send_all(&near, &[]), Ok(0));
    assert_eq!(send_all(&near, &["", "ab", "", "c"]), Ok(3));
    assert_eq!(send_all(&near, &["de", "fg"]), Ok(3));
    assert_eq!(send_all(&near, &["", "x"]), Err(BLOCKS));
    assert_eq!(recv(&far, 9), got("abcdef"));
    assert_eq!(
        send_all(&near, &["abcdef", "g"]),
        Ok(6),
        "it ends where a buffer ends"
    );
    assert_eq!(recv(&far, 9), got("abcdef"));
    drop(far);
    assert_eq!(send_all(&near, &["a", "b"]), Err(BROKEN));
}

#[test]
fn a_loop_without_a_memory_selector_has_no_streams() {
    let event_loop = real_loop();
    let error = stream_pair(&event_loop, 8).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let expected = "the loop has no memory selector: make it by `testing::run_virtual`";
    assert_eq!(error.to_string(), expected);

    let (near, _far) = pair(8);
    let error = event_loop.watch(near).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[coloop::test(virtual_clock)]
async fn a_stream_of_another_selector_is_refused_and_leaves_nothing_behind() {
    let (foreign, _far) = Memory::over(default_selector().unwrap()).stream_pair(8);
    let error = current().watch(foreign).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // It has the same number as this one.
    let (near, _far) = stream_pair(&current(), 8).unwrap();
    assert!(current().watch(near).is_ok());
}

// ---- Streams that are watched --------------------------------------------------------------------

/// Two watched ends on the running loop.
fn watched_pair(capacity: usize) -> (Watched<MemoryStream>, Watched<MemoryStream>) {
    let (near, far) = stream_pair(&current(), capacity).unwrap();
    (
        current().watch(near).unwrap(),
        current().watch(far).unwrap(),
    )
}

async fn send_all(stream: &Watched<MemoryStream>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = stream.write_with(|stream| stream.send(bytes)).await?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

async fn recv_some(stream: &Watched<MemoryStream>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let count = stream.read_with(|stream| stream.recv(&mut buffer)).await?;
    buffer.truncate(count);
    Ok(buffer)
}

async fn recv_to_end(stream: &Watched<MemoryStream>) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let some = recv_some(stream).await?;
        if some.is_empty() {
            return Ok(all);
        }
        all.extend(some);
    }
}

#[coloop::test(virtual_clock)]
async fn a_reader_waits_for_bytes_and_a_writer_for_room() {
    let trace = Trace::new();
    let (near, far) = watched_pair(4);
    let log = trace.clone();
    let writer = current().create_task(async move {
        for part in ["abcd", "efgh", "ij"] {
            send_all(&near, part.as_bytes()).await.unwrap();
            log.log(format!("sent {part}"));
        }
    });
    sleep(SECOND).await;
    trace.log("a second later");
    for _ in 0..3 {
        let some = recv_some(&far).await.unwrap();
        trace.log(format!("received {}", String::from_utf8(some).unwrap()));
        sleep(SECOND).await;
    }
    writer.await.unwrap();
    trace.log(format!(
        "at the end: {}",
        recv_some(&far).await.unwrap().len()
    ));

    trace.assert(&[
        "sent abcd",
        "a second later",
        "received abcd",
        "sent efgh",
        "received efgh",
        "sent ij",
        "received ij",
        "at the end: 0",
    ]);
}

#[coloop::test(virtual_clock)]
async fn the_end_of_a_peer_wakes_who_waits_for_it() {
    type End = fn(Watched<MemoryStream>) -> Option<Watched<MemoryStream>>;
    /// How it ends, and what comes of a read and of a write.
    type Case = (
        &'static str,
        End,
        Result<usize, ErrorKind>,
        Result<usize, ErrorKind>,
    );
    let ends: [Case; 4] = [
        (
            "dropped",
            |far| {
                drop(far);
                None
            },
            Ok(0),
            Err(BROKEN),
        ),
        (
            "shut down both ways",
            |far| {
                far.get_ref().shutdown(Shutdown::Both).unwrap();
                Some(far)
            },
            Ok(0),
            Err(BROKEN),
        ),
        (
            "writes no more",
            |far| {
                far.get_ref().shutdown(Shutdown::Write).unwrap();
                Some(far)
            },
            Ok(0),
            Err(ErrorKind::TimedOut),
        ),
        (
            "reads no more",
            |far| {
                far.get_ref().shutdown(Shutdown::Read).unwrap();
                Some(far)
            },
            Err(ErrorKind::TimedOut),
            Err(BROKEN),
        ),
    ];
    for (how, end, read, write) in ends {
        let (near, far) = watched_pair(1);
        send_all(&near, b"x").await.unwrap();
        let near = Rc::new(near);
        let reader = current().create_task({
            let near = Rc::clone(&near);
            async move {
                timeout(10 * SECOND, recv_some(&near))
                    .await?
                    .map(|some| some.len())
            }
        });
        let writer = current().create_task({
            let near = Rc::clone(&near);
            async move {
                timeout(10 * SECOND, send_all(&near, b"y"))
                    .await?
                    .map(|()| 1)
            }
        });
        sleep(SECOND).await;
        let kept = end(far);
        sleep(SECOND).await;
        drop(near);

        assert_eq!(count(reader.await.unwrap()), read, "{how}: the reader");
        assert_eq!(count(writer.await.unwrap()), write, "{how}: the writer");
        drop(kept);
    }
}

#[coloop::test(virtual_clock)]
async fn a_mebibyte_passes_a_pipe_of_seven_bytes_in_both_directions_at_once() {
    fn bytes(seed: u32) -> Vec<u8> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..1 << 20).map(next).collect()
    }

    fn transfer(stream: Watched<MemoryStream>, seed: u32) -> Task<Vec<u8>> {
        current().create_task(async move {
            let sending = async {
                send_all(&stream, &bytes(seed)).await.unwrap();
                stream.get_ref().shutdown(Shutdown::Write).unwrap();
            };
            let (received, ()) = futures::future::join(recv_to_end(&stream), sending).await;
            received.unwrap()
        })
    }

    let (near, far) = watched_pair(7);
    let (near, far) = (transfer(near, 1), transfer(far, 2));
    let (at_near, at_far) = (near.await.unwrap(), far.await.unwrap());
    assert!(at_far == bytes(1), "{} bytes arrived", at_far.len());
    assert!(at_near == bytes(2), "{} bytes arrived", at_near.len());
}

#[coloop::test(virtual_clock)]
async fn a_watched_stream_does_not_hold_the_virtual_clock() {
    let (near, _far) = watched_pair(1);
    let before = current().time();
    let never = timeout(1_000 * SECOND, near.readable()).await;
    assert!(never.is_err());
    assert_eq!(current().time() - before, 1_000 * SECOND);
}

#[coloop::test(virtual_clock)]
async fn a_memory_selector_serves_descriptors_too() {
    let trace = Trace::new();
    let (mut near_socket, far_socket) = UnixStream::pair().unwrap();
    far_socket.set_nonblocking(true).unwrap();
    let socket = current().watch(Rc::new(far_socket)).unwrap();
    let (near, far) = stream_pair(&current(), 8).unwrap();
    let stream = current().watch(far).unwrap();
    let log = trace.clone();
    let on_socket = current().create_task(async move {
        let mut buffer = [0; 8];
        let read = |socket: &Rc<UnixStream>| (&mut &**socket).read(&mut buffer);
        let count = socket.read_with(read).await.unwrap();
        log.log(format!("{count} from the socket"));
    });
    let log = trace.clone();
    let on_stream = current().create_task(async move {
        let some = recv_some(&stream).await.unwrap();
        log.log(format!("{} from the stream", some.len()));
    });
    yield_now().await;
    assert_eq!(near.send(b"memory").unwrap(), 6);
    near_socket.write_all(b"socket..").unwrap();
    on_stream.await.unwrap();
    on_socket.await.unwrap();
    trace.assert(&["8 from the socket", "6 from the stream"]);
}

// ---- Watching ------------------------------------------------------------------------------------

/// A selector that says what it is asked, and may refuse to change an interest.
struct Telling {
    inner: Rc<dyn Selector>,
    trace: Trace,
    refuses: RefCell<bool>,
}

impl Selector for Telling {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.trace.log(format!("add {}", shown(interest)));
        self.inner.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.trace.log(format!("modify {}", shown(interest)));
        if *self.refuses.borrow() {
            return Err(io::Error::other("refused"));
        }
        self.inner.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        self.trace.log("delete");
        self.inner.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.wait(ready, timeout)?;
        for report in ready {
            let interest = Interest {
                readable: report.readable,
                writable: report.writable,
            };
            self.trace.log(format!("ready {}", shown(interest)));
        }
        self.trace.log("wait");
        Ok(())
    }

    fn bell(&self) -> Arc<dyn Bell> {
        self.inner.bell()
    }
}

fn shown(interest: Interest) -> &'static str {
    match (interest.readable, interest.writable) {
        (true, true) => "both",
        (true, false) => "read",
        (false, true) => "write",
        (false, false) => "nothing",
    }
}

/// A loop on a virtual clock that says what it asks its selector, and the maker of its streams.
fn telling_loop() -> (EventLoop, Rc<Telling>, Rc<Memory>) {
    let memory = Memory::over(default_selector().unwrap());
    let telling = Rc::new(Telling {
        inner: Rc::<Memory>::clone(&memory),
        trace: Trace::new(),
        refuses: RefCell::new(false),
    });
    let builder = builder().selector(Rc::<Telling>::clone(&telling));
    let event_loop = builder
        .clock(coloop::testing::Clock::new())
        .build()
        .unwrap();
    (event_loop, telling, memory)
}

#[test]
fn a_watch_asks_for_what_is_awaited_and_for_nothing_else() {
    let (event_loop, telling, memory) = telling_loop();
    let trace = &telling.trace;
    let (near, far) = memory.stream_pair(1);
    let near = Rc::new(event_loop.watch(near).unwrap());
    trace.assert(&["add nothing"]);

    let (reads, writes) = (Rc::clone(&near), Rc::clone(&near));
    let reader = event_loop.create_task(async move { reads.readable().await });
    let writer = event_loop.create_task(async move { writes.writable().await });
    one_turn(&event_loop);
    trace.assert(&["wait", "modify read", "modify both"]);
    one_turn(&event_loop);
    // The writer is told; nobody waits for room after it.
    trace.assert(&["ready write", "wait"]);
    one_turn(&event_loop);
    assert!(writer.is_finished());
    trace.assert(&["ready write", "wait", "modify read"]);

    assert_eq!(far.send(b"x").unwrap(), 1);
    one_turn(&event_loop);
    one_turn(&event_loop);
    assert!(reader.is_finished());
    trace.assert(&["ready read", "wait", "ready read", "wait", "modify nothing"]);
    one_turn(&event_loop);
    trace.assert(&["wait"]);

    drop(near);
    trace.assert(&["delete"]);
}

#[test]
fn an_event_that_nobody_waits_for_pauses_the_watch_and_does_not_spin() {
    let (event_loop, telling, memory) = telling_loop();
    let trace = &telling.trace;
    let (near, far) = memory.stream_pair(8);
    let near = Rc::new(event_loop.watch(near).unwrap());
    let waits = Rc::clone(&near);
    let task = event_loop.create_task(async move { waits.readable().await });
    one_turn(&event_loop);
    task.cancel();
    one_turn(&event_loop);
    assert!(task.is_finished());
    assert_eq!(far.send(b"unread").unwrap(), 6);
    trace.take();

    event_loop.run_until_complete(sleep(SECOND)).unwrap();

    // The turn in which the sleep begins, and the one in which the clock jumps to its end.
    trace.assert(&["ready read", "wait", "modify nothing", "wait"]);
    event_loop.run_until_complete(sleep(SECOND)).unwrap();
    trace.assert(&["wait", "wait"]);

    let unread = event_loop
        .run_until_complete(recv_some(&near))
        .unwrap()
        .unwrap();
    assert_eq!(unread, b"unread");
    let again = event_loop.create_task(async move { recv_some(&near).await.unwrap() });
    one_turn(&event_loop);
    assert_eq!(far.send(b"more").unwrap(), 4);
    assert_eq!(
        event_loop.run_until_complete(again).unwrap().unwrap(),
        b"more"
    );
}

#[test]
fn a_selector_that_refuses_once_is_asked_again() {
    let (event_loop, telling, memory) = telling_loop();
    let (near, far) = memory.stream_pair(8);
    let near = event_loop.watch(near).unwrap();
    telling.refuses.replace(true);
    for _ in 0..2 {
        let Poll::Ready(Err(error)) = polled_once(&event_loop, near.readable()) else {
            panic!("nobody would ever tell it");
        };
        assert_eq!(error.to_string(), "refused");
    }
    telling.refuses.replace(false);
    assert_eq!(far.send(b"x").unwrap(), 1);
    let waited = event_loop.run_until_complete(near.readable());
    waited.unwrap().unwrap();
}

#[test]
fn a_source_is_watched_once() {
    let (event_loop, _telling, memory) = telling_loop();
    let (near, _far) = memory.stream_pair(8);
    #[derive(Debug)]
    struct Alias(Source);
    impl coloop::Watchable for Alias {
        fn source(&self) -> Source {
            self.0.clone()
        }
    }
    let alias = || Alias(coloop::Watchable::source(&near));
    let first = event_loop.watch(alias()).unwrap();
    let error = event_loop.watch(alias()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    drop(first);
    assert!(event_loop.watch(alias()).is_ok());

    let (socket, _peer) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let socket = Rc::new(socket);
    let watched = event_loop.watch(Rc::clone(&socket)).unwrap();
    let refused = [
        event_loop.watch(Rc::clone(&socket)).unwrap_err(),
        event_loop
            .add_reader(Rc::clone(&socket), || ())
            .unwrap_err(),
        event_loop
            .add_writer(Rc::clone(&socket), || ())
            .unwrap_err(),
    ];
    let expected = format!(
        "descriptor {} is used by a transport or a watch of this loop: close that first",
        socket.as_raw_fd()
    );
    for error in refused {
        assert_eq!(
            (error.kind(), error.to_string()),
            (ErrorKind::ResourceBusy, expected.clone())
        );
    }
    assert!(
        !event_loop.remove_reader(socket.as_raw_fd()),
        "it is not a callback's"
    );

    drop(watched);
    let id = event_loop.add_reader(Rc::clone(&socket), || ()).unwrap();
    let error = event_loop.watch(Rc::clone(&socket)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(event_loop.remove_reader(id));
    assert!(event_loop.watch(Rc::clone(&socket)).is_ok());
    assert_eq!(
        Rc::strong_count(&socket),
        1,
        "refused or dropped, nothing keeps it"
    );
}

#[test]
fn a_descriptor_that_cannot_be_watched_is_refused() {
    let event_loop = real_loop();
    let (blocking, _peer) = UnixStream::pair().unwrap();
    let fd = blocking.as_raw_fd();
    let error = event_loop.watch(Rc::new(blocking)).unwrap_err();
    let expected =
        format!("descriptor {fd} is in blocking mode: call `set_nonblocking(true)` first");
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::InvalidInput, expected)
    );

    // A file may be in the other mode, and is always ready all the same.
    for flags in [0, libc::O_NONBLOCK] {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(std::env::current_exe().unwrap())
            .unwrap();
        let expected = format!(
            "descriptor {} cannot be watched: it is a regular file, a directory or the like, which \
             is always ready; read it in a thread",
            file.as_raw_fd()
        );
        let refused = |error: io::Error| {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(error.to_string(), expected);
        };
        match event_loop.watch(Rc::new(file)) {
            Err(error) => refused(error),
            Ok(file) => {
                for _ in 0..2 {
                    let Poll::Ready(Err(error)) = polled_once(&event_loop, file.readable()) else {
                        panic!("nobody would ever tell it");
                    };
                    refused(error);
                }
            }
        }
    }
}

/// Polls a future once in a run of its own.
fn polled_once<F: Future>(event_loop: &EventLoop, future: F) -> Poll<F::Output> {
    let mut future = pin!(future);
    let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
    event_loop.run_until_complete(polled).unwrap()
}

#[coloop::test(virtual_clock)]
async fn several_tasks_may_wait_for_one_source() {
    let trace = Trace::new();
    let (near, far) = watched_pair(8);
    let near = Rc::new(near);
    let tasks: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let (near, log) = (Rc::clone(&near), trace.clone());
            current().create_task(async move {
                let byte = near
                    .read_with(|near| recv(near, 1).map_err(io::Error::from))
                    .await;
                log.log(format!("{name} has {}", byte.unwrap()));
            })
        })
        .collect();
    for byte in [b"1", b"2", b"3"] {
        sleep(SECOND).await;
        trace.log("send");
        assert_eq!(far.get_ref().send(byte).unwrap(), 1);
    }
    for task in tasks {
        task.await.unwrap();
    }

    // Those who wait behind the first may be told in vain, and wait again.
    trace.assert(&["send", "a has 1", "send", "b has 2", "send", "c has 3"]);
}

#[coloop::test(virtual_clock)]
async fn a_wait_that_is_dropped_loses_nothing() {
    let (near, far) = watched_pair(64);
    let mut received = Vec::new();
    let mut given_up = 0;
    let sender = current().create_task(async move {
        for number in 0..10_u8 {
            sleep(SECOND).await;
            send_all(&far, &[number; 3]).await.unwrap();
        }
        far
    });
    while received.len() < 30 {
        match timeout(Duration::from_millis(400), recv_some(&near)).await {
            Ok(some) => received.extend(some.unwrap()),
            Err(_) => given_up += 1,
        }
    }
    let expected: Vec<u8> = (0..10).flat_map(|number| [number; 3]).collect();
    assert_eq!(received, expected);
    assert_eq!(given_up, 20);
    drop(sender.await.unwrap());
    assert_eq!(recv_some(&near).await.unwrap(), b"");
}

#[coloop::test(virtual_clock)]
async fn of_two_that_wait_the_one_that_stays_is_told() {
    let (near, far) = watched_pair(8);
    let near = Rc::new(near);
    let waiter = || {
        let near = Rc::clone(&near);
        current().create_task(async move { near.readable().await.is_ok() })
    };
    let (leaves, stays) = (waiter(), waiter());
    yield_now().await;
    leaves.cancel();
    yield_now().await;
    assert!(leaves.is_finished());
    assert_eq!(far.get_ref().send(b"x").unwrap(), 1);
    assert!(stays.await.unwrap());
}

#[test]
fn a_waker_that_panics_keeps_no_other_from_being_told() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("no waking");
        }
    }

    let (event_loop, _telling, memory) = telling_loop();
    let told = reports(&event_loop);
    let (near, far) = memory.stream_pair(8);
    let near = Rc::new(event_loop.watch(near).unwrap());
    let first = Rc::clone(&near);
    let mut broken = pin!(async move { first.readable().await });
    let waker = Waker::from(Arc::new(Panics));
    assert!(
        broken
            .as_mut()
            .poll(&mut PollContext::from_waker(&waker))
            .is_pending()
    );
    let second = Rc::clone(&near);
    let task = event_loop.create_task(async move { second.readable().await.is_ok() });
    one_turn(&event_loop);

    assert_eq!(far.send(b"x").unwrap(), 1);
    one_turn(&event_loop);
    one_turn(&event_loop);

    assert!(task.is_finished(), "the one behind it is told");
    assert_eq!(told.take().len(), 1);
    let again = broken
        .as_mut()
        .poll(&mut PollContext::from_waker(Waker::noop()));
    assert!(again.is_ready());
}

#[test]
fn a_wait_that_changes_hands_wakes_the_new_one() {
    let (event_loop, _telling, memory) = telling_loop();
    let trace = Trace::new();
    let (near, far) = memory.stream_pair(8);
    let near = Rc::new(event_loop.watch(near).unwrap());
    let waits = Rc::clone(&near);
    let shared = Rc::new(RefCell::new(Box::pin(async move {
        waits.readable().await.is_ok()
    })));
    let poller = |name: &'static str| {
        let (shared, log) = (Rc::clone(&shared), trace.clone());
        event_loop.create_task(poll_fn(move |cx| {
            let polled = shared.borrow_mut().as_mut().poll(cx);
            log.log(format!("{name}: {polled:?}"));
            polled
        }))
    };
    let (first, second) = (poller("first"), poller("second"));
    one_turn(&event_loop);
    let waits = [&first, &second].map(|task| task.to_ref().waits().len());
    assert_eq!(far.send(b"x").unwrap(), 1);
    one_turn(&event_loop);
    one_turn(&event_loop);
    trace.assert(&["first: Pending", "second: Pending", "second: Ready(true)"]);
    assert_eq!(waits, [0, 1]);
}

#[test]
fn a_closed_loop_watches_nothing() {
    let (event_loop, telling, memory) = telling_loop();
    let (near, far) = memory.stream_pair(8);
    let held = event_loop.watch(near).unwrap();
    let mut waiting = Box::pin(held.readable());
    let polled = waiting
        .as_mut()
        .poll(&mut PollContext::from_waker(Waker::noop()));
    assert!(polled.is_pending());
    telling.trace.take();
    event_loop.close().unwrap();
    telling.trace.assert(&["delete"]);

    let polled = waiting
        .as_mut()
        .poll(&mut PollContext::from_waker(Waker::noop()));
    let Poll::Ready(Err(error)) = polled else {
        panic!("it is still pending");
    };
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    drop(waiting);
    let error = event_loop.watch(far).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotConnected);
    assert_eq!(
        recv(held.get_ref(), 1),
        got(""),
        "the stream itself is whole, its peer gone"
    );
    drop(held);
    telling.trace.assert::<&str>(&[]);
}

#[test]
fn a_task_that_waits_holds_its_source_until_the_loop_closes() {
    let (event_loop, _telling, memory) = telling_loop();
    let (near, far) = memory.stream_pair(8);
    let near = event_loop.watch(near).unwrap();
    drop(event_loop.create_task(async move {
        near.readable().await.ok();
        pending::<()>().await;
    }));
    one_turn(&event_loop);
    assert_eq!(far.send(b"x").unwrap(), 1);
    drop(event_loop);
    assert_eq!(send(&far, "y"), Err(BROKEN));
}
