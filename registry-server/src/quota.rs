//! How much repositories may hold together, and how much they do.
//!
//! A quota is of all repositories that its patterns describe; content that several of them have counts once, and so does what
//! another repository has, too. It is counted when it is first asked for and from then on kept by what goes through this
//! process. What others do (a collection, another server on the same storage) is seen when it is counted again: after ten
//! minutes, or before something is refused.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::oci::Digest;
use store::oci::pattern::matches;

use crate::error::{ApiError, ErrorCode};
use crate::routes::RepositoryName;
use crate::storage::{RegistryStorage, StorageResult};

/// How long a count is believed.
const COUNT_AGE_MAX: Duration = Duration::from_secs(10 * 60);

/// How long it is believed when it would refuse something.
const REFUSAL_AGE_MAX: Duration = Duration::from_secs(30);

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
}

impl Quotas {
    pub(crate) fn new(rules: &[QuotaRule]) -> Quotas {
        let quota = |rule: &QuotaRule| Quota {
            rule: rule.clone(),
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

    /// Counts content that the repository is about to have, if it fits. Blocks.
    pub(crate) fn add(
        &self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
        digest: &Digest,
        bytes: u64,
    ) -> StorageResult<Result<(), OverQuota>> {
        for quota in self.about(name) {
            let mut used = quota.used(storage, bytes)?;
            let Some(used) = used
                .as_mut()
                .filter(|used| !used.content.contains_key(digest))
            else {
                continue;
            };
            if let Err(over) = used.fits(bytes, &quota.rule) {
                return Ok(Err(over));
            }
            used.content.insert(*digest, bytes);
            used.bytes += bytes;
        }
        Ok(Ok(()))
    }

    /// Something was removed from a repository, or everywhere.
    pub(crate) fn removed(&self, name: Option<&RepositoryName>) {
        for quota in &self.0 {
            if name.is_none_or(|name| quota.rule.is_about(name)) {
                quota.stale.store(true, Ordering::Relaxed);
            }
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

impl From<OverQuota> for ApiError {
    fn from(over: OverQuota) -> ApiError {
        let OverQuota {
            patterns,
            quota,
            used,
            more,
        } = over;
        ApiError::with(
            ErrorCode::Denied,
            format!(
                "the quota of `{}` is {quota} bytes: {used} are used, and this takes {more} more",
                patterns.join("`, `")
            ),
        )
    }
}

impl Used {
    fn fits(&self, bytes: u64, rule: &QuotaRule) -> Result<(), OverQuota> {
        if self.bytes.saturating_add(bytes) <= rule.bytes {
            return Ok(());
        }
        Err(OverQuota {
            patterns: rule.repositories.clone(),
            quota: rule.bytes,
            used: self.bytes,
            more: bytes,
        })
    }
}

impl Quota {
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
        let mut used = Used {
            content: BTreeMap::new(),
            bytes: 0,
            counted: Instant::now(),
        };
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
                    used.content.insert(digest, size);
                    used.bytes += size;
                }
            }
            match names.last() {
                Some(name) if names.len() == PAGE => last = Some(name.clone()),
                _ => return Ok(used),
            }
        }
    }
}
