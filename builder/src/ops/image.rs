//! Base images: found here or in their registry, pulled and unpacked when something reads them.

use store::images::ImageId;
use store::layer::LayerId;
use store::oci::{Platform, Reference};
use store::{Store, StoreError};

use super::Operations;
use crate::error::StepError;
use crate::graph::{ImageOp, VertexIndex};
use crate::lower::{ImageRequest, ResolvedImage};
use crate::remote::Remote;
use crate::solve::OfVertex;
use crate::transfer::{self, RemoteImage};

/// Finds an image: in its layout, or by name in the store, unless `pull` asks for the registry's word. `asking` is called
/// before the registry is.
pub(crate) fn resolve(
    store: &Store,
    remote: &Remote,
    image: &ImageRequest,
    pull: bool,
    asking: &dyn Fn(),
) -> Result<ResolvedImage, StepError> {
    let (reference, platform) = (&image.reference, &image.platform);
    if let Some(layout) = &image.layout {
        let id = store.load_layout_image(&layout.path, layout.selector.as_ref(), platform)?;
        return local(store, reference, &id);
    }
    if !pull
        && let Some(row) = store
            .images()
            .resolve(&reference.to_string())
            .map_err(StoreError::from)?
    {
        let here = local(store, reference, &row.id)?;
        if here.config.platform().satisfies(platform) {
            return Ok(here);
        }
        // The registry may have it for the right platform, too. If not, the build checks warn of what is here.
        asking();
        return match transfer::inspect(remote, reference, platform) {
            Ok(image) if image.config.platform().satisfies(platform) => {
                kept(store, reference, image)
            }
            _ => Ok(here),
        };
    }
    asking();
    let image = transfer::inspect(remote, reference, platform)?;
    kept(store, reference, image)
}

/// Keeps what was learnt of an image, so that the next build asks nobody; the layers follow when something reads them.
fn kept(
    store: &Store,
    reference: &Reference,
    image: RemoteImage,
) -> Result<ResolvedImage, StepError> {
    let id = transfer::keep(store, &image)?;
    if reference.tag().is_some() {
        let images = store.images();
        // An image for another machine does not take the name from one that can be run here.
        let runs_here = image.config.platform().satisfies(&Platform::host());
        let is_free = || {
            images
                .resolve(&reference.to_string())
                .map(|row| row.is_none())
        };
        if runs_here || is_free().map_err(StoreError::from)? {
            images.tag(reference, &id).map_err(StoreError::from)?;
        }
    }
    Ok(ResolvedImage {
        reference: reference.clone(),
        manifest: Some(image.manifest.digest()),
        diff_ids: image.config.rootfs.diff_ids.clone(),
        layers: image.layers().to_vec(),
        config: image.config,
    })
}

fn local(store: &Store, reference: &Reference, id: &ImageId) -> Result<ResolvedImage, StepError> {
    let config = store.images().config(id).map_err(StoreError::from)?;
    let manifest = store.images().manifest(id).map_err(StoreError::from)?;
    let layers = match manifest.as_ref().map(store::oci::RawManifest::parsed) {
        Some(store::oci::manifest::ParsedManifest::Image(image)) => image.layers.clone(),
        _ => Vec::new(),
    };
    Ok(ResolvedImage {
        reference: reference.clone(),
        manifest: manifest.map(|manifest| manifest.digest()),
        diff_ids: config.rootfs.diff_ids.clone(),
        layers,
        config,
    })
}

/// The directories of an image's layers, oldest first, if all of them stand here.
pub(crate) fn present(store: &Store, image: &ImageOp) -> Result<Option<Vec<LayerId>>, StepError> {
    let mut ids = Vec::with_capacity(image.diff_ids.len());
    for diff_id in &image.diff_ids {
        let known = store
            .index()
            .layer_by_diff_id(diff_id)
            .map_err(StoreError::from)?;
        match known.filter(|layer| store.snapshots().has(&layer.id)) {
            Some(layer) => ids.push(layer.id),
            None => return Ok(None),
        }
    }
    Ok(Some(ids))
}

/// Brings an image's layers here: unpacks the blobs that the store has, and pulls the others.
pub(crate) fn materialise(
    operations: &Operations<'_>,
    vertex: usize,
    image: &ImageOp,
) -> Result<Vec<LayerId>, StepError> {
    let store = operations.store;
    let progress = OfVertex::before(VertexIndex(vertex), operations.progress);
    let mut missing = Vec::new();
    for (position, diff_id) in image.diff_ids.iter().enumerate() {
        if transfer::unpack_here(store, diff_id, &progress)? {
            continue;
        }
        let Some(layer) = image.layers.get(position) else {
            return Err(StepError::LayerLost {
                diff_id: *diff_id,
                reference: Box::new(image.reference.clone()),
            });
        };
        if !missing.iter().any(|(known, _)| known == diff_id) {
            missing.push((*diff_id, layer.clone()));
        }
    }
    transfer::fetch(
        store,
        operations.remote,
        &image.reference,
        &missing,
        &progress,
    )?;
    present(store, image)?.ok_or_else(|| StepError::LayerLost {
        diff_id: image.diff_ids[0],
        reference: Box::new(image.reference.clone()),
    })
}
