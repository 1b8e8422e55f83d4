//! Where blobs and snapshots meet: a layer as a directory, as a tar, and as a compressed blob.
//!
//! ```text
//! layers/ID/fs ── write_tar ──► tar with a DiffID ── compress ──► blob, remembered by DiffID and compression
//! layers/ID/fs ◄── unpack ───── tar with a DiffID ◄─ decompress ─ blob
//! ```
//!
//! A layer that was built has a canonical tar and can be written again at any time. One that came from elsewhere has the bytes
//! it came with and no others: its blob stays for as long as an image or the layer itself needs it. Whichever way
//! bytes go, they are hashed on it, and what is not the layer goes nowhere: what came, by the DiffID; what was built, by its name,
//! from which the tar follows.
//!
//! eStargz puts its table into the tar: there a blob of a layer is one of another layer, with another DiffID and the same files,
//! and the configuration of an image that goes out so names that one (`layers/rewrite.rs`).

use std::cmp::Reverse;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::content::Ingest;
use crate::fs::{self, TempFile};
use crate::images::ImageId;
use crate::layer::compress::table::{Format, Position, describe, table_annotations};
use crate::layer::compress::{Compression, CompressionChoice, Packing, compressor, decompressor};
use crate::layer::tar::{self, TarError, write_scanned, write_tar};
use crate::layer::{LayerId, LayerInfo};
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Descriptor, DiffId, Digest, Hashing, Index, Manifest, MediaType, RawManifest};
use crate::snapshot::SnapshotError;
use crate::{Store, StoreError};

pub mod pieces;
mod rewrite;
pub mod watch;

/// Bytes copied at once.
const CHUNK: usize = 256 * 1024;

/// Why a layer could not be brought into another form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// Neither a directory nor a blob of it is in the store.
    #[error("layer `{diff_id}` is not in the store: pull or build its image again")]
    Missing {
        /// Which layer.
        diff_id: DiffId,
    },
    /// No such layer.
    #[error("layer `{id}` is not in the store")]
    Unknown {
        /// Which layer.
        id: LayerId,
    },
    /// Its tar came out different from what its name says.
    #[error("layer `{source_name}` holds a tar with DiffID `{found}`, expected `{expected}`")]
    WrongDiffId {
        /// The directory or blob that was read.
        source_name: String,
        /// The DiffID asked for.
        expected: DiffId,
        /// The one that came.
        found: DiffId,
    },
    /// Its directory holds something else than what was built.
    #[error(
        "the files of layer `{id}` are not what was built: their name would be `{found}`; `longshore store check` tells more"
    )]
    Altered {
        /// The layer.
        id: LayerId,
        /// What is there now.
        found: LayerId,
    },
    /// What a zstd:chunked blob says of its pieces cannot be read.
    #[error("bad table of zstd:chunked pieces{}", .digest.map(|digest| format!(" in `{digest}`")).unwrap_or_default())]
    Table {
        /// The blob, if it is in the store.
        digest: Option<Digest>,
        /// Why.
        source: io::Error,
    },
    /// Compressed data that cannot be read, or a writer that failed.
    #[error("cannot read or write the tar of layer `{diff_id}`")]
    Stream {
        /// Which layer.
        diff_id: DiffId,
        /// Why.
        source: io::Error,
    },
    /// A directory that cannot be written as a tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A tar that cannot be unpacked.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// A layer as a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// What it decompresses to: not the layer that was asked for, but one with the same files, where the compression
    /// changes the tar ([`Compression::changes_tar`]).
    pub diff_id: DiffId,
    /// The blob.
    pub descriptor: Descriptor,
}

/// How a layer is compressed beside others.
#[derive(Clone, Copy, Debug)]
pub struct Making<'a> {
    /// Threads that compress.
    pub threads: usize,
    /// Whether it is to be given up.
    pub stop: &'a AtomicBool,
}

impl Making<'_> {
    /// With all processors, to its end.
    fn alone() -> Making<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Making {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            stop: &NEVER,
        }
    }

    /// Whether somebody wanted the end of it.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A tar, open at its start.
#[derive(Debug)]
pub struct LayerTar {
    file: File,
    size: u64,
    // Keeps a tar that was made for this call.
    _temporary: Option<TempFile>,
}

impl LayerTar {
    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Read for LayerTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Store {
    /// Publishes a layer's directory and notes it. Every `commit` and `unpack` of [`crate::snapshot`] belongs inside: only
    /// so no garbage collection can come between the two. Takes no lock, so `publish` may take its time.
    pub fn publish_layer<E: From<StoreError>>(
        &self,
        publish: impl FnOnce() -> Result<LayerInfo, E>,
    ) -> Result<LayerInfo, E> {
        // Before anything is published: what this process publishes from now on is too new for any collection.
        self.sessions.current().map_err(StoreError::from)?;
        let info = publish()?;
        self.index.put_layer(&info).map_err(StoreError::from)?;
        Ok(info)
    }

    /// The digest of a layer's tar, computed and noted where it is not known yet.
    pub fn ensure_diff_id(&self, id: &LayerId) -> Result<DiffId, StoreError> {
        if let LayerId::Unpacked(diff_id) = id {
            return Ok(*diff_id);
        }
        let info = self
            .index
            .layer(id)?
            .ok_or(LayerError::Unknown { id: *id })?;
        if let Some(diff_id) = info.diff_id {
            return Ok(diff_id);
        }
        let diff_id = tar::diff_id(&self.snapshots.layer_dir(id)).map_err(LayerError::from)?;
        self.index.set_diff_id(id, &diff_id)?;
        Ok(diff_id)
    }

    /// A directory of the layer, unpacked from its blob where there is none yet.
    pub fn ensure_unpacked(&self, diff_id: &DiffId) -> Result<LayerId, StoreError> {
        self.ensure_unpacked_telling(diff_id, &mut |_, _, _| {})
    }

    /// The same; where a blob is unpacked, `told` is called with its digest, how many of its bytes are done, and how many
    /// they are: with all of them once the directory stands, and only then.
    pub fn ensure_unpacked_telling(
        &self,
        diff_id: &DiffId,
        told: &mut dyn FnMut(&Digest, u64, u64),
    ) -> Result<LayerId, StoreError> {
        if let Some(id) = self.unpacked(diff_id)? {
            return Ok(id);
        }
        let _one_at_a_time = self.lock_key(&lock_name("unpack", diff_id))?;
        if let Some(id) = self.unpacked(diff_id)? {
            return Ok(id);
        }
        let (_, blob) = self
            .forms(diff_id)?
            .into_iter()
            .next()
            .ok_or(LayerError::Missing { diff_id: *diff_id })?;
        self.unpack_blob(diff_id, &blob.digest, told)
    }

    /// A blob of the layer as it is chosen: one that is here, or made now.
    pub fn layer_as(
        &self,
        diff_id: &DiffId,
        choice: CompressionChoice,
    ) -> Result<LayerBlob, StoreError> {
        self.make_layer(diff_id, choice, Making::alone())
    }

    /// The same, beside others.
    pub fn make_layer(
        &self,
        diff_id: &DiffId,
        choice: CompressionChoice,
        making: Making<'_>,
    ) -> Result<LayerBlob, StoreError> {
        match self.chosen_form(diff_id, choice)? {
            Some(found) => Ok(found),
            None => self.compress_layer(diff_id, choice.compression, making),
        }
    }

    /// The layers of an image that have to be compressed before it can be pushed, and can be, largest first and each once: begun
    /// in that order, side by side, they leave no large one to a single thread at the end.
    pub fn layers_to_make(
        &self,
        id: &ImageId,
        choice: CompressionChoice,
    ) -> Result<Vec<DiffId>, StoreError> {
        let known_elsewhere = |blob: &Descriptor| self.is_elsewhere(blob);
        if let Some(kept) = self.images.manifest(id)?
            && self.is_complete(&kept, choice, &known_elsewhere)?
        {
            return Ok(Vec::new());
        }
        let mut wanted = Vec::new();
        for diff_id in self.images.config(id)?.rootfs.diff_ids {
            if wanted.contains(&diff_id) || self.chosen_form(&diff_id, choice)?.is_some() {
                continue;
            }
            let is_built = matches!(self.unpacked(&diff_id)?, Some(LayerId::Built(_)));
            if is_built || !self.forms(&diff_id)?.is_empty() {
                wanted.push(diff_id);
            }
        }
        let mut sized = Vec::with_capacity(wanted.len());
        for diff_id in wanted {
            let layer = self.index.layer_by_diff_id(&diff_id)?;
            sized.push((layer.map_or(0, |layer| layer.bytes), diff_id));
        }
        sized.sort_by_key(|(bytes, _)| Reverse(*bytes));
        Ok(sized.into_iter().map(|(_, diff_id)| diff_id).collect())
    }

    /// A blob that is here and as chosen.
    fn chosen_form(
        &self,
        diff_id: &DiffId,
        choice: CompressionChoice,
    ) -> Result<Option<LayerBlob>, StoreError> {
        match self.form(diff_id, choice.compression)? {
            None if !choice.force => self.any_form(diff_id, choice),
            found => Ok(found),
        }
    }

    /// Whether a registry is known to have a blob.
    fn is_elsewhere(&self, blob: &Descriptor) -> Result<bool, StoreError> {
        Ok(!self.index.sources(&blob.digest)?.is_empty())
    }

    /// A blob of the layer in the given compression, made where there is none yet. The level only counts when it is made.
    /// A layer that eStargz cannot describe comes as gzip.
    pub fn layer_blob(
        &self,
        diff_id: &DiffId,
        compression: Compression,
    ) -> Result<LayerBlob, StoreError> {
        self.compress_layer(diff_id, compression, Making::alone())
    }

    fn compress_layer(
        &self,
        diff_id: &DiffId,
        compression: Compression,
        making: Making<'_>,
    ) -> Result<LayerBlob, StoreError> {
        if let Some(found) = self.form(diff_id, compression)? {
            return Ok(found);
        }
        let key = lock_name(&format!("compress {}", compression.name()), diff_id);
        let _one_at_a_time = self.lock_key(&key)?;
        if let Some(found) = self.form(diff_id, compression)? {
            return Ok(found);
        }
        let stream = |source| LayerError::Stream {
            diff_id: *diff_id,
            source,
        };
        let ingest = self.blobs.ingest()?;
        let packed = compressor(ingest, compression, making.threads).map_err(stream)?;
        let mut packed = self.watched(diff_id, packed, making);
        let written = self.write_layer(diff_id, &mut packed);
        // It has ended, well or not.
        let packed = packed.end();
        written?;
        let (ingest, rewritten): (Ingest, _) = packed.finish_telling().map_err(stream)?;
        let blob = ingest.commit(None)?;
        let (file, size) = self.blobs.open(&blob.digest())?;
        let (form, descriptor) =
            describe(&file, blob.digest(), size, compression, rewritten.as_ref())
                .map_err(stream)?;
        let made = rewritten.map_or(*diff_id, |rewritten| rewritten.diff_id);
        self.index.remember(&made, form.name(), &descriptor)?;
        if compression.changes_tar() {
            self.index
                .note_rewritten(diff_id, compression.name(), &made)?;
        }
        Ok(LayerBlob {
            diff_id: made,
            descriptor,
        })
    }

    /// Writes the layer's tar, uncompressed. What was written is worth nothing unless this succeeds: whether it is the layer is
    /// known only at the end.
    pub fn write_layer(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<u64, StoreError> {
        if let Some((_, blob)) = self.forms(diff_id)?.into_iter().next() {
            let mut hashed = Hashing::new(out, diff_id.0.algorithm());
            let (file, _) = self.blobs.open(&blob.digest)?;
            decompressor(file)
                .and_then(|mut tar| copy(&mut tar, &mut hashed))
                .map_err(|source| LayerError::Stream {
                    diff_id: *diff_id,
                    source,
                })?;
            let (_, digest, size) = hashed.finish();
            check(blob.digest.to_string(), diff_id, digest)?;
            return Ok(size);
        }
        let id = self
            .unpacked(diff_id)?
            .ok_or(LayerError::Missing { diff_id: *diff_id })?;
        let dir = self.snapshots.layer_dir(&id);
        let LayerId::Built(expected) = id else {
            let mut hashed = Hashing::new(out, diff_id.0.algorithm());
            write_tar(&dir, &mut hashed).map_err(LayerError::from)?;
            let (_, digest, size) = hashed.finish();
            check(id.to_string(), diff_id, digest)?;
            return Ok(size);
        };
        // Its name says what is in it as well as the DiffID, and BLAKE3 takes a fifth of SHA-256's time.
        let (summary, scan) = write_scanned(&dir, out).map_err(LayerError::from)?;
        if scan.id != expected {
            let found = LayerId::Built(scan.id);
            return Err(LayerError::Altered { id, found }.into());
        }
        Ok(summary.bytes)
    }

    /// The layer's tar, uncompressed and checked, as a file that goes when it is closed.
    pub fn layer_tar(&self, diff_id: &DiffId) -> Result<LayerTar, StoreError> {
        if let Some(blob) = self.form(diff_id, Compression::None)? {
            let (file, size) = self.blobs.open(&blob.descriptor.digest)?;
            return Ok(LayerTar {
                file,
                size,
                _temporary: None,
            });
        }
        let temporary = TempFile::create(&self.root.join("tmp"))?;
        let mut file = temporary.reopen()?;
        let size = self.write_layer(diff_id, &mut file)?;
        fs::attempt("rewind", temporary.path(), || file.rewind())?;
        Ok(LayerTar {
            file,
            size,
            _temporary: Some(temporary),
        })
    }

    /// Makes a layer of a blob that is in the store: checks that it decompresses to the tar with this DiffID, unpacks it
    /// where that layer is not there yet, and remembers it.
    pub fn add_layer_blob(&self, diff_id: &DiffId, digest: &Digest) -> Result<(), StoreError> {
        let known = self.index.diff_id_of_blob(digest)? == Some(*diff_id);
        if known && self.unpacked(diff_id)?.is_some() {
            return Ok(());
        }
        let (mut file, size) = self.blobs.open(digest)?;
        let stream = |source| LayerError::Stream {
            diff_id: *diff_id,
            source,
        };
        let packing = decompressor(&mut file).map_err(stream)?.packing();
        if self.unpacked(diff_id)?.is_none() {
            self.unpack_blob(diff_id, digest, &mut |_, _, _| {})?;
        } else if packing != Packing::Plain || diff_id.0 != *digest {
            return self.check_layer_blob(diff_id, digest);
        }
        let (name, descriptor) = form_of(packing, *digest, &file, size).map_err(stream)?;
        self.index.remember(diff_id, name, &descriptor)?;
        Ok(())
    }

    /// Checks that a blob in the store decompresses to the tar with this DiffID, and remembers that it does. Nothing is
    /// unpacked.
    pub fn check_layer_blob(&self, diff_id: &DiffId, digest: &Digest) -> Result<(), StoreError> {
        let (mut file, size) = self.blobs.open(digest)?;
        let stream = |source| LayerError::Stream {
            diff_id: *diff_id,
            source,
        };
        let packing = decompressor(&mut file).map_err(stream)?.packing();
        file.rewind().map_err(stream)?;
        let mut hashed = Hashing::new(io::sink(), diff_id.0.algorithm());
        decompressor(&file)
            .and_then(|mut tar| copy(&mut tar, &mut hashed))
            .map_err(stream)?;
        check(digest.to_string(), diff_id, hashed.finish().1)?;
        let (name, descriptor) = form_of(packing, *digest, &file, size).map_err(stream)?;
        self.index.remember(diff_id, name, &descriptor)?;
        Ok(())
    }

    /// A manifest of the image whose blobs are all in the store: the one it came with or was last given, else a new OCI one,
    /// which is kept. One that was kept counts only if all its layers are as chosen. Where a compression changes tars, it is that
    /// of another image with the same files, which has no name; its configuration is in the store, but the image is not.
    pub fn manifest_for(
        &self,
        id: &ImageId,
        choice: CompressionChoice,
    ) -> Result<RawManifest, StoreError> {
        self.manifest_where(id, choice, &|_| Ok(false))
    }

    /// The same for a push: a blob may also be one that a registry is known to have (see
    /// [`Index::note_source`](crate::index::Index::note_source)).
    pub fn manifest_to_push(
        &self,
        id: &ImageId,
        choice: CompressionChoice,
    ) -> Result<RawManifest, StoreError> {
        self.manifest_where(id, choice, &|blob| self.is_elsewhere(blob))
    }

    /// A manifest whose blobs are all here, or `elsewhere`.
    fn manifest_where(
        &self,
        id: &ImageId,
        choice: CompressionChoice,
        elsewhere: &dyn Fn(&Descriptor) -> Result<bool, StoreError>,
    ) -> Result<RawManifest, StoreError> {
        if let Some(kept) = self.images.manifest(id)?
            && self.is_complete(&kept, choice, elsewhere)?
        {
            return Ok(kept);
        }
        let parsed = self.images.config(id)?;
        let mut layers = Vec::with_capacity(parsed.rootfs.diff_ids.len());
        for diff_id in &parsed.rootfs.diff_ids {
            let here = self.layer_as(diff_id, choice);
            layers.push(match here {
                // A directory that came with a blob does not give that blob's bytes again.
                Err(StoreError::Layer(
                    error @ (LayerError::Missing { .. } | LayerError::WrongDiffId { .. }),
                )) => self.remembered(diff_id, choice, elsewhere)?.ok_or(error)?,
                here => here?,
            });
        }
        let of = |config: &[u8], layers: Vec<LayerBlob>| {
            let described = Descriptor::of(MediaType::OCI_CONFIG, config);
            let layers = layers.into_iter().map(|layer| layer.descriptor);
            RawManifest::from(Manifest::image(described, layers.collect()))
        };
        let made: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
        if made != parsed.rootfs.diff_ids {
            let config = rewrite::config(parsed, made);
            self.blobs.put(&config)?;
            return Ok(of(&config, layers));
        }
        let config = self.images.config_bytes(id)?;
        let manifest = of(&config, layers);
        self.images.put_image(&config, Some(&manifest))?;
        Ok(manifest)
    }

    /// An index of images for several platforms, in the order given. Their manifests are kept, the index is not.
    pub fn index_for(
        &self,
        ids: &[ImageId],
        choice: CompressionChoice,
    ) -> Result<RawManifest, StoreError> {
        self.index_of(ids, |id| self.manifest_for(id, choice))
    }

    /// The same of images that are pushed, as [`Store::manifest_to_push`] has them.
    pub fn index_to_push(
        &self,
        ids: &[ImageId],
        choice: CompressionChoice,
    ) -> Result<RawManifest, StoreError> {
        self.index_of(ids, |id| self.manifest_to_push(id, choice))
    }

    fn index_of(
        &self,
        ids: &[ImageId],
        manifest: impl Fn(&ImageId) -> Result<RawManifest, StoreError>,
    ) -> Result<RawManifest, StoreError> {
        let mut listed = Vec::new();
        for id in ids {
            let mut described = manifest(id)?.descriptor();
            described.platform = Some(self.images.config(id)?.platform());
            listed.push(described);
        }
        Ok(RawManifest::from(Index::new(listed)))
    }

    /// A blob of a layer that is not here.
    fn remembered(
        &self,
        diff_id: &DiffId,
        choice: CompressionChoice,
        elsewhere: &dyn Fn(&Descriptor) -> Result<bool, StoreError>,
    ) -> Result<Option<LayerBlob>, StoreError> {
        let wanted = choice.compression;
        let made = self.index.rewritten(diff_id, wanted.name())?;
        for of in made.iter().chain([diff_id]) {
            for (name, blob) in self.index.compressed(of)? {
                let Ok(form) = name.parse::<Compression>() else {
                    continue;
                };
                let fits = !choice.force || form.is_also(wanted);
                if fits && elsewhere(&blob)? {
                    return Ok(Some(LayerBlob {
                        diff_id: *of,
                        descriptor: ours(form, blob),
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Whether a layer is here, unpacked or as a blob.
    pub fn has_layer_bytes(&self, diff_id: &DiffId) -> Result<bool, StoreError> {
        Ok(self.unpacked(diff_id)?.is_some() || !self.forms(diff_id)?.is_empty())
    }

    fn is_complete(
        &self,
        manifest: &RawManifest,
        choice: CompressionChoice,
        elsewhere: &dyn Fn(&Descriptor) -> Result<bool, StoreError>,
    ) -> Result<bool, StoreError> {
        let ParsedManifest::Image(parsed) = manifest.parsed() else {
            return Ok(false);
        };
        for layer in &parsed.layers {
            let is_known = layer.media_type.as_str().ends_with(".tar");
            let form = Compression::of(layer);
            let fits = !choice.force
                || form.is_also(choice.compression) && (form != Compression::None || is_known);
            let here = self.blobs.has(&layer.digest)? == Some(layer.size);
            if !fits || !here && !elsewhere(layer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn unpack_blob(
        &self,
        diff_id: &DiffId,
        digest: &Digest,
        told: &mut dyn FnMut(&Digest, u64, u64),
    ) -> Result<LayerId, StoreError> {
        let (file, size) = self.blobs.open(digest)?;
        let mut counted = Counted {
            inner: file,
            done: 0,
            told: &mut |done| told(digest, done.min(size.saturating_sub(1)), size),
        };
        let info = self.publish_layer(|| {
            self.snapshots
                .unpack(*diff_id, &mut counted)
                .map_err(|error| StoreError::from(LayerError::from(error)))
        })?;
        told(digest, size, size);
        Ok(info.id)
    }

    /// A directory of the layer that stands.
    fn unpacked(&self, diff_id: &DiffId) -> Result<Option<LayerId>, StoreError> {
        let found = self.index.layer_by_diff_id(diff_id)?;
        Ok(found
            .map(|info| info.id)
            .filter(|id| self.snapshots.has(id)))
    }

    /// The blobs of a layer that are in the store, the cheapest to read first.
    fn forms(&self, diff_id: &DiffId) -> Result<Vec<(String, Descriptor)>, StoreError> {
        let mut found = Vec::new();
        for (name, blob) in self.index.compressed(diff_id)? {
            if self.blobs.has(&blob.digest)? == Some(blob.size) {
                found.push((name, blob));
            }
        }
        found.sort_by_key(|(name, _)| match name.as_str() {
            "none" => 0,
            "zstd" | "zstd:chunked" => 1,
            _ => 2,
        });
        Ok(found)
    }

    /// A blob of the layer in a compression, or of what that makes of the layer.
    fn form(
        &self,
        diff_id: &DiffId,
        compression: Compression,
    ) -> Result<Option<LayerBlob>, StoreError> {
        let find = |of: DiffId, wanted: Compression| {
            let found = self.forms(&of)?.into_iter().find(|(name, _)| {
                let form = name.parse::<Compression>();
                form.is_ok_and(|form| form.is_also(wanted))
            });
            Ok::<_, StoreError>(found.map(|(_, blob)| LayerBlob {
                diff_id: of,
                descriptor: ours(compression, blob),
            }))
        };
        if let Some(found) = find(*diff_id, compression)? {
            return Ok(Some(found));
        }
        match self.index.rewritten(diff_id, compression.name())? {
            // What it cannot describe is gzip.
            Some(made) => find(made, Compression::GZIP),
            None => Ok(None),
        }
    }

    /// A blob of the layer in whatever compression.
    fn any_form(
        &self,
        diff_id: &DiffId,
        choice: CompressionChoice,
    ) -> Result<Option<LayerBlob>, StoreError> {
        for (name, blob) in self.forms(diff_id)? {
            if let Ok(form) = name.parse::<Compression>()
                && choice.is_met_by(form)
            {
                return Ok(Some(LayerBlob {
                    diff_id: *diff_id,
                    descriptor: ours(form, blob),
                }));
            }
        }
        Ok(None)
    }
}

/// How a blob is described in a manifest of ours: by our media type, whatever it was called where it came from.
fn ours(compression: Compression, blob: Descriptor) -> Descriptor {
    let mut ours = Descriptor::new(compression.media_type(), blob.digest, blob.size);
    let told = blob.annotations.map(|told| table_annotations(&told));
    ours.annotations = told.filter(|told| !told.is_empty());
    ours
}

/// What a blob's form is called in the index, and its descriptor.
fn form_of(
    packing: Packing,
    digest: Digest,
    blob: &File,
    size: u64,
) -> io::Result<(&'static str, Descriptor)> {
    let mut annotations = None;
    let compression = match packing {
        Packing::Plain => Compression::None,
        Packing::Gzip | Packing::Zstd => {
            let position = Position::from_footer(blob, size)?;
            let is_own =
                |found: &Position| (found.format == Format::Estargz) == (packing == Packing::Gzip);
            // A footer may be there by chance, or lead to nothing.
            let table = position
                .filter(is_own)
                .and_then(|found| Some((found, found.annotations(blob).ok()?)));
            match table {
                Some((position, told)) => {
                    annotations = Some(told);
                    position.format.compression()
                }
                None if packing == Packing::Gzip => Compression::GZIP,
                None => Compression::ZSTD,
            }
        }
        // No media type says what it is, so it is never offered to others; the tar in it is good all the same.
        _ => {
            let descriptor = Descriptor::new(MediaType::OCI_LAYER, digest, size);
            return Ok(("other", descriptor));
        }
    };
    let mut descriptor = Descriptor::new(compression.media_type(), digest, size);
    descriptor.annotations = annotations;
    Ok((compression.name(), descriptor))
}

fn check(source_name: String, expected: &DiffId, found: Digest) -> Result<(), LayerError> {
    if expected.0 == found {
        return Ok(());
    }
    Err(LayerError::WrongDiffId {
        source_name,
        expected: *expected,
        found: DiffId(found),
    })
}

fn lock_name(purpose: &str, diff_id: &DiffId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose.as_bytes());
    hasher.update(b"\0");
    hasher.update(diff_id.to_string().as_bytes());
    *hasher.finalize().as_bytes()
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A reader that tells how much was read.
struct Counted<'a, R> {
    inner: R,
    done: u64,
    told: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        (self.told)(self.done);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;
    use crate::layer::tar::header;

    /// Commits a layer with one file.
    fn built(store: &Store, content: &[u8]) -> LayerInfo {
        store
            .publish_layer(|| {
                let active = store.snapshots().prepare(&[])?;
                std::fs::write(active.upper().join("file"), content).unwrap();
                active.commit().map_err(StoreError::from)
            })
            .unwrap()
    }

    /// A tar of one empty file that no canonical writer makes: the owner has a name.
    fn foreign_tar() -> Vec<u8> {
        let mut block = [0; header::BLOCK];
        block[..4].copy_from_slice(b"file");
        for (field, value) in [
            (header::MODE, 0o644),
            (header::UID, 0),
            (header::GID, 0),
            (header::SIZE, 0),
            (header::MTIME, 1),
        ] {
            header::put_octal(&mut block, field, value);
        }
        block[header::TYPE] = b'0';
        block[header::MAGIC].copy_from_slice(header::USTAR);
        block[265..269].copy_from_slice(b"root");
        header::seal(&mut block);
        [&block[..], &[0; 1024]].concat()
    }

    fn read_all(mut tar: LayerTar) -> Vec<u8> {
        let mut bytes = Vec::new();
        tar.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, tar.size());
        bytes
    }

    #[test]
    fn a_built_layer_takes_every_form() {
        let (_dir, store) = crate::tests::store();
        let info = built(&store, b"content");
        let diff_id = store.ensure_diff_id(&info.id).unwrap();
        assert_eq!(store.ensure_diff_id(&info.id).unwrap(), diff_id);
        assert_eq!(store.ensure_unpacked(&diff_id).unwrap(), info.id);
        let tar = read_all(store.layer_tar(&diff_id).unwrap());
        assert_eq!(Digest::of(&tar), diff_id.0);
        let forms = [Compression::GZIP, Compression::ZSTD, Compression::None].map(|compression| {
            let made = store.layer_blob(&diff_id, compression).unwrap();
            assert_eq!(store.layer_blob(&diff_id, compression).unwrap(), made);
            assert_eq!(made.diff_id, diff_id);
            let blob = made.descriptor;
            let (file, size) = store.blobs().open(&blob.digest).unwrap();
            assert_eq!(size, blob.size);
            let mut unpacked = Vec::new();
            decompressor(file)
                .unwrap()
                .read_to_end(&mut unpacked)
                .unwrap();
            assert_eq!(unpacked, tar);
            blob
        });
        assert!(forms[0].media_type.as_str().ends_with("+gzip"));
        assert_eq!(forms[2].digest, diff_id.0);
        assert_eq!(read_all(store.layer_tar(&diff_id).unwrap()), tar);
        assert!(store.check().unwrap().is_empty());
        assert!(fs::list(&store.root().join("locks")).unwrap().is_empty());
    }

    #[test]
    fn a_built_layer_that_was_altered_goes_nowhere() {
        let check = |alter: &dyn Fn(&Path)| {
            let (_dir, store) = crate::tests::store();
            let info = built(&store, b"content");
            let diff_id = store.ensure_diff_id(&info.id).unwrap();
            alter(&store.snapshots().layer_dir(&info.id).join("file"));
            let error = store.layer_blob(&diff_id, Compression::GZIP).unwrap_err();
            let expect = format!("the files of layer `{}` are not what was built", info.id);
            assert!(error.to_string().starts_with(&expect), "{error}");
            assert!(store.layer_tar(&diff_id).is_err());
            assert!(store.index().compressed(&diff_id).unwrap().is_empty());
            assert!(store.blobs().list().unwrap().is_empty());
        };
        check(&|file| std::fs::write(file, b"Content").unwrap());
        check(&|file| std::fs::write(file, b"content, and more").unwrap());
        check(&|file| std::fs::remove_file(file).unwrap());
        check(&|file| {
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o4711)).unwrap();
        });
        check(&|file| std::fs::write(file.with_file_name("another"), b"").unwrap());
    }

    #[test]
    fn estargz_makes_another_layer_of_the_same_files() {
        let (_dir, store) = crate::tests::store();
        let info = built(&store, b"content");
        let diff_id = store.ensure_diff_id(&info.id).unwrap();
        let id = crate::tests::image_of(&store, &[diff_id]);
        let gzip = store
            .manifest_for(&id, CompressionChoice::AS_THEY_ARE)
            .unwrap();
        let made = store.layer_blob(&diff_id, Compression::ESTARGZ).unwrap();
        assert_ne!(made.diff_id, diff_id);
        assert_eq!(
            store.layer_blob(&diff_id, Compression::ESTARGZ).unwrap(),
            made
        );
        assert_eq!(Compression::of(&made.descriptor), Compression::ESTARGZ);
        let tar = read_all(store.layer_tar(&made.diff_id).unwrap());
        assert_eq!(Digest::of(&tar), made.diff_id.0);
        let told = made.descriptor.annotations.as_ref().unwrap();
        let bytes = &told["io.containers.estargz.uncompressed-size"];
        assert_eq!(*bytes, tar.len().to_string());

        // The image that goes out is another one, and the one that is here stays what it is.
        let choice = CompressionChoice::all(Compression::ESTARGZ);
        let out = store.manifest_for(&id, choice).unwrap();
        let ParsedManifest::Image(image) = out.parsed() else {
            panic!("{out:?}");
        };
        assert_eq!(image.layers, std::slice::from_ref(&made.descriptor));
        let config = store.blobs().read(&image.config.digest, 1 << 20).unwrap();
        let config: crate::oci::ImageConfig = serde_json::from_slice(&config).unwrap();
        assert_eq!(config.rootfs.diff_ids, [made.diff_id]);
        assert_eq!(store.images().images().unwrap().len(), 1);
        let kept = store
            .manifest_for(&id, CompressionChoice::AS_THEY_ARE)
            .unwrap();
        assert_eq!(kept.bytes(), gzip.bytes());

        // It unpacks to the files that were packed.
        let (_there, other) = crate::tests::store();
        let (mut file, _) = store.blobs().open(&made.descriptor.digest).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let blob = other.blobs().put(&bytes).unwrap();
        other.add_layer_blob(&made.diff_id, &blob.digest()).unwrap();
        let unpacked = other.ensure_unpacked(&made.diff_id).unwrap();
        let scanned =
            |store: &Store, id| crate::layer::scan::scan(&store.snapshots().layer_dir(id)).unwrap();
        assert_eq!(scanned(&other, &unpacked), scanned(&store, &info.id));
        assert!(other.check().unwrap().is_empty());
        let (name, found) = other.index().compressed(&made.diff_id).unwrap().remove(0);
        assert_eq!((&name[..], found.digest), ("estargz", blob.digest()));
    }

    #[test]
    fn a_foreign_layer_keeps_its_bytes() {
        let (_dir, store) = crate::tests::store();
        let tar = foreign_tar();
        let diff_id = DiffId(Digest::of(&tar));
        let mut gzip = compressor(Vec::new(), Compression::GZIP, 1).unwrap();
        gzip.write_all(&tar).unwrap();
        let blob = store.blobs().put(&gzip.finish().unwrap()).unwrap();
        let error = store.ensure_unpacked(&diff_id).unwrap_err();
        assert!(matches!(
            error,
            StoreError::Layer(LayerError::Missing { .. })
        ));
        store.add_layer_blob(&diff_id, &blob.digest()).unwrap();
        let id = store.ensure_unpacked(&diff_id).unwrap();
        assert_eq!(id, LayerId::Unpacked(diff_id));
        assert_eq!(
            store
                .layer_blob(&diff_id, Compression::GZIP)
                .unwrap()
                .descriptor
                .digest,
            blob.digest()
        );
        let zstd = store.layer_blob(&diff_id, Compression::ZSTD).unwrap();
        let zstd = zstd.descriptor;
        assert_eq!(read_all(store.layer_tar(&diff_id).unwrap()), tar);
        // Without any blob the directory alone does not give these bytes, and nothing pretends that it does.
        store.blobs().remove(&blob.digest()).unwrap();
        store.blobs().remove(&zstd.digest).unwrap();
        let error = store.layer_blob(&diff_id, Compression::GZIP).unwrap_err();
        assert!(
            matches!(error, StoreError::Layer(LayerError::WrongDiffId { .. })),
            "{error}"
        );
    }

    #[test]
    fn a_blob_of_another_layer_is_refused() {
        let (_dir, store) = crate::tests::store();
        let blob = store.blobs().put(&foreign_tar()).unwrap();
        let wanted = DiffId(Digest::of(b"another"));
        let error = store.add_layer_blob(&wanted, &blob.digest());
        assert!(matches!(error, Err(StoreError::Layer(_))), "{error:?}");
        assert!(store.index().layers().unwrap().is_empty());
        // Also where the wanted layer is there already, and nothing would have to be unpacked.
        let info = built(&store, b"x");
        let there = store.ensure_diff_id(&info.id).unwrap();
        let error = store.add_layer_blob(&there, &blob.digest());
        assert!(
            matches!(
                error,
                Err(StoreError::Layer(LayerError::WrongDiffId { .. }))
            ),
            "{error:?}"
        );
        assert!(store.index().compressed(&there).unwrap().is_empty());
        assert!(store.check_layer_blob(&there, &blob.digest()).is_err());
        assert!(store.index().compressed(&there).unwrap().is_empty());
    }

    #[test]
    fn a_blob_is_known_without_being_unpacked() {
        let (_dir, store) = crate::tests::store();
        let tar = foreign_tar();
        let diff_id = DiffId(Digest::of(&tar));
        let mut packed = compressor(Vec::new(), Compression::ZSTD, 1).unwrap();
        packed.write_all(&tar).unwrap();
        let blob = store.blobs().put(&packed.finish().unwrap()).unwrap();
        assert!(!store.has_layer_bytes(&diff_id).unwrap());
        store.check_layer_blob(&diff_id, &blob.digest()).unwrap();
        assert!(store.has_layer_bytes(&diff_id).unwrap());
        assert!(store.index().layers().unwrap().is_empty());
        assert_eq!(read_all(store.layer_tar(&diff_id).unwrap()), tar);
    }

    #[test]
    fn manifests_are_made_once() {
        let (_dir, store) = crate::tests::store();
        let info = built(&store, b"x");
        let diff_id = store.ensure_diff_id(&info.id).unwrap();
        let id = crate::tests::image_of(&store, &[diff_id]);
        let as_it_is = CompressionChoice::AS_THEY_ARE;
        let all = CompressionChoice::all;
        let first = store.manifest_for(&id, as_it_is).unwrap();
        let kept = store.images().manifest(&id).unwrap().unwrap();
        assert_eq!(kept.bytes(), first.bytes());
        let again = store.manifest_for(&id, all(Compression::GZIP)).unwrap();
        assert_eq!(again.bytes(), first.bytes());
        // What is compressed somehow stays so, unless it must not.
        let new = CompressionChoice {
            compression: Compression::ZSTD,
            force: false,
        };
        let unforced = store.manifest_for(&id, new).unwrap();
        assert_eq!(unforced.bytes(), first.bytes());
        let zstd = store.manifest_for(&id, all(Compression::ZSTD)).unwrap();
        assert_ne!(zstd.digest(), first.digest());
        assert_eq!(
            store.manifest_for(&id, as_it_is).unwrap().digest(),
            zstd.digest()
        );
    }
}
