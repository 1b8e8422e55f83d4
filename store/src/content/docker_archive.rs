//! What `docker save` writes and `docker load` reads.
//!
//! ```text
//! manifest.json     [{"Config": path, "RepoTags": [name:tag, …], "Layers": [path, …]}, …]
//! repositories      {name: {tag: …}}, written for old readers, never read
//! ```
//!
//! The paths are free. We write what Docker does since version 25: an OCI layout beside `manifest.json`, whose paths lead
//! into `blobs/sha256`, with layers uncompressed. We read every form since 2015: `<id>/layer.tar`, links between those,
//! `<hex>.tar`, `blobs/…`, compressed layers too.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::archive::{
    ArchiveError, Collected, LoadedImage, Output, SavedImage, parse_document, write_document,
};
use super::layout::{blob_path, describe, write_blob_directories, write_index};
use crate::images::{CONFIG_BYTES_MAX, ImageId};
use crate::oci::{
    Descriptor, DiffId, Digest, ImageConfig, Manifest, MediaType, RawManifest, Reference,
};
use crate::{Store, StoreError};

const MANIFEST: &str = "manifest.json";

/// One image in `manifest.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Writes images with uncompressed layers.
pub(crate) fn save(
    store: &Store,
    images: &[SavedImage],
    output: &mut dyn Output,
) -> Result<(), StoreError> {
    let mut documents: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
    let mut layers: BTreeMap<Digest, u64> = BTreeMap::new();
    let mut listed = Vec::new();
    let mut manifest = Vec::new();
    let mut repositories = Map::new();
    for image in images {
        let config = store.images().config_bytes(&image.id)?;
        let parsed = store.images().config(&image.id)?;
        let mut described = Vec::new();
        for diff_id in &parsed.rootfs.diff_ids {
            let size = match layers.get(&diff_id.0) {
                Some(size) => *size,
                None => store.write_layer(diff_id, &mut std::io::sink())?,
            };
            layers.insert(diff_id.0, size);
            described.push(Descriptor::new(MediaType::OCI_LAYER, diff_id.0, size));
        }
        manifest.push(Image {
            config: blob_path(&image.id.0),
            repo_tags: Some(tags(&image.names)),
            layers: Some(described.iter().map(|l| blob_path(&l.digest)).collect()),
        });
        if let Some(last) = described.last() {
            note_repositories(&mut repositories, &image.names, &last.digest);
        }
        let config_described = Descriptor::of(MediaType::OCI_CONFIG, &config);
        let raw = RawManifest::from(Manifest::image(config_described, described));
        let mut plain = raw.descriptor();
        plain.platform = Some(parsed.platform());
        listed.extend(describe(&plain, &image.names));
        documents.insert(image.id.0, config);
        documents.insert(raw.digest(), raw.bytes().to_vec());
    }
    write_index(output, listed)?;
    let json = serde_json::to_vec(&manifest).expect("it has only text keys");
    write_document(output, MANIFEST, &json)?;
    if !repositories.is_empty() {
        let json = serde_json::to_vec(&repositories).expect("it has only text keys");
        write_document(output, "repositories", &json)?;
    }
    write_blob_directories(output, documents.keys().chain(layers.keys()))?;
    for (digest, bytes) in &documents {
        write_document(output, &blob_path(digest), bytes)?;
    }
    for (digest, size) in &layers {
        let mut tar = store.layer_tar(&DiffId(*digest))?;
        output.file(&blob_path(digest), *size, &mut tar)?;
    }
    Ok(())
}

/// `name:tag` as people write it; names by digest have no place in this format.
fn tags(names: &[Reference]) -> Vec<String> {
    names
        .iter()
        .filter_map(|name| {
            let tag = name.tag()?;
            Some(format!("{}:{tag}", name.familiar_name()))
        })
        .collect()
}

fn note_repositories(repositories: &mut Map<String, Value>, names: &[Reference], top: &Digest) {
    for name in names {
        let Some(tag) = name.tag() else { continue };
        let entry = repositories
            .entry(name.familiar_name())
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(tags) = entry {
            tags.insert(tag.to_owned(), Value::String(top.hex()));
        }
    }
}

/// Takes the images of `manifest.json` into the store; adds names to those already `found` by their index.
pub(crate) fn load(
    store: &Store,
    collected: &Collected,
    found: &mut Vec<LoadedImage>,
) -> Result<(), StoreError> {
    let bytes = collected
        .documents
        .get(MANIFEST)
        .ok_or(ArchiveError::NotAnArchive)?;
    let images: Vec<Image> = parse_document(MANIFEST, bytes)?;
    for image in images {
        let names = image
            .repo_tags
            .iter()
            .flatten()
            .map(|text| {
                text.parse::<Reference>().map_err(|error| {
                    let reason = error.to_string();
                    ArchiveError::Inconsistent {
                        path: MANIFEST.to_owned(),
                        reason,
                    }
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let config = collected.file(&image.config, MANIFEST)?;
        let id = ImageId(config.digest());
        if let Some(known) = found.iter_mut().find(|known| known.id == id) {
            known.names.extend(names);
            continue;
        }
        load_image(store, collected, id, &image.layers.unwrap_or_default())?;
        found.push(LoadedImage { id, names });
    }
    Ok(())
}

fn load_image(
    store: &Store,
    collected: &Collected,
    id: ImageId,
    layers: &[String],
) -> Result<(), StoreError> {
    let config = store.blobs().read(&id.0, CONFIG_BYTES_MAX as u64)?;
    let parsed: ImageConfig = parse_document(&id.to_string(), &config)?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != layers.len() {
        return Err(ArchiveError::Inconsistent {
            path: MANIFEST.to_owned(),
            reason: format!(
                "it gives `{id}` {} layers, its config has {}",
                layers.len(),
                diff_ids.len()
            ),
        }
        .into());
    }
    let mut pairs = BTreeMap::new();
    for (diff_id, path) in diff_ids.iter().zip(layers) {
        pairs.insert(*diff_id, collected.file(path, MANIFEST)?.digest());
    }
    super::add_layers(store, &pairs)?;
    store.images().put_image(&config, None)?;
    Ok(())
}
