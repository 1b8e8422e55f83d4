//! Sessions: which processes are using the store, and since when.
//!
//! A process that uses anything in the store holds one locked file, `sessions/<start>-…`, the start in microseconds since
//! 1970 (16 hex digits). Whatever it looks at afterwards gets a `last_used` stamp, unless it has one from after that start or
//! from the *grace* before it; and garbage collection removes nothing stamped after the start, less the grace, of the oldest live
//! session. So nothing is counted, a build that follows another one writes no stamps, and a killed process leaves nothing
//! to be put right: its lock is gone with it, and the next collection removes the file.
//!
//! No step of the clock harms this: a stamp never goes down while somebody may rely on it, and a process whose clock was set
//! back since its session began gives that session an earlier start ([`Sessions::current`]), so that what it publishes from
//! then on is still newer than that.
//!
//! `sessions.lock` closes the one gap: a session begins either before a collection looks for sessions, or after it is through.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use crate::clock::Clock;
use crate::fs::{self, FsError, Shared, TempFile};

/// This process's session and a view of the others'.
#[derive(Debug)]
pub struct Sessions {
    dir: PathBuf,
    tmp: PathBuf,
    gate: PathBuf,
    grace: i64,
    clock: Clock,
    current: OnceLock<Session>,
    starting: Mutex<()>,
    /// The thread of this process that keeps sessions from beginning.
    holder: Mutex<Option<ThreadId>>,
}

/// A session that lives until its store is closed or its process dies.
#[derive(Debug)]
pub struct Session {
    // Held for its `flock`.
    _file: std::fs::File,
    path: Mutex<PathBuf>,
    started: AtomicI64,
}

/// As long as it lives, no session begins.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    sessions: &'a Sessions,
    _gate: Shared,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        // Before the gate opens.
        *self.sessions.holder() = None;
    }
}

impl Session {
    /// When it began, in microseconds since 1970.
    pub fn started(&self) -> i64 {
        self.started.load(Ordering::SeqCst)
    }
}

impl Session {
    fn path(&self) -> MutexGuard<'_, PathBuf> {
        self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let path = self.path();
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "a session file stays until the next collection");
        }
    }
}

impl Sessions {
    pub(crate) fn new(root: &Path, grace: Duration, clock: Clock) -> Sessions {
        Sessions {
            dir: root.join("sessions"),
            tmp: root.join("tmp"),
            gate: root.join("sessions.lock"),
            grace: i64::try_from(grace.as_micros()).unwrap_or(i64::MAX),
            clock,
            current: OnceLock::new(),
            starting: Mutex::new(()),
            holder: Mutex::new(None),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// This process's session, begun at the first call, and with an earlier start where the clock was set back since.
    pub(crate) fn current(&self) -> Result<&Session, FsError> {
        if let Some(session) = self.current.get() {
            // Half the grace is left for what is published until the next call.
            let now = self.clock.now_micros();
            if now < session.started().saturating_sub(self.grace / 2) {
                self.begin_earlier(session, now)?;
            }
            return Ok(session);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = self.current.get() {
            return Ok(session);
        }
        let session = self.begin()?;
        Ok(self.current.get_or_init(|| session))
    }

    /// Whether this process has a session.
    pub(crate) fn is_begun(&self) -> bool {
        self.current.get().is_some()
    }

    fn begin(&self) -> Result<Session, FsError> {
        let _gate = Shared::lock(&self.gate)?;
        // Locked before it has its name, so nobody sees it unlocked.
        let file = TempFile::create(&self.tmp)?;
        let started = self.clock.now_micros();
        let path = self.name(started);
        let handle = file.reopen()?;
        file.publish(&path)?;
        Ok(Session {
            _file: handle,
            path: Mutex::new(path),
            started: AtomicI64::new(started),
        })
    }

    fn begin_earlier(&self, session: &Session, now: i64) -> Result<(), FsError> {
        // Who holds the gate alone need not wait for itself.
        let is_holder = *self.holder() == Some(std::thread::current().id());
        let _gate = match is_holder {
            true => None,
            false => Some(Shared::lock(&self.gate)?),
        };
        let mut path = session.path();
        if now < session.started() {
            let earlier = self.name(now);
            // The lock is on the file, whatever it is called.
            fs::rename(&path, &earlier)?;
            *path = earlier;
            session.started.store(now, Ordering::SeqCst);
        }
        Ok(())
    }

    fn name(&self, started: i64) -> PathBuf {
        let started = started.max(0);
        self.dir
            .join(fs::temp::fresh_name(&format!("{started:016x}")))
    }

    /// From when on a stamp protects what this process uses.
    pub(crate) fn fresh_since(&self) -> Result<i64, FsError> {
        Ok(self.current()?.started().saturating_sub(self.grace))
    }

    /// Keeps sessions from beginning, and from getting an earlier start but by this thread.
    pub(crate) fn hold(&self) -> Result<Hold<'_>, FsError> {
        let gate = Shared::lock_alone(&self.gate)?;
        *self.holder() = Some(std::thread::current().id());
        Ok(Hold {
            sessions: self,
            _gate: gate,
        })
    }

    fn holder(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing stamped at or after this moment may be removed, for some other process may be using it. Also removes the files
    /// of dead sessions.
    pub(crate) fn unused_since(&self) -> Result<i64, FsError> {
        let mut oldest = self.clock.now_micros();
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
        Ok(oldest.min().unwrap_or_else(|| self.clock.now_micros()))
    }

    /// The latest moment from which on a stamp protects what some live session uses, this process's among them.
    pub(crate) fn latest_protection(&self) -> Result<i64, FsError> {
        let others = self.all_others()?.into_iter();
        let mut latest: Vec<i64> = others.filter_map(|(_, alive)| alive).collect();
        latest.extend(self.current.get().map(Session::started));
        let latest = latest.into_iter().max().unwrap_or(i64::MIN);
        Ok(latest.saturating_sub(self.grace))
    }

    /// How many other processes use the store.
    pub(crate) fn others(&self) -> Result<usize, FsError> {
        let alive = self.all_others()?.into_iter();
        Ok(alive.filter(|(_, alive)| alive.is_some()).count())
    }

    /// The files of all sessions but this one, each with its start unless it is dead.
    fn all_others(&self) -> Result<Vec<(PathBuf, Option<i64>)>, FsError> {
        let own = self.current.get().map(|session| session.path().clone());
        let mut found = Vec::new();
        for name in fs::list(&self.dir)? {
            let path = self.dir.join(&name);
            if Some(&path) == own.as_ref() {
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
    use crate::clock::now_micros;

    #[test]
    fn the_oldest_live_one_decides() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["tmp", "sessions"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let first = Sessions::new(dir.path(), Duration::ZERO, Clock::default());
        let before = now_micros();
        let started = first.current().unwrap().started();
        assert!(started >= before);
        let second = Sessions::new(dir.path(), Duration::from_micros(5), Clock::default());
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
