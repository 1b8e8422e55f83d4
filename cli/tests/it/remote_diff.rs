//! `remote diff`: what tells two images apart, wherever they lie.

use serde_json::{Value, json};

use crate::support::{Place, Server, tool};

const STATUS: &str = "Package: curl\nStatus: install ok installed\nVersion: VERSION\n\nPackage: gone\nStatus: install ok installed\nVersion: 1\n";

/// Two images that differ in everything that is compared.
fn two(place: &Place) {
    place.add_busybox("busybox");
    let one = [
        (
            "Dockerfile",
            "FROM busybox\nENV A=1 B=2\nLABEL l=1\nCOPY status /var/lib/dpkg/status\nCOPY same old changed /d/\n",
        ),
        ("status", &STATUS.replace("VERSION", "7.88")),
        ("same", "s\n"),
        ("old", "o\n"),
        ("changed", "1\n"),
    ];
    let context = place.context("one", &one);
    place.build("app:1", &context);
    let status = STATUS
        .replace("VERSION", "8.0")
        .replace("Package: gone", "Package: new");
    let two = [
        (
            "Dockerfile",
            "FROM busybox\nENV A=1 B=3\nLABEL l=1\nCOPY status /var/lib/dpkg/status\nCOPY same changed /d/\nRUN chmod 600 /d/same && ln -s same /d/link && rm /bin/vi\n",
        ),
        ("status", &status),
        ("same", "s\n"),
        ("changed", "22\n"),
    ];
    let context = place.context("two", &two);
    place.build("app:2", &context);
}

#[test]
fn what_tells_images_apart_is_told_wherever_they_lie() {
    let place = Place::new();
    two(&place);
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/app:1", registry.host);
    place.run(["tag", "app:1", &name]).ok();
    place.run(["push", &name]).ok();
    let archive = place.path("app.tar");
    place.ok(["save", "app:2", "-o"], [&archive]);
    let layout = format!("oci:{}", place.path("layout").display());
    let from = format!("docker-archive:{}", archive.display());
    tool(
        "skopeo",
        &["copy", "-q", "--insecure-policy", &from, &layout],
    );
    let diff = |words: &[&str]| place.run([&["remote", "diff"], words].concat());
    let expected = [
        "packages:",
        "  ~ dpkg curl 7.88 → 8.0",
        "  - dpkg gone 1",
        "  + dpkg new 1",
        "files:",
        "  - /bin/vi ",
        "  ~ /d/changed size 2 → 3, content",
        "  + /d/link → same",
        "  - /d/old 2 bytes",
        "  ~ /d/same mode 0644 → 0600",
        "  ~ /var/lib/dpkg/status ",
    ];
    for (from, to) in [
        ("store:app:1", "store:app:2"),
        (&name, &layout),
        (&name, &from),
    ] {
        let told = diff(&["--type", "package,file", from, to]).ok();
        let mut lines = told.lines();
        assert!(lines.next().unwrap().starts_with("--- "), "{told}");
        assert!(lines.next().unwrap().starts_with("+++ "), "{told}");
        let lines: Vec<&str> = lines.collect();
        assert_eq!(lines.len(), expected.len(), "{told}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.starts_with(expected), "no `{expected}` in:\n{told}");
        }
        let told = diff(&["--type", "config", from, to]).ok();
        assert!(told.contains("\nconfig:\n  - Env B=2\n"), "{told}");
        assert!(told.contains("  + Env B=3"), "{told}");
        assert!(
            !told.contains("Env A") && !told.contains("Labels"),
            "{told}"
        );
        assert_eq!(
            diff(&["--type", "file", "--exit-code", from, to]).code,
            Some(1)
        );
    }
    let all = diff(&[&name, &layout]).ok();
    for section in ["config:", "layers:", "packages:", "files:", "size:"] {
        assert!(all.lines().any(|line| line == section), "{section}: {all}");
    }
    // The same image in two places.
    let same = diff(&[
        "--type",
        "config,file,package",
        "--exit-code",
        "store:app:2",
        &layout,
    ]);
    assert_eq!(same.ok(), "");
    let told = diff(&["--json", &name, &layout]).ok();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["same"], false);
    assert_eq!(told["from"]["name"], name.as_str());
    let curl = json!({"manager": "dpkg", "name": "curl", "from": "7.88", "to": "8.0"});
    assert_eq!(told["packages"][0], curl);
    let old = &told["files"][3];
    assert_eq!((&old["path"], &old["to"]), (&json!("/d/old"), &Value::Null));
    assert_eq!(
        (&old["from"]["type"], &old["from"]["mode"]),
        (&json!("file"), &json!("0644"))
    );
    diff(&["--platform", "linux/arm64", &name, &layout]).fails(1, "has no image for linux/arm64");
    diff(&[&name]).fails(2, "<TO>");
    diff(&["--type", "files", &name, &layout]).fails(2, "possible values");
}
