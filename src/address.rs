//! Addresses of the two ends of a connection.
//!
//! A plain value that says where a transport's or a listener's end is, whatever family it is of. It
//! knows nothing of sockets but how to read an address from one.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Says where one end of a connection is.
///
/// # Examples
///
/// ```
/// use coloop::Address;
///
/// let address = Address::Inet("[::1]:7".parse()?);
/// assert_eq!(address.to_string(), "[::1]:7");
/// assert_eq!(address.port(), Some(7));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
///
/// # Coming from asyncio
///
/// What `get_extra_info("peername")` and `("sockname")` give as tuples and strings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Inet(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
    /// An end that exists only in memory, by its number.
    Memory(u64),
}

impl Address {
    /// Returns the IP address and the port, where it has them.
    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            _ => None,
        }
    }

    /// Returns the IP address, where it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.as_inet().map(|address| address.ip())
    }

    /// Returns the port, where it has one.
    pub fn port(&self) -> Option<u16> {
        self.as_inet().map(|address| address.port())
    }

    /// Reads what the system says of a socket; an unnamed one has no address.
    #[cfg(unix)]
    pub(crate) fn of(address: &socket2::SockAddr) -> Option<Self> {
        match address.as_socket() {
            Some(inet) => Some(Self::Inet(inet)),
            None => Some(Self::Unix(address.as_pathname()?.to_owned())),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Inet(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Memory(number) => write!(f, "memory:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_no_larger_than_an_ip_address_with_its_port() {
        assert_eq!(size_of::<Option<Address>>(), size_of::<SocketAddr>());
    }
}
