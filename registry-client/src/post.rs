//! Documents that are sent to a URL that is no registry's, such as events to those who want them.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, Url};

use crate::Client;
use crate::error::ClientError;
use crate::hosts::Host;
use crate::transport::{Call, Payload, target};

/// Most bytes of an answer that are read, for the connection to be used again.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;

/// Where documents are sent, and with which headers; those are never shown.
#[derive(Clone, Debug)]
pub struct Endpoint {
    url: Url,
    host: Arc<Host>,
}

impl Endpoint {
    /// An `http` or `https` URL without a user in it. Headers that may be secrets are sent in the clear only to this machine,
    /// or where `insecure` says that the way there may be trusted; then any certificate will do, too.
    ///
    /// # Errors
    /// It is no such URL, or a header is none.
    pub fn new(
        url: &str,
        headers: Vec<(String, String)>,
        insecure: bool,
        ca: Vec<PathBuf>,
    ) -> Result<Endpoint, ClientError> {
        let refuse = |reason: &str| ClientError::Setup {
            what: url.to_owned(),
            reason: reason.to_owned(),
        };
        let parsed = Url::parse(url).map_err(|error| refuse(&error.to_string()))?;
        // The URL itself would be told in logs.
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err(ClientError::Setup {
                what: "the URL".to_owned(),
                reason: "it has a user or password: give a header".to_owned(),
            });
        }
        let authority = target::authority(&parsed);
        match parsed.scheme() {
            "https" => {}
            "http" if headers.is_empty() || insecure || target::is_loopback(&authority) => {}
            "http" => {
                return Err(refuse(
                    "its headers would cross the network in the clear: expected https, or `insecure`",
                ));
            }
            _ => return Err(refuse("expected http or https")),
        }
        for (name, value) in &headers {
            let good = HeaderName::try_from(name.as_str()).is_ok()
                && HeaderValue::try_from(value.as_str()).is_ok();
            if !good {
                return Err(ClientError::Setup {
                    what: format!("the header `{name}`"),
                    reason: "it is none".to_owned(),
                });
            }
        }
        let host = Host {
            insecure,
            ca,
            headers,
            ..Host::named(&authority)
        };
        Ok(Endpoint {
            url: parsed,
            host: Arc::new(host),
        })
    }
}

impl Endpoint {
    /// A text without the URL's path, which may be as good as a password.
    pub fn hide(&self, text: &str) -> String {
        match self.url.path() {
            "/" => text.to_owned(),
            path => text.replace(path, "/…"),
        }
    }
}

impl Client {
    /// Sends a document once. The URL is the user's own, so it may be anywhere, also in the own network; so redirects are not
    /// followed: an answer decides nothing about where requests go. Of the answer a little is read, and not used.
    ///
    /// # Errors
    /// There is no answer, or another one than 2xx.
    pub async fn post(
        &self,
        endpoint: &Endpoint,
        headers: &[(&'static str, String)],
        body: Bytes,
    ) -> Result<(), ClientError> {
        let mut call = Call::new(Method::POST, endpoint.url.clone())
            .body(Payload::Bytes(body))
            .to(&endpoint.host);
        for (name, value) in headers {
            call = call.header(HeaderName::from_static(name), value);
        }
        let answer = self.shared.transport.exchange(&call).await?;
        if !answer.status().is_success() {
            return Err(answer.refused().await);
        }
        // Longer ones cost a connection.
        let _ = answer.bytes(ANSWER_BYTES_MAX).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_sent_in_the_clear() {
        let check = |url: &str, header: bool, insecure: bool, expect: Option<&str>| {
            let headers = [("authorization".to_owned(), "Bearer x".to_owned())];
            let headers = headers.into_iter().filter(|_| header).collect();
            let made = Endpoint::new(url, headers, insecure, Vec::new());
            let reason = made.err().map(|error| error.to_string());
            match (&reason, expect) {
                (None, None) => {}
                (Some(reason), Some(part)) => assert!(reason.contains(part), "{reason}"),
                _ => panic!("{url}: {reason:?}"),
            }
        };
        check("https://hooks.example/x", true, false, None);
        check("http://hooks.lan/x", false, false, None);
        check("http://127.0.0.1:80/x", true, false, None);
        check("http://hooks.lan/x", true, true, None);
        check("http://hooks.lan/x", true, false, Some("in the clear"));
        check("ftp://hooks.lan/x", false, false, Some("http or https"));
        check(
            "https://me:pw@hooks.lan/",
            false,
            false,
            Some("it has a user"),
        );
        let hook = Endpoint::new("https://x.example/T0/B1", Vec::new(), false, Vec::new());
        let shown = hook.unwrap().hide("POST https://x.example/T0/B1: cut");
        assert_eq!(shown, "POST https://x.example/…: cut");
        let wrong = vec![("x y".to_owned(), String::new())];
        assert!(Endpoint::new("https://x.example", wrong, false, Vec::new()).is_err());
    }
}
