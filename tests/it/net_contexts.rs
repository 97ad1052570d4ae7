//! In which context the protocols of connections and of servers are called.

use std::rc::Rc;

use coloop::{Context, ContextVar, Protocol, Transport, current};

use crate::sockets::{Peer, address, listener, run, tcp_pair, until};
use crate::verbs::Trace;

static WHO: ContextVar<&str> = ContextVar::new("who");

fn who() -> &'static str {
    WHO.get().unwrap_or("nobody")
}

/// Logs each call with the value that it sees.
struct Witness(Trace);

impl Witness {
    fn log(&self, call: &str) {
        self.0.log(format!("{call} in {}", who()));
    }
}

impl Protocol for Witness {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        self.log("made");
        transport
            .set_write_buffer_limits(coloop::WriteLimits::high(0))
            .unwrap();
    }
    fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
        self.log(&format!("data {}", String::from_utf8_lossy(data)));
    }
    fn pause_writing(&mut self, _: &Rc<dyn Transport>) {
        self.log("pause");
    }
    fn resume_writing(&mut self, _: &Rc<dyn Transport>) {
        self.log("resume");
    }
    fn eof_received(&mut self, _: &Rc<dyn Transport>) -> coloop::Eof {
        self.log("eof");
        coloop::Eof::Close
    }
    fn connection_lost(&mut self, _: &Rc<dyn Transport>, _: Option<&std::io::Error>) {
        self.log("lost");
    }
}

fn witness(trace: &Trace) -> impl Fn() -> Witness + use<> {
    let trace = trace.clone();
    move || {
        trace.log(format!("factory in {}", who()));
        Witness(trace.clone())
    }
}

/// Runs a future as a task in a context with this value.
async fn as_who<T: 'static>(name: &'static str, future: impl Future<Output = T> + 'static) -> T {
    let context = Context::new();
    context.run(|| WHO.set(name));
    let task = current().task().context(context).create(future);
    task.await.unwrap()
}

#[test]
fn c_093_the_connections_of_a_server_see_the_context_that_it_was_made_in() {
    let trace = Trace::new();
    run(async {
        let factory = witness(&trace);
        let server = as_who("the server", async move {
            let server = current().create_server(factory, ("127.0.0.1", 0)).await;
            // Set afterwards: it was copied when the server was made.
            WHO.set("somebody later");
            server.unwrap()
        })
        .await;
        WHO.set("the test");
        let peer = Peer::to(address(&server));
        peer.say("x").await;
        until(|| trace.has("data x in the server")).await;
        drop(peer);
        until(|| trace.has("lost in the server")).await;
        server.close();
        assert_eq!(who(), "the test");
    });
    trace.assert(&[
        "factory in the server",
        "made in the server",
        "data x in the server",
        "eof in the server",
        "lost in the server",
    ]);
}

/// asyncio's connections of one server share its context.
#[test]
fn c_093_each_connection_has_a_copy_of_its_own() {
    struct Marks(Trace);
    impl Protocol for Marks {
        fn data_received(&mut self, _: &Rc<dyn Transport>, data: &[u8]) {
            self.0.log(who());
            WHO.set(if data == b"a" { "a" } else { "b" });
        }
    }

    let trace = Trace::new();
    run(async {
        WHO.set("the server");
        let log = trace.clone();
        let factory = move || Marks(log.clone());
        let server = current()
            .create_server(factory, ("127.0.0.1", 0))
            .await
            .unwrap();
        let (a, b) = (Peer::to(address(&server)), Peer::to(address(&server)));
        for round in 1..=2 {
            for (peer, text) in [(&a, "a"), (&b, "b")] {
                peer.say(text).await;
                let before = trace.clone();
                until(|| before.len() == 2 * round - usize::from(text == "a")).await;
            }
        }
        server.close();
        assert_eq!(who(), "the server");
    });
    trace.assert(&["the server", "the server", "a", "b"]);
}

#[test]
fn c_094_every_call_of_a_connection_sees_the_context_that_it_was_made_in() {
    let trace = Trace::new();
    let calls = [
        "factory in its maker",
        "made in its maker",
        "data x in its maker",
        "pause in its maker",
        "resume in its maker",
        "eof in its maker",
        "lost in its maker",
    ];
    for kind in 0..3 {
        run(async {
            WHO.set("the test");
            let factory = witness(&trace);
            let (transport, peer) = match kind {
                0 => {
                    let (listener, at) = listener();
                    let making = async move {
                        let made = current().create_connection(factory, at).await.unwrap();
                        made.0
                    };
                    let transport = as_who("its maker", making).await;
                    (transport, Peer::of(listener.accept().unwrap().0))
                }
                _ => {
                    let (near, far) = tcp_pair();
                    let making = async move {
                        let made = match kind {
                            1 => current().create_connection_on(factory, near).await,
                            _ => current().connect_accepted_socket(factory, near).await,
                        };
                        made.unwrap().0
                    };
                    (as_who("its maker", making).await, Peer::of(far))
                }
            };
            peer.say("x").await;
            until(|| trace.has("data x in its maker")).await;
            // More than the system takes; what is read makes room again.
            let mut written = 0;
            while !transport.is_writing_paused() {
                transport.write(&[b'y'; 65_536]);
                written += 65_536;
            }
            until(|| trace.has("pause in its maker")).await;
            peer.hear(written).await;
            until(|| trace.has("resume in its maker")).await;
            drop(peer);
            until(|| trace.has("lost in its maker")).await;
            assert_eq!(who(), "the test");
        });
        trace.assert(&calls);
    }
}

#[test]
fn c_095_who_resumes_reading_or_writes_does_not_lend_his_context() {
    let trace = Trace::new();
    run(async {
        let (near, far) = tcp_pair();
        let factory = witness(&trace);
        let making = async move { current().create_connection_on(factory, near).await };
        let (transport, _handle) = as_who("its maker", making).await.unwrap();
        let peer = Peer::of(far);

        let theirs = Rc::clone(&transport);
        as_who("a stranger", async move {
            theirs.pause_reading();
            theirs.resume_reading();
            while !theirs.is_writing_paused() {
                theirs.write(&[b'y'; 65_536]);
            }
        })
        .await;
        peer.say("x").await;
        until(|| trace.has("data x in its maker")).await;
        as_who("another stranger", async move { transport.abort() }).await;
        until(|| trace.has("lost in its maker")).await;
    });
    trace.assert(&[
        "factory in its maker",
        "made in its maker",
        "pause in its maker",
        "data x in its maker",
        "lost in its maker",
    ]);
}
