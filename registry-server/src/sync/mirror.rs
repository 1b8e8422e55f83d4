//! One run of a sync.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rustix::fs::FlockOperation;
use serde_json::Value;
use store::oci::{Digest, MediaType, Platform};
use tokio::sync::Semaphore;

use super::choose::is_fallback_tag;
use super::lease::{self, Due, Lease, Taken};
use super::{Mirror, SyncFailure, SyncLine, SyncReport, SyncStep, TellLine};
use crate::audit::Event;
use crate::error::ApiError;
use crate::events::event::{EventAction, EventObject, RegistryEvent};
use crate::immutable;
use crate::manifests::{Outline, examine};
use crate::rate::RateLimit;
use crate::registry::Registry;
use crate::routes::{ManifestReference, RepositoryName};
use crate::storage::{StorageResult, TagCondition, TagRemoval, VerifiedManifest};
use crate::upstream::{UpstreamError, UpstreamManifest, UpstreamResult};

/// Indexes within indexes, and referrers of referrers.
const DEPTH_MAX: usize = 8;

/// Referrers of one manifest, and of those, that are followed.
const REFERRERS_MAX: usize = 1000;

/// How often a source that limits requests is asked again, how long it is left alone where it does not say, and the longest
/// that it can ask for.
const BUSY_TRIES: u32 = 5;
const BUSY_FOR: Duration = Duration::from_secs(30);
const BUSY_FOR_MAX: Duration = Duration::from_secs(10 * 60);

/// An entry of an index that is about another one (BuildKit's attestations).
const ABOUT: &str = "vnd.docker.reference.digest";

/// Folder of the storage with the locks of syncs.
const FOLDER: &str = "_sync";

/// Why a run was none.
const BUSY: &str = "another process runs it just now";
const LOST: &str = "the storage could not be told that it runs: others may take it over";

/// Why something could not be mirrored.
#[derive(Debug)]
pub(super) enum Problem {
    Source(UpstreamError),
    Here(ApiError),
    Impossible(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Source(error) => write!(f, "the source: {error}"),
            Problem::Here(error) => error.fmt(f),
            Problem::Impossible(reason) => f.write_str(reason),
        }
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Problem {
        Problem::Here(error)
    }
}

/// A run while it goes on.
pub(super) struct Run<'a> {
    pub(super) registry: &'a Arc<Registry>,
    pub(super) sync: &'a Mirror,
    dry_run: bool,
    tell: TellLine<'a>,
    pub(super) slots: Semaphore,
    rates: Option<RateLimit>,
    report: Mutex<SyncReport>,
}

/// What keeps others from running the same.
enum Held {
    /// Nothing is written.
    Nothing,
    /// A lock, among processes on one folder.
    Folder(#[expect(dead_code, reason = "it is held")] File),
    /// A lease, among servers on one bucket.
    Lease(Lease),
}

/// Why a run that was due was none.
pub(super) enum Skipped {
    /// Another server runs it.
    Others,
    /// Another has run it, beginning then, and it is due in so long.
    NotDue(Duration, i64),
}

/// Mirrors once. What fails is in the report, and keeps nothing else from being done.
pub(super) async fn run(
    registry: &Arc<Registry>,
    sync: &Mirror,
    dry_run: bool,
    tell: TellLine<'_>,
) -> SyncReport {
    let held = match dry_run {
        true => Ok(Held::Nothing),
        false => match hold(registry, sync, None).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(_)) => Err(Problem::Impossible(BUSY.to_owned())),
            Err(problem) => Err(problem),
        },
    };
    perform(registry, sync, dry_run, tell, held).await
}

/// Mirrors once, unless other servers see to it; with when the run began, if others can see that.
pub(super) async fn run_if_due(
    registry: &Arc<Registry>,
    sync: &Mirror,
    due: Due,
    tell: TellLine<'_>,
) -> Result<(SyncReport, Option<i64>), Skipped> {
    let held = match hold(registry, sync, Some(due)).await {
        Ok(held) => Ok(held?),
        Err(problem) => Err(problem),
    };
    let began = match &held {
        Ok(Held::Lease(lease)) => Some(lease.began()),
        _ => None,
    };
    Ok((perform(registry, sync, false, tell, held).await, began))
}

async fn perform(
    registry: &Arc<Registry>,
    sync: &Mirror,
    dry_run: bool,
    tell: TellLine<'_>,
    held: Result<Held, Problem>,
) -> SyncReport {
    let began = Instant::now();
    let run = Run {
        registry,
        sync,
        dry_run,
        tell,
        slots: Semaphore::new(sync.transfers_max.max(1)),
        rates: sync.rate.map(RateLimit::new),
        report: Mutex::default(),
    };
    match held {
        Ok(Held::Lease(mut lease)) => {
            let done = tokio::select! {
                () = run.all() => true,
                () = lease.lost() => false,
            };
            if !done {
                run.failed(None, None, &Problem::Impossible(LOST.to_owned()));
            }
            lease.release(done).await;
        }
        Ok(_held) => run.all().await,
        Err(problem) => run.failed(None, None, &problem),
    }
    let report = run
        .report
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if !dry_run {
        let totals = &registry.observer.syncs;
        totals.ran(&sync.name, &report, began.elapsed());
    }
    report
}

/// Keeps other servers from doing the same work, unless they do it.
async fn hold(
    registry: &Arc<Registry>,
    sync: &Mirror,
    due: Option<Due>,
) -> Result<Result<Held, Skipped>, Problem> {
    if let Some(folder) = registry.storage.local_folder(FOLDER) {
        return Ok(Ok(Held::Folder(lock(folder, sync).await?)));
    }
    let taken = lease::take(&registry.storage, &sync.name, due, lease::Pace::default());
    Ok(match taken.await.map_err(ApiError::from)? {
        Taken::Ours(lease) => Ok(Held::Lease(lease)),
        Taken::Others => Err(Skipped::Others),
        Taken::NotDue(wait, ended) => Err(Skipped::NotDue(wait, ended)),
    })
}

/// Keeps other processes on the same folder from doing the same work.
async fn lock(folder: PathBuf, sync: &Mirror) -> Result<File, Problem> {
    let name = format!("{}.lock", sync.name);
    let locking = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&folder)?;
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(false);
        let file = options.open(folder.join(name))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(error) => Err(io::Error::from(error)),
        }
    });
    let locked = locking.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    locked.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Problem::Impossible(BUSY.to_owned()),
        _ => Problem::Impossible(format!("its lock cannot be taken: {error}")),
    })
}

impl Run<'_> {
    async fn all(&self) {
        let source = &self.sync.source;
        let repositories = match self.sync.choice.named() {
            Some(named) => named,
            None => match self.ask(|| source.repositories()).await {
                Ok(listed) => self.sync.choice.repositories(listed),
                Err(problem) => return self.failed(None, None, &problem),
            },
        };
        for remote in &repositories {
            self.count(|report| report.repositories += 1);
            if let Err(problem) = self.repository(remote).await {
                self.failed(Some(remote), None, &problem);
            }
        }
    }

    /// Asks the source, at the pace that is allowed, and again if it has had enough for the moment.
    pub(super) async fn ask<T, F>(&self, question: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = UpstreamResult<T>>,
    {
        let mut tries = 0;
        loop {
            while let Some(rates) = &self.rates
                && let Err(wait) = rates.take("source", Instant::now())
            {
                tokio::time::sleep(wait).await;
            }
            tries += 1;
            match question().await {
                Err(UpstreamError::Busy { retry_after }) if tries < BUSY_TRIES => {
                    let wait = retry_after.unwrap_or(BUSY_FOR).min(BUSY_FOR_MAX);
                    tracing::info!(sync = self.sync.name, ?wait, "the source limits requests");
                    tokio::time::sleep(wait).await;
                }
                answer => return answer.map_err(Problem::Source),
            }
        }
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut SyncReport)) {
        let report = self.report.lock();
        change(&mut report.unwrap_or_else(PoisonError::into_inner));
    }

    fn failed(&self, repository: Option<&str>, tag: Option<&str>, problem: &Problem) {
        let sync = &self.sync.name;
        tracing::warn!(sync, repository, tag, %problem, "cannot be mirrored");
        self.count(|report| {
            report.failures.push(SyncFailure {
                repository: repository.map(str::to_owned),
                tag: tag.map(str::to_owned),
                reason: problem.to_string(),
            });
        });
    }

    /// Tells those who are told of changes.
    pub(super) async fn told(&self, audit: &'static str, mut event: RegistryEvent) {
        event.user = Some(format!("sync:{}", self.sync.name));
        "sync".clone_into(&mut event.via);
        if let Some(log) = &self.registry.audit {
            log.write(&Event::by_server(audit, &event)).await;
        }
        self.registry.events.tell(&event).await;
    }

    fn line(&self, name: &RepositoryName, tag: &str, step: SyncStep, digest: Option<Digest>) {
        self.count(|report| match step {
            SyncStep::Same => report.same += 1,
            SyncStep::New | SyncStep::Changed => report.set += 1,
            SyncStep::Deleted => report.deleted += 1,
        });
        (self.tell)(&SyncLine {
            repository: name.to_string(),
            tag: tag.to_owned(),
            step,
            digest: digest.map(|digest| digest.to_string()),
        });
    }

    async fn repository(&self, remote: &str) -> Result<(), Problem> {
        let text = match &self.sync.prefix {
            Some(prefix) => format!("{prefix}/{remote}"),
            None => remote.to_owned(),
        };
        let name = RepositoryName::parse(&text)
            .map_err(|why| Problem::Impossible(format!("`{text}` is no name here: {why}")))?;
        if self.registry.upstreams.of(&name).is_some() {
            let reason =
                format!("`{name}` is a name of an upstream that is read through this registry");
            return Err(Problem::Impossible(reason));
        }
        let source = &self.sync.source;
        let listed = self.ask(|| source.tags(remote)).await?;
        let chosen = self.sync.choice.tags(&listed);
        let mut family = BTreeSet::new();
        for tag in &chosen {
            match self.tag(&name, remote, tag).await {
                Ok(of_tag) => family.extend(of_tag),
                Err(problem) => self.failed(Some(remote), Some(tag), &problem),
            }
        }
        if self.sync.referrers && !self.dry_run {
            // As cosign ties what it makes to a manifest: `sha256-<hex>.sig`.
            let about = |tag: &&String| {
                let of = tag.split_once('.').map(|(of, _)| of.replacen('-', ":", 1));
                of.and_then(|of| of.parse().ok())
                    .is_some_and(|digest: Digest| family.contains(&digest))
            };
            for tag in listed
                .iter()
                .filter(|tag| !chosen.contains(tag))
                .filter(about)
            {
                if let Err(problem) = self.tag(&name, remote, tag).await {
                    self.failed(Some(remote), Some(tag), &problem);
                }
            }
        }
        // A source that lists nothing at all may have a bad day.
        if self.sync.delete && !listed.is_empty() {
            self.delete_vanished(&name, remote, &listed).await?;
        }
        Ok(())
    }

    async fn delete_vanished(
        &self,
        name: &RepositoryName,
        remote: &str,
        listed: &[String],
    ) -> Result<(), Problem> {
        let target = name.clone();
        let here = self
            .registry
            .blocking(move |storage| storage.tags(&target))
            .await?;
        let listed: BTreeSet<&String> = listed.iter().collect();
        for tag in here.unwrap_or_default() {
            if listed.contains(&tag) || is_fallback_tag(&tag) || !self.sync.choice.wants(&tag) {
                continue;
            }
            if immutable::is_immutable(&self.registry.rules.immutable, name, &tag) {
                let problem =
                    Problem::Impossible("it is gone there, and immutable here".to_owned());
                self.failed(Some(remote), Some(&tag), &problem);
                continue;
            }
            if !self.dry_run {
                let (target, removed) = (name.clone(), tag.clone());
                let removing = self.registry.blocking(move |storage| {
                    storage.remove_tag(&target, &removed, &TagCondition::default())
                });
                if removing.await? != TagRemoval::Removed {
                    continue;
                }
                let mut event =
                    RegistryEvent::new(EventAction::Delete, EventObject::Tag, name.as_str());
                event.tags.push(tag.clone());
                self.registry.index.note(name, &[]);
                self.told("delete-tag", event).await;
            }
            self.line(name, &tag, SyncStep::Deleted, None);
        }
        Ok(())
    }

    /// Brings a tag and, if that is wanted, what refers to what it is on. The manifests that it is on, and those below.
    async fn tag(
        &self,
        name: &RepositoryName,
        remote: &str,
        tag: &str,
    ) -> Result<Vec<Digest>, Problem> {
        let (target, wanted) = (name.clone(), tag.to_owned());
        let held = self.registry.blocking(move |storage| {
            let on = storage.tag(&target, &wanted)?;
            on.map_or(Ok(None), |on| {
                Ok(storage.has_manifest(&target, &on)?.then_some(on))
            })
        });
        let held = held.await?;
        let (step, digest) = self.bring_tag(name, remote, tag, held).await?;
        if self.dry_run {
            self.line(name, tag, step, Some(digest));
            return Ok(Vec::new());
        }
        let target = name.clone();
        let family = self.registry.blocking(move |storage| {
            let mut family = Vec::new();
            collect_family(storage, &target, digest, DEPTH_MAX, &mut family)?;
            Ok(family)
        });
        let family = family.await?;
        if self.sync.referrers {
            self.referrers(name, remote, &family).await?;
        }
        self.line(name, tag, step, Some(digest));
        Ok(family)
    }

    async fn bring_tag(
        &self,
        name: &RepositoryName,
        remote: &str,
        tag: &str,
        held: Option<Digest>,
    ) -> Result<(SyncStep, Digest), Problem> {
        let source = &self.sync.source;
        if let Some(known) = held
            && self.sync.platforms.is_empty()
            && self.ask(|| source.tag_now(remote, tag, known)).await? == Some(known)
        {
            return Ok((SyncStep::Same, known));
        }
        let found = self.ask(|| source.manifest(remote, tag)).await?;
        let found = self.of_platforms(found)?;
        let digest = found.digest;
        let step = match held {
            None => SyncStep::New,
            Some(known) if known == digest => SyncStep::Same,
            Some(_) => SyncStep::Changed,
        };
        if !self.dry_run && step != SyncStep::Same {
            self.keep(name, remote, found, &[tag.to_owned()], 0).await?;
        }
        Ok((step, digest))
    }

    /// An index without the entries for other platforms; it has another digest then.
    fn of_platforms(&self, found: UpstreamManifest) -> Result<UpstreamManifest, Problem> {
        let wanted = &self.sync.platforms;
        if wanted.is_empty() {
            return Ok(found);
        }
        let mut index: Value = match serde_json::from_slice(&found.bytes) {
            Ok(index) => index,
            // What it is, is told when it is examined.
            Err(_) => return Ok(found),
        };
        let Some(entries) = index["manifests"].as_array_mut() else {
            return Ok(found);
        };
        let before = entries.len();
        let fits = |entry: &Value| {
            let platform = serde_json::from_value::<Platform>(entry["platform"].clone());
            platform.is_ok_and(|platform| wanted.iter().any(|one| platform.satisfies(one)))
        };
        let chosen: Vec<Value> = entries
            .iter()
            .filter(|entry| fits(entry))
            .map(|entry| entry["digest"].clone())
            .collect();
        if chosen.is_empty() {
            let reason = "it has no image for a platform that is wanted".to_owned();
            return Err(Problem::Impossible(reason));
        }
        entries.retain(|entry| {
            chosen.contains(&entry["digest"]) || chosen.contains(&entry["annotations"][ABOUT])
        });
        if entries.len() == before {
            return Ok(found);
        }
        let bytes = Bytes::from(index.to_string());
        Ok(UpstreamManifest {
            digest: Digest::of(&bytes),
            bytes,
            media_type: found.media_type,
        })
    }

    /// Makes sure that a manifest is here, by its digest.
    async fn bring_manifest(
        &self,
        name: &RepositoryName,
        remote: &str,
        digest: Digest,
        depth: usize,
    ) -> Result<(), Problem> {
        let target = name.clone();
        let here = self
            .registry
            .blocking(move |storage| storage.has_manifest(&target, &digest));
        if here.await? {
            return Ok(());
        }
        let (source, reference) = (&self.sync.source, digest.to_string());
        let found = self.ask(|| source.manifest(remote, &reference)).await?;
        let found = UpstreamManifest { digest, ..found };
        self.keep(name, remote, found, &[], depth).await
    }

    /// Keeps a manifest after all that it needs.
    async fn keep(
        &self,
        name: &RepositoryName,
        remote: &str,
        found: UpstreamManifest,
        tags: &[String],
        depth: usize,
    ) -> Result<(), Problem> {
        if depth > DEPTH_MAX {
            let reason = format!("there are more than {DEPTH_MAX} indexes within one another");
            return Err(Problem::Impossible(reason));
        }
        let UpstreamManifest {
            bytes,
            media_type,
            digest,
        } = found;
        // A registry that calls it something else than it calls itself is read all the same.
        let examined = examine(&bytes, media_type.as_deref()).or_else(|_| examine(&bytes, None));
        let (media_type, needs) = examined?;
        let is_child = children(&bytes);
        for child in &needs.manifests {
            if is_child.contains(child) {
                Box::pin(self.bring_manifest(name, remote, *child, depth + 1)).await?;
            } else {
                self.bring_blob(name, remote, *child).await?;
            }
        }
        let blobs: BTreeSet<Digest> = needs.blobs.iter().copied().collect();
        stream::iter(blobs)
            .map(|blob| self.bring_blob(name, remote, blob))
            .buffer_unordered(self.sync.transfers_max.max(1))
            .try_collect::<()>()
            .await?;
        let size = bytes.len() as u64;
        let manifest = VerifiedManifest::check(bytes, media_type.clone(), digest);
        let manifest = manifest.ok_or_else(|| {
            let reason = format!("the content is not that of {digest}");
            Problem::Source(UpstreamError::Wrong { reason })
        })?;
        let place = ManifestReference::Digest(digest);
        let condition = TagCondition::default();
        let keeping = self
            .registry
            .keep_manifest(name, &place, tags, manifest, needs, condition);
        keeping.await?;
        self.count(|report| report.manifests += 1);
        let mut event = RegistryEvent::new(EventAction::Push, EventObject::Manifest, name.as_str());
        event.digest = Some(digest.to_string());
        event.tags = tags.to_vec();
        event.media_type = Some(media_type);
        event.size = Some(size);
        self.told("put-manifest", event).await;
        Ok(())
    }

    /// Brings what refers to some manifests, and to that.
    async fn referrers(
        &self,
        name: &RepositoryName,
        remote: &str,
        subjects: &[Digest],
    ) -> Result<(), Problem> {
        let source = &self.sync.source;
        let mut seen: BTreeSet<Digest> = subjects.iter().copied().collect();
        let mut level = subjects.to_vec();
        for _ in 0..DEPTH_MAX {
            let mut next = Vec::new();
            for subject in level {
                let listed = match self.ask(|| source.referrers(remote, subject)).await {
                    Err(Problem::Source(UpstreamError::NotFound)) => Vec::new(),
                    listed => listed?,
                };
                for referrer in listed {
                    if seen.insert(referrer.digest) {
                        self.bring_manifest(name, remote, referrer.digest, 1)
                            .await?;
                        next.push(referrer.digest);
                    }
                }
                if seen.len() > REFERRERS_MAX {
                    let reason = format!("more than {REFERRERS_MAX} manifests refer to it");
                    return Err(Problem::Impossible(reason));
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            level = next;
        }
        Ok(())
    }
}

/// The entries of an index that are manifests, as far as that is said; some artifacts' indexes list blobs.
fn children(bytes: &Bytes) -> BTreeSet<Digest> {
    let outline = Outline::read(bytes, false).ok();
    let links = outline
        .and_then(|outline| outline.manifests)
        .unwrap_or_default();
    links
        .iter()
        .filter(|link| {
            let kind = MediaType::new(link.media_type.clone());
            link.media_type.is_empty() || kind.is_manifest() || kind.is_index()
        })
        .filter_map(|link| link.digest.parse().ok())
        .collect()
}

/// A manifest, and those below it, that are here.
fn collect_family(
    storage: &dyn crate::storage::RegistryStorage,
    name: &RepositoryName,
    digest: Digest,
    depth: usize,
    family: &mut Vec<Digest>,
) -> StorageResult<()> {
    let Some(manifest) = storage.manifest(name, &digest)? else {
        return Ok(());
    };
    family.push(digest);
    if depth > 0 {
        for child in children(manifest.bytes()) {
            if !family.contains(&child) {
                collect_family(storage, name, child, depth - 1, family)?;
            }
        }
    }
    Ok(())
}
