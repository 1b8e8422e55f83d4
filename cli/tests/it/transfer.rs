//! Images on their way: registries of both kinds, archives, credentials.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{Place, Ran, Server, tool};

/// An image of two layers, one of them its own.
fn small_image(place: &Place, name: &str) {
    place.add_busybox("busybox");
    let context = place.context(
        "ctx",
        &[("f", "1"), ("Dockerfile", "FROM busybox\nCOPY f /f\n")],
    );
    place.build(name, &context);
}

#[test]
fn what_is_pushed_is_pulled() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/team/app:1", registry.host);
    small_image(&place, &name);
    let id = place.run(["images", "-q", "--no-trunc", &name]).ok();
    let pushed = place.run(["push", &name]).ok();
    assert!(pushed.starts_with("1: digest: sha256:"), "{pushed}");
    // A second push has nothing to send.
    let again = place.run(["push", &name]);
    assert_eq!(again.ok(), pushed);
    assert!(again.stderr.contains("0 blobs sent"), "{again}");

    place.run(["rmi", &name]).ok();
    place
        .run(["run", "--rm", "no-such-image"])
        .fails(125, "no-such-image");
    assert_eq!(place.run(["pull", &name]).ok(), id);
    assert_eq!(place.sh(&name, "cat /f"), "1");

    let other = Place::new();
    assert_eq!(other.run(["pull", "-q", &name]).ok(), id);
    assert_eq!(other.sh(&name, "cat /f"), "1");
    let digest = pushed.rsplit(' ').next().unwrap();
    let by_digest = format!("{}/team/app@{digest}", registry.host);
    assert_eq!(Place::new().run(["pull", &by_digest]).ok(), id);
    // What is not in the store is pulled by `run`, and by FROM.
    assert_eq!(Place::new().sh(&name, "cat /f"), "1");
    let context = other.context(
        "from",
        &[("Dockerfile", &format!("FROM {name}\nRUN cat /f > /g\n"))],
    );
    let fresh = Place::new();
    fresh.build("built", &context);
    assert_eq!(fresh.sh("built", "cat /g"), "1");
}

/// Runs a command; most memory that it had at once, in bytes.
fn peak(command: &Command) -> u64 {
    let script = "import resource, subprocess, sys\ncode = subprocess.call(sys.argv[1:], stdout=2)\n\
                  print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\nsys.exit(code)";
    let mut python = Command::new("python3");
    python
        .args(["-c", script])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let told = Ran::of(&mut python).ok();
    told.parse::<u64>().unwrap() * 1024
}

#[test]
fn memory_does_not_grow_with_a_layer() {
    const LAYER: u64 = 256 << 20;
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/large:1", registry.host);
    let context = place.context("ctx", &[("Dockerfile", "FROM scratch\nCOPY f /f\n")]);
    let large = std::fs::File::create(context.join("f")).unwrap();
    std::io::copy(&mut std::io::repeat(b'x').take(LAYER), &mut &large).unwrap();
    place.build(&name, &context);
    let push = place.command(["push", "--compression", "none", &name]);
    let pushed = peak(&push);
    let other = Place::new();
    let pulled = peak(&other.command(["pull", &name]));
    let sizes = other.run(["images", "--format", "{{.Size}}", &name]).ok();
    assert_eq!(sizes, "268MB");
    for (what, bytes) in [("push", pushed), ("pull", pulled)] {
        assert!(bytes < LAYER / 2, "{what} had {bytes} bytes of memory");
    }
}

#[test]
fn build_pushes() {
    let place = Place::with_busybox();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/direct", registry.host);
    let context = place.context(
        "ctx",
        &[("f", "1"), ("Dockerfile", "FROM busybox\nCOPY f /f\n")],
    );
    place.ok(["build", "--push", "-t", &name], [&context]);
    assert_eq!(Place::new().sh(&name, "cat /f"), "1");
}

#[test]
fn several_tags_go_out_and_come_back() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let app = format!("{}/app", registry.host);
    let (one, two) = (format!("{app}:1"), format!("{app}:2"));
    small_image(&place, &one);
    place.run(["tag", &one, &two]).ok();
    let id = place.run(["images", "-q", "--no-trunc", &one]).ok();
    let skopeo = |name: &str| {
        let name = format!("docker://{name}");
        let raw = tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &name]);
        serde_json::from_str::<serde_json::Value>(&raw).unwrap()
    };

    let file = place.path("digests");
    let digest_of = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
    let told = place.ok(["push", &one, &two, "--digestfile"], [&file]);
    let digests: Vec<String> = told.lines().map(digest_of).collect();
    assert_eq!((digests.len(), &digests[0]), (2, &digests[1]), "{told}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), digests);
    place.ok(["push", "-q", &one, "--digestfile"], [&file]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), digests[0]);

    let line = place.run(["push", "--json", &one]).ok();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["name"], one);
    assert_eq!(
        (&value["digest"], &value["uploaded"]),
        (&digests[0].clone().into(), &0.into())
    );

    let kinds = |manifest: &serde_json::Value| -> Vec<String> {
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers
            .map(|layer| layer["mediaType"].as_str().unwrap().to_owned())
            .collect()
    };
    for (flags, ending) in [
        (
            &["--compression", "zstd", "--compression-level", "19"][..],
            "+zstd",
        ),
        (&["--compression", "none"], ".tar"),
        (&["--compression", "gzip"], "+gzip"),
    ] {
        let words = ["push", "--all-tags", &app];
        let told = place.run(words.iter().chain(flags)).ok();
        assert_eq!(told.lines().count(), 2, "{told}");
        for name in [&one, &two] {
            let kinds = kinds(&skopeo(name));
            assert_eq!(kinds.len(), 2);
            assert!(kinds.iter().all(|kind| kind.ends_with(ending)), "{kinds:?}");
        }
    }
    place
        .run(["push", "--compression", "xz", &one])
        .fails(2, "gzip, zstd, zstd:chunked, estargz or none");
    let level = [
        "push",
        "--compression",
        "gzip",
        "--compression-level",
        "13",
        &one,
    ];
    place.run(level).fails(2, "expected 1 to 12");
    place
        .run(["push", "-a", &one])
        .fails(2, "name a repository");
    place
        .run(["push", "-a", "nobody/knows"])
        .fails(1, "nobody/knows");

    let other = Place::new();
    assert_eq!(
        other.run(["pull", "-a", "-q", &app]).ok(),
        format!("{id}\n{id}")
    );
    let told = other.run(["images", &app]).ok();
    assert_eq!(told.lines().count(), 3, "{told}");
    let line = other.run(["pull", "--json", &two]).ok();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["id"], &value["fetched"]), (&id.into(), &0.into()));
    let told = other.run(["pull", "--platform", "linux/s390x", &one]);
    assert!(told.stderr.contains("not for linux/s390x"), "{told}");
    other
        .run(["pull", "--platform", "x/y/z/w", &one])
        .fails(2, "x/y/z/w");
}

#[test]
fn docker_registry_and_ours_share_a_folder() {
    let place = Place::new();
    let folder = place.path("registry");
    let (ours, theirs);
    {
        let registry = Server::registry(&folder);
        ours = format!("{}/app:ours", registry.host);
        small_image(&place, &ours);
        place.run(["push", &ours]).ok();
    }
    {
        let registry = Server::docker_registry(&folder);
        theirs = format!("{}/app:theirs", registry.host);
        let there = ours.replace(ours.split('/').next().unwrap(), &registry.host);
        let fresh = Place::new();
        fresh.run(["pull", &there]).ok();
        assert_eq!(fresh.sh(&there, "cat /f"), "1");
        place.run(["tag", &ours, &theirs]).ok();
        place.run(["push", &theirs]).ok();
    }
    let registry = Server::registry(&folder);
    for name in [&ours, &theirs] {
        let here = name.replace(name.split('/').next().unwrap(), &registry.host);
        let fresh = Place::new();
        fresh.run(["pull", &here]).ok();
        assert_eq!(fresh.sh(&here, "cat /f"), "1");
    }
}

#[test]
fn archives_of_both_kinds_are_read_back() {
    let place = Place::new();
    small_image(&place, "app:1");
    let id = place.run(["images", "-q", "--no-trunc", "app:1"]).ok();
    for format in ["oci", "docker"] {
        let archive = place.path(format);
        place.ok(
            ["save", "--format", format, "app:1", "busybox", "-o"],
            [&archive],
        );
        let other = Place::new();
        let loaded = other.ok(["load", "-i"], [&archive]);
        assert!(loaded.contains("app:1"), "{loaded}");
        assert_eq!(other.run(["images", "-q", "--no-trunc", "app:1"]).ok(), id);
        assert_eq!(other.sh("app:1", "cat /f"), "1");
        // And through pipes.
        let mut save = place.command(["save", "--format", format, "app:1"]);
        let mut save = save.stdout(Stdio::piped()).spawn().unwrap();
        let third = Place::new();
        let mut load = third.command(["load", "-q"]);
        load.stdin(save.stdout.take().unwrap());
        let loaded = Ran::of(&mut load).ok();
        assert!(save.wait().unwrap().success());
        assert_eq!(loaded, id);
    }
}

#[test]
fn credentials_are_checked_kept_and_forgotten() {
    let place = Place::new();
    let users = place.path("users");
    // bcrypt of `secret`, as `htpasswd -nbB user secret` prints it.
    let line = "user:$2y$05$c4WoMPo3SXsafkva.HHa6u7b1XOWKqA7XZANDrnv4IVny/8ABNR66\n";
    std::fs::write(&users, line).unwrap();
    let registry = Server::registry_with(
        &place.path("registry"),
        &["--htpasswd", users.to_str().unwrap()],
    );
    let name = format!("{}/private", registry.host);
    small_image(&place, &name);
    let refused = place.run(["push", &name]);
    refused.fails(4, "longshore login");

    let login = |password: &str| {
        let mut command =
            place.command(["login", "-u", "user", "--password-stdin", &registry.host]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
        Ran::from_output("login".to_owned(), &child.wait_with_output().unwrap())
    };
    assert_eq!(login("wrong").code, Some(4));
    assert!(!place.path("docker/config.json").exists());
    if login("secret").code != Some(0) {
        panic!("{}", login("secret"));
    }
    place.run(["push", &name]).ok();
    // The form that docker and podman read.
    let config = std::fs::read_to_string(place.path("docker/config.json")).unwrap();
    assert!(config.contains("\"auths\""), "{config}");
    place.run(["logout", &registry.host]).ok();
    place.run(["push", &name]).fails(4, "longshore login");
}

#[test]
fn listings_have_dockers_columns() {
    let place = Place::new();
    small_image(&place, "localhost:1/app:1");
    place.run(["tag", "localhost:1/app:1", "other"]).ok();
    let table = place.run(["images"]).ok();
    assert!(
        table.starts_with("REPOSITORY        TAG       IMAGE ID       CREATED"),
        "{table}"
    );
    assert!(table.contains("localhost:1/app   1 "), "{table}");
    let lines = place.run(["images", "--format", "json", "other"]).ok();
    let row: serde_json::Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(
        (&row["Repository"], &row["Tag"]),
        (&"other".into(), &"latest".into())
    );
    let history = place.run(["history", "other"]).ok();
    assert!(history.starts_with("IMAGE          CREATED"), "{history}");
    assert!(history.contains("COPY f /f"), "{history}");
    let removed = place.run(["rmi", "other", "localhost:1/app:1"]).ok();
    assert!(
        removed
            .starts_with("Untagged: other:latest\nUntagged: localhost:1/app:1\nDeleted: sha256:"),
        "{removed}"
    );
    place
        .run(["rmi", "other"])
        .fails(1, "no such image: `other`");
    place.run(["inspect", "other"]).fails(1, "no such image");
}

#[test]
fn nobody_reading_is_no_error() {
    let place = Place::with_busybox();
    let mut list = place
        .command(["images"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(list.stdout.take());
    let output = list.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn mirrors_of_our_own_settings_and_of_other_tools() {
    let place = Place::new();
    let mirror = Server::registry(&place.path("registry"));
    let there = format!("{}/hub/library/app:1", mirror.host);
    small_image(&place, &there);
    place.run(["push", &there]).ok();
    let id = place.run(["images", "-q", "--no-trunc", &there]).ok();

    // A registry that is not there, so that only the mirror can have it.
    let own = place.path("own.toml");
    let text = format!(
        "[registry.\"docker.io\"]\nmirrors = [\"{}/hub\"]\n",
        mirror.host
    );
    std::fs::write(&own, text).unwrap();
    let fresh = Place::new();
    let own = own.to_str().unwrap();
    assert_eq!(fresh.run(["--config", own, "pull", "app:1"]).ok(), id);
    assert_eq!(fresh.sh("app:1", "cat /f"), "1");

    let theirs = place.path("registries.conf");
    let text = format!(
        "[[registry]]\nprefix = \"nowhere.invalid/shop\"\nlocation = \"{0}/hub/library\"\n\
         [[registry]]\nlocation = \"{0}/secret\"\nblocked = true\n",
        mirror.host
    );
    std::fs::write(&theirs, text).unwrap();
    let fresh = Place::new();
    let with_theirs = |args: &[&str]| {
        let mut command = fresh.command(args);
        command.env("CONTAINERS_REGISTRIES_CONF", &theirs);
        Ran::of(&mut command)
    };
    assert_eq!(
        with_theirs(&["pull", "nowhere.invalid/shop/app:1"]).ok(),
        id
    );
    assert_eq!(fresh.sh("nowhere.invalid/shop/app:1", "cat /f"), "1");
    let blocked = format!("{}/secret/app:1", mirror.host);
    with_theirs(&["pull", &blocked]).fails(3, &format!("`{blocked}` is blocked by `"));
    std::fs::write(&theirs, "[[registry]]\nlocation = 3\n").unwrap();
    with_theirs(&["pull", &blocked]).fails(3, "line 2");
}

/// Which way a proxy looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToClients,
    ToServer,
}

/// A proxy that lets nothing more through one way once it has carried so many bytes, until it is told to go on: its address, and
/// how many bytes it has carried that way.
fn stalling_proxy(
    host: &str,
    way: Way,
    after: usize,
) -> (String, Arc<AtomicUsize>, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (carried, goes_on) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let (host, count, open) = (host.to_owned(), Arc::clone(&carried), Arc::clone(&goes_on));
    let carry = move |mut from: TcpStream, mut to: TcpStream| {
        let mut buffer = vec![0; 16 * 1024];
        let mut is_open = true;
        loop {
            let length = from.read(&mut buffer).unwrap_or(0);
            if length == 0 || (is_open && to.write_all(&buffer[..length]).is_err()) {
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            // What was cut off is read and goes nowhere, until its sender ends.
            if is_open {
                let carried = count.fetch_add(length, Ordering::SeqCst) + length;
                is_open = carried < after || open.load(Ordering::SeqCst);
            }
        }
    };
    std::thread::spawn(move || {
        // It ends with the test process.
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&host).unwrap());
            let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (watched, other) = match way {
                Way::ToServer => (up, (server, client)),
                Way::ToClients => ((server, client), up),
            };
            let carry = carry.clone();
            std::thread::spawn(move || carry(watched.0, watched.1));
            std::thread::spawn(move || {
                let (mut from, mut to) = other;
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
    });
    (address, carried, goes_on)
}

/// An image with one layer of random bytes, which no compression makes smaller.
fn large_image(place: &Place, name: &str, bytes: usize) {
    let context = place.context("ctx", &[("Dockerfile", "FROM scratch\nCOPY f /f\n")]);
    let mut random = std::fs::File::open("/dev/urandom")
        .unwrap()
        .take(bytes as u64);
    let mut file = std::fs::File::create(context.join("f")).unwrap();
    std::io::copy(&mut random, &mut file).unwrap();
    place.build(name, &context);
}

fn silent(place: &Place, arguments: [&str; 2]) -> std::process::Child {
    let mut command = place.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn a_push_that_was_killed_is_gone_on_with() {
    const LAYER: usize = 24 << 20;
    const MOST: usize = 20 << 20;
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let (proxy, carried, goes_on) = stalling_proxy(&registry.host, Way::ToServer, MOST);
    let name = format!("{proxy}/big");
    large_image(&place, &name, LAYER);
    let mut push = silent(&place, ["push", &name]);
    while carried.load(Ordering::SeqCst) < MOST {
        assert!(push.try_wait().unwrap().is_none(), "the push has ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    push.kill().unwrap();
    push.wait().unwrap();
    let before = carried.load(Ordering::SeqCst);
    goes_on.store(true, Ordering::SeqCst);

    place.run(["push", &name]).ok();
    let again = carried.load(Ordering::SeqCst) - before;
    // What was on its way when it was killed may or may not have come.
    assert!(again < LAYER / 2, "{again} bytes of {LAYER} once more");
    let id = place.run(["images", "-q", "--no-trunc", &name]).ok();
    assert_eq!(Place::new().run(["pull", &name]).ok(), id);
    place.wait_until_unused();
    assert_eq!(
        std::fs::read_dir(place.store().join("tmp"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_pull_that_was_killed_is_gone_on_with() {
    const LAYER: usize = 8 << 20;
    const HALF: usize = 5 << 20;
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/big", registry.host);
    large_image(&place, &name, LAYER);
    let id = place.run(["images", "-q", "--no-trunc", &name]).ok();
    place.run(["push", &name]).ok();

    let (proxy, carried, goes_on) = stalling_proxy(&registry.host, Way::ToClients, HALF);
    let name = format!("{proxy}/big");
    let other = Place::new();
    let mut pull = silent(&other, ["pull", &name]);
    // What has come is written at once, but for what tells how long it is.
    let part = || {
        let tmp = std::fs::read_dir(other.store().join("tmp"))
            .into_iter()
            .flatten();
        let parts = tmp.map(|entry| entry.unwrap());
        let part = parts.filter(|entry| entry.file_name().to_string_lossy().starts_with("part-"));
        let sizes = part.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        usize::try_from(sizes.max().unwrap_or(0)).unwrap()
    };
    while part() < HALF - 64 * 1024 {
        assert!(pull.try_wait().unwrap().is_none(), "the pull has ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    pull.kill().unwrap();
    pull.wait().unwrap();
    let kept = part();
    let before = carried.load(Ordering::SeqCst);
    goes_on.store(true, Ordering::SeqCst);

    assert_eq!(other.run(["pull", &name]).ok(), id);
    let again = carried.load(Ordering::SeqCst) - before;
    let rest = LAYER - kept;
    assert!(
        again < rest + 64 * 1024,
        "{again} bytes for the last {rest}"
    );
    other.wait_until_unused();
    assert_eq!(
        std::fs::read_dir(other.store().join("tmp"))
            .unwrap()
            .count(),
        0
    );
}
