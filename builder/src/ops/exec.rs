//! `RUN`: a process in a sandbox on a new snapshot. Here and below, and nowhere else, the runner is seen.
//!
//! `mounts` turns the graph's mounts into the sandbox's, with `secrets`, `ssh` and `devices` for what comes from outside;
//! `network` is where they are on a network, `degraded` says what steps lack where namespaces are refused;
//! `digest` is what mounts add to a step's key, `stopped` is for looking around where a step runs.

mod degraded;
mod devices;
pub(crate) mod digest;
pub(crate) mod mounts;
pub(crate) mod network;
mod secrets;
mod ssh;
pub(crate) mod stopped;

pub use devices::DeviceError;
use runner::DEFAULT_PATH;
pub use secrets::SECRET_BYTES_MAX;
pub(crate) use secrets::{secret_content, settle as settle_secrets};

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use runner::etc::hosts_text;
use runner::{
    Confinement, EtcFiles, ExitStatus, Limits, OutOfMemory, ProcessSpec, Root, Sandbox,
    SandboxSpec, Seccomp, Stdio, Stream, Ulimit, UserNamespace,
};
use rustix::event::{PollFd, PollFlags, poll};
use store::Store;
use store::layer::{LayerId, LayerInfo};
use store::snapshot::{ActiveSnapshot, StepRoot};

use super::{Operations, base_of};
use crate::error::StepError;
use crate::graph::VertexIndex;
use crate::graph::exec::{ExecOp, Security};
use crate::solve::{OutputStream, ProgressEvent, Used};

/// Bytes read from a process at a time.
const READ_BYTES: usize = 64 * 1024;

/// How much of a failed step's output its error repeats, in bytes; the whole of it went to the progress sink.
const OUTPUT_KEPT_BYTES_MAX: usize = 64 * 1024;

/// The host name that steps see, as with other builders.
const HOSTNAME: &str = "buildkitsandbox";

/// What the command line says of how steps are confined.
#[derive(Clone, Debug, Default)]
pub struct Confined {
    /// Which system calls they make.
    pub seccomp: Seccomp,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Whether kernel interfaces in `/proc` and `/sys` are neither hidden nor read-only.
    pub system_paths: bool,
}

/// All that a step needs to run, and what has to live until it has.
pub(crate) struct Prepared {
    active: ActiveSnapshot,
    mounts: mounts::Mounts,
    pub(crate) spec: SandboxSpec,
}

impl Prepared {
    /// Makes everything ready to run `exec` on its base, and what `above` adds to that.
    pub(crate) fn new(
        operations: &Operations<'_>,
        vertex: usize,
        exec: &ExecOp,
        above: Option<LayerId>,
    ) -> Result<Prepared, StepError> {
        let store = operations.store;
        let base = base_of(operations.vertex(vertex));
        let mut parents = base.map(|base| operations.layers(base)).unwrap_or_default();
        let (mut user, apt_settings) = {
            let view = store.snapshots().view(&parents)?;
            let user = runner::resolve_user(view.as_fd(), &exec.user)?;
            (user, degraded::apt_settings(view.as_fd()))
        };
        parents.extend(above);
        let mut active = store.snapshots().prepare(&parents)?;
        let root = match active.root()? {
            StepRoot::Overlay(mount) => {
                let mut lower = mount.lower;
                lower.push(stubs(store)?);
                Root::Overlay {
                    lower,
                    upper: mount.upper,
                    work: mount.work,
                    volatile: true,
                }
            }
            StepRoot::Tree(path) => Root::Directory(path),
        };
        let mut mounts = mounts::prepare(operations, vertex, exec)?;
        let devices = devices::prepare(operations.run, &exec.devices)?;
        user.groups.extend(devices.groups);
        let mut env: Vec<String> = exec.env.iter().map(ToString::to_string).collect();
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        for variable in exec.proxy_env.iter().chain(&mounts.env).chain(&devices.env) {
            env.retain(|known| name(known) != name(variable));
            env.push(variable.clone());
        }
        if !env.iter().any(|variable| name(variable) == "HOME") {
            env.push(format!("HOME={}", user.home));
        }
        let wired = operations.network.wire(operations, exec)?;
        let network = &operations.network;
        network.check_proxies(operations, vertex, &wired.mode, &env);
        let process = ProcessSpec {
            env,
            cwd: exec.cwd.clone(),
            make_cwd: true,
            own_cwd: true,
            user,
            ..ProcessSpec::new(exec.argv.iter().cloned())
        };
        let mut points = devices.points;
        points.append(&mut mounts.points);
        points.extend(apt_settings);
        let mut spec = sandbox(exec, root, process, wired);
        if exec.security == Security::Sandbox {
            let confined = operations.run.confined.clone();
            spec.confinement.seccomp = confined.seccomp;
            spec.confinement.no_new_privileges = confined.no_new_privileges;
            spec.confinement.mask_paths = !confined.system_paths;
        }
        if operations.run.host_ids {
            spec.user_namespace = UserNamespace::Host;
        }
        if points.iter().any(|point| point.target == "/etc") {
            // What is mounted there hides what would lie beneath it, as with BuildKit.
            spec.etc = EtcFiles::default();
        }
        spec.mounts = points;
        Ok(Prepared {
            active,
            mounts,
            spec,
        })
    }

    /// Lets go of everything that was mounted; no process is left.
    pub(crate) fn finish(self) -> Result<ActiveSnapshot, StepError> {
        self.mounts.finish()?;
        Ok(self.active)
    }
}

/// Runs a step and commits what it changed. What a step that failed was given is left in `failed`.
pub(crate) fn execute(
    operations: &Operations<'_>,
    vertex: usize,
    exec: &ExecOp,
    failed: &mut Option<Prepared>,
) -> Result<LayerInfo, StepError> {
    degraded::refuse(exec)?;
    degraded::tell(operations);
    let prepared = Prepared::new(operations, vertex, exec, None)?;
    let error = match run(operations, vertex, &prepared.spec) {
        Ok((ExitStatus::Code(0), ..)) => {
            let active = prepared.finish()?;
            return operations.store.publish_layer(|| Ok(active.commit()?));
        }
        Ok((status, tail, out_of_memory)) => StepError::Process {
            command: exec.argv.join(" "),
            status: status.code(),
            memory: out_of_memory,
            limit: exec.setting.limits.memory,
            output: String::from_utf8_lossy(&tail).into_owned(),
        },
        Err(error) => error,
    };
    if error.is_the_commands() {
        *failed = Some(prepared);
    } else {
        prepared.mounts.finish()?;
    }
    Err(error)
}

/// What to be in a step that is no RUN: an ordinary place on its base to look around from.
pub(crate) fn bystander() -> ExecOp {
    ExecOp {
        env: vec![format!("PATH={DEFAULT_PATH}").into()],
        cwd: "/".to_owned(),
        on_base: true,
        ..ExecOp::default()
    }
}

/// The sandbox of a step, but for its mounts.
fn sandbox(exec: &ExecOp, root: Root, process: ProcessSpec, wired: network::Wired) -> SandboxSpec {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let setting = &exec.setting;
    let hostname = match setting.hostname.as_str() {
        "" => HOSTNAME,
        name => name,
    };
    let limits = &setting.limits;
    SandboxSpec {
        hostname: hostname.to_owned(),
        network: wired.mode,
        etc: EtcFiles {
            hosts: Some(hosts_text(hostname, &wired.hosts)),
            resolv_conf: Some(wired.resolv_conf),
            hostname: None,
        },
        cgroup: setting.cgroup_parent.as_ref().map(|parent| {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let own = format!("longshore-{}-{number}", std::process::id());
            format!("/{}/{own}", parent.trim_matches('/'))
        }),
        limits: Limits {
            memory_reservation: None,
            memory: limits.memory,
            memory_swap: limits.memory_swap,
            pids: limits.pids,
            cpu_quota_us: limits.cpu_quota_us,
            cpu_period_us: limits.cpu_period_us,
            cpu_shares: limits.cpu_shares,
            cpuset_cpus: limits.cpuset_cpus.clone(),
            cpuset_mems: limits.cpuset_mems.clone(),
            io_weight: limits.io_weight,
        },
        ulimits: setting
            .ulimits
            .iter()
            .map(|(name, &(soft, hard))| Ulimit {
                name: name.clone(),
                soft,
                hard,
            })
            .collect(),
        shm_size: setting.shm_size,
        confinement: match exec.security {
            Security::Sandbox => Confinement::default(),
            Security::Insecure => Confinement::none(),
        },
        ..SandboxSpec::new(root, process)
    }
}

/// Runs the sandbox to its end, passing its output on; returns how it ended, the end of what it wrote, and whether that was for want
/// of memory.
fn run(
    operations: &Operations<'_>,
    vertex: usize,
    spec: &SandboxSpec,
) -> Result<(ExitStatus, Vec<u8>, Option<OutOfMemory>), StepError> {
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Pipe,
        stderr: Stream::Pipe,
    };
    let mut sandbox = Sandbox::spawn(spec, stdio)?;
    let mut readers = [
        (sandbox.stdout.take(), OutputStream::Stdout),
        (sandbox.stderr.take(), OutputStream::Stderr),
    ];
    let mut buffer = vec![0; READ_BYTES];
    let mut tail = Tail::default();
    let mut killed = false;
    while readers.iter().any(|(reader, _)| reader.is_some()) {
        if !killed && operations.is_cancelled() {
            killed = true;
            // It may just have ended by itself.
            let _ended = sandbox.kill(rustix::process::Signal::KILL.as_raw());
        }
        let ready = wait_readable(operations, &readers, killed)?;
        for ((reader, stream), ready) in readers.iter_mut().zip(ready) {
            let Some(open) = reader.as_ref().filter(|_| ready) else {
                continue;
            };
            match rustix::io::read(open, &mut buffer) {
                Ok(0) => *reader = None,
                Ok(count) => {
                    tail.push(&buffer[..count]);
                    operations.progress.event(ProgressEvent::Output {
                        vertex: VertexIndex(vertex),
                        stream: *stream,
                        bytes: buffer[..count].to_vec(),
                    });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(StepError::Output(errno.into())),
            }
        }
    }
    let status = sandbox.wait()?;
    let usage = sandbox.usage().unwrap_or_default();
    operations.progress.event(ProgressEvent::Used {
        vertex: VertexIndex(vertex),
        used: Used {
            cpu: usage.user_us + usage.system_us,
            memory: usage.memory_peak,
            read: usage.read_bytes,
            written: usage.written_bytes,
        },
    });
    if killed {
        return Err(StepError::Cancelled);
    }
    Ok((status, tail.bytes, usage.out_of_memory()))
}

/// The directory with mount points that lies below every root, of steps and containers alike, so that making them leaves
/// nothing in a layer. Made at the first call.
///
/// # Errors
/// The store cannot be written.
pub fn stubs(store: &Store) -> Result<PathBuf, StepError> {
    let stubs = store.root().join("stubs");
    if stubs.is_dir() {
        return Ok(stubs);
    }
    let made = store.temp_dir()?;
    runner::make_stubs(made.path()).map_err(StepError::Stubs)?;
    // Another process may have been quicker; its directory is the same.
    store::fs::rename_if_free(made.path(), &stubs).map_err(store::StoreError::from)?;
    Ok(stubs)
}

/// Waits until a reader has something, or the build is cancelled; says which readers have.
fn wait_readable(
    operations: &Operations<'_>,
    readers: &[(Option<File>, OutputStream); 2],
    killed: bool,
) -> Result<[bool; 2], StepError> {
    let mut fds = Vec::with_capacity(4);
    let mut which = Vec::with_capacity(2);
    for (index, (reader, _)) in readers.iter().enumerate() {
        if let Some(reader) = reader {
            fds.push(PollFd::new(reader, PollFlags::IN));
            which.push(index);
        }
    }
    if !killed {
        fds.push(PollFd::new(operations.cancel, PollFlags::IN));
        fds.push(PollFd::new(operations.abort, PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(StepError::Output(errno.into())),
    }
    let mut ready = [false; 2];
    for (index, fd) in which.into_iter().zip(&fds) {
        ready[index] = !fd.revents().is_empty();
    }
    Ok(ready)
}

/// The last bytes of a stream.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * OUTPUT_KEPT_BYTES_MAX {
            let from = self.bytes.len() - OUTPUT_KEPT_BYTES_MAX;
            self.bytes.drain(..from);
        }
    }
}
