//! What time it is, by a clock that may be set back or forward while the store is in use.
//!
//! Nothing relies on it for more than an age. What keeps a thing from being collected is an order of stamps that a step of
//! the clock leaves alone ([`crate::session`]); and a stamp from the future, which a clock that was ahead has left, becomes
//! one of now with the next collection, so that nothing stays for the sake of it ([`Store::forgive_clock`]).

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps, UTIME_OMIT};

use crate::failed;
use crate::fs::{self, FsError, attempt};
use crate::{Store, StoreError};

/// A clock: the machine's, unless a test has another.
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<dyn Fn() -> i64 + Send + Sync>>);

impl Clock {
    /// One that tells whatever `now` returns, in microseconds since 1970.
    pub fn by(now: impl Fn() -> i64 + Send + Sync + 'static) -> Clock {
        Clock(Some(Arc::new(now)))
    }

    /// Microseconds since 1970.
    pub fn now_micros(&self) -> i64 {
        match &self.0 {
            Some(now) => now(),
            None => now_micros(),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "Clock(of a test)",
            None => "Clock(the machine's)",
        })
    }
}

/// Microseconds since 1970 by the machine's clock.
pub(crate) fn now_micros() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Makes `micros` the time at which a file was last modified; tells whether there is such a file.
pub(crate) fn stamp_file(path: &Path, micros: i64) -> Result<bool, FsError> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: micros.div_euclid(1_000_000),
            tv_nsec: micros.rem_euclid(1_000_000) * 1_000,
        },
    };
    let stamped = fs::optional(attempt("touch", path, || {
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
    }))?;
    Ok(stamped.is_some())
}

impl Store {
    pub(crate) fn clock(&self) -> &Clock {
        self.index.clock()
    }

    /// Makes stamps from the future stamps of a moment ago. They are left alone for as long as a process lives whose session
    /// began in that future: what it uses is known by nothing else.
    pub(crate) fn forgive_clock(&self) -> Result<(), StoreError> {
        if self.sessions.is_begun() {
            self.sessions.current()?;
        }
        // No session begins, or gets an earlier start, in between.
        let _beginning = self.sessions.hold()?;
        // A moment ago, so that a collection from now on may take what has it.
        let ceiling = self.clock().now_micros() - 1;
        if self.sessions.latest_protection()? > ceiling {
            return Ok(());
        }
        let age = i64::try_from(self.failed_keep().age.as_secs()).unwrap_or(i64::MAX);
        let is_from_future = |used: i64| used > ceiling;
        self.index.write(|t| {
            for table in ["layers", "blobs", "records", "images"] {
                t.execute(
                    &format!("UPDATE {table} SET last_used = ?1 WHERE last_used > ?1"),
                    [ceiling],
                )?;
            }
            failed::bound_expiry(t, (ceiling / 1_000_000).saturating_add(age))
        })?;
        for row in self.cache_mounts()? {
            if row.last_used.is_some_and(is_from_future) {
                let info = self.cache_mounts_path().join(&row.name).join("info");
                stamp_file(&info, ceiling)?;
            }
        }
        for row in self.mirrors()? {
            if row.last_used.is_some_and(is_from_future) {
                stamp_file(&self.mirrors_path().join(&row.name), ceiling)?;
            }
        }
        for (name, last_used) in self.stat_caches()? {
            if last_used.is_some_and(is_from_future) {
                stamp_file(&self.stat_caches_path().join(&name), ceiling)?;
            }
        }
        Ok(())
    }
}

/// Makes now the time at which an inode last changed, by the kernel's clock, and changes nothing else.
pub(crate) fn renew_change(path: &Path) -> Result<(), FsError> {
    let renewed = attempt("renew", path, || {
        let mode = rustix::fs::stat(path)?.st_mode;
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))
    });
    fs::optional(renewed)?;
    Ok(())
}

#[cfg(test)]
mod tests;
