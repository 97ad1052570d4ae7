//! What a figure is made of: clocks, heap, resident memory, and the line a child prints.
//!
//! * **CPU time** is the process CPU clock (`CLOCK_PROCESS_CPUTIME_ID`): every thread, user and
//!   system. It stands still while the process waits or another one has the processor, so it is
//!   less blurred by a busy machine than wall time is.
//! * **Heap** is what the program asked the global allocator for and has not given back. The
//!   counter is switched on in the memory cases only; elsewhere it costs one predictable branch an
//!   allocation, the same for all contestants.
//! * **Resident memory** is what the system gave: it adds the allocator's headers and rounding.
//! * A child prints `name value`, one figure a line; the parent does the rest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};

/// The system's allocator with a counter of live bytes.
pub(crate) struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    if COUNTS.load(Ordering::Relaxed) {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is handed on to `System` unchanged; the counter touches no memory of theirs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `GlobalAlloc`'s contract, which is `System`'s too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// Memory from now on, by both counts.
pub(crate) struct Memory {
    resident: u64,
}

impl Memory {
    pub(crate) fn start() -> Self {
        COUNTS.store(true, Ordering::Relaxed);
        LIVE.store(0, Ordering::Relaxed);
        Self {
            resident: resident("self"),
        }
    }

    /// Prints `<name>-heap` and `<name>-rss`: bytes each of `n` things.
    pub(crate) fn emit(self, name: &str, n: u64) {
        let heap = LIVE.load(Ordering::Relaxed);
        COUNTS.store(false, Ordering::Relaxed);
        let resident = resident("self").saturating_sub(self.resident);
        emit(&format!("{name}-heap"), heap as f64 / n as f64);
        emit(&format!("{name}-rss"), resident as f64 / n as f64);
    }
}

/// Resident bytes of a process, by its number or `self`.
pub(crate) fn resident(process: &str) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{process}/statm"))
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    // SAFETY: `sysconf` reads a number and takes no pointer.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
}

/// An empty vector with room for `n`, whose pages the system has already given, so that neither
/// the clock nor resident memory is charged for the list that a case keeps its things in.
pub(crate) fn roomy<T>(n: u64) -> Vec<T> {
    let mut list: Vec<T> = Vec::with_capacity(n as usize);
    let spare = list.spare_capacity_mut();
    let bytes = size_of_val(spare);
    let start = spare.as_mut_ptr().cast::<u8>();
    for at in (0..bytes).step_by(1024) {
        // SAFETY: `at` lies inside the vector's spare capacity, which nothing else refers to.
        unsafe { start.add(at).write_volatile(1) };
    }
    list
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn wall() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

/// CPU time of another process so far, in ns: every thread, user and system.
pub(crate) fn cpu_of(process: libc::pid_t) -> io::Result<u64> {
    let mut id = 0;
    // SAFETY: `id` is a valid place for the result.
    match unsafe { libc::clock_getcpuclockid(process, &raw mut id) } {
        0 => Ok(clock(id)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// CPU time from now on.
pub(crate) struct Span(u64);

impl Span {
    pub(crate) fn start() -> Self {
        Self(clock(libc::CLOCK_PROCESS_CPUTIME_ID))
    }

    /// Prints nanoseconds of CPU for each of `n` operations.
    pub(crate) fn emit(self, name: &str, n: u64) {
        let spent = clock(libc::CLOCK_PROCESS_CPUTIME_ID) - self.0;
        emit(name, spent as f64 / n as f64);
        emit(OPERATIONS, n as f64);
    }
}

/// The name under which a child says how many operations its (last) span held.
pub(crate) const OPERATIONS: &str = "operations";

pub(crate) fn emit(name: &str, value: f64) {
    println!("{name} {value}");
}

/// Prints `<name>-p50` and `<name>-p99` of durations in ns, in µs.
pub(crate) fn emit_quantiles(name: &str, mut durations: Vec<u64>) {
    durations.sort_unstable();
    let last = durations.len() - 1;
    for (suffix, share) in [("p50", 0.50), ("p99", 0.99)] {
        let at = (last as f64 * share).round() as usize;
        emit(&format!("{name}-{suffix}"), durations[at] as f64 / 1_000.0);
    }
}

/// Keeps this thread on one processor, where the system lets it.
pub(crate) fn pin(cpu: usize) {
    // SAFETY: a zeroed `cpu_set_t` is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` is 0 or 1, far below the set's size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set outlives the call. A refusal leaves the thread where it was.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

/// Pseudo-random numbers (splitmix64): the same ones for every contestant.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}
