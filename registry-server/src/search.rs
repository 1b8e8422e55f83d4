//! What the web page and `search` ask for: who they are, repositories by terms, tags with what they are.
//!
//! | path | answers |
//! |---|---|
//! | `/v2/_longshore/about` | who asks, how to log in, what is switched off |
//! | `/v2/_longshore/search` | repositories, best first, in pages |
//! | `/v2/<name>/_longshore/tags` | tags with digests, sizes and platforms, in pages |
//! | `/v1/search`, `/v1/_ping` | the same to docker and podman, as they have asked since the protocol's first version |
//!
//! `docs/reference/page.md` is the description for users. All of it is read from the [`Index`](crate::index::Index), and
//! nobody is told of a repository that they may not pull from, not even that it is there.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};
use store::oci::Digest;
use store::oci::time::rfc3339;

use crate::auth::{Need, Via, login_challenge};
use crate::error::{ApiError, ErrorCode};
use crate::index::details::Details;
use crate::index::entry::{TagEntry, made};
use crate::index::find::{Found, Terms, contains};
use crate::policy::{Action, Person};
use crate::registry::{Answer, Call, Registry, json_answer};
use crate::routes::{Query, RepositoryName};
use crate::storage::{RegistryStorage, StorageResult};

/// Results in one answer where the client names no number, and the most it can ask for.
const RESULTS: usize = 25;
const RESULTS_MAX: usize = 100;

/// Longest text that is looked for, in bytes.
const QUERY_BYTES_MAX: usize = 256;

/// Which part of a list is asked for.
#[derive(Clone, Copy, Debug)]
struct Page {
    offset: usize,
    length: usize,
}

impl Page {
    /// `n` and `offset`.
    fn of(query: &Query) -> Result<Page, ApiError> {
        Ok(Page {
            offset: number(query, "offset")?.unwrap_or(0),
            length: number(query, "n")?.unwrap_or(RESULTS).min(RESULTS_MAX),
        })
    }

    fn of_all<T>(self, all: impl IntoIterator<Item = T>) -> Vec<T> {
        all.into_iter()
            .skip(self.offset)
            .take(self.length)
            .collect()
    }
}

fn number(query: &Query, key: &str) -> Result<Option<usize>, ApiError> {
    let text = query.first(key);
    let number = text.map(|text| {
        text.parse()
            .map_err(|_| ApiError::with(ErrorCode::PaginationNumberInvalid, text))
    });
    number.transpose()
}

/// `q`, which has a bound.
fn wanted(query: &Query) -> Result<&str, ApiError> {
    let text = query.first("q").unwrap_or_default();
    match text.len() <= QUERY_BYTES_MAX {
        true => Ok(text),
        false => Err(ApiError::with(
            ErrorCode::TooLarge,
            format!("at most {QUERY_BYTES_MAX} bytes are looked for"),
        )),
    }
}

/// How a list is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    NameDown,
    Oldest,
    Newest,
}

impl Order {
    /// `sort`: `name`, `-name`, `date` or `-date`.
    fn of(query: &Query) -> Result<Option<Order>, ApiError> {
        match query.first("sort") {
            None => Ok(None),
            Some("name") => Ok(Some(Order::Name)),
            Some("-name") => Ok(Some(Order::NameDown)),
            Some("date") => Ok(Some(Order::Oldest)),
            Some("-date") => Ok(Some(Order::Newest)),
            Some(other) => Err(ApiError::with(
                ErrorCode::PaginationNumberInvalid,
                format!("sort is `{other}`: expected name, -name, date or -date"),
            )),
        }
    }

    /// Puts what comes in the order of names into this one.
    fn sort<T>(self, all: &mut [T], date: impl Fn(&T) -> Option<SystemTime>) {
        match self {
            Order::Name => {}
            Order::NameDown => all.reverse(),
            Order::Oldest => all.sort_by_key(date),
            Order::Newest => all.sort_by_key(|one| std::cmp::Reverse(date(one))),
        }
    }
}

/// A tag, as it is told.
#[derive(Debug, Serialize)]
struct TagTold {
    tag: String,
    digest: Digest,
    #[serde(skip_serializing_if = "Option::is_none")]
    pushed: Option<String>,
    /// `None` if the manifest is gone, or cannot be read.
    #[serde(flatten)]
    details: Option<Arc<Details>>,
}

impl Registry {
    /// `/v2/_longshore/about`: for everybody, also those who are not known yet. Wrong credentials are a 401.
    pub(crate) async fn about(&self, call: &mut Call) -> Answer {
        let visitor = self
            .gate
            .visitor(&call.headers, &call.peer, &Need::Login)
            .await?;
        let via = (visitor.via != Via::Nothing).then(|| visitor.via.name());
        call.visitor = visitor;
        let about = json!({
            "user": call.visitor.person.user,
            "via": via,
            "login": self.gate.takes_passwords(),
            "anonymous": self.gate.knows(&Person::default()),
            "delete": self.rules.delete && !self.rules.read_only,
            "version": env!("CARGO_PKG_VERSION"),
        });
        Ok(uncached(json_answer(about.to_string())))
    }

    /// What is found, in the order that is asked for; and whether everything was looked at.
    async fn found(
        &self,
        terms: Terms,
        order: Option<Order>,
        call: &Call,
    ) -> Result<(Vec<Found>, bool), ApiError> {
        let complete = self.index.ready(&self.storage).await;
        let (gate, visitor) = (Arc::clone(&self.gate), call.visitor.clone());
        let index = Arc::clone(&self.index);
        let found = self
            .blocking(move |storage| {
                index.settle(storage)?;
                let mut found = index.search(&terms, &|name| gate.may_list(&visitor, name));
                if let Some(order) = order {
                    found.sort_by(|one, other| one.name.cmp(&other.name));
                    order.sort(&mut found, |one| one.changed);
                }
                Ok(found)
            })
            .await?;
        Ok((found, complete))
    }

    /// `/v2/_longshore/search`
    pub(crate) async fn search(&self, call: &Call) -> Answer {
        let page = Page::of(&call.query)?;
        let terms = Terms::parse(wanted(&call.query)?);
        let order = Order::of(&call.query)?;
        let (found, complete) = self.found(terms, order, call).await?;
        let total = found.len();
        let results = page.of_all(found).into_iter().map(|one| {
            json!({
                "name": one.name.as_str(),
                "description": one.description,
                "tags": one.tags,
                "found_tags": one.found_tags,
                "changed": one.changed.and_then(told_time),
            })
        });
        let told = json!({
            "results": results.collect::<Vec<_>>(),
            "total": total,
            "offset": page.offset,
            "complete": complete,
        });
        Ok(uncached(json_answer(told.to_string())))
    }

    /// `/v1/search`, in pages that are counted from 1.
    pub(crate) async fn docker_search(&self, call: &Call) -> Answer {
        let query = wanted(&call.query)?;
        let length = number(&call.query, "n")?
            .unwrap_or(RESULTS)
            .clamp(1, RESULTS_MAX);
        let number = number(&call.query, "page")?.unwrap_or(1).max(1);
        // What Docker Hub calls its own is nothing here.
        let text = query.strip_prefix("library/").unwrap_or(query);
        let (found, _) = self.found(Terms::parse(text), None, call).await?;
        let anonymous = call.visitor.via == Via::Nothing;
        if found.is_empty() && anonymous && self.gate.takes_passwords() {
            // podman asks without its credentials first, and with them where this is refused.
            return Err(login_challenge());
        }
        let total = found.len();
        let page = Page {
            offset: (number - 1).saturating_mul(length),
            length,
        };
        let results = page.of_all(found).into_iter().map(|one| {
            json!({
                "name": one.name.as_str(),
                "description": one.description,
                "star_count": 0,
                "is_official": false,
                "is_automated": false,
                "is_trusted": false,
            })
        });
        let told = json!({
            "query": query,
            "num_results": total,
            "num_pages": total.div_ceil(length),
            "page": number,
            "page_size": length,
            "results": results.collect::<Vec<Value>>(),
        });
        Ok(uncached(json_answer(told.to_string())))
    }

    /// `/v1/_ping`, by which docker asks whether there is a search.
    pub(crate) fn docker_ping(&self) -> Answer {
        let mut response = json_answer(json!({"standalone": true}).to_string());
        let headers = response.headers_mut();
        headers.insert(
            "x-docker-registry-version",
            HeaderValue::from_static("0.9.1"),
        );
        headers.insert(
            "x-docker-registry-standalone",
            HeaderValue::from_static("true"),
        );
        Ok(response)
    }

    /// `/v2/<name>/_longshore/tags`
    pub(crate) async fn tag_table(&self, name: RepositoryName, call: &Call) -> Answer {
        let page = Page::of(&call.query)?;
        let part = wanted(&call.query)?.to_owned();
        let order = Order::of(&call.query)?.unwrap_or(Order::Newest);
        let index = Arc::clone(&self.index);
        let repository = name.clone();
        let told = self
            .blocking(move |storage| {
                index.settle(storage)?;
                index.refresh(storage, &repository)?;
                let cut = |tags: &[TagEntry]| {
                    let fits = |tag: &&TagEntry| contains(&tag.name, &part);
                    let mut tags: Vec<&TagEntry> = tags.iter().filter(fits).collect();
                    order.sort(&mut tags, |tag| tag.made);
                    (tags.len(), page.of_all(tags.into_iter().cloned()))
                };
                let cut = match index.with_tags(&repository, cut) {
                    Some(cut) => cut,
                    // Too many to be kept.
                    None => match storage.tags(&repository)? {
                        Some(names) => cut(&untimed(names)),
                        None => return Ok(None),
                    },
                };
                let description = index.description(&repository).unwrap_or_default();
                let mut told = Vec::new();
                for tag in cut.1 {
                    told.extend(tell(storage, &index.details, &repository, &tag)?);
                }
                Ok(Some((cut.0, told, description)))
            })
            .await?;
        let Some((total, tags, description)) = told else {
            return Err(ApiError::with(ErrorCode::NameUnknown, name.to_string()));
        };
        let may = Action::ALL.into_iter();
        let may = may.filter(|action| self.gate.may(&call.visitor, *action, &name));
        let told = json!({
            "name": name.as_str(),
            "description": description,
            "tags": tags,
            "total": total,
            "offset": page.offset,
            "may": may.map(Action::name).collect::<Vec<_>>(),
        });
        Ok(uncached(json_answer(told.to_string())))
    }
}

/// Tags whose time nobody looked up.
fn untimed(names: Vec<String>) -> Vec<TagEntry> {
    let untimed = |name: String| TagEntry {
        name: name.into(),
        made: None,
    };
    names.into_iter().map(untimed).collect()
}

/// A time to the second, as it is told.
fn told_time(time: SystemTime) -> Option<String> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some(rfc3339(i64::try_from(since.as_secs()).ok()?))
}

/// What a tag is now; `None` if it is gone.
fn tell(
    storage: &dyn RegistryStorage,
    details: &crate::index::details::DetailsCache,
    name: &RepositoryName,
    tag: &TagEntry,
) -> StorageResult<Option<TagTold>> {
    let Some(digest) = storage.tag(name, &tag.name)? else {
        return Ok(None);
    };
    let made = made(storage, name, &tag.name)?.or(tag.made);
    // One that is damaged is told as what it is: something nobody can read.
    let details = details.of(storage, name, &digest).ok().flatten();
    Ok(Some(TagTold {
        tag: tag.name.to_string(),
        digest,
        pushed: made.and_then(told_time),
        details,
    }))
}

/// What depends on who asks is kept by nobody.
fn uncached(mut response: http::Response<crate::body::Body>) -> http::Response<crate::body::Body> {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
