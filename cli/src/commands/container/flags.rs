//! Docker's flags, read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use builder::dockerfile::suggest::nearest;
use builder::request::size::bytes;
use runner::container::{Health, LogLimits, Restart};
use runner::{CAPABILITIES, Capabilities, Confinement, Limits, MEMORY_MIN};
use serde_json::Value;
use store::containers::is_name;

use super::record::{MountSource, RecordMount};
use crate::args::{CreateArgs, LimitArgs, LogDriver};
use crate::commands::security;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::quantity;

/// The mode of a tmpfs, as docker's.
const TMPFS_MODE: u32 = 0o1777;

fn usage(message: impl Into<String>) -> CliError {
    CliError::new(Kind::Usage, message.into())
}

/// `--env` and `--env-file`, later ones over earlier ones, files first.
pub fn environment(
    context: &Context,
    files: &[PathBuf],
    given: &[String],
) -> Result<Vec<String>, CliError> {
    let mut env = Vec::new();
    let mut lines = Vec::new();
    for path in files {
        lines.extend(lines_of(path)?);
    }
    for text in lines.iter().chain(given) {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            // As docker: a variable that is not set here is not set there.
            None => (text.as_str(), context.text_variable(text)),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(usage(format!(
                "`{text}` is no variable: expected NAME=VALUE"
            )));
        }
        if let Some(value) = value {
            set(&mut env, format!("{name}={value}"));
        }
    }
    Ok(env)
}

/// Sets a variable, `NAME=VALUE`, in place of one of that name.
pub fn set(env: &mut Vec<String>, variable: String) {
    let name = |variable: &str| variable.split('=').next().map(str::to_owned);
    env.retain(|known| name(known) != name(&variable));
    env.push(variable);
}

/// The lines of a file that are neither empty nor comments.
fn lines_of(path: &Path) -> Result<Vec<String>, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| usage(format!("cannot read `{}`: {error}", path.display())))?;
    let lines = text.lines().map(str::trim_start);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// `KEY[=VALUE]`, from files and flags.
pub fn labels(files: &[PathBuf], given: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut labels = BTreeMap::new();
    let mut lines = Vec::new();
    for path in files {
        lines.extend(lines_of(path)?);
    }
    for text in lines.iter().chain(given) {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(usage(format!("`{text}` is no label: expected KEY=VALUE")));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// `-v [SOURCE:]TARGET[:OPTIONS]`: a path, the name of a volume, or a volume without a name.
pub fn volume(text: &str) -> Result<RecordMount, CliError> {
    let bad = |reason: &str| {
        usage(format!("cannot mount `{text}`: {reason}"))
            .hint("expected SOURCE:TARGET[:ro], such as -v \"$PWD\":/src or -v data:/data")
    };
    let fields: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match fields[..] {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, options),
        _ => return Err(bad("it has more than three fields")),
    };
    let mut read_only = false;
    let mut copy = true;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => copy = false,
            // What there is anyway, or means something to SELinux alone.
            "rw" | "z" | "Z" | "rprivate" | "private" | "rbind" => {}
            _ => return Err(bad(&format!("the option `{option}` is not supported"))),
        }
    }
    let target = target_of(target).map_err(|reason| bad(&reason))?;
    let source = match source {
        None => MountSource::Volume {
            name: String::new(),
            anonymous: true,
            copy,
        },
        Some(source) if source.starts_with(['/', '.', '~']) => {
            MountSource::Bind(bind_source(source, true).map_err(|reason| bad(&reason))?)
        }
        Some(source) if is_name(source) => MountSource::Volume {
            name: source.to_owned(),
            anonymous: false,
            copy,
        },
        Some(source) => {
            return Err(bad(&format!(
                "`{source}` is neither a path, which begins with `/` or `.`, nor the name of a volume"
            )));
        }
    };
    Ok(RecordMount {
        target,
        source,
        read_only,
    })
}

fn target_of(target: &str) -> Result<String, String> {
    if !target.starts_with('/') {
        return Err("the target is not absolute".to_owned());
    }
    let parts: Vec<&str> = target
        .split('/')
        .filter(|p| !matches!(*p, "" | "."))
        .collect();
    if parts.contains(&"..") {
        return Err("the target has `..` in it".to_owned());
    }
    match parts.is_empty() {
        true => Err("the target is `/`".to_owned()),
        false => Ok(format!("/{}", parts.join("/"))),
    }
}

/// The path of a bind mount, links followed; as with docker's `-v`, a folder that is not there is made.
fn bind_source(source: &str, make: bool) -> Result<PathBuf, String> {
    let path = Path::new(source);
    let fail = |error: std::io::Error| format!("`{source}`: {error}");
    if make && !path.exists() && source.starts_with('/') {
        std::fs::create_dir_all(path).map_err(fail)?;
    }
    std::fs::canonicalize(path).map_err(fail)
}

/// `--mount KEY=VALUE,…`
pub fn mount(text: &str) -> Result<RecordMount, CliError> {
    let bad = |reason: &str| {
        usage(format!("cannot mount `{text}`: {reason}"))
            .hint("expected such as type=bind,source=/srv,target=/srv,readonly")
    };
    let mut kind = "volume";
    let (mut source, mut target, mut read_only, mut copy) = (None, None, false, true);
    let (mut size, mut mode) = (None, TMPFS_MODE);
    for field in text.split(',') {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        let truth = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(bad(&format!("`{key}` is true or false"))),
        };
        let given = || value.ok_or_else(|| bad(&format!("`{key}` has no value")));
        match key {
            "type" => kind = given()?,
            "source" | "src" => source = Some(given()?),
            "target" | "destination" | "dst" => target = Some(given()?),
            "readonly" | "ro" => read_only = truth()?,
            "volume-nocopy" => copy = !truth()?,
            "tmpfs-size" => size = Some(bytes(given()?).ok_or_else(|| bad("no size"))?),
            "tmpfs-mode" => mode = octal(given()?).ok_or_else(|| bad("no mode"))?,
            _ => return Err(bad(&format!("the key `{key}` is not supported"))),
        }
    }
    let target = target.ok_or_else(|| bad("it names no target"))?;
    let target = target_of(target).map_err(|reason| bad(&reason))?;
    let source = match (kind, source) {
        ("bind", Some(source)) => {
            MountSource::Bind(bind_source(source, false).map_err(|reason| bad(&reason))?)
        }
        ("bind", None) => return Err(bad("it names no source")),
        ("volume", name) => {
            if let Some(name) = name.filter(|name| !is_name(name)) {
                return Err(bad(&format!("`{name}` is no volume name")));
            }
            MountSource::Volume {
                name: name.unwrap_or_default().to_owned(),
                anonymous: name.is_none(),
                copy,
            }
        }
        ("tmpfs", None) => MountSource::Tmpfs { size, mode },
        ("tmpfs", Some(_)) => return Err(bad("memory has no source")),
        (kind, _) => {
            let message = format!("the type `{kind}` is not supported: bind, volume and tmpfs are");
            return Err(bad(&message));
        }
    };
    Ok(RecordMount {
        target,
        source,
        read_only,
    })
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
}

/// `--tmpfs TARGET[:OPTIONS]`
pub fn tmpfs(text: &str) -> Result<RecordMount, CliError> {
    let bad = |reason: &str| {
        usage(format!("cannot mount memory at `{text}`: {reason}"))
            .hint("expected TARGET[:size=64m,mode=1777,ro]")
    };
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode, mut read_only) = (None, TMPFS_MODE, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(bytes(value).ok_or_else(|| bad("no size"))?),
            Some(("mode", value)) => mode = octal(value).ok_or_else(|| bad("no mode"))?,
            None if option == "ro" => read_only = true,
            // What there is anyway.
            None if ["rw", "nosuid", "nodev"].contains(&option) => {}
            _ => return Err(bad(&format!("the option `{option}` is not supported"))),
        }
    }
    Ok(RecordMount {
        target: target_of(target).map_err(|reason| bad(&reason))?,
        source: MountSource::Tmpfs { size, mode },
        read_only,
    })
}

/// `--restart`
pub fn restart(text: &str) -> Result<Restart, CliError> {
    let bad = || {
        usage(format!("`{text}` is no restart policy"))
            .hint("there are no, on-failure[:COUNT], always and unless-stopped")
    };
    match text.split_once(':') {
        None => match text {
            "no" | "" => Ok(Restart::No),
            "on-failure" => Ok(Restart::OnFailure { times: None }),
            "always" => Ok(Restart::Always),
            "unless-stopped" => Ok(Restart::UnlessStopped),
            _ => Err(bad()),
        },
        Some(("on-failure", count)) => {
            let times: u32 = count.parse().map_err(|_| bad())?;
            // As docker: none means any number.
            let times = (times > 0).then_some(times);
            Ok(Restart::OnFailure { times })
        }
        Some(_) => Err(bad()),
    }
}

/// The number of a signal.
pub fn signal(text: &str) -> Result<i32, CliError> {
    runner::signal::number(text).ok_or_else(|| {
        usage(format!("`{text}` is no signal"))
            .hint("expected a name or number, such as TERM or 15")
    })
}

/// `--cap-add`, `--cap-drop`, `--privileged` and `--security-opt`.
pub fn confinement(args: &CreateArgs) -> Result<Confinement, CliError> {
    if args.privileged {
        return Ok(Confinement::none());
    }
    let mut confinement = Confinement::default();
    let has_all = |list: &[String]| list.iter().any(|name| name.eq_ignore_ascii_case("all"));
    let mut set = match (has_all(&args.cap_add), has_all(&args.cap_drop)) {
        (true, _) => Capabilities::ALL.0,
        (false, true) => 0,
        (false, false) => confinement.capabilities.0,
    };
    let is_one = |name: &&String| !name.eq_ignore_ascii_case("all");
    for name in args.cap_add.iter().filter(is_one) {
        set |= 1 << capability(name)?;
    }
    for name in args.cap_drop.iter().filter(is_one) {
        set &= !(1 << capability(name)?);
    }
    confinement.capabilities = Capabilities(set);
    security::apply(&args.security, &mut confinement)?;
    Ok(confinement)
}

fn capability(name: &str) -> Result<usize, CliError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let found = CAPABILITIES.iter().position(|known| *known == bare);
    found.ok_or_else(|| {
        let error = usage(format!("there is no capability `{name}`"));
        match nearest(bare, CAPABILITIES) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
    })
}

/// `--sysctl`: whether a container has them for itself is seen when it is started.
pub fn sysctls(texts: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let read = texts.iter().map(|text| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(usage(format!(
            "`{text}` is no setting: expected NAME=VALUE"
        ))),
    });
    read.collect()
}

/// `--memory` and the like, over what there is.
pub fn limits(args: &LimitArgs, base: Limits) -> Result<Limits, CliError> {
    let memory = size("memory", args.memory.as_deref())?.or(base.memory);
    if let Some(memory) = memory.filter(|memory| *memory < MEMORY_MIN) {
        let message = format!("Minimum memory limit allowed is 6MB: {memory} bytes are too few");
        return Err(usage(message));
    }
    let memory_swap = match args.memory_swap.as_deref() {
        Some("-1") => Some(u64::MAX),
        text => size("memory-swap", text)?.or(base.memory_swap),
    };
    if memory_swap.is_some() && memory.is_none() {
        let message = "--memory-swap is memory and swap together: it needs --memory";
        return Err(usage(message));
    }
    let reservation = size("memory-reservation", args.memory_reservation.as_deref())?;
    let memory_reservation = reservation.or(base.memory_reservation);
    if memory.is_some() && memory_reservation > memory {
        return Err(usage(
            "--memory-reservation is what is left of --memory in hard times: more than that it cannot be",
        ));
    }
    if memory_swap < memory && memory_swap.is_some() {
        let message = "--memory-swap is memory and swap together: less than --memory it cannot be";
        return Err(usage(message));
    }
    let cpus = match args.cpus {
        None => None,
        Some(cpus) if cpus.is_finite() && (0.01..=10_000.0).contains(&cpus) => {
            // Of the usual period of 100,000 microseconds.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "checked to be small and positive"
            )]
            let quota = (cpus * 100_000.0).round() as u64;
            Some(quota)
        }
        Some(cpus) => {
            return Err(usage(format!("`{cpus}` is no number of processors"))
                .hint("expected a number such as 0.5 or 2"));
        }
    };
    for (flag, list) in [
        ("cpuset-cpus", &args.cpuset_cpus),
        ("cpuset-mems", &args.cpuset_mems),
    ] {
        let allowed = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-');
        if let Some(list) = list
            .as_ref()
            .filter(|l| l.is_empty() || !l.chars().all(allowed))
        {
            return Err(usage(format!("cannot read --{flag} `{list}`"))
                .hint("expected a list such as 0-2,4"));
        }
    }
    Ok(Limits {
        memory,
        memory_swap,
        memory_reservation,
        pids: match args.pids_limit {
            None => base.pids,
            Some(pids) => match (u64::try_from(pids), base.pids) {
                (Ok(pids @ 1..), _) => Some(pids),
                // There is none to take away.
                (_, None) => None,
                (_, Some(_)) => Some(u64::MAX),
            },
        },
        cpu_quota_us: args.cpu_quota.or(cpus).or(base.cpu_quota_us),
        cpu_period_us: args.cpu_period.or(match cpus {
            // Of the usual period.
            Some(_) => None,
            None => base.cpu_period_us,
        }),
        cpu_shares: args.cpu_shares.or(base.cpu_shares),
        cpuset_cpus: args.cpuset_cpus.clone().or(base.cpuset_cpus),
        cpuset_mems: args.cpuset_mems.clone().or(base.cpuset_mems),
        io_weight: args.blkio_weight.or(base.io_weight),
    })
}

/// A size, such as 64m.
pub fn size(flag: &str, text: Option<&str>) -> Result<Option<u64>, CliError> {
    let Some(text) = text else {
        return Ok(None);
    };
    match bytes(text) {
        Some(bytes) if bytes > 0 => Ok(Some(bytes)),
        _ => Err(usage(format!("cannot read --{flag} `{text}`"))
            .hint("expected a size such as 64m or 2g")),
    }
}

/// `--log-driver` and `--log-opt`.
pub fn log(args: &CreateArgs) -> Result<Option<LogLimits>, CliError> {
    let mut limits = LogLimits::default();
    for text in &args.log_opts {
        let bad = || {
            usage(format!("the log option `{text}` is not supported"))
                .hint("there are max-size=BYTES and max-file=COUNT")
        };
        match text.split_once('=') {
            Some(("max-size", "-1")) => limits.bytes_max = None,
            Some(("max-size", value)) => limits.bytes_max = Some(bytes(value).ok_or_else(bad)?),
            Some(("max-file", value)) => {
                let count = value.parse().ok().filter(|count| *count > 0);
                limits.files_max = count.ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
    }
    if limits.files_max > 1 && limits.bytes_max.is_none() {
        return Err(usage(
            "max-file needs max-size: without it no file is ever full",
        ));
    }
    Ok((args.log_driver == LogDriver::JsonFile).then_some(limits))
}

/// Docker's values where nothing is said.
const HEALTH_MS: u64 = 30_000;
const HEALTH_START_INTERVAL_MS: u64 = 5_000;
const HEALTH_RETRIES: u32 = 3;

/// The image's HEALTHCHECK, and `--health-…` over it.
pub fn health(args: &CreateArgs, image: Option<&Value>) -> Result<Option<Health>, CliError> {
    if args.no_healthcheck {
        return Ok(None);
    }
    let shell = |command: &str| ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    let of_image = |name: &str| image.and_then(|check| check.get(name));
    let test: Vec<&str> = of_image("Test")
        .and_then(Value::as_array)
        .map(|words| words.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let argv = match (args.health_cmd.as_deref(), &test[..]) {
        (Some("none"), _) => return Ok(None),
        (Some(command), _) => shell(command),
        (None, ["CMD", words @ ..]) if !words.is_empty() => {
            words.iter().map(|word| (*word).to_owned()).collect()
        }
        (None, ["CMD-SHELL", command, ..]) => shell(command),
        (None, _) => return Ok(None),
    };
    // Nanoseconds in an image; nothing and zero mean docker's own.
    let time = |flag: &Option<String>, name: &str, default: u64| -> Result<u64, CliError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let given = match flag {
            Some(text) => {
                millis(quantity::duration(text).map_err(|error| CliError::new(Kind::Usage, error))?)
            }
            None => of_image(name).and_then(Value::as_u64).unwrap_or(0) / 1_000_000,
        };
        Ok(match given {
            0 => default,
            given => given,
        })
    };
    let retries = of_image("Retries").and_then(Value::as_u64);
    let retries = retries.and_then(|retries| u32::try_from(retries).ok());
    Ok(Some(Health {
        argv,
        interval_ms: time(&args.health_interval, "Interval", HEALTH_MS)?,
        timeout_ms: time(&args.health_timeout, "Timeout", HEALTH_MS)?,
        start_period_ms: time(&args.health_start_period, "StartPeriod", 0)?,
        start_interval_ms: time(
            &args.health_start_interval,
            "StartInterval",
            HEALTH_START_INTERVAL_MS,
        )?,
        retries: match args.health_retries.or(retries) {
            None | Some(0) => HEALTH_RETRIES,
            Some(retries) => retries,
        },
    }))
}

/// `--device SOURCE[:TARGET[:PERMISSIONS]]`
pub fn device(text: &str) -> Result<(PathBuf, String), CliError> {
    let bad = |reason: &str| {
        usage(format!("cannot use the device `{text}`: {reason}"))
            .hint("expected SOURCE[:TARGET], such as /dev/fuse")
    };
    let mut fields = text.split(':');
    let source = fields.next().unwrap_or_default();
    let target = fields
        .next()
        .filter(|target| !target.is_empty())
        .unwrap_or(source);
    if fields
        .next()
        .is_some_and(|permissions| permissions != "rwm")
    {
        return Err(bad("permissions other than rwm are not supported"));
    }
    let metadata = std::fs::metadata(source).map_err(|error| bad(&error.to_string()))?;
    let kind = std::os::unix::fs::FileTypeExt::is_char_device(&metadata.file_type())
        || std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type());
    if !kind {
        return Err(bad("it is no device"));
    }
    let target = target_of(target).map_err(|reason| bad(&reason))?;
    Ok((PathBuf::from(source), target))
}

/// `--detach-keys`: keys with commas between, `ctrl-X` or one character each.
pub fn detach_keys(text: Option<&str>) -> Result<Vec<u8>, CliError> {
    let bad = |key: &str| {
        usage(format!("cannot read the key `{key}`"))
            .hint("expected keys such as ctrl-p,ctrl-q or a,b")
    };
    let text = text.unwrap_or("ctrl-p,ctrl-q");
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let key = |key: &str| match key.as_bytes() {
        [byte] => Ok(*byte),
        [b'c', b't', b'r', b'l', b'-', byte] => match byte.to_ascii_uppercase() {
            upper @ b'@'..=b'_' => Ok(upper - b'@'),
            _ => Err(bad(key)),
        },
        _ => Err(bad(key)),
    };
    text.split(',').map(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let check = |text: &str, expected: &str| {
            let error = volume(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("/etc:d", "the target is not absolute");
        check("/etc:/d:rx", "the option `rx` is not supported");
        check("/etc:/", "the target is `/`");
        check("/etc:/a/../b", "`..`");
        check("./no/such:/d", "No such file");
        check("x:/y", "neither a path");
        check("a:b:c:d", "more than three");
        let mount = volume("/etc/../etc:/d/:ro").unwrap();
        assert_eq!(mount.source, MountSource::Bind("/etc".into()));
        assert_eq!((mount.target.as_str(), mount.read_only), ("/d", true));
        let anonymous = volume("/data").unwrap();
        assert!(matches!(
            anonymous.source,
            MountSource::Volume {
                anonymous: true,
                ..
            }
        ));
        let named = volume("data:/d:nocopy").unwrap();
        let MountSource::Volume {
            name,
            anonymous,
            copy,
        } = named.source
        else {
            panic!("not a volume");
        };
        assert_eq!((name.as_str(), anonymous, copy), ("data", false, false));
    }

    #[test]
    fn mounts() {
        let check = |text: &str, expected: &str| {
            let error = mount(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("type=bind,target=/x", "it names no source");
        check("type=bind,source=/etc", "it names no target");
        check("type=npipe,target=/x", "the type `npipe`");
        check("type=bind,source=/no/such,target=/x", "No such file");
        check("target=/x,consistency=cached", "the key `consistency`");
        check("target=/x,readonly=maybe", "true or false");
        let memory = mount("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700").unwrap();
        let expected = MountSource::Tmpfs {
            size: Some(1 << 20),
            mode: 0o700,
        };
        assert_eq!(memory.source, expected);
        assert_eq!(tmpfs("/t:size=1m,mode=700").unwrap(), memory);
        assert!(tmpfs("/t:uid=3").is_err());
        let read_only = mount("type=bind,src=/etc,dst=/x,ro").unwrap();
        assert!(read_only.read_only);
    }

    #[test]
    fn restart_policies() {
        assert_eq!(restart("no").unwrap(), Restart::No);
        assert_eq!(restart("always").unwrap(), Restart::Always);
        let twice = Restart::OnFailure { times: Some(2) };
        assert_eq!(restart("on-failure:2").unwrap(), twice);
        for bad in ["on-failure:x", "always:2", "sometimes"] {
            assert!(restart(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys() {
        assert_eq!(detach_keys(None).unwrap(), [16, 17]);
        assert_eq!(detach_keys(Some("a,ctrl-[")).unwrap(), [b'a', 27]);
        assert_eq!(detach_keys(Some("")).unwrap(), [0; 0]);
        assert!(detach_keys(Some("ctrl-")).is_err());
        assert!(detach_keys(Some("alt-x")).is_err());
    }
}
