//! `/token`: where clients exchange what they have for a token of ours, as docker's token specification says.
//!
//! | request | what is exchanged |
//! |---|---|
//! | GET, with `Authorization: Basic` | name and password |
//! | GET, without | nothing: a token for what everybody may do |
//! | POST `grant_type=password` | name and password |
//! | POST `grant_type=refresh_token` | a token for tokens |
//! | POST `grant_type=urn:ietf:params:oauth:grant-type:token-exchange` | somebody else's token (RFC 8693), as a CI job has it |

use http::{Method, Response, header};
use serde_json::json;
use store::oci::time::rfc3339;

use super::scope::{Grant, parse_scopes};
use super::tokens::{Issued, Tokens};
use super::{Gate, Peer, Via, Visitor, basic, basic_challenge, now};
use crate::audit::Event;
use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::policy::Action;
use crate::registry::{Answer, Call, Registry, json_answer};
use crate::routes::Query;

/// Largest form that is read, in bytes.
const FORM_BYTES_MAX: usize = 64 * 1024;

/// RFC 8693.
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// A visitor who may have a token, and whether they may have it again later.
struct Caller {
    visitor: Visitor,
    lasting: bool,
}

impl Registry {
    /// `/token`.
    pub(crate) async fn token(&self, call: &mut Call) -> Answer {
        let gate = &self.gate;
        let Some(tokens) = &gate.tokens else {
            return Err(ApiError::new(ErrorCode::NotFound));
        };
        let (caller, asked) = match call.method {
            Method::GET => {
                let lasting = call.query.first("offline_token") == Some("true");
                let visitor = match call.headers.get(header::AUTHORIZATION) {
                    None => gate.by_certificate(&call.peer),
                    Some(value) => {
                        let (user, password) = basic(value).ok_or_else(basic_challenge)?;
                        let visitor = gate.login(&user, &password, &call.peer).await?;
                        visitor.ok_or_else(basic_challenge)?
                    }
                };
                (Caller { visitor, lasting }, call.query.clone())
            }
            Method::POST => {
                let form = call.collect(FORM_BYTES_MAX, self.rules.pace).await?;
                let form = Query::parse(std::str::from_utf8(&form).ok());
                let visitor = gate.exchange(&form, &call.peer, tokens).await?;
                let lasting = form.first("access_type") == Some("offline");
                (Caller { visitor, lasting }, form)
            }
            _ => {
                let allowed = http::HeaderValue::from_static("GET, POST");
                return Err(ApiError::new(ErrorCode::Unsupported).header(header::ALLOW, allowed));
            }
        };
        let person = &caller.visitor.person;
        if caller.visitor.via == Via::Nothing && !gate.policy.knows(person) {
            return Err(basic_challenge());
        }
        let grants = gate.allowed(&caller.visitor, parse_scopes(asked.all("scope")));
        let now = now();
        let issued = tokens.issue(person, &grants, now);
        let refresh = match (&person.user, &gate.users) {
            (Some(user), Some(users)) if caller.lasting => {
                let stamp = users.stamp(user).await;
                stamp.map(|stamp| tokens.issue_refresh(user, &stamp, now))
            }
            _ => None,
        };
        tracing::debug!(user = ?person.user, id = issued.id, "issued a token");
        let changes = |grant: &Grant| grant.has(Action::Push) || grant.has(Action::Delete);
        if let Some(audit) = &self.audit
            && (refresh.is_some()
                || grants
                    .iter()
                    .any(|grant| !grant.is_catalog() && changes(grant)))
        {
            let scopes: Vec<String> = grants.iter().map(Grant::to_string).collect();
            let event = Event::new("issue-token", &caller.visitor, &call.peer);
            audit.write(&event.with_scope(scopes.join(" "))).await;
        }
        Ok(answer(tokens, &issued, refresh.as_ref(), &grants, now))
    }

    /// `/.well-known/jwks.json`: what verifies our tokens.
    pub(crate) fn published_keys(&self) -> Answer {
        let tokens = self.gate.tokens.as_ref();
        let tokens = tokens.ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
        Ok(json_answer(tokens.published().to_string()))
    }
}

impl Gate {
    /// Whoever a form proves to be.
    async fn exchange(
        &self,
        form: &Query,
        peer: &Peer,
        tokens: &Tokens,
    ) -> Result<Visitor, ApiError> {
        let field = |name: &str| form.first(name).unwrap_or_default();
        match field("grant_type") {
            "password" => {
                let visitor = self
                    .login(field("username"), field("password"), peer)
                    .await?;
                visitor.ok_or_else(basic_challenge)
            }
            "refresh_token" => {
                let refresh = tokens.check_refresh(field("refresh_token"), now());
                let refresh = refresh.map_err(|error| {
                    tracing::debug!(%error, "a refresh token is not taken");
                    basic_challenge()
                })?;
                let stamp = match &self.users {
                    Some(users) => users.stamp(&refresh.user).await,
                    None => None,
                };
                // The password was changed, or the user is gone.
                if stamp.as_ref() != Some(&refresh.stamp) {
                    return Err(basic_challenge());
                }
                Ok(Visitor {
                    person: self.person(&refresh.user),
                    via: Via::Token,
                    grants: None,
                })
            }
            TOKEN_EXCHANGE => {
                let visitor = self.issued(field("subject_token")).await;
                visitor.ok_or_else(basic_challenge)
            }
            other => Err(ApiError::with(
                ErrorCode::Unsupported,
                format!(
                    "grant_type is `{other}`: expected password, refresh_token or {TOKEN_EXCHANGE}"
                ),
            )),
        }
    }

    /// Of what is asked for, what the visitor may have.
    fn allowed(&self, visitor: &Visitor, asked: Vec<Grant>) -> Vec<Grant> {
        let allowed = asked.into_iter().filter_map(|mut grant| {
            if grant.is_catalog() {
                return self.policy.knows(&visitor.person).then(Grant::catalog);
            }
            let name = grant.target()?;
            let may = |action: Action| {
                self.policy.allows(&visitor.person, action, &name)
                    && visitor.is_granted(action, &name)
            };
            let wanted = Action::ALL.into_iter().filter(|action| grant.has(*action));
            let given: Vec<Action> = wanted.filter(|action| may(*action)).collect();
            let everything = grant.actions.contains("*") && given.len() == Action::ALL.len();
            grant.actions = given
                .iter()
                .map(|action| action.name().to_owned())
                .collect();
            if everything {
                // For registries that look for just this.
                grant.actions.insert("*".to_owned());
            }
            (!grant.actions.is_empty()).then_some(grant)
        });
        allowed.collect()
    }
}

fn answer(
    tokens: &Tokens,
    issued: &Issued,
    refresh: Option<&Issued>,
    grants: &[Grant],
    now: i64,
) -> Response<Body> {
    let scopes: Vec<String> = grants.iter().map(Grant::to_string).collect();
    let mut said = json!({
        "token": issued.text,
        "access_token": issued.text,
        "token_type": "Bearer",
        "expires_in": tokens.config.lifetime.as_secs(),
        "issued_at": rfc3339(now),
        "scope": scopes.join(" "),
    });
    if let Some(refresh) = refresh {
        said["refresh_token"] = json!(refresh.text);
    }
    let mut response = json_answer(said.to_string());
    let no_store = http::HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    response
}
