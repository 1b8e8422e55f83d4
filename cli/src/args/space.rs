//! `du`, `prune` and `store`: what is on disk.

use clap::{Args, Subcommand};

use super::ListArgs;

/// `longshore du`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore du
  longshore du --format json")]
pub struct DuArgs {
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore prune`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore prune
  longshore prune --all")]
pub struct PruneArgs {
    /// Also forget the build cache, and with it the layers that no image uses, and cache mounts
    #[arg(short, long)]
    pub all: bool,
    /// Accepted for docker's sake: longshore never asks back
    #[arg(short, long)]
    pub force: bool,
    /// Remove nothing, only tell
    #[arg(long)]
    pub dry_run: bool,
}

/// `longshore store`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Check that everything that is kept is whole
    Check(StoreCheckArgs),
}

/// `longshore store check`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore store check
  longshore store check --quick --format json
  longshore store check --repair

Prints a line for each thing that is wrong, and for each leftover of a process that died, which is
nothing wrong: the next collection takes it. Exit code: 1 if something is (still) wrong.")]
pub struct StoreCheckArgs {
    /// Drop what is wrong, so that the next build or pull makes it again; and leftovers
    ///
    /// An image that lost a layer goes with its names. Nobody else may be using the folder.
    #[arg(long)]
    pub repair: bool,
    /// Look at names and sizes only, and read neither blobs nor layers
    #[arg(long)]
    pub quick: bool,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}
