//! Tests of the builder as its users see it; the binary with processes in it is tested in `cli`.

mod build;
