//! `registry serve`, and what else is done to registries.

mod access_log;
mod bucket;
mod collection;
mod keys;
mod serve;
mod upstream;

pub use collection::{gc, stats, verify};
pub use serve::serve;
