//! The system call filter: Docker's default profile in meaning, as a table of our own; or a profile that the user wrote.
//!
//! Docker lists some 350 calls that are allowed. What a reader wants to know is the rest, so the table
//! holds the calls that are *refused*, by reason, and every other call up to [`calls::LAST`] is allowed. A call
//! with a higher number did not exist when the table was made; it answers `ENOSYS`, on which programs
//! fall back to what they did before. `docs/security.md` lists where the two differ, and a test compares them.
//!
//! - [`calls`]: names and numbers.
//! - [`profile`]: files in docker's format.
//! - [`assemble`]: rules to a program. A call costs it some seven comparisons, and the kernel remembers for each number
//!   whether it is always allowed; loading costs a tenth of what a linear list of this length does.

use std::borrow::Cow;
use std::sync::OnceLock;

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, sock_filter};
use serde::{Deserialize, Serialize};

use crate::spec::Capabilities;
pub(crate) use assemble::{
    ARCH_OFFSET, JUMP_EQUAL, LOAD, NUMBER_OFFSET, RETURN, branch, instruction,
};
use assemble::{Action, Comparison, Condition, Plan, Rule, Verdict, assemble};
use calls::Arch;

mod assemble;
mod calls;
pub(crate) mod profile;

/// A program for the kernel, made of a user's profile by [`Profile::filter`](profile::Profile::filter).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `struct sock_filter`: code, jump if true, jump if false, value.
    program: Vec<(u16, u8, u8, u32)>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u32,
}

impl Filter {
    /// What the kernel is given.
    pub(crate) fn program(&self) -> Vec<sock_filter> {
        let instruction = |&(code, jt, jf, k): &(u16, u8, u8, u32)| sock_filter { code, jt, jf, k };
        self.program.iter().map(instruction).collect()
    }

    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }
}

/// What happens to a group of calls.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Errno(i32),
    /// Refused if the first argument has one of these bits.
    UnlessBits(u32),
    /// Allowed only with one of these values as first argument.
    OnlyValues(&'static [u32]),
    /// Refused with these values as first argument, and with those from the last on.
    ExceptValues(&'static [(u32, i32)], (u32, i32)),
}

/// Calls refused for one reason.
struct Group {
    /// A sandbox that has one of these capabilities may use them after all.
    unless: &'static [u32],
    answer: Answer,
    calls: &'static [&'static str],
}

const EPERM: Answer = Answer::Errno(libc::EPERM);
const ENOSYS: Answer = Answer::Errno(libc::ENOSYS);

// Capability numbers.
const DAC_READ_SEARCH: u32 = 2;
const SYS_MODULE: u32 = 16;
const SYS_RAWIO: u32 = 17;
const SYS_CHROOT: u32 = 18;
const SYS_PTRACE: u32 = 19;
const SYS_PACCT: u32 = 20;
const SYS_ADMIN: u32 = 21;
const SYS_BOOT: u32 = 22;
const SYS_NICE: u32 = 23;
const SYS_TIME: u32 = 25;
const SYS_TTY_CONFIG: u32 = 26;
const SYSLOG: u32 = 34;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// `CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}`. CLONE_NEWTIME shares its bit with the exit signal and
/// is ignored by clone.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// PER_LINUX, PER_LINUX32, UNAME26, both, and "tell the current one".
const PERSONALITIES: &[u32] = &[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// AF_ALG has a history of kernel holes and programs fall back without it; AF_VSOCK reaches the
/// hypervisor, past any network namespace; the others are of networks that nobody has.
const SOCKET_FAMILIES: &[(u32, i32)] = &[
    (12, libc::EAFNOSUPPORT), // AF_SECURITY
    (19, libc::EAFNOSUPPORT), // AF_ECONET
    (20, libc::EAFNOSUPPORT), // AF_ATMSVC
    (23, libc::EAFNOSUPPORT), // AF_IRDA
    (25, libc::EAFNOSUPPORT), // AF_WANPIPE
    (34, libc::EAFNOSUPPORT), // AF_IUCV
    (37, libc::EAFNOSUPPORT), // AF_CAIF
    (38, libc::EAFNOSUPPORT), // AF_ALG
    (40, libc::EPERM),        // AF_VSOCK
];

/// Past AF_MCTP, the last family that there is.
const FAMILIES_END: (u32, i32) = (46, libc::EAFNOSUPPORT);

const GROUPS: &[Group] = &[
    // Namespaces and mounts: they change what the kernel's checks mean, and most local root holes of
    // the last years start with one of these.
    Group {
        unless: &[SYS_ADMIN],
        answer: EPERM,
        calls: &[
            "mount",
            "umount",
            "umount2",
            "unshare",
            "setns",
            "open_tree",
            "open_tree_attr",
            "move_mount",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "mount_setattr",
            "quotactl",
            "quotactl_fd",
            "fanotify_init",
            "sethostname",
            "setdomainname",
        ],
    },
    Group {
        unless: &[SYS_ADMIN],
        answer: Answer::UnlessBits(CLONE_NAMESPACES),
        calls: &["clone"],
    },
    // Its flags are in memory, where a filter cannot look. libc falls back to clone.
    Group {
        unless: &[SYS_ADMIN],
        answer: ENOSYS,
        calls: &["clone3"],
    },
    // Never useful inside: the root is already pivoted, and swap belongs to the host.
    Group {
        unless: &[],
        answer: EPERM,
        calls: &["pivot_root", "swapon", "swapoff"],
    },
    // The root of the process can be left again by whoever may change it.
    Group {
        unless: &[SYS_CHROOT],
        answer: EPERM,
        calls: &["chroot"],
    },
    // Files by inode number, past every path check: the way out of a container named "shocker".
    Group {
        unless: &[DAC_READ_SEARCH],
        answer: EPERM,
        calls: &["open_by_handle_at"],
    },
    // Code into the kernel.
    Group {
        unless: &[SYS_MODULE],
        answer: EPERM,
        calls: &["init_module", "finit_module", "delete_module"],
    },
    Group {
        unless: &[SYS_BOOT],
        answer: EPERM,
        calls: &["reboot", "kexec_load", "kexec_file_load"],
    },
    Group {
        unless: &[SYS_ADMIN, BPF],
        answer: EPERM,
        calls: &["bpf"],
    },
    Group {
        unless: &[SYS_ADMIN, PERFMON],
        answer: EPERM,
        calls: &["perf_event_open"],
    },
    // Work that the kernel does on the caller's behalf, past this very filter, in code that is young.
    Group {
        unless: &[],
        answer: EPERM,
        calls: &["io_uring_setup", "io_uring_enter", "io_uring_register"],
    },
    // Stops the kernel in the middle of a copy for as long as one likes: the helper of race exploits.
    Group {
        unless: &[],
        answer: EPERM,
        calls: &["userfaultfd"],
    },
    // Keys are not namespaced.
    Group {
        unless: &[],
        answer: EPERM,
        calls: &["add_key", "request_key", "keyctl"],
    },
    // Other processes' memory and descriptors. ptrace itself and process_vm_* have had their holes
    // closed since Linux 4.8 and are allowed, as in Docker, for debuggers and sanitizers.
    Group {
        unless: &[SYS_PTRACE],
        answer: EPERM,
        calls: &["kcmp", "pidfd_getfd", "process_madvise"],
    },
    // Placement of memory: can starve the other tenants of a machine.
    Group {
        unless: &[SYS_NICE],
        answer: EPERM,
        calls: &[
            "get_mempolicy",
            "set_mempolicy",
            "mbind",
            "set_mempolicy_home_node",
        ],
    },
    Group {
        unless: &[],
        answer: EPERM,
        calls: &["migrate_pages", "move_pages"],
    },
    // The clock is the host's.
    Group {
        unless: &[SYS_TIME],
        answer: EPERM,
        calls: &["settimeofday", "stime", "clock_settime", "clock_settime64"],
    },
    // So are the kernel's log, accounting and terminals.
    Group {
        unless: &[SYS_ADMIN, SYSLOG],
        answer: EPERM,
        calls: &["syslog"],
    },
    Group {
        unless: &[SYS_PACCT],
        answer: EPERM,
        calls: &["acct"],
    },
    Group {
        unless: &[SYS_TTY_CONFIG],
        answer: EPERM,
        calls: &["vhangup"],
    },
    // Ports of the hardware.
    Group {
        unless: &[SYS_RAWIO],
        answer: EPERM,
        calls: &["iopl", "ioperm"],
    },
    // Security modules are set up by the host.
    Group {
        unless: &[SYS_ADMIN],
        answer: EPERM,
        calls: &["lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules"],
    },
    // Some are only there to undo what protects a program.
    Group {
        unless: &[],
        answer: Answer::OnlyValues(PERSONALITIES),
        calls: &["personality"],
    },
    Group {
        unless: &[],
        answer: Answer::ExceptValues(SOCKET_FAMILIES, FAMILIES_END),
        calls: &["socket"],
    },
    // i386 programs' old way to sockets keeps the family in memory; libc tries socket(2) first.
    Group {
        unless: &[],
        answer: ENOSYS,
        calls: &["socketcall"],
    },
    // Long gone or never there, but with a number of their own.
    Group {
        unless: &[],
        answer: EPERM,
        calls: &[
            "uselib",
            "ustat",
            "sysfs",
            "_sysctl",
            "create_module",
            "get_kernel_syms",
            "query_module",
            "nfsservctl",
            "lookup_dcookie",
            "vm86",
            "vm86old",
        ],
    },
];

// `AUDIT_ARCH_*`: the ELF machine, little-endian (0x4000_0000), 64-bit (0x8000_0000).
const fn audit(arch: Arch) -> u32 {
    match arch {
        Arch::X86_64 => 0xc000_003e,
        Arch::I386 => 0x4000_0003,
        Arch::Aarch64 => 0xc000_00b7,
    }
}

/// The architecture that this program was made for.
pub(crate) const NATIVE: u32 = audit(calls::NATIVE);

/// The architectures whose programs this machine runs and the table is for.
fn arches() -> &'static [Arch] {
    match calls::NATIVE {
        Arch::X86_64 => &[Arch::X86_64, Arch::I386],
        _ => &[calls::NATIVE],
    }
}

fn errno(number: i32) -> Action {
    SECCOMP_RET_ERRNO | number.unsigned_abs()
}

/// The default filter for a sandbox with these capabilities. That for docker's is put together once in a process.
pub(crate) fn program(capabilities: Capabilities) -> Cow<'static, [sock_filter]> {
    static DOCKER: OnceLock<Vec<sock_filter>> = OnceLock::new();
    match capabilities {
        Capabilities::DOCKER => DOCKER.get_or_init(|| made_for(capabilities)).into(),
        other => made_for(other).into(),
    }
}

fn made_for(capabilities: Capabilities) -> Vec<sock_filter> {
    let plans: Vec<Plan> = arches()
        .iter()
        .map(|arch| plan(*arch, capabilities))
        .collect();
    assemble(&plans)
}

fn plan(arch: Arch, capabilities: Capabilities) -> Plan {
    let mut plan = Plan {
        arch: audit(arch),
        calls: std::collections::BTreeMap::new(),
        default: SECCOMP_RET_ALLOW,
        last: calls::LAST,
        beyond: errno(libc::ENOSYS),
        x32: errno(libc::ENOSYS),
    };
    let has = |needed: &u32| capabilities.contains(*needed);
    for group in GROUPS.iter().filter(|group| !group.unless.iter().any(has)) {
        for name in group.calls {
            if let Some(Some(number)) = calls::number(arch, name) {
                plan.calls.insert(number, verdict(group.answer));
            }
        }
    }
    plan
}

fn verdict(answer: Answer) -> Verdict {
    // Every argument looked at here is 32 bits wide to the kernel, which ignores the rest of the register.
    let first = |comparison, mask: u32, value: u32, action| Rule {
        conditions: vec![Condition {
            index: 0,
            mask: mask.into(),
            comparison,
            value: value.into(),
        }],
        action,
    };
    let whole = u32::MAX;
    match answer {
        Answer::Errno(number) => Verdict::plain(errno(number)),
        Answer::UnlessBits(bits) => Verdict {
            rules: vec![first(Comparison::Equal, bits, 0, SECCOMP_RET_ALLOW)],
            otherwise: errno(libc::EPERM),
        },
        Answer::OnlyValues(values) => Verdict {
            rules: values
                .iter()
                .map(|value| first(Comparison::Equal, whole, *value, SECCOMP_RET_ALLOW))
                .collect(),
            otherwise: errno(libc::EPERM),
        },
        Answer::ExceptValues(values, (end, number)) => Verdict {
            rules: values
                .iter()
                .map(|(value, number)| first(Comparison::Equal, whole, *value, errno(*number)))
                .chain([first(Comparison::AtLeast, whole, end, errno(number))])
                .collect(),
            otherwise: SECCOMP_RET_ALLOW,
        },
    }
}

#[cfg(test)]
mod tests;
