//! One endpoint is told of one event after the other, each until it was taken or is too old.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::envelope::message;
use super::event::RegistryEvent;
use super::{Endpoint, SendError, Webhook};
use crate::error::ErrorChain;
use crate::storage::now_seconds;

/// How often it is looked for what dead processes left.
const ADOPT_EVERY: Duration = Duration::from_secs(60);

/// The longest that an endpoint can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

/// Sends until the server is about to end; then what waits, as long as nothing fails.
pub(super) async fn run(endpoint: Arc<Endpoint>) {
    let mut ending = endpoint.ending.subscribe();
    let mut settings = endpoint.settings.subscribe();
    let mut failures = 0;
    loop {
        let Some(event) = next(&endpoint).await else {
            if *ending.borrow() {
                return;
            }
            tokio::select! {
                () = endpoint.queue.more.notified() => {}
                _ = ending.changed() => {}
                () = tokio::time::sleep(ADOPT_EVERY) => adopt(&endpoint).await,
            }
            continue;
        };
        let webhook = settings.borrow_and_update().clone();
        let wait = attempt(&endpoint, &webhook, &event, &mut failures).await;
        let Some(wait) = wait else {
            continue;
        };
        if *ending.borrow() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // Another configuration may be what it takes.
            _ = settings.changed() => failures = 0,
            _ = ending.changed() => {}
        }
    }
}

/// The event whose turn it is; lines that are none are dropped.
async fn next(endpoint: &Arc<Endpoint>) -> Option<RegistryEvent> {
    loop {
        let entry = endpoint.queue.first()?;
        let read = tokio::task::spawn_blocking(move || entry.read()).await;
        let problem = match read {
            Ok(Ok(line)) => match serde_json::from_slice(&line) {
                Ok(event) => return Some(event),
                Err(error) => error.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            webhook = endpoint.name,
            problem,
            "a line of the queue is no event"
        );
        endpoint.counts.given_up.add(1);
        done(endpoint).await;
    }
}

/// Sends once. How long to wait before the same event is sent again; `None` if it is done with.
async fn attempt(
    endpoint: &Arc<Endpoint>,
    webhook: &Webhook,
    event: &RegistryEvent,
    failures: &mut u32,
) -> Option<Duration> {
    let sending = webhook.sender.send(message(event, webhook, now_seconds()));
    let sent = tokio::time::timeout(webhook.timeout, sending).await;
    let timeout = webhook.timeout;
    let error = match sent.unwrap_or(Err(SendError::Late { timeout })) {
        Ok(()) => {
            if std::mem::take(failures) > 0 {
                tracing::info!(webhook = endpoint.name, "events are taken again");
            }
            endpoint.counts.delivered.add(1);
            done(endpoint).await;
            return None;
        }
        Err(error) => error,
    };
    endpoint.counts.failed_attempts.add(1);
    let age = age(event);
    if error.is_final() || age >= webhook.give_up {
        tracing::error!(webhook = endpoint.name, event = event.id, repository = event.repository, age = age.as_secs(), %error, "an event is given up");
        endpoint.counts.given_up.add(1);
        done(endpoint).await;
        return match error.is_final() {
            true => None,
            // Others that are as old are not all sent at once to an endpoint that has trouble.
            false => Some(backoff(webhook, 1)),
        };
    }
    *failures = failures.saturating_add(1);
    let asked = match &error {
        SendError::Refused { retry_after, .. } => *retry_after,
        _ => None,
    };
    let wait = asked.map_or_else(
        || backoff(webhook, *failures),
        |asked| asked.min(RETRY_AFTER_MAX),
    );
    if *failures == 1 {
        tracing::warn!(webhook = endpoint.name, event = event.id, %error, "an event is not taken; it is sent again");
    } else {
        tracing::debug!(webhook = endpoint.name, event = event.id, %error, failures, ?wait, "an event is not taken");
    }
    Some(wait)
}

/// The wait after so many failures: doubled, half of it random, so that servers do not come back together.
fn backoff(webhook: &Webhook, failures: u32) -> Duration {
    let factor = 2u32.saturating_pow(failures.saturating_sub(1));
    let full = webhook
        .backoff
        .saturating_mul(factor)
        .min(webhook.backoff_max);
    full / 2 + (full / 2) * u32::from(random()) / 255
}

fn random() -> u8 {
    let mut byte = [128];
    // Without randomness the middle will do.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    byte[0]
}

fn age(event: &RegistryEvent) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
        .saturating_sub(Duration::from_millis(event.millis))
}

async fn done(endpoint: &Arc<Endpoint>) {
    let queue = Arc::clone(endpoint);
    let marked = tokio::task::spawn_blocking(move || queue.queue.done()).await;
    if let Ok(Err(error)) = marked {
        tracing::warn!(webhook = endpoint.name, %error, "an event that is done with may be sent again after a restart");
    }
}

async fn adopt(endpoint: &Arc<Endpoint>) {
    let queue = Arc::clone(endpoint);
    let looked = tokio::task::spawn_blocking(move || queue.queue.adopt()).await;
    if let Ok(Err(error)) = looked {
        tracing::warn!(webhook = endpoint.name, error = %ErrorChain(&error), "cannot look for events of before");
    }
}
