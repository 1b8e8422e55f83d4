//! Expanding a word ends, in little space, and its words are its text without the blanks between them.
#![no_main]

use builder::dockerfile::Escape;
use builder::dockerfile::words::expand;

/// The word, and the values of `A`, `B`, …, with NUL between them.
fn parts(data: &[u8]) -> Vec<String> {
    data.split(|&byte| byte == 0)
        .map(|part| String::from_utf8_lossy(part).into_owned())
        .collect()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut parts = parts(data);
    let word = parts.remove(0);
    let lookup = |name: &str| {
        let [letter @ b'A'..=b'Z'] = name.as_bytes() else {
            return None;
        };
        parts.get(usize::from(letter - b'A')).map(String::as_str)
    };
    for escape in ['\\', '`'] {
        let Ok(expanded) = expand(&word, Escape(escape), &lookup) else {
            continue;
        };
        let kept: usize = expanded.words.iter().map(String::len).sum();
        assert!(kept <= expanded.text.len());
        assert!(expanded.unset.iter().all(|name| lookup(name).is_none()));
        if !word.contains(['$', '\'', '"', escape]) {
            assert_eq!(expanded.text, word);
            let words: Vec<&str> = word.split_whitespace().collect();
            assert_eq!(expanded.words, words);
        }
    }
});
