//! An echo server and its client that lend the memory which is read into: nothing is copied between.

use std::io;
use std::rc::Rc;

use coloop::{BufferedProtocol, Transport, buffered};

const BYTES: usize = 1 << 20;
const PIECE: usize = 16 * 1024;

// ANCHOR: echo
/// Has one piece of memory, and sends back from it what has come into it.
struct Echo {
    piece: Box<[u8]>,
}

impl BufferedProtocol for Echo {
    fn get_buffer(&mut self, _size_hint: Option<usize>) -> &mut [u8] {
        &mut self.piece
    }

    fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize) {
        transport.write(&self.piece[..count]);
    }

    fn pause_writing(&mut self, transport: &Rc<dyn Transport>) {
        transport.pause_reading();
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        transport.resume_reading();
    }
}
// ANCHOR_END: echo

// ANCHOR: fetch
/// Knows how much will come, and has it written where it belongs.
struct Fetch {
    question: Rc<[u8]>,
    asked: usize,
    answer: Vec<u8>,
    filled: usize,
}

impl BufferedProtocol for Fetch {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.ask(transport);
    }

    fn get_buffer(&mut self, _size_hint: Option<usize>) -> &mut [u8] {
        &mut self.answer[self.filled..]
    }

    fn buffer_updated(&mut self, transport: &Rc<dyn Transport>, count: usize) {
        self.filled += count;
        if self.filled == self.answer.len() {
            transport.close();
        }
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        self.ask(transport);
    }
}
// ANCHOR_END: fetch

impl Fetch {
    fn new(question: Rc<[u8]>) -> Self {
        Self {
            answer: vec![0; question.len()],
            question,
            asked: 0,
            filled: 0,
        }
    }

    /// Writes until it is asked to pause, or has written everything.
    fn ask(&mut self, transport: &Rc<dyn Transport>) {
        for piece in self.question[self.asked..].chunks(PIECE) {
            if transport.try_write(piece).is_err() {
                return; // `resume_writing` goes on from here
            }
            self.asked += piece.len();
        }
    }
}

// ANCHOR: main
#[coloop::main]
async fn main() -> io::Result<()> {
    let handle = coloop::current();
    let echo = || Echo {
        piece: vec![0; PIECE].into(),
    };
    let server = handle.create_server(buffered(echo), "127.0.0.1:0").await?;
    let address = server.sockets()[0].local_addr().as_inet();
    let address = address.ok_or_else(|| io::Error::other("no internet address"))?;

    let words = (0..BYTES / 8).map(|_| handle.random().to_ne_bytes());
    let question: Rc<[u8]> = words.flatten().collect();
    let fetch = Fetch::new(Rc::clone(&question));
    let connecting = handle.create_connection(buffered(|| fetch), address);
    let (_transport, fetch) = connecting.await?;
    let (fetch, error) = fetch.closed().await;

    server.close();
    server.wait_closed().await;
    println!("{} bytes came back", fetch.filled);
    assert!(error.is_none(), "{error:?}");
    assert!(fetch.answer == *question);
    Ok(())
}
// ANCHOR_END: main
