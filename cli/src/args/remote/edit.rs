//! The commands of `longshore remote` that make new images of old ones.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use store::oci::Platform;

use super::{CommonArgs, PlatformsArgs, ReachArgs, SidesArgs};
use crate::args::{CompressionArgs, platform};

/// Where a changed image goes, and what is told of it.
#[derive(Args, Debug)]
pub struct ResultArgs {
    /// Where the result goes: any place that `copy` takes [default: the image's own tag]
    #[arg(
        short,
        long = "tag",
        visible_alias = "new-tag",
        alias = "new_tag",
        value_name = "TO"
    )]
    pub target: Option<String>,
    /// Write the digest to this file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformsArgs,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

impl ResultArgs {
    /// Whether the image or the result is in the store.
    pub fn uses_the_store(&self, image: Option<&str>) -> bool {
        let places = [image, self.target.as_deref()];
        places
            .iter()
            .flatten()
            .any(|text| text.starts_with("store:"))
    }
}

/// `longshore remote mutate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote mutate --env LEVEL=debug --label team=web localhost:5000/web -t localhost:5000/web:debug
  longshore remote mutate --entrypoint '' --cmd /bin/sh,-c,date oci:layout:1
  longshore remote mutate --annotation org.opencontainers.image.source=https://example.com localhost:5000/web

Images for several platforms are all changed; attestations and signatures, which are about what the
image was, are left out.")]
pub struct MutateArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Set a variable; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Remove a variable; may be repeated
    #[arg(long, value_name = "KEY")]
    pub unset_env: Vec<String>,
    /// Set a label, or remove it where VALUE is empty; may be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Annotate the images, or with `index:KEY=VALUE` the index; an empty VALUE removes; may be repeated
    #[arg(short, long = "annotation", value_name = "[index:]KEY=VALUE")]
    pub annotations: Vec<String>,
    /// The entry point, its words separated by commas; an empty one is none
    #[arg(long, value_name = "WORD,...", value_delimiter = ',', num_args = 1)]
    pub entrypoint: Option<Vec<String>>,
    /// The command, its words separated by commas; an empty one is none
    #[arg(long, value_name = "WORD,...", value_delimiter = ',', num_args = 1)]
    pub cmd: Option<Vec<String>>,
    /// The user
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Add a port; may be repeated
    #[arg(
        long = "exposed-ports",
        visible_alias = "port",
        value_name = "PORT[/tcp|/udp]",
        value_delimiter = ','
    )]
    pub ports: Vec<String>,
    /// Add a volume; may be repeated
    #[arg(long = "volume", value_name = "PATH")]
    pub volumes: Vec<String>,
    /// The signal that ends a container
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Who made it
    #[arg(long, value_name = "NAME")]
    pub author: Option<String>,
    /// When it was made (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub created: Option<String>,
    /// The platform that it says it is for
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    pub set_platform: Option<Platform>,
    /// Where it goes.
    #[command(flatten)]
    pub result: ResultArgs,
}

/// `longshore remote append`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote append -b localhost:5000/base -f site.tar -t localhost:5000/site
  longshore remote append -f rootfs.tar.gz --platform linux/arm64 -t oci:layout:1")]
pub struct AppendArgs {
    /// The image to build on; without one, the layers are all there is
    #[arg(short, long, value_name = "IMAGE")]
    pub base: Option<String>,
    /// A tar that becomes a layer, compressed with gzip or zstd or not; may be repeated, oldest first
    #[arg(
        short = 'f',
        long = "new-layer",
        visible_alias = "new_layer",
        value_name = "FILE",
        required = true
    )]
    pub layers: Vec<PathBuf>,
    /// How what is new is compressed.
    #[command(flatten)]
    pub compression: CompressionArgs,
    /// Where it goes.
    #[command(flatten)]
    pub result: ResultArgs,
}

/// `longshore remote rebase`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote rebase localhost:5000/web --old-base localhost:5000/debian:12.1 --new-base localhost:5000/debian:12.2")]
pub struct RebaseArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// What it stands on: its layers are the image's first ones
    #[arg(long, visible_alias = "old_base", value_name = "IMAGE")]
    pub old_base: String,
    /// What it is to stand on
    #[arg(long, visible_alias = "new_base", value_name = "IMAGE")]
    pub new_base: String,
    /// Where it goes.
    #[command(flatten)]
    pub result: ResultArgs,
}

/// `longshore remote flatten`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote flatten localhost:5000/web -t localhost:5000/web:flat")]
pub struct FlattenArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How what is new is compressed.
    #[command(flatten)]
    pub compression: CompressionArgs,
    /// Where it goes.
    #[command(flatten)]
    pub result: ResultArgs,
}

/// `longshore remote export`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote export localhost:5000/web | tar -t
  longshore remote export --platform linux/arm64 oci:layout:1 rootfs.tar")]
pub struct RemoteExportArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The file; `-` or none is stdout
    #[arg(value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Of an index, the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    pub platform: Option<Platform>,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
}

/// `longshore remote index …`.
#[derive(Debug, Subcommand)]
pub enum IndexCommand {
    /// Make one index of several images
    Create(IndexCreateArgs),
    /// Add images to an index
    #[command(visible_alias = "add")]
    Append(IndexAppendArgs),
    /// Describe an index, or one of its entries
    Annotate(IndexAnnotateArgs),
}

/// `longshore remote index create`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote index create localhost:5000/web:1.2 localhost:5000/web:1.2-amd64 localhost:5000/web:1.2-arm64

Of an index, the entries are taken. What is in other repositories or places is copied along.")]
pub struct IndexCreateArgs {
    /// Where the index goes
    #[arg(value_name = "TO")]
    pub target: String,
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Annotate the index; may be repeated
    #[arg(short, long = "annotation", value_name = "KEY=VALUE")]
    pub annotations: Vec<String>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote index append`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore remote index append localhost:5000/web:1.2 localhost:5000/web:1.2-riscv64

An image takes the place of one for the same platform.")]
pub struct IndexAppendArgs {
    /// The index
    #[arg(value_name = "INDEX")]
    pub index: String,
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Where the result goes [default: the index's own tag]
    #[arg(short, long = "tag", value_name = "TO")]
    pub target: Option<String>,
    /// Annotate the index; may be repeated
    #[arg(short, long = "annotation", value_name = "KEY=VALUE")]
    pub annotations: Vec<String>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote index annotate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote index annotate -a team=web localhost:5000/web:1.2
  longshore remote index annotate --platform linux/arm/v7 localhost:5000/web:1.2 sha256:…")]
pub struct IndexAnnotateArgs {
    /// The index
    #[arg(value_name = "INDEX")]
    pub index: String,
    /// Digest of the entry that is described; without one, the index is
    #[arg(value_name = "DIGEST")]
    pub entry: Option<String>,
    /// An annotation, removed where VALUE is empty; may be repeated
    #[arg(short, long = "annotation", value_name = "KEY=VALUE")]
    pub annotations: Vec<String>,
    /// The platform that the entry is for
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform, requires = "entry")]
    pub platform: Option<Platform>,
    /// Where the result goes [default: the index's own tag]
    #[arg(short, long = "tag", value_name = "TO")]
    pub target: Option<String>,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `longshore remote sync`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote sync --include '1.*' registry.example/web localhost:5000/web
  longshore remote sync --dry-run registry.example/web localhost:5000/web

Copies tags that the target does not have, or that name something else there. Nothing is removed.")]
pub struct SyncArgs {
    /// A repository, a registry (HOST), some of its repositories (HOST/team/*), oci:DIR, an archive, or yaml:FILE
    #[arg(value_name = "FROM")]
    pub source: String,
    /// The repository that gets the same tags; a registry or HOST/PREFIX to keep names below; or oci:DIR
    #[arg(value_name = "TO")]
    pub target: String,
    /// Only tags that match one of these patterns (`*` and `?`); may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include: Vec<String>,
    /// No tags that match one of these patterns; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// Of a registry, only repositories that match one of these patterns; may be repeated
    #[arg(long = "repo", value_name = "PATTERN")]
    pub repositories: Vec<String>,
    /// Of a registry, no repositories that match one of these patterns; may be repeated
    #[arg(long = "exclude-repo", value_name = "PATTERN")]
    pub exclude_repositories: Vec<String>,
    /// Put the registry's name before the names at the target
    #[arg(long)]
    pub scoped: bool,
    /// What FROM is, as skopeo has it
    #[arg(long, short = 's', value_name = "TRANSPORT")]
    pub src: Option<SyncTransport>,
    /// What TO is, as skopeo has it: repositories go below it by the last word of their names
    #[arg(long, short = 'd', value_name = "TRANSPORT")]
    pub dest: Option<SyncTransport>,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformsArgs,
    /// Copy what is about the images, too
    #[arg(long)]
    pub referrers: bool,
    /// Copy nothing, only tell
    #[arg(long, short = 'n')]
    pub dry_run: bool,
    /// Go on with the others where one fails
    #[arg(long)]
    pub keep_going: bool,
    /// Accepted for skopeo's sake: all platforms are copied if none is named
    #[arg(long, short = 'a', conflicts_with = "platforms")]
    pub all: bool,
    /// Accepted for skopeo's sake: digests stay as they are
    #[arg(long, hide = true)]
    pub preserve_digests: bool,
    /// Print JSON, an object for each image on a line of its own
    #[arg(long)]
    pub json: bool,
    /// How registries are reached.
    #[command(flatten)]
    pub reach: ReachArgs,
    /// How each side is.
    #[command(flatten)]
    pub sides: SidesArgs,
}

/// Skopeo's words for kinds of places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SyncTransport {
    /// A registry.
    Docker,
    /// A layout.
    Oci,
    /// A layout in a tar.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
    /// A list of images in a file.
    Yaml,
}
