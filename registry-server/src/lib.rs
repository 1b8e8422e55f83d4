//! The bundled OCI registry: distribution-spec 1.1 on hyper, in CNCF distribution's folder layout.
//!
//! | file | what it is |
//! |---|---|
//! | [`serve`] | listener, TLS, limits, graceful end: [`Server`], [`Config`] |
//! | [`routes`] | URL grammar: a path becomes a [`routes::Route`]; pure |
//! | `registry` | one request to one answer: auth, route table, common headers |
//! | `blobs`, `uploads`, `manifests`, `tags` | the handlers, by endpoint |
//! | [`range`] | `Range` and `Content-Range`; pure |
//! | [`collect`] | garbage, retention, checks and counts, on a storage that is in use |
//! | [`migrate`] | a registry copied from one storage to another |
//! | [`scrub`] | everything hashed again, slowly and all the time |
//! | [`error`] | error codes, statuses and the JSON envelope, in one table |
//! | [`auth`] | who asks: users, tokens; and whether they may |
//! | [`policy`] | rules of who may do what; pure |
//! | [`rate`], `pace`, [`quota`], [`immutable`] | how often, how fast, how much, and what stays as it is |
//! | `pulls` | when manifests were pulled, for rules that keep what is |
//! | [`audit`] | a line for every change |
//! | `handover` | bytes that come, handed to a thread that stores them |
//! | [`proxy`] | who is behind proxies that are trusted; pure |
//! | [`body`], [`sendfile`] | answers that are pieces of files, by `sendfile(2)` where the connection allows |
//! | `page` | the web page's files |
//! | `search`, `index` | repositories by what they are called and say, and tags with what they are |
//! | [`storage`] | what is kept: the trait, [`storage::disk`] and [`storage::memory`] |
//! | [`upstream`] | other registries, read through this one and kept |
//! | [`events`] | endpoints that are told of pushes, pulls and deletes |
//! | [`sync`] | repositories of other registries, mirrored into this one |
//! | [`trace`] | spans of requests for OpenTelemetry |
//! | [`observe`], `metrics` | what is told of requests, numbers for Prometheus, and whether the server is well |
//! | [`fixture`] | a registry for other crates' tests |
//!
//! Handlers see parsed names only, storage sees no URLs, and everything that blocks runs on blocking threads.

#![forbid(unsafe_code)]

pub mod audit;
pub mod auth;
mod blobs;
pub mod body;
pub mod collect;
pub mod error;
pub mod events;
pub mod fixture;
#[doc(hidden)]
pub mod fuzzing;
mod handover;
pub mod immutable;
mod index;
mod manifests;
mod metrics;
pub mod migrate;
pub mod observe;
mod pace;
mod page;
pub mod policy;
pub mod proxy;
mod pulls;
pub mod quota;
pub mod range;
pub mod rate;
mod registry;
pub mod routes;
pub mod scrub;
mod search;
pub mod sendfile;
pub mod serve;
pub mod storage;
pub mod sync;
mod tags;
#[cfg(test)]
mod testing;
pub mod trace;
mod uploads;
pub mod upstream;

pub use auth::AuthConfig;
pub use fixture::RunningServer;
pub use serve::{Config, Limits, Reloader, ServeError, Server, TlsFiles};
pub use upstream::{PullThrough, Upstream};
