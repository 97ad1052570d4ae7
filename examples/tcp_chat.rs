//! A chat: a protocol for each guest, one room for all. Who does not read is sent away.

use std::{cell::RefCell, io, rc::Rc};

use coloop::{Protocol, Transport};
use futures::{StreamExt, channel::mpsc};

const STORY: &str = "and then ";

// ANCHOR: room
type Room = RefCell<Vec<Rc<dyn Transport>>>;

/// Nothing that is called in here calls a guest back, so no borrow of the room meets another.
fn tell_all(room: &Room, line: &str) {
    for guest in &*room.borrow() {
        if guest.try_write(format!("{line}\n").as_bytes()).is_err() {
            guest.abort(); // too slow: `connection_lost` will tell the others
        }
    }
}
// ANCHOR_END: room

// ANCHOR: guest
/// The server's side of a guest: the room, the name, which is the first line, and half a line.
struct Guest(Rc<Room>, Option<String>, String);

impl Protocol for Guest {
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        let Self(room, name, half) = self;
        *half += &String::from_utf8_lossy(data);
        while let Some((line, rest)) = half.split_once('\n') {
            if let Some(name) = name {
                tell_all(room, &format!("{name}: {line}"));
            } else {
                *name = Some(line.to_owned());
                room.borrow_mut().push(Rc::clone(transport));
                tell_all(room, &format!("* {line} is here"));
            }
            *half = rest.to_owned();
        }
        if half.len() > 16 * 1024 {
            transport.abort(); // a line without end
        }
    }

    fn connection_lost(&mut self, transport: &Rc<dyn Transport>, _: Option<&io::Error>) {
        let Self(room, name, _) = self;
        room.borrow_mut().retain(|g| !Rc::ptr_eq(g, transport));
        if let Some(name) = name {
            tell_all(room, &format!("* {name} has left"));
        }
    }
}
// ANCHOR_END: guest

/// The other side: what comes goes to whoever has the receiver.
struct Client(mpsc::UnboundedSender<Vec<u8>>);
type Words = mpsc::UnboundedReceiver<Vec<u8>>;

impl Protocol for Client {
    fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
        self.0.unbounded_send(data.to_vec()).ok(); // nobody may listen any more
    }
}

async fn enter(port: u16, name: &str) -> io::Result<(Rc<dyn Transport>, Words)> {
    let (sender, words) = mpsc::unbounded();
    let (handle, server) = (coloop::current(), ("127.0.0.1", port));
    let connecting = handle.create_connection(|| Client(sender), server);
    let (transport, _) = connecting.await?;
    transport.write(format!("{name}\n").as_bytes());
    Ok((transport, words))
}

/// What is heard until something is said or the connection is over, without the story.
async fn hear(words: &mut Words, until: &str) -> Vec<String> {
    let (mut heard, mut half) = (Vec::new(), String::new());
    while let Some(data) = words.next().await {
        half += &String::from_utf8_lossy(&data);
        if half.ends_with('\n') {
            let told = half.lines().filter(|line| !line.contains(STORY));
            heard.extend(told.map(str::to_owned));
            if std::mem::take(&mut half).contains(until) {
                break;
            }
        }
    }
    heard
}

#[coloop::main]
async fn main() -> io::Result<()> {
    let room = Rc::new(Room::default());
    let guest = move || Guest(Rc::clone(&room), None, String::new());
    let server = coloop::current().create_server(guest, "127.0.0.1:0");
    let server = server.await?;
    let port = server.sockets()[0].local_addr().port().unwrap_or_default();
    let (ann, mut to_ann) = enter(port, "ann").await?;
    assert_eq!(hear(&mut to_ann, "*").await, ["* ann is here"]);
    let (bob, mut to_bob) = enter(port, "bob").await?;
    assert_eq!(hear(&mut to_bob, "*").await, ["* bob is here"]);
    let (dan, mut to_dan) = enter(port, "dan").await?;
    dan.pause_reading(); // he listens to nobody
    let mut heard = Vec::new();
    while heard.last().is_none_or(|line| line != "* dan has left") {
        ann.write((STORY.repeat(500) + "\n").as_bytes());
        heard.extend(hear(&mut to_ann, "\n").await); // she goes on when she has heard herself
    }
    assert_eq!(heard, ["* bob is here", "* dan is here", "* dan has left"]);
    let heard = hear(&mut to_bob, "* dan has left").await;
    assert_eq!(heard, ["* dan is here", "* dan has left"]);
    dan.resume_reading(); // some of the story is still on its way to him, and no more
    assert_eq!(hear(&mut to_dan, "never").await, ["* dan is here"]);
    bob.close();
    assert_eq!(hear(&mut to_ann, "* bob").await, ["* bob has left"]);
    server.close();
    server.close_clients();
    server.wait_closed().await;
    Ok(())
}
