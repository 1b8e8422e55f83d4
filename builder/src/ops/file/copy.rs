//! `COPY` and `ADD`: where each selected path goes, and with which metadata.
//!
//! A file goes below the destination if that is a directory or is written like one, else it takes its name. A directory
//! stands for its contents, which are merged into the destination. A destination directory that exists keeps its
//! metadata, a new one is 0755 and root's, whatever the source directory has; directories below it that exist take the
//! source's. `--chown` and `--chmod` apply to everything that is copied and to the parents that are created.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::upper::{Attrs, BodyId, Found, NodeId, Origin, ROOT, What};
use super::{FileOpError, Plan, archive, chown};
use crate::graph::{CopyAction, CopySource};
use crate::ops::select::{Match, select};
use crate::ops::tree::{Kind, Listing, Meta, Place, Time, Tree, TreeError, join, show};

pub(super) fn copy(plan: &mut Plan<'_>, action: &CopyAction) -> Result<(), FileOpError> {
    let owner = match &action.chown {
        Some(spec) => Some(chown::resolve(&spec.text, plan.run.base)?),
        None => None,
    };
    let mut first_mtime = None;
    for source in &action.sources {
        let tree = plan.run.inputs[source.input];
        let selected = select(tree, source)?;
        let mut copying = Copying {
            plan,
            action,
            source,
            tree,
            owner,
            parents_mtime: Time::default(),
            linked: BTreeMap::new(),
        };
        for found in &selected.matches {
            let mtime = match &found.place {
                Place::Entry(listing, index) => listing.entries[*index].meta.mtime,
                Place::Root => root_meta(tree)?.mtime,
            };
            let first = *first_mtime.get_or_insert(mtime);
            copying.parents_mtime = match copying.plan.run.epoch {
                Some(seconds) => Time { seconds, nanos: 0 },
                None => first,
            };
            copying.add(found, mtime)?;
        }
    }
    Ok(())
}

/// One source of a copy.
struct Copying<'p, 'a> {
    plan: &'p mut Plan<'a>,
    action: &'p CopyAction,
    source: &'p CopySource,
    tree: Tree<'a>,
    owner: Option<chown::Owner>,
    /// Time of parents that are created.
    parents_mtime: Time,
    /// Files with several names, by device and inode.
    linked: BTreeMap<(u64, u64), BodyId>,
}

impl Copying<'_, '_> {
    fn add(&mut self, found: &Match, mtime: Time) -> Result<(), FileOpError> {
        self.plan.run.check_cancelled()?;
        let dest = self.plan.upper.resolve(self.action.dest.as_bytes())?;
        match &found.place {
            Place::Entry(listing, index) if !found.is_dir() => {
                let is_file = listing.entries[*index].meta.kind == Kind::File;
                if self.action.unpack
                    && is_file
                    && let Some(archive) = archive::open(self.tree, listing, *index)?
                {
                    self.archive_dir(&dest)?;
                    let source = (&**listing, *index);
                    return self
                        .plan
                        .unpack(archive, self.tree, source, &dest, self.owner);
                }
                self.file(found, &dest, listing, *index)
            }
            Place::Entry(..) | Place::Root => self.contents(found, &dest, mtime),
        }
    }

    /// Metadata of parents that do not exist.
    fn created(&self) -> Attrs {
        let owner = self.owner.unwrap_or_default();
        Attrs {
            mode: self.action.chmod.unwrap_or(0o755),
            uid: owner.uid,
            gid: owner.gid,
            mtime: self.parents_mtime,
            xattrs: Vec::new(),
        }
    }

    /// The directory that an archive is unpacked into. `--chmod` does not reach what an archive makes.
    fn archive_dir(&mut self, dest: &[Vec<u8>]) -> Result<(), FileOpError> {
        let new = Attrs {
            mode: 0o755,
            ..self.created()
        };
        self.plan.upper.ensure_dirs(dest, &new).map(drop)
    }

    fn file(
        &mut self,
        found: &Match,
        dest: &[Vec<u8>],
        listing: &Arc<Listing>,
        index: usize,
    ) -> Result<(), FileOpError> {
        let mut path = dest.to_vec();
        if means_directory(&self.action.dest) || self.plan.upper.peek(dest)? == Found::Dir {
            path.push(found.name.clone());
        }
        let Some((_, parents)) = path.split_last() else {
            unreachable!("the root is a directory");
        };
        let created = self.created();
        let parent = self.plan.upper.ensure_dirs(parents, &created)?;
        self.leaf(parent, &path.join(&b'/'), listing, index)
    }

    fn contents(
        &mut self,
        found: &Match,
        dest: &[Vec<u8>],
        mtime: Time,
    ) -> Result<(), FileOpError> {
        let created = self.created();
        let upper = &mut self.plan.upper;
        let top = match dest.split_last() {
            Some((_, parents)) if upper.peek(dest)? != Found::Dir => {
                let parent = upper.ensure_dirs(parents, &created)?;
                upper.put_dir(parent, &dest.join(&b'/'), Attrs { mtime, ..created })?
            }
            _ => upper.ensure_dirs(dest, &created)?,
        };
        let dest = dest.join(&b'/');
        let mut dirs: BTreeMap<&[u8], NodeId> = BTreeMap::from([(&b""[..], top)]);
        for item in &found.items {
            let (above, name) = split(&item.path);
            let parent = *dirs.get(above).unwrap_or(&ROOT);
            let path = join(&dest, &item.path);
            let entry = &item.listing.entries[item.index];
            if entry.meta.kind != Kind::Dir {
                self.leaf(parent, &path, &item.listing, item.index)?;
                continue;
            }
            refuse_reserved(name, &path)?;
            let mut attrs = self.attrs(&entry.meta);
            attrs
                .xattrs
                .clone_from(self.tree.xattrs(&item.listing, item.index)?);
            let node = self.plan.upper.merge_dir(parent, &path, attrs)?;
            dirs.insert(&item.path, node);
        }
        Ok(())
    }

    /// Plans anything but a directory at `path`.
    fn leaf(
        &mut self,
        parent: NodeId,
        path: &[u8],
        listing: &Arc<Listing>,
        index: usize,
    ) -> Result<(), FileOpError> {
        refuse_reserved(split(path).1, path)?;
        let meta = &listing.entries[index].meta;
        let mut attrs = self.attrs(meta);
        let what = match meta.kind {
            Kind::File => What::File(self.body(listing, index)),
            Kind::Symlink => {
                attrs.mode = 0o777;
                What::Symlink(self.tree.link_target(listing, index)?)
            }
            Kind::CharDevice if meta.rdev == 0 => {
                return Err(FileOpError::ReservedDevice { path: show(path) });
            }
            Kind::CharDevice => What::CharDevice(meta.rdev),
            Kind::BlockDevice => What::BlockDevice(meta.rdev),
            Kind::Fifo => What::Fifo,
            // Nobody listens at a copied socket: as BuildKit, an empty file keeps its place.
            Kind::Socket => What::File(self.plan.upper.body(Origin::Empty)),
            Kind::Dir => unreachable!("directories are merged"),
        };
        self.plan.upper.put(parent, path, what, attrs);
        Ok(())
    }

    fn body(&mut self, listing: &Arc<Listing>, index: usize) -> BodyId {
        let meta = &listing.entries[index].meta;
        let inode = (meta.dev, meta.ino);
        if let Some(&known) = self.linked.get(&inode) {
            return known;
        }
        let body = self.plan.upper.body(Origin::Copy {
            input: self.source.input,
            listing: Arc::clone(listing),
            index,
        });
        if meta.nlink > 1 {
            self.linked.insert(inode, body);
        }
        body
    }

    fn attrs(&self, meta: &Meta) -> Attrs {
        Attrs {
            mode: self.action.chmod.unwrap_or(meta.mode),
            uid: self.owner.map_or(meta.uid, |owner| owner.uid),
            gid: self.owner.map_or(meta.gid, |owner| owner.gid),
            mtime: meta.mtime,
            xattrs: Vec::new(),
        }
    }
}

/// Whether a destination is written as a directory's.
fn means_directory(dest: &str) -> bool {
    dest.ends_with('/') || dest.ends_with("/.") || dest.ends_with("/..")
}

/// A name that a layer gives a meaning of its own.
pub(super) fn refuse_reserved(name: &[u8], path: &[u8]) -> Result<(), FileOpError> {
    if name.starts_with(b".wh.") {
        return Err(FileOpError::ReservedName { path: show(path) });
    }
    Ok(())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn root_meta(tree: Tree<'_>) -> Result<Meta, TreeError> {
    Meta::of_file(&tree.root()).map_err(|errno| TreeError::io("stat", b"", errno))
}
