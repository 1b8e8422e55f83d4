//! Reading a tar entry by entry: POSIX with PAX, GNU, star and old tars, sparse files of all four kinds.
//!
//! Where readers differ, this one does as Go's `archive/tar`, by which every container engine reads layers. All lengths
//! and counts are bounded before anything is allocated for them.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use super::header::{self, BLOCK, Block, checksum_matches, number, padding, text};
use crate::layer::entry::{Metadata, Mtime, PATH_BYTES_MAX, Xattrs, shown};

/// Longest extension header (PAX or GNU long name), in bytes. Attributes of one file may have 64 KiB each.
const EXTENSION_BYTES_MAX: u64 = 1024 * 1024;

/// Most pieces of one sparse file.
const EXTENTS_MAX: usize = 65_536;

/// Longest chain of extension headers before an entry.
const EXTENSIONS_MAX: usize = 64;

/// Why a tar cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The stream below failed.
    #[error("cannot read the tar stream")]
    Stream {
        /// The cause.
        source: io::Error,
    },
    /// The stream ends in the middle of a header or of an entry's content.
    #[error("the tar ends early, {place}")]
    Truncated {
        /// After what.
        place: String,
    },
    /// A header is not valid.
    #[error("bad tar header at byte {offset}: {problem}")]
    Header {
        /// Offset of the header block in the tar.
        offset: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// An entry asks for more than the limits grant.
    #[error("bad tar entry at byte {offset}: {what} exceeds the limit of {limit}")]
    Limit {
        /// Offset of the header block in the tar.
        offset: u64,
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Hard link to an earlier entry.
    HardLink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    BlockDevice,
    /// Directory.
    Directory,
    /// Named pipe.
    Fifo,
}

/// One entry's header, with its extensions applied.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Offset of its first header block in the tar, for messages.
    pub offset: u64,
    /// Path as written: may be absolute or hold `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Owner, mode, time, attributes.
    pub metadata: Metadata,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Size of a file once unpacked, in bytes.
    pub size: u64,
    /// Where the pieces of a sparse file go, as (offset, length), ascending; their bytes follow one another in the tar.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Reads entries from a tar stream.
#[derive(Debug)]
pub struct Reader<R> {
    stream: R,
    /// Bytes consumed.
    offset: u64,
    /// Content of the current entry not yet read, without padding.
    content: u64,
    padding: u64,
    globals: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What extension headers said about the entry to come.
#[derive(Default)]
struct Extensions {
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU's old sparse map and size come in PAX records that repeat: in order.
    sparse_pairs: Vec<u64>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read + Seek> Reader<R> {
    /// Moves past what is left of the current entry without reading it. That the tar goes on so far is for the caller to
    /// know: a file can be left behind its end.
    ///
    /// # Errors
    /// The stream's.
    pub fn seek_past(&mut self) -> Result<(), ReadError> {
        let left = self.content.saturating_add(self.padding);
        let by = i64::try_from(left).unwrap_or(i64::MAX);
        self.stream
            .seek(SeekFrom::Current(by))
            .map_err(|source| ReadError::Stream { source })?;
        self.offset = self.offset.saturating_add(left);
        self.content = 0;
        self.padding = 0;
        Ok(())
    }
}

impl<R: Read> Reader<R> {
    /// A reader at the start of a tar.
    pub fn new(stream: R) -> Reader<R> {
        Reader {
            stream,
            offset: 0,
            content: 0,
            padding: 0,
            globals: BTreeMap::new(),
        }
    }

    /// The next entry, skipping what is left of the last one; `None` at the end of the archive.
    ///
    /// # Errors
    /// The stream's, a header that is not valid, or a limit exceeded.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        self.skip_content()?;
        let mut extensions = Extensions::default();
        let mut extended = false;
        let first = self.offset;
        for _ in 0..EXTENSIONS_MAX {
            let offset = self.offset;
            let Some(block) = self.header_block()? else {
                if extended {
                    return Err(bad(first, "an extension header with no entry after it"));
                }
                return Ok(None);
            };
            let size = number(&block[header::SIZE])
                .and_then(|size| u64::try_from(size).ok())
                .ok_or_else(|| bad(offset, "the size is not a number"))?;
            match block[header::TYPE] {
                b'x' | b'X' => {
                    let records = self.extension(size)?;
                    parse_pax(&records, offset, |key, value| extensions.record(key, value))?;
                }
                b'g' => {
                    let records = self.extension(size)?;
                    let globals = &mut self.globals;
                    parse_pax(&records, offset, |key, value| {
                        globals.insert(key.to_vec(), value.to_vec());
                        Ok(())
                    })?;
                    // It stands for itself: what came before it belongs to the entry that follows.
                    let held: usize = globals.iter().map(|(k, v)| k.len() + v.len()).sum();
                    if held as u64 > EXTENSION_BYTES_MAX {
                        return Err(limit(offset, "the global header", EXTENSION_BYTES_MAX));
                    }
                }
                b'L' => extensions.long_name = Some(text(&self.extension(size)?).to_vec()),
                b'K' => extensions.long_link = Some(text(&self.extension(size)?).to_vec()),
                // GNU volume label: says nothing about files.
                b'V' => {
                    self.content = size;
                    self.padding = padding(size) as u64;
                    self.skip_content()?;
                    continue;
                }
                _ => return self.entry(&block, first, size, extensions).map(Some),
            }
            extended = block[header::TYPE] != b'g' || extended;
        }
        Err(limit(
            first,
            "the number of extension headers",
            EXTENSIONS_MAX as u64,
        ))
    }

    /// Reads content of the current entry; zero bytes mean that it is complete.
    ///
    /// # Errors
    /// The stream's, or its early end.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let want =
            usize::try_from(self.content).map_or(buffer.len(), |left| left.min(buffer.len()));
        if want == 0 {
            return Ok(0);
        }
        let count = loop {
            match self.stream.read(&mut buffer[..want]) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Stream { source }),
            }
        };
        if count == 0 {
            return Err(ReadError::Truncated {
                place: format!(
                    "{} bytes before the end of an entry",
                    self.content + self.padding
                ),
            });
        }
        self.offset += count as u64;
        self.content -= count as u64;
        Ok(count)
    }

    /// Where in the tar the next byte comes from: after [`Reader::next_entry`], where that entry's content begins.
    pub fn position(&self) -> u64 {
        self.offset
    }

    /// Bytes of content in the tar that the current entry still has.
    pub fn content_left(&self) -> u64 {
        self.content
    }

    /// Reads the stream to its end: what follows the archive counts for digests, but says nothing.
    ///
    /// # Errors
    /// The stream's.
    pub fn drain(mut self) -> Result<(), ReadError> {
        match io::copy(&mut self.stream, &mut io::sink()) {
            Ok(_) => Ok(()),
            Err(source) => Err(ReadError::Stream { source }),
        }
    }

    fn skip_content(&mut self) -> Result<(), ReadError> {
        let left = self.content.saturating_add(self.padding);
        if left == 0 {
            return Ok(());
        }
        let skipped = io::copy(&mut (&mut self.stream).take(left), &mut io::sink())
            .map_err(|source| ReadError::Stream { source })?;
        self.offset += skipped;
        if skipped < left {
            return Err(ReadError::Truncated {
                place: format!("{} bytes before the end of an entry", left - skipped),
            });
        }
        self.content = 0;
        self.padding = 0;
        Ok(())
    }

    /// A header block that is not zero; `None` at the archive's end.
    fn header_block(&mut self) -> Result<Option<Block>, ReadError> {
        let offset = self.offset;
        let Some(block) = self.block()? else {
            // No closing blocks at all: every engine takes that.
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => Err(bad(
                    offset,
                    "one block of zeros where an archive has two at its end",
                )),
                _ => Ok(None),
            };
        }
        if !checksum_matches(&block) {
            return Err(bad(offset, "the checksum does not match"));
        }
        Ok(Some(block))
    }

    /// 512 bytes; `None` at the stream's end.
    fn block(&mut self) -> Result<Option<Block>, ReadError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => {
                    return Err(ReadError::Truncated {
                        place: "in the middle of a header".to_owned(),
                    });
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ReadError::Stream { source }),
            }
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    /// The whole content of an extension header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ReadError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(limit(
                self.offset,
                "an extension header",
                EXTENSION_BYTES_MAX,
            ));
        }
        self.content = size;
        self.padding = padding(size) as u64;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let count = self.read_content(&mut piece)?;
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(&piece[..count]);
        }
        self.skip_content()?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        block: &Block,
        offset: u64,
        header_size: u64,
        mut extensions: Extensions,
    ) -> Result<Entry, ReadError> {
        for (key, value) in &self.globals {
            extensions
                .pax
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        // An empty value takes back what a header said before it; an attribute may well be empty.
        let is_xattr = |key: &[u8]| key.starts_with(b"SCHILY.xattr.");
        extensions
            .pax
            .retain(|key, value| !value.is_empty() || is_xattr(key));
        let pax = &extensions.pax;

        let sparse_name = pax.get(&b"GNU.sparse.name"[..]);
        let path = match (
            sparse_name.or_else(|| pax.get(&b"path"[..])),
            extensions.long_name,
        ) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => path,
            (None, None) => header_path(block),
        };
        let link = match (pax.get(&b"linkpath"[..]), extensions.long_link) {
            (Some(link), _) => link.clone(),
            (None, Some(link)) => link,
            (None, None) => text(&block[header::LINK]).to_vec(),
        };
        for (what, value) in [("a path", &path), ("a link target", &link)] {
            if value.len() > PATH_BYTES_MAX {
                return Err(limit(offset, what, PATH_BYTES_MAX as u64));
            }
            if value.contains(&0) {
                return Err(bad(offset, &format!("{what} holds a NUL byte")));
            }
        }
        let kind = match block[header::TYPE] {
            b'0' | 0 | b'7' | b'S' if path.ends_with(b"/") && block[header::TYPE] != b'S' => {
                Kind::Directory
            }
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(bad(
                    offset,
                    &format!(
                        "`{}` has the unknown type `{}`",
                        shown(&path),
                        other.escape_ascii()
                    ),
                ));
            }
        };

        let whole = |field: header::Field, key: &[u8], what: &str| -> Result<u64, ReadError> {
            match pax.get(key) {
                Some(value) => decimal(value),
                None => number(&block[field]).and_then(|number| u64::try_from(number).ok()),
            }
            .ok_or_else(|| {
                bad(
                    offset,
                    &format!("the {what} of `{}` is not a number", shown(&path)),
                )
            })
        };
        let id = |field, key: &[u8], what| {
            // The last id means "leave as it is" to the kernel.
            match u32::try_from(whole(field, key, what)?) {
                Ok(id) if id != u32::MAX => Ok(id),
                _ => Err(limit(offset, what, u64::from(u32::MAX - 1))),
            }
        };
        let small = |field, key: &[u8], what| {
            u32::try_from(whole(field, key, what)?)
                .map_err(|_| limit(offset, what, u64::from(u32::MAX)))
        };
        let mtime = match pax.get(&b"mtime"[..]) {
            Some(value) => decimal_time(value),
            None => number(&block[header::MTIME]).map(|seconds| Mtime { seconds, nanos: 0 }),
        }
        .ok_or_else(|| {
            bad(
                offset,
                &format!("the mtime of `{}` is not a number", shown(&path)),
            )
        })?;
        let is_device = matches!(kind, Kind::Char | Kind::BlockDevice);
        let metadata = Metadata {
            // Some writers put the type's bits there too.
            mode: (whole(header::MODE, b"", "mode")? & 0o7777) as u32,
            uid: id(header::UID, b"uid", "user id")?,
            gid: id(header::GID, b"gid", "group id")?,
            mtime,
            xattrs: xattrs(pax),
        };
        let device = if is_device {
            (
                small(header::MAJOR, b"SCHILY.devmajor", "major number")?,
                small(header::MINOR, b"SCHILY.devminor", "minor number")?,
            )
        } else {
            (0, 0)
        };

        // Only files have content. A size on anything else says nothing, as for Go's reader.
        let stored = match (kind, pax.get(&b"size"[..])) {
            (Kind::File, Some(value)) => decimal(value).ok_or_else(|| {
                bad(
                    offset,
                    &format!("the size of `{}` is not a number", shown(&path)),
                )
            })?,
            (Kind::File, None) => header_size,
            _ => 0,
        };
        self.content = stored;
        self.padding = padding(stored) as u64;
        let mut entry = Entry {
            offset,
            path,
            kind,
            link,
            metadata,
            device,
            size: stored,
            sparse: None,
        };
        if kind == Kind::File {
            self.sparse(&mut entry, block, &extensions.pax, &extensions.sparse_pairs)?;
        }
        Ok(entry)
    }

    /// Reads the map of a sparse file, in whichever of its four forms, and sets the entry's real size.
    fn sparse(
        &mut self,
        entry: &mut Entry,
        block: &Block,
        pax: &BTreeMap<Vec<u8>, Vec<u8>>,
        pairs: &[u64],
    ) -> Result<(), ReadError> {
        let offset = entry.offset;
        let wrong = || bad(offset, "the map of a sparse file is not valid");
        let record = |key: &[u8]| {
            pax.get(key)
                .map(|value| decimal(value).ok_or_else(wrong))
                .transpose()
        };
        let (numbers, real) = if block[header::TYPE] == b'S' {
            self.old_gnu_map(block, offset)?
        } else if record(b"GNU.sparse.major")? == Some(1) {
            let real = record(b"GNU.sparse.realsize")?.ok_or_else(wrong)?;
            (self.map_in_content(offset)?, real)
        } else if let Some(map) = pax.get(&b"GNU.sparse.map"[..]) {
            let numbers = map
                .split(|byte| *byte == b',')
                .map(|value| decimal(value).ok_or_else(wrong))
                .collect::<Result<Vec<u64>, _>>()?;
            (numbers, record(b"GNU.sparse.size")?.ok_or_else(wrong)?)
        } else if let Some(real) = record(b"GNU.sparse.size")? {
            (pairs.to_vec(), real)
        } else {
            return Ok(());
        };
        if numbers.len() % 2 != 0 {
            return Err(wrong());
        }
        if numbers.len() / 2 > EXTENTS_MAX {
            return Err(limit(
                offset,
                "the number of a sparse file's pieces",
                EXTENTS_MAX as u64,
            ));
        }
        let mut end = 0;
        let mut stored = 0u64;
        let mut extents = Vec::with_capacity(numbers.len() / 2);
        for pair in numbers.chunks_exact(2) {
            let (start, length) = (pair[0], pair[1]);
            let after = start.checked_add(length).ok_or_else(wrong)?;
            if start < end || after > real {
                return Err(wrong());
            }
            end = after;
            stored = stored.checked_add(length).ok_or_else(wrong)?;
            extents.push((start, length));
        }
        if stored != self.content {
            return Err(wrong());
        }
        entry.size = real;
        entry.sparse = Some(extents);
        Ok(())
    }

    /// GNU's own form: four pieces in the header, 21 in each block that follows while a flag says so.
    fn old_gnu_map(&mut self, block: &Block, offset: u64) -> Result<(Vec<u64>, u64), ReadError> {
        let wrong = || bad(offset, "the map of a sparse file is not valid");
        let value = |field: &[u8]| {
            number(field)
                .and_then(|v| u64::try_from(v).ok())
                .ok_or_else(wrong)
        };
        let mut numbers = Vec::new();
        let mut read = |pieces: &[u8]| -> Result<(), ReadError> {
            for piece in pieces.chunks_exact(24) {
                if piece[0] == 0 {
                    break;
                }
                numbers.push(value(&piece[..12])?);
                numbers.push(value(&piece[12..])?);
            }
            if numbers.len() / 2 > EXTENTS_MAX {
                return Err(limit(
                    offset,
                    "the number of a sparse file's pieces",
                    EXTENTS_MAX as u64,
                ));
            }
            Ok(())
        };
        read(&block[386..482])?;
        let mut more = block[482] != 0;
        while more {
            let next = self.block()?.ok_or_else(|| ReadError::Truncated {
                place: "in the map of a sparse file".to_owned(),
            })?;
            read(&next[..504])?;
            more = next[504] != 0;
        }
        Ok((numbers, value(&block[483..495])?))
    }

    /// PAX form 1.0: decimal lines at the start of the content, filled up to a block.
    fn map_in_content(&mut self, offset: u64) -> Result<Vec<u64>, ReadError> {
        let wrong = || bad(offset, "the map of a sparse file is not valid");
        let mut numbers: Vec<u64> = Vec::new();
        let mut expected = None;
        let mut line = Vec::new();
        loop {
            let block = if self.content >= BLOCK as u64 {
                self.block()?
            } else {
                None
            };
            let block = block.ok_or_else(wrong)?;
            self.content -= BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(wrong());
                    }
                    continue;
                }
                let value = decimal(&line).ok_or_else(wrong)?;
                line.clear();
                if expected.is_none() {
                    if value > EXTENTS_MAX as u64 {
                        let what = "the number of a sparse file's pieces";
                        return Err(limit(offset, what, EXTENTS_MAX as u64));
                    }
                    expected = usize::try_from(value).ok().map(|count| count * 2);
                } else {
                    numbers.push(value);
                }
                if expected == Some(numbers.len()) {
                    return Ok(numbers);
                }
            }
        }
    }
}

impl Extensions {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let b"GNU.sparse.offset" | b"GNU.sparse.numbytes" = key {
            if self.sparse_pairs.len() >= EXTENTS_MAX * 2 {
                return Err("a sparse file has too many pieces");
            }
            let expects_offset = self.sparse_pairs.len().is_multiple_of(2);
            if expects_offset != (key == b"GNU.sparse.offset") {
                return Err("the map of a sparse file is out of order");
            }
            self.sparse_pairs
                .push(decimal(value).ok_or("the map of a sparse file is not valid")?);
            return Ok(());
        }
        self.pax.insert(key.to_vec(), value.to_vec());
        Ok(())
    }
}

/// Takes PAX records apart: `length key=value\n`, the length counting all of it.
fn parse_pax(
    mut records: &[u8],
    offset: u64,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), &'static str>,
) -> Result<(), ReadError> {
    while !records.is_empty() {
        let wrong = || bad(offset, "a PAX record is not `length key=value`");
        let blank = records
            .iter()
            .take(8)
            .position(|byte| *byte == b' ')
            .ok_or_else(wrong)?;
        let length = decimal(&records[..blank])
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length > blank + 1 && *length <= records.len())
            .ok_or_else(wrong)?;
        let (record, rest) = records.split_at(length);
        let body = record[blank + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = body
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(wrong)?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err(wrong());
        }
        take(key, value).map_err(|problem| bad(offset, problem))?;
        records = rest;
    }
    Ok(())
}

/// The attributes among PAX records, in the form that GNU tar, Go and libarchive share.
fn xattrs(pax: &BTreeMap<Vec<u8>, Vec<u8>>) -> Xattrs {
    pax.iter()
        .filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.")?;
            (!name.is_empty()).then(|| (name.to_vec(), value.clone()))
        })
        .collect()
}

/// The path in the header's own fields: POSIX splits long ones over two.
fn header_path(block: &Block) -> Vec<u8> {
    let name = text(&block[header::NAME]);
    if block[header::MAGIC.start..header::MAGIC.start + 6] != *b"ustar\0" {
        return name.to_vec();
    }
    // star keeps times in the last bytes of the prefix and signs with its name.
    let is_star = block[508..512] == *b"tar\0";
    let prefix = if is_star {
        header::PREFIX.start..476
    } else {
        header::PREFIX
    };
    match text(&block[prefix]) {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

/// A decimal number of digits only.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A PAX time: decimal seconds, perhaps negative, perhaps with a fraction; digits past nanoseconds are dropped.
fn decimal_time(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos = (0..9).fold(0, |nanos, place| {
        nanos * 10
            + fraction
                .get(place)
                .map_or(0, |digit| u32::from(digit - b'0'))
    });
    Some(match (negative, nanos) {
        (false, _) => Mtime { seconds, nanos },
        (true, 0) => Mtime {
            seconds: -seconds,
            nanos: 0,
        },
        (true, _) => Mtime {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

fn bad(offset: u64, problem: &str) -> ReadError {
    ReadError::Header {
        offset,
        problem: problem.to_owned(),
    }
}

fn limit(offset: u64, what: &'static str, limit: u64) -> ReadError {
    ReadError::Limit {
        offset,
        what,
        limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pax_times() {
        let check = |text: &str, expected: Option<(i64, u32)>| {
            let expected = expected.map(|(seconds, nanos)| Mtime { seconds, nanos });
            assert_eq!(decimal_time(text.as_bytes()), expected, "{text}");
        };
        check("1700000000", Some((1_700_000_000, 0)));
        check("1700000000.5", Some((1_700_000_000, 500_000_000)));
        check("0.0000000019", Some((0, 1)));
        check("-5", Some((-5, 0)));
        check("-1.25", Some((-2, 750_000_000)));
        check("9223372036854775807", Some((i64::MAX, 0)));
        check("9223372036854775808", None);
        check("", None);
        check("1e9", None);
        check("1.x", None);
        check("--1", None);
    }

    #[test]
    fn takes_pax_records_apart() {
        let check = |records: &[u8], expected: Option<&[(&str, &str)]>| {
            let mut seen = Vec::new();
            let outcome = parse_pax(records, 0, |key, value| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                seen.push((text(key), text(value)));
                Ok(())
            });
            let expected = expected.map(|pairs| {
                let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
                pairs.iter().map(own).collect::<Vec<_>>()
            });
            assert_eq!(
                outcome.ok().map(|()| seen),
                expected,
                "{}",
                records.escape_ascii()
            );
        };
        check(b"", Some(&[]));
        check(b"9 path=a\n", Some(&[("path", "a")]));
        check(b"9 path=a\n12 path=a=b\n\n", None);
        check(
            b"9 path=a\n12 path=a=b\n",
            Some(&[("path", "a"), ("path", "a=b")]),
        );
        check(b"11 path=a\n", None);
        check(b"8 path=a\n", None);
        check(b"99999999999999999999 a=b\n", None);
        check(b"-9 path=a\n", None);
        check(b"4 a\n", None);
        check(b"5 =a\n", None);
    }
}
