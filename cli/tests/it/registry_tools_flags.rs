//! Flags of crane, skopeo and regctl: each is one of ours, or is refused in words of its own.

use crate::support::{longshore, workspace};

#[test]
fn every_flag_of_registry_tools_is_built_or_refused_by_name() {
    let list = std::fs::read_to_string(workspace().join("testdata/remote/flags.txt")).unwrap();
    let (mut flags, mut wanting) = (0, Vec::new());
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let (commands, theirs) = line.split_once(": ").unwrap();
        let (_, ours) = commands.split_once(" = ").unwrap();
        let words: Vec<&str> = ours.split(' ').collect();
        for flag in theirs.split(' ') {
            // Nothing runs: what follows is nobody's flag.
            let ran = longshore(&[&words[..], &[flag, "--no-such-flag"]].concat());
            let text = String::from_utf8_lossy(&ran.stderr).into_owned();
            let refused = format!("crane's, skopeo's or regctl's flag `{flag}` is not built");
            let is_refused = text.contains(&refused) && text.contains("\n  tip: ");
            let is_ours = !text.contains("is not built")
                && !text.contains(&format!("unexpected argument '{flag}'"));
            if ran.status.code() != Some(2) || !(is_refused || is_ours) {
                wanting.push(format!("{commands} {flag}: {text}"));
            }
            flags += 1;
        }
    }
    assert!(flags > 250, "{flags}");
    assert!(wanting.is_empty(), "{}", wanting.join("\n"));
}
