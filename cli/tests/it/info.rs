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
    assert_eq!(found["mode"], "chroot", "{found}");
    assert_eq!(found["privilege"], "root of a container", "{found}");
    assert_eq!(found["layers"], "copied", "{found}");
    let why = found["why"].as_str().unwrap();
    assert!(why.starts_with("user namespaces are refused: "), "{why}");
    assert!(
        why.ends_with("(by a filter of system calls: this is a container)"),
        "{why}"
    );
    let lacks = found["lacks"].as_array().unwrap();
    let of = |text: &str| {
        let lack = lacks
            .iter()
            .find(|lack| lack["what"].as_str().unwrap().contains(text));
        lack.unwrap_or_else(|| panic!("no `{text}` in {found}"))["better"]
            .as_str()
            .unwrap()
    };
    let better = of("isolation");
    assert!(
        better.contains("--security-opt seccomp=unconfined"),
        "{better}"
    );
    assert_eq!(of("overlayfs"), "namespaces, as above");
    // What needs neither works.
    let words = ["run", "--rm", "-v", "/:/host", "busybox", "chroot", "/host"];
    let ran = place.words(words, [LONGSHORE, "images"]);
    assert!(ran.ok().starts_with("REPOSITORY"), "{ran}");
}
