//! `history` and `explain`: images' and builds' pasts.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::ListArgs;

/// `longshore history`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  longshore history --no-trunc web
  longshore history ls
  longshore history logs
  longshore history graph -o build.html

An image whose name is that of a command is reached by `longshore history image ls` or
`longshore history -- ls`."
)]
pub struct HistoryArgs {
    /// What to do with the history of builds.
    #[command(subcommand)]
    pub command: Option<HistoryCommand>,
    /// The history of an image.
    #[command(flatten)]
    pub image: ImageHistoryArgs,
}

/// `longshore history …`.
#[derive(Debug, Subcommand)]
pub enum HistoryCommand {
    /// Show the steps that made an image: the same as `history IMAGE`
    #[command(after_help = "Example:\n  longshore history image ls")]
    Image(ImageHistoryArgs),
    /// List builds, latest first
    Ls(HistoryLsArgs),
    /// Show a build: its steps, their timings, what they wrote
    #[command(visible_alias = "inspect")]
    Show(HistoryShowArgs),
    /// Print what the steps of a build wrote
    Logs(HistoryLogsArgs),
    /// Forget builds
    Rm(HistoryRmArgs),
    /// Write a page for the browser: graph, timeline and critical path of a build
    Graph(HistoryGraphArgs),
}

/// `longshore history IMAGE`.
#[derive(Args, Debug)]
pub struct ImageHistoryArgs {
    /// Name or ID
    // Absent only where a subcommand stands in its place.
    #[arg(value_name = "IMAGE", required = true)]
    pub image: Option<String>,
    /// Print steps in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore history ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore history ls
  longshore history ls -n 5 --format json")]
pub struct HistoryLsArgs {
    /// Only the latest COUNT
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub limit: Option<usize>,
    /// Print IDs only
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore history show`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore history show
  longshore history show 3f9a --logs
  longshore history show latest --logs --step 4")]
pub struct HistoryShowArgs {
    /// The start of its ID, or `latest`
    #[arg(value_name = "BUILD", default_value = "latest")]
    pub build: String,
    /// Print everything that its steps wrote
    #[arg(long)]
    pub logs: bool,
    /// Only this step: its number, or a part of its name
    #[arg(long, value_name = "STEP")]
    pub step: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore history logs`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore history logs
  longshore history logs 3f9a 'RUN make'
  longshore history logs latest 4 --raw > make.log
  longshore history logs --progress rawjson")]
pub struct HistoryLogsArgs {
    /// The start of its ID, or `latest`
    #[arg(value_name = "BUILD", default_value = "latest")]
    pub build: String,
    /// Only this step: its number, or a part of its name
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// Print what was written byte by byte, and nothing else
    #[arg(long, conflicts_with = "progress")]
    pub raw: bool,
    /// How to print: as the build itself would have printed it
    #[arg(long, value_name = "HOW", default_value = "plain")]
    pub progress: LogFormat,
}

/// How the log of a build is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line after the other.
    Plain,
    /// One JSON object per line.
    Rawjson,
}

/// `longshore history rm`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore history rm 3f9a
  longshore history rm --all")]
pub struct HistoryRmArgs {
    /// Starts of their IDs
    #[arg(value_name = "BUILD", required_unless_present = "all")]
    pub builds: Vec<String>,
    /// All that have ended
    #[arg(long, conflicts_with = "builds")]
    pub all: bool,
}

/// `longshore history graph`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore history graph -o build.html
  longshore history graph 3f9a > build.html")]
pub struct HistoryGraphArgs {
    /// The start of its ID, or `latest`
    #[arg(value_name = "BUILD", default_value = "latest")]
    pub build: String,
    /// Write to this file, not to stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `longshore explain`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore explain
  longshore explain 3f9a
  longshore explain latest 'RUN make'
  longshore explain --format json | jq '.steps[] | select(.verdict == \"ran\")'")]
pub struct ExplainArgs {
    /// The start of its ID, or `latest`
    #[arg(value_name = "BUILD", default_value = "latest")]
    pub build: String,
    /// Only this step: its number, or a part of its name
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}
