//! The command line: flag types and their help, no behaviour.
//!
//! Names, short flags and defaults are those of `docker` (images, registries, containers) and `buildctl` (progress,
//! outputs), so that fingers and scripts carry over. Every command's help ends with an example. The rendered help of
//! every command stands in `testdata/cli/help/`, where a test compares it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use store::oci::Platform;

mod cache;
mod call;
mod compression;
mod container;
mod debug;
mod filter;
mod history;
mod network;
mod output;
mod registry;
mod remote;
mod space;
mod steps;
mod toggle;
pub mod unbuilt;
pub mod words;

pub use cache::{CacheCommand, CacheLsArgs, CacheRmArgs};
pub use call::{Call, Format, Method};
pub use compression::CompressionArgs;
pub use container::{
    AttachArgs, CommitArgs, Condition, ContainerCommand, ContainerCreateArgs, ContainerFilesArgs,
    ContainerNamesArgs, ContainerPruneArgs, ContainersArgs, CpArgs, CreateArgs, DiffArgs, ExecArgs,
    ExportArgs, ImportArgs, KillArgs, LimitArgs, LogDriver, LogsArgs, PortArgs, PsArgs, PullWhen,
    RenameArgs, RmArgs, RunArgs, StartArgs, StatsArgs, StopArgs, TopArgs, UpdateArgs,
    VolumeCommand, VolumeCreateArgs, VolumeLsArgs, VolumePruneArgs, VolumeRmArgs, VolumesArgs,
    WaitArgs,
};
pub use debug::{DebugArgs, DebugState, OnError};
pub use filter::Filter;
pub use history::{
    ExplainArgs, HistoryArgs, HistoryCommand, HistoryGraphArgs, HistoryLogsArgs, HistoryLsArgs,
    HistoryRmArgs, HistoryShowArgs, ImageHistoryArgs, LogFormat,
};
pub use network::{
    NetworkCommand, NetworkCreateArgs, NetworkInspectArgs, NetworkLsArgs, NetworkRmArgs,
};
pub use output::{Output, OutputKind};
pub use registry::{
    CollectArgs, GcArgs, HtpasswdArgs, MigrateArgs, RegistryCommand, RegistryPlace,
    RegistryStatsArgs, RegistrySyncArgs, ServeArgs, VerifyArgs,
};
pub use remote::{
    AppendArgs, BlobArgs, BlobCommand, BlobGetArgs, BlobPutArgs, CopyArgs, DiffType, DigestArgs,
    FlattenArgs, IndexAnnotateArgs, IndexAppendArgs, IndexCommand, IndexCreateArgs, LsArgs,
    ManifestCommand, ManifestDeleteArgs, ManifestPutArgs, MutateArgs, OneImageArgs, ReachArgs,
    RebaseArgs, ReferrersArgs, RemoteAttachArgs, RemoteCommand, RemoteDiffArgs, RemoteExportArgs,
    RemoteInspectArgs, RemoteRmArgs, RemoteTagArgs, ResultArgs, SearchArgs, SidesArgs, SyncArgs,
    SyncTransport, TagsArgs, TellArgs, TlsArgs, ValidateArgs,
};
pub use space::{DuArgs, PruneArgs, StoreCheckArgs, StoreCommand};
pub use steps::StepArgs;

use self::toggle::Toggle;
use crate::template;

/// Builds, ships and runs container images, without a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "longshore",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Examples:
  longshore build -t localhost:5000/web .
  longshore push localhost:5000/web
  longshore run --rm localhost:5000/web

Exit codes: 0 done, 1 wrong input, 2 wrong usage, 3 environment, 4 registry, 130 interrupted;
`run` exits with the container's own code. See docs/reference/exit-codes.md."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Args, Debug)]
pub struct GlobalArgs {
    /// Folder that holds images, layers and the build cache
    ///
    /// Default: $LONGSHORE_ROOT, else /var/lib/longshore for root, else $XDG_DATA_HOME/longshore
    /// (~/.local/share/longshore). Several commands may use one folder at the same time.
    #[arg(long, value_name = "DIR", global = true, help_heading = GLOBAL)]
    pub root: Option<PathBuf>,
    /// Configuration file
    ///
    /// Default: $LONGSHORE_CONFIG, else $XDG_CONFIG_HOME/longshore/config.toml (~/.config/…; not for
    /// root), else /etc/longshore/config.toml. See docs/reference/config.md.
    #[arg(long, value_name = "FILE", global = true, help_heading = GLOBAL)]
    pub config: Option<PathBuf>,
    /// How much to say about longshore's own doings: off, error, warn, info, debug or trace
    #[arg(
        long,
        value_name = "LEVEL",
        global = true,
        default_value = "warn",
        hide_possible_values = true,
        help_heading = GLOBAL
    )]
    pub log_level: LogLevel,
}

const GLOBAL: &str = "Global options";

/// A tracing level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What was asked for did not happen.
    Error,
    /// Odd, but fine.
    Warn,
    /// Rare milestones.
    Info,
    /// For longshore's developers.
    Debug,
    /// Everything.
    Trace,
}

/// The commands, in the order in which help lists them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile
    Build(Box<BuildArgs>),
    /// List images
    #[command(visible_alias = "ls")]
    Images(ImagesArgs),
    /// Show what is known of containers, images and volumes, as a JSON array
    Inspect(InspectArgs),
    /// Give an image another name
    Tag(TagArgs),
    /// Remove images, or one of their names
    Rmi(RmiArgs),
    /// Show the steps that made an image, newest first; or what builds did
    History(HistoryArgs),
    /// Tell why the steps of a build ran
    Explain(ExplainArgs),
    /// Look around in a step of a build: open a shell in it, or run a command
    Debug(DebugArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Read images from an archive
    Load(LoadArgs),
    /// The directories that steps keep between builds (RUN --mount=type=cache)
    #[command(subcommand, after_help = "Example:\n  longshore cache ls")]
    Cache(CacheCommand),
    /// The networks that containers reach one another by
    #[command(subcommand, after_help = "Example:\n  longshore network create shop")]
    Network(NetworkCommand),
    /// Show how much disk is used, and by what
    Du(DuArgs),
    /// Free what nothing uses
    Prune(PruneArgs),
    /// Look after the folder that everything is kept in
    #[command(subcommand, after_help = "Example:\n  longshore store check --repair")]
    Store(StoreCommand),
    /// Upload an image to a registry
    Push(PushArgs),
    /// Download an image from a registry
    Pull(PullArgs),
    /// Copy an image between registries, layouts, archives and the store
    Copy(CopyArgs),
    /// Look for images in a registry
    Search(SearchArgs),
    /// Images where they lie: in registries, layouts and archives
    #[command(
        subcommand,
        after_help = "Examples:
  longshore remote tags localhost:5000/web
  longshore remote digest localhost:5000/web:1.2
  longshore remote manifest get localhost:5000/web:1.2

docs/reference/remote.md has crane's, skopeo's and regctl's commands beside these."
    )]
    Remote(RemoteCommand),
    /// Remember the credentials of a registry
    Login(LoginArgs),
    /// Forget the credentials of a registry
    Logout(LogoutArgs),
    /// The bundled registry
    #[command(
        subcommand,
        after_help = "Example:\n  longshore registry serve --addr 127.0.0.1:5000"
    )]
    Registry(RegistryCommand),
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// Make a container without starting it
    Create(Box<ContainerCreateArgs>),
    /// Start containers
    Start(StartArgs),
    /// Ask containers to end, and kill those that do not
    Stop(StopArgs),
    /// Stop containers and start them again
    Restart(StopArgs),
    /// Send containers a signal
    Kill(KillArgs),
    /// Wait until containers end, and print their exit codes
    Wait(WaitArgs),
    /// Let containers stand still
    #[command(after_help = "Example:\n  longshore pause web")]
    Pause(ContainersArgs),
    /// Let containers go on that stand still
    #[command(after_help = "Example:\n  longshore unpause web")]
    Unpause(ContainersArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Limit containers otherwise, running or not
    Update(UpdateArgs),
    /// List containers
    Ps(PsArgs),
    /// Show what a container has printed
    Logs(LogsArgs),
    /// Run another command in a container
    Exec(ExecArgs),
    /// Connect to what a container reads and prints
    Attach(AttachArgs),
    /// Copy files between a container and this machine
    Cp(CpArgs),
    /// Show the processes of a container
    Top(TopArgs),
    /// Show what containers use of this machine
    Stats(StatsArgs),
    /// Show which of a container's ports are reached through which of this machine
    Port(PortArgs),
    /// Show what a container has changed of its image
    Diff(DiffArgs),
    /// Make an image of a container
    Commit(CommitArgs),
    /// Write the root file system of a container as a tar
    Export(ExportArgs),
    /// Make an image of the tar of a root file system
    Import(ImportArgs),
    /// All containers at once
    #[command(
        subcommand,
        after_help = "The commands on single containers may be spelled so, too: `container ls` is `ps`.\n\nExample:\n  longshore container prune"
    )]
    Container(ContainerCommand),
    /// Directories that outlive containers
    #[command(subcommand, after_help = "Example:\n  longshore volume ls")]
    Volume(VolumeCommand),
    /// Show the version
    Version(VersionArgs),
    /// Show where things are kept, and what this machine can do
    Info(InfoArgs),
    /// Write the store out to disk; started in the background by commands that publish something
    #[command(hide = true)]
    StoreSync,
    /// Answer what a container asks about names; started by its supervisor
    #[command(hide = true)]
    ContainerNames(ContainerNamesArgs),
    /// Read or write files as a container's root; started by `cp` and `export`
    #[command(hide = true)]
    ContainerFiles(ContainerFilesArgs),
}

impl Command {
    /// Whether it reads or writes files of any owner, for which an ordinary user needs a user namespace.
    pub fn uses_the_store(&self) -> bool {
        match self {
            Command::Copy(args) => return args.uses_the_store(),
            Command::Remote(command) => return command.uses_the_store(),
            _ => {}
        }
        !matches!(
            self,
            Command::Login(_)
                | Command::Logout(_)
                | Command::Search(_)
                | Command::Registry(_)
                | Command::Version(_)
                | Command::Info(_)
        )
    }
}

/// `longshore build`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore build -t web .
  longshore build -t localhost:5000/web:1.2 --push .
  longshore build --target test --progress plain .
  longshore build --check .
  longshore build -f deploy/Dockerfile --build-arg VERSION=1.2 -o type=oci,dest=web.tar .
  longshore build https://example.com/web.git#v1.2
  longshore build --secret id=npm,src=$HOME/.npmrc --ssh default .
  longshore build -o type=local,dest=out .")]
pub struct BuildArgs {
    /// Where the files that COPY and ADD may take are, and the Dockerfile
    ///
    /// A folder; the URL of a git repository (`URL#REF:SUBDIR`), of an archive or of a Dockerfile;
    /// or `-`, which reads an archive or a Dockerfile from stdin.
    #[arg(value_name = "CONTEXT")]
    pub context: PathBuf,
    /// Name the image; may be repeated
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    pub tags: Vec<String>,
    /// The Dockerfile [default: CONTEXT/Dockerfile, else CONTEXT/Containerfile]
    ///
    /// A file, its path in a context that is fetched, a URL, or `-` for stdin.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Patterns of what COPY and ADD may not take [default: DOCKERFILE.dockerignore, else
    /// CONTEXT/.containerignore, else CONTEXT/.dockerignore]
    #[arg(long = "ignorefile", value_name = "FILE")]
    pub ignore_file: Option<PathBuf>,
    /// Let NAME stand for other files than a stage's or an image's; may be repeated
    ///
    /// SOURCE is a folder, docker-image://IMAGE, oci-layout://PATH[:TAG|@DIGEST], target:STAGE, or
    /// the URL of a file or git repository. FROM, COPY --from and RUN --mount=from= take it by NAME.
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    pub build_contexts: Vec<String>,
    /// Give an ARG its value; without `=VALUE` it is taken from the environment; may be repeated
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// Build this stage, by name or number, and what it needs
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Build for these platforms [default: this machine's]; may be repeated
    ///
    /// Such as linux/amd64,linux/arm64; `local` is this machine's. Images for several are pushed, and
    /// written with --output type=oci, as one index. To RUN programs of another platform, the kernel
    /// needs an emulator (binfmt_misc).
    #[arg(
        long = "platform",
        value_name = "OS/ARCH[/VARIANT]",
        value_delimiter = ',',
        value_parser = platform
    )]
    pub platforms: Vec<Platform>,
    /// Look for mistakes and build nothing: the same as --call check
    #[arg(long)]
    pub check: bool,
    /// Ask something of the Dockerfile instead of building it
    ///
    /// METHOD is build, check (exit code 1 if something is found), outline (what the target can be
    /// given), targets (the stages) or subrequests.describe (these methods). `format=json` is for
    /// programs; with `ignorestatus` the exit code does not tell what check found.
    #[arg(
        long,
        value_name = "METHOD[,format=json][,ignorestatus]",
        conflicts_with = "check"
    )]
    pub call: Option<Call>,
    /// Set a label of the image, over what the Dockerfile says; may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Run every step, also those whose result is known
    #[arg(long)]
    pub no_cache: bool,
    /// Look for results there, too; may be repeated
    ///
    /// type=registry,ref=REF (or REF alone, which may also be an image with an inline cache),
    /// type=local,src=FOLDER or type=s3,bucket=BUCKET,region=REGION; docs/reference/cache.md has all
    /// keys. What is not there is built: a cache that fails is a warning.
    #[arg(long = "cache-from", value_name = "REF|type=TYPE[,KEY=VALUE...]")]
    pub cache_from: Vec<String>,
    /// Put results there for other builds; may be repeated
    ///
    /// type=registry,ref=REF, type=local,dest=FOLDER, type=s3,bucket=BUCKET,region=REGION or
    /// type=inline; mode=max adds the steps that are not in the image, mounts=all the cache mounts.
    #[arg(long = "cache-to", value_name = "REF|type=TYPE[,KEY=VALUE...]")]
    pub cache_to: Vec<String>,
    /// Ask the registries for base images even if they are here
    #[arg(long)]
    pub pull: bool,
    /// Most steps at a time [default: one per processor]
    #[arg(long, value_name = "COUNT")]
    pub jobs: Option<std::num::NonZero<usize>>,
    /// Push the image under each of its names when it is built
    #[arg(long, requires = "tags")]
    pub push: bool,
    /// How progress is shown [default: BUILDKIT_PROGRESS, else auto]
    ///
    /// `auto` is `tty` where stderr is a terminal, else `plain`.
    #[arg(long, value_name = "HOW")]
    pub progress: Option<Progress>,
    /// Show nothing but the image's ID and errors: the same as --progress quiet
    #[arg(short, long, conflicts_with = "progress")]
    pub quiet: bool,
    /// Where the result goes [default: type=image]
    ///
    /// type=image keeps it in the store; type=oci and type=docker write an archive to `dest`
    /// (`-` is stdout); type=tar writes the root file system as a tar, type=local as a folder.
    /// With type=oci, and with type=image and --push, `compression=gzip` (zstd, zstd:chunked, estargz,
    /// none), `compression-level=N` and `force-compression=true` say how layers are compressed.
    #[arg(short, long, value_name = "type=TYPE[,dest=PATH]")]
    pub output: Option<Output>,
    /// Tell of each step, after the build, why it ran; `longshore explain` tells it later
    #[arg(long)]
    pub explain: bool,
    /// What to do when a RUN step fails: fail, or shell to look around where it failed
    ///
    /// The shell has the files as the command left them, and the step's environment, mounts and network; the build ends
    /// with it. Without a PATH it is the step's own shell, or the image's.
    #[arg(long, value_name = "fail|shell[=PATH]", default_value = "fail")]
    pub on_error: OnError,
    /// Write the image's ID to this file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// What steps are given.
    #[command(flatten)]
    pub steps: StepArgs,
}

/// `--platform`
fn platform(text: &str) -> Result<Platform, String> {
    if text == "local" {
        return Ok(Platform::host());
    }
    builder::lower::parse_platform(text).map_err(|error| error.to_string())
}

/// `--format`
fn format(text: &str) -> Result<template::Format, String> {
    template::Format::parse(text).map_err(|error| error.to_string())
}

/// How the progress of a build is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// `tty` where stderr is a terminal, else `plain`.
    Auto,
    /// One line after the other.
    Plain,
    /// Redrawn in place.
    Tty,
    /// Nothing; the image's ID is printed at the end.
    #[value(alias = "none")]
    Quiet,
    /// One JSON object per line, as buildx prints them; the last one tells how the build ended.
    Rawjson,
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// Aligned columns.
    Table,
    /// One JSON object per line.
    Json,
}

/// Options of commands that list things.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// How to print
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

impl ListArgs {
    /// The format that both flags add up to.
    pub fn format(&self) -> ListFormat {
        if self.json {
            ListFormat::Json
        } else {
            self.format
        }
    }
}

/// `longshore images`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore images
  longshore images localhost:5000/web
  longshore images -q --no-trunc
  longshore images --format json")]
pub struct ImagesArgs {
    /// Only images of this name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
    /// Accepted for docker's sake: no image is hidden
    #[arg(short, long)]
    pub all: bool,
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// Show the digest of each image's manifest
    #[arg(long)]
    pub digests: bool,
    /// Print IDs in full
    #[arg(long)]
    pub no_trunc: bool,
    /// table, json (an object for each name on a line of its own), or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true,
        value_parser = format
    )]
    pub format: template::Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// `longshore inspect`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore inspect -f '{{.State.Status}}' web
  longshore inspect web | jq -r '.[0].Config.Env[]'")]
pub struct InspectArgs {
    /// Print what a template makes of each, such as '{{.State.Status}}', or `json`
    #[arg(short, long, value_name = "TEMPLATE")]
    pub format: Option<String>,
    /// Add a container's size: SizeRw and SizeRootFs
    #[arg(short, long)]
    pub size: bool,
    /// What it is: container, image or volume [default: the first of these that has the name]
    #[arg(long = "type", value_name = "TYPE", hide_possible_values = true)]
    pub kind: Option<InspectKind>,
    /// Names or IDs
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
}

/// What is inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InspectKind {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
}

/// `longshore tag`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore tag web localhost:5000/web:1.2")]
pub struct TagArgs {
    /// Name or ID of an image
    #[arg(value_name = "IMAGE")]
    pub source: String,
    /// Its further name
    #[arg(value_name = "NAME[:TAG]")]
    pub target: String,
}

/// `longshore rmi`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore rmi web:old
  longshore rmi -f 3f53bb00af94")]
pub struct RmiArgs {
    /// Names or IDs; the image itself goes with its last name
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Remove an image given by ID with all of its names, and do not mind one that is not there
    #[arg(short, long)]
    pub force: bool,
}

/// Layout of an image archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArchiveFormat {
    /// An OCI image layout in a tar.
    Oci,
    /// What `docker save` writes and `docker load` reads.
    Docker,
}

/// `longshore save`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore save -o web.tar web
  longshore save --format oci web | ssh host longshore load")]
pub struct SaveArgs {
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Write to this file, not to stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Layout of the archive
    #[arg(long, value_name = "FORMAT", default_value = "docker")]
    pub format: ArchiveFormat,
}

/// `longshore load`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore load -i web.tar
  docker save web | longshore load")]
pub struct LoadArgs {
    /// Read from this file, not from stdin; OCI and docker archives are told apart
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Print nothing but the images' IDs
    #[arg(short, long)]
    pub quiet: bool,
}

/// `longshore push`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore push localhost:5000/web:1.2
  longshore push localhost:5000/web:1.2 localhost:5000/web:latest
  longshore push --all-tags --compression zstd localhost:5000/web
  longshore push --digestfile digest.txt localhost:5000/web:1.2")]
pub struct PushArgs {
    /// Names of images, which say where they go
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub names: Vec<String>,
    /// All tags that the store has of the repositories
    #[arg(short, long)]
    pub all_tags: bool,
    /// How layers are compressed.
    #[command(flatten)]
    pub layers: CompressionArgs,
    /// Compress layers, too, that are compressed already, but not so
    #[arg(long, toggle = "true", requires = "compression")]
    pub force_compression: bool,
    /// Write the digests to this file, each on a line if there are several
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,
    /// Print JSON, an object for each name on a line of its own
    #[arg(long)]
    pub json: bool,
    /// Print nothing but the names
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// How progress is shown [default: auto]
    #[arg(long, value_name = "KIND", conflicts_with_all = ["quiet", "json"])]
    pub progress: Option<Progress>,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// `longshore pull`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore pull localhost:5000/web:1.2
  longshore pull --platform linux/arm64 localhost:5000/web
  longshore pull localhost:5000/web@sha256:…")]
pub struct PullArgs {
    /// Names of images, which say where they come from
    #[arg(value_name = "NAME[:TAG|@DIGEST]", required = true)]
    pub names: Vec<String>,
    /// All tags of the repositories
    #[arg(short, long)]
    pub all_tags: bool,
    /// Of images for several platforms, the one for this [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    pub platform: Option<Platform>,
    /// Print JSON, an object for each name on a line of its own
    #[arg(long)]
    pub json: bool,
    /// Print nothing but the images' IDs
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
    /// How progress is shown [default: auto]
    #[arg(long, value_name = "KIND", conflicts_with_all = ["quiet", "json"])]
    pub progress: Option<Progress>,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// `longshore login`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore login registry.example
  cat token | longshore login -u me --password-stdin registry.example
  longshore login --authfile auth.json registry.example/team")]
pub struct LoginArgs {
    /// Host and port of the registry [default: Docker Hub]; with a path, for the repositories below it
    #[arg(value_name = "SERVER[/PATH]")]
    pub server: Option<String>,
    /// User name; asked for where it is not given
    #[arg(short, long, value_name = "NAME", alias = "user")]
    pub username: Option<String>,
    /// Password; others on this machine can see it, --password-stdin is safer
    #[arg(
        short,
        long,
        value_name = "PASSWORD",
        requires = "username",
        alias = "pass"
    )]
    pub password: Option<String>,
    /// Read the password from stdin
    #[arg(
        long,
        requires = "username",
        conflicts_with = "password",
        alias = "pass-stdin"
    )]
    pub password_stdin: bool,
    /// Print who is logged in, and change nothing
    #[arg(long, conflicts_with_all = ["username", "json"])]
    pub get_login: bool,
    /// Keep it in this file [default: config.json in $DOCKER_CONFIG, else in ~/.docker]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Whom to believe.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// `longshore logout`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore logout registry.example")]
pub struct LogoutArgs {
    /// Host and port of the registry [default: Docker Hub]; with a path, as it was given to login
    #[arg(value_name = "SERVER[/PATH]")]
    pub server: Option<String>,
    /// Forget it in this file [default: config.json in $DOCKER_CONFIG, else in ~/.docker]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `longshore version`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore version --json")]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `longshore info`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore info --json | jq -r .root")]
pub struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_flags_after_the_image_as_the_commands_own() {
        let cli =
            Cli::try_parse_from(["longshore", "run", "--rm", "-it", "img", "ls", "-l", "--rm"]);
        let Command::Run(run) = cli.unwrap().command else {
            panic!("not run");
        };
        assert_eq!(run.create.image(), "img");
        assert_eq!(run.create.command(), ["ls", "-l", "--rm"]);
        assert!(run.create.rm && run.create.interactive && run.create.tty);
    }

    #[test]
    fn registry_serve_has_a_root_and_a_configuration_of_its_own() {
        let flags = ["--root", "/r", "--config", "/c"];
        let words = ["longshore", "registry", "serve"];
        let cli = Cli::try_parse_from(words.into_iter().chain(flags)).unwrap();
        let Command::Registry(RegistryCommand::Serve(serve)) = cli.command else {
            panic!("not serve");
        };
        assert_eq!(serve.folder, Some(PathBuf::from("/r")));
        assert_eq!(serve.file, Some(PathBuf::from("/c")));
    }
}
