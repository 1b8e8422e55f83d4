//! House rules that no compiler checks, checked by reading the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::workspace;

/// Which crate of the workspace may import which.
const LAYERS: [(&str, &[&str]); 6] = [
    ("store", &[]),
    ("runner", &[]),
    ("registry-client", &["store"]),
    ("registry-server", &["store"]),
    ("builder", &["registry-client", "runner", "store"]),
    (
        "cli",
        &[
            "builder",
            "registry-client",
            "registry-server",
            "runner",
            "store",
        ],
    ),
];

/// Crates from outside that only some of ours may use, so that what they do stays in one place.
const FENCES: [(&str, &[&str]); 10] = [
    ("clap", &["cli"]),
    ("tracing-subscriber", &["cli"]),
    ("object_store", &["registry-client", "registry-server"]),
    ("reqwest", &["registry-client"]),
    ("hyper", &["registry-client", "registry-server"]),
    ("hyper-util", &["registry-server"]),
    ("rusqlite", &["store"]),
    ("tar-core", &["store"]),
    ("libc", &["runner"]),
    ("annotate-snippets", &["builder"]),
];

#[test]
fn crates_import_only_what_is_below_them() {
    let manifests: BTreeMap<&str, BTreeSet<String>> = LAYERS
        .iter()
        .map(|(name, _)| (*name, dependencies(name)))
        .collect();
    for (name, allowed) in LAYERS {
        for (other, _) in LAYERS {
            let imports = manifests[name].contains(other);
            assert!(
                !imports || allowed.contains(&other),
                "{name} imports {other}"
            );
        }
    }
    for (fenced, allowed) in FENCES {
        for (name, dependencies) in &manifests {
            let imports = dependencies.contains(fenced);
            assert!(
                !imports || allowed.contains(name),
                "{name} imports {fenced}: only {allowed:?} may"
            );
        }
        let used = allowed.iter().any(|name| manifests[name].contains(fenced));
        assert!(used, "{fenced} is fenced, but nobody uses it");
    }
}

#[test]
fn the_stores_and_the_runner_know_no_async() {
    for name in ["store", "runner"] {
        assert!(
            !dependencies(name).contains("tokio"),
            "{name} imports tokio"
        );
    }
}

#[test]
fn builder_reaches_the_runner_and_the_registries_at_few_places() {
    for (krate, allowed) in [
        (
            "runner",
            &[
                "builder/src/ops/exec.rs",
                "builder/src/ops/exec/",
                "builder/src/error.rs",
            ][..],
        ),
        (
            "registry_client",
            &[
                "builder/src/cache/shared",
                "builder/src/remote.rs",
                "builder/src/transfer",
            ][..],
        ),
    ] {
        let users: BTreeSet<String> = sources()
            .into_iter()
            .filter(|source| source.name.starts_with("builder/src/"))
            .filter(|source| source.code().any(|(_, line)| imports(line, krate)))
            .map(|source| source.name)
            .collect();
        let others: Vec<&String> = users
            .iter()
            .filter(|name| !allowed.iter().any(|allowed| name.starts_with(allowed)))
            .collect();
        assert!(
            others.is_empty(),
            "{krate} is used outside {allowed:?}: {others:?}"
        );
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    for source in sources() {
        // The probe makes system calls that no library offers, to see them refused.
        let allowed = [
            "runner/src/sys.rs",
            "runner/tests/it/probe.rs",
            "cli/tests/it/tidy.rs",
        ];
        if allowed.contains(&source.name.as_str()) {
            continue;
        }
        for (number, line) in source.code() {
            let has = [
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe extern",
                "allow(unsafe_code",
            ]
            .iter()
            .any(|word| line.contains(word));
            assert!(
                !has,
                "{}:{number}: unsafe code belongs into runner/src/sys.rs",
                source.name
            );
        }
    }
    for (name, _) in LAYERS.iter().filter(|(name, _)| *name != "runner") {
        let root = ["lib.rs", "main.rs"]
            .iter()
            .map(|file| workspace().join(name).join("src").join(file))
            .find(|path| path.exists())
            .expect("every crate has a root");
        let text = std::fs::read_to_string(&root).unwrap();
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{}",
            root.display()
        );
    }
}

#[test]
fn only_cli_prints_and_reads_the_environment() {
    let forbidden = [
        "println!(",
        "print!(",
        "eprintln!(",
        "eprint!(",
        "env::var",
        "env::home_dir",
        "env::temp_dir",
        "env::current_dir",
        "io::stdout()",
        "io::stderr()",
    ];
    for source in sources() {
        // Test programs print and ask as they need to.
        let is_test = source.name.contains("/tests") || source.name.contains("/examples/");
        if is_test {
            continue;
        }
        let below = !source.name.starts_with("cli/");
        let printer = source.name == "cli/src/main.rs" || source.name.starts_with("cli/src/ui");
        let reader = source.name == "cli/src/context.rs";
        // Writes an archive to stdout where the request says so: data, no words.
        let exports = source.name == "builder/src/export.rs";
        for (number, line) in source.code() {
            let found = forbidden.iter().find(|word| is_called(line, word));
            let Some(word) = found else { continue };
            let fine = exports && *word == "io::stdout()"
                || !below
                    && (source.name.starts_with("cli/tests/")
                        || printer && !word.contains("env")
                        || reader && word.contains("env"));
            assert!(
                fine,
                "{}:{number}: `{word}` is not for this file",
                source.name
            );
        }
    }
}

#[test]
fn modules_open_with_what_they_are() {
    // A file of tests is a part of the module beside it.
    let modules = sources()
        .into_iter()
        .filter(|source| !source.name.ends_with("/tests.rs"));
    for source in modules {
        assert!(
            source.text.starts_with("//! "),
            "{} has no `//!` header",
            source.name
        );
        assert!(
            !source.name.ends_with("/mod.rs"),
            "{}: name it after its folder",
            source.name
        );
    }
}

#[test]
fn nothing_names_a_machine() {
    // Assembled, so that this file does not find itself.
    let words = [
        ["/wo", "rk/"].concat(),
        ["/tmp", "/wt"].concat(),
        ["/fa", "rm/"].concat(),
        ["deb.", "debian.org"].concat(),
        ["pypi", ".org"].concat(),
        ["crates", ".io"].concat(),
    ];
    for path in tracked_files() {
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        let name = relative(&path);
        // Cargo writes the registry's address into its lock file; the licence is a quotation.
        if name.ends_with("Cargo.lock") || name == "LICENSE" {
            continue;
        }
        for word in &words {
            // A path of ours such as `docs/wo…rk/` is none of a machine.
            let found = text.match_indices(word.as_str()).any(|(at, _)| {
                !text[..at].ends_with(|c: char| c.is_alphanumeric() || "_.-".contains(c))
            });
            assert!(!found, "{name} names `{word}`");
        }
    }
}

#[test]
fn the_map_names_every_crate() {
    let text = std::fs::read_to_string(workspace().join("docs/ARCHITECTURE.md")).unwrap();
    for (name, _) in LAYERS {
        assert!(
            text.contains(&format!("`{name}/")),
            "docs/ARCHITECTURE.md does not name {name}"
        );
    }
    // Every file of ours that the map names must be there.
    for word in text.split('`').skip(1).step_by(2) {
        let is_path = LAYERS
            .iter()
            .any(|(name, _)| word.starts_with(&format!("{name}/")))
            || word.starts_with("docs/")
            || word.starts_with("testdata/");
        let plain = word
            .chars()
            .all(|c| c.is_alphanumeric() || "/_.-".contains(c));
        if is_path && plain {
            assert!(
                workspace().join(word).exists(),
                "docs/ARCHITECTURE.md names `{word}`, which is not there"
            );
        }
    }
}

/// What the registry and the client keep to is shown by tests that are there.
#[test]
fn every_point_of_conformance_names_its_tests() {
    for (page, krate, least) in [
        ("conformance.md", "registry-server", 90),
        ("client.md", "registry-client", 25),
    ] {
        let path = workspace().join("docs/reference").join(page);
        let text = std::fs::read_to_string(path).unwrap();
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("| ") && !line.starts_with("| point |"))
            .collect();
        assert!(rows.len() > least, "{page}: only {} points", rows.len());
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let ["", point, tests, state, ""] = cells.as_slice() else {
                panic!("{page}: no point, tests and state: {row}");
            };
            let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
            assert!(!names.is_empty() && !state.is_empty(), "{page}: {point}");
            for name in names {
                assert!(
                    has_test(krate, name),
                    "{page}: {point}: there is no `{name}`"
                );
            }
        }
    }
}

/// Whether a page's crate has a test: `module::test` in its `tests/it`, `src::path::test` beside its code, `cli::module::test`
/// in the binary's tests, `CRATE::src::path::test` beside another one's code.
fn has_test(krate: &str, name: &str) -> bool {
    let (path, test) = name.rsplit_once("::").unwrap_or(("", name));
    let (krate, path) = match path.split_once("::") {
        Some((other, path)) if LAYERS.iter().any(|(krate, _)| *krate == other) => (other, path),
        _ => (krate, path),
    };
    let file = match path.strip_prefix("src::") {
        Some(path) => format!("{krate}/src/{}", path.replace("::", "/")),
        None => format!("{krate}/tests/it/{}", path.replace("::", "/")),
    };
    // Tests that outgrew their file are in one beside it.
    [format!("{file}.rs"), format!("{file}/tests.rs")]
        .iter()
        .any(|file| {
            let source = std::fs::read_to_string(workspace().join(file)).unwrap_or_default();
            declares(&source, test)
        })
}

/// Whether a source has a test of this name, asynchronous or not, that runs with all others.
fn declares(source: &str, test: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let heads = [format!("fn {test}() {{"), format!("async fn {test}() {{")];
    lines.iter().enumerate().any(|(at, line)| {
        let attributes: Vec<&&str> = lines[..at]
            .iter()
            .rev()
            .take_while(|line| line.starts_with("#["))
            .collect();
        let is_test = |line: &&&str| **line == "#[test]" || line.starts_with("#[tokio::test");
        heads.iter().any(|head| head == line)
            && attributes.iter().any(is_test)
            && !attributes.iter().any(|line| line.starts_with("#[ignore"))
    })
}

/// A Rust file of ours.
struct Source {
    name: String,
    text: String,
}

impl Source {
    /// Lines from 1 that are neither comments nor below `#[cfg(test)]`, which ends a file by convention.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.text.find("\n#[cfg(test)]\nmod tests");
        let code = &self.text[..tests.unwrap_or(self.text.len())];
        (1..)
            .zip(code.lines())
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// Whether a line has `word`, and not as the end of a longer one (`stdio::stdout()`).
fn is_called(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn imports(line: &str, krate: &str) -> bool {
    line.contains(&format!("{krate}::")) && !line.contains(&format!("crate::{krate}::"))
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    for (name, _) in LAYERS {
        walk(&workspace().join(name), &mut files);
    }
    assert!(files.len() > 40, "found only {} sources", files.len());
    files
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Source {
            name: relative(&path),
            text: std::fs::read_to_string(&path).unwrap(),
        })
        .collect()
}

/// Every file that is not ignored: what git would have, told without git, for a test may run from an unpacked archive.
fn tracked_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&workspace(), &mut files);
    files
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let ignored = [".git", "target", "out"].map(std::ffi::OsString::from);
        if ignored.contains(&entry.file_name()) {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            walk(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace())
        .expect("walked from there")
        .to_string_lossy()
        .into_owned()
}

/// The `[dependencies]` of a crate, without those of its tests.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(workspace().join(name).join("Cargo.toml")).unwrap();
    let (_, rest) = manifest
        .split_once("\n[dependencies]\n")
        .unwrap_or_default();
    rest.lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}
