//! The only file with unsafe code: thin, typed wrappers over the calls that rustix has no safe form of.
//!
//! Nothing here decides anything. Each wrapper checks what its call needs, or its type does.

#![allow(unsafe_code, reason = "the one place for it: see each SAFETY comment")]

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use crate::spec::Usage;

/// Which side of a fork one is on.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the new one's id and a descriptor for it.
    Parent {
        /// The child's process id, as this process sees it.
        pid: i32,
        /// Becomes readable when the child ends; names it even after its id was reused.
        pidfd: OwnedFd,
    },
}

/// Forks into the new namespaces of `flags` (`CLONE_NEW*`), optionally straight into a v2 control
/// group.
///
/// Only for single-threaded processes: the child may allocate and run any code, which is sound only
/// when no other thread can have held a lock. Refused with `EBUSY` otherwise.
pub(crate) fn fork(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    clone_process(flags, libc::SIGCHLD, cgroup)
}

/// As [`fork`], but what is forked is a child of this process's parent.
pub(crate) fn fork_beside(flags: u64) -> io::Result<Fork> {
    // It signals its end as this process does.
    clone_process(
        flags | u64::from(libc::CLONE_PARENT.unsigned_abs()),
        0,
        None,
    )
}

fn clone_process(flags: u64, end_signal: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    require_single_thread()?;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    // The kernel's `struct clone_args`: eleven 64-bit words.
    let mut args = [0_u64; 11];
    args[0] = flags
        | u64::from(libc::CLONE_PIDFD.unsigned_abs())
        | if cgroup.is_some() {
            CLONE_INTO_CGROUP
        } else {
            0
        };
    args[1] = &raw mut pidfd as u64;
    args[4] = u64::from(end_signal.unsigned_abs());
    args[10] = cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs()));
    // SAFETY: `args` is a valid clone_args of the size given; without CLONE_VM the child continues on
    // a copy of this stack, and this process has one thread, so every lock is free in the child.
    let mut pid = unsafe { libc::syscall(libc::SYS_clone3, args.as_ptr(), size_of_val(&args)) };
    if pid == -1 && cgroup.is_none() && errno() == Some(libc::ENOSYS) {
        // A filter, such as our own, that cannot look into clone3's arguments. The older call has the
        // exit signal among the flags and puts the descriptor where the thread id would go.
        let zero: c_long = 0;
        // SAFETY: as above; the pointer to `pidfd` is valid in both processes.
        pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                args[0] | args[4],
                zero,
                &raw mut pidfd,
                zero,
                zero,
            )
        };
    }
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor that no one else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Fork::Parent {
                pid: i32::try_from(pid).unwrap_or(i32::MAX),
                pidfd,
            })
        }
    }
}

/// Enters new user and mount namespaces, with this process's user owning the former.
pub(crate) fn unshare_user() -> io::Result<()> {
    require_single_thread()?;
    unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)
}

/// Enters a new control group namespace, whose root is where this process now is.
pub(crate) fn unshare_cgroup() -> io::Result<()> {
    unshare(libc::CLONE_NEWCGROUP)
}

fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: changes only this process's view of the system; no memory is involved, and CLONE_FILES
    // and CLONE_VM, which would, are never passed.
    check(unsafe { libc::unshare(flags) }.into())
}

/// Ends this process at once, without running anything that the program registered for its end: the
/// right way out of a fork.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; no destructor or handler runs that could touch shared state.
    unsafe { libc::_exit(code) }
}

/// Puts `/dev/null` in the place of one of the standard streams.
pub(crate) fn redirect_to_null(stream: BorrowedFd<'_>) -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // SAFETY: the number stays an open descriptor throughout; what it means is changed, which is what
    // the standard streams allow.
    check(unsafe { libc::dup2(null.as_raw_fd(), stream.as_raw_fd()) }.into())
}

fn require_single_thread() -> io::Result<()> {
    // As of any directory: one link from above, one from within, and one from each directory in it.
    match rustix::fs::stat("/proc/self/task")?.st_nlink {
        3 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
    }
}

/// Starts the program at `path` under the name `name`, with `stdin` as its standard input, no environment, and what else is
/// not closed on exec. Gives a descriptor for the process.
///
/// Any thread of any process may call this: its cost does not depend on the caller's size. All signals are blocked in the new
/// process, which is to unblock those that it wants.
pub(crate) fn spawn(path: &CStr, name: &CStr, stdin: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const STACK_BYTES: usize = 32 << 10;
    struct Start {
        path: *const c_char,
        argv: [*const c_char; 2],
        stdin: RawFd,
        errno: c_int,
    }
    /// Runs in the caller's memory while the caller's thread stands still: makes system calls, and nothing else.
    extern "C" fn child(start: *mut libc::c_void) -> c_int {
        let start = start.cast::<Start>();
        let env: [*const c_char; 1] = [ptr::null()];
        // SAFETY: `start` is the caller's, which waits; its strings are null-terminated, and so are both arrays. What dup2
        // changes is this process's own table of descriptors.
        unsafe {
            let done = if (*start).stdin == 0 {
                libc::fcntl(0, libc::F_SETFD, 0)
            } else {
                libc::dup2((*start).stdin, 0)
            };
            if done >= 0 {
                libc::execve((*start).path, (*start).argv.as_ptr(), env.as_ptr());
            }
            (*start).errno = *libc::__errno_location();
            libc::_exit(127)
        }
    }
    let mut start = Start {
        path: path.as_ptr(),
        argv: [name.as_ptr(), ptr::null()],
        stdin: stdin.as_raw_fd(),
        errno: 0,
    };
    let mut pidfd: RawFd = -1;
    let mut stack = vec![0_u128; STACK_BYTES / size_of::<u128>()];
    // A handler of the caller's must not run in both processes.
    let mask = set_signal_mask(&SignalSet::ALL);
    // SAFETY: the child has a stack of its own, aligned to 16 bytes, of which the end is given, as stacks grow down; it uses
    // `start` and `pidfd`, which outlive it in this memory, since CLONE_VFORK returns when it has executed the program or ended.
    let pid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            (&raw mut start).cast(),
            &raw mut pidfd,
        )
    };
    let failed = io::Error::last_os_error();
    set_signal_mask(&mask);
    if pid == -1 {
        return Err(failed);
    }
    // SAFETY: the kernel stored a new descriptor that no one else owns.
    let process = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: as the child wrote it before it ended, for which `clone` has waited.
    match unsafe { (&raw const start.errno).read_volatile() } {
        0 => Ok(process),
        errno => {
            let _ended = wait_for(process.as_fd());
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// Waits for a child: its end as `wait` tells it (a code in the second byte, or a signal in the first), and what it and its own children
/// that were waited for used.
pub(crate) fn wait_for(child: BorrowedFd<'_>) -> io::Result<(i32, Usage)> {
    loop {
        // SAFETY: both are plain integers (and unions of them), for which zero is a value; the kernel fills them, and the fifth
        // argument, which libc's `waitid` has not, is where it writes what the child used.
        let (result, info, usage) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let mut usage: libc::rusage = std::mem::zeroed();
            let result = check(libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                child.as_raw_fd(),
                &raw mut info,
                libc::WEXITED,
                &raw mut usage,
            ));
            (result, info, usage)
        };
        match result {
            Ok(()) => {
                // SAFETY: `waitid` fills this field for a child that has ended.
                let status = unsafe { info.si_status() };
                let status = match info.si_code {
                    libc::CLD_EXITED => (status & 0xff) << 8,
                    _ => status & 0x7f,
                };
                return Ok((status, as_usage(&usage)));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Replaces this process's program; returns only the error.
pub(crate) fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both vectors are null-terminated and point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Sets attributes (`MOUNT_ATTR_*`) of the mount that `mount` is the root of.
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: u64,
    recursive: bool,
) -> io::Result<()> {
    mount_setattr(mount, [attributes, 0, 0, 0], recursive)
}

/// Maps the ids of a detached mount (and those beneath it) as the user namespace of `namespace` does.
pub(crate) fn map_mount_ids(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
    let namespace = u64::from(namespace.as_raw_fd().unsigned_abs());
    mount_setattr(mount, [MOUNT_ATTR_IDMAP, 0, 0, namespace], recursive)
}

/// `attr` is the kernel's `struct mount_attr`: set, clear, propagation, user namespace.
fn mount_setattr(mount: BorrowedFd<'_>, attr: [u64; 4], recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` is a valid mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    })
}

/// Installs a seccomp filter for this process and its descendants; `flags` are `SECCOMP_FILTER_FLAG_*`, none that makes a descriptor.
pub(crate) fn install_seccomp(program: &[libc::sock_filter], flags: u32) -> io::Result<()> {
    let len =
        u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let filter = libc::sock_fprog {
        len,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` describes `program`, which the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    })
}

/// Gives every signal its default action and unblocks all: what a fresh program expects, and what
/// Rust's runtime (which ignores SIGPIPE) and our blocking changed.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: sets a default action; fails harmlessly for the two that cannot be changed and the
        // two that libc keeps for itself.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_signal_mask(&SignalSet::EMPTY);
}

/// Whether a write to a pipe that nobody reads ends this process, as a fresh program expects, or is an error, as Rust's runtime wants
/// it. For processes with a single thread.
pub(crate) fn end_on_broken_pipes(ends: bool) {
    let action = if ends { libc::SIG_DFL } else { libc::SIG_IGN };
    // SAFETY: neither action runs code of this program.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

/// Memory of this program that is read from a file, and that nobody can write to or has written to.
#[derive(Debug)]
pub(crate) struct FilePages {
    start: usize,
    length: usize,
}

impl FilePages {
    /// All that there are of a kind that this process maps now.
    pub(crate) fn all() -> Vec<Self> {
        Self::of(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default())
    }

    fn of(smaps: &str) -> Vec<Self> {
        let mut found = Vec::new();
        let mut mapping = None;
        for line in smaps.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(first), Some(second)) = (fields.next(), fields.next()) else {
                continue;
            };
            // `start-end permissions offset device inode path`, then lines of `Key: value`.
            if let Some((start, end)) = first.split_once('-') {
                let address = |text| usize::from_str_radix(text, 16).ok();
                let is_read_only = second.as_bytes().get(1) == Some(&b'-') && second.ends_with('p');
                let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
                let range = address(start).zip(address(end));
                mapping = range.filter(|_| is_read_only && is_file);
            } else if first == "Anonymous:"
                && second == "0"
                && let Some((start, end)) = mapping.take()
            {
                found.push(Self {
                    start,
                    length: end - start,
                });
            }
        }
        found
    }

    /// Lets go of it: what is touched again is read again, from the kernel's cache as long as that has it.
    pub(crate) fn let_go(&self) {
        let start = ptr::without_provenance_mut(self.start);
        // SAFETY: a private mapping of a file that is not writable and had no page of its own when it was found, so that it
        // never has one: what is read from it later is what was there before.
        unsafe { libc::madvise(start, self.length, libc::MADV_DONTNEED) };
    }
}

/// Gives memory back that was allocated and freed.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no requirements.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// A set of signals; bit `n - 1` is signal `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalSet(u64);

impl SignalSet {
    pub(crate) const EMPTY: Self = Self(0);
    pub(crate) const ALL: Self = Self(u64::MAX);

    pub(crate) fn of(signals: &[c_int]) -> Self {
        signals
            .iter()
            .fold(Self::EMPTY, |set, signal| set.with(*signal))
    }

    pub(crate) fn with(self, signal: c_int) -> Self {
        Self(self.0 | 1 << (signal - 1))
    }
}

/// Blocks exactly the signals of `mask` in this thread and returns what was blocked.
pub(crate) fn set_signal_mask(mask: &SignalSet) -> SignalSet {
    let mut old = SignalSet::EMPTY;
    // SAFETY: the kernel's signal set is 64 bits on every platform we build for; both are valid. The
    // raw call is used because libc's `sigset_t` cannot be built from bits.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask.0,
            &raw mut old.0,
            size_of::<u64>(),
        )
    };
    old
}

/// Blocks the signals of `more` too, and returns what was blocked before.
pub(crate) fn block_signals(more: &SignalSet) -> SignalSet {
    let old = set_signal_mask(more);
    set_signal_mask(&SignalSet(old.0 | more.0));
    old
}

/// A descriptor that delivers the (blocked) signals of `mask`.
pub(crate) fn signal_fd(mask: &SignalSet) -> io::Result<OwnedFd> {
    // SAFETY: as in `set_signal_mask`; the result is checked and owned by no one else.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_signalfd4,
            -1,
            &raw const mask.0,
            size_of::<u64>(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        );
        check(fd)?;
        Ok(OwnedFd::from_raw_fd(c_int::try_from(fd).unwrap_or(-1)))
    }
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    /// Its number.
    pub(crate) signal: c_int,
    /// Whether the kernel sent it on its own, as a terminal's driver does to the whole foreground
    /// process group.
    pub(crate) by_kernel: bool,
}

/// The next signal of a [`signal_fd`]; `None` if none is waiting.
pub(crate) fn read_signal(fd: BorrowedFd<'_>) -> io::Result<Option<Arrived>> {
    let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut info) {
        Ok(n) if n == info.len() => {
            let word = |at: usize| {
                i32::from_ne_bytes(
                    info[at..at + 4]
                        .try_into()
                        .expect("the slice has four bytes"),
                )
            };
            // ssi_signo is the first word, ssi_code the third.
            Ok(Some(Arrived {
                signal: word(0),
                by_kernel: word(8) > 0,
            }))
        }
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends any signal, real-time ones included, to the process of `pidfd`.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved: the info pointer is null.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
}

/// What children that were waited for used.
pub(crate) fn children_usage() -> Usage {
    // SAFETY: rusage is plain integers, for which zero is a value, and the kernel fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    as_usage(&usage)
}

fn as_usage(usage: &libc::rusage) -> Usage {
    let micros = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
            + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    Usage {
        user_us: micros(usage.ru_utime),
        system_us: micros(usage.ru_stime),
        memory_peak: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        read_bytes: u64::try_from(usage.ru_inblock).unwrap_or(0) * 512,
        written_bytes: u64::try_from(usage.ru_oublock).unwrap_or(0) * 512,
        ..Usage::default()
    }
}

/// Closes every descriptor but the standard streams and `kept`, which is closed on exec. For init alone, shortly before it becomes the
/// command: whoever else owned one of them, in frames that are never returned to, does not use it again.
pub(crate) fn close_all_but(kept: BorrowedFd<'_>) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    let kept = u32::try_from(kept.as_raw_fd()).unwrap_or(0).max(3);
    let close = |first: u32, last: u32, flags: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: no memory is involved. Descriptors are closed under the feet of the frames that init was forked in; it
        // leaves by exec or `exit_now`, so that none of those runs again, not even its destructors.
        check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) })
    };
    close(3, kept - 1, 0)?;
    close(kept, kept, CLOSE_RANGE_CLOEXEC)?;
    close(kept + 1, u32::MAX, 0)
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data, for which zero is a value; the name is `lo` and a terminator; the
    // kernel reads the name and the flags.
    check(c_long::from(unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = c_char::try_from(b'l').unwrap_or_default();
        request.ifr_name[1] = c_char::try_from(b'o').unwrap_or_default();
        request.ifr_ifru.ifru_flags =
            i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    }))
}

/// Joins a new, empty session keyring, so that the host's keys are out of reach.
pub(crate) fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is involved.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            ptr::null::<c_char>(),
        )
    })
}

fn errno() -> Option<c_int> {
    io::Error::last_os_error().raw_os_error()
}

fn check(result: c_long) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_nobody_wrote_to() {
        let smaps = "\
1000-3000 r-xp 00001000 08:01 7 /bin/program
Rss: 8 kB
Anonymous: 0 kB
3000-4000 r--p 00003000 08:01 7 /bin/program
Anonymous: 4 kB
4000-5000 rw-p 00004000 08:01 7 /bin/program
Anonymous: 0 kB
5000-6000 r--s 00000000 08:01 9 /shared
Anonymous: 0 kB
6000-7000 r-xp 00000000 00:00 0 [vdso]
Anonymous: 0 kB
7000-8000 r--p 00000000 00:00 0
Anonymous: 0 kB
";
        let found = FilePages::of(smaps);
        let found: Vec<(usize, usize)> = found.iter().map(|p| (p.start, p.length)).collect();
        assert_eq!(found, [(0x1000, 0x2000)]);
    }

    #[test]
    fn what_was_let_go_of_is_there_again() {
        let pages = FilePages::all();
        assert!(!pages.is_empty());
        pages.iter().for_each(FilePages::let_go);
        trim_heap();
        assert_eq!(FilePages::all().len(), pages.len());
    }
}
