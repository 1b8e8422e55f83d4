//! The new layer while it is planned: what stands in it so far, over the root file system that it changes.
//!
//! A copy is planned here before anything is written: later actions see what earlier ones put, then what the base has,
//! and a file that is replaced is never copied. What is planned becomes overlayfs's form by `write.rs`. An existing
//! directory that something is put below is adopted with the base's own metadata, as overlayfs copies it up, so that the
//! layer says nothing but what the operation changed. Paths here are lists of names without links.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use super::FileOpError;
use crate::ops::tree::{
    Kind, LINKS_MAX, Listing, Meta, Time, TreeError, Xattrs, components, join, open_dir,
    read_xattrs, show, stays,
};

/// Metadata that a layer records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attrs {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Xattrs,
}

/// Position in [`Upper::nodes`].
pub(super) type NodeId = usize;

/// Position in [`Upper::bodies`].
pub(super) type BodyId = usize;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) what: What,
    pub(super) attrs: Attrs,
    pub(super) on_disk: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Dir(Dir),
    /// A name of a regular file; several names may share one body.
    File(BodyId),
    Symlink(Vec<u8>),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
}

#[derive(Debug, Default)]
pub(super) struct Dir {
    pub(super) children: BTreeMap<Vec<u8>, NodeId>,
    /// Whether the base has a directory here that shows through.
    pub(super) in_base: bool,
    /// Whether the base has a directory here that must not show through.
    pub(super) opaque: bool,
}

/// The content of a regular file.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) origin: Origin,
    /// Set once it is on disk.
    pub(super) written: OnceLock<Written>,
}

#[derive(Debug)]
pub(super) enum Origin {
    /// A file of an input.
    Copy {
        input: usize,
        listing: Arc<Listing>,
        index: usize,
    },
    /// These bytes: a here-document, or nothing in place of a socket.
    Inline(Vec<u8>),
    /// Written by whoever planned it.
    Direct,
}

/// What is known of a file that was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) size: u64,
    pub(super) hash: [u8; 32],
    pub(super) xattrs: Xattrs,
}

/// What stands at a path, seen through the new layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    Dir,
    Symlink(Vec<u8>),
    Other,
}

/// The plan; see the module.
#[derive(Debug)]
pub(super) struct Upper<'a> {
    base: Option<BorrowedFd<'a>>,
    pub(super) nodes: Vec<Node>,
    pub(super) bodies: Vec<Body>,
    /// Paths on disk that something else was planned for since.
    pub(super) stale: Vec<Vec<u8>>,
}

pub(super) const ROOT: NodeId = 0;

impl<'a> Upper<'a> {
    /// An empty layer over `base`. Without one the root is 0755, owned by root, and as old as `mtime`.
    pub(super) fn new(base: Option<BorrowedFd<'a>>, mtime: Time) -> Result<Upper<'a>, FileOpError> {
        let mut upper = Upper {
            base,
            nodes: Vec::new(),
            bodies: Vec::new(),
            stale: Vec::new(),
        };
        let attrs = match base {
            Some(base) => dir_attrs(base, b"")?,
            None => Attrs {
                mode: 0o755,
                mtime,
                ..Attrs::default()
            },
        };
        upper.nodes.push(Node {
            what: What::Dir(Dir {
                in_base: base.is_some(),
                ..Dir::default()
            }),
            attrs,
            on_disk: true,
        });
        Ok(upper)
    }

    /// Follows every link of `path`, the last component's too; what does not exist is taken as it is written, and a link
    /// that leads nowhere as where it leads.
    pub(super) fn resolve(&self, path: &[u8]) -> Result<Vec<Vec<u8>>, FileOpError> {
        let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            done.push(name);
            if let Found::Symlink(target) = self.peek(&done)? {
                done.pop();
                links += 1;
                if links > LINKS_MAX {
                    return Err(TreeError::LinkLoop { path: show(path) }.into());
                }
                if target.starts_with(b"/") {
                    done.clear();
                }
                todo.extend(components(&target).rev().map(<[u8]>::to_vec));
            }
        }
        Ok(done)
    }

    /// What stands at a path without links.
    pub(super) fn peek(&self, names: &[Vec<u8>]) -> Result<Found, FileOpError> {
        let mut at = ROOT;
        for name in names {
            let What::Dir(dir) = &self.nodes[at].what else {
                return Ok(Found::Missing);
            };
            match dir.children.get(name) {
                Some(&child) => at = child,
                // From here on there is only the base.
                None if dir.in_base => return self.peek_base(&names.join(&b'/')),
                None => return Ok(Found::Missing),
            }
        }
        Ok(match &self.nodes[at].what {
            What::Dir(_) => Found::Dir,
            What::Symlink(target) => Found::Symlink(target.clone()),
            _ => Found::Other,
        })
    }

    fn peek_base(&self, path: &[u8]) -> Result<Found, FileOpError> {
        let Some((base, meta)) = self.base_meta(path)? else {
            return Ok(Found::Missing);
        };
        Ok(match meta.kind {
            Kind::Dir => Found::Dir,
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(base, path, Vec::new())
                    .map_err(|errno| TreeError::io("read", path, errno))?;
                Found::Symlink(target.into_bytes())
            }
            _ => Found::Other,
        })
    }

    fn base_meta(&self, path: &[u8]) -> Result<Option<(BorrowedFd<'a>, Meta)>, FileOpError> {
        let Some(base) = self.base else {
            return Ok(None);
        };
        let meta = Meta::read(base, path).map_err(|errno| TreeError::io("stat", path, errno))?;
        Ok(meta.map(|meta| (base, meta)))
    }

    /// The directory at `names`; those that are missing are made with `new`.
    ///
    /// # Errors
    /// If something else than a directory is in the way.
    pub(super) fn ensure_dirs(
        &mut self,
        names: &[Vec<u8>],
        new: &Attrs,
    ) -> Result<NodeId, FileOpError> {
        let mut at = ROOT;
        for depth in 1..=names.len() {
            let path = names[..depth].join(&b'/');
            at = match self.adopt(at, &path)? {
                Adopted::Dir(child) => child,
                Adopted::Missing => self.put_dir(at, &path, new.clone())?,
                Adopted::Other => return Err(FileOpError::NotADirectory { path: show(&path) }),
            };
        }
        Ok(at)
    }

    /// Finds the directory at `path`, below the node `parent`, taking it over from the base if need be.
    fn adopt(&mut self, parent: NodeId, path: &[u8]) -> Result<Adopted, FileOpError> {
        let What::Dir(dir) = &self.nodes[parent].what else {
            return Ok(Adopted::Other);
        };
        if let Some(&child) = dir.children.get(last(path)) {
            return Ok(match self.nodes[child].what {
                What::Dir(_) => Adopted::Dir(child),
                _ => Adopted::Other,
            });
        }
        if !dir.in_base {
            return Ok(Adopted::Missing);
        }
        match self.base_meta(path)? {
            None => Ok(Adopted::Missing),
            Some((base, meta)) if meta.kind == Kind::Dir => {
                let attrs = dir_attrs(base, path)?;
                let dir = Dir {
                    in_base: true,
                    ..Dir::default()
                };
                Ok(Adopted::Dir(self.put(parent, path, What::Dir(dir), attrs)))
            }
            Some(_) => Ok(Adopted::Other),
        }
    }

    /// A directory of a copied tree at `path`, below `parent`: an existing one takes the owner, mode and attributes of
    /// `attrs` and keeps its contents and time, anything else is replaced.
    pub(super) fn merge_dir(
        &mut self,
        parent: NodeId,
        path: &[u8],
        attrs: Attrs,
    ) -> Result<NodeId, FileOpError> {
        let Adopted::Dir(existing) = self.adopt(parent, path)? else {
            return self.put_dir(parent, path, attrs);
        };
        let own = &mut self.nodes[existing].attrs;
        (own.mode, own.uid, own.gid) = (attrs.mode, attrs.uid, attrs.gid);
        for (name, value) in attrs.xattrs {
            match own.xattrs.binary_search_by(|(known, _)| known.cmp(&name)) {
                Ok(at) => own.xattrs[at].1 = value,
                Err(at) => own.xattrs.insert(at, (name, value)),
            }
        }
        Ok(existing)
    }

    /// A new, empty directory at `path`, in place of whatever is there.
    pub(super) fn put_dir(
        &mut self,
        parent: NodeId,
        path: &[u8],
        attrs: Attrs,
    ) -> Result<NodeId, FileOpError> {
        let mut dir = Dir::default();
        if let What::Dir(above) = &self.nodes[parent].what
            && above.in_base
            && above.children.contains_key(last(path))
        {
            // An earlier action of this layer hid what the base has here; a directory alone would show it again.
            let base = self.base_meta(path)?;
            dir.opaque = base.is_some_and(|(_, meta)| meta.kind == Kind::Dir);
        }
        Ok(self.put(parent, path, What::Dir(dir), attrs))
    }

    /// Puts a node at `path`, in place of whatever is there.
    pub(super) fn put(&mut self, parent: NodeId, path: &[u8], what: What, attrs: Attrs) -> NodeId {
        let id = self.nodes.len();
        self.nodes.push(Node {
            what,
            attrs,
            on_disk: false,
        });
        let What::Dir(dir) = &mut self.nodes[parent].what else {
            unreachable!("only directories are given as parents");
        };
        let replaced = dir.children.insert(last(path).to_vec(), id);
        if replaced.is_some_and(|old| self.nodes[old].on_disk) {
            self.stale.push(path.to_vec());
        }
        id
    }

    /// A file's content, to be named by [`What::File`].
    pub(super) fn body(&mut self, origin: Origin) -> BodyId {
        self.bodies.push(Body {
            origin,
            written: OnceLock::new(),
        });
        self.bodies.len() - 1
    }

    /// The node that this layer has at `path`.
    pub(super) fn node_at(&self, path: &[u8]) -> Option<NodeId> {
        components(path).try_fold(ROOT, |at, name| match &self.nodes[at].what {
            What::Dir(dir) => dir.children.get(name).copied(),
            _ => None,
        })
    }

    /// Calls `visit` with every node and its path, directories before their contents, each sorted by name; the root
    /// first, with an empty path.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(&[u8], NodeId)) {
        self.walk_from(ROOT, b"", visit);
    }

    fn walk_from(&self, at: NodeId, path: &[u8], visit: &mut dyn FnMut(&[u8], NodeId)) {
        visit(path, at);
        if let What::Dir(dir) = &self.nodes[at].what {
            for (name, &child) in &dir.children {
                self.walk_from(child, &join(path, name), visit);
            }
        }
    }
}

enum Adopted {
    Dir(NodeId),
    Missing,
    Other,
}

/// Metadata of a directory of the base.
fn dir_attrs(base: BorrowedFd<'_>, path: &[u8]) -> Result<Attrs, FileOpError> {
    let fail = |errno| TreeError::io("stat", path, errno);
    let dir = open_dir(base, path)?;
    let meta = Meta::of_file(&dir).map_err(fail)?;
    Ok(Attrs {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: meta.mtime,
        xattrs: read_xattrs(&dir, stays).map_err(fail)?,
    })
}

fn last(path: &[u8]) -> &[u8] {
    components(path).next_back().unwrap_or_default()
}
