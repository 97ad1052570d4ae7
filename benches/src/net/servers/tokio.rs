//! tokio on one thread: `tokio` as its guide writes it, a task and a buffer for each connection;
//! `tokio-shared` waits for readiness and reads into one buffer for all, to hold less memory.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Builder;

use super::{Kind, OWN_BUFFER, SHARED_BUFFER, announce};

pub(super) fn serve(listener: OwnedFd, kind: Kind, shared: bool) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        match kind {
            Kind::Tcp => {
                let listener = TcpListener::from_std(listener.into())?;
                announce()?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.set_nodelay(true)?;
                    start(stream, shared);
                }
            }
            Kind::Unix => {
                let listener = UnixListener::from_std(listener.into())?;
                announce()?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    start(stream, shared);
                }
            }
        }
    })
}

fn start<S: Stream>(stream: S, shared: bool) {
    if shared {
        tokio::spawn(echo_shared(stream));
    } else {
        tokio::spawn(echo(stream));
    }
}

/// What the two kinds of stream have in common without a trait of tokio's.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
                self.readable()
            }
            fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
                self.try_read(buffer)
            }
            fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
                self.try_write(bytes)
            }
        }
    };
}
stream!(TcpStream);
stream!(UnixStream);

async fn echo<S: Stream>(mut stream: S) -> io::Result<()> {
    let mut buffer = vec![0; OWN_BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            got => stream.write_all(&buffer[..got]).await?,
        }
    }
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SHARED_BUFFER]);
}

async fn echo_shared<S: Stream>(mut stream: S) -> io::Result<()> {
    loop {
        stream.readable().await?;
        let unsent = BUFFER.with_borrow_mut(|buffer| {
            let got = match stream.try_read(buffer) {
                Ok(0) => return Ok(None),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Some(Vec::new())),
                Err(error) => return Err(error),
            };
            match stream.try_write(&buffer[..got]) {
                Ok(sent) => Ok(Some(buffer[sent..got].to_vec())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    Ok(Some(buffer[..got].to_vec()))
                }
                Err(error) => Err(error),
            }
        })?;
        match unsent {
            None => return Ok(()),
            Some(unsent) if unsent.is_empty() => {}
            Some(unsent) => stream.write_all(&unsent).await?,
        }
    }
}
