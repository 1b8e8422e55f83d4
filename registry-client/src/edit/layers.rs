//! Other layers: added on top, exchanged below, or all made one.
//!
//! A new layer must have its digest before it is sent, so it is compressed into a file beside the others that are on their way
//! (`spool`); layers that exist already are not touched.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::path::Path;
use std::sync::Arc;

use store::content::archive::ArchiveError;
use store::fs::TempFile;
use store::layer::compress::table::describe;
use store::layer::compress::{Compression, Packing, compressor, decompressor};
use store::layer::merge::{MergeError, Merged, merge};
use store::layer::tar::TarError;
use store::oci::manifest::ParsedManifest;
use store::oci::{
    Descriptor, DiffId, Digest, DigestAlgorithm, Hashing, History, ImageConfig, Manifest,
    MediaType, Platform,
};

use super::recompress::{as_its_entries, as_oci, is_docker};
use super::{Edited, replace};
use crate::BlobSource;
use crate::blocking::blocking;
use crate::copy::target::{open, read_error};
use crate::copy::tree::Blob;
use crate::copy::{CopyError, Tree};
use crate::progress::{Progress, Silent};

/// A layer that did not exist before: its blob, what it unpacks to, and the file that holds it.
#[derive(Debug)]
pub struct NewLayer {
    descriptor: Descriptor,
    compression: Compression,
    diff_id: DiffId,
    source: BlobSource,
    _file: Option<TempFile>,
}

impl NewLayer {
    /// A layer of a tar that is a file. What is compressed with gzip or zstd is taken as it is, unless something else is
    /// wanted; what is not compressed becomes gzip, or what is wanted.
    pub fn of_tar(
        path: &Path,
        wanted: Option<Compression>,
        spool: &Path,
    ) -> Result<NewLayer, CopyError> {
        let failed = |error| CopyError::file("read", path)(error);
        let mut file = File::open(path).map_err(failed)?;
        let mut start = Vec::new();
        (&mut file)
            .take(6)
            .read_to_end(&mut start)
            .map_err(CopyError::file("read", path))?;
        file.rewind().map_err(CopyError::file("read", path))?;
        // What it is at best, if it has a table.
        let packed = match Packing::of(&start) {
            Packing::Gzip => Some(Compression::ESTARGZ),
            Packing::Zstd => Some(Compression::ZSTD_CHUNKED),
            _ => None,
        };
        if let Some(packed) = packed {
            let (blob, source) = super::file_blob(path, packed.media_type())?;
            let (found, descriptor) = describe(&file, blob.digest, blob.size, packed, None)
                .map_err(CopyError::file("read", path))?;
            file.rewind().map_err(CopyError::file("read", path))?;
            if wanted.is_none_or(|wanted| found.is_also(wanted)) {
                let mut tar = decompressor(file).map_err(CopyError::file("read", path))?;
                let mut hashed = Hashing::new(io::sink(), DigestAlgorithm::Sha256);
                io::copy(&mut tar, &mut hashed).map_err(CopyError::file("read", path))?;
                return Ok(NewLayer {
                    descriptor,
                    compression: found,
                    diff_id: DiffId(hashed.finish().1),
                    source,
                    _file: None,
                });
            }
        }
        let mut tar = decompressor(file).map_err(CopyError::file("read", path))?;
        NewLayer::of(wanted.unwrap_or(Compression::GZIP), spool, |out| {
            io::copy(&mut tar, out).map_err(CopyError::file("read", path))?;
            Ok(())
        })
    }

    /// A layer of what `fill` writes.
    fn of(
        compression: Compression,
        spool: &Path,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), CopyError>,
    ) -> Result<NewLayer, CopyError> {
        let file = TempFile::create(spool)?;
        let path = file.path().to_owned();
        let failed = || CopyError::file("write", &path);
        let out = io::BufWriter::with_capacity(1 << 20, file.reopen()?);
        let out = Hashing::new(out, DigestAlgorithm::Sha256);
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let packed = compressor(out, compression, threads).map_err(failed())?;
        let mut plain = Hashing::new(packed, DigestAlgorithm::Sha256);
        fill(&mut plain)?;
        let (packed, diff_id, _) = plain.finish();
        let (out, rewritten) = packed.finish_telling().map_err(failed())?;
        let (mut out, digest, size) = out.finish();
        out.flush().map_err(failed())?;
        drop(out);
        let described = describe(file.file(), digest, size, compression, rewritten.as_ref());
        let (compression, descriptor) = described.map_err(CopyError::file("read", &path))?;
        Ok(NewLayer {
            descriptor,
            compression,
            diff_id: rewritten.map_or(DiffId(diff_id), |rewritten| rewritten.diff_id),
            source: BlobSource::File(path),
            _file: Some(file),
        })
    }

    /// Whether manifests of docker's have layers of its kind.
    fn fits_docker(&self) -> bool {
        matches!(
            self.compression,
            Compression::Gzip(_) | Compression::Estargz(_)
        )
    }

    /// The blob, with the media type that goes with a manifest.
    fn blob(&self, manifest: &Manifest) -> Blob {
        let mut descriptor = self.descriptor.clone();
        if is_docker(manifest) {
            descriptor.media_type = MediaType::from(MediaType::DOCKER_LAYER_GZIP);
        }
        Blob {
            descriptor,
            source: self.source.clone(),
        }
    }
}

/// The tree's images, each with its configuration, to be changed.
async fn images(tree: &Tree) -> Result<Vec<(Digest, Edited)>, CopyError> {
    let mut images = Vec::new();
    for (digest, manifest) in tree.real_images() {
        let config = tree.config(&manifest).await?;
        let blobs = Vec::new();
        images.push((
            digest,
            Edited {
                manifest,
                config,
                keeps_config: false,
                blobs,
            },
        ));
    }
    if images.is_empty() {
        return Err(tree.unfit("there is no image in it"));
    }
    Ok(images)
}

fn step(created_by: &str) -> History {
    History {
        created_by: Some(created_by.to_owned()),
        ..History::default()
    }
}

/// A tree whose images have further layers on top, oldest first.
pub async fn append(tree: &Tree, layers: &[NewLayer]) -> Result<Tree, CopyError> {
    let mut edited = BTreeMap::new();
    for (digest, mut image) in images(tree).await? {
        if !layers.iter().all(NewLayer::fits_docker) {
            as_oci(&mut image.manifest);
        }
        for layer in layers {
            let blob = layer.blob(&image.manifest);
            image.manifest.layers.push(blob.descriptor.clone());
            image.config.rootfs.diff_ids.push(layer.diff_id);
            image.config.history.push(step("longshore remote append"));
            image.blobs.push(blob);
        }
        edited.insert(digest, image);
    }
    replace(tree, &edited, as_its_entries)
}

/// An image of new layers alone.
pub fn from_scratch(name: &str, platform: &Platform, layers: &[NewLayer]) -> Tree {
    let mut config = ImageConfig::scratch(platform);
    let mut manifest = Manifest::image(Descriptor::of(MediaType::OCI_CONFIG, b""), Vec::new());
    let mut blobs = BTreeMap::new();
    for layer in layers {
        let blob = layer.blob(&manifest);
        manifest.layers.push(blob.descriptor.clone());
        config.rootfs.diff_ids.push(layer.diff_id);
        config.history.push(step("longshore remote append"));
        blobs.insert(blob.descriptor.digest, blob);
    }
    let edited = Edited {
        manifest,
        config,
        keeps_config: false,
        blobs: Vec::new(),
    };
    let raw = super::rewrite(&edited, &mut blobs);
    Tree {
        name: name.to_owned(),
        root: raw.digest(),
        manifests: vec![(raw.digest(), raw)],
        blobs,
        referrers: Vec::new(),
    }
}

/// A tree whose images stand on another base: the layers of `old`, which they must begin with, are exchanged for those of
/// `new`. Each platform is rebased on its own. How containers run stays as the images say.
pub async fn rebase(tree: &Tree, old: &Tree, new: &Tree) -> Result<Tree, CopyError> {
    let mut edited = BTreeMap::new();
    let (old_images, new_images) = (images(old).await?, images(new).await?);
    for (digest, mut image) in images(tree).await? {
        let platform = image.config.platform();
        let was = of_platform(old, &old_images, &platform)?;
        let is = of_platform(new, &new_images, &platform)?;
        let below = was.config.rootfs.diff_ids.len();
        if !image
            .config
            .rootfs
            .diff_ids
            .starts_with(&was.config.rootfs.diff_ids)
        {
            return Err(tree.unfit(format!(
                "its layers for {platform} do not begin with those of `{}`",
                old.name
            )));
        }
        let layers = &is.manifest.layers;
        image
            .manifest
            .layers
            .splice(..below, layers.iter().cloned());
        let diff_ids = &is.config.rootfs.diff_ids;
        image
            .config
            .rootfs
            .diff_ids
            .splice(..below, diff_ids.iter().copied());
        let steps = was.config.history.len();
        if image.config.history.starts_with(&was.config.history) {
            let history = is.config.history.iter().cloned();
            image.config.history.splice(..steps, history);
        } else {
            // They do not say what is whose: nothing is better than something wrong.
            image.config.history.clear();
        }
        for layer in layers {
            if let Some(blob) = new.blobs.get(&layer.digest) {
                image.blobs.push(blob.clone());
            }
        }
        edited.insert(digest, image);
    }
    replace(tree, &edited, |_| {})
}

fn of_platform<'a>(
    tree: &Tree,
    images: &'a [(Digest, Edited)],
    platform: &Platform,
) -> Result<&'a Edited, CopyError> {
    let mut all = images.iter().map(|(_, image)| image);
    let found = all.find(|image| image.config.platform().satisfies(platform));
    found.ok_or_else(|| CopyError::NoPlatform {
        place: tree.name.clone(),
        wanted: platform.to_string(),
        available: images
            .iter()
            .map(|(_, image)| image.config.platform().to_string())
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// A tree whose images have one layer each, with what all of their layers add up to; and the files that hold those.
pub async fn flatten(
    tree: &Tree,
    compression: Compression,
    spool: &Path,
) -> Result<(Tree, Vec<NewLayer>), CopyError> {
    let mut edited = BTreeMap::new();
    let mut new = Vec::new();
    for (digest, mut image) in images(tree).await? {
        let (from, spool, manifest) = (tree.clone(), spool.to_owned(), image.manifest.clone());
        let layer = blocking(move || {
            NewLayer::of(compression, &spool, |out| {
                export(&from, &manifest, &spool, out).map(drop)
            })
        })
        .await?;
        // What it had is not looked at: it goes.
        image.manifest.layers.clear();
        if !layer.fits_docker() {
            as_oci(&mut image.manifest);
        }
        let blob = layer.blob(&image.manifest);
        image.manifest.layers = vec![blob.descriptor.clone()];
        image.config.rootfs.diff_ids = vec![layer.diff_id];
        image.config.history = vec![step("longshore remote flatten")];
        image.blobs.push(blob);
        edited.insert(digest, image);
        new.push(layer);
    }
    Ok((replace(tree, &edited, as_its_entries)?, new))
}

/// Writes what the image of a tree adds up to as one tar: to a file, which appears when it is whole, or else to `stream`.
pub async fn export_to(
    tree: &Tree,
    path: Option<&Path>,
    stream: File,
    spool: &Path,
) -> Result<Merged, CopyError> {
    let ParsedManifest::Image(image) = tree.root_manifest().parsed() else {
        return Err(tree.unfit("it is an index: choose one of its platforms"));
    };
    let (tree, image) = (tree.clone(), Manifest::clone(image));
    let (path, spool) = (path.map(Path::to_owned), spool.to_owned());
    blocking(move || {
        let Some(path) = path else {
            let mut out = io::BufWriter::with_capacity(1 << 20, stream);
            return export(&tree, &image, &spool, &mut out);
        };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = TempFile::create(folder)?;
        let mut out = io::BufWriter::with_capacity(1 << 20, file.file());
        let merged = export(&tree, &image, &spool, &mut out)?;
        drop(out);
        file.publish(&path)?;
        Ok(merged)
    })
    .await
}

/// Writes what an image's layers add up to as one tar. Layers that are not here are fetched into `spool` first, since each
/// is read twice. Blocks; to be called within the runtime.
pub fn export(
    tree: &Tree,
    image: &Manifest,
    spool: &Path,
    out: &mut dyn Write,
) -> Result<Merged, CopyError> {
    let nobody: Arc<dyn Progress> = Arc::new(Silent);
    let mut blobs = Vec::new();
    let mut held = Vec::new();
    for layer in &image.layers {
        let missing = || CopyError::Missing {
            digest: Box::new(layer.digest),
            place: tree.name.clone(),
        };
        let blob = tree.blobs.get(&layer.digest).ok_or_else(missing)?;
        if !matches!(blob.source, BlobSource::Remote(_)) {
            blobs.push(blob.clone());
            continue;
        }
        let file = TempFile::create(spool)?;
        let mut reader = open(blob, &nobody)?;
        io::copy(&mut reader, &mut file.file())
            .map_err(|error| read_error(error, layer, &tree.name))?;
        blobs.push(Blob {
            descriptor: layer.clone(),
            source: BlobSource::File(file.path().to_owned()),
        });
        held.push(file);
    }
    let mut open_layer = |at: usize| {
        let blob: &Blob = &blobs[at];
        let reader = open(blob, &nobody).map_err(io::Error::other)?;
        Ok(Box::new(reader) as Box<dyn Read>)
    };
    merge(blobs.len(), &mut open_layer, out).map_err(|error| match error {
        MergeError::Write(TarError::Output { source }) => {
            CopyError::Archive(ArchiveError::Write { source })
        }
        error => tree.unfit(error.to_string()),
    })
}
