//! Docker's `daemon.json`: mirrors of Docker Hub, and registries that are reached without care.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use serde::Deserialize;
use store::oci::reference::DOCKER_HUB;

use super::{Host, HostsError, Location, Pulls, Rule, read};
use crate::transport::target::authority;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry_mirrors: Vec<String>,
    #[serde(default)]
    insecure_registries: Vec<String>,
}

/// Reads `registry-mirrors` and `insecure-registries` of the first file that is there. Networks (`10.0.0.0/8`) among the
/// insecure ones are passed over: names are not looked up to find out. Blocks.
///
/// # Errors
/// The file cannot be read, or is not docker's.
pub(super) fn first(paths: &[PathBuf]) -> Result<Vec<Rule>, HostsError> {
    for path in paths {
        if let Some(text) = read(path)? {
            return parse(path, &text);
        }
    }
    Ok(Vec::new())
}

fn parse(path: &Path, text: &str) -> Result<Vec<Rule>, HostsError> {
    let wrong = |reason: String| HostsError::Wrong {
        path: path.to_owned(),
        reason,
    };
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let file: File = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let rule = |prefix: &str| Rule {
        prefix: prefix.to_owned(),
        blocked: false,
        mirrors: Vec::new(),
        home: Location::as_said(Host::default()),
        push: Location::as_said(Host::default()),
        file: path.to_owned(),
    };
    let insecure = |name: &str| file.insecure_registries.iter().any(|listed| listed == name);
    let mut rules = Vec::new();
    for name in &file.insecure_registries {
        if name.contains('/') {
            continue;
        }
        let location = Location::as_said(Host {
            insecure: true,
            ..Host::default()
        });
        rules.push(Rule {
            home: location.clone(),
            push: location,
            ..rule(name)
        });
    }
    let mut hub = rule(DOCKER_HUB);
    for text in &file.registry_mirrors {
        let not_one = || {
            wrong(format!(
                "the registry mirror `{text}` is none: expected http:// or https:// and a host, without user or query"
            ))
        };
        let url = Url::parse(text).map_err(|_| not_one())?;
        let plain = url.username().is_empty() && url.password().is_none();
        let bare = url.query().is_none() && url.fragment().is_none();
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain || !bare {
            return Err(not_one());
        }
        let name = authority(&url);
        let host = Host {
            plain: Some(url.scheme() == "http"),
            insecure: insecure(&name),
            ..Host::named(&name)
        };
        hub.mirrors.push(Location {
            host: Arc::new(host),
            path: url.path().trim_matches('/').to_owned(),
            pulls: Pulls::All,
        });
    }
    if !hub.mirrors.is_empty() {
        rules.push(hub);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_insecure_ones() {
        let text = r#"{
            "registry-mirrors": ["https://m.example/", "http://10.0.0.1:5000"],
            "insecure-registries": ["10.0.0.0/8", "10.0.0.1:5000", "r.lan"],
            "log-driver": "json-file"
        }"#;
        let rules = parse(Path::new("f"), text).unwrap();
        let prefixes: Vec<&str> = rules.iter().map(|rule| rule.prefix.as_str()).collect();
        assert_eq!(prefixes, ["10.0.0.1:5000", "r.lan", "docker.io"]);
        let mirrors: Vec<_> = rules[2]
            .mirrors
            .iter()
            .map(|mirror| {
                (
                    mirror.host.name.as_str(),
                    mirror.host.plain,
                    mirror.host.insecure,
                )
            })
            .collect();
        assert_eq!(
            mirrors,
            [
                ("m.example", Some(false), false),
                ("10.0.0.1:5000", Some(true), true)
            ]
        );
    }

    #[test]
    fn mistakes() {
        let check = |text: &str, expect: &str| {
            let error = parse(Path::new("f"), text).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(
            r#"{"registry-mirrors": ["m.example"]}"#,
            "`m.example` is none",
        );
        check(r#"{"registry-mirrors": ["https://u:p@m"]}"#, "without user");
        check(r#"{"registry-mirrors": 3}"#, "line 1");
    }
}
