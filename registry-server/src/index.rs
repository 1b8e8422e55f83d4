//! What can be searched: names of repositories, their tags, and what they say of themselves.
//!
//! ```text
//! push, delete ─ note ─┐
//! storage ─── sweep ───┴─► entries ─► search, tags
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | this one | the entries, and how they keep up with the storage |
//! | [`entry`] | one repository, as it is read |
//! | [`find`] | which of them a term means, in which order; pure |
//! | [`details`] | what a tag's manifest is |
//!
//! Nothing is read before somebody asks: a registry that is never searched pays nothing, and one that starts starts at once.
//! The first question begins a sweep of the whole storage on a thread of its own and waits a little for it. From then on
//! changes through this server are noted, and looked up at the next question; changes by others (a replica on the same
//! bucket, a peer on the same folder) are found by further sweeps, at most one in [`SWEEP_EVERY`] and never more than a
//! twentieth of the time. The storage is always right: entries are read from it, never made of what a request said.

pub(crate) mod details;
pub(crate) mod entry;
pub(crate) mod find;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::details::DetailsCache;
use self::entry::{Entry, TagEntry};
use self::find::{Found, Terms};
use crate::error::ErrorChain;
use crate::routes::RepositoryName;
use crate::storage::{RegistryStorage, StorageResult};

/// Least time between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// A sweep, or another look at a repository that changed, rests for this many times what it took the last time.
const REST: u32 = 20;

/// How long a question waits for a sweep that is due.
const PATIENCE: Duration = Duration::from_secs(2);

/// Repositories that are listed at once during a sweep.
const BATCH: usize = 256;

/// About how many bytes all entries take at most; tags of further repositories are counted, but not kept.
const BYTES_MAX: usize = 128 * 1024 * 1024;

/// Notes of single tags of one repository, beyond which all of it is read again; and of repositories, beyond which
/// everything is.
const TAG_NOTES_MAX: usize = 1000;
const NOTES_MAX: usize = 100_000;

/// What is known of the repositories of a storage.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Whether anybody ever asked.
    used: AtomicBool,
    /// Apart, so that no push waits for a search.
    notes: Mutex<Notes>,
    state: Mutex<State>,
    /// Held while a repository is read and its entry written, so that no older look replaces a newer one.
    writing: Mutex<()>,
    /// Told at the end of each sweep.
    swept: Notify,
    pub(crate) details: DetailsCache,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<RepositoryName, Entry>,
    /// About how many bytes they take.
    bytes: usize,
    sweeping: bool,
    sweeps: u64,
    last: Option<Sweep>,
}

/// The sweep before.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    ended: Instant,
    took: Duration,
    /// Whether it saw everything.
    whole: bool,
}

/// What changed since somebody asked.
#[derive(Debug, Default)]
struct Notes {
    of: BTreeMap<RepositoryName, Note>,
    /// More than could be noted.
    everything: bool,
}

/// What changed in a repository.
#[derive(Debug)]
enum Note {
    Tags(BTreeSet<String>),
    All,
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These tags of a repository changed; without any, anything in it. Cheap: the storage is looked at when somebody asks.
    pub(crate) fn note(&self, name: &RepositoryName, tags: &[String]) {
        if !self.used.load(Ordering::Relaxed) {
            return;
        }
        let mut notes = self.notes();
        if notes.of.len() >= NOTES_MAX && !notes.of.contains_key(name) {
            *notes = Notes {
                of: BTreeMap::new(),
                everything: true,
            };
        }
        if notes.everything {
            return;
        }
        let empty = || Note::Tags(BTreeSet::new());
        let note = notes.of.entry(name.clone()).or_insert_with(empty);
        match note {
            Note::Tags(noted) if !tags.is_empty() && noted.len() < TAG_NOTES_MAX => {
                noted.extend(tags.iter().cloned());
            }
            note => *note = Note::All,
        }
    }

    /// The next repository to look at again.
    fn next_note(&self) -> Option<(RepositoryName, Note)> {
        let mut notes = self.notes();
        if std::mem::take(&mut notes.everything) {
            let mut state = self.lock();
            state.entries.clear();
            state.bytes = 0;
            state.last = None;
        }
        notes.of.pop_first()
    }

    /// Brings the entries up to date as far as that takes little time; whether everything was looked at.
    pub(crate) async fn ready(self: &Arc<Self>, storage: &Arc<dyn RegistryStorage>) -> bool {
        let swept = self.swept.notified();
        let mut swept = std::pin::pin!(swept);
        // Before the look at the state: a sweep that ends in between is not missed.
        swept.as_mut().enable();
        let due = {
            self.used.store(true, Ordering::Relaxed);
            let mut state = self.lock();
            let rested = |last: Sweep| {
                last.ended.elapsed() >= SWEEP_EVERY.max(last.took.saturating_mul(REST))
            };
            let due = state.last.is_none_or(rested);
            if due && !state.sweeping {
                state.sweeping = true;
                let (index, storage) = (Arc::clone(self), Arc::clone(storage));
                tokio::task::spawn_blocking(move || index.sweep(&*storage));
            }
            due
        };
        // One that goes on after the patience ends is for the next who asks.
        let in_time = !due || tokio::time::timeout(PATIENCE, swept).await.is_ok();
        in_time && self.lock().last.is_some_and(|last| last.whole)
    }

    /// Looks at every repository. Blocks.
    fn sweep(&self, storage: &dyn RegistryStorage) {
        let began = Instant::now();
        let number = {
            let mut state = self.lock();
            state.sweeps += 1;
            state.sweeps
        };
        let whole = match self.look_at_all(storage) {
            Ok(whole) => whole,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "cannot list the repositories");
                false
            }
        };
        let mut state = self.lock();
        if whole {
            // What was not seen is not there any more.
            let mut kept = 0;
            state.entries.retain(|_, entry| {
                let seen = entry.seen >= number;
                kept += if seen { entry.bytes() } else { 0 };
                seen
            });
            state.bytes = kept;
        }
        state.sweeping = false;
        state.last = Some(Sweep {
            ended: Instant::now(),
            took: began.elapsed(),
            whole,
        });
        drop(state);
        self.swept.notify_waiters();
    }

    /// Whether all of them could be read.
    fn look_at_all(&self, storage: &dyn RegistryStorage) -> StorageResult<bool> {
        let mut whole = true;
        let mut last: Option<String> = None;
        loop {
            let names = storage.repositories(last.as_deref(), BATCH)?;
            for name in &names {
                // One that is damaged hides no other.
                if let Err(error) = self.refresh(storage, name) {
                    tracing::warn!(%name, error = %ErrorChain(&error), "cannot look at a repository");
                    whole = false;
                }
            }
            match names.last() {
                Some(name) if names.len() == BATCH => last = Some(name.to_string()),
                _ => return Ok(whole),
            }
        }
    }

    /// Looks at what was noted. Blocks.
    pub(crate) fn settle(&self, storage: &dyn RegistryStorage) -> StorageResult<()> {
        loop {
            let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((name, note)) = self.next_note() else {
                return Ok(());
            };
            let entry = self.lock().entries.get(&name).cloned();
            let looked = match (entry, &note) {
                (Some(mut entry), Note::Tags(tags)) if entry.whole => entry
                    .update(storage, &name, tags)
                    .map(|there| there.then_some(entry)),
                _ => Entry::read(storage, &name),
            };
            match looked {
                Ok(entry) => self.put(name, entry),
                Err(error) => {
                    // To be looked at again, by who asks next.
                    self.note(&name, &[]);
                    return Err(error);
                }
            }
        }
    }

    /// Reads a repository again unless it is known to be as it was. Blocks.
    pub(crate) fn refresh(
        &self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
    ) -> StorageResult<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = storage.tags_stamp(name)?;
        {
            self.used.store(true, Ordering::Relaxed);
            let mut state = self.lock();
            let number = state.sweeps;
            if let Some(entry) = state.entries.get_mut(name)
                && (entry.is_current(stamp) || entry.is_resting(REST))
            {
                entry.seen = number;
                return Ok(());
            }
        }
        let entry = Entry::read(storage, name)?;
        self.put(name.clone(), entry);
        Ok(())
    }

    /// Replaces an entry, or removes it.
    fn put(&self, name: RepositoryName, entry: Option<Entry>) {
        let mut state = self.lock();
        let before = state.entries.remove(&name);
        state.bytes -= before.map_or(0, |entry| entry.bytes());
        let Some(mut entry) = entry else { return };
        entry.seen = state.sweeps;
        if state.bytes + entry.bytes() > BYTES_MAX {
            entry.forget_tags();
        }
        state.bytes += entry.bytes();
        state.entries.insert(name, entry);
    }

    /// The repositories that `terms` mean and `may` admits, best first. Blocks for as long as it takes to look at all names.
    pub(crate) fn search(
        &self,
        terms: &Terms,
        may: &dyn Fn(&RepositoryName) -> bool,
    ) -> Vec<Found> {
        find::search(&self.lock().entries, terms, may)
    }

    /// Calls `look` with a repository's tags in the order of their names; `None` if it is not known or they are not kept.
    pub(crate) fn with_tags<T>(
        &self,
        name: &RepositoryName,
        look: impl FnOnce(&[TagEntry]) -> T,
    ) -> Option<T> {
        let state = self.lock();
        let entry = state.entries.get(name).filter(|entry| entry.whole)?;
        Some(look(&entry.tags))
    }

    /// What a repository says of itself.
    pub(crate) fn description(&self, name: &RepositoryName) -> Option<String> {
        let state = self.lock();
        Some(state.entries.get(name)?.description.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use bytes::Bytes;
    use store::oci::Digest;

    use super::*;
    use crate::storage::disk::DiskStorage;
    use crate::storage::memory::MemoryStorage;
    use crate::storage::{TagCondition, VerifiedManifest};

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    /// Puts a manifest that says `says` under a tag.
    fn push(storage: &dyn RegistryStorage, repository: &str, tag: &str, says: &str) {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[],"annotations":{{"org.opencontainers.image.description":"{says}"}}}}"#
        );
        let bytes = Bytes::from(text);
        let digest = Digest::of(&bytes);
        let kind = "application/vnd.oci.image.index.v1+json".to_owned();
        let manifest = VerifiedManifest::check(bytes, kind, digest).unwrap();
        let name = name(repository);
        storage.put_manifest(&name, &manifest, None).unwrap();
        let always = TagCondition::default();
        assert!(storage.set_tag(&name, tag, &digest, &always).unwrap());
    }

    /// What is found, once everything noted was looked at.
    fn found(index: &Index, storage: &dyn RegistryStorage, query: &str) -> Vec<String> {
        index.settle(storage).unwrap();
        let found = index.search(&Terms::parse(query), &|_| true);
        found.into_iter().map(|one| one.name.to_string()).collect()
    }

    fn check_keeps_up(storage: &dyn RegistryStorage) {
        let index = Index::default();
        push(storage, "shop/web", "latest", "the front of the shop");
        push(storage, "base", "1.0", "");
        index.used.store(true, Ordering::Relaxed);
        index.sweep(storage);
        assert_eq!(found(&index, storage, ""), ["base", "shop/web"]);
        assert_eq!(found(&index, storage, "FRONT"), ["shop/web"]);
        assert_eq!(found(&index, storage, "1.0"), ["base"]);
        assert_eq!(found(&index, storage, "shop/web:lat"), ["shop/web"]);
        assert_eq!(found(&index, storage, "none"), [""; 0]);

        push(storage, "shop/web", "latest", "the back");
        index.note(&name("shop/web"), &["latest".to_owned()]);
        push(storage, "new", "a", "");
        index.note(&name("new"), &["a".to_owned()]);
        assert_eq!(found(&index, storage, "front"), [""; 0]);
        assert_eq!(found(&index, storage, "back"), ["shop/web"]);
        assert_eq!(found(&index, storage, "new"), ["new"]);

        let always = TagCondition::default();
        storage.remove_tag(&name("base"), "1.0", &always).unwrap();
        index.note(&name("base"), &["1.0".to_owned()]);
        assert_eq!(found(&index, storage, "1.0"), [""; 0]);
        let on = storage.tag(&name("new"), "a").unwrap().unwrap();
        storage.remove_manifest(&name("new"), &on).unwrap();
        index.note(&name("new"), &[]);
        assert_eq!(found(&index, storage, "new:a"), [""; 0]);
        let counted: usize = index.lock().entries.values().map(Entry::bytes).sum();
        assert_eq!(index.lock().bytes, counted);
    }

    #[test]
    fn keeps_up_with_what_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskStorage::open(folder.path()).unwrap().durable(false);
        check_keeps_up(&disk);
        check_keeps_up(&MemoryStorage::default());
    }

    #[test]
    fn a_sweep_finds_what_others_did() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskStorage::open(folder.path()).unwrap().durable(false);
        push(&disk, "a", "1", "");
        push(&disk, "gone", "1", "");
        let index = Index::default();
        index.sweep(&disk);
        assert_eq!(found(&index, &disk, ""), ["a", "gone"]);
        // Of this the index is told nothing.
        push(&disk, "b/c", "1", "");
        std::fs::remove_dir_all(folder.path().join("docker/registry/v2/repositories/gone"))
            .unwrap();
        index.sweep(&disk);
        assert_eq!(found(&index, &disk, ""), ["a", "b/c"]);
    }

    #[test]
    fn nothing_is_kept_before_somebody_asks() {
        let storage = MemoryStorage::default();
        push(&storage, "a", "1", "");
        let index = Index::default();
        index.note(&name("a"), &["1".to_owned()]);
        assert!(index.notes().of.is_empty());
    }

    #[test]
    fn what_may_not_be_seen_is_not_found() {
        let storage = MemoryStorage::default();
        for repository in ["public/a", "secret/a"] {
            push(&storage, repository, "1", "");
        }
        let index = Index::default();
        index.sweep(&storage);
        let asked = AtomicUsize::new(0);
        let may = |name: &RepositoryName| {
            asked.fetch_add(1, Ordering::Relaxed);
            name.as_str().starts_with("public/")
        };
        let found = index.search(&Terms::parse("a"), &may);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, name("public/a"));
        assert_eq!(asked.into_inner(), 2);
    }
}
