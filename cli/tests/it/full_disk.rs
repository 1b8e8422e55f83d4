//! A disk that is full, in every phase of a command: a clear error, a store with nothing wrong in it, and room again after
//! a collection.
//!
//! The store is on a small file system in memory, of one size after another, so that the same command fails at one point
//! after another. What is measured is the size at which it goes well; below it, everything has to fail well.

use std::path::{Path, PathBuf};

use crate::support::{Place, Ran, Server, tool};

/// What is said of a full disk, whoever noticed: the kernel's words, or ours.
const FULL: [&str; 2] = ["No space left on device", "the disk is full"];

/// A place whose store is a file system of its own.
struct Small {
    place: Place,
}

impl Small {
    fn new(kilobytes: u64) -> Small {
        let place = Place::new();
        std::fs::create_dir(place.store()).unwrap();
        let store = place.store();
        let options = format!("size={kilobytes}k,mode=0700");
        let words = ["-t", "tmpfs", "-o", &options, "tmpfs"];
        tool("mount", &[&words[..], &[store.to_str().unwrap()]].concat());
        Small { place }
    }

    /// Fills the disk to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.place.store().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while std::io::Write::write(&mut file, &vec![1; size]).is_ok_and(|count| count > 0) {}
        }
        path
    }

    /// Grows or shrinks the disk.
    fn resize(&self, kilobytes: u64) {
        let options = format!("remount,size={kilobytes}k");
        tool(
            "mount",
            &["-o", &options, self.place.store().to_str().unwrap()],
        );
    }

    /// Expects that nothing is wrong, whatever happened.
    #[track_caller]
    fn check(&self, when: &str) {
        let ran = self.place.run(["store", "check", "--format", "json"]);
        assert!(!ran.stdout.contains("\"wrong\""), "{when}: {ran}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        tool("umount", &["-l", self.place.store().to_str().unwrap()]);
    }
}

/// Expects a full disk to be told, with what to do about it, as the environment's fault; that of a command of the
/// Dockerfile, if that is what met it.
#[track_caller]
fn full(ran: &Ran, when: &str) {
    let told = FULL.iter().any(|text| ran.stderr.contains(text));
    assert!(told, "{when}: {ran}");
    let failed = ran.stderr.contains("did not complete successfully");
    let expected = if failed { 1 } else { 3 };
    assert_eq!(ran.code, Some(expected), "{when}: {ran}");
    let hint = "`longshore prune --all` frees the build cache";
    assert!(failed || ran.stderr.contains(hint), "{when}: {ran}");
}

/// What is done on the small disk, after what was prepared on a large one.
struct Phase<'p> {
    name: &'static str,
    /// Done with room enough.
    before: &'p dyn Fn(&Place),
    command: Vec<String>,
}

/// Runs a command on disks that are larger and larger, until it goes well. Below that it fails as it should, and works as
/// soon as there is room.
fn grows(phase: &Phase<'_>) {
    const ROOMY: u64 = 64 * 1024;
    let mut failed = 0;
    let mut room = 0;
    while room < ROOMY / 2 {
        let small = Small::new(ROOMY);
        (phase.before)(&small.place);
        small.place.wait_until_unused();
        // A size of zero would be none.
        small.resize((small.used() + room).max(4));
        let when = format!("{}, {room} kB of room", phase.name);
        let ran = small.place.run(&phase.command);
        small.place.wait_until_unused();
        if ran.code != Some(0) {
            full(&ran, &when);
            failed += 1;
        }
        small.resize(ROOMY);
        small.check(&when);
        small.place.run(&phase.command).ok();
        small.check(&when);
        if ran.code == Some(0) {
            assert!(failed > 0, "{when}: never failed");
            return;
        }
        // In small steps at the start, where the index and the folders are made.
        room += if room < 128 { 16 } else { room / 2 };
    }
    panic!("{}: never went well", phase.name);
}

impl Small {
    /// Kilobytes in use.
    fn used(&self) -> u64 {
        let text = tool(
            "df",
            &["-k", "--output=used", self.place.store().to_str().unwrap()],
        );
        text.lines().last().unwrap().trim().parse().unwrap()
    }
}

fn words(words: &[&str], path: Option<&Path>) -> Vec<String> {
    let words = words.iter().map(|word| (*word).to_owned());
    words
        .chain(path.map(|path| path.to_str().unwrap().to_owned()))
        .collect()
}

/// A folder with a Dockerfile that copies files and runs commands that write.
fn context(place: &Place) -> PathBuf {
    let text = "x".repeat(300_000);
    let dockerfile = "FROM busybox\nCOPY big /big\nRUN cat /big /big > /twice\nRUN --mount=type=cache,target=/c cp /big /c/big\n";
    place.context("app", &[("big", &text), ("Dockerfile", dockerfile)])
}

#[test]
fn a_build_on_a_full_disk() {
    let elsewhere = Place::new();
    let context = context(&elsewhere);
    grows(&Phase {
        name: "build",
        before: &|place| place.add_busybox("busybox"),
        command: words(&["build", "-q", "-t", "app"], Some(&context)),
    });
}

#[test]
fn a_pull_and_a_push_on_a_full_disk() {
    let elsewhere = Place::with_busybox();
    let registry = Server::registry(&elsewhere.path("registry"));
    let name = format!("{}/app:1", registry.host);
    elsewhere.ok(["build", "-q", "-t", &name], [&context(&elsewhere)]);
    elsewhere.run(["push", &name]).ok();
    grows(&Phase {
        name: "pull",
        before: &|_| {},
        command: words(&["pull", "-q", &name], None),
    });
    let other = format!("{}/other:1", registry.host);
    let context = context(&elsewhere);
    grows(&Phase {
        name: "push",
        before: &|place| {
            place.add_busybox("busybox");
            place.ok(["build", "-q", "-t", &other], [&context]);
        },
        command: words(&["push", "-q", &other], None),
    });
}

#[test]
fn archives_on_a_full_disk() {
    let elsewhere = Place::with_busybox();
    elsewhere.ok(["build", "-q", "-t", "app"], [&context(&elsewhere)]);
    let archive = elsewhere.path("app.tar");
    elsewhere.ok(["save", "app", "-o"], [&archive]);
    grows(&Phase {
        name: "load",
        before: &|_| {},
        command: words(&["load", "-q", "-i"], Some(&archive)),
    });
    let context = context(&elsewhere);
    let saved = elsewhere.path("again.tar");
    grows(&Phase {
        name: "save",
        before: &|place| {
            place.add_busybox("busybox");
            place.ok(["build", "-q", "-t", "app"], [&context]);
        },
        command: words(&["save", "app", "-o"], Some(&saved)),
    });
}

#[test]
fn a_collection_frees_a_disk_that_is_full_to_the_last_byte() {
    let small = Small::new(32 * 1024);
    let place = &small.place;
    place.add_busybox("busybox");
    let elsewhere = Place::new();
    let context = context(&elsewhere);
    place.ok(["build", "-q", "-t", "app"], [&context]);
    place.run(["rmi", "app"]).ok();
    place.wait_until_unused();
    let filler = small.fill();
    full(
        &place.words(["build", "-q", "--no-cache", "-t", "app"], [&context]),
        "build",
    );
    // What needs no room still works.
    place.run(["images"]).ok();
    place.run(["du"]).ok();
    let told = place.run(["prune", "--all"]).ok();
    assert!(told.contains("Deleted layer b3-"), "{told}");
    small.check("after the collection");
    // What it freed is enough for the next build, although the disk is as small as before.
    place.ok(["build", "-q", "-t", "app"], [&context]);
    std::fs::remove_file(filler).unwrap();
    small.check("at the end");
}
