//! Sessions: which processes are using the store, and since when.
//!
//! A process that uses anything in the store holds one locked file, `sessions/<start>-<pid>-<n>`, the start in microseconds
//! since 1970 (16 hex digits). Whatever it looks at afterwards is stamped with a `last_used` not before that start, and garbage
//! collection removes nothing stamped since the start of the oldest live session. So nothing has to be counted, and a
//! killed process leaves nothing that has to be put right: its lock is gone with it, and the next collection removes the file.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::fs::{self, FsError, TempFile};
use crate::index::now_micros;

/// This process's session and a view of the others'.
#[derive(Debug)]
pub struct Sessions {
    dir: PathBuf,
    tmp: PathBuf,
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
    pub(crate) fn new(root: &Path) -> Sessions {
        Sessions {
            dir: root.join("sessions"),
            tmp: root.join("tmp"),
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

    /// Nothing stamped at or after this moment may be removed. Also removes the files of dead sessions.
    ///
    /// A session that begins during this call begins after the moment returned.
    pub(crate) fn oldest(&self) -> Result<i64, FsError> {
        let mut oldest = now_micros();
        for name in fs::list(&self.dir)? {
            let path = self.dir.join(&name);
            let started = name
                .split('-')
                .next()
                .and_then(|digits| i64::from_str_radix(digits, 16).ok());
            match started {
                Some(started) if !fs::temp::is_stale(&path)? => oldest = oldest.min(started),
                _ => {
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(oldest)
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
        let first = Sessions::new(dir.path());
        let before = now_micros();
        let started = first.current().unwrap().started();
        assert!(started >= before);
        let second = Sessions::new(dir.path());
        second.current().unwrap();
        assert_eq!(second.oldest().unwrap(), started);
        // One that was killed.
        std::fs::write(dir.path().join("sessions/0000000000000001-7-x"), "").unwrap();
        assert_eq!(second.oldest().unwrap(), started);
        assert_eq!(fs::list(&dir.path().join("sessions")).unwrap().len(), 2);
        drop(first);
        assert!(second.oldest().unwrap() > started);
        drop(second);
        assert!(fs::list(&dir.path().join("sessions")).unwrap().is_empty());
    }
}
