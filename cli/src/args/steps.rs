//! Flags of `build` that are about its `RUN` steps.

use clap::Args;

const HEADING: &str = "Options of RUN steps";

/// What `RUN` steps are given, and what they may do.
#[derive(Args, Debug)]
pub struct StepArgs {
    /// Give steps a secret; may be repeated
    ///
    /// It is the file `src` or the variable `env`; without either, the variable of that name if there is one, else the
    /// file. A step takes it with RUN --mount=type=secret,id=ID, and it is kept in no layer, record or log. Another
    /// content runs nothing again, unless `key=content` says so.
    #[arg(
        long = "secret",
        value_name = "id=ID[,src=FILE|env=NAME][,key=content]",
        help_heading = HEADING
    )]
    pub secrets: Vec<String>,
    /// Give steps an SSH agent or private keys; may be repeated
    ///
    /// Without a path it is the agent of SSH_AUTH_SOCK. A step takes it with RUN --mount=type=ssh.
    #[arg(long, value_name = "ID[=SOCKET|KEY[,KEY...]]", help_heading = HEADING)]
    pub ssh: Vec<String>,
    /// Let steps do more: network.host, security.insecure, device or device=NAME; may be repeated
    #[arg(long, value_name = "ENTITLEMENT", help_heading = HEADING)]
    pub allow: Vec<String>,
    /// The network of steps that do not say: default, none or host
    ///
    /// `default` leads out, as the host's does, but the host's loopback is not its own.
    #[arg(
        long,
        value_name = "MODE",
        default_value = "default",
        help_heading = HEADING
    )]
    pub network: String,
    /// Whose ids steps have: `private` or `host`
    ///
    /// Where longshore is root, `private` makes root in a step nobody on this machine, while files keep their owners.
    #[arg(
        long = "userns",
        value_name = "MODE",
        default_value = "private",
        value_parser = ["private", "host"],
        help_heading = HEADING
    )]
    pub user_namespace: String,
    /// Add a line to /etc/hosts; may be repeated
    #[arg(long = "add-host", value_name = "NAME:ADDRESS", help_heading = HEADING)]
    pub hosts: Vec<String>,
    /// The size of /dev/shm, such as 128m [default: 64m]
    #[arg(long, value_name = "BYTES", help_heading = HEADING)]
    pub shm_size: Option<String>,
    /// Limit each process, such as nofile=1024:2048; may be repeated
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", help_heading = HEADING)]
    pub ulimits: Vec<String>,
    /// Make the steps' control groups below this one
    #[arg(long, value_name = "PATH", help_heading = HEADING)]
    pub cgroup_parent: Option<String>,
    /// The memory that a step may use, such as 2g
    #[arg(short, long, value_name = "BYTES", help_heading = HEADING)]
    pub memory: Option<String>,
    /// Memory and swap together; -1 is unlimited swap
    #[arg(
        long,
        value_name = "BYTES",
        allow_hyphen_values = true,
        requires = "memory",
        help_heading = HEADING
    )]
    pub memory_swap: Option<String>,
    /// Weight among others that want a processor; 1024 is usual
    #[arg(
        short = 'c',
        long,
        value_name = "WEIGHT",
        value_parser = clap::value_parser!(u64).range(2..=262_144),
        help_heading = HEADING
    )]
    pub cpu_shares: Option<u64>,
    /// Processor time that a step may use per period, in microseconds
    #[arg(
        long,
        value_name = "MICROSECONDS",
        value_parser = clap::value_parser!(u64).range(1_000..),
        help_heading = HEADING
    )]
    pub cpu_quota: Option<u64>,
    /// The period of --cpu-quota, in microseconds [default: 100000]
    #[arg(
        long,
        value_name = "MICROSECONDS",
        value_parser = clap::value_parser!(u64).range(1_000..=1_000_000),
        help_heading = HEADING
    )]
    pub cpu_period: Option<u64>,
    /// Processors that steps may use, such as 0-2,4
    #[arg(long, value_name = "LIST", help_heading = HEADING)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that steps may use, such as 0,1
    #[arg(long, value_name = "LIST", help_heading = HEADING)]
    pub cpuset_mems: Option<String>,
    /// How many processes and threads a step may have; -1 is unlimited
    #[arg(
        long,
        value_name = "COUNT",
        allow_hyphen_values = true,
        value_parser = clap::value_parser!(i64).range(-1..),
        help_heading = HEADING
    )]
    pub pids_limit: Option<i64>,
    /// Weight among others that read and write disks, 10 to 1000; 500 is usual
    #[arg(
        long,
        value_name = "WEIGHT",
        value_parser = clap::value_parser!(u64).range(10..=1_000),
        help_heading = HEADING
    )]
    pub blkio_weight: Option<u64>,
    /// no-new-privileges, seccomp=FILE, seccomp=unconfined or systempaths=unconfined; may be repeated
    #[arg(long = "security-opt", value_name = "OPTION", help_heading = HEADING)]
    pub security: Vec<String>,
}
