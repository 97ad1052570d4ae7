//! `coloop`: a protocol for each connection, called with what has come.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use coloop::{EventLoop, Protocol, Transport};

use super::announce;

#[derive(Default)]
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

pub(super) fn serve(listener: OwnedFd) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let served = event_loop.run_until_complete(async move {
        let server = coloop::current()
            .create_server_on(Echo::default, listener)
            .backlog(4096)
            .await?;
        announce()?;
        server.serve_forever().await?;
        Ok(())
    });
    served.map_err(io::Error::other)?
}
