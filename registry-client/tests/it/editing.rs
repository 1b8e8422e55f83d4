//! Images that are changed: what is written again, what keeps its digest, and what other tools make of the result.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use registry_client::Silent;
use registry_client::copy::{self, CopyError, Target, Tree};
use registry_client::edit::index::{Entry, merge};
use registry_client::edit::layers::{NewLayer, append, export_to, flatten, from_scratch, rebase};
use registry_client::edit::{Mutation, mutate};
use store::content::archive::TarOutput;
use store::layer::compress::Compression;
use store::layer::tar::read::Reader;
use store::oci::manifest::ParsedManifest;
use store::oci::{Annotations, Manifest, Platform};

use crate::support::amd64;

/// A tar of files, in a file.
fn tar(folder: &Path, name: &str, files: &[(&str, &str)]) -> NewLayer {
    let mut bytes = Vec::new();
    let mut tar = TarOutput::new(&mut bytes);
    for (path, content) in files {
        tar.add_file(path, content.len() as u64, &mut content.as_bytes())
            .unwrap();
    }
    tar.finish().unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    NewLayer::of_tar(&path, None, folder).unwrap()
}

fn platform(architecture: &str) -> Platform {
    Platform {
        architecture: architecture.to_owned(),
        ..amd64()
    }
}

fn image(tree: &Tree) -> Manifest {
    match tree.root_manifest().parsed() {
        ParsedManifest::Image(image) => Manifest::clone(image),
        ParsedManifest::Index(_) => panic!("an index"),
    }
}

async fn pair(trees: [&Tree; 2]) -> Result<Tree, CopyError> {
    let entries = trees.map(|tree| Entry {
        tree: tree.clone(),
        platform: None,
        annotations: Annotations::new(),
    });
    merge("pair", None, &entries, &[]).await
}

/// The files of an image, with their content.
async fn files(tree: &Tree, folder: &Path) -> BTreeMap<String, String> {
    let path = folder.join("exported.tar");
    let nowhere = tempfile::tempfile().unwrap();
    export_to(tree, Some(&path), nowhere, folder).await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let mut reader = Reader::new(&bytes[..]);
    let mut files = BTreeMap::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = vec![0; 1000];
        let count = reader.read_content(&mut content).unwrap();
        content.truncate(count);
        files.insert(
            String::from_utf8(entry.path).unwrap(),
            String::from_utf8(content).unwrap(),
        );
    }
    files
}

fn expected(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(path, content): &(&str, &str)| ((*path).to_owned(), (*content).to_owned());
    files.iter().map(owned).collect()
}

#[tokio::test]
async fn what_is_not_changed_keeps_its_digest() {
    let folder = tempfile::tempdir().unwrap();
    let layers = [tar(folder.path(), "a.tar", &[("a", "1")])];
    let amd = from_scratch("amd", &platform("amd64"), &layers);
    let arm = from_scratch("arm", &platform("arm64"), &layers);
    let both = pair([&amd, &arm]).await.unwrap();
    let same = mutate(&both, &Mutation::default()).await.unwrap();
    assert_eq!(same.root(), both.root());
    let mutation = Mutation {
        env: vec![("A".to_owned(), "2".to_owned())],
        labels: vec![("l".to_owned(), "m".to_owned())],
        cmd: Some(vec!["sh".to_owned()]),
        annotations: vec![("k".to_owned(), "v".to_owned())],
        index_annotations: vec![("i".to_owned(), "j".to_owned())],
        ..Mutation::default()
    };
    let changed = mutate(&both, &mutation).await.unwrap();
    let ParsedManifest::Index(index) = changed.root_manifest().parsed() else {
        panic!("an index");
    };
    let platforms: Vec<String> = index
        .manifests
        .iter()
        .map(|entry| entry.platform.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
    assert_eq!(index.annotations.as_ref().unwrap()["i"], "j");
    assert_eq!(changed.images().count(), 2);
    for raw in changed.images() {
        let ParsedManifest::Image(one) = raw.parsed() else {
            unreachable!("images only");
        };
        let config = changed.config(one).await.unwrap();
        assert_eq!(config.config.env, ["A=2"]);
        assert_eq!(config.config.labels.unwrap()["l"], "m");
        assert_eq!(config.config.cmd.unwrap(), ["sh"]);
        assert_eq!(one.annotations.as_ref().unwrap()["k"], "v");
        assert_eq!(one.layers, image(&amd).layers);
    }
    // And back again: the same image as before.
    let undo = Mutation {
        unset_env: vec!["A".to_owned()],
        labels: vec![("l".to_owned(), String::new())],
        cmd: Some(Vec::new()),
        annotations: vec![("k".to_owned(), String::new())],
        index_annotations: vec![("i".to_owned(), String::new())],
        ..Mutation::default()
    };
    let undone = mutate(&changed, &undo).await.unwrap();
    assert_eq!(undone.root(), both.root());
}

#[tokio::test]
async fn layers_are_added_exchanged_and_made_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let old = [tar(path, "old.tar", &[("etc/os", "1"), ("lib/a", "a")])];
    let new = [
        tar(path, "new.tar", &[("etc/os", "2")]),
        tar(path, "fix.tar", &[("lib/b", "b")]),
    ];
    let own = [tar(path, "own.tar", &[("app", "x"), ("lib/.wh.a", "")])];
    let (old, new) = (
        from_scratch("old", &amd64(), &old),
        from_scratch("new", &amd64(), &new),
    );
    let app = append(&old, &own).await.unwrap();
    let is = files(&app, path).await;
    assert_eq!(is, expected(&[("app", "x"), ("etc/os", "1")]));
    let rebased = rebase(&app, &old, &new).await.unwrap();
    assert_eq!(image(&rebased).layers.len(), 3);
    let is = files(&rebased, path).await;
    assert_eq!(
        is,
        expected(&[("app", "x"), ("etc/os", "2"), ("lib/b", "b")])
    );
    let error = rebase(&app, &new, &old).await.unwrap_err().to_string();
    assert!(
        error.contains("do not begin with those of `new`"),
        "{error}"
    );

    let (flat, held) = flatten(&rebased, Compression::GZIP, path).await.unwrap();
    assert_eq!((image(&flat).layers.len(), held.len()), (1, 1));
    assert_eq!(files(&flat, path).await, is);
    // The result is an image like any other: umoci unpacks it.
    let layout = path.join("layout");
    let target = Target::Layout {
        path: layout.clone(),
        name: Some("flat".to_owned()),
    };
    copy::write(&flat, &target, Arc::new(Silent)).await.unwrap();
    let output = std::process::Command::new("umoci")
        .args(["unpack", "--rootless", "--image"])
        .arg(format!("{}:flat", layout.display()))
        .arg(path.join("bundle"))
        .output()
        .expect("the tests need umoci");
    assert!(output.status.success(), "{output:?}");
    let os = std::fs::read_to_string(path.join("bundle/rootfs/etc/os"));
    assert_eq!(os.unwrap(), "2");
}

#[tokio::test]
async fn an_index_has_one_image_of_a_platform() {
    let folder = tempfile::tempdir().unwrap();
    let one = [tar(folder.path(), "1.tar", &[("a", "1")])];
    let two = [tar(folder.path(), "2.tar", &[("a", "2")])];
    let amd = from_scratch("amd", &platform("amd64"), &one);
    let arm = from_scratch("arm", &platform("arm64"), &one);
    let newer = from_scratch("newer", &platform("amd64"), &two);
    let both = pair([&amd, &arm]).await.unwrap();
    let entry = Entry {
        tree: newer.clone(),
        platform: None,
        annotations: Annotations::new(),
    };
    let merged = merge("merged", Some(&both), &[entry], &[]).await.unwrap();
    let ParsedManifest::Index(index) = merged.root_manifest().parsed() else {
        panic!("an index");
    };
    let digests: Vec<_> = index.manifests.iter().map(|entry| entry.digest).collect();
    assert_eq!(digests, [newer.root(), arm.root()]);
    // What nothing names any more does not travel.
    assert!(
        !merged
            .blobs()
            .any(|blob| blob.digest == image(&amd).config.digest)
    );
}
