//! What `docker save` wrote before it wrote layouts, as manifests that nobody wrote.
//!
//! `manifest.json` names a configuration and layers by paths. A layer that is a plain tar has its DiffID as digest; one that is
//! compressed (crane writes such) is hashed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use serde::Deserialize;
use store::layer::compress::Packing;
use store::oci::{
    Annotations, Descriptor, Digest, DigestAlgorithm, Hasher, ImageConfig, Manifest, MediaType,
    RawManifest,
};

use super::CopyError;
use super::local::{Entries, IMAGE_NAME, REF_NAME};
use crate::BlobSource;

/// Largest configuration that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most images in one archive, and most layers of one image.
const IMAGES_MAX: usize = 1000;
const LAYERS_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

type Found = (Vec<Descriptor>, BTreeMap<Digest, (BlobSource, u64)>);

/// The images of an archive, and where their blobs are.
pub(crate) fn read(entries: &Entries) -> Result<Found, CopyError> {
    let document = entries.document("manifest.json")?.ok_or_else(|| {
        entries.bad("it is no image archive: expected `index.json` or `manifest.json` in it")
    })?;
    let saved: Vec<Saved> = serde_json::from_slice(&document)
        .map_err(|error| entries.bad(format!("`manifest.json`: {error}")))?;
    if saved.len() > IMAGES_MAX {
        return Err(entries.bad(format!("it has more than {IMAGES_MAX} images")));
    }
    let (mut listed, mut held) = (Vec::new(), BTreeMap::new());
    for image in &saved {
        let raw = manifest(entries, image, &mut held)?;
        let bytes = Bytes::copy_from_slice(raw.bytes());
        let size = bytes.len() as u64;
        held.insert(raw.digest(), (BlobSource::Bytes(bytes), size));
        let names = image.repo_tags.iter().flatten();
        let before = listed.len();
        for name in names.take(LAYERS_MAX) {
            let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            let mut named = raw.descriptor();
            named.annotations = Some(Annotations::from([
                (IMAGE_NAME.to_owned(), name.clone()),
                (REF_NAME.to_owned(), tag.to_owned()),
            ]));
            listed.push(named);
        }
        if listed.len() == before {
            listed.push(raw.descriptor());
        }
    }
    Ok((listed, held))
}

fn manifest(
    entries: &Entries,
    image: &Saved,
    held: &mut BTreeMap<Digest, (BlobSource, u64)>,
) -> Result<RawManifest, CopyError> {
    let find = |path: &str| {
        entries.find(path).ok_or_else(|| {
            let path = crate::error::printable(path);
            entries.bad(format!("`{path}` is missing; `manifest.json` names it"))
        })
    };
    let at = find(&image.config)?;
    let bytes = entries.read_at(&image.config, at, CONFIG_BYTES_MAX)?;
    let config: ImageConfig = serde_json::from_slice(&bytes)
        .map_err(|error| entries.bad(format!("the configuration is not valid: {error}")))?;
    let described = Descriptor::of(MediaType::OCI_CONFIG, &bytes);
    held.insert(described.digest, (entries.source(at), at.1));
    let paths = image.layers.as_deref().unwrap_or_default();
    let diff_ids = &config.rootfs.diff_ids;
    if paths.len() != diff_ids.len() || paths.len() > LAYERS_MAX {
        let (layers, ids) = (paths.len(), diff_ids.len());
        return Err(entries.bad(format!(
            "`manifest.json` names {layers} layers, the configuration {ids}"
        )));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in paths.iter().zip(diff_ids) {
        let at = find(path)?;
        let layer = match packing(entries, at)? {
            Packing::Plain => Descriptor::new(MediaType::OCI_LAYER, diff_id.0, at.1),
            Packing::Gzip => Descriptor::new(MediaType::OCI_LAYER_GZIP, hash(entries, at)?, at.1),
            Packing::Zstd => Descriptor::new(MediaType::OCI_LAYER_ZSTD, hash(entries, at)?, at.1),
            other => {
                return Err(entries.bad(format!(
                    "layer `{}` is packed with {other:?}: expected gzip, zstd or none",
                    crate::error::printable(path)
                )));
            }
        };
        held.insert(layer.digest, (entries.source(at), at.1));
        layers.push(layer);
    }
    Ok(RawManifest::from(Manifest::image(described, layers)))
}

fn part(entries: &Entries, (offset, len): (u64, u64)) -> Result<impl Read, CopyError> {
    let failed = |error| CopyError::file("read", &entries.path)(error);
    let mut file = File::open(&entries.path).map_err(failed)?;
    file.seek(SeekFrom::Start(offset))
        .map_err(CopyError::file("read", &entries.path))?;
    Ok(file.take(len))
}

fn packing(entries: &Entries, at: (u64, u64)) -> Result<Packing, CopyError> {
    let mut start = Vec::new();
    part(entries, at)?
        .take(6)
        .read_to_end(&mut start)
        .map_err(CopyError::file("read", &entries.path))?;
    Ok(Packing::of(&start))
}

fn hash(entries: &Entries, at: (u64, u64)) -> Result<Digest, CopyError> {
    let mut reader = part(entries, at)?;
    let mut hasher = Hasher::new(DigestAlgorithm::Sha256);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = reader
            .read(&mut buffer)
            .map_err(CopyError::file("read", &entries.path))?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
    }
}
