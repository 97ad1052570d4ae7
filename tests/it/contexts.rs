//! Context variables: who sees which values, and that nobody else does.

use std::future::poll_fn;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use coloop::{Context, ContextVar, LoopHandle, yield_now};

use crate::errors::ready_socket;
use crate::verbs::{Trace, one_turn, real_loop, virtual_loop};

static WORD: ContextVar<&str> = ContextVar::new("word");
static COUNT: ContextVar<u32> = ContextVar::new("count");

/// The word of the current context.
fn word() -> &'static str {
    WORD.get().unwrap_or("nothing")
}

/// A context that has a word.
fn context_of(word: &'static str) -> Context {
    let context = Context::new();
    context.run(|| WORD.set(word));
    context
}

type Job = Box<dyn FnOnce()>;
type Way = (&'static str, fn(&LoopHandle, Job));

/// Every way to have something run later.
const WAYS: &[Way] = &[
    ("call_soon", |handle, job| drop(handle.call_soon(job))),
    ("try_call_soon", |handle, job| {
        drop(handle.try_call_soon(job).unwrap());
    }),
    ("call_later", |handle, job| {
        drop(handle.call_later(Duration::ZERO, job));
    }),
    ("try_call_later", |handle, job| {
        drop(handle.try_call_later(Duration::ZERO, job).unwrap());
    }),
    ("call_at", |handle, job| {
        drop(handle.call_at(handle.time(), job));
    }),
    ("try_call_at", |handle, job| {
        drop(handle.try_call_at(handle.time(), job).unwrap());
    }),
    ("on_done", |handle, job| {
        let (resolver, promise) = handle.create_future();
        drop(promise.on_done(|_| job()));
        resolver.settle(()).unwrap();
    }),
    ("on_done of a promise that is done", |handle, job| {
        let (resolver, promise) = handle.create_future();
        resolver.settle(()).unwrap();
        drop(promise.on_done(|_| job()));
    }),
    ("add_reader", |handle, job| {
        watch(handle, job, |handle, socket, callback| {
            handle.add_reader(socket, callback).unwrap();
        });
    }),
    ("add_writer", |handle, job| {
        watch(handle, job, |handle, socket, callback| {
            handle.add_writer(socket, callback).unwrap();
        });
    }),
    ("create_task", |handle, job| {
        drop(handle.create_task(async { job() }));
    }),
    ("create_reporting", |handle, job| {
        drop(handle.create_reporting(async { job() }));
    }),
    ("a task that has waited", |handle, job| {
        drop(handle.create_task(async {
            yield_now().await;
            job();
        }));
    }),
    ("on_done of a task", |handle, job| {
        handle.create_task(async {}).on_done(|_| job());
    }),
    ("shield", |handle, job| drop(handle.shield(async { job() }))),
    ("cleanup of a task", |handle, job| {
        let second = Duration::from_secs(1);
        let body = std::future::pending();
        let task = handle.create_with_cleanup(second, body, async |_| job());
        drop(handle.create_task(async move {
            yield_now().await;
            task.cancel();
        }));
    }),
];

type Add = fn(&LoopHandle, Rc<UnixStream>, Box<dyn FnMut()>);

/// Watches a socket that is ready both ways, for one call.
fn watch(handle: &LoopHandle, job: Job, add: Add) {
    let ready = Rc::new(ready_socket());
    let (socket, loop_handle) = (Rc::clone(&ready), handle.clone());
    let mut job = Some(job);
    let callback = move || {
        use std::os::fd::AsRawFd;
        loop_handle.remove_reader(socket.as_raw_fd());
        loop_handle.remove_writer(socket.as_raw_fd());
        job.take().unwrap()();
    };
    add(handle, ready, Box::new(callback));
}

#[test]
fn whatever_runs_later_has_a_copy_of_the_context_it_was_scheduled_in() {
    for (way, schedule) in WAYS {
        let (event_loop, _clock) = virtual_loop();
        let handle = event_loop.handle();
        let trace = Trace::new();
        let log = trace.clone();
        let context = context_of("then");
        context.run(|| {
            let job = Box::new(move || {
                log.log(word());
                WORD.set("its own");
                handle.stop();
            });
            schedule(&event_loop, job);
            WORD.set("later");
        });

        event_loop.run_forever().unwrap();

        assert_eq!(trace.take(), ["then"], "{way}");
        assert_eq!(context.get(&WORD), Some("later"), "{way}");
    }
}

#[test]
fn what_an_item_sets_is_not_there_for_the_next_item() {
    for (way, schedule) in WAYS {
        let (event_loop, _clock) = virtual_loop();
        let trace = Trace::new();
        for number in 1..=3 {
            let (log, handle) = (trace.clone(), event_loop.handle());
            let job = Box::new(move || {
                log.log(word());
                WORD.set("left behind");
                if number == 3 {
                    handle.stop();
                }
            });
            schedule(&event_loop, job);
        }

        event_loop.run_forever().unwrap();
        event_loop.call_soon(trace.logs("between"));
        let log = trace.clone();
        event_loop.call_soon(move || log.log(word()));
        one_turn(&event_loop);
        trace.log(word());

        let expected = [
            "nothing", "nothing", "nothing", "between", "nothing", "nothing",
        ];
        assert_eq!(trace.take(), expected, "{way}");
    }
}

#[test]
fn what_an_item_sets_before_it_panics_is_not_there_for_the_next_item() {
    for (way, schedule) in WAYS {
        let (event_loop, _clock) = virtual_loop();
        let trace = Trace::new();
        event_loop.set_exception_handler(|_, _| ());
        for number in 1..=2 {
            let (log, handle) = (trace.clone(), event_loop.handle());
            let job = Box::new(move || {
                log.log(word());
                if number == 2 {
                    handle.stop();
                }
                WORD.set("left behind");
                panic!("on purpose");
            });
            schedule(&event_loop, job);
        }

        event_loop.run_forever().unwrap();
        trace.log(word());

        assert_eq!(trace.take(), ["nothing", "nothing", "nothing"], "{way}");
    }
}

#[test]
fn a_context_given_by_hand_is_shared_and_not_copied() {
    type WayIn = (&'static str, fn(&LoopHandle, &Context, Job));
    let ways: [WayIn; 5] = [
        ("call_soon_in", |handle, context, job| {
            drop(handle.call_soon_in(context, job));
        }),
        ("call_later_in", |handle, context, job| {
            drop(handle.call_later_in(context, Duration::ZERO, job));
        }),
        ("call_at_in", |handle, context, job| {
            drop(handle.call_at_in(context, handle.time(), job));
        }),
        ("on_done_in", |handle, context, job| {
            let (resolver, promise) = handle.create_future();
            drop(promise.on_done_in(context, |_| job()));
            resolver.settle(()).unwrap();
        }),
        ("task().context()", |handle, context, job| {
            let builder = handle.task().context(context.clone());
            drop(builder.create(async {
                yield_now().await;
                job();
            }));
        }),
    ];
    for (way, schedule) in ways {
        for context in [Context::new(), context_of("then")] {
            let (event_loop, _clock) = virtual_loop();
            let handle = event_loop.handle();
            let trace = Trace::new();
            let log = trace.clone();
            let job = Box::new(move || {
                log.log(word());
                WORD.set("its own");
                handle.stop();
            });
            schedule(&event_loop, &context, job);
            context.run(|| WORD.set("later"));

            event_loop.run_forever().unwrap();

            assert_eq!(trace.take(), ["later"], "{way}");
            assert_eq!(context.get(&WORD), Some("its own"), "{way}");
        }
    }
}

#[test]
fn c_088_a_callback_leaves_its_scheduler_s_context_alone_and_changes_one_given_by_hand() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let scheduler = context_of("scheduler's");
    let given = context_of("given");
    let callback = || {
        let trace = trace.clone();
        move || {
            trace.log(word());
            WORD.set("callback's");
        }
    };
    scheduler.run(|| {
        event_loop.call_soon(callback());
        event_loop.call_soon_in(&given, callback());
        event_loop.call_soon_in(&given, callback());
    });

    one_turn(&event_loop);

    trace.assert(&["scheduler's", "given", "callback's"]);
    assert_eq!(scheduler.get(&WORD), Some("scheduler's"));
    assert_eq!(given.get(&WORD), Some("callback's"));
}

#[test]
fn c_089_parent_child_and_sibling_do_not_see_what_the_others_set() {
    let event_loop = real_loop();
    let trace = Trace::new();

    event_loop
        .run_until_complete(async {
            WORD.set("parent's");
            let child = |name: &'static str| {
                let trace = trace.clone();
                async move {
                    trace.log(format!("{name} begins with {}", word()));
                    WORD.set(name);
                    yield_now().await;
                    trace.log(format!("{name} goes on with {}", word()));
                }
            };
            let first = coloop::current().create_task(child("first"));
            let second = coloop::current().create_task(child("second"));
            WORD.set("parent's later");
            first.await.unwrap();
            second.await.unwrap();
            trace.log(format!("parent ends with {}", word()));
        })
        .unwrap();

    trace.assert(&[
        "first begins with parent's",
        "second begins with parent's",
        "first goes on with first",
        "second goes on with second",
        "parent ends with parent's later",
    ]);
}

#[test]
fn c_090_two_tasks_in_one_context_change_it_in_turn() {
    let event_loop = real_loop();
    let context = Context::new();
    let trace = Trace::new();
    for name in ["a", "b"] {
        let trace = trace.clone();
        let builder = event_loop.task().context(context.clone());
        drop(builder.create(async move {
            for _ in 0..2 {
                let count = COUNT.get().unwrap_or(0);
                trace.log(format!("{name} sees {count}"));
                COUNT.set(count + 1);
                yield_now().await;
            }
        }));
    }

    event_loop
        .run_until_complete(async {
            while coloop::current().all_tasks().len() > 1 {
                yield_now().await;
            }
        })
        .unwrap();

    trace.assert(&["a sees 0", "b sees 1", "a sees 2", "b sees 3"]);
    assert_eq!(context.get(&COUNT), Some(4));
}

#[test]
fn c_091_a_done_callback_does_not_change_the_context_of_the_task_that_awaits() {
    let event_loop = real_loop();
    let trace = Trace::new();

    event_loop
        .run_until_complete(async {
            let (resolver, promise) = coloop::current().create_future::<()>();
            WORD.set("task's");
            let log = trace.clone();
            drop(promise.clone().on_done(move |_| {
                log.log(format!("callback has {}", word()));
                WORD.set("callback's");
            }));
            coloop::current().call_soon(|| resolver.settle(()).unwrap());
            promise.await.unwrap();
            trace.log(format!("task has {}", word()));
        })
        .unwrap();

    trace.assert(&["callback has task's", "task has task's"]);
}

#[test]
fn c_136_an_eager_task_does_not_change_its_creator_s_variables() {
    let event_loop = real_loop();
    let trace = Trace::new();

    event_loop
        .run_until_complete(async {
            WORD.set("creator's");
            let log = trace.clone();
            let task = coloop::current().task().eager().create(async move {
                log.log(format!("eager begins with {}", word()));
                WORD.set("eager's");
                yield_now().await;
                log.log(format!("eager goes on with {}", word()));
            });
            trace.log(format!("creator has {}", word()));
            task.await.unwrap();
            trace.log(format!("creator still has {}", word()));
        })
        .unwrap();

    trace.assert(&[
        "eager begins with creator's",
        "creator has creator's",
        "eager goes on with eager's",
        "creator still has creator's",
    ]);
}

#[test]
fn an_eager_task_in_an_empty_context_leaves_its_creator_s_empty() {
    let event_loop = real_loop();
    let seen = event_loop.run_until_complete(async {
        let task = coloop::current().task().eager().create(async {
            WORD.set("eager's");
        });
        (task.is_finished(), word())
    });
    assert_eq!(seen.unwrap(), (true, "nothing"));
}

#[test]
fn the_future_of_a_run_has_a_copy_of_its_own() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let outer = context_of("outer");
    outer.run(|| {
        for _ in 0..2 {
            let run = event_loop.run_until_complete(async {
                trace.log(format!("begins with {}", word()));
                WORD.set("inner");
                yield_now().await;
                trace.log(format!("goes on with {}", word()));
            });
            run.unwrap();
            trace.log(format!("the caller has {}", word()));
        }
    });

    let one = [
        "begins with outer",
        "goes on with inner",
        "the caller has outer",
    ];
    trace.assert(&[one, one].concat());
}

#[test]
fn the_caller_of_a_run_has_its_context_back_when_a_panic_leaves_it() {
    let event_loop = real_loop();
    let outer = context_of("outer");
    let seen = outer.run(|| {
        let run = || {
            event_loop.run_until_complete(async {
                WORD.set("inner");
                panic!("on purpose");
            })
        };
        let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        (left.is_err(), word())
    });
    assert_eq!(seen, (true, "outer"));
}

#[test]
fn callbacks_of_a_run_do_not_see_the_caller_s_context() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.call_soon(move || log.log(word()));

    context_of("caller's").run(|| one_turn(&event_loop));

    trace.assert(&["nothing"]);
}

#[test]
fn handles_have_the_context_their_callback_runs_in() {
    let (event_loop, _clock) = virtual_loop();
    let given = context_of("given");
    let second = Duration::from_secs(1);
    context_of("captured").run(|| {
        let captured = [
            event_loop.call_soon(|| drop(WORD.set("changed"))).context(),
            event_loop
                .call_later(Duration::ZERO, || drop(WORD.set("changed")))
                .context(),
            event_loop
                .call_at(event_loop.time(), || drop(WORD.set("changed")))
                .context(),
        ];
        for context in &captured {
            assert_eq!(context.get(&WORD), Some("captured"));
        }
        one_turn(&event_loop);
        for context in &captured {
            assert_eq!(context.get(&WORD), Some("changed"));
        }

        let shared = [
            event_loop.call_soon_in(&given, || ()).context(),
            event_loop.call_later_in(&given, second, || ()).context(),
            event_loop
                .call_at_in(&given, event_loop.time(), || ())
                .context(),
        ];
        given.run(|| WORD.set("given later"));
        for context in &shared {
            assert_eq!(context.get(&WORD), Some("given later"));
        }
    });
}

#[test]
fn a_task_shows_its_context_until_it_has_ended() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let task = context_of("creator's").run(|| {
        let trace = trace.clone();
        event_loop.create_task(async move {
            let shown = || coloop::current_task().unwrap().context().get(&WORD);
            trace.log(format!("inside: {:?}", shown()));
            WORD.set("task's");
            trace.log(format!("inside: {:?}", shown()));
            yield_now().await;
        })
    });
    let show = || trace.log(format!("outside: {:?}", task.to_ref().context().get(&WORD)));
    for _ in 0..3 {
        show();
        one_turn(&event_loop);
    }

    trace.assert(&[
        "outside: Some(\"creator's\")",
        "inside: Some(\"creator's\")",
        "inside: Some(\"task's\")",
        "outside: Some(\"task's\")",
        "outside: None",
    ]);
}

/// Says the word of its context when it is dropped.
struct Says(Trace);

impl Drop for Says {
    fn drop(&mut self) {
        self.0.log(word());
    }
}

/// The body of a task that sets a word and ends, or waits for ever.
async fn sets_a_word(says: Says, ends: bool) {
    let _says = says;
    WORD.set("task's");
    if !ends {
        std::future::pending::<()>().await;
    }
}

#[test]
fn destructors_of_a_task_s_future_run_in_its_context() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let says = || Says(trace.clone());
    let ends = event_loop.create_task(sets_a_word(says(), true));
    let cancelled = event_loop.create_task(sets_a_word(says(), false));
    one_turn(&event_loop);
    trace.log("cancel");
    cancelled.cancel();
    one_turn(&event_loop);

    trace.assert(&["task's", "cancel", "task's"]);
    assert!(ends.is_finished() && cancelled.is_finished());
}

#[test]
fn destructors_that_run_because_the_loop_closes_run_in_their_task_s_context_too() {
    let event_loop = real_loop();
    let trace = Trace::new();
    drop(event_loop.create_task(sets_a_word(Says(trace.clone()), false)));
    one_turn(&event_loop);
    event_loop.close().unwrap();
    trace.assert(&["task's"]);
}

#[test]
fn a_reader_has_one_context_for_all_its_calls() {
    for context in [Context::new(), context_of("not empty")] {
        let event_loop = real_loop();
        let trace = Trace::new();
        let log = trace.clone();
        context.run(|| {
            let count = move || {
                let count = COUNT.get().unwrap_or(0) + 1;
                COUNT.set(count);
                log.log(count);
            };
            event_loop.add_reader(ready_socket(), count).unwrap();
        });

        for _ in 0..3 {
            one_turn(&event_loop);
        }

        trace.assert(&["1", "2", "3"]);
        assert_eq!(context.get(&COUNT), None);
    }
}

/// Runs what is scheduled until it is reported, and says which word the handler has seen.
fn word_at_the_report(schedule: impl FnOnce(&LoopHandle)) -> Vec<String> {
    let (event_loop, _clock) = virtual_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |handle, _| {
        log.log(word());
        handle.stop();
    });
    schedule(&event_loop);
    event_loop.run_forever().unwrap();
    assert_eq!(word(), "nothing", "the handler's context is left again");
    trace.take()
}

#[test]
fn the_exception_handler_runs_in_the_context_of_what_failed() {
    for (way, schedule) in WAYS {
        let seen = word_at_the_report(|event_loop| {
            let job = Box::new(|| panic!("on purpose"));
            context_of("captured").run(|| schedule(event_loop, job));
        });
        assert_eq!(seen, ["captured"], "{way}");
    }
}

#[test]
fn the_exception_handler_sees_what_the_failed_item_has_set() {
    for (way, schedule) in WAYS {
        let seen = word_at_the_report(|event_loop| {
            let job = || {
                WORD.set("set before the panic");
                panic!("on purpose");
            };
            schedule(event_loop, Box::new(job));
        });
        assert_eq!(seen, ["set before the panic"], "{way}");
    }
}

#[test]
fn a_report_does_not_come_in_the_context_of_an_earlier_panic() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    event_loop.set_exception_handler(move |_, context| {
        log.log(format!(
            "{} in {}",
            context.panic_message().unwrap(),
            word()
        ));
    });
    let nested = || -> () { context_of("another's").run(|| panic!("observed")) };
    let task = event_loop.create_task(async move { nested() });
    event_loop.call_soon(move || {
        let caught = std::panic::catch_unwind(nested);
        assert!(caught.is_err());
    });
    event_loop.call_soon(|| panic!("reported"));

    assert!(event_loop.run_until_complete(task).unwrap().is_err());

    trace.assert(&["reported in nothing"]);
}

#[test]
fn a_token_undoes_its_set_across_awaits_and_in_its_own_context_only() {
    let event_loop = real_loop();
    let seen = event_loop.run_until_complete(async {
        let first = WORD.set("first");
        let second = WORD.set("second");
        let other = COUNT.set(1);
        yield_now().await;

        let child = coloop::current().create_task(async move { WORD.reset(second) });
        let elsewhere = child.await.unwrap();
        let unchanged = word();
        let undone = WORD.reset(first);
        let (restored, count) = (word(), COUNT.get());
        let others = COUNT.reset(other);
        (
            elsewhere.is_err(),
            unchanged,
            undone,
            restored,
            count,
            others,
        )
    });
    assert_eq!(
        seen.unwrap(),
        (true, "second", Ok(()), "nothing", Some(1), Ok(()))
    );
    assert_eq!(COUNT.get(), None);
}

#[test]
fn a_token_of_another_variable_is_refused_and_changes_nothing() {
    static OTHER: ContextVar<&str> = ContextVar::new("other");

    Context::new().run(|| {
        WORD.set("kept");
        let token = OTHER.set("other's");
        assert!(WORD.reset(token).is_err());
        assert_eq!((WORD.get(), OTHER.get()), (Some("kept"), Some("other's")));
    });
}

#[test]
fn an_empty_context_is_an_ordinary_context() {
    let event_loop = real_loop();
    let handle = event_loop.call_soon(|| ());
    let timer = event_loop.call_later(Duration::ZERO, || ());
    let task = event_loop.create_task(async {});
    let contexts = [handle.context(), timer.context(), task.to_ref().context()];
    for context in contexts.into_iter().chain([Context::current()]) {
        assert_eq!(format!("{context:?}"), "Context { variables: 0 }");
        assert_eq!(context.get(&WORD), None);
    }

    // A variable that is set and reset leaves an empty context behind.
    let seen = event_loop.run_until_complete(async {
        let token = WORD.set("for a while");
        WORD.reset(token).unwrap();
        let child = coloop::current().create_task(async { word() });
        (child.await.unwrap(), format!("{:?}", Context::current()))
    });
    assert_eq!(
        seen.unwrap(),
        ("nothing", "Context { variables: 0 }".to_owned())
    );
}

#[test]
fn a_context_is_current_only_while_its_task_is_polled() {
    let event_loop = real_loop();
    let trace = Trace::new();
    let log = trace.clone();
    let mut polls = 0;
    let task = context_of("task's").run(|| {
        event_loop.create_task(poll_fn(move |cx| {
            log.log(format!("polled with {}", word()));
            polls += 1;
            if polls == 3 {
                return Poll::Ready(());
            }
            // The waker runs nothing of the task: what follows it sees nothing of it.
            let log = log.clone();
            Context::new().run(|| coloop::current().call_soon(move || log.log(word())));
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
    });

    event_loop.run_until_complete(task).unwrap().unwrap();

    trace.assert(&[
        "polled with task's",
        "nothing",
        "polled with task's",
        "nothing",
        "polled with task's",
    ]);
}
