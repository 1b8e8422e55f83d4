//! Trees to pack, tars to unpack, and how to tell two trees apart.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use store::layer::apply::{ApplyError, Form, UnpackOptions, Unpacked, unpack_into};
use store::layer::scan::{Scan, scan};
use store::layer::tar::write_tar;

/// The opaque mark of a layer directory.
pub(crate) const OPAQUE: &str = "user.overlay.opaque";

/// A small generator of numbers: same seed, same numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// A layer directory in the making.
#[derive(Debug)]
pub(crate) struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Tree { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }

    pub(crate) fn dir(&self, path: impl AsRef<Path>) -> &Tree {
        std::fs::create_dir_all(self.at(path)).unwrap();
        self
    }

    pub(crate) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> &Tree {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn symlink(&self, path: &str, target: &str) -> &Tree {
        std::os::unix::fs::symlink(target, self.at(path)).unwrap();
        self
    }

    pub(crate) fn link(&self, path: &str, to: &str) -> &Tree {
        std::fs::hard_link(self.at(to), self.at(path)).unwrap();
        self
    }

    pub(crate) fn node(&self, path: &str, kind: FileType, device: (u32, u32)) -> &Tree {
        let device = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(CWD, self.at(path), kind, Mode::from_raw_mode(0o640), device).unwrap();
        self
    }

    pub(crate) fn whiteout(&self, path: &str) -> &Tree {
        rustix::fs::mknodat(
            CWD,
            self.at(path),
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .unwrap();
        self
    }

    pub(crate) fn xattr(&self, path: &str, name: &str, value: &[u8]) -> &Tree {
        rustix::fs::setxattr(self.at(path), name, value, XattrFlags::empty()).unwrap();
        self
    }

    pub(crate) fn mode(&self, path: &str, mode: u32) -> &Tree {
        std::fs::set_permissions(self.at(path), std::fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    pub(crate) fn owner(&self, path: &str, uid: u32, gid: u32) -> &Tree {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, self.at(path), uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }

    pub(crate) fn mtime(&self, path: impl AsRef<Path>, seconds: i64, nanos: u32) -> &Tree {
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        self
    }

    /// One of everything that a layer can hold. Needs root for devices and owners.
    pub(crate) fn with_everything() -> Tree {
        let tree = Tree::new();
        tree.dir("etc/empty")
            .file("etc/passwd", "root:x:0:0::/:/bin/sh\n");
        tree.file("bin/su", "\x7fELF")
            .owner("bin/su", 7, 42)
            .mode("bin/su", 0o4755);
        tree.symlink("lib", "usr/lib")
            .symlink("dangling", "/no/such/place");
        tree.file("usr/lib/a", "one file")
            .link("usr/lib/b", "usr/lib/a")
            .link("a-first", "usr/lib/a");
        tree.link("linked-symlink", "dangling");
        tree.file("zero", "")
            .file("block", [b'x'; 512])
            .file("block+1", [b'y'; 513]);
        tree.file("large", Random::new(5).bytes(3_000_000));
        tree.node("fifo", FileType::Fifo, (0, 0));
        tree.node("null", FileType::CharacterDevice, (1, 3)).node(
            "disk",
            FileType::BlockDevice,
            (259, 70_000),
        );
        tree.owner("null", 3_000_000, 4_000_000_000)
            .owner("dangling", 5, 6);
        tree.file(["long"; 40].join("/"), "deep")
            .file(format!("{}/f", "n".repeat(200)), "long name");
        tree.file(
            format!("{}/{}", "p".repeat(100), "q".repeat(90)),
            "fits both fields",
        );
        tree.symlink("far", &"../".repeat(60))
            .file("päth/ünï", "utf-8");
        tree.file(
            Path::new(std::ffi::OsStr::from_bytes(b"latin\xe9")),
            "not utf-8",
        );
        tree.file("blank and\nnewline", "x")
            .file("-dash", "x")
            .file("back\\slash", "x");
        tree.xattr("etc", "user.note", b"on a directory").xattr(
            "zero",
            "user.binary",
            b"\0\n=\xff",
        );
        tree.xattr("zero", "user.empty", b"");
        // cap_net_bind_service=ep, version 2.
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        tree.xattr("block", "security.capability", &capability);
        tree.whiteout("etc/removed")
            .whiteout("gone")
            .dir("opaque")
            .xattr("opaque", OPAQUE, b"y");
        tree.file("opaque/new", "x").mode("etc/empty", 0o1777);
        tree.mtime("zero", 1_700_000_000, 0)
            .mtime("block", 1_700_000_000, 500_000_000);
        tree.mtime("block+1", -5, 0)
            .mtime("-dash", -2, 750_000_000)
            .mtime("fifo", 0, 1);
        tree.mtime("dangling", 1, 0)
            .mtime("etc", 2, 0)
            .mtime("large", 8_589_934_592, 0);
        tree
    }

    /// A tree of random shape.
    pub(crate) fn random(seed: u64) -> Tree {
        let mut random = Random::new(seed);
        let tree = Tree::new();
        let mut directories = vec![String::new()];
        let mut files: Vec<String> = Vec::new();
        for n in 0..random.below(120) {
            let parent = random.pick(&directories).clone();
            let stem = *random.pick(&[
                "a",
                "file",
                "ü",
                "x.y",
                "A-B",
                "very-long-name-that-goes-on-and-on-and-on-for-a-while-so-that-pax-is-needed",
            ]);
            let path = format!("{parent}{stem}{n}");
            match random.below(10) {
                0 | 1 => {
                    tree.dir(&path);
                    directories.push(format!("{path}/"));
                }
                2 => {
                    tree.symlink(&path, &"../x".repeat(1 + random.below(40)));
                }
                3 if !files.is_empty() => {
                    let first = random.pick::<String>(&files).clone();
                    tree.link(&path, &first);
                    files.push(path.clone());
                }
                4 => {
                    tree.whiteout(&path);
                    continue;
                }
                5 => {
                    tree.node(&path, FileType::Fifo, (0, 0));
                }
                _ => {
                    let length = *random.pick(&[0, 1, 511, 512, 513, 5000, 70_000]);
                    tree.file(&path, random.bytes(length));
                    files.push(path.clone());
                }
            }
            if random.below(3) == 0 {
                tree.owner(&path, *random.pick(&[0, 1, 65_000]), *random.pick(&[0, 7]));
            }
            let metadata = std::fs::symlink_metadata(tree.at(&path)).unwrap();
            if !metadata.is_symlink() && random.below(3) == 0 {
                tree.mode(&path, *random.pick(&[0o600, 0o755, 0o4711, 0o1777, 0o000]));
            }
            if (metadata.is_file() || metadata.is_dir()) && random.below(4) == 0 {
                let length = random.below(300);
                tree.xattr(&path, "user.x", &random.bytes(length));
            }
            if metadata.is_dir() && random.below(4) == 0 {
                tree.xattr(&path, OPAQUE, b"y");
            }
            tree.mtime(
                &path,
                i64::try_from(random.below(2_000_000_000)).unwrap() - 1000,
                *random.pick(&[0, 1, 120_000_000]),
            );
        }
        tree
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        let summary = write_tar(self.path(), &mut tar).unwrap();
        assert_eq!(summary.bytes, tar.len() as u64);
        tar
    }

    pub(crate) fn scan(&self) -> Scan {
        scan(self.path()).unwrap()
    }

    /// What lies below, one line each, sorted: `type mode uid:gid size name -> target`.
    pub(crate) fn listing(&self) -> String {
        listing(self.path())
    }
}

/// Unpacks as a layer into a fresh directory.
pub(crate) fn unpack(tar: &[u8]) -> Result<(Tree, Unpacked), ApplyError> {
    unpack_as(tar, &UnpackOptions::new(Form::Layer))
}

pub(crate) fn unpack_as(
    tar: &[u8],
    options: &UnpackOptions,
) -> Result<(Tree, Unpacked), ApplyError> {
    let tree = Tree::new();
    let root = std::fs::File::open(tree.path()).unwrap();
    let unpacked = unpack_into(&root, tar, options)?;
    Ok((tree, unpacked))
}

pub(crate) fn listing(path: &Path) -> String {
    let find = Command::new("find")
        .arg(path)
        .args(["-mindepth", "1"])
        // A directory's size is the file system's business. What comes before \001 is to sort by.
        .args(["-type", "d", "-printf", "%P\\001%y %m %U:%G %P\\n", "-o"])
        .args([
            "-type",
            "l",
            "-printf",
            "%P\\001%y %m %U:%G %s %P -> %l\\n",
            "-o",
        ])
        .args(["-printf", "%P\\001%y %m %U:%G %s %P\\n"])
        .output()
        .unwrap();
    assert!(
        find.status.success(),
        "{}",
        String::from_utf8_lossy(&find.stderr)
    );
    let text = String::from_utf8_lossy(&find.stdout).into_owned();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let lines: Vec<&str> = lines
        .into_iter()
        .map(|line| line.split_once('\u{1}').map_or(line, |(_, line)| line))
        .collect();
    lines.join("\n")
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a shell script in a mount namespace of its own, so that its mounts end with it.
pub(crate) fn script(text: &str, variables: &[(&str, &Path)]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", text]);
    command.envs(variables.iter().copied());
    run(&mut command)
}

/// One raw tar entry, with whatever lies the test wants told.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) size: Vec<u8>,
    pub(crate) mtime: Vec<u8>,
    pub(crate) mode: Vec<u8>,
    pub(crate) uid: Vec<u8>,
    pub(crate) device: (Vec<u8>, Vec<u8>),
    pub(crate) magic: [u8; 8],
    pub(crate) content: Vec<u8>,
    pub(crate) good_checksum: bool,
}

impl Raw {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Raw {
        Raw {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            size: b"00000000000".to_vec(),
            mtime: b"00000000000".to_vec(),
            mode: b"0000644".to_vec(),
            uid: b"0000000".to_vec(),
            device: (Vec::new(), Vec::new()),
            magic: *b"ustar\x0000",
            content: Vec::new(),
            good_checksum: true,
        }
    }

    pub(crate) fn file(name: &str, content: impl AsRef<[u8]>) -> Raw {
        Raw::new(b'0', name).content(content)
    }

    pub(crate) fn dir(name: &str) -> Raw {
        let mut raw = Raw::new(b'5', name);
        raw.mode = b"0000755".to_vec();
        raw
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Raw {
        Raw::new(b'2', name).link(target)
    }

    pub(crate) fn hard_link(name: &str, target: &str) -> Raw {
        Raw::new(b'1', name).link(target)
    }

    pub(crate) fn pax(records: &[(&str, &str)]) -> Raw {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        Raw::new(b'x', "PaxHeaders/x").content(body)
    }

    pub(crate) fn content(mut self, content: impl AsRef<[u8]>) -> Raw {
        self.content = content.as_ref().to_vec();
        self.size = format!("{:011o}", self.content.len()).into_bytes();
        self
    }

    pub(crate) fn link(mut self, target: &str) -> Raw {
        self.link = target.as_bytes().to_vec();
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Raw)) -> Raw {
        change(&mut self);
        self
    }

    pub(crate) fn block(&self) -> Vec<u8> {
        let mut block = vec![0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, &self.mode);
        put(108, &self.uid);
        put(116, b"0000000");
        put(124, &self.size);
        put(136, &self.mtime);
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, &self.magic);
        put(329, &self.device.0);
        put(337, &self.device.1);
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let sum = if self.good_checksum { sum } else { sum + 1 };
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.block();
        bytes.extend_from_slice(&self.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// A whole archive of raw entries.
pub(crate) fn archive(entries: &[Raw]) -> Vec<u8> {
    let mut tar: Vec<u8> = entries.iter().flat_map(Raw::bytes).collect();
    tar.extend_from_slice(&[0; 1024]);
    tar
}
