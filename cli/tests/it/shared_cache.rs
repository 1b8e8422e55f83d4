//! Results that go from machine to machine: a machine is a store of its own. What is fetched is told by the requests that a
//! registry gets, never by time.

pub(crate) mod wire;

use std::path::{Path, PathBuf};

use crate::support::{Built, LONGSHORE, Place, Ran, Server};
use wire::Wire;

/// A stage whose layers are not in the image, and two ways to it. `HOST` is the registry of the base.
const DOCKERFILE: &str = "FROM HOST/base AS tool
RUN head -c 300000 /dev/urandom > /big && echo tool > /tool
COPY one /one
RUN cat /tool /one > /made
FROM HOST/base
COPY --from=tool /made /made
COPY two /two
RUN cat /made /two > /all
";

/// The commands of its steps.
const RUNS: [&str; 3] = [
    "head -c 300000 /dev/urandom > /big && echo tool > /tool",
    "cat /tool /one > /made",
    "cat /made /two > /all",
];

/// A registry, ours or Debian's, with a base image, behind a wire.
struct Peer {
    _server: Server,
    wire: Wire,
    place: Place,
}

impl Peer {
    fn start(which: fn(&Path) -> Server) -> Peer {
        let place = Place::new();
        let folder = place.path("registry");
        let server = which(&folder);
        let wire = Wire::to(&server.host);
        let base = format!("{}/base", wire.host);
        place.add_busybox(&base);
        place.run(["push", "-q", &base]).ok();
        Peer {
            _server: server,
            wire,
            place,
        }
    }

    /// The files of a build, with a file's content.
    fn context(&self, machine: &Place, one: &str) -> PathBuf {
        let dockerfile = DOCKERFILE.replace("HOST", &self.wire.host);
        let files = [("one", one), ("two", "2\n"), ("Dockerfile", &dockerfile)];
        machine.context("ctx", &files)
    }

    fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.wire.host)
    }
}

const PEERS: [fn(&Path) -> Server; 2] = [Server::registry, Server::docker_registry];

/// A build as CI runs it.
fn build(machine: &Place, context: &Path, flags: &[&str]) -> Ran {
    let words = ["build", "--progress", "plain"].into_iter();
    machine.words(words.chain(flags.iter().copied()), [context])
}

#[track_caller]
fn built(machine: &Place, context: &Path, flags: &[&str]) -> Built {
    let ran = build(machine, context, flags);
    ran.ok();
    Built::of(&ran)
}

/// Whether nothing ran but the look at the base.
fn did_nothing(built: &Built) -> bool {
    built.ran.iter().all(|step| step.starts_with("[internal]"))
}

#[test]
fn a_build_that_ends_fully_cached_moves_no_layer() {
    for peer in PEERS.map(Peer::start) {
        let (app, cache) = (peer.name("app"), peer.name("cache"));
        let to = format!("type=registry,ref={cache},mode=max");
        let first = Place::new();
        let context = peer.context(&first, "1\n");
        let flags = ["-t", &app, "--push", "--cache-to", &to];
        assert_eq!(built(&first, &context, &flags).runs(), RUNS);

        let second = Place::new();
        let context = peer.context(&second, "1\n");
        peer.wire.clear();
        let flags = ["-t", &app, "--push", "--cache-from", &cache];
        let again = built(&second, &context, &flags);
        assert!(did_nothing(&again), "{again:?}");
        let requests = peer.wire.requests();
        // One for each of the six steps, for each hint, and for an image of that name.
        let records = peer.wire.count("GET", "/v2/cache/manifests/");
        assert_eq!(records, 6 + 2 + 1, "{requests:#?}");
        // The base's configuration and nothing else; of uploads at most mounts.
        assert_eq!(peer.wire.count("GET", "/blobs/sha256"), 1, "{requests:#?}");
        assert!(peer.wire.received() < 40_000, "{}", peer.wire.received());
        assert!(layers(&second).is_empty(), "{:?}", layers(&second));

        // It is there all the same: what a container needs follows when it runs, and not a layer more.
        assert_eq!(second.sh(&app, "cat /all"), "tool\n1\n2");
        assert_eq!(layers(&second).len(), 4);
    }
}

#[test]
fn a_changed_file_reruns_what_depends_on_it_upon_layers_of_the_cache() {
    for peer in PEERS.map(Peer::start) {
        let cache = peer.name("cache:main");
        let to = format!("type=registry,ref={cache},mode=max");
        let first = Place::new();
        built(&first, &peer.context(&first, "1\n"), &["--cache-to", &to]);
        let second = Place::new();
        let context = peer.context(&second, "other\n");
        let again = built(&second, &context, &["-t", "x", "--cache-from", &cache]);
        assert_eq!(again.runs(), RUNS[1..]);
        assert_eq!(second.sh("x", "cat /all"), "tool\nother\n2");
        // Another name in the same repository is another cache.
        let third = Place::new();
        let other = peer.name("cache:other");
        let none = built(
            &third,
            &peer.context(&third, "1\n"),
            &["--cache-from", &other],
        );
        assert_eq!(none.runs(), RUNS);
    }
}

#[test]
fn a_push_whose_base_is_in_the_registry_moves_no_base_layer() {
    for peer in PEERS.map(Peer::start) {
        let machine = Place::new();
        let dockerfile = format!("FROM {}\nENV a=b\n", peer.name("base"));
        let context = machine.context("ctx", &[("Dockerfile", &dockerfile)]);
        peer.wire.clear();
        built(&machine, &context, &["-t", &peer.name("derived"), "--push"]);
        let requests = peer.wire.requests();
        assert_eq!(peer.wire.count("GET", "/blobs/sha256"), 1, "{requests:#?}");
        assert_eq!(peer.wire.count("POST", "mount="), 1, "{requests:#?}");
        // The configuration.
        assert_eq!(peer.wire.count("PUT", "/blobs/"), 1, "{requests:#?}");
        assert!(layers(&machine).is_empty());
        assert_eq!(machine.sh(&peer.name("derived"), "echo $a"), "b");
    }
}

#[test]
fn an_archive_of_a_fully_cached_build_unpacks_nothing() {
    let peer = Peer::start(Server::registry);
    let (app, cache) = (peer.name("app"), peer.name("cache"));
    let folder = peer.place.path("folder");
    let first = Place::new();
    let context = peer.context(&first, "1\n");
    let to = format!("type=registry,ref={cache},mode=max");
    let local = format!(
        "type=local,dest={},mode=max,compression=zstd",
        folder.display()
    );
    built(
        &first,
        &context,
        &["-t", &app, "--cache-to", &to, "--cache-to", &local],
    );
    let local = format!("type=local,src={}", folder.display());
    for from in [&cache, &local] {
        for kind in ["oci", "docker"] {
            let machine = Place::new();
            let context = peer.context(&machine, "1\n");
            let archive = machine.path("image.tar");
            let output = format!("type={kind},dest={}", archive.display());
            let flags = ["-t", &app, "-o", &output, "--cache-from", from];
            let ran = built(&machine, &context, &flags);
            assert!(did_nothing(&ran), "{from} {kind}: {ran:?}");
            assert!(layers(&machine).is_empty(), "{from} {kind}");
            // It is whole.
            let other = Place::new();
            other
                .run(["load", "-q", "-i", archive.to_str().unwrap()])
                .ok();
            assert_eq!(other.sh(&app, "cat /all"), "tool\n1\n2", "{from} {kind}");
        }
    }
    // A tree is made of layers.
    let machine = Place::new();
    let context = peer.context(&machine, "1\n");
    let out = machine.path("out");
    let output = format!("type=local,dest={}", out.display());
    built(&machine, &context, &["-o", &output, "--cache-from", &cache]);
    assert_eq!(layers(&machine).len(), 4);

    // A blob that is not what its record says is found out, and its step runs.
    for file in std::fs::read_dir(folder.join("blobs/sha256")).unwrap() {
        let file = file.unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let machine = Place::new();
    let context = peer.context(&machine, "1\n");
    let archive = machine.path("image.tar");
    let output = format!("type=oci,dest={}", archive.display());
    let flags = ["-t", &app, "-o", &output, "--cache-from", &local];
    let ran = build(&machine, &context, &flags);
    ran.ok();
    assert!(ran.stderr.contains("it runs again"), "{ran}");
    let other = Place::new();
    other
        .run(["load", "-q", "-i", archive.to_str().unwrap()])
        .ok();
    assert_eq!(other.sh(&app, "cat /all"), "tool\n1\n2");
    assert_eq!(machine.run(["store", "check"]).ok(), "");
}

/// Steps of a chain.
const CHAIN: usize = 12;

/// A chain of steps, each upon what the one before came to.
fn chain(peer: &Peer, machine: &Place, last: &str) -> PathBuf {
    let steps: String = (1..CHAIN)
        .map(|n| format!("RUN echo {n} > /{n}\n"))
        .collect();
    let base = peer.name("base");
    let dockerfile = format!("FROM {base}\n{steps}RUN echo {last} > /last\n");
    machine.context("chain", &[("Dockerfile", &dockerfile)])
}

/// Whether a request is for the record of a step.
fn is_record(request: &str) -> bool {
    let name = request.rsplit(['/', '-']).next().unwrap();
    request.starts_with("GET /v2/cache/manifests/") && name.len() == 64 && !request.contains("hint")
}

#[test]
fn the_records_of_a_chain_are_asked_for_together() {
    for peer in PEERS.map(Peer::start) {
        let cache = peer.name("cache:main");
        let to = format!("type=registry,ref={cache}");
        let first = Place::new();
        built(&first, &chain(&peer, &first, "a"), &["--cache-to", &to]);

        let second = Place::new();
        let context = chain(&peer, &second, "a");
        peer.wire.clear();
        peer.wire.hold(CHAIN, is_record);
        let again = built(&second, &context, &["-t", "x", "--cache-from", &cache]);
        assert!(again.runs().is_empty(), "{again:?}");
        let requests = peer.wire.requests();
        let records = requests.iter().filter(|request| is_record(request));
        assert_eq!(records.count(), CHAIN, "{requests:#?}");
        assert_eq!(peer.wire.count("GET", "main-hint-"), 2, "{requests:#?}");

        // Of another Dockerfile with the same base: what they share comes together, the rest has no record.
        let third = Place::new();
        let context = chain(&peer, &third, "b");
        peer.wire.clear();
        peer.wire.hold(CHAIN, is_record);
        let flags = ["--cache-from", &cache, "--cache-to", &to];
        let again = built(&third, &context, &flags);
        assert_eq!(again.runs(), ["echo b > /last"]);
        // That is found out once on reading, and once more on writing.
        let requests = peer.wire.requests();
        let records = requests.iter().filter(|request| is_record(request));
        assert_eq!(records.count(), CHAIN + 2, "{requests:#?}");

        // What is on this machine is not asked for.
        peer.wire.clear();
        peer.wire.hold(0, is_record);
        let context = chain(&peer, &third, "a");
        let again = built(&third, &context, &["--cache-from", &cache]);
        assert!(again.runs().is_empty(), "{again:?}");
        let requests = peer.wire.requests();
        let records = requests.iter().filter(|request| is_record(request));
        assert_eq!(records.count(), 1, "{requests:#?}");

        // What is known to be there is not asked for again, and a hint that says what it said is not written.
        let fourth = Place::new();
        let context = chain(&peer, &fourth, "a");
        peer.wire.clear();
        let again = built(&fourth, &context, &flags);
        assert!(again.runs().is_empty(), "{again:?}");
        let requests = peer.wire.requests();
        let records = requests.iter().filter(|request| is_record(request));
        assert_eq!(records.count(), CHAIN, "{requests:#?}");
        // That of the same bases was the other Dockerfile's.
        assert_eq!(peer.wire.count("PUT", "main-hint-"), 1, "{requests:#?}");
    }
}

#[test]
fn hints_that_are_wrong_change_nothing() {
    let peer = Peer::start(Server::registry);
    let folder = peer.place.path("folder");
    let to = format!("type=local,dest={},mode=max", folder.display());
    let from = format!("type=local,src={}", folder.display());
    let first = Place::new();
    let context = peer.context(&first, "1\n");
    built(&first, &context, &["--cache-to", &to]);
    let entries = || {
        let files = std::fs::read_dir(folder.join("entries")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    let is_hint = |path: &PathBuf| path.to_str().unwrap().contains("/hint-");
    let (hints, records): (Vec<_>, Vec<_>) = entries().into_iter().partition(is_hint);
    assert_eq!(hints.len(), 2);
    let good = std::fs::read_to_string(&hints[0]).unwrap();
    let record = std::fs::read_to_string(&records[0]).unwrap();
    let start = good.find("keys").unwrap();
    let end = good.find("]}\"}").unwrap();
    let other = format!(
        "{}keys\\\":[\\\"{}\\\"{}",
        &good[..start],
        "0".repeat(64),
        &good[end..]
    );
    for (what, text) in [
        ("empty", ""),
        ("no JSON", "{"),
        ("a record", &record),
        (
            "newer",
            &good.replace(r#"\"version\":1"#, r#"\"version\":9"#),
        ),
        ("of other steps", &other),
    ] {
        for hint in &hints {
            std::fs::write(hint, text).unwrap();
        }
        let machine = Place::new();
        let context = peer.context(&machine, "1\n");
        let ran = build(&machine, &context, &["-t", "x", "--cache-from", &from]);
        ran.ok();
        assert!(Built::of(&ran).runs().is_empty(), "{what}: {ran}");
        let damaged = ["empty", "no JSON", "a record"].contains(&what);
        let said = ran.stderr.matches("a hint in the cache").count();
        assert_eq!(said, usize::from(damaged), "{what}: {ran}");
        // Whoever writes next mends them.
        let flags = ["--cache-from", &from, "--cache-to", &to];
        assert!(built(&machine, &context, &flags).runs().is_empty());
        assert_eq!(std::fs::read_to_string(&hints[0]).unwrap(), good, "{what}");
    }
}

#[test]
fn an_image_can_be_its_own_cache() {
    for peer in PEERS.map(Peer::start) {
        let app = peer.name("app");
        let first = Place::new();
        let flags = ["-t", &app, "--push", "--cache-to", "type=inline"];
        built(&first, &peer.context(&first, "1\n"), &flags);
        let second = Place::new();
        let context = second.context(
            "small",
            &[(
                "Dockerfile",
                &format!("FROM {}\nRUN echo made\n", peer.name("base")),
            )],
        );
        let flags = ["-t", &app, "--push", "--cache-to", "type=inline"];
        built(&second, &context, &flags);
        let third = Place::new();
        let context = third.context(
            "small",
            &[(
                "Dockerfile",
                &format!("FROM {}\nRUN echo made\n", peer.name("base")),
            )],
        );
        peer.wire.clear();
        let again = built(&third, &context, &["--cache-from", &app]);
        assert!(did_nothing(&again), "{again:?}");
        assert_eq!(again.cached.len(), 1);
        assert!(layers(&third).is_empty());
    }
}

#[test]
fn min_is_what_the_image_has_and_max_is_all() {
    let peer = Peer::start(Server::registry);
    let count = |mode: &str| {
        let machine = Place::new();
        let folder = machine.path("cache");
        let to = format!("type=local,dest={},mode={mode}", folder.display());
        built(
            &machine,
            &peer.context(&machine, "1\n"),
            &["--cache-to", &to],
        );
        std::fs::read_dir(folder.join("entries")).unwrap().count()
    };
    // COPY --from by two keys, COPY and RUN by one, and two hints.
    assert_eq!(count("min"), 4 + 2);
    assert_eq!(count("max"), 7 + 2);
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    for (peer, local) in [
        (Peer::start(Server::docker_registry), false),
        (Peer::start(Server::registry), true),
    ] {
        let folder = peer.place.path("folder");
        let (to, from) = match local {
            true => (
                format!("type=local,dest={},mode=max", folder.display()),
                format!("type=local,src={}", folder.display()),
            ),
            false => {
                let cache = peer.name("cache");
                (format!("type=registry,ref={cache},mode=max"), cache)
            }
        };
        let machines: Vec<Place> = (0..6).map(|_| Place::new()).collect();
        let contexts: Vec<PathBuf> = machines
            .iter()
            .enumerate()
            .map(|(number, machine)| peer.context(machine, &format!("{number}\n")))
            .collect();
        std::thread::scope(|scope| {
            for (machine, context) in machines.iter().zip(&contexts) {
                let to = &to;
                scope.spawn(move || built(machine, context, &["--cache-to", to]));
            }
        });
        let reader = Place::new();
        for number in 0..6 {
            let context = peer.context(&reader, &format!("{number}\n"));
            let again = built(&reader, &context, &["-t", "x", "--cache-from", &from]);
            // Whose first step came first is everybody's; what others built upon theirs is a step that runs.
            assert!(!again.runs().contains(&RUNS[0]), "{again:?}");
            assert_eq!(reader.sh("x", "cat /all"), format!("tool\n{number}\n2"));
        }
    }
}

#[test]
fn what_fails_to_be_read_is_a_warning_and_what_fails_to_be_written_an_error() {
    let peer = Peer::start(Server::registry);
    let machine = Place::new();
    let context = peer.context(&machine, "1\n");
    let nobody = format!("127.0.0.1:{}/cache", crate::support::free_port());
    let ran = build(&machine, &context, &["--cache-from", &nobody]);
    ran.ok();
    assert_eq!(Built::of(&ran).runs(), RUNS);
    let said = ran.stderr.matches("cannot read the cache").count();
    assert_eq!(said, 1, "{ran}");
    let to = format!("type=registry,ref={nobody}");
    let failed = build(&machine, &context, &["-t", "x", "--cache-to", &to]);
    failed.fails(3, "cannot write the cache");
    // The image was made before.
    assert_eq!(machine.sh("x", "cat /all"), "tool\n1\n2");
    let to = format!("{to},ignore-error=true");
    let ran = build(&machine, &context, &["--cache-to", &to]);
    ran.ok();
    assert!(
        ran.stderr.contains("warning: cannot write the cache"),
        "{ran}"
    );
}

#[test]
fn a_registry_that_dies_in_the_middle_costs_what_it_had() {
    let peer = Peer::start(Server::registry);
    let cache = peer.name("cache");
    let to = format!("type=registry,ref={cache},mode=max");
    let first = Place::new();
    let context = peer.context(&first, "1\n");
    built(&first, &context, &[]);
    // At any request of an export.
    for requests in [3, 12] {
        peer.wire.cut_after(requests);
        let failed = build(&first, &context, &["--cache-to", &to]);
        failed.fails(3, "cannot write the cache");
        peer.wire.cut_after(-1);
    }
    built(&first, &context, &["--cache-to", &to]);
    // At any request of an import; the base is here.
    for requests in [2, 5] {
        let machine = Place::new();
        machine.add_busybox(&peer.name("base"));
        let context = peer.context(&machine, "1\n");
        peer.wire.cut_after(requests);
        let ran = build(&machine, &context, &["-t", "x", "--cache-from", &cache]);
        peer.wire.cut_after(-1);
        ran.ok();
        assert_eq!(machine.sh("x", "cat /all"), "tool\n1\n2");
    }
}

#[test]
fn damage_is_found_said_once_and_mended() {
    let peer = Peer::start(Server::registry);
    let first = Place::new();
    let context = peer.context(&first, "1\n");
    let folder = peer.place.path("folder");
    let to = format!("type=local,dest={},mode=max", folder.display());
    let from = format!("type=local,src={}", folder.display());
    built(&first, &context, &["--cache-to", &to]);
    let all = |name: &str| {
        let files = std::fs::read_dir(folder.join(name)).unwrap();
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    let mend = |what: &str| {
        let machine = Place::new();
        let context = peer.context(&machine, "1\n");
        // An output that reads every layer.
        let out = machine.path("out");
        let output = format!("type=local,dest={}", out.display());
        let flags = ["-o", &output, "--cache-from", &from, "--cache-to", &to];
        let ran = build(&machine, &context, &flags);
        ran.ok();
        let made = std::fs::read_to_string(out.join("all")).unwrap();
        assert_eq!(made, "tool\n1\n2\n", "{what}");
        ran
    };
    for file in all("blobs/sha256") {
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    let ran = mend("changed blobs");
    assert!(ran.stderr.contains("it runs again"), "{ran}");
    let ran = mend("mended blobs");
    assert!(Built::of(&ran).runs().is_empty(), "{ran}");
    for file in all("blobs/sha256") {
        std::fs::remove_file(&file).unwrap();
    }
    mend("no blobs");
    for file in all("entries") {
        std::fs::write(&file, "{").unwrap();
    }
    let ran = mend("no records");
    assert!(ran.stderr.contains("is ignored: it is damaged"), "{ran}");
    for file in all("entries") {
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(r#"\"version\":1"#, r#"\"version\":9"#)).unwrap();
    }
    // Hints are written over by anybody.
    let records = || {
        let files = all("entries").into_iter();
        files.filter(|file| !file.to_str().unwrap().contains("/hint-"))
    };
    let before: Vec<_> = records().map(|f| std::fs::read(f).unwrap()).collect();
    let ran = mend("newer records");
    assert_eq!(
        ran.stderr.matches("records of a newer longshore").count(),
        1,
        "{ran}"
    );
    let after: Vec<_> = records().map(|f| std::fs::read(f).unwrap()).collect();
    assert!(before.iter().all(|entry| after.contains(entry)));
}

#[test]
fn every_kind_keeps_what_it_is_given() {
    let peer = Peer::start(Server::registry);
    let s3 = Server::s3();
    let wire = Wire::to(&s3.host);
    let folder = peer.place.path("folder");
    let bucket = format!(
        "type=s3,bucket=cache,endpoint_url=http://{},use_path_style=true,access_key_id=a,secret_access_key=b,prefix=p",
        wire.host
    );
    let kinds = [
        (
            format!("type=local,dest={}", folder.display()),
            format!("type=local,src={}", folder.display()),
        ),
        (
            format!("type=registry,ref={}", peer.name("kind")),
            peer.name("kind"),
        ),
        (bucket.clone(), bucket),
    ];
    for (to, from) in &kinds {
        for compression in ["gzip", "zstd"] {
            let first = Place::new();
            let context = peer.context(&first, compression);
            let to = format!("{to},mode=max,compression={compression}");
            // What is everybody's first step is taken from there, so that all can follow.
            built(&first, &context, &["--cache-from", from, "--cache-to", &to]);
            // What is there is not written again.
            let ran = build(&first, &context, &["--cache-to", &to]);
            assert!(
                ran.stderr.contains(": 0 results written, 6 were there"),
                "{ran}"
            );
            let second = Place::new();
            let context = peer.context(&second, compression);
            wire.clear();
            let again = built(&second, &context, &["-t", "x", "--cache-from", from]);
            assert!(again.runs().is_empty(), "{from}: {again:?}");
            if from.contains("s3") {
                assert!(
                    wire.count("GET", "/entries/") <= 8,
                    "{:#?}",
                    wire.requests()
                );
            }
            assert_eq!(second.sh("x", "cat /all"), format!("tool\n{compression}2"));
        }
    }
}

#[test]
fn cache_mounts_go_along() {
    let peer = Peer::start(Server::docker_registry);
    let dockerfile = format!(
        "FROM {}\nARG round\nRUN --mount=type=cache,target=/c,id=kept --mount=type=cache,target=/d echo $round >> /c/log; echo $round >> /d/log; cat /c/log | tr '\\n' ' ' > /c-log; cat /d/log | tr '\\n' ' ' > /d-log\n",
        peer.name("base")
    );
    let round = |machine: &Place, number: &str, flags: &[&str]| {
        let context = machine.context("ctx", &[("Dockerfile", &dockerfile)]);
        let arg = format!("round={number}");
        let flags = [&["-t", "x", "--build-arg", &arg], flags].concat();
        built(machine, &context, &flags);
        machine.sh("x", "echo $(cat /c-log) / $(cat /d-log)")
    };
    let folder = peer.place.path("folder");
    let local = format!("type=local,dest={},mounts=kept", folder.display());
    let registry = format!("type=registry,ref={},mounts=all", peer.name("cache"));
    let first = Place::new();
    assert_eq!(
        round(
            &first,
            "1",
            &["--cache-to", &local, "--cache-to", &registry]
        ),
        "1 / 1"
    );
    let local = format!("type=local,src={},mounts=all", folder.display());
    let registry_from = format!("type=registry,ref={},mounts=all", peer.name("cache"));
    assert_eq!(
        round(&Place::new(), "2", &["--cache-from", &local]),
        "1 2 / 2"
    );
    let second = Place::new();
    let flags = ["--cache-from", &registry_from, "--cache-to", &registry];
    assert_eq!(round(&second, "2", &flags), "1 2 / 1 2");
    // What is here already stays; and who does not ask for mounts gets none.
    assert_eq!(
        round(&first, "3", &["--cache-from", &registry_from]),
        "1 3 / 1 3"
    );
    assert_eq!(
        round(&Place::new(), "4", &["--cache-from", &peer.name("cache")]),
        "4 / 4"
    );
    let one = format!("type=registry,ref={},mounts=/d", peer.name("cache"));
    assert_eq!(
        round(&Place::new(), "5", &["--cache-from", &one]),
        "5 / 1 2 5"
    );
    // A mount's content that is damaged is nobody's.
    for file in std::fs::read_dir(folder.join("blobs/sha256")).unwrap() {
        std::fs::write(file.unwrap().path(), "x").unwrap();
    }
    let third = Place::new();
    let context = third.context("ctx", &[("Dockerfile", &dockerfile)]);
    let ran = build(
        &third,
        &context,
        &["--build-arg", "round=6", "--cache-from", &local],
    );
    ran.ok();
    assert!(ran.stderr.contains("begins without its content"), "{ran}");
}

#[test]
fn several_caches_are_asked_and_written() {
    let peer = Peer::start(Server::registry);
    let first = Place::new();
    let context = peer.context(&first, "1\n");
    let folder = first.path("folder");
    let local = format!("type=local,dest={}", folder.display());
    let registry = format!("type=registry,ref={},mode=max", peer.name("cache"));
    built(
        &first,
        &context,
        &["--cache-to", &local, "--cache-to", &registry],
    );
    // The folder has what is in the image, the registry all; one alone does not do.
    let second = Place::new();
    let context = peer.context(&second, "1\n");
    let local = format!("type=local,src={}", folder.display());
    let cache = peer.name("cache");
    let again = built(
        &second,
        &context,
        &["--cache-from", &local, "--cache-from", &cache],
    );
    assert!(again.runs().is_empty(), "{again:?}");
    let third = Place::new();
    let context = peer.context(&third, "1\n");
    assert_eq!(
        built(&third, &context, &["--cache-from", &local]).runs(),
        RUNS[..2]
    );
}

#[test]
fn a_cache_goes_from_place_to_place() {
    let peer = Peer::start(Server::docker_registry);
    let first = Place::new();
    let context = peer.context(&first, "1\n");
    let to = format!("type=registry,ref={},mode=max", peer.name("one/cache"));
    built(&first, &context, &["--cache-to", &to]);
    // From one repository to another of the registry: linked, not moved.
    let second = Place::new();
    let context = peer.context(&second, "1\n");
    let to = format!("type=registry,ref={},mode=max", peer.name("two/cache"));
    peer.wire.clear();
    built(
        &second,
        &context,
        &["--cache-from", &peer.name("one/cache"), "--cache-to", &to],
    );
    assert_eq!(peer.wire.count("GET", "/v2/one/cache/blobs/"), 0);
    assert!(peer.wire.received() < 60_000, "{}", peer.wire.received());
    // From there to a folder.
    let third = Place::new();
    let context = peer.context(&third, "1\n");
    let folder = third.path("folder");
    let to = format!(
        "type=local,dest={},mode=max,compression=zstd",
        folder.display()
    );
    built(
        &third,
        &context,
        &["--cache-from", &peer.name("two/cache"), "--cache-to", &to],
    );
    let fourth = Place::new();
    let context = peer.context(&fourth, "1\n");
    let from = format!("type=local,src={}", folder.display());
    let again = built(&fourth, &context, &["-t", "x", "--cache-from", &from]);
    assert!(again.runs().is_empty(), "{again:?}");
    assert_eq!(fourth.sh("x", "cat /all"), "tool\n1\n2");
}

#[test]
fn mistakes_are_told_before_anything_is_built() {
    let place = Place::new();
    let context = place.context("ctx", &[("Dockerfile", "FROM scratch\n")]);
    let check = |flags: [&str; 2], expected: &str| {
        build(&place, &context, &flags).fails(2, expected);
    };
    check(["--cache-to", "type=local"], "`dest` is missing");
    check(
        ["--cache-from", "type=inline"],
        "an inline cache is in an image",
    );
    check(["--cache-to", "type=gha"], "type=gha is not supported");
    assert!(Path::new(LONGSHORE).exists());
}

/// The layers that a machine has unpacked.
fn layers(machine: &Place) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(machine.store().join("layers")).unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}
