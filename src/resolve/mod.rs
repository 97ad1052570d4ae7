//! Names to addresses: `getaddrinfo`, off the loop's thread.
//!
//! Whoever connects or listens asks here. What can be answered without the system is answered at
//! once; the rest is asked of the system's resolver in a lane of threads of its own, so that nothing
//! else waits behind a name server that is silent.
//!
//! What must always hold:
//!
//! 1. A literal IPv4 or IPv6 address with a numeric port starts no thread. One with a zone index or
//!    of another family than was asked for, the name of a service, a protocol other than TCP, and
//!    the absence of a host are the system's to judge: its order of the wildcard addresses is the
//!    order here.
//! 2. A name reaches the resolver whole or not at all. One with a NUL byte, with an empty label or of
//!    more than 253 bytes is refused before a thread is asked; so is a port beyond 65535, which some
//!    systems would cut short.
//! 3. A look-up that is pending counts as work outside, so that a virtual clock waits for it.
//! 4. Addresses come in the resolver's order, each once, and never none: that is an error which
//!    names the host, as all errors from here do.
//!
//! It does not cache, sort or filter by what the machine can reach.

mod lane;

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::ops::{BitOr, BitOrAssign};
use std::panic::Location;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll, Waker};

use dns_lookup::{
    AddrFamily, AddrInfo, AddrInfoHints, LookupError, LookupErrorKind, Protocol, SockType,
};

use self::lane::{Answer, Lane, Ticket};
use crate::core::Core;
use crate::error::LoopClosed;
use crate::ready::Letters;
use crate::record::On;
use crate::sys::addrinfo;

/// Says which kind of internet address is meant.
///
/// # Examples
///
/// ```
/// use coloop::Family;
/// use std::net::SocketAddr;
///
/// let address: SocketAddr = "[::1]:80".parse()?;
/// assert_eq!(Family::from(address), Family::V6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "AF_INET")]
#[doc(alias = "AF_INET6")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Addresses of four bytes.
    V4,
    /// Addresses of sixteen bytes.
    V6,
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl From<SocketAddr> for Family {
    fn from(address: SocketAddr) -> Self {
        address.ip().into()
    }
}

impl Family {
    /// The system's number.
    fn number(self) -> i32 {
        match self {
            Self::V4 => AddrFamily::Inet.into(),
            Self::V6 => AddrFamily::Inet6.into(),
        }
    }
}

/// Says how a name is to be looked up: the `AI_*` flags of `getaddrinfo`.
///
/// The default is none. A flag that the system does not have is no bit at all, and changes nothing.
///
/// # Examples
///
/// ```
/// use coloop::LookupFlags;
///
/// let flags = LookupFlags::PASSIVE | LookupFlags::NUMERIC_HOST;
/// assert_eq!(flags.bits(), LookupFlags::PASSIVE.bits() | LookupFlags::NUMERIC_HOST.bits());
/// assert_eq!(LookupFlags::default(), LookupFlags::from_bits(0));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LookupFlags(i32);

impl LookupFlags {
    /// Without a host, gives the addresses to listen at rather than those to connect to.
    #[doc(alias = "AI_PASSIVE")]
    pub const PASSIVE: Self = Self(addrinfo::PASSIVE);
    /// Asks no name server: the host is a numeric address, or an error.
    #[doc(alias = "AI_NUMERICHOST")]
    pub const NUMERIC_HOST: Self = Self(addrinfo::NUMERIC_HOST);
    /// Looks into no table of services: the service is a number, or an error.
    #[doc(alias = "AI_NUMERICSERV")]
    pub const NUMERIC_SERVICE: Self = Self(addrinfo::NUMERIC_SERVICE);
    /// Leaves out the families of which the machine has no address.
    #[doc(alias = "AI_ADDRCONFIG")]
    pub const ADDRCONFIG: Self = Self(addrinfo::ADDRCONFIG);
    /// Where [`Family::V6`] is asked for and there is none, gives IPv4 addresses in IPv6 form.
    #[doc(alias = "AI_V4MAPPED")]
    pub const V4MAPPED: Self = Self(addrinfo::V4MAPPED);
    /// With [`V4MAPPED`](Self::V4MAPPED), gives those also where there are others.
    #[doc(alias = "AI_ALL")]
    pub const ALL: Self = Self(addrinfo::ALL);
    /// Has the resolver find the host's canonical name.
    #[doc(alias = "AI_CANONNAME")]
    pub const CANONNAME: Self = Self(addrinfo::CANONNAME);

    /// Makes flags of the system's own bits, also of those that have no name here.
    pub const fn from_bits(bits: i32) -> Self {
        Self(bits)
    }

    /// Returns the system's bits.
    pub const fn bits(self) -> i32 {
        self.0
    }
}

impl BitOr for LookupFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for LookupFlags {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// Names the port of an address: by its number, or by a service that the system knows.
///
/// The default is port 0. Text that is a number is that port, and empty text is port 0.
///
/// # Examples
///
/// ```
/// use coloop::Service;
///
/// assert_eq!(Service::from("8080"), Service::Port(8080));
/// assert_eq!(Service::from("https"), Service::Name("https".into()));
/// assert_eq!(Service::from(""), Service::default());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Service {
    /// The port itself.
    Port(u16),
    /// A service, such as `https`; the system's table has its port.
    Name(String),
}

impl Default for Service {
    fn default() -> Self {
        Self::Port(0)
    }
}

impl From<u16> for Service {
    fn from(port: u16) -> Self {
        Self::Port(port)
    }
}

impl From<String> for Service {
    fn from(text: String) -> Self {
        match text.parse() {
            Ok(port) => Self::Port(port),
            Err(_) if text.is_empty() => Self::default(),
            Err(_) => Self::Name(text),
        }
    }
}

impl From<&str> for Service {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// What is asked of the resolver, for a stream socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    /// A name or an address. Without one: where to listen, or the machine itself; see
    /// [`LookupFlags::PASSIVE`].
    pub(crate) host: Option<String>,
    pub(crate) service: Service,
    pub(crate) family: Option<Family>,
    /// The protocol's number; 0 for any.
    pub(crate) proto: i32,
    pub(crate) flags: LookupFlags,
}

impl Query {
    /// Refuses what no resolver may see; a service that is a number is one from now on.
    fn checked(mut self) -> io::Result<Self> {
        if let Service::Name(name) = self.service {
            self.service = name.into();
        }
        let wrong = match (&self.service, self.host.as_deref().and_then(unfit)) {
            (_, Some(wrong)) => format!("{} cannot be looked up: {wrong}", self.subject()),
            (Service::Name(name), _) if name.contains('\0') => {
                format!("{} is no service: it has a NUL byte", shown(name))
            }
            (Service::Name(name), _) if is_number(name) => {
                format!("{} is no port: those are 0 to 65535", shown(name))
            }
            _ => return Ok(self),
        };
        Err(io::Error::new(ErrorKind::InvalidInput, wrong))
    }

    /// The address, if it is a literal one with nothing left to ask.
    fn literal(&self) -> Option<SocketAddr> {
        let Service::Port(port) = self.service else {
            return None;
        };
        let address: IpAddr = self.host.as_deref()?.parse().ok()?;
        let family = self.family.is_none_or(|family| family == address.into());
        let proto = [0, Protocol::TCP.into()].contains(&self.proto);
        (family && proto).then(|| SocketAddr::new(address, port))
    }

    /// What is looked up, in words.
    fn subject(&self) -> String {
        match (&self.host, &self.service) {
            (Some(host), _) => format!("the host {}", shown(host)),
            (None, Service::Port(port)) => format!("port {port}"),
            (None, Service::Name(name)) => format!("the service {}", shown(name)),
        }
    }

    /// Asks the system, which may take its time.
    fn ask_system(&self) -> Answer {
        let host = self.host.as_deref();
        let service = match &self.service {
            Service::Port(0) if host.is_some() => None,
            Service::Port(port) => Some(port.to_string()),
            Service::Name(name) => Some(name.clone()),
        };
        let hints = AddrInfoHints {
            flags: self.flags.bits(),
            address: self.family.map_or(0, Family::number),
            socktype: SockType::Stream.into(),
            protocol: self.proto,
        };
        let found = dns_lookup::getaddrinfo(host, service.as_deref(), Some(hints));
        Ok(known(found.map_err(|error| self.explained(error))?))
    }

    /// Says what was looked up, and what kind of failure that is.
    fn explained(&self, error: LookupError) -> io::Error {
        let (kind, number) = (error.kind(), error.error_num());
        let error = io::Error::from(error);
        let kind = match kind {
            LookupErrorKind::NoName | LookupErrorKind::NoData => ErrorKind::NotFound,
            _ if number == addrinfo::EAI_ADDRFAMILY => ErrorKind::NotFound,
            // No name server has given an answer; a later attempt may find one.
            LookupErrorKind::Again => ErrorKind::TimedOut,
            LookupErrorKind::Badflags | LookupErrorKind::Service => ErrorKind::InvalidInput,
            LookupErrorKind::Family | LookupErrorKind::Socktype => ErrorKind::Unsupported,
            LookupErrorKind::Memory => ErrorKind::OutOfMemory,
            _ => error.kind(),
        };
        let text = error.to_string();
        let reason = text.trim_start_matches("failed to lookup address information: ");
        io::Error::new(kind, format!("cannot look up {}: {reason}", self.subject()))
    }

    /// Makes sure that there is an answer, with each address once.
    fn answered(&self, mut found: Vec<SocketAddr>) -> Answer {
        let mut seen = HashSet::new();
        found.retain(|address| seen.insert(*address));
        if found.is_empty() {
            let text = format!("{} has no address", self.subject());
            return Err(io::Error::new(ErrorKind::NotFound, text));
        }
        Ok(found)
    }
}

/// The addresses among the entries; one of a family that is neither IPv4 nor IPv6 is an error here,
/// and of no use.
fn known(entries: impl Iterator<Item = io::Result<AddrInfo>>) -> Vec<SocketAddr> {
    let known = entries.filter_map(Result::ok);
    known.map(|entry| entry.sockaddr).collect()
}

/// What keeps a host from being looked up.
fn unfit(host: &str) -> Option<&'static str> {
    // One dot at the end says that the name is complete.
    let name = host.strip_suffix('.').unwrap_or(host);
    if host.contains('\0') {
        Some("it has a NUL byte")
    } else if name.len() > 253 {
        Some("it is longer than the 253 bytes of a name")
    } else if host.is_empty() {
        Some("it is empty")
    } else if name.split('.').any(str::is_empty) {
        Some("it has an empty label")
    } else {
        None
    }
}

/// Whether this is a number to a resolver, which may leave out spaces in front and know signs.
fn is_number(text: &str) -> bool {
    let digits = text.trim_start().trim_start_matches(['+', '-']);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A name in a message: quoted, and not longer than one can read.
fn shown(name: &str) -> String {
    match name.char_indices().nth(64) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &name[..end], name.len()),
        None => format!("{name:?}"),
    }
}

/// Looks up the addresses of a host, beginning at the first poll.
///
/// Gives at least one address. Fails with [`InvalidInput`](ErrorKind::InvalidInput) for a name that
/// cannot be one and for flags or a service that the system does not know;
/// [`NotFound`](ErrorKind::NotFound) for a name without an address; [`TimedOut`](ErrorKind::TimedOut)
/// where no name server gave an answer; [`NotConnected`](ErrorKind::NotConnected) on a closed loop;
/// otherwise with what the system says, also when it refuses the first thread.
///
/// Dropping it takes it out of the queue. A call that goes on in the system cannot be ended: its
/// result is dropped when it comes, and nobody waits for it.
#[track_caller]
pub(crate) fn lookup(core: &Rc<Core>, query: Query) -> Lookup {
    Lookup {
        core: Rc::clone(core),
        place: Location::caller(),
        state: State::New(query),
    }
}

/// Resolves to addresses; made by [`lookup`].
#[must_use = "futures do nothing unless they are awaited"]
pub(crate) struct Lookup {
    core: Rc<Core>,
    place: &'static Location<'static>,
    state: State,
}

enum State {
    New(Query),
    /// With the number of its wait.
    Asked(Ticket, u32),
    Over,
}

impl Lookup {
    /// Answers at once, or has the lane ask.
    fn begin(&mut self, query: Query, waker: Waker) -> Poll<Answer> {
        let query = query.checked()?;
        if let Some(address) = query.literal() {
            return Poll::Ready(Ok(vec![address]));
        }
        let core = &self.core;
        let desk = core.extension::<Desk>().unwrap_or_else(|| {
            let desk = Rc::new(Desk::new(core, Lane::new(), Arc::new(Query::ask_system)));
            core.extend(Rc::<Desk>::clone(&desk));
            desk
        });
        let ticket = desk.ask(query, waker)?;
        let wait = core.records.begin_wait(On::Lookup, self.place, core.now());
        self.state = State::Asked(ticket, wait);
        Poll::Pending
    }

    fn end(&mut self) {
        if let State::Asked(ticket, wait) = std::mem::replace(&mut self.state, State::Over) {
            self.core.records.end_wait(wait);
            drop(ticket);
            if let Some(desk) = self.core.extension::<Desk>() {
                desk.one_less();
            }
        }
    }
}

impl Future for Lookup {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut PollContext<'_>) -> Poll<Answer> {
        let waker = cx.waker().clone();
        if self.core.is_closed() {
            self.end();
            return Poll::Ready(Err(LoopClosed.into()));
        }
        let answer = match std::mem::replace(&mut self.state, State::Over) {
            State::New(query) => return self.begin(query, waker),
            State::Asked(ticket, wait) => {
                let answer = ticket.poll(waker);
                self.core.records.renew_wait(wait);
                self.state = State::Asked(ticket, wait);
                answer
            }
            State::Over => None,
        };
        match answer {
            Some(answer) => {
                self.end();
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup")
            .field("asked", &matches!(self.state, State::Asked(..)))
            .finish_non_exhaustive()
    }
}

/// Answers a query, in whatever time it takes.
type Resolve = dyn Fn(&Query) -> Answer + Send + Sync;

/// Where a loop's look-ups are asked: its lane, and what is called in it.
struct Desk {
    lane: Lane,
    resolve: Arc<Resolve>,
    letters: Arc<Letters>,
    /// How many look-ups are pending, and the hold that the loop has while there are any.
    pending: Cell<usize>,
    hold: Cell<u64>,
}

impl Desk {
    fn new(core: &Core, lane: Lane, resolve: Arc<Resolve>) -> Self {
        Self {
            lane,
            resolve,
            letters: Arc::clone(&core.letters),
            pending: Cell::new(0),
            hold: Cell::new(0),
        }
    }

    fn ask(&self, query: Query, waker: Waker) -> io::Result<Ticket> {
        let resolve = Arc::clone(&self.resolve);
        let work = move || resolve(&query).and_then(|found| query.answered(found));
        let ticket = self.lane.submit(Box::new(work), waker)?;
        if self.pending.replace(self.pending.get() + 1) == 0 {
            self.hold.set(self.letters.hold("a name look-up"));
        }
        Ok(ticket)
    }

    /// Notes that a look-up has ended; that of an answer only after its waker has been called.
    fn one_less(&self) {
        self.pending.set(self.pending.get() - 1);
        if self.pending.get() == 0 {
            self.letters.release(self.hold.get());
        }
    }
}

#[cfg(test)]
mod tests;
