//! The store from outside: layers end to end, processes that are killed, and archives that other tools read and write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it skips"
)]

mod hostile;
mod interop;
mod killed;
mod layers;
mod namespaces;
mod peers;
mod snapshots;
mod support;
