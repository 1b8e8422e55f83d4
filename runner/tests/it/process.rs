//! The process: its arguments, environment, directory, identity, streams, and why it did not start.

use std::fs;
use std::io::{Read, Write};

use runner::{
    Errno, ExitStatus, NetworkMode, Root, Sandbox, SandboxError, StartError, Stdio, Stream, User,
};

use crate::Test;
use crate::world::{World, run, write_executable};

pub(crate) const TESTS: &[Test] = &[
    ("exit_codes", exit_codes),
    ("environment_and_arguments", environment_and_arguments),
    ("working_directory", working_directory),
    ("users_and_groups", users_and_groups),
    ("streams", streams),
    ("names_and_namespaces", names_and_namespaces),
    ("network_none", network_none),
    ("commands_that_do_not_start", commands_that_do_not_start),
    ("text_busy", text_busy),
    ("invalid_specs", invalid_specs),
];

fn exit_codes(world: &World) -> Result<(), String> {
    for code in [0, 1, 7, 255] {
        let outcome = run(&world.script(&format!("exit {code}"))).unwrap();
        assert_eq!(outcome.status, ExitStatus::Code(code));
    }
    Ok(())
}

fn environment_and_arguments(world: &World) -> Result<(), String> {
    let mut spec = world.spec(["env"]);
    spec.process.env = vec!["PATH=/bin".into(), "A=b c=d".into(), "EMPTY=".into()];
    assert_eq!(run(&spec).unwrap().stdout, "PATH=/bin\nA=b c=d\nEMPTY=\n");

    let mut spec = world.spec([
        "sh",
        "-c",
        r#"printf '<%s>' "$0" "$@""#,
        "zero",
        "",
        "a b",
        "ü\n",
    ]);
    spec.process.env = vec!["PATH=/nowhere:/bin".into()];
    assert_eq!(run(&spec).unwrap().stdout, "<zero><><a b><ü\n>");
    Ok(())
}

fn working_directory(world: &World) -> Result<(), String> {
    let mut spec = world.spec(["pwd"]);
    spec.process.cwd = "/tmp".into();
    assert_eq!(run(&spec).unwrap().stdout, "/tmp\n");

    spec.process.cwd = "/new/deep".into();
    let error = run(&spec).unwrap_err();
    let expect = StartError::WorkingDirectory {
        path: "/new/deep".into(),
        errno: Errno(libc::ENOENT),
    };
    assert!(
        matches!(&error, SandboxError::Start(found) if *found == expect),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "working directory `/new/deep`: no such file or directory"
    );

    spec.process.make_cwd = true;
    assert_eq!(run(&spec).unwrap().stdout, "/new/deep\n");
    assert!(world.path("upper/new/deep").is_dir(), "made to stay");
    Ok(())
}

fn users_and_groups(world: &World) -> Result<(), String> {
    let show = "id -u; id -g; id -G; touch /tmp/mine; stat -c %u:%g /tmp/mine; umask";
    let mut spec = world.script(show);
    spec.process.user = User {
        uid: 0,
        gid: 0,
        groups: vec![0],
        home: "/".into(),
    };
    assert_eq!(run(&spec).unwrap().stdout, "0\n0\n0\n0:0\n0022\n");

    let mut spec = world.script(&show.replace("mine", "other"));
    spec.process.user = User {
        uid: 1000,
        gid: 1001,
        groups: vec![5, 1001],
        home: "/".into(),
    };
    let outcome = run(&spec);
    if world.many_ids() {
        assert_eq!(
            outcome.unwrap().stdout,
            "1000\n1001\n1001 5\n1000:1001\n0022\n"
        );
    } else {
        let error = outcome.unwrap_err();
        assert!(matches!(
            error,
            SandboxError::Start(StartError::UserUnmapped {
                uid: 1000,
                gid: 1001
            })
        ));
    }

    spec.process.user.uid = u32::MAX;
    assert!(matches!(
        run(&spec),
        Err(SandboxError::Start(StartError::UserUnmapped { .. }))
    ));
    Ok(())
}

fn streams(world: &World) -> Result<(), String> {
    let stdio = Stdio {
        stdin: Stream::Pipe,
        stdout: Stream::Pipe,
        stderr: Stream::Pipe,
    };
    let script = "cat; echo problem >&2; ls /proc/self/fd | wc -l";
    let mut sandbox = Sandbox::spawn(&world.script(script), stdio).unwrap();
    let mut stdin = sandbox.stdin.take().unwrap();
    stdin.write_all(b"typed\n").unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    sandbox
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .unwrap();
    sandbox
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    // Three streams, and the directory that ls itself has open.
    assert_eq!((out.as_str(), err.as_str()), ("typed\n4\n", "problem\n"));
    assert!(sandbox.wait().unwrap().success());
    assert!(
        sandbox.wait().unwrap().success(),
        "waiting again tells the same"
    );
    assert_eq!(sandbox.try_wait().unwrap(), Some(ExitStatus::Code(0)));
    assert!(sandbox.usage().unwrap().memory_peak > 0);

    // A stream's end is seen when the process closes it, not when the sandbox ends.
    let stdio = Stdio {
        stdin: Stream::Pipe,
        stdout: Stream::Pipe,
        stderr: Stream::Null,
    };
    for init in [false, true] {
        let mut spec = world.script("exec >/dev/null; cat");
        spec.init = init;
        let mut sandbox = Sandbox::spawn(
            &spec,
            Stdio {
                stdin: Stream::Pipe,
                stdout: Stream::Pipe,
                stderr: Stream::Null,
            },
        )
        .unwrap();
        let mut out = String::new();
        sandbox
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        assert_eq!(sandbox.try_wait().unwrap(), None);
        drop(sandbox.stdin.take());
        assert!(sandbox.wait().unwrap().success());
    }
    drop(stdio);
    Ok(())
}

fn names_and_namespaces(world: &World) -> Result<(), String> {
    let mut spec = world.script(
        "hostname; echo $$; ps -o pid > /tmp/list; wc -l < /tmp/list; for ns in mnt pid ipc uts cgroup net user; do \
         readlink /proc/self/ns/$ns; done",
    );
    spec.hostname = "inside".into();
    let outcome = run(&spec).unwrap();
    let mut lines = outcome.stdout.lines();
    assert_eq!(lines.next(), Some("inside"));
    assert_eq!(lines.next(), Some("1"));
    // A heading, the shell and ps.
    assert_eq!(lines.next(), Some("3"), "{outcome:?}");
    for (ns, fresh) in [
        ("mnt", true),
        ("pid", true),
        ("ipc", true),
        ("uts", true),
        ("cgroup", true),
        ("net", false),
        ("user", world.own_ids()),
    ] {
        let own = fs::read_link(format!("/proc/self/ns/{ns}")).unwrap();
        assert_eq!(lines.next() != own.to_str(), fresh, "{ns}: {outcome:?}");
    }
    Ok(())
}

fn network_none(world: &World) -> Result<(), String> {
    let mut spec = world.script("ls /sys/class/net; ip -o addr");
    spec.network = NetworkMode::None;
    let outcome = run(&spec).unwrap();
    assert!(
        outcome.stdout.starts_with("lo\n1: lo    inet 127.0.0.1/8"),
        "{outcome:?}"
    );
    assert_eq!(
        outcome
            .stdout
            .lines()
            .filter(|line| !line.contains("lo"))
            .count(),
        0,
        "{outcome:?}"
    );
    Ok(())
}

fn commands_that_do_not_start(world: &World) -> Result<(), String> {
    let base = world.path("base");
    fs::write(base.join("data"), "text").unwrap();
    write_executable(&base.join("text"), b"echo no interpreter line\n");
    write_executable(&base.join("script"), b"#!/no/such/shell -x\n");
    write_executable(&base.join("dos"), b"#!/bin/sh\r\necho\r\n");
    let mut foreign = fs::read("/bin/busybox").unwrap();
    foreign[18] = if cfg!(target_arch = "aarch64") {
        62
    } else {
        183
    };
    write_executable(&base.join("foreign"), &foreign);
    fs::copy(std::env::current_exe().unwrap(), base.join("dynamic")).unwrap();

    let check = |command: &str, code: i32, message: &str| {
        let error = run(&world.spec([command])).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.exit_code(), code, "{error:?}");
    };
    let path = runner::DEFAULT_PATH;
    check(
        "nope",
        127,
        &format!("command `nope` not found in the image (searched `{path}`)"),
    );
    check("/no/such", 127, "command `/no/such` not found in the image");
    check(
        "/data/beneath",
        127,
        "command `/data/beneath` not found in the image",
    );
    check("/data", 126, "`/data` is not executable: permission denied");
    check("/tmp", 126, "`/tmp` is not executable: is a directory");
    check(
        "/text",
        126,
        "`/text` is neither a program nor a script that begins with `#!`",
    );
    check(
        "/script",
        126,
        "`/script` needs `/no/such/shell`, which is not in the image",
    );
    check(
        "/dos",
        126,
        "`/dos` needs `/bin/sh\\r`, which is not in the image",
    );
    let machine = if cfg!(target_arch = "aarch64") {
        "amd64"
    } else {
        "arm64"
    };
    check(
        "/foreign",
        126,
        &format!(
            "`/foreign` is a program for {machine}, which this machine cannot run: it needs an emulator, such as qemu-user, \
             registered with the kernel (binfmt_misc)"
        ),
    );
    let error = run(&world.spec(["/dynamic"])).unwrap_err();
    assert!(
        matches!(&error, SandboxError::Start(StartError::InterpreterMissing { interpreter, .. })
            if interpreter.contains("ld-")),
        "{error:?}"
    );

    // A candidate that may not be executed does not end the search, but is remembered.
    fs::create_dir_all(base.join("first")).unwrap();
    fs::write(base.join("first/true"), "").unwrap();
    let mut spec = world.spec(["true"]);
    spec.process.env = vec!["PATH=/first:/bin".into()];
    assert!(run(&spec).unwrap().status.success());
    spec.process.env = vec!["PATH=/first:/tmp".into()];
    assert_eq!(
        run(&spec).unwrap_err().to_string(),
        "`/first/true` is not executable: permission denied"
    );
    Ok(())
}

fn text_busy(world: &World) -> Result<(), String> {
    let path = world.path("base/bin/busy");
    fs::copy("/bin/busybox", &path).unwrap();
    for name in ["proc", "sys", "dev"] {
        fs::create_dir(world.path("base").join(name)).unwrap();
    }
    let writer = fs::File::options().append(true).open(&path).unwrap();
    let mut spec = world.spec(["busy"]);
    spec.root = Root::Directory(world.path("base"));
    let error = run(&spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`/bin/busy` is being written to, and cannot be executed meanwhile"
    );
    assert_eq!(error.exit_code(), 126);
    drop(writer);
    Ok(())
}

fn invalid_specs(world: &World) -> Result<(), String> {
    let check = |change: &dyn Fn(&mut runner::SandboxSpec), message: &str| {
        let mut spec = world.spec(["true"]);
        change(&mut spec);
        assert_eq!(
            run(&spec).unwrap_err().to_string(),
            format!("invalid sandbox: {message}")
        );
    };
    check(&|spec| spec.process.argv.clear(), "no command");
    check(&|spec| spec.process.argv[0] = String::new(), "no command");
    check(
        &|spec| spec.process.argv.push("a\0b".into()),
        "a zero byte in `a\\0b`",
    );
    check(
        &|spec| spec.process.env.push("novalue".into()),
        "environment entry `novalue` without `=`",
    );
    check(
        &|spec| spec.process.cwd = "tmp".into(),
        "working directory `tmp` is not absolute",
    );
    check(
        &|spec| spec.root = world.layers(&[]),
        "an overlay without a lower layer",
    );
    for target in ["relative", "/", "//"] {
        let point = crate::world::bind(&world.path("base"), target, true);
        check(
            &|spec| spec.mounts.push(point.clone()),
            &format!("mount target `{target}` is not absolute, or is `/`"),
        );
    }
    Ok(())
}
