//! The signals that loops of this process catch, and what was there before.
//!
//! What runs in the system's handler is `signal-hook`'s: it sets a flag, then writes a byte into a
//! pipe, and leaves `errno` as it was. It never takes its handler away again, so that is done here,
//! by `sigaction`.
//!
//! What must always hold:
//!
//! 1. The flag is set before the byte is written. A byte that finds the pipe full is lost and not
//!    missed, since others are in there; the flag says which signal it was.
//! 2. A signal that no loop catches has the action it had before the first one did, unless somebody
//!    else has set another since: then that one stays.
//! 3. Whoever catches or lets go holds the one lock meanwhile. The system's handler takes no lock.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::low_level::{pipe, unregister};
use signal_hook::{SigId, flag};

static ACTIONS: Mutex<BTreeMap<i32, Action>> = Mutex::new(BTreeMap::new());

/// What is to be done about one signal.
#[derive(Clone, Copy)]
struct Action {
    /// How many loops catch it.
    loops: usize,
    /// What was there before the first of them.
    before: libc::sigaction,
    /// The one that calls `signal-hook`. As long as it is not known, it is the one that is set.
    ours: Option<libc::sigaction>,
}

fn actions() -> MutexGuard<'static, BTreeMap<i32, Action>> {
    ACTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A signal that one loop catches; dropping it lets go.
pub(crate) struct Caught {
    signal: i32,
    came: Arc<AtomicBool>,
    flag: SigId,
    pipe: SigId,
}

impl Caught {
    /// Catches a signal, which must not be one of `signal-hook`'s forbidden ones: from now on it sets
    /// a flag and writes into a pipe.
    ///
    /// If that fails, everything is as it was.
    pub(crate) fn new(signal: i32, writer: &UnixStream) -> io::Result<Self> {
        let mut actions = actions();
        let known = actions.get(&signal).copied();
        let before = match known {
            Some(action) if action.loops > 0 || action.ours.is_none() => action.before,
            _ => sigaction(signal, None)?,
        };
        let writer = writer.try_clone()?;
        let came = Arc::new(AtomicBool::new(false));
        let flag = flag::register(signal, Arc::clone(&came))?;
        // From now on signal-hook takes its handler for installed, whatever happens here.
        let mut action = known.unwrap_or(Action {
            loops: 0,
            before,
            ours: None,
        });
        action.before = before;
        let hooked = pipe::register(signal, writer).and_then(|pipe| {
            let installed = action.install(signal);
            if installed.is_err() {
                unregister(pipe);
            }
            installed.map(|()| pipe)
        });
        match hooked {
            Ok(_) => action.loops += 1,
            Err(_) => {
                action.put_back(signal);
                unregister(flag);
            }
        }
        actions.insert(signal, action);
        Ok(Self {
            signal,
            came,
            flag,
            pipe: hooked?,
        })
    }

    /// Whether the signal has come since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.came.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Caught {
    fn drop(&mut self) {
        let mut actions = actions();
        if let Some(action) = actions.get_mut(&self.signal) {
            action.loops -= 1;
            action.put_back(self.signal);
        }
        unregister(self.pipe);
        unregister(self.flag);
    }
}

impl Action {
    /// Sets `signal-hook`'s action, unless a loop has done so already.
    fn install(&mut self, signal: i32) -> io::Result<()> {
        if self.loops > 0 {
            return Ok(());
        }
        let ours = match self.ours {
            Some(ours) => ours,
            None => ours(sigaction(signal, None)?),
        };
        sigaction(signal, Some(&ours))?;
        self.ours = Some(ours);
        Ok(())
    }

    /// Sets the action that was there before, if no loop catches the signal any more.
    fn put_back(&mut self, signal: i32) {
        if self.loops > 0 {
            return;
        }
        let is_ours = |set: &libc::sigaction| {
            let ours = |ours: libc::sigaction| ours.sa_sigaction == set.sa_sigaction;
            self.ours.is_none_or(ours)
        };
        // Whoever has set another action meanwhile wants that one to stay.
        if sigaction(signal, None).is_ok_and(|set| !is_ours(&set)) {
            return;
        }
        if let Ok(replaced) = sigaction(signal, Some(&self.before)) {
            self.ours.get_or_insert_with(|| ours(replaced));
        }
    }
}

/// The action of `signal-hook`, made to fit any thread: it uses the thread's signal stack where there
/// is one, and system calls go on after it where the system can do that.
fn ours(mut action: libc::sigaction) -> libc::sigaction {
    action.sa_flags |= libc::SA_ONSTACK | libc::SA_RESTART;
    action
}

/// Reads the action of a signal, and sets another if one is given.
#[expect(unsafe_code, reason = "no crate reads an action and sets it again")]
fn sigaction(signal: i32, new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let mut old = MaybeUninit::zeroed();
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `sigaction(2)` reads the new action, if there is one, and writes the old one; both
    // pointers live to the end of the call. What is set here was read here before, and differs in no
    // more than two flags that change nothing of how its handler is called: whoever installed it has
    // promised that it may run in any thread at any time.
    let done = unsafe { libc::sigaction(signal, new, old.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has written the action, and all zeros were a valid one already.
    Ok(unsafe { old.assume_init() })
}
