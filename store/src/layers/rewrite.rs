//! The configuration of an image whose layers were exchanged for others with the same files.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::oci::{DiffId, ImageConfig};

/// The configuration with the layers `made`, as many as it has. What else in it names one of the layers names the new one: that is how
/// records of a build, which we put there, stay true.
pub(super) fn config(mut config: ImageConfig, made: Vec<DiffId>) -> Vec<u8> {
    let before = config.rootfs.diff_ids.iter().map(DiffId::to_string);
    let after = made.iter().map(DiffId::to_string);
    let names: BTreeMap<String, String> = before.zip(after).collect();
    for value in config.extra.values_mut() {
        exchange(value, &names);
    }
    config.rootfs.diff_ids = made;
    serde_json::to_vec(&config).expect("a configuration has only text keys")
}

fn exchange(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(name) = names.get(text) {
                text.clone_from(name);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| exchange(value, names)),
        Value::Object(map) => map.values_mut().for_each(|value| exchange(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oci::{Digest, Platform};

    #[test]
    fn all_that_names_a_layer_follows() {
        let [old, kept, new] = [b"1", b"2", b"3"].map(|text| DiffId(Digest::of(text)));
        let mut before = ImageConfig::scratch(&Platform::host());
        before.rootfs.diff_ids = vec![old, kept];
        before.extra.insert(
            "org.example".to_owned(),
            json!({"list": [{"of": old}, kept, 1, null], "text": format!("x{old}")}),
        );
        let bytes = config(before.clone(), vec![new, kept]);
        let after: ImageConfig = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(after.rootfs.diff_ids, [new, kept]);
        assert_eq!(
            after.extra["org.example"],
            json!({"list": [{"of": new}, kept, 1, null], "text": format!("x{old}")})
        );
        let same = ImageConfig {
            rootfs: before.rootfs.clone(),
            extra: before.extra.clone(),
            ..after
        };
        assert_eq!(same, before);
    }
}
