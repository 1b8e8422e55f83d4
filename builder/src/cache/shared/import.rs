//! Looking results up in shared caches, and fetching their layers once something reads them.
//!
//! A cache that fails is told of once and not asked again in this build; a record or layer that is wrong is told of once,
//! and its step runs.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::io::Errno;
use store::cache_mounts::{CacheMountName, NewCacheMount};
use store::layer::scan::{ScanError, scan};
use store::layer::{LayerId, TreeDigest};
use store::oci::{Digest, Reference};
use store::{Store, StoreError};

use super::ahead::Ahead;
use super::bucket::Bucket;
use super::folder::Folder;
use super::record::{RecordError, SharedLayer, SharedRecord};
use super::repository::Repository;
use super::source::SharedSource;
use super::{CacheStore, CacheStoreError, EntryName, hint, mounts};
use crate::cache::CacheKey;
use crate::remote::{Remote, RemoteError};
use crate::request::BuildRequest;
use crate::request::cache::{CachePlace, MountChoice};
use crate::solve::{ProgressEvent, ProgressSink, TransferKind};
use crate::transfer::{self, Bridge, TransferError};

/// Whether there is a record of a key in the store.
type Known<'a> = Box<dyn Fn(&CacheKey) -> bool + Send + Sync + 'a>;

/// The caches that a build looks into.
pub(crate) struct SharedCache<'a> {
    sources: Vec<Source<'a>>,
    /// Names of the hints of the build, and what need not be fetched ahead.
    hints: Vec<EntryName>,
    known: Known<'a>,
    notes: Notes,
    hits: Mutex<BTreeMap<CacheKey, Arc<Hit>>>,
    /// Keys whose records turned out to be wrong.
    bad: Mutex<BTreeSet<CacheKey>>,
    /// What was found to be in which cache.
    elsewhere: Mutex<Vec<(usize, SharedSource)>>,
}

#[derive(Debug)]
struct Source<'a> {
    store: Box<dyn CacheStore + 'a>,
    /// Cache mounts that are filled from it.
    mounts: MountChoice,
    ahead: OnceLock<Ahead>,
    failed: AtomicBool,
}

impl std::fmt::Debug for SharedCache<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedCache")
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}

/// A record that was found.
#[derive(Debug)]
pub(crate) struct Hit {
    /// What it says.
    pub(crate) record: SharedRecord,
    /// Which of the caches has it.
    source: usize,
}

/// Things to be said once in a build.
#[derive(Clone)]
pub(crate) struct Notes {
    progress: Arc<dyn ProgressSink>,
    said: Arc<Mutex<BTreeSet<String>>>,
}

impl std::fmt::Debug for Notes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notes").finish_non_exhaustive()
    }
}

impl Notes {
    /// Notes that go to `progress`.
    pub(crate) fn new(progress: &Arc<dyn ProgressSink>) -> Notes {
        Notes {
            progress: Arc::clone(progress),
            said: Arc::default(),
        }
    }

    /// Says something, unless it was said before.
    pub(crate) fn warn(&self, text: &str) {
        if lock(&self.said).insert(text.to_owned()) {
            self.progress.event(ProgressEvent::Note {
                vertex: None,
                text: format!("warning: {text}"),
            });
        }
    }
}

/// Why a layer that a cache is said to have did not come.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FetchError {
    /// It is not what its record says, or is not there.
    #[error("{reason}")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
    /// The cache does not answer as it should.
    #[error(transparent)]
    Cache(CacheStoreError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer could not be fetched or unpacked.
    #[error(transparent)]
    Transfer(TransferError),
    /// The unpacked layer could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

impl FetchError {
    /// Whether it is this machine that failed: a full disk, say. Anything else is as if there were no cache.
    pub(crate) fn is_local(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            let errno = error.downcast_ref::<Errno>().map(|errno| errno.kind());
            let is_full = |kind| {
                matches!(
                    kind,
                    io::ErrorKind::StorageFull
                        | io::ErrorKind::QuotaExceeded
                        | io::ErrorKind::ReadOnlyFilesystem
                )
            };
            if kind.or(errno).is_some_and(is_full) {
                return true;
            }
            cause = error.source();
        }
        matches!(
            self,
            FetchError::Scan(_) | FetchError::Store(StoreError::Index(_))
        )
    }
}

impl<'a> SharedCache<'a> {
    /// The caches, asked in this order; those of equal standing at the same time.
    pub(crate) fn new(
        stores: Vec<(Box<dyn CacheStore + 'a>, MountChoice)>,
        notes: Notes,
    ) -> SharedCache<'a> {
        let source = |(store, mounts)| Source {
            store,
            mounts,
            ahead: OnceLock::new(),
            failed: AtomicBool::new(false),
        };
        SharedCache {
            sources: stores.into_iter().map(source).collect(),
            hints: Vec::new(),
            known: Box::new(|_| false),
            notes,
            hits: Mutex::default(),
            bad: Mutex::default(),
            elsewhere: Mutex::default(),
        }
    }

    /// The same, fetching ahead what the hints of these names name, but for records that are known here.
    pub(crate) fn with_hints(
        self,
        hints: Vec<EntryName>,
        known: impl Fn(&CacheKey) -> bool + Send + Sync + 'a,
    ) -> SharedCache<'a> {
        SharedCache {
            hints,
            known: Box::new(known),
            ..self
        }
    }

    /// Whether anybody would be asked.
    pub(crate) fn is_active(&self) -> bool {
        self.sources
            .iter()
            .any(|source| !source.failed.load(Ordering::Relaxed))
    }

    /// Looks a record up: one request to each cache, all at the same time, the first that has it counts.
    pub(crate) fn look_up(&self, key: &CacheKey) -> Option<Arc<Hit>> {
        if let Some(hit) = self.hit(key) {
            return Some(hit);
        }
        if lock(&self.bad).contains(key) {
            return None;
        }
        let active = || {
            let sources = self.sources.iter().enumerate();
            sources.filter(|(_, source)| !source.failed.load(Ordering::Relaxed))
        };
        let found = match active().count() {
            0 => None,
            1 => active().find_map(|(source, _)| self.ask(source, key)),
            _ => std::thread::scope(|scope| {
                let asked: Vec<_> = active()
                    .map(|(source, _)| scope.spawn(move || self.ask(source, key)))
                    .collect();
                // All of them end before the scope does.
                let answers = asked.into_iter().map(|thread| match thread.join() {
                    Ok(answer) => answer,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                answers.collect::<Vec<_>>().into_iter().flatten().next()
            }),
        };
        let hit = Arc::new(found?);
        lock(&self.hits).insert(*key, Arc::clone(&hit));
        Some(hit)
    }

    fn ask(&self, source: usize, key: &CacheKey) -> Option<Hit> {
        let store = &self.sources[source].store;
        let bytes = match self.ahead(source).take(key) {
            Some(answer) => answer?,
            // Whatever was to be fetched ahead may have shown that nobody answers.
            None if self.sources[source].failed.load(Ordering::Relaxed) => return None,
            None => match store.entry(&EntryName::Record(*key)) {
                Ok(bytes) => bytes?,
                Err(error) => {
                    self.failed(source, &error);
                    return None;
                }
            },
        };
        match SharedRecord::decode(bytes, key) {
            Ok(record) => Some(Hit { record, source }),
            Err(error) => {
                self.refused(source, EntryName::Record(*key), &error);
                if !matches!(error, RecordError::Newer { .. }) {
                    lock(&self.bad).insert(*key);
                }
                None
            }
        }
    }

    /// What the caches know of something from elsewhere, in their order.
    pub(crate) fn sources(&self, key: &[u8; 32]) -> Vec<SharedSource> {
        let mut found = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            if source.failed.load(Ordering::Relaxed) {
                continue;
            }
            let bytes = match source.store.entry(&EntryName::Source(*key)) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(error) => {
                    self.failed(number, &error);
                    continue;
                }
            };
            match SharedSource::decode(bytes, key) {
                Ok(known) => {
                    lock(&self.elsewhere).push((number, known.clone()));
                    found.push(known);
                }
                Err(error) => self.refused(number, EntryName::Source(*key), &error),
            }
        }
        found
    }

    /// Whether a cache of this name was found to know the same of something from elsewhere.
    pub(crate) fn knows(&self, name: &str, known: &SharedSource) -> bool {
        let elsewhere = lock(&self.elsewhere);
        let mut found = elsewhere.iter();
        found.any(|(source, found)| found == known && self.sources[*source].store.name() == name)
    }

    /// Tells of an entry that is of no use.
    fn refused(&self, source: usize, entry: EntryName, error: &RecordError) {
        let name = self.sources[source].store.name();
        self.notes.warn(&match error {
            RecordError::Newer { .. } => {
                format!("the cache {name} has records of a newer longshore, which are ignored")
            }
            error => format!("the record {entry} in the cache {name} is ignored: {error}"),
        });
    }

    /// What a cache has of what its hints name; fetched by whoever comes first, while all others wait.
    fn ahead(&self, source: usize) -> &Ahead {
        self.sources[source].ahead.get_or_init(|| {
            let store = self.sources[source].store.as_ref();
            let fetched = Ahead::fetch(store, &self.hints, &self.known, &self.notes);
            fetched.unwrap_or_else(|error| {
                self.failed(source, &error);
                Ahead::default()
            })
        })
    }

    /// What the hint at a position among the names says in the cache of this name, where it was fetched.
    pub(crate) fn hinted(&self, name: &str, position: usize) -> Option<&[CacheKey]> {
        let mut sources = self.sources.iter();
        let source = sources.find(|source| source.store.name() == name)?;
        source.ahead.get()?.hints.get(position)?.as_deref()
    }

    /// A new cache mount with the content that the first of the caches has which are to fill it.
    pub(crate) fn filled_mount(
        &self,
        store: &Store,
        name: &CacheMountName,
    ) -> Result<Option<NewCacheMount>, StoreError> {
        for source in &self.sources {
            let asked = source.mounts.has(&name.id) && !source.failed.load(Ordering::Relaxed);
            if asked
                && let Some(new) = mounts::filled(store, source.store.as_ref(), name, &self.notes)?
            {
                return Ok(Some(new));
            }
        }
        Ok(None)
    }

    /// Where things are said once.
    pub(crate) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// A record that was found before.
    pub(crate) fn hit(&self, key: &CacheKey) -> Option<Arc<Hit>> {
        lock(&self.hits).get(key).cloned()
    }

    /// Whether a record was found in the cache of this name, and nothing was wrong with it.
    pub(crate) fn is_from(&self, key: &CacheKey, name: &str) -> bool {
        self.hit(key)
            .is_some_and(|hit| self.sources[hit.source].store.name() == name)
    }

    /// Whether a record turned out to be wrong.
    pub(crate) fn is_bad(&self, key: &CacheKey) -> bool {
        lock(&self.bad).contains(key)
    }

    /// The repository that has what was found, where it is one.
    pub(crate) fn repository(&self, hit: &Hit) -> Option<&Reference> {
        self.sources[hit.source].store.repository()
    }

    /// Fetches and unpacks the layer that was found, and checks that it is what its record says.
    pub(crate) fn fetch(
        &self,
        store: &Arc<Store>,
        remote: &Remote,
        hit: &Hit,
        layer: &SharedLayer,
        progress: &Arc<dyn ProgressSink>,
    ) -> Result<LayerId, FetchError> {
        let source = &self.sources[hit.source].store;
        match source.repository() {
            // Unpacked as it comes.
            Some(reference) => fetch_from(store, remote, reference, layer, progress)?,
            None => {
                self.fetch_blob(store, hit, layer)?;
                add_layer(store, layer)?;
            }
        }
        verify_tree(store, layer)
    }

    /// Brings only the blob of the layer that was found.
    pub(crate) fn fetch_blob(
        &self,
        store: &Store,
        hit: &Hit,
        layer: &SharedLayer,
    ) -> Result<(), FetchError> {
        let here = store
            .blobs()
            .has(&layer.blob.digest)
            .map_err(StoreError::from)?;
        if here == Some(layer.blob.size) {
            return Ok(());
        }
        let source = &self.sources[hit.source].store;
        match source.fetch_blob(&layer.blob, store.blobs()) {
            Ok(()) => Ok(()),
            Err(error) if error.is_damage() => Err(FetchError::Damaged {
                reason: error.to_string(),
            }),
            Err(error) => Err(FetchError::Cache(error)),
        }
    }

    /// Takes note that what was found under a key cannot be had, and says so.
    pub(crate) fn give_up(&self, key: &CacheKey, step: &str, error: &FetchError) {
        let hit = lock(&self.hits).remove(key);
        lock(&self.bad).insert(*key);
        match (hit, error) {
            (Some(hit), FetchError::Cache(error)) => self.failed(hit.source, error),
            (hit, error) => {
                let place = hit.map_or_else(String::new, |hit| {
                    format!(" from the cache {}", self.sources[hit.source].store.name())
                });
                self.notes.warn(&format!(
                    "cannot use the result of {step}{place}: {}: it runs again",
                    chain(error)
                ));
            }
        }
    }

    fn failed(&self, source: usize, error: &CacheStoreError) {
        let source = &self.sources[source];
        let first = !source.failed.swap(true, Ordering::Relaxed);
        let cancelled = matches!(error, CacheStoreError::Remote(RemoteError::Cancelled));
        if first && !cancelled {
            let name = source.store.name();
            self.notes.warn(&format!(
                "cannot read the cache {name}: {}: building without it",
                chain(error)
            ));
        }
    }
}

/// Opens the caches that a build looks into; one that cannot be opened is told of and left out.
pub(crate) fn open<'a>(
    store: &'a Store,
    remote: &'a Remote,
    request: &BuildRequest,
    progress: &Arc<dyn ProgressSink>,
) -> SharedCache<'a> {
    let notes = Notes::new(progress);
    let mut stores: Vec<(Box<dyn CacheStore + 'a>, MountChoice)> = Vec::new();
    for import in &request.cache_from {
        let opened: Result<Box<dyn CacheStore + 'a>, CacheStoreError> = match &import.place {
            CachePlace::Registry(reference) => {
                let bridge = Arc::new(Bridge::new(TransferKind::Pull, Arc::clone(progress)));
                let repository = Repository::new(remote, reference, bridge);
                Ok(Box::new(repository.with_images(&request.platforms)))
            }
            CachePlace::Local(path) => match Folder::open(path) {
                Ok(folder) => Ok(Box::new(folder)),
                Err(error) => Err(error),
            },
            CachePlace::S3(settings) => match Bucket::new(remote, settings) {
                Ok(bucket) => Ok(Box::new(bucket)),
                Err(error) => Err(error),
            },
        };
        match opened {
            Ok(store) => stores.push((store, import.mounts.clone())),
            Err(error) => notes.warn(&format!(
                "cannot read a cache: {}: building without it",
                chain(&error)
            )),
        }
    }
    let hints = match stores.is_empty() {
        true => Vec::new(),
        false => hint::names(request).to_vec(),
    };
    SharedCache::new(stores, notes).with_hints(hints, |key| {
        matches!(store.index().record_peek(&key.0), Ok(Some(_)))
    })
}

/// Fetches a layer from a repository and unpacks it meanwhile.
pub(crate) fn fetch_from(
    store: &Arc<Store>,
    remote: &Remote,
    reference: &Reference,
    layer: &SharedLayer,
    progress: &Arc<dyn ProgressSink>,
) -> Result<(), FetchError> {
    let wanted = [(layer.diff_id, layer.blob.clone())];
    let here = store
        .blobs()
        .has(&layer.blob.digest)
        .map_err(StoreError::from)?;
    if here == Some(layer.blob.size) {
        return add_layer(store, layer);
    }
    transfer::fetch(store, remote, reference, &wanted, progress).map_err(|error| match error {
        TransferError::Layer { .. } => FetchError::Transfer(error),
        TransferError::Remote(error) => {
            let error = CacheStoreError::Remote(error);
            match error.is_damage() {
                true => FetchError::Damaged {
                    reason: error.to_string(),
                },
                false => FetchError::Cache(error),
            }
        }
        TransferError::Store(error) => FetchError::Store(error),
    })
}

/// Unpacks a layer whose blob is in the store.
fn add_layer(store: &Store, layer: &SharedLayer) -> Result<(), FetchError> {
    let digest: &Digest = &layer.blob.digest;
    Ok(store.add_layer_blob(&layer.diff_id, digest)?)
}

/// Checks that an unpacked layer has the tree that its record names, and notes that it does.
pub(crate) fn verify_tree(store: &Store, layer: &SharedLayer) -> Result<LayerId, FetchError> {
    let damaged = |reason: &str| FetchError::Damaged {
        reason: reason.to_owned(),
    };
    let found = store
        .index()
        .layer_by_diff_id(&layer.diff_id)
        .map_err(StoreError::from)?;
    let mut info = found.ok_or_else(|| damaged("the layer vanished"))?;
    let tree: TreeDigest = match info.tree {
        Some(tree) => tree,
        None => scan(&store.snapshots().layer_dir(&info.id))?.tree,
    };
    if tree != layer.tree {
        return Err(damaged(
            "its layer holds another tree than its record names",
        ));
    }
    if info.tree.replace(tree).is_none() {
        store.index().put_layer(&info).map_err(StoreError::from)?;
    }
    Ok(info.id)
}

/// An error with its causes, each unless what is said already ends with it.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
