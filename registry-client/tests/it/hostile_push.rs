//! Servers that misbehave while something is sent to them.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use registry_client::{BlobSource, Client, ClientError, Options, Pushed};
use store::oci::{Descriptor, Digest, MediaType};

use crate::support::{Counted, image, noise, options};
use crate::wire::{Line, Seen, Then, Wire};

const SIZE: usize = 250_000;

fn blob() -> Vec<u8> {
    noise(21, SIZE)
}

fn chunked() -> Options {
    Options {
        chunk_bytes: 100_000,
        ..options()
    }
}

async fn push(wire: &Wire, options: Options) -> Result<Pushed, ClientError> {
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &blob());
    let client = Client::new(options).unwrap();
    let progress = Arc::new(Counted::default());
    let source = BlobSource::Bytes(Bytes::from(blob()));
    let pushed = client
        .push_blob(
            &wire.reference("x"),
            &descriptor,
            source,
            &[],
            progress.clone(),
        )
        .await?;
    let size = SIZE as u64;
    if pushed == Pushed::Uploaded {
        assert_eq!(progress.of(descriptor.digest), Some((size, size, true)));
    }
    Ok(pushed)
}

/// An upload session as a well-behaved server keeps it, for handlers to misbehave around.
#[derive(Default)]
struct Session {
    bytes: Mutex<Vec<u8>>,
    step: AtomicUsize,
}

impl Session {
    fn handle(&self, seen: &Seen, line: &mut Line<'_>) -> Then {
        let mut bytes = self.bytes.lock().unwrap();
        match (seen.method.as_str(), seen.target.split('?').next().unwrap()) {
            ("HEAD", _) => line.answer(404, &[], b""),
            ("POST", _) => {
                bytes.clear();
                self.located(202, 0, line)
            }
            ("GET", _) => self.located(204, bytes.len(), line),
            ("PATCH", _) => {
                let (first, last) = seen.header("content-range").split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                if first != bytes.len() {
                    return line.answer(416, &[], b"");
                }
                assert_eq!(seen.body.len(), last + 1 - first);
                bytes.extend_from_slice(&seen.body);
                self.located(202, bytes.len(), line)
            }
            ("PUT", _) => {
                bytes.extend_from_slice(&seen.body);
                let digest = Digest::of(&bytes).to_string();
                let right = seen.target.contains(&digest.replace(':', "%3A"));
                line.answer(if right { 201 } else { 400 }, &[], b"")
            }
            _ => line.answer(405, &[], b""),
        }
    }

    /// Each answer names a new location, so that the use of an old one shows.
    fn located(&self, status: u16, length: usize, line: &mut Line<'_>) -> Then {
        let step = self.step.fetch_add(1, Ordering::SeqCst) + 1;
        let location = format!("/v2/x/blobs/uploads/s?step={step}");
        let range = format!("0-{}", length.saturating_sub(1));
        line.answer(status, &[("location", &location), ("range", &range)], b"")
    }

    fn is_current(&self, seen: &Seen) -> bool {
        let step = self.step.load(Ordering::SeqCst);
        seen.method == "POST"
            || seen.method == "HEAD"
            || seen.target.contains(&format!("step={step}"))
    }
}

/// Pushes to a server that does as `misbehave` says where it says something, and else behaves.
async fn check(
    options: Options,
    misbehave: impl Fn(usize, &Seen, &mut Line<'_>, &Session) -> Option<Then> + Send + Sync + 'static,
    expect: Result<Pushed, &str>,
    requests: &[&str],
) {
    let count = AtomicUsize::new(0);
    let session = Session::default();
    let wire = Wire::start(move |seen, line| {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        assert!(
            session.is_current(seen),
            "a stale location: {}",
            seen.target
        );
        misbehave(nth, seen, line, &session).unwrap_or_else(|| session.handle(seen, line))
    });
    let result = push(&wire, options).await;
    match (&result, expect) {
        (Ok(pushed), Ok(expected)) => assert_eq!(*pushed, expected),
        (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
        _ => panic!("{result:?}, expected {expect:?}: {:?}", wire.lines()),
    }
    let methods: Vec<String> = wire
        .seen()
        .iter()
        .map(|seen| match seen.header("content-range") {
            "" => seen.method.clone(),
            range => format!("{} {range}", seen.method),
        })
        .collect();
    assert_eq!(methods, requests);
}

#[tokio::test]
async fn one_put_is_all_it_takes() {
    check(
        options(),
        |_, _, _, _| None,
        Ok(Pushed::Uploaded),
        &["HEAD", "POST", "PUT"],
    )
    .await;
    let there = |_: usize, _: &Seen, line: &mut Line<'_>, _: &Session| {
        line.head(200, &[], SIZE);
        Some(Then::Keep)
    };
    check(options(), there, Ok(Pushed::Existed), &["HEAD"]).await;
}

#[tokio::test]
async fn a_cut_put_goes_on_where_it_stopped() {
    let cut = |nth: usize, seen: &Seen, _: &mut Line<'_>, session: &Session| {
        (nth == 2).then(|| {
            session
                .bytes
                .lock()
                .unwrap()
                .extend_from_slice(&seen.body[..120_000]);
            Then::Cut
        })
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "GET",
        "PATCH 120000-219999",
        "PATCH 220000-249999",
        "PUT",
    ];
    check(chunked(), cut, Ok(Pushed::Uploaded), &requests).await;
}

#[tokio::test]
async fn an_answer_in_other_words_is_looked_into() {
    // Something in between says that all is well, and has kept nothing.
    let liar = |nth: usize, _: &Seen, line: &mut Line<'_>, _: &Session| {
        (nth == 2).then(|| line.answer(200, &[], b"{}"))
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "HEAD",
        "GET",
        "PATCH 0-99999",
        "PATCH 100000-199999",
        "PATCH 200000-249999",
        "PUT",
    ];
    check(chunked(), liar, Ok(Pushed::Uploaded), &requests).await;

    let tries = AtomicUsize::new(0);
    let wire = Wire::start(move |seen, line| match seen.method.as_str() {
        "PUT" if tries.fetch_add(1, Ordering::SeqCst) == 0 => line.answer(200, &[], b"{}"),
        "PUT" => line.answer(201, &[], b""),
        "GET" => line.answer(404, &[], b""),
        _ => line.answer(200, &[], b""),
    });
    let client = Client::new(options()).unwrap();
    let pushed = image(&[noise(25, 1000)]);
    let progress = Arc::new(Counted::default());
    registry_client::push_image(&client, &wire.reference("x:1"), &pushed, progress)
        .await
        .unwrap();
    let of_manifest = |seen: &&Seen| seen.target.contains("/manifests/") && seen.method != "HEAD";
    let methods: Vec<String> = wire
        .seen()
        .iter()
        .filter(of_manifest)
        .map(|seen| seen.method.clone())
        .collect();
    assert_eq!(methods, ["PUT", "GET", "PUT"]);
}

#[tokio::test]
async fn a_lost_session_is_replaced() {
    let lost = |nth: usize, _: &Seen, line: &mut Line<'_>, _: &Session| match nth {
        2 => Some(Then::Cut),
        3 => Some(line.answer(404, &[], br#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#)),
        _ => None,
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "GET",
        "HEAD",
        "POST",
        "PATCH 0-99999",
        "PATCH 100000-199999",
        "PATCH 200000-249999",
        "PUT",
    ];
    check(chunked(), lost, Ok(Pushed::Uploaded), &requests).await;
}

#[tokio::test]
async fn a_lost_answer_is_looked_up() {
    let lost = |nth: usize, _: &Seen, line: &mut Line<'_>, _: &Session| match nth {
        2 => Some(Then::Cut),
        3 => Some(line.answer(404, &[], b"")),
        4 => {
            line.head(200, &[], SIZE);
            Some(Then::Keep)
        }
        _ => None,
    };
    let wire_requests = ["HEAD", "POST", "PUT", "GET", "HEAD"];
    // The progress is not asked here: the bytes that the lost request sent are all there were.
    let count = AtomicUsize::new(0);
    let session = Session::default();
    let wire = Wire::start(move |seen, line| {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        lost(nth, seen, line, &session).unwrap_or_else(|| session.handle(seen, line))
    });
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &blob());
    let source = BlobSource::Bytes(Bytes::from(blob()));
    let progress = Arc::new(Counted::default());
    let client = Client::new(options()).unwrap();
    let pushed = client
        .push_blob(&wire.reference("x"), &descriptor, source, &[], progress)
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let methods: Vec<String> = wire.seen().iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(methods, wire_requests);
}

#[tokio::test]
async fn a_limit_on_bodies_leads_to_chunks() {
    let limited = |_: usize, seen: &Seen, line: &mut Line<'_>, _: &Session| {
        (seen.body.len() > 100_000).then(|| line.answer(413, &[], b""))
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "POST",
        "PATCH 0-99999",
        "PATCH 100000-199999",
        "PATCH 200000-249999",
        "PUT",
    ];
    check(chunked(), limited, Ok(Pushed::Uploaded), &requests).await;
    let all = |_: usize, seen: &Seen, line: &mut Line<'_>, _: &Session| {
        (!seen.body.is_empty()).then(|| line.answer(413, &[], b""))
    };
    let requests = ["HEAD", "POST", "PUT", "POST", "PATCH 0-99999"];
    check(chunked(), all, Err("the server answered 413"), &requests).await;
}

#[tokio::test]
async fn the_least_chunk_is_obeyed() {
    let least = |nth: usize, _: &Seen, line: &mut Line<'_>, session: &Session| match nth {
        1 | 3 => {
            let step = session.step.fetch_add(1, Ordering::SeqCst) + 1;
            let location = format!("/v2/x/blobs/uploads/s?step={step}");
            let least = ("oci-chunk-min-length", "150000");
            Some(line.answer(202, &[("location", &location), least], b""))
        }
        2 => Some(line.answer(413, &[], b"")),
        _ => None,
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "POST",
        "PATCH 0-149999",
        "PATCH 150000-249999",
        "PUT",
    ];
    check(chunked(), least, Ok(Pushed::Uploaded), &requests).await;
}

#[tokio::test]
async fn a_server_out_of_step_is_asked_where_it_stands() {
    // It takes half of a chunk and says so; then it lost some and refuses the next.
    let drifts = |nth: usize, seen: &Seen, line: &mut Line<'_>, session: &Session| match nth {
        2 => Some(line.answer(413, &[], b"")),
        4 => {
            session
                .bytes
                .lock()
                .unwrap()
                .extend_from_slice(&seen.body[..50_000]);
            Some(session.located(202, 50_000, line))
        }
        5 => {
            session.bytes.lock().unwrap().truncate(30_000);
            Some(line.answer(416, &[], b""))
        }
        _ => None,
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "POST",
        "PATCH 0-99999",
        "PATCH 50000-149999",
        "GET",
        "PATCH 30000-129999",
        "PATCH 130000-229999",
        "PATCH 230000-249999",
        "PUT",
    ];
    check(chunked(), drifts, Ok(Pushed::Uploaded), &requests).await;
}

#[tokio::test]
async fn servers_that_keep_nothing_are_given_up() {
    let nothing = |nth: usize, seen: &Seen, line: &mut Line<'_>, session: &Session| {
        if nth == 2 {
            return Some(Then::Cut);
        }
        (seen.method == "PATCH").then(|| session.located(202, 0, line))
    };
    let requests = [
        "HEAD",
        "POST",
        "PUT",
        "GET",
        "PATCH 0-99999",
        "GET",
        "PATCH 0-99999",
        "GET",
        "PATCH 0-99999",
    ];
    check(
        chunked(),
        nothing,
        Err("the server kept nothing of the chunk"),
        &requests,
    )
    .await;
}

#[tokio::test]
async fn servers_that_claim_too_much_are_refused() {
    let claims = |nth: usize, seen: &Seen, line: &mut Line<'_>, session: &Session| {
        if nth == 2 {
            return Some(Then::Cut);
        }
        (seen.method == "PATCH").then(|| session.located(202, 200_000, line))
    };
    let requests = ["HEAD", "POST", "PUT", "GET", "PATCH 0-99999"];
    let words = Err("the server claims 200000 bytes after 100000 were sent");
    check(chunked(), claims, words, &requests).await;
}

#[tokio::test]
async fn bad_locations() {
    let nowhere = |nth: usize, _: &Seen, line: &mut Line<'_>, _: &Session| {
        (nth == 1).then(|| line.answer(202, &[], b""))
    };
    check(
        options(),
        nowhere,
        Err("the answer has no Location"),
        &["HEAD", "POST"],
    )
    .await;
    let gopher = |nth: usize, _: &Seen, line: &mut Line<'_>, _: &Session| {
        (nth == 1).then(|| line.answer(202, &[("location", "gopher://x/")], b""))
    };
    check(
        options(),
        gopher,
        Err("refused to follow to `gopher://x/`"),
        &["HEAD", "POST"],
    )
    .await;
}

#[tokio::test]
async fn another_digest_is_an_error() {
    let other = |nth: usize, _: &Seen, line: &mut Line<'_>, _: &Session| {
        let digest = Digest::of(b"other").to_string();
        (nth == 2).then(|| line.answer(201, &[("docker-content-digest", &digest)], b""))
    };
    check(
        options(),
        other,
        Err("the content has digest"),
        &["HEAD", "POST", "PUT"],
    )
    .await;
}

#[tokio::test]
async fn faults_are_waited_out() {
    let faults = |nth: usize, seen: &Seen, line: &mut Line<'_>, _: &Session| {
        let early = seen.method == "POST" && nth == 1 || seen.method == "PUT" && nth == 3;
        early.then(|| line.answer(503, &[], b""))
    };
    let requests = [
        "HEAD",
        "POST",
        "HEAD",
        "POST",
        "PATCH 0-99999",
        "PATCH 100000-199999",
        "PATCH 200000-249999",
        "PUT",
    ];
    check(chunked(), faults, Ok(Pushed::Uploaded), &requests).await;
}

#[tokio::test]
async fn nothing_is_tagged_when_a_blob_fails() {
    let wire = Wire::start(|seen, line| match seen.method.as_str() {
        "HEAD" => line.answer(404, &[], b""),
        "POST" => line.answer(
            403,
            &[],
            br#"{"errors":[{"code":"DENIED","message":"no"}]}"#,
        ),
        _ => line.answer(500, &[], b""),
    });
    let client = Client::new(options()).unwrap();
    let pushed = image(&[noise(22, 1000), noise(23, 1000)]);
    let progress = Arc::new(Counted::default());
    let error = registry_client::push_image(&client, &wire.reference("x:1"), &pushed, progress)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("DENIED: no"), "{error}");
    assert!(
        wire.seen().iter().all(|seen| seen.method != "PUT"),
        "{:?}",
        wire.lines()
    );
}

#[tokio::test]
async fn a_registry_that_sees_blobs_late_is_waited_for() {
    let tries = AtomicUsize::new(0);
    let unknown = br#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}"#;
    let wire = Wire::start(move |seen, line| match seen.method.as_str() {
        "PUT" if tries.fetch_add(1, Ordering::SeqCst) == 0 => line.answer(400, &[], unknown),
        "PUT" => line.answer(201, &[], b""),
        // It has every blob.
        _ => line.answer(200, &[], b""),
    });
    let client = Client::new(options()).unwrap();
    let pushed = image(&[noise(24, 1000)]);
    let progress = Arc::new(Counted::default());
    let report = registry_client::push_image(&client, &wire.reference("x:1"), &pushed, progress)
        .await
        .unwrap();
    assert_eq!(report.uploaded, 0);
    let puts = wire
        .seen()
        .iter()
        .filter(|seen| seen.method == "PUT")
        .count();
    assert_eq!(puts, 2, "{:?}", wire.lines());
}
