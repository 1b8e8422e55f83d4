//! Changing images without moving their layers: each operation makes a [`Tree`] of another one, which is then written like
//! any other. What was not touched keeps its bytes, and with them its digest.
//!
//! | module | operation |
//! |---|---|
//! | [`mutate`](mod@mutate) | the configuration and annotations |
//! | [`layers`] | append, rebase, flatten |
//! | [`recompress`](mod@recompress) | layers in another compression |
//! | [`index`] | several images as one, and the entries of an index |
//! | [`artifact`](mod@artifact) | files as an artifact |

mod artifact;
pub mod index;
pub mod layers;
mod mutate;
pub mod recompress;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, ImageConfig, Index, Manifest, MediaType, RawManifest};

use crate::BlobSource;
use crate::copy::local::read_source;
use crate::copy::tree::Blob;
use crate::copy::{CopyError, Source, Tree};

pub use artifact::{Attachment, artifact, file_blob};
pub use mutate::{Mutation, mutate};
pub use recompress::{Recompress, Recompressed, Sent, recompress};

/// Largest image configuration that is read, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Annotation by which BuildKit's attestations name what they are about.
const ATTESTATION_OF: &str = "vnd.docker.reference.digest";

/// Whether a media type is that of an image's configuration.
pub fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, MediaType::OCI_CONFIG | MediaType::DOCKER_CONFIG)
}

/// Reads an image's configuration.
pub async fn read_config(
    source: &Source,
    descriptor: &Descriptor,
) -> Result<ImageConfig, CopyError> {
    let bytes = source.read_small(descriptor, CONFIG_BYTES_MAX).await?;
    parse_config(&bytes, &source.name())
}

fn parse_config(bytes: &[u8], place: &str) -> Result<ImageConfig, CopyError> {
    serde_json::from_slice(bytes).map_err(|error| CopyError::Unfit {
        place: place.to_owned(),
        reason: format!("its configuration is not valid: {error}"),
    })
}

impl Tree {
    /// A small blob of the tree, verified.
    pub async fn read_small(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, CopyError> {
        let missing = || CopyError::Missing {
            digest: Box::new(descriptor.digest),
            place: self.name.clone(),
        };
        let blob = self.blobs.get(&descriptor.digest).ok_or_else(missing)?;
        if blob.descriptor.size > limit {
            return Err(CopyError::TooMuch {
                place: self.name.clone(),
                what: "bytes in a configuration",
                max: limit,
            });
        }
        if let BlobSource::Remote(remote) = &blob.source {
            let (client, reference) = (&remote.client, &remote.reference);
            return Ok(client.read_small(reference, descriptor, limit).await?);
        }
        let bytes = read_source(&blob.source, blob.descriptor.size)?;
        let mut hasher = store::oci::Hasher::new(descriptor.digest.algorithm());
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual == descriptor.digest {
            return Ok(bytes);
        }
        Err(CopyError::Corrupt {
            expected: Box::new(descriptor.digest),
            actual: Box::new(actual),
            place: self.name.clone(),
        })
    }

    /// The configuration of one of the tree's images.
    pub async fn config(&self, image: &Manifest) -> Result<ImageConfig, CopyError> {
        let kind = image.config.media_type.as_str();
        if !is_image_config(kind) {
            return Err(self.unfit(format!(
                "it is no image: its configuration is of type `{kind}`"
            )));
        }
        let bytes = self.read_small(&image.config, CONFIG_BYTES_MAX).await?;
        let config = parse_config(&bytes, &self.name)?;
        let (layers, ids) = (image.layers.len(), config.rootfs.diff_ids.len());
        if layers != ids {
            return Err(self.unfit(format!("it has {layers} layers but {ids} DiffIDs")));
        }
        Ok(config)
    }

    pub(crate) fn unfit(&self, reason: impl Into<String>) -> CopyError {
        CopyError::Unfit {
            place: self.name.clone(),
            reason: reason.into(),
        }
    }

    /// The images that are images: no attestations, no artifacts.
    pub(crate) fn real_images(&self) -> Vec<(Digest, Manifest)> {
        let about: BTreeSet<Digest> = self.attestations();
        let images = self.manifests.iter().filter_map(|(digest, raw)| {
            let ParsedManifest::Image(image) = raw.parsed() else {
                return None;
            };
            let real = is_image_config(image.config.media_type.as_str()) && !about.contains(digest);
            real.then(|| (*digest, (**image).clone()))
        });
        images.collect()
    }

    /// What indexes list as being about another one of their entries.
    fn attestations(&self) -> BTreeSet<Digest> {
        let indexes = self
            .manifests
            .iter()
            .filter_map(|(_, raw)| match raw.parsed() {
                ParsedManifest::Index(index) => Some(index),
                ParsedManifest::Image(_) => None,
            });
        let entries = indexes.flat_map(|index| &index.manifests);
        entries
            .filter(|entry| {
                let annotations = entry.annotations.as_ref();
                annotations.is_some_and(|all| all.contains_key(ATTESTATION_OF))
            })
            .map(|entry| entry.digest)
            .collect()
    }
}

/// One image while it is changed.
#[derive(Debug)]
pub(crate) struct Edited {
    pub(crate) manifest: Manifest,
    pub(crate) config: ImageConfig,
    /// Whether the configuration is the one that it was, byte by byte.
    pub(crate) keeps_config: bool,
    /// Blobs that the tree did not have.
    pub(crate) blobs: Vec<Blob>,
}

/// A tree with changed images in the place of others: indexes follow. What was about the changed ones (attestations,
/// referrers) is left out, as it is not about what they are now.
pub(crate) fn replace(
    tree: &Tree,
    edited: &BTreeMap<Digest, Edited>,
    annotate_index: impl Fn(&mut Index),
) -> Result<Tree, CopyError> {
    let mut blobs = tree.blobs.clone();
    let mut manifests: Vec<(Digest, RawManifest)> = Vec::new();
    // What each manifest became; what is not there is as it was.
    let mut became: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    for (digest, raw) in &tree.manifests {
        let new = match raw.parsed() {
            ParsedManifest::Image(_) => match edited.get(digest) {
                None => raw.clone(),
                Some(edited) => rewrite(edited, &mut blobs),
            },
            ParsedManifest::Index(index) => {
                let mut new = (**index).clone();
                follow(&mut new, &became);
                annotate_index(&mut new);
                match new == **index {
                    true => raw.clone(),
                    false => RawManifest::from(new),
                }
            }
        };
        let same = new.bytes() == raw.bytes();
        let id = if same { *digest } else { new.digest() };
        if !same {
            became.insert(*digest, new.descriptor());
        }
        if !manifests.iter().any(|(known, _)| *known == id) {
            manifests.push((id, new));
        }
    }
    let root = became.get(&tree.root).map_or(tree.root, |new| new.digest);
    let mut tree = Tree {
        name: tree.name.clone(),
        root,
        manifests,
        blobs,
        referrers: Vec::new(),
    };
    tree.prune();
    Ok(tree)
}

fn rewrite(edited: &Edited, blobs: &mut BTreeMap<Digest, Blob>) -> RawManifest {
    for blob in &edited.blobs {
        blobs.insert(blob.descriptor.digest, blob.clone());
    }
    if edited.keeps_config {
        return RawManifest::from(edited.manifest.clone());
    }
    let bytes = serde_json::to_vec(&edited.config).expect("a configuration has only text keys");
    let mut manifest = edited.manifest.clone();
    let kind = manifest.config.media_type.0.clone();
    let mut config = Descriptor::of(kind, &bytes);
    config.annotations.clone_from(&manifest.config.annotations);
    let source = BlobSource::Bytes(Bytes::from(bytes));
    let descriptor = config.clone();
    blobs.insert(config.digest, Blob { descriptor, source });
    manifest.config = config;
    RawManifest::from(manifest)
}

/// Lets an index name what its entries became, without what was about those.
fn follow(index: &mut Index, became: &BTreeMap<Digest, Descriptor>) {
    let changed: BTreeSet<String> = became.keys().map(Digest::to_string).collect();
    index.manifests.retain(|entry| {
        let annotations = entry.annotations.as_ref();
        let about = annotations.and_then(|all| all.get(ATTESTATION_OF));
        !about.is_some_and(|about| changed.contains(about))
    });
    for entry in &mut index.manifests {
        if let Some(new) = became.get(&entry.digest) {
            entry.digest = new.digest;
            entry.size = new.size;
            entry.media_type = new.media_type.clone();
            entry.data = None;
        }
    }
}

impl Tree {
    /// Forgets manifests and blobs that nothing names any more.
    pub(crate) fn prune(&mut self) {
        let mut named = BTreeSet::from([self.root]);
        // Each stands after all that it names, so the other way round every manifest comes after what names it.
        for (digest, raw) in self.manifests.iter().rev() {
            if named.contains(digest) {
                named.extend(crate::copy::tree::children(raw).map(|child| child.digest));
                named.extend(
                    crate::copy::tree::leaves(raw, true)
                        .iter()
                        .map(|leaf| leaf.digest),
                );
            }
        }
        for (_, raw) in &self.referrers {
            named.extend(
                crate::copy::tree::leaves(raw, true)
                    .iter()
                    .map(|leaf| leaf.digest),
            );
        }
        self.manifests.retain(|(digest, _)| named.contains(digest));
        self.blobs.retain(|digest, _| named.contains(digest));
    }
}
