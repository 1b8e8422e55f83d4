//! How a [`crate::Client`] behaves. Nothing here comes from the environment: the caller passes paths and hosts in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use store::uploads::Uploads;

use crate::auth::Keychain;
use crate::hosts::Hosts;
use crate::transport::retry::{Clock, RetryPolicy, SystemClock};
use crate::transport::target::{host_of, is_loopback};

/// Most segments that all downloads of a client together read ahead.
pub const SEGMENTS_AHEAD_MAX: usize = 12;

/// What a client trusts, whom it is, and how patient it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where credentials are.
    pub keychain: Keychain,
    /// Hosts (`host` or `host:port`) that may be reached by plain http, or by https with any certificate. Loopback
    /// hosts always may, as with docker.
    pub insecure: Vec<String>,
    /// Where registries really are. Answers from outside may lead into the own network only to hosts that have a table there,
    /// or are named as insecure.
    pub hosts: Hosts,
    /// How requests name us.
    pub user_agent: String,
    /// Directories in the form of docker's `/etc/docker/certs.d`: `HOST[:PORT]/*.crt`, `*.cert` with `*.key`.
    pub certs_dirs: Vec<PathBuf>,
    /// For single hosts (`host[:port]`), a directory with such files in place of those of `certs_dirs`.
    pub certs_of: BTreeMap<String, PathBuf>,
    /// PEM files of authorities that are trusted beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Addresses of hosts, taken instead of the system resolver's answer; port 0 leaves the port to the URL.
    pub addresses: BTreeMap<String, SocketAddr>,
    /// Proxies.
    pub proxies: Proxies,
    /// How long is waited for a peer.
    pub timeouts: Timeouts,
    /// How often and how patiently requests are sent again.
    pub retry: RetryPolicy,
    /// Blobs that are pushed or pulled at once.
    pub parallel: usize,
    /// Segments of a large blob that are downloaded at once; 1 for one after the other.
    pub segments: usize,
    /// Most bytes of a segment; on a slow line they become smaller, down to a sixteenth. What waits in memory is at most
    /// [`SEGMENTS_AHEAD_MAX`] of them, whatever is downloaded.
    pub segment_bytes: u64,
    /// Bytes of a chunk, where an upload is chunked; a server may ask for more, and on a slow line they become smaller, down
    /// to a sixteenth.
    pub chunk_bytes: u64,
    /// Where it is noted how far uploads came, for the next process to go on; without, they begin anew.
    pub uploads: Option<Uploads>,
    /// Time, replaced in tests.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            keychain: Keychain::anonymous(),
            insecure: Vec::new(),
            hosts: Hosts::default(),
            user_agent: format!("longshore/{}", env!("CARGO_PKG_VERSION")),
            certs_dirs: Vec::new(),
            certs_of: BTreeMap::new(),
            ca_files: Vec::new(),
            addresses: BTreeMap::new(),
            proxies: Proxies::default(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            parallel: 4,
            segments: 4,
            segment_bytes: 4 * 1024 * 1024,
            chunk_bytes: 16 * 1024 * 1024,
            uploads: None,
            clock: Arc::new(SystemClock),
        }
    }
}

/// URLs of proxies, by the scheme of the request; an empty text is none.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For http.
    pub http: Option<String>,
    /// For https.
    pub https: Option<String>,
    /// Hosts that are reached directly, in `NO_PROXY`'s form.
    pub except: Option<String>,
}

impl Proxies {
    /// What is reached directly: what the user says, and this machine, as Go's programs have it.
    pub(crate) fn exceptions(&self) -> String {
        let given = self.except.as_deref().unwrap_or_default();
        format!("{given},localhost,127.0.0.0/8,::1")
    }
}

/// How long is waited for a peer.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the next byte, in either direction.
    pub idle: Duration,
    /// For the answer once all of a body was sent.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(15),
            idle: Duration::from_secs(60),
            answer: Duration::from_secs(600),
        }
    }
}

impl Options {
    /// Whether the user named this `host[:port]` as insecure.
    pub(crate) fn is_listed(&self, authority: &str) -> bool {
        let host = host_of(authority);
        self.insecure
            .iter()
            .any(|listed| listed == authority || listed == host)
    }

    /// Whether redirects, upload locations and token realms of a registry outside may lead to this `host[:port]` although it is in
    /// the own network: somebody named it.
    pub(crate) fn may_be_inside(&self, authority: &str) -> bool {
        self.is_listed(authority) || self.hosts.has_table(authority)
    }

    /// Whether any certificate will do for this `host[:port]`.
    pub(crate) fn is_unverified(&self, authority: &str) -> bool {
        is_loopback(authority) || self.is_listed(authority)
    }
}
