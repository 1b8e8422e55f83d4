//! A blob on its way into the bucket: one PUT, or a multipart upload that is completed only if all of it hashes right.
//!
//! A multipart upload that nobody completes is seen by nobody and paid for by somebody, and through `object_store` they cannot be
//! listed. So each is written down before its first part:
//!
//! ```text
//! _multipart/<random>     the object's key, a line feed, and what the bucket calls the upload
//! ```
//!
//! Who purges uploads aborts those that were written down long ago. One that is going on is written down again from time to time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{MultipartId, ObjectStoreExt as _};
use store::oci::{Digest, Hasher};
use tokio::task::JoinSet;

use super::{ObjectStorage, absent_is_none, failed};
use crate::routes::UploadId;
use crate::storage::{StorageError, StorageResult, now_seconds};

/// Length of a part, in bytes; three are in memory while a blob is sent.
pub(super) const PART_BYTES: usize = 8 * 1024 * 1024;

/// S3 takes 10,000 parts of an object at most: of a larger blob they are longer.
const PARTS_MAX: u64 = 9_000;

/// Parts that are on their way at once.
const SENDING: usize = 2;

/// Folder of what is written down.
const FOLDER: &str = "_multipart";

/// Longest note: a key of at most 1,024 bytes and an upload's name, which none makes longer than this.
const NOTE_BYTES_MAX: u64 = 8 * 1024;

/// One that is older than this while its upload goes on is written again.
const NOTE_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// A blob, as far as it came.
pub(super) struct Whole<'a> {
    storage: &'a ObjectStorage,
    to: &'a Key,
    hasher: Hasher,
    size: u64,
    /// Of its parts.
    length: usize,
    buffer: BytesMut,
    sending: JoinSet<object_store::Result<(usize, PartId)>>,
    parts: BTreeMap<usize, PartId>,
    /// Begun when there is more than one part.
    multipart: Option<Multipart>,
}

struct Multipart {
    id: MultipartId,
    note: Key,
    noted: Instant,
    /// Parts that were given away.
    given: usize,
}

impl<'a> Whole<'a> {
    /// Begins a blob of this length.
    pub(super) fn begin(
        storage: &'a ObjectStorage,
        to: &'a Key,
        digest: &Digest,
        size: u64,
    ) -> Whole<'a> {
        let length = usize::try_from(size.div_ceil(PARTS_MAX)).unwrap_or(usize::MAX);
        Whole {
            storage,
            to,
            hasher: Hasher::new(digest.algorithm()),
            size: 0,
            length: length.max(PART_BYTES),
            buffer: BytesMut::new(),
            sending: JoinSet::new(),
            parts: BTreeMap::new(),
            multipart: None,
        }
    }

    /// Takes its next bytes.
    pub(super) async fn add(&mut self, bytes: &[u8]) -> StorageResult<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        // The last part stays here: it may be of any length, the others may not.
        while self.buffer.len() > self.length {
            let part = self.buffer.split_to(self.length).freeze();
            let sent = self.send(part).await;
            sent.map_err(|error| failed("write", self.to, error))?;
        }
        Ok(())
    }

    /// The digest of what came.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Bytes that came.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Lets the object appear.
    pub(super) async fn finish(mut self) -> StorageResult<()> {
        let finished = self.complete().await;
        let finished = finished.map_err(|error| failed("write", self.to, error));
        match finished {
            Ok(()) => self.forget().await,
            Err(_) => self.give_up().await,
        }
        finished
    }

    async fn send(&mut self, part: Bytes) -> object_store::Result<()> {
        if self.multipart.is_none() {
            self.multipart = Some(self.begin_multipart().await?);
        }
        while self.sending.len() >= SENDING {
            self.settle_one().await?;
        }
        if let Some(multipart) = &mut self.multipart {
            if multipart.noted.elapsed() >= NOTE_AGE_MAX {
                let text = note_text(self.to, &multipart.id);
                self.storage.store.put(&multipart.note, text.into()).await?;
                multipart.noted = Instant::now();
            }
            let (index, id, key) = (multipart.given, multipart.id.clone(), self.to.clone());
            multipart.given += 1;
            let store = self.storage.multiparts.clone();
            self.sending.spawn(async move {
                let sent = store.put_part(&key, &id, index, part.into()).await?;
                Ok((index, sent))
            });
        }
        Ok(())
    }

    async fn begin_multipart(&self) -> object_store::Result<Multipart> {
        let id = self.storage.multiparts.create_multipart(self.to).await?;
        let note = self
            .storage
            .key(&format!("{FOLDER}/{}", UploadId::random()));
        let text = note_text(self.to, &id);
        // One that dies before this leaves an upload without a part, which costs nothing.
        let noted = self.storage.store.put(&note, text.into()).await;
        if let Err(error) = noted {
            self.abort(&id).await;
            return Err(error);
        }
        Ok(Multipart {
            id,
            note,
            noted: Instant::now(),
            given: 0,
        })
    }

    async fn settle_one(&mut self) -> object_store::Result<()> {
        let Some(sent) = self.sending.join_next().await else {
            return Ok(());
        };
        let (index, part) = sent.unwrap_or_else(|error| {
            Err(object_store::Error::Generic {
                store: "upload",
                source: error.into(),
            })
        })?;
        self.parts.insert(index, part);
        Ok(())
    }

    async fn complete(&mut self) -> object_store::Result<()> {
        let last = self.buffer.split().freeze();
        if self.multipart.is_none() {
            return self.storage.store.put(self.to, last.into()).await.map(drop);
        }
        self.send(last).await?;
        while !self.sending.is_empty() {
            self.settle_one().await?;
        }
        let parts = std::mem::take(&mut self.parts).into_values().collect();
        match &self.multipart {
            Some(multipart) => {
                let store = &self.storage.multiparts;
                let completed = store.complete_multipart(self.to, &multipart.id, parts);
                completed.await.map(drop)
            }
            None => Ok(()),
        }
    }

    /// Takes away what was written down.
    async fn forget(&self) {
        if let Some(multipart) = &self.multipart
            && let Err(error) = self.storage.store.delete(&multipart.note).await
        {
            tracing::debug!(%error, "the next purge finds a multipart upload that is through");
        }
    }

    /// What was sent is paid for until somebody says that it is not wanted.
    pub(super) async fn give_up(mut self) {
        self.sending.shutdown().await;
        if let Some(multipart) = &self.multipart
            && self.abort(&multipart.id).await
        {
            self.forget().await;
        }
    }

    async fn abort(&self, id: &MultipartId) -> bool {
        let aborted = self.storage.multiparts.abort_multipart(self.to, id).await;
        if let Err(error) = &aborted {
            tracing::warn!(%error, "parts of a blob stay in the bucket until uploads are purged");
        }
        aborted.is_ok()
    }
}

fn note_text(key: &Key, id: &MultipartId) -> Bytes {
    format!("{key}\n{id}").into()
}

/// The key below `blobs` and the upload that a note tells of; a bucket may say anything.
pub(crate) fn read_note(note: &[u8], blobs: &Key) -> Option<(Key, MultipartId)> {
    let (key, id) = std::str::from_utf8(note).ok()?.split_once('\n')?;
    let parsed = Key::parse(key).ok()?;
    let is_below = parsed.prefix_match(blobs)?.next().is_some();
    let is_blob = is_below && parsed.as_ref() == key;
    let is_name = !id.is_empty() && !id.contains(|c: char| c.is_control());
    (is_blob && is_name).then(|| (parsed, id.to_owned()))
}

/// Aborts what was written down longer than `age` ago, and returns how many.
pub(super) fn purge(storage: &ObjectStorage, age: Duration) -> StorageResult<u64> {
    let mut aborted = 0;
    let blobs = storage.key("blobs");
    for object in storage.list(&storage.key(FOLDER))? {
        let idle = now_seconds() - object.last_modified.timestamp();
        if Duration::from_secs(u64::try_from(idle).unwrap_or(0)) < age {
            continue;
        }
        let note = match storage.read(&object.location, NOTE_BYTES_MAX) {
            Ok(Some(note)) => note,
            // Its replica is through with it just now.
            Ok(None) => continue,
            Err(StorageError::Damaged { .. }) => Bytes::new(),
            Err(error) => return Err(error),
        };
        match read_note(&note, &blobs) {
            Some((key, id)) => {
                let request = storage.multiparts.abort_multipart(&key, &id);
                // Not there: it was completed, or aborted by a rule of the bucket.
                if absent_is_none(storage.wait("give up", &key, request))?.is_some() {
                    aborted += 1;
                }
            }
            None => tracing::warn!(key = %object.location, "it tells of no multipart upload"),
        }
        storage.delete(&object.location)?;
    }
    Ok(aborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(note: &str, expect: Option<(&str, &str)>) {
        let found = read_note(note.as_bytes(), &Key::from("p/blobs"));
        let found = found.as_ref().map(|(key, id)| (key.as_ref(), id.as_str()));
        assert_eq!(found, expect, "{note:?}");
    }

    #[test]
    fn notes_tell_of_uploads_of_blobs_only() {
        check(
            "p/blobs/sha256/aa/data\nid=1",
            Some(("p/blobs/sha256/aa/data", "id=1")),
        );
        check("p/blobs/x\nid\nmore", None);
        check("p/blobs/x\n", None);
        check("p/blobs/x", None);
        check("p/blobs/../x\nid", None);
        check("p/blobs//x\nid", None);
        check("/p/blobs/x\nid", None);
        check("q/x\nid", None);
        check("p/blobs\nid", None);
        check("p/blobsx/y\nid", None);
        check("", None);
    }

    #[test]
    fn what_is_written_down_can_be_read() {
        let key = Key::from("p/blobs/sha256/aa/data");
        let text = note_text(&key, &"an id".to_owned());
        let read = read_note(&text, &Key::from("p/blobs"));
        assert_eq!(read, Some((key, "an id".to_owned())));
    }
}
