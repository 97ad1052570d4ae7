//! A server as a process of its own, behind a tool that counts or not.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::servers::{Kind, libuv};
use crate::child::read;
use crate::measure;

/// A server that runs; it is killed when dropped.
pub(crate) struct Server {
    /// The tool around the server, or the server itself.
    outer: Child,
    /// The server.
    pid: i32,
    address: SockAddr,
    complains: Option<JoinHandle<String>>,
}

impl Server {
    /// Starts a contestant behind `wrapper` (none if empty) and waits until it serves.
    pub(crate) fn start(wrapper: &[&str], name: &str, kind: Kind) -> io::Result<Self> {
        let listener = listen(kind)?;
        let address = listener.local_addr()?;
        let socket = kind.name();
        let mut words: Vec<_> = wrapper.iter().map(|word| (*word).into()).collect();
        if name == libuv::NAME {
            words.extend([libuv::program().into_os_string(), socket.into()]);
        } else {
            words.push(env::current_exe()?.into_os_string());
            words.extend(["net", "--serve", name, "--socket", socket].map(Into::into));
        }
        let mut outer = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let complains = outer.stderr.take().map(read);
        let mut first = String::new();
        if let Some(stdout) = outer.stdout.take() {
            BufReader::new(stdout).read_line(&mut first)?;
        }
        let Ok(pid) = first.trim().parse() else {
            outer.kill()?;
            outer.wait()?;
            return Err(io::Error::other(tail(&text(complains))));
        };
        Ok(Self {
            outer,
            pid,
            address,
            complains,
        })
    }

    pub(crate) fn address(&self) -> &SockAddr {
        &self.address
    }

    /// CPU time so far in ns: all threads, user and system.
    pub(crate) fn cpu(&self) -> io::Result<u64> {
        measure::cpu_of(self.pid)
    }

    /// Resident bytes.
    pub(crate) fn resident(&self) -> u64 {
        measure::resident(&self.pid.to_string())
    }

    /// Ends the server, not the tool around it, and gives what the tool said.
    pub(crate) fn stop(mut self) -> io::Result<String> {
        self.terminate();
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.outer.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(io::Error::other("the server did not end"));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(text(self.complains.take()))
    }

    fn terminate(&self) {
        // SAFETY: a plain system call. The server has not been waited for, so the number is its.
        unsafe { libc::kill(self.pid, libc::SIGTERM) };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.outer.try_wait() {
            self.terminate();
            drop(self.outer.kill());
            drop(self.outer.wait());
        }
    }
}

/// A listening socket on a free port, or under a name that is not in the file system.
fn listen(kind: Kind) -> io::Result<Socket> {
    let (domain, address) = match kind {
        Kind::Tcp => {
            let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
            (Domain::IPV4, any.into())
        }
        Kind::Unix => {
            let name = format!("\0coloop-net-{}-{}", std::process::id(), measure::wall());
            (Domain::UNIX, SockAddr::unix(name)?)
        }
    };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.bind(&address)?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Lets this process and its children have as many descriptors as it may; says how many.
pub(crate) fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` outlives the call.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

fn text(complains: Option<JoinHandle<String>>) -> String {
    let said = complains.and_then(|complains| complains.join().ok());
    said.unwrap_or_default()
}

/// The last line of a complaint that says something.
pub(crate) fn tail(complaint: &str) -> String {
    let mut lines = complaint.lines().rev();
    let last = lines.find(|line| !line.trim().is_empty());
    last.unwrap_or("silent").trim().to_owned()
}
