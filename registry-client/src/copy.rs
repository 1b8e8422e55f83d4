//! Images from anywhere to anywhere: registries, OCI layouts, archives, and blobs that lie here.
//!
//! ```text
//! Place ─ open ─► Source ─ read ─► Tree ─ edit ─► Tree ─ write ─► Target
//! ```
//!
//! A [`Tree`] holds the manifests of an image in memory, children before parents, and of every other blob only where its
//! bytes are. So whatever is done to an image before it is written (platforms chosen, configuration changed, layers
//! exchanged: [`crate::edit`]) moves no layer; and writing goes from one socket to the other, without a disk between,
//! wherever both ends allow it.
//!
//! | module | part |
//! |---|---|
//! | [`place`] | the names that places have on a command line |
//! | [`source`] | reading: a registry, or what lies here |
//! | [`local`] | layouts, archives and the store's blobs: documents, and where each blob's bytes are |
//! | [`docker_archive`] | what `docker save` writes, as manifests |
//! | [`tree`] | an image with all that belongs to it |
//! | [`target`] | writing to a registry |
//! | [`layout`], [`archive`] | writing to a directory, or as one tar |

use std::io;
use std::path::PathBuf;

use store::content::ContentError;
use store::content::archive::ArchiveError;
use store::oci::{Digest, ManifestError, ReferenceError};

use crate::error::ClientError;

pub mod archive;
pub mod docker_archive;
pub mod layout;
pub mod local;
pub mod place;
pub mod source;
pub mod target;
pub mod tree;

pub use local::Local;
pub use place::{Pick, Place};
pub use source::Source;
pub use target::{ArchiveOut, CopyReport, Target, open_blob, write, write_rest};
pub use tree::{Tree, Wanted};

/// Why an image could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A registry, or the way there.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A text that names no place.
    #[error("`{text}` names no image: {reason}")]
    Place {
        /// The text.
        text: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A text that is no reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A file or folder of this machine.
    #[error("cannot {action} `{}`", .path.display())]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system.
    #[error(transparent)]
    Fs(#[from] store::fs::FsError),
    /// A layout or archive that is not what it should be.
    #[error("`{}`: {reason}", .path.display())]
    BadLayout {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A document that is no manifest.
    #[error("manifest {digest} is not valid")]
    Manifest {
        /// Its digest.
        digest: Box<Digest>,
        /// Why.
        source: ManifestError,
    },
    /// A blob that is named, but is not there.
    #[error("{digest} is missing in `{place}`")]
    Missing {
        /// The blob.
        digest: Box<Digest>,
        /// Where it was looked for.
        place: String,
    },
    /// Bytes that are not those that were named.
    #[error("the content of {expected} in `{place}` has digest {actual}")]
    Corrupt {
        /// What was named.
        expected: Box<Digest>,
        /// What is there.
        actual: Box<Digest>,
        /// Where.
        place: String,
    },
    /// More than is taken.
    #[error("`{place}` has more than {max} {what}")]
    TooMuch {
        /// Where.
        place: String,
        /// Of what.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// There is no image for the platform.
    #[error("`{place}` has no image for {wanted}: it has {available}")]
    NoPlatform {
        /// Where.
        place: String,
        /// The platforms asked for.
        wanted: String,
        /// Those there are.
        available: String,
    },
    /// What was asked for cannot be done with this image.
    #[error("`{place}`: {reason}")]
    Unfit {
        /// Which image.
        place: String,
        /// Why not, and what would be.
        reason: String,
    },
    /// A blob could not be kept.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// An archive could not be read or written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

impl CopyError {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> CopyError {
        let path = path.into();
        move |source| CopyError::File {
            action,
            path,
            source,
        }
    }
}
