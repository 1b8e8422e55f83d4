//! A server that speaks HTTP by hand, so that it can speak it wrongly.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use store::oci::Reference;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    /// As much of the body as came.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// `METHOD target`
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What a handler does with its connection afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// Takes the next request on it.
    Keep,
    /// Closes it.
    Cut,
    /// Says nothing more until the client has gone.
    Stall,
}

/// Where a handler answers.
pub(crate) struct Line<'a> {
    stream: &'a TcpStream,
}

impl Line<'_> {
    /// Bytes as they are; `false` once the client has gone.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// A whole answer.
    pub(crate) fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Then {
        self.head(status, headers, body.len());
        self.raw(body);
        Then::Keep
    }

    /// The head of an answer that announces `length` bytes.
    pub(crate) fn head(&mut self, status: u16, headers: &[(&str, &str)], length: usize) {
        let mut head = format!("HTTP/1.1 {status} X\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {length}\r\n\r\n");
        self.raw(head.as_bytes());
    }
}

type Handler = dyn Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync;

/// The server; stops when dropped.
pub(crate) struct Wire {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// A server that answers `GET /v2/` by itself and all else by its handler.
    pub(crate) fn start(
        handler: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
    ) -> Wire {
        Wire::bare(move |seen, line| match seen.line().as_str() {
            "GET /v2/" => line.answer(200, &[], b"{}"),
            _ => handler(seen, line),
        })
    }

    /// The same, with the handler answering everything.
    pub(crate) fn bare(
        handler: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
    ) -> Wire {
        Wire::at("127.0.0.1:0", handler)
    }

    /// The same, at an address of its own.
    pub(crate) fn at(
        address: &str,
        handler: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
    ) -> Wire {
        let listener = TcpListener::bind(address).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (seen, stopped) = (
            Arc::<Mutex<Vec<Seen>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (log, stop) = (Arc::clone(&seen), Arc::clone(&stopped));
        let handler: Arc<Handler> = Arc::new(handler);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, log, handler) =
                    (stream.unwrap(), Arc::clone(&log), Arc::clone(&handler));
                std::thread::spawn(move || serve(&stream, &log, handler.as_ref()));
            }
        });
        Wire {
            host,
            seen,
            stopped,
            thread: Some(thread),
        }
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    /// The requests so far, without looks at `/v2/`.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let mut seen = self.seen.lock().unwrap().clone();
        seen.retain(|seen| seen.line() != "GET /v2/");
        seen
    }

    /// Their methods and targets.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(&self.host);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(stream: &TcpStream, log: &Mutex<Vec<Seen>>, handler: &Handler) {
    let mut reader = BufReader::new(stream);
    while let Some(seen) = request(&mut reader) {
        let mut line = Line { stream };
        log.lock().unwrap().push(seen.clone());
        match handler(&seen, &mut line) {
            Then::Keep => {}
            Then::Cut => break,
            Then::Stall => {
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                break;
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn request(reader: &mut BufReader<&TcpStream>) -> Option<Seen> {
    let mut text = String::new();
    reader
        .read_line(&mut text)
        .ok()
        .filter(|length| *length > 0)?;
    let mut words = text.split_ascii_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut text = String::new();
        reader
            .read_line(&mut text)
            .ok()
            .filter(|length| *length > 0)?;
        let Some((name, value)) = text.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |text| text.parse().unwrap());
    let mut body = Vec::new();
    let _ = reader.take(length).read_to_end(&mut body);
    Some(Seen {
        method,
        target,
        headers,
        body,
    })
}
