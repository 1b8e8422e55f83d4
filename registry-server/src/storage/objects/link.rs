//! The link that says what a tag is on: a digest, or nothing where the tag was removed.

use std::borrow::Cow;

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{
    Attribute, Attributes, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion,
};
use store::oci::Digest;

use super::{ObjectStorage, absent_is_none};
use crate::routes::UploadId;
use crate::storage::{LINK_BYTES_MAX, StorageError, StorageResult};

/// What a tag's `current/link` held when it was read.
#[derive(Debug)]
pub(super) struct TagLink {
    digest: Option<Digest>,
    /// `None` where there was no object.
    version: Option<UpdateVersion>,
    /// Who wrote it, where a condition held.
    writer: Option<String>,
}

/// Beside a link that was written under a condition: a name for this one writing. Two that write the same link are told apart by it.
const WRITER: Attribute = Attribute::Metadata(Cow::Borrowed("longshore-writer"));

/// Writes a link unless the condition does not hold; false then, which may be the answer to a repetition.
pub(super) fn put(
    storage: &ObjectStorage,
    key: &Key,
    text: Bytes,
    mode: PutMode,
    writer: &UploadId,
) -> StorageResult<bool> {
    let mut attributes = Attributes::new();
    attributes.insert(WRITER, writer.to_string().into());
    let options = PutOptions {
        mode,
        attributes,
        ..PutOptions::default()
    };
    storage.put_if(key, text, options)
}

impl TagLink {
    pub(super) fn read(storage: &ObjectStorage, key: &Key) -> StorageResult<TagLink> {
        let read = async {
            let found = storage.store.get(key).await?;
            let writer = found.attributes.get(&WRITER).map(|by| (**by).to_owned());
            let version = UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            };
            if found.meta.size > LINK_BYTES_MAX {
                return Ok((version, writer, None));
            }
            Ok((version, writer, Some(found.bytes().await?)))
        };
        let Some((version, writer, bytes)) = absent_is_none(storage.wait("read", key, read))?
        else {
            return Ok(TagLink {
                digest: None,
                version: None,
                writer: None,
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
            writer,
        })
    }

    /// What the tag is on.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether this writing made it what it is.
    pub(super) fn is_by(&self, writer: &UploadId) -> bool {
        self.writer.as_deref() == Some(writer.as_str())
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
