//! Contexts on this machine: folders, standard input, images, layouts, stages; which Dockerfile, which ignore file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Built, Place, Ran, tool};

/// Builds with these arguments; returns what the result has: paths below its root, and files' contents.
#[track_caller]
pub fn files(place: &Place, arguments: &[&str]) -> BTreeMap<String, String> {
    files_from(place, arguments, b"")
}

/// The same, with bytes on standard input.
#[track_caller]
pub fn files_from(place: &Place, arguments: &[&str], stdin: &[u8]) -> BTreeMap<String, String> {
    let out = place.path("out");
    if out.exists() {
        std::fs::remove_dir_all(&out).unwrap();
    }
    let mut output = OsString::from("type=local,dest=");
    output.push(&out);
    let mut command = place.command(["build", "-q", "-o"]);
    command.arg(output).args(arguments);
    with_input(command, stdin).ok();
    let mut found = BTreeMap::new();
    collect(&out, "", &mut found);
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else if kind.is_file() {
            found.insert(
                name,
                std::fs::read_to_string(entry.path()).unwrap_or_default(),
            );
        } else {
            found.insert(name, "special".to_owned());
        }
    }
}

/// Runs a command with bytes on standard input.
fn with_input(mut command: Command, stdin: &[u8]) -> Ran {
    let text = format!("{command:?}");
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    // Who refuses before it has read everything is no failure of the test.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    Ran::from_output(text, &child.wait_with_output().unwrap())
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    pairs.iter().map(owned).collect()
}

/// The output of `tar` with these arguments.
fn tar(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

const COPY_ALL: (&str, &str) = ("Dockerfile", "FROM scratch\nCOPY src /\n");

#[test]
fn archives_on_standard_input() {
    let place = Place::new();
    let context = place.context("context", &[COPY_ALL, ("src/a", "A"), ("src/d/b", "B")]);
    let context = context.to_str().unwrap();
    let expect = map(&[("a", "A"), ("d/b", "B")]);
    for packing in ["--no-auto-compress", "--gzip", "--bzip2", "--xz", "--zstd"] {
        let archive = tar(&["-C", context, "-c", packing, "."]);
        assert_eq!(files_from(&place, &["-"], &archive), expect, "{packing}");
    }
    let owned = tar(&["-C", context, "-c", "--owner=5", "--group=6", "."]);
    files_from(&place, &["-"], &owned);
    let file = std::fs::metadata(place.path("out/a")).unwrap();
    assert_eq!((file.uid(), file.gid()), (5, 6));
    let other = place.context(
        "other",
        &[
            ("x/Containerfile", "FROM scratch\nCOPY x/f /\n"),
            ("x/f", "F"),
        ],
    );
    let archive = tar(&["-C", other.to_str().unwrap(), "-c", "."]);
    let found = files_from(&place, &["-f", "x/Containerfile", "-"], &archive);
    assert_eq!(found, map(&[("f", "F")]));
    let refused = with_input(place.command(["build", "-"]), &archive);
    refused.fails(
        1,
        "cannot find a Dockerfile in standard input: there is no `Dockerfile`, `Containerfile`",
    );
    let whole = tar(&["-C", context, "-c", "--gzip", "."]);
    let refused = with_input(place.command(["build", "-"]), &whole[..whole.len() / 2]);
    refused.fails(1, "cannot unpack the build context from standard input");
}

#[test]
fn hostile_archives_stay_inside() {
    let place = Place::new();
    let outside = place.context("outside", &[("kept", "kept")]);
    let context = place.context("context", &[COPY_ALL, ("evil", "evil"), ("src/a", "A")]);
    let context = context.to_str().unwrap();
    let link = place.path("context/link");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let attack = |arguments: &[&str]| {
        let archive = tar(&[&["-C", context, "-cP"], arguments].concat());
        with_input(place.command(["build", "-"]), &archive)
    };
    // A name that climbs out is refused; one through a link ends up inside, or is refused.
    let climbing = attack(&[
        "Dockerfile",
        "src",
        "--transform",
        "s,^evil$,../../evil,",
        "evil",
    ]);
    climbing.fails(1, "cannot unpack the build context");
    attack(&[
        "Dockerfile",
        "src",
        "link",
        "--transform",
        "s,^evil$,link/evil,",
        "evil",
    ]);
    attack(&[
        "Dockerfile",
        "src",
        "--transform",
        "s,^evil$,/evil-of-longshore,",
        "evil",
    ]);
    assert!(!Path::new("/evil-of-longshore").exists());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert!(!place.path("evil").exists() && !place.path("store/evil").exists());
}

#[test]
fn a_dockerfile_on_standard_input() {
    let place = Place::new();
    let text = b"FROM scratch\nWORKDIR /w\n";
    with_input(place.command(["build", "-q", "-"]), text).ok();
    let copying = b"FROM scratch\nCOPY a /\n";
    let refused = with_input(place.command(["build", "-"]), copying);
    refused.fails(1, "it came without one");
    let context = place.context("context", &[("a", "A"), (".dockerignore", "b")]);
    let context = context.to_str().unwrap();
    let found = files_from(&place, &["-f", "-", context], copying);
    assert_eq!(found, map(&[("a", "A")]));
    let refused = with_input(place.command(["build", "-f", "-", "-"]), copying);
    refused.fails(2, "cannot both be read from standard input");
    let refused = with_input(place.command(["build", "-f", "x", "-"]), text);
    refused.fails(1, "turned out to be a Dockerfile");
}

#[test]
fn dockerfiles_and_their_ignore_files() {
    let place = Place::new();
    let all = "FROM scratch\nCOPY . /\n";
    let context = place.context(
        "context",
        &[
            ("a", "A"),
            ("b", "B"),
            ("c", "C"),
            ("Containerfile", "FROM scratch\nCOPY a b c /\n"),
        ],
    );
    let context = context.to_str().unwrap();
    assert_eq!(
        files(&place, &[context]),
        map(&[("a", "A"), ("b", "B"), ("c", "C")])
    );
    let elsewhere = place.context("elsewhere", &[("df", all), ("df.dockerignore", "*\n!b")]);
    let df = elsewhere.join("df");
    assert_eq!(
        files(&place, &["-f", df.to_str().unwrap(), context]),
        map(&[("b", "B")])
    );
    place.context(
        "context",
        &[(".containerignore", "*\n!a"), (".dockerignore", "*\n!c")],
    );
    std::fs::remove_file(elsewhere.join("df.dockerignore")).unwrap();
    assert_eq!(
        files(&place, &["-f", df.to_str().unwrap(), context]),
        map(&[("a", "A")])
    );
    let own = place.context("ignore", &[("file", "*\n!c")]).join("file");
    let own = own.to_str().unwrap();
    let found = files(
        &place,
        &["-f", df.to_str().unwrap(), "--ignorefile", own, context],
    );
    assert_eq!(found, map(&[("c", "C")]));
    // A Dockerfile may be a link, and its name counts from the context too.
    place.context("context", &[("sub/real", "FROM scratch\nCOPY a /linked\n")]);
    std::os::unix::fs::symlink("sub/real", place.path("context/Dockerfile")).unwrap();
    assert_eq!(files(&place, &[context]), map(&[("linked", "A")]));
    assert_eq!(
        files(&place, &["-f", "sub/real", context]),
        map(&[("linked", "A")])
    );
    let empty = place.context("empty", &[("Dokerfile", all)]);
    let refused = place.run(["build", empty.to_str().unwrap()]);
    refused.fails(1, "did you mean `Dokerfile`?");
}

#[test]
fn named_folders() {
    let place = Place::new();
    let text = "FROM nowhere AS stage\nRUN never\n\
        FROM base\nCOPY --from=lib l /from-lib\nCOPY --from=stage s /from-stage\n";
    let context = place.context("context", &[("Dockerfile", text)]);
    let context = context.to_str().unwrap();
    let base = place.context(
        "base",
        &[
            ("b", "B"),
            ("hidden", "H"),
            (".dockerignore", "hidden\n.dockerignore"),
        ],
    );
    let lib = place.context("lib", &[("l", "L")]);
    let stage = place.context("stage", &[("s", "S")]);
    let named = |name: &str, path: &Path| format!("{name}={}", path.display());
    let arguments = [
        named("base", &base),
        named("docker.io/library/lib:latest", &lib),
        named("stage", &stage),
        named("unused", Path::new("/nonexistent/folder")),
    ];
    let mut words = vec![context];
    for argument in &arguments {
        words.extend(["--build-context", argument]);
    }
    let expect = map(&[("b", "B"), ("from-lib", "L"), ("from-stage", "S")]);
    assert_eq!(files(&place, &words), expect);
    // What is not read does not count.
    std::fs::write(stage.join("other"), "new").unwrap();
    std::fs::write(base.join("hidden"), "changed").unwrap();
    let ran = place.run([&["build", "--progress", "plain"], &words[..]].concat());
    ran.ok();
    assert!(!ran.stderr.contains("DONE"), "{ran}");
    let missing = place.run([
        "build",
        context,
        "--build-context",
        "base=/nonexistent/folder",
        "--build-context",
        "stage=/nonexistent/x",
        "--build-context",
        "lib=/nonexistent/y",
    ]);
    missing.fails(1, "cannot use `/nonexistent/");
    for (wrong, why) in [
        ("scratch=x", "`scratch` cannot stand for anything else"),
        ("context=x", "`context` cannot stand for anything else"),
        ("x", "expected NAME=SOURCE"),
        ("a b=x", "its name is none"),
        ("a=ftp://x", "unknown kind of build context `ftp://`"),
        ("a=https://h/x.git?ref=a#b", "invalid git URL"),
    ] {
        place
            .run(["build", context, "--build-context", wrong])
            .fails(2, why);
    }
}

#[test]
fn images_layouts_and_stages_as_contexts() {
    let place = Place::new();
    let tools = place.context(
        "tools",
        &[
            (
                "Dockerfile",
                "FROM scratch\nCOPY t /t\nENV TOOL=1\nWORKDIR /w\n",
            ),
            ("t", "T"),
        ],
    );
    place.ok(["build", "-q", "-t", "tools:v1"], [&tools]);
    let layout = place.path("layout");
    let archive = place.path("tools.tar");
    let dest = format!("type=oci,dest={}", archive.display());
    place.ok(["build", "-q", "-t", "tools:v1", "-o", &dest], [&tools]);
    tool(
        "skopeo",
        &[
            "copy",
            "-q",
            &format!("oci-archive:{}", archive.display()),
            &format!("oci:{}:v1", layout.display()),
        ],
    );
    let context = place.context(
        "context",
        &[(
            "Dockerfile",
            "FROM scratch AS made\nCOPY m /m\nFROM any\nARG TOOL\nCOPY --from=other . /$TOOL/\n",
        ), ("m", "M")],
    );
    let context = context.to_str().unwrap();
    let layout = format!("oci-layout://{}", layout.display());
    let check = |any: &str, other: &str, expect: &[(&str, &str)]| {
        let words = [
            "--build-context",
            &format!("any={any}"),
            "--build-context",
            &format!("other={other}"),
            context,
        ];
        assert_eq!(files(&place, &words), map(expect), "{any} {other}");
    };
    // The configuration of an image comes with it: `$TOOL` is set by its ENV.
    check(
        "docker-image://tools:v1",
        "target:made",
        &[("t", "T"), ("1/m", "M")],
    );
    check(&layout, "target:made", &[("t", "T"), ("1/m", "M")]);
    check(
        &format!("{layout}:v1"),
        "docker-image://tools:v1",
        &[("t", "T"), ("1/t", "T")],
    );
    check("docker-image://scratch", &layout, &[("t", "T")]);
    // A new store knows nothing of the image yet.
    let fresh = Place::new();
    let words = [
        "build",
        "-q",
        "-t",
        "x",
        "--build-context",
        &format!("any={layout}"),
        "--build-context",
        "other=target:made",
        context,
    ];
    fresh.run(words).ok();
    let inspected = fresh.run(["inspect", "x"]).ok();
    assert!(
        inspected.contains("TOOL=1") && inspected.contains("/w"),
        "{inspected}"
    );
    let refused = place.run([
        "build",
        "--build-context",
        &format!("any={layout}:v2"),
        context,
    ]);
    refused.fails(1, "has no image `:v2`: it has `:v1`");
    let refused = place.run([
        "build",
        "--build-context",
        "any=oci-layout:///nonexistent",
        context,
    ]);
    refused.fails(3, "/nonexistent");
}

#[test]
fn mounts_of_named_contexts() {
    let place = Place::with_busybox();
    let text = "FROM busybox\nRUN --mount=from=lib,target=/l cp /l/f /copied && ! ls /l/hidden\n\
                RUN --mount=from=tools,target=/t cp /t/bin/busybox /from-image\n";
    let context = place.context("context", &[("Dockerfile", text)]);
    let lib = place.context(
        "lib",
        &[("f", "F"), ("hidden", "H"), (".dockerignore", "hidden")],
    );
    let lib = format!("lib={}", lib.display());
    let words = [
        "build",
        "--progress",
        "plain",
        "-t",
        "x",
        "--build-context",
        &lib,
        "--build-context",
        "tools=docker-image://busybox",
        context.to_str().unwrap(),
    ];
    place.run(words).ok();
    assert_eq!(place.sh("x", "cat /copied && test -f /from-image"), "F");
    std::fs::write(place.path("lib/hidden"), "other").unwrap();
    let again = place.run(words);
    again.ok();
    assert!(Built::of(&again).runs().is_empty(), "{again}");
    std::fs::write(place.path("lib/f"), "G").unwrap();
    let again = place.run(words);
    again.ok();
    assert_eq!(Built::of(&again).runs().len(), 2, "{again}");
}
