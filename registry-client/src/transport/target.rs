//! Where an answer may send us: pure rules for redirects, upload locations and token realms.

use std::net::IpAddr;

use reqwest::Url;
use reqwest::header::HeaderValue;

/// Host and port of a URL, as in a registry's name; the scheme's own port is left out.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether two URLs have the same scheme, host and port: only then may one see the other's credentials.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && authority(a) == authority(b)
}

/// Whether a registry's host (with or without port) is this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host.eq_ignore_ascii_case("localhost") || ip(host).is_some_and(|address| address.is_loopback())
}

/// The host of `host[:port]`.
pub(crate) fn host_of(authority: &str) -> &str {
    if authority.starts_with('[') {
        return authority.split_inclusive(']').next().unwrap_or(authority);
    }
    authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host)
}

fn ip(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let address: IpAddr = bare.unwrap_or(host).parse().ok()?;
    // `::ffff:127.0.0.1` is 127.0.0.1.
    Some(address.to_canonical())
}

/// Whether a host names, by its literal address, something that only this machine or its network can reach.
fn is_internal(host: &str) -> bool {
    if host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost") {
        return true;
    }
    ip(host).is_some_and(is_internal_address)
}

/// Whether an address is of this machine or its network.
pub(crate) fn is_internal_address(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_broadcast()
                // Carrier-grade NAT, where clouds keep services of their own.
                || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64)
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}

/// Whether an answer from `from` may send us to `to`; `inside` says of a `host[:port]` whether the user named it, so that it may be
/// in our network. What names lead to is looked at where they are resolved ([`super::names`]).
pub(crate) fn check(
    from: &Url,
    to: &Url,
    inside: impl Fn(&str) -> bool,
) -> Result<(), &'static str> {
    match to.scheme() {
        "https" => {}
        "http" if from.scheme() == "https" => {
            return Err(if from.host_str() == to.host_str() {
                "it leaves https for http (is the registry behind a proxy that sends no X-Forwarded-Proto?)"
            } else {
                "it leaves https for http"
            });
        }
        "http" => {}
        _ => return Err("it is neither http nor https"),
    }
    let host = to.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err("it names no host");
    }
    let inward = from.host_str() != Some(host)
        && is_internal(host)
        && !is_internal(from.host_str().unwrap_or_default());
    if inward && !inside(&authority(to)) {
        return Err("it points from outside into this machine or its network");
    }
    Ok(())
}

/// Whether credentials may be sent to a token server that a registry reached at `registry` names; `listed` says of a `host[:port]`
/// whether it may be reached in the clear, `inside` is as for [`check`].
pub(crate) fn check_realm(
    registry: &Url,
    realm: &Url,
    inside: impl Fn(&str) -> bool,
    listed: impl Fn(&str) -> bool,
) -> Result<(), &'static str> {
    check(registry, realm, inside)?;
    let clear = realm.scheme() == "http";
    let known = realm.host_str() == registry.host_str()
        || is_loopback(&authority(realm))
        || listed(&authority(realm));
    if clear && !known {
        return Err("credentials would cross the network in the clear to another host");
    }
    Ok(())
}

/// A `Location`, absolute or relative to the request's URL.
pub(crate) fn locate(base: &Url, location: Option<&HeaderValue>) -> Result<Url, &'static str> {
    let text = location
        .ok_or("the answer has no Location")?
        .to_str()
        .map_err(|_| "the answer's Location is not text")?;
    let mut url = base
        .join(text)
        .map_err(|_| "the answer's Location is not a URL")?;
    // User and password in a URL would become credentials for whoever is there.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the answer's Location carries a user");
    }
    url.set_fragment(None);
    Ok(url)
}

/// The page after `page`, which a link of its answer names: on the same registry, and another one.
pub(crate) fn next_page(page: &Url, link: &str) -> Option<Url> {
    let mut next = page.join(link).ok()?;
    let elsewhere = authority(&next) != authority(page)
        || !next.username().is_empty()
        || next.password().is_some();
    if elsewhere || next.query() == page.query() {
        return None;
    }
    // Behind a proxy that ends TLS, registries write http into links.
    if next.scheme() != page.scheme() {
        next.set_scheme(page.scheme()).ok()?;
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn targets() {
        let check = |from: &str, to: &str, allowed: bool| {
            let verdict = check(&url(from), &url(to), |host| host == "10.9.9.9:9000");
            assert_eq!(verdict.is_ok(), allowed, "{from} to {to}: {verdict:?}");
        };
        check("https://r.example/v2/", "https://cdn.example/x", true);
        check("http://r.example/v2/", "http://cdn.example/x", true);
        check("http://r.example/v2/", "https://cdn.example/x", true);
        check("https://r.example/v2/", "http://r.example/x", false);
        check("https://r.example/v2/", "ftp://r.example/x", false);
        check("https://r.example/v2/", "file:///etc/passwd", false);
        check("https://r.example/v2/", "https://169.254.169.254/x", false);
        check("https://r.example/v2/", "https://127.0.0.1:8443/x", false);
        check("https://r.example/v2/", "https://localhost/x", false);
        check("https://r.example/v2/", "https://a.localhost/x", false);
        check("https://r.example/v2/", "https://[::1]/x", false);
        check(
            "https://r.example/v2/",
            "https://[::ffff:127.0.0.1]/x",
            false,
        );
        check("https://r.example/v2/", "https://2130706433/x", false);
        check("https://r.example/v2/", "https://100.100.100.200/x", false);
        check("https://r.example/v2/", "https://10.0.0.1/x", false);
        check("https://r.example/v2/", "https://10.9.9.9:9000/x", true);
        check("http://10.0.0.1/v2/", "http://10.0.0.2/x", true);
        check("http://127.0.0.1:5000/v2/", "http://127.0.0.1:9000/x", true);
        check("https://8.8.8.8/v2/", "https://8.8.8.8/x", true);
    }

    #[test]
    fn realms() {
        let check = |registry: &str, realm: &str, allowed: bool| {
            let listed = |host: &str| host == "auth.lan:5001";
            let verdict = check_realm(&url(registry), &url(realm), listed, listed);
            assert_eq!(
                verdict.is_ok(),
                allowed,
                "{registry} to {realm}: {verdict:?}"
            );
        };
        check("https://r.example/v2/", "https://auth.example/token", true);
        check("https://r.example/v2/", "http://auth.example/token", false);
        check("http://r.lan:5000/v2/", "http://auth.lan/token", false);
        check("http://r.lan:5000/v2/", "http://auth.lan:5001/token", true);
        check("http://r.lan:5000/v2/", "http://r.lan:5001/token", true);
        check(
            "http://localhost:5000/v2/",
            "http://127.0.0.1:5001/token",
            true,
        );
        check("https://r.example/v2/", "https://192.168.0.1/token", false);
    }

    #[test]
    fn locations() {
        let base = url("https://r.example/v2/a/blobs/uploads/");
        let check = |text: &str, expect: Result<&str, &str>| {
            let value = HeaderValue::from_str(text).unwrap();
            let got = locate(&base, Some(&value)).map(|url| url.to_string());
            assert_eq!(got, expect.map(str::to_owned), "{text}");
        };
        check(
            "/v2/a/blobs/uploads/1?s=x",
            Ok("https://r.example/v2/a/blobs/uploads/1?s=x"),
        );
        check("1", Ok("https://r.example/v2/a/blobs/uploads/1"));
        check("//o.example/1#f", Ok("https://o.example/1"));
        check(
            "https://u:p@r.example/",
            Err("the answer's Location carries a user"),
        );
        check("http://[", Err("the answer's Location is not a URL"));
        assert_eq!(locate(&base, None), Err("the answer has no Location"));
    }

    #[test]
    fn loopback_names() {
        for name in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]:5000",
            "[::1]",
        ] {
            assert!(is_loopback(name), "{name}");
        }
        for name in [
            "localhost.example",
            "r.example:5000",
            "128.0.0.1",
            "[::2]:1",
        ] {
            assert!(!is_loopback(name), "{name}");
        }
    }
}
