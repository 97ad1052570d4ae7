//! Programs that count what another program does, and how their reports are read.
//!
//! All of them start the server themselves and report on its standard error when it has ended.

use std::io;
use std::process::Command;
use std::time::Duration;

use super::child::tail;

/// A total, and what it is made of where the tool says so.
pub(crate) type Count = (f64, Vec<(String, f64)>);

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// What stands before the program.
    pub(crate) command: &'static [&'static str],
    /// How long to wait before each message of a single connection, so that the server, which the
    /// tool slows down, rests when it comes, as it does without the tool.
    pub(crate) pause: Duration,
    parse: fn(&str) -> Option<Count>,
}

impl Tool {
    /// Whether it is there, may be used here, and is understood.
    pub(crate) fn works(&self) -> io::Result<()> {
        let mut words = self.command.iter().chain(&["true"]);
        let program = words.next().copied().unwrap_or_default();
        let said = Command::new(program)
            .args(words)
            .output()
            .map_err(|error| io::Error::other(format!("{program}: {error}")))?;
        self.read(&String::from_utf8_lossy(&said.stderr)).map(drop)
    }

    pub(crate) fn read(&self, said: &str) -> io::Result<Count> {
        let count = (self.parse)(said);
        count.ok_or_else(|| io::Error::other(format!("{}: {}", self.name, tail(said))))
    }
}

/// Stops the server at every call. At many connections much arrives meanwhile, so each wait finds
/// them all ready, and a server that reads before it waits always finds something.
pub(crate) const STRACE: Tool = Tool {
    name: "strace",
    command: &["strace", "-f", "-c", "-qq"],
    pause: Duration::from_millis(1),
    parse: strace,
};

/// Counts by the kernel's tracepoint, which many systems keep from plain users.
pub(crate) const PERF: Tool = Tool {
    name: "perf",
    command: &["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "--"],
    pause: Duration::ZERO,
    parse: perf,
};

pub(crate) const VALGRIND: Tool = Tool {
    name: "callgrind",
    command: &[
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
    ],
    pause: Duration::from_millis(1),
    parse: |said| Some((crate::collected(said)?, Vec::new())),
};

/// Lines of `% time, seconds, usecs/call, calls, [errors,] name`.
fn strace(said: &str) -> Option<Count> {
    let (mut total, mut calls) = (None, Vec::new());
    for line in said.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (Some(count), Some(name)) = (words.get(3), words.get(4..).and_then(<[_]>::last)) else {
            continue;
        };
        match count.parse() {
            Ok(count) if *name == "total" => total = Some(count),
            Ok(count) => calls.push(((*name).to_owned(), count)),
            Err(_) => {}
        }
    }
    Some((total?, calls))
}

/// A line of `count,unit,event,…`.
fn perf(said: &str) -> Option<Count> {
    let line = said.lines().find(|line| line.contains("sys_enter"))?;
    Some((line.split(',').next()?.parse().ok()?, Vec::new()))
}
