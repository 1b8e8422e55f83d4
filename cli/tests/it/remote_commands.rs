//! Every command on registries, one by one: its exit code, and what it prints for programs.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::support::{Place, Ran, Server, given, signal, stdout};

/// Where nobody listens.
const DOWN: &str = "127.0.0.1:1";

/// A digest of nothing that is anywhere.
const NOTHING: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// What a command prints to stdout.
enum Prints {
    /// Nothing at all.
    Nothing,
    /// Something, for people or as it is.
    Something,
    /// This.
    Text(&'static str),
    /// One JSON object with these fields, and no others.
    Object(&'static [&'static str]),
    /// JSON objects, one a line, each with these fields.
    Lines(usize, &'static [&'static str]),
    /// A JSON document of many lines that has these fields, and maybe others.
    Document(&'static [&'static str]),
}

use Prints::{Document, Lines, Nothing, Object, Something, Text};

const WRITTEN: &[&str] = &["name", "digest"];
const MADE: &[&str] = &["target", "digest"];

/// What is asked, the exit code, what is printed. `R` is a registry that is open to everybody, `L` one that wants to know who
/// asks, `D` one that is not there; `APP` the digest of `R/app:1`, `LAYER` of its layer; `DIR` a folder. The rows are run in
/// their order.
const COMMANDS: &[(&str, i32, Prints)] = &[
    // push, pull
    ("push R/app:1", 0, Something),
    ("push -q R/app:1", 0, Text("R/app:1\n")),
    (
        "push --json R/app:1 R/app:2",
        0,
        Lines(2, &["name", "digest", "uploaded", "mounted", "existed"]),
    ),
    ("push R/nowhere:1", 1, Nothing),
    ("push", 2, Nothing),
    ("push L/app:1", 4, Nothing),
    ("push D/app:1", 3, Nothing),
    (
        "pull --json R/app:1 R/app:2",
        0,
        Lines(2, &["name", "id", "digest", "fetched"]),
    ),
    ("pull R/app:none", 4, Nothing),
    // copy, sync
    (
        "copy --json R/app:1 R/copied:1",
        0,
        Object(&[
            "source",
            "target",
            "digest",
            "manifests",
            "blobs",
            "bytes",
            "referrers",
        ]),
    ),
    ("copy R/app:1 R/copied:2", 0, Text("R/copied@APP\n")),
    ("copy -q R/app:1 R/copied:2", 0, Nothing),
    ("copy R/app:1 oci:DIR/layout:1", 0, Text("APP\n")),
    ("copy oci:DIR/layout:none R/copied:3", 1, Nothing),
    ("copy oci:DIR/nowhere R/copied:3", 1, Nothing),
    (
        "copy --platform linux/s390x R/index:1 R/copied:3",
        4,
        Nothing,
    ),
    ("copy R/app:1", 2, Nothing),
    ("copy R/app:1 L/app:1", 4, Nothing),
    ("copy R/app:1 D/app:1", 3, Nothing),
    (
        "remote sync --json R/app R/synced",
        0,
        Lines(2, &["target", "digest", "was", "dryRun"]),
    ),
    ("remote sync --dry-run R/app R/synced", 0, Something),
    ("remote sync R/app:none R/synced", 4, Nothing),
    // ls, tags
    (
        "remote ls --json R",
        0,
        Object(&["registry", "repositories"]),
    ),
    ("remote ls R", 0, Text("app\ncopied\nsynced\n")),
    ("remote ls --full-ref --include a* R", 0, Text("R/app\n")),
    (
        "remote ls --format {{join_.repositories_\",\"}} R",
        0,
        Text("app,copied,synced\n"),
    ),
    ("remote ls D", 3, Nothing),
    ("remote ls L", 4, Nothing),
    ("remote tags --json R/app", 0, Object(&["name", "tags"])),
    ("remote tags R/app", 0, Text("1\n2\n")),
    (
        "remote tags --full-ref R/app",
        0,
        Text("R/app:1\nR/app:2\n"),
    ),
    (
        "remote tags --format {{range_.Tags}}<{{.}}>{{end}} R/app",
        0,
        Text("<1><2>\n"),
    ),
    ("remote tags --format {{.nothing}} R/app", 2, Nothing),
    ("remote tags --format {{ R/app", 2, Nothing),
    ("remote tags --json --format {{.}} R/app", 2, Nothing),
    ("remote tags R/none", 4, Nothing),
    // digest, config, inspect, manifest get
    ("remote digest --json R/app:1", 0, Object(WRITTEN)),
    ("remote digest R/app:1", 0, Text("APP\n")),
    ("remote digest --full-ref R/app:1", 0, Text("R/app@APP\n")),
    (
        "remote digest --format {{.Digest}} R/app:1",
        0,
        Text("APP\n"),
    ),
    ("remote digest R/app:1@APP", 0, Text("APP\n")),
    ("remote digest R/app:1@NOTHING", 4, Nothing),
    (
        "remote config --json R/app:1",
        0,
        Document(&["architecture", "config", "rootfs", "history"]),
    ),
    (
        "remote config --format {{index_.config.Env_1}} R/app:1",
        0,
        Text("A=1\n"),
    ),
    (
        "remote inspect R/app:1",
        0,
        Document(&["Name", "Digest", "RepoTags", "Layers", "Env", "Labels"]),
    ),
    (
        "remote inspect --json --no-tags R/app:1",
        0,
        Document(&["Name", "Digest", "LayersData", "Os"]),
    ),
    (
        "remote inspect --format {{.Digest}} R/app:1",
        0,
        Text("APP\n"),
    ),
    (
        "remote inspect --raw R/app:1",
        0,
        Document(&["schemaVersion", "mediaType", "config", "layers"]),
    ),
    (
        "remote manifest get --json R/app:1",
        0,
        Document(&["schemaVersion", "mediaType", "config", "layers"]),
    ),
    (
        "remote manifest get --format raw-body R/app:1",
        0,
        Document(&["schemaVersion"]),
    ),
    (
        "remote manifest get --format {{range_.Layers}}{{.Digest}}{{end}} R/app:1",
        0,
        Text("LAYER\n"),
    ),
    ("remote manifest get R/app@NOTHING", 4, Nothing),
    // manifest put and delete, tag, rm
    (
        "remote manifest put --json R/app:3 DIR/manifest",
        0,
        Object(WRITTEN),
    ),
    (
        "remote manifest put R/app:4 DIR/manifest",
        0,
        Text("R/app@APP\n"),
    ),
    ("remote manifest put R/app:4 DIR/nowhere", 1, Nothing),
    ("remote manifest put R/app:4 DIR/file", 1, Nothing),
    ("remote manifest put R/app@NOTHING DIR/manifest", 1, Nothing),
    ("remote manifest put R/other:1 DIR/manifest", 4, Nothing),
    (
        "remote tag --json R/app:1 5 6",
        0,
        Lines(2, &["name", "digest"]),
    ),
    ("remote tag R/app:1 7", 0, Text("R/app:7\n")),
    ("remote tag R/app:1 not/a/tag", 1, Nothing),
    ("remote tag R/app:none 7", 4, Nothing),
    (
        "remote rm --json R/app:5 R/app:6",
        0,
        Lines(2, &["removed"]),
    ),
    ("remote rm R/app:7", 0, Text("Removed: R/app:7\n")),
    ("remote rm R/app:7 R/app:4", 4, Text("Removed: R/app:4\n")),
    ("remote rm R/app", 2, Nothing),
    ("remote manifest delete R/app:1", 2, Nothing),
    ("remote manifest delete R/app@NOTHING", 4, Nothing),
    (
        "remote manifest delete --json R/synced@APP",
        0,
        Object(WRITTEN),
    ),
    // blob
    (
        "remote blob put --json R/app DIR/file",
        0,
        Object(&["name", "digest", "size", "uploaded"]),
    ),
    ("remote blob put R/app DIR/nowhere", 1, Nothing),
    (
        "remote blob head --json R/app@LAYER",
        0,
        Object(&["name", "digest", "size"]),
    ),
    ("remote blob head R/app@NOTHING", 4, Nothing),
    ("remote blob head R/app:1", 2, Nothing),
    ("remote blob get R/app@LAYER", 0, Something),
    ("remote blob get -o DIR/blob R/app@LAYER", 0, Nothing),
    ("remote blob get R/app@NOTHING", 4, Nothing),
    ("remote blob get D/app@LAYER", 3, Nothing),
    (
        "remote blob delete --json R/copied@LAYER",
        0,
        Object(&["removed"]),
    ),
    ("remote blob delete R/copied@NOTHING", 4, Nothing),
    // referrers, attach
    (
        "remote attach --json --artifact-type text/x R/app:1 DIR/file",
        0,
        Object(WRITTEN),
    ),
    (
        "remote attach --artifact-type text/x R/app:1 DIR/nowhere",
        1,
        Nothing,
    ),
    ("remote attach R/app:1 DIR/file", 2, Nothing),
    (
        "remote referrers --json R/app:1",
        0,
        Object(&["name", "digest", "referrers"]),
    ),
    (
        "remote referrers --format {{range_.Referrers}}{{.ArtifactType}}{{end}} R/app:1",
        0,
        Text("text/x\n"),
    ),
    // Images made of others
    (
        "remote index create --json R/index:1 R/app:1",
        0,
        Object(MADE),
    ),
    (
        "remote index append --json R/index:1 R/app:2",
        0,
        Object(MADE),
    ),
    (
        "remote index annotate --json -a a=b R/index:1",
        0,
        Object(MADE),
    ),
    ("remote index annotate -a a R/index:1", 2, Nothing),
    ("remote index annotate -a a=b R/app:1", 1, Nothing),
    ("remote index create R/index:1", 2, Nothing),
    (
        "copy --platform linux/s390x R/index:1 R/copied:3",
        1,
        Nothing,
    ),
    (
        "remote mutate --json --env B=2 R/app:1 -t R/made:1",
        0,
        Object(MADE),
    ),
    ("remote mutate --env B R/app:1 -t R/made:1", 2, Nothing),
    ("remote mutate --env B=2 R/app@APP", 2, Nothing),
    (
        "remote append --json -b R/app:1 -f DIR/layer.tar -t R/made:2",
        0,
        Object(MADE),
    ),
    (
        "remote append -b R/app:1 -f DIR/nowhere -t R/made:2",
        1,
        Nothing,
    ),
    ("remote append -f DIR/layer.tar", 2, Nothing),
    (
        "remote rebase --json R/made:2 --old-base R/app:1 --new-base R/app:2 -t R/made:3",
        0,
        Object(MADE),
    ),
    (
        "remote rebase R/app:1 --old-base R/made:2 --new-base R/app:2 -t R/made:3",
        1,
        Nothing,
    ),
    (
        "remote flatten --json R/made:2 -t R/made:4",
        0,
        Object(MADE),
    ),
    ("remote export R/app:1", 0, Something),
    ("remote export --platform linux/s390x R/index:1", 1, Nothing),
    // validate, diff, search
    (
        "remote validate --json R/app:1",
        0,
        Object(&[
            "name",
            "digest",
            "valid",
            "manifests",
            "blobs",
            "bytes",
            "foreign",
            "findings",
        ]),
    ),
    ("remote validate R/app:1", 0, Nothing),
    (
        "remote diff --json R/app:1 R/made:1",
        0,
        Object(&[
            "config", "layers", "packages", "files", "size", "from", "to", "same",
        ]),
    ),
    ("remote diff R/app:1 R/app:2", 0, Nothing),
    ("remote diff --exit-code R/app:1 R/made:1", 1, Something),
    (
        "search --json R/app",
        0,
        Lines(1, &["name", "description", "stars", "official"]),
    ),
    ("search R/nothing-like-it --json", 0, Nothing),
    ("search --format {{.Name}} R/app", 0, Text("R/app\n")),
    ("search --filter x=y R/app", 2, Nothing),
    ("search D/app", 3, Nothing),
    // images, inspect
    (
        "images --json app",
        0,
        Lines(
            0,
            &[
                "Repository",
                "Tag",
                "Digest",
                "ID",
                "CreatedAt",
                "CreatedSince",
                "Size",
                "SizeBytes",
            ],
        ),
    ),
    (
        "images --json R/app:1",
        0,
        Lines(
            1,
            &[
                "Repository",
                "Tag",
                "Digest",
                "ID",
                "CreatedAt",
                "CreatedSince",
                "Size",
                "SizeBytes",
            ],
        ),
    ),
    (
        "images --format {{.Repository}}:{{.Tag}} R/app:1",
        0,
        Text("R/app:1\n"),
    ),
    ("images --format {{.Tagg}} R/app:1", 2, Nothing),
    (
        "inspect --format {{index_.RepoTags_0}} R/app:1",
        0,
        Text("D/app:1\n"),
    ),
    ("inspect none", 1, Text("[]\n")),
    // login, logout
    (
        "login --json -u user -p secret L",
        0,
        Object(&["registry", "username"]),
    ),
    ("login --get-login L", 0, Text("user\n")),
    ("push -q L/app:1", 0, Text("L/app:1\n")),
    ("login -u user -p wrong L", 4, Nothing),
    ("login -u user -p secret D", 3, Nothing),
    ("login -u user L", 2, Nothing),
    ("login R/app:1 -u user -p secret", 2, Nothing),
    ("logout --json L", 0, Object(&["registry", "removed"])),
    ("login --get-login L", 1, Nothing),
    ("push L/app:1", 4, Nothing),
    ("push -q --creds user:secret L/app:1", 0, Text("L/app:1\n")),
    ("push --creds user:wrong L/app:1", 4, Nothing),
    ("push --creds user L/app:1", 2, Nothing),
    (
        "copy -q --dest-creds user:secret R/app:1 L/copied:1",
        0,
        Nothing,
    ),
    (
        "copy -q --src-creds user:secret L/copied:1 R/from:1",
        0,
        Nothing,
    ),
    ("copy --dest-creds user:secret L/app:1 R/from:2", 4, Nothing),
    (
        "login -u user -p secret --authfile DIR/auth.json L/app",
        0,
        Text("Login Succeeded\n"),
    ),
    (
        "remote digest --authfile DIR/auth.json L/app:1",
        0,
        Text("APP\n"),
    ),
    // What is known is known for that repository alone.
    (
        "remote digest --authfile DIR/auth.json L/copied:1",
        4,
        Nothing,
    ),
    ("remote digest --authfile DIR/nowhere L/app:1", 1, Nothing),
];

/// Commands that read an image, or a repository, which stands for `NAME`.
const READERS: &[&str] = &[
    "pull NAME",
    "copy NAME oci:DIR/read",
    "remote sync NAME oci:DIR/read",
    "remote digest NAME",
    "remote config NAME",
    "remote inspect NAME",
    "remote manifest get NAME",
    "remote referrers NAME",
    "remote attach --artifact-type text/x NAME DIR/file",
    "remote mutate --env A=2 NAME -t R/never:1",
    "remote append -b NAME -f DIR/layer.tar -t R/never:1",
    "remote rebase NAME --old-base R/app:1 --new-base R/app:2 -t R/never:1",
    "remote rebase R/app:1 --old-base NAME --new-base R/app:2 -t R/never:1",
    "remote flatten NAME -t R/never:1",
    "remote export NAME",
    "remote validate NAME",
    "remote diff NAME R/app:1",
    "remote index create R/never:1 NAME",
    "remote index append NAME R/app:1 -t R/never:1",
    "remote index annotate NAME -a a=b -t R/never:1",
    "run --rm --pull always NAME",
];

/// What is wrong with a name, the exit code of every command, and what is said.
const NAMES: &[(&str, i32, &str)] = &[
    ("D/app:1", 3, "cannot reach `127.0.0.1:1`"),
    ("L/app:1", 4, "longshore login"),
    ("R/none:1", 4, "404 Not Found"),
    ("R/app:none", 4, "404 Not Found"),
    ("R/app@NOTHING", 4, "404 Not Found"),
    ("R/App:1", 1, "upper-case letters"),
    ("R/app@sha256:abcd", 1, "`abcd` is not 64 lower-case"),
    ("R/app:", 1, "invalid image reference"),
    ("", 1, "invalid image reference"),
];

/// Two registries with an image, and a place to ask from.
struct World {
    place: Place,
    open: Server,
    locked: Server,
    digest: String,
    layer: String,
}

impl World {
    fn new() -> World {
        let place = Place::new();
        let open = Server::registry(&place.path("open"));
        let users = place.path("users");
        let line = place
            .run(["registry", "htpasswd", "-nbB", "user", "secret"])
            .ok();
        std::fs::write(&users, line).unwrap();
        let flags = ["--htpasswd", users.to_str().unwrap()];
        let locked = Server::registry_with(&place.path("locked"), &flags);
        let dockerfile = "FROM scratch\nCOPY f /f\nENV A=1\n";
        let context = place.context("ctx", &[("f", "1"), ("Dockerfile", dockerfile)]);
        place.ok(["build", "-q", "-t", "made"], [&context]);
        for name in [
            format!("{}/app:1", open.host),
            format!("{}/app:2", open.host),
            format!("{}/app:1", locked.host),
            format!("{DOWN}/app:1"),
        ] {
            place.run(["tag", "made", &name]).ok();
        }
        place.run(["rmi", "made"]).ok();
        let there = format!("{}/app:1", open.host);
        place.run(["push", "-q", &there]).ok();
        let manifest = place.run(["remote", "manifest", "get", &there]).ok();
        let read: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        std::fs::write(place.path("manifest"), manifest).unwrap();
        std::fs::write(place.path("file"), "some text").unwrap();
        let (folder, tar) = (place.path("ctx"), place.path("layer.tar"));
        let mut pack = Command::new("tar");
        pack.arg("-C").arg(folder).arg("-cf").arg(tar).arg("f");
        Ran::of(&mut pack).ok();
        World {
            digest: place.run(["remote", "digest", &there]).ok(),
            layer: read["layers"][0]["digest"].as_str().unwrap().to_owned(),
            place,
            open,
            locked,
        }
    }

    /// A text of a table with what its words stand for.
    fn filled(&self, text: &str) -> String {
        let folder = self.place.path("");
        let folder = folder.to_str().unwrap().trim_end_matches('/');
        let hosts = [
            ("R", self.open.host.as_str()),
            ("L", self.locked.host.as_str()),
            ("D", DOWN),
        ];
        let mut text = text
            .replace("DIR", folder)
            .replace("NOTHING", NOTHING)
            .replace("LAYER", &self.layer)
            .replace("APP", &self.digest);
        for (letter, host) in hosts {
            if text == letter {
                return host.to_owned();
            }
            // Only where a name begins.
            for before in ["", "<", " ", "\n"] {
                let from = format!("{before}{letter}/");
                if before.is_empty() {
                    if let Some(rest) = text.strip_prefix(&from) {
                        text = format!("{host}/{rest}");
                    }
                } else {
                    text = text.replace(&from, &format!("{before}{host}/"));
                }
            }
        }
        text
    }

    fn words(&self, line: &str) -> Vec<String> {
        // A template has spaces of its own, which a line of the table has as `_`.
        let word = |word: &str| match word.starts_with("{{") {
            true => word.replace('_', " "),
            false => self.filled(word),
        };
        line.split(' ').map(word).collect()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = self.place.command(self.words(line));
        // Nobody's credentials but a test's own.
        command.env("HOME", self.place.path("home"));
        command
    }

    fn run(&self, line: &str) -> Ran {
        Ran::of(&mut self.command(line))
    }
}

fn keys(value: &serde_json::Value) -> BTreeSet<&str> {
    let fields = value.as_object().expect("it is an object");
    fields.keys().map(String::as_str).collect()
}

/// What is wrong with what was printed, if anything is.
fn differs(world: &World, prints: &Prints, ran: &Ran) -> Option<String> {
    let text = ran.stdout.as_str();
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    let has = |text: &str, fields: &[&str]| {
        parsed(text).is_some_and(|value| keys(&value) == fields.iter().copied().collect())
    };
    let is_right = match prints {
        Nothing => text.is_empty(),
        Something => !text.is_empty(),
        Text(expected) => {
            let lines = expected.split_inclusive('\n');
            let expected: String = lines.map(|line| world.filled(line)).collect();
            text == expected
        }
        Object(fields) => text.matches('\n').count() == 1 && has(text, fields),
        Lines(count, fields) => {
            text.lines().count() == *count && text.lines().all(|line| has(line, fields))
        }
        Document(fields) => parsed(text).is_some_and(|value| {
            let keys = keys(&value);
            fields.iter().all(|field| keys.contains(field))
        }),
    };
    (!is_right).then(|| format!("printed something else: {ran}"))
}

#[test]
fn every_command_has_its_output_and_its_exit_code() {
    let world = World::new();
    let mut wrong = Vec::new();
    for (line, code, prints) in COMMANDS {
        let ran = world.run(line);
        if ran.code != Some(*code) {
            wrong.push(format!("`{line}`: expected {code}: {ran}"));
        } else if let Some(what) = differs(&world, prints, &ran) {
            wrong.push(format!("`{line}`: {what}"));
        } else if *code > 1 && !ran.stderr.contains("error: ") {
            wrong.push(format!("`{line}` tells no error: {ran}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn what_is_wrong_with_a_name_is_the_same_everywhere() {
    let world = World::new();
    let second = format!("{}/app:2", world.open.host);
    world.place.run(["push", "-q", &second]).ok();
    let mut wrong = Vec::new();
    for line in READERS {
        for (name, code, text) in NAMES {
            let words = line.replace("NAME", name);
            let ran = world.run(&words);
            // Docker's codes: longshore failed before the command started.
            let code = match line.starts_with("run ") {
                true => 125,
                false => *code,
            };
            if ran.code != Some(code) || !ran.stderr.contains(text) || !ran.stdout.is_empty() {
                wrong.push(format!("`{words}`: expected {code} and `{text}`: {ran}"));
            }
        }
    }
    let never = world.run("remote tags R/never");
    never.fails(4, "404 Not Found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn whoever_reads_may_go_away() {
    let world = World::new();
    for line in [
        "images",
        "images --json",
        "inspect R/app:1",
        "pull --json R/app:1",
        "push --json R/app:1",
        "remote ls R",
        "remote tags --json R/app",
        "remote tags --format {{.name}} R/app",
        "remote digest R/app:1",
        "remote config R/app:1",
        "remote inspect R/app:1",
        "remote manifest get R/app:1",
        "remote blob get R/app@LAYER",
        "remote export R/app:1",
        "remote referrers R/app:1",
        "remote diff R/app:1 R/app:1 --json",
        "remote validate --json R/app:1",
        "search R/app",
        "copy R/app:1 oci-archive:-",
        "copy R/app:1 docker-archive:-",
    ] {
        let mut command = world.command(line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let ran = Ran::from_output(line.to_owned(), &child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(0), "{ran}");
        assert!(!ran.stderr.contains("error"), "{ran}");
    }
}

#[test]
fn every_command_can_be_interrupted() {
    let world = World::new();
    let others = ["push NAME", "search NAME", "login -u u -p p HOST"];
    let readers = READERS.iter().filter(|line| !line.starts_with("run "));
    for line in readers.chain(&others) {
        // It takes connections, and says nothing on them: one for each, so that none is left over from the one before.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = silent.local_addr().unwrap().to_string();
        let name = format!("{host}/app:1");
        if line.starts_with("push ") {
            let there = world.filled("R/app:1");
            world.place.run(["tag", &there, &name]).ok();
        }
        let line = line.replace("NAME", &name).replace("HOST", &host);
        let mut command = world.command(&line);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // Now it waits for an answer; what it asked is not read.
        let (mut asked, _) = silent.accept().unwrap();
        assert!(asked.read(&mut [0; 16]).unwrap() > 0, "{line}");
        signal(&child, "INT");
        let output = child.wait_with_output().unwrap();
        let ran = Ran::from_output(line, &output);
        assert_eq!(ran.code, Some(130), "{ran}");
        assert!(stdout(&output).is_empty(), "{ran}");
    }
}

/// A repository without tags is empty, as much as one that never was is not there.
#[test]
fn empty_repositories_are_empty() {
    let world = World::new();
    let debian = Server::docker_registry(&world.place.path("debian"));
    let theirs = format!("{}/app", debian.host);
    let made = world.filled("R/app:1");
    world.run(&format!("copy {made} {theirs}:1")).ok();
    world.run("remote rm R/app:1").ok();
    world.run(&format!("remote rm {theirs}:1")).ok();
    for name in [world.filled("R/app"), theirs] {
        assert_eq!(world.run(&format!("remote tags {name}")).ok(), "", "{name}");
        let told = world.run(&format!("remote tags --json {name}")).ok();
        let value: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(value["tags"], serde_json::json!([]), "{name}");
        let pulled = world.run(&format!("pull --all-tags {name}"));
        assert_eq!(pulled.ok(), "");
        let sync = world.run(&format!("remote sync {name} R/other"));
        assert_eq!(sync.ok(), "");
        world
            .run(&format!("remote digest {name}:1"))
            .fails(4, "404 Not Found");
    }
}

/// A registry whose disk has lost a byte: whoever reads the layer says so, in the same way, and nothing comes of it.
#[test]
fn wrong_bytes_are_a_refusal_everywhere() {
    let world = World::new();
    let name = world.filled("R/app:1");
    world.run(&format!("copy {name} R/fine:1")).ok();
    // Another image, whose layer is the broken one.
    world
        .run("remote append -b R/app:1 -f DIR/layer.tar -t R/app:3")
        .ok();
    let manifest = world.run("remote manifest get R/app:3").ok();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    let hex = layer.strip_prefix("sha256:").unwrap();
    let path = world.place.path("open/docker/registry/v2/blobs/sha256");
    let path = path.join(&hex[..2]).join(hex).join("data");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for line in [
        "pull NAME",
        "copy NAME oci:DIR/broken:3",
        "copy NAME docker-archive:DIR/broken.tar",
        "copy NAME store:broken",
        "copy --compression zstd NAME oci:DIR/broken:3",
        "copy --dest-creds user:secret NAME L/app:3",
        "remote flatten NAME -t R/never:1",
        "remote export NAME DIR/broken.root",
        "remote blob get -o DIR/broken.blob R/app@BROKEN",
        "remote diff --type file NAME R/app:1",
        "remote sync --dest-creds user:secret NAME L/app",
    ] {
        let words = line.replace("NAME", "R/app:3").replace("BROKEN", layer);
        let ran = world.run(&words);
        assert_eq!(ran.code, Some(4), "{ran}");
        assert!(ran.stderr.contains("error: "), "{ran}");
        assert!(ran.stdout.is_empty(), "{ran}");
    }
    for file in ["broken.tar", "broken.root", "broken.blob"] {
        assert!(!world.place.path(file).exists(), "{file}");
    }
    world
        .run("remote digest --creds user:secret L/app:3")
        .fails(4, "404 Not Found");
    world.run("images -q broken").ok();
    // What is found when it is looked for is no error, but a finding.
    let found = world.run("remote validate R/app:3");
    assert_eq!(found.code, Some(1), "{found}");
    assert!(found.stdout.contains("another digest"), "{found}");
    // In a layout it is the layout that is wrong.
    let layout = world.place.path("own");
    world.run("copy R/app:1 oci:DIR/own:1").ok();
    let blob = layout.join("blobs/sha256").join(&world.layer[7..]);
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    world
        .run("copy oci:DIR/own:1 oci:DIR/never:1")
        .fails(1, "has digest");

    // Of many images, those that can be copied are, and the code is that of what could not.
    world.run("copy -q R/fine:1 R/app:4").ok();
    for (flag, tags) in [("--keep-going", "1\n4"), ("--dest-creds", "1")] {
        let to = format!("L/{}", flag.trim_start_matches('-'));
        let words = format!("remote sync --json {flag} --dest-creds user:secret R/app {to}");
        let words = words.replace("--dest-creds --dest-creds", "--dest-creds");
        let ran = world.run(&words);
        assert_eq!(ran.code, Some(4), "{ran}");
        let there = world.run(&format!("remote tags --creds user:secret {to}"));
        assert_eq!(there.ok(), tags, "{ran}");
    }
}

#[test]
fn templates_go_by_rows_and_have_headings() {
    let world = World::new();
    let table = |format: &str| {
        let ran = Ran::of(
            world
                .command("images --format")
                .arg(format)
                .arg(world.filled("R/app:1")),
        );
        ran.ok()
    };
    let id = world.run("images -q R/app:1").ok();
    assert_eq!(
        table("table {{.ID}}\t{{.Tag}}"),
        format!("IMAGE ID       TAG\n{id}   1")
    );
    assert_eq!(table("{{.ID}} {{upper .Tag}}"), format!("{id} 1"));
    let value: serde_json::Value = serde_json::from_str(&table("json")).unwrap();
    assert_eq!(value["ID"], id);
    // A password that is asked for comes from stdin where there is no terminal.
    let mut login = world.command("login -u user --password-stdin L");
    assert_eq!(given(&mut login, "secret\n").ok(), "Login Succeeded");
}
