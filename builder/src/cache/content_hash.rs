//! The digest of exactly the paths that a copy selects: what its slow key is made of.
//!
//! It covers, of each file, its name, kind, mode, owner, size, bytes, kept extended attributes, link target, device and
//! which names are one file; of a directory that was named, only what is below it; and of nothing its modification time.
//! A path that is not selected has no influence. Files are read at most once: each one's hash stays with its tree's
//! listing, where the copy finds it again, and a context's stays for the next build.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::graph::CopySource;
use crate::graph::op::Encoder;
use crate::ops::select::{Match, SelectError, Selected, select};
use crate::ops::tree::{Kind, Listing, Meta, Place, Reader, Tree, TreeError, read_some, show};

/// Version of the encoding; a change of meaning gets a new one.
const DOMAIN: &[u8] = b"longshore selected content 1";
const ACCOUNTS_DOMAIN: &[u8] = b"longshore accounts 1";

/// Threads that read or write files: with two, one hashes while the other waits for the kernel.
pub(crate) const WORKERS: usize = 2;

/// Files that a worker takes at once.
const CHUNK_FILES: usize = 64;

/// Bytes read at once; most source files fit.
const READ_BYTES: usize = 256 * 1024;

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes: BuildKit's bound.
const ACCOUNTS_BYTES_MAX: u64 = 10 * 1024 * 1024;

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentHashError {
    /// The source selects nothing that could be hashed.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Digest of what `source` selects in `tree`.
///
/// # Errors
/// If the source does not exist, something of it cannot be read, or `cancelled` was set.
pub fn content_digest(
    tree: Tree<'_>,
    source: &CopySource,
    cancelled: &AtomicBool,
) -> Result<[u8; 32], ContentHashError> {
    let (digest, _) = selected_digest(tree, source, cancelled)?;
    Ok(digest)
}

/// Digest of what `source` selects in `tree`, and what that is: with every file's hash.
pub(crate) fn selected_digest(
    tree: Tree<'_>,
    source: &CopySource,
    cancelled: &AtomicBool,
) -> Result<([u8; 32], Selected), ContentHashError> {
    let selected = select(tree, source)?;
    hash_files(tree, &selected, cancelled)?;
    let mut encoding = Encoding {
        tree,
        sink: Encoder::new(DOMAIN),
        seen: BTreeMap::new(),
    };
    encoding.sink.list(selected.matches.len());
    for found in &selected.matches {
        encoding.add(found)?;
    }
    Ok((encoding.sink.finish(), selected))
}

/// Digest of the files that names of users and groups are looked up in, below the root file system `base`.
///
/// # Errors
/// If one exists and cannot be read.
pub fn passwd_digest(base: Option<BorrowedFd<'_>>) -> Result<[u8; 32], TreeError> {
    let mut sink = Encoder::new(ACCOUNTS_DOMAIN);
    for path in ["etc/passwd", "etc/group"] {
        let text = base.map_or(Ok(None), |base| read_accounts(base, path))?;
        sink.number(u64::from(text.is_some()));
        sink.bytes(&text.unwrap_or_default());
    }
    Ok(sink.finish())
}

/// The bytes of `path` below `base`, links followed inside it; `None` if it is not a regular file of a sane size.
pub(crate) fn read_accounts(
    base: BorrowedFd<'_>,
    path: &str,
) -> Result<Option<Vec<u8>>, TreeError> {
    let fail = |errno| TreeError::io("read", path.as_bytes(), errno);
    let Some(Place::Entry(listing, index)) = Tree::RootFs(base).resolve(path.as_bytes())? else {
        return Ok(None);
    };
    let place = listing.path_of(index);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = match rustix::fs::openat2(base, place, flags, Mode::empty(), resolve) {
        Ok(file) => file,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(fail(errno)),
    };
    let meta = Meta::of_file(&file).map_err(fail)?;
    if meta.kind != Kind::File || meta.size > ACCOUNTS_BYTES_MAX {
        return Ok(None);
    }
    let mut text = vec![0; usize::try_from(meta.size).unwrap_or(0)];
    let mut filled = 0;
    while filled < text.len() {
        match read_some(&file, &mut text[filled..]).map_err(fail)? {
            0 => break,
            length => filled += length,
        }
    }
    text.truncate(filled);
    Ok(Some(text))
}

struct Encoding<'a> {
    tree: Tree<'a>,
    sink: Encoder,
    /// Files with several names, by device and inode: the number of the first one seen.
    seen: BTreeMap<(u64, u64), u64>,
}

impl Encoding<'_> {
    fn add(&mut self, found: &Match) -> Result<(), TreeError> {
        match &found.place {
            Place::Entry(listing, index) if !found.is_dir() => {
                self.sink.text("file");
                self.entry(&found.name, listing, *index)?;
            }
            // The directory itself is not copied, only what is below it.
            Place::Entry(..) | Place::Root => {
                self.sink.text("contents");
                self.sink.list(found.items.len());
                for item in &found.items {
                    self.entry(&item.path, &item.listing, item.index)?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &[u8], listing: &Listing, index: usize) -> Result<(), TreeError> {
        let entry = &listing.entries[index];
        let meta = &entry.meta;
        self.sink.bytes(path);
        self.sink.number(u64::from(meta.uid));
        self.sink.number(u64::from(meta.gid));
        self.sink.text(match meta.kind {
            Kind::File => "regular",
            Kind::Dir => "directory",
            Kind::Symlink => "link",
            Kind::CharDevice => "character device",
            Kind::BlockDevice => "block device",
            Kind::Fifo => "fifo",
            Kind::Socket => "socket",
        });
        if meta.kind == Kind::Symlink {
            let target = self.tree.link_target(listing, index)?;
            self.sink.bytes(&target);
            return Ok(());
        }
        self.sink.number(u64::from(meta.mode));
        let xattrs = self.tree.xattrs(listing, index)?;
        self.sink.list(xattrs.len());
        for (name, value) in xattrs {
            self.sink.bytes(name);
            self.sink.bytes(value);
        }
        match meta.kind {
            Kind::File => {
                let hash = entry.hash.get().expect("hash_files ran before");
                self.sink.number(meta.size);
                self.sink.bytes(hash);
                let number = self.seen.len() as u64;
                let first = if meta.nlink > 1 {
                    *self.seen.entry((meta.dev, meta.ino)).or_insert(number)
                } else {
                    number
                };
                // Zero unless this is another name of an earlier file.
                self.sink.number(number - first);
            }
            Kind::CharDevice | Kind::BlockDevice => self.sink.number(meta.rdev),
            Kind::Dir | Kind::Symlink | Kind::Fifo | Kind::Socket => {}
        }
        Ok(())
    }
}

/// Sees to it that the hash of every selected file is known: remembered, or read now.
fn hash_files(
    tree: Tree<'_>,
    selected: &Selected,
    cancelled: &AtomicBool,
) -> Result<(), ContentHashError> {
    let mut unknown = Vec::new();
    for (listing, index) in selected.entries() {
        let entry = &listing.entries[index];
        if entry.meta.kind == Kind::File && tree.known_hash(listing, index).is_none() {
            unknown.push((listing, index));
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), ContentHashError> {
        let mut reader = Reader::new(tree);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let start = next.fetch_add(CHUNK_FILES, Ordering::Relaxed);
            let Some(rest) = unknown.get(start..) else {
                return Ok(());
            };
            for &(listing, index) in &rest[..rest.len().min(CHUNK_FILES)] {
                if cancelled.load(Ordering::Relaxed) {
                    return Err(ContentHashError::Cancelled);
                }
                hash_file(&mut reader, &mut buffer, listing, index)?;
            }
        }
    };
    if unknown.len() <= CHUNK_FILES {
        return work();
    }
    in_parallel(WORKERS, work)
}

fn hash_file(
    reader: &mut Reader<'_>,
    buffer: &mut [u8],
    listing: &Arc<Listing>,
    index: usize,
) -> Result<(), TreeError> {
    let size = listing.entries[index].meta.size;
    let file = reader.open(listing, index)?;
    let mut hasher = blake3::Hasher::new();
    let mut total = 0;
    loop {
        let length = read_some(&file, buffer)
            .map_err(|errno| TreeError::io("read", &listing.path_of(index), errno))?;
        hasher.update(&buffer[..length]);
        total += length as u64;
        // A short read that reaches the size that was promised is the end.
        if length == 0 || total > size || (length < buffer.len() && total == size) {
            break;
        }
    }
    if total != size {
        return Err(TreeError::Changed {
            path: show(&listing.path_of(index)),
        });
    }
    reader.tree().xattrs_of(&file, listing, index)?;
    reader
        .tree()
        .learn_hash(listing, index, *hasher.finalize().as_bytes())
}

/// Runs `work` on `threads` threads, this one included, and returns an error of one of them.
pub(crate) fn in_parallel<E: Send>(
    threads: usize,
    work: impl Fn() -> Result<(), E> + Sync,
) -> Result<(), E> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut result = work();
        for other in others {
            let ended = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result = result.and(ended);
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::ops::Context;

    static NOT_CANCELLED: AtomicBool = AtomicBool::new(false);

    fn plant(root: &Path) {
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::write(root.join("dir/a.txt"), "A").unwrap();
        fs::write(root.join("dir/b.txt"), "B").unwrap();
        fs::write(root.join("dir/sub/c"), "C").unwrap();
        fs::write(root.join("other"), "O").unwrap();
        fs::write(root.join("dir/log"), "L").unwrap();
        symlink("a.txt", root.join("dir/link")).unwrap();
    }

    fn source(pattern: &str) -> CopySource {
        CopySource {
            input: 0,
            pattern: pattern.to_owned(),
            ignore: vec!["**/log".to_owned()],
            ..CopySource::default()
        }
    }

    fn of_context(root: &Path, pattern: &str) -> [u8; 32] {
        // A memory of its own each time: only the tree counts.
        let memory = tempfile::tempdir().unwrap();
        let context = Context::open(root, memory.path()).unwrap();
        content_digest(Tree::Context(&context), &source(pattern), &NOT_CANCELLED).unwrap()
    }

    fn of_root_fs(root: &Path, pattern: &str) -> [u8; 32] {
        let root = fs::File::open(root).unwrap();
        content_digest(Tree::RootFs(root.as_fd()), &source(pattern), &NOT_CANCELLED).unwrap()
    }

    /// Whether what `pattern` selects gets another digest by `change`, as a context and as a root file system.
    #[track_caller]
    fn check(pattern: &str, changes: bool, change: impl Fn(&Path)) {
        for digest in [of_context, of_root_fs] {
            let root = tempfile::tempdir().unwrap();
            plant(root.path());
            let before = digest(root.path(), pattern);
            assert_eq!(digest(root.path(), pattern), before, "the same twice");
            change(root.path());
            assert_eq!(digest(root.path(), pattern) != before, changes);
        }
    }

    fn touch(path: &Path) {
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7);
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(time).unwrap();
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_a_copy_of_it_would_show_changes_it() {
        check("dir", true, |root| {
            fs::write(root.join("dir/a.txt"), "X").unwrap();
        });
        check("dir", true, |root| {
            fs::write(root.join("dir/sub/new"), "").unwrap();
        });
        check("dir", true, |root| {
            fs::remove_file(root.join("dir/sub/c")).unwrap();
        });
        check("dir", true, |root| chmod(&root.join("dir/a.txt"), 0o755));
        check("dir", true, |root| chmod(&root.join("dir/sub"), 0o700));
        check("dir", true, |root| {
            fs::create_dir(root.join("dir/empty")).unwrap();
        });
        check("dir", true, |root| {
            fs::rename(root.join("dir/a.txt"), root.join("dir/c.txt")).unwrap();
        });
        check("dir", true, |root| {
            fs::remove_file(root.join("dir/link")).unwrap();
            symlink("b.txt", root.join("dir/link")).unwrap();
        });
        // The same bytes, but one file with two names.
        check("dir", true, |root| {
            fs::copy(root.join("dir/a.txt"), root.join("dir/b.txt")).unwrap();
        });
        check("dir", true, |root| {
            fs::remove_file(root.join("dir/b.txt")).unwrap();
            fs::hard_link(root.join("dir/a.txt"), root.join("dir/b.txt")).unwrap();
        });
        check("dir/link", true, |root| {
            fs::write(root.join("dir/a.txt"), "X").unwrap();
        });
    }

    #[test]
    fn what_a_copy_of_it_would_not_show_does_not() {
        check("dir", false, |root| touch(&root.join("dir/a.txt")));
        check("dir", false, |root| {
            fs::write(root.join("other"), "X").unwrap();
        });
        check("dir", false, |root| {
            fs::write(root.join("dir/log"), "X").unwrap();
        });
        check("dir", false, |root| chmod(&root.join("dir"), 0o700));
        // Another name outside of what is selected.
        check("dir", false, |root| {
            fs::hard_link(root.join("dir/a.txt"), root.join("far")).unwrap();
        });
        check("dir/a.txt", false, |root| {
            fs::write(root.join("dir/b.txt"), "X").unwrap();
        });
        check("dir", false, |root| {
            let again = root.join("dir/a.txt");
            fs::remove_file(&again).unwrap();
            fs::write(&again, "A").unwrap();
        });
    }

    #[test]
    fn a_pattern_stands_for_what_it_matches() {
        let rename = |root: &Path, name: &str| {
            fs::rename(root.join("dir/a.txt"), root.join("dir").join(name)).unwrap();
        };
        check("dir/*.txt", true, |root| rename(root, "z.txt"));
        check("dir/*.txt", true, |root| rename(root, "a.md"));
        check("dir/*.txt", true, |root| {
            fs::write(root.join("dir/n.txt"), "").unwrap();
        });
        check("dir/*.txt", false, |root| {
            fs::write(root.join("dir/n.md"), "").unwrap();
        });
        check("dir/*.txt", false, |root| {
            fs::remove_file(root.join("dir/sub/c")).unwrap();
        });
        check("none*", false, |root| {
            fs::write(root.join("other"), "X").unwrap();
        });
        check("none*", true, |root| {
            fs::write(root.join("nonesuch"), "").unwrap();
        });
    }

    #[test]
    fn owners_count_outside_of_contexts() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root, because it gives files to other owners");
            return;
        }
        for (digest, changes) in [
            (of_context as fn(&Path, &str) -> [u8; 32], false),
            (of_root_fs, true),
        ] {
            let root = tempfile::tempdir().unwrap();
            plant(root.path());
            let before = digest(root.path(), "dir");
            std::os::unix::fs::chown(root.path().join("dir/a.txt"), Some(5), Some(6)).unwrap();
            assert_eq!(digest(root.path(), "dir") != before, changes);
        }
    }

    #[test]
    fn a_context_and_a_copy_of_it_elsewhere_agree() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        plant(one.path());
        plant(two.path());
        assert_eq!(of_context(one.path(), "."), of_context(two.path(), "."));
    }

    #[test]
    fn cancelled_before_it_reads() {
        let root = tempfile::tempdir().unwrap();
        plant(root.path());
        let dir = fs::File::open(root.path()).unwrap();
        let cancelled = AtomicBool::new(true);
        let result = content_digest(Tree::RootFs(dir.as_fd()), &source("."), &cancelled);
        assert!(matches!(result, Err(ContentHashError::Cancelled)));
    }

    #[test]
    fn accounts_are_their_two_files() {
        let root = tempfile::tempdir().unwrap();
        let dir = fs::File::open(root.path()).unwrap();
        let digest = || passwd_digest(Some(dir.as_fd())).unwrap();
        let empty = digest();
        assert_eq!(empty, passwd_digest(None).unwrap());
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), "a:x:1:1").unwrap();
        let passwd = digest();
        assert_ne!(passwd, empty);
        fs::write(root.path().join("etc/shadow"), "").unwrap();
        assert_eq!(digest(), passwd);
        // A link out of the root leads nowhere.
        fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink(
            "../../../../../../../../etc/passwd",
            root.path().join("etc/passwd"),
        )
        .unwrap();
        let looped = passwd_digest(Some(dir.as_fd()));
        assert!(looped.is_err_and(|error| matches!(error, TreeError::LinkLoop { .. })));
    }
}
