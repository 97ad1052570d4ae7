//! Order against CPython: random programs run on coloop and on asyncio, and their traces are
//! equal.
//!
//! A program is made of callbacks, timers, cancels, promises with done-callbacks, tasks, stops
//! and reruns (`twin/program.rs`). Each runs here on a loop that polls as often as asyncio does,
//! under a clock that jumps (`twin/on_coloop.rs`), and all of them together run in one `python3`
//! on asyncio's own loop, under a clock that steps (`twin/twin.py`).
//!
//! Where there is no `python3`, each program still runs twice, to the same trace.
//!
//! `COLOOP_TWIN_SEED` and `COLOOP_TWIN_COUNT` choose other programs; a difference is printed with
//! the two that bring it back, and shrunk. `COLOOP_TWIN_PYTHON` names another interpreter.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

#[path = "twin/on_coloop.rs"]
mod on_coloop;
#[path = "twin/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::panic;
use std::process::{Command, Stdio};

use program::Program;

/// What must have happened, and more than a few times, for the test to mean something: lines of
/// the traces, without their numbers.
const HAPPENED: &str = "
    soon h, post h, later h, at past h, at future h
    cancel h true, cancel h false, peek h live, peek h ran, peek h cancelled
    promise p, settle p true, settle p false, pcancel p true, pcancel p false, pdrop p
    look p pending, look p settled, look p cancelled
    ondone p pending, ondone p done, d p, d p cancelled, undone d true, undone d false
    task t, t ends, t dropped, yielded, slept
    awaitp p pending, awaitp p done, awaitp p, awaitp p cancelled
    awaitt t pending, awaitt t done, awaitt t, awaitt t cancelled
    tcancel t true, tcancel t false, cancelme true, tlook t pending, tlook t done
    tdone t pending, tdone t done, done t, done t cancelled
    work, set, panic, report, stop inside, stop outside, guard, returned, drained
    until p pending, until p done, until p pending cancelled, until p done cancelled
    until t pending, until t done, until t pending cancelled, until t done cancelled
    until p stopped, until t stopped
";

#[test]
fn order_equals_cpython() {
    let base: u64 = setting("COLOOP_TWIN_SEED", 0);
    let count: u64 = setting("COLOOP_TWIN_COUNT", 1_000);
    let programs: Vec<Program> = (0..count)
        .map(|n| Program::generate(base.wrapping_add(n)))
        .collect();

    let ours: Vec<Vec<String>> = programs.iter().map(on_coloop).collect();
    for (program, ours) in programs.iter().zip(&ours) {
        assert_eq!(
            *ours,
            on_coloop(program),
            "seed {}: two runs of one program differ",
            program.seed
        );
    }
    if count >= 1_000 {
        assert_happened(&ours);
    }

    let Some(theirs) = on_cpython(&programs).unwrap() else {
        println!("python3 is missing: the {count} programs ran on coloop only");
        return;
    };
    let different: Vec<&Program> = (0..programs.len())
        .filter(|&n| ours[n] != theirs[n])
        .map(|n| &programs[n])
        .collect();
    if let Some(shortest) = different.iter().min_by_key(|program| program.len()) {
        let told = shrunk(shortest);
        panic!("{} of {count} programs differ\n\n{told}", different.len());
    }
}

#[track_caller]
fn assert_happened(traces: &[Vec<String>]) {
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    for line in traces.iter().flatten() {
        *times.entry(kind(line)).or_default() += 1;
    }
    for line in HAPPENED
        .split([',', '\n'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let times = times.get(line).copied().unwrap_or_default();
        assert!(times >= 50, "\"{line}\" happened {times} times only");
    }
}

/// A line without its time, task and variable, and without numbers: `0 t1 - awaitp p3 7` is
/// "awaitp p".
fn kind(line: &str) -> String {
    let aside = line.ends_with(" report") || line.ends_with(" dropped");
    let fields = if aside { 1 } else { 3 };
    let what = line
        .split(' ')
        .skip(fields)
        .map(|word| word.trim_end_matches(|c: char| c.is_ascii_digit()));
    what.filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs one program on coloop, and says which one it was when that panics.
fn on_coloop(program: &Program) -> Vec<String> {
    panic::catch_unwind(|| on_coloop::trace(program)).unwrap_or_else(|payload| {
        println!("coloop panicked in\n{program}");
        panic::resume_unwind(payload)
    })
}

/// Runs all programs in one interpreter; `None` where there is none.
fn on_cpython(programs: &[Program]) -> io::Result<Option<Vec<Vec<String>>>> {
    let python = env::var_os("COLOOP_TWIN_PYTHON").unwrap_or_else(|| "python3".into());
    let started = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/twin/twin.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match started {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        started => started?,
    };
    let text: String = programs.iter().map(Program::to_string).collect();
    // It reads all before it writes anything, so that neither side waits for the other.
    let fed = child.stdin.take().unwrap().write_all(text.as_bytes());
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "twin.py failed: {}", output.status);
    fed?;

    let text = String::from_utf8(output.stdout).unwrap();
    let traces: Vec<Vec<String>> = text
        .split_terminator("E\n")
        .map(|trace| trace.lines().map(str::to_owned).collect())
        .collect();
    assert_eq!(traces.len(), programs.len(), "a trace for each program");
    Ok(Some(traces))
}

/// Takes operations away from a program for as long as its traces differ, and tells how they do
/// then.
fn shrunk(program: &Program) -> String {
    let mut best = program.clone();
    loop {
        let smaller = best.smaller();
        let theirs = on_cpython(&smaller).unwrap().unwrap();
        let differs = smaller
            .into_iter()
            .zip(theirs)
            .find(|(smaller, theirs)| on_coloop(smaller) != *theirs);
        match differs {
            Some((smaller, _)) => best = smaller,
            None => break,
        }
    }
    let theirs = on_cpython(std::slice::from_ref(&best))
        .unwrap()
        .unwrap()
        .remove(0);
    let ours = on_coloop(&best);
    let same = ours
        .iter()
        .zip(&theirs)
        .take_while(|(ours, theirs)| ours == theirs)
        .count();
    format!(
        "COLOOP_TWIN_SEED={seed} COLOOP_TWIN_COUNT=1\n\n{program}\nshrunk to\n\n{best}\n\
         the same at first:\n{}\n\ncoloop then:\n{}\n\nasyncio then:\n{}\n",
        ours[..same].join("\n"),
        ours[same..].join("\n"),
        theirs[same..].join("\n"),
        seed = program.seed,
    )
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}
