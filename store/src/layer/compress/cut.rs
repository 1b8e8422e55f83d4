//! Where a file is cut: by its content, so that a change moves no cuts but those near it.
//!
//! A gear hash: each byte shifts what is known of those before it out by a bit, so a cut depends on the last 64 bytes.

/// Shortest piece in bytes; a frame of its own costs more than it can save below.
pub(super) const PIECE_BYTES_MIN: usize = 16 * 1024;

/// Longest piece in bytes, for content that no hash cuts.
pub(super) const PIECE_BYTES_MAX: usize = 1024 * 1024;

/// Cuts where this many of the hash's bits are zero: every 64 KiB or so, after the shortest piece.
const ZEROS: u32 = 16;

/// Part of the format: other numbers give other cuts, and layers would share nothing with those written before.
const GEAR: [u64; 256] = gear();

const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state = 0x6c6f_6e67_7368_6f72_u64;
    let mut index = 0;
    while index < table.len() {
        // splitmix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[index] = mixed ^ (mixed >> 31);
        index += 1;
    }
    table
}

/// Looks for the cuts of one file.
#[derive(Default)]
pub(super) struct Cutter {
    hash: u64,
    /// Bytes of the piece so far.
    length: usize,
}

impl Cutter {
    /// How many of `bytes` belong to the piece that is under way, and whether it ends there.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (index, byte) in bytes.iter().enumerate() {
            self.hash = (self.hash << 1).wrapping_add(GEAR[usize::from(*byte)]);
            self.length += 1;
            let is_cut = self.length >= PIECE_BYTES_MIN && self.hash >> (64 - ZEROS) == 0;
            if is_cut || self.length == PIECE_BYTES_MAX {
                *self = Cutter::default();
                return (index + 1, true);
            }
        }
        (bytes.len(), false)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes that do not repeat, another sequence for each `state`.
    pub(crate) fn noise(length: usize, mut state: u64) -> Vec<u8> {
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect()
    }

    fn pieces(bytes: &[u8], at_once: usize) -> Vec<&[u8]> {
        let mut cutter = Cutter::default();
        let (mut pieces, mut start) = (Vec::new(), 0);
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes.len().min(at + at_once);
            let (taken, ends) = cutter.take(&bytes[at..end]);
            at += taken;
            if ends {
                pieces.push(&bytes[start..at]);
                start = at;
            }
        }
        if start < bytes.len() {
            pieces.push(&bytes[start..]);
        }
        pieces
    }

    #[test]
    fn cuts_depend_on_content_alone() {
        let bytes = noise(4_000_000, 7);
        let whole = pieces(&bytes, bytes.len());
        for at_once in [1, 100, 70_001] {
            assert_eq!(pieces(&bytes, at_once), whole);
        }
        let (last, full) = whole.split_last().unwrap();
        assert!(
            full.iter()
                .all(|piece| (PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece.len()))
        );
        assert!(last.len() <= PIECE_BYTES_MAX);
        assert!((30..100).contains(&whole.len()), "{}", whole.len());
        // What is put in changes the pieces around it.
        let changed = [&bytes[..2_000_000], b"a change", &bytes[2_000_000..]].concat();
        let new = pieces(&changed, changed.len())
            .into_iter()
            .filter(|piece| !whole.contains(piece))
            .count();
        assert!((1..=3).contains(&new), "{new}");
    }

    #[test]
    fn content_without_any_cut_is_cut_by_length() {
        let zeros = vec![0; 3 * PIECE_BYTES_MAX + 5];
        let lengths: Vec<usize> = pieces(&zeros, 1 << 20)
            .iter()
            .map(|piece| piece.len())
            .collect();
        assert_eq!(
            lengths,
            [PIECE_BYTES_MAX, PIECE_BYTES_MAX, PIECE_BYTES_MAX, 5]
        );
    }
}
