//! Shows the time of day again and again, until a moment on the loop's clock: a callback that
//! schedules itself.

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coloop::{EventLoop, LoopHandle};

/// One second would be usual; this program wants to end soon.
const STEP: Duration = Duration::from_millis(20);

// ANCHOR: display
fn display_date(handle: &LoopHandle, end: Instant, shown: Rc<Cell<u32>>) {
    show_time_of_day();
    shown.set(shown.get() + 1);
    if handle.time() + STEP < end {
        let again = handle.clone();
        handle.call_later(STEP, move || display_date(&again, end, shown));
    } else {
        handle.stop();
    }
}
// ANCHOR_END: display

fn show_time_of_day() {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since_1970.unwrap_or_default();
    let seconds = now.as_secs() % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let millis = now.subsec_millis();
    println!("{hour:02}:{minute:02}:{second:02}.{millis:03} UTC");
}

fn main() -> Result<(), Box<dyn Error>> {
    let event_loop = EventLoop::new()?;
    let shown = Rc::new(Cell::new(0));

    // ANCHOR: first
    let began = event_loop.time();
    let (handle, count) = (event_loop.handle(), Rc::clone(&shown));
    event_loop.call_soon(move || display_date(&handle, began + 5 * STEP, count));
    event_loop.run_forever()?;
    // ANCHOR_END: first

    // A busy machine may make a step longer, never shorter.
    assert!((1..=5).contains(&shown.get()), "{} times", shown.get());
    assert!(event_loop.time() - began >= 4 * STEP);
    Ok(())
}
