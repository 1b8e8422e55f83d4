//! Containerd's `certs.d/HOST/hosts.toml`: servers to ask for a registry's content, with what each can do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;

use super::{Host, HostsError, Location, Pulls, Rule, read, unknown_keys};
use crate::transport::target::authority;

/// One text or several.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Some(Vec<String>),
}

impl Texts {
    fn list(&self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text.clone()],
            Texts::Some(texts) => texts.clone(),
        }
    }
}

/// `client = "both.pem"`, `["both.pem"]`, or `[["cert.pem", "key.pem"]]`.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Client {
    Texts(Texts),
    Pairs(Vec<(String, String)>),
}

#[derive(Default, Deserialize)]
struct Server {
    capabilities: Option<Vec<String>>,
    ca: Option<Texts>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, Texts>,
    dial_timeout: Option<String>,
    proxy: Option<String>,
}

/// The keys of a server, of the file itself also `server` and `host`.
const KEYS: [&str; 10] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "override_path",
    "header",
    "dial_timeout",
    "proxy",
    "server",
    "host",
];

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    home: Server,
    /// In the order of the file, which is the order in which they are asked.
    #[serde(default)]
    host: toml::Table,
}

/// The rule for a registry, of the first of `directories` that has one for `HOST[:PORT]`, or for `_default`. Blocks.
pub(super) fn find(directories: &[PathBuf], registry: &str) -> Result<Option<Rule>, HostsError> {
    // A name from outside must not lead elsewhere.
    if registry.contains('/') || registry.starts_with('.') {
        return Ok(None);
    }
    let underscored = registry
        .rsplit_once(':')
        .map(|(host, port)| format!("{host}_{port}_"));
    let names = [
        underscored,
        Some(registry.to_owned()),
        Some("_default".to_owned()),
    ];
    for name in names.into_iter().flatten() {
        for directory in directories {
            let path = directory.join(&name).join("hosts.toml");
            if let Some(text) = read(&path)? {
                return parse(&path, registry, &text).map(Some);
            }
        }
    }
    Ok(None)
}

fn parse(path: &Path, registry: &str, text: &str) -> Result<Rule, HostsError> {
    let wrong = |reason: String| HostsError::Wrong {
        path: path.to_owned(),
        reason,
    };
    let file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if let Ok(table) = text.parse::<toml::Table>() {
        unknown_keys(path, "", &table, &KEYS);
    }
    let mut mirrors = Vec::new();
    let mut push_to = None;
    for (url, table) in file.host {
        if let toml::Value::Table(table) = &table {
            unknown_keys(path, &format!("host.\"{url}\"."), table, &KEYS[..8]);
        }
        let server: Server = table.try_into().map_err(|error: toml::de::Error| {
            wrong(format!("`[host.\"{url}\"]`: {}", error.message()))
        })?;
        let location = location(path, registry, &url, &server).map_err(wrong)?;
        let (mut pull, mut push) = (server.capabilities.is_none(), server.capabilities.is_none());
        let mut resolve = pull;
        for word in server.capabilities.iter().flatten() {
            match word.as_str() {
                "pull" => pull = true,
                "resolve" => resolve = true,
                "push" => push = true,
                "referrers" => {}
                other => {
                    return Err(wrong(format!(
                        "`[host.\"{url}\"]` has the capability `{other}`: expected pull, resolve, push or referrers"
                    )));
                }
            }
        }
        if push {
            push_to.get_or_insert_with(|| location.clone());
        }
        let pulls = match (pull, resolve) {
            (true, true) => Pulls::All,
            (true, false) => Pulls::Digests,
            (false, true) => Pulls::Tags,
            (false, false) => continue,
        };
        mirrors.push(Location { pulls, ..location });
    }
    let server = file.server.as_deref().filter(|server| !server.is_empty());
    let home = match server {
        Some(server) => location(path, registry, server, &file.home).map_err(wrong)?,
        // What is said at the top is about the registry itself.
        None => {
            let said = location(path, registry, registry, &file.home).map_err(wrong)?;
            Location::as_said(Host::clone(&said.host))
        }
    };
    Ok(Rule {
        prefix: registry.to_owned(),
        blocked: false,
        mirrors,
        // As with containerd, the first that can.
        push: push_to.unwrap_or_else(|| home.clone()),
        home,
        file: path.to_owned(),
    })
}

fn location(path: &Path, registry: &str, text: &str, server: &Server) -> Result<Location, String> {
    let not_one =
        || format!("`{text}` is no server: expected [http:// or https://]host[:port][/path]");
    let with_scheme = match text.contains("://") {
        true => text.to_owned(),
        false => format!("https://{text}"),
    };
    let url = Url::parse(&with_scheme).map_err(|_| not_one())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(not_one());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let files = |texts: &Texts| -> Vec<PathBuf> {
        let paths = texts.list().into_iter();
        paths.map(|file| folder.join(file)).collect()
    };
    let identity = match &server.client {
        None => None,
        Some(Client::Pairs(pairs)) => pairs.first().map(|(cert, key)| {
            // Without a name the key is in the certificate's file.
            let key = if key.is_empty() { cert } else { key };
            (folder.join(cert), folder.join(key))
        }),
        Some(Client::Texts(texts)) => files(texts)
            .into_iter()
            .next()
            .map(|file| (file.clone(), file)),
    };
    let name = authority(&url);
    let api = url.path().trim_end_matches('/');
    // `…/v2` is understood as the whole path; others are put in front of it unless they are said to be whole.
    let api = match (api, server.override_path) {
        ("", false) => None,
        (path, true) => Some(path.to_owned()),
        (path, false) if path.ends_with("/v2") => Some(path.to_owned()),
        (path, false) => Some(format!("{path}/v2")),
    };
    let mut headers = Vec::new();
    for (header, values) in &server.header {
        for value in values.list() {
            headers.push((header.clone(), value));
        }
    }
    let connect_timeout = match server.dial_timeout.as_deref() {
        None | Some("") => None,
        Some(text) => Some(duration(text).ok_or_else(|| {
            format!("`dial_timeout` is `{text}`: expected a duration such as 500ms, 5s or 1m30s")
        })?),
    };
    let proxy = server.proxy.clone().filter(|proxy| !proxy.is_empty());
    if let Some(text) = &proxy {
        let is_one = Url::parse(text).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https") && url.has_host() && url.path() == "/"
        });
        if !is_one {
            return Err(format!(
                "`proxy` is `{}`: expected http:// or https:// with host[:port]",
                without_user(text)
            ));
        }
    }
    let host = Host {
        connect_timeout,
        proxy,
        plain: text.contains("://").then(|| url.scheme() == "http"),
        insecure: server.skip_verify,
        api,
        stands_for: (name != registry).then(|| registry.to_owned()),
        ca: server.ca.as_ref().map(files).unwrap_or_default(),
        identity,
        headers,
        name,
    };
    Ok(Location {
        host: Arc::new(host),
        path: String::new(),
        pulls: Pulls::All,
    })
}

/// A duration as Go's programs write it: `1m30s`, `500ms`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 6] = [
        ("ms", 1e-3),
        ("us", 1e-6),
        ("ns", 1e-9),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let found = UNITS
            .iter()
            .find_map(|(unit, worth)| Some((rest[digits..].strip_prefix(unit)?, worth)));
        let (after, worth) = found?;
        seconds += number * worth;
        rest = after;
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
}

/// A URL without what may be a secret in it.
fn without_user(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    match scheme {
        "" => host.to_owned(),
        scheme => format!("{scheme}://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(duration(text), expect.map(Duration::from_millis), "{text}");
        };
        check("500ms", Some(500));
        check("1m30s", Some(90_000));
        check("1.5h", Some(5_400_000));
        for wrong in ["", "5", "s", "-1s", "0s", "1e9999s", "1 s", "1x"] {
            check(wrong, None);
        }
    }

    #[test]
    fn what_the_top_says_is_about_the_registry() {
        let rule =
            parsed("skip_verify = true\nca = \"a.pem\"\n[header]\nx-a = [\"1\", \"2\"]\n").unwrap();
        let host = &rule.home.host;
        assert_eq!((host.name.as_str(), host.plain), ("", None));
        assert!(host.insecure);
        assert_eq!(host.ca, [PathBuf::from("/c/docker.io/a.pem")]);
        assert_eq!(host.headers.len(), 2);
        assert_eq!(host.stands_for, None);
        assert_eq!(rule.push, rule.home);
    }

    #[test]
    fn timeouts_proxies_and_keys_in_one_file() {
        let text = r#"
[host."https://z.example"]
  client = [["both.pem", ""]]
  dial_timeout = "2s"
  proxy = "http://me:secret@proxy.example:3128"
"#;
        let rule = parsed(text).unwrap();
        let host = &rule.mirrors[0].host;
        let both = PathBuf::from("/c/docker.io/both.pem");
        assert_eq!(host.identity, Some((both.clone(), both)));
        assert_eq!(host.connect_timeout, Some(Duration::from_secs(2)));
        assert!(host.proxy.as_ref().unwrap().ends_with(":3128"));
        assert_eq!(rule.home.host.proxy, None);
        let error = parsed("proxy = \"socks5://me:secret@p\"\nserver = \"x\"\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`proxy` is `socks5://p`"), "{text}");
    }

    fn parsed(text: &str) -> Result<Rule, HostsError> {
        parse(Path::new("/c/docker.io/hosts.toml"), "docker.io", text)
    }

    #[test]
    fn servers_in_the_order_of_the_file() {
        let text = r#"
server = "https://registry-1.docker.io"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
  ca = "z.pem"
  client = [["a.cert", "a.key"]]
  [host."https://z.example".header]
    x-team = "one"
[host."http://a.example:5000/v2/proxy"]
  capabilities = ["pull"]
  override_path = true
[host."b.example"]
  skip_verify = true
"#;
        let rule = parsed(text).unwrap();
        let shown: Vec<_> = rule
            .mirrors
            .iter()
            .map(|mirror| {
                let host = &mirror.host;
                (
                    host.name.as_str(),
                    host.plain,
                    host.api.as_deref(),
                    mirror.pulls,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("z.example", Some(false), None, Pulls::All),
                (
                    "a.example:5000",
                    Some(true),
                    Some("/v2/proxy"),
                    Pulls::Digests
                ),
                ("b.example", None, None, Pulls::All),
            ]
        );
        let first = &rule.mirrors[0].host;
        assert_eq!(first.ca, [PathBuf::from("/c/docker.io/z.pem")]);
        assert_eq!(
            first.identity,
            Some(("/c/docker.io/a.cert".into(), "/c/docker.io/a.key".into()))
        );
        assert_eq!(first.headers, [("x-team".to_owned(), "one".to_owned())]);
        assert_eq!(first.stands_for.as_deref(), Some("docker.io"));
        assert!(rule.mirrors[2].host.insecure);
        assert_eq!(rule.home.host.name, "registry-1.docker.io");
        // Nothing is said of what the last one can do, so it can do everything.
        assert_eq!(rule.push.host.name, "b.example");
    }

    #[test]
    fn mistakes() {
        let check = |text: &str, expect: &str| {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("server = 3\n", "line 1");
        check("[host.\"ftp://x\"]\n", "`ftp://x` is no server");
        check(
            "[host.\"https://x\"]\ncapabilities = [\"fly\"]\n",
            "has the capability `fly`",
        );
        check(
            "[host.\"https://x\"]\nskip_verify = 3\n",
            "`[host.\"https://x\"]`",
        );
    }

    #[test]
    fn files_are_found_by_host_and_port() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, server: &str| {
            let folder = folder.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(
                folder.join("hosts.toml"),
                format!("server = \"{server}\"\n"),
            )
            .unwrap();
        };
        put("a.example:5000", "one");
        put("b.example_5000_", "two");
        put("_default", "other");
        let check = |registry: &str, expect: &str| {
            let rule = find(&[folder.path().to_owned()], registry)
                .unwrap()
                .unwrap();
            assert_eq!(rule.home.host.name, expect, "{registry}");
        };
        check("a.example:5000", "one");
        check("b.example:5000", "two");
        check("c.example", "other");
        // As with containerd, the form without a colon goes first.
        put("a.example_5000_", "three");
        check("a.example:5000", "three");
        assert_eq!(find(&[folder.path().to_owned()], "..").unwrap(), None);
    }
}
