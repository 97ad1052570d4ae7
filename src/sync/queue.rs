//! Queues: what one task puts, another gets.
//!
//! A queue is a store between two numbers of permits: places, which putting takes and getting
//! releases, and items, the other way round. Whoever waits is handed a permit, not an item, and has
//! what the store gives when its turn comes: so the smallest is the smallest of that moment, and a
//! getter that is dropped leaves its item where it is.
//!
//! What must always hold:
//!
//! 1. For each item in the store there is one permit: free, or handed to a getter. For each place
//!    of
//!    a bounded queue likewise.
//! 2. An item is in the hands of who puts it, in the store, or in the hands of who got it.
//! 3. No cell is borrowed while items are compared or dropped.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::panic::{self, AssertUnwindSafe, Location};
use std::pin::Pin;
use std::task::{Context as PollContext, Poll};

use super::error::{
    NoCapacity, QueueEmpty, QueueFull, QueueShutdown, TooManyDone, TryGetError, TryPutError,
};
use super::event::{Event, EventWait};
use super::permits::{Answer, Asking, Permits};
use super::store::Store;
use crate::record::On;

/// Passes items from task to task, first in, first out.
///
/// Who waits for an item or a place has it in the order in which it came. A newcomer finds nothing
/// while somebody waits.
///
/// # Examples
///
/// ```
/// use std::rc::Rc;
/// use coloop::sync::{Queue, QueueShutdown};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let orders = Rc::new(Queue::bounded(1)?);
/// let kitchen = Rc::clone(&orders);
/// let cook = event_loop.create_task(async move {
///     let mut cooked = Vec::new();
///     while let Ok(dish) = kitchen.get().await {
///         cooked.push(dish);
///     }
///     cooked
/// });
/// event_loop.run_until_complete(async move {
///     for dish in ["soup", "rice", "tea"] {
///         orders.put(dish).await?; // waits while the kitchen is behind
///     }
///     orders.shutdown();
///     assert_eq!(orders.put("more").await, Err(QueueShutdown("more")));
///     Ok::<(), QueueShutdown<&str>>(())
/// })?.unwrap();
/// assert_eq!(event_loop.run_until_complete(cook)?.unwrap(), ["soup", "rice", "tea"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Coming from asyncio
///
/// `Queue()` is [`new`](Self::new), `Queue(maxsize)` is [`bounded`](Self::bounded), `put_nowait`
/// and `get_nowait` are [`try_put`](Self::try_put) and [`try_get`](Self::try_get).
pub struct Queue<T> {
    store: Store<T>,
    capacity: Option<usize>,
    len: Cell<usize>,
    places: Permits,
    items: Permits,
    /// It has been shut down and emptied.
    emptied: Cell<bool>,
    unfinished: Cell<usize>,
    /// Is set while nothing is unfinished.
    finished: Event,
}

impl<T> Queue<T> {
    /// Makes a queue without a limit.
    pub fn new() -> Self {
        Self::with(Store::first_in(), None)
    }

    /// Makes a queue with room for `capacity` items.
    ///
    /// # Errors
    ///
    /// [`NoCapacity`] for none.
    #[doc(alias = "maxsize")]
    pub fn bounded(capacity: usize) -> Result<Self, NoCapacity> {
        Ok(Self::with(Store::first_in(), some(capacity)?))
    }

    fn with(store: Store<T>, capacity: Option<usize>) -> Self {
        let finished = Event::new();
        finished.set();
        Self {
            store,
            capacity,
            len: Cell::new(0),
            places: Permits::new(capacity.unwrap_or(0)),
            items: Permits::new(0),
            emptied: Cell::new(false),
            unfinished: Cell::new(0),
            finished,
        }
    }

    /// Waits for a place and puts `item` there.
    ///
    /// # Errors
    ///
    /// [`QueueShutdown`], with the item, if the queue has been shut down or is meanwhile.
    ///
    /// # Cancellation
    ///
    /// Until it is complete the future owns the item, and the queue has nothing of it. Dropping the
    /// future drops the item; [`Put::into_item`] gives it back instead. A place that was handed
    /// over in that moment goes to the next.
    #[track_caller]
    pub fn put(&self, item: T) -> Put<'_, T> {
        Put {
            queue: self,
            item: Some(item),
            asking: self.places.ask(On::Queue, Location::caller()),
        }
    }

    /// Waits for an item and takes it.
    ///
    /// # Errors
    ///
    /// [`QueueShutdown`] once the queue has been shut down and nothing is left.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves every item in the queue. One that was meant for it goes to the
    /// next who waits.
    #[track_caller]
    pub fn get(&self) -> Get<'_, T> {
        Get {
            queue: self,
            asking: self.items.ask(On::Queue, Location::caller()),
            held: false,
        }
    }

    /// Puts `item` if there is a place.
    ///
    /// # Errors
    ///
    /// The item comes back if the queue is full, if others wait for the place that there is, and if
    /// the queue has been shut down.
    #[doc(alias = "put_nowait")]
    pub fn try_put(&self, item: T) -> Result<(), TryPutError<T>> {
        if self.is_shut_down() {
            return Err(TryPutError::Shutdown(QueueShutdown(item)));
        }
        if self.capacity.is_some() && !self.places.try_take() {
            return Err(TryPutError::Full(QueueFull(item)));
        }
        self.store(item);
        Ok(())
    }

    /// Takes an item if there is one.
    ///
    /// # Errors
    ///
    /// [`QueueEmpty`] if there is none, or if all that there are go to those who wait already;
    /// [`QueueShutdown`] if there will be none.
    #[doc(alias = "get_nowait")]
    pub fn try_get(&self) -> Result<T, TryGetError> {
        if self.items.try_take() {
            if let Some(item) = self.unstore() {
                return Ok(item);
            }
            self.items.release();
        }
        if self.emptied.get() || self.is_shut_down() && self.is_empty() {
            return Err(TryGetError::Shutdown(QueueShutdown(())));
        }
        Err(TryGetError::Empty(QueueEmpty))
    }

    /// Returns how many items are in the queue.
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Tells whether no item is in the queue.
    #[doc(alias = "empty")]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells whether there are as many items as there is room for.
    #[doc(alias = "full")]
    pub fn is_full(&self) -> bool {
        self.capacity.is_some_and(|capacity| self.len() >= capacity)
    }

    /// Returns how many items there is room for; `None` without a limit.
    #[doc(alias = "maxsize")]
    pub fn capacity(&self) -> Option<usize> {
        self.capacity
    }

    /// Says that an item that was taken has been dealt with.
    ///
    /// # Errors
    ///
    /// [`TooManyDone`] if every item that was put has been dealt with already.
    pub fn task_done(&self) -> Result<(), TooManyDone> {
        if self.unfinished.get() == 0 {
            return Err(TooManyDone);
        }
        self.finish(1);
        Ok(())
    }

    /// Returns how many items were put and have not been dealt with.
    pub fn unfinished(&self) -> usize {
        self.unfinished.get()
    }

    /// Waits until every item that was put has been dealt with.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing for others.
    #[track_caller]
    pub fn join(&self) -> Join<'_> {
        Join(self.finished.wait_on(On::Queue, Location::caller()))
    }

    /// Lets nothing more in. What is in the queue can still be taken.
    ///
    /// All who wait for a place, and all who wait for an item, are told at once.
    pub fn shutdown(&self) {
        self.places.close();
        self.items.close();
    }

    /// Lets nothing more in, and empties the queue: its items come back in their order, and count
    /// as dealt with.
    ///
    /// All who wait are told at once, and so are those to whom an item had been promised.
    #[doc(alias = "shutdown(immediate=True)")]
    pub fn shutdown_now(&self) -> Vec<T> {
        self.emptied.set(true);
        self.items.take_all();
        let len = self.len.replace(0);
        self.shutdown();
        self.finish(len);
        std::iter::from_fn(|| self.store.pop()).collect()
    }

    /// Tells whether the queue has been shut down.
    pub fn is_shut_down(&self) -> bool {
        self.places.is_closed()
    }

    /// Puts an item in a place that has been taken.
    fn store(&self, item: T) {
        // Comparing is foreign code. If it panics the item is in the store all the same.
        let pushed = panic::catch_unwind(AssertUnwindSafe(|| self.store.push(item)));
        if !self.emptied.get() {
            self.len.set(self.len() + 1);
            self.unfinished.set(self.unfinished.get() + 1);
            self.finished.clear();
            self.items.release();
        }
        if let Err(payload) = pushed {
            panic::resume_unwind(payload);
        }
    }

    /// Takes the item of a permit; `None` if the queue has been emptied, and inside of a
    /// comparison.
    fn unstore(&self) -> Option<T> {
        if self.emptied.get() {
            return None;
        }
        let popped = panic::catch_unwind(AssertUnwindSafe(|| self.store.pop()));
        let gone = match &popped {
            Ok(item) => item.is_some(),
            Err(_) => self.store.len() < self.len(),
        };
        if gone && !self.emptied.get() {
            self.len.set(self.len() - 1);
            if self.capacity.is_some() {
                self.places.release();
            }
        }
        match popped {
            Ok(item) => item,
            Err(payload) => {
                if gone {
                    // It went with the panic: nobody else can say that it is done.
                    self.finish(1);
                } else {
                    self.items.release();
                }
                panic::resume_unwind(payload);
            }
        }
    }

    fn finish(&self, count: usize) {
        let left = self.unfinished.get().saturating_sub(count);
        self.unfinished.set(left);
        if left == 0 {
            self.finished.set();
        }
    }

    fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(name)
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .field("unfinished", &self.unfinished())
            .field("putting", &self.places.waiting())
            .field("getting", &self.items.waiting())
            .field("shut_down", &self.is_shut_down())
            .finish()
    }
}

/// A limit that is one.
const fn some(capacity: usize) -> Result<Option<usize>, NoCapacity> {
    match capacity {
        0 => Err(NoCapacity),
        _ => Ok(Some(capacity)),
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("Queue", f)
    }
}

/// Puts an item; made by [`Queue::put`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Put<'a, T> {
    queue: &'a Queue<T>,
    item: Option<T>,
    asking: Asking<'a>,
}

// The item is moved, never pinned.
impl<T> Unpin for Put<'_, T> {}

impl<T> Put<'_, T> {
    /// Gives the item back; `None` if it is in the queue, or came back already.
    ///
    /// # Examples
    ///
    /// A put that has a limit of time, and loses nothing:
    ///
    /// ```
    /// use std::time::Duration;
    /// use coloop::sync::Queue;
    ///
    /// let event_loop = coloop::EventLoop::new()?;
    /// let queue = Queue::bounded(1)?;
    /// queue.try_put("first")?;
    /// let mut put = queue.put("second");
    /// let waited = event_loop.run_until_complete(coloop::timeout(Duration::ZERO, &mut put))?;
    /// assert!(waited.is_err());
    /// assert_eq!(put.into_item(), Some("second"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_item(mut self) -> Option<T> {
        self.item.take()
    }
}

impl<T> Future for Put<'_, T> {
    type Output = Result<(), QueueShutdown<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let queue = this.queue;
        if this.item.is_none() {
            return Poll::Ready(Ok(()));
        }
        let mut took_place = false;
        if !queue.is_shut_down() && queue.capacity.is_some() {
            match this.asking.poll(cx) {
                Poll::Ready(answer) => took_place = answer == Answer::Yours,
                Poll::Pending => return Poll::Pending,
            }
        }
        let Some(item) = this.item.take() else {
            return Poll::Ready(Ok(()));
        };
        if queue.is_shut_down() {
            if took_place {
                queue.places.release();
            }
            return Poll::Ready(Err(QueueShutdown(item)));
        }
        queue.store(item);
        Poll::Ready(Ok(()))
    }
}

impl<T> fmt::Debug for Put<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Put")
            .field("done", &self.item.is_none())
            .finish_non_exhaustive()
    }
}

/// Takes an item; made by [`Queue::get`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Get<'a, T> {
    queue: &'a Queue<T>,
    asking: Asking<'a>,
    /// It has a permit, for an item that could not be taken yet.
    held: bool,
}

impl<T> Future for Get<'_, T> {
    type Output = Result<T, QueueShutdown>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Self::Output> {
        let queue = self.queue;
        if !self.held {
            match self.asking.poll(cx) {
                Poll::Ready(Answer::Yours) => self.held = true,
                Poll::Ready(Answer::Closed) => return Poll::Ready(Err(QueueShutdown(()))),
                Poll::Pending => return Poll::Pending,
            }
        }
        if queue.emptied.get() {
            self.held = false;
            return Poll::Ready(Err(QueueShutdown(())));
        }
        // A panic of a comparison takes the item, and the permit with it.
        self.held = false;
        match queue.unstore() {
            Some(item) => Poll::Ready(Ok(item)),
            None => {
                // Polled from inside of a comparison: the items are out, and will be back.
                self.held = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Get<'_, T> {
    fn drop(&mut self) {
        if self.held {
            self.queue.items.release();
        }
    }
}

impl<T> fmt::Debug for Get<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Get").field(self.queue).finish()
    }
}

/// Waits until all items have been dealt with; made by [`Queue::join`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct Join<'a>(EventWait<'a>);

impl Future for Join<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl fmt::Debug for Join<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Join").finish_non_exhaustive()
    }
}

/// Is a [`Queue`] that gives its smallest item first, and equal ones in the order they were put.
///
/// # Examples
///
/// ```
/// use coloop::sync::PriorityQueue;
///
/// let queue = PriorityQueue::new();
/// for item in [(2, "tea"), (1, "water"), (3, "toast")] {
///     queue.try_put(item)?;
/// }
/// assert_eq!(queue.try_get()?, (1, "water"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PriorityQueue<T>(Queue<T>);

impl<T: Ord> PriorityQueue<T> {
    /// Makes a queue without a limit.
    pub fn new() -> Self {
        Self(Queue::with(Store::smallest(), None))
    }

    /// Makes a queue with room for `capacity` items.
    ///
    /// # Errors
    ///
    /// [`NoCapacity`] for none.
    pub fn bounded(capacity: usize) -> Result<Self, NoCapacity> {
        Ok(Self(Queue::with(Store::smallest(), some(capacity)?)))
    }
}

impl<T> Deref for PriorityQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.0
    }
}

impl<T: Ord> Default for PriorityQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for PriorityQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("PriorityQueue", f)
    }
}

/// Is a [`Queue`] that gives its newest item first.
///
/// # Examples
///
/// ```
/// use coloop::sync::LifoQueue;
///
/// let plates = LifoQueue::new();
/// for plate in [1, 2, 3] {
///     plates.try_put(plate)?;
/// }
/// assert_eq!(plates.try_get()?, 3);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct LifoQueue<T>(Queue<T>);

impl<T> LifoQueue<T> {
    /// Makes a queue without a limit.
    pub fn new() -> Self {
        Self(Queue::with(Store::last_in(), None))
    }

    /// Makes a queue with room for `capacity` items.
    ///
    /// # Errors
    ///
    /// [`NoCapacity`] for none.
    pub fn bounded(capacity: usize) -> Result<Self, NoCapacity> {
        Ok(Self(Queue::with(Store::last_in(), some(capacity)?)))
    }
}

impl<T> Deref for LifoQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.0
    }
}

impl<T> Default for LifoQueue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for LifoQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("LifoQueue", f)
    }
}
