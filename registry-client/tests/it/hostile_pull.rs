//! Servers that misbehave while something is read from them: each time the bytes come out right, or an error says what
//! is wrong, after a bounded number of requests.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry_client::{BlobReader, Client, ClientError, ErrorKind, Options, Silent, pull_layers};
use store::oci::{Descriptor, Digest, MediaType};

use crate::support::{Waits, amd64, noise, options};
use crate::wire::{Line, Seen, Then, Wire};

const SIZE: usize = 300_000;

fn blob() -> Vec<u8> {
    noise(11, SIZE)
}

fn start_of(seen: &Seen) -> usize {
    let range = seen.header("range").strip_prefix("bytes=");
    range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
}

/// Serves what is left from the range's start, but no more than `most` bytes of it.
fn partial(line: &mut Line<'_>, seen: &Seen, bytes: &[u8], most: usize) -> Then {
    let start = start_of(seen);
    let rest = &bytes[start..];
    if start == 0 {
        line.head(200, &[], rest.len());
    } else {
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        line.head(206, &[("content-range", &range)], rest.len());
    }
    line.raw(&rest[..rest.len().min(most)]);
    if rest.len() <= most {
        Then::Keep
    } else {
        Then::Cut
    }
}

async fn read(wire: &Wire, options: Options) -> Result<Vec<u8>, ClientError> {
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &blob());
    let client = Client::new(options).unwrap();
    client
        .read_small(&wire.reference("x"), &descriptor, 1_000_000)
        .await
}

/// Reads the blob from a server that behaves so; then checks the outcome and the number of requests.
async fn check(
    handler: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
    expect: Result<(), &str>,
    requests: usize,
) {
    let mut options = options();
    // A server is only to be taken for a silent one where it is: a busy machine is slow.
    options.timeouts.idle = match expect {
        Err("nothing came for 300 ms") => Duration::from_millis(300),
        _ => Duration::from_secs(60),
    };
    let wire = Wire::start(handler);
    let result = read(&wire, options).await;
    match (&result, expect) {
        (Ok(bytes), Ok(())) => assert_eq!(*bytes, blob()),
        (Err(error), Err(words)) => {
            assert!(error.to_string().contains(words), "{error}");
        }
        _ => panic!("{:?}, expected {expect:?}", result.map(|bytes| bytes.len())),
    }
    assert_eq!(wire.lines().len(), requests, "{:?}", wire.lines());
}

#[tokio::test]
async fn cuts_are_resumed() {
    check(
        |seen, line| partial(line, seen, &blob(), 100_000),
        Ok(()),
        3,
    )
    .await;
}

#[tokio::test]
async fn cuts_without_ranges_are_resumed() {
    let count = AtomicUsize::new(0);
    let handler = move |_: &Seen, line: &mut Line<'_>| {
        let most = 120_000 * (1 + count.fetch_add(1, Ordering::SeqCst));
        line.head(200, &[], SIZE);
        line.raw(&blob()[..most.min(SIZE)]);
        if most < SIZE { Then::Cut } else { Then::Keep }
    };
    check(handler, Ok(()), 3).await;
}

#[tokio::test]
async fn endless_cuts_end() {
    let none = |seen: &Seen, line: &mut Line<'_>| partial(line, seen, &blob(), 0);
    check(none, Err("the connection was cut"), 4).await;
    let no_answer = |_: &Seen, _: &mut Line<'_>| Then::Cut;
    check(no_answer, Err("the connection was cut"), 4).await;
}

#[tokio::test]
async fn real_progress_earns_new_attempts() {
    let bytes = noise(12, 12_000_000);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let served = bytes.clone();
    let wire = Wire::start(move |seen, line| partial(line, seen, &served, 1_500_000));
    let client = Client::new(options()).unwrap();
    let read = client
        .read_small(&wire.reference("x"), &descriptor, 1 << 30)
        .await
        .unwrap();
    assert!(read == bytes);
    assert_eq!(wire.lines().len(), 8);
}

#[tokio::test]
async fn stalls_end() {
    let silent = |_: &Seen, _: &mut Line<'_>| Then::Stall;
    check(silent, Err("nothing came for 300 ms"), 4).await;
    let midway = |_: &Seen, line: &mut Line<'_>| {
        line.head(200, &[], SIZE);
        line.raw(&blob()[..1000]);
        Then::Stall
    };
    check(midway, Err("nothing came for 300 ms"), 4).await;
}

#[tokio::test]
async fn lies_about_length() {
    let longer = |_: &Seen, line: &mut Line<'_>| line.answer(200, &[], &noise(11, SIZE + 1));
    check(
        longer,
        Err("the content has 300001 bytes, expected 300000"),
        1,
    )
    .await;
    let shorter = |_: &Seen, line: &mut Line<'_>| line.answer(200, &[], &blob()[1..]);
    check(
        shorter,
        Err("the content has 299999 bytes, expected 300000"),
        1,
    )
    .await;
    // Without a length the surplus is not taken,
    let endless = |_: &Seen, line: &mut Line<'_>| {
        line.raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        line.raw(&blob());
        while line.raw(&[0; 64 * 1024]) {}
        Then::Cut
    };
    check(endless, Ok(()), 1).await;
    // and what is missing is a cut.
    let short = |_: &Seen, line: &mut Line<'_>| {
        line.raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        line.raw(&blob()[..SIZE - 1]);
        Then::Cut
    };
    check(short, Err("it ended after 299999 of 300000 bytes"), 4).await;
}

#[tokio::test]
async fn lies_about_ranges() {
    let lie = |range: &'static str| {
        move |seen: &Seen, line: &mut Line<'_>| {
            if start_of(seen) == 0 {
                return partial(line, seen, &blob(), 1000);
            }
            line.answer(206, &[("content-range", range)], b"xxxx")
        }
    };
    let wrong = Err("the answer is not the range from byte 1000");
    check(lie("bytes 0-299999/300000"), wrong, 2).await;
    check(lie("bytes 1000-300000/300001"), wrong, 2).await;
    check(lie("bytes 1000-1003/4"), wrong, 2).await;
    check(lie("nonsense"), wrong, 2).await;
    let unasked = |_: &Seen, line: &mut Line<'_>| {
        line.answer(206, &[("content-range", "bytes 0-299999/300000")], &blob())
    };
    check(unasked, Err("unexpected status 206"), 1).await;
    let refuses = |seen: &Seen, line: &mut Line<'_>| match start_of(seen) {
        0 => partial(line, seen, &blob(), 1000),
        _ => line.answer(416, &[], b""),
    };
    check(refuses, Err("the server answered 416"), 2).await;
}

#[tokio::test]
async fn lies_about_content() {
    let other = |_: &Seen, line: &mut Line<'_>| line.answer(200, &[], &noise(99, SIZE));
    check(other, Err("the content has digest sha256:"), 1).await;
    // Also where a resumed part is another blob's.
    let mixed = |seen: &Seen, line: &mut Line<'_>| match start_of(seen) {
        0 => partial(line, seen, &blob(), 1000),
        _ => partial(line, seen, &noise(99, SIZE), SIZE),
    };
    check(mixed, Err("the content has digest sha256:"), 2).await;
}

#[tokio::test]
async fn redirects_in_circles() {
    let circle =
        |seen: &Seen, line: &mut Line<'_>| line.answer(307, &[("location", &seen.target)], b"");
    check(circle, Err("more than 8 redirects"), 9).await;
    let nowhere = |_: &Seen, line: &mut Line<'_>| line.answer(307, &[], b"");
    check(nowhere, Err("the answer has no Location"), 1).await;
    let file = |_: &Seen, line: &mut Line<'_>| {
        line.answer(307, &[("location", "file:///etc/shadow")], b"")
    };
    check(file, Err("refused to follow to `file:///etc/shadow`"), 1).await;
}

#[tokio::test]
async fn bursts_of_faults_are_waited_out() {
    let fail = |times: usize, status: u16| {
        let count = AtomicUsize::new(0);
        move |seen: &Seen, line: &mut Line<'_>| {
            if count.fetch_add(1, Ordering::SeqCst) < times {
                return line.answer(status, &[], b"{\"errors\":[{\"code\":\"UNKNOWN\"}]}");
            }
            partial(line, seen, &blob(), SIZE)
        }
    };
    check(fail(3, 500), Ok(()), 4).await;
    check(fail(3, 503), Ok(()), 4).await;
    check(fail(3, 429), Ok(()), 4).await;
    check(
        fail(9, 502),
        Err("the server answered 502 Bad Gateway: UNKNOWN"),
        4,
    )
    .await;
    check(fail(1, 404), Err("the server answered 404"), 1).await;
    check(fail(1, 403), Err("the server answered 403"), 1).await;
}

#[tokio::test]
async fn what_is_left_of_a_rate_limit_is_told() {
    let limited = |status: u16, remaining: &'static str| {
        Wire::start(move |_, line| {
            let limit = ("ratelimit-limit", "100;w=21600");
            line.answer(
                status,
                &[limit, ("ratelimit-remaining", remaining)],
                &blob(),
            )
        })
    };
    let mut once = options();
    once.retry.attempts = 1;
    let error = read(&limited(429, "0;w=21600"), once).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("(0 of 100 requests per 6 h left)"),
        "{error}"
    );
    for (remaining, told) in [("50;w=21600", 0), ("3;w=21600", 1)] {
        let wire = limited(200, remaining);
        let client = Client::new(options()).unwrap();
        let descriptor = Descriptor::of(MediaType::OCI_LAYER, &blob());
        for _ in 0..2 {
            let reference = wire.reference("x");
            let read = client.read_small(&reference, &descriptor, 1_000_000).await;
            assert_eq!(read.unwrap(), blob());
        }
        let warnings = client.warnings();
        let texts: Vec<&str> = warnings
            .iter()
            .map(|warning| warning.text.as_str())
            .collect();
        let wanted = ["less than a tenth of 100 requests per 6 h is left"];
        assert_eq!(texts, wanted[..told]);
    }
}

#[tokio::test]
async fn wishes_to_wait_are_granted_within_reason() {
    let limited = |wait: &'static str| {
        let count = AtomicUsize::new(0);
        Wire::start(
            move |seen, line| match count.fetch_add(1, Ordering::SeqCst) {
                0 => line.answer(429, &[("retry-after", wait)], b""),
                _ => partial(line, seen, &blob(), SIZE),
            },
        )
    };
    let clock = Arc::new(Waits::default());
    let mut patient = options();
    patient.clock = clock.clone();
    let wire = limited("7");
    assert_eq!(read(&wire, patient.clone()).await.unwrap(), blob());
    assert_eq!(*clock.0.lock().unwrap(), [Duration::from_secs(7)]);

    let wire = limited("100000");
    let error = read(&wire, patient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited, "{error}");
    assert!(
        error.to_string().contains("asks to wait 100000 s"),
        "{error}"
    );
    assert_eq!(wire.lines().len(), 1);
}

#[tokio::test]
async fn backoff_doubles() {
    let clock = Arc::new(Waits::default());
    let mut patient = options();
    patient.clock = clock.clone();
    let wire = Wire::start(|_, line| line.answer(500, &[], b""));
    read(&wire, patient).await.unwrap_err();
    let waits: Vec<u128> = clock
        .0
        .lock()
        .unwrap()
        .iter()
        .map(Duration::as_millis)
        .collect();
    assert_eq!(waits, [250, 500, 1000]);
}

#[tokio::test]
async fn headers_without_end() {
    let flood = |_: &Seen, line: &mut Line<'_>| {
        line.raw(b"HTTP/1.1 200 OK\r\n");
        let header = format!("x-{}: {}\r\n", "a".repeat(50), "b".repeat(64 * 1024));
        for _ in 0..1600 {
            if !line.raw(header.as_bytes()) {
                return Then::Cut;
            }
        }
        panic!("100 MB of headers were taken");
    };
    check(flood, Err("GET http://127.0.0.1"), 1).await;
    let many = |_: &Seen, line: &mut Line<'_>| {
        line.raw(b"HTTP/1.1 200 OK\r\n");
        for at in 0..20_000 {
            line.raw(format!("x-{at}: y\r\n").as_bytes());
        }
        line.raw(b"\r\n");
        Then::Cut
    };
    check(many, Err("GET http://127.0.0.1"), 1).await;
}

#[tokio::test]
async fn no_http_at_all() {
    let wire = Wire::start(|_, line| {
        line.raw(b"SSH-2.0-OpenSSH_9.2\r\n");
        Then::Cut
    });
    let error = read(&wire, options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn manifests_without_end() {
    let check = async |handler: fn(&Seen, &mut Line<'_>) -> Then, kind: ErrorKind, words: &str| {
        let wire = Wire::start(handler);
        let client = Client::new(options()).unwrap();
        let error = client
            .image(&wire.reference("x:1"), &amd64())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    let announced = |_: &Seen, line: &mut Line<'_>| {
        line.head(200, &[], 1 << 30);
        while line.raw(&[b' '; 64 * 1024]) {}
        Then::Cut
    };
    check(announced, ErrorKind::TooLarge, "longer than 4194304 bytes").await;
    let endless = |_: &Seen, line: &mut Line<'_>| {
        line.raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        while line.raw(&[b' '; 64 * 1024]) {}
        Then::Cut
    };
    check(endless, ErrorKind::TooLarge, "longer than 4194304 bytes").await;
    let broken = |_: &Seen, line: &mut Line<'_>| line.answer(200, &[], b"{\"schemaVersion\":2,");
    check(broken, ErrorKind::Protocol, "is not a usable manifest").await;
    let other_digest = |_: &Seen, line: &mut Line<'_>| {
        let digest = Digest::of(b"other").to_string();
        line.answer(
            200,
            &[("docker-content-digest", &digest)],
            b"{\"schemaVersion\":2}",
        )
    };
    check(other_digest, ErrorKind::Corrupt, "the content has digest").await;
    let other_type = |_: &Seen, line: &mut Line<'_>| {
        let body = br#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
        line.answer(200, &[("content-type", MediaType::OCI_INDEX)], body)
    };
    check(other_type, ErrorKind::Protocol, "but has `config`").await;
    let schema1 = |_: &Seen, line: &mut Line<'_>| {
        let body = br#"{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+json"}"#;
        line.answer(200, &[], body)
    };
    check(schema1, ErrorKind::Protocol, "manifest.v1+json").await;
    let artifact = |_: &Seen, line: &mut Line<'_>| {
        let body = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
        line.answer(200, &[], body)
    };
    check(
        artifact,
        ErrorKind::Protocol,
        "is not an image: its configuration is of type",
    )
    .await;
    let nested = |seen: &Seen, line: &mut Line<'_>| {
        // The same index whatever is asked for: by digest it is found out.
        let entry = format!(
            r#"{{"mediaType":"{}","digest":"{}","size":1,"platform":{{"os":"linux","architecture":"amd64"}}}}"#,
            MediaType::OCI_INDEX,
            Digest::of(seen.target.as_bytes())
        );
        let body = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        line.answer(
            200,
            &[("content-type", MediaType::OCI_INDEX)],
            body.as_bytes(),
        )
    };
    check(nested, ErrorKind::Corrupt, "the content has digest").await;
}

#[tokio::test]
async fn digests_of_tags_are_told_by_head_or_get() {
    let body = br#"{"schemaVersion":2,"manifests":[]}"#;
    let digest = Digest::of(body).to_string();
    let told = digest.clone();
    let full = Wire::start(move |seen, line| {
        assert_eq!(seen.method, "HEAD");
        let kind = (
            "content-type",
            "application/vnd.oci.image.index.v1+json; charset=utf-8",
        );
        line.head(200, &[("docker-content-digest", &told), kind], body.len());
        Then::Keep
    });
    let client = Client::new(options()).unwrap();
    let resolved = client.resolve(&full.reference("x:1")).await.unwrap();
    assert_eq!(resolved.digest.to_string(), digest);
    assert_eq!(resolved.media_type.as_str(), MediaType::OCI_INDEX);

    let sparse = Wire::start(move |seen, line| match seen.method.as_str() {
        "HEAD" => line.answer(405, &[], b""),
        _ => line.answer(200, &[], body),
    });
    let resolved = client.resolve(&sparse.reference("x:1")).await.unwrap();
    assert_eq!(resolved.digest.to_string(), digest);
    assert_eq!(resolved.size, body.len() as u64);
}

#[tokio::test]
async fn warnings_are_kept_once() {
    let wire = Wire::start(|_, line| {
        let warning = ("warning", "299 - \"this \\\"tag\\\" ends soon\"");
        line.answer(404, &[warning, ("warning", "199 - \"x\"")], b"")
    });
    let client = Client::new(options()).unwrap();
    for _ in 0..3 {
        client.manifest(&wire.reference("x:1")).await.unwrap_err();
    }
    let warnings = client.warnings();
    let texts: Vec<&str> = warnings
        .iter()
        .map(|warning| warning.text.as_str())
        .collect();
    assert_eq!(texts.len(), 1, "{texts:?}");
}

#[tokio::test]
async fn pages_are_followed_on_the_same_registry() {
    let wire = Wire::start(|seen, line| match seen.target.as_str() {
        "/v2/x/tags/list?n=1000" => {
            let link = ("link", "</v2/x/tags/list?n=1000&last=b>; rel=\"next\"");
            line.answer(200, &[link], br#"{"name":"x","tags":["a","b"]}"#)
        }
        "/v2/x/tags/list?n=1000&last=b" => line.answer(200, &[], br#"{"name":"x","tags":["c"]}"#),
        "/v2/circle/tags/list?n=1000" => {
            let link = ("link", "</v2/circle/tags/list?n=1000>; rel=\"next\"");
            line.answer(200, &[link], br#"{"tags":null}"#)
        }
        "/v2/away/tags/list?n=1000" => {
            let link = ("link", "<http://127.0.0.2:1/v2/x?n=1>; rel=\"next\"");
            line.answer(200, &[link], br#"{"tags":[]}"#)
        }
        _ => line.answer(200, &[], b"[]"),
    });
    let client = Client::new(options()).unwrap();
    assert_eq!(
        client.tags(&wire.reference("x")).await.unwrap(),
        ["a", "b", "c"]
    );
    for name in ["circle", "away"] {
        let error = client.tags(&wire.reference(name)).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("the next page is not on this registry"),
            "{error}"
        );
    }
    let error = client.tags(&wire.reference("list")).await.unwrap_err();
    assert!(
        error.to_string().contains("the page is not valid"),
        "{error}"
    );
}

#[tokio::test]
async fn a_broken_layer_stops_the_pull() {
    let good = noise(13, 50_000);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &good);
    let missing = Descriptor::of(MediaType::OCI_LAYER, b"missing");
    let path = format!("/v2/x/blobs/{}", descriptor.digest);
    let wire = Wire::start(move |seen, line| {
        if seen.target == path {
            line.answer(200, &[], &good)
        } else {
            line.answer(404, &[], br#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#)
        }
    });
    let client = Client::new(options()).unwrap();
    let layers = [descriptor.clone(), missing.clone(), descriptor];
    let reference = wire.reference("x");
    let pulled = pull_layers(
        &client,
        &reference,
        &layers,
        Arc::new(Silent),
        |_, _, mut reader| std::io::copy(&mut reader, &mut std::io::sink()),
    );
    let error = pulled.await.unwrap_err();
    let registry_client::PullError::Layer { index, source, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(*index, 1);
    let inner = BlobReader::client_error(source).unwrap();
    assert_eq!(inner.kind(), ErrorKind::NotFound, "{inner}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_loses_interest_ends_the_transfer() {
    let descriptor = Descriptor::new(MediaType::OCI_LAYER, Digest::of(b"?"), 1 << 40);
    let (gone, has_gone) = std::sync::mpsc::channel();
    let gone = std::sync::Mutex::new(gone);
    let wire = Wire::start(move |_, line| {
        line.head(200, &[], 1 << 40);
        while line.raw(&[7; 64 * 1024]) {}
        gone.lock().unwrap().send(()).unwrap();
        Then::Cut
    });
    let client = Client::new(options()).unwrap();
    let mut reader = client.read_blob(&wire.reference("x"), &descriptor, Arc::new(Silent));
    tokio::task::spawn_blocking(move || {
        let mut some = [0; 10];
        reader.read_exact(&mut some).unwrap();
        assert_eq!(some, [7; 10]);
        drop(reader);
        has_gone.recv().unwrap();
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_failed_layer_ends_the_others_at_once() {
    let endless = Descriptor::new(MediaType::OCI_LAYER, Digest::of(b"?"), 1 << 40);
    let missing = Descriptor::of(MediaType::OCI_LAYER, b"missing");
    let path = format!("/v2/x/blobs/{}", missing.digest);
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (begun, has_begun) = (
        std::sync::Mutex::new(begun),
        std::sync::Mutex::new(has_begun),
    );
    let wire = Wire::start(move |seen, line| {
        if seen.target == path {
            has_begun.lock().unwrap().recv().unwrap();
            return line.answer(404, &[], b"");
        }
        line.head(200, &[], 1 << 40);
        line.raw(&[7; 64 * 1024]);
        begun.lock().unwrap().send(()).unwrap();
        // From here on it would take the whole idle time.
        Then::Stall
    });
    let mut options = options();
    options.timeouts.idle = Duration::from_secs(3600);
    let client = Client::new(options).unwrap();
    let reference = wire.reference("x");
    let layers = [endless, missing];
    let pulled = pull_layers(
        &client,
        &reference,
        &layers,
        Arc::new(Silent),
        |_, _, mut reader| std::io::copy(&mut reader, &mut std::io::sink()),
    );
    let error = pulled.await.unwrap_err();
    assert!(error.to_string().starts_with("layer 1 (sha256:"), "{error}");
}
