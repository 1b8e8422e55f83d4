//! Copies whose layers are compressed anew: what comes of them, and what is refused.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use registry_client::copy::{self, CopyError, CopyReport, Source, Target, Tree, Wanted};
use registry_client::edit::{self, Recompress, Sent};
use registry_client::{Client, Silent};
use registry_server::RunningServer;
use store::layer::compress::{Compression, decompressor};
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, DiffId, Digest, Manifest, MediaType, RawManifest, Reference};

use crate::copying::{everything, image, publish, push, read, registry};
use crate::support::{noise, options};

fn how(compression: Compression, spool: &Path) -> Recompress {
    Recompress {
        compression,
        force: false,
        spool: spool.to_owned(),
    }
}

/// Copies into a repository, each layer as soon as it is ready.
async fn copied(
    client: &Client,
    tree: &Tree,
    how: &Recompress,
    to: &Reference,
) -> Result<CopyReport, CopyError> {
    let progress: Arc<dyn registry_client::Progress> = Arc::new(Silent);
    let made = edit::recompress(tree, how, Some((client, to)), &progress).await?;
    let target = registry(client, to);
    copy::write_rest(&made.tree, &target, &made.sent, progress).await
}

/// The layers of a tree's images, each with what it really decompresses to and what the configuration says.
async fn layers(source: &Source, tree: &Tree) -> Vec<(Descriptor, DiffId, DiffId)> {
    let mut found = Vec::new();
    for raw in tree.images() {
        let ParsedManifest::Image(image) = raw.parsed() else {
            continue;
        };
        let config = tree.config(image).await.unwrap();
        for (layer, diff_id) in image.layers.iter().zip(config.rootfs.diff_ids) {
            let bytes = source.read_small(layer, 1 << 24).await.unwrap();
            let mut tar = Vec::new();
            decompressor(&bytes[..])
                .unwrap()
                .read_to_end(&mut tar)
                .unwrap();
            found.push((layer.clone(), DiffId(Digest::of(&tar)), diff_id));
        }
    }
    found
}

fn configs(tree: &Tree) -> Vec<Digest> {
    let images = tree.images().map(|raw| match raw.parsed() {
        ParsedManifest::Image(image) => image.config.digest,
        ParsedManifest::Index(_) => panic!("not an image"),
    });
    images.collect()
}

#[tokio::test]
async fn layers_get_another_compression_and_what_names_them_follows() {
    let server = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let from: Reference = format!("{}/from:1", server.host()).parse().unwrap();
    let digest = publish(&client, &from).await;
    let tree = read(&client, &from.to_string(), &Wanted::default())
        .await
        .unwrap();
    for compression in [
        Compression::GZIP,
        Compression::ZSTD,
        Compression::ZSTD_CHUNKED,
        Compression::ESTARGZ,
        Compression::None,
    ] {
        let name = compression.name().replace(':', "-");
        let to: Reference = format!("{}/{name}:1", server.host()).parse().unwrap();
        let report = copied(&client, &tree, &how(compression, spool.path()), &to)
            .await
            .unwrap();
        assert_ne!(report.digest, digest);
        let named = report.copied + report.mounted + report.existed;
        // Four layers of other bytes, but for the one that both images have.
        let source = Source::open(&client, &to.to_string().parse().unwrap())
            .await
            .unwrap();
        let made = Tree::read(&source, &Wanted::default()).await.unwrap();
        assert_eq!((made.root(), made.blobs().count()), (report.digest, named));
        let layers = layers(&source, &made).await;
        assert_eq!(layers.len(), 4);
        for (layer, found, told) in layers {
            assert_eq!(Compression::of(&layer).name(), compression.name());
            assert_eq!(found, told, "{compression}");
        }
        // A configuration that need not change is the same, byte by byte.
        let same = configs(&made) == configs(&tree);
        assert_eq!(same, !compression.changes_tar(), "{compression}");
        // Nothing stays behind; and what is so already is not touched.
        assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
        let progress: Arc<dyn registry_client::Progress> = Arc::new(Silent);
        let same = how(compression, spool.path());
        let again = edit::recompress(&made, &same, None, &progress)
            .await
            .unwrap();
        assert_eq!(again.tree.root(), made.root());
        let level = compression.at_level(1).unwrap_or(compression);
        let mut harder = how(level, spool.path());
        harder.force = true;
        let again = edit::recompress(&made, &harder, None, &progress)
            .await
            .unwrap();
        // eStargz is never made of eStargz.
        let is_kept = !compression.changes_tar() || again.tree.root() == made.root();
        assert!(is_kept, "{compression}");
        assert_eq!(again.sent, Sent::new());
        // What is not sent on the way goes like any other blob.
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("layout");
        let target = Target::Layout {
            path: layout.clone(),
            name: Some("1".to_owned()),
        };
        copy::write(&again.tree, &target, Arc::new(Silent))
            .await
            .unwrap();
        let place = format!("oci:{}:1", layout.display());
        let written = read(&client, &place, &Wanted::default()).await.unwrap();
        assert_eq!(written.root(), again.tree.root());
    }
}

#[tokio::test]
async fn what_cannot_be_compressed_anew_is_told() {
    let server = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let spool = tempfile::tempdir().unwrap();
    let to: Reference = format!("{}/to:1", server.host()).parse().unwrap();
    let zstd = how(Compression::ZSTD, spool.path());
    for (kind, expected) in [
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "not meant to be distributed",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "is encrypted",
        ),
        ("application/wasm", "is of type `application/wasm`"),
    ] {
        let mut image = image("amd64", &[("gzip", b"content")]);
        let ParsedManifest::Image(manifest) = image.manifest.parsed() else {
            panic!("it is an image");
        };
        let mut manifest: Manifest = (**manifest).clone();
        manifest.layers[0].media_type = MediaType::from(kind);
        image.manifest = RawManifest::from(manifest);
        let from: Reference = format!("{}/from:1", server.host()).parse().unwrap();
        let pushed = push(&client, &from, &image).await;
        let place = from.with_digest(pushed.digest).to_string();
        let wanted = Wanted {
            foreign: true,
            ..Wanted::default()
        };
        let tree = read(&client, &place, &wanted).await.unwrap();
        let error = copied(&client, &tree, &zstd, &to).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let from: Reference = format!("{}/whole:1", server.host()).parse().unwrap();
    publish(&client, &from).await;
    let tree = read(&client, &from.to_string(), &everything())
        .await
        .unwrap();
    let error = copied(&client, &tree, &zstd, &to).await.unwrap_err();
    assert!(error.to_string().contains("`--referrers`"), "{error}");
    let by_digest = to.with_digest(tree.root());
    let error = copied(&client, &tree, &zstd, &by_digest).await.unwrap_err();
    assert!(error.to_string().contains("name it by a tag"), "{error}");
    // A layer that is not what the configuration says.
    let mut lying = image("amd64", &[("gzip", b"content")]);
    let other = image("amd64", &[("gzip", &noise(3, 1000))]);
    lying.blobs[1] = other.blobs[1].clone();
    let ParsedManifest::Image(manifest) = lying.manifest.parsed() else {
        panic!("it is an image");
    };
    let mut manifest: Manifest = (**manifest).clone();
    manifest.layers[0] = other.blobs[1].0.clone();
    lying.manifest = RawManifest::from(manifest);
    let pushed = push(&client, &from, &lying).await;
    let place = from.with_digest(pushed.digest).to_string();
    let tree = read(&client, &place, &Wanted::default()).await.unwrap();
    let error = copied(&client, &tree, &zstd, &to).await.unwrap_err();
    assert!(error.to_string().contains("DiffID"), "{error}");
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
}
