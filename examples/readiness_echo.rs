//! An echo server without protocols, by readiness alone, and a client of it.
//!
//! A callback accepts, a task serves each connection, and a timer brings the callback back after the
//! system has refused a connection.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use coloop::{ByteStream, LoopHandle, yield_now};
use futures::future::try_join;

/// So many connections are accepted at once; then the others in the line have their turn.
const ACCEPTS: usize = 64;
const BYTES: usize = 1 << 20;
const PAUSE: Duration = Duration::from_secs(1);

// ANCHOR: listen
/// Lets `accept` be called in every turn in which a client waits.
fn listen(handle: &LoopHandle, listener: &Rc<TcpListener>) -> io::Result<()> {
    let (server, socket) = (handle.clone(), Rc::clone(listener));
    handle.add_reader(Rc::clone(listener), move || accept(&server, &socket))?;
    Ok(())
}

fn accept(handle: &LoopHandle, listener: &Rc<TcpListener>) {
    for _ in 0..ACCEPTS {
        match listener.accept() {
            Ok((stream, _)) => drop(handle.create_reporting(echo(handle.clone(), stream))),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return,
                // The client has gone already; a signal came.
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                _ => return pause(handle, listener),
            },
        }
    }
}
// ANCHOR_END: listen

// ANCHOR: pause
/// Stops accepting for a while: the listener stays readable, so trying again at once would spin.
///
/// This is for EMFILE, ENFILE, ENOBUFS and ENOMEM, and for whatever else the system may say.
fn pause(handle: &LoopHandle, listener: &Rc<TcpListener>) {
    handle.remove_reader(listener.as_raw_fd());
    let (server, socket) = (handle.clone(), Rc::clone(listener));
    handle.call_later(PAUSE, move || {
        if listen(&server, &socket).is_err() {
            pause(&server, &socket);
        }
    });
}
// ANCHOR_END: pause

// ANCHOR: echo
/// Echoes until the client has said all it wants to say.
///
/// It reads only when everything it has read is written: a client that does not read is not read.
async fn echo(handle: LoopHandle, stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let socket = handle.watch(Rc::new(stream))?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = socket.read_with(|socket| socket.recv(&mut buffer)).await?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written = socket.write_with(|socket| socket.send(rest)).await?;
            rest = &rest[written..];
        }
        // A client that is always ready leaves the others their turn.
        yield_now().await;
    }
}
// ANCHOR_END: echo

// ANCHOR: client
/// Writes and reads at the same time: both directions share one watch.
async fn client(handle: LoopHandle, stream: TcpStream, sent: &[u8]) -> io::Result<Vec<u8>> {
    stream.set_nonblocking(true)?;
    let socket = handle.watch(Rc::new(stream))?;
    let write = async {
        let mut rest = sent;
        while !rest.is_empty() {
            let written = socket.write_with(|socket| socket.send(rest)).await?;
            rest = &rest[written..];
        }
        socket.get_ref().shutdown(Shutdown::Write)
    };
    let read = async {
        let (mut received, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        loop {
            match socket.read_with(|socket| socket.recv(&mut buffer)).await? {
                0 => return Ok(received),
                count => received.extend_from_slice(&buffer[..count]),
            }
        }
    };
    let ((), received) = try_join(write, read).await?;
    Ok(received)
}
// ANCHOR_END: client

#[coloop::main]
async fn main() -> io::Result<()> {
    let handle = coloop::current();
    let listener = Rc::new(TcpListener::bind("127.0.0.1:0")?);
    listener.set_nonblocking(true)?;
    listen(&handle, &listener)?;
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    let stream = TcpStream::connect(listener.local_addr()?)?;
    assert!(client(handle, stream, &sent).await? == sent);
    Ok(())
}
