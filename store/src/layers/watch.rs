//! Watching layers being compressed: it takes long, and happens wherever a blob is wanted that nobody has made yet.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use super::Making;
use crate::Store;
use crate::oci::DiffId;

/// It is told of in steps of this many bytes.
const STEP_BYTES: u64 = 256 * 1024;

/// Headers and padding of an entry of a tar, about, in bytes.
const ENTRY_BYTES: u64 = 768;

/// Told how far the compression of a layer is: bytes of its tar that are done, and about how many they are, where that is
/// known. Both are equal when it has ended, and only then.
pub type Watcher = Arc<dyn Fn(&DiffId, u64, Option<u64>) + Send + Sync>;

/// Who watches.
#[derive(Default)]
pub(crate) struct Watchers(Mutex<Option<Watcher>>);

impl Watchers {
    fn swap(&self, watcher: Option<Watcher>) -> Option<Watcher> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, watcher)
    }

    fn current(&self) -> Option<Watcher> {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }
}

impl std::fmt::Debug for Watchers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watchers")
    }
}

/// As long as it lives, somebody watches.
#[derive(Debug)]
pub struct Watch<'a> {
    store: &'a Store,
    before: Option<Before>,
}

struct Before(Watcher);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Before")
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let before = self.before.take();
        self.store.watchers.swap(before.map(|before| before.0));
    }
}

impl Store {
    /// Lets `watcher` be told, and nobody else, of all layers that are compressed through this handle until the watch is
    /// dropped; then whoever was told before.
    pub fn watch_compression(&self, watcher: Watcher) -> Watch<'_> {
        let before = self.watchers.swap(Some(watcher)).map(Before);
        Watch {
            store: self,
            before,
        }
    }

    /// A writer before `inner`, which takes a layer's tar.
    pub(super) fn watched<'a, W: Write>(
        &self,
        diff_id: &DiffId,
        inner: W,
        making: Making<'a>,
    ) -> Watched<'a, W> {
        let watcher = self.watchers.current();
        // Only for people: what cannot be told now is known at the end.
        let layer = watcher.as_ref().and_then(|_| {
            let found = self.index.layer_by_diff_id(diff_id);
            found.ok().flatten()
        });
        let total = layer.map(|layer| layer.bytes + ENTRY_BYTES * layer.entries);
        let watched = Watched {
            inner,
            diff_id: *diff_id,
            watcher,
            done: 0,
            total,
            making,
        };
        watched.tell(false);
        watched
    }
}

/// Counts what is written, as long as nobody wants the end of it.
pub(super) struct Watched<'a, W> {
    pub(super) inner: W,
    diff_id: DiffId,
    watcher: Option<Watcher>,
    done: u64,
    total: Option<u64>,
    making: Making<'a>,
}

impl<W> Watched<'_, W> {
    fn tell(&self, ended: bool) {
        if let Some(watcher) = &self.watcher {
            let total = match ended {
                true => Some(self.done),
                false => self.total.map(|total| total.max(self.done + 1)),
            };
            watcher(&self.diff_id, self.done, total);
        }
    }

    /// That was all; gives the writer back.
    pub(super) fn end(self) -> W {
        self.tell(true);
        self.inner
    }
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.making.is_stopped() {
            return Err(io::Error::other("nobody wants it any more"));
        }
        let count = self.inner.write(bytes)?;
        let before = self.done;
        self.done += count as u64;
        if before / STEP_BYTES != self.done / STEP_BYTES {
            self.tell(false);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreError;
    use crate::layer::compress::Compression;

    #[test]
    fn compressing_is_told_of_to_the_last_who_watches() {
        let (_dir, store) = crate::tests::store();
        let built = |content: u8| {
            let commit = || {
                let active = store.snapshots().prepare(&[])?;
                std::fs::write(active.upper().join("file"), vec![content; 1_000_000]).unwrap();
                active.commit().map_err(StoreError::from)
            };
            let id = store.publish_layer(commit).unwrap().id;
            store.ensure_diff_id(&id).unwrap()
        };
        let (first, second) = (built(1), built(2));
        let told = Arc::new(Mutex::new(Vec::new()));
        let watcher = |who: u8| -> Watcher {
            let told = Arc::clone(&told);
            Arc::new(move |diff_id, done, total| {
                told.lock().unwrap().push((who, *diff_id, done, total));
            })
        };
        let outer = store.watch_compression(watcher(1));
        let inner = store.watch_compression(watcher(2));
        store.layer_blob(&first, Compression::GZIP).unwrap();
        // It is there already.
        store.layer_blob(&first, Compression::GZIP).unwrap();
        drop(inner);
        let seen = std::mem::take(&mut *told.lock().unwrap());
        assert!(seen.len() >= 4, "{seen:?}");
        assert!(seen.iter().all(|(who, id, ..)| (*who, *id) == (2, first)));
        assert!(seen.is_sorted_by_key(|(.., done, _)| *done), "{seen:?}");
        let (last, before) = seen.split_last().unwrap();
        assert_eq!(last.3, Some(last.2));
        assert!(last.2 > 1_000_000);
        let is_below = |(.., done, total): &(u8, DiffId, u64, Option<u64>)| Some(*done) < *total;
        assert!(before.iter().all(is_below), "{seen:?}");
        store.layer_blob(&second, Compression::ZSTD).unwrap();
        drop(outer);
        let seen = std::mem::take(&mut *told.lock().unwrap());
        assert!(seen.iter().all(|(who, id, ..)| (*who, *id) == (1, second)));
        store.layer_blob(&second, Compression::GZIP).unwrap();
        assert!(told.lock().unwrap().is_empty());
    }
}
