//! Sends every client its own bytes back, for as many clients as there are descriptors.
//! Runs until stopped
//!
//! The address is the first argument, 127.0.0.1:8888 without one. A callback accepts; a task serves
//! each connection by readiness futures; a timer brings the callback back after the system has
//! refused a connection.

use std::env;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;

use coloop::{ByteStream, EventLoop, LoopHandle, yield_now};

/// So many connections are accepted at once; then the others in the line have their turn.
const ACCEPTS: usize = 64;
const BUFFER: usize = 64 * 1024;
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
            Ok((stream, peer)) => {
                drop(handle.create_task(serve(handle.clone(), stream, peer)));
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return,
                // The client has gone already; a signal came.
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                _ => return pause(handle, listener, &error),
            },
        }
    }
}
// ANCHOR_END: listen

// ANCHOR: pause
/// Stops accepting for a while: the listener stays readable, so trying again at once would spin.
///
/// This is for EMFILE, ENFILE, ENOBUFS and ENOMEM, and for whatever else the system may say.
fn pause(handle: &LoopHandle, listener: &Rc<TcpListener>, why: &io::Error) {
    say(format_args!("no new connections for {PAUSE:?}: {why}"));
    handle.remove_reader(listener.as_raw_fd());
    let (server, socket) = (handle.clone(), Rc::clone(listener));
    handle.call_later(PAUSE, move || {
        if let Err(error) = listen(&server, &socket) {
            pause(&server, &socket, &error);
        }
    });
}
// ANCHOR_END: pause

// ANCHOR: echo
/// Serves one connection to its end, and says how it went.
async fn serve(handle: LoopHandle, stream: TcpStream, peer: SocketAddr) {
    let mut echoed = 0;
    match echo(&handle, stream, &mut echoed).await {
        Ok(()) => say(format_args!("{peer}: {echoed} bytes")),
        Err(error) => say(format_args!("{peer}: {echoed} bytes, then: {error}")),
    }
}

/// Echoes until the client has said all it wants to say.
///
/// It reads only when everything it has read is written: a client that does not read is not read.
async fn echo(handle: &LoopHandle, stream: TcpStream, echoed: &mut u64) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let socket = handle.watch(Rc::new(stream))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = socket.read_with(|socket| socket.recv(&mut buffer)).await?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written = socket.write_with(|socket| socket.send(rest)).await?;
            rest = &rest[written..];
            *echoed += written as u64;
        }
        // A client that is always ready leaves the others their turn.
        yield_now().await;
    }
}
// ANCHOR_END: echo

/// Writes a line, and does not mind when nobody reads it.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

// ANCHOR: main
fn main() -> io::Result<()> {
    let address = env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:8888"))?;
    listener.set_nonblocking(true)?;
    let event_loop = EventLoop::new()?;
    let listener = Rc::new(listener);
    listen(&event_loop, &listener)?;
    say(format_args!("listening on {}", listener.local_addr()?));
    Ok(event_loop.run_forever()?)
}
// ANCHOR_END: main
