//! The tables that are written: gathered while pieces go out, and made into bytes at the end.

use std::collections::HashSet;
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::table::{
    Entry, Extent, Format, HEAD_BYTES, SPLIT_BYTES_MAX, TABLE_BYTES_MAX, Table, footer_frame,
    skipped,
};
use crate::oci::Digest;

/// Bytes that an entry of the table has at the least, besides names.
const ENTRY_BYTES: usize = 60;

/// Most bytes that eStargz's landmark takes in the table.
const LANDMARK_BYTES: u64 = 1024;

/// Lines of a tar-split that stand for a file's content, and for bytes that it has itself.
const FILE: u8 = 1;
const SEGMENT: u8 = 2;

/// What is written behind the frames or members.
pub(super) struct Tables {
    format: Format,
    files: Vec<FileEntry>,
    /// Names so far, hashed: a tar-split cannot have one twice, and readers of tables go by names.
    names: HashSet<[u8; 16]>,
    /// Bytes that the table's JSON has at the least.
    bytes: u64,
    /// Of zstd:chunked alone.
    split: Option<zstd::Encoder<'static, Vec<u8>>>,
    split_bytes: u64,
    lines: u64,
}

/// Which piece of which file a frame is.
pub(super) struct PieceIndex {
    pub(super) file: usize,
    pub(super) piece: usize,
}

/// An entry of the table and the pieces of its file.
struct FileEntry {
    entry: Entry,
    pieces: Vec<Piece>,
}

/// A piece of a file: where its frame is, and what it holds.
struct Piece {
    offset: u64,
    end: u64,
    bytes: u64,
    digest: Option<Digest>,
}

/// A line of a tar-split.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    payload: Option<String>,
    position: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's calling convention"
)]
fn is_zero(size: &u64) -> bool {
    *size == 0
}

impl Tables {
    pub(super) fn new(format: Format, level: u8) -> io::Result<Tables> {
        let split = match format {
            Format::ZstdChunked => Some(zstd::Encoder::new(Vec::new(), i32::from(level))?),
            Format::Estargz => None,
        };
        Ok(Tables {
            format,
            files: Vec::new(),
            names: HashSet::new(),
            bytes: 0,
            split,
            split_bytes: 0,
            lines: 0,
        })
    }

    /// Whether readers would take it so far.
    pub(super) fn is_small(&self) -> bool {
        self.bytes <= TABLE_BYTES_MAX && self.split_bytes <= SPLIT_BYTES_MAX
    }

    /// Adds an entry; `false` if it cannot be had.
    pub(super) fn add(&mut self, entry: Entry) -> bool {
        let mut hasher = blake3::Hasher::new();
        for component in entry.name.split('/') {
            match component {
                "" | "." => {}
                ".." => return false,
                name => {
                    hasher.update(name.as_bytes());
                    hasher.update(b"/");
                }
            }
        }
        let name = hasher.finalize();
        let name = name.as_bytes().first_chunk().expect("16 of 32 bytes");
        self.bytes += (entry.name.len() + entry.link_name.len() + ENTRY_BYTES) as u64;
        let is_new = self.names.insert(*name);
        self.files.push(FileEntry {
            entry,
            pieces: Vec::new(),
        });
        is_new && self.is_small()
    }

    /// Adds a piece to the last file.
    pub(super) fn piece(&mut self, bytes: u64) -> PieceIndex {
        let file = self.files.len() - 1;
        let FileEntry { entry, pieces } = &mut self.files[file];
        self.bytes += (entry.name.len() + ENTRY_BYTES) as u64;
        pieces.push(Piece {
            offset: 0,
            end: 0,
            bytes,
            digest: None,
        });
        let piece = pieces.len() - 1;
        PieceIndex { file, piece }
    }

    /// Ends the last file. Without a `digest` it is that of its one piece.
    pub(super) fn complete(
        &mut self,
        size: u64,
        crc: u64,
        digest: Option<Digest>,
    ) -> io::Result<()> {
        let file = self.files.len() - 1;
        let entry = &mut self.files[file].entry;
        entry.digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        let name = std::mem::take(&mut entry.name);
        self.content(&name, size, Some(crc))?;
        self.files[file].entry.name = name;
        Ok(())
    }

    /// Tells the tar-split of a file's content.
    pub(super) fn content(&mut self, name: &str, size: u64, crc: Option<u64>) -> io::Result<()> {
        let payload = crc.map(|crc| BASE64.encode(crc.to_be_bytes()));
        self.line(FILE, name, size, payload)
    }

    /// Tells the tar-split of bytes that are no file's content.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.line(SEGMENT, "", 0, Some(BASE64.encode(bytes)))
    }

    fn line(&mut self, kind: u8, name: &str, size: u64, payload: Option<String>) -> io::Result<()> {
        let Some(split) = &mut self.split else {
            return Ok(());
        };
        let line = Line {
            kind,
            name,
            size,
            payload,
            position: self.lines,
        };
        self.lines += 1;
        let mut json = serde_json::to_vec(&line)?;
        json.push(b'\n');
        self.split_bytes += json.len() as u64;
        split.write_all(&json)
    }

    /// Tells where in the blob a piece is, and what it holds.
    pub(super) fn place(
        &mut self,
        index: &PieceIndex,
        offset: u64,
        end: u64,
        digest: Option<Digest>,
    ) {
        let piece = &mut self.files[index.file].pieces[index.piece];
        (piece.offset, piece.end, piece.digest) = (offset, end, digest);
    }

    /// Whether readers would take the table, with one small file more.
    pub(super) fn fits(&self) -> bool {
        let mut counting = Counting(io::sink(), 0);
        let table = self.table(String::new());
        let written = serde_json::to_writer(&mut counting, &table);
        written.is_ok() && counting.1 + LANDMARK_BYTES <= TABLE_BYTES_MAX
    }

    /// The table's JSON.
    pub(super) fn json(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(&self.table(String::new()))?)
    }

    fn table(&self, split_digest: String) -> Table<Entries<'_>> {
        Table {
            version: 1,
            entries: Entries(&self.files, self.format),
            split_digest,
        }
    }

    /// All that comes behind frames of `offset` bytes; `None` if readers would not take it.
    pub(super) fn frames(mut self, offset: u64, level: u8) -> io::Result<Option<Vec<u8>>> {
        let Some(split) = self.split.take() else {
            return Ok(None);
        };
        let split = split.finish()?;
        let table = self.table(Digest::of(&split).to_string());
        let encoder = zstd::Encoder::new(Vec::new(), i32::from(level))?;
        let mut json = Counting(encoder, 0);
        serde_json::to_writer(&mut json, &table)?;
        let Counting(encoder, content) = json;
        let table = encoder.finish()?;
        let table_at = Extent {
            offset: offset + HEAD_BYTES,
            length: table.len() as u64,
            content,
        };
        let split_at = Extent {
            offset: table_at.offset + table_at.length + HEAD_BYTES,
            length: split.len() as u64,
            content: self.split_bytes,
        };
        let (Some(table), Some(split)) = (skipped(&table), skipped(&split)) else {
            return Ok(None);
        };
        if content > TABLE_BYTES_MAX || self.split_bytes > SPLIT_BYTES_MAX {
            return Ok(None);
        }
        Ok(Some(
            [table, split, footer_frame(&table_at, &split_at)].concat(),
        ))
    }
}

/// The table's entries, made as they are written.
struct Entries<'a>(&'a [FileEntry], Format);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for FileEntry { entry, pieces } in self.0 {
            let Some((first, more)) = pieces.split_first() else {
                list.serialize_element(entry)?;
                continue;
            };
            let mut entry = entry.clone();
            if entry.digest.is_empty() {
                entry.digest = first.digest().unwrap_or_default();
            }
            entry.offset = signed(first.offset);
            entry.end_offset = signed(pieces[pieces.len() - 1].end);
            if !more.is_empty() {
                entry.chunk_size = signed(first.bytes);
            }
            let is_estargz = self.1 == Format::Estargz;
            if !more.is_empty() || is_estargz {
                entry.chunk_digest = first.digest().unwrap_or_default();
            }
            list.serialize_element(&entry)?;
            let mut chunk_offset = first.bytes;
            for (index, piece) in more.iter().enumerate() {
                // eStargz leaves the last one's size out.
                let is_last = is_estargz && index + 1 == more.len();
                list.serialize_element(&Entry {
                    kind: "chunk".to_owned(),
                    name: entry.name.clone(),
                    offset: signed(piece.offset),
                    chunk_size: if is_last { 0 } else { signed(piece.bytes) },
                    chunk_offset: signed(chunk_offset),
                    chunk_digest: piece.digest().unwrap_or_default(),
                    ..Entry::default()
                })?;
                chunk_offset += piece.bytes;
            }
        }
        list.end()
    }
}

impl Piece {
    fn digest(&self) -> Option<String> {
        self.digest.map(|digest| digest.to_string())
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("no file has as many bytes")
}

/// A writer that counts.
struct Counting<W>(W, u64);

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1 += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
