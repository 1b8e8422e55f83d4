//! What a registry keeps, behind one trait: [`RegistryStorage`].
//!
//! | implementation | where |
//! |---|---|
//! | [`memory`] | in the process; for tests of clients |
//! | [`disk`] | a folder in CNCF distribution's layout |
//! | [`objects`] | a bucket in the same layout, shared by any number of replicas |
//!
//! The trait knows the names that handlers were given after parsing ([`RepositoryName`], [`Digest`],
//! [`UploadId`]), never URLs or statuses. Its methods block: they are called on blocking threads only.
//! A blob or manifest is visible in a repository only as a whole, and only after its bytes were hashed:
//! [`VerifiedUpload`] and [`VerifiedManifest`] cannot be made otherwise.

pub mod collectable;
pub mod disk;
pub mod memory;
pub mod objects;
mod walk;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::Stream;
use store::oci::{Digest, Hasher};

use crate::routes::{RepositoryName, UploadId};

/// Why storage failed; never that something is absent, which is `None` or `false`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The file system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// A file of the layout does not hold what it must.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The object store refused, or the way there failed.
    #[error("cannot {action} `{key}` in the bucket")]
    Object {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: String,
        /// Why.
        source: Box<object_store::Error>,
    },
    /// The object store said nothing for too long.
    #[error("cannot {action} `{key}` in the bucket: no answer in {} s", patience.as_secs())]
    Stalled {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: String,
        /// How long it was waited.
        patience: Duration,
    },
    /// Something took longer than what it relied on was sure to stay.
    #[error("the storage took longer than {} s: what was relied on may be gone", limit.as_secs())]
    TooSlow {
        /// The longest that is taken.
        limit: Duration,
    },
    /// The storage cannot do what was asked.
    #[error("{reason}")]
    Unsupported {
        /// What it cannot.
        reason: &'static str,
    },
}

/// Bytes as they come from elsewhere.
pub type RemoteStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A blob's bytes on another server, fetched while they are sent on.
pub trait RemoteBlob: Send + Sync + fmt::Debug {
    /// Bytes `range` of the blob; ends early only with an error.
    fn stream(&self, range: Range<u64>) -> RemoteStream;
}

/// Longest link that is read: `sha512:` and 128 digits, with room to spare.
const LINK_BYTES_MAX: u64 = 256;

/// Seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.map_or(0, |since| since.as_secs())).unwrap_or(i64::MAX)
}

/// A tag and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTag {
    /// Its name.
    pub name: String,
    /// When it was put on what it is on, as finely as the storage knows; `None` where it does not.
    pub made: Option<SystemTime>,
}

/// A blob's content.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// In memory.
    Bytes(Bytes),
    /// A file, open for reading, whose content does not change.
    File(Arc<File>),
    /// Elsewhere.
    Remote(Arc<dyn RemoteBlob>),
}

/// A blob that a repository has.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Length in bytes.
    pub size: u64,
    /// The content.
    pub source: BlobSource,
}

/// The bytes of an upload session while they arrive.
pub trait UploadData: Send + Sync + fmt::Debug {
    /// Bytes written so far.
    fn size(&self) -> io::Result<u64>;
    /// Reads from `offset`; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts back to `size` bytes.
    fn truncate(&self, size: u64) -> io::Result<()>;
    /// Makes sure that whoever opens the session next finds what was written.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    /// Takes the bytes at the end that are not stored yet; they go into the [`VerifiedUpload`].
    fn take_tail(&self) -> Bytes {
        Bytes::new()
    }
}

/// An upload whose bytes were hashed and are what its digest says.
#[derive(Debug)]
pub struct VerifiedUpload {
    id: UploadId,
    digest: Digest,
    size: u64,
    tail: Bytes,
}

impl VerifiedUpload {
    /// The proof, if `computed`, the hash of the session's `size` bytes, is `expected`.
    pub fn check(
        id: UploadId,
        size: u64,
        computed: Digest,
        expected: Digest,
    ) -> Option<VerifiedUpload> {
        (computed == expected).then_some(VerifiedUpload {
            id,
            digest: expected,
            size,
            tail: Bytes::new(),
        })
    }

    /// The same with the bytes that the session had, but its storage has not ([`UploadData::take_tail`]).
    #[must_use]
    pub fn with_tail(mut self, tail: Bytes) -> VerifiedUpload {
        self.tail = tail;
        self
    }

    /// The last of the upload's bytes, where its storage does not have them.
    pub fn tail(&self) -> &Bytes {
        &self.tail
    }

    /// The session.
    pub fn id(&self) -> &UploadId {
        &self.id
    }

    /// The blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// A manifest's bytes with the digest they were hashed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedManifest {
    digest: Digest,
    bytes: Bytes,
    media_type: String,
}

impl VerifiedManifest {
    /// The proof, if `bytes` hash to `expected`.
    pub fn check(bytes: Bytes, media_type: String, expected: Digest) -> Option<VerifiedManifest> {
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(&bytes);
        (hasher.finish() == expected).then_some(VerifiedManifest {
            digest: expected,
            bytes,
            media_type,
        })
    }

    /// The digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The bytes, verbatim.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The type it was pushed as.
    pub fn media_type(&self) -> &str {
        &self.media_type
    }
}

/// Held while something is relied on; see [`RegistryStorage::rely_on`].
#[derive(Debug, Default)]
pub struct Reliance {
    /// Locked.
    _lock: Option<File>,
    /// When it was asked for, and how long it can be counted on.
    until: Option<(Instant, Duration)>,
}

impl Reliance {
    /// Lasts as long as a lock on this file.
    fn holding(lock: File) -> Reliance {
        Reliance {
            _lock: Some(lock),
            until: None,
        }
    }

    /// Can be counted on for so long.
    fn lasting(time: Duration) -> Reliance {
        Reliance {
            _lock: None,
            until: Some((Instant::now(), time)),
        }
    }

    /// Whether it lasted until now; to be asked before anybody is told that something was done in its shelter.
    pub fn confirm(&self) -> StorageResult<()> {
        match self.until {
            Some((began, time)) if began.elapsed() >= time => {
                Err(StorageError::TooSlow { limit: time })
            }
            _ => Ok(()),
        }
    }
}

/// What must hold of a tag for it to be changed, as `If-Match` and `If-None-Match` say; by default nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagCondition {
    /// The tag must be on what this says.
    pub on: Option<TagMatch>,
    /// The tag must not be on what this says.
    pub not_on: Option<TagMatch>,
}

/// What a tag is on, as a condition names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagMatch {
    /// Anything at all: the tag is there.
    Anything,
    /// One of these.
    Of(Vec<Digest>),
}

impl TagCondition {
    /// Holds while the tag is on `digest`.
    pub fn on(digest: Digest) -> TagCondition {
        TagCondition {
            on: Some(TagMatch::Of(vec![digest])),
            not_on: None,
        }
    }

    /// Whether it holds of a tag that is on `current`, or is not there.
    pub fn holds(&self, current: Option<&Digest>) -> bool {
        let on = self.on.as_ref().is_none_or(|wanted| wanted.is(current));
        let not_on = self.not_on.as_ref().is_some_and(|bad| bad.is(current));
        on && !not_on
    }
}

impl TagMatch {
    fn is(&self, current: Option<&Digest>) -> bool {
        match self {
            TagMatch::Anything => current.is_some(),
            TagMatch::Of(digests) => current.is_some_and(|digest| digests.contains(digest)),
        }
    }
}

/// What became of a tag that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagRemoval {
    /// It is gone.
    Removed,
    /// There was none.
    Absent,
    /// The condition did not hold.
    Refused,
}

/// Where a blob that is mounted may come from.
#[derive(Clone, Copy)]
pub enum MountSource<'a> {
    /// This repository.
    Repository(&'a RepositoryName),
    /// Any that this admits: those that the client may pull from, so that nobody learns of others what they have.
    Any(&'a dyn Fn(&RepositoryName) -> bool),
}

impl fmt::Debug for MountSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountSource::Repository(name) => write!(f, "Repository({name})"),
            MountSource::Any(_) => f.write_str("Any"),
        }
    }
}

/// Result of a storage call.
pub type StorageResult<T> = Result<T, StorageError>;

/// A registry's repositories, blobs, uploads, manifests and tags.
pub trait RegistryStorage: Send + Sync + fmt::Debug + 'static {
    /// The blob, if the repository has it.
    fn blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<Option<Blob>>;

    /// Where clients can fetch the blob themselves for a while, and its length; `None` if the repository has none, or the
    /// storage sends nobody elsewhere.
    fn blob_url(
        &self,
        _repository: &RepositoryName,
        _digest: &Digest,
    ) -> StorageResult<Option<(String, u64)>> {
        Ok(None)
    }

    /// The blob's length, if the repository has it.
    fn blob_size(&self, repository: &RepositoryName, digest: &Digest)
    -> StorageResult<Option<u64>>;

    /// Gives the repository a blob that another has already; false if there is none, or it is too dear to find.
    fn mount_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: MountSource<'_>,
    ) -> StorageResult<bool>;

    /// Takes a blob away from the repository; false if it had none.
    fn remove_blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool>;

    /// Opens a session.
    fn create_upload(&self, repository: &RepositoryName) -> StorageResult<UploadId>;

    /// A session's bytes, if there is one.
    fn upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
    ) -> StorageResult<Option<Arc<dyn UploadData>>>;

    /// Ends a session: its bytes are now a blob of the repository.
    fn commit_upload(
        &self,
        repository: &RepositoryName,
        upload: &VerifiedUpload,
    ) -> StorageResult<()>;

    /// Keeps a blob that comes in one go, so that it need not be stored before it is one. False, and nothing was kept, if its
    /// bytes are not what `digest` and `size` say; they may be left where they are if the storage has the blob.
    fn keep_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        size: u64,
        pieces: &mut dyn Iterator<Item = io::Result<Bytes>>,
    ) -> StorageResult<bool> {
        keep_through_upload(self, repository, digest, size, pieces)
    }

    /// Drops a session and its bytes; false if there was none.
    fn cancel_upload(&self, repository: &RepositoryName, id: &UploadId) -> StorageResult<bool>;

    /// Drops sessions begun longer than `age` ago; returns how many.
    fn purge_uploads(&self, age: Duration) -> StorageResult<u64>;

    /// Makes sure that these blobs of the repository survive a crash of the machine; called before a manifest
    /// that refers to them is put.
    fn settle_blobs(&self, repository: &RepositoryName, blobs: &[Digest]) -> StorageResult<()>;

    /// Keeps a manifest in the repository, and under its subject if it has one.
    fn put_manifest(
        &self,
        repository: &RepositoryName,
        manifest: &VerifiedManifest,
        subject: Option<&Digest>,
    ) -> StorageResult<()>;

    /// The manifest, if the repository has it.
    fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<VerifiedManifest>>;

    /// Whether the repository has the manifest.
    fn has_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool>;

    /// Removes a manifest and every tag on it; false if there was none.
    fn remove_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool>;

    /// What a tag is on.
    fn tag(&self, repository: &RepositoryName, tag: &str) -> StorageResult<Option<Digest>>;

    /// Puts a tag on a manifest that the repository has, unless the condition does not hold; false then. No
    /// other change of the tag comes between the look and the change.
    fn set_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        digest: &Digest,
        condition: &TagCondition,
    ) -> StorageResult<bool>;

    /// Removes a tag, unless the condition does not hold; as indivisibly.
    fn remove_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        condition: &TagCondition,
    ) -> StorageResult<TagRemoval>;

    /// Lets a tag be as old as this, if it is on `digest` still and the storage can keep that. For rules that keep what
    /// was put last, of a registry that was copied.
    fn date_tag(
        &self,
        _repository: &RepositoryName,
        _tag: &str,
        _digest: &Digest,
        _made: SystemTime,
    ) -> StorageResult<()> {
        Ok(())
    }

    /// Up to `limit` tags after `last`, in ASCII order; `None` if nothing was ever pushed to the repository.
    fn tags_after(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Option<Vec<String>>>;

    /// All tags in ASCII order; `None` if nothing was ever pushed to the repository.
    fn tags(&self, repository: &RepositoryName) -> StorageResult<Option<Vec<String>>> {
        self.tags_after(repository, None, usize::MAX)
    }

    /// The same with times.
    fn tags_made(&self, repository: &RepositoryName) -> StorageResult<Option<Vec<ListedTag>>>;

    /// Up to `limit` repositories after `last`, ordered by their components.
    fn repositories(&self, last: Option<&str>, limit: usize) -> StorageResult<Vec<RepositoryName>>;

    /// Keeps a collection from removing these, and what is linked and put meanwhile, until the result is dropped. Asked
    /// for before looking whether they are there, and confirmed before saying that it was done. A tag is relied on as
    /// [`collectable::tag_note`].
    fn rely_on(&self, digests: &[Digest]) -> StorageResult<Reliance>;

    /// Notes that a manifest was pulled just now, for rules that keep what is pulled.
    fn mark_pulled(&self, _repository: &RepositoryName, _digest: &Digest) -> StorageResult<()> {
        Ok(())
    }

    /// Whether it is elsewhere, so that what is stored in order to be read again goes there and back.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether it works: that it can be read, and with `writes` also written.
    fn probe(&self, writes: bool) -> StorageResult<()>;

    /// Bytes of the disk that it is on, and how many of them are free, where it is on one.
    fn disk(&self) -> StorageResult<Option<(u64, u64)>> {
        Ok(None)
    }

    /// A folder for what servers on this storage keep for themselves, below a name that we chose; `None` where it is in no folder.
    fn local_folder(&self, _name: &'static str) -> Option<PathBuf> {
        None
    }

    /// Something that changes at least whenever a tag of the repository is added or removed, and not often otherwise; `None`
    /// where nothing tells it cheaply.
    fn tags_stamp(&self, _: &RepositoryName) -> StorageResult<Option<SystemTime>> {
        Ok(None)
    }

    /// The storage as one whose garbage can be collected, if it is one.
    fn collectable(&self) -> Option<&dyn collectable::Collectable> {
        None
    }

    /// The blobs and manifests of a repository, in no order.
    fn contents(&self, repository: &RepositoryName) -> StorageResult<Vec<Digest>>;

    /// Length of a blob or manifest that some repository has; `None` if none has.
    fn data_size(&self, digest: &Digest) -> StorageResult<Option<u64>>;

    /// What all servers on this storage know and nobody else does, under a name that we chose; `fresh` if there was nothing.
    fn secret(&self, name: &'static str, fresh: &[u8]) -> StorageResult<Vec<u8>>;

    /// Leaves a note for all servers on this storage; who looks afterwards finds it. Topic and note are names that we chose.
    fn leave_note(&self, topic: &str, note: &str) -> StorageResult<()>;

    /// The notes of a topic that come after this text, in order.
    fn notes(&self, topic: &str, after: &str) -> StorageResult<Vec<String>>;

    /// Takes a note away; one that is not there is no error.
    fn drop_note(&self, topic: &str, note: &str) -> StorageResult<()>;

    /// Digests of manifests put with `subject`, in order; some may have been removed since.
    fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> StorageResult<Vec<Digest>>;
}

/// Removes those of `tags` that are on a manifest; one that is moved meanwhile stays, as well as the storage allows.
fn remove_tags_on(
    storage: &impl RegistryStorage,
    repository: &RepositoryName,
    digest: &Digest,
    tags: &[String],
) -> StorageResult<()> {
    let on_it = TagCondition::on(*digest);
    for tag in tags {
        if storage.tag(repository, tag)?.as_ref() != Some(digest) {
            continue;
        }
        match storage.remove_tag(repository, tag, &on_it) {
            Err(StorageError::Unsupported { .. }) => {
                storage.remove_tag(repository, tag, &TagCondition::default())?;
            }
            removed => {
                removed?;
            }
        }
    }
    Ok(())
}

/// Keeps a blob as if it were uploaded.
fn keep_through_upload(
    storage: &(impl RegistryStorage + ?Sized),
    repository: &RepositoryName,
    digest: &Digest,
    size: u64,
    mut pieces: &mut dyn Iterator<Item = io::Result<Bytes>>,
) -> StorageResult<bool> {
    let id = storage.create_upload(repository)?;
    let Some(upload) = storage.upload(repository, &id)? else {
        return Ok(false);
    };
    let mut hasher = Hasher::new(digest.algorithm());
    let mut written = 0;
    let copied = Iterator::try_for_each(&mut pieces, |piece| {
        let piece = piece?;
        hasher.update(&piece);
        upload.write_at(&piece, written)?;
        written += piece.len() as u64;
        io::Result::Ok(())
    });
    if let Err(source) = copied {
        storage.cancel_upload(repository, &id)?;
        return Err(StorageError::Io {
            action: "copy",
            path: digest.to_string().into(),
            source,
        });
    }
    let verified = VerifiedUpload::check(id.clone(), written, hasher.finish(), *digest);
    let Some(verified) = verified.filter(|verified| verified.size() == size) else {
        storage.cancel_upload(repository, &id)?;
        return Ok(false);
    };
    let verified = verified.with_tail(upload.take_tail());
    storage.commit_upload(repository, &verified)?;
    Ok(true)
}

/// What a manifest is called whose type nothing tells.
pub(crate) const UNTOLD: &str = "application/octet-stream";

/// The type of a manifest that nothing but its bytes tells: its `mediaType`, else what its fields look like.
pub(crate) fn media_type_of(bytes: &[u8]) -> String {
    use serde::Deserialize;
    use serde::de::IgnoredAny;
    use store::oci::MediaType;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
    }
    match serde_json::from_slice::<Shape>(bytes) {
        Ok(Shape {
            media_type: Some(media_type),
            ..
        }) if !media_type.is_empty() => media_type,
        Ok(Shape {
            manifests: Some(_), ..
        }) => MediaType::OCI_INDEX.to_owned(),
        Ok(Shape {
            config: Some(_), ..
        }) => MediaType::OCI_MANIFEST.to_owned(),
        _ => UNTOLD.to_owned(),
    }
}
