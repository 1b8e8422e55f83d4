//! Hashing everything again, slowly and all the time, so that rot is found before somebody needs what has rotted.
//!
//! A pass goes through the data by the first byte of its digest, and writes down how far it is: one that is interrupted goes
//! on there, after a restart, too. Of several servers on one storage one scrubs; the others see that it gets on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use store::oci::Digest;

use crate::routes::UploadId;
use crate::storage::collectable::{Collectable, FoundData};
use crate::storage::{StorageResult, now_seconds};

/// How often it is written down how far a pass is.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// A pass that did not get on for so long has ended: several times [`NOTE_EVERY`].
pub(crate) const ABANDONED: Duration = Duration::from_secs(5 * 60);

/// Longest sleep at once: so soon it is noticed that the server is to stop.
const NAP: Duration = Duration::from_millis(100);

/// What is scrubbed, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubRules {
    /// A pass begins so long after the one before did.
    pub every: Duration,
    /// Bytes that are read in a second.
    pub bytes_per_second: u64,
    /// Whether what is damaged is set aside, so that it can be pushed again.
    pub quarantine: bool,
}

/// How far the scrubbing is; written down in the storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// Who is at it.
    server: String,
    /// When this pass began, in seconds since 1970.
    began: i64,
    /// The last digest that was looked at; `None` at the beginning.
    after: Option<Digest>,
    /// Whether the pass is through.
    done: bool,
    /// Changes with every note.
    notes: u64,
}

/// What a pass, or a part of one, found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Data that was hashed.
    pub blobs: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Digests of what is damaged.
    pub damaged: Vec<Digest>,
    /// Whether the pass came to its end.
    pub whole: bool,
}

/// Scrubs a storage.
#[derive(Debug)]
pub struct Scrubber {
    rules: ScrubRules,
    server: String,
    /// Set when it is to stop.
    stop: Arc<AtomicBool>,
}

impl Scrubber {
    /// One that has done nothing yet, and ends early once `stop` is set.
    pub fn new(rules: ScrubRules, stop: Arc<AtomicBool>) -> Scrubber {
        Scrubber {
            rules,
            server: UploadId::random().to_string(),
            stop,
        }
    }

    /// How long to wait until there is something to do; zero if it is time.
    pub(crate) fn wait(&self, storage: &dyn Collectable) -> StorageResult<Duration> {
        let Some(progress) = read(storage)? else {
            return Ok(Duration::ZERO);
        };
        if progress.done {
            let age = u64::try_from(now_seconds() - progress.began).unwrap_or(0);
            return Ok(self.rules.every.saturating_sub(Duration::from_secs(age)));
        }
        if progress.server == self.server {
            return Ok(Duration::ZERO);
        }
        // Another's, which may be at it.
        let began = Instant::now();
        while began.elapsed() < ABANDONED && !self.stops() {
            std::thread::sleep(NAP);
        }
        let now = read(storage)?;
        Ok(match now == Some(progress) {
            true => Duration::ZERO,
            false => ABANDONED,
        })
    }

    /// Goes on with the pass that is under way, whoever began it, or begins one. Tells `found` of each piece of damaged data.
    pub fn pass(
        &self,
        storage: &dyn Collectable,
        found: &mut dyn FnMut(&Digest),
    ) -> StorageResult<Scrubbed> {
        let under_way = read(storage)?.filter(|progress| !progress.done);
        let mut progress = under_way.unwrap_or_else(|| Progress {
            server: String::new(),
            began: now_seconds(),
            after: None,
            done: false,
            notes: 0,
        });
        progress.server.clone_from(&self.server);
        let mut scrubbed = Scrubbed::default();
        let mut throttle = Throttle::new(self.rules.bytes_per_second);
        self.note(storage, &mut progress)?;
        let mut noted = Instant::now();
        // By the first byte, then by the digest: the order is the same every time.
        let place = |digest: &Digest| (digest.bytes()[0], *digest);
        let first = progress.after.as_ref().map_or(0, |after| after.bytes()[0]);
        for byte in first..=u8::MAX {
            let mut all: Vec<FoundData> = Vec::new();
            storage.data_beginning(byte, &mut |data| {
                all.push(data);
                Ok(())
            })?;
            all.sort_unstable_by_key(|data| place(&data.digest));
            for data in all {
                let is_done = |after: &Digest| place(&data.digest) <= place(after);
                if progress.after.as_ref().is_some_and(is_done) {
                    continue;
                }
                let hashed = storage.rehash(&data.digest, &mut |bytes| {
                    scrubbed.bytes += bytes;
                    throttle.take(bytes, &self.stop);
                    !self.stops()
                })?;
                if self.stops() {
                    self.note(storage, &mut progress)?;
                    return Ok(scrubbed);
                }
                // It may be gone by now.
                if let Some(hashed) = hashed {
                    scrubbed.blobs += 1;
                    if hashed != data.digest {
                        scrubbed.damaged.push(data.digest);
                        found(&data.digest);
                        if self.rules.quarantine {
                            storage.quarantine(&data.digest)?;
                        }
                    }
                }
                progress.after = Some(data.digest);
                if noted.elapsed() >= NOTE_EVERY {
                    self.note(storage, &mut progress)?;
                    noted = Instant::now();
                }
            }
        }
        progress.done = true;
        self.note(storage, &mut progress)?;
        scrubbed.whole = true;
        Ok(scrubbed)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn note(&self, storage: &dyn Collectable, progress: &mut Progress) -> StorageResult<()> {
        progress.notes += 1;
        let text = serde_json::to_vec(progress).expect("texts and numbers are JSON");
        storage.set_scrub_note(text)
    }
}

/// What was written down; what cannot be read is as good as nothing.
fn read(storage: &dyn Collectable) -> StorageResult<Option<Progress>> {
    let note = storage.scrub_note()?;
    Ok(note.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Keeps to a number of bytes in a second.
#[derive(Debug)]
struct Throttle {
    bytes_per_second: u64,
    began: Instant,
    taken: u64,
}

impl Throttle {
    fn new(bytes_per_second: u64) -> Throttle {
        Throttle {
            bytes_per_second: bytes_per_second.max(1),
            began: Instant::now(),
            taken: 0,
        }
    }

    /// When so many bytes are due, counted from the beginning.
    fn due(&self) -> Duration {
        let seconds = self.taken / self.bytes_per_second;
        let rest = self.taken % self.bytes_per_second;
        let nanos = u128::from(rest) * 1_000_000_000 / u128::from(self.bytes_per_second);
        Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    fn take(&mut self, bytes: u64, stop: &AtomicBool) {
        self.taken = self.taken.saturating_add(bytes);
        while !stop.load(Ordering::SeqCst) {
            let left = self.due().saturating_sub(self.began.elapsed());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_due_when_the_rate_says() {
        let mut throttle = Throttle::new(1000);
        let stop = AtomicBool::new(true);
        for (bytes, due) in [(500, 500), (500, 1000), (1, 1001), (9999, 11_000)] {
            throttle.take(bytes, &stop);
            assert_eq!(throttle.due(), Duration::from_millis(due));
        }
    }
}
