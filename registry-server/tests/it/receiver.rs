//! A small HTTP server that takes what it is sent, and answers as a test says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver as Channel, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Nothing here takes long; a test that hangs should say where.
const PATIENCE: Duration = Duration::from_secs(120);

/// What it was sent.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// How it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Status(u16),
    /// A status with a further header.
    With(u16, &'static str),
    /// Not at all, until the sender goes.
    Never,
    /// With bytes that do not end, until the sender goes.
    Flood,
    /// The connection is closed.
    Cut,
}

/// The server; its threads end with the process.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    received: Mutex<Channel<Received>>,
}

impl Receiver {
    /// Answers the request of this number, from 0, as `answer` says.
    pub(crate) fn start(
        answer: impl Fn(usize, &Received) -> Answer + Send + Sync + 'static,
    ) -> Receiver {
        Receiver::on(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    pub(crate) fn on(
        listener: TcpListener,
        answer: impl Fn(usize, &Received) -> Answer + Send + Sync + 'static,
    ) -> Receiver {
        let port = listener.local_addr().unwrap().port();
        let (sender, received) = mpsc::channel();
        let (answer, count) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, sender) = (stream.unwrap(), sender.clone());
                let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                std::thread::spawn(move || serve(stream, &sender, &*answer, &count));
            }
        });
        Receiver {
            port,
            received: Mutex::new(received),
        }
    }

    /// One that takes everything.
    pub(crate) fn that_takes_all() -> Receiver {
        Receiver::start(|_, _| Answer::Status(204))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// The next request.
    pub(crate) fn next(&self) -> Received {
        let received = self.received.lock().unwrap();
        received.recv_timeout(PATIENCE).expect("a request comes")
    }

    /// What has come meanwhile.
    pub(crate) fn rest(&self) -> Vec<Received> {
        self.received.lock().unwrap().try_iter().collect()
    }
}

fn serve(
    stream: TcpStream,
    sender: &Sender<Received>,
    answer: &dyn Fn(usize, &Received) -> Answer,
    count: &AtomicUsize,
) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        let answer = answer(count.fetch_add(1, Ordering::SeqCst), &request);
        // The test may be over.
        let _ = sender.send(request);
        let stream = reader.get_mut();
        let done = match answer {
            Answer::Status(status) => reply(stream, status, ""),
            Answer::With(status, header) => reply(stream, status, &format!("{header}\r\n")),
            Answer::Never => {
                // Ends when the other side has gone.
                let _ = reader.read(&mut [0]);
                false
            }
            Answer::Flood => {
                let _ = write!(stream, "HTTP/1.1 200 X\r\n\r\n");
                while stream.write_all(&[b'x'; 4096]).is_ok() {}
                false
            }
            Answer::Cut => false,
        };
        if !done {
            return;
        }
    }
}

/// In one piece: the kernel would wait between several.
fn reply(stream: &mut TcpStream, status: u16, more: &str) -> bool {
    let text = format!("HTTP/1.1 {status} X\r\n{more}content-length: 0\r\n\r\n");
    stream.write_all(text.as_bytes()).is_ok()
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.push((name.to_owned(), value.to_owned()));
    }
    let mut received = Received {
        path,
        headers,
        body: Vec::new(),
    };
    let length: usize = received.header("content-length")?.parse().ok()?;
    received.body.resize(length, 0);
    reader.read_exact(&mut received.body).ok()?;
    Some(received)
}
