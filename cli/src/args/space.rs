//! `du`, `prune` and `store`: what is on disk.

use clap::{Args, Subcommand};

use super::{Filter, ListArgs};
use crate::quantity;

/// `longshore du`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore du
  longshore du --verbose --filter type=cache-mounts
  longshore du --format json | jq -s 'map(.SizeBytes) | add'")]
pub struct DuArgs {
    /// List every layer, blob, cache mount and so on, the largest first
    #[arg(short, long)]
    pub verbose: bool,
    /// Count only what fits; may be repeated
    ///
    /// type=TYPE (records, images, cache-mounts, git, contexts; or as buildx calls them), id=PREFIX,
    /// inuse[=false], until=TIME or unused-for=DURATION (last used before, or so long ago).
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore prune`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore prune
  longshore prune --all --filter until=24h
  longshore prune --max-used-space 20GB
  longshore prune --filter type=cache-mounts --dry-run

What is in use, and images that have a name, always stay. See docs/reference/disk.md.")]
pub struct PruneArgs {
    /// Also give up the build cache: records, with the layers that no image uses, cache mounts, git
    /// repositories, and what is remembered of contexts
    #[arg(short, long)]
    pub all: bool,
    /// Give up only what fits; may be repeated
    ///
    /// until=TIME or unused-for=DURATION (last used before, or so long ago), label[!]=KEY[=VALUE] (of
    /// images without a name), type=TYPE (records, images, cache-mounts, git, contexts; or as buildx
    /// calls them) and id=PREFIX, which look at the build cache also without --all.
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
    /// Give up the longest unused parts of the cache until it is no larger than this
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub max_used_space: Option<u64>,
    /// Leave the cache this much, whatever else is asked for
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub reserved_space: Option<u64>,
    /// Give up the longest unused parts of the cache until this much of the disk is free
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub min_free_space: Option<u64>,
    /// The older name of --reserved-space
    #[arg(long, value_name = "SIZE", value_parser = quantity::size, conflicts_with = "reserved_space")]
    pub keep_storage: Option<u64>,
    /// Keep what was used within this time; looks at the build cache also without --all
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub keep_duration: Option<std::time::Duration>,
    /// Accepted for docker's sake: longshore never asks back
    #[arg(short, long)]
    pub force: bool,
    /// Remove nothing, only tell
    #[arg(long)]
    pub dry_run: bool,
    /// Tell the exact size of everything, in bytes
    #[arg(short, long)]
    pub verbose: bool,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
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
