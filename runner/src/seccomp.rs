//! The system call filter: Docker's default profile in meaning, as a table of our own.
//!
//! Docker lists some 350 calls that are allowed. What a reader wants to know is the rest, so this table
//! holds the calls that are *refused*, by reason, and every other call up to [`LAST`] is allowed. A call
//! with a higher number did not exist when the table was made; it answers `ENOSYS`, on which programs
//! fall back to what they did before.
//!
//! The program is a binary search over number ranges, so a call costs some seven comparisons, and
//! loading it costs a tenth of what a linear list of this length does:
//!
//! ```text
//! architecture? ─ native ─► number ≥ mid? ─ … ─► allow | errno | look at one argument
//!               ├ i386   ─► the same, over its own numbers
//!               └ other  ─► kill
//! ```

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, c_long, sock_filter};

use crate::spec::Capabilities;

/// The last call that the table knows (`file_setattr`, Linux 6.17). From 424 on numbers are the same on
/// all architectures.
const LAST: u32 = 469;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(i32),
    /// Refused if the first argument has one of these bits.
    UnlessBits(u32),
    /// Allowed only with one of these values as first argument.
    OnlyValues(&'static [u32]),
    /// Refused with these values as first argument.
    ExceptValues(&'static [(u32, i32)]),
}

/// Calls refused for one reason.
struct Group {
    /// A sandbox that has one of these capabilities may use them after all.
    unless: &'static [u32],
    verdict: Verdict,
    native: &'static [c_long],
    i386: &'static [u32],
}

const EPERM: Verdict = Verdict::Errno(libc::EPERM);
const ENOSYS: Verdict = Verdict::Errno(libc::ENOSYS);

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
/// hypervisor, past any network namespace.
const SOCKET_FAMILIES: &[(u32, i32)] = &[
    (libc::AF_ALG as u32, libc::EAFNOSUPPORT),
    (libc::AF_VSOCK as u32, libc::EPERM),
];

const GROUPS: &[Group] = &[
    // Namespaces and mounts: they change what the kernel's checks mean, and most local root holes of
    // the last years start with one of these.
    Group {
        unless: &[SYS_ADMIN],
        verdict: EPERM,
        native: &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
            OPEN_TREE_ATTR,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_fanotify_init,
            libc::SYS_sethostname,
            libc::SYS_setdomainname,
        ],
        i386: &[
            21, 22, 52, 310, 346, 428, 429, 430, 431, 432, 433, 442, 467, 131, 443, 338, 74, 121,
        ],
    },
    Group {
        unless: &[SYS_ADMIN],
        verdict: Verdict::UnlessBits(CLONE_NAMESPACES),
        native: &[libc::SYS_clone],
        i386: &[120],
    },
    // Its flags are in memory, where a filter cannot look. libc falls back to clone.
    Group {
        unless: &[SYS_ADMIN],
        verdict: ENOSYS,
        native: &[libc::SYS_clone3],
        i386: &[435],
    },
    // Never useful inside: the root is already pivoted, and swap belongs to the host.
    Group {
        unless: &[],
        verdict: EPERM,
        native: &[libc::SYS_pivot_root, libc::SYS_swapon, libc::SYS_swapoff],
        i386: &[217, 87, 115],
    },
    // The root of the process can be left again by whoever may change it.
    Group {
        unless: &[SYS_CHROOT],
        verdict: EPERM,
        native: &[libc::SYS_chroot],
        i386: &[61],
    },
    // Files by inode number, past every path check: the way out of a container named "shocker".
    Group {
        unless: &[DAC_READ_SEARCH],
        verdict: EPERM,
        native: &[libc::SYS_open_by_handle_at],
        i386: &[342],
    },
    // Code into the kernel.
    Group {
        unless: &[SYS_MODULE],
        verdict: EPERM,
        native: &[
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
        ],
        i386: &[128, 350, 129],
    },
    Group {
        unless: &[SYS_BOOT],
        verdict: EPERM,
        native: &[libc::SYS_reboot, libc::SYS_kexec_load, KEXEC_FILE_LOAD],
        i386: &[88, 283],
    },
    Group {
        unless: &[SYS_ADMIN, BPF],
        verdict: EPERM,
        native: &[libc::SYS_bpf],
        i386: &[357],
    },
    Group {
        unless: &[SYS_ADMIN, PERFMON],
        verdict: EPERM,
        native: &[libc::SYS_perf_event_open],
        i386: &[336],
    },
    // Work that the kernel does on the caller's behalf, past this very filter, in code that is young.
    Group {
        unless: &[],
        verdict: EPERM,
        native: &[
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ],
        i386: &[425, 426, 427],
    },
    // Stops the kernel in the middle of a copy for as long as one likes: the helper of race exploits.
    Group {
        unless: &[],
        verdict: EPERM,
        native: &[libc::SYS_userfaultfd],
        i386: &[374],
    },
    // Keys are not namespaced.
    Group {
        unless: &[],
        verdict: EPERM,
        native: &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl],
        i386: &[286, 287, 288],
    },
    // Other processes' memory and descriptors. ptrace itself and process_vm_* have had their holes
    // closed since Linux 4.8 and are allowed, as in Docker, for debuggers and sanitizers.
    Group {
        unless: &[SYS_PTRACE],
        verdict: EPERM,
        native: &[
            libc::SYS_kcmp,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_madvise,
        ],
        i386: &[349, 438, 440],
    },
    // Placement of memory: can starve the other tenants of a machine.
    Group {
        unless: &[SYS_NICE],
        verdict: EPERM,
        native: &[
            libc::SYS_get_mempolicy,
            libc::SYS_set_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy_home_node,
        ],
        i386: &[275, 276, 274, 450],
    },
    Group {
        unless: &[],
        verdict: EPERM,
        native: &[libc::SYS_migrate_pages, libc::SYS_move_pages],
        i386: &[294, 317],
    },
    // The clock is the host's.
    Group {
        unless: &[SYS_TIME],
        verdict: EPERM,
        native: &[libc::SYS_settimeofday, libc::SYS_clock_settime],
        i386: &[79, 25, 264, 404],
    },
    // So are the kernel's log, accounting and terminals.
    Group {
        unless: &[SYS_ADMIN, SYSLOG],
        verdict: EPERM,
        native: &[libc::SYS_syslog],
        i386: &[103],
    },
    Group {
        unless: &[SYS_PACCT],
        verdict: EPERM,
        native: &[libc::SYS_acct],
        i386: &[51],
    },
    Group {
        unless: &[SYS_TTY_CONFIG],
        verdict: EPERM,
        native: &[libc::SYS_vhangup],
        i386: &[111],
    },
    Group {
        unless: &[SYS_RAWIO],
        verdict: EPERM,
        native: PORTS,
        i386: &[110, 101],
    },
    // Security modules are set up by the host.
    Group {
        unless: &[SYS_ADMIN],
        verdict: EPERM,
        native: &[459, 460, 461],
        i386: &[459, 460, 461],
    },
    Group {
        unless: &[],
        verdict: Verdict::OnlyValues(PERSONALITIES),
        native: &[libc::SYS_personality],
        i386: &[136],
    },
    Group {
        unless: &[],
        verdict: Verdict::ExceptValues(SOCKET_FAMILIES),
        native: &[libc::SYS_socket],
        i386: &[359],
    },
    // i386 programs' old way to sockets keeps the family in memory; libc tries socket(2) first.
    Group {
        unless: &[],
        verdict: ENOSYS,
        native: &[],
        i386: &[102],
    },
    // Long gone or never there, but with a number of their own.
    Group {
        unless: &[],
        verdict: EPERM,
        native: RELICS,
        // uselib, ustat, sysfs, _sysctl, create_module, get_kernel_syms, query_module, nfsservctl,
        // lookup_dcookie, vm86, vm86old.
        i386: &[86, 62, 135, 149, 127, 130, 167, 169, 253, 166, 113],
    },
];

const OPEN_TREE_ATTR: c_long = 467;

#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = libc::SYS_kexec_file_load;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: c_long = 294;

/// Ports of the hardware.
#[cfg(target_arch = "x86_64")]
const PORTS: &[c_long] = &[libc::SYS_iopl, libc::SYS_ioperm];
#[cfg(target_arch = "aarch64")]
const PORTS: &[c_long] = &[];

#[cfg(target_arch = "x86_64")]
const RELICS: &[c_long] = &[
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    174, // create_module
    177, // get_kernel_syms
    178, // query_module
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
];
#[cfg(target_arch = "aarch64")]
const RELICS: &[c_long] = &[libc::SYS_nfsservctl, libc::SYS_lookup_dcookie];

// `AUDIT_ARCH_*`: the ELF machine, little-endian (0x4000_0000), 64-bit (0x8000_0000).
#[cfg(target_arch = "x86_64")]
pub(crate) const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const NATIVE: u32 = 0xc000_00b7;
const I386: u32 = 0x4000_0003;

/// `struct seccomp_data`.
pub(crate) const NUMBER_OFFSET: u32 = 0;
pub(crate) const ARCH_OFFSET: u32 = 4;
/// The lower half of the first argument: every argument looked at here is 32 bits wide to the kernel.
const ARGUMENT_OFFSET: u32 = 16;

// Classic BPF.
pub(crate) const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
pub(crate) const RETURN: u16 = 0x06;

/// The filter for a sandbox with these capabilities.
pub(crate) fn program(capabilities: Capabilities) -> Vec<sock_filter> {
    let native = search(&ranges(capabilities, |group| {
        group
            .native
            .iter()
            .filter_map(|number| u32::try_from(*number).ok())
            .collect()
    }));
    let i386 = if cfg!(target_arch = "x86_64") {
        search(&ranges(capabilities, |group| group.i386.to_vec()))
    } else {
        vec![instruction(RETURN, SECCOMP_RET_KILL_PROCESS)]
    };

    let past_native = u32::try_from(native.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        instruction(LOAD, ARCH_OFFSET),
        branch(JUMP_EQUAL, NATIVE, 2, 0),
        branch(JUMP_EQUAL, I386, 0, 3),
        instruction(JUMP, past_native + 3),
        instruction(LOAD, NUMBER_OFFSET),
        instruction(JUMP, 1),
        instruction(RETURN, SECCOMP_RET_KILL_PROCESS),
    ];
    program.extend(native);
    program.push(instruction(LOAD, NUMBER_OFFSET));
    program.extend(i386);
    program
}

/// The numbers from `start` to the next range's, and what happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u32,
    verdict: Verdict,
}

/// All numbers from 0 up, as ranges in order, neighbours with the same verdict joined.
///
/// The x32 interface (bit 30 of the number) is past the last one and so refused: nothing uses it, and
/// it has had holes of its own.
fn ranges(capabilities: Capabilities, numbers: impl Fn(&Group) -> Vec<u32>) -> Vec<Range> {
    let mut refused: Vec<(u32, Verdict)> = GROUPS
        .iter()
        .filter(|group| {
            !group
                .unless
                .iter()
                .any(|needed| capabilities.contains(*needed))
        })
        .flat_map(|group| {
            numbers(group)
                .into_iter()
                .map(|number| (number, group.verdict))
        })
        .collect();
    refused.sort_by_key(|(number, _)| *number);

    let mut ranges = vec![Range {
        start: 0,
        verdict: Verdict::Allow,
    }];
    let mut push = |start: u32, verdict: Verdict| {
        if let Some(last) = ranges.last_mut() {
            if last.verdict == verdict {
                return;
            }
            if last.start == start {
                last.verdict = verdict;
                return;
            }
        }
        ranges.push(Range { start, verdict });
    };
    for (number, verdict) in refused {
        push(number, verdict);
        push(number + 1, Verdict::Allow);
    }
    push(LAST + 1, ENOSYS);
    // `push` may have replaced a range by its predecessor's verdict.
    ranges.dedup_by(|next, previous| next.verdict == previous.verdict);
    ranges
}

/// A binary search for the accumulator among `ranges`, ending in a return for each.
fn search(ranges: &[Range]) -> Vec<sock_filter> {
    if let [only] = ranges {
        return outcome(only.verdict);
    }
    let middle = ranges.len() / 2;
    let (below, above) = (search(&ranges[..middle]), search(&ranges[middle..]));
    let start = ranges[middle].start;
    let mut code = match u8::try_from(below.len()) {
        Ok(distance) => vec![branch(JUMP_AT_LEAST, start, distance, 0)],
        // Conditional jumps reach 255 instructions, plain ones any number.
        Err(_) => vec![
            branch(JUMP_AT_LEAST, start, 0, 1),
            instruction(JUMP, u32::try_from(below.len()).unwrap_or(u32::MAX)),
        ],
    };
    code.extend(below);
    code.extend(above);
    code
}

fn outcome(verdict: Verdict) -> Vec<sock_filter> {
    let allow = instruction(RETURN, SECCOMP_RET_ALLOW);
    let errno = |errno: i32| instruction(RETURN, SECCOMP_RET_ERRNO | errno.unsigned_abs());
    let argument = instruction(LOAD, ARGUMENT_OFFSET);
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Errno(number) => vec![errno(number)],
        Verdict::UnlessBits(bits) => {
            vec![
                argument,
                branch(JUMP_ANY_BIT, bits, 0, 1),
                errno(libc::EPERM),
                allow,
            ]
        }
        Verdict::OnlyValues(values) => {
            let mut code = vec![argument];
            for value in values {
                code.extend([branch(JUMP_EQUAL, *value, 0, 1), allow]);
            }
            code.push(errno(libc::EPERM));
            code
        }
        Verdict::ExceptValues(values) => {
            let mut code = vec![argument];
            for (value, number) in values {
                code.extend([branch(JUMP_EQUAL, *value, 0, 1), errno(*number)]);
            }
            code.push(allow);
            code
        }
    }
}

pub(crate) fn instruction(code: u16, value: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k: value,
    }
}

pub(crate) fn branch(code: u16, value: u32, then: u8, otherwise: u8) -> sock_filter {
    sock_filter {
        code,
        jt: then,
        jf: otherwise,
        k: value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers, by a small interpreter of the instructions that it uses.
    fn answer(program: &[sock_filter], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            let branch = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
            match step.code {
                LOAD => {
                    accumulator = match step.k {
                        NUMBER_OFFSET => number,
                        ARCH_OFFSET => arch,
                        ARGUMENT_OFFSET => argument,
                        other => panic!("load of {other}"),
                    }
                }
                JUMP => at += usize::try_from(step.k).unwrap(),
                JUMP_EQUAL => at += branch(accumulator == step.k),
                JUMP_AT_LEAST => at += branch(accumulator >= step.k),
                JUMP_ANY_BIT => at += branch(accumulator & step.k != 0),
                RETURN => return step.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn refused(errno: i32) -> u32 {
        SECCOMP_RET_ERRNO | errno.unsigned_abs()
    }

    /// The table read the slow way.
    fn expected(capabilities: Capabilities, number: u32, argument: u32, i386: bool) -> u32 {
        if number > LAST {
            return refused(libc::ENOSYS);
        }
        let native = |group: &Group| group.native.iter().any(|n| u32::try_from(*n) == Ok(number));
        let group = GROUPS.iter().find(|group| {
            let listed = if i386 {
                group.i386.contains(&number)
            } else {
                native(group)
            };
            listed
                && !group
                    .unless
                    .iter()
                    .any(|needed| capabilities.contains(*needed))
        });
        let passes = match group.map(|group| group.verdict) {
            None | Some(Verdict::Allow) => Ok(()),
            Some(Verdict::Errno(errno)) => Err(errno),
            Some(Verdict::UnlessBits(bits)) if argument & bits != 0 => Err(libc::EPERM),
            Some(Verdict::OnlyValues(values)) if !values.contains(&argument) => Err(libc::EPERM),
            Some(Verdict::ExceptValues(values)) => values
                .iter()
                .find(|(value, _)| *value == argument)
                .map_or(Ok(()), |v| Err(v.1)),
            Some(Verdict::UnlessBits(_) | Verdict::OnlyValues(_)) => Ok(()),
        };
        passes.map_or_else(refused, |()| SECCOMP_RET_ALLOW)
    }

    #[test]
    fn the_program_says_what_the_table_says() {
        for capabilities in [
            Capabilities::DOCKER,
            Capabilities(0),
            Capabilities::ALL,
            Capabilities(Capabilities::DOCKER.0 | 1 << SYS_ADMIN),
        ] {
            let program = program(capabilities);
            let arches = if cfg!(target_arch = "x86_64") {
                &[NATIVE, I386][..]
            } else {
                &[NATIVE]
            };
            for arch in arches {
                for number in (0..600).chain([0x4000_0000, 0x4000_0027, u32::MAX]) {
                    for argument in [0, 1, 8, 0x2_0000, 38, 40, 0x1000_0000, 0x4_0000, u32::MAX] {
                        assert_eq!(
                            answer(&program, *arch, number, argument),
                            expected(capabilities, number, argument, *arch == I386),
                            "{capabilities:?} {arch:#x} {number} {argument:#x}"
                        );
                    }
                }
            }
            // MIPS, ARM, and nothing at all.
            for arch in [8, 0x4000_0028, 0] {
                assert_eq!(answer(&program, arch, 39, 0), SECCOMP_RET_KILL_PROCESS);
            }
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut native: Vec<c_long> = GROUPS.iter().flat_map(|g| g.native).copied().collect();
        let mut i386: Vec<u32> = GROUPS.iter().flat_map(|g| g.i386).copied().collect();
        let counts = (native.len(), i386.len());
        native.sort_unstable();
        native.dedup();
        i386.sort_unstable();
        i386.dedup();
        assert_eq!((native.len(), i386.len()), counts);
    }

    #[test]
    fn the_program_stays_small() {
        let native = search(&ranges(Capabilities::DOCKER, |group| {
            group
                .native
                .iter()
                .filter_map(|n| u32::try_from(*n).ok())
                .collect()
        }));
        // A longer one costs every exec: the kernel checks and translates it each time.
        assert!(native.len() <= 160, "{} instructions", native.len());
        assert!(program(Capabilities::DOCKER).len() <= 360);
    }
}
