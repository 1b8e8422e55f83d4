//! What can go wrong in a build, by whose fault it is.

use runner::OutOfMemory;
use std::error::Error;
use std::io;
use std::path::PathBuf;

use store::oci::Reference;

use crate::dockerfile::{Diagnostic, Problems, SourceFile, Span};
use crate::transfer::TransferError;

/// Why a build gave no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A secret that is part of keys cannot be read.
    #[error(transparent)]
    Secret(Box<StepError>),
    /// The Dockerfile is wrong: every problem that was found, in the order of the file.
    #[error("{0}")]
    Dockerfile(Box<Problems>),
    /// Rules are violated, and the Dockerfile wants that to be an error.
    #[error("lint violation found for rules: {rules}")]
    Checks {
        /// The rules' names, each once, with commas between them.
        rules: String,
        /// Every violation.
        found: Vec<Problems>,
    },
    /// A step failed.
    #[error("{name} failed")]
    Step {
        /// The step's label.
        name: String,
        /// The instruction that it is of; none for what goes before the Dockerfile.
        place: Option<Box<Place>>,
        /// What happened.
        #[source]
        source: Box<StepError>,
    },
    /// A base image could not be had.
    #[error("cannot resolve the base image `{}`", .reference.familiar())]
    Base {
        /// The image.
        reference: Box<Reference>,
        /// Where the Dockerfile names it.
        place: Box<Place>,
        /// The stage that may have been meant: what is to be said of it.
        stage: Option<String>,
        /// What happened.
        #[source]
        source: Box<StepError>,
    },
    /// The context folder cannot be used.
    #[error("cannot use `{}` as the build context", .path.display())]
    Context {
        /// The folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: Box<crate::ops::context::ContextError>,
    },
    /// The URL of a git repository is wrong.
    #[error("invalid git URL `{url}`")]
    GitUrl {
        /// As it is shown.
        url: String,
        /// What is wrong.
        #[source]
        source: Box<crate::contexts::git_url::GitUrlError>,
    },
    /// Both come from one stream.
    #[error("the context and the Dockerfile cannot both be read from standard input")]
    StdinTwice,
    /// Standard input cannot be read.
    #[error("cannot read standard input")]
    Stdin(#[source] io::Error),
    /// There is a Dockerfile where a context was expected, and another one was asked for.
    #[error(
        "the build context turned out to be a Dockerfile, so there is no `{}` in it: leave out -f",
        .file.display()
    )]
    FileOfDockerfile {
        /// What `-f` said.
        file: PathBuf,
    },
    /// `SOURCE_DATE_EPOCH` means nothing.
    #[error(
        "SOURCE_DATE_EPOCH is `{value}`: expected seconds since 1970, `context`, or the name of a build context or of a stage that is one ADD of a URL on scratch"
    )]
    Epoch {
        /// Its value.
        value: String,
    },
    /// What `SOURCE_DATE_EPOCH` names cannot be had.
    #[error("cannot find out when the `{value}` of SOURCE_DATE_EPOCH was made")]
    EpochSource {
        /// Its value.
        value: String,
        /// What happened.
        #[source]
        source: Box<StepError>,
    },
    /// What `SOURCE_DATE_EPOCH` names has no time.
    #[error("the server of SOURCE_DATE_EPOCH's `{value}` does not say when it was changed last")]
    EpochUnknown {
        /// Its value.
        value: String,
    },
    /// There is no Dockerfile.
    #[error(transparent)]
    NoDockerfile(#[from] crate::contexts::dockerfile::DockerfileError),
    /// An instruction needs a context, but there is none.
    #[error(
        "the Dockerfile copies from the build context, but it came without one: name a folder instead of `-`"
    )]
    NoContext,
    /// Somebody pressed Ctrl-C.
    #[error("cancelled")]
    Cancelled,
    /// The result could not be put where it was asked for.
    #[error("cannot export the image")]
    Export(#[source] Box<ExportError>),
    /// The image is made, but its results could not be put into a shared cache.
    #[error("cannot write the cache {name}")]
    CacheExport {
        /// The cache.
        name: String,
        /// What happened.
        #[source]
        source: Box<crate::cache::shared::export::ExportCacheError>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// No pipe or thread to be had.
    #[error("cannot set up the build")]
    Setup(#[source] io::Error),
}

/// A span and its file.
#[derive(Clone, Debug)]
pub struct Place {
    /// The Dockerfile.
    pub file: SourceFile,
    /// The part of it.
    pub span: Span,
}

impl BuildError {
    /// What is shown of it with the lines of a Dockerfile that it is about; empty if it is about none.
    pub fn problems(&self) -> Vec<Problems> {
        let (place, diagnostic) = match self {
            BuildError::Dockerfile(problems) => return vec![problems.as_ref().clone()],
            BuildError::Checks { found, .. } => return found.clone(),
            BuildError::Step {
                place: Some(place),
                source,
                ..
            } => {
                let diagnostic = Diagnostic::error(place.span, source.to_string());
                let mut diagnostic = causes(diagnostic, source.source());
                diagnostic.help = source.advice();
                (place, diagnostic)
            }
            BuildError::Base {
                place,
                stage,
                source,
                ..
            } => {
                let diagnostic = Diagnostic::error(place.span, self.to_string());
                let mut diagnostic = causes(diagnostic, Some(source.as_ref()));
                diagnostic.help.clone_from(stage);
                (place, diagnostic)
            }
            _ => return Vec::new(),
        };
        vec![Problems::new(&place.file, vec![diagnostic])]
    }
}

/// Adds the causes, each unless what is said already ends with it.
fn causes(mut diagnostic: Diagnostic, mut cause: Option<&(dyn Error + 'static)>) -> Diagnostic {
    while let Some(error) = cause {
        let text = error.to_string();
        let last = diagnostic.notes.last().unwrap_or(&diagnostic.message);
        if !last.ends_with(&text) {
            diagnostic.notes.push(text);
        }
        cause = error.source();
    }
    diagnostic
}

/// Why one step failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The process ended with something other than 0.
    #[error(
        "process `{command}` did not complete successfully: exit code: {status}{}",
        out_of_memory(*.memory, *.limit)
    )]
    Process {
        /// The whole command.
        command: String,
        /// Its exit code; 128 and the signal's number for a signal.
        status: i32,
        /// Whether the kernel killed some of it for want of memory.
        memory: Option<OutOfMemory>,
        /// How much memory it was given, in bytes, if that was limited.
        limit: Option<u64>,
        /// The end of what it wrote.
        output: String,
    },
    /// The sandbox could not be made.
    #[error(transparent)]
    Sandbox(#[from] runner::SandboxError),
    /// `USER` names nobody.
    #[error(transparent)]
    User(#[from] runner::UserError),
    /// A secret that the step cannot do without was not given.
    #[error(
        "the step needs the secret `{id}`, which was not given: build with `--secret id={id},src=FILE` or `--secret id={id},env=NAME`"
    )]
    SecretMissing {
        /// What the Dockerfile calls it.
        id: String,
    },
    /// The file of a secret cannot be read.
    #[error("cannot read the secret `{id}` from `{}`", path.display())]
    SecretRead {
        /// What the Dockerfile calls it.
        id: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A secret is larger than any should be.
    #[error(
        "the secret `{id}` is larger than {} bytes",
        crate::ops::exec::SECRET_BYTES_MAX
    )]
    SecretTooLarge {
        /// What the Dockerfile calls it.
        id: String,
    },
    /// A secret cannot be a variable's value.
    #[error("the secret `{id}` is no text, so it cannot be the value of the variable `{name}`")]
    SecretNotText {
        /// What the Dockerfile calls it.
        id: String,
        /// The variable.
        name: String,
    },
    /// An agent that the step cannot do without was not given.
    #[error(
        "the step needs the SSH agent `{id}`, which was not given: build with `--ssh {id}` for that of SSH_AUTH_SOCK, or `--ssh {id}=SOCKET` or `--ssh {id}=KEYFILE`"
    )]
    SshMissing {
        /// What the Dockerfile calls it.
        id: String,
    },
    /// An agent could not be passed on.
    #[error("cannot pass on the SSH agent `{id}`: {what}")]
    Ssh {
        /// What the Dockerfile calls it.
        id: String,
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A device cannot be given to the step.
    #[error(transparent)]
    Device(#[from] crate::ops::exec::DeviceError),
    /// A copy failed.
    #[error(transparent)]
    File(#[from] crate::ops::file::FileOpError),
    /// What a copy selects could not be digested.
    #[error(transparent)]
    Digest(#[from] crate::cache::content_hash::ContentHashError),
    /// A snapshot could not be made or committed.
    #[error(transparent)]
    Snapshot(#[from] store::snapshot::SnapshotError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// An image could not be moved.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The host's name servers could not be read.
    #[error("cannot read the host's /etc/resolv.conf")]
    ResolvConf(#[source] io::Error),
    /// The mount points that lie below every root could not be made.
    #[error("cannot make the mount points that lie below every root")]
    Stubs(#[source] io::Error),
    /// The output of a process could not be read.
    #[error("cannot read the output of the process")]
    Output(#[source] io::Error),
    /// A layer is neither on this disk nor in any registry that is known to have had it.
    #[error(
        "layer {diff_id} of `{reference}` is neither here nor known to be in a registry: pull the image again"
    )]
    LayerLost {
        /// The layer.
        diff_id: store::oci::DiffId,
        /// The image.
        reference: Box<Reference>,
    },
    /// A layer that a shared cache has could not be kept here.
    #[error("cannot keep a layer of a shared cache")]
    SharedCache(#[source] Box<dyn Error + Send + Sync>),
    /// A URL could not be reached.
    #[error(transparent)]
    Remote(#[from] crate::remote::RemoteError),
    /// A tree could not be read.
    #[error(transparent)]
    Tree(#[from] crate::ops::tree::TreeError),
    /// git did not do what it was to do.
    #[error(transparent)]
    Git(Box<crate::ops::git::GitError>),
    /// A secret that is to be a header is none.
    #[error("the secret `{id}` cannot be sent: expected one line of text")]
    SecretNotHeader {
        /// Its id.
        id: String,
    },
    /// What was fetched is not what the Dockerfile says.
    #[error("digest mismatch for `{what}`: expected {expected}, found {actual}")]
    Checksum {
        /// The URL.
        what: String,
        /// The digest or commit that was expected.
        expected: String,
        /// The one that was found.
        actual: String,
    },
    /// A URL ends in what no file can be called.
    #[error("`{name}` cannot be the name of a file: name another destination than a folder")]
    FileName {
        /// The name.
        name: String,
    },
    /// A fetched file could not be put where it belongs.
    #[error("cannot {action} `{}`", .path.display())]
    SourceFile {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A context that is an archive is damaged, or would leave its folder.
    #[error("cannot unpack the build context from {what}")]
    ContextArchive {
        /// Where it comes from.
        what: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A repository without the folder that counts as its root.
    #[error("the repository has no folder `{subdir}`")]
    NoSubdir {
        /// The folder.
        subdir: String,
    },
    /// The tree of a context was removed while the build ran.
    #[error("the fetched build context is no longer in the store: build again")]
    TreeLost,
    /// Another step failed, or the build was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// An operation that has no result of its own was asked for one: a bug in lowering.
    #[error("this operation cannot be run on its own (a bug in longshore)")]
    NoKey,
}

impl StepError {
    /// Whether it is a step's command that failed, or is not there, and not what surrounds it.
    pub fn is_the_commands(&self) -> bool {
        match self {
            StepError::Process { .. } => true,
            StepError::Sandbox(error) => matches!(error.exit_code(), 126 | 127),
            _ => false,
        }
    }

    /// What may be done about it, where that can be told.
    fn advice(&self) -> Option<String> {
        match self {
            StepError::Process {
                memory: Some(_),
                limit: Some(_),
                ..
            } => Some("`--memory` says how much a step may use".to_owned()),
            StepError::Process {
                command, status, ..
            } => exit_advice(command, *status),
            StepError::Sandbox(runner::SandboxError::Start(
                runner::StartError::CommandNotFound { command, .. },
            )) if command.contains(' ') => Some(format!(
                "the first string is the program alone; for a shell: `RUN {command}`"
            )),
            _ => None,
        }
    }
}

fn out_of_memory(memory: Option<OutOfMemory>, limit: Option<u64>) -> String {
    match (memory, limit) {
        (None, _) => String::new(),
        (Some(OutOfMemory::Certain), Some(bytes)) => {
            format!(": out of memory: it reached its limit of {bytes} bytes")
        }
        (Some(OutOfMemory::Certain), None) => {
            ": out of memory: the kernel killed some of it".to_owned()
        }
        (Some(OutOfMemory::Likely), _) => {
            ": probably out of memory: the kernel killed something on this machine for want of it meanwhile".to_owned()
        }
    }
}

/// What an exit code says beside itself.
fn exit_advice(command: &str, status: i32) -> Option<String> {
    /// Exit codes from here on are signals that ended the process.
    const SIGNALS: i32 = 128;
    let script = command.strip_prefix("/bin/sh -c ").unwrap_or(command);
    Some(match status {
        127 if script.trim_start().starts_with('[') => {
            "what begins with `[` is a command like any other unless it is JSON: strings in \
             double quotes, commas between them, and none after the last"
                .to_owned()
        }
        126 => "126 is what a shell says of a file that cannot be executed: `chmod +x`, or \
                `COPY --chmod=755`"
            .to_owned(),
        127 => "127 is what a shell says of a command that is not there; or of a script that is, \
                when the interpreter in its first line is missing"
            .to_owned(),
        137 => "137 is SIGKILL: killed from outside, most often for want of memory".to_owned(),
        139 => "139 is SIGSEGV: the program crashed".to_owned(),
        143 => "143 is SIGTERM: something asked the process to end".to_owned(),
        _ if status > SIGNALS && status < SIGNALS + 32 => {
            format!("{status} is signal {}", status - SIGNALS)
        }
        _ => return None,
    })
}

/// Why a result could not be put where it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A file or folder could not be written.
    #[error("cannot write `{}`", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A push needs a name to push to.
    #[error("there is nothing to push to: name the image with `-t`")]
    NoTag,
    /// Several images, and a format for one.
    #[error(
        "an output of type `{kind}` is of one image, and this build makes {count}: name one `--platform`, or use `type=oci` or --push"
    )]
    SeveralPlatforms {
        /// The output's type.
        kind: &'static str,
        /// How many images there are.
        count: usize,
    },
    /// A result without files cannot be a folder or a tar.
    #[error("a layer is missing in the store: run `longshore prune` and build again")]
    LayerMissing,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// A snapshot could not be read.
    #[error(transparent)]
    Snapshot(#[from] store::snapshot::SnapshotError),
    /// The root file system could not be packed.
    #[error(transparent)]
    Pack(#[from] store::layer::tar::TarError),
    /// The root file system could not be unpacked.
    #[error(transparent)]
    Unpack(#[from] store::layer::apply::ApplyError),
    /// The push failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
}
