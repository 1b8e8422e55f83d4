//! A step that does not run any more, or not yet: a sandbox like its own, to look around in.
//!
//! [`StoppedStep`] starts commands with the files, environment, directory, user, mounts, network and confinement of the step.
//! What is mounted is what the step had, but for a tmpfs, which is empty again.

use runner::{MountKind, MountPoint, ProcessSpec, Sandbox, SandboxError, SandboxSpec, Stdio};

/// Where the script is that runs the step's own command, inside the sandbox.
pub const RERUN: &str = "/dev/rerun";

/// Programs that are taken for shells by their names.
const SHELLS: [&str; 8] = ["ash", "bash", "dash", "fish", "ksh", "mksh", "sh", "zsh"];

/// Where shells are looked for, after the step's own.
const USUAL_SHELLS: [&str; 4] = ["/bin/sh", "/bin/bash", "/busybox/sh", "sh"];

/// Mode bits of the script that runs the step's command.
const RERUN_MODE: u32 = 0o755;

/// A step's sandbox without its process.
#[derive(Debug)]
pub struct StoppedStep<'a> {
    pub(crate) name: &'a str,
    /// What the step runs; empty for one that runs nothing.
    pub(crate) argv: &'a [String],
    pub(crate) spec: &'a SandboxSpec,
}

impl StoppedStep<'_> {
    /// Its label: `[stage 2/5] RUN make`.
    pub fn name(&self) -> &str {
        self.name
    }

    /// What it runs, quoted for a shell; none for a step that is no RUN.
    pub fn command(&self) -> Option<String> {
        (!self.argv.is_empty()).then(|| quoted(self.argv))
    }

    /// Shells that its image may have, the likeliest first: that of SHELL, if the step uses it, then the usual ones.
    pub fn shells(&self) -> Vec<String> {
        let own = self.argv.first().filter(|program| {
            let name = program.rsplit('/').next().unwrap_or_default();
            self.argv.len() > 1 && SHELLS.contains(&name)
        });
        let mut shells: Vec<String> = own.into_iter().cloned().collect();
        for usual in USUAL_SHELLS {
            if !shells.iter().any(|shell| shell == usual) {
                shells.push(usual.to_owned());
            }
        }
        shells
    }

    /// Starts a command; with `terminal`, its columns and rows, on one of its own. If the first word is an absolute path, it
    /// is the interpreter of [`RERUN`], and `/bin/sh` is otherwise.
    ///
    /// # Errors
    /// As for [`Sandbox::spawn`]: most of all, the command is not there.
    pub fn start(
        &self,
        argv: &[String],
        terminal: Option<Option<(u16, u16)>>,
        stdio: Stdio,
    ) -> Result<Sandbox, SandboxError> {
        let mut spec = self.spec.clone();
        let step = &self.spec.process;
        spec.process = ProcessSpec {
            argv: argv.to_vec(),
            terminal: terminal.is_some(),
            terminal_size: terminal.flatten(),
            ..step.clone()
        };
        let has_term = step.env.iter().any(|known| known.starts_with("TERM="));
        if terminal.is_some() && !has_term {
            spec.process.env.push("TERM=xterm".to_owned());
        }
        // Whoever looks around starts processes of all kinds, and leaves them.
        spec.init = true;
        let covers_dev = |point: &MountPoint| point.target.trim_end_matches('/') == "/dev";
        if !self.argv.is_empty() && !spec.mounts.iter().any(covers_dev) {
            let shell = argv.first().filter(|program| program.starts_with('/'));
            spec.mounts.push(MountPoint {
                target: RERUN.to_owned(),
                kind: MountKind::File {
                    content: self.script(shell.map_or("/bin/sh", String::as_str)).into(),
                    mode: RERUN_MODE,
                    uid: 0,
                    gid: 0,
                    read_only: true,
                },
            });
        }
        Sandbox::spawn(&spec, stdio)
    }

    fn script(&self, shell: &str) -> String {
        let directory = quote(&self.spec.process.cwd);
        let command = quoted(self.argv);
        format!("#!{shell}\ncd {directory} && exec {command}\n")
    }
}

fn quoted(argv: &[String]) -> String {
    let words: Vec<String> = argv.iter().map(|word| quote(word)).collect();
    words.join(" ")
}

/// A word as a shell reads it.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use runner::Root;

    fn stopped(argv: &[&str], check: impl FnOnce(&StoppedStep<'_>)) {
        let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
        let process = ProcessSpec {
            cwd: "/it's here".to_owned(),
            ..ProcessSpec::new(["true"])
        };
        let spec = SandboxSpec::new(Root::Directory("/".into()), process);
        check(&StoppedStep {
            name: "[1/1] RUN x",
            argv: &argv,
            spec: &spec,
        });
    }

    #[test]
    fn the_steps_own_shell_comes_first() {
        let check = |argv: &[&str], expected: &[&str]| {
            stopped(argv, |step| assert_eq!(step.shells(), expected, "{argv:?}"));
        };
        let usual = ["/bin/sh", "/bin/bash", "/busybox/sh", "sh"];
        check(&["/bin/sh", "-c", "make"], &usual);
        check(
            &["/bin/bash", "-euo", "pipefail", "-c", "make"],
            &["/bin/bash", "/bin/sh", "/busybox/sh", "sh"],
        );
        check(&["/usr/bin/make", "all"], &usual);
        check(&[], &usual);
    }

    #[test]
    fn commands_are_quoted_for_a_shell() {
        stopped(&["/bin/sh", "-c", "echo 'a b'\nmake"], |step| {
            let expected = "/bin/sh -c 'echo '\\''a b'\\''\nmake'";
            assert_eq!(step.command().unwrap(), expected);
            let script = step.script("/bin/ash");
            let expected = format!("#!/bin/ash\ncd '/it'\\''s here' && exec {expected}\n");
            assert_eq!(script, expected);
        });
        stopped(&["x", ""], |step| {
            assert_eq!(step.command().unwrap(), "x ''");
        });
        stopped(&[], |step| assert_eq!(step.command(), None));
    }
}
