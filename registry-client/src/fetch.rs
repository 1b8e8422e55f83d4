//! Plain files behind http(s) URLs, for `ADD` and build contexts: is one still as it was, and its bytes.
//!
//! Redirects, limits and patience are those of everything else that is sent ([`crate::transport`]). The bytes go to an
//! open file as they come; nothing about them is verified but what is said here.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ETAG, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use reqwest::{Method, StatusCode, Url};
use store::oci::{Digest, Hasher};

use crate::Client;
use crate::error::{ClientError, redacted};
use crate::headers;
use crate::registry::Attempts;
use crate::transport::{Answer, Call};

/// Where a file is, and who asks for it.
#[derive(Clone)]
pub struct RemoteFile {
    url: Url,
    authorization: Option<HeaderValue>,
}

impl std::fmt::Debug for RemoteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteFile")
            .field("url", &redacted(&self.url))
            .finish_non_exhaustive()
    }
}

/// What tells one state of a file from another, as its server said it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`, verbatim.
    pub etag: Option<String>,
    /// `Last-Modified`, verbatim.
    pub last_modified: Option<String>,
    /// Length in bytes.
    pub size: Option<u64>,
}

/// A file that was downloaded.
#[derive(Clone, Debug)]
pub struct Downloaded {
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What to ask with the next time.
    pub validators: Validators,
    /// When it was changed last, in seconds since 1970, where the server says so.
    pub modified: Option<i64>,
}

impl RemoteFile {
    /// A file. `authorization` is sent to its own server only, in place of a user in the URL.
    ///
    /// # Errors
    /// The text is no http(s) URL, or the header cannot be sent.
    pub fn new(url: &str, authorization: Option<&str>) -> Result<RemoteFile, ClientError> {
        let setup = |reason: &str| ClientError::Setup {
            what: url.split(['?', '#']).next().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        };
        let mut url = Url::parse(url).map_err(|error| setup(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(setup("it is no http or https URL"));
        }
        url.set_fragment(None);
        let mut header = authorization.map(str::to_owned);
        if !url.username().is_empty() || url.password().is_some() {
            let user = format!("{}:{}", url.username(), url.password().unwrap_or_default());
            header.get_or_insert_with(|| format!("Basic {}", STANDARD.encode(user)));
            let cleared = url.set_username("").and_then(|()| url.set_password(None));
            cleared.map_err(|()| setup("its user cannot be left out"))?;
        }
        let authorization = match header {
            None => None,
            Some(text) => {
                let mut value = HeaderValue::from_str(&text)
                    .map_err(|_| setup("its authorization cannot be a header"))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(RemoteFile { url, authorization })
    }
}

impl Client {
    /// Whether a file is still in the state that `known` describes. Asks with HEAD; a server that does not answer that
    /// has said nothing, so the answer is no.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn is_unchanged(
        &self,
        file: &RemoteFile,
        known: &Validators,
    ) -> Result<bool, ClientError> {
        if known.etag.is_none() && known.last_modified.is_none() {
            return Ok(false);
        }
        let mut call = Call::new(Method::HEAD, file.url.clone());
        if let Some(etag) = &known.etag {
            call = call.header(IF_NONE_MATCH, etag);
        } else if let Some(date) = &known.last_modified {
            call = call.header(IF_MODIFIED_SINCE, date);
        }
        let answer = self.answer(file, &call).await?;
        Ok(match answer.status() {
            StatusCode::NOT_MODIFIED => true,
            StatusCode::OK => is_same(known, &validators(&answer)),
            _ => false,
        })
    }

    /// Downloads a file into `out`, which is emptied first; `told` is called with the bytes so far and, where the server
    /// says it, their number in all.
    ///
    /// # Errors
    /// The server refuses or cannot be reached, the connection is cut again and again, or `out` cannot be written.
    pub async fn download(
        &self,
        file: &RemoteFile,
        out: &File,
        told: &dyn Fn(u64, Option<u64>),
    ) -> Result<Downloaded, ClientError> {
        let mut attempts = Attempts::new(self.options());
        loop {
            match self.download_once(file, out, told).await {
                Err(error) if attempts.again(&error).await => {}
                result => return result,
            }
        }
    }

    async fn download_once(
        &self,
        file: &RemoteFile,
        mut out: &File,
        told: &dyn Fn(u64, Option<u64>),
    ) -> Result<Downloaded, ClientError> {
        let call = Call::get(file.url.clone());
        let line = call.line();
        let unwritten = |source: std::io::Error| ClientError::Download {
            request: line.clone(),
            source,
        };
        out.set_len(0)
            .and_then(|()| out.seek(SeekFrom::Start(0)))
            .map_err(unwritten)?;
        let authorization = file.authorization.as_ref();
        let answer = self.shared.transport.follow(&call, authorization).await?;
        let mut answer = answer.expect(&[StatusCode::OK]).await?;
        let mut validators = validators(&answer);
        let modified = validators.last_modified.as_deref();
        let modified = modified.and_then(headers::http_date);
        let expected = answer.content_length();
        let (mut hasher, mut size) = (Hasher::sha256(), 0);
        told(0, expected);
        while let Some(piece) = answer.chunk().await? {
            hasher.update(&piece);
            out.write_all(&piece).map_err(unwritten)?;
            size += piece.len() as u64;
            told(size, expected);
        }
        if let Some(expected) = expected.filter(|&expected| expected != size) {
            return Err(ClientError::SizeMismatch {
                request: line,
                expected,
                actual: size,
            });
        }
        validators.size = Some(size);
        Ok(Downloaded {
            digest: hasher.finish(),
            size,
            validators,
            modified: modified
                .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
                .and_then(|since| i64::try_from(since.as_secs()).ok()),
        })
    }

    /// Sends a request without a body, again where the failure may pass.
    async fn answer(&self, file: &RemoteFile, call: &Call) -> Result<Answer, ClientError> {
        let mut attempts = Attempts::new(self.options());
        let authorization = file.authorization.as_ref();
        loop {
            match self.shared.transport.follow(call, authorization).await {
                Err(error) if attempts.again(&error).await => {}
                result => return result,
            }
        }
    }
}

fn validators(answer: &Answer) -> Validators {
    let text = |name: &reqwest::header::HeaderName| answer.header(name.as_str()).map(str::to_owned);
    Validators {
        etag: text(&ETAG).filter(|etag| !etag.is_empty()),
        last_modified: text(&LAST_MODIFIED).filter(|date| !date.is_empty()),
        size: answer.content_length(),
    }
}

/// Whether two answers describe one state. Weak tags compare as strong ones do: the same bytes are not promised, but
/// the server says that they mean the same.
fn is_same(known: &Validators, now: &Validators) -> bool {
    let same_size = match (known.size, now.size) {
        (Some(known), Some(now)) => known == now,
        _ => true,
    };
    match (&known.etag, &now.etag) {
        (Some(known), Some(now)) => {
            known.trim_start_matches("W/") == now.trim_start_matches("W/") && same_size
        }
        (Some(_), None) | (None, Some(_)) => false,
        (None, None) => {
            known.last_modified.is_some() && known.last_modified == now.last_modified && same_size
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_a_file() {
        let state = |etag: &str, date: &str, size: u64| Validators {
            etag: (!etag.is_empty()).then(|| etag.to_owned()),
            last_modified: (!date.is_empty()).then(|| date.to_owned()),
            size: (size > 0).then_some(size),
        };
        let check = |known: Validators, now: Validators, expect: bool| {
            assert_eq!(is_same(&known, &now), expect, "{known:?} {now:?}");
        };
        check(state("\"a\"", "", 0), state("\"a\"", "", 0), true);
        check(state("\"a\"", "", 0), state("W/\"a\"", "later", 0), true);
        check(state("\"a\"", "", 3), state("\"a\"", "", 4), false);
        check(state("\"a\"", "x", 0), state("\"b\"", "x", 0), false);
        check(state("\"a\"", "x", 0), state("", "x", 0), false);
        check(state("", "x", 3), state("", "x", 3), true);
        check(state("", "x", 3), state("", "y", 3), false);
        check(state("", "", 3), state("", "", 3), false);
    }

    #[test]
    fn what_is_a_remote_file() {
        let check = |url: &str, expect: Result<&str, &str>| {
            let found = RemoteFile::new(url, None);
            match (found, expect) {
                (Ok(file), Ok(expect)) => {
                    let header = file
                        .authorization
                        .as_ref()
                        .map(|value| value.to_str().unwrap());
                    let said = format!("{} {}", file.url, header.unwrap_or("-"));
                    assert_eq!(said, expect);
                }
                (Err(error), Err(expect)) => assert_eq!(error.to_string(), expect),
                (found, _) => panic!("{url}: {found:?}"),
            }
        };
        check("http://h/a?b#c", Ok("http://h/a?b -"));
        check("http://u:p@h/a", Ok("http://h/a Basic dTpw"));
        check(
            "ftp://h/a",
            Err("cannot use `ftp://h/a`: it is no http or https URL"),
        );
        check("http://", Err("cannot use `http://`: empty host"));
    }
}
