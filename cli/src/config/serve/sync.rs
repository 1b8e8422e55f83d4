//! `[[sync]]`: repositories of other registries that are mirrored into this one.

use std::path::PathBuf;
use std::time::Duration;

use registry_server::rate::Rate;
use registry_server::sync::choose::{Choice, VersionRange};
use registry_server::sync::pattern::NamePattern;
use store::oci::Platform;

use super::super::table::{Table, TableError};
use super::upstream::UpstreamConfig;

/// What one table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncConfig {
    /// `name`.
    pub name: String,
    /// `url`, `prefix`, and how that registry is reached.
    pub source: UpstreamConfig,
    /// `repositories`, `exclude_repositories`, `tags`, `exclude`, `versions`, `newest`.
    pub choice: Choice,
    /// `platforms`.
    pub platforms: Vec<Platform>,
    /// `referrers`.
    pub referrers: bool,
    /// `delete`.
    pub delete: bool,
    /// `every`.
    pub every: Option<Duration>,
    /// `transfers`.
    pub transfers: Option<u64>,
    /// `requests_per_second`.
    pub rate: Option<Rate>,
}

impl SyncConfig {
    /// Reads a table whose files are found by `file`.
    pub(super) fn read(
        table: &mut Table<'_>,
        file: impl Fn(String) -> PathBuf,
    ) -> Result<SyncConfig, TableError> {
        let Some(name) = table.text("name")? else {
            return Err(table.error("it needs `name`, what it is called"));
        };
        let source = UpstreamConfig::read_reach(table, file)?;
        let mut patterns = |key| -> Result<Vec<NamePattern>, TableError> {
            let texts = table.texts(key, |text| text.parse::<NamePattern>().map(drop))?;
            Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
        };
        let repositories = patterns("repositories")?;
        let exclude_repositories = patterns("exclude_repositories")?;
        let (tags, exclude_tags) = (patterns("tags")?, patterns("exclude")?);
        if repositories.is_empty() {
            return Err(table.error("it needs `repositories`, such as [\"library/alpine\"]"));
        }
        let versions = table.text("versions")?;
        let versions = versions
            .map(|text| text.parse::<VersionRange>())
            .transpose();
        let newest = table.number_from(1, "newest")?;
        let choice = Choice {
            repositories,
            exclude_repositories,
            tags,
            exclude_tags,
            versions: versions.map_err(|why| table.error_at("versions", &why))?,
            newest: newest.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        };
        let platform = |text: &str| {
            let parsed = builder::lower::parse_platform(text);
            parsed.map_err(|error| error.to_string())
        };
        let platforms = table.texts("platforms", |text| platform(text).map(drop))?;
        let rate = table.number_from(1, "requests_per_second")?;
        Ok(SyncConfig {
            name,
            source,
            choice,
            platforms: platforms
                .iter()
                .filter_map(|text| platform(text).ok())
                .collect(),
            referrers: table.boolean("referrers")?.unwrap_or(true),
            delete: table.boolean("delete")?.unwrap_or(false),
            every: table.duration("every")?,
            transfers: table.number_from(1, "transfers")?,
            rate: rate.map(|count| Rate::per_second(u32::try_from(count).unwrap_or(u32::MAX))),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::ServeConfig;
    use super::*;

    fn parse(text: &str) -> Result<Vec<SyncConfig>, TableError> {
        ServeConfig::parse(text, Path::new("/etc")).map(|config| config.syncs)
    }

    #[test]
    fn everything_can_be_said() {
        let read = parse(
            r#"
[[sync]]
name = "base"
url = "https://hub.example/proxy"
prefix = "mirror"
username = "me"
password_file = "password"
repositories = ["library/alpine", "team/*"]
exclude_repositories = ["team/tmp"]
tags = ["3.*", '/edge-\d+/']
exclude = ["*-rc*"]
versions = ">=3.1 <4"
newest = 5
platforms = ["linux/amd64", "linux/arm64"]
referrers = false
delete = true
every = "6h"
transfers = 2
requests_per_second = 10
"#,
        )
        .unwrap();
        let [sync] = read.as_slice() else {
            panic!("{read:?}");
        };
        assert_eq!(sync.source.url.host, "hub.example");
        assert_eq!(sync.source.url.path, "proxy");
        assert_eq!(sync.source.prefix.as_ref().unwrap().as_str(), "mirror");
        assert_eq!(sync.choice.newest, Some(5));
        let taken = |tag: &str| sync.choice.tags.iter().any(|one| one.fits(tag));
        assert!(taken("3.1") && taken("edge-12") && !taken("edge-x"));
        assert_eq!(sync.platforms.len(), 2);
        assert!(sync.delete && !sync.referrers);
        assert_eq!(sync.every, Some(Duration::from_secs(6 * 3600)));
        assert_eq!(sync.rate, Some(Rate::per_second(10)));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let check = |text: &str, expect: &str| {
            let text = format!("[[sync]]\n{text}");
            assert_eq!(parse(&text).unwrap_err().to_string(), expect);
        };
        check(
            "url = \"a.example\"\n",
            "2:1: `sync`: it needs `name`, what it is called",
        );
        check(
            "name = \"a\"\nurl = \"a.example\"\n",
            "2:1: `sync`: it needs `repositories`, such as [\"library/alpine\"]",
        );
        let whole = "name = \"a\"\nurl = \"a.example\"\nrepositories = [\"x\"]\n";
        check(
            &format!("{whole}versions = \"1\"\n"),
            "5:1: `1` is no bound of versions: expected one such as `>=1.2`, `<2` or `^1.2`",
        );
        check(
            &format!("{whole}exclude = ['x', '/(/']\n"),
            "5:17: `sync.exclude`: `/(/` is no regular expression: found open group without closing ')'",
        );
        check(
            &format!("{whole}tag = \"x\"\n"),
            "5:1: unknown key `sync.tag`: did you mean `tags`?",
        );
    }
}
