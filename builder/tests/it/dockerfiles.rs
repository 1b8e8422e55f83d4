//! The golden cases of the language and of lowering: `testdata/dockerfiles/<case>/`.
//!
//! ```text
//! Dockerfile        what is parsed and lowered
//! request.json      optional: build_args, target, labels, ignore, no_cache, images (configurations by reference),
//!                   contexts, allow (entitlements), network, add_hosts
//! ast.txt           the tree
//! diagnostics.txt   everything that is said, as people see it
//! graph.txt         the vertices
//! config.json       configuration, history and the history of the base
//! ```
//!
//! A file that would be empty is absent. Cases with an `image.txt` or an `error.txt` are built by `cli/tests/it/cases.rs`;
//! without an `ast.txt` that is all that is asked of them, and they are passed over here. `UPDATE_EXPECT=1 cargo test -p builder --test it` writes what is found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use builder::checks::{self, Subject};
use builder::contexts::{NamedContext, NamedContexts, context_key};
use builder::dockerfile::{Diagnostic, Dockerfile, SourceFile, parse};
use builder::graph::exec::Network;
use builder::lower::{ImageRequest, LowerRequest, Lowered, Plan, ResolvedImage, lower};
use builder::request::{Entitlement, RunSettings};
use serde::Deserialize;
use store::oci::{DiffId, Digest, ImageConfig, Platform, Reference};

use crate::{ast_dump, graph_dump};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CaseRequest {
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) target: Option<String>,
    labels: BTreeMap<String, String>,
    ignore: Vec<String>,
    no_cache: bool,
    images: BTreeMap<String, serde_json::Value>,
    /// As `--build-context` has them; a folder's ignore file says `ignored`.
    contexts: BTreeMap<String, String>,
    /// Of `network.host`, `security.insecure` and `device`.
    allow: Vec<String>,
    network: String,
    add_hosts: BTreeMap<String, std::net::IpAddr>,
    /// For those who build.
    #[serde(rename = "flags")]
    _flags: Vec<String>,
    /// For those who build.
    #[serde(rename = "host_ids")]
    _host_ids: bool,
    /// For those who build.
    #[serde(rename = "dockerfile")]
    _dockerfile: Option<String>,
}

impl CaseRequest {
    fn run(&self) -> RunSettings {
        let entitlement = |name: &String| match name.as_str() {
            "network.host" => Entitlement::NetworkHost,
            "security.insecure" => Entitlement::SecurityInsecure,
            "device" => Entitlement::Device(None),
            other => panic!("there is no entitlement {other}"),
        };
        let mut settings = RunSettings {
            allow: self.allow.iter().map(entitlement).collect(),
            network: match self.network.as_str() {
                "host" => Network::Host,
                "none" => Network::None,
                _ => Network::Default,
            },
            ..RunSettings::default()
        };
        settings.setting.hosts = self.add_hosts.clone().into_iter().collect();
        settings
    }

    fn contexts(&self) -> NamedContexts {
        let parse = |(name, value): (&String, &String)| {
            let mut context = NamedContext::parse(value).unwrap();
            if let NamedContext::Folder { ignore, .. } = &mut context {
                ignore.push("ignored".to_owned());
            }
            (context_key(name).unwrap(), context)
        };
        self.contexts.iter().map(parse).collect()
    }
}

/// Whether a case is about what is built, and not about how the Dockerfile is read.
fn is_only_built(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    !has("ast.txt") && (has("image.txt") || has("error.txt"))
}

/// The folders of the cases, in order.
fn case_folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(cases_root()).unwrap();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    folders.sort();
    folders
}

fn cases_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/dockerfiles")
}

fn amd64() -> Platform {
    Platform {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        os_version: None,
        os_features: Vec::new(),
        variant: None,
    }
}

/// An image with one layer, made up from its name, and the configuration of the case or a usual one.
fn image(reference: &Reference, configs: &BTreeMap<String, serde_json::Value>) -> ResolvedImage {
    let usual = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [{"created_by": format!("base {}", reference.familiar())}],
    });
    let config = configs.get(&reference.to_string()).unwrap_or(&usual);
    let config: ImageConfig = serde_json::from_value(config.clone()).unwrap();
    ResolvedImage {
        reference: reference.clone(),
        manifest: Some(Digest::of(reference.name().as_bytes())),
        diff_ids: vec![DiffId(Digest::of(reference.to_string().as_bytes()))],
        layers: Vec::new(),
        config,
    }
}

/// Lowers, answering every request for images.
pub(crate) fn lower_fully(
    dockerfile: &Dockerfile,
    source: &SourceFile,
    case: &CaseRequest,
) -> Result<Box<Plan>, Vec<Diagnostic>> {
    let mut images: BTreeMap<ImageRequest, ResolvedImage> = BTreeMap::new();
    let run = case.run();
    loop {
        let request = LowerRequest {
            build_args: case.build_args.clone(),
            target: case.target.clone(),
            no_cache: case.no_cache,
            labels: case.labels.clone(),
            ignore: case.ignore.clone(),
            contexts: case.contexts(),
            run: run.clone(),
            ..LowerRequest::new(dockerfile, source, &amd64(), &images)
        };
        match lower(&request)? {
            Lowered::Done(plan) => return Ok(plan),
            Lowered::NeedImages(needed) => {
                assert!(!needed.is_empty(), "asks for nothing");
                for needed in needed {
                    let resolved = image(&needed.request.reference, &case.images);
                    let known = images.insert(needed.request, resolved);
                    assert_eq!(known, None, "asks for an image that it was given");
                }
            }
        }
    }
}

/// What a case comes to, by file name.
fn results(folder: &Path) -> BTreeMap<&'static str, String> {
    let text = fs::read_to_string(folder.join("Dockerfile")).unwrap();
    let case: CaseRequest = match fs::read_to_string(folder.join("request.json")) {
        Ok(json) => serde_json::from_str(&json).unwrap(),
        Err(_) => CaseRequest::default(),
    };
    let source = SourceFile::new("Dockerfile", text.as_str());
    let (dockerfile, mut diagnostics) = parse(&text);
    let mut results = BTreeMap::from([
        ("ast.txt", ast_dump::dump(&dockerfile, &source)),
        ("graph.txt", String::new()),
        ("config.json", String::new()),
    ]);
    if !diagnostics.iter().any(Diagnostic::is_error) {
        match lower_fully(&dockerfile, &source, &case) {
            Ok(plan) => {
                results.insert("graph.txt", graph_dump::graph(&plan));
                results.insert("config.json", graph_dump::config(&plan));
                diagnostics.extend(plan.warnings.clone());
                let subject = Subject {
                    dockerfile: &dockerfile,
                    source: &source,
                    stages: &plan.stages,
                    build_args: &case.build_args,
                };
                let report = checks::report(&subject, std::mem::take(&mut diagnostics)).unwrap();
                assert!(
                    report
                        .remarks
                        .is_none_or(|remarks| remarks.list().is_empty())
                );
                diagnostics = [report.warnings, report.findings].concat();
            }
            Err(problems) => {
                assert!(
                    problems.iter().any(Diagnostic::is_error),
                    "refused for no reason"
                );
                diagnostics.extend(problems);
            }
        }
    }
    let rendered: Vec<String> = diagnostics
        .iter()
        .map(|diagnostic| diagnostic.render(&source, false) + "\n")
        .collect();
    results.insert("diagnostics.txt", rendered.join("\n"));
    results
}

#[test]
fn golden_cases() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut folders = case_folders();
    folders.retain(|folder| !is_only_built(folder));
    assert!(folders.len() > 50, "the cases are missing");
    let mut differences = Vec::new();
    for folder in &folders {
        for (name, found) in results(folder) {
            let path = folder.join(name);
            let expected = fs::read_to_string(&path).unwrap_or_default();
            if found == expected {
                continue;
            }
            if !update {
                differences.push(format!(
                    "=== {}\n--- expected\n{expected}\n--- found\n{found}",
                    path.display()
                ));
            } else if found.is_empty() {
                fs::remove_file(&path).unwrap();
            } else {
                fs::write(&path, found).unwrap();
            }
        }
    }
    assert!(
        differences.is_empty(),
        "{}\nUPDATE_EXPECT=1 writes what was found",
        differences.join("\n")
    );
}

#[test]
fn every_case_has_known_files_only() {
    const KNOWN: [&str; 11] = [
        "Dockerfile",
        "request.json",
        "ast.txt",
        "diagnostics.txt",
        "graph.txt",
        "config.json",
        "setup.txt",
        "image.txt",
        "error.txt",
        "buildkit.txt",
        "difference.txt",
    ];
    for folder in case_folders() {
        assert!(folder.join("Dockerfile").exists(), "{}", folder.display());
        if let Ok(request) = fs::read_to_string(folder.join("request.json")) {
            serde_json::from_str::<CaseRequest>(&request)
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        }
        for file in fs::read_dir(&folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(
                KNOWN.contains(&name.as_str()),
                "{}: {name}",
                folder.display()
            );
        }
    }
}

/// Images of stages that the target does not need are not even asked for.
#[test]
fn asks_for_the_images_of_needed_stages_only() {
    let check = |target: &str, expect: &[&str]| {
        let text =
            "FROM one AS a\nFROM two AS b\nCOPY --from=three x y\nFROM a\nCOPY --from=b x y\n";
        let source = SourceFile::new("Dockerfile", text);
        let (dockerfile, _) = parse(text);
        let images = BTreeMap::new();
        let request = LowerRequest {
            target: Some(target.to_owned()),
            ..LowerRequest::new(&dockerfile, &source, &amd64(), &images)
        };
        let Ok(Lowered::NeedImages(needed)) = lower(&request) else {
            panic!("{target} needs no images");
        };
        let names: Vec<(String, &str)> = needed
            .iter()
            .map(|needed| {
                (
                    needed.request.reference.familiar(),
                    source.slice(needed.span),
                )
            })
            .collect();
        let names: Vec<String> = names
            .into_iter()
            .map(|(name, at)| format!("{name} at {at}"))
            .collect();
        assert_eq!(names, expect, "{target}");
    };
    check("a", &["one:latest at one"]);
    check("B", &["two:latest at two", "three:latest at --from=three"]);
    check(
        "2",
        &[
            "one:latest at one",
            "two:latest at two",
            "three:latest at --from=three",
        ],
    );
}

/// Every case with one line left out, doubled or cut: lowering answers, and what it says lies in the file.
#[test]
fn damaged_cases_are_answered() {
    for folder in case_folders() {
        let text = fs::read_to_string(folder.join("Dockerfile")).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for (index, line) in lines.iter().enumerate() {
            let half = line.char_indices().nth(line.chars().count() / 2);
            let half = &line[..half.map_or(0, |(at, _)| at)];
            for changed in [String::new(), line.repeat(2), half.to_owned()] {
                let damaged = lines[..index].concat() + &changed + &lines[index + 1..].concat();
                let source = SourceFile::new("Dockerfile", damaged.as_str());
                let (dockerfile, problems) = parse(&damaged);
                if problems.iter().any(Diagnostic::is_error) {
                    continue;
                }
                let said = match lower_fully(&dockerfile, &source, &CaseRequest::default()) {
                    Ok(plan) => plan.warnings,
                    Err(problems) => problems,
                };
                for diagnostic in said {
                    assert!(damaged.get(diagnostic.span.range()).is_some(), "{damaged}");
                }
            }
        }
    }
}

/// A file of 5,000 lines; the time is for people, no machine is held to it.
#[test]
fn five_thousand_lines() {
    let mut text = String::from("FROM scratch AS s0\n");
    for index in 0..1000 {
        let name = index % 50;
        text += &format!("ARG A{name}=x\nENV V{name}=${{A{name}:-y}} W=1\n");
        text += &format!("COPY --chown=1:1 f{index} /d{index}/\nRUN make \\\n  target{index}\n");
    }
    let started = std::time::Instant::now();
    let source = SourceFile::new("Dockerfile", text.as_str());
    let (dockerfile, diagnostics) = parse(&text);
    let parsed = started.elapsed();
    assert_eq!(diagnostics, []);
    let plan = lower_fully(&dockerfile, &source, &CaseRequest::default()).unwrap();
    println!(
        "parsed in {parsed:?}, lowered in {:?}",
        started.elapsed() - parsed
    );
    assert_eq!(plan.steps, 2000);
    assert_eq!(plan.definition.vertices().len(), 2001);
}
