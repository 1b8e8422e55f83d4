//! The store from outside: processes that are killed, and archives that other tools read and write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says what it skips"
)]

mod killed;
mod peers;
