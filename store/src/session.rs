//! Sessions: which processes are using the store, and since when.
//!
//! A process that uses anything in the store holds one locked file, `sessions/<start>-…`, the start in microseconds since
//! 1970 (16 hex digits). Whatever it looks at afterwards gets a `last_used` stamp, unless it has one from after that start or
//! from the *grace* before it; and garbage collection removes nothing stamped after the start, less the grace, of the oldest live
//! session. So nothing is counted, a build that follows another one writes no stamps, and a killed process leaves nothing
//! to be put right: its lock is gone with it, and the next collection removes the file.
//!
//! `sessions.lock` closes the one gap: a session begins either before a collection looks for sessions, or after it is through.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::fs::{self, FsError, Shared, TempFile};
use crate::index::now_micros;

/// This process's session and a view of the others'.
#[derive(Debug)]
pub struct Sessions {
    dir: PathBuf,
    tmp: PathBuf,
    gate: PathBuf,
    grace: i64,
    current: OnceLock<Session>,
    starting: Mutex<()>,
}

/// A session that lives until its store is closed or its process dies.
#[derive(Debug)]
pub struct Session {
    // Held for its `flock`.
    _file: std::fs::File,
    path: PathBuf,
    started: i64,
}

impl Session {
    /// When it began, in microseconds since 1970.
    pub fn started(&self) -> i64 {
        self.started
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a session file stays until the next collection");
        }
    }
}

impl Sessions {
    pub(crate) fn new(root: &Path, grace: Duration) -> Sessions {
        Sessions {
            dir: root.join("sessions"),
            tmp: root.join("tmp"),
            gate: root.join("sessions.lock"),
            grace: i64::try_from(grace.as_micros()).unwrap_or(i64::MAX),
            current: OnceLock::new(),
            starting: Mutex::new(()),
        }
    }

    /// This process's session, begun at the first call.
    pub(crate) fn current(&self) -> Result<&Session, FsError> {
        if let Some(session) = self.current.get() {
            return Ok(session);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = self.current.get() {
            return Ok(session);
        }
        let session = self.begin()?;
        Ok(self.current.get_or_init(|| session))
    }

    fn begin(&self) -> Result<Session, FsError> {
        let _gate = Shared::lock(&self.gate)?;
        // Locked before it has its name, so nobody sees it unlocked.
        let file = TempFile::create(&self.tmp)?;
        let started = now_micros();
        let name = fs::temp::fresh_name(&format!("{started:016x}"));
        let path = self.dir.join(name);
        let handle = file.reopen()?;
        file.publish(&path)?;
        Ok(Session {
            _file: handle,
            path,
            started,
        })
    }

    /// From when on a stamp protects what this process uses.
    pub(crate) fn fresh_since(&self) -> Result<i64, FsError> {
        Ok(self.current()?.started().saturating_sub(self.grace))
    }

    /// Keeps sessions from beginning.
    pub(crate) fn hold(&self) -> Result<Shared, FsError> {
        Shared::lock_alone(&self.gate)
    }

    /// Nothing stamped at or after this moment may be removed, for some other process may be using it. Also removes the files
    /// of dead sessions.
    pub(crate) fn unused_since(&self) -> Result<i64, FsError> {
        let mut oldest = now_micros();
        for (path, alive) in self.all_others()? {
            match alive {
                Some(started) => oldest = oldest.min(started.saturating_sub(self.grace)),
                None => {
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(oldest)
    }

    /// The same moment; removes nothing.
    pub(crate) fn oldest_live(&self) -> Result<i64, FsError> {
        let alive = self
            .all_others()?
            .into_iter()
            .filter_map(|(_, alive)| alive);
        let oldest = alive.map(|started| started.saturating_sub(self.grace));
        Ok(oldest.min().unwrap_or_else(now_micros))
    }

    /// How many other processes use the store.
    pub(crate) fn others(&self) -> Result<usize, FsError> {
        let alive = self.all_others()?.into_iter();
        Ok(alive.filter(|(_, alive)| alive.is_some()).count())
    }

    /// The files of all sessions but this one, each with its start unless it is dead.
    fn all_others(&self) -> Result<Vec<(PathBuf, Option<i64>)>, FsError> {
        let own = self.current.get().map(|session| session.path.as_path());
        let mut found = Vec::new();
        for name in fs::list(&self.dir)? {
            let path = self.dir.join(&name);
            if Some(path.as_path()) == own {
                continue;
            }
            let started = name
                .split('-')
                .next()
                .and_then(|digits| i64::from_str_radix(digits, 16).ok());
            let alive = match started {
                Some(started) if !fs::temp::is_stale(&path)? => Some(started),
                _ => None,
            };
            found.push((path, alive));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_live_one_decides() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "sessions"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let first = Sessions::new(dir.path(), Duration::ZERO);
        let before = now_micros();
        let started = first.current().unwrap().started();
        assert!(started >= before);
        let second = Sessions::new(dir.path(), Duration::from_micros(5));
        second.current().unwrap();
        assert_eq!(second.unused_since().unwrap(), started - 5);
        // One that was killed.
        std::fs::write(dir.path().join("sessions/0000000000000001-7-x"), "").unwrap();
        assert_eq!(second.unused_since().unwrap(), started - 5);
        assert_eq!(fs::list(&dir.path().join("sessions")).unwrap().len(), 2);
        drop(first);
        // Its own does not count.
        assert!(second.unused_since().unwrap() > second.current().unwrap().started());
        drop(second);
        assert!(fs::list(&dir.path().join("sessions")).unwrap().is_empty());
    }
}
