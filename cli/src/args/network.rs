//! `network`: docker's flags.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::ListArgs;

/// `longshore network …`.
#[derive(Subcommand, Debug)]
pub enum NetworkCommand {
    /// Make a network
    Create(NetworkCreateArgs),
    /// Show networks and who is in them, as JSON
    Inspect(NetworkInspectArgs),
    /// List networks
    Ls(NetworkLsArgs),
    /// Remove all networks that nobody is in
    Prune(NetworkPruneArgs),
    /// Remove networks
    Rm(NetworkRmArgs),
}

/// `longshore network create`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore network create shop
  longshore network create --subnet 10.5.0.0/16 --gateway 10.5.0.1 shop
  longshore network create --internal --label team=till closed

Without --subnet a subnet is chosen that neither another network nor this machine has.")]
pub struct NetworkCreateArgs {
    /// Addresses of the network, one subnet of each family; may be repeated
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    pub subnet: Vec<String>,
    /// Address of the way out, in one of the subnets; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Give it IPv6 addresses, too
    #[arg(long)]
    pub ipv6: bool,
    /// Let nothing in or out
    #[arg(long)]
    pub internal: bool,
    /// Note something down; may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// How it is made: `bridge` is the only way
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge", value_parser = ["bridge"])]
    pub driver: String,
    /// Its name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `longshore network ls`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore network ls
  longshore network ls -q
  longshore network ls --format json | jq -r .Name")]
pub struct NetworkLsArgs {
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print.
    #[command(flatten)]
    pub list: ListArgs,
}

/// `longshore network inspect`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore network inspect shop
  longshore network inspect -f '{{(index .IPAM.Config 0).Subnet}}' shop")]
pub struct NetworkInspectArgs {
    /// json, or a template such as '{{.Driver}}', in place of a JSON array
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NETWORK", required = true)]
    pub names: Vec<String>,
}

/// `longshore network rm`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore network rm shop")]
pub struct NetworkRmArgs {
    /// Do not mind one that is not there
    #[arg(short, long)]
    pub force: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NETWORK", required = true)]
    pub names: Vec<String>,
}

/// `longshore network prune`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore network prune")]
pub struct NetworkPruneArgs {
    /// Taken for docker's sake: nothing is asked anyway
    #[arg(short, long)]
    pub force: bool,
}
