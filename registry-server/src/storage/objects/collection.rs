//! The bucket's side of a collection: a bucket has no locks, so notes and time stand for them.
//!
//! ```text
//! _gc/running/<id>             a collection is announced; written again while it lives
//! _gc/used/<id>/<alg>-<hex>    somebody relies on this digest since
//! _gc/condemned/<id>           what it is about to remove
//! _gc/known/<hex>              what the last one read of a repository
//! ```
//!
//! Who relies on something writes its note, *then* looks for a batch; the collector writes its batch, *then* looks for
//! notes. So one of the two always sees the other. `docs/design/0006-registry-storage.md` has the rest.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use store::oci::{Digest, DigestAlgorithm, Hasher};

use super::{ObjectStorage, absent_is_none, failed, keys, link};
use crate::routes::{RepositoryName, UploadId};
use crate::storage::collectable::{
    Announcement, Collectable, FoundData, FoundLink, FoundTag, Garbage, KnownTags,
};
use crate::storage::{Reliance, StorageError, StorageResult};

/// Things that are removed at once: one list of notes, and a few seconds.
const BATCH: usize = 256;

/// Requests at once of one that removes or leaves notes.
const AT_ONCE: usize = 32;

/// Digests that a replica remembers to have left a note of.
const NOTED_MAX: usize = 100_000;

/// Longest batch that is read: its digests, one in a line.
const CONDEMNED_BYTES_MAX: u64 = 1024 * 1024;

/// How far a scrubbing is.
const SCRUB: &str = "_scrub";

/// Longest memory of a repository that is kept.
const KNOWN_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long things may take where nothing is locked. What one side gives up after, the other waits for.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A replica looks for collections when it has not for so long.
    pub look: Duration,
    /// What takes a replica longer than this between relying on something and its own names is not acknowledged.
    pub request: Duration,
    /// A collection waits so long after its announcement: more than `look` and `request` together.
    pub wait: Duration,
    /// A collection shows that it lives this often.
    pub heartbeat: Duration,
    /// One that could not for so long begins no batch.
    pub fence: Duration,
    /// What is not removed of a batch by then stays.
    pub batch: Duration,
    /// One that showed nothing for so long removes nothing any more: more than `fence` and twice `batch`.
    pub dead: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            look: Duration::from_secs(5),
            request: Duration::from_secs(60),
            wait: Duration::from_secs(75),
            heartbeat: Duration::from_secs(10),
            fence: Duration::from_secs(30),
            batch: Duration::from_secs(20),
            dead: Duration::from_secs(120),
        }
    }
}

impl Pace {
    /// When the last request of a batch has been carried out or never will be, counted from the batch's being there.
    fn settled(&self) -> Duration {
        self.batch * 2
    }
}

/// What a replica knows of collections.
#[derive(Debug, Default)]
pub(super) struct View {
    looked: Option<Instant>,
    /// What showed last that they live, and since when.
    running: BTreeMap<String, (Mark, Instant)>,
    /// Left a note of, in this collection.
    noted: HashSet<(String, Digest)>,
}

/// What changes when an object is written again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark(Option<String>, SystemTime);

impl Mark {
    fn of(object: &ObjectMeta) -> Mark {
        Mark(object.e_tag.clone(), object.last_modified.into())
    }
}

impl View {
    /// Takes in what a look found that began at `began`.
    fn take(&mut self, began: Instant, found: &[ObjectMeta]) {
        let now = Instant::now();
        let mut running = BTreeMap::new();
        for object in found {
            let Some(id) = object.location.filename() else {
                continue;
            };
            let mark = Mark::of(object);
            let since = match self.running.get(id) {
                Some((before, since)) if *before == mark => *since,
                _ => now,
            };
            running.insert(id.to_owned(), (mark, since));
        }
        self.noted.retain(|(id, _)| running.contains_key(id));
        self.running = running;
        self.looked = Some(began);
    }

    fn alive(&self, dead: Duration) -> Vec<String> {
        let alive = |since: &Instant| since.elapsed() < dead;
        let ids = self.running.iter();
        ids.filter(|(_, (_, since))| alive(since))
            .map(|(id, _)| id.clone())
            .collect()
    }
}

impl ObjectStorage {
    /// The same with other times, which all replicas on the bucket have to share.
    #[must_use]
    pub fn paced(mut self, pace: Pace) -> ObjectStorage {
        self.pace = pace;
        self
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collections that may remove something; looked for again if that was too long ago.
    fn collections(&self) -> StorageResult<Vec<String>> {
        let looked = self.view().looked;
        if looked.is_none_or(|looked| looked.elapsed() >= self.pace.look) {
            let began = Instant::now();
            let found = self.list(&self.key("_gc/running"))?;
            let mut view = self.view();
            // Another look may have been later.
            if view.looked.is_none_or(|looked| looked <= began) {
                view.take(began, &found);
            }
        }
        Ok(self.view().alive(self.pace.dead))
    }

    pub(super) fn rely(&self, digests: &[Digest]) -> StorageResult<Reliance> {
        let reliance = Reliance::lasting(self.pace.request);
        for id in self.collections()? {
            let new = {
                let view = self.view();
                let is_new = |digest: &&Digest| !view.noted.contains(&(id.clone(), **digest));
                digests.iter().filter(is_new).copied().collect::<Vec<_>>()
            };
            if new.is_empty() {
                continue;
            }
            self.leave_notes(&id, &new)?;
            self.outwait(&id, &new)?;
            let mut view = self.view();
            if view.noted.len() < NOTED_MAX {
                view.noted
                    .extend(new.iter().map(|digest| (id.clone(), *digest)));
            }
        }
        Ok(reliance)
    }

    fn leave_notes(&self, id: &str, digests: &[Digest]) -> StorageResult<()> {
        let folder = self.key(&format!("_gc/used/{id}"));
        let keys = digests.iter().map(|digest| note(&folder, digest));
        let all = futures_util::stream::iter(keys)
            .map(|key| async move {
                let put = self.store.put(&key, Bytes::new().into());
                put.await.map(drop)
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>();
        self.wait("write", &folder, all)
    }

    /// Waits until none of these is about to be removed.
    fn outwait(&self, id: &str, digests: &[Digest]) -> StorageResult<()> {
        let key = self.key(&format!("_gc/condemned/{id}"));
        let mut pause = Duration::from_millis(20);
        let mut seen: Option<(Bytes, Instant)> = None;
        while let Some(batch) = self.read(&key, CONDEMNED_BYTES_MAX)? {
            let condemned: BTreeSet<Digest> = String::from_utf8_lossy(&batch)
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect();
            if !digests.iter().any(|digest| condemned.contains(digest)) {
                return Ok(());
            }
            let since = match &seen {
                Some((before, since)) if *before == batch => *since,
                _ => Instant::now(),
            };
            // Its collector is gone: nobody removes anything of it any more.
            if since.elapsed() >= self.pace.settled() {
                return Ok(());
            }
            seen = Some((batch, since));
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
        Ok(())
    }

    /// Ends what a collection that is gone left.
    fn clear_away(&self, id: &str) -> StorageResult<()> {
        // What says that it runs goes last: until then its notes are left and found.
        self.delete(&self.key(&format!("_gc/condemned/{id}")))?;
        self.delete_below(&self.key(&format!("_gc/used/{id}")))?;
        self.delete(&self.key(&format!("_gc/running/{id}")))
    }

    /// Drops notes and batches of collections that are over: a replica may have learnt too late that one was.
    fn sweep(&self, own: &str) -> StorageResult<()> {
        for kind in ["used", "condemned"] {
            let prefix = self.key(&format!("_gc/{kind}"));
            let mut over = Vec::new();
            for object in self.list(&prefix)? {
                let rest = object.location.prefix_match(&prefix);
                let id = rest.and_then(|mut rest| rest.next().map(|id| id.as_ref().to_owned()));
                if id.is_some_and(|id| id != own) {
                    over.push(object.location);
                }
            }
            for key in over {
                self.delete(&key)?;
            }
        }
        Ok(())
    }

    /// Whether others run: waits until each has shown that it lives, or is certainly dead and cleared away.
    fn others_run(&self, own: &str) -> StorageResult<bool> {
        let mut view = View::default();
        let mut first: Option<BTreeMap<String, Mark>> = None;
        loop {
            let began = Instant::now();
            view.take(began, &self.list(&self.key("_gc/running"))?);
            view.running.remove(own);
            let marks = |view: &View| -> BTreeMap<String, Mark> {
                let marks = view.running.iter();
                marks
                    .map(|(id, (mark, _))| (id.clone(), mark.clone()))
                    .collect()
            };
            let before = first.get_or_insert_with(|| marks(&view));
            for (id, (mark, since)) in &view.running {
                if before.get(id) != Some(mark) {
                    return Ok(true);
                }
                if since.elapsed() >= self.pace.dead {
                    tracing::warn!(id, "clearing away what a collection left that ended early");
                    self.clear_away(id)?;
                }
            }
            if view.alive(self.pace.dead).is_empty() {
                return Ok(false);
            }
            std::thread::sleep(self.pace.heartbeat / 4);
        }
    }

    /// The keys of a piece of garbage.
    fn keys(&self, garbage: &Garbage) -> StorageResult<Vec<Key>> {
        Ok(match garbage {
            Garbage::Tag(name, tag, _) => {
                let folder = self.in_repository(name, &format!("_manifests/tags/{tag}"));
                let found = self.list(&folder)?.into_iter();
                found.map(|object| object.location).collect()
            }
            Garbage::Manifest(name, digest, subject) => {
                let listed = subject.map(|subject| {
                    let path = format!(
                        "_referrers/{}/{}/link",
                        super::below(&subject),
                        super::below(digest)
                    );
                    self.in_repository(name, &path)
                });
                let files = ["link", "mediatype", PULLED];
                let files = files.map(|file| self.revision(name, digest, file));
                listed.into_iter().chain(files).collect()
            }
            Garbage::Link(name, digest) => vec![self.layer_link(name, digest)],
            Garbage::Data(digest) => vec![self.blob_data(digest)],
        })
    }

    /// The links below a folder: `<alg>/<hex>/link`.
    fn links(&self, folder: &Key) -> StorageResult<Vec<FoundLink>> {
        let mut found: BTreeMap<Digest, FoundLink> = BTreeMap::new();
        let mut pulled: BTreeMap<Digest, SystemTime> = BTreeMap::new();
        for object in self.list(folder)? {
            let Some((digest, file)) = keys::link(&object.location, folder) else {
                continue;
            };
            let made = SystemTime::from(object.last_modified);
            if file == PULLED {
                pulled.insert(digest, made);
            }
            if file != "link" {
                continue;
            }
            let stored = match digest.algorithm() {
                DigestAlgorithm::Sha256 => digest,
                // A damaged one still says where it is.
                _ => self
                    .read_link(&object.location)
                    .ok()
                    .flatten()
                    .unwrap_or(digest),
            };
            found.insert(
                digest,
                FoundLink {
                    digest,
                    stored,
                    made,
                    pulled: None,
                },
            );
        }
        for (digest, time) in pulled {
            if let Some(link) = found.get_mut(&digest) {
                link.pulled = Some(time);
            }
        }
        Ok(found.into_values().collect())
    }

    fn data_below(
        &self,
        prefix: &Key,
        found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
    ) -> StorageResult<()> {
        let blobs = self.key("blobs");
        // Page by page: there may be millions.
        let mut objects = self.store.list(Some(prefix));
        while let Some(object) = self.wait("list", prefix, objects.try_next())? {
            if let Some(digest) = keys::data(&object.location, &blobs) {
                found(FoundData {
                    digest,
                    size: object.size,
                    made: object.last_modified.into(),
                })?;
            }
        }
        Ok(())
    }

    fn known(&self, repository: &RepositoryName) -> Key {
        let hex = Digest::of(repository.as_str().as_bytes()).hex();
        self.key(&format!("_gc/known/{hex}"))
    }
}

/// In a manifest's folder: as old as its last pull.
pub(super) const PULLED: &str = "pulled";

fn note(folder: &Key, digest: &Digest) -> Key {
    Key::from(format!("{folder}/{}-{}", digest.algorithm(), digest.hex()))
}

/// What a collection shows, and when it last could.
#[derive(Debug)]
struct Pulse {
    shown: Mutex<Instant>,
    stopped: AtomicBool,
}

impl Pulse {
    fn age(&self) -> Duration {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.elapsed()
    }
}

async fn beat(store: Arc<dyn ObjectStore>, key: Key, pulse: Arc<Pulse>, pace: Pace) {
    for count in 1_u64.. {
        tokio::time::sleep(pace.heartbeat).await;
        let began = Instant::now();
        // One that was taken for dead must not look alive again.
        if pulse.stopped.load(Ordering::SeqCst) || pulse.age() >= pace.fence {
            return;
        }
        let shown = store.put(&key, count.to_string().into());
        match tokio::time::timeout(pace.fence, shown).await {
            Ok(Ok(_)) => {
                *pulse.shown.lock().unwrap_or_else(PoisonError::into_inner) = began;
            }
            Ok(Err(error)) => tracing::warn!(%error, "a collection cannot show that it runs"),
            Err(_) => tracing::warn!("a collection cannot show that it runs: no answer"),
        }
    }
}

/// Ends the announcement when it is dropped.
struct Announced<'a> {
    storage: &'a ObjectStorage,
    id: String,
    pulse: Arc<Pulse>,
    beating: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Announced<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Announced").field(&self.id).finish()
    }
}

impl Announced<'_> {
    /// Removes what has no note, with the keys of each. The batch is written down.
    fn remove_unnoted(
        &self,
        batch: &[Garbage],
        keys: &[Vec<Key>],
        until: Instant,
    ) -> StorageResult<Vec<bool>> {
        let folder = self.storage.key(&format!("_gc/used/{}", self.id));
        let notes: HashSet<Key> = self
            .storage
            .list(&folder)?
            .into_iter()
            .map(|object| object.location)
            .collect();
        let unnoted = |garbage: &Garbage| !notes.contains(&note(&folder, &garbage.note()));
        let mut removed: Vec<bool> = batch.iter().map(unnoted).collect();
        // A collection may end at any moment: what names something goes before it.
        for stage in 0..4 {
            let goes = batch.iter().zip(&removed).zip(keys);
            let goes = goes.filter(|((garbage, goes), _)| **goes && stage_of(garbage) == stage);
            let keys = goes.flat_map(|(_, keys)| keys);
            let all = futures_util::stream::iter(keys)
                .map(|key| async move {
                    match self.storage.store.delete(key).await {
                        Err(object_store::Error::NotFound { .. }) => Ok(()),
                        deleted => deleted,
                    }
                })
                .buffer_unordered(AT_ONCE)
                .try_collect::<()>();
            let left = until.saturating_duration_since(Instant::now());
            let done = self
                .storage
                .runtime
                .block_on(async { tokio::time::timeout(left, all).await });
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(failed("remove", &folder, error)),
                Err(_) => {
                    // Who waits for the batch waits no longer. What is left is garbage the next time, too.
                    for (garbage, goes) in batch.iter().zip(&mut removed) {
                        *goes &= stage_of(garbage) < stage;
                    }
                    break;
                }
            }
        }
        Ok(removed)
    }
}

fn stage_of(garbage: &Garbage) -> u8 {
    match garbage {
        Garbage::Tag(..) => 0,
        Garbage::Manifest(..) => 1,
        Garbage::Link(..) => 2,
        Garbage::Data(_) => 3,
    }
}

impl Announcement for Announced<'_> {
    fn remove(&self, batch: &[Garbage]) -> StorageResult<Vec<bool>> {
        let pace = &self.storage.pace;
        let key = self.storage.key(&format!("_gc/condemned/{}", self.id));
        let condemned: BTreeSet<String> = batch
            .iter()
            .map(|garbage| garbage.note().to_string())
            .collect();
        let text = condemned.into_iter().collect::<Vec<_>>().join("\n");
        let keys = batch.iter().map(|garbage| self.storage.keys(garbage));
        let keys = keys.collect::<StorageResult<Vec<_>>>()?;
        let until = Instant::now() + pace.batch;
        self.storage.put(&key, text.into())?;
        // Looked at last: replicas that think it dead leave no notes for it.
        if self.pulse.age() >= pace.fence {
            self.storage.delete(&key)?;
            return Err(StorageError::TooSlow { limit: pace.fence });
        }
        let removed = self.remove_unnoted(batch, &keys, until);
        // Whether or not it went well: nothing more of it is removed.
        self.storage.delete(&key)?;
        removed
    }

    fn batch(&self) -> usize {
        BATCH
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.pulse.stopped.store(true, Ordering::SeqCst);
        self.beating.abort();
        if let Err(error) = self.storage.clear_away(&self.id) {
            tracing::warn!(%error, "the next collection clears away what this one leaves");
        }
    }
}

impl Collectable for ObjectStorage {
    fn announce(&self) -> StorageResult<Option<Box<dyn Announcement + '_>>> {
        let id = UploadId::random().to_string();
        let key = self.key(&format!("_gc/running/{id}"));
        if self.others_run(&id)? {
            return Ok(None);
        }
        let began = Instant::now();
        self.put(&key, Bytes::from_static(b"0"))?;
        let pulse = Arc::new(Pulse {
            shown: Mutex::new(began),
            stopped: AtomicBool::new(false),
        });
        let beating = beat(Arc::clone(&self.store), key, Arc::clone(&pulse), self.pace);
        let announced = Announced {
            storage: self,
            id,
            pulse,
            beating: self.runtime.spawn(beating),
        };
        // Of two that announced themselves at once at least one sees the other. Two would do no harm, only work.
        let others = self.list(&self.key("_gc/running"))?;
        let is_first = others
            .iter()
            .all(|object| object.location.filename() >= Some(&announced.id));
        if !is_first {
            return Ok(None);
        }
        // Who has not seen it is through by then, or does not acknowledge.
        std::thread::sleep(self.pace.wait);
        self.sweep(&announced.id)?;
        Ok(Some(Box::new(announced)))
    }

    fn tag_links(
        &self,
        repository: &RepositoryName,
        known: &KnownTags,
    ) -> StorageResult<Vec<FoundTag>> {
        let folder = self.tags_folder(repository);
        let mut tags = Vec::new();
        for object in self.list(&folder)? {
            let Some(tag) = keys::tag(&object.location, &folder) else {
                continue;
            };
            let (tag, mark) = (tag.to_owned(), object.e_tag.clone());
            let before = known
                .get(&tag)
                .filter(|(before, _)| Some(before) == mark.as_ref());
            let digest = match before {
                _ if object.size == 0 => None,
                Some((_, digest)) => Some(*digest),
                None => link::TagLink::read(self, &object.location)?
                    .digest()
                    .copied(),
            };
            tags.push(FoundTag {
                tag,
                digest,
                made: object.last_modified.into(),
                mark,
            });
        }
        Ok(tags)
    }

    fn remembers(&self) -> bool {
        true
    }

    fn recall(&self, repository: &RepositoryName) -> StorageResult<Option<Vec<u8>>> {
        let found = self.read(&self.known(repository), KNOWN_BYTES_MAX);
        match found {
            // It only spares work.
            Err(StorageError::Damaged { .. }) => Ok(None),
            found => Ok(found?.map(Vec::from)),
        }
    }

    fn remember(&self, repository: &RepositoryName, bytes: Vec<u8>) -> StorageResult<()> {
        if bytes.len() as u64 > KNOWN_BYTES_MAX {
            return Ok(());
        }
        self.put(&self.known(repository), bytes.into())
    }

    fn manifest_links(&self, repository: &RepositoryName) -> StorageResult<Vec<FoundLink>> {
        self.links(&self.in_repository(repository, "_manifests/revisions"))
    }

    fn blob_links(&self, repository: &RepositoryName) -> StorageResult<Vec<FoundLink>> {
        self.links(&self.in_repository(repository, "_layers"))
    }

    fn tag_made(
        &self,
        repository: &RepositoryName,
        tag: &str,
    ) -> StorageResult<Option<SystemTime>> {
        let key = self.tag_link(repository, tag);
        let found = absent_is_none(self.wait("look for", &key, self.store.head(&key)))?;
        let found = found.filter(|meta| meta.size > 0);
        Ok(found.map(|meta| meta.last_modified.into()))
    }

    fn each_data(
        &self,
        found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
    ) -> StorageResult<()> {
        self.data_below(&self.key("blobs"), found)
    }

    fn data_beginning(
        &self,
        byte: u8,
        found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
    ) -> StorageResult<()> {
        for algorithm in DigestAlgorithm::ALL {
            self.data_below(&self.key(&format!("blobs/{algorithm}/{byte:02x}")), found)?;
        }
        Ok(())
    }

    fn scrub_note(&self) -> StorageResult<Option<Vec<u8>>> {
        let note = self.read(&self.key(SCRUB), CONDEMNED_BYTES_MAX)?;
        Ok(note.map(Vec::from))
    }

    fn set_scrub_note(&self, note: Vec<u8>) -> StorageResult<()> {
        self.put(&self.key(SCRUB), note.into())
    }

    fn rehash(
        &self,
        digest: &Digest,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> StorageResult<Option<Digest>> {
        let key = self.blob_data(digest);
        let Some(found) = absent_is_none(self.wait("read", &key, self.store.get(&key)))? else {
            return Ok(None);
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut stream = found.into_stream();
        while let Some(bytes) = self.wait("read", &key, stream.try_next())? {
            hasher.update(&bytes);
            if !go_on(bytes.len() as u64) {
                return Ok(None);
            }
        }
        Ok(Some(hasher.finish()))
    }

    fn quarantine(&self, digest: &Digest) -> StorageResult<()> {
        let data = self.blob_data(digest);
        let aside = self.key(&format!("_quarantine/{}", super::below(digest)));
        let copied = self.wait("set aside", &data, self.store.copy(&data, &aside));
        match absent_is_none(copied)? {
            Some(()) => self.delete(&data),
            None => Ok(()),
        }
    }
}
