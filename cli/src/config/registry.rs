//! `[registry."HOST"]`: where a registry's images are looked for first, and how its server is spoken to. The keys are those
//! of BuildKit's configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use registry_client::hosts::{Host, Location, Pulls, Rule, split_location};

use super::table::{Table, TableError};

/// What one table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    mirrors: Vec<String>,
    host: Host,
    blocked: bool,
}

impl RegistryConfig {
    pub(super) fn read(table: &mut Table<'_>) -> Result<RegistryConfig, TableError> {
        let mirrors = table.texts("mirrors", |text| split_location(text).map(drop))?;
        let mut identity = None;
        for mut pair in table.tables("keypair")?.unwrap_or_default() {
            let files = (pair.text("cert")?, pair.text("key")?);
            let (Some(cert), Some(key)) = files else {
                return Err(pair.error("it needs both `cert` and `key`"));
            };
            pair.finish()?;
            if identity.is_some() {
                return Err(table.error("it has more than one `keypair`: expected one"));
            }
            identity = Some((cert.into(), key.into()));
        }
        let host = Host {
            plain: table.boolean("http")?.filter(|http| *http),
            insecure: table.boolean("insecure")?.unwrap_or(false),
            ca: table.files("ca", PathBuf::from)?,
            identity,
            ..Host::default()
        };
        Ok(RegistryConfig {
            mirrors,
            host,
            blocked: table.boolean("blocked")?.unwrap_or(false),
        })
    }
}

/// The tables as rules; a mirror is spoken to as its own table says.
pub fn rules(tables: &BTreeMap<String, RegistryConfig>, file: &Path) -> Vec<Rule> {
    let mirror = |text: &String| {
        let (name, path) = split_location(text).unwrap_or((text, ""));
        let said = tables.get(name).map(|table| table.host.clone());
        Location {
            host: Arc::new(Host {
                name: name.to_owned(),
                ..said.unwrap_or_default()
            }),
            path: path.to_owned(),
            pulls: Pulls::All,
        }
    };
    let rule = |(name, table): (&String, &RegistryConfig)| Rule {
        prefix: name.clone(),
        blocked: table.blocked,
        mirrors: table.mirrors.iter().map(mirror).collect(),
        home: Location::as_said(table.host.clone()),
        push: Location::as_said(table.host.clone()),
        file: file.to_owned(),
    };
    tables.iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_mirror_is_spoken_to_as_its_own_table_says() {
        let text = r#"
[registry."docker.io"]
mirrors = ["m.lan:5000", "harbor.lan/proxy"]
[registry."m.lan:5000"]
http = true
ca = ["/a.pem"]
[[registry."m.lan:5000".keypair]]
cert = "/c"
key = "/k"
[registry."evil.example"]
blocked = true
"#;
        let config = Config::parse(text).unwrap();
        let rules = rules(&config.registries, Path::new("f"));
        let prefixes: Vec<&str> = rules.iter().map(|rule| rule.prefix.as_str()).collect();
        assert_eq!(prefixes, ["docker.io", "evil.example", "m.lan:5000"]);
        let first = &rules[0].mirrors[0];
        assert_eq!(
            (first.host.name.as_str(), first.host.plain),
            ("m.lan:5000", Some(true))
        );
        assert_eq!(first.host.identity, Some(("/c".into(), "/k".into())));
        assert_eq!(rules[0].mirrors[1].path, "proxy");
        assert!(rules[1].blocked);
    }
}
