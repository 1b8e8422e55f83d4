//! What belongs into a sandbox's `/etc/hosts` and `/etc/resolv.conf`.

use std::fmt::Write;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;

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
    let mut text = String::new();
    match File::open("/etc/resolv.conf") {
        Ok(file) => file.take(RESOLV_CONF_BYTES_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(text)
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
}
