//! What a registry, or whoever stands in its place, answers a client: headers are understood or not, and no answer sends
//! the client, or its credentials, where it should not go.
#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use registry_client::fuzzing::{self, Url};

static PAGE: LazyLock<Url> = LazyLock::new(|| {
    let text = "https://registry.example:5000/v2/a/tags/list?n=2";
    Url::parse(text).expect("a constant")
});

// A header's value, or two with a NUL between them, or the body of a token server's answer.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let (text, second) = text.split_once('\0').unwrap_or((&text, ""));
    ranges(text);
    places(text);
    challenges(text);
    times(text, second);
    if let Some(warning) = fuzzing::warning(text) {
        assert!(warning.len() < text.len());
    }
    if let Some((token, _)) = fuzzing::token(data) {
        assert!(!token.is_empty());
    }
});

fn ranges(text: &str) {
    if let Some((first, last, total)) = fuzzing::content_range(text) {
        assert!(first <= last && total.is_none_or(|total| last < total));
        let total = total.map_or("*".to_owned(), |total| total.to_string());
        let written = format!("bytes {first}-{last}/{total}");
        assert_eq!(
            fuzzing::content_range(&written),
            fuzzing::content_range(text)
        );
    }
    if let Some(size) = fuzzing::upload_offset(text) {
        let written = format!("0-{}", size.saturating_sub(1));
        assert_eq!(fuzzing::upload_offset(&written), Some(size), "{text:?}");
    }
}

fn places(text: &str) {
    if let Some(link) = fuzzing::next_link(text) {
        assert!(text.contains(link) && !link.contains('>'));
        if let Some(next) = fuzzing::next_page(&PAGE, link) {
            assert_eq!(next.origin(), PAGE.origin(), "{text:?}");
            assert!(next.username().is_empty() && next.password().is_none());
            assert_ne!(next.query(), PAGE.query());
        }
    }
    if let Some(place) = fuzzing::location(&PAGE, text) {
        assert!(place.username().is_empty() && place.password().is_none());
        if fuzzing::may_see_credentials(&PAGE, &place) {
            assert_eq!(place.scheme(), "https", "{text:?}");
            let host = place.host_str().expect("checked").trim_matches(['[', ']']);
            let inside = host
                .parse::<IpAddr>()
                .is_ok_and(|address| match address.to_canonical() {
                    IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
                    IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
                });
            assert!(!inside && host != "localhost", "{text:?}");
        }
    }
}

fn challenges(text: &str) {
    let found = fuzzing::challenges(text);
    assert!(found.len() <= 16);
    for parameter in found.iter().flatten() {
        // Nothing is made up: only backslashes are lost.
        assert!(parameter.len() <= text.len());
        assert!(text.contains('\\') || text.contains(parameter.as_str()));
    }
}

fn times(text: &str, second: &str) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let wait = fuzzing::retry_after(text, now);
    if let Some(date) = fuzzing::http_date(text) {
        assert!(date >= SystemTime::UNIX_EPOCH);
        assert_eq!(wait, Some(date.duration_since(now).unwrap_or_default()));
    }
    if let Some(limit) = fuzzing::rate_limit(text, second) {
        assert!(limit.limit > 0);
        assert!(
            limit
                .allowance()
                .starts_with(&format!("{} requests", limit.limit))
        );
        assert!(!limit.is_low() || limit.remaining < limit.limit);
    }
}
