//! What a collection of garbage needs of a storage, beside what serving needs.

use std::fmt;
use std::time::SystemTime;

use store::oci::Digest;

use super::{RegistryStorage, StorageResult};
use crate::routes::RepositoryName;

/// A link of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundLink {
    /// What it names.
    pub digest: Digest,
    /// The digest that the data is stored under; the same but for what distribution wrote in SHA-512.
    pub stored: Digest,
    /// When it was made, or last found useful.
    pub made: SystemTime,
}

/// Data of a blob or manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundData {
    /// Its digest, as its place says.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// When its last byte was written.
    pub made: SystemTime,
}

/// Something that nothing needs, as far as was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// A manifest of a repository, and where it is listed as a referrer.
    Manifest(RepositoryName, Digest, Option<Digest>),
    /// A repository's link to a blob.
    Link(RepositoryName, Digest),
    /// Data.
    Data(Digest),
}

/// Held while a collection runs; its end is the collection's.
pub trait Announcement: fmt::Debug {}

/// A storage whose garbage can be collected while it is used. `docs/design/0006-registry-storage.md` says how.
pub trait Collectable: RegistryStorage {
    /// Announces a collection: from here on whoever relies on something leaves a note, and who began before has
    /// finished. `None` if another collection runs.
    fn announce(&self) -> StorageResult<Option<Box<dyn Announcement>>>;

    /// The manifests of a repository.
    fn manifest_links(&self, repository: &RepositoryName) -> StorageResult<Vec<FoundLink>>;

    /// The blobs of a repository.
    fn blob_links(&self, repository: &RepositoryName) -> StorageResult<Vec<FoundLink>>;

    /// When a tag was last put on something; `None` if it is not there.
    fn tag_made(&self, repository: &RepositoryName, tag: &str)
    -> StorageResult<Option<SystemTime>>;

    /// Calls `found` with all data, in no order.
    fn each_data(&self, found: &mut dyn FnMut(FoundData) -> StorageResult<()>)
    -> StorageResult<()>;

    /// Removes what nobody has left a note of since the announcement; says of each whether it did.
    fn remove_garbage(&self, batch: &[Garbage]) -> StorageResult<Vec<bool>>;

    /// Computes the digest of stored data; `None` if it is gone.
    fn rehash(&self, digest: &Digest) -> StorageResult<Option<Digest>>;

    /// Takes data away from where it is served, keeping it for a look.
    fn quarantine(&self, digest: &Digest) -> StorageResult<()>;
}
