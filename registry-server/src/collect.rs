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

mod retention;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::Value;
use store::oci::Digest;

use crate::routes::RepositoryName;
use crate::storage::collectable::{Collectable, FoundLink, Garbage};
use crate::storage::{StorageError, StorageResult, TagCondition, TagRemoval};

pub use retention::{Keep, Retention, RetentionError};

/// Things that are removed under one lock: short enough that no push waits noticeably.
const BATCH: usize = 64;

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
pub fn collect(storage: &dyn Collectable, rules: &CollectRules) -> Result<Collected, CollectError> {
    let Some(announcement) = storage.announce()? else {
        return Err(CollectError::Running);
    };
    let mut collection = Collection {
        storage,
        rules,
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
    drop(announcement);
    Ok(collection.done)
}

struct Collection<'a> {
    storage: &'a dyn Collectable,
    rules: &'a CollectRules,
    now: SystemTime,
    /// Data that a link stands for, by the first bytes of its digest: two that share them are both kept.
    linked: HashSet<[u8; 16]>,
    done: Collected,
}

/// A manifest, as far as a collection looks into it.
struct Node {
    link: FoundLink,
    /// Every digest in it.
    names: BTreeSet<Digest>,
    subject: Option<Digest>,
}

impl Collection<'_> {
    fn is_young(&self, made: SystemTime) -> bool {
        // What was made after the beginning is as young as can be.
        let age = self.now.duration_since(made).unwrap_or_default();
        age < self.rules.grace
    }

    fn repository(&mut self, name: &RepositoryName) -> StorageResult<()> {
        let mut roots = self.tags(name)?;
        let damaged_before = self.done.damaged.len();
        let mut nodes = BTreeMap::new();
        for link in self.storage.manifest_links(name)? {
            let node = self.node(name, link)?;
            if !self.rules.untagged || self.is_young(link.made) {
                roots.insert(link.digest);
            }
            nodes.insert(link.digest, node);
        }
        let reached = reach(&nodes, roots);
        let mut named: BTreeSet<Digest> = BTreeSet::new();
        let mut garbage = Vec::new();
        for (digest, node) in &nodes {
            if reached.contains(digest) {
                named.extend(&node.names);
                self.keep(&node.link.stored);
            } else {
                let manifest = Garbage::Manifest(name.clone(), *digest, node.subject);
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
        for batch in garbage.chunks(BATCH) {
            self.remove(batch)?;
        }
        Ok(())
    }

    /// Removes the tags that rules say so of, and returns what the others are on.
    fn tags(&mut self, name: &RepositoryName) -> StorageResult<BTreeSet<Digest>> {
        let mut tags = Vec::new();
        for tag in self.storage.tags(name)?.unwrap_or_default() {
            let made = self.storage.tag_made(name, &tag)?;
            if let (Some(made), Some(digest)) = (made, self.storage.tag(name, &tag)?) {
                tags.push((tag, made, digest));
            }
        }
        let gone = retention::not_kept(&self.rules.retention, name, &tags, self.now);
        let mut roots = BTreeSet::new();
        for (tag, _, digest) in &tags {
            if gone.contains(tag) {
                // One that was moved meanwhile stays.
                let removed = self.rules.dry_run
                    || self
                        .storage
                        .remove_tag(name, tag, &TagCondition::on(*digest))?
                        == TagRemoval::Removed;
                if removed {
                    self.done.tags += 1;
                    continue;
                }
            }
            roots.insert(*digest);
        }
        Ok(roots)
    }

    fn node(&mut self, name: &RepositoryName, link: FoundLink) -> StorageResult<Node> {
        let mut node = Node {
            link,
            names: BTreeSet::new(),
            subject: None,
        };
        let manifest = match self.storage.manifest(name, &link.digest) {
            Ok(Some(manifest)) => manifest,
            // A link to nothing.
            Ok(None) => return Ok(node),
            Err(StorageError::Damaged { .. }) => {
                self.done.damaged.push(format!("{name}@{}", link.digest));
                return Ok(node);
            }
            Err(error) => return Err(error),
        };
        match serde_json::from_slice::<Value>(manifest.bytes()) {
            Ok(value) => {
                let subject = value["subject"]["digest"].as_str();
                node.subject = subject.and_then(|text| text.parse().ok());
                digests_in(&value, &mut node.names);
            }
            Err(_) => self.done.damaged.push(format!("{name}@{}", link.digest)),
        }
        Ok(node)
    }

    fn keep(&mut self, stored: &Digest) {
        self.linked.insert(short(stored));
    }

    /// Removes a batch; what stays keeps its data.
    fn remove(&mut self, batch: &[(Garbage, Digest)]) -> StorageResult<()> {
        let removed = if self.rules.dry_run {
            vec![true; batch.len()]
        } else {
            let garbage: Vec<Garbage> = batch.iter().map(|(garbage, _)| garbage.clone()).collect();
            self.storage.remove_garbage(&garbage)?
        };
        for ((garbage, stored), removed) in batch.iter().zip(removed) {
            match (removed, garbage) {
                (false, _) => self.keep(stored),
                (true, Garbage::Manifest(..)) => self.done.manifests += 1,
                (true, Garbage::Link(..)) => self.done.links += 1,
                (true, Garbage::Data(_)) => self.done.blobs += 1,
            }
        }
        Ok(())
    }

    fn data(&mut self) -> StorageResult<()> {
        let mut garbage = Vec::new();
        let storage = self.storage;
        storage.each_data(&mut |data| {
            if self.is_young(data.made) || self.linked.contains(&short(&data.digest)) {
                return Ok(());
            }
            garbage.push((Garbage::Data(data.digest), data.size));
            if garbage.len() == BATCH {
                self.remove_data(&std::mem::take(&mut garbage))?;
            }
            Ok(())
        })?;
        self.remove_data(&garbage)
    }

    fn remove_data(&mut self, batch: &[(Garbage, u64)]) -> StorageResult<()> {
        let garbage: Vec<Garbage> = batch.iter().map(|(garbage, _)| garbage.clone()).collect();
        let removed = match self.rules.dry_run {
            true => vec![true; batch.len()],
            false => self.storage.remove_garbage(&garbage)?,
        };
        for ((_, size), _) in batch.iter().zip(removed).filter(|(_, removed)| *removed) {
            self.done.blobs += 1;
            self.done.bytes += size;
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
        if let Some(subject) = node.subject {
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
            waiting.extend(&node.names);
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
        let Some(found) = storage.rehash(&data.digest)? else {
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
