//! Snapshots as steps use them: one suite, on overlayfs and without it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use store::layer::compress::{Compression, compressor};
use store::layer::scan::{ScanBuilder, scan};
use store::layer::tar::write_tar;
use store::layer::{LayerId, LayerInfo};
use store::oci::{DiffId, Digest};
use store::snapshot::{Backend, SnapshotError, SnapshotMount, Snapshots, StepRoot, View};

use crate::support::{OPAQUE, Raw, Tree, archive, listing, script, unpack};

struct Fixture {
    folder: Tree,
    snapshots: Snapshots,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = Tree::new();
        let snapshots = Snapshots::open(&folder.at("store")).unwrap();
        Fixture { folder, snapshots }
    }

    fn copying() -> Fixture {
        let Fixture { folder, snapshots } = Fixture::new();
        let snapshots = snapshots.copying();
        Fixture { folder, snapshots }
    }

    fn is_copying(&self) -> bool {
        self.snapshots.backend().unwrap() != Backend::Overlay
    }

    fn unpack(&self, tar: &[u8]) -> Result<LayerInfo, SnapshotError> {
        self.snapshots
            .unpack(DiffId(Digest::of(tar)), &mut &tar[..])
    }

    fn in_tmp(&self) -> usize {
        self.snapshots.settle();
        std::fs::read_dir(self.folder.at("store/tmp"))
            .unwrap()
            .count()
    }

    fn in_layers(&self) -> usize {
        std::fs::read_dir(self.folder.at("store/layers"))
            .unwrap()
            .count()
    }

    /// Runs shell commands in a step's root; returns the layer, and the root as it was at the end.
    fn step(&self, parents: &[LayerId], commands: &str) -> (LayerInfo, Tree) {
        let mut active = self.snapshots.prepare(parents).unwrap();
        let after = Tree::new();
        let commands = format!("cd \"$ROOT\"; {commands}\ncp -a \"$ROOT/.\" \"$AFTER\"");
        match active.root().unwrap() {
            StepRoot::Overlay(mount) => mounted(&mount, &commands, after.path()),
            StepRoot::Tree(root) => {
                let variables = [("ROOT", root.as_path()), ("AFTER", after.path())];
                script(&commands, &variables);
            }
        }
        (active.commit().unwrap(), after)
    }
}

/// Runs these tests on either backend.
macro_rules! on_both {
    ($($test:ident)*) => {
        mod overlay {
            $(#[test] fn $test() { super::$test(&super::Fixture::new()); })*
        }
        mod copying {
            $(#[test] fn $test() { super::$test(&super::Fixture::copying()); })*
        }
    };
}

on_both! {
    a_step_becomes_an_exact_diff
    what_was_only_touched_is_no_change
    equal_steps_make_one_layer
    a_copy_can_state_its_own_identity
    the_roots_own_metadata_travel
    views_of_none_one_and_many_layers
    dropped_steps_leave_nothing
    an_unpacked_image_can_be_built_on_and_packed_again
    a_step_goes_on_where_the_one_before_it_ended
}

fn mounted(mount: &SnapshotMount, commands: &str, after: &Path) {
    let lower: Vec<&str> = mount
        .lower
        .iter()
        .map(|path| path.to_str().unwrap())
        .collect();
    let options = format!(
        "userxattr,lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        mount.upper.display(),
        mount.work.display()
    );
    let root = Tree::new();
    script(
        &format!("mount -t overlay -o \"$OPTIONS\" overlay \"$ROOT\"; {commands}"),
        &[
            ("OPTIONS", Path::new(&options)),
            ("ROOT", root.path()),
            ("AFTER", after),
        ],
    );
}

fn view_path(view: &View) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}/.",
        std::process::id(),
        view.as_fd().as_raw_fd()
    ))
}

/// What the layers show merged is what the step saw at its end, byte for byte.
fn shows(fixture: &Fixture, layers: &[LayerId], after: &Tree) {
    let view = fixture.snapshots.view(layers).unwrap();
    let path = view_path(&view);
    assert_eq!(scan(&path).unwrap(), after.scan());
}

fn base() -> Tree {
    let tree = Tree::new();
    tree.file("etc/passwd", "root")
        .file("etc/deep/a/b", "1")
        .file("usr/bin/x", "binary")
        .mode("usr/bin/x", 0o755);
    tree.file("var/cache/one", "1")
        .file("var/cache/two", "2")
        .symlink("bin", "usr/bin")
        .file("same", "same");
    tree.file("data/large", vec![b'x'; 100_000])
        .link("data/link", "data/large")
        .dir("tmp")
        .mode("tmp", 0o1777);
    tree
}

fn a_step_becomes_an_exact_diff(fixture: &Fixture) {
    let base_tar = base().tar();
    let base = fixture.unpack(&base_tar).unwrap();
    let (step, after) = fixture.step(
        &[base.id],
        "rm -r etc/deep; mkdir etc/deep; echo new > etc/deep/new
         rm usr/bin/x; mkdir usr/bin/x; rm bin; echo file > bin
         mv var/cache/one var/cache/moved; rm -r data; echo l > etc/first; ln etc/first etc/link
         setfattr -n user.note -v hi etc; chown 5:6 var/cache/two; mkfifo pipe",
    );
    shows(fixture, &[base.id, step.id], &after);
    let layer = fixture.snapshots.layer_dir(&step.id);
    let mut tar = Vec::new();
    write_tar(&layer, &mut tar).unwrap();
    let names: Vec<String> = tar::Archive::new(&tar[..])
        .entries()
        .unwrap()
        .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
        .collect();
    expect_test::expect![[r#"
        bin
        .wh.data
        etc/
        etc/deep/
        etc/deep/.wh..wh..opq
        etc/deep/new
        etc/first
        etc/link
        pipe
        usr/
        usr/bin/
        usr/bin/x/
        usr/bin/x/.wh..wh..opq
        var/
        var/cache/
        var/cache/moved
        var/cache/.wh.one
        var/cache/two"#]]
    .assert_eq(&names.join("\n"));
    // Its tar brings the same layer elsewhere.
    let other = Fixture::new();
    let (base, step) = (
        other.unpack(&base_tar).unwrap(),
        other.unpack(&tar).unwrap(),
    );
    assert_eq!(step.diff_id, Some(DiffId(Digest::of(&tar))));
    shows(&other, &[base.id, step.id], &after);
}

fn what_was_only_touched_is_no_change(fixture: &Fixture) {
    let base = fixture.unpack(&base().tar()).unwrap();
    let (nothing, _) = fixture.step(&[base.id], "true");
    assert_eq!((nothing.entries, nothing.bytes), (0, 0));
    // An owner that it has, and a file opened for writing: overlayfs copies both up.
    let (same, _) = fixture.step(&[base.id], "chown 0:0 etc/deep/a same; : >> usr/bin/x");
    assert_eq!(same.id, nothing.id);
    // The same bytes written again are another time.
    let (written, _) = fixture.step(
        &[base.id],
        "cat same > same.new; cat same.new > same; rm same.new",
    );
    assert_eq!(written.entries, 1);
    assert_ne!(written.tree, nothing.tree);
    let (both, after) = fixture.step(&[base.id], "chown 0:0 usr/bin/x; echo y > usr/bin/y");
    assert_eq!(both.entries, 3);
    shows(fixture, &[base.id, both.id], &after);
}

fn equal_steps_make_one_layer(fixture: &Fixture) {
    let base = fixture.unpack(&base().tar()).unwrap();
    let make = |time: &str| {
        fixture.step(
            &[base.id],
            &format!("mkdir new; echo 1 > new/f; touch -d @{time} new/f new . "),
        )
    };
    let (first, second, third) = (make("5").0, make("5").0, make("6").0);
    assert_eq!(first, second);
    assert_eq!(first.tree, third.tree);
    assert_ne!(first.id, third.id);
    assert_eq!((fixture.in_layers(), fixture.in_tmp()), (3, 0));
    assert_eq!(fixture.snapshots.list().unwrap().len(), 3);
    assert!(fixture.snapshots.has(&third.id));
    fixture.snapshots.remove(&third.id).unwrap();
    fixture.snapshots.remove(&third.id).unwrap();
    assert!(!fixture.snapshots.has(&third.id));
    assert_eq!((fixture.in_layers(), fixture.in_tmp()), (2, 0));
}

fn a_copy_can_state_its_own_identity(fixture: &Fixture) {
    let tree = Tree::with_everything();
    let active = fixture.snapshots.prepare(&[]).unwrap();
    let mut tar = Vec::new();
    write_tar(tree.path(), &mut tar).unwrap();
    let upper = File::open(active.upper()).unwrap();
    let options = store::layer::apply::UnpackOptions::new(store::layer::apply::Form::Layer);
    store::layer::apply::unpack_into(&upper, &tar[..], &options).unwrap();
    let stated = active.commit_scanned(tree.scan()).unwrap();
    assert_eq!(
        scan(&fixture.snapshots.layer_dir(&stated.id)).unwrap(),
        tree.scan()
    );
    assert_eq!(ScanBuilder::new().finish(), Tree::new().scan());
}

fn the_roots_own_metadata_travel(fixture: &Fixture) {
    let base = fixture.unpack(&base().tar()).unwrap();
    let (changed, after) = fixture.step(&[base.id], "chmod 1711 .; chown 3:4 .");
    assert_eq!(changed.entries, 1);
    let (later, _) = fixture.step(
        &[base.id, changed.id],
        "echo x > x; stat -c '%a %u %g' . > seen",
    );
    let view = fixture
        .snapshots
        .view(&[base.id, changed.id, later.id])
        .unwrap();
    let seen = std::fs::read_to_string(view_path(&view).join("seen")).unwrap();
    assert_eq!(seen, "1711 3 4\n");
    let view = fixture.snapshots.view(&[base.id, changed.id]).unwrap();
    let stat = rustix::fs::fstat(&view).unwrap();
    assert_eq!(
        (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid),
        (0o1711, 3, 4)
    );
    assert_eq!(after.listing(), listing(&view_path(&view)));
}

fn views_of_none_one_and_many_layers(fixture: &Fixture) {
    let view = fixture.snapshots.view(&[]).unwrap();
    assert_eq!(listing(&view_path(&view)), "");
    let one = fixture
        .unpack(&archive(&[
            Raw::file("a", "1"),
            Raw::file(".wh.gone", ""),
            Raw::file("d/.wh..wh..opq", ""),
        ]))
        .unwrap();
    let view = fixture.snapshots.view(&[one.id]).unwrap();
    assert_eq!(listing(&view_path(&view)), "f 644 0:0 1 a\nd 755 0:0 d");
    if !fixture.is_copying() {
        let refused = File::options()
            .write(true)
            .open(view_path(&view).join("a"))
            .unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }

    let layers: Vec<LayerId> = (0..150)
        .map(|n: u32| {
            fixture
                .unpack(&archive(&[
                    Raw::file("top", n.to_string()),
                    Raw::file(&format!("f{n}"), "x"),
                ]))
                .unwrap()
                .id
        })
        .collect();
    let view = fixture.snapshots.view(&layers).unwrap();
    assert_eq!(
        std::fs::read_to_string(view_path(&view).join("top")).unwrap(),
        "149"
    );
    assert_eq!(std::fs::read_dir(view_path(&view)).unwrap().count(), 151);
    let mount = fixture.snapshots.prepare(&layers).unwrap().mount().unwrap();
    assert_eq!(mount.lower.len(), 150);
    assert_eq!(mount.lower[0], fixture.snapshots.layer_dir(&layers[149]));
    // A layer whose root is opaque starts anew.
    let fresh = fixture
        .unpack(&archive(&[
            Raw::file(".wh..wh..opq", ""),
            Raw::file("only", "x"),
        ]))
        .unwrap();
    let view = fixture.snapshots.view(&[layers[0], fresh.id]).unwrap();
    assert_eq!(listing(&view_path(&view)), "f 644 0:0 1 only");
    // A layer that comes again does again what it did, whatever was done in between.
    let layer = |entries: &[Raw]| fixture.unpack(&archive(entries)).unwrap().id;
    let below = layer(&[
        Raw::file("gone/old", "1"),
        Raw::file("opaque/old", "1"),
        Raw::file("merged/old", "1"),
    ]);
    let again = layer(&[
        Raw::file(".wh.gone", ""),
        Raw::file("opaque/.wh..wh..opq", ""),
        Raw::file("merged/a", "a"),
        Raw::file("file", "a"),
    ]);
    let between = layer(&[
        Raw::file("gone/new", "2"),
        Raw::file("opaque/new", "2"),
        Raw::file("merged/.wh.a", ""),
        Raw::file("merged/b", "b"),
        Raw::file("file/is/a/directory", "2"),
    ]);
    let view = fixture.snapshots.view(&[below, again, between, again]);
    assert_eq!(
        listing(&view_path(&view.unwrap())),
        "f 644 0:0 1 file\nd 755 0:0 merged\nf 644 0:0 1 merged/a\nf 644 0:0 1 merged/b\n\
         f 644 0:0 1 merged/old\nd 755 0:0 opaque"
    );
    let missing = LayerId::Built([1; 32]);
    let error = fixture.snapshots.view(&[missing]).unwrap_err();
    assert!(error.to_string().contains("is not in the store"), "{error}");
}

#[test]
fn layers_come_in_every_compression() {
    let tree = Tree::with_everything();
    let tar = tree.tar();
    let expected = DiffId(Digest::of(&tar));
    for compression in [Compression::None, Compression::GZIP, Compression::ZSTD] {
        let fixture = Fixture::new();
        let mut writer = compressor(Vec::new(), compression, 2).unwrap();
        writer.write_all(&tar).unwrap();
        let packed = writer.finish().unwrap();
        let info = fixture
            .snapshots
            .unpack(expected, &mut &packed[..])
            .unwrap();
        assert_eq!(info.id, LayerId::Unpacked(expected));
        let layer = fixture.snapshots.layer_dir(&info.id);
        assert_eq!(scan(&layer).unwrap(), tree.scan());
        // Once more: ours is dropped.
        assert_eq!(
            fixture
                .snapshots
                .unpack(expected, &mut &packed[..])
                .unwrap(),
            info
        );
        assert_eq!((fixture.in_layers(), fixture.in_tmp()), (1, 0));
    }
}

#[test]
fn wrong_layers_never_appear() {
    let fixture = Fixture::new();
    let tar = archive(&[Raw::file("a", "x")]);
    let wrong = DiffId(Digest::of(b"something else"));
    let error = fixture.snapshots.unpack(wrong, &mut &tar[..]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "layer has the DiffID `{}`, expected `{wrong}`",
            Digest::of(&tar)
        )
    );
    let hostile = archive(&[Raw::file("../a", "x")]);
    assert!(matches!(
        fixture.unpack(&hostile),
        Err(SnapshotError::Apply(_))
    ));
    let mut gzip = compressor(Vec::new(), Compression::GZIP, 1).unwrap();
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let error = fixture
        .snapshots
        .unpack(DiffId(Digest::of(&tar)), &mut &gzip[..gzip.len() - 5])
        .unwrap_err();
    assert!(matches!(error, SnapshotError::Stream { .. }), "{error:?}");
    // A hostile start must not make us read, or wait for, the rest.
    let endless = hostile.chain(std::io::repeat(b'x'));
    let error = fixture
        .snapshots
        .unpack(wrong, &mut { endless })
        .unwrap_err();
    assert!(matches!(error, SnapshotError::Apply(_)), "{error:?}");
    assert_eq!((fixture.in_layers(), fixture.in_tmp()), (0, 0));
}

fn dropped_steps_leave_nothing(fixture: &Fixture) {
    let active = fixture.snapshots.prepare(&[]).unwrap();
    std::fs::write(active.upper().join("x"), "1").unwrap();
    assert_eq!(fixture.snapshots.sweep().unwrap(), 0);
    drop(active);
    fixture.snapshots.prepare(&[]).unwrap().discard().unwrap();
    assert_eq!((fixture.in_layers(), fixture.in_tmp()), (0, 0));
}

/// Names the store to a second run of this very test, which then unpacks its stdin there.
const CHILD: &str = "STORE_TEST_UNPACK_INTO";

#[test]
fn a_killed_unpacking_is_swept() {
    if let Some(root) = std::env::var_os(CHILD) {
        let snapshots = Snapshots::open(Path::new(&root)).unwrap();
        let outcome = snapshots.unpack(DiffId(Digest::of(b"")), &mut std::io::stdin());
        panic!("the parent kills this process before its input ends: {outcome:?}");
    }
    let fixture = Fixture::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "snapshots::a_killed_unpacking_is_swept",
            "--nocapture",
        ])
        .env(CHILD, fixture.folder.at("store"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Input is taken only by an unpacking under way: once all of this is written, most of it has been read.
    let mut input = child.stdin.take().unwrap();
    for n in 0..4000 {
        input
            .write_all(&Raw::file(&format!("file{n}"), [b'x'; 2000]).bytes())
            .unwrap();
    }
    assert_eq!(fixture.snapshots.sweep().unwrap(), 0);
    assert_eq!(fixture.in_tmp(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((fixture.in_layers(), fixture.in_tmp()), (0, 1));
    assert_eq!(fixture.snapshots.sweep().unwrap(), 1);
    assert_eq!((fixture.in_layers(), fixture.in_tmp()), (0, 0));
}

fn an_unpacked_image_can_be_built_on_and_packed_again(fixture: &Fixture) {
    let random = Tree::random(77);
    let base = fixture.unpack(&random.tar()).unwrap();
    let (step, after) = fixture.step(
        &[base.id],
        "find . -depth -mindepth 1 | head -n 5 | while read -r x; do rm -rf \"$x\"; done; mkdir z",
    );
    shows(fixture, &[base.id, step.id], &after);
    let mut tar = Vec::new();
    write_tar(&fixture.snapshots.layer_dir(&step.id), &mut tar).unwrap();
    let (copy, _) = unpack(&tar).unwrap();
    assert_eq!(copy.scan().tree, step.tree.unwrap());
    assert!(rustix::fs::getxattr(copy.path(), OPAQUE, &mut [0u8; 4]).is_err());
}

fn a_step_goes_on_where_the_one_before_it_ended(fixture: &Fixture) {
    let mut layers = vec![fixture.unpack(&base().tar()).unwrap().id];
    for commands in [
        "echo 1 > one; mkdir -p deep/er; echo x > deep/er/x",
        "rm -r deep; echo 2 >> one; echo 1 > two; ln two three",
        "rm one; mkdir one; mv data etc/; chmod 700 var; rm three",
        "echo 3 >> two; ln -s nowhere link; touch -d @7 etc/passwd",
        "rm -r var; mkdir -p var/cache; : > var/cache/three",
        "true",
    ] {
        let (step, after) = fixture.step(&layers, commands);
        layers.push(step.id);
        shows(fixture, &layers, &after);
    }
    let mut again = fixture.snapshots.prepare(&layers).unwrap();
    let mut other = fixture.snapshots.prepare(&layers).unwrap();
    assert_ne!(again.root().unwrap(), other.root().unwrap());
}

/// What either backend makes of the same step on the same layers.
fn on_either(commands: &str) -> [(LayerInfo, Vec<u8>); 2] {
    let tree = base();
    script(
        "find \"$BASE\" -print0 | xargs -0 touch -h -d @5",
        &[("BASE", tree.path())],
    );
    let base = tree.tar();
    [Fixture::new(), Fixture::copying()].map(|fixture| {
        let base = fixture.unpack(&base).unwrap();
        // A layer in between, so that something is seen through it.
        let (between, _) = fixture.step(
            &[base.id],
            "echo n > etc/deep/new; rm -r var; mkdir later; echo 1 > later/a; ln later/a later/b
             touch -d @9 etc/deep/new later/a etc/deep etc later",
        );
        // Everything that a step makes has the time of its end, else.
        let touched =
            format!("{commands}\nfind . -newermt @10000 -print0 | xargs -0r touch -h -d @99");
        let (step, after) = fixture.step(&[base.id, between.id], &touched);
        if fixture.is_copying() {
            // overlayfs itself shows the names of one file as several while they are new.
            shows(&fixture, &[base.id, between.id, step.id], &after);
        }
        let mut tar = Vec::new();
        write_tar(&fixture.snapshots.layer_dir(&step.id), &mut tar).unwrap();
        (step, tar)
    })
}

#[test]
fn both_backends_make_the_same_layers() {
    for commands in [
        "true",
        "echo new > new; mkdir -p a/b/c; : > a/b/c/d; mkfifo a/p; ln -s x a/l",
        "rm -r etc/deep; mkdir etc/deep; echo again > etc/deep/again",
        "rm usr/bin/x; mkdir usr/bin/x; rm same; ln -s etc same",
        "rm -r data later; rm bin",
        "chmod 4711 usr/bin/x; chown 5:6 etc; setfattr -n user.note -v hi tmp",
        "chown 0:0 usr/bin/x etc; : >> etc/passwd",
        "ln etc/passwd etc/passwd-",
        "rm later/a",
        "cp -a etc/passwd etc/copy; mv etc/copy etc/passwd",
        "mkdir var; : > var/x; rmdir var 2>&- || rm -r var",
        "touch -d @3 etc/passwd; touch -d @4 etc",
        "touch gone; rm gone; touch etc/gone; rm etc/gone",
        "chmod 700 .; chown 1:2 .; setfattr -n user.root -v me .",
        "setfattr -n user.a -v 1 same; setfattr -x user.a same",
        "mv etc moved; mkdir etc; mv moved/passwd etc/",
        "setfattr -n user.overlay.opaque -v y tmp",
    ] {
        let [(by_overlay, one), (by_copy, other)] = on_either(commands);
        assert!(one == other, "{commands}");
        assert_eq!(by_overlay, by_copy, "{commands}");
    }
}
