//! The suite in one binary: a module per subject, common verbs in `verbs`.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod accepting;
mod callbacks;
mod connect;
mod contexts;
mod errors;
mod faults_core;
mod faults_descriptors;
mod faults_net;
mod faults_time;
mod fd;
mod flow_control;
mod gather;
mod grounds;
mod groups;
mod lifecycle;
mod memory;
mod net_contexts;
mod obtaining;
mod order;
mod promises;
mod protocol_calls;
mod protocol_handles;
mod queues;
mod reading;
mod reentrancy;
mod remote;
mod scripted;
mod server;
mod sockets;
mod sync;
mod tasks;
mod timeout;
mod timers;
mod verbs;
mod writing;
