//! How much repositories may hold together, and how much they do.
//!
//! A quota is of all repositories that its patterns describe; content that several of them have counts once, and so does what
//! another repository has, too. It is counted when it is first asked for and from then on kept by what goes through this
//! process and by what other servers on the same storage say: whoever adds something leaves a note first ([`note`]), then reads
//! those of others, and goes on only if all fits. So of two who take the last room at once at most one gets it.
//!
//! ```text
//! fits what is known? ─► leave a note ─► read the notes ─► fits still? ─► goes on | takes the note back, refused
//! ```
//!
//! What others remove is seen when it is counted again: after ten minutes, or before something is refused.

mod note;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::oci::Digest;
use store::oci::pattern::matches;

use self::note::Note;
use crate::error::{ApiError, ErrorCode};
use crate::routes::RepositoryName;
use crate::storage::{RegistryStorage, StorageResult};

/// How long a count is believed.
const COUNT_AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// How long it is believed when it would refuse something.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(30);

/// How long after its note something may still be on its way into the storage.
const UNDER_WAY_MAX: Duration = Duration::from_secs(10 * 60);

/// How far the clocks of servers may be apart.
const SKEW_MAX: Duration = Duration::from_secs(2 * 60);

/// How long notes are kept: whoever counted before one was left reads it before counting again.
const NOTE_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// Repositories that are asked for at once.
const PAGE: usize = 1000;

/// How much repositories may hold together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaRule {
    /// Which, by pattern.
    pub repositories: Vec<String>,
    /// How many bytes.
    pub bytes: u64,
}

impl QuotaRule {
    fn is_about(&self, name: &RepositoryName) -> bool {
        let mut patterns = self.repositories.iter();
        patterns.any(|pattern| matches(pattern, name.as_str()))
    }
}

/// All quotas and what is known of their use.
#[derive(Debug, Default)]
pub(crate) struct Quotas(Vec<Quota>);

#[derive(Debug)]
struct Quota {
    rule: QuotaRule,
    /// Where its notes are.
    topic: String,
    /// `None` until it was counted.
    used: Mutex<Option<Used>>,
    /// Whether something was removed since.
    stale: AtomicBool,
}

#[derive(Debug)]
struct Used {
    content: BTreeMap<Digest, u64>,
    bytes: u64,
    counted: Instant,
    /// Notes from before this were read, in milliseconds since 1970.
    read_until: u64,
}

impl Quotas {
    pub(crate) fn new(rules: &[QuotaRule]) -> Quotas {
        let quota = |rule: &QuotaRule| Quota {
            rule: rule.clone(),
            topic: note::topic(rule),
            used: Mutex::default(),
            stale: AtomicBool::new(false),
        };
        Quotas(rules.iter().map(quota).collect())
    }

    /// The rules that it was made of.
    pub(crate) fn rules(&self) -> impl Iterator<Item = &QuotaRule> {
        self.0.iter().map(|quota| &quota.rule)
    }

    /// Whether any is about this repository.
    pub(crate) fn are_about(&self, name: &RepositoryName) -> bool {
        self.0.iter().any(|quota| quota.rule.is_about(name))
    }

    /// Whether `bytes` more would fit into the repository now, unless they are content that counts already. Blocks.
    pub(crate) fn check(
        &self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
        digest: Option<Digest>,
        bytes: u64,
    ) -> StorageResult<Result<(), OverQuota>> {
        for quota in self.about(name) {
            let used = quota.used(storage, bytes)?;
            if let Some(used) = used.as_ref()
                && digest.is_none_or(|digest| !used.content.contains_key(&digest))
                && let Err(over) = used.fits(bytes, &quota.rule)
            {
                return Ok(Err(over));
            }
        }
        Ok(Ok(()))
    }

    /// Counts content that the repository is about to have, if it fits, here and for other servers. Blocks.
    pub(crate) fn add(
        &self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
        digest: &Digest,
        bytes: u64,
    ) -> StorageResult<Result<(), OverQuota>> {
        let mut taken = Vec::new();
        for quota in self.about(name) {
            match quota.add(storage, digest, bytes)? {
                Ok(note) => taken.extend(note.map(|note| (quota, note))),
                Err(over) => {
                    // What it took of others is given back.
                    for (quota, note) in taken {
                        quota.stale.store(true, Ordering::Relaxed);
                        storage.drop_note(&quota.topic, &note.to_string())?;
                    }
                    return Ok(Err(over));
                }
            }
        }
        Ok(Ok(()))
    }

    /// Something was removed from a repository, or could not be added to it; where it is known, what. Blocks.
    pub(crate) fn removed(
        &self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
        digest: Option<&Digest>,
    ) -> StorageResult<()> {
        for quota in self.about(name) {
            quota.stale.store(true, Ordering::Relaxed);
            let notes = match digest {
                Some(_) => storage.notes(&quota.topic, "")?,
                None => Vec::new(),
            };
            let notes = notes.iter().filter_map(|text| Note::parse(text));
            for note in notes.filter(|note| Some(&note.digest) == digest) {
                storage.drop_note(&quota.topic, &note.to_string())?;
            }
        }
        Ok(())
    }

    /// Things may have been removed everywhere.
    pub(crate) fn collected(&self) {
        for quota in &self.0 {
            quota.stale.store(true, Ordering::Relaxed);
        }
    }

    fn about(&self, name: &RepositoryName) -> impl Iterator<Item = &Quota> {
        self.0.iter().filter(|quota| quota.rule.is_about(name))
    }
}

/// What does not fit where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OverQuota {
    patterns: Vec<String>,
    quota: u64,
    used: u64,
    more: u64,
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OverQuota {
            patterns,
            quota,
            used,
            more,
        } = self;
        write!(
            f,
            "the quota of `{}` is {quota} bytes: {used} are used, and this takes {more} more",
            patterns.join("`, `")
        )
    }
}

impl From<OverQuota> for ApiError {
    fn from(over: OverQuota) -> ApiError {
        ApiError::with(ErrorCode::Denied, over.to_string())
    }
}

impl Used {
    fn insert(&mut self, digest: Digest, bytes: u64) {
        if self.content.insert(digest, bytes).is_none() {
            self.bytes = self.bytes.saturating_add(bytes);
        }
    }

    fn fits(&self, bytes: u64, rule: &QuotaRule) -> Result<(), OverQuota> {
        if self.bytes.saturating_add(bytes) <= rule.bytes {
            return Ok(());
        }
        Err(self.over(bytes, rule))
    }

    fn over(&self, bytes: u64, rule: &QuotaRule) -> OverQuota {
        OverQuota {
            patterns: rule.repositories.clone(),
            quota: rule.bytes,
            used: self.bytes,
            more: bytes,
        }
    }
}

impl Quota {
    /// Takes room for content, with a note unless it counts already.
    fn add(
        &self,
        storage: &dyn RegistryStorage,
        digest: &Digest,
        bytes: u64,
    ) -> StorageResult<Result<Option<Note>, OverQuota>> {
        let read_until = match &*self.used(storage, bytes)? {
            Some(used) if used.content.contains_key(digest) => return Ok(Ok(None)),
            Some(used) => match used.fits(bytes, &self.rule) {
                Ok(()) => used.read_until,
                Err(over) => return Ok(Err(over)),
            },
            None => return Ok(Ok(None)),
        };
        // Without the lock: others of this process go on meanwhile.
        let note = Note::new(*digest, bytes);
        storage.leave_note(&self.topic, &note.to_string())?;
        let notes = storage.notes(&self.topic, &note::from(read_until))?;
        let mut used = self.used(storage, 0)?;
        let Some(used) = used.as_mut() else {
            return Ok(Ok(Some(note)));
        };
        let known = used.content.len();
        let others = notes.iter().filter_map(|text| Note::parse(text));
        for other in others.filter(|other| *other != note) {
            used.insert(other.digest, other.bytes);
        }
        if used.content.len() > known {
            // Others may be refused: before this count refuses anything itself it is made again.
            self.stale.store(true, Ordering::Relaxed);
        }
        used.read_until = used
            .read_until
            .max(note.time.saturating_sub(millis(SKEW_MAX)));
        used.insert(*digest, bytes);
        if used.bytes <= self.rule.bytes {
            return Ok(Ok(Some(note)));
        }
        used.content.remove(digest);
        used.bytes = used.bytes.saturating_sub(bytes);
        let over = used.over(bytes, &self.rule);
        storage.drop_note(&self.topic, &note.to_string())?;
        Ok(Err(over))
    }

    /// The count, made anew if it is too old, or would refuse `bytes` and may be wrong.
    fn used(
        &self,
        storage: &dyn RegistryStorage,
        bytes: u64,
    ) -> StorageResult<MutexGuard<'_, Option<Used>>> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let good = used.as_ref().is_some_and(|used| {
            let age = used.counted.elapsed();
            let sure = age < REFUSAL_AGE_MAX && !self.stale.load(Ordering::Relaxed);
            age < COUNT_AGE_MAX && (sure || used.fits(bytes, &self.rule).is_ok())
        });
        if !good {
            self.stale.store(false, Ordering::Relaxed);
            let known = used.take().map(|used| used.content).unwrap_or_default();
            *used = Some(self.count(storage, &known)?);
        }
        Ok(used)
    }

    /// `known` are sizes that need not be asked for.
    fn count(
        &self,
        storage: &dyn RegistryStorage,
        known: &BTreeMap<Digest, u64>,
    ) -> StorageResult<Used> {
        let now = note::now();
        let mut used = Used {
            content: BTreeMap::new(),
            bytes: 0,
            counted: Instant::now(),
            read_until: now.saturating_sub(millis(SKEW_MAX)),
        };
        // Read before anything is counted: what is noted afterwards is read by whoever adds next.
        let under_way = self.under_way(storage, now)?;
        let mut last: Option<RepositoryName> = None;
        loop {
            let names = storage.repositories(last.as_ref().map(RepositoryName::as_str), PAGE)?;
            for name in names.iter().filter(|name| self.rule.is_about(name)) {
                for digest in storage.contents(name)? {
                    if used.content.contains_key(&digest) {
                        continue;
                    }
                    let size = match known.get(&digest) {
                        Some(size) => Some(*size),
                        None => storage.data_size(&digest)?,
                    };
                    let size = size.unwrap_or(0);
                    used.insert(digest, size);
                }
            }
            match names.last() {
                Some(name) if names.len() == PAGE => last = Some(name.clone()),
                _ => break,
            }
        }
        for note in under_way {
            if !used.content.contains_key(&note.digest) {
                used.insert(note.digest, note.bytes);
            }
        }
        Ok(used)
    }

    /// What was noted lately and may not be in the storage yet. Old notes go.
    fn under_way(&self, storage: &dyn RegistryStorage, now: u64) -> StorageResult<Vec<Note>> {
        let notes = storage.notes(&self.topic, "")?;
        let mut under_way = Vec::new();
        for text in notes {
            let note = Note::parse(&text);
            let age = note.as_ref().map(|note| now.saturating_sub(note.time));
            match note {
                Some(note) if age < Some(millis(UNDER_WAY_MAX)) => under_way.push(note),
                _ if age < Some(millis(NOTE_AGE_MAX)) && age.is_some() => {}
                _ => storage.drop_note(&self.topic, &text)?,
            }
        }
        Ok(under_way)
    }
}

/// In milliseconds.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
