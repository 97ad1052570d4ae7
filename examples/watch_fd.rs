//! Watches a descriptor: a callback that runs when there is something to read.

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use coloop::EventLoop;

fn main() -> Result<(), Box<dyn Error>> {
    let event_loop = EventLoop::new()?;
    let (mut near, far) = UnixStream::pair()?;
    let far = Rc::new(far);
    let received = Rc::new(RefCell::new(Vec::new()));

    // ANCHOR: reader
    let (handle, socket, sink) = (event_loop.handle(), Rc::clone(&far), Rc::clone(&received));
    event_loop.add_reader(Rc::clone(&far), move || {
        let mut buffer = [0; 100];
        let read = (&*socket).read(&mut buffer);
        sink.borrow_mut()
            .push(read.map(|count| buffer[..count].to_vec()));
        handle.remove_reader(socket.as_raw_fd());
        handle.stop();
    })?;
    // ANCHOR_END: reader

    // ANCHOR: write
    event_loop.call_soon(move || {
        if let Err(error) = near.write_all(b"abc") {
            println!("the peer is gone: {error}");
        }
    });
    event_loop.run_forever()?;
    // ANCHOR_END: write

    let received: Vec<_> = received.take().into_iter().collect::<io::Result<_>>()?;
    println!("received: {}", String::from_utf8_lossy(&received.concat()));
    assert_eq!(received, [b"abc"]);
    assert!(
        !event_loop.remove_reader(far.as_raw_fd()),
        "it was removed already"
    );
    Ok(())
}
