//! Blobs that are in the store, and registries that are known to have a blob.

use super::{Index, IndexError, epoch};
use crate::oci::Digest;

impl Index {
    /// Notes a blob whose file stands, and protects it from garbage collection while this store is open.
    ///
    /// As with layers, look once more that the file is there after this call.
    pub(crate) fn use_blob(&self, digest: &Digest, size: u64) -> Result<(), IndexError> {
        let time = self.use_time()?;
        let name = digest.to_string();
        let fresh = self.read(|c| {
            c.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1 AND last_used >= ?2")?
                .exists((&name, time.fresh_since))
        })?;
        if fresh {
            return Ok(());
        }
        self.write(|t| {
            let epoch = epoch(t)?;
            t.prepare_cached(
                "INSERT INTO blobs (digest, size, last_used, epoch) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (digest) DO UPDATE SET last_used = max(last_used, excluded.last_used)",
            )?
            .execute((&name, size.cast_signed(), time.now, epoch))?;
            Ok(())
        })
    }

    /// Notes that a blob's file was written anew: it is on disk for good only after the next sync.
    pub(crate) fn put_blob(&self, digest: &Digest, size: u64) -> Result<(), IndexError> {
        let time = self.use_time()?;
        self.write(|t| {
            let epoch = epoch(t)?;
            t.prepare_cached(
                "INSERT INTO blobs (digest, size, last_used, epoch) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (digest) DO UPDATE SET
                   last_used = max(last_used, excluded.last_used), epoch = excluded.epoch",
            )?
            .execute((digest.to_string(), size.cast_signed(), time.now, epoch))?;
            Ok(())
        })
    }

    pub(crate) fn forget_blob(&self, digest: &Digest) -> Result<(), IndexError> {
        self.write(|t| {
            t.prepare_cached("DELETE FROM blobs WHERE digest = ?1")?
                .execute([digest.to_string()])?;
            Ok(())
        })
    }

    /// Notes that a repository has a blob, so that a push elsewhere on that registry can mount it.
    pub fn note_source(
        &self,
        digest: &Digest,
        registry: &str,
        repository: &str,
    ) -> Result<(), IndexError> {
        let now = self.now_micros();
        self.write(|t| {
            t.prepare_cached(
                "INSERT OR REPLACE INTO sources (digest, registry, repository, seen)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((digest.to_string(), registry, repository, now))?;
            Ok(())
        })
    }

    /// The `(registry, repository)` pairs noted for a blob, latest first.
    pub fn sources(&self, digest: &Digest) -> Result<Vec<(String, String)>, IndexError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT registry, repository FROM sources WHERE digest = ?1 ORDER BY seen DESC",
            )?;
            let rows =
                statement.query_map([digest.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_come_latest_first() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        let digest = Digest::of(b"x");
        for repository in ["a", "b", "a"] {
            index.note_source(&digest, "r.example", repository).unwrap();
        }
        let pair = |repository: &str| ("r.example".to_owned(), repository.to_owned());
        assert_eq!(index.sources(&digest).unwrap(), [pair("a"), pair("b")]);
        assert!(index.sources(&Digest::of(b"y")).unwrap().is_empty());
    }
}
