//! What `fuzz/targets` reaches of this crate's own parsers of foreign text. For nobody else.

use std::time::{Duration, SystemTime};

pub use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::auth::bearer::{self, Challenge};
use crate::headers::{self, RateLimit};
use crate::transport::target;

/// `Content-Range` of an answer: first and last byte, and the whole length where it is told.
pub fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    headers::content_range(text).map(|range| (range.first, range.last, range.total))
}

/// `Range` of an upload session: how many bytes it has.
pub fn upload_offset(text: &str) -> Option<u64> {
    headers::upload_offset(text)
}

/// The target of the next page in a `Link`.
pub fn next_link(text: &str) -> Option<&str> {
    headers::next_link(text)
}

/// Where the next page of `page` is.
pub fn next_page(page: &Url, link: &str) -> Option<Url> {
    target::next_page(page, link)
}

/// `Location` of an answer.
pub fn location(base: &Url, text: &str) -> Option<Url> {
    let value = HeaderValue::from_str(text).ok()?;
    target::locate(base, Some(&value)).ok()
}

/// Whether the credentials for `registry` may go to `realm`.
pub fn may_see_credentials(registry: &Url, realm: &Url) -> bool {
    target::check_realm(registry, realm, |_| false, |_| false).is_ok()
}

/// The text of a `Warning`.
pub fn warning(text: &str) -> Option<String> {
    headers::warning(text)
}

/// `RateLimit-Limit` and `RateLimit-Remaining`.
pub fn rate_limit(limit: &str, remaining: &str) -> Option<RateLimit> {
    headers::rate_limit(limit, remaining)
}

/// `Retry-After`, at `now`.
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    headers::retry_after(text, now)
}

/// A date of HTTP.
pub fn http_date(text: &str) -> Option<SystemTime> {
    headers::http_date(text)
}

/// The challenges of a `WWW-Authenticate`, in order: nothing for a password, realm, service and scope for a token.
pub fn challenges(text: &str) -> Vec<Vec<String>> {
    let texts = |challenge| match challenge {
        Challenge::Basic => Vec::new(),
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => [Some(realm), service, scope]
            .into_iter()
            .flatten()
            .collect(),
    };
    bearer::parse(text).into_iter().map(texts).collect()
}

/// A token server's answer: the token and how long it lives.
pub fn token(body: &[u8]) -> Option<(String, Duration)> {
    let token = bearer::parse_token(body).ok()?;
    Some((token.token, token.life))
}
