//! The store as one of the places that images are copied between (`registry_client::copy`).

use std::sync::Arc;

use registry_client::Progress;
use registry_client::copy::{CopyError, Local, Pick, Source};
use store::images::{CONFIG_BYTES_MAX, ImageId};
use store::layer::compress::{Compression, CompressionChoice};
use store::oci::manifest::ParsedManifest;
use store::oci::{DiffId, ImageConfig, RawManifest, Reference};
use store::{Store, StoreError};

use super::{Bridge, watch_compression};
use crate::solve::{ProgressSink, TransferKind};

/// Why a manifest cannot be an image of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// It is none that the store keeps.
    #[error(transparent)]
    Unfit(#[from] CopyError),
    /// The store failed, or a layer is not what the configuration says.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image of the store as a source. Its layers are compressed now, unless they are here in some compression; those that are
/// only in a registry must have been brought here ([`super::complete`]).
pub fn stored(
    store: &Store,
    name: &str,
    id: &ImageId,
    progress: &Arc<dyn ProgressSink>,
) -> Result<Source, StoreError> {
    let watch = watch_compression(store, progress);
    let manifest = store.manifest_for(id, CompressionChoice::AS_THEY_ARE)?;
    drop(watch);
    let folder = store.root().join("blobs");
    Ok(Source::Local {
        local: Local::folder(name, &folder, &manifest),
        pick: Pick::Only,
    })
}

/// Makes an image of a manifest whose blobs were copied into the store, and names it.
pub fn adopt(
    store: &Store,
    manifest: &RawManifest,
    name: Option<&Reference>,
) -> Result<ImageId, AdoptError> {
    let unfit = |reason: String| {
        AdoptError::Unfit(CopyError::Unfit {
            place: manifest.digest().to_string(),
            reason,
        })
    };
    let ParsedManifest::Image(image) = manifest.parsed() else {
        return Err(unfit(
            "the store keeps images, not indexes of them".to_owned(),
        ));
    };
    if !registry_client::edit::is_image_config(image.config.media_type.as_str()) {
        let kind = &image.config.media_type;
        return Err(unfit(format!(
            "its configuration is of type `{kind}`: the store keeps images only"
        )));
    }
    let limit = CONFIG_BYTES_MAX as u64;
    let bytes = store
        .blobs()
        .read(&image.config.digest, limit)
        .map_err(StoreError::from)?;
    let config: ImageConfig = serde_json::from_slice(&bytes)
        .map_err(|error| unfit(format!("its configuration is not valid: {error}")))?;
    let diff_ids: &[DiffId] = &config.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let (layers, ids) = (image.layers.len(), diff_ids.len());
        return Err(unfit(format!("it has {layers} layers but {ids} DiffIDs")));
    }
    for (diff_id, layer) in diff_ids.iter().zip(&image.layers) {
        let compression = Compression::of(layer);
        store
            .index()
            .remember(diff_id, compression.name(), layer)
            .map_err(StoreError::from)?;
    }
    // A layer is what its DiffID says only once it was unpacked.
    for diff_id in diff_ids {
        store.ensure_unpacked(diff_id)?;
    }
    let id = store
        .images()
        .put_image(&bytes, Some(manifest))
        .map_err(StoreError::from)?;
    if let Some(name) = name {
        store.images().tag(name, &id).map_err(StoreError::from)?;
    }
    Ok(id)
}

/// Passes what is told of blobs on as events.
pub fn bridge(kind: TransferKind, sink: Arc<dyn ProgressSink>) -> Arc<dyn Progress> {
    Arc::new(Bridge::new(kind, sink))
}
