//! The client against Debian's docker-registry and against a hostile server.
//!
//! | file | against |
//! |---|---|
//! | [`debian`] | Debian's docker-registry, open and with htpasswd |

mod debian;
mod support;
