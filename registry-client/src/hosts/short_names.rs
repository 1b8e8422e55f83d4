//! Names without a registry, where containers' `registries.conf` says what they stand for (containers-registries.conf(5),
//! "Short-Name Aliasing").
//!
//! ```text
//! alias of the name ─► that repository
//! no alias          ─► the name at each of `unqualified-search-registries`, in order
//! nothing is said   ─► docker's rule: Docker Hub
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rustix::fs::FlockOperation;
use serde::Deserialize;
use store::oci::reference::DOCKER_HUB;
use store::oci::{Digest, Reference};

use super::registries_conf::RegistriesConf;
use super::{Hosts, HostsError, read};

/// `short-name-mode`: what is done where several registries may have a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShortNameMode {
    /// Whoever can be asked is asked to choose; else it is an error.
    Enforcing,
    /// Whoever can be asked is asked to choose; else all are tried.
    #[default]
    Permissive,
    /// All are tried.
    Disabled,
}

/// What a name without a registry stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortName {
    /// Whole names, the first to be tried first; at least one.
    pub stands_for: Vec<Reference>,
    /// Who decides which of several is meant.
    pub choice: Choice,
}

/// Who decides which of several names is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nobody: there is one, or all are to be tried.
    Nobody,
    /// A person, if one can be asked; else all are to be tried.
    Person,
    /// A person only, as this file has it: none of them is to be tried without.
    OnlyPerson(PathBuf),
}

impl Hosts {
    /// What a text without a registry stands for by the user's `registries.conf`; `None` where the text names its registry,
    /// or is no name at all, or no file says anything about it. Then it is what it is to docker. Blocks: it may read files.
    ///
    /// # Errors
    /// A file cannot be read or says what cannot be meant, or says that no registry has short names.
    pub fn short_name(&self, text: &str) -> Result<Option<ShortName>, HostsError> {
        if !is_short(text) {
            return Ok(None);
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        resolve(read.registries_conf(&self.files)?, text)
    }
}

impl Hosts {
    /// Notes as an alias what a person chose for a text without a registry, where podman notes and finds it too: as the
    /// repository, for every tag. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or written, or says what cannot be meant.
    pub fn remember(&self, text: &str, chosen: &Reference) -> Result<(), HostsError> {
        let Some(path) = self.files.short_name_aliases.first() else {
            return Ok(());
        };
        let (name, _) = text.split_at(name_length(text));
        add_alias(path, name, &chosen.name())
    }
}

/// All that podman's file of aliases has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Remembered {
    #[serde(default)]
    aliases: BTreeMap<String, String>,
}

/// Adds an alias to a file of them, in one step. Whoever else does so by podman's rule waits meanwhile.
fn add_alias(path: &Path, name: &str, stands_for: &str) -> Result<(), HostsError> {
    let wrong = |reason: String| HostsError::Wrong {
        path: path.to_owned(),
        reason,
    };
    let unwritten = |source| HostsError::Write {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(unwritten)?;
    }
    let beside = |ending: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let lock = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(beside(".lock"))
        .map_err(unwritten)?;
    // Podman's are such locks. It goes with the file, at the end.
    rustix::fs::fcntl_lock(&lock, FlockOperation::LockExclusive)
        .map_err(|errno| unwritten(errno.into()))?;
    let text = read(path)?.unwrap_or_default();
    let remembered: Remembered =
        toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let mut aliases = remembered.aliases;
    aliases.insert(name.to_owned(), stands_for.to_owned());
    let mut text = "[aliases]\n".to_owned();
    for (name, stands_for) in aliases {
        // What JSON quotes is a string of TOML's, too.
        let quoted = |text: String| serde_json::Value::from(text).to_string();
        text += &format!("  {} = {}\n", quoted(name), quoted(stands_for));
    }
    let aside = beside(&format!(".{}", std::process::id()));
    let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, path));
    written.map_err(|source| {
        let _ = std::fs::remove_file(&aside);
        unwritten(source)
    })
}

/// Whether a text is a name that leaves out the registry.
pub(super) fn is_short(text: &str) -> bool {
    let Ok(reference) = text.parse::<Reference>() else {
        return false;
    };
    // An ID is no name, though it looks like one with a tag.
    let is_id = text.parse::<Digest>().is_ok();
    let first = text.split_once('/').map_or("", |(first, _)| first);
    let is_named = first == DOCKER_HUB || first.ends_with(".docker.io");
    !is_id && !is_named && reference.registry() == DOCKER_HUB
}

fn resolve(conf: &RegistriesConf, text: &str) -> Result<Option<ShortName>, HostsError> {
    let wrong = |path: &Path, reason: String| HostsError::Wrong {
        path: path.to_owned(),
        reason,
    };
    let (name, rest) = text.split_at(name_length(text));
    if let Some(alias) = conf.aliases.get(name) {
        let whole = format!("{}{rest}", alias.stands_for);
        let reference = whole.parse();
        let reference = reference.map_err(|error: store::oci::reference::ReferenceError| {
            let reason = format!("the alias `{name}` leads to `{whole}`: {}", error.reason);
            wrong(&alias.file, reason)
        })?;
        return Ok(Some(ShortName {
            stands_for: vec![reference],
            choice: Choice::Nobody,
        }));
    }
    let Some(search) = &conf.search else {
        return Ok(None);
    };
    let mut stands_for: Vec<Reference> = Vec::new();
    for registry in &search.registries {
        let whole = format!("{registry}/{text}");
        let reference = whole.parse();
        let reference = reference.map_err(|error: store::oci::reference::ReferenceError| {
            let reason = format!("`{text}` at `{registry}` is `{whole}`: {}", error.reason);
            wrong(&search.file, reason)
        })?;
        if !stands_for.contains(&reference) {
            stands_for.push(reference);
        }
    }
    if stands_for.is_empty() {
        let reason = format!(
            "`{text}` has no registry, it has no alias, and `unqualified-search-registries` is empty: expected `{DOCKER_HUB}/…` or another whole name"
        );
        return Err(wrong(&search.file, reason));
    }
    let choice = match conf.mode {
        _ if stands_for.len() == 1 => Choice::Nobody,
        ShortNameMode::Enforcing => Choice::OnlyPerson(search.file.clone()),
        ShortNameMode::Permissive => Choice::Person,
        ShortNameMode::Disabled => Choice::Nobody,
    };
    Ok(Some(ShortName { stands_for, choice }))
}

/// How long the name is, without tag and digest.
fn name_length(text: &str) -> usize {
    let name = text.split_once('@').map_or(text, |(name, _)| name);
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    name[last..].find(':').map_or(name.len(), |at| last + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> RegistriesConf {
        let mut conf = RegistriesConf::default();
        conf.add(Path::new("/r.conf"), text).unwrap();
        conf
    }

    #[test]
    fn names_without_a_registry() {
        let check = |text: &str, expect: bool| assert_eq!(is_short(text), expect, "{text}");
        for short in ["alpine", "alpine:3", "team/app", "library/alpine", "a:5000"] {
            check(short, true);
        }
        for long in [
            "docker.io/alpine",
            "index.docker.io/library/alpine",
            "quay.io/app",
            "localhost/app",
            "host:5000/app",
            "[::1]:5000/app",
            "No-Name",
            "",
        ] {
            check(long, false);
        }
        check(&Digest::of(b"").to_string(), false);
        check(&format!("alpine@{}", Digest::of(b"")), true);
    }

    #[test]
    fn aliases_go_before_the_search() {
        let digest = Digest::of(b"");
        let check = |file: &str, text: &str, expect: Option<&[&str]>| {
            let found = resolve(&conf(file), text).unwrap();
            let found = found.map(|found| {
                let is_one = found.stands_for.len() == 1;
                assert_eq!(found.choice == Choice::Nobody, is_one, "{text}");
                let names = found.stands_for.iter().map(Reference::to_string);
                names.collect::<Vec<_>>()
            });
            assert_eq!(
                found.as_deref(),
                expect
                    .map(|names| names
                        .iter()
                        .map(|name| (*name).to_owned())
                        .collect::<Vec<_>>())
                    .as_deref(),
                "{text}"
            );
        };
        let both = "unqualified-search-registries = ['a.lan:5000', 'docker.io']\n\
                    [aliases]\ncentos = 'quay.io/centos/centos'\n'team/app' = 'r.lan/x'\n";
        check(both, "centos", Some(&["quay.io/centos/centos:latest"]));
        check(both, "centos:9", Some(&["quay.io/centos/centos:9"]));
        let by_digest = format!("centos@{digest}");
        check(
            both,
            &by_digest,
            Some(&[&format!("quay.io/centos/{by_digest}")]),
        );
        check(both, "team/app:2", Some(&["r.lan/x:2"]));
        check(
            both,
            "app:1",
            Some(&["a.lan:5000/app:1", "docker.io/library/app:1"]),
        );
        check("[aliases]\ncentos = 'quay.io/centos/centos'\n", "app", None);
        check("", "app", None);
        let twice = "unqualified-search-registries = ['a.lan', 'a.lan']\n";
        check(twice, "app", Some(&["a.lan/app:latest"]));
        check(
            "[registries.search]\nregistries = ['old.lan']\n",
            "app",
            Some(&["old.lan/app:latest"]),
        );
    }

    #[test]
    fn modes() {
        let check = |mode: &str, registries: &str, expect: Choice| {
            let text = format!("unqualified-search-registries = {registries}\n{mode}\n");
            let found = resolve(&conf(&text), "app").unwrap().unwrap();
            assert_eq!(found.choice, expect, "{text}");
        };
        let several = "['a.lan', 'b.lan']";
        let only_person = Choice::OnlyPerson(PathBuf::from("/r.conf"));
        check("short-name-mode = 'enforcing'", several, only_person);
        check("short-name-mode = 'enforcing'", "['a.lan']", Choice::Nobody);
        check("short-name-mode = 'permissive'", several, Choice::Person);
        check("short-name-mode = 'disabled'", several, Choice::Nobody);
        check("short-name-mode = ''", several, Choice::Person);
        check("", several, Choice::Person);
    }

    #[test]
    fn what_was_chosen_stands_beside_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("containers/short-name-aliases.conf");
        add_alias(&path, "app", "b.lan:5000/app").unwrap();
        add_alias(&path, "team/app", "c.lan/team/app").unwrap();
        add_alias(&path, "app", "a.lan/app").unwrap();
        let read = RegistriesConf::read(&[], &[], std::slice::from_ref(&path)).unwrap();
        let aliases = read.aliases.iter();
        let aliases: Vec<(&str, &str)> = aliases
            .map(|(name, alias)| (name.as_str(), alias.stands_for.as_str()))
            .collect();
        assert_eq!(
            aliases,
            [("app", "a.lan/app"), ("team/app", "c.lan/team/app")]
        );
        std::fs::write(&path, "aliases = 3\n").unwrap();
        let error = add_alias(&path, "app", "a.lan/app").unwrap_err();
        let (path, told) = (path.display(), error.to_string());
        assert!(
            told.starts_with(&format!("`{path}`: invalid type")),
            "{told}"
        );
    }

    #[test]
    fn an_empty_search_forbids_short_names() {
        let conf = conf("unqualified-search-registries = []\n[aliases]\nx = 'r.lan/x'\n");
        assert!(resolve(&conf, "x").unwrap().is_some());
        let error = resolve(&conf, "app").unwrap_err().to_string();
        assert!(
            error.starts_with("`/r.conf`: `app` has no registry, it has no alias"),
            "{error}"
        );
    }
}
