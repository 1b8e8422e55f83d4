//! `longshore info`: what it says of where it runs.

use serde_json::Value;

use crate::support::{LONGSHORE, Place};

fn info(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn root_has_user_namespaces_where_the_kernel_has_them() {
    let place = Place::new();
    let found = info(&place.run(["info", "--json"]).ok());
    let lacks = found["lacks"].as_array().unwrap();
    match found["mode"].as_str().unwrap() {
        "root-with-user-namespaces" => {
            let about_root = |lack: &Value| lack["what"].as_str().unwrap().starts_with("root in");
            assert!(!lacks.iter().any(about_root), "{found}");
        }
        "root" => assert!(!lacks.is_empty(), "{found}"),
        other => panic!("{other}: the tests run as root"),
    }
    let text = place.run(["info"]).ok();
    for line in ["Mode:       root", "Why:        it is root", "Limits:     "] {
        assert!(text.contains(line), "{text}");
    }
}

/// In a container with docker's default confinement: our own.
#[test]
fn a_container_is_told_what_it_lacks() {
    let place = Place::with_busybox();
    let words = ["run", "--rm", "-v", "/:/host", "busybox", "chroot", "/host"];
    let found = info(&place.words(words, [LONGSHORE, "info", "--json"]).ok());
    assert_eq!(found["mode"], "refused", "{found}");
    let why = found["why"].as_str().unwrap();
    assert!(why.starts_with("user namespaces are refused: "), "{why}");
    assert!(
        why.ends_with("(by a filter of system calls: this is a container)"),
        "{why}"
    );
    let better = found["lacks"][0]["better"].as_str().unwrap();
    assert!(
        better.contains("--security-opt seccomp=unconfined"),
        "{better}"
    );
    // And a build says the same, at once.
    let words = ["run", "--rm", "-v", "/:/host", "busybox", "chroot", "/host"];
    let ran = place.words(words, [LONGSHORE, "images"]);
    assert_ne!(ran.code, Some(0), "{ran}");
    assert!(
        ran.stderr.contains("user namespaces are refused here"),
        "{ran}"
    );
}
