//! Waiting for something to happen to a container, without asking again and again.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use runner::container::{State, Status};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use store::Store;

use super::Known;
use crate::args::Condition;
use crate::error::{Blame, CliError, Kind};

/// Tells when something happens in a container's folder. The end of a supervisor does, whatever ended it: the kernel closes
/// the file that it holds.
pub struct Watch {
    events: OwnedFd,
}

impl Watch {
    pub fn on(folder: &Path) -> Result<Watch, CliError> {
        let events = inotify::init(CreateFlags::CLOEXEC).blame(Kind::Environment)?;
        let flags = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&events, folder, flags).blame(Kind::Environment)?;
        Ok(Watch { events })
    }

    /// Waits for something, and takes all that has happened.
    pub fn wait(&self) -> Result<(), CliError> {
        let mut buffer = [0; 16 << 10];
        loop {
            match rustix::io::read(self.events.as_fd(), &mut buffer) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome.map(drop).blame(Kind::Environment),
            }
        }
    }
}

/// Waits until a container is as is wanted; with what it ended, if that was wanted.
pub fn until(store: &Store, name: &str, condition: Condition) -> Result<Option<i32>, CliError> {
    let known = Known::find(store, name)?;
    let watch = match Watch::on(known.container.path()) {
        Err(_) if !known.container.path().exists() => {
            return removed(name, &known.state, condition);
        }
        watch => watch?,
    };
    loop {
        if !known.container.path().exists() {
            return removed(name, &known.state, condition);
        }
        let state = match known.folder.state() {
            // It is on its way out: the next event says so.
            Err(_) if !known.container.path().exists() => continue,
            state => state?,
        };
        if let Some(outcome) = met(name, &state, condition) {
            return outcome;
        }
        watch.wait()?;
    }
}

/// Whether a state is what is waited for, or can no more become it.
fn met(name: &str, state: &State, condition: Condition) -> Option<Result<Option<i32>, CliError>> {
    let health = |wanted: &str| {
        let health = state.health.as_ref().map(|health| health.status.as_str());
        (health == Some(wanted)).then_some(Ok(None))
    };
    let ended = match condition {
        Condition::Removed => return None,
        Condition::Exited => {
            return (!state.status.is_live()).then_some(Ok(Some(state.exit_code)));
        }
        Condition::NotRunning => {
            let runs = matches!(state.status, Status::Running | Status::Paused);
            return (!runs).then_some(Ok(Some(state.exit_code)));
        }
        Condition::Running => (state.status == Status::Running).then_some(Ok(None)),
        Condition::Paused => (state.status == Status::Paused).then_some(Ok(None)),
        Condition::Healthy => health("healthy"),
        Condition::Unhealthy => health("unhealthy"),
    };
    let is_over = state.status == Status::Exited;
    match ended {
        None if is_over => {
            let message = format!("container `{name}` has ended with {}", state.exit_code);
            Some(Err(CliError::new(Kind::Input, message)))
        }
        ended => ended,
    }
}

/// What is said when it is gone; its last exit code is what was seen of it.
fn removed(name: &str, state: &State, condition: Condition) -> Result<Option<i32>, CliError> {
    match condition {
        Condition::Removed | Condition::Exited | Condition::NotRunning => Ok(Some(state.exit_code)),
        _ => Err(CliError::new(
            Kind::Input,
            format!("container `{name}` was removed"),
        )),
    }
}
