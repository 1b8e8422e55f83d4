//! Pulls that are killed with several ranges of a blob under way: what came is not asked for again, wherever in the blob it is.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{Place, Server};

/// Bytes of a segment that a pull reads.
const SEGMENT: u64 = 4 << 20;

/// A range that was asked for: of which blob, and from where to where.
type Asked = (String, Range<u64>);

/// A proxy in front of a registry that knows what is asked for, and carries only so much of the answers.
struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Bytes of answers that may still go through.
    left: Arc<AtomicUsize>,
    /// The same of the answer that begins with a blob's first byte, if it is a range.
    first_left: Arc<AtomicUsize>,
}

impl Proxy {
    fn start(host: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap().to_string(),
            asked: Arc::default(),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            first_left: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        let host = host.to_owned();
        let (asked, left) = (Arc::clone(&proxy.asked), Arc::clone(&proxy.left));
        let first_left = Arc::clone(&proxy.first_left);
        std::thread::spawn(move || {
            // It ends with the test process.
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&host).unwrap());
                let limit = Arc::new(Mutex::new(Arc::clone(&left)));
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (asked, first_left) = (Arc::clone(&asked), Arc::clone(&first_left));
                let of_answer = Arc::clone(&limit);
                std::thread::spawn(move || {
                    requests(from, to, &asked, |asks_for_start| {
                        if asks_for_start {
                            *of_answer.lock().unwrap() = Arc::clone(&first_left);
                        }
                    });
                });
                std::thread::spawn(move || answers(server, client, &limit));
            }
        });
        proxy
    }

    /// Lets so many bytes through from now on, and all that is asked for from now on is noted anew.
    fn let_through(&self, bytes: usize) {
        self.left.store(bytes, Ordering::SeqCst);
        self.asked.lock().unwrap().clear();
    }

    fn is_exhausted(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
}

/// Carries requests without bodies, and notes which blobs they are about; `told` is called with whether a range from a blob's
/// first byte on is asked for.
fn requests(
    mut from: TcpStream,
    mut to: TcpStream,
    asked: &Mutex<Vec<Asked>>,
    told: impl Fn(bool),
) {
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = from.read(&mut buffer).unwrap_or(0);
        if length == 0 {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        head.extend_from_slice(&buffer[..length]);
        while let Some(end) = head.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let bytes: Vec<u8> = head.drain(..end + 4).collect();
            let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
            if let Some((blob, range)) = blob_of(&text) {
                told(range.start == 0 && range.end < u64::MAX);
                asked.lock().unwrap().push((blob, range));
            }
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
    }
}

/// Which blob a request wants, and what of it.
fn blob_of(head: &str) -> Option<Asked> {
    let path = head.strip_prefix("get ")?.split(' ').next()?;
    let (_, hex) = path.split_once("/blobs/sha256:")?;
    let range = head
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="));
    let (first, last) = range
        .and_then(|range| range.split_once('-'))
        .unwrap_or(("0", ""));
    let end = last.parse().map_or(u64::MAX, |last: u64| last + 1);
    Some((hex.to_owned(), first.parse().unwrap()..end))
}

/// Carries answers as long as they may go through; what may not is read and goes nowhere.
fn answers(mut from: TcpStream, mut to: TcpStream, limit: &Mutex<Arc<AtomicUsize>>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer).unwrap_or(0);
        if length == 0 {
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
        let left = Arc::clone(&limit.lock().unwrap());
        let take = |left: usize| match left {
            usize::MAX => Some(left),
            left => Some(left.saturating_sub(length)),
        };
        let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        let carried = before.unwrap().min(length);
        if to.write_all(&buffer[..carried]).is_err() {
            return;
        }
        if carried < length {
            // The client waits for the rest, until it is killed.
            let _ = std::io::copy(&mut from, &mut std::io::sink());
            return;
        }
    }
}

/// What is kept of blobs that did not come whole: of which, and from where to where.
fn kept(place: &Place) -> Vec<Asked> {
    let files = std::fs::read_dir(place.store().join("tmp"))
        .into_iter()
        .flatten();
    let parts = files.filter_map(|file| {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let (hex, start) = match name.strip_prefix("part-sha256-")?.split_once('-') {
            Some((hex, start)) => (hex.to_owned(), start.parse().unwrap()),
            None => (name.strip_prefix("part-sha256-")?.to_owned(), 0),
        };
        // It may be gone by now.
        let length = file.metadata().ok()?.len();
        Some((hex, start..start + length))
    });
    parts.filter(|(_, part)| !part.is_empty()).collect()
}

fn pull(place: &Place, name: &str) -> Child {
    let mut command = place.command(["pull", name]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Kills a pull once `is_time`, unless it ends before; what is kept then.
fn killed(place: &Place, name: &str, is_time: impl Fn() -> bool) -> Vec<Asked> {
    let mut pull = pull(place, name);
    while !is_time() && pull.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    pull.kill().unwrap();
    pull.wait().unwrap();
    kept(place)
}

/// Nothing that was kept may have been asked for again.
fn check_apart(asked: &[Asked], kept: &[Asked]) {
    for (blob, range) in asked {
        for (_, part) in kept.iter().filter(|(of, _)| of == blob) {
            let both = range.start.max(part.start)..range.end.min(part.end);
            assert!(
                both.is_empty(),
                "{both:?} of {blob} again: {range:?} is asked for, {part:?} is here"
            );
        }
    }
}

fn nothing_is_left(place: &Place) {
    place.wait_until_unused();
    assert_eq!(kept(place), []);
    place.run(["store", "check"]).ok();
}

/// Bytes that hardly compress, different for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn what_was_read_ahead_is_not_read_again() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let pushed = format!("{}/big", registry.host);
    let context = place.context("ctx", &[("Dockerfile", "FROM scratch\nCOPY f /f\n")]);
    std::fs::write(context.join("f"), noise(1, 7 * (4 << 20))).unwrap();
    place.build(&pushed, &context);
    let id = place.run(["images", "-q", "--no-trunc", &pushed]).ok();
    place.run(["push", &pushed]).ok();

    let proxy = Proxy::start(&registry.host);
    let name = format!("{}/big", proxy.address);
    let other = Place::new();
    // Of the first segment only half comes: three come ahead of the rest of it, and no others are begun.
    proxy.first_left.store(2 << 20, Ordering::SeqCst);
    let came = 3 * SEGMENT + (2 << 20);
    let all = |kept: &[Asked]| {
        kept.iter()
            .map(|(_, part)| part.end - part.start)
            .sum::<u64>()
    };
    // The head of an answer is no part of the blob, and a piece of it may not have been written yet.
    let kept = killed(&other, &name, || {
        all(&self::kept(&other)) + 512 * 1024 >= came
    });
    assert!(all(&kept) + 512 * 1024 >= came, "{kept:?}");
    assert_eq!(kept.len(), 4, "{kept:?}");

    proxy.first_left.store(usize::MAX, Ordering::SeqCst);
    proxy.let_through(usize::MAX);
    assert_eq!(other.run(["pull", &name]).ok(), id);
    let asked = proxy.asked.lock().unwrap().clone();
    let blob = &kept[0].0;
    assert!(asked.iter().any(|(of, _)| of == blob), "{asked:?}");
    check_apart(&asked, &kept);
    nothing_is_left(&other);
}

const FILES: u64 = 60;

/// Two versions of an image in a registry, whose layer has many files, of which every other changed.
fn two_versions(place: &Place, host: &str, compression: &str) -> Vec<String> {
    let build = |version: u64| {
        let context = place.context(
            &version.to_string(),
            &[
                ("Dockerfile", "FROM scratch\nCOPY data /data\n"),
                ("data/x", "x"),
            ],
        );
        for file in 0..FILES {
            let seed = file + version * 1000 * (file % 2);
            std::fs::write(context.join(format!("data/{file}")), noise(seed, 100_000)).unwrap();
        }
        let name = format!("{host}/app:{version}");
        place.build(&name, &context);
        place
            .run(["push", "--compression", compression, &name])
            .ok();
        place.run(["images", "-q", "--no-trunc", &name]).ok()
    };
    [1, 2].map(build).into()
}

#[test]
fn no_byte_of_a_patched_pull_is_asked_for_twice() {
    for compression in ["zstd:chunked", "estargz"] {
        let place = Place::new();
        let registry = Server::registry(&place.path("registry"));
        two_versions(&place, &registry.host, compression);
        let (other, proxy) = (Place::new(), Proxy::start(&registry.host));
        for version in [1, 2] {
            proxy.let_through(usize::MAX);
            let name = format!("{}/app:{version}", proxy.address);
            other.run(["pull", &name]).ok();
        }
        let asked = proxy.asked.lock().unwrap().clone();
        // The table is among them, which was looked at before.
        let ranges = asked.iter().filter(|(_, range)| range.end < u64::MAX);
        assert!(ranges.count() > 10, "{asked:?}");
        for (index, one) in asked.iter().enumerate() {
            check_apart(&asked[index + 1..], std::slice::from_ref(one));
        }
        nothing_is_left(&other);
    }
}

#[test]
fn a_patched_pull_that_is_killed_at_any_time_is_gone_on_with() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let ids = two_versions(&place, &registry.host, "zstd:chunked");
    let other = Place::new();
    let proxy = Proxy::start(&registry.host);
    let name = |version: u32| format!("{}/app:{version}", proxy.address);
    assert_eq!(other.run(["pull", &name(1)]).ok(), ids[0]);

    let mut before = Vec::new();
    let mut state = 7_u64;
    let mut rounds = 0;
    for round in 0..8 {
        // About 3 MB have to come.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let bytes = usize::try_from(state >> 33).unwrap() % 1_000_000;
        proxy.let_through(bytes);
        let kept = killed(&other, &name(2), || proxy.is_exhausted());
        check_apart(&proxy.asked.lock().unwrap(), &before);
        other.run(["store", "check"]).ok();
        rounds += usize::from(!kept.is_empty());
        println!(
            "round {round}: {bytes} bytes, {} parts are kept",
            kept.len()
        );
        before = kept;
    }
    assert!(rounds > 0, "it was never killed while it read");
    proxy.let_through(usize::MAX);
    assert_eq!(other.run(["pull", &name(2)]).ok(), ids[1]);
    check_apart(&proxy.asked.lock().unwrap(), &before);
    nothing_is_left(&other);
    let there = place.path("there");
    let here = other.path("here");
    for (place, id, to) in [(&place, &ids[1], &there), (&other, &ids[1], &here)] {
        place
            .run(["save", "--format", "docker", "-o", to.to_str().unwrap(), id])
            .ok();
    }
    assert!(std::fs::read(there).unwrap() == std::fs::read(here).unwrap());
}
