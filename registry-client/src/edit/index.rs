//! Several images as one: an index is made of trees, and its entries are added, removed and described.

use store::oci::manifest::ParsedManifest;
use store::oci::{Annotations, Descriptor, Digest, Index, Platform, RawManifest};

use super::mutate::annotate;
use super::{ATTESTATION_OF, is_image_config};
use crate::copy::{CopyError, Tree};

/// Most entries of an index that is written.
const ENTRIES_MAX: usize = 1000;

/// An image for an index, and what the index says of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The image, or an index whose entries are taken.
    pub tree: Tree,
    /// Its platform; where none is given, its configuration says it.
    pub platform: Option<Platform>,
    /// Annotations of the entry.
    pub annotations: Annotations,
}

/// An index of `entries`, added to those of `base`. An entry takes the place of one for the same platform.
pub async fn merge(
    name: &str,
    base: Option<&Tree>,
    entries: &[Entry],
    annotations: &[(String, String)],
) -> Result<Tree, CopyError> {
    let mut index = Index::new(Vec::new());
    let mut merged = Tree {
        name: name.to_owned(),
        root: Digest::of(b""),
        manifests: Vec::new(),
        blobs: std::collections::BTreeMap::new(),
        referrers: Vec::new(),
    };
    if let Some(base) = base {
        index = base_index(base).await?;
        merged.add(base);
    }
    for entry in entries {
        for described in describe(entry).await? {
            put(&mut index.manifests, described);
        }
        merged.add(&entry.tree);
    }
    if index.manifests.len() > ENTRIES_MAX {
        return Err(CopyError::TooMuch {
            place: name.to_owned(),
            what: "entries in an index",
            max: ENTRIES_MAX as u64,
        });
    }
    annotate(&mut index.annotations, annotations);
    Ok(merged.rooted(RawManifest::from(index)))
}

/// What is said of the entry of an index.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// Its platform.
    pub platform: Option<Platform>,
    /// Annotations, added or replaced; an empty value removes one.
    pub annotations: Vec<(String, String)>,
}

/// An index with another description of one entry, which is named by its digest or by its platform; or of itself, where none
/// is named.
pub fn describe_entry(
    tree: &Tree,
    digest: Option<Digest>,
    description: &Description,
) -> Result<Tree, CopyError> {
    let ParsedManifest::Index(index) = tree.root_manifest().parsed() else {
        return Err(tree.unfit("it is an image, and no index"));
    };
    let mut index = (**index).clone();
    match digest {
        None => annotate(&mut index.annotations, &description.annotations),
        Some(digest) => {
            let entry = index
                .manifests
                .iter_mut()
                .find(|entry| entry.digest == digest);
            let entry = entry.ok_or_else(|| tree.unfit(format!("it has no entry {digest}")))?;
            annotate(&mut entry.annotations, &description.annotations);
            if description.platform.is_some() {
                entry.platform.clone_from(&description.platform);
            }
        }
    }
    let mut changed = tree.clone();
    let old = tree.root;
    changed.manifests.retain(|(digest, _)| *digest != old);
    changed.referrers.clear();
    Ok(changed.rooted(RawManifest::from(index)))
}

/// The entries that a tree gives to an index.
async fn describe(entry: &Entry) -> Result<Vec<Descriptor>, CopyError> {
    let tree = &entry.tree;
    let raw = tree.root_manifest();
    match raw.parsed() {
        ParsedManifest::Index(index) => {
            let mut listed = index.manifests.clone();
            for one in &mut listed {
                annotate_with(one, &entry.annotations);
            }
            Ok(listed)
        }
        ParsedManifest::Image(image) => {
            let mut one = raw.descriptor();
            one.digest = tree.root;
            one.platform.clone_from(&entry.platform);
            if is_image_config(image.config.media_type.as_str()) {
                if one.platform.is_none() {
                    one.platform = Some(tree.config(image).await?.platform());
                }
            } else {
                one.artifact_type.clone_from(&image.artifact_type);
            }
            annotate_with(&mut one, &entry.annotations);
            Ok(vec![one])
        }
    }
}

fn annotate_with(entry: &mut Descriptor, more: &Annotations) {
    if !more.is_empty() {
        let all = entry.annotations.get_or_insert_default();
        all.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}

/// An index to add to; of an image, an index of that.
async fn base_index(base: &Tree) -> Result<Index, CopyError> {
    match base.root_manifest().parsed() {
        ParsedManifest::Index(index) => Ok((**index).clone()),
        ParsedManifest::Image(_) => {
            let entry = Entry {
                tree: base.clone(),
                platform: None,
                annotations: Annotations::new(),
            };
            Ok(Index::new(describe(&entry).await?))
        }
    }
}

/// Adds an entry in the place of what was there for the same platform, or of itself.
fn put(entries: &mut Vec<Descriptor>, new: Descriptor) {
    let about = |entry: &Descriptor| {
        let annotations = entry.annotations.as_ref()?;
        annotations.get(ATTESTATION_OF).cloned()
    };
    let stated = |entry: &Descriptor| match (&entry.platform, about(entry)) {
        (Some(platform), None) if platform.os != "unknown" => Some(platform.clone()),
        _ => None,
    };
    let same = |old: &Descriptor| {
        old.digest == new.digest || (stated(old).is_some() && stated(old) == stated(&new))
    };
    match entries.iter().position(same) {
        None => entries.push(new),
        Some(at) => {
            let gone = std::mem::replace(&mut entries[at], new).digest.to_string();
            let kept = entries[at].digest.to_string();
            // What was about the one that went is about nothing here.
            entries.retain(|entry| gone == kept || about(entry).as_ref() != Some(&gone));
        }
    }
}

impl Tree {
    /// Takes in all that another tree has.
    fn add(&mut self, other: &Tree) {
        for (digest, raw) in &other.manifests {
            if !self.manifests.iter().any(|(known, _)| known == digest) {
                self.manifests.push((*digest, raw.clone()));
            }
        }
        for (digest, blob) in &other.blobs {
            self.blobs.entry(*digest).or_insert_with(|| blob.clone());
        }
    }

    /// The tree with another root, and nothing that this does not lead to.
    fn rooted(mut self, root: RawManifest) -> Tree {
        self.root = root.digest();
        self.manifests.retain(|(digest, _)| *digest != self.root);
        self.manifests.push((self.root, root));
        self.prune();
        self
    }
}
