//! Tokens that others issue: of CI jobs, whose claims rules turn into users and groups (OIDC workload identity), and of token
//! servers, which say themselves what their bearer may do.
//!
//! Keys come from where the configuration says, never from where a token says. They are asked for again when a token names a key
//! that is not among them, but not more often than once in [`ASK_AGAIN`]: tokens that anybody makes up cost one request each
//! time. Who asks is not this crate: it has no HTTP client ([`FetchDocument`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use store::oci::pattern::matches;

use super::jwt::{Claims, PublicKey, Token, TokenError, read_keys};
use super::scope::Grant;
use super::{Via, Visitor};
use crate::policy::Person;

/// How long keys are not asked for again after they were, whatever tokens say.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How long keys are used before they are asked for again, so that one that was withdrawn is not for ever.
const KEYS_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Where an issuer says where its keys are (OpenID Connect Discovery).
const DISCOVERY: &str = ".well-known/openid-configuration";

/// Largest set of keys, in bytes.
pub const KEYS_BYTES_MAX: u64 = 1024 * 1024;

/// What fetching something gives: its bytes, or why there are none.
pub type Fetched = Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;

/// Fetches documents: keys and where they are.
pub trait FetchDocument: Send + Sync + fmt::Debug {
    /// What is at this URL, at most [`KEYS_BYTES_MAX`] bytes; redirects are not followed.
    fn fetch(&self, url: &str) -> Fetched;
}

/// Somebody whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerConfig {
    /// What its tokens have as `iss`.
    pub issuer: String,
    /// What they must have as `aud`, alone or among others.
    pub audience: String,
    /// Where its keys are.
    pub keys: KeySource,
    /// Whether its tokens say themselves, in `access`, what their bearer may do.
    pub access: bool,
    /// Who somebody is by what a token says; the first that fits counts.
    pub rules: Vec<ClaimRule>,
}

/// Where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// At a URL.
    Url(String),
    /// Where the issuer, which is a URL, says.
    Discovery,
}

/// Who somebody is by what a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRule {
    /// Claims by name, each with patterns of which one must fit.
    pub claims: BTreeMap<String, Vec<String>>,
    /// The user, in which `{name}` stands for a claim.
    pub user: String,
    /// Their groups.
    pub groups: BTreeSet<String>,
}

impl ClaimRule {
    /// The person, if the rule fits.
    fn person(&self, claims: &Claims) -> Option<Person> {
        let fits = |(name, patterns): (&String, &Vec<String>)| {
            let said = texts(claims.0.get(name));
            patterns
                .iter()
                .any(|pattern| said.iter().any(|text| matches(pattern, text)))
        };
        if !self.claims.iter().all(fits) {
            return None;
        }
        let mut user = String::new();
        let mut rest = self.user.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}')?;
            user.push_str(before);
            user.push_str(texts(claims.0.get(name)).first()?);
            rest = after;
        }
        user.push_str(rest);
        Some(Person {
            user: Some(user).filter(|user| !user.is_empty()),
            groups: self.groups.clone(),
        })
    }
}

/// What a claim says, as texts.
fn texts(claim: Option<&Value>) -> Vec<String> {
    match claim {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Number(number)) => vec![number.to_string()],
        Some(Value::Bool(value)) => vec![value.to_string()],
        Some(Value::Array(all)) => all.iter().flat_map(|one| texts(Some(one))).collect(),
        _ => Vec::new(),
    }
}

/// Somebody whose tokens are taken, with their keys.
#[derive(Debug)]
pub(crate) struct Issuer {
    config: IssuerConfig,
    keys: tokio::sync::Mutex<Keys>,
    fetch: Option<Arc<dyn FetchDocument>>,
}

#[derive(Debug, Default)]
struct Keys {
    keys: Vec<(Option<String>, PublicKey)>,
    /// When they were asked for, whatever came of it.
    asked: Option<Instant>,
}

impl Issuer {
    pub(crate) fn new(config: IssuerConfig, fetch: Option<Arc<dyn FetchDocument>>) -> Issuer {
        Issuer {
            config,
            keys: tokio::sync::Mutex::default(),
            fetch,
        }
    }

    /// Whether a token says that it is this one's.
    pub(crate) fn claims_to_have_issued(&self, token: &Token<'_>) -> bool {
        token.claimed_issuer() == Some(&self.config.issuer)
    }

    /// Who comes with this token.
    pub(crate) async fn visitor(&self, token: &Token<'_>, now: i64) -> Result<Visitor, TokenError> {
        let claims = self.verified(token).await?;
        claims.check_times(now)?;
        claims.is_for(&self.config.audience)?;
        if let (true, Some(access)) = (self.config.access, claims.0.get("access")) {
            let grants: Result<Vec<Grant>, _> = serde_json::from_value(access.clone());
            let user = claims.text("sub").filter(|user| !user.is_empty());
            return Ok(Visitor {
                person: Person {
                    user: user.map(str::to_owned),
                    groups: BTreeSet::new(),
                },
                via: Via::Issuer,
                grants: Some(grants.map_err(|_| TokenError::Malformed)?),
            });
        }
        let mut people = self.config.rules.iter();
        let person = people.find_map(|rule| rule.person(&claims));
        let person = person.filter(|person| person.user.is_some());
        Ok(Visitor {
            person: person.ok_or(TokenError::NoRule)?,
            via: Via::Issuer,
            grants: None,
        })
    }

    async fn verified(&self, token: &Token<'_>) -> Result<Claims, TokenError> {
        // Held while they are asked for: who comes meanwhile waits for the same answer.
        let mut keys = self.keys.lock().await;
        let old = keys
            .asked
            .is_none_or(|asked| asked.elapsed() > KEYS_AGE_MAX);
        let may_ask = keys.asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN);
        if old || (!keys.has(token) && may_ask) {
            keys.asked = Some(Instant::now());
            match self.ask().await {
                Ok(found) => keys.keys = found,
                Err(reason) => {
                    let issuer = &self.config.issuer;
                    tracing::warn!(issuer, reason, "the keys of an issuer cannot be had");
                }
            }
        }
        if keys.keys.is_empty() {
            return Err(TokenError::NoKeys);
        }
        let mut result = Err(TokenError::UnknownKey);
        for key in keys.of(token) {
            result = key.verify(token);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    async fn ask(&self) -> Result<Vec<(Option<String>, PublicKey)>, String> {
        let text = match &self.config.keys {
            KeySource::File(path) => {
                let read = tokio::fs::read(path).await;
                read.map_err(|error| format!("cannot read `{}`: {error}", path.display()))?
            }
            KeySource::Url(url) => self.fetch(url).await?,
            KeySource::Discovery => {
                #[derive(Deserialize)]
                struct Discovered {
                    issuer: String,
                    jwks_uri: String,
                }
                let issuer = self.config.issuer.trim_end_matches('/');
                let text = self.fetch(&format!("{issuer}/{DISCOVERY}")).await?;
                let found: Discovered =
                    serde_json::from_slice(&text).map_err(|error| error.to_string())?;
                if found.issuer != self.config.issuer {
                    return Err("what is there is of another issuer".to_owned());
                }
                self.fetch(&found.jwks_uri).await?
            }
        };
        read_keys(&text).ok_or_else(|| "what is there is no set of keys".to_owned())
    }

    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        match &self.fetch {
            Some(fetch) => fetch.fetch(url).await,
            None => Err("this server cannot fetch anything: give a file".to_owned()),
        }
    }
}

impl Keys {
    /// The keys that may have signed a token.
    fn of(&self, token: &Token<'_>) -> impl Iterator<Item = &PublicKey> {
        let wanted = token.key.clone();
        let fits =
            move |name: &Option<String>| wanted.is_none() || name.is_none() || *name == wanted;
        let fitting = self.keys.iter().filter(move |(name, _)| fits(name));
        fitting.map(|(_, key)| key)
    }

    fn has(&self, token: &Token<'_>) -> bool {
        self.of(token).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_make_people() {
        let rule = ClaimRule {
            claims: BTreeMap::from([
                ("repository".to_owned(), vec!["org/*".to_owned()]),
                (
                    "ref".to_owned(),
                    vec!["refs/heads/main".to_owned(), "refs/tags/*".to_owned()],
                ),
            ]),
            user: "ci:{repository}#{run}".to_owned(),
            groups: ["ci".to_owned()].into(),
        };
        let check = |claims: Value, expected: Option<&str>| {
            let Value::Object(map) = claims.clone() else {
                panic!("no claims");
            };
            let person = rule.person(&Claims(map));
            let user = person.and_then(|person| person.user);
            assert_eq!(user.as_deref(), expected, "{claims}");
        };
        let main = "refs/heads/main";
        check(
            json!({"repository": "org/app", "ref": main, "run": 7}),
            Some("ci:org/app#7"),
        );
        check(
            json!({"repository": ["x", "org/app"], "ref": "refs/tags/v1", "run": true}),
            Some("ci:x#true"),
        );
        check(
            json!({"repository": "organ/app", "ref": main, "run": 7}),
            None,
        );
        check(
            json!({"repository": "org/app", "ref": "refs/heads/other", "run": 7}),
            None,
        );
        check(json!({"repository": "org/app", "run": 7}), None);
        // What the name is made of has to be there.
        check(json!({"repository": "org/app", "ref": main}), None);
        check(
            json!({"repository": {"a": "org/app"}, "ref": main, "run": 7}),
            None,
        );
    }
}
