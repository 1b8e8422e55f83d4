//! `registry serve`, and what else is done to registries.

mod access_log;
mod bucket;
mod collection;
mod htpasswd;
mod keys;
mod serve;
mod upstream;

pub use collection::{gc, stats, verify};
pub use htpasswd::htpasswd;
pub use serve::serve;
