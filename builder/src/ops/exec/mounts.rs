//! The mounts of a step: from what the graph says to what the sandbox does, and all that has to live as long as it runs.
//!
//! Stages and images are stacked where they lie. Of a context a copy is mounted, made once a build, without what
//! `.dockerignore` excludes: nobody else changes it while the step runs, and files belong to root as after `COPY`. What is
//! written into either goes to a directory that is dropped with the step. Where overlayfs stacks nothing, what is mounted
//! is a tree of the store's, and a copy of it where it may be written to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use runner::{Isolation, MountKind as Point, MountPoint};
use store::cache_mounts::{CacheMount as HeldCache, CacheMountName, CacheSharing, CacheTaken};
use store::snapshot::{ActiveSnapshot, Backend, Part, View};

use super::super::file::FileRun;
use super::super::{Operations, Tree};
use super::digest::literal;
use super::{secrets, ssh};
use crate::error::StepError;
use crate::graph::exec::{BindMount, CacheMount, ExecOp, MountKind, SCRIPTS, Sharing};
use crate::graph::{CopyAction, CopySource, FileAction, FileOp, Op, VertexIndex};
use crate::solve::ProgressEvent;

/// How long to wait between two looks at a cache that another step has alone.
const CACHE_POLL: Duration = Duration::from_millis(20);

/// Mode bits of a tmpfs's top directory: the kernel's own default.
const TMPFS_MODE: u32 = 0o1777;

/// Mode bits of a here-document that is executed.
const SCRIPT_MODE: u32 = 0o755;

/// What a step's mounts come to.
#[derive(Default)]
pub(super) struct Mounts {
    pub(super) points: Vec<MountPoint>,
    /// `NAME=value` for the process.
    pub(super) env: Vec<String>,
    /// Directories for what is written and dropped, and copies of contexts.
    writable: Vec<ActiveSnapshot>,
    copies: Vec<Arc<ActiveSnapshot>>,
    views: Vec<View>,
    parts: Vec<Part>,
    caches: Vec<(CacheMountName, HeldCache)>,
    agents: Vec<ssh::Agent>,
}

/// A copy of what is mounted of a context, by context, path and ignore patterns.
pub(crate) type ContextCopies =
    std::collections::BTreeMap<(usize, String, Vec<String>), Arc<ActiveSnapshot>>;

impl Mounts {
    /// Lets go of everything; the process has ended.
    pub(super) fn finish(self) -> Result<(), StepError> {
        for agent in self.agents {
            agent.stop();
        }
        for snapshot in self.writable {
            snapshot.discard()?;
        }
        Ok(())
    }
}

/// Makes everything ready that `exec` mounts.
pub(super) fn prepare(
    operations: &Operations<'_>,
    vertex: usize,
    exec: &ExecOp,
) -> Result<Mounts, StepError> {
    let mut mounts = Mounts::default();
    take_caches(operations, vertex, exec, &mut mounts)?;
    for (position, mount) in exec.mounts.iter().enumerate() {
        let kind = match &mount.kind {
            MountKind::Bind(bind) => {
                let below = format!("{}/", mount.target.trim_end_matches('/'));
                let is_parent =
                    exec.mounts.iter().enumerate().any(|(other, mount)| {
                        other != position && mount.target.starts_with(&below)
                    });
                let writable = !bind.read_only || is_parent;
                Some(self::bind(operations, vertex, bind, writable, &mut mounts)?)
            }
            MountKind::Cache(cache) => {
                let name = cache_name(operations, vertex, exec, position, cache);
                let held = mounts.caches.iter().find(|(known, _)| *known == name);
                let (_, held) = held.expect("all of them were taken before");
                let (data, beneath) = (held.data(), cache.source.trim_matches('/'));
                Some(match cache.read_only && !has_mounts() {
                    // Nothing keeps the step from writing there.
                    true => copied(operations, &data, beneath, true, &mut mounts)?,
                    false => Point::Bind {
                        source: data,
                        beneath: beneath.to_owned(),
                        read_only: cache.read_only,
                    },
                })
            }
            MountKind::Tmpfs { size, read_only } => Some(Point::Tmpfs {
                size: *size,
                mode: TMPFS_MODE,
                read_only: *read_only,
            }),
            MountKind::Secret(secret) => {
                secrets::prepare(operations.run, secret, &mount.target, &mut mounts.env)?
            }
            MountKind::Ssh(agent) => ssh::prepare(operations, agent)?.map(|agent| {
                if !has_variable(&exec.env, &mounts.env, "SSH_AUTH_SOCK") {
                    mounts.env.push(format!("SSH_AUTH_SOCK={}", mount.target));
                }
                let source = agent.socket();
                mounts.agents.push(agent);
                Point::Bind {
                    source,
                    beneath: String::new(),
                    read_only: false,
                }
            }),
        };
        mounts.points.extend(kind.map(|kind| MountPoint {
            target: mount.target.clone(),
            kind,
        }));
    }
    if let Some((name, text)) = &exec.script {
        mounts.points.push(MountPoint {
            target: format!("{SCRIPTS}/{name}"),
            kind: Point::File {
                content: text.clone().into_bytes(),
                mode: SCRIPT_MODE,
                uid: 0,
                gid: 0,
                read_only: true,
            },
        });
    }
    Ok(mounts)
}

fn has_variable(env: &[Arc<str>], more: &[String], name: &str) -> bool {
    let all = env.iter().map(AsRef::as_ref);
    all.chain(more.iter().map(String::as_str))
        .any(|variable: &str| variable.split('=').next() == Some(name))
}

fn bind(
    operations: &Operations<'_>,
    vertex: usize,
    bind: &BindMount,
    writable: bool,
    mounts: &mut Mounts,
) -> Result<Point, StepError> {
    let snapshots = operations.store.snapshots();
    let input = bind
        .input
        .map(|input| operations.vertex(vertex).inputs[input].0);
    let copied_context = match input.map(|input| (input, &operations.vertex(input).op)) {
        Some((input, Op::Context(_))) => {
            let copy = context_copy(operations, input, &bind.source, &bind.ignore)?;
            mounts.copies.push(Arc::clone(&copy));
            Some(copy)
        }
        _ => None,
    };
    let layers = match (input, &copied_context) {
        (Some(input), None) => operations.layers(input),
        _ => Vec::new(),
    };
    let beneath = bind.source.trim_matches('/').to_owned();
    if snapshots.backend()? != Backend::Overlay {
        let root;
        let tree = match &copied_context {
            Some(copy) => copy.upper(),
            None => {
                let view = snapshots.view(&layers)?;
                root = view.path().map(Path::to_owned);
                mounts.views.push(view);
                root.as_deref().expect("without overlayfs it is no mount")
            }
        };
        return match writable || !has_mounts() {
            true => copied(operations, tree, &beneath, bind.read_only, mounts),
            false => Ok(Point::Bind {
                source: snapshots.locate(tree, Path::new(&beneath))?,
                beneath: String::new(),
                read_only: true,
            }),
        };
    }
    let above: Option<PathBuf> = copied_context.map(|copy| copy.upper().to_owned());
    if !writable && above.is_none() && layers.is_empty() {
        // overlayfs does not stack nothing.
        return Ok(Point::Tmpfs {
            size: None,
            mode: 0o755,
            read_only: true,
        });
    }
    if !writable {
        let lower = above.into_iter().chain(snapshots.lower(&layers)?);
        return Ok(Point::Overlay {
            lower: lower.collect(),
            upper: None,
            beneath,
            read_only: true,
        });
    }
    let mut active = snapshots.prepare(&layers)?;
    let mount = active.mount()?;
    mounts.writable.push(active);
    Ok(Point::Overlay {
        lower: above.into_iter().chain(mount.lower).collect(),
        upper: Some((mount.upper, mount.work)),
        beneath,
        read_only: bind.read_only,
    })
}

/// Whether the sandbox can mount. Where it cannot, it moves what is to be mounted into place.
fn has_mounts() -> bool {
    runner::isolation() == Isolation::Namespaces
}

/// A copy of what is at `beneath` in `root`, the step's alone and dropped with it.
fn copied(
    operations: &Operations<'_>,
    root: &Path,
    beneath: &str,
    read_only: bool,
    mounts: &mut Mounts,
) -> Result<Point, StepError> {
    let snapshots = operations.store.snapshots();
    let part = snapshots.copy_part(root, Path::new(beneath))?;
    let source = part.path();
    mounts.parts.push(part);
    Ok(Point::Bind {
        source,
        beneath: String::new(),
        read_only,
    })
}

/// What a mount shows of a context, copied once a build.
fn context_copy(
    operations: &Operations<'_>,
    context: usize,
    source: &str,
    ignore: &[String],
) -> Result<Arc<ActiveSnapshot>, StepError> {
    let key = (context, source.to_owned(), ignore.to_vec());
    // Held while it is copied: another step that wants the same waits for it.
    let mut copies = operations.context_copies();
    if let Some(copy) = copies.get(&key) {
        return Ok(Arc::clone(copy));
    }
    let active = operations.store.snapshots().prepare(&[])?;
    copy(operations, context, source, ignore, active.upper())?;
    let copy = Arc::new(active);
    copies.insert(key, Arc::clone(&copy));
    Ok(copy)
}

/// Copies what is at `source` in a vertex's result to the same path below the empty directory `to`.
fn copy(
    operations: &Operations<'_>,
    from: usize,
    source: &str,
    ignore: &[String],
    to: &std::path::Path,
) -> Result<(), StepError> {
    let op = FileOp {
        on_base: false,
        actions: vec![FileAction::Copy(CopyAction {
            sources: vec![CopySource {
                input: 0,
                pattern: literal(source),
                ignore: ignore.to_vec(),
                ..CopySource::default()
            }],
            dest: source.to_owned(),
            ..CopyAction::default()
        })],
    };
    let (view, context);
    let tree = match &operations.vertex(from).op {
        Op::Context(op) => {
            context = &operations.contexts[&op.name];
            Tree::Context(context)
        }
        _ => {
            view = operations.view(from)?;
            Tree::RootFs(std::os::fd::AsFd::as_fd(&view))
        }
    };
    let run = FileRun {
        op: &op,
        base: None,
        inputs: &[tree],
        upper: to,
        epoch: operations.epoch,
        cancelled: operations.abort.flag(),
    };
    run.run()?;
    Ok(())
}

/// Takes every cache that the step mounts, once each, in an order that all steps keep: two that lock the same ones cannot wait
/// for each other.
fn take_caches(
    operations: &Operations<'_>,
    vertex: usize,
    exec: &ExecOp,
    mounts: &mut Mounts,
) -> Result<(), StepError> {
    let mut wanted: Vec<(CacheMountName, CacheSharing, &CacheMount)> = Vec::new();
    for (position, mount) in exec.mounts.iter().enumerate() {
        let MountKind::Cache(cache) = &mount.kind else {
            continue;
        };
        let name = cache_name(operations, vertex, exec, position, cache);
        let sharing = match cache.sharing {
            // It is moved to where it is used, so it can be in one place only.
            Sharing::Shared if !has_mounts() => CacheSharing::Locked,
            Sharing::Shared => CacheSharing::Shared,
            Sharing::Private => CacheSharing::Private,
            Sharing::Locked => CacheSharing::Locked,
        };
        match wanted.iter_mut().find(|(known, ..)| *known == name) {
            // Mounted twice: one directory, shared no more than either allows.
            Some((_, known, _)) if *known == CacheSharing::Shared => *known = sharing,
            Some(_) => {}
            None => wanted.push((name, sharing, cache)),
        }
    }
    wanted.sort_by(|(a, ..), (b, ..)| {
        (&a.id, a.from, a.mode, a.uid, a.gid).cmp(&(&b.id, b.from, b.mode, b.uid, b.gid))
    });
    for (name, sharing, cache) in wanted {
        if operations.vertex(vertex).meta.no_cache {
            renew(operations, vertex, &name, cache)?;
        }
        let held = take(operations, vertex, &name, sharing, cache)?;
        operations.use_mount(&name);
        mounts.caches.push((name, held));
    }
    Ok(())
}

fn take(
    operations: &Operations<'_>,
    vertex: usize,
    name: &CacheMountName,
    sharing: CacheSharing,
    cache: &CacheMount,
) -> Result<HeldCache, StepError> {
    let store = operations.store;
    let mut told = false;
    loop {
        match store.take_cache_mount(name, sharing)? {
            CacheTaken::Taken(held) => return Ok(held),
            CacheTaken::Missing => {
                let new = match operations.shared.filled_mount(store, name)? {
                    Some(new) => new,
                    None => {
                        let new = store.new_cache_mount(name)?;
                        fill(operations, vertex, cache, &new.data())?;
                        new
                    }
                };
                store.publish_cache_mount(new, sharing)?;
                continue;
            }
            CacheTaken::Busy => {}
        }
        if operations.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        if !told {
            told = true;
            let id = cache.id.trim_start_matches('/');
            operations.progress.event(ProgressEvent::Note {
                vertex: Some(VertexIndex(vertex)),
                text: format!("waiting for another step that uses the cache `{id}`"),
            });
        }
        std::thread::sleep(CACHE_POLL);
    }
}

/// Replaces a cache by a new one, at its first use in a build without cache.
fn renew(
    operations: &Operations<'_>,
    vertex: usize,
    name: &CacheMountName,
    cache: &CacheMount,
) -> Result<(), StepError> {
    let key = (name.id.clone(), name.from, name.mode, name.uid, name.gid);
    if !operations.renewed_caches().insert(key) {
        return Ok(());
    }
    let new = operations.store.new_cache_mount(name)?;
    fill(operations, vertex, cache, &new.data())?;
    Ok(operations.store.replace_cache_mount(new)?)
}

/// The caches that a build has emptied.
pub(crate) type RenewedCaches = BTreeSet<(String, Option<[u8; 32]>, u32, u32, u32)>;

/// Gives a new cache its first content.
fn fill(
    operations: &Operations<'_>,
    vertex: usize,
    cache: &CacheMount,
    data: &std::path::Path,
) -> Result<(), StepError> {
    let Some(input) = cache.input else {
        return Ok(());
    };
    let from = operations.vertex(vertex).inputs[input].0;
    copy(operations, from, &cache.source, &[], data)
}

/// What names the cache of a step's mount. What it is filled from is known once that was digested.
pub(crate) fn cache_name(
    operations: &Operations<'_>,
    vertex: usize,
    exec: &ExecOp,
    position: usize,
    cache: &CacheMount,
) -> CacheMountName {
    // Digests are in the order of the mounts that select something.
    let from = cache.input.and_then(|_| {
        let before = ExecOp {
            mounts: exec.mounts[..position].to_vec(),
            ..ExecOp::default()
        };
        let number = before.selections().count();
        operations
            .state(vertex)
            .selected
            .as_ref()?
            .get(number)
            .copied()
    });
    CacheMountName {
        id: cache.id.clone(),
        from,
        mode: cache.mode,
        uid: cache.uid,
        gid: cache.gid,
    }
}
