//! Repositories by what they are called and say: whatever way a registry has of finding them.
//!
//! | asked first to last | who has it |
//! |---|---|
//! | `/v2/_longshore/search` | longshore's registry |
//! | `/v1/search` | Docker Hub, and registries that answer docker as it does |
//! | `/v2/_catalog` | most others; names only |

use reqwest::header::ACCEPT;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use store::oci::reference::DOCKER_HUB;

use crate::Client;
use crate::auth::bearer::Scope;
use crate::error::{ClientError, printable};
use crate::registry::Registry;
use crate::transport::{Answer, Call};

/// Where Docker Hub is searched.
const HUB_SEARCH: &str = "https://index.docker.io/v1/search";

/// Longest answer of a search, in bytes, and most results that are asked for at once.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;
const PAGE_RESULTS: usize = 100;

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
    // Some servers write null for none.
    results: Option<Vec<OneAnswered>>,
}

/// One result, of either search.
#[derive(Deserialize)]
struct OneAnswered {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    star_count: u64,
    #[serde(default)]
    is_official: bool,
}

impl OneAnswered {
    /// By its name with `prefix` before it.
    fn found(self, prefix: &str) -> Found {
        Found {
            name: format!("{prefix}{}", printable(&self.name)),
            description: printable(&self.description.unwrap_or_default()),
            stars: self.star_count,
            official: self.is_official,
        }
    }
}

impl Client {
    /// The first repositories of a registry, at most `limit`, that `term` means: those that have it in their name, and where
    /// the registry knows them, in a tag or in what they say of themselves.
    pub async fn search(
        &self,
        registry: &str,
        term: &str,
        limit: usize,
    ) -> Result<Vec<Found>, ClientError> {
        if registry == DOCKER_HUB {
            return self.search_hub(term, limit).await;
        }
        let host = self.options().hosts.server(registry)?;
        let there = self.registry(&host, false);
        let prefix = format!("{registry}/");
        if let Some(found) = search_ours(&there, term, limit, &prefix).await? {
            return Ok(found);
        }
        if let Some(found) = search_v1(&there, term, limit, &prefix).await? {
            return Ok(found);
        }
        let mut names = self.catalog(registry).await?;
        names.retain(|name| name.contains(term));
        names.truncate(limit);
        let found = names.iter().map(|name| Found {
            name: format!("{prefix}{}", printable(name)),
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
            .append_pair("n", &limit.clamp(1, PAGE_RESULTS).to_string());
        let answer = self.shared.transport.follow(&Call::get(url), None).await?;
        let answer = answer.expect(&[StatusCode::OK]).await?;
        let answered: Answered = parsed(answer).await?;
        let results = answered.results.unwrap_or_default().into_iter();
        Ok(results.take(limit).map(|one| one.found("")).collect())
    }
}

/// Page by page; `None` of a registry that has no such search.
async fn search_ours(
    registry: &Registry,
    term: &str,
    limit: usize,
    prefix: &str,
) -> Result<Option<Vec<Found>>, ClientError> {
    let mut found = Vec::new();
    while found.len() < limit {
        let mut url = registry.url("_longshore/search").await?;
        let wanted = (limit - found.len()).min(PAGE_RESULTS);
        url.query_pairs_mut()
            .append_pair("q", term)
            .append_pair("n", &wanted.to_string())
            .append_pair("offset", &found.len().to_string());
        let Some(answered) = asked::<Answered>(registry, url).await? else {
            return Ok(None);
        };
        let results = answered.results.unwrap_or_default();
        let last = results.len() < wanted;
        found.extend(
            results
                .into_iter()
                .take(wanted)
                .map(|one| one.found(prefix)),
        );
        if last {
            break;
        }
    }
    Ok(Some(found))
}

/// `None` of a registry that has no such search.
async fn search_v1(
    registry: &Registry,
    term: &str,
    limit: usize,
    prefix: &str,
) -> Result<Option<Vec<Found>>, ClientError> {
    let mut url = registry.url("").await?;
    url.set_path("/v1/search");
    url.query_pairs_mut()
        .append_pair("q", term)
        .append_pair("n", &limit.clamp(1, PAGE_RESULTS).to_string());
    let answered = asked::<Answered>(registry, url).await?;
    let results = answered.and_then(|answered| answered.results);
    Ok(results.map(|results| {
        let results = results.into_iter().take(limit);
        results.map(|one| one.found(prefix)).collect()
    }))
}

/// What a registry answers; `None` if it does not know the path, or answers with something else.
async fn asked<T: DeserializeOwned>(
    registry: &Registry,
    url: Url,
) -> Result<Option<T>, ClientError> {
    let call = Call::get(url).header(ACCEPT, "application/json");
    let mut attempts = registry.attempts();
    loop {
        let result = async {
            let answer = registry.send(&[Scope::Catalog], &call).await?;
            match answer.status() {
                // Whatever is before a registry may answer a path that it does not know with a page.
                StatusCode::OK => Ok(parsed(answer).await.ok()),
                StatusCode::BAD_REQUEST
                | StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
                _ => Err(answer.refused().await),
            }
        };
        match result.await {
            Err(error) if attempts.again(&error).await => {}
            result => return result,
        }
    }
}

async fn parsed<T: DeserializeOwned>(answer: Answer) -> Result<T, ClientError> {
    let line = answer.line.clone();
    let bytes = answer.bytes(ANSWER_BYTES_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| {
        ClientError::bad_answer(&line, format!("the results are not valid: {error}"))
    })
}
