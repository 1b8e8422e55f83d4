//! The client against real registries and against servers that misbehave.
//!
//! | file | against |
//! |---|---|
//! | [`debian`] | Debian's docker-registry, open and with htpasswd |
//! | [`hostile_pull`], [`hostile_push`] | a server that breaks the protocol in every way we could think of |

#![allow(clippy::unwrap_used, reason = "a test that fails shall say where")]

mod debian;
mod hostile_pull;
mod hostile_push;
mod support;
mod wire;
