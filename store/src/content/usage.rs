//! `du`: what the store takes on disk, by what it is for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::fs::{self, Inodes};
use crate::layer::LayerId;
use crate::oci::Digest;
use crate::{Store, StoreError};

/// The longest name of a container that is shown.
const NAME_BYTES_MAX: u64 = 4096;

/// What disk space is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKind {
    /// Layers of images.
    Images,
    /// What containers wrote, and what is known of them.
    Containers,
    /// Volumes.
    Volumes,
    /// Layers that only cache records keep, or nothing.
    BuildCache,
    /// Cache records: pages of the index.
    CacheRecords,
    /// Directories that steps keep between builds.
    CacheMounts,
    /// Bare repositories that builds fetched into.
    GitMirrors,
    /// What is remembered of contexts' files.
    StatCaches,
    /// Configs, manifests and compressed layers.
    Blobs,
    /// What is being made, or was left by a killed process.
    Temporary,
    /// What builds did: their journals.
    History,
    /// The index, without the cache records in it.
    Index,
    /// Folders themselves, lock files, and what is not longshore's.
    Other,
}

impl UsageKind {
    /// All of them, in order.
    pub const ALL: [UsageKind; 13] = [
        UsageKind::Images,
        UsageKind::Containers,
        UsageKind::Volumes,
        UsageKind::BuildCache,
        UsageKind::CacheRecords,
        UsageKind::CacheMounts,
        UsageKind::GitMirrors,
        UsageKind::StatCaches,
        UsageKind::Blobs,
        UsageKind::Temporary,
        UsageKind::History,
        UsageKind::Index,
        UsageKind::Other,
    ];
}

/// One thing that takes space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageItem {
    /// What it is for.
    pub kind: UsageKind,
    /// A layer's name, a blob's digest, or a file's name.
    pub name: String,
    /// What people call it, where that is something else: the id of a cache mount.
    pub alias: String,
    /// Bytes on disk; what it shares by hard link with an earlier item is counted there.
    pub bytes: u64,
    /// When it was last used, in microseconds since 1970, where that is known.
    pub last_used: Option<i64>,
    /// Whether [`Store::prune`] with everything allowed would remove it now. Never a container or volume: who runs and uses
    /// them is not known here.
    pub reclaimable: bool,
}

/// Sums for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// Which kind.
    pub kind: UsageKind,
    /// How many: images, containers, volumes, cache records' layers, cache records, cache mounts, git repositories, stat caches, blobs,
    /// temporary entries, builds, files.
    pub count: u64,
    /// How many of them are in use: kept by a lease, or used by a live process.
    pub in_use: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Those of them that [`Store::prune`] with everything allowed would free now.
    pub reclaimable: u64,
}

/// What the store takes on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// One row per kind, in the order of [`UsageKind`].
    pub rows: Vec<UsageRow>,
    /// Everything that was counted, by kind and name.
    pub items: Vec<UsageItem>,
}

impl Usage {
    /// Bytes on disk altogether.
    pub fn bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.bytes).sum()
    }

    /// Bytes that [`Store::prune`] with everything allowed would free now.
    pub fn reclaimable(&self) -> u64 {
        self.rows.iter().map(|row| row.reclaimable).sum()
    }
}

/// A row of the query over layers or blobs.
struct Counted {
    name: String,
    last_used: i64,
    /// Whether an image needs it.
    in_image: bool,
    /// Whether a lease keeps it, itself or through an image.
    leased: bool,
}

impl Store {
    /// Measures the store: real bytes on disk, each inode once. All of it is some item's.
    pub fn du(&self) -> Result<Usage, StoreError> {
        let live = self.sessions.oldest_live()?;
        let mut measured = Measured::default();
        let mut layers = self.index.read(|c| counted(c, LAYERS))?;
        layers.sort_by_key(|layer| !layer.in_image);
        let layers_path = self.root.join("layers");
        for layer in layers {
            let kind = if layer.in_image {
                UsageKind::Images
            } else {
                UsageKind::BuildCache
            };
            let is_free = !layer.leased && layer.last_used < live;
            let path = layers_path.join(&layer.name);
            let item = measured.add(kind, layer.name, path)?;
            (item.last_used, item.reclaimable) = (Some(layer.last_used), is_free);
        }
        for name in fs::list(&layers_path)? {
            let path = layers_path.join(&name);
            if name.parse::<LayerId>().is_ok() && !measured.paths.contains(&path) {
                measured.add(UsageKind::BuildCache, name, path)?.reclaimable = true;
            }
        }
        for blob in self.index.read(|c| counted(c, BLOBS))? {
            let Ok(digest) = blob.name.parse::<Digest>() else {
                continue;
            };
            let is_free = !blob.leased && blob.last_used < live;
            let item = measured.add(UsageKind::Blobs, blob.name, self.blobs.path(&digest))?;
            (item.last_used, item.reclaimable) = (Some(blob.last_used), is_free);
        }
        for digest in self.blobs.list()? {
            let path = self.blobs.path(&digest);
            if !measured.paths.contains(&path) {
                let item = measured.add(UsageKind::Blobs, digest.to_string(), path)?;
                item.reclaimable = true;
            }
        }
        let is_old = |last_used: Option<i64>| last_used.is_none_or(|used| used < live);
        for row in self.cache_mounts()? {
            let is_free = is_old(row.last_used) && self.is_cache_mount_free(&row.name)?;
            let path = self.cache_mounts_path().join(&row.name);
            let item = measured.add(UsageKind::CacheMounts, row.name, path)?;
            (item.last_used, item.reclaimable) = (row.last_used, is_free);
            item.alias = row.id;
        }
        for row in self.mirrors()? {
            let is_free = is_old(row.last_used) && self.is_mirror_free(&row.name)?;
            let path = self.mirrors_path().join(&row.name);
            let item = measured.add(UsageKind::GitMirrors, row.name, path)?;
            (item.last_used, item.reclaimable) = (row.last_used, is_free);
        }
        for (name, last_used) in self.stat_caches()? {
            let path = self.stat_caches_path().join(&name);
            let item = measured.add(UsageKind::StatCaches, name, path)?;
            (item.last_used, item.reclaimable) = (last_used, is_old(last_used));
        }
        let tmp = self.root.join("tmp");
        for name in fs::list(&tmp)? {
            let path = tmp.join(&name);
            let is_stale = fs::temp::is_stale(&path)?;
            measured.add(UsageKind::Temporary, name, path)?.reclaimable = is_stale;
        }
        for (id, path) in self.container_folders()? {
            let name = fs::optional(fs::read(&path.join("name"), NAME_BYTES_MAX))?;
            let name = name.and_then(|name| String::from_utf8(name).ok());
            let item = measured.add(UsageKind::Containers, id, path)?;
            item.alias = name.unwrap_or_default();
        }
        for (name, path) in self.volume_folders()? {
            measured.add(UsageKind::Volumes, name, path)?;
        }
        // Kept by number and age, whatever else is pruned.
        let builds = self.root.join("builds");
        for name in fs::list(&builds)? {
            let path = builds.join(&name);
            measured.add(UsageKind::History, name, path)?;
        }
        let mut records = self.index.read(record_bytes)?;
        for name in ["index.db", "index.db-wal", "index.db-shm"] {
            let item = measured.add(UsageKind::Index, name.to_owned(), self.root.join(name))?;
            // Pages may still be in the log, and what is not in the file takes no room in it.
            records = records.min(item.bytes);
            if name == "index.db" {
                item.bytes -= records;
            } else {
                records = 0;
            }
            if records > 0 {
                measured.items.push(UsageItem {
                    kind: UsageKind::CacheRecords,
                    name: "records".to_owned(),
                    alias: String::new(),
                    bytes: records,
                    last_used: None,
                    // The index uses its pages again, and does not give them back.
                    reclaimable: false,
                });
            }
        }
        measured.rest(&self.root)?;
        let mut items = measured.items;
        items.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        let rows = self.usage_rows(&items, live)?;
        Ok(Usage { rows, items })
    }

    fn usage_rows(&self, items: &[UsageItem], live: i64) -> Result<Vec<UsageRow>, StoreError> {
        let sums = |kind: UsageKind| {
            let of_kind: Vec<&UsageItem> = items.iter().filter(|item| item.kind == kind).collect();
            let free = of_kind.iter().filter(|item| item.reclaimable);
            UsageRow {
                kind,
                count: of_kind.len() as u64,
                in_use: (of_kind.len() - free.clone().count()) as u64,
                bytes: of_kind.iter().map(|item| item.bytes).sum(),
                reclaimable: free.map(|item| item.bytes).sum(),
            }
        };
        let pair = |sql: &str| {
            self.index.read(|c| {
                c.query_row(sql, [live], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
                })
            })
        };
        let (images, images_used) = pair(
            "SELECT count(*), count(*) FILTER (WHERE last_used >= ?1 OR EXISTS
               (SELECT 1 FROM lease_items WHERE kind = 'image' AND name = images.id)) FROM images",
        )?;
        let (records, records_used) =
            pair("SELECT count(*), count(*) FILTER (WHERE last_used >= ?1) FROM records")?;
        let mut rows: Vec<UsageRow> = UsageKind::ALL.into_iter().map(sums).collect();
        for row in &mut rows {
            let (count, used) = match row.kind {
                UsageKind::Images => (images, images_used),
                UsageKind::CacheRecords => (records, records_used),
                _ => continue,
            };
            row.count = count.cast_unsigned();
            row.in_use = used.cast_unsigned();
        }
        Ok(rows)
    }
}

/// What has been measured so far.
#[derive(Default)]
struct Measured {
    items: Vec<UsageItem>,
    paths: BTreeSet<PathBuf>,
    /// Folders that something measured is in.
    above: BTreeSet<PathBuf>,
    seen: Inodes,
}

impl Measured {
    fn add(
        &mut self,
        kind: UsageKind,
        name: String,
        path: PathBuf,
    ) -> Result<&mut UsageItem, StoreError> {
        let bytes = fs::disk_usage(&path, &mut self.seen)?;
        for folder in path.ancestors().skip(1) {
            if !self.above.insert(folder.to_owned()) {
                break;
            }
        }
        self.paths.insert(path);
        self.items.push(UsageItem {
            kind,
            name,
            alias: String::new(),
            bytes,
            last_used: None,
            reclaimable: false,
        });
        Ok(self.items.last_mut().expect("one was pushed"))
    }

    /// Everything below `root` that was not measured, and the folders that hold what was.
    fn rest(&mut self, root: &Path) -> Result<(), StoreError> {
        let mut todo = vec![root.to_owned()];
        while let Some(folder) = todo.pop() {
            let name = folder.strip_prefix(root).unwrap_or(&folder);
            self.items.push(UsageItem {
                kind: UsageKind::Other,
                name: format!("{}/", name.display()),
                alias: String::new(),
                bytes: fs::own_usage(&folder)?,
                last_used: None,
                reclaimable: false,
            });
            for path in fs::entries(&folder)? {
                if self.paths.contains(&path) {
                    continue;
                }
                if self.above.contains(&path) {
                    todo.push(path);
                    continue;
                }
                let name = path.strip_prefix(root).unwrap_or(&path);
                let name = name.display().to_string();
                self.add(UsageKind::Other, name, path)?;
            }
        }
        Ok(())
    }
}

/// Bytes of the index's pages that hold cache records.
fn record_bytes(c: &rusqlite::Connection) -> rusqlite::Result<u64> {
    let bytes: i64 = c.query_row(
        "SELECT ifnull(sum(pgsize), 0) FROM dbstat WHERE aggregate = TRUE AND name IN
           (SELECT name FROM sqlite_schema WHERE tbl_name IN ('records', 'record_layers', 'record_files'))",
        [],
        |row| row.get(0),
    )?;
    Ok(bytes.cast_unsigned())
}

const LAYERS: &str = "SELECT id, last_used,
   EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = layers.diff_id
             OR i.diff_id = replace(layers.id, '-', ':')),
   EXISTS (SELECT 1 FROM lease_items WHERE kind = 'layer' AND name = layers.id
             AND lease NOT GLOB 'failed:*')
   OR EXISTS (SELECT 1 FROM lease_items JOIN image_layers i ON i.image = lease_items.name
              WHERE kind = 'image' AND (i.diff_id = layers.diff_id
                OR i.diff_id = replace(layers.id, '-', ':')))
 FROM layers";

const BLOBS: &str = "SELECT digest, last_used,
   EXISTS (SELECT 1 FROM image_blobs i WHERE i.digest = blobs.digest),
   EXISTS (SELECT 1 FROM lease_items WHERE kind = 'blob' AND name = blobs.digest)
   OR EXISTS (SELECT 1 FROM lease_items JOIN image_blobs i ON i.image = lease_items.name
              WHERE kind = 'image' AND i.digest = blobs.digest)
 FROM blobs";

fn counted(c: &rusqlite::Connection, sql: &str) -> rusqlite::Result<Vec<Counted>> {
    let mut statement = c.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(Counted {
            name: row.get(0)?,
            last_used: row.get(1)?,
            in_image: row.get(2)?,
            leased: row.get(3)?,
        })
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Lease, LeaseItem};
    use crate::tests::{image_of, layer};

    #[test]
    fn counts_by_kind() {
        let (dir, store) = crate::tests::store();
        let in_image = layer(&store, 1);
        layer(&store, 2);
        let image = image_of(&store, &[in_image.diff_id.unwrap()]);
        let temporary = store.temp_dir().unwrap();
        let mut journal = store.history().begin().unwrap();
        journal.append(b"line\n").unwrap();
        let usage = Store::open(dir.path()).unwrap().du().unwrap();
        let counted = usage.rows.iter().filter(|row| row.count > 0);
        let counts: Vec<_> = counted.map(|r| (r.kind, r.count, r.in_use)).collect();
        let one_of = |kind| (kind, 1, 1);
        let kinds = [
            UsageKind::Images,
            UsageKind::BuildCache,
            UsageKind::Blobs,
            UsageKind::Temporary,
            UsageKind::History,
        ];
        let last = counts.len() - 2;
        assert_eq!(counts[..last], kinds.map(one_of));
        assert_eq!(counts[last].0, UsageKind::Index);
        for row in &usage.rows {
            let records = row.kind == UsageKind::CacheRecords;
            assert_eq!(row.bytes > 0, records || row.count > 0, "{row:?}");
        }
        let all = fs::disk_usage(dir.path(), &mut Inodes::new()).unwrap();
        assert_eq!(usage.bytes(), all, "{:#?}", usage.items);
        assert_eq!(usage.reclaimable(), 0);
        let rows: u64 = usage.items.iter().map(|item| item.bytes).sum();
        assert_eq!(usage.bytes(), rows);
        store
            .index()
            .lease_put(&Lease {
                id: "container:x".to_owned(),
                expires: None,
                items: vec![LeaseItem::Image(image)],
            })
            .unwrap();
        drop((temporary, store));

        let usage = Store::open(dir.path()).unwrap().du().unwrap();
        let free = usage.rows.iter().filter(|row| row.reclaimable > 0);
        let kinds: Vec<UsageKind> = free.map(|row| row.kind).collect();
        assert_eq!(kinds, [UsageKind::BuildCache], "{usage:?}");
        assert_eq!(usage.rows[0].in_use, 1);
    }
}
