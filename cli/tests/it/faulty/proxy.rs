//! Somebody between a command and a registry who understands HTTP and does harm with it: each request to the registry may meet a
//! fault, by what it asks for and how many came before. What is asked and answered lies in memory whole.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// More headers than anybody takes, in bytes.
const FLOOD: usize = 100 << 20;

/// A document longer than any, in bytes.
const ENDLESS: u64 = 1 << 30;

/// Interim answers before the end, some megabytes of them.
const INTERIM: usize = 100_000;

/// What goes wrong with a request, or with its answer. Parts are in thousandths.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The line is cut before anything is answered.
    Close,
    /// A part of the request arrives, and then the line is cut.
    CutRequest(usize),
    /// The registry does what it was asked for, and nobody hears of it.
    Lost,
    /// A part of the answer comes, and then the line is cut.
    CutAnswer(usize),
    /// A part of the answer comes, and then nothing.
    Stall(usize),
    /// Refused with a status.
    Status(u16),
    /// Refused for want of credentials; tokens are given, and are no use.
    Unauthorized { bearer: bool },
    /// Sent on, to where it is sent on again.
    Circle,
    /// Sent on to this machine's own metadata, so to speak, or to a file.
    Misdirected,
    /// Headers without end.
    Flood,
    /// `100 Continue` again and again.
    Interim,
    /// Blanks without end, under a length that is believable or under none.
    Endless { announced: bool },
    /// Another protocol.
    Garbage,
    /// A length that is not the content's.
    Length(i64),
    /// A byte is another one.
    Flip(usize),
    /// The content is said to be of another type.
    Type(&'static str),
    /// The content is said to have another digest.
    Digest,
    /// Another range than the one that was asked for, or none, or one where none was.
    Range,
    /// An upload stands elsewhere than the registry says.
    Offset(i64),
    /// Without `Location`, and the like.
    Bare,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    Anything,
    Manifests,
    Blobs,
    Uploads,
}

/// A fault for the requests about something: after `skipped` of them, as often as `times` says.
#[derive(Clone, Copy, Debug)]
pub struct Armed {
    pub about: About,
    pub skipped: u64,
    pub times: u64,
    pub fault: Fault,
}

struct Shared {
    server: String,
    host: String,
    faults: Mutex<Vec<Armed>>,
    is_calm: AtomicBool,
    struck: AtomicU64,
    /// Whether somebody took what has no end.
    swallowed: AtomicBool,
    /// Bytes of blobs that went to the registry, and that came from it to whoever asked.
    sent: AtomicU64,
    received: AtomicU64,
}

/// The proxy. It ends with the test process.
pub struct Proxy {
    /// `host:port`, a registry's name.
    pub host: String,
    shared: Arc<Shared>,
}

impl Proxy {
    pub fn start(server: &str, faults: Vec<Armed>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            host: host.clone(),
            faults: Mutex::new(faults),
            is_calm: AtomicBool::new(false),
            struck: AtomicU64::new(0),
            swallowed: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, shared) = (client.unwrap(), Arc::clone(&of_thread));
                std::thread::spawn(move || shared.serve(&client));
            }
        });
        Proxy { host, shared }
    }

    /// No faults from here on.
    pub fn calm(&self) {
        self.shared.is_calm.store(true, Ordering::SeqCst);
    }

    /// Requests that met a fault.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// Whether 100 MB of headers, or a document of 1 GB, were taken to their end.
    pub fn was_swallowed(&self) -> bool {
        self.shared.swallowed.load(Ordering::SeqCst)
    }

    /// Bytes of blobs that went to the registry.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Bytes of blobs that came from the registry.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }
}

/// A request or an answer as it came.
struct Message {
    /// Method and target, or status.
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn read(reader: &mut impl BufRead, is_request: bool) -> Option<Message> {
        let line = |reader: &mut dyn BufRead| {
            let mut text = String::new();
            let length = reader.read_line(&mut text).ok()?;
            (length > 0).then(|| text.trim_end().to_owned())
        };
        let first = line(reader)?;
        let mut headers = Vec::new();
        loop {
            let text = line(reader)?;
            let Some((name, value)) = text.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut message = Message {
            first,
            headers,
            body: Vec::new(),
        };
        let length = message.header("content-length").parse().unwrap_or(0);
        let length = if is_request { length } else { u64::MAX };
        // An answer's end is the connection's.
        let _ = reader.take(length).read_to_end(&mut message.body);
        Some(message)
    }

    fn header(&self, name: &str) -> &str {
        let mut found = self.headers.iter().filter(|(other, _)| other == name);
        found.next().map_or("", |(_, value)| value)
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(other, _)| other != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    fn remove(&mut self, name: &str) {
        self.headers.retain(|(other, _)| other != name);
    }

    fn method(&self) -> &str {
        self.first.split(' ').next().unwrap_or_default()
    }

    fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }

    fn head(&self) -> Vec<u8> {
        let mut head = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }

    fn is_about(&self, about: About) -> bool {
        let target = self.target();
        match about {
            About::Anything => true,
            About::Manifests => target.contains("/manifests/"),
            About::Blobs => is_blob(target),
            About::Uploads => target.contains("/blobs/uploads/"),
        }
    }
}

fn is_blob(target: &str) -> bool {
    target.contains("/blobs/") && !target.contains("/blobs/uploads/")
}

/// Where in `length` bytes a part ends.
fn part(length: usize, thousandths: usize) -> usize {
    length * thousandths / 1000
}

impl Shared {
    fn serve(&self, client: &TcpStream) {
        let mut reader = BufReader::new(client);
        while let Some(request) = Message::read(&mut reader, true) {
            let fault = self.fault(&request);
            if self.answer(client, request, fault).is_none() {
                break;
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    }

    /// The fault that a request meets: the first that is due.
    fn fault(&self, request: &Message) -> Option<Fault> {
        if self.is_calm.load(Ordering::SeqCst) || request.target().starts_with("/token") {
            return None;
        }
        let mut faults = self.faults.lock().unwrap();
        let mut met = None;
        for armed in faults.iter_mut() {
            if !request.is_about(armed.about) {
                continue;
            }
            if armed.skipped > 0 {
                armed.skipped -= 1;
            } else if armed.times > 0 && met.is_none() {
                armed.times -= 1;
                met = Some(armed.fault);
            }
        }
        if met.is_some() {
            self.struck.fetch_add(1, Ordering::SeqCst);
        }
        met
    }

    /// Answers a request; nothing where the connection is no more use.
    fn answer(&self, client: &TcpStream, request: Message, fault: Option<Fault>) -> Option<()> {
        let mut client = client;
        let host = &self.host;
        let mut say = |text: &str| client.write_all(text.as_bytes()).ok();
        let empty = "content-length: 0\r\n\r\n";
        if request.target().starts_with("/token") {
            let token = r#"{"token":"no-use"}"#;
            let length = token.len();
            return say(&format!(
                "HTTP/1.1 200 X\r\ncontent-length: {length}\r\n\r\n{token}"
            ));
        }
        match fault {
            Some(Fault::Close) => None,
            Some(Fault::Status(status)) => {
                let said = r#"{"errors":[{"code":"UNKNOWN","message":"out of order"}]}"#;
                let body = if request.method() == "HEAD" { "" } else { said };
                say(&format!(
                    "HTTP/1.1 {status} X\r\nretry-after: 0\r\ncontent-length: {}\r\n\r\n{body}",
                    said.len()
                ))
            }
            Some(Fault::Unauthorized { bearer }) => {
                let challenge = match bearer {
                    true => format!("Bearer realm=\"http://{host}/token\",service=\"it\""),
                    false => "Basic realm=\"it\"".to_owned(),
                };
                say(&format!(
                    "HTTP/1.1 401 X\r\nwww-authenticate: {challenge}\r\n{empty}"
                ))
            }
            Some(Fault::Circle) => {
                let (path, query) = request
                    .target()
                    .split_once('?')
                    .unwrap_or((request.target(), ""));
                let other = if query == "round" {
                    "and-round"
                } else {
                    "round"
                };
                say(&format!(
                    "HTTP/1.1 307 X\r\nlocation: {path}?{other}\r\n{empty}"
                ))
            }
            Some(Fault::Misdirected) => say(&format!(
                "HTTP/1.1 307 X\r\nlocation: file:///etc/passwd\r\n{empty}"
            )),
            Some(Fault::Garbage) => {
                say("SSH-2.0-OpenSSH_9.2\r\n");
                None
            }
            Some(Fault::Flood) => {
                say("HTTP/1.1 200 X\r\n");
                let header = format!("x-{}: {}\r\n", "a".repeat(50), "b".repeat(64 * 1024));
                let mut told = 0;
                while told < FLOOD && say(&header).is_some() {
                    told += header.len();
                }
                self.swallowed.fetch_or(told >= FLOOD, Ordering::SeqCst);
                None
            }
            Some(Fault::Interim) => {
                for _ in 0..INTERIM {
                    say("HTTP/1.1 100 Continue\r\n\r\n")?;
                }
                None
            }
            Some(Fault::Endless { announced }) => {
                let length = match announced {
                    true => format!("content-length: {ENDLESS}\r\n"),
                    false => "connection: close\r\n".to_owned(),
                };
                say(&format!("HTTP/1.1 200 X\r\n{length}\r\n"));
                if request.method() != "HEAD" {
                    let (blanks, mut told) = (" ".repeat(64 * 1024), 0);
                    while told < ENDLESS && say(&blanks).is_some() {
                        told += blanks.len() as u64;
                    }
                    self.swallowed.fetch_or(told >= ENDLESS, Ordering::SeqCst);
                }
                None
            }
            fault => self.pass_on(client, request, fault),
        }
    }

    /// Asks the registry, and passes on what of it the fault lets through.
    fn pass_on(
        &self,
        mut client: &TcpStream,
        mut request: Message,
        fault: Option<Fault>,
    ) -> Option<()> {
        request.set("connection", "close");
        let mut server = TcpStream::connect(&self.server).ok()?;
        server.write_all(&request.head()).ok()?;
        let mut arrives = request.body.len();
        if let Some(Fault::CutRequest(thousandths)) = fault {
            arrives = part(arrives, thousandths);
        }
        // A registry that refuses need not read it all.
        let written = server.write_all(&request.body[..arrives]);
        if request.is_about(About::Uploads) {
            self.sent.fetch_add(arrives as u64, Ordering::SeqCst);
        }
        if let Some(Fault::CutRequest(_)) = fault {
            let _ = server.shutdown(Shutdown::Both);
            return None;
        }
        drop(written);
        let mut answer = Message::read(&mut BufReader::new(&server), false)?;
        answer.remove("connection");
        let (mut shown, mut then_stalls, mut then_cuts) = (usize::MAX, false, false);
        let length = answer.head().len() + answer.body.len();
        match fault {
            Some(Fault::Lost) => return None,
            Some(Fault::CutAnswer(thousandths)) => {
                (shown, then_cuts) = (part(length, thousandths), true);
            }
            Some(Fault::Stall(thousandths)) => {
                (shown, then_stalls) = (part(length, thousandths), true);
            }
            Some(Fault::Length(by)) => {
                let length: i64 = answer.header("content-length").parse().unwrap_or(0);
                answer.set("content-length", &(length + by).max(0).to_string());
                then_cuts = true;
            }
            Some(Fault::Flip(thousandths)) => {
                let at = part(answer.body.len().saturating_sub(1), thousandths);
                if let Some(byte) = answer.body.get_mut(at) {
                    *byte ^= 0x20;
                }
            }
            Some(Fault::Type(kind)) => answer.set("content-type", kind),
            Some(Fault::Digest) => {
                let other = format!("sha256:{}", "0123456789abcdef".repeat(4));
                answer.set("docker-content-digest", &other);
            }
            Some(Fault::Range) => {
                let length = answer.body.len();
                match answer.header("content-range").is_empty() {
                    true => {
                        let range = format!("bytes 7-{}/{}", length + 6, length + 7);
                        answer.first = "HTTP/1.1 206 X".to_owned();
                        answer.set("content-range", &range);
                    }
                    false if length % 2 == 0 => {
                        answer.first = "HTTP/1.1 200 X".to_owned();
                        answer.remove("content-range");
                    }
                    false => answer.set("content-range", "bytes 0-0/1"),
                }
            }
            Some(Fault::Offset(by)) => {
                let last = answer
                    .header("range")
                    .rsplit('-')
                    .next()
                    .unwrap_or_default();
                let last: i64 = last.parse().unwrap_or(0);
                answer.set("range", &format!("0-{}", (last + by).max(0)));
            }
            Some(Fault::Bare) => {
                for name in ["location", "range", "docker-content-digest", "content-type"] {
                    answer.remove(name);
                }
            }
            _ => {}
        }
        let head = answer.head();
        let of_head = head.len().min(shown);
        client.write_all(&head[..of_head]).ok()?;
        let of_body = answer.body.len().min(shown - of_head);
        // In pieces, so that what nobody takes is not counted.
        for piece in answer.body[..of_body].chunks(16 * 1024) {
            client.write_all(piece).ok()?;
            if is_blob(request.target()) {
                let length = piece.len() as u64;
                self.received.fetch_add(length, Ordering::SeqCst);
            }
        }
        if then_stalls {
            let _ = std::io::copy(&mut client, &mut std::io::sink());
        }
        (!then_cuts && !then_stalls).then_some(())
    }
}
