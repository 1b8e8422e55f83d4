//! `WWW-Authenticate` (RFC 9110 section 11) and the registry token protocol (distribution's `docs/spec/auth`), as pure
//! functions over text.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::headers::unquote;

/// Most challenges and parameters that are read from one answer.
const CHALLENGES_MAX: usize = 16;

/// How long a token lives where its server does not say (distribution's `token` specification).
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// What is asked to be allowed, in one repository or in the registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Actions, separated by commas, in a repository.
    Repository {
        repository: String,
        actions: &'static str,
    },
    /// Listing the registry's repositories.
    Catalog,
}

impl Scope {
    pub(crate) fn pull(repository: &str) -> Scope {
        Scope::Repository {
            repository: repository.to_owned(),
            actions: "pull",
        }
    }

    pub(crate) fn push(repository: &str) -> Scope {
        Scope::Repository {
            repository: repository.to_owned(),
            actions: "pull,push",
        }
    }

    pub(crate) fn delete(repository: &str) -> Scope {
        Scope::Repository {
            repository: repository.to_owned(),
            actions: "delete,pull",
        }
    }

    pub(crate) fn repository(&self) -> &str {
        match self {
            Scope::Repository { repository, .. } => repository,
            Scope::Catalog => "",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Repository {
                repository,
                actions,
            } => write!(f, "repository:{repository}:{actions}"),
            Scope::Catalog => f.write_str("registry:catalog:*"),
        }
    }
}

/// The challenge to answer among all of an answer's `WWW-Authenticate` values: a token before a password, and nothing
/// where none is understood.
pub(crate) fn choose<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let challenges: Vec<Challenge> = values
        .into_iter()
        .flat_map(parse)
        .take(CHALLENGES_MAX)
        .collect();
    let bearer = |challenge: &&Challenge| matches!(challenge, Challenge::Bearer { .. });
    challenges
        .iter()
        .find(bearer)
        .or(challenges.first())
        .cloned()
}

/// The challenges of one header value that longshore can answer, in order.
pub(crate) fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut scheme: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        if end == 0 || found.len() == CHALLENGES_MAX {
            break;
        }
        let (word, after) = rest.split_at(end);
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, &mut scheme) {
            // `token68=` padding belongs to schemes that are not answered; a parameter needs a scheme before it.
            (Some(value), Some((_, parameters))) => {
                let value = value.trim_start_matches([' ', '\t']);
                let Some((value, after)) = parameter_value(value) else {
                    break;
                };
                if parameters.len() < CHALLENGES_MAX {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            (Some(_), None) => break,
            (None, _) => {
                found.extend(scheme.take().and_then(finish));
                scheme = Some((word.to_ascii_lowercase(), Vec::new()));
                rest = after;
            }
        }
    }
    found.extend(scheme.and_then(finish));
    found.truncate(CHALLENGES_MAX);
    found
}

fn parameter_value(text: &str) -> Option<(String, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        return unquote(quoted);
    }
    // Some servers leave URLs unquoted: take all up to the next comma or blank.
    let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
    Some((text[..end].to_owned(), &text[end..]))
}

fn finish((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let find = |wanted: &str| {
        let found = parameters.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone())
    };
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: find("realm")?,
            service: find("service"),
            scope: find("scope").filter(|scope| !scope.is_empty()),
        }),
        _ => None,
    }
}

fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
}

/// A token server's answer.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) token: String,
    pub(crate) life: Duration,
    /// What further tokens are given for, if it was asked for.
    pub(crate) refresh: Option<String>,
}

/// Reads a token server's answer; the error says what is wrong and shows no token.
pub(crate) fn parse_token(body: &[u8]) -> Result<Token, &'static str> {
    #[derive(Deserialize)]
    struct Body {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
        refresh_token: Option<String>,
    }
    let body: Body =
        serde_json::from_slice(body).map_err(|_| "the token server's answer is not JSON")?;
    let token = body
        .token
        .filter(|token| !token.is_empty())
        .or(body.access_token)
        .filter(|token| !token.is_empty())
        .ok_or("the token server's answer has no token")?;
    Ok(Token {
        token,
        life: body
            .expires_in
            .map_or(TOKEN_LIFE_DEFAULT, Duration::from_secs),
        refresh: body.refresh_token.filter(|token| !token.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges() {
        let check = |text: &str, expect: &[Challenge]| assert_eq!(parse(text), expect, "{text}");
        check("Basic realm=\"x\"", &[Challenge::Basic]);
        check("basic", &[Challenge::Basic]);
        check(
            "Bearer realm=\"https://auth.example/token\",service=\"r.example\",scope=\"repository:a/b:pull,push\"",
            &[bearer(
                "https://auth.example/token",
                Some("r.example"),
                Some("repository:a/b:pull,push"),
            )],
        );
        check(
            "BEARER Realm = \"https://a/\\\"t\" , error=\"invalid_token\"",
            &[bearer("https://a/\"t", None, None)],
        );
        check(
            "Bearer realm=https://a/t,service=s",
            &[bearer("https://a/t", Some("s"), None)],
        );
        check(
            "Negotiate, NTLM abc==, Basic realm=\"a, Bearer realm=b\", Bearer realm=\"https://a\"",
            &[Challenge::Basic, bearer("https://a", None, None)],
        );
        check("Bearer service=\"x\"", &[]);
        check("Bearer realm=\"x", &[]);
        check("Digest realm=\"x\"", &[]);
        let many = vec!["Basic"; CHALLENGES_MAX + 5].join(", ");
        check(&many, &vec![Challenge::Basic; CHALLENGES_MAX]);
        check("", &[]);
        check("=", &[]);
    }

    #[test]
    fn a_token_goes_before_a_password() {
        let chosen = choose(["Basic realm=\"x\"", "Bearer realm=\"https://a\""]);
        assert_eq!(chosen, Some(bearer("https://a", None, None)));
        assert_eq!(choose(["Basic"]), Some(Challenge::Basic));
        assert_eq!(choose(["Digest realm=\"x\""]), None);
    }

    #[test]
    fn tokens() {
        let check = |body: &str, expect: Result<(&str, u64), &str>| {
            let got = parse_token(body.as_bytes());
            let got = got.map(|token| (token.token, token.life.as_secs()));
            assert_eq!(got, expect.map(|(t, s)| (t.to_owned(), s)), "{body}");
        };
        check(r#"{"token":"t","expires_in":300}"#, Ok(("t", 300)));
        check(r#"{"access_token":"a"}"#, Ok(("a", 60)));
        check(r#"{"token":"","access_token":"a"}"#, Ok(("a", 60)));
        check(r#"{}"#, Err("the token server's answer has no token"));
        check("<html>", Err("the token server's answer is not JSON"));
    }

    #[test]
    fn mutations_do_no_harm() {
        let seed = "Negotiate, Basic realm=\"a, b\", Bearer realm=\"https://a/\\\"t\",service=s , scope=\"repository:a/b:pull,push\"";
        let mut mutations = crate::mutate::Mutations::new(0x5eed_0002);
        for _ in 0..50_000 {
            let text = mutations.of(seed);
            assert!(parse(&text).len() <= CHALLENGES_MAX + 1);
        }
    }
}
