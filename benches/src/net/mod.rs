//! Echo servers: what a message costs, beside peers and beside a bare limit.
//!
//! Every server is a child of this program, on processor 0, and finds its listening socket on
//! descriptor 0, so that all sockets are made alike. This process is the client: a closed loop over
//! a number of connections, which sends an exact number of messages and waits for all of them to
//! come back. Counts are differences of two such runs, so that starting and connecting cancel out.

mod child;
mod load;
mod plan;
mod servers;
mod tools;
mod verify;

use std::io;
use std::time::Duration;

use self::child::Server;
use self::load::Load;
use self::plan::{CALLS, CONTESTANTS, CPU, FULL_SPEED, INSTRUCTIONS, LIMIT, MEMORY, Scene};
use self::servers::{Kind, libuv};
use self::tools::Tool;
use crate::load as load_average;
use crate::measure::pin;
use crate::plan::Figure;
use crate::table::{Results, number};

pub(crate) const USAGE: &str =
    "options of net: [--rounds N] [--quick] [--only NAME,…] [--parts PART,…]
parts: calls instructions cpu memory
of a child: --serve NAME --socket tcp|unix";

const PARTS: &[&str] = &["calls", "instructions", "cpu", "memory"];
/// Idle connections, where the limit of descriptors allows them.
const IDLE: usize = 8_000;

struct Options {
    rounds: usize,
    quick: bool,
    only: Vec<String>,
    parts: Vec<String>,
    serve: Option<String>,
    socket: Kind,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let list = |word: String| word.split(',').map(str::to_owned).collect();
        let mut options = Self {
            rounds: 20,
            quick: false,
            only: Vec::new(),
            parts: Vec::new(),
            serve: None,
            socket: Kind::Tcp,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => options.quick = true,
                "--rounds" => options.rounds = words.next()?.parse().ok()?,
                "--only" => options.only = list(words.next()?),
                "--parts" => options.parts = list(words.next()?),
                "--serve" => options.serve = Some(words.next()?),
                "--socket" => options.socket = Kind::named(&words.next()?)?,
                _ => return None,
            }
        }
        Some(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

/// What `coloop-benches net …` does.
pub(crate) fn main(words: impl Iterator<Item = String>) {
    let Some(options) = Options::parse(words) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let names = CONTESTANTS.iter().map(|(name, _)| *name);
    crate::check("contestant", &options.only, names.clone());
    crate::check("contestant", options.serve.as_slice(), names.clone());
    crate::check("part", &options.parts, PARTS.iter().copied());
    let done = match &options.serve {
        Some(name) => servers::serve(name, options.socket),
        None => compare(&options, names.collect()),
    };
    if let Err(error) = done {
        eprintln!("net: {error}");
        std::process::exit(1);
    }
}

fn compare(options: &Options, mut names: Vec<&'static str>) -> io::Result<()> {
    names
        .retain(|name| options.only.is_empty() || options.only.iter().any(|wanted| wanted == name));
    if names.contains(&libuv::NAME)
        && let Err(error) = libuv::build()
    {
        println!("skipped: {}: {error}", libuv::NAME);
        names.retain(|name| *name != libuv::NAME);
    }
    let done = run(options, &mut names);
    libuv::remove();
    done
}

fn run(options: &Options, names: &mut Vec<&'static str>) -> io::Result<()> {
    let descriptors = child::raise_descriptor_limit();
    println!("load before: {}", load_average());
    let mut wrong = 0;
    names.retain(|name| {
        let checked = [Kind::Tcp, Kind::Unix]
            .into_iter()
            .try_for_each(|kind| verify::echoes(name, kind));
        if let Err(error) = &checked {
            println!("LEFT OUT: {name}: {error}");
            wrong += 1;
        }
        checked.is_ok()
    });
    println!("every byte back, {}: {}", verify::SAID, names.join(" "));
    let part = if options.quick { 8 } else { 1 };
    if options.wants("calls") {
        for (tool, scenes, title) in [
            (&tools::STRACE, CALLS, "System calls a message"),
            (
                &tools::PERF,
                FULL_SPEED,
                "System calls a message, at full speed",
            ),
        ] {
            count(tool, scenes, names, title, part);
        }
    }
    if options.wants("instructions") {
        let title = "User instructions a message";
        count(&tools::VALGRIND, INSTRUCTIONS, names, title, part);
    }
    if options.wants("cpu") {
        pair(options, names, part);
    }
    if options.wants("memory") {
        let connections = IDLE.min(descriptors.saturating_sub(100)) / part as usize;
        remember(names, connections);
    }
    match wrong {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("{wrong} servers do not echo"))),
    }
}

/// A figure of each scene from a tool around the server: the difference of two runs.
fn count(tool: &Tool, scenes: &'static [Scene], names: &[&'static str], title: &str, part: u64) {
    if let Err(error) = tool.works() {
        println!("skipped: {title}: {error}");
        return;
    }
    let mut results = Results::new(CONTESTANTS, LIMIT);
    let mut kinds_of_calls = Vec::new();
    for scene in scenes {
        for name in names {
            let few = scene.messages / part;
            let figure = (|| {
                let (below, calls_below) = counted(tool, name, scene, few)?;
                let (above, calls_above) = counted(tool, name, scene, 3 * few)?;
                let each = |more: f64, less: f64| (more - less) / (2 * few) as f64;
                if scene.connections == 1 && scene.kind == Kind::Tcp && !calls_above.is_empty() {
                    let calls = calls_above.iter().map(|(call, more)| {
                        let less = calls_below.iter().find(|(below, _)| below == call);
                        (call.clone(), each(*more, less.map_or(0.0, |less| less.1)))
                    });
                    kinds_of_calls.push((*name, calls.collect::<Vec<_>>()));
                }
                io::Result::Ok(each(above, below))
            })();
            let figure = figure
                .inspect_err(|error| eprintln!("{name}, {}: {error}", scene.figure.name))
                .ok();
            results.add(name, scene.figure.name, figure);
        }
    }
    results.print(&format!("{title} ({})", tool.name), &figures(scenes));
    if !kinds_of_calls.is_empty() {
        println!("\nWhich ones, TCP, 1 connection:\n");
    }
    for (name, mut calls) in kinds_of_calls {
        calls.retain(|(_, each)| *each >= 0.005);
        calls.sort_by(|one, other| other.1.total_cmp(&one.1));
        let calls = calls
            .iter()
            .map(|(call, each)| format!("{call} {}", number(*each)));
        println!("* `{name}`: {}", calls.collect::<Vec<_>>().join(", "));
    }
}

/// What a tool counted in a whole run of a server that echoed so many messages.
fn counted(tool: &Tool, name: &str, scene: &Scene, messages: u64) -> io::Result<tools::Count> {
    let server = Server::start(tool.command, name, scene.kind)?;
    pin(scene.client());
    let pause = match scene.connections {
        1 => tool.pause,
        _ => Duration::ZERO,
    };
    let loaded = Load::connect(server.address(), scene.connections)
        .and_then(|mut load| load.run(messages, pause));
    let said = server.stop()?;
    loaded?;
    tool.read(&said)
}

/// CPU a message: all servers are up at once and get the same slice of work in turn, so that what
/// the machine does meanwhile meets them all.
fn pair(options: &Options, names: &[&'static str], part: u64) {
    let mut results = Results::new(CONTESTANTS, LIMIT);
    for scene in CPU {
        pin(scene.client());
        let mut up = Vec::new();
        for name in names {
            let started = Server::start(&[], name, scene.kind).and_then(|server| {
                let load = Load::connect(server.address(), scene.connections)?;
                Ok((*name, server, load))
            });
            match started {
                Ok(started) => up.push(started),
                Err(error) => eprintln!("{name}, {}: {error}", scene.figure.name),
            }
        }
        let n = scene.messages / part;
        for round in 0..options.rounds {
            for at in 0..up.len() {
                let turn = (at + round) % up.len();
                let (name, server, load) = &mut up[turn];
                let spent = (|| {
                    load.run(n / 10, Duration::ZERO)?;
                    let before = server.cpu()?;
                    load.run(n, Duration::ZERO)?;
                    io::Result::Ok((server.cpu()? - before) as f64 / n as f64)
                })();
                let spent = spent
                    .inspect_err(|error| eprintln!("{name}, {}: {error}", scene.figure.name))
                    .ok();
                results.add(name, scene.figure.name, spent);
            }
        }
    }
    let title = format!("Server CPU ns a message, {} rounds", options.rounds);
    results.print(&title, &figures(CPU));
    println!("\nload after: {}", load_average());
}

fn remember(names: &[&'static str], connections: usize) {
    let mut results = Results::new(CONTESTANTS, LIMIT);
    for name in names {
        for scene in MEMORY {
            let bytes = Server::start(&[], name, scene.kind)
                .and_then(|server| load::idle(&server, connections))
                .inspect_err(|error| eprintln!("{name}, {}: {error}", scene.figure.name))
                .ok();
            results.add(name, scene.figure.name, bytes);
        }
    }
    let title = format!("Memory an idle connection, bytes of RSS ({connections} connections)");
    results.print(&title, &figures(MEMORY));
}

fn figures(scenes: &'static [Scene]) -> Vec<&'static Figure> {
    scenes.iter().map(|scene| &scene.figure).collect()
}
