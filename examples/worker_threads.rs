//! Threads do the heavy work; the loop gets the results as letters, in its own thread.

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;
use std::thread;

use coloop::EventLoop;

thread_local! {
    /// Lives in the loop's thread only: no lock.
    static RESULTS: RefCell<Vec<(u32, usize)>> = const { RefCell::new(Vec::new()) };
}

const WORKERS: u32 = 4;
const SHARE: u32 = 5_000;

fn main() -> Result<(), Box<dyn Error>> {
    let event_loop = EventLoop::new()?;

    // ANCHOR: letters
    let threads: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let remote = event_loop.remote();
            thread::spawn(move || {
                let primes = primes_between(worker * SHARE, (worker + 1) * SHARE);
                remote.call_soon(move || deliver(worker, primes))
            })
        })
        .collect();
    // ANCHOR_END: letters

    event_loop.run_forever()?;
    for thread in threads {
        let posted = thread.join().map_err(|_| "a worker panicked")?;
        assert!(!posted?.is_cancelled());
    }
    let mut results = RESULTS.take();
    println!("{results:?}, in the order in which they came");
    results.sort_unstable();
    let expected = [(0, 669), (1, 560), (2, 525), (3, 508)];
    assert_eq!(results, expected);

    // ANCHOR: task
    let remote = event_loop.remote();
    let asker = thread::spawn(move || {
        // The closure crosses threads. The future is made on the other side and need not be `Send`.
        let task = remote.create_task(|| async {
            let words = Rc::new(["from", "the", "loop"]);
            coloop::yield_now().await;
            words.join(" ")
        });
        let answer = task.map(|task| task.join());
        remote.stop();
        answer
    });
    event_loop.run_forever()?;
    // ANCHOR_END: task
    let answer = asker.join().map_err(|_| "the asker panicked")???;
    println!("{answer}");
    assert_eq!(answer, "from the loop");

    // ANCHOR: closed
    let remote = event_loop.remote();
    drop(event_loop);
    let refused = remote.call_soon(|| unreachable!("the loop is gone"));
    assert!(refused.is_err());
    // ANCHOR_END: closed
    Ok(())
}

// ANCHOR: deliver
/// Runs in the loop's thread, once for each worker.
fn deliver(worker: u32, primes: usize) {
    let count = RESULTS.with_borrow_mut(|results| {
        results.push((worker, primes));
        results.len()
    });
    if count == WORKERS as usize {
        coloop::current().stop();
    }
}
// ANCHOR_END: deliver

fn primes_between(from: u32, to: u32) -> usize {
    let is_prime = |n: &u32| {
        *n > 1
            && !(2..)
                .take_while(|d| d * d <= *n)
                .any(|d| n.is_multiple_of(d))
    };
    (from..to).filter(is_prime).count()
}
