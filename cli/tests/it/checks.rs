//! `build --check` and `build --call`, and what a build says of doubtful Dockerfiles.

use crate::support::{Place, Ran};

/// One warning of a rule, one of lowering's, and a stage that the target does not need.
const DOUBTFUL: &str = "\
FROM scratch AS unused
MAINTAINER somebody

# Final the result
FROM scratch AS Final
COPY file /$NOTHING
";

fn ask(place: &Place, dockerfile: &str, arguments: &[&str]) -> Ran {
    let files = [("Dockerfile", dockerfile), ("file", "content")];
    let context = place.context("context", &files);
    let context = context.to_str().unwrap();
    place.run([&["build"], arguments, &[context]].concat())
}

#[test]
fn a_check_looks_at_every_stage_and_fails_if_there_is_something() {
    let place = Place::new();
    let ran = ask(&place, DOUBTFUL, &["--check"]);
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(
        ran.stdout
            .starts_with("Check complete, 3 warnings have been found!\n\n")
    );
    for rule in ["MaintainerDeprecated", "StageNameCasing", "UndefinedVar"] {
        assert!(ran.stdout.contains(&format!("warning[{rule}]: ")), "{ran}");
    }
    assert!(
        ran.stdout
            .contains("see docs/reference/checks/undefined-var.md")
    );
    let ran = ask(&place, DOUBTFUL, &["--call", "check,ignorestatus"]);
    assert_eq!(ran.code, Some(0), "{ran}");

    let ran = ask(&place, "FROM scratch\nCOPY file /\n", &["--check"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    assert_eq!(ran.stdout, "Check complete, no warnings found.\n");
}

/// Its base image is nowhere: what can be told is told, and what cannot is not guessed at.
#[test]
fn a_check_needs_no_base_image() {
    let place = Place::new();
    let dockerfile = "FROM 127.0.0.1:1/missing\nMAINTAINER x\nUSER $FROM_THE_BASE\n";
    let ran = ask(&place, dockerfile, &["--check"]);
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(
        ran.stdout.contains("warning[MaintainerDeprecated]"),
        "{ran}"
    );
    assert!(!ran.stdout.contains("UndefinedVar"), "{ran}");
    assert!(
        ran.stderr
            .contains("the base image 127.0.0.1:1/missing:latest: "),
        "{ran}"
    );
}

#[test]
fn a_check_reports_what_cannot_be_built() {
    let place = Place::new();
    let ran = ask(
        &place,
        "FROM scratch\nCOPPY a b\n",
        &["--call=check,format=json"],
    );
    assert_eq!(ran.code, Some(1), "{ran}");
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let error = &answer["buildError"];
    assert_eq!(
        error["message"],
        "unknown instruction `COPPY`: did you mean `COPY`?"
    );
    assert_eq!(error["location"]["ranges"][0]["start"]["line"], 2);
}

#[test]
fn checks_as_json() {
    let place = Place::new();
    let ran = ask(&place, DOUBTFUL, &["--call", "check,format=json"]);
    assert_eq!(ran.code, Some(1), "{ran}");
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let warnings = answer["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 3);
    let expect = serde_json::json!({
        "ruleName": "MaintainerDeprecated",
        "description": "the label `org.opencontainers.image.authors` replaces `MAINTAINER`",
        "url": "docs/reference/checks/maintainer-deprecated.md",
        "detail": "`MAINTAINER` is deprecated: `LABEL org.opencontainers.image.authors=\"somebody\"`",
        "location": {
            "sourceIndex": 0,
            "ranges": [
                {"start": {"line": 2, "character": 0}, "end": {"line": 2, "character": 19}}
            ],
        },
    });
    assert_eq!(warnings[0], expect);
    let source = &answer["sources"][0];
    assert_eq!(source["language"], "Dockerfile");
    assert!(
        source["filename"]
            .as_str()
            .unwrap()
            .ends_with("/Dockerfile")
    );
}

#[test]
fn outline_and_targets() {
    let place = Place::new();
    let dockerfile = "\
# VERSION which release to build
ARG VERSION=1.2
# base everything needed
FROM 127.0.0.1:1/missing:$VERSION AS base
ARG UNUSED_BELOW
RUN --mount=type=secret,id=npmrc,required=true --mount=type=cache,target=/root/.npm make
FROM scratch
ARG FLAVOUR
";
    let ran = ask(&place, dockerfile, &["--call", "targets"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    expect_test::expect![[r#"
        TARGET        DESCRIPTION
        base          everything needed
        1 (default)
    "#]]
    .assert_eq(&ran.stdout);
    let ran = ask(
        &place,
        dockerfile,
        &["--call", "outline", "--target", "base"],
    );
    assert_eq!(ran.code, Some(0), "{ran}");
    expect_test::expect![[r#"
        TARGET:      base
        DESCRIPTION: everything needed

        BUILD ARG      VALUE     DESCRIPTION
        VERSION        1.2       which release to build
        UNUSED_BELOW

        SECRET    REQUIRED
        npmrc     true

        CACHE MOUNT
        /root/.npm
    "#]]
    .assert_eq(&ran.stdout);
    let arguments = [
        "--call",
        "outline,format=json",
        "--build-arg",
        "FLAVOUR=sweet",
    ];
    let ran = ask(&place, dockerfile, &arguments);
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let args = answer["args"].as_array().unwrap();
    assert_eq!(args.len(), 1, "only what the target uses");
    assert_eq!(args[0]["name"], "FLAVOUR");
    assert_eq!(args[0]["value"], "sweet");
    let ran = ask(
        &place,
        dockerfile,
        &["--call", "outline", "--target", "bse"],
    );
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(ran.stderr.contains("did you mean `base`?"), "{ran}");
    let ran = ask(
        &place,
        dockerfile,
        &["--call", "subrequests.describe,format=json"],
    );
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(answer[0]["name"], "frontend.outline");
}

/// What a build says stands below its steps, and is about the stages that it needs.
#[test]
fn a_build_ends_with_its_warnings() {
    let place = Place::new();
    let ran = ask(&place, DOUBTFUL, &["--progress", "plain"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    let steps = ran.stderr.find("COPY file").unwrap();
    let warning = ran.stderr.find("warning[StageNameCasing]").unwrap();
    let count = ran.stderr.find("2 warnings found\n").unwrap();
    assert!(steps < warning && warning < count, "{ran}");
    assert!(!ran.stderr.contains("MaintainerDeprecated"), "{ran}");
    let ran = ask(&place, DOUBTFUL, &["--quiet"]);
    assert!(!ran.stderr.contains("warning"), "{ran}");
}

#[test]
fn violations_can_be_errors_or_silent() {
    let place = Place::new();
    let strict = format!("# check=error=true\n{DOUBTFUL}");
    let ran = ask(&place, &strict, &[]);
    assert_eq!(ran.code, Some(1), "{ran}");
    let message = "error: lint violation found for rules: StageNameCasing, UndefinedVar\n";
    assert!(ran.stderr.contains(message), "{ran}");
    assert!(!ran.stderr.contains("COPY file /$NOTHING\n#"), "{ran}");

    let argument = "BUILDKIT_DOCKERFILE_CHECK=skip=StageNameCasing,UndefinedVar";
    let ran = ask(&place, &strict, &["--build-arg", argument]);
    assert_eq!(ran.code, Some(0), "{ran}");
    assert!(!ran.stderr.contains("warning"), "{ran}");

    let argument = "BUILDKIT_DOCKERFILE_CHECK=skip=UndefinedVars";
    let ran = ask(&place, &strict, &["--check", "--build-arg", argument]);
    assert!(
        ran.stderr.contains("there is no rule `UndefinedVars`"),
        "{ran}"
    );
    assert!(ran.stderr.contains("did you mean `UndefinedVar`?"), "{ran}");

    let ran = ask(&place, "# check=skpi=all\nFROM scratch\nCOPY file /\n", &[]);
    assert_eq!(ran.code, Some(1), "{ran}");
    assert!(
        ran.stderr.contains("`check` has no setting `skpi`"),
        "{ran}"
    );
}

#[test]
fn wrong_calls_are_wrong_usage() {
    let place = Place::new();
    let ran = ask(&place, DOUBTFUL, &["--call", "chekc"]);
    assert_eq!(ran.code, Some(2), "{ran}");
    assert!(
        ran.stderr
            .contains("unknown method `chekc`: expected build, check, "),
        "{ran}"
    );
    let ran = ask(&place, DOUBTFUL, &["--call", "outline", "--check"]);
    assert_eq!(ran.code, Some(2), "{ran}");
}

/// Its registry cannot be asked for the right one, so what is here is taken, and that is said.
#[test]
fn a_base_for_another_platform_is_a_warning() {
    let place = Place::new();
    let other = if cfg!(target_arch = "x86_64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = format!(
        r#"{{"architecture":"{other}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
    );
    let manifest = r#"[{"Config":"config.json","RepoTags":["127.0.0.1:1/other:1"],"Layers":[]}]"#;
    let folder = place.context(
        "archive",
        &[("config.json", &config), ("manifest.json", manifest)],
    );
    let archive = place.path("archive.tar");
    let tar = std::process::Command::new("tar")
        .arg("-cf")
        .args([&archive, std::path::Path::new("-C"), &folder])
        .args(["manifest.json", "config.json"])
        .status();
    assert!(tar.unwrap().success());
    place.ok(["load", "-i"], [&archive]);
    let ran = ask(&place, "FROM 127.0.0.1:1/other:1\nLABEL a=b\n", &[]);
    assert_eq!(ran.code, Some(0), "{ran}");
    let message = format!(
        "warning[InvalidBaseImagePlatform]: the image `127.0.0.1:1/other:1` is for `linux/{other}`"
    );
    assert!(ran.stderr.contains(&message), "{ran}");
}

#[test]
fn later_versions_of_the_language_are_noted_and_other_languages_refused() {
    let place = Place::new();
    let ran = ask(
        &place,
        "# syntax=docker/dockerfile:1.99\nFROM scratch\nLABEL a=b\n",
        &[],
    );
    assert_eq!(ran.code, Some(0), "{ran}");
    assert!(
        ran.stderr.contains("note: longshore reads version 1."),
        "{ran}"
    );
    assert!(!ran.stderr.contains("warning"), "{ran}");
    let argument = ["--build-arg", "BUILDKIT_SYNTAX=example/frontend:1"];
    ask(&place, "FROM scratch\n", &argument)
        .fails(1, "the language of `example/frontend:1` is not supported");
}
