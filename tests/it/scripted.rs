//! A stream that does as it is told: takes part of a write, has nothing, is interrupted, fails, calls
//! its own transport; and a selector that notes what it is asked to watch.
//!
//! What a transport asks of the system is in the trace `calls`; of the selector, in `watches`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coloop::testing::{Clock, Memory, MemoryStream};
use coloop::{
    Bell, ByteStream, EventLoop, Interest, Readiness, Selector, Source, Transport, Watchable,
    buffered,
};

use crate::grounds::{Side, worded};
use crate::verbs::{Trace, builder};

/// What becomes of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// No more than so many bytes.
    Some(usize),
    Fail(ErrorKind),
}

pub(crate) const BLOCK: Step = Step::Fail(ErrorKind::WouldBlock);
pub(crate) const INTERRUPT: Step = Step::Fail(ErrorKind::Interrupted);

/// What is to be done within a call of this name.
type Visit = (&'static str, Box<dyn FnOnce()>);

/// What a stream is to do; beyond that, it does what the one in memory does.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) calls: Trace,
    sends: RefCell<VecDeque<Step>>,
    recvs: RefCell<VecDeque<Step>>,
    shutdowns: RefCell<VecDeque<Step>>,
    /// Done within the next call of that name, after what the call itself does.
    within: RefCell<VecDeque<Visit>>,
    silent: Cell<bool>,
    chaos: Cell<Option<Random>>,
}

/// The same numbers for the same seed.
#[derive(Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `most`.
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

impl Script {
    pub(crate) fn sends(&self, steps: impl IntoIterator<Item = Step>) {
        self.sends.borrow_mut().extend(steps);
    }

    pub(crate) fn recvs(&self, steps: impl IntoIterator<Item = Step>) {
        self.recvs.borrow_mut().extend(steps);
    }

    pub(crate) fn shutdowns(&self, steps: impl IntoIterator<Item = Step>) {
        self.shutdowns.borrow_mut().extend(steps);
    }

    pub(crate) fn within(&self, call: &'static str, act: impl FnOnce() + 'static) {
        self.within.borrow_mut().push_back((call, Box::new(act)));
    }

    /// Notes no calls from now on.
    pub(crate) fn hush(&self) {
        self.silent.set(true);
        self.calls.take();
    }

    /// From now on each call takes 1 to 8 bytes, or nothing, or is interrupted, as a seed has it.
    pub(crate) fn chaos(&self, seed: u64) {
        self.chaos.set(Some(Random::new(seed)));
    }

    fn next(&self, steps: &RefCell<VecDeque<Step>>) -> Option<Step> {
        let Some(mut random) = self.chaos.get() else {
            return steps.borrow_mut().pop_front();
        };
        let step = match random.below(10) {
            0 | 1 => BLOCK,
            2 => INTERRUPT,
            _ => Step::Some(1 + random.below(8) as usize),
        };
        self.chaos.set(Some(random));
        Some(step)
    }

    fn play(
        &self,
        call: &'static str,
        shown: impl FnOnce() -> String,
        steps: &RefCell<VecDeque<Step>>,
        most: usize,
        play: impl FnOnce(usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let outcome = match self.next(steps) {
            None => play(most),
            Some(Step::Some(count)) => play(count.min(most)),
            Some(Step::Fail(kind)) => Err(kind.into()),
        };
        if !self.silent.get() {
            let shown = shown();
            self.calls.log(match &outcome {
                Ok(count) => format!("{shown}: {count}"),
                Err(error) => format!("{shown}: {:?}", error.kind()),
            });
        }
        let act = {
            let mut within = self.within.borrow_mut();
            let is_next = within.front().is_some_and(|(name, _)| *name == call);
            if is_next { within.pop_front() } else { None }
        };
        if let Some((_, act)) = act {
            act();
        }
        outcome
    }
}

/// A stream in memory that follows a script.
pub(crate) struct Scripted {
    inner: MemoryStream,
    script: Rc<Script>,
}

impl Watchable for Scripted {
    fn source(&self) -> Source {
        self.inner.source()
    }
}

impl ByteStream for Scripted {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len();
        self.script.play(
            "recv",
            || "recv".to_owned(),
            &self.script.recvs,
            most,
            |most| self.inner.recv(&mut buffer[..most]),
        )
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let shown = || format!("send {}", bytes.len());
        self.script
            .play("send", shown, &self.script.sends, bytes.len(), |most| {
                self.inner.send(&bytes[..most])
            })
    }

    fn send_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let shown = || {
            let sizes: Vec<_> = buffers.iter().map(|buffer| buffer.len()).collect();
            format!("send_vectored {sizes:?}")
        };
        let size = buffers.iter().map(|buffer| buffer.len()).sum();
        self.script
            .play("send", shown, &self.script.sends, size, |most| {
                let mut bytes = Vec::with_capacity(most);
                for buffer in buffers {
                    let room = most - bytes.len();
                    bytes.extend_from_slice(&buffer[..room.min(buffer.len())]);
                }
                self.inner.send(&bytes)
            })
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let play = |_| self.inner.shutdown(how).map(|()| 0);
        let shown = || format!("shutdown {how:?}");
        self.script
            .play("shutdown", shown, &self.script.shutdowns, 0, play)
            .map(drop)
    }

    fn abort(&self) {
        self.script.calls.log("abort");
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.script.calls.log("closed");
    }
}

/// Notes what is asked of the selector of memory.
struct Recording {
    inner: Rc<Memory>,
    watches: Trace,
}

fn shown(interest: Interest) -> String {
    let read = if interest.readable { "r" } else { "-" };
    let write = if interest.writable { "w" } else { "-" };
    format!("{read}{write}")
}

impl Selector for Recording {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.watches.log(format!("add {}", shown(interest)));
        self.inner.add(key, source, interest)
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.watches.log(shown(interest));
        self.inner.modify(key, interest)
    }

    fn delete(&self, key: usize) -> Option<Source> {
        self.watches.log("delete");
        self.inner.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        self.inner.wait(ready, timeout)
    }

    fn bell(&self) -> Arc<dyn Bell> {
        self.inner.bell()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }
}

/// A loop with a connection over a scripted stream, and the stream's other end.
pub(crate) struct Desk {
    pub(crate) event_loop: EventLoop,
    pub(crate) reports: Trace,
    pub(crate) watches: Trace,
    pub(crate) script: Rc<Script>,
    pub(crate) side: Rc<Side>,
    pub(crate) far: MemoryStream,
}

impl Desk {
    /// A connection that is made and noted no more than that, with so much room each way.
    pub(crate) fn new(room: usize, side: Rc<Side>) -> Self {
        let memory = Memory::over(coloop::default_selector().unwrap());
        let (near, far) = memory.stream_pair(room);
        let watches = Trace::new();
        let selector = Rc::new(Recording {
            inner: memory,
            watches: watches.clone(),
        });
        let event_loop = builder()
            .clock(Clock::new())
            .selector(selector)
            .build()
            .unwrap();
        let reports = Trace::new();
        let log = reports.clone();
        event_loop.set_exception_handler(move |_, report| log.log(worded(report)));
        let desk = Self {
            event_loop,
            reports,
            watches,
            script: Rc::default(),
            side,
            far,
        };
        let stream = Scripted {
            inner: near,
            script: Rc::clone(&desk.script),
        };
        desk.run(async {
            let handle = desk.event_loop.handle();
            if desk.side.is_buffered() {
                let protocol = desk.side.lender();
                drop(
                    handle
                        .create_connection_over(buffered(|| protocol), stream)
                        .await
                        .unwrap(),
                );
            } else {
                let protocol = desk.side.plain();
                drop(
                    handle
                        .create_connection_over(|| protocol, stream)
                        .await
                        .unwrap(),
                );
            }
        });
        desk.watches.assert(&["add --", "r-"]);
        desk.side.trace.assert(&["made"]);
        desk
    }

    pub(crate) fn t(&self) -> Rc<dyn Transport> {
        self.side.t()
    }

    #[track_caller]
    pub(crate) fn run<T>(&self, f: impl Future<Output = T>) -> T {
        self.event_loop.run_until_complete(f).unwrap()
    }

    /// Makes one turn.
    pub(crate) fn turn(&self) {
        self.event_loop.turn(Some(Duration::ZERO)).unwrap();
    }

    /// Makes so many turns that what is to come has come.
    pub(crate) fn turns(&self) {
        (0..8).for_each(|_| self.turn());
    }

    /// What has come to the other end.
    pub(crate) fn arrived(&self) -> Vec<u8> {
        let mut buffer = vec![0; 64 * 1024];
        let count = self.far.recv(&mut buffer).unwrap_or(0);
        buffer.truncate(count);
        buffer
    }

    /// Asserts what was asked of the system, and of the selector.
    #[track_caller]
    pub(crate) fn assert(&self, calls: &[&str], watches: &[&str]) {
        self.script.calls.assert(calls);
        self.watches.assert(watches);
    }
}
