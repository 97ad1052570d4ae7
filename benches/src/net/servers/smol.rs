//! `smol`: async-executor's `LocalExecutor` under `async_io::block_on`, a task and a buffer for
//! each connection.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use async_executor::LocalExecutor;
use async_io::Async;
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Kind, OWN_BUFFER, announce};

pub(super) fn serve(listener: OwnedFd, kind: Kind) -> io::Result<()> {
    let executor = LocalExecutor::new();
    async_io::block_on(executor.run(async {
        match kind {
            Kind::Tcp => {
                let listener = Async::<TcpListener>::new(listener.into())?;
                announce()?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    stream.get_ref().set_nodelay(true)?;
                    executor.spawn(echo(stream)).detach();
                }
            }
            Kind::Unix => {
                let listener = Async::<UnixListener>::new(listener.into())?;
                announce()?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    executor.spawn(echo(stream)).detach();
                }
            }
        }
    }))
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    let mut buffer = vec![0; OWN_BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            got => stream.write_all(&buffer[..got]).await?,
        }
    }
}
