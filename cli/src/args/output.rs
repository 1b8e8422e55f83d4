//! `--output type=TYPE[,dest=PATH]`, as `docker buildx build` writes it.

use std::path::PathBuf;
use std::str::FromStr;

/// Where the result of a build goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// In which form.
    pub kind: OutputKind,
    /// To where: a file, a folder for [`OutputKind::Local`], or `-` for stdout. None for [`OutputKind::Image`].
    pub dest: Option<PathBuf>,
}

/// The forms of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Kept in the store.
    Image,
    /// An OCI archive.
    Oci,
    /// A docker archive.
    Docker,
    /// The root file system as a tar.
    Tar,
    /// The root file system as a folder.
    Local,
}

impl FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Output, String> {
        // buildx reads a bare path as a folder to write to, and `-` as a tar on stdout.
        if !text.contains('=') {
            let kind = if text == "-" {
                OutputKind::Tar
            } else {
                OutputKind::Local
            };
            return Ok(Output {
                kind,
                dest: Some(PathBuf::from(text)),
            });
        }
        let (mut kind, mut dest) = (None, None);
        for field in text.split(',') {
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| format!("`{field}` has no value: expected `name=value`"))?;
            match name {
                "type" => kind = Some(parse_kind(value)?),
                "dest" if value.is_empty() => return Err("`dest` is empty".to_owned()),
                "dest" => dest = Some(PathBuf::from(value)),
                _ => return Err(format!("unknown field `{name}`: expected `type` or `dest`")),
            }
        }
        let kind = kind.ok_or("`type` is missing: expected image, oci, docker, tar or local")?;
        match (kind, &dest) {
            (OutputKind::Image, Some(_)) => Err("`dest` has no meaning with type=image".to_owned()),
            (OutputKind::Image, None) | (_, Some(_)) => Ok(Output { kind, dest }),
            (OutputKind::Local, None) => {
                Err("`dest` is missing: expected the folder to write to".to_owned())
            }
            // As buildx: an archive goes to stdout unless it is told otherwise.
            (_, None) => Ok(Output {
                kind,
                dest: Some(PathBuf::from("-")),
            }),
        }
    }
}

fn parse_kind(value: &str) -> Result<OutputKind, String> {
    Ok(match value {
        "image" => OutputKind::Image,
        "oci" => OutputKind::Oci,
        "docker" => OutputKind::Docker,
        "tar" => OutputKind::Tar,
        "local" => OutputKind::Local,
        _ => {
            return Err(format!(
                "unknown type `{value}`: expected image, oci, docker, tar or local"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs() {
        let check = |text: &str, kind: OutputKind, dest: Option<&str>| {
            let output: Output = text.parse().unwrap();
            assert_eq!((output.kind, output.dest), (kind, dest.map(PathBuf::from)));
        };
        check("type=image", OutputKind::Image, None);
        check("type=oci,dest=a.tar", OutputKind::Oci, Some("a.tar"));
        check("dest=a.tar,type=docker", OutputKind::Docker, Some("a.tar"));
        check("type=tar", OutputKind::Tar, Some("-"));
        check("type=local,dest=out", OutputKind::Local, Some("out"));
        check("out", OutputKind::Local, Some("out"));
        check("-", OutputKind::Tar, Some("-"));
    }

    #[test]
    fn mistakes_say_what_would_be_right() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Output>().unwrap_err(), expected);
        };
        check(
            "type=zip",
            "unknown type `zip`: expected image, oci, docker, tar or local",
        );
        check(
            "type=local",
            "`dest` is missing: expected the folder to write to",
        );
        check(
            "type=oci,x=1",
            "unknown field `x`: expected `type` or `dest`",
        );
        check(
            "type=oci,dest",
            "`dest` has no value: expected `name=value`",
        );
        check("type=image,dest=x", "`dest` has no meaning with type=image");
    }
}
