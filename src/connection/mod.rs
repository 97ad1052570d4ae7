//! A connection: its transport, which moves bytes, and its protocol, which makes sense of them.
//!
//! | file | |
//! | --- | --- |
//! | `protocol` | the traits that a program implements |
//! | `transport` | the trait that a program uses, and that other transports implement |
//! | `seat` | where a transport keeps its protocol: no call is nested, no panic is lost |
//! | `erased` | what sits in a seat: a protocol of any type |
//! | `handle` | how a program reaches its protocol, and gets it back |
//! | `factory` | what makes a protocol when a connection is made |
//! | `opening` | what a new transport is made of, and what holds it in the line |
//! | `outbox` | bytes that wait to be written, and the marks that say "enough" |
//! | `peer` | who is at the other end |
//! | `state` | what has happened to a connection |
//! | `clients` | the connections of a server |
//! | `stream` | the transport over any stream of bytes |
//!
//! What must always hold:
//!
//! 1. `connection_made`, then any number of `data_received`, at most one `eof_received`, then
//!    `connection_lost`: once each, and nothing after it.
//! 2. Nothing that a program calls calls it back. Every call of a protocol is an item of the line, or
//!    comes right behind one: `pause_writing` and `resume_writing` that fall due within a call are
//!    delivered as soon as it returns.
//! 3. A protocol is out of its seat while it is called: no borrow is alive in foreign code.

mod clients;
mod erased;
mod factory;
mod handle;
mod opening;
mod outbox;
mod peer;
mod protocol;
mod seat;
mod state;
mod stream;
mod transport;

pub(crate) use self::clients::Clients;
pub use self::erased::{AnyProtocol, seat, seat_buffered};
pub use self::factory::{Buffered, Factory, ServerFactory, buffered};
pub use self::handle::{Closed, ProtocolHandle, Unreachable};
pub(crate) use self::opening::Opening;
pub use self::protocol::{BufferedProtocol, Eof, Protocol};
pub use self::seat::{Seat, SeatError};
pub(crate) use self::stream::open;
pub use self::transport::{Transport, WriteLimits, WriteRefused};
