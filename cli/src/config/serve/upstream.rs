//! `[[upstream]]`: registries that are read through this one, and `--upstream`, which says the least of it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use registry_client::hosts::split_location;
use registry_server::routes::RepositoryName;
use store::oci::Reference;
use store::oci::reference::DOCKER_HUB;

use super::super::table::{Table, TableError};

/// What one table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// `prefix`: below which names it is found; `None` for all.
    pub prefix: Option<RepositoryName>,
    /// `url`: where it is.
    pub url: UpstreamUrl,
    /// `namespaces`: what clients of a mirror call it.
    pub namespaces: Option<Vec<String>>,
    /// `mirrors`: asked first, in order.
    pub mirrors: Vec<String>,
    /// `insecure`: http, or https with any certificate, will do.
    pub insecure: bool,
    /// `ca`: authorities that it is trusted by, beside the system's.
    pub ca: Vec<PathBuf>,
    /// `username` and `password_file`.
    pub login: Option<(String, PathBuf)>,
    /// `credentials`: a file in the form of docker's `config.json`.
    pub credentials: Option<PathBuf>,
    /// `tag_age`.
    pub tag_age: Option<Duration>,
    /// `absent_age`.
    pub absent_age: Option<Duration>,
    /// `down_age`.
    pub down_age: Option<Duration>,
    /// `fetches`: blobs that are fetched at once.
    pub fetches: Option<u64>,
}

/// `[http[s]://]HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// `host[:port]`.
    pub host: String,
    /// What its repositories' names begin with there; empty for nothing.
    pub path: String,
    /// Whether it speaks plain http; `None` is found out.
    pub plain: Option<bool>,
}

impl FromStr for UpstreamUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<UpstreamUrl, String> {
        let (plain, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some(true), rest),
            Some(("https", rest)) => (Some(false), rest),
            None => (None, text),
            Some((scheme, _)) => return Err(format!("`{scheme}` is neither http nor https")),
        };
        let (host, path) = split_location(rest)?;
        // Its web site, its old name, and the host that answers for it.
        let host = match host {
            "registry-1.docker.io" | "index.docker.io" | "hub.docker.com" => DOCKER_HUB,
            host => host,
        };
        let named: Reference = match path {
            "" => format!("{host}/x/x"),
            path => format!("{host}/{path}/x"),
        }
        .parse()
        .map_err(|error: store::oci::ReferenceError| error.reason)?;
        if named.registry() != host {
            return Err(format!(
                "`{host}` is no host: expected one with a dot or a port, or localhost"
            ));
        }
        Ok(UpstreamUrl {
            host: host.to_owned(),
            path: path.to_owned(),
            plain,
        })
    }
}

impl FromStr for UpstreamConfig {
    type Err = String;

    /// `[PREFIX=]URL`: without a prefix it is the host's name; `/` stands for none.
    fn from_str(text: &str) -> Result<UpstreamConfig, String> {
        let (prefix, url) = match text.split_once('=') {
            Some((prefix, url)) => (Some(prefix), url),
            None => (None, text),
        };
        let url: UpstreamUrl = url.parse()?;
        let prefix = read_prefix(prefix.unwrap_or(&url.host))?;
        Ok(UpstreamConfig::new(prefix, url))
    }
}

impl UpstreamConfig {
    fn new(prefix: Option<RepositoryName>, url: UpstreamUrl) -> UpstreamConfig {
        UpstreamConfig {
            prefix,
            url,
            namespaces: None,
            mirrors: Vec::new(),
            insecure: false,
            ca: Vec::new(),
            login: None,
            credentials: None,
            tag_age: None,
            absent_age: None,
            down_age: None,
            fetches: None,
        }
    }

    /// Reads a table whose files are found by `file`.
    pub(super) fn read(
        table: &mut Table<'_>,
        file: impl Fn(String) -> PathBuf,
    ) -> Result<UpstreamConfig, TableError> {
        let mut config = UpstreamConfig::read_reach(table, file)?;
        let namespaces = table.texts("namespaces", |_| Ok(()))?;
        config.namespaces = (!namespaces.is_empty()).then_some(namespaces);
        config.tag_age = table.duration("tag_age")?;
        config.absent_age = table.duration("absent_age")?;
        config.down_age = table.duration("down_age")?;
        config.fetches = table.number_from(1, "fetches")?;
        Ok(config)
    }

    /// Reads where a registry is, how it is reached and who we are there.
    pub(super) fn read_reach(
        table: &mut Table<'_>,
        file: impl Fn(String) -> PathBuf,
    ) -> Result<UpstreamConfig, TableError> {
        let Some(url) = table.text("url")? else {
            return Err(table.error("it needs `url`, where the registry is"));
        };
        let url: UpstreamUrl = url
            .parse()
            .map_err(|why: String| table.error_at("url", &why))?;
        let prefix = table.text("prefix")?;
        let prefix = read_prefix(prefix.as_deref().unwrap_or("/"))
            .map_err(|why| table.error_at("prefix", &why))?;
        let mut config = UpstreamConfig::new(prefix, url);
        config.mirrors = table.texts("mirrors", |text| split_location(text).map(drop))?;
        config.insecure = table.boolean("insecure")?.unwrap_or(false);
        config.ca = table.files("ca", &file)?;
        config.login = match (table.text("username")?, table.text("password_file")?) {
            (Some(name), Some(password)) => Some((name, file(password))),
            (None, None) => None,
            _ => return Err(table.error("it needs both `username` and `password_file`")),
        };
        config.credentials = table.text("credentials")?.map(file);
        Ok(config)
    }
}

fn read_prefix(text: &str) -> Result<Option<RepositoryName>, String> {
    match text {
        "/" => Ok(None),
        text => RepositoryName::parse(text)
            .map(Some)
            .map_err(|why| format!("`{text}` is no beginning of names: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_where_and_below_what() {
        let check = |text: &str, expect: Result<(&str, &str, &str, Option<bool>), &str>| {
            let found = text.parse::<UpstreamConfig>();
            let found = found.as_ref().map_err(String::as_str).map(|config| {
                let prefix = config.prefix.as_ref().map_or("/", RepositoryName::as_str);
                let url = &config.url;
                (prefix, url.host.as_str(), url.path.as_str(), url.plain)
            });
            assert_eq!(found, expect, "{text}");
        };
        check("docker.io", Ok(("docker.io", "docker.io", "", None)));
        check(
            "docker.io=https://registry-1.docker.io",
            Ok(("docker.io", "docker.io", "", Some(false))),
        );
        check("/=docker.io", Ok(("/", "docker.io", "", None)));
        check(
            "team=http://harbor.lan:8080/proxy/x/",
            Ok(("team", "harbor.lan:8080", "proxy/x", Some(true))),
        );
        check(
            "harbor.lan:8080",
            Err(
                "`harbor.lan:8080` is no beginning of names: `harbor.lan:8080` in the repository has characters other than a-z, 0-9 and the separators `.`, `_`, `__` and `-`",
            ),
        );
        check("ftp://x.y", Err("`ftp` is neither http nor https"));
        check(
            "x=harbor",
            Err("`harbor` is no host: expected one with a dot or a port, or localhost"),
        );
    }
}
