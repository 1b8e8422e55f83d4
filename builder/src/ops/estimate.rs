//! How long steps may take, so that where there are more than hands, the longest way is begun first.
//!
//! What a step took is known from the last builds of the same Dockerfile, where the step is found again by its label; or else
//! from the records of the same operation, whatever it ran on.

use std::time::Duration;

use super::Operations;
use crate::cache::{CacheRecord, op_digest};
use crate::graph::{Op, Vertex};
use crate::history::StepHistory;

/// What is assumed of a command that nothing is known of: more than a copy takes, less than a build of anything real.
const EXEC: Duration = Duration::from_secs(5);
/// Of anything that comes over a network.
const SOURCE: Duration = Duration::from_secs(2);
/// Of a copy.
const FILE: Duration = Duration::from_millis(100);

impl Operations<'_> {
    /// How long each vertex takes, as far as is known. Errors only cost knowledge.
    pub(super) fn estimates(&self) -> Vec<Duration> {
        let vertices = self.definition.vertices().iter().enumerate();
        vertices
            .map(|(vertex, step)| {
                self.measured_before(vertex)
                    .or_else(|| self.recorded(step))
                    .unwrap_or(assumed(&step.op))
            })
            .collect()
    }

    /// What it took in the latest build of this series that knows.
    fn measured_before(&self, vertex: usize) -> Option<Duration> {
        self.former().iter().find_map(|former| {
            let step: &StepHistory = &former.build.steps[former.pairs[vertex]?];
            step.took.or(step.saved).map(Duration::from_micros)
        })
    }

    /// What the same operation took when it ran last.
    fn recorded(&self, step: &Vertex) -> Option<Duration> {
        if !matches!(step.op, Op::Exec(_) | Op::File(_)) {
            return None;
        }
        let records = self.store.index().records_by_op(&op_digest(&step.op));
        let mut records = records.ok()?.into_iter();
        let took = records.find_map(|(_, row)| CacheRecord::decode(&row.result)?.took);
        took.map(Duration::from_micros)
    }
}

fn assumed(op: &Op) -> Duration {
    match op {
        Op::Exec(_) => EXEC,
        Op::Image(_) | Op::Http(_) | Op::Git(_) => SOURCE,
        Op::File(_) => FILE,
        Op::Context(_) | Op::Tree(_) | Op::Merge => Duration::ZERO,
    }
}
