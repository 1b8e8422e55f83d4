//! What a layer whose pieces can be found says of itself: where in the blob each piece of each file is.
//!
//! The table is the same JSON in both formats that have one; eStargz keeps it in the tar (`compress/estargz.rs`). In
//! zstd:chunked, behind the frames of the tar follow three frames that decompressors skip: the table (JSON, compressed by zstd), what is
//! needed to put the tar together from files (tar-split: JSON lines, compressed), and a footer that says where both are.
//! Annotations of the layer's descriptor say the same, and what the table hashes to. Two dialects are in use, which
//! differ in the names of the annotations and in that the older one has no tar-split; both are read, and both written.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::{Deserialize, Serialize};

use super::{Compression, Rewritten, estargz};
use crate::oci::{Annotations, Descriptor, Digest};

/// What annotations of containers/storage from 1.46 on begin with, and before that.
const PREFIXES: [&str; 2] = [
    "io.github.containers.zstd-chunked.",
    "io.containers.zstd-chunked.",
];

/// The first bytes of a frame that decompressors skip.
const SKIPPED: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Bytes of a skipped frame before its content.
const SKIPPED_HEAD: usize = 8;

/// The last bytes of a zstd:chunked blob, and of one without tar-split.
const MAGIC: &[u8; 8] = b"GNUlInUx";
const MAGIC_OLD: &[u8; 8] = b"GnUlInUx";

/// Bytes of the footer's content, and of that without tar-split.
const FOOTER: usize = 64;
const FOOTER_OLD: usize = 40;

/// The one kind of table there is.
const KIND: u64 = 1;

/// Largest table that readers take, compressed or not.
pub const TABLE_BYTES_MAX: u64 = 50 * 1024 * 1024;

/// Largest tar-split that is written, before compression.
pub(super) const SPLIT_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Where in a blob something compressed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its first byte.
    pub offset: u64,
    /// Its bytes in the blob.
    pub length: u64,
    /// Its bytes once decompressed.
    pub content: u64,
}

impl Extent {
    /// The offset behind its last byte; `None` if there is no such number.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

/// The formats that have a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// zstd:chunked.
    ZstdChunked,
    /// eStargz.
    Estargz,
}

impl Format {
    /// The compression of layers in this format, at its usual level.
    pub fn compression(self) -> Compression {
        match self {
            Format::ZstdChunked => Compression::ZSTD_CHUNKED,
            Format::Estargz => Compression::ESTARGZ,
        }
    }
}

/// Where in a blob its table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// What kind of blob it is.
    pub format: Format,
    /// The table; of eStargz, it is not known how long it is once decompressed: 0.
    pub table: Extent,
    /// What the table hashes to: as it is in the blob, or in eStargz as JSON. Known from annotations only.
    pub digest: Option<Digest>,
    /// The tar-split.
    pub split: Option<Extent>,
}

impl Position {
    /// What a layer's annotations say; `None` if it is not zstd:chunked, or they make no sense for a blob of `size` bytes. Those
    /// of eStargz do not say where its table is.
    pub fn from_annotations(annotations: &Annotations, size: u64) -> Option<Position> {
        PREFIXES.iter().find_map(|prefix| {
            let find = |name: &str| annotations.get(&format!("{prefix}{name}"));
            let [offset, length, content, KIND] = numbers(find("manifest-position")?)? else {
                return None;
            };
            let split = find("tarsplit-position").and_then(|text| numbers(text));
            let position = Position {
                format: Format::ZstdChunked,
                table: Extent {
                    offset,
                    length,
                    content,
                },
                digest: Some(find("manifest-checksum")?.parse().ok()?),
                split: split.map(|[offset, length, content]| Extent {
                    offset,
                    length,
                    content,
                }),
            };
            position.is_sane(size).then_some(position)
        })
    }

    /// What a blob's last bytes say; `None` if it has no table.
    ///
    /// # Errors
    /// The file's.
    pub fn from_footer(blob: &File, size: u64) -> io::Result<Option<Position>> {
        if let Some(at) = size.checked_sub(estargz::FOOTER_BYTES) {
            let mut bytes = [0; estargz::FOOTER_LENGTH];
            blob.read_exact_at(&mut bytes, at)?;
            if let Some(position) = estargz::position(&bytes, size) {
                return Ok(Some(position));
            }
        }
        for length in [FOOTER, FOOTER_OLD] {
            let Some(at) = size.checked_sub((SKIPPED_HEAD + length) as u64) else {
                continue;
            };
            let mut bytes = vec![0; SKIPPED_HEAD + length];
            blob.read_exact_at(&mut bytes, at)?;
            if let Some(position) = footer(&bytes).filter(|position| position.is_sane(at)) {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }

    /// Where the pieces of the tar end.
    pub fn pieces_end(&self) -> u64 {
        match self.format {
            Format::ZstdChunked => self.table.offset.saturating_sub(HEAD_BYTES),
            Format::Estargz => self.table.offset,
        }
    }

    /// The table's JSON, from its bytes in the blob.
    ///
    /// # Errors
    /// It is no table, not the one that annotations told of, or longer than [`TABLE_BYTES_MAX`].
    pub fn json(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let json = match self.format {
            Format::ZstdChunked => {
                let mut json = Vec::new();
                let decoder = zstd::Decoder::with_buffer(bytes)?;
                decoder.take(TABLE_BYTES_MAX + 1).read_to_end(&mut json)?;
                if json.len() as u64 > TABLE_BYTES_MAX {
                    return Err(invalid("a table of more than 50 MiB"));
                }
                json
            }
            Format::Estargz => estargz::table_in(bytes)?,
        };
        let hashed = match self.format {
            Format::ZstdChunked => bytes,
            Format::Estargz => &json,
        };
        match self.digest {
            Some(digest) if digest != Digest::of(hashed) => {
                Err(invalid("a table that is not the one its annotations say"))
            }
            _ => Ok(json),
        }
    }

    /// Whether all is within the first `size` bytes, and no larger than readers take.
    pub(super) fn is_sane(&self, size: u64) -> bool {
        let within = |extent: &Extent| extent.end().is_some_and(|end| end <= size);
        within(&self.table)
            && self.table.length <= TABLE_BYTES_MAX
            && self.table.content <= TABLE_BYTES_MAX
            && self.split.as_ref().is_none_or(within)
    }

    /// The annotations that tell readers of the table in `blob`.
    ///
    /// # Errors
    /// The file's.
    pub fn annotations(&self, blob: &File) -> io::Result<Annotations> {
        let bytes = self.read(blob)?;
        if self.format == Format::Estargz {
            let json = self.json(&bytes)?;
            return Ok(estargz::annotations(&Digest::of(&json), None));
        }
        let checksum = Digest::of(&bytes).to_string();
        let Extent {
            offset,
            length,
            content,
        } = self.table;
        let mut annotations = Annotations::new();
        for prefix in PREFIXES {
            annotations.insert(format!("{prefix}manifest-checksum"), checksum.clone());
            let position = format!("{offset}:{length}:{content}:{KIND}");
            annotations.insert(format!("{prefix}manifest-position"), position);
        }
        if let Some(split) = &self.split {
            let position = format!("{}:{}:{}", split.offset, split.length, split.content);
            annotations.insert(format!("{}tarsplit-position", PREFIXES[0]), position);
        }
        Ok(annotations)
    }

    /// The table's bytes as they are in `blob`, at most [`TABLE_BYTES_MAX`].
    ///
    /// # Errors
    /// The file's.
    pub fn read(&self, blob: &File) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.table.length).unwrap_or(0)];
        blob.read_exact_at(&mut bytes, self.table.offset)?;
        Ok(bytes)
    }
}

/// How a manifest describes a blob of `size` bytes that a compressor wrote, with what that says of the tar inside; and what the
/// compression came to: eStargz that cannot have a table is gzip.
///
/// # Errors
/// The file's.
pub fn describe(
    blob: &File,
    digest: Digest,
    size: u64,
    compression: Compression,
    rewritten: Option<&Rewritten>,
) -> io::Result<(Compression, Descriptor)> {
    let mut descriptor = Descriptor::new(compression.media_type(), digest, size);
    let position = match compression {
        Compression::ZstdChunked(_) | Compression::Estargz(_) => Position::from_footer(blob, size)?,
        _ => None,
    };
    let Some(position) = position else {
        return Ok((compression.of_plain_tar(), descriptor));
    };
    let mut told = position.annotations(blob)?;
    if let Some(rewritten) = rewritten
        && let Some(table) = estargz::table_digest(&told)
    {
        told = estargz::annotations(&table, Some(rewritten.bytes));
    }
    descriptor.annotations = Some(told);
    Ok((compression, descriptor))
}

/// Keeps of a layer's annotations those that say where its table is.
pub fn table_annotations(annotations: &Annotations) -> Annotations {
    let kept = annotations.iter().filter(|(name, _)| {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || estargz::is_annotation(name)
    });
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// `N` numbers with `:` between them.
fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let numbers: Option<Vec<u64>> = text.split(':').map(|number| number.parse().ok()).collect();
    numbers?.try_into().ok()
}

fn footer(bytes: &[u8]) -> Option<Position> {
    let (head, content) = bytes.split_at_checked(SKIPPED_HEAD)?;
    let length = u32::try_from(content.len()).ok()?;
    if head[..4] != SKIPPED || head[4..] != length.to_le_bytes() {
        return None;
    }
    let magic = match content.len() {
        FOOTER_OLD => MAGIC_OLD,
        _ => MAGIC,
    };
    let words = content.strip_suffix(magic)?;
    let mut words = words.chunks_exact(8).map(|word| {
        let word: [u8; 8] = word.try_into().unwrap_or_default();
        u64::from_le_bytes(word)
    });
    let mut extent = || {
        Some(Extent {
            offset: words.next()?,
            length: words.next()?,
            content: words.next()?,
        })
    };
    let table = extent()?;
    let kind = words.next()?;
    let mut extent = || {
        Some(Extent {
            offset: words.next()?,
            length: words.next()?,
            content: words.next()?,
        })
    };
    let split = extent().filter(|split| split.length > 0);
    (kind == KIND).then_some(Position {
        format: Format::ZstdChunked,
        table,
        digest: None,
        split,
    })
}

/// A frame that decompressors skip; `None` if it is too long for one.
pub(super) fn skipped(content: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(content.len()).ok()?;
    Some([&SKIPPED[..], &length.to_le_bytes(), content].concat())
}

/// What ends a blob in which `table` and `split` lie where they say.
pub(super) fn footer_frame(table: &Extent, split: &Extent) -> Vec<u8> {
    let words = [
        table.offset,
        table.length,
        table.content,
        KIND,
        split.offset,
        split.length,
        split.content,
    ];
    let mut content: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    content.extend_from_slice(MAGIC);
    skipped(&content).expect("64 bytes are not too long")
}

/// Bytes of a skipped frame before its content.
pub(super) const HEAD_BYTES: u64 = SKIPPED_HEAD as u64;

/// An entry of the table: a file, or a further piece of the file before it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// `reg`, `chunk`, `hardlink`, `symlink`, `dir`, `char`, `block` or `fifo`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The path, as in the tar.
    pub name: String,
    /// The target of a link.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub link_name: String,
    /// Permissions.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: i64,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "is_zero")]
    pub size: i64,
    /// Owner.
    #[serde(skip_serializing_if = "is_zero")]
    pub uid: i64,
    /// Group.
    #[serde(skip_serializing_if = "is_zero")]
    pub gid: i64,
    /// Time of modification, RFC 3339.
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    pub mtime: String,
    /// Major number of a device.
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_major: i64,
    /// Minor number of a device.
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_minor: i64,
    /// Extended attributes, their values in base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, String>,
    /// Digest of the file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Where in the blob the piece begins.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// Where in the blob the file's last piece ends.
    #[serde(skip_serializing_if = "is_zero")]
    pub end_offset: i64,
    /// Bytes of the piece once decompressed; of a file in one piece, 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_size: i64,
    /// Where in the file the piece is.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_offset: i64,
    /// Digest of the piece once decompressed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chunk_digest: String,
    /// `zeros` for a piece of zeros.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chunk_type: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's calling convention"
)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A table, to be written.
#[derive(Debug, Serialize)]
pub(super) struct Table<E> {
    /// 1.
    pub(super) version: u64,
    /// In the order of the tar.
    pub(super) entries: E,
    /// Digest of the tar-split as it is in the blob; empty where there is none.
    #[serde(rename = "tarSplitDigest", skip_serializing_if = "String::is_empty")]
    pub(super) split_digest: String,
}

/// Reads a table's JSON, as [`Position::json`] gives it, and gives its entries to `each` one by one: all of them together may
/// be many times as large.
///
/// # Errors
/// It is no table.
pub fn read_entries(json: &[u8], each: &mut dyn FnMut(Entry)) -> io::Result<()> {
    let mut json = serde_json::Deserializer::from_slice(json);
    let version = json
        .deserialize_map(Fields(each))
        .map_err(io::Error::from)?;
    json.end().map_err(io::Error::from)?;
    match version {
        Some(1) => Ok(()),
        _ => Err(invalid("a table of another version than 1")),
    }
}

/// The table's object, of which the version comes back.
struct Fields<'a>(&'a mut dyn FnMut(Entry));

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table with `version` and `entries`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u64>, A::Error> {
        let mut version = None;
        let mut has_entries = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => version = Some(map.next_value()?),
                "entries" if has_entries => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    has_entries = true;
                    map.next_value_seed(Entries(&mut *self.0))?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match has_entries {
            true => Ok(version),
            false => Err(A::Error::missing_field("entries")),
        }
    }
}

/// The table's entries, each given away.
struct Entries<'a>(&'a mut dyn FnMut(Entry));

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element()? {
            (self.0)(entry);
        }
        Ok(())
    }
}

pub(super) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footers_of_both_kinds() {
        let table = Extent {
            offset: 100,
            length: 20,
            content: 70,
        };
        let split = Extent {
            offset: 128,
            length: 30,
            content: 90,
        };
        let new = footer_frame(&table, &split);
        let expect = Position {
            format: Format::ZstdChunked,
            table,
            digest: None,
            split: Some(split),
        };
        assert_eq!(footer(&new), Some(expect));
        // As podman 4.3 wrote it.
        let old = "502a4d1828000000c8551900000000006b0c000000000000e92a0000000000000100000000000000476e556c496e5578";
        let old: Vec<u8> = (0..old.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&old[at..at + 2], 16).unwrap())
            .collect();
        let table = Extent {
            offset: 1_660_360,
            length: 3179,
            content: 10_985,
        };
        let expect = Position {
            format: Format::ZstdChunked,
            table,
            digest: None,
            split: None,
        };
        assert_eq!(footer(&old), Some(expect));
        assert!(expect.is_sane(1_663_587) && !expect.is_sane(1_663_538));
        for cut in 0..new.len() {
            assert_eq!(footer(&new[..cut]), None);
            assert_eq!(footer(&new[cut + 1..]), None);
        }
    }

    #[test]
    fn annotations_of_both_kinds_and_of_none() {
        let checksum = Digest::of(b"").to_string();
        let read = |prefix: &str, position: &str, split: Option<&str>, size: u64| {
            let mut annotations = Annotations::new();
            annotations.insert(format!("{prefix}manifest-checksum"), checksum.clone());
            annotations.insert(format!("{prefix}manifest-position"), position.to_owned());
            if let Some(split) = split {
                annotations.insert(format!("{prefix}tarsplit-position"), split.to_owned());
            }
            Position::from_annotations(&annotations, size).map(|found| {
                let table = found.table;
                let split = found.split.map(|split| split.offset);
                (table.offset, table.length, table.content, split)
            })
        };
        for prefix in PREFIXES {
            assert_eq!(read(prefix, "5:6:7:1", None, 11), Some((5, 6, 7, None)));
            assert_eq!(
                read(prefix, "5:6:7:1", Some("1:2:3"), 11),
                Some((5, 6, 7, Some(1)))
            );
            for (position, split, size) in [
                ("5:6:7:1", None, 10),
                ("5:6:7:1", Some("10:2:3"), 11),
                ("5:6:7:2", None, 11),
                ("5:6:7", None, 11),
                ("5:6:7:1:1", None, 11),
                ("-5:6:7:1", None, 11),
                ("18446744073709551615:6:7:1", None, 11),
                ("5:60000000:7:1", None, u64::MAX),
                ("5:6:60000000:1", None, 11),
                ("", None, 11),
            ] {
                assert_eq!(
                    read(prefix, position, split, size),
                    None,
                    "{position} {split:?}"
                );
            }
        }
        assert_eq!(read("org.example.", "5:6:7:1", None, 11), None);
    }

    #[test]
    fn what_is_no_table() {
        let position = Position {
            format: Format::ZstdChunked,
            table: Extent {
                offset: 0,
                length: 0,
                content: 0,
            },
            digest: None,
            split: None,
        };
        for bytes in [&b""[..], b"{}", &[0x28, 0xb5, 0x2f, 0xfd]] {
            let read = position
                .json(bytes)
                .and_then(|json| read_entries(&json, &mut |_| {}));
            assert!(read.is_err());
        }
        let good = r#"{"entries":[{},{"name":"a","new":1}],"also":{},"version":1}"#;
        let mut names = Vec::new();
        read_entries(good.as_bytes(), &mut |entry| names.push(entry.name)).unwrap();
        assert_eq!(names, ["", "a"]);
        for json in [
            r#"{"version":2,"entries":[]}"#,
            r#"{"entries":[]}"#,
            r#"{"version":1}"#,
            r#"{"version":1,"entries":[],"entries":[]}"#,
            r#"{"version":1,"entries":[]} more"#,
            r#"{"version":1,"entries":[{"offset":"1"}]}"#,
            r#"{"version":1,"entries":[{"offset":99999999999999999999}]}"#,
        ] {
            assert!(
                read_entries(json.as_bytes(), &mut |_| {}).is_err(),
                "{json}"
            );
        }
        // A few kilobytes that become more than anything needs.
        let bomb = " ".repeat(usize::try_from(TABLE_BYTES_MAX).unwrap() + 1);
        let bomb = zstd::encode_all(bomb.as_bytes(), 3).unwrap();
        assert!(bomb.len() < 100_000);
        let error = position.json(&bomb).unwrap_err();
        assert_eq!(error.to_string(), "a table of more than 50 MiB");
        let told = Position {
            digest: Some(Digest::of(b"another")),
            ..position
        };
        let table = zstd::encode_all(good.as_bytes(), 3).unwrap();
        let error = told.json(&table).unwrap_err().to_string();
        assert!(error.contains("annotations"), "{error}");
    }
}
