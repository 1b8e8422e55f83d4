//! Writing one tar: an OCI layout, and where it is asked for what `docker load` reads beside it.
//!
//! Nothing is kept on the way: each blob goes from its source into the tar. A file gets its name when it is whole.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use store::content::archive::{ArchiveError, TarOutput};
use store::fs::TempFile;
use store::oci::manifest::ParsedManifest;
use store::oci::{Annotations, Descriptor, Index};

use super::layout::{MARKER, blob_path, listed};
use super::local::{IMAGE_NAME, REF_NAME};
use super::target::{ArchiveOut, CopyReport, open, read_error};
use super::{CopyError, Tree};
use crate::blocking::blocking;
use crate::progress::Progress;

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 1024 * 1024;

pub(crate) async fn write(
    tree: &Tree,
    to: &ArchiveOut,
    names: &[String],
    docker: bool,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    let (tree, names) = (tree.clone(), names.to_owned());
    let to = to.clone();
    blocking(move || {
        let path = match to {
            ArchiveOut::File(path) => path,
            ArchiveOut::Stream(stream) => {
                let mut out = BufWriter::with_capacity(BUFFER_BYTES, &*stream);
                return fill(&tree, &names, docker, &progress, &mut out);
            }
        };
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = TempFile::create(folder)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file.file());
        let report = fill(&tree, &names, docker, &progress, &mut out)?;
        drop(out);
        file.publish(&path)?;
        Ok(report)
    })
    .await
}

fn fill(
    tree: &Tree,
    names: &[String],
    docker: bool,
    progress: &Arc<dyn Progress>,
    out: &mut dyn Write,
) -> Result<CopyReport, CopyError> {
    let mut report = CopyReport::new(tree);
    let mut tar = TarOutput::new(out);
    let document = |tar: &mut TarOutput<'_>, path: &str, bytes: &[u8]| {
        tar.add_file(path, bytes.len() as u64, &mut &bytes[..])
    };
    document(&mut tar, "oci-layout", MARKER)?;
    let index = Index::new(named(tree, names));
    let bytes = serde_json::to_vec(&index).expect("an index has only text keys");
    document(&mut tar, "index.json", &bytes)?;
    if docker {
        document(&mut tar, "manifest.json", &docker_manifest(tree, names)?)?;
    }
    tar.add_directory("blobs")?;
    let all = || tree.manifests.iter().chain(&tree.referrers);
    let digests = tree.blobs.keys().chain(all().map(|(digest, _)| digest));
    let algorithms: BTreeSet<&str> = digests.map(|digest| digest.algorithm().name()).collect();
    for algorithm in algorithms {
        tar.add_directory(&format!("blobs/{algorithm}"))?;
    }
    for (digest, raw) in all() {
        document(&mut tar, &blob_path(digest), raw.bytes())?;
        report.manifests += 1;
    }
    for blob in tree.blobs.values() {
        let descriptor = &blob.descriptor;
        let mut reader = open(blob, progress)?;
        let added = tar.add_file(&blob_path(&descriptor.digest), descriptor.size, &mut reader);
        match added {
            Err(ArchiveError::Read { source }) => {
                return Err(read_error(source, descriptor, &tree.name));
            }
            added => added?,
        }
        report.copied += 1;
        report.bytes += descriptor.size;
    }
    tar.finish()?;
    Ok(report)
}

/// The entries of `index.json`: what it is all about once under each name.
fn named(tree: &Tree, names: &[String]) -> Vec<Descriptor> {
    let mut entries = listed(tree, None);
    if names.is_empty() {
        return entries;
    }
    let root = entries.remove(0);
    let roots = names.iter().map(|name| {
        let mut root = root.clone();
        let tag = match name.parse::<store::oci::Reference>() {
            Ok(reference) if name.contains([':', '/']) => reference.tag().map(str::to_owned),
            _ => None,
        };
        let mut annotations = Annotations::new();
        if tag.is_some() {
            annotations.insert(IMAGE_NAME.to_owned(), name.clone());
        }
        annotations.insert(REF_NAME.to_owned(), tag.unwrap_or_else(|| name.clone()));
        root.annotations = Some(annotations);
        root
    });
    roots.chain(entries).collect()
}

/// `manifest.json`, whose paths lead to the layout's blobs.
fn docker_manifest(tree: &Tree, names: &[String]) -> Result<Vec<u8>, CopyError> {
    let ParsedManifest::Image(image) = tree.root_manifest().parsed() else {
        return Err(CopyError::Unfit {
            place: tree.name.clone(),
            reason:
                "a docker archive holds images of one platform: say which, or write an oci-archive"
                    .to_owned(),
        });
    };
    let layers: Vec<String> = image
        .layers
        .iter()
        .map(|layer| blob_path(&layer.digest))
        .collect();
    let entry = json!([{
        "Config": blob_path(&image.config.digest),
        "RepoTags": names,
        "Layers": layers,
    }]);
    Ok(serde_json::to_vec(&entry).expect("it has only text keys"))
}
