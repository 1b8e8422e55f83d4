//! Builds that are ended from outside, at every kind of moment: nothing runs on, nothing stays mounted or locked, and the
//! store is as good as before.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::sharing::{Gate, Running, step};
use crate::support::{Place, Server, signal};

/// How a build is ended, and how it then is.
const ENDINGS: [(&str, Option<i32>); 3] = [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)];

/// Ends a build; `may_be_done` where it may come to its own end before.
fn end(child: &mut Child, name: &str, code: Option<i32>, may_be_done: bool) {
    signal(child, name);
    let status: ExitStatus = child.wait().unwrap();
    let done = may_be_done && status.success();
    let killed = code.is_none() && status.signal() == Some(9);
    assert!(
        done || killed || (code.is_some() && status.code() == code),
        "SIG{name}: {status}"
    );
}

/// Nothing of the build is left, and the next one builds.
fn check_store(place: &Place, what: &str) {
    let store = place.store();
    wait_until(
        || users(&store).is_empty(),
        || format!("{what}: still there: {:?}", users(&store)),
    );
    // A process that writes the store out in the background may look at one for a moment.
    wait_until(
        || held(&store).is_empty(),
        || format!("{what}: held: {:?}", held(&store)),
    );
    place.run(["store", "check"]).ok();
}

/// Locks that somebody holds.
fn held(store: &Path) -> Vec<PathBuf> {
    let locks = std::fs::read_dir(store.join("locks")).unwrap();
    let locks = locks.map(|entry| entry.unwrap().path());
    let is_held = |path: &PathBuf| {
        let Ok(file) = std::fs::File::open(path) else {
            return false;
        };
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&file, lock).is_err()
    };
    locks.filter(is_held).collect()
}

/// Processes that have the store mounted, or something in it open.
fn users(store: &Path) -> Vec<String> {
    let store = store.to_str().unwrap();
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        let mounts = std::fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        let mounted = mounts.lines().filter(|line| line.contains(store));
        users.extend(mounted.map(|line| format!("{}: {line}", process.display())));
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten();
        let open = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        let open = open.filter(|path| path.to_string_lossy().contains(store));
        users.extend(open.map(|path| format!("{}: {}", process.display(), path.display())));
    }
    users
}

fn wait_until(done: impl Fn() -> bool, otherwise: impl Fn() -> String) {
    let started = Instant::now();
    while !done() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{}",
            otherwise()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn in_the_middle_of_a_step() {
    let place = Place::with_busybox();
    let dockerfile = format!("FROM busybox\n{}", step("/got"));
    let context = place.context("ctx", &[("Dockerfile", &dockerfile)]);
    let gate = Gate::new();
    for (name, code) in ENDINGS {
        let mut build = Running::start(&mut gate.build(&place, &context, &[]));
        let begun = gate.begun();
        end(&mut build.child, name, code, false);
        begun.wait_until_dead();
        check_store(&place, name);
    }
    let last = Running::start(&mut gate.build(&place, &context, &["-t", "last"]));
    gate.begun().go("well");
    last.end().ok();
    assert_eq!(place.sh("last", "cat /got"), "well");
}

#[test]
fn while_another_is_waited_for() {
    let place = Place::with_busybox();
    let dockerfile = format!("FROM busybox\n{}", step("/got"));
    let context = place.context("ctx", &[("Dockerfile", &dockerfile)]);
    let gate = Gate::new();
    let flags = ["--progress", "plain"];
    let first = Running::start(&mut gate.build(&place, &context, &flags));
    let begun = gate.begun();
    for (name, code) in ENDINGS {
        let mut second = Running::start(&mut gate.build(&place, &context, &flags));
        second.until("waiting for another longshore");
        end(&mut second.child, name, code, false);
    }
    begun.go("well");
    first.end().ok();
    check_store(&place, "the first");
}

#[test]
fn in_the_middle_of_a_copy() {
    let place = Place::new();
    let context = place.context("ctx", &[("Dockerfile", "FROM scratch\nCOPY many /many\n")]);
    std::fs::create_dir(context.join("many")).unwrap();
    for number in 0..5_000 {
        let text = format!("{number} ").repeat(400);
        std::fs::write(context.join("many").join(number.to_string()), text).unwrap();
    }
    for (name, code) in ENDINGS {
        let mut command = place.command(["build", "--no-cache", "--progress", "plain"]);
        let mut build = Running::start(command.arg(&context));
        // The step's own line: it has begun, and has thousands of files to copy.
        build.until("COPY many /many");
        end(&mut build.child, name, code, true);
        check_store(&place, name);
    }
    place.ok(["build", "-t", "last"], [&context]);
    check_store(&place, "the last");
}

/// Passes connections on to a registry, but no more than so many bytes of its answers.
struct Stalling {
    host: String,
    stalled: mpsc::Receiver<()>,
}

impl Stalling {
    fn before(server: &Server, bytes: usize) -> Stalling {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (tell, stalled) = mpsc::channel();
        let to = server.host.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (to, tell) = (to.clone(), tell.clone());
                std::thread::spawn(move || pass(client, &to, bytes, &tell));
            }
        });
        Stalling { host, stalled }
    }
}

/// Passes one connection on, both ways, until it has had enough.
fn pass(client: TcpStream, to: &str, bytes: usize, tell: &mpsc::Sender<()>) {
    let server = TcpStream::connect(to).unwrap();
    let (mut requests, mut onwards) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up = std::thread::spawn(move || {
        let _ended = std::io::copy(&mut requests, &mut onwards);
        let _closed = onwards.shutdown(Shutdown::Write);
    });
    let (mut answers, mut client) = (server, client);
    let mut passed = 0;
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = answers.read(&mut buffer) {
        if client.write_all(&buffer[..read]).is_err() {
            break;
        }
        passed += read;
        if passed > bytes {
            let _nobody_cares = tell.send(());
            // Until the client goes away.
            let _joined = up.join();
            return;
        }
    }
    let _closed = client.shutdown(Shutdown::Write);
}

#[test]
fn in_the_middle_of_a_pull() {
    let place = Place::with_busybox();
    let server = Server::registry(&place.path("registry"));
    let name = format!("{}/busybox:1", server.host);
    place.run(["tag", "busybox", &name]).ok();
    place.run(["push", &name]).ok();
    for (signal_name, code) in ENDINGS {
        let stalling = Stalling::before(&server, 100_000);
        let mine = Place::new();
        let dockerfile = format!("FROM {}/busybox:1\nRUN echo done > /done\n", stalling.host);
        let context: PathBuf = mine.context("ctx", &[("Dockerfile", &dockerfile)]);
        let mut command = mine.command(["build", "--progress", "plain"]);
        let mut build = Running::start(command.arg(&context));
        stalling.stalled.recv().unwrap();
        end(&mut build.child, signal_name, code, false);
        check_store(&mine, signal_name);
        let dockerfile = format!("FROM {name}\nRUN echo done > /done\n");
        std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        mine.ok(["build", "-t", "last"], [&context]);
        assert_eq!(mine.sh("last", "cat /done"), "done");
        check_store(&mine, "the last");
    }
}
