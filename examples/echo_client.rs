//! Sends random bytes over many connections at once and checks that they come back.
//!
//! The address of an echo server is the first argument; without one the program starts a server of
//! its own in a thread. The second argument is the number of connections.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;
use std::{env, thread};

use coloop::{ByteStream, LoopHandle, timeout};

const BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

// ANCHOR: client
/// Writes and reads at the same time: a task for each direction, one watch for both.
async fn client(handle: LoopHandle, stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let socket = Rc::new(handle.watch(Rc::new(stream))?);
    let sent: Rc<[u8]> = random_bytes(&handle).into();

    let (writer, bytes) = (Rc::clone(&socket), Rc::clone(&sent));
    let writing = handle.create_task(async move {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = writer.write_with(|socket| socket.send(rest)).await?;
            rest = &rest[written..];
        }
        writer.get_ref().shutdown(Shutdown::Write)
    });

    let mut received = Vec::with_capacity(BYTES);
    let mut buffer = [0; 64 * 1024];
    loop {
        let count = socket.read_with(|socket| socket.recv(&mut buffer)).await?;
        if count == 0 {
            break;
        }
        received.extend_from_slice(&buffer[..count]);
    }
    writing.await??;
    if *received != *sent {
        return Err(io::Error::other("other bytes came back"));
    }
    Ok(())
}
// ANCHOR_END: client

fn random_bytes(handle: &LoopHandle) -> Vec<u8> {
    let words = (0..BYTES / 8).map(|_| handle.random().to_ne_bytes());
    words.flatten().collect()
}

/// An echo server as plain as can be: a thread for each connection.
fn start_server() -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || -> io::Result<()> {
                let mut stream = stream?;
                let mut buffer = [0; 64 * 1024];
                loop {
                    let count = stream.read(&mut buffer)?;
                    if count == 0 {
                        return Ok(());
                    }
                    stream.write_all(&buffer[..count])?;
                }
            });
        }
    });
    Ok(address)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = match arguments.next() {
        Some(address) => address,
        None => start_server()?,
    };
    let connections: usize = arguments.next().map_or(Ok(8), |count| count.parse())?;

    coloop::run(timeout(LIMIT, all_clients(address, connections)))?
}

async fn all_clients(address: String, connections: usize) -> Result<(), Box<dyn Error>> {
    let handle = coloop::current();
    let began = handle.time();
    let mut clients = Vec::new();
    for _ in 0..connections {
        // Connecting holds the loop for a moment; it is short on one machine.
        let stream = TcpStream::connect(&address)?;
        clients.push(handle.create_task(client(handle.clone(), stream)));
    }
    for client in clients {
        client.await??;
    }
    let took = handle.time() - began;
    println!("{connections} connections, {BYTES} bytes each, came back whole in {took:.0?}");
    Ok(())
}
