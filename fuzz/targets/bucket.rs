//! What a bucket says that a registry lies in: keys of its lists, and the small objects of ours. Whatever is taken for something is exactly
//! what would have been written for it.
#![no_main]

use registry_server::fuzzing;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    for key in text.lines() {
        for taken in fuzzing::bucket_key(key) {
            // Lists are read without slashes at the ends of keys.
            assert_eq!(taken, key.trim_matches('/'));
        }
    }
    if let Some((key, id)) = fuzzing::bucket_note(data) {
        assert!(key.starts_with("blobs/") && !key.split('/').any(|part| part == ".."));
        assert_eq!(format!("{key}\n{id}").as_bytes(), data);
    }
    if let Some(digest) = fuzzing::bucket_link(data) {
        assert_eq!(digest.to_string(), text.trim());
    }
});
