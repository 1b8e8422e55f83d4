//! Pushes blobs over many connections, then reads each back: `load ADDR REPOSITORY CONNECTIONS COUNT BYTES SEED`.
//!
//! Prints the seconds that the pushes took. For `./bench`, whose Python would be what is measured: bodies and digests are made
//! beforehand, and a push is POST and PUT as clients of every registry send it.

#![allow(clippy::print_stdout, reason = "a program of its own")]

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use store::oci::{Digest, Hasher};

/// A blob is a head of its own and a tail that all have.
struct Blob {
    head: [u8; 16],
    digest: Digest,
}

struct Work {
    addr: SocketAddr,
    repository: String,
    tail: Vec<u8>,
    blobs: Vec<Blob>,
}

struct Answer {
    status: u16,
    location: String,
    length: usize,
}

/// One connection.
struct Connection(BufReader<TcpStream>);

fn wrong(what: String) -> io::Error {
    io::Error::other(what)
}

impl Connection {
    fn open(addr: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::with_capacity(256 * 1024, stream)))
    }

    /// Sends a request; reads its answer's head.
    fn send(&mut self, line: &str, body: &[&[u8]]) -> io::Result<Answer> {
        let length: usize = body.iter().map(|piece| piece.len()).sum();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: load\r\nContent-Length: {length}\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes())?;
        for piece in body {
            stream.write_all(piece)?;
        }
        let mut answer = Answer {
            status: 0,
            location: String::new(),
            length: 0,
        };
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line)?;
            let line = line.trim_end();
            if answer.status == 0 {
                let status = line.split(' ').nth(1).and_then(|text| text.parse().ok());
                answer.status = status.ok_or_else(|| wrong(format!("no answer: {line:?}")))?;
                continue;
            }
            let Some((name, value)) = line.split_once(':') else {
                return Ok(answer);
            };
            match name.to_ascii_lowercase().as_str() {
                "location" => value.trim().clone_into(&mut answer.location),
                "content-length" => {
                    answer.length = value.trim().parse().map_err(io::Error::other)?;
                }
                _ => {}
            }
        }
    }

    /// The same, with the answer's body thrown away.
    fn ask(&mut self, line: &str, body: &[&[u8]], expected: u16) -> io::Result<Answer> {
        let answer = self.send(line, body)?;
        let length = answer.length as u64;
        io::copy(&mut (&mut self.0).take(length), &mut io::sink())?;
        if answer.status != expected {
            return Err(wrong(format!("{line}: {}", answer.status)));
        }
        Ok(answer)
    }

    fn push(&mut self, work: &Work, blob: &Blob) -> io::Result<()> {
        let line = format!("POST /v2/{}/blobs/uploads/", work.repository);
        let location = self.ask(&line, &[], 202)?.location;
        // Of an absolute one the path.
        let path = match location.split_once("://") {
            Some((_, rest)) => &rest[rest.find('/').unwrap_or(0)..],
            None => &location,
        };
        let join = if path.contains('?') { '&' } else { '?' };
        let line = format!("PUT {path}{join}digest={}", blob.digest);
        self.ask(&line, &[&blob.head, &work.tail], 201)?;
        Ok(())
    }

    fn read_back(&mut self, work: &Work, blob: &Blob) -> io::Result<()> {
        let line = format!("GET /v2/{}/blobs/{}", work.repository, blob.digest);
        let answer = self.send(&line, &[])?;
        let mut hasher = Hasher::sha256();
        let mut missing = answer.length;
        while missing > 0 {
            let bytes = self.0.fill_buf()?;
            let count = bytes.len().min(missing);
            if count == 0 {
                return Err(wrong(format!("{line}: cut")));
            }
            hasher.update(&bytes[..count]);
            self.0.consume(count);
            missing -= count;
        }
        if answer.status != 200 || hasher.finish() != blob.digest {
            return Err(wrong(format!("{line}: {} with other bytes", answer.status)));
        }
        Ok(())
    }
}

/// Does one thing to every blob, over so many connections; the seconds that it took.
fn all(
    work: &Work,
    connections: usize,
    step: fn(&mut Connection, &Work, &Blob) -> io::Result<()>,
) -> io::Result<f64> {
    let next = AtomicUsize::new(0);
    let ready = Barrier::new(connections + 1);
    std::thread::scope(|scope| {
        let worker = || {
            let opened = Connection::open(work.addr);
            ready.wait();
            let mut connection = opened?;
            while let Some(blob) = work.blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                step(&mut connection, work, blob)?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..connections).map(|_| scope.spawn(worker)).collect();
        ready.wait();
        let began = Instant::now();
        for worker in workers {
            let done: io::Result<()> = worker
                .join()
                .map_err(|_| wrong("a worker failed".to_owned()))?;
            done?;
        }
        Ok(began.elapsed().as_secs_f64())
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [addr, repository, connections, count, bytes, seed] = args.as_slice() else {
        return Err("usage: load ADDR REPOSITORY CONNECTIONS COUNT BYTES SEED".into());
    };
    let (connections, count, bytes): (usize, u64, usize) =
        (connections.parse()?, count.parse()?, bytes.parse()?);
    let seed: u64 = seed.parse()?;
    // Bytes that do not compress.
    let mut state = seed | 1;
    let tail: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(bytes.saturating_sub(16))
    .collect();
    let blob = |number: u64| {
        let mut head = [0; 16];
        head[..8].copy_from_slice(&seed.to_le_bytes());
        head[8..].copy_from_slice(&number.to_le_bytes());
        let mut hasher = Hasher::sha256();
        hasher.update(&head);
        hasher.update(&tail);
        Blob {
            head,
            digest: hasher.finish(),
        }
    };
    let blobs = (0..count).map(blob).collect();
    let work = Work {
        addr: addr.parse()?,
        repository: repository.clone(),
        tail,
        blobs,
    };
    let seconds = all(&work, connections, Connection::push)?;
    all(&work, connections.min(4), Connection::read_back)?;
    println!("{seconds}");
    Ok(())
}
