//! Images between registries, layouts and archives: with other tools on the other side, and with input that lies.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use registry_client::copy::{
    self, ArchiveOut, CopyError, CopyReport, Place, Source, Target, Tree, Wanted,
};
use registry_client::edit::{Attachment, artifact};
use registry_client::{BlobSource, Client, ErrorKind, PushImage, Silent, push_image};
use registry_server::RunningServer;
use store::content::archive::TarOutput;
use store::oci::manifest::ParsedManifest;
use store::oci::{
    Descriptor, DiffId, Digest, ImageConfig, Index, MediaType, Platform, RawManifest, Reference,
};

use crate::debian::Debian;
use crate::support::{image_of, noise, options};

fn platform(architecture: &str) -> Platform {
    Platform {
        architecture: architecture.to_owned(),
        ..crate::support::amd64()
    }
}

/// A tar with one file, so that other tools can read it.
fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut tar = TarOutput::new(&mut bytes);
    tar.add_file(name, content.len() as u64, &mut &content[..])
        .unwrap();
    tar.finish().unwrap();
    bytes
}

/// A blob in a compression, with its media type.
fn packed(tar: &[u8], how: &str) -> (String, Vec<u8>) {
    use store::layer::compress::{Compression, compressor};
    let (kind, compression) = match how {
        "gzip" => (MediaType::OCI_LAYER_GZIP, Compression::GZIP),
        "zstd" => (MediaType::OCI_LAYER_ZSTD, Compression::ZSTD),
        _ => (MediaType::OCI_LAYER, Compression::None),
    };
    let mut out = compressor(Vec::new(), compression, 1).unwrap();
    out.write_all(tar).unwrap();
    (kind.to_owned(), out.finish().unwrap())
}

/// An image of one platform whose layers come in the compressions named.
pub(crate) fn image(architecture: &str, layers: &[(&str, &[u8])]) -> PushImage {
    let tars: Vec<Vec<u8>> = layers
        .iter()
        .enumerate()
        .map(|(at, (_, content))| layer(&format!("{architecture}-{at}"), content))
        .collect();
    let mut config = ImageConfig::scratch(&platform(architecture));
    config.rootfs.diff_ids = tars.iter().map(|tar| DiffId(Digest::of(tar))).collect();
    let config = serde_json::to_vec(&config).unwrap();
    let blob = |kind: &str, bytes: Vec<u8>| {
        let descriptor = Descriptor::of(kind, &bytes);
        (descriptor, BlobSource::Bytes(Bytes::from(bytes)))
    };
    let mut blobs = vec![blob(MediaType::OCI_CONFIG, config)];
    for ((how, _), tar) in layers.iter().zip(&tars) {
        let (kind, bytes) = packed(tar, how);
        blobs.push(blob(&kind, bytes));
    }
    image_of(blobs)
}

pub(crate) async fn push(client: &Client, name: &Reference, image: &PushImage) -> Descriptor {
    let digest = image.manifest.digest();
    push_image(client, &name.with_digest(digest), image, Arc::new(Silent))
        .await
        .unwrap();
    image.manifest.descriptor()
}

/// An index of images for amd64 and arm64 under `name`, with a signature on the index and one on that.
pub(crate) async fn publish(client: &Client, name: &Reference) -> Digest {
    let (big, small) = (noise(1, 300_000), noise(2, 1000));
    let layers: [&[(&str, &[u8])]; 2] = [
        &[("gzip", &big), ("zstd", &small)],
        &[("gzip", &small), ("none", &small)],
    ];
    let mut entries = Vec::new();
    for (architecture, layers) in ["amd64", "arm64"].iter().zip(layers) {
        let mut entry = push(client, name, &image(architecture, layers)).await;
        entry.platform = Some(platform(architecture));
        entries.push(entry);
    }
    let index = RawManifest::from(Index::new(entries));
    client.put_manifest(name, &index).await.unwrap();
    let first = attach(client, name, &index.descriptor(), "application/x.signature").await;
    attach(client, name, &first, "application/x.receipt").await;
    index.digest()
}

async fn attach(client: &Client, name: &Reference, about: &Descriptor, kind: &str) -> Descriptor {
    let attachment = Attachment {
        artifact_type: kind.to_owned(),
        files: Vec::new(),
        annotations: [("of".to_owned(), about.digest.to_string())].into(),
        subject: Some(about.clone()),
    };
    let tree = artifact("attached", &attachment).unwrap();
    let descriptor = tree.root_manifest().descriptor();
    let to = name.with_digest(tree.root());
    write(&tree, &registry(client, &to)).await.unwrap();
    descriptor
}

pub(crate) fn registry(client: &Client, reference: &Reference) -> Target {
    Target::Registry {
        client: client.clone(),
        reference: reference.clone(),
        tags: Vec::new(),
        force: false,
    }
}

async fn write(tree: &Tree, target: &Target) -> Result<CopyReport, CopyError> {
    copy::write(tree, target, Arc::new(Silent)).await
}

pub(crate) async fn read(client: &Client, text: &str, wanted: &Wanted) -> Result<Tree, CopyError> {
    let place: Place = text.parse()?;
    let source = Source::open(client, &place).await?;
    Tree::read(&source, wanted).await
}

pub(crate) fn everything() -> Wanted {
    Wanted {
        referrers: true,
        ..Wanted::default()
    }
}

/// Both receipts: the types of all that is about a tree.
fn about(tree: &Tree) -> Vec<String> {
    let kinds = tree.referrers().iter().map(|(_, raw)| match raw.parsed() {
        ParsedManifest::Image(image) => image.artifact_type.clone().unwrap(),
        ParsedManifest::Index(_) => panic!("an index is about nothing here"),
    });
    let mut kinds: Vec<String> = kinds.collect();
    kinds.sort();
    kinds
}

fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("the tests need {program}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Round the whole circle, and every step is the same image: Debian's registry, ours, a layout, an archive, and back.
#[tokio::test]
async fn what_is_copied_is_the_same_everywhere() {
    let (debian, ours) = (
        Debian::start(None),
        RunningServer::start_in_memory().unwrap(),
    );
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(options()).unwrap();
    let first = debian.reference("team/web:1");
    let digest = publish(&client, &first).await;
    let to_ours: Reference = format!("{}/copied:1", ours.host()).parse().unwrap();
    let layout = folder.path().join("layout");
    let file = folder.path().join("web.tar");
    let back = debian.reference("elsewhere/web:2");
    let steps = [
        (first.to_string(), registry(&client, &to_ours)),
        (
            to_ours.to_string(),
            Target::Layout {
                path: layout.clone(),
                name: Some("1".to_owned()),
            },
        ),
        (
            format!("oci:{}:1", layout.display()),
            Target::Archive {
                to: ArchiveOut::File(file.clone()),
                names: vec!["1".to_owned()],
                docker: false,
            },
        ),
        (
            format!("oci-archive:{}:1", file.display()),
            registry(&client, &back),
        ),
    ];
    for (from, to) in &steps {
        let tree = read(&client, from, &everything()).await.unwrap();
        let kinds = ["application/x.receipt", "application/x.signature"];
        assert_eq!(
            (tree.root(), about(&tree)),
            (digest, kinds.map(str::to_owned).to_vec()),
            "{from}"
        );
        let report = write(&tree, to).await.unwrap();
        assert_eq!(report.digest, digest);
        // Two images of two layers each, one layer of no compression, one configuration each, and one empty blob.
        assert_eq!(report.copied + report.mounted, 7, "{from}: {report:?}");
        // What is there is not moved again.
        if !matches!(to, Target::Archive { .. }) {
            let again = write(&tree, to).await.unwrap();
            assert_eq!(
                (again.copied, again.bytes, again.existed),
                (0, 0, 7),
                "{from}"
            );
        }
    }
    let last = read(&client, &back.to_string(), &everything())
        .await
        .unwrap();
    assert_eq!((last.root(), about(&last).len()), (digest, 2));
    // Within one registry nothing moves at all.
    let mounted = debian.reference("mounted/web:3");
    let report = write(&last, &registry(&client, &mounted)).await.unwrap();
    assert_eq!((report.copied, report.mounted), (0, 7), "{report:?}");
}

#[tokio::test]
async fn skopeo_and_umoci_take_what_is_written_and_give_what_is_read() {
    let ours = RunningServer::start_in_memory().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let client = Client::new(options()).unwrap();
    let name: Reference = format!("{}/web:1", ours.host()).parse().unwrap();
    let digest = publish(&client, &name).await;
    let tree = read(&client, &name.to_string(), &Wanted::default())
        .await
        .unwrap();
    let target = Target::Archive {
        to: ArchiveOut::File(path("ours.tar").into()),
        names: vec!["1".to_owned()],
        docker: false,
    };
    write(&tree, &target).await.unwrap();
    // Theirs of ours, and ours of theirs.
    let (from, to) = (
        format!("oci-archive:{}:1", path("ours.tar")),
        format!("oci:{}:1", path("theirs")),
    );
    tool(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--all",
            "--preserve-digests",
            "-q",
            &from,
            &to,
        ],
    );
    let theirs = read(&client, &to, &Wanted::default()).await.unwrap();
    assert_eq!(theirs.root(), digest);
    let back: Reference = format!("{}/back:1", ours.host()).parse().unwrap();
    let target = format!("docker://{back}");
    let plain = [
        "copy",
        "--insecure-policy",
        "--all",
        "--preserve-digests",
        "-q",
        "--dest-tls-verify=false",
    ];
    tool("skopeo", &[&plain[..], &[&to, &target]].concat());
    assert_eq!(client.resolve(&back).await.unwrap().digest, digest);
    // One platform of several, in a layout that umoci unpacks.
    let arm = Wanted {
        platforms: vec![platform("arm64")],
        ..Wanted::default()
    };
    let tree = read(&client, &name.to_string(), &arm).await.unwrap();
    assert!(matches!(
        tree.root_manifest().parsed(),
        ParsedManifest::Image(_)
    ));
    let target = Target::Layout {
        path: path("arm").into(),
        name: Some("1".to_owned()),
    };
    write(&tree, &target).await.unwrap();
    let image = format!("{}:1", path("arm"));
    tool(
        "umoci",
        &["unpack", "--rootless", "--image", &image, &path("bundle")],
    );
    let unpacked = folder.path().join("bundle/rootfs/arm64-0");
    assert_eq!(std::fs::read(unpacked).unwrap(), noise(2, 1000));
}

#[tokio::test]
async fn docker_archives_go_both_ways() {
    let ours = RunningServer::start_in_memory().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let client = Client::new(options()).unwrap();
    let name: Reference = format!("{}/web:1", ours.host()).parse().unwrap();
    publish(&client, &name).await;
    let amd = Wanted {
        platforms: vec![platform("amd64")],
        ..Wanted::default()
    };
    let tree = read(&client, &name.to_string(), &amd).await.unwrap();
    let target = Target::Archive {
        to: ArchiveOut::File(path("ours.tar").into()),
        names: vec!["team/web:1".to_owned()],
        docker: true,
    };
    write(&tree, &target).await.unwrap();
    // Theirs is of docker's old form: layers uncompressed, named by paths.
    let (from, to) = (
        format!("docker-archive:{}:team/web:1", path("ours.tar")),
        format!("docker-archive:{}:team/web:2", path("theirs.tar")),
    );
    tool("skopeo", &["copy", "--insecure-policy", "-q", &from, &to]);
    let theirs = read(&client, &to, &Wanted::default()).await.unwrap();
    let config = |tree: &Tree| match tree.root_manifest().parsed() {
        ParsedManifest::Image(image) => (image.config.digest, image.layers.len()),
        ParsedManifest::Index(_) => panic!("one image"),
    };
    assert_eq!(config(&theirs).1, 2);
    let back: Reference = format!("{}/back:1", ours.host()).parse().unwrap();
    write(&theirs, &registry(&client, &back)).await.unwrap();
    let image = client.image(&back, &platform("amd64")).await.unwrap();
    let diff_ids: Vec<Digest> = image.config.rootfs.diff_ids.iter().map(|id| id.0).collect();
    let layers: Vec<Digest> = image.layers().iter().map(|layer| layer.digest).collect();
    assert_eq!(layers, diff_ids, "plain tars are their own DiffIDs");
    let index = Target::Archive {
        to: ArchiveOut::File(path("index.tar").into()),
        names: Vec::new(),
        docker: true,
    };
    let whole = read(&client, &name.to_string(), &Wanted::default())
        .await
        .unwrap();
    let error = write(&whole, &index).await.unwrap_err();
    assert!(matches!(error, CopyError::Unfit { .. }), "{error}");
    assert!(!Path::new(&path("index.tar")).exists());
}

#[tokio::test]
async fn platforms_are_chosen_and_attestations_stay_with_theirs() {
    let ours = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let name: Reference = format!("{}/web:1", ours.host()).parse().unwrap();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64", "riscv64"] {
        let mut entry = push(&client, &name, &image(architecture, &[("gzip", b"x")])).await;
        entry.platform = Some(platform(architecture));
        let about = (
            "vnd.docker.reference.digest".to_owned(),
            entry.digest.to_string(),
        );
        let mut proof = push(
            &client,
            &name,
            &image("unknown", &[("none", architecture.as_bytes())]),
        )
        .await;
        proof.annotations = Some([about].into());
        proof.platform = Some(Platform {
            os: "unknown".to_owned(),
            ..platform("unknown")
        });
        entries.extend([entry, proof]);
    }
    let index = RawManifest::from(Index::new(entries.clone()));
    client.put_manifest(&name, &index).await.unwrap();
    let check = async |platforms: &[&str]| {
        let wanted = Wanted {
            platforms: platforms.iter().map(|name| platform(name)).collect(),
            ..Wanted::default()
        };
        read(&client, &name.to_string(), &wanted).await
    };
    let two = check(&["riscv64", "amd64"]).await.unwrap();
    let ParsedManifest::Index(kept) = two.root_manifest().parsed() else {
        panic!("an index");
    };
    let expected = [&entries[0..2], &entries[4..6]].concat();
    assert_eq!(kept.manifests, expected);
    assert_eq!(two.images().count(), 4);
    let error = check(&["s390x"]).await.unwrap_err().to_string();
    assert!(
        error.contains("no image for linux/s390x: it has linux/amd64, linux/arm64"),
        "{error}"
    );
    let one = check(&["arm64"]).await.unwrap();
    assert_eq!(one.root(), entries[2].digest);
}

#[tokio::test]
async fn foreign_layers_stay_where_they_are() {
    let ours = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let name: Reference = format!("{}/windows:1", ours.host()).parse().unwrap();
    let mut pushed = image("amd64", &[("gzip", b"mine")]);
    let ParsedManifest::Image(manifest) = pushed.manifest.parsed() else {
        panic!("an image");
    };
    let mut manifest = (**manifest).clone();
    let mut foreign = Descriptor::of(
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        b"elsewhere",
    );
    foreign.urls = vec!["https://example.com/layer".to_owned()];
    manifest.layers.insert(0, foreign);
    pushed.manifest = RawManifest::from(manifest);
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("layout");
    let place = format!("oci:{}", layout.display());
    push_image(
        &client,
        &name,
        &image("amd64", &[("gzip", b"mine")]),
        Arc::new(Silent),
    )
    .await
    .unwrap();
    let put = client.put_manifest(&name, &pushed.manifest).await;
    put.unwrap();
    let tree = read(&client, &name.to_string(), &Wanted::default())
        .await
        .unwrap();
    assert_eq!(tree.blobs().count(), 2);
    let target = Target::Layout {
        path: layout,
        name: None,
    };
    write(&tree, &target).await.unwrap();
    let tree = read(&client, &place, &Wanted::default()).await.unwrap();
    assert_eq!(tree.root(), pushed.manifest.digest());
    let wanted = Wanted {
        foreign: true,
        ..Wanted::default()
    };
    let error = read(&client, &place, &wanted).await.unwrap_err();
    assert!(matches!(error, CopyError::Missing { .. }), "{error}");
}

#[tokio::test]
async fn tags_go_alone_also_where_the_registry_cannot() {
    let debian = Debian::start(None);
    let ours = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let ours: Reference = format!("{}/web:old", ours.host()).parse().unwrap();
    for name in [debian.reference("web:old"), ours] {
        let pushed = image("amd64", &[("gzip", b"x")]);
        push_image(&client, &name, &pushed, Arc::new(Silent))
            .await
            .unwrap();
        let kept = name.with_tag("kept").unwrap();
        client.put_manifest(&kept, &pushed.manifest).await.unwrap();
        client.remove_tag(&name).await.unwrap();
        let gone = client.manifest(&name).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{name}: {gone}");
        let digest = client.resolve(&kept).await.unwrap().digest;
        assert_eq!(digest, pushed.manifest.digest(), "{name}");
    }
}

/// Layouts and archives that lie: each is a clear error, and nothing of it reaches the target.
#[tokio::test]
async fn hostile_layouts_are_refused() {
    let client = Client::new(options()).unwrap();
    let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let digest = Digest::of(b"{}");
    let index = |body: &str| format!(r#"{{"schemaVersion":2,"manifests":[{body}]}}"#);
    let entry = |digest: &Digest, size: u64| {
        format!(
            r#"{{"mediaType":"{}","digest":"{digest}","size":{size}}}"#,
            MediaType::OCI_MANIFEST
        )
    };
    let check = async |files: &[(&str, &[u8])], part: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.tar");
        let mut bytes = Vec::new();
        let mut tar = TarOutput::new(&mut bytes);
        for (path, content) in files {
            tar.add_file(path, content.len() as u64, &mut &content[..])
                .unwrap();
            let to = folder.path().join("layout").join(path);
            if !path.contains("..") {
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::write(to, content).unwrap();
            }
        }
        tar.finish().unwrap();
        std::fs::write(&file, &bytes).unwrap();
        let mut places = vec![format!("oci-archive:{}", file.display())];
        if files.iter().all(|(path, _)| !path.contains("..")) {
            places.push(format!("oci:{}", folder.path().join("layout").display()));
        }
        for place in places {
            let error = read(&client, &place, &Wanted::default()).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(part), "{place}: {text}");
        }
    };
    let blob = format!("blobs/sha256/{}", digest.hex());
    let good = index(&entry(&digest, 2));
    check(
        &[("oci-layout", marker), ("index.json", b"[")],
        "index.json",
    )
    .await;
    check(
        &[("oci-layout", marker), ("index.json", index("").as_bytes())],
        "lists no image",
    )
    .await;
    check(
        &[("oci-layout", marker), ("index.json", good.as_bytes())],
        "is missing",
    )
    .await;
    let wrong: [(&str, &[u8]); 3] = [
        ("oci-layout", marker),
        ("index.json", good.as_bytes()),
        (&blob, b"[]"),
    ];
    check(&wrong, "has digest").await;
    let right: [(&str, &[u8]); 3] = [
        ("oci-layout", marker),
        ("index.json", good.as_bytes()),
        (&blob, b"{}"),
    ];
    check(&right, "is not valid").await;
    let huge = index(&entry(&digest, 1 << 40));
    check(
        &[
            ("oci-layout", marker),
            ("index.json", huge.as_bytes()),
            (&blob, b"{}"),
        ],
        "more than",
    )
    .await;
    check(
        &[
            ("oci-layout", marker),
            ("index.json", good.as_bytes()),
            ("../../etc/x", b""),
        ],
        "leads out",
    )
    .await;
}

#[tokio::test]
async fn a_source_that_lies_leaves_nothing() {
    // The first registry has other bytes than the digest says: they lie in its folder.
    let debian = Debian::start(None);
    let ours = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let name = debian.reference("web:1");
    let pushed = image("amd64", &[("none", &noise(5, 100_000))]);
    push_image(&client, &name, &pushed, Arc::new(Silent))
        .await
        .unwrap();
    let layer = pushed.blobs[1].0.clone();
    let data = debian.blob_data(&layer.digest);
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[50_000] ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    let tree = read(&client, &name.to_string(), &Wanted::default())
        .await
        .unwrap();
    let to: Reference = format!("{}/web:1", ours.host()).parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.tar");
    let targets = [
        registry(&client, &to),
        Target::Archive {
            to: ArchiveOut::File(path.clone()),
            names: Vec::new(),
            docker: false,
        },
        Target::Layout {
            path: folder.path().join("layout"),
            name: None,
        },
    ];
    for target in targets {
        let error = write(&tree, &target).await.unwrap_err().to_string();
        assert!(
            error.contains("digest") || error.contains("cannot read"),
            "{error}"
        );
    }
    assert_eq!(
        client.manifest(&to).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(client.blob_exists(&to, &layer.digest).await.unwrap(), None);
    assert!(!path.exists());
    let blob = format!("layout/blobs/sha256/{}", layer.digest.hex());
    assert!(!folder.path().join(blob).exists());
    assert!(!folder.path().join("layout/index.json").exists());
}
