//! The operations, and the canonical encoding that their digests are taken of.

use store::oci::{Descriptor, DiffId, Digest, ImageConfig, Reference};

use super::exec::ExecOp;
use super::mode::ModeChange;
use crate::contexts::FetchedTree;
use crate::contexts::git_url::{GitTime, GitUrl};

/// What a vertex does. Every operation but [`Op::Context`] results in a root file system: a stack of layers.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The layers of an image. No inputs.
    Image(ImageOp),
    /// A local folder, read in place. No inputs; can only be copied from.
    Context(ContextOp),
    /// A tree that is in the store already: a main context that is no folder. No inputs.
    Tree(FetchedTree),
    /// A file behind a URL, alone in its layer. No inputs.
    Http(HttpOp),
    /// The files of a git commit, in one layer. No inputs.
    Git(GitOp),
    /// A process in a sandbox, adding one layer. See [`ExecOp`] for the inputs.
    Exec(ExecOp),
    /// Changes to files, adding one layer. See [`FileOp`] for the inputs.
    File(FileOp),
    /// The layers of input 1 upon those of input 0 (`COPY --link`): neither reads the other.
    Merge,
}

/// An image that has been resolved: manifest and configuration are known, its layers need not be here.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageOp {
    /// Where it comes from, with the tag that was asked for. Not part of the digest.
    pub reference: Reference,
    /// Digest of its manifest; absent for an image that was only ever built here. Not part of the digest.
    pub manifest: Option<Digest>,
    /// Its layers, oldest first: this is what the digest covers.
    pub diff_ids: Vec<DiffId>,
    /// The compressed layers, oldest first, where a manifest lists them (else empty). Not part of the digest.
    pub layers: Vec<Descriptor>,
    /// Its configuration. Not part of the digest: lowering has used what it says.
    pub config: Box<ImageConfig>,
}

/// A local folder. What of it counts is decided by the operations that select paths from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextOp {
    /// `context` for the main one, else the name given with `--build-context`.
    pub name: String,
}

/// A file to download. Its layer has it as `/NAME`, mode 0600, with the server's time of modification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOp {
    /// Where it is.
    pub url: String,
    /// Its name.
    pub name: String,
    /// What its bytes have to be; its result is then the same whatever the server says.
    pub checksum: Option<Digest>,
}

/// A commit to check out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitOp {
    /// Where it is, and which commit and folder of it.
    pub url: GitUrl,
    /// Whether `.git` stays.
    pub keep_git_dir: bool,
    /// Whether submodules are checked out too.
    pub submodules: bool,
}

/// Actions on files, done in order into one new layer.
///
/// Inputs: with `on_base`, input 0 is the root file system that is changed; the inputs that copies read from follow.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FileOp {
    /// Whether input 0 is the root file system below (false on scratch).
    pub on_base: bool,
    /// What to do, in order.
    pub actions: Vec<FileAction>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileAction {
    /// `COPY` and `ADD` of files.
    Copy(CopyAction),
    /// `WORKDIR`.
    Mkdir(MkdirAction),
}

/// `COPY` or `ADD`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CopyAction {
    /// What to copy, in the order written.
    pub sources: Vec<CopySource>,
    /// Here-documents, copied after the sources, in the order written.
    pub documents: Vec<Document>,
    /// Absolute destination; a trailing `/` (or `/.`) is kept, for it means a directory.
    pub dest: String,
    /// New owner of everything copied; absent keeps the source's (0:0 from a context).
    pub chown: Option<ChownSpec>,
    /// What becomes of the mode of everything copied.
    pub chmod: Option<ModeChange>,
}

/// Paths of one input.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CopySource {
    /// Which input of the vertex, counted from 0.
    pub input: usize,
    /// Path or pattern below the input's root, as written but for variables.
    pub pattern: String,
    /// What may not be copied: patterns of `.dockerignore`, in order. Empty for anything but a context.
    pub ignore: Vec<String>,
    /// `--exclude`: the same kind of patterns, relative to each directory that is copied, or to a file's own directory.
    pub exclude: Vec<String>,
    /// `--parents`: the directories above what is selected are copied too, from the root or from `/./` in the pattern on.
    pub parents: bool,
    /// Whether an archive is unpacked (`ADD`).
    pub unpack: bool,
}

/// A file whose content stands in the Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its name below a destination that is a directory; no slash in it.
    pub name: String,
    /// Its content.
    pub content: String,
}

/// `--chown`, resolved against the changed root file system's own `/etc/passwd` and `/etc/group` when done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChownSpec {
    /// `user[:group]`, names or numbers.
    pub text: String,
}

/// A directory to make, with its parents, if it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MkdirAction {
    /// Absolute path.
    pub path: String,
    /// Mode bits.
    pub mode: u32,
    /// Owner as `USER` has it; empty for root.
    pub owner: String,
}

/// Digests fields, each with its length before it, so that no two different operations encode alike.
///
/// Fields are gathered into long pieces, because those are hashed several times faster than short ones.
#[derive(Debug)]
pub struct Encoder {
    hasher: blake3::Hasher,
    pending: Vec<u8>,
}

/// A field that makes `pending` longer than this goes out with what waits; a longer one is never copied.
const PENDING_MAX: usize = 16 * 1024;

impl Encoder {
    /// An encoder for what `domain` names: equal fields have different digests in different domains.
    pub fn new(domain: &[u8]) -> Encoder {
        let mut pending = Vec::with_capacity(1024);
        pending.extend_from_slice(domain);
        Encoder {
            hasher: blake3::Hasher::new(),
            pending,
        }
    }

    /// The BLAKE3 digest of all that was written.
    pub fn finish(mut self) -> [u8; 32] {
        self.flush();
        *self.hasher.finalize().as_bytes()
    }

    /// A byte string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        if bytes.len() > PENDING_MAX {
            self.flush();
            self.hasher.update(bytes);
            return;
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > PENDING_MAX {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.pending);
        self.pending.clear();
    }

    /// A text.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// A number.
    pub fn number(&mut self, number: u64) {
        self.pending.extend_from_slice(&number.to_le_bytes());
    }

    /// The length of a list, before its items.
    pub fn list(&mut self, length: usize) {
        self.number(length as u64);
    }

    /// A list of texts.
    pub fn texts<T: AsRef<str>>(&mut self, texts: &[T]) {
        self.list(texts.len());
        for text in texts {
            self.text(text.as_ref());
        }
    }
}

impl Op {
    /// Whether its keys mean something in this store only, so that no other machine could find its result by them.
    pub fn is_private(&self) -> bool {
        matches!(self, Op::Exec(exec) if exec.keyed_secrets().next().is_some())
    }

    /// Encodes what decides the result: the kind first, then each field in the order of its declaration.
    pub fn encode(&self, sink: &mut Encoder) {
        match self {
            Op::Image(image) => {
                sink.text("image");
                sink.list(image.diff_ids.len());
                for diff_id in &image.diff_ids {
                    sink.text(&diff_id.to_string());
                }
            }
            Op::Context(context) => {
                sink.text("context");
                sink.text(&context.name);
            }
            Op::Tree(tree) => {
                sink.text("tree");
                sink.bytes(tree.layer.as_ref().map_or(&[], |layer| &layer.tree.0));
            }
            Op::Http(http) => {
                sink.text("http");
                sink.text(&http.url);
                sink.text(&http.name);
                let checksum = http.checksum.map(|digest| digest.to_string());
                sink.text(&checksum.unwrap_or_default());
            }
            Op::Git(git) => {
                sink.text("git");
                git.encode(sink);
            }
            Op::Exec(exec) => exec.encode(sink, true),
            Op::File(file) => {
                sink.text("file");
                sink.number(u64::from(file.on_base));
                sink.list(file.actions.len());
                for action in &file.actions {
                    action.encode(sink);
                }
            }
            Op::Merge => sink.text("merge"),
        }
    }
}

impl GitOp {
    fn encode(&self, sink: &mut Encoder) {
        let GitUrl {
            remote,
            reference,
            subdir,
            checksum,
            mtime,
            fetch_by_commit,
            // What the Dockerfile and the URL say together stands in the operation.
            keep_git_dir: _,
            submodules: _,
        } = &self.url;
        sink.text(remote);
        for text in [reference, subdir, checksum] {
            sink.text(text.as_deref().unwrap_or_default());
        }
        sink.number(u64::from(*mtime == GitTime::Commit));
        sink.number(u64::from(*fetch_by_commit));
        sink.number(u64::from(self.keep_git_dir));
        sink.number(u64::from(self.submodules));
    }
}

impl FileAction {
    pub(crate) fn encode(&self, sink: &mut Encoder) {
        match self {
            FileAction::Copy(copy) => {
                sink.text("copy");
                sink.list(copy.sources.len());
                for source in &copy.sources {
                    sink.number(source.input as u64);
                    sink.text(&source.pattern);
                    sink.texts(&source.ignore);
                    sink.texts(&source.exclude);
                    sink.number(u64::from(source.parents));
                    sink.number(u64::from(source.unpack));
                }
                copy.encode_target(sink);
            }
            FileAction::Mkdir(mkdir) => {
                sink.text("mkdir");
                sink.text(&mkdir.path);
                sink.number(u64::from(mkdir.mode));
                sink.text(&mkdir.owner);
            }
        }
    }
}

impl CopyAction {
    /// Encodes what is done with whatever the sources select.
    pub(crate) fn encode_target(&self, sink: &mut Encoder) {
        sink.list(self.documents.len());
        for document in &self.documents {
            sink.text(&document.name);
            sink.text(&document.content);
        }
        sink.text(&self.dest);
        sink.text(self.chown.as_ref().map_or("", |chown| &chown.text));
        sink.text(
            &self
                .chmod
                .as_ref()
                .map_or(String::new(), ModeChange::to_string),
        );
    }
}
