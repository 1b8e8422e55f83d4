//! Which parts of a zstd:chunked or eStargz blob are in the store already, inside other blobs of that kind.
//!
//! A table says what each piece of each file holds, so a piece with the same digest has the same content. What lies between
//! two files, their headers, has no digest; where the table says the same of all entries between, and as many bytes are
//! between, it is taken to be the same. Others' eStargz tables do not say where a file's content ends: there a piece and what is
//! behind it are one part, known by both. All that may be wrong, and so may a frame by another compressor: whoever puts a blob
//! together of pieces has to hash it, as with a blob from anywhere.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::layer::compress::table::{Entry, Format, Position, TABLE_BYTES_MAX, read_entries};
use crate::oci::{Descriptor, Digest};
use crate::{Store, StoreError};

/// Most blobs that are looked at, those of the same repository first.
const BLOBS_MAX: u32 = 64;

/// Most bytes of tables that are read of them.
const TABLES_BYTES_MAX: u64 = 4 * TABLE_BYTES_MAX;

/// A part of a blob that is in the store.
#[derive(Clone, Debug)]
pub struct LocalPiece {
    /// Where in the blob it is.
    pub at: u64,
    /// Its bytes.
    pub length: u64,
    /// Where to read it.
    pub file: Arc<File>,
    /// From where on there.
    pub offset: u64,
}

/// What a piece holds, as far as tables tell; the same key means the same bytes.
type Key = [u8; 16];

impl Store {
    /// The parts of a blob with this table (its bytes in the blob, and where they are) that blobs of the store in the same format
    /// have, ascending. The first of those looked at are what `repository` is known to have.
    ///
    /// # Errors
    /// It is no table, or the store's.
    pub fn local_pieces(
        &self,
        table: &[u8],
        position: &Position,
        repository: (&str, &str),
    ) -> Result<Vec<LocalPiece>, StoreError> {
        let mut pieces = Vec::new();
        let mut wanted = HashMap::new();
        let table = walk(table, position, &mut |at, length, key| {
            wanted.entry(key).or_insert(None::<(usize, u64)>);
            pieces.push((at, length, key));
        });
        table.map_err(|source| bad_table(None, source))?;
        let mut left = wanted.len();
        let mut files = Vec::new();
        let mut bytes = 0;
        for blob in self.blobs_with_tables(position.format, repository)? {
            let (file, size) = self.blobs.open(&blob.digest)?;
            let bad = |source| bad_table(Some(blob.digest), source);
            let found = Position::from_footer(&file, size).map_err(bad)?;
            let Some(position) = found.filter(|found| found.format == position.format) else {
                continue;
            };
            bytes += position.table.content.max(position.table.length);
            if left == 0 || bytes > TABLES_BYTES_MAX {
                break;
            }
            let index = files.len();
            let table = position.read(&file).map_err(bad)?;
            let walked = walk(&table, &position, &mut |at, _, key| {
                if let Some(found @ None) = wanted.get_mut(&key) {
                    *found = Some((index, at));
                    left -= 1;
                }
            });
            if let Err(error) = walked {
                tracing::debug!(digest = %blob.digest, %error, "a table that cannot be read");
            }
            files.push(Arc::new(file));
        }
        let mut local: Vec<LocalPiece> = Vec::new();
        for (at, length, key) in pieces {
            let Some(Some((index, offset))) = wanted.get(&key).copied() else {
                continue;
            };
            let file = &files[index];
            match local.last_mut() {
                Some(last)
                    if last.at + last.length == at
                        && last.offset + last.length == offset
                        && Arc::ptr_eq(&last.file, file) =>
                {
                    last.length += length;
                }
                _ => local.push(LocalPiece {
                    at,
                    length,
                    file: Arc::clone(file),
                    offset,
                }),
            }
        }
        Ok(local)
    }

    /// Whether any blob in that format is known.
    pub fn has_blobs_with_tables(&self, format: Format) -> Result<bool, StoreError> {
        let name = format.compression().name();
        Ok(!self.index.blobs_in(name, 1)?.is_empty())
    }

    /// Blobs in that format that are here, those that a repository is known to have first.
    fn blobs_with_tables(
        &self,
        format: Format,
        repository: (&str, &str),
    ) -> Result<Vec<Descriptor>, StoreError> {
        let name = format.compression().name();
        let mut found = Vec::new();
        for blob in self.index.blobs_in(name, 16 * BLOBS_MAX)? {
            if self.blobs.has(&blob.digest)? == Some(blob.size) {
                let sources = self.index.sources(&blob.digest)?;
                let is_near = sources
                    .iter()
                    .any(|(registry, name)| (registry.as_str(), name.as_str()) == repository);
                found.push((!is_near, blob));
            }
        }
        found.sort_by_key(|(is_far, _)| *is_far);
        found.truncate(BLOBS_MAX as usize);
        Ok(found.into_iter().map(|(_, blob)| blob).collect())
    }
}

fn bad_table(digest: Option<Digest>, source: io::Error) -> StoreError {
    super::LayerError::Table { digest, source }.into()
}

/// Offset and length of each piece that a table tells of, for fuzzing.
#[doc(hidden)]
pub fn extents(table: &[u8], position: &Position) -> io::Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    walk(table, position, &mut |at, length, _| {
        extents.push((at, length));
    })?;
    Ok(extents)
}

/// Calls `each` with offset, length and key of each piece of a blob with this table, ascending and without gaps up to the
/// table itself. A table that contradicts itself ends early.
fn walk(table: &[u8], position: &Position, each: &mut dyn FnMut(u64, u64, Key)) -> io::Result<()> {
    let mut walk = Walk {
        format: position.format,
        end: position.pieces_end(),
        cursor: 0,
        between: blake3::Hasher::new(),
        open: None,
        file_end: None,
        is_broken: false,
        each,
    };
    let json = position.json(table)?;
    read_entries(&json, &mut |entry| walk.entry(entry))?;
    walk.close_file(walk.end);
    walk.between_until(walk.end);
    Ok(())
}

struct Walk<'a> {
    format: Format,
    /// Where the pieces of the tar end.
    end: u64,
    /// Where the last piece ended.
    cursor: u64,
    /// Of all that the table says since.
    between: blake3::Hasher,
    /// The piece under way: where it begins, and its key but for the length.
    open: Option<(u64, blake3::Hasher)>,
    /// Where its file ends, if the table says so.
    file_end: Option<u64>,
    is_broken: bool,
    each: &'a mut dyn FnMut(u64, u64, Key),
}

impl Walk<'_> {
    fn entry(&mut self, entry: Entry) {
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let offset = number(entry.offset);
        if entry.kind == "chunk" {
            self.is_broken |= self.open.is_none();
            self.close(offset);
            let key = content(self.format, &entry.chunk_digest, entry.chunk_size);
            self.open = Some((offset, key));
            return;
        }
        let end = Some(number(entry.end_offset)).filter(|end| *end > 0);
        // Without an end, a piece goes on to the next one.
        let has_content = end.is_some()
            || self.format == Format::Estargz && entry.kind == "reg" && entry.size > 0;
        if self.file_end.is_some() {
            self.close_file(offset);
        }
        let key = match entry.chunk_digest.as_str() {
            "" => content(self.format, &entry.digest, entry.size),
            digest => content(self.format, digest, entry.chunk_size),
        };
        // What is between files is what the table says of them, but for where their pieces are and what they hold.
        let entry = Entry {
            digest: String::new(),
            offset: 0,
            end_offset: 0,
            chunk_size: 0,
            chunk_digest: String::new(),
            chunk_type: String::new(),
            ..entry
        };
        let said = serde_json::to_vec(&entry).unwrap_or_default();
        self.between.update(&(said.len() as u64).to_le_bytes());
        self.between.update(&said);
        if has_content {
            self.close_file(offset);
            self.between_until(offset);
            // As long as the padding behind the file.
            self.between.update(&(entry.size % 512).to_le_bytes());
            self.open = Some((offset, key));
            self.file_end = end;
        }
    }

    /// The file under way, if there is one, ends where the table says, or else at `next`: then what is known of what is behind
    /// its last piece belongs to that.
    fn close_file(&mut self, next: u64) {
        if let Some(end) = self.file_end.take() {
            self.close_at(end, end);
            return;
        }
        if let Some((_, key)) = &mut self.open {
            key.update(std::mem::take(&mut self.between).finalize().as_bytes());
        }
        self.close_at(next, next);
    }

    /// The piece under way, if there is one, ends here.
    fn close(&mut self, end: u64) {
        self.close_at(end, self.file_end.unwrap_or(self.end));
    }

    fn close_at(&mut self, end: u64, file_end: u64) {
        let Some((offset, mut key)) = self.open.take() else {
            return;
        };
        let last = file_end.min(self.end);
        self.is_broken |= offset != self.cursor || end <= offset || end > last;
        if !self.is_broken {
            key.update(&(end - offset).to_le_bytes());
            (self.each)(offset, end - offset, short(&key));
            self.cursor = end;
        }
    }

    /// What is between files ends here.
    fn between_until(&mut self, offset: u64) {
        let mut key = std::mem::take(&mut self.between);
        match offset.checked_sub(self.cursor) {
            Some(0) => {}
            Some(length) if !self.is_broken && offset <= self.end => {
                key.update(&length.to_le_bytes());
                (self.each)(self.cursor, length, short(&key));
                self.cursor = offset;
            }
            _ => self.is_broken = true,
        }
    }
}

/// The beginning of a key of content.
fn content(format: Format, digest: &str, bytes: i64) -> blake3::Hasher {
    let mut hasher = blake3::Hasher::new_derive_key(match format {
        Format::ZstdChunked => "longshore zstd:chunked content 1",
        Format::Estargz => "longshore eStargz content 1",
    });
    hasher.update(digest.as_bytes());
    hasher.update(&bytes.to_le_bytes());
    hasher
}

fn short(hasher: &blake3::Hasher) -> Key {
    let hash = hasher.finalize();
    *hash.as_bytes().first_chunk().expect("16 of 32 bytes")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::layer::LayerInfo;
    use crate::layer::compress::estargz;
    use crate::layer::compress::table::Extent;

    /// A layer of some files, the first of which holds `first`.
    fn built(store: &Store, first: &[u8]) -> LayerInfo {
        store
            .publish_layer(|| {
                let active = store.snapshots().prepare(&[])?;
                let write = |name: &str, bytes: &[u8]| {
                    let path = active.upper().join(name);
                    std::fs::write(&path, bytes).unwrap();
                    let time = std::time::SystemTime::UNIX_EPOCH;
                    std::fs::File::open(path)
                        .unwrap()
                        .set_modified(time)
                        .unwrap();
                };
                write("a first", first);
                for index in 0..20_u32 {
                    let noise: Vec<u8> = (0..4000_u32)
                        .flat_map(|at| {
                            (at * 7919 + index)
                                .wrapping_mul(2_654_435_761)
                                .to_le_bytes()
                        })
                        .collect();
                    write(&format!("file {index:02}"), &noise);
                }
                active.commit().map_err(StoreError::from)
            })
            .unwrap()
    }

    fn blob(store: &Store, info: &LayerInfo, format: Format) -> Descriptor {
        let diff_id = store.ensure_diff_id(&info.id).unwrap();
        let blob = store.layer_blob(&diff_id, format.compression()).unwrap();
        blob.descriptor
    }

    #[test]
    fn an_older_version_has_all_but_what_changed() {
        for format in [Format::ZstdChunked, Format::Estargz] {
            check_older_version(format);
        }
    }

    fn check_older_version(format: Format) {
        let (_dir, store) = crate::tests::store();
        let (_there, away) = crate::tests::store();
        let old = blob(&store, &built(&store, b"old"), format);
        let new = blob(&away, &built(&away, b"new"), format);
        assert_ne!(old.digest, new.digest);
        let told = new.annotations.as_ref().unwrap();
        let (file, size) = away.blobs().open(&new.digest).unwrap();
        let from_footer = Position::from_footer(&file, size).unwrap().unwrap();
        let position = match format {
            Format::ZstdChunked => Position::from_annotations(told, new.size).unwrap(),
            Format::Estargz => Position {
                digest: estargz::table_digest(told),
                ..from_footer
            },
        };
        assert!(position.digest.is_some());
        assert_eq!(from_footer.table, position.table);
        let table = position.read(&file).unwrap();
        position.json(&table).unwrap();
        let repository = ("r.example", "a");
        let local = store.local_pieces(&table, &position, repository).unwrap();
        // What is here is what is there.
        let mut here = 0;
        for piece in &local {
            let length = usize::try_from(piece.length).unwrap();
            let (mut ours, mut theirs) = (vec![0; length], vec![0; length]);
            piece.file.read_exact_at(&mut ours, piece.offset).unwrap();
            file.read_exact_at(&mut theirs, piece.at).unwrap();
            assert!(ours == theirs, "{} bytes at {}", piece.length, piece.at);
            here += piece.length;
        }
        let all = position.pieces_end();
        assert!((1..200).contains(&(all - here)), "{here} of {all}");
        assert_eq!(local.len(), 2);
        // Nothing is here of what no blob here has.
        let (_dir, empty) = crate::tests::store();
        let none = empty.local_pieces(&table, &position, repository).unwrap();
        assert!(none.is_empty());
        let error = store
            .local_pieces(b"no table", &position, repository)
            .unwrap_err();
        assert!(error.to_string().contains("table"), "{error}");
    }

    /// Pieces of a blob whose table says `entries`, and is at `table_at`.
    fn pieces(format: Format, entries: &[String], table_at: u64) -> Vec<(u64, u64, Key)> {
        let json = format!("{{\"version\":1,\"entries\":[{}]}}", entries.join(","));
        let table = match format {
            Format::ZstdChunked => zstd::encode_all(json.as_bytes(), 1).unwrap(),
            Format::Estargz => estargz::member_of(&json),
        };
        let position = Position {
            format,
            table: Extent {
                offset: table_at,
                length: table.len() as u64,
                content: 0,
            },
            digest: None,
            split: None,
        };
        let mut found = Vec::new();
        walk(&table, &position, &mut |at, length, key| {
            found.push((at, length, key));
        })
        .unwrap();
        let extents = extents(&table, &position).unwrap();
        assert!(
            found
                .iter()
                .map(|(at, length, _)| (*at, *length))
                .eq(extents)
        );
        found
    }

    /// As stargz-snapshotter writes it: nobody says where a file's content ends.
    #[test]
    fn without_ends_a_piece_goes_on_to_the_next() {
        let file = |name: &str, offset: i64, digest: &str, mode: i64| {
            format!(
                r#"{{"type":"reg","name":"{name}","size":5,"mode":{mode},"offset":{offset},"chunkDigest":"{digest}"}}"#
            )
        };
        let chunk = r#"{"type":"chunk","name":"a","offset":30,"chunkOffset":3,"chunkDigest":"c"}"#;
        let link = r#"{"type":"symlink","name":"l","linkName":"a"}"#;
        let entries = |digest: &str, mode: i64| {
            vec![
                file("a", 10, "a", 0),
                chunk.to_owned(),
                link.to_owned(),
                file("b", 50, digest, mode),
            ]
        };
        let told = pieces(Format::Estargz, &entries("b", 0), 78);
        let extents: Vec<(u64, u64)> = told.iter().map(|piece| (piece.0, piece.1)).collect();
        assert_eq!(extents, [(0, 10), (10, 20), (30, 20), (50, 28)]);
        // Other content, or another header, which is in the piece before.
        for (changed, at) in [(entries("d", 0), 3), (entries("b", 1), 2)] {
            let other = pieces(Format::Estargz, &changed, 78);
            let differ: Vec<usize> = (0..4)
                .filter(|index| told[*index] != other[*index])
                .collect();
            assert_eq!(differ, [at]);
        }
    }

    #[test]
    fn tables_that_contradict_themselves_end_early() {
        let pieces = |entries: &[String], table_at: u64| -> Vec<(u64, u64)> {
            let found = pieces(Format::ZstdChunked, entries, table_at);
            found.iter().map(|(at, length, _)| (*at, *length)).collect()
        };
        let file = |name: &str, offset: i64, end: i64| {
            format!(
                r#"{{"type":"reg","name":"{name}","size":5,"digest":"d","offset":{offset},"endOffset":{end}}}"#
            )
        };
        let chunk = |offset: i64| format!(r#"{{"type":"chunk","name":"a","offset":{offset}}}"#);
        let good = [file("a", 10, 40), chunk(20), file("b", 50, 60)];
        assert_eq!(
            pieces(&good, 78),
            [(0, 10), (10, 10), (20, 20), (40, 10), (50, 10), (60, 10)]
        );
        for (bad, expect) in [
            (vec![chunk(20), file("b", 50, 60)], 0),
            (vec![file("a", 10, 5)], 1),
            (vec![file("a", 10, 40), chunk(50)], 1),
            (vec![file("a", 10, 40), chunk(10)], 1),
            (vec![file("a", 10, 40), chunk(-1)], 1),
            (vec![file("a", 10, 40), file("b", 30, 60)], 2),
            (vec![file("a", 10, i64::MAX), file("b", 30, 60)], 1),
            (vec![file("a", 10, 71)], 1),
            (vec![file("a", 71, 75)], 0),
        ] {
            assert_eq!(pieces(&bad, 78).len(), expect, "{bad:?}");
        }
    }
}
