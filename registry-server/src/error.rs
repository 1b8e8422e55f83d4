//! What a client is told when something fails: [`ErrorCode`] to status and the JSON envelope, in one table.
//!
//! ```text
//! handler ─ Err(ApiError) ─► into_response() ─► {"errors":[{"code":…,"message":…,"detail":…}]}
//! ```
//!
//! Keep `docs/reference/registry.md` in step. A fault of ours (disk, storage) is logged in full and answered
//! as `UNKNOWN` without its detail: paths of the host are not the client's business.

use std::io;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::body::Body;
use crate::storage::StorageError;

/// Error codes of distribution-spec ("Error Codes"), and the ones that CNCF distribution adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The blob is not in this repository.
    BlobUnknown,
    /// The upload's request makes no sense or its body was cut.
    BlobUploadInvalid,
    /// There is no such upload session.
    BlobUploadUnknown,
    /// The digest is malformed, unsupported, or not that of the content.
    DigestInvalid,
    /// The manifest names a blob or manifest that is not in this repository.
    ManifestBlobUnknown,
    /// The manifest is not one.
    ManifestInvalid,
    /// There is no such manifest or tag.
    ManifestUnknown,
    /// The repository's name breaks the grammar.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// What `If-Match` or `If-None-Match` says does not hold.
    PreconditionFailed,
    /// `n` is not a number.
    PaginationNumberInvalid,
    /// A chunk is out of order, or a range lies outside the blob.
    RangeInvalid,
    /// A length that was announced is not that of the content.
    SizeInvalid,
    /// The content is larger than this registry takes.
    TooLarge,
    /// The tag breaks the grammar.
    TagInvalid,
    /// One request sets too many tags.
    TooManyTags,
    /// Credentials are needed.
    Unauthorized,
    /// Who asks may not do that.
    Denied,
    /// More than is allowed in a time.
    TooManyRequests,
    /// The registry that this one caches gives no answer that can be passed on.
    Upstream,
    /// The names are a cache of another registry's.
    CacheOnly,
    /// The method or operation is not offered here.
    Unsupported,
    /// No such path.
    NotFound,
    /// The client sent nothing for too long.
    Timeout,
    /// The server's disk is full.
    Full,
    /// Nothing can be written to the server's disk.
    ReadOnlyDisk,
    /// What the server stores on cannot be reached just now.
    Unavailable,
    /// A fault of the server.
    Unknown,
}

/// When to ask again, in seconds, while the storage cannot be reached.
const RETRY_AFTER: &str = "2";

impl ErrorCode {
    /// The wire name, the status and the default message.
    pub fn row(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::BlobUnknown => ("BLOB_UNKNOWN", S::NOT_FOUND, "blob unknown to registry"),
            Self::BlobUploadInvalid => {
                ("BLOB_UPLOAD_INVALID", S::BAD_REQUEST, "blob upload invalid")
            }
            Self::BlobUploadUnknown => (
                "BLOB_UPLOAD_UNKNOWN",
                S::NOT_FOUND,
                "blob upload unknown to registry",
            ),
            Self::DigestInvalid => (
                "DIGEST_INVALID",
                S::BAD_REQUEST,
                "provided digest did not match the content or is not supported",
            ),
            Self::ManifestBlobUnknown => (
                "MANIFEST_BLOB_UNKNOWN",
                S::NOT_FOUND,
                "manifest references a manifest or blob unknown to registry",
            ),
            Self::ManifestInvalid => ("MANIFEST_INVALID", S::BAD_REQUEST, "manifest invalid"),
            Self::ManifestUnknown => (
                "MANIFEST_UNKNOWN",
                S::NOT_FOUND,
                "manifest unknown to registry",
            ),
            Self::NameInvalid => ("NAME_INVALID", S::BAD_REQUEST, "invalid repository name"),
            Self::NameUnknown => (
                "NAME_UNKNOWN",
                S::NOT_FOUND,
                "repository name not known to registry",
            ),
            Self::PreconditionFailed => (
                "PRECONDITION_FAILED",
                S::PRECONDITION_FAILED,
                "the condition of the request does not hold",
            ),
            Self::PaginationNumberInvalid => (
                "PAGINATION_NUMBER_INVALID",
                S::BAD_REQUEST,
                "invalid number of results requested",
            ),
            Self::RangeInvalid => (
                "RANGE_INVALID",
                S::RANGE_NOT_SATISFIABLE,
                "requested range cannot be satisfied",
            ),
            Self::SizeInvalid => (
                "SIZE_INVALID",
                S::BAD_REQUEST,
                "provided length did not match content length",
            ),
            Self::TooLarge => (
                "SIZE_INVALID",
                S::PAYLOAD_TOO_LARGE,
                "content is larger than this registry takes",
            ),
            Self::TagInvalid => ("TAG_INVALID", S::BAD_REQUEST, "invalid tag"),
            Self::TooManyTags => (
                "TAG_INVALID",
                S::URI_TOO_LONG,
                "more tags at once than this registry sets",
            ),
            Self::Unauthorized => ("UNAUTHORIZED", S::UNAUTHORIZED, "authentication required"),
            Self::Denied => (
                "DENIED",
                S::FORBIDDEN,
                "requested access to the resource is denied",
            ),
            Self::TooManyRequests => (
                "TOOMANYREQUESTS",
                S::TOO_MANY_REQUESTS,
                "too many requests: try again later",
            ),
            Self::Upstream => (
                "UNKNOWN",
                S::BAD_GATEWAY,
                "the registry that this is a cache of gives no usable answer",
            ),
            Self::CacheOnly => (
                "UNSUPPORTED",
                S::METHOD_NOT_ALLOWED,
                "these names are a cache of another registry: push there",
            ),
            Self::Unsupported => (
                "UNSUPPORTED",
                S::METHOD_NOT_ALLOWED,
                "the operation is unsupported",
            ),
            Self::NotFound => ("UNSUPPORTED", S::NOT_FOUND, "no such endpoint"),
            Self::Timeout => (
                "BLOB_UPLOAD_INVALID",
                S::REQUEST_TIMEOUT,
                "the client sent nothing for too long",
            ),
            Self::Full => (
                "UNKNOWN",
                S::INSUFFICIENT_STORAGE,
                "the registry has no space left",
            ),
            Self::ReadOnlyDisk => (
                "UNKNOWN",
                S::INTERNAL_SERVER_ERROR,
                "the registry's storage is read-only",
            ),
            Self::Unavailable => (
                "UNKNOWN",
                S::SERVICE_UNAVAILABLE,
                "the registry's storage cannot be reached: try again",
            ),
            Self::Unknown => ("UNKNOWN", S::INTERNAL_SERVER_ERROR, "unknown error"),
        }
    }
}

/// One refusal: a code, what exactly was wrong, and headers that the client needs to go on.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    detail: Option<String>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// A refusal without detail.
    pub fn new(code: ErrorCode) -> ApiError {
        ApiError {
            code,
            detail: None,
            headers: Vec::new(),
        }
    }

    /// A refusal that says what was wrong.
    pub fn with(code: ErrorCode, detail: impl Into<String>) -> ApiError {
        ApiError {
            code,
            detail: Some(detail.into()),
            headers: Vec::new(),
        }
    }

    /// The same with one more response header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.headers.push((name, value));
        self
    }

    /// The code.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The response: status, headers and envelope.
    pub fn into_response(self) -> Response<Body> {
        let (name, status, message) = self.code.row();
        let mut error = json!({"code": name, "message": message});
        if let Some(detail) = &self.detail {
            error["detail"] = json!(detail);
            // Most clients show nothing but the message, and what a user may do about these is in the detail.
            if matches!(self.code, ErrorCode::Denied | ErrorCode::Unsupported) {
                error["message"] = json!(detail);
            }
        }
        let text = json!({"errors": [error]}).to_string();
        let mut response = Response::new(Body::full(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.extend(
            self.headers
                .into_iter()
                .map(|(name, value)| (Some(name), value)),
        );
        response
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (_, _, message) = self.code.row();
        f.write_str(self.detail.as_deref().unwrap_or(message))
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> ApiError {
        tracing::error!(error = %ErrorChain(&error), "storage failed");
        match &error {
            StorageError::Io { source, .. } => ApiError::new(fault(source)),
            StorageError::Damaged { .. } => ApiError::new(ErrorCode::Unknown),
            StorageError::Object { .. }
            | StorageError::Stalled { .. }
            | StorageError::TooSlow { .. } => {
                // The client's patience is what bridges it.
                ApiError::new(ErrorCode::Unavailable)
                    .header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER))
            }
            StorageError::Unsupported { reason } => ApiError::with(ErrorCode::Unsupported, *reason),
        }
    }
}

impl From<io::Error> for ApiError {
    fn from(error: io::Error) -> ApiError {
        tracing::error!(error = %ErrorChain(&error), "cannot read or write an upload");
        match error.get_ref().and_then(|inner| inner.downcast_ref()) {
            // Another replica has this session, too.
            Some(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => ApiError::with(
                ErrorCode::BlobUploadInvalid,
                "another request writes to this upload",
            ),
            Some(_) => ApiError::new(ErrorCode::Unavailable)
                .header(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER)),
            None => ApiError::new(fault(&error)),
        }
    }
}

fn fault(error: &io::Error) -> ErrorCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::Full,
        io::ErrorKind::ReadOnlyFilesystem => ErrorCode::ReadOnlyDisk,
        _ => ErrorCode::Unknown,
    }
}

/// An error and its sources on one line.
pub(crate) struct ErrorChain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
