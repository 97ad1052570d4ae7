//! Callbacks and tasks share one loop: a callback settles the promise that tasks and other callbacks
//! wait for.

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use coloop::EventLoop;

fn main() -> Result<(), Box<dyn Error>> {
    let event_loop = EventLoop::new()?;
    let log = Rc::new(RefCell::new(Vec::new()));
    let note = |log: &Rc<RefCell<Vec<String>>>, text: String| {
        println!("{text}");
        log.borrow_mut().push(text);
    };

    // ANCHOR: promise
    let (resolver, promise) = event_loop.create_future::<u32>();
    // ANCHOR_END: promise

    // ANCHOR: task
    let (tasks_log, awaited) = (Rc::clone(&log), promise.clone());
    let task = event_loop.create_task(async move {
        match awaited.await {
            Ok(degrees) => note(&tasks_log, format!("the task has {degrees} degrees")),
            Err(cancelled) => note(&tasks_log, format!("nobody measured: {cancelled}")),
        }
        "tea is ready"
    });
    // ANCHOR_END: task

    // ANCHOR: callback
    let (timers_log, done_log) = (Rc::clone(&log), Rc::clone(&log));
    event_loop.call_later(Duration::from_millis(5), move || {
        note(&timers_log, "the timer settles".to_owned());
        if resolver.settle(96).is_err() {
            note(&timers_log, "nobody waits any more".to_owned());
        }
        note(&timers_log, "nobody has been told yet".to_owned());
    });
    promise.on_done(move |degrees| {
        let degrees = degrees.unwrap_or(0);
        note(&done_log, format!("the callback has {degrees} degrees"));
    });
    // ANCHOR_END: callback

    // ANCHOR: run
    let said = event_loop.run_until_complete(task)??;
    // ANCHOR_END: run
    assert_eq!(said, "tea is ready");
    // Who waits is told through the line, in the order in which they came: the callback was there
    // before the task had its first turn.
    let expected = [
        "the timer settles",
        "nobody has been told yet",
        "the callback has 96 degrees",
        "the task has 96 degrees",
    ];
    assert_eq!(log.take(), expected);

    // ANCHOR: dropped
    let (resolver, promise) = event_loop.create_future::<u32>();
    drop(resolver);
    let outcome = event_loop.run_until_complete(promise)?;
    assert!(outcome.is_err(), "without a resolver it is cancelled");
    // ANCHOR_END: dropped
    Ok(())
}
