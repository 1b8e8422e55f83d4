//! Layers in another compression.
//!
//! Each layer is one pipeline: bytes from where they are, decompressed, compressed, into a file beside the others that are on
//! their way, since a blob has to have its digest before it is sent. Where the target is a registry, each is sent as soon as it
//! is ready and its file goes, so that only a few lie there at a time. Nothing is unpacked.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use store::fs::TempFile;
use store::layer::compress::table::describe;
use store::layer::compress::{Compression, compressor, decompressor, side_by_side};
use store::oci::{
    Descriptor, DiffId, Digest, DigestAlgorithm, Hashing, Index, Manifest, MediaType, Reference,
};
use tokio::sync::Semaphore;

use super::{Edited, replace};
use crate::blocking::blocking;
use crate::copy::target::{open, read_error};
use crate::copy::tree::{Blob, is_foreign};
use crate::copy::{CopyError, Tree};
use crate::progress::Progress;
use crate::upload::Pushed;
use crate::{BlobSource, Client};

/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;

/// Most bytes that a layer may have once decompressed.
const TAR_BYTES_MAX: u64 = 1 << 40;

/// How layers are to be compressed.
#[derive(Clone, Debug)]
pub struct Recompress {
    /// With what.
    pub compression: Compression,
    /// Layers that are compressed so already, too: for another level.
    pub force: bool,
    /// The folder for what waits to be written.
    pub spool: PathBuf,
}

/// Blobs that a registry has already, with how that came to be and their bytes.
pub type Sent = BTreeMap<Digest, (Pushed, u64)>;

/// A tree whose layers are compressed as asked for.
#[derive(Debug)]
pub struct Recompressed {
    /// The tree.
    pub tree: Tree,
    /// Those of its blobs that were sent to the registry on the way.
    pub sent: Sent,
    /// What else lies in files.
    _held: Vec<TempFile>,
}

/// A layer that was compressed anew.
#[derive(Debug)]
struct Remade {
    descriptor: Descriptor,
    diff_id: DiffId,
    /// Where it lies, until it is sent.
    file: Option<TempFile>,
    path: PathBuf,
    sent: Option<Pushed>,
}

/// Compresses the layers of a tree's images anew, where they are not as asked for. With a repository, it gets each that was
/// compressed when that is ready. Indexes follow; attestations in them about an image that changed are left out.
///
/// # Errors
/// A layer that is not meant to be distributed, encrypted, or no tar; a target that is named by a digest; a blob that cannot be
/// read, or is not what the configuration says; referrers that would be about nothing.
pub async fn recompress(
    tree: &Tree,
    how: &Recompress,
    to: Option<(&Client, &Reference)>,
    progress: &Arc<dyn Progress>,
) -> Result<Recompressed, CopyError> {
    if let Some((_, reference)) = to
        && reference.digest().is_some()
    {
        return Err(CopyError::Unfit {
            place: reference.familiar(),
            reason: "layers that are compressed anew have other manifests, with other digests: name it by a tag".to_owned(),
        });
    }
    let mut images = Vec::new();
    let mut wanted: BTreeMap<Digest, (Descriptor, DiffId)> = BTreeMap::new();
    for (digest, manifest) in tree.real_images() {
        let mut needs = Vec::new();
        for (index, layer) in manifest.layers.iter().enumerate() {
            if how.concerns(tree, layer)? {
                needs.push(index);
            }
        }
        if needs.is_empty() {
            continue;
        }
        let config = tree.config(&manifest).await?;
        for index in needs {
            let layer = &manifest.layers[index];
            let diff_id = config.rootfs.diff_ids[index];
            wanted.insert(layer.digest, (layer.clone(), diff_id));
        }
        images.push((digest, manifest, config));
    }
    if images.is_empty() {
        return Ok(Recompressed {
            tree: tree.clone(),
            sent: Sent::new(),
            _held: Vec::new(),
        });
    }
    if !tree.referrers.is_empty() {
        return Err(tree.unfit(
            "what is about it is about digests that compressing its layers anew changes: leave `--referrers` or `--compression` out",
        ));
    }
    let remade = remake(tree, how, wanted, to, progress).await?;
    let mut edited = BTreeMap::new();
    for (digest, mut manifest, mut config) in images {
        if !matches!(how.compression, Compression::Gzip(_)) {
            as_oci(&mut manifest);
        }
        let is_docker = is_docker(&manifest);
        let before = config.rootfs.diff_ids.clone();
        let mut blobs = Vec::new();
        for (index, layer) in manifest.layers.iter_mut().enumerate() {
            let Some(made) = remade.get(&layer.digest) else {
                continue;
            };
            let blob = made.blob(layer, is_docker);
            *layer = blob.descriptor.clone();
            config.rootfs.diff_ids[index] = made.diff_id;
            blobs.push(blob);
        }
        let one = Edited {
            keeps_config: config.rootfs.diff_ids == before,
            manifest,
            config,
            blobs,
        };
        edited.insert(digest, one);
    }
    let tree = replace(tree, &edited, as_its_entries)?;
    let mut sent = Sent::new();
    let mut held = Vec::new();
    for made in remade.into_values() {
        if let Some(pushed) = made.sent {
            sent.insert(made.descriptor.digest, (pushed, made.descriptor.size));
        }
        held.extend(made.file);
    }
    Ok(Recompressed {
        tree,
        sent,
        _held: held,
    })
}

impl Recompress {
    /// Whether a layer has to be compressed anew, if it can be.
    fn concerns(&self, tree: &Tree, layer: &Descriptor) -> Result<bool, CopyError> {
        let kind = layer.media_type.as_str();
        let refused = |why: &str| {
            let digest = layer.digest;
            Err(tree.unfit(format!(
                "its layer {digest} {why}, so it cannot be compressed anew: leave `--compression` out"
            )))
        };
        if is_foreign(layer) {
            return refused("is not meant to be distributed");
        }
        if kind.contains("encrypted") {
            return refused("is encrypted");
        }
        let known = ["tar", "tar+gzip", "tar.gzip", "tar+zstd", "tar.zstd"];
        let is_tar = known.iter().any(|end| {
            kind.strip_suffix(end)
                .is_some_and(|rest| rest.ends_with('.'))
        });
        if !is_tar {
            return refused(&format!("is of type `{}`", crate::error::printable(kind)));
        }
        let is_met = Compression::of(layer).is_also(self.compression);
        // eStargz again would be one table in another.
        let keeps = is_met && (!self.force || self.compression.changes_tar());
        Ok(!keeps)
    }
}

/// Compresses layers, some at once.
async fn remake(
    tree: &Tree,
    how: &Recompress,
    wanted: BTreeMap<Digest, (Descriptor, DiffId)>,
    to: Option<(&Client, &Reference)>,
    progress: &Arc<dyn Progress>,
) -> Result<BTreeMap<Digest, Remade>, CopyError> {
    let (workers, threads) = side_by_side(wanted.len());
    let sending = to.map_or(0, |(client, _)| client.options().parallel);
    let slots = Semaphore::new(workers);
    let slots = &slots;
    let works = wanted
        .into_iter()
        .map(|(digest, (layer, diff_id))| async move {
            let missing = || CopyError::Missing {
                digest: Box::new(digest),
                place: tree.name.clone(),
            };
            let work = Work {
                blob: tree.blobs.get(&digest).ok_or_else(missing)?.clone(),
                layer,
                diff_id,
                place: tree.name.clone(),
                how: how.clone(),
                threads,
                progress: Arc::clone(progress),
            };
            let slot = slots.acquire().await.expect("it is never closed");
            let mut made = blocking(move || work.run()).await?;
            drop(slot);
            if let Some((client, reference)) = to {
                let source = BlobSource::File(made.path.clone());
                let progress = Arc::clone(progress);
                let pushed = client
                    .push_blob(reference, &made.descriptor, source, &[], progress)
                    .await?;
                made.sent = Some(pushed);
                made.file = None;
            }
            Ok::<_, CopyError>((digest, made))
        });
    futures_util::stream::iter(works)
        .buffer_unordered(workers + sending)
        .try_collect()
        .await
}

/// A layer that is to be compressed anew.
struct Work {
    blob: Blob,
    layer: Descriptor,
    diff_id: DiffId,
    place: String,
    how: Recompress,
    threads: usize,
    progress: Arc<dyn Progress>,
}

impl Work {
    fn run(self) -> Result<Remade, CopyError> {
        let file = TempFile::create(&self.how.spool)?;
        let path = file.path().to_owned();
        let failed = || CopyError::file("write", &path);
        let out = BufWriter::with_capacity(1 << 20, file.reopen()?);
        let out = Hashing::new(out, DigestAlgorithm::Sha256);
        let packed = compressor(out, self.how.compression, self.threads).map_err(failed())?;
        let mut plain = Hashing::new(packed, self.diff_id.0.algorithm());
        self.unpack(&path, &mut plain)?;
        let (packed, found, _) = plain.finish();
        if found != self.diff_id.0 {
            return Err(CopyError::Unfit {
                place: self.place,
                reason: format!(
                    "its layer {} holds a tar with DiffID {found}, its configuration says {}",
                    self.layer.digest, self.diff_id
                ),
            });
        }
        let (out, rewritten) = packed.finish_telling().map_err(failed())?;
        let (mut out, digest, size) = out.finish();
        out.flush().map_err(failed())?;
        let compression = self.how.compression;
        let (_, descriptor) = describe(file.file(), digest, size, compression, rewritten.as_ref())
            .map_err(CopyError::file("read", &path))?;
        Ok(Remade {
            descriptor,
            diff_id: rewritten.map_or(self.diff_id, |rewritten| rewritten.diff_id),
            file: Some(file),
            path,
            sent: None,
        })
    }

    /// Writes the layer's tar, and reads its blob to the end, where its digest is checked.
    fn unpack(&self, path: &Path, out: &mut dyn Write) -> Result<(), CopyError> {
        let failed = |error| read_error(error, &self.layer, &self.place);
        let mut blob = open(&self.blob, &self.progress)?;
        let mut tar = decompressor(&mut blob).map_err(failed)?;
        let mut buffer = vec![0; CHUNK];
        let mut left = TAR_BYTES_MAX;
        loop {
            let count = match tar.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            left = left
                .checked_sub(count as u64)
                .ok_or_else(|| CopyError::TooMuch {
                    place: self.place.clone(),
                    what: "bytes in a layer",
                    max: TAR_BYTES_MAX,
                })?;
            out.write_all(&buffer[..count])
                .map_err(CopyError::file("write", path))?;
        }
        drop(tar);
        io::copy(&mut blob, &mut io::sink()).map_err(failed)?;
        Ok(())
    }
}

impl Remade {
    /// The blob in the place of `layer`, whose own annotations stay.
    fn blob(&self, layer: &Descriptor, is_docker: bool) -> Blob {
        let mut descriptor = self.descriptor.clone();
        if is_docker {
            descriptor.media_type = MediaType::from(MediaType::DOCKER_LAYER_GZIP);
        }
        let mut annotations = layer.annotations.clone().unwrap_or_default();
        for name in store::layer::compress::table::table_annotations(&annotations).keys() {
            annotations.remove(name);
        }
        annotations.extend(descriptor.annotations.take().unwrap_or_default());
        descriptor.annotations = (!annotations.is_empty()).then_some(annotations);
        Blob {
            descriptor,
            source: BlobSource::File(self.path.clone()),
        }
    }
}

/// Makes a list of docker's, which holds docker's manifests alone, an OCI index where it holds others.
pub(super) fn as_its_entries(index: &mut Index) {
    let is_docker = |kind: &MediaType| kind.as_str() == MediaType::DOCKER_INDEX;
    let holds_other = index
        .manifests
        .iter()
        .any(|entry| entry.media_type.as_str() == MediaType::OCI_MANIFEST);
    if holds_other && index.media_type.as_ref().is_some_and(is_docker) {
        index.media_type = Some(MediaType::from(MediaType::OCI_INDEX));
    }
}

pub(super) fn is_docker(manifest: &Manifest) -> bool {
    let kind = manifest.media_type.as_ref();
    kind.is_some_and(|kind| kind.as_str() == MediaType::DOCKER_MANIFEST)
}

/// Makes a manifest of docker's, which knows gzip alone, an OCI one.
pub(super) fn as_oci(manifest: &mut Manifest) {
    if !is_docker(manifest) {
        return;
    }
    manifest.media_type = Some(MediaType::from(MediaType::OCI_MANIFEST));
    manifest.config.media_type = MediaType::from(MediaType::OCI_CONFIG);
    for layer in &mut manifest.layers {
        let kind = match Compression::of(layer).of_plain_tar() {
            Compression::ZstdChunked(_) | Compression::Zstd(_) => MediaType::OCI_LAYER_ZSTD,
            Compression::None => MediaType::OCI_LAYER,
            _ => MediaType::OCI_LAYER_GZIP,
        };
        layer.media_type = MediaType::from(kind);
    }
}
