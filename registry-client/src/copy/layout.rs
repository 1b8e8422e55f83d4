//! Writing a directory that is an OCI layout (image-spec `image-layout.md`): what it has stays, and several processes may
//! write at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use store::MANIFEST_BYTES_MAX;
use store::fs::{self, TempFile};
use store::oci::{Annotations, Descriptor, Digest, Index, RawManifest};

use super::local::REF_NAME;
use super::target::{BLOBS_AT_ONCE, CopyReport, each_blob, open, read_error};
use super::tree::subject;
use super::{CopyError, Tree};
use crate::blocking::blocking;
use crate::progress::Progress;

/// The content of `oci-layout`.
pub(crate) const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// `blobs/ALGORITHM/HEX`
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

pub(crate) async fn write(
    tree: &Tree,
    path: &Path,
    name: Option<&str>,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    let mut report = CopyReport::new(tree);
    let root = path.to_owned();
    let digests: Vec<Digest> = tree.blobs.keys().copied().chain(ids(tree)).collect();
    blocking(move || prepare(&root, &digests)).await?;
    let (root, source) = (path.to_owned(), tree.name.clone());
    each_blob(tree, BLOBS_AT_ONCE, &mut report, move |blob| {
        let to = root.join(blob_path(&blob.descriptor.digest));
        if fs::file_size(&to)? == Some(blob.descriptor.size) {
            return Ok(false);
        }
        let mut reader = open(blob, &progress)?;
        let mut file = TempFile::create(&root)?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(|error| read_error(error, &blob.descriptor, &source))?;
            if count == 0 {
                break;
            }
            file.append(&buffer[..count])?;
        }
        file.publish(&to)?;
        Ok(true)
    })
    .await?;
    let (root, entries) = (path.to_owned(), listed(tree, name));
    let manifests: Vec<(Digest, RawManifest)> = tree
        .manifests
        .iter()
        .chain(&tree.referrers)
        .cloned()
        .collect();
    report.manifests = blocking(move || finish(&root, &manifests, &entries)).await?;
    Ok(report)
}

fn ids(tree: &Tree) -> impl Iterator<Item = Digest> {
    let all = tree.manifests.iter().chain(&tree.referrers);
    all.map(|(digest, _)| *digest)
}

/// What `index.json` is to say of a tree: what it is all about under its name, and what is about that without one.
pub(crate) fn listed(tree: &Tree, name: Option<&str>) -> Vec<Descriptor> {
    let raw = tree.root_manifest();
    let kind = raw.media_type().as_str();
    let mut root = Descriptor::new(kind, tree.root, raw.bytes().len() as u64);
    if let Some(name) = name {
        root.annotations = Some(Annotations::from([(REF_NAME.to_owned(), name.to_owned())]));
    }
    let about = tree
        .referrers
        .iter()
        .filter(|(_, raw)| subject(raw).is_some());
    let about = about.map(|(digest, raw)| {
        let mut entry = crate::referrers::descriptor_of(raw);
        entry.digest = *digest;
        // A name belongs to the entry, and this one has none.
        if let Some(annotations) = &mut entry.annotations {
            annotations.remove(REF_NAME);
        }
        entry
    });
    std::iter::once(root).chain(about).collect()
}

fn prepare(root: &Path, digests: &[Digest]) -> Result<(), CopyError> {
    if fs::exists(root)? && !root.join("oci-layout").exists() && !fs::list(root)?.is_empty() {
        return Err(CopyError::BadLayout {
            path: root.to_owned(),
            reason: "it is neither empty nor an OCI layout: nothing is written into it".to_owned(),
        });
    }
    fs::create_shared_dir(root)?;
    fs::create_shared_dir(&root.join("blobs"))?;
    let algorithms: BTreeMap<&str, ()> = digests
        .iter()
        .map(|digest| (digest.algorithm().name(), ()))
        .collect();
    for algorithm in algorithms.keys() {
        fs::create_shared_dir(&root.join("blobs").join(algorithm))?;
    }
    let marker = root.join("oci-layout");
    if !fs::exists(&marker)? {
        fs::write_atomic(root, &marker, MARKER)?;
    }
    Ok(())
}

/// Writes manifests, then names them; how many were not there.
fn finish(
    root: &Path,
    manifests: &[(Digest, RawManifest)],
    entries: &[Descriptor],
) -> Result<usize, CopyError> {
    let mut written = 0;
    for (digest, raw) in manifests {
        let to = root.join(blob_path(digest));
        if fs::file_size(&to)? != Some(raw.bytes().len() as u64) {
            fs::write_atomic(root, &to, raw.bytes())?;
            written += 1;
        }
    }
    let marker = root.join("oci-layout");
    let held = File::open(&marker).map_err(CopyError::file("read", &marker))?;
    held.lock().map_err(CopyError::file("lock", &marker))?;
    let path = root.join("index.json");
    let mut index = read_index(&path)?;
    for entry in entries {
        let name = |d: &Descriptor| d.annotations.as_ref()?.get(REF_NAME).cloned();
        let own = name(entry);
        index.manifests.retain(|known| match &own {
            // A name moves; what had it before keeps its place only under another.
            Some(own) => name(known).as_ref() != Some(own),
            None => known.digest != entry.digest || name(known).is_some(),
        });
        index.manifests.push(entry.clone());
    }
    let bytes = serde_json::to_vec(&index).expect("an index has only text keys");
    fs::write_atomic(root, &path, &bytes)?;
    Ok(written)
}

fn read_index(path: &Path) -> Result<Index, CopyError> {
    if !fs::exists(path)? {
        return Ok(Index::new(Vec::new()));
    }
    let bytes = fs::read(path, MANIFEST_BYTES_MAX as u64)?;
    serde_json::from_slice(&bytes).map_err(|error| CopyError::BadLayout {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
