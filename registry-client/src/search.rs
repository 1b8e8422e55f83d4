//! Repositories by a part of their name: Docker Hub's search, elsewhere the catalog.

use reqwest::{StatusCode, Url};
use serde::Deserialize;
use store::oci::reference::DOCKER_HUB;

use crate::Client;
use crate::error::{ClientError, printable};
use crate::transport::Call;

/// Where Docker Hub is searched.
const HUB_SEARCH: &str = "https://index.docker.io/v1/search";

/// Longest answer of a search, in bytes, and most results that are asked for.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
const RESULTS_MAX: usize = 100;

/// A repository that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name, as it is pulled by.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// How many like it.
    pub stars: u64,
    /// Whether it is one of Docker's own.
    pub official: bool,
}

#[derive(Deserialize)]
struct Answered {
    #[serde(default)]
    results: Vec<Result1>,
}

/// One result of the protocol's first version, which lives on in its search.
#[derive(Deserialize)]
struct Result1 {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    star_count: u64,
    #[serde(default)]
    is_official: bool,
}

impl Client {
    /// The first repositories of a registry, at most `limit`, that have `term` in their name.
    pub async fn search(
        &self,
        registry: &str,
        term: &str,
        limit: usize,
    ) -> Result<Vec<Found>, ClientError> {
        if registry == DOCKER_HUB {
            return self.search_hub(term, limit).await;
        }
        let mut names = self.catalog(registry).await?;
        names.retain(|name| name.contains(term));
        names.truncate(limit);
        let found = names.iter().map(|name| Found {
            name: format!("{registry}/{}", printable(name)),
            description: String::new(),
            stars: 0,
            official: false,
        });
        Ok(found.collect())
    }

    async fn search_hub(&self, term: &str, limit: usize) -> Result<Vec<Found>, ClientError> {
        let mut url = Url::parse(HUB_SEARCH).expect("it is a URL");
        url.query_pairs_mut()
            .append_pair("q", term)
            .append_pair("n", &limit.clamp(1, RESULTS_MAX).to_string());
        let answer = self.shared.transport.follow(&Call::get(url), None).await?;
        let answer = answer.expect(&[StatusCode::OK]).await?;
        let line = answer.line.clone();
        let bytes = answer.bytes(ANSWER_BYTES_MAX).await?;
        let answered: Answered = serde_json::from_slice(&bytes).map_err(|error| {
            ClientError::bad_answer(&line, format!("the results are not valid: {error}"))
        })?;
        let found = answered.results.into_iter().take(limit).map(|one| Found {
            name: printable(&one.name),
            description: printable(&one.description.unwrap_or_default()),
            stars: one.star_count,
            official: one.is_official,
        });
        Ok(found.collect())
    }
}
