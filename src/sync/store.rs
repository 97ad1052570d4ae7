//! What a queue keeps its items in, and in which order it gives them.
//!
//! Comparing items is foreign code, so a heap is taken out of its cell while it compares. Whoever
//! uses the queue from inside a comparison finds it empty; what it puts is merged by the next one.
//!
//! What must always hold: a comparison that panics loses no item, but for one that is being taken,
//! which the panic may take along.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// The items of a queue.
pub(super) enum Store<T> {
    FirstIn(RefCell<VecDeque<T>>),
    LastIn(RefCell<Vec<T>>),
    Smallest(Sorted<T>),
}

impl<T> Store<T> {
    pub(super) const fn first_in() -> Self {
        Self::FirstIn(RefCell::new(VecDeque::new()))
    }

    pub(super) const fn last_in() -> Self {
        Self::LastIn(RefCell::new(Vec::new()))
    }

    pub(super) fn smallest() -> Self
    where
        T: Ord,
    {
        Self::Smallest(Sorted {
            heap: Cell::new(None),
            late: RefCell::new(Vec::new()),
            last: Cell::new(0),
            new: BinaryHeap::new,
            push: BinaryHeap::push,
            pop: BinaryHeap::pop,
        })
    }

    pub(super) fn push(&self, item: T) {
        match self {
            Self::FirstIn(items) => items.borrow_mut().push_back(item),
            Self::LastIn(items) => items.borrow_mut().push(item),
            Self::Smallest(items) => items.push(item),
        }
    }

    pub(super) fn pop(&self) -> Option<T> {
        match self {
            Self::FirstIn(items) => items.borrow_mut().pop_front(),
            Self::LastIn(items) => items.borrow_mut().pop(),
            Self::Smallest(items) => items.pop(),
        }
    }

    /// How many items there are, but for those that are out to be compared.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::FirstIn(items) => items.borrow().len(),
            Self::LastIn(items) => items.borrow().len(),
            Self::Smallest(items) => items.len(),
        }
    }
}

/// Items that come out smallest first, and equal ones in the order in which they were put.
pub(super) struct Sorted<T> {
    /// `None` while it is out.
    heap: Cell<Option<Heap<T>>>,
    /// What has been put and not been compared.
    late: RefCell<Vec<Entry<T>>>,
    last: Cell<u64>,
    // What needs `T: Ord`, which only those who make a queue of this kind have to show.
    new: fn() -> Heap<T>,
    push: fn(&mut Heap<T>, Entry<T>),
    pop: fn(&mut Heap<T>) -> Option<Entry<T>>,
}

type Heap<T> = BinaryHeap<Entry<T>>;

pub(super) struct Entry<T> {
    item: T,
    number: u64,
}

impl<T> Sorted<T> {
    fn push(&self, item: T) {
        let number = self.last.get() + 1;
        self.last.set(number);
        self.late.borrow_mut().push(Entry { item, number });
        drop(self.take_out());
    }

    fn pop(&self) -> Option<T> {
        let mut out = self.take_out();
        (self.pop)(&mut out.heap).map(|entry| entry.item)
    }

    fn len(&self) -> usize {
        let heap = self.heap.take();
        let len = heap.as_ref().map_or(0, BinaryHeap::len);
        self.heap.set(heap);
        len + self.late.borrow().len()
    }

    /// Takes the heap out, and merges what has come since.
    fn take_out(&self) -> Out<'_, T> {
        let mut out = Out {
            sorted: self,
            heap: self.heap.take().unwrap_or_else(self.new),
        };
        loop {
            let late = self.late.borrow_mut().pop();
            let Some(late) = late else { return out };
            (self.push)(&mut out.heap, late);
        }
    }
}

/// A heap that is out of its cell, until it is dropped.
struct Out<'a, T> {
    sorted: &'a Sorted<T>,
    heap: Heap<T>,
}

impl<T> Drop for Out<'_, T> {
    fn drop(&mut self) {
        let heap = std::mem::replace(&mut self.heap, (self.sorted.new)());
        let meanwhile = self.sorted.heap.replace(Some(heap));
        let meanwhile = meanwhile.map(BinaryHeap::into_vec).unwrap_or_default();
        self.sorted.late.borrow_mut().extend(meanwhile);
    }
}

// The other way round, since a heap gives its greatest.
impl<T: Ord> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_item = other.item.cmp(&self.item);
        by_item.then_with(|| other.number.cmp(&self.number))
    }
}

impl<T: Ord> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Ord> Eq for Entry<T> {}
