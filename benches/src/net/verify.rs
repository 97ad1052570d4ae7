//! Whether a server echoes: bytes that tell their place, and the end of the stream.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use socket2::Socket;

use super::child::Server;
use super::load::connect;
use super::servers::Kind;

const CONNECTIONS: u64 = 8;
const BYTES: u64 = 1 << 20;
pub(crate) const SAID: &str = "8 connections of 1 MiB, TCP and unix";

/// Runs all connections at once. Each client sends all it has, so that the server must hold back
/// what cannot be written, then ends its side and expects the server to do so too.
pub(crate) fn echoes(name: &str, kind: Kind) -> io::Result<()> {
    let server = Server::start(&[], name, kind)?;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let socket = connect(server.address())?;
                Ok(scope.spawn(move || client(&socket, number)))
            })
            .collect::<io::Result<_>>()?;
        clients.into_iter().try_for_each(|client| {
            let done = client.join();
            done.unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
        })
    })
}

fn byte(number: u64, at: u64) -> u8 {
    (at.wrapping_mul(31) + (at >> 8) + (at >> 16) + number) as u8
}

fn client(socket: &Socket, number: u64) -> io::Result<()> {
    let patience = Some(Duration::from_secs(10));
    socket.set_read_timeout(patience)?;
    socket.set_write_timeout(patience)?;
    let sent: Vec<u8> = (0..BYTES).map(|at| byte(number, at)).collect();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut from = &sent[..];
            let mut size = 1;
            while !from.is_empty() {
                let (piece, rest) = from.split_at(size.min(from.len()));
                { socket }.write_all(piece)?;
                from = rest;
                size = (size * 3) % 100_000 + 1;
            }
            socket.shutdown(Shutdown::Write)
        });
        let mut came = Vec::new();
        { socket }.read_to_end(&mut came)?;
        let written = writer.join();
        written.unwrap_or_else(|_| Err(io::Error::other("a writer panicked")))?;
        if came.len() != sent.len() {
            let (came, sent) = (came.len(), sent.len());
            return Err(io::Error::other(format!(
                "{came} of {sent} bytes came back"
            )));
        }
        match came.iter().zip(&sent).position(|(came, sent)| came != sent) {
            Some(at) => Err(io::Error::other(format!("byte {at} came back changed"))),
            None => Ok(()),
        }
    })
}
