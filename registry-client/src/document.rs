//! Documents that are no registry's, such as the keys of those who issue tokens.

use reqwest::{StatusCode, Url};

use crate::Client;
use crate::error::ClientError;
use crate::transport::{Call, target};

impl Client {
    /// What is at a URL, at most `limit` bytes of it. Only `https`, and `http` on this machine: what such a document says is
    /// trusted. Redirects are not followed, and no credential is sent.
    pub async fn document(&self, url: &str, limit: u64) -> Result<Vec<u8>, ClientError> {
        let refuse = |reason: &str| ClientError::Setup {
            what: url.to_owned(),
            reason: reason.to_owned(),
        };
        let parsed = Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
        let local = target::is_loopback(&target::authority(&parsed));
        match parsed.scheme() {
            "https" => {}
            "http" if local => {}
            _ => return Err(refuse("expected https, or http on this machine")),
        }
        let call = Call::get(parsed);
        let answer = self.shared.transport.exchange(&call).await?;
        answer.expect(&[StatusCode::OK]).await?.bytes(limit).await
    }
}
