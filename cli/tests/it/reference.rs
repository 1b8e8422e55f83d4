//! The examples in `docs/reference/dockerfile.md` are built.
//!
//! A block that begins with `dockerfile` is a whole Dockerfile; with `fragment` behind that it follows a `FROM busybox`.
//! What else stands there are flags. The comment that begins with `setup` says which files are around.

use std::process::Stdio;

use crate::cases::setup::set_up;
use crate::support::{Place, Ran, workspace};

/// An example, and how it is built.
struct Example {
    line: usize,
    flags: Vec<String>,
    dockerfile: String,
}

fn examples(page: &str) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(words) = line.strip_prefix("```dockerfile") else {
            continue;
        };
        let mut flags: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let is_fragment = flags.first().is_some_and(|word| word == "fragment");
        let mut dockerfile = String::new();
        if is_fragment {
            flags.remove(0);
            dockerfile += "FROM busybox\n";
        }
        for (_, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            dockerfile += line;
            dockerfile.push('\n');
        }
        examples.push(Example {
            line: index + 1,
            flags,
            dockerfile,
        });
    }
    examples
}

#[test]
fn the_examples_are_built() {
    let page = std::fs::read_to_string(workspace().join("docs/reference/dockerfile.md")).unwrap();
    let place = Place::with_busybox();
    let folder = place.path("page");
    std::fs::create_dir_all(folder.join("context")).unwrap();
    let (_, setup) = page.split_once("<!-- setup\n").unwrap();
    let (setup, _) = setup.split_once("\n-->").unwrap();
    set_up(&folder, setup);
    let examples = examples(&page);
    assert!(examples.len() >= 15, "{} examples", examples.len());
    let mut failed = Vec::new();
    for example in &examples {
        std::fs::write(folder.join("context/Dockerfile"), &example.dockerfile).unwrap();
        let mut command = place.command(["build", "-q"]);
        command.args(&example.flags).arg("context");
        let ran = Ran::of(command.current_dir(&folder).stdin(Stdio::null()));
        if ran.code != Some(0) {
            failed.push(format!("line {}: {ran}", example.line));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
