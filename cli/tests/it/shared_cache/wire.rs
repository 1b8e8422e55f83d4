//! A wire to a server that notes what goes over it, can be cut, and can hold requests until others have come.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Listens on loopback and passes everything on to `host`, for HTTP/1.1 in the clear.
pub struct Wire {
    /// `host:port`
    pub host: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: String,
    /// `METHOD path`, in order.
    requests: Mutex<Vec<String>>,
    /// Bytes that clients got.
    received: AtomicU64,
    /// Requests that still pass; the next one is cut. Negative: all do.
    left: AtomicI64,
    /// Requests that are answered together.
    hold: Mutex<Option<Hold>>,
    came: Condvar,
}

struct Hold {
    chosen: fn(&str) -> bool,
    /// How many have to come before any is passed on, and how many have.
    wanted: usize,
    held: usize,
}

/// How long a request is held at most: longer than any machine takes, so that a test that fails ends.
const PATIENCE: Duration = Duration::from_secs(120);

impl Wire {
    pub fn to(target: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            requests: Mutex::default(),
            received: AtomicU64::new(0),
            left: AtomicI64::new(-1),
            hold: Mutex::new(None),
            came: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        // Ends with the test binary.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let shared = Arc::clone(&accepting);
                std::thread::spawn(move || shared.carry(&client.unwrap()));
            }
        });
        Wire { host, shared }
    }

    /// Forgets what was noted.
    pub fn clear(&self) {
        self.shared.requests.lock().unwrap().clear();
        self.shared.received.store(0, Ordering::SeqCst);
    }

    /// From now on, so many requests pass, and no more.
    pub fn cut_after(&self, requests: i64) {
        self.shared.left.store(requests, Ordering::SeqCst);
    }

    /// From now on, of the requests that are `chosen` (`METHOD path`) none is passed on before `wanted` have come: who asks
    /// one by one gets no answer.
    pub fn hold(&self, wanted: usize, chosen: fn(&str) -> bool) {
        *self.shared.hold.lock().unwrap() = Some(Hold {
            chosen,
            wanted,
            held: 0,
        });
    }

    /// What was asked for since it was cleared: `METHOD path`, sorted.
    pub fn requests(&self) -> Vec<String> {
        let mut requests = self.shared.requests.lock().unwrap().clone();
        requests.sort();
        requests
    }

    /// Those of them with the method whose path has `part` in it.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let requests = self.requests();
        let wanted = |request: &&String| {
            request
                .split_once(' ')
                .is_some_and(|(verb, path)| verb == method && path.contains(part))
        };
        requests.iter().filter(wanted).count()
    }

    /// Bytes that clients got since it was cleared.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn carry(&self, client: &TcpStream) {
        let Ok(server) = TcpStream::connect(&self.target) else {
            return;
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.answers(&server, client);
                let _ = client.shutdown(Shutdown::Both);
            });
            self.requests_of(client, &server);
            let _ = server.shutdown(Shutdown::Both);
        });
    }

    fn answers(&self, mut server: &TcpStream, mut client: &TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = server.read(&mut buffer) {
            self.received.fetch_add(count as u64, Ordering::SeqCst);
            if client.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    }

    /// Whether a request may pass, now that the others that it is held for have come.
    fn wait_for_others(&self, request: &str) -> bool {
        let mut hold = self.hold.lock().unwrap();
        match &mut *hold {
            Some(hold) if (hold.chosen)(request) => hold.held += 1,
            _ => return true,
        }
        self.came.notify_all();
        let is_short = |hold: &mut Option<Hold>| hold.as_ref().is_some_and(|h| h.held < h.wanted);
        let waited = self.came.wait_timeout_while(hold, PATIENCE, is_short);
        !waited.unwrap().1.timed_out()
    }

    /// Passes requests on one by one: a head, and as many bytes as it says.
    fn requests_of(&self, client: &TcpStream, mut server: &TcpStream) {
        let mut client = BufReader::new(client);
        loop {
            // A client that tries whether TLS is spoken here.
            if !client
                .fill_buf()
                .is_ok_and(|bytes| bytes.first() != Some(&0x16))
            {
                return;
            }
            let (mut head, mut length) = (Vec::new(), 0);
            loop {
                let mut line = Vec::new();
                if !matches!(client.read_until(b'\n', &mut line), Ok(1..)) {
                    return;
                }
                let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
                if let Some(value) = text.strip_prefix("content-length:") {
                    length = value.trim().parse::<u64>().unwrap();
                }
                head.extend_from_slice(&line);
                if line == b"\r\n" {
                    break;
                }
            }
            let left = self.left.load(Ordering::SeqCst);
            if left == 0 {
                return;
            }
            if left > 0 {
                self.left.fetch_sub(1, Ordering::SeqCst);
            }
            let text = String::from_utf8_lossy(&head);
            let mut words = text.split(' ');
            let request = format!("{} {}", words.next().unwrap(), words.next().unwrap());
            self.requests.lock().unwrap().push(request.clone());
            if !self.wait_for_others(&request) {
                return;
            }
            let mut body = (&mut client).take(length);
            if server.write_all(&head).is_err() || std::io::copy(&mut body, &mut server).is_err() {
                return;
            }
        }
    }
}
