//! What a supervisor is to do: plain data, written to `plan.json` by the command that starts the container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::network::ports::Publish;
use crate::spec::SandboxSpec;

/// Everything a supervisor needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The sandbox, made again at every restart.
    pub sandbox: SandboxSpec,
    /// The folders of the containers that it shares namespaces with, one for each of the sandbox's `joined`.
    #[serde(default)]
    pub joined: Vec<PathBuf>,
    /// Whether the process has a standard input at all.
    pub stdin: bool,
    /// Whether its input ends with that of the first who is attached.
    pub stdin_once: bool,
    /// What is done when the process ends.
    pub restart: Restart,
    /// How it is asked whether it is well.
    pub health: Option<Health>,
    /// What is kept of its output; nothing if `None`.
    pub log: Option<LogLimits>,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// How long it may take for that, in seconds; `None` is for ever.
    pub stop_timeout_s: Option<u64>,
    /// Ports of the host that lead into the sandbox, whose network is one of its own.
    pub ports: Vec<Publish>,
    /// Arguments of this program, run beside the container while it runs, with the two sockets of its name server as standard
    /// input and output; its standard error can be read when it is to end. None if nothing is to answer.
    pub names: Vec<String>,
    /// Arguments of this program, run in the supervisor's place when the container has ended for good and the command
    /// that started it is not there to do it.
    pub afterwards: Vec<String>,
}

/// What is done when a container's process ends without having been asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Nothing.
    #[default]
    No,
    /// It is started again if it failed.
    OnFailure {
        /// How often at most; any number if `None`.
        times: Option<u32>,
    },
    /// It is started again.
    Always,
    /// It is started again, unless it was stopped before the machine was.
    UnlessStopped,
}

impl Restart {
    /// Whether a process that ended with this code, after so many restarts, is started again.
    pub fn applies(self, code: i32, restarts: u32) -> bool {
        match self {
            Restart::No => false,
            Restart::OnFailure { times } => code != 0 && times.is_none_or(|times| restarts < times),
            Restart::Always | Restart::UnlessStopped => true,
        }
    }
}

/// A command that says whether a container is well; times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The command.
    pub argv: Vec<String>,
    /// From the end of one check to the start of the next.
    pub interval_ms: u64,
    /// What is taken for a failure.
    pub timeout_ms: u64,
    /// How long after the start failures do not count.
    pub start_period_ms: u64,
    /// The interval until the first success in that time.
    pub start_interval_ms: u64,
    /// How many failures in a row make a container unhealthy.
    pub retries: u32,
}

/// How much of a container's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// The size in bytes at which a new file is begun; never if `None`.
    pub bytes_max: Option<u64>,
    /// How many files are kept, one at least.
    pub files_max: u32,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            bytes_max: None,
            files_max: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies() {
        let twice = Restart::OnFailure { times: Some(2) };
        let check = |policy: Restart, code, restarts, expected| {
            assert_eq!(policy.applies(code, restarts), expected, "{policy:?}");
        };
        check(Restart::No, 1, 0, false);
        check(twice, 0, 0, false);
        check(twice, 1, 1, true);
        check(twice, 1, 2, false);
        check(Restart::OnFailure { times: None }, 1, 99, true);
        check(Restart::Always, 0, 99, true);
        check(Restart::UnlessStopped, 0, 99, true);
    }
}
