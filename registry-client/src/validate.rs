//! Whether an image is what it says: every digest and size, and what its parts say of each other.
//!
//! ```text
//! Source ─ manifests, one after the other ─► images ─► each layer, read once: bytes ─ hash ─ unpack ─ hash ─ tar
//! ```
//!
//! What is wrong with the image is a [`Finding`], and all of them are told. What keeps one from looking (no network, no right) is
//! an error.

mod layer;

use std::collections::{BTreeSet, VecDeque};

use futures_util::{StreamExt as _, TryStreamExt as _};
use store::layer::compress::Packing;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, DiffId, Digest, ImageConfig, Manifest, Platform, RawManifest};

use crate::copy::tree::{children, is_foreign, leaves};
use crate::copy::{CopyError, Source};
use crate::edit::{CONFIG_BYTES_MAX, is_image_config};
use crate::error::{ClientError, ErrorKind};

/// Most manifests of one image.
const MANIFESTS_MAX: usize = 10_000;

/// Blobs that are read at once.
const READ_AT_ONCE: usize = 4;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// These platforms only; all of them where it is empty.
    pub platforms: Vec<Platform>,
    /// Whether blobs are only looked for, and not read.
    pub fast: bool,
}

/// What was looked at, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validation {
    /// The digest of what was meant.
    pub digest: Digest,
    /// Manifests and indexes.
    pub manifests: u64,
    /// Configurations and layers.
    pub blobs: u64,
    /// Bytes of those, as their descriptors have them.
    pub bytes: u64,
    /// Layers that registries do not hold, which were not looked at.
    pub foreign: u64,
    /// What is wrong, in the order in which the image names it.
    pub findings: Vec<Finding>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{digest}: {problem}")]
pub struct Finding {
    /// With what.
    pub digest: Digest,
    /// What.
    pub problem: Problem,
}

/// What can be wrong with a part of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is not there.
    #[error("it is missing")]
    Missing,
    /// It has other bytes.
    #[error("its content has another digest")]
    Digest,
    /// It has another length.
    #[error("it has {actual} bytes, its descriptor says {expected}")]
    Size {
        /// As its descriptor has it.
        expected: u64,
        /// As it is.
        actual: u64,
    },
    /// It ends before its descriptor says.
    #[error("it has less than the {expected} bytes that its descriptor says")]
    Short {
        /// As its descriptor has it.
        expected: u64,
    },
    /// Nothing can be made of it.
    #[error("{reason}")]
    Unreadable {
        /// Why not.
        reason: String,
    },
    /// It is of another type.
    #[error("it says that it is `{actual}`, its descriptor `{expected}`")]
    MediaType {
        /// As its descriptor has it.
        expected: String,
        /// As it says itself.
        actual: String,
    },
    /// It is for another platform.
    #[error("it is for {actual}, its descriptor says {expected}")]
    Platform {
        /// As its descriptor has it.
        expected: Platform,
        /// As its configuration has it.
        actual: Platform,
    },
    /// Its configuration is about other layers.
    #[error("it has {layers} layers, its configuration {diff_ids} DiffIDs")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// Its history is about other layers.
    #[error("it has {layers} layers, its history {steps} steps that made one")]
    History {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        steps: usize,
    },
    /// It is packed in another way.
    #[error("its type is `{media_type}`, but it is {}", packed(*.actual))]
    Packing {
        /// As its descriptor has it.
        media_type: String,
        /// What its first bytes are of.
        actual: Packing,
    },
    /// Unpacked it is something else.
    #[error("its DiffID is {actual}, the configuration says {expected}")]
    DiffId {
        /// As the configuration has it.
        expected: DiffId,
        /// As it is.
        actual: DiffId,
    },
}

fn packed(packing: Packing) -> &'static str {
    match packing {
        Packing::Plain => "not compressed",
        Packing::Gzip => "gzip",
        Packing::Zstd => "zstd",
        Packing::Bzip2 => "bzip2",
        Packing::Xz => "xz",
    }
}

/// Looks at what a source names.
///
/// # Errors
/// What keeps one from looking: the registry cannot be reached or refuses, the image itself is not there, files cannot be read.
pub async fn validate(source: &Source, checks: &Checks) -> Result<Validation, CopyError> {
    let (digest, root) = source.root().await?;
    let mut roots = Vec::new();
    for platform in &checks.platforms {
        roots.push(source.image(platform).await?);
    }
    if roots.is_empty() {
        roots.push((digest, root));
    }
    let mut walk = Walk {
        source,
        fast: checks.fast,
        seen: BTreeSet::new(),
        blobs: Vec::new(),
        result: Validation {
            digest,
            manifests: 0,
            blobs: 0,
            bytes: 0,
            foreign: 0,
            findings: Vec::new(),
        },
    };
    walk.manifests(roots).await?;
    walk.read_blobs().await
}

/// A blob that is to be looked at, by whatever names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Manifest(Digest),
    /// With its DiffID, where a configuration says one.
    Blob(Digest, Option<Digest>),
}

/// An image that is being looked at.
struct Walk<'a> {
    source: &'a Source,
    fast: bool,
    seen: BTreeSet<Part>,
    blobs: Vec<(Descriptor, Option<DiffId>)>,
    result: Validation,
}

impl Walk<'_> {
    fn found(&mut self, digest: Digest, problem: Problem) {
        self.result.findings.push(Finding { digest, problem });
    }

    async fn manifests(&mut self, roots: Vec<(Digest, RawManifest)>) -> Result<(), CopyError> {
        let roots = roots.into_iter().map(|(digest, raw)| (digest, raw, None));
        let mut queue: VecDeque<(Digest, RawManifest, Option<Descriptor>)> = roots.collect();
        while let Some((digest, raw, named)) = queue.pop_front() {
            if named.is_none() && !self.seen.insert(Part::Manifest(digest)) {
                continue;
            }
            self.result.manifests += 1;
            if self.result.manifests > MANIFESTS_MAX as u64 {
                return Err(CopyError::TooMuch {
                    place: self.source.name(),
                    what: "manifests",
                    max: MANIFESTS_MAX as u64,
                });
            }
            if let Some(named) = &named {
                self.against(digest, &raw, named);
            }
            for child in children(&raw) {
                if !self.seen.insert(Part::Manifest(child.digest)) {
                    continue;
                }
                match self.source.manifest(child).await {
                    Ok(raw) => queue.push_back((child.digest, raw, Some(child.clone()))),
                    Err(error) => self.found(child.digest, judge(error)?),
                }
            }
            match raw.parsed() {
                ParsedManifest::Image(image) => {
                    let platform = named.and_then(|named| named.platform);
                    self.image(digest, image, platform.as_ref()).await?;
                }
                ParsedManifest::Index(_) => {
                    for leaf in leaves(&raw, true) {
                        self.blob(leaf, None);
                    }
                }
            }
        }
        Ok(())
    }

    /// A manifest beside the descriptor that names it.
    fn against(&mut self, digest: Digest, raw: &RawManifest, named: &Descriptor) {
        let actual = raw.bytes().len() as u64;
        if actual != named.size {
            let expected = named.size;
            self.found(digest, Problem::Size { expected, actual });
        }
        let own = match raw.parsed() {
            ParsedManifest::Image(image) => &image.media_type,
            ParsedManifest::Index(index) => &index.media_type,
        };
        if let Some(own) = own
            && *own != named.media_type
        {
            let problem = Problem::MediaType {
                expected: named.media_type.as_str().to_owned(),
                actual: own.as_str().to_owned(),
            };
            self.found(digest, problem);
        }
    }

    async fn image(
        &mut self,
        digest: Digest,
        image: &Manifest,
        platform: Option<&Platform>,
    ) -> Result<(), CopyError> {
        let mut diff_ids = Vec::new();
        if !is_image_config(image.config.media_type.as_str()) {
            // Of other types nothing is known but that it is a blob.
            self.blob(&image.config, None);
        } else if let Some(config) = self.config(&image.config).await? {
            let layers = image.layers.len();
            let ids = config.rootfs.diff_ids.len();
            if layers == ids {
                diff_ids = config.rootfs.diff_ids.clone();
            } else {
                let problem = Problem::Layers {
                    layers,
                    diff_ids: ids,
                };
                self.found(digest, problem);
            }
            let made = config.history.iter().filter(|step| !step.empty_layer);
            let steps = made.count();
            if !config.history.is_empty() && steps != layers {
                self.found(digest, Problem::History { layers, steps });
            }
            let actual = config.platform();
            if let Some(expected) = platform
                && (&expected.os, &expected.architecture) != (&actual.os, &actual.architecture)
            {
                let expected = expected.clone();
                self.found(digest, Problem::Platform { expected, actual });
            }
        }
        for (at, layer) in image.layers.iter().enumerate() {
            match is_foreign(layer) {
                true => self.result.foreign += 1,
                false => self.blob(layer, diff_ids.get(at).copied()),
            }
        }
        Ok(())
    }

    /// An image's configuration; `None` if there is something wrong with it.
    async fn config(&mut self, config: &Descriptor) -> Result<Option<ImageConfig>, CopyError> {
        if self.seen.insert(Part::Blob(config.digest, None)) {
            self.result.blobs += 1;
            self.result.bytes += config.size;
        }
        let bytes = match self.source.read_small(config, CONFIG_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(error) => {
                self.found(config.digest, judge(error)?);
                return Ok(None);
            }
        };
        let actual = bytes.len() as u64;
        if actual != config.size {
            let expected = config.size;
            self.found(config.digest, Problem::Size { expected, actual });
        }
        match serde_json::from_slice(&bytes) {
            Ok(config) => Ok(Some(config)),
            Err(error) => {
                let reason = format!("it is no configuration: {error}");
                self.found(config.digest, Problem::Unreadable { reason });
                Ok(None)
            }
        }
    }

    fn blob(&mut self, blob: &Descriptor, diff_id: Option<DiffId>) {
        let part = Part::Blob(blob.digest, diff_id.map(|id| id.0));
        if self.seen.insert(part) {
            self.result.blobs += 1;
            self.result.bytes += blob.size;
            self.blobs.push((blob.clone(), diff_id));
        }
    }

    async fn read_blobs(mut self) -> Result<Validation, CopyError> {
        let (source, fast) = (self.source, self.fast);
        let works = self.blobs.into_iter().map(|(blob, diff_id)| async move {
            let problems = match fast {
                true => present(source, &blob).await,
                false => layer::read(source, &blob, diff_id).await,
            };
            let problems = problems.or_else(|error| judge(error).map(|problem| vec![problem]))?;
            let digest = blob.digest;
            let found = problems.into_iter();
            Ok(found.map(move |problem| Finding { digest, problem }))
        });
        // In their order, whichever ends first.
        let found: Vec<_> = futures_util::stream::iter(works)
            .buffered(READ_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error: CopyError| error)?;
        self.result.findings.extend(found.into_iter().flatten());
        Ok(self.result)
    }
}

/// Whether a blob is there, with its size.
async fn present(source: &Source, blob: &Descriptor) -> Result<Vec<Problem>, CopyError> {
    let expected = blob.size;
    let actual = match source {
        Source::Registry { client, reference } => {
            client.blob_exists(reference, &blob.digest).await?
        }
        Source::Local { local, .. } => local.blob(&blob.digest)?.map(|(_, size)| size),
    };
    Ok(match actual {
        None => vec![Problem::Missing],
        Some(actual) if actual != expected => vec![Problem::Size { expected, actual }],
        Some(_) => Vec::new(),
    })
}

/// What an error says of the image, or the error where it says something of the way there.
fn judge(error: CopyError) -> Result<Problem, CopyError> {
    let reason = |error: &dyn std::error::Error| {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            reason.push_str(&format!(": {error}"));
            source = error.source();
        }
        Problem::Unreadable { reason }
    };
    match &error {
        CopyError::Missing { .. } => Ok(Problem::Missing),
        CopyError::Corrupt { .. } => Ok(Problem::Digest),
        CopyError::BadLayout { .. }
        | CopyError::Manifest { .. }
        | CopyError::TooMuch { .. }
        | CopyError::Unfit { .. } => Ok(reason(&error)),
        CopyError::Client(client) => match (client, client.kind()) {
            (
                ClientError::SizeMismatch {
                    expected, actual, ..
                },
                _,
            ) => Ok(Problem::Size {
                expected: *expected,
                actual: *actual,
            }),
            (_, ErrorKind::NotFound) => Ok(Problem::Missing),
            (_, ErrorKind::Corrupt) => Ok(Problem::Digest),
            (_, ErrorKind::TooLarge | ErrorKind::Protocol) => Ok(reason(client)),
            _ => Err(error),
        },
        _ => Err(error),
    }
}
