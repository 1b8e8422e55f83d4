//! Manifests as they are pushed and pulled: the server and the client see the same content in the same bytes.
#![no_main]

use std::collections::BTreeSet;

use registry_client::referrers::descriptor_of;
use registry_server::fuzzing;
use store::oci::manifest::ParsedManifest;
use store::oci::{Digest, MediaType, RawManifest};

// The media type, a NUL, and the bytes.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let end = data
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(data.len());
    let media_type = String::from_utf8_lossy(&data[..end]);
    let bytes = data.get(end + 1..).unwrap_or_default();
    let sent_as = (!media_type.is_empty()).then_some(&*media_type);
    let read = RawManifest::parse(bytes.to_vec(), sent_as);
    if let Ok(raw) = &read {
        assert_eq!(raw.digest(), Digest::of(bytes));
        assert_eq!(descriptor_of(raw).digest, raw.digest());
        assert_eq!(descriptor_of(raw).size, bytes.len() as u64);
    }
    let Some((media_type, needed)) = fuzzing::manifest(bytes, sent_as) else {
        return;
    };
    assert!(!media_type.is_empty() && media_type.len() <= 255);
    assert!(!media_type.bytes().any(|byte| byte < b' '));
    // Put a second time, by a client that says what it was told.
    let again = fuzzing::manifest(bytes, Some(&media_type));
    if !media_type.contains([';', ',']) && media_type.trim() == media_type {
        assert_eq!(again, Some((media_type.clone(), needed.clone())));
    }
    let kind = MediaType::new(media_type.clone());
    if !kind.is_manifest() && !kind.is_index() {
        assert!(needed.is_empty(), "of a type that is not known: {needed:?}");
        return;
    }
    let Ok(raw) = RawManifest::parse(bytes.to_vec(), Some(&media_type)) else {
        return;
    };
    let needed: BTreeSet<Digest> = needed.into_iter().collect();
    match raw.parsed() {
        ParsedManifest::Image(image) => {
            let layers = image.layers.iter().filter(|layer| {
                let foreign = ["nondistributable", ".foreign."];
                layer.urls.is_empty()
                    && !foreign.iter().any(|word| layer.media_type.0.contains(word))
            });
            let seen: BTreeSet<Digest> = layers.map(|layer| layer.digest).collect();
            assert!(seen.is_subset(&needed), "{seen:?} {needed:?}");
            let mut all: BTreeSet<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
            all.insert(image.config.digest);
            assert!(needed.is_subset(&all), "{all:?} {needed:?}");
        }
        ParsedManifest::Index(index) => {
            let seen: BTreeSet<Digest> = index.manifests.iter().map(|one| one.digest).collect();
            assert_eq!(seen, needed);
        }
    }
});
