//! Where a repository is really reached: mirrors to be asked first, other locations, and what is blocked.
//!
//! | file | part |
//! |---|---|
//! | this | [`Host`], [`Rule`] and the look-up, pure |
//! | [`registries_conf`] | containers' `registries.conf` |
//! | [`hosts_toml`] | containerd's `certs.d/HOST/hosts.toml` |
//! | [`daemon_json`] | docker's `daemon.json` |
//! | [`short_names`] | names without a registry, where `registries.conf` says what they stand for |
//!
//! The first source that knows something about a name decides alone, so that two tools' settings are never mixed:
//! longshore's own configuration, `registries.conf`, `hosts.toml`, `daemon.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use store::oci::Reference;

mod daemon_json;
mod hosts_toml;
mod registries_conf;
mod short_names;

pub use short_names::{Choice, ShortName, ShortNameMode};

use registries_conf::RegistriesConf;

/// Largest file of settings that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why the settings of registries could not be read, or what they forbid.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostsError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write `{}`: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file says something that cannot be meant.
    #[error("`{}`: {reason}", .path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line where that is known, and what would be right.
        reason: String,
    },
    /// The settings forbid to use a registry.
    #[error("`{name}` is blocked by `{}`", .file.display())]
    Blocked {
        /// The name as it was asked for.
        name: String,
        /// Where that is said.
        file: PathBuf,
    },
}

/// How a server is spoken to, as far as it is said; all else is found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// `host[:port]`, by which its credentials and certificates are found.
    pub name: String,
    /// Whether it speaks plain http; `None` is found out.
    pub plain: Option<bool>,
    /// Whether http, or https with any certificate, will do.
    pub insecure: bool,
    /// The path of its API in place of `/v2`, without a slash at its end.
    pub api: Option<String>,
    /// The registry that it stands for, told in the query `ns` (distribution-spec, "Registry Proxying").
    pub stands_for: Option<String>,
    /// PEM files of authorities that it is trusted by, beside the usual.
    pub ca: Vec<PathBuf>,
    /// PEM files of certificate and key that prove the client.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Headers that each request to it carries: name and value.
    pub headers: Vec<(String, String)>,
    /// How long is waited for a connection, where that is said.
    pub connect_timeout: Option<Duration>,
    /// The URL of the proxy that leads to it, whatever is said of others.
    pub proxy: Option<String>,
}

impl Host {
    /// A server of which only the name is known.
    pub fn named(name: &str) -> Host {
        Host {
            name: name.to_owned(),
            ..Host::default()
        }
    }
}

/// Which references a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pulls {
    /// All.
    #[default]
    All,
    /// Those with a digest.
    Digests,
    /// Those without one.
    Tags,
}

/// A server, and what takes the place of the rule's prefix there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The server; with an empty name, the one that the reference names, and `path` means nothing.
    pub host: Arc<Host>,
    /// The name that replaces the prefix, without the host: empty, or `path/of/components`.
    pub path: String,
    /// Which references it is asked for.
    pub pulls: Pulls,
}

impl Location {
    /// Where a reference says, spoken to as `host` has it, whose name is of no account.
    pub fn as_said(host: Host) -> Location {
        Location {
            host: Arc::new(Host {
                name: String::new(),
                ..host
            }),
            path: String::new(),
            pulls: Pulls::All,
        }
    }
}

/// What is said about the names below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `host[:port][/path][:tag][@digest]`, or `*.host`.
    pub prefix: String,
    /// Whether nothing may be pulled from there or pushed to it.
    pub blocked: bool,
    /// Asked first, in this order.
    pub mirrors: Vec<Location>,
    /// Where the names below the prefix are.
    pub home: Location,
    /// Where pushes to them go.
    pub push: Location,
    /// Where the rule was said.
    pub file: PathBuf,
}

/// A server, and a name there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host: Arc<Host>,
    pub(crate) reference: Reference,
}

/// The files of other tools that say where registries are. Those that are not there say nothing.
#[derive(Clone, Debug, Default)]
pub struct HostsFiles {
    /// `registries.conf`: the first that is there counts.
    pub registries_conf: Vec<PathBuf>,
    /// Directories of `*.conf`, which change what `registries.conf` says, in this order.
    pub registries_conf_d: Vec<PathBuf>,
    /// Files in which other tools keep the aliases that their users chose, which change it once more.
    pub short_name_aliases: Vec<PathBuf>,
    /// Directories with `HOST/hosts.toml`, the first that has one for a host counts.
    pub hosts_toml: Vec<PathBuf>,
    /// `daemon.json`: the first that is there counts.
    pub daemon_json: Vec<PathBuf>,
}

/// All that is known about where registries are. Cheap to clone; files are read when a registry is first needed.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    own: Arc<Vec<Rule>>,
    files: Arc<HostsFiles>,
    read: Arc<Mutex<Read>>,
}

/// What was read so far.
#[derive(Debug, Default)]
struct Read {
    registries_conf: Option<RegistriesConf>,
    hosts_toml: BTreeMap<String, Option<Rule>>,
    daemon_json: Option<Vec<Rule>>,
}

impl Read {
    fn registries_conf(&mut self, files: &HostsFiles) -> Result<&RegistriesConf, HostsError> {
        if self.registries_conf.is_none() {
            let read = RegistriesConf::read(
                &files.registries_conf,
                &files.registries_conf_d,
                &files.short_name_aliases,
            )?;
            self.registries_conf = Some(read);
        }
        Ok(self.registries_conf.as_ref().expect("it was just read"))
    }

    fn hosts_toml(&mut self, files: &HostsFiles, name: &str) -> Result<Option<Rule>, HostsError> {
        if let Some(rule) = self.hosts_toml.get(name) {
            return Ok(rule.clone());
        }
        let rule = hosts_toml::find(&files.hosts_toml, name)?;
        self.hosts_toml.insert(name.to_owned(), rule.clone());
        Ok(rule)
    }

    fn daemon_json(&mut self, files: &HostsFiles) -> Result<&[Rule], HostsError> {
        if self.daemon_json.is_none() {
            self.daemon_json = Some(daemon_json::first(&files.daemon_json)?);
        }
        Ok(self.daemon_json.as_deref().expect("it was just read"))
    }
}

impl Hosts {
    /// What longshore's own configuration says, and where the files of other tools are.
    pub fn new(own: Vec<Rule>, files: HostsFiles) -> Hosts {
        Hosts {
            own: Arc::new(own),
            files: Arc::new(files),
            read: Arc::default(),
        }
    }

    /// Where to read what a reference names, the first to be asked first; the last is its home. Blocks: it may read files.
    pub(crate) fn to_read(&self, reference: &Reference) -> Result<Vec<Place>, HostsError> {
        let Some(rule) = self.rule(reference.registry(), &reference.to_string())? else {
            return Ok(vec![as_said(reference)]);
        };
        let asked = rule.mirrors.iter().filter(|mirror| match mirror.pulls {
            Pulls::All => true,
            Pulls::Digests => reference.digest().is_some(),
            Pulls::Tags => reference.digest().is_none(),
        });
        let mut places = Vec::new();
        for location in asked.chain([&rule.home]) {
            let place = rule.place(location, reference)?;
            if !places.contains(&place) {
                places.push(place);
            }
        }
        Ok(places)
    }

    /// Where the home of a reference's repository is: to list it, or with `writes` to push to it. Blocks.
    pub(crate) fn home(&self, reference: &Reference, writes: bool) -> Result<Place, HostsError> {
        match self.rule(reference.registry(), &reference.to_string())? {
            None => Ok(as_said(reference)),
            Some(rule) if writes => rule.place(&rule.push, reference),
            Some(rule) => rule.place(&rule.home, reference),
        }
    }

    /// Whether longshore's own configuration has a table for this `host[:port]`.
    pub(crate) fn has_table(&self, authority: &str) -> bool {
        let host = |rule: &Rule| rule.prefix.split('/').next() == Some(authority);
        self.own.iter().any(host)
    }

    /// The server that answers for a whole registry, `host[:port]`. Blocks.
    pub(crate) fn server(&self, registry: &str) -> Result<Arc<Host>, HostsError> {
        let host = match self.rule(registry, registry)? {
            Some(rule) if rule.push.host.name.is_empty() => Host {
                name: registry.to_owned(),
                ..Host::clone(&rule.push.host)
            },
            Some(rule) => return Ok(rule.push.host),
            None => Host::named(registry),
        };
        Ok(Arc::new(host))
    }

    /// The rule for a name, of the first source that has one.
    fn rule(&self, registry: &str, name: &str) -> Result<Option<Rule>, HostsError> {
        let files = &self.files;
        let mut found = longest(&self.own, name);
        if found.is_none() {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            found = longest(&read.registries_conf(files)?.rules, name);
            if found.is_none() {
                found = read.hosts_toml(files, registry)?;
            }
            if found.is_none() {
                found = longest(read.daemon_json(files)?, name);
            }
        }
        match found {
            Some(rule) if rule.blocked => Err(HostsError::Blocked {
                name: name.to_owned(),
                file: rule.file,
            }),
            found => Ok(found),
        }
    }
}

/// Of the rules that cover a name, the one with the longest prefix; the first of equals.
fn longest(rules: &[Rule], name: &str) -> Option<Rule> {
    let fitting = rules.iter().filter_map(|rule| {
        matched(&rule.prefix, name)?;
        // A wildcard says less than any prefix that is spelt out.
        let spelt = !rule.prefix.starts_with("*.");
        Some(((spelt, rule.prefix.len()), rule))
    });
    let best = fitting.rev().max_by_key(|(rank, _)| *rank);
    best.map(|(_, rule)| rule.clone())
}

impl Rule {
    /// The name at a location that takes the place of the prefix.
    fn place(&self, location: &Location, reference: &Reference) -> Result<Place, HostsError> {
        if location.host.name.is_empty() {
            let host = Host {
                name: reference.registry().to_owned(),
                ..Host::clone(&location.host)
            };
            return Ok(Place {
                host: Arc::new(host),
                reference: reference.clone(),
            });
        }
        let name = reference.to_string();
        let length = matched(&self.prefix, &name).unwrap_or_default();
        let rest = name.get(length..).unwrap_or_default();
        let slash = match location.path.is_empty() {
            true => "",
            false => "/",
        };
        let text = format!("{}{slash}{}{rest}", location.host.name, location.path);
        let wrong = |reason: String| HostsError::Wrong {
            path: self.file.clone(),
            reason: format!("`{}` leads to `{text}`: {reason}", self.prefix),
        };
        let mut there: Reference = text
            .parse()
            .map_err(|error: store::oci::reference::ReferenceError| wrong(error.reason))?;
        // A prefix that holds the tag may lose it on the way.
        if there.digest() != reference.digest() || there.tag() != reference.tag() {
            there = match (reference.digest(), reference.tag()) {
                (Some(digest), _) => there.with_digest(digest),
                (None, Some(tag)) => there.with_tag(tag).map_err(|error| wrong(error.reason))?,
                (None, None) => there,
            };
        }
        Ok(Place {
            host: Arc::clone(&location.host),
            reference: there,
        })
    }
}

fn as_said(reference: &Reference) -> Place {
    Place {
        host: Arc::new(Host::named(reference.registry())),
        reference: reference.clone(),
    }
}

/// How many bytes of a name a prefix covers; `None` where it is another's.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host_end = name.find(['/', ':', '@']).unwrap_or(name.len());
        let host = &name[..host_end];
        let port_end = name.find('/').unwrap_or(name.len());
        // `*.host` has no port.
        return (host.len() > domain.len() && host.ends_with(domain)).then_some(port_end);
    }
    let rest = name.strip_prefix(prefix)?;
    let ends = rest.is_empty() || rest.starts_with(['/', ':', '@']);
    // `host` is no prefix of `host:5000/x`: that colon starts a port.
    let port = !prefix.contains('/') && rest.starts_with(':');
    (ends && !port).then_some(prefix.len())
}

/// Splits `host[:port][/path]`, the form of locations in all the files.
pub fn split_location(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim_end_matches('/');
    let (host, path) = text.split_once('/').unwrap_or((text, ""));
    if host.is_empty() || text.contains("://") || text.contains(char::is_whitespace) {
        return Err(format!(
            "`{text}` is no location: expected host[:port][/path]"
        ));
    }
    Ok((host, path))
}

/// Tells of the keys of a table that mean nothing here: settings of newer tools, or mistakes.
fn unknown_keys(path: &Path, before: &str, table: &toml::Table, known: &[&str]) {
    for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
        tracing::warn!(
            "`{}`: nothing is made of the key `{before}{key}`",
            path.display()
        );
    }
}

/// Reads a file of settings; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>, HostsError> {
    use std::io::Read as _;

    let fail = |source| HostsError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(fail)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(HostsError::Wrong {
            path: path.to_owned(),
            reason: format!("it has more than {FILE_BYTES_MAX} bytes"),
        });
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(text: &str, pulls: Pulls) -> Location {
        let (host, path) = split_location(text).unwrap();
        Location {
            host: Arc::new(Host::named(host)),
            path: path.to_owned(),
            pulls,
        }
    }

    fn rule(prefix: &str, mirrors: &[(&str, Pulls)], home: Option<&str>) -> Rule {
        Rule {
            prefix: prefix.to_owned(),
            blocked: false,
            mirrors: mirrors
                .iter()
                .map(|(text, pulls)| location(text, *pulls))
                .collect(),
            home: match home {
                Some(text) => location(text, Pulls::All),
                None => Location::as_said(Host::default()),
            },
            push: Location::as_said(Host::default()),
            file: PathBuf::from("f"),
        }
    }

    /// As if the files said this.
    fn hosts(own: Vec<Rule>, registries_conf: Vec<Rule>, daemon_json: Vec<Rule>) -> Hosts {
        let hosts = Hosts::new(own, HostsFiles::default());
        let registries_conf = RegistriesConf {
            rules: registries_conf,
            ..RegistriesConf::default()
        };
        *hosts.read.lock().unwrap() = Read {
            registries_conf: Some(registries_conf),
            daemon_json: Some(daemon_json),
            ..Read::default()
        };
        hosts
    }

    #[test]
    fn prefixes() {
        let check = |prefix: &str, name: &str, expect: Option<usize>| {
            assert_eq!(matched(prefix, name), expect, "{prefix} {name}");
        };
        check("a.example", "a.example/x:1", Some(9));
        check("a.example", "a.example:5000/x:1", None);
        check("a.example:5000", "a.example:5000/x:1", Some(14));
        check("a.example/te", "a.example/team/x:1", None);
        check("a.example/team", "a.example/team/x:1", Some(14));
        check("a.example/team/x", "a.example/team/x:1", Some(16));
        check("a.example/team/x:1", "a.example/team/x:1", Some(18));
        check("a.example/team/x:1", "a.example/team/x:12", None);
        check("*.example", "a.b.example/x:1", Some(11));
        check("*.example", "a.b.example:5000/x:1", Some(16));
        check("*.example", "example/x:1", None);
        check("*.example", "badexample/x:1", None);
    }

    #[test]
    fn places_in_their_order() {
        let hosts = hosts(
            vec![rule("own.example", &[("m.example", Pulls::All)], None)],
            vec![
                rule("own.example", &[("never.example", Pulls::All)], None),
                rule(
                    "r.example/foo",
                    &[
                        ("m0.example/mirror-of-foo", Pulls::All),
                        ("m1.example:5000", Pulls::Digests),
                        ("m2.example", Pulls::Tags),
                    ],
                    Some("inner.example/bar"),
                ),
                rule("*.example", &[("wild.example", Pulls::All)], None),
            ],
            vec![rule("docker.io", &[("hub.example", Pulls::All)], None)],
        );
        let digest = store::oci::Digest::of(b"");
        let check = |name: &str, expect: &[&str]| {
            let reference: Reference = name.parse().unwrap();
            let places = hosts.to_read(&reference).unwrap();
            let found: Vec<String> = places
                .iter()
                .map(|place| place.reference.to_string())
                .collect();
            assert_eq!(found, expect, "{name}");
        };
        check(
            "own.example/x",
            &["m.example/x:latest", "own.example/x:latest"],
        );
        check(
            "r.example/foo/image:1",
            &[
                "m0.example/mirror-of-foo/image:1",
                "m2.example/image:1",
                "inner.example/bar/image:1",
            ],
        );
        check(
            &format!("r.example/foo/image@{digest}"),
            &[
                &format!("m0.example/mirror-of-foo/image@{digest}"),
                &format!("m1.example:5000/image@{digest}"),
                &format!("inner.example/bar/image@{digest}"),
            ],
        );
        check(
            "r.example/other:1",
            &["wild.example/other:1", "r.example/other:1"],
        );
        check(
            "alpine:3",
            &["hub.example/library/alpine:3", "docker.io/library/alpine:3"],
        );
        check("quay.io/x:1", &["quay.io/x:1"]);
    }

    #[test]
    fn pushes_go_where_the_name_says() {
        let mut moved = rule("r.example/foo", &[], Some("inner.example/bar"));
        let reference: Reference = "r.example/foo/x:1".parse().unwrap();
        let check = |rule: &Rule, writes: bool, expect: &str| {
            let hosts = hosts(Vec::new(), vec![rule.clone()], Vec::new());
            let place = hosts.home(&reference, writes).unwrap();
            assert_eq!(place.reference.to_string(), expect);
        };
        check(&moved, true, "r.example/foo/x:1");
        check(&moved, false, "inner.example/bar/x:1");
        moved.push = moved.home.clone();
        check(&moved, true, "inner.example/bar/x:1");
        moved.blocked = true;
        let hosts = hosts(Vec::new(), vec![moved], Vec::new());
        let error = hosts.home(&reference, true).unwrap_err();
        assert_eq!(error.to_string(), "`r.example/foo/x:1` is blocked by `f`");
    }
}
