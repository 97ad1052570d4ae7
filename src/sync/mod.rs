//! Locks, events, conditions, semaphores, barriers and queues for tasks of one thread.
//!
//! asyncio's, with the same names. None of them belongs to a loop: each can be made anywhere, and
//! used by the tasks of every loop of its thread. Share one by an `Rc`. What a task waits for here
//! is among its [`waits`](crate::TaskRef::waits).
//!
//! What always holds:
//!
//! 1. **First come, first served.** What becomes free is handed to whoever has waited longest, in
//!    that
//!    moment. A newcomer never overtakes one who waits.
//! 2. **Dropping loses nothing.** Every future here can be dropped at every await. What it was just
//!    handed goes to the next.
//! 3. Setting, releasing and putting run nobody's code: who goes on has its turn in the line.
//!
//! Whoever is handed something has its place in the line at once, where asyncio's wake a task that
//! looks again. Nothing here is an atomic, and nothing can leave its thread:
//!
//! ```compile_fail,E0277
//! fn send<T: Send>(_: T) {}
//! let lock = coloop::sync::Lock::new();
//! send(lock.acquire());
//! ```
//!
//! ```compile_fail,E0277
//! fn share<T: Sync>(_: T) {}
//! share(coloop::sync::Queue::<u32>::new());
//! ```
//!
//! # Across threads
//!
//! Futures of other crates can be awaited in tasks: `async-lock` has mutexes, semaphores and
//! barriers for several threads, `event-listener` events, `async-channel` channels. To reach a loop
//! from another thread, [`RemoteHandle`](crate::RemoteHandle) is enough.

mod barrier;
mod condition;
mod error;
mod event;
mod lock;
mod permits;
mod queue;
mod semaphore;
mod store;
mod waiters;

pub use self::barrier::{Barrier, BarrierWait};
pub use self::condition::{Condition, ConditionWait};
pub use self::error::{
    AboveBound, BrokenBarrier, NoCapacity, NoParties, QueueEmpty, QueueFull, QueueShutdown,
    TooManyDone, TryGetError, TryPutError,
};
pub use self::event::{Event, EventWait};
pub use self::lock::{Acquire, Lock, LockGuard};
pub use self::queue::{Get, Join, LifoQueue, PriorityQueue, Put, Queue};
pub use self::semaphore::{AcquirePermit, BoundedSemaphore, Permit, Semaphore};
