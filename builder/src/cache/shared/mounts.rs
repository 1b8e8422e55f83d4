//! Cache mounts' contents in shared caches (`mounts=all` or `mounts=ID;ID`): one entry for each, by what names the mount.
//!
//! They are taken where a step wants a mount that this machine does not have yet, and put there when a build is done. Other
//! than a record, the content of a mount is nobody's in particular: the last writer's is the one that is kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use store::cache_mounts::{CacheMountName, CacheSharing, CacheTaken, NewCacheMount};
use store::layer::apply::{Form, UnpackOptions, unpack_into};
use store::layer::compress::{Compression, compressor, decompressor};
use store::layer::tar::write_tar;
use store::oci::{Descriptor, RawManifest};
use store::{Store, StoreError};

use super::export::ExportCacheError;
use super::import::{Notes, chain};
use super::record::{RecordError, artifact, read_artifact, read_version};
use super::{CacheStore, CacheStoreError, EntryName};
use crate::cache::hex;
use crate::ops::Operations;
use crate::request::cache::MountChoice;

/// Type of the artifact.
const ARTIFACT_TYPE: &str = "application/vnd.longshore.cache.mount.v1+json";

/// The annotation that says what it is.
const ANNOTATION: &str = "dev.longshore.cache.mount";

const VERSION: u32 = 1;

/// The annotation's text.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    mode: u32,
    uid: u32,
    gid: u32,
    created: u64,
}

fn encode(name: &CacheMountName, blob: Descriptor) -> RawManifest {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let text = Text {
        version: VERSION,
        id: name.id.clone(),
        from: name.from.as_ref().map(hex),
        mode: name.mode,
        uid: name.uid,
        gid: name.gid,
        created: since.unwrap_or_default().as_secs(),
    };
    let text = serde_json::to_string(&text).expect("texts and numbers");
    artifact(ARTIFACT_TYPE, Some(blob), (ANNOTATION, text))
}

/// The blob of the mount `name`.
pub fn decode(bytes: Vec<u8>, name: &CacheMountName) -> Result<Descriptor, RecordError> {
    let (layers, text) = read_artifact(bytes, ANNOTATION)?;
    let text: Text = read_version(&text)?;
    let same = (text.mode, text.uid, text.gid) == (name.mode, name.uid, name.gid)
        && text.id == name.id
        && text.from == name.from.as_ref().map(hex);
    match (&layers[..], same) {
        ([blob], true) => Ok(blob.clone()),
        _ => Err(RecordError::Damaged {
            reason: "it is of another mount",
        }),
    }
}

/// Why a mount's content could not be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum FillError {
    #[error(transparent)]
    Cache(#[from] CacheStoreError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read its content")]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Unpack(#[from] store::layer::apply::ApplyError),
}

/// A new cache mount with what `from` has of it; none if it has nothing, or nothing that can be used.
pub(super) fn filled(
    store: &Store,
    from: &dyn CacheStore,
    name: &CacheMountName,
    notes: &Notes,
) -> Result<Option<NewCacheMount>, StoreError> {
    let filled = (|| {
        let Some(bytes) = from.entry(&EntryName::Mount(name.digest()))? else {
            return Ok(None);
        };
        let blob = decode(bytes, name)?;
        let here = store.blobs().has(&blob.digest).map_err(StoreError::from)?;
        from.fetch_blob(&blob, store.blobs())?;
        let new = store.new_cache_mount(name)?;
        let (file, _) = store.blobs().open(&blob.digest).map_err(StoreError::from)?;
        let root = File::open(new.data())?;
        let options = UnpackOptions::new(Form::Tree);
        unpack_into(root.as_fd(), decompressor(file)?, &options)?;
        if here.is_none() {
            // It is of no use to anybody else.
            store
                .blobs()
                .remove(&blob.digest)
                .map_err(StoreError::from)?;
        }
        Ok(Some(new))
    })();
    match filled {
        Ok(new) => Ok(new),
        Err(FillError::Store(error)) => Err(error),
        Err(error) => {
            notes.warn(&format!(
                "the cache mount `{}` begins without its content from {}: {}",
                name.id.trim_start_matches('/'),
                from.name(),
                chain(&error)
            ));
            Ok(None)
        }
    }
}

/// Puts the contents of the chosen mounts of this build's steps into a cache.
pub(super) fn export(
    operations: &Operations<'_>,
    into: &dyn CacheStore,
    chosen: &MountChoice,
    compression: Compression,
) -> Result<(), ExportCacheError> {
    let mut seen = BTreeSet::new();
    for name in operations.cache_mount_names() {
        if operations.is_cancelled() {
            return Err(ExportCacheError::Cancelled);
        }
        if chosen.has(&name.id) && seen.insert(name.digest()) {
            put(operations, into, &name, compression)?;
        }
    }
    Ok(())
}

fn put(
    operations: &Operations<'_>,
    into: &dyn CacheStore,
    name: &CacheMountName,
    compression: Compression,
) -> Result<(), ExportCacheError> {
    let entry = EntryName::Mount(name.digest());
    let known = into.entry(&entry)?.map(|bytes| decode(bytes, name));
    match &known {
        // A newer longshore's is not ours to take away; and what no step of this build used is as it was.
        Some(Err(RecordError::Newer { .. })) => return Ok(()),
        Some(Ok(_)) if !operations.has_used(name) => return Ok(()),
        _ => {}
    }
    let store = operations.store;
    let id = name.id.trim_start_matches('/');
    let held = match store.take_cache_mount(name, CacheSharing::Locked)? {
        CacheTaken::Taken(held) => held,
        CacheTaken::Missing => return Ok(()),
        CacheTaken::Busy => {
            let text = format!("the cache mount `{id}` is in use, so it is not exported");
            operations.shared.notes().warn(&text);
            return Ok(());
        }
    };
    let failed = |source| ExportCacheError::Mount {
        id: id.to_owned(),
        source,
    };
    let ingest = store.blobs().ingest().map_err(StoreError::from)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut packed = compressor(ingest, compression, threads).map_err(failed)?;
    write_tar(&held.data(), &mut packed).map_err(|error| failed(std::io::Error::other(error)))?;
    let blob = packed.finish().map_err(failed)?;
    let blob = blob.commit(None).map_err(StoreError::from)?;
    drop(held);
    let described = Descriptor::new(compression.media_type(), blob.digest(), blob.size());
    let same = matches!(&known, Some(Ok(old)) if old.digest == described.digest);
    let there = into.has_blob(&described, &[])?;
    if !there {
        into.put_blob(&described, &store.blobs().path(&described.digest))?;
    }
    if !same || !there {
        into.put_entry(&entry, &encode(name, described.clone()))?;
    }
    // It is of no use to anybody else.
    store
        .blobs()
        .remove(&described.digest)
        .map_err(StoreError::from)?;
    Ok(())
}
