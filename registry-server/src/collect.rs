//! Collecting garbage while the registry is used: what no tag needs, by rules, and what then nothing needs.
//!
//! ```text
//! announce ─► each repository: tags that no rule keeps ─► manifests that nothing reaches ─► links that none names
//!          └► all data: what no link stands for
//! ```
//!
//! It is the same on every [`Collectable`] storage. What is young is kept, so that a push keeps what it has so far;
//! what somebody relies on since the announcement is kept, too (`docs/design/0006-registry-storage.md`).
//! When in doubt something is kept: every string of a manifest that is a digest counts as a reference.

mod memory;
mod retention;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;
use store::oci::Digest;

use self::memory::{Memory, Named};
use crate::immutable::{ImmutableRule, is_immutable};
use crate::routes::RepositoryName;
use crate::storage::collectable::{Announcement, Collectable, FoundLink, FoundTag, Garbage};
use crate::storage::{StorageError, StorageResult};

pub use retention::{Keep, Retention, RetentionError};

/// Data that is found to be garbage is removed when there is so much of it.
const DATA_BATCH: usize = 1024;

/// Repositories that are listed at once.
const PAGE: usize = 1000;

/// What is collected.
#[derive(Clone, Debug)]
pub struct CollectRules {
    /// What is younger stays.
    pub grace: Duration,
    /// Whether manifests go that no tag reaches; otherwise every manifest keeps its blobs.
    pub untagged: bool,
    /// Which tags go.
    pub retention: Vec<Retention>,
    /// Which tags stay, whatever retention says. A server's own collections take those of its configuration.
    pub immutable: Arc<[ImmutableRule]>,
    /// Upload sessions that got no byte for this long go.
    pub upload_age_max: Duration,
    /// Only tell.
    pub dry_run: bool,
}

impl Default for CollectRules {
    fn default() -> CollectRules {
        CollectRules {
            // Longer than any push takes.
            grace: Duration::from_secs(24 * 60 * 60),
            untagged: false,
            retention: Vec::new(),
            immutable: Arc::default(),
            upload_age_max: Duration::from_secs(7 * 24 * 60 * 60),
            dry_run: false,
        }
    }
}

/// What was collected, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Tags that no rule kept.
    pub tags: u64,
    /// Manifests.
    pub manifests: u64,
    /// Links of repositories to blobs.
    pub links: u64,
    /// Data of blobs and manifests.
    pub blobs: u64,
    /// Bytes of that data.
    pub bytes: u64,
    /// Upload sessions.
    pub uploads: u64,
    /// Manifests that cannot be read: their repositories keep all their blobs.
    pub damaged: Vec<String>,
}

/// Why a collection did not end well; what it has removed by then was garbage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// Another runs, in this process or another.
    #[error("another collection of this registry is running")]
    Running,
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Collects garbage.
///
/// # Errors
/// [`CollectError`]
pub fn collect(storage: &dyn Collectable, rules: &CollectRules) -> Result<Collected, CollectError> {
    collect_telling(storage, rules, &mut |_| {})
}

/// The same, telling of each tag and manifest that goes, or would.
pub(crate) fn collect_telling(
    storage: &dyn Collectable,
    rules: &CollectRules,
    tell: &mut dyn FnMut(&Garbage),
) -> Result<Collected, CollectError> {
    // Who only looks need not keep anybody from anything.
    let announcement = match rules.dry_run {
        true => None,
        false => Some(storage.announce()?.ok_or(CollectError::Running)?),
    };
    let mut collection = Collection {
        storage,
        announcement: announcement.as_deref(),
        rules,
        tell,
        now: SystemTime::now(),
        linked: HashSet::new(),
        done: Collected::default(),
    };
    let mut last = None;
    loop {
        let page = storage.repositories(last.as_deref(), PAGE)?;
        for name in &page {
            collection.repository(name)?;
        }
        match page.last() {
            Some(name) if page.len() == PAGE => last = Some(name.as_str().to_owned()),
            _ => break,
        }
    }
    collection.data()?;
    if !rules.dry_run {
        collection.done.uploads = storage.purge_uploads(rules.upload_age_max)?;
    }
    Ok(collection.done)
}

struct Collection<'a> {
    storage: &'a dyn Collectable,
    /// `None` of one that only tells.
    announcement: Option<&'a (dyn Announcement + 'a)>,
    rules: &'a CollectRules,
    tell: &'a mut dyn FnMut(&Garbage),
    now: SystemTime,
    /// Data that a link stands for, by the first bytes of its digest: two that share them are both kept.
    linked: HashSet<[u8; 16]>,
    done: Collected,
}

/// A manifest, as far as a collection looks into it.
struct Node {
    link: FoundLink,
    named: Named,
}

impl Collection<'_> {
    fn is_young(&self, made: SystemTime) -> bool {
        // What was made after the beginning is as young as can be.
        let age = self.now.duration_since(made).unwrap_or_default();
        age < self.rules.grace
    }

    fn repository(&mut self, name: &RepositoryName) -> StorageResult<()> {
        let recalled = self.storage.recall(name)?;
        let known = recalled.as_deref().and_then(Memory::read);
        let known = known.unwrap_or_else(Memory::new);
        let mut seen = Memory::new();
        let links = self.storage.manifest_links(name)?;
        let tags = self.storage.tag_links(name, &known.tags)?;
        for tag in &tags {
            if let (Some(digest), Some(mark)) = (tag.digest, &tag.mark) {
                seen.tags.insert(tag.tag.clone(), (mark.clone(), digest));
            }
        }
        let mut roots = self.tags(name, &tags, &links)?;
        let damaged_before = self.done.damaged.len();
        let mut nodes = BTreeMap::new();
        for link in links {
            let named = match known.manifests.get(&link.digest) {
                Some(named) => Some(named.clone()),
                None => self.named(name, &link.digest)?,
            };
            if let Some(named) = &named
                && self.storage.remembers()
            {
                seen.manifests.insert(link.digest, named.clone());
            }
            if !self.rules.untagged || self.is_young(link.made) {
                roots.insert(link.digest);
            }
            let named = named.unwrap_or_default();
            nodes.insert(link.digest, Node { link, named });
        }
        if self.storage.remembers() && !self.rules.dry_run && seen != known {
            self.storage.remember(name, seen.write())?;
        }
        let reached = reach(&nodes, roots);
        let mut named: BTreeSet<Digest> = BTreeSet::new();
        let mut garbage = Vec::new();
        for (digest, node) in &nodes {
            if reached.contains(digest) {
                named.extend(&node.named.names);
                self.keep(&node.link.stored);
            } else {
                let manifest = Garbage::Manifest(name.clone(), *digest, node.named.subject);
                garbage.push((manifest, node.link.stored));
            }
        }
        // What an unreadable manifest names is not known.
        let is_damaged = self.done.damaged.len() > damaged_before;
        for link in self.storage.blob_links(name)? {
            if is_damaged || named.contains(&link.digest) || self.is_young(link.made) {
                self.keep(&link.stored);
            } else {
                garbage.push((Garbage::Link(name.clone(), link.digest), link.stored));
            }
        }
        for ((garbage, stored), removed) in garbage.iter().zip(self.remove(&garbage)?) {
            match (removed, garbage) {
                // What stays keeps its data.
                (false, _) => self.keep(stored),
                (true, Garbage::Manifest(..)) => {
                    self.done.manifests += 1;
                    (self.tell)(garbage);
                }
                (true, _) => self.done.links += 1,
            }
        }
        Ok(())
    }

    /// Removes the tags that rules say so of, and returns what the others are on.
    fn tags(
        &mut self,
        name: &RepositoryName,
        tags: &[FoundTag],
        links: &[FoundLink],
    ) -> StorageResult<BTreeSet<Digest>> {
        let pulled: BTreeMap<Digest, SystemTime> = links
            .iter()
            .filter_map(|link| Some((link.digest, link.pulled?)))
            .collect();
        let gone = retention::not_kept(&self.rules.retention, name, tags, &pulled, self.now);
        let mut garbage = Vec::new();
        let mut roots = BTreeSet::new();
        for FoundTag {
            tag, digest, made, ..
        } in tags
        {
            let goes = match digest {
                Some(_) => gone.contains(tag) && !is_immutable(&self.rules.immutable, name, tag),
                None => !self.is_young(*made),
            };
            if goes {
                garbage.push((Garbage::Tag(name.clone(), tag.clone(), *digest), *digest));
            } else {
                roots.extend(digest);
            }
        }
        for ((garbage, digest), removed) in garbage.iter().zip(self.remove(&garbage)?) {
            match removed {
                // It was moved meanwhile, or is about to be.
                false => roots.extend(digest),
                // Of one that was removed long ago only the remains go.
                true if digest.is_none() => {}
                true => {
                    self.done.tags += 1;
                    (self.tell)(garbage);
                }
            }
        }
        Ok(roots)
    }

    /// What a manifest names; `None` of one that cannot be read.
    fn named(&mut self, name: &RepositoryName, digest: &Digest) -> StorageResult<Option<Named>> {
        let manifest = match self.storage.manifest(name, digest) {
            Ok(Some(manifest)) => manifest,
            // A link to nothing.
            Ok(None) => return Ok(None),
            Err(StorageError::Damaged { .. }) => {
                self.done.damaged.push(format!("{name}@{digest}"));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Ok(value) = serde_json::from_slice::<Value>(manifest.bytes()) else {
            self.done.damaged.push(format!("{name}@{digest}"));
            return Ok(None);
        };
        let subject = value["subject"]["digest"].as_str();
        let mut named = Named {
            subject: subject.and_then(|text| text.parse().ok()),
            names: BTreeSet::new(),
        };
        digests_in(&value, &mut named.names);
        Ok(Some(named))
    }

    fn keep(&mut self, stored: &Digest) {
        self.linked.insert(short(stored));
    }

    /// Removes garbage, unless this one only tells; says of each whether it went.
    fn remove<T>(&self, garbage: &[(Garbage, T)]) -> StorageResult<Vec<bool>> {
        let Some(announcement) = self.announcement else {
            return Ok(vec![true; garbage.len()]);
        };
        let mut removed = Vec::with_capacity(garbage.len());
        for batch in garbage.chunks(announcement.batch()) {
            let batch: Vec<Garbage> = batch.iter().map(|(garbage, _)| garbage.clone()).collect();
            removed.extend(announcement.remove(&batch)?);
        }
        Ok(removed)
    }

    fn data(&mut self) -> StorageResult<()> {
        let mut garbage = Vec::new();
        let storage = self.storage;
        storage.each_data(&mut |data| {
            if self.is_young(data.made) || self.linked.contains(&short(&data.digest)) {
                return Ok(());
            }
            garbage.push((Garbage::Data(data.digest), data.size));
            if garbage.len() == DATA_BATCH {
                self.remove_data(&std::mem::take(&mut garbage))?;
            }
            Ok(())
        })?;
        self.remove_data(&garbage)
    }

    fn remove_data(&mut self, garbage: &[(Garbage, u64)]) -> StorageResult<()> {
        for ((_, size), removed) in garbage.iter().zip(self.remove(garbage)?) {
            if removed {
                self.done.blobs += 1;
                self.done.bytes += size;
            }
        }
        Ok(())
    }
}

fn short(digest: &Digest) -> [u8; 16] {
    let mut start = [0; 16];
    start.copy_from_slice(&digest.bytes()[..16]);
    start
}

/// Everything that `roots` lead to: what manifests name, and what refers to them.
fn reach(nodes: &BTreeMap<Digest, Node>, roots: BTreeSet<Digest>) -> BTreeSet<Digest> {
    let mut referrers: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for (digest, node) in nodes {
        if let Some(subject) = node.named.subject {
            referrers.entry(subject).or_default().push(*digest);
        }
    }
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<Digest> = roots.into_iter().collect();
    while let Some(digest) = waiting.pop() {
        if !reached.insert(digest) {
            continue;
        }
        if let Some(node) = nodes.get(&digest) {
            waiting.extend(&node.named.names);
        }
        waiting.extend(referrers.get(&digest).into_iter().flatten());
    }
    reached
}

/// Every string that is a digest, wherever it is.
fn digests_in(value: &Value, found: &mut BTreeSet<Digest>) {
    // A stack of our own: how deep it goes is the manifest's choice.
    let mut waiting = vec![value];
    while let Some(value) = waiting.pop() {
        match value {
            Value::String(text) => found.extend(text.parse::<Digest>()),
            Value::Array(values) => waiting.extend(values),
            Value::Object(fields) => waiting.extend(fields.values()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// What a registry holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Repositories.
    pub repositories: u64,
    /// Tags in them.
    pub tags: u64,
    /// Manifests in them; one that several have counts in each.
    pub manifests: u64,
    /// Blobs in them, counted in the same way.
    pub links: u64,
    /// Data of blobs and manifests, each once.
    pub blobs: u64,
    /// Bytes of that data.
    pub bytes: u64,
}

/// Counts what a registry holds.
pub fn totals(storage: &dyn Collectable) -> StorageResult<Totals> {
    let mut totals = Totals::default();
    let mut last: Option<String> = None;
    loop {
        let page = storage.repositories(last.as_deref(), PAGE)?;
        for name in &page {
            totals.repositories += 1;
            totals.tags += storage.tags(name)?.unwrap_or_default().len() as u64;
            totals.manifests += storage.manifest_links(name)?.len() as u64;
            totals.links += storage.blob_links(name)?.len() as u64;
        }
        match page.last() {
            Some(name) if page.len() == PAGE => last = Some(name.as_str().to_owned()),
            _ => break,
        }
    }
    storage.each_data(&mut |data| {
        totals.blobs += 1;
        totals.bytes += data.size;
        Ok(())
    })?;
    Ok(totals)
}

/// What a check of all data found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Data that is what its digest says.
    pub good: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Digests of data that is not.
    pub damaged: Vec<Digest>,
}

/// Hashes all data again; what is damaged is set aside, if asked for, so that it can be pushed again.
pub fn verify(storage: &dyn Collectable, quarantine: bool) -> StorageResult<Verified> {
    let mut verified = Verified::default();
    storage.each_data(&mut |data| {
        // It may be gone by now.
        let Some(found) = storage.rehash(&data.digest, &mut |_| true)? else {
            return Ok(());
        };
        verified.bytes += data.size;
        if found == data.digest {
            verified.good += 1;
            return Ok(());
        }
        tracing::error!(digest = %data.digest, "data is damaged");
        verified.damaged.push(data.digest);
        if quarantine {
            storage.quarantine(&data.digest)?;
        }
        Ok(())
    })?;
    verified.damaged.sort_unstable();
    Ok(verified)
}
