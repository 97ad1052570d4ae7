//! Signals by name and by number, and which of them a loop cannot catch.
//!
//! Plain values that know nothing of loops. Everything that can be said against catching a signal
//! without asking the system is said here, before anything is changed.

use std::error::Error;
use std::fmt;
use std::io;

/// Names a signal, by the system's number.
///
/// The constants are the signals of POSIX, and a few more that every Unix has. Any other number, a
/// real-time signal's for instance, converts from an `i32`.
///
/// # Examples
///
/// ```
/// use coloop::Signal;
///
/// assert_eq!(Signal::TERM.to_string(), "SIGTERM");
/// assert_eq!(Signal::from(15), Signal::TERM);
/// ```
///
/// # Coming from asyncio
///
/// `signal.SIGTERM` of the module `signal` is `Signal::TERM`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

macro_rules! signals {
    ($($name:ident = $number:ident $alias:literal, $what:literal;)*) => {
        impl Signal {
            $(
                #[doc = $what]
                #[doc(alias = $alias)]
                pub const $name: Self = Self(libc::$number);
            )*
        }

        const NAMES: &[(i32, &str)] = &[$((libc::$number, $alias),)*];
    };
}

signals! {
    ABRT = SIGABRT "SIGABRT", "The process gives up, by `abort`.";
    ALRM = SIGALRM "SIGALRM", "A timer set by `alarm` has run down.";
    BUS = SIGBUS "SIGBUS", "A fault: memory that cannot be reached.";
    CHLD = SIGCHLD "SIGCHLD", "A child has ended, stopped or gone on.";
    CONT = SIGCONT "SIGCONT", "The process goes on after it was stopped.";
    FPE = SIGFPE "SIGFPE", "A fault: arithmetic that has no result.";
    HUP = SIGHUP "SIGHUP", "The terminal has gone; to daemons, read the configuration again.";
    ILL = SIGILL "SIGILL", "A fault: no such instruction.";
    INT = SIGINT "SIGINT", "Interrupt, Ctrl-C at a terminal.";
    IO = SIGIO "SIGIO", "A descriptor is ready, for who has asked for that.";
    KILL = SIGKILL "SIGKILL", "The end; it cannot be caught.";
    PIPE = SIGPIPE "SIGPIPE", "Nobody reads what is written; ignored in Rust programs from the start.";
    PROF = SIGPROF "SIGPROF", "A timer for profiling has run down.";
    QUIT = SIGQUIT "SIGQUIT", "Quit, Ctrl-\\ at a terminal.";
    SEGV = SIGSEGV "SIGSEGV", "A fault: memory that is not the process's.";
    STOP = SIGSTOP "SIGSTOP", "Stop; it cannot be caught.";
    SYS = SIGSYS "SIGSYS", "No such system call, or one that is not allowed.";
    TERM = SIGTERM "SIGTERM", "Please end: what `kill` sends.";
    TRAP = SIGTRAP "SIGTRAP", "A breakpoint.";
    TSTP = SIGTSTP "SIGTSTP", "Please stop, Ctrl-Z at a terminal.";
    TTIN = SIGTTIN "SIGTTIN", "A process in the background has read from its terminal.";
    TTOU = SIGTTOU "SIGTTOU", "A process in the background has written to its terminal.";
    URG = SIGURG "SIGURG", "Urgent data at a socket.";
    USR1 = SIGUSR1 "SIGUSR1", "Whatever the program says.";
    USR2 = SIGUSR2 "SIGUSR2", "Whatever the program says, the second.";
    VTALRM = SIGVTALRM "SIGVTALRM", "A timer of the process's own time has run down.";
    WINCH = SIGWINCH "SIGWINCH", "The terminal's size has changed.";
    XCPU = SIGXCPU "SIGXCPU", "The process has used the time it may use.";
    XFSZ = SIGXFSZ "SIGXFSZ", "A file has grown to the size it may have.";
}

impl Signal {
    /// Returns the system's number.
    pub const fn as_raw(self) -> i32 {
        self.0
    }

    /// The number, if a loop can catch the signal.
    pub(super) fn catchable(self) -> Result<i32, InvalidSignal> {
        match self {
            _ if !exists(self.0) => Err(InvalidSignal::OutOfRange(self.0)),
            Self::KILL | Self::STOP => Err(InvalidSignal::Uncatchable(self)),
            // The standard library's own handler, of overflowing stacks, lets go of this one.
            Self::BUS => Err(InvalidSignal::Fault(self)),
            _ if signal_hook::consts::FORBIDDEN.contains(&self.0) => {
                Err(InvalidSignal::Fault(self))
            }
            _ => Ok(self.0),
        }
    }
}

/// Those between the classic ones and the first that programs may use belong to the C library.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn exists(number: i32) -> bool {
    (1..32).contains(&number) || (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number)
}

/// How far the numbers go differs; the system refuses those beyond.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn exists(number: i32) -> bool {
    (1..128).contains(&number)
}

impl From<i32> for Signal {
    fn from(number: i32) -> Self {
        Self(number)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.pad(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal({self})")
    }
}

/// Says why a loop cannot catch a signal.
///
/// It comes inside of an [`io::Error`] of the kind [`InvalidInput`](io::ErrorKind::InvalidInput).
///
/// # Examples
///
/// ```
/// use coloop::{InvalidSignal, Signal};
///
/// let event_loop = coloop::EventLoop::new()?;
/// let error = event_loop.add_signal_handler(Signal::KILL, || ()).unwrap_err();
/// let reason = error.get_ref().and_then(|reason| reason.downcast_ref());
/// assert_eq!(reason, Some(&InvalidSignal::Uncatchable(Signal::KILL)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSignal {
    /// No signal has this number, or it is the C library's own.
    OutOfRange(i32),
    /// The system lets nobody catch it: `SIGKILL`, `SIGSTOP`.
    Uncatchable(Signal),
    /// It tells a thread that its next instruction cannot be executed, and comes again until something
    /// is done about that: a loop would be told too late.
    Fault(Signal),
}

impl fmt::Display for InvalidSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange(number) => write!(f, "a program has no signal of number {number}"),
            Self::Uncatchable(signal) => write!(f, "{signal} cannot be caught"),
            Self::Fault(signal) => write!(
                f,
                "{signal} is a fault of the thread that runs: a loop cannot handle it"
            ),
        }
    }
}

impl Error for InvalidSignal {}

impl From<InvalidSignal> for io::Error {
    fn from(error: InvalidSignal) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}
