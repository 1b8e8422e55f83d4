//! Where a registry that takes the tokens of others gets their keys: by the one HTTP client that there is.

use registry_client::Client;
use registry_server::auth::issuers::{FetchDocument, Fetched, KEYS_BYTES_MAX};

use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// Fetches keys.
#[derive(Debug)]
pub struct KeyFetcher(Client);

impl KeyFetcher {
    /// One that trusts whom longshore trusts.
    pub fn new(context: &Context) -> Result<KeyFetcher, CliError> {
        let client = Client::new(context.client_options()?).blame(Kind::Environment)?;
        Ok(KeyFetcher(client))
    }
}

impl FetchDocument for KeyFetcher {
    fn fetch(&self, url: &str) -> Fetched {
        let (client, url) = (self.0.clone(), url.to_owned());
        Box::pin(async move {
            let fetched = client.document(&url, KEYS_BYTES_MAX).await;
            fetched.map_err(|error| error.to_string())
        })
    }
}
