//! `kill -9` at any moment: of builds, pulls, pushes, saves, loads and collections that work on one store at the same time, and
//! of the processes that they have started, one by one. Some of the builds share caches with other machines.
//!
//! A few dozen kills by default; `LONGSHORE_TEST_KILLS=500` asks for as many, `LONGSHORE_TEST_SEED` for another course of
//! events. Every ten kills, and at the end, `longshore store check` has to find nothing wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::support::{Place, Ran, Server, mounts_below};

/// Kills in an ordinary run.
const KILLS: u64 = 40;

/// Kills between two checks.
const KILLS_PER_CHECK: u64 = 10;

/// Commands at the same time, at most.
const WORKERS: u64 = 3;

/// A command is killed within this time of its start, in milliseconds, or runs to its end.
const MOMENTS: u64 = 160;

/// A command whose helper was killed ends within this time: longer than any machine takes.
const PATIENCE: Duration = Duration::from_secs(120);

const SHARED: &str = "\
FROM busybox AS made
ARG N
COPY files /files
RUN cat /files/* > /all && echo $N > /n
RUN --mount=type=cache,target=/cache echo $N >> /cache/log && wc -l < /cache/log > /lines
FROM busybox
COPY --from=made /all /n /
RUN dd if=/dev/zero of=/zeros bs=64k count=8 2>/dev/null
";

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // Xorshift: any spread will do.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

struct Churn {
    place: Place,
    registry: Server,
    context: PathBuf,
    from_registry: PathBuf,
    kills: AtomicU64,
    /// Of these, how many were of a helper alone.
    helpers: AtomicU64,
    /// Commands that were left alone and did what they were for.
    done: AtomicU64,
}

/// What a process has started and what that has started, as far as it runs.
fn helpers(of: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        if let Some(id) = name.to_str().and_then(|name| name.parse().ok())
            && let Some(parent) = parent(id)
        {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found = children.remove(&of).unwrap_or_default();
    let mut next = 0;
    while let Some(id) = found.get(next) {
        found.extend(children.remove(id).unwrap_or_default());
        next += 1;
    }
    found
}

/// The process that has started another; none if that is gone.
fn parent(id: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // After the name, which may have anything in it: the state, and the parent.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// Kills a helper of a process, and nothing that may have its number by now; whether it did.
fn kill_helper(of: u32, id: u32) -> bool {
    let number = i32::try_from(id).ok().and_then(Pid::from_raw);
    let Ok(handle) = pidfd_open(number.unwrap(), PidfdFlags::empty()) else {
        return false;
    };
    helpers(of).contains(&id) && pidfd_send_signal(&handle, Signal::KILL).is_ok()
}

impl Churn {
    fn new() -> Churn {
        let place = Place::with_busybox();
        let registry = Server::registry(&place.path("registry"));
        let files: Vec<(String, String)> = (0..30)
            .map(|n| (format!("files/{n}"), format!("file {n}\n").repeat(200)))
            .collect();
        let mut files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        files.push(("Dockerfile", SHARED));
        let context = place.context("context", &files);
        // Every build and pull collects as well.
        let policy = "[gc]\ninterval = \"0\"\nmax_used = \"1MB\"\nreserved = 0\n";
        std::fs::write(place.path("config.toml"), policy).unwrap();
        let base = format!("{}/base:1", registry.host);
        place.run(["tag", "busybox", &base]).ok();
        place.run(["push", "-q", &base]).ok();
        let dockerfile = format!("FROM {base}\nARG N\nRUN echo $N > /n\n");
        let from_registry = place.context("from-registry", &[("Dockerfile", &dockerfile)]);
        Churn {
            place,
            registry,
            context,
            from_registry,
            kills: AtomicU64::new(0),
            helpers: AtomicU64::new(0),
            done: AtomicU64::new(0),
        }
    }

    /// A command of any kind, on few enough names that the workers meet.
    fn command(&self, random: &mut Random) -> Vec<String> {
        let image = format!("image{}", random.below(4));
        let there = format!("{}/{image}:1", self.registry.host);
        let number = format!("N={}", random.below(6));
        let archive = self.place.path(&format!("archive{}.tar", random.below(3)));
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let words: Vec<String> = match random.below(15) {
            0..=3 => ["build", "-q", "-t", &image, "--build-arg", &number]
                .map(str::to_owned)
                .into_iter()
                .chain((random.below(4) == 0).then(|| "--no-cache".to_owned()))
                .chain([path(&self.context)])
                .collect(),
            4 => [
                "build",
                "-q",
                "-t",
                &there,
                "--push",
                "--build-arg",
                &number,
            ]
            .map(str::to_owned)
            .into_iter()
            .chain([path(&self.from_registry)])
            .collect(),
            5 => vec!["pull".to_owned(), "-q".to_owned(), there],
            6 => vec!["tag".to_owned(), image, there],
            7 => vec!["push".to_owned(), "-q".to_owned(), there],
            8 => vec!["rmi".to_owned(), image],
            9 => vec!["prune".to_owned(), "--all".to_owned()],
            10 => vec!["save".to_owned(), "-o".to_owned(), path(&archive), image],
            11..=13 => {
                let (from, to) = self.caches()[usize::from(random.below(2) == 0)].clone();
                ["build", "-q", "-t", &image, "--build-arg", &number]
                    .map(str::to_owned)
                    .into_iter()
                    .chain((random.below(3) > 0).then(|| format!("--cache-from={from}")))
                    .chain((random.below(3) > 0).then(|| format!("--cache-to={to},mode=max")))
                    .chain([path(&self.context)])
                    .collect()
            }
            _ => vec![
                "load".to_owned(),
                "-q".to_owned(),
                "-i".to_owned(),
                path(&archive),
            ],
        };
        words
    }

    /// Caches that builds share, in a folder and in the registry: to read from, and to write to.
    fn caches(&self) -> [(String, String); 2] {
        let folder = self.place.path("cache");
        let registry = format!("type=registry,ref={}/cache", self.registry.host);
        [
            (
                format!("type=local,src={}", folder.display()),
                format!("type=local,dest={}", folder.display()),
            ),
            (registry.clone(), registry),
        ]
    }

    /// Starts commands and kills most of them, until there were enough kills.
    fn work(&self, mut random: Random, until: u64) {
        while self.kills.load(Ordering::Relaxed) < until {
            let words = self.command(&mut random);
            let mut command = self.place.command(&words);
            command.env("LONGSHORE_CONFIG", self.place.path("config.toml"));
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            let child = command.spawn().unwrap();
            if random.below(3) == 0 {
                let output = child.wait_with_output().unwrap();
                let ran = Ran::from_output(format!("{words:?}"), &output);
                // An image or archive that is not there is in order, a panic or a store that fails is not.
                assert!(matches!(ran.code, Some(0 | 1 | 4)), "{ran}");
                self.done
                    .fetch_add(u64::from(ran.code == Some(0)), Ordering::Relaxed);
                continue;
            }
            if random.below(3) == 0 {
                self.kill_a_helper(child, &mut random, &words);
                continue;
            }
            let moment = Duration::from_micros(random.below(MOMENTS * 1000));
            self.kill_at(child, moment);
        }
    }

    fn kill_at(&self, mut child: Child, moment: Duration) {
        // The moment is what the test is about, and nothing waits for it.
        std::thread::sleep(moment);
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if !ended {
            self.kills.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Kills something that a command has started once there is anything, and waits for what the command makes of it.
    fn kill_a_helper(&self, mut child: Child, random: &mut Random, words: &[String]) {
        let of = child.id();
        let (since, mut killed) = (Instant::now(), false);
        // Of those that come one after the other, not always the first.
        let mut spared = random.below(4);
        while child.try_wait().unwrap().is_none() {
            let what = format!("it waits for a helper that was killed: {words:?}");
            assert!(since.elapsed() < PATIENCE, "{what}");
            let all = helpers(of);
            if !killed && !all.is_empty() {
                let chosen = usize::try_from(random.below(all.len() as u64)).unwrap();
                killed = spared == 0 && kill_helper(of, all[chosen]);
                spared = spared.saturating_sub(1);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if killed {
            self.kills.fetch_add(1, Ordering::Relaxed);
            self.helpers.fetch_add(1, Ordering::Relaxed);
        }
        let ran = Ran::from_output(format!("{words:?}"), &child.wait_with_output().unwrap());
        assert!(matches!(ran.code, Some(0..=4)), "{ran}");
    }

    fn check(&self, when: &str) {
        let ran = self.place.run(["store", "check"]);
        assert_eq!(ran.code, Some(0), "{when}: {ran}");
        let mounts = mounts_below(&self.place.store());
        assert!(mounts.is_empty(), "{when}: {mounts:?}");
    }
}

#[test]
fn killed_commands_leave_a_store_with_nothing_wrong() {
    let kills = number("LONGSHORE_TEST_KILLS", KILLS);
    let seed = number("LONGSHORE_TEST_SEED", 0x9e37_79b9);
    let churn = Churn::new();
    let mut until = 0;
    while until < kills {
        until = (until + KILLS_PER_CHECK).min(kills);
        std::thread::scope(|scope| {
            // Alone now and then: beside another a collection takes nothing that is younger than that.
            for worker in 0..1 + until / KILLS_PER_CHECK % WORKERS {
                let random = Random(seed.wrapping_mul(1 + until).wrapping_add(worker) | 1);
                let churn = &churn;
                scope.spawn(move || churn.work(random, until));
            }
        });
        churn.check(&format!("seed {seed}, after {until} kills"));
    }
    churn.place.wait_until_unused();
    churn.check("at the end");
    let done = churn.done.load(Ordering::Relaxed);
    let helpers = churn.helpers.load(Ordering::Relaxed);
    println!("{kills} kills, {helpers} of helpers, {done} commands done beside them");
    assert!(
        done > kills / 10,
        "most commands fail, so this tests nothing"
    );

    // What is left is leftovers, and one collection takes them all.
    churn.place.run(["prune", "--all"]).ok();
    let ran = churn.place.run(["store", "check"]);
    assert_eq!(ran.ok(), "");
    for folder in ["tmp", "locks", "sessions"] {
        let left = std::fs::read_dir(churn.place.store().join(folder)).unwrap();
        assert_eq!(left.count(), 0, "{folder}");
    }
    // The store works as if nothing had been.
    let build = ["build", "-q", "-t", "last", "--build-arg", "N=1"];
    churn.place.ok(build, [&churn.context]);
    assert_eq!(churn.place.sh("last", "cat /n"), "1");

    // What is in the caches is whole: who takes from them gets what was built, and has nothing to tell of.
    for (from, to) in churn.caches() {
        let other = Place::with_busybox();
        for round in 0..6 {
            let number = format!("N={round}");
            let flags = [
                "build",
                "-t",
                "x",
                "--build-arg",
                &number,
                "--progress",
                "plain",
            ];
            let words = flags
                .into_iter()
                .chain(["--cache-from", &from, "--cache-to", &to]);
            let ran = other.words(words, [&churn.context]);
            ran.ok();
            assert!(!ran.stderr.contains("warning"), "{ran}");
            assert_eq!(other.sh("x", "cat /n"), round.to_string());
        }
        assert_eq!(other.run(["store", "check"]).ok(), "");
    }
    let left = std::fs::read_dir(churn.place.path("cache/tmp")).unwrap();
    assert_eq!(left.count(), 0, "of a cache in a folder");

    // What was pushed is whole, whoever pushed it was killed or not.
    let fresh = Place::new();
    for image in 0..4 {
        let name = format!("{}/image{image}:1", churn.registry.host);
        let ran = fresh.run(["pull", "-q", &name]);
        assert!(matches!(ran.code, Some(0 | 4)), "{ran}");
    }
    assert_eq!(fresh.run(["store", "check"]).ok(), "");
}
