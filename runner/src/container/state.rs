//! How a container is: `state.json`, written by its supervisor alone while that lives.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::network::ports::Published;

/// How a container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, and never started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its process has ended, and will be started again.
    Restarting,
    /// Its process has ended.
    Exited,
}

impl Status {
    /// Docker's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
        }
    }

    /// Whether a supervisor holds such a container.
    pub fn is_live(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Restarting)
    }
}

/// All that is known of a container's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// How it is.
    pub status: Status,
    /// Its process 1 as the supervisor sees it; 0 if there is none.
    pub pid: u32,
    /// The kernel under which this was written.
    pub boot_id: String,
    /// Its last start, RFC 3339; empty before.
    pub started_at: String,
    /// The end of its process, RFC 3339; empty before.
    pub finished_at: String,
    /// With what its process ended.
    pub exit_code: i32,
    /// Why it could not be started, or ended without a code of its own.
    pub error: String,
    /// How often it was started again by its policy.
    pub restarts: u32,
    /// Whether it was asked to end.
    pub stopped: bool,
    /// The host's ports that lead into it now, by the ports inside.
    pub ports: Vec<Published>,
    /// Whether the kernel killed one of its processes because the memory limit was reached.
    pub oom_killed: bool,
    /// What its health checks said, if it has any.
    pub health: Option<HealthState>,
}

/// What health checks said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthState {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// How many failed in a row.
    pub failing_streak: u32,
    /// The last few, oldest first.
    pub log: Vec<HealthResult>,
}

/// What one health check said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthResult {
    /// When it began, RFC 3339.
    pub start: String,
    /// When it ended.
    pub end: String,
    /// With what; -1 for one that took too long or could not be started.
    pub exit_code: i32,
    /// What it printed, clipped.
    pub output: String,
}

/// What a container ends with whose supervisor was killed: its processes get SIGKILL.
const KILLED: i32 = 137;
/// What a container ends with that ran when the machine went down, as in docker.
const LOST: i32 = 255;

impl State {
    /// What is true of a container for which this was written and that nobody holds.
    pub(super) fn without_supervisor(mut self, boot_id: &str, written: String) -> State {
        if !self.status.is_live() {
            return self;
        }
        let (code, error) = match self.boot_id == boot_id {
            true => (KILLED, "the container's supervisor was killed"),
            false => (
                LOST,
                "the machine was restarted while the container was running",
            ),
        };
        if self.status != Status::Restarting {
            self.exit_code = code;
            // The clock of files is coarser than ours.
            self.finished_at = written.max(self.started_at.clone());
        }
        self.error = error.to_owned();
        self.status = Status::Exited;
        self.pid = 0;
        self.ports.clear();
        self
    }
}

/// The running kernel's boot id; empty where it has none: then a restart of the machine looks like a killed supervisor.
pub(super) fn boot_id() -> String {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_has_ended() {
        let running = State {
            status: Status::Running,
            pid: 7,
            boot_id: "now".to_owned(),
            ..State::default()
        };
        let check = |state: &State, boot: &str, expected: (Status, i32)| {
            let state = state.clone().without_supervisor(boot, "then".to_owned());
            assert_eq!((state.status, state.exit_code), expected);
            assert_eq!(state.pid, 0);
        };
        check(&running, "now", (Status::Exited, 137));
        check(&running, "later", (Status::Exited, 255));
        check(&State::default(), "later", (Status::Created, 0));
        let waiting = State {
            status: Status::Restarting,
            exit_code: 3,
            pid: 0,
            ..running
        };
        check(&waiting, "now", (Status::Exited, 3));
    }
}
