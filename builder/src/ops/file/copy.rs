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
use crate::graph::{CopyAction, CopySource, Document};
use crate::ops::select::{Match, select};
use crate::ops::tree::{Kind, Listing, Meta, Place, Time, Tree, TreeError, join, show};

/// Mode of a file that stands in the Dockerfile.
const DOCUMENT_MODE: u32 = 0o644;

pub(super) fn copy(plan: &mut Plan<'_>, action: &CopyAction) -> Result<(), FileOpError> {
    let owner = match &action.chown {
        Some(spec) => Some(chown::resolve(&spec.text, plan.run.base)?),
        None => None,
    };
    // Parents that are created are as old as the first thing copied, or as the build is told to be.
    let epoch = plan.run.epoch.map(|seconds| Time { seconds, nanos: 0 });
    let mut parents_mtime = epoch;
    for source in &action.sources {
        let tree = plan.run.inputs[source.input];
        let selected = select(tree, source)?;
        let mut linked = BTreeMap::new();
        for found in &selected.matches {
            let mtime = match &found.place {
                Place::Entry(listing, index) => listing.entries[*index].meta.mtime,
                Place::Root => root_meta(tree)?.mtime,
            };
            let parents_mtime = *parents_mtime.get_or_insert(mtime);
            let mut target = Target {
                plan,
                action,
                owner,
                parents_mtime,
            };
            target.add(
                &mut Input {
                    tree,
                    source,
                    linked: &mut linked,
                },
                found,
                mtime,
            )?;
        }
    }
    for document in &action.documents {
        let mut target = Target {
            plan,
            action,
            owner,
            parents_mtime: *parents_mtime.get_or_insert_default(),
        };
        target.document(document, epoch.unwrap_or_default())?;
    }
    Ok(())
}

/// Where a copy puts things, and how.
struct Target<'p, 'a> {
    plan: &'p mut Plan<'a>,
    action: &'p CopyAction,
    owner: Option<chown::Owner>,
    /// Time of parents that are created.
    parents_mtime: Time,
}

/// One source of a copy.
struct Input<'p, 'a> {
    tree: Tree<'a>,
    source: &'p CopySource,
    /// Files with several names, by device and inode.
    linked: &'p mut BTreeMap<(u64, u64), BodyId>,
}

impl<'a> Target<'_, 'a> {
    fn add(
        &mut self,
        input: &mut Input<'_, 'a>,
        found: &Match,
        mtime: Time,
    ) -> Result<(), FileOpError> {
        self.plan.run.check_cancelled()?;
        let dest = self.plan.upper.resolve(self.action.dest.as_bytes())?;
        match &found.place {
            Place::Entry(listing, index) if !found.is_dir() => {
                let is_file = listing.entries[*index].meta.kind == Kind::File;
                if input.source.unpack
                    && is_file
                    && let Some(archive) = archive::open(input.tree, listing, *index)?
                {
                    self.archive_dir(&dest)?;
                    let source = (&**listing, *index);
                    return self
                        .plan
                        .unpack(archive, input.tree, source, &dest, self.owner);
                }
                let (parent, path) = self.file_place(&found.name, dest)?;
                self.leaf(input, parent, &path, listing, *index)
            }
            Place::Entry(..) | Place::Root => self.contents(input, found, &dest, mtime),
        }
    }

    /// Metadata of parents that do not exist.
    fn created(&self) -> Attrs {
        let owner = self.owner.unwrap_or_default();
        Attrs {
            mode: self.mode(0o755, true),
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

    /// The mode that something gets whose own is `mode`.
    fn mode(&self, mode: u32, is_dir: bool) -> u32 {
        match &self.action.chmod {
            Some(chmod) => chmod.apply(mode, is_dir),
            None => mode,
        }
    }

    fn document(&mut self, document: &Document, mtime: Time) -> Result<(), FileOpError> {
        let dest = self.plan.upper.resolve(self.action.dest.as_bytes())?;
        let (parent, path) = self.file_place(document.name.as_bytes(), dest)?;
        refuse_reserved(split(&path).1, &path)?;
        let attrs = Attrs {
            mode: self.mode(DOCUMENT_MODE, false),
            mtime,
            ..self.created()
        };
        let content = document.content.clone().into_bytes();
        let body = self.plan.upper.body(Origin::Inline(content));
        self.plan.upper.put(parent, &path, What::File(body), attrs);
        Ok(())
    }

    /// The directory, made if need be, and the path of a file called `name` at its source.
    fn file_place(
        &mut self,
        name: &[u8],
        mut path: Vec<Vec<u8>>,
    ) -> Result<(NodeId, Vec<u8>), FileOpError> {
        if means_directory(&self.action.dest) || self.plan.upper.peek(&path)? == Found::Dir {
            path.push(name.to_vec());
        }
        let Some((_, parents)) = path.split_last() else {
            unreachable!("the root is a directory");
        };
        let created = self.created();
        let parent = self.plan.upper.ensure_dirs(parents, &created)?;
        Ok((parent, path.join(&b'/')))
    }

    fn contents(
        &mut self,
        input: &mut Input<'_, 'a>,
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
                self.leaf(input, parent, &path, &item.listing, item.index)?;
                continue;
            }
            refuse_reserved(name, &path)?;
            let mut attrs = self.attrs(&entry.meta);
            attrs
                .xattrs
                .clone_from(input.tree.xattrs(&item.listing, item.index)?);
            let node = self.plan.upper.merge_dir(parent, &path, attrs)?;
            dirs.insert(&item.path, node);
        }
        Ok(())
    }

    /// Plans anything but a directory at `path`.
    fn leaf(
        &mut self,
        input: &mut Input<'_, 'a>,
        parent: NodeId,
        path: &[u8],
        listing: &Arc<Listing>,
        index: usize,
    ) -> Result<(), FileOpError> {
        refuse_reserved(split(path).1, path)?;
        let meta = &listing.entries[index].meta;
        let mut attrs = self.attrs(meta);
        let what = match meta.kind {
            Kind::File => What::File(self.body(input, listing, index)),
            Kind::Symlink => {
                attrs.mode = 0o777;
                What::Symlink(input.tree.link_target(listing, index)?)
            }
            Kind::CharDevice if meta.rdev == 0 => {
                return Err(FileOpError::ReservedDevice { path: show(path) });
            }
            Kind::CharDevice => What::CharDevice(meta.rdev),
            Kind::BlockDevice => What::BlockDevice(meta.rdev),
            Kind::Fifo => What::Fifo,
            // Nobody listens at a copied socket: as BuildKit, an empty file keeps its place.
            Kind::Socket => What::File(self.plan.upper.body(Origin::Inline(Vec::new()))),
            Kind::Dir => unreachable!("directories are merged"),
        };
        self.plan.upper.put(parent, path, what, attrs);
        Ok(())
    }

    fn body(&mut self, input: &mut Input<'_, 'a>, listing: &Arc<Listing>, index: usize) -> BodyId {
        let meta = &listing.entries[index].meta;
        let inode = (meta.dev, meta.ino);
        if let Some(&known) = input.linked.get(&inode) {
            return known;
        }
        let body = self.plan.upper.body(Origin::Copy {
            input: input.source.input,
            listing: Arc::clone(listing),
            index,
        });
        if meta.nlink > 1 {
            input.linked.insert(inode, body);
        }
        body
    }

    fn attrs(&self, meta: &Meta) -> Attrs {
        Attrs {
            mode: self.mode(meta.mode, meta.kind == Kind::Dir),
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
