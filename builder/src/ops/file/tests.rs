//! Whole file operations on small trees: a base, a context and another stage go in, the layer's listing comes out.
//!
//! Every case runs twice and must give the same; the identity that the operation returns must be that of a scan.

mod flags;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use expect_test::{Expect, expect};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::*;
use crate::cache::content_hash::content_digest;
use crate::graph::{ChownSpec, CopyAction, CopySource, Document, MkdirAction};
use crate::ops::Context;
use store::layer::compress::{Compression, compressor};

static NOT_CANCELLED: AtomicBool = AtomicBool::new(false);

/// Trees and a Dockerfile-like operation on them. Lines of a tree, with the time of each being 1000 plus its number:
///
/// ```text
/// path/ [mode [uid:gid]]      path=content [mode [uid:gid]]     path->target
/// path<=hard link to          path|fifo     path@socket         path%user.name=value
/// ```
#[derive(Default)]
struct Case {
    /// The root file system below; none is scratch.
    base: Option<&'static str>,
    context: &'static str,
    /// What `--from` reads.
    other: &'static str,
    ignore: &'static [&'static str],
    ops: &'static str,
}

struct Planted {
    dir: tempfile::TempDir,
}

impl Planted {
    fn new(case: &Case) -> Planted {
        let dir = tempfile::tempdir().unwrap();
        for (name, tree) in [
            ("base", case.base.unwrap_or("")),
            ("context", case.context),
            ("other", case.other),
        ] {
            let root = dir.path().join(name);
            fs::create_dir(&root).unwrap();
            plant(&root, tree);
        }
        Planted { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the case's operation into a new directory `upper`.
    fn run(&self, case: &Case, upper: &str) -> Result<(PathBuf, Scan), FileOpError> {
        let upper = self.path(upper);
        fs::create_dir(&upper).unwrap();
        let base = fs::File::open(self.path("base")).unwrap();
        let other = fs::File::open(self.path("other")).unwrap();
        let context = Context::open(&self.path("context"), &self.path("stat-cache")).unwrap();
        let scan = FileRun {
            op: &FileOp {
                on_base: case.base.is_some(),
                actions: parse(case.ops, case.ignore),
            },
            base: case.base.map(|_| base.as_fd()),
            inputs: &[
                Tree::RootFs(base.as_fd()),
                Tree::Context(&context),
                Tree::RootFs(other.as_fd()),
            ],
            upper: &upper,
            epoch: None,
            cancelled: &NOT_CANCELLED,
        }
        .run()?;
        Ok((upper, scan))
    }
}

fn plant(root: &Path, tree: &str) {
    let mut dirs = vec![(root.to_owned(), 1000)];
    for (line, time) in tree.lines().zip(1000..) {
        let mut words = line.split_whitespace();
        let Some(what) = words.next() else {
            continue;
        };
        let mode = words
            .next()
            .map(|mode| u32::from_str_radix(mode, 8).unwrap());
        let owner = words.next().and_then(|owner| owner.split_once(':'));
        let path = |name: &str| root.join(name);
        let planted = if let Some((name, target)) = what.split_once("->") {
            symlink(target, path(name)).unwrap();
            path(name)
        } else if let Some((name, first)) = what.split_once("<=") {
            fs::hard_link(path(first), path(name)).unwrap();
            continue;
        } else if let Some((name, attribute)) = what.split_once('%') {
            let (key, value) = attribute.split_once('=').unwrap();
            rustix::fs::setxattr(path(name), key, value.as_bytes(), XattrFlags::empty()).unwrap();
            continue;
        } else if let Some((name, content)) = what.split_once('=') {
            fs::write(path(name), content).unwrap();
            path(name)
        } else if let Some(name) = what.strip_suffix('/') {
            fs::create_dir_all(path(name)).unwrap();
            dirs.push((path(name), time));
            path(name)
        } else if let Some((name, _)) = what.split_once('|') {
            rustix::fs::mknodat(CWD, path(name), FileType::Fifo, Mode::from(0o644), 0).unwrap();
            path(name)
        } else {
            let (name, _) = what.split_once('@').unwrap();
            drop(UnixListener::bind(path(name)).unwrap());
            path(name)
        };
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (uid.parse().unwrap(), gid.parse().unwrap());
            std::os::unix::fs::lchown(&planted, Some(uid), Some(gid)).unwrap();
        }
        if !planted.is_symlink() {
            let default = if planted.is_dir() { 0o755 } else { 0o644 };
            let mode = fs::Permissions::from_mode(mode.unwrap_or(default));
            fs::set_permissions(&planted, mode).unwrap();
        }
        set_time(&planted, time);
    }
    for (dir, time) in dirs.iter().rev() {
        set_time(dir, *time);
    }
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// `COPY|ADD [--from] [--chown=…] [--chmod=…] [--exclude=…] [--parents] source… [<<NAME=content] dest` or `WORKDIR path [user]`, one per line.
fn parse(ops: &str, ignore: &[&str]) -> Vec<FileAction> {
    let one = |line: &str| {
        let mut words: Vec<_> = line.split_whitespace().collect();
        let name = words.remove(0);
        if name == "WORKDIR" {
            return FileAction::Mkdir(MkdirAction {
                path: words[0].to_owned(),
                mode: 0o755,
                owner: words.get(1).copied().unwrap_or_default().to_owned(),
            });
        }
        let mut action = CopyAction {
            dest: words.pop().unwrap().to_owned(),
            ..CopyAction::default()
        };
        let mut input = 1;
        let mut exclude = Vec::new();
        let mut parents = false;
        for word in words {
            if word == "--from" {
                input = 2;
            } else if let Some(text) = word.strip_prefix("--chown=") {
                let text = text.to_owned();
                action.chown = Some(ChownSpec { text });
            } else if let Some(mode) = word.strip_prefix("--chmod=") {
                action.chmod = Some(mode.parse().unwrap());
            } else if let Some(pattern) = word.strip_prefix("--exclude=") {
                exclude.push(pattern.to_owned());
            } else if word == "--parents" {
                parents = true;
            } else if let Some((name, content)) = word
                .strip_prefix("<<")
                .and_then(|word| word.split_once('='))
            {
                action.documents.push(Document {
                    name: name.to_owned(),
                    content: content.to_owned(),
                });
            } else {
                let ignore = if input == 1 { ignore } else { &[] };
                action.sources.push(CopySource {
                    input,
                    pattern: word.to_owned(),
                    ignore: ignore.iter().map(|&line| line.to_owned()).collect(),
                    exclude: exclude.clone(),
                    parents,
                    unpack: name == "ADD",
                });
            }
        }
        FileAction::Copy(action)
    };
    ops.lines()
        .filter(|line| !line.trim().is_empty())
        .map(one)
        .collect()
}

/// Everything below `dir`, sorted: path, kind, mode, owner, time, content.
fn listing(dir: &Path) -> String {
    let mut text = String::new();
    list_into(dir, Path::new(""), &mut text);
    text
}

fn list_into(dir: &Path, below: &Path, text: &mut String) {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let shown = below.join(&name);
        write!(text, "{}", shown.display()).unwrap();
        if kind.is_dir() {
            text.push('/');
        }
        if !kind.is_symlink() {
            write!(text, " {:o}", meta.mode() & 0o7777).unwrap();
        }
        write!(text, " {}:{} @{}", meta.uid(), meta.gid(), meta.mtime()).unwrap();
        if kind.is_symlink() {
            write!(text, " -> {}", fs::read_link(&path).unwrap().display()).unwrap();
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            let content = String::from_utf8_lossy(&content);
            if content.len() < 100 {
                write!(text, " {:?}", content.trim_end()).unwrap();
            } else {
                write!(text, " {} bytes", content.len()).unwrap();
            }
            if meta.nlink() > 1 {
                write!(text, " links={}", meta.nlink()).unwrap();
            }
        } else if kind.is_fifo() {
            text.push_str(" fifo");
        } else if kind.is_char_device() || kind.is_block_device() {
            write!(text, " device {:x}", meta.rdev()).unwrap();
        }
        if !kind.is_symlink() {
            for (name, value) in xattrs(&path) {
                write!(text, " {name}={value}").unwrap();
            }
        }
        text.push('\n');
        if kind.is_dir() {
            list_into(&path, &shown, text);
        }
    }
}

fn xattrs(path: &Path) -> Vec<(String, String)> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut xattrs: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 4096];
            let length =
                rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            let value = String::from_utf8_lossy(&value[..length]).into_owned();
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// Owners can only be given away by root; says so where that is missing.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root, because it gives files to other owners");
    }
    root
}

#[track_caller]
fn check(case: &Case, expect: &Expect) {
    if !is_root() {
        return;
    }
    let planted = Planted::new(case);
    let seen = match planted.run(case, "upper") {
        Ok((upper, scan)) => {
            let text = listing(&upper);
            assert_eq!(
                store::layer::scan::scan(&upper).unwrap(),
                scan,
                "scan of\n{text}"
            );
            let (again, second) = planted.run(case, "again").unwrap();
            assert_eq!(
                (listing(&again), second),
                (text.clone(), scan),
                "not deterministic"
            );
            text
        }
        Err(error) => format!("error: {error}\n"),
    };
    expect.assert_eq(&seen);
}

const DIRS: &str = "a=A 600 7:8
dir/ 700 7:8
dir/f=F 4755 7:8
dir/sub/ 750 7:8
dir/sub/g=G
dir/link->/etc/passwd
top=T";

#[test]
fn one_file() {
    let case = |ops| Case {
        base: Some("etc/ 700 3:4\netc/f=old\nto->etc\nold=x"),
        context: DIRS,
        ops,
        ..Case::default()
    };
    // Takes the destination's name, or its own below a directory; the directory is as in the base.
    check(
        &case("COPY a /b"),
        &expect![[r#"
        b 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /etc"),
        &expect![[r#"
        etc/ 700 3:4 @1000
        etc/a 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /etc/"),
        &expect![[r#"
        etc/ 700 3:4 @1000
        etc/a 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /new/"),
        &expect![[r#"
        new/ 755 0:0 @1000
        new/a 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /new/."),
        &expect![[r#"
        new/ 755 0:0 @1000
        new/a 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /x/y/z"),
        &expect![[r#"
        x/ 755 0:0 @1000
        x/y/ 755 0:0 @1000
        x/y/z 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a ../../b"),
        &expect![[r#"
        b 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY ../a /"),
        &expect![[r#"
        a 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a/ /b"),
        &expect![[r#"
        b 600 0:0 @1000 "A"
    "#]],
    );
    // Through a link in the base, into what it points to.
    check(
        &case("COPY a /to/n"),
        &expect![[r#"
        etc/ 700 3:4 @1000
        etc/n 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /to"),
        &expect![[r#"
        etc/ 700 3:4 @1000
        etc/a 600 0:0 @1000 "A"
    "#]],
    );
    // An existing file is replaced, whatever `/old/` would mean is an error.
    check(
        &case("COPY a /old"),
        &expect![[r#"
        old 600 0:0 @1000 "A"
    "#]],
    );
    check(
        &case("COPY a /old/"),
        &expect![[r#"
        error: `/old` is not a directory in the image, so nothing can be put below it
    "#]],
    );
    check(
        &case("COPY a /old/x"),
        &expect![[r#"
        error: `/old` is not a directory in the image, so nothing can be put below it
    "#]],
    );
}

#[test]
fn several_sources() {
    let case = |ops| Case {
        base: Some("d/"),
        context: DIRS,
        ops,
        ..Case::default()
    };
    check(
        &case("COPY a top /d/"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/a 600 0:0 @1000 "A"
        d/top 644 0:0 @1006 "T"
    "#]],
    );
    check(
        &case("COPY a top /d"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/a 600 0:0 @1000 "A"
        d/top 644 0:0 @1006 "T"
    "#]],
    );
    check(
        &case("COPY a dir /new/"),
        &expect![[r#"
        new/ 755 0:0 @1000
        new/a 600 0:0 @1000 "A"
        new/f 4755 0:0 @1002 "F"
        new/link 0:0 @1005 -> /etc/passwd
        new/sub/ 750 0:0 @1003
        new/sub/g 644 0:0 @1004 "G"
    "#]],
    );
    // As BuildKit has it, the last one stays.
    check(
        &case("COPY a top /new"),
        &expect![[r#"
        new 644 0:0 @1006 "T"
    "#]],
    );
    // A later copy sees what an earlier one made.
    check(
        &case("COPY a /n/\nCOPY top /n\nCOPY dir/sub /n"),
        &expect![[r#"
        n/ 755 0:0 @1000
        n/a 600 0:0 @1000 "A"
        n/g 644 0:0 @1004 "G"
        n/top 644 0:0 @1006 "T"
    "#]],
    );
}

#[test]
fn directories_stand_for_their_contents() {
    let case = |base, ops| Case {
        base,
        context: DIRS,
        ops,
        ..Case::default()
    };
    let expect = expect![[r#"
        d/ 755 0:0 @1001
        d/f 4755 0:0 @1002 "F"
        d/link 0:0 @1005 -> /etc/passwd
        d/sub/ 750 0:0 @1003
        d/sub/g 644 0:0 @1004 "G"
    "#]];
    check(&case(None, "COPY dir /d"), &expect);
    check(&case(None, "COPY dir/ /d"), &expect);
    check(&case(None, "COPY dir/. /d/"), &expect);
    check(&case(None, "COPY /dir /d/."), &expect);
    check(&case(None, "COPY x/../dir /d"), &expect);
    // The top directory keeps what it has, those below take the source's mode and owner and keep their time.
    let base = Some("d/ 1777 5:6\nd/sub/ 711 5:6\nd/sub/old=O\nd/f/\nd/f/hidden=H");
    check(
        &case(base, "COPY dir /d"),
        &expect![[r#"
        d/ 1777 5:6 @1000
        d/f 4755 0:0 @1002 "F"
        d/link 0:0 @1005 -> /etc/passwd
        d/sub/ 750 0:0 @1001
        d/sub/g 644 0:0 @1004 "G"
    "#]],
    );
    check(
        &case(Some(""), "COPY . /"),
        &expect![[r#"
        a 600 0:0 @1000 "A"
        dir/ 700 0:0 @1001
        dir/f 4755 0:0 @1002 "F"
        dir/link 0:0 @1005 -> /etc/passwd
        dir/sub/ 750 0:0 @1003
        dir/sub/g 644 0:0 @1004 "G"
        top 644 0:0 @1006 "T"
    "#]],
    );
    check(
        &case(Some(""), "COPY dir /p/q"),
        &expect![[r#"
        p/ 755 0:0 @1001
        p/q/ 755 0:0 @1001
        p/q/f 4755 0:0 @1002 "F"
        p/q/link 0:0 @1005 -> /etc/passwd
        p/q/sub/ 750 0:0 @1003
        p/q/sub/g 644 0:0 @1004 "G"
    "#]],
    );
    // A directory in place of a file, a link followed to where it leads.
    check(
        &case(Some("d=file"), "COPY dir/sub /d"),
        &expect![[r#"
        d/ 755 0:0 @1003
        d/g 644 0:0 @1004 "G"
    "#]],
    );
    check(
        &case(Some("d->real\nreal/ 700"), "COPY dir/sub /d"),
        &expect![[r#"
        real/ 700 0:0 @1001
        real/g 644 0:0 @1004 "G"
    "#]],
    );
    // Nested, a link is replaced, as docker and buildah have it.
    check(
        &case(Some("d/\nd/sub->/etc"), "COPY dir /d"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/f 4755 0:0 @1002 "F"
        d/link 0:0 @1005 -> /etc/passwd
        d/sub/ 750 0:0 @1003
        d/sub/g 644 0:0 @1004 "G"
    "#]],
    );
}

#[test]
fn chown_and_chmod() {
    let case = |ops| Case {
        base: Some("etc/\netc/passwd=root:x:0:0\netc/group=adm:x:9:\nd/ 700 1:1\nd/sub/ 711 1:1"),
        context: DIRS,
        other: DIRS,
        ops,
        ..Case::default()
    };
    check(
        &case("COPY --chown=5 a /n/m/"),
        &expect![[r#"
        n/ 755 5:5 @1000
        n/m/ 755 5:5 @1000
        n/m/a 600 5:5 @1000 "A"
    "#]],
    );
    check(
        &case("COPY --chown=5:adm --chmod=600 a /n/m/"),
        &expect![[r#"
        n/ 600 5:9 @1000
        n/m/ 600 5:9 @1000
        n/m/a 600 5:9 @1000 "A"
    "#]],
    );
    check(
        &case("COPY --chown=root:adm --chmod=0755 dir /d"),
        &expect![[r#"
        d/ 700 1:1 @1003
        d/f 755 0:9 @1002 "F"
        d/link 0:9 @1005 -> /etc/passwd
        d/sub/ 755 0:9 @1004
        d/sub/g 755 0:9 @1004 "G"
    "#]],
    );
    check(
        &case("COPY --chmod=4711 dir/f /d"),
        &expect![[r#"
        d/ 700 1:1 @1003
        d/f 4711 0:0 @1002 "F"
    "#]],
    );
    // From another stage, owners stay, setuid too.
    check(
        &case("COPY --from dir /d"),
        &expect![[r#"
        d/ 700 1:1 @1003
        d/f 4755 7:8 @1002 "F"
        d/link 0:0 @1005 -> /etc/passwd
        d/sub/ 750 7:8 @1004
        d/sub/g 644 0:0 @1004 "G"
    "#]],
    );
    check(
        &case("COPY --from --chown=70000:70001 dir/f /d/"),
        &expect![[r#"
        d/ 700 1:1 @1003
        d/f 4755 70000:70001 @1002 "F"
    "#]],
    );
    check(
        &case("COPY --chown=www-data a /"),
        &expect![[r#"
        error: unknown user `www-data`: not in the image's `/etc/passwd`, expected a name from it or a number
    "#]],
    );
    check(
        &case("COPY --chown=1:www a /"),
        &expect![[r#"
        error: unknown group `www`: not in the image's `/etc/group`, expected a name from it or a number
    "#]],
    );
}

#[test]
fn wildcards() {
    let case = |ops| Case {
        context: "a.txt=1
b.txt=2
.hidden.txt=3
a[1].c=4
d1/
d1/x.txt=5
d1/in/
d1/in/y.txt=6
d2/
d2/x.txt=7
link->d1
gone->nowhere",
        ops,
        ..Case::default()
    };
    check(
        &case("COPY *.txt /d/"),
        &expect![[r#"
        d/ 755 0:0 @1002
        d/.hidden.txt 644 0:0 @1002 "3"
        d/a.txt 644 0:0 @1000 "1"
        d/b.txt 644 0:0 @1001 "2"
    "#]],
    );
    check(
        &case("COPY d* /d/"),
        &expect![[r#"
        d/ 755 0:0 @1004
        d/in/ 755 0:0 @1006
        d/in/y.txt 644 0:0 @1007 "6"
        d/x.txt 644 0:0 @1009 "7"
    "#]],
    );
    check(
        &case("COPY d*/*.txt /d/"),
        &expect![[r#"
        d/ 755 0:0 @1005
        d/x.txt 644 0:0 @1009 "7"
    "#]],
    );
    check(
        &case("COPY */x.txt /d/"),
        &expect![[r#"
        d/ 755 0:0 @1005
        d/x.txt 644 0:0 @1009 "7"
    "#]],
    );
    check(
        &case("COPY lin? /d/"),
        &expect![[r#"
        d/ 755 0:0 @1004
        d/in/ 755 0:0 @1006
        d/in/y.txt 644 0:0 @1007 "6"
        d/x.txt 644 0:0 @1005 "5"
    "#]],
    );
    check(
        &case("COPY link/*.txt /d/"),
        &expect![[r#"
        d/ 755 0:0 @1005
        d/x.txt 644 0:0 @1005 "5"
    "#]],
    );
    check(
        &case("COPY a[[]1].c /d/"),
        &expect![[r#"
        d/ 755 0:0 @1003
        d/a[1].c 644 0:0 @1003 "4"
    "#]],
    );
    check(
        &case(r"COPY \a.txt /d/"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/a.txt 644 0:0 @1000 "1"
    "#]],
    );
    check(
        &case("COPY **.txt /d/"),
        &expect![[r#"
        d/ 755 0:0 @1002
        d/.hidden.txt 644 0:0 @1002 "3"
        d/a.txt 644 0:0 @1000 "1"
        d/b.txt 644 0:0 @1001 "2"
    "#]],
    );
    check(&case("COPY [a /d/"), &expect![[""]]);
    check(&case("COPY none* /d/"), &expect![[""]]);
    check(
        &case("COPY gon* /d/"),
        &expect![[r#"
        error: `/gone`: a symbolic link whose target `nowhere` does not exist
    "#]],
    );
}

#[test]
fn ignored_paths_are_not_there() {
    let case = |ignore, ops| Case {
        context: "a=1\nb=2\nd/\nd/keep=3\nd/drop=4\nd/deep/\nd/deep/keep=5\nempty/\nto-b->b",
        ignore,
        ops,
        ..Case::default()
    };
    check(
        &case(&["b"], "COPY . /"),
        &expect![[r#"
        a 644 0:0 @1000 "1"
        d/ 755 0:0 @1002
        d/deep/ 755 0:0 @1005
        d/deep/keep 644 0:0 @1006 "5"
        d/drop 644 0:0 @1004 "4"
        d/keep 644 0:0 @1003 "3"
        empty/ 755 0:0 @1007
        to-b 0:0 @1008 -> b
    "#]],
    );
    check(
        &case(&["*", "!a", "!d/deep/keep"], "COPY . /"),
        &expect![[r#"
        a 644 0:0 @1000 "1"
        d/ 755 0:0 @1002
        d/deep/ 755 0:0 @1005
        d/deep/keep 644 0:0 @1006 "5"
    "#]],
    );
    check(
        &case(&["d", "!d/keep"], "COPY d /"),
        &expect![[r#"
        keep 644 0:0 @1003 "3"
    "#]],
    );
    check(
        &case(&["d", "!d/keep"], "COPY d* /"),
        &expect![[r#"
        keep 644 0:0 @1003 "3"
    "#]],
    );
    check(
        &case(&["**/keep"], "COPY d* /"),
        &expect![[r#"
        deep/ 755 0:0 @1005
        drop 644 0:0 @1004 "4"
    "#]],
    );
    check(&case(&["d"], "COPY d* /"), &expect![[""]]);
    check(
        &case(&["d"], "COPY d /"),
        &expect![[r#"
            error: `/d`: not found: it exists, but `d` in `.dockerignore` excludes it
        "#]],
    );
    check(
        &case(&["b"], "COPY b /"),
        &expect![[r#"
            error: `/b`: not found: it exists, but `b` in `.dockerignore` excludes it
        "#]],
    );
    check(
        &case(&["b"], "COPY to-b /"),
        &expect![[r#"
            error: `/to-b`: not found: it exists, but `b` in `.dockerignore` excludes it
        "#]],
    );
    check(
        &case(&["[a"], "COPY a /"),
        &expect![[r#"
        error: .dockerignore: invalid pattern `[a`: `[` is not closed by `]`
    "#]],
    );
}

#[test]
fn links_stay_in_their_root() {
    let source = |ops| Case {
        context: "f=in\nabs->/f\nup->../../../f\nout->/etc/passwd\nloop->loop\nl1->l2\nl2->d\nd/\nd/x=1\nd/y->../../f",
        ops,
        ..Case::default()
    };
    check(
        &source("COPY abs /t/"),
        &expect![[r#"
        t/ 755 0:0 @1000
        t/abs 644 0:0 @1000 "in"
    "#]],
    );
    check(
        &source("COPY up /t/"),
        &expect![[r#"
        t/ 755 0:0 @1000
        t/up 644 0:0 @1000 "in"
    "#]],
    );
    check(
        &source("COPY out /t/"),
        &expect![[r#"
        error: `/out`: a symbolic link whose target `/etc/passwd` does not exist
    "#]],
    );
    check(
        &source("COPY loop /t/"),
        &expect![[r#"
        error: `/loop`: too many levels of symbolic links
    "#]],
    );
    check(
        &source("COPY l1 /t/"),
        &expect![[r#"
        t/ 755 0:0 @1007
        t/x 644 0:0 @1008 "1"
        t/y 0:0 @1009 -> ../../f
    "#]],
    );
    check(
        &source("COPY l1/x /t/"),
        &expect![[r#"
        t/ 755 0:0 @1008
        t/x 644 0:0 @1008 "1"
    "#]],
    );
    check(
        &source("COPY d/y /t"),
        &expect![[r#"
        t 644 0:0 @1000 "in"
    "#]],
    );
    let dest = |ops| Case {
        base: Some(
            "abs->/real\nreal/\nup->../../../real\nhang->../x/y\nfile->real/f\nloop->loop\nreal/in->../../..",
        ),
        context: "f=1\nd/\nd/g=2",
        ops,
        ..Case::default()
    };
    check(
        &dest("COPY f /abs/"),
        &expect![[r#"
        real/ 755 0:0 @1001
        real/f 644 0:0 @1000 "1"
    "#]],
    );
    check(
        &dest("COPY f /up/"),
        &expect![[r#"
        real/ 755 0:0 @1001
        real/f 644 0:0 @1000 "1"
    "#]],
    );
    check(
        &dest("COPY f /hang/"),
        &expect![[r#"
        x/ 755 0:0 @1000
        x/y/ 755 0:0 @1000
        x/y/f 644 0:0 @1000 "1"
    "#]],
    );
    check(
        &dest("COPY d /hang"),
        &expect![[r#"
        x/ 755 0:0 @1001
        x/y/ 755 0:0 @1001
        x/y/g 644 0:0 @1002 "2"
    "#]],
    );
    check(
        &dest("COPY f /file"),
        &expect![[r#"
        real/ 755 0:0 @1001
        real/f 644 0:0 @1000 "1"
    "#]],
    );
    check(
        &dest("COPY f /real/in/z"),
        &expect![[r#"
        z 644 0:0 @1000 "1"
    "#]],
    );
    check(
        &dest("COPY f /loop/"),
        &expect![[r#"
        error: `/loop/`: too many levels of symbolic links
    "#]],
    );
    check(
        &dest("WORKDIR /up/w"),
        &expect![[r#"
        real/ 755 0:0 @1001
        real/w/ 755 0:0 @0
    "#]],
    );
}

#[test]
fn what_is_not_a_plain_file() {
    let case = |ops| Case {
        context: "d/
d/pipe| 600
d/sock@
d/one=1
d/two<=d/one
d/one%user.note=n
e<=d/one",
        other: "d/
d/one=1 755 7:8
d/two<=d/one
d/one%user.note=n
d/one%user.overlay.opaque=y
d%user.dir=m
far<=d/one",
        ops,
        ..Case::default()
    };
    check(
        &case("COPY d /d"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/one 644 0:0 @1003 "1" links=2
        d/pipe 600 0:0 @1001 fifo
        d/sock 644 0:0 @1002 ""
        d/two 644 0:0 @1003 "1" links=2
    "#]],
    );
    check(
        &case("COPY d/pipe d/sock /d/"),
        &expect![[r#"
        d/ 755 0:0 @1001
        d/pipe 600 0:0 @1001 fifo
        d/sock 644 0:0 @1002 ""
    "#]],
    );
    check(
        &case("COPY --from d /d"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/one 755 7:8 @1001 "1" links=2 user.note=n
        d/two 755 7:8 @1001 "1" links=2 user.note=n
    "#]],
    );
    check(
        &case("COPY --from . /d"),
        &expect![[r#"
        d/ 755 0:0 @1000
        d/d/ 755 0:0 @1000 user.dir=m
        d/d/one 755 7:8 @1001 "1" links=3 user.note=n
        d/d/two 755 7:8 @1001 "1" links=3 user.note=n
        d/far 755 7:8 @1001 "1" links=3 user.note=n
    "#]],
    );
    check(
        &case("COPY --from --chown=9 d /d"),
        &expect![[r#"
        d/ 755 9:9 @1000
        d/one 755 9:9 @1001 "1" links=2 user.note=n
        d/two 755 9:9 @1001 "1" links=2 user.note=n
    "#]],
    );
}

#[test]
fn names_that_a_layer_gives_a_meaning() {
    let case = |ops| Case {
        context: ".wh.f=1\nd/\nd/.wh.d/\nf=2",
        ops,
        ..Case::default()
    };
    check(
        &case("COPY . /"),
        &expect![[r#"
        error: `/.wh.f`: names that begin with `.wh.` mark removals in image layers and cannot be copied
    "#]],
    );
    check(
        &case("COPY d /"),
        &expect![[r#"
        error: `/.wh.d`: names that begin with `.wh.` mark removals in image layers and cannot be copied
    "#]],
    );
    check(
        &case("COPY f /.wh.x"),
        &expect![[r#"
        error: `/.wh.x`: names that begin with `.wh.` mark removals in image layers and cannot be copied
    "#]],
    );
}

#[test]
fn missing_sources() {
    let case = |ops| Case {
        context: "package.json={}\nsrc/\nsrc/main.rs=m\nsrc/mail.rs=n",
        ops,
        ..Case::default()
    };
    check(
        &case("COPY pakage.json /"),
        &expect![[r#"
        error: `/pakage.json`: not found, did you mean `/package.json`?
    "#]],
    );
    check(
        &case("COPY src/mian.rs /"),
        &expect![[r#"
            error: `/src/mian.rs`: not found, did you mean `/src/main.rs`?
        "#]],
    );
    check(
        &case("COPY SRC/main.rs /"),
        &expect![[r#"
        error: `/SRC/main.rs`: not found, did you mean `/src`?
    "#]],
    );
    check(
        &case("COPY quite/else /"),
        &expect![[r#"
            error: `/quite/else`: not found: `/` has `package.json`, `src`
        "#]],
    );
    check(
        &case("COPY package.json/x /"),
        &expect![[r#"
        error: `/package.json/x`: not found
    "#]],
    );
    check(
        &case("COPY --from bin /"),
        &expect![[r#"
            error: `/bin`: not found: `/` is empty
        "#]],
    );
}

#[test]
fn workdir() {
    let case = |ops| Case {
        base: Some("etc/\netc/passwd=ann:x:7:8\nsrv/ 700 3:3\nfile=x"),
        ops,
        ..Case::default()
    };
    check(&case("WORKDIR /srv"), &expect![[""]]);
    check(
        &case("WORKDIR /srv/app/x"),
        &expect![[r#"
        srv/ 700 3:3 @1002
        srv/app/ 755 0:0 @0
        srv/app/x/ 755 0:0 @0
    "#]],
    );
    check(
        &case("WORKDIR /srv/app ann"),
        &expect![[r#"
        srv/ 700 3:3 @1002
        srv/app/ 755 7:8 @0
    "#]],
    );
    check(
        &case("WORKDIR /app 5:6"),
        &expect![[r#"
        app/ 755 5:6 @0
    "#]],
    );
    check(
        &case("WORKDIR /app bob"),
        &expect![[r#"
        error: unknown user `bob`: not in the image's `/etc/passwd`, expected a name from it or a number
    "#]],
    );
    check(
        &case("WORKDIR /file/x"),
        &expect![[r#"
        error: `/file` is not a directory in the image, so nothing can be put below it
    "#]],
    );
    check(&case("WORKDIR /"), &expect![[""]]);
}

/// A tar in which each line of `tree` is an entry, in order: `path/`, `path=content`, `path->target`, `path<=hard link`,
/// each with an optional mode and owner. Times are 2000 plus the line.
fn tar(tree: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (line, time) in tree.lines().zip(2000..) {
        let mut words = line.split_whitespace();
        let what = words.next().unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_mtime(time);
        header.set_mode(u32::from_str_radix(words.next().unwrap_or("644"), 8).unwrap());
        let (uid, gid) = words
            .next()
            .and_then(|ids| ids.split_once(':'))
            .unwrap_or(("0", "0"));
        header.set_uid(uid.parse().unwrap());
        header.set_gid(gid.parse().unwrap());
        let mut content = "";
        let (path, link) = if let Some((path, target)) = what.split_once("->") {
            header.set_entry_type(tar::EntryType::Symlink);
            (path, target)
        } else if let Some((path, target)) = what.split_once("<=") {
            header.set_entry_type(tar::EntryType::Link);
            (path, target)
        } else if let Some((path, text)) = what.split_once('=') {
            content = text;
            (path, "")
        } else {
            header.set_entry_type(tar::EntryType::Directory);
            (what, "")
        };
        // By hand: the builder refuses hostile names.
        let raw = header.as_ustar_mut().unwrap();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// As [`check`], with the archive as `a` in the context.
#[track_caller]
fn check_archive(archive: &[u8], base: &'static str, ops: &'static str, expect: &Expect) {
    if !is_root() {
        return;
    }
    let case = Case {
        base: Some(base),
        ops,
        ..Case::default()
    };
    let planted = Planted::new(&case);
    fs::write(planted.path("context/a"), archive).unwrap();
    set_time(&planted.path("context/a"), 1500);
    let seen = match planted.run(&case, "upper") {
        Ok((upper, scan)) => {
            let text = listing(&upper);
            assert_eq!(
                store::layer::scan::scan(&upper).unwrap(),
                scan,
                "scan of\n{text}"
            );
            text
        }
        Err(error) => format!("error: {error}\n"),
    };
    expect.assert_eq(&seen);
}

#[test]
fn archives_are_told_by_content() {
    let plain = tar("d/ 700 7:8\nd/f=F 4755 7:8\nd/h<=d/f\nd/l->../../x\nq/r/s=S");
    let expect = expect![[r#"
        t/ 755 0:0 @1500
        t/d/ 700 7:8 @2000
        t/d/f 4755 7:8 @2001 "F" links=2
        t/d/h 4755 7:8 @2001 "F" links=2
        t/d/l 0:0 @2003 -> ../../x
        t/q/ 755 0:0 @1500
        t/q/r/ 755 0:0 @1500
        t/q/r/s 644 0:0 @2004 "S"
    "#]];
    check_archive(&plain, "", "ADD a /t", &expect);
    check_archive(&plain, "", "ADD a /t/", &expect);
    check_archive(&plain, "", "ADD * /t", &expect);
    for compression in [Compression::GZIP, Compression::ZSTD] {
        let mut packed = compressor(Vec::new(), compression, 1).unwrap();
        std::io::Write::write_all(&mut packed, &plain).unwrap();
        check_archive(&packed.finish().unwrap(), "", "ADD a /t", &expect);
    }
    // COPY never unpacks; what has no entry is no archive.
    check_archive(
        &plain,
        "",
        "COPY a /t",
        &expect![[r#"
        t 644 0:0 @1500 4608 bytes
    "#]],
    );
    check_archive(
        &[0; 10240],
        "",
        "ADD a /t",
        &expect![[r#"
        t 644 0:0 @1500 10240 bytes
    "#]],
    );
    check_archive(
        b"#!/bin/sh",
        "",
        "ADD a /t",
        &expect![[r##"
        t 644 0:0 @1500 "#!/bin/sh"
    "##]],
    );
    check_archive(
        b"\x1f\x8b\x08broken",
        "",
        "ADD a /t",
        &expect![[r#"
        t 644 0:0 @1500 "\u{1f}�\u{8}broken"
    "#]],
    );
    check_archive(
        &plain[..1400],
        "",
        "ADD a /t",
        &expect![[r#"
            error: cannot unpack `/a`: the tar ends early, 136 bytes before the end of an entry
        "#]],
    );
}

#[test]
fn archives_merge_and_replace() {
    let base = "var/\nvar/run->/run\nrun/ 711 2:2\nd/ 711 1:1\nd/old=O\nx/\nx/y=hid\nf=file";
    let add = |tree, ops, expect| check_archive(&tar(tree), base, ops, &expect);
    add(
        "var/run/pid=1",
        "ADD a /",
        expect![[r#"
        run/ 711 2:2 @1002
        run/pid 644 0:0 @2000 "1"
    "#]],
    );
    add(
        "d/ 750 3:3\nd/new=N",
        "ADD a /",
        expect![[r#"
        d/ 750 3:3 @2000
        d/new 644 0:0 @2001 "N"
    "#]],
    );
    add(
        "x=file\nf/ 755\nf/g=G",
        "ADD a /",
        expect![[r#"
        f/ 755 0:0 @2001
        f/g 644 0:0 @2002 "G"
        x 644 0:0 @2000 "file"
    "#]],
    );
    add(
        "x/ 755\nx/y/ 755\nx/y/z=1\nx=now\nx/ 700\nx/w=2",
        "ADD a /",
        expect![[r#"
            x/ 700 0:0 @2004 user.overlay.opaque=y
            x/w 644 0:0 @2005 "2"
        "#]],
    );
    add(
        "l->d\nl/in=1\nl/ 700",
        "ADD a /",
        expect![[r#"
        d/ 711 1:1 @1003
        d/in 644 0:0 @2001 "1"
        l/ 700 0:0 @2002
    "#]],
    );
    add(
        "./ 700 9:9\n./f=F",
        "ADD a /d",
        expect![[r#"
        d/ 711 1:1 @1003
        d/f 644 0:0 @2001 "F"
    "#]],
    );
    add(
        "f=F 4755 9:9\nd/ 700 9:9",
        "ADD --chown=5:6 --chmod=777 a /new/x",
        expect![[r#"
            new/ 755 5:6 @1500
            new/x/ 755 5:6 @1500
            new/x/d/ 700 5:6 @2001
            new/x/f 4755 5:6 @2000 "F"
        "#]],
    );
    add(
        "f=1\ng<=f\nf=2\nh<=f\ns->f\nt<=s",
        "ADD a /t",
        expect![[r#"
            t/ 755 0:0 @1500
            t/f 644 0:0 @2002 "2" links=2
            t/g 644 0:0 @2000 "1"
            t/h 644 0:0 @2002 "2" links=2
            t/s 0:0 @2004 -> f
            t/t 0:0 @2004 -> f
        "#]],
    );
    // Another name for what the image had before: both are in the layer then.
    add(
        "new/ 755\nnew/name<=d/old\nnew/other<=new/name",
        "ADD --chown=5 a /",
        expect![[r#"
            d/ 711 1:1 @1003
            d/old 644 5:5 @1004 "O" links=3
            new/ 755 5:5 @2000
            new/name 644 5:5 @1004 "O" links=3
            new/other 644 5:5 @1004 "O" links=3
        "#]],
    );
    add(
        "name<=d",
        "ADD a /",
        expect![[r#"
        error: cannot unpack `/a`: the entry `/name` is a hard link to `/d`, which neither comes before it nor is a file of the image
    "#]],
    );
    // Two archives, and a copy over what they brought.
    add(
        "k=1\nm/ 755\nm/n=1",
        "ADD a /t\nCOPY a /t/m\nADD a /t",
        expect![[r#"
            t/ 755 0:0 @1500
            t/k 644 0:0 @2000 "1"
            t/m/ 755 0:0 @2001
            t/m/a 644 0:0 @1500 3584 bytes
            t/m/n 644 0:0 @2002 "1"
        "#]],
    );
}

#[test]
fn hostile_archives() {
    let base = "out->../../../../etc\nf=x";
    let add = |tree, expect| check_archive(&tar(tree), base, "ADD a /t", &expect);
    add(
        "../f=1",
        expect![[r#"
        error: cannot unpack `/a`: the entry `../f` leads out of the destination
    "#]],
    );
    add(
        "a/../../f=1",
        expect![[r#"
        error: cannot unpack `/a`: the entry `a/../../f` leads out of the destination
    "#]],
    );
    add(
        "/abs=1",
        expect![[r#"
        t/ 755 0:0 @1500
        t/abs 644 0:0 @2000 "1"
    "#]],
    );
    add(
        "a/./b/../c=1",
        expect![[r#"
        t/ 755 0:0 @1500
        t/a/ 755 0:0 @1500
        t/a/c 644 0:0 @2000 "1"
    "#]],
    );
    add(
        "up->../../../..\nup/f=1",
        expect![[r#"
        f 644 0:0 @2001 "1"
        t/ 755 0:0 @1500
        t/up 0:0 @2000 -> ../../../..
    "#]],
    );
    add(
        "loop->loop\nloop/f=1",
        expect![[r#"
        error: `/t/loop`: too many levels of symbolic links
    "#]],
    );
    add(
        "h<=nothing",
        expect![[r#"
        error: cannot unpack `/a`: the entry `/h` is a hard link to `/nothing`, which neither comes before it nor is a file of the image
    "#]],
    );
    add(
        "h<=../f",
        expect![[r#"
        error: cannot unpack `/a`: the entry `../f` leads out of the destination
    "#]],
    );
    add(
        "d/ 755\nh<=d",
        expect![[r#"
        error: cannot unpack `/a`: the entry `/h` is a hard link to `/d`, which neither comes before it nor is a file of the image
    "#]],
    );
    add(
        "f=1\nf/g=2",
        expect![[r#"
        error: `/t/f` is not a directory in the image, so nothing can be put below it
    "#]],
    );
    add(
        "d/.wh.x=1",
        expect![[r#"
        error: `/t/d/.wh.x`: names that begin with `.wh.` mark removals in image layers and cannot be copied
    "#]],
    );
    add(
        "f=1\nf<=f",
        expect![[r#"
        t/ 755 0:0 @1500
        t/f 644 0:0 @2000 "1"
    "#]],
    );
}

/// What the kernel shows of the layer over its base must be what `oracle`, a shell script run in a copy of the base, makes.
#[track_caller]
fn check_merged(case: &Case, oracle: &str) {
    if !is_root() {
        return;
    }
    let planted = Planted::new(case);
    planted.run(case, "upper").unwrap();
    let list = "find . -printf '%P %y %m %U:%G %l\\n' | sort; find . -type f | sort | xargs -r cat";
    let script = format!(
        "set -e; mkdir work merged; cp -a base oracle; chmod 755 oracle
        mount -t overlay overlay -o lowerdir=base,upperdir=upper,workdir=work,userxattr merged
        (cd merged; {list}) >seen
        (cd oracle; {oracle}; {list}) >expected"
    );
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .current_dir(planted.dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "the script failed: {script}");
    let read = |name: &str| fs::read_to_string(planted.path(name)).unwrap();
    assert_eq!(read("seen"), read("expected"));
}

#[test]
fn the_kernel_shows_what_was_meant() {
    let case = |base, ops| Case {
        base: Some(base),
        context: DIRS,
        ops,
        ..Case::default()
    };
    let take = "cp -r --preserve=mode,timestamps --no-preserve=ownership";
    check_merged(
        &case(
            "d/ 1777 5:6\nd/sub/ 711 5:6\nd/sub/old=O\nd/f/\nd/f/hidden=H\nd/link=was",
            "COPY dir /d",
        ),
        &format!(
            "rm -r d/f d/link; {take} ../context/dir/. d; chown 0:0 d/sub; chown 5:6 d; chmod 1777 d"
        ),
    );
    check_merged(
        &case("d=file", "COPY dir /d"),
        &format!("rm d; mkdir d; {take} ../context/dir/. d; chmod 755 d"),
    );
    check_merged(
        &case("d->../up/there\nkeep=K", "COPY dir/sub /d"),
        "mkdir -p up/there; cp ../context/dir/sub/g up/there",
    );
    // A file where the base has a directory, then a directory again: nothing of the base's shows.
    check_merged(
        &case(
            "d/\nd/hidden=H\nd/hidden2=H",
            "COPY a /x/\nCOPY dir/sub/g /y/d\nCOPY y* /\nCOPY a /d/",
        ),
        "mkdir x y; cp -p --no-preserve=ownership ../context/a x; cp ../context/dir/sub/g y/d
         cp -p --no-preserve=ownership ../context/a d",
    );
    check_merged(
        &Case {
            context: "one/\none/d=file\ntwo/\ntwo/d/\ntwo/d/new=N",
            ..case("d/\nd/hidden=H", "COPY one /\nCOPY two /")
        },
        "rm -r d; mkdir d; echo -n N >d/new",
    );
    check_merged(
        &case("srv/ 700 3:3", "WORKDIR /srv/a/b 7:8"),
        "mkdir -p srv/a/b; chown -R 7:8 srv/a",
    );
}

/// Runs `COPY . /` after `change` happened to a context whose digest is known already.
#[track_caller]
fn check_changed(change: impl Fn(&Path), expect: &str) {
    let case = Case {
        context: "f=12345\ng=1\nd/\nd/h=1",
        ops: "COPY . /",
        ..Case::default()
    };
    let planted = Planted::new(&case);
    let upper = planted.path("upper");
    fs::create_dir(&upper).unwrap();
    let context = Context::open(&planted.path("context"), &planted.path("stat-cache")).unwrap();
    let actions = parse("COPY . /", &[]);
    let FileAction::Copy(copy) = &actions[0] else {
        unreachable!("it is a copy");
    };
    let tree = Tree::Context(&context);
    content_digest(tree, &copy.sources[0], &NOT_CANCELLED).unwrap();
    change(&planted.path("context"));
    let error = FileRun {
        op: &FileOp {
            on_base: false,
            actions: actions.clone(),
        },
        base: None,
        inputs: &[tree, tree],
        upper: &upper,
        epoch: None,
        cancelled: &NOT_CANCELLED,
    }
    .run()
    .unwrap_err();
    assert_eq!(error.to_string(), expect);
}

#[test]
fn a_context_that_changes_under_the_build() {
    if !is_root() {
        return;
    }
    let changed = "`/f`: changed while the build read it";
    check_changed(|root| fs::write(root.join("f"), "54321").unwrap(), changed);
    check_changed(|root| fs::write(root.join("f"), "123456").unwrap(), changed);
    check_changed(|root| fs::write(root.join("f"), "1234").unwrap(), changed);
    check_changed(|root| fs::remove_file(root.join("f")).unwrap(), changed);
    check_changed(
        |root| {
            fs::remove_file(root.join("f")).unwrap();
            symlink("/etc/passwd", root.join("f")).unwrap();
        },
        changed,
    );
    // A pipe in its place must not make the build wait.
    check_changed(
        |root| {
            fs::remove_file(root.join("f")).unwrap();
            plant(root, "f|");
        },
        changed,
    );
    check_changed(
        |root| {
            fs::rename(root.join("d"), root.join("e")).unwrap();
            symlink("/etc", root.join("d")).unwrap();
        },
        "`/d`: changed while the build read it",
    );
}

#[test]
fn an_unreadable_file_is_named() {
    if !is_root() {
        return;
    }
    let case = Case {
        context: "d/\nd/secret=x 0 5:5",
        ops: "COPY . /",
        ..Case::default()
    };
    let planted = Planted::new(&case);
    // Only this thread gives up what lets root read everything.
    let error = std::thread::spawn(move || {
        use rustix::thread::CapabilitySet;
        let mut sets = rustix::thread::capabilities(None).unwrap();
        let reading = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        sets.effective.remove(reading);
        rustix::thread::set_capabilities(None, sets).unwrap();
        planted.run(&case, "upper").unwrap_err().to_string()
    });
    let error = error.join().unwrap();
    assert_eq!(
        error,
        "cannot open `/d/secret`: Permission denied (os error 13)"
    );
}

#[test]
fn large_and_sparse_files_arrive_whole() {
    if !is_root() {
        return;
    }
    let case = Case {
        ops: "COPY . /",
        ..Case::default()
    };
    let planted = Planted::new(&case);
    let large: Vec<u8> = (0..1_500_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(planted.path("context/large"), &large).unwrap();
    fs::write(planted.path("context/edge"), &large[..256 * 1024]).unwrap();
    let sparse = fs::File::create(planted.path("context/sparse")).unwrap();
    sparse.set_len(8 * 1024 * 1024).unwrap();
    let (upper, scan) = planted.run(&case, "upper").unwrap();
    assert_eq!(store::layer::scan::scan(&upper).unwrap(), scan);
    assert!(fs::read(upper.join("large")).unwrap() == large);
    assert!(fs::read(upper.join("edge")).unwrap() == large[..256 * 1024]);
    let meta = fs::metadata(upper.join("sparse")).unwrap();
    assert_eq!(meta.len(), 8 * 1024 * 1024);
    assert!(meta.blocks() < 2048, "{} blocks", meta.blocks());
}

#[test]
fn many_files_on_several_threads() {
    if !is_root() {
        return;
    }
    let case = Case {
        ops: "COPY . /d",
        ..Case::default()
    };
    let planted = Planted::new(&case);
    for number in 0..1000 {
        let dir = planted.path("context").join(format!("{}", number % 7));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{number}")), format!("content {number}")).unwrap();
    }
    let (upper, scan) = planted.run(&case, "upper").unwrap();
    assert_eq!(store::layer::scan::scan(&upper).unwrap(), scan);
    assert_eq!(scan.entries, 1008);
    assert_eq!(planted.run(&case, "again").unwrap().1, scan);
}

#[test]
fn cancelled_before_it_writes() {
    let planted = Planted::new(&Case::default());
    let context = Context::open(&planted.path("context"), &planted.path("stat-cache")).unwrap();
    let result = FileRun {
        op: &FileOp {
            on_base: false,
            actions: parse("COPY . /", &[]),
        },
        base: None,
        inputs: &[Tree::Context(&context), Tree::Context(&context)],
        upper: &planted.path("other"),
        epoch: None,
        cancelled: &AtomicBool::new(true),
    }
    .run();
    assert!(matches!(result, Err(FileOpError::Cancelled)));
}

#[test]
fn capabilities_come_along_from_a_stage_but_not_from_a_context() {
    if !is_root() {
        return;
    }
    // Version 2, effective; permitted: CAP_NET_BIND_SERVICE.
    let mut capability = [0; 20];
    capability[..5].copy_from_slice(&[1, 0, 0, 2, 0]);
    capability[5] = 4;
    for (ops, kept) in [
        ("COPY --from . /d", true),
        ("COPY --from --chown=5:6 f /d/", true),
        ("COPY . /d", false),
    ] {
        let case = Case {
            context: "f=1 755",
            other: "f=1 755",
            ops,
            ..Case::default()
        };
        let planted = Planted::new(&case);
        for tree in ["context", "other"] {
            let file = planted.path(tree).join("f");
            let none = XattrFlags::empty();
            rustix::fs::setxattr(file, "security.capability", &capability, none).unwrap();
        }
        let (upper, scan) = planted.run(&case, "upper").unwrap();
        assert_eq!(store::layer::scan::scan(&upper).unwrap(), scan);
        let mut value = [0; 64];
        let file = upper.join("d/f");
        let length = rustix::fs::getxattr(file, "security.capability", &mut value[..]);
        let seen = length.map(|length| &value[..length]).ok();
        assert_eq!(seen, kept.then_some(&capability[..]), "{ops}");
    }
}
