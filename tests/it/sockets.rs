//! What the modules on sockets have in common: a protocol that logs its calls, and peers on real
//! sockets that know nothing of transports.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use coloop::{Eof, Protocol, Server, Transport, Watched, current, timeout, yield_now};
use socket2::{Domain, SockRef, Socket, Type};

use crate::errors::reports;
use crate::verbs::{Trace, real_loop};

/// Who takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on a loop of its own; what is reported to that fails the test.
#[track_caller]
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    let (output, reported) = run_reporting(test);
    assert_eq!(reported, Vec::<String>::new());
    output
}

/// Runs a test on a loop of its own, and gives what was reported to that.
#[track_caller]
pub(crate) fn run_reporting<F: Future>(test: F) -> (F::Output, Vec<String>) {
    let event_loop = real_loop();
    let reported = reports(&event_loop);
    let output = event_loop.run_until_complete(timeout(PATIENCE, test));
    (output.unwrap().expect("it hangs"), reported.take())
}

/// Makes turns until something is so.
pub(crate) async fn until(so: impl Fn() -> bool) {
    while !so() {
        yield_now().await;
    }
}

/// Makes some turns.
pub(crate) async fn turns(count: usize) {
    for _ in 0..count {
        yield_now().await;
    }
}

type Act = Box<dyn FnMut(&Rc<dyn Transport>, &str)>;

/// Logs every call, and then does what it was made to.
pub(crate) struct Scribe {
    trace: Trace,
    name: &'static str,
    eof: Eof,
    act: Act,
}

impl Scribe {
    pub(crate) fn new(trace: &Trace) -> Self {
        Self::acting(trace, |_, _| ())
    }

    /// `act` is given the transport and the call, as it stands in the trace.
    pub(crate) fn acting(
        trace: &Trace,
        act: impl FnMut(&Rc<dyn Transport>, &str) + 'static,
    ) -> Self {
        Self {
            trace: trace.clone(),
            name: "",
            eof: Eof::Close,
            act: Box::new(act),
        }
    }

    /// Sends back what it gets.
    pub(crate) fn echoing(trace: &Trace) -> Self {
        Self::acting(trace, |transport, call| {
            if let Some(data) = call.strip_prefix("data ") {
                transport.write(data.as_bytes());
            }
        })
    }

    /// Puts a name before each line of the trace.
    pub(crate) fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    pub(crate) fn keeping_open(mut self) -> Self {
        self.eof = Eof::KeepOpen;
        self
    }

    /// Gives its transport away as soon as it has one.
    pub(crate) fn and_tells(mut self, mut tell: impl FnMut(&Rc<dyn Transport>) + 'static) -> Self {
        let mut act = self.act;
        self.act = Box::new(move |transport, call| {
            if call == "made" {
                tell(transport);
            }
            act(transport, call);
        });
        self
    }

    fn note(&mut self, transport: &Rc<dyn Transport>, call: &str) {
        self.trace.log(format!("{}{call}", self.name));
        (self.act)(transport, call);
    }
}

/// A factory of protocols that log.
pub(crate) fn scribe(trace: &Trace) -> impl Fn() -> Scribe + use<> {
    let trace = trace.clone();
    move || Scribe::new(&trace)
}

impl Protocol for Scribe {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.note(transport, "made");
    }
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        let data = String::from_utf8_lossy(data);
        self.note(transport, &format!("data {data}"));
    }
    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        self.note(transport, "eof");
        self.eof
    }
    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        self.note(transport, "pause");
    }
    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        self.note(transport, "resume");
    }
    fn connection_lost(&mut self, transport: &Rc<dyn Transport>, error: Option<&std::io::Error>) {
        let call = match error {
            None => "lost".to_owned(),
            Some(error) => format!("lost {:?}", error.kind()),
        };
        self.note(transport, &call);
    }
}

/// The other end of a connection: a plain socket.
pub(crate) struct Peer(Watched<Rc<Socket>>);

impl Peer {
    pub(crate) fn of(socket: impl Into<OwnedFd>) -> Self {
        let socket = Socket::from(socket.into());
        socket.set_nonblocking(true).unwrap();
        Self(current().watch(Rc::new(socket)).unwrap())
    }

    /// Connects to whoever listens there; that he accepts is not waited for.
    #[track_caller]
    pub(crate) fn to(address: SocketAddr) -> Self {
        Self::of(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn socket(&self) -> &Socket {
        self.0.get_ref()
    }

    pub(crate) async fn say(&self, text: &str) {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let sent = self.0.write_with(|socket| (&**socket).write(bytes)).await;
            bytes = &bytes[sent.unwrap()..];
        }
    }

    /// Waits for so many bytes.
    pub(crate) async fn hear(&self, count: usize) -> String {
        let mut heard = vec![0; count];
        let mut at = 0;
        while at < count {
            let rest = &mut heard[at..];
            let read = self.0.read_with(|socket| (&**socket).read(rest)).await;
            let read = read.unwrap();
            assert_ne!(read, 0, "the end after {at} of {count} bytes");
            at += read;
        }
        String::from_utf8(heard).unwrap()
    }

    /// Waits for the end, and gives what came before it, and the kind of the error if it is one.
    pub(crate) async fn hear_end(&self) -> (String, Option<ErrorKind>) {
        let (mut heard, mut buffer) = (Vec::new(), vec![0; 65_536]);
        let error = loop {
            let read = self.0.read_with(|socket| (&**socket).read(&mut buffer));
            match read.await {
                Ok(0) => break None,
                Ok(count) => heard.extend(&buffer[..count]),
                Err(error) => break Some(error.kind()),
            }
        };
        (String::from_utf8(heard).unwrap(), error)
    }

    /// Closes the connection by a reset.
    pub(crate) fn reset(self) {
        self.socket().set_linger(Some(Duration::ZERO)).unwrap();
    }
}

/// A listener that is no loop's.
pub(crate) fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Two connected TCP sockets.
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    let (listener, address) = listener();
    let near = TcpStream::connect(address).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

/// A socket that is bound and does not listen, and its address: connections there are refused, and
/// nobody else can bind to it.
pub(crate) fn refusing(ip: &str) -> (Socket, SocketAddr) {
    let address = SocketAddr::new(ip.parse().unwrap(), 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Whether there is IPv6 here; if not, a line says so.
pub(crate) fn has_v6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        println!("skipped: this machine has no IPv6");
    }
    has
}

/// Where a server listens, with its first socket.
#[track_caller]
pub(crate) fn address(server: &Server) -> SocketAddr {
    server.sockets()[0].local_addr().as_inet().unwrap()
}

/// Looks at the socket under a transport.
#[track_caller]
pub(crate) fn look<R>(transport: &Rc<dyn Transport>, look: impl Fn(SockRef<'_>) -> R) -> R {
    let mut seen = None;
    transport.with_fd(&mut |fd| seen = Some(look(SockRef::from(&fd))));
    seen.expect("a transport over a socket")
}
