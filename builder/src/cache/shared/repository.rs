//! A repository of a registry as a shared cache: each entry is an artifact under a tag of its own.
//!
//! The tag is the entry's name; where the cache's reference has a tag, that and a hyphen come before it, so that several
//! caches, and images, share a repository. A registry keeps blobs for as long as an artifact names them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use registry_client::{BlobSource, ClientError, ErrorKind, Progress};
use store::content::Blobs;
use store::oci::{Descriptor, Platform, RawManifest, Reference};

use super::record::{EMPTY, empty};
use super::{CacheStore, CacheStoreError, EntryName, inline};
use crate::cache::CacheKey;
use crate::remote::{Remote, RemoteError};

/// A repository.
pub(crate) struct Repository<'a> {
    remote: &'a Remote,
    reference: Reference,
    name: String,
    progress: Arc<dyn Progress>,
    /// Whether the blob that every artifact names is known to be there.
    has_empty: Mutex<bool>,
    /// For which platforms an image of the reference's own name is read for records in it, and what it had.
    inline: Option<(Vec<Platform>, Mutex<Inline>)>,
}

/// What came of looking for a record in an image.
enum InlineEntry {
    Found(Vec<u8>),
    Absent,
    /// The registry failed; whoever asked first was told why.
    Unreachable,
}

/// The records in the image of a cache's own name.
enum Inline {
    Unread,
    /// The artifacts that they would be.
    Read(BTreeMap<CacheKey, Vec<u8>>),
    Failed,
}

impl std::fmt::Debug for Repository<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

impl<'a> Repository<'a> {
    /// The repository of `reference`. `progress` is told of blobs that move.
    pub(crate) fn new(
        remote: &'a Remote,
        reference: &Reference,
        progress: Arc<dyn Progress>,
    ) -> Repository<'a> {
        Repository {
            remote,
            reference: reference.clone(),
            name: reference.familiar(),
            progress,
            has_empty: Mutex::new(false),
            inline: None,
        }
    }

    /// The same, with the records in an image of that name.
    pub(crate) fn with_images(self, platforms: &[Platform]) -> Repository<'a> {
        Repository {
            inline: Some((platforms.to_vec(), Mutex::new(Inline::Unread))),
            ..self
        }
    }

    /// The record that the image has under a key.
    fn inline_entry(&self, key: &CacheKey) -> Result<InlineEntry, CacheStoreError> {
        let Some((platforms, inline)) = &self.inline else {
            return Ok(InlineEntry::Absent);
        };
        // Held while the image is read: everybody waits for it, so that one alone finds out where nobody answers.
        let mut inline = inline.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*inline, Inline::Unread) {
            *inline = Inline::Failed;
            let mut records = BTreeMap::new();
            for platform in platforms {
                records.append(&mut self.read_image(platform)?);
            }
            *inline = Inline::Read(records);
        }
        Ok(match &*inline {
            Inline::Read(records) => match records.get(key) {
                Some(found) => InlineEntry::Found(found.clone()),
                None => InlineEntry::Absent,
            },
            Inline::Unread | Inline::Failed => InlineEntry::Unreachable,
        })
    }

    fn read_image(
        &self,
        platform: &Platform,
    ) -> Result<BTreeMap<CacheKey, Vec<u8>>, CacheStoreError> {
        let reference = &self.reference;
        let image = self
            .remote
            .run(|client| async move { client.image(reference, platform).await });
        let image = match image {
            Ok(image) => image,
            // No image of that name: the cache is in records of their own.
            Err(RemoteError::Client(error))
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NoPlatform)
                    || matches!(error, ClientError::NotAnImage { .. }) =>
            {
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(error.into()),
        };
        let records = inline::decode(&image.config, image.layers());
        let records = records.map_err(|error| CacheStoreError::Inline {
            reference: Box::new(self.reference.clone()),
            reason: error.to_string(),
        })?;
        let artifacts = records
            .into_iter()
            .map(|record| (record.key, record.encode().bytes().to_vec()));
        Ok(artifacts.collect())
    }

    fn tagged(&self, name: &EntryName) -> Result<Reference, CacheStoreError> {
        let tag = match self.reference.tag() {
            None | Some("latest") => name.to_string(),
            Some(tag) => format!("{tag}-{name}"),
        };
        self.reference
            .with_tag(&tag)
            .map_err(|_| CacheStoreError::TagTooLong {
                reference: Box::new(self.reference.clone()),
            })
    }

    fn ensure_empty(&self) -> Result<(), CacheStoreError> {
        // Held while it is sent: the other writers need it as well.
        let mut has_empty = self
            .has_empty
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !*has_empty {
            let (reference, progress) = (self.reference.clone(), Arc::clone(&self.progress));
            let source = BlobSource::Bytes(EMPTY.into());
            self.remote.run(|client| async move {
                client
                    .push_blob(&reference, &empty(), source, &[], progress)
                    .await
            })?;
            *has_empty = true;
        }
        Ok(())
    }
}

impl CacheStore for Repository<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&self) -> Result<(), CacheStoreError> {
        self.ensure_empty()
    }

    fn entry(&self, name: &EntryName) -> Result<Option<Vec<u8>>, CacheStoreError> {
        if let EntryName::Record(key) = name {
            match self.inline_entry(key)? {
                InlineEntry::Found(found) => return Ok(Some(found)),
                InlineEntry::Unreachable => return Ok(None),
                InlineEntry::Absent => {}
            }
        }
        let tagged = self.tagged(name)?;
        let found = self.remote.run(|client| async move {
            match client.manifest(&tagged).await {
                Ok(manifest) => Ok(Some(manifest.bytes().to_vec())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        });
        match found {
            // Something of that name which is no manifest is for the reader to judge.
            Err(RemoteError::Client(ClientError::Manifest { .. })) => Ok(Some(Vec::new())),
            found => Ok(found?),
        }
    }

    fn put_entry(&self, name: &EntryName, manifest: &RawManifest) -> Result<(), CacheStoreError> {
        let tagged = self.tagged(name)?;
        self.ensure_empty()?;
        self.remote
            .run(|client| async move { client.put_manifest(&tagged, manifest).await })?;
        Ok(())
    }

    fn has_blob(&self, blob: &Descriptor, elsewhere: &[String]) -> Result<bool, CacheStoreError> {
        let reference = &self.reference;
        let found = self
            .remote
            .run(|client| async move { client.link_blob(reference, blob, elsewhere).await })?;
        Ok(found.is_some())
    }

    fn fetch_blob(&self, blob: &Descriptor, into: &Blobs) -> Result<(), CacheStoreError> {
        let progress = Arc::clone(&self.progress);
        let reference = &self.reference;
        let fetched = self
            .remote
            .run(|client| async move { client.fetch_blob(reference, blob, into, progress).await });
        match fetched {
            Err(RemoteError::Client(error)) if error.kind() == ErrorKind::NotFound => {
                let digest = Box::new(blob.digest);
                Err(CacheStoreError::Missing { digest })
            }
            fetched => Ok(fetched.map(drop)?),
        }
    }

    fn put_blob(&self, blob: &Descriptor, from: &Path) -> Result<(), CacheStoreError> {
        let (reference, progress) = (&self.reference, Arc::clone(&self.progress));
        let source = BlobSource::File(from.to_owned());
        Ok(self.remote.run(|client| async move {
            client.send_blob(reference, blob, source, progress).await
        })?)
    }

    fn repository(&self) -> Option<&Reference> {
        Some(&self.reference)
    }
}
