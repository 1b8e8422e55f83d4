//! `top`, `stats` and `diff`, and a container in the shape of `docker inspect`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use runner::container::protocol::ContainerUsage;
use runner::container::{ClientError, Status};
use serde_json::{Value, json};
use store::Store;
use store::containers::ChangeKind;

use super::Known;
use super::host_config::host_config;
use super::lifecycle::{connect, not_running};
use super::ports;
use super::record::MountSource;
use crate::args::{DiffArgs, StatsArgs, TopArgs};
use crate::commands::now;
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::networks;
use crate::template::Format;
use crate::ui::human;
use crate::ui::table::table;

/// Clock ticks per second, which Linux shows to programs whatever it counts in.
const TICKS_PER_SECOND: u64 = 100;
/// How far the two looks of `stats` are apart.
const SAMPLE_SECONDS: i64 = 1;

/// `longshore top`.
pub fn top(context: &Context, args: &TopArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let known = Known::find(&store, &args.container)?;
    let client = connect(&known.folder)?.ok_or_else(|| not_running(&args.container))?;
    let boot = booted_at();
    let names = host_users();
    let rows = client.processes()?;
    let cells = |row: &runner::container::protocol::ProcessRow| {
        let started = boot + i64::try_from(row.start_ticks / TICKS_PER_SECOND).unwrap_or(0);
        let age = u64::try_from((now() - started).max(1)).unwrap_or(1);
        let seconds = row.cpu_ticks / TICKS_PER_SECOND;
        vec![
            names
                .get(&row.uid)
                .cloned()
                .unwrap_or_else(|| row.uid.to_string()),
            row.pid.to_string(),
            row.parent.to_string(),
            (seconds * 100 / age).to_string(),
            store::oci::time::rfc3339(started)
                .get(11..16)
                .unwrap_or_default()
                .to_owned(),
            match row.terminal {
                0 => "?".to_owned(),
                // The minor number of a pseudo-terminal is its own.
                device => format!("pts/{}", (device & 0xff) | (device >> 12 & 0xfff_ff00)),
            },
            format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            ),
            row.command.clone(),
        ]
    };
    let headings = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    context.ui.data(table(&headings, &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// The names of this machine's users, by id.
fn host_users() -> BTreeMap<u32, String> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
    });
    users.collect()
}

/// When the machine was started, in seconds since 1970.
fn booted_at() -> i64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// What a container uses, at one moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    usage: ContainerUsage,
}

/// `None` for one that does not run.
fn sample(known: &Known) -> Result<Option<Sample>, CliError> {
    let Some(client) = connect(&known.folder)? else {
        return Ok(None);
    };
    match client.usage() {
        Ok(usage) => Ok(Some(Sample {
            at: Instant::now(),
            usage,
        })),
        Err(ClientError::Lost | ClientError::Refused { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `longshore stats`.
pub fn stats(context: &Context, args: &StatsArgs) -> Result<ExitCode, CliError> {
    let format = Format::parse(&args.format)?;
    let store = context.store()?;
    loop {
        let shown: Vec<Known> = match &args.containers[..] {
            [] => Known::all(&store)?
                .into_iter()
                .filter(|known| args.all || known.state.status.is_live())
                .collect(),
            names => names
                .iter()
                .map(|name| Known::find(&store, name))
                .collect::<Result<_, _>>()?,
        };
        let before: Vec<Option<Sample>> = shown.iter().map(sample).collect::<Result<_, _>>()?;
        let pause = rustix::event::Timespec {
            tv_sec: SAMPLE_SECONDS,
            tv_nsec: 0,
        };
        rustix::event::poll(&mut [], Some(&pause)).blame(Kind::Environment)?;
        let mut rows = Vec::new();
        for (known, before) in shown.iter().zip(before) {
            let after = sample(known)?;
            rows.push(stats_row(known, before, after, args.no_trunc));
        }
        print_stats(context, &format, &rows, args.no_stream)?;
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn stats_row(known: &Known, before: Option<Sample>, after: Option<Sample>, whole: bool) -> Value {
    let id = known.container.id.to_string();
    let percent = |part: u64, whole: u64| match whole {
        0 => "0.00%".to_owned(),
        whole => {
            let hundredths = part.saturating_mul(10_000) / whole;
            format!("{}.{:02}%", hundredths / 100, hundredths % 100)
        }
    };
    let (processor, used) = match (before, after) {
        (Some(before), Some(after)) => {
            let busy = after.usage.cpu_us.saturating_sub(before.usage.cpu_us);
            let passed = u64::try_from((after.at - before.at).as_micros()).unwrap_or(u64::MAX);
            (percent(busy, passed), after.usage)
        }
        (_, after) => (
            percent(0, 0),
            after.map(|after| after.usage).unwrap_or_default(),
        ),
    };
    let limit = match after {
        Some(_) => used.memory_limit.unwrap_or_else(memory_of_machine),
        None => 0,
    };
    let pair = |a: u64, b: u64| format!("{} / {}", human::size(a), human::size(b));
    json!({
        "Container": if whole { id.as_str() } else { known.container.id.short() },
        "ID": if whole { id.as_str() } else { known.container.id.short() },
        "Name": known.container.name,
        "CPUPerc": processor,
        "MemUsage": format!(
            "{} / {}",
            human::binary_size(used.memory_bytes),
            human::binary_size(limit)
        ),
        "MemPerc": percent(used.memory_bytes, limit),
        "NetIO": pair(used.received_bytes, used.sent_bytes),
        "BlockIO": pair(used.read_bytes, used.written_bytes),
        "PIDs": used.pids.to_string(),
    })
}

fn memory_of_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn print_stats(
    context: &Context,
    format: &Format,
    rows: &[Value],
    once: bool,
) -> Result<(), CliError> {
    match format {
        Format::Json => rows.iter().try_for_each(|row| context.ui.json_line(row)),
        Format::Template(template) => context.ui.data(template.render(rows)?),
        Format::Table => {
            let headings = [
                "CONTAINER ID",
                "NAME",
                "CPU %",
                "MEM USAGE / LIMIT",
                "MEM %",
                "NET I/O",
                "BLOCK I/O",
                "PIDS",
            ];
            let fields = [
                "ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs",
            ];
            let cells = |row: &Value| {
                let cell = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
                fields.map(cell).to_vec()
            };
            let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
            let text = table(&headings, &rows);
            match !once && context.ui.stdout_is_a_terminal() {
                // From the top of a cleared screen.
                true => context.ui.data(format!("\x1b[H\x1b[2J{text}")),
                false => context.ui.data(text),
            }
        }
    }
}

/// `longshore diff`.
pub fn diff(context: &Context, args: &DiffArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let container = store.find_container(&args.container)?;
    let mut text = Vec::new();
    for (kind, path) in store.container_changes(&container)? {
        let letter = match kind {
            ChangeKind::Added => b"A ",
            ChangeKind::Changed => b"C ",
            ChangeKind::Deleted => b"D ",
        };
        text.extend_from_slice(letter);
        text.extend_from_slice(&path);
        text.push(b'\n');
    }
    context.ui.data(text)?;
    Ok(ExitCode::SUCCESS)
}

/// The bytes that a container has written, and those together with its image's.
pub fn sizes(store: &Store, known: &Known) -> Result<(u64, u64), CliError> {
    let written = space_of(known)?;
    let mut whole = written;
    for layer in known.container.layers()? {
        let layer = store
            .index()
            .layer(&layer)
            .map_err(store::StoreError::from)?;
        whole += layer.map_or(0, |layer| layer.bytes);
    }
    Ok((written, whole))
}

/// What a container has written, in bytes on disk.
fn space_of(known: &Known) -> Result<u64, CliError> {
    let mut seen = store::fs::Inodes::new();
    store::fs::disk_usage(&known.container.upper(), &mut seen).blame(Kind::Environment)
}

/// A container in the shape of `docker inspect`.
pub fn describe(store: &Store, text: &str, size: bool) -> Result<Value, CliError> {
    let known = Known::find(store, text)?;
    let (record, state) = (&known.record, &known.state);
    let argv = record.argv();
    let (path, args) = argv
        .split_first()
        .map_or(("", &[][..]), |(path, args)| (path, args));
    let time = |text: &str| match text {
        // Go's time that is none.
        "" => "0001-01-01T00:00:00Z".to_owned(),
        text => text.to_owned(),
    };
    let mounts: Vec<Value> = record
        .mounts
        .iter()
        .map(|mount| mount_value(store, mount))
        .collect();
    let exposed: BTreeMap<&str, Value> = record
        .exposed
        .iter()
        .map(|port| (port.as_str(), json!({})))
        .collect();
    let mut value = json!({
        "Id": known.container.id.to_string(),
        "Created": record.created,
        "Path": path,
        "Args": args,
        "State": {
            "Status": state.status.word(),
            "Running": matches!(state.status, Status::Running | Status::Paused),
            "Paused": state.status == Status::Paused,
            "Restarting": state.status == Status::Restarting,
            "OOMKilled": state.oom_killed,
            "Dead": false,
            "Pid": state.pid,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": time(&state.started_at),
            "FinishedAt": time(&state.finished_at),
        },
        "Image": record.image,
        "LogPath": known.container.path().join("log.json"),
        "Name": format!("/{}", known.container.name),
        "RestartCount": state.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "HostConfig": host_config(record),
        "Mounts": mounts,
        "NetworkSettings": network_settings(store, &known),
        "Config": {
            "Hostname": record.hostname.clone().unwrap_or_else(|| known.container.id.short().to_owned()),
            "User": record.user,
            "Tty": record.tty,
            "OpenStdin": record.stdin,
            "StdinOnce": record.stdin_once,
            "Env": record.env,
            "Cmd": record.cmd,
            "Image": record.image_name,
            "ExposedPorts": exposed,
            "WorkingDir": record.working_dir,
            "Entrypoint": record.entrypoint,
            "Labels": record.labels,
            "Domainname": record.domainname.as_deref().unwrap_or_default(),
            "StopTimeout": record.stop_timeout_s,
        },
    });
    if size {
        let (written, whole) = sizes(store, &known)?;
        value["SizeRw"] = json!(written);
        value["SizeRootFs"] = json!(whole);
    }
    if let Some(health) = &state.health {
        value["State"]["Health"] = json!(health);
    }
    Ok(value)
}

/// Where it is on its network, and by which ports it is reached.
fn network_settings(store: &Store, known: &Known) -> Value {
    let record = &known.record;
    let id = known.container.id.to_string();
    let network = store.network(&record.network).ok();
    let members = network
        .as_ref()
        .map(|network| store.network_members(&network.name));
    let member = members.and_then(Result::ok).unwrap_or_default();
    let member = member.into_iter().find(|member| member.id == id);
    let subnets = network.iter().flat_map(|network| &network.subnets);
    let place = |is_v4: bool| {
        let addresses = member.iter().flat_map(|member| &member.addresses);
        let address = addresses.copied().find(|a| a.is_ipv4() == is_v4)?;
        let subnet = subnets.clone().find(|subnet| subnet.contains(address))?;
        Some((
            address.to_string(),
            subnet.prefix,
            subnet.gateway.to_string(),
        ))
    };
    let (address, prefix, gateway) = place(true).unwrap_or_default();
    let (address_v6, prefix_v6, gateway_v6) = place(false).unwrap_or_default();
    let place = json!({
        "Aliases": record.aliases,
        "NetworkID": network.as_ref().map(|network| &network.id),
        "Gateway": gateway,
        "IPAddress": address,
        "IPPrefixLen": prefix,
        "IPv6Gateway": gateway_v6,
        "GlobalIPv6Address": address_v6,
        "GlobalIPv6PrefixLen": prefix_v6,
    });
    let mut value = json!({
        "Ports": ports::settings(record, &known.state.ports),
        "Networks": { record.network.clone(): place },
    });
    // Docker's older names for the place in its default network.
    if record.network == networks::DEFAULT
        && let Value::Object(fields) = &place
    {
        for (name, field) in fields.iter().filter(|(name, _)| *name != "Aliases") {
            value[name] = field.clone();
        }
    }
    value
}

fn mount_value(store: &Store, mount: &super::record::RecordMount) -> Value {
    let (kind, name, source) = match &mount.source {
        MountSource::Bind(path) => ("bind", None, path.display().to_string()),
        MountSource::Volume { name, .. } => {
            let data = store.volume(name).ok().flatten();
            let path = data.map(|volume| volume.data.display().to_string());
            ("volume", Some(name), path.unwrap_or_default())
        }
        MountSource::Tmpfs { .. } => ("tmpfs", None, String::new()),
    };
    let mut value = json!({
        "Type": kind,
        "Source": source,
        "Destination": mount.target,
        "RW": !mount.read_only,
    });
    if let Some(name) = name {
        value["Name"] = json!(name);
        value["Driver"] = json!("local");
    }
    value
}
