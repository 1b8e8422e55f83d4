//! `[[webhook]]`: endpoints that are told what happens in the registry.

use std::path::PathBuf;
use std::time::Duration;

use registry_server::events::EventFormat;
use registry_server::events::event::EventAction;

use super::super::table::{Table, TableError};

/// What one table says; `None` is what is usual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookConfig {
    /// `name`.
    pub name: String,
    /// `url`.
    pub url: String,
    /// `headers`.
    pub headers: Vec<(String, String)>,
    /// `token_file`: what is sent as `Authorization: Bearer`.
    pub token: Option<PathBuf>,
    /// `secret_file`: what events are signed with.
    pub secret: Option<PathBuf>,
    /// `format`.
    pub format: Option<EventFormat>,
    /// `actions`.
    pub actions: Option<Vec<EventAction>>,
    /// `blobs`.
    pub blobs: bool,
    /// `repositories`.
    pub repositories: Vec<String>,
    /// `source`.
    pub source: Option<String>,
    /// `insecure`.
    pub insecure: bool,
    /// `ca`.
    pub ca: Vec<PathBuf>,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `backoff`.
    pub backoff: Option<Duration>,
    /// `backoff_max`.
    pub backoff_max: Option<Duration>,
    /// `give_up`.
    pub give_up: Option<Duration>,
    /// `waiting`.
    pub waiting: Option<u64>,
}

impl WebhookConfig {
    /// Reads a table whose files are found by `file`.
    pub(super) fn read(
        table: &mut Table<'_>,
        file: impl Fn(String) -> PathBuf,
    ) -> Result<WebhookConfig, TableError> {
        let (Some(name), Some(url)) = (table.text("name")?, table.text("url")?) else {
            return Err(table.error("it needs both `name` and `url`"));
        };
        Ok(WebhookConfig {
            name,
            url,
            headers: table.pairs("headers")?,
            token: table.text("token_file")?.map(&file),
            secret: table.text("secret_file")?.map(&file),
            format: table.word(
                "format",
                &[
                    ("cloudevents", EventFormat::CloudEvents),
                    ("docker", EventFormat::Docker),
                ],
            )?,
            actions: table.words(
                "actions",
                &[
                    ("push", EventAction::Push),
                    ("pull", EventAction::Pull),
                    ("delete", EventAction::Delete),
                    ("mount", EventAction::Mount),
                ],
            )?,
            blobs: table.boolean("blobs")?.unwrap_or(false),
            repositories: table.texts("repositories", |_| Ok(()))?,
            source: table.text("source")?,
            insecure: table.boolean("insecure")?.unwrap_or(false),
            ca: table.files("ca", &file)?,
            timeout: table.duration("timeout")?,
            backoff: table.duration("backoff")?,
            backoff_max: table.duration("backoff_max")?,
            give_up: table.duration("give_up")?,
            waiting: table.number_from(1, "waiting")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::ServeConfig;
    use super::*;

    fn parse(text: &str) -> Result<Vec<WebhookConfig>, TableError> {
        ServeConfig::parse(text, Path::new("/etc")).map(|config| config.webhooks)
    }

    #[test]
    fn everything_can_be_said() {
        let read = parse(
            r#"
[[webhook]]
name = "ci"
url = "https://ci.example/hook"
headers = { x-team = "a" }
token_file = "token"
secret_file = "/run/secret"
format = "docker"
actions = ["pull", "mount"]
blobs = true
repositories = ["team/*"]
source = "registry.example"
timeout = "3s"
give_up = "1h"
waiting = 7
[[webhook]]
name = "b"
url = "http://127.0.0.1:1"
"#,
        )
        .unwrap();
        let [first, second] = read.as_slice() else {
            panic!("{read:?}");
        };
        assert_eq!(first.headers, [("x-team".to_owned(), "a".to_owned())]);
        assert_eq!(first.token.as_deref(), Some(Path::new("/etc/token")));
        assert_eq!(first.secret.as_deref(), Some(Path::new("/run/secret")));
        assert_eq!(first.format, Some(EventFormat::Docker));
        assert_eq!(
            first.actions.as_deref(),
            Some(&[EventAction::Pull, EventAction::Mount][..])
        );
        assert!(first.blobs && !second.blobs);
        assert_eq!(first.waiting, Some(7));
        assert_eq!(first.give_up, Some(Duration::from_secs(3600)));
        assert_eq!(second.actions, None);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let check = |text: &str, expect: &str| {
            assert_eq!(parse(text).unwrap_err().to_string(), expect);
        };
        check(
            "[[webhook]]\nname = \"x\"\n",
            "2:1: `webhook`: it needs both `name` and `url`",
        );
        check(
            "[[webhook]]\nname = \"x\"\nurl = \"y\"\nactions = [\"pul\"]\n",
            "4:12: `webhook.actions` has `pul`: did you mean `pull`?",
        );
        check(
            "[[webhook]]\nname = \"x\"\nurl = \"y\"\nheaders = { a = 1 }\n",
            "4:17: `webhook.headers.a` is no text",
        );
    }
}
