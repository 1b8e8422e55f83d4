//! A case's folder: what is built, how, and what is expected.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::peers::Built;
use super::setup::set_up;

/// How a case is built: `request.json`. That it holds no other fields is seen to by the builder's tests.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Request {
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--target`.
    pub target: Option<String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// The lines of `.dockerignore`.
    pub ignore: Vec<String>,
    /// `--no-cache`.
    pub no_cache: bool,
    /// Configurations of base images by their whole names, all with the root of `base`.
    pub images: BTreeMap<String, serde_json::Value>,
    /// `--build-context`.
    pub contexts: BTreeMap<String, String>,
    /// Further flags, for every builder the same. Paths are relative to the folder that holds `context`.
    pub flags: Vec<String>,
    /// `--userns=host`, which other builders do anyway.
    pub host_ids: bool,
    /// Where the Dockerfile lies, relative to the context; then it is named with `-f`.
    pub dockerfile: Option<String>,
}

/// Where it is known from what a build makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Somebody thought about it.
    Hand,
    /// BuildKit's result.
    BuildKit,
    /// BuildKit's result, but for the history, which later versions word better.
    BuildKitButHistory,
    /// buildah's result: of the files only, for it words everything else in its own way.
    Buildah,
}

const ORIGINS: [(&str, Origin); 4] = [
    ("by hand", Origin::Hand),
    ("as buildkit", Origin::BuildKit),
    ("as buildkit, history by hand", Origin::BuildKitButHistory),
    ("as buildah", Origin::Buildah),
];

impl Origin {
    fn name(self) -> &'static str {
        let known = ORIGINS.iter().find(|(_, origin)| *origin == self);
        known.expect("every origin is in the table").0
    }
}

/// What is expected.
pub enum Expected {
    /// `image.txt`: an image.
    Image {
        /// How that is known.
        origin: Origin,
        /// What [`super::image::describe`] says.
        text: String,
    },
    /// `error.txt`: a refusal.
    Error {
        /// The exit code of ours.
        code: i32,
        /// Lines of what ours says.
        lines: String,
    },
}

/// One case.
pub struct Case {
    folder: PathBuf,
    /// The Dockerfile's bytes.
    pub dockerfile: Vec<u8>,
    /// How it is built.
    pub request: Request,
    /// What is expected; none where only the language's tests expect something.
    pub expected: Option<Expected>,
    /// `difference.txt`.
    pub difference: Option<String>,
    /// `buildkit.txt`.
    pub buildkit: Option<String>,
    setup: Option<String>,
}

impl Case {
    /// Reads a case's folder.
    pub fn read(folder: &Path) -> Case {
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let request = text("request.json").map_or_else(Request::default, |json| {
            serde_json::from_str(&json)
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        });
        let expected = match (text("image.txt"), text("error.txt")) {
            (Some(_), Some(_)) => panic!("{}: image.txt and error.txt", folder.display()),
            (Some(image), None) => Some(parse_image(&image)),
            (None, Some(error)) => Some(parse_error(&error)),
            (None, None) => None,
        };
        Case {
            folder: folder.to_owned(),
            dockerfile: fs::read(folder.join("Dockerfile")).unwrap(),
            request,
            expected,
            difference: text("difference.txt"),
            buildkit: text("buildkit.txt"),
            setup: text("setup.txt"),
        }
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        self.folder.file_name().unwrap().to_str().unwrap()
    }

    /// Whether it is more than a case of the language's: such have an `ast.txt`, and need nothing else.
    pub fn is_built(&self) -> bool {
        self.expected.is_some()
            || self.setup.is_some()
            || !self.folder.join("ast.txt").exists()
            || std::env::var_os("CASES_ALL").is_some()
    }

    /// Makes the context and what lies around it, below an empty folder.
    pub fn set_up(&self, folder: &Path) {
        let context = folder.join("context");
        fs::create_dir(&context).unwrap();
        let name = self.request.dockerfile.as_deref().unwrap_or("Dockerfile");
        let dockerfile = match name.strip_prefix("../") {
            Some(beside) => folder.join(beside),
            None => context.join(name),
        };
        fs::create_dir_all(dockerfile.parent().unwrap()).unwrap();
        fs::write(dockerfile, &self.dockerfile).unwrap();
        if !self.request.ignore.is_empty() {
            fs::write(
                context.join(".dockerignore"),
                self.request.ignore.join("\n"),
            )
            .unwrap();
        }
        set_up(folder, self.setup.as_deref().unwrap_or_default());
    }

    /// The flags of `build`, and the context.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        let request = &self.request;
        for (name, value) in &request.build_args {
            flag("--build-arg", format!("{name}={value}"));
        }
        for (name, value) in &request.labels {
            flag("--label", format!("{name}={value}"));
        }
        for (name, context) in &request.contexts {
            flag("--build-context", format!("{name}={context}"));
        }
        if let Some(target) = &request.target {
            flag("--target", target.clone());
        }
        if let Some(name) = &request.dockerfile {
            let beside = name.strip_prefix("../").map(str::to_owned);
            flag("-f", beside.unwrap_or_else(|| format!("context/{name}")));
        }
        if request.no_cache {
            arguments.push("--no-cache".to_owned());
        }
        arguments.extend(request.flags.iter().cloned());
        arguments.push("context".to_owned());
        arguments
    }

    /// What is said where a build did not do what is expected.
    pub fn differs(&self, built: &Built) -> Option<String> {
        match (&self.expected, built) {
            (Some(Expected::Image { text, .. }), Built::Image(found)) => {
                (found != text).then(|| unlike(text, found))
            }
            (
                Some(Expected::Error { code, lines }),
                Built::Refused {
                    code: found,
                    stderr,
                },
            ) => {
                let missing: Vec<&str> = lines
                    .lines()
                    .filter(|line| !stderr.contains(line))
                    .collect();
                (code != found || !missing.is_empty()).then(|| {
                    format!(
                        "expected exit {code} and:\n{}\nfound exit {found} and:\n{stderr}",
                        missing.join("\n")
                    )
                })
            }
            (expected, Built::Refused { code, stderr }) => {
                let what = expected.as_ref().map_or("something", |_| "an image");
                Some(format!("expected {what}, found exit {code}:\n{stderr}"))
            }
            (expected, Built::Image(found)) => {
                let what = expected.as_ref().map_or("something", |_| "a refusal");
                Some(format!("expected {what}, found an image:\n{found}"))
            }
        }
    }

    /// Whether what is expected is no peer's fact.
    pub fn is_ours(&self) -> bool {
        match &self.expected {
            Some(Expected::Image { origin, .. }) => *origin == Origin::Hand,
            Some(Expected::Error { .. }) | None => true,
        }
    }

    /// The text of what is expected, as a peer's result is kept.
    pub fn expected_text(&self) -> Option<String> {
        match self.expected.as_ref()? {
            Expected::Image { text, .. } => Some(text.clone()),
            Expected::Error { .. } => Some(REFUSED.to_owned()),
        }
    }

    /// Writes down what we built.
    pub fn write(&self, built: &Built) {
        let gone = match built {
            Built::Image(text) => {
                self.write_image(Origin::Hand, text);
                "error.txt"
            }
            Built::Refused { code, stderr } => {
                // What is only a warning may change with the checks.
                let lines = stderr.split_inclusive('\n');
                let said: String = lines
                    .skip_while(|line| !line.starts_with("error") && !line.starts_with("---"))
                    .collect();
                let text = format!("exit {code}\n{said}");
                fs::write(self.folder.join("error.txt"), text).unwrap();
                "image.txt"
            }
        };
        if self.folder.join(gone).exists() {
            fs::remove_file(self.folder.join(gone)).unwrap();
        }
    }

    /// Takes a peer's result as the expectation, or says how it differs from what is expected by hand.
    pub fn compare_with_peer(&self, peer: Origin, built: &Built) -> Option<String> {
        if self.difference.is_some() {
            let found = match built {
                Built::Image(text) => text,
                Built::Refused { .. } => REFUSED,
            };
            if self.differs_on_purpose() && peer == Origin::BuildKit {
                fs::write(self.folder.join("buildkit.txt"), found).unwrap();
            }
            return None;
        }
        match (&self.expected, built) {
            // Its words are its own.
            (Some(Expected::Error { .. }), Built::Refused { .. }) => None,
            (None, Built::Image(found)) => {
                self.write_image(peer, found);
                None
            }
            (Some(Expected::Image { text, .. }), Built::Image(found)) => {
                let views: &[Origin] = match peer {
                    Origin::BuildKit => &[Origin::BuildKit, Origin::BuildKitButHistory],
                    _ => &[Origin::Buildah],
                };
                let same = views
                    .iter()
                    .find(|view| comparable(text, **view) == comparable(found, **view));
                match same {
                    Some(view) => self.write_image(*view, text),
                    None => return Some(unlike(text, found)),
                }
                None
            }
            (_, Built::Refused { stderr, .. }) => Some(format!("refused: {stderr}")),
            (Some(Expected::Error { .. }), Built::Image(found)) => {
                Some(format!("expected a refusal, found an image:\n{found}"))
            }
        }
    }

    /// Whether `difference.txt` tells of a decision; else of something that the peer at hand is too old for.
    pub fn differs_on_purpose(&self) -> bool {
        let reason = self.difference.as_deref().unwrap_or("older");
        !reason.starts_with("older")
    }

    fn write_image(&self, origin: Origin, text: &str) {
        let text = format!("{}\n{text}", origin.name());
        fs::write(self.folder.join("image.txt"), text).unwrap();
    }
}

/// A peer's refusal: its words are not ours.
const REFUSED: &str = "refused\n";

/// The part of a result that a peer's says something about.
fn comparable(text: &str, origin: Origin) -> (&str, &str) {
    let at = |title: &str| text.find(title).map_or(text.len(), |before| before + 1);
    let (config, files) = (&text[..at("\nhistory\n")], &text[at("\nfiles\n")..]);
    match origin {
        Origin::Hand | Origin::BuildKit => (text, ""),
        Origin::BuildKitButHistory => (config, files),
        Origin::Buildah => ("", files),
    }
}

fn parse_image(file: &str) -> Expected {
    let (first, text) = file.split_once('\n').unwrap_or((file, ""));
    Expected::Image {
        origin: parse_origin(first),
        text: text.to_owned(),
    }
}

fn parse_error(file: &str) -> Expected {
    let (first, lines) = file.split_once('\n').unwrap_or((file, ""));
    let code = first.trim_start_matches("exit ").parse();
    Expected::Error {
        code: code.expect("exit CODE"),
        lines: lines.to_owned(),
    }
}

fn parse_origin(name: &str) -> Origin {
    let known = ORIGINS.iter().find(|(known, _)| *known == name);
    known.unwrap_or_else(|| panic!("no origin: {name}")).1
}

/// The lines that two texts do not share, in their order.
fn unlike(expected: &str, found: &str) -> String {
    let mut out = String::new();
    let (mut left, mut right): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), found.lines().collect());
    while let (Some(a), Some(b)) = (left.first(), right.first()) {
        if a == b {
            left.remove(0);
            right.remove(0);
        } else if let Some(skip) = right.iter().position(|line| line == a) {
            for line in right.drain(..skip) {
                writeln!(out, "+ {line}").unwrap();
            }
        } else {
            writeln!(out, "- {a}").unwrap();
            left.remove(0);
        }
    }
    for line in left {
        writeln!(out, "- {line}").unwrap();
    }
    for line in right {
        writeln!(out, "+ {line}").unwrap();
    }
    out
}
