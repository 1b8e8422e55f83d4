//! The rendered help of every command, compared with `testdata/cli/help/`. `UPDATE_EXPECT=1` rewrites it.

use std::collections::BTreeSet;

use crate::support::{longshore, stdout, workspace};

#[test]
fn every_command_explains_itself() {
    let folder = workspace().join("testdata/cli/help");
    let mut written = BTreeSet::new();
    let mut to_visit = vec![Vec::new()];
    while let Some(path) = to_visit.pop() {
        let text = help(&path);
        for child in subcommands(&text) {
            to_visit.push([path.clone(), vec![child]].concat());
        }
        assert!(text.contains("Example"), "`{path:?} --help` has no example");
        let name = [vec!["longshore".to_owned()], path].concat().join("-") + ".txt";
        expect_test::expect_file![folder.join(&name)].assert_eq(&text);
        written.insert(name);
    }
    let found: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, written, "a file without a command");
    assert!(written.len() > 18, "{written:?}");
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_right() {
    let output = longshore(&["buidl", "."]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("a similar subcommand exists: 'build'"),
        "{text}"
    );
    let output = longshore(&["build", "-o", "type=zip", "."]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("unknown type `zip`: expected image, oci, docker, tar or local"),
        "{text}"
    );
}

fn help(path: &[String]) -> String {
    let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
    arguments.push("--help");
    let output = longshore(&arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    stdout(&output)
}

/// The names in the section `Commands:`.
fn subcommands(help: &str) -> Vec<String> {
    let Some((_, section)) = help.split_once("\nCommands:\n") else {
        return Vec::new();
    };
    section
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}
