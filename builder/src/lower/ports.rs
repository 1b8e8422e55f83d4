//! The ports of `EXPOSE`.
//!
//! ```text
//! [[host address:][host port[-end]]:]port[-end][/protocol]
//! ```
//!
//! Only the container's ports count; what is said of the host is checked and dropped, as docker does.

use std::net::IpAddr;

/// Why a text names no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a port: {reason}")]
pub(super) struct PortError {
    text: String,
    reason: String,
}

/// The ports that a word names: `80/tcp`, several for a range.
pub(super) fn parse(text: &str) -> Result<Vec<String>, PortError> {
    read(text).map_err(|reason| PortError {
        text: text.to_owned(),
        reason,
    })
}

fn read(text: &str) -> Result<Vec<String>, String> {
    let (address, protocol) = match text.split_once('/') {
        // Nothing behind the slash is what nothing at all is, to docker.
        Some((address, protocol)) if !protocol.is_empty() => (address, protocol.to_lowercase()),
        Some((address, _)) => (address, "tcp".to_owned()),
        None => (text, "tcp".to_owned()),
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!(
            "the protocol is `tcp`, `udp` or `sctp`, not `{protocol}`"
        ));
    }
    let (host, container) = match address.rsplit_once(':') {
        Some((host, container)) => (Some(host), container),
        None => (None, address),
    };
    let (first, last) = range(container)?;
    if let Some(host) = host {
        let (ip, port) = match host.rsplit_once(':') {
            Some((ip, port)) => (ip, port),
            None if host.parse::<IpAddr>().is_ok() => (host, ""),
            None => ("", host),
        };
        let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
        let bare = bare.unwrap_or(ip);
        if !bare.is_empty() && bare.parse::<IpAddr>().is_err() {
            return Err(format!("`{bare}` is not an IP address"));
        }
        if !port.is_empty() {
            let (host_first, host_last) = range(port)?;
            if host_last - host_first != last - first && first != last {
                return Err("the two ranges differ in length".to_owned());
            }
        }
    }
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let first = port(first)?;
    let last = port(last)?;
    if last < first {
        return Err(format!("the range ends at {last}, before it begins"));
    }
    Ok((first, last))
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits => Ok(port),
        _ => Err("a port is a number from 0 to 65535".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads() {
        let check =
            |text: &str, expect: &[&str]| assert_eq!(parse(text).unwrap(), expect, "{text}");
        check("80", &["80/tcp"]);
        check("53/UDP", &["53/udp"]);
        check("8000-8002", &["8000/tcp", "8001/tcp", "8002/tcp"]);
        check("9/sctp", &["9/sctp"]);
        check("8080:80", &["80/tcp"]);
        check("127.0.0.1:8080:80", &["80/tcp"]);
        check("127.0.0.1::80", &["80/tcp"]);
        check("[::1]:8080:80/udp", &["80/udp"]);
        check("3000-3001:80-81", &["80/tcp", "81/tcp"]);
    }

    #[test]
    fn refuses() {
        let check = |text: &str, expect: &str| {
            let error = parse(text).unwrap_err();
            assert_eq!(error.reason, expect, "{text}");
        };
        check("", "a port is a number from 0 to 65535");
        check("http", "a port is a number from 0 to 65535");
        check("65536", "a port is a number from 0 to 65535");
        check("+80", "a port is a number from 0 to 65535");
        check(
            "80/http",
            "the protocol is `tcp`, `udp` or `sctp`, not `http`",
        );
        check("81-80", "the range ends at 80, before it begins");
        check("1.2.3.400:1:80", "`1.2.3.400` is not an IP address");
        check("1-3:80-81", "the two ranges differ in length");
    }
}
