//! Where to connect to, or where to listen.
//!
//! One type takes every form in which a program has that at hand: an address, a host and a port, one
//! piece of text, several hosts, all interfaces. A form that makes no sense is kept as an error, and
//! given to whoever awaits the connection or the server.

use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::address::Address;
use crate::core::LoopHandle;
use crate::resolve::{Family, LookupFlags, Query, Service, lookup};

/// Says where to connect to, or where to listen.
///
/// | from | |
/// | --- | --- |
/// | `SocketAddr`, `&Address`, `(IpAddr, port)` | that address, without any look-up |
/// | `("example.com", 443)`, `("example.com", "https")` | a host and a port or a service |
/// | `"example.com:443"`, `"[::1]:443"` | the same in one piece |
/// | `(["127.0.0.1", "::1"], 80)` | several hosts, for a server |
/// | `("", 80)`, `":80"`, `80` | all interfaces, for a server |
/// | `Vec<SocketAddr>`, `&[SocketAddr]` | these addresses, in this order |
///
/// # Examples
///
/// ```
/// use coloop::Endpoint;
///
/// let endpoints: [Endpoint; 4] = [
///     ("localhost", 80).into(),
///     "localhost:80".into(),
///     ([127, 0, 0, 1], 80).into(),
///     (["127.0.0.1", "::1"], "http").into(),
/// ];
/// assert_eq!(format!("{:?}", endpoints[0]), format!("{:?}", endpoints[1]));
/// ```
#[derive(Clone, Debug)]
pub struct Endpoint(Result<Place, String>);

#[derive(Clone, Debug)]
enum Place {
    /// `None` is all interfaces.
    Hosts(Vec<Option<String>>, Service),
    Addresses(Vec<SocketAddr>),
}

/// How the names of an endpoint are looked up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hints {
    pub(super) family: Option<Family>,
    pub(super) proto: i32,
    pub(super) flags: LookupFlags,
}

impl Endpoint {
    fn host(host: String, service: Service) -> Self {
        let host = (!host.is_empty()).then_some(host);
        Self(Ok(Place::Hosts(vec![host], service)))
    }

    fn hosts(hosts: impl Iterator<Item = String>, service: Service) -> Self {
        let hosts: Vec<_> = hosts
            .map(|host| (!host.is_empty()).then_some(host))
            .collect();
        Self(if hosts.is_empty() {
            Err("the list of hosts is empty: name one, or give the port alone for all".into())
        } else {
            Ok(Place::Hosts(hosts, service))
        })
    }

    fn addresses(addresses: Vec<SocketAddr>) -> Self {
        Self(if addresses.is_empty() {
            Err("the list of addresses is empty".into())
        } else {
            Ok(Place::Addresses(addresses))
        })
    }

    fn text(text: &str) -> Self {
        if let Ok(address) = text.parse() {
            return Self::addresses(vec![address]);
        }
        let wrong = |why: &str| Self(Err(format!("{text:?} is no address: {why}")));
        let Some((host, port)) = text.rsplit_once(':') else {
            return wrong("a port is missing, as in \"localhost:80\"");
        };
        if port.is_empty() {
            return wrong("a port is missing behind the colon");
        }
        let bare = match host.strip_prefix('[') {
            Some(rest) => match rest.strip_suffix(']') {
                Some("") => return wrong("an address is missing in the brackets"),
                Some(bare) => bare,
                None => return wrong("the bracket is not closed"),
            },
            None if host.contains(':') => {
                return wrong("an IPv6 address stands in brackets, as in \"[::1]:80\"");
            }
            None => host,
        };
        if port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_err() {
            return wrong("ports are numbers up to 65535");
        }
        Self::host(bare.to_owned(), port.into())
    }

    /// Refuses what is no place to connect to.
    pub(super) fn check_single(&self) -> io::Result<()> {
        match &self.0 {
            Err(wrong) => Err(invalid(wrong.clone())),
            Ok(Place::Hosts(hosts, _)) if hosts.len() > 1 => Err(invalid(
                "a connection goes to one host: try the hosts one after the other".into(),
            )),
            Ok(Place::Hosts(hosts, _)) if hosts.contains(&None) => Err(invalid(
                "a host is missing: only a server can be on all interfaces".into(),
            )),
            Ok(_) => Ok(()),
        }
    }

    /// The addresses, each once, in order. Names are looked up off the loop's thread.
    pub(super) async fn resolve(
        self,
        handle: &LoopHandle,
        hints: Hints,
    ) -> io::Result<Vec<SocketAddr>> {
        let mut found = Vec::new();
        match self.0.map_err(invalid)? {
            Place::Addresses(addresses) => {
                let fits = |address: &SocketAddr| {
                    hints
                        .family
                        .is_none_or(|family| family == Family::from(*address))
                };
                found.extend(addresses.into_iter().filter(fits));
                if found.is_empty() {
                    return Err(invalid(
                        "no address is of the family that was asked for".into(),
                    ));
                }
            }
            Place::Hosts(hosts, service) => {
                for host in hosts {
                    let query = Query {
                        host,
                        service: service.clone(),
                        family: hints.family,
                        proto: hints.proto,
                        flags: hints.flags,
                    };
                    found.extend(lookup(&handle.0, query).await?);
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        found.retain(|address| seen.insert(*address));
        Ok(found)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::addresses(vec![address])
    }
}

/// The address of a server of one's own, say.
impl From<&Address> for Endpoint {
    fn from(address: &Address) -> Self {
        match address.as_inet() {
            Some(inet) => inet.into(),
            None => Self(Err(format!("{address} is no internet address"))),
        }
    }
}

impl From<Vec<SocketAddr>> for Endpoint {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self::addresses(addresses)
    }
}

impl From<&[SocketAddr]> for Endpoint {
    fn from(addresses: &[SocketAddr]) -> Self {
        Self::addresses(addresses.to_vec())
    }
}

impl From<&str> for Endpoint {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for Endpoint {
    fn from(text: String) -> Self {
        Self::text(&text)
    }
}

impl From<u16> for Endpoint {
    fn from(port: u16) -> Self {
        Self::host(String::new(), port.into())
    }
}

impl<S: Into<Service>> From<(&str, S)> for Endpoint {
    fn from((host, service): (&str, S)) -> Self {
        Self::host(host.to_owned(), service.into())
    }
}

impl<S: Into<Service>> From<(String, S)> for Endpoint {
    fn from((host, service): (String, S)) -> Self {
        Self::host(host, service.into())
    }
}

impl From<(IpAddr, u16)> for Endpoint {
    fn from(address: (IpAddr, u16)) -> Self {
        Self::addresses(vec![address.into()])
    }
}

impl From<([u8; 4], u16)> for Endpoint {
    fn from(address: ([u8; 4], u16)) -> Self {
        Self::addresses(vec![address.into()])
    }
}

impl<S: Into<Service>> From<(&[&str], S)> for Endpoint {
    fn from((hosts, service): (&[&str], S)) -> Self {
        Self::hosts(hosts.iter().map(ToString::to_string), service.into())
    }
}

impl<S: Into<Service>, const N: usize> From<([&str; N], S)> for Endpoint {
    fn from((hosts, service): ([&str; N], S)) -> Self {
        Self::hosts(hosts.iter().map(ToString::to_string), service.into())
    }
}

impl<S: Into<Service>> From<(Vec<String>, S)> for Endpoint {
    fn from((hosts, service): (Vec<String>, S)) -> Self {
        Self::hosts(hosts.into_iter(), service.into())
    }
}
