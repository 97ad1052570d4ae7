//! Measures the loop beside its peers and its bare limits: in this process, and with `net` as the
//! first word as an echo server.
//!
//! `cargo run --release` runs every case of every contestant in a process of its own, in several
//! rounds: within a round all contestants run a case one after the other (in turn another one
//! first), so that what the machine does meanwhile meets them all. `README.md` says what the
//! figures are and which options there are.

mod cases;
mod child;
#[cfg(feature = "coloop")]
mod coloop;
mod limit;
mod measure;
mod net;
mod peers;
mod plan;
mod table;

use std::env;
use std::fs;

use self::measure::{Counting, OPERATIONS};
use self::plan::{CONTESTANTS, Case, Figure, GROUPS, Goal, Group, LIMIT};
use self::table::Results;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const USAGE: &str =
    "options: [--rounds N] [--quick] [--instructions] [--only NAME,…] [--cases CASE,…]
of a child: --contestant NAME --case CASE [--size N]
or: net [options of net]";

#[derive(Default)]
struct Options {
    rounds: Option<usize>,
    quick: bool,
    instructions: bool,
    only: Vec<String>,
    cases: Vec<String>,
    contestant: Option<String>,
    case: Option<String>,
    size: Option<u64>,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let list = |word: String| word.split(',').map(str::to_owned).collect();
        let mut options = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--instructions" => options.instructions = true,
                "--rounds" => options.rounds = Some(words.next()?.parse().ok()?),
                "--only" => options.only = list(words.next()?),
                "--cases" => options.cases = list(words.next()?),
                "--contestant" => options.contestant = words.next(),
                "--case" => options.case = words.next(),
                "--size" => options.size = Some(words.next()?.parse().ok()?),
                _ => return None,
            }
        }
        Some(options)
    }

    fn contestants(&self) -> Vec<&'static str> {
        let all = CONTESTANTS.iter().map(|(name, _)| *name);
        all.filter(|name| self.only.is_empty() || self.only.iter().any(|only| only == name))
            .collect()
    }

    fn wants(&self, case: &Case) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|name| name == case.name)
    }
}

/// Ends the process if one of `asked` is not among `known`.
fn check<'a>(what: &str, asked: &[String], known: impl Iterator<Item = &'a str> + Clone) {
    for name in asked {
        if !known.clone().any(|known| known == name) {
            let known = known.collect::<Vec<_>>().join(" ");
            eprintln!("no {what} is called {name}; there are: {known}");
            std::process::exit(2);
        }
    }
}

fn main() {
    let mut words = env::args().skip(1).peekable();
    if words.next_if(|word| word == "net").is_some() {
        return net::main(words);
    }
    let Some(options) = Options::parse(words) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let cases = GROUPS.iter().flat_map(|group| group.cases);
    let names = CONTESTANTS.iter().map(|(name, _)| *name);
    check("case", &options.cases, cases.clone().map(|case| case.name));
    check(
        "case",
        options.case.as_slice(),
        cases.clone().map(|case| case.name),
    );
    check("contestant", &options.only, names.clone());
    check("contestant", options.contestant.as_slice(), names);
    if let (Some(contestant), Some(name)) = (&options.contestant, &options.case) {
        let full = cases.clone().find(|case| case.name == name);
        let n = options.size.or_else(|| full.map(|case| case.n));
        return child::run(contestant, name, n.unwrap_or(1));
    }
    if options.instructions {
        count_instructions(&options);
    } else {
        time(&options);
    }
}

fn time(options: &Options) {
    let rounds = options.rounds.unwrap_or(5);
    let part = if options.quick { 8 } else { 1 };
    let contestants = options.contestants();
    let mut results = Results::new(CONTESTANTS, LIMIT);
    println!(
        "{rounds} rounds of 1/{part} of a full run; load before: {}",
        load()
    );
    for round in 0..rounds {
        for case in wanted(options) {
            for at in 0..contestants.len() {
                let who = contestants[(at + round) % contestants.len()];
                let figures = match child::start(&[], who, case.name, case.n / part) {
                    Ok((figures, _)) => figures,
                    Err(error) => {
                        eprintln!("{who}, {}: {error}", case.name);
                        child::Figures::default()
                    }
                };
                for figure in case.figures {
                    results.add(who, figure.name, figures.get(figure.name).copied());
                }
            }
        }
        eprintln!("round {} of {rounds}; load {}", round + 1, load());
    }
    for group in GROUPS {
        let figures = of(group, options)
            .flat_map(|case| case.figures)
            .collect::<Vec<_>>();
        if !figures.is_empty() {
            results.print(group.title, &figures);
        }
    }
}

/// User instructions an operation: the difference of two runs under callgrind, which no other
/// process can disturb. What a run costs beside its operations is the same in both.
fn count_instructions(options: &Options) {
    const VALGRIND: &[&str] = &[
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
    ];
    if let Err(error) = std::process::Command::new("valgrind")
        .arg("--version")
        .output()
    {
        eprintln!("valgrind is not to be had: {error}");
        std::process::exit(1);
    }
    let mut results = Results::new(CONTESTANTS, LIMIT);
    let mut heads = Vec::new();
    for case in wanted(options).filter(|case| case.counted > 0) {
        heads.push(Figure {
            name: case.name,
            label: case.figures[0].label,
            goal: Goal::Open,
        });
        for who in options.contestants() {
            let run = |n| {
                let (figures, said) = child::start(VALGRIND, who, case.name, n)
                    .inspect_err(|error| eprintln!("{who}, {}: {error}", case.name))
                    .ok()?;
                Some((*figures.get(OPERATIONS)?, collected(&said)?))
            };
            let each = run(case.counted).and_then(|(less, below)| {
                let (more, above) = run(2 * case.counted)?;
                Some((above - below) / (more - less))
            });
            results.add(who, case.name, each);
        }
    }
    results.print(
        "User instructions an operation",
        &heads.iter().collect::<Vec<_>>(),
    );
}

/// Callgrind's count of instructions: `==1== Collected : 123`.
fn collected(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("Collected"))?;
    line.split_whitespace().last()?.parse().ok()
}

fn of<'a>(group: &'static Group, options: &'a Options) -> impl Iterator<Item = &'static Case> + 'a {
    group.cases.iter().filter(|case| options.wants(case))
}

fn wanted(options: &Options) -> impl Iterator<Item = &'static Case> {
    GROUPS.iter().flat_map(|group| of(group, options))
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
