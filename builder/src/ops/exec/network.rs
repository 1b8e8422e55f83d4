//! The network of steps: by which means they have one of their own, and what of `/etc` depends on it.
//!
//! Chosen when the first step that needs it runs, and the same for all steps of a build. What it is decides no result and is part
//! of no key.

use std::net::IpAddr;
use std::sync::OnceLock;

use runner::etc::{asking, nameservers, outside_resolv_conf_text, resolv_conf_text};
use runner::network::line::{Line, Outlet};
use runner::network::relay::{self, Relay};
use runner::network::{Subnet, names};
use runner::{Isolation, NetworkMode};

use super::super::Operations;
use crate::error::StepError;
use crate::graph::VertexIndex;
use crate::graph::exec::{ExecOp, HOST_GATEWAY, Network};
use crate::solve::ProgressEvent;

/// Variables that name proxies, in lower case.
const PROXY_VARIABLES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy"];

/// What a build's steps have in common.
#[derive(Debug, Default)]
pub(crate) struct StepNetwork {
    way: OnceLock<Way>,
    told_of_proxy: OnceLock<()>,
}

/// How steps have a network of their own.
#[derive(Debug)]
enum Way {
    /// A line each, through what is held here.
    Lines(Outlet),
    /// A program each that leads out of their namespaces.
    Relay(Relay),
    /// Not at all: they are on the host's.
    Host,
}

/// A step's place.
pub(super) struct Wired {
    pub(super) mode: NetworkMode,
    /// Its `/etc/resolv.conf`.
    pub(super) resolv_conf: String,
    /// Names in its `/etc/hosts`.
    pub(super) hosts: Vec<(String, IpAddr)>,
}

impl StepNetwork {
    /// Where a step is; the first time, the way of the build is found.
    pub(super) fn wire(
        &self,
        operations: &Operations<'_>,
        exec: &ExecOp,
    ) -> Result<Wired, StepError> {
        let way = match exec.network {
            Network::Default if operations.run.on_host_network => &Way::Host,
            Network::Default => self.way.get_or_init(|| Way::find(operations)),
            Network::None | Network::Host => &Way::Host,
        };
        let (mode, resolv_conf) = match (exec.network, way) {
            (Network::None, _) => (NetworkMode::None, resolv_conf_text()),
            (_, Way::Host) => (NetworkMode::Host, resolv_conf_text()),
            (_, Way::Lines(outlet)) => {
                let (line, text) = on_a_line(outlet).map_err(StepError::ResolvConf)?;
                (NetworkMode::Line(line), Ok(text))
            }
            (_, Way::Relay(relay)) => (
                NetworkMode::Relay(relay.clone()),
                resolv_conf_text().map(|text| asking(&text, relay::NAME_SERVER)),
            ),
        };
        let gateway = match &mode {
            NetworkMode::Line(line) => line.subnets[0].gateway,
            NetworkMode::Relay(_) => relay::GATEWAY,
            _ => IpAddr::from([127, 0, 0, 1]),
        };
        let hosts = exec.setting.hosts.iter().map(|(name, address)| {
            let address = if *address == HOST_GATEWAY {
                gateway
            } else {
                *address
            };
            (name.clone(), address)
        });
        Ok(Wired {
            resolv_conf: resolv_conf.map_err(StepError::ResolvConf)?,
            hosts: hosts.collect(),
            mode,
        })
    }

    /// Says, once a build, that a proxy of this machine's loopback is none to a step.
    pub(super) fn check_proxies(
        &self,
        operations: &Operations<'_>,
        vertex: usize,
        mode: &NetworkMode,
        env: &[String],
    ) {
        if matches!(mode, NetworkMode::Host | NetworkMode::None) {
            return;
        }
        let Some(variable) = env.iter().find_map(|variable| local_proxy(variable)) else {
            return;
        };
        self.told_of_proxy.get_or_init(|| {
            operations.progress.event(ProgressEvent::Note {
                vertex: Some(VertexIndex(vertex)),
                text: format!(
                    "`{variable}` is a proxy on this machine's loopback, and a step has a loopback of its own: \
                     it reaches the proxy with --network host"
                ),
            });
        });
    }
}

impl Way {
    /// The best way that there is here; says so if it is none.
    fn find(operations: &Operations<'_>) -> Way {
        if runner::isolation() != Isolation::Namespaces {
            // Which is said with all else that steps lack then.
            return Way::Host;
        }
        let taken: Vec<Subnet> = match operations.store.networks() {
            Ok(networks) => networks
                .iter()
                .flat_map(|network| &network.subnets)
                .map(|subnet| Subnet {
                    gateway: subnet.gateway,
                    prefix: subnet.prefix,
                })
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the networks of containers are not known");
                Vec::new()
            }
        };
        let why = match Outlet::open(&taken) {
            Ok(outlet) => return Way::Lines(outlet),
            Err(error) => error,
        };
        tracing::debug!(error = %why, "steps have no interfaces of the host's");
        let relay = match Relay::found(operations.run.relay.as_deref()) {
            Ok(relay) => return Way::Relay(relay),
            Err(why) => why,
        };
        operations.progress.event(ProgressEvent::Note {
            vertex: None,
            text: format!("steps are on the host's network: {why}, and {relay}"),
        });
        Way::Host
    }
}

/// A line of the outlet's, and the `/etc/resolv.conf` that goes with it: with the host's servers, unless all of them listen on its
/// loopback. Then they are asked on the step's behalf.
fn on_a_line(outlet: &Outlet) -> std::io::Result<(Line, String)> {
    let mut line = outlet.line().clone();
    let outside = outside_resolv_conf_text()?;
    if nameservers(&outside).next().is_some() {
        return Ok((line, outside));
    }
    let host = resolv_conf_text()?;
    line.servers = nameservers(&host).collect();
    if line.servers.is_empty() {
        // Whoever finds none asks that one.
        line.servers.push(IpAddr::from([127, 0, 0, 1]));
    }
    Ok((line, asking(&host, names::ADDRESS.into())))
}

/// The name of a variable, if it is one of a proxy that listens on loopback.
fn local_proxy(variable: &str) -> Option<&str> {
    let (name, url) = variable.split_once('=')?;
    if !PROXY_VARIABLES.contains(&name.to_ascii_lowercase().as_str()) {
        return None;
    }
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let address = authority.rsplit('@').next().unwrap_or_default();
    let host = match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    };
    let is_local = match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    is_local.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_of_this_machine_are_known() {
        let check = |variable: &str, expect: bool| {
            assert_eq!(local_proxy(variable).is_some(), expect, "{variable}");
        };
        check("http_proxy=http://127.0.0.1:3128", true);
        check("HTTPS_PROXY=http://user:word@localhost:3128/", true);
        check("all_proxy=socks5://[::1]:1080", true);
        check("http_proxy=127.8.9.1:3128", true);
        check("http_proxy=http://10.0.0.1:3128", false);
        check("http_proxy=http://127.0.0.1.example:3128", false);
        check("http_proxy=http://localhost@proxy.example", false);
        check("http_proxy=", false);
        check("no_proxy=localhost,127.0.0.1", false);
        check("PATH=/bin", false);
    }
}
