//! Random programs for the twin test, and the line format in which CPython reads them.
//!
//! A program is a tree of *bodies* (what one piece of user code does: a callback, a timer, a
//! done-callback, a task) and a list of *segments* (a body run outside the loop, then a run of
//! the loop). Handles, promises and tasks are named by `k`, "the k-th from the end, counted
//! round", so that every program makes sense whatever happened before, and so that the shrinker
//! may delete operations freely.
//!
//! ```text
//! P 17                          program, with its seed
//! B 0: promise; task 1; later 5 2
//! B 1: awaitp 0; yield
//! B 2: settle 0 7; stop
//! S 0 forever                   run body 0, then `run_forever`
//! E
//! ```
//!
//! What coloop does differently from asyncio on purpose is not generated, or evened out by the
//! interpreters; the list is at the head of `on_coloop.rs`.

use std::fmt;

/// One operation. `k` picks an entry of a table, `usize` is a body, other `u64` are ticks or
/// values.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Soon(usize),
    /// `RemoteHandle::call_soon` on the loop's own thread; `call_soon_threadsafe`.
    Post(usize),
    Later(u64, usize),
    /// Relative to now, and possibly past: tables of absolute times would soon all be in the
    /// past.
    At(i64, usize),
    Cancel(u64),
    Peek(u64),
    Promise,
    Settle(u64, u64),
    CancelPromise(u64),
    DropResolver(u64),
    Look(u64),
    OnDone(u64, usize),
    Remove(u64),
    Task(usize),
    CancelTask(u64),
    CancelMe,
    LookTask(u64),
    TaskOnDone(u64, usize),
    /// Time passes while user code runs.
    Work(u64),
    /// Sets the context variable that every line of the trace shows.
    Set(u64),
    Stop,
    /// The rest of a callback is lost to a panic, which the exception handler sees.
    Panic,
    Yield,
    Sleep(u64),
    Await(u64),
    AwaitTask(u64),
}

impl Op {
    /// What it schedules, if that is a plain callback.
    fn callback(&self) -> Option<usize> {
        match *self {
            Self::Soon(body) | Self::Post(body) | Self::Later(_, body) | Self::At(_, body) => {
                Some(body)
            }
            _ => None,
        }
    }

    fn body_mut(&mut self) -> Option<&mut usize> {
        match self {
            Self::Soon(body)
            | Self::Post(body)
            | Self::Later(_, body)
            | Self::At(_, body)
            | Self::OnDone(_, body)
            | Self::Task(body)
            | Self::TaskOnDone(_, body) => Some(body),
            _ => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soon(body) => write!(f, "soon {body}"),
            Self::Post(body) => write!(f, "post {body}"),
            Self::Later(ticks, body) => write!(f, "later {ticks} {body}"),
            Self::At(ticks, body) => write!(f, "at {ticks} {body}"),
            Self::Cancel(k) => write!(f, "cancel {k}"),
            Self::Peek(k) => write!(f, "peek {k}"),
            Self::Promise => write!(f, "promise"),
            Self::Settle(k, value) => write!(f, "settle {k} {value}"),
            Self::CancelPromise(k) => write!(f, "pcancel {k}"),
            Self::DropResolver(k) => write!(f, "pdrop {k}"),
            Self::Look(k) => write!(f, "look {k}"),
            Self::OnDone(k, body) => write!(f, "ondone {k} {body}"),
            Self::Remove(k) => write!(f, "undone {k}"),
            Self::Task(body) => write!(f, "task {body}"),
            Self::CancelTask(k) => write!(f, "tcancel {k}"),
            Self::CancelMe => write!(f, "cancelme"),
            Self::LookTask(k) => write!(f, "tlook {k}"),
            Self::TaskOnDone(k, body) => write!(f, "tdone {k} {body}"),
            Self::Work(ticks) => write!(f, "work {ticks}"),
            Self::Set(value) => write!(f, "set {value}"),
            Self::Stop => write!(f, "stop"),
            Self::Panic => write!(f, "panic"),
            Self::Yield => write!(f, "yield"),
            Self::Sleep(ticks) => write!(f, "sleep {ticks}"),
            Self::Await(k) => write!(f, "awaitp {k}"),
            Self::AwaitTask(k) => write!(f, "awaitt {k}"),
        }
    }
}

/// How a segment runs the loop. A guard timer, far away, stops a run that has nothing left to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    Forever,
    UntilPromise(u64),
    UntilTask(u64),
}

/// A program; `bodies[0]` is not special, the segments name theirs.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) seed: u64,
    pub(crate) bodies: Vec<Vec<Op>>,
    pub(crate) segments: Vec<(usize, Run)>,
}

impl Program {
    /// The program of a seed: always the same one.
    pub(crate) fn generate(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let shelf = random.below(25) == 0;
        let maker = Maker {
            budget: random.between(15, 150),
            // Either stops or runs that a promise ends: on_coloop.rs says why.
            stops: random.below(2) == 0,
            bodies: Vec::new(),
            random,
        };
        maker.program(seed, shelf)
    }

    pub(crate) fn len(&self) -> usize {
        self.bodies.iter().map(Vec::len).sum()
    }

    /// Every program that is this one with one operation or one segment less, or with what a
    /// callback does done in its place.
    pub(crate) fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for segment in 0..self.segments.len() {
            let mut less = self.clone();
            less.segments.remove(segment);
            all.push(less);
        }
        for (body, ops) in self.bodies.iter().enumerate() {
            for (at, op) in ops.iter().enumerate() {
                let mut less = self.clone();
                less.bodies[body].remove(at);
                all.push(less);
                if let Some(child) = op.callback()
                    && !self.bodies[child].iter().any(|op| matches!(op, Op::Panic))
                {
                    let mut less = self.clone();
                    let moved = std::mem::take(&mut less.bodies[child]);
                    less.bodies[body].splice(at..=at, moved);
                    all.push(less);
                }
            }
        }
        for less in &mut all {
            less.compact();
        }
        all
    }

    /// Drops the bodies that nothing names any more and numbers the others anew.
    fn compact(&mut self) {
        let mut renamed = vec![None; self.bodies.len()];
        for (body, _) in &self.segments {
            renamed[*body] = Some(0);
        }
        // A body's children have greater numbers than itself.
        for body in 0..self.bodies.len() {
            if renamed[body].is_some() {
                for op in &mut self.bodies[body] {
                    if let Some(child) = op.body_mut() {
                        renamed[*child] = Some(0);
                    }
                }
            }
        }
        let mut kept = Vec::new();
        for (body, ops) in self.bodies.drain(..).enumerate() {
            if renamed[body].is_some() {
                renamed[body] = Some(kept.len());
                kept.push(ops);
            }
        }
        self.bodies = kept;
        let bodies = self.bodies.iter_mut().flatten().filter_map(Op::body_mut);
        for body in bodies.chain(self.segments.iter_mut().map(|(body, _)| body)) {
            *body = renamed[*body].expect("what is named was kept");
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "P {}", self.seed)?;
        for (body, ops) in self.bodies.iter().enumerate() {
            let ops: Vec<String> = ops.iter().map(Op::to_string).collect();
            writeln!(f, "B {body}: {}", ops.join("; "))?;
        }
        for (body, run) in &self.segments {
            match run {
                Run::Forever => writeln!(f, "S {body} forever")?,
                Run::UntilPromise(k) => writeln!(f, "S {body} until p {k}")?,
                Run::UntilTask(k) => writeln!(f, "S {body} until t {k}")?,
            }
        }
        writeln!(f, "E")
    }
}

/// The kind of user code a body is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Outside,
    Callback,
    Task,
}

struct Maker {
    random: SplitMix,
    /// How many operations are still to be given out.
    budget: u64,
    stops: bool,
    bodies: Vec<Vec<Op>>,
}

impl Maker {
    fn program(mut self, seed: u64, shelf: bool) -> Program {
        let mut segments = Vec::new();
        let segments_at_most = if self.stops { 4 } else { 7 };
        for nth in 0..self.random.between(1, segments_at_most) {
            let body = self.body(Place::Outside, 0);
            if shelf && nth == 0 {
                self.fill_the_shelf(body);
            }
            let run = match self.random.below(5) {
                0 | 1 if !self.stops => Run::UntilPromise(self.few()),
                2 | 3 if !self.stops => Run::UntilTask(self.few()),
                _ => Run::Forever,
            };
            self.prepare(body, run);
            segments.push((body, run));
        }
        Program {
            seed,
            bodies: self.bodies,
            segments,
        }
    }

    /// Sees to it that a run often waits for its end, and gets it.
    fn prepare(&mut self, body: usize, run: Run) {
        let end = match run {
            Run::UntilPromise(k) => match self.random.below(5) {
                0 => Op::CancelPromise(k),
                1 | 2 => Op::Settle(k, self.random.below(1_000)),
                _ => return,
            },
            Run::UntilTask(k) if self.random.below(5) < 3 => {
                let sleep = Op::Sleep(self.random.between(1, 20));
                let child = self.add(vec![Op::Yield, sleep]);
                self.bodies[body].push(Op::Task(child));
                match self.random.below(5) {
                    0 | 1 => Op::CancelTask(k),
                    _ => return,
                }
            }
            _ => return,
        };
        let child = self.add(vec![end]);
        let later = Op::Later(self.random.between(1, 25), child);
        self.bodies[body].push(later);
    }

    /// Enough timers, and enough of them cancelled, that asyncio sweeps its heap.
    fn fill_the_shelf(&mut self, body: usize) {
        let timers = self.random.between(110, 220);
        for _ in 0..timers {
            let child = self.add(Vec::new());
            let later = Op::Later(self.random.below(3_000), child);
            self.bodies[body].push(later);
        }
        for _ in 0..self.random.below(2 * timers) {
            let cancel = Op::Cancel(self.random.below(timers));
            self.bodies[body].push(cancel);
        }
    }

    fn add(&mut self, ops: Vec<Op>) -> usize {
        self.bodies.push(ops);
        self.bodies.len() - 1
    }

    fn body(&mut self, place: Place, depth: u32) -> usize {
        let number = self.add(Vec::new());
        let length = match place {
            Place::Outside => self.random.between(4, 12),
            Place::Callback => self.random.between(0, 4),
            Place::Task => self.random.between(1, 7),
        };
        let mut ops = Vec::new();
        if place == Place::Outside {
            ops.extend((0..self.random.between(1, 3)).map(|_| Op::Promise));
        }
        for _ in 0..length {
            if self.budget == 0 || depth == 6 {
                break;
            }
            self.budget -= 1;
            ops.push(self.op(place, depth));
            if matches!(ops.last(), Some(Op::Panic)) {
                break;
            }
        }
        self.bodies[number] = ops;
        number
    }

    fn op(&mut self, place: Place, depth: u32) -> Op {
        if place == Place::Task && self.random.below(100) < 45 {
            return match self.random.below(12) {
                0..=2 => Op::Yield,
                3 | 4 => Op::Sleep(self.random.between(1, 20)),
                5..=8 => Op::Await(self.few()),
                9 | 10 => Op::AwaitTask(self.few()),
                _ => Op::CancelMe,
            };
        }
        if place == Place::Outside && self.random.below(100) < 20 {
            return Op::Task(self.body(Place::Task, depth + 1));
        }
        let child = Place::Callback;
        match self.random.below(100) {
            0..=13 => Op::Soon(self.body(child, depth + 1)),
            14..=17 => Op::Post(self.body(child, depth + 1)),
            18..=26 => Op::Later(self.random.below(25), self.body(child, depth + 1)),
            27..=32 => Op::At(
                self.random.below(40) as i64 - 10,
                self.body(child, depth + 1),
            ),
            33..=40 => Op::Cancel(self.few()),
            41..=43 => Op::Peek(self.few()),
            44..=47 => Op::Promise,
            48..=54 => Op::Settle(self.few(), self.random.below(1_000)),
            55..=56 => Op::CancelPromise(self.few()),
            57 => Op::DropResolver(self.few()),
            58 => Op::Look(self.few()),
            59..=65 => Op::OnDone(self.few(), self.body(child, depth + 1)),
            66..=67 => Op::Remove(self.few()),
            68..=78 => Op::Task(self.body(Place::Task, depth + 1)),
            79..=82 => Op::CancelTask(self.few()),
            83 => Op::LookTask(self.few()),
            84..=86 => Op::TaskOnDone(self.few(), self.body(child, depth + 1)),
            87..=92 => Op::Work(self.random.between(1, 15)),
            93..=95 => Op::Set(self.random.below(1_000)),
            96..=98 if self.stops => Op::Stop,
            99 if place == Place::Callback => Op::Panic,
            _ => Op::Look(self.few()),
        }
    }

    /// Mostly small: what was made last is what is talked about.
    fn few(&mut self) -> u64 {
        let limit = self.random.between(1, 7);
        self.random.below(limit)
    }
}

/// The generator of Steele, Lea and Flood; sixty-four bits of state are enough here.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// From `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
}
