//! `update`: other limits and another restart policy, for containers that run and for those that do not.

use std::process::ExitCode;

use runner::Limits;
use store::Store;

use super::lifecycle::connect;
use super::{Known, each, flags};
use crate::args::UpdateArgs;
use crate::context::Context;
use crate::error::{CliError, Kind};

/// `longshore update`.
pub fn update(context: &Context, args: &UpdateArgs) -> Result<ExitCode, CliError> {
    // What makes no sense for any container is wrong usage.
    let asked = flags::limits(&args.limits, Limits::default());
    let is_alone = args.limits.memory_swap.is_some() && args.limits.memory.is_none();
    let asked = match asked {
        Err(_) if is_alone => Limits::default(),
        asked => asked?,
    };
    if asked == Limits::default() && !is_alone && args.restart.is_none() {
        return Err(CliError::new(Kind::Usage, "nothing is to be changed")
            .hint("such as `longshore update --memory 512m NAME`"));
    }
    if let Some(text) = &args.restart {
        flags::restart(text)?;
    }
    let store = context.store()?;
    each(context, &args.containers, |name| {
        update_one(&store, name, args)?;
        Ok(Some(name.to_owned()))
    })
}

fn update_one(store: &Store, name: &str, args: &UpdateArgs) -> Result<(), CliError> {
    let found = Known::find(store, name)?;
    let _held = found.folder.hold()?;
    // Nobody changes it from here on.
    let Known {
        container,
        folder,
        mut record,
        ..
    } = Known::of(found.container)?;
    let before = std::mem::take(&mut record.limits);
    record.limits =
        flags::limits(&args.limits, before.clone()).map_err(|error| error.of_kind(Kind::Input))?;
    if let Some(text) = &args.restart {
        record.restart = flags::restart(text)?;
        if record.auto_remove && record.restart != runner::container::Restart::No {
            let message = format!(
                "container `{}` is removed when it ends (--rm), and so cannot be restarted",
                container.name
            );
            return Err(CliError::new(Kind::Input, message));
        }
    }
    if let Some(client) = connect(&folder)? {
        client.update(
            &changed(&before, &record.limits),
            &record.limits,
            record.restart,
        )?;
    }
    if record.limits.pids == Some(u64::MAX) {
        record.limits.pids = None;
    }
    store.write_container_config(&container, &record.encode())?;
    Ok(())
}

/// The limits that differ. Those that the kernel counts together come together.
fn changed(before: &Limits, after: &Limits) -> Limits {
    fn of<T: PartialEq + Clone>(before: &Option<T>, after: &Option<T>) -> Option<T> {
        after.clone().filter(|_| before != after)
    }
    let is_time =
        (before.cpu_quota_us, before.cpu_period_us) != (after.cpu_quota_us, after.cpu_period_us);
    let is_memory = (before.memory, before.memory_swap) != (after.memory, after.memory_swap);
    Limits {
        memory: after.memory.filter(|_| is_memory),
        memory_swap: after.memory_swap.filter(|_| is_memory),
        memory_reservation: of(&before.memory_reservation, &after.memory_reservation),
        pids: of(&before.pids, &after.pids),
        cpu_quota_us: after.cpu_quota_us.filter(|_| is_time),
        cpu_period_us: after.cpu_period_us.filter(|_| is_time),
        cpu_shares: of(&before.cpu_shares, &after.cpu_shares),
        cpuset_cpus: of(&before.cpuset_cpus, &after.cpuset_cpus),
        cpuset_mems: of(&before.cpuset_mems, &after.cpuset_mems),
        io_weight: of(&before.io_weight, &after.io_weight),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let before = Limits {
            memory: Some(64 << 20),
            pids: Some(7),
            cpu_quota_us: Some(50_000),
            ..Limits::default()
        };
        assert!(changed(&before, &before).is_empty());
        let after = Limits {
            memory_swap: Some(96 << 20),
            cpu_shares: Some(512),
            ..before.clone()
        };
        let expected = Limits {
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            cpu_shares: Some(512),
            ..Limits::default()
        };
        assert_eq!(changed(&before, &after), expected);
    }
}
