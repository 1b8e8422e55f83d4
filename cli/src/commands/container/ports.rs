//! Published ports: docker's flags, and docker's ways to show them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use runner::StartError;
use runner::container::ClientError;
use runner::network::ports::{Protocol, Publish, Published};
use serde_json::{Value, json};
use store::Store;

use super::{Known, Record};
use crate::args::PortArgs;
use crate::context::Context;
use crate::error::{CliError, Kind};

fn usage(message: impl Into<String>) -> CliError {
    CliError::new(Kind::Usage, message.into())
        .hint("expected [[ADDRESS:]HOST_PORT:]PORT[/udp], such as 8080:80 or 127.0.0.1:5300:53/udp")
}

/// A port, or two with a dash between.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn protocol(text: &str) -> Result<Protocol, CliError> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(usage(format!(
            "invalid proto: `{text}`: tcp and udp are carried"
        ))),
    }
}

/// `-p [[ADDRESS:]HOST_PORT:]PORT[/PROTOCOL]`, with ranges.
pub fn publish(text: &str) -> Result<Vec<Publish>, CliError> {
    let (rest, name) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol(name)?;
    let (before, inside) = match rest.rsplit_once(':') {
        Some((before, inside)) => (Some(before), inside),
        None => (None, rest),
    };
    if inside.is_empty() {
        return Err(usage(format!("no port specified: `{text}`")));
    }
    let (first, last) =
        range(inside).ok_or_else(|| usage(format!("invalid containerPort: `{inside}`")))?;
    let (address, outside) = match before.map(|before| before.rsplit_once(':')) {
        None => (None, None),
        Some(None) => (None, before),
        Some(Some((address, outside))) => (Some(address), Some(outside)),
    };
    let address = address.map(|address| {
        let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
        let read = bare.unwrap_or(address).parse::<IpAddr>();
        read.map_err(|_| usage(format!("invalid ip address: `{address}`")))
    });
    let host = address.transpose()?;
    let outside = match outside.filter(|outside| !outside.is_empty()) {
        None => None,
        // Zero is docker's other word for any.
        Some("0") => None,
        Some(outside) => {
            let bad = || usage(format!("invalid hostPort: `{outside}`"));
            Some(range(outside).ok_or_else(bad)?)
        }
    };
    let one = |port: u16, host_ports: Option<(u16, u16)>| Publish {
        port,
        protocol,
        host,
        host_ports,
    };
    match outside {
        // One port inside, and any of several outside.
        Some(range) if first == last => Ok(vec![one(first, Some(range))]),
        Some((lowest, highest)) if highest - lowest == last - first => Ok((first..=last)
            .zip(lowest..=highest)
            .map(|(inside, outside)| one(inside, Some((outside, outside))))
            .collect()),
        Some((lowest, highest)) => Err(usage(format!(
            "invalid ranges specified for container and host ports: `{inside}` and `{lowest}-{highest}`"
        ))),
        None => Ok((first..=last).map(|port| one(port, None)).collect()),
    }
}

/// `--expose PORT[-PORT][/PROTOCOL]`, as an image has it: `80/tcp`.
pub fn expose(text: &str) -> Result<Vec<String>, CliError> {
    let (ports, name) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol(name)?.word();
    let (first, last) = range(ports)
        .ok_or_else(|| usage(format!("invalid range format for --expose: `{text}`")))?;
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

/// A port as an image has it; `None` for what cannot be carried.
fn exposed(text: &str) -> Option<(u16, Protocol)> {
    let (port, name) = text.split_once('/').unwrap_or((text, "tcp"));
    Some((port.parse().ok()?, protocol(name).ok()?))
}

/// Whether a port of an image can be published.
pub fn is_carried(text: &str) -> bool {
    exposed(text).is_some()
}

/// What `-p` and `-P` add up to, given the ports that the image and `--expose` have.
pub fn all(
    given: &[String],
    publish_all: bool,
    known: &[String],
) -> Result<Vec<Publish>, CliError> {
    let mut ports = Vec::new();
    for text in given {
        for port in publish(text)? {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
    }
    if publish_all {
        for (port, protocol) in known.iter().filter_map(|text| exposed(text)) {
            let is_same = |other: &Publish| (other.port, other.protocol) == (port, protocol);
            if !ports.iter().any(is_same) {
                ports.push(Publish {
                    port,
                    protocol,
                    host: None,
                    host_ports: None,
                });
            }
        }
    }
    Ok(ports)
}

/// What a port that cannot be had is called: in docker's words, if another container has it.
pub fn refused(store: &Store, error: ClientError) -> CliError {
    let ClientError::Start(StartError::Port {
        address,
        family,
        errno,
    }) = &error
    else {
        return error.into();
    };
    if errno.0 == rustix::io::Errno::ACCESS.raw_os_error() {
        let hint = "only root may have ports below 1024, or below net.ipv4.ip_unprivileged_port_start: choose a larger one";
        return CliError::from(error).hint(hint);
    }
    let Some(holder) = holder(store, address, family) else {
        let hint = "another program has it; `-p PORT` alone takes one that is free";
        return CliError::from(error).hint(hint);
    };
    let message = format!("Bind for {address} failed: port is already allocated");
    CliError::new(Kind::Input, message).hint(format!("container `{holder}` has it"))
}

/// The container that has a port of the host's.
fn holder(store: &Store, address: &str, family: &str) -> Option<String> {
    let wanted: SocketAddr = address.parse().ok()?;
    let is_it = |published: &Published| {
        let (host, protocol) = (published.host, published.protocol.word());
        let is_everywhere = host.ip().is_unspecified() || wanted.ip().is_unspecified();
        family.starts_with(protocol)
            && host.is_ipv4() == wanted.is_ipv4()
            && host.port() == wanted.port()
            && (is_everywhere || host.ip() == wanted.ip())
    };
    let all = Known::all(store).ok()?;
    let has = |known: &&Known| known.state.ports.iter().any(is_it);
    all.iter()
        .find(has)
        .map(|known| known.container.name.clone())
}

/// `longshore port`.
pub fn port(context: &Context, args: &PortArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let known = Known::find(&store, &args.container)?;
    let ports = &known.state.ports;
    let Some(text) = &args.port else {
        let lines = ports.iter().map(|published| {
            let Published { port, host, .. } = published;
            format!("{port}/{} -> {host}\n", published.protocol.word())
        });
        context.ui.data(lines.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    };
    let wanted = exposed(text).ok_or_else(|| usage(format!("invalid port: `{text}`")))?;
    let found: String = ports
        .iter()
        .filter(|published| (published.port, published.protocol) == wanted)
        .map(|published| format!("{}\n", published.host))
        .collect();
    if found.is_empty() {
        let (port, protocol) = (wanted.0, wanted.1.word());
        let message = format!(
            "no public port '{port}/{protocol}' published for {}",
            args.container
        );
        return Err(CliError::new(Kind::Input, message));
    }
    context.ui.data(found)?;
    Ok(ExitCode::SUCCESS)
}

/// `0.0.0.0:8000-8001->8000-8001/tcp, 90/udp`: the PORTS of `ps`. Neighbours are put together where their numbers are the
/// same outside and inside.
pub fn column(known: &Known) -> String {
    let (record, published) = (&known.record, &known.state.ports);
    // As docker: what shares the host's network has no ports of its own, nor has what does not run.
    if record.network == "host" || !known.state.status.is_live() {
        return String::new();
    }
    let mut rows: Vec<(u16, Protocol, Option<SocketAddr>)> = record
        .exposed
        .iter()
        .filter_map(|text| exposed(text))
        .filter(|(port, protocol)| {
            let is_same = |other: &Published| (other.port, other.protocol) == (*port, *protocol);
            !published.iter().any(is_same)
        })
        .map(|(port, protocol)| (port, protocol, None))
        .collect();
    rows.extend(published.iter().map(|published| {
        let Published {
            port,
            protocol,
            host,
        } = *published;
        (port, protocol, Some(host))
    }));
    rows.sort();
    // Ranges of equal numbers, by address and protocol; then the ports whose numbers differ.
    let mut ranges: Vec<(Option<IpAddr>, Protocol, u16, u16)> = Vec::new();
    let mut others = Vec::new();
    for (port, protocol, host) in rows {
        if let Some(host) = host.filter(|host| host.port() != port) {
            others.push(format!("{host}->{port}/{}", protocol.word()));
            continue;
        }
        let address = host.map(|host| host.ip());
        let continues = |range: &&mut (Option<IpAddr>, Protocol, u16, u16)| {
            (range.0, range.1, range.3.checked_add(1)) == (address, protocol, Some(port))
        };
        match ranges.iter_mut().find(continues) {
            Some(range) => range.3 = port,
            None => ranges.push((address, protocol, port, port)),
        }
    }
    let ranges = ranges.into_iter().map(|(address, protocol, first, last)| {
        let ports = match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        match address {
            None => format!("{ports}/{}", protocol.word()),
            Some(IpAddr::V4(address)) => format!("{address}:{ports}->{ports}/{}", protocol.word()),
            Some(IpAddr::V6(address)) => {
                format!("[{address}]:{ports}->{ports}/{}", protocol.word())
            }
        }
    });
    ranges.chain(others).collect::<Vec<_>>().join(", ")
}

/// `NetworkSettings.Ports`: what is published now, and what is not as null.
pub fn settings(record: &Record, published: &[Published]) -> Value {
    let mut ports: BTreeMap<String, Value> = record
        .exposed
        .iter()
        .map(|text| (text.clone(), Value::Null))
        .collect();
    for Published {
        port,
        protocol,
        host,
    } in published
    {
        let binding = json!({ "HostIp": host.ip(), "HostPort": host.port().to_string() });
        let entry = ports.entry(format!("{port}/{}", protocol.word()));
        match entry.or_default() {
            Value::Array(bindings) => bindings.push(binding),
            entry => *entry = json!([binding]),
        }
    }
    json!(ports)
}

/// `HostConfig.PortBindings`: what was asked for.
pub fn bindings(record: &Record) -> Value {
    let mut ports: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for publish in &record.ports {
        let host_port = match publish.host_ports {
            None => String::new(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}-{last}"),
        };
        let host = publish.host.map(|host| host.to_string());
        let binding = json!({ "HostIp": host.unwrap_or_default(), "HostPort": host_port });
        let key = format!("{}/{}", publish.port, publish.protocol.word());
        ports.entry(key).or_default().push(binding);
    }
    json!(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let ports = match publish(text) {
            Ok(ports) => ports,
            Err(error) => return error.to_string(),
        };
        let ports = ports.iter().map(|publish| {
            let host = publish
                .host
                .map(|host| host.to_string())
                .unwrap_or_default();
            let outside = match publish.host_ports {
                None => "any".to_owned(),
                Some((first, last)) => format!("{first}..{last}"),
            };
            format!(
                "{host} {outside} {}/{}",
                publish.port,
                publish.protocol.word()
            )
        });
        ports.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn all_forms_are_read() {
        let check = |text: &str, expect: &str| assert_eq!(said(text), expect, "{text}");
        check("80", " any 80/tcp");
        check("8080:80", " 8080..8080 80/tcp");
        check(":80", " any 80/tcp");
        check("0:80", " any 80/tcp");
        check("127.0.0.1::80", "127.0.0.1 any 80/tcp");
        check("127.0.0.1:8080:80/udp", "127.0.0.1 8080..8080 80/udp");
        check("[::1]:8080:80/TCP", "::1 8080..8080 80/tcp");
        check("::1:8080:80", "::1 8080..8080 80/tcp");
        check("8000-8002:80", " 8000..8002 80/tcp");
        check("8000-8001:80-81", " 8000..8000 80/tcp;  8001..8001 81/tcp");
        check("80-81", " any 80/tcp;  any 81/tcp");
        for (text, expect) in [
            ("", "no port specified"),
            ("8080:", "no port specified"),
            ("x", "invalid containerPort: `x`"),
            ("0", "invalid containerPort: `0`"),
            ("65536", "invalid containerPort"),
            ("81-80", "invalid containerPort"),
            ("x:80", "invalid hostPort: `x`"),
            ("host:1:80", "invalid ip address: `host`"),
            ("80/sctp", "invalid proto: `sctp`"),
            ("8000-8002:80-81", "invalid ranges"),
        ] {
            assert!(said(text).contains(expect), "{text}: {}", said(text));
        }
    }

    #[test]
    fn what_is_exposed_is_published_once() {
        let texts = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>();
        let known = texts(&["53/udp", "80/tcp", "81/tcp", "9/sctp"]);
        let ports = all(&texts(&["8080:80", "8080:80"]), true, &known).unwrap();
        let ports: Vec<(u16, bool)> = ports
            .iter()
            .map(|publish| (publish.port, publish.host_ports.is_some()))
            .collect();
        assert_eq!(ports, [(80, true), (53, false), (81, false)]);
        assert_eq!(expose("80-81/udp").unwrap(), ["80/udp", "81/udp"]);
        assert!(expose("x").is_err());
    }
}
