//! Sends every client its own bytes back, for as many clients as there are descriptors.
//! Runs until stopped
//!
//! The address is the first argument, 127.0.0.1:8888 without one. SIGINT or SIGTERM lets clients
//! finish, for five seconds at most; a second signal ends the program at once.

use std::io::{self, Write};
use std::rc::Rc;
use std::time::Duration;
use std::{env, process};

use coloop::{Eof, Protocol, Server, Signal, Signals, Transport, timeout};

/// How long clients may take to finish once the program is asked to stop.
const PATIENCE: Duration = Duration::from_secs(5);

// ANCHOR: echo
/// Sends back what it gets; while the client does not read, it does not read either.
struct Echo;

impl Protocol for Echo {
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        transport.write(data);
    }

    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        transport.pause_reading();
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        transport.resume_reading();
    }

    fn eof_received(&mut self, _: &Rc<dyn Transport>) -> Eof {
        Eof::Close // once everything is written
    }
}
// ANCHOR_END: echo

/// Writes a line, and does not mind when nobody reads it.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

// ANCHOR: serve
async fn serve(address: String) -> io::Result<()> {
    let loop_ = coloop::current();
    let mut signals = loop_.signals([Signal::INT, Signal::TERM])?;
    let server = loop_.create_server(|| Echo, address).await?;
    for socket in server.sockets() {
        say(format_args!("listening on {}", socket.local_addr()));
    }
    if let Some(signal) = signals.recv().await {
        say(format_args!(
            "{signal}: no new clients, the others may finish"
        ));
        drain(&server, signals).await;
    }
    Ok(())
}
// ANCHOR_END: serve

// ANCHOR: drain
/// Closes the server and waits for its clients, neither for ever nor against the user's will.
async fn drain(server: &Server, mut signals: Signals) {
    let again = coloop::current().create_task(async move {
        let signal = signals.recv().await;
        process::exit(128 + signal.map_or(0, Signal::as_raw));
    });
    server.close();
    if timeout(PATIENCE, server.wait_closed()).await.is_err() {
        say(format_args!("the clients took too long"));
        server.abort_clients();
        server.wait_closed().await;
    }
    again.cancel();
}
// ANCHOR_END: drain

fn main() -> io::Result<()> {
    let address = env::args().nth(1);
    coloop::run(serve(address.unwrap_or_else(|| "127.0.0.1:8888".into())))
}
