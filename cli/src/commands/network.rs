//! `network`: what containers reach one another by.

use std::net::IpAddr;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use store::Store;
use store::networks::{NetworkError, NetworkInfo, NetworkMember, NetworkSubnet};

use super::inspect;
use crate::args::{
    ListFormat, NetworkCommand, NetworkCreateArgs, NetworkInspectArgs, NetworkLsArgs, NetworkRmArgs,
};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::networks;
use crate::ui::table::table;

/// How much of an id docker shows.
const ID_CHARS: usize = 12;

/// `longshore network …`.
pub fn network(context: &Context, command: &NetworkCommand) -> Result<ExitCode, CliError> {
    match command {
        NetworkCommand::Create(args) => create(context, args),
        NetworkCommand::Inspect(args) => inspect(context, args),
        NetworkCommand::Ls(args) => ls(context, args),
        NetworkCommand::Prune(_) => prune(context),
        NetworkCommand::Rm(args) => rm(context, args),
    }
}

fn create(context: &Context, args: &NetworkCreateArgs) -> Result<ExitCode, CliError> {
    if ["host", "none"].contains(&args.name.as_str()) {
        let message = format!("`{}` is no name for a network: it has a meaning", args.name);
        return Err(CliError::new(Kind::Input, message));
    }
    let mut subnets = Vec::new();
    for text in &args.subnet {
        subnets.push(subnet(text)?);
    }
    for gateway in &args.gateway {
        let Some(subnet) = subnets.iter_mut().find(|subnet| subnet.contains(*gateway)) else {
            let message = format!("gateway `{gateway}` lies in no --subnet");
            return Err(CliError::new(Kind::Usage, message));
        };
        subnet.gateway = *gateway;
    }
    for v4 in [true, false] {
        let same = |subnet: &&NetworkSubnet| subnet.first.is_ipv4() == v4;
        if subnets.iter().filter(same).count() > 1 {
            let message = "a network has one subnet of each family, at most";
            return Err(CliError::new(Kind::Usage, message));
        }
    }
    let labels = args.labels.iter().map(|label| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    });
    let ipv6 = args.ipv6 || subnets.iter().any(|subnet| subnet.first.is_ipv6());
    let store = context.store()?;
    let made = networks::create(
        &store,
        &args.name,
        args.internal,
        labels.collect(),
        subnets,
        ipv6,
    )?;
    context.ui.line(&made.id)?;
    Ok(ExitCode::SUCCESS)
}

fn subnet(text: &str) -> Result<NetworkSubnet, CliError> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        Some((address, prefix))
    });
    let (address, prefix) = parsed.ok_or_else(|| {
        CliError::new(Kind::Usage, format!("`{text}` is no subnet"))
            .hint("expected ADDRESS/PREFIX, such as 10.5.0.0/16")
    })?;
    let around = NetworkSubnet::around(address, prefix);
    // As docker: what is written has to be the subnet's own name.
    if around.first != address {
        let message = format!("`{text}` has bits set behind its prefix");
        return Err(CliError::new(Kind::Usage, message)
            .hint(format!("`{around}` is the subnet it lies in")));
    }
    Ok(around)
}

fn ls(context: &Context, args: &NetworkLsArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut rows: Vec<[String; 3]> = Vec::new();
    for network in store.networks()? {
        let id = match args.no_trunc {
            true => network.id.clone(),
            false => network.id.chars().take(ID_CHARS).collect(),
        };
        rows.push([id, network.name, "bridge".to_owned()]);
    }
    if args.quiet {
        let lines = rows.iter().map(|[id, ..]| format!("{id}\n"));
        context.ui.data(lines.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    // What every machine has, and nobody made.
    for name in ["host", "none"] {
        let driver = if name == "none" { "null" } else { name };
        rows.push([String::new(), name.to_owned(), driver.to_owned()]);
    }
    rows.sort_by(|a, b| a[1].cmp(&b[1]));
    match args.list.format() {
        ListFormat::Json => {
            for [id, name, driver] in rows {
                let row = json!({ "ID": id, "Name": name, "Driver": driver, "Scope": "local" });
                context.ui.json_line(&row)?;
            }
        }
        ListFormat::Table => {
            let rows: Vec<Vec<String>> = rows
                .into_iter()
                .map(|[id, name, driver]| vec![id, name, driver, "local".to_owned()])
                .collect();
            context
                .ui
                .data(table(&["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(context: &Context, args: &NetworkInspectArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let describe = |name: &str| describe(&store, name);
    inspect::show(context, &args.names, args.format.as_deref(), describe)
}

/// A network in the shape of `docker network inspect`.
fn describe(store: &Store, name: &str) -> Result<Value, CliError> {
    let network = store.network(name)?;
    let members = store.network_members(&network.name)?;
    let containers = members.iter().map(|member| member_json(&network, member));
    let configs = network
        .subnets
        .iter()
        .map(|subnet| json!({ "Subnet": subnet.to_string(), "Gateway": subnet.gateway }));
    Ok(json!({
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv6": network.subnets.iter().any(|subnet| subnet.first.is_ipv6()),
        "IPAM": { "Driver": "default", "Options": {}, "Config": configs.collect::<Vec<_>>() },
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "Containers": containers.collect::<Map<String, Value>>(),
        "Options": { "com.docker.network.bridge.name": networks::bridge_name(&network) },
        "Labels": network.labels,
    }))
}

fn member_json(network: &NetworkInfo, member: &NetworkMember) -> (String, Value) {
    let with_prefix = |v4: bool| {
        let pairs = network.subnets.iter().zip(&member.addresses);
        let mut texts = pairs
            .filter(|(_, address)| address.is_ipv4() == v4)
            .map(|(subnet, address)| format!("{address}/{}", subnet.prefix));
        texts.next().unwrap_or_default()
    };
    let value = json!({
        "Name": member.names.first().cloned().unwrap_or_default(),
        "IPv4Address": with_prefix(true),
        "IPv6Address": with_prefix(false),
    });
    (member.id.clone(), value)
}

fn rm(context: &Context, args: &NetworkRmArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.names {
        if args.force && matches!(store.network(name), Err(NetworkError::Unknown { .. })) {
            continue;
        }
        match networks::remove(&store, name) {
            // As docker: what was asked for.
            Ok(_) => context.ui.line(name)?,
            Err(error) => {
                context.ui.error(&error);
                code = ExitCode::from(&error);
            }
        }
    }
    Ok(code)
}

fn prune(context: &Context) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut removed = Vec::new();
    for network in store.networks()? {
        // Docker keeps its own, and so do we: it would only be made again.
        if network.name == networks::DEFAULT || !store.network_members(&network.name)?.is_empty() {
            continue;
        }
        // Who joins at this moment keeps it.
        if networks::remove(&store, &network.name).is_ok() {
            removed.push(network.name);
        }
    }
    if !removed.is_empty() {
        context
            .ui
            .line(&format!("Deleted Networks:\n{}", removed.join("\n")))?;
    }
    Ok(ExitCode::SUCCESS)
}
