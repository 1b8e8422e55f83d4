//! What makes a gzip layer an eStargz one: the table as the tar's last entry, and a footer that says where it is.
//!
//! ```text
//! members of the tar │ landmark │ stargz.index.json, end of the tar │ footer
//! ```
//!
//! Each piece of each file's content is a gzip member of its own, and so is what is between two files; with them a reader that
//! knows nothing of it reads one gzip stream and one tar. The landmark says that nothing is to be fetched before a container
//! starts. Table and landmark are entries of the tar, so its DiffID is not that of the tar without them.

use std::io::{self, Read};

use super::table::{Extent, Format, Position, TABLE_BYTES_MAX, invalid};
use crate::layer::tar::header::{self, BLOCK, Block, checksum_matches, number, padding, text};
use crate::oci::{Annotations, Digest};

/// The table's entry in the tar.
pub(crate) const TABLE_NAME: &[u8] = b"stargz.index.json";

/// The entry that says: fetch nothing ahead.
pub(crate) const LANDMARK: &[u8] = b".no.prefetch.landmark";

/// The entry up to which a layer is fetched ahead; others write it.
pub(crate) const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";

/// What both landmarks hold.
pub(crate) const LANDMARK_CONTENT: &[u8] = &[0x0f];

/// Annotation with the digest of the table's JSON.
const TABLE_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Annotation with the bytes of the tar.
const TAR_BYTES: &str = "io.containers.estargz.uncompressed-size";

/// Bytes of the footer.
pub const FOOTER_BYTES: u64 = FOOTER_LENGTH as u64;
pub(super) const FOOTER_LENGTH: usize = 51;

/// The footer up to the offset, 16 hex digits: an empty gzip member with an extra field `SG` of 22 bytes.
const FOOTER_START: [u8; 16] = [
    0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0,
];

/// The footer behind the offset: the rest of the extra field, a stored block of nothing, checksum and length.
const FOOTER_END: [u8; 19] = *b"STARGZ\x01\x00\x00\xff\xff\0\0\0\0\0\0\0\0";

/// Permissions of the entries that are added.
const MODE: u64 = 0o444;

/// Whether a path is that of an entry that eStargz adds; of itself, a layer cannot have one in this format.
pub(super) fn is_reserved(path: &[u8]) -> bool {
    let mut names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."));
    let name = names.next().unwrap_or_default();
    names.next().is_none() && [TABLE_NAME, LANDMARK, PREFETCH_LANDMARK].contains(&name)
}

/// The header of an entry that is added.
pub(super) fn entry_header(name: &[u8], size: u64) -> Block {
    let mut block = [0; BLOCK];
    block[header::NAME][..name.len()].copy_from_slice(name);
    for (field, value) in [
        (header::MODE, MODE),
        (header::UID, 0),
        (header::GID, 0),
        (header::SIZE, size),
        (header::MTIME, 0),
    ] {
        header::put_octal(&mut block, field, value);
    }
    block[header::TYPE] = b'0';
    block[header::MAGIC].copy_from_slice(header::USTAR);
    header::seal(&mut block);
    block
}

/// The end of the tar, beginning with the table.
pub(super) fn last_entry(json: &[u8]) -> Vec<u8> {
    let mut end = entry_header(TABLE_NAME, json.len() as u64).to_vec();
    end.extend_from_slice(json);
    end.resize(end.len() + padding(json.len() as u64) + 2 * BLOCK, 0);
    end
}

/// What ends a blob whose table's member begins at `offset`.
pub(super) fn footer(offset: u64) -> Vec<u8> {
    let digits = format!("{offset:016x}");
    [&FOOTER_START[..], digits.as_bytes(), &FOOTER_END].concat()
}

/// Where the table is, by the last [`FOOTER_BYTES`] of a blob of `size` bytes; `None` if it is not eStargz.
pub fn position(footer: &[u8], size: u64) -> Option<Position> {
    // Time, flags of speed and system may be others; what is behind the offset is fixed.
    let (start, rest) = footer.split_at_checked(FOOTER_START.len())?;
    let (digits, end) = rest.split_at_checked(16)?;
    if start[..4] != FOOTER_START[..4] || start[10..] != FOOTER_START[10..] || end != FOOTER_END {
        return None;
    }
    let digits = str::from_utf8(digits).ok()?;
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let offset = u64::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
    let position = Position {
        format: Format::Estargz,
        table: Extent {
            offset,
            length: size.checked_sub(FOOTER_BYTES)?.checked_sub(offset)?,
            content: 0,
        },
        digest: None,
        split: None,
    };
    position.is_sane(size).then_some(position)
}

/// The table's JSON, from the bytes between its member's first and the footer.
///
/// # Errors
/// They are no gzip of such an entry, or it is longer than [`TABLE_BYTES_MAX`].
pub(super) fn table_in(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut tar = flate2::bufread::MultiGzDecoder::new(bytes);
    let mut block = [0; BLOCK];
    tar.read_exact(&mut block)?;
    let size = number(&block[header::SIZE]).and_then(|size| u64::try_from(size).ok());
    let is_table = checksum_matches(&block)
        && matches!(block[header::TYPE], b'0' | 0)
        && text(&block[header::NAME]) == TABLE_NAME;
    let Some(size) = size.filter(|_| is_table) else {
        return Err(invalid(
            "no entry `stargz.index.json` where the footer says",
        ));
    };
    if size > TABLE_BYTES_MAX {
        return Err(invalid("a table of more than 50 MiB"));
    }
    let mut json = Vec::new();
    let read = tar.take(size).read_to_end(&mut json)?;
    match read as u64 == size {
        true => Ok(json),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What a layer's annotations say the table's JSON hashes to; `None` if it is not eStargz.
pub fn table_digest(annotations: &Annotations) -> Option<Digest> {
    annotations.get(TABLE_DIGEST)?.parse().ok()
}

/// The annotations that tell readers of the table with that digest, in a tar of so many bytes.
pub fn annotations(table: &Digest, tar_bytes: Option<u64>) -> Annotations {
    let mut annotations = Annotations::from([(TABLE_DIGEST.to_owned(), table.to_string())]);
    if let Some(bytes) = tar_bytes {
        annotations.insert(TAR_BYTES.to_owned(), bytes.to_string());
    }
    annotations
}

/// Whether an annotation is one of those.
pub(super) fn is_annotation(name: &str) -> bool {
    [TABLE_DIGEST, TAR_BYTES].contains(&name)
}

/// The member in which a table is.
#[cfg(test)]
pub(crate) fn member_of(json: &str) -> Vec<u8> {
    let mut deflate = super::deflate(1).expect("there is such a level");
    super::member(&mut deflate, &last_entry(json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn footers() {
        let ours = footer(0x1234);
        assert_eq!(ours.len() as u64, FOOTER_BYTES);
        let found = position(&ours, 0x1234 + 100 + FOOTER_BYTES).unwrap();
        let table = (found.table.offset, found.table.length);
        assert_eq!((found.format, table), (Format::Estargz, (0x1234, 100)));
        // It is a gzip member of nothing.
        let mut nothing = Vec::new();
        let mut reader = flate2::bufread::MultiGzDecoder::new(&ours[..]);
        reader.read_to_end(&mut nothing).unwrap();
        assert!(nothing.is_empty());
        // As Go's writer makes the member, at another level.
        let mut theirs = ours.clone();
        theirs[8] = 2;
        assert!(position(&theirs, 1 << 20).is_some());
        for size in [0, 50, FOOTER_BYTES, 0x1234 + 50] {
            assert_eq!(position(&ours, size), None, "{size}");
        }
        // A table larger than anybody takes.
        assert_eq!(position(&ours, 1 << 40), None);
        for cut in 0..ours.len() {
            assert_eq!(position(&ours[..cut], 1 << 20), None);
            if !(4..10).contains(&cut) {
                let mut changed = ours.clone();
                changed[cut] ^= 0x80;
                assert_eq!(position(&changed, 1 << 20), None, "{cut}");
            }
        }
        let signed = [&ours[..16], b"+000000000000001", &ours[32..]].concat();
        assert_eq!(position(&signed, 1 << 20), None);
    }

    #[test]
    fn tables() {
        let packed = |tar: &[u8]| {
            let level = flate2::Compression::fast();
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
            gzip.write_all(tar).unwrap();
            gzip.finish().unwrap()
        };
        let good = last_entry(b"{}");
        assert_eq!(good.len(), 4 * BLOCK);
        assert_eq!(table_in(&packed(&good)).unwrap(), b"{}");
        let huge = entry_header(TABLE_NAME, TABLE_BYTES_MAX + 1);
        let mut link = entry_header(TABLE_NAME, 2);
        link[header::TYPE] = b'1';
        header::seal(&mut link);
        for bad in [
            &b""[..],
            &good[..100],
            &good[..BLOCK + 1],
            &entry_header(LANDMARK, 2),
            &[0; BLOCK],
            &huge,
            &link,
        ] {
            assert!(table_in(&packed(bad)).is_err());
        }
        assert!(table_in(b"no gzip").is_err());
    }

    #[test]
    fn reserved_names() {
        for name in [
            "stargz.index.json",
            "./.no.prefetch.landmark",
            "/.prefetch.landmark",
        ] {
            assert!(is_reserved(name.as_bytes()), "{name}");
        }
        for name in ["a/stargz.index.json", "stargz.index.jsonl", "", "./"] {
            assert!(!is_reserved(name.as_bytes()), "{name}");
        }
    }
}
