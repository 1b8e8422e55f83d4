//! `du`: what the store takes on disk, by what it is for.

use std::collections::BTreeSet;

use crate::fs::{self, Inodes};
use crate::layer::LayerId;
use crate::oci::Digest;
use crate::{Store, StoreError};

/// What disk space is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageKind {
    /// Layers of images.
    Images,
    /// Layers that only cache records keep, or nothing.
    BuildCache,
    /// Directories that steps keep between builds.
    CacheMounts,
    /// Bare repositories that builds fetched into.
    GitMirrors,
    /// Configs, manifests and compressed layers.
    Blobs,
    /// What is being made, or was left by a killed process.
    Temporary,
    /// What builds did: their journals.
    History,
    /// The index, with the cache records in it.
    Index,
}

/// One thing that takes space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageItem {
    /// What it is for.
    pub kind: UsageKind,
    /// A layer's name, a blob's digest, or a file's name.
    pub name: String,
    /// Bytes on disk; what it shares by hard link with an earlier item is counted there.
    pub bytes: u64,
    /// When it was last used, in microseconds since 1970, where that is known.
    pub last_used: Option<i64>,
    /// Whether [`Store::prune`] with everything allowed would remove it now.
    pub reclaimable: bool,
}

/// Sums for one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageRow {
    /// Which kind.
    pub kind: UsageKind,
    /// How many: images, cache records' layers, cache mounts, git repositories, blobs, temporary entries, builds, cache
    /// records.
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
    /// Measures the store: real bytes on disk, each inode once.
    pub fn du(&self) -> Result<Usage, StoreError> {
        let live = self.sessions.unused_since()?;
        let mut seen = Inodes::new();
        let mut items = Vec::new();
        let mut layers = self.index.read(|c| counted(c, LAYERS))?;
        layers.sort_by_key(|layer| !layer.in_image);
        for layer in layers {
            let path = self.root.join("layers").join(&layer.name);
            items.push(UsageItem {
                kind: if layer.in_image {
                    UsageKind::Images
                } else {
                    UsageKind::BuildCache
                },
                bytes: fs::disk_usage(&path, &mut seen)?,
                last_used: Some(layer.last_used),
                reclaimable: !layer.leased && layer.last_used < live,
                name: layer.name,
            });
        }
        let known: BTreeSet<String> = items.iter().map(|item| item.name.clone()).collect();
        for name in fs::list(&self.root.join("layers"))? {
            if name.parse::<LayerId>().is_ok() && !known.contains(&name) {
                let path = self.root.join("layers").join(&name);
                items.push(UsageItem {
                    kind: UsageKind::BuildCache,
                    bytes: fs::disk_usage(&path, &mut seen)?,
                    last_used: None,
                    reclaimable: true,
                    name,
                });
            }
        }
        for blob in self.index.read(|c| counted(c, BLOBS))? {
            let Ok(digest) = blob.name.parse::<Digest>() else {
                continue;
            };
            items.push(UsageItem {
                kind: UsageKind::Blobs,
                bytes: fs::disk_usage(&self.blobs.path(&digest), &mut seen)?,
                last_used: Some(blob.last_used),
                reclaimable: !blob.leased && blob.last_used < live,
                name: blob.name,
            });
        }
        for row in self.cache_mounts()? {
            let path = self.cache_mounts_path().join(&row.name);
            let is_free = self.is_cache_mount_free(&row.name)?;
            items.push(UsageItem {
                kind: UsageKind::CacheMounts,
                bytes: fs::disk_usage(&path, &mut seen)?,
                last_used: row.last_used,
                reclaimable: is_free && row.last_used.is_none_or(|used| used < live),
                name: row.name,
            });
        }
        for row in self.mirrors()? {
            let path = self.mirrors_path().join(&row.name);
            let is_free = self.is_mirror_free(&row.name)?;
            items.push(UsageItem {
                kind: UsageKind::GitMirrors,
                bytes: fs::disk_usage(&path, &mut seen)?,
                last_used: row.last_used,
                reclaimable: is_free && row.last_used.is_none_or(|used| used < live),
                name: row.name,
            });
        }
        let tmp = self.root.join("tmp");
        for name in fs::list(&tmp)? {
            let path = tmp.join(&name);
            items.push(UsageItem {
                kind: UsageKind::Temporary,
                bytes: fs::disk_usage(&path, &mut seen)?,
                last_used: None,
                reclaimable: fs::temp::is_stale(&path)?,
                name,
            });
        }
        let builds = self.root.join("builds");
        for name in fs::list(&builds)? {
            items.push(UsageItem {
                kind: UsageKind::History,
                bytes: fs::disk_usage(&builds.join(&name), &mut seen)?,
                last_used: None,
                // Kept by number and age, whatever else is pruned.
                reclaimable: false,
                name,
            });
        }
        for name in ["index.db", "index.db-wal", "index.db-shm"] {
            items.push(UsageItem {
                kind: UsageKind::Index,
                name: name.to_owned(),
                bytes: fs::disk_usage(&self.root.join(name), &mut seen)?,
                last_used: None,
                reclaimable: false,
            });
        }
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
        let mut rows: Vec<UsageRow> = [
            UsageKind::Images,
            UsageKind::BuildCache,
            UsageKind::CacheMounts,
            UsageKind::GitMirrors,
            UsageKind::Blobs,
            UsageKind::Temporary,
            UsageKind::History,
            UsageKind::Index,
        ]
        .into_iter()
        .map(sums)
        .collect();
        for row in &mut rows {
            let (count, used) = match row.kind {
                UsageKind::Images => (images, images_used),
                UsageKind::Index => (records, records_used),
                _ => continue,
            };
            row.count = count.cast_unsigned();
            row.in_use = used.cast_unsigned();
        }
        Ok(rows)
    }
}

const LAYERS: &str = "SELECT id, last_used,
   EXISTS (SELECT 1 FROM image_layers i WHERE i.diff_id = layers.diff_id
             OR i.diff_id = replace(layers.id, '-', ':')),
   EXISTS (SELECT 1 FROM lease_items WHERE kind = 'layer' AND name = layers.id)
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
        assert_eq!(counts, kinds.map(one_of));
        for row in &usage.rows {
            assert_eq!(
                row.bytes > 0,
                row.kind == UsageKind::Index || row.count > 0,
                "{row:?}"
            );
        }
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
