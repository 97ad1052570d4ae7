//! Callbacks and tasks in one line: a timer settles what a task awaits.
use coloop::EventLoop;
use std::{cell::RefCell, error::Error, rc::Rc, time::Duration};

fn main() -> Result<(), Box<dyn Error>> {
    let event_loop = EventLoop::new()?;
    let log = Rc::new(RefCell::new(Vec::new())); // no lock, no `Send`

    let (resolver, promise) = event_loop.create_future();
    event_loop.call_later(Duration::from_millis(5), move || {
        resolver.settle("the timer").ok();
    });
    let shared = Rc::clone(&log);
    let task = event_loop.create_task(async move {
        shared.borrow_mut().push("first step");
        let settled_by = promise.await.unwrap_or("nobody");
        shared.borrow_mut().push(settled_by);
    });
    let shared = Rc::clone(&log);
    event_loop.call_soon(move || shared.borrow_mut().push("callback"));
    event_loop.run_until_complete(task)??;
    println!("{}", log.borrow().join(", then "));
    assert_eq!(*log.borrow(), ["first step", "callback", "the timer"]);
    Ok(())
}
