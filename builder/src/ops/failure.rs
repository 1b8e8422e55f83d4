//! What happens when a step fails: somebody may look, and what it left is kept for a while.

use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use store::fs::Inodes;
use store::snapshot::ActiveSnapshot;

use super::exec::stopped::StoppedStep;
use super::exec::{Prepared, bystander};
use super::{Operations, base_of};
use crate::error::StepError;
use crate::graph::{Op, VertexIndex};
use crate::solve::ProgressEvent;

impl Operations<'_> {
    /// Lets whoever asked for it look at a step that failed, lets go of all it was given, and keeps what it left.
    pub(super) fn look_at_failure(&self, vertex: usize, prepared: Prepared, error: &StepError) {
        self.let_look(vertex, &prepared, error);
        let kept = prepared
            .finish()
            .and_then(|active| self.keep_failed(vertex, active));
        // The build has an error already, and it is not this one.
        if let Err(error) = kept {
            tracing::warn!(%error, "what a failed step left is not kept");
        }
    }

    /// Lets whoever asked for it look at what a step that copies files began with, or would have: it leaves nothing when it
    /// fails. That has to be here, and to be something, to have a shell in.
    pub(super) fn look_before(&self, vertex: usize, error: &StepError) {
        let is_wanted = self.run.on_failure.is_some() && !self.is_cancelled();
        let base = base_of(self.vertex(vertex));
        if !is_wanted || !base.is_some_and(|base| self.stands(base)) || store::is_disk_full(error) {
            return;
        }
        let looked = Prepared::new(self, vertex, &bystander(), None).and_then(|prepared| {
            self.let_look(vertex, &prepared, error);
            Ok(prepared.finish()?.discard()?)
        });
        // The build has an error already, and it is not this one.
        if let Err(error) = looked {
            tracing::warn!(%error, "nobody can look at what a failed step began with");
        }
    }

    /// Whether all layers of a result are here.
    fn stands(&self, vertex: usize) -> bool {
        let mut below = std::iter::successors(Some(vertex), |&at| base_of(self.vertex(at)));
        below.all(|at| self.state(at).outcome.is_some() && self.is_here(at))
    }

    fn let_look(&self, vertex: usize, prepared: &Prepared, error: &StepError) {
        let Some(hook) = &self.run.on_failure else {
            return;
        };
        if self.is_cancelled() {
            return;
        }
        if self.looking.swap(true, Ordering::SeqCst) {
            // That one is why the build fails; this one's answer must not come before it.
            return self.wait_for_the_end();
        }
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
