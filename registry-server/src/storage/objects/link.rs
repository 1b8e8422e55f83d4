//! The link that says what a tag is on: a digest, or nothing where the tag was removed.

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt as _, PutMode, UpdateVersion};
use store::oci::Digest;

use super::{ObjectStorage, absent_is_none};
use crate::storage::{LINK_BYTES_MAX, StorageError, StorageResult};

/// What a tag's `current/link` held when it was read.
#[derive(Debug)]
pub(super) struct TagLink {
    digest: Option<Digest>,
    /// `None` where there was no object.
    version: Option<UpdateVersion>,
}

impl TagLink {
    pub(super) fn read(storage: &ObjectStorage, key: &Key) -> StorageResult<TagLink> {
        let read = async {
            let found = storage.store.get(key).await?;
            let version = UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            };
            if found.meta.size > LINK_BYTES_MAX {
                return Ok((version, None));
            }
            Ok((version, Some(found.bytes().await?)))
        };
        let Some((version, bytes)) = absent_is_none(storage.wait("read", key, read))? else {
            return Ok(TagLink {
                digest: None,
                version: None,
            });
        };
        let digest = match bytes {
            Some(bytes) if bytes.is_empty() => None,
            Some(bytes) => Some(parse(key, &bytes)?),
            None => return Err(damaged(key, "it is too long for a link".to_owned())),
        };
        Ok(TagLink {
            digest,
            version: Some(version),
        })
    }

    /// What the tag is on.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Writes only if nobody else has since.
    pub(super) fn unchanged(&self) -> PutMode {
        match &self.version {
            Some(version) => PutMode::Update(version.clone()),
            None => PutMode::Create,
        }
    }
}

/// Reads a link's text.
pub(crate) fn parse(key: &Key, bytes: &Bytes) -> StorageResult<Digest> {
    let text = String::from_utf8_lossy(bytes);
    text.trim()
        .parse()
        .map_err(|error| damaged(key, format!("{error}")))
}

fn damaged(key: &Key, reason: String) -> StorageError {
    StorageError::Damaged {
        path: key.to_string().into(),
        reason,
    }
}
