//! `HostConfig` of `docker inspect`: what a container was made with.

use runner::Namespace;
use runner::container::Restart;
use serde_json::{Value, json};

use super::given::OF_CONTAINER;
use super::ports;
use super::record::Record;

/// Docker's object of that name.
pub fn host_config(record: &Record) -> Value {
    let (policy, retries) = match record.restart {
        Restart::No => ("no", 0),
        Restart::OnFailure { times } => ("on-failure", times.unwrap_or(0)),
        Restart::Always => ("always", 0),
        Restart::UnlessStopped => ("unless-stopped", 0),
    };
    let ulimits = record.ulimits.iter().map(|limit| {
        let value = |value: Option<u64>| value.map_or(json!(-1), |value| json!(value));
        json!({ "Name": limit.name, "Soft": value(limit.soft), "Hard": value(limit.hard) })
    });
    let ulimits: Vec<Value> = ulimits.collect();
    let limits = &record.limits;
    let mut value = json!({
        "NetworkMode": record.network,
        "PortBindings": ports::bindings(record),
        "PublishAllPorts": record.publish_all,
        "RestartPolicy": { "Name": policy, "MaximumRetryCount": retries },
        "AutoRemove": record.auto_remove,
        "Privileged": record.privileged,
        "ReadonlyRootfs": record.read_only,
        "ShmSize": record.shm_size.unwrap_or(64 << 20),
        "Init": record.init,
        "LogConfig": {
            "Type": if record.log.is_some() { "json-file" } else { "none" },
        },
    });
    let used = json!({
        "Memory": limits.memory.unwrap_or(0),
        "NanoCpus": limits.cpu_quota_us.map_or(0, |quota| {
            quota.saturating_mul(1_000_000_000) / limits.cpu_period_us.unwrap_or(100_000)
        }),
        "MemorySwap": match limits.memory_swap {
            // Docker's word for as much as there is.
            Some(u64::MAX) => json!(-1),
            swap => json!(swap.unwrap_or(0)),
        },
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "CpuQuota": limits.cpu_quota_us.unwrap_or(0),
        "CpuPeriod": limits.cpu_period_us.unwrap_or(0),
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "CpusetCpus": limits.cpuset_cpus.as_deref().unwrap_or_default(),
        "CpusetMems": limits.cpuset_mems.as_deref().unwrap_or_default(),
        "BlkioWeight": limits.io_weight.unwrap_or(0),
        "OomScoreAdj": record.oom_score.unwrap_or(0),
        "Ulimits": ulimits,
        "Sysctls": record.sysctls,
        "CgroupParent": record.cgroup_parent.as_deref().unwrap_or_default(),
        "IpcMode": shared(record, Namespace::Ipc, record.shared.ipc),
        "PidMode": shared(record, Namespace::Pid, record.shared.pid),
        "UTSMode": shared(record, Namespace::Uts, record.shared.uts),
        "UsernsMode": if record.host_ids { "host" } else { "private" },
        "PidsLimit": limits.pids,
    });
    merge(&mut value, used);
    value
}

/// Adds the fields of an object to those of another.
fn merge(value: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (value, more) {
        fields.extend(more);
    }
}

/// Whose namespace it has, in docker's words.
fn shared(record: &Record, namespace: Namespace, with_host: bool) -> String {
    match record.joined.get(&namespace) {
        Some(id) => format!("{OF_CONTAINER}{id}"),
        None if with_host => "host".to_owned(),
        None => "private".to_owned(),
    }
}
