//! What belongs into a sandbox's `/etc/hosts` and `/etc/resolv.conf`.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

/// The kernel's and libc's own limits are far below.
const RESOLV_CONF_BYTES_MAX: u64 = 1 << 20;

/// `/etc/hosts` with the loopback names, this host's name, and `extra` names with their addresses.
pub fn hosts_text(hostname: &str, extra: &[(String, IpAddr)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    let own = [(hostname.to_owned(), IpAddr::from([127, 0, 0, 1]))];
    for (name, address) in extra.iter().chain(&own) {
        writeln!(text, "{address}\t{name}").expect("writing to a string cannot fail");
    }
    text
}

/// The host's own `/etc/resolv.conf`, for processes on the host's network; empty if it has none.
///
/// # Errors
///
/// Whatever reading it fails with, and bytes that are not UTF-8.
pub fn resolv_conf_text() -> io::Result<String> {
    read_text(Path::new("/etc/resolv.conf"))
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(RESOLV_CONF_BYTES_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(text)
}

/// What is left of [`resolv_conf_text`] for processes on a network of their own: without the servers that only this machine reaches,
/// in their place those that systemd-resolved asks, where it is the one that listens here.
///
/// # Errors
///
/// As of [`resolv_conf_text`].
pub fn outside_resolv_conf_text() -> io::Result<String> {
    let text = without_local_servers(&resolv_conf_text()?);
    if nameservers(&text).next().is_some() {
        return Ok(text);
    }
    let asked = read_text(Path::new("/run/systemd/resolve/resolv.conf"))?;
    Ok(match nameservers(&asked).next() {
        Some(_) => without_local_servers(&asked),
        None => text,
    })
}

/// A `resolv.conf` that asks `server`, and otherwise looks up as `text` says.
pub fn asking(text: &str, server: IpAddr) -> String {
    let others = text.lines().filter(|line| {
        let word = line.split_whitespace().next();
        matches!(word, Some("search" | "domain" | "options"))
    });
    std::iter::once(format!("nameserver {server}\n"))
        .chain(others.map(|line| format!("{line}\n")))
        .collect()
}

fn without_local_servers(text: &str) -> String {
    let is_local = |line: &str| nameservers(line).any(|server| server.is_loopback());
    let lines = text.lines().filter(|line| !is_local(line));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The servers that a `resolv.conf` names.
pub fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver")
            .then(|| words.next())??
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_the_sandbox_last() {
        let text = hosts_text("box", &[("db".into(), "10.0.0.2".parse().unwrap())]);
        let last: Vec<&str> = text.lines().rev().take(2).collect();
        assert_eq!(last, ["127.0.0.1\tbox", "10.0.0.2\tdb"]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn servers_of_this_machine_alone_are_left_out() {
        let text = "# made up\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\nsearch example\n";
        assert_eq!(
            without_local_servers(text),
            "# made up\nnameserver 192.0.2.53\nsearch example\n"
        );
        assert_eq!(
            asking(text, "127.0.0.11".parse().unwrap()),
            "nameserver 127.0.0.11\nsearch example\n"
        );
        assert_eq!(
            nameservers("nameserver\nnameserver x\nnameservers 1.2.3.4").count(),
            0
        );
    }
}
