//! An upload's bytes as objects, one after the other: `_parts/<offset>`, each written once.
//!
//! The list of them is all there is to know of a session, so any replica can go on with it. Two that write at the same
//! offset do not mix: the second is refused. What is shorter than a part waits in memory, and is written when the
//! request ends, or goes right into the blob.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use store::oci::{Digest, Hasher};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::failed;
use crate::storage::{StorageError, StorageResult, UploadData, VerifiedUpload};

/// The folder in a session's.
pub(super) const FOLDER: &str = "_parts";

/// Length of a part, in bytes; an upload holds one in memory while it runs, and three while it is joined.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// S3 takes 10,000 parts of an object at most: of a larger blob they are longer.
const PARTS_MAX: u64 = 9_000;

/// Parts of a blob that are on their way at once.
const SENDING: usize = 2;

/// One object of a session.
#[derive(Clone, Debug)]
pub(super) struct Part {
    key: Key,
    offset: u64,
    size: u64,
}

/// The parts from the beginning on, without a gap; what lies behind one is no part of the session.
pub(super) async fn list(
    store: &Arc<dyn ObjectStore>,
    folder: &Key,
) -> object_store::Result<Vec<Part>> {
    let mut found: Vec<Part> = store
        .list(Some(folder))
        .try_filter_map(|object| async move {
            let name = object.location.filename().unwrap_or_default();
            Ok(name.parse().ok().map(|offset| Part {
                offset,
                size: object.size,
                key: object.location,
            }))
        })
        .try_collect()
        .await?;
    found.sort_unstable_by_key(|part| part.offset);
    let mut end = 0;
    let gap = found.iter().position(|part| {
        let follows = part.offset == end && part.size > 0;
        end = part.offset.saturating_add(part.size);
        !follows
    });
    found.truncate(gap.unwrap_or(found.len()));
    Ok(found)
}

/// A session's bytes.
pub(super) struct Parts {
    store: Arc<dyn ObjectStore>,
    folder: Key,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    parts: Vec<Part>,
    /// What follows the parts.
    tail: BytesMut,
    /// The part that was read last, by its offset.
    read: Option<(u64, Bytes)>,
}

impl State {
    fn stored(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.offset + part.size)
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Parts").field(&self.folder).finish()
    }
}

impl Parts {
    pub(super) fn open(
        store: Arc<dyn ObjectStore>,
        folder: Key,
        runtime: Handle,
    ) -> io::Result<Parts> {
        let parts = runtime.block_on(list(&store, &folder))?;
        Ok(Parts {
            store,
            folder,
            runtime,
            state: Mutex::new(State {
                parts,
                ..State::default()
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the tail as a part; another replica's at the same place is not overwritten.
    fn write_tail(&self, state: &mut State) -> io::Result<()> {
        if state.tail.is_empty() {
            return Ok(());
        }
        let offset = state.stored();
        // Digits enough for any length, so that keys sort as offsets do.
        let key = Key::from(format!("{}/{offset:020}", self.folder));
        let bytes = state.tail.split().freeze();
        let size = bytes.len() as u64;
        let put = self
            .store
            .put_opts(&key, PutPayload::from(bytes), PutMode::Create.into());
        self.runtime.block_on(put)?;
        state.parts.push(Part { key, offset, size });
        Ok(())
    }

    fn read_part(&self, state: &mut State, part: &Part) -> io::Result<Bytes> {
        if let Some((offset, bytes)) = &state.read
            && *offset == part.offset
        {
            return Ok(bytes.clone());
        }
        let bytes = self.runtime.block_on(read(&self.store, part))?;
        state.read = Some((part.offset, bytes.clone()));
        Ok(bytes)
    }
}

async fn read(store: &Arc<dyn ObjectStore>, part: &Part) -> object_store::Result<Bytes> {
    store.get(&part.key).await?.bytes().await
}

impl UploadData for Parts {
    fn size(&self) -> io::Result<u64> {
        let state = self.state();
        Ok(state.stored() + state.tail.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let stored = state.stored();
        let index = |at: u64, from: u64| usize::try_from(at - from).map_err(io::Error::other);
        if offset >= stored {
            // Not copied whole: a reader may be right behind the writer.
            let rest = state.tail.get(index(offset, stored)?..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            return Ok(count);
        }
        let part = state
            .parts
            .partition_point(|part| part.offset + part.size <= offset);
        let part = state.parts[part].clone();
        let bytes = self.read_part(&mut state, &part)?;
        let rest = bytes.get(index(offset, part.offset)?..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        if offset != state.stored() + state.tail.len() as u64 {
            return Err(io::Error::other("uploads are written from end to end"));
        }
        state.tail.extend_from_slice(bytes);
        if state.tail.len() >= PART_BYTES {
            self.write_tail(&mut state)?;
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        let mut state = self.state();
        if size >= state.stored() {
            let kept = usize::try_from(size - state.stored()).map_err(io::Error::other)?;
            state.tail.truncate(kept);
            return Ok(());
        }
        state.tail.clear();
        state.read = None;
        while let Some(part) = state.parts.pop_if(|part| part.offset + part.size > size) {
            if part.offset < size {
                let bytes = self.runtime.block_on(read(&self.store, &part))?;
                let kept = usize::try_from(size - part.offset).map_err(io::Error::other)?;
                state
                    .tail
                    .extend_from_slice(&bytes[..kept.min(bytes.len())]);
            }
            match self.runtime.block_on(self.store.delete(&part.key)) {
                Err(object_store::Error::NotFound { .. }) => {}
                deleted => deleted?,
            }
        }
        self.write_tail(&mut state)
    }

    fn flush(&self) -> io::Result<()> {
        self.write_tail(&mut self.state())
    }

    fn take_tail(&self) -> Bytes {
        self.state().tail.split().freeze()
    }
}

/// Makes one object of the parts and the upload's tail. It appears only if all of it hashes to the upload's digest.
pub(super) async fn join(
    store: &Arc<dyn ObjectStore>,
    parts: &[Part],
    upload: &VerifiedUpload,
    to: &Key,
) -> StorageResult<()> {
    let write = |error| failed("write", to, error);
    let length = usize::try_from(upload.size().div_ceil(PARTS_MAX))
        .unwrap_or(usize::MAX)
        .max(PART_BYTES);
    let mut joined = Joined {
        hasher: Hasher::new(upload.digest().algorithm()),
        size: 0,
        length,
        buffer: BytesMut::new(),
        sending: JoinSet::new(),
        multipart: None,
    };
    let sent = async {
        for part in parts {
            let bytes = read(store, part).await;
            let bytes = bytes.map_err(|error| failed("read", &part.key, error))?;
            joined.add(store, to, &bytes).await.map_err(write)?;
        }
        joined.add(store, to, upload.tail()).await.map_err(write)?;
        // Another replica may have gone on with the session, or dropped it.
        let found = joined.hasher.clone().finish();
        if found != *upload.digest() || joined.size != upload.size() {
            return Err(changed(to, upload.digest(), &found));
        }
        Ok(())
    };
    let done = match sent.await {
        Ok(()) => joined.finish(store, to).await.map_err(write),
        Err(error) => Err(error),
    };
    if done.is_err() {
        joined.give_up().await;
    }
    done
}

fn changed(to: &Key, expected: &Digest, found: &Digest) -> StorageError {
    StorageError::Damaged {
        path: to.to_string().into(),
        reason: format!("the upload became {found} where {expected} was hashed"),
    }
}

/// A blob on its way into the bucket.
struct Joined {
    hasher: Hasher,
    size: u64,
    length: usize,
    buffer: BytesMut,
    sending: JoinSet<object_store::Result<()>>,
    /// Begun when there is more than one part.
    multipart: Option<Box<dyn MultipartUpload>>,
}

impl Joined {
    async fn add(
        &mut self,
        store: &Arc<dyn ObjectStore>,
        to: &Key,
        bytes: &[u8],
    ) -> object_store::Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(bytes);
        // The last part stays here: it may be of any length, the others may not.
        while self.buffer.len() > self.length {
            let part = self.buffer.split_to(self.length).freeze();
            if self.multipart.is_none() {
                self.multipart = Some(store.put_multipart(to).await?);
            }
            self.send(part).await?;
        }
        Ok(())
    }

    async fn send(&mut self, part: Bytes) -> object_store::Result<()> {
        while self.sending.len() >= SENDING {
            self.settle_one().await?;
        }
        if let Some(multipart) = &mut self.multipart {
            self.sending.spawn(multipart.put_part(part.into()));
        }
        Ok(())
    }

    async fn settle_one(&mut self) -> object_store::Result<()> {
        match self.sending.join_next().await {
            Some(sent) => sent.unwrap_or_else(|error| {
                Err(object_store::Error::Generic {
                    store: "upload",
                    source: error.into(),
                })
            }),
            None => Ok(()),
        }
    }

    async fn finish(&mut self, store: &Arc<dyn ObjectStore>, to: &Key) -> object_store::Result<()> {
        let last = self.buffer.split().freeze();
        if self.multipart.is_none() {
            return store.put(to, last.into()).await.map(drop);
        }
        self.send(last).await?;
        while !self.sending.is_empty() {
            self.settle_one().await?;
        }
        match &mut self.multipart {
            Some(multipart) => multipart.complete().await.map(drop),
            None => Ok(()),
        }
    }

    /// What was sent is paid for until somebody says that it is not wanted.
    async fn give_up(&mut self) {
        self.sending.shutdown().await;
        if let Some(multipart) = &mut self.multipart
            && let Err(error) = multipart.abort().await
        {
            tracing::debug!(%error, "parts of a blob stay in the bucket");
        }
    }
}
