//! Changing owners where there is only one: a filter that lets it succeed and does nothing.
//!
//! In a user namespace with a single id the kernel refuses every other owner, and package managers, which set owners of what
//! they unpack, fail at it. To them it is answered as if it had been done. Who asks for root, or for no change, gets the
//! kernel's own answer. `setgroups`, which such a namespace refuses altogether, succeeds too.

use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, c_long, sock_filter};

use crate::seccomp::{
    ARCH_OFFSET, JUMP_EQUAL, LOAD, NATIVE, NUMBER_OFFSET, RETURN, branch, instruction,
};

/// The calls, each with the number of its first argument that is an owner; the group is the next.
#[cfg(target_arch = "x86_64")]
const CALLS: [(c_long, u32); 4] = [
    (libc::SYS_chown, 1),
    (libc::SYS_fchown, 1),
    (libc::SYS_lchown, 1),
    (libc::SYS_fchownat, 2),
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS: [(c_long, u32); 2] = [(libc::SYS_fchown, 1), (libc::SYS_fchownat, 2)];

/// Means "no change" to the kernel.
const NO_CHANGE: u32 = u32::MAX;

/// Where the lower half of an argument is, for a little-endian processor.
const fn argument(number: u32) -> u32 {
    16 + 8 * number
}

/// The filter.
pub(crate) fn program() -> Vec<sock_filter> {
    let allow = instruction(RETURN, SECCOMP_RET_ALLOW);
    let succeed = instruction(RETURN, SECCOMP_RET_ERRNO);
    let number = |call: c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let mut program = vec![
        instruction(LOAD, ARCH_OFFSET),
        branch(JUMP_EQUAL, NATIVE, 1, 0),
        allow,
        instruction(LOAD, NUMBER_OFFSET),
        branch(JUMP_EQUAL, number(libc::SYS_setgroups), 0, 1),
        succeed,
    ];
    for (call, owner) in CALLS {
        program.extend([
            branch(JUMP_EQUAL, number(call), 0, 8),
            instruction(LOAD, argument(owner)),
            branch(JUMP_EQUAL, 0, 2, 0),
            branch(JUMP_EQUAL, NO_CHANGE, 1, 0),
            succeed,
            instruction(LOAD, argument(owner + 1)),
            branch(JUMP_EQUAL, 0, 2, 0),
            branch(JUMP_EQUAL, NO_CHANGE, 1, 0),
            succeed,
        ]);
        // Past a call that it is not: the number is looked at again. Of one that it is, nothing is left to change.
        program.extend([instruction(LOAD, NUMBER_OFFSET)]);
    }
    program.push(allow);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(number: c_long, arguments: [u32; 5]) -> u32 {
        let program = program();
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                LOAD => {
                    accumulator = match step.k {
                        NUMBER_OFFSET => u32::try_from(number).unwrap(),
                        ARCH_OFFSET => NATIVE,
                        offset => arguments[usize::try_from((offset - 16) / 8).unwrap()],
                    }
                }
                JUMP_EQUAL => {
                    let jump = if accumulator == step.k {
                        step.jt
                    } else {
                        step.jf
                    };
                    at += usize::from(jump);
                }
                RETURN => return step.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn other_owners_are_no_error_and_no_change() {
        for (number, first) in CALLS {
            for (owner, expect) in [
                ((0, 0), SECCOMP_RET_ALLOW),
                ((NO_CHANGE, 0), SECCOMP_RET_ALLOW),
                ((0, NO_CHANGE), SECCOMP_RET_ALLOW),
                ((5, 0), SECCOMP_RET_ERRNO),
                ((0, 5), SECCOMP_RET_ERRNO),
                ((NO_CHANGE, 5), SECCOMP_RET_ERRNO),
                ((1000, 1000), SECCOMP_RET_ERRNO),
            ] {
                let mut arguments = [7; 5];
                let first = usize::try_from(first).unwrap();
                (arguments[first], arguments[first + 1]) = owner;
                assert_eq!(answer(number, arguments), expect, "{number} {owner:?}");
            }
        }
        assert_eq!(answer(libc::SYS_setgroups, [1; 5]), SECCOMP_RET_ERRNO);
        assert_eq!(answer(libc::SYS_setuid, [5; 5]), SECCOMP_RET_ALLOW);
        assert_eq!(answer(libc::SYS_openat, [5; 5]), SECCOMP_RET_ALLOW);
    }
}
