//! From a commit to a tree that can be a layer: fetched, checked out, confined, with modes that no umask decides.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};
use store::StoreError;
use store::fs::TempDir;

use super::Resolved;
use super::command::{Git, GitError};
use crate::error::StepError;
use crate::graph::GitOp;
use crate::ops::source::Fetching;
use crate::ops::tree::{Kind, Listing, Place, Tree, TreeError, join};

/// Most folders below one another that are checked out.
const DEPTH_MAX: usize = 4096;

/// What the bare repository of an address is called. Those that use SHA-256 are of another format.
pub(super) fn mirror_name(op: &GitOp, resolved: &Resolved) -> String {
    let address = blake3::hash(op.url.remote.as_bytes()).to_hex();
    format!("{address}-{}", object_format(&resolved.commit))
}

fn object_format(commit: &str) -> &'static str {
    match commit.len() {
        64 => "sha256",
        _ => "sha1",
    }
}

/// Brings the commit into the bare repository at `path`, which is made if it is not there.
pub(super) fn bring(
    fetching: &Fetching<'_>,
    git: &Git<'_>,
    path: &Path,
    op: &GitOp,
    resolved: &Resolved,
) -> Result<(), StepError> {
    if !store::fs::is_dir(path).map_err(StoreError::from)? {
        let made = TempDir::create(&fetching.store.root().join("tmp")).map_err(StoreError::from)?;
        let format = format!("--object-format={}", object_format(&resolved.commit));
        let at = text(made.path());
        git.run(&["init", "--quiet", "--bare", "--template=", &format, &at])?;
        made.publish(path).map_err(StoreError::from)?;
    }
    let dir = format!("--git-dir={}", path.display());
    let has = |commit: &str| {
        let object = format!("{commit}^{{commit}}");
        git.succeeds(&[&dir, "cat-file", "-e", &object])
    };
    let commit = resolved.commit.as_str();
    if has(commit)? {
        return Ok(());
    }
    let remote = op.url.remote.as_str();
    let shallow = ["fetch", "--quiet", "--no-tags", "--force", "--depth=1"];
    let by_commit = [&[dir.as_str()], &shallow[..], &["--", remote, commit]].concat();
    match git.run(&by_commit) {
        Ok(_) => {}
        // Some servers give out only what a ref names.
        Err(refused @ GitError::Failed { .. }) => match &resolved.name {
            Some(name) => {
                let refspec = format!("+{name}:refs/longshore/fetched");
                let by_ref = [&[dir.as_str()], &shallow[..], &["--", remote, &refspec]].concat();
                git.run(&by_ref)?;
            }
            None => everything(git, &dir, remote, path).map_err(|_| refused)?,
        },
        Err(error) => return Err(error.into()),
    }
    if has(commit)? {
        return Ok(());
    }
    Err(GitError::NoCommit {
        url: git.url.clone(),
        commit: commit.to_owned(),
    }
    .into())
}

/// Fetches all branches and tags with their history: the last resort for a commit that no ref names.
fn everything(git: &Git<'_>, dir: &str, remote: &str, path: &Path) -> Result<(), GitError> {
    let mut arguments = vec![dir, "fetch", "--quiet", "--force"];
    if path.join("shallow").exists() {
        arguments.push("--unshallow");
    }
    let refs = [
        "--",
        remote,
        "+refs/heads/*:refs/remotes/origin/*",
        "+refs/tags/*:refs/tags/*",
    ];
    arguments.extend(refs);
    git.run(&arguments).map(drop)
}

/// When the commit was made, in seconds since 1970.
pub(super) fn commit_time(
    git: &Git<'_>,
    mirror: &Path,
    resolved: &Resolved,
) -> Result<i64, StepError> {
    let dir = format!("--git-dir={}", mirror.display());
    let printed = git.run(&[&dir, "show", "--no-patch", "--format=%ct", &resolved.commit])?;
    Ok(String::from_utf8_lossy(&printed)
        .trim()
        .parse()
        .unwrap_or(0))
}

/// Checks the commit out below `work`; returns the folder that has its files.
///
/// A tree without submodules whose `.git` nobody wants is written straight from the bare repository.
pub(super) fn check_out(
    git: &Git<'_>,
    mirror: &Path,
    op: &GitOp,
    resolved: &Resolved,
    work: &Path,
) -> Result<PathBuf, StepError> {
    let tree = work.join("tree");
    store::fs::create_dir(&tree).map_err(StoreError::from)?;
    let dir = format!("--git-dir={}", mirror.display());
    let commit = resolved.commit.as_str();
    let modules = format!("{commit}:.gitmodules");
    let has_modules = op.submodules && git.succeeds(&[&dir, "cat-file", "-e", &modules])?;
    if !op.keep_git_dir && !has_modules {
        let at = format!("--work-tree={}", tree.display());
        let index = work.join("index");
        let arguments = [
            &dir,
            &at,
            "-c",
            "core.bare=false",
            "read-tree",
            "--reset",
            "-u",
            commit,
        ];
        git.run_with(&arguments, &[("GIT_INDEX_FILE", &index)])?;
        return Ok(tree);
    }
    let at = text(&tree);
    let format = format!("--object-format={}", object_format(commit));
    git.run(&[
        "init",
        "--quiet",
        "--template=",
        "--initial-branch=main",
        &format,
        &at,
    ])?;
    let inside = |arguments: &[&str]| git.run(&[&["-C", &at], arguments].concat());
    let origin = git.url.as_str();
    // The repository of our own is the one local source that is allowed, and only here.
    let from = format!("file://{}", mirror.display());
    let serve = format!(
        "--upload-pack=git -c uploadpack.allowAnySHA1InWant=true -c safe.directory={} upload-pack",
        mirror.display()
    );
    let local = Path::new("file");
    git.run_with(
        &[
            "-C",
            &at,
            "fetch",
            "--quiet",
            "--no-tags",
            "--depth=1",
            &serve,
            &from,
            commit,
        ],
        &[("GIT_ALLOW_PROTOCOL", local)],
    )?;
    inside(&["remote", "add", "origin", origin])?;
    inside(&["checkout", "--quiet", "--detach", commit])?;
    if let Some(name) = &resolved.name {
        let kept = match name.strip_prefix("refs/heads/") {
            Some(branch) => format!("refs/remotes/origin/{branch}"),
            None => name.clone(),
        };
        inside(&["update-ref", &kept, commit])?;
    }
    if has_modules {
        let update = [
            "submodule",
            "--quiet",
            "update",
            "--init",
            "--recursive",
            "--depth=1",
        ];
        inside(&update)?;
    }
    for residue in ["FETCH_HEAD", "ORIG_HEAD", "logs"] {
        let path = tree.join(".git").join(residue);
        if path.exists() {
            store::fs::remove_tree(&path).map_err(StoreError::from)?;
        }
    }
    Ok(tree)
}

/// Moves what was checked out, or one folder of it, to where it becomes a layer.
///
/// Files become 0644 or 0755, folders 0755; `.git` goes unless it is kept; links stay as they are, for whoever follows
/// them does so inside the layer.
pub(super) fn settle(
    tree: &Path,
    subdir: Option<&str>,
    keep_git_dir: bool,
    time: Option<i64>,
    into: &Path,
) -> Result<(), StepError> {
    let root = open(tree)?;
    let from = match subdir {
        None => Vec::new(),
        Some(subdir) => match Tree::RootFs(root.as_fd()).resolve(subdir.as_bytes())? {
            Some(Place::Root) => Vec::new(),
            Some(Place::Entry(listing, index))
                if listing.entries[index].meta.kind == Kind::Dir
                    && listing
                        .path_of(index)
                        .split(|&b| b == b'/')
                        .all(|n| n != b".git") =>
            {
                listing.path_of(index)
            }
            _ => {
                return Err(StepError::NoSubdir {
                    subdir: subdir.to_owned(),
                });
            }
        },
    };
    let mut settling = Settling {
        root: root.as_fd(),
        keep_git_dir,
        time,
    };
    settling.folder(&from, 0)?;
    let listing = Listing::read(root.as_fd(), &from, true)?;
    let target = open(into)?;
    for entry in &listing.entries {
        let path = join(&from, &entry.name);
        rustix::fs::renameat(&root, path.as_slice(), &target, entry.name.as_slice())
            .map_err(|errno| TreeError::io("move", &path, errno))?;
    }
    Ok(())
}

struct Settling<'a> {
    root: std::os::fd::BorrowedFd<'a>,
    keep_git_dir: bool,
    time: Option<i64>,
}

impl Settling<'_> {
    fn folder(&mut self, path: &[u8], depth: usize) -> Result<(), StepError> {
        if depth > DEPTH_MAX {
            return Err(TreeError::io("list", path, rustix::io::Errno::NAMETOOLONG).into());
        }
        let listing = Listing::read(self.root, path, true)?;
        for entry in &listing.entries {
            let path = join(path, &entry.name);
            if entry.name == b".git" {
                if !self.keep_git_dir {
                    self.remove(&path)?;
                    continue;
                }
                if entry.meta.kind == Kind::Dir {
                    // A repository's own files are git's business.
                    continue;
                }
            }
            if entry.name.starts_with(b".wh.") {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(crate::ops::FileOpError::ReservedName { path }.into());
            }
            match entry.meta.kind {
                Kind::Dir => {
                    self.mode(&path, entry.meta.mode, 0o755)?;
                    self.folder(&path, depth + 1)?;
                }
                Kind::File => {
                    let is_program = entry.meta.mode & 0o100 != 0;
                    self.mode(
                        &path,
                        entry.meta.mode,
                        if is_program { 0o755 } else { 0o644 },
                    )?;
                }
                _ => {}
            }
            self.set_time(&path)?;
        }
        Ok(())
    }

    fn mode(&self, path: &[u8], is: u32, wanted: u32) -> Result<(), TreeError> {
        if is == wanted {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(wanted);
        rustix::fs::chmodat(self.root, path, mode, AtFlags::empty())
            .map_err(|errno| TreeError::io("set the mode of", path, errno))
    }

    fn set_time(&self, path: &[u8]) -> Result<(), TreeError> {
        let Some(seconds) = self.time else {
            return Ok(());
        };
        let time = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(self.root, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| TreeError::io("set the time of", path, errno))
    }

    /// Removes a `.git`, of the repository or of a submodule.
    fn remove(&self, path: &[u8]) -> Result<(), StepError> {
        let removed = match rustix::fs::unlinkat(self.root, path, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => self.remove_folder(path, 0),
            other => other.map_err(|errno| TreeError::io("remove", path, errno)),
        };
        Ok(removed?)
    }

    fn remove_folder(&self, path: &[u8], depth: usize) -> Result<(), TreeError> {
        let failed = |errno| TreeError::io("remove", path, errno);
        if depth > DEPTH_MAX {
            return Err(failed(rustix::io::Errno::NAMETOOLONG));
        }
        for entry in &Listing::read(self.root, path, true)?.entries {
            let path = join(path, &entry.name);
            match entry.meta.kind {
                Kind::Dir => self.remove_folder(&path, depth + 1)?,
                _ => rustix::fs::unlinkat(self.root, &*path, AtFlags::empty())
                    .map_err(|errno| TreeError::io("remove", &path, errno))?,
            }
        }
        rustix::fs::unlinkat(self.root, path, AtFlags::REMOVEDIR).map_err(failed)
    }
}

fn open(path: &Path) -> Result<OwnedFd, StepError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| StepError::SourceFile {
        action: "open",
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_folder_of_a_checkout_stays_inside() {
        let check = |subdir: Option<&str>, keep: bool, expect: Result<&[&str], &str>| {
            let dir = tempfile::tempdir().unwrap();
            let tree = dir.path().join("tree");
            std::fs::create_dir_all(tree.join("a/b")).unwrap();
            std::fs::create_dir_all(tree.join(".git/objects")).unwrap();
            std::fs::write(tree.join(".git/HEAD"), "ref").unwrap();
            std::fs::write(tree.join("a/.git"), "gitdir: ../.git/modules/a").unwrap();
            std::fs::write(tree.join("a/b/f"), "f").unwrap();
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(tree.join("a/b/f"), mode).unwrap();
            std::fs::create_dir(dir.path().join("outside")).unwrap();
            symlink("../outside", tree.join("out")).unwrap();
            symlink("/a/b", tree.join("inside")).unwrap();
            symlink(".git", tree.join("hidden")).unwrap();
            let into = dir.path().join("into");
            std::fs::create_dir(&into).unwrap();
            let found = settle(&tree, subdir, keep, Some(7), &into);
            let mut names: Vec<String> = std::fs::read_dir(&into)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            match (found, expect) {
                (Ok(()), Ok(expect)) => assert_eq!(names, expect, "{subdir:?}"),
                (Err(error), Err(expect)) => assert_eq!(error.to_string(), expect, "{subdir:?}"),
                (found, _) => panic!("{subdir:?}: {found:?} {names:?}"),
            }
            if subdir == Some("inside") {
                let metadata = std::fs::metadata(into.join("f")).unwrap();
                assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
                let modified = metadata.modified().unwrap();
                let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
                assert_eq!(since.as_secs(), 7);
            }
        };
        check(None, false, Ok(&["a", "hidden", "inside", "out"]));
        check(None, true, Ok(&[".git", "a", "hidden", "inside", "out"]));
        check(Some("a"), false, Ok(&["b"]));
        check(Some("inside"), false, Ok(&["f"]));
        check(Some("/a/b/"), false, Ok(&["f"]));
        check(
            Some("out"),
            false,
            Err("the repository has no folder `out`"),
        );
        check(
            Some("hidden"),
            false,
            Err("the repository has no folder `hidden`"),
        );
        check(
            Some(".git"),
            false,
            Err("the repository has no folder `.git`"),
        );
        check(
            Some("a/b/f"),
            false,
            Err("the repository has no folder `a/b/f`"),
        );
    }
}
