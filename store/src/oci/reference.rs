//! Image references: `[registry/]repository[:tag][@digest]`, with Docker Hub's defaults.
//!
//! ```text
//! reference  := name [":" tag] ["@" digest]
//! name       := [registry "/"] component ("/" component)*
//! registry   := a first part that has "." or ":" in it, is "localhost", or is "[v6 address]"[":" port]
//! component  := [a-z0-9]+ (("." | "_" | "__" | "-"+) [a-z0-9]+)*
//! tag        := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
//! ```

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// The registry that a name without one means.
pub const DOCKER_HUB: &str = "docker.io";

/// Registry, repository, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference `{text}`: {reason}")]
pub struct ReferenceError {
    /// The text.
    pub text: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Reference {
    /// Host and optional port; [`DOCKER_HUB`] where the text names none.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository; on Docker Hub a single word is below `library/`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` is filled in where the text has neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides where both are given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        check_tag(tag).map_err(|reason| ReferenceError {
            text: tag.to_owned(),
            reason,
        })?;
        Ok(Reference {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository at a digest, without a tag.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// `registry/repository`, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name as people write it: without `docker.io/` and `library/`, with tag and digest.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        if let Some(tag) = &self.tag {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = &self.digest {
            text = format!("{text}@{digest}");
        }
        text
    }

    /// The name as people write it, without tag and digest.
    pub fn familiar_name(&self) -> String {
        if self.registry != DOCKER_HUB {
            return self.name();
        }
        let official = self.repository.strip_prefix("library/");
        let short = official.filter(|word| !word.contains('/'));
        let short = short.unwrap_or(&self.repository);
        match short.split_once('/') {
            // What would be read as a registry's name needs one before it.
            Some((first, _)) if is_registry(first) => self.name(),
            _ => short.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse::<Digest>()
                    .map_err(|error| error.to_string())?,
            ),
        ),
        None => (text, None),
    };
    // A colon after the last slash starts the tag; one before it belongs to a port.
    let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_end..].find(':') {
        Some(colon) => {
            let tag = &rest[name_end + colon + 1..];
            check_tag(tag)?;
            (&rest[..name_end + colon], Some(tag.to_owned()))
        }
        None => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path.to_owned()),
        _ if name.contains('/') => (DOCKER_HUB, name.to_owned()),
        _ => (DOCKER_HUB, format!("library/{name}")),
    };
    let (registry, path) = match registry {
        "index.docker.io" | "registry-1.docker.io" | DOCKER_HUB if !path.contains('/') => {
            (DOCKER_HUB, format!("library/{path}"))
        }
        "index.docker.io" | "registry-1.docker.io" => (DOCKER_HUB, path),
        other => (other, path),
    };
    check_registry(registry)?;
    check_repository(&path)?;
    if registry.len() + 1 + path.len() > 255 {
        return Err("registry and repository have more than 255 characters".to_owned());
    }
    let tag = match (tag, digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag,
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository: path,
        tag,
        digest,
    })
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.starts_with('[')
}

fn check_registry(registry: &str) -> Result<(), String> {
    let bad = || format!("`{registry}` is not a registry: expected host[:port]");
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            match after.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None if after.is_empty() => ("v6", None),
                None => return Err(bad()),
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.split('.').all(label) {
        return Err(bad());
    }
    match port {
        Some(port) if port.is_empty() || port.parse::<u16>().is_err() => Err(bad()),
        _ => Ok(()),
    }
}

/// Checks a repository name by the distribution specification's grammar; the error says what is wrong.
pub fn check_repository(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("the repository is empty".to_owned());
    }
    for component in path.split('/') {
        check_component(component)
            .map_err(|why| format!("`{component}` in the repository {why}"))?;
    }
    Ok(())
}

fn check_component(component: &str) -> Result<(), &'static str> {
    let bytes = component.as_bytes();
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return Err("is empty");
    };
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("has upper-case letters: only lower case is allowed");
    }
    if !alphanumeric(first) || !alphanumeric(last) {
        return Err("must start and end with a letter or digit");
    }
    let mut rest = bytes;
    while let Some(position) = rest.iter().position(|&b| !alphanumeric(b)) {
        let run = &rest[position..];
        let length = run.iter().take_while(|&&b| !alphanumeric(b)).count();
        let separator = &run[..length];
        let allowed =
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-');
        if !allowed {
            return Err(
                "has characters other than a-z, 0-9 and the separators `.`, `_`, `__` and `-`",
            );
        }
        rest = &run[length..];
    }
    Ok(())
}

/// Checks a tag by the distribution specification's grammar; the error says what is wrong.
pub fn check_tag(tag: &str) -> Result<(), String> {
    let mut bytes = tag.bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = bytes.next().is_some_and(word);
    if !first || tag.len() > 128 || !bytes.all(|b| word(b) || b == b'.' || b == b'-') {
        return Err(format!(
            "`{tag}` is not a tag: expected 1 to 128 letters, digits, `_`, `.` or `-`, not starting with `.` or `-`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        let check = |text: &str, full: &str, familiar: &str| {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(full.parse::<Reference>().unwrap(), reference);
        };
        check("alpine", "docker.io/library/alpine:latest", "alpine:latest");
        check("a/b:1", "docker.io/a/b:1", "a/b:1");
        check("docker.io/x", "docker.io/library/x:latest", "x:latest");
        check("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest");
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        // What would be read as something else keeps its registry or its `library/`.
        let odd = "docker.io/docker.io/x:latest";
        check("docker.io/docker.io/x", odd, odd);
        let below = "docker.io/library/a/b:latest";
        check("library/a/b", below, "library/a/b:latest");
        check(
            "localhost:5000/x:t",
            "localhost:5000/x:t",
            "localhost:5000/x:t",
        );
        check(
            "127.0.0.1:5000/a/b",
            "127.0.0.1:5000/a/b:latest",
            "127.0.0.1:5000/a/b:latest",
        );
        check("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest");
        check(
            "my_host:5000/x",
            "my_host:5000/x:latest",
            "my_host:5000/x:latest",
        );
        let digest = Digest::of(b"");
        let text = format!("r.example/x@{digest}");
        check(&text, &text, &text);
        check(
            "a__b/c--d.e",
            "docker.io/a__b/c--d.e:latest",
            "a__b/c--d.e:latest",
        );
    }

    #[test]
    fn refuses() {
        for text in [
            "",
            "UPPER/x",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a..b",
            "a___b",
            "a:",
            "a:.x",
            "a@md5:00",
            "host:port/x",
            "host.x:99999/a",
            "[::1/x",
            "[zz]:1/x",
            "a b",
            "ä",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
        assert!(
            format!("a/{}", "x".repeat(260))
                .parse::<Reference>()
                .is_err()
        );
    }
}
