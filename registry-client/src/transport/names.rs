//! Addresses of the names that answers give us. A registry outside that could send us to a name of its own choice could have us
//! knock at doors inside, whatever its URL looks like: such a name leads to addresses outside, or nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::target::is_internal_address;

/// Resolves the names of other servers that a server outside gave us.
pub(super) struct OutsideOnly {
    /// Taken instead of the system resolver's answer.
    pub(super) addresses: BTreeMap<String, SocketAddr>,
    /// Hosts that the user named, such as proxies: they may be anywhere.
    pub(super) named: BTreeSet<String>,
}

/// A name that a server outside gave us, and that has addresses inside only.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` is inside this machine or its network")]
pub(super) struct Inside {
    name: String,
}

impl Resolve for OutsideOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let given = self.addresses.get(&name).copied();
        let is_named = self.named.contains(&name);
        Box::pin(async move {
            let found: Vec<SocketAddr> = match given {
                Some(address) => vec![address],
                // The URL's port takes the place of 0.
                None => tokio::net::lookup_host((name.as_str(), 0)).await?.collect(),
            };
            let allowed = |found: &SocketAddr| is_named || !is_internal_address(found.ip());
            let outside: Vec<SocketAddr> = found.into_iter().filter(allowed).collect();
            if outside.is_empty() {
                return Err(Inside { name }.into());
            }
            Ok(Box::new(outside.into_iter()) as Addrs)
        })
    }
}
