//! Which of the things that could still be of use a collection gives up: by kind, age and size, the longest unused first.
//!
//! ```text
//! index ─► candidates, by last use ─┐
//! index ─► who needs which layer and blob ─► what giving one up frees ─┴─► chosen ─► gc.rs: rows, then names, then files
//! ```
//!
//! What nothing needs is no question of choice, and goes in every collection. Choosing needs no lock: whatever is used
//! meanwhile gets a new time of use, and [`super::gc`] looks at that once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rusqlite::Connection;

use super::gc::PruneReport;
use crate::clock::stamp_file;
use crate::fs::{self, DiskSpace, Inodes, Lock};
use crate::images::ImageId;
use crate::index::parse;
use crate::layer::LayerId;
use crate::oci::{DiffId, Digest};
use crate::{Store, StoreError};

/// What can be given up although it could still be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheKind {
    /// Results of build steps, with the layers that only they need, and what failed steps left.
    Records,
    /// Images that lost their last name, with the layers and blobs that only they need.
    NamelessImages,
    /// All images that no lease keeps, names and all.
    Images,
    /// Directories that steps keep between builds.
    CacheMounts,
    /// Repositories that builds fetched into.
    GitMirrors,
    /// What is remembered of contexts' files.
    StatCaches,
}

impl CacheKind {
    /// All that a cache consists of: everything but images that have names.
    pub const CACHE: [CacheKind; 5] = [
        CacheKind::Records,
        CacheKind::NamelessImages,
        CacheKind::CacheMounts,
        CacheKind::GitMirrors,
        CacheKind::StatCaches,
    ];
}

/// How much may stay, in bytes; zero says nothing. With no limit at all everything that fits the rule goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The cache may always keep this much.
    pub reserved: u64,
    /// The cache may not have more than this.
    pub max_used: u64,
    /// This much of the disk is to be free.
    pub min_free: u64,
}

impl Limits {
    /// How much of a cache of `used` bytes may stay; `None` if nothing need.
    fn keep(&self, used: u64, disk: DiskSpace) -> Option<u64> {
        if *self == Limits::default() {
            return None;
        }
        let mut keep = self.max_used;
        let lacking = self.min_free.saturating_sub(disk.free);
        if lacking > 0 {
            let room = used.saturating_sub(lacking);
            keep = if keep == 0 { room } else { keep.min(room) };
        } else if keep == 0 && self.min_free > 0 {
            keep = used;
        }
        Some(keep.max(self.reserved))
    }
}

/// A label that an image has to have, or not to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelTest {
    /// Its key.
    pub key: String,
    /// Its value, where that matters.
    pub value: Option<String>,
    /// Whether it has to be absent.
    pub absent: bool,
}

/// What a collection may give up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Of which kinds.
    pub kinds: BTreeSet<CacheKind>,
    /// Only what has not been used for this long.
    pub unused_for: Duration,
    /// Only what one of these is the beginning of the name of; any, if there is none.
    pub ids: Vec<String>,
    /// Only images for which these hold, if there are any.
    pub labels: Vec<LabelTest>,
    /// How much of the whole cache may stay.
    pub limits: Limits,
}

/// A collection: its rules in their order, each on what the earlier ones left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collection {
    /// The rules.
    pub rules: Vec<Rule>,
    /// How long something that nothing needs any more stays all the same.
    pub garbage_age: Duration,
    /// Keep what this process has used, as what others have: for a collection in the middle of its life.
    pub spare_own: bool,
    /// Remove nothing, only tell.
    pub dry_run: bool,
}

/// A collection that happens by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Its rules.
    pub rules: Vec<Rule>,
    /// How long after one collection there is no other.
    pub interval: Duration,
}

/// Something that may be given up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Candidate {
    Record([u8; 32]),
    /// By its lease.
    FailedStep(String),
    Image {
        id: ImageId,
        named: bool,
    },
    CacheMount(String),
    GitMirror(String),
    StatCache(String),
}

struct Aged {
    last_used: i64,
    candidate: Candidate,
    /// What it may be called by, for [`Rule::ids`].
    names: Vec<String>,
    /// Bytes that are its own: zero for what only refers to layers and blobs.
    bytes: u64,
}

impl Store {
    /// Gives up what the rules say, and everything that nothing needs. Other processes' builds may go on meanwhile.
    pub fn collect(&self, collection: &Collection) -> Result<PruneReport, StoreError> {
        self.forgive_clock()?;
        let live = self.sessions.oldest_live()?.min(self.spared(collection)?);
        let chosen = self.choose(&collection.rules, live)?;
        match self.remove(&chosen, collection) {
            Err(error) if error.is_full() && !collection.dry_run => {
                self.remove_on_full_disk(&chosen, collection)
            }
            removed => removed,
        }
    }

    /// What was used since then is not to go for this process's sake.
    pub(super) fn spared(&self, collection: &Collection) -> Result<i64, StoreError> {
        Ok(match collection.spare_own {
            true => self.sessions.fresh_since()?,
            false => i64::MAX,
        })
    }

    /// Collects by a policy, unless another process is at it or was within the interval; tells whether it did. Layers are
    /// measured only where a limit may have been passed.
    pub fn collect_if_due(&self, policy: &Policy) -> Result<Option<PruneReport>, StoreError> {
        let stamp = self.root.join("collected");
        let is_recent = || -> Result<bool, StoreError> {
            let interval = i64::try_from(policy.interval.as_micros()).unwrap_or(i64::MAX);
            let now = self.clock().now_micros();
            // One from the future is of a clock that was set back, and says nothing.
            let last = fs::modified_micros(&stamp)?;
            Ok(last.is_some_and(|last| last <= now && now - last < interval))
        };
        if is_recent()? {
            return Ok(None);
        }
        let Some(_alone) = Lock::try_exclusive(&self.root.join("locks/collection"))? else {
            return Ok(None);
        };
        if is_recent()? {
            return Ok(None);
        }
        // First, so that one that fails is not begun again by every command.
        fs::write_atomic(&self.root.join("tmp"), &stamp, b"")?;
        stamp_file(&stamp, self.clock().now_micros())?;
        let mut rules = policy.rules.clone();
        let bound = self.cache_bytes_at_most()?;
        let disk = self.disk()?;
        rules.retain(|rule| {
            rule.limits
                .keep(bound, disk)
                .is_none_or(|keep| bound > keep)
        });
        let collection = Collection {
            rules,
            spare_own: true,
            ..Collection::default()
        };
        self.collect(&collection).map(Some)
    }

    /// Size and free space of the disk that the store is on.
    pub fn disk(&self) -> Result<DiskSpace, StoreError> {
        Ok(fs::disk_space(&self.root)?)
    }

    /// An upper bound of what the cache takes that costs no look at layers: their files, each rounded up to a page.
    pub fn cache_bytes_at_most(&self) -> Result<u64, StoreError> {
        const PAGE: i64 = 4096;
        let rows = self.index.read(|c| {
            c.query_row(
                "SELECT (SELECT ifnull(sum(bytes + ?1 * (entries + 2)), 0) FROM layers)
                      + (SELECT ifnull(sum(size + ?1), 0) FROM blobs)",
                [PAGE],
                |row| row.get::<_, i64>(0),
            )
        })?;
        Ok(rows.cast_unsigned() + self.cache_folders_bytes()?)
    }

    /// What those parts of the cache take that are files of their own.
    fn cache_folders_bytes(&self) -> Result<u64, StoreError> {
        let mut seen = Inodes::new();
        let mut bytes = 0;
        for folder in [
            self.cache_mounts_path(),
            self.mirrors_path(),
            self.stat_caches_path(),
        ] {
            for name in fs::list(&folder)? {
                bytes += fs::disk_usage(&folder.join(name), &mut seen)?;
            }
        }
        Ok(bytes)
    }

    fn choose(&self, rules: &[Rule], live: i64) -> Result<Vec<Candidate>, StoreError> {
        let now = self.clock().now_micros();
        let sized = rules.iter().any(|rule| rule.limits != Limits::default());
        let wanted = rules.iter().flat_map(|rule| &rule.kinds).copied().collect();
        let mut candidates = self.candidates(&wanted, live, sized)?;
        candidates.sort_by(|a, b| (a.last_used, &a.candidate).cmp(&(b.last_used, &b.candidate)));
        let mut heap = match sized {
            true => Some(self.heap(live)?),
            false => None,
        };
        let mut used = match &heap {
            Some(heap) => heap.cache_bytes() + self.cache_folders_bytes()?,
            None => 0,
        };
        let mut disk = self.disk()?;
        let mut chosen = Vec::new();
        for rule in rules {
            let age = i64::try_from(rule.unused_for.as_micros()).unwrap_or(i64::MAX);
            let before = live.min(now.saturating_sub(age));
            let keep = rule.limits.keep(used, disk);
            let mut rest = Vec::with_capacity(candidates.len());
            for aged in candidates {
                let is_enough = keep.is_some_and(|keep| used <= keep);
                if is_enough || aged.last_used >= before || !self.fits(rule, &aged)? {
                    rest.push(aged);
                    continue;
                }
                let mut freed = aged.bytes;
                if let Some(heap) = &mut heap {
                    freed += heap.give_up(&aged.candidate);
                }
                used = used.saturating_sub(freed);
                disk.free = disk.free.saturating_add(freed);
                chosen.push(aged.candidate);
            }
            candidates = rest;
        }
        Ok(chosen)
    }

    fn fits(&self, rule: &Rule, aged: &Aged) -> Result<bool, StoreError> {
        let kind = match aged.candidate {
            Candidate::Record(_) | Candidate::FailedStep(_) => CacheKind::Records,
            Candidate::Image { named: true, .. } => CacheKind::Images,
            Candidate::Image { .. } if rule.kinds.contains(&CacheKind::Images) => CacheKind::Images,
            Candidate::Image { .. } => CacheKind::NamelessImages,
            Candidate::CacheMount(_) => CacheKind::CacheMounts,
            Candidate::GitMirror(_) => CacheKind::GitMirrors,
            Candidate::StatCache(_) => CacheKind::StatCaches,
        };
        let begins = |id: &String| aged.names.iter().any(|name| name.starts_with(id.as_str()));
        if !rule.kinds.contains(&kind) || !(rule.ids.is_empty() || rule.ids.iter().any(begins)) {
            return Ok(false);
        }
        if rule.labels.is_empty() {
            return Ok(true);
        }
        let Candidate::Image { id, .. } = aged.candidate else {
            return Ok(false);
        };
        // One whose config cannot be read has no labels.
        let labels = match self.images.config(&id) {
            Ok(config) => config.config.labels,
            Err(_) => None,
        };
        let labels = labels.unwrap_or_default();
        Ok(rule.labels.iter().all(|test| {
            let found = labels.get(&test.key);
            let has = found.is_some_and(|found| test.value.as_ref().is_none_or(|v| v == found));
            has != test.absent
        }))
    }

    /// Everything of the kinds that no live process has used and no lease keeps.
    fn candidates(
        &self,
        kinds: &BTreeSet<CacheKind>,
        live: i64,
        sized: bool,
    ) -> Result<Vec<Aged>, StoreError> {
        let mut found = Vec::new();
        let refers = |last_used: i64, candidate: Candidate, names: Vec<String>| Aged {
            last_used,
            candidate,
            names,
            bytes: 0,
        };
        if kinds.contains(&CacheKind::Records) {
            let records = self.index.read(|c| {
                let mut statement =
                    c.prepare("SELECT key, last_used FROM records WHERE last_used < ?1")?;
                let rows = statement.query_map([live], |row| Ok((row.get(0)?, row.get(1)?)))?;
                rows.collect::<rusqlite::Result<Vec<([u8; 32], i64)>>>()
            })?;
            for (key, last_used) in records {
                let name = blake3::Hash::from_bytes(key).to_hex().to_string();
                found.push(refers(last_used, Candidate::Record(key), vec![name]));
            }
            let keep = self.failed_keep();
            for step in self.failed_steps()? {
                let failed = step.failed(&keep);
                if failed < live {
                    let names = vec![step.build.to_string()];
                    found.push(refers(failed, Candidate::FailedStep(step.lease), names));
                }
            }
        }
        if kinds.contains(&CacheKind::NamelessImages) || kinds.contains(&CacheKind::Images) {
            for image in self.index.read(images)? {
                let is_wanted = !image.named || kinds.contains(&CacheKind::Images);
                if is_wanted && !image.leased && image.last_used < live {
                    let names = vec![image.id.to_string(), image.id.0.hex().to_owned()];
                    let candidate = Candidate::Image {
                        id: image.id,
                        named: image.named,
                    };
                    found.push(refers(image.last_used, candidate, names));
                }
            }
        }
        let mut seen = Inodes::new();
        let mut measure = |path: &std::path::Path| match sized {
            true => fs::disk_usage(path, &mut seen),
            false => Ok(0),
        };
        let is_old = |last_used: Option<i64>| last_used.is_none_or(|used| used < live);
        if kinds.contains(&CacheKind::CacheMounts) {
            for row in self.cache_mounts()? {
                if is_old(row.last_used) && self.is_cache_mount_free(&row.name)? {
                    found.push(Aged {
                        last_used: row.last_used.unwrap_or(0),
                        bytes: measure(&self.cache_mounts_path().join(&row.name))?,
                        names: vec![row.name.clone(), row.id],
                        candidate: Candidate::CacheMount(row.name),
                    });
                }
            }
        }
        if kinds.contains(&CacheKind::GitMirrors) {
            for row in self.mirrors()? {
                if is_old(row.last_used) && self.is_mirror_free(&row.name)? {
                    found.push(Aged {
                        last_used: row.last_used.unwrap_or(0),
                        bytes: measure(&self.mirrors_path().join(&row.name))?,
                        names: vec![row.name.clone()],
                        candidate: Candidate::GitMirror(row.name),
                    });
                }
            }
        }
        if kinds.contains(&CacheKind::StatCaches) {
            for (name, last_used) in self.stat_caches()? {
                if is_old(last_used) {
                    found.push(Aged {
                        last_used: last_used.unwrap_or(0),
                        bytes: measure(&self.stat_caches_path().join(&name))?,
                        names: vec![name.clone()],
                        candidate: Candidate::StatCache(name),
                    });
                }
            }
        }
        Ok(found)
    }

    fn heap(&self, live: i64) -> Result<Heap, StoreError> {
        let mut heap = self.index.read(|c| Heap::read(c, live))?;
        let mut seen = Inodes::new();
        for (name, &node) in &heap.by_name {
            let bytes = match (name.parse::<LayerId>(), name.parse::<Digest>()) {
                (Ok(id), _) => fs::disk_usage(&self.layer_path(&id), &mut seen)?,
                (_, Ok(digest)) => fs::disk_usage(&self.blobs.path(&digest), &mut seen)?,
                _ => 0,
            };
            heap.nodes[node].bytes = bytes;
        }
        heap.drop_garbage();
        Ok(heap)
    }
}

/// A layer or a blob.
#[derive(Default)]
struct Node {
    bytes: u64,
    /// How many need it: records, images, and of a blob the layers that it is a form of.
    pins: usize,
    /// A lease keeps it, or a live process has used it.
    held: bool,
    /// An image that has a name, or a lease, needs it: no part of the cache.
    kept: bool,
    gone: bool,
    /// Forms of a layer.
    children: Vec<usize>,
}

/// Who needs which layers and blobs.
#[derive(Default)]
struct Heap {
    nodes: Vec<Node>,
    by_name: BTreeMap<String, usize>,
    records: BTreeMap<[u8; 32], BTreeSet<usize>>,
    /// By their leases.
    failed_steps: BTreeMap<String, BTreeSet<usize>>,
    images: BTreeMap<ImageId, BTreeSet<usize>>,
}

struct ImageState {
    id: ImageId,
    last_used: i64,
    named: bool,
    leased: bool,
}

impl Heap {
    fn read(c: &Connection, live: i64) -> rusqlite::Result<Heap> {
        let mut heap = Heap::default();
        let mut by_diff_id: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut statement = c.prepare(
            "SELECT id, diff_id, last_used, EXISTS
               (SELECT 1 FROM lease_items WHERE kind = 'layer' AND name = layers.id
                  AND lease NOT GLOB 'failed:*') FROM layers",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, diff_id): (String, Option<String>) = (row.get(0)?, row.get(1)?);
            let node = heap.add(id.clone(), row.get::<_, i64>(2)? >= live, row.get(3)?);
            let unpacked = match parse::<LayerId>("layers.id", &id)? {
                LayerId::Unpacked(DiffId(digest)) => Some(digest.to_string()),
                LayerId::Built(_) => None,
            };
            let names: BTreeSet<String> = diff_id.into_iter().chain(unpacked).collect();
            for name in names {
                by_diff_id.entry(name).or_default().push(node);
            }
        }
        let mut statement = c.prepare(
            "SELECT digest, last_used, EXISTS
               (SELECT 1 FROM lease_items WHERE kind = 'blob' AND name = blobs.digest) FROM blobs",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            heap.add(row.get(0)?, row.get::<_, i64>(1)? >= live, row.get(2)?);
        }
        let mut forms: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        // What a compression made of a layer belongs to that.
        let mut statement = c.prepare(
            "SELECT diff_id, digest FROM compressed
             UNION SELECT rewritten.diff_id, digest FROM rewritten
               JOIN compressed ON compressed.diff_id = made",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (diff_id, digest): (String, String) = (row.get(0)?, row.get(1)?);
            if let Some(&blob) = heap.by_name.get(&digest) {
                for &layer in by_diff_id.get(&diff_id).into_iter().flatten() {
                    heap.nodes[layer].children.push(blob);
                    heap.nodes[blob].pins += 1;
                }
                forms.entry(diff_id).or_default().push(blob);
            }
        }
        let mut statement = c.prepare("SELECT key, layer FROM record_layers")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (key, layer): ([u8; 32], String) = (row.get(0)?, row.get(1)?);
            let node = heap.by_name.get(&layer);
            heap.records.entry(key).or_default().extend(node);
        }
        let mut statement = c.prepare(
            "SELECT lease, name FROM lease_items WHERE kind = 'layer' AND lease GLOB 'failed:*'",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (lease, layer): (String, String) = (row.get(0)?, row.get(1)?);
            let node = heap.by_name.get(&layer);
            heap.failed_steps.entry(lease).or_default().extend(node);
        }
        let mut statement = c.prepare("SELECT image, diff_id FROM image_layers")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let image = parse("image_layers.image", row.get_ref(0)?.as_str()?)?;
            let diff_id: String = row.get(1)?;
            let needed = heap.images.entry(image).or_default();
            needed.extend(by_diff_id.get(&diff_id).into_iter().flatten());
            needed.extend(forms.get(&diff_id).into_iter().flatten());
        }
        let mut statement = c.prepare("SELECT image, digest FROM image_blobs")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let image = parse("image_blobs.image", row.get_ref(0)?.as_str()?)?;
            let digest: String = row.get(1)?;
            let node = heap.by_name.get(&digest);
            heap.images.entry(image).or_default().extend(node);
        }
        let records = heap.records.values().chain(heap.failed_steps.values());
        for needed in records.chain(heap.images.values()) {
            for &node in needed {
                heap.nodes[node].pins += 1;
            }
        }
        for image in images(c)? {
            if image.named || image.leased {
                for node in heap.images.get(&image.id).into_iter().flatten() {
                    heap.nodes[*node].kept = true;
                }
            }
        }
        for node in 0..heap.nodes.len() {
            if heap.nodes[node].kept {
                for child in heap.nodes[node].children.clone() {
                    heap.nodes[child].kept = true;
                }
            }
        }
        Ok(heap)
    }

    fn add(&mut self, name: String, used: bool, leased: bool) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node {
            held: used || leased,
            kept: leased,
            ..Node::default()
        });
        self.by_name.insert(name, node);
        node
    }

    /// Bytes of what is here for the cache only.
    fn cache_bytes(&self) -> u64 {
        let cached = self.nodes.iter().filter(|node| !node.kept && !node.gone);
        cached.map(|node| node.bytes).sum()
    }

    /// What nothing needs goes whatever is chosen.
    fn drop_garbage(&mut self) {
        for node in 0..self.nodes.len() {
            self.drop_if_free(node);
        }
    }

    /// Bytes that go if this does.
    fn give_up(&mut self, candidate: &Candidate) -> u64 {
        let needed = match candidate {
            Candidate::Record(key) => self.records.remove(key),
            Candidate::FailedStep(lease) => self.failed_steps.remove(lease),
            Candidate::Image { id, .. } => self.images.remove(id),
            _ => None,
        };
        let mut freed = 0;
        for node in needed.into_iter().flatten() {
            self.nodes[node].pins -= 1;
            freed += self.drop_if_free(node);
        }
        freed
    }

    fn drop_if_free(&mut self, node: usize) -> u64 {
        let found = &mut self.nodes[node];
        if found.pins > 0 || found.held || found.gone {
            return 0;
        }
        found.gone = true;
        let mut freed = found.bytes;
        for child in std::mem::take(&mut found.children) {
            self.nodes[child].pins -= 1;
            freed += self.drop_if_free(child);
        }
        freed
    }
}

fn images(c: &Connection) -> rusqlite::Result<Vec<ImageState>> {
    let mut statement = c.prepare(
        "SELECT id, last_used, EXISTS (SELECT 1 FROM names WHERE image = images.id), EXISTS
           (SELECT 1 FROM lease_items WHERE kind = 'image' AND name = images.id)
         FROM images ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(ImageState {
            id: parse("images.id", row.get_ref(0)?.as_str()?)?,
            last_used: row.get(1)?,
            named: row.get(2)?,
            leased: row.get(3)?,
        })
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests;
