//! A protocol tested without sockets and without waiting: on a wire, and byte by byte on a stream.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use coloop::{ByteStream, Protocol, TimerHandle, Transport, testing};

// ANCHOR: protocol
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers each line "ping" by "pong", and hangs up on a peer that says nothing for too long.
#[derive(Default)]
struct Pong {
    unfinished: Vec<u8>,
    idle: Option<TimerHandle>,
}

impl Pong {
    fn wait_for_more(&mut self, transport: &Rc<dyn Transport>) {
        let transport = Rc::clone(transport);
        let hang_up = move || transport.abort();
        let timer = coloop::current().call_later(PATIENCE, hang_up);
        if let Some(before) = self.idle.replace(timer) {
            before.cancel();
        }
    }
}

impl Protocol for Pong {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.wait_for_more(transport);
    }

    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        self.wait_for_more(transport);
        self.unfinished.extend(data);
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            transport.write(if line == b"ping\n" {
                b"pong\n"
            } else {
                b"what?\n"
            });
        }
    }

    fn connection_lost(&mut self, _: &Rc<dyn Transport>, _: Option<&io::Error>) {
        if let Some(timer) = self.idle.take() {
            timer.cancel();
        }
    }
}
// ANCHOR_END: protocol

/// The peer in the tests.
#[derive(Default)]
struct Peer(Vec<u8>);

impl Protocol for Peer {
    fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
        self.0.extend(data);
    }
}

// ANCHOR: wire
fn a_silent_peer_is_given_up_thirty_seconds_after_its_last_word() {
    testing::run_virtual(async {
        let handle = coloop::current();
        let began = handle.time();
        let ((_, pong), (peer, heard)) =
            testing::Wire::connect(&handle, 1024, Pong::default, Peer::default);
        for _ in 0..3 {
            coloop::sleep(Duration::from_secs(20)).await;
            peer.write(b"ping\n");
        }
        let (pong, error) = pong.closed().await;
        assert!(error.is_none(), "this side has ended it");
        assert_eq!(handle.time() - began, Duration::from_secs(3 * 20 + 30));
        assert!(pong.idle.is_none(), "no timer is left");

        let (heard, error) = heard.closed().await;
        assert_eq!(heard.0, b"pong\npong\npong\n");
        assert!(error.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
    });
}
// ANCHOR_END: wire

// ANCHOR: stream
fn a_line_may_come_in_any_number_of_pieces() -> io::Result<()> {
    testing::run_virtual(async {
        let handle = coloop::current();
        let (near, far) = testing::stream_pair(&handle, 1024)?;
        let (_, pong) = handle.create_connection_over(Pong::default, near).await?;
        for byte in b"ping\npang\npi" {
            far.send(&[*byte])?;
            coloop::sleep(Duration::from_secs(1)).await;
        }
        let mut answer = [0; 32];
        let count = far.recv(&mut answer)?;
        assert_eq!(&answer[..count], b"pong\nwhat?\n");
        assert_eq!(pong.with(|pong| pong.unfinished.clone())?, b"pi");

        drop(far);
        let (_, error) = pong.closed().await;
        assert!(error.is_none(), "the peer has gone, in order");
        Ok(())
    })
}
// ANCHOR_END: stream

fn main() -> io::Result<()> {
    a_silent_peer_is_given_up_thirty_seconds_after_its_last_word();
    a_line_may_come_in_any_number_of_pieces()
}
