//! Whose groups are whose: a helper locks those that it makes, and a group that nobody has locked, of a helper that does not
//! live, is removed by the next one.
//!
//! A helper removes its groups itself, but for one that is killed. The kernel has ended the processes of its sandbox then, and the
//! empty group is all that is left.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{FlockOperation, flock};

/// What all names begin with.
const PREFIX: &str = "longshore-";

/// How often a group is made anew that was taken for stale before it was locked.
const CLAIMS_MAX: usize = 8;

/// A name that no other group has, and that tells whose it is: `longshore-<pid>-<number>`.
pub(super) fn name() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// Makes the group `dir`, unless it is there, and locks it as long as the result lives.
pub(super) fn claim(dir: &Path) -> io::Result<OwnedFd> {
    for _ in 0..CLAIMS_MAX {
        super::make_dir(dir)?;
        let Ok(group) = File::open(dir) else {
            continue;
        };
        flock(&group, FlockOperation::LockShared)?;
        // It may have been removed before it was locked.
        if is_at(&group, dir) {
            return Ok(group.into());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn is_at(group: &File, dir: &Path) -> bool {
    let (Ok(held), Ok(found)) = (rustix::fs::fstat(group), rustix::fs::stat(dir)) else {
        return false;
    };
    (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino)
}

/// Removes the groups in `dir` that nobody uses any more.
pub(super) fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(is_of_the_dead) {
            let _removed = remove(&entry.path());
        }
    }
}

/// Whether no process has the id that `name` tells. A lock is what counts for helpers in other process id namespaces, which have
/// other ids; this keeps out of the way of those that live here.
fn is_of_the_dead(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok())
        .is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists())
}

fn remove(dir: &Path) -> io::Result<()> {
    let group = File::open(dir)?;
    flock(&group, FlockOperation::NonBlockingLockExclusive)?;
    // Refused by the kernel if there are processes in it.
    fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process id that nobody has: of a child that was waited for.
    fn dead() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn only_what_nobody_uses_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (dead, own) = (dead(), std::process::id());
        let names = [
            format!("longshore-{dead}"),
            format!("longshore-{dead}-7"),
            format!("longshore-{own}"),
            format!("longshore-{own}-0"),
            format!("other-{dead}"),
            "longshore-".to_owned(),
            "longshore-x".to_owned(),
            "longshore".to_owned(),
        ];
        for name in &names {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        // Of a helper elsewhere, whose id means nothing here.
        let elsewhere = format!("longshore-{dead}-9");
        let claimed = claim(&dir.path().join(&elsewhere)).unwrap();
        let left = || {
            sweep(dir.path());
            let mut left: Vec<String> = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            left.sort();
            left
        };
        let mut expect = [&names[2..], &[elsewhere]].concat();
        expect.sort();
        assert_eq!(left(), expect);
        drop(claimed);
        let mut expect = names[2..].to_vec();
        expect.sort();
        assert_eq!(left(), expect);
    }

    #[test]
    fn names_are_given_once() {
        assert_ne!(name(), name());
        assert!(!is_of_the_dead(&name()));
    }
}
