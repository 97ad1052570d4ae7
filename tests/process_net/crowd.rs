//! Many idle connections, between two processes: what they cost, and that they disturb nobody.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;

use coloop::{EventLoop, Protocol, Transport};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::alone::{PATIENCE, is_child};
use crate::run;

/// Says how many connections are to stand idle.
const CROWD: &str = "COLOOP_TEST_CROWD";
const SERVES_A_CROWD: &str = "crowd::helper_serves_a_crowd";

/// Greets, and sends back what it gets.
struct Greeter;

impl Protocol for Greeter {
    fn connection_made(&mut self, transport: &Rc<dyn Transport>) {
        transport.write(b"!");
    }
    fn data_received(&mut self, transport: &Rc<dyn Transport>, data: &[u8]) {
        transport.write(data);
    }
}

/// Not a test of its own: the server of a crowd. It ends when its standard input does.
#[test]
fn helper_serves_a_crowd() {
    if !is_child(SERVES_A_CROWD) {
        return;
    }
    raise_limit();
    let event_loop = EventLoop::new().unwrap();
    let server = event_loop
        .create_server(|| Greeter, ("127.0.0.1", 0))
        .backlog(4_096);
    let server = run(&event_loop, server.into_future()).unwrap();
    println!("\n- {}", server.sockets()[0].local_addr());
    io::stdout().flush().unwrap();
    let (remote, handle) = (event_loop.remote(), event_loop.handle());
    thread::spawn(move || {
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        remote.stop();
    });
    event_loop.run_forever().unwrap();
    server.abort_clients();
    server.close();
    run(&event_loop, server.wait_closed());
    assert!(handle.all_tasks().is_empty());
}

/// Takes as many descriptors as there are for the asking, and says how many that is.
fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// A server in a process of its own.
struct Crowded {
    process: Child,
    at: SocketAddr,
}

impl Crowded {
    fn start() -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args([SERVES_A_CROWD, "--exact", "--nocapture", "--test-threads=1"])
            .env("COLOOP_TEST_CHILD", SERVES_A_CROWD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut lines = lines.map(Result::unwrap);
        let at = lines.find_map(|line| line.strip_prefix("- ")?.parse().ok());
        // It goes on reading, so that the process can go on writing.
        thread::spawn(move || lines.for_each(drop));
        let at = at.expect("it says where it listens");
        Self { process, at }
    }

    /// Connects, and waits until that has been noticed.
    fn connect(&self) -> TcpStream {
        let mut client = TcpStream::connect(self.at).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
        client
    }

    /// The bytes that are in memory.
    fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib * 1024
    }

    /// Counts the system calls of the server while something is done; `None` where nobody counts.
    fn calls(&self, work: impl FnOnce()) -> Option<u64> {
        let (tell, log) = (self.process.id().to_string(), env::temp_dir());
        let log = log.join(format!("coloop-crowd-{tell}.calls"));
        let counter = Command::new("strace")
            .args(["-f", "-c", "-o", log.to_str().unwrap(), "-p", &tell])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut counter) = counter else {
            println!("skipped: without strace nobody counts the system calls");
            return None;
        };
        let mut said = BufReader::new(counter.stderr.take().unwrap()).lines();
        let attached = said.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        if attached.is_none() {
            println!("skipped: strace cannot attach here");
            counter.wait().unwrap();
            return None;
        }
        work();
        let counter_id = Pid::from_child(&counter);
        kill_process(counter_id, Signal::INT).unwrap();
        said.for_each(drop);
        counter.wait().unwrap();
        let table = fs::read_to_string(&log).unwrap();
        fs::remove_file(&log).unwrap();
        let total = table.lines().find(|line| line.ends_with(" total")).unwrap();
        Some(total.split_whitespace().nth(3).unwrap().parse().unwrap())
    }

    fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

const MESSAGES: u64 = 1_000;

fn echo(client: &mut TcpStream) {
    let mut back = [0; 5];
    for _ in 0..MESSAGES {
        client.write_all(b"hello").unwrap();
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
    }
}

#[test]
fn fault_d12_a_crowd_of_idle_connections_costs_little_and_disturbs_nobody() {
    let wanted: u64 = match env::var(CROWD) {
        Ok(count) => count.parse().unwrap(),
        Err(_) => 1_000,
    };
    let room = raise_limit().saturating_sub(64);
    let crowd = wanted.min(room);
    if crowd < wanted {
        println!("there is room for {crowd} connections of {wanted}");
    }
    let server = Crowded::start();
    let mut healthy = server.connect();
    // What grows by doubling has its first size.
    let few: Vec<_> = (0..16).map(|_| server.connect()).collect();
    echo(&mut healthy);
    let before = (server.resident(), server.calls(|| echo(&mut healthy)));

    let idle: Vec<_> = (0..crowd).map(|_| server.connect()).collect();
    let after = (server.resident(), server.calls(|| echo(&mut healthy)));
    let each = after.0.saturating_sub(before.0) / crowd;
    println!("{crowd} idle connections: {each} bytes each in user space");
    assert!(each <= 2_048, "{each} bytes for each of {crowd}");
    if let (Some(before), Some(after)) = (before.1, after.1) {
        println!("system calls for {MESSAGES} messages: {before} alone, {after} in the crowd");
        // Three a message; a wait that found nothing now and then is no matter of how many there are.
        assert!(before > 2 * MESSAGES, "it has not counted");
        assert!(
            after <= before + before / 20,
            "{before} alone, {after} in the crowd"
        );
    }
    drop((idle, few, healthy));
    server.end();
}
