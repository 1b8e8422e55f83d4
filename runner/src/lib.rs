//! One process in one sandbox. Knows no images.
//!
//! ```text
//!  caller (any threads)             helper (this program again, kept)   init ─► the process
//!  Sandbox::spawn ── spec, fds ──►  helper: fork into namespaces ─────► init: root, confinement, exec
//!  Sandbox::wait  ◄── exit ───────  waits, cleans up                    process 1 of its pid namespace
//! ```
//!
//! - [`spec`]: what to run and in what, as plain data.
//! - [`sandbox`]: the caller's side. `helper`, `init`: the other two processes; `wire` is what they say.
//! - `grants`: a user namespace for each sandbox, when the program is root; mounts with mapped ids.
//! - `mounts`, `stubs`: the root. `confine`, `seccomp`: privileges. `owners`: where there is one only. `cgroup`: limits.
//! - `sysctl`: settings. `command`: exec. `chroot`: a process without namespaces, where a container refuses them.
//! - [`userns`]: the whole program in a user namespace, when it is not root; then one code path serves all.
//! - [`network`]: bridges that sandboxes are plugged into.
//! - [`user`]: `USER` names to numbers. [`etc`]: contents of `/etc/hosts` and the like.
//! - [`mode`]: which of these ways are open here, for reports.
//! - [`container`]: sandboxes that outlive their caller, each with a supervisor. [`join`]: a further process in one.
//! - [`signal`]: names and numbers.
//! - [`terminal`]: a foreground process on the caller's terminal.
//!
//! A program that uses this crate must call [`reexec_if_child`] as the first thing in `main`.
//!
//! Invariants: no threaded process ever forks. Nothing of a sandbox outlives it, also when the caller is
//! killed. No path of the root, of a link in it, or of the spec reaches the host but by a descriptor
//! that was opened beneath the right directory. All unsafe code is in `sys`.

mod cgroup;
mod chroot;
mod command;
mod confine;
pub mod container;
pub mod error;
pub mod etc;
mod grants;
mod helper;
mod init;
pub mod join;
mod joined;
pub mod mode;
mod mounts;
pub mod network;
mod owners;
pub mod sandbox;
mod seccomp;
pub mod signal;
pub mod spec;
mod stubs;
mod sys;
mod sysctl;
pub mod terminal;
pub mod user;
pub mod userns;
mod wire;

pub use error::{Errno, SandboxError, StartError};
pub use join::JoinSpec;
pub use sandbox::{Killer, Sandbox, Stdio, Stream};
pub use seccomp::Filter;
pub use seccomp::profile::{Profile, ProfileError};
pub use spec::{
    CAPABILITIES, Capabilities, Confinement, DEFAULT_PATH, EtcFiles, ExitStatus, Limits,
    MEMORY_MIN, MountKind, MountPoint, Namespace, NetworkMode, OutOfMemory, ProcessSpec, Root,
    SandboxSpec, Seccomp, Shared, ULIMITS, Ulimit, Usage, User, UserNamespace,
};
pub use stubs::make_stubs;
pub use user::{UserError, add_groups, resolve_user};
pub use userns::{Isolation, Privilege, UserNsError, enter_user_namespace, isolation};

/// Turns this process into a sandbox's helper if it was started as one; then it never returns.
///
/// Has to be the first thing in `main`: before threads, command line and logging.
pub fn reexec_if_child() {
    if helper::is_helper() {
        sys::exit_now(helper::run());
    }
    if container::supervisor::is_supervisor() {
        sys::exit_now(container::supervisor::run());
    }
}
