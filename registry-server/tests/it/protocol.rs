//! distribution-spec, endpoint by endpoint, over one raw connection.

use registry_server::RunningServer;
use store::oci::{Digest, DigestAlgorithm, Hasher, MediaType};

use crate::client::{Client, noise};

/// Runs a test on disk storage and on memory storage.
fn on_both(test: impl Fn(&RunningServer)) {
    let root = tempfile::tempdir().unwrap();
    test(&RunningServer::start(root.path()).unwrap());
    test(&RunningServer::start_in_memory().unwrap());
}

fn manifest_of(config: &Digest, layers: &[(&Digest, usize)]) -> Vec<u8> {
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| {
            serde_json::json!({"mediaType": MediaType::OCI_LAYER_GZIP, "digest": digest.to_string(), "size": size})
        })
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config.to_string(), "size": 2},
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

#[test]
fn pushes_and_pulls_an_image() {
    on_both(|server| {
        let mut client = Client::new(server.addr);
        assert_eq!(client.get("/v2/").expect(200).body, b"{}");
        let layer = noise(3_000_000, 1);
        let config = client.push_blob("team/app", b"{}");
        let digest = client.push_blob("team/app", &layer);
        let manifest = manifest_of(&config, &[(&digest, layer.len())]);
        let put = client
            .put_manifest("team/app", "v1", MediaType::OCI_MANIFEST, &manifest)
            .expect(201);
        let manifest_digest = Digest::of(&manifest).to_string();
        assert_eq!(
            put.header("docker-content-digest"),
            Some(manifest_digest.as_str())
        );
        for reference in ["v1", &manifest_digest] {
            let target = format!("/v2/team/app/manifests/{reference}");
            let got = client.get(&target).expect(200);
            assert_eq!(got.body, manifest);
            assert_eq!(got.header("content-type"), Some(MediaType::OCI_MANIFEST));
            let head = client.head_of(&target).expect(200);
            assert_eq!(
                head.header("content-length"),
                Some(manifest.len().to_string().as_str())
            );
        }
        let target = format!("/v2/team/app/blobs/{digest}");
        let got = client.get(&target).expect(200);
        assert_eq!(Digest::of(&got.body), digest);
        let head = client.head_of(&target).expect(200);
        assert_eq!(head.header("content-length"), Some("3000000"));
        assert_eq!(
            head.header("docker-content-digest"),
            Some(digest.to_string().as_str())
        );
        assert_eq!(
            client.get("/v2/team/app/tags/list").expect(200).json(),
            serde_json::json!({"name": "team/app", "tags": ["v1"]})
        );
        assert_eq!(
            client.get("/v2/_catalog").expect(200).json(),
            serde_json::json!({"repositories": ["team/app"]})
        );
    });
}
