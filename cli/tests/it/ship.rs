//! A place for containers, and looking at them.

use std::io::{BufRead, BufReader, Lines};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::support::{Place, Ran};

/// A place whose containers end with the test, also when it fails.
pub struct Ship(pub Place);

impl Ship {
    pub fn new() -> Ship {
        Ship(Place::with_busybox())
    }

    /// What a container's supervisor writes of it.
    pub fn state_file(&self, id: &str) -> std::path::PathBuf {
        let folder = self.0.store().join("containers").join(id);
        folder.join("state.json")
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.0.run(arguments)
    }

    /// What a command that works prints.
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok()
    }

    /// Starts a busybox that runs on, and returns its id.
    pub fn detached(&self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let first = ["run", "-d", "--name", name];
        self.ok(&[&first, flags, &["busybox"], command].concat())
    }

    /// What `inspect` says of a container, beneath these names.
    pub fn known(&self, container: &str, path: &str) -> serde_json::Value {
        let text = self.ok(&["inspect", container]);
        let all: serde_json::Value = serde_json::from_str(&text).unwrap();
        all[0].pointer(path).cloned().unwrap_or_default()
    }

    /// Waits until a container is as is wanted, however long that takes.
    pub fn until(&self, container: &str, condition: &str) -> String {
        self.ok(&["wait", "--condition", condition, container])
    }

    /// Process 1 of a container.
    pub fn process_1(&self, container: &str) -> u32 {
        let pid = self.known(container, "/State/Pid").as_u64().unwrap();
        u32::try_from(pid).unwrap()
    }

    /// The process that holds a container: the parent of the parent of its process 1.
    pub fn supervisor(&self, container: &str) -> u32 {
        parent(parent(self.process_1(container)))
    }
}

impl Drop for Ship {
    fn drop(&mut self) {
        let ids = self.0.run(["ps", "-aq"]).stdout;
        for id in ids.lines() {
            let _removed = self.0.run(["rm", "-fv", id]);
        }
    }
}

/// The parent of a process.
pub fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

/// A descriptor that becomes readable when a process ends.
pub fn watched(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Waits until a process has ended that was watched before.
pub fn until_ended(process: &OwnedFd) {
    let mut fds = [rustix::event::PollFd::new(
        process,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, None).unwrap();
}

/// The lines that a child prints.
pub fn lines(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().unwrap()).lines()
}

/// Waits for the first line that a child prints.
pub fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    line
}
