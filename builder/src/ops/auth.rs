//! Credentials for files and repositories: secrets of the build, by the names that BuildKit gives them.
//!
//! | secret | is sent as |
//! |---|---|
//! | `HTTP_AUTH_HEADER_HOST` | `Authorization` to that host |
//! | `HTTP_AUTH_TOKEN_HOST` | the same, as `Bearer` |
//! | `GIT_AUTH_HEADER[.HOST]` | `Authorization` by git, to the host or to whatever host a build names |
//! | `GIT_AUTH_TOKEN[.HOST]` | the same, as the password of `x-access-token` |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::exec::secret_content;
use crate::error::StepError;
use crate::request::RunSettings;

/// The `Authorization` for a URL, if there is a secret for its host.
pub(crate) fn for_file(settings: &RunSettings, url: &str) -> Result<Option<String>, StepError> {
    for host in names(url) {
        if let Some(header) = text(settings, &format!("HTTP_AUTH_HEADER_{host}"))? {
            return Ok(Some(header));
        }
        if let Some(token) = text(settings, &format!("HTTP_AUTH_TOKEN_{host}"))? {
            return Ok(Some(format!("Bearer {token}")));
        }
    }
    Ok(None)
}

/// Settings of git that send credentials, each a key and a value. One that names no host is for `remote`'s only; the
/// others reach theirs by https, for submodules.
pub(crate) fn for_git(
    settings: &RunSettings,
    remote: &str,
) -> Result<Vec<(String, String)>, StepError> {
    let mut found = Vec::new();
    let hosts = names(remote);
    if let Some((scheme, _)) = remote.split_once("://")
        && let Some(host) = hosts.first()
        && matches!(scheme, "http" | "https")
    {
        let mut suffixes: Vec<String> = hosts.iter().map(|host| format!(".{host}")).collect();
        suffixes.push(String::new());
        for suffix in suffixes {
            if let Some(header) = git_header(settings, &suffix)? {
                found.push((format!("http.{scheme}://{host}/.extraHeader"), header));
                break;
            }
        }
    }
    let others = settings.secrets.keys().filter_map(|id| {
        let host = id.strip_prefix("GIT_AUTH_HEADER.");
        host.or_else(|| id.strip_prefix("GIT_AUTH_TOKEN."))
    });
    let mut others: Vec<&str> = others.filter(|host| !hosts.contains(host)).collect();
    others.sort_unstable();
    others.dedup();
    for host in others {
        if let Some(header) = git_header(settings, &format!(".{host}"))? {
            found.push((format!("http.https://{host}/.extraHeader"), header));
        }
    }
    Ok(found)
}

fn git_header(settings: &RunSettings, suffix: &str) -> Result<Option<String>, StepError> {
    if let Some(header) = text(settings, &format!("GIT_AUTH_HEADER{suffix}"))? {
        return Ok(Some(format!("Authorization: {header}")));
    }
    let token = text(settings, &format!("GIT_AUTH_TOKEN{suffix}"))?;
    Ok(token.map(|token| {
        let user = STANDARD.encode(format!("x-access-token:{token}"));
        format!("Authorization: Basic {user}")
    }))
}

/// Host with port, and host alone, of a URL.
fn names(url: &str) -> Vec<&str> {
    let Some((_, rest)) = url.split_once("://") else {
        return Vec::new();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let mut names = vec![authority];
    if let Some((host, port)) = authority.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        names.push(host);
    }
    names
}

/// A secret as one line of text.
fn text(settings: &RunSettings, id: &str) -> Result<Option<String>, StepError> {
    let Some(content) = secret_content(settings, id)? else {
        return Ok(None);
    };
    let text = String::from_utf8(content).ok();
    let text = text.map(|text| text.trim().to_owned());
    match text.filter(|text| !text.chars().any(char::is_control)) {
        Some(text) => Ok(Some(text)),
        None => Err(StepError::SecretNotHeader { id: id.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{SecretSource, SecretText};

    fn settings(secrets: &[(&str, &str)]) -> RunSettings {
        let source = |text: &str| SecretSource::Text(SecretText(text.as_bytes().to_vec()));
        RunSettings {
            secrets: secrets
                .iter()
                .map(|(id, text)| ((*id).to_owned(), source(text)))
                .collect(),
            ..RunSettings::default()
        }
    }

    #[test]
    fn files() {
        let check = |secrets: &[(&str, &str)], url: &str, expect: Option<&str>| {
            let found = for_file(&settings(secrets), url).unwrap();
            assert_eq!(found.as_deref(), expect, "{url} {secrets:?}");
        };
        let token = [("HTTP_AUTH_TOKEN_h", "t\n")];
        check(&token, "https://h/x", Some("Bearer t"));
        check(&token, "https://u@h:8080/x@y", Some("Bearer t"));
        check(&token, "https://g/h", None);
        check(
            &[("HTTP_AUTH_HEADER_h:1", "Basic x")],
            "http://h:1?",
            Some("Basic x"),
        );
        let broken = settings(&[("HTTP_AUTH_TOKEN_h", "a\nb")]);
        let error = for_file(&broken, "http://h/").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the secret `HTTP_AUTH_TOKEN_h` cannot be sent: expected one line of text"
        );
    }

    #[test]
    fn repositories() {
        let check = |secrets: &[(&str, &str)], remote: &str, expect: &[&str]| {
            let found = for_git(&settings(secrets), remote).unwrap();
            let found: Vec<String> = found
                .iter()
                .map(|(key, value)| format!("{key} {value}"))
                .collect();
            assert_eq!(found, expect, "{remote} {secrets:?}");
        };
        let any = [("GIT_AUTH_TOKEN", "t")];
        let own = "http.https://h/.extraHeader Authorization: Basic eC1hY2Nlc3MtdG9rZW46dA==";
        check(&any, "https://h/x.git", &[own]);
        check(&any, "git@h:x", &[]);
        check(&any, "ssh://git@h/x", &[]);
        check(
            &[
                ("GIT_AUTH_TOKEN", "t"),
                ("GIT_AUTH_HEADER.h", "Bearer b"),
                ("GIT_AUTH_HEADER.o", "c"),
            ],
            "http://h:8/x.git",
            &[
                "http.http://h:8/.extraHeader Authorization: Bearer b",
                "http.https://o/.extraHeader Authorization: c",
            ],
        );
    }
}
