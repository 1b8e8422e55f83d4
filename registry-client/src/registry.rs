//! One registry: where it is reached, who we are there, and how often we try.

use std::sync::Arc;

use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};
use store::oci::reference::DOCKER_HUB;
use tokio::sync::OnceCell;

use crate::auth::bearer::Scope;
use crate::auth::session::Session;
use crate::error::ClientError;
use crate::options::Options;
use crate::transport::target::{host_of, is_loopback};
use crate::transport::{Answer, Call, Payload, Transport, retry};

/// Where Docker Hub's registry answers.
const HUB_HOST: &str = "registry-1.docker.io";

/// A registry's session. Shared by all requests to it.
#[derive(Debug)]
pub(crate) struct Registry {
    name: String,
    pub(crate) transport: Arc<Transport>,
    session: Session,
    /// `scheme://host[:port]/v2/`
    base: OnceCell<Url>,
}

impl Registry {
    pub(crate) fn new(name: &str, transport: Arc<Transport>) -> Registry {
        let keychain = transport.options.keychain.clone();
        Registry {
            name: name.to_owned(),
            session: Session::new(name, keychain),
            transport,
            base: OnceCell::new(),
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
            let answer = self.transport.follow(call, authorization.as_ref()).await?;
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

    /// A loopback registry speaks http unless it proves to speak https; one named as insecure the other way round; all
    /// others https.
    async fn find_base(&self) -> Result<Url, ClientError> {
        let host = match self.name.as_str() {
            DOCKER_HUB => HUB_HOST,
            name => name,
        };
        let port = host.get(host_of(host).len()..).unwrap_or_default();
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|_| ClientError::Setup {
                what: host.to_owned(),
                reason: "it is no host".to_owned(),
            })
        };
        let order = match (is_loopback(host), self.options().is_listed(host)) {
            (true, _) if port != ":443" => ["http", "https"],
            (_, true) => ["https", "http"],
            _ => return url("https"),
        };
        let mut attempts = Attempts::new(self.options());
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
        let answer = self.transport.exchange(&Call::get(base.clone())).await?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.session.note(answer.headers()).await;
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
