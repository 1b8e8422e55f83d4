use std::collections::{BTreeMap, BTreeSet};

use libc::SECCOMP_RET_KILL_PROCESS;

use super::assemble::answer;
use super::*;

/// The group of a call, found the slow way.
fn group(capabilities: Capabilities, arch: Arch, number: u32) -> Option<&'static Group> {
    GROUPS.iter().find(|group| {
        let listed = |name: &&str| calls::number(arch, name) == Some(Some(number));
        let has = |needed: &u32| capabilities.contains(*needed);
        group.calls.iter().any(listed) && !group.unless.iter().any(has)
    })
}

/// What the table says of a call with this first argument.
fn expected(group: Option<&Group>, number: u32, argument: u32) -> Action {
    if number > calls::LAST {
        return errno(libc::ENOSYS);
    }
    let Some(group) = group else {
        return SECCOMP_RET_ALLOW;
    };
    let refused = match group.answer {
        Answer::Errno(errno) => Some(errno),
        Answer::UnlessBits(bits) => (argument & bits != 0).then_some(libc::EPERM),
        Answer::OnlyValues(values) => (!values.contains(&argument)).then_some(libc::EPERM),
        Answer::ExceptValues(values, end) => values
            .iter()
            .find(|(value, _)| *value == argument)
            .or((argument >= end.0).then_some(&end))
            .map(|value| value.1),
    };
    refused.map_or(SECCOMP_RET_ALLOW, errno)
}

#[test]
fn the_program_says_what_the_table_says() {
    for capabilities in [
        Capabilities::DOCKER,
        Capabilities(0),
        Capabilities::ALL,
        Capabilities(Capabilities::DOCKER.0 | 1 << SYS_ADMIN),
    ] {
        let program = program(capabilities);
        for arch in arches() {
            for number in (0..600).chain([0x4000_0000, 0x4000_0027, u32::MAX]) {
                let group = group(capabilities, *arch, number);
                for argument in (0..50).chain([0x2_0000, 0x1000_0000, 0x4_0000, u32::MAX]) {
                    // The kernel takes the lower half, whatever the rest of the register holds.
                    for above in [0, 0xffff_ffff_0000_0000] {
                        let arguments = [u64::from(argument) | above, 0, 0, 0, 0, 0];
                        assert_eq!(
                            answer(&program, audit(*arch), number, arguments),
                            expected(group, number, argument),
                            "{capabilities:?} {arch:?} {number} {arguments:#x?}"
                        );
                    }
                }
            }
        }
        // MIPS, ARM, and nothing at all.
        for arch in [8, 0x4000_0028, 0] {
            assert_eq!(answer(&program, arch, 39, [0; 6]), SECCOMP_RET_KILL_PROCESS);
        }
    }
}

#[test]
fn every_call_of_the_table_exists_and_is_listed_once() {
    let mut listed = BTreeSet::new();
    for name in GROUPS.iter().flat_map(|group| group.calls) {
        assert!(calls::names().any(|known| known == *name), "{name}");
        assert!(listed.insert(name), "{name}");
    }
}

#[test]
fn names_and_numbers() {
    let names: Vec<&str> = calls::names().collect();
    assert!(names.is_sorted(), "they are looked up by halves");
    for arch in [Arch::X86_64, Arch::I386, Arch::Aarch64] {
        let numbers: BTreeSet<u32> = calls::all(arch).map(|call| call.1).collect();
        assert_eq!(
            numbers.len(),
            calls::all(arch).count(),
            "{arch:?}: two calls of one number"
        );
        assert_eq!(numbers.last(), Some(&calls::LAST), "{arch:?}");
        // All are known from here on, without a gap, but for one that only 64-bit x86 and i386 have.
        assert!(
            (424..=calls::LAST).all(|n| numbers.contains(&n)),
            "{arch:?}"
        );
    }
    // Against libc's own, where it has them.
    for (name, number) in [
        ("read", libc::SYS_read),
        ("mount", libc::SYS_mount),
        ("keyctl", libc::SYS_keyctl),
        ("openat2", libc::SYS_openat2),
        ("mseal", libc::SYS_mseal),
    ] {
        let found = calls::number(calls::NATIVE, name).unwrap().unwrap();
        assert_eq!(libc::c_long::from(found), number, "{name}");
    }
    assert_eq!(calls::number(Arch::X86_64, "socketcall"), Some(None));
    assert_eq!(calls::number(Arch::X86_64, "s390_sthyi"), Some(None));
    assert_eq!(calls::number(Arch::X86_64, "raed"), None);
}

#[test]
fn the_program_stays_small() {
    let [native, others @ ..] = arches() else {
        panic!("the native one is always there");
    };
    // A longer one costs every exec: the kernel checks and translates it each time.
    let native = assemble(&[plan(*native, Capabilities::DOCKER)]).len();
    assert!(native <= 120, "{native} instructions");
    let all = program(Capabilities::DOCKER).len();
    assert!(all <= native + 140 * others.len(), "{all} instructions");
}

/// What `docs/security.md` says of the calls that are treated otherwise than Docker does, by name.
fn documented() -> BTreeMap<String, String> {
    let text = include_str!("../../../docs/security.md");
    let section = text.split("### Other than Docker's filter").nth(1).unwrap();
    let section = section.split("\n#").next().unwrap();
    let mut differences = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, names, ours, docker, why, _] = cells[..] else {
            panic!("{row}");
        };
        assert!(!why.is_empty(), "{row}");
        for name in names.split(", ") {
            let verdicts = format!("{ours}, Docker {docker}");
            differences.insert(name.trim_matches('`').to_owned(), verdicts);
        }
    }
    differences
}

/// Docker's profile as `testdata/seccomp/docker.txt` has it: words by their headings.
fn docker() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut sections: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    let mut heading = "";
    for line in include_str!("../../../testdata/seccomp/docker.txt").lines() {
        match line {
            comment if comment.starts_with('#') => {}
            "EPERM" | "ENOSYS" | "BY-ARGUMENT" | "FAMILIES" => heading = line,
            line => sections
                .entry(heading)
                .or_default()
                .extend(line.split_whitespace()),
        }
    }
    sections
}

/// Call by call: where this filter and Docker's differ, `docs/security.md` says why, and nowhere else.
#[test]
fn differences_from_docker_are_documented() {
    let docker = docker();
    let mut found = BTreeMap::new();
    for arch in [Arch::X86_64, Arch::I386] {
        let plan = plan(arch, Capabilities::DOCKER);
        for (name, number) in calls::all(arch) {
            let ours = match plan.calls.get(&number) {
                None => "allowed",
                Some(verdict) if !verdict.rules.is_empty() => "by argument",
                Some(verdict) if verdict.otherwise == errno(libc::ENOSYS) => "ENOSYS",
                Some(verdict) if verdict.otherwise == errno(libc::EPERM) => "EPERM",
                Some(verdict) => panic!("{name}: {verdict:?}"),
            };
            let theirs = match name {
                name if docker["EPERM"].contains(name) => "EPERM",
                name if docker["ENOSYS"].contains(name) => "ENOSYS",
                name if docker["BY-ARGUMENT"].contains(name) => "by argument",
                _ => "allowed",
            };
            if ours != theirs {
                found.insert(name.to_owned(), format!("{ours}, Docker {theirs}"));
            }
        }
    }
    assert_eq!(found, documented());

    let program = program(Capabilities::DOCKER);
    let socket = calls::number(calls::NATIVE, "socket").unwrap().unwrap();
    for family in 0..60_u32 {
        let ours = answer(
            &program,
            audit(calls::NATIVE),
            socket,
            [family.into(), 0, 0, 0, 0, 0],
        );
        let theirs = docker["FAMILIES"].contains(family.to_string().as_str());
        assert_eq!(ours == SECCOMP_RET_ALLOW, theirs, "family {family}");
    }
}

/// The whole table by number, for readers, and for `runner/tests/it/filter.rs`, which asks the kernel.
#[test]
fn tables_by_number() {
    for (arch, name) in [
        (Arch::X86_64, "x86_64"),
        (Arch::I386, "i386"),
        (Arch::Aarch64, "aarch64"),
    ] {
        let plan = plan(arch, Capabilities::DOCKER);
        let mut calls: Vec<(u32, &str)> = calls::all(arch).map(|(name, n)| (n, name)).collect();
        calls.sort_unstable();
        let program = assemble(&[plan]);
        let mut text = "# What the default filter refuses, with a first argument of ones. UPDATE_EXPECT=1 writes this.\n".to_owned();
        for (number, name) in calls {
            let answer = answer(&program, audit(arch), number, [u64::MAX; 6]);
            let shown = match answer {
                SECCOMP_RET_ALLOW => continue,
                refused if refused == errno(libc::EPERM) => "EPERM",
                refused if refused == errno(libc::ENOSYS) => "ENOSYS",
                refused if refused == errno(libc::EAFNOSUPPORT) => "EAFNOSUPPORT",
                other => panic!("{name}: {other:#x}"),
            };
            text.push_str(&format!("{number} {name} {shown}\n"));
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/seccomp");
        let file = format!("{folder}/{name}.txt");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "{file}");
    }
}
