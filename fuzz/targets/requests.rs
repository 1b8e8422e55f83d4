//! What a client sends a registry: no path leaves its folder, no range its blob, and what is understood is understood the
//! same way when it is written down again.
#![no_main]

use registry_server::auth::scope::{Grant, SCOPES_MAX, parse_scopes};
use registry_server::range::{ByteRange, Wanted, parse_content_range, parse_range};
use registry_server::routes::{ManifestReference, Query, Route, percent_encode};

// A path, a query, a Range, a Content-Range and scopes, with NUL between them; the first byte is the blob's size.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (size, data) = data.split_first().unwrap_or((&0, &[]));
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let mut next = || parts.next().unwrap_or_default();
    route(next());
    query(next());
    range(next(), u64::from(*size));
    content_range(next());
    scopes(next());
});

fn route(path: &str) {
    let Ok(route) = Route::parse(path) else {
        return;
    };
    let name = route.repository().map_or("a", |name| name.as_str());
    assert!(name.len() <= 255);
    for component in name.split('/') {
        let edges = [component.bytes().next(), component.bytes().last()];
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        assert!(edges.iter().all(|edge| edge.is_some_and(inner)), "{path:?}");
        let legal = |byte| inner(byte) || matches!(byte, b'.' | b'_' | b'-');
        assert!(component.bytes().all(legal), "{path:?}");
    }
    let written = match &route {
        Route::Base => "/v2/".to_owned(),
        Route::Catalog => "/v2/_catalog".to_owned(),
        Route::Extensions(None) => "/v2/_oci/ext/discover".to_owned(),
        Route::Extensions(Some(name)) => format!("/v2/{name}/_oci/ext/discover"),
        Route::Search => "/v2/_longshore/search".to_owned(),
        Route::DockerSearch => "/v1/search".to_owned(),
        Route::TagTable(name) => format!("/v2/{name}/_longshore/tags"),
        Route::Blob(name, digest) => format!("/v2/{name}/blobs/{digest}"),
        Route::Uploads(name) => format!("/v2/{name}/blobs/uploads/"),
        Route::Upload(name, id) => format!("/v2/{name}/blobs/uploads/{id}"),
        Route::Manifest(name, reference) => {
            let text = match reference {
                ManifestReference::Tag(text) | ManifestReference::Impossible(text) => text.clone(),
                ManifestReference::Digest(digest) => digest.to_string(),
            };
            assert!(!text.contains(['/', '\\', '\0']), "{path:?}");
            format!("/v2/{name}/manifests/{}", percent_encode(&text))
        }
        Route::Tags(name) => format!("/v2/{name}/tags/list"),
        Route::Referrers(name, digest) => format!("/v2/{name}/referrers/{digest}"),
    };
    assert_eq!(Route::parse(&written).ok(), Some(route), "{path:?}");
}

fn query(text: &str) {
    let query = Query::parse(Some(text));
    for key in ["n", "last", "digest", "from", "tag", "artifactType"] {
        let values: Vec<&str> = query.all(key).collect();
        assert_eq!(query.first(key), values.first().copied());
        let written: Vec<String> = values
            .iter()
            .map(|value| format!("{key}={}", percent_encode(value)))
            .collect();
        let again = Query::parse(Some(&written.join("&")));
        assert_eq!(again.all(key).collect::<Vec<_>>(), values);
    }
}

/// The bytes that are sent are those that any of the ranges asks for, and none twice.
fn range(header: &str, size: u64) {
    let Wanted::Ranges(found) = parse_range(header, size) else {
        return;
    };
    let (_, specs) = header.split_once('=').expect("a range has a unit");
    let specs: Vec<&str> = specs.split(',').map(str::trim).collect();
    assert!(!found.is_empty() && found.len() <= specs.len());
    let mut sent = vec![0; 256];
    for range in found {
        for byte in range.start..range.end {
            sent[usize::try_from(byte).expect("below 256")] += 1;
        }
    }
    let number = |text: &str| text.trim().parse::<u128>().ok();
    for byte in 0..256 {
        let asked = specs.iter().any(|spec| {
            let (first, last) = spec.split_once('-').expect("a range has two ends");
            let at = byte as u128;
            match (number(first), number(last)) {
                (None, Some(suffix)) => at + suffix >= u128::from(size),
                (Some(first), None) => at >= first,
                (Some(first), Some(last)) => (first..=last).contains(&at),
                (None, None) => true,
            }
        });
        let wanted = i32::from(asked && (byte as u64) < size);
        // Numbers of more than 38 digits are beyond this model.
        if header.len() < 40 {
            assert_eq!(sent[byte], wanted, "byte {byte} of {size} for {header:?}");
        }
        assert!(sent[byte] <= 1 && (sent[byte] == 0 || (byte as u64) < size));
    }
}

fn content_range(header: &str) {
    if let Some(range) = parse_content_range(header) {
        let ByteRange { start, end } = range;
        assert!(start < end);
        let written = format!("{start}-{}", end - 1);
        assert_eq!(parse_content_range(&written), Some(range));
    }
}

fn scopes(text: &str) {
    let grants = parse_scopes(std::iter::once(text));
    assert!(grants.len() <= SCOPES_MAX);
    let written: Vec<String> = grants.iter().map(Grant::to_string).collect();
    assert_eq!(parse_scopes(written.iter().map(String::as_str)), grants);
    for grant in &grants {
        assert!(
            grant
                .target()
                .is_none_or(|name| name.as_str() == grant.name)
        );
        assert!(!(grant.is_catalog() && grant.target().is_some()));
    }
}
