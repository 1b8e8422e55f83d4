//! Pushes, pulls and copies of the compiled command against a registry that does everything wrong: cuts, stalls, lies about
//! lengths, ranges, digests and types, redirects in circles, refuses for ever or in bursts, and sends headers and documents
//! without end. Each run ends in the right bytes, or in one clear error with nothing half-visible; the next one, on a sound
//! line, gets the right bytes whatever the first one left.
//!
//! A few dozen runs by default; `LONGSHORE_TEST_FAULTS=3000` asks for as many, `LONGSHORE_TEST_SEED` for others.

mod proxy;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proxy::{About, Armed, Fault, Proxy};
use store::oci::Digest;

use crate::support::{Place, Ran, Server};

/// Runs in an ordinary test.
const RUNS: u64 = 40;

/// Runs at the same time.
const WORKERS: u64 = 3;

/// A command ends within this time, whatever it meets: longer than any machine takes.
const PATIENCE: Duration = Duration::from_secs(180);

/// A layer of which several ranges are read at once, in bytes.
const LARGE: usize = 17 << 20;

/// Short waits, so that thousands of runs end today.
const IMPATIENT: &str = "[transfer]\nattempts = 3\nretry_wait = \"4ms\"\nidle_timeout = \"400ms\"\n\
                         answer_timeout = \"400ms\"\nconnect_timeout = \"5s\"\n";

/// Numbers that look random and are the same each time (SplitMix64: neighbouring seeds have nothing in common).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn thousandths(&mut self) -> usize {
        usize::try_from(self.below(1001)).unwrap()
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap()]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.take(length / 8).flatten().collect()
    }
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// Some faults for a run, one of them at least likely to be met.
fn faults(random: &mut Random) -> Vec<Armed> {
    let count = 1 + random.below(3);
    (0..count).map(|_| armed(random)).collect()
}

fn armed(random: &mut Random) -> Armed {
    let fault = match random.below(22) {
        0 => Fault::Close,
        1 | 2 => Fault::CutRequest(random.thousandths()),
        3 => Fault::Lost,
        4 | 5 => Fault::CutAnswer(random.thousandths()),
        6 => Fault::Stall(random.thousandths()),
        7 | 8 => Fault::Status(random.of(&[429, 500, 502, 503, 400, 403, 404, 416])),
        9 => Fault::Unauthorized {
            bearer: random.below(2) == 0,
        },
        10 => Fault::Circle,
        11 => Fault::Misdirected,
        12 => Fault::Flood,
        13 => Fault::Interim,
        14 => Fault::Endless {
            announced: random.below(2) == 0,
        },
        15 => Fault::Garbage,
        16 => Fault::Length(random.of(&[-1000, -1, 1, 1000, 1 << 40])),
        17 => Fault::Flip(random.thousandths()),
        18 => Fault::Type(random.of(&[
            "text/html",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ])),
        19 => Fault::Digest,
        20 => Fault::Range,
        _ => match random.below(2) {
            0 => Fault::Offset(random.of(&[-1000, -1, 1, 1000, 1 << 30])),
            _ => Fault::Bare,
        },
    };
    Armed {
        about: random.of(&[
            About::Anything,
            About::Manifests,
            About::Blobs,
            About::Uploads,
        ]),
        skipped: random.below(4),
        times: random.of(&[1, 2, 3, u64::MAX]),
        fault,
    }
}

/// An image that all runs move.
struct Image {
    name: &'static str,
    /// Of its manifest in the registry.
    digest: String,
    /// In a store.
    id: String,
}

struct World {
    place: Place,
    registry: Server,
    impatient: PathBuf,
    small: Image,
    large: Image,
    succeeded: AtomicU64,
    failed: AtomicU64,
    struck: AtomicU64,
}

/// What a run does.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Push,
    Pull,
    /// Between repositories of one registry, where blobs are mounted, and between two, where they are not.
    Between {
        two: bool,
    },
    FromLayout,
    ToLayout,
    ToArchive,
    ToStore,
}

const DEEDS: [Deed; 9] = [
    Deed::Push,
    Deed::Push,
    Deed::Pull,
    Deed::Pull,
    Deed::Between { two: true },
    Deed::Between { two: false },
    Deed::FromLayout,
    Deed::ToLayout,
    Deed::ToArchive,
];

fn image(place: &Place, registry: &str, name: &'static str, layers: &[usize]) -> Image {
    let mut random = Random(layers.len() as u64);
    let mut dockerfile = "FROM scratch\n".to_owned();
    let context = place.context(name, &[]);
    for (at, length) in layers.iter().enumerate() {
        std::fs::write(context.join(format!("f{at}")), random.bytes(*length)).unwrap();
        dockerfile += &format!("COPY f{at} /f{at}\n");
    }
    std::fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    place.ok(["build", "-q", "-t", name], [&context]);
    let there = format!("{registry}/from/{name}:1");
    place.run(["tag", name, &there]).ok();
    let pushed = place.run(["push", "--json", &there]).ok();
    let pushed: serde_json::Value = serde_json::from_str(&pushed).unwrap();
    let layout = format!("oci:{}:1", place.path(&format!("layout-{name}")).display());
    place.run(["copy", "-q", &there, &layout]).ok();
    Image {
        name,
        digest: pushed["digest"].as_str().unwrap().to_owned(),
        id: place.run(["images", "-q", "--no-trunc", name]).ok(),
    }
}

/// Runs a command to its end, which comes.
fn ends(place: &Place, config: Option<&Path>, words: &[&str]) -> Ran {
    let mut command = place.command(words);
    if let Some(config) = config {
        command.env("LONGSHORE_CONFIG", config);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > PATIENCE {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!(
                "it does not end: {}",
                Ran::from_output(format!("{words:?}"), &output)
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ran::from_output(format!("{words:?}"), &child.wait_with_output().unwrap())
}

impl World {
    fn new() -> World {
        let place = Place::new();
        let registry = Server::registry(&place.path("registry"));
        let impatient = place.path("impatient.toml");
        std::fs::write(&impatient, IMPATIENT).unwrap();
        let small = image(&place, &registry.host, "small", &[200_000, 3_000, 90_000]);
        let large = image(&place, &registry.host, "large", &[LARGE]);
        World {
            place,
            registry,
            impatient,
            small,
            large,
            succeeded: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        }
    }

    /// One run; what it did is told where something is wrong with it.
    fn run(&self, seed: u64) {
        let mut random = Random(seed);
        let image = match random.below(10) {
            0 => &self.large,
            _ => &self.small,
        };
        let deed = random.of(&DEEDS);
        let deed = match (deed, random.below(4)) {
            (Deed::ToArchive, 0) => Deed::ToStore,
            (deed, _) => deed,
        };
        let faults = faults(&mut random);
        let what = format!("seed {seed}: {deed:?} of {}, {faults:?}", image.name);
        let proxy = Proxy::start(&self.registry.host, faults);
        let there = format!("run{seed}/app:1");
        let mine = Place::new();
        // What is pushed is in the store that all share, under a name of this run's.
        let (from, to) = match deed {
            Deed::Push => {
                let to = format!("{}/{there}", proxy.host);
                self.place.run(["tag", image.name, &to]).ok();
                (String::new(), to)
            }
            Deed::Pull => (
                format!("{}/from/{}:1", proxy.host, image.name),
                String::new(),
            ),
            Deed::Between { two } => {
                let other = if two {
                    &self.registry.host
                } else {
                    &proxy.host
                };
                let ends = [&proxy.host, other];
                let at = usize::try_from(random.below(2)).unwrap();
                let from = format!("{}/from/{}:1", ends[at], image.name);
                (from, format!("{}/{there}", ends[1 - at]))
            }
            Deed::FromLayout => {
                let layout = self.place.path(&format!("layout-{}", image.name));
                (
                    format!("oci:{}:1", layout.display()),
                    format!("{}/{there}", proxy.host),
                )
            }
            Deed::ToLayout | Deed::ToArchive | Deed::ToStore => {
                let to = match deed {
                    Deed::ToLayout => format!("oci:{}:1", mine.path("layout").display()),
                    Deed::ToArchive => format!("oci-archive:{}:1", mine.path("it.tar").display()),
                    _ => "store:copied:1".to_owned(),
                };
                (format!("{}/from/{}:1", proxy.host, image.name), to)
            }
        };
        let place = if matches!(deed, Deed::Push) {
            &self.place
        } else {
            &mine
        };
        let words = match deed {
            Deed::Push => vec!["push", "-q", &to],
            Deed::Pull => vec!["pull", "-q", &from],
            _ => vec!["copy", "-q", &from, &to],
        };
        let ran = ends(place, Some(&self.impatient), &words);
        assert!(
            !proxy.was_swallowed(),
            "{what}: it took what has no end: {ran}"
        );
        self.struck
            .fetch_add(u64::from(proxy.struck() > 0), Ordering::Relaxed);
        let is_done = ran.code == Some(0);
        match is_done {
            true => self.succeeded.fetch_add(1, Ordering::Relaxed),
            false => self.failed.fetch_add(1, Ordering::Relaxed),
        };
        clear(&ran, &what);
        let whole = |is_done: bool| match deed {
            Deed::Push | Deed::Between { .. } | Deed::FromLayout => {
                let name = format!("{}/{there}", self.registry.host);
                self.whole(&name, image, is_done)
            }
            Deed::Pull => stored(&mine, &from, image, is_done),
            Deed::ToStore => stored(&mine, "copied:1", image, is_done),
            Deed::ToLayout => {
                named_by_content(&mine.path("layout"))?;
                match is_done || mine.path("layout/index.json").exists() {
                    true => self.whole(&to, image, is_done),
                    false => Ok(()),
                }
            }
            Deed::ToArchive => match is_done || mine.path("it.tar").exists() {
                true => self.whole(&to, image, is_done),
                false => Ok(()),
            },
        };
        if let Err(wrong) = whole(is_done) {
            panic!("{what}: {wrong}\n{ran}");
        }
        // Whatever it left is in nobody's way.
        proxy.calm();
        let again = ends(place, None, &words);
        assert_eq!(
            again.code,
            Some(0),
            "{what}: on a sound line: {again}\nafter {ran}"
        );
        if let Err(wrong) = whole(true) {
            panic!("{what}: on a sound line: {wrong}\n{again}\nafter {ran}");
        }
        if matches!(deed, Deed::Push) {
            self.place.run(["rmi", &to]).ok();
        }
    }

    /// Whether an image is whole where it lies, if it is there; it has to be if `must`.
    fn whole(&self, name: &str, image: &Image, must: bool) -> Result<(), String> {
        let ran = self.place.run(["remote", "validate", "--json", name]);
        match ran.code {
            Some(0) => {
                let value: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
                match value["digest"] == image.digest {
                    true => Ok(()),
                    false => Err(format!("it is {}, not {}", value["digest"], image.digest)),
                }
            }
            Some(4) if !must && ran.stderr.contains("404") => Ok(()),
            _ => Err(format!("it is not whole: {ran}")),
        }
    }
}

/// Whether a store has an image under a name, if it has to, and is in order.
fn stored(place: &Place, name: &str, image: &Image, must: bool) -> Result<(), String> {
    place.wait_until_unused();
    let checked = place.run(["store", "check"]);
    if checked.code != Some(0) {
        return Err(format!("the store is not in order: {checked}"));
    }
    let id = place.run(["images", "-q", "--no-trunc", name]).ok();
    match (id.as_str(), must) {
        ("", false) => Ok(()),
        (id, _) if id == image.id => Ok(()),
        _ => Err(format!("the store has `{id}` under the name")),
    }
}

/// Whether every blob of a layout has the digest that it is named by.
fn named_by_content(layout: &Path) -> Result<(), String> {
    let Ok(blobs) = std::fs::read_dir(layout.join("blobs/sha256")) else {
        return Ok(());
    };
    for blob in blobs {
        let path = blob.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let digest = Digest::of(&std::fs::read(&path).unwrap()).to_string();
        if digest != format!("sha256:{name}") {
            return Err(format!("`{}` is not its content", path.display()));
        }
    }
    Ok(())
}

/// Whether a command ended as it may: done and silent, or with one error of the registry's or the network's.
fn clear(ran: &Ran, what: &str) {
    let errors = ran
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "));
    let expected = match ran.code {
        Some(0) => 0,
        Some(3 | 4) => 1,
        _ => panic!("{what}: neither the network nor the registry is blamed: {ran}"),
    };
    assert_eq!(errors.count(), expected, "{what}: {ran}");
    assert!(!ran.stderr.contains("panicked"), "{what}: {ran}");
}

#[test]
fn whatever_a_registry_does_ends_well_or_clearly() {
    let runs = number("LONGSHORE_TEST_FAULTS", RUNS);
    let seed = number("LONGSHORE_TEST_SEED", 0);
    let world = World::new();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let run = next.fetch_add(1, Ordering::Relaxed);
                    if run >= runs {
                        return;
                    }
                    world.run(seed + run);
                }
            });
        }
    });
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (succeeded, failed, struck) = (of(&world.succeeded), of(&world.failed), of(&world.struck));
    println!("{runs} runs: {succeeded} succeeded, {failed} failed; {struck} met a fault");
    // The seeds are worth something only if both happens.
    assert!(succeeded > runs / 10, "{succeeded} of {runs} succeeded");
    assert!(failed > runs / 10, "{failed} of {runs} failed");
    assert!(struck > runs / 2, "{struck} of {runs} met a fault");
    // What was pushed through so many cuts is in order as well.
    let root = world.place.path("registry");
    world.place.ok(["registry", "verify", "--root"], [&root]);
}

/// Bytes that go twice, in either direction, when the line is cut in the middle of a large layer again and again.
#[test]
fn cuts_waste_no_more_than_a_chunk() {
    const CHUNK: u64 = 16 << 20;
    const CUTS: u64 = 3;
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let image = image(&place, &registry.host, "large", &[LARGE]);
    let cuts = |about, fault: fn(usize) -> Fault| -> Vec<Armed> {
        // The first attempt and the first ones after it, each further on its way.
        let cut = |thousandths| Armed {
            about,
            skipped: 1,
            times: 1,
            fault: fault(thousandths),
        };
        (1..=CUTS)
            .map(|at| cut(200 + 200 * usize::try_from(at).unwrap()))
            .collect()
    };

    let proxy = Proxy::start(&registry.host, cuts(About::Uploads, Fault::CutRequest));
    let name = format!("{}/again:1", proxy.host);
    place.run(["tag", image.name, &name]).ok();
    place.run(["push", "-q", &name]).ok();
    assert!(proxy.struck() > 0);
    let layer = LARGE as u64;
    assert!(
        proxy.sent() < layer + CHUNK,
        "{} of {layer} bytes sent",
        proxy.sent()
    );

    let proxy = Proxy::start(&registry.host, cuts(About::Blobs, Fault::CutAnswer));
    let name = format!("{}/again:1", proxy.host);
    let other = Place::new();
    other.run(["pull", "-q", &name]).ok();
    assert_eq!(proxy.struck(), CUTS);
    stored(&other, &name, &image, true).unwrap();
    assert!(
        proxy.received() < layer + CHUNK,
        "{} of {layer} bytes came",
        proxy.received()
    );
}
