//! Tests of the builder as its users see it; the binary with processes in it is tested in `cli`. One binary for all of
//! them, a module per area.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ast_dump;
mod build;
mod checks;
mod copy;
mod damage;
mod dockerfiles;
mod graph_dump;
mod limits;
mod overlap;
