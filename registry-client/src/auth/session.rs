//! One registry's challenge, and the credentials and tokens that answer it, kept between requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::Mutex;

use super::bearer::{self, Challenge, Scope};
use super::{Credential, Keychain};
use crate::blocking::blocking;
use crate::error::{ClientError, redacted};
use crate::hosts::Host;
use crate::transport::{Answer, Call, Payload, Transport, target};

/// How token servers know us.
const CLIENT_ID: &str = "longshore";

/// Largest token answer, in bytes.
const TOKEN_BYTES_MAX: u64 = 1024 * 1024;

/// Renew a token this long before its end at the latest.
const MARGIN_MAX: Duration = Duration::from_secs(10);

/// What one registry wants to see and what there is to show.
#[derive(Debug)]
pub(crate) struct Session {
    host: Arc<Host>,
    keychain: Keychain,
    /// Held while a token is fetched, so that parallel requests fetch one.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    challenge: Option<Asked>,
    held: BTreeMap<Vec<Scope>, Held>,
}

/// What the registry asks for.
#[derive(Clone, Debug)]
struct Asked {
    challenge: Challenge,
    /// Whether it asked from beyond this machine and its network.
    is_outside: bool,
}

impl Asked {
    fn by(answer: &Answer) -> Option<Asked> {
        Some(Asked {
            challenge: challenge_in(answer.headers())?,
            is_outside: answer.is_outside(),
        })
    }
}

#[derive(Clone, Debug)]
struct Held {
    value: HeaderValue,
    until: Option<SystemTime>,
    anonymous: bool,
}

impl State {
    fn held(&self, scopes: &[Scope], now: SystemTime) -> Option<&Held> {
        let fresh = |held: &&Held| held.until.is_none_or(|until| now < until);
        if let Some(held) = self.held.get(scopes).filter(fresh) {
            return Some(held);
        }
        // Who may push may pull.
        let [
            Scope::Repository {
                repository,
                actions: "pull",
            },
        ] = scopes
        else {
            return None;
        };
        let wider = vec![Scope::push(repository)];
        self.held.get(&wider).filter(fresh)
    }
}

impl Session {
    pub(crate) fn new(host: &Arc<Host>, keychain: Keychain) -> Session {
        Session {
            host: Arc::clone(host),
            keychain,
            state: Mutex::default(),
        }
    }

    /// The `Authorization` to send; `None` while the registry asked for nothing.
    pub(crate) async fn authorization(
        &self,
        transport: &Transport,
        base: &Url,
        scopes: &[Scope],
    ) -> Result<Option<HeaderValue>, ClientError> {
        let mut state = self.state.lock().await;
        let now = transport.options.clock.now();
        if let Some(held) = state.held(scopes, now) {
            return Ok(Some(held.value.clone()));
        }
        let Some(asked) = state.challenge.clone() else {
            return Ok(None);
        };
        let held = self.answer(transport, base, &asked, scopes).await?;
        let value = held.value.clone();
        state.held.insert(scopes.to_vec(), held);
        Ok(Some(value))
    }

    /// Takes note of a challenge that came with an answer nobody insists on.
    pub(crate) async fn note(&self, answer: &Answer) {
        if let Some(asked) = Asked::by(answer) {
            self.state.lock().await.challenge = Some(asked);
        }
    }

    /// Answers a 401: afterwards [`Session::authorization`] has something else than `sent`. Fails where it has not.
    pub(crate) async fn challenged(
        &self,
        transport: &Transport,
        base: &Url,
        scopes: &[Scope],
        sent: Option<&HeaderValue>,
        refusal: Answer,
    ) -> Result<(), ClientError> {
        let mut state = self.state.lock().await;
        let Some(asked) = Asked::by(&refusal) else {
            let anonymous = sent.is_none();
            return Err(self.refused(anonymous, refusal).await);
        };
        state.challenge = Some(asked.clone());
        // Another request may have answered it meanwhile.
        let now = transport.options.clock.now();
        if state
            .held(scopes, now)
            .is_some_and(|held| Some(&held.value) != sent)
        {
            return Ok(());
        }
        state.held.retain(|_, held| Some(&held.value) != sent);
        let held = self.answer(transport, base, &asked, scopes).await?;
        if Some(&held.value) == sent {
            return Err(self.refused(held.anonymous, refusal).await);
        }
        state.held.insert(scopes.to_vec(), held);
        Ok(())
    }

    /// The error for a 401 that is final.
    pub(crate) async fn refused(&self, anonymous: bool, refusal: Answer) -> ClientError {
        ClientError::Unauthorized {
            registry: self.host.name.clone(),
            anonymous,
            detail: refusal.refused().await.to_string(),
        }
    }

    /// Whether what is sent for `scopes` proves nobody.
    pub(crate) async fn is_anonymous(&self, scopes: &[Scope]) -> bool {
        let state = self.state.lock().await;
        state.held.get(scopes).is_none_or(|held| held.anonymous)
    }

    async fn answer(
        &self,
        transport: &Transport,
        base: &Url,
        asked: &Asked,
        scopes: &[Scope],
    ) -> Result<Held, ClientError> {
        let credential = self.credential(scopes).await?;
        let forever = |value: HeaderValue| Held {
            value,
            until: None,
            anonymous: false,
        };
        match (&asked.challenge, credential) {
            (_, Some(Credential::RegistryToken(token))) => {
                Ok(forever(self.sensitive("Bearer", &token)?))
            }
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                Ok(forever(self.basic(&username, &password)?))
            }
            (Challenge::Basic, other) => Err(ClientError::Unauthorized {
                registry: self.host.name.clone(),
                anonymous: other.is_none(),
                detail: "it asks for a user and a password".to_owned(),
            }),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                credential,
            ) => {
                let exchange = Exchange {
                    realm: self.realm(transport, base, realm)?,
                    is_outside: asked.is_outside,
                    service: service.as_deref(),
                    scopes: wanted(scopes, scope.as_deref()),
                };
                let anonymous = credential.is_none();
                let token = self.fetch(transport, &exchange, credential).await?;
                let margin = (token.life / 10).min(MARGIN_MAX);
                let until = transport
                    .options
                    .clock
                    .now()
                    .checked_add(token.life - margin);
                Ok(Held {
                    value: self.sensitive("Bearer", &token.token)?,
                    until,
                    anonymous,
                })
            }
        }
    }

    async fn credential(&self, scopes: &[Scope]) -> Result<Option<Credential>, ClientError> {
        let (keychain, registry) = (self.keychain.clone(), self.host.name.clone());
        // With several scopes the last is the one that is written to.
        let repository = scopes.last().map(Scope::repository).unwrap_or_default();
        let repository = repository.to_owned();
        Ok(blocking(move || keychain.lookup(&registry, &repository)).await?)
    }

    fn realm(&self, transport: &Transport, base: &Url, realm: &str) -> Result<Url, ClientError> {
        let request = Call::get(base.clone()).line();
        let url = Url::parse(realm)
            .map_err(|_| ClientError::bad_answer(&request, "its token realm is not a URL"))?;
        let own = target::authority(base);
        let listed =
            |name: &str| (self.host.insecure && name == own) || transport.options.is_listed(name);
        let inside = |name: &str| listed(name) || transport.options.may_be_inside(name);
        target::check_realm(base, &url, inside, listed).map_err(|reason| {
            ClientError::Misdirected {
                request,
                target: redacted(&url),
                reason,
            }
        })?;
        Ok(url)
    }

    async fn fetch(
        &self,
        transport: &Transport,
        exchange: &Exchange<'_>,
        credential: Option<Credential>,
    ) -> Result<bearer::Token, ClientError> {
        let anonymous = credential.is_none();
        // Where what lasts is kept, and whose it is.
        let mut lasting = None;
        let (call, authorization) = match credential {
            Some(Credential::IdentityToken { token, .. }) => (exchange.refresh(&token), None),
            Some(Credential::Basic { username, password }) => {
                let authorization = self.basic(&username, &password)?;
                let wanted = self.keychain.lasting();
                let call = exchange.ask(Some(&username), wanted.is_some());
                lasting = wanted.map(|lasting| (lasting, username));
                (call, Some(authorization))
            }
            Some(Credential::RegistryToken(_)) | None => (exchange.ask(None, false), None),
        };
        let mut attempts = crate::registry::Attempts::new(&transport.options);
        loop {
            let result = self
                .fetch_once(transport, &call, authorization.as_ref(), anonymous)
                .await;
            match result {
                Err(error) if attempts.again(&error).await => {}
                Err(error) => return Err(error),
                Ok(mut token) => {
                    if let (Some((lasting, username)), Some(token)) =
                        (lasting, token.refresh.take())
                    {
                        let username = Some(username);
                        // A second one is as good as the first.
                        let _ = lasting.set(Credential::IdentityToken { username, token });
                    }
                    return Ok(token);
                }
            }
        }
    }

    async fn fetch_once(
        &self,
        transport: &Transport,
        call: &Call,
        authorization: Option<&HeaderValue>,
        anonymous: bool,
    ) -> Result<bearer::Token, ClientError> {
        let answer = transport.follow(call, authorization).await?;
        match answer.status() {
            StatusCode::OK => {}
            // GitLab and others answer 403, and 400 to a bad refresh token.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
                return Err(self.refused(anonymous, answer).await);
            }
            _ => return Err(answer.refused().await),
        }
        let line = answer.line.clone();
        let body = answer.bytes(TOKEN_BYTES_MAX).await?;
        bearer::parse_token(&body).map_err(|reason| ClientError::bad_answer(&line, reason))
    }

    fn basic(&self, username: &str, password: &str) -> Result<HeaderValue, ClientError> {
        self.sensitive("Basic", &STANDARD.encode(format!("{username}:{password}")))
    }

    fn sensitive(&self, scheme: &str, secret: &str) -> Result<HeaderValue, ClientError> {
        let value = HeaderValue::from_str(&format!("{scheme} {secret}"));
        let mut value = value.map_err(|_| ClientError::Unauthorized {
            registry: self.host.name.clone(),
            anonymous: false,
            detail: "the token has characters that no header may have".to_owned(),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// One request to a token server.
struct Exchange<'a> {
    realm: Url,
    /// Whether it was named from beyond this machine and its network.
    is_outside: bool,
    service: Option<&'a str>,
    scopes: Vec<String>,
}

impl Exchange<'_> {
    /// The GET form (`docs/spec/auth/token.md`).
    fn ask(&self, account: Option<&str>, lasting: bool) -> Call {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            for scope in &self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(account) = account {
                query.append_pair("account", account);
            }
            query.append_pair("client_id", CLIENT_ID);
            if lasting {
                query.append_pair("offline_token", "true");
            }
        }
        Call::get(url).told_by(self.is_outside)
    }

    /// The POST form (`docs/spec/auth/oauth.md`).
    fn refresh(&self, token: &str) -> Call {
        // A form body is encoded as a query is.
        let mut form = Url::parse("form:/").expect("it is a URL");
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", CLIENT_ID)
            .append_pair("service", self.service.unwrap_or_default())
            .append_pair("scope", &self.scopes.join(" "))
            .append_pair("refresh_token", token);
        let body = form.query().unwrap_or_default().to_owned();
        Call::new(Method::POST, self.realm.clone())
            .told_by(self.is_outside)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Payload::Bytes(Bytes::from(body)))
    }
}

/// Our scopes, and what the registry asked for beyond them.
fn wanted(ours: &[Scope], asked: Option<&str>) -> Vec<String> {
    let mut scopes: Vec<String> = ours.iter().map(ToString::to_string).collect();
    for scope in asked.into_iter().flat_map(str::split_ascii_whitespace) {
        let covered = |own: &String| match (own.rsplit_once(':'), scope.rsplit_once(':')) {
            (Some((name, own)), Some((other, wanted))) => {
                name == other
                    && wanted
                        .split(',')
                        .all(|action| own.split(',').any(|a| a == action))
            }
            _ => own == scope,
        };
        if !scopes.iter().any(covered) && scopes.len() < 8 {
            scopes.push(scope.to_owned());
        }
    }
    scopes
}

fn challenge_in(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE);
    bearer::choose(values.iter().filter_map(|value| value.to_str().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_asked_for_once() {
        let check = |ours: &[Scope], asked: Option<&str>, expect: &[&str]| {
            assert_eq!(wanted(ours, asked), expect);
        };
        let push = Scope::push("a/b");
        check(&[], None, &[]);
        check(&[], Some("repository:a/b:pull"), &["repository:a/b:pull"]);
        check(
            std::slice::from_ref(&push),
            Some("repository:a/b:pull"),
            &["repository:a/b:pull,push"],
        );
        check(
            &[Scope::pull("c"), push],
            Some("repository:a/b:push,pull repository(plugin):x:pull"),
            &[
                "repository:c:pull",
                "repository:a/b:pull,push",
                "repository(plugin):x:pull",
            ],
        );
    }

    #[test]
    fn a_push_token_serves_a_pull() {
        let now = SystemTime::UNIX_EPOCH;
        let mut state = State::default();
        let held = Held {
            value: HeaderValue::from_static("Bearer x"),
            until: Some(now + Duration::from_secs(1)),
            anonymous: false,
        };
        state.held.insert(vec![Scope::push("a")], held);
        assert!(state.held(&[Scope::pull("a")], now).is_some());
        assert!(state.held(&[Scope::pull("b")], now).is_none());
        assert!(state.held(&[Scope::delete("a")], now).is_none());
        let later = now + Duration::from_secs(1);
        assert!(state.held(&[Scope::pull("a")], later).is_none());
    }
}
