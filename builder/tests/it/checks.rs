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

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use builder::checks::{self, Report, Rule, Subject};
use builder::dockerfile::{SourceFile, parse};

use crate::dockerfiles::{CaseRequest, lower_fully};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn folder(rule: Rule) -> PathBuf {
    workspace().join("testdata/checks").join(rule.name())
}

/// What the checks say of one file of a rule's case, and how people see it.
fn report(rule: Rule, file: &str) -> (Report, String) {
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
    let source = SourceFile::new("Dockerfile", text.as_str());
    let (dockerfile, mut said) = parse(&text);
    let mut stages: BTreeSet<usize> = BTreeSet::new();
    // Each stage as a target, so that every one of them is looked at.
    for target in 0..dockerfile.stages.len() {
        request.target = Some(target.to_string());
        let plan = lower_fully(&dockerfile, &source, &request).unwrap_or_else(|problems| {
            let rendered = problems
                .iter()
                .map(|problem| problem.render(&source, false));
            panic!(
                "{rule:?} {file}: {}",
                rendered.collect::<Vec<_>>().join("\n")
            )
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
        let (bad, text) = report(rule, "bad.Dockerfile");
        if bad.rules() != [rule.name()] {
            wrong.push(format!("{rule:?} bad: {:?}\n{text}", bad.rules()));
        }
        let path = folder(rule).join("bad.txt");
        if update {
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{}: {text}", path.display()));
        }
        let (good, text) = report(rule, "good.Dockerfile");
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
