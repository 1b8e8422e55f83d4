//! `COPY` and `ADD` as their users meet them: linked layers under processes, here-documents, and what is said when a path
//! is missing.

use serde_json::Value;

use crate::support::Place;

/// The DiffIDs of an image, oldest first.
fn diff_ids(place: &Place, image: &str) -> Vec<String> {
    let config: Value = serde_json::from_str(&place.run(["inspect", image]).ok()).unwrap();
    let layers = config[0]["RootFS"]["Layers"].as_array().unwrap();
    let layers = layers.iter().map(|layer| layer.as_str().unwrap());
    layers.map(str::to_owned).collect()
}

#[test]
fn a_linked_layer_moves_to_another_base_as_it_is() {
    let place = Place::with_busybox();
    let dockerfile = "ARG BASE=one\n\
        FROM busybox AS one\nRUN mkdir /real && ln -s real /to && echo 1 > /real/base\n\
        FROM busybox AS two\nRUN mkdir -m 700 /to && echo 2 > /to/base\n\
        FROM $BASE\nCOPY --link --chown=7:8 app /to/app\nRUN cat /to/app/run > /copied\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile), ("app/run", "it runs")]);
    let build = |base: &str| {
        let base_arg = format!("BASE={base}");
        place
            .words(
                [
                    "build",
                    "--progress",
                    "plain",
                    "--build-arg",
                    &base_arg,
                    "-t",
                    base,
                ],
                [&context],
            )
            .ok();
        diff_ids(&place, base)
    };
    let (one, two) = (build("one"), build("two"));
    assert_eq!(one.len(), two.len());
    let linked = one.len() - 2;
    assert_ne!(one[linked - 1], two[linked - 1]);
    assert_eq!(one[linked], two[linked]);
    // In one base it replaces a link, in the other it resets a directory.
    let look = "stat -c '%F %a %u:%g' /to /to/app /to/app/run; cat /copied; ls /to";
    expect_test::expect![[r#"
        directory 755 7:8
        directory 755 7:8
        regular file 644 7:8
        it runsapp"#]]
    .assert_eq(&place.sh("one", look));
    expect_test::expect![[r#"
        directory 755 7:8
        directory 755 7:8
        regular file 644 7:8
        it runsapp
        base"#]]
    .assert_eq(&place.sh("two", look));
    assert_eq!(place.sh("one", "cat /real/base"), "1");
}

#[test]
fn here_documents_become_files_that_run() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nARG WHO=you\nWORKDIR /srv\n\
        COPY --chmod=a+rx <<hello <<-'raw' ./\n#!/bin/sh\necho \"hello $WHO, \\$1\"\nhello\n\t$WHO\n\traw\n\
        RUN ./hello\\ 2>/dev/null || ./hello me > said\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    place.ok(["build", "-t", "docs"], [&context]);
    let found = place.sh("docs", "cat said raw; stat -c '%a %Y' hello");
    assert_eq!(found, "hello you, me\n$WHO\n755 0");
    let history = place.run(["history", "--no-trunc", "docs"]).ok();
    assert!(
        history.contains("COPY --chmod=a+rx <<hello <<raw ./ # buildkit"),
        "{history}"
    );
}

/// Builds a Dockerfile with one step, which fails, and says `expect`.
#[track_caller]
fn check(step: &str, expect: &str) {
    let place = Place::new();
    let context = place.context(
        "ctx",
        &[
            ("Dockerfile", &format!("FROM scratch\n{step}\n")),
            (".dockerignore", "# comment\n*.env\n!public.env\ntarget/\n"),
            ("package.json", "{}"),
            ("package-lock.json", "{}"),
            ("secret.env", "x"),
            ("target/out/app", "x"),
        ],
    );
    place.words(["build"], [&context]).fails(1, expect);
}

#[test]
fn a_missing_path_says_what_there_is() {
    check("COPY pakage.json /", "did you mean `/package.json`");
    check(
        "COPY src /",
        "has `.dockerignore`, `Dockerfile`, `package-lock.json`, `package.json`",
    );
    check(
        "COPY secret.env /",
        "it exists, but `*.env` in `.dockerignore` excludes it",
    );
    check(
        "COPY target/out /",
        "it exists, but `target` in `.dockerignore` excludes it",
    );
    check(
        "COPY --parents target/out/app /",
        "`target` in `.dockerignore` excludes it",
    );
    check(
        "COPY --chown=rooot package.json /",
        "unknown user `rooot`: the image has no `/etc/passwd`",
    );
}
