//! Build history: what builds did, kept beyond their end.
//!
//! A build writes a *journal*, `builds/<id>`, as it goes on, and holds an exclusive `flock` on it: a journal that is
//! locked belongs to a build that runs, one that is neither locked nor in the index to a build that was killed. When the
//! build ends, one transaction adds its row to `builds` and takes out the rows that [`Keep`] has no room for; nothing is
//! synced, for a history that a crash of the machine shortens is still a history. What the lines of a journal say is the
//! builder's own affair (`docs/formats/build-journal.md`).
//!
//! Rows go before their files. A file whose row is gone and that is not locked looks like a killed build's, is given a
//! row again by whoever lists them, and goes with the next build that ends.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OptionalExtension, Row, Transaction};

use crate::fs::{self, FsError, attempt};
use crate::index::{Index, bad, parse};
use crate::{Store, StoreError, failed};

/// Digits of a build's id: short enough to type, and taken ones are never given twice.
const ID_DIGITS: usize = 8;

/// Most bytes of a journal that are written; what follows is dropped but for the end, and that is said.
pub const JOURNAL_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Names a build: eight hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(String);

impl BuildId {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no build.
#[derive(Debug, thiserror::Error)]
#[error("`{text}` is no build: expected {ID_DIGITS} hexadecimal digits")]
pub struct BuildIdError {
    /// The text.
    pub text: String,
}

impl FromStr for BuildId {
    type Err = BuildIdError;

    fn from_str(text: &str) -> Result<BuildId, BuildIdError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == ID_DIGITS && text.bytes().all(is_digit) {
            return Ok(BuildId(text.to_owned()));
        }
        Err(BuildIdError {
            text: text.to_owned(),
        })
    }
}

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildStatus {
    /// Well.
    Done,
    /// With an error.
    Failed,
    /// Somebody pressed Ctrl-C.
    Cancelled,
    /// Its process died.
    Killed,
}

impl BuildStatus {
    /// One lower-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            BuildStatus::Done => "done",
            BuildStatus::Failed => "failed",
            BuildStatus::Cancelled => "cancelled",
            BuildStatus::Killed => "killed",
        }
    }
}

impl FromStr for BuildStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<BuildStatus, ()> {
        let all = [
            BuildStatus::Done,
            BuildStatus::Failed,
            BuildStatus::Cancelled,
            BuildStatus::Killed,
        ];
        let named = all.into_iter().find(|status| status.as_str() == text);
        named.ok_or(())
    }
}

/// What a listing tells of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRow {
    /// Its name.
    pub id: BuildId,
    /// The same for builds that build the same thing again: of one context, Dockerfile, target and platform.
    pub series: [u8; 32],
    /// When it began, in microseconds since 1970.
    pub started: i64,
    /// How long it took, in microseconds; of a killed one, until the last that is known of it.
    pub took: i64,
    /// How it ended.
    pub status: BuildStatus,
    /// The context, as it was given.
    pub context: String,
    /// The Dockerfile, as messages call it.
    pub dockerfile: String,
    /// The stage that was asked for.
    pub target: Option<String>,
    /// The names that the image got, or would have got.
    pub tags: Vec<String>,
    /// Why it failed, in one line.
    pub error: Option<String>,
    /// Steps in all.
    pub steps: u64,
    /// Those of them that ran.
    pub ran: u64,
    /// Those of them whose result was known.
    pub cached: u64,
    /// How long those had taken when they ran, in microseconds.
    pub saved: i64,
    /// Warnings about the Dockerfile.
    pub warnings: u64,
}

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// At most this many builds that have ended, the latest; 0 keeps none, and then nothing is written at all.
    pub builds: u64,
    /// None that began longer ago than this.
    pub age: Duration,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep {
            builds: 200,
            age: Duration::from_secs(30 * 24 * 60 * 60),
        }
    }
}

/// A journal without a row: of a build that runs, or was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlisted {
    /// The build.
    pub id: BuildId,
    /// Whether its process lives.
    pub running: bool,
}

/// The build history of a store.
#[derive(Clone, Debug)]
pub struct History {
    folder: PathBuf,
    index: Arc<Index>,
    keep: Keep,
}

/// The journal of a build that runs; the lock goes with it.
#[derive(Debug)]
pub struct Journal {
    id: BuildId,
    started: i64,
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Journal {
    /// The build.
    pub fn id(&self) -> &BuildId {
        &self.id
    }

    /// When it began, in microseconds since 1970.
    pub fn started(&self) -> i64 {
        self.started
    }

    /// Adds whole lines, unless the journal is full; tells whether they were added.
    pub fn append(&mut self, lines: &[u8]) -> Result<bool, FsError> {
        if self.bytes + lines.len() as u64 > JOURNAL_BYTES_MAX {
            return Ok(false);
        }
        self.append_last(lines)?;
        Ok(true)
    }

    /// Adds the end, for which there is always room.
    pub fn append_last(&mut self, lines: &[u8]) -> Result<(), FsError> {
        self.bytes += lines.len() as u64;
        attempt("write", &self.path, || self.file.write_all(lines))
    }
}

impl Store {
    /// What builds did.
    pub fn history(&self) -> History {
        History {
            folder: self.root().join("builds"),
            index: Arc::clone(self.index_handle()),
            keep: self.history_keep(),
        }
    }
}

impl History {
    /// How much of it is kept.
    pub fn keep(&self) -> Keep {
        self.keep
    }

    /// Begins a journal.
    pub fn begin(&self) -> Result<Journal, StoreError> {
        loop {
            let started = self.index.now_micros();
            // A hash only to spread them: builds that begin one after the other are easily told apart.
            let seed = fs::temp::fresh_name("build");
            let hex = blake3::hash(seed.as_bytes()).to_hex();
            let id = BuildId(hex.as_str()[..ID_DIGITS].to_owned());
            let path = self.path(&id);
            let file = match create(&path) {
                Err(error) if error.is_not_found() => {
                    fs::create_dir(&self.folder)?;
                    continue;
                }
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => continue,
                created => created?,
            };
            // Whoever looked in between took it for a killed one's without a line in it, and may have discarded it.
            fs::lock::lock(&file, &path)?;
            if !fs::lock::is_named(&file, &path)? {
                continue;
            }
            return Ok(Journal {
                id,
                started,
                path,
                file,
                bytes: 0,
            });
        }
    }

    /// Ends a build: its row is written, and what there is no room for any more goes.
    pub fn finish(&self, journal: Journal, row: &BuildRow) -> Result<(), StoreError> {
        self.put(row)?;
        // Only now: a journal that is not locked has its row.
        drop(journal);
        Ok(())
    }

    /// Writes a row, if the build has none, and removes what there is no room for.
    pub fn put(&self, row: &BuildRow) -> Result<(), StoreError> {
        let now = self.index.now_micros();
        let removed = self.index.write(|t| {
            // One that began in the future began before the clock was set back.
            let started = match row.started > now {
                true => now.saturating_sub(row.took),
                false => row.started,
            };
            forgive_clock(t, now, started)?;
            insert(
                t,
                &BuildRow {
                    started,
                    ..row.clone()
                },
            )?;
            trim(t, &self.keep, now)
        })?;
        self.remove_files(&removed)
    }

    /// Removes what there is no room for; tells which builds went. With `dry_run`, only tells.
    pub fn trim(&self, dry_run: bool) -> Result<Vec<BuildId>, StoreError> {
        let now = self.index.now_micros();
        if dry_run {
            return Ok(self.index.rehearse(|t| trim(t, &self.keep, now))?);
        }
        let removed = self.index.write(|t| trim(t, &self.keep, now))?;
        self.remove_files(&removed)?;
        Ok(removed)
    }

    /// Forgets builds that have ended; tells which of them there were.
    pub fn remove(&self, ids: &[BuildId]) -> Result<Vec<BuildId>, StoreError> {
        let removed = self.index.write(|t| {
            let mut removed = Vec::new();
            let mut delete = t.prepare_cached("DELETE FROM builds WHERE id = ?1")?;
            for id in ids {
                if delete.execute([id.as_str()])? > 0 {
                    failed::forget(t, id)?;
                    removed.push(id.clone());
                }
            }
            Ok(removed)
        })?;
        self.remove_files(&removed)?;
        Ok(removed)
    }

    /// Removes the journal of a build that was killed and is of no use, for it says nothing.
    pub fn discard(&self, id: &BuildId) -> Result<(), StoreError> {
        let path = self.path(id);
        if let Some(_held) = fs::temp::hold_if_stale(&path)?
            && self.row(id)?.is_none()
        {
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    /// The build that a process runs, by its journal's lock.
    pub fn of_process(&self, process: u32) -> Result<Option<BuildId>, StoreError> {
        for unlisted in self.unlisted()? {
            if unlisted.running && fs::lock::holders(&self.path(&unlisted.id))?.contains(&process) {
                return Ok(Some(unlisted.id));
            }
        }
        Ok(None)
    }

    /// Builds that have ended and are listed, latest first.
    pub fn rows(&self) -> Result<Vec<BuildRow>, StoreError> {
        Ok(self.index.read(|c| {
            let sql = format!("SELECT {COLUMNS} FROM builds ORDER BY started DESC, id");
            let mut statement = c.prepare_cached(&sql)?;
            statement.query_map([], build_row)?.collect()
        })?)
    }

    /// One build that has ended.
    pub fn row(&self, id: &BuildId) -> Result<Option<BuildRow>, StoreError> {
        Ok(self.index.read(|c| {
            c.prepare_cached(&format!("SELECT {COLUMNS} FROM builds WHERE id = ?1"))?
                .query_row([id.as_str()], build_row)
                .optional()
        })?)
    }

    /// The latest `count` builds of a series, latest first.
    pub fn latest(&self, series: &[u8; 32], count: u32) -> Result<Vec<BuildId>, StoreError> {
        Ok(self.index.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT id FROM builds WHERE series = ?1 ORDER BY started DESC LIMIT ?2",
            )?;
            let ids = statement.query_map((series, count), |row| {
                parse("builds.id", row.get_ref(0)?.as_str()?)
            })?;
            ids.collect()
        })?)
    }

    /// Builds that run, and those that were killed and have no row yet, by id.
    pub fn unlisted(&self) -> Result<Vec<Unlisted>, StoreError> {
        let mut found = Vec::new();
        for name in fs::list(&self.folder)? {
            let Ok(id) = name.parse::<BuildId>() else {
                continue;
            };
            if self.row(&id)?.is_some() {
                continue;
            }
            let running = !fs::temp::is_stale(&self.path(&id))?;
            // It may have ended meanwhile: its row comes before its lock goes.
            if running || self.row(&id)?.is_none() {
                found.push(Unlisted { id, running });
            }
        }
        Ok(found)
    }

    /// The builds whose id begins with `prefix`, whether they have ended or not.
    pub fn find(&self, prefix: &str) -> Result<Vec<BuildId>, StoreError> {
        let names = fs::list(&self.folder)?;
        let ids = names.iter().filter(|name| name.starts_with(prefix));
        Ok(ids.filter_map(|name| name.parse().ok()).collect())
    }

    /// A build's journal; none where its file is gone.
    pub fn read(&self, id: &BuildId) -> Result<Option<Vec<u8>>, StoreError> {
        // Its end may go beyond what is written otherwise.
        Ok(fs::optional(fs::read(
            &self.path(id),
            2 * JOURNAL_BYTES_MAX,
        ))?)
    }

    /// Whether the process of a build lives.
    pub fn is_running(&self, id: &BuildId) -> Result<bool, StoreError> {
        Ok(!fs::temp::is_stale(&self.path(id))?)
    }

    /// Opens a build's journal; none where its file is gone.
    pub fn open(&self, id: &BuildId) -> Result<Option<File>, StoreError> {
        Ok(fs::optional(fs::open(&self.path(id)))?)
    }

    fn path(&self, id: &BuildId) -> PathBuf {
        self.folder.join(id.as_str())
    }

    fn remove_files(&self, ids: &[BuildId]) -> Result<(), StoreError> {
        for id in ids {
            fs::remove_file(&self.path(id))?;
        }
        Ok(())
    }
}

fn create(path: &Path) -> Result<File, FsError> {
    attempt("create", path, || {
        std::fs::OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    })
}

const COLUMNS: &str = "id, series, started, took, status, context, dockerfile, target, tags, error,
  steps, ran, cached, saved, warnings";

fn insert(t: &Transaction<'_>, row: &BuildRow) -> rusqlite::Result<()> {
    let tags = serde_json::to_string(&row.tags).expect("texts are JSON");
    t.prepare_cached(&format!(
        "INSERT OR IGNORE INTO builds ({COLUMNS})
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
    ))?
    .execute((
        row.id.as_str(),
        row.series,
        row.started,
        row.took,
        row.status.as_str(),
        &row.context,
        &row.dockerfile,
        &row.target,
        tags,
        &row.error,
        row.steps.cast_signed(),
        row.ran.cast_signed(),
        row.cached.cast_signed(),
        row.saved,
        row.warnings.cast_signed(),
    ))?;
    Ok(())
}

/// Moves builds that began after `now`, by a clock that was ahead, to before `started`, in the order that they have.
fn forgive_clock(t: &Transaction<'_>, now: i64, started: i64) -> rusqlite::Result<()> {
    t.prepare_cached(
        "UPDATE builds SET started = started - (SELECT max(started) FROM builds) + ?2 - 1
         WHERE started > ?1",
    )?
    .execute((now, started))?;
    Ok(())
}

/// Deletes the rows that there is no room for.
fn trim(t: &Transaction<'_>, keep: &Keep, now: i64) -> rusqlite::Result<Vec<BuildId>> {
    let age = i64::try_from(keep.age.as_micros()).unwrap_or(i64::MAX);
    let oldest = now.saturating_sub(age);
    let mut statement = t.prepare_cached(
        "DELETE FROM builds WHERE started < ?2 OR id IN
           (SELECT id FROM builds ORDER BY started DESC, id LIMIT -1 OFFSET ?1)
         RETURNING id",
    )?;
    let builds = i64::try_from(keep.builds).unwrap_or(i64::MAX);
    let ids = statement.query_map((builds, oldest), |row| {
        parse("builds.id", row.get_ref(0)?.as_str()?)
    })?;
    let ids: Vec<BuildId> = ids.collect::<rusqlite::Result<_>>()?;
    for id in &ids {
        failed::forget(t, id)?;
    }
    Ok(ids)
}

fn build_row(row: &Row<'_>) -> rusqlite::Result<BuildRow> {
    let tags = row.get_ref(8)?.as_str()?;
    let count = |column: usize| row.get(column).map(i64::cast_unsigned);
    Ok(BuildRow {
        id: parse("builds.id", row.get_ref(0)?.as_str()?)?,
        series: row.get(1)?,
        started: row.get(2)?,
        took: row.get(3)?,
        status: row
            .get_ref(4)?
            .as_str()?
            .parse()
            .map_err(|()| bad("builds.status", "unknown"))?,
        context: row.get(5)?,
        dockerfile: row.get(6)?,
        target: row.get(7)?,
        tags: serde_json::from_str(tags).map_err(|_| bad("builds.tags", tags))?,
        error: row.get(9)?,
        steps: count(10)?,
        ran: count(11)?,
        cached: count(12)?,
        saved: row.get(13)?,
        warnings: count(14)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Keep = Keep {
        builds: u64::MAX,
        age: Duration::MAX,
    };

    fn row(journal: &Journal, series: u8) -> BuildRow {
        BuildRow {
            id: journal.id().clone(),
            series: [series; 32],
            started: journal.started(),
            took: 5,
            status: BuildStatus::Failed,
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: Some("test".to_owned()),
            tags: vec!["a".to_owned(), "b:1".to_owned()],
            error: Some("exit code 1".to_owned()),
            steps: 4,
            ran: 1,
            cached: 2,
            saved: 7,
            warnings: 3,
        }
    }

    fn ended(history: &History, series: u8) -> BuildId {
        let mut journal = history.begin().unwrap();
        assert!(journal.append(b"line\n").unwrap());
        let id = journal.id().clone();
        let row = row(&journal, series);
        history.finish(journal, &row).unwrap();
        id
    }

    #[test]
    fn rows_come_back() {
        let (_dir, store) = crate::tests::store();
        let history = store.history();
        let mut journal = history.begin().unwrap();
        journal.append(b"one\n").unwrap();
        journal.append_last(b"two\n").unwrap();
        let row = row(&journal, 1);
        history.finish(journal, &row).unwrap();
        assert_eq!(history.rows().unwrap(), std::slice::from_ref(&row));
        assert_eq!(history.row(&row.id).unwrap(), Some(row.clone()));
        assert_eq!(history.read(&row.id).unwrap().unwrap(), b"one\ntwo\n");
        let ids = std::slice::from_ref(&row.id);
        assert_eq!(history.find(&row.id.as_str()[..3]).unwrap(), ids);
        assert_eq!(history.unlisted().unwrap(), []);
        assert_eq!(history.remove(ids).unwrap(), ids);
        assert_eq!(history.remove(ids).unwrap(), []);
        assert_eq!(history.read(&row.id).unwrap(), None);
    }

    #[test]
    fn the_latest_of_a_series_come_first() {
        let (_dir, store) = crate::tests::store();
        let history = store.history();
        let first = ended(&history, 1);
        ended(&history, 2);
        let last = ended(&history, 1);
        assert_eq!(history.latest(&[1; 32], 9).unwrap(), [last.clone(), first]);
        assert_eq!(history.latest(&[1; 32], 1).unwrap(), [last]);
        assert_eq!(history.latest(&[3; 32], 9).unwrap(), []);
    }

    #[test]
    fn what_there_is_no_room_for_goes() {
        let (_dir, store) = crate::tests::store();
        let history = store.history();
        let history = History {
            keep: Keep { builds: 2, ..ALL },
            ..history
        };
        let ids: Vec<BuildId> = (0..4).map(|_| ended(&history, 1)).collect();
        assert_eq!(
            history.latest(&[1; 32], 9).unwrap(),
            [ids[3].clone(), ids[2].clone()]
        );
        assert_eq!(history.read(&ids[0]).unwrap(), None);
        let history = History {
            keep: Keep {
                age: Duration::ZERO,
                ..ALL
            },
            ..history
        };
        assert_eq!(history.trim(true).unwrap().len(), 2);
        assert_eq!(history.rows().unwrap().len(), 2);
        assert_eq!(history.trim(false).unwrap().len(), 2);
        assert_eq!(history.rows().unwrap(), []);
    }

    #[test]
    fn a_running_build_and_a_killed_one_are_told_apart() {
        let (dir, store) = crate::tests::store();
        let history = store.history();
        let running = history.begin().unwrap();
        let killed = history.begin().unwrap();
        let row = row(&killed, 1);
        drop(killed);
        let other = Store::open(dir.path()).unwrap().history();
        let mut expected = [
            Unlisted {
                id: running.id().clone(),
                running: true,
            },
            Unlisted {
                id: row.id.clone(),
                running: false,
            },
        ];
        expected.sort_by(|a, b| a.id.cmp(&b.id));
        assert_eq!(other.unlisted().unwrap(), expected);
        other.put(&row).unwrap();
        other.put(&row).unwrap();
        let left = other.unlisted().unwrap();
        assert_eq!(
            left,
            [Unlisted {
                id: running.id().clone(),
                running: true
            }]
        );
    }

    #[test]
    fn ids_are_digits() {
        assert!("0123abcd".parse::<BuildId>().is_ok());
        for text in ["", "0123abc", "0123abcde", "0123ABCD", "../../ab"] {
            assert!(text.parse::<BuildId>().is_err(), "{text}");
        }
    }
}
