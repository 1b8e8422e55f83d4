//! Flags of `longshore registry` and its commands.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `longshore registry …`.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Serve images from a folder, until interrupted
    Serve(ServeArgs),
}

/// `longshore registry serve`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore registry serve
  longshore registry serve --addr 0.0.0.0:5000 --root /srv/registry
  longshore registry serve --s3 bucket=images,region=eu-central-1

The folder is laid out as CNCF distribution (registry:2, docker-registry) does: either can be
started on a folder of the other.")]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 lets the kernel choose, and the choice is printed
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5000")]
    pub addr: String,
    /// Folder of the registry [default: `registry` in longshore's own folder]
    // The name and identifier of the global option, which this one takes the place of.
    #[arg(id = "root", long = "root", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Bucket of an S3-compatible store instead of a folder; any number of servers may share one
    #[arg(long, value_name = "KEY=VALUE,…", conflicts_with = "root")]
    pub s3: Option<String>,
    /// Users who may use the registry, as `htpasswd -B` writes them [default: everybody may]
    #[arg(long, value_name = "FILE")]
    pub htpasswd: Option<PathBuf>,
    /// Certificate, then its issuers, in PEM: serve https
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Refuse every change
    #[arg(long)]
    pub read_only: bool,
    /// Text that clients are to show their users, in every answer
    #[arg(long, value_name = "TEXT")]
    pub warning: Option<String>,
}
