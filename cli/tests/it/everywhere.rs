//! The binary in an image that it built itself, in plain containers: podman's and docker's with their default profiles, and our
//! own, whose confinement is docker's.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::docker::Docker;
use crate::examples;
use crate::interop::Podman;
use crate::support::{LONGSHORE, Place, Ran, busybox_rootfs, fetch, free_port, signal, workspace};

const IMAGE: &str = "longshore-in-a-container";

/// Builds an image with busybox and longshore, and returns the archive that podman loads.
fn image(place: &Place) -> PathBuf {
    let context = place.path("longshore");
    let files = context.join("files");
    let put = |from: &Path, to: &str| {
        let to = files.join(to.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    put(Path::new(LONGSHORE), "/usr/bin/longshore");
    // What it is linked with, if it is not static.
    let ldd = Command::new("ldd").arg(LONGSHORE).output().unwrap();
    for word in String::from_utf8_lossy(&ldd.stdout).split_whitespace() {
        if word.starts_with('/') {
            put(Path::new(word), word);
        }
    }
    std::fs::copy(busybox_rootfs(), context.join("rootfs.tar")).unwrap();
    let dockerfile = "FROM scratch\nADD rootfs.tar /\nCOPY files /\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    place.ok(["build", "-q", "-t", IMAGE], [&context]);
    let archive = place.path("image.tar");
    place.ok(["save", IMAGE, "-o"], [&archive]);
    archive
}

/// One way to run that image.
enum Where<'a> {
    /// Docker's default confinement: our own.
    Ours(&'a Place),
    /// podman's.
    Podman(&'a Podman),
    /// Docker's own, by a daemon.
    Docker(&'a Docker),
}

impl Where<'_> {
    /// Runs a shell line in a new container with the folder `shared` at `/shared`.
    fn sh(&self, flags: &[&str], shared: &Path, line: &str) -> Ran {
        let volume = format!("{}:/shared", shared.display());
        let command = ["sh", "-ec", line];
        match self {
            Where::Ours(place) => {
                let words = ["run", "--rm", "--network=host", "-v", &volume];
                place.run(words.iter().chain(flags).chain(&[IMAGE]).chain(&command))
            }
            Where::Podman(podman) => {
                let flags: Vec<&str> = ["-v", &volume].iter().chain(flags).copied().collect();
                podman.confined(&flags, IMAGE, &command)
            }
            Where::Docker(docker) => {
                let words = ["run", "--rm", "--network=none", "-v", &volume];
                docker.run(&[&words, flags, &[IMAGE], &command].concat())
            }
        }
    }
}

/// podman that has the image.
fn podman_with(place: &Place, archive: &Path) -> Podman {
    let podman = Podman::new(place);
    podman.ok("podman", &["load", "-i", archive.to_str().unwrap()]);
    podman
}

fn info(place: &Where<'_>, flags: &[&str], shared: &Path) -> Value {
    let text = place.sh(flags, shared, "longshore info --json").ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An ordinary user.
const USER: [&str; 4] = ["--user", "1000", "-e", "HOME=/tmp"];

#[test]
fn each_place_is_known() {
    let place = Place::new();
    let podman = podman_with(&place, &image(&place));
    let (ours, podman) = (Where::Ours(&place), Where::Podman(&podman));
    let shared = place.context("shared", &[]);
    for (place, flags, mode, privilege) in [
        (&ours, &[][..], "chroot", "root of a container"),
        (&ours, &USER, "refused", "an ordinary user"),
        (
            &podman,
            &[],
            "rootless-subordinate-ids",
            "root of a container",
        ),
        (
            &podman,
            &USER,
            "rootless-single-id",
            "rootless with a single id",
        ),
    ] {
        let found = info(place, flags, &shared);
        assert_eq!(found["mode"], mode, "{found}");
        assert_eq!(found["privilege"], privilege, "{found}");
        let lacks = found["lacks"].as_array().unwrap();
        for lack in lacks {
            assert_ne!(lack["better"].as_str().unwrap(), "", "{found}");
        }
        let says = |text: &str| {
            let mut whats = lacks.iter().map(|lack| lack["what"].as_str().unwrap());
            whats.any(|what| what.contains(text))
        };
        assert_eq!(says("isolation"), mode == "chroot", "{found}");
        assert_eq!(says("`RUN`, and containers"), mode == "refused", "{found}");
        let is_single = mode == "rootless-single-id";
        assert_eq!(says("`chown` does nothing"), is_single, "{found}");
        assert_eq!(says("overlayfs"), found["layers"] == "copied", "{found}");
    }
}

/// Whose times are all stated, so that an image of it is the same wherever it is built.
const DOCKERFILE: &str = r"FROM scratch AS base
ADD rootfs.tar /
COPY file /data/file
FROM base AS tools
RUN mkdir /t && echo tool > /t/tool && chmod 700 /t/tool && touch -d @5 /t/tool /t
FROM base
RUN mkdir -p /a/b /a/c && echo 1 > /a/b/one && ln /a/b/one /a/two && ln -s two /a/l && rm /data/file \
 && touch -h -d @5 /a/l && touch -d @6 /a/two /a/b /a/c /a /data
WORKDIR /some/where
COPY --from=tools /t /t
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/a/c --mount=from=tools,source=/t,target=/tools \
    --mount=target=/context,rw --mount=type=secret,id=s,mode=0400 <<END
set -e
grep -q hush /run/secrets/s
cat /tools/tool /context/file > /a/b/both
echo changed > /context/file
echo dropped > /a/c/dropped
echo kept > /cache/kept
rm -r /t && mkdir /t
sleep 1000 > /dev/null &
touch -d @7 /a/b/both /a/b /t
END
RUN --mount=type=cache,target=/cache cat /cache/kept && rm /a/two && touch -d @8 /a
";

/// The context of that Dockerfile, with what its builds are given besides.
fn shared(place: &Place) -> std::path::PathBuf {
    let files = [
        ("Dockerfile", DOCKERFILE),
        ("file", "1\n"),
        ("secret", "hush\n"),
    ];
    let shared = place.context("shared", &files);
    std::fs::copy(busybox_rootfs(), shared.join("rootfs.tar")).unwrap();
    shared
}

#[test]
fn one_dockerfile_gives_one_image() {
    let place = Place::new();
    let podman = podman_with(&place, &image(&place));
    let (ours, podman) = (Where::Ours(&place), Where::Podman(&podman));
    let shared = shared(&place);
    let secret = format!("id=s,src={}", shared.join("secret").display());
    let mut command = place.command(["build", "-q", "--secret", &secret]);
    command.arg(&shared).env("SOURCE_DATE_EPOCH", "1000000000");
    let here = Ran::of(&mut command).ok();
    assert!(here.starts_with("sha256:"), "{here}");
    let epoch = ["-e", "SOURCE_DATE_EPOCH=1000000000"];
    let user = [&epoch[..], &USER].concat();
    for (name, place, flags) in [
        ("ours", &ours, &epoch[..]),
        ("podman", &podman, &epoch),
        ("podman, with a single id", &podman, &user),
    ] {
        let line = "longshore build -q --secret id=s,src=/shared/secret /shared";
        let ran = place.sh(flags, &shared, line);
        assert_eq!(ran.ok(), here, "{name}: {ran}");
    }
}

/// Docker's default profile by docker itself: what is true of ours is true of it.
#[test]
fn under_dockers_own_default_profile() {
    let Some(docker) = Docker::start() else {
        return;
    };
    let place = Place::new();
    docker.load(&image(&place));
    let docker = Where::Docker(&docker);
    let shared = shared(&place);
    for (flags, mode, privilege) in [
        (&[][..], "chroot", "root of a container"),
        (&USER, "refused", "an ordinary user"),
    ] {
        let found = info(&docker, flags, &shared);
        assert_eq!(found["mode"], mode, "{found}");
        assert_eq!(found["privilege"], privilege, "{found}");
    }
    let secret = format!("id=s,src={}", shared.join("secret").display());
    let mut command = place.command(["build", "-q", "--secret", &secret]);
    command.arg(&shared).env("SOURCE_DATE_EPOCH", "1000000000");
    let here = Ran::of(&mut command).ok();
    let epoch = ["-e", "SOURCE_DATE_EPOCH=1000000000"];
    let line = "longshore build -q --secret id=s,src=/shared/secret /shared";
    assert_eq!(docker.sh(&epoch, &shared, line).ok(), here);
    // What would have namespaces says what it lacks.
    let ran = docker.sh(&USER, &shared, "longshore build -q /shared");
    assert_ne!(ran.code, Some(0), "{ran}");
    assert!(
        ran.stderr
            .contains("that needs namespaces, which are refused here"),
        "{ran}"
    );
}

/// Where nothing but another root directory is around a step, it still is not given what was not meant for it.
#[test]
fn steps_are_not_given_the_containers_environment() {
    let place = Place::new();
    image(&place);
    let shared = place.context("shared", &[]);
    std::fs::copy(busybox_rootfs(), shared.join("rootfs.tar")).unwrap();
    let text = "FROM scratch\nADD rootfs.tar /\nRUN env; cat /proc/*/environ; ls /proc/self/fd /dev/fd/ | sort -u\n";
    std::fs::write(
        shared.join("Dockerfile"),
        text.replace("cat /proc", "! cat /proc"),
    )
    .unwrap();
    let flags = ["-e", "TOKEN=hush hush", "-e", "MORE=hush too"];
    let line = "longshore build --progress plain /shared";
    let ran = Where::Ours(&place).sh(&flags, &shared, line);
    assert!(ran.stderr.contains("lacking here: isolation"), "{ran}");
    assert!(!ran.stderr.contains("hush"), "{ran}");
}

#[test]
fn what_cannot_be_had_is_an_error() {
    let place = Place::new();
    image(&place);
    let ours = Where::Ours(&place);
    let needs = "that needs namespaces, which are refused here";
    let shared = place.context("shared", &[]);
    std::fs::copy(busybox_rootfs(), shared.join("rootfs.tar")).unwrap();
    let write = |lines: &str| {
        let text = format!("FROM scratch\nADD rootfs.tar /\n{lines}\n");
        std::fs::write(shared.join("Dockerfile"), text).unwrap();
    };
    for (flags, lines, build, fails, notices) in [
        (&[][..], "RUN true\nRUN :", "", None, 1),
        (&[], "RUN --network=none true", "", Some(needs), 1),
        (&[], "RUN true", "--shm-size 1m", Some(needs), 0),
        (
            &[],
            "RUN true",
            "--memory 64m",
            Some("cannot limit memory"),
            1,
        ),
        (&USER, "RUN true", "", Some(needs), 0),
        (&USER, "COPY --chown=5:6 rootfs.tar /d/", "", None, 0),
    ] {
        write(lines);
        let line = format!("longshore build --progress plain -t it {build} /shared");
        let ran = ours.sh(flags, &shared, &line);
        match fails {
            Some(text) => assert!(ran.code != Some(0) && ran.stderr.contains(text), "{ran}"),
            None => drop(ran.ok()),
        }
        let told = ran.stderr.matches("lacking here: isolation").count();
        assert_eq!(told, notices, "{ran}");
    }
    write("");
    let line = "longshore build -q -t it /shared; longshore run it true";
    let ran = ours.sh(&[], &shared, line);
    assert_ne!(ran.code, Some(0), "{ran}");
    assert!(ran.stderr.contains("containers need overlayfs"), "{ran}");
}

/// Packages of Debian and of the Python package index, as root of a container that refuses namespaces.
#[test]
fn packages_are_installed_in_a_plain_container() {
    let base = examples::base();
    let place = Place::new();
    image(&place);
    let name = format!("{}/python-by-chroot:1", base.registry.host());
    let context = workspace().join("examples/python");
    let line = format!(
        "longshore build --progress plain --build-arg REGISTRY={} -t {name} --push /shared",
        base.registry.host()
    );
    Where::Ours(&place).sh(&[], &context, &line).ok();

    let port = free_port();
    let variable = format!("PORT={port}");
    place.run(["pull", &name]).ok();
    let mut container = place
        .command(["run", "--rm", "-e", &variable, &name])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let page = fetch(port, &mut container);
    assert!(page.contains("\"served_by\": \"bottle 0.12.25\""), "{page}");
    assert!(page.contains("\"uid\": 33"), "{page}");
    signal(&container, "TERM");
    assert_eq!(container.wait().unwrap().code(), Some(143));
}

/// npm of Debian's packages, and a package that it installs, with a script of that one's, and runs.
#[test]
fn npm_installs_in_a_plain_container() {
    let base = examples::base();
    let place = Place::new();
    image(&place);
    let host = base.registry.host();
    let dockerfile = format!(
        r"FROM {host}/debian:bookworm
RUN apt-get update && apt-get install -y --no-install-recommends nodejs npm
COPY dep /src/dep
RUN cd /src && npm pack ./dep
COPY app /src/app
WORKDIR /src/app
RUN npm install --offline --no-audit --no-fund
RUN npx dep > /found && cat node_modules/dep/made >> /found
FROM scratch
COPY --from=0 /found /
"
    );
    let dep = r#"{ "name": "dep", "version": "1.2.3", "bin": { "dep": "cli.js" },
  "scripts": { "postinstall": "node -e \"require('fs').writeFileSync('made', 'by its script')\"" } }"#;
    let files = [
        ("Dockerfile", dockerfile.as_str()),
        ("dep/package.json", dep),
        (
            "dep/cli.js",
            "#!/usr/bin/env node\nconsole.log('installed')\n",
        ),
        (
            "app/package.json",
            r#"{ "name": "app", "dependencies": { "dep": "file:../dep-1.2.3.tgz" } }"#,
        ),
    ];
    let shared = place.context("shared", &files);
    let line = "longshore build --progress plain -o type=local,dest=/shared/out /shared";
    Where::Ours(&place).sh(&[], &shared, line).ok();
    let found = std::fs::read_to_string(shared.join("out/found")).unwrap();
    assert_eq!(found, "installed\nby its script");
}

/// A package with a group and a setgid program of its own, where there is one id.
#[test]
fn packages_are_installed_with_a_single_id() {
    let base = examples::base();
    let place = Place::new();
    let podman = podman_with(&place, &image(&place));
    let name = format!("{}/cron-by-one:1", base.registry.host());
    let dockerfile = format!(
        "FROM {}/debian:bookworm\nRUN apt-get update && apt-get install -y --no-install-recommends cron\n",
        base.registry.host()
    );
    let shared = place.context("shared", &[("Dockerfile", &dockerfile)]);
    let line = format!("longshore build --progress plain -t {name} --push /shared");
    let ran = Where::Podman(&podman).sh(&USER, &shared, &line);
    ran.ok();
    let told = ran.stderr.matches("lacking here: other owners").count();
    assert_eq!(told, 1, "{ran}");
    let look =
        "stat -c '%u:%g %a' /usr/bin/crontab; grep -c crontab: /etc/group; ls /etc/apt/apt.conf.d";
    place.run(["pull", &name]).ok();
    let seen = place.sh(&name, look);
    assert!(seen.starts_with("0:0 2755\n1\n"), "{seen}");
    assert!(!seen.contains("longshore"), "{seen}");
}
