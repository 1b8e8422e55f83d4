//! What happens when a step fails: somebody may look, and what it left is kept for a while.

use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use store::fs::Inodes;
use store::snapshot::ActiveSnapshot;

use super::exec::Prepared;
use super::exec::stopped::StoppedStep;
use super::{Operations, base_of};
use crate::error::StepError;
use crate::graph::{Op, VertexIndex};
use crate::solve::ProgressEvent;

impl Operations<'_> {
    /// Lets whoever asked for it look at a step that failed, lets go of all it was given, and keeps what it left.
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
        let kept = prepared
            .finish()
            .and_then(|active| self.keep_failed(vertex, active));
        // The build has an error already, and it is not this one.
        if let Err(error) = kept {
            tracing::warn!(%error, "what a failed step left is not kept");
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

    /// Keeps what a step wrote until it failed, if the history knows the build and it is not too much.
    fn keep_failed(&self, vertex: usize, active: ActiveSnapshot) -> Result<(), StepError> {
        let keep = self.store.failed_keep();
        let build = self.build.as_ref().filter(|_| keep.steps > 0);
        let Some(build) = build else {
            return Ok(active.discard()?);
        };
        let bytes = store::fs::disk_usage(active.upper(), &mut Inodes::new());
        let bytes = bytes.map_err(store::StoreError::from)?;
        // It may be what filled the disk, and then nothing else would go on.
        let has_room = bytes <= self.store.disk()?.free;
        let kept = bytes <= keep.bytes && has_room && {
            let base = base_of(self.vertex(vertex));
            let below = base.map(|base| self.layers(base)).unwrap_or_default();
            let info = self
                .store
                .publish_layer(|| Ok::<_, StepError>(active.commit()?))?;
            self.store.keep_failed(build, vertex, &info, &below)?
        };
        if !kept {
            self.progress.event(ProgressEvent::Note {
                vertex: Some(VertexIndex(vertex)),
                text: "what the failed step left is too large to be kept".to_owned(),
            });
        }
        Ok(())
    }
}
