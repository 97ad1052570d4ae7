//! The peer's address, in as little room as the usual kind of it needs.
//!
//! It is remembered from when the connection is made: a peer that has gone cannot be asked any more.

use std::net::{SocketAddr, SocketAddrV4};

use crate::address::Address;

/// The peer's address in as little room as the usual kind needs.
pub(super) enum Peer {
    Unknown,
    V4(SocketAddrV4),
    Other(Box<Address>),
}

impl From<Option<Address>> for Peer {
    fn from(address: Option<Address>) -> Self {
        match address {
            None => Self::Unknown,
            Some(Address::Inet(SocketAddr::V4(address))) => Self::V4(address),
            Some(other) => Self::Other(Box::new(other)),
        }
    }
}

impl Peer {
    pub(super) fn address(&self) -> Option<Address> {
        match self {
            Self::Unknown => None,
            Self::V4(address) => Some(Address::Inet(SocketAddr::V4(*address))),
            Self::Other(address) => Some((**address).clone()),
        }
    }
}
