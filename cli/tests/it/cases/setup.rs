//! The files around a case's Dockerfile, from lines: git keeps no modes, owners, times, devices and empty folders.
//!
//! Paths are relative to the context; `../x` is beside it. Words are parted by blanks; one that starts with `"` is a
//! JSON string. Everything is dated 2001-09-09 (`TIME`) unless a line says otherwise.
//!
//! ```text
//! file PATH CONTENT [MODE]     folders on the way are made
//! dir PATH [MODE]
//! symlink PATH TARGET
//! link PATH EXISTING           a hard link
//! fifo PATH
//! socket PATH
//! char PATH MAJOR:MINOR
//! mode PATH MODE
//! owner PATH UID:GID           a link itself, not what it names
//! time PATH SECONDS
//! xattr PATH NAME VALUE
//! tar PATH FOLDER [WORD…]      packs a folder, or the names in it that are among the words; flags are for `tar`
//! git PATH                     makes a folder a repository with one commit
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};

/// When everything was last changed that no line gives another time.
pub const TIME: i64 = 1_000_000_000;

/// Makes the files that the lines name, below a folder whose child `context` is the context.
pub fn set_up(folder: &Path, lines: &str) {
    let mut setup = Setup {
        folder,
        times: BTreeMap::new(),
    };
    for line in lines.lines() {
        let words = words(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if let [verb, path, rest @ ..] = words.as_slice() {
            setup.line(verb, path, rest, line);
        }
    }
    setup.settle();
}

struct Setup<'a> {
    folder: &'a Path,
    times: BTreeMap<PathBuf, i64>,
}

impl Setup<'_> {
    fn line(&mut self, verb: &str, path: &str, rest: &[&str], line: &str) {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap();
        }
        match (verb, rest) {
            ("file", [content]) => {
                fs::write(&path, content).unwrap();
                mode(&path, "0644");
            }
            ("file", [content, bits]) => {
                fs::write(&path, content).unwrap();
                mode(&path, bits);
            }
            ("dir", []) => fs::create_dir_all(&path).unwrap(),
            ("dir", [bits]) => {
                fs::create_dir_all(&path).unwrap();
                mode(&path, bits);
            }
            ("symlink", [target]) => symlink(target, &path).unwrap(),
            ("link", [existing]) => fs::hard_link(self.path(existing), &path).unwrap(),
            ("fifo", []) => node(&path, FileType::Fifo, 0),
            ("socket", []) => node(&path, FileType::Socket, 0),
            ("char", [numbers]) => {
                let (major, minor) = numbers.split_once(':').unwrap();
                let device = makedev(major.parse().unwrap(), minor.parse().unwrap());
                node(&path, FileType::CharacterDevice, device);
            }
            ("mode", [bits]) => mode(&path, bits),
            ("owner", [owner]) => {
                let (uid, gid) = owner.split_once(':').unwrap();
                lchown(&path, uid.parse().ok(), gid.parse().ok()).unwrap();
            }
            ("time", [seconds]) => {
                self.times.insert(path, seconds.parse().unwrap());
            }
            ("xattr", [name, value]) => {
                lsetxattr(&path, *name, value.as_bytes(), XattrFlags::empty()).unwrap();
            }
            ("tar", [from, flags @ ..]) => {
                self.settle();
                let from = self.path(from);
                let mut tar = Command::new("tar");
                tar.args(["--sort=name", "--numeric-owner", "-c", "-f"])
                    .arg(&path)
                    .arg("-C")
                    .arg(from)
                    .args(flags);
                if flags.iter().all(|flag| flag.starts_with('-')) {
                    tar.arg(".");
                }
                assert!(tar.status().unwrap().success(), "{line}");
            }
            ("git", []) => {
                let script = "git init -q -b main . && git add -A && git commit -q -m first";
                let mut git = Command::new("sh");
                git.args(["-c", script]).current_dir(&path);
                for who in ["AUTHOR", "COMMITTER"] {
                    git.env(format!("GIT_{who}_NAME"), "a");
                    git.env(format!("GIT_{who}_EMAIL"), "a@b.example");
                    git.env(format!("GIT_{who}_DATE"), format!("{TIME} +0000"));
                }
                git.env("GIT_CONFIG_GLOBAL", "/dev/null");
                assert!(git.status().unwrap().success(), "{line}");
            }
            _ => panic!("setup.txt: no such line: {line}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        match name.strip_prefix("../") {
            Some(beside) => self.folder.join(beside),
            None => self.folder.join("context").join(name),
        }
    }

    /// Gives everything its time.
    fn settle(&self) {
        self.settle_below(self.folder);
    }

    fn settle_below(&self, path: &Path) {
        if path.symlink_metadata().unwrap().is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.settle_below(&entry.unwrap().path());
            }
        }
        let time = Timespec {
            tv_sec: self.times.get(path).copied().unwrap_or(TIME),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

fn mode(path: &Path, bits: &str) {
    let bits = u32::from_str_radix(bits, 8).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
    mode(path, "0644");
}

/// The words of a line; none for comments.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() && !rest.starts_with('#') {
        let used = if rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            words.push(values.next().unwrap().unwrap());
            values.byte_offset()
        } else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            end
        };
        rest = rest[used..].trim_start();
    }
    words
}
