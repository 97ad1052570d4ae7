//! Watching descriptors: callbacks by `add_reader` and `add_writer`, and readiness as futures.
//!
//! A callback is called in every turn in which its descriptor is ready. It is taken out of its seat
//! for the call and put back after it, so it may remove or replace itself.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::io;
#[cfg(unix)]
use std::os::fd::{AsFd, RawFd};
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as PollContext, Poll, Waker};

use crate::core::{Core, LoopHandle};
use crate::error::{LoopClosed, drop_quietly};
use crate::key::{Direction, WatchKey};
use crate::record::On;
use crate::recurring::Recurring;
use crate::selector::source_id::SourceId;
use crate::selector::table::{Here, Wants, Watcher, in_use};
use crate::selector::{Interest, Source};
use crate::socket::Watchable;

/// Names one watch; made by [`LoopHandle::add_reader`] and [`LoopHandle::add_writer`].
///
/// It removes the watch it names and never a later one of the same descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId {
    fd: i32,
    number: u64,
}

/// Names what [`LoopHandle::remove_reader`] removes: a [`WatchId`] or a descriptor's number.
pub trait WatchTarget: sealed::Target {}

mod sealed {
    #[expect(unnameable_types, reason = "nobody else is to implement it")]
    pub trait Target {
        /// The descriptor, and the number of the one watch that is meant.
        fn resolve(&self) -> (i32, Option<u64>);
    }
}

impl WatchTarget for WatchId {}
impl sealed::Target for WatchId {
    fn resolve(&self) -> (i32, Option<u64>) {
        (self.fd, Some(self.number))
    }
}

impl WatchTarget for i32 {}
impl sealed::Target for i32 {
    fn resolve(&self) -> (i32, Option<u64>) {
        (*self, None)
    }
}

#[cfg(unix)]
impl LoopHandle {
    /// Calls `callback` in every turn in which `fd` has something to read.
    ///
    /// The loop keeps `fd` until the watch is removed: pass an `Rc` to share it. An earlier reader
    /// of the same descriptor is replaced, also one that stands in the line already. The callback
    /// runs in a copy of the current context. A hang-up and an error count as readable.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a descriptor that is always ready, such as
    /// a regular file; [`ResourceBusy`](io::ErrorKind::ResourceBusy) for one that belongs to a
    /// transport or a [`Watched`]; [`NotConnected`](io::ErrorKind::NotConnected) on a closed loop;
    /// otherwise what the system says. Nothing is changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::{io::{Read, Write}, os::unix::net::UnixStream, rc::Rc};
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let (mut near, far) = UnixStream::pair()?;
    /// let far = Rc::new(far);
    /// let (handle, socket) = (event_loop.handle(), Rc::clone(&far));
    /// event_loop.add_reader(far, move || {
    ///     let mut buffer = [0; 16];
    ///     let count = (&*socket).read(&mut buffer).unwrap();
    ///     assert_eq!(&buffer[..count], b"hello");
    ///     handle.stop();
    /// })?;
    /// near.write_all(b"hello")?;
    /// event_loop.run_forever()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn add_reader(
        &self,
        fd: impl AsFd + 'static,
        callback: impl FnMut() + 'static,
    ) -> io::Result<WatchId> {
        self.add_callback(Rc::new(fd), Direction::Read, callback, Location::caller())
    }

    /// Calls `callback` in every turn in which `fd` has room to write.
    ///
    /// # Errors
    ///
    /// As [`add_reader`](Self::add_reader).
    #[track_caller]
    pub fn add_writer(
        &self,
        fd: impl AsFd + 'static,
        callback: impl FnMut() + 'static,
    ) -> io::Result<WatchId> {
        self.add_callback(Rc::new(fd), Direction::Write, callback, Location::caller())
    }

    /// Stops watching for something to read, and says whether that was watched.
    ///
    /// The system has forgotten the descriptor when this returns, and a callback that stands in the
    /// line already is not called. On a closed loop it returns `false`.
    pub fn remove_reader(&self, target: impl WatchTarget) -> bool {
        self.remove_callback(&target, Direction::Read)
    }

    /// Stops watching for room to write, and says whether that was watched.
    pub fn remove_writer(&self, target: impl WatchTarget) -> bool {
        self.remove_callback(&target, Direction::Write)
    }

    fn add_callback(
        &self,
        fd: Rc<dyn AsFd>,
        direction: Direction,
        callback: impl FnMut() + 'static,
        place: &'static Location<'static>,
    ) -> io::Result<WatchId> {
        self.open()?;
        let watcher = Rc::new(Recurring::new(callback, place));
        let source = Source::Fd(fd);
        let id = SourceId::of(&source);
        let watched = self.0.table.watch(source, direction, watcher);
        let side = watched.map_err(|error| explained(error, id))?;
        drop_quietly(side.replaced);
        let number = side.number;
        let fd = match id {
            SourceId::Fd(fd) => fd,
            SourceId::Sim(_) => -1,
        };
        Ok(WatchId { fd, number })
    }

    fn remove_callback(&self, target: &impl WatchTarget, direction: Direction) -> bool {
        let (fd, number): (RawFd, _) = target.resolve();
        let removed = self.0.table.unwatch(SourceId::Fd(fd), direction, number);
        let was_there = removed.is_some();
        drop_quietly(removed);
        was_there
    }
}

/// Says in words why a descriptor cannot be watched.
fn explained(error: io::Error, id: SourceId) -> io::Error {
    // epoll's way to say that the descriptor has no readiness.
    const EPERM: i32 = 1;
    match id {
        SourceId::Fd(fd) if error.raw_os_error() == Some(EPERM) => always_ready(fd),
        _ => error,
    }
}

fn always_ready(fd: i32) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "descriptor {fd} cannot be watched: it is a regular file, a directory or the like, \
             which is always ready; read it in a thread"
        ),
    )
}

impl<F: FnMut()> Watcher for Recurring<F> {
    fn ready(self: Rc<Self>, _: Direction, here: &Here) -> Wants {
        here.set(Some(Watcher::place(&*self)));
        self.call();
        Wants::More
    }

    fn place(&self) -> &'static Location<'static> {
        self.place
    }
}

/// Tells a task when a source is ready; made by [`LoopHandle::watch`].
///
/// The source belongs to it: nobody else may watch the same descriptor. Dropping it stops watching.
///
/// # Examples
///
/// ```
/// use std::{io::{Read, Write}, os::unix::net::UnixStream, rc::Rc};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let (mut near, far) = UnixStream::pair()?;
/// far.set_nonblocking(true)?;
/// let far = event_loop.watch(Rc::new(far))?;
/// near.write_all(b"hello")?;
/// let mut buffer = [0; 16];
/// let count = event_loop.run_until_complete(async {
///     far.read_with(|mut socket| (&mut &**socket).read(&mut buffer)).await
/// })??;
/// assert_eq!(&buffer[..count], b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Watched<S> {
    io: S,
    core: Rc<Core>,
    key: WatchKey,
    id: SourceId,
    sides: Rc<Sides>,
}

/// Who waits for which direction.
struct Sides {
    place: &'static Location<'static>,
    read: Side,
    write: Side,
}

/// Who waits for one direction.
#[derive(Default)]
struct Side {
    /// How often the source has been ready.
    times: Cell<u64>,
    waiting: RefCell<Vec<(u64, Waker)>>,
    last: Cell<u64>,
}

impl Sides {
    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }
}

impl Watcher for Sides {
    fn ready(self: Rc<Self>, direction: Direction, here: &Here) -> Wants {
        here.set(Some(self.place));
        let side = self.side(direction);
        let waiting = side.waiting.take();
        if waiting.is_empty() {
            // Ready, and nobody cares: told again in every turn, that would be a spin.
            return Wants::Pause;
        }
        side.times.set(side.times.get() + 1);
        // Each is told, also when the waker of an earlier one panics; that goes to the loop.
        let mut panicked = None;
        for (_, waker) in waiting {
            if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                panicked = Some(payload);
            }
        }
        if let Some(payload) = panicked {
            panic::resume_unwind(payload);
        }
        Wants::More
    }

    fn place(&self) -> &'static Location<'static> {
        self.place
    }

    /// Whoever waits, in a task of another loop of this thread, is told that this one is closed.
    fn let_go(&self) {
        for side in [&self.read, &self.write] {
            for (_, waker) in side.waiting.take() {
                if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| waker.wake())) {
                    drop_quietly(payload);
                }
            }
        }
    }
}

impl LoopHandle {
    /// Watches a source for tasks that await its readiness.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a descriptor in blocking mode and for one
    /// that is always ready, such as a regular file; [`ResourceBusy`](io::ErrorKind::ResourceBusy)
    /// for one that is watched already; [`NotConnected`](io::ErrorKind::NotConnected) on a closed
    /// loop. Nothing is changed then.
    #[track_caller]
    pub fn watch<S: Watchable>(&self, io: S) -> io::Result<Watched<S>> {
        self.open()?;
        let source = io.source();
        let id = SourceId::of(&source);
        let probe = refuse_unfit(&source, id)?;
        let table = &self.0.table;
        if table.is_watched(id) {
            return Err(in_use(id));
        }
        let sides = Rc::new(Sides {
            place: Location::caller(),
            read: Side::default(),
            write: Side::default(),
        });
        // Nothing is asked of the system until somebody waits, except of a device: some of them
        // cannot be watched, and only the system knows which.
        let on = Interest {
            readable: probe,
            writable: false,
        };
        let watched = table.watch_object(source, on, Rc::<Sides>::clone(&sides));
        let watched = Watched {
            io,
            core: Rc::clone(&self.0),
            key: watched.map_err(|error| explained(error, id))?,
            id,
            sides,
        };
        table.set_on(watched.key, Direction::Read, false)?;
        Ok(watched)
    }
}

/// Refuses what cannot be awaited, and says whether the system has to be asked as well.
fn refuse_unfit(source: &Source, id: SourceId) -> io::Result<bool> {
    #[cfg(unix)]
    if let (Source::Fd(fd), SourceId::Fd(number)) = (source, id) {
        use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};

        let kind = FileType::from_raw_mode(fstat(fd.as_fd())?.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Err(always_ready(number));
        }
        // A read that blocks would stop the whole loop.
        if !fcntl_getfl(fd.as_fd())?.contains(OFlags::NONBLOCK) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "descriptor {number} is in blocking mode: call `set_nonblocking(true)` first"
                ),
            ));
        }
        return Ok(matches!(
            kind,
            FileType::CharacterDevice | FileType::BlockDevice
        ));
    }
    let _ = (source, id);
    Ok(false)
}

impl<S> Watched<S> {
    /// Returns the source.
    pub fn get_ref(&self) -> &S {
        &self.io
    }

    /// Resolves when there is something to read.
    ///
    /// It may resolve although there is nothing any more: try, and wait again. Several may wait.
    #[track_caller]
    pub fn readable(&self) -> Readable<'_, S> {
        self.wait(Direction::Read, Location::caller())
    }

    /// Resolves when there is room to write.
    #[track_caller]
    pub fn writable(&self) -> Readable<'_, S> {
        self.wait(Direction::Write, Location::caller())
    }

    fn wait(&self, direction: Direction, place: &'static Location<'static>) -> Readable<'_, S> {
        Readable {
            watched: self,
            direction,
            place,
            waiting: None,
        }
    }

    /// Tries to read until it does not block.
    ///
    /// # Errors
    ///
    /// What `read` returns other than [`WouldBlock`](io::ErrorKind::WouldBlock) and
    /// [`Interrupted`](io::ErrorKind::Interrupted); [`NotConnected`](io::ErrorKind::NotConnected)
    /// when the loop is closed.
    ///
    /// # Cancellation
    ///
    /// Dropping it loses nothing: a `read` that has done something has also returned.
    pub async fn read_with<R>(&self, read: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.attempt(Direction::Read, read).await
    }

    /// Tries to write until it does not block.
    ///
    /// # Errors
    ///
    /// As [`read_with`](Self::read_with).
    pub async fn write_with<R>(&self, write: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.attempt(Direction::Write, write).await
    }

    async fn attempt<R>(
        &self,
        direction: Direction,
        mut f: impl FnMut(&S) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match f(&self.io) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(direction, self.sides.place).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl<S> Drop for Watched<S> {
    fn drop(&mut self) {
        drop_quietly(self.core.table.unwatch_object(self.key));
    }
}

impl<S: fmt::Debug> fmt::Debug for Watched<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.io).finish()
    }
}

/// Resolves when a source is ready; made by [`Watched::readable`] and [`Watched::writable`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Readable<'a, S> {
    watched: &'a Watched<S>,
    direction: Direction,
    place: &'static Location<'static>,
    waiting: Option<Waiting>,
}

struct Waiting {
    number: u64,
    times: u64,
    wait: u32,
}

impl<S> Future for Readable<'_, S> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<io::Result<()>> {
        let watched = self.watched;
        let core = &watched.core;
        if core.is_closed() {
            return Poll::Ready(Err(LoopClosed.into()));
        }
        let side = watched.sides.side(self.direction);
        let waker = cx.waker().clone();
        match &self.waiting {
            Some(waiting) if waiting.times != side.times.get() => {
                self.stop_waiting();
                return Poll::Ready(Ok(()));
            }
            Some(waiting) => {
                core.records.renew_wait(waiting.wait);
                let number = waiting.number;
                let before = {
                    let mut list = side.waiting.borrow_mut();
                    let known = list.iter_mut().find(|(other, _)| *other == number);
                    known.map(|(_, before)| std::mem::replace(before, waker))
                };
                drop(before);
            }
            None => {
                let error = core.table.set_on(watched.key, self.direction, true).err();
                if let Some(error) = error {
                    return Poll::Ready(Err(explained(error, watched.id)));
                }
                let number = side.last.get() + 1;
                side.last.set(number);
                side.waiting.borrow_mut().push((number, waker));
                let fd = match watched.id {
                    SourceId::Fd(fd) => fd,
                    SourceId::Sim(_) => -1,
                };
                let on = match self.direction {
                    Direction::Read => On::Read(fd),
                    Direction::Write => On::Write(fd),
                };
                let wait = core.records.begin_wait(on, self.place, core.now());
                self.waiting = Some(Waiting {
                    number,
                    times: side.times.get(),
                    wait,
                });
            }
        }
        Poll::Pending
    }
}

impl<S> Readable<'_, S> {
    fn stop_waiting(&mut self) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        self.watched.core.records.end_wait(waiting.wait);
        let side = self.watched.sides.side(self.direction);
        let removed = {
            let mut list = side.waiting.borrow_mut();
            let at = list
                .iter()
                .position(|(number, _)| *number == waiting.number);
            at.map(|at| list.remove(at))
        };
        drop(removed);
    }
}

impl<S> Drop for Readable<'_, S> {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl<S> fmt::Debug for Readable<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readable")
            .field("direction", &self.direction)
            .finish_non_exhaustive()
    }
}
