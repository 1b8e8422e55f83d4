//! Manifests and tags are brought here: by digest once, by tag when what is known of it is too old.
//!
//! A tag that is found to be where it was is put there again. So what a storage knows as the time when a tag was made is, to
//! within [`PullThrough::tag_age`], when it was last asked for: a restart or another replica need not ask again, and
//! retention `within` a time keeps what is pulled.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use store::oci::{Descriptor, Digest};
use tokio::sync::Semaphore;

use super::flight::{Failure, Fetch, Flight, on_storage};
use super::joined::{Joined, Tasks};
use super::memory::Memory;
use super::{PullThrough, UpstreamError, UpstreamManifest, UpstreamResult};
use crate::error::ErrorCode;
use crate::manifests::examine;
use crate::quota::Quotas;
use crate::routes::RepositoryName;
use crate::storage::{RegistryStorage, TagCondition, VerifiedManifest};

/// Names that are remembered, of each kind.
const NAMES_MAX: usize = 100_000;

/// Lists of referrers that are remembered, and the longest of them.
const LISTS_MAX: usize = 1024;
const LIST_ENTRIES_MAX: usize = 64;

/// How long an upstream is left alone that limits requests and does not say for how long, and the longest it can ask for.
const BUSY_FOR: Duration = Duration::from_secs(30);
const BUSY_FOR_MAX: Duration = Duration::from_secs(10 * 60);

/// A repository, and what is asked for in it, as a path.
type Key = (RepositoryName, String);

/// What was asked for is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It was already.
    Here,
    /// It had to be fetched.
    Fetched,
    /// It was already, and may be old, for this reason.
    Old(UpstreamError),
}

/// How it came here, or why it did not.
pub(super) type Brought = Result<How, Failure>;

/// A registry that is read through this one.
#[derive(Debug)]
pub(crate) struct Through {
    pub(super) rules: PullThrough,
    pub(super) storage: Arc<dyn RegistryStorage>,
    blob_bytes_max: Option<u64>,
    spool: Option<PathBuf>,
    quotas: Arc<Quotas>,
    slots: Arc<Semaphore>,
    tasks: Arc<Tasks>,
    flights: Arc<Mutex<Flights>>,
    brought: Arc<Joined<Key, Brought>>,
    sizes: Arc<Joined<Key, UpstreamResult<u64>>>,
    tag_lists: Arc<Joined<RepositoryName, UpstreamResult<Arc<Vec<String>>>>>,
    referrer_lists: Arc<Joined<Key, UpstreamResult<Arc<Vec<Descriptor>>>>>,
    /// Tags that were asked about.
    checked: Memory<Key, ()>,
    /// What the upstream does not have.
    absent: Memory<Key, ()>,
    referrers: Memory<Key, Arc<Vec<Descriptor>>>,
    /// Until when the upstream is not asked, and why.
    pause: Mutex<Option<(Instant, UpstreamError)>>,
}

type Flights = std::collections::BTreeMap<(RepositoryName, Digest), Arc<Flight>>;

impl Through {
    pub(super) fn new(
        rules: PullThrough,
        storage: Arc<dyn RegistryStorage>,
        tasks: Arc<Tasks>,
        blob_bytes_max: Option<u64>,
        spool: Option<PathBuf>,
        quotas: Arc<Quotas>,
    ) -> Arc<Through> {
        Arc::new(Through {
            slots: Arc::new(Semaphore::new(rules.fetches_max.max(1))),
            rules,
            storage,
            blob_bytes_max,
            spool,
            quotas,
            tasks,
            flights: Arc::default(),
            brought: Arc::default(),
            sizes: Arc::default(),
            tag_lists: Arc::default(),
            referrer_lists: Arc::default(),
            checked: Memory::new(NAMES_MAX),
            absent: Memory::new(NAMES_MAX),
            referrers: Memory::new(LISTS_MAX),
            pause: Mutex::default(),
        })
    }

    /// Makes sure that a tag is here, and that it is not too old.
    pub(super) async fn bring_tag(
        self: &Arc<Through>,
        name: &RepositoryName,
        remote: &str,
        tag: &str,
    ) -> Brought {
        let key = (name.clone(), format!("tag/{tag}"));
        let (through, remote, tag) = (Arc::clone(self), remote.to_owned(), tag.to_owned());
        let asked = key.clone();
        let ask = move || async move { through.check_tag(asked, &remote, &tag).await };
        self.once(key, ask).await
    }

    /// Makes sure that a manifest is here.
    pub(super) async fn bring_manifest(
        self: &Arc<Through>,
        name: &RepositoryName,
        remote: &str,
        digest: Digest,
    ) -> Brought {
        let key = (name.clone(), format!("manifest/{digest}"));
        let (through, remote) = (Arc::clone(self), remote.to_owned());
        let asked = key.clone();
        let ask = move || async move {
            let name = asked.0.clone();
            let here = name.clone();
            let has = on_storage(&through.storage, move |s| s.has_manifest(&here, &digest));
            if has.await? {
                return Ok(How::Here);
            }
            through.is_not_absent(&asked)?;
            through.may_ask(false)?;
            let reference = digest.to_string();
            let found = through.rules.upstream.manifest(&remote, &reference).await;
            let found = through.noted(&asked, found)?;
            through.keep(&name, found, Some(digest)).await?;
            Ok(How::Fetched)
        };
        self.once(key, ask).await
    }

    async fn once<F>(self: &Arc<Through>, key: Key, ask: impl FnOnce() -> F) -> Brought
    where
        F: Future<Output = Brought> + Send + 'static,
    {
        let brought = self.brought.ask(&self.tasks, key, ask).await;
        brought.unwrap_or(Err(Failure::Storage(ErrorCode::Unavailable)))
    }

    async fn check_tag(self: &Arc<Through>, key: Key, remote: &str, tag: &str) -> Brought {
        let (name, wanted) = (key.0.clone(), tag.to_owned());
        let held = on_storage(&self.storage, move |storage| {
            let Some(digest) = storage.tag(&name, &wanted)? else {
                return Ok(None);
            };
            if !storage.has_manifest(&name, &digest)? {
                return Ok(None);
            }
            let made = match storage.collectable() {
                Some(collectable) => collectable.tag_made(&name, &wanted)?,
                None => None,
            };
            Ok(Some((digest, made)))
        })
        .await?;
        if let Some((_, made)) = &held
            && self.is_fresh(&key, *made)
        {
            return Ok(How::Here);
        }
        let held = held.map(|(digest, _)| digest);
        let asked = match self.is_not_absent(&key) {
            Ok(()) => self.ask_tag(&key, remote, tag, held).await,
            Err(absent) => Err(absent.into()),
        };
        match (asked, held) {
            (Ok(how), _) => {
                self.checked.put(key, ());
                Ok(how)
            }
            (Err(Failure::Upstream(UpstreamError::NotFound)), held) => {
                if let Some(digest) = held {
                    let (name, tag) = (key.0.clone(), tag.to_owned());
                    on_storage(&self.storage, move |storage| {
                        storage.remove_tag(&name, &tag, &TagCondition::on(digest))
                    })
                    .await?;
                }
                Err(UpstreamError::NotFound.into())
            }
            (Err(Failure::Upstream(error)), Some(_)) if error.says_nothing() => {
                tracing::warn!(repository = %key.0, tag, %error, "a tag may be old");
                Ok(How::Old(error))
            }
            (Err(failure), _) => Err(failure),
        }
    }

    fn is_fresh(&self, key: &Key, made: Option<SystemTime>) -> bool {
        let age = self.rules.tag_age;
        // A time to come is of a clock that was set back.
        let old = made.and_then(|made| made.elapsed().ok());
        self.checked.younger(key, age).is_some() || old.is_some_and(|old| old < age)
    }

    /// Finds out what a tag is on, and puts it there.
    async fn ask_tag(
        self: &Arc<Through>,
        key: &Key,
        remote: &str,
        tag: &str,
        held: Option<Digest>,
    ) -> Brought {
        let name = &key.0;
        self.may_ask(held.is_some())?;
        if let Some(known) = held {
            let now = self.rules.upstream.tag_now(remote, tag, known).await;
            if let Some(now) = self.noted(key, now)? {
                let (name, tag) = (name.clone(), tag.to_owned());
                let put = on_storage(&self.storage, move |storage| {
                    let here = now == known || storage.has_manifest(&name, &now)?;
                    if here {
                        storage.set_tag(&name, &tag, &now, &TagCondition::default())?;
                    }
                    Ok(here)
                });
                if put.await? {
                    return Ok(How::Here);
                }
            }
        }
        let found = self.rules.upstream.manifest(remote, tag).await;
        let found = self.noted(key, found)?;
        let digest = self.keep(name, found, None).await?;
        let (name, tag) = (name.clone(), tag.to_owned());
        on_storage(&self.storage, move |storage| {
            storage.set_tag(&name, &tag, &digest, &TagCondition::default())
        })
        .await?;
        Ok(How::Fetched)
    }

    /// Verifies a manifest and keeps it.
    async fn keep(
        &self,
        name: &RepositoryName,
        found: UpstreamManifest,
        wanted: Option<Digest>,
    ) -> Result<Digest, Failure> {
        let wrong = |reason: String| UpstreamError::Wrong { reason };
        let UpstreamManifest {
            bytes,
            media_type,
            digest,
        } = found;
        let digest = wanted.unwrap_or(digest);
        // A registry that calls it something else than it calls itself is read all the same.
        let examined = examine(&bytes, media_type.as_deref()).or_else(|_| examine(&bytes, None));
        let (media_type, needs) =
            examined.map_err(|error| wrong(format!("it is no manifest: {error}")))?;
        let manifest = VerifiedManifest::check(bytes, media_type, digest)
            .ok_or_else(|| wrong(format!("the content is not that of {digest}")))?;
        let (name, subject) = (name.clone(), needs.subject);
        let quotas = Arc::clone(&self.quotas);
        on_storage(&self.storage, move |storage| {
            // It is answered from here, so it is kept, whether it fits or not; then the next count has it.
            let bytes = manifest.bytes().len() as u64;
            let _ = quotas.add(storage, &name, &digest, bytes)?;
            let kept = storage.rely_on(&[digest])?;
            storage.put_manifest(&name, &manifest, subject.as_ref())?;
            kept.confirm()
        })
        .await?;
        Ok(digest)
    }

    /// The fetch of a blob, begun unless it is under way.
    pub(super) fn fetch(
        self: &Arc<Through>,
        name: &RepositoryName,
        remote: &str,
        digest: Digest,
    ) -> Arc<Flight> {
        let key = (name.clone(), digest);
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            return Arc::clone(flight);
        }
        let flight = Arc::new(Flight::new(&self.storage, name, digest));
        flights.insert(key.clone(), Arc::clone(&flight));
        let fetch = Fetch {
            upstream: Arc::clone(&self.rules.upstream),
            remote: remote.to_owned(),
            slots: Arc::clone(&self.slots),
            bytes_max: self.blob_bytes_max,
            spool: self.spool.clone(),
            quotas: Arc::clone(&self.quotas),
        };
        let ended = Ended(Arc::clone(&self.flights), key);
        self.tasks.spawn(Arc::clone(&flight).run(fetch, ended));
        flight
    }

    /// A fetch that is under way.
    pub(super) fn flight(&self, name: &RepositoryName, digest: Digest) -> Option<Arc<Flight>> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.get(&(name.clone(), digest)).cloned()
    }

    /// The length of a blob that is not here.
    pub(super) async fn blob_size(
        self: &Arc<Through>,
        name: &RepositoryName,
        remote: &str,
        digest: Digest,
    ) -> Result<u64, Failure> {
        let key = blob_key(name, digest);
        self.may_fetch(name, digest)?;
        let (through, remote, asked) = (Arc::clone(self), remote.to_owned(), key.clone());
        let ask = move || async move {
            let size = through.rules.upstream.blob_size(&remote, digest).await;
            through.noted(&asked, size)
        };
        let size = self.sizes.ask(&self.tasks, key, ask).await;
        Ok(size.unwrap_or_else(broken_off)?)
    }

    /// Whether there is sense in asking for a blob.
    pub(super) fn may_fetch(&self, name: &RepositoryName, digest: Digest) -> UpstreamResult<()> {
        self.is_not_absent(&blob_key(name, digest))?;
        self.may_ask(false)
    }

    /// Takes note of how the fetch of a blob failed.
    pub(super) fn fetch_failed(&self, name: &RepositoryName, digest: Digest, failure: &Failure) {
        if let Failure::Upstream(error) = failure {
            // Only to be noted.
            let _ = self.noted(&blob_key(name, digest), Err::<(), _>(error.clone()));
        }
    }

    /// The tags of a repository as the upstream lists them now.
    pub(super) async fn tags(
        self: &Arc<Through>,
        name: &RepositoryName,
        remote: &str,
    ) -> UpstreamResult<Arc<Vec<String>>> {
        self.may_ask(true)?;
        let key = (name.clone(), "tags".to_owned());
        let (through, remote) = (Arc::clone(self), remote.to_owned());
        let ask = move || async move {
            let listed = through.rules.upstream.tags(&remote).await;
            let mut tags = through.noted(&key, listed)?;
            tags.sort_unstable();
            tags.dedup();
            Ok(Arc::new(tags))
        };
        let listed = self.tag_lists.ask(&self.tasks, name.clone(), ask).await;
        listed.unwrap_or_else(broken_off)
    }

    /// What refers to a manifest, as the upstream says or said, by digest; with it why it may be old.
    pub(super) async fn referrers(
        self: &Arc<Through>,
        name: &RepositoryName,
        remote: &str,
        subject: Digest,
    ) -> UpstreamResult<(Arc<Vec<Descriptor>>, Option<UpstreamError>)> {
        let key = (name.clone(), format!("referrers/{subject}"));
        if let Some(listed) = self.referrers.younger(&key, self.rules.tag_age) {
            return Ok((listed, None));
        }
        let (through, remote, asked) = (Arc::clone(self), remote.to_owned(), key.clone());
        let ask = move || async move {
            through.may_ask(true)?;
            let listed = through.rules.upstream.referrers(&remote, subject).await;
            let mut listed = through.noted(&asked, listed)?;
            listed.sort_by_key(|descriptor| descriptor.digest);
            listed.dedup_by_key(|descriptor| descriptor.digest);
            let listed = Arc::new(listed);
            if listed.len() <= LIST_ENTRIES_MAX {
                through.referrers.put(asked, Arc::clone(&listed));
            }
            Ok(listed)
        };
        let listed = self.referrer_lists.ask(&self.tasks, key.clone(), ask).await;
        match listed.unwrap_or_else(broken_off) {
            Ok(listed) => Ok((listed, None)),
            Err(error) => match self.referrers.any(&key) {
                Some((_, listed)) if error.says_nothing() => Ok((listed, Some(error))),
                _ => Err(error),
            },
        }
    }

    /// What is known of a tag is no longer true.
    pub(super) fn forget(&self, name: &RepositoryName, tag: &str) {
        self.checked.forget(&(name.clone(), format!("tag/{tag}")));
    }

    fn is_not_absent(&self, key: &Key) -> UpstreamResult<()> {
        match self.absent.younger(key, self.rules.absent_age) {
            Some(()) => Err(UpstreamError::NotFound),
            None => Ok(()),
        }
    }

    /// Whether the upstream is to be asked now. One that cannot be reached is asked all the same where there is no older
    /// answer.
    fn may_ask(&self, has_older: bool) -> UpstreamResult<()> {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pause {
            Some((until, _)) if *until <= Instant::now() => {
                *pause = None;
                Ok(())
            }
            Some((until, UpstreamError::Busy { .. })) => Err(UpstreamError::Busy {
                retry_after: Some(until.saturating_duration_since(Instant::now())),
            }),
            Some((_, error)) if has_older => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Takes note of what an answer says about the upstream.
    fn noted<T>(&self, key: &Key, answer: UpstreamResult<T>) -> UpstreamResult<T> {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Ok(_) => *pause = None,
            Err(UpstreamError::NotFound) => {
                *pause = None;
                self.absent.put(key.clone(), ());
            }
            Err(error @ UpstreamError::Busy { retry_after }) => {
                let time = retry_after.unwrap_or(BUSY_FOR).min(BUSY_FOR_MAX);
                *pause = Some((Instant::now() + time, error.clone()));
            }
            Err(error @ UpstreamError::Unreachable { .. }) => {
                *pause = Some((Instant::now() + self.rules.down_age, error.clone()));
            }
            Err(UpstreamError::Refused { .. } | UpstreamError::Wrong { .. }) => {}
        }
        answer
    }
}

fn blob_key(name: &RepositoryName, digest: Digest) -> Key {
    (name.clone(), format!("blob/{digest}"))
}

/// The task that asked was ended.
fn broken_off<T>() -> UpstreamResult<T> {
    Err(UpstreamError::Unreachable {
        reason: "the request was given up".to_owned(),
    })
}

/// Forgets a fetch when it is dropped.
struct Ended(Arc<Mutex<Flights>>, (RepositoryName, Digest));

impl Drop for Ended {
    fn drop(&mut self) {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.remove(&self.1);
    }
}

/// The descriptors of one artifact type, and how they are told.
pub(super) fn of_type(listed: &[Descriptor], artifact_type: Option<&str>) -> Vec<Value> {
    let wanted = |descriptor: &&Descriptor| {
        artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted))
    };
    let told = listed.iter().filter(wanted).map(serde_json::to_value);
    told.filter_map(Result::ok).collect()
}
