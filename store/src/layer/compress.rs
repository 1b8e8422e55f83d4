//! Compression of layers: gzip and zstd out, on several threads and with bytes that do not depend on how many; everything
//! that layers and archives come in on the way back.
//!
//! gzip is written as members of at most a MiB of input (RFC 1952 allows any number of members), each by libdeflate: members
//! are independent, so threads share them, and a reader that knows gzip reads them as one stream. What does not compress is a
//! member of its own, stored as it is (`compress/dense.rs`). zstd uses its own workers.
//! zstd:chunked and eStargz (`compress/chunked.rs`) are one zstd frame or gzip member per piece of a file, and a table of them
//! behind (`compress/table.rs`); that of eStargz is in the tar (`compress/estargz.rs`), which is another one thereby.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use libdeflater::{CompressionLvl, Compressor as Deflate};

use self::chunked::Chunked;
use self::expansion::{Counted, Expansion};
use self::lanes::Lanes;
use self::table::Format;
use crate::oci::{Descriptor, DiffId, MediaType};

mod chunked;
mod cut;
mod dense;
pub mod estargz;
mod expansion;
mod lanes;
pub mod table;
mod tables;

/// Most bytes of input in one gzip member. Part of the format: changing it changes the digest of every layer written.
const MEMBER_BYTES: usize = 1024 * 1024;

/// Members that may be under way in each thread: who gives them out hashes and writes as well, and must not have threads wait.
const DEPTH: usize = 4;

/// Levels from this on are asked for where size is worth any time: all bytes are tried.
const LEVEL_THOROUGH: u8 = 7;

/// Most layers that are compressed at once: a disk does not read faster for more.
const LAYERS_AT_ONCE: usize = 4;

/// Memory that an xz stream may ask for, in KiB: what `xz -9` needs, four times over.
const XZ_MEMORY_KIB: u32 = 256 * 1024;

/// Largest zstd window accepted, as a power of two: 128 MiB, libzstd's own default.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip at a level from 1 (fast) to 12 (small).
    Gzip(u8),
    /// zstd at a level from 1 (fast) to 22 (small).
    Zstd(u8),
    /// zstd whose pieces can be found again, at a level from 1 (fast) to 22 (small).
    ZstdChunked(u8),
    /// gzip whose pieces can be found again, at a level from 1 (fast) to 12 (small). The tar in it is another one.
    Estargz(u8),
}

impl Compression {
    /// gzip at the level that is worth its time: about the size of `gzip -6`, several times its speed.
    pub const GZIP: Compression = Compression::Gzip(2);
    /// zstd at its usual level.
    pub const ZSTD: Compression = Compression::Zstd(3);
    /// zstd:chunked at zstd's usual level.
    pub const ZSTD_CHUNKED: Compression = Compression::ZstdChunked(3);

    /// eStargz at the level of [`Compression::GZIP`].
    pub const ESTARGZ: Compression = Compression::Estargz(2);

    /// The name that flags and records use, without the level.
    pub fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip(_) => "gzip",
            Compression::Zstd(_) => "zstd",
            Compression::ZstdChunked(_) => "zstd:chunked",
            Compression::Estargz(_) => "estargz",
        }
    }

    /// What a layer is compressed with, by its media type and annotations; [`Compression::None`] where they do not say.
    pub fn of(layer: &Descriptor) -> Compression {
        let told = layer.annotations.as_ref();
        match layer.media_type.as_str() {
            name if name.ends_with("gzip") => match told.and_then(estargz::table_digest) {
                Some(_) => Compression::ESTARGZ,
                None => Compression::GZIP,
            },
            name if !name.ends_with("zstd") => Compression::None,
            _ if told.is_some_and(|told| !table::table_annotations(told).is_empty()) => {
                Compression::ZSTD_CHUNKED
            }
            _ => Compression::ZSTD,
        }
    }

    /// Whether what is compressed so is what was `wanted`, whatever the level: zstd:chunked is zstd, too, and eStargz gzip.
    pub fn is_also(self, wanted: Compression) -> bool {
        self.name() == wanted.name()
            || matches!(
                (self, wanted),
                (Compression::ZstdChunked(_), Compression::Zstd(_))
                    | (Compression::Estargz(_), Compression::Gzip(_))
            )
    }

    /// Whether the tar inside is not the one that was compressed, so that a layer has another DiffID.
    pub fn changes_tar(self) -> bool {
        matches!(self, Compression::Estargz(_))
    }

    /// The same for what is a tar, but no layer, so that nothing must be added to it.
    pub fn of_plain_tar(self) -> Compression {
        match self {
            Compression::Estargz(level) => Compression::Gzip(level),
            same => same,
        }
    }

    /// The media type of a layer that is compressed so.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => MediaType::OCI_LAYER,
            Compression::Gzip(_) | Compression::Estargz(_) => MediaType::OCI_LAYER_GZIP,
            Compression::Zstd(_) | Compression::ZstdChunked(_) => MediaType::OCI_LAYER_ZSTD,
        }
    }

    /// The same algorithm at another level.
    ///
    /// # Errors
    /// The algorithm has no such level.
    pub fn at_level(self, level: u8) -> Result<Compression, CompressionError> {
        let (most, compression) = match self {
            Compression::None => (0, Compression::None),
            Compression::Gzip(_) => (12, Compression::Gzip(level)),
            Compression::Zstd(_) => (22, Compression::Zstd(level)),
            Compression::ZstdChunked(_) => (22, Compression::ZstdChunked(level)),
            Compression::Estargz(_) => (12, Compression::Estargz(level)),
        };
        if (1..=most).contains(&level) {
            return Ok(compression);
        }
        Err(CompressionError::Level {
            name: self.name(),
            level,
            most,
        })
    }
}

/// How the layers of an image are to be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CompressionChoice {
    /// Those that are not compressed yet.
    pub compression: Compression,
    /// The others too, unless they are so already.
    pub force: bool,
}

impl CompressionChoice {
    /// As they are, new ones with gzip.
    pub const AS_THEY_ARE: CompressionChoice = CompressionChoice {
        compression: Compression::GZIP,
        force: false,
    };

    /// All of them so.
    pub fn all(compression: Compression) -> CompressionChoice {
        CompressionChoice {
            compression,
            force: true,
        }
    }

    /// Whether a layer that is compressed so need not be compressed again.
    pub fn is_met_by(self, form: Compression) -> bool {
        form.is_also(self.compression) || !self.force && form != Compression::None
    }
}

impl Default for CompressionChoice {
    fn default() -> CompressionChoice {
        CompressionChoice::AS_THEY_ARE
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    /// Reads `none` (or `uncompressed`, as BuildKit says), `gzip`, `zstd`, `zstd:chunked` or `estargz`, at the default level.
    fn from_str(name: &str) -> Result<Compression, CompressionError> {
        match name {
            "none" | "uncompressed" => Ok(Compression::None),
            "gzip" => Ok(Compression::GZIP),
            "zstd" => Ok(Compression::ZSTD),
            "zstd:chunked" => Ok(Compression::ZSTD_CHUNKED),
            "estargz" => Ok(Compression::ESTARGZ),
            _ => Err(CompressionError::Name {
                name: name.chars().take(40).collect(),
            }),
        }
    }
}

/// A compression that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompressionError {
    /// The name is unknown.
    #[error("unknown compression `{name}`: expected gzip, zstd, zstd:chunked, estargz or none")]
    Name {
        /// The name, clipped.
        name: String,
    },
    /// The level is out of range.
    #[error("{name} has no compression level `{level}`: expected 1 to {most}")]
    Level {
        /// The algorithm.
        name: &'static str,
        /// The level asked for.
        level: u8,
        /// The highest level.
        most: u8,
    },
}

/// The tar inside a stream, where it is not the one that was written to the compressor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// What it hashes to.
    pub diff_id: DiffId,
    /// Its bytes.
    pub bytes: u64,
}

/// Compresses what is written to it; [`finish`](Compressor::finish) must be called to complete the stream.
pub struct Compressor<W: Write>(Output<W>);

enum Output<W: Write> {
    Plain(W),
    Gzip(Members<W>),
    Zstd(zstd::Encoder<'static, W>),
    Chunked(Box<Chunked<W>>),
}

/// How many of so many layers to compress at once, and with how many threads each, so that all processors work: one more than is
/// each layer's share, for when others wait or have ended.
pub fn side_by_side(layers: usize) -> (usize, usize) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let at_once = layers.min(processors).clamp(1, LAYERS_AT_ONCE);
    (at_once, processors.div_ceil(at_once) + 1)
}

/// A compressor into `out` that uses `threads` threads besides the caller's; its bytes do not depend on `threads`.
///
/// # Errors
/// The level does not exist, or a thread cannot be started.
pub fn compressor<W: Write>(
    out: W,
    compression: Compression,
    threads: usize,
) -> io::Result<Compressor<W>> {
    Ok(Compressor(match compression {
        Compression::None => Output::Plain(out),
        Compression::Gzip(level) => Output::Gzip(Members::start(out, level, threads.max(1))?),
        Compression::Zstd(level) => {
            let mut encoder = zstd::Encoder::new(out, i32::from(level))?;
            encoder.include_checksum(true)?;
            // Output depends on whether there are workers, not on how many: so always have one.
            encoder.multithread(u32::try_from(threads.clamp(1, 64)).unwrap_or(1))?;
            Output::Zstd(encoder)
        }
        Compression::ZstdChunked(level) => {
            let chunked = Chunked::start(out, Format::ZstdChunked, level, threads)?;
            Output::Chunked(Box::new(chunked))
        }
        Compression::Estargz(level) => {
            let chunked = Chunked::start(out, Format::Estargz, level, threads)?;
            Output::Chunked(Box::new(chunked))
        }
    }))
}

impl<W: Write> Compressor<W> {
    /// Completes the stream and gives the writer back, not flushed.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(self) -> io::Result<W> {
        self.finish_telling().map(|(out, _)| out)
    }

    /// The same; with what the tar inside is by now, if the compression changes it ([`Compression::changes_tar`]).
    ///
    /// # Errors
    /// The writer's.
    pub fn finish_telling(self) -> io::Result<(W, Option<Rewritten>)> {
        let out = match self.0 {
            Output::Plain(out) => Ok(out),
            Output::Gzip(members) => members.finish(),
            Output::Zstd(encoder) => encoder.finish(),
            Output::Chunked(chunked) => return chunked.finish(),
        };
        out.map(|out| (out, None))
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Output::Plain(out) => out.write(bytes),
            Output::Gzip(members) => members.write(bytes),
            Output::Zstd(encoder) => encoder.write(bytes),
            Output::Chunked(chunked) => chunked.write(bytes).map(|()| bytes.len()),
        }
    }

    /// Flushes the writer; what does not fill a member or block yet stays inside, so that output never depends on flushes.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Output::Plain(out) => out.flush(),
            Output::Gzip(members) => members.out.flush(),
            Output::Zstd(encoder) => encoder.get_mut().flush(),
            Output::Chunked(chunked) => chunked.out().flush(),
        }
    }
}

impl<W: Write> fmt::Debug for Compressor<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// What makes gzip members at a level.
fn deflate(level: u8) -> io::Result<Deflate> {
    let level = CompressionLvl::new(i32::from(level))
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "gzip levels are 0 to 12"))?;
    Ok(Deflate::new(level))
}

/// One gzip member.
fn member(deflate: &mut Deflate, bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let length = member_at(deflate, bytes, &mut compressed, 0);
    compressed.truncate(length);
    compressed
}

/// Writes one gzip member to `room` from `start` on, which grows where it has to; its length.
fn member_at(deflate: &mut Deflate, bytes: &[u8], room: &mut Vec<u8>, start: usize) -> usize {
    let needed = start + deflate.gzip_compress_bound(bytes.len());
    if room.len() < needed {
        room.resize(needed, 0);
    }
    deflate
        .gzip_compress(bytes, &mut room[start..])
        .expect("the bound leaves room for any input")
}

/// Makes the members of at most [`MEMBER_BYTES`] bytes.
struct MemberMaker {
    deflate: Deflate,
    /// For what does not compress; `None` where that is tried all the same.
    stored: Option<Deflate>,
    /// What a member is written to before it is known how long it is.
    room: Vec<u8>,
}

impl MemberMaker {
    fn new(level: u8) -> io::Result<MemberMaker> {
        Ok(MemberMaker {
            deflate: deflate(level)?,
            stored: match level < LEVEL_THOROUGH {
                true => Some(deflate(0)?),
                false => None,
            },
            room: Vec::new(),
        })
    }

    fn make(&mut self, bytes: &[u8]) -> Vec<u8> {
        let Some(stored) = &mut self.stored else {
            return member(&mut self.deflate, bytes);
        };
        if bytes.is_empty() {
            return member(stored, bytes);
        }
        let mut end = 0;
        for (is_dense, run) in dense::runs(bytes) {
            let deflate = match is_dense {
                true => &mut *stored,
                false => &mut self.deflate,
            };
            end += member_at(deflate, run, &mut self.room, end);
        }
        self.room[..end].to_vec()
    }
}

/// gzip members, made by threads and written in order.
struct Members<W> {
    out: W,
    pending: Vec<u8>,
    lanes: Lanes<Vec<u8>, Vec<u8>>,
    written: bool,
}

impl<W: Write> Members<W> {
    fn start(out: W, level: u8, threads: usize) -> io::Result<Members<W>> {
        let lanes = Lanes::start("gzip", threads, DEPTH, || {
            let mut maker = MemberMaker::new(level)?;
            Ok(move |bytes: &Vec<u8>| maker.make(bytes))
        })?;
        Ok(Members {
            out,
            pending: Vec::with_capacity(MEMBER_BYTES),
            lanes,
            written: false,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(MEMBER_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..take]);
        if self.pending.len() == MEMBER_BYTES {
            self.dispatch()?;
        }
        Ok(take)
    }

    fn dispatch(&mut self) -> io::Result<()> {
        let spare = match self.lanes.is_full() {
            true => self.collect()?,
            false => None,
        };
        let spare = spare.unwrap_or_else(|| Vec::with_capacity(MEMBER_BYTES));
        self.lanes
            .send(std::mem::replace(&mut self.pending, spare))?;
        self.written = true;
        Ok(())
    }

    /// Writes the oldest member under way; its input buffer, for reuse.
    fn collect(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((mut spare, compressed)) = self.lanes.receive()? else {
            return Ok(None);
        };
        spare.clear();
        self.out.write_all(&compressed)?;
        Ok(Some(spare))
    }

    fn finish(mut self) -> io::Result<W> {
        // An empty input is one empty member: no member at all is not a gzip stream.
        if !self.pending.is_empty() || !self.written {
            self.dispatch()?;
        }
        while self.collect()?.is_some() {}
        Ok(self.out)
    }
}

/// What the first bytes of a stream say it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Nothing known: taken as it is.
    Plain,
    /// gzip, any number of members.
    Gzip,
    /// zstd, any number of frames.
    Zstd,
    /// bzip2, any number of streams.
    Bzip2,
    /// xz, any number of streams.
    Xz,
}

/// Longest magic that is looked at, in bytes.
const MAGIC_BYTES: usize = 6;

impl Packing {
    /// Tells by a stream's first bytes; six are enough.
    pub fn of(start: &[u8]) -> Packing {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Packing::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Packing::Xz,
            _ => Packing::Plain,
        }
    }
}

/// Reads a stream, decompressed by what its first bytes say.
pub struct Decompressor<R: Read> {
    packing: Packing,
    expansion: Expansion,
    input: Input<Counted<R>>,
}

/// The stream with the bytes that were looked at put back.
type Rewound<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

enum Input<R: Read> {
    Plain(Rewound<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<io::BufReader<Rewound<R>>>>),
    Zstd(zstd::Decoder<'static, io::BufReader<Rewound<R>>>),
    Bzip2(bzip2::bufread::MultiBzDecoder<io::BufReader<Rewound<R>>>),
    Xz(Box<lzma_rust2::XzReader<io::BufReader<Rewound<R>>>>),
}

/// Bytes read ahead of a decoder.
const READ_BYTES: usize = 128 * 1024;

/// A reader of what `reader` holds, decompressed where its first bytes are a known format's. What becomes far more than it was,
/// 200 times and above 16 GiB, ends in an error of kind [`io::ErrorKind::InvalidData`].
///
/// # Errors
/// The reader's, or a decoder that cannot start.
pub fn decompressor<R: Read>(reader: R) -> io::Result<Decompressor<R>> {
    let (expansion, mut reader) = Expansion::of(reader);
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    (&mut reader)
        .take(MAGIC_BYTES as u64)
        .read_to_end(&mut start)?;
    let packing = Packing::of(&start);
    let rewound = io::Cursor::new(start).chain(reader);
    let buffered = |rewound| io::BufReader::with_capacity(READ_BYTES, rewound);
    let input = match packing {
        Packing::Plain => Input::Plain(rewound),
        Packing::Gzip => Input::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(buffered(
            rewound,
        )))),
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(buffered(rewound))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Input::Zstd(decoder)
        }
        Packing::Bzip2 => Input::Bzip2(bzip2::bufread::MultiBzDecoder::new(buffered(rewound))),
        Packing::Xz => Input::Xz(Box::new(lzma_rust2::XzReader::new_mem_limit(
            buffered(rewound),
            true,
            XZ_MEMORY_KIB,
        ))),
    };
    Ok(Decompressor {
        packing,
        expansion,
        input,
    })
}

impl<R: Read> Decompressor<R> {
    /// What the stream was packed with.
    pub fn packing(&self) -> Packing {
        self.packing
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = match &mut self.input {
            Input::Plain(reader) => return reader.read(buffer),
            Input::Gzip(reader) => reader.read(buffer)?,
            Input::Zstd(reader) => reader.read(buffer)?,
            Input::Bzip2(reader) => reader.read(buffer)?,
            Input::Xz(reader) => reader.read(buffer)?,
        };
        self.expansion.gave(length)?;
        Ok(length)
    }
}

impl<R: Read> fmt::Debug for Decompressor<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor")
            .field("packing", &self.packing)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes that compress, but not to nothing; the same each time.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1u32;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                b'a' + (state >> 28) as u8
            })
            .collect()
    }

    fn compress(bytes: &[u8], compression: Compression, threads: usize) -> Vec<u8> {
        let mut writer = compressor(Vec::new(), compression, threads).unwrap();
        // Odd pieces and flushes must not show in the output.
        for piece in bytes.chunks(70_001) {
            writer.write_all(piece).unwrap();
            writer.flush().unwrap();
        }
        writer.finish().unwrap()
    }

    /// Whether a blob is gzip of a tar, without a table.
    pub(super) fn is_only_gzip(blob: &[u8], tar: &[u8]) -> bool {
        let at = blob.len().saturating_sub(51);
        decompress(blob).unwrap() == (Packing::Gzip, tar.to_vec())
            && estargz::position(&blob[at..], blob.len() as u64).is_none()
    }

    fn decompress(bytes: &[u8]) -> io::Result<(Packing, Vec<u8>)> {
        let mut reader = decompressor(bytes)?;
        let mut out = Vec::new();
        reader.read_to_end(&mut out)?;
        Ok((reader.packing(), out))
    }

    #[test]
    fn round_trips_whatever_the_threads() {
        for length in [
            0,
            1,
            5,
            MEMBER_BYTES - 1,
            MEMBER_BYTES,
            5 * MEMBER_BYTES + 7,
        ] {
            let bytes = sample(length);
            for (compression, packing) in [
                (Compression::None, Packing::Plain),
                (Compression::Gzip(1), Packing::Gzip),
                (Compression::GZIP, Packing::Gzip),
                (Compression::ZSTD, Packing::Zstd),
                (Compression::ZSTD_CHUNKED, Packing::Zstd),
                // It is no tar.
                (Compression::ESTARGZ, Packing::Gzip),
            ] {
                if length == 0 && compression.changes_tar() {
                    // Which is a tar.
                    continue;
                }
                let one = compress(&bytes, compression, 1);
                for threads in [0, 2, 3, 7] {
                    assert!(
                        one == compress(&bytes, compression, threads),
                        "{compression} with {threads} threads"
                    );
                }
                assert_eq!(decompress(&one).unwrap(), (packing, bytes.clone()));
            }
        }
    }

    #[test]
    fn reads_bzip2_and_xz_and_joined_streams() {
        let bytes = sample(300_000);
        let mut bzip = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip.write_all(&bytes).unwrap();
        let bzip = bzip.finish().unwrap();
        assert_eq!(decompress(&bzip).unwrap(), (Packing::Bzip2, bytes.clone()));
        // `printf 'hello\n' | xz --format=xz`
        let xz = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00,
            0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x05, 0x68,
            0x65, 0x6c, 0x6c, 0x6f, 0x0a, 0x00, 0x00, 0x00, 0xa5, 0x60, 0x97, 0xf1, 0x94, 0xf6,
            0xfd, 0xe0, 0x00, 0x01, 0x1e, 0x06, 0xc1, 0x2f, 0xa4, 0x1d, 0x1f, 0xb6, 0xf3, 0x7d,
            0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
        ];
        let read = decompress(&xz);
        assert!(
            matches!(&read, Ok((Packing::Xz, text)) if text == b"hello\n"),
            "{read:?}"
        );
        for compression in [
            Compression::GZIP,
            Compression::ZSTD,
            Compression::ZSTD_CHUNKED,
            Compression::ESTARGZ,
        ] {
            let twice = [
                compress(b"one ", compression, 1),
                compress(b"two", compression, 1),
            ]
            .concat();
            assert_eq!(decompress(&twice).unwrap().1, b"one two");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let bytes = sample(100_000);
        for compression in [
            Compression::GZIP,
            Compression::ZSTD,
            Compression::ZSTD_CHUNKED,
            Compression::ESTARGZ,
        ] {
            let whole = compress(&bytes, compression, 1);
            for keep in [7, whole.len() / 2, whole.len() - 1] {
                assert!(
                    decompress(&whole[..keep]).is_err(),
                    "{compression} cut to {keep}"
                );
            }
        }
    }

    #[test]
    fn a_failing_writer_fails_the_compressor() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for compression in [
            Compression::None,
            Compression::GZIP,
            Compression::ZSTD,
            Compression::ZSTD_CHUNKED,
            Compression::ESTARGZ,
        ] {
            let mut writer = compressor(Full, compression, 2).unwrap();
            let outcome = writer
                .write_all(&sample(9 * MEMBER_BYTES))
                .and_then(|()| writer.finish().map(|_| ()));
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn names_and_levels() {
        assert_eq!("gzip".parse(), Ok(Compression::Gzip(2)));
        assert_eq!("zstd".parse::<Compression>().unwrap().to_string(), "zstd");
        assert_eq!(
            "lzma".parse::<Compression>().unwrap_err().to_string(),
            "unknown compression `lzma`: expected gzip, zstd, zstd:chunked, estargz or none"
        );
        assert_eq!(Compression::GZIP.at_level(9), Ok(Compression::Gzip(9)));
        assert_eq!(
            Compression::GZIP.at_level(13).unwrap_err().to_string(),
            "gzip has no compression level `13`: expected 1 to 12"
        );
    }
}
