//! The registry as its clients see it: raw HTTP, other people's tools, and CNCF distribution on the same folder.

mod client;
mod protocol;
