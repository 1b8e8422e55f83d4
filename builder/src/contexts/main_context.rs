//! The main context and its Dockerfile, wherever they are: found, and fetched where they are not on this disk.
//!
//! ```text
//! a folder            read in place
//! standard input      a tar, packed or not: unpacked into a layer; anything else: the Dockerfile, without a context
//! a URL               the same; asked for its state only if it was downloaded before
//! a git repository    its commit, as a layer
//! ```
//!
//! The Dockerfile is in the context, or where `-f` says: a file, a URL, standard input.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use store::Store;
use store::layer::apply::{Form, UnpackOptions, unpack_into};
use store::layer::compress::{Packing, decompressor};

use super::dockerfile::{self, DockerfileError, FoundDockerfile};
use super::git_url::{GitUrl, is_git_url, is_http_url};
use super::{FetchedTree, MainContext};
use crate::BuildEnvironment;
use crate::error::{BuildError, StepError};
use crate::graph::{GitOp, VertexIndex};
use crate::lower::{context_keeps_git_dir, file_name};
use crate::ops::source::{Fetching, Found, key};
use crate::ops::tree::{Kind, Tree};
use crate::ops::{git, http};
use crate::request::RunSettings;
use crate::solve::{ProgressEvent, ProgressSink};

/// How many bytes decide what a stream is: one block of a tar.
const LOOK_BYTES: usize = 512;

/// Where a tar header has its checksum.
const TAR_CHECKSUM: std::ops::Range<usize> = 148..156;

/// What stands for the context and for the Dockerfile in the display, which counts the vertices of a graph otherwise.
const CONTEXT: VertexIndex = VertexIndex(usize::MAX);
const DOCKERFILE: VertexIndex = VertexIndex(usize::MAX - 1);

/// What stands in the same way for other things that go before the steps, counted from 0.
pub(crate) fn before_the_steps(number: usize) -> VertexIndex {
    VertexIndex(DOCKERFILE.0 - 1 - number)
}

/// What the command line says of context and Dockerfile.
#[derive(Clone, Debug, Default)]
pub struct MainRequest {
    /// A folder, a URL, or `-`.
    pub context: PathBuf,
    /// `-f`: a file, a URL, or `-`.
    pub file: Option<PathBuf>,
    /// `--ignorefile`.
    pub ignore_file: Option<PathBuf>,
    /// Whether a repository keeps its `.git` (`BUILDKIT_CONTEXT_KEEP_GIT_DIR`), if its URL does not say.
    pub keep_git_dir: Option<String>,
    /// `--secret` and `--ssh`: what servers want to see.
    pub run: RunSettings,
}

/// A main context that can be built from.
#[derive(Clone, Debug)]
pub struct PreparedContext {
    /// How the Dockerfile is called in messages.
    pub dockerfile_name: String,
    /// The Dockerfile.
    pub dockerfile: String,
    /// The context, if the Dockerfile did not come alone.
    pub context: Option<MainContext>,
    /// Patterns of its ignore file.
    pub ignore: Vec<String>,
    /// When it was made, for `SOURCE_DATE_EPOCH=context`: the commit's time, the server's, or that of an archive's
    /// newest file, in seconds since 1970; none for a folder.
    pub made: Option<i64>,
}

/// What kind of context a text names. A folder of that name goes before everything.
enum Source {
    Stdin,
    Folder(PathBuf),
    Git(GitUrl),
    Http(String),
}

/// Finds the main context and reads its Dockerfile; `stdin` is read where either is `-`.
///
/// # Errors
/// Neither is what it is said to be, or they cannot be had.
pub fn prepare(
    environment: BuildEnvironment<'_>,
    request: &MainRequest,
    stdin: &mut dyn Read,
    progress: &Arc<dyn ProgressSink>,
) -> Result<PreparedContext, BuildError> {
    let cancelled = || environment.cancel.is_cancelled();
    let preparing = Preparing {
        fetching: Fetching {
            store: environment.store,
            remote: environment.remote,
            progress,
            settings: &request.run,
            cancelled: &cancelled,
            now: crate::now(),
        },
        request,
    };
    let from_stdin = request.file.as_deref() == Some(Path::new("-"));
    let prepared = match source(&request.context)? {
        Source::Stdin if from_stdin => Err(BuildError::StdinTwice),
        Source::Stdin => preparing.stdin(stdin),
        Source::Folder(folder) => preparing.folder(folder, stdin),
        Source::Git(url) => preparing.git(url, stdin),
        Source::Http(url) => preparing.http(&url, stdin),
    };
    prepared.map_err(|error| match cancelled() {
        true => BuildError::Cancelled,
        false => error,
    })
}

fn source(context: &Path) -> Result<Source, BuildError> {
    if context == Path::new("-") {
        return Ok(Source::Stdin);
    }
    let text = context.to_str().unwrap_or_default();
    if !context.is_dir() {
        if is_git_url(text) {
            let url = GitUrl::parse(text).map_err(|source| BuildError::GitUrl {
                url: super::git_url::without_password(text),
                source: Box::new(source),
            })?;
            return Ok(Source::Git(url));
        }
        if is_http_url(text) {
            return Ok(Source::Http(text.to_owned()));
        }
    }
    let cannot = |source| BuildError::Context {
        path: context.to_owned(),
        source: Box::new(crate::ops::context::ContextError {
            path: context.to_owned(),
            source,
        }),
    };
    match std::fs::metadata(context) {
        Ok(metadata) if metadata.is_dir() => Ok(Source::Folder(context.to_owned())),
        Ok(_) => Err(cannot(io::ErrorKind::NotADirectory.into())),
        Err(error) => Err(cannot(error)),
    }
}

struct Preparing<'a> {
    fetching: Fetching<'a>,
    request: &'a MainRequest,
}

impl Preparing<'_> {
    fn folder(&self, folder: PathBuf, stdin: &mut dyn Read) -> Result<PreparedContext, BuildError> {
        let ignore_file = self.request.ignore_file.as_deref();
        let found = match self.elsewhere(stdin)? {
            Some(found) => FoundDockerfile {
                ignore: dockerfile::ignore(&folder, None, ignore_file)?,
                ..found
            },
            None => dockerfile::in_folder(&folder, self.request.file.as_deref(), ignore_file)?,
        };
        Ok(prepared(found, Some(MainContext::Folder(folder)), None))
    }

    fn stdin(&self, stdin: &mut dyn Read) -> Result<PreparedContext, BuildError> {
        let (start, is_archive) = look(stdin).map_err(BuildError::Stdin)?;
        let mut whole = Cursor::new(start).chain(stdin);
        if !is_archive {
            let text = dockerfile::read_text(whole, Path::new("-"))?;
            return self.alone("Dockerfile", text);
        }
        let name = "[internal] load build context from standard input";
        let found = self.telling(CONTEXT, name, || self.unpack(&mut whole, "standard input"))?;
        self.tree(found.tree("standard input"), None, &mut io::empty())
    }

    fn http(&self, url: &str, stdin: &mut dyn Read) -> Result<PreparedContext, BuildError> {
        let own = key(&["http context", url]);
        let known = self.fetching.recall(&own).map_err(failed(url))?;
        if let Some(known) = known {
            let file = http::file(&self.fetching, url).map_err(failed(url))?;
            let same = http::is_unchanged(&self.fetching, &file, &known.validators());
            if same.map_err(failed(url))? {
                let name = format!("[internal] load build context {url}");
                self.fetching.progress.event(ProgressEvent::Cached {
                    vertex: CONTEXT,
                    name,
                });
                return self.tree(known.tree(url), known.modified, stdin);
            }
        }
        let name = format!("[internal] load build context {url}");
        let fetched = self.telling(CONTEXT, &name, || {
            let (temp, downloaded) = http::download(&self.fetching, url, &file_name(url))?;
            let unreadable = |source| StepError::SourceFile {
                action: "read",
                path: temp.path().to_owned(),
                source,
            };
            let mut file: &File = temp.file();
            file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
            let (start, is_archive) = look(&mut file).map_err(unreadable)?;
            let mut whole = Cursor::new(start).chain(file);
            if !is_archive {
                let text = dockerfile::read_text(whole, Path::new(url));
                return Ok(Err(text));
            }
            let mut found = self.unpack(&mut whole, url)?;
            http::describe(&mut found, &downloaded);
            found.unpacked = true;
            self.fetching.remember(&[own], &found)?;
            Ok(Ok(found))
        })?;
        match fetched {
            Ok(found) => self.tree(found.tree(url), found.modified, stdin),
            Err(text) => self.alone(url, text?),
        }
    }

    fn git(&self, url: GitUrl, stdin: &mut dyn Read) -> Result<PreparedContext, BuildError> {
        let shown = url.to_string();
        let op = GitOp {
            keep_git_dir: context_keeps_git_dir(&url, self.request.keep_git_dir.as_deref()),
            submodules: url.submodules.unwrap_or(true),
            url,
        };
        let name = format!("[internal] load git source {shown}");
        let resolved = git::resolve(&self.fetching, &op.url).map_err(failed(&shown))?;
        let known = git::recall(&self.fetching, &op, &resolved).map_err(failed(&shown))?;
        let found = match known {
            Some(found) => {
                self.fetching.progress.event(ProgressEvent::Cached {
                    vertex: CONTEXT,
                    name,
                });
                found
            }
            None => self.telling(CONTEXT, &name, || {
                git::fetch(&self.fetching, &op, &resolved)
            })?,
        };
        self.tree(found.tree(&shown), found.modified, stdin)
    }

    /// A Dockerfile that came without a context.
    fn alone(&self, name: &str, text: String) -> Result<PreparedContext, BuildError> {
        if let Some(file) = &self.request.file {
            return Err(BuildError::FileOfDockerfile { file: file.clone() });
        }
        let found = FoundDockerfile {
            name: name.to_owned(),
            text,
            ignore: Vec::new(),
        };
        Ok(prepared(found, None, None))
    }

    /// A context that was fetched, with the Dockerfile in it or elsewhere.
    fn tree(
        &self,
        tree: FetchedTree,
        made: Option<i64>,
        stdin: &mut dyn Read,
    ) -> Result<PreparedContext, BuildError> {
        let view = view(self.fetching.store, &tree)?;
        let root = Tree::RootFs(view.as_fd());
        let found = match self.elsewhere(stdin)? {
            Some(found) => found,
            None => dockerfile::in_tree(root, self.request.file.as_deref(), &tree.name)?,
        };
        let made = match made {
            Some(made) => Some(made),
            None => newest(root)?,
        };
        Ok(prepared(found, Some(MainContext::Tree(tree)), made))
    }

    /// The Dockerfile, if `-f` says that it is not in the context: a URL or standard input.
    fn elsewhere(&self, stdin: &mut dyn Read) -> Result<Option<FoundDockerfile>, BuildError> {
        let Some(file) = &self.request.file else {
            return Ok(None);
        };
        let text = file.to_str().unwrap_or_default();
        let found = |name: &str, text| FoundDockerfile {
            name: name.to_owned(),
            text,
            ignore: Vec::new(),
        };
        if text == "-" {
            let text = dockerfile::read_text(stdin, Path::new("-"))?;
            return Ok(Some(found("Dockerfile", text)));
        }
        if !is_http_url(text) {
            return Ok(None);
        }
        let name = format!("[internal] load build definition from {text}");
        let read = self.telling(DOCKERFILE, &name, || {
            let (temp, _) = http::download(&self.fetching, text, &file_name(text))?;
            let mut file: &File = temp.file();
            let rewound = file.seek(SeekFrom::Start(0));
            rewound.map_err(|source| StepError::SourceFile {
                action: "read",
                path: temp.path().to_owned(),
                source,
            })?;
            Ok(dockerfile::read_text(file, Path::new(text)))
        })?;
        Ok(Some(found(text, read?)))
    }

    /// Unpacks an archive into a layer, confined to it.
    fn unpack(&self, archive: &mut dyn Read, what: &str) -> Result<Found, StepError> {
        let stopped = Stoppable {
            inner: archive,
            cancelled: self.fetching.cancelled,
        };
        self.fetching.layer(|active| {
            let broken = |source: io::Error| StepError::ContextArchive {
                what: what.to_owned(),
                source: Box::new(source),
            };
            let tar = decompressor(stopped).map_err(broken)?;
            let upper = File::open(active.upper()).map_err(broken)?;
            let mut options = UnpackOptions::new(Form::Tree);
            options.keep_root = true;
            let unpacked = unpack_into(upper.as_fd(), tar, &options);
            if (self.fetching.cancelled)() {
                return Err(StepError::Cancelled);
            }
            unpacked.map_err(|source| StepError::ContextArchive {
                what: what.to_owned(),
                source: Box::new(source),
            })?;
            Ok(())
        })
    }

    /// Shows work as a step.
    fn telling<T>(
        &self,
        vertex: VertexIndex,
        name: &str,
        work: impl FnOnce() -> Result<T, StepError>,
    ) -> Result<T, BuildError> {
        let progress = self.fetching.progress;
        progress.event(ProgressEvent::Started {
            vertex,
            name: name.to_owned(),
            line: 0,
        });
        let started = Instant::now();
        let result = work();
        progress.event(match &result {
            Ok(_) => ProgressEvent::Done {
                vertex,
                elapsed: started.elapsed(),
            },
            Err(error) => ProgressEvent::Failed {
                vertex,
                message: error.to_string(),
            },
        });
        result.map_err(failed(name))
    }
}

fn failed(name: &str) -> impl FnOnce(StepError) -> BuildError {
    move |error| match error {
        StepError::Cancelled => BuildError::Cancelled,
        error => BuildError::Step {
            name: name.to_owned(),
            place: None,
            source: Box::new(error),
        },
    }
}

fn prepared(
    found: FoundDockerfile,
    context: Option<MainContext>,
    made: Option<i64>,
) -> PreparedContext {
    PreparedContext {
        dockerfile_name: found.name,
        dockerfile: found.text,
        context,
        ignore: found.ignore,
        made,
    }
}

fn view(store: &Store, tree: &FetchedTree) -> Result<store::snapshot::View, BuildError> {
    let layers: Vec<_> = tree.layer.iter().map(|layer| layer.id).collect();
    let view = store.snapshots().view(&layers);
    Ok(view.map_err(store::StoreError::from)?)
}

/// The time of the newest file, in seconds since 1970.
fn newest(tree: Tree<'_>) -> Result<Option<i64>, DockerfileError> {
    let mut newest = None;
    let mut folders = vec![Vec::new()];
    while let Some(folder) = folders.pop() {
        let listing = tree.list(&folder)?;
        for (index, entry) in listing.entries.iter().enumerate() {
            match entry.meta.kind {
                Kind::Dir => folders.push(listing.path_of(index)),
                _ => newest = newest.max(Some(entry.meta.mtime.seconds)),
            }
        }
    }
    Ok(newest)
}

/// Reads the beginning of a stream, and tells whether it is that of an archive.
fn look(stream: &mut dyn Read) -> io::Result<(Vec<u8>, bool)> {
    let mut start = Vec::with_capacity(LOOK_BYTES);
    stream.take(LOOK_BYTES as u64).read_to_end(&mut start)?;
    let is_archive = Packing::of(&start) != Packing::Plain || is_tar(&start);
    Ok((start, is_archive))
}

/// Whether this is a tar's first block: a header with its checksum, or the zeros of an empty one.
fn is_tar(block: &[u8]) -> bool {
    if block.len() < LOOK_BYTES {
        return false;
    }
    if block.iter().all(|&byte| byte == 0) {
        return true;
    }
    let digits: String = block[TAR_CHECKSUM]
        .iter()
        .map(|&byte| char::from(byte))
        .skip_while(|c| *c == ' ')
        .take_while(|c| c.is_digit(8))
        .collect();
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| match TAR_CHECKSUM.contains(&at) {
            true => u32::from(b' '),
            false => u32::from(byte),
        })
        .sum();
    u32::from_str_radix(&digits, 8).is_ok_and(|stated| stated == sum)
}

/// A reader that ends in an error when the build is to end.
struct Stoppable<'a> {
    inner: &'a mut dyn Read,
    cancelled: &'a dyn Fn() -> bool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_by_their_content() {
        let check = |bytes: &[u8], expect: bool| {
            let (start, is_archive) = look(&mut &*bytes).unwrap();
            assert_eq!(is_archive, expect, "{:?}", &start[..start.len().min(20)]);
        };
        check(b"FROM scratch\n", false);
        check(&[b'#'; 4096], false);
        check(b"", false);
        check(&[0x1f, 0x8b, 8, 0], true);
        check(b"BZh9", true);
        check(&[0; 1024], true);
        let mut header = [0; 512];
        header[..4].copy_from_slice(b"file");
        header[156] = b'0';
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum::<u32>() + 8 * 32;
        header[TAR_CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        check(&header, true);
        header[0] = b'x';
        check(&header, false);
    }
}
