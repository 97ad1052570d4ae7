//! Flow control: a producer that heeds `pause_writing` against a reader that takes its time, and a
//! peer that never reads at all. By the virtual clock both take no time.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use coloop::{ByteStream, Protocol, Transport, WriteLimits, testing, timeout};
use futures::future::join;

const PIECE: usize = 1000;
const TOTAL: usize = 1000 * PIECE;
const LIMITS: WriteLimits = WriteLimits::high(8000);
const PAUSE: Duration = Duration::from_millis(10);

// ANCHOR: producer
/// Writes pieces while it may, and notes how much has ever waited.
#[derive(Default)]
struct Producer {
    written: usize,
    most: usize,
    pauses: usize,
    resumes: usize,
}

impl Producer {
    fn produce(&mut self, transport: &Rc<dyn Transport>) {
        while self.written < TOTAL && !transport.is_writing_paused() {
            transport.write(&[7; PIECE]);
            self.written += PIECE;
            self.most = self.most.max(transport.write_buffer_size());
        }
        if self.written == TOTAL {
            transport.close(); // what waits is written first
        }
    }
}

impl Protocol for Producer {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        match transport.set_write_buffer_limits(LIMITS) {
            Ok(()) => self.produce(transport),
            Err(_) => transport.abort(),
        }
    }

    fn data_received(&mut self, _: &Rc<dyn Transport>, _: &[u8]) {}

    fn pause_writing(&mut self, _: &Rc<dyn Transport>) {
        self.pauses += 1; // `produce` has seen it already
    }

    fn resume_writing(&mut self, transport: &Rc<dyn Transport>) {
        self.resumes += 1;
        self.produce(transport);
    }
}
// ANCHOR_END: producer

// ANCHOR: reader
/// Takes what has come, and reads no more until it has had its pause.
#[derive(Default)]
struct SlowReader(usize);

impl Protocol for SlowReader {
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        self.0 += data.len();
        transport.pause_reading();
        let transport = Rc::clone(transport);
        coloop::current().call_later(PAUSE, move || transport.resume_reading());
    }
}
// ANCHOR_END: reader

async fn a_slow_reader_slows_its_producer() -> io::Result<()> {
    let handle = coloop::current();
    let (near, far) = testing::stream_pair(&handle, 4000)?;
    let connecting = handle.create_connection_over(SlowReader::default, far);
    let (_far, reader) = connecting.await?;
    let connecting = handle.create_connection_over(Producer::default, near);
    let (_near, producer) = connecting.await?;

    let ((producer, _), (reader, _)) = join(producer.closed(), reader.closed()).await;
    assert_eq!((producer.written, reader.0), (TOTAL, TOTAL));
    assert!(producer.most <= LIMITS.high + PIECE);
    assert!(producer.pauses > 100);
    assert_eq!(producer.pauses, producer.resumes);
    Ok(())
}

async fn a_peer_that_never_reads_is_given_up() -> io::Result<()> {
    let handle = coloop::current();
    let (near, far) = testing::stream_pair(&handle, 4000)?;
    let connecting = handle.create_connection_over(Producer::default, near);
    let (transport, producer) = connecting.await?;
    assert!(transport.is_writing_paused());
    assert!(transport.try_write(b"more").is_err(), "nothing is taken");
    // ANCHOR: never
    transport.close(); // waits until the peer has taken what is buffered
    let mut closed = producer.closed();
    let limit = Duration::from_secs(30);
    let (producer, _) = match timeout(limit, &mut closed).await {
        Ok(ended) => ended,
        Err(_) => {
            transport.abort(); // which drops it
            closed.await
        }
    };
    // ANCHOR_END: never
    assert_eq!((producer.pauses, producer.resumes), (1, 0));
    assert_eq!(far.recv(&mut [0; 8000])?, 4000, "what was on its way");
    Ok(())
}

fn main() -> io::Result<()> {
    testing::run_virtual(a_slow_reader_slows_its_producer())?;
    testing::run_virtual(a_peer_that_never_reads_is_given_up())
}
