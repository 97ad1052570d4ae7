//! Sockets that the program has already: a listener of its own making, a pair, a connection that it
//! has accepted itself.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use coloop::{Protocol, Transport};

/// Says back in capitals what it hears, and counts its connections.
struct Capitals(Rc<Cell<u32>>);

impl Protocol for Capitals {
    fn connection_made(&mut self, _: &Rc<dyn Transport>) {
        self.0.set(self.0.get() + 1);
    }

    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        transport.write(&data.to_ascii_uppercase());
    }
}

/// Asks as any other program would: with a blocking socket, in a thread.
fn ask(mut socket: impl Read + Write + Send + 'static) -> impl Future<Output = io::Result<String>> {
    let (sender, answer) = futures::channel::oneshot::channel();
    std::thread::spawn(move || {
        let mut said = [0; 5];
        let asked = socket
            .write_all(b"hello")
            .and_then(|()| socket.read_exact(&mut said));
        let said = asked.map(|()| String::from_utf8_lossy(&said).into_owned());
        sender.send(said).ok(); // nobody wants to know any more
    });
    async { answer.await.map_err(io::Error::other)? }
}

#[coloop::main]
async fn main() -> io::Result<()> {
    let handle = coloop::current();
    let connections = Rc::new(Cell::new(0));
    let capitals = || {
        let connections = Rc::clone(&connections);
        move || Capitals(Rc::clone(&connections))
    };

    // ANCHOR: listener
    // A listener that somebody else has made, with options that only they know of.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let server = handle.create_server_on(capitals(), listener).await?;
    // ANCHOR_END: listener
    assert_eq!(ask(TcpStream::connect(address)?).await?, "HELLO");
    server.close();
    server.wait_closed().await;

    // ANCHOR: pair
    // A pair of unix sockets: one end is given away, perhaps to a child process.
    let (near, far) = UnixStream::pair()?;
    let (transport, _) = handle.create_connection_on(capitals(), near).await?;
    // ANCHOR_END: pair
    assert_eq!(ask(far).await?, "HELLO");
    transport.close();

    // ANCHOR: accepted
    // A connection that was accepted elsewhere; its peer may be gone already.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    let (transport, _) = handle.connect_accepted_socket(capitals(), accepted).await?;
    // ANCHOR_END: accepted
    assert_eq!(ask(client).await?, "HELLO");
    transport.close();

    println!("{} connections, none of them made here", connections.get());
    assert_eq!(connections.get(), 3);
    Ok(())
}
