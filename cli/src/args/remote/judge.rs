//! Flags of `longshore remote validate`.

use std::path::PathBuf;

use clap::Args;

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
