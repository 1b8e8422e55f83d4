//! Batches on their way to the collector: one at a time, again while it says that it is busy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Span, TraceConfig, TraceCounts, otlp};
use crate::events::{Message, SendError};

/// Most spans that are sent at once.
const BATCH_MAX: usize = 512;

/// How often a batch is sent again, the wait before the second time (it doubles), and the longest that a collector can ask for.
const TRIES: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(500);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// What the queue holds.
#[derive(Debug)]
pub(super) enum Job {
    Span(Box<Span>),
    /// Whatever came before is to be sent now, and this to be told.
    Flush(oneshot::Sender<()>),
}

/// The task that sends.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) config: TraceConfig,
    pub(super) waiting: mpsc::Receiver<Job>,
    pub(super) counts: Arc<TraceCounts>,
}

impl Export {
    /// Sends until nobody can record any more.
    pub(super) async fn run(mut self) {
        let mut is_down = false;
        loop {
            let mut batch = Vec::new();
            let (mut flushed, mut ended) = (None, false);
            let mut until = None;
            while batch.len() < BATCH_MAX && flushed.is_none() && !ended {
                // The time runs from the first span on.
                let job = match until {
                    None => self.waiting.recv().await,
                    Some(until) => {
                        match tokio::time::timeout_at(until, self.waiting.recv()).await {
                            Ok(job) => job,
                            Err(_) => break,
                        }
                    }
                };
                match job {
                    Some(Job::Span(span)) => {
                        batch.push(*span);
                        until.get_or_insert_with(|| Instant::now() + self.config.interval);
                    }
                    Some(Job::Flush(done)) => flushed = Some(done),
                    None => ended = true,
                }
            }
            if !batch.is_empty() {
                self.send(&batch, &mut is_down).await;
            }
            if let Some(done) = flushed {
                // Whoever waited may have gone.
                let _ = done.send(());
            }
            if ended {
                return;
            }
        }
    }

    async fn send(&self, batch: &[Span], is_down: &mut bool) {
        let body = Bytes::from(otlp::encode(batch, &self.config));
        let count = batch.len() as u64;
        let mut tries = 0;
        loop {
            let headers = vec![("content-type", "application/json".to_owned())];
            let body = body.clone();
            let sending = self.config.exporter.send(Message { headers, body });
            let timeout = self.config.timeout;
            let sent = tokio::time::timeout(timeout, sending).await;
            let error = match sent.unwrap_or(Err(SendError::Late { timeout })) {
                Ok(()) => {
                    *is_down = false;
                    return self.counts.exported.add(count);
                }
                Err(error) => error,
            };
            tries += 1;
            // As OTLP says: of other answers the same would come of it.
            let again = match &error {
                SendError::Refused {
                    status,
                    retry_after,
                } => matches!(status, 429 | 502 | 503 | 504).then_some(*retry_after),
                _ => Some(None),
            };
            let Some(asked) = again.filter(|_| tries < TRIES) else {
                self.counts.failed.add(count);
                if !std::mem::replace(is_down, true) {
                    tracing::warn!(%error, count, "spans cannot be sent; this is told once");
                }
                return;
            };
            let wait = asked.unwrap_or(BACKOFF * 2u32.pow(tries - 1));
            tokio::time::sleep(wait.min(RETRY_AFTER_MAX)).await;
        }
    }
}
