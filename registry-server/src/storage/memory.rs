//! Everything in the process: what tests of clients and of the protocol run on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::oci::Digest;

use super::{
    Blob, BlobSource, ListedTag, MountSource, RegistryStorage, Reliance, StorageResult,
    TagCondition, TagRemoval, UploadData, VerifiedManifest, VerifiedUpload,
};
use crate::routes::{RepositoryName, UploadId};

/// A registry in memory.
#[derive(Debug, Default)]
pub struct MemoryStorage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, Bytes>,
    /// By components, which is the order of the catalog.
    repositories: BTreeMap<Vec<String>, Repository>,
    secrets: BTreeMap<&'static str, Vec<u8>>,
    notes: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: BTreeSet<Digest>,
    uploads: BTreeMap<UploadId, Arc<Upload>>,
    manifests: BTreeMap<Digest, VerifiedManifest>,
    tags: BTreeMap<String, Digest>,
    referrers: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Whether a blob or manifest was ever put.
    known: bool,
}

#[derive(Debug)]
struct Upload {
    started: Instant,
    bytes: Mutex<Vec<u8>>,
}

impl Upload {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UploadData for Upload {
    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let rest = bytes.get(offset..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.bytes();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let end = offset + new.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset..end].copy_from_slice(new);
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.bytes()
            .truncate(usize::try_from(size).map_err(io::Error::other)?);
        Ok(())
    }
}

fn key(repository: &RepositoryName) -> Vec<String> {
    components(repository.as_str())
}

fn components(name: &str) -> Vec<String> {
    name.split('/').map(str::to_owned).collect()
}

impl State {
    fn repository(&self, name: &RepositoryName) -> Option<&Repository> {
        self.repositories.get(&key(name))
    }

    fn repository_mut(&mut self, name: &RepositoryName) -> &mut Repository {
        self.repositories.entry(key(name)).or_default()
    }
}

impl MemoryStorage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegistryStorage for MemoryStorage {
    fn blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<Option<Blob>> {
        let state = self.state();
        let linked = state
            .repository(repository)
            .is_some_and(|repository| repository.blobs.contains(digest));
        Ok(state
            .blobs
            .get(digest)
            .filter(|_| linked)
            .map(|bytes| Blob {
                size: bytes.len() as u64,
                source: BlobSource::Bytes(bytes.clone()),
            }))
    }

    fn blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<u64>> {
        Ok(self.blob(repository, digest)?.map(|blob| blob.size))
    }

    fn probe(&self, _: bool) -> StorageResult<()> {
        Ok(())
    }

    fn mount_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: MountSource<'_>,
    ) -> StorageResult<bool> {
        let mut state = self.state();
        let found = match from {
            MountSource::Repository(from) => state
                .repository(from)
                .is_some_and(|repository| repository.blobs.contains(digest)),
            MountSource::Any(admits) => state.repositories.iter().any(|(name, repository)| {
                repository.blobs.contains(digest)
                    && RepositoryName::parse(&name.join("/")).is_ok_and(|name| admits(&name))
            }),
        };
        if found {
            let repository = state.repository_mut(repository);
            repository.known = true;
            repository.blobs.insert(*digest);
        }
        Ok(found)
    }

    fn remove_blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        let mut state = self.state();
        let Some(repository) = state.repositories.get_mut(&key(repository)) else {
            return Ok(false);
        };
        Ok(repository.blobs.remove(digest))
    }

    fn create_upload(&self, repository: &RepositoryName) -> StorageResult<UploadId> {
        let id = UploadId::random();
        let upload = Upload {
            started: Instant::now(),
            bytes: Mutex::default(),
        };
        self.state()
            .repository_mut(repository)
            .uploads
            .insert(id.clone(), Arc::new(upload));
        Ok(id)
    }

    fn upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
    ) -> StorageResult<Option<Arc<dyn UploadData>>> {
        let state = self.state();
        let upload = state
            .repository(repository)
            .and_then(|repository| repository.uploads.get(id));
        Ok(upload.map(|upload| Arc::clone(upload) as Arc<dyn UploadData>))
    }

    fn commit_upload(
        &self,
        repository: &RepositoryName,
        upload: &VerifiedUpload,
    ) -> StorageResult<()> {
        let mut state = self.state();
        let repository = state.repository_mut(repository);
        if let Some(session) = repository.uploads.remove(upload.id()) {
            repository.known = true;
            repository.blobs.insert(*upload.digest());
            let bytes = std::mem::take(&mut *session.bytes());
            state.blobs.insert(*upload.digest(), Bytes::from(bytes));
        }
        Ok(())
    }

    fn cancel_upload(&self, repository: &RepositoryName, id: &UploadId) -> StorageResult<bool> {
        let mut state = self.state();
        let uploads = state.repositories.get_mut(&key(repository));
        Ok(uploads.is_some_and(|repository| repository.uploads.remove(id).is_some()))
    }

    fn purge_uploads(&self, age: Duration) -> StorageResult<u64> {
        let mut purged = 0;
        for repository in self.state().repositories.values_mut() {
            let before = repository.uploads.len();
            repository
                .uploads
                .retain(|_, upload| upload.started.elapsed() <= age);
            purged += (before - repository.uploads.len()) as u64;
        }
        Ok(purged)
    }

    fn settle_blobs(&self, _: &RepositoryName, _: &[Digest]) -> StorageResult<()> {
        Ok(())
    }

    fn put_manifest(
        &self,
        repository: &RepositoryName,
        manifest: &VerifiedManifest,
        subject: Option<&Digest>,
    ) -> StorageResult<()> {
        let mut state = self.state();
        let repository = state.repository_mut(repository);
        repository.known = true;
        repository
            .manifests
            .insert(*manifest.digest(), manifest.clone());
        if let Some(subject) = subject {
            repository
                .referrers
                .entry(*subject)
                .or_default()
                .insert(*manifest.digest());
        }
        Ok(())
    }

    fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<VerifiedManifest>> {
        let state = self.state();
        let repository = state.repository(repository);
        Ok(repository.and_then(|repository| repository.manifests.get(digest).cloned()))
    }

    fn has_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        Ok(self.manifest(repository, digest)?.is_some())
    }

    fn remove_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        let mut state = self.state();
        let Some(repository) = state.repositories.get_mut(&key(repository)) else {
            return Ok(false);
        };
        repository.tags.retain(|_, tagged| tagged != digest);
        for referrers in repository.referrers.values_mut() {
            referrers.remove(digest);
        }
        Ok(repository.manifests.remove(digest).is_some())
    }

    fn tag(&self, repository: &RepositoryName, tag: &str) -> StorageResult<Option<Digest>> {
        let state = self.state();
        let repository = state.repository(repository);
        Ok(repository.and_then(|repository| repository.tags.get(tag).copied()))
    }

    fn set_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        digest: &Digest,
        condition: &TagCondition,
    ) -> StorageResult<bool> {
        let mut state = self.state();
        let tags = &mut state.repository_mut(repository).tags;
        let holds = condition.holds(tags.get(tag));
        if holds {
            tags.insert(tag.to_owned(), *digest);
        }
        Ok(holds)
    }

    fn remove_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        condition: &TagCondition,
    ) -> StorageResult<TagRemoval> {
        let mut state = self.state();
        let repository = state.repositories.get_mut(&key(repository));
        let mut tags = repository.map(|repository| &mut repository.tags);
        let current = tags.as_ref().and_then(|tags| tags.get(tag));
        if !condition.holds(current) {
            return Ok(TagRemoval::Refused);
        }
        let removed = tags.as_mut().and_then(|tags| tags.remove(tag));
        Ok(removed.map_or(TagRemoval::Absent, |_| TagRemoval::Removed))
    }

    fn tags_after(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Option<Vec<String>>> {
        let state = self.state();
        let repository = state
            .repository(repository)
            .filter(|repository| repository.known);
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(repository.map(|repository| {
            let tags = repository.tags.range::<str, _>((after, Bound::Unbounded));
            tags.take(limit).map(|(name, _)| name.clone()).collect()
        }))
    }

    fn tags_made(&self, repository: &RepositoryName) -> StorageResult<Option<Vec<ListedTag>>> {
        let untimed = |name| ListedTag { name, made: None };
        let tags = self.tags(repository)?;
        Ok(tags.map(|tags| tags.into_iter().map(untimed).collect()))
    }

    fn repositories(&self, last: Option<&str>, limit: usize) -> StorageResult<Vec<RepositoryName>> {
        let last = last.map(components);
        let state = self.state();
        let known = state.repositories.iter().filter(|(name, repository)| {
            repository.known && last.as_ref().is_none_or(|l| *name > l)
        });
        Ok(known
            .take(limit)
            .filter_map(|(name, _)| RepositoryName::parse(&name.join("/")).ok())
            .collect())
    }

    fn rely_on(&self, _: &[Digest]) -> StorageResult<Reliance> {
        // Nothing is collected here.
        Ok(Reliance::default())
    }

    fn contents(&self, repository: &RepositoryName) -> StorageResult<Vec<Digest>> {
        let state = self.state();
        let contents = state.repository(repository).map(|repository| {
            let manifests = repository.manifests.keys();
            repository.blobs.iter().chain(manifests).copied().collect()
        });
        Ok(contents.unwrap_or_default())
    }

    fn data_size(&self, digest: &Digest) -> StorageResult<Option<u64>> {
        let state = self.state();
        let manifest = |repository: &Repository| {
            let manifest = repository.manifests.get(digest)?;
            Some(manifest.bytes().len() as u64)
        };
        let blob = state.blobs.get(digest).map(|bytes| bytes.len() as u64);
        Ok(blob.or_else(|| state.repositories.values().find_map(manifest)))
    }

    fn secret(&self, name: &'static str, fresh: &[u8]) -> StorageResult<Vec<u8>> {
        let mut state = self.state();
        let kept = state
            .secrets
            .entry(name)
            .or_insert_with(|| fresh.to_owned());
        Ok(kept.clone())
    }

    fn leave_note(&self, topic: &str, note: &str) -> StorageResult<()> {
        let mut state = self.state();
        let notes = state.notes.entry(topic.to_owned()).or_default();
        notes.insert(note.to_owned());
        Ok(())
    }

    fn notes(&self, topic: &str, after: &str) -> StorageResult<Vec<String>> {
        let state = self.state();
        let notes = state.notes.get(topic).into_iter().flatten();
        let notes = notes.filter(|note| note.as_str() > after);
        Ok(notes.cloned().collect())
    }

    fn drop_note(&self, topic: &str, note: &str) -> StorageResult<()> {
        if let Some(notes) = self.state().notes.get_mut(topic) {
            notes.remove(note);
        }
        Ok(())
    }

    fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> StorageResult<Vec<Digest>> {
        let state = self.state();
        let referrers = state
            .repository(repository)
            .and_then(|repository| repository.referrers.get(subject));
        Ok(referrers.map_or_else(Vec::new, |set| set.iter().copied().collect()))
    }
}
