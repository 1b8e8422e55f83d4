//! What is asked of a cache, how often, and what waits for what: counted, not timed.

use std::path::Path;
use std::sync::{Arc, Condvar};
use std::time::Duration;

use store::content::Blobs;
use store::oci::{Descriptor, RawManifest};

use super::super::import::SharedCache;
use super::super::record::artifact;
use super::super::record::tests::record;
use super::*;
use crate::request::cache::MountChoice;
use crate::solve::{ProgressEvent, ProgressSink};

/// Longer than any machine takes; what it bounds is how long a test that fails hangs.
const PATIENCE: Duration = Duration::from_secs(120);

const NAMES: [EntryName; 2] = [EntryName::Hint([1; 32]), EntryName::Hint([2; 32])];

/// A cache in memory that notes what it is asked.
#[derive(Debug, Default)]
struct Ledger {
    entries: BTreeMap<String, Vec<u8>>,
    asked: Mutex<Vec<String>>,
    /// So many records are answered together, and none before.
    together: usize,
    waiting: Mutex<usize>,
    all: Condvar,
    /// Fails when it is asked for this.
    breaks_at: Option<String>,
}

impl Ledger {
    fn with(records: &[u8]) -> Ledger {
        let mut ledger = Ledger::default();
        for key in records {
            let record = record(*key, b"tar");
            ledger.put(EntryName::Record(record.key), &record.encode());
        }
        ledger
    }

    fn put(&mut self, name: EntryName, manifest: &RawManifest) {
        self.entries
            .insert(name.to_string(), manifest.bytes().to_vec());
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = lock(&self.asked).clone();
        asked.sort();
        asked
    }

    fn count(&self, name: EntryName) -> usize {
        let name = name.to_string();
        self.asked().iter().filter(|asked| **asked == name).count()
    }
}

impl CacheStore for Arc<Ledger> {
    fn name(&self) -> &str {
        "ledger"
    }

    fn entry(&self, name: &EntryName) -> Result<Option<Vec<u8>>, CacheStoreError> {
        let text = name.to_string();
        lock(&self.asked).push(text.clone());
        if let EntryName::Record(_) = name {
            let mut waiting = lock(&self.waiting);
            *waiting += 1;
            self.all.notify_all();
            let held = self
                .all
                .wait_timeout_while(waiting, PATIENCE, |waiting| *waiting < self.together);
            assert!(!held.unwrap().1.timed_out(), "one waits for another");
        }
        if self.breaks_at.as_ref() == Some(&text) {
            return Err(CacheStoreError::Missing {
                digest: Box::new(store::oci::Digest::of(b"")),
            });
        }
        Ok(self.entries.get(&text).cloned())
    }

    fn put_entry(&self, _: &EntryName, _: &RawManifest) -> Result<(), CacheStoreError> {
        unreachable!("nothing is written")
    }

    fn has_blob(&self, _: &Descriptor, _: &[String]) -> Result<bool, CacheStoreError> {
        unreachable!("no layer is wanted")
    }

    fn fetch_blob(&self, _: &Descriptor, _: &Blobs) -> Result<(), CacheStoreError> {
        unreachable!("no layer is wanted")
    }

    fn put_blob(&self, _: &Descriptor, _: &Path) -> Result<(), CacheStoreError> {
        unreachable!("nothing is written")
    }
}

/// Keeps what is said.
#[derive(Debug, Default)]
struct Said(Mutex<Vec<String>>);

impl ProgressSink for Said {
    fn event(&self, event: ProgressEvent) {
        if let ProgressEvent::Note { text, .. } = event {
            lock(&self.0).push(text);
        }
    }
}

fn key(number: u8) -> CacheKey {
    CacheKey([number; 32])
}

fn keys(numbers: impl IntoIterator<Item = u8>) -> Vec<CacheKey> {
    numbers.into_iter().map(key).collect()
}

/// Looks keys up one after the other, as a chain of steps does: which are there, and what was said.
fn look_up(
    ledger: &Arc<Ledger>,
    wanted: &[CacheKey],
    known: impl Fn(&CacheKey) -> bool + Send + Sync,
) -> (Vec<bool>, Vec<String>) {
    let said = Arc::new(Said::default());
    let notes = Notes::new(&(Arc::clone(&said) as Arc<dyn ProgressSink>));
    let stores: Vec<(Box<dyn CacheStore>, MountChoice)> =
        vec![(Box::new(Arc::clone(ledger)), MountChoice::None)];
    let shared = SharedCache::new(stores, notes).with_hints(NAMES.to_vec(), known);
    let found = wanted.iter().map(|key| shared.look_up(key).is_some());
    let found = found.collect();
    let said = lock(&said.0).clone();
    (found, said)
}

#[test]
fn a_chain_takes_two_round_trips() {
    let numbers = 10..10 + u8::try_from(WIDTH).unwrap();
    let chain = keys(numbers.clone());
    let mut ledger = Ledger {
        together: WIDTH,
        ..Ledger::with(&numbers.collect::<Vec<_>>())
    };
    ledger.put(NAMES[0], &hint::encode(&chain));
    let ledger = Arc::new(ledger);
    let (found, said) = look_up(&ledger, &chain, |_| false);
    assert_eq!((found, said), (vec![true; WIDTH], Vec::new()));
    assert_eq!(ledger.asked().len(), WIDTH + 2);
    assert!(
        chain
            .iter()
            .all(|key| ledger.count(EntryName::Record(*key)) == 1)
    );
}

#[test]
fn an_old_hint_costs_requests_and_decides_nothing() {
    let mut ledger = Ledger::with(&[10, 11, 12]);
    // One that is wanted, one that is not, and one that is gone.
    ledger.put(NAMES[1], &hint::encode(&keys([10, 11, 99])));
    let ledger = Arc::new(ledger);
    let (found, said) = look_up(&ledger, &keys([10, 12, 99, 98, 12]), |_| false);
    assert_eq!(found, [true, true, false, false, true]);
    assert_eq!(said, Vec::<String>::new());
    for (number, times) in [(10, 1), (11, 1), (12, 1), (98, 1), (99, 1)] {
        assert_eq!(
            ledger.count(EntryName::Record(key(number))),
            times,
            "{number}"
        );
    }
    assert_eq!(NAMES.map(|name| ledger.count(name)), [1, 1]);
}

#[test]
fn the_better_hint_counts_and_what_is_here_is_not_asked_for() {
    let mut ledger = Ledger::with(&[10, 11, 12]);
    ledger.put(NAMES[0], &hint::encode(&keys([10, 11])));
    ledger.put(NAMES[1], &hint::encode(&keys([12])));
    let ledger = Arc::new(ledger);
    let (found, _) = look_up(&ledger, &keys([10]), |known| *known == key(11));
    assert_eq!(found, [true]);
    assert_eq!(ledger.asked().len(), 3);
}

#[test]
fn a_made_up_hint_is_told_of_or_bounded() {
    let wanted = keys([10, 11]);
    let check = |hint: &RawManifest, requests: usize, expect: &str| {
        let mut ledger = Ledger::with(&[10, 11]);
        ledger.put(NAMES[0], hint);
        let ledger = Arc::new(ledger);
        let (found, said) = look_up(&ledger, &wanted, |_| false);
        assert_eq!(found, [true, true], "{expect}");
        assert_eq!(ledger.asked().len(), requests, "{expect}");
        assert_eq!(said.concat(), expect);
    };
    let written = |text: &str| artifact("x", None, ("dev.longshore.cache.hint", text.to_owned()));
    let damaged = "warning: a hint in the cache ledger is ignored: it is damaged: ";
    check(
        &record(10, b"tar").encode(),
        4,
        &format!("{damaged}it lacks its annotation"),
    );
    check(
        &written("{"),
        4,
        &format!("{damaged}its text cannot be read"),
    );
    check(
        &written(r#"{"version":1,"keys":["../../x"]}"#),
        4,
        &format!("{damaged}a digest in it is none"),
    );
    check(&written(r#"{"version":2}"#), 4, "");
    check(&written(r#"{"version":1,"keys":[]}"#), 4, "");
    let again = format!(r#"{{"version":1,"keys":["{0}","{0}"]}}"#, "0a".repeat(32));
    check(&written(&again), 4, "");
    // More than anybody has: as many as are looked at, and those that are wanted.
    let many: Vec<String> = (0..5000).map(|n| format!(r#""{n:064x}""#)).collect();
    let many = format!(r#"{{"version":1,"keys":[{}]}}"#, many.join(","));
    check(&written(&many), 2 + hint::KEYS_MAX + 2, "");
}

#[test]
fn records_without_end_are_not_fetched() {
    let mut ledger = Ledger::with(&[200]);
    let junk = vec![b' '; store::MANIFEST_BYTES_MAX];
    for number in 0..120 {
        let name = EntryName::Record(key(number)).to_string();
        ledger.entries.insert(name, junk.clone());
    }
    ledger.put(NAMES[0], &hint::encode(&keys(0..120)));
    let ledger = Arc::new(ledger);
    let (found, _) = look_up(&ledger, &keys([200]), |_| false);
    assert_eq!(found, [true]);
    let most = BYTES_MAX / store::MANIFEST_BYTES_MAX + WIDTH;
    assert!(ledger.asked().len() <= most + 3, "{}", ledger.asked().len());
}

#[test]
fn a_record_under_the_key_of_another_is_damaged_wherever_it_came_from() {
    let mut ledger = Ledger::default();
    ledger.put(EntryName::Record(key(10)), &record(11, b"tar").encode());
    ledger.put(NAMES[0], &hint::encode(&keys([10])));
    let ledger = Arc::new(ledger);
    let (found, said) = look_up(&ledger, &keys([10, 10]), |_| false);
    assert_eq!(found, [false, false]);
    assert!(
        said.concat().ends_with("it is the record of another key"),
        "{said:?}"
    );
    assert_eq!(ledger.count(EntryName::Record(key(10))), 1);
}

#[test]
fn a_cache_that_fails_meanwhile_is_told_of_once() {
    for breaks_at in [NAMES[1], EntryName::Record(key(11))] {
        let mut ledger = Ledger {
            breaks_at: Some(breaks_at.to_string()),
            ..Ledger::with(&[10, 11, 12])
        };
        ledger.put(NAMES[0], &hint::encode(&keys([10, 11, 12])));
        let ledger = Arc::new(ledger);
        let (found, said) = look_up(&ledger, &keys([10, 11, 12]), |_| false);
        assert_eq!(found, [false; 3]);
        assert_eq!(said.len(), 1, "{said:?}");
        let asked = ledger.asked().len();
        assert!(asked <= 5, "{asked}");
    }
}

#[test]
fn the_bytes_of_a_hint_are_stable() {
    let bytes = hint::encode(&keys([1])).bytes().to_vec();
    expect_test::expect![[r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.longshore.cache.hint.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}],"annotations":{"dev.longshore.cache.hint":"{\"version\":1,\"keys\":[\"0101010101010101010101010101010101010101010101010101010101010101\"]}"}}"#]].assert_eq(&String::from_utf8(bytes).unwrap());
}
