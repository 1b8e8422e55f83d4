//! One suite for every storage.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use registry_server::routes::{RepositoryName, UploadId};
use registry_server::storage::disk::DiskStorage;
use registry_server::storage::memory::MemoryStorage;
use registry_server::storage::objects::ObjectStorage;
use registry_server::storage::{
    Blob, BlobSource, MountSource, RegistryStorage, TagCondition, TagMatch, TagRemoval,
    VerifiedManifest, VerifiedUpload,
};
use store::oci::{Digest, MediaType};

fn on_all(test: impl Fn(&dyn RegistryStorage)) {
    let root = tempfile::tempdir().unwrap();
    test(&DiskStorage::open(root.path()).unwrap());
    test(&MemoryStorage::default());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    test(&in_bucket(Arc::new(InMemory::new()), &runtime));
}

/// A registry in a bucket, below a prefix.
pub(crate) fn in_bucket(
    store: Arc<impl ObjectStore + MultipartStore>,
    runtime: &tokio::runtime::Runtime,
) -> ObjectStorage {
    ObjectStorage::open(store, "team/images", runtime.handle().clone()).unwrap()
}

fn name(text: &str) -> RepositoryName {
    RepositoryName::parse(text).unwrap()
}

fn upload(storage: &dyn RegistryStorage, repository: &RepositoryName, bytes: &[u8]) -> UploadId {
    let id = storage.create_upload(repository).unwrap();
    let data = storage.upload(repository, &id).unwrap().unwrap();
    data.write_at(bytes, 0).unwrap();
    data.flush().unwrap();
    id
}

fn put(storage: &dyn RegistryStorage, repository: &RepositoryName, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let id = upload(storage, repository, bytes);
    let data = storage.upload(repository, &id).unwrap().unwrap();
    let verified = VerifiedUpload::check(id, bytes.len() as u64, digest, digest)
        .unwrap()
        .with_tail(data.take_tail());
    storage.commit_upload(repository, &verified).unwrap();
    digest
}

fn content(blob: &Blob) -> Vec<u8> {
    match &blob.source {
        BlobSource::Bytes(bytes) => bytes.to_vec(),
        BlobSource::File(file) => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut Arc::clone(file), &mut bytes).unwrap();
            bytes
        }
        BlobSource::Remote(remote) => {
            let read = async {
                let pieces: Vec<Bytes> = remote.stream(0..blob.size).try_collect().await?;
                Ok::<_, std::io::Error>(pieces.concat())
            };
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(read).unwrap()
        }
    }
}

#[test]
fn proofs_exist_only_for_what_was_hashed() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    assert!(VerifiedUpload::check(UploadId::random(), 1, a, b).is_none());
    assert!(VerifiedManifest::check(Bytes::from_static(b"a"), String::new(), b).is_none());
}

#[test]
fn blobs_belong_to_repositories() {
    on_all(|storage| {
        let (a, b) = (name("a"), name("b/c"));
        let digest = put(storage, &a, b"bytes");
        assert_eq!(
            content(&storage.blob(&a, &digest).unwrap().unwrap()),
            b"bytes"
        );
        assert_eq!(storage.blob_size(&a, &digest).unwrap(), Some(5));
        assert!(storage.blob(&b, &digest).unwrap().is_none());
        fn mount(
            storage: &dyn RegistryStorage,
            (to, digest): (&RepositoryName, &Digest),
            from: MountSource<'_>,
        ) -> bool {
            storage.mount_blob(to, digest, from).unwrap()
        }
        let anyone = MountSource::Any(&|_| true);
        let (x, no) = (name("x"), Digest::of(b"no"));
        assert!(!mount(storage, (&b, &digest), MountSource::Repository(&x)));
        assert!(!mount(storage, (&b, &no), anyone));
        // Where the only owner may not be pulled from, it is as if nobody had it.
        assert!(!mount(
            storage,
            (&b, &digest),
            MountSource::Any(&|owner| *owner != a)
        ));
        assert!(storage.blob_size(&b, &digest).unwrap().is_none());
        assert!(mount(storage, (&b, &digest), MountSource::Repository(&a)));
        assert!(storage.remove_blob(&a, &digest).unwrap());
        assert!(!storage.remove_blob(&a, &digest).unwrap());
        assert!(storage.blob(&a, &digest).unwrap().is_none());
        // One that is being read stays readable; one that others have stays.
        let blob = storage.blob(&b, &digest).unwrap().unwrap();
        put(storage, &b, b"bytes");
        assert_eq!(content(&blob), b"bytes");
        assert!(mount(storage, (&a, &digest), anyone));
        for owner in [&a, &b] {
            assert!(storage.remove_blob(owner, &digest).unwrap());
        }
        // What nobody has any more is not given out, though its bytes may still be there.
        assert!(!mount(storage, (&a, &digest), anyone));
    });
}

#[test]
fn uploads_are_private_until_committed() {
    on_all(|storage| {
        let a = name("a");
        let id = upload(storage, &a, b"12345");
        assert!(storage.upload(&name("b"), &id).unwrap().is_none());
        assert!(storage.tags(&a).unwrap().is_none());
        let data = storage.upload(&a, &id).unwrap().unwrap();
        data.write_at(b"67", 5).unwrap();
        assert_eq!(data.size().unwrap(), 7);
        data.flush().unwrap();
        data.truncate(6).unwrap();
        let (mut buffer, mut read) = ([0; 10], 1);
        // It may take several calls.
        for _ in 0..5 {
            read += data.read_at(&mut buffer[read..], read as u64).unwrap();
        }
        assert_eq!((read, &buffer[1..6]), (6, &b"23456"[..]));
        assert!(storage.cancel_upload(&a, &id).unwrap());
        assert!(!storage.cancel_upload(&a, &id).unwrap());
        assert!(storage.upload(&a, &id).unwrap().is_none());
        let id = upload(storage, &a, b"");
        assert_eq!(storage.purge_uploads(Duration::from_secs(3600)).unwrap(), 0);
        assert!(storage.upload(&a, &id).unwrap().is_some());
        assert_eq!(storage.purge_uploads(Duration::ZERO).unwrap(), 1);
        assert!(storage.upload(&a, &id).unwrap().is_none());
    });
}

#[test]
fn manifests_tags_and_referrers() {
    on_all(|storage| {
        let a = name("a");
        let manifest = |text: &'static str, media_type: &str| {
            let bytes = Bytes::from_static(text.as_bytes());
            VerifiedManifest::check(bytes, media_type.to_owned(), Digest::of(text.as_bytes()))
                .unwrap()
        };
        let subject = Digest::of(b"subject");
        let one = manifest(r#"{"config":{}}"#, MediaType::OCI_MANIFEST);
        // A type that the bytes do not tell.
        let two = manifest("{}", "application/vnd.example+json");
        storage.put_manifest(&a, &one, None).unwrap();
        storage.put_manifest(&a, &two, Some(&subject)).unwrap();
        for manifest in [&one, &two] {
            let digest = manifest.digest();
            assert_eq!(
                storage.manifest(&a, digest).unwrap().as_ref(),
                Some(manifest)
            );
            assert!(storage.has_manifest(&a, digest).unwrap());
            assert!(!storage.has_manifest(&name("b"), digest).unwrap());
        }
        assert_eq!(storage.referrers(&a, &subject).unwrap(), [*two.digest()]);
        assert_eq!(storage.referrers(&a, one.digest()).unwrap(), []);
        assert_eq!(storage.tags(&a).unwrap(), Some(Vec::new()));
        for (tag, manifest) in [
            ("t", &one),
            ("t", &two),
            ("s", &one),
            ("t", &one),
            ("u", &two),
        ] {
            let set = storage
                .set_tag(&a, tag, manifest.digest(), &TagCondition::default())
                .unwrap();
            assert!(set);
            assert_eq!(
                storage.tag(&a, tag).unwrap().as_ref(),
                Some(manifest.digest())
            );
        }
        assert_eq!(
            storage.tags(&a).unwrap().unwrap(),
            ["s".to_owned(), "t".to_owned(), "u".to_owned()]
        );
        let remove = |tag| {
            storage
                .remove_tag(&a, tag, &TagCondition::default())
                .unwrap()
        };
        assert_eq!(remove("s"), TagRemoval::Removed);
        assert_eq!(remove("s"), TagRemoval::Absent);
        assert!(storage.remove_manifest(&a, one.digest()).unwrap());
        assert!(!storage.remove_manifest(&a, one.digest()).unwrap());
        assert_eq!(storage.tags(&a).unwrap().unwrap(), ["u".to_owned()]);
        assert!(storage.manifest(&a, one.digest()).unwrap().is_none());
        // Put again as another type, the bytes are what was said last.
        let again = manifest("{}", "application/octet-stream");
        storage.put_manifest(&a, &again, None).unwrap();
        assert_eq!(storage.manifest(&a, again.digest()).unwrap(), Some(again));
    });
}

#[test]
fn tags_change_only_where_their_condition_holds() {
    let (one, two, three) = (Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"3"));
    let of = |digests: &[Digest]| Some(TagMatch::Of(digests.to_vec()));
    let anything = || Some(TagMatch::Anything);
    // Condition on, condition not on, and whether it holds of a tag on `one`, and of none.
    let table = [
        (None, None, true, true),
        (anything(), None, true, false),
        (of(&[one]), None, true, false),
        (of(&[two, one]), None, true, false),
        (of(&[two]), None, false, false),
        (of(&[]), None, false, false),
        (None, anything(), false, true),
        (None, of(&[one]), false, true),
        (None, of(&[two]), true, true),
        (None, of(&[]), true, true),
        (anything(), of(&[two]), true, false),
        (of(&[one]), anything(), false, false),
    ];
    on_all(|storage| {
        let a = name("a");
        for (on, not_on, of_one, of_none) in table.clone() {
            let condition = TagCondition { on, not_on };
            for (there, holds) in [(true, of_one), (false, of_none)] {
                let reset = || {
                    if there {
                        let any = TagCondition::default();
                        assert!(storage.set_tag(&a, "t", &one, &any).unwrap());
                    } else {
                        storage
                            .remove_tag(&a, "t", &TagCondition::default())
                            .unwrap();
                    }
                };
                let before = there.then_some(one);
                reset();
                let set = storage.set_tag(&a, "t", &three, &condition).unwrap();
                assert_eq!(set, holds, "{condition:?} {there}");
                let after = if holds { Some(three) } else { before };
                assert_eq!(storage.tag(&a, "t").unwrap(), after, "{condition:?}");
                reset();
                let removed = match (holds, there) {
                    (false, _) => TagRemoval::Refused,
                    (true, true) => TagRemoval::Removed,
                    (true, false) => TagRemoval::Absent,
                };
                let found = storage.remove_tag(&a, "t", &condition).unwrap();
                assert_eq!(found, removed, "{condition:?} {there}");
                let after = if holds { None } else { before };
                assert_eq!(storage.tag(&a, "t").unwrap(), after, "{condition:?}");
            }
        }
    });
}

#[test]
fn the_catalog_goes_on_anywhere() {
    on_all(|storage| {
        let all = ["a", "a/b", "a/b/c", "a-b", "a.b", "b/c", "b/d/e"];
        for text in all.iter().rev() {
            put(storage, &name(text), b"x");
        }
        let list = |last: Option<&str>, limit| -> Vec<String> {
            let names = storage.repositories(last, limit).unwrap();
            names.iter().map(|name| name.as_str().to_owned()).collect()
        };
        assert_eq!(list(None, 100), all);
        assert_eq!(list(None, 0), [""; 0]);
        for (index, text) in all.iter().enumerate() {
            assert_eq!(list(Some(text), 100), all[index + 1..]);
            assert_eq!(
                list(Some(text), 1),
                all[index + 1..].iter().take(1).copied().collect::<Vec<_>>()
            );
        }
        assert_eq!(list(Some("a/b/a"), 1), ["a/b/c"]);
        assert_eq!(list(Some("b"), 2), ["b/c", "b/d/e"]);
        assert_eq!(list(Some("../x"), 1), ["a"]);
        assert_eq!(list(Some("zz"), 1), [""; 0]);
    });
}

#[test]
fn damaged_folders_are_told_and_never_served() {
    let root = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(root.path()).unwrap();
    let a = name("a");
    let bytes = Bytes::from_static(b"{\"config\":{}}");
    let digest = Digest::of(&bytes);
    let manifest =
        VerifiedManifest::check(bytes, MediaType::OCI_MANIFEST.to_owned(), digest).unwrap();
    storage.put_manifest(&a, &manifest, None).unwrap();
    storage
        .set_tag(&a, "t", &digest, &TagCondition::default())
        .unwrap();
    let base = root.path().join("docker/registry/v2");
    let data = base.join(format!(
        "blobs/sha256/{}/{}/data",
        &digest.hex()[..2],
        digest.hex()
    ));
    std::fs::write(&data, "{\"config\":[]}").unwrap();
    let error = storage.manifest(&a, &digest).unwrap_err().to_string();
    assert!(
        error.contains("is damaged: its content is not that of"),
        "{error}"
    );
    let link = base.join("repositories/a/_manifests/tags/t/current/link");
    for text in ["", "../../../x", "sha256:00", &"x".repeat(10_000)] {
        std::fs::write(&link, text).unwrap();
        let error = storage.tag(&a, "t").unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
    // Folders that are no repositories, and files where folders should be.
    std::fs::create_dir_all(base.join("repositories/UPPER/_layers")).unwrap();
    std::fs::create_dir_all(base.join("repositories/ok/_manifests")).unwrap();
    std::fs::write(base.join("repositories/file"), "").unwrap();
    let names = storage.repositories(None, 10).unwrap();
    assert_eq!(names, [name("a"), name("ok")]);
    assert!(storage.tags(&name("file")).unwrap().is_none());
}
