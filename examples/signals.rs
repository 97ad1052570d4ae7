//! Handles SIGINT and SIGTERM, and reads a stream of signals; it sends them to itself.

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;
use std::time::Duration;

use coloop::{EventLoop, LoopHandle, RunError, Signal, sleep, yield_now};
use signal_hook::low_level::raise;

type Log = Rc<RefCell<Vec<String>>>;

// ANCHOR: handlers
fn ask_exit(signal: Signal, handle: &LoopHandle, log: &Log) {
    println!("got signal {signal}: exit");
    log.borrow_mut().push(format!("got {signal}"));
    handle.stop();
}

async fn serve(log: Log) -> std::io::Result<()> {
    let event_loop = coloop::current();
    for signal in [Signal::INT, Signal::TERM] {
        let (handle, log) = (event_loop.clone(), Rc::clone(&log));
        event_loop.add_signal_handler(signal, move || ask_exit(signal, &handle, &log))?;
    }
    sleep(Duration::from_secs(3600)).await;
    Ok(())
}
// ANCHOR_END: handlers

// ANCHOR: stream
/// Reads its configuration again at each SIGHUP, until SIGTERM comes.
async fn reload_until_terminated(log: Log) -> std::io::Result<u32> {
    let mut signals = coloop::current().signals([Signal::HUP, Signal::TERM])?;
    let mut reloads = 0;
    while let Some(signal) = signals.recv().await {
        log.borrow_mut().push(format!("read {signal}"));
        if signal == Signal::TERM {
            break;
        }
        reloads += 1;
    }
    Ok(reloads)
}
// ANCHOR_END: stream

/// Stands for whoever presses Ctrl-C, or types `kill`.
fn send_later(event_loop: &EventLoop, signal: Signal) {
    event_loop.call_later(Duration::from_millis(1), move || {
        if let Err(error) = raise(signal.as_raw()) {
            println!("cannot send {signal}: {error}");
        }
    });
}

fn main() -> Result<(), Box<dyn Error>> {
    let log = Log::default();
    for signal in [Signal::INT, Signal::TERM] {
        let event_loop = EventLoop::new()?;
        println!("event loop running for 1 hour, press Ctrl-C to interrupt");
        send_later(&event_loop, signal);
        match event_loop.run_until_complete(serve(Rc::clone(&log))) {
            Err(RunError::Stopped) => {}
            ended => ended??,
        }
    }
    assert_eq!(log.take(), ["got SIGINT", "got SIGTERM"]);

    let event_loop = EventLoop::new()?;
    // ANCHOR: both
    let seen = Rc::clone(&log);
    event_loop.add_signal_handler(Signal::TERM, move || {
        seen.borrow_mut().push("a handler, too".to_owned());
    })?;
    // ANCHOR_END: both
    let reloads = event_loop.create_task(reload_until_terminated(Rc::clone(&log)));
    event_loop.run_until_complete(async {
        for signal in [Signal::HUP, Signal::HUP, Signal::TERM] {
            let before = log.borrow().len();
            // The task has begun: it listens before the first of them is sent.
            yield_now().await;
            raise(signal.as_raw())?;
            // Two that nobody has seen yet would be one.
            while log.borrow().len() == before {
                sleep(Duration::from_millis(1)).await;
            }
        }
        Ok::<(), std::io::Error>(())
    })??;
    assert_eq!(event_loop.run_until_complete(reloads)???, 2);
    assert_eq!(
        log.take(),
        [
            "read SIGHUP",
            "read SIGHUP",
            "a handler, too",
            "read SIGTERM"
        ]
    );

    // ANCHOR: removed
    assert!(event_loop.remove_signal_handler(Signal::TERM));
    assert!(!event_loop.remove_signal_handler(Signal::TERM));
    // ANCHOR_END: removed
    Ok(())
}
