//! The shared cache: results that go from machine to machine.
//!
//! ```text
//! step's key ─► its record, in the store? ─ no ─► in a shared cache? ─► identity known, layer still there
//!                                                                         └─ something reads it ─► fetched, verified
//! build done ─► each result: record there? ─ no ─► layer's blob, then the record
//! ```
//!
//! | module | part |
//! |---|---|
//! | [`record`] | a record as an OCI artifact (`docs/formats/shared-cache.md`) |
//! | [`folder`], [`repository`], [`bucket`] | what holds records and blobs: each a [`CacheStore`] |
//! | [`inline`] | records in an image's configuration |
//! | [`hint`], [`ahead`] | which records a build will ask for, and asking for them all at once |
//! | [`import`] | looking results up, and fetching their layers when they are read |
//! | [`export`] | putting results there when a build is done |
//! | [`source`] | what files and repositories from elsewhere were |
//! | [`mounts`] | cache mounts' contents |
//!
//! Every record is an entry of its own, named by its key, so writers never overwrite each other's; a look-up is one
//! request. Nothing that comes from a shared cache is believed: a blob is checked against its digest, its DiffID and the
//! tree that its record names, and where one is wrong the step runs as if nothing had been found.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use registry_client::{BucketError, ErrorKind};
use store::content::{Blobs, ContentError};
use store::fs::FsError;
use store::oci::{Descriptor, Digest, RawManifest, Reference};

use super::CacheKey;
use crate::remote::RemoteError;

mod ahead;
pub(crate) mod bucket;
pub mod export;
pub(crate) mod folder;
pub mod hint;
pub(crate) mod import;
pub mod inline;
pub mod mounts;
pub mod record;
pub(crate) mod repository;
pub mod source;

/// The name of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EntryName {
    /// The record of a step.
    Record(CacheKey),
    /// The content of a cache mount, by a digest of what names it.
    Mount([u8; 32]),
    /// What a file or repository from elsewhere was.
    Source([u8; 32]),
    /// What the builds of one kind ask for, by a digest of what makes them one.
    Hint([u8; 32]),
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, digest) = match self {
            EntryName::Record(key) => ("", &key.0),
            EntryName::Mount(name) => ("mount-", name),
            EntryName::Source(key) => ("src-", key),
            EntryName::Hint(name) => ("hint-", name),
        };
        write!(f, "{prefix}{}", blake3::Hash::from_bytes(*digest).to_hex())
    }
}

/// Something that holds entries and the blobs that they name. Used by many threads and many machines at once: an entry or
/// blob appears whole or not at all, and writing one that is there is no mistake.
pub(crate) trait CacheStore: fmt::Debug + Send + Sync {
    /// How it is called in messages, and told from others.
    fn name(&self) -> &str;

    /// Finds out whether it can be written, before many threads try.
    fn prepare(&self) -> Result<(), CacheStoreError> {
        Ok(())
    }

    /// An entry's bytes, at most [`store::MANIFEST_BYTES_MAX`] of them; `None` where there is none. One request.
    fn entry(&self, name: &EntryName) -> Result<Option<Vec<u8>>, CacheStoreError>;

    /// Writes an entry, in place of one of the same name. The blobs that it names are there.
    fn put_entry(&self, name: &EntryName, manifest: &RawManifest) -> Result<(), CacheStoreError>;

    /// Whether a blob is there. A registry may have it in one of the repositories `elsewhere`, and is asked to link it.
    fn has_blob(&self, blob: &Descriptor, elsewhere: &[String]) -> Result<bool, CacheStoreError>;

    /// Brings a blob into the store; nothing is visible there unless its digest and size were right.
    fn fetch_blob(&self, blob: &Descriptor, into: &Blobs) -> Result<(), CacheStoreError>;

    /// Writes a blob whose bytes are in the file `from`, in place of one that may be there.
    fn put_blob(&self, blob: &Descriptor, from: &Path) -> Result<(), CacheStoreError>;

    /// The repository that it is, where blobs can be fetched from later, and be linked to others from.
    fn repository(&self) -> Option<&Reference> {
        None
    }
}

/// Why a shared cache failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheStoreError {
    /// The registry, or the way there.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A file of a folder.
    #[error(transparent)]
    File(#[from] FsError),
    /// A blob is not what its digest says, or cannot be kept here.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A file could not be copied.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A blob is not there.
    #[error("the blob {digest} is not there")]
    Missing {
        /// Which.
        digest: Box<Digest>,
    },
    /// The records in an image cannot be used.
    #[error("the cache in the image `{}` cannot be used: {reason}", reference.familiar())]
    Inline {
        /// The image.
        reference: Box<Reference>,
        /// Why not.
        reason: String,
    },
    /// The reference's tag leaves no room for a record's.
    #[error("the tag of `{}` is too long for a cache's: expected at most 57 characters", reference.familiar())]
    TagTooLong {
        /// The cache.
        reference: Box<Reference>,
    },
    /// A bucket, or the way there.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The folder belongs to another version of longshore.
    #[error("`{}` is a cache of version {found}: this longshore knows version {known}", path.display())]
    Version {
        /// The folder.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The one that is known.
        known: u32,
    },
}

impl CacheStoreError {
    /// Whether the cache answered, and only what it holds is wrong; otherwise asking it again is pointless.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            CacheStoreError::Missing { .. }
            | CacheStoreError::Content(
                ContentError::DigestMismatch { .. } | ContentError::SizeMismatch { .. },
            ) => true,
            CacheStoreError::Remote(RemoteError::Client(error)) => {
                matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
