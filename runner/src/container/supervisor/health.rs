//! Health checks: a command in the container, every so often, and what it says of the container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;

use super::super::plan::Health;
use super::super::state::{HealthResult, HealthState};
use super::super::time::rfc3339;
use super::connection::unblock;
use crate::join::JoinSpec;
use crate::sandbox::{Sandbox, Stdio, Stream};

/// What is kept of a check's output, as in docker.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How many results are kept, as in docker.
const RESULTS_MAX: usize = 5;

/// Who runs the checks.
pub(super) struct Checker {
    health: Health,
    started: Instant,
    next: Option<Instant>,
    check: Option<Check>,
}

/// A check under way.
struct Check {
    sandbox: Sandbox,
    printed: Option<OwnedFd>,
    output: Vec<u8>,
    start: String,
    deadline: Instant,
    is_late: bool,
}

impl Checker {
    pub(super) fn new(health: Health) -> Checker {
        Checker {
            health,
            started: Instant::now(),
            next: None,
            check: None,
        }
    }

    /// The container has started.
    pub(super) fn begin(&mut self) -> HealthState {
        self.started = Instant::now();
        let state = HealthState {
            status: "starting".to_owned(),
            ..HealthState::default()
        };
        self.plan_next(&state);
        state
    }

    /// The container has ended.
    pub(super) fn stop(&mut self) {
        self.next = None;
        self.check = None;
    }

    pub(super) fn process(&self) -> Option<BorrowedFd<'_>> {
        self.check.as_ref().map(|check| check.sandbox.pidfd())
    }

    pub(super) fn printed(&self) -> Option<BorrowedFd<'_>> {
        self.check.as_ref()?.printed.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn next_time(&self) -> Option<Instant> {
        match &self.check {
            Some(check) if check.is_late => None,
            Some(check) => Some(check.deadline),
            None => self.next,
        }
    }

    /// Starts a check that is due, ends one that takes too long; whether `state` has changed.
    pub(super) fn on_time(
        &mut self,
        now: Instant,
        container: &Sandbox,
        mut spec: JoinSpec,
        state: &mut HealthState,
    ) -> bool {
        if let Some(check) = &mut self.check {
            if check.deadline <= now && !check.is_late {
                check.is_late = true;
                let _killed = check.sandbox.kill(libc::SIGKILL);
            }
            return false;
        }
        if self.next.is_none_or(|next| next > now) {
            return false;
        }
        self.next = None;
        let start = rfc3339(SystemTime::now());
        spec.process.argv.clone_from(&self.health.argv);
        spec.process.terminal = false;
        match launch(container, &spec) {
            Ok((sandbox, printed)) => {
                self.check = Some(Check {
                    sandbox,
                    printed: Some(printed),
                    output: Vec::new(),
                    start,
                    deadline: now + Duration::from_millis(self.health.timeout_ms),
                    is_late: false,
                });
                false
            }
            Err(output) => {
                self.take(state, start, -1, output);
                true
            }
        }
    }

    /// A check has ended or printed something; whether `state` has changed.
    pub(super) fn react(&mut self, has_ended: bool, state: &mut HealthState) -> bool {
        let Some(check) = &mut self.check else {
            return false;
        };
        check.read();
        if !has_ended {
            return false;
        }
        let Some(mut check) = self.check.take() else {
            return false;
        };
        let code = check.sandbox.wait().map_or(-1, |status| status.code());
        let (code, output) = match check.is_late {
            true => {
                let limit = self.health.timeout_ms;
                (
                    -1,
                    format!("health check exceeded its timeout ({limit} ms)"),
                )
            }
            false => (code, String::from_utf8_lossy(&check.output).into_owned()),
        };
        self.take(state, check.start, code, output);
        true
    }

    fn take(&mut self, state: &mut HealthState, start: String, code: i32, output: String) {
        let in_start_period = self.is_in_start_period();
        if code == 0 {
            state.failing_streak = 0;
            state.status = "healthy".to_owned();
        } else if !(state.status == "starting" && in_start_period) {
            state.failing_streak += 1;
            if state.failing_streak >= self.health.retries {
                state.status = "unhealthy".to_owned();
            }
        }
        state.log.push(HealthResult {
            start,
            end: rfc3339(SystemTime::now()),
            exit_code: code,
            output,
        });
        let excess = state.log.len().saturating_sub(RESULTS_MAX);
        drop(state.log.drain(..excess));
        self.plan_next(state);
    }

    fn is_in_start_period(&self) -> bool {
        self.started.elapsed() < Duration::from_millis(self.health.start_period_ms)
    }

    fn plan_next(&mut self, state: &HealthState) {
        let interval = match state.status == "starting" && self.is_in_start_period() {
            true => self.health.start_interval_ms,
            false => self.health.interval_ms,
        };
        self.next = Some(Instant::now() + Duration::from_millis(interval));
    }
}

impl Check {
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(fd) = &self.printed {
            match rustix::io::read(fd, &mut buffer) {
                Ok(count) if count > 0 => {
                    let room = OUTPUT_BYTES_MAX - self.output.len();
                    self.output.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => self.printed = None,
            }
        }
    }
}

/// Starts a check, with both of its outputs on one pipe.
fn launch(container: &Sandbox, spec: &JoinSpec) -> Result<(Sandbox, OwnedFd), String> {
    let pipe = || {
        let (read, write) = std::io::pipe()?;
        let write = OwnedFd::from(write);
        let other = write.try_clone()?;
        let read = OwnedFd::from(read);
        unblock(read.as_fd())?;
        Ok::<_, std::io::Error>((read, write, other))
    };
    let (read, stdout, stderr) = pipe().map_err(|error| error.to_string())?;
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Fd(stdout),
        stderr: Stream::Fd(stderr),
    };
    let sandbox = container.join(spec, stdio);
    Ok((sandbox.map_err(|error| error.to_string())?, read))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checker(start_period_ms: u64) -> Checker {
        Checker::new(Health {
            argv: vec!["true".to_owned()],
            interval_ms: 1000,
            timeout_ms: 1000,
            start_period_ms,
            start_interval_ms: 10,
            retries: 2,
        })
    }

    fn after(checker: &mut Checker, codes: &[i32]) -> (String, u32) {
        let mut state = checker.begin();
        for code in codes {
            checker.take(&mut state, String::new(), *code, String::new());
        }
        (state.status, state.failing_streak)
    }

    #[test]
    fn results_add_up() {
        let check = |codes: &[i32], status: &str, streak| {
            let expected = (status.to_owned(), streak);
            assert_eq!(after(&mut checker(0), codes), expected, "{codes:?}");
        };
        check(&[], "starting", 0);
        check(&[1], "starting", 1);
        check(&[0], "healthy", 0);
        check(&[1, 1], "unhealthy", 2);
        check(&[0, 1], "healthy", 1);
        check(&[1, 1, 0], "healthy", 0);
        check(&[1, 0, 1], "healthy", 1);
    }

    #[test]
    fn a_start_period_forgives_until_the_first_success() {
        let hour = 3_600_000;
        assert_eq!(
            after(&mut checker(hour), &[1, 1, 1]),
            ("starting".to_owned(), 0)
        );
        assert_eq!(
            after(&mut checker(hour), &[0, 1, 1]),
            ("unhealthy".to_owned(), 2)
        );
    }

    #[test]
    fn few_results_are_kept() {
        let mut checker = checker(0);
        let mut state = checker.begin();
        for code in 0..9 {
            checker.take(&mut state, String::new(), code, String::new());
        }
        let codes: Vec<i32> = state.log.iter().map(|result| result.exit_code).collect();
        assert_eq!(codes, [4, 5, 6, 7, 8]);
    }
}
