//! `--output type=TYPE[,dest=PATH][,compression=KIND…]`, as `docker buildx build` writes it.

use std::path::PathBuf;
use std::str::FromStr;

use store::layer::compress::{Compression, CompressionChoice};

/// Where the result of a build goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// In which form.
    pub kind: OutputKind,
    /// To where: a file, a folder for [`OutputKind::Local`], or `-` for stdout. None for [`OutputKind::Image`].
    pub dest: Option<PathBuf>,
    /// How layers are compressed that leave the store, if that was said.
    pub layers: Option<CompressionChoice>,
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
                layers: None,
            });
        }
        let (mut kind, mut dest) = (None, None);
        let mut layers = Layers::default();
        for field in text.split(',') {
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| format!("`{field}` has no value: expected `name=value`"))?;
            match name {
                "type" => kind = Some(parse_kind(value)?),
                "dest" if value.is_empty() => return Err("`dest` is empty".to_owned()),
                "dest" => dest = Some(PathBuf::from(value)),
                _ if layers.take(name, value)? => {}
                _ => {
                    return Err(format!(
                        "unknown field `{name}`: expected `type`, `dest`, `compression`, `compression-level` or `force-compression`"
                    ));
                }
            }
        }
        let layers = layers.choice()?;
        let kind = kind.ok_or("`type` is missing: expected image, oci, docker, tar or local")?;
        if layers.is_some() && !matches!(kind, OutputKind::Image | OutputKind::Oci) {
            return Err("`compression` has a meaning with type=image and type=oci only".to_owned());
        }
        match (kind, &dest) {
            (OutputKind::Image, Some(_)) => Err("`dest` has no meaning with type=image".to_owned()),
            (OutputKind::Image, None) | (_, Some(_)) => Ok(Output { kind, dest, layers }),
            (OutputKind::Local, None) => {
                Err("`dest` is missing: expected the folder to write to".to_owned())
            }
            // As buildx: an archive goes to stdout unless it is told otherwise.
            (_, None) => Ok(Output {
                kind,
                dest: Some(PathBuf::from("-")),
                layers,
            }),
        }
    }
}

/// The fields about layers.
#[derive(Default)]
struct Layers {
    compression: Option<Compression>,
    level: Option<u8>,
    force: bool,
}

impl Layers {
    /// Takes a field; `false` if it is none of these.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "compression" => {
                self.compression = Some(value.parse().map_err(|error| format!("{error}"))?);
            }
            "compression-level" => {
                let level = value.parse();
                let level = level.map_err(|_| "`compression-level` is no number of a level")?;
                self.level = Some(level);
            }
            "force-compression" => {
                self.force = match value {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => {
                        return Err("`force-compression` is neither `true` nor `false`".to_owned());
                    }
                };
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn choice(self) -> Result<Option<CompressionChoice>, String> {
        if self.compression.is_none() && self.level.is_none() && !self.force {
            return Ok(None);
        }
        let compression = self.compression.unwrap_or(Compression::GZIP);
        let compression = match self.level {
            Some(level) => compression.at_level(level).map_err(|e| e.to_string())?,
            None => compression,
        };
        Ok(Some(CompressionChoice {
            compression,
            force: self.force,
        }))
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
    fn layers() {
        let check = |text: &str, expected: Option<CompressionChoice>| {
            assert_eq!(text.parse::<Output>().unwrap().layers, expected, "{text}");
        };
        let new = |compression| {
            Some(CompressionChoice {
                compression,
                force: false,
            })
        };
        check("type=image", None);
        check("type=image,compression=estargz", new(Compression::ESTARGZ));
        check(
            "type=oci,compression-level=9,dest=a,compression=zstd",
            new(Compression::Zstd(9)),
        );
        check(
            "type=image,force-compression=true",
            Some(CompressionChoice::all(Compression::GZIP)),
        );
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
            "unknown field `x`: expected `type`, `dest`, `compression`, `compression-level` or `force-compression`",
        );
        check(
            "type=oci,dest",
            "`dest` has no value: expected `name=value`",
        );
        check("type=image,dest=x", "`dest` has no meaning with type=image");
        check(
            "type=tar,compression=gzip",
            "`compression` has a meaning with type=image and type=oci only",
        );
        check(
            "type=image,compression=gzip,compression-level=13",
            "gzip has no compression level `13`: expected 1 to 12",
        );
        check(
            "type=image,force-compression=yes",
            "`force-compression` is neither `true` nor `false`",
        );
    }
}
