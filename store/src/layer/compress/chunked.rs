//! Writes zstd:chunked: the tar as one zstd frame for each piece of a file's content and for what is between files, so that
//! a reader that has most of them already asks for the others alone. Any zstd decompressor reads it as the tar.
//!
//! Which pieces there are does not depend on threads, nor does any byte. A tar that a table cannot describe (sparse files,
//! a name twice, names that are not UTF-8, headers of PAX that count for all files) is written without one, as plain zstd.

use std::collections::{HashSet, VecDeque};
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::cut::{Cutter, PIECE_BYTES_MAX, PIECE_BYTES_MIN};
use super::lanes::Lanes;
use super::table::{
    Entry, Extent, HEAD_BYTES, SPLIT_BYTES_MAX, TABLE_BYTES_MAX, Table, footer_frame, skipped,
};
use crate::layer::entry::Mtime;
use crate::layer::tar::header::{self, BLOCK, Block, checksum_matches, number, padding};
use crate::layer::tar::read::{Kind, Reader};
use crate::oci::time::rfc3339;
use crate::oci::{Digest, Hasher};

/// Most bytes of headers between two files' contents that are kept together, and of one entry's headers.
const HEADERS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Frames that may be under way in each thread.
const DEPTH: usize = 8;

/// Bytes that an entry of the table has at the least, besides names.
const ENTRY_BYTES: usize = 60;

/// Lines of a tar-split that stand for a file's content, and for bytes that it has itself.
const FILE: u8 = 1;
const SEGMENT: u8 = 2;

pub(super) struct Chunked<W> {
    out: W,
    /// Bytes written to it.
    written: u64,
    lanes: Lanes<Job, io::Result<Frame>>,
    /// Which piece each frame under way is.
    marks: VecDeque<Option<PieceIndex>>,
    spare: Vec<Vec<u8>>,
    place: Place,
    /// Bytes that are in no frame yet: a piece of content, or what is between two files.
    pending: Vec<u8>,
    table: Option<Tables>,
    level: i32,
}

/// What a thread makes a frame of.
struct Job {
    bytes: Vec<u8>,
    /// Whether it is hashed: content is, headers are not.
    is_content: bool,
}

/// A frame as it came from a thread.
struct Frame {
    bytes: Vec<u8>,
    /// Digest of the content.
    digest: Option<Digest>,
}

/// Which piece of which file a frame is.
struct PieceIndex {
    file: usize,
    piece: usize,
}

/// What the next byte of the tar is.
enum Place {
    Headers(Headers),
    Content(Box<Content>),
    /// Behind the archive's end, or of a tar without a table; `told` bytes of what is pending are in the tar-split.
    Rest {
        told: usize,
    },
}

/// The headers before an entry, as offsets in what is pending.
struct Headers {
    /// What is before is in the tar-split.
    told: usize,
    /// Where the entry's first header is, behind the padding of the content before it.
    start: usize,
    /// Where the header block that is waited for is.
    block: usize,
    /// Where that ends, or the content of the extension that it began.
    until: usize,
}

/// The file under way.
struct Content {
    left: u64,
    size: u64,
    cutter: Cutter,
    /// Of all content; `None` for a file that is one piece for sure, which is hashed anyway.
    hasher: Option<Hasher>,
    crc: Crc,
}

impl Headers {
    /// Those behind the first `told` bytes of what is pending and `padding` more that are still to come.
    fn after(told: usize, padding: usize) -> Headers {
        let start = told + padding;
        Headers {
            told,
            start,
            block: start,
            until: start + BLOCK,
        }
    }
}

/// What follows once a header block is complete.
enum Next {
    /// More headers of the same entry.
    Extension { block: usize, until: usize },
    /// An entry, and so many bytes of content.
    Entry(Box<Entry>, u64),
    /// The archive's end.
    End,
    /// What no table can describe.
    Unfit,
}

impl<W: Write> Chunked<W> {
    pub(super) fn start(out: W, level: u8, threads: usize) -> io::Result<Chunked<W>> {
        let level = i32::from(level);
        let lanes = Lanes::start("zstd", threads, DEPTH, || {
            let mut compressor = zstd::bulk::Compressor::new(level)?;
            compressor.include_checksum(true)?;
            Ok(move |job: &Job| {
                Ok(Frame {
                    bytes: compressor.compress(&job.bytes)?,
                    digest: job.is_content.then(|| Digest::of(&job.bytes)),
                })
            })
        })?;
        Ok(Chunked {
            out,
            written: 0,
            lanes,
            marks: VecDeque::new(),
            spare: Vec::new(),
            place: Place::Headers(Headers::after(0, 0)),
            pending: Vec::new(),
            table: Some(Tables::new(level)?),
            level,
        })
    }

    pub(super) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = match &mut self.place {
                Place::Headers(headers) => {
                    let take = bytes.len().min(headers.until - self.pending.len());
                    self.pending.extend_from_slice(&bytes[..take]);
                    if self.pending.len() == headers.until {
                        self.header()?;
                    }
                    take
                }
                Place::Content(_) => self.content(bytes)?,
                Place::Rest { .. } => {
                    let room = PIECE_BYTES_MAX.saturating_sub(self.pending.len());
                    let take = bytes.len().min(room);
                    self.pending.extend_from_slice(&bytes[..take]);
                    if self.pending.len() >= PIECE_BYTES_MAX {
                        self.send_between()?;
                    }
                    take
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// A header block, or an extension's content, is complete.
    fn header(&mut self) -> io::Result<()> {
        let Place::Headers(headers) = &mut self.place else {
            return Ok(());
        };
        let told = headers.told;
        match next(&self.pending, headers) {
            Next::Extension { block, until } => {
                (headers.block, headers.until) = (block, until);
                Ok(())
            }
            Next::Entry(entry, size) => {
                let Some(table) = &mut self.table else {
                    return Ok(());
                };
                table.segment(&self.pending[told..])?;
                let name = entry.name.clone();
                if !table.add(*entry) {
                    self.give_up();
                    return Ok(());
                }
                let length = self.pending.len();
                if size > 0 {
                    self.place = Place::Content(Box::new(Content {
                        left: size,
                        size,
                        cutter: Cutter::default(),
                        hasher: (size > PIECE_BYTES_MIN as u64).then(Hasher::sha256),
                        crc: Crc::new(CrcAlgorithm::Crc64GoIso),
                    }));
                    return self.send(None);
                }
                table.content(&name, 0, None)?;
                self.place = Place::Headers(Headers::after(length, 0));
                if length >= PIECE_BYTES_MAX {
                    self.send(None)?;
                    self.place = Place::Headers(Headers::after(0, 0));
                }
                Ok(())
            }
            Next::End => {
                self.place = Place::Rest { told };
                Ok(())
            }
            Next::Unfit => {
                self.give_up();
                Ok(())
            }
        }
    }

    /// Takes bytes of a file; how many.
    fn content(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (Place::Content(content), Some(table)) = (&mut self.place, &mut self.table) else {
            return Ok(0);
        };
        let most = usize::try_from(content.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (taken, ends) = content.cutter.take(&bytes[..most]);
        let bytes = &bytes[..taken];
        self.pending.extend_from_slice(bytes);
        content.crc.update(bytes);
        if let Some(hasher) = &mut content.hasher {
            hasher.update(bytes);
        }
        content.left -= taken as u64;
        let is_complete = content.left == 0;
        if !ends && !is_complete {
            return Ok(taken);
        }
        let index = table.piece(self.pending.len() as u64);
        if is_complete {
            let (size, crc) = (content.size, content.crc.finalize());
            let digest = content.hasher.take().map(Hasher::finish);
            table.complete(size, crc, digest)?;
            self.place = Place::Headers(Headers::after(0, padding(size)));
        }
        let is_small = table.is_small();
        self.send(Some(index))?;
        if !is_small {
            self.give_up();
        }
        Ok(taken)
    }

    /// There will be no table.
    fn give_up(&mut self) {
        self.table = None;
        self.place = Place::Rest { told: 0 };
    }

    /// Sends what is pending behind the archive's end, or of a tar without a table.
    fn send_between(&mut self) -> io::Result<()> {
        if let (Place::Rest { told }, Some(table)) = (&mut self.place, &mut self.table) {
            table.segment(&self.pending[*told..])?;
            *told = 0;
        }
        self.send(None)
    }

    /// Sends what is pending to be compressed.
    fn send(&mut self, piece: Option<PieceIndex>) -> io::Result<()> {
        if self.lanes.is_full() {
            self.receive()?;
        }
        let spare = self.spare.pop().unwrap_or_default();
        let job = Job {
            bytes: std::mem::replace(&mut self.pending, spare),
            is_content: piece.is_some(),
        };
        self.lanes.send(job)?;
        self.marks.push_back(piece);
        Ok(())
    }

    /// Writes the oldest frame under way; whether there was one.
    fn receive(&mut self) -> io::Result<bool> {
        let (Some((mut job, frame)), Some(mark)) = (self.lanes.receive()?, self.marks.pop_front())
        else {
            return Ok(false);
        };
        let frame = frame?;
        self.out.write_all(&frame.bytes)?;
        let offset = self.written;
        self.written += frame.bytes.len() as u64;
        if let (Some(table), Some(PieceIndex { file, piece })) = (&mut self.table, mark) {
            let piece = &mut table.files[file].pieces[piece];
            (piece.offset, piece.end, piece.digest) = (offset, self.written, frame.digest);
        }
        job.bytes.clear();
        self.spare.push(job.bytes);
        Ok(true)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        if matches!(self.place, Place::Content(_)) {
            // The tar was cut: the caller finds that out by its digest, if it was not meant to be so.
            self.give_up();
        }
        if let Place::Headers(headers) = &self.place {
            // An archive without closing blocks, or with part of a header behind it.
            self.place = Place::Rest { told: headers.told };
        }
        // No frame at all is no zstd stream.
        let is_empty = self.written == 0 && self.marks.is_empty();
        if !self.pending.is_empty() || is_empty {
            self.send_between()?;
        }
        while self.receive()? {}
        if let Some(table) = self.table.take()
            && let Some(frames) = table.finish(self.written, self.level)?
        {
            self.out.write_all(&frames)?;
        }
        Ok(self.out)
    }
}

/// What a complete header block in `pending` says.
fn next(pending: &[u8], headers: &Headers) -> Next {
    let Some(block) = pending.get(headers.block..headers.block + BLOCK) else {
        return Next::Unfit;
    };
    let block: &Block = block.try_into().expect("a slice of that length");
    if block.iter().all(|byte| *byte == 0) {
        return Next::End;
    }
    let size = number(&block[header::SIZE]).and_then(|size| u64::try_from(size).ok());
    let Some(size) = size.filter(|_| checksum_matches(block)) else {
        return Next::Unfit;
    };
    match block[header::TYPE] {
        b'x' | b'X' | b'L' | b'K' => {
            let behind = (headers.block + BLOCK + padding(size)) as u64;
            let end = behind
                .checked_add(size)
                .and_then(|end| usize::try_from(end).ok());
            match end.filter(|end| *end - headers.start <= HEADERS_BYTES_MAX) {
                // First its content, then the next block.
                Some(end) if pending.len() < end => Next::Extension {
                    block: headers.block,
                    until: end,
                },
                Some(end) => Next::Extension {
                    block: end,
                    until: end + BLOCK,
                },
                None => Next::Unfit,
            }
        }
        b'0'..=b'7' | 0 => entry(&pending[headers.start..]).unwrap_or(Next::Unfit),
        _ => Next::Unfit,
    }
}

/// The entry whose headers these are; `None` if a table cannot have it.
fn entry(headers: &[u8]) -> Option<Next> {
    let mut reader = Reader::new(headers);
    let found = reader.next_entry().ok()??;
    let size = reader.content_left();
    let kind = match found.kind {
        Kind::File => "reg",
        Kind::HardLink => "hardlink",
        Kind::Symlink => "symlink",
        Kind::Char => "char",
        Kind::BlockDevice => "block",
        Kind::Directory => "dir",
        Kind::Fifo => "fifo",
    };
    if found.sparse.is_some() || size > 0 && found.kind != Kind::File {
        return None;
    }
    let text = |bytes: &[u8]| str::from_utf8(bytes).ok().map(str::to_owned);
    let link = match found.kind {
        Kind::HardLink | Kind::Symlink => text(&found.link)?,
        _ => String::new(),
    };
    let xattrs = &found.metadata.xattrs;
    let xattrs = xattrs
        .iter()
        .map(|(name, value)| Some((text(name)?, BASE64.encode(value))));
    let entry = Entry {
        kind: kind.to_owned(),
        name: text(&found.path)?,
        link_name: link,
        mode: found.metadata.mode.into(),
        size: size.try_into().ok()?,
        uid: found.metadata.uid.into(),
        gid: found.metadata.gid.into(),
        mtime: timestamp(found.metadata.mtime)?,
        dev_major: found.device.0.into(),
        dev_minor: found.device.1.into(),
        xattrs: xattrs.collect::<Option<_>>()?,
        ..Entry::default()
    };
    Some(Next::Entry(Box::new(entry), size))
}

/// As Go writes times: no zeros behind the fraction; `None` for years of which it does not.
fn timestamp(time: Mtime) -> Option<String> {
    // The years 0 to 9999.
    if !(-62_167_219_200..253_402_300_800).contains(&time.seconds) {
        return None;
    }
    let whole = rfc3339(time.seconds);
    if time.nanos == 0 {
        return Some(whole);
    }
    let fraction = format!("{:09}", time.nanos);
    Some(whole.replace('Z', &format!(".{}Z", fraction.trim_end_matches('0'))))
}

/// What is written behind the frames.
struct Tables {
    files: Vec<FileEntry>,
    /// Names so far, hashed: a tar-split cannot have one twice.
    names: HashSet<[u8; 16]>,
    /// Bytes that the table's JSON has at the least.
    bytes: u64,
    split: zstd::Encoder<'static, Vec<u8>>,
    split_bytes: u64,
    lines: u64,
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
    fn new(level: i32) -> io::Result<Tables> {
        Ok(Tables {
            files: Vec::new(),
            names: HashSet::new(),
            bytes: 0,
            split: zstd::Encoder::new(Vec::new(), level)?,
            split_bytes: 0,
            lines: 0,
        })
    }

    /// Whether readers would take it so far.
    fn is_small(&self) -> bool {
        self.bytes <= TABLE_BYTES_MAX && self.split_bytes <= SPLIT_BYTES_MAX
    }

    /// Adds an entry; `false` if it cannot be had.
    fn add(&mut self, entry: Entry) -> bool {
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
    fn piece(&mut self, bytes: u64) -> PieceIndex {
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
    fn complete(&mut self, size: u64, crc: u64, digest: Option<Digest>) -> io::Result<()> {
        let file = self.files.len() - 1;
        let entry = &mut self.files[file].entry;
        entry.digest = digest.map(|digest| digest.to_string()).unwrap_or_default();
        let name = std::mem::take(&mut entry.name);
        self.content(&name, size, Some(crc))?;
        self.files[file].entry.name = name;
        Ok(())
    }

    /// Tells the tar-split of a file's content.
    fn content(&mut self, name: &str, size: u64, crc: Option<u64>) -> io::Result<()> {
        let payload = crc.map(|crc| BASE64.encode(crc.to_be_bytes()));
        self.line(FILE, name, size, payload)
    }

    /// Tells the tar-split of bytes that are no file's content.
    fn segment(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.line(SEGMENT, "", 0, Some(BASE64.encode(bytes)))
    }

    fn line(&mut self, kind: u8, name: &str, size: u64, payload: Option<String>) -> io::Result<()> {
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
        self.split.write_all(&json)
    }

    /// All that comes behind frames of `offset` bytes; `None` if readers would not take it.
    fn finish(self, offset: u64, level: i32) -> io::Result<Option<Vec<u8>>> {
        let split = self.split.finish()?;
        let table = Table {
            version: 1,
            entries: Entries(&self.files),
            split_digest: Digest::of(&split).to_string(),
        };
        let encoder = zstd::Encoder::new(Vec::new(), level)?;
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
struct Entries<'a>(&'a [FileEntry]);

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
                entry.chunk_digest = first.digest().unwrap_or_default();
            }
            list.serialize_element(&entry)?;
            let mut chunk_offset = first.bytes;
            for piece in more {
                list.serialize_element(&Entry {
                    kind: "chunk".to_owned(),
                    name: entry.name.clone(),
                    offset: signed(piece.offset),
                    chunk_size: signed(piece.bytes),
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::cut::tests::noise;
    use super::super::table::{Position, read_entries};
    use super::super::{Compression, compressor, decompressor};
    use super::*;

    /// A tar of what a table can describe, written by another's hand.
    fn sample() -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: tar::EntryType, content: &[u8], link: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o640);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(1_700_000_000);
            header.set_size(content.len() as u64);
            if link.is_empty() {
                tar.append_data(&mut header, path, content).unwrap();
            } else {
                tar.append_link(&mut header, path, link).unwrap();
            }
        };
        add("dir/", tar::EntryType::Directory, b"", "");
        add("dir/small", tar::EntryType::Regular, b"small", "");
        add("dir/empty", tar::EntryType::Regular, b"", "");
        add(
            "dir/large",
            tar::EntryType::Regular,
            &noise(1_000_000, 7),
            "",
        );
        let long = format!("dir/{}", "long".repeat(60));
        add(&long, tar::EntryType::Regular, &[0; 20_000], "");
        add("dir/hard", tar::EntryType::Link, b"", &long);
        add("dir/soft", tar::EntryType::Symlink, b"", "small");
        add("dir/fifo", tar::EntryType::Fifo, b"", "");
        tar.append_pax_extensions([("SCHILY.xattr.user.a", &b"b\0"[..]), ("mtime", b"1.25")])
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("last").unwrap();
        header.set_size(3);
        header.set_cksum();
        tar.append(&header, &b"end"[..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn packed(tar: &[u8], at_once: usize, threads: usize) -> Vec<u8> {
        let mut chunked = compressor(Vec::new(), Compression::ZSTD_CHUNKED, threads).unwrap();
        for bytes in tar.chunks(at_once) {
            chunked.write_all(bytes).unwrap();
        }
        chunked.finish().unwrap()
    }

    fn position(blob: &[u8]) -> Option<Position> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(blob).unwrap();
        Position::from_footer(&file, blob.len() as u64).unwrap()
    }

    fn part(blob: &[u8], extent: Extent) -> &[u8] {
        let start = usize::try_from(extent.offset).unwrap();
        &blob[start..start + usize::try_from(extent.length).unwrap()]
    }

    fn entries(blob: &[u8]) -> Vec<Entry> {
        let position = position(blob).unwrap();
        let mut entries = Vec::new();
        let table = part(blob, position.table);
        read_entries(table, &mut |entry| entries.push(entry)).unwrap();
        entries
    }

    fn unpacked(blob: &[u8]) -> Vec<u8> {
        let mut tar = Vec::new();
        decompressor(blob).unwrap().read_to_end(&mut tar).unwrap();
        tar
    }

    #[test]
    fn the_same_bytes_however_they_come() {
        let tar = sample();
        let blob = packed(&tar, tar.len(), 1);
        assert!(unpacked(&blob) == tar);
        for (at_once, threads) in [(1, 1), (511, 3), (70_001, 2)] {
            assert!(packed(&tar, at_once, threads) == blob, "{at_once}");
        }
    }

    #[test]
    fn the_table_says_where_each_piece_is() {
        let tar = sample();
        let blob = packed(&tar, tar.len(), 2);
        let mut contents = Vec::new();
        let entries = entries(&blob);
        for (index, entry) in entries.iter().enumerate() {
            if entry.end_offset == 0 && entry.kind != "chunk" {
                continue;
            }
            let next = entries.get(index + 1).filter(|next| next.kind == "chunk");
            let reg = entries[..=index].iter().rfind(|entry| entry.kind == "reg");
            let end = next.map_or(reg.unwrap().end_offset, |next| next.offset);
            let extent = Extent {
                offset: entry.offset.try_into().unwrap(),
                length: (end - entry.offset).try_into().unwrap(),
                content: 0,
            };
            let content = zstd::decode_all(part(&blob, extent)).unwrap();
            let digest = Digest::of(&content).to_string();
            if entry.chunk_size == 0 {
                assert_eq!(digest, entry.digest);
            } else {
                assert_eq!(content.len() as i64, entry.chunk_size);
                assert_eq!(digest, entry.chunk_digest);
            }
            contents.push((entry.kind.clone(), entry.chunk_offset, content));
        }
        assert_eq!(contents[0].2, b"small");
        let large: Vec<_> = contents[1..contents.len() - 2].iter().collect();
        assert!(large.len() > 5 && large[1..].iter().all(|(kind, ..)| kind == "chunk"));
        let mut whole = Vec::new();
        for (_, offset, content) in large {
            assert_eq!(*offset, whole.len() as i64);
            whole.extend_from_slice(content);
        }
        assert!(whole == noise(1_000_000, 7));
        let large = entries.iter().find(|entry| entry.name == "dir/large");
        assert_eq!(large.unwrap().digest, Digest::of(&whole).to_string());

        let told: Vec<String> = entries
            .iter()
            .filter(|entry| entry.kind != "chunk")
            .map(|e| {
                format!(
                    "{} {} {} {} {}",
                    e.kind,
                    e.name.len(),
                    e.link_name,
                    e.size,
                    e.mtime
                )
            })
            .collect();
        let expect = [
            "dir 4  0 2023-11-14T22:13:20Z",
            "reg 9  5 2023-11-14T22:13:20Z",
            "reg 9  0 2023-11-14T22:13:20Z",
            "reg 9  1000000 2023-11-14T22:13:20Z",
            "reg 244  20000 2023-11-14T22:13:20Z",
            &format!(
                "hardlink 8 dir/{} 0 2023-11-14T22:13:20Z",
                "long".repeat(60)
            ),
            "symlink 8 small 0 2023-11-14T22:13:20Z",
            "fifo 8  0 2023-11-14T22:13:20Z",
            "reg 4  3 1970-01-01T00:00:01.25Z",
        ];
        assert_eq!(told, expect);
        let last = entries.last().unwrap();
        assert_eq!(last.xattrs["user.a"], "YgA=");
        assert_eq!(
            (entries[0].mode, entries[0].uid, entries[0].gid),
            (0o640, 7, 8)
        );
    }

    /// Another's reader of the format puts the tar together from the table, the tar-split and the pieces.
    #[test]
    fn another_reader_gets_the_tar() {
        let tar = sample();
        let blob = packed(&tar, tar.len(), 2);
        let suffix = &blob[blob.len() - 100..];
        let found = zstd_chunked::MetadataReferences::from_footer(suffix).unwrap();
        let range = |range: &std::ops::Range<u64>| {
            &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
        };
        let manifest = range(&found.manifest.range);
        let split = range(&found.tarsplit.range);
        for (bytes, told) in [
            (manifest, found.manifest.uncompressed_size),
            (split, found.tarsplit.uncompressed_size),
        ] {
            assert_eq!(zstd::decode_all(bytes).unwrap().len() as u64, told);
        }
        let stream = zstd_chunked::Stream::new_from_frames(manifest, split).unwrap();
        let mut assembled = Vec::new();
        stream
            .write_to(&mut assembled, |content| {
                let bytes = zstd::decode_all(range(&content.range))?;
                assert_eq!(Digest::of(&bytes).to_string(), content.digest);
                Ok(bytes)
            })
            .unwrap();
        assert!(assembled == tar);
        // The checksum is what Go's crc64.ISO, which tar-split uses, says of `small`.
        let lines = String::from_utf8(zstd::decode_all(split).unwrap()).unwrap();
        assert!(lines.contains(r#"{"type":1,"name":"dir/empty","payload":null,"position":"#));
        let small = lines
            .lines()
            .find(|line| line.contains("dir/small"))
            .unwrap();
        assert_eq!(
            small,
            r#"{"type":1,"name":"dir/small","size":5,"payload":"Pu7kH0xAAAA=","position":3}"#
        );
    }

    #[test]
    fn what_no_table_can_describe_is_zstd_all_the_same() {
        let sample = sample();
        let twice = {
            let mut tar = tar::Builder::new(Vec::new());
            for path in ["a", "./a"] {
                let mut header = tar::Header::new_ustar();
                header.set_size(1);
                tar.append_data(&mut header, path, &b"x"[..]).unwrap();
            }
            tar.into_inner().unwrap()
        };
        let mut unnamed = sample.clone();
        unnamed[0] = 0xff;
        let mut block: Block = unnamed[..BLOCK].try_into().unwrap();
        header::seal(&mut block);
        unnamed[..BLOCK].copy_from_slice(&block);
        let mut global = sample.clone();
        global[header::TYPE] = b'g';
        let mut broken = sample.clone();
        broken[header::CHECKSUM.start] ^= 1;
        let noise = noise(3_000_000, 7);
        for (name, tar) in [
            ("a name twice", &twice[..]),
            ("a name that is not UTF-8", &unnamed),
            ("a global header", &global),
            ("a broken header", &broken),
            ("no tar", &noise),
            ("cut in content", &sample[..sample.len() / 2]),
        ] {
            let blob = packed(tar, 70_001, 2);
            assert!(unpacked(&blob) == tar, "{name}");
            assert!(position(&blob).is_none(), "{name}");
        }
        // No closing blocks, half a header at the end, much behind the end, nothing at all: it has a table.
        let ended = sample.len() - 1024;
        let long = [&sample[..], &vec![0; 3_000_000]].concat();
        for tar in [&sample[..ended], &sample[..600], &long, b""] {
            let blob = packed(tar, 70_001, 2);
            assert!(unpacked(&blob) == tar);
            assert!(position(&blob).is_some());
        }
    }

    #[test]
    fn a_change_leaves_all_other_frames() {
        let old = sample();
        let mut new = old.clone();
        let at = new.windows(5).position(|bytes| bytes == b"small").unwrap();
        let at = at
            + new[at + 1..]
                .windows(5)
                .position(|bytes| bytes == b"small")
                .unwrap()
            + 1;
        new[at] = b'S';
        let (old, new) = (packed(&old, 70_001, 2), packed(&new, 70_001, 2));
        let pieces = |blob: &[u8]| -> Vec<String> {
            let entries = entries(blob);
            let digests = entries.iter().map(|entry| match entry.chunk_size {
                0 => entry.digest.clone(),
                _ => entry.chunk_digest.clone(),
            });
            digests.filter(|digest| !digest.is_empty()).collect()
        };
        let (old, new) = (pieces(&old), pieces(&new));
        assert_eq!(old.len(), new.len());
        let changed = old.iter().zip(&new).filter(|(old, new)| old != new);
        assert_eq!(changed.count(), 1);
    }

    #[test]
    fn memory_does_not_grow_with_a_file() {
        // A gigabyte would not fit in the test's patience; that pieces are bounded is what matters.
        let mut chunked = Chunked::start(io::sink(), 1, 2).unwrap();
        let mut header = [0; BLOCK];
        header[..1].copy_from_slice(b"f");
        header::put_octal(&mut header, header::SIZE, 1 << 32);
        header[header::TYPE] = b'0';
        header[header::MAGIC].copy_from_slice(header::USTAR);
        header::seal(&mut header);
        chunked.write(&header).unwrap();
        for _ in 0..100 {
            chunked.write(&[0; 200_000]).unwrap();
            assert!(chunked.pending.len() <= PIECE_BYTES_MAX);
            assert!(chunked.spare.len() + chunked.marks.len() <= 2 * DEPTH + 1);
        }
    }
}
