//! Tars as zstd:chunked, and tables of such blobs: a tar comes back as it was, and pieces lie one behind the other.
#![no_main]

use std::fs::File;
use std::io::{Read, Write};

use store::layer::compress::table::Position;
use store::layer::compress::{Compression, compressor, decompressor};
use store::layers::pieces::extents;

// A table's JSON, or anything else as a tar.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if data.first() == Some(&b'{') {
        check(
            &extents(&stored(data), 1 << 20).unwrap_or_default(),
            1 << 20,
        );
    } else {
        tar(data);
    }
});

fn tar(data: &[u8]) {
    let mut packed = compressor(Vec::new(), Compression::ZstdChunked(1), 1).expect("a thread");
    packed.write_all(data).expect("in memory");
    let blob = packed.finish().expect("in memory");
    let mut tar = Vec::new();
    let mut reader = decompressor(&blob[..]).expect("it is zstd");
    reader.read_to_end(&mut tar).expect("it is whole");
    assert!(tar == data);
    let file = file_of(&blob);
    let size = blob.len() as u64;
    let Some(position) = Position::from_footer(&file, size).expect("a file") else {
        return;
    };
    let annotations = position.annotations(&file).expect("a file");
    let told = Position::from_annotations(&annotations, size).expect("our own");
    assert_eq!(told.table, position.table);
    assert_eq!(told.split, position.split);
    let table = position.read(&file).expect("a file");
    let at = position.table.offset;
    let pieces = extents(&table, at).expect("our own");
    check(&pieces, at);
    // Up to the head of the table's own frame.
    let bytes: u64 = pieces.iter().map(|(_, length)| length).sum();
    assert_eq!(bytes, at - 8);
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

/// A zstd frame that holds bytes as they are, so that what is fuzzed is what they say.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let size = u32::try_from(bytes.len()).expect("inputs are small");
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&size.to_le_bytes());
    frame.extend_from_slice(&(size << 3 | 1).to_le_bytes()[..3]);
    frame.extend_from_slice(bytes);
    frame
}
