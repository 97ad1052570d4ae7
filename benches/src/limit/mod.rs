//! The bare limits: what the design costs when nothing is a library.
//!
//! This loop is the design's turn with all else left out: one line of boxed callbacks and tasks, a
//! binary heap of deadlines over a slab, a `Mutex<Vec>` with an eventfd as the letter-box, a system
//! wait whenever the line is empty and otherwise once in 64 items. No panic is caught, no callback
//! can be cancelled, no context or record is kept, no descriptor is watched. What a task is, the
//! sibling modules say; `vecdeque` has not even a loop.

pub(crate) mod async_task;
pub(crate) mod plain;
mod shelf;
pub(crate) mod vecdeque;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use self::shelf::{Alarm, Key, Shelf};
use crate::cases::{Callbacks, Later, Post};
use crate::measure::wall;

const POLL_EVERY: usize = 64;

/// A task, ready to be run once.
pub(crate) trait Work: Send + 'static {
    fn run(self);
}

enum Item<W> {
    Callback(Box<dyn FnOnce()>),
    Task(W),
}

enum Letter<W> {
    Callback(Box<dyn FnOnce() + Send>),
    Task(W),
}

/// What other threads see of a loop.
struct Letters<W> {
    waiting: Mutex<Vec<Letter<W>>>,
    any: AtomicBool,
    asleep: AtomicBool,
    bell: OwnedFd,
}

impl<W> Letters<W> {
    fn post(&self, letter: Letter<W>) {
        let mut waiting = self.waiting.lock().unwrap();
        waiting.push(letter);
        self.any.store(true, Ordering::SeqCst);
        drop(waiting);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            let one = 1_u64;
            // SAFETY: eight bytes are read from `one`, which outlives the call.
            unsafe { libc::write(self.bell.as_raw_fd(), (&raw const one).cast(), 8) };
        }
    }
}

struct Loop<W> {
    line: UnsafeCell<VecDeque<Item<W>>>,
    shelf: RefCell<Shelf>,
    letters: Arc<Letters<W>>,
    epoll: OwnedFd,
    stopped: Cell<bool>,
}

thread_local! {
    /// The letter-box (its address is the loop's name) and the loop that runs on this thread.
    static HERE: Cell<(*const (), *const ())> = const { Cell::new((ptr::null(), ptr::null())) };
}

/// Whether the loop that `letters` belongs to runs on this thread.
#[inline]
fn is_home<W>(letters: &Arc<Letters<W>>) -> bool {
    HERE.get().0 == Arc::as_ptr(letters).cast()
}

/// Puts a woken task into the line of this thread's loop, which the caller knows to be its own.
#[inline]
fn push_here<W: Work>(task: W) {
    // SAFETY: the caller saw by `is_home` that a loop of this very type runs on this thread.
    let here = unsafe { &*HERE.get().1.cast::<Loop<W>>() };
    here.push(Item::Task(task));
}

impl<W: Work> Loop<W> {
    fn new() -> Rc<Self> {
        // SAFETY: no pointer is passed; the descriptor is ours alone.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
        // SAFETY: as above.
        let bell = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, flags)) };
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET) as u32,
            u64: 0,
        };
        let (set, fd) = (epoll.as_raw_fd(), bell.as_raw_fd());
        // SAFETY: both descriptors are open and `event` outlives the call.
        let added = unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        assert_eq!(added, 0, "the eventfd was not registered");
        Rc::new(Self {
            line: UnsafeCell::default(),
            shelf: RefCell::default(),
            letters: Arc::new(Letters {
                waiting: Mutex::default(),
                any: AtomicBool::new(false),
                asleep: AtomicBool::new(false),
                bell,
            }),
            epoll,
            stopped: Cell::new(false),
        })
    }

    #[inline]
    fn push(&self, item: Item<W>) {
        // SAFETY: `Loop` is not `Sync`, and no reference into the line outlives one statement.
        unsafe { (*self.line.get()).push_back(item) };
    }

    #[inline]
    fn pop(&self) -> Option<Item<W>> {
        // SAFETY: as in `push`; the item is moved out before it runs.
        unsafe { (*self.line.get()).pop_front() }
    }

    #[inline]
    fn len(&self) -> usize {
        // SAFETY: as in `push`.
        unsafe { (*self.line.get()).len() }
    }

    fn run(&self) {
        HERE.set((
            Arc::as_ptr(&self.letters).cast(),
            ptr::from_ref(self).cast(),
        ));
        let mut letters = Vec::new();
        let mut due = Vec::new();
        let mut since_wait = POLL_EVERY;
        while !self.stopped.get() {
            let idle = self.len() == 0;
            if idle || since_wait >= POLL_EVERY {
                self.wait(idle);
                since_wait = 0;
            }
            if self.letters.any.load(Ordering::SeqCst) {
                let mut waiting = self.letters.waiting.lock().unwrap();
                self.letters.any.store(false, Ordering::SeqCst);
                mem::swap(&mut *waiting, &mut letters);
                drop(waiting);
                for letter in letters.drain(..) {
                    self.push(match letter {
                        Letter::Callback(callback) => Item::Callback(callback),
                        Letter::Task(task) => Item::Task(task),
                    });
                }
            }
            self.shelf.borrow_mut().expire(&mut due);
            for alarm in due.drain(..) {
                match alarm {
                    Alarm::Wake(waker) => waker.wake(),
                    Alarm::Call(callback) => self.push(Item::Callback(callback)),
                }
            }
            let n = self.len();
            for _ in 0..n {
                match self.pop() {
                    Some(Item::Callback(callback)) => callback(),
                    Some(Item::Task(task)) => task.run(),
                    None => break,
                }
            }
            since_wait += n;
        }
        while let Some(item) = self.pop() {
            drop(item);
        }
        let left = self.shelf.take();
        drop(left);
        HERE.set((ptr::null(), ptr::null()));
    }

    fn wait(&self, idle: bool) {
        let mut timeout = Some(Duration::ZERO);
        if idle {
            // A swap: a plain store could pass the look at `any`, and a letter would lie unread.
            self.letters.asleep.swap(true, Ordering::SeqCst);
            if !self.letters.any.load(Ordering::SeqCst) {
                let next = self.shelf.borrow().next();
                timeout = next.map(|due| Duration::from_nanos(due.saturating_sub(wall())));
            }
        }
        epoll_wait(&self.epoll, timeout);
        if idle {
            self.letters.asleep.store(false, Ordering::SeqCst);
        }
    }

    fn sleep(self: &Rc<Self>, delay: Duration) -> Sleep<W> {
        Sleep {
            due: after(delay),
            key: None,
            on: self.clone(),
        }
    }
}

/// Waits with a timeout in ns, or in whole ms where the kernel has no `epoll_pwait2`.
fn epoll_wait(epoll: &OwnedFd, timeout: Option<Duration>) {
    static COARSE: AtomicBool = AtomicBool::new(false);
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
    let (set, room) = (epoll.as_raw_fd(), events.len() as libc::c_int);
    if !COARSE.load(Ordering::Relaxed) {
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
        let (call, mask) = (libc::SYS_epoll_pwait2, ptr::null::<libc::sigset_t>());
        // SAFETY: all pointers live through the call; a null mask's size is not looked at.
        let got = unsafe { libc::syscall(call, set, events.as_mut_ptr(), room, time, mask, 8) };
        if got >= 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS) {
            return;
        }
        COARSE.store(true, Ordering::Relaxed);
    }
    let time = timeout.map_or(-1, |timeout| {
        timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as i32
    });
    // SAFETY: as above.
    unsafe { libc::epoll_wait(set, events.as_mut_ptr(), room, time) };
}

fn after(delay: Duration) -> u64 {
    wall() + delay.as_nanos() as u64
}

struct Sleep<W> {
    due: u64,
    key: Option<Key>,
    on: Rc<Loop<W>>,
}

impl<W: Work> Future for Sleep<W> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut shelf = this.on.shelf.borrow_mut();
        match this.key {
            None => {
                let alarm = Alarm::Wake(context.waker().clone());
                this.key = Some(shelf.add(this.due, alarm));
                Poll::Pending
            }
            Some(key) if shelf.holds(key) => Poll::Pending,
            Some(_) => Poll::Ready(()),
        }
    }
}

impl<W> Drop for Sleep<W> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let alarm = self.on.shelf.borrow_mut().remove(key);
            drop(alarm);
        }
    }
}

/// The handle of a limit's loop.
pub(crate) struct On<W>(Rc<Loop<W>>);

impl<W> Clone for On<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<W: Work> Callbacks for On<W> {
    fn drive(start: impl FnOnce(Self) + 'static) {
        let on = Self(Loop::new());
        start(on.clone());
        on.0.run();
    }

    #[inline]
    fn call_soon(&self, callback: impl FnOnce() + 'static) {
        self.0.push(Item::Callback(Box::new(callback)));
    }

    fn stop(&self) {
        self.0.stopped.set(true);
    }
}

impl<W: Work> Later for On<W> {
    type Timer = Key;

    fn call_later(&self, delay: Duration, callback: impl FnOnce() + 'static) -> Key {
        let alarm = Alarm::Call(Box::new(callback));
        self.0.shelf.borrow_mut().add(after(delay), alarm)
    }

    fn cancel(&self, timer: Key) {
        let alarm = self.0.shelf.borrow_mut().remove(timer);
        drop(alarm);
    }
}

/// The handle's other half, for other threads.
pub(crate) struct Poster<W>(Arc<Letters<W>>);

impl<W: Work> Post for Poster<W> {
    fn post(&self, closure: impl FnOnce() + Send + 'static) {
        self.0.post(Letter::Callback(Box::new(closure)));
    }
}
