//! Running `git`: in an environment of our own, watched, its words kept for the error.

use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::contexts::git_url::without_password;
use crate::ops::auth;
use crate::ops::source::Fetching;

/// What a remote may be reached by; no local files, which a Dockerfile has no business with.
const PROTOCOLS: &str = "http:https:ssh:git";

/// How long is waited between two looks at a running program.
const POLL: Duration = Duration::from_millis(10);

/// Most bytes of what git prints that are kept: refs of large repositories are some megabytes.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Most bytes of what git complains that are shown.
const COMPLAINT_BYTES_MAX: usize = 2000;

/// What of the caller's environment git is given. Everything else it finds is ours.
#[derive(Clone, Debug, Default)]
pub struct GitSettings {
    /// `NAME` and value: `PATH`, proxies, certificates, an ssh agent's socket.
    pub environment: Vec<(String, String)>,
}

/// Why git did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// There is no git.
    #[error("`git` is not installed: it is needed to fetch `{url}`")]
    NotInstalled {
        /// The repository.
        url: String,
    },
    /// It cannot be run.
    #[error("cannot run `git`")]
    Run(#[source] io::Error),
    /// It ended in an error.
    #[error("`git {command}` of `{url}` failed: {complaint}")]
    Failed {
        /// The subcommand.
        command: String,
        /// The repository.
        url: String,
        /// What it said.
        complaint: String,
    },
    /// The repository has no such branch or tag.
    #[error("`{url}` has no branch or tag `{reference}`{}", near.as_ref().map(|near| format!(", did you mean `{near}`?")).unwrap_or_default())]
    NoRef {
        /// The repository.
        url: String,
        /// What was asked for.
        reference: String,
        /// A name that is nearly the same.
        near: Option<String>,
    },
    /// The repository has no such commit.
    #[error("`{url}` has no commit `{commit}`")]
    NoCommit {
        /// The repository.
        url: String,
        /// What was asked for.
        commit: String,
    },
    /// The commit has no such folder.
    #[error("`{url}` has no folder `{subdir}`")]
    NoFolder {
        /// The repository.
        url: String,
        /// What was asked for.
        subdir: String,
    },
    /// The build is to end.
    #[error("cancelled")]
    Cancelled,
}

/// The program, and whom it works for.
pub(crate) struct Git<'a> {
    fetching: &'a Fetching<'a>,
    /// The repository, as it is shown.
    pub(crate) url: String,
    /// Settings that send credentials: keys and values.
    headers: Vec<(String, String)>,
    /// Ours: an empty home, with the host keys that were seen.
    home: PathBuf,
}

impl<'a> Git<'a> {
    pub(crate) fn new(
        fetching: &'a Fetching<'a>,
        remote: &str,
    ) -> Result<Git<'a>, crate::error::StepError> {
        let home = fetching.store.root().join("git-home");
        store::fs::create_dir(&home).map_err(store::StoreError::from)?;
        Ok(Git {
            fetching,
            url: without_password(remote),
            headers: auth::for_git(fetching.settings, remote)?,
            home,
        })
    }

    /// Runs git and returns what it prints.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, GitError> {
        self.run_with(arguments, &[])
    }

    /// Runs git with further variables.
    pub(crate) fn run_with(
        &self,
        arguments: &[&str],
        variables: &[(&str, &Path)],
    ) -> Result<Vec<u8>, GitError> {
        let (status, output, complaint) = self.spawn(arguments, variables)?;
        if status.success() {
            return Ok(output);
        }
        let is_subcommand = |argument: &&&str| !argument.starts_with('-');
        let command = arguments.iter().find(is_subcommand).unwrap_or(&"");
        Err(GitError::Failed {
            command: (*command).to_owned(),
            url: self.url.clone(),
            complaint: complaint_of(&complaint, status),
        })
    }

    /// Whether git succeeds.
    pub(crate) fn succeeds(&self, arguments: &[&str]) -> Result<bool, GitError> {
        Ok(self.spawn(arguments, &[])?.0.success())
    }

    fn spawn(
        &self,
        arguments: &[&str],
        variables: &[(&str, &Path)],
    ) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), GitError> {
        let mut command = Command::new("git");
        command
            .args(SETTINGS)
            .args(arguments)
            .current_dir(&self.home)
            .env_clear()
            .envs(self.fetching.remote.git().environment.iter().cloned())
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", &self.home)
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_ALLOW_PROTOCOL", PROTOCOLS)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "false")
            .env("SSH_ASKPASS", "false")
            .env("GIT_SSH_COMMAND", self.ssh_command())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // git runs helpers: what ends it has to end them too.
            .process_group(0);
        // Not as arguments, which every process can read.
        command.env("GIT_CONFIG_COUNT", self.headers.len().to_string());
        for (number, (key, value)) in self.headers.iter().enumerate() {
            command
                .env(format!("GIT_CONFIG_KEY_{number}"), key)
                .env(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        if let Some(agent) = self.agent() {
            command.env("SSH_AUTH_SOCK", agent);
        }
        for (name, value) in variables {
            command.env(name, value);
        }
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => GitError::NotInstalled {
                url: self.url.clone(),
            },
            _ => GitError::Run(error),
        })?;
        self.watch(child)
    }

    /// Reads what git says until it ends, or ends it when the build is to end.
    fn watch(&self, mut child: Child) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), GitError> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            let read = |stream: Option<Box<dyn Read + Send>>| {
                let mut bytes = Vec::new();
                if let Some(mut stream) = stream {
                    let kept = (&mut stream).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
                    // The rest is read too, so that git can end.
                    kept.and_then(|_| io::copy(&mut stream, &mut io::sink()))?;
                }
                Ok::<_, io::Error>(bytes)
            };
            let boxed = stdout.map(|stream| Box::new(stream) as Box<dyn Read + Send>);
            let output = scope.spawn(move || read(boxed));
            let boxed = stderr.map(|stream| Box::new(stream) as Box<dyn Read + Send>);
            let complaint = scope.spawn(move || read(boxed));
            let status = loop {
                if let Some(status) = child.try_wait().map_err(GitError::Run)? {
                    break status;
                }
                if (self.fetching.cancelled)() {
                    end(&mut child);
                    return Err(GitError::Cancelled);
                }
                std::thread::sleep(POLL);
            };
            let joined = "the reader does not panic";
            let output = output.join().expect(joined).map_err(GitError::Run)?;
            let complaint = complaint.join().expect(joined).map_err(GitError::Run)?;
            Ok((status, output, complaint))
        })
    }

    /// What `--ssh default` names: sockets of agents, or keys.
    fn ssh_paths(&self) -> &[PathBuf] {
        let paths = self.fetching.settings.ssh.get("default");
        paths.map(Vec::as_slice).unwrap_or_default()
    }

    fn agent(&self) -> Option<&PathBuf> {
        self.ssh_paths().iter().find(|path| is_socket(path))
    }

    /// Host keys are taken as they are when first seen, and kept: there is nobody to ask.
    fn ssh_command(&self) -> String {
        let known = quoted(&self.home.join("known_hosts"));
        let mut command = format!(
            "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={known}"
        );
        let keys: Vec<&PathBuf> = self
            .ssh_paths()
            .iter()
            .filter(|path| !is_socket(path))
            .collect();
        if !keys.is_empty() {
            command += " -o IdentitiesOnly=yes";
        }
        for key in keys {
            command += &format!(" -i {}", quoted(key));
        }
        command
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A path for a shell, which reads git's ssh command.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// Given with every command: nothing of a repository's or a user's may run programs or change what is checked out.
const SETTINGS: [&str; 16] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.autocrlf=false",
    "-c",
    "credential.helper=",
    "-c",
    "gc.auto=0",
    "-c",
    "maintenance.auto=false",
    "-c",
    "advice.detachedHead=false",
    "-c",
    "safe.directory=*",
];

fn end(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id())
        && let Some(group) = Pid::from_raw(id)
    {
        // Whoever is gone already needs no signal.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// What git said, in one line, without control characters.
fn complaint_of(bytes: &[u8], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return status.to_string();
    }
    let joined: String = lines
        .join("; ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(COMPLAINT_BYTES_MAX)
        .collect();
    joined
}
