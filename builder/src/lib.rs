//! From a Dockerfile to an image: parse, lower, solve, cache, export.

#![forbid(unsafe_code)]

pub mod cache;
pub mod dockerfile;
pub mod graph;
pub mod lower;
pub mod solve;
