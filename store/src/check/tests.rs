//! One test for each kind of damage: it is found, told by its kind and path, and gone after a repair.

use std::path::Path;

use super::repair::RepairError;
use super::*;
use crate::cache_mounts::CacheMountName;
use crate::clock::now_micros;
use crate::history::{BuildRow, BuildStatus};
use crate::index::{Lease, RecordRow};
use crate::layer::compress::{Compression, CompressionChoice};
use crate::oci::{Descriptor, ImageConfig, Manifest, MediaType, Platform};

/// A store with an image of one built layer and one that came as a tar, a record that keeps the first, a cache mount, a
/// repository and a build.
struct Sample {
    dir: tempfile::TempDir,
    store: Store,
    image: ImageId,
    manifest: Digest,
    built: LayerId,
    unpacked: DiffId,
    tar: Digest,
}

const RECORD: [u8; 32] = [1; 32];

fn built_layer(store: &Store, content: &str) -> LayerInfo {
    let commit = || {
        let active = store.snapshots().prepare(&[])?;
        std::fs::create_dir(active.upper().join("dir")).unwrap();
        std::fs::write(active.upper().join("dir/file"), content).unwrap();
        active.commit().map_err(StoreError::from)
    };
    store.publish_layer(commit).unwrap()
}

/// A layer as one that was pulled: a tar as a blob, unpacked, with the layer that it was made of gone.
fn unpacked_layer(store: &Store) -> (DiffId, Descriptor) {
    let made = built_layer(store, "came from elsewhere");
    let diff_id = store.ensure_diff_id(&made.id).unwrap();
    let blob = store.layer_blob(&diff_id, Compression::GZIP).unwrap();
    let blob = blob.descriptor;
    store.drop_layer(&made.id).unwrap();
    store.add_layer_blob(&diff_id, &blob.digest).unwrap();
    assert_eq!(
        store.ensure_unpacked(&diff_id).unwrap(),
        LayerId::Unpacked(diff_id)
    );
    (diff_id, blob)
}

impl Sample {
    fn new() -> Sample {
        let (dir, store) = crate::tests::store();
        let built = built_layer(&store, "built here").id;
        let built_diff_id = store.ensure_diff_id(&built).unwrap();
        let (unpacked, tar) = unpacked_layer(&store);
        let form = store.layer_blob(&built_diff_id, Compression::GZIP).unwrap();
        let form = form.descriptor;
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = vec![built_diff_id, unpacked];
        let config = serde_json::to_vec(&config).unwrap();
        let described = Descriptor::of(MediaType::OCI_CONFIG, &config);
        let manifest = RawManifest::from(Manifest::image(described, vec![form, tar.clone()]));
        let image = store.images().put_image(&config, Some(&manifest)).unwrap();
        store.images().tag(&"app".parse().unwrap(), &image).unwrap();
        let record = RecordRow {
            op: [2; 32],
            result: Vec::new(),
            layers: vec![built],
            ingredients: Vec::new(),
            created: 1,
        };
        store.index().record_put(&RECORD, &record).unwrap();
        let name = CacheMountName {
            id: "/cache".to_owned(),
            from: None,
            mode: 0o755,
            uid: 0,
            gid: 0,
        };
        let mount = store.new_cache_mount(&name).unwrap();
        store
            .publish_cache_mount(mount, crate::cache_mounts::CacheSharing::Shared)
            .unwrap();
        let mirror = store.mirror("abc").unwrap();
        std::fs::create_dir(mirror.path()).unwrap();
        std::fs::write(mirror.path().join("HEAD"), "ref: refs/heads/main\n").unwrap();
        drop(mirror);
        let journal = store.history().begin().unwrap();
        let row = build_row(journal.id(), journal.started());
        store.history().finish(journal, &row).unwrap();
        store.snapshots().settle();
        assert_eq!(store.examine(Depth::Bytes).unwrap().problems, []);
        Sample {
            dir,
            store,
            image,
            manifest: manifest.digest(),
            built,
            unpacked,
            tar: tar.digest,
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.store.blobs().path(digest)
    }

    fn layer(&self, id: &LayerId) -> PathBuf {
        self.store.layer_path(id)
    }

    fn sql(&self, sql: &str) {
        self.store.index().write(|t| t.execute_batch(sql)).unwrap();
    }
}

fn build_row(id: &BuildId, started: i64) -> BuildRow {
    BuildRow {
        id: id.clone(),
        series: [0; 32],
        started,
        took: 1,
        status: BuildStatus::Done,
        context: ".".to_owned(),
        dockerfile: "Dockerfile".to_owned(),
        target: None,
        tags: Vec::new(),
        error: None,
        steps: 0,
        ran: 0,
        cached: 0,
        saved: 0,
        warnings: 0,
    }
}

/// Does damage, expects exactly these kinds to be told, repairs, and expects nothing to be told any more. Returns what is left.
#[track_caller]
fn check(kinds: &[&str], damage: impl FnOnce(&Sample)) -> Sample {
    let sample = Sample::new();
    damage(&sample);
    let found = sample.store.examine(Depth::Bytes).unwrap().problems;
    let told: Vec<&str> = found.iter().map(Problem::kind).collect();
    assert_eq!(told, kinds, "{found:?}");
    let wrong: Vec<Problem> = found.iter().filter(|p| !p.is_leftover()).cloned().collect();
    assert_eq!(sample.store.check().unwrap(), wrong);
    for repaired in sample.store.repair(&found).unwrap() {
        assert!(repaired.gone, "{repaired:?}");
    }
    let left = sample.store.examine(Depth::Bytes).unwrap().problems;
    assert_eq!(left, [], "after the repair");
    sample
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[test]
fn a_blob_with_other_bytes() {
    // The tar of a layer that came as one: without it the image could not be pushed.
    let sample = check(&["blob-damaged"], |s| write(&s.blob(&s.tar), "torn"));
    assert!(sample.store.images().resolve("app").unwrap().is_none());
    assert!(!sample.layer(&LayerId::Unpacked(sample.unpacked)).exists());
}

#[test]
fn the_form_of_a_built_layer_is_made_again() {
    let form = |s: &Sample| {
        let diff_id = s.store.ensure_diff_id(&s.built).unwrap();
        let (_, form) = s.store.index().compressed(&diff_id).unwrap().remove(0);
        form.digest
    };
    let sample = check(&["blob-damaged"], |s| write(&s.blob(&form(s)), "torn"));
    assert!(sample.store.images().resolve("app").unwrap().is_some());
    sample
        .store
        .manifest_for(&sample.image, CompressionChoice::AS_THEY_ARE)
        .unwrap();
    assert_eq!(sample.store.examine(Depth::Bytes).unwrap().problems, []);
}

#[test]
fn a_blob_without_its_file() {
    let sample = check(&["blob-file-missing", "tar-missing"], |s| {
        std::fs::remove_file(s.blob(&s.tar)).unwrap();
    });
    assert!(sample.store.images().resolve("app").unwrap().is_none());
}

#[test]
fn an_image_without_its_config() {
    let sample = check(&["blob-file-missing", "blob-missing"], |s| {
        std::fs::remove_file(s.blob(&s.image.0)).unwrap();
    });
    assert!(sample.store.images().images().unwrap().is_empty());
}

#[test]
fn an_image_without_its_manifest_keeps_its_name() {
    let sample = check(&["blob-file-missing", "blob-missing"], |s| {
        std::fs::remove_file(s.blob(&s.manifest)).unwrap();
    });
    let image = sample.store.images().resolve("app").unwrap().unwrap();
    assert_eq!(image.manifest, None);
    sample
        .store
        .manifest_for(&sample.image, CompressionChoice::AS_THEY_ARE)
        .unwrap();
}

#[test]
fn a_manifest_of_another_image() {
    let sample = check(&["manifest-wrong"], |s| {
        let described = Descriptor::of(MediaType::OCI_CONFIG, b"{}");
        let other = RawManifest::from(Manifest::image(described, Vec::new()));
        let other = s.store.blobs().put(other.bytes()).unwrap().digest();
        s.sql(&format!("UPDATE images SET manifest = '{other}'"));
    });
    assert!(sample.store.images().resolve("app").unwrap().is_some());
}

#[test]
fn a_layer_without_its_directory_is_a_miss_afterwards() {
    let sample = check(&["layer-directory-missing"], |s| {
        fs::remove_tree(&s.layer(&s.built)).unwrap();
    });
    // The image has the layer's compressed form, the record nothing.
    assert!(sample.store.images().resolve("app").unwrap().is_some());
    assert!(sample.store.index().record_hit(&RECORD).unwrap().is_none());
}

#[test]
fn a_built_layer_with_other_files() {
    let change = |path: &Path, how: &str| match how {
        "bytes" => write(&path.join("dir/file"), "BUILT HERE"),
        "one more" => write(&path.join("dir/more"), ""),
        "one less" => std::fs::remove_file(path.join("dir/file")).unwrap(),
        _ => {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(path.join("dir/file"), mode).unwrap();
        }
    };
    for how in ["bytes", "one more", "one less", "mode"] {
        let sample = check(&["layer-damaged"], |s| {
            change(&s.layer(&s.built).join("fs"), how);
        });
        assert!(!sample.layer(&sample.built).exists());
        assert!(sample.store.index().record_hit(&RECORD).unwrap().is_none());
    }
}

#[test]
fn an_unpacked_layer_with_other_files_is_unpacked_again() {
    let sample = check(&["layer-damaged"], |s| {
        let file = s.layer(&LayerId::Unpacked(s.unpacked)).join("fs/dir/file");
        write(&file, "came from ELSEwhere");
    });
    let again = sample.store.ensure_unpacked(&sample.unpacked).unwrap();
    let file = sample.layer(&again).join("fs/dir/file");
    assert_eq!(
        std::fs::read_to_string(file).unwrap(),
        "came from elsewhere"
    );
    assert!(sample.store.images().resolve("app").unwrap().is_some());
}

#[test]
fn a_layer_that_is_not_what_the_index_says() {
    let sample = check(&["layer-damaged"], |s| {
        s.sql("UPDATE layers SET bytes = bytes + 1 WHERE id LIKE 'b3-%'");
    });
    assert!(!sample.layer(&sample.built).exists());
}

#[test]
fn a_blob_noted_as_the_form_of_another_layer() {
    check(&["form-wrong"], |s| {
        let other = s.store.blobs().put(b"no tar at all").unwrap();
        let form = Descriptor::new(MediaType::OCI_LAYER, other.digest(), other.size());
        s.store
            .index()
            .remember(&s.unpacked, "none", &form)
            .unwrap();
    });
}

#[test]
fn an_image_whose_layer_is_nowhere() {
    let sample = check(&["layer-missing"], |s| {
        let other = DiffId(Digest::of(b"nowhere"));
        s.sql(&format!(
            "UPDATE image_layers SET diff_id = '{other}' WHERE position = 0"
        ));
    });
    assert!(sample.store.images().images().unwrap().is_empty());
}

#[test]
fn a_layer_that_a_registry_has_is_not_missing() {
    let sample = Sample::new();
    let absent = DiffId(Digest::of(b"elsewhere"));
    let form = Descriptor::new(MediaType::OCI_LAYER, Digest::of(b"form"), 4);
    let index = sample.store.index();
    index.remember(&absent, "none", &form).unwrap();
    sample.sql(&format!(
        "UPDATE image_layers SET diff_id = '{absent}' WHERE position = 0"
    ));
    assert_eq!(sample.store.check().unwrap().len(), 1);
    index.note_source(&form.digest, "r.example", "app").unwrap();
    assert_eq!(sample.store.check().unwrap(), []);
}

#[test]
fn a_cache_mount_without_its_parts() {
    for part in ["data", "info"] {
        check(&["cache-mount-broken"], |s| {
            let mounts = fs::list(&s.path("cache-mounts")).unwrap();
            fs::remove_tree(&s.path("cache-mounts").join(&mounts[0]).join(part)).unwrap();
        });
    }
}

#[test]
fn a_git_repository_that_is_none() {
    check(&["git-mirror-broken"], |s| {
        std::fs::remove_file(s.path("git/abc/HEAD")).unwrap();
    });
}

#[test]
fn a_build_without_its_journal() {
    let sample = check(&["journal-missing"], |s| {
        let builds = fs::list(&s.path("builds")).unwrap();
        std::fs::remove_file(s.path("builds").join(&builds[0])).unwrap();
    });
    assert_eq!(sample.store.history().rows().unwrap(), []);
}

#[test]
fn an_index_whose_search_trees_lie() {
    check(&["index-damaged"], |s| {
        // The entries of one are those of another definition.
        let connection = rusqlite::Connection::open(s.path("index.db")).unwrap();
        let sql = "PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = replace(sql, 'IS NOT NULL', 'IS NULL')
               WHERE name = 'layers_by_tree';
             PRAGMA schema_version = 1000";
        connection.execute_batch(sql).unwrap();
    });
}

#[test]
fn an_index_that_is_none_is_put_aside() {
    let sample = Sample::new();
    let root = sample.dir.path().to_owned();
    let other = Store::open(&root).unwrap();
    assert!(other.blobs().has(&sample.tar).unwrap().is_some());
    let error = super::repair::put_index_aside(&root).unwrap_err();
    assert!(matches!(error, RepairError::InUse { .. }), "{error}");
    drop((other, sample.store));
    for name in ["index.db-wal", "index.db-shm"] {
        std::fs::remove_file(root.join(name)).unwrap();
    }
    write(&root.join("index.db"), &"not a database".repeat(1000));
    let error = Store::open(&root).unwrap_err();
    assert!(error.is_index_damaged(), "{error:?}");
    let aside = super::repair::put_index_aside(&root).unwrap();
    assert_eq!(aside, root.join("index.db.damaged"));
    let store = Store::open(&root).unwrap();
    assert!(store.images().images().unwrap().is_empty());
    // Nothing is in the new index.
    let start = now_micros();
    while now_micros() < start + 2 * STAMP_SLACK {
        std::thread::yield_now();
    }
    let found = store.examine(Depth::Bytes).unwrap().problems;
    assert!(found.iter().all(Problem::is_leftover), "{found:?}");
    store.repair(&found).unwrap();
    assert!(store.blobs().list().unwrap().is_empty());
    assert!(fs::list(&root.join("layers")).unwrap().is_empty());
}

#[test]
fn rows_that_belong_to_nothing_are_told_and_stay() {
    let sample = Sample::new();
    let connection = rusqlite::Connection::open(sample.path("index.db")).unwrap();
    let sql = "PRAGMA foreign_keys = OFF; INSERT INTO names VALUES ('lost', 'sha256:00', 0)";
    connection.execute_batch(sql).unwrap();
    let found = sample.store.check().unwrap();
    assert!(found[0].to_string().contains("a row of names"), "{found:?}");
    assert!(!sample.store.repair(&found).unwrap()[0].gone);
}

#[test]
fn leftovers_are_told_apart_and_swept() {
    check(
        &[
            "layer-unlisted",
            "blob-unlisted",
            "temporary-left",
            "session-left",
            "lock-left",
            "lease-over",
        ],
        |s| {
            let id = LayerId::Unpacked(DiffId(Digest::of(b"x")));
            std::fs::create_dir(s.layer(&id)).unwrap();
            write(&s.blob(&Digest::of(b"y")), "y");
            write(&s.path("tmp/file-1-1-1"), "half");
            write(&s.path("sessions/0000000000000001-7-x"), "");
            write(&s.path("locks/00"), "");
            let over = Lease {
                id: "over".to_owned(),
                expires: Some(1),
                items: Vec::new(),
            };
            s.store.index().lease_put(&over).unwrap();
            // What is younger than this may be about to get its row.
            let start = now_micros();
            while now_micros() < start + 2 * STAMP_SLACK {
                std::thread::yield_now();
            }
        },
    );
}

#[test]
fn foreign_files_are_told_and_stay() {
    let sample = Sample::new();
    write(&sample.path("layers/notes.txt"), "");
    write(&sample.path("blobs/sha256/short"), "");
    let found = sample.store.examine(Depth::Names).unwrap().problems;
    let paths: Vec<PathBuf> = found.iter().map(Problem::path).collect();
    assert_eq!(
        paths,
        [
            Path::new("blobs/sha256/short"),
            Path::new("layers/notes.txt")
        ]
    );
    assert!(sample.store.check().unwrap().is_empty());
    assert!(!sample.store.repair(&found).unwrap()[0].gone);
    assert!(sample.path("layers/notes.txt").exists());
}

#[test]
fn names_are_checked_without_reading() {
    let sample = Sample::new();
    write(&sample.blob(&sample.tar), "torn");
    assert_eq!(sample.store.examine(Depth::Names).unwrap().problems, []);
    std::fs::remove_file(sample.blob(&sample.tar)).unwrap();
    assert_eq!(
        sample.store.examine(Depth::Names).unwrap().problems.len(),
        2
    );
}

#[test]
fn nothing_is_repaired_beside_others() {
    let sample = Sample::new();
    let other = Store::open(sample.dir.path()).unwrap();
    assert!(other.blobs().has(&sample.tar).unwrap().is_some());
    let error = sample.store.repair(&[]).unwrap_err();
    assert!(error.to_string().contains("in use by 1 other"), "{error}");
    drop(other);
    assert_eq!(sample.store.repair(&[]).unwrap(), []);
}

#[test]
fn mounts_are_found_by_place_and_by_what_they_stack() {
    let text = "\
22 1 0:20 / / rw - ext4 /dev/sda rw
30 22 0:30 / /s/root rw - tmpfs tmpfs rw
31 30 0:31 / /s/root/tmp/dir\\0401/merged rw - overlay overlay rw,lowerdir=/x
32 22 0:32 / /elsewhere rw - overlay overlay rw,lowerdir=/y:/s/root/layers/b3-0/fs,upperdir=/z
33 22 0:33 / /s/rootless rw - overlay overlay rw,lowerdir=/s/rootless/layers/a";
    assert_eq!(
        mounts_below(text, Path::new("/s/root")),
        [
            Path::new("/elsewhere"),
            Path::new("/s/root/tmp/dir 1/merged")
        ]
    );
}

/// What somebody keeps in a container or a volume is told of, and left for them to give up.
#[test]
fn containers_and_volumes_are_looked_at() {
    use crate::containers::{ContainerId, NewContainer};
    use crate::volumes::VolumeAbout;
    let sample = Sample::new();
    let store = &sample.store;
    let id = ContainerId::random().unwrap();
    let container = store
        .create_container(&NewContainer {
            id: id.clone(),
            name: "box",
            image: sample.image,
            layers: &[sample.built],
            config: b"{}",
        })
        .unwrap();
    store
        .ensure_volume("data", &VolumeAbout::default(), None)
        .unwrap();
    assert_eq!(store.check().unwrap(), []);
    let kinds = || -> Vec<(&'static str, String)> {
        let problems = store.check().unwrap();
        let told = problems
            .iter()
            .map(|found| (found.kind(), found.to_string()));
        let told = told.filter(|(kind, _)| matches!(*kind, "container-broken" | "volume-broken"));
        told.collect()
    };
    let volume = sample.dir.path().join("volumes/data");
    for (path, kind, reason) in [
        (
            container.path().join("config"),
            "container-broken",
            "has no config",
        ),
        (
            container.path().join("image"),
            "container-broken",
            "has no image",
        ),
        (container.upper(), "container-broken", "has no files"),
        (volume.join("_data"), "volume-broken", "has no files"),
        (volume.join("about"), "volume-broken", "has no record"),
    ] {
        let aside = sample.dir.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        let [(found, text)] = &kinds()[..] else {
            panic!("{kind}: {:?}", kinds());
        };
        assert_eq!(*found, kind);
        assert!(text.ends_with(reason), "{text}");
        std::fs::rename(&aside, &path).unwrap();
    }
    let layer = sample
        .dir
        .path()
        .join("layers")
        .join(sample.built.to_string());
    std::fs::remove_dir_all(layer).unwrap();
    let [(_, text)] = &kinds()[..] else {
        panic!("{:?}", kinds());
    };
    assert!(text.ends_with("which is missing"), "{text}");
    let problems = store.check().unwrap();
    let broken = problems
        .iter()
        .find(|found| found.kind() == "container-broken");
    let broken = broken.unwrap().clone();
    assert_eq!(broken.path(), Path::new("containers").join(id.to_string()));
    drop(container);
    let repaired = store.repair(&[broken]).unwrap();
    assert!(!repaired[0].gone, "a user's files are not dropped");
}
