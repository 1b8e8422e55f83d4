//! References, digests and patterns: what is read is what is written, and what it stands for is within the grammar.
#![no_main]

use registry_client::referrers::{fallback_tag, is_fallback_tag};
use store::oci::reference::{check_repository, check_tag};
use store::oci::{Digest, DigestAlgorithm, Reference, pattern};

// A reference; or a pattern, a NUL, and a text.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(reference) = text.parse::<Reference>() {
        check(&reference);
        assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
        let familiar: Result<Reference, _> = reference.familiar().parse();
        assert_eq!(familiar, Ok(reference), "{text:?}");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.hex().len(), 2 * digest.bytes().len());
        let tag = fallback_tag(&digest);
        assert_eq!(check_tag(&tag), Ok(()));
        let known = digest.algorithm() != DigestAlgorithm::Blake3;
        assert_eq!(is_fallback_tag(&tag), known, "{tag}");
    }
    if let Some((pattern, name)) = text.split_once('\0')
        && text.len() <= 16
    {
        let chars: Vec<char> = pattern.chars().collect();
        let name_chars: Vec<char> = name.chars().collect();
        let expected = slow(&chars, &name_chars);
        assert_eq!(pattern::matches(pattern, name), expected, "{text:?}");
    }
});

fn check(reference: &Reference) {
    assert!(!reference.registry().is_empty());
    assert!(!reference.registry().contains(['/', '@', ' ', '?', '#']));
    assert_eq!(check_repository(reference.repository()), Ok(()));
    assert!(reference.tag().is_none_or(|tag| check_tag(tag).is_ok()));
    assert!(reference.tag().is_some() || reference.digest().is_some());
    // It becomes part of a URL: one that names the host that was meant.
    let url = format!("https://{}/v2/", reference.registry());
    let url = registry_client::fuzzing::Url::parse(&url);
    assert!(
        url.is_err() || url.is_ok_and(|url| url.path() == "/v2/" && url.username().is_empty()),
        "{reference}"
    );
}

/// By trying everything.
fn slow(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], text) => text.is_empty(),
        (['*', rest @ ..], text) => (0..=text.len()).any(|taken| slow(rest, &text[taken..])),
        (['?', rest @ ..], [_, after @ ..]) => slow(rest, after),
        ([wanted, rest @ ..], [first, after @ ..]) => wanted == first && slow(rest, after),
        _ => false,
    }
}
