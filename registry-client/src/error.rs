//! What can go wrong with a registry: one error type, the specification's error envelope, and requests named
//! without their secrets.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use store::oci::{Digest, ManifestError, Reference};

use crate::auth::CredentialError;
use crate::headers::RateLimit;
use crate::hosts::HostsError;
use crate::transport::retry;

/// Most characters of a server's own words that are passed on.
const DETAIL_CHARS_MAX: usize = 400;

/// Method and URL of a request, without user, password and query: signed URLs carry secrets there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLine(String);

impl RequestLine {
    pub(crate) fn new(method: &Method, url: &Url) -> RequestLine {
        RequestLine(format!("{method} {}", redacted(url)))
    }

    /// The reading of a blob, however many requests that takes.
    pub(crate) fn of_blob(reference: &Reference, digest: &Digest) -> RequestLine {
        RequestLine(format!("GET {}@{digest}", reference.name()))
    }
}

impl fmt::Display for RequestLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `scheme://host[:port]/path` of a URL.
pub(crate) fn redacted(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}"));
    format!(
        "{}://{}{}{}",
        url.scheme(),
        url.host_str().unwrap_or_default(),
        port.unwrap_or_default(),
        url.path()
    )
}

/// One entry of the error envelope (distribution-spec, "Error codes").
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SpecError {
    /// `MANIFEST_UNKNOWN`, `DENIED`, …
    #[serde(default)]
    pub code: String,
    /// The server's words.
    #[serde(default)]
    pub message: String,
}

/// An answer that refuses: its status and what the server said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The envelope's entries; empty where the body was none.
    pub errors: Vec<SpecError>,
    /// What the server asks to wait.
    pub retry_after: Option<Duration>,
    /// What is left of the requests that it allows.
    pub rate_limit: Option<RateLimit>,
}

impl Refusal {
    /// Reads the envelope, or the lone messages that token servers and proxies send instead.
    pub(crate) fn parse(status: StatusCode, body: &[u8], retry_after: Option<Duration>) -> Refusal {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(default)]
            errors: Vec<SpecError>,
            #[serde(
                default,
                alias = "details",
                alias = "error_description",
                alias = "error"
            )]
            message: Option<String>,
        }
        let mut errors = match serde_json::from_slice::<Envelope>(body) {
            Ok(envelope) if !envelope.errors.is_empty() => envelope.errors,
            Ok(Envelope {
                message: Some(message),
                ..
            }) => vec![SpecError {
                code: String::new(),
                message,
            }],
            _ => Vec::new(),
        };
        errors.truncate(4);
        for error in &mut errors {
            error.code = printable(&error.code);
            error.message = printable(&error.message);
        }
        Refusal {
            status,
            errors,
            retry_after,
            rate_limit: None,
        }
    }

    /// Whether the envelope has this code.
    pub fn has(&self, code: &str) -> bool {
        self.errors.iter().any(|error| error.code == code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        for error in &self.errors {
            match (error.code.as_str(), error.message.as_str()) {
                ("", message) => write!(f, ": {message}")?,
                (code, "") => write!(f, ": {code}")?,
                (code, message) => write!(f, ": {code}: {message}")?,
            }
        }
        if let Some(wait) = self.retry_after {
            write!(f, " (asks to wait {} s)", wait.as_secs())?;
        }
        if let Some(limit) = self.rate_limit {
            write!(f, " ({} of {} left)", limit.remaining, limit.allowance())?;
        }
        Ok(())
    }
}

/// A peer's text, clipped and without control characters, so that it cannot drive a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(DETAIL_CHARS_MAX)
        .collect()
}

/// An error and what caused it, also where an I/O error hides that from `source`.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn Error + 'static) = *error;
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

/// Why something with a registry failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused the request.
    #[error("{request}: {refusal}")]
    Refused {
        /// The request.
        request: RequestLine,
        /// What the server said.
        refusal: Refusal,
    },
    /// The registry took no credential that there was for it, or there was none.
    #[error("`{registry}` refused {}: {detail}", who(.anonymous))]
    Unauthorized {
        /// The registry.
        registry: String,
        /// Whether there was no credential to send.
        anonymous: bool,
        /// The request and the server's words.
        detail: String,
    },
    /// No connection could be made.
    #[error("cannot reach `{host}`: {reason}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// Whether the host answered that nothing listens there.
        refused: bool,
        /// The system's words.
        reason: String,
    },
    /// No TLS session could be made, or the certificate is not trusted.
    #[error("no secure connection to `{host}`: {reason}")]
    Tls {
        /// Host and port.
        host: String,
        /// What TLS says.
        reason: String,
    },
    /// The peer sent nothing for too long.
    #[error("{request}: nothing came for {} ms", .idle.as_millis())]
    Stalled {
        /// The request.
        request: RequestLine,
        /// How long it was waited.
        idle: Duration,
    },
    /// The connection ended, or broke the protocol, in the middle of an exchange.
    #[error("{request}: the connection was cut: {reason}")]
    Cut {
        /// The request.
        request: RequestLine,
        /// What is known of it.
        reason: String,
    },
    /// An answer is longer than longshore takes.
    #[error("{request}: the answer is longer than {limit} bytes")]
    TooLarge {
        /// The request.
        request: RequestLine,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes are not those asked for.
    #[error("{request}: the content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// The request.
        request: RequestLine,
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest of what came.
        actual: Box<Digest>,
    },
    /// The server has a blob of another size than its descriptor says.
    #[error("{request}: the content has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The request.
        request: RequestLine,
        /// The descriptor's size.
        expected: u64,
        /// What the server announces or sent.
        actual: u64,
    },
    /// An answer that the protocol does not allow.
    #[error("{request}: {reason}")]
    BadAnswer {
        /// The request.
        request: RequestLine,
        /// What is wrong with it.
        reason: String,
    },
    /// The server points somewhere that is not followed.
    #[error("{request}: refused to follow to `{target}`: {reason}")]
    Misdirected {
        /// The request.
        request: RequestLine,
        /// Where to, without query.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// A credential file or helper failed.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// What is said about where registries are cannot be read, or forbids this one.
    #[error(transparent)]
    Hosts(#[from] HostsError),
    /// The document is no manifest.
    #[error("`{reference}` is not a usable manifest: {source}")]
    Manifest {
        /// What was asked for.
        reference: String,
        /// Why not.
        source: ManifestError,
    },
    /// An index has nothing for the platform.
    #[error("`{reference}` has no image for {wanted}: it has {available}")]
    NoPlatform {
        /// What was asked for.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// The platforms there are, separated by commas.
        available: String,
    },
    /// A manifest of something that is no image.
    #[error("`{reference}` is not an image: {reason}")]
    NotAnImage {
        /// What was asked for.
        reference: String,
        /// What it is.
        reason: String,
    },
    /// A local file that is to be sent cannot be read, or is not what its descriptor says.
    #[error("cannot send `{}`: {reason}", .path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A blob that is copied from one registry to another cannot be read from the first.
    #[error("cannot read what is to be sent: {reason}")]
    Relayed {
        /// What the error at the first registry means.
        meaning: ErrorKind,
        /// That error.
        reason: String,
    },
    /// A certificate or key file, or an option such as a proxy's URL, cannot be used.
    #[error("cannot use `{what}`: {reason}")]
    Setup {
        /// The file or the option's value.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A file that was downloaded could not be written.
    #[error("{request}: cannot write what came")]
    Download {
        /// The request.
        request: RequestLine,
        /// Why not.
        source: io::Error,
    },
    /// What was received could not be kept.
    #[error("cannot store {digest}: {reason}")]
    Store {
        /// The blob.
        digest: Box<Digest>,
        /// Why not.
        reason: String,
    },
}

fn who(anonymous: &bool) -> &'static str {
    match anonymous {
        true => "anonymous access",
        false => "the credentials",
    }
}

/// What an error means to a caller, for exit codes and hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image, blob or repository is not there.
    NotFound,
    /// Credentials are missing or wrong.
    Unauthorized,
    /// The credentials do not suffice.
    Denied,
    /// Nothing answers, or the connection keeps breaking.
    Unreachable,
    /// TLS failed.
    Tls,
    /// The server limits requests.
    RateLimited,
    /// The server fails by itself (5xx).
    ServerFault,
    /// The bytes are not those that were asked for.
    Corrupt,
    /// Something is larger than a limit.
    TooLarge,
    /// The server breaks the protocol or points where it must not.
    Protocol,
    /// No image for the platform.
    NoPlatform,
    /// The cause is on this side: a file, a credential helper, an option.
    Local,
}

impl ClientError {
    /// What the error means.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ClientError::Refused { refusal, .. } => match refusal.status.as_u16() {
                401 => ErrorKind::Unauthorized,
                403 => ErrorKind::Denied,
                404 => ErrorKind::NotFound,
                413 => ErrorKind::TooLarge,
                429 => ErrorKind::RateLimited,
                500.. => ErrorKind::ServerFault,
                _ => ErrorKind::Protocol,
            },
            ClientError::Unauthorized { .. } => ErrorKind::Unauthorized,
            ClientError::Unreachable { .. }
            | ClientError::Stalled { .. }
            | ClientError::Cut { .. } => ErrorKind::Unreachable,
            ClientError::Tls { .. } => ErrorKind::Tls,
            ClientError::TooLarge { .. } => ErrorKind::TooLarge,
            ClientError::DigestMismatch { .. } | ClientError::SizeMismatch { .. } => {
                ErrorKind::Corrupt
            }
            ClientError::BadAnswer { .. }
            | ClientError::Misdirected { .. }
            | ClientError::Manifest { .. }
            | ClientError::NotAnImage { .. } => ErrorKind::Protocol,
            ClientError::NoPlatform { .. } => ErrorKind::NoPlatform,
            ClientError::Relayed { meaning, .. } => *meaning,
            ClientError::Credentials(_)
            | ClientError::Hosts(_)
            | ClientError::Source { .. }
            | ClientError::Setup { .. }
            | ClientError::Download { .. }
            | ClientError::Store { .. } => ErrorKind::Local,
        }
    }

    /// What the user may do about it, in one line.
    pub fn hint(&self) -> Option<String> {
        match self {
            ClientError::Unauthorized { registry, .. } => {
                Some(format!("log in with `longshore login {registry}`"))
            }
            ClientError::Refused { refusal, .. } if refusal.status == StatusCode::FORBIDDEN => {
                Some("the account may not do this in that repository".to_owned())
            }
            ClientError::Refused { refusal, .. }
                if refusal.status == StatusCode::TOO_MANY_REQUESTS =>
            {
                Some("the registry limits requests: log in, or wait and try again".to_owned())
            }
            ClientError::Unreachable {
                host,
                refused: true,
                ..
            } => Some(format!("is the registry at `{host}` running?")),
            ClientError::Tls { host, .. } => Some(format!(
                "trust its certificate authority, or name `{host}` as an insecure registry"
            )),
            _ => None,
        }
    }

    /// Whether the same request may succeed when it is sent again.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            ClientError::Unreachable { refused, .. } => !refused,
            ClientError::Stalled { .. } | ClientError::Cut { .. } => true,
            // A manifest is sent after its blobs, so they are there. Some registries see them late, or, as distribution
            // does on a disk, not while somebody else uploads the same.
            ClientError::Refused { refusal, .. } => {
                retry::is_transient(refusal.status) || refusal.has("MANIFEST_BLOB_UNKNOWN")
            }
            _ => false,
        }
    }

    pub(crate) fn mismatch(request: &RequestLine, expected: Digest, actual: Digest) -> ClientError {
        ClientError::DigestMismatch {
            request: request.clone(),
            expected: Box::new(expected),
            actual: Box::new(actual),
        }
    }

    pub(crate) fn bad_answer(request: &RequestLine, reason: impl Into<String>) -> ClientError {
        ClientError::BadAnswer {
            request: request.clone(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_keep_no_secrets() {
        let url = Url::parse("https://me:secret@r.example:8443/v2/a/blobs/x?sig=abc#f").unwrap();
        assert_eq!(
            RequestLine::new(&Method::GET, &url).to_string(),
            "GET https://r.example:8443/v2/a/blobs/x"
        );
    }

    #[test]
    fn envelopes() {
        let check = |body: &str, expect: &str| {
            let refusal = Refusal::parse(StatusCode::NOT_FOUND, body.as_bytes(), None);
            assert_eq!(refusal.to_string(), expect);
        };
        check(
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such\u001b[1m thing","detail":{"x":1}}]}"#,
            "the server answered 404 Not Found: MANIFEST_UNKNOWN: no such [1m thing",
        );
        check(
            r#"{"errors":[{"code":"DENIED"}]}"#,
            "the server answered 404 Not Found: DENIED",
        );
        check(
            r#"{"details":"incorrect username or password"}"#,
            "the server answered 404 Not Found: incorrect username or password",
        );
        check("<html>", "the server answered 404 Not Found");
        check(r#"{"errors":null}"#, "the server answered 404 Not Found");
        check(r#"{"errors":[7]}"#, "the server answered 404 Not Found");
    }
}
