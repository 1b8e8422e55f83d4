//! Content: blobs by digest, and the forms in which images come and go as files.
//!
//! | file | what |
//! |---|---|
//! | [`local`] | blobs on disk: written aside, hashed on the way, renamed to their digest |
//! | [`gc`] | removing what nothing needs |
//! | [`usage`] | measuring what there is |
//!
//! A [`VerifiedBlob`] is the only proof that a blob's bytes have its digest, and only [`Ingest::commit`] gives one.

use crate::fs::FsError;
use crate::index::IndexError;
use crate::oci::Digest;

pub mod gc;
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
