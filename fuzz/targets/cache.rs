//! What comes from a shared cache is taken for what it is or refused, and what is taken is written as it was read.
#![no_main]

use std::collections::BTreeSet;

use builder::cache::CacheKey;
use builder::cache::shared::record::SharedRecord;
use builder::cache::shared::source::SharedSource;
use builder::cache::shared::{hint, inline, mounts};
use serde_json::{Value, json};
use store::cache_mounts::CacheMountName;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, ImageConfig, RawManifest};

// A text and, after a NUL, a JSON list of descriptors. The text is an entry as it comes, the annotation of an entry with
// those layers, or the configuration of an image with those.
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let end = data
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(data.len());
    let text = &data[..end];
    let layers = data.get(end + 1..).unwrap_or_default();
    let layers: Value = serde_json::from_slice(layers).unwrap_or_else(|_| json!([EMPTY.clone()]));
    record(text.to_vec());
    mount(text.to_vec());
    hints(text.to_vec());
    source(text.to_vec());
    let text = String::from_utf8_lossy(text);
    record(entry("record", &text, &layers));
    mount(entry("mount", &text, &layers));
    hints(entry("hint", &text, &layers));
    source(entry("source", &text, &layers));
    image(&text, layers);
});

/// The blob of an entry that has none.
static EMPTY: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| {
    json!({
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        "size": 2,
    })
});

fn entry(kind: &str, text: &str, layers: &Value) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": *EMPTY,
        "layers": layers,
        "annotations": { format!("dev.longshore.cache.{kind}"): text },
    });
    manifest.to_string().into_bytes()
}

fn record(bytes: Vec<u8>) {
    let key = CacheKey([1; 32]);
    if let Ok(mut record) = SharedRecord::decode(bytes, &key) {
        assert_eq!(record.key, key);
        assert_eq!(record.known(None).layer.is_some(), record.layer.is_some());
        // Anybody's JSON; what we write into it are texts, which numbers of any precision are not.
        record
            .ingredients
            .retain(|_, ingredient| ingredient.is_string());
        let bytes = record.encode().bytes().to_vec();
        assert_eq!(SharedRecord::decode(bytes, &key), Ok(record));
    }
}

fn mount(bytes: Vec<u8>) {
    let name = CacheMountName {
        id: "id".to_owned(),
        from: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    if let Ok(blob) = mounts::decode(bytes.clone(), &name) {
        let other = CacheMountName { uid: 1, ..name };
        assert!(mounts::decode(bytes, &other).is_err(), "{blob:?}");
    }
}

fn hints(bytes: Vec<u8>) {
    if let Ok(keys) = hint::decode(bytes) {
        assert!(keys.len() <= hint::KEYS_MAX);
        let different: BTreeSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        let again = hint::encode(&keys).bytes().to_vec();
        assert_eq!(hint::decode(again), Ok(keys));
    }
}

fn source(bytes: Vec<u8>) {
    let key = [1; 32];
    if let Ok(source) = SharedSource::decode(bytes, &key) {
        if let Some(known) = &source.validators {
            assert!(known.etag.is_some() || known.last_modified.is_some());
            assert_ne!(known.etag.as_deref(), Some("*"));
        }
        let again = source.encode().bytes().to_vec();
        assert_eq!(SharedSource::decode(again, &key), Ok(source));
    }
}

fn image(config: &str, layers: Value) {
    let Ok(config) = serde_json::from_str::<ImageConfig>(config) else {
        return;
    };
    let layers: Vec<Descriptor> = serde_json::from_value(layers).unwrap_or_default();
    let Ok(records) = inline::decode(&config, &layers) else {
        return;
    };
    for record in records {
        if let Some(layer) = &record.layer {
            assert!(layers.contains(&layer.blob));
            assert!(config.rootfs.diff_ids.contains(&layer.diff_id));
        }
        // A repository makes entries of them.
        let key = record.key;
        let bytes = record.encode().bytes().to_vec();
        let manifest = RawManifest::parse(bytes.clone(), None).expect("we wrote it");
        assert!(matches!(manifest.parsed(), ParsedManifest::Image(_)));
        assert_eq!(SharedRecord::decode(bytes, &key), Ok(record));
    }
}
