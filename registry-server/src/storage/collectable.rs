//! What a collection of garbage needs of a storage, beside what serving needs.

use std::collections::BTreeMap;
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
    /// When what it names was last pulled; known of manifests only, and to the hour.
    pub pulled: Option<SystemTime>,
}

/// A tag of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundTag {
    /// Its name.
    pub tag: String,
    /// What it is on; `None` of one that was removed and left something behind.
    pub digest: Option<Digest>,
    /// When it was last put on something, or removed.
    pub made: SystemTime,
    /// What is another one once the tag has moved; `None` where looking at the tag is as cheap.
    pub mark: Option<String>,
}

/// Tags that were seen before, with their marks.
pub type KnownTags = BTreeMap<String, (String, Digest)>;

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
    /// A tag that is on this; `None` if it was removed and left something behind.
    Tag(RepositoryName, String, Option<Digest>),
    /// A manifest of a repository, and where it is listed as a referrer.
    Manifest(RepositoryName, Digest, Option<Digest>),
    /// A repository's link to a blob.
    Link(RepositoryName, Digest),
    /// Data.
    Data(Digest),
}

impl Garbage {
    /// What somebody leaves a note of who relies on it.
    pub fn note(&self) -> Digest {
        match self {
            Garbage::Tag(repository, tag, _) => tag_note(repository, tag),
            Garbage::Manifest(_, digest, _) | Garbage::Link(_, digest) | Garbage::Data(digest) => {
                *digest
            }
        }
    }
}

/// What stands for a tag among the digests that somebody relies on.
pub fn tag_note(repository: &RepositoryName, tag: &str) -> Digest {
    Digest::of(format!("tag {repository}:{tag}").as_bytes())
}

/// Held while a collection runs; its end is the collection's.
pub trait Announcement: fmt::Debug {
    /// Removes what nobody has left a note of since the announcement; says of each whether it did.
    fn remove(&self, batch: &[Garbage]) -> StorageResult<Vec<bool>>;

    /// How many are best removed at once: so few that no push waits noticeably.
    fn batch(&self) -> usize;
}

/// A storage whose garbage can be collected while it is used. `docs/design/0006-registry-storage.md` says how.
pub trait Collectable: RegistryStorage {
    /// Announces a collection: from here on whoever relies on something leaves a note, and who began before has
    /// finished. `None` if another collection runs.
    fn announce(&self) -> StorageResult<Option<Box<dyn Announcement + '_>>>;

    /// The tags of a repository. What `known` says of a mark need not be asked for again.
    fn tag_links(
        &self,
        repository: &RepositoryName,
        known: &KnownTags,
    ) -> StorageResult<Vec<FoundTag>>;

    /// What [`remember`](Collectable::remember) kept of a repository.
    fn recall(&self, _repository: &RepositoryName) -> StorageResult<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Keeps what the next collection need not read again, where reading is dear.
    fn remember(&self, _repository: &RepositoryName, _bytes: Vec<u8>) -> StorageResult<()> {
        Ok(())
    }

    /// Whether it remembers.
    fn remembers(&self) -> bool {
        false
    }

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

    /// The same with the data whose digests begin with this byte.
    fn data_beginning(
        &self,
        byte: u8,
        found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
    ) -> StorageResult<()>;

    /// Computes the digest of stored data; `None` if it is gone. Asks `go_on` after so many bytes each time; false ends
    /// it, and the result means nothing.
    fn rehash(
        &self,
        digest: &Digest,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> StorageResult<Option<Digest>>;

    /// What was written down last of how far a scrubbing is.
    fn scrub_note(&self) -> StorageResult<Option<Vec<u8>>>;

    /// Writes it down.
    fn set_scrub_note(&self, note: Vec<u8>) -> StorageResult<()>;

    /// Takes data away from where it is served, keeping it for a look.
    fn quarantine(&self, digest: &Digest) -> StorageResult<()>;
}
