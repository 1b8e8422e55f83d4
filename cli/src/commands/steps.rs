//! The flags of `build` that are about its `RUN` steps, read.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use builder::dockerfile::suggest::nearest;
use builder::graph::exec::{HOST_GATEWAY, Limits, Network, Setting};
use builder::ops::exec::{Confined, SECRET_BYTES_MAX};
use builder::request::size::bytes;
use builder::request::{Entitlement, RunSettings, SecretSource, SecretText};

use runner::Confinement;

use super::security;
use crate::args::StepArgs;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::networks;

/// Where vendors install device specifications; the later one counts.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// A soft and a hard limit; absent is unlimited.
pub type Range = (Option<u64>, Option<u64>);

/// What the flags come to.
pub fn settings(context: &Context, args: &StepArgs) -> Result<RunSettings, CliError> {
    let mut allow = BTreeSet::new();
    for text in &args.allow {
        allow.insert(entitlement(text)?);
    }
    let network = network(&args.network)?;
    if network == Network::Host {
        // Whoever asks for it on the command line allows it.
        allow.insert(Entitlement::NetworkHost);
    }
    let given = given(context, &args.secrets, &args.ssh)?;
    let hosts = args.hosts.iter().map(|text| host(text));
    let ulimits = args.ulimits.iter().map(|text| ulimit(text));
    Ok(RunSettings {
        allow,
        network,
        host_ids: args.user_namespace == "host",
        confined: confined(args)?,
        setting: Setting {
            hostname: String::new(),
            hosts: hosts.collect::<Result<_, _>>()?,
            shm_size: size("shm-size", args.shm_size.as_deref())?,
            ulimits: ulimits.collect::<Result<_, _>>()?,
            cgroup_parent: cgroup_parent(args)?,
            limits: Box::new(limits(args)?),
        },
        ..given
    })
}

/// `--security-opt`, for processes with the default capabilities.
fn confined(args: &StepArgs) -> Result<Confined, CliError> {
    let mut confinement = Confinement::default();
    security::apply(&args.security, &mut confinement)?;
    Ok(Confined {
        seccomp: confinement.seccomp,
        no_new_privileges: confinement.no_new_privileges,
        system_paths: !confinement.mask_paths,
    })
}

/// What steps are given that is kept nowhere.
pub fn given(
    context: &Context,
    secrets: &[String],
    ssh: &[String],
) -> Result<RunSettings, CliError> {
    let mut given = RunSettings {
        on_host_network: networks::by_default(context).as_deref() == Some("host"),
        relay: networks::relay_program(context),
        cdi_dirs: CDI_DIRS.iter().map(PathBuf::from).collect(),
        ..RunSettings::default()
    };
    for text in secrets {
        let (id, source, in_key) = secret(context, text)?;
        match in_key {
            true => given.secrets_in_key.insert(id.clone()),
            false => given.secrets_in_key.remove(&id),
        };
        given.secrets.insert(id, source);
    }
    for text in ssh {
        let (id, paths) = agent(context, text)?;
        given.ssh.insert(id, paths);
    }
    Ok(given)
}

fn usage(message: String) -> CliError {
    CliError::new(Kind::Usage, message)
}

fn entitlement(text: &str) -> Result<Entitlement, CliError> {
    match text.split_once('=') {
        Some(("device", name)) if !name.is_empty() => {
            return Ok(Entitlement::Device(Some(name.to_owned())));
        }
        _ => {}
    }
    match text {
        "network.host" => Ok(Entitlement::NetworkHost),
        "security.insecure" => Ok(Entitlement::SecurityInsecure),
        "device" => Ok(Entitlement::Device(None)),
        _ => {
            let known = ["network.host", "security.insecure", "device"];
            let error = usage(format!("there is no entitlement `{text}`"));
            Err(match nearest(text, known) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error.hint(format!("there are {}", known.join(", "))),
            })
        }
    }
}

fn network(text: &str) -> Result<Network, CliError> {
    match text {
        "default" | "" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        _ => Err(usage(format!("there is no network `{text}` for steps"))
            .hint("it is default, none or host")),
    }
}

/// `id=ID[,src=FILE|,env=NAME][,type=file|env][,key=content]`; with whether its content is part of keys.
fn secret(context: &Context, text: &str) -> Result<(String, SecretSource, bool), CliError> {
    let bad = |why: &str| {
        usage(format!("cannot read the secret `{}`: {why}", shown(text)))
            .hint("expected id=ID,src=FILE or id=ID,env=NAME")
    };
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    let mut in_key = false;
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| bad("a field is no KEY=VALUE"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if matches!(value, "file" | "env") => kind = Some(value),
            "key" if value == "content" => in_key = true,
            "key" => return Err(bad("its key is not `content`")),
            "type" => return Err(bad("its type is neither file nor env")),
            key => return Err(bad(&format!("there is no key `{key}`"))),
        }
    }
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| bad("it has no id"))?;
    if kind == Some("env") && variable.is_none() {
        (file, variable) = (None, file.or(Some(id)));
    }
    if file.is_some() && variable.is_some() {
        return Err(bad("it has both a file and a variable"));
    }
    let value = |name: &str| context.variable_bytes(name);
    let source = match (file, variable) {
        (None, Some(name)) => {
            let text = value(name).ok_or_else(|| {
                let message =
                    format!("the secret `{id}` is the variable `{name}`, which is not set");
                CliError::new(Kind::Input, message)
            })?;
            SecretSource::Text(SecretText(text))
        }
        (Some(path), _) => SecretSource::File(path.into()),
        (None, None) => match value(id).filter(|_| kind.is_none()) {
            Some(text) => SecretSource::Text(SecretText(text)),
            None => SecretSource::File(id.into()),
        },
    };
    check_secret(id, &source)?;
    Ok((id.to_owned(), source, in_key))
}

/// What is said of a secret's flag: never what follows an unknown key, for that may be the secret itself.
fn shown(text: &str) -> String {
    let known = |field: &&str| {
        let key = field.split('=').next().unwrap_or_default();
        ["id", "src", "source", "env", "type"].contains(&key)
    };
    let fields: Vec<&str> = text.split(',').filter(known).collect();
    fields.join(",")
}

fn check_secret(id: &str, source: &SecretSource) -> Result<(), CliError> {
    let size = match source {
        SecretSource::Text(text) => text.0.len() as u64,
        SecretSource::File(path) => std::fs::metadata(path)
            .map_err(|error| {
                let message = format!(
                    "cannot read the secret `{id}`: `{}`: {error}",
                    path.display()
                );
                CliError::new(Kind::Input, message)
            })?
            .len(),
    };
    if size > SECRET_BYTES_MAX {
        let message = format!("the secret `{id}` is larger than {SECRET_BYTES_MAX} bytes");
        return Err(CliError::new(Kind::Input, message));
    }
    Ok(())
}

/// `ID[=PATH[,PATH…]]`.
fn agent(context: &Context, text: &str) -> Result<(String, Vec<PathBuf>), CliError> {
    let (id, paths) = match text.split_once('=') {
        Some((id, paths)) => (id, paths.split(',').map(PathBuf::from).collect()),
        None => {
            let socket = context.text_variable("SSH_AUTH_SOCK").ok_or_else(|| {
                let message =
                    format!("no SSH agent to pass on as `{text}`: SSH_AUTH_SOCK is not set");
                CliError::new(Kind::Input, message)
                    .hint("start one with `eval $(ssh-agent)`, or name a socket or key file")
            })?;
            (text, vec![PathBuf::from(socket)])
        }
    };
    if id.is_empty() {
        let error = usage(format!("cannot read --ssh `{text}`: it has no id"));
        return Err(error.hint("expected ID, ID=SOCKET or ID=KEYFILE"));
    }
    for path in &paths {
        std::fs::metadata(path).map_err(|error| {
            let message = format!(
                "cannot use `{}` as the SSH agent `{id}`: {error}",
                path.display()
            );
            CliError::new(Kind::Input, message)
        })?;
    }
    Ok((id.to_owned(), paths))
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`, IPv6 addresses in brackets or not; [`HOST_GATEWAY`] is found where the process runs.
pub fn host(text: &str) -> Result<(String, IpAddr), CliError> {
    let bad = || {
        usage(format!("cannot read the host `{text}`"))
            .hint("expected NAME:ADDRESS, such as db:10.0.0.2, or NAME:host-gateway")
    };
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(bad)?;
    let is_name = !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '#');
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    let address = match address {
        "host-gateway" => Some(HOST_GATEWAY),
        address => bare.unwrap_or(address).parse().ok(),
    };
    match address {
        Some(address) if is_name => Ok((name.to_owned(), address)),
        _ => Err(bad()),
    }
}

/// `NAME=SOFT[:HARD]`; -1 is unlimited.
pub fn ulimit(text: &str) -> Result<(String, Range), CliError> {
    let bad = |why: &str| {
        usage(format!("cannot read the limit `{text}`: {why}"))
            .hint("expected NAME=SOFT[:HARD], such as nofile=1024:2048")
    };
    let (name, value) = text.split_once('=').ok_or_else(|| bad("it has no value"))?;
    let name = name.to_ascii_lowercase();
    if !runner::ULIMITS.contains(&name.as_str()) {
        return Err(usage(format!("there is no limit `{name}`"))
            .hint(format!("there are {}", runner::ULIMITS.join(", "))));
    }
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(None),
        text => text.parse().map(Some).map_err(|_| bad("it is no number")),
    };
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let (soft, hard) = (number(soft)?, number(hard)?);
    let too_high = match (soft, hard) {
        (Some(soft), Some(hard)) => soft > hard,
        (None, Some(_)) => true,
        (_, None) => false,
    };
    match too_high {
        true => Err(bad("the soft limit is above the hard one")),
        false => Ok((name, (soft, hard))),
    }
}

fn size(flag: &str, text: Option<&str>) -> Result<Option<u64>, CliError> {
    let Some(text) = text else {
        return Ok(None);
    };
    match bytes(text) {
        Some(bytes) if bytes > 0 => Ok(Some(bytes)),
        _ => Err(usage(format!("cannot read --{flag} `{text}`"))
            .hint("expected a size such as 64m or 2g")),
    }
}

fn cgroup_parent(args: &StepArgs) -> Result<Option<String>, CliError> {
    let Some(text) = &args.cgroup_parent else {
        return Ok(None);
    };
    let is_path = text
        .trim_matches('/')
        .split('/')
        .all(|part| !matches!(part, "" | "." | ".."));
    match is_path {
        true => Ok(Some(text.clone())),
        false => Err(usage(format!("`{text}` is no path of a control group"))),
    }
}

fn limits(args: &StepArgs) -> Result<Limits, CliError> {
    let memory = size("memory", args.memory.as_deref())?;
    let memory_swap = match args.memory_swap.as_deref() {
        Some("-1") => Some(u64::MAX),
        text => size("memory-swap", text)?,
    };
    if memory_swap < memory && memory_swap.is_some() {
        let message = "--memory-swap is memory and swap together: less than --memory it cannot be";
        return Err(usage(message.to_owned()));
    }
    for (flag, list) in [
        ("cpuset-cpus", &args.cpuset_cpus),
        ("cpuset-mems", &args.cpuset_mems),
    ] {
        let is_list = |list: &String| {
            let allowed = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-');
            !list.is_empty() && list.chars().all(allowed)
        };
        if let Some(list) = list.as_ref().filter(|list| !is_list(list)) {
            return Err(usage(format!("cannot read --{flag} `{list}`"))
                .hint("expected a list such as 0-2,4"));
        }
    }
    Ok(Limits {
        memory,
        memory_swap,
        cpu_shares: args.cpu_shares,
        cpu_quota_us: args.cpu_quota,
        cpu_period_us: args.cpu_period,
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        pids: args
            .pids_limit
            .and_then(|count| u64::try_from(count).ok())
            .filter(|count| *count > 0),
        io_weight: args.blkio_weight,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let check = |text: &str, expect: Option<(&str, &str)>| {
            let found = host(text).ok();
            let found = found.map(|(name, address)| (name, address.to_string()));
            let expect = expect.map(|(name, address)| (name.to_owned(), address.to_owned()));
            assert_eq!(found, expect, "{text}");
        };
        check("db:10.0.0.2", Some(("db", "10.0.0.2")));
        check("db=10.0.0.2", Some(("db", "10.0.0.2")));
        check("db:::1", Some(("db", "::1")));
        check("db:[fe80::1]", Some(("db", "fe80::1")));
        check("h:host-gateway", Some(("h", "::ffff:0.0.0.0")));
        check("db", None);
        check(":1.2.3.4", None);
        check("a b:1.2.3.4", None);
        check("db:example", None);
    }

    #[test]
    fn ulimits() {
        let check = |text: &str, expect: Option<Range>| {
            assert_eq!(ulimit(text).ok().map(|(_, range)| range), expect, "{text}");
        };
        check("nofile=10", Some((Some(10), Some(10))));
        check("NOFILE=10:20", Some((Some(10), Some(20))));
        check("core=0:-1", Some((Some(0), None)));
        check("core=-1:5", None);
        check("nofile=20:10", None);
        check("nofile", None);
        check("nofile=x", None);
        check("files=1", None);
    }

    #[test]
    fn entitlements() {
        assert_eq!(
            entitlement("device=a/b=c").unwrap(),
            Entitlement::Device(Some("a/b=c".to_owned()))
        );
        assert!(entitlement("network.hots").is_err());
        assert!(entitlement("device=").is_err());
    }

    #[test]
    fn what_is_said_of_a_secret() {
        assert_eq!(shown("id=x,value=hush"), "id=x");
        assert_eq!(shown("hush"), "");
    }
}
