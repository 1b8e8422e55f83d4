//! The Dockerfile language and its companion, `.dockerignore`: text in, values out, no I/O.

pub mod ignore;
