//! Copying a registry from one storage to another: folder to bucket, bucket to folder, or distribution's to ours.
//!
//! ```text
//! each repository: blobs ─► manifests ─► tags, the oldest first
//! ```
//!
//! Every blob and manifest is hashed on its way. What is there already is left alone, so one that was interrupted goes on
//! where it was, and one that is run again brings what was pushed since. Uploads that are not finished and tags that were
//! removed are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::Value;
use store::oci::Digest;
use tokio::runtime::Handle;

use crate::routes::RepositoryName;
use crate::storage::collectable::{Collectable, FoundTag, KnownTags};
use crate::storage::{
    Blob, BlobSource, MountSource, RegistryStorage, StorageError, StorageResult, TagCondition,
};

/// Repositories that are listed at once.
const PAGE: usize = 1000;

/// Bytes of a blob that are read at once.
const BLOCK_BYTES: usize = 1024 * 1024;

/// What was copied, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Migrated {
    /// Repositories that were gone through.
    pub repositories: u64,
    /// Blobs whose data was copied.
    pub blobs: u64,
    /// Bytes of it.
    pub bytes: u64,
    /// Blobs whose data was there, and which a repository was given.
    pub linked: u64,
    /// Manifests.
    pub manifests: u64,
    /// Tags that were put, or moved to where they are in the source.
    pub tags: u64,
    /// What was there already: blobs, manifests and tags.
    pub present: u64,
    /// What could not be copied, as `repository@digest` or `repository:tag`: it is damaged, or what it needs is.
    pub damaged: Vec<String>,
}

/// Copies what `from` has and `to` has not. Calls `done` after each repository. With `dry_run` it only tells what it would do.
///
/// `runtime` is what the bytes of buckets are read on; this blocks, so it is called on none of its own threads.
pub fn migrate(
    from: &dyn Collectable,
    to: &dyn RegistryStorage,
    runtime: &Handle,
    dry_run: bool,
    done: &mut dyn FnMut(&RepositoryName, &Migrated),
) -> StorageResult<Migrated> {
    let mut migration = Migration {
        from,
        to,
        runtime,
        dry_run,
        owners: BTreeMap::new(),
        done: Migrated::default(),
    };
    let mut last: Option<String> = None;
    loop {
        let page = from.repositories(last.as_deref(), PAGE)?;
        for name in &page {
            migration.repository(name)?;
            done(name, &migration.done);
        }
        match page.last() {
            Some(name) if page.len() == PAGE => last = Some(name.as_str().to_owned()),
            _ => return Ok(migration.done),
        }
    }
}

struct Migration<'a> {
    from: &'a dyn Collectable,
    to: &'a dyn RegistryStorage,
    runtime: &'a Handle,
    dry_run: bool,
    /// A repository of `to` that has the blob.
    owners: BTreeMap<Digest, RepositoryName>,
    done: Migrated,
}

impl Migration<'_> {
    fn repository(&mut self, name: &RepositoryName) -> StorageResult<()> {
        self.done.repositories += 1;
        // Tags first and last: what they are on was there when they were read.
        let mut tags = self.from.tag_links(name, &KnownTags::new())?;
        let manifests = self.from.manifest_links(name)?;
        let mut missing = BTreeSet::new();
        for link in self.from.blob_links(name)? {
            if !self.blob(name, &link.digest)? {
                missing.insert(link.digest);
            }
        }
        for link in manifests {
            if !self.manifest(name, &link.digest, &missing)? {
                missing.insert(link.digest);
            }
        }
        // Rules that keep the last ones go by when they were put.
        tags.sort_by(|a, b| a.made.cmp(&b.made).then_with(|| a.tag.cmp(&b.tag)));
        for tag in &tags {
            self.tag(name, tag, &missing)?;
        }
        Ok(())
    }

    /// Copies a blob; false if it could not be.
    fn blob(&mut self, name: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        if self.to.blob_size(name, digest)?.is_some() {
            self.done.present += 1;
            self.owners.insert(*digest, name.clone());
            return Ok(true);
        }
        if let Some(owner) = self.owners.get(digest)
            && (self.dry_run
                || self
                    .to
                    .mount_blob(name, digest, MountSource::Repository(owner))?)
        {
            self.done.linked += 1;
            return Ok(true);
        }
        let Some(blob) = self.from.blob(name, digest)? else {
            // A link to nothing.
            return Ok(false);
        };
        if !self.dry_run && !self.copy(name, digest, &blob)? {
            self.done.damaged.push(format!("{name}@{digest}"));
            return Ok(false);
        }
        self.owners.insert(*digest, name.clone());
        self.done.blobs += 1;
        self.done.bytes += blob.size;
        Ok(true)
    }

    /// Copies a blob's bytes; false if they are not what its digest says.
    fn copy(&self, name: &RepositoryName, digest: &Digest, blob: &Blob) -> StorageResult<bool> {
        let mut pieces = self.pieces(blob);
        self.to.keep_blob(name, digest, blob.size, &mut pieces)
    }

    /// A blob's bytes, piece by piece.
    fn pieces(&self, blob: &Blob) -> Box<dyn Iterator<Item = io::Result<Bytes>>> {
        match &blob.source {
            BlobSource::Bytes(bytes) => Box::new(std::iter::once(Ok(bytes.clone()))),
            BlobSource::File(file) => read_file(Arc::clone(file)),
            BlobSource::Remote(remote) => {
                let (mut stream, runtime) = (remote.stream(0..blob.size), self.runtime.clone());
                Box::new(std::iter::from_fn(move || runtime.block_on(stream.next())))
            }
        }
    }

    /// Copies a manifest; false if it could not be, or something that it names is `missing`.
    fn manifest(
        &mut self,
        name: &RepositoryName,
        digest: &Digest,
        missing: &BTreeSet<Digest>,
    ) -> StorageResult<bool> {
        if self.to.has_manifest(name, digest)? {
            self.done.present += 1;
            return Ok(true);
        }
        let manifest = match self.from.manifest(name, digest) {
            Ok(Some(manifest)) => manifest,
            // Removed, or a link to nothing.
            Ok(None) => return Ok(false),
            Err(StorageError::Damaged { .. }) => {
                self.done.damaged.push(format!("{name}@{digest}"));
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let value: Value = serde_json::from_slice(manifest.bytes()).unwrap_or_default();
        let mut named = value["layers"].as_array().cloned().unwrap_or_default();
        named.push(value["config"].clone());
        let named = named.iter().filter_map(|link| link["digest"].as_str());
        let mut named = named.filter_map(|text| text.parse::<Digest>().ok());
        if named.any(|digest| missing.contains(&digest)) {
            self.done.damaged.push(format!("{name}@{digest}"));
            return Ok(false);
        }
        if !self.dry_run {
            let subject = value["subject"]["digest"].as_str();
            let subject = subject.and_then(|text| text.parse().ok());
            self.to.put_manifest(name, &manifest, subject.as_ref())?;
        }
        self.done.manifests += 1;
        Ok(true)
    }

    fn tag(
        &mut self,
        name: &RepositoryName,
        found: &FoundTag,
        missing: &BTreeSet<Digest>,
    ) -> StorageResult<()> {
        let Some(digest) = &found.digest else {
            // It was removed.
            return Ok(());
        };
        if self.to.tag(name, &found.tag)?.as_ref() == Some(digest) {
            self.done.present += 1;
            return Ok(());
        }
        let there = match self.dry_run {
            true => !missing.contains(digest) && self.from.has_manifest(name, digest)?,
            false => self.to.has_manifest(name, digest)?,
        };
        if !there {
            self.done.damaged.push(format!("{name}:{}", found.tag));
            return Ok(());
        }
        if !self.dry_run {
            let always = TagCondition::default();
            self.to.set_tag(name, &found.tag, digest, &always)?;
            self.to.date_tag(name, &found.tag, digest, found.made)?;
        }
        self.done.tags += 1;
        Ok(())
    }
}

fn read_file(file: Arc<File>) -> Box<dyn Iterator<Item = io::Result<Bytes>>> {
    let mut offset = 0;
    Box::new(std::iter::from_fn(move || {
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            match file.read_at(&mut block, offset) {
                Ok(0) => return None,
                Ok(count) => {
                    block.truncate(count);
                    offset += count as u64;
                    return Some(Ok(block.into()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}
