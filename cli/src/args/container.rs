//! Commands on containers: docker's names, short flags and defaults.

use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::toggle::Toggle;

const RESOURCES: &str = "Resources";
const SECURITY: &str = "What the container may do";
const NETWORK: &str = "Network";
const HEALTH: &str = "Health";

/// What a container is made of: flags of `run` and `create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Print this help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,
    /// Name of the container; one is made up where none is given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Remove the container when it has ended, with the volumes that have no name
    #[arg(long)]
    pub rm: bool,
    /// Keep stdin open
    #[arg(short, long)]
    pub interactive: bool,
    /// Stay with stdin, stdout or stderr, and with no other; may be repeated [default: stdout and stderr, with -i stdin]
    #[arg(short, long = "attach", value_name = "STREAM", value_parser = ["stdin", "stdout", "stderr"], ignore_case = true, hide_possible_values = true)]
    pub attach: Vec<String>,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable; without `=VALUE` it is taken from the environment; may be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one to a line; may be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
    /// Set a label; may be repeated
    #[arg(short, long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Read labels from a file, one to a line; may be repeated
    #[arg(long = "label-file", value_name = "FILE")]
    pub label_files: Vec<PathBuf>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// A further group of the user, by name or number; may be repeated
    #[arg(long = "group-add", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Mount a file or folder of this machine, or a volume; may be repeated
    #[arg(short, long = "volume", value_name = "[SOURCE:]TARGET[:ro]")]
    pub volumes: Vec<String>,
    /// Mount a volume, a file or folder, or memory; may be repeated
    ///
    /// type=volume (the default), type=bind or type=tmpfs, with target=, source=, readonly, tmpfs-size=, tmpfs-mode=,
    /// volume-nocopy.
    #[arg(long = "mount", value_name = "KEY=VALUE,...")]
    pub mounts: Vec<String>,
    /// Mount what another container has mounted, its files and folders and volumes, where nothing else is; may be repeated
    #[arg(long = "volumes-from", value_name = "CONTAINER[:ro]")]
    pub volumes_from: Vec<String>,
    /// Mount memory at a path; may be repeated
    #[arg(long = "tmpfs", value_name = "TARGET[:size=BYTES,mode=MODE,ro]")]
    pub tmpfs: Vec<String>,
    /// Run this in place of the image's ENTRYPOINT; an empty one is none
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Begin with a small init that reaps orphans and passes signals on, so that a signal ends a command that does not
    /// handle it; with `--init=false` the command itself is process 1
    #[arg(long, toggle = "true")]
    pub init: bool,
    /// What to do when the command ends: no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no")]
    pub restart: String,
    /// The signal that `stop` sends [default: the image's STOPSIGNAL, else TERM]
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds after which `stop` kills; -1 is never [default: 10]
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub stop_timeout: Option<i64>,
    /// Write the container's id to this file, which may not be there yet
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,
    /// When to pull the image: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub pull: PullWhen,
    /// The platform of the image, such as linux/arm64: another one here is an error, and is what is pulled [default: this
    /// machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = super::platform)]
    pub platform: Option<store::oci::Platform>,
    /// Say nothing of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// What is kept of the output: json-file or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file")]
    pub log_driver: LogDriver,
    /// Bounds of the log: max-size=BYTES and max-file=COUNT; may be repeated
    #[arg(long = "log-opt", value_name = "KEY=VALUE")]
    pub log_opts: Vec<String>,
    /// Its network: bridge, host, none, container:NAME for that of another, or one that `longshore network create` made
    /// [default: $LONGSHORE_NETWORK, else bridge]
    #[arg(long, visible_alias = "net", value_name = "NETWORK", help_heading = NETWORK)]
    pub network: Option<String>,
    /// Its address there, one of each family; may be repeated
    #[arg(long = "ip", visible_alias = "ip6", value_name = "ADDRESS", help_heading = NETWORK)]
    pub addresses: Vec<std::net::IpAddr>,
    /// A name that others on the network find it by; may be repeated
    #[arg(long = "network-alias", value_name = "NAME", help_heading = NETWORK)]
    pub aliases: Vec<String>,
    /// Host name of the container [default: the host's with its network, else the beginning of the id]
    #[arg(short = 'h', long, value_name = "NAME", help_heading = NETWORK)]
    pub hostname: Option<String>,
    /// NIS domain name of the container
    #[arg(long, value_name = "NAME", help_heading = NETWORK)]
    pub domainname: Option<String>,
    /// Add a line to /etc/hosts; may be repeated
    #[arg(long = "add-host", value_name = "NAME:ADDRESS", help_heading = NETWORK)]
    pub hosts: Vec<String>,
    /// Ask this name server; may be repeated [default: those of the host]
    #[arg(long = "dns", value_name = "ADDRESS", help_heading = NETWORK)]
    pub dns: Vec<std::net::IpAddr>,
    /// Complete names with this domain; may be repeated
    #[arg(long = "dns-search", value_name = "DOMAIN", help_heading = NETWORK)]
    pub dns_search: Vec<String>,
    /// An option of resolv.conf; may be repeated
    #[arg(long = "dns-option", visible_alias = "dns-opt", value_name = "OPTION", help_heading = NETWORK)]
    pub dns_options: Vec<String>,
    /// Lead a port of the host to one of the container; may be repeated
    ///
    /// `80` takes a port that is free, `8080:80` this one at all addresses, `127.0.0.1:8080:80/udp` at one; ranges such as
    /// 8000-8009 are taken on both sides.
    #[arg(short = 'p', long = "publish", value_name = "[[ADDRESS:]HOST_PORT:]PORT[/PROTOCOL]", help_heading = NETWORK)]
    pub publish: Vec<String>,
    /// Lead ports of the host that are free to all that the image exposes
    #[arg(short = 'P', long, help_heading = NETWORK)]
    pub publish_all: bool,
    /// Note that the command listens on a port; may be repeated
    #[arg(long = "expose", value_name = "PORT[-PORT][/PROTOCOL]", help_heading = NETWORK)]
    pub expose: Vec<String>,
    /// What it may use.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// The size of /dev/shm, such as 128m [default: 64m]
    #[arg(long, value_name = "BYTES", help_heading = RESOURCES)]
    pub shm_size: Option<String>,
    /// How readily the kernel kills it for want of memory, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, value_parser = clap::value_parser!(i16).range(-1_000..=1_000), help_heading = RESOURCES)]
    pub oom_score_adj: Option<i16>,
    /// Limit each process, such as nofile=1024:2048; may be repeated
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", help_heading = RESOURCES)]
    pub ulimits: Vec<String>,
    /// Make the container's control group below this one
    #[arg(long, value_name = "PATH", help_heading = RESOURCES)]
    pub cgroup_parent: Option<String>,
    /// Whose ids the container has: `private` or `host` [default: private; host with --network host]
    ///
    /// Where longshore is root, `private` makes root in the container nobody on this machine, while files keep their owners. On the
    /// host's network nobody may listen on ports below 1024, so there `private` has to be asked for.
    #[arg(
        long = "userns",
        value_name = "MODE",
        value_parser = ["private", "host"],
        hide_possible_values = true,
        help_heading = SECURITY
    )]
    pub user_namespace: Option<String>,
    /// Whose shared memory and message queues it has: private, host or container:NAME
    #[arg(long = "ipc", value_name = "MODE", default_value = "private", help_heading = SECURITY)]
    pub ipc: String,
    /// Whose processes it sees: its own, the host's (`host`), or those of another (`container:NAME`)
    #[arg(long = "pid", value_name = "MODE", default_value = "private", help_heading = SECURITY)]
    pub pid: String,
    /// Whose host name it has: private, host or container:NAME
    #[arg(long = "uts", value_name = "MODE", default_value = "private", help_heading = SECURITY)]
    pub uts: String,
    /// Whose control groups it sees: its own
    #[arg(long = "cgroupns", value_name = "MODE", default_value = "private", value_parser = ["private"], hide_possible_values = true, help_heading = SECURITY)]
    pub cgroups: String,
    /// Set one of the kernel's settings that a container has for itself, such as net.core.somaxconn=1024; may be repeated
    #[arg(long = "sysctl", value_name = "NAME=VALUE", help_heading = SECURITY)]
    pub sysctls: Vec<String>,
    /// Make the root file system read-only
    #[arg(long, help_heading = SECURITY)]
    pub read_only: bool,
    /// Give the container all that the user who starts it may do
    #[arg(long, help_heading = SECURITY)]
    pub privileged: bool,
    /// Add a capability, such as NET_ADMIN, or ALL; may be repeated
    #[arg(long = "cap-add", value_name = "CAPABILITY", help_heading = SECURITY)]
    pub cap_add: Vec<String>,
    /// Take a capability away, or ALL; may be repeated
    #[arg(long = "cap-drop", value_name = "CAPABILITY", help_heading = SECURITY)]
    pub cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=FILE, seccomp=unconfined or systempaths=unconfined; may be repeated
    #[arg(long = "security-opt", value_name = "OPTION", help_heading = SECURITY)]
    pub security: Vec<String>,
    /// Give the container a device of this machine; may be repeated
    #[arg(long = "device", value_name = "SOURCE[:TARGET]", help_heading = SECURITY)]
    pub devices: Vec<String>,
    /// The command that says whether the container is well, run by its shell
    #[arg(long, value_name = "COMMAND", help_heading = HEALTH)]
    pub health_cmd: Option<String>,
    /// Time between two checks, such as 30s
    #[arg(long, value_name = "DURATION", help_heading = HEALTH)]
    pub health_interval: Option<String>,
    /// Time after which a check counts as failed
    #[arg(long, value_name = "DURATION", help_heading = HEALTH)]
    pub health_timeout: Option<String>,
    /// Time after the start in which failures do not count
    #[arg(long, value_name = "DURATION", help_heading = HEALTH)]
    pub health_start_period: Option<String>,
    /// Time between two checks in the start period
    #[arg(long, value_name = "DURATION", help_heading = HEALTH)]
    pub health_start_interval: Option<String>,
    /// Failures in a row that make the container unhealthy
    #[arg(long, value_name = "COUNT", help_heading = HEALTH)]
    pub health_retries: Option<u32>,
    /// Do not check the container's health, whatever the image says
    #[arg(long, conflicts_with_all = ["health_cmd", "health_interval", "health_timeout", "health_start_period", "health_start_interval", "health_retries"], help_heading = HEALTH)]
    pub no_healthcheck: bool,
    /// Name or ID of the image, pulled where it is not in the store; and what to run in place of its CMD
    // One argument: from the image on, nothing is a flag of this command.
    #[arg(value_name = "IMAGE [CMD]", required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

/// What a container may use: flags of `run`, `create` and `update`.
#[derive(Args, Debug)]
pub struct LimitArgs {
    /// The memory that the container may use, such as 2g
    #[arg(short, long, value_name = "BYTES", help_heading = RESOURCES)]
    pub memory: Option<String>,
    /// Memory and swap together; -1 is unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, help_heading = RESOURCES)]
    pub memory_swap: Option<String>,
    /// Memory that others are to leave it where there is little
    #[arg(long, value_name = "BYTES", help_heading = RESOURCES)]
    pub memory_reservation: Option<String>,
    /// How many processors the container may use, such as 1.5
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["cpu_quota", "cpu_period"], help_heading = RESOURCES)]
    pub cpus: Option<f64>,
    /// Weight among others that want a processor; 1024 is usual
    #[arg(short, long, value_name = "WEIGHT", value_parser = clap::value_parser!(u64).range(2..=262_144), help_heading = RESOURCES)]
    pub cpu_shares: Option<u64>,
    /// Processor time per period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1_000..), help_heading = RESOURCES)]
    pub cpu_quota: Option<u64>,
    /// The period of --cpu-quota, in microseconds [default: 100000]
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000), help_heading = RESOURCES)]
    pub cpu_period: Option<u64>,
    /// Processors that may be used, such as 0-2,4
    #[arg(long, value_name = "LIST", help_heading = RESOURCES)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, such as 0,1
    #[arg(long, value_name = "LIST", help_heading = RESOURCES)]
    pub cpuset_mems: Option<String>,
    /// How many processes and threads there may be; -1 is unlimited
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true, help_heading = RESOURCES)]
    pub pids_limit: Option<i64>,
    /// Weight among others that read and write disks, 10 to 1000
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u64).range(10..=1_000), help_heading = RESOURCES)]
    pub blkio_weight: Option<u64>,
}

impl CreateArgs {
    /// Name or ID of the image.
    pub fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// What to run in place of the image's CMD.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullWhen {
    /// If it is not here.
    Missing,
    /// In any case.
    Always,
    /// Not at all.
    Never,
}

/// What is kept of a container's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogDriver {
    /// All of it, as JSON lines.
    JsonFile,
    /// Nothing.
    None,
}

/// `longshore run`.
#[derive(Args, Debug)]
#[command(
    disable_help_flag = true,
    override_usage = "longshore run [OPTIONS] IMAGE [CMD]...",
    after_help = "Examples:
  longshore run --rm localhost:5000/web
  longshore run --rm -it web sh
  longshore run -d --name web --restart unless-stopped -v data:/data web
  longshore run --rm -e DEBUG=1 -v \"$PWD\":/src -w /src golang go test ./..."
)]
pub struct RunArgs {
    /// Start the container and leave it running; its id is printed
    #[arg(short, long)]
    pub detach: bool,
    /// Pass signals on to the command
    #[arg(long, toggle = "true")]
    pub sig_proxy: bool,
    /// The keys that leave the container running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// What the container is made of.
    #[command(flatten)]
    pub create: CreateArgs,
}

/// `longshore create`.
#[derive(Args, Debug)]
#[command(
    disable_help_flag = true,
    override_usage = "longshore create [OPTIONS] IMAGE [CMD]...",
    after_help = "Example:
  longshore create --name web -v data:/data web && longshore start web"
)]
pub struct ContainerCreateArgs {
    /// What the container is made of.
    #[command(flatten)]
    pub create: CreateArgs,
}

/// `longshore update`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore update -m 512m --memory-swap 1g web
  longshore update --restart unless-stopped $(longshore ps -q)")]
pub struct UpdateArgs {
    /// What it may use.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What to do when the command ends: no, on-failure[:COUNT], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `longshore start`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore start web
  longshore start -ai shell")]
pub struct StartArgs {
    /// Show what the container prints until it ends, and end as it does
    #[arg(short, long)]
    pub attach: bool,
    /// Give the container what is typed
    #[arg(short, long)]
    pub interactive: bool,
    /// The keys that leave the container running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `longshore stop` and `restart`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore stop -t 30 web")]
pub struct StopArgs {
    /// Seconds after which the container is killed; -1 is never [default: what it was made with, else 10]
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    pub time: Option<i64>,
    /// The signal that asks it to end [default: the container's stop signal]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `longshore kill`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore kill -s HUP web")]
pub struct KillArgs {
    /// The signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `longshore pause` and `unpause`.
#[derive(Args, Debug)]
pub struct ContainersArgs {
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Condition {
    /// It does not run.
    NotRunning,
    /// It has ended for good: nothing starts it again.
    Exited,
    /// It is there no more.
    Removed,
    /// Its process runs.
    Running,
    /// It stands still.
    Paused,
    /// Its health check says that it is well.
    Healthy,
    /// Its health check says that it is not.
    Unhealthy,
}

/// `longshore wait`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore wait job
  longshore wait --condition healthy web")]
pub struct WaitArgs {
    /// For what: not-running, exited (by the restart policy, too), removed, running, paused, healthy or unhealthy
    ///
    /// For the last four nothing is printed; that it has ended meanwhile is an error.
    #[arg(
        long,
        value_name = "CONDITION",
        default_value = "not-running",
        hide_possible_values = true
    )]
    pub condition: Condition,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `longshore rm`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore rm web
  longshore rm -fv $(longshore ps -aq)")]
pub struct RmArgs {
    /// Kill a container that is running, and do not mind one that is not there
    #[arg(short, long)]
    pub force: bool,
    /// Remove its volumes that have no name, too
    #[arg(short, long)]
    pub volumes: bool,
    /// Names or ids
    #[arg(value_name = "CONTAINER", required = true)]
    pub containers: Vec<String>,
}

/// `longshore rename`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore rename web web-old")]
pub struct RenameArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Its new name
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `longshore ps`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore ps -a
  longshore ps -aq --filter status=exited
  longshore ps --format '{{.Names}}: {{.Status}}'")]
pub struct PsArgs {
    /// Show those that do not run, too
    #[arg(short, long)]
    pub all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print nothing in a shortened form
    #[arg(long)]
    pub no_trunc: bool,
    /// Show the size of what each has written
    #[arg(short, long)]
    pub size: bool,
    /// Show the newest only, whether it runs or not
    #[arg(short, long)]
    pub latest: bool,
    /// Show so many of the newest, whether they run or not
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub last: Option<usize>,
    /// Only some: name=, id=, status=, label=, ancestor=, exited=, health=, volume=, before=, since=; may be repeated
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<String>,
    /// table, json, or a template such as '{{.ID}} {{.Names}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// `longshore logs`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore logs -f web
  longshore logs --tail 100 --since 10m web")]
pub struct LogsArgs {
    /// Go on with what comes, until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only what came since: a time, or a duration before now
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// Only what came before: a time, or a duration before now
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
    /// Only so many of the last lines, or all
    #[arg(short = 'n', long, value_name = "COUNT", default_value = "all")]
    pub tail: String,
    /// Show when each line came
    #[arg(short, long)]
    pub timestamps: bool,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// `longshore exec`.
#[derive(Args, Debug)]
#[command(
    override_usage = "longshore exec [OPTIONS] CONTAINER CMD...",
    after_help = "Examples:
  longshore exec -it web sh
  longshore exec -u www-data web id"
)]
pub struct ExecArgs {
    /// Leave the command running, and say nothing of it
    #[arg(short, long)]
    pub detach: bool,
    /// Keep stdin open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable; without `=VALUE` it is taken from the environment; may be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read variables from a file, one to a line; may be repeated
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,
    /// Working directory [default: the container's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group, by name or number [default: the container's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Give the command all that the user who started the container may do
    #[arg(long)]
    pub privileged: bool,
    /// The keys that leave the command running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Name or id of the container, and the command
    // One argument: from the container on, nothing is a flag of this command.
    #[arg(value_name = "CONTAINER CMD", required = true, trailing_var_arg = true)]
    words: Vec<String>,
}

impl ExecArgs {
    /// Name or id.
    pub fn container(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The command.
    pub fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// `longshore attach`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore attach --no-stdin web")]
pub struct AttachArgs {
    /// Do not give the container what is typed
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the command
    #[arg(long, toggle = "true")]
    pub sig_proxy: bool,
    /// The keys that leave the container running [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// `longshore cp`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore cp web:/etc/nginx/nginx.conf .
  longshore cp site/. web:/srv
  longshore cp web:/var/log - | tar -t")]
pub struct CpArgs {
    /// Keep owners and permissions as they are in the archive
    #[arg(short, long)]
    pub archive: bool,
    /// Follow a link that the source is
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// A file or folder, CONTAINER:PATH, or `-` for a tar from stdin
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Where to: CONTAINER:PATH, a path, or `-` for a tar to stdout
    #[arg(value_name = "TARGET")]
    pub target: String,
}

/// `longshore top`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore top web")]
pub struct TopArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// `longshore stats`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore stats --no-stream")]
pub struct StatsArgs {
    /// Show those that do not run, too
    #[arg(short, long)]
    pub all: bool,
    /// Print once, and end
    #[arg(long)]
    pub no_stream: bool,
    /// Print ids in full
    #[arg(long)]
    pub no_trunc: bool,
    /// table, json, or a template such as '{{.Name}} {{.CPUPerc}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Names or ids [default: all that run]
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// `longshore port`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore port web 80/tcp")]
pub struct PortArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Only this one
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}

/// `longshore diff`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore diff web")]
pub struct DiffArgs {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// `longshore commit`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore commit -m 'by hand' web web:fixed")]
pub struct CommitArgs {
    /// Who makes it
    #[arg(short, long, value_name = "NAME")]
    pub author: Option<String>,
    /// What was done
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Change the image's configuration by an instruction, such as 'CMD [\"web\"]'; may be repeated
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// Let the container stand still meanwhile
    #[arg(short, long, toggle = "true")]
    pub pause: bool,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub image: Option<String>,
}

/// `longshore export`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore export -o web.tar web")]
pub struct ExportArgs {
    /// Write to this file in place of stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    pub container: String,
}

/// `longshore import`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore import web.tar web:flat")]
pub struct ImportArgs {
    /// What was done
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Change the image's configuration by an instruction, such as 'CMD [\"web\"]'; may be repeated
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// The platform that it is for [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = super::platform)]
    pub platform: Option<store::oci::Platform>,
    /// A tar of a root file system, compressed or not; `-` is stdin
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub image: Option<String>,
}

/// `longshore container`.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Remove all containers that do not run
    Prune(ContainerPruneArgs),
}

/// `longshore container prune`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore container prune -f --filter until=24h")]
pub struct ContainerPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only some: until=, label=, label!=; may be repeated
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<String>,
}

/// `longshore volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeLsArgs),
    /// Show what is known of volumes, as a JSON array
    Inspect(VolumesArgs),
    /// Remove volumes that no container uses
    #[command(visible_alias = "remove")]
    Rm(VolumeRmArgs),
    /// Remove all volumes without a name that no container uses
    Prune(VolumePruneArgs),
}

/// `longshore volume create`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore volume create data")]
pub struct VolumeCreateArgs {
    /// How it is kept: `local` is the only way
    #[arg(short, long, value_name = "DRIVER", default_value = "local", value_parser = ["local"], hide_possible_values = true)]
    pub driver: String,
    /// Set a label; may be repeated
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Its name; one is made up where none is given
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// `longshore volume ls`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore volume ls --filter dangling=true")]
pub struct VolumeLsArgs {
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Only some: name=, label=, dangling=; may be repeated
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<String>,
    /// table, json, or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
}

/// `longshore volume inspect`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore volume inspect data")]
pub struct VolumesArgs {
    /// json, or a template such as '{{.Mountpoint}}', in place of a JSON array
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// `longshore volume rm`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore volume rm data")]
pub struct VolumeRmArgs {
    /// Do not mind one that is not there
    #[arg(short, long)]
    pub force: bool,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// `longshore volume prune`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  longshore volume prune -f --all")]
pub struct VolumePruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Those with a name, too
    #[arg(short, long)]
    pub all: bool,
}

/// `longshore container-files`, which `cp` and `export` start.
#[derive(Args, Debug)]
pub struct ContainerFilesArgs {
    /// Process 1 of the container
    #[arg(long)]
    pub pid: u32,
    /// Its user namespace
    #[arg(long)]
    pub namespace: PathBuf,
    /// Write a tar of the folder to stdout in place of reading one from stdin
    #[arg(long)]
    pub pack: bool,
    /// Only this one in the folder, not all that is in it
    #[arg(long, requires = "pack")]
    pub name: Option<String>,
    /// What the tar calls that
    #[arg(long, requires = "name")]
    pub written_as: Option<String>,
    /// Leave out what is mounted in the folder
    #[arg(long, requires = "pack")]
    pub without_mounts: bool,
    /// Make the folder if it is not there
    #[arg(long)]
    pub make: bool,
    /// Everything belongs to root
    #[arg(long)]
    pub owned_by_root: bool,
    /// The folder
    pub folder: String,
}

/// `longshore container-names`, which supervisors start.
#[derive(Args, Debug)]
pub struct ContainerNamesArgs {
    /// The network
    pub network: String,
    /// Ask this server what is no name of the network's [default: those of the host]
    #[arg(long = "dns")]
    pub dns: Vec<std::net::IpAddr>,
}
