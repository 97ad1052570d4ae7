//! Who runs, what is run, and what each figure is held against. Data only.

/// What a contestant is to the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Peer,
    Limit,
}

pub(crate) const CONTESTANTS: &[(&str, Kind)] = &[
    #[cfg(feature = "coloop")]
    (OURS, Kind::Ours),
    (LIMIT, Kind::Limit),
    ("limit-plain", Kind::Limit),
    ("limit-vecdeque", Kind::Limit),
    ("tokio-localset", Kind::Peer),
    ("tokio-local", Kind::Peer),
    ("smol", Kind::Peer),
    ("monoio", Kind::Peer),
];

pub(crate) const OURS: &str = "coloop";
/// The limit that ratios are to.
pub(crate) const LIMIT: &str = "limit-async-task";

/// What ours must reach.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// None is set: shown for comparison.
    Open,
    /// So many times the limit of the same round.
    Limit(f64),
    /// So many times the best peer of the same round.
    Peer(f64),
    /// A figure that does not depend on the machine's speed.
    AtMost(f64),
}

/// A figure that a case prints.
pub(crate) struct Figure {
    /// As the child prints it.
    pub(crate) name: &'static str,
    /// As the table heads it.
    pub(crate) label: &'static str,
    pub(crate) goal: Goal,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How many operations a full run does.
    pub(crate) n: u64,
    pub(crate) figures: &'static [Figure],
    /// How many operations the smaller of two runs under callgrind does; 0: not run so.
    pub(crate) counted: u64,
}

pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) cases: &'static [Case],
}

const fn figure(name: &'static str, label: &'static str, goal: Goal) -> Figure {
    Figure { name, label, goal }
}

const fn case(name: &'static str, n: u64, figures: &'static [Figure]) -> Case {
    Case {
        name,
        n,
        figures,
        counted: 0,
    }
}

const fn counted(name: &'static str, n: u64, figures: &'static [Figure]) -> Case {
    Case {
        name,
        n,
        figures,
        counted: 20_000,
    }
}

use Goal::{AtMost, Limit, Open, Peer};

/// The memory cases stay just below a power of two, full and quick, where a doubling queue has the
/// least to spare.
pub(crate) const GROUPS: &[Group] = &[
    Group {
        title: "Callbacks, CPU ns each",
        cases: &[
            counted(
                "call-soon-batch",
                2_000_000,
                &[figure(
                    "call-soon-batch",
                    "call_soon, by the 1,000",
                    Limit(1.3),
                )],
            ),
            counted(
                "call-soon-chain",
                2_000_000,
                &[figure("call-soon-chain", "call_soon, chain", Limit(1.3))],
            ),
        ],
    },
    Group {
        title: "Tasks, CPU ns each",
        cases: &[
            counted(
                "spawn",
                1_000_000,
                &[figure("spawn", "spawn all", Limit(1.15))],
            ),
            counted(
                "spawn-await",
                1_000_000,
                &[figure("spawn-await", "spawn + await", Limit(1.15))],
            ),
            counted(
                "spawn-await-main",
                500_000,
                &[figure("spawn-await-main", "same, in main", Open)],
            ),
            counted(
                "yield-1",
                2_000_000,
                &[figure("yield-1", "yield, 1 task", Limit(1.3))],
            ),
            counted(
                "yield-1-own",
                500_000,
                &[figure("yield-1-own", "own yield", Open)],
            ),
            counted(
                "yield-100",
                2_000_000,
                &[figure("yield-100", "yield, 100", Limit(1.3))],
            ),
            counted(
                "ping-pong",
                1_000_000,
                &[figure("ping-pong", "ping-pong", Limit(1.3))],
            ),
        ],
    },
    Group {
        title: "Timers, CPU ns each; lateness in µs",
        cases: &[
            case(
                "sleep",
                1_000_000,
                &[
                    figure("sleep-create", "sleep, create", Limit(1.3)),
                    figure("sleep-cancel", "sleep, cancel", Limit(1.3)),
                ],
            ),
            case(
                "call-later",
                1_000_000,
                &[
                    figure("call-later-create", "call_later", Limit(1.3)),
                    figure("call-later-cancel", "its cancel", Limit(1.3)),
                ],
            ),
            case(
                "lateness",
                10_000,
                &[
                    figure("lateness-p50", "late p50", AtMost(100.0)),
                    figure("lateness-p99", "late p99", Open),
                    figure("fired-sleep", "CPU, fired", Open),
                ],
            ),
        ],
    },
    Group {
        title: "Other threads: posts in CPU ns each, both threads; round trips in µs",
        cases: &[
            case(
                "post-own",
                1_000_000,
                &[figure("post-own", "post, own door", Limit(1.3))],
            ),
            case(
                "post-channel",
                1_000_000,
                &[figure("post-channel", "post, channel", Open)],
            ),
            case(
                "round-trip-own",
                16_000,
                &[figure(
                    "round-trip-own-p50",
                    "trip, own door p50",
                    Peer(1.1),
                )],
            ),
            case(
                "round-trip-channel",
                16_000,
                &[figure(
                    "round-trip-channel-p50",
                    "trip, channel p50",
                    Peer(1.1),
                )],
            ),
        ],
    },
    Group {
        title: "Memory, bytes each",
        cases: &[
            case(
                "task-bytes",
                1_000_000,
                &[
                    figure("task-heap", "task, heap", AtMost(232.0)),
                    figure("task-rss", "task, RSS", AtMost(232.0)),
                ],
            ),
            case(
                "sleep-bytes",
                1_000_000,
                &[
                    figure("sleep-heap", "sleep, heap", AtMost(104.0)),
                    figure("sleep-rss", "sleep, RSS", AtMost(104.0)),
                ],
            ),
            case(
                "call-later-bytes",
                1_000_000,
                &[
                    figure("call-later-heap", "call_later, heap", AtMost(136.0)),
                    figure("call-later-rss", "call_later, RSS", AtMost(136.0)),
                ],
            ),
            case(
                "call-soon-bytes",
                1_000_000,
                &[
                    figure("call-soon-heap", "call_soon, heap", Open),
                    figure("call-soon-rss", "call_soon, RSS", Open),
                ],
            ),
        ],
    },
];
