//! Sandboxes for real, in every privilege that this machine has.
//!
//! A small test runner of its own, since a sandbox's helper is this very program: `reexec_if_child` must
//! be the first thing in `main`. As root it runs all tests as root, with and without user namespaces for
//! the sandboxes, then executes itself as an ordinary
//! user with subordinate ids, and as one without. An argument selects tests by name, as usual.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "a test runner"
)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod confinement;
mod escapes;
mod filter;
mod ids;
mod lifetime;
mod limits;
mod mounts;
mod network;
mod points;
mod probe;
mod process;
mod stubs;
mod terminal;
mod users;
mod world;

use std::panic::catch_unwind;

use runner::{Privilege, UserNamespace};
use world::World;

/// A test: its name, and what it does. `Err` is the reason why this machine cannot run it.
type Test = (&'static str, fn(&World) -> Result<(), String>);

fn main() {
    runner::reexec_if_child();
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--probe") => return probe::main(&args[1..]),
        Some("--victim") => return lifetime::victim(&args[1..]),
        Some("--host") => return network::host(&args[1..]),
        Some("--enter") => return users::enter(&args[1..]),
        _ => {}
    }
    let rootless = args.first().is_some_and(|arg| arg == "--rootless");
    if rootless {
        args.remove(0);
    }
    let filter = args
        .into_iter()
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();

    let privilege = match runner::enter_user_namespace() {
        Ok(privilege) => privilege,
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            println!(
                "test entering a user namespace ... FAILED\n{error}: {}",
                source.unwrap_or_default()
            );
            println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
            std::process::exit(101);
        }
    };
    let mut count = run(privilege, UserNamespace::Own, &filter);
    if privilege == Privilege::Root {
        count.add(run(privilege, UserNamespace::Host, &filter));
    }
    if privilege == Privilege::Root && !rootless {
        count.add(users::run_rootless(&filter));
    }
    let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
    let Count {
        passed,
        failed,
        ignored,
    } = count;
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored\n");
    std::process::exit(if failed == 0 { 0 } else { 101 });
}

/// How many tests went which way.
#[derive(Clone, Copy, Default)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

fn run(privilege: Privilege, ids: UserNamespace, filter: &str) -> Count {
    let prefix = match (privilege, ids) {
        (Privilege::Root, UserNamespace::Own) => "root",
        (Privilege::Root, UserNamespace::Host) => "host",
        (Privilege::RootlessSubordinate, _) => "subordinate",
        (Privilege::RootlessSingleId, _) => "single",
        (Privilege::RootOfContainer | Privilege::Ordinary, _) => {
            panic!("{privilege}: these tests need namespaces")
        }
    };
    let tests = [
        process::TESTS,
        confinement::TESTS,
        escapes::TESTS,
        filter::TESTS,
        ids::TESTS,
        mounts::TESTS,
        network::TESTS,
        points::TESTS,
        stubs::TESTS,
        lifetime::TESTS,
        limits::TESTS,
        terminal::TESTS,
    ];
    let mut count = Count::default();
    for (name, test) in tests.into_iter().flatten() {
        let name = format!("{prefix}::{name}");
        if !name.contains(filter) {
            continue;
        }
        match catch_unwind(|| test(&World::new(privilege, ids))) {
            Ok(Ok(())) => {
                println!("test {name} ... ok");
                count.passed += 1;
            }
            Ok(Err(reason)) => {
                println!("test {name} ... ignored, {reason}");
                count.ignored += 1;
            }
            Err(_) => {
                println!("test {name} ... FAILED");
                count.failed += 1;
            }
        }
    }
    count
}
