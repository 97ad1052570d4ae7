//! Runs one case of one contestant, as a process of its own.
//!
//! A fresh process each time: the heap has no other case's holes in it, resident memory starts low,
//! and no runtime's helper thread disturbs another runtime. The loop's thread stays on processor 0;
//! cases with a second thread keep that one on processor 1.

use std::collections::HashMap;
use std::env;
use std::io::{self, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cases::{callbacks, later, tasks};
use crate::limit::{async_task::AsyncTask, plain::Plain, vecdeque::Queue};
use crate::measure::pin;
use crate::peers::{monoio::Monoio, smol::Smol, tokio::Tokio};

/// What runs in the child. A case that the contestant does not have prints nothing.
pub(crate) fn run(contestant: &str, case: &str, n: u64) {
    pin(0);
    match contestant {
        #[cfg(feature = "coloop")]
        "coloop" => {
            tasks::<::coloop::LoopHandle>(case, n);
            callbacks::<::coloop::LoopHandle>(case, n);
            later::<::coloop::LoopHandle>(case, n);
        }
        "limit-async-task" => {
            tasks::<AsyncTask>(case, n);
            callbacks::<AsyncTask>(case, n);
            later::<AsyncTask>(case, n);
        }
        "limit-plain" => {
            tasks::<Plain>(case, n);
            callbacks::<Plain>(case, n);
            later::<Plain>(case, n);
        }
        "limit-vecdeque" => callbacks::<Queue>(case, n),
        "tokio-localset" => tasks::<Tokio<false>>(case, n),
        "tokio-local" => tasks::<Tokio<true>>(case, n),
        "smol" => tasks::<Smol>(case, n),
        "monoio" => tasks::<Monoio>(case, n),
        other => panic!("no contestant is called {other}"),
    }
}

/// The figures that a child printed, by name.
pub(crate) type Figures = HashMap<String, f64>;

/// Starts a child (behind `wrapper`, if any), waits for it, and gives what it said on both streams.
///
/// # Errors
///
/// If it cannot be started, fails, or takes more than three minutes.
pub(crate) fn start(
    wrapper: &[&str],
    contestant: &str,
    case: &str,
    n: u64,
) -> io::Result<(Figures, String)> {
    let own = env::current_exe()?;
    let mut command = match wrapper {
        [] => Command::new(own),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(own);
            command
        }
    };
    command.args([
        "--contestant",
        contestant,
        "--case",
        case,
        "--size",
        &n.to_string(),
    ]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let said = child.stdout.take().map(read);
    let complained = child.stderr.take().map(read);
    let deadline = Instant::now() + Duration::from_secs(180);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break child.wait()?;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let text = |stream: Option<JoinHandle<String>>| stream.and_then(|stream| stream.join().ok());
    let (said, complained) = (text(said), text(complained));
    let (said, complained) = (said.unwrap_or_default(), complained.unwrap_or_default());
    if !status.success() {
        return Err(io::Error::other(reason(status, &complained)));
    }
    let figures = said.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok((figures.collect(), complained))
}

/// Reads a stream to its end on the side, so that a child never waits for a full pipe.
pub(crate) fn read(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    })
}

fn reason(status: ExitStatus, complained: &str) -> String {
    let complaint = complained
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("silent");
    format!("{status}: {complaint}")
}
