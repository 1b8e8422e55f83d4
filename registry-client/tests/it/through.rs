//! What a cache asks, against a server that answers as a test says.

use registry_client::{Client, ErrorKind, Options};
use store::oci::{Digest, MediaType, Reference};

use crate::support::{noise, options};
use crate::wire::{Then, Wire};

fn client() -> Client {
    Client::new(Options {
        retry: registry_client::RetryPolicy {
            attempts: 2,
            ..options().retry
        },
        ..options()
    })
    .unwrap()
}

fn at(wire: &Wire, name: &str) -> Reference {
    format!("{}/{name}", wire.host).parse().unwrap()
}

#[tokio::test]
async fn tags_are_told_by_their_digest_by_304_or_not_at_all() {
    let (known, other) = (Digest::of(b"known"), Digest::of(b"other"));
    let text = other.to_string();
    let wire = Wire::start(move |seen, line| {
        let tag = seen.target.rsplit('/').next().unwrap();
        let said = [("docker-content-digest", text.as_str())];
        assert_eq!(seen.header("if-none-match"), format!("\"{known}\""));
        match tag {
            "same" => line.raw(b"HTTP/1.1 304 X\r\n\r\n"),
            "other" => line
                .raw(format!("HTTP/1.1 200 X\r\n{}: {}\r\n\r\n", said[0].0, said[0].1).as_bytes()),
            "mute" => line.raw(b"HTTP/1.1 200 X\r\n\r\n"),
            "never" => line.raw(b"HTTP/1.1 405 X\r\n\r\n"),
            "limited" => line.raw(b"HTTP/1.1 429 X\r\nretry-after: 1000\r\n\r\n"),
            _ => line.raw(b"HTTP/1.1 404 X\r\n\r\n"),
        };
        Then::Cut
    });
    let client = client();
    for (tag, expect) in [
        ("same", Ok(Some(known))),
        ("other", Ok(Some(other))),
        ("mute", Ok(None)),
        ("never", Ok(None)),
        ("limited", Err(ErrorKind::RateLimited)),
        ("gone", Err(ErrorKind::NotFound)),
    ] {
        let found = client.tag_now(&at(&wire, &format!("a:{tag}")), known).await;
        assert_eq!(found.map_err(|error| error.kind()), expect, "{tag}");
    }
}

#[tokio::test]
async fn manifests_come_as_they_are_and_verified() {
    let body = br#"{"mediaType":"application/x.unheard-of","any":["thing"]}"#;
    let digest = Digest::of(body);
    let wire = Wire::start(move |seen, line| {
        let accept = seen.header("accept");
        assert!(accept.starts_with(MediaType::OCI_INDEX) && accept.ends_with("*/*;q=0.1"));
        let said = Digest::of(b"else").to_string();
        let mut headers = vec![("content-type", "Application/X.Unheard-of; charset=utf-8")];
        if seen.target.ends_with("/lie") {
            headers.push(("docker-content-digest", &said));
        }
        line.answer(200, &headers, body)
    });
    let client = client();
    let found = client.raw_manifest(&at(&wire, "a:v1")).await.unwrap();
    assert_eq!(found.bytes, &body[..]);
    assert_eq!(
        found.media_type.as_deref(),
        Some("application/x.unheard-of")
    );
    assert_eq!(found.digest, digest);
    let by_digest = at(&wire, "a").with_digest(digest);
    client.raw_manifest(&by_digest).await.unwrap();
    for wrong in [
        at(&wire, "a:lie"),
        at(&wire, "a").with_digest(Digest::of(b"")),
    ] {
        let error = client.raw_manifest(&wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn blobs_tell_their_size_and_go_on_after_a_cut() {
    let bytes = noise(1, 300_000);
    let digest = Digest::of(&bytes);
    let served = bytes.clone();
    let wire = Wire::start(move |seen, line| match seen.header("range") {
        _ if seen.target.ends_with(&Digest::of(b"mute").to_string()) => {
            line.raw(b"HTTP/1.1 200 X\r\n\r\nmute");
            Then::Cut
        }
        "" => {
            line.head(200, &[], served.len());
            line.raw(&served[..100_000]);
            Then::Cut
        }
        range => {
            let from: usize = range["bytes=".len()..range.len() - 1].parse().unwrap();
            let told = format!("bytes {from}-{}/{}", served.len() - 1, served.len());
            line.answer(206, &[("content-range", &told)], &served[from..])
        }
    });
    let client = client();
    let opened = client.open_blob_by_digest(&at(&wire, "a"), digest).await;
    let (size, mut stream) = opened.unwrap();
    assert_eq!(size, 300_000);
    let mut came = Vec::new();
    while let Some(piece) = stream.next().await.unwrap() {
        came.extend_from_slice(&piece);
    }
    assert!(came == bytes);
    let reference = at(&wire, "a");
    let mute = client.open_blob_by_digest(&reference, Digest::of(b"mute"));
    assert_eq!(mute.await.unwrap_err().kind(), ErrorKind::Protocol);
}
