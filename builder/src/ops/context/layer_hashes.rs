//! What the files of layers contain, so that a copy from a stage or image whose other files changed need not read again those
//! that did not.
//!
//! A layer never changes, so a file of one is known by its inode: number, size, times and mode. overlayfs shows those of the
//! layer, whatever is stacked with it; only the device differs from mount to mount, and all layers are on one. An inode that is
//! used again has another time of change.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::stat_cache::{Location, Records, Stamp, StatCache};
use crate::ops::tree::Meta;

/// The file's name in the folder of stat caches; those of contexts are digests.
const NAME: &str = "layers";

/// With more records than this, those that this build did not see go: their layers may be long gone.
const RECORDS_MAX: usize = 500_000;

/// The memory of one store, loaded when it is first asked.
#[derive(Debug)]
pub struct LayerHashes {
    location: Location,
    loaded: OnceLock<StatCache>,
    learnt: Mutex<Records>,
}

impl LayerHashes {
    /// That of the store below `root`.
    pub fn new(root: &std::path::Path) -> LayerHashes {
        LayerHashes {
            location: Location::new(root, NAME),
            loaded: OnceLock::new(),
            learnt: Mutex::default(),
        }
    }

    /// The hash of a file's content, if it was read before.
    pub(crate) fn recall(&self, meta: &Meta) -> Option<[u8; 32]> {
        let (key, stamp) = known_by(meta);
        if let Some((known, hash)) = self.lock().get(&key)
            && *known == stamp
        {
            return Some(*hash);
        }
        let loaded = self.loaded.get_or_init(|| self.location.load());
        loaded.recall(&key, &stamp)
    }

    /// Notes what a file contains.
    pub(crate) fn learn(&self, meta: &Meta, hash: [u8; 32]) {
        let (key, stamp) = known_by(meta);
        self.lock().insert(key, (stamp, hash));
    }

    /// Keeps for later builds what was learnt in this one.
    pub(crate) fn save(&self) {
        let learnt = std::mem::take(&mut *self.lock());
        if learnt.is_empty() {
            return;
        }
        let saved = self.location.update(|current| {
            let mut records = learnt;
            if records.len() + current.records().count() <= RECORDS_MAX {
                for old in current.records() {
                    let known = (old.stamp, old.hash);
                    records.entry(old.path.to_vec()).or_insert(known);
                }
            }
            records
        });
        if let Err(error) = saved {
            tracing::debug!(location = ?self.location, %error, "hashes of layers' files not saved");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Records> {
        // Records are inserted whole.
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn known_by(meta: &Meta) -> (Vec<u8>, Stamp) {
    // In place of a path; sorted as numbers are.
    let key = meta.ino.to_be_bytes().to_vec();
    (key, Stamp::of(meta).without_device())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicBool;

    use store::layer::{LayerId, LayerInfo};
    use store::{Store, StoreError};

    use super::*;
    use crate::cache::content_hash::content_digest;
    use crate::graph::CopySource;
    use crate::ops::Tree;

    static NOT_CANCELLED: AtomicBool = AtomicBool::new(false);

    fn layer(store: &Store, files: &[(&str, &str)]) -> LayerId {
        let commit = || -> Result<LayerInfo, StoreError> {
            let active = store.snapshots().prepare(&[])?;
            for (name, text) in files {
                std::fs::write(active.upper().join(name), text).unwrap();
            }
            Ok(active.commit()?)
        };
        store.publish_layer(commit).unwrap().id
    }

    fn digest(store: &Store, hashes: &LayerHashes, layers: &[LayerId], pattern: &str) -> [u8; 32] {
        let view = store.snapshots().view(layers).unwrap();
        let source = CopySource {
            input: 0,
            pattern: pattern.to_owned(),
            ..CopySource::default()
        };
        let tree = Tree::Layers(view.as_fd(), hashes);
        content_digest(tree, &source, &NOT_CANCELLED).unwrap()
    }

    #[test]
    fn files_of_layers_are_read_once_whatever_is_stacked_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let base = layer(&store, &[("kept", "K"), ("other", "O")]);
        let (first, second) = (
            layer(&store, &[("new", "1")]),
            layer(&store, &[("new", "2")]),
        );
        let hashes = LayerHashes::new(store.root());
        let before = digest(&store, &hashes, &[base, first], ".");
        assert_eq!(hashes.lock().len(), 3);
        hashes.save();
        let hashes = LayerHashes::new(store.root());
        assert_eq!(digest(&store, &hashes, &[base, first], "."), before);
        assert!(hashes.lock().is_empty(), "nothing was read");
        // On another layer: only that layer's file.
        assert_ne!(digest(&store, &hashes, &[base, second], "."), before);
        assert_eq!(hashes.lock().len(), 1);
        hashes.save();
        // The same as without a memory, and as of the layer alone.
        let fresh = LayerHashes::new(&dir.path().join("none"));
        for layers in [vec![base, first], vec![base, second], vec![base]] {
            let hashes = LayerHashes::new(store.root());
            let known = digest(&store, &hashes, &layers, "kept");
            assert_eq!(known, digest(&store, &fresh, &layers, "kept"));
            assert!(hashes.lock().is_empty(), "nothing was read");
        }
    }

    #[test]
    fn what_is_remembered_is_what_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let base = layer(&store, &[("file", "text")]);
        let hashes = LayerHashes::new(store.root());
        let before = digest(&store, &hashes, &[base], ".");
        hashes.save();
        let lie = |current: &StatCache| {
            let known = current.records();
            known
                .map(|r| (r.path.to_vec(), (r.stamp, [9; 32])))
                .collect()
        };
        hashes.location.update(lie).unwrap();
        let hashes = LayerHashes::new(store.root());
        assert_ne!(digest(&store, &hashes, &[base], "."), before, "it was read");
    }
}
