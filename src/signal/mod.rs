//! Signals of the operating system: handlers that run as items of the line, and streams.
//!
//! A loop that catches signals has a lookout. The system's handler sets a flag for each kind of
//! signal and writes a byte into the loop's pipe; the loop watches the other end. When its watcher
//! runs, it puts one item in the line for each flag that is set.
//!
//! What must always hold:
//!
//! 1. Nothing of the program's runs in the system's handler.
//! 2. A byte alone means nothing: it may come from the child of a fork, whose flags are its own.
//! 3. A handler that was removed does not run, also if it stands in the line.
//! 4. The read end of a pipe is open for as long as a signal may write into it.
//! 5. The selector and destructors may come back here: no borrow is alive while they run.

mod number;
mod stream;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::panic::Location;
use std::rc::{Rc, Weak};

pub use self::number::{InvalidSignal, Signal};
use self::stream::Mailbox;
pub use self::stream::{NextSignal, Signals};
use crate::core::{Core, LoopHandle, Noted, Shared};
use crate::error::{RunError, drop_quietly};
use crate::key::{Direction, WatchKey};
use crate::recurring::Recurring;
use crate::selector::table::{Here, Wants, Watcher};
use crate::selector::{Interest, Source};
use crate::sys::signal::Caught;

/// Signals.
impl LoopHandle {
    /// Calls `callback` when a signal has come.
    ///
    /// The callback runs as an ordinary item of the line: it may use the loop, allocate and lock,
    /// which a handler of the system must not. It runs in a copy of the current context, the same one
    /// each time. It is called once for all signals of one kind that came since the loop last looked.
    /// An earlier handler of this loop for the same signal is replaced, also one that stands in the
    /// line already; what came for that one is told to the new one. If the callback panics, the
    /// exception handler is told and the callback stays.
    ///
    /// Every loop of the process that has a handler or a [stream](Self::signals) for a signal is told
    /// of it. As long as one has, nothing else happens on that signal, except that a handler which
    /// other code had installed before the process first caught the signal is called too. When the
    /// last one is removed or its loop is closed, the signal does again what it did before the first.
    ///
    /// # Errors
    ///
    /// [`InvalidSignal`] in an error of kind [`InvalidInput`](io::ErrorKind::InvalidInput) for what no
    /// loop can catch; [`NotConnected`](io::ErrorKind::NotConnected) on a closed loop; otherwise what
    /// the system says. Nothing is changed then.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::Signal;
    /// use signal_hook::low_level::raise;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let handle = event_loop.handle();
    /// event_loop.add_signal_handler(Signal::TERM, move || handle.stop())?;
    /// raise(Signal::TERM.as_raw())?; // as `kill` does from outside
    /// event_loop.run_forever()?;
    /// assert!(event_loop.remove_signal_handler(Signal::TERM));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Coming from asyncio
    ///
    /// It works on a loop of any thread. asyncio calls a handler as often as the signal came while the
    /// loop was busy; here, as in the kernel, signals of one kind that nobody has seen yet are one.
    #[track_caller]
    pub fn add_signal_handler(
        &self,
        signal: impl Into<Signal>,
        callback: impl FnMut() + 'static,
    ) -> io::Result<()> {
        let place = Location::caller();
        let signal = signal.into().catchable()?;
        let handler: Rc<dyn Handler> = Rc::new(Recurring::new(callback, place));
        let (lookout, pipe) = self.lookout(place)?;
        lookout.catch(signal, &pipe)?;
        lookout.set_handler(signal, handler);
        Ok(())
    }

    /// Removes the handler of a signal, and says whether there was one.
    ///
    /// The handler does not run any more, also if it stands in the line already. If this was the last
    /// use of the signal in the process, the signal does again what it did before the first. On a
    /// closed loop it returns `false`.
    pub fn remove_signal_handler(&self, signal: impl Into<Signal>) -> bool {
        let signal = signal.into().as_raw();
        let known = self.0.extension::<Kept>();
        known.is_some_and(|kept| kept.0.remove_handler(signal))
    }

    /// Listens to signals as a stream, until that is dropped.
    ///
    /// Handlers of the same signals, and other streams, are told as well; the rest is as with
    /// [`add_signal_handler`](Self::add_signal_handler). Signals that come twice before they are
    /// taken out of the stream are in it once, so it stays small however long nobody looks.
    ///
    /// # Errors
    ///
    /// As [`add_signal_handler`](Self::add_signal_handler); none of the signals is listened to then.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::Signal;
    /// use signal_hook::low_level::raise;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let mut signals = event_loop.signals([Signal::INT, Signal::TERM])?;
    /// raise(Signal::TERM.as_raw())?;
    /// raise(Signal::INT.as_raw())?;
    /// let first = event_loop.run_until_complete(signals.recv())?;
    /// // What came since the loop last looked is ordered by number.
    /// assert_eq!(first, Some(Signal::INT));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[track_caller]
    pub fn signals(
        &self,
        signals: impl IntoIterator<Item = impl Into<Signal>>,
    ) -> io::Result<Signals> {
        let place = Location::caller();
        // The iterator is foreign: it is done before anything is begun.
        let signals = signals.into_iter().map(|signal| signal.into().catchable());
        let mut signals: Vec<i32> = signals.collect::<Result<_, _>>()?;
        signals.sort_unstable();
        signals.dedup();
        let (lookout, pipe) = self.lookout(place)?;
        let mailbox = lookout.listen(signals, &pipe)?;
        Ok(Signals::new(&self.0, lookout, mailbox, place))
    }

    /// The loop's lookout and its pipe, made where there is none.
    fn lookout(&self, place: &'static Location<'static>) -> io::Result<(Rc<Lookout>, Rc<Pipe>)> {
        self.open()?;
        if self.0.table.selector().is_none() {
            return Err(RunError::Forked.into());
        }
        let kept = self.0.extension::<Kept>().unwrap_or_else(|| {
            let kept = Rc::new(Kept(Rc::new(Lookout {
                core: Rc::downgrade(&self.0),
                kinds: RefCell::default(),
                mailboxes: RefCell::default(),
                pipe: RefCell::default(),
            })));
            self.0.extend(Rc::clone(&kept));
            kept
        });
        let lookout = Rc::clone(&kept.0);
        let pipe = lookout.pipe(place)?;
        // The selector has been called, and may be the program's: it may have closed the loop.
        self.open()?;
        Ok((lookout, pipe))
    }
}

/// A callback in its seat.
trait Handler {
    fn call(&self);
    fn place(&self) -> &'static Location<'static>;
}

impl<F: FnMut()> Handler for Recurring<F> {
    fn call(&self) {
        self.call();
    }

    fn place(&self) -> &'static Location<'static> {
        self.place
    }
}

/// The lookout of a loop that is open; dropped when the loop is closed.
struct Kept(Rc<Lookout>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a loop has to do with signals.
struct Lookout {
    core: Weak<Core>,
    /// The signals that are caught, by number.
    kinds: RefCell<BTreeMap<i32, Kind>>,
    /// Those of the streams, in the order in which they were made.
    mailboxes: RefCell<Vec<Rc<Mailbox>>>,
    /// It belongs to the kinds: a loop that catches nothing has none.
    pipe: RefCell<Weak<Pipe>>,
}

/// One signal that is caught. It lets go of the signal first, and of the pipe after that.
struct Kind {
    caught: Caught,
    _pipe: Rc<Pipe>,
    /// Items in the line share it: whoever takes the handler's place takes theirs.
    handler: Option<Rc<Shared<dyn Handler>>>,
    streams: usize,
}

impl Kind {
    fn is_idle(&self) -> bool {
        self.handler.is_none() && self.streams == 0
    }
}

/// Where the system's handler writes to; dropping it ends the watch of the other end.
struct Pipe {
    core: Weak<Core>,
    writer: UnixStream,
    /// Closed last: whoever writes into a pipe that nobody reads from is sent a signal.
    _reader: Rc<UnixStream>,
    key: WatchKey,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            drop_quietly(core.table.unwatch_object(self.key));
        }
    }
}

/// The loop's end of the pipe.
struct Ear {
    reader: Rc<UnixStream>,
    lookout: Weak<Lookout>,
    place: &'static Location<'static>,
}

impl Watcher for Ear {
    fn ready(self: Rc<Self>, _: Direction, _: &Here) -> Wants {
        // Emptied before the flags are read, so that no signal comes between unnoticed. What does
        // not fit is reported again: who sends without end does not keep the loop here.
        let _ = (&*self.reader).read(&mut [0; 1024]);
        if let Some(lookout) = self.lookout.upgrade() {
            lookout.tell();
        }
        Wants::More
    }

    fn place(&self) -> &'static Location<'static> {
        self.place
    }

    /// A signal may come, or never: a virtual clock that waited for one would stand still for ever.
    fn is_outside(&self) -> bool {
        false
    }
}

impl Lookout {
    /// The pipe, which is watched.
    fn pipe(self: &Rc<Self>, place: &'static Location<'static>) -> io::Result<Rc<Pipe>> {
        let known = self.pipe.borrow().upgrade();
        if let Some(pipe) = known {
            return Ok(pipe);
        }
        let Some(core) = self.core.upgrade() else {
            return Err(RunError::Closed.into());
        };
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        let reader = Rc::new(reader);
        let ear = Rc::new(Ear {
            reader: Rc::clone(&reader),
            lookout: Rc::downgrade(self),
            place,
        });
        let on = Interest {
            readable: true,
            writable: false,
        };
        let source = Source::Fd(Rc::<UnixStream>::clone(&reader));
        let key = core.table.watch_object(source, on, ear)?;
        let pipe = Rc::new(Pipe {
            core: Weak::clone(&self.core),
            writer,
            _reader: reader,
            key,
        });
        // A selector that came back here meanwhile has made one too; each serves who had it.
        *self.pipe.borrow_mut() = Rc::downgrade(&pipe);
        Ok(pipe)
    }

    /// Catches a signal, unless the loop does so already.
    fn catch(&self, signal: i32, pipe: &Rc<Pipe>) -> io::Result<()> {
        if let Entry::Vacant(kind) = self.kinds.borrow_mut().entry(signal) {
            kind.insert(Kind {
                caught: Caught::new(signal, &pipe.writer)?,
                _pipe: Rc::clone(pipe),
                handler: None,
                streams: 0,
            });
        }
        Ok(())
    }

    fn set_handler(&self, signal: i32, handler: Rc<dyn Handler>) {
        let shared = {
            let mut kinds = self.kinds.borrow_mut();
            let kind = kinds.get_mut(&signal);
            kind.map(|kind| Rc::clone(kind.handler.get_or_insert_with(|| Rc::new(Shared::new()))))
        };
        if let Some(shared) = shared {
            shared.set(Some(handler));
        }
    }

    fn remove_handler(&self, signal: i32) -> bool {
        let (handler, kind) = {
            let mut kinds = self.kinds.borrow_mut();
            let kind = kinds.get_mut(&signal);
            let Some((handler, idle)) = kind.and_then(|kind| {
                let handler = kind.handler.take()?;
                Some((handler, kind.is_idle()))
            }) else {
                return false;
            };
            (handler, idle.then(|| kinds.remove(&signal)))
        };
        drop_quietly(kind);
        handler.set(None);
        true
    }

    /// Listens to some signals, or to none of them.
    fn listen(&self, signals: Vec<i32>, pipe: &Rc<Pipe>) -> io::Result<Rc<Mailbox>> {
        for (at, signal) in signals.iter().enumerate() {
            if let Err(error) = self.catch(*signal, pipe) {
                self.end_streams(&signals[..at]);
                return Err(error);
            }
            if let Some(kind) = self.kinds.borrow_mut().get_mut(signal) {
                kind.streams += 1;
            }
        }
        let mailbox = Rc::new(Mailbox::new(signals));
        self.mailboxes.borrow_mut().push(Rc::clone(&mailbox));
        Ok(mailbox)
    }

    fn stop_listening(&self, mailbox: &Rc<Mailbox>) {
        let was_there = {
            let mut mailboxes = self.mailboxes.borrow_mut();
            let before = mailboxes.len();
            mailboxes.retain(|other| !Rc::ptr_eq(other, mailbox));
            mailboxes.len() < before
        };
        if was_there {
            self.end_streams(mailbox.signals());
        }
    }

    fn end_streams(&self, signals: &[i32]) {
        let mut idle = Vec::new();
        for signal in signals {
            let mut kinds = self.kinds.borrow_mut();
            if let Some(kind) = kinds.get_mut(signal) {
                kind.streams -= 1;
                if kind.is_idle() {
                    idle.extend(kinds.remove(signal));
                }
            }
        }
        idle.into_iter().for_each(drop_quietly);
    }

    /// Puts an item in the line for each signal that came, and tells the streams.
    fn tell(&self) {
        let Some(core) = self.core.upgrade() else {
            return;
        };
        let came: Vec<_> = {
            let kinds = self.kinds.borrow();
            let came = kinds.iter().filter(|(_, kind)| kind.caught.take());
            came.map(|(signal, kind)| (*signal, kind.handler.clone()))
                .collect()
        };
        for (signal, shared) in came {
            if let Some(shared) = shared
                && let Some(handler) = shared.get()
            {
                let heart = Rc::clone(&core);
                let item = move || {
                    // Whoever sits there now, if anybody does.
                    if let Some(handler) = shared.get() {
                        let place = handler.place();
                        heart.note_item(Noted { place, task: None });
                        handler.call();
                    }
                };
                core.queue(Box::new(item), handler.place());
            }
            let mailboxes = self.mailboxes.borrow().clone();
            for mailbox in mailboxes {
                if let Some(waker) = mailbox.put(signal) {
                    core.wake(waker);
                }
            }
        }
    }

    /// Lets go of all signals; what comes from now on is not the loop's business any more.
    fn close(&self) {
        let kinds = self.kinds.take();
        let mailboxes = self.mailboxes.take();
        let mut handlers = Vec::new();
        for (_, mut kind) in kinds {
            handlers.extend(kind.handler.take());
            drop_quietly(kind);
        }
        for handler in handlers {
            handler.set(None);
        }
        let Some(core) = self.core.upgrade() else {
            return;
        };
        for mailbox in mailboxes {
            if let Some(waker) = mailbox.take_waiter() {
                core.wake(waker);
            }
        }
    }
}
