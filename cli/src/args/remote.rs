//! `longshore remote …`: images where they lie, in registries, layouts and archives.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use store::oci::Platform;

use super::CompressionArgs;
use crate::template::Format;

mod edit;
mod judge;

pub use edit::{
    AppendArgs, FlattenArgs, IndexAnnotateArgs, IndexAppendArgs, IndexCommand, IndexCreateArgs,
    MutateArgs, RebaseArgs, RemoteExportArgs, ResultArgs, SyncArgs, SyncTransport,
};

pub use judge::{DiffType, RemoteDiffArgs, ValidateArgs};

/// `longshore remote`.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Copy an image between registries, layouts, archives and the store
    #[command(visible_alias = "cp")]
    Copy(CopyArgs),
    /// Copy the tags of a repository to another one
    Sync(SyncArgs),
    /// Change how containers of an image run, and what is said of it
    #[command(visible_alias = "mod")]
    Mutate(Box<MutateArgs>),
    /// Put layers on top of an image
    Append(AppendArgs),
    /// Put an image on another base
    Rebase(RebaseArgs),
    /// Make one layer of all of an image's
    Flatten(FlattenArgs),
    /// Write the root file system of an image as a tar
    Export(RemoteExportArgs),
    /// Several images as one
    #[command(
        subcommand,
        after_help = "Example:\n  longshore remote index create localhost:5000/web localhost:5000/web:amd64 localhost:5000/web:arm64"
    )]
    Index(IndexCommand),
    /// List the repositories of a registry, or the tags of a repository
    #[command(visible_alias = "catalog")]
    Ls(LsArgs),
    /// List the tags of a repository
    #[command(visible_alias = "list-tags")]
    Tags(TagsArgs),
    /// Print the digest that a name stands for
    Digest(DigestArgs),
    /// Print the configuration of an image
    Config(OneImageArgs),
    /// Show what is known of an image, as JSON
    Inspect(RemoteInspectArgs),
    /// Show what tells two images apart: configuration, layers, packages, files, sizes
    Diff(RemoteDiffArgs),
    /// Check that an image is what it says: every digest, size and type
    Validate(ValidateArgs),
    /// Manifests and indexes as they are
    #[command(
        subcommand,
        after_help = "Example:\n  longshore remote manifest get localhost:5000/web"
    )]
    Manifest(ManifestCommand),
    /// Single blobs
    #[command(
        subcommand,
        after_help = "Example:\n  longshore remote blob head localhost:5000/web@sha256:…"
    )]
    Blob(BlobCommand),
    /// Give an image in a registry further tags
    Tag(RemoteTagArgs),
    /// Remove tags, or manifests with all their tags, from a registry
    #[command(visible_alias = "delete")]
    Rm(RemoteRmArgs),
    /// Show what is attached to an image
    #[command(visible_aliases = ["discover", "tree"])]
    Referrers(ReferrersArgs),
    /// Attach files to an image in a registry
    Attach(RemoteAttachArgs),
    /// Look for repositories
    Search(SearchArgs),
}

impl RemoteCommand {
    /// Whether a place that it is given is the store.
    pub fn uses_the_store(&self) -> bool {
        let store = |text: &str| text.starts_with("store:");
        match self {
            RemoteCommand::Copy(args) => args.uses_the_store(),
            RemoteCommand::Digest(args) => store(&args.one.image),
            RemoteCommand::Inspect(args) => store(&args.one.image),
            RemoteCommand::Config(args) => store(&args.image),
            RemoteCommand::Manifest(ManifestCommand::Get(args)) => store(&args.image),
            RemoteCommand::Mutate(args) => args.result.uses_the_store(Some(&args.image)),
            RemoteCommand::Append(args) => args.result.uses_the_store(args.base.as_deref()),
            RemoteCommand::Flatten(args) => args.result.uses_the_store(Some(&args.image)),
            RemoteCommand::Rebase(args) => {
                let bases = [&args.old_base, &args.new_base];
                args.result.uses_the_store(Some(&args.image)) || bases.iter().any(|b| store(b))
            }
            RemoteCommand::Export(args) => store(&args.image),
            RemoteCommand::Diff(args) => store(&args.from) || store(&args.to),
            RemoteCommand::Validate(args) => args.image.as_deref().is_some_and(store),
            RemoteCommand::Index(IndexCommand::Create(args)) => {
                store(&args.target) || args.images.iter().any(|image| store(image))
            }
            RemoteCommand::Index(IndexCommand::Append(args)) => {
                args.images.iter().any(|image| store(image))
            }
            _ => false,
        }
    }
}

/// Whom to believe.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// Reach the registries that are named by plain http, or by https with any certificate
    #[arg(long)]
    pub insecure: bool,
    /// `--tls-verify=false` is podman's and skopeo's word for `--insecure`
    #[arg(
        long,
        hide = true,
        value_name = "BOOL",
        require_equals = true,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub tls_verify: Option<bool>,
    /// Certificates for them, in place of those of certs.d: *.crt of authorities, *.cert with *.key of ours
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
}

impl TlsArgs {
    /// Whether the registries that are named need not prove who they are.
    pub fn is_insecure(&self) -> bool {
        self.insecure || self.tls_verify == Some(false)
    }
}

/// How registries are reached.
#[derive(Args, Clone, Debug, Default)]
pub struct ReachArgs {
    /// Whom to believe.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Look for credentials in this file alone
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Credentials for the registries that are named; others on this machine can see them
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
}

/// How the two sides of a copy are reached, where that differs: skopeo's words, for either side what [`ReachArgs`] has for both.
#[derive(Args, Clone, Debug, Default)]
pub struct SidesArgs {
    /// As --tls-verify
    #[arg(long, hide = true, value_name = "BOOL", require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    pub src_tls_verify: Option<bool>,
    /// As --tls-verify
    #[arg(long, hide = true, value_name = "BOOL", require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    pub dest_tls_verify: Option<bool>,
    /// As --cert-dir
    #[arg(long, hide = true, value_name = "DIR")]
    pub src_cert_dir: Option<PathBuf>,
    /// As --cert-dir
    #[arg(long, hide = true, value_name = "DIR")]
    pub dest_cert_dir: Option<PathBuf>,
    /// As --authfile
    #[arg(long, hide = true, value_name = "FILE")]
    pub src_authfile: Option<PathBuf>,
    /// As --authfile
    #[arg(long, hide = true, value_name = "FILE")]
    pub dest_authfile: Option<PathBuf>,
    /// As --creds
    #[arg(long, hide = true, value_name = "USER:PASSWORD")]
    pub src_creds: Option<String>,
    /// As --creds
    #[arg(long, hide = true, value_name = "USER:PASSWORD")]
    pub dest_creds: Option<String>,
}

impl SidesArgs {
    /// How what is copied is reached.
    pub fn source(&self) -> ReachArgs {
        ReachArgs {
            tls: TlsArgs {
                insecure: false,
                tls_verify: self.src_tls_verify,
                cert_dir: self.src_cert_dir.clone(),
            },
            authfile: self.src_authfile.clone(),
            creds: self.src_creds.clone(),
        }
    }

    /// How the place that it goes to is reached.
    pub fn target(&self) -> ReachArgs {
        ReachArgs {
            tls: TlsArgs {
                insecure: false,
                tls_verify: self.dest_tls_verify,
                cert_dir: self.dest_cert_dir.clone(),
            },
            authfile: self.dest_authfile.clone(),
            creds: self.dest_creds.clone(),
        }
    }
}

/// How what a command tells is printed.
#[derive(Args, Clone, Debug, Default)]
pub struct TellArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print what a template makes of the fields of --json, such as '{{.digest}}'
    #[arg(long, value_name = "TEMPLATE", value_parser = tell_format, conflicts_with = "json")]
    pub format: Option<Format>,
}

/// `--format`; regctl has words for a manifest as it is.
fn tell_format(text: &str) -> Result<Format, String> {
    match text {
        "raw" | "rawBody" | "raw-body" | "body" => Ok(Format::Table),
        text => Format::parse(text).map_err(|error| error.to_string()),
    }
}

/// What commands take that look at something in a registry, or change it.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// How it is printed.
    #[command(flatten)]
    pub tell: TellArgs,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// Which platforms of an image are meant.
#[derive(Args, Clone, Debug, Default)]
pub struct PlatformsArgs {
    /// Only these platforms [default: all]; may be repeated
    ///
    /// One alone gives its image without the index around it, several an index of those.
    #[arg(
        long = "platform",
        value_name = "OS/ARCH[/VARIANT]",
        value_delimiter = ',',
        value_parser = super::platform
    )]
    pub platforms: Vec<Platform>,
}

/// `longshore remote copy` and `longshore copy`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore copy registry.example/web:1.2 localhost:5000/web:1.2
  longshore copy --platform linux/arm64 registry.example/web oci-archive:web.tar
  longshore copy --referrers oci:layout:1.2 registry.example/web:1.2
  longshore copy docker-archive:saved.tar store:web

A place is NAME (in a registry; also docker://NAME), oci:DIR[:TAG|@DIGEST],
oci-archive:FILE[:TAG|@DIGEST], docker-archive:FILE[:NAME] or store:NAME. Nothing is kept on the way.
See docs/reference/remote.md.")]
pub struct CopyArgs {
    /// Where it is
    #[arg(value_name = "FROM")]
    pub source: String,
    /// Where it goes
    #[arg(value_name = "TO")]
    pub target: String,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformsArgs,
    /// Accepted for skopeo's sake: all platforms are copied if none is named
    #[arg(short, long, conflicts_with = "platforms")]
    pub all: bool,
    /// Copy what is about the image, too: signatures, attestations, anything attached
    #[arg(long)]
    pub referrers: bool,
    /// Copy the tags, too, that cosign makes of digests (sha256-….sig, .att, .sbom)
    #[arg(long)]
    pub digest_tags: bool,
    /// Copy layers, too, that are not meant to be distributed
    #[arg(long, visible_alias = "include-external")]
    pub foreign: bool,
    /// Look for every blob, also where the manifest that names it is there
    #[arg(long, visible_alias = "force-recursive")]
    pub force: bool,
    /// How layers are compressed at the target.
    #[command(flatten)]
    pub layers: CompressionArgs,
    /// Compress layers anew, too, that are compressed so already: for another level
    #[arg(
        long,
        requires = "compression",
        visible_alias = "dest-force-compress-format"
    )]
    pub force_compression: bool,
    /// Write nothing if the target's tag exists
    #[arg(short, long)]
    pub no_clobber: bool,
    /// A further tag at the target; may be repeated
    #[arg(long = "tag", visible_alias = "additional-tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Write the digest to this file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,
    /// Print nothing
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
    /// Accepted for skopeo's sake: digests stay as they are unless layers are compressed anew
    #[arg(long, hide = true, conflicts_with = "compression")]
    pub preserve_digests: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
    /// How each side is.
    #[command(flatten)]
    pub sides: SidesArgs,
}

impl CopyArgs {
    /// Whether one of the places is the store.
    pub fn uses_the_store(&self) -> bool {
        [&self.source, &self.target]
            .iter()
            .any(|text| text.starts_with("store:"))
    }
}

/// `longshore remote ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote ls localhost:5000
  longshore remote ls localhost:5000/web")]
pub struct LsArgs {
    /// Host and port of a registry, or a repository
    #[arg(value_name = "REGISTRY|REPOSITORY")]
    pub place: String,
    /// Only names that match one of these patterns (`*` and `?`); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// No names that match one of these patterns; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Print whole names, with the registry's
    #[arg(long)]
    pub full_ref: bool,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote tags`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote tags localhost:5000/web
  longshore remote tags --include '1.*' --json localhost:5000/web")]
pub struct TagsArgs {
    /// The repository
    #[arg(value_name = "REPOSITORY")]
    pub repository: String,
    /// Only tags that match one of these patterns (`*` and `?`); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// No tags that match one of these patterns; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// No tags that are made of digests
    #[arg(short = 'O', long)]
    pub omit_digest_tags: bool,
    /// Print whole names, with the registry's
    #[arg(long)]
    pub full_ref: bool,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Commands that look at one image.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote digest localhost:5000/web:1.2
  longshore remote digest --platform linux/arm64 localhost:5000/web
  longshore remote config oci:layout:1.2 | jq .config.Env
  longshore remote inspect localhost:5000/web")]
pub struct OneImageArgs {
    /// The image: NAME, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or store:NAME
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Of an index, the image for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = super::platform)]
    pub platform: Option<Platform>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote digest`.
#[derive(Args, Debug)]
pub struct DigestArgs {
    /// Which image.
    #[command(flatten)]
    pub one: OneImageArgs,
    /// Print the name with it: NAME@DIGEST
    #[arg(long)]
    pub full_ref: bool,
}

/// `longshore remote inspect`.
#[derive(Args, Debug)]
pub struct RemoteInspectArgs {
    /// Which image.
    #[command(flatten)]
    pub one: OneImageArgs,
    /// Print the manifest as it is: the same as `remote manifest get`
    #[arg(long)]
    pub raw: bool,
    /// Do not list the repository's tags
    #[arg(short, long)]
    pub no_tags: bool,
}

/// `longshore remote manifest …`.
#[derive(Debug, Subcommand)]
pub enum ManifestCommand {
    /// Print a manifest or index, byte for byte
    Get(OneImageArgs),
    /// Write a manifest or index to a registry
    Put(ManifestPutArgs),
    /// Remove a manifest, and with it all its tags
    #[command(visible_alias = "rm")]
    Delete(ManifestDeleteArgs),
}

/// `longshore remote manifest put`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote manifest put localhost:5000/web:edited manifest.json")]
pub struct ManifestPutArgs {
    /// The repository, with a tag or digest
    #[arg(value_name = "NAME[:TAG]")]
    pub name: String,
    /// The file; `-` or none is stdin
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What it is, where it does not say itself
    #[arg(long, value_name = "TYPE", visible_alias = "content-type")]
    pub media_type: Option<String>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote manifest delete`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote manifest delete localhost:5000/web@sha256:…")]
pub struct ManifestDeleteArgs {
    /// The repository and a digest
    #[arg(value_name = "NAME@DIGEST")]
    pub name: String,
    /// Take a tag, too, and remove the manifest that it names with all its other tags
    #[arg(long)]
    pub force_tag_dereference: bool,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote blob …`.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// Print a blob, or write it to a file
    #[command(visible_alias = "fetch")]
    Get(BlobGetArgs),
    /// Upload a file as a blob
    #[command(visible_alias = "push")]
    Put(BlobPutArgs),
    /// Print the size of a blob; exit code 4 if it is not there
    Head(BlobArgs),
    /// Remove a blob from a repository
    #[command(visible_alias = "rm")]
    Delete(BlobArgs),
}

/// Commands on one blob.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote blob head localhost:5000/web@sha256:…")]
pub struct BlobArgs {
    /// The repository and the blob's digest
    #[arg(value_name = "NAME@DIGEST")]
    pub name: String,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote blob get`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote blob get localhost:5000/web@sha256:… | tar -tz
  longshore remote blob get -o layer.tgz localhost:5000/web@sha256:…")]
pub struct BlobGetArgs {
    /// The repository and the blob's digest
    #[arg(value_name = "NAME@DIGEST")]
    pub name: String,
    /// Write to this file, not to stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// `longshore remote blob put`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote blob put localhost:5000/web layer.tgz")]
pub struct BlobPutArgs {
    /// The repository
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote tag`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote tag localhost:5000/web:1.2 1 latest")]
pub struct RemoteTagArgs {
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub name: String,
    /// Its further tags, in the same repository
    #[arg(value_name = "TAG", required = true)]
    pub tags: Vec<String>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote rm`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote rm localhost:5000/web:old
  longshore remote rm localhost:5000/web@sha256:…")]
pub struct RemoteRmArgs {
    /// A tag, which goes alone; or a digest, whose manifest goes with all its tags
    #[arg(value_name = "NAME:TAG|NAME@DIGEST", required = true)]
    pub names: Vec<String>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote referrers`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote referrers localhost:5000/web:1.2
  longshore remote referrers --artifact-type application/spdx+json --json localhost:5000/web")]
pub struct ReferrersArgs {
    /// The image: NAME, oci:DIR[:TAG] or oci-archive:FILE
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Only those of this type
    #[arg(long, value_name = "TYPE", visible_alias = "filter-artifact-type")]
    pub artifact_type: Option<String>,
    /// Of an index, what is about the image for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = super::platform)]
    pub platform: Option<Platform>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote attach`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote attach --artifact-type application/spdx+json localhost:5000/web:1.2 sbom.json:application/spdx+json")]
pub struct RemoteAttachArgs {
    /// The image
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    pub name: String,
    /// Files, each with its media type [default: application/octet-stream]
    #[arg(value_name = "FILE[:TYPE]")]
    pub files: Vec<String>,
    /// What the files are
    #[arg(long, value_name = "TYPE")]
    pub artifact_type: String,
    /// An annotation of what is attached; may be repeated
    #[arg(long = "annotation", short, value_name = "KEY=VALUE")]
    pub annotations: Vec<String>,
    /// Of an index, attach to the image for this platform
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = super::platform)]
    pub platform: Option<Platform>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore search` and `longshore remote search`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore search localhost:5000/web
  longshore search --list-tags localhost:5000/shop/web
  longshore search --format '{{.Name}}' --limit 100 localhost:5000/web

See docs/reference/remote.md.")]
pub struct SearchArgs {
    /// A registry, and what is looked for: a part of a repository's name; longshore's own registry also
    /// knows tags and descriptions [default registry: Docker Hub]
    #[arg(value_name = "[REGISTRY/]TERM")]
    pub term: String,
    /// Most that are shown
    #[arg(long, value_name = "COUNT", default_value = "25")]
    pub limit: usize,
    /// Only some: stars=COUNT, is-official=true|false; may be repeated
    #[arg(
        short,
        long = "filter",
        value_name = "KEY=VALUE",
        value_delimiter = ','
    )]
    pub filters: Vec<String>,
    /// Show descriptions in full
    #[arg(long)]
    pub no_trunc: bool,
    /// table, json, or a template such as '{{.Name}} {{.Description}}'
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        conflicts_with = "json"
    )]
    pub format: String,
    /// List the tags of the repository that is named
    #[arg(long, conflicts_with = "filters")]
    pub list_tags: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
}
