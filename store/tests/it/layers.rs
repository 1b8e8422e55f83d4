//! Packing and unpacking agree with each other, whatever the tree.

use rustix::fs::{FileType, XattrFlags};
use store::layer::apply::{Form, UnpackOptions};
use store::layer::tar::read::Reader;
use store::layer::tar::{diff_id, write_scanned, write_tar};
use store::oci::{DiffId, Digest};

use crate::support::{OPAQUE, Raw, Tree, archive, unpack, unpack_as};

fn round_trips(tree: &Tree, what: &str) {
    let tar = tree.tar();
    let (copy, unpacked) = unpack(&tar).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    assert_eq!(copy.listing(), tree.listing(), "{what}");
    assert_eq!(copy.scan(), tree.scan(), "{what}");
    assert!(copy.tar() == tar, "{what}: the second tar differs");
    let mut written = Vec::new();
    let (summary, scan) = write_scanned(tree.path(), &mut written).unwrap();
    assert!(written == tar, "{what}: the tar that was scanned differs");
    assert_eq!(scan, tree.scan(), "{what}");
    assert_eq!(summary.bytes, tar.len() as u64, "{what}");
    let mut reader = Reader::new(&tar[..]);
    let mut opaque = 0;
    while let Some(entry) = reader.next_entry().unwrap() {
        opaque += u64::from(entry.path.ends_with(b".wh..wh..opq"));
    }
    assert_eq!(unpacked.entries, tree.scan().entries + opaque, "{what}");
    assert_eq!(unpacked.bytes, tree.scan().bytes, "{what}");
}

#[test]
fn everything_round_trips() {
    round_trips(&Tree::with_everything(), "everything");
    round_trips(&Tree::new(), "nothing");
}

#[test]
fn random_trees_round_trip() {
    for seed in 0..25 {
        round_trips(&Tree::random(seed), &format!("seed {seed}"));
    }
}

#[test]
fn the_canonical_form_is_pinned() {
    let tree = Tree::new();
    tree.dir("etc")
        .file("etc/motd", "hello\n")
        .whiteout("etc/old")
        .symlink("lib", "usr/lib");
    tree.link("motd", "etc/motd")
        .dir("new")
        .xattr("new", OPAQUE, b"y");
    tree.file(format!("{}/x", "d".repeat(180)), "")
        .xattr("etc/motd", "user.a", b"b");
    for path in ["etc/motd", "lib"] {
        tree.mtime(path, 1_700_000_000, 0);
    }
    tree.mtime("new", 5, 250_000_000).mtime("etc", 3, 0);
    let long = "d".repeat(180);
    tree.mtime(format!("{long}/x"), 9, 0).mtime(&long, 9, 0);
    let tar = tree.tar();
    assert_eq!(diff_id(tree.path()).unwrap(), DiffId(Digest::of(&tar)));
    expect_test::expect_file!["../../../testdata/layers/canonical.txt"].assert_eq(&dump(&tar));
}

/// Every block that is not content, printed with its fields.
fn dump(tar: &[u8]) -> String {
    let mut lines = Vec::new();
    let mut rest = tar;
    while let Some((block, after)) = rest.split_at_checked(512) {
        let text = |range: std::ops::Range<usize>| {
            let field = &block[range];
            let end = field
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(field.len());
            field[..end].escape_ascii().to_string()
        };
        if block.iter().all(|byte| *byte == 0) {
            lines.push("zeros".to_owned());
            rest = after;
            continue;
        }
        let size = usize::from_str_radix(&text(124..136), 8).unwrap();
        lines.push(format!(
            "{} name={} prefix={} mode={} owner={}:{} size={} mtime={} link={} magic={} device={}:{} sum={}",
            block[156] as char,
            text(0..100),
            text(345..500),
            text(100..108),
            text(108..116),
            text(116..124),
            text(124..136),
            text(136..148),
            text(157..257),
            block[257..265].escape_ascii(),
            text(329..337),
            text(337..345),
            text(148..155),
        ));
        let (content, after) = after.split_at(size.next_multiple_of(512));
        if size > 0 {
            lines.push(format!("  {}", content[..size].escape_ascii()));
        }
        rest = after;
    }
    lines.push(Digest::of(tar).to_string());
    lines.join("\n") + "\n"
}

#[test]
fn what_later_entries_say_wins() {
    let check = |entries: &[Raw], expected: &str| {
        let (tree, _) = unpack(&archive(entries)).unwrap();
        assert_eq!(tree.listing(), expected);
    };
    check(
        &[Raw::file("a", "one"), Raw::file("./a", "two!")],
        "f 644 0:0 4 a",
    );
    check(
        &[Raw::dir("a"), Raw::file("a/b/c", "x"), Raw::file("a", "x")],
        "f 644 0:0 1 a",
    );
    check(
        &[Raw::file("a", "x"), Raw::dir("a"), Raw::file("a/b", "")],
        "d 755 0:0 a\nf 644 0:0 0 a/b",
    );
    check(
        &[Raw::dir("d"), Raw::symlink("d", "e")],
        "l 777 0:0 1 d -> e",
    );
    check(&[Raw::symlink("d", "e"), Raw::dir("d")], "d 755 0:0 d");
    check(
        &[Raw::symlink("d", "e"), Raw::file("d", "x")],
        "f 644 0:0 1 d",
    );
    check(
        &[
            Raw::file("a", "x"),
            Raw::file("b", "y"),
            Raw::hard_link("b", "a"),
        ],
        "f 644 0:0 1 a\nf 644 0:0 1 b",
    );
    // A link to itself, and to what it already is.
    check(
        &[Raw::file("a", "x"), Raw::hard_link("a", "a")],
        "f 644 0:0 1 a",
    );
    check(
        &[
            Raw::dir("a").with(|raw| raw.mode = b"0000700".to_vec()),
            Raw::file("a/b", ""),
            Raw::dir("a/"),
        ],
        "d 755 0:0 a\nf 644 0:0 0 a/b",
    );
}

#[test]
fn paths_stay_inside_and_follow_links_there() {
    let check = |entries: &[Raw], expected: &str| {
        let (tree, _) = unpack(&archive(entries)).unwrap();
        assert_eq!(tree.listing(), expected);
    };
    check(
        &[Raw::file("/abs/./x//y", "1")],
        "d 755 0:0 abs\nd 755 0:0 abs/x\nf 644 0:0 1 abs/x/y",
    );
    // As in half of Debian-like images: an absolute link, its target there or not.
    let through = "d 755 0:0 run\nf 644 0:0 1 run/x\nd 755 0:0 var\nl 777 0:0 4 var/run -> /run";
    check(
        &[
            Raw::dir("run"),
            Raw::dir("var"),
            Raw::symlink("var/run", "/run"),
            Raw::file("var/run/x", "1"),
        ],
        through,
    );
    check(
        &[
            Raw::dir("var"),
            Raw::symlink("var/run", "/run"),
            Raw::file("var/run/x", "1"),
        ],
        through,
    );
    check(
        &[
            Raw::dir("var"),
            Raw::symlink("var/run", "../../../../run"),
            Raw::file("var/run/x", "1"),
        ],
        &through.replace("4 var/run -> /run", "15 var/run -> ../../../../run"),
    );
    // Hard links resolve the same way, and to links themselves.
    check(
        &[
            Raw::file("run/x", "1"),
            Raw::symlink("var", "/"),
            Raw::hard_link("y", "/var/run/x"),
            Raw::hard_link("z", "var"),
        ],
        "d 755 0:0 run\nf 644 0:0 1 run/x\nl 777 0:0 1 var -> /\nf 644 0:0 1 y\nl 777 0:0 1 z -> /",
    );
}

#[test]
fn whiteouts_take_overlay_form() {
    let check = |entries: &[Raw], expected: &str, opaque: &[&str]| {
        let (tree, _) = unpack(&archive(entries)).unwrap();
        assert_eq!(tree.listing(), expected);
        for path in opaque {
            let mut value = [0; 4];
            let length = rustix::fs::getxattr(tree.at(path), OPAQUE, &mut value)
                .unwrap_or_else(|errno| panic!("{path}: {errno}"));
            assert_eq!(&value[..length], b"y");
        }
    };
    check(
        &[Raw::file("d/.wh.x", "")],
        "d 755 0:0 d\nc 0 0:0 0 d/x",
        &[],
    );
    check(&[Raw::file("d/.wh..wh..opq", "")], "d 755 0:0 d", &["d"]);
    check(&[Raw::file(".wh..wh..opq", "")], "", &[""]);
    check(
        &[Raw::file(".wh..wh.plnk", ""), Raw::dir(".wh..wh.aufs")],
        "",
        &[],
    );
    // Removed and made again, in either order: a directory hides what was below it.
    check(
        &[Raw::file(".wh.a", ""), Raw::file("a", "x")],
        "f 644 0:0 1 a",
        &[],
    );
    check(
        &[Raw::file("a", "x"), Raw::file(".wh.a", "")],
        "f 644 0:0 1 a",
        &[],
    );
    check(
        &[Raw::file(".wh.a", ""), Raw::dir("a")],
        "d 755 0:0 a",
        &["a"],
    );
    check(
        &[Raw::dir("a"), Raw::file(".wh.a", "")],
        "d 755 0:0 a",
        &["a"],
    );
    check(
        &[Raw::file(".wh.a", ""), Raw::file("a/b", "x")],
        "d 755 0:0 a\nf 644 0:0 1 a/b",
        &["a"],
    );
    // In a plain archive they are names.
    let tar = archive(&[Raw::file("d/.wh.x", "")]);
    let (tree, _) = unpack_as(&tar, &UnpackOptions::new(Form::Tree)).unwrap();
    assert_eq!(tree.listing(), "d 755 0:0 d\nf 644 0:0 0 d/.wh.x");
}

#[test]
fn headers_of_every_dialect_are_read() {
    let mtime = |entries: &[Raw]| {
        let (tree, _) = unpack(&archive(entries)).unwrap();
        let stat = rustix::fs::stat(tree.at("a")).unwrap();
        (stat.st_mtime, stat.st_mtime_nsec as u64)
    };
    let file = || Raw::file("a", "x");
    assert_eq!(mtime(&[file()]), (0, 0));
    assert_eq!(
        mtime(&[file().with(|raw| raw.mtime = b"14524770400".to_vec())]),
        (0o14_524_770_400, 0)
    );
    assert_eq!(
        mtime(&[file().with(|raw| raw.mtime = [&[0xff; 11][..], &[0xfb]].concat())]),
        (-5, 0)
    );
    assert_eq!(
        mtime(&[Raw::pax(&[("mtime", "1700000000.5")]), file()]),
        (1_700_000_000, 500_000_000)
    );
    assert_eq!(
        mtime(&[Raw::pax(&[("mtime", "-1.25")]), file()]),
        (-2, 750_000_000)
    );
    let global = Raw::pax(&[("mtime", "7")]).with(|raw| raw.kind = b'g');
    assert_eq!(mtime(&[global.clone(), file()]), (7, 0));
    assert_eq!(
        mtime(&[global.clone(), Raw::pax(&[("mtime", "8")]), file()]),
        (8, 0)
    );
    assert_eq!(mtime(&[global, Raw::pax(&[("mtime", "")]), file()]), (0, 0));

    let listing = |entries: &[Raw]| unpack(&archive(entries)).unwrap().0.listing();
    let long = "l".repeat(150);
    let expected = format!("f 644 0:0 1 {long}");
    let gnu = |kind: u8, text: &str| {
        Raw::new(kind, "././@LongLink")
            .content(format!("{text}\0"))
            .with(|raw| raw.magic = *b"ustar  \0")
    };
    assert_eq!(listing(&[gnu(b'L', &long), file()]), expected);
    assert_eq!(listing(&[Raw::pax(&[("path", &long)]), file()]), expected);
    assert_eq!(
        listing(&[gnu(b'K', &long), gnu(b'L', "name"), Raw::symlink("x", "y")]),
        format!("l 777 0:0 150 name -> {long}")
    );
    // PAX numbers over the header's: size decides where the next entry starts.
    let sized = Raw::file("a", "12345").with(|raw| raw.size = b"00000000000".to_vec());
    assert_eq!(
        listing(&[
            Raw::pax(&[("size", "5"), ("uid", "3000000"), ("gid", "4")]),
            sized,
            Raw::file("b", "x")
        ]),
        "f 644 3000000:4 5 a\nf 644 0:0 1 b"
    );
    let numbers = Raw::pax(&[("SCHILY.devmajor", "1"), ("SCHILY.devminor", "3")]);
    let (tree, _) = unpack(&archive(&[numbers, Raw::new(b'3', "null")])).unwrap();
    let null = rustix::fs::stat(tree.at("null")).unwrap();
    assert_eq!(null.st_rdev, rustix::fs::makedev(1, 3));
    let old = |kind: u8, name: &str| Raw::new(kind, name).with(|raw| raw.magic = [0; 8]);
    assert_eq!(
        listing(&[old(0, "old/"), old(0, "old/f")]),
        "d 644 0:0 old\nf 644 0:0 0 old/f"
    );
    // A size on what has no content says nothing.
    let link = Raw::symlink("s", "t").with(|raw| raw.size = b"00000001000".to_vec());
    assert_eq!(
        listing(&[link, Raw::file("a", "x")]),
        "f 644 0:0 1 a\nl 777 0:0 1 s -> t"
    );
}

#[test]
fn archives_can_be_given_an_owner() {
    let tar = archive(&[
        Raw::dir("./").with(|raw| raw.mode = b"0000700".to_vec()),
        Raw::file("d/f", "x").with(|raw| raw.uid = b"0000007".to_vec()),
        Raw::symlink("s", "d"),
    ]);
    let mut options = UnpackOptions::new(Form::Tree);
    options.owner = Some((11, 22));
    options.keep_root = true;
    let (tree, unpacked) = unpack_as(&tar, &options).unwrap();
    assert_eq!(
        tree.listing(),
        "d 755 11:22 d\nf 644 11:22 1 d/f\nl 777 11:22 1 s -> d"
    );
    assert_eq!((unpacked.entries, unpacked.bytes), (3, 1));
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(tree.path()).unwrap());
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn a_hostile_layer_cannot_speak_overlay() {
    let records: Vec<(&str, &str)> = vec![
        ("SCHILY.xattr.user.overlay.redirect", "/etc"),
        ("SCHILY.xattr.user.overlay.metacopy", ""),
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("SCHILY.xattr.user.plain", "kept"),
    ];
    let (tree, _) = unpack(&archive(&[Raw::pax(&records), Raw::dir("d")])).unwrap();
    let mut names = [0; 1000];
    let length = rustix::fs::listxattr(tree.at("d"), &mut names).unwrap();
    let mut names: Vec<String> = String::from_utf8_lossy(&names[..length])
        .split_terminator('\0')
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "user.overlay.overlay.metacopy",
            "user.overlay.overlay.redirect",
            "user.plain"
        ]
    );
    // And they come back as they went in.
    let tar = tree.tar();
    let has = |text: &str| {
        tar.windows(text.len())
            .any(|bytes| bytes == text.as_bytes())
    };
    assert!(has("SCHILY.xattr.user.overlay.redirect=/etc\n"));
}

#[test]
fn the_root_is_stated_only_where_the_tar_does() {
    let with = archive(&[
        Raw::dir("./").with(|raw| raw.mode = b"0001777".to_vec()),
        Raw::file("a", "x"),
    ]);
    let (tree, _) = unpack(&with).unwrap();
    assert_eq!(tree.scan().entries, 2);
    round_trips(&tree, "a stated root");
    assert!(tree.tar().starts_with(b"./\0"));
    let (tree, _) = unpack(&archive(&[Raw::file("a", "x")])).unwrap();
    assert_eq!(tree.scan().entries, 1);
}

#[test]
fn sockets_are_left_out_and_reserved_names_refused() {
    let tree = Tree::new();
    tree.file("a", "x");
    let before = (tree.scan(), tree.tar());
    let _socket = std::os::unix::net::UnixListener::bind(tree.at("socket")).unwrap();
    assert!((tree.scan(), tree.tar()) == before);
    tree.file(".wh.a", "");
    let error = write_tar(tree.path(), &mut std::io::sink()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`.wh.a` cannot be part of a layer: names that start with `.wh.` stand for removed files"
    );
}

#[test]
fn identity_sees_what_it_should() {
    let make = |change: &dyn Fn(&Tree)| {
        let tree = Tree::new();
        tree.dir("d")
            .file("d/f", "content")
            .symlink("s", "t")
            .node("p", FileType::Fifo, (0, 0));
        for path in ["d/f", "d", "s", "p"] {
            tree.mtime(path, 1, 0);
        }
        change(&tree);
        tree.scan()
    };
    let base = make(&|_| {});
    assert_eq!(make(&|_| {}), base);
    let touched = make(&|tree| {
        tree.mtime("d/f", 1, 1);
    });
    assert_eq!(touched.tree, base.tree);
    assert_ne!(touched.id, base.id);
    // Overlayfs's own attributes are no difference, the opaque mark is.
    let marked = make(&|tree| {
        rustix::fs::setxattr(
            tree.at("d"),
            "user.overlay.impure",
            b"y",
            XattrFlags::empty(),
        )
        .unwrap();
    });
    assert_eq!(marked, base);
    let opaque = make(&|tree| {
        tree.xattr("d", OPAQUE, b"y");
    });
    assert_ne!(opaque.tree, base.tree);
    let same_size = make(&|tree| {
        tree.file("d/f", "CONTENT")
            .mtime("d/f", 1, 0)
            .mtime("d", 1, 0);
    });
    assert_ne!(same_size.tree, base.tree);
}
