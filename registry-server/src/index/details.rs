//! What a tag's manifest is: how large, for which platforms.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::oci::{Digest, MediaType};

use crate::routes::RepositoryName;
use crate::storage::{Blob, BlobSource, RegistryStorage, StorageResult};

/// Largest configuration that is read, in bytes; larger ones tell nothing here.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Images of an index that are looked at.
const PLATFORMS_MAX: usize = 32;

/// Manifests that are remembered.
const REMEMBERED: usize = 4096;

/// A manifest, as lists of tags show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Details {
    pub(crate) media_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    /// Bytes of the configuration and layers; of an index, of the largest image in it.
    pub(crate) size: u64,
    /// Those that it is for.
    pub(crate) platforms: Vec<PlatformDetails>,
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlatformDetails {
    /// `os/architecture[/variant]`
    pub(crate) platform: String,
    pub(crate) digest: Digest,
    /// Bytes of its configuration and layers; `None` if it is not here.
    pub(crate) size: Option<u64>,
}

/// What was found out; manifests never change.
#[derive(Debug, Default)]
pub(crate) struct DetailsCache(Mutex<BTreeMap<(RepositoryName, Digest), Arc<Details>>>);

/// A manifest or index, as far as this looks into it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    artifact_type: Option<String>,
    config: Option<Part>,
    #[serde(default)]
    layers: Option<Vec<Part>>,
    #[serde(default)]
    manifests: Option<Vec<Part>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<PlatformShape>,
}

#[derive(Default, Deserialize)]
struct PlatformShape {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl PlatformShape {
    /// `None` of what is no image: attestations have `unknown/unknown`.
    fn name(&self) -> Option<String> {
        let known = |text: &str| !text.is_empty() && text != "unknown";
        if !known(&self.os) || !known(&self.architecture) {
            return None;
        }
        let variant = self.variant.iter().filter(|text| !text.is_empty());
        let parts = [&self.os, &self.architecture].into_iter().chain(variant);
        Some(parts.map(String::as_str).collect::<Vec<_>>().join("/"))
    }
}

impl Shape {
    /// Bytes of what an image consists of.
    fn size(&self) -> u64 {
        let config = self.config.as_ref().map_or(0, |config| config.size);
        let layers = self.layers.iter().flatten().map(|layer| layer.size);
        layers.fold(config, u64::saturating_add)
    }
}

impl DetailsCache {
    /// What a manifest of a repository is; `None` if it is not there.
    pub(crate) fn of(
        &self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<Arc<Details>>> {
        let key = (name.clone(), *digest);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(details) = known().get(&key) {
            return Ok(Some(Arc::clone(details)));
        }
        let Some((details, whole)) = read(storage, name, digest)? else {
            return Ok(None);
        };
        let details = Arc::new(details);
        // What an index lists may still come.
        if whole {
            let mut known = known();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(key, Arc::clone(&details));
        }
        Ok(Some(details))
    }
}

/// And whether nothing was missing.
fn read(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    digest: &Digest,
) -> StorageResult<Option<(Details, bool)>> {
    let Some(manifest) = storage.manifest(name, digest)? else {
        return Ok(None);
    };
    let kind = MediaType::new(manifest.media_type());
    let mut details = Details {
        media_type: manifest.media_type().to_owned(),
        artifact_type: None,
        size: 0,
        platforms: Vec::new(),
    };
    let Ok(shape) = serde_json::from_slice::<Shape>(manifest.bytes()) else {
        return Ok(Some((details, true)));
    };
    let mut whole = true;
    details.size = shape.size();
    if kind.is_index() {
        for part in shape.manifests.iter().flatten() {
            let named = part.platform.as_ref().and_then(PlatformShape::name);
            let (Some(platform), Ok(digest)) = (named, part.digest.parse::<Digest>()) else {
                continue;
            };
            if details.platforms.len() == PLATFORMS_MAX {
                break;
            }
            let size = storage.manifest(name, &digest)?.and_then(|manifest| {
                let shape = serde_json::from_slice::<Shape>(manifest.bytes()).ok()?;
                Some(shape.size())
            });
            whole &= size.is_some();
            details.size = details.size.max(size.unwrap_or(0));
            details.platforms.push(PlatformDetails {
                platform,
                digest,
                size,
            });
        }
    } else if let Some(config) = &shape.config
        && is_image_config(&config.media_type)
        && let Ok(config_digest) = config.digest.parse::<Digest>()
        && let Some(config) = read_config(storage, name, &config_digest)?
        && let Ok(shape) = serde_json::from_value::<PlatformShape>(config)
        && let Some(platform) = shape.name()
    {
        details.platforms.push(PlatformDetails {
            platform,
            digest: *digest,
            size: Some(details.size),
        });
    }
    let config_type = shape.config.map(|config| config.media_type);
    details.artifact_type = shape
        .artifact_type
        .or(config_type.filter(|kind| !is_image_config(kind)))
        .filter(|kind| !kind.is_empty());
    Ok(Some((details, whole)))
}

fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

/// A configuration of a repository; `None` if it is not there, too large, or no JSON.
pub(super) fn read_config(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    digest: &Digest,
) -> StorageResult<Option<Value>> {
    let Some(blob) = storage.blob(name, digest)? else {
        return Ok(None);
    };
    Ok(bytes_of(&blob).and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// A small blob's bytes. One that cannot be read is as good as none: what is shown of it is left out.
fn bytes_of(blob: &Blob) -> Option<Bytes> {
    if blob.size > CONFIG_BYTES_MAX {
        return None;
    }
    let size = usize::try_from(blob.size).ok()?;
    match &blob.source {
        BlobSource::Bytes(bytes) => Some(bytes.clone()),
        BlobSource::File(file) => {
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, 0).ok()?;
            Some(bytes.into())
        }
        BlobSource::Remote(remote) => {
            let mut stream = remote.stream(0..blob.size);
            let all = async {
                let mut bytes = Vec::with_capacity(size);
                while let Some(part) = stream.next().await {
                    bytes.extend_from_slice(&part.ok()?);
                }
                Some(Bytes::from(bytes))
            };
            // Storage is called on threads of a runtime that may block.
            tokio::runtime::Handle::try_current().ok()?.block_on(all)
        }
    }
}
