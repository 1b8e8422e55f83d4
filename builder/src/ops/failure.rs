//! What happens when a step fails, before what it was given is taken away.

use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Operations;
use super::exec::Prepared;
use super::exec::stopped::StoppedStep;
use crate::error::StepError;
use crate::graph::Op;

impl Operations<'_> {
    /// Lets whoever asked for it look at a step that failed, then lets go of all it was given.
    pub(super) fn look_at_failure(&self, vertex: usize, prepared: Prepared, error: &StepError) {
        if let Some(hook) = &self.run.on_failure
            && !self.is_cancelled()
        {
            if self.looking.swap(true, Ordering::SeqCst) {
                // That one is why the build fails; this one's answer must not come before it.
                self.wait_for_the_end();
            } else {
                let step = self.vertex(vertex);
                let argv = match &step.op {
                    Op::Exec(exec) => &exec.argv[..],
                    _ => &[],
                };
                let stopped = StoppedStep {
                    name: &step.meta.name,
                    argv,
                    spec: &prepared.spec,
                };
                hook.0.failed(&stopped, error);
            }
        }
        if let Err(error) = prepared.finish() {
            tracing::warn!(%error, "what a failed step was given is not all gone");
        }
    }

    /// Waits until the build ends, which it does once somebody has looked at what failed.
    pub(super) fn wait_for_the_end(&self) {
        let mut fds = [
            PollFd::new(self.cancel, PollFlags::IN),
            PollFd::new(self.abort, PollFlags::IN),
        ];
        while !self.is_cancelled() {
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}
