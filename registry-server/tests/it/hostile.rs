//! Requests cut at every byte, lengths that lie, paths that point elsewhere, and peers that are slow on purpose.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use registry_server::{Config, RunningServer};
use store::oci::{Digest, MediaType};

use crate::client::{Client, noise};
use crate::protocol::{numbered, on_all, push_empty_image};

const OCI: &str = MediaType::OCI_MANIFEST;

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
}

/// The request that a push is cut in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All of the blob at once.
    Post,
    /// All of it at the end of a session.
    Put,
    /// The end of it, after a first piece.
    LastPut,
    /// A piece of a session, which goes on afterwards.
    Patch,
    /// A piece that says where it belongs.
    PatchRange,
    ManifestByTag,
    ManifestByDigest,
}

const FIRST: usize = 7;

/// The server hangs up once it has answered.
const LAST: (&str, &str) = ("Connection", "close");

/// One push up to the request that is to be cut.
struct Push {
    bytes: Vec<u8>,
    /// Of `bytes`, what the session has before.
    before: usize,
    session: Option<String>,
    /// Where the content is once it is there.
    place: String,
    head: String,
    body: Vec<u8>,
}

fn begin(client: &mut Client, way: Way, framing: Framing, content: &str) -> Push {
    let bytes = match way {
        Way::ManifestByTag | Way::ManifestByDigest => {
            let config = client.push_blob("a", b"{}");
            let hash = content.bytes().map(usize::from);
            let hash = hash.fold(0, |sum, byte| (sum * 31 + byte) % 1_000_000);
            // All of them of one length.
            let number = 1_000_000 + hash;
            numbered(&config, number)
        }
        _ => content.as_bytes().to_vec(),
    };
    let digest = Digest::of(&bytes);
    let mut open = || {
        let reply = client.post("/v2/a/blobs/uploads/").expect(202);
        reply.location()
    };
    let (method, target, session) = match way {
        Way::Post => (
            "POST",
            format!("/v2/a/blobs/uploads/?digest={digest}"),
            None,
        ),
        Way::Put | Way::LastPut => {
            let session = open();
            ("PUT", format!("{session}?digest={digest}"), Some(session))
        }
        Way::Patch | Way::PatchRange => {
            let session = open();
            ("PATCH", session.clone(), Some(session))
        }
        Way::ManifestByTag => ("PUT", "/v2/a/manifests/cut".to_owned(), None),
        Way::ManifestByDigest => ("PUT", format!("/v2/a/manifests/{digest}"), None),
    };
    let before = if way == Way::LastPut { FIRST } else { 0 };
    if before > 0 {
        let session = session.as_deref().unwrap();
        client
            .send("PATCH", session, &[], &bytes[..before])
            .expect(202);
    }
    let rest = &bytes[before..];
    let length = rest.len().to_string();
    let range = format!("0-{}", bytes.len() - 1);
    let framed = match framing {
        Framing::Length => ("Content-Length", length.as_str()),
        Framing::Chunks => ("Transfer-Encoding", "chunked"),
    };
    let mut headers = vec![LAST, framed];
    match way {
        Way::PatchRange => headers.push(("Content-Range", &range)),
        Way::ManifestByTag | Way::ManifestByDigest => headers.push(("Content-Type", OCI)),
        _ => {}
    }
    let head = client.head(method, &target, &headers);
    let body = match framing {
        Framing::Length => rest.to_vec(),
        Framing::Chunks => {
            let pieces = rest.chunks(9).flat_map(|piece| {
                let head = format!("{:x}\r\n", piece.len()).into_bytes();
                [head, piece.to_vec(), b"\r\n".to_vec()].concat()
            });
            pieces.chain(*b"0\r\n\r\n").collect()
        }
    };
    let place = match way {
        Way::ManifestByTag | Way::ManifestByDigest => format!("/v2/a/manifests/{digest}"),
        _ => format!("/v2/a/blobs/{digest}"),
    };
    Push {
        bytes,
        before,
        session,
        place,
        head,
        body,
    }
}

/// Sends so much of the request, then nothing any more; the status of the answer, if there is one.
fn cut(server: &RunningServer, push: &Push, sent: &[u8]) -> Option<u16> {
    let mut doomed = Client::new(server.addr);
    doomed.raw(push.head.as_bytes());
    doomed.raw(sent);
    // Who says that nothing more comes before the request is whole has given it up.
    if sent.len() < push.body.len() {
        doomed.finish_writing();
    }
    status_of(&doomed.until_closed())
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split(' ').nth(1)?.parse().ok()
}

/// Every way to push, cut at every byte of its body: nothing appears that did not arrive whole, a session says what it has,
/// and goes on from there.
#[test]
fn bodies_are_cut_at_every_byte() {
    let ways = [
        Way::Post,
        Way::Put,
        Way::LastPut,
        Way::Patch,
        Way::PatchRange,
        Way::ManifestByTag,
        Way::ManifestByDigest,
    ];
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for (number, way) in ways.into_iter().enumerate() {
            for framing in [Framing::Length, Framing::Chunks] {
                let is_manifest = matches!(way, Way::ManifestByTag | Way::ManifestByDigest);
                // A manifest is some hundred bytes long: every seventh cut, and the last ones.
                let step = if is_manifest { 7 } else { 1 };
                let length = begin(
                    &mut client,
                    way,
                    framing,
                    &format!("{number} {framing:?} ?? 0123456"),
                )
                .body
                .len();
                let cuts = (0..length).filter(|at| at % step == 0 || at + 8 > length);
                for at in cuts {
                    let what = format!("{way:?} {framing:?} cut at {at} of {length}");
                    let push = begin(
                        &mut client,
                        way,
                        framing,
                        &format!("{number} {framing:?} {at:02} 0123456"),
                    );
                    assert_eq!(push.body.len(), length, "{what}");
                    let status = cut(server, &push, &push.body[..at]);
                    assert!(
                        status.is_none_or(|status| status >= 400),
                        "{what}: {status:?}"
                    );
                    assert_eq!(client.head_of(&push.place).status, 404, "{what}");
                    if let Some(session) = &push.session {
                        goes_on(&mut client, &push, session, framing, at, &what);
                    }
                }
                let push = begin(
                    &mut client,
                    way,
                    framing,
                    &format!("{number} {framing:?} !! 0123456"),
                );
                let status = cut(server, &push, &push.body);
                let expected = if matches!(way, Way::Patch | Way::PatchRange) {
                    202
                } else {
                    201
                };
                assert_eq!(status, Some(expected), "{way:?} {framing:?}");
            }
        }
        let tag = client.get("/v2/a/manifests/cut").expect(200);
        assert!(String::from_utf8(tag.body).unwrap().ends_with("}}"));
    });
}

/// What arrived of a session is told, and the rest makes it a blob.
fn goes_on(
    client: &mut Client,
    push: &Push,
    session: &str,
    framing: Framing,
    at: usize,
    what: &str,
) {
    let told = client.get(session).expect(204);
    let last: usize = told
        .header("range")
        .unwrap()
        .strip_prefix("0-")
        .unwrap()
        .parse()
        .unwrap();
    // `0-0` is of none and of one.
    let has = match (last, framing) {
        (0, Framing::Length) => push.before + at,
        (0, Framing::Chunks) => usize::from(at > 3) + push.before,
        _ => last + 1,
    };
    let most = push.before + at;
    assert!(has <= most, "{what}: {has} bytes");
    if framing == Framing::Length {
        assert_eq!(has, most, "{what}");
    }
    let rest = &push.bytes[has..];
    let range = format!("{has}-{}", push.bytes.len() - 1);
    let target = format!("{session}?digest={}", Digest::of(&push.bytes));
    let headers = [("Content-Range", range.as_str())];
    let headers = if rest.is_empty() {
        &[][..]
    } else {
        &headers[..]
    };
    client.send("PUT", &target, headers, rest).expect(201);
    assert_eq!(
        client.get(&push.place).expect(200).body,
        push.bytes,
        "{what}"
    );
}

/// A request cut in its head is none.
#[test]
fn heads_are_cut_at_every_byte() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let push = begin(&mut client, Way::Post, Framing::Length, "0123456");
        for at in 0..push.head.len() {
            let mut doomed = Client::new(server.addr);
            doomed.raw(&push.head.as_bytes()[..at]);
            doomed.finish_writing();
            let answer = doomed.until_closed();
            assert!(
                answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"),
                "{at}"
            );
        }
        client.get(&push.place).refused(404, "BLOB_UNKNOWN");
    });
}

/// Framings that say two things, or none: what is stored is never something else than what was named.
#[test]
fn lengths_that_lie() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let check =
            |client: &mut Client, headers: &[(&str, &str)], body: &[u8], stored: Option<&[u8]>| {
                let digest = Digest::of(stored.unwrap_or(b"0123456789"));
                let target = format!("/v2/a/blobs/uploads/?digest={digest}");
                let head = client.head("POST", &target, &[headers, &[LAST]].concat());
                let mut liar = Client::new(server.addr);
                liar.raw(&[head.as_bytes(), body].concat());
                if stored.is_none() {
                    liar.finish_writing();
                }
                let answer = liar.until_closed();
                let first = status_of(&answer);
                let shown = format!("{headers:?} {:?}", String::from_utf8_lossy(&answer));
                match stored {
                    Some(_) => assert_eq!(first, Some(201), "{shown}"),
                    None => assert!(
                        first.is_none_or(|status| (400..500).contains(&status)),
                        "{shown}"
                    ),
                }
                let status = client.head_of(&format!("/v2/a/blobs/{digest}")).status;
                assert_eq!(status, if stored.is_some() { 200 } else { 404 }, "{shown}");
                if stored.is_some() {
                    client.delete(&format!("/v2/a/blobs/{digest}")).expect(202);
                }
            };
        let chunked = ("Transfer-Encoding", "chunked");
        let c = &mut client;
        check(
            c,
            &[("Content-Length", "9")],
            b"012345678",
            Some(b"012345678"),
        );
        check(
            c,
            &[("Content-Length", "9")],
            b"0123456789",
            Some(b"012345678"),
        );
        check(c, &[("Content-Length", "11")], b"0123456789", None);
        check(c, &[("Content-Length", "0")], b"0123456789", None);
        check(c, &[("Content-Length", "")], b"0123456789", None);
        check(c, &[("Content-Length", "+10")], b"0123456789", None);
        check(c, &[("Content-Length", "0x0a")], b"0123456789", None);
        check(c, &[("Content-Length", "10, 11")], b"0123456789", None);
        check(
            c,
            &[("Content-Length", "10"), ("Content-Length", "11")],
            b"0123456789",
            None,
        );
        check(
            c,
            &[("Content-Length", "18446744073709551626")],
            b"0123456789",
            None,
        );
        check(c, &[], b"0123456789", None);
        check(
            c,
            &[chunked],
            b"a\r\n0123456789\r\n0\r\n\r\n",
            Some(b"0123456789"),
        );
        check(
            c,
            &[chunked],
            b"a;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
            Some(b"0123456789"),
        );
        check(c, &[chunked], b"b\r\n0123456789\r\n0\r\n\r\n", None);
        check(c, &[chunked], b"9\r\n0123456789\r\n0\r\n\r\n", None);
        check(c, &[chunked], b"-a\r\n0123456789\r\n0\r\n\r\n", None);
        check(
            c,
            &[chunked],
            b"1000000000000000a\r\n0123456789\r\n0\r\n\r\n",
            None,
        );
        check(c, &[chunked], b"\r\n0123456789\r\n0\r\n\r\n", None);
        check(c, &[chunked], b"0123456789", None);
        check(c, &[("Transfer-Encoding", "gzip")], b"0123456789", None);
        check(
            c,
            &[("Transfer-Encoding", "chunked, identity")],
            b"a\r\n0123456789\r\n0\r\n\r\n",
            None,
        );
        let endless = [
            b"a;".as_slice(),
            &b"x".repeat(1 << 20),
            b"\r\n0123456789\r\n0\r\n\r\n",
        ]
        .concat();
        check(c, &[chunked], &endless, None);
    });
}

/// Both framings at once: the chunks are what counts, wherever the other points, and the connection is not used again.
#[test]
fn two_framings_smuggle_nothing() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let digest = Digest::of(b"01234");
        let target = format!("/v2/a/blobs/uploads/?digest={digest}");
        for length in ["3", "5", "15", "200"] {
            let both = [("Content-Length", length), ("Transfer-Encoding", "chunked")];
            let head = client.head("POST", &target, &[&both[..], &[LAST]].concat());
            let mut liar = Client::new(server.addr);
            liar.raw(format!("{head}5\r\n01234\r\n0\r\n\r\n").as_bytes());
            let answer = String::from_utf8_lossy(&liar.until_closed()).into_owned();
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
            match answer.split(' ').nth(1) {
                Some("201") => client.delete(&format!("/v2/a/blobs/{digest}")).expect(202),
                Some("400") => client.get(&format!("/v2/a/blobs/{digest}")).expect(404),
                _ => panic!("{answer}"),
            };
        }
    });
}

/// Everything below a folder, by path.
fn tree(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.insert(path.display().to_string());
        if path.is_dir() {
            tree(&path, found);
        }
    }
}

/// Names that mean another place to whoever decodes, joins or normalises carelessly.
const TRICKS: &[&str] = &[
    "..",
    ".",
    "../a",
    "a/..",
    "a/../..",
    "a/../b",
    "a/./b",
    "/a",
    "//a",
    "a//b",
    "a/",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "%2e%2e",
    "%2e%2e/%2e%2e/etc",
    "%2E.",
    "..%2f..%2fetc",
    "a%2fb",
    "a%2F..%2Fb",
    "%2fetc%2fpasswd",
    "%252e%252e%252f",
    "a%00",
    "a%00/b",
    "%00",
    "%c0%ae%c0%ae",
    "%c0%ae%c0%ae%c0%af",
    "%e0%80%ae%e0%80%ae",
    "%f0%80%80%ae",
    "%c0%80",
    "%ef%bc%8f",
    "%ef%bc%8e%ef%bc%8e",
    "%ed%a0%80",
    "%ff",
    "%u002e%u002e",
    "..%5c..%5cetc",
    "a%5cb",
    "a\\..\\b",
    "a%0a",
    "a%0d%0aX:%20y",
    "a%20b",
    "a%7fb",
    "A",
    "%41",
    "%c3%a9",
    "a_/b",
    "-a",
    "a-",
    "a..b",
    "a___b",
    "_layers",
    "a/_uploads",
    "a/_manifests/tags",
    "a;b",
    "a:b",
    "a@b",
    "~root",
    "$HOME",
    "a*",
];

#[test]
fn names_that_point_elsewhere_reach_nothing() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("inner/root");
    let server = RunningServer::start(&root).unwrap();
    let mut client = Client::new(server.addr);
    let manifest = {
        push_empty_image(&mut client, "a/b", "t");
        client.get("/v2/a/b/manifests/t").expect(200).body
    };
    let digest = Digest::of(&manifest);
    let mut before = BTreeSet::new();
    tree(outer.path(), &mut before);
    let hex = digest.hex();
    let length = manifest.len().to_string();
    let long = "a/".repeat(127) + "aa";
    let status = |method: &str, target: &str| {
        let mut client = Client::new(server.addr);
        let sends = matches!(method, "PUT" | "POST" | "PATCH");
        let all = [
            LAST,
            ("Content-Type", OCI),
            ("Content-Length", length.as_str()),
        ];
        let head = client.head(method, target, if sends { &all } else { &all[..1] });
        let body = if sends { &manifest[..] } else { b"" };
        client.raw(&[head.as_bytes(), body].concat());
        let answer = client.until_closed();
        let status = status_of(&answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = status.unwrap_or_else(|| panic!("{method} {target}: {answer}"));
        // No answer has a header that a name brought along.
        assert!(!answer.contains("\r\nX: y"), "{method} {target}: {answer}");
        status
    };
    for trick in TRICKS.iter().copied().chain([long.as_str()]) {
        for (method, target) in [
            (
                "POST",
                format!("/v2/{trick}/blobs/uploads/?digest={digest}"),
            ),
            ("PUT", format!("/v2/{trick}/manifests/new")),
            ("PUT", format!("/v2/{trick}/manifests/{digest}?tag=new")),
            ("GET", format!("/v2/{trick}/manifests/t")),
            ("GET", format!("/v2/{trick}/blobs/{digest}")),
            ("GET", format!("/v2/{trick}/tags/list")),
            ("GET", format!("/v2/{trick}/referrers/{digest}")),
            ("DELETE", format!("/v2/{trick}/manifests/t")),
            ("DELETE", format!("/v2/{trick}/blobs/{digest}")),
            ("PATCH", format!("/v2/{trick}/blobs/uploads/0f-0f")),
        ] {
            let status = status(method, &target);
            assert!(
                matches!(status, 400 | 404 | 405),
                "{method} {target}: {status}"
            );
        }
        // In the places of a tag, a digest and a session. `A` is a tag, and so is what `%41` stands for.
        if !matches!(
            trick,
            "A" | "%41" | "a-" | "a..b" | "a___b" | "_layers" | "a/b"
        ) {
            for (method, target) in [
                ("PUT", format!("/v2/a/b/manifests/{trick}")),
                (
                    "PUT",
                    format!(
                        "/v2/a/b/manifests/{digest}?tag={}",
                        trick.replace('/', "%2f")
                    ),
                ),
                ("GET", format!("/v2/a/b/manifests/{trick}")),
                ("DELETE", format!("/v2/a/b/manifests/{trick}")),
            ] {
                let status = status(method, &target);
                assert!(
                    matches!(status, 400 | 404 | 405),
                    "{method} {target}: {status}"
                );
            }
        }
        for (method, target) in [
            ("GET", format!("/v2/a/b/blobs/{trick}")),
            ("GET", format!("/v2/a/b/blobs/sha256:{trick}")),
            ("GET", format!("/v2/a/b/blobs/{trick}:{hex}")),
            ("GET", format!("/v2/a/b/blobs/sha256:{hex}{trick}")),
            ("DELETE", format!("/v2/a/b/blobs/{trick}")),
            ("POST", format!("/v2/a/b/blobs/uploads/?digest={trick}")),
            ("PATCH", format!("/v2/a/b/blobs/uploads/{trick}")),
            (
                "PUT",
                format!("/v2/a/b/blobs/uploads/{trick}?digest={digest}"),
            ),
            ("DELETE", format!("/v2/a/b/blobs/uploads/{trick}")),
            ("GET", format!("/v2/a/b/blobs/uploads/{trick}")),
        ] {
            let status = status(method, &target);
            assert!(
                matches!(status, 400 | 404 | 405),
                "{method} {target}: {status}"
            );
        }
        // A source that cannot be is one that has nothing: the client uploads.
        let mount = format!(
            "/v2/a/b/blobs/uploads/?mount={digest}&from={}",
            trick.replace('/', "%2f")
        );
        let mut other = Client::new(server.addr);
        let session = other.post(&mount).expect(202).location();
        other.delete(&session).expect(204);
        // Lists begin behind whatever is said, and show nothing but names.
        let last = trick.replace('/', "%2f");
        for list in [
            format!("/v2/_catalog?last={last}"),
            format!("/v2/a/b/tags/list?last={last}"),
        ] {
            let told = other.get(&list).expect(200).json();
            let names = told["repositories"]
                .as_array()
                .or(told["tags"].as_array())
                .unwrap();
            assert!(
                names.iter().all(|name| name == "a/b" || name == "t"),
                "{list}: {told}"
            );
        }
    }
    let mut after = BTreeSet::new();
    tree(outer.path(), &mut after);
    // Where uploads were, there is an empty folder.
    after.retain(|path| !path.ends_with("_uploads"));
    before.retain(|path| !path.ends_with("_uploads"));
    assert_eq!(after, before);
    client.get("/v2/a/b/manifests/t").expect(200);
}

/// A server that wants a gigabyte in each second, which nobody has to give.
fn impatient(root: &Path) -> RunningServer {
    let mut config = Config::new(root);
    config.durable = false;
    config.limits.body_timeout = Duration::from_secs(1);
    config.limits.body_rate_min = 1_000_000_000;
    RunningServer::start_with(config).unwrap()
}

#[test]
fn who_sends_a_byte_now_and_then_is_let_go() {
    let root = tempfile::tempdir().unwrap();
    let server = impatient(root.path());
    let mut client = Client::new(server.addr);
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    let mut slow = Client::new(server.addr);
    let head = slow.head("PATCH", &session, &[("Content-Length", "1000000")]);
    slow.raw(head.as_bytes());
    let mut sent = 0;
    // Never silent for as long as a silent client would have.
    while !slow.is_answered(Duration::from_millis(20)) {
        slow.raw(b"x");
        sent += 1;
        client.get("/v2/").expect(200);
    }
    slow.read("PATCH").refused(408, "BLOB_UPLOAD_INVALID");
    // What came is kept, for when the client has a better day.
    let told = client.get(&session).expect(204);
    let last: usize = told.header("range").unwrap()[2..].parse().unwrap();
    assert!(0 < last && last < sent, "{last} of {sent}");
}

#[test]
fn who_reads_a_little_now_and_then_is_let_go() {
    const SIZE: usize = 32_000_000;
    let root = tempfile::tempdir().unwrap();
    let patient = RunningServer::start(root.path()).unwrap();
    let digest = Client::new(patient.addr).push_blob("a", &noise(SIZE, 5));
    let server = impatient(root.path());
    let mut slow = Client::new(server.addr);
    let head = slow.head("GET", &format!("/v2/a/blobs/{digest}"), &[]);
    slow.raw(head.as_bytes());
    slow.read_head();
    let mut taken = 0;
    let mut piece = vec![0; 16 * 1024];
    let mut stream = slow.into_stream();
    let mut client = Client::new(server.addr);
    // Until the server has hung up; it reads on as slowly what is on its way.
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        taken += count;
        client.get("/v2/").expect(200);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(taken < SIZE, "all of it was sent");
}

/// Frames of HTTP/2 by hand: a client with a window of one byte that asks for a blob and is content with that.
#[test]
fn streams_that_stand_still_end_their_connection() {
    let root = tempfile::tempdir().unwrap();
    let patient = RunningServer::start(root.path()).unwrap();
    let digest = Client::new(patient.addr).push_blob("a", &noise(1_000_000, 6));
    let server = impatient(root.path());
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [
            &[0, length[0], length[1], kind, flags, 0, 0, 0, stream],
            payload,
        ]
        .concat()
    };
    let text = |index: u8, text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        [&[index, length], text.as_bytes()].concat()
    };
    let path = format!("/v2/a/blobs/{digest}");
    // GET and http by the table that every client has; path and authority spelt out.
    let headers = [vec![0x82, 0x86], text(0x04, &path), text(0x01, "registry")].concat();
    let mut client = Client::new(server.addr);
    client.raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    client.raw(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]));
    client.raw(&frame(1, 5, 1, &headers));
    let answer = client.until_closed();
    assert!(answer.len() < 10_000, "{}", answer.len());
    // DATA of one byte is among what came.
    let data = [0, 0, 1, 0];
    assert!(answer.windows(4).any(|four| four == data), "{answer:?}");
}
