//! Cache records: what a step with a certain key came to.

use rusqlite::{Connection, OptionalExtension, Row};

use super::{Index, IndexError, epoch, parse};
use crate::layer::LayerId;

/// One cache record. The index knows only what it has to: which layers the record keeps alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRow {
    /// Identity of the step without its inputs: the records of one `op` are the step's history.
    pub op: [u8; 32],
    /// The result, in the writer's own form.
    pub result: Vec<u8>,
    /// Layers that are kept for as long as the record is, oldest first. A layer may be absent: a result that
    /// came from a remote cache has its layers elsewhere.
    pub layers: Vec<LayerId>,
    /// What the key was made of, in the writer's own form.
    pub ingredients: Vec<u8>,
    /// When the step ran, in seconds since 1970.
    pub created: i64,
}

const COLUMNS: &str = "op, result, ingredients, created";

impl Index {
    /// Keeps a record, replacing one with the same key.
    pub fn record_put(&self, key: &[u8; 32], row: &RecordRow) -> Result<(), IndexError> {
        let time = self.use_time()?;
        self.write(|t| {
            let epoch = epoch(t)?;
            t.prepare_cached("DELETE FROM records WHERE key = ?1")?
                .execute([key])?;
            t.prepare_cached(
                "INSERT INTO records (key, op, result, ingredients, created, last_used, epoch)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute((
                key,
                row.op,
                &row.result,
                &row.ingredients,
                row.created,
                time.now,
                epoch,
            ))?;
            let mut layers = t.prepare_cached(
                "INSERT INTO record_layers (key, position, layer) VALUES (?1, ?2, ?3)",
            )?;
            for (position, layer) in (0_i64..).zip(&row.layers) {
                layers.execute((key, position, layer.to_string()))?;
            }
            Ok(())
        })
    }

    /// Looks a record up. While this store is open, no garbage collection removes what was found, or its layers: where its
    /// stamp is not fresh, it gets a new one in the instant in which it is read.
    pub fn record_hit(&self, key: &[u8; 32]) -> Result<Option<RecordRow>, IndexError> {
        let time = self.use_time()?;
        // A miss, and a hit soon after another, need no writer's lock.
        let found = self.read(|c| {
            c.prepare_cached(&format!(
                "SELECT {COLUMNS}, last_used FROM records WHERE key = ?1"
            ))?
            .query_row([key], |row| {
                Ok((record(c, key, row)?, row.get::<_, i64>(4)?))
            })
            .optional()
        })?;
        match found {
            None => return Ok(None),
            Some((row, last_used)) if last_used >= time.fresh_since => return Ok(Some(row)),
            Some(_) => {}
        }
        self.write(|t| {
            t.prepare_cached(&format!(
                "UPDATE records SET last_used = max(last_used, ?2)
                 WHERE key = ?1 RETURNING {COLUMNS}"
            ))?
            .query_row((key, time.now), |row| record(t, key, row))
            .optional()
        })
    }

    /// As [`Index::record_hit`], for the result alone. In a burst of look-ups it may be what it was when that began, and its
    /// stamp is new for others once the burst ends; until then the writer's lock keeps them from removing it.
    pub fn record_hit_soon(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, IndexError> {
        let time = self.use_time()?;
        let found = self.read_soon(|c| {
            c.prepare_cached("SELECT result, last_used FROM records WHERE key = ?1")?
                .query_row([key], |row| Ok((bytes(row)?, row.get::<_, i64>(1)?)))
                .optional()
        })?;
        match found {
            None => return Ok(None),
            Some((result, last_used)) if last_used >= time.fresh_since => return Ok(Some(result)),
            Some(_) => {}
        }
        self.write_soon(|c| {
            c.prepare_cached(
                "UPDATE records SET last_used = max(last_used, ?2) WHERE key = ?1 RETURNING result",
            )?
            .query_row((key, time.now), bytes)
            .optional()
        })
    }

    /// Looks a record up without using it: garbage collection is not told.
    pub fn record_peek(&self, key: &[u8; 32]) -> Result<Option<RecordRow>, IndexError> {
        self.read(|c| {
            c.prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE key = ?1"))?
                .query_row([key], |row| record(c, key, row))
                .optional()
        })
    }

    /// Keeps, in the writer's own form, which files a record's key covers, for as long as the record; none without one.
    pub fn record_files_put(&self, key: &[u8; 32], files: &[u8]) -> Result<(), IndexError> {
        self.write(|t| {
            t.prepare_cached(
                "INSERT OR REPLACE INTO record_files (key, files)
                 SELECT key, ?2 FROM records WHERE key = ?1",
            )?
            .execute((key, files))?;
            Ok(())
        })
    }

    /// Which files a record's key covers.
    pub fn record_files(&self, key: &[u8; 32]) -> Result<Option<Vec<u8>>, IndexError> {
        self.read(|c| {
            c.prepare_cached("SELECT files FROM record_files WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()
        })
    }

    /// The records of one step, latest first, with their keys; marks none as used.
    pub fn records_by_op(&self, op: &[u8; 32]) -> Result<Vec<([u8; 32], RecordRow)>, IndexError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS}, key FROM records WHERE op = ?1 ORDER BY created DESC, key"
            ))?;
            let rows = statement.query_map([op], |row| {
                let key = row.get(4)?;
                Ok((key, record(c, &key, row)?))
            })?;
            rows.collect()
        })
    }

    /// Forgets a record; tells whether there was one.
    pub fn record_remove(&self, key: &[u8; 32]) -> Result<bool, IndexError> {
        self.write(|t| {
            let removed = t
                .prepare_cached("DELETE FROM records WHERE key = ?1")?
                .execute([key])?;
            Ok(removed > 0)
        })
    }
}

/// The first column's bytes; none where it holds anything else, which no writer left there.
fn bytes(row: &Row<'_>) -> rusqlite::Result<Vec<u8>> {
    Ok(row.get_ref(0)?.as_blob().unwrap_or_default().to_vec())
}

fn record(c: &Connection, key: &[u8; 32], row: &Row<'_>) -> rusqlite::Result<RecordRow> {
    let mut statement =
        c.prepare_cached("SELECT layer FROM record_layers WHERE key = ?1 ORDER BY position")?;
    let layers = statement.query_map([key], |row| {
        parse("record_layers.layer", row.get_ref(0)?.as_str()?)
    })?;
    Ok(RecordRow {
        op: row.get(0)?,
        result: row.get(1)?,
        layers: layers.collect::<rusqlite::Result<_>>()?,
        ingredients: row.get(2)?,
        created: row.get(3)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_holds_nobody_up_and_leaves_its_stamps() {
        let (dir, store) = crate::tests::store();
        let row = RecordRow {
            op: [9; 32],
            result: vec![7],
            layers: Vec::new(),
            ingredients: Vec::new(),
            created: 1,
        };
        for key in 0..4 {
            store.index().record_put(&[key; 32], &row).unwrap();
        }
        let stamp = |index: &Index, key: u8| {
            let get = |c: &Connection| {
                c.query_row(
                    "SELECT last_used FROM records WHERE key = ?1",
                    [[key; 32]],
                    |row| row.get::<_, i64>(0),
                )
            };
            index.read(get).unwrap()
        };
        let old = |c: &Connection| c.execute("UPDATE records SET last_used = 1", []);
        store.index().write(|t| old(t)).unwrap();
        let other = crate::Store::open(dir.path()).unwrap();
        let index = store.index();
        index.begin_burst();
        for key in 0..2 {
            assert_eq!(index.record_hit_soon(&[key; 32]).unwrap(), Some(vec![7]));
        }
        // A write of another thread ends the transaction, and what was stamped in it stays.
        index.record_put(&[9; 32], &row).unwrap();
        assert!(stamp(other.index(), 0) > 1);
        assert_eq!(index.record_hit_soon(&[2; 32]).unwrap(), Some(vec![7]));
        assert_eq!(index.record_hit_soon(&[8; 32]).unwrap(), None);
        index.end_burst().unwrap();
        for (key, used) in [(0, true), (1, true), (2, true), (3, false)] {
            assert_eq!(stamp(other.index(), key) > 1, used, "{key}");
        }
        // Others write while a burst only reads.
        index.begin_burst();
        assert_eq!(index.record_hit_soon(&[0; 32]).unwrap(), Some(vec![7]));
        assert!(other.index().record_remove(&[0; 32]).unwrap());
        assert_eq!(
            index.record_hit(&[0; 32]).unwrap(),
            None,
            "this one looks anew"
        );
        index.end_burst().unwrap();
    }

    #[test]
    fn records_come_back() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        let row = |created| RecordRow {
            op: [9; 32],
            result: vec![1, 2],
            layers: vec![LayerId::Built([1; 32]), LayerId::Built([1; 32])],
            ingredients: b"argv".to_vec(),
            created,
        };
        assert_eq!(index.record_hit(&[0; 32]).unwrap(), None);
        index.record_put(&[0; 32], &row(5)).unwrap();
        index.record_put(&[0; 32], &row(6)).unwrap();
        index.record_put(&[1; 32], &row(7)).unwrap();
        assert_eq!(index.record_hit(&[0; 32]).unwrap(), Some(row(6)));
        assert_eq!(
            index.records_by_op(&[9; 32]).unwrap(),
            [([1; 32], row(7)), ([0; 32], row(6))]
        );
        assert_eq!(index.record_peek(&[0; 32]).unwrap(), Some(row(6)));
        assert_eq!(index.record_hit_soon(&[0; 32]).unwrap(), Some(vec![1, 2]));
        index.record_files_put(&[0; 32], b"files").unwrap();
        index.record_files_put(&[2; 32], b"of nothing").unwrap();
        assert_eq!(index.record_files(&[0; 32]).unwrap().unwrap(), b"files");
        assert_eq!(index.record_files(&[2; 32]).unwrap(), None);
        assert!(index.record_remove(&[0; 32]).unwrap());
        assert_eq!(index.record_files(&[0; 32]).unwrap(), None);
        assert!(!index.record_remove(&[0; 32]).unwrap());
        assert_eq!(index.record_hit(&[0; 32]).unwrap(), None);
    }
}
