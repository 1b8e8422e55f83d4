//! Large blobs, read several segments at once: the bytes are right whatever the server makes of ranges.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use registry_client::{Client, ErrorKind, Options};
use registry_server::RunningServer;
use store::oci::{Descriptor, MediaType};

use crate::support::{noise, options};
use crate::wire::{Line, Seen, Then, Wire};

const SEGMENT: usize = 50_000;
const SIZE: usize = 7 * SEGMENT + 123;

fn in_segments() -> Options {
    Options {
        segment_bytes: SEGMENT as u64,
        ..options()
    }
}

fn blob() -> Vec<u8> {
    noise(21, SIZE)
}

/// First and last byte of a request's range.
fn range(seen: &Seen) -> Option<(usize, usize)> {
    let (first, last) = seen
        .header("range")
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let last = match last {
        "" => SIZE - 1,
        last => last.parse().unwrap(),
    };
    Some((first.parse().unwrap(), last))
}

/// Answers a range, or everything, as a server should.
fn right(seen: &Seen, line: &mut Line<'_>) -> Then {
    match range(seen) {
        Some((first, last)) => {
            let range = format!("bytes {first}-{last}/{SIZE}");
            line.answer(206, &[("content-range", &range)], &blob()[first..=last])
        }
        None => line.answer(200, &[], &blob()),
    }
}

/// Reads the blob from a server that behaves so.
async fn read(
    handler: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
) -> (Result<Vec<u8>, registry_client::ClientError>, Vec<String>) {
    let wire = Wire::start(handler);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &blob());
    let client = Client::new(in_segments()).unwrap();
    let read = client
        .read_small(&wire.reference("x"), &descriptor, 1 << 30)
        .await;
    let ranges = wire.seen();
    let ranges = ranges.iter().map(|seen| seen.header("range").to_owned());
    (read, ranges.collect())
}

#[tokio::test]
async fn each_segment_is_asked_for_once() {
    let (bytes, mut ranges) = read(right).await;
    assert!(bytes.unwrap() == blob());
    ranges.sort();
    let mut expected: Vec<String> = (0..8)
        .map(|number| {
            let first = number * SEGMENT;
            match first + SEGMENT < SIZE {
                true => format!("bytes={first}-{}", first + SEGMENT - 1),
                false => format!("bytes={first}-"),
            }
        })
        .collect();
    expected.sort();
    assert_eq!(ranges, expected);
}

#[tokio::test]
async fn several_are_under_way_at_once() {
    // The first byte of the first segment is held back until three others have been asked for.
    let asked = Arc::new((Mutex::new(0), Condvar::new()));
    let seen_by = Arc::clone(&asked);
    let (bytes, _) = read(move |seen, line| {
        let (count, changed) = &*seen_by;
        let mut count = count.lock().unwrap();
        *count += 1;
        changed.notify_all();
        if range(seen).is_some_and(|(first, _)| first == SEGMENT) {
            let waited = changed.wait_while(count, |count| *count < 4);
            drop(waited.unwrap());
        } else {
            drop(count);
        }
        right(seen, line)
    })
    .await;
    assert!(bytes.unwrap() == blob());
}

#[tokio::test]
async fn a_server_without_ranges_sends_everything_once() {
    let (bytes, ranges) = read(|_, line| line.answer(200, &[], &blob())).await;
    assert!(bytes.unwrap() == blob());
    assert_eq!(ranges.len(), 1);
}

#[tokio::test]
async fn a_server_that_forgets_about_ranges_is_read_on_in_one() {
    let calls = AtomicUsize::new(0);
    let (bytes, ranges) = read(
        move |seen, line| match calls.fetch_add(1, Ordering::SeqCst) {
            0 => right(seen, line),
            _ => line.answer(200, &[], &blob()),
        },
    )
    .await;
    assert!(bytes.unwrap() == blob());
    // The first, three ahead of it, one ahead of the second, and the rest of the blob.
    assert!(ranges.len() <= 6, "{ranges:?}");
}

#[tokio::test]
async fn segments_that_are_cut_go_on() {
    let cut = AtomicBool::new(false);
    let (bytes, _) = read(move |seen, line| {
        let (first, last) = range(seen).unwrap();
        let half = first + (last - first) / 2;
        if first == 2 * SEGMENT && !cut.swap(true, Ordering::SeqCst) {
            let range = format!("bytes {first}-{last}/{SIZE}");
            line.head(206, &[("content-range", &range)], last + 1 - first);
            line.raw(&blob()[first..half]);
            return Then::Cut;
        }
        right(seen, line)
    })
    .await;
    assert!(bytes.unwrap() == blob());
}

#[tokio::test]
async fn wrong_ranges_and_dead_servers_are_errors() {
    let (read_wrong, _) = read(|seen, line| {
        let (first, last) = range(seen).unwrap();
        let range = format!("bytes {}-{last}/{SIZE}", first + 1);
        line.answer(206, &[("content-range", &range)], &blob()[first + 1..=last])
    })
    .await;
    assert_eq!(read_wrong.unwrap_err().kind(), ErrorKind::Protocol);
    let (dead, ranges) = read(|seen, line| match range(seen) {
        Some((0, _)) => right(seen, line),
        _ => line.answer(404, &[], b"{}"),
    })
    .await;
    assert_eq!(dead.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(ranges.len() <= 6, "{ranges:?}");
    let (lying, _) = read(|seen, line| {
        let (first, last) = range(seen).unwrap();
        let range = format!("bytes {first}-{last}/{SIZE}");
        let mut bytes = blob()[first..=last].to_vec();
        bytes[0] ^= u8::from(first == SEGMENT);
        line.answer(206, &[("content-range", &range)], &bytes)
    })
    .await;
    assert_eq!(lying.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn the_bundled_registry_serves_segments() {
    let server = RunningServer::start_in_memory().unwrap();
    let client = Client::new(in_segments()).unwrap();
    let reference = format!("{}/x", server.host()).parse().unwrap();
    let bytes = blob();
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let source = registry_client::BlobSource::Bytes(bytes.clone().into());
    let silent = Arc::new(registry_client::Silent);
    let pushed = client.push_blob(&reference, &descriptor, source, &[], silent);
    pushed.await.unwrap();
    let read = client.read_small(&reference, &descriptor, 1 << 30).await;
    assert!(read.unwrap() == bytes);
}
