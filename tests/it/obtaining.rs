//! Finding the loop: the one that runs, and the one that a policy has for the thread.

use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use coloop::policy::{self, DefaultPolicy, NoCurrentLoop, Policy};
use coloop::{EventLoop, RunError, current, try_current, yield_now};

use crate::lifecycle::in_child;
use crate::order::elsewhere;
use crate::verbs::{Trace, one_turn, virtual_loop};

/// Lets one test at a time see or change the process's policy, and puts back the default.
struct PolicyLock(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl PolicyLock {
    fn new() -> Self {
        static LOCK: Mutex<()> = Mutex::new(());
        Self(LOCK.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for PolicyLock {
    fn drop(&mut self) {
        policy::set_event_loop(None);
        policy::set_policy(None);
    }
}

/// Refuses everything to the thread that made it, and leaves the others as they are.
struct Refusing(ThreadId);

impl Refusing {
    fn new() -> Arc<Self> {
        Arc::new(Self(thread::current().id()))
    }

    fn refuses(&self) -> bool {
        thread::current().id() == self.0
    }
}

impl Policy for Refusing {
    fn event_loop(&self) -> Result<Rc<EventLoop>, NoCurrentLoop> {
        if self.refuses() {
            Err(NoCurrentLoop::here())
        } else {
            DefaultPolicy.event_loop()
        }
    }

    fn set_event_loop(&self, event_loop: Option<Rc<EventLoop>>) {
        if !self.refuses() {
            DefaultPolicy.set_event_loop(event_loop);
        }
    }

    fn new_event_loop(&self) -> io::Result<EventLoop> {
        if self.refuses() {
            Err(io::ErrorKind::Unsupported.into())
        } else {
            DefaultPolicy.new_event_loop()
        }
    }
}

fn is_set() -> bool {
    policy::event_loop().is_ok()
}

#[test]
fn c_036_the_running_loop_is_found_in_callbacks_and_tasks_and_nowhere_else() {
    let ((event_loop, _), (other, _)) = (virtual_loop(), virtual_loop());
    let error = try_current().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no event loop runs in this thread")
    );

    let trace = Trace::new();
    let log = trace.clone();
    event_loop.call_soon(move || drop(current().call_soon(log.logs("from a callback"))));
    let log = trace.clone();
    let task = event_loop.create_task(async move {
        current().call_soon(log.logs("from a task"));
    });
    let log = trace.clone();
    event_loop
        .run_until_complete(async move {
            current().call_soon(log.logs("from the main future"));
            assert!(elsewhere(|| try_current().is_err()), "in another thread");
            yield_now().await;
        })
        .unwrap();
    trace.assert(&["from a callback", "from a task", "from the main future"]);
    assert!(task.is_finished() && try_current().is_err());
    assert!(other.is_idle(), "the other loop was not asked");
}

#[test]
#[should_panic(expected = "no event loop runs in this thread")]
fn c_036_asking_for_the_running_loop_where_none_runs_panics() {
    current();
}

#[test]
fn c_038_without_a_loop_set_there_is_none_and_none_is_made() {
    let _lock = PolicyLock::new();
    for _ in 0..2 {
        let error = policy::event_loop().unwrap_err();
        assert_eq!(error.thread.as_deref(), thread::current().name());
    }
    let made = policy::new_event_loop().unwrap();
    assert!(!is_set(), "making one does not set it");
    drop(made);
}

#[test]
fn c_039_a_loop_that_was_taken_away_is_not_found() {
    let _lock = PolicyLock::new();
    let event_loop = Rc::new(policy::new_event_loop().unwrap());
    policy::set_event_loop(Some(Rc::clone(&event_loop)));
    assert!(Rc::ptr_eq(&policy::event_loop().unwrap(), &event_loop));
    policy::set_event_loop(None);
    assert!(!is_set());
    assert!(!event_loop.is_closed(), "whoever has it can go on");
}

#[test]
fn c_040_a_loop_set_in_one_thread_is_not_found_in_another() {
    let _lock = PolicyLock::new();
    policy::set_event_loop(Some(Rc::new(policy::new_event_loop().unwrap())));
    assert!(is_set());
    let named = thread::Builder::new().name("second".to_owned());
    let error = named
        .spawn(|| policy::event_loop().unwrap_err())
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "there is no current event loop in thread `second`: set one, or use `coloop::run`"
    );
    assert!(is_set());
}

#[test]
fn c_041_the_loop_that_was_set_last_is_found() {
    let _lock = PolicyLock::new();
    let [first, second] = [(); 2].map(|()| Rc::new(policy::new_event_loop().unwrap()));
    for event_loop in [&first, &second] {
        policy::set_event_loop(Some(Rc::clone(event_loop)));
        assert!(Rc::ptr_eq(&policy::event_loop().unwrap(), event_loop));
    }
    assert_eq!(Rc::strong_count(&first), 1, "the earlier one is let go");
}

/// In a callback or a task the policy is not asked.
#[test]
fn c_041_while_a_loop_runs_it_is_the_one_that_is_found() {
    let _lock = PolicyLock::new();
    let set = Rc::new(policy::new_event_loop().unwrap());
    policy::set_event_loop(Some(Rc::clone(&set)));
    let ((running, _), trace) = (virtual_loop(), Trace::new());
    let log = trace.clone();
    running.call_soon(move || {
        let found = policy::event_loop().unwrap();
        found.call_soon(log.logs("on the running loop"));
        let nested = found.run_until_complete(async {});
        assert!(matches!(nested, Err(RunError::AlreadyRunning)));
    });
    one_turn(&running);
    assert!(!running.is_closed() && set.is_idle());
    one_turn(&running);
    trace.assert(&["on the running loop"]);
}

/// asyncio warns that policies are deprecated; here they are the compatibility door, and say nothing.
#[test]
fn c_043_the_policy_can_be_read_set_and_reset() {
    let _lock = PolicyLock::new();
    let default = policy::policy();
    default.set_event_loop(Some(Rc::new(default.new_event_loop().unwrap())));
    assert!(is_set());

    let refusing = Refusing::new();
    policy::set_policy(Some(Arc::<Refusing>::clone(&refusing)));
    assert_eq!(Arc::strong_count(&refusing), 2);
    assert!(policy::policy().event_loop().is_err() && !is_set());

    policy::set_policy(None);
    assert_eq!(Arc::strong_count(&refusing), 1);
    assert!(is_set(), "the default's loop is still there");
}

/// A policy that implements nothing does not compile; the nearest to it is one that refuses.
#[test]
fn c_044_what_a_policy_refuses_reaches_the_caller() {
    let _lock = PolicyLock::new();
    policy::set_policy(Some(Refusing::new()));
    let (event_loop, _) = virtual_loop();
    policy::set_event_loop(Some(Rc::new(event_loop)));
    assert_eq!(policy::event_loop().unwrap_err(), NoCurrentLoop::here());
    let error = policy::new_event_loop().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
}

#[test]
fn c_045_a_process_started_from_a_running_loop_has_loops_of_its_own() {
    let (event_loop, _) = virtual_loop();
    event_loop
        .run_until_complete(async {
            in_child(
                "obtaining::c_045_a_process_started_from_a_running_loop_has_loops_of_its_own",
                || elsewhere(use_a_loop_of_its_own),
            );
        })
        .unwrap();
}

fn use_a_loop_of_its_own() {
    assert!(!is_set() && try_current().is_err());
    policy::set_event_loop(Some(Rc::new(policy::new_event_loop().unwrap())));
    let found = policy::event_loop().unwrap();
    assert_eq!(found.run_until_complete(async { 6 * 7 }).unwrap(), 42);
    policy::set_event_loop(None);
}
