//! Steps to look around in: when one has failed, or later.
//!
//! [`OnFailure`] is called while all that a failed step was given is still in place.

use std::fmt;
use std::sync::Arc;

pub use crate::ops::exec::stopped::{RERUN, StoppedStep};

use crate::error::StepError;

/// What is to be done about a step that failed, before what it was given is taken away.
pub trait OnFailure: Send + Sync {
    /// Takes the step, on the thread that ran it. Steps that run go on meanwhile, and no further one starts. Of several that
    /// fail only the first is told of.
    fn failed(&self, step: &StoppedStep<'_>, error: &StepError);
}

/// An [`OnFailure`] that is carried along with other settings.
#[derive(Clone)]
pub struct FailureHook(pub Arc<dyn OnFailure>);

impl fmt::Debug for FailureHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailureHook")
    }
}
