//! Writes zstd:chunked and eStargz: the tar as one zstd frame, or gzip member, for each piece of a file's content and for what
//! is between files, so that a reader that has most of them already asks for the others alone. Any decompressor reads it as
//! the tar; in eStargz, as one with two entries more (`compress/estargz.rs`).
//!
//! Which pieces there are does not depend on threads, nor does any byte. A tar that a table cannot describe (sparse files,
//! a name twice, names that are not UTF-8, headers of PAX that count for all files; for eStargz also one that has the names of
//! its own entries, or that has not ended where it seemed to) is written without one, as plain zstd or gzip.

use std::collections::VecDeque;
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use libdeflater::Compressor as Deflate;

use super::cut::{Cutter, PIECE_BYTES_MAX, PIECE_BYTES_MIN};
use super::lanes::Lanes;
use super::table::{Entry, Format};
use super::tables::{PieceIndex, Tables};
use super::{Rewritten, deflate, estargz, member};
use crate::layer::entry::Mtime;
use crate::layer::tar::header::{self, BLOCK, Block, checksum_matches, number, padding};
use crate::layer::tar::read::{Kind, Reader};
use crate::oci::time::rfc3339;
use crate::oci::{DiffId, Digest, Hasher};

/// Most bytes of headers between two files' contents that are kept together, and of one entry's headers.
const HEADERS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Frames that may be under way in each thread.
const DEPTH: usize = 8;

/// Zeros that are written at once, where a tar did not end with them.
const ZEROS: [u8; 4096] = [0; 4096];

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
    format: Format,
    level: u8,
    /// Of eStargz: the tar as it is written, and how long it is.
    tar: Option<(Hasher, u64)>,
    /// Whether the entries come that are no part of the tar that is given.
    is_closing: bool,
}

/// What makes a frame or member of bytes.
enum Packer {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(Deflate),
}

impl Packer {
    fn new(format: Format, level: u8) -> io::Result<Packer> {
        Ok(match format {
            Format::ZstdChunked => {
                let mut compressor = zstd::bulk::Compressor::new(i32::from(level))?;
                compressor.include_checksum(true)?;
                Packer::Zstd(compressor)
            }
            Format::Estargz => Packer::Gzip(deflate(level)?),
        })
    }

    fn pack(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Packer::Zstd(compressor) => compressor.compress(bytes),
            Packer::Gzip(deflate) => Ok(member(deflate, bytes)),
        }
    }
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

/// What the next byte of the tar is.
enum Place {
    Headers(Headers),
    Content(Box<Content>),
    /// Of eStargz: behind the last entry, and so many zeros, which are not written if nothing else comes.
    End {
        zeros: u64,
    },
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
    pub(super) fn start(
        out: W,
        format: Format,
        level: u8,
        threads: usize,
    ) -> io::Result<Chunked<W>> {
        let lanes = Lanes::start("pieces", threads, DEPTH, || {
            let mut packer = Packer::new(format, level)?;
            Ok(move |job: &Job| {
                Ok(Frame {
                    bytes: packer.pack(&job.bytes)?,
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
            table: Some(Tables::new(format, level)?),
            format,
            level,
            tar: (format == Format::Estargz).then(|| (Hasher::sha256(), 0)),
            is_closing: false,
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
                Place::End { zeros } => {
                    let count = bytes.iter().take_while(|byte| **byte == 0).count();
                    *zeros += count as u64;
                    if count < bytes.len() {
                        self.give_up()?;
                    }
                    count
                }
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
                let is_taken = self.format == Format::Estargz
                    && !self.is_closing
                    && estargz::is_reserved(name.as_bytes());
                if is_taken || !table.add(*entry) {
                    return self.give_up();
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
            Next::End if self.format == Format::ZstdChunked => {
                self.place = Place::Rest { told };
                Ok(())
            }
            Next::End if headers.block == headers.start => {
                self.pending.truncate(headers.start);
                self.place = Place::End {
                    zeros: BLOCK as u64,
                };
                Ok(())
            }
            Next::End | Next::Unfit => self.give_up(),
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
            self.give_up()?;
        }
        Ok(taken)
    }

    /// There will be no table.
    fn give_up(&mut self) -> io::Result<()> {
        self.table = None;
        let zeros = match self.place {
            Place::End { zeros } => zeros,
            _ => 0,
        };
        self.place = Place::Rest { told: 0 };
        let mut left = zeros;
        while left > 0 {
            let count = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.write(&ZEROS[..count])?;
            left -= count as u64;
        }
        Ok(())
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
        if let Some((hasher, bytes)) = &mut self.tar {
            hasher.update(&self.pending);
            *bytes += self.pending.len() as u64;
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
            table.place(
                &PieceIndex { file, piece },
                offset,
                self.written,
                frame.digest,
            );
        }
        job.bytes.clear();
        self.spare.push(job.bytes);
        Ok(true)
    }

    /// Completes the stream; what the tar in it is, where it is not the one that was given.
    pub(super) fn finish(mut self) -> io::Result<(W, Option<Rewritten>)> {
        let has_ended = match &self.place {
            // An archive without closing blocks.
            Place::Headers(headers) => self.pending.len() == headers.start,
            Place::End { .. } => true,
            _ => false,
        };
        match self.format {
            Format::ZstdChunked => self.finish_zstd()?,
            Format::Estargz if has_ended && self.table.is_some() => self.finish_estargz()?,
            Format::Estargz => {
                self.give_up()?;
                self.flush()?;
            }
        }
        let rewritten = self.tar.map(|(hasher, bytes)| Rewritten {
            diff_id: DiffId(hasher.finish()),
            bytes,
        });
        Ok((self.out, rewritten))
    }

    fn finish_zstd(&mut self) -> io::Result<()> {
        if matches!(self.place, Place::Content(_)) {
            // The tar was cut: the caller finds that out by its digest, if it was not meant to be so.
            self.give_up()?;
        }
        if let Place::Headers(headers) = &self.place {
            // An archive without closing blocks, or with part of a header behind it.
            self.place = Place::Rest { told: headers.told };
        }
        self.flush()?;
        if let Some(table) = self.table.take()
            && let Some(frames) = table.frames(self.written, self.level)?
        {
            self.out.write_all(&frames)?;
        }
        Ok(())
    }

    fn finish_estargz(&mut self) -> io::Result<()> {
        while self.receive()? {}
        if !self.table.as_ref().is_some_and(Tables::fits) {
            self.give_up()?;
            return self.flush();
        }
        self.place = Place::Headers(Headers::after(self.pending.len(), 0));
        self.is_closing = true;
        let content = estargz::LANDMARK_CONTENT;
        let size = content.len() as u64;
        self.write(&estargz::entry_header(estargz::LANDMARK, size))?;
        self.write(content)?;
        // The table begins a member.
        self.pending.resize(padding(size), 0);
        self.send(None)?;
        while self.receive()? {}
        let Some(table) = self.table.take() else {
            return Ok(());
        };
        let offset = self.written;
        self.pending = estargz::last_entry(&table.json()?);
        self.send(None)?;
        while self.receive()? {}
        self.out.write_all(&estargz::footer(offset))
    }

    /// Writes all that is under way.
    fn flush(&mut self) -> io::Result<()> {
        // No frame at all is no stream.
        let is_empty = self.written == 0 && self.marks.is_empty();
        if !self.pending.is_empty() || is_empty {
            self.send_between()?;
        }
        while self.receive()? {}
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::cut::tests::noise;
    use super::super::table::{Extent, Position, read_entries};
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
        packed_as(Compression::ZSTD_CHUNKED, tar, at_once, threads).0
    }

    fn packed_as(
        compression: Compression,
        tar: &[u8],
        at_once: usize,
        threads: usize,
    ) -> (Vec<u8>, Option<Rewritten>) {
        let mut chunked = compressor(Vec::new(), compression, threads).unwrap();
        for bytes in tar.chunks(at_once) {
            chunked.write_all(bytes).unwrap();
        }
        chunked.finish_telling().unwrap()
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
        let json = position.json(part(blob, position.table)).unwrap();
        read_entries(&json, &mut |entry| entries.push(entry)).unwrap();
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
    fn estargz_is_the_same_tar_with_two_entries_more() {
        let tar = sample();
        let (blob, rewritten) = packed_as(Compression::ESTARGZ, &tar, tar.len(), 1);
        for (at_once, threads) in [(1, 1), (511, 3), (70_001, 2)] {
            assert!(packed_as(Compression::ESTARGZ, &tar, at_once, threads).0 == blob);
        }
        let inside = unpacked(&blob);
        let content = &tar[..tar.len() - 1024];
        assert!(inside.starts_with(content));
        let rewritten = rewritten.unwrap();
        assert_eq!(rewritten.bytes, inside.len() as u64);
        assert_eq!(rewritten.diff_id, DiffId(Digest::of(&inside)));
        let mut reader = tar::Archive::new(&inside[..]);
        let names = reader.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            String::from_utf8(entry.path_bytes().into_owned()).unwrap()
        });
        let names: Vec<String> = names.collect();
        let (added, own) = (&names[names.len() - 2..], &names[..names.len() - 2]);
        assert_eq!(added, [".no.prefetch.landmark", "stargz.index.json"]);
        assert_eq!(own.len(), 9);

        let position = position(&blob).unwrap();
        assert_eq!(position.format, Format::Estargz);
        // A member begins at each offset, and the first of its bytes are the piece's.
        let entries = entries(&blob);
        let told: Vec<&str> = entries.iter().map(|entry| &entry.name[..]).collect();
        let without_chunks = entries.iter().filter(|entry| entry.kind != "chunk");
        let names: Vec<&str> = without_chunks.map(|entry| &entry.name[..]).collect();
        let expected = own.iter().map(String::as_str);
        let expected: Vec<&str> = expected.chain([".no.prefetch.landmark"]).collect();
        assert_eq!(names, expected);
        let mut pieces = 0;
        for (index, entry) in entries.iter().enumerate() {
            if entry.offset == 0 {
                assert!(entry.size == 0 || entry.kind != "reg", "{}", told[index]);
                continue;
            }
            pieces += 1;
            let is_last = entries
                .get(index + 1)
                .is_none_or(|next| next.kind != "chunk");
            let size = entries[..=index].iter().rfind(|entry| entry.kind == "reg");
            let length = match entry.chunk_size {
                0 => size.unwrap().size - entry.chunk_offset,
                size => size,
            };
            assert_eq!(is_last, entry.chunk_size == 0);
            let from = usize::try_from(entry.offset).unwrap();
            assert_eq!(blob[from..from + 2], [0x1f, 0x8b]);
            let mut content = Vec::new();
            flate2::bufread::GzDecoder::new(&blob[from..])
                .read_to_end(&mut content)
                .unwrap();
            assert_eq!(content.len() as i64, length);
            assert_eq!(Digest::of(&content).to_string(), entry.chunk_digest);
        }
        assert!(pieces > 10, "{pieces}");
        // It cannot be told twice; nor with what has these names for another reason.
        let (again, rewritten) = packed_as(Compression::ESTARGZ, &inside, 70_001, 2);
        assert!(super::super::tests::is_only_gzip(&again, &inside));
        assert_eq!(rewritten.unwrap().diff_id, DiffId(Digest::of(&inside)));
    }

    /// Whatever is not told is the tar as it was.
    #[test]
    fn what_estargz_cannot_describe_is_gzip() {
        let sample = sample();
        let no_tar = noise(3_000_000, 7);
        let mut unnamed = sample.clone();
        unnamed[0] = 0xff;
        let zeros = vec![0; 100_000];
        let (header, cut, behind) = (
            &sample[..sample.len() - 1024 - 300],
            &sample[..sample.len() / 2],
            [&sample[..], &zeros, b"more", &zeros].concat(),
        );
        for tar in [&no_tar[..], &unnamed, header, cut, &behind] {
            let (blob, rewritten) = packed_as(Compression::ESTARGZ, tar, 70_001, 2);
            assert!(super::super::tests::is_only_gzip(&blob, tar));
            assert_eq!(rewritten.unwrap().diff_id, DiffId(Digest::of(tar)));
        }
        // However many zeros end it, or none.
        let long = [&sample[..], &zeros].concat();
        let open = &sample[..sample.len() - 1024];
        let packed = |tar: &[u8]| packed_as(Compression::ESTARGZ, tar, 70_001, 2).0;
        assert!(packed(&long) == packed(&sample) && packed(open) == packed(&sample));
        assert!(position(&packed(b"")).is_some());
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
        let mut chunked = Chunked::start(io::sink(), Format::ZstdChunked, 1, 2).unwrap();
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
