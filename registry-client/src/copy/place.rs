//! The names that places have on a command line.
//!
//! ```text
//! NAME, docker://NAME           an image in a registry
//! oci:DIR[:TAG | @DIGEST]       in an OCI layout that is a directory (also oci-layout:// and ocidir://)
//! oci-archive:FILE[:TAG | @DIGEST]      in an OCI layout that is a tar
//! docker-archive:FILE[:NAME]    in what `docker save` writes
//! store:NAME                    in longshore's own store
//! ```
//!
//! These are skopeo's words, so that lines carry over. A name with no such word before it is an image in a registry.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use store::oci::{Digest, Reference};

use super::CopyError;

/// Where an image is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a registry.
    Registry(Reference),
    /// In a directory that is an OCI layout.
    Layout {
        /// The directory.
        path: PathBuf,
        /// Which of its images.
        pick: Pick,
    },
    /// In a tar that is an OCI layout.
    OciArchive {
        /// The file; `-` is stdout.
        path: PathBuf,
        /// Which of its images.
        pick: Pick,
    },
    /// In a tar as `docker save` writes it.
    DockerArchive {
        /// The file; `-` is stdout.
        path: PathBuf,
        /// Which of its images.
        pick: Pick,
    },
    /// In the store of this machine: a name, or the ID of an image.
    Store(String),
}

/// Which of the images of a layout or archive is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The only one.
    Only,
    /// The one of this name or tag.
    Name(String),
    /// The one whose manifest or index has this digest.
    Digest(Digest),
}

/// What skopeo knows and longshore does not, with what to do instead.
const OTHERS: [(&str, &str); 5] = [
    (
        "containers-storage:",
        "push from podman to `oci-archive:FILE`, or use `store:NAME`",
    ),
    (
        "docker-daemon:",
        "save with `docker save`, then use `docker-archive:FILE`",
    ),
    ("dir:", "use `oci:DIR`"),
    ("sif:", "use `oci-archive:FILE`"),
    (
        "tarball:",
        "make an image of a tar with `longshore import`, then use `store:NAME`",
    ),
];

impl FromStr for Place {
    type Err = CopyError;

    fn from_str(text: &str) -> Result<Place, CopyError> {
        let strip = |words: &[&str]| words.iter().find_map(|word| text.strip_prefix(word));
        if let Some(name) = strip(&["docker://"]) {
            return Ok(Place::Registry(name.parse()?));
        }
        if let Some(rest) = strip(&["oci-archive:"]) {
            let (path, pick) = path_and_pick(text, rest)?;
            return Ok(Place::OciArchive { path, pick });
        }
        if let Some(rest) = strip(&["oci-layout://", "ocidir://", "oci:"]) {
            let (path, pick) = path_and_pick(text, rest)?;
            return Ok(Place::Layout { path, pick });
        }
        if let Some(rest) = strip(&["docker-archive:"]) {
            let (path, pick) = path_and_pick(text, rest)?;
            return Ok(Place::DockerArchive { path, pick });
        }
        if let Some(name) = strip(&["store:"]) {
            return Ok(Place::Store(name.to_owned()));
        }
        if let Some((word, instead)) = OTHERS.iter().find(|(word, _)| text.starts_with(word)) {
            return Err(CopyError::Place {
                text: text.to_owned(),
                reason: format!("`{word}` is not supported: {instead}"),
            });
        }
        Ok(Place::Registry(text.parse()?))
    }
}

fn path_and_pick(text: &str, rest: &str) -> Result<(PathBuf, Pick), CopyError> {
    let bad = |reason: &str| CopyError::Place {
        text: text.to_owned(),
        reason: reason.to_owned(),
    };
    let (path, pick) = match (rest.rsplit_once('@'), rest.split_once(':')) {
        // A colon belongs to the digest where an `@` stands before it.
        (Some((path, digest)), _) if !path.contains(':') && digest.contains(':') => {
            let digest = digest
                .parse()
                .map_err(|error: store::oci::DigestError| bad(&error.to_string()))?;
            (path, Pick::Digest(digest))
        }
        (_, Some((path, name))) if !name.is_empty() => (path, Pick::Name(name.to_owned())),
        (_, Some(_)) => return Err(bad("a name is missing after the last `:`")),
        (_, None) => (rest, Pick::Only),
    };
    if path.is_empty() {
        return Err(bad("a path is missing"));
    }
    Ok((PathBuf::from(path), pick))
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pick::Only => Ok(()),
            Pick::Name(name) => write!(f, ":{name}"),
            Pick::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Registry(reference) => f.write_str(&reference.familiar()),
            Place::Layout { path, pick } => write!(f, "oci:{}{pick}", path.display()),
            Place::OciArchive { path, pick } => write!(f, "oci-archive:{}{pick}", path.display()),
            Place::DockerArchive { path, pick } => {
                write!(f, "docker-archive:{}{pick}", path.display())
            }
            Place::Store(name) => write!(f, "store:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let check = |text: &str, expected: &str| {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string(), expected, "{text}");
            assert_eq!(place.to_string().parse::<Place>().unwrap(), place, "{text}");
        };
        let digest = Digest::of(b"x");
        check("alpine", "alpine:latest");
        check("docker://localhost:5000/a:1", "localhost:5000/a:1");
        check("oci:dir", "oci:dir");
        check("oci:/a/b:1.2", "oci:/a/b:1.2");
        check("ocidir://a:t", "oci:a:t");
        check(&format!("oci:a@{digest}"), &format!("oci:a@{digest}"));
        check("oci-archive:a.tar:x", "oci-archive:a.tar:x");
        check("docker-archive:a.tar:b/c:1", "docker-archive:a.tar:b/c:1");
        check("docker-archive:a.tar", "docker-archive:a.tar");
        check("store:web", "store:web");
    }

    #[test]
    fn what_is_no_place_is_said() {
        let check = |text: &str, part: &str| {
            let error = text.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        };
        check("containers-storage:x", "not supported");
        check("dir:/x", "use `oci:DIR`");
        check("oci:", "a path is missing");
        check("oci:a:", "a name is missing");
        check("oci:a@sha256:12", "hexadecimal");
        check("UPPER", "invalid image reference");
    }
}
