//! Registries outside that lead us inside by name. In a network namespace of its own the test has addresses of the world.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use registry_client::{BlobSource, Client, ClientError, Credential, Keychain, Options, Silent};
use store::oci::{Descriptor, MediaType, Reference};

use crate::support::{noise, options};
use crate::wire::{Line, Seen, Then, Wire};

/// Says that the test runs in its namespace.
const INSIDE: &str = "LONGSHORE_TEST_NAMESPACE";

/// Addresses of the world (RFC 5737) and one of a private network.
const ADDRESSES: [&str; 3] = ["203.0.113.1", "203.0.113.2", "10.0.0.5"];

/// Runs this test again in a network namespace of its own with those addresses; whether this is that run.
fn in_a_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let add = ADDRESSES.map(|address| format!("ip address add {address}/32 dev lo"));
    let script = format!("ip link set lo up && {} && exec \"$@\"", add.join(" && "));
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    false
}

fn world() -> Options {
    let at = |address: &str| format!("{address}:0").parse::<SocketAddr>().unwrap();
    let names = [
        ("registry.test", ADDRESSES[0]),
        ("cdn.test", ADDRESSES[1]),
        ("inner.test", ADDRESSES[2]),
    ];
    let addresses = names.map(|(name, address)| (name.to_owned(), at(address)));
    Options {
        addresses: addresses.into(),
        insecure: vec!["registry.test".to_owned()],
        ..options()
    }
}

fn registry(
    handler: impl Fn(&Seen, &mut Line<'_>) -> Then + Send + Sync + 'static,
) -> (Wire, Reference) {
    let wire = Wire::at(
        &format!("{}:5000", ADDRESSES[0]),
        move |seen, line| match seen.line().as_str() {
            "GET /v2/" => line.answer(200, &[], b"{}"),
            _ => handler(seen, line),
        },
    );
    (wire, "registry.test:5000/x".parse().unwrap())
}

/// A server that has a blob, and takes any.
fn store_at(address: &str, bytes: &[u8]) -> Wire {
    let bytes = bytes.to_vec();
    Wire::at(&format!("{address}:80"), move |seen, line| {
        match seen.method.as_str() {
            "GET" => line.answer(200, &[], &bytes),
            _ => line.answer(201, &[], b""),
        }
    })
}

#[tokio::test]
async fn names_from_outside_do_not_lead_inside() {
    if !in_a_namespace("outside::names_from_outside_do_not_lead_inside") {
        return;
    }
    let bytes = noise(7, 10_000);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let (inner, cdn) = (
        store_at(ADDRESSES[2], &bytes),
        store_at(ADDRESSES[1], &bytes),
    );
    let (_wire, reference) = registry(|seen, line| {
        // `/v2/HOST/blobs/…`
        let host = seen.target.split('/').nth(2).unwrap();
        let there = format!("http://{host}/blob");
        match seen.method.as_str() {
            "HEAD" => line.answer(404, &[], b""),
            "GET" => line.answer(307, &[("location", &there)], b""),
            _ => line.answer(202, &[("location", &there)], b""),
        }
    });
    let to =
        |name: &str| -> Reference { format!("{}/{name}", reference.registry()).parse().unwrap() };
    let client = Client::new(world()).unwrap();
    let pull = async |client: &Client, name: &str| {
        client.read_small(&to(name), &descriptor, 1 << 20).await
    };
    let push = async |client: &Client, name: &str| {
        let source = BlobSource::Bytes(Bytes::from(bytes.clone()));
        client
            .push_blob(&to(name), &descriptor, source, &[], Arc::new(Silent))
            .await
    };
    // What is outside is followed.
    assert_eq!(pull(&client, "cdn.test").await.unwrap(), bytes);
    push(&client, "cdn.test").await.unwrap();
    assert_eq!(cdn.lines().len(), 2);

    let refused = |error: ClientError| {
        assert!(matches!(error, ClientError::Misdirected { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("http://inner.test/blob"), "{text}");
        assert!(text.contains("its name leads from outside"), "{text}");
    };
    refused(pull(&client, "inner.test").await.unwrap_err());
    refused(push(&client, "inner.test").await.unwrap_err());
    assert_eq!(inner.lines(), [""; 0]);

    // What was named may be anywhere.
    let mut named = world();
    named.insecure.push("inner.test".to_owned());
    let client = Client::new(named).unwrap();
    assert_eq!(pull(&client, "inner.test").await.unwrap(), bytes);
    push(&client, "inner.test").await.unwrap();
    assert_eq!(inner.lines().len(), 2);
}

#[tokio::test]
async fn token_servers_of_registries_outside_are_outside() {
    if !in_a_namespace("outside::token_servers_of_registries_outside_are_outside") {
        return;
    }
    let inner = Wire::at(&format!("{}:443", ADDRESSES[2]), |_, _| Then::Cut);
    let _wire = Wire::at(&format!("{}:5000", ADDRESSES[0]), |_, line| {
        let challenge = "Bearer realm=\"https://inner.test/token\",service=\"x\"";
        line.answer(401, &[("www-authenticate", challenge)], b"")
    });
    let password = Credential::Basic {
        username: "user".to_owned(),
        password: "secret".to_owned(),
    };
    let client = Client::new(Options {
        keychain: Keychain::anonymous().with("registry.test:5000", password),
        ..world()
    })
    .unwrap();
    let reference: Reference = "registry.test:5000/x:1".parse().unwrap();
    let error = client.tags(&reference).await.unwrap_err();
    assert!(matches!(error, ClientError::Misdirected { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("https://inner.test/token"), "{text}");
    assert!(text.contains("its name leads from outside"), "{text}");
    assert_eq!(inner.lines(), [""; 0]);
}
