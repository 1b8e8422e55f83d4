//! One registry: where it is reached, who we are there, and how often we try.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};
use store::oci::reference::DOCKER_HUB;
use tokio::sync::OnceCell;

use crate::auth::bearer::Scope;
use crate::auth::session::Session;
use crate::error::ClientError;
use crate::hosts::Host;
use crate::options::Options;
use crate::transport::target::{authority, host_of, is_loopback};
use crate::transport::{Answer, Call, Payload, Transport, retry};

/// Where Docker Hub's registry answers.
const HUB_HOST: &str = "registry-1.docker.io";

/// How long a mirror that could not be reached is passed over; longer than a command takes, but servers run on.
const DOWN_FOR: Duration = Duration::from_secs(60);

/// Attempts at a mirror: there are others to ask.
const MIRROR_ATTEMPTS: u32 = 2;

/// A registry's session. Shared by all requests to it.
#[derive(Debug)]
pub(crate) struct Registry {
    host: Arc<Host>,
    is_mirror: bool,
    pub(crate) transport: Arc<Transport>,
    session: Session,
    /// `scheme://host[:port]/v2/`
    base: OnceCell<Url>,
    /// When it could not be reached, which is not tried again for a while where there are others.
    down_since: Mutex<Option<Instant>>,
    /// Whether the user knows that it fails.
    was_told: AtomicBool,
    /// Whether its last answer came from beyond this machine and its network.
    is_outside: AtomicBool,
}

impl Registry {
    pub(crate) fn new(host: &Arc<Host>, is_mirror: bool, transport: Arc<Transport>) -> Registry {
        let keychain = transport.options.keychain.clone();
        Registry {
            host: Arc::clone(host),
            is_mirror,
            session: Session::new(host, keychain),
            transport,
            base: OnceCell::new(),
            down_since: Mutex::default(),
            was_told: AtomicBool::new(false),
            is_outside: AtomicBool::new(false),
        }
    }

    /// `host[:port]`
    pub(crate) fn name(&self) -> &str {
        &self.host.name
    }

    /// A count for one piece of work here.
    pub(crate) fn attempts(&self) -> Attempts {
        let mut attempts = Attempts::new(self.options());
        if self.is_mirror {
            attempts.policy.attempts = attempts.policy.attempts.min(MIRROR_ATTEMPTS);
        }
        attempts
    }

    /// Whether there is no use in asking it again just now.
    pub(crate) fn is_down(&self) -> bool {
        let since = self.down_since.lock();
        let since = since.unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < DOWN_FOR)
    }

    /// Takes note of why another is asked in its place.
    pub(crate) fn passed_over(&self, error: &ClientError) {
        let gone = matches!(
            error,
            ClientError::Unreachable { .. } | ClientError::Tls { .. } | ClientError::Stalled { .. }
        );
        if gone {
            let since = self.down_since.lock();
            *since.unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        // That a mirror does not have everything is in its nature.
        match error {
            ClientError::Refused { refusal, .. } if refusal.status == StatusCode::NOT_FOUND => {
                tracing::debug!(mirror = self.name(), %error, "asking the next");
            }
            error if !self.was_told.swap(true, Ordering::Relaxed) => {
                self.transport
                    .warn(self.name(), &format!("mirror passed over: {error}"));
            }
            error => tracing::debug!(mirror = self.name(), %error, "asking the next"),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.transport.options
    }

    /// The URL of `path` below `/v2/`. Finds out first how the registry is reached.
    pub(crate) async fn url(&self, path: &str) -> Result<Url, ClientError> {
        let base = self.base.get_or_try_init(|| self.find_base()).await?;
        base.join(path).map_err(|_| ClientError::Setup {
            what: path.to_owned(),
            reason: "it is no path of a registry".to_owned(),
        })
    }

    /// Sends a request with whatever credentials the registry asks for. Any status but 401 is an answer.
    pub(crate) async fn send(&self, scopes: &[Scope], call: &Call) -> Result<Answer, ClientError> {
        let base = self.url("").await?;
        let mut refused = false;
        loop {
            // Only the registry itself may see what is meant for it.
            let own = crate::transport::target::same_origin(&base, &call.url);
            let authorization: Option<HeaderValue> = match own {
                true => {
                    self.session
                        .authorization(&self.transport, &base, scopes)
                        .await?
                }
                false => None,
            };
            let call = match own {
                true => &call.clone().to(&self.host),
                false => {
                    let is_outside = self.is_outside.load(Ordering::Relaxed);
                    &call.clone().told_by(is_outside)
                }
            };
            let answer = self.transport.follow(call, authorization.as_ref()).await?;
            if crate::transport::target::same_origin(&base, answer.url()) {
                self.is_outside
                    .store(answer.is_outside(), Ordering::Relaxed);
            }
            if answer.status() != StatusCode::UNAUTHORIZED || !own {
                return Ok(answer);
            }
            if refused {
                let anonymous = self.session.is_anonymous(scopes).await;
                return Err(self.session.refused(anonymous, answer).await);
            }
            refused = true;
            self.session
                .challenged(
                    &self.transport,
                    &base,
                    scopes,
                    authorization.as_ref(),
                    answer,
                )
                .await?;
            if let Payload::Part(part) = &call.body {
                part.progress.rewound(&part.digest, part.offset);
            }
        }
    }

    /// Where an answer's `Location` leads, if it may be followed.
    pub(crate) async fn location(&self, answer: &Answer) -> Result<Url, ClientError> {
        let own = authority(&self.url("").await?);
        self.transport.target(answer, |name| {
            (self.host.insecure && name == own) || self.options().may_be_inside(name)
        })
    }

    /// A loopback registry speaks http unless it proves to speak https; one named as insecure the other way round; all
    /// others https.
    async fn find_base(&self) -> Result<Url, ClientError> {
        let host = match self.name() {
            DOCKER_HUB => HUB_HOST,
            name => name,
        };
        let port = host.get(host_of(host).len()..).unwrap_or_default();
        let api = self.host.api.as_deref().unwrap_or("/v2");
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}{api}/")).map_err(|_| ClientError::Setup {
                what: host.to_owned(),
                reason: "it is no host".to_owned(),
            })
        };
        let is_insecure = self.host.insecure || self.options().is_listed(host);
        let order = match (self.host.plain, is_loopback(host), is_insecure) {
            (Some(true), _, _) => return url("http"),
            (Some(false), _, _) => return url("https"),
            (None, true, _) if port != ":443" => ["http", "https"],
            (None, _, true) => ["https", "http"],
            _ => return url("https"),
        };
        let mut attempts = self.attempts();
        loop {
            let (first, second) = (url(order[0])?, url(order[1])?);
            let error = match self.probe(&first).await {
                Ok(true) => return Ok(first),
                Ok(false) => None,
                Err(error) => Some(error),
            };
            // Nobody listens there: no other protocol will help, unless its port is another.
            let same_port = !port.is_empty();
            let refused = matches!(error, Some(ClientError::Unreachable { refused: true, .. }));
            if !(refused && same_port)
                && let Ok(true) = self.probe(&second).await
            {
                return Ok(second);
            }
            match error {
                // It spoke, if strangely: let the request itself show what it says.
                None => return Ok(first),
                Some(error) if attempts.again(&error).await => {}
                Some(error) => return Err(error),
            }
        }
    }

    /// Whether a registry speaks this protocol at this URL. Servers that want https say 400 to http.
    async fn probe(&self, base: &Url) -> Result<bool, ClientError> {
        let call = Call::get(base.clone()).to(&self.host);
        let answer = self.transport.exchange(&call).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.session.note(&answer).await;
        }
        Ok(answer.status() != StatusCode::BAD_REQUEST)
    }
}

/// Counts the attempts of one piece of work, and waits between them.
#[derive(Debug)]
pub(crate) struct Attempts {
    made: u32,
    policy: retry::RetryPolicy,
    clock: Arc<dyn retry::Clock>,
}

impl Attempts {
    pub(crate) fn new(options: &Options) -> Attempts {
        Attempts {
            made: 0,
            policy: options.retry.clone(),
            clock: Arc::clone(&options.clock),
        }
    }

    /// Starts counting anew, after real progress.
    pub(crate) fn reset(&mut self) {
        self.made = 0;
    }

    /// Whether to try again after `error`; waits before it says so.
    pub(crate) async fn again(&mut self, error: &ClientError) -> bool {
        if !error.is_transient() {
            return false;
        }
        self.made += 1;
        let asked = match error {
            ClientError::Refused { refusal, .. } => refusal.retry_after,
            _ => None,
        };
        let Some(wait) = self.policy.wait(self.made, asked, self.clock.random()) else {
            return false;
        };
        tracing::debug!(%error, attempt = self.made, ?wait, "trying again");
        self.clock.sleep(wait).await;
        true
    }
}
