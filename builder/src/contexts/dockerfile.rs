//! Finding the Dockerfile, in a folder or in a tree that was fetched, and the ignore file that goes with it.
//!
//! Without `-f` it is the first of [`NAMES`] that is there. Its own ignore file (`NAME.dockerignore`) goes before the
//! folder's; trees that were fetched have none.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::dockerfile::ignore::read_patterns;
use crate::dockerfile::suggest::nearest;
use crate::ops::tree::{Kind, Place, Tree, TreeError, open_dir, open_entry};

/// What a Dockerfile is called, in the order in which the names are tried.
pub const NAMES: [&str; 3] = ["Dockerfile", "Containerfile", "dockerfile"];

/// What a folder's ignore file is called, in the order in which the names are tried.
const IGNORE_NAMES: [&str; 2] = [".containerignore", ".dockerignore"];

/// Largest Dockerfile or ignore file that is read, in bytes: a thousand times what people write.
const TEXT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why there is no Dockerfile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DockerfileError {
    /// None of the usual names is there, or not the one that was asked for.
    #[error("cannot find a Dockerfile in {place}: {}", tried(.names, .near))]
    Missing {
        /// The folder or repository, for people.
        place: String,
        /// The names that were tried.
        names: Vec<String>,
        /// A name that is nearly one of them.
        near: Option<String>,
    },
    /// It cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is longer than any Dockerfile.
    #[error("`{path}` has more than {} MiB: no Dockerfile is that long", TEXT_BYTES_MAX >> 20)]
    TooLong {
        /// The file.
        path: String,
    },
    /// It is not text.
    #[error("`{path}` is not UTF-8: byte 0x{byte:02x} in line {line}, column {column}")]
    NotText {
        /// The file.
        path: String,
        /// The first wrong byte.
        byte: u8,
        /// Its line, from 1.
        line: usize,
        /// Its column in characters, from 1.
        column: usize,
    },
    /// A tree cannot be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

fn tried(names: &[String], near: &Option<String>) -> String {
    let names = format!("there is no `{}`", names.join("`, `"));
    match near {
        Some(near) => format!("{names}; did you mean `{near}`?"),
        None => names,
    }
}

/// A Dockerfile, and what its main context must not show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDockerfile {
    /// How it is called in messages.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Patterns of the ignore file.
    pub ignore: Vec<String>,
}

/// Finds the Dockerfile of a folder. A relative `file` is looked for from the working directory, then from the folder.
///
/// # Errors
/// It is not there, cannot be read, or is no text.
pub fn in_folder(
    folder: &Path,
    file: Option<&Path>,
    ignore_file: Option<&Path>,
) -> Result<FoundDockerfile, DockerfileError> {
    let (path, opened) = match file {
        Some(file) => match open(file)? {
            Some(opened) => (file.to_owned(), opened),
            None if file.is_relative() => {
                let path = folder.join(file);
                let opened = open(&path)?;
                (path, opened.ok_or_else(|| missing(file))?)
            }
            None => return Err(missing(file)),
        },
        None => NAMES
            .iter()
            .find_map(|name| {
                let path = folder.join(name);
                open(&path).transpose().map(|opened| (path, opened))
            })
            .map(|(path, opened)| Ok::<_, DockerfileError>((path, opened?)))
            .transpose()?
            .ok_or_else(|| DockerfileError::Missing {
                place: format!("`{}`", folder.display()),
                names: NAMES.iter().map(|&name| name.to_owned()).collect(),
                near: near(folder, NAMES[0]),
            })?,
    };
    let text = read_text(opened, &path)?;
    let mut own = path.clone().into_os_string();
    own.push(".dockerignore");
    Ok(FoundDockerfile {
        name: path.display().to_string(),
        text,
        ignore: ignore(folder, Some(Path::new(&own)), ignore_file)?,
    })
}

/// The patterns for a folder: those of the file that was asked for, else of the Dockerfile's own, else of the folder's.
///
/// # Errors
/// A file is there but cannot be read, or the one that was asked for is not there.
pub fn ignore(
    folder: &Path,
    own: Option<&Path>,
    asked: Option<&Path>,
) -> Result<Vec<String>, DockerfileError> {
    if let Some(path) = asked {
        let file = File::open(path).map_err(|source| unreadable(path, source))?;
        return Ok(read_patterns(&read_text(file, path)?));
    }
    let beside = IGNORE_NAMES.iter().map(|name| folder.join(name));
    for path in own.map(Path::to_owned).into_iter().chain(beside) {
        if let Some(file) = open(&path)? {
            return Ok(read_patterns(&read_text(file, &path)?));
        }
    }
    Ok(Vec::new())
}

/// Finds the Dockerfile of a tree that was fetched; links are followed inside it.
///
/// # Errors
/// It is not there, or is no text.
pub(crate) fn in_tree(
    tree: Tree<'_>,
    file: Option<&Path>,
    place: &str,
) -> Result<FoundDockerfile, DockerfileError> {
    let asked = file.map(|file| file.to_string_lossy().into_owned());
    let names: Vec<String> = match &asked {
        Some(name) => vec![name.clone()],
        None => NAMES.iter().map(|&name| name.to_owned()).collect(),
    };
    for name in &names {
        if let Some(Place::Entry(listing, index)) = tree.resolve(name.as_bytes())?
            && listing.entries[index].meta.kind == Kind::File
        {
            let dir = open_dir(tree.root(), &listing.path)?;
            let file = File::from(open_entry(&dir, &listing, index)?);
            return Ok(FoundDockerfile {
                name: name.clone(),
                text: read_text(file, Path::new(name))?,
                ignore: Vec::new(),
            });
        }
    }
    let listing = tree.list(b"")?;
    let found: Vec<String> = listing
        .entries
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
        .collect();
    Err(DockerfileError::Missing {
        place: place.to_owned(),
        near: nearest(&names[0], found.iter().map(String::as_str)).map(str::to_owned),
        names,
    })
}

/// Reads a text, up to a limit.
///
/// # Errors
/// It cannot be read, is too long, or is no text.
pub fn read_text(file: impl Read, path: &Path) -> Result<String, DockerfileError> {
    let mut bytes = Vec::new();
    file.take(TEXT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| unreadable(path, source))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(DockerfileError::TooLong {
            path: path.display().to_string(),
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let (bytes, at) = (error.as_bytes(), error.utf8_error().valid_up_to());
        let before = String::from_utf8_lossy(&bytes[..at]);
        let last_line = before.rsplit('\n').next().unwrap_or_default();
        DockerfileError::NotText {
            path: path.display().to_string(),
            byte: bytes[at],
            line: before.split('\n').count(),
            column: last_line.chars().count() + 1,
        }
    })
}

fn open(path: &Path) -> Result<Option<File>, DockerfileError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(unreadable(path, source)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn unreadable(path: &Path, source: io::Error) -> DockerfileError {
    DockerfileError::Unreadable {
        path: path.to_owned(),
        source,
    }
}

fn missing(file: &Path) -> DockerfileError {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let folder = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DockerfileError::Missing {
        place: format!("`{}`", folder.display()),
        names: vec![name.clone().into_owned()],
        near: near(folder, &name),
    }
}

/// A name in a folder that is nearly `name`.
fn near(folder: &Path, name: &str) -> Option<String> {
    let entries = std::fs::read_dir(folder).ok()?;
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    nearest(name, names.iter().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ignore_files() {
        let check = |files: &[&str], file: Option<&str>, expect: &str| {
            let dir = tempfile::tempdir().unwrap();
            for name in files {
                let path = dir.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
            }
            let found = in_folder(dir.path(), file.map(Path::new), None);
            let said = match found {
                Ok(found) => format!("{} but {:?}", found.text, found.ignore),
                Err(error) => error.to_string(),
            };
            let said = said.replace(&dir.path().display().to_string(), "DIR");
            assert_eq!(said, expect, "{files:?} {file:?}");
        };
        check(&["Dockerfile", "Containerfile"], None, "Dockerfile but []");
        check(
            &["dockerfile", "Containerfile"],
            None,
            "Containerfile but []",
        );
        check(&["dockerfile"], None, "dockerfile but []");
        check(
            &["Dockerfile", ".dockerignore"],
            None,
            "Dockerfile but [\".dockerignore\"]",
        );
        check(
            &["Dockerfile", ".dockerignore", ".containerignore"],
            None,
            "Dockerfile but [\".containerignore\"]",
        );
        check(
            &["Dockerfile", ".dockerignore", "Dockerfile.dockerignore"],
            None,
            "Dockerfile but [\"Dockerfile.dockerignore\"]",
        );
        check(
            &["a/b.df", "a/b.df.dockerignore", ".dockerignore"],
            Some("a/b.df"),
            "a/b.df but [\"a/b.df.dockerignore\"]",
        );
        check(
            &["Dokerfile"],
            None,
            "cannot find a Dockerfile in `DIR`: there is no `Dockerfile`, `Containerfile`, `dockerfile`; did you mean `Dokerfile`?",
        );
        check(
            &[],
            Some("no/such"),
            "cannot find a Dockerfile in `no`: there is no `such`",
        );
    }

    #[test]
    fn what_is_no_text() {
        let check = |bytes: &[u8], expect: &str| {
            let said = match read_text(bytes, Path::new("f")) {
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            assert_eq!(said, expect);
        };
        check(b"FROM a", "FROM a");
        check(b"ab\xff", "`f` is not UTF-8: byte 0xff in line 1, column 3");
        check(
            "FROM a\n# ä".as_bytes().split_last().unwrap().1,
            "`f` is not UTF-8: byte 0xc3 in line 2, column 3",
        );
        let long = vec![b' '; 17 << 20];
        check(
            &long,
            "`f` has more than 16 MiB: no Dockerfile is that long",
        );
    }
}
