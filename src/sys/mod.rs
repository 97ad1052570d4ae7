//! The few system calls and unsafe blocks that no crate covers, one file per subject.
//!
//! Nothing above this folder contains `unsafe`. Each block names the contract it relies on.

pub(crate) mod addrinfo;
#[cfg(all(target_os = "linux", not(coloop_poller_wait)))]
pub(crate) mod epoll;
pub(crate) mod fork;
pub(crate) mod poller;
#[cfg(unix)]
pub(crate) mod signal;
