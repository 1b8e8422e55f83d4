//! Records fetched before they are asked for: all that a hint names, at the same time, once per build and cache.
//!
//! ```text
//! first look-up ─► both hints ─► every record of the better one that is not known here ─► answers for later look-ups
//! ```
//!
//! However long a chain of steps is, looking it up takes two round trips. A record is asked for once, whether it is there
//! or not, and what no hint names is asked for when it is wanted, as if there were no hints.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::import::Notes;
use super::record::RecordError;
use super::{CacheStore, CacheStoreError, EntryName, hint};
use crate::cache::CacheKey;

/// Requests in flight at the same time.
const WIDTH: usize = 32;

/// No more are begun once the records have so many bytes: a hint may name anything.
const BYTES_MAX: usize = 64 * 1024 * 1024;

/// What was fetched.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// What each hint of the build names, in the order of their names; none where there is no such hint.
    pub(super) hints: Vec<Option<Vec<CacheKey>>>,
    /// Records that have not been looked at yet; none where the cache has none.
    answers: Mutex<BTreeMap<CacheKey, Option<Vec<u8>>>>,
}

impl Ahead {
    /// Fetches what the hints of these names name, but for records that are `known` here.
    pub(super) fn fetch(
        store: &dyn CacheStore,
        names: &[EntryName],
        known: &(dyn Fn(&CacheKey) -> bool + Sync),
        notes: &Notes,
    ) -> Result<Ahead, CacheStoreError> {
        let mut hints = Vec::new();
        for bytes in entries(store, names)? {
            // Beyond the limit on bytes there is nothing to be had either.
            let bytes = bytes.flatten();
            hints.push(bytes.and_then(|bytes| read(store, bytes, notes)));
        }
        let best = hints.iter().flatten().next();
        let wanted = best.map_or(&[][..], Vec::as_slice).iter();
        let wanted: Vec<CacheKey> = wanted.filter(|key| !known(key)).copied().collect();
        let names: Vec<EntryName> = wanted.iter().map(|key| EntryName::Record(*key)).collect();
        let answers = wanted.into_iter().zip(entries(store, &names)?);
        let answers = answers.filter_map(|(key, answer)| Some((key, answer?)));
        Ok(Ahead {
            answers: Mutex::new(answers.collect()),
            hints,
        })
    }

    /// What the cache has under a key, if it was asked: once, then it has nothing.
    pub(super) fn take(&self, key: &CacheKey) -> Option<Option<Vec<u8>>> {
        lock(&self.answers).get_mut(key).map(Option::take)
    }
}

fn read(store: &dyn CacheStore, bytes: Vec<u8>, notes: &Notes) -> Option<Vec<CacheKey>> {
    match hint::decode(bytes) {
        Ok(keys) => Some(keys),
        Err(RecordError::Newer { .. }) => None,
        Err(error) => {
            let name = store.name();
            notes.warn(&format!("a hint in the cache {name} is ignored: {error}"));
            None
        }
    }
}

/// What each entry is, asked for at the same time; the outer `None` for those that were not asked for because there was
/// too much of the others.
fn entries(
    store: &dyn CacheStore,
    names: &[EntryName],
) -> Result<Vec<Option<Option<Vec<u8>>>>, CacheStoreError> {
    let (next, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let answers = Mutex::new(vec![None; names.len()]);
    let failure = Mutex::new(None);
    let ask = || {
        while bytes.load(Ordering::Relaxed) < BYTES_MAX {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(position) else {
                return;
            };
            match store.entry(name) {
                Ok(found) => {
                    let size = found.as_ref().map_or(0, Vec::len);
                    bytes.fetch_add(size, Ordering::Relaxed);
                    lock(&answers)[position] = Some(found);
                }
                Err(error) => {
                    next.store(names.len(), Ordering::Relaxed);
                    lock(&failure).get_or_insert(error);
                    return;
                }
            }
        }
    };
    match names.len() {
        // Not worth a thread.
        0 | 1 => ask(),
        count => std::thread::scope(|scope| {
            for _ in 0..count.min(WIDTH) {
                scope.spawn(ask);
            }
        }),
    }
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(answers.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
