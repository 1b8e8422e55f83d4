//! A bucket in CNCF distribution's layout: any number of replicas on one bucket are one registry.
//!
//! Keys are those of [`super::disk`]; what differs, because a bucket has neither renames nor locks:
//!
//! | what | how |
//! |---|---|
//! | a blob or manifest appears whole | an object does: one PUT, or a multipart upload completed after its bytes were hashed |
//! | an upload's bytes | objects `_uploads/<id>/_parts/<offset>`, so that any replica can go on with it |
//! | a tag changes under a condition | a conditional PUT of `current/link` |
//! | a tag is removed | `current/link` becomes empty: a DELETE could hit what another replica has just put there |
//!
//! It is written against the store being strongly consistent, as S3 and everything that speaks it are for
//! single objects and lists. `docs/design/0006-registry-storage.md` has the reasons.
//!
//! Calls block on the runtime they were given, on the blocking threads that storage is called on.

mod collection;
pub(crate) mod keys;
pub(crate) mod link;
mod parts;
mod tags;
pub(crate) mod whole;

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::signer::Signer;
use object_store::{
    GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    UpdateVersion,
};
use store::oci::{Digest, time};
use tokio::runtime::Handle;

use self::link::TagLink;
use self::parts::Parts;
use self::whole::Whole;
use super::walk::{Walker, walk};
use super::{
    Blob, BlobSource, ListedTag, MountSource, RegistryStorage, Reliance, RemoteBlob, RemoteStream,
    StorageError, StorageResult, TagCondition, TagRemoval, UploadData, VerifiedManifest,
    VerifiedUpload, media_type_of, now_seconds, remove_tags_on,
};
use crate::routes::{RepositoryName, UploadId};
use crate::storage::collectable::Collectable;

pub use self::collection::Pace;

/// A link that is younger than this is not made young again.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// How long clients may begin to fetch a blob that they were sent to: as long as distribution's.
const SIGNED_FOR: Duration = Duration::from_secs(20 * 60);

/// How often a blob that a collection removes meanwhile is stored again.
const STORE_TRIES: usize = 4;

/// How long one small request may take with its repetitions.
const PATIENCE: Duration = Duration::from_secs(60);

/// Repositories that are looked through for a blob that is mounted from nowhere in particular.
const REPOSITORIES_SEARCHED: usize = 16;

/// Objects that are deleted at once.
const DELETES: usize = 16;

/// A registry in a bucket.
pub struct ObjectStorage {
    store: Arc<dyn ObjectStore>,
    /// The same one.
    multiparts: Arc<dyn MultipartStore>,
    /// `[<prefix>/]docker/registry/v2`
    base: Key,
    runtime: Handle,
    /// Whether the store keeps to `If-Match` and `If-None-Match` on PUT.
    conditional: bool,
    /// Makes URLs that clients fetch blobs from themselves.
    signer: Option<Arc<dyn Signer>>,
    pace: Pace,
    view: Mutex<collection::View>,
}

/// Longest secret.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

impl fmt::Debug for ObjectStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStorage")
            .field("base", &self.base)
            .field("conditional", &self.conditional)
            .finish_non_exhaustive()
    }
}

impl ObjectStorage {
    /// A registry below `prefix` (empty for none). Asks the store whether it keeps to conditions, so this fails
    /// where it cannot be reached or written.
    pub fn open<S: ObjectStore + MultipartStore>(
        store: Arc<S>,
        prefix: &str,
        runtime: Handle,
    ) -> StorageResult<ObjectStorage> {
        let base = Key::from(format!("{prefix}/docker/registry/v2"));
        let mut storage = ObjectStorage {
            store: Arc::<S>::clone(&store),
            multiparts: store,
            base,
            runtime,
            conditional: true,
            signer: None,
            pace: Pace::default(),
            view: Mutex::default(),
        };
        storage.conditional = storage.keeps_to_conditions()?;
        if !storage.conditional {
            tracing::warn!(
                "the bucket ignores conditions: tags cannot be compared and swapped, and a delete by digest may race"
            );
        }
        Ok(storage)
    }

    /// The same, sending clients to the bucket for blobs, with URLs that `signer` makes.
    #[must_use]
    pub fn redirecting(mut self, signer: Arc<dyn Signer>) -> ObjectStorage {
        self.signer = Some(signer);
        self
    }

    /// Some stores take the headers and do not look at them.
    fn keeps_to_conditions(&self) -> StorageResult<bool> {
        let key = self.key(&format!("_probe/{}", UploadId::random()));
        let first = self.put_new(&key, Bytes::from_static(b"1"))?;
        let second = self.put_new(&key, Bytes::from_static(b"2"));
        self.delete(&key)?;
        match second {
            Ok(second) => Ok(first && !second),
            Err(StorageError::Unsupported { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn key(&self, path: &str) -> Key {
        Key::from(format!("{}/{path}", self.base))
    }

    fn blob_data(&self, digest: &Digest) -> Key {
        let hex = digest.hex();
        self.key(&format!(
            "blobs/{}/{}/{hex}/data",
            digest.algorithm(),
            &hex[..2]
        ))
    }

    fn in_repository(&self, name: &RepositoryName, path: &str) -> Key {
        self.key(&format!("repositories/{name}/{path}"))
    }

    fn layer_link(&self, name: &RepositoryName, digest: &Digest) -> Key {
        self.in_repository(name, &format!("_layers/{}/link", below(digest)))
    }

    fn revision(&self, name: &RepositoryName, digest: &Digest, file: &str) -> Key {
        self.in_repository(
            name,
            &format!("_manifests/revisions/{}/{file}", below(digest)),
        )
    }

    fn tags_folder(&self, name: &RepositoryName) -> Key {
        self.in_repository(name, "_manifests/tags")
    }

    fn tag_link(&self, name: &RepositoryName, tag: &str) -> Key {
        self.in_repository(name, &format!("_manifests/tags/{tag}/current/link"))
    }

    fn upload_file(&self, name: &RepositoryName, id: &UploadId, file: &str) -> Key {
        self.in_repository(name, &format!("_uploads/{id}/{file}"))
    }

    fn note(&self, topic: &str, note: &str) -> Key {
        self.key(&format!("_notes/{topic}/{note}"))
    }

    /// Waits for one request with its repetitions.
    fn wait<T>(
        &self,
        action: &'static str,
        key: &Key,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> StorageResult<T> {
        self.runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, request).await {
                Ok(result) => result.map_err(|error| failed(action, key, error)),
                Err(_) => Err(StorageError::Stalled {
                    action,
                    key: key.to_string(),
                    patience: PATIENCE,
                }),
            }
        })
    }

    fn size(&self, key: &Key) -> StorageResult<Option<u64>> {
        absent_is_none(self.wait("look for", key, self.store.head(key)))
            .map(|found| found.map(|meta| meta.size))
    }

    fn exists(&self, key: &Key) -> StorageResult<bool> {
        Ok(self.size(key)?.is_some())
    }

    /// An object's bytes, at most `limit`.
    fn read(&self, key: &Key, limit: u64) -> StorageResult<Option<Bytes>> {
        let read = async {
            let found = self.store.get(key).await?;
            if found.meta.size > limit {
                return Ok(None);
            }
            found.bytes().await.map(Some)
        };
        match absent_is_none(self.wait("read", key, read))? {
            None => Ok(None),
            Some(Some(bytes)) => Ok(Some(bytes)),
            Some(None) => Err(StorageError::Damaged {
                path: key.to_string().into(),
                reason: format!("it has more than {limit} bytes"),
            }),
        }
    }

    fn put(&self, key: &Key, bytes: Bytes) -> StorageResult<()> {
        self.wait("write", key, self.store.put(key, bytes.into()))
            .map(drop)
    }

    /// Writes an object that is not there yet; false if it is.
    fn put_new(&self, key: &Key, bytes: Bytes) -> StorageResult<bool> {
        self.put_if(key, bytes, PutMode::Create)
    }

    /// Writes an object unless the condition does not hold; false then.
    fn put_if(
        &self,
        key: &Key,
        bytes: Bytes,
        options: impl Into<PutOptions>,
    ) -> StorageResult<bool> {
        let put = self
            .store
            .put_opts(key, PutPayload::from(bytes), options.into());
        match self.wait("write", key, put) {
            Ok(_) => Ok(true),
            Err(StorageError::Object { source, .. })
                if matches!(
                    *source,
                    object_store::Error::AlreadyExists { .. }
                        | object_store::Error::Precondition { .. }
                ) =>
            {
                Ok(false)
            }
            Err(StorageError::Object { source, .. })
                if matches!(
                    *source,
                    object_store::Error::NotImplemented { .. }
                        | object_store::Error::NotSupported { .. }
                ) =>
            {
                Err(no_conditions())
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes an object; one that is not there is no error.
    fn delete(&self, key: &Key) -> StorageResult<()> {
        absent_is_none(self.wait("remove", key, self.store.delete(key))).map(drop)
    }

    /// Deletes everything below a key.
    fn delete_below(&self, prefix: &Key) -> StorageResult<()> {
        let keys = self.list(prefix)?.into_iter().map(|meta| meta.location);
        let all = futures_util::stream::iter(keys)
            .map(|key| async move {
                match self.store.delete(&key).await {
                    Err(object_store::Error::NotFound { .. }) => Ok(()),
                    deleted => deleted,
                }
            })
            .buffer_unordered(DELETES)
            .try_collect::<()>();
        self.wait("remove", prefix, all)
    }

    /// Everything below a key, sorted.
    fn list(&self, prefix: &Key) -> StorageResult<Vec<ObjectMeta>> {
        let list = self.store.list(Some(prefix)).try_collect::<Vec<_>>();
        let mut found = self.wait("list", prefix, list)?;
        found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        Ok(found)
    }

    /// Whether anything was ever pushed to it.
    fn is_repository(&self, repository: &RepositoryName) -> StorageResult<bool> {
        let in_it = |place: &str| self.has_any(&self.in_repository(repository, place));
        Ok(in_it("_manifests")? || in_it("_layers")?)
    }

    /// Whether anything is below a key.
    fn has_any(&self, prefix: &Key) -> StorageResult<bool> {
        let mut list = self.store.list(Some(prefix));
        let first = async { list.next().await.transpose() };
        Ok(self.wait("list", prefix, first)?.is_some())
    }

    fn read_link(&self, key: &Key) -> StorageResult<Option<Digest>> {
        match self.read(key, super::LINK_BYTES_MAX)? {
            Some(bytes) => link::parse(key, &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The digest whose data a link stands for; see [`super::disk`].
    fn resolve(&self, link: &Key, digest: &Digest) -> StorageResult<Option<Digest>> {
        if digest.algorithm() == store::oci::DigestAlgorithm::Sha256 {
            return Ok(self.exists(link)?.then_some(*digest));
        }
        self.read_link(link)
    }

    /// The blob in any of the first repositories. Looking through all would take longer than uploading it.
    fn find_blob(
        &self,
        digest: &Digest,
        admits: &dyn Fn(&RepositoryName) -> bool,
    ) -> StorageResult<Option<Digest>> {
        let (mut found, mut searched) = (None, 0);
        walk(self, None, &mut |name, folders| {
            searched += 1;
            if folders.iter().any(|folder| folder == "_layers") && admits(name) {
                found = self.resolve(&self.layer_link(name, digest), digest)?;
            }
            Ok(found.is_none() && searched < REPOSITORIES_SEARCHED)
        })?;
        Ok(found)
    }

    /// Makes an object of what comes; false, and there is none, if it is not what the digest says.
    fn send_blob(
        &self,
        to: &Key,
        digest: &Digest,
        size: u64,
        mut pieces: &mut dyn Iterator<Item = io::Result<Bytes>>,
    ) -> StorageResult<bool> {
        let mut whole = Whole::begin(self, to, digest, size);
        let sent = Iterator::try_for_each(&mut pieces, |piece| {
            let piece = piece.map_err(|source| StorageError::Io {
                action: "read",
                path: digest.to_string().into(),
                source,
            })?;
            self.runtime.block_on(whole.add(&piece))
        });
        let is_good = whole.digest() == *digest && whole.size() == size;
        match sent {
            Ok(()) if is_good => self.runtime.block_on(whole.finish()).map(|()| true),
            sent => {
                self.runtime.block_on(whole.give_up());
                sent.map(|()| false)
            }
        }
    }

    fn put_link(&self, key: &Key, digest: &Digest) -> StorageResult<()> {
        self.put(key, digest.to_string().into())
    }

    /// Makes a link young again: who asks for a blob is about to need it, and a collection keeps what is young.
    fn freshen(&self, key: &Key, found: &ObjectMeta, stored: &Digest) {
        let made = SystemTime::from(found.last_modified);
        if made.elapsed().unwrap_or_default() <= FRESH {
            return;
        }
        let text = Bytes::from(stored.to_string());
        let unchanged = PutMode::Update(UpdateVersion {
            e_tag: found.e_tag.clone(),
            version: found.version.clone(),
        });
        // One that was removed meanwhile stays so, where that can be told.
        let freshened = match self.conditional {
            true => self.put_if(key, text, unchanged).map(drop),
            false => self.put(key, text),
        };
        if let Err(error) = freshened {
            tracing::debug!(%error, "a link stays as old as it is");
        }
    }

    /// Puts a tag on something, or on nothing, unless the condition does not hold. `before` goes before that: what tells that the
    /// tag was ever on it, for who deletes that by digest looks there.
    fn change_tag(
        &self,
        key: &Key,
        to: Option<&Digest>,
        condition: &TagCondition,
        before: &dyn Fn() -> StorageResult<()>,
    ) -> StorageResult<Option<TagLink>> {
        let text = Bytes::from(to.map_or_else(String::new, Digest::to_string));
        loop {
            let current = TagLink::read(self, key)?;
            if !condition.holds(current.digest()) {
                return Ok(None);
            }
            if *condition == TagCondition::default() {
                // Nothing was asked, so whoever comes last wins.
                if to.is_some() || current.digest().is_some() {
                    before()?;
                    self.put(key, text)?;
                }
                return Ok(Some(current));
            }
            if to.is_none() && current.digest().is_none() {
                return Ok(Some(current));
            }
            if !self.conditional {
                return Err(no_conditions());
            }
            before()?;
            let writer = UploadId::random();
            let put = link::put(self, key, text.clone(), current.unchanged(), &writer);
            match put {
                Ok(true) => return Ok(Some(current)),
                // The answer may be to a repetition, after the one to the first was lost.
                put if TagLink::read(self, key)?.is_by(&writer) => {
                    tracing::debug!(%key, ?put, "a tag was written though the bucket said no");
                    return Ok(Some(current));
                }
                Err(error) => return Err(error),
                // Somebody was faster: look again.
                Ok(false) => {}
            }
        }
    }
}

/// `<alg>/<hex>`
fn below(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm(), digest.hex())
}

fn failed(action: &'static str, key: &Key, source: object_store::Error) -> StorageError {
    StorageError::Object {
        action,
        key: key.to_string(),
        source: Box::new(source),
    }
}

fn no_conditions() -> StorageError {
    StorageError::Unsupported {
        reason: "the bucket takes no conditional writes",
    }
}

fn absent_is_none<T>(result: StorageResult<T>) -> StorageResult<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StorageError::Object { source, .. })
            if matches!(*source, object_store::Error::NotFound { .. }) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A blob in the bucket, fetched while it is sent on.
struct RemoteObject {
    store: Arc<dyn ObjectStore>,
    key: Key,
}

impl fmt::Debug for RemoteObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteObject").field(&self.key).finish()
    }
}

impl RemoteBlob for RemoteObject {
    fn stream(&self, range: std::ops::Range<u64>) -> RemoteStream {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let begun = async move {
            let options = GetOptions::default().with_range(Some(range));
            let found = store.get_opts(&key, options).await?;
            Ok::<_, object_store::Error>(found.into_stream())
        };
        Box::pin(
            futures_util::stream::once(begun)
                .try_flatten()
                .map_err(std::io::Error::other),
        )
    }
}

/// The folders of a bucket, by its delimiter.
impl Walker for ObjectStorage {
    fn folders(&self, path: &str) -> StorageResult<Vec<String>> {
        let prefix = self.key(&format!("repositories/{path}"));
        let list = self.store.list_with_delimiter(Some(&prefix));
        let found = self.wait("list", &prefix, list)?;
        let names = found.common_prefixes.iter();
        Ok(names
            .filter_map(|prefix| prefix.filename().map(str::to_owned))
            .collect())
    }
}

impl RegistryStorage for ObjectStorage {
    fn blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<Option<Blob>> {
        let Some(digest) = self.resolve(&self.layer_link(repository, digest), digest)? else {
            return Ok(None);
        };
        let key = self.blob_data(&digest);
        let Some(size) = self.size(&key)? else {
            return Ok(None);
        };
        let object = RemoteObject {
            store: Arc::clone(&self.store),
            key,
        };
        Ok(Some(Blob {
            size,
            source: BlobSource::Remote(Arc::new(object)),
        }))
    }

    fn blob_url(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<(String, u64)>> {
        let Some(signer) = &self.signer else {
            return Ok(None);
        };
        let Some(stored) = self.resolve(&self.layer_link(repository, digest), digest)? else {
            return Ok(None);
        };
        let key = self.blob_data(&stored);
        let Some(size) = self.size(&key)? else {
            return Ok(None);
        };
        let signed = signer.signed_url(http::Method::GET, &key, SIGNED_FOR);
        let url = self.wait("sign a URL for", &key, signed)?;
        Ok(Some((url.into(), size)))
    }

    fn blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<u64>> {
        let link = self.layer_link(repository, digest);
        let Some(found) = absent_is_none(self.wait("look for", &link, self.store.head(&link)))?
        else {
            return Ok(None);
        };
        let stored = match digest.algorithm() {
            store::oci::DigestAlgorithm::Sha256 => *digest,
            _ => match self.read_link(&link)? {
                Some(stored) => stored,
                None => return Ok(None),
            },
        };
        self.freshen(&link, &found, &stored);
        self.size(&self.blob_data(&stored))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn probe(&self, writes: bool) -> StorageResult<()> {
        let key = self.key(&format!("_probe/{}", UploadId::random()));
        if writes {
            self.put(&key, Bytes::from_static(b"probe"))?;
            return self.delete(&key);
        }
        self.exists(&key).map(drop)
    }

    fn mount_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: MountSource<'_>,
    ) -> StorageResult<bool> {
        let found = match from {
            MountSource::Repository(from) => {
                self.resolve(&self.layer_link(from, digest), digest)?
            }
            MountSource::Any(admits) => self.find_blob(digest, admits)?,
        };
        let Some(found) = found else {
            return Ok(false);
        };
        let kept = self.rely(&[*digest, found])?;
        if !self.exists(&self.blob_data(&found))? {
            return Ok(false);
        }
        self.put_link(&self.layer_link(repository, digest), &found)?;
        kept.confirm()?;
        Ok(true)
    }

    fn remove_blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        let link = self.layer_link(repository, digest);
        let was_there = self.exists(&link)?;
        self.delete(&link)?;
        Ok(was_there)
    }

    fn create_upload(&self, repository: &RepositoryName) -> StorageResult<UploadId> {
        let id = UploadId::random();
        let started = time::rfc3339(now_seconds());
        self.put(
            &self.upload_file(repository, &id, "startedat"),
            started.into(),
        )?;
        Ok(id)
    }

    fn upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
    ) -> StorageResult<Option<Arc<dyn UploadData>>> {
        if !self.exists(&self.upload_file(repository, id, "startedat"))? {
            return Ok(None);
        }
        let folder = self.upload_file(repository, id, parts::FOLDER);
        let parts = Parts::open(Arc::clone(&self.store), folder, self.runtime.clone());
        Ok(Some(Arc::new(parts.map_err(|source| {
            StorageError::Io {
                action: "open",
                path: id.to_string().into(),
                source,
            }
        })?)))
    }

    fn commit_upload(
        &self,
        repository: &RepositoryName,
        upload: &VerifiedUpload,
    ) -> StorageResult<()> {
        let data = self.blob_data(upload.digest());
        let link = self.layer_link(repository, upload.digest());
        // A blob of the right length is the same one: only whole, hashed objects are put there.
        let is_there = || Ok::<_, StorageError>(self.size(&data)? == Some(upload.size()));
        for _ in 0..STORE_TRIES {
            if !is_there()? {
                let folder = self.upload_file(repository, upload.id(), parts::FOLDER);
                let parts = parts::list(&self.store, &folder);
                let parts = self.wait("list", &folder, parts)?;
                self.runtime
                    .block_on(parts::join(self, &parts, upload, &data))?;
            }
            // Not before: that may take as long as it takes.
            let kept = self.rely(&[*upload.digest()])?;
            if is_there()? {
                self.put_link(&link, upload.digest())?;
                if kept.confirm().is_ok() {
                    self.cancel_upload(repository, upload.id())?;
                    return Ok(());
                }
            }
        }
        Err(StorageError::TooSlow {
            limit: self.pace.request,
        })
    }

    fn keep_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        size: u64,
        pieces: &mut dyn Iterator<Item = io::Result<Bytes>>,
    ) -> StorageResult<bool> {
        let data = self.blob_data(digest);
        // As in `commit_upload`.
        let is_there = || Ok::<_, StorageError>(self.size(&data)? == Some(size));
        if !is_there()? && !self.send_blob(&data, digest, size, pieces)? {
            return Ok(false);
        }
        let kept = self.rely(&[*digest])?;
        if !is_there()? {
            // A collection came between, and the pieces came once.
            return Err(StorageError::TooSlow {
                limit: self.pace.request,
            });
        }
        self.put_link(&self.layer_link(repository, digest), digest)?;
        kept.confirm()?;
        Ok(true)
    }

    fn cancel_upload(&self, repository: &RepositoryName, id: &UploadId) -> StorageResult<bool> {
        let started = self.upload_file(repository, id, "startedat");
        let was_there = self.exists(&started)?;
        // First what makes it a session: nobody goes on with it then.
        self.delete(&started)?;
        self.delete_below(&self.in_repository(repository, &format!("_uploads/{id}")))?;
        Ok(was_there)
    }

    fn purge_uploads(&self, age: Duration) -> StorageResult<u64> {
        let mut purged = 0;
        walk(self, None, &mut |name, folders| {
            if !folders.iter().any(|folder| folder == "_uploads") {
                return Ok(true);
            }
            let prefix = self.in_repository(name, "_uploads");
            // The last byte counts, not the first: a long upload is not an abandoned one.
            let mut newest = std::collections::BTreeMap::new();
            for object in self.list(&prefix)? {
                if let Some(id) = keys::upload(&object.location, &prefix) {
                    let modified = object.last_modified.timestamp();
                    let entry = newest.entry(id).or_insert(modified);
                    *entry = (*entry).max(modified);
                }
            }
            for (id, modified) in newest {
                let idle = u64::try_from(now_seconds() - modified).unwrap_or(0);
                if Duration::from_secs(idle) >= age {
                    self.cancel_upload(name, &id)?;
                    purged += 1;
                }
            }
            Ok(true)
        })?;
        let aborted = whole::purge(self, age)?;
        if aborted > 0 {
            tracing::info!(aborted, "gave up multipart uploads that nobody completed");
        }
        Ok(purged)
    }

    fn settle_blobs(&self, _: &RepositoryName, _: &[Digest]) -> StorageResult<()> {
        // What a bucket has acknowledged it keeps.
        Ok(())
    }

    fn put_manifest(
        &self,
        repository: &RepositoryName,
        manifest: &VerifiedManifest,
        subject: Option<&Digest>,
    ) -> StorageResult<()> {
        let digest = manifest.digest();
        let data = self.blob_data(digest);
        if self.size(&data)? != Some(manifest.bytes().len() as u64) {
            self.put(&data, manifest.bytes().clone())?;
        }
        let media_type = self.revision(repository, digest, "mediatype");
        if media_type_of(manifest.bytes()) != manifest.media_type() {
            self.put(&media_type, manifest.media_type().to_owned().into())?;
        } else {
            self.delete(&media_type)?;
        }
        if let Some(subject) = subject {
            let path = format!("_referrers/{}/{}/link", below(subject), below(digest));
            self.put_link(&self.in_repository(repository, &path), digest)?;
        }
        self.put_link(&self.revision(repository, digest, "link"), digest)
    }

    fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<VerifiedManifest>> {
        let link = self.revision(repository, digest, "link");
        let Some(stored) = self.resolve(&link, digest)? else {
            return Ok(None);
        };
        let data = self.blob_data(&stored);
        let Some(bytes) = self.read(&data, store::MANIFEST_BYTES_MAX as u64)? else {
            return Ok(None);
        };
        let media_type = self.revision(repository, digest, "mediatype");
        let media_type = match self.read(&media_type, super::LINK_BYTES_MAX)? {
            Some(text) => String::from_utf8_lossy(&text).into_owned(),
            None => media_type_of(&bytes),
        };
        match VerifiedManifest::check(bytes, media_type, *digest) {
            Some(manifest) => Ok(Some(manifest)),
            None => Err(StorageError::Damaged {
                path: data.to_string().into(),
                reason: format!("its content is not that of {digest}"),
            }),
        }
    }

    fn has_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        let link = self.revision(repository, digest, "link");
        match self.resolve(&link, digest)? {
            Some(stored) => self.exists(&self.blob_data(&stored)),
            None => Ok(false),
        }
    }

    fn remove_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        if !self.has_manifest(repository, digest)? {
            return Ok(false);
        }
        remove_tags_on(
            self,
            repository,
            digest,
            &self.tags_that_named(repository, digest)?,
        )?;
        for file in ["link", "mediatype", collection::PULLED] {
            self.delete(&self.revision(repository, digest, file))?;
        }
        // A push that put another one on it meanwhile may have seen the manifest for the last time.
        remove_tags_on(
            self,
            repository,
            digest,
            &self.tags_that_named(repository, digest)?,
        )?;
        Ok(true)
    }

    fn tag(&self, repository: &RepositoryName, tag: &str) -> StorageResult<Option<Digest>> {
        let link = TagLink::read(self, &self.tag_link(repository, tag))?;
        Ok(link.digest().copied())
    }

    fn set_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        digest: &Digest,
        condition: &TagCondition,
    ) -> StorageResult<bool> {
        let history = format!("_manifests/tags/{tag}/index/{}/link", below(digest));
        let history = self.in_repository(repository, &history);
        let key = self.tag_link(repository, tag);
        let put_history = || self.put_link(&history, digest);
        let changed = self.change_tag(&key, Some(digest), condition, &put_history)?;
        Ok(changed.is_some())
    }

    fn remove_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        condition: &TagCondition,
    ) -> StorageResult<TagRemoval> {
        let key = self.tag_link(repository, tag);
        match self.change_tag(&key, None, condition, &|| Ok(()))? {
            None => Ok(TagRemoval::Refused),
            Some(before) if before.digest().is_none() => Ok(TagRemoval::Absent),
            // What it was ever on stays until a collection: another replica may just be putting it on something.
            Some(_) => Ok(TagRemoval::Removed),
        }
    }

    fn tags_after(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Option<Vec<String>>> {
        if limit == 0 {
            return Ok(self.is_repository(repository)?.then(Vec::new));
        }
        let page = self.page_of_tags(repository, last, limit)?;
        if page.is_empty() && !self.is_repository(repository)? {
            return Ok(None);
        }
        Ok(Some(page))
    }

    fn tags_made(&self, repository: &RepositoryName) -> StorageResult<Option<Vec<ListedTag>>> {
        let folder = self.tags_folder(repository);
        let mut tags = Vec::new();
        for object in self.list(&folder)? {
            if let Some(tag) = keys::tag(&object.location, &folder)
                // Empty is what a removed one leaves.
                && object.size > 0
            {
                tags.push(ListedTag {
                    name: tag.to_owned(),
                    made: Some(object.last_modified.into()),
                });
            }
        }
        if tags.is_empty() && !self.is_repository(repository)? {
            return Ok(None);
        }
        // Their keys have another order: `a-b/…` comes before `a/…`.
        tags.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(Some(tags))
    }

    fn repositories(&self, last: Option<&str>, limit: usize) -> StorageResult<Vec<RepositoryName>> {
        super::walk::repositories(self, last, limit)
    }

    fn rely_on(&self, digests: &[Digest]) -> StorageResult<Reliance> {
        self.rely(digests)
    }

    fn collectable(&self) -> Option<&dyn Collectable> {
        Some(self)
    }

    fn mark_pulled(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<()> {
        self.put(
            &self.revision(repository, digest, collection::PULLED),
            Bytes::new(),
        )
    }

    fn contents(&self, repository: &RepositoryName) -> StorageResult<Vec<Digest>> {
        let mut contents = Vec::new();
        for folder in ["_layers", "_manifests/revisions"] {
            let folder = self.in_repository(repository, folder);
            for object in self.list(&folder)? {
                if let Some((digest, "link")) = keys::link(&object.location, &folder) {
                    contents.push(digest);
                }
            }
        }
        Ok(contents)
    }

    fn data_size(&self, digest: &Digest) -> StorageResult<Option<u64>> {
        self.size(&self.blob_data(digest))
    }

    fn secret(&self, name: &'static str, fresh: &[u8]) -> StorageResult<Vec<u8>> {
        let key = self.key(&format!("_secrets/{name}"));
        if let Some(kept) = self.read(&key, SECRET_BYTES_MAX)? {
            return Ok(kept.to_vec());
        }
        let fresh = Bytes::copy_from_slice(fresh);
        if self.conditional {
            self.put_new(&key, fresh.clone())?;
        } else {
            self.put(&key, fresh.clone())?;
        }
        // Another server's, if it came first.
        let kept = self.read(&key, SECRET_BYTES_MAX)?;
        Ok(kept.unwrap_or(fresh).to_vec())
    }

    fn leave_note(&self, topic: &str, note: &str) -> StorageResult<()> {
        self.put(&self.note(topic, note), Bytes::new())
    }

    fn notes(&self, topic: &str, after: &str) -> StorageResult<Vec<String>> {
        let folder = self.key(&format!("_notes/{topic}"));
        let offset = self.note(topic, after);
        let list = self.store.list_with_offset(Some(&folder), &offset);
        let list = list.try_collect::<Vec<_>>();
        let found = self.wait("list", &folder, list)?.into_iter();
        let names = found.filter_map(|object| Some(object.location.filename()?.to_owned()));
        // Not every store begins where it is asked to.
        let mut notes: Vec<String> = names.filter(|name| name.as_str() > after).collect();
        notes.sort_unstable();
        Ok(notes)
    }

    fn drop_note(&self, topic: &str, note: &str) -> StorageResult<()> {
        self.delete(&self.note(topic, note))
    }

    fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> StorageResult<Vec<Digest>> {
        let folder = self.in_repository(repository, &format!("_referrers/{}", below(subject)));
        let mut digests = Vec::new();
        for object in self.list(&folder)? {
            if let Some((digest, "link")) = keys::link(&object.location, &folder) {
                digests.push(digest);
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }
}
