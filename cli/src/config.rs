//! The configuration file: TOML, described in `docs/reference/config.md`.
//!
//! | file | what |
//! |---|---|
//! | this one | where it is, and what it is made of |
//! | [`table`] | reading a table: what nobody asks for is an error, with its line and what may have been meant |
//! | [`gc`] | `[gc]`: what is collected by itself |
//! | [`registry`] | `[registry."HOST"]`: mirrors, and how servers are spoken to |
//! | [`transfer`] | `[transfer]`: how patiently registries are asked |
//! | [`serve`] | another file: that of `registry serve --config` |

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::gc::GcConfig;
use self::registry::RegistryConfig;
use self::table::{Table, TableError};
use self::transfer::TransferConfig;

pub mod gc;
pub mod registry;
pub mod serve;
mod table;
pub mod transfer;

/// Largest configuration file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no TOML, or says what nothing understands.
    #[error("{}:{error}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong there.
        error: TableError,
    },
}

/// What the file says; defaults where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[gc]`.
    pub gc: GcConfig,
    /// `[history]`.
    pub history: HistoryConfig,
    /// `[transfer]`.
    pub transfer: TransferConfig,
    /// `[registry."HOST"]`, by host.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Where all this was said.
    pub file: PathBuf,
}

/// `[history]`: how much of it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryConfig {
    /// `builds`: at most so many.
    pub builds: Option<u64>,
    /// `keep_duration`: none older than this.
    pub keep_duration: Option<Duration>,
}

impl Config {
    /// Reads a file that has to be there.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = read_text(path)?;
        let config = Config::parse(&text).map_err(|error| ConfigError::Wrong {
            path: path.to_owned(),
            error,
        })?;
        Ok(Config {
            file: path.to_owned(),
            ..config
        })
    }

    /// Reads the first of these that is there; defaults if none is.
    pub fn first(paths: &[PathBuf]) -> Result<Config, ConfigError> {
        for path in paths {
            match Config::read(path) {
                Err(ConfigError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                read => return read,
            }
        }
        Ok(Config::default())
    }

    fn parse(text: &str) -> Result<Config, TableError> {
        let document = table::document(text)?;
        let mut root = Table::new(text, "", &document);
        let mut config = Config::default();
        if let Some(mut gc) = root.table("gc")? {
            config.gc = GcConfig::read(&mut gc)?;
            gc.finish()?;
        }
        if let Some(mut history) = root.table("history")? {
            config.history.builds = history.number("builds")?;
            config.history.keep_duration = history.duration("keep_duration")?;
            history.finish()?;
        }
        if let Some(mut transfer) = root.table("transfer")? {
            config.transfer = TransferConfig::read(&mut transfer)?;
            transfer.finish()?;
        }
        for (name, mut table) in root.named_tables("registry")? {
            let registry = RegistryConfig::read(&mut table)?;
            table.finish()?;
            config.registries.insert(name, registry);
        }
        root.finish()?;
        Ok(config)
    }
}

/// A configuration file's text, if it is no larger than one is.
fn read_text(path: &Path) -> Result<String, ConfigError> {
    let fail = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > CONFIG_BYTES_MAX {
        let message = format!("it has more than {CONFIG_BYTES_MAX} bytes");
        return Err(fail(io::Error::new(io::ErrorKind::FileTooLarge, message)));
    }
    std::fs::read_to_string(path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use store::failed::KeepFailed;

    use super::*;

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(Config::parse("").unwrap(), Config::default());
        assert_eq!(
            Config::parse("# only words\n[gc]\n").unwrap(),
            Config::default()
        );
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let check = |text: &str, expect: &str| {
            let error = Config::parse(text).unwrap_err();
            assert_eq!(error.to_string(), expect);
        };
        check(
            "[gc]\nmax_usd = \"1GB\"\n",
            "2:1: unknown key `gc.max_usd`: did you mean `max_used`?",
        );
        check("[cg]\n", "1:2: unknown key `cg`: did you mean `gc`?");
        check(
            "[builders]\n",
            "1:2: unknown key `builders`: expected one of gc, history, registry, transfer",
        );
        check(
            "[gc]\n\n  max_used = \"ten\"\n",
            "3:14: `gc.max_used` is `ten`: expected a size such as 500MB, 1.5GB or 2GiB, or a share of the disk such as 10%",
        );
        check(
            "[gc]\nenabled = 1\n",
            "2:11: `gc.enabled` is a number: expected true or false",
        );
        check("gc = 3\n", "1:6: `gc` is a number: expected a table");
        check(
            "[gc]\ninterval = \"1 hour\"\n",
            "2:12: `gc.interval` is `1 hour`: expected a duration such as 30m, 24h, 1h30m or 7d",
        );
        check(
            "[[gc.policy]]\nkinds = [\"cache-mount\"]\n",
            "2:10: `gc.policy.kinds` has `cache-mount`: did you mean `cache-mounts`?",
        );
        check(
            "[[gc.policy]]\n[[gc.policy]]\nkeep = 1\n",
            "3:1: unknown key `gc.policy.keep`: expected one of keep_duration, kinds, max_used, min_free, reserved",
        );
        check(
            "[gc]\nfailed_max_used = \"10%\"\n",
            "2:19: `gc.failed_max_used` is `10%`: expected a size such as 500MB, 1.5GB or 2GiB",
        );
        check(
            "[registry.\"r.lan\"]\nmirrors = [\"https://m.lan\"]\n",
            "2:12: `registry.\"r.lan\".mirrors`: `https://m.lan` is no location: expected host[:port][/path]",
        );
        check(
            "[registry.\"r.lan\"]\nhtp = true\n",
            "2:1: unknown key `registry.\"r.lan\".htp`: did you mean `http`?",
        );
        check("[registry]\nx = 3\n", "2:5: `registry.\"x\"` is no table");
        check(
            "[[registry.x.keypair]]\ncert = \"c\"\n",
            "2:1: `registry.\"x\".keypair`: it needs both `cert` and `key`",
        );
        check(
            "[history]\nbuilds = -1\n",
            "2:10: `history.builds` is `-1`: expected a number that is not negative",
        );
        let error = Config::parse("[gc\n").unwrap_err().to_string();
        assert!(error.starts_with("1:4: "), "{error}");
    }

    #[test]
    fn everything_can_be_said() {
        let text = r#"
[gc]
enabled = false
interval = "1h"
max_used = "50GB"
reserved = "5%"
min_free = 1000
failed_steps = 3
failed_keep_duration = "1d"
failed_max_used = "1GiB"

[[gc.policy]]
kinds = ["cache-mounts", "git", "contexts"]
keep_duration = "48h"
max_used = "512MB"

[[gc.policy]]

[history]
builds = 5
keep_duration = "3d"
"#;
        let config = Config::parse(text).unwrap();
        assert!(!config.gc.enabled);
        assert_eq!(config.gc.interval, Duration::from_secs(3_600));
        assert_eq!(config.gc.policy.as_ref().unwrap().len(), 2);
        let failed = KeepFailed {
            steps: 3,
            bytes: 1 << 30,
            age: Duration::from_secs(86_400),
        };
        assert_eq!(config.gc.failed, failed);
        assert_eq!(config.history.builds, Some(5));
        assert_eq!(
            config.history.keep_duration,
            Some(Duration::from_secs(3 * 86_400))
        );
    }
}
