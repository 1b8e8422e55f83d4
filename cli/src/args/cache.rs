//! `cache`: the directories that steps keep between builds.

use clap::{Args, Subcommand};

use super::ListArgs;

/// `longshore cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List cache mounts
    Ls(CacheLsArgs),
    /// Remove cache mounts
    Rm(CacheRmArgs),
}

/// `longshore cache ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore cache ls
  longshore cache ls /root/.npm
  longshore cache ls --format json | jq -r 'select(.SizeBytes > 1e9) | .Cache'

`longshore prune --filter type=cache-mounts` removes those that were not used for long.")]
pub struct CacheLsArgs {
    /// Only these: IDs as Dockerfiles have them, or starts of names
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Print names only, in full
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore cache rm`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore cache rm /root/.npm
  longshore cache rm 3e8d29445b11
  longshore cache rm --force /var/cache/apt")]
pub struct CacheRmArgs {
    /// IDs as Dockerfiles have them (all caches of that ID), or starts of names
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
    /// Wait for those that are in use
    #[arg(short, long)]
    pub force: bool,
}
