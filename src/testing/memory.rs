//! Sources that exist only in memory: a selector that serves them, and a pair of byte streams.
//!
//! The streams behave as non-blocking sockets do and need no descriptor. They belong to one thread,
//! so nothing has to be woken when they change: the next wait sees it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, IoSlice};
use std::net::Shutdown;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::address::Address;
use crate::core::LoopHandle;
use crate::doorbell::Bell;
use crate::selector::{Interest, Readiness, Selector, SimId, Source};
use crate::socket::{ByteStream, Watchable};

/// Serves in-memory sources, and leaves descriptors to the selector it wraps.
pub struct Memory {
    inner: Rc<dyn Selector>,
    sims: RefCell<BTreeMap<SimId, Sim>>,
    last: Cell<u64>,
}

#[derive(Default)]
struct Sim {
    /// The key and the interest with which it is watched.
    watched: Option<(usize, Interest)>,
    ready: Interest,
}

impl Memory {
    /// Wraps a selector.
    pub fn over(inner: Rc<dyn Selector>) -> Rc<Self> {
        Rc::new(Self {
            inner,
            sims: RefCell::default(),
            last: Cell::new(0),
        })
    }

    /// Makes two ends of a connection that holds up to `capacity` bytes in each direction.
    ///
    /// # Examples
    ///
    /// ```
    /// use coloop::{ByteStream, EventLoop, default_selector, testing::Memory};
    ///
    /// let memory = Memory::over(default_selector()?);
    /// let event_loop = EventLoop::builder().selector(memory.clone()).build()?;
    /// let (near, far) = memory.stream_pair(4);
    /// let far = event_loop.watch(far)?;
    /// event_loop.call_soon(move || assert_eq!(near.send(b"hello").unwrap(), 4));
    /// let mut buffer = [0; 16];
    /// let count = event_loop
    ///     .run_until_complete(far.read_with(|far| far.recv(&mut buffer)))??;
    /// assert_eq!(&buffer[..count], b"hell");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn stream_pair(self: &Rc<Self>, capacity: usize) -> (MemoryStream, MemoryStream) {
        let pipe = || {
            Rc::new(RefCell::new(Pipe {
                bytes: VecDeque::new(),
                capacity,
                ended: false,
                deaf: false,
            }))
        };
        let (there, back) = (pipe(), pipe());
        let (near, far) = (self.register(), self.register());
        let end = |id, peer, out: &Rc<RefCell<Pipe>>, into: &Rc<RefCell<Pipe>>| MemoryStream {
            memory: Rc::clone(self),
            id,
            peer,
            out: Rc::clone(out),
            into: Rc::clone(into),
        };
        let pair = (end(near, far, &there, &back), end(far, near, &back, &there));
        pair.0.tell();
        pair
    }

    fn register(&self) -> SimId {
        let id = SimId(self.last.get() + 1);
        self.last.set(id.0);
        self.sims.borrow_mut().insert(id, Sim::default());
        id
    }

    fn set_ready(&self, id: SimId, ready: Interest) {
        if let Some(sim) = self.sims.borrow_mut().get_mut(&id) {
            sim.ready = ready;
        }
    }

    fn report(&self, ready: &mut Vec<Readiness>) {
        for sim in self.sims.borrow().values() {
            let Some((key, interest)) = sim.watched else {
                continue;
            };
            let readable = interest.readable && sim.ready.readable;
            let writable = interest.writable && sim.ready.writable;
            if readable || writable {
                ready.push(Readiness {
                    key,
                    readable,
                    writable,
                });
            }
        }
    }
}

impl Selector for Memory {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        let Source::Sim(id) = source else {
            return self.inner.add(key, source, interest);
        };
        match self.sims.borrow_mut().get_mut(&id) {
            Some(sim) => {
                sim.watched = Some((key, interest));
                Ok(())
            }
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the in-memory source belongs to another selector",
            )),
        }
    }

    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        let mut sims = self.sims.borrow_mut();
        let known = sims.values_mut().filter_map(|sim| sim.watched.as_mut());
        match known.into_iter().find(|watched| watched.0 == key) {
            Some(watched) => {
                watched.1 = interest;
                Ok(())
            }
            None => {
                drop(sims);
                self.inner.modify(key, interest)
            }
        }
    }

    fn delete(&self, key: usize) -> Option<Source> {
        let mut sims = self.sims.borrow_mut();
        let known = sims
            .iter_mut()
            .find(|(_, sim)| sim.watched.is_some_and(|(k, _)| k == key));
        if let Some((id, sim)) = known {
            sim.watched = None;
            return Some(Source::Sim(*id));
        }
        drop(sims);
        self.inner.delete(key)
    }

    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        let mut in_memory = Vec::new();
        self.report(&mut in_memory);
        let timeout = if in_memory.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        self.inner.wait(ready, timeout)?;
        ready.append(&mut in_memory);
        Ok(())
    }

    fn bell(&self) -> Arc<dyn Bell> {
        self.inner.bell()
    }

    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.descriptor()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("sources", &self.sims.borrow().len())
            .finish_non_exhaustive()
    }
}

/// Makes two ends of an in-memory connection for a loop that has a [`Memory`] selector.
///
/// # Errors
///
/// [`Unsupported`](io::ErrorKind::Unsupported) if the loop has another selector.
pub fn stream_pair(
    handle: &LoopHandle,
    capacity: usize,
) -> io::Result<(MemoryStream, MemoryStream)> {
    match handle.0.extension::<Memory>() {
        Some(memory) => Ok(memory.stream_pair(capacity)),
        None => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the loop has no memory selector: make it by `testing::run_virtual`",
        )),
    }
}

/// One end of a connection that exists only in memory.
///
/// It behaves as a non-blocking stream socket does: partial writes when there is little room, an
/// orderly end after [`shutdown`](ByteStream::shutdown) or drop, a broken pipe when the peer has
/// gone.
pub struct MemoryStream {
    memory: Rc<Memory>,
    id: SimId,
    peer: SimId,
    out: Rc<RefCell<Pipe>>,
    into: Rc<RefCell<Pipe>>,
}

struct Pipe {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// The writer will write no more.
    ended: bool,
    /// The reader will read no more.
    deaf: bool,
}

impl MemoryStream {
    /// Tells the selector what both ends are ready for.
    fn tell(&self) {
        let (out, into) = (self.out.borrow(), self.into.borrow());
        let readiness = |into: &Pipe, out: &Pipe| Interest {
            readable: !into.bytes.is_empty() || into.ended || into.deaf,
            writable: out.bytes.len() < out.capacity || out.deaf || out.ended,
        };
        self.memory.set_ready(self.id, readiness(&into, &out));
        self.memory.set_ready(self.peer, readiness(&out, &into));
    }
}

impl Watchable for MemoryStream {
    fn source(&self) -> Source {
        Source::Sim(self.id)
    }
}

impl ByteStream for MemoryStream {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = {
            let mut pipe = self.into.borrow_mut();
            if pipe.bytes.is_empty() && !pipe.ended && !pipe.deaf && !buffer.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = pipe.bytes.len().min(buffer.len());
            for (place, byte) in buffer.iter_mut().zip(pipe.bytes.drain(..count)) {
                *place = byte;
            }
            count
        };
        self.tell();
        Ok(count)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let count = {
            let mut pipe = self.out.borrow_mut();
            if pipe.deaf || pipe.ended {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let room = pipe.capacity - pipe.bytes.len();
            if room == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = room.min(bytes.len());
            pipe.bytes.extend(&bytes[..count]);
            count
        };
        self.tell();
        Ok(count)
    }

    fn send_vectored(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut total = 0;
        for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
            match self.send(buffer) {
                Ok(count) if count == buffer.len() => total += count,
                Ok(count) => return Ok(total + count),
                Err(_) if total > 0 => return Ok(total),
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn local_address(&self) -> Option<Address> {
        Some(Address::Memory(self.id.0))
    }

    fn peer_address(&self) -> Option<Address> {
        Some(Address::Memory(self.peer.0))
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.out.borrow_mut().ended = true;
        }
        if how != Shutdown::Write {
            let mut pipe = self.into.borrow_mut();
            pipe.deaf = true;
            pipe.bytes.clear();
        }
        self.tell();
        Ok(())
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.out.borrow_mut().ended = true;
        self.into.borrow_mut().deaf = true;
        self.tell();
        self.memory.sims.borrow_mut().remove(&self.id);
    }
}

impl fmt::Debug for MemoryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryStream").field(&self.id.0).finish()
    }
}
