//! A policy of the program's own: every loop that is asked for by the compatibility door waits on a
//! selector that counts.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coloop::policy::{self, NoCurrentLoop, Policy};
use coloop::{Bell, EventLoop, Interest, Readiness, Selector, Source, default_selector};

// ANCHOR: selector
/// Counts its waits and leaves the work to another selector.
struct Counting(Rc<dyn Selector>);

static WAITS: AtomicU32 = AtomicU32::new(0);

impl Selector for Counting {
    fn add(&self, key: usize, source: Source, interest: Interest) -> io::Result<()> {
        self.0.add(key, source, interest)
    }
    fn modify(&self, key: usize, interest: Interest) -> io::Result<()> {
        self.0.modify(key, interest)
    }
    fn delete(&self, key: usize) -> Option<Source> {
        self.0.delete(key)
    }
    fn wait(&self, ready: &mut Vec<Readiness>, timeout: Option<Duration>) -> io::Result<()> {
        WAITS.fetch_add(1, Ordering::Relaxed);
        self.0.wait(ready, timeout)
    }
    fn bell(&self) -> Arc<dyn Bell> {
        self.0.bell()
    }
}
// ANCHOR_END: selector

// ANCHOR: policy
/// Keeps one loop for each thread, as the default policy does, and makes loops of its own kind.
struct CountingPolicy;

thread_local! {
    static CURRENT: RefCell<Option<Rc<EventLoop>>> = const { RefCell::new(None) };
}

impl Policy for CountingPolicy {
    fn event_loop(&self) -> Result<Rc<EventLoop>, NoCurrentLoop> {
        let current = CURRENT.with(|current| current.borrow().clone());
        current.ok_or_else(NoCurrentLoop::here)
    }
    fn set_event_loop(&self, event_loop: Option<Rc<EventLoop>>) {
        let before = CURRENT.with(|current| current.replace(event_loop));
        drop(before); // dropping a loop runs destructors: not while it is borrowed
    }
    fn new_event_loop(&self) -> io::Result<EventLoop> {
        let selector = Rc::new(Counting(default_selector()?));
        EventLoop::builder().selector(selector).build()
    }
}
// ANCHOR_END: policy

fn main() -> Result<(), Box<dyn Error>> {
    assert!(policy::event_loop().is_err(), "nobody makes a loop unasked");

    // ANCHOR: use
    policy::set_policy(Some(Arc::new(CountingPolicy)));
    policy::set_event_loop(Some(Rc::new(policy::new_event_loop()?)));

    let event_loop = policy::event_loop()?;
    event_loop.run_until_complete(coloop::sleep(Duration::from_millis(2)))?;
    // ANCHOR_END: use

    let waits = WAITS.load(Ordering::Relaxed);
    println!("the loop waited {waits} times");
    assert!(waits >= 2, "once before the first poll, once for the timer");
    policy::set_event_loop(None);
    policy::set_policy(None);
    Ok(())
}
