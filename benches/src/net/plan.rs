//! Who serves, under which load, and what each figure is held against. Data only.

use super::servers::Kind::{self, Tcp, Unix};
use crate::plan::Goal::{self, AtMost, Limit};
use crate::plan::{Figure, Kind as Role};

pub(crate) const CONTESTANTS: &[(&str, Role)] = &[
    #[cfg(feature = "coloop")]
    (crate::plan::OURS, Role::Ours),
    (LIMIT, Role::Limit),
    ("mio", Role::Peer),
    ("libuv", Role::Peer),
    ("tokio", Role::Peer),
    ("tokio-shared", Role::Peer),
    ("smol", Role::Peer),
];

/// The limit that ratios are to.
pub(crate) const LIMIT: &str = "limit-polling";

/// Bytes of a message. All of them have the same size.
pub(crate) const SIZE: usize = 1024;

/// A load and the figure that it gives.
pub(crate) struct Scene {
    pub(crate) figure: Figure,
    pub(crate) kind: Kind,
    pub(crate) connections: usize,
    /// In a full run; counts come from so many and from three times so many.
    pub(crate) messages: u64,
}

impl Scene {
    /// The processor on which the client stays. The server has processor 0. With one connection
    /// both share it: every wait then brings exactly one event, and no time goes into waking
    /// another processor, which would cost more than all the rest.
    pub(crate) fn client(&self) -> usize {
        usize::from(self.connections > 1)
    }
}

const fn scene(
    name: &'static str,
    kind: Kind,
    connections: usize,
    messages: u64,
    goal: Goal,
) -> Scene {
    let label = match (kind, connections) {
        (Tcp, 0) => "TCP",
        (Unix, 0) => "unix",
        (Tcp, 1) => "TCP, 1 connection",
        (Unix, 1) => "unix, 1 connection",
        (Tcp, _) => "TCP, 100",
        (Unix, _) => "unix, 100",
    };
    Scene {
        figure: Figure { name, label, goal },
        kind,
        connections,
        messages,
    }
}

pub(crate) const CALLS: &[Scene] = &[
    scene("calls-tcp-1", Tcp, 1, 500, AtMost(3.05)),
    scene("calls-unix-1", Unix, 1, 500, AtMost(3.05)),
    scene("calls-tcp-100", Tcp, 100, 8_000, AtMost(2.1)),
    scene("calls-unix-100", Unix, 100, 8_000, AtMost(2.1)),
];

pub(crate) const FULL_SPEED: &[Scene] = &[
    scene("speed-tcp-1", Tcp, 1, 20_000, AtMost(3.05)),
    scene("speed-unix-1", Unix, 1, 20_000, AtMost(3.05)),
    scene("speed-tcp-100", Tcp, 100, 40_000, AtMost(2.1)),
    scene("speed-unix-100", Unix, 100, 40_000, AtMost(2.1)),
];

pub(crate) const INSTRUCTIONS: &[Scene] = &[
    scene("instructions-tcp-1", Tcp, 1, 500, AtMost(400.0)),
    scene("instructions-unix-1", Unix, 1, 500, AtMost(400.0)),
    scene("instructions-tcp-100", Tcp, 100, 4_000, AtMost(290.0)),
    scene("instructions-unix-100", Unix, 100, 4_000, AtMost(290.0)),
];

pub(crate) const CPU: &[Scene] = &[
    scene("cpu-tcp-1", Tcp, 1, 10_000, Limit(1.03)),
    scene("cpu-unix-1", Unix, 1, 10_000, Limit(1.03)),
    scene("cpu-tcp-100", Tcp, 100, 20_000, Limit(1.03)),
    scene("cpu-unix-100", Unix, 100, 20_000, Limit(1.03)),
];

pub(crate) const MEMORY: &[Scene] = &[
    scene("memory-tcp", Tcp, 0, 0, AtMost(300.0)),
    scene("memory-unix", Unix, 0, 0, AtMost(300.0)),
];
