//! Debian's docker-registry 2.8.2, as most people still run it.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry_client::{
    BlobSource, Client, ClientError, Credential, ErrorKind, Keychain, Options, Pushed, pull_layers,
    push_image,
};
use store::oci::{Descriptor, Digest, Index, MediaType, RawManifest, Reference};

use crate::support::{Counted, amd64, image, noise, options};

/// A docker-registry on a port of its own, stopped when dropped.
pub(crate) struct Debian {
    child: Child,
    pub(crate) host: String,
    folder: tempfile::TempDir,
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Debian {
    pub(crate) fn start(auth: Option<&str>) -> Debian {
        let folder = tempfile::tempdir().unwrap();
        // The kernel chooses the port; another process may take it in between, so the start is tried again.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let config = folder.path().join("config.yml");
            let mut text = format!(
                "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: for-tests\n",
                folder.path().join("data").display()
            );
            if let Some(htpasswd) = auth {
                let path = folder.path().join("htpasswd");
                std::fs::write(&path, htpasswd).unwrap();
                text += &format!(
                    "auth:\n  htpasswd:\n    realm: tests\n    path: {}\n",
                    path.display()
                );
            }
            std::fs::write(&config, text).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("the tests need Debian's docker-registry");
            if listens(&mut child, port) {
                let host = format!("127.0.0.1:{port}");
                return Debian {
                    child,
                    host,
                    folder,
                };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start");
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.host).parse().unwrap()
    }

    /// Where its folder has a blob's bytes.
    pub(crate) fn blob_data(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        let blobs = "data/docker/registry/v2/blobs";
        let path = format!("{blobs}/{}/{}/{hex}/data", digest.algorithm(), &hex[..2]);
        self.folder.path().join(path)
    }

    fn client(&self, options: Options) -> Client {
        Client::new(options).unwrap()
    }
}

/// Waits until the port answers, or the process ends.
fn listens(child: &mut Child, port: u16) -> bool {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return child.try_wait().unwrap().is_none();
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::yield_now();
    }
    false
}

async fn pull_all(client: &Client, reference: &Reference) -> Vec<Vec<u8>> {
    let image = client.image(reference, &amd64()).await.unwrap();
    let progress = Arc::new(Counted::default());
    let layers = pull_layers(
        client,
        reference,
        image.layers(),
        progress.clone(),
        |_, descriptor, mut reader| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            assert_eq!(Digest::of(&bytes), descriptor.digest);
            Ok::<_, std::io::Error>(bytes)
        },
    );
    let layers = layers.await.unwrap();
    for layer in image.layers() {
        assert_eq!(
            progress.of(layer.digest),
            Some((layer.size, layer.size, true))
        );
    }
    layers
}

#[tokio::test]
async fn pushes_and_pulls() {
    let debian = Debian::start(None);
    let client = debian.client(options());
    let reference = debian.reference("team/app:1");
    let layers = vec![noise(1, 3_000_000), Vec::new(), noise(2, 70_000)];
    let pushed = image(&layers);

    let error = client.manifest(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");

    let progress = Arc::new(Counted::default());
    let report = push_image(&client, &reference, &pushed, progress.clone())
        .await
        .unwrap();
    assert_eq!(report.digest, pushed.manifest.digest());
    assert_eq!((report.uploaded, report.mounted, report.existed), (4, 0, 0));
    let layer = Digest::of(&layers[0]);
    assert_eq!(progress.of(layer), Some((3_000_000, 3_000_000, true)));

    let again = push_image(&client, &reference, &pushed, progress.clone())
        .await
        .unwrap();
    assert_eq!((again.uploaded, again.mounted, again.existed), (0, 0, 4));

    // A new client: nothing is remembered.
    let client = debian.client(options());
    assert_eq!(pull_all(&client, &reference).await, layers);
    let by_digest = reference.with_digest(report.digest);
    assert_eq!(
        client.manifest(&by_digest).await.unwrap().bytes(),
        pushed.manifest.bytes()
    );
    let resolved = client.resolve(&reference).await.unwrap();
    assert_eq!(resolved.digest, report.digest);
    assert_eq!(resolved.size, pushed.manifest.bytes().len() as u64);
    assert_eq!(
        client.blob_exists(&reference, &layer).await.unwrap(),
        Some(3_000_000)
    );
    assert_eq!(
        client
            .blob_exists(&reference, &Digest::of(b"no"))
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn mounts_from_another_repository() {
    let debian = Debian::start(None);
    let client = debian.client(options());
    let mut pushed = image(&[noise(3, 100_000)]);
    let progress = Arc::new(Counted::default());
    let from = debian.reference("from/app:1");
    push_image(&client, &from, &pushed, progress.clone())
        .await
        .unwrap();
    // The first has none of the blobs: its session is cancelled.
    pushed.mount_from = vec!["nothing/here".to_owned(), "from/app".to_owned()];
    let to = debian.reference("to/app:1");
    let report = push_image(&client, &to, &pushed, progress).await.unwrap();
    assert_eq!((report.uploaded, report.mounted, report.existed), (0, 2, 0));
    // A mount that is not granted leaves a session that is used.
    pushed.mount_from = vec!["nothing/here".to_owned()];
    let last = debian.reference("last/app:1");
    let report = push_image(&client, &last, &pushed, Arc::new(Counted::default()))
        .await
        .unwrap();
    assert_eq!((report.uploaded, report.mounted, report.existed), (2, 0, 0));
}

#[tokio::test]
async fn files_are_streamed() {
    let debian = Debian::start(None);
    let client = debian.client(options());
    let reference = debian.reference("files:1");
    let bytes = noise(4, 5_000_000);
    let path = debian.folder.path().join("blob");
    std::fs::write(&path, &bytes).unwrap();
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let push = |source: &Path, descriptor: &Descriptor| {
        let (client, reference, descriptor) =
            (client.clone(), reference.clone(), descriptor.clone());
        let source = BlobSource::File(source.to_owned());
        async move {
            let progress = Arc::new(Counted::default());
            client
                .push_blob(&reference, &descriptor, source, &[], progress)
                .await
        }
    };
    assert_eq!(push(&path, &descriptor).await.unwrap(), Pushed::Uploaded);
    assert_eq!(push(&path, &descriptor).await.unwrap(), Pushed::Existed);
    // A file that is not what its descriptor says is found out before or by the server, and never retried for ever.
    let other = Descriptor::of(MediaType::OCI_LAYER, b"other");
    let error = push(&path, &other).await.unwrap_err();
    assert!(matches!(error, ClientError::Source { .. }), "{error}");
    let mut wrong = Descriptor::of(MediaType::OCI_LAYER, b"wrong");
    wrong.size = 5_000_000;
    let error = push(&path, &wrong).await.unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    let error = push(Path::new("/nowhere/at-all"), &other)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local, "{error}");
}

#[tokio::test]
async fn chunks_are_taken_in_order() {
    let debian = Debian::start(None);
    let mut options = options();
    options.chunk_bytes = 100_000;
    let client = debian.client(options);
    // Chunks come after a cut; here the whole way is forced by a source that is short of its first attempt.
    let reference = debian.reference("chunks:1");
    let bytes = noise(5, 1_000_001);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let proxy = crate::support::cut_once(&debian.host, 400_000);
    let through: Reference = format!("{proxy}/chunks:1").parse().unwrap();
    let progress = Arc::new(Counted::default());
    let source = BlobSource::Bytes(bytes.clone().into());
    let pushed = client
        .push_blob(&through, &descriptor, source, &[], progress.clone())
        .await
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(
        progress.of(descriptor.digest),
        Some((1_000_001, 1_000_001, true))
    );
    let read = client
        .read_small(&reference, &descriptor, 2_000_000)
        .await
        .unwrap();
    assert_eq!(read, bytes);
}

#[tokio::test]
async fn indexes_are_chosen_from() {
    let debian = Debian::start(None);
    let client = debian.client(options());
    let reference = debian.reference("multi:1");
    let pushed = image(&[noise(6, 1000)]);
    let by_digest = reference.with_digest(pushed.manifest.digest());
    push_image(&client, &by_digest, &pushed, Arc::new(Counted::default()))
        .await
        .unwrap();
    let mut entry = pushed.manifest.descriptor();
    entry.platform = Some(amd64());
    let index = RawManifest::from(Index::new(vec![entry]));
    client.put_manifest(&reference, &index).await.unwrap();

    let image = client.image(&reference, &amd64()).await.unwrap();
    assert_eq!(image.manifest.digest(), pushed.manifest.digest());
    assert_eq!(image.index.unwrap().bytes(), index.bytes());
    let mut arm = amd64();
    arm.architecture = "arm64".to_owned();
    let error = client.image(&reference, &arm).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` has no image for linux/arm64: it has linux/amd64",
            reference.familiar()
        )
    );
}

#[tokio::test]
async fn lists_and_deletes() {
    let debian = Debian::start(None);
    let client = debian.client(options());
    let pushed = image(&[]);
    for tag in ["b", "a", "c"] {
        let reference = debian.reference(&format!("listed:{tag}"));
        push_image(&client, &reference, &pushed, Arc::new(Counted::default()))
            .await
            .unwrap();
    }
    let reference = debian.reference("listed");
    // This version lists tags in no order.
    let mut tags = client.tags(&reference).await.unwrap();
    tags.sort();
    assert_eq!(tags, ["a", "b", "c"]);
    assert_eq!(client.catalog(&debian.host).await.unwrap(), ["listed"]);
    let digest = pushed.manifest.digest();
    // Neither the endpoint nor a fallback tag is there.
    assert_eq!(
        client.referrers(&reference, &digest, None).await.unwrap(),
        []
    );
    client
        .delete_manifest(&reference.with_digest(digest))
        .await
        .unwrap();
    let error = client
        .manifest(&debian.reference("listed:a"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let error = client.tags(&debian.reference("no/such")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn passwords() {
    // `user` with password `open sesame`, bcrypt at its cheapest.
    let hash = "user:$2y$04$HXUBGaXVRzodIQ59tneY8ekDV0JLjliMSBKtxUccvN7voB93NLc42\n";
    let debian = Debian::start(Some(hash));
    let right = Credential::Basic {
        username: "user".to_owned(),
        password: "open sesame".to_owned(),
    };
    let wrong = Credential::Basic {
        username: "user".to_owned(),
        password: "hunter2".to_owned(),
    };
    let nobody = debian.client(options());
    nobody.check_login(&debian.host, &right).await.unwrap();
    let error = nobody.check_login(&debian.host, &wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    let reference = debian.reference("private:1");
    let error = nobody.manifest(&reference).await.unwrap_err();
    assert!(error.to_string().contains("anonymous"), "{error}");
    let hint = error.hint().unwrap();
    assert_eq!(
        hint,
        format!("log in with `longshore login {}`", debian.host)
    );

    // By way of the file, as `login` writes it.
    let path = debian.folder.path().join("config.json");
    let mut file = registry_client::DockerConfig::read(&path).unwrap();
    file.store(&debian.host, &right).unwrap();
    file.write().unwrap();
    let mut known = options();
    known.keychain = Keychain::files([debian.folder.path().join("missing.json"), path]);
    let client = debian.client(known);
    let layers = vec![noise(7, 200_000)];
    let mut pushed = image(&layers);
    pushed.mount_from = vec!["other".to_owned()];
    push_image(&client, &reference, &pushed, Arc::new(Counted::default()))
        .await
        .unwrap();
    assert_eq!(pull_all(&client, &reference).await, layers);
}

#[tokio::test]
async fn nobody_listens() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let client = Client::new(options()).unwrap();
    let reference: Reference = format!("127.0.0.1:{port}/x").parse().unwrap();
    let error = client.manifest(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert_eq!(
        error.hint().unwrap(),
        format!("is the registry at `127.0.0.1:{port}` running?")
    );
}
