//! Credential helpers: programs on `PATH`, so the work is done in a child of the test's own.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use registry_client::{Credential, CredentialError, DockerConfig, Keychain};

/// A helper that keeps one registry's credential in a file beside it, and knows tokens and troubles of its own.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
input=$(cat)
case "$1 $input" in
    "get token.example") echo '{"Username":"<token>","Secret":"id"}' ;;
    "get trouble.example") echo "no keyring" >&2; exit 1 ;;
    "get nonsense.example") echo "hunter2" ;;
    get*) cat kept 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
    store*) echo "$input" | sed 's/"ServerURL"/"Ignored"/' > kept ;;
    erase*) rm -f kept ;;
esac
"#;

#[test]
fn helpers_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("docker-credential-tested");
    std::fs::write(&helper, HELPER).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "helpers::with_a_helper_on_the_path",
            "--ignored",
            "--nocapture",
        ])
        .env("PATH", path)
        .env("HELPERS_TEST_FOLDER", folder.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{output}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(output.contains("1 passed"), "{output}");
}

#[test]
#[ignore = "run by `helpers_are_used`, with a PATH that has the helper"]
fn with_a_helper_on_the_path() {
    let folder = std::env::var("HELPERS_TEST_FOLDER").unwrap();
    let path = Path::new(&folder).join("config.json");
    let text = r#"{"credsStore":"tested","credHelpers":{"none.example":"is-not-there"},"auths":{"file.example":{"auth":"dTpw"}}}"#;
    std::fs::write(&path, text).unwrap();
    let keychain = Keychain::files([path.clone()]);
    let credential = Credential::Basic {
        username: "me".to_owned(),
        password: "pw \"x\"".to_owned(),
    };
    let from_file = Credential::Basic {
        username: "u".to_owned(),
        password: "p".to_owned(),
    };
    let lookup = |registry: &str| keychain.lookup(registry, "a/b");

    // What the helper does not have, the file may.
    assert_eq!(lookup("file.example").unwrap(), Some(from_file));
    assert_eq!(lookup("r.example").unwrap(), None);
    assert_eq!(
        lookup("token.example").unwrap(),
        Some(Credential::IdentityToken {
            username: None,
            token: "id".to_owned(),
        })
    );
    let mut config = DockerConfig::read(&path).unwrap();
    config.store("r.example", &credential).unwrap();
    config.write().unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.contains("\"r.example\": {}"), "{written}");
    assert_eq!(lookup("r.example").unwrap(), Some(credential));
    assert!(config.erase("r.example").unwrap());
    config.write().unwrap();
    assert_eq!(lookup("r.example").unwrap(), None);
    assert!(!config.erase("r.example").unwrap());

    let check = |registry: &str, expect: &str| {
        let error = lookup(registry).unwrap_err();
        assert!(matches!(error, CredentialError::Helper { .. }), "{error}");
        assert!(error.to_string().contains(expect), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    };
    check(
        "trouble.example",
        "`docker-credential-tested` failed to get: no keyring",
    );
    check("nonsense.example", "its output is not the protocol's JSON");
    check(
        "none.example",
        "`docker-credential-is-not-there` failed to get: ",
    );
}
