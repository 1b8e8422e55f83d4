//! The index: everything small that several processes read and write, in one SQLite database (`index.db`, WAL).
//!
//! | file | tables |
//! |---|---|
//! | this one | `meta`; opening, transactions, sync epochs |
//! | [`layers`] | `layers`, `compressed`, `rewritten` |
//! | [`blobs`] | `blobs`, `sources` |
//! | [`records`] | `records`, `record_layers`, `record_files` |
//! | [`leases`] | `leases`, `lease_items` |
//! | [`crate::images`] | `images`, `image_layers`, `names` |
//! | [`crate::history`] | `builds` |
//!
//! The schema is in `index/schema.sql`, with what later versions add beside it, and described with everything else on disk in `docs/formats/store-layout.md`.
//!
//! A row never names what does not exist yet, save where its doc says so. Times named `last_used` are microseconds since
//! 1970 and protect what a live session uses from garbage collection: see [`crate::session`]. Every row that stands
//! for files carries the *epoch* it was written in; epochs up to `meta.synced_epoch` are on disk for good.
//!
//! One connection behind a mutex serves all threads. Writers begin with `BEGIN IMMEDIATE`, so none fails halfway for a
//! lock; none does anything slow inside.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, TransactionState,
};

use crate::clock::Clock;
use crate::fs::{self, FsError};
use crate::session::Sessions;

pub mod blobs;
pub mod layers;
pub mod leases;
pub mod records;

pub use leases::{Lease, LeaseItem};
pub use records::RecordRow;

/// Schema version, SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 3;
const SCHEMA: &str = include_str!("index/schema.sql");
const SCHEMA_2: &str = include_str!("index/schema-2.sql");
const SCHEMA_3: &str = include_str!("index/schema-3.sql");

/// How long a writer waits for others. Transactions take microseconds, so only a stopped process reaches this.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// The database is made smaller when at least this much of it is free, and half of it …
const FREE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// … and no more than this is not: that is copied, in memory, within a second or so.
const VACUUM_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Statements kept prepared.
const STATEMENTS_MAX: usize = 128;

/// Why the index refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// SQLite failed.
    #[error("cannot use the store's index `{}`", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Written by a newer longshore.
    #[error(
        "the store's index `{}` has schema {found}, this longshore knows up to {known}: use a newer longshore or another root",
        path.display()
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest one known.
        known: i64,
    },
    /// A column holds what this program never wrote.
    #[error("the store's index has a bad {column} `{value}`")]
    Corrupt {
        /// Which column.
        column: &'static str,
        /// What it holds.
        value: String,
    },
    /// A file beside the database failed.
    #[error(transparent)]
    Fs(#[from] FsError),
}

/// The index of a store. Safe to share between threads.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    connection: Mutex<Connection>,
    /// How many bursts of look-ups are going on.
    bursts: AtomicUsize,
    sessions: Arc<Sessions>,
}

impl Index {
    /// Opens the database in `root`, creating it where there is none.
    pub(crate) fn open(root: &Path, sessions: Arc<Sessions>) -> Result<Index, IndexError> {
        let path = root.join("index.db");
        let sqlite = |source| IndexError::Sqlite {
            path: path.clone(),
            source,
        };
        // The connection lives behind a mutex of our own.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        if !fs::exists(&path)? {
            create(root, &path)?;
        }
        let mut connection = Connection::open_with_flags(&path, flags).map_err(sqlite)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        // A checkpoint at every exit would cost a millisecond; SQLite makes one every thousand pages anyway.
        connection
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map_err(sqlite)?;
        let version = |c: &Connection| c.query_row("PRAGMA user_version", [], |row| row.get(0));
        let mut found: i64 = version(&connection).map_err(sqlite)?;
        if found < SCHEMA_VERSION {
            found = update(&mut connection).map_err(sqlite)?;
        }
        if found != SCHEMA_VERSION {
            return Err(IndexError::TooNew {
                path: path.clone(),
                found,
                known: SCHEMA_VERSION,
            });
        }
        connection
            .execute_batch(
                "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -16384",
            )
            .map_err(sqlite)?;
        Ok(Index {
            path,
            connection: Mutex::new(connection),
            bursts: AtomicUsize::new(0),
            sessions,
        })
    }

    /// A value that was kept under `key` with [`Index::meta_put`].
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|c| {
            c.prepare_cached("SELECT value FROM meta WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()
        })
    }

    /// Keeps a small value for others; keys are `crate.purpose`, those without a dot are the index's own.
    pub fn meta_put(&self, key: &str, value: &[u8]) -> Result<(), IndexError> {
        self.write(|t| {
            t.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
                .execute((key, value))?;
            Ok(())
        })
    }

    /// Forgets a value; tells whether there was one.
    pub fn meta_remove(&self, key: &str) -> Result<bool, IndexError> {
        self.write(|t| {
            let removed = t
                .prepare_cached("DELETE FROM meta WHERE key = ?1")?
                .execute([key])?;
            Ok(removed > 0)
        })
    }

    /// All kept values whose key starts with `prefix`, in key order.
    pub fn meta_list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT key, value FROM meta WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key",
            )?;
            let rows = statement.query_map([prefix], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    /// Ends an epoch and returns it: what was written until now belongs to it or an earlier one.
    pub(crate) fn next_epoch(&self) -> Result<i64, IndexError> {
        self.write(|t| {
            t.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'", [])?;
            t.query_row(
                "SELECT value - 1 FROM meta WHERE key = 'epoch'",
                [],
                |row| row.get(0),
            )
        })
    }

    /// Whether rows were written in an epoch that is not known to be on disk.
    pub(crate) fn has_unsynced(&self) -> Result<bool, IndexError> {
        self.read(|c| {
            c.query_row(
                "SELECT written.value > synced.value FROM meta written, meta synced
                 WHERE written.key = 'written_epoch' AND synced.key = 'synced_epoch'",
                [],
                |row| row.get(0),
            )
        })
    }

    /// Notes that everything up to `epoch` is on disk.
    pub(crate) fn set_synced_epoch(&self, epoch: i64) -> Result<(), IndexError> {
        self.write(|t| {
            t.execute(
                "UPDATE meta SET value = max(value, ?1) WHERE key = 'synced_epoch'",
                [epoch],
            )?;
            Ok(())
        })
    }

    /// Begins a burst of look-ups: until [`Index::end_burst`], those that may be a little old ([`Index::record_hit_soon`])
    /// are made in one transaction. Whatever else is asked of this index meanwhile ends that transaction, and is not held up.
    pub fn begin_burst(&self) {
        self.bursts.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends a burst.
    pub fn end_burst(&self) -> Result<(), IndexError> {
        self.bursts.fetch_sub(1, Ordering::SeqCst);
        self.settle(&self.lock())
    }

    fn in_burst(&self) -> bool {
        self.bursts.load(Ordering::SeqCst) > 0
    }

    /// Ends the transaction of a burst.
    fn settle(&self, connection: &Connection) -> Result<(), IndexError> {
        if connection.is_autocommit() {
            return Ok(());
        }
        let ended = connection.execute_batch("COMMIT");
        if ended.is_err() && !connection.is_autocommit() {
            // What was stamped in it is stamped no longer: who cannot write, cannot keep.
            let _taken_back = connection.execute_batch("ROLLBACK");
        }
        ended.map_err(|source| self.error(source))
    }

    /// Runs reads, which see all that anybody committed.
    pub(crate) fn read<T>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        self.fault()?;
        let connection = self.lock();
        self.settle(&connection)?;
        run(&connection).map_err(|source| self.error(source))
    }

    /// Runs reads in the transaction of the burst that goes on, if there is one.
    pub(crate) fn read_soon<T>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        if !self.in_burst() {
            return self.read(run);
        }
        self.fault()?;
        let connection = self.lock();
        let begun = match connection.is_autocommit() {
            true => connection.execute_batch("BEGIN"),
            false => Ok(()),
        };
        begun
            .and_then(|()| run(&connection))
            .map_err(|source| self.error(source))
    }

    /// Runs writes that are taken back together with others of the burst if that cannot be committed; in a transaction
    /// of their own where there is no burst. Nothing is seen by others before the burst ends.
    pub(crate) fn write_soon<T>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        if !self.in_burst() {
            return self.write(|t| run(t));
        }
        self.fault()?;
        let connection = self.lock();
        let may_write = !connection.is_autocommit()
            && connection.transaction_state(Some("main")).ok() == Some(TransactionState::Write);
        if !may_write {
            self.settle(&connection)?;
            let begun = connection.execute_batch("BEGIN IMMEDIATE");
            begun.map_err(|source| self.error(source))?;
        }
        run(&connection).map_err(|source| self.error(source))
    }

    /// Runs writes in one immediate transaction: all of them happen, or none.
    pub(crate) fn write<T>(
        &self,
        run: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        self.fault()?;
        let mut connection = self.lock();
        self.settle(&connection)?;
        let result = (|| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = run(&transaction)?;
            Ok((value, transaction))
        })();
        let (value, transaction) = result.map_err(|source| self.error(source))?;
        self.fault()?;
        transaction.commit().map_err(|source| self.error(source))?;
        Ok(value)
    }

    /// Runs writes under the writer's lock and takes them back.
    pub(crate) fn rehearse<T>(
        &self,
        run: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        self.fault()?;
        let mut connection = self.lock();
        self.settle(&connection)?;
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|source| self.error(source))?;
        run(&transaction).map_err(|source| self.error(source))
    }

    /// Moves what the log holds into the database and makes the log empty, if nobody is reading.
    pub(crate) fn shorten_log(&self) -> Result<(), IndexError> {
        self.read(|c| c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
    }

    /// Makes the database as small as what is in it, where that is worth while and quick. All or nothing, whatever happens
    /// meanwhile; who wants to write waits. Tells whether it did.
    pub(crate) fn give_back(&self) -> Result<bool, IndexError> {
        let is_due = |c: &Connection| -> rusqlite::Result<bool> {
            let number = |sql| c.query_row(sql, [], |row| row.get(0).map(i64::cast_unsigned));
            let page = number("PRAGMA page_size")?;
            let free = page * number("PRAGMA freelist_count")?;
            let used = (page * number("PRAGMA page_count")?).saturating_sub(free);
            Ok(free >= FREE_BYTES_MIN && free >= used && used <= VACUUM_BYTES_MAX)
        };
        if !self.read(is_due)? {
            return Ok(false);
        }
        // The copy is made in memory: of a disk's room it needs that of the log.
        self.read(|c| c.execute_batch("PRAGMA temp_store = MEMORY; VACUUM"))?;
        self.shorten_log()?;
        Ok(true)
    }

    pub(crate) fn clock(&self) -> &Clock {
        self.sessions.clock()
    }

    /// Microseconds since 1970.
    pub(crate) fn now_micros(&self) -> i64 {
        self.clock().now_micros()
    }

    /// The time that protects a row from garbage collection as of now.
    pub(crate) fn use_time(&self) -> Result<UseTime, IndexError> {
        let fresh_since = self.sessions.fresh_since()?;
        Ok(UseTime {
            fresh_since,
            // Also where the clock was set back since.
            now: self.now_micros().max(self.sessions.current()?.started()),
        })
    }

    pub(crate) fn error(&self, source: rusqlite::Error) -> IndexError {
        if let rusqlite::Error::FromSqlConversionFailure(_, _, cause) = &source
            && let Some(bad) = cause.downcast_ref::<BadColumn>()
        {
            return IndexError::Corrupt {
                column: bad.column,
                value: bad.value.clone(),
            };
        }
        IndexError::Sqlite {
            path: self.path.clone(),
            source,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic while it was held left at most an open transaction, which rolled back when dropped.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self) -> Result<(), IndexError> {
        fs::attempt("access", &self.path, || Ok::<(), std::io::Error>(()))?;
        Ok(())
    }
}

/// Now, and from when on a row's stamp protects it as well as a new one would.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UseTime {
    pub(crate) fresh_since: i64,
    pub(crate) now: i64,
}

/// The epoch that rows written now belong to. Read it in the transaction that writes them, which is noted.
pub(crate) fn epoch(t: &Connection) -> rusqlite::Result<i64> {
    let epoch: i64 = t
        .prepare_cached("SELECT value FROM meta WHERE key = 'epoch'")?
        .query_row([], |row| row.get(0))?;
    t.prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'written_epoch' AND value < ?1")?
        .execute([epoch])?;
    Ok(epoch)
}

/// The newest epoch known to be on disk.
pub(crate) fn synced_epoch(c: &Connection) -> rusqlite::Result<i64> {
    c.prepare_cached("SELECT value FROM meta WHERE key = 'synced_epoch'")?
        .query_row([], |row| row.get(0))
}

/// Makes the database aside and gives it its name, unless another process was faster. Going over to WAL takes locks that
/// SQLite does not wait for, so nobody may see the database before.
fn create(root: &Path, path: &Path) -> Result<(), IndexError> {
    let aside = fs::TempDir::create(&root.join("tmp"))?;
    let made = aside.path().join("index.db");
    let sqlite = |source| IndexError::Sqlite {
        path: made.clone(),
        source,
    };
    let mut connection = Connection::open(&made).map_err(sqlite)?;
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))
        .map_err(sqlite)?;
    update(&mut connection).map_err(sqlite)?;
    // Writes everything into the one file. Closing would as well, but does not say when the disk is full.
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .map_err(sqlite)?;
    connection.close().map_err(|(_, source)| sqlite(source))?;
    fs::link_if_free(&made, path)?;
    Ok(())
}

/// Makes the tables that are missing, and returns the version.
fn update(connection: &mut Connection) -> rusqlite::Result<i64> {
    // Another process may be at it too; whoever is second finds the version set.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found >= SCHEMA_VERSION {
        return Ok(found);
    }
    if found < 1 {
        transaction.execute_batch(SCHEMA)?;
    }
    if found < 2 {
        transaction.execute_batch(SCHEMA_2)?;
    }
    transaction.execute_batch(SCHEMA_3)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()?;
    Ok(SCHEMA_VERSION)
}

/// A text column that does not parse.
#[derive(Debug, thiserror::Error)]
#[error("bad {column} `{value}`")]
struct BadColumn {
    column: &'static str,
    value: String,
}

/// Parses a text column that this program wrote.
pub(crate) fn parse<T: std::str::FromStr>(column: &'static str, text: &str) -> rusqlite::Result<T> {
    text.parse().map_err(|_| bad(column, text))
}

/// The error for a column that holds what this program never wrote.
pub(crate) fn bad(column: &'static str, value: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        0,
        rusqlite::types::Type::Text,
        Box::new(BadColumn {
            column,
            value: value.chars().take(100).collect(),
        }),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn keeps_small_values() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        index.meta_put("x.a", b"1").unwrap();
        index.meta_put("x.b", b"2").unwrap();
        index.meta_put("x.a", b"3").unwrap();
        assert_eq!(index.meta("x.a").unwrap().as_deref(), Some(&b"3"[..]));
        let listed = index.meta_list("x.").unwrap();
        assert_eq!(
            listed,
            [
                ("x.a".to_owned(), b"3".to_vec()),
                ("x.b".to_owned(), b"2".to_vec())
            ]
        );
        assert!(index.meta_remove("x.a").unwrap());
        assert!(!index.meta_remove("x.a").unwrap());
        assert_eq!(index.meta("x.a").unwrap(), None);
    }

    #[test]
    fn what_a_collection_left_free_is_given_back() {
        let (dir, store) = crate::tests::store();
        let size = || {
            store.index().shorten_log().unwrap();
            std::fs::metadata(dir.path().join("index.db"))
                .unwrap()
                .len()
        };
        let small = size();
        let other = crate::Store::open(dir.path()).unwrap();
        other.index().meta_put("x.kept", b"1").unwrap();
        let large = vec![7; 1024 * 1024];
        let key = |number: u8| format!("x.large.{number}");
        for number in 0..10 {
            store.index().meta_put(&key(number), &large).unwrap();
        }
        assert!(size() > 10 * 1024 * 1024);
        let collect = || {
            let collected = store.collect(&crate::content::collect::Collection::default());
            collected.unwrap();
        };
        // Not worth while yet.
        store.index().meta_remove(&key(0)).unwrap();
        collect();
        assert!(size() > 10 * 1024 * 1024);
        for number in 1..10 {
            other.index().meta_remove(&key(number)).unwrap();
        }
        collect();
        assert!(size() < small + 1024 * 1024, "{} {small}", size());
        assert!(!store.index().give_back().unwrap());
        for store in [&store, &other] {
            assert_eq!(store.index().meta("x.kept").unwrap(), Some(vec![b'1']));
            assert!(store.check().unwrap().is_empty());
        }
        other.index().meta_put("x.later", b"2").unwrap();
        assert_eq!(store.index().meta("x.later").unwrap(), Some(vec![b'2']));
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let (dir, store) = crate::tests::store();
        store
            .index()
            .lock()
            .pragma_update(None, "user_version", 99)
            .unwrap();
        drop(store);
        let error = crate::Store::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("schema 99"), "{error}");
    }

    #[test]
    fn many_may_open_a_new_store_at_once() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let start = std::sync::Barrier::new(8);
            std::thread::scope(|scope| {
                for number in 0..8u8 {
                    let (path, start) = (dir.path(), &start);
                    scope.spawn(move || {
                        start.wait();
                        let store = crate::Store::open(path).unwrap();
                        let key = format!("x.{number}");
                        store.index().meta_put(&key, &[number]).unwrap();
                    });
                }
            });
            let store = crate::Store::open(dir.path()).unwrap();
            assert_eq!(store.index().meta_list("x.").unwrap().len(), 8);
        }
    }

    #[test]
    fn an_older_schema_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        for (version, schemas) in [
            (1, &[super::SCHEMA][..]),
            (2, &[super::SCHEMA, super::SCHEMA_2]),
        ] {
            let root = dir.path().join(version.to_string());
            std::fs::create_dir(&root).unwrap();
            let connection = rusqlite::Connection::open(root.join("index.db")).unwrap();
            for schema in schemas {
                connection.execute_batch(schema).unwrap();
            }
            connection
                .pragma_update(None, "user_version", version)
                .unwrap();
            connection
                .execute("INSERT INTO meta VALUES ('x.kept', x'01')", [])
                .unwrap();
            drop(connection);
            for _ in 0..2 {
                let store = crate::Store::open(&root).unwrap();
                assert_eq!(store.index().meta("x.kept").unwrap(), Some(vec![1]));
                assert_eq!(store.history().rows().unwrap(), []);
                let layer = crate::oci::DiffId(crate::oci::Digest::of(b""));
                assert_eq!(store.index().rewritten(&layer, "estargz").unwrap(), None);
            }
        }
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let (_dir, store) = crate::tests::store();
        let result = store.index().write(|t| {
            t.execute("INSERT INTO meta (key, value) VALUES ('x.y', x'00')", [])?;
            Err::<(), _>(rusqlite::Error::QueryReturnedNoRows)
        });
        assert!(result.is_err());
        assert_eq!(store.index().meta("x.y").unwrap(), None);
    }
}
