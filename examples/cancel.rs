//! Ending work early: a cancelled task is dropped at its await, unless it was given time to clean up.

use std::cell::RefCell;
use std::error::Error;
use std::future::pending;
use std::time::Duration;

use coloop::{JoinError, shield, sleep, timeout, until_cancelled, yield_now};

const MOMENT: Duration = Duration::from_millis(1);
const GRACE: Duration = Duration::from_secs(10);

thread_local! {
    static LOG: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

fn log(text: &'static str) {
    println!("{text}");
    LOG.with_borrow_mut(|log| log.push(text));
}

/// Says so when it is dropped.
struct Guard(&'static str);

impl Drop for Guard {
    fn drop(&mut self) {
        log(self.0);
    }
}

// ANCHOR: dropped
async fn a_task_is_dropped_at_its_await() {
    let task = coloop::current().create_task(async {
        let _guard = Guard("the guard is dropped");
        sleep(Duration::MAX).await;
        log("never");
    });
    yield_now().await; // the task's first step
    task.cancel_with("the shop closes");
    let Err(JoinError::Cancelled(cancelled)) = task.await else {
        unreachable!("a request that comes before the end wins");
    };
    assert_eq!(cancelled.reason(), Some("the shop closes"));
}
// ANCHOR_END: dropped

// ANCHOR: cleanup
async fn a_task_cleans_up() -> Result<(), JoinError> {
    let goodbye = async |_| {
        sleep(MOMENT).await; // cleaning up may wait
        log("goodbye");
        "closed"
    };
    let task = coloop::current().create_with_cleanup(GRACE, pending(), goodbye);
    yield_now().await;
    task.cancel();
    assert_eq!(task.await?, "closed");
    Ok(())
}
// ANCHOR_END: cleanup

// ANCHOR: grace
async fn a_task_asks_whether_it_should_end() -> Result<(), JoinError> {
    let task = coloop::current().task().grace(GRACE).create(async {
        let mut rounds = 0;
        while until_cancelled(sleep(MOMENT)).await.is_ok() {
            rounds += 1;
        }
        log("the last round is over");
        rounds
    });
    sleep(20 * MOMENT).await;
    task.cancel();
    assert!(task.await? <= 20);
    Ok(())
}
// ANCHOR_END: grace

// ANCHOR: timeout
async fn a_timeout_drops_what_it_waits_for() {
    let patient = timeout(GRACE, async { "in time" });
    assert_eq!(patient.await, Ok("in time"));
    let impatient = timeout(MOMENT, async {
        let _guard = Guard("too late");
        sleep(GRACE).await;
    });
    assert!(impatient.await.is_err());
}
// ANCHOR_END: timeout

// ANCHOR: shield
async fn a_shield_keeps_the_work_alive() -> Result<(), JoinError> {
    let work = coloop::current().create_task(async {
        sleep(5 * MOMENT).await;
        log("the work is done");
    });
    let mut shielded = work.shield();
    assert!(timeout(MOMENT, &mut shielded).await.is_err());
    shielded.await?;
    assert!(timeout(MOMENT, shield(sleep(GRACE))).await.is_err());
    assert_eq!(
        coloop::current().all_tasks().len(),
        2,
        "this one and that one"
    );
    Ok(())
}
// ANCHOR_END: shield

fn main() -> Result<(), Box<dyn Error>> {
    coloop::run(async {
        a_task_is_dropped_at_its_await().await;
        a_task_cleans_up().await?;
        a_task_asks_whether_it_should_end().await?;
        a_timeout_drops_what_it_waits_for().await;
        a_shield_keeps_the_work_alive().await
    })?;
    assert_eq!(LOG.take().len(), 5);
    Ok(())
}
