//! A part of a blob, or all of it: read to its end through cuts, from one place or another.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use reqwest::StatusCode;
use reqwest::header::RANGE;
use store::oci::{Descriptor, Digest, Reference};

use super::blob_path;
use crate::auth::bearer::Scope;
use crate::error::ClientError;
use crate::headers;
use crate::registry::{Attempts, Registry};
use crate::transport::{Answer, Call};

/// After this much progress a cut counts as the first again, so that attempts stay bounded by the blob's size.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// Bytes of a blob from one offset to another, whatever connections they take.
pub(crate) struct Span {
    pub(super) digest: Digest,
    /// Of the whole blob.
    pub(crate) size: u64,
    /// Whether that is known; else the first answer tells it, and where it ends.
    pub(super) has_size: bool,
    registry: Arc<Registry>,
    repository: String,
    attempts: Attempts,
    /// Where else it can be had.
    places: VecDeque<(Arc<Registry>, Reference)>,
    /// Where it stands.
    pub(super) offset: u64,
    /// Where it ends.
    pub(super) end: u64,
    /// Whether only the range will do, not an answer with the whole blob.
    is_strict: bool,
    /// What `offset` was when attempts were last counted anew.
    counted_from: u64,
    /// Bytes of the current answer that were given out before: the server took no notice of Range.
    skip: u64,
    answer: Option<Answer>,
}

impl Span {
    /// All of a blob, from the first place that has it.
    pub(super) fn whole(
        descriptor: &Descriptor,
        registry: Arc<Registry>,
        there: &Reference,
        places: VecDeque<(Arc<Registry>, Reference)>,
    ) -> Span {
        Span {
            digest: descriptor.digest,
            size: descriptor.size,
            has_size: true,
            attempts: registry.attempts(),
            registry,
            repository: there.repository().to_owned(),
            places,
            offset: 0,
            end: descriptor.size,
            is_strict: false,
            counted_from: 0,
            skip: 0,
            answer: None,
        }
    }

    /// From one offset to another, from where this one is read.
    pub(super) fn from(&self, offset: u64, end: u64) -> Span {
        Span {
            digest: self.digest,
            size: self.size,
            has_size: self.has_size,
            attempts: self.registry.attempts(),
            registry: Arc::clone(&self.registry),
            repository: self.repository.clone(),
            places: self.places.clone(),
            offset,
            end,
            is_strict: false,
            counted_from: offset,
            skip: 0,
            answer: None,
        }
    }

    /// The same, but only as a range.
    pub(super) fn range(&self, offset: u64, end: u64) -> Span {
        Span {
            is_strict: true,
            ..self.from(offset, end)
        }
    }

    /// Whether the answer is a range, and not the whole blob.
    pub(super) fn is_range(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|answer| answer.status() == StatusCode::PARTIAL_CONTENT)
    }

    /// The next piece; `None` at exactly the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while self.offset < self.end {
            let answer = match self.answer.as_mut() {
                Some(answer) => answer,
                None => self.connect().await?,
            };
            let line = answer.line.clone();
            let error = match answer.chunk().await {
                Ok(Some(piece)) => match self.take(piece) {
                    Some(piece) => return Ok(Some(piece)),
                    None => continue,
                },
                Ok(None) => ClientError::Cut {
                    request: line,
                    reason: format!("it ended after {} of {} bytes", self.offset, self.end),
                },
                Err(error) => error,
            };
            self.answer = None;
            if self.offset - self.counted_from >= PROGRESS_BYTES {
                self.counted_from = self.offset;
                self.attempts.reset();
            }
            self.go_on(error).await?;
        }
        Ok(None)
    }

    /// After a failure: whether there is another attempt here, or another place.
    async fn go_on(&mut self, error: ClientError) -> Result<(), ClientError> {
        if self.attempts.again(&error).await {
            return Ok(());
        }
        let Some((registry, there)) = self.places.pop_front() else {
            return Err(error);
        };
        self.registry.passed_over(&error);
        self.attempts = registry.attempts();
        self.registry = registry;
        self.repository = there.repository().to_owned();
        Ok(())
    }

    /// The new part of a piece, within the span.
    fn take(&mut self, mut piece: Bytes) -> Option<Bytes> {
        let old = usize::try_from(self.skip).map_or(piece.len(), |skip| skip.min(piece.len()));
        piece.advance(old);
        self.skip -= old as u64;
        let room = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        piece.truncate(room);
        self.offset += piece.len() as u64;
        (!piece.is_empty()).then_some(piece)
    }

    /// Asks for what is left, as often as the policy allows.
    pub(crate) async fn connect(&mut self) -> Result<&mut Answer, ClientError> {
        loop {
            match self.connect_once().await {
                Ok(answer) => return Ok(self.answer.insert(answer)),
                Err(error) => self.go_on(error).await?,
            }
        }
    }

    async fn connect_once(&mut self) -> Result<Answer, ClientError> {
        let path = blob_path(&self.repository, &self.digest);
        let mut call = Call::get(self.registry.url(&path).await?);
        match (self.offset, self.end == self.size) {
            (0, true) => {}
            (offset, true) => call = call.header(RANGE, &format!("bytes={offset}-")),
            (offset, false) => {
                call = call.header(RANGE, &format!("bytes={offset}-{}", self.end - 1));
            }
        }
        let scopes = [Scope::pull(&self.repository)];
        let answer = self.registry.send(&scopes, &call).await?;
        match answer.status() {
            StatusCode::OK if self.is_strict => Err(ClientError::bad_answer(
                &answer.line,
                "the answer is not the range that was asked for",
            )),
            StatusCode::OK if !self.has_size => {
                let size = answer.content_length().ok_or_else(|| {
                    ClientError::bad_answer(&answer.line, "the answer has no Content-Length")
                })?;
                (self.size, self.end, self.has_size) = (size, size, true);
                Ok(answer)
            }
            StatusCode::OK => {
                self.skip = self.offset;
                match answer.content_length() {
                    Some(length) if length != self.size => Err(ClientError::SizeMismatch {
                        request: answer.line.clone(),
                        expected: self.size,
                        actual: length,
                    }),
                    _ => Ok(answer),
                }
            }
            StatusCode::PARTIAL_CONTENT if self.offset > 0 || self.end < self.size => {
                self.skip = 0;
                let range = answer
                    .header("content-range")
                    .and_then(headers::content_range);
                let right = range.is_some_and(|range| {
                    range.first == self.offset
                        && range.last < self.end
                        && range.total.is_none_or(|total| total == self.size)
                });
                if right {
                    return Ok(answer);
                }
                Err(ClientError::bad_answer(
                    &answer.line,
                    format!("the answer is not the range from byte {}", self.offset),
                ))
            }
            _ => {
                let answer = answer.expect(&[]).await;
                Err(answer.expect_err("no status is expected"))
            }
        }
    }
}
