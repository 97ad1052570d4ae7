//! The coloop half of the twin test: runs a program and returns its trace. `twin.py` mirrors it
//! line by line.
//!
//! A line of the trace is `time task var what`: the loop's clock in ticks, the current task, the
//! context variable, and what happened.
//!
//! Where coloop differs from asyncio on purpose, the programs stay clear of the difference:
//!
//! * Timers of one deadline run in creation order here and in any order there:
//!   [`World::deadline`] never gives one out twice.
//! * `Task::cancel` here drops the body and leaves alone what it awaited; there it cancels the
//!   awaited promise too, and every other waiter of that. [`World::cancel_task`] cancels the
//!   promise itself, first. A task that awaits a *task* is not cancelled at all: there its end
//!   waits for the end of the other one. For the same reason a task that has cancelled itself
//!   does not go on to await anything pending.
//! * A sleeping task joins the line itself when its deadline is due; there a timer settles a
//!   future, which queues the task for the turn after. `twin.py` has a sleep of its own.
//! * A `Task` has one awaiter or one done-callback here, and any number there: it is taken once.
//! * `Handle::cancel` on a callback that has run changes nothing here and marks it cancelled
//!   there: `peek` says "ran".
//! * `RemoteHandle::call_soon` runs its callback in an empty context, since contexts stay in their
//!   thread; `call_soon_threadsafe` copies the caller's unless it is given one.
//! * `run_until_complete` polls in place here, by an item of the line that is the last at first;
//!   there it makes a coroutine a task, and waits by a done-callback that asks for a stop. So
//!   programs give it promises and tasks only, and empty the line first: else one that the first
//!   turn settles ends the run in that turn here, and in the next one there. And a program has
//!   either such runs or stops: a stop in the turn in which the promise was settled leaves the
//!   done-callback in the line there, and it ends the next run.
//! * With nothing left to do, asyncio would sleep for good: a guard timer far away stops the run.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::panic;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coloop::testing::Clock;
use coloop::{
    Cancelled, Context, ContextVar, DoneHandle, EventLoop, Handle, JoinError, LoopHandle, Promise,
    RemoteCall, Resolver, RunError, Task, TaskRef, TimerHandle,
};

use crate::program::{Op, Program, Run};

/// In ticks; far behind every deadline of a segment.
const GUARD: u64 = 50_000;

static VAR: ContextVar<u64> = ContextVar::new("var");

thread_local! {
    /// For what must be `Send` and yet reach the world of this thread.
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// Runs a program on a loop of its own.
pub(crate) fn trace(program: &Program) -> Vec<String> {
    Context::new().run(|| {
        let clock = Clock::new();
        let event_loop = EventLoop::builder()
            .poll_every(1)
            .debug(false)
            .clock(clock.clone())
            .build()
            .expect("a loop can be made");
        let world = Rc::new(World {
            handle: event_loop.handle(),
            epoch: event_loop.time(),
            clock,
            // Nothing may depend on how long a tick is (on rounding to milliseconds, say).
            tick: Duration::from_nanos(
                [1, 1_000, 1_000_000, 999_999_999][(program.seed % 4) as usize],
            ),
            program: program.clone(),
            trace: RefCell::default(),
            handles: RefCell::default(),
            promises: RefCell::default(),
            dones: RefCell::default(),
            tasks: RefCell::default(),
            deadlines: RefCell::default(),
        });
        WORLD.set(Some(world.clone()));
        event_loop.set_exception_handler({
            let world = world.clone();
            move |_, _| world.log_aside("report")
        });
        for &(body, run) in &program.segments {
            world.clone().run(&event_loop, body, run);
        }
        let trace = world.trace.take();
        WORLD.set(None);
        trace
    })
}

/// What a handle of any kind is asked for.
enum AnyHandle {
    Soon(Handle),
    Post(RemoteCall),
    Timer(TimerHandle),
}

impl AnyHandle {
    fn cancel(&self) -> bool {
        match self {
            Self::Soon(handle) => handle.cancel(),
            Self::Post(handle) => handle.cancel(),
            Self::Timer(handle) => handle.cancel(),
        }
    }

    fn is_cancelled(&self) -> bool {
        match self {
            Self::Soon(handle) => handle.is_cancelled(),
            Self::Post(handle) => handle.is_cancelled(),
            Self::Timer(handle) => handle.is_cancelled(),
        }
    }

    fn when(&self) -> Option<Instant> {
        match self {
            Self::Timer(handle) => Some(handle.when()),
            _ => None,
        }
    }
}

struct HandleEntry {
    handle: Option<Rc<AnyHandle>>,
    /// It has begun to run.
    ran: bool,
}

struct PromiseEntry {
    promise: Promise<u64>,
    resolver: Option<Resolver<u64>>,
}

struct TaskEntry {
    task: Option<Task<u64>>,
    task_ref: TaskRef,
    /// What it is suspended on, when that is a promise or a task.
    awaits: Option<Awaited>,
    /// Its cancellation was requested.
    asked: bool,
}

#[derive(Clone, Copy)]
enum Awaited {
    Promise(usize),
    Task(usize),
}

/// Says when a task that had begun is dropped; asyncio throws an error into it then.
struct Unfinished<'a> {
    world: &'a World,
    task: Option<usize>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.world.log_aside(&format!("t{task} dropped"));
        }
    }
}

struct World {
    handle: LoopHandle,
    clock: Rc<Clock>,
    epoch: Instant,
    tick: Duration,
    program: Program,
    trace: RefCell<Vec<String>>,
    handles: RefCell<Vec<HandleEntry>>,
    promises: RefCell<Vec<PromiseEntry>>,
    dones: RefCell<Vec<Rc<DoneHandle>>>,
    tasks: RefCell<Vec<TaskEntry>>,
    deadlines: RefCell<HashSet<u64>>,
}

impl World {
    fn log(&self, what: &str) {
        let current = self.handle.current_task();
        let me = current.and_then(|me| self.tasks.borrow().iter().position(|it| it.task_ref == me));
        let me = me.map_or_else(|| "-".to_owned(), |me| format!("t{me}"));
        let var = VAR
            .get()
            .map_or_else(|| "-".to_owned(), |var| var.to_string());
        let line = format!("{} {me} {var} {what}", self.now());
        self.trace.borrow_mut().push(line);
    }

    /// For what the loop does between two pieces of user code: it has no task and no variable.
    fn log_aside(&self, what: &str) {
        let line = format!("{} {what}", self.now());
        self.trace.borrow_mut().push(line);
    }

    fn now(&self) -> u64 {
        self.ticks(self.handle.time())
    }

    fn ticks(&self, at: Instant) -> u64 {
        let past = at.duration_since(self.epoch).as_nanos();
        assert_eq!(past % self.tick.as_nanos(), 0, "a whole number of ticks");
        (past / self.tick.as_nanos()) as u64
    }

    fn span(&self, ticks: u64) -> Duration {
        self.tick * u32::try_from(ticks).expect("programs are short")
    }

    /// A deadline that no other timer of the program has: the first free one.
    fn deadline(&self, mut ticks: u64) -> u64 {
        while !self.deadlines.borrow_mut().insert(ticks) {
            ticks += 1;
        }
        ticks
    }

    fn run(self: Rc<Self>, event_loop: &EventLoop, body: usize, run: Run) {
        self.clone().run_body(body);
        let when = self.epoch + self.span(self.deadline(self.now() + GUARD));
        let world = self.clone();
        let guard = self.handle.call_at(when, move || {
            world.log("guard");
            world.handle.stop();
        });
        match run {
            Run::Forever => {
                event_loop.run_forever().expect("runs");
                self.log("returned");
            }
            Run::UntilPromise(k) => {
                self.drain(event_loop);
                self.run_until_promise(event_loop, k);
            }
            Run::UntilTask(k) => {
                self.drain(event_loop);
                self.run_until_task(event_loop, k);
            }
        }
        guard.cancel();
    }

    /// Makes turns until the line is empty.
    fn drain(&self, event_loop: &EventLoop) {
        let mut turns = 0;
        while !event_loop.is_idle() {
            event_loop.stop();
            event_loop.run_forever().expect("runs");
            turns += 1;
        }
        self.log(&format!("drained {turns}"));
    }

    fn run_until_promise(&self, event_loop: &EventLoop, k: u64) {
        let Some(i) = pick(self.promises.borrow().len(), k) else {
            return self.log("until none");
        };
        let promise = self.promises.borrow()[i].promise.clone();
        let state = pending(promise.is_done());
        let outcome = match event_loop.run_until_complete(promise) {
            Ok(result) => format!("{state} {}", said(result)),
            Err(RunError::Stopped) => "stopped".to_owned(),
            Err(error) => panic!("the run failed: {error}"),
        };
        self.log(&format!("until p{i} {outcome}"));
    }

    fn run_until_task(&self, event_loop: &EventLoop, k: u64) {
        let Some(i) = pick(self.tasks.borrow().len(), k) else {
            return self.log("until none");
        };
        let task = self.tasks.borrow_mut()[i].task.take();
        let Some(mut task) = task else {
            return self.log(&format!("until t{i} taken"));
        };
        let state = pending(task.is_finished());
        let outcome = match event_loop.run_until_complete(&mut task) {
            Ok(result) => format!("{state} {}", joined(result)),
            Err(RunError::Stopped) => {
                self.tasks.borrow_mut()[i].task = Some(task);
                "stopped".to_owned()
            }
            Err(error) => panic!("the run failed: {error}"),
        };
        self.log(&format!("until t{i} {outcome}"));
    }

    fn run_body(self: Rc<Self>, body: usize) {
        self.log(&format!("b{body}"));
        for op in &self.program.bodies[body] {
            self.clone().op(op);
        }
    }

    async fn run_task(self: Rc<Self>, me: usize, body: usize) -> u64 {
        self.log(&format!("b{body}"));
        let mut unfinished = Unfinished {
            world: &self,
            task: Some(me),
        };
        for op in &self.program.bodies[body] {
            match *op {
                Op::Yield => {
                    coloop::yield_now().await;
                    self.log("yielded");
                }
                Op::Sleep(ticks) => {
                    let now = self.now();
                    coloop::sleep(self.span(self.deadline(now + ticks) - now)).await;
                    self.log("slept");
                }
                Op::Await(k) => self.await_promise(me, k).await,
                Op::AwaitTask(k) => self.await_task(me, k).await,
                Op::CancelMe => {
                    self.tasks.borrow_mut()[me].asked = true;
                    let task = self.tasks.borrow()[me].task_ref.clone();
                    self.log(&format!("cancelme {}", task.cancel()));
                }
                ref op => self.clone().op(op),
            }
        }
        unfinished.task = None;
        self.log(&format!("t{me} ends"));
        me as u64
    }

    fn op(self: Rc<Self>, op: &Op) {
        match *op {
            Op::Soon(body) => {
                let call = self.clone().callback(body);
                self.made("soon", AnyHandle::Soon(self.handle.call_soon(call)));
            }
            Op::Post(body) => self.post(body),
            Op::Later(ticks, body) => {
                let now = self.now();
                let delay = self.span(self.deadline(now + ticks) - now);
                let call = self.clone().callback(body);
                self.made(
                    "later",
                    AnyHandle::Timer(self.handle.call_later(delay, call)),
                );
            }
            Op::At(ticks, body) => {
                let now = self.now();
                let when = self.deadline(now.saturating_add_signed(ticks));
                let call = self.clone().callback(body);
                let handle = self.handle.call_at(self.epoch + self.span(when), call);
                let what = if when <= now { "at past" } else { "at future" };
                self.made(what, AnyHandle::Timer(handle));
            }
            Op::Cancel(k) => self.cancel(k),
            Op::Peek(k) => self.peek(k),
            Op::Promise => {
                let (resolver, promise) = self.handle.create_future();
                self.promises.borrow_mut().push(PromiseEntry {
                    promise,
                    resolver: Some(resolver),
                });
                self.log(&format!("promise p{}", self.promises.borrow().len() - 1));
            }
            Op::Settle(k, value) => self.settle(k, value),
            Op::CancelPromise(k) => match self.promise(k) {
                None => self.log("pcancel none"),
                Some((i, promise)) => self.log(&format!("pcancel p{i} {}", promise.cancel())),
            },
            Op::DropResolver(k) => self.drop_resolver(k),
            Op::Look(k) => self.look(k),
            Op::OnDone(k, body) => self.on_done(k, body),
            Op::Remove(k) => self.remove(k),
            Op::Task(body) => {
                let me = self.tasks.borrow().len();
                let task = self.handle.create_task(self.clone().run_task(me, body));
                let task_ref = task.to_ref();
                let entry = TaskEntry {
                    task: Some(task),
                    task_ref,
                    awaits: None,
                    asked: false,
                };
                self.tasks.borrow_mut().push(entry);
                self.log(&format!("task t{me}"));
            }
            Op::CancelTask(k) => self.cancel_task(k),
            Op::LookTask(k) => match pick(self.tasks.borrow().len(), k) {
                None => self.log("tlook none"),
                Some(i) => {
                    let done = self.tasks.borrow()[i].task_ref.is_finished();
                    self.log(&format!("tlook t{i} {}", pending(done)));
                }
            },
            Op::TaskOnDone(k, body) => self.task_on_done(k, body),
            Op::Work(ticks) => {
                self.clock.advance(self.span(ticks));
                self.log("work");
            }
            Op::Set(value) => {
                VAR.set(value);
                self.log("set");
            }
            Op::Stop => {
                let inside = if self.handle.is_running() {
                    "inside"
                } else {
                    "outside"
                };
                self.log(&format!("stop {inside}"));
                self.handle.stop();
            }
            Op::Panic => {
                self.log("panic");
                // Unlike `panic!`, this says nothing on stderr.
                panic::resume_unwind(Box::new("boom"));
            }
            Op::Yield | Op::Sleep(_) | Op::Await(_) | Op::AwaitTask(_) | Op::CancelMe => {
                unreachable!("only tasks have steps")
            }
        }
    }

    /// Gives the next handle its number; [`World::made`] must follow.
    fn callback(self: Rc<Self>, body: usize) -> impl FnOnce() + 'static {
        let number = self.handles.borrow().len();
        self.handles.borrow_mut().push(HandleEntry {
            handle: None,
            ran: false,
        });
        move || {
            self.handles.borrow_mut()[number].ran = true;
            self.run_body(body);
        }
    }

    fn made(&self, what: &str, handle: AnyHandle) {
        let when = handle
            .when()
            .map_or(String::new(), |when| format!(" {}", self.ticks(when)));
        let number = self.handles.borrow().len() - 1;
        self.handles.borrow_mut()[number].handle = Some(Rc::new(handle));
        self.log(&format!("{what} h{number}{when}"));
    }

    fn post(&self, body: usize) {
        let number = self.handles.borrow().len();
        self.handles.borrow_mut().push(HandleEntry {
            handle: None,
            ran: false,
        });
        let call = move || {
            let world = WORLD.with_borrow(|world| world.clone().expect("the program is running"));
            world.handles.borrow_mut()[number].ran = true;
            world.run_body(body);
        };
        let handle = self
            .handle
            .remote()
            .call_soon(call)
            .expect("the loop is open");
        self.made("post", AnyHandle::Post(handle));
    }

    fn handle(&self, k: u64) -> Option<(usize, Rc<AnyHandle>, bool)> {
        let handles = self.handles.borrow();
        let i = pick(handles.len(), k)?;
        let handle = handles[i].handle.clone().expect("it was made");
        Some((i, handle, handles[i].ran))
    }

    fn cancel(&self, k: u64) {
        match self.handle(k) {
            None => self.log("cancel none"),
            Some((i, handle, _)) => self.log(&format!("cancel h{i} {}", handle.cancel())),
        }
    }

    fn peek(&self, k: u64) {
        let Some((i, handle, ran)) = self.handle(k) else {
            return self.log("peek none");
        };
        let state = match (ran, handle.is_cancelled()) {
            (true, _) => "ran",
            (false, true) => "cancelled",
            (false, false) => "live",
        };
        let when = handle
            .when()
            .map_or(String::new(), |when| format!(" {}", self.ticks(when)));
        self.log(&format!("peek h{i} {state}{when}"));
    }

    fn promise(&self, k: u64) -> Option<(usize, Promise<u64>)> {
        let promises = self.promises.borrow();
        let i = pick(promises.len(), k)?;
        Some((i, promises[i].promise.clone()))
    }

    fn settle(&self, k: u64, value: u64) {
        let Some(i) = pick(self.promises.borrow().len(), k) else {
            return self.log("settle none");
        };
        let resolver = self.promises.borrow_mut()[i].resolver.take();
        let fresh = resolver.is_some_and(|resolver| resolver.settle(value).is_ok());
        self.log(&format!("settle p{i} {fresh}"));
    }

    fn drop_resolver(&self, k: u64) {
        let Some(i) = pick(self.promises.borrow().len(), k) else {
            return self.log("pdrop none");
        };
        let resolver = self.promises.borrow_mut()[i].resolver.take();
        drop(resolver);
        self.log(&format!("pdrop p{i}"));
    }

    fn look(&self, k: u64) {
        let Some((i, promise)) = self.promise(k) else {
            return self.log("look none");
        };
        let state = match (promise.is_cancelled(), promise.is_done()) {
            (true, _) => "cancelled",
            (false, true) => "settled",
            (false, false) => "pending",
        };
        self.log(&format!("look p{i} {state}"));
    }

    fn on_done(self: Rc<Self>, k: u64, body: usize) {
        let Some((i, promise)) = self.promise(k) else {
            return self.log("ondone none");
        };
        let number = self.dones.borrow().len();
        self.log(&format!("ondone p{i} {}", pending(promise.is_done())));
        let world = self.clone();
        let done = promise.on_done(move |result| {
            world.log(&format!("d{number} p{i} {}", said(result)));
            world.run_body(body);
        });
        self.dones.borrow_mut().push(Rc::new(done));
    }

    fn remove(&self, k: u64) {
        let Some(i) = pick(self.dones.borrow().len(), k) else {
            return self.log("undone none");
        };
        let done = self.dones.borrow()[i].clone();
        self.log(&format!("undone d{i} {}", done.remove()));
    }

    async fn await_promise(&self, me: usize, k: u64) {
        let Some((j, promise)) = self.promise(k) else {
            return self.log("awaitp none");
        };
        if self.tasks.borrow()[me].asked && !promise.is_done() {
            return self.log(&format!("awaitp p{j} skipped"));
        }
        self.log(&format!("awaitp p{j} {}", pending(promise.is_done())));
        let result = self.suspended(me, Awaited::Promise(j), promise).await;
        self.log(&format!("awaitp p{j} {}", said(result)));
    }

    async fn await_task(&self, me: usize, k: u64) {
        let j = pick(self.tasks.borrow().len(), k).expect("this task is one");
        let taken = self.tasks.borrow()[j].task.is_none();
        if taken || j == me {
            return self.log(&format!(
                "awaitt t{j} {}",
                if j == me { "self" } else { "taken" }
            ));
        }
        let done = self.tasks.borrow()[j].task_ref.is_finished();
        if self.tasks.borrow()[me].asked && !done {
            return self.log(&format!("awaitt t{j} skipped"));
        }
        let task = self.tasks.borrow_mut()[j].task.take().expect("it is there");
        self.log(&format!("awaitt t{j} {}", pending(done)));
        let result = self.suspended(me, Awaited::Task(j), task).await;
        self.log(&format!("awaitt t{j} {}", joined(result)));
    }

    async fn suspended<F: Future>(&self, me: usize, on: Awaited, future: F) -> F::Output {
        self.tasks.borrow_mut()[me].awaits = Some(on);
        let output = future.await;
        self.tasks.borrow_mut()[me].awaits = None;
        output
    }

    fn cancel_task(&self, k: u64) {
        let Some(i) = pick(self.tasks.borrow().len(), k) else {
            return self.log("tcancel none");
        };
        let task = self.tasks.borrow()[i].task_ref.clone();
        if !task.is_finished() {
            let awaits = self.tasks.borrow()[i].awaits;
            match awaits {
                Some(Awaited::Task(j)) if !self.tasks.borrow()[j].task_ref.is_finished() => {
                    return self.log(&format!("tcancel t{i} skipped"));
                }
                Some(Awaited::Promise(j)) => {
                    let promise = self.promises.borrow()[j].promise.clone();
                    promise.cancel();
                }
                _ => {}
            }
            self.tasks.borrow_mut()[i].asked = true;
        }
        self.log(&format!("tcancel t{i} {}", task.cancel()));
    }

    fn task_on_done(self: Rc<Self>, k: u64, body: usize) {
        let Some(i) = pick(self.tasks.borrow().len(), k) else {
            return self.log("tdone none");
        };
        let task = self.tasks.borrow_mut()[i].task.take();
        let Some(task) = task else {
            return self.log(&format!("tdone t{i} taken"));
        };
        self.log(&format!("tdone t{i} {}", pending(task.is_finished())));
        task.on_done(move |result| {
            self.log(&format!("done t{i} {}", joined(result)));
            self.run_body(body);
        });
    }
}

/// The k-th from the end, counted round.
fn pick(length: usize, k: u64) -> Option<usize> {
    (length > 0).then(|| length - 1 - (k % length as u64) as usize)
}

fn pending(done: bool) -> &'static str {
    if done { "done" } else { "pending" }
}

fn said(result: Result<u64, Cancelled>) -> String {
    result.map_or_else(|_| "cancelled".to_owned(), |value| value.to_string())
}

fn joined(result: Result<u64, JoinError>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(error) if error.is_cancelled() => "cancelled".to_owned(),
        Err(error) => panic!("no task panics: {error}"),
    }
}
