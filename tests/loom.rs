//! The doorbell between the loop and other threads, in every interleaving.
//!
//! Includes `src/doorbell.rs` alone, with loom's atomics, and plays the two sides of a letter-box
//! around it. A lost wake is a loop that waits for ever: loom sees that nobody can go on and panics
//! with "deadlock". Runs with `RUSTFLAGS='--cfg coloop_loom' cargo test --release --test loom`.
//!
//! The letters are one flag each, set with release and read with acquire: the weakest box that hands
//! a letter over. A box behind a mutex would order the threads by itself and hide what the doorbell
//! must do; the two doorbells at the end, which lose wakes, show that this model sees it.
#![cfg(coloop_loom)]

use std::sync::Arc;

use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

#[path = "../src/doorbell.rs"]
#[expect(unreachable_pub, reason = "the crate exports `Bell`")]
mod doorbell;

use doorbell::{Bell, Doorbell};

/// What the loop and its posters say to each other.
trait Handshake: Send + Sync + 'static {
    fn new() -> Self;
    fn sleep(&self);
    fn wake(&self);
    fn must_ring(&self) -> bool;
}

impl Handshake for Doorbell {
    fn new() -> Self {
        Self::new()
    }

    fn sleep(&self) {
        self.sleep();
    }

    fn wake(&self) {
        self.wake();
    }

    fn must_ring(&self) -> bool {
        self.must_ring()
    }
}

/// The selector's wait: a ring is kept until a wait has taken it, and many rings are one.
struct Selector {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Selector {
    fn wait(&self) {
        let mut rung = self.rung.lock().expect("nobody panics under this lock");
        while !*rung {
            rung = self
                .changed
                .wait(rung)
                .expect("nobody panics under this lock");
        }
        *rung = false;
    }
}

impl Bell for Selector {
    fn ring(&self) {
        *self.rung.lock().expect("nobody panics under this lock") = true;
        self.changed.notify_one();
    }
}

/// A letter-box of `N` letters with its doorbell and the selector behind it.
struct Letters<D, const N: usize> {
    posted: [AtomicBool; N],
    doorbell: D,
    selector: Selector,
}

impl<D: Handshake, const N: usize> Letters<D, N> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            posted: std::array::from_fn(|_| AtomicBool::new(false)),
            doorbell: D::new(),
            selector: Selector {
                rung: Mutex::new(false),
                changed: Condvar::new(),
            },
        })
    }

    fn post(&self, letter: usize) {
        self.posted[letter].store(true, Ordering::Release);
        if self.doorbell.must_ring() {
            self.selector.ring();
        }
    }

    /// Whether a letter lies in the box that has not been `taken`.
    fn lies(&self, letter: usize, taken: &[bool; N]) -> bool {
        !taken[letter] && self.posted[letter].load(Ordering::Acquire)
    }

    /// Turns until every letter has been taken.
    fn turn(&self) {
        let mut taken = [false; N];
        while taken.contains(&false) {
            self.doorbell.sleep();
            if !(0..N).any(|letter| self.lies(letter, &taken)) {
                self.selector.wait();
            }
            self.doorbell.wake();
            for letter in 0..N {
                if self.lies(letter, &taken) {
                    taken[letter] = true;
                }
            }
        }
    }
}

/// Explores a loop and two posters, of which the first posts `FIRST` of the `N` letters.
fn explore<D: Handshake, const N: usize>(first: usize) {
    let mut model = Builder::new();
    // Three are a second, five a minute; `LOOM_MAX_PREEMPTIONS` says otherwise.
    model.preemption_bound.get_or_insert(4);
    model.check(move || {
        let letters = Letters::<D, N>::new();
        let posters = [0..first, first..N].map(|share| {
            let letters = letters.clone();
            thread::spawn(move || share.for_each(|letter| letters.post(letter)))
        });
        letters.turn();
        for poster in posters {
            poster.join().expect("a poster does not panic");
        }
    });
}

#[test]
fn two_posters_wake_the_loop() {
    explore::<Doorbell, 2>(1);
}

#[test]
fn a_poster_that_comes_back_wakes_the_loop_again() {
    explore::<Doorbell, 3>(2);
}

#[test]
fn a_letter_before_the_first_turn_rings_and_the_next_does_not() {
    loom::model(|| {
        let doorbell = Doorbell::new();
        assert!(
            doorbell.must_ring(),
            "a loop that has not started is asleep"
        );
        assert!(!doorbell.must_ring(), "one ring a sleep");
        doorbell.sleep();
        assert!(doorbell.must_ring(), "asleep again");
        doorbell.sleep();
        doorbell.wake();
        assert!(!doorbell.must_ring(), "awake");
    });
}

/// The doorbell with a plain store in the place of one of its swaps.
struct Stores<const TO_SLEEP: bool>(AtomicBool);

impl<const TO_SLEEP: bool> Stores<TO_SLEEP> {
    fn set(&self, asleep: bool) {
        if asleep == TO_SLEEP {
            self.0.store(asleep, Ordering::SeqCst);
        } else {
            self.0.swap(asleep, Ordering::AcqRel);
        }
    }
}

impl<const TO_SLEEP: bool> Handshake for Stores<TO_SLEEP> {
    fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    fn sleep(&self) {
        self.set(true);
    }

    fn wake(&self) {
        self.set(false);
    }

    fn must_ring(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

// A store puts the loop's word behind the poster's without reading it. The poster has read "awake"
// and does not ring; the loop has not read the poster, so its look may miss the letter.
#[test]
#[should_panic(expected = "deadlock")]
fn a_store_in_place_of_the_swap_to_sleep_loses_a_wake() {
    explore::<Stores<true>, 2>(1);
}

// The store covers the word of a second poster, who need not ring because the first one does. The
// swap that follows reads the store, not that poster, and the look may miss the second letter.
#[test]
#[should_panic(expected = "deadlock")]
fn a_store_in_place_of_the_swap_to_wake_loses_a_wake() {
    explore::<Stores<false>, 2>(1);
}
