//! Flags of `longshore registry` and its commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use registry_server::collect::Retention;

use crate::config::serve::upstream::UpstreamConfig;
use crate::quantity;

/// `longshore registry …`.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Serve images from a folder, until interrupted
    Serve(Box<ServeArgs>),
    /// Remove what nothing needs, also while the registry is served
    Gc(GcArgs),
    /// Hash everything again, and tell what is damaged
    Verify(VerifyArgs),
    /// Mirror what the configuration says of other registries, once
    Sync(RegistrySyncArgs),
    /// Count repositories, tags, manifests, blobs and their bytes
    Stats(RegistryStatsArgs),
    /// Copy a registry from a folder or bucket to another
    Migrate(MigrateArgs),
    /// Write users and hashes of their passwords, for `serve --htpasswd`
    Htpasswd(HtpasswdArgs),
}

/// Where the registry of `longshore registry` commands is.
#[derive(Args, Debug)]
pub struct RegistryPlace {
    /// Folder of the registry [default: `registry` in longshore's own folder]
    // The name and identifier of the global option, which this one takes the place of.
    #[arg(id = "root", long = "root", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Bucket of an S3-compatible store instead of a folder, as `registry serve --s3` has it
    #[arg(long, value_name = "KEY=VALUE,…", conflicts_with = "root")]
    pub s3: Option<String>,
}

/// What a collection of garbage removes.
#[derive(Args, Debug)]
pub struct CollectArgs {
    /// Remove manifests that no tag leads to, too
    #[arg(long)]
    pub untagged: bool,
    /// Remove tags but those that a rule keeps, as repository=PATTERN,tag=PATTERN,last=N,within=DURATION,pulled=DURATION
    #[arg(long, value_name = "RULE", value_parser = str::parse::<Retention>)]
    pub retain: Vec<Retention>,
    /// Keep what is younger; longer than any push takes
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration, default_value = "24h")]
    pub grace: Duration,
}

/// `longshore registry gc`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore registry gc --dry-run --untagged
  longshore registry gc --untagged --retain 'repository=team/*,tag=pr-*,last=10,within=30d'
  longshore registry gc --s3 bucket=images,region=eu-central-1 --retain pulled=90d

Of the tags that a rule is about, those stay that are among its last, were put within its time, or
were pulled or put within the other; tags that no rule is about stay. `*` stands for any characters, `?` for one. Pushes and
pulls go on meanwhile.")]
pub struct GcArgs {
    /// Where it is.
    #[command(flatten)]
    pub registry: RegistryPlace,
    /// What goes.
    #[command(flatten)]
    pub collect: CollectArgs,
    /// Remove nothing, and tell what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `longshore registry verify`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore registry verify --quarantine

Exits with 1 where something is damaged. What is set aside can be pushed again.")]
pub struct VerifyArgs {
    /// Where it is.
    #[command(flatten)]
    pub registry: RegistryPlace,
    /// Set damaged data aside, so that it is served to nobody
    #[arg(long)]
    pub quarantine: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `longshore registry stats`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore registry stats --json | jq .bytes")]
pub struct RegistryStatsArgs {
    /// Where it is.
    #[command(flatten)]
    pub registry: RegistryPlace,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `longshore registry htpasswd`.
#[derive(Args, Debug)]
#[command(override_usage = "longshore registry htpasswd [OPTIONS] FILE USER
       longshore registry htpasswd -n [OPTIONS] USER")]
#[command(after_help = "Examples:
  longshore registry htpasswd users ann
  pwgen -s 20 1 | longshore registry htpasswd -i users ci
  longshore registry htpasswd -nbB ann secret
  longshore registry htpasswd -D users ann

Asks for the password, twice, unless it is given. FILE is made if it is not there, and replaced
whole; a registry that uses it sees the change at once. Passwords become Argon2id hashes, or
with -B bcrypt's, which CNCF distribution takes, too.")]
pub struct HtpasswdArgs {
    /// The users file, unless the line is printed; the user; and with -b the password
    #[arg(value_name = "FILE USER", required = true, num_args = 1..=3)]
    pub words: Vec<String>,
    /// Print the line, and write no file
    #[arg(short = 'n', long)]
    pub print: bool,
    /// Read the password from stdin
    #[arg(short = 'i', long)]
    pub password_stdin: bool,
    /// Take the password as the last argument, where others on this machine can see it
    #[arg(short = 'b', long, conflicts_with = "password_stdin")]
    pub batch: bool,
    /// Make FILE, and fail if it is there
    #[arg(short = 'c', long, conflicts_with_all = ["print", "delete", "verify"])]
    pub create: bool,
    /// Hash with bcrypt
    #[arg(short = 'B', long)]
    pub bcrypt: bool,
    /// Rounds of bcrypt, as their binary logarithm
    #[arg(
        short = 'C',
        long,
        value_name = "N",
        requires = "bcrypt",
        default_value_t = 10
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(4..=17))]
    pub cost: u32,
    /// Hash with Argon2id, as without this
    #[arg(long, conflicts_with = "bcrypt")]
    pub argon2: bool,
    /// Remove the user
    #[arg(short = 'D', long, conflicts_with_all = ["print", "password_stdin", "batch", "verify"])]
    pub delete: bool,
    /// Tell whether the password is right: exits with 1 if it is not
    #[arg(short = 'v', long, conflicts_with_all = ["print", "bcrypt", "argon2"])]
    pub verify: bool,
}

/// `longshore registry migrate`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore registry migrate /srv/registry s3:bucket=images,region=eu-central-1
  longshore registry migrate s3:bucket=images,region=eu-central-1 /srv/registry

What is there already is not copied again, so a run that was interrupted goes on, and a second one brings what was pushed
during the first. Everything is hashed on its way; exits with 1 where something was damaged. A folder may be one of CNCF distribution
(registry:2, docker-registry). Uploads that are not finished are left out.")]
pub struct MigrateArgs {
    /// Folder, or bucket as s3: and what `registry serve --s3` takes
    #[arg(value_name = "FROM")]
    pub from: String,
    /// The same, of where to; made if it is not there
    #[arg(value_name = "TO")]
    pub to: String,
    /// Copy nothing, and tell what would be
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `longshore registry sync`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore registry sync --config /etc/longshore/registry.toml --dry-run
  longshore registry sync --config /etc/longshore/registry.toml base

Runs each [[sync]] of the file, or those that are named, whether the registry is served or not.
Exits with 4 where something could not be mirrored, after everything else was.")]
pub struct RegistrySyncArgs {
    /// Names of syncs [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Configuration file of the server
    // The name and identifier of the global option, which this one takes the place of.
    #[arg(id = "config", long = "config", value_name = "FILE", required = true)]
    pub file: Option<PathBuf>,
    /// Where it is.
    #[command(flatten)]
    pub registry: RegistryPlace,
    /// Write nothing, and tell what would be set and removed
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON: a line for each tag, and one for each sync
    #[arg(long)]
    pub json: bool,
}

impl RegistrySyncArgs {
    /// The server that it is about.
    pub fn as_serve(&self) -> ServeArgs {
        ServeArgs {
            file: self.file.clone(),
            addr: None,
            folder: self.registry.folder.clone(),
            s3: self.registry.s3.clone(),
            redirect: false,
            page: None,
            scrub_every: None,
            htpasswd: None,
            tls_cert: None,
            tls_key: None,
            read_only: false,
            metrics: false,
            access_log: None,
            gc_every: None,
            warning: None,
            upstreams: Vec::new(),
            collect: CollectArgs {
                untagged: false,
                retain: Vec::new(),
                grace: Duration::ZERO,
            },
        }
    }
}

/// `longshore registry serve`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore registry serve
  longshore registry serve --addr 0.0.0.0:5000 --root /srv/registry
  longshore registry serve --s3 bucket=images,region=eu-central-1
  longshore registry serve --config /etc/longshore/registry.toml
  longshore registry serve --upstream docker.io --upstream ghcr.io

Flags go before the file, which docs/reference/registry-access.md describes. The folder is laid out as CNCF distribution (registry:2, docker-registry) does: either can be
started on a folder of the other.")]
pub struct ServeArgs {
    /// Configuration file of the server; longshore's own is then the one that LONGSHORE_CONFIG names, or the usual one
    // The name and identifier of the global option, which this one takes the place of.
    #[arg(id = "config", long = "config", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Address and port to listen on; port 0 lets the kernel choose, and the choice is printed [default: 127.0.0.1:5000]
    #[arg(long, value_name = "HOST:PORT")]
    pub addr: Option<String>,
    /// Folder of the registry [default: `registry` in longshore's own folder]
    // The name and identifier of the global option, which this one takes the place of.
    #[arg(id = "root", long = "root", value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Bucket of an S3-compatible store instead of a folder; any number of servers may share one
    #[arg(long, value_name = "KEY=VALUE,…", conflicts_with = "root")]
    pub s3: Option<String>,
    /// Send clients to the bucket for blobs, with URLs that are good for 20 minutes
    #[arg(long)]
    pub redirect: bool,
    /// Users who may use the registry, as `registry htpasswd` writes them [default: everybody may]
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
    /// Serve numbers for Prometheus at `/metrics`, to all who may log in
    #[arg(long)]
    pub metrics: bool,
    /// Serve a web page at `/`; `--page=false` serves none [default: true]
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub page: Option<bool>,
    /// Append a line of JSON to FILE for each request, or print it with `-`
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Collect garbage this often, as `registry gc` does once
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub gc_every: Option<Duration>,
    /// Hash everything again, slowly, this often, and tell what is damaged
    #[arg(long, value_name = "DURATION", value_parser = quantity::duration)]
    pub scrub_every: Option<Duration>,
    /// Text that clients are to show their users, in every answer
    #[arg(long, value_name = "TEXT")]
    pub warning: Option<String>,
    /// Registry that is read through this one: its images are found below PREFIX, its host's name if that is not said, or
    /// with the prefix `/` below no other name, as docker's `registry-mirrors` needs it
    #[arg(id = "upstream", long = "upstream", value_name = "[PREFIX=]URL")]
    #[arg(value_parser = str::parse::<UpstreamConfig>)]
    pub upstreams: Vec<UpstreamConfig>,
    /// What a collection removes.
    #[command(flatten, next_help_heading = "Collections")]
    pub collect: CollectArgs,
}
