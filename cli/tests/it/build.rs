//! What instructions, flags and outputs of `build` give.

use crate::support::{Place, Ran, busybox_rootfs, tool};

#[test]
fn every_instruction_does_its_part() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[
            ("a.txt", "a"),
            ("b.txt", "b"),
            ("secret.env", "x"),
            ("dir/inner/deep", "deep"),
            (".dockerignore", "*.env\nDockerfile\n"),
            (
                "Dockerfile",
                r#"ARG BASE=busybox
FROM ${BASE} AS first
RUN echo from-first > /first
FROM $BASE
ARG WHO=nobody
ENV GREETING="hello $WHO" \
    SECOND=two
LABEL org.example.key="a value" other=1
WORKDIR /home/sub
COPY *.txt ./
COPY --chown=daemon:root --chmod=640 a.txt /owned
COPY dir /copied/
COPY --from=first /first .
ADD made.tar /unpacked/
COPY . /all
RUN test "$GREETING" = "hello you" && id -u > uid
SHELL ["/bin/sh", "-e", "-c"]
RUN ["/bin/sh", "-c", "echo $0 exec-form > exec"]
RUN <<EOT
echo one > heredoc
echo two >> heredoc
EOT
EXPOSE 80 53/udp
VOLUME /data
STOPSIGNAL SIGINT
USER daemon
RUN id -u > /tmp/user
ENTRYPOINT ["echo"]
CMD ["it", "works"]
"#,
            ),
        ],
    );
    let tree = place.context("tree", &[("in-archive", "tar")]);
    tool(
        "tar",
        &[
            "-cf",
            context.join("made.tar").to_str().unwrap(),
            "-C",
            tree.to_str().unwrap(),
            ".",
        ],
    );
    place.ok(
        ["build", "-t", "full", "--build-arg", "WHO=you"],
        [&context],
    );

    assert_eq!(place.run(["run", "--rm", "full"]).ok(), "it works");
    assert_eq!(place.run(["run", "--rm", "full", "other"]).ok(), "other");
    let found = place.sh(
        "full",
        "pwd; cat a.txt b.txt first; cat heredoc exec uid /tmp/user; stat -c '%U %G %a' /owned; \
         find /copied /unpacked /all -type f | sort; echo $GREETING; id -u",
    );
    expect_test::expect![[r#"
        /home/sub
        abfrom-first
        one
        two
        /bin/sh exec-form
        0
        1
        daemon root 640
        /all/.dockerignore
        /all/a.txt
        /all/b.txt
        /all/dir/inner/deep
        /all/made.tar
        /copied/inner/deep
        /unpacked/in-archive
        hello you
        1"#]]
    .assert_eq(&found);

    let config: serde_json::Value =
        serde_json::from_str(&place.run(["inspect", "full"]).ok()).unwrap();
    let config = &config[0]["Config"];
    assert_eq!(config["User"], "daemon");
    assert_eq!(config["WorkingDir"], "/home/sub");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Labels"]["org.example.key"], "a value");
    assert_eq!(config["Shell"][1], "-e");
    let keys =
        |name: &str| -> Vec<String> { config[name].as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys("ExposedPorts"), ["53/udp", "80/tcp"]);
    assert_eq!(keys("Volumes"), ["/data"]);
    let steps = place.run(["history", "--no-trunc", "full"]).ok();
    assert!(steps.contains("STOPSIGNAL"), "{steps}");
    assert!(
        steps.lines().nth(1).unwrap().contains("CMD"),
        "newest first: {steps}"
    );
}

#[test]
fn stages_that_nothing_needs_are_not_built() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox AS unused\nRUN exit 1\nFROM busybox AS used\nRUN echo x > /x\nFROM scratch\nCOPY --from=used /x /x\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let built = place.build("two", &context);
    assert_eq!(built.runs(), ["echo x > /x"]);
    let failed = place.words(["build", "--target", "unused"], [&context]);
    failed.fails(1, "exit code: 1");
    let built = place.words(
        [
            "build",
            "--progress",
            "plain",
            "--target",
            "used",
            "-t",
            "used",
        ],
        [&context],
    );
    built.ok();
    assert_eq!(place.sh("used", "cat /x"), "x");
}

#[test]
fn a_dockerfile_may_be_elsewhere_or_come_by_stdin() {
    let place = Place::with_busybox();
    let context = place.context("ctx", &[("file", "content")]);
    let elsewhere = place.context(
        "other",
        &[("Some.Dockerfile", "FROM busybox\nCOPY file /f\n")],
    );
    place.ok(
        ["build", "-t", "a", "-f"],
        [&elsewhere.join("Some.Dockerfile"), &context],
    );
    assert_eq!(place.sh("a", "cat /f"), "content");
    let mut command = place.command(["build", "-t", "b", "-f", "-"]);
    command.arg(&context);
    command.stdin(std::fs::File::open(elsewhere.join("Some.Dockerfile")).unwrap());
    Ran::of(&mut command).ok();
    assert_eq!(place.sh("b", "cat /f"), "content");
}

#[test]
fn hosts_and_resolv_conf_are_there_and_stay_out_of_the_layer() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nRUN test -s /etc/resolv.conf && grep -q localhost /etc/hosts && touch /done\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    place.build("net", &context);
    let out = place.path("out");
    place.ok(
        ["build", "-o", &format!("type=local,dest={}", out.display())],
        [&context],
    );
    assert!(out.join("done").exists());
    assert!(!out.join("etc/resolv.conf").exists());
    assert!(!out.join("etc/hosts").exists());
}

#[test]
fn results_go_where_they_are_sent() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[
            ("f", "1"),
            ("Dockerfile", "FROM busybox\nCOPY f /f\nRUN ln /f /g\n"),
        ],
    );
    let dest = |name: &str| place.path(name).to_str().unwrap().to_owned();

    place.ok(
        ["build", "-o", &format!("type=tar,dest={}", dest("r.tar"))],
        [&context],
    );
    let listing = tool("tar", &["-tf", &dest("r.tar")]);
    assert!(
        listing
            .lines()
            .any(|line| line.trim_start_matches("./") == "f"),
        "{listing}"
    );

    place.ok(["build", "-o", &dest("folder")], [&context]);
    assert_eq!(
        std::fs::read_to_string(place.path("folder/g")).unwrap(),
        "1"
    );

    place.ok(
        [
            "build",
            "-t",
            "x:1",
            "-o",
            &format!("type=oci,dest={}", dest("oci.tar")),
        ],
        [&context],
    );
    tool("mkdir", &[&dest("oci")]);
    tool("tar", &["-xf", &dest("oci.tar"), "-C", &dest("oci")]);
    assert!(place.path("oci/oci-layout").exists());

    place.ok(
        [
            "build",
            "-t",
            "x:2",
            "-o",
            &format!("type=docker,dest={}", dest("docker.tar")),
        ],
        [&context],
    );
    let listing = tool("tar", &["-tf", &dest("docker.tar")]);
    assert!(
        listing.lines().any(|line| line == "manifest.json"),
        "{listing}"
    );

    let ids = place.path("id");
    let printed = place.ok(["build", "-q", "-t", "x:3", "--iidfile"], [&ids, &context]);
    assert_eq!(std::fs::read_to_string(&ids).unwrap(), printed);
    assert!(printed.starts_with("sha256:"), "{printed}");
    let listed = place.run(["images", "-q", "--no-trunc", "x:3"]).ok();
    assert_eq!(listed, printed);
}

#[test]
fn the_same_input_gives_the_same_image() {
    let inputs = Place::new();
    let dockerfile =
        "FROM scratch\nADD rootfs.tar /\nCOPY f /f\nCOPY dir /dir\nENV A=b\nCMD [\"sh\"]\n";
    let files = [("f", "1"), ("dir/g", "2"), ("Dockerfile", dockerfile)];
    let context = inputs.context("ctx", &files);
    std::fs::copy(busybox_rootfs(), context.join("rootfs.tar")).unwrap();
    let build = || {
        let place = Place::new();
        let mut command = place.command(["build", "-q", "-t", "same"]);
        command.arg(&context).env("SOURCE_DATE_EPOCH", "1700000000");
        let id = Ran::of(&mut command).ok();
        let archive = place.path("a.tar");
        place.ok(["save", "--format", "oci", "same", "-o"], [&archive]);
        (id, std::fs::read(archive).unwrap())
    };
    let (first, second) = (build(), build());
    assert_eq!(first.0, second.0, "the configurations differ");
    assert!(first.1 == second.1, "the archives differ");
}

#[test]
fn layers_keep_what_is_special() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN mkdir /d && echo 1 > /d/kept && echo 2 > /d/gone && mkdir /opaque && touch /opaque/old
RUN rm /d/gone && rm -r /opaque && mkdir /opaque && touch /opaque/new && ln /d/kept /d/link && mkfifo /fifo && mknod /null c 1 3 && ln -s /d/kept /sym && chown 3000000:3000001 /d/kept && chmod 4755 /bin/busybox
";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    // Only root of the host may make device nodes.
    place.ok(
        ["build", "-q", "--userns=host", "-t", "special"],
        [&context],
    );
    let archive = place.path("s.tar");
    place.ok(
        ["save", "-o", archive.to_str().unwrap(), "special"],
        [""; 0],
    );
    place.run(["rmi", "special"]).ok();
    // Read back from its tars by a store that never saw it.
    let other = Place::new();
    other.ok(["load", "-i"], [&archive]);
    let found = other.sh(
        "special",
        "ls /d /opaque; stat -c '%h %u:%g' /d/link; stat -c '%F %t,%T' /null; stat -c %F /fifo; readlink /sym; stat -c %a /bin/busybox",
    );
    expect_test::expect![[r#"
        /d:
        kept
        link

        /opaque:
        new
        2 3000000:3000001
        character special file 1,3
        fifo
        /d/kept
        4755"#]]
    .assert_eq(&found);
}

#[test]
fn the_store_may_be_named_from_the_working_directory() {
    let place = Place::with_busybox();
    place.context(
        "ctx",
        &[("Dockerfile", "FROM busybox\nRUN echo here > /f\n")],
    );
    let built = Ran::of(
        place
            .command(["--root", "store", "build", "-q", "-t", "app", "ctx"])
            .current_dir(place.path("")),
    );
    built.ok();
    assert_eq!(place.sh("app", "cat /f"), "here");
}
