//! What a command runs in: its folder, the environment it was started with, and somewhere to print.
//!
//! This is the only place that reads the environment. `docs/reference/environment.md` lists the variables.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use builder::remote::GitSettings;
use registry_client::{Hosts, HostsFiles, Keychain, Options, Proxies};
use store::history::Keep;
use store::uploads::Uploads;
use store::{OpenOptions, Store};

use crate::args::GlobalArgs;
use crate::config::{Config, registry};
use crate::error::{CliError, Kind};
use crate::ui::Ui;
use crate::ui::colours::Colours;

/// Where a system-wide store is.
const SYSTEM_ROOT: &str = "/var/lib/longshore";

/// What an administrator says for everybody.
const SYSTEM_CONFIG: &str = "/etc/longshore/config.toml";

/// What every command is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Somewhere to print.
    pub ui: Ui,
    root: Option<PathBuf>,
    config: Option<PathBuf>,
    is_root: bool,
    hosts: Arc<OnceLock<Hosts>>,
}

impl Context {
    /// Puts flags and environment together. `is_root` is asked before a user namespace makes everybody root.
    pub fn new(global: &GlobalArgs, is_root: bool) -> Context {
        let forced = variable("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let colour = match variable("NO_COLOR") {
            Some(_) => Some(false),
            None => forced.then_some(true),
        };
        let dumb = variable("TERM").is_some_and(|term| term == "dumb");
        let mut ui = Ui::new(colour, dumb);
        let text = |name| variable(name)?.into_string().ok();
        if let Some(text) = text("BUILDKIT_COLORS") {
            ui.colours = Colours::parse(&text);
        }
        // As in docker: a number that is none counts as not there.
        if let Some(lines) = text("BUILDKIT_TTY_LOG_LINES").and_then(|text| text.parse().ok()) {
            ui.log_lines = lines;
        }
        Context {
            ui,
            root: root(global.root.clone(), is_root),
            config: global.config.clone(),
            is_root,
            hosts: Arc::default(),
        }
    }

    /// The same, with the configuration that would be read had `--config` named none.
    pub fn with_usual_config(&self) -> Context {
        Context {
            config: None,
            hosts: Arc::default(),
            ..self.clone()
        }
    }

    /// The folder that holds everything.
    pub fn root(&self) -> Result<PathBuf, CliError> {
        self.root.clone().ok_or_else(|| {
            CliError::new(Kind::Usage, "no folder to keep images in: HOME is not set")
                .hint("give one with --root, or set LONGSHORE_ROOT")
        })
    }

    /// Opens the store, made if it is not there.
    pub fn store(&self) -> Result<Store, CliError> {
        let options = OpenOptions {
            history: self.history_keep()?,
            failed: self.config()?.gc.failed,
            ..OpenOptions::default()
        };
        Ok(Store::open_with(&self.root()?, &options)?)
    }

    /// What the configuration file says: the one that is named, or the first of the usual ones that is there.
    pub fn config(&self) -> Result<Config, CliError> {
        let named = self.config.clone();
        let named = named.or_else(|| variable("LONGSHORE_CONFIG").map(PathBuf::from));
        let read = match named {
            Some(path) => Config::read(&path),
            None => Config::first(&self.usual_configs()),
        };
        Ok(read?)
    }

    fn usual_configs(&self) -> Vec<PathBuf> {
        let absolute = |path: &PathBuf| path.is_absolute();
        let folder = variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let folder = folder
            .filter(absolute)
            .or_else(|| Some(home()?.join(".config")));
        let own = folder.filter(|_| !self.is_root);
        let own = own.map(|folder| folder.join("longshore/config.toml"));
        own.into_iter()
            .chain([PathBuf::from(SYSTEM_CONFIG)])
            .collect()
    }

    /// How much build history is kept.
    fn history_keep(&self) -> Result<Keep, CliError> {
        let mut keep = Keep::default();
        let config = self.config()?.history;
        keep.builds = config.builds.unwrap_or(keep.builds);
        keep.age = config.keep_duration.unwrap_or(keep.age);
        if let Some(builds) = self.number("LONGSHORE_HISTORY_BUILDS")? {
            keep.builds = builds;
        }
        if let Some(days) = self.number("LONGSHORE_HISTORY_DAYS")? {
            keep.age = Duration::from_secs(days.saturating_mul(24 * 60 * 60));
        }
        Ok(keep)
    }

    /// A variable that is a number.
    fn number(&self, name: &str) -> Result<Option<u64>, CliError> {
        let Some(text) = self.text_variable(name) else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            let message = format!("{name} is `{text}`: expected a number");
            CliError::new(Kind::Usage, message)
        })
    }

    /// Docker's `config.json`, which holds credentials.
    pub fn docker_config(&self) -> Result<PathBuf, CliError> {
        let folder = variable("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| Some(home()?.join(".docker")));
        let folder = folder.ok_or_else(|| {
            CliError::new(
                Kind::Usage,
                "no folder to keep credentials in: HOME is not set",
            )
            .hint("set DOCKER_CONFIG")
        })?;
        Ok(folder.join("config.json"))
    }

    /// How registries are reached: with the credentials, certificates and proxies of docker and podman.
    pub fn client_options(&self) -> Result<Options, CliError> {
        let config = |path: &str| home().map(|home| home.join(path));
        let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
        let credentials = [
            self.docker_config().ok(),
            variable("REGISTRY_AUTH_FILE").map(PathBuf::from),
            runtime.map(|folder| folder.join("containers/auth.json")),
            config(".config/containers/auth.json"),
        ];
        let certificates = [
            config(".config/docker/certs.d"),
            config(".config/containers/certs.d"),
            Some(PathBuf::from("/etc/docker/certs.d")),
            Some(PathBuf::from("/etc/containers/certs.d")),
        ];
        Ok(self.config()?.transfer.applied_to(Options {
            hosts: self.hosts()?,
            keychain: Keychain::files(credentials.into_iter().flatten()),
            certs_dirs: certificates.into_iter().flatten().collect(),
            uploads: self.root.as_deref().map(Uploads::at),
            proxies: Proxies {
                http: self.either_case("http_proxy"),
                https: self.either_case("https_proxy"),
                except: self.either_case("no_proxy"),
            },
            ..Options::default()
        }))
    }

    /// Where registries are: by our own configuration and by other tools' files, which are read when they are needed, once.
    pub fn hosts(&self) -> Result<Hosts, CliError> {
        if let Some(hosts) = self.hosts.get() {
            return Ok(hosts.clone());
        }
        let said = self.config()?;
        let own = registry::rules(&said.registries, &said.file);
        let config = |path: &str| home().map(|home| home.join(path));
        // Docker keeps `hosts.toml` beside its certificates, since it uses containerd's store.
        let containerd = [
            Some(PathBuf::from("/etc/containerd/certs.d")),
            Some(PathBuf::from("/etc/docker/certs.d")),
        ];
        let hosts = HostsFiles {
            registries_conf: match variable("CONTAINERS_REGISTRIES_CONF") {
                Some(path) => vec![path.into()],
                None => [
                    config(".config/containers/registries.conf"),
                    Some(PathBuf::from("/etc/containers/registries.conf")),
                ]
                .into_iter()
                .flatten()
                .collect(),
            },
            registries_conf_d: [
                Some(PathBuf::from("/etc/containers/registries.conf.d")),
                config(".config/containers/registries.conf.d"),
            ]
            .into_iter()
            .flatten()
            .collect(),
            // Podman remembers here what its users chose.
            short_name_aliases: [match self.is_root {
                true => Some(PathBuf::from("/var/cache/containers")),
                false => variable("XDG_CACHE_HOME")
                    .map(PathBuf::from)
                    .or_else(|| Some(home()?.join(".cache")))
                    .map(|folder| folder.join("containers")),
            }]
            .into_iter()
            .flatten()
            .map(|folder| folder.join("short-name-aliases.conf"))
            .collect(),
            hosts_toml: containerd.into_iter().flatten().collect(),
            daemon_json: [
                config(".config/docker/daemon.json").filter(|_| !self.is_root),
                Some(PathBuf::from("/etc/docker/daemon.json")),
            ]
            .into_iter()
            .flatten()
            .collect(),
        };
        Ok(self.hosts.get_or_init(|| Hosts::new(own, hosts)).clone())
    }

    /// What git is told of this environment: where programs are, proxies and certificates. An ssh agent is not among it.
    pub fn git_settings(&self) -> GitSettings {
        let either = ["http_proxy", "https_proxy", "no_proxy", "all_proxy"];
        let proxies = either
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.either_case(name)?)));
        let plain = ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"];
        let plain = plain
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), self.text_variable(name)?)));
        GitSettings {
            environment: plain.chain(proxies).collect(),
        }
    }

    /// A variable that some write in capitals; the other form goes first, as with curl.
    fn either_case(&self, name: &str) -> Option<String> {
        let capitals = || self.text_variable(&name.to_uppercase());
        self.text_variable(name).or_else(capitals)
    }

    /// The bytes of an environment variable, which may be empty.
    pub fn variable_bytes(&self, name: &str) -> Option<Vec<u8>> {
        std::env::var_os(name).map(OsString::into_encoded_bytes)
    }

    /// Where files lie that are in the making and in nobody's folder.
    pub fn temp_dir(&self) -> PathBuf {
        std::env::temp_dir()
    }

    /// The same for those that may be large: where the system has no disk behind the usual place, there is one here.
    pub fn spool_dir(&self) -> PathBuf {
        let on_disk = PathBuf::from("/var/tmp");
        match variable("TMPDIR") {
            None if on_disk.is_dir() => on_disk,
            _ => self.temp_dir(),
        }
    }

    /// An environment variable that is text.
    pub fn text_variable(&self, name: &str) -> Option<String> {
        variable(name)?.into_string().ok()
    }
}

/// The folder by flag, by variable, and by who asks. The flag and the variable may be relative; mounts are made from
/// elsewhere, so what they lead to is settled here.
fn root(flag: Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    let chosen = flag.or_else(|| variable("LONGSHORE_ROOT").map(PathBuf::from));
    if chosen.is_some() || is_root {
        let chosen = chosen.unwrap_or_else(|| PathBuf::from(SYSTEM_ROOT));
        return Some(std::path::absolute(&chosen).unwrap_or(chosen));
    }
    // By its specification, a relative XDG_DATA_HOME is to be ignored.
    let data = variable("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(home()?.join(".local/share")))?;
    Some(data.join("longshore"))
}

fn home() -> Option<PathBuf> {
    variable("HOME").map(PathBuf::from)
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
