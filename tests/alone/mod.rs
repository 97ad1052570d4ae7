//! What tests in a process of their own have in common: children, forks, faults by `strace`.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

// ---- Children ----------------------------------------------------------------------------------

/// Says which test this process was started for.
const CHILD: &str = "COLOOP_TEST_CHILD";
/// Long enough for any child on any machine: who takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) status: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs this binary for one test, behind another program where one is named.
pub(crate) fn run_child(name: &str, before: &[&str]) -> Ended {
    let this = env::current_exe().unwrap();
    let mut words = before.iter().map(Into::into).chain([this.into_os_string()]);
    let mut command = Command::new(words.next().unwrap());
    let mut child = command
        .args(words)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let collect = |mut from: Box<dyn Read + Send>| {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            let _ = tell.send(String::from_utf8_lossy(&bytes).into_owned());
        });
        told
    };
    let stdout = collect(Box::new(child.stdout.take().unwrap()));
    let stderr = collect(Box::new(child.stderr.take().unwrap()));
    let Ok(stdout) = stdout.recv_timeout(PATIENCE) else {
        // The whole group: whoever is traced outlives its tracer.
        let group = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        child.wait().unwrap();
        panic!("{name} hangs; it said: {:?}", stderr.recv_timeout(PATIENCE));
    };
    let stderr = stderr.recv_timeout(PATIENCE).unwrap();
    let status = child.wait().unwrap();
    Ended {
        success: status.success() && stdout.contains("1 passed"),
        status: status.to_string(),
        stdout,
        stderr,
    }
}

pub(crate) fn is_child(name: &str) -> bool {
    env::var(CHILD).is_ok_and(|child| child == name)
}

/// Runs `body` in a process of its own, and gives what that wrote on its standard error stream.
#[track_caller]
pub(crate) fn in_a_process(name: &str, body: impl FnOnce()) -> String {
    if is_child(name) {
        body();
        return String::new();
    }
    let ended = run_child(name, &[]);
    assert!(
        ended.success,
        "{}\n{}{}",
        ended.status, ended.stdout, ended.stderr
    );
    ended.stderr
}

/// The open descriptors of this process.
pub(crate) fn descriptors() -> Vec<(RawFd, String)> {
    let mut open: Vec<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, target.display().to_string()))
        })
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .collect();
    open.sort();
    open
}

// ---- Forks ---------------------------------------------------------------------------------------

/// Runs `check` in a forked child and asserts that it was content.
#[track_caller]
#[expect(unsafe_code, reason = "no crate forks")]
pub(crate) fn forked(what: &str, check: impl FnOnce()) {
    io::stdout().flush().unwrap();
    // SAFETY: the child goes on in this thread alone. Nothing that the test harness's other thread
    // may hold a lock of is used there: it runs the check and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "cannot fork");
    if pid == 0 {
        let content = panic::catch_unwind(AssertUnwindSafe(check)).is_ok();
        // SAFETY: ends the process, and with it everything that could be in the wrong state.
        unsafe { libc::_exit(i32::from(!content)) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was just made; the status is written to a live variable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(
        (waited, status),
        (pid, 0),
        "{what}: the child is not content"
    );
}

// ---- Faults injected into system calls -----------------------------------------------------------

/// What `strace` injects, and where it writes the calls that it has seen.
pub(crate) struct Injected {
    pub(crate) ended: Ended,
    /// How many calls have been made to fail.
    pub(crate) count: usize,
}

impl Injected {
    /// The lines that the helper has written.
    pub(crate) fn said(&self) -> Vec<&str> {
        let lines = self.ended.stdout.lines();
        lines.filter_map(|line| line.strip_prefix("- ")).collect()
    }

    #[track_caller]
    pub(crate) fn assert_sound(&self, faults: &[&str]) {
        assert!(
            self.ended.success && !self.ended.stderr.contains("panicked"),
            "{faults:?}: {}\n{}{}",
            self.ended.status,
            self.ended.stdout,
            self.ended.stderr
        );
    }
}

/// Whether `strace` can be used here, asked once.
fn can_inject() -> bool {
    static CAN: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *CAN.get_or_init(|| {
        let probe = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(["-e", "inject=epoll_pwait2:error=ENOSYS", "true"])
            .stderr(Stdio::null())
            .status();
        let can = probe.is_ok_and(|status| status.success());
        if !can {
            println!("skipped: strace is not there, cannot trace here or does not know the calls");
        }
        can
    })
}

/// Runs a helper, which is a test of this binary, under faults; `None` where that is not possible.
pub(crate) fn inject_into(helper: &str, faults: &[&str], options: &[&str]) -> Option<Injected> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    if !can_inject() {
        return None;
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let log = env::temp_dir().join(format!("coloop-{}-{number}.strace", std::process::id()));
    let log = log.to_str().unwrap();
    let faults: Vec<String> = faults
        .iter()
        .map(|fault| format!("inject={fault}"))
        .collect();
    let mut words = vec!["strace", "-f", "-qq", "-o", log];
    words.extend(options);
    for fault in &faults {
        words.extend(["-e", fault]);
    }
    let ended = run_child(helper, &words);
    let calls = fs::read_to_string(log).unwrap();
    fs::remove_file(log).unwrap();
    Some(Injected {
        ended,
        count: calls.matches("(INJECTED)").count(),
    })
}
