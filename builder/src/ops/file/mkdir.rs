//! `WORKDIR`: a directory with its parents, if it is not there.

use super::upper::{Attrs, Found};
use super::{FileOpError, Plan, chown};
use crate::graph::MkdirAction;
use crate::ops::tree::Time;

pub(super) fn mkdir(plan: &mut Plan<'_>, action: &MkdirAction) -> Result<(), FileOpError> {
    let names = plan.upper.resolve(action.path.as_bytes())?;
    if plan.upper.peek(&names)? == Found::Dir {
        return Ok(());
    }
    let owner = if action.owner.is_empty() {
        chown::Owner::default()
    } else {
        chown::resolve(&action.owner, plan.run.base)?
    };
    let new = Attrs {
        mode: action.mode,
        uid: owner.uid,
        gid: owner.gid,
        mtime: Time {
            seconds: plan.run.epoch.unwrap_or(0),
            nanos: 0,
        },
        xattrs: Vec::new(),
    };
    plan.upper.ensure_dirs(&names, &new)?;
    Ok(())
}
