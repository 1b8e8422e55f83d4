//! Tars as zstd:chunked and eStargz, and tables and footers of such blobs: a tar comes back as it was, and pieces lie one
//! behind the other.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};

use store::layer::compress::estargz;
use store::layer::compress::table::{Extent, Format, Position};
use store::layer::compress::{Compression, compressor, decompressor};
use store::layers::pieces::extents;
use store::oci::{DiffId, Digest};

/// Bytes of end blocks, which eStargz writes anew.
const END: usize = 1024;

// A table's JSON, the end of an eStargz blob, or anything else as a tar.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.first() {
        Some(b'{') => {
            for format in [Format::ZstdChunked, Format::Estargz] {
                let table = match format {
                    Format::ZstdChunked => stored(data),
                    Format::Estargz => packed(Compression::Gzip(1), &entry(data)),
                };
                let position = at(format, 1 << 20, table.len() as u64);
                let pieces = extents(&table, &position).unwrap_or_default();
                check(&pieces, position.pieces_end());
            }
        }
        Some(0x1f) => end(data),
        _ => {
            tar(data);
            estargz_tar(data);
        }
    }
});

fn at(format: Format, offset: u64, length: u64) -> Position {
    Position {
        format,
        table: Extent {
            offset,
            length,
            content: 0,
        },
        digest: None,
        split: None,
    }
}

/// A foreign blob's bytes from the table on.
fn end(data: &[u8]) {
    let size = data.len() as u64;
    let footer = &data[data.len().saturating_sub(51)..];
    if let Some(found) = estargz::position(footer, size) {
        assert!(found.table.offset + found.table.length + estargz::FOOTER_BYTES == size);
    }
    let pieces = extents(data, &at(Format::Estargz, 1 << 20, size)).unwrap_or_default();
    check(&pieces, 1 << 20);
}

fn packed(compression: Compression, data: &[u8]) -> Vec<u8> {
    let mut packed = compressor(Vec::new(), compression, 1).expect("a thread");
    packed.write_all(data).expect("in memory");
    packed.finish().expect("in memory")
}

fn unpacked(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut reader = decompressor(blob).expect("it is compressed");
    reader.read_to_end(&mut tar).expect("it is whole");
    tar
}

fn tar(data: &[u8]) {
    let blob = packed(Compression::ZstdChunked(1), data);
    assert!(unpacked(&blob) == data);
    let file = file_of(&blob);
    let size = blob.len() as u64;
    let Some(position) = Position::from_footer(&file, size).expect("a file") else {
        return;
    };
    let annotations = position.annotations(&file).expect("a file");
    let told = Position::from_annotations(&annotations, size).expect("our own");
    assert_eq!(told.table, position.table);
    assert_eq!(told.split, position.split);
    whole(&position, &file);
}

fn estargz_tar(data: &[u8]) {
    let mut chunked = compressor(Vec::new(), Compression::Estargz(1), 1).expect("a thread");
    chunked.write_all(data).expect("in memory");
    let (blob, rewritten) = chunked.finish_telling().expect("in memory");
    let rewritten = rewritten.expect("it may be another tar");
    let tar = unpacked(&blob);
    assert!(rewritten.diff_id == DiffId(Digest::of(&tar)));
    assert!(rewritten.bytes == tar.len() as u64);
    let file = file_of(&blob);
    let Some(position) = Position::from_footer(&file, blob.len() as u64).expect("a file") else {
        assert!(tar == data);
        return;
    };
    let zeros = data.iter().rev().take_while(|byte| **byte == 0).count();
    let content = data.len() - zeros;
    assert!(tar.len() > content + END && tar[..content] == data[..content]);
    let told = position.annotations(&file).expect("our own");
    assert!(estargz::table_digest(&told).is_some());
    whole(&position, &file);
}

/// The pieces of a blob of ours are all of it up to the table.
fn whole(position: &Position, file: &File) {
    let table = position.read(file).expect("a file");
    let pieces = extents(&table, position).expect("our own");
    check(&pieces, position.pieces_end());
    let bytes: u64 = pieces.iter().map(|(_, length)| length).sum();
    assert_eq!(bytes, position.pieces_end());
}

/// Pieces begin at the start and have nothing between them.
fn check(pieces: &[(u64, u64)], end: u64) {
    let mut next = 0;
    for (at, length) in pieces {
        assert!(*at == next && *length > 0);
        next = at + length;
    }
    assert!(next <= end);
}

fn file_of(bytes: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("longshore-fuzz-{}", std::process::id()));
    std::fs::write(&path, bytes).expect("a temporary file");
    let file = File::open(&path).expect("it was just written");
    let _ = std::fs::remove_file(path);
    file
}

/// A table's entry in a tar.
fn entry(json: &[u8]) -> Vec<u8> {
    let mut block = [0; 512];
    block[..17].copy_from_slice(b"stargz.index.json");
    block[124..136].copy_from_slice(format!("{:011o}\0", json.len()).as_bytes());
    block[156] = b'0';
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    [&block[..], json].concat()
}

/// A zstd frame that holds bytes as they are, so that what is fuzzed is what they say.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let size = u32::try_from(bytes.len()).expect("inputs are small");
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&size.to_le_bytes());
    frame.extend_from_slice(&(size << 3 | 1).to_le_bytes()[..3]);
    frame.extend_from_slice(bytes);
    frame
}
