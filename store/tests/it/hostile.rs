//! Archives made to break out, to exhaust, or just broken: each is refused, and nothing outside changes.

use std::io::{self, Read};

use store::layer::apply::{Form, UnpackOptions};
use store::layer::compress::{Compression, compressor, decompressor};
use store::layer::entry::PATH_BYTES_MAX;

use crate::support::{Random, Raw, Tree, archive, unpack, unpack_as};

/// The archive is refused with exactly this message.
fn refused(entries: &[Raw], message: &str) {
    refused_bytes(&archive(entries), message);
}

fn refused_bytes(tar: &[u8], message: &str) {
    let error = unpack(tar)
        .err()
        .unwrap_or_else(|| panic!("taken, expected: {message}"));
    assert_eq!(error.to_string(), message);
}

#[test]
fn ways_out_are_refused() {
    for path in ["..", "../x", "a/../../x", "/../x", "a/..", "./../x"] {
        refused(
            &[Raw::file(path, "x")],
            &format!(
                "tar entry `{path}` refused: `..` in a path, expected one that stays below the root"
            ),
        );
        refused(
            &[Raw::file("a", "x"), Raw::hard_link("b", path)],
            &format!(
                "tar entry `{path}` refused: `..` in a path, expected one that stays below the root"
            ),
        );
    }
    refused(
        &[Raw::file(".wh...", "")],
        "tar entry `.wh...` refused: a whiteout that names no file",
    );
    refused(
        &[Raw::file("d/.wh..", "")],
        "tar entry `d/.wh..` refused: a whiteout that names no file",
    );
    refused(
        &[Raw::file("d/.wh.", "")],
        "tar entry `d/.wh.` refused: a whiteout that names no file",
    );
    refused(
        &[Raw::file("/", "x").with(|raw| raw.name = b".".to_vec())],
        "tar entry `.` refused: the root can only be a directory",
    );
}

#[test]
fn links_lead_nowhere_outside() {
    let outside = Tree::new();
    outside.file("victim", "before");
    let away = outside.path().to_str().unwrap();
    let up = format!("{}{away}", "../".repeat(50));
    for target in [away, &up] {
        // Through a link, over a link, by a hard link to a link, by a whiteout through a link: all inside the root.
        for last in [
            Raw::file("l/victim", "after"),
            Raw::symlink("l/victim", "x"),
            Raw::dir("l/victim"),
            Raw::new(b'6', "l/victim"),
            Raw::file("l/.wh.victim", ""),
            Raw::file("l/.wh..wh..opq", ""),
            Raw::dir("l/new").with(|raw| raw.mode = b"0000777".to_vec()),
        ] {
            unpack(&archive(&[Raw::symlink("l", target), last])).unwrap();
        }
        let error = unpack(&archive(&[
            Raw::symlink("l", target),
            Raw::hard_link("h", "l/victim"),
        ]))
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("is not an earlier file of this archive"),
            "{error}"
        );
        let (tree, _) = unpack(&archive(&[
            Raw::symlink("l", &format!("{target}/victim")),
            Raw::hard_link("h", "l"),
            Raw::file("h", "after"),
            Raw::file("l", "after"),
        ]))
        .unwrap();
        assert_eq!(std::fs::read(tree.at("h")).unwrap(), b"after");
    }
    assert_eq!(outside.listing(), "f 644 0:0 6 victim");
    assert_eq!(std::fs::read(outside.at("victim")).unwrap(), b"before");
}

#[test]
fn magic_links_of_proc_are_not_followed() {
    let error = unpack(&archive(&[
        Raw::symlink("self", "/proc/self/cwd"),
        Raw::file("self/x", "1"),
    ]));
    // There is no proc inside: the target is simply made below the root.
    assert!(error.unwrap().0.at("proc/self/cwd/x").exists());
}

#[test]
fn impossible_trees_are_refused() {
    refused(
        &[Raw::file("a", "x"), Raw::file("a/b", "x")],
        "cannot unpack `a/b`: `a` is not a directory",
    );
    refused(
        &[
            Raw::symlink("a", "b"),
            Raw::symlink("b", "a"),
            Raw::file("a/x", ""),
        ],
        "cannot unpack `a/x`: more than 40 symbolic links on the way",
    );
    refused(
        &[Raw::hard_link("a", "/lower/layer/file")],
        "cannot unpack hard link `a`: its target `/lower/layer/file` is not an earlier file of this archive",
    );
    refused(
        &[Raw::dir("d"), Raw::hard_link("a", "d")],
        "cannot unpack hard link `a`: its target `d` is not an earlier file of this archive",
    );
    refused(
        &[Raw::hard_link("a", "/")],
        "cannot unpack hard link `a`: its target `/` is not an earlier file of this archive",
    );
    refused(
        &[Raw::file(".wh.x", ""), Raw::hard_link("a", "x")],
        "cannot unpack hard link `a`: its target `x` is not an earlier file of this archive",
    );
    refused(
        &[Raw::symlink("s", "")],
        "cannot unpack `s`: cannot create the symbolic link",
    );
    refused(
        &[Raw::new(b'D', "dump")],
        "bad tar header at byte 0: `dump` has the unknown type `D`",
    );
    // The file that holds a linked file goes away before the link is made.
    refused(
        &[Raw::file("d/f", "x"), Raw::hard_link("d", "d/f")],
        "cannot unpack `d`: cannot create the hard link",
    );
}

#[test]
fn headers_that_lie_are_refused() {
    let at = |offset: u64, problem: &str| format!("bad tar header at byte {offset}: {problem}");
    let file = || Raw::file("a", "x");
    refused(
        &[file().with(|raw| raw.good_checksum = false)],
        &at(0, "the checksum does not match"),
    );
    refused(
        &[file(), file().with(|raw| raw.good_checksum = false)],
        &at(1024, "the checksum does not match"),
    );
    refused(
        &[file().with(|raw| raw.size = b"-0000000001".to_vec())],
        &at(0, "the size is not a number"),
    );
    refused(
        &[file().with(|raw| raw.size = vec![0xff; 12])],
        &at(0, "the size is not a number"),
    );
    refused(
        &[file().with(|raw| raw.mode = b"rwxr-xr".to_vec())],
        &at(0, "the mode of `a` is not a number"),
    );
    refused(
        &[file().with(|raw| raw.mtime = b"yesterday".to_vec())],
        &at(0, "the mtime of `a` is not a number"),
    );
    refused(
        &[Raw::pax(&[("mtime", "99999999999999999999")]), file()],
        &at(0, "the mtime of `a` is not a number"),
    );
    refused(
        &[Raw::pax(&[("size", "-1")]), file()],
        &at(0, "the size of `a` is not a number"),
    );
    refused(
        &[Raw::pax(&[("uid", "1.5")]), file()],
        &at(0, "the user id of `a` is not a number"),
    );
    refused(
        &[Raw::pax(&[("uid", "4294967295")]), file()],
        "bad tar entry at byte 0: user id exceeds the limit of 4294967294",
    );
    refused(
        &[Raw::pax(&[("path", "a\0b")]), file()],
        &at(0, "a path holds a NUL byte"),
    );
    refused(
        &[Raw::new(b'x', "p").content("7 a=b\n"), file()],
        &at(0, "a PAX record is not `length key=value`"),
    );
    refused(
        &[Raw::pax(&[("path", "a")])],
        &at(0, "an extension header with no entry after it"),
    );
    let mut lone = file().bytes();
    lone.extend_from_slice(&[0; 512]);
    lone.extend_from_slice(&file().bytes());
    refused_bytes(
        &lone,
        &at(
            1024,
            "one block of zeros where an archive has two at its end",
        ),
    );
}

#[test]
fn cut_archives_are_refused() {
    let whole = archive(&[
        Raw::file("a", [b'x'; 1000]),
        Raw::pax(&[("path", "b")]),
        Raw::file("b", "x"),
    ]);
    // Where a cut falls between entries, or between the closing blocks, no reader of layers can tell; everywhere else it
    // is an error.
    let between = [0, 1536, 3584, 4096];
    for length in (0..whole.len()).step_by(64) {
        let outcome = unpack(&whole[..length]);
        assert_eq!(
            outcome.is_ok(),
            between.contains(&length),
            "cut to {length}: {:?}",
            outcome.err()
        );
    }
    refused_bytes(
        &whole[..700],
        "the tar ends early, 836 bytes before the end of an entry",
    );
    refused_bytes(
        &whole[..300],
        "the tar ends early, in the middle of a header",
    );
}

#[test]
fn large_claims_cost_nothing() {
    // A header that claims what no stream will bring must not reserve it.
    let mut claims = Raw::file("a", "x")
        .with(|raw| raw.size = b"77777777777".to_vec())
        .bytes();
    claims.truncate(1024);
    refused_bytes(
        &claims,
        "the tar ends early, 8589934080 bytes before the end of an entry",
    );
    let claims = Raw::new(b'x', "p").with(|raw| raw.size = b"77777777777".to_vec());
    refused(
        std::slice::from_ref(&claims),
        "bad tar entry at byte 512: an extension header exceeds the limit of 1048576",
    );
    refused(
        &[claims.with(|raw| raw.kind = b'L')],
        "bad tar entry at byte 512: an extension header exceeds the limit of 1048576",
    );
    let long = "x/".repeat(PATH_BYTES_MAX / 2 + 1);
    refused(
        &[Raw::pax(&[("path", &long)]), Raw::file("a", "")],
        "bad tar entry at byte 0: a path exceeds the limit of 4095",
    );
    refused(
        &[Raw::pax(&[("linkpath", &long)]), Raw::symlink("a", "b")],
        "bad tar entry at byte 0: a link target exceeds the limit of 4095",
    );
    let chain = vec![Raw::pax(&[("comment", "x")]); 100];
    refused(
        &chain,
        "bad tar entry at byte 0: the number of extension headers exceeds the limit of 64",
    );
    let value = "v".repeat(600_000);
    let mut globals = [
        Raw::pax(&[("a", &value)]),
        Raw::pax(&[("b", &value)]),
        Raw::file("a", ""),
    ];
    globals[0].kind = b'g';
    globals[1].kind = b'g';
    let error = unpack(&archive(&globals)).unwrap_err().to_string();
    assert!(
        error.ends_with("the global header exceeds the limit of 1048576"),
        "{error}"
    );

    let mut options = UnpackOptions::new(Form::Layer);
    options.entries_max = 3;
    let entries: Vec<Raw> = (0..4).map(|n| Raw::file(&n.to_string(), "")).collect();
    let error = unpack_as(&archive(&entries), &options).unwrap_err();
    assert_eq!(error.to_string(), "tar refused at `3`: more than 3 entries");
    options.bytes_max = 100;
    let error = unpack_as(
        &archive(&[Raw::file("a", [0; 60]), Raw::file("b", [0; 60])]),
        &options,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tar refused at `b`: more than 100 bytes in all"
    );
    options.names_max = 10;
    let error = unpack_as(
        &archive(&[Raw::dir("abcdefgh"), Raw::dir("ijkl")]),
        &options,
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "tar refused at `ijkl`: more than 10 bytes of directory names"
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let wrong = "bad tar header at byte 0: the map of a sparse file is not valid";
    let v1 = |map: &str, real: &str, data: usize| {
        let mut content = map.as_bytes().to_vec();
        content.resize(512, 0);
        content.resize(512 + data, b'x');
        let records = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "s"),
            ("GNU.sparse.realsize", real),
        ];
        [Raw::pax(&records), Raw::file("GNUSparseFile.1/s", content)]
    };
    let (tree, _) = unpack(&archive(&v1("2\n0\n3\n1000\n2\n", "2000", 5))).unwrap();
    let content = std::fs::read(tree.at("s")).unwrap();
    assert_eq!(
        (content.len(), &content[..4], &content[999..1003]),
        (2000, &b"xxx\0"[..], &b"\0xx\0"[..])
    );
    refused(&v1("1\n0\n3\n", "2", 3), wrong);
    refused(&v1("2\n10\n3\n0\n2\n", "2000", 5), wrong);
    refused(&v1("1\n0\n3\n", "2000", 4), wrong);
    refused(&v1("1\n18446744073709551615\n3\n", "2000", 3), wrong);
    refused(&v1("x\n", "2000", 3), wrong);
    refused(&v1("1\n0\n", "2000", 3), wrong);
    refused(
        &v1("99999999\n", "2000", 3),
        "bad tar entry at byte 0: the number of a sparse file's pieces exceeds the limit of 65536",
    );
    let old = [
        Raw::pax(&[("GNU.sparse.map", "0,1,2"), ("GNU.sparse.size", "5")]),
        Raw::file("s", "x"),
    ];
    refused(&old, wrong);
    let huge = [
        Raw::pax(&[
            ("GNU.sparse.map", "0,1"),
            ("GNU.sparse.size", "9000000000000000000"),
        ]),
        Raw::file("s", "x"),
    ];
    refused(
        &huge,
        "tar refused at `a`: more than 1099511627776 bytes in all"
            .replace("`a`", "`s`")
            .as_str(),
    );
    let disorder = [
        Raw::pax(&[("GNU.sparse.numbytes", "1"), ("GNU.sparse.size", "5")]),
        Raw::file("s", "x"),
    ];
    refused(
        &disorder,
        "bad tar header at byte 0: the map of a sparse file is out of order",
    );
}

#[test]
fn depth_is_bounded_by_the_path() {
    let deep = "d/".repeat(PATH_BYTES_MAX / 2 - 1) + "f";
    let (tree, _) = unpack(&archive(&[
        Raw::pax(&[("path", &deep)]),
        Raw::file("x", "1"),
    ]))
    .unwrap();
    assert_eq!(tree.scan().entries, 2047);
    // And it goes away again, as a whole, for a file of the same name.
    let entries = [
        Raw::pax(&[("path", &deep)]),
        Raw::file("x", "1"),
        Raw::file("d", "flat"),
    ];
    assert_eq!(
        unpack(&archive(&entries)).unwrap().0.listing(),
        "f 644 0:0 4 d"
    );
}

#[test]
fn an_endless_stream_of_zeros_ends() {
    // What follows the archive is read for its digest, not kept.
    let mut stream = Raw::file("a", "x").bytes().to_vec();
    stream.extend_from_slice(&[0; 1024]);
    let stream = io::Cursor::new(stream).chain(io::repeat(0).take(64 * 1024 * 1024));
    let tree = Tree::new();
    let root = std::fs::File::open(tree.path()).unwrap();
    let unpacked =
        store::layer::apply::unpack_into(&root, stream, &UnpackOptions::new(Form::Layer)).unwrap();
    assert_eq!(unpacked.entries, 1);
}

/// Some kilobytes that would become 20 GiB: it ends soon after the first 16.
#[test]
fn a_decompression_bomb_is_stopped() {
    const GIB: u64 = 1 << 30;
    let mut frame = compressor(Vec::new(), Compression::ZSTD, 1).unwrap();
    io::copy(&mut io::repeat(0).take(GIB), &mut frame).unwrap();
    let frame = frame.finish().unwrap();
    assert!((frame.len() as u64) < GIB / 1000);
    let bomb = frame.repeat(20);
    let mut reader = decompressor(&bomb[..]).unwrap();
    let (mut came, mut buffer) = (0, vec![0; 1 << 20]);
    let error = loop {
        match reader.read(&mut buffer) {
            Ok(0) => panic!("{came} bytes came, and no error"),
            Ok(length) => came += length as u64,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(
        error.to_string().contains("a decompression bomb"),
        "{error}"
    );
    assert!((15 * GIB..=16 * GIB).contains(&came), "{came}");
}

/// Valid archives with a few bytes changed: no panic, no endless work, nothing outside.
#[test]
fn mutated_archives_do_no_harm() {
    let everything = Tree::with_everything().tar();
    let sparse = [
        Raw::pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "9"),
        ]),
        Raw::file("s", [&b"1\n0\n3\n"[..], &[0; 505], b"abc"].concat()),
    ];
    let old = Raw::new(b'S', "old").with(|raw| raw.magic = *b"ustar  \0");
    let small = archive(
        &[
            &sparse[..],
            &[
                old,
                Raw::symlink("l", "/"),
                Raw::file("l/x", "1"),
                Raw::hard_link("h", "l/x"),
                Raw::file(".wh.q", ""),
            ],
        ]
        .concat(),
    );
    let around = Tree::new();
    let mut options = UnpackOptions::new(Form::Layer);
    options.bytes_max = 16 * 1024 * 1024;
    for seed in 0..400 {
        let mut random = Random::new(seed);
        // Headers are where damage matters; most of the large archive is one file's content.
        let mut tar = if seed % 4 == 0 {
            everything[..200 * 512].to_vec()
        } else {
            small.clone()
        };
        for _ in 0..1 + random.below(8) {
            let at = random.below(tar.len());
            tar[at] = *random.pick(&[0, b'0', b'7', b'/', b'.', b'x', 0xff, 0x80, b'\n', b'=']);
            // Mend the checksum of the block, or nearly every change would just fail there.
            let start = at / 512 * 512;
            let block = &mut tar[start..start + 512];
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        around.dir("root");
        let root = std::fs::File::open(around.at("root")).unwrap();
        let _ = store::layer::apply::unpack_into(&root, &tar[..], &options);
        drop(root);
        let names: Vec<_> = std::fs::read_dir(around.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["root"], "seed {seed}");
        std::fs::remove_dir_all(around.at("root")).unwrap();
    }
}

#[test]
fn mutated_streams_do_no_harm() {
    use std::io::Write as _;
    let plain = Random::new(9).bytes(2000).repeat(20);
    let packed: Vec<Vec<u8>> = [Compression::GZIP, Compression::ZSTD]
        .into_iter()
        .map(|compression| {
            let mut writer = compressor(Vec::new(), compression, 1).unwrap();
            writer.write_all(&plain).unwrap();
            writer.finish().unwrap()
        })
        .chain([b"BZh9".to_vec(), b"\xfd7zXZ\0\0\x04".to_vec()])
        .collect();
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let mut stream = random.pick(&packed).clone();
        for _ in 0..random.below(6) {
            let at = random.below(stream.len());
            stream[at] = random.next().to_le_bytes()[0];
        }
        stream.truncate(random.below(stream.len() * 2).min(stream.len()));
        let Ok(reader) = decompressor(&stream[..]) else {
            continue;
        };
        // At most what a bomb of this size may claim is read here.
        let _ = io::copy(&mut reader.take(64 * 1024 * 1024), &mut io::sink());
    }
}
