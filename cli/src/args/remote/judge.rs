//! Flags of `longshore remote validate` and `diff`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use store::oci::Platform;

use super::{CommonArgs, PlatformsArgs};

/// `longshore remote validate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote validate localhost:5000/web:1.2
  longshore remote validate --fast --platform linux/arm64 localhost:5000/web
  longshore remote validate oci:layout:1.2

Prints a line for all that is wrong, and exits with 1 if anything is.")]
pub struct ValidateArgs {
    /// The image: NAME, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or store:NAME
    #[arg(value_name = "IMAGE", required_unless_present_any = ["remote", "tarball"])]
    pub image: Option<String>,
    /// The image, as crane has it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "tarball"])]
    pub remote: Option<String>,
    /// An archive of `docker save`, as crane has it
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    pub tarball: Option<PathBuf>,
    /// Look whether layers are there, and do not read them
    #[arg(long)]
    pub fast: bool,
    /// Which platforms.
    #[command(flatten)]
    pub platforms: PlatformsArgs,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What two images are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffType {
    /// The configuration, entry by entry.
    Config,
    /// The layers, from the first that is another.
    Layer,
    /// What dpkg or apk has installed.
    Package,
    /// Files, as a container would see them.
    File,
    /// The sum of the layers' sizes.
    Size,
}

/// `longshore remote diff`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore remote diff localhost:5000/web:1.2 localhost:5000/web:1.3
  longshore remote diff --type package,size debian:12 debian:13
  longshore remote diff --type file --exit-code store:web oci:layout

Lines begin with - for what only the first has, + for what only the second has, and ~ for
what both have differently. Times of files are not compared.")]
pub struct RemoteDiffArgs {
    /// An image: NAME, oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or store:NAME
    #[arg(value_name = "FROM")]
    pub from: String,
    /// The other one
    #[arg(value_name = "TO")]
    pub to: String,
    /// Compare only this; may be repeated [default: all]
    #[arg(short, long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<DiffType>,
    /// Of an index, the image for this platform [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = crate::args::platform)]
    pub platform: Option<Platform>,
    /// Exit with 1 if they differ
    #[arg(long)]
    pub exit_code: bool,
    /// What all of these commands take.
    #[command(flatten)]
    pub common: CommonArgs,
}
