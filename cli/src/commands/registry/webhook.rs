//! Webhooks of a registry: our client, as the server wants something that sends.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use registry_client::post::Endpoint;
use registry_client::{Client, ClientError};
use registry_server::events::{Message, Secret, SendError, SendEvent, Webhook};

use crate::config::serve::webhook::WebhookConfig;
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

use super::secret_in;

/// The webhooks that a configuration says, ready to be served.
pub(super) fn webhooks(
    context: &Context,
    configs: &[WebhookConfig],
) -> Result<Vec<Webhook>, CliError> {
    if configs.is_empty() {
        return Ok(Vec::new());
    }
    let client = Client::new(context.client_options()?).blame(Kind::Environment)?;
    let made = configs.iter().map(|config| webhook(&client, config));
    made.collect()
}

fn webhook(client: &Client, config: &WebhookConfig) -> Result<Webhook, CliError> {
    let mut headers = config.headers.clone();
    if let Some(file) = &config.token {
        let token = secret_in(file)?;
        headers.push(("authorization".to_owned(), format!("Bearer {token}")));
    }
    let ca = config.ca.clone();
    let sender = sender(client, &config.url, headers, config.insecure, ca);
    let sender = sender.map_err(|error| {
        let message = format!("webhook `{}`: {error}", config.name);
        CliError::new(Kind::Usage, message)
    })?;
    let mut webhook = Webhook::new(&config.name, sender);
    webhook.format = config.format.unwrap_or(webhook.format);
    if let Some(actions) = &config.actions {
        webhook.actions = actions.iter().copied().collect();
    }
    webhook.blobs = config.blobs;
    if !config.repositories.is_empty() {
        webhook.repositories.clone_from(&config.repositories);
    }
    if let Some(source) = &config.source {
        webhook.source.clone_from(source);
    }
    let secret = config.secret.as_deref().map(secret_in).transpose()?;
    webhook.secret = secret.map(Secret::new);
    webhook.timeout = config.timeout.unwrap_or(webhook.timeout);
    webhook.backoff = config.backoff.unwrap_or(webhook.backoff);
    webhook.backoff_max = config.backoff_max.unwrap_or(webhook.backoff_max);
    webhook.give_up = config.give_up.unwrap_or(webhook.give_up);
    if let Some(waiting) = config.waiting {
        webhook.waiting_max = usize::try_from(waiting).unwrap_or(usize::MAX);
    }
    let files = config.token.iter().chain(&config.secret);
    webhook.files = files.map(|file| Path::to_owned(file)).collect();
    Ok(webhook)
}

/// What sends to a URL, with headers that are never shown.
pub(super) fn sender(
    client: &Client,
    url: &str,
    headers: Vec<(String, String)>,
    insecure: bool,
    ca: Vec<PathBuf>,
) -> Result<Arc<dyn SendEvent>, ClientError> {
    let endpoint = Endpoint::new(url, headers, insecure, ca)?;
    let client = client.clone();
    Ok(Arc::new(Sender { client, endpoint }))
}

#[derive(Debug)]
struct Sender {
    client: Client,
    endpoint: Endpoint,
}

impl SendEvent for Sender {
    fn send(&self, message: Message) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async move {
            let sent = self
                .client
                .post(&self.endpoint, &message.headers, message.body);
            sent.await.map_err(|error| match error {
                ClientError::Refused { refusal, .. } => SendError::Refused {
                    status: refusal.status.as_u16(),
                    retry_after: refusal.retry_after,
                },
                error => SendError::Unreachable {
                    reason: self.endpoint.hide(&error.to_string()),
                },
            })
        })
    }
}
