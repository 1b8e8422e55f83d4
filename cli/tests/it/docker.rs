//! A docker daemon of the test's own: its own folders and socket, no bridge, and nothing of the host's daemon.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{Ran, signal};

/// How often a daemon is started: on a busy machine its containerd may be too slow for it.
const ATTEMPTS: usize = 3;

/// A daemon, which ends with this.
pub struct Docker {
    daemon: Child,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

impl Docker {
    /// Starts one; where the machine does not let it, the reason is written where a test's capture does not hide it.
    pub fn start() -> Option<Docker> {
        Docker::start_with("{}")
    }

    /// The same with these settings, as `daemon.json` has them.
    pub fn start_with(settings: &str) -> Option<Docker> {
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            match Docker::attempt(settings) {
                Ok(docker) => return Some(docker),
                Err(why) => reason = why,
            }
        }
        let text = format!("not tried beside docker: {reason}\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        None
    }

    fn attempt(text: &str) -> Result<Docker, String> {
        // Not with the others: a socket's path is short.
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).unwrap();
        let in_folder = |name: &str| folder.path().join(name);
        // Not the host's.
        let settings = in_folder("settings.json");
        std::fs::write(&settings, text).unwrap();
        let daemon = Command::new("dockerd")
            .arg("--data-root")
            .arg(in_folder("data"))
            .arg("--exec-root")
            .arg(in_folder("exec"))
            .arg("--pidfile")
            .arg(in_folder("pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            .arg("--config-file")
            .arg(&settings)
            .args(["--bridge", "none", "--iptables=false", "--ip6tables=false"])
            .args(["--storage-driver", "vfs"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| format!("dockerd: {error}"))?;
        let mut docker = Docker {
            daemon,
            socket,
            folder,
        };
        loop {
            if let Some(status) = docker.daemon.try_wait().unwrap() {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                return Err(format!("dockerd ended with {status}: {last}"));
            }
            if docker.run(&["version"]).code == Some(0) {
                return Ok(docker);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Runs a command of docker's.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(&mut self.command(arguments))
    }

    /// A command of docker's on this daemon.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.by("docker", arguments)
    }

    /// A build by the BuildKit in this daemon. Debian's client speaks to it; newer ones need a plugin, so they are not asked.
    pub fn buildkit(&self, arguments: &[&str]) -> Command {
        let debians = "/usr/bin/docker";
        let exists = Path::new(debians).exists();
        let mut command = self.by(if exists { debians } else { "docker" }, arguments);
        command.env("DOCKER_BUILDKIT", "1");
        command
    }

    fn by(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket.display()))
            .env("DOCKER_CONFIG", self.folder.path())
            .args(arguments);
        command
    }

    /// Where the containerd that it started listens.
    pub fn containerd(&self) -> PathBuf {
        self.folder.path().join("exec/containerd/containerd.sock")
    }

    /// Loads an archive of images.
    pub fn load(&self, archive: &Path) {
        self.run(&["load", "-q", "-i", archive.to_str().unwrap()])
            .ok();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if matches!(self.daemon.try_wait(), Ok(None)) {
            signal(&self.daemon, "TERM");
        }
        let _status = self.daemon.wait();
        // It leaves this mounted, in the way of removing the folder.
        let namespaces = self.folder.path().join("exec/netns");
        for entry in std::fs::read_dir(namespaces)
            .into_iter()
            .flatten()
            .flatten()
        {
            let _unmounted = Command::new("umount").arg(entry.path()).output();
        }
    }
}
