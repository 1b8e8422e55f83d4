//! What a step changed in a tree, as the layer that overlayfs would have made of it.
//!
//! Two listings say which paths may have changed ([`compare`], which reads nothing); of those, files that are in truth as
//! they were below are left out, and the rest is copied ([`write`]). What overlayfs does is the measure: a directory that was
//! made in the place of something else is opaque, parents of what changed are there, and links are links. One thing differs,
//! because here it is right: a file of several names that is written through one of them changes under all.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::copy::{Side, Target};
use super::listing::{Listing, stat};
use crate::layer::entry::{Metadata, OPAQUE, is_opaque, read_xattrs};
use crate::layer::scan::path_order;
use crate::layer::walk::{WalkError, is_whiteout, make_whiteout, open_directory, split, stat_at};
use crate::snapshot::prune::contents_equal;

/// What became of an entry that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    Same,
    /// The same inode, to which something was done.
    Touched,
    /// Something else in the place of what was there.
    Replaced,
    /// There was nothing.
    New,
}

/// The difference of two listings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// For each entry of the newer one.
    pub(super) fates: Vec<Fate>,
    /// Paths that are gone while the directory they were in is not.
    pub(super) removed: Vec<Vec<u8>>,
}

/// Compares two listings of a tree.
pub(super) fn compare(old: &Listing, new: &Listing) -> Changes {
    let mut changes = Changes::default();
    let mut before = old.entries.iter().peekable();
    // What was below this is gone with it.
    let mut gone: Option<&[u8]> = None;
    for (path, seen) in &new.entries {
        loop {
            let Some((other, was)) = before.peek() else {
                changes.fates.push(Fate::New);
                break;
            };
            if gone.is_some_and(|gone| is_below(other, gone)) {
                before.next();
                continue;
            }
            match path_order(other, path) {
                std::cmp::Ordering::Less => {
                    changes.removed.push(other.clone());
                    gone = Some(other);
                    before.next();
                }
                std::cmp::Ordering::Greater => {
                    changes.fates.push(Fate::New);
                    break;
                }
                std::cmp::Ordering::Equal => {
                    changes.fates.push(if was == seen {
                        Fate::Same
                    } else if was.is_same_inode(seen) {
                        Fate::Touched
                    } else {
                        gone = Some(other);
                        Fate::Replaced
                    });
                    before.next();
                    break;
                }
            }
        }
    }
    for (path, _) in before {
        if !gone.is_some_and(|gone| is_below(path, gone)) {
            changes.removed.push(path.clone());
            gone = Some(path);
        }
    }
    changes
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with(b"/"))
}

/// A tree as a step left it, and what it was made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    pub(super) tree: BorrowedFd<'a>,
    pub(super) listing: &'a Listing,
    /// Layers below, topmost first.
    pub(super) lower: &'a [OwnedFd],
}

/// Writes what changed to the empty layer `target`.
pub(super) fn write(
    step: Step<'_>,
    changes: &Changes,
    target: &Target<'_>,
) -> Result<(), WalkError> {
    let failed = |path: &[u8]| {
        let path = path.to_vec();
        move |errno| WalkError { path, errno }
    };
    let entries = &step.listing.entries;
    let included = included(step, changes)?;
    let mut firsts: HashMap<u64, &[u8]> = HashMap::new();
    for &index in &included {
        let (path, seen) = &entries[index];
        if seen.kind() == FileType::Directory {
            rustix::fs::mkdirat(target.root, &path[..], Mode::RWXU).map_err(failed(path))?;
            continue;
        }
        let first = match seen.links {
            1 => None,
            _ => firsts.insert(seen.inode, path),
        };
        match first {
            None => stat(step.tree, path)
                .and_then(|stat| target.copy((step.tree, Side::Tree), path, path, &stat)),
            Some(first) => {
                firsts.insert(seen.inode, first);
                let flags = AtFlags::empty();
                rustix::fs::linkat(target.root, first, target.root, &path[..], flags)
            }
        }
        .map_err(failed(path))?;
    }
    for path in &changes.removed {
        let (parent, name) = split(path);
        open_directory(target.root, parent)
            .and_then(|parent| make_whiteout(&parent, name))
            .map_err(failed(path))?;
    }
    for &index in included.iter().rev() {
        let (path, seen) = &entries[index];
        if seen.kind() == FileType::Directory {
            let opaque = changes.fates[index] == Fate::Replaced;
            set_directory(step.tree, target, path, opaque).map_err(failed(path))?;
        }
    }
    Ok(())
}

/// The entries that are part of the layer, in order: those that changed, and the directories they and what was removed are in.
fn included(step: Step<'_>, changes: &Changes) -> Result<BTreeSet<usize>, WalkError> {
    let entries = &step.listing.entries;
    let mut included = BTreeSet::new();
    // Inodes of several names, once one of them says more than that it was touched.
    let mut renamed = HashSet::new();
    for ((_, seen), fate) in entries.iter().zip(&changes.fates) {
        if seen.links > 1 && matches!(fate, Fate::New | Fate::Replaced) {
            renamed.insert(seen.inode);
        }
    }
    for (index, ((path, seen), fate)) in entries.iter().zip(&changes.fates).enumerate() {
        let differs = match (fate, seen.kind()) {
            (Fate::Same, _) => false,
            (Fate::Touched | Fate::Replaced, FileType::RegularFile)
                if seen.links == 1 || !renamed.contains(&seen.inode) =>
            {
                let is_equal = equals_below(step, path, *fate == Fate::Replaced);
                !is_equal.map_err(|errno| WalkError {
                    path: path.clone(),
                    errno,
                })?
            }
            _ => true,
        };
        if differs {
            included.insert(index);
        }
    }
    let directories: HashMap<&[u8], usize> = entries
        .iter()
        .enumerate()
        .filter(|(_, (_, seen))| seen.kind() == FileType::Directory)
        .map(|(index, (path, _))| (&path[..], index))
        .collect();
    let paths = included.iter().map(|&index| &entries[index].0);
    let mut parents: Vec<usize> = Vec::new();
    for path in paths.chain(&changes.removed) {
        let (mut parent, _) = split(path);
        while !parent.is_empty() {
            parents.extend(directories.get(parent));
            (parent, _) = split(parent);
        }
    }
    included.extend(parents);
    Ok(included)
}

fn set_directory(
    tree: BorrowedFd<'_>,
    target: &Target<'_>,
    path: &[u8],
    opaque: bool,
) -> Result<(), Errno> {
    let source = open_directory(tree, path)?;
    let mut metadata = Metadata::of(&rustix::fs::fstat(&source)?);
    metadata.xattrs = Side::Tree.xattrs(&source)?;
    let directory = open_directory(target.root, path)?;
    if opaque {
        rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty())?;
    }
    target.set(directory.as_fd(), &metadata)
}

/// Whether a file is, bytes and metadata, what the layers below have at its path. One that took another's place
/// (`replaced`) is not if that had several names: it lacks them.
fn equals_below(step: Step<'_>, path: &[u8], replaced: bool) -> Result<bool, Errno> {
    let Some((lower, below)) = find_below(step.lower, path)? else {
        return Ok(false);
    };
    let here = stat(step.tree, path)?;
    let is_alike = FileType::from_raw_mode(below.st_mode) == FileType::RegularFile
        && below.st_size == here.st_size
        && Metadata::of(&below) == Metadata::of(&here)
        && (!replaced || below.st_nlink == 1);
    if !is_alike {
        return Ok(false);
    }
    let open = |root: BorrowedFd<'_>| {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(root, path, flags, Mode::empty())
    };
    let (here, below) = (open(step.tree)?, open(lower.as_fd())?);
    Ok(Side::Tree.xattrs(&here)? == read_xattrs(&below)? && contents_equal(&here, &below)?)
}

/// What overlayfs would show at `path` of these layers, topmost first, and whose it is.
fn find_below<'l>(lower: &'l [OwnedFd], path: &[u8]) -> Result<Option<(&'l OwnedFd, Stat)>, Errno> {
    'layers: for layer in lower {
        let mut hides = false;
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (slash, _) in slashes {
            match stat_at(layer, &path[..slash]) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    hides |= is_opaque(open_directory(layer.as_fd(), &path[..slash])?)?;
                }
                Ok(_) => return Ok(None),
                Err(Errno::NOENT) if hides => return Ok(None),
                Err(Errno::NOENT) => continue 'layers,
                Err(errno) => return Err(errno),
            }
        }
        match stat_at(layer, path) {
            Ok(stat) if is_whiteout(&stat) => return Ok(None),
            Ok(stat) => return Ok(Some((layer, stat))),
            Err(Errno::NOENT) if hides => return Ok(None),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::listing::Seen;
    use super::*;

    const DIRECTORY: u32 = 0o040_755;
    const FILE: u32 = 0o100_644;

    fn listing(text: &str) -> Listing {
        let entries = text.split_whitespace().map(|entry| {
            // PATH:INODE, a directory with a slash at its end; `*` for one that was touched.
            let (path, inode) = entry.split_once(':').unwrap();
            let touched = inode.ends_with('*');
            let seen = Seen {
                inode: inode.trim_end_matches('*').parse().unwrap(),
                born: (0, 0),
                changed: (i64::from(touched), 0),
                modified: (0, 0),
                mode: if path.ends_with('/') { DIRECTORY } else { FILE },
                uid: 0,
                gid: 0,
                links: 1,
                size: 0,
                device: 0,
            };
            (path.trim_end_matches('/').as_bytes().to_vec(), seen)
        });
        Listing {
            entries: entries.collect(),
        }
    }

    fn check(old: &str, new: &str, expect: &str) {
        let newer = listing(new);
        let changes = compare(&listing(old), &newer);
        let mut told: Vec<String> = Vec::new();
        for ((path, _), fate) in newer.entries.iter().zip(&changes.fates) {
            let sign = match fate {
                Fate::Same => continue,
                Fate::Touched => '~',
                Fate::Replaced => '!',
                Fate::New => '+',
            };
            told.push(format!("{sign}{}", String::from_utf8_lossy(path)));
        }
        for path in &changes.removed {
            told.push(format!("-{}", String::from_utf8_lossy(path)));
        }
        assert_eq!(told.join(" "), expect, "{old} -> {new}");
        assert_eq!(changes.fates.len(), newer.entries.len());
    }

    #[test]
    fn listings_are_compared() {
        check("", "", "");
        check("a:1 b/:2 b/c:3", "a:1 b/:2 b/c:3", "");
        check("", "a/:1 a/b:2", "+a +a/b");
        check("a/:1 a/b:2 c:3", "c:3", "-a");
        check("a:1 c:3 d:4", "a:1* b:2 d:4", "~a +b -c");
        // What was in a directory that was made again is not removed name by name.
        check("a/:1 a/b:2 a/c:3", "a/:9 a/b:8", "!a +a/b");
        check("a/:1 a/b/:2 a/b/c:3 d:4", "a:9", "!a -d");
        check("a:1", "a/:1 a/b:2", "!a +a/b");
        // `a-b` sorts after what is in `a`.
        check("a/:1 a/x:2 a-b:3", "a-b:3", "-a");
        check("a/:1 a/x:2 a-b:3", "a/:1* a-b:3", "~a -a/x");
        check("x/:1 x/y/:2 x/y/z:3 x/z:4", "x/:1*", "~x -x/y -x/z");
    }
}
