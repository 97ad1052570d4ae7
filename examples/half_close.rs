//! Half-closed connections: the end of what is said marks the end of a request, and of an answer.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use coloop::{Eof, Protocol, Server, Transport};

// ANCHOR: counter
/// Counts the words of a request once all of it is there, and answers then.
#[derive(Default)]
struct Counter(Vec<u8>);

impl Protocol for Counter {
    fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
        self.0.extend(data);
    }

    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        let words = String::from_utf8_lossy(&self.0).split_whitespace().count();
        // Counting could take time: the connection waits for as long as it takes.
        let transport = Rc::clone(transport);
        coloop::current().call_soon(move || {
            transport.write(format!("{words} words").as_bytes());
            transport.close();
        });
        Eof::KeepOpen
    }
}
// ANCHOR_END: counter

// ANCHOR: asks
/// Says all it has to say, and hears the answer to its end.
#[derive(Default)]
struct Asks {
    question: &'static str,
    heard: Vec<u8>,
    trace: Vec<&'static str>,
}

impl Protocol for Asks {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.trace.push("made");
        transport.write(self.question.as_bytes());
        if let Err(error) = transport.write_eof() {
            println!("the peer is gone: {error}");
        }
    }

    fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
        self.trace.push("data");
        self.heard.extend(data);
    }

    fn eof_received(&mut self, _: &Rc<dyn Transport>) -> Eof {
        self.trace.push("end");
        Eof::Close
    }

    fn connection_lost(&mut self, _: &Rc<dyn Transport>, error: Option<&io::Error>) {
        self.trace
            .push(if error.is_none() { "lost" } else { "broken" });
    }
}
// ANCHOR_END: asks

// ANCHOR: reporter
/// The other way round: the server has said all it will say, and listens to a report.
struct Reporter;

impl Protocol for Reporter {
    fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}

    fn eof_received(&mut self, transport: &Rc<dyn Transport>) -> Eof {
        transport.write(b"all is well");
        transport.close();
        Eof::KeepOpen
    }
}
// ANCHOR_END: reporter

fn address(server: &Server) -> io::Result<SocketAddr> {
    let address = server.sockets()[0].local_addr().as_inet();
    address.ok_or_else(|| io::Error::other("no internet address"))
}

#[coloop::main]
async fn main() -> io::Result<()> {
    let handle = coloop::current();

    // The client ends its half first, and gets the answer by the other.
    let server = handle
        .create_server(Counter::default, "127.0.0.1:0")
        .await?;
    let asks = || Asks {
        question: "how many words are these",
        ..Asks::default()
    };
    let (_transport, asks) = handle.create_connection(asks, address(&server)?).await?;
    let (asks, _) = asks.closed().await;
    println!("the server counts {}", String::from_utf8_lossy(&asks.heard));
    assert_eq!(asks.heard, b"5 words");
    assert_eq!(asks.trace, ["made", "data", "end", "lost"]);
    server.close();

    // The server ends its half first.
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    let (_near, reporter) = handle.create_connection_on(|| Reporter, near).await?;
    let (_far, asks) = handle.create_connection_on(Asks::default, far).await?;
    let (asks, _) = asks.closed().await;
    reporter.closed().await;
    assert_eq!(asks.heard, b"all is well");
    assert_eq!(asks.trace, ["made", "data", "end", "lost"]);
    Ok(())
}
