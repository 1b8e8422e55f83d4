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
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use store::oci::Digest;
use tokio::runtime::Handle;

use super::whole::{PART_BYTES, Whole};
use super::{ObjectStorage, failed, keys};
use crate::storage::{StorageError, StorageResult, UploadData, VerifiedUpload};

/// The folder in a session's.
pub(super) const FOLDER: &str = "_parts";

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
            Ok(keys::part(&object.location).map(|offset| Part {
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
        let payload = PutPayload::from(bytes.clone());
        let put = self.store.put_opts(&key, payload, PutMode::Create.into());
        match self.runtime.block_on(put) {
            // Our own, if the answer to a first try was lost.
            Err(object_store::Error::AlreadyExists { path, source }) => {
                let part = Part {
                    key: key.clone(),
                    offset,
                    size,
                };
                if self.runtime.block_on(read(&self.store, &part))? != bytes {
                    return Err(object_store::Error::AlreadyExists { path, source }.into());
                }
            }
            put => {
                put?;
            }
        }
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
    storage: &ObjectStorage,
    parts: &[Part],
    upload: &VerifiedUpload,
    to: &Key,
) -> StorageResult<()> {
    let mut whole = Whole::begin(storage, to, upload.digest(), upload.size());
    let sent = async {
        for part in parts {
            let bytes = read(&storage.store, part).await;
            let bytes = bytes.map_err(|error| failed("read", &part.key, error))?;
            whole.add(&bytes).await?;
        }
        whole.add(upload.tail()).await?;
        // Another replica may have gone on with the session, or dropped it.
        let found = whole.digest();
        if found != *upload.digest() || whole.size() != upload.size() {
            return Err(changed(to, upload.digest(), &found));
        }
        Ok(())
    };
    match sent.await {
        Ok(()) => whole.finish().await,
        Err(error) => {
            whole.give_up().await;
            Err(error)
        }
    }
}

fn changed(to: &Key, expected: &Digest, found: &Digest) -> StorageError {
    StorageError::Damaged {
        path: to.to_string().into(),
        reason: format!("the upload became {found} where {expected} was hashed"),
    }
}
