//! Of each library's error, whose fault it is and what to do about it: the one table.

use builder::cache::shared::CacheStoreError;
use builder::cache::shared::export::ExportCacheError;
use builder::contexts::dockerfile::DockerfileError;
use builder::debug::DebugError;
use builder::error::{BuildError, ExportError, StepError};
use builder::ops::git::GitError;
use builder::remote::RemoteError;
use builder::transfer::{AdoptError, LayerError, TransferError};
use registry_client::copy::CopyError;
use registry_client::{BlobReader, BucketError, ClientError, CredentialError, ErrorKind};
use runner::UserNsError;
use store::content::ContentError;
use store::content::archive::ArchiveError;
use store::images::ImageError;
use store::oci::ReferenceError;
use store::snapshot::SnapshotError;
use store::{StoreError, is_disk_full};

use super::{CliError, Kind};
use crate::config::ConfigError;

impl From<ReferenceError> for CliError {
    fn from(error: ReferenceError) -> CliError {
        CliError::new(Kind::Input, error)
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> CliError {
        let kind = match error {
            ImageError::Missing { .. }
            | ImageError::Ambiguous { .. }
            | ImageError::SeveralNames { .. }
            | ImageError::BadConfig { .. }
            | ImageError::BadManifest { .. }
            | ImageError::ConfigTooLarge { .. } => Kind::Input,
            _ => Kind::Environment,
        };
        CliError::new(kind, error)
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> CliError {
        match error {
            StoreError::Image(error) => error.into(),
            StoreError::Archive(error) => {
                let ours = matches!(
                    error,
                    ArchiveError::Write { .. } | ArchiveError::Read { .. }
                );
                let kind = if ours { Kind::Environment } else { Kind::Input };
                CliError::new(kind, error)
            }
            error => CliError::new(Kind::Environment, error),
        }
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> CliError {
        let kind = match error {
            ConfigError::Read { .. } => Kind::Environment,
            ConfigError::Wrong { .. } => Kind::Usage,
        };
        CliError::new(kind, error)
    }
}

impl From<DebugError> for CliError {
    fn from(error: DebugError) -> CliError {
        match error {
            DebugError::Store(error) => error.into(),
            DebugError::Setup(_) => CliError::new(Kind::Environment, error),
            DebugError::Step(ref source) => {
                let (kind, _) = step(source);
                CliError::new(kind, error)
            }
            error => CliError::new(Kind::Input, error),
        }
    }
}

impl From<UserNsError> for CliError {
    fn from(error: UserNsError) -> CliError {
        CliError::new(Kind::Environment, error).hint(
            "run as root, or allow user namespaces and give this user ids in /etc/subuid and /etc/subgid",
        )
    }
}

impl From<CredentialError> for CliError {
    fn from(error: CredentialError) -> CliError {
        CliError::new(Kind::Environment, error)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        blamed(client(&error), error)
    }
}

/// Of an error that is only lent, within another one: what it says is kept.
impl From<&ClientError> for CliError {
    fn from(error: &ClientError) -> CliError {
        let (kind, hint) = client(error);
        let told = CliError::new(kind, error.to_string());
        match hint {
            Some(hint) => told.hint(hint),
            None => told,
        }
    }
}

impl From<CopyError> for CliError {
    fn from(error: CopyError) -> CliError {
        blamed(copy(&error), error)
    }
}

impl From<AdoptError> for CliError {
    fn from(error: AdoptError) -> CliError {
        match error {
            AdoptError::Unfit(error) => error.into(),
            AdoptError::Store(error) => error.into(),
            error => CliError::new(Kind::Environment, error),
        }
    }
}

impl From<RemoteError> for CliError {
    fn from(error: RemoteError) -> CliError {
        match error {
            RemoteError::Client(error) => error.into(),
            RemoteError::Cancelled => CliError::new(Kind::Interrupted, error),
            error => CliError::new(Kind::Environment, error),
        }
    }
}

impl From<SnapshotError> for CliError {
    fn from(error: SnapshotError) -> CliError {
        CliError::new(Kind::Environment, error)
    }
}

impl From<TransferError> for CliError {
    fn from(error: TransferError) -> CliError {
        blamed(transfer(&error), error)
    }
}

impl From<StepError> for CliError {
    fn from(error: StepError) -> CliError {
        blamed(step(&error), error)
    }
}

impl From<BuildError> for CliError {
    fn from(error: BuildError) -> CliError {
        blamed(build(&error), error)
    }
}

/// Whose fault, and what to do about it.
type Blamed = (Kind, Option<String>);

fn blamed(blamed: Blamed, error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    let (kind, hint) = blamed;
    let error = CliError::new(kind, error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn build(error: &BuildError) -> Blamed {
    let kind = match error {
        BuildError::NoDockerfile(DockerfileError::Missing { names, .. }) if names.len() > 1 => {
            let hint = "name another file with -f, or another folder";
            return (Kind::Input, Some(hint.to_owned()));
        }
        BuildError::Step { source, .. } | BuildError::Base { source, .. } => return step(source),
        BuildError::Export(error) => return export(error),
        BuildError::CacheExport { source, .. } => return cache_export(source),
        BuildError::Cancelled => Kind::Interrupted,
        BuildError::EpochSource { source, .. } => return step(source),
        BuildError::Secret(source) => return step(source),
        BuildError::StdinTwice => Kind::Usage,
        BuildError::Store(_) | BuildError::Setup(_) | BuildError::Stdin(_) => Kind::Environment,
        _ => Kind::Input,
    };
    (kind, None)
}

fn step(error: &StepError) -> Blamed {
    let kind = match error {
        StepError::Transfer(error) => return transfer(error),
        StepError::Remote(error) => return source(error),
        StepError::Cancelled => Kind::Interrupted,
        StepError::Git(error) => match **error {
            GitError::NotInstalled { .. } | GitError::Run(_) => Kind::Environment,
            _ => Kind::Input,
        },
        StepError::Store(StoreError::Archive(error)) if !is_disk_full(error) => Kind::Input,
        StepError::Checksum { .. }
        | StepError::SecretNotHeader { .. }
        | StepError::FileName { .. }
        | StepError::NoSubdir { .. } => Kind::Input,
        StepError::ContextArchive { source, .. } if !is_disk_full(source.as_ref()) => Kind::Input,
        StepError::Process { .. }
        | StepError::User(_)
        | StepError::SecretMissing { .. }
        | StepError::SecretRead { .. }
        | StepError::SecretTooLarge { .. }
        | StepError::SecretNotText { .. }
        | StepError::SshMissing { .. }
        | StepError::Device(_)
        | StepError::Digest(_) => Kind::Input,
        // A command that is not in the image is the Dockerfile's mistake, all else this machine's.
        StepError::Sandbox(error) if error.exit_code() != 125 => Kind::Input,
        StepError::File(error) if !is_disk_full(error) => Kind::Input,
        _ => Kind::Environment,
    };
    (kind, None)
}

/// A file or repository that a Dockerfile or the command line names by its URL.
fn source(error: &RemoteError) -> Blamed {
    let kind = match error {
        RemoteError::Client(error) => match error.kind() {
            ErrorKind::Unreachable | ErrorKind::Tls | ErrorKind::Local => Kind::Environment,
            _ => Kind::Input,
        },
        _ => Kind::Environment,
    };
    (kind, None)
}

fn cache_export(error: &ExportCacheError) -> Blamed {
    match error {
        ExportCacheError::Cache(CacheStoreError::Remote(RemoteError::Client(error))) => {
            client(error)
        }
        ExportCacheError::Cache(CacheStoreError::Bucket(
            BucketError::Object { .. } | BucketError::Missing { .. },
        )) => (Kind::Registry, None),
        _ => (Kind::Environment, None),
    }
}

fn export(error: &ExportError) -> Blamed {
    match error {
        ExportError::Transfer(error) => transfer(error),
        ExportError::NoTag | ExportError::SeveralPlatforms { .. } => (Kind::Usage, None),
        _ => (Kind::Environment, None),
    }
}

fn transfer(error: &TransferError) -> Blamed {
    match error {
        TransferError::Remote(RemoteError::Client(error)) => client(error),
        TransferError::Remote(RemoteError::Cancelled) => (Kind::Interrupted, None),
        TransferError::Layer { source, .. } => match BlobReader::client_error(source) {
            Some(error) => client(error),
            // What came is no layer, or not the one that the image says.
            None if is_about_content(source) => (Kind::Registry, None),
            None => (Kind::Environment, None),
        },
        _ => (Kind::Environment, None),
    }
}

/// Whether a layer could not be kept because of what it is.
fn is_about_content(error: &LayerError) -> bool {
    match error {
        LayerError::Snapshot(
            SnapshotError::Apply(_)
            | SnapshotError::Stream { .. }
            | SnapshotError::WrongDiffId { .. },
        ) => !is_from_the_system(error),
        LayerError::Content(error) => matches!(
            error,
            ContentError::DigestMismatch { .. }
                | ContentError::SizeMismatch { .. }
                | ContentError::TooLarge { .. }
        ),
        _ => false,
    }
}

/// Whether an error or one of its causes is an answer of this machine's kernel.
fn is_from_the_system(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        let answered = io.is_some_and(|io| io.raw_os_error().is_some());
        if answered || error.is::<rustix::io::Errno>() {
            return true;
        }
        cause = match io.and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

fn copy(error: &CopyError) -> Blamed {
    let kind = match error {
        CopyError::Client(error) => return client(error),
        CopyError::File { source, .. } if is_what_was_given(source) => Kind::Input,
        CopyError::File { .. } | CopyError::Fs(_) | CopyError::Content(_) => Kind::Environment,
        CopyError::Archive(ArchiveError::Write { source })
            if source.kind() == std::io::ErrorKind::BrokenPipe =>
        {
            Kind::OutputClosed
        }
        CopyError::Archive(ArchiveError::Write { .. } | ArchiveError::Read { .. }) => {
            Kind::Environment
        }
        _ => Kind::Input,
    };
    (kind, None)
}

/// Whether a file that was named is not there, or ends before it should.
fn is_what_was_given(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | UnexpectedEof)
}

/// Whose fault a registry's error is, and what to do about it.
fn client(error: &ClientError) -> Blamed {
    let (kind, hint) = match error.kind() {
        ErrorKind::Unreachable => (
            Kind::Environment,
            Some(
                "is the registry running, and is its name right? `longshore registry serve` starts one here",
            ),
        ),
        ErrorKind::Tls => (
            Kind::Environment,
            Some("put its certificate authority into ~/.config/docker/certs.d/HOST:PORT/ca.crt"),
        ),
        ErrorKind::Local => (Kind::Environment, None),
        // What is there is not what was asked for, as with an archive.
        ErrorKind::NoPlatform => (Kind::Input, None),
        ErrorKind::Unauthorized => (Kind::Registry, Some("log in with `longshore login`")),
        ErrorKind::RateLimited => (
            Kind::Registry,
            Some("wait, or log in: users may ask more often"),
        ),
        _ => (Kind::Registry, None),
    };
    (kind, hint.map(str::to_owned))
}
