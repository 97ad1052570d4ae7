//! The verbs that make connections over the network: connecting, listening, adopting sockets.
//!
//! | file | |
//! | --- | --- |
//! | `endpoint` | where to connect to, or where to listen: hosts and ports in all their forms |
//! | `connect` | `create_connection` and its kin |
//! | `listen` | `create_server`: sockets are made and bound, all or none |
//! | `server` | `Server`: accepting, and the connections that it has accepted |
//!
//! Names are looked up below, in `resolve`; bytes are moved by the transports of `connection`.

mod connect;
mod endpoint;
mod listen;
mod server;

pub use self::connect::{ConnectAttempt, ConnectErrors, ConnectSocket, CreateConnection};
pub use self::endpoint::Endpoint;
pub use self::listen::{CreateServer, ServeSocket};
pub use self::server::{Server, ServerSocket, WaitClosed};
