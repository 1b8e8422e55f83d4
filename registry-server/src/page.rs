//! The web page: files that are part of the program, and what browsers are told about them.
//!
//! `page/` holds them as they are served: `page.html` at `/`, all else below `/-/`, which is no name of a repository. Nothing is
//! fetched from anywhere else, and no file is written by a tool. What the page shows it asks of the same endpoints as everybody
//! ([`crate::search`] and `/v2/`), with the rights of who looks at it; these files themselves tell nothing, so they need no login.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use store::oci::Digest;

use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::registry::{Answer, Call, answer, set};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// Path, type, content.
const FILES: [(&str, &str, &str); 11] = [
    ("/", HTML, include_str!("page/page.html")),
    ("/-/page.css", CSS, include_str!("page/page.css")),
    ("/-/icon.svg", IMAGE, include_str!("page/icon.svg")),
    ("/-/app.js", SCRIPT, include_str!("page/app.js")),
    ("/-/api.js", SCRIPT, include_str!("page/api.js")),
    ("/-/attached.js", SCRIPT, include_str!("page/attached.js")),
    ("/-/compare.js", SCRIPT, include_str!("page/compare.js")),
    ("/-/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/-/image.js", SCRIPT, include_str!("page/image.js")),
    ("/-/lists.js", SCRIPT, include_str!("page/lists.js")),
    ("/-/read.js", SCRIPT, include_str!("page/read.js")),
];

/// Entity tags, in the order of [`FILES`].
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tag = |(_, _, text): &(&str, &str, &str)| {
        let hex = Digest::of(text.as_bytes()).hex();
        format!("\"{}\"", &hex[..32])
    };
    FILES.iter().map(tag).collect()
});

/// What browsers may do with the page: run these files and ask this registry, nothing else. No text ever becomes markup or
/// script, whoever wrote it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// The page's file at a path; `None` if there is none.
pub(crate) fn file(path: &str, call: &Call) -> Option<Answer> {
    let at = FILES.iter().position(|(known, ..)| *known == path)?;
    let (_, kind, text) = FILES[at];
    if !matches!(call.method, Method::GET | Method::HEAD) {
        let allowed = HeaderValue::from_static("GET, HEAD");
        let refused = ApiError::new(ErrorCode::Unsupported).header(header::ALLOW, allowed);
        return Some(Err(refused));
    }
    let tag = &TAGS[at];
    let mut response = match call.method {
        _ if call.has_already(tag) => answer(StatusCode::NOT_MODIFIED),
        Method::HEAD => {
            let mut response = answer(StatusCode::OK);
            set(
                &mut response,
                header::CONTENT_LENGTH,
                &text.len().to_string(),
            );
            response
        }
        _ => Response::new(Body::full(Bytes::from_static(text.as_bytes()))),
    };
    set(&mut response, header::ETAG, tag);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        // Looked for again each time: a newer program has newer files.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(Ok(response))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the page loads is one of the files, and nothing is loaded from elsewhere.
    #[test]
    fn every_file_that_is_named_is_there() {
        let named = |text: &str| -> Vec<String> {
            let quoted = text.split('"').skip(1).step_by(2);
            let local = quoted.filter(|part| part.starts_with("/-/") || part.starts_with("./"));
            let path = |part: &str| match part.strip_prefix("./") {
                Some(rest) => format!("/-/{rest}"),
                None => part.to_owned(),
            };
            local.map(path).collect()
        };
        let mut seen = 0;
        for (path, kind, text) in FILES {
            if kind == CSS {
                assert!(!text.contains("url("), "{path}");
                continue;
            }
            for name in named(text) {
                assert!(
                    FILES.iter().any(|(known, ..)| *known == name),
                    "{path}: {name}"
                );
                seen += 1;
            }
        }
        assert!(seen > 15, "{seen}");
    }

    /// The ways by which text could become markup are not used.
    #[test]
    fn nothing_makes_markup_of_text() {
        for (path, _, text) in FILES {
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                "javascript:",
                " onclick=",
                " style=",
                "DOMParser",
            ] {
                assert!(!text.contains(word), "{path} has {word}");
            }
        }
    }
}
