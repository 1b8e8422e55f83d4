//! HEAD, GET and DELETE of blobs: whole, one range, or many as `multipart/byteranges`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Response, StatusCode};
use store::oci::Digest;

use crate::body::{Body, Piece};
use crate::error::{ApiError, ErrorCode};
use crate::immutable;
use crate::range::{ByteRange, Wanted, parse_range};
use crate::registry::{Answer, CONTENT_DIGEST, Call, Registry, answer, set};
use crate::routes::{RepositoryName, UploadId};
use crate::storage::{Blob, BlobSource, StorageError};

/// Blobs up to this size are read at once: cheaper than what `sendfile` takes to set up.
const SMALL_BYTES: u64 = 64 * 1024;

impl Registry {
    pub(crate) async fn blob(&self, name: RepositoryName, digest: Digest, call: &Call) -> Answer {
        let head = call.method == Method::HEAD;
        // Who has it already is told so here.
        let redirects = !call.has_already(&format!("\"{digest}\""));
        let found = self
            .blocking(move |storage| {
                if head {
                    let size = storage.blob_size(&name, &digest)?;
                    let source = BlobSource::Bytes(Bytes::new());
                    return Ok(size.map(|size| Found::Here(Blob { size, source })));
                }
                if redirects
                    && let Some((url, size)) = storage.blob_url(&name, &digest)?
                    && size > SMALL_BYTES
                {
                    return Ok(Some(Found::Elsewhere(url)));
                }
                match storage.blob(&name, &digest)? {
                    Some(blob) => read_small(blob, &digest).map(|blob| Some(Found::Here(blob))),
                    None => Ok(None),
                }
            })
            .await?;
        match found {
            Some(Found::Here(blob)) => Registry::present(&blob, &digest, call),
            Some(Found::Elsewhere(url)) => redirect(&url, &digest),
            None => Err(ApiError::with(ErrorCode::BlobUnknown, digest.to_string())),
        }
    }

    /// The answer to a request for a blob that is there; its content is not looked at if that is not asked for.
    pub(crate) fn present(blob: &Blob, digest: &Digest, call: &Call) -> Answer {
        let head = call.method == Method::HEAD;
        let etag = format!("\"{digest}\"");
        let mut response = if call.has_already(&etag) {
            answer(StatusCode::NOT_MODIFIED)
        } else if head {
            let mut response = answer(StatusCode::OK);
            set(
                &mut response,
                header::CONTENT_LENGTH,
                &blob.size.to_string(),
            );
            response
        } else {
            content(blob, wanted(call, &etag, blob.size), call)?
        };
        let headers = response.headers_mut();
        headers
            .entry(header::CONTENT_TYPE)
            .or_insert(HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("max-age=31536000"),
        );
        set(&mut response, CONTENT_DIGEST, &digest.to_string());
        set(&mut response, header::ETAG, &etag);
        Ok(response)
    }

    pub(crate) async fn delete_blob(&self, name: RepositoryName, digest: Digest) -> Answer {
        if immutable::any(&self.rules.immutable, &name) {
            return Err(ApiError::with(
                ErrorCode::Denied,
                format!("`{name}` may have immutable tags: its blobs go when nothing needs them"),
            ));
        }
        let quotas = Arc::clone(&self.quotas);
        let removed = self
            .blocking(move |storage| {
                let removed = storage.remove_blob(&name, &digest)?;
                quotas.removed(storage, &name, Some(&digest))?;
                Ok(removed)
            })
            .await?;
        if !removed {
            return Err(ApiError::with(ErrorCode::BlobUnknown, digest.to_string()));
        }
        let mut response = answer(StatusCode::ACCEPTED);
        set(&mut response, CONTENT_DIGEST, &digest.to_string());
        Ok(response)
    }
}

/// Where a blob is.
enum Found {
    Here(Blob),
    /// At this URL, where clients fetch it themselves.
    Elsewhere(String),
}

/// Sends a client elsewhere, with its ranges; its credentials are for here.
fn redirect(url: &str, digest: &Digest) -> Answer {
    let location = HeaderValue::from_str(url).map_err(|_| ApiError::new(ErrorCode::Unknown))?;
    let mut response = answer(StatusCode::TEMPORARY_REDIRECT);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, location);
    // It is good for a while only.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    set(&mut response, CONTENT_DIGEST, &digest.to_string());
    Ok(response)
}

fn read_small(blob: Blob, digest: &Digest) -> Result<Blob, StorageError> {
    let BlobSource::File(file) = &blob.source else {
        return Ok(blob);
    };
    if blob.size > SMALL_BYTES {
        return Ok(blob);
    }
    let mut bytes = vec![0; usize::try_from(blob.size).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|source| StorageError::Io {
            action: "read",
            path: digest.to_string().into(),
            source,
        })?;
    Ok(Blob {
        size: blob.size,
        source: BlobSource::Bytes(Bytes::from(bytes)),
    })
}

fn wanted(call: &Call, etag: &str, size: u64) -> Wanted {
    let still_the_same = call
        .header(header::IF_RANGE)
        .is_none_or(|validator| validator.trim() == etag);
    match call.header(header::RANGE) {
        Some(range) if still_the_same => parse_range(range, size),
        _ => Wanted::Whole,
    }
}

fn content(blob: &Blob, wanted: Wanted, call: &Call) -> Answer {
    let size = blob.size;
    let everything = ByteRange {
        start: 0,
        end: size,
    };
    let content_range =
        |range: ByteRange| format!("bytes {}-{}/{size}", range.start, range.end - 1);
    let (status, pieces, range_header, content_type) = match wanted {
        Wanted::Whole => (StatusCode::OK, vec![piece(blob, everything)], None, None),
        Wanted::Unsatisfiable => {
            let value =
                HeaderValue::from_str(&format!("bytes */{size}")).expect("a number is header text");
            return Err(ApiError::with(
                ErrorCode::RangeInvalid,
                format!("the blob has {size} bytes"),
            )
            .header(header::CONTENT_RANGE, value));
        }
        Wanted::Ranges(ranges) => match ranges.as_slice() {
            [range] => (
                StatusCode::PARTIAL_CONTENT,
                vec![piece(blob, *range)],
                Some(content_range(*range)),
                None,
            ),
            ranges => {
                let boundary = UploadId::random();
                let mut pieces = Vec::with_capacity(ranges.len() * 2 + 1);
                let mut separator = "";
                for range in ranges {
                    let part = format!(
                        "{separator}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n",
                        content_range(*range)
                    );
                    pieces.push(Piece::Bytes(Bytes::from(part)));
                    pieces.push(piece(blob, *range));
                    separator = "\r\n";
                }
                pieces.push(Piece::Bytes(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
                let content_type = format!("multipart/byteranges; boundary={boundary}");
                (
                    StatusCode::PARTIAL_CONTENT,
                    pieces,
                    None,
                    Some(content_type),
                )
            }
        },
    };
    let body = Body::pieces(pieces).on(call.queue.clone());
    let length = body.size();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_LENGTH, &length.to_string());
    if let Some(value) = range_header {
        set(&mut response, header::CONTENT_RANGE, &value);
    }
    if let Some(value) = content_type {
        set(&mut response, header::CONTENT_TYPE, &value);
    }
    Ok(response)
}

fn piece(blob: &Blob, range: ByteRange) -> Piece {
    match &blob.source {
        BlobSource::Bytes(bytes) => {
            let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            Piece::Bytes(bytes.slice(index(range.start)..index(range.end)))
        }
        BlobSource::Remote(blob) => Piece::Remote {
            blob: Arc::clone(blob),
            offset: range.start,
            size: range.size(),
        },
        BlobSource::File(file) => Piece::File {
            file: Arc::<File>::clone(file),
            offset: range.start,
            size: range.size(),
        },
    }
}
