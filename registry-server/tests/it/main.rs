//! The registry as its clients see it: raw HTTP, other people's tools, and CNCF distribution on the same folder.

#![allow(clippy::unwrap_used, reason = "a test that fails, fails")]

mod access;
mod beyond;
mod browser;
mod bucket;
mod clauses;
mod client;
mod collect;
mod conformance;
mod disk;
mod distribution;
mod faults;
mod hostile;
mod identity;
mod kill;
mod limits;
mod migrate;
mod mirrors;
mod observe;
mod outages;
mod page;
mod policy;
mod protocol;
mod receiver;
mod redirect;
mod replicas;
mod scale;
mod scrub;
mod search;
mod storage;
mod through;
mod tools;
mod traces;
mod traffic;
mod webhooks;
