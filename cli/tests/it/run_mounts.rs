//! `RUN` and what surrounds it: mounts, secrets, agents, networks, limits, here-documents.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use crate::support::{Built, Place, Ran, tool};

/// Builds a Dockerfile in a context of its own, with further flags; the image is `img`.
fn build(place: &Place, dockerfile: &str, flags: &[&str]) -> Ran {
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let mut command = place.command(["build", "--progress", "plain", "-t", "img"]);
    command.args(flags).arg(context);
    Ran::of(&mut command)
}

/// Lines that steps wrote, without numbers and times.
pub fn output(ran: &Ran) -> Vec<&str> {
    let lines = ran.stderr.lines().filter_map(|line| {
        let (_, rest) = line.strip_prefix('#')?.split_once(' ')?;
        let (time, text) = rest.split_once(' ')?;
        time.parse::<f64>().ok().map(|_| text)
    });
    lines.collect()
}

fn layers(place: &Place, image: &str) -> serde_json::Value {
    let text = place.run(["inspect", image]).ok();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    all[0]["RootFS"]["Layers"].clone()
}

#[test]
fn files_of_stages_images_and_contexts_are_mounted() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[
            ("seen", "context\n"),
            ("hidden.log", "x"),
            ("dir/file", "below\n"),
            (".dockerignore", "*.log\nDockerfile\n"),
            (
                "Dockerfile",
                "FROM busybox AS tools
RUN mkdir -p /out/deep && echo made > /out/deep/tool && ln -s /out/deep /link && chmod 750 /out
FROM busybox
WORKDIR /src
RUN --mount=from=tools,source=/out,target=/a \\
    --mount=from=tools,source=/link/tool,target=/b \\
    --mount=from=busybox,source=/etc,target=etc \\
    --mount=target=/c --mount=source=dir/file,target=/d/new/file \\
    cat /a/deep/tool /b /c/dir/file /d/new/file && test -f etc/passwd && stat -c %a /a && ls -A /c
RUN --mount=target=. cat seen
RUN --mount=target=/c touch /c/x 2>&1; echo $?
RUN --mount=target=/c,rw --mount=from=tools,source=/out,target=/a,rw \\
    echo new > /c/seen && rm -r /a/deep && echo kept > /a/kept && cat /c/seen
RUN --mount=target=/c --mount=from=tools,source=/out,target=/a cat /c/seen && ls /a
",
            ),
        ],
    );
    let ran = place.words(["build", "--progress", "plain", "-t", "img"], [&context]);
    ran.ok();
    let expected = [
        "made",
        "made",
        "below",
        "below",
        "750",
        ".dockerignore",
        "dir",
        "seen",
        "context",
        "touch: /c/x: Read-only file system",
        "1",
        "new",
        "context",
        "deep",
    ];
    assert_eq!(output(&ran), expected, "{ran}");
    // Only the working directory and nothing else came of it.
    assert_eq!(layers(&place, "img").as_array().unwrap().len(), 2);
}

#[test]
fn what_a_mount_shows_decides_whether_a_step_runs() {
    let place = Place::with_busybox();
    let dockerfile = |note: &str| {
        format!(
            "FROM busybox AS tools
RUN echo {note} > /note && mkdir /out && echo tool > /out/tool
FROM busybox
RUN --mount=from=tools,source=/out,target=/t,rw cat /t/tool > /got && rm /t/tool
RUN --mount=source=one,target=/one --mount=source=one,target=/again cat /one /again > /ones
RUN --mount=source=dir,target=/dir cat /dir/f > /dirs
"
        )
    };
    let context = place.context(
        "ctx",
        &[
            ("one", "1"),
            ("two", "2"),
            ("dir/f", "3"),
            ("Dockerfile", &dockerfile("a")),
        ],
    );
    assert_eq!(place.build("img", &context).runs().len(), 4);
    // Built again to the same files, in what is seen; and files with other times.
    std::fs::write(context.join("Dockerfile"), dockerfile("b")).unwrap();
    let file = std::fs::File::options()
        .write(true)
        .open(context.join("one"));
    file.unwrap()
        .set_modified(SystemTime::now() - Duration::from_secs(86_400))
        .unwrap();
    std::fs::write(context.join("two"), "changed").unwrap();
    let built = place.build("img", &context);
    assert_eq!(built.runs().len(), 1, "{built:?}");
    std::fs::write(context.join("one"), "changed").unwrap();
    let built = place.build("img", &context);
    let ran = built.runs();
    // The last one stands on another base now.
    assert!(ran.len() == 2 && ran[0].ends_with("> /ones"), "{built:?}");
    std::fs::write(context.join("dir/new"), "").unwrap();
    let built = place.build("img", &context);
    let ran = built.runs();
    assert!(ran.len() == 1 && ran[0].ends_with("> /dirs"), "{built:?}");
    assert!(place.build("img", &context).ran.is_empty());
    assert_eq!(
        place.sh("img", "cat /got /ones /dirs"),
        "tool\nchangedchanged3"
    );
}

#[test]
fn sources_that_are_missing_or_lead_out_are_errors() {
    let place = Place::with_busybox();
    let check = |mount: &str, expected: &str| {
        let dockerfile = format!(
            "FROM busybox AS tools\nRUN ln -s /etc/passwd /link\nFROM busybox\nRUN --mount={mount} cat /m\n"
        );
        build(&place, &dockerfile, &[]).fails(1, expected);
    };
    check("source=Dockerfil,target=/m", "did you mean `/Dockerfile`");
    check(
        "from=tools,source=/nowhere,target=/m",
        "`/nowhere`: not found",
    );
    // Of the stage, not of the host: it is cut off there, as `..` is.
    let dockerfile = "FROM busybox AS tools
RUN ln -s /etc/passwd /link && ln -s ../../../../etc/group /up
FROM busybox
RUN --mount=from=tools,source=/link,target=/m --mount=from=tools,source=/up,target=/n cat /m /n
RUN --mount=from=tools,source=../../etc/passwd,target=/m head -n1 /m
";
    let ran = build(&place, dockerfile, &[]);
    ran.ok();
    assert_eq!(output(&ran)[0], "root:x:0:0:root:/root:/bin/sh");
    // A link in a cache that leads out of it.
    let dockerfile = "FROM busybox
RUN --mount=type=cache,id=c,target=/c ln -s /etc /c/etc && ln -s ../../.. /c/up
RUN --mount=type=cache,id=c,source=LINK,target=/m ls /m
";
    for link in ["etc", "up"] {
        let ran = build(&place, &dockerfile.replace("LINK", link), &["--no-cache"]);
        ran.fails(3, "a link leads out of it");
    }
}

/// Nothing of a mount stays: no mount point, no parent, not even a time.
#[test]
fn mounts_leave_nothing_in_the_layer() {
    let place = Place::with_busybox();
    let secret = place.context("s", &[("secret", "hush")]).join("secret");
    let dockerfile = "FROM busybox AS tools
FROM busybox AS parents
RUN mkdir -p /made/before /made/ro && touch -d @1000000000 /made/before /made /made/ro && rm -r /var
FROM parents
RUN --mount=from=tools,target=/bind/new --mount=from=tools,target=/made/before/x \\
    --mount=from=tools,source=/etc/passwd,target=/made/file true
RUN --mount=target=/context/deep/er --mount=target=/made/before true
RUN --mount=type=cache,target=/root/.cache/x --mount=type=cache,target=/made/before/y/z \\
    --mount=type=cache,target=/made/before/y/z/nested true
RUN --mount=type=tmpfs,target=/tmp --mount=type=tmpfs,target=/var/lib/x --mount=type=tmpfs,target=/made/ro true
RUN --mount=type=secret,id=s --mount=type=secret,id=s,target=/root/.npmrc \\
    --mount=type=secret,id=s,target=/made/before/s true
RUN --mount=type=tmpfs,target=/dev/shm true
RUN --network=none true
RUN true
RUN <<EOF
#!/bin/sh
true
EOF
";
    let flag = format!("id=s,src={}", secret.display());
    let ran = build(&place, dockerfile, &["--secret", &flag]);
    ran.ok();
    let all = layers(&place, "img");
    assert_eq!(all.as_array().unwrap().len(), 2, "{ran}\n{all}");
    assert_eq!(
        place.sh(
            "img",
            "stat -c %Y /made /made/before /made/ro; ls -A /made/before /run 2>&1 || true"
        ),
        "1000000000\n1000000000\n1000000000\nls: /run: No such file or directory\n/made/before:"
    );
    // What the step itself writes beside a mount stays, the mount does not.
    let dockerfile = "FROM busybox
RUN --mount=type=tmpfs,target=/a/b/c --mount=type=cache,target=/a/d echo x > /a/b/file
";
    build(&place, dockerfile, &[]).ok();
    assert_eq!(place.sh("img", "find /a"), "/a\n/a/b\n/a/b/file");
}

#[test]
fn caches_outlive_builds_and_are_named_by_what_they_are() {
    let place = Place::with_busybox();
    let count = "echo x >> /c/n && wc -l < /c/n";
    let check = |flags: &str, arguments: &[&str], salt: &str, expected: &[&str]| {
        let dockerfile = format!("FROM busybox\nRUN --mount=type=cache,{flags} {count} # {salt}\n");
        let ran = build(&place, &dockerfile, arguments);
        ran.ok();
        assert_eq!(output(&ran), expected, "{flags} {salt}");
    };
    check("target=/c", &[], "1", &["1"]);
    check("target=/c", &[], "2", &["2"]);
    check("target=/c", &[], "2", &[]);
    check("target=/c/", &[], "3", &["3"]);
    check("id=/c,target=/c", &[], "4", &["4"]);
    check("id=other,target=/c", &[], "5", &["1"]);
    check("target=/c,mode=0700", &[], "6", &["1"]);
    check("target=/c,uid=1", &[], "7", &["1"]);
    check("target=/c,sharing=locked", &[], "8", &["5"]);
    check("target=/c,sharing=private", &[], "9", &["6"]);
    let namespace = ["--build-arg", "BUILDKIT_CACHE_MOUNT_NS=team"];
    check("target=/c", &namespace, "10", &["1"]);
    // Without cache it begins empty, and what it then holds stays.
    check("target=/c", &["--no-cache"], "11", &["1"]);
    check("target=/c", &[], "12", &["2"]);
    check("id=other,target=/c", &[], "13", &["2"]);

    // Twice in one step it is one directory; twice in a build without cache it is emptied once.
    let dockerfile = "FROM busybox
RUN --mount=type=cache,id=t,target=/a --mount=type=cache,id=t,target=/b echo x > /a/f && cat /b/f
RUN --mount=type=cache,id=t,target=/a cat /a/f
RUN --mount=type=cache,id=t,target=/a,ro touch /a/g 2>&1; echo $?
RUN --mount=type=cache,id=u,target=/u,mode=0750,uid=7,gid=8 stat -c '%a %u %g' /u
USER daemon
RUN --mount=type=cache,id=v,target=/v,uid=1 touch /v/mine && stat -c %U /v/mine
";
    let ran = build(&place, dockerfile, &["--no-cache"]);
    ran.ok();
    let expected = [
        "x",
        "x",
        "touch: /a/g: Read-only file system",
        "1",
        "750 7 8",
        "daemon",
    ];
    assert_eq!(output(&ran), expected);
}

#[test]
fn a_cache_begins_with_what_it_is_taken_from() {
    let place = Place::with_busybox();
    let dockerfile = |text: &str, salt: &str| {
        format!(
            "FROM busybox AS seed
RUN mkdir -p /s/d && echo {text} > /s/d/f
FROM busybox
RUN --mount=type=cache,id=x,target=/c,from=seed,source=/s cat /c/d/f && echo more >> /c/d/f # {salt}
"
        )
    };
    let check = |text: &str, salt: &str, expected: &[&str]| {
        let ran = build(&place, &dockerfile(text, salt), &[]);
        ran.ok();
        assert_eq!(output(&ran), expected);
    };
    check("one", "1", &["one"]);
    check("one", "2", &["one", "more"]);
    check("two", "2", &["two"]);
    check("one", "3", &["one", "more", "more"]);
}

/// Starts a build whose step waits for a file, once it says that it runs.
fn start(place: &Place, name: &str, mount: &str, gate: &Path) -> Child {
    let dockerfile = format!(
        "FROM busybox\nRUN --mount=type=cache,id=x,target=/c,{mount} --mount=type=cache,id=gate,target=/gate \\\n    echo {name} >> /c/log && touch /gate/{name} && while ! [ -e /gate/{name}.go ]; do :; done && cat /c/log\n"
    );
    let context = place.context(name, &[("Dockerfile", &dockerfile)]);
    let child = place
        .command(["build", "--progress", "plain"])
        .arg(context)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    if mount != "sharing=locked" || !gate.join("first").exists() {
        wait_for(&gate.join(name));
    }
    child
}

fn wait_for(path: &Path) {
    for _ in 0..600 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} does not appear", path.display());
}

fn finish(child: Child, gate: &Path, name: &str) -> Vec<String> {
    std::fs::write(gate.join(format!("{name}.go")), "").unwrap();
    let ran = Ran::from_output(name.to_owned(), &child.wait_with_output().unwrap());
    ran.ok();
    output(&ran).iter().map(|&line| line.to_owned()).collect()
}

#[test]
fn caches_are_shared_between_processes_as_they_say() {
    for (mount, seen) in [
        ("sharing=shared", &["first", "second"][..]),
        ("sharing=private", &["second"][..]),
        ("sharing=locked", &["first", "second"][..]),
    ] {
        let place = Place::with_busybox();
        // The steps' gate is a cache too: found in the store by its id.
        build(
            &place,
            "FROM busybox\nRUN --mount=type=cache,id=gate,target=/gate true\n",
            &[],
        )
        .ok();
        let folder = place.store().join("cache-mounts");
        let gate = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
        let gate = gate.path().join("data");
        let first = start(&place, "first", mount, &gate);
        let mut second = start(&place, "second", mount, &gate);
        if mount == "sharing=locked" {
            // It says that it waits, and does not get on.
            let stderr = second.stderr.take().unwrap();
            let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
            let waits = |line: std::io::Result<String>| {
                line.unwrap()
                    .contains("waiting for another step that uses the cache `x`")
            };
            assert!(lines.any(waits));
            assert!(!gate.join("second").exists());
            assert_eq!(finish(first, &gate, "first"), ["first"]);
            std::fs::write(gate.join("second.go"), "").unwrap();
            let rest: Vec<String> = lines.map(Result::unwrap).collect();
            assert!(
                rest.iter().any(|line| line.ends_with(" second")),
                "{rest:?}"
            );
            assert!(second.wait().unwrap().success());
        } else {
            assert_eq!(finish(second, &gate, "second"), seen, "{mount}");
            let log = finish(first, &gate, "first");
            assert_eq!(
                log.contains(&"second".to_owned()),
                mount == "sharing=shared"
            );
        }
    }
}

#[test]
fn du_counts_caches_and_prune_frees_them() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN --mount=type=cache,id=big,target=/c dd if=/dev/zero of=/c/f bs=1M count=3 2>/dev/null
";
    build(&place, dockerfile, &[]).ok();
    let size = || {
        let listing = place.run(["du", "--json"]).ok();
        let rows = listing
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let mut rows = rows.filter(|row: &serde_json::Value| row["Type"] == "Cache Mounts");
        rows.next().unwrap()["SizeBytes"].as_u64().unwrap()
    };
    assert!(size() > 3 << 20);
    place.run(["prune"]).ok();
    assert!(size() > 3 << 20, "only the build cache goes with it");
    let told = place.run(["prune", "-a", "--dry-run"]).ok();
    assert!(told.contains("Would delete cache mount /big"), "{told}");
    let told = place.run(["prune", "-a"]).ok();
    assert!(told.contains("Deleted cache mount /big"), "{told}");
    assert_eq!(size(), 0);
}

#[test]
fn secrets_are_seen_by_their_step_and_nowhere_else() {
    let place = Place::with_busybox();
    let value = "q8Zk-very-secret-value-31415";
    let file = place.context("s", &[("file", value)]).join("file");
    let dockerfile = "FROM busybox
RUN --mount=type=secret,id=f cat /run/secrets/f | md5sum && stat -c '%a %u %g' /run/secrets/f
RUN --mount=type=secret,id=f,target=/etc/token,mode=0444,uid=1,gid=2 stat -c '%a %u %g %s' /etc/token
RUN --mount=type=secret,id=e,env=TOKEN echo ${#TOKEN}; ls /run/secrets 2>&1 || true
RUN --mount=type=secret,id=e,env=TOKEN,target=/t echo ${#TOKEN} && wc -c < /t
RUN --mount=type=secret,id=none echo $?; ls /run/secrets 2>&1 || true
RUN --mount=type=secret,id=none,env=NONE echo \"set to '${NONE-unset}'\"
RUN test ! -e /run/secrets && test -z \"$TOKEN\"
";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let mut command = place.command(["build", "--progress", "plain", "-t", "img"]);
    command.arg(format!("--secret=id=f,src={}", file.display()));
    command.arg("--secret=type=env,id=e,env=MY_TOKEN");
    let ran = Ran::of(command.arg(context).env("MY_TOKEN", value));
    ran.ok();
    let length = value.len().to_string();
    let owner = format!("444 1 2 {length}");
    let missing = "ls: /run/secrets: No such file or directory";
    let lines = output(&ran);
    assert_eq!(
        lines[1..],
        [
            "400 0 0",
            &owner,
            &length,
            missing,
            &length,
            &length,
            "0",
            missing,
            "set to ''"
        ],
        "{ran}"
    );
    assert!(!ran.stderr.contains(value));
    // Neither in a layer nor in the index, nor in anything else that is kept.
    let found = Command::new("grep")
        .args(["-rl", value])
        .arg(place.store())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert_eq!(layers(&place, "img"), layers(&place, "busybox"));
    // Another value is no reason to run again.
    std::fs::write(&file, "other").unwrap();
    let flag = format!("id=f,src={}", file.display());
    let ran = build(&place, dockerfile, &["--secret", &flag]);
    ran.ok();
    assert!(Built::of(&ran).ran.is_empty(), "{ran}");
}

#[test]
fn what_a_step_needs_and_was_not_given_is_named() {
    let place = Place::with_busybox();
    let check = |flag: &str, flags: &[&str], code: i32, expected: &str| {
        let dockerfile = format!("FROM busybox\nRUN {flag} true\n");
        build(&place, &dockerfile, flags).fails(code, expected);
    };
    check(
        "--mount=type=secret,id=npm,required",
        &[],
        1,
        "--secret id=npm,src=FILE",
    );
    check("--mount=type=ssh,required", &[], 1, "--ssh default");
    check("--network=host", &[], 1, "--allow network.host");
    check("--security=insecure", &[], 1, "--allow security.insecure");
    check(
        "--device=example.com/gpu=0,required",
        &[],
        1,
        "there is no device `example.com/gpu=0`",
    );
    check("--mont=type=cache", &[], 1, "did you mean `--mount`");
    check(
        "",
        &["--allow", "network.hots"],
        2,
        "did you mean `network.host`",
    );
    check("", &["--secret", "id=x,src=/no/such"], 1, "`/no/such`");
    check("", &["--secret", "src=x"], 2, "it has no id");
    check(
        "",
        &["--secret", "id=x,env=LONGSHORE_NO_SUCH"],
        1,
        "which is not set",
    );
    check(
        "",
        &["--ulimit", "nofiles=1"],
        2,
        "there is no limit `nofiles`",
    );
    check("", &["--add-host", "db"], 2, "expected NAME:ADDRESS");
    check("", &["--shm-size", "big"], 2, "--shm-size `big`");
    check("", &["--network", "bridge"], 2, "default, none or host");
    check("sh -c 'exit 7' #", &[], 1, "exit code: 7");
    // A secret that was mistyped is not repeated.
    let ran = build(
        &place,
        "FROM busybox\n",
        &["--secret", "id=x,value=hush-hush"],
    );
    ran.fails(2, "there is no key `value`");
    assert!(!ran.stderr.contains("hush-hush"), "{ran}");
}

#[test]
fn networks_names_and_limits() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN --network=none ls /sys/class/net
RUN --network=default ls /sys/class/net | wc -l
RUN hostname && grep -c . /etc/hosts && grep db /etc/hosts
RUN ulimit -n && ulimit -H -n && df -k /dev/shm | tail -n1 | awk '{print $2}'
";
    let flags = [
        "--add-host=db:10.1.2.3",
        "--ulimit=nofile=100:200",
        "--shm-size=8m",
        "--build-arg=BUILDKIT_SANDBOX_HOSTNAME=box",
    ];
    let ran = build(&place, dockerfile, &flags);
    ran.ok();
    let lines = output(&ran);
    assert_eq!(lines[0], "lo");
    let expected = ["box", "8", "10.1.2.3\tdb", "100", "200", "8192"];
    assert_eq!(lines[2..], expected, "{ran}");
    // The address is not part of the key, the name is; the rest is as well.
    let same = ["--add-host=db:10.9.9.9", flags[1], flags[2], flags[3]];
    let ran = build(&place, dockerfile, &same);
    assert!(Built::of(&ran).ran.is_empty(), "{ran}");
    let other = [flags[0], "--ulimit=nofile=101:200", flags[2], flags[3]];
    assert_eq!(Built::of(&build(&place, dockerfile, &other)).ran.len(), 4);

    let one = "FROM busybox\nRUN ls /sys/class/net && hostname\n";
    let ran = build(&place, one, &["--network=none"]);
    ran.ok();
    assert_eq!(output(&ran), ["lo", "buildkitsandbox"]);
    let host = "FROM busybox\nRUN --network=host ls /sys/class/net | wc -l\n";
    build(&place, host, &["--allow=network.host"]).ok();
}

#[test]
fn a_step_uses_no_more_memory_than_it_may() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nRUN --mount=type=tmpfs,target=/m dd if=/dev/zero of=/m/f bs=1M count=SIZE 2>/dev/null\n";
    let flags = [
        "--memory=32m",
        "--memory-swap=32m",
        "--cpu-shares=512",
        "--cpuset-cpus=0",
    ];
    let ran = build(&place, &dockerfile.replace("SIZE", "4"), &flags);
    if ran
        .stderr
        .contains("control group controller may be used here")
    {
        eprintln!("skipped: this machine lets nobody limit memory: {ran}");
        return;
    }
    ran.ok();
    let ran = build(&place, &dockerfile.replace("SIZE", "64"), &flags);
    ran.fails(
        1,
        "exit code: 137: out of memory: it reached its limit of 33554432 bytes",
    );
    let shown = place.ok(["history", "show", "latest", "--format", "json"], [""; 0]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let steps = shown["steps"].as_array().unwrap();
    let used = steps.iter().find_map(|step| step["used"].as_object());
    assert!(
        used.is_some_and(|used| used["memory"].as_u64() > Some(16 << 20)),
        "{shown}"
    );
    let small = build(&place, &dockerfile.replace("SIZE", "3"), &["-m", "1m"]);
    small.fails(3, "cannot limit memory: 1048576 bytes are too few");
    // Limits do not decide what is found in the cache.
    let again = build(&place, &dockerfile.replace("SIZE", "4"), &[]);
    assert!(Built::of(&again).ran.is_empty(), "{again}");
    let parent = ["--cgroup-parent=/longshore-test/steps"];
    let text = "FROM busybox\nRUN cat /proc/self/cgroup\n";
    build(&place, text, &parent).ok();
    build(&place, text, &["--memory-swap=1g"]).fails(2, "--memory");
}

#[test]
fn insecure_steps_may_do_everything() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN --security=insecure mkdir /m && mount -t tmpfs x /m && mknod /n c 1 3 && echo x > /n && rm /n && umount /m && rmdir /m && ls /dev/full
RUN mount -t tmpfs x /tmp 2>&1; echo $?
";
    let ran = build(&place, dockerfile, &["--allow", "security.insecure"]);
    ran.ok();
    let lines = output(&ran);
    assert_eq!(lines.first(), Some(&"/dev/full"), "{ran}");
    assert_eq!(lines.last(), Some(&"1"), "{ran}");
}

#[test]
fn here_documents_run_with_their_interpreter() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN <<EOF
#!/bin/awk -f
BEGIN { print \"awk $HOME\" }
EOF
RUN <<-SCRIPT
\t#!/usr/bin/env sh
\techo \"$0 in ${0%/*}\"
SCRIPT
RUN <<EOF
echo plain
echo two
EOF
RUN cat <<A && cat <<B 4>&1
a
A
b
B
RUN 3<<IN cat <&3
from fd
IN
SHELL [\"/bin/awk\"]
RUN <<EOF
BEGIN { print \"shell\" }
EOF
SHELL [\"/bin/sh\", \"-c\"]
RUN test ! -e /dev/pipes
";
    // There is no /usr/bin/env in this base.
    let dockerfile = dockerfile.replace("#!/usr/bin/env sh", "#!/bin/env sh");
    let ran = build(&place, &dockerfile, &[]);
    ran.ok();
    let expected = [
        "awk $HOME",
        "/dev/pipes/SCRIPT in /dev/pipes",
        "plain",
        "two",
        "a",
        "b",
        "from fd",
        "shell",
    ];
    assert_eq!(output(&ran), expected, "{ran}");
    assert_eq!(layers(&place, "img"), layers(&place, "busybox"));
    let changed = dockerfile.replace("\"awk $HOME\"", "\"other\"");
    let ran = build(&place, &changed, &[]);
    assert_eq!(output(&ran), ["other"], "only what changed runs: {ran}");
}

#[test]
fn variables_of_a_step() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
ARG SET=1
ARG UNSET
ENV KEPT=2
RUN env | grep -iE '^(set|unset|kept|http_proxy|home|ssh_auth_sock)=' | sort
USER daemon
RUN echo $HOME
USER 1234
RUN echo $HOME
ENV HOME=/mine
RUN echo $HOME
";
    let ran = build(
        &place,
        dockerfile,
        &["--build-arg", "http_proxy=http://p:1"],
    );
    ran.ok();
    let expected = [
        "HOME=/root",
        "HTTP_PROXY=http://p:1",
        "KEPT=2",
        "SET=1",
        "http_proxy=http://p:1",
        "/",
        "/",
        "/mine",
    ];
    assert_eq!(output(&ran), expected);
    let other = build(
        &place,
        dockerfile,
        &["--build-arg", "http_proxy=http://q:2"],
    );
    assert!(Built::of(&other).ran.is_empty(), "{other}");
}

/// An agent of ssh's own that ends with the test.
struct SshAgent {
    child: Child,
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn agents_are_passed_on() {
    let place = Place::with_busybox();
    let folder = place.context("keys", &[]);
    // A socket's own path is short, a store's need not be.
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("agent");
    let child = Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("ssh-agent is installed: `./test` installs it");
    let _agent = SshAgent { child };
    wait_for(&socket);
    let key = folder.join("key");
    let key = key.to_str().unwrap();
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key]);

    let dockerfile = "FROM busybox
RUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\" && stat -c '%a %u' $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK
RUN --mount=type=ssh,id=default,target=/s,mode=0666,uid=1 stat -c '%a %u' /s && echo $SSH_AUTH_SOCK
RUN --mount=type=ssh,id=keys,required test -S \"$SSH_AUTH_SOCK\"
RUN --mount=type=ssh,id=other echo \"sock '$SSH_AUTH_SOCK'\"
RUN test ! -e /run/buildkit && test -z \"$SSH_AUTH_SOCK\"
";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let mut command = place.command(["build", "--progress", "plain", "-t", "img"]);
    command
        .args(["--ssh", "default", "--ssh"])
        .arg(format!("keys={key}"));
    let ran = Ran::of(command.arg(&context).env("SSH_AUTH_SOCK", &socket));
    ran.ok();
    let expected = [
        "600 0",
        "/run/buildkit/ssh_agent.0",
        "666 1",
        "/s",
        "sock ''",
    ];
    assert_eq!(output(&ran), expected, "{ran}");
    assert_eq!(layers(&place, "img"), layers(&place, "busybox"));
    let mut command = place.command(["build", "--ssh", "default"]);
    Ran::of(command.arg(&context).env_remove("SSH_AUTH_SOCK")).fails(1, "SSH_AUTH_SOCK is not set");
    tool(
        "ssh-keygen",
        &["-q", "-p", "-N", "passphrase", "-P", "", "-f", key],
    );
    let mut command = place.command(["build", "--no-cache"]);
    command.arg(format!("--ssh=default={key}"));
    Ran::of(command.arg(&context)).fails(3, "ssh-add");
}

/// Whether a file of the store holds these bytes, as they are or in hexadecimal.
fn store_holds(place: &Place, bytes: &[u8]) -> bool {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let held = |needle: &[u8]| {
        let needle = needle.to_vec();
        let mut folders = vec![place.store()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.file_type().unwrap().is_file() {
                    let content = std::fs::read(entry.path()).unwrap();
                    if content.windows(needle.len()).any(|window| window == needle) {
                        return true;
                    }
                }
            }
        }
        false
    };
    held(bytes) || held(hex.as_bytes())
}

#[test]
fn a_secrets_content_is_part_of_the_key_where_that_is_asked_for() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /length
RUN echo after > /after
";
    let secret = place.path("token");
    let plain = format!("id=token,src={}", secret.display());
    let keyed = format!("{plain},key=content");
    let runs = |content: &str, flag: &str| {
        std::fs::write(&secret, content).unwrap();
        let ran = build(&place, dockerfile, &["--secret", flag]);
        ran.ok();
        Built::of(&ran).runs().len()
    };
    assert_eq!(runs("hush-hush-1", &keyed), 2);
    assert_eq!(runs("hush-hush-1", &keyed), 0);
    // Other content of the same length: it runs, and what follows does not, for it left the same.
    assert_eq!(runs("hush-hush-2", &keyed), 1);
    let explained = place.run(["explain", "latest", "wc -c"]).ok();
    assert!(explained.contains("secret token changed"), "{explained}");
    let json = place
        .run(["explain", "latest", "wc -c", "--format", "json"])
        .ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let reasons = &json["steps"][0]["reasons"];
    assert_eq!(
        *reasons,
        serde_json::json!([{ "ingredient": "secret", "name": "token" }])
    );
    // The earlier one is still known.
    assert_eq!(runs("hush-hush-1", &keyed), 0);
    // Without being asked for it is no part of the key.
    assert_eq!(runs("hush-hush-1", &plain), 1);
    assert_eq!(runs("hush-hush-3", &plain), 0);

    for content in ["hush-hush-1", "hush-hush-2"] {
        let digests = [
            content.as_bytes().to_vec(),
            blake3::hash(content.as_bytes()).as_bytes()[..8].to_vec(),
            store::oci::Digest::of(content.as_bytes()).bytes()[..8].to_vec(),
        ];
        for bytes in digests {
            assert!(!store_holds(&place, &bytes), "{bytes:02x?}");
        }
    }
    let wrong = format!("{plain},key=hash");
    let ran = build(&place, dockerfile, &["--secret", &wrong]);
    ran.fails(2, "its key is not `content`");
}

#[test]
fn results_that_a_secret_decided_are_not_exported() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN echo public > /public
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /length
";
    let secret = place.path("token");
    std::fs::write(&secret, "hush").unwrap();
    let cache = place.path("cache");
    let to = format!("type=local,dest={},mode=max", cache.display());
    let plain = format!("id=token,src={}", secret.display());
    let keyed = format!("{plain},key=content");
    let exported = |flag: &str| {
        let ran = build(&place, dockerfile, &["--secret", flag, "--cache-to", &to]);
        ran.ok();
        let line = ran
            .stderr
            .lines()
            .find(|line| line.contains("results written"));
        let line = line.unwrap_or_else(|| panic!("{ran}")).to_owned();
        let (_, counts) = line.rsplit_once(": ").unwrap();
        counts.to_owned()
    };
    assert_eq!(exported(&keyed), "1 results written, 0 were there");
    assert_eq!(exported(&plain), "1 results written, 1 were there");
}
