//! Hello World with callbacks: one greets, and a few milliseconds later one stops the loop.

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use coloop::EventLoop;

fn main() -> Result<(), Box<dyn Error>> {
    // ANCHOR: loop
    let event_loop = EventLoop::new()?;
    // ANCHOR_END: loop
    let greeted = Rc::new(Cell::new(false));

    // ANCHOR: callbacks
    let (handle, flag) = (event_loop.handle(), Rc::clone(&greeted));
    event_loop.call_soon(move || {
        println!("Hello World");
        flag.set(true);
        let stopper = handle.clone();
        handle.call_later(Duration::from_millis(5), move || stopper.stop());
    });
    // ANCHOR_END: callbacks

    assert!(!greeted.get(), "scheduling a callback calls nothing");
    // ANCHOR: run
    event_loop.run_forever()?;
    event_loop.close()?;
    // ANCHOR_END: run
    assert!(greeted.get());
    Ok(())
}
