//! `libuv`: `libuv.c`, compiled when the benchmark runs, by the system's `cc` and with the system's
//! libuv. Where either is missing it is skipped.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::net::child::tail;

pub(crate) const NAME: &str = "libuv";

/// Where the compiled server is, of this run.
pub(crate) fn program() -> PathBuf {
    env::temp_dir().join(format!("coloop-net-libuv-{}", std::process::id()))
}

pub(crate) fn build() -> io::Result<()> {
    let mut cc = Command::new("cc")
        .args(["-O2", "-x", "c", "-", "-x", "none", "-luv", "-o"])
        .arg(program())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::other(format!("cc: {error}")))?;
    if let Some(mut source) = cc.stdin.take() {
        // A compiler that gives up early closes its end; what it says then is the reason.
        drop(source.write_all(include_bytes!("libuv.c")));
    }
    let said = cc.wait_with_output()?;
    if said.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&said.stderr);
    let error = complaint.lines().find(|line| line.contains("error"));
    Err(io::Error::other(error.map_or_else(
        || tail(&complaint),
        |line| line.trim().to_owned(),
    )))
}

pub(crate) fn remove() {
    drop(fs::remove_file(program()));
}
