//! Tokens that others issue: of CI jobs, whose claims rules turn into users and groups (OIDC workload identity), and of token
//! servers, which say themselves what their bearer may do.
//!
//! Keys come from where the configuration says, never from where a token says. They are asked for again when a token names a key
//! that is not among them, but not more often than once in [`ASK_AGAIN`]: tokens that anybody makes up cost one request each
//! time. While an issuer is down its old keys count, for [`KEYS_USED_MAX`]. Who asks is not this crate: it has no HTTP client ([`FetchDocument`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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

/// How long keys are used while nothing newer can be had.
const KEYS_USED_MAX: Duration = Duration::from_secs(24 * 60 * 60);

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
    keys: Mutex<Keys>,
    /// Held while keys are asked for: who comes meanwhile and needs them waits for the same answer, and nobody else.
    asking: tokio::sync::Mutex<()>,
    fetch: Option<Arc<dyn FetchDocument>>,
}

#[derive(Clone, Debug, Default)]
struct Keys {
    keys: Arc<Vec<(Option<String>, PublicKey)>>,
    /// When they were had.
    had: Option<Instant>,
    /// When they were asked for, whatever came of it.
    asked: Option<Instant>,
}

impl Issuer {
    /// One whose keys are asked for when they are needed; meanwhile, and if they cannot be had, those count that the same one
    /// among `before` had.
    pub(crate) fn new(
        config: IssuerConfig,
        fetch: Option<Arc<dyn FetchDocument>>,
        before: &[Issuer],
    ) -> Issuer {
        let same = before.iter().find(|other| other.config == config);
        let keys = same.map(|other| Keys {
            asked: None,
            ..other.known()
        });
        Issuer {
            config,
            keys: Mutex::new(keys.unwrap_or_default()),
            asking: tokio::sync::Mutex::default(),
            fetch,
        }
    }

    fn known(&self) -> Keys {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.clone()
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
        let mut keys = self.known();
        if keys.must_be_asked_for(token) {
            let _asking = self.asking.lock().await;
            keys = self.known();
            if keys.must_be_asked_for(token) {
                keys = self.asked(keys).await;
            }
        }
        let usable = keys.had.is_some_and(|had| had.elapsed() < KEYS_USED_MAX);
        if !usable || keys.keys.is_empty() {
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

    /// Asks for keys; the old ones stay where there are none.
    async fn asked(&self, old: Keys) -> Keys {
        let found = self.ask().await;
        let now = Some(Instant::now());
        let keys = match found {
            Ok(found) => Keys {
                keys: Arc::new(found),
                had: now,
                asked: now,
            },
            Err(reason) => {
                let issuer = &self.config.issuer;
                tracing::warn!(issuer, reason, "the keys of an issuer cannot be had");
                Keys { asked: now, ..old }
            }
        };
        let mut known = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone_from(&keys);
        keys
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
    /// Whether they are too old, or lack the token's; and it is long enough ago that they were asked for.
    fn must_be_asked_for(&self, token: &Token<'_>) -> bool {
        let ago = |at: Option<Instant>, than| at.is_none_or(|at| at.elapsed() > than);
        let wanted = ago(self.had, KEYS_AGE_MAX) || !self.has(token) || self.asked.is_none();
        wanted && ago(self.asked, ASK_AGAIN)
    }

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
