//! Cases that are built, not only parsed: `testdata/dockerfiles/<case>/`.
//!
//! ```text
//! Dockerfile       what is built
//! setup.txt        the files around it: `cases/setup.rs` has the lines that it may hold
//! request.json     how it is built: `cases/case.rs`
//! image.txt        what comes out, as `cases/image.rs` prints it, below a line that says where this is known from
//! error.txt        or the exit code, and lines that the refusal holds
//! difference.txt   why BuildKit does not do the same. A first line that starts with `older` says what the peers at hand
//!                  are too old for; any other is a decision, and stands in `docs/reference/dockerfile.md` too
//! buildkit.txt     what BuildKit does where we decided otherwise
//! ```
//!
//! `testdata/dockerfiles/collect` asks the other tools. Cases with an `ast.txt` are also compared before they are
//! built, by `builder/tests/it/dockerfiles.rs`.

mod base;
mod case;
mod image;
mod peers;
pub mod setup;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::support::{Place, workspace};
use case::{Case, Expected};
use peers::{Builder, Built, Longshore, Peer};

/// How many cases are built at least: those that vanish are missed.
const BUILT_MIN: usize = 250;

fn cases_root() -> PathBuf {
    workspace().join("testdata/dockerfiles")
}

/// The folders of all cases, or of those whose names hold one of the words in `CASES`.
fn folders() -> Vec<PathBuf> {
    let only = std::env::var("CASES").unwrap_or_default();
    let is_wanted = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let mut words = only.split_whitespace().peekable();
        words.peek().is_none() || words.any(|word| name.contains(word))
    };
    let entries = fs::read_dir(cases_root()).unwrap();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && is_wanted(path))
        .collect();
    folders.sort();
    folders
}

/// Builds every case with each worker's builder; results in the order of the cases.
fn build_all<B: Builder>(cases: &[Case], builders: Vec<B>) -> Vec<Built> {
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..cases.len()).collect());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for mut builder in builders {
            let (queue, results) = (&queue, &results);
            scope.spawn(move || {
                loop {
                    let Some(index) = queue.lock().unwrap().pop_front() else {
                        return;
                    };
                    let built = builder.build(&cases[index]);
                    results.lock().unwrap().push((index, built));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, built)| built).collect()
}

#[test]
fn cases_are_built_as_expected() {
    if let Some(peer) = Peer::asked_for() {
        return collect(peer);
    }
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let cases: Vec<Case> = folders().iter().map(|path| Case::read(path)).collect();
    let cases: Vec<Case> = cases.into_iter().filter(|case| case.is_built()).collect();
    let place = Place::new();
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let builders = (0..workers)
        .map(|number| Longshore::new(&place.path(&number.to_string())))
        .collect();
    let mut differences = Vec::new();
    for (case, built) in cases.iter().zip(build_all(&cases, builders)) {
        if let Some(difference) = case.differs(&built) {
            if update && case.is_ours() {
                case.write(&built);
            } else {
                differences.push(format!("=== {}\n{difference}", case.name()));
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{}\n{} of {} cases differ. UPDATE_EXPECT=1 writes what was found, but over no peer's facts",
        differences.join("\n"),
        differences.len(),
        cases.len(),
    );
    let made = cases
        .iter()
        .filter(|case| matches!(case.expected, Some(Expected::Image { .. })))
        .count();
    assert!(
        made >= BUILT_MIN || std::env::var_os("CASES").is_some(),
        "{made} cases"
    );
}

/// Builds the cases with a peer, and writes what it makes of them; says where that differs from what we expect by hand.
fn collect(mut peer: Peer) {
    let cases = folders().into_iter().map(|path| Case::read(&path));
    let mut differences = Vec::new();
    for case in cases.filter(Case::is_built) {
        let built = peer.build(&case);
        if let Some(difference) = case.compare_with_peer(peer.origin, &built) {
            differences.push(format!("=== {}\n{difference}", case.name()));
        }
    }
    assert!(
        differences.is_empty(),
        "to be looked at:\n{}",
        differences.join("\n")
    );
}

/// What is built differently on purpose is written down: in the case, and where users look.
#[test]
fn differences_have_reasons() {
    let page = fs::read_to_string(workspace().join("docs/reference/dockerfile.md")).unwrap();
    for folder in folders() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let case = Case::read(&folder);
        assert_eq!(
            case.differs_on_purpose(),
            case.buildkit.is_some(),
            "{name}: buildkit.txt goes with a difference.txt"
        );
        let (Some(reason), Some(buildkit)) = (&case.difference, &case.buildkit) else {
            continue;
        };
        assert!(
            case.expected_text().as_ref() != Some(buildkit),
            "{name}: does not differ from BuildKit"
        );
        let title = reason.lines().next().unwrap_or_default();
        assert!(
            title.len() > 10 && page.contains(title),
            "{name}: `docs/reference/dockerfile.md` does not say: {title}"
        );
    }
}
