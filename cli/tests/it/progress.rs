//! What a build says while it runs: to people, and to programs.

use serde_json::Value;

use crate::support::{Place, Ran};

/// Every line of stderr as JSON.
fn lines(ran: &Ran) -> Vec<Value> {
    let parse = |line: &str| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?} of {ran}"))
    };
    ran.stderr.lines().map(parse).collect()
}

fn all<'a>(lines: &'a [Value], key: &str) -> Vec<&'a Value> {
    let lists = lines.iter().filter_map(|line| line.get(key)?.as_array());
    lists.flatten().collect()
}

#[test]
fn raw_json_tells_of_a_build() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nARG X\nRUN echo out; echo err >&2\nENV Y=$Z\n";
    let context = place.context("context", &[("Dockerfile", dockerfile)]);
    let ran = place.words(
        ["build", "--progress", "rawjson", "-t", "x"],
        [context.as_path()],
    );
    assert_eq!(ran.ok(), "", "data is on stderr, as buildx has it");
    let lines = lines(&ran);
    let vertexes = all(&lines, "vertexes");
    let run: Vec<&&Value> = vertexes
        .iter()
        .filter(|vertex| {
            vertex["name"]
                .as_str()
                .is_some_and(|name| name.contains("RUN echo"))
        })
        .collect();
    // Planned, started, completed; all of one digest.
    assert_eq!(run.len(), 3, "{ran}");
    assert!(run[0].get("started").is_none() && run[1].get("completed").is_none());
    assert!(run[2]["completed"].as_str().unwrap() >= run[2]["started"].as_str().unwrap());
    assert!(
        run.iter()
            .all(|vertex| vertex["digest"] == run[0]["digest"])
    );
    let inputs = run[0]["inputs"].as_array().unwrap();
    assert!(vertexes.iter().any(|vertex| vertex["digest"] == inputs[0]));
    let mut logs: Vec<(i64, &str)> = all(&lines, "logs")
        .iter()
        .filter(|log| log["vertex"] == run[0]["digest"])
        .map(|log| {
            (
                log["stream"].as_i64().unwrap(),
                log["data"].as_str().unwrap(),
            )
        })
        .collect();
    logs.sort_unstable();
    assert_eq!(
        logs,
        [(1, "b3V0Cg=="), (2, "ZXJyCg==")],
        "out and err in base64"
    );
    let warnings = all(&lines, "warnings");
    let warning = warnings.first().expect("of the variable that is not set");
    assert_eq!(warning["range"][0]["start"]["line"], 4);
    assert!(
        warning["sourceInfo"]["filename"]
            .as_str()
            .unwrap()
            .ends_with("Dockerfile")
    );
    assert!(
        vertexes
            .iter()
            .any(|vertex| vertex["digest"] == warning["vertex"])
    );
    let result = &lines.last().unwrap()["result"];
    assert!(
        result["image"].as_str().unwrap().starts_with("sha256:"),
        "{ran}"
    );
    assert_eq!(result["names"][0], "x:latest");
}

#[test]
fn raw_json_tells_of_every_failure() {
    let place = Place::with_busybox();
    let check = |name: &str, dockerfile: &str, message: &str, line: u64, code: i32| {
        let context = place.context(name, &[("Dockerfile", dockerfile)]);
        let ran = place.words(["build", "--progress", "rawjson"], [context.as_path()]);
        assert_eq!(ran.code, Some(code), "{ran}");
        let lines = lines(&ran);
        let error = &lines.last().unwrap()["error"];
        assert_eq!(error["message"], message, "{ran}");
        assert_eq!(error["exitCode"], code);
        assert_eq!(
            error["problems"][0]["range"]["start"]["line"], line,
            "{ran}"
        );
    };
    check(
        "typo",
        "FROM busybox\nRUNN x\n",
        "unknown instruction `RUNN`",
        2,
        1,
    );
    check(
        "fails",
        "FROM busybox\nRUN exit 3\n",
        "process `/bin/sh -c exit 3` did not complete successfully: exit code: 3",
        2,
        1,
    );
    let ran = place.run(["build", "--progress", "rawjson", "not-there"]);
    let lines = lines(&ran);
    assert!(
        lines[0]["error"]["message"]
            .as_str()
            .unwrap()
            .contains("not-there"),
        "{ran}"
    );
}

#[test]
fn plain_progress_is_what_buildctl_prints() {
    let place = Place::with_busybox();
    let name = "a name that is longer than any terminal is wide, and longer than what buildctl cut in its time";
    let dockerfile = format!("FROM busybox\nRUN echo {name}; seq 12; exit 3\n");
    let context = place.context("context", &[("Dockerfile", &dockerfile)]);
    let ran = place.words(["build", "--progress", "plain"], [context.as_path()]);
    assert_eq!(ran.code, Some(1), "{ran}");
    // Times differ from run to run.
    let mut text = String::new();
    for line in ran.stderr.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        for word in &mut words {
            if word.contains('.') && word.parse::<f64>().is_ok() {
                *word = "TIME";
            }
        }
        text.push_str(&words.join(" "));
        text.push('\n');
    }
    let text = text.replace(context.to_str().unwrap(), "CONTEXT");
    let text = crate::support::without_build(&text);
    expect_test::expect![[r#"
        #1 [1/2] FROM docker.io/library/busybox:latest
        #1 CACHED

        #2 [2/2] RUN echo a name that is longer than any terminal is wide, and longer than what buildctl cut in its time; seq 12; exit 3
        #2 runs: no record of it: built for the first time
        #2 TIME a name that is longer than any terminal is wide, and longer than what buildctl cut in its time
        #2 TIME 1
        #2 TIME 2
        #2 TIME 3
        #2 TIME 4
        #2 TIME 5
        #2 TIME 6
        #2 TIME 7
        #2 TIME 8
        #2 TIME 9
        #2 TIME 10
        #2 TIME 11
        #2 TIME 12
        #2 ERROR: process `/bin/sh -c echo a name that is longer than any terminal is wide, and longer than what buildctl cut in its time; seq 12; exit 3` did not complete successfully: exit code: 3
        ------
         > [2/2] RUN echo a name that is longer than any terminal is wide, and longer than what buildctl cut in its time; seq 12; exit 3:
        TIME 3
        TIME 4
        TIME 5
        TIME 6
        TIME 7
        TIME 8
        TIME 9
        TIME 10
        TIME 11
        TIME 12
        ------
        error: process `/bin/sh -c echo a name that is longer than any terminal is wide, and longer than…buildctl cut in its time; seq 12; exit 3` did not complete successfully: exit code: 3
         --> CONTEXT/Dockerfile:2:1
          |
        2 | RUN echo a name that is longer than any terminal is wide, and longer than what buildctl cut in its time; seq 12; exit 3
          | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        hint: look around in it: `longshore debug BUILD 2`
    "#]].assert_eq(&text);
}

#[test]
fn colours_are_for_terminals_and_for_who_asks() {
    let place = Place::new();
    let context = place.context("context", &[("Dockerfile", "FROM scratch\nRUNN x\n")]);
    let check = |progress: &str, variables: &[(&str, &str)], coloured: bool| {
        let mut command = place.command(["build", "--progress", progress]);
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        command.arg(&context).envs(variables.iter().copied());
        let ran = Ran::of(&mut command);
        assert_eq!(ran.stderr.contains("\x1b["), coloured, "{ran}");
        assert!(ran.stderr.contains("RUNN"), "{ran}");
    };
    check("auto", &[], false);
    check("auto", &[("CLICOLOR_FORCE", "1")], true);
    check("auto", &[("CLICOLOR_FORCE", "0")], false);
    check("auto", &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false);
    check("plain", &[("CLICOLOR_FORCE", "1")], false);
    check("rawjson", &[("CLICOLOR_FORCE", "1")], false);
}
