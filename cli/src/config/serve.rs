//! The file of `registry serve --config`: TOML, described in `docs/reference/registry-access.md`.
//!
//! | file | what |
//! |---|---|
//! | this one | the server: where it listens and stores, TLS, limits, garbage |
//! | [`access`] | `[auth]`, `[[policy]]`, `[[immutable]]`, `[[quota]]`: who may do what |
//!
//! Its names of files are relative to the folder that it is in. It is read again while the server runs, so nothing here has a
//! side effect.
//!
//! `[[upstream]]` is in [`upstream`], `[[webhook]]` in [`webhook`], `[[sync]]` in [`sync`], `[traces]` in
//! [`traces`].

pub mod sync;
pub mod traces;
pub mod upstream;
pub mod webhook;

mod access;

use std::path::{Path, PathBuf};
use std::time::Duration;

use registry_server::collect::CollectRules;
use registry_server::proxy::{Network, Proxies, ProxyHeader};
use registry_server::rate::Rate;
use registry_server::scrub::ScrubRules;
use registry_server::{Limits, TlsFiles};

use self::sync::SyncConfig;
use self::traces::TracesConfig;
use self::upstream::UpstreamConfig;
use self::webhook::WebhookConfig;
use super::table::{self, Table, TableError};
use super::{ConfigError, read_text};

/// The headers in which proxies say whom they speak for.
const PROXY_HEADERS: [(&str, ProxyHeader); 2] = [
    ("x-forwarded-for", ProxyHeader::XForwardedFor),
    ("forwarded", ProxyHeader::Forwarded),
];

/// What the file says; defaults where it says nothing.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// `addr`: where to listen.
    pub addr: Option<String>,
    /// `root`: the folder.
    pub root: Option<PathBuf>,
    /// `s3`: the bucket, as `--s3` has it.
    pub s3: Option<String>,
    /// `redirect`: whether clients are sent to the bucket for blobs.
    pub redirect: bool,
    /// `[scrub]`: how everything is hashed again.
    pub scrub: Option<ScrubRules>,
    /// `[gc]`: how often, and what goes.
    pub collect: Option<(Duration, CollectRules)>,
    /// `access_log`: a file, or `-`.
    pub access_log: Option<PathBuf>,
    /// `[[upstream]]`.
    pub upstreams: Vec<UpstreamConfig>,
    /// `[traces]`.
    pub traces: Option<TracesConfig>,
    /// `[[sync]]`.
    pub syncs: Vec<SyncConfig>,
    /// `[[webhook]]`.
    pub webhooks: Vec<WebhookConfig>,
    /// Everything else; its `root` is not looked at.
    pub server: registry_server::Config,
}

impl Default for ServeConfig {
    fn default() -> ServeConfig {
        ServeConfig {
            addr: None,
            root: None,
            s3: None,
            redirect: false,
            scrub: None,
            collect: None,
            access_log: None,
            upstreams: Vec::new(),
            traces: None,
            syncs: Vec::new(),
            webhooks: Vec::new(),
            server: registry_server::Config::new(""),
        }
    }
}

impl ServeConfig {
    /// Reads a file that has to be there.
    pub fn read(path: &Path) -> Result<ServeConfig, ConfigError> {
        let text = read_text(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        ServeConfig::parse(&text, folder).map_err(|error| ConfigError::Wrong {
            path: path.to_owned(),
            error,
        })
    }

    fn parse(text: &str, folder: &Path) -> Result<ServeConfig, TableError> {
        let document = table::document(text)?;
        let mut root = Table::new(text, "", &document);
        let mut config = ServeConfig::default();
        let file = |text: String| folder.join(text);
        config.addr = root.text("addr")?;
        config.root = root.text("root")?.map(file);
        config.s3 = root.text("s3")?;
        if config.root.is_some() && config.s3.is_some() {
            return Err(root.error_at("s3", "there are both `root` and `s3`: give one"));
        }
        config.redirect = root.boolean("redirect")?.unwrap_or(false);
        let server = &mut config.server;
        server.read_only = root.boolean("read_only")?.unwrap_or(server.read_only);
        server.delete = root.boolean("delete")?.unwrap_or(server.delete);
        server.sparse = root.boolean("sparse")?.unwrap_or(server.sparse);
        server.warning = root.text("warning")?;
        server.metrics = root.boolean("metrics")?.unwrap_or(server.metrics);
        server.page = root.boolean("page")?.unwrap_or(server.page);
        config.access_log = root.text("access_log")?.map(|text| match text.as_str() {
            "-" => PathBuf::from("-"),
            _ => file(text),
        });
        if let Some(mut tls) = root.table("tls")? {
            let files = (tls.text("cert")?, tls.text("key")?);
            let (Some(cert), Some(key)) = files else {
                return Err(tls.error("it needs both `cert` and `key`"));
            };
            server.tls = Some(TlsFiles {
                cert: file(cert),
                key: file(key),
            });
            tls.finish()?;
        }
        server.proxies = read_proxies(&mut root)?;
        server.auth = access::read(&mut root, &file)?;
        server.immutable = access::immutable(&mut root)?;
        server.quotas = access::quotas(&mut root)?;
        if let Some(mut audit) = root.table("audit")? {
            server.audit = audit.text("file")?.map(file);
            if server.audit.is_none() {
                return Err(audit.error("it needs `file`, where the lines go"));
            }
            audit.finish()?;
        }
        if let Some(mut limits) = root.table("limits")? {
            server.limits = read_limits(&mut limits)?;
            limits.finish()?;
        }
        if let Some(mut gc) = root.table("gc")? {
            config.collect = read_collect(&mut gc)?;
            gc.finish()?;
        }
        if let Some(mut scrub) = root.table("scrub")? {
            config.scrub = Some(read_scrub(&mut scrub)?);
            scrub.finish()?;
        }
        for mut upstream in root.tables("upstream")?.unwrap_or_default() {
            let read = UpstreamConfig::read(&mut upstream, file)?;
            upstream.finish()?;
            config.upstreams.push(read);
        }
        if let Some(mut traces) = root.table("traces")? {
            config.traces = Some(TracesConfig::read(&mut traces, file)?);
            traces.finish()?;
        }
        for mut sync in root.tables("sync")?.unwrap_or_default() {
            let read = SyncConfig::read(&mut sync, file)?;
            sync.finish()?;
            config.syncs.push(read);
        }
        for mut webhook in root.tables("webhook")?.unwrap_or_default() {
            let read = WebhookConfig::read(&mut webhook, file)?;
            webhook.finish()?;
            config.webhooks.push(read);
        }
        root.finish()?;
        Ok(config)
    }
}

fn read_limits(table: &mut Table<'_>) -> Result<Limits, TableError> {
    let usual = Limits::default();
    let count = |number: Option<u64>, usual: usize| {
        number.map_or(usual, |number| {
            usize::try_from(number).unwrap_or(usize::MAX)
        })
    };
    Ok(Limits {
        connections_max: count(table.number_from(1, "connections")?, usual.connections_max),
        address_connections_max: count(
            table.number_from(1, "connections_per_address")?,
            usual.address_connections_max,
        ),
        requests: read_rate(table)?,
        blob_bytes_max: table.size("blob_size", |bytes| bytes, |_| None, "")?,
        header_timeout: table
            .duration("header_timeout")?
            .unwrap_or(usual.header_timeout),
        body_timeout: table
            .duration("body_timeout")?
            .unwrap_or(usual.body_timeout),
        body_rate_min: table
            .size("body_rate", |bytes| bytes, |_| None, "")?
            .unwrap_or(usual.body_rate_min),
        drain_timeout: table
            .duration("drain_timeout")?
            .unwrap_or(usual.drain_timeout),
        drain_delay: table.duration("drain_delay")?.unwrap_or(usual.drain_delay),
        upload_age_max: table
            .duration("upload_keep_duration")?
            .unwrap_or(usual.upload_age_max),
    })
}

fn read_proxies(table: &mut Table<'_>) -> Result<Proxies, TableError> {
    let trusted = table.texts("trusted_proxies", |text| {
        let parsed = text.parse::<Network>();
        parsed.map(drop).map_err(|error| error.to_string())
    })?;
    let header = table.word("proxy_header", &PROXY_HEADERS)?;
    if header.is_some() && trusted.is_empty() {
        let message = "`proxy_header` means nothing without `trusted_proxies`";
        return Err(table.error_at("proxy_header", message));
    }
    Ok(Proxies {
        trusted: trusted
            .iter()
            .map(|text| text.parse().expect("it was parsed a moment ago"))
            .collect(),
        header: header.unwrap_or_default(),
    })
}

fn read_rate(table: &mut Table<'_>) -> Result<Option<Rate>, TableError> {
    let number = |number: Option<u64>| number.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let per_second = number(table.number_from(1, "requests_per_second")?);
    let burst = number(table.number_from(1, "requests_burst")?);
    match (per_second, burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            let message = "`limits.requests_burst` means nothing without `requests_per_second`";
            Err(table.error_at("requests_burst", message))
        }
        (Some(count), burst) => {
            let rate = Rate::per_second(count);
            Ok(Some(Rate {
                burst: burst.unwrap_or(rate.burst),
                ..rate
            }))
        }
    }
}

/// A pass of scrubbing a week, slow enough to be noticed by nobody.
pub fn usual_scrub() -> ScrubRules {
    ScrubRules {
        every: Duration::from_secs(7 * 24 * 60 * 60),
        bytes_per_second: 20_000_000,
        quarantine: false,
    }
}

fn read_scrub(table: &mut Table<'_>) -> Result<ScrubRules, TableError> {
    let usual = usual_scrub();
    let rate = table.size("bytes_per_second", |bytes| bytes, |_| None, "")?;
    Ok(ScrubRules {
        every: table.duration("every")?.unwrap_or(usual.every),
        bytes_per_second: rate.unwrap_or(usual.bytes_per_second),
        quarantine: table.boolean("quarantine")?.unwrap_or(usual.quarantine),
    })
}

fn read_collect(table: &mut Table<'_>) -> Result<Option<(Duration, CollectRules)>, TableError> {
    let usual = CollectRules::default();
    let every = table.duration("every")?;
    let retain = table.texts("retain", |text| {
        let parsed = text.parse::<registry_server::collect::Retention>();
        parsed.map(drop).map_err(|error| error.to_string())
    })?;
    let rules = CollectRules {
        untagged: table.boolean("untagged")?.unwrap_or(usual.untagged),
        grace: table.duration("grace")?.unwrap_or(usual.grace),
        retention: retain
            .iter()
            .map(|text| text.parse().expect("it was parsed a moment ago"))
            .collect(),
        ..usual
    };
    match every {
        Some(every) => Ok(Some((every, rules))),
        None => Err(table.error("it needs `every`, how often garbage is collected")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServeConfig, TableError> {
        ServeConfig::parse(text, Path::new("/etc/longshore"))
    }

    #[test]
    fn everything_can_be_said() {
        let config = parse(
            r#"
addr = ":5000"
root = "data"
read_only = true
delete = false
warning = "moves on Friday"
trusted_proxies = ["10.0.0.0/8", "::1"]
proxy_header = "forwarded"
[tls]
cert = "cert.pem"
key = "/keys/key.pem"
[auth]
htpasswd = "users"
[limits]
connections = 10
blob_size = "1GB"
header_timeout = "5s"
body_rate = "2KiB"
connections_per_address = 5
requests_per_second = 50
requests_burst = 200
[audit]
file = "/var/log/registry.jsonl"
[[immutable]]
repositories = ["release/*"]
[[immutable]]
tags = ["v*"]
[[quota]]
repositories = ["team/*"]
size = "10GB"
[gc]
every = "6h"
untagged = true
retain = ["tag=pr-*,last=10"]
[scrub]
every = "30d"
bytes_per_second = "5MB"
quarantine = true
"#,
        )
        .unwrap();
        assert_eq!(config.addr.as_deref(), Some(":5000"));
        assert_eq!(config.root, Some("/etc/longshore/data".into()));
        let server = &config.server;
        assert!(server.read_only && !server.delete);
        assert_eq!(server.warning.as_deref(), Some("moves on Friday"));
        assert_eq!(server.proxies.trusted.len(), 2);
        assert_eq!(server.proxies.header, ProxyHeader::Forwarded);
        assert_eq!(server.auth.htpasswd, Some("/etc/longshore/users".into()));
        let tls = server.tls.as_ref().unwrap();
        assert_eq!(tls.cert, Path::new("/etc/longshore/cert.pem"));
        assert_eq!(tls.key, Path::new("/keys/key.pem"));
        assert_eq!(server.limits.connections_max, 10);
        assert_eq!(server.limits.blob_bytes_max, Some(1_000_000_000));
        assert_eq!(server.limits.header_timeout, Duration::from_secs(5));
        assert_eq!(server.limits.body_timeout, Limits::default().body_timeout);
        assert_eq!(server.limits.body_rate_min, 2048);
        assert_eq!(server.limits.address_connections_max, 5);
        let rate = Rate {
            interval: Duration::from_millis(20),
            burst: 200,
        };
        assert_eq!(server.limits.requests, Some(rate));
        assert_eq!(server.audit, Some("/var/log/registry.jsonl".into()));
        let [first, second] = server.immutable.as_slice() else {
            panic!("{:?}", server.immutable);
        };
        assert_eq!(
            (first.tags.as_slice(), second.tags.as_slice()),
            (&["*".to_owned()][..], &["v*".to_owned()][..])
        );
        assert_eq!(second.repositories, ["*"]);
        assert_eq!(server.quotas[0].bytes, 10_000_000_000);
        let scrub = ScrubRules {
            every: Duration::from_secs(30 * 24 * 3600),
            bytes_per_second: 5_000_000,
            quarantine: true,
        };
        assert_eq!(config.scrub, Some(scrub));
        let (every, rules) = config.collect.unwrap();
        assert_eq!(every, Duration::from_secs(6 * 3600));
        assert!(rules.untagged);
        assert_eq!(rules.retention.len(), 1);
    }

    /// The page's examples are configurations, and what its tables name is known.
    #[test]
    fn the_documented_examples_can_be_read() {
        let pages = [
            include_str!("../../../docs/reference/registry-access.md"),
            include_str!("../../../docs/reference/pull-through.md"),
            include_str!("../../../docs/reference/webhooks.md"),
            include_str!("../../../docs/reference/sync.md"),
            include_str!("../../../docs/reference/observing.md"),
        ];
        let examples: Vec<&str> = pages
            .iter()
            .flat_map(|page| page.split("```toml\n").skip(1))
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert!(!examples.is_empty());
        for example in examples {
            if let Err(error) = parse(example) {
                panic!("{error} in\n{example}");
            }
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let check = |text: &str, expect: &str| {
            assert_eq!(parse(text).unwrap_err().to_string(), expect);
        };
        check(
            "rot = \"x\"\n",
            "1:1: unknown key `rot`: did you mean `root`?",
        );
        check(
            "root = \"x\"\ns3 = \"bucket=b\"\n",
            "2:1: there are both `root` and `s3`: give one",
        );
        check(
            "[tls]\ncert = \"c\"\n",
            "2:1: `tls`: it needs both `cert` and `key`",
        );
        check(
            "[limits]\nconnections = 0\n",
            "2:15: `limits.connections` is a number: expected a number that is at least 1",
        );
        check(
            "[limits]\nrequests_burst = 3\n",
            "2:1: `limits.requests_burst` means nothing without `requests_per_second`",
        );
        check(
            "trusted_proxies = [\"10.0.0.1/8\"]\n",
            "1:20: `trusted_proxies`: `10.0.0.1/8` names one address and a network: expected 10.0.0.0/8 or 10.0.0.1",
        );
        check(
            "proxy_header = \"forwarded\"\n",
            "1:1: `proxy_header` means nothing without `trusted_proxies`",
        );
        check(
            "[[quota]]\nrepositories = [\"a\"]\n",
            "2:1: `quota`: it needs `size`",
        );
        check(
            "[[quota]]\nsize = 1\n",
            "2:1: `quota`: it needs `repositories`, such as [\"team/*\"]",
        );
        check(
            "[[immutable]]\n",
            "1:1: `immutable`: it needs `repositories`, `tags` or both",
        );
        check(
            "[audit]\n",
            "1:1: `audit`: it needs `file`, where the lines go",
        );
        check(
            "[gc]\nuntagged = true\n",
            "2:1: `gc`: it needs `every`, how often garbage is collected",
        );
        check(
            "[gc]\nevery = \"1h\"\nretain = [\"tag=x\"]\n",
            "3:11: `gc.retain`: the rule keeps nothing: give last=, within= or pulled=",
        );
    }
}
