//! Sends random bytes over many connections at once and checks that they come back.
//!
//! The address of an echo server is the first argument; without one the program has a server of its
//! own. The second argument is the number of connections.

use std::env;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use coloop::{LoopHandle, Protocol, Transport, timeout};

const BYTES: usize = 1 << 20;
const PIECE: usize = 16 * 1024;
const LIMIT: Duration = Duration::from_secs(60);

// ANCHOR: client
/// Sends as fast as the server takes it, says that this was all, and compares what comes back.
struct Client {
    bytes: Rc<[u8]>,
    sent: usize,
    received: usize,
    /// The first byte that was another one, if any was.
    wrong: Option<usize>,
}

impl Client {
    fn send(&mut self, transport: &Rc<dyn Transport>) {
        while self.sent < self.bytes.len() {
            let piece = &self.bytes[self.sent..self.bytes.len().min(self.sent + PIECE)];
            if transport.try_write(piece).is_err() {
                return; // full: `resume_writing` comes back
            }
            self.sent += piece.len();
        }
        transport.write_eof().ok(); // a peer that has gone is noticed by `connection_lost`
    }
}

impl Protocol for Client {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.send(transport);
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        self.send(transport);
    }

    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        let end = self.received + data.len();
        if self.bytes.get(self.received..end) != Some(data) {
            self.wrong = Some(self.received);
            transport.abort();
        }
        self.received = end;
    }
}
// ANCHOR_END: client

/// A server for those who have none: it sends back what it gets.
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
}

// ANCHOR: connect
async fn one_client(loop_: LoopHandle, address: String) -> io::Result<()> {
    let words = (0..BYTES / 8).map(|_| loop_.random().to_ne_bytes());
    let client = Client {
        bytes: words.flatten().collect(),
        sent: 0,
        received: 0,
        wrong: None,
    };
    let (_transport, client) = loop_.create_connection(|| client, address).await?;
    match client.closed().await {
        (_, Some(error)) => Err(error),
        (client, None) if client.wrong.is_some() => Err(io::Error::other("other bytes came back")),
        (client, None) if client.received < BYTES => Err(io::Error::other("bytes are missing")),
        _ => Ok(()),
    }
}
// ANCHOR_END: connect

fn main() -> Result<(), Box<dyn Error>> {
    coloop::run(async { timeout(LIMIT, all_clients()).await? })
}

async fn all_clients() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let loop_ = coloop::current();
    let address = match arguments.next() {
        Some(address) => address,
        None => {
            let server = loop_.create_server(|| Echo, "127.0.0.1:0").await?;
            server.sockets()[0].local_addr().to_string()
        }
    };
    let connections: usize = arguments.next().map_or(Ok(8), |count| count.parse())?;
    let began = loop_.time();
    let clients: Vec<_> = (0..connections)
        .map(|_| loop_.create_task(one_client(loop_.clone(), address.clone())))
        .collect();
    for client in clients {
        client.await??;
    }
    let took = loop_.time() - began;
    println!("{connections} connections, {BYTES} bytes each, came back whole in {took:.0?}");
    Ok(())
}
