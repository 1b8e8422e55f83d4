//! Proxies in front of the server: who a request is from when one of them passed it on; pure.
//!
//! Only what trusted proxies say counts, and of a list of hops only what they added themselves: it is read from its end, where
//! the nearest proxy wrote, and the first address that is no trusted proxy's is the client's. Which header they write is
//! configured, for they pass on the other as a client sent it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};

use crate::auth::Peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Addresses with a common beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u32,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// It is neither an address nor one with a length.
    #[error(
        "`{text}` is no network: expected an address, or one with its bits, such as 10.0.0.0/8"
    )]
    Malformed {
        /// The text.
        text: String,
    },
    /// The address has bits beyond the length.
    #[error("`{text}` names one address and a network: expected {meant} or {alone}")]
    Beyond {
        /// The text.
        text: String,
        /// The network that it is in.
        meant: String,
        /// The address.
        alone: IpAddr,
    },
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Network, NetworkError> {
        let malformed = || NetworkError::Malformed {
            text: text.to_owned(),
        };
        let (addr, bits) = match text.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| malformed())?;
        let most = if addr.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().map_err(|_| malformed()))?;
        if bits > most {
            return Err(malformed());
        }
        let first = start(addr, bits);
        if first != addr {
            return Err(NetworkError::Beyond {
                text: text.to_owned(),
                meant: format!("{first}/{bits}"),
                alone: addr,
            });
        }
        Ok(Network { first, bits })
    }
}

impl Network {
    /// Whether the address is in it. Of version 4 written as version 6 it is taken as version 4.
    fn has(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        addr.is_ipv4() == self.first.is_ipv4() && start(addr, self.bits) == self.first
    }
}

/// The first address of the network of so many bits that the address is in.
fn start(addr: IpAddr, bits: u32) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Ipv4Addr::from_bits(addr.to_bits() & mask).into()
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            Ipv6Addr::from_bits(addr.to_bits() & mask).into()
        }
    }
}

/// What proxies say whom they speak for in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`, with `X-Forwarded-Proto` and `X-Forwarded-Host`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// The proxies in front of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// Where they are; none trusts nobody.
    pub trusted: Vec<Network>,
    /// What they write.
    pub header: ProxyHeader,
}

/// What was said of one hop.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    addr: Option<IpAddr>,
    proto: Option<String>,
    host: Option<String>,
}

impl Proxies {
    /// Whether this is one of them.
    pub(crate) fn trusts(&self, addr: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.has(addr))
    }

    /// Who sent a request that came over this connection.
    pub(crate) fn client(&self, peer: Arc<Peer>, headers: &HeaderMap) -> Arc<Peer> {
        let said = if self.trusts(peer.addr) {
            match self.header {
                ProxyHeader::XForwardedFor => self.in_x_forwarded(headers),
                ProxyHeader::Forwarded => self.in_forwarded(headers),
            }
        } else if self.trusted.is_empty() {
            // Of the scheme anybody is believed then: it goes into nothing but an answer to who said it.
            Said {
                proto: first(headers, &X_FORWARDED_PROTO),
                ..Said::default()
            }
        } else {
            Said::default()
        };
        if said == Said::default() {
            return peer;
        }
        let proto = said.proto.as_deref();
        Arc::new(Peer {
            addr: said.addr.unwrap_or(peer.addr),
            tls: proto.map_or(peer.tls, |proto| proto.eq_ignore_ascii_case("https")),
            host: said.host,
            user: peer.user.clone(),
        })
    }

    fn in_x_forwarded(&self, headers: &HeaderMap) -> Said {
        let lines = headers.get_all(X_FORWARDED_FOR).iter();
        let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
        let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
        let mut client = None;
        for hop in hops {
            let Some(addr) = node(hop) else {
                break;
            };
            client = Some(addr);
            if !self.trusts(addr) {
                break;
            }
        }
        Said {
            addr: client,
            proto: first(headers, &X_FORWARDED_PROTO),
            host: first(headers, &X_FORWARDED_HOST),
        }
    }

    fn in_forwarded(&self, headers: &HeaderMap) -> Said {
        let lines = headers.get_all(http::header::FORWARDED).iter();
        let lines: Vec<&str> = lines.filter_map(|line| line.to_str().ok()).collect();
        let text = lines.join(",");
        let mut said = Said::default();
        for element in split(&text, ',').into_iter().rev() {
            let mut hop = Said::default();
            for pair in split(element, ';') {
                let Some((name, value)) = pair.split_once('=') else {
                    continue;
                };
                let value = unquoted(value.trim());
                match name.trim().to_ascii_lowercase().as_str() {
                    "for" => hop.addr = node(&value),
                    "proto" => hop.proto = Some(value),
                    "host" => hop.host = Some(value),
                    _ => {}
                }
            }
            // A hop without an address is one that hides it: what is before cannot be told from what a client made up.
            let Some(addr) = hop.addr else {
                break;
            };
            said = hop;
            if !self.trusts(addr) {
                break;
            }
        }
        said
    }
}

/// The first of a header's values.
fn first(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    let first = text.split(',').next()?.trim();
    (!first.is_empty()).then(|| first.to_owned())
}

/// The address of a node: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let addr: Result<IpAddr, _> = bare.unwrap_or(text).parse();
    let addr = addr.ok();
    addr.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

/// The parts of a text between separators that are not quoted.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if character == separator && !quoted => {
                parts.push(&text[begin..at]);
                begin = at + separator.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

/// What a quoted string says; other texts say themselves.
fn unquoted(text: &str) -> String {
    let inner = text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let Some(inner) = inner else {
        return text.to_owned();
    };
    let mut said = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        let escaped = (character == '\\').then(|| characters.next()).flatten();
        said.push(escaped.unwrap_or(character));
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(header: ProxyHeader) -> Proxies {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"];
        Proxies {
            trusted: trusted.iter().map(|text| text.parse().unwrap()).collect(),
            header,
        }
    }

    /// `address scheme host` of the client.
    fn told(proxies: &Proxies, peer: &str, headers: &[(&str, &str)]) -> String {
        let peer = Arc::new(Peer {
            addr: peer.parse().unwrap(),
            tls: false,
            host: None,
            user: None,
        });
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            map.append(name, value.parse().unwrap());
        }
        let client = proxies.client(peer, &map);
        let scheme = if client.tls { "https" } else { "http" };
        let host = client.host.as_deref().unwrap_or("-");
        format!("{} {scheme} {host}", client.addr)
    }

    #[test]
    fn networks_have_addresses() {
        let check = |network: &str, addr: &str, expect: bool| {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.has(addr.parse().unwrap()), expect, "{addr}");
        };
        check("10.0.0.0/8", "10.255.0.1", true);
        check("10.0.0.0/8", "::ffff:10.1.1.1", true);
        check("10.0.0.0/8", "11.0.0.0", false);
        check("10.0.0.0/8", "::1", false);
        check("0.0.0.0/0", "203.0.113.9", true);
        check("0.0.0.0/0", "::1", false);
        check("::/0", "2001:db8::1", true);
        check("192.0.2.1", "192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
        check("2001:db8:0:1::/64", "2001:db8:0:1:ffff::", true);
        check("2001:db8:0:1::/64", "2001:db8:0:2::", false);
        for wrong in ["", "x", "10.0.0.0/33", "10.0.0.0/-1", "::/129", "10.0.0/8"] {
            let error = wrong.parse::<Network>().unwrap_err();
            assert!(matches!(error, NetworkError::Malformed { .. }), "{wrong}");
        }
        assert_eq!(
            "10.1.2.3/8".parse::<Network>().unwrap_err().to_string(),
            "`10.1.2.3/8` names one address and a network: expected 10.0.0.0/8 or 10.1.2.3"
        );
    }

    #[test]
    fn the_last_that_is_no_proxy_is_the_client() {
        let proxies = proxies(ProxyHeader::XForwardedFor);
        let check = |peer: &str, headers: &[(&str, &str)], expect: &str| {
            assert_eq!(told(&proxies, peer, headers), expect, "{headers:?}");
        };
        let of = |value| [("x-forwarded-for", value)];
        check("10.0.0.1", &[], "10.0.0.1 http -");
        check("10.0.0.1", &of("192.0.2.7"), "192.0.2.7 http -");
        // What the client made up is before it.
        check(
            "10.0.0.1",
            &of("1.1.1.1, 192.0.2.7, 10.0.0.2"),
            "192.0.2.7 http -",
        );
        let lines = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "192.0.2.7:4711"),
        ];
        check("10.0.0.1", &lines, "192.0.2.7 http -");
        check("2001:db8::1", &of("[2001:db9::7]:80"), "2001:db9::7 http -");
        // Within the proxies' own network, and what nobody can read.
        check("10.0.0.1", &of("10.0.0.3"), "10.0.0.3 http -");
        check(
            "10.0.0.1",
            &of("1.1.1.1, unknown, 10.0.0.3"),
            "10.0.0.3 http -",
        );
        check("10.0.0.1", &of("rubbish"), "10.0.0.1 http -");
        let all = [
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "r.example, inner"),
            ("forwarded", "for=1.1.1.1;host=evil.example"),
        ];
        check("10.0.0.1", &all, "192.0.2.7 https r.example");
        // Strangers are believed nothing.
        check("203.0.113.9", &all, "203.0.113.9 http -");
    }

    #[test]
    fn forwarded_is_read_as_its_standard_writes_it() {
        let proxies = proxies(ProxyHeader::Forwarded);
        let check = |value: &str, expect: &str| {
            let headers = [("forwarded", value), ("x-forwarded-for", "1.1.1.1")];
            assert_eq!(told(&proxies, "10.0.0.1", &headers), expect, "{value}");
        };
        check(
            "for=192.0.2.7;proto=https;host=r.example",
            "192.0.2.7 https r.example",
        );
        check(
            "For=\"[2001:db9::7]:47011\" ; Proto=HTTPS",
            "2001:db9::7 https -",
        );
        check(
            "for=1.1.1.1;host=evil, for=192.0.2.7;host=\"a\\\"b\", for=10.0.0.2",
            "192.0.2.7 http a\"b",
        );
        check(
            "for=\"1.1.1.1, for=2.2.2.2\", for=192.0.2.7",
            "192.0.2.7 http -",
        );
        check("for=192.0.2.7, for=_hidden", "10.0.0.1 http -");
        check(
            "for=192.0.2.7, for=unknown, for=10.0.0.9",
            "10.0.0.9 http -",
        );
        check("=;;,for", "10.0.0.1 http -");
    }

    #[test]
    fn without_proxies_only_the_scheme_is_taken() {
        let headers = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
        ];
        let told = told(&Proxies::default(), "192.0.2.7", &headers);
        assert_eq!(told, "192.0.2.7 https -");
    }
}
