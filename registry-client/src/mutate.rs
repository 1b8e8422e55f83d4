//! Seeded damage to well-formed text, for the tests of the parsers of foreign text.

/// A reproducible stream of damaged texts.
pub(crate) struct Mutations {
    state: u64,
}

impl Mutations {
    pub(crate) fn new(seed: u64) -> Mutations {
        Mutations { state: seed }
    }

    /// A number below `limit` (SplitMix64).
    fn below(&mut self, limit: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (limit as u64)).expect("smaller than a usize")
    }

    /// `seed` with one to four characters removed, doubled, swapped or replaced.
    pub(crate) fn of(&mut self, seed: &str) -> String {
        const SPICE: [char; 14] = [
            '"', '\\', ',', '=', '<', '>', ';', '-', '9', '\0', '\n', 'é', ' ', '{',
        ];
        let mut text: Vec<char> = seed.chars().collect();
        for _ in 0..=self.below(4) {
            if text.is_empty() {
                break;
            }
            let at = self.below(text.len());
            match self.below(4) {
                0 => drop(text.remove(at)),
                1 => text.insert(at, text[at]),
                2 => text[at] = SPICE[self.below(SPICE.len())],
                _ => text.truncate(at),
            }
        }
        text.into_iter().collect()
    }
}
