//! Common mistakes, and what is said of them: `testdata/errors/<case>/`.
//!
//! ```text
//! Dockerfile      the mistake
//! context/        optional: the files around it
//! request.json    optional: `arguments` of `build`, where `$REGISTRY` is a registry; `note` for people
//! longshore.txt   what longshore says
//! buildkit.txt    what BuildKit says: written by `testdata/errors/collect`
//! ```
//!
//! `docs/reference/errors.md` is made of them. `UPDATE_EXPECT=1` writes it and each `longshore.txt`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::support::{Place, Ran, Server, busybox_rootfs, workspace};

/// How many mistakes there are at least: those that vanish are missed.
const CASES_MIN: usize = 60;

/// What stands for the registry in what is written down.
const REGISTRY: &str = "registry.example";

const PAGE_HEAD: &str = "# What is said of common mistakes

Each mistake as a Dockerfile, then what BuildKit and what longshore say of it. BuildKit is the one of docker.io 20.10, whose
words `testdata/errors/collect` took down; where it is too old to know what the Dockerfile asks for, that is said. Progress
is left out, and times are. A test runs every case, so that this page is what longshore says today.
";

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Request {
    arguments: Vec<String>,
    note: String,
}

struct Case {
    folder: PathBuf,
    name: String,
    request: Request,
}

impl Case {
    fn open(folder: PathBuf) -> Case {
        let request = match fs::read(folder.join("request.json")) {
            Ok(text) => serde_json::from_slice(&text).unwrap(),
            Err(_) => Request::default(),
        };
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        Case {
            folder,
            name,
            request,
        }
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Runs `build` of a tool on it; what it says, without progress and without what differs from run to run.
    fn build(&self, mut command: Command, world: &World) -> (Ran, String) {
        let context = self.folder.join("context");
        let context = if context.exists() {
            Path::new("context")
        } else {
            world.empty.as_path()
        };
        for argument in &self.request.arguments {
            command.arg(argument.replace("$REGISTRY", &world.registry.host));
        }
        command
            .args(["--progress", "plain", "-f", "Dockerfile"])
            .arg(context)
            // No name of this machine is asked for, and no network: the answer is the same everywhere.
            .env("HTTPS_PROXY", "http://127.0.0.1:1")
            .env_remove("NO_PROXY")
            .env_remove("no_proxy")
            .current_dir(&self.folder);
        let ran = Ran::of(&mut command);
        let said = said(&ran.stderr)
            .replace(&world.registry.host, REGISTRY)
            .replace(world.empty.to_str().unwrap(), "context");
        (ran, said)
    }

    /// Its part of the page.
    fn section(&self) -> String {
        let Request { arguments, note } = &self.request;
        let words = self.name.replace('-', " ");
        let title = words[..1].to_uppercase() + &words[1..];
        let mut page = format!("\n## {title}\n\n");
        if !note.is_empty() {
            writeln!(page, "{note}\n").unwrap();
        }
        if !arguments.is_empty() {
            let arguments = arguments.join(" ").replace("$REGISTRY", REGISTRY);
            writeln!(page, "`longshore build {arguments} .`\n").unwrap();
        }
        let mut fence = |language: &str, text: &str| {
            writeln!(page, "```{language}\n{}\n```\n", text.trim_end()).unwrap();
        };
        fence("dockerfile", &self.file("Dockerfile"));
        fence("text", &format!("BuildKit:\n{}", self.file("buildkit.txt")));
        fence(
            "text",
            &format!("longshore:\n{}", self.file("longshore.txt")),
        );
        page.truncate(page.trim_end().len());
        page + "\n"
    }
}

/// What the cases are built in.
struct World {
    registry: Server,
    empty: PathBuf,
}

impl World {
    fn new(place: &Place) -> World {
        let registry = Server::registry(&place.path("registry"));
        let pushed = format!("{}/busybox", registry.host);
        place.run(["tag", "busybox", &pushed]).ok();
        place.run(["push", &pushed]).ok();
        let empty = place.path("empty");
        fs::create_dir(&empty).unwrap();
        World { registry, empty }
    }
}

/// What a tool said beside its progress: the output of the step that failed and the error, without times.
fn said(stderr: &str) -> String {
    let mut output: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut failed = "";
    let mut lines = Vec::new();
    for line in stderr.lines() {
        let number = line.split(' ').next().unwrap_or_default();
        let is_progress = number
            .strip_prefix('#')
            .is_some_and(|n| n.parse::<usize>().is_ok());
        match line.split_once(' ') {
            Some((_, rest)) if is_progress => {
                if rest.starts_with("ERROR: ") {
                    failed = number;
                }
                output.entry(number).or_default().extend(without_time(rest));
            }
            _ => lines.push(without_time(line).unwrap_or(line)),
        }
    }
    // BuildKit repeats the output of a step only where it was not shown before.
    let heading = lines.iter().position(|line| line.starts_with(" > "));
    if let Some(at) = heading
        && lines.get(at + 1) == Some(&"------")
    {
        let output = output.remove(failed).unwrap_or_default();
        lines.splice(at + 1..at + 1, output);
    }
    let text = lines
        .iter()
        .map(|line| line.trim_end())
        .collect::<Vec<_>>()
        .join("\n");
    crate::support::without_build(text.trim()) + "\n"
}

/// The rest of `0.123 text`.
fn without_time(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once(' ')?;
    (time.contains('.') && time.parse::<f64>().is_ok()).then_some(rest)
}

/// `…/overlay2/1234/merged/x` as `…/merged/x`: names that differ from run to run.
fn without_layer(text: &str) -> String {
    let Some((before, rest)) = text.split_once("/overlay2/") else {
        return text.to_owned();
    };
    let start = before.rfind(' ').map_or(0, |at| at + 1);
    let after = rest.find("/merged").map_or("", |at| &rest[at..]);
    format!("{}/var/lib/docker/overlay2/…{after}", &before[..start])
}

fn cases() -> Vec<Case> {
    let root = workspace().join("testdata/errors");
    let folders = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut cases: Vec<Case> = folders
        .filter(|path| path.is_dir())
        .map(Case::open)
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

#[test]
fn common_mistakes_are_explained() {
    let place = Place::with_busybox();
    let world = World::new(&place);
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let cases = cases();
    assert!(cases.len() >= CASES_MIN);
    let mut wrong = String::new();
    for case in &cases {
        let (ran, said) = case.build(place.command(["build"]), &world);
        let expected = case.file("longshore.txt");
        if update && said != expected {
            fs::write(case.folder.join("longshore.txt"), &said).unwrap();
        } else if said != expected {
            writeln!(wrong, "=== {}\n{expected}--- is now\n{said}", case.name).unwrap();
        }
        // Each is refused, and shows where.
        let code = ran.code.unwrap_or_default();
        if !(1..=4).contains(&code) || !said.contains(" Dockerfile:") {
            writeln!(wrong, "=== {} gives {code}\n{said}", case.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let page: String = cases.iter().map(Case::section).collect();
    let page = format!("{PAGE_HEAD}{page}");
    let path = workspace().join("docs/reference/errors.md");
    if update {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/reference/errors.md is not up to date: UPDATE_EXPECT=1 writes it"
    );
}

/// Asks the BuildKit in `COLLECT`, a `docker` whose daemon `testdata/errors/collect` has started, and writes down what it
/// says; without that variable there is nothing to ask, and the answers in the tree are only looked at.
#[test]
fn buildkits_answers_are_there() {
    let Some(docker) = std::env::var_os("COLLECT") else {
        for case in cases() {
            assert_ne!(case.file("buildkit.txt"), "", "{}", case.name);
        }
        return;
    };
    let place = Place::with_busybox();
    let world = World::new(&place);
    Ran::of(
        Command::new(&docker)
            .arg("import")
            .arg(busybox_rootfs())
            .arg("busybox"),
    )
    .ok();
    for case in cases() {
        let mut command = Command::new(&docker);
        command
            .args(["build", "--network", "host"])
            .env("DOCKER_BUILDKIT", "1");
        let (ran, mut said) = case.build(command, &world);
        if ran.code == Some(0) {
            said = "(builds it)\n".to_owned();
        }
        fs::write(case.folder.join("buildkit.txt"), without_layer(&said)).unwrap();
    }
}
