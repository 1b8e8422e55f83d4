//! From a request's credentials to who asks, and from that to whether they may.
//!
//! ```text
//! headers, connection ─ Gate::visitor ─► Visitor ─ Gate::admit(Need) ─► goes on | 401 with a challenge | 403 | 429
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`htpasswd`], [`password`] | users and hashes of their passwords |
//! | [`scope`] | what tokens give, as clients write it; pure |
//! | [`jwt`] | signed tokens; pure |
//! | [`tokens`] | those that this registry issues |
//! | [`issuers`] | those that others do |
//! | [`certificate`] | names in certificates of clients; pure |
//! | `endpoint` | `/token`, where they are had |
//!
//! What a token gives and what the policy gives have both to be there: a token never gives more than its bearer may, also
//! after the policy changed. Nothing here logs a password, a token or a header.

pub mod certificate;
mod endpoint;
pub mod htpasswd;
pub mod issuers;
pub mod jwt;
pub mod password;
pub mod scope;
pub mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use http::header::{self, HeaderMap, HeaderValue};

use self::certificate::ClientCertificates;
use self::htpasswd::{Htpasswd, HtpasswdError, Verdict};
use self::issuers::{FetchDocument, Issuer, IssuerConfig};
use self::jwt::{Token, TokenError};
use self::scope::Grant;
use self::tokens::{TokenConfig, TokenKeyError, Tokens};
use crate::error::{ApiError, ErrorCode};
use crate::policy::{Action, Person, Policy, PolicyRule, Who};
use crate::rate::{Rate, RateLimit};
use crate::routes::RepositoryName;
use crate::storage::RegistryStorage;

/// Passwords that one address may have looked at; those that were right before do not count.
const LOGINS: Rate = Rate {
    interval: Duration::from_secs(1),
    burst: 30,
};

/// Who may do what, as the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthConfig {
    /// Users and hashes of their passwords.
    pub htpasswd: Option<PathBuf>,
    /// The groups of users, by group.
    pub groups: BTreeMap<String, BTreeSet<String>>,
    /// How tokens are issued; they are where there are users and rules about everybody, even if this is `None`.
    pub tokens: Option<TokenConfig>,
    /// Whose tokens are taken, beside our own.
    pub issuers: Vec<IssuerConfig>,
    /// Clients that show a certificate; only over TLS.
    pub certificates: Option<ClientCertificates>,
    /// What is allowed; empty allows everything to every user, or to everybody where there are no users.
    pub policy: Vec<PolicyRule>,
}

impl AuthConfig {
    /// Whether somebody can prove who they are.
    fn has_users(&self) -> bool {
        self.htpasswd.is_some() || !self.issuers.is_empty() || self.certificates.is_some()
    }

    fn policy(&self) -> Policy {
        if !self.policy.is_empty() {
            return Policy {
                rules: self.policy.clone(),
            };
        }
        Policy::everything_to(Who {
            anonymous: !self.has_users() && self.tokens.is_none(),
            users: vec!["*".to_owned()],
            groups: Vec::new(),
        })
    }
}

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The users cannot be read.
    #[error("cannot use the users file")]
    Users(#[from] HtpasswdError),
    /// Tokens cannot be issued.
    #[error("cannot issue tokens")]
    Tokens(#[from] TokenKeyError),
}

/// How somebody showed who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// Not at all.
    #[default]
    Nothing,
    /// By name and password.
    Password,
    /// By a token of ours.
    Token,
    /// By a token of somebody who is trusted.
    Issuer,
    /// By the certificate of the connection.
    Certificate,
}

impl Via {
    /// As the audit log has it.
    pub fn name(self) -> &'static str {
        match self {
            Via::Nothing => "nothing",
            Via::Password => "password",
            Via::Token => "token",
            Via::Issuer => "issuer",
            Via::Certificate => "certificate",
        }
    }
}

/// Who sent a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Visitor {
    pub(crate) person: Person,
    pub(crate) via: Via,
    /// What the token gives; `None` of those who came without, who may whatever the policy gives them.
    grants: Option<Vec<Grant>>,
}

/// Where a request came from.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) addr: IpAddr,
    /// Whether its client speaks https, with us or with a proxy.
    pub(crate) tls: bool,
    /// The host that its client asked for, where a proxy that is trusted says so.
    pub(crate) host: Option<String>,
    /// Whose certificate it showed.
    pub(crate) user: Option<String>,
}

impl Peer {
    /// What its buckets are called: networks of version 6 are given out by the 64 bits.
    pub(crate) fn bucket(&self) -> String {
        match self.addr.to_canonical() {
            IpAddr::V4(addr) => addr.to_string(),
            IpAddr::V6(addr) => {
                let [a, b, c, d, ..] = addr.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
            }
        }
    }
}

/// What a request needs to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// To be known, where anybody can be.
    Login,
    /// To list repositories.
    Catalog,
    /// An action on a repository; what it is mounted from is asked for, too, but needed for the mount only: who may not pull
    /// from there uploads.
    Repository(RepositoryName, Action, Option<RepositoryName>),
}

impl Need {
    /// The scopes that a token for it has.
    fn grants(&self) -> Vec<Grant> {
        match self {
            Need::Login => Vec::new(),
            Need::Catalog => vec![Grant::catalog()],
            Need::Repository(name, action, from) => {
                // Who pushes looks first, and who deletes resolves a tag first.
                let target = Grant::repository(name, [Action::Pull, *action]);
                let source = from.iter().filter(|from| *from != name);
                let source = source.map(|from| Grant::repository(from, [Action::Pull]));
                std::iter::once(target).chain(source).collect()
            }
        }
    }
}

/// Tells who may pass.
#[derive(Debug)]
pub(crate) struct Gate {
    users: Option<Htpasswd>,
    issuers: Vec<Issuer>,
    /// Whether some show certificates.
    certificates: bool,
    groups: BTreeMap<String, BTreeSet<String>>,
    tokens: Option<Tokens>,
    policy: Policy,
    logins: RateLimit,
}

impl Gate {
    /// Reads the users and the key of tokens. Blocks.
    pub(crate) fn open(
        config: &AuthConfig,
        storage: &dyn RegistryStorage,
        fetch: Option<&Arc<dyn FetchDocument>>,
        before: Option<&Gate>,
    ) -> Result<Gate, AuthError> {
        let policy = config.policy();
        // Without, clients that saw no challenge would never log in, and those that saw one would never come without.
        let needed = config.has_users() && policy.knows(&Person::default());
        let tokens = config.tokens.clone();
        let tokens = tokens.or_else(|| needed.then(TokenConfig::default));
        let before = before.map_or(&[][..], |before| &before.issuers);
        Ok(Gate {
            users: config.htpasswd.as_deref().map(Htpasswd::open).transpose()?,
            issuers: config
                .issuers
                .iter()
                .map(|issuer| Issuer::new(issuer.clone(), fetch.cloned(), before))
                .collect(),
            certificates: config.certificates.is_some(),
            groups: config.groups.clone(),
            tokens: tokens
                .map(|tokens| Tokens::open(tokens, storage))
                .transpose()?,
            policy,
            logins: RateLimit::new(LOGINS),
        })
    }

    /// Whether anybody can prove who they are.
    fn asks(&self) -> bool {
        let known = self.users.is_some() || !self.issuers.is_empty() || self.certificates;
        known || self.tokens.is_some()
    }

    /// Who sent these headers. Credentials that are wrong are a refusal, even where none are needed.
    pub(crate) async fn visitor(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        need: &Need,
    ) -> Result<Visitor, ApiError> {
        let Some(value) = headers.get(header::AUTHORIZATION).filter(|_| self.asks()) else {
            return Ok(self.by_certificate(peer));
        };
        let refuse = |error| self.challenge(headers, peer, need, error);
        if let Some((user, password)) = basic(value) {
            return self
                .login(&user, &password, peer)
                .await?
                .ok_or_else(|| refuse(None));
        }
        let Some(token) = bearer(value) else {
            return Err(refuse(None));
        };
        self.bearer(token, now()).await.map_err(|error| {
            tracing::debug!(%error, "a token is not taken");
            refuse(Some("invalid_token"))
        })
    }

    /// Whoever showed a certificate, or nobody.
    fn by_certificate(&self, peer: &Peer) -> Visitor {
        match &peer.user {
            Some(user) if self.certificates => Visitor {
                person: self.person(user),
                via: Via::Certificate,
                grants: None,
            },
            _ => Visitor::default(),
        }
    }

    /// The visitor with this name and password; `None` if they are wrong.
    async fn login(
        &self,
        user: &str,
        password: &str,
        peer: &Peer,
    ) -> Result<Option<Visitor>, ApiError> {
        // A job's token where its tools know nothing but passwords.
        if !self.issuers.is_empty() && Token::is_like(password) {
            return Ok(self.issued(password).await);
        }
        let Some(users) = &self.users else {
            return Ok(None);
        };
        let mut wait = None;
        let may_check = || {
            wait = self.logins.take(&peer.bucket(), Instant::now()).err();
            wait.is_none()
        };
        match users.check(user, password, may_check).await {
            Verdict::Right => Ok(Some(Visitor {
                person: self.person(user),
                via: Via::Password,
                grants: None,
            })),
            Verdict::Wrong => {
                tracing::info!(target: "registry::access", user, addr = %peer.addr, "a login failed");
                Ok(None)
            }
            Verdict::Unchecked => {
                let detail = "too many logins from this address";
                Err(too_many(detail, wait.unwrap_or_default()))
            }
        }
    }

    /// A user with the groups that the configuration puts them in.
    fn person(&self, user: &str) -> Person {
        let groups = self.groups.iter();
        let groups = groups.filter(|(_, users)| users.contains(user));
        Person {
            user: Some(user.to_owned()),
            groups: groups.map(|(group, _)| group.clone()).collect(),
        }
    }

    /// The visitor with a token that somebody else issued to say who they are; `None` if it is not taken.
    async fn issued(&self, text: &str) -> Option<Visitor> {
        let visitor = match Token::read(text) {
            Ok(token) => self.of_issuer(&token, now()).await,
            Err(error) => Err(error),
        };
        // One that already says what it gives is for requests, not for more tokens.
        let visitor = visitor.and_then(|visitor| match visitor.grants {
            None => Ok(visitor),
            Some(_) => Err(TokenError::NoRule),
        });
        visitor
            .inspect_err(|error| tracing::info!(target: "registry::access", %error, "a job's token is not taken"))
            .ok()
    }

    async fn of_issuer(&self, token: &Token<'_>, now: i64) -> Result<Visitor, TokenError> {
        let mut issuers = self.issuers.iter();
        let issuer = issuers.find(|issuer| issuer.claims_to_have_issued(token));
        issuer.ok_or(TokenError::Issuer)?.visitor(token, now).await
    }

    async fn bearer(&self, text: &str, now: i64) -> Result<Visitor, TokenError> {
        let token = Token::read(text)?;
        match &self.tokens {
            Some(tokens) if tokens.claims_to_be(&token) => {
                let (person, grants) = tokens.check(&token, now)?;
                Ok(Visitor {
                    person,
                    via: Via::Token,
                    grants: Some(grants),
                })
            }
            _ => self.of_issuer(&token, now).await,
        }
    }

    /// Lets the visitor pass or says what is missing.
    pub(crate) fn admit(
        &self,
        visitor: &Visitor,
        headers: &HeaderMap,
        peer: &Peer,
        need: &Need,
    ) -> Result<(), ApiError> {
        let anonymous = visitor.person.user.is_none();
        let (allowed, granted, denied) = match need {
            Need::Login => {
                // Clients come here without anything to learn how to log in.
                let known = !self.asks() || visitor.via != Via::Nothing;
                (known, known, "this registry")
            }
            Need::Catalog => {
                let granted = |grant: &Grant| grant.is_catalog();
                let grants = visitor.grants.as_ref();
                (
                    self.policy.knows(&visitor.person),
                    grants.is_none_or(|grants| grants.iter().any(granted)),
                    "the catalog",
                )
            }
            Need::Repository(name, action, _) => (
                self.policy.allows(&visitor.person, *action, name),
                visitor.is_granted(*action, name),
                name.as_str(),
            ),
        };
        // The client did not know that it would mount, and can have such a token; a 202 would make it upload all.
        let source = match need {
            Need::Repository(_, _, Some(from)) => !self.asked_for_too_little(visitor, from),
            _ => true,
        };
        match (allowed, granted && source) {
            (true, true) => Ok(()),
            (true, false) => Err(self.challenge(headers, peer, need, Some("insufficient_scope"))),
            (false, _) if anonymous && self.asks() => {
                Err(self.challenge(headers, peer, need, None))
            }
            (false, _) => {
                let who = visitor.person.user.as_deref().unwrap_or("anonymous");
                let action = match need {
                    Need::Repository(_, action, _) => action.name(),
                    _ => "use",
                };
                Err(ApiError::with(
                    ErrorCode::Denied,
                    format!("`{who}` may not {action} `{denied}`"),
                ))
            }
        }
    }

    /// Whether somebody can log in by name and password.
    pub(crate) fn takes_passwords(&self) -> bool {
        self.users.is_some() || !self.issuers.is_empty()
    }

    /// Whether there is anything at all that a person may do.
    pub(crate) fn knows(&self, person: &Person) -> bool {
        self.policy.knows(person)
    }

    /// Whether the visitor may do this to a repository.
    pub(crate) fn may(&self, visitor: &Visitor, action: Action, name: &RepositoryName) -> bool {
        self.policy.allows(&visitor.person, action, name) && visitor.is_granted(action, name)
    }

    /// Whether the visitor may have a blob of this repository in another. Of what everybody may read, tokens need not speak.
    pub(crate) fn may_mount_from(&self, visitor: &Visitor, name: &RepositoryName) -> bool {
        let everybody = || self.policy.allows(&Person::default(), Action::Pull, name);
        self.may(visitor, Action::Pull, name) || self.may_list(visitor, name) && everybody()
    }

    /// Whether a token of ours for the same person would open what a blob is to be mounted from, and theirs does not.
    fn asked_for_too_little(&self, visitor: &Visitor, from: &RepositoryName) -> bool {
        let another = visitor.via == Via::Token && self.may_list(visitor, from);
        another && !self.may_mount_from(visitor, from)
    }

    /// Whether a repository is in the visitor's catalog: tokens for that name no repository.
    pub(crate) fn may_list(&self, visitor: &Visitor, name: &RepositoryName) -> bool {
        self.policy.allows(&visitor.person, Action::Pull, name)
    }

    /// 401, and how to do better.
    fn challenge(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        need: &Need,
        error: Option<&str>,
    ) -> ApiError {
        let Some(tokens) = &self.tokens else {
            return basic_challenge();
        };
        let realm = match &tokens.config.realm {
            Some(realm) => realm.clone(),
            None => {
                let scheme = if peer.tls { "https" } else { "http" };
                let asked = || headers.get(header::HOST)?.to_str().ok();
                let host = peer.host.as_deref().or_else(asked);
                let host = host.unwrap_or("localhost");
                format!("{scheme}://{host}/token")
            }
        };
        let quoted = |text: &str| text.replace(['"', '\\'], "");
        let mut value = format!(
            "Bearer realm=\"{}\",service=\"{}\"",
            quoted(&realm),
            quoted(&tokens.config.service)
        );
        let scopes: Vec<String> = need.grants().iter().map(Grant::to_string).collect();
        if !scopes.is_empty() {
            value.push_str(&format!(",scope=\"{}\"", scopes.join(" ")));
        }
        if let Some(error) = error {
            value.push_str(&format!(",error=\"{error}\""));
        }
        match HeaderValue::from_str(&value) {
            Ok(value) => {
                ApiError::new(ErrorCode::Unauthorized).header(header::WWW_AUTHENTICATE, value)
            }
            Err(_) => basic_challenge(),
        }
    }
}

impl Visitor {
    fn is_granted(&self, action: Action, name: &RepositoryName) -> bool {
        let gives = |grant: &Grant| grant.target().as_ref() == Some(name) && grant.has(action);
        let grants = self.grants.as_ref();
        grants.is_none_or(|grants| grants.iter().any(gives))
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    crate::storage::now_seconds()
}

/// 429, and when to try again.
pub(crate) fn too_many(detail: &str, wait: Duration) -> ApiError {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    ApiError::with(ErrorCode::TooManyRequests, detail)
        .header(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)))
}

/// 401 that asks for name and password.
pub(crate) fn login_challenge() -> ApiError {
    basic_challenge()
}

fn basic_challenge() -> ApiError {
    ApiError::new(ErrorCode::Unauthorized).header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"longshore registry\", charset=\"UTF-8\""),
    )
}

/// What follows the scheme, if it is this one.
fn credentials<'v>(value: &'v HeaderValue, wanted: &str) -> Option<&'v str> {
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case(wanted).then(|| rest.trim())
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    credentials(value, "bearer")
}

fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let token = credentials(value, "basic")?;
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(token)
        .ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
