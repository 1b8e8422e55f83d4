//! Content: blobs by digest, and the forms in which images come and go as files.
//!
//! | file | what |
//! |---|---|
//! | [`local`] | blobs on disk: written aside, hashed on the way, renamed to their digest |
//! | [`ahead`] | what came of a blob before its beginning did |
//! | [`archive`] | saving and loading: what all archives share |
//! | [`layout`] | OCI image layouts, directories and tars |
//! | [`docker_archive`] | `docker save` and `docker load` |
//! | [`gc`] | removing what nothing needs |
//! | [`collect`] | choosing what else goes: by kind, age and size |
//! | [`usage`] | measuring what there is |
//!
//! A [`VerifiedBlob`] is the only proof that a blob's bytes have its digest, and only [`Ingest::commit`] gives one.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::fs::FsError;
use crate::index::IndexError;
use crate::oci::{DiffId, Digest};
use crate::{Store, StoreError};

pub mod ahead;
pub mod archive;
pub mod collect;
pub(crate) mod docker_archive;
pub mod gc;
pub(crate) mod layout;
pub mod local;
pub mod usage;

pub use local::{Blobs, Ingest, VerifiedBlob};

/// Why blobs were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The bytes are not those that were asked for.
    #[error("content has digest `{found}`, expected `{expected}`")]
    DigestMismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// More or fewer bytes than were announced.
    #[error("content of `{digest}` has {found} bytes, expected {expected}")]
    SizeMismatch {
        /// Which blob.
        digest: Digest,
        /// Bytes announced.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Not in the store.
    #[error("blob `{digest}` is not in the store")]
    Missing {
        /// Which blob.
        digest: Digest,
    },
    /// Longer than the reader takes.
    #[error("blob `{digest}` has {size} bytes: at most {max} are taken here")]
    TooLarge {
        /// Which blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A file failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Layers unpacked at once: writing files is what takes the time, and a disk does not write faster for more.
const UNPACKERS: usize = 4;

/// Checks and unpacks the layers of an image that was loaded, several at once.
pub(crate) fn add_layers(
    store: &Store,
    layers: &BTreeMap<DiffId, Digest>,
) -> Result<(), StoreError> {
    let queue = Mutex::new(layers.iter());
    let next = || {
        let mut queue = queue
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        queue.next()
    };
    let work = || {
        while let Some((diff_id, blob)) = next() {
            store.add_layer_blob(diff_id, blob)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..UNPACKERS.min(layers.len()))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("unpacking does not panic"))
    })
}
