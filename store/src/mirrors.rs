//! Bare git repositories that builds fetch into, one per address: so that a commit is fetched once.
//!
//! ```text
//! git/<name>/   its time is that of the last use; used, and removed, under the lock of its name
//! ```
//!
//! What is in one is the builder's business. It is a cache: a crash of the machine or a collection may take it away.

use std::path::{Path, PathBuf};

use crate::clock::stamp_file;
use crate::fs;
use crate::{KeyLock, Store, StoreError};

const DOMAIN: &[u8] = b"longshore git mirror 1";

/// The right to use one repository, which may not be there yet.
#[derive(Debug)]
pub struct Mirror {
    path: PathBuf,
    _lock: KeyLock,
}

impl Mirror {
    /// Where it is, or has to be put by rename.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A repository as `du` and `prune` see it.
#[derive(Clone, Debug)]
pub(crate) struct MirrorRow {
    pub(crate) name: String,
    /// In microseconds since 1970.
    pub(crate) last_used: Option<i64>,
}

impl Store {
    /// Takes the repository of a name (a digest of the address, with its format), waiting for whoever has it.
    pub fn mirror(&self, name: &str) -> Result<Mirror, StoreError> {
        fs::create_dir(&self.mirrors_path())?;
        let lock = self.lock_key(&mirror_key(name))?;
        let path = self.mirrors_path().join(name);
        stamp_file(&path, self.clock().now_micros())?;
        Ok(Mirror { path, _lock: lock })
    }

    /// The repositories that are there.
    pub(crate) fn mirrors(&self) -> Result<Vec<MirrorRow>, StoreError> {
        let mut rows = Vec::new();
        for name in fs::optional(fs::list(&self.mirrors_path()))?.unwrap_or_default() {
            let last_used = fs::modified_micros(&self.mirrors_path().join(&name))?;
            rows.push(MirrorRow { name, last_used });
        }
        Ok(rows)
    }

    /// Whether nobody uses a repository.
    pub(crate) fn is_mirror_free(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.try_lock_key(&mirror_key(name))?.is_some())
    }

    /// Moves a repository that nobody uses or used since `before` into `tmp/`.
    pub(crate) fn move_mirror_aside(
        &self,
        name: &str,
        before: i64,
    ) -> Result<Option<PathBuf>, StoreError> {
        let Some(_lock) = self.try_lock_key(&mirror_key(name))? else {
            return Ok(None);
        };
        let path = self.mirrors_path().join(name);
        if fs::modified_micros(&path)?.is_some_and(|used| used >= before) {
            return Ok(None);
        }
        let aside = self.root.join("tmp").join(fs::temp::fresh_name("trash"));
        Ok(fs::rename_if_free(&path, &aside)?.then_some(aside))
    }

    /// Drops all repositories: a crash of the machine may have torn what git wrote.
    pub(crate) fn drop_mirrors(&self) -> Result<(), StoreError> {
        for row in self.mirrors()? {
            self.discard_mirror(&row.name)?;
        }
        Ok(())
    }

    /// Drops a repository, unless somebody uses it.
    pub(crate) fn discard_mirror(&self, name: &str) -> Result<(), StoreError> {
        if let Some(aside) = self.move_mirror_aside(name, i64::MAX)? {
            fs::temp::sweep(&aside)?;
        }
        Ok(())
    }

    pub(crate) fn mirrors_path(&self) -> PathBuf {
        self.root.join("git")
    }
}

fn mirror_key(name: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DOMAIN);
    hasher.update(name.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use crate::content::gc::{PruneImages, PruneOptions, Pruned};
    use crate::content::usage::UsageKind;

    #[test]
    fn is_counted_and_pruned_unless_it_is_used() {
        let (_dir, store) = crate::tests::store();
        let mirror = store.mirror("abc").unwrap();
        std::fs::create_dir(mirror.path()).unwrap();
        std::fs::write(mirror.path().join("HEAD"), "ref: refs/heads/main\n").unwrap();
        let row = |store: &crate::Store| {
            let usage = store.du().unwrap();
            let row = usage
                .rows
                .iter()
                .find(|row| row.kind == UsageKind::GitMirrors);
            let row = row.unwrap();
            (row.count, row.in_use, row.bytes > 0)
        };
        assert_eq!(row(&store), (1, 1, true));
        let prune = |dry_run| {
            let options = PruneOptions {
                until: None,
                cache: true,
                images: PruneImages::Nameless,
                dry_run,
            };
            let report = store.prune(&options).unwrap();
            let items = report.items.iter();
            items
                .filter(|item| matches!(item, Pruned::GitMirror { .. }))
                .count()
        };
        assert_eq!(prune(false), 0);
        drop(mirror);
        assert_eq!(row(&store), (1, 0, true));
        assert_eq!((prune(true), prune(false), prune(false)), (1, 1, 0));
        assert_eq!(row(&store), (0, 0, false));
    }
}
