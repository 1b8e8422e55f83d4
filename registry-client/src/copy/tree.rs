//! An image with all that belongs to it: manifests in memory, children before parents; of other blobs, where they are.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _};
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Index, Platform, RawManifest};

use super::local::subject_of;
use super::{CopyError, Source};
use crate::BlobSource;

/// Most indexes within one another, referrers of referrers included.
const DEPTH_MAX: usize = 8;

/// Most manifests of one tree, and the bytes of all of them.
const MANIFESTS_MAX: usize = 10_000;
const MANIFEST_BYTES_SUM_MAX: u64 = 256 * 1024 * 1024;

/// Manifests that are read at once.
const READ_AT_ONCE: usize = 8;

/// Annotations by which BuildKit's attestations name what they are about.
const ATTESTATION_OF: &str = "vnd.docker.reference.digest";

/// Which parts of what a source names are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// These platforms only; all of them where it is empty. One alone gives its image without the index around it.
    pub platforms: Vec<Platform>,
    /// Whether an image that stands alone will do, whatever its platform.
    pub lone: bool,
    /// What is about the manifests, too: signatures, attestations.
    pub referrers: bool,
    /// Layers that are not meant to be distributed, too.
    pub foreign: bool,
}

/// An image, or several in an index, that can be written somewhere.
#[derive(Clone, Debug)]
pub struct Tree {
    /// How messages call it.
    pub(crate) name: String,
    /// The digest of what it is all about.
    pub(crate) root: Digest,
    /// Manifests and indexes by the digest that names them, each after all that it names.
    pub(crate) manifests: Vec<(Digest, RawManifest)>,
    /// Configurations and layers.
    pub(crate) blobs: BTreeMap<Digest, Blob>,
    /// What is about the others, in the order in which it can be written.
    pub(crate) referrers: Vec<(Digest, RawManifest)>,
}

/// A blob of a tree.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) descriptor: Descriptor,
    pub(crate) source: BlobSource,
}

impl Tree {
    /// Reads what `source` names.
    pub async fn read(source: &Source, wanted: &Wanted) -> Result<Tree, CopyError> {
        let (digest, raw) = source.root().await?;
        let (root, raw) = match (raw.parsed(), &wanted.platforms[..]) {
            (_, []) => (digest, raw),
            (ParsedManifest::Image(_), _) if wanted.lone => (digest, raw),
            (ParsedManifest::Image(_), _) => {
                check_platform(source, &raw, &wanted.platforms).await?;
                (digest, raw)
            }
            (ParsedManifest::Index(index), [_]) => {
                let chosen = choose(source, index, &wanted.platforms)?;
                let only = chosen[0].clone();
                (only.digest, source.manifest(&only).await?)
            }
            (ParsedManifest::Index(index), _) => {
                let filtered = filter(source, index, &wanted.platforms)?;
                (filtered.digest(), filtered)
            }
        };
        let mut reading = Reading {
            source,
            known: BTreeMap::new(),
            bytes: 0,
        };
        reading.walk(vec![(root, raw)]).await?;
        let manifests = reading.order(&[root]);
        let mut referrers = Vec::new();
        if wanted.referrers {
            let subjects = manifests.iter().map(|(digest, _)| *digest).collect();
            referrers = reading.referrers(subjects).await?;
        }
        let mut blobs = BTreeMap::new();
        for (_, raw) in manifests.iter().chain(&referrers) {
            for descriptor in leaves(raw, wanted.foreign) {
                if blobs.contains_key(&descriptor.digest) {
                    continue;
                }
                let source = source.blob(descriptor)?;
                let descriptor = descriptor.clone();
                blobs.insert(descriptor.digest, Blob { descriptor, source });
            }
        }
        Ok(Tree {
            name: source.name(),
            root,
            manifests,
            blobs,
            referrers,
        })
    }

    /// The digest of what it is all about.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The manifest or index of that digest.
    pub fn root_manifest(&self) -> &RawManifest {
        let found = self
            .manifests
            .iter()
            .find(|(digest, _)| *digest == self.root);
        &found.expect("a tree has its root").1
    }

    /// Manifests and indexes with the digests that name them, each after all that it names.
    pub fn manifests(&self) -> impl Iterator<Item = (Digest, &RawManifest)> {
        self.manifests.iter().map(|(digest, raw)| (*digest, raw))
    }

    /// The image manifests, each once.
    pub fn images(&self) -> impl Iterator<Item = &RawManifest> {
        let all = self.manifests.iter().map(|(_, raw)| raw);
        all.filter(|raw| matches!(raw.parsed(), ParsedManifest::Image(_)))
    }

    /// What it has beside manifests: each blob's descriptor.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs.values().map(|blob| &blob.descriptor)
    }

    /// The manifests that are about others.
    pub fn referrers(&self) -> &[(Digest, RawManifest)] {
        &self.referrers
    }
}

/// A tree that is being read.
struct Reading<'a> {
    source: &'a Source,
    known: BTreeMap<Digest, RawManifest>,
    bytes: u64,
}

impl Reading<'_> {
    /// Reads all that is below `level`, one level of indexes after the other.
    async fn walk(&mut self, mut level: Vec<(Digest, RawManifest)>) -> Result<(), CopyError> {
        for _ in 0..DEPTH_MAX {
            let mut next: BTreeMap<Digest, Descriptor> = BTreeMap::new();
            for (digest, raw) in level {
                for child in children(&raw) {
                    next.insert(child.digest, child.clone());
                }
                self.keep(digest, raw)?;
            }
            next.retain(|digest, _| !self.known.contains_key(digest));
            if next.is_empty() {
                return Ok(());
            }
            self.bound(next.len())?;
            level = self.read(next.into_values().collect()).await?;
        }
        Err(self.too_much("indexes within one another", DEPTH_MAX as u64))
    }

    async fn read(
        &self,
        descriptors: Vec<Descriptor>,
    ) -> Result<Vec<(Digest, RawManifest)>, CopyError> {
        let source = self.source;
        let readings = descriptors.into_iter().map(|descriptor| async move {
            let raw = source.manifest(&descriptor).await?;
            Ok((descriptor.digest, raw))
        });
        futures_util::stream::iter(readings)
            .buffered(READ_AT_ONCE)
            .try_collect()
            .await
    }

    fn keep(&mut self, digest: Digest, raw: RawManifest) -> Result<(), CopyError> {
        self.bytes += raw.bytes().len() as u64;
        if self.bytes > MANIFEST_BYTES_SUM_MAX {
            return Err(self.too_much("bytes of manifests", MANIFEST_BYTES_SUM_MAX));
        }
        self.bound(1)?;
        self.known.insert(digest, raw);
        Ok(())
    }

    fn bound(&self, more: usize) -> Result<(), CopyError> {
        if self.known.len() + more > MANIFESTS_MAX {
            return Err(self.too_much("manifests", MANIFESTS_MAX as u64));
        }
        Ok(())
    }

    fn too_much(&self, what: &'static str, max: u64) -> CopyError {
        CopyError::TooMuch {
            place: self.source.name(),
            what,
            max,
        }
    }

    /// What is known below `roots`, each after all that it names.
    fn order(&self, roots: &[Digest]) -> Vec<(Digest, RawManifest)> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        // Digests cannot go in circles, and `walk` bounded the depth.
        let mut stack: Vec<(Digest, bool)> =
            roots.iter().rev().map(|root| (*root, false)).collect();
        while let Some((digest, visited)) = stack.pop() {
            let Some(raw) = self.known.get(&digest) else {
                continue;
            };
            if visited {
                ordered.push((digest, raw.clone()));
                continue;
            }
            if !seen.insert(digest) {
                continue;
            }
            stack.push((digest, true));
            for child in children(raw) {
                stack.push((child.digest, false));
            }
        }
        ordered
    }

    /// What is about `subjects`, and about that, and so on.
    async fn referrers(
        &mut self,
        subjects: BTreeSet<Digest>,
    ) -> Result<Vec<(Digest, RawManifest)>, CopyError> {
        let mut before: BTreeSet<Digest> = subjects.clone();
        let (mut all, mut asked, mut subjects) = (Vec::new(), before.clone(), subjects);
        for _ in 0..DEPTH_MAX {
            let source = self.source;
            let listings = subjects
                .iter()
                .map(|subject| async move { source.referrers(subject).await });
            let lists: Vec<Vec<Descriptor>> = futures_util::stream::iter(listings)
                .buffered(READ_AT_ONCE)
                .try_collect()
                .await?;
            let mut fresh: BTreeMap<Digest, Descriptor> = BTreeMap::new();
            for entry in lists.into_iter().flatten() {
                if !self.known.contains_key(&entry.digest) {
                    fresh.insert(entry.digest, entry);
                }
            }
            if fresh.is_empty() {
                return Ok(all);
            }
            self.bound(fresh.len())?;
            let roots: Vec<Digest> = fresh.keys().copied().collect();
            let read = self.read(fresh.into_values().collect()).await?;
            self.walk(read).await?;
            let mut next = BTreeSet::new();
            for (digest, raw) in self.order(&roots) {
                if before.insert(digest) {
                    all.push((digest, raw));
                }
                if asked.insert(digest) {
                    next.insert(digest);
                }
            }
            subjects = next;
        }
        Err(self.too_much("referrers of referrers", DEPTH_MAX as u64))
    }
}

/// The manifests and indexes that an index names.
pub(crate) fn children(raw: &RawManifest) -> impl Iterator<Item = &Descriptor> {
    let listed = match raw.parsed() {
        ParsedManifest::Index(index) => &index.manifests[..],
        ParsedManifest::Image(_) => &[],
    };
    listed.iter().filter(|entry| is_manifest(entry))
}

fn is_manifest(entry: &Descriptor) -> bool {
    entry.media_type.is_manifest() || entry.media_type.is_index()
}

/// The blobs that a manifest names. An index may name some, too: BuildKit's caches do.
pub(crate) fn leaves(raw: &RawManifest, foreign: bool) -> Vec<&Descriptor> {
    match raw.parsed() {
        ParsedManifest::Image(image) => std::iter::once(&image.config)
            .chain(&image.layers)
            .filter(|blob| foreign || !is_foreign(blob))
            .collect(),
        ParsedManifest::Index(index) => {
            let blobs = index.manifests.iter().filter(|entry| !is_manifest(entry));
            blobs.collect()
        }
    }
}

/// Whether a layer is one that registries do not hold: it is had from its URLs.
pub fn is_foreign(layer: &Descriptor) -> bool {
    let kind = layer.media_type.as_str();
    kind.contains("nondistributable") || kind.contains(".foreign.")
}

/// The entries for platforms, in the order of the index: each wanted one must be there.
fn choose<'a>(
    source: &Source,
    index: &'a Index,
    platforms: &[Platform],
) -> Result<Vec<&'a Descriptor>, CopyError> {
    let mut chosen: Vec<&Descriptor> = Vec::new();
    for wanted in platforms {
        let found =
            crate::manifest::choose(index, wanted).ok_or_else(|| CopyError::NoPlatform {
                place: source.name(),
                wanted: wanted.to_string(),
                available: crate::manifest::available(index),
            })?;
        if !chosen.iter().any(|known| known.digest == found.digest) {
            chosen.push(found);
        }
    }
    Ok(chosen)
}

/// The index with the entries for some platforms, and the attestations about those.
fn filter(
    source: &Source,
    index: &Index,
    platforms: &[Platform],
) -> Result<RawManifest, CopyError> {
    let chosen: BTreeSet<String> = choose(source, index, platforms)?
        .iter()
        .map(|entry| entry.digest.to_string())
        .collect();
    let mut filtered = index.clone();
    filtered.manifests.retain(|entry| {
        let about = entry
            .annotations
            .as_ref()
            .and_then(|all| all.get(ATTESTATION_OF));
        chosen.contains(&entry.digest.to_string()) || about.is_some_and(|of| chosen.contains(of))
    });
    Ok(RawManifest::from(filtered))
}

/// An image that stands alone says its platform in its configuration.
async fn check_platform(
    source: &Source,
    raw: &RawManifest,
    platforms: &[Platform],
) -> Result<(), CopyError> {
    let ParsedManifest::Image(image) = raw.parsed() else {
        return Ok(());
    };
    let kind = image.config.media_type.as_str();
    if !crate::edit::is_image_config(kind) {
        return Ok(());
    }
    let config = crate::edit::read_config(source, &image.config).await?;
    let own = config.platform();
    match platforms.iter().any(|wanted| own.satisfies(wanted)) {
        true => Ok(()),
        false => {
            let wanted: Vec<String> = platforms.iter().map(Platform::to_string).collect();
            Err(CopyError::NoPlatform {
                place: source.name(),
                wanted: wanted.join(", "),
                available: own.to_string(),
            })
        }
    }
}

/// Whether a manifest is about another one, and which.
pub(crate) fn subject(raw: &RawManifest) -> Option<Digest> {
    subject_of(raw).map(|subject| subject.digest)
}
