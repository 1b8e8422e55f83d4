//! Garbage collection: what nothing needs goes, beside builds that go on.
//!
//! Roots are named images, leases, cache records, and whatever a live session has used ([`crate::session`]). A collection
//! does, in this order, each step leaving a valid store if it is the last:
//!
//! 1. one transaction deletes the rows of what nothing needs and no live session can have used;
//! 2. the directories and files that belonged to them are moved into `tmp/`, but only those that still have no row and are not
//!    new: whoever needs one meanwhile has put its row back, or has published it again, which makes it new;
//! 3. `tmp/` is swept of everything that no live process holds.
//!
//! What a killed process published without a row, or a killed collection left, is found in step 2 as well, once it is older than
//! every live session.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Params, Transaction};

use super::collect::{CacheKind, Candidate, Collection, Rule};
use crate::cache_mounts::CacheMountRow;
use crate::clock::renew_change;
use crate::fs::{self, Inodes, Lock, Shared};
use crate::images::ImageId;
use crate::index::parse;
use crate::layer::LayerId;
use crate::oci::{Digest, Reference};
use crate::{Store, StoreError};

/// Kernel time stamps may lie this many microseconds behind the clock that stamps sessions.
pub(crate) const STAMP_SLACK: i64 = 50_000;

/// Which images a collection removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneImages {
    /// None.
    Keep,
    /// Those that lost their last name to another.
    Nameless,
    /// All that no lease keeps, names and all.
    Unused,
}

/// What a collection takes. Layers and blobs that nothing needs any more always go.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// Only what has not been used for this long.
    pub until: Option<Duration>,
    /// Cache records too, with the layers that only they keep, cache mounts, and what failed steps left.
    pub cache: bool,
    /// Which images.
    pub images: PruneImages,
    /// Remove nothing, only tell.
    pub dry_run: bool,
}

/// Something a collection removed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pruned {
    /// An image with the names it had. Its bytes are those of its layers and blobs, which are items of their own.
    Image {
        /// Which.
        id: ImageId,
        /// Its names, sorted.
        names: Vec<Reference>,
    },
    /// A cache record.
    Record {
        /// Its key.
        key: [u8; 32],
    },
    /// A layer's directory.
    Layer {
        /// Its name.
        id: LayerId,
        /// Bytes on disk.
        bytes: u64,
    },
    /// A blob.
    Blob {
        /// Its digest.
        digest: Digest,
        /// Bytes on disk.
        bytes: u64,
    },
    /// A directory that steps kept between builds.
    CacheMount {
        /// Its name below `cache-mounts/`.
        name: String,
        /// What Dockerfiles call it.
        id: String,
        /// Bytes on disk.
        bytes: u64,
    },
    /// A bare repository that builds fetched into.
    GitMirror {
        /// Its name below `git/`.
        name: String,
        /// Bytes on disk.
        bytes: u64,
    },
    /// What was remembered of a context's files.
    StatCache {
        /// Its name below `contexts/`.
        name: String,
        /// Bytes on disk.
        bytes: u64,
    },
    /// What a killed process left in `tmp/`.
    Temporary {
        /// Its name there.
        name: String,
        /// Bytes on disk.
        bytes: u64,
    },
}

impl Pruned {
    /// Bytes on disk that it took.
    pub fn bytes(&self) -> u64 {
        match self {
            Pruned::Image { .. } | Pruned::Record { .. } => 0,
            Pruned::Layer { bytes, .. }
            | Pruned::Blob { bytes, .. }
            | Pruned::CacheMount { bytes, .. }
            | Pruned::GitMirror { bytes, .. }
            | Pruned::StatCache { bytes, .. }
            | Pruned::Temporary { bytes, .. } => *bytes,
        }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// What went: images, records, layers, blobs, cache mounts, git repositories, temporary files, each sorted.
    pub items: Vec<Pruned>,
    /// Bytes on disk that they took together.
    pub bytes: u64,
}

impl PruneReport {
    fn name(&mut self, images: Vec<(ImageId, Vec<Reference>)>, records: Vec<[u8; 32]>) {
        let images = images.into_iter();
        let images = images.map(|(id, names)| Pruned::Image { id, names });
        let records = records.into_iter().map(|key| Pruned::Record { key });
        self.items.extend(images.chain(records));
    }
}

/// Moments, in microseconds since 1970: this one, and those before which something was last used that may go.
#[derive(Clone, Copy)]
struct Before {
    now: i64,
    /// For what was chosen: no live process has used it since.
    live: i64,
    /// For what nothing needs.
    garbage: i64,
}

impl Before {
    fn new(live: i64, now: i64, age: i64) -> Before {
        Before {
            now,
            live,
            garbage: live.min(now.saturating_sub(age)),
        }
    }
}

/// Rows that a transaction deleted.
#[derive(Default)]
struct Victims {
    images: Vec<(ImageId, Vec<Reference>)>,
    records: Vec<[u8; 32]>,
    layers: Vec<LayerId>,
    blobs: Vec<Digest>,
}

impl Store {
    /// Removes what nothing needs, or tells what it would remove. Other processes' builds may go on meanwhile; what *this* store
    /// handle has looked at is not protected, so call it when done with that.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport, StoreError> {
        let mut kinds = BTreeSet::new();
        match options.images {
            PruneImages::Keep => {}
            PruneImages::Nameless => kinds.extend([CacheKind::NamelessImages]),
            PruneImages::Unused => kinds.extend([CacheKind::Images]),
        }
        if options.cache {
            kinds.extend([
                CacheKind::Records,
                CacheKind::CacheMounts,
                CacheKind::GitMirrors,
                CacheKind::StatCaches,
            ]);
        }
        let age = options.until.unwrap_or_default();
        self.collect(&Collection {
            rules: vec![Rule {
                kinds,
                unused_for: age,
                ..Rule::default()
            }],
            garbage_age: age,
            dry_run: options.dry_run,
            ..Collection::default()
        })
    }

    /// Removes what was chosen, if still nobody has used it, and what nothing needs.
    pub(crate) fn remove(
        &self,
        chosen: &[Candidate],
        collection: &Collection,
    ) -> Result<PruneReport, StoreError> {
        let age = i64::try_from(collection.garbage_age.as_micros()).unwrap_or(i64::MAX);
        if collection.dry_run {
            let spared = self.spared(collection)?;
            let live = self.sessions.oldest_live()?.min(spared);
            let before = Before::new(live, self.clock().now_micros(), age);
            return self.would_remove(chosen, before);
        }
        let mut trash = Vec::new();
        let mut report = PruneReport::default();
        let mut again = true;
        let before = loop {
            // A layer is published, and a session begins, before this or after it.
            let publishing = Shared::lock_alone(&self.publishing_path())?;
            let beginning = self.sessions.hold()?;
            let live = self.sessions.unused_since()?.min(self.spared(collection)?);
            let before = Before::new(live, self.clock().now_micros(), age);
            let victims = self.index.write(|t| delete_rows(t, chosen, before))?;
            let wait = self.move_aside(before.garbage, &mut trash)?;
            self.move_chosen_aside(chosen, before.live, &mut trash)?;
            report.name(victims.images, victims.records);
            drop((beginning, publishing));
            // What lost its row a moment after it was made would stay until the next collection.
            match wait {
                Some(wait) if again => std::thread::sleep(wait),
                _ => break before.garbage,
            }
            again = false;
        };
        self.sweep(trash, before, &mut report)?;
        self.remove_free_locks()?;
        // What was to go is gone: that the index could be smaller is no reason to fail.
        if let Err(error) = self.index.give_back() {
            tracing::debug!(%error, "the index stays as large as it is");
        }
        report.items.sort();
        report.bytes = report.items.iter().map(Pruned::bytes).sum();
        Ok(report)
    }

    /// Moves those of the chosen that have no rows into `tmp/`.
    fn move_chosen_aside(
        &self,
        chosen: &[Candidate],
        before: i64,
        trash: &mut Vec<(PathBuf, Trash)>,
    ) -> Result<(), StoreError> {
        let mounts = self.cache_mounts()?;
        for candidate in chosen {
            let (moved, was) = match candidate {
                Candidate::CacheMount(name) => {
                    let Some(row) = mounts.iter().find(|row| row.name == *name) else {
                        continue;
                    };
                    let moved = self.move_cache_mount_aside(row, before)?;
                    (moved, Trash::CacheMount(row.clone()))
                }
                Candidate::GitMirror(name) => {
                    let moved = self.move_mirror_aside(name, before)?;
                    (moved, Trash::GitMirror(name.clone()))
                }
                Candidate::StatCache(name) => {
                    let moved = self.move_stat_cache_aside(name, before)?;
                    (moved, Trash::StatCache(name.clone()))
                }
                Candidate::Record(_) | Candidate::FailedStep(_) | Candidate::Image { .. } => {
                    continue;
                }
            };
            trash.extend(moved.map(|path| (path, was)));
        }
        Ok(())
    }

    fn would_remove(
        &self,
        chosen: &[Candidate],
        before: Before,
    ) -> Result<PruneReport, StoreError> {
        // The same deletions, rolled back.
        let victims = self.index.rehearse(|t| delete_rows(t, chosen, before))?;
        let mut seen = Inodes::new();
        let mut report = PruneReport::default();
        report.name(victims.images, victims.records);
        let items = &mut report.items;
        for id in victims.layers {
            let bytes = fs::disk_usage(&self.layer_path(&id), &mut seen)?;
            items.push(Pruned::Layer { id, bytes });
        }
        for digest in victims.blobs {
            let bytes = fs::disk_usage(&self.blobs.path(&digest), &mut seen)?;
            items.push(Pruned::Blob { digest, bytes });
        }
        for candidate in chosen {
            match candidate {
                Candidate::CacheMount(name) => {
                    let path = self.cache_mounts_path().join(name);
                    let bytes = fs::disk_usage(&path, &mut seen)?;
                    let id = self.cache_mount_id(name)?;
                    let name = name.clone();
                    items.push(Pruned::CacheMount { name, id, bytes });
                }
                Candidate::GitMirror(name) => {
                    let bytes = fs::disk_usage(&self.mirrors_path().join(name), &mut seen)?;
                    let name = name.clone();
                    items.push(Pruned::GitMirror { name, bytes });
                }
                Candidate::StatCache(name) => {
                    let bytes = fs::disk_usage(&self.stat_caches_path().join(name), &mut seen)?;
                    let name = name.clone();
                    items.push(Pruned::StatCache { name, bytes });
                }
                Candidate::Record(_) | Candidate::FailedStep(_) | Candidate::Image { .. } => {}
            }
        }
        for path in fs::temp::stale_before(&self.root.join("tmp"), before.garbage)? {
            let bytes = fs::disk_usage(&path, &mut seen)?;
            items.push(Pruned::Temporary {
                name: file_name(&path),
                bytes,
            });
        }
        report.items.sort();
        report.bytes = report.items.iter().map(Pruned::bytes).sum();
        Ok(report)
    }

    /// Moves every layer and blob that has no row and is older than `before` into `tmp/`. Returns how long to wait until those
    /// can be told to be older, too, that only the coarseness of kernel time stamps keeps.
    pub(crate) fn move_aside(
        &self,
        before: i64,
        trash: &mut Vec<(PathBuf, Trash)>,
    ) -> Result<Option<Duration>, StoreError> {
        let tmp = self.root.join("tmp");
        let now = self.clock().now_micros();
        let may_renew = self.sessions.latest_protection()? <= now;
        let mut wait = None;
        let mut is_old = |path: &Path| -> Result<bool, fs::FsError> {
            let Some(changed) = fs::changed_micros(path)? else {
                return Ok(false);
            };
            if changed > now + STAMP_SLACK && may_renew {
                // From a clock that was ahead: the next collection is to find it old.
                renew_change(path)?;
            }
            if changed >= before - STAMP_SLACK && changed < before {
                wait = wait.max(u64::try_from(changed - (before - STAMP_SLACK) + 1).ok());
            }
            Ok(changed < before - STAMP_SLACK)
        };
        for name in fs::list(&self.root.join("layers"))? {
            let path = self.root.join("layers").join(&name);
            let Ok(id) = name.parse::<LayerId>() else {
                continue;
            };
            if self.index.has_layer_row(&id)? || !is_old(&path)? {
                continue;
            }
            let aside = tmp.join(fs::temp::fresh_name("trash"));
            // The row is looked for again under the writer's lock, so that none appears before the name is gone.
            let moved = self.index.unless_layer_row(&id, || {
                Ok(is_old(&path)? && fs::rename_if_free(&path, &aside)?)
            })?;
            if moved {
                trash.push((aside, Trash::Layer(id)));
            }
        }
        for digest in self.blobs.list()? {
            let path = self.blobs.path(&digest);
            if self.index.has_blob_row(&digest)? || !is_old(&path)? {
                continue;
            }
            let aside = tmp.join(fs::temp::fresh_name("trash"));
            let moved = self.index.unless_blob_row(&digest, || {
                Ok(is_old(&path)? && fs::rename_if_free(&path, &aside)?)
            })?;
            if moved {
                trash.push((aside, Trash::Blob(digest)));
            }
        }
        Ok(wait.map(Duration::from_micros))
    }

    /// Removes what was moved aside, and whatever else nobody holds; of what could be gone on with, what is older than
    /// `before`.
    fn sweep(
        &self,
        trash: Vec<(PathBuf, Trash)>,
        before: i64,
        report: &mut PruneReport,
    ) -> Result<(), StoreError> {
        let mut seen = Inodes::new();
        for (path, was) in trash {
            let bytes = fs::disk_usage(&path, &mut seen)?;
            fs::temp::sweep(&path)?;
            report.items.push(match was {
                Trash::Layer(id) => Pruned::Layer { id, bytes },
                Trash::Blob(digest) => Pruned::Blob { digest, bytes },
                Trash::CacheMount(row) => Pruned::CacheMount {
                    name: row.name,
                    id: row.id,
                    bytes,
                },
                Trash::GitMirror(name) => Pruned::GitMirror { name, bytes },
                Trash::StatCache(name) => Pruned::StatCache { name, bytes },
            });
        }
        for path in fs::temp::stale_before(&self.root.join("tmp"), before)? {
            let bytes = fs::disk_usage(&path, &mut seen)?;
            fs::temp::sweep(&path)?;
            report.items.push(Pruned::Temporary {
                name: file_name(&path),
                bytes,
            });
        }
        Ok(())
    }

    /// Removes the lock files of killed processes.
    pub(crate) fn remove_free_locks(&self) -> Result<(), StoreError> {
        let locks = self.root.join("locks");
        for name in fs::list(&locks)? {
            // Whoever gets the lock removes its file when dropping it.
            drop(Lock::try_exclusive(&locks.join(name))?);
        }
        Ok(())
    }

    pub(crate) fn publishing_path(&self) -> PathBuf {
        self.root.join("publishing")
    }

    pub(crate) fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.root.join("layers").join(id.to_string())
    }
}

/// What something in `tmp/` was before it was moved there.
pub(crate) enum Trash {
    Layer(LayerId),
    Blob(Digest),
    CacheMount(CacheMountRow),
    GitMirror(String),
    StatCache(String),
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Layers that an image needs, by either of their names.
const LAYER_IN_IMAGE: &str =
    "EXISTS (SELECT 1 FROM image_layers WHERE image_layers.diff_id = layers.diff_id
       OR image_layers.diff_id = replace(layers.id, '-', ':'))";

fn delete_rows(
    t: &Transaction<'_>,
    chosen: &[Candidate],
    before: Before,
) -> rusqlite::Result<Victims> {
    let mut victims = Victims::default();
    t.execute(
        "DELETE FROM leases WHERE expires <= ?1",
        [before.now / 1_000_000],
    )?;
    let mut is_free = t.prepare(
        "SELECT 1 FROM images WHERE id = ?1 AND last_used < ?2
           AND (?3 OR NOT EXISTS (SELECT 1 FROM names WHERE image = images.id))
           AND NOT EXISTS (SELECT 1 FROM lease_items WHERE kind = 'image' AND name = images.id)",
    )?;
    let mut delete_record = t.prepare("DELETE FROM records WHERE key = ?1 AND last_used < ?2")?;
    for candidate in chosen {
        match candidate {
            Candidate::Image { id, named } => {
                if !is_free.exists((id.to_string(), before.live, named))? {
                    continue;
                }
                let names = texts(
                    t,
                    "DELETE FROM names WHERE image = ?1 RETURNING name",
                    [id.to_string()],
                )?;
                t.execute("DELETE FROM images WHERE id = ?1", [id.to_string()])?;
                victims.images.push((*id, names));
            }
            Candidate::Record(key) => {
                let gone = delete_record.execute((key, before.live))? > 0;
                victims.records.extend(gone.then_some(*key));
            }
            Candidate::FailedStep(lease) => {
                t.execute("DELETE FROM leases WHERE id = ?1", [lease])?;
            }
            _ => {}
        }
    }
    let before = before.garbage;
    victims.layers = texts(
        t,
        &format!(
            "DELETE FROM layers WHERE last_used < ?1
               AND NOT EXISTS (SELECT 1 FROM record_layers WHERE layer = layers.id)
               AND NOT EXISTS (SELECT 1 FROM lease_items WHERE kind = 'layer' AND name = layers.id)
               AND NOT {LAYER_IN_IMAGE}
             RETURNING id"
        ),
        [before],
    )?;
    victims.layers.sort_unstable();
    // Before blobs: those of what was made of layers that are gone go with them.
    t.execute(
        "DELETE FROM rewritten WHERE diff_id NOT IN (SELECT diff_id FROM layers WHERE diff_id IS NOT NULL)
           AND diff_id NOT IN (SELECT diff_id FROM image_layers)",
        [],
    )?;
    victims.blobs = texts(
        t,
        "DELETE FROM blobs WHERE last_used < ?1
           AND NOT EXISTS (SELECT 1 FROM image_blobs WHERE image_blobs.digest = blobs.digest)
           AND NOT EXISTS (SELECT 1 FROM lease_items WHERE kind = 'blob' AND name = blobs.digest)
           AND NOT EXISTS (SELECT 1 FROM compressed JOIN image_layers USING (diff_id)
                           WHERE compressed.digest = blobs.digest)
           AND NOT EXISTS (SELECT 1 FROM compressed JOIN layers USING (diff_id)
                           WHERE compressed.digest = blobs.digest)
           AND NOT EXISTS (SELECT 1 FROM compressed JOIN rewritten ON made = compressed.diff_id
                           WHERE compressed.digest = blobs.digest)
         RETURNING digest",
        [before],
    )?;
    victims.blobs.sort_unstable();
    // What is known of blobs that are neither here nor belong to anything here.
    t.execute(
        "DELETE FROM compressed WHERE digest NOT IN (SELECT digest FROM blobs)
           AND diff_id NOT IN (SELECT diff_id FROM layers WHERE diff_id IS NOT NULL)
           AND diff_id NOT IN (SELECT diff_id FROM image_layers)
           AND diff_id NOT IN (SELECT made FROM rewritten)",
        [],
    )?;
    t.execute(
        "DELETE FROM sources WHERE digest NOT IN (SELECT digest FROM blobs)
           AND digest NOT IN (SELECT digest FROM compressed)",
        [],
    )?;
    Ok(victims)
}

fn texts<T: std::str::FromStr>(
    t: &Transaction<'_>,
    sql: &str,
    values: impl Params,
) -> rusqlite::Result<Vec<T>> {
    let mut statement = t.prepare(sql)?;
    let rows = statement.query_map(values, |row| {
        parse("garbage collection", row.get_ref(0)?.as_str()?)
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now_micros;
    use crate::index::{Lease, LeaseItem, RecordRow};
    use crate::oci::{Descriptor, DiffId, MediaType};
    use crate::tests::{image_of, layer};

    const EVERYTHING: PruneOptions = PruneOptions {
        until: None,
        cache: true,
        images: PruneImages::Unused,
        dry_run: false,
    };
    const GARBAGE: PruneOptions = PruneOptions {
        cache: false,
        images: PruneImages::Keep,
        ..EVERYTHING
    };

    fn record(layers: &[LayerId]) -> RecordRow {
        RecordRow {
            op: [1; 32],
            result: Vec::new(),
            layers: layers.to_vec(),
            ingredients: Vec::new(),
            created: 1,
        }
    }

    /// Lets time pass and opens the store as another process would.
    fn reopen(root: &Path) -> Store {
        // Kernel time stamps must differ from those of what was made before: no other clock tells when they will.
        let start = now_micros();
        while now_micros() < start + 2 * STAMP_SLACK {
            std::thread::yield_now();
        }
        let options = crate::OpenOptions {
            grace: Duration::ZERO,
            ..crate::OpenOptions::default()
        };
        Store::open_with(root, &options).unwrap()
    }

    #[test]
    fn what_was_made_this_moment_goes_too() {
        let (dir, store) = crate::tests::store();
        let loose = layer(&store, 1);
        let blob = store.blobs().put(b"loose").unwrap();
        drop(store);
        let options = crate::OpenOptions {
            grace: Duration::ZERO,
            ..crate::OpenOptions::default()
        };
        let store = Store::open_with(dir.path(), &options).unwrap();
        let report = store.prune(&GARBAGE).unwrap();
        assert_eq!(report.items.len(), 2, "{report:?}");
        assert!(!store.layer_path(&loose.id).exists());
        assert!(!store.blobs().path(&blob.digest()).exists());
    }

    #[test]
    fn keeps_what_is_needed_and_takes_the_rest() {
        let (dir, store) = crate::tests::store();
        let index = store.index();
        let in_image = layer(&store, 1);
        let in_record = layer(&store, 2);
        let in_lease = layer(&store, 3);
        let loose = layer(&store, 4);
        let image = image_of(&store, &[in_image.diff_id.unwrap()]);
        store.images().tag(&"app".parse().unwrap(), &image).unwrap();
        index
            .record_put(&[1; 32], &record(&[in_record.id]))
            .unwrap();
        index
            .lease_put(&Lease {
                id: "container:x".to_owned(),
                expires: None,
                items: vec![LeaseItem::Layer(in_lease.id)],
            })
            .unwrap();
        let loose_blob = store.blobs().put(b"loose").unwrap();
        let form = store.blobs().put(b"compressed").unwrap();
        let descriptor = Descriptor::new(MediaType::OCI_LAYER_GZIP, form.digest(), form.size());
        index
            .remember(&in_image.diff_id.unwrap(), "gzip", &descriptor)
            .unwrap();
        // As long as a session lives that used them, nothing goes.
        let other = reopen(dir.path());
        assert_eq!(other.prune(&EVERYTHING).unwrap(), PruneReport::default());
        drop(store);

        let dry = PruneOptions {
            dry_run: true,
            ..GARBAGE
        };
        let planned = other.prune(&dry).unwrap();
        let report = other.prune(&GARBAGE).unwrap();
        assert_eq!(planned, report);
        let gone: Vec<&Pruned> = report.items.iter().collect();
        assert!(
            matches!(gone.as_slice(), [Pruned::Layer { id, .. }, Pruned::Blob { digest, .. }]
                if *id == loose.id && *digest == loose_blob.digest()),
            "{gone:?}"
        );
        assert!(report.bytes > 0);
        assert!(!other.layer_path(&loose.id).exists());
        for kept in [&in_image, &in_record, &in_lease] {
            assert!(other.layer_path(&kept.id).exists());
        }
        assert!(other.check().unwrap().is_empty());

        let report = other.prune(&EVERYTHING).unwrap();
        assert_eq!(report.items.len(), 6, "{report:?}");
        assert!(other.images().images().unwrap().is_empty());
        assert_eq!(fs::list(&dir.path().join("layers")).unwrap().len(), 1);
        assert!(other.blobs().list().unwrap().is_empty());
        assert_eq!(other.index().record_hit(&[1; 32]).unwrap(), None);
        other.index().lease_remove("container:x").unwrap();
        assert_eq!(other.prune(&GARBAGE).unwrap().items.len(), 1);
        assert!(other.check().unwrap().is_empty());
    }

    #[test]
    fn what_estargz_made_of_a_layer_stays_as_long_as_that() {
        let (dir, store) = crate::tests::store();
        let commit = || {
            let active = store.snapshots().prepare(&[])?;
            std::fs::write(active.upper().join("file"), b"content").unwrap();
            active.commit().map_err(StoreError::from)
        };
        let made_of = store.publish_layer(commit).unwrap();
        let diff_id = store.ensure_diff_id(&made_of.id).unwrap();
        let image = image_of(&store, &[diff_id]);
        store.images().tag(&"app".parse().unwrap(), &image).unwrap();
        let made = store
            .layer_blob(&diff_id, crate::layer::compress::Compression::ESTARGZ)
            .unwrap();
        drop(store);
        let other = reopen(dir.path());
        assert_eq!(other.prune(&GARBAGE).unwrap(), PruneReport::default());
        drop(other);
        let other = reopen(dir.path());
        let report = other.prune(&EVERYTHING).unwrap();
        let is_it = |item: &Pruned| matches!(item, Pruned::Blob { digest, .. } if *digest == made.descriptor.digest);
        assert!(report.items.iter().any(is_it), "{report:?}");
        assert!(other.blobs().list().unwrap().is_empty());
        let left = other.index().rewritten(&diff_id, "estargz").unwrap();
        assert_eq!(left, None);
        assert!(other.index().compressed(&made.diff_id).unwrap().is_empty());
    }

    #[test]
    fn a_hit_saves_a_record_and_its_layers() {
        let (dir, store) = crate::tests::store();
        let hit = layer(&store, 1);
        let missed = layer(&store, 2);
        let index = store.index();
        index.record_put(&[1; 32], &record(&[hit.id])).unwrap();
        index.record_put(&[2; 32], &record(&[missed.id])).unwrap();
        drop(store);
        let user = reopen(dir.path());
        assert!(user.index().record_hit(&[1; 32]).unwrap().is_some());
        let collector = reopen(dir.path());
        let report = collector.prune(&EVERYTHING).unwrap();
        assert_eq!(report.items.len(), 2, "{report:?}");
        assert!(report.items.contains(&Pruned::Record { key: [2; 32] }));
        assert!(user.index().layer(&hit.id).unwrap().is_some());
        assert!(user.index().layer(&missed.id).unwrap().is_none());
    }

    #[test]
    fn publishing_what_is_there_already_saves_it() {
        let (dir, store) = crate::tests::store();
        let commit = |store: &Store| {
            let active = store.snapshots().prepare(&[])?;
            let file = std::fs::File::create(active.upper().join("file")).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            active.commit().map_err(StoreError::from)
        };
        store.publish_layer(|| commit(&store)).unwrap();
        drop(store);
        let user = reopen(dir.path());
        let info = user
            .publish_layer(|| {
                let info = commit(&user)?;
                // A collection in the worst moment: the row is old, and goes.
                let report = reopen(dir.path()).prune(&EVERYTHING)?;
                assert!(report.items.is_empty(), "{report:?}");
                assert!(!user.index().has_layer_row(&info.id)?);
                Ok::<_, StoreError>(info)
            })
            .unwrap();
        assert!(user.snapshots().has(&info.id));
        assert!(user.check().unwrap().is_empty());
    }

    #[test]
    fn soon_after_another_use_nothing_is_written_and_nothing_goes() {
        let (dir, store) = crate::tests::store();
        store.index().record_put(&[1; 32], &record(&[])).unwrap();
        drop(store);
        let user = Store::open(dir.path()).unwrap();
        let stamp = |store: &Store| -> i64 {
            let read = |c: &rusqlite::Connection| {
                c.query_row("SELECT last_used FROM records", [], |row| row.get(0))
            };
            store.index().read(read).unwrap()
        };
        let before = stamp(&user);
        assert!(user.index().record_hit(&[1; 32]).unwrap().is_some());
        assert_eq!(stamp(&user), before);
        let collector = Store::open(dir.path()).unwrap();
        assert!(collector.prune(&EVERYTHING).unwrap().items.is_empty());
        drop(user);
        assert_eq!(collector.prune(&EVERYTHING).unwrap().items.len(), 1);
    }

    #[test]
    fn looking_at_a_blob_saves_it() {
        let (dir, store) = crate::tests::store();
        let blob = store.blobs().put(b"x").unwrap();
        drop(store);
        let user = reopen(dir.path());
        assert!(user.blobs().has(&blob.digest()).unwrap().is_some());
        let collector = reopen(dir.path());
        assert!(collector.prune(&EVERYTHING).unwrap().items.is_empty());
        drop(user);
        assert_eq!(collector.prune(&EVERYTHING).unwrap().items.len(), 1);
    }

    #[test]
    fn only_what_is_old_enough_goes() {
        let (dir, store) = crate::tests::store();
        layer(&store, 1);
        drop(store);
        let store = reopen(dir.path());
        let hour = PruneOptions {
            until: Some(Duration::from_secs(3600)),
            ..EVERYTHING
        };
        assert!(store.prune(&hour).unwrap().items.is_empty());
        let instant = PruneOptions {
            until: Some(Duration::ZERO),
            ..EVERYTHING
        };
        assert_eq!(store.prune(&instant).unwrap().items.len(), 1);
    }

    #[test]
    fn leftovers_of_killed_processes_go() {
        let (dir, store) = crate::tests::store();
        // Published, and killed before the row stood.
        let id = LayerId::Unpacked(DiffId(Digest::of(b"x")));
        std::fs::create_dir(store.layer_path(&id)).unwrap();
        std::fs::write(store.blobs().path(&Digest::of(b"y")), "y").unwrap();
        std::fs::write(dir.path().join("tmp/file-1-1-1"), "half").unwrap();
        std::fs::write(dir.path().join("locks/00"), "").unwrap();
        std::fs::write(dir.path().join("layers/not-a-layer"), "").unwrap();
        let ours = store.temp_dir().unwrap();
        let store = reopen(dir.path());
        let report = store.prune(&GARBAGE).unwrap();
        assert_eq!(report.items.len(), 3, "{report:?}");
        assert!(ours.path().exists());
        assert!(fs::list(&dir.path().join("locks")).unwrap().is_empty());
        assert_eq!(
            fs::list(&dir.path().join("layers")).unwrap(),
            ["not-a-layer"]
        );
    }
}
