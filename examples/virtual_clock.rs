//! Tests with a clock that stands still: hours pass at once, and nothing is left to chance.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use coloop::testing::{self, Clock};
use coloop::{ByteStream, EventLoop, RunError, sleep, timeout};

const HOUR: Duration = Duration::from_secs(3600);

// ANCHOR: retry
/// Tries until it works, and waits twice as long after each failure.
async fn retry(mut attempt: impl FnMut() -> bool) -> u32 {
    let (mut attempts, mut pause) = (1, HOUR);
    while !attempt() {
        sleep(pause).await;
        pause *= 2;
        attempts += 1;
    }
    attempts
}

fn it_waits_twice_as_long_after_each_failure() -> Result<(), Box<dyn Error>> {
    let clock = Clock::new();
    let event_loop = EventLoop::builder().clock(clock.clone()).build()?;
    let attempts = event_loop.run_until_complete(retry(|| clock.elapsed() >= 5 * HOUR))?;
    assert_eq!((attempts, clock.elapsed()), (4, 7 * HOUR));
    Ok(())
}
// ANCHOR_END: retry

// ANCHOR: advance
fn a_timer_fires_at_its_deadline_and_not_before() -> Result<(), Box<dyn Error>> {
    let clock = Clock::new();
    let event_loop = EventLoop::builder().clock(clock.clone()).build()?;
    let fired = Rc::new(Cell::new(false));
    let flag = Rc::clone(&fired);
    event_loop.call_later(HOUR, move || flag.set(true));

    clock.advance(HOUR - Duration::from_nanos(1));
    event_loop.turn(Some(Duration::ZERO))?;
    assert!(!fired.get());
    clock.advance(Duration::from_nanos(1));
    event_loop.turn(Some(Duration::ZERO))?;
    assert!(fired.get());
    Ok(())
}
// ANCHOR_END: advance

// ANCHOR: memory
fn a_peer_that_says_nothing_is_given_up() -> io::Result<()> {
    testing::run_virtual(async {
        let handle = coloop::current();
        let (near, far) = testing::stream_pair(&handle, 16)?;
        let watched = handle.watch(far)?;
        let mut buffer = [0; 16];
        let silence = timeout(HOUR, watched.read_with(|far| far.recv(&mut buffer)));
        assert!(silence.await.is_err(), "an hour has passed by this clock");

        near.send(b"sorry")?;
        let count = watched.read_with(|far| far.recv(&mut buffer)).await?;
        assert_eq!(&buffer[..count], b"sorry");
        Ok(())
    })
}
// ANCHOR_END: memory

// ANCHOR: hold
fn the_clock_stands_still_while_a_thread_works() -> Result<(), Box<dyn Error>> {
    let clock = Clock::new();
    let event_loop = EventLoop::builder().clock(clock.clone()).build()?;
    let remote = event_loop.remote();
    let hold = remote.hold("a worker");
    let worker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5)); // stands for work
        let posted = remote.call_soon(|| coloop::current().stop());
        drop(hold); // from here on the clock may jump again
        posted
    });
    event_loop.call_later(HOUR, || unreachable!("the worker came first"));
    let stopped = event_loop.run_until_complete(sleep(HOUR));
    assert!(matches!(stopped, Err(RunError::Stopped)));
    assert_eq!(clock.elapsed(), Duration::ZERO);
    assert!(matches!(worker.join(), Ok(Ok(_))));
    Ok(())
}
// ANCHOR_END: hold

fn main() -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    it_waits_twice_as_long_after_each_failure()?;
    a_timer_fires_at_its_deadline_and_not_before()?;
    a_peer_that_says_nothing_is_given_up()?;
    the_clock_stands_still_while_a_thread_works()?;
    let took = began.elapsed();
    println!("nine hours in {took:.0?}");
    assert!(took < HOUR);
    Ok(())
}
