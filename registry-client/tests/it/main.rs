//! The client against real registries and against servers that misbehave.
//!
//! | file | against |
//! |---|---|
//! | [`bundled`] | the bundled registry, plain and with TLS |
//! | [`chaos`] | the bundled registry over a line that breaks where a seed says |
//! | [`copying`] | images between registries, layouts and archives, beside skopeo, umoci and podman |
//! | [`editing`] | images changed, appended to, rebased and flattened |
//! | [`debian`] | Debian's docker-registry, open and with htpasswd |
//! | [`helpers`] | credential helpers |
//! | [`hostile_pull`], [`hostile_push`] | a server that breaks the protocol in every way we could think of |
//! | [`mirrors`] | mirrors and other places, as the files of other tools say |
//! | [`outside`] | registries that lead into our own network, by names that look harmless |
//! | [`segments`] | large blobs, by several ranges at once |
//! | [`through`] | what a cache asks |
//! | [`tokens`] | a token server, and other hosts that must see no credential |

#![allow(clippy::unwrap_used, reason = "a test that fails shall say where")]

mod bundled;
mod chaos;
mod copying;
mod debian;
mod editing;
mod helpers;
mod hostile_pull;
mod hostile_push;
mod mirrors;
mod outside;
mod recompress;
mod segments;
mod support;
mod through;
mod tokens;
mod wire;
