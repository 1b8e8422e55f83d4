//! Docker's own flags: each is one of ours, or is refused in words of its own.

use std::collections::BTreeSet;

use crate::support::{longshore, stdout, workspace};

/// The long flags that a help text speaks of.
fn flags(help: &str) -> BTreeSet<String> {
    let separators = |c: char| !(c.is_ascii_alphanumeric() || c == '-');
    let words = help.split(separators);
    let flags = words.filter(|word| word.starts_with("--") && word.len() > 2);
    flags.map(str::to_owned).collect()
}

#[test]
fn every_flag_of_dockers_is_built_or_refused_by_name() {
    let read = |path: &str| std::fs::read_to_string(workspace().join(path)).unwrap();
    let page = read("docs/reference/containers.md");
    let list = read("testdata/docker/flags.txt");
    let (mut commands, mut wanting) = (0, Vec::new());
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let (command, theirs) = line.split_once(':').unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let ours = longshore(&[&words[..], &["--help"]].concat());
        assert!(ours.status.success(), "`{command}`");
        let ours = flags(&stdout(&ours));
        for flag in flags(theirs).difference(&ours) {
            let refused = longshore(&[&words[..], &[flag.as_str()]].concat());
            assert_ne!(refused.status.code(), Some(0), "{command} {flag}");
            let text = String::from_utf8_lossy(&refused.stderr).into_owned();
            let told = format!("docker's flag `{flag}` is not built");
            let is_told = text.contains(&told) && text.contains("tip: ");
            if !is_told || !page.contains(&format!("`{flag}`")) {
                wanting.push(format!("{command} {flag}: {text}"));
            }
        }
        commands += 1;
    }
    assert!(commands > 30, "{commands}");
    assert!(wanting.is_empty(), "{}", wanting.join("\n"));
}
