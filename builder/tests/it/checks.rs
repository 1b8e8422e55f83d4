//! The golden cases of the build checks: `testdata/checks/<Rule>/`, and the pages about them.
//!
//! ```text
//! bad.Dockerfile    breaks the rule, and no other
//! bad.txt           what is said of it
//! good.Dockerfile   breaks none
//! request.json      optional: as for the cases of the language
//! ```
//!
//! Experimental rules are looked for with all experimental rules on, the others with none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use builder::checks::{self, Report, Rule, Subject};
use builder::dockerfile::{SourceFile, parse};
use builder::lower::LowerRequest;
use builder::subrequests::{outline, targets};

use crate::dockerfiles::{CaseRequest, lower_fully};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder(rule: Rule) -> PathBuf {
    workspace().join("testdata/checks").join(rule.name())
}

/// What the checks say of one file of a rule's case, and how people see it.
fn case(rule: Rule, file: &str) -> (Report, String) {
    let text = fs::read_to_string(folder(rule).join(file)).unwrap();
    let request = fs::read_to_string(folder(rule).join("request.json"));
    let mut request: CaseRequest = request.map_or_else(
        |_| CaseRequest::default(),
        |json| serde_json::from_str(&json).unwrap(),
    );
    if rule.is_experimental() {
        let argument = (
            checks::settings::BUILD_ARG.to_owned(),
            "experimental=all".to_owned(),
        );
        request.build_args.extend([argument]);
    }
    report(&text, request)
}

/// What the checks say of a Dockerfile of whose stages each is a target, and how people see it.
fn report(text: &str, mut request: CaseRequest) -> (Report, String) {
    let source = SourceFile::new("Dockerfile", text);
    let (dockerfile, mut said) = parse(text);
    let mut stages: BTreeSet<usize> = BTreeSet::new();
    for target in 0..dockerfile.stages.len() {
        request.target = Some(target.to_string());
        let plan = lower_fully(&dockerfile, &source, &request).unwrap_or_else(|problems| {
            let rendered = problems
                .iter()
                .map(|problem| problem.render(&source, false));
            panic!("{text}: {}", rendered.collect::<Vec<_>>().join("\n"))
        });
        stages.extend(&plan.stages);
        said.extend(plan.warnings);
    }
    let subject = Subject {
        dockerfile: &dockerfile,
        source: &source,
        stages: &stages,
        build_args: &request.build_args,
    };
    let report = checks::report(&subject, said).unwrap();
    let problems = report.problems(&source);
    let text = problems
        .iter()
        .map(|problems| problems.render(false) + "\n")
        .collect::<Vec<_>>()
        .join("\n");
    (report, text)
}

#[test]
fn bad_cases_break_their_rule_and_good_ones_none() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut wrong = Vec::new();
    for rule in Rule::all() {
        let (bad, text) = case(rule, "bad.Dockerfile");
        if bad.rules() != [rule.name()] {
            wrong.push(format!("{rule:?} bad: {:?}\n{text}", bad.rules()));
        }
        let path = folder(rule).join("bad.txt");
        if update {
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{}: {text}", path.display()));
        }
        let (good, text) = case(rule, "good.Dockerfile");
        if !good.rules().is_empty() || !text.is_empty() {
            wrong.push(format!("{rule:?} good: {text}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nUPDATE_EXPECT=1 writes what was found",
        wrong.join("\n")
    );
}

#[test]
fn every_rule_has_a_page_with_its_cases() {
    let index = fs::read_to_string(workspace().join("docs/reference/checks.md")).unwrap();
    for rule in Rule::all() {
        let page = fs::read_to_string(workspace().join(rule.page())).unwrap();
        assert!(
            page.starts_with(&format!("# {}\n", rule.name())),
            "{rule:?}"
        );
        assert_eq!(
            page.contains("Experimental: "),
            rule.is_experimental(),
            "{rule:?}"
        );
        let mut examples = page.split("```dockerfile\n").skip(1);
        for file in ["bad.Dockerfile", "good.Dockerfile"] {
            let example = examples.next().and_then(|rest| rest.split("```").next());
            let case = fs::read_to_string(folder(rule).join(file)).unwrap();
            assert_eq!(example, Some(case.as_str()), "{}: {file}", rule.page());
        }
        for heading in ["## What\n", "## Why\n", "## Bad\n", "## Good\n"] {
            assert!(page.contains(heading), "{}: no {heading}", rule.page());
        }
        let row = format!(
            "| [{}](checks/{}.md) | {} |",
            rule.name(),
            rule.slug(),
            rule.description()
        );
        assert!(index.contains(&row), "the index has no row\n{row}");
    }
}

#[test]
fn there_are_no_pages_and_cases_without_a_rule() {
    let names = |folder: &str| -> BTreeSet<String> {
        fs::read_dir(workspace().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let cases: BTreeSet<String> = Rule::all().map(|rule| rule.name().to_owned()).collect();
    assert_eq!(names("testdata/checks"), cases);
    let pages: BTreeSet<String> = Rule::all()
        .map(|rule| format!("{}.md", rule.slug()))
        .collect();
    assert_eq!(names("docs/reference/checks"), pages);
}

/// Where rules speak, and where they do not: `RULE:line`, in order.
#[track_caller]
fn check_with(text: &str, request: CaseRequest, expect: &[&str]) {
    let source = SourceFile::new("Dockerfile", text);
    let (report, _) = report(text, request);
    let found: Vec<String> = report
        .findings
        .iter()
        .map(|finding| {
            let name = finding.rule.map(Rule::name).unwrap_or_default();
            format!("{name}:{}", source.line(finding.span.start))
        })
        .collect();
    assert_eq!(found, expect, "{text}");
}

#[track_caller]
fn check(text: &str, expect: &[&str]) {
    check_with(text, CaseRequest::default(), expect);
}

#[test]
fn rules_about_case_count_the_file() {
    check(
        "from a\nrun b\nCOPY c /\n",
        &["ConsistentInstructionCasing:3"],
    );
    check("from a as b\nrun c\n", &[]);
    check("FROM a\nrun b\n", &["ConsistentInstructionCasing:2"]);
    // `From` is reported once, not again for its `as`.
    check("From a as b\nRUN c\n", &["ConsistentInstructionCasing:1"]);
    check("FROM a as b\n", &["FromAsCasing:1"]);
    check("FROM a \\\n  aS b\n", &["FromAsCasing:2"]);
    check("FROM base-as AS has\n", &[]);
    check("FROM a \\\n# as it is\n  AS b\n", &[]);
}

#[test]
fn commands_for_a_shell_are_fine_where_a_shell_was_chosen() {
    check(
        "FROM a\nCMD b\nENTRYPOINT c\n",
        &["JSONArgsRecommended:2", "JSONArgsRecommended:3"],
    );
    check("FROM a\nSHELL [\"bash\", \"-c\"]\nCMD b\n", &[]);
    check(
        "FROM a AS x\nSHELL [\"bash\", \"-c\"]\nFROM x\nCMD b\n",
        &[],
    );
    check("FROM a\nHEALTHCHECK CMD b\n", &[]);
}

#[test]
fn every_instruction_without_effect_is_reported() {
    check(
        "FROM a\nCMD [\"1\"]\nCMD [\"2\"]\nCMD [\"3\"]\nHEALTHCHECK NONE\nHEALTHCHECK CMD x\n",
        &[
            "MultipleInstructionsDisallowed:2",
            "MultipleInstructionsDisallowed:3",
            "MultipleInstructionsDisallowed:5",
        ],
    );
    check("FROM a AS x\nCMD [\"1\"]\nFROM x\nCMD [\"2\"]\n", &[]);
}

#[test]
fn variables_that_are_set_somewhere_are_fine() {
    check("FROM a\nUSER $X\n", &["UndefinedVar:2"]);
    check("FROM a\nARG X\nUSER $X\n", &[]);
    check("ARG X=1\nFROM a\nUSER $X\n", &["UndefinedVar:3"]);
    check("FROM a AS x\nENV X=1\nFROM x\nUSER $X\n", &[]);
    check("FROM a\nUSER ${X:-1}\n", &[]);
    check("FROM a\nUSER x$PATH\n", &[]);
    check(
        "FROM a\nUSER $TARGETARCH$BUILDPLATFORM$https_proxy$NO_PROXY\n",
        &[],
    );
    check("FROM a\nRUN echo $X\n", &[]);
    // What an image sets is known.
    let json = r#"{"images": {"a:latest": {"architecture": "amd64", "os": "linux",
        "config": {"Env": ["X=1"]}, "rootfs": {"type": "layers", "diff_ids": []}}}}"#;
    let json = json.replace("a:latest", "docker.io/library/a:latest");
    let request: CaseRequest = serde_json::from_str(&json).unwrap();
    check_with("FROM a\nUSER $X\n", request, &[]);

    check("FROM a$X\n", &["UndefinedArgInFrom:1"]);
    check("ARG X\nFROM a$X\n", &[]);
    check("FROM a$TARGETVARIANT\n", &[]);
    check("FROM a$http_proxy\n", &[]);
}

#[test]
fn the_first_working_directory_of_a_chain_is_absolute() {
    check("FROM a\nWORKDIR b\nWORKDIR c\n", &["WorkdirRelativePath:2"]);
    check("FROM a\nWORKDIR /b\nWORKDIR c\n", &[]);
    check("FROM a AS x\nWORKDIR /b\nFROM x\nWORKDIR c\n", &[]);
    check("FROM a\nARG D=/d\nWORKDIR $D/e\n", &[]);
}

#[test]
fn images_and_platforms_of_from() {
    check(
        "FROM --platform=${TARGETPLATFORM} a\n",
        &["RedundantTargetPlatform:1"],
    );
    check("FROM --platform=$BUILDPLATFORM a\n", &[]);
    check("FROM --platform=linux/amd64 a AS linux-tools\n", &[]);
    check("FROM --platform=linux/amd64 a AS x-amd64\n", &[]);
    check(
        "FROM --platform=linux/amd64 a AS x\n",
        &["FromPlatformFlagConstDisallowed:1"],
    );
    check("ARG T=\nFROM a:${T:-1}\n", &[]);
    check("ARG T\nFROM a${T}\n", &[]);
    let request: CaseRequest = serde_json::from_str(r#"{"build_args": {"B": "a"}}"#).unwrap();
    check_with("ARG B\nFROM $B\n", request, &["InvalidDefaultArgInFrom:2"]);
}

#[test]
fn names_of_stages() {
    check(
        "FROM a AS x\nFROM b AS X\n",
        &["StageNameCasing:2", "DuplicateStageName:2"],
    );
    check("FROM a AS context\n", &["ReservedStageName:1"]);
    check(
        "FROM a AS Scratch\n",
        &["StageNameCasing:1", "ReservedStageName:1"],
    );
}

#[test]
fn sources_that_are_ignored() {
    let ignoring = |patterns: &[&str]| {
        let json = serde_json::json!({"ignore": patterns}).to_string();
        serde_json::from_str::<CaseRequest>(&json).unwrap()
    };
    let text = "FROM a\nARG N=node_modules\nCOPY src $N /x/\nADD *.log .git /x/\n";
    check_with(
        text,
        ignoring(&["node_modules", "*.log", ".git"]),
        &["CopyIgnoredFile:3", "CopyIgnoredFile:4"],
    );
    check_with(text, ignoring(&["node_modules", "!node_modules/x"]), &[]);
    check_with(
        "FROM a\nCOPY . /\n",
        ignoring(&["**"]),
        &["CopyIgnoredFile:2"],
    );
    check_with(
        "FROM a AS x\nFROM a\nCOPY --from=x /b /\n",
        ignoring(&["b"]),
        &[],
    );
}

#[test]
fn comments_silence_rules_for_one_instruction() {
    check(
        "FROM a\n# check=skip=JSONArgsRecommended // yes\nCMD b\n",
        &[],
    );
    check(
        "FROM a\n# check=skip=all\n# why\nCMD b\nENTRYPOINT c\n",
        &["JSONArgsRecommended:5"],
    );
    check(
        "FROM a\n# check=skip=UndefinedVar\nCMD b\n",
        &["JSONArgsRecommended:3"],
    );
    check(
        "FROM a\n# check=skip=all\n\nCMD b\n",
        &["JSONArgsRecommended:4"],
    );
    check("# check=skip=all\nFROM a\nCMD b\n", &[]);
}

#[test]
fn what_a_trigger_of_an_image_does_is_not_reported() {
    let json = r#"{"images": {"docker.io/library/a:latest": {"architecture": "amd64", "os": "linux",
        "config": {"OnBuild": ["WORKDIR x", "CMD y", "USER $Z"]},
        "rootfs": {"type": "layers", "diff_ids": []}}}}"#;
    let request: CaseRequest = serde_json::from_str(json).unwrap();
    check_with("FROM a\n", request, &[]);
    // One of this file is, once for all who stand on it.
    check(
        "FROM a AS x\nONBUILD ENV k v\nFROM x\nFROM x\n",
        &["LegacyKeyValueFormat:2"],
    );
}

#[test]
fn experimental_rules() {
    let check = |text: &str, expect: &[&str]| {
        let text = format!("# check=skip=all;experimental=all\n{text}");
        check_with(&text, CaseRequest::default(), expect);
    };
    check(
        "FROM a:1\nRUN [\"npm\", \"ci\"]\n",
        &["MissingCacheMount:3"],
    );
    check(
        "FROM a:1\nRUN <<EOF\nset -e\npip install x\nEOF\n",
        &["MissingCacheMount:3"],
    );
    check(
        "FROM a:1\nRUN <<EOF\n#!/usr/bin/env python3\npip install x\nEOF\n",
        &[],
    );
    check(
        "FROM a:1 AS x\nFROM x\nFROM scratch\nFROM a@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n",
        &[],
    );
    check(
        "FROM a\nFROM h:5000/a\nFROM a:latest\n",
        &[
            "UnpinnedBaseImage:2",
            "UnpinnedBaseImage:3",
            "UnpinnedBaseImage:4",
        ],
    );
    check(
        "FROM a:1\nSHELL [\"bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN curl u | sh\n",
        &[],
    );
    check("FROM a:1\nRUN set -o pipefail && curl u | sh\n", &[]);
    check("FROM a:1\nUSER 1000\nCMD [\"x\"]\n", &[]);
    check("FROM a:1\nUSER 0:0\nCMD [\"x\"]\n", &["LastUserIsRoot:2"]);
    check("FROM a:1\nRUN x\n", &[]);
    check(
        "FROM a:1\nCOPY --from=a:1 .env /\nADD --chown=1 x /\nADD x.tgz /\n",
        &["AddInsteadOfCopy:4"],
    );
    check("FROM a:1\nRUN cd /x && make\n", &[]);
    check(
        "FROM a:1\nRUN apt-get update && rm -rf /var/lib/apt/lists/*\n",
        &[],
    );
    check(
        "FROM a:1\nCOPY . .\nRUN --mount=type=cache,target=/c npm ci\n",
        &["CopyAllBeforeInstall:3"],
    );
    check(
        "FROM a:1\nCOPY --from=a:1 . .\nRUN --mount=type=cache,target=/c npm ci\n",
        &[],
    );
}

#[test]
fn the_examples_of_the_index_can_be_built() {
    let index = fs::read_to_string(workspace().join("docs/reference/checks.md")).unwrap();
    let examples: Vec<&str> = index
        .split("```dockerfile\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        check(example, &[]);
    }
}

/// The cases of the language with each line left out, doubled or cut: whatever is said lies in the file.
#[test]
fn damaged_files_are_looked_at() {
    let folder = workspace().join("testdata/dockerfiles");
    let argument = (
        checks::settings::BUILD_ARG.to_owned(),
        "experimental=all".to_owned(),
    );
    let build_args = BTreeMap::from([argument]);
    let mut looked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let Ok(text) = fs::read_to_string(entry.unwrap().path().join("Dockerfile")) else {
            continue;
        };
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        for (index, line) in lines.iter().enumerate() {
            let half = line.char_indices().nth(line.chars().count() / 2);
            let half = &line[..half.map_or(0, |(at, _)| at)];
            for changed in [String::new(), line.repeat(2), half.to_owned()] {
                let damaged = lines[..index].concat() + &changed + &lines[index + 1..].concat();
                let source = SourceFile::new("Dockerfile", damaged.as_str());
                let (dockerfile, said) = parse(&damaged);
                // Also what has errors: `--check` shows what it can.
                let stages = (0..dockerfile.stages.len()).collect();
                let subject = Subject {
                    dockerfile: &dockerfile,
                    source: &source,
                    stages: &stages,
                    build_args: &build_args,
                };
                let report = checks::report(&subject, said).unwrap();
                for finding in report.findings.iter().chain(&report.warnings) {
                    assert!(damaged.get(finding.span.range()).is_some(), "{damaged}");
                }
                let images = BTreeMap::new();
                let platform = store::oci::Platform::host();
                let request = LowerRequest::new(&dockerfile, &source, &platform, &images);
                let targets = targets::targets(&dockerfile, &source);
                assert!(targets.targets.len() <= dockerfile.stages.len());
                let _ = outline::outline(&request);
                looked += 1;
            }
        }
    }
    assert!(looked > 1000, "{looked}");
}
