//! An ordinary user: one made for the test, with subordinate ids of its own.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::network::Host;
use crate::support::{LONGSHORE, Place, Ran, Server, busybox_rootfs, tool, workspace};

/// A user of this machine who is gone after the test.
pub struct User {
    name: String,
    pub home: tempfile::TempDir,
}

impl User {
    pub fn new(name: &str) -> User {
        let name = format!("{name}{}", std::process::id());
        // Neither the tests' folder nor the binary in it need be within the user's reach.
        let home = tempfile::tempdir_in("/var/tmp").unwrap();
        tool(
            "useradd",
            &[
                "--no-create-home",
                "--home-dir",
                home.path().to_str().unwrap(),
                &name,
            ],
        );
        let user = User { name, home };
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = std::fs::read_to_string(file).unwrap();
            let prefix = format!("{}:", user.name);
            assert!(
                text.lines().any(|line| line.starts_with(&prefix)),
                "no ids in {file}"
            );
        }
        user.give("longshore", LONGSHORE.as_ref());
        user
    }

    /// Copies a file into the user's home.
    pub fn give(&self, name: &str, file: &std::path::Path) {
        let copy = self.home.path().join(name);
        std::fs::copy(file, &copy).unwrap();
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.own();
    }

    pub fn own(&self) {
        let owner = format!("{0}:{0}", self.name);
        tool("chown", &["-R", &owner, self.home.path().to_str().unwrap()]);
    }

    /// Runs a shell line as the user, at home, with `longshore` on PATH.
    pub fn sh(&self, line: &str) -> Ran {
        self.by(Command::new("setpriv"), line)
    }

    /// The same in the network namespace of a host, where everybody may open `/dev/net/tun`: udev has it so, and a machine without
    /// udev may not.
    pub fn sh_on(&self, host: &Host<'_>, line: &str) -> Ran {
        let script = "mount -t tmpfs none /mnt && mknod -m 666 /mnt/tun c 10 200 \
                      && mount --bind /mnt/tun /dev/net/tun && exec \"$@\"";
        let words = ["--mount", "sh", "-c", script, "sh", "setpriv"];
        self.by(host.command("unshare", &words), line)
    }

    fn by(&self, mut setpriv: Command, line: &str) -> Ran {
        let home = self.home.path().to_str().unwrap();
        setpriv
            .args([
                "--reuid",
                &self.name,
                "--regid",
                &self.name,
                "--init-groups",
            ])
            .args([
                "--reset-env",
                "sh",
                "-ec",
                &format!("cd {home}; PATH={home}:$PATH; {line}"),
            ])
            .current_dir("/");
        Ran::of(&mut setpriv)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Files of subordinate ids are not the user's to remove.
        let _ = Command::new("userdel").arg(&self.name).output();
    }
}

#[test]
fn an_ordinary_user_builds_pushes_pulls_and_runs() {
    let user = User::new("lsa");
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    user.give("rootfs.tar", busybox_rootfs());
    user.give(
        "Base",
        &workspace().join("testdata/images/busybox/Dockerfile"),
    );
    let dockerfile = "FROM base\nCOPY --chown=daemon f /f\nRUN id -u > /who && chown 1234:2345 /who && echo gone > /gone\nRUN rm /gone && mkdir /d && chmod 1777 /d\nUSER daemon\nRUN touch /d/mine\n";
    std::fs::create_dir(user.home.path().join("ctx")).unwrap();
    std::fs::write(user.home.path().join("ctx/Dockerfile"), dockerfile).unwrap();
    std::fs::write(user.home.path().join("ctx/f"), "1\n").unwrap();
    user.own();

    assert!(
        user.sh("longshore info")
            .ok()
            .contains("rootless with subordinate ids")
    );
    user.sh("longshore build -q -t base -f Base .").ok();
    let name = format!("{}/app:1", registry.host);
    user.sh(&format!("longshore build -t {name} --push ctx"))
        .ok();
    let again = user.sh(&format!("longshore build --progress plain -t {name} ctx"));
    again.ok();
    assert!(!again.stderr.contains("DONE"), "{again}");

    let look = "stat -c '%u:%g' /f /who /d/mine; cat /who; ls /";
    let shell = format!("longshore run --rm --entrypoint sh {name} -c \"{look}\"");
    let seen = user.sh(&shell).ok();
    assert!(seen.starts_with("1:1\n1234:2345\n1:1\n0\n"), "{seen}");
    assert!(!seen.contains("gone"), "{seen}");
    user.sh(&format!("longshore rmi {name}; longshore pull {name}"))
        .ok();
    assert_eq!(user.sh(&shell).ok(), seen);

    // The same image, seen by root.
    let by_root = place.run(["run", "--rm", "--entrypoint", "sh", &name, "-c", look]);
    assert_eq!(by_root.ok(), seen);
    let code = user.sh(&format!(
        "longshore run --rm --entrypoint sh {name} -c 'exit 5'"
    ));
    assert_eq!(code.code, Some(5));
}

#[test]
fn an_ordinary_users_steps_have_mounts_too() {
    let user = User::new("lsc");
    user.give("rootfs.tar", busybox_rootfs());
    user.give(
        "Base",
        &workspace().join("testdata/images/busybox/Dockerfile"),
    );
    let dockerfile = "FROM base AS tools
RUN echo tool > /tool && chown 5:6 /tool
FROM base
RUN --mount=from=tools,source=/tool,target=/t --mount=target=/ctx,rw --mount=type=tmpfs,target=/tmp/x \\
    --mount=type=cache,target=/c,uid=7,gid=8 --mount=type=secret,id=s,uid=1,mode=0440 \\
    cat /t /ctx/f /run/secrets/s && echo x > /ctx/f && stat -c %u:%g /t /ctx/f /c /run/secrets/s && echo x >> /c/n
RUN --mount=type=cache,target=/c,uid=7,gid=8 wc -l < /c/n
RUN --network=none ls /sys/class/net
RUN <<EOF
#!/bin/awk -f
BEGIN { print \"awk\" }
EOF
";
    std::fs::create_dir(user.home.path().join("ctx")).unwrap();
    std::fs::write(user.home.path().join("ctx/Dockerfile"), dockerfile).unwrap();
    std::fs::write(user.home.path().join("ctx/f"), "file\n").unwrap();
    std::fs::write(user.home.path().join("secret"), "hush\n").unwrap();
    user.own();
    user.sh("longshore build -q -t base -f Base .").ok();
    let ran = user.sh("longshore build --progress plain --secret id=s,src=secret -t app ctx");
    ran.ok();
    let text: Vec<&str> = ran.stderr.split_whitespace().collect();
    let text = text.join(" ");
    for expected in [
        " tool #", " file #", " hush #", " 5:6 #", " 0:0 #", " 7:8 #", " 1:0 #", " lo #", " awk #",
    ] {
        assert!(text.contains(expected), "no `{expected}` in {ran}");
    }
    let left = user
        .sh("longshore run --rm --entrypoint sh app -c 'ls -A /'")
        .ok();
    let names: Vec<&str> = left.lines().collect();
    for gone in ["ctx", "run", "t", "c"] {
        assert!(!names.contains(&gone), "{left}");
    }
}

#[test]
fn a_file_that_its_user_cannot_read_is_named() {
    let user = User::new("lsb");
    user.give("rootfs.tar", busybox_rootfs());
    let context = user.home.path().join("ctx");
    std::fs::create_dir(&context).unwrap();
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY . /\n").unwrap();
    user.own();
    let locked = context.join("locked");
    std::fs::write(&locked, "root's").unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o600)).unwrap();
    let ran = user.sh("longshore build ctx");
    ran.fails(1, "locked");
    assert!(ran.stderr.contains("ermission denied"), "{ran}");
    std::fs::write(context.join(".dockerignore"), "locked\n").unwrap();
    user.sh("longshore build ctx").ok();
}

#[test]
fn an_ordinary_users_containers() {
    let user = User::new("lsd");
    user.give("rootfs.tar", busybox_rootfs());
    let _ended = Ending(&user);
    let check = |line: &str, expected: &str| assert_eq!(user.sh(line).ok(), expected, "{line}");
    user.sh("longshore import -c 'CMD [\"sh\"]' rootfs.tar base")
        .ok();
    check("longshore run --rm base id -u", "0");
    user.sh("longshore run -d --name box -v data:/data base sh -c 'echo out; exec sleep 1000'")
        .ok();
    check(
        "longshore ps --format '{{.Names}} {{.State}}'",
        "box running",
    );
    user.sh("longshore exec box sh -c 'echo 1 > /data/f; chown 5:6 /data/f'")
        .ok();
    check("longshore exec box stat -c %u:%g /data/f", "5:6");
    check("longshore exec -u 5:6 box id -u", "5");
    check("longshore exec box sh -c 'exit 7' || echo $?", "7");
    check("longshore top box | grep -c 'sleep 1000'", "1");
    check("longshore stats --no-stream --format '{{.Name}}'", "box");
    check("longshore pause box", "box");
    check(
        "longshore ps --filter status=paused --format '{{.Names}}'",
        "box",
    );
    check("longshore unpause box", "box");
    check(
        "echo typed > in; longshore cp in box:/in; longshore exec box cat /in",
        "typed",
    );
    check(
        "longshore cp box:/in out; cat out; stat -c %U out",
        &format!("typed\n{}", user.name),
    );
    assert!(user.sh("longshore diff box").ok().contains("A /in"));
    user.sh("longshore commit -c 'CMD [\"cat\", \"/in\"]' box made")
        .ok();
    check("longshore run --rm made", "typed");
    check("longshore export box | tar -t in", "in");
    check("longshore stop box", "box");
    check("longshore logs box", "out");
    check("longshore inspect -f '{{.State.ExitCode}}' box", "143");
    check("longshore cp box:/in - | tar -xO", "typed");
    check(
        "longshore start box; longshore exec box cat /in",
        "box\ntyped",
    );
    check("longshore kill box; longshore wait box", "box\n137");
    check("longshore rm -v box; longshore ps -aq", "box");
    check(
        "longshore run --rm -v data:/d base stat -c %u:%g /d/f",
        "5:6",
    );
    check("longshore volume rm data; longshore volume ls -q", "data");
}

/// Removes all containers of a user in the end, also when the test fails.
struct Ending<'a>(&'a User);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0
            .sh("for id in $(longshore ps -aq); do longshore rm -fv $id; done");
    }
}
