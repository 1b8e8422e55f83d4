//! What deflate would only lose time on: bytes that are compressed, encrypted or random already, as in `.gz`, `.png`, `.jar`.
//!
//! It takes longer over them than over anything else, to find nothing. They are told by two looks that cost a tenth of that: in a
//! sample of them all 256 values are equally frequent, and nothing comes twice. Where either is not so, deflate decides.

use std::iter;

/// Bytes that are decided on at once.
const BLOCK_BYTES: usize = 64 * 1024;

/// Fewer say too little about themselves.
const BLOCK_BYTES_MIN: usize = 4 * 1024;

/// Places that a block's sample is taken from, and bytes at each.
const SPOTS: usize = 16;
const SPOT_BYTES: usize = 512;

/// By how much, in percent, the chance that two bytes are equal may be larger than where all values are equally frequent: random
/// bytes are within one, what zstd and deflate wrote within two, and what Huffman's code alone could shorten by a hundredth is not.
const EXCESS_PERCENT: u64 = 2;

/// From how much on, in percent, the first spots tell it by themselves: so far off are random bytes never, and text always.
const PLAIN_PERCENT: u64 = 20;
const PLAIN_SPOTS: usize = 2;

/// What the places begin with that are looked for again, so that the same bytes are, wherever they lie: one of 128 places where all
/// values are equally frequent.
const ANCHORS: [u8; 2] = [0x5b, 0xdb];

/// Places that are remembered, as a power of two: twice as many as a block has.
const REMEMBERED_BITS: u32 = 10;

/// So many places that come again are no accident.
const REPEATS_MAX: usize = 8;

/// Cuts bytes into runs that are worth compressing, or dense, in turn.
pub(super) fn runs(bytes: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    let mut blocks = bytes
        .chunks(BLOCK_BYTES)
        .map(|block| (is_dense(block), block.len()))
        .peekable();
    let mut rest = bytes;
    iter::from_fn(move || {
        let (dense, mut length) = blocks.next()?;
        while let Some((_, more)) = blocks.next_if(|(next, _)| *next == dense) {
            length += more;
        }
        let (run, behind) = rest.split_at(length);
        rest = behind;
        Some((dense, run))
    })
}

/// Whether deflate would make nothing of a block.
fn is_dense(block: &[u8]) -> bool {
    block.len() >= BLOCK_BYTES_MIN && is_even(block) && !repeats(block)
}

/// Whether in a sample all values are equally frequent.
fn is_even(block: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    let mut sampled = 0;
    let exceeds = |counts: &[u32; 256], sampled: u64, percent: u64| {
        let equal: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
        // Every byte is equal to itself, and to one of 256 others.
        let expected = sampled + sampled * sampled / 256;
        equal * 100 > expected * (100 + percent)
    };
    let spots = block.chunks((block.len() / SPOTS).max(SPOT_BYTES));
    for (number, spot) in spots.enumerate() {
        if number == PLAIN_SPOTS && exceeds(&counts, sampled, PLAIN_PERCENT) {
            return false;
        }
        let spot = &spot[..spot.len().min(SPOT_BYTES)];
        for byte in spot {
            counts[usize::from(*byte)] += 1;
        }
        sampled += spot.len() as u64;
    }
    !exceeds(&counts, sampled, EXCESS_PERCENT)
}

/// Whether a block, in which all values are equally frequent, has bytes that it had before.
fn repeats(block: &[u8]) -> bool {
    let mut remembered = [0u32; 1 << REMEMBERED_BITS];
    let mut found = 0;
    for at in memchr::memchr2_iter(ANCHORS[0], ANCHORS[1], block) {
        let Some(place) = block[at..].first_chunk() else {
            break;
        };
        let here = u32::from_le_bytes(*place);
        // Knuth's multiplier: its upper bits depend on all of the four bytes.
        let slot = here.wrapping_mul(0x9e37_79b1) >> (u32::BITS - REMEMBERED_BITS);
        let before = &mut remembered[slot as usize];
        found += usize::from(*before == here);
        *before = here;
    }
    found >= REPEATS_MAX
}

#[cfg(test)]
mod tests {
    use super::super::{Compression, Compressor, compressor};
    use super::*;
    use std::io::Write;

    /// Bytes that nothing compresses; the same each time.
    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut step = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ mixed >> 31).to_le_bytes()
        };
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| step()).collect();
        bytes.truncate(length);
        bytes
    }

    fn text(length: usize) -> Vec<u8> {
        let lines = (0..).flat_map(|line| format!("line {line} of a file\n").into_bytes());
        lines.take(length).collect()
    }

    fn packed(bytes: &[u8], compression: Compression) -> Vec<u8> {
        let mut writer = compressor(Vec::new(), compression, 1).unwrap();
        writer.write_all(bytes).unwrap();
        Compressor::finish(writer).unwrap()
    }

    #[test]
    fn what_is_dense() {
        let block = BLOCK_BYTES;
        let some = noise(block, 1);
        let doubled = [&some[..block / 2], &some[..block / 2]].concat();
        let hexadecimal: Vec<u8> = noise(4 * block, 5)
            .iter()
            .flat_map(|byte| format!("{byte:02x}").into_bytes())
            .collect();
        let in_gzip = packed(&hexadecimal, Compression::GZIP);
        let in_zstd = packed(&hexadecimal, Compression::ZSTD);
        // 16-bit samples of a quiet sound: the lower byte is random.
        let sound: Vec<u8> = some.iter().flat_map(|byte| [*byte, byte >> 7]).collect();
        let mostly = [&some[..block * 3 / 4], &text(block / 4)[..]].concat();
        for (what, bytes, expect) in [
            ("noise", &some, true),
            ("a little noise", &noise(BLOCK_BYTES_MIN, 2), true),
            ("too little", &noise(BLOCK_BYTES_MIN - 1, 2), false),
            ("in gzip", &in_gzip[..block].to_vec(), true),
            ("in zstd", &in_zstd[..block].to_vec(), true),
            ("nothing", &vec![], false),
            ("zeros", &vec![0; block], false),
            ("text", &text(block), false),
            ("hexadecimal", &hexadecimal[..block].to_vec(), false),
            ("sound", &sound[..block].to_vec(), false),
            ("noise that comes twice", &doubled, false),
            (
                "noise that comes again and again",
                &noise(1000, 3).repeat(65),
                false,
            ),
            ("noise with text in it", &mostly, false),
        ] {
            assert_eq!(is_dense(bytes), expect, "{what}");
        }
    }

    #[test]
    fn runs_are_the_bytes() {
        let block = BLOCK_BYTES;
        let (noise, text) = (noise(3 * block, 4), text(2 * block));
        let check = |bytes: &[u8], expect: &[(bool, usize)]| {
            let found: Vec<(bool, &[u8])> = runs(bytes).collect();
            let lengths: Vec<_> = found
                .iter()
                .map(|(dense, run)| (*dense, run.len()))
                .collect();
            assert_eq!(lengths, expect);
            assert_eq!(found.iter().flat_map(|(_, run)| *run).count(), bytes.len());
            assert!(found.iter().flat_map(|(_, run)| *run).eq(bytes));
        };
        check(&[], &[]);
        check(&text, &[(false, 2 * block)]);
        check(&noise, &[(true, 3 * block)]);
        check(
            &[&noise[..], &text, &noise[..block], b"end"].concat(),
            &[
                (true, 3 * block),
                (false, 2 * block),
                (true, block),
                (false, 3),
            ],
        );
    }
}
