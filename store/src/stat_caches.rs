//! What builds remember of their contexts' files: one file each, which the builder writes and reads.
//!
//! ```text
//! contexts/<hex>   its time is that of the last use
//! ```
//!
//! They only ever save time, so one may go at any moment; nothing refers to them.

use std::path::PathBuf;

use crate::clock::stamp_file;
use crate::fs;
use crate::{Store, StoreError};

impl Store {
    /// The folder they are in, made by whoever writes the first one.
    pub fn stat_caches_path(&self) -> PathBuf {
        self.root.join("contexts")
    }

    /// Notes that one is used now.
    pub fn note_stat_cache_use(&self, name: &str) -> Result<(), StoreError> {
        stamp_file(
            &self.stat_caches_path().join(name),
            self.clock().now_micros(),
        )?;
        Ok(())
    }

    /// Each with the time of its last use, in microseconds since 1970; by name.
    pub(crate) fn stat_caches(&self) -> Result<Vec<(String, Option<i64>)>, StoreError> {
        let mut found = Vec::new();
        for name in fs::list(&self.stat_caches_path())? {
            let last_used = fs::modified_micros(&self.stat_caches_path().join(&name))?;
            found.push((name, last_used));
        }
        Ok(found)
    }

    /// Moves one that was last used before `before` into `tmp/`; returns where it is now.
    pub(crate) fn move_stat_cache_aside(
        &self,
        name: &str,
        before: i64,
    ) -> Result<Option<PathBuf>, StoreError> {
        let path = self.stat_caches_path().join(name);
        if fs::modified_micros(&path)?.is_none_or(|used| used >= before) {
            return Ok(None);
        }
        let aside = self.root.join("tmp").join(fs::temp::fresh_name("trash"));
        let moved = fs::optional(fs::rename_if_free(&path, &aside))?;
        Ok(moved.unwrap_or(false).then_some(aside))
    }
}
