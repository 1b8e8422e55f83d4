//! Containers' `registries.conf`, version 2 and the older version 1, with its drop-in files (containers-registries.conf(5)).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::short_names::{ShortNameMode, is_short};
use super::{Host, HostsError, Location, Pulls, Rule, read, split_location, unknown_keys};

/// What containers' own files and environment say of credentials, as the one credential helper that is no program.
const AUTH_FILES: &str = "containers-auth.json";

/// What the files say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RegistriesConf {
    /// What is said about names.
    pub(super) rules: Vec<Rule>,
    /// `[aliases]`, by the short name.
    pub(super) aliases: BTreeMap<String, Alias>,
    /// `unqualified-search-registries`; `None` where no file has it.
    pub(super) search: Option<Search>,
    /// What is done where several of these may be meant.
    pub(super) mode: ShortNameMode,
}

/// What a short name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    /// A repository with its registry.
    pub(super) stands_for: String,
    /// Where that is said.
    pub(super) file: PathBuf,
}

/// Where names without a registry are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Search {
    /// `host[:port]`, in their order.
    pub(super) registries: Vec<String>,
    /// Where that is said.
    pub(super) file: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    #[serde(default)]
    credential_helpers: Vec<String>,
    #[serde(default)]
    registry: Vec<Registry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    registries: Option<Version1>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    #[serde(default)]
    mirror_by_digest_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

#[derive(Default, Deserialize)]
struct Version1 {
    #[serde(default)]
    search: List,
    #[serde(default)]
    insecure: List,
    #[serde(default)]
    block: List,
}

#[derive(Default, Deserialize)]
struct List {
    #[serde(default)]
    registries: Vec<String>,
}

impl RegistriesConf {
    /// Reads the first of `files` that is there, then the `*.conf` of `directories`, directory by directory and each by
    /// name, then those of `remembered` that are there. What a later file says of a prefix, an alias, the search or the mode
    /// replaces what was said before. Blocks.
    ///
    /// # Errors
    /// A file cannot be read, or says what cannot be meant.
    pub(super) fn read(
        files: &[PathBuf],
        directories: &[PathBuf],
        remembered: &[PathBuf],
    ) -> Result<RegistriesConf, HostsError> {
        let mut conf = RegistriesConf::default();
        for path in files {
            if let Some(text) = read(path)? {
                conf.add(path, &text)?;
                break;
            }
        }
        for directory in directories {
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.retain(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "conf")
            });
            paths.sort();
            for path in paths {
                if let Some(text) = read(&path)? {
                    conf.add(&path, &text)?;
                }
            }
        }
        for path in remembered {
            if let Some(text) = read(path)? {
                conf.add(path, &text)?;
            }
        }
        Ok(conf)
    }

    pub(super) fn add(&mut self, path: &Path, text: &str) -> Result<(), HostsError> {
        let wrong = |reason: String| HostsError::Wrong {
            path: path.to_owned(),
            reason,
        };
        let file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        tell_unknown(path, text);
        if file
            .credential_helpers
            .iter()
            .any(|name| name != AUTH_FILES)
        {
            tracing::warn!(
                "`{}`: `credential-helpers` are not asked: name them in docker's config.json (`credsStore`, `credHelpers`)",
                path.display()
            );
        }
        if let Some(mode) = &file.short_name_mode {
            self.mode = match mode.as_str() {
                "enforcing" => ShortNameMode::Enforcing,
                "permissive" | "" => ShortNameMode::Permissive,
                "disabled" => ShortNameMode::Disabled,
                other => {
                    return Err(wrong(format!(
                        "`short-name-mode` is `{other}`: expected enforcing, permissive or disabled"
                    )));
                }
            };
        }
        let mut tables = file.registry;
        let mut search = file.unqualified_search_registries;
        if let Some(old) = file.registries {
            if !tables.is_empty() || search.is_some() {
                let reason = "it has tables of version 1, `[registries.…]`, and of version 2, `[[registry]]`";
                return Err(wrong(reason.to_owned()));
            }
            // Where version 1 has no list, it says nothing.
            search = Some(old.search.registries).filter(|search| !search.is_empty());
            tables = version_2(&old.insecure.registries, &old.block.registries);
        }
        if let Some(registries) = search {
            for registry in &registries {
                let (_, below) = split_location(registry).map_err(wrong)?;
                if !below.is_empty() {
                    return Err(wrong(format!(
                        "`unqualified-search-registries` has `{registry}`: expected host[:port]"
                    )));
                }
            }
            self.search = Some(Search {
                registries,
                file: path.to_owned(),
            });
        }
        let mut rules = Vec::new();
        for table in tables {
            let rule = rule(path, table).map_err(wrong)?;
            if rules.iter().any(|other: &Rule| {
                other.prefix == rule.prefix
                    && (other.blocked, &other.home) != (rule.blocked, &rule.home)
            }) {
                let reason = format!("`{}` has two tables that do not say the same", rule.prefix);
                return Err(wrong(reason));
            }
            rules.push(rule);
        }
        let replaced = |old: &Rule| rules.iter().any(|new| new.prefix == old.prefix);
        self.rules.retain(|old| !replaced(old));
        self.rules.extend(rules);
        for (name, stands_for) in file.aliases {
            if name.contains([':', '@']) || stands_for.contains('@') {
                let reason =
                    format!("the alias `{name}` has a tag or a digest: expected names only");
                return Err(wrong(reason));
            }
            if !is_short(&name) {
                let reason = format!("the alias `{name}` has a registry: expected a name without");
                return Err(wrong(reason));
            }
            if stands_for.is_empty() {
                self.aliases.remove(&name);
                continue;
            }
            let last = stands_for.rsplit('/').next().unwrap_or_default();
            if is_short(&stands_for) || last.contains(':') {
                let reason = format!(
                    "the alias `{name}` stands for `{stands_for}`: expected a repository with its registry, without a tag"
                );
                return Err(wrong(reason));
            }
            let file = path.to_owned();
            self.aliases.insert(name, Alias { stands_for, file });
        }
        Ok(())
    }
}

/// Tells of keys that mean nothing here.
fn tell_unknown(path: &Path, text: &str) {
    const TOP: [&str; 7] = [
        "unqualified-search-registries",
        "short-name-mode",
        "credential-helpers",
        // There are no such stores here, so nobody needs its help.
        "additional-layer-store-auth-helper",
        "registry",
        "aliases",
        "registries",
    ];
    const REGISTRY: [&str; 6] = [
        "prefix",
        "location",
        "insecure",
        "blocked",
        "mirror",
        "mirror-by-digest-only",
    ];
    const MIRROR: [&str; 3] = ["location", "insecure", "pull-from-mirror"];
    // It was parsed before.
    let Ok(table) = text.parse::<toml::Table>() else {
        return;
    };
    unknown_keys(path, "", &table, &TOP);
    let tables = |table: &toml::Table, key: &str| -> Vec<toml::Table> {
        let array = table.get(key).and_then(toml::Value::as_array);
        let all = array.into_iter().flatten();
        all.filter_map(|value| value.as_table().cloned()).collect()
    };
    for registry in tables(&table, "registry") {
        unknown_keys(path, "registry.", &registry, &REGISTRY);
        for mirror in tables(&registry, "mirror") {
            unknown_keys(path, "registry.mirror.", &mirror, &MIRROR);
        }
    }
}

/// Version 1 only has lists of registries.
fn version_2(insecure: &[String], blocked: &[String]) -> Vec<Registry> {
    let mut names: Vec<&String> = insecure.iter().chain(blocked).collect();
    names.sort();
    names.dedup();
    let table = |name: &String| Registry {
        prefix: name.clone(),
        location: name.clone(),
        insecure: insecure.contains(name),
        blocked: blocked.contains(name),
        mirror: Vec::new(),
        mirror_by_digest_only: false,
    };
    names.into_iter().map(table).collect()
}

fn rule(path: &Path, table: Registry) -> Result<Rule, String> {
    let prefix = match table.prefix.as_str() {
        "" => table.location.trim_end_matches('/'),
        prefix => prefix.trim_end_matches('/'),
    };
    if prefix.is_empty() {
        return Err("a `[[registry]]` has neither prefix nor location".to_owned());
    }
    let wild = prefix.starts_with("*.");
    let bare = prefix.strip_prefix("*.").unwrap_or(prefix);
    if bare.contains('*') || wild && bare.contains(['/', ':', '@']) {
        return Err(format!(
            "the prefix `{prefix}` has a `*` elsewhere than in front of a whole domain, as in `*.example.com`"
        ));
    }
    let mut mirrors = Vec::new();
    for mirror in table.mirror {
        let pulls = match (
            mirror.pull_from_mirror.as_str(),
            table.mirror_by_digest_only,
        ) {
            ("", true) => Pulls::Digests,
            (_, true) => {
                let reason =
                    "`pull-from-mirror` is said for a mirror, and `mirror-by-digest-only` for all";
                return Err(format!("{reason}: expected one of them for `{prefix}`"));
            }
            ("" | "all", false) => Pulls::All,
            ("digest-only", false) => Pulls::Digests,
            ("tag-only", false) => Pulls::Tags,
            (other, false) => {
                return Err(format!(
                    "`pull-from-mirror` is `{other}`: expected all, digest-only or tag-only"
                ));
            }
        };
        mirrors.push(location(&mirror.location, mirror.insecure, pulls)?);
    }
    let as_said = Location::as_said(Host {
        insecure: table.insecure,
        ..Host::default()
    });
    let home = match table.location.as_str() {
        "" => as_said.clone(),
        text => location(text, table.insecure, Pulls::All)?,
    };
    Ok(Rule {
        prefix: prefix.to_owned(),
        blocked: table.blocked,
        mirrors,
        home,
        // Locations are for pulls: other tools push to where the name says.
        push: as_said,
        file: path.to_owned(),
    })
}

fn location(text: &str, insecure: bool, pulls: Pulls) -> Result<Location, String> {
    let (host, path) = split_location(text)?;
    let host = Host {
        insecure,
        ..Host::named(host)
    };
    Ok(Location {
        host: Arc::new(host),
        path: path.to_owned(),
        pulls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RegistriesConf, HostsError> {
        let mut conf = RegistriesConf::default();
        conf.add(Path::new("f"), text)?;
        Ok(conf)
    }

    /// A rule in one line: prefix, `!` if blocked, mirrors, `>` home; `~` marks what is insecure.
    fn shown(rule: &Rule) -> String {
        let place = |location: &Location| {
            let mark = if location.host.insecure { "~" } else { "" };
            let pulls = match location.pulls {
                Pulls::All => "",
                Pulls::Digests => "@",
                Pulls::Tags => ":",
            };
            format!("{mark}{}/{}{pulls}", location.host.name, location.path)
        };
        let mirrors: Vec<String> = rule.mirrors.iter().map(place).collect();
        let home = place(&rule.home);
        let blocked = if rule.blocked { "!" } else { "" };
        format!("{blocked}{} [{}] > {home}", rule.prefix, mirrors.join(", "))
    }

    #[test]
    fn what_tables_say() {
        let check = |text: &str, expect: &[&str]| {
            let conf = parse(text).unwrap();
            let rules: Vec<String> = conf.rules.iter().map(shown).collect();
            assert_eq!(rules, expect, "{text}");
        };
        check(
            r#"
unqualified-search-registries = ["example.com"]
[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar/"
[[registry.mirror]]
location = "mirror-0.local/for-foo"
[[registry.mirror]]
location = "mirror-1.local:5000"
insecure = true
pull-from-mirror = "digest-only"
[[registry]]
location = "registry.com"
blocked = true
insecure = true
[[registry]]
prefix = "*.example.org"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m"
"#,
            &[
                "example.com/foo [mirror-0.local/for-foo, ~mirror-1.local:5000/@] > internal.example.net/bar",
                "!registry.com [] > ~registry.com/",
                "*.example.org [m/@] > /",
            ],
        );
        check(
            "[registries.insecure]\nregistries = ['a:5000', 'b']\n[registries.block]\nregistries = ['b']\n",
            &["a:5000 [] > ~a:5000/", "!b [] > ~b/"],
        );
        // What newer versions add is left to them.
        check(
            "short-name-mode = 'enforcing'\nadditional-layer-store-auth-helper = 'x'\n",
            &[],
        );
    }

    #[test]
    fn mistakes() {
        let check = |text: &str, expect: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("[[registry]]\n", "neither prefix nor location");
        check(
            "[[registry]]\nprefix = 'a.*.b'\n",
            "`a.*.b` has a `*` elsewhere",
        );
        check(
            "[[registry]]\nprefix = '*.b/c'\n",
            "`*.b/c` has a `*` elsewhere",
        );
        check(
            "[[registry]]\nlocation = 'https://a'\n",
            "`https://a` is no location",
        );
        check(
            "[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'never'\n",
            "`pull-from-mirror` is `never`: expected all, digest-only or tag-only",
        );
        check("[[registry]]\nlocation = 3\n", "line 2");
        check("[aliases]\n'a:1' = 'b/c'\n", "the alias `a:1` has a tag");
        check(
            "[aliases]\n'r.lan/a' = 'r.lan/c'\n",
            "the alias `r.lan/a` has a registry",
        );
        check(
            "[aliases]\na = 'team/c'\n",
            "the alias `a` stands for `team/c`: expected a repository with its registry",
        );
        check(
            "[aliases]\na = 'r.lan/c:1'\n",
            "the alias `a` stands for `r.lan/c:1`",
        );
        check(
            "short-name-mode = 'strict'\n",
            "`short-name-mode` is `strict`: expected enforcing, permissive or disabled",
        );
        check(
            "unqualified-search-registries = ['r.lan/team']\n",
            "`unqualified-search-registries` has `r.lan/team`: expected host[:port]",
        );
        check(
            "[[registry]]\nlocation = 'a'\n[registries.block]\nregistries = ['b']\n",
            "of version 1",
        );
        check(
            "[[registry]]\nlocation = 'a'\n[[registry]]\nlocation = 'a'\nblocked = true\n",
            "`a` has two tables",
        );
    }

    #[test]
    fn later_files_replace() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        let main = "unqualified-search-registries = ['s1']\n[[registry]]\nlocation = 'a'\n[[registry]]\nlocation = 'b'\n\
                    [aliases]\nx = 'one.lan/x'\ny = 'one.lan/y'\nz = 'one.lan/z'\n";
        std::fs::write(path("main.conf"), main).unwrap();
        std::fs::write(
            path("d/2.conf"),
            "[[registry]]\nlocation = 'a'\nblocked = true\n",
        )
        .unwrap();
        std::fs::write(path("d/1.conf"), "[aliases]\nx = 'two.lan/x'\ny = ''\n").unwrap();
        std::fs::write(path("cache.conf"), "[aliases]\nz = 'three.lan/z'\n").unwrap();
        std::fs::write(path("d/ignored.txt"), "no toml at all [").unwrap();
        let files = [path("none.conf"), path("main.conf"), path("none2.conf")];
        let remembered = [path("cache.conf"), path("none3.conf")];
        let conf = RegistriesConf::read(&files, &[path("d"), path("none")], &remembered).unwrap();
        let rules: Vec<String> = conf.rules.iter().map(shown).collect();
        assert_eq!(rules, ["b [] > b/", "!a [] > a/"]);
        assert_eq!(conf.search.unwrap().registries, ["s1"]);
        let aliases = conf.aliases.iter();
        let aliases: Vec<_> = aliases
            .map(|(name, alias)| (name.as_str(), alias.stands_for.as_str()))
            .collect();
        assert_eq!(aliases, [("x", "two.lan/x"), ("z", "three.lan/z")]);
    }
}
