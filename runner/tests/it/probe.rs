//! The test program inside a sandbox: makes one system call at a time and prints what came of it.

/// Calls with arguments that do nothing, or fail, when they are let through.
pub(crate) fn number(name: &str) -> (libc::c_long, [libc::c_long; 6]) {
    let none = [0; 6];
    let bad = [-1; 6];
    match name {
        "getpid" => (libc::SYS_getpid, none),
        "mount" => (libc::SYS_mount, bad),
        "umount2" => (libc::SYS_umount2, bad),
        "unshare" => (libc::SYS_unshare, none),
        "unshare_user" => (
            libc::SYS_unshare,
            [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0],
        ),
        "setns" => (libc::SYS_setns, bad),
        "fsopen" => (libc::SYS_fsopen, [-1, 0, 0, 0, 0, 0]),
        "open_tree" => (libc::SYS_open_tree, bad),
        "move_mount" => (libc::SYS_move_mount, bad),
        "mount_setattr" => (libc::SYS_mount_setattr, bad),
        "pivot_root" => (libc::SYS_pivot_root, bad),
        "swapon" => (libc::SYS_swapon, bad),
        "reboot" => (libc::SYS_reboot, none),
        "kexec_load" => (libc::SYS_kexec_load, bad),
        "init_module" => (libc::SYS_init_module, bad),
        "finit_module" => (libc::SYS_finit_module, bad),
        "bpf" => (libc::SYS_bpf, bad),
        "perf_event_open" => (libc::SYS_perf_event_open, bad),
        "userfaultfd" => (libc::SYS_userfaultfd, bad),
        "io_uring_setup" => (libc::SYS_io_uring_setup, none),
        // Asks for the id of the session keyring.
        "keyctl" => (libc::SYS_keyctl, [0, -3, 0, 0, 0, 0]),
        "add_key" => (libc::SYS_add_key, bad),
        "request_key" => (libc::SYS_request_key, bad),
        "open_by_handle_at" => (libc::SYS_open_by_handle_at, bad),
        "name_to_handle_at" => (libc::SYS_name_to_handle_at, bad),
        "settimeofday" => (libc::SYS_settimeofday, bad),
        "clock_settime" => (libc::SYS_clock_settime, bad),
        "syslog" => (libc::SYS_syslog, [10, 0, 0, 0, 0, 0]),
        "acct" => (libc::SYS_acct, bad),
        "vhangup" => (libc::SYS_vhangup, none),
        "kcmp" => (libc::SYS_kcmp, bad),
        "pidfd_getfd" => (libc::SYS_pidfd_getfd, bad),
        "process_vm_readv" => (libc::SYS_process_vm_readv, [1, 0, 0, 0, 0, 0]),
        "ptrace" => (
            libc::SYS_ptrace,
            [libc::PTRACE_PEEKDATA.into(), 1, 0, 0, 0, 0],
        ),
        "mbind" => (libc::SYS_mbind, bad),
        "move_pages" => (libc::SYS_move_pages, bad),
        "quotactl" => (libc::SYS_quotactl, bad),
        "sethostname" => (libc::SYS_sethostname, bad),
        "chroot" => (libc::SYS_chroot, bad),
        "clone_newuser" => (libc::SYS_clone, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0]),
        "clone_newns" => (libc::SYS_clone, [libc::CLONE_NEWNS.into(), 0, 0, 0, 0, 0]),
        // Refused by the kernel itself: CLONE_SIGHAND without CLONE_VM.
        "clone_plain" => (libc::SYS_clone, [libc::CLONE_SIGHAND.into(), 0, 0, 0, 0, 0]),
        "clone3" => (libc::SYS_clone3, bad),
        "personality_query" => (libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0]),
        // ADDR_NO_RANDOMIZE.
        "personality_norandom" => (libc::SYS_personality, [0x4_0000, 0, 0, 0, 0, 0]),
        "socket_inet" => (
            libc::SYS_socket,
            [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0],
        ),
        "socket_unix" => (
            libc::SYS_socket,
            [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0],
        ),
        "socket_netlink" => (
            libc::SYS_socket,
            [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0],
        ),
        "socket_vsock" => (
            libc::SYS_socket,
            [libc::AF_VSOCK.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0],
        ),
        "socket_alg" => (
            libc::SYS_socket,
            [libc::AF_ALG.into(), libc::SOCK_SEQPACKET.into(), 0, 0, 0, 0],
        ),
        "openat2" => (libc::SYS_openat2, bad),
        "statx" => (libc::SYS_statx, bad),
        "landlock_create_ruleset" => (444, bad),
        "memfd_create" => (libc::SYS_memfd_create, bad),
        "seccomp" => (libc::SYS_seccomp, bad),
        "setuid" => (libc::SYS_setuid, [0; 6]),
        "close_range" => (libc::SYS_close_range, [-1, 0, 0, 0, 0, 0]),
        "mseal" => (462, bad),
        "open_tree_attr" => (467, bad),
        "file_setattr" => (469, bad),
        "from_the_future" => (470, bad),
        "from_the_far_future" => (9999, bad),
        "x32_getpid" => (0x4000_0000 + 39, none),
        other => panic!("no probe for {other}"),
    }
}

/// Prints `name errno` (0 for success) for each name. `capability=FILE` gives a program `CAP_NET_RAW`,
/// `ids` tells the real and the effective user, `own-program` whether it may change the program that it is.
pub(crate) fn main(names: &[String]) {
    for name in names {
        if let Some(file) = name.strip_prefix("capability=") {
            let none = rustix::fs::XattrFlags::empty();
            let value = crate::ids::file_capability();
            rustix::fs::setxattr(file, "security.capability", &value, none).unwrap();
            continue;
        }
        if let Some(questions) = name.strip_prefix("filter=") {
            crate::filter::answer(questions);
            continue;
        }
        if name == "session-keyring" {
            println!("{name} {}", session_keyring());
            continue;
        }
        if name == "ids" {
            let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
            println!("{real} {effective}");
            continue;
        }
        if name == "own-program" {
            // Sets the mode that it has: the answer tells of the mount, where writing tells that it runs.
            let path = "/proc/self/exe";
            let mode = std::fs::metadata(path).unwrap().permissions();
            println!(
                "chmod {}",
                errno(std::fs::set_permissions(path, mode).err())
            );
            continue;
        }
        let (number, a) = number(name);
        println!("{name} {}", call(number, a));
    }
}

fn errno(error: Option<std::io::Error>) -> i32 {
    error.and_then(|error| error.raw_os_error()).unwrap_or(0)
}

/// The id of this process's session keyring.
#[allow(unsafe_code, reason = "a system call that no library offers")]
pub(crate) fn session_keyring() -> libc::c_long {
    const GET_KEYRING_ID: libc::c_int = 0;
    const SESSION_KEYRING: libc::c_int = -3;
    // SAFETY: numbers alone; nothing is made.
    unsafe { libc::syscall(libc::SYS_keyctl, GET_KEYRING_ID, SESSION_KEYRING, 0) }
}

#[allow(unsafe_code, reason = "a system call with arguments that do nothing")]
fn call(number: libc::c_long, a: [libc::c_long; 6]) -> i32 {
    // SAFETY: every argument is either an invalid pointer or a number; see `number`.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if result == -1 {
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    } else {
        0
    }
}

#[allow(unsafe_code, reason = "system calls that a filter answers")]
pub(crate) mod refused {
    //! Calls that another thread answers, none of which the kernel carries out: see `filter`.

    use std::io;

    /// Lets another thread answer all calls of this one; returns the descriptor for that, or an error number below -1.
    pub(crate) fn listen() -> i32 {
        let program = [libc::sock_filter {
            code: 6,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_USER_NOTIF,
        }];
        let filter = libc::sock_fprog {
            len: 1,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: `filter` describes `program`, which the kernel only reads.
        let fd = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const filter,
            )
        };
        i32::try_from(fd).unwrap_or(-2)
    }

    /// Waits a moment for a call and answers `-error`.
    pub(crate) fn refuse_next(listener: i32, error: i64) {
        let mut ready = libc::pollfd {
            fd: listener,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd; then two plain structures, which the kernel fills or reads, zero as it wants them.
        unsafe {
            if libc::poll(&raw mut ready, 1, 10) != 1 {
                return;
            }
            let mut call: libc::seccomp_notif = std::mem::zeroed();
            if libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) == -1 {
                return;
            }
            let mut reply: libc::seccomp_notif_resp = std::mem::zeroed();
            reply.id = call.id;
            reply.error = -i32::try_from(error).unwrap();
            libc::ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut reply);
        }
    }

    /// The error of a call that is not carried out.
    pub(crate) fn native(number: i64, argument: i64) -> i64 {
        // SAFETY: the filter that `listen` installed keeps the kernel from carrying it out.
        match unsafe { libc::syscall(number, argument, 0, 0, 0, 0, 0) } {
            -1 => io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(0)
                .into(),
            _ => 0,
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn i386(number: i64, argument: i64) -> i64 {
        let result: i64;
        // SAFETY: as above; the interface takes its arguments in these registers and changes those that are named.
        unsafe {
            std::arch::asm!(
                "xchg {argument}, rbx",
                "int 0x80",
                "xchg {argument}, rbx",
                argument = inout(reg) argument => _,
                inlateout("rax") number => result,
                in("rcx") 0_i64,
                in("rdx") 0_i64,
                in("rsi") 0_i64,
                in("rdi") 0_i64,
                lateout("r8") _,
                lateout("r9") _,
                lateout("r10") _,
                lateout("r11") _,
            );
        }
        // 32 bits of a result.
        let low = u32::try_from(result & 0xffff_ffff).expect("masked to 32 bits");
        match low.cast_signed() {
            error if (-4095..0).contains(&error) => (-error).into(),
            _ => 0,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn i386(_number: i64, _argument: i64) -> i64 {
        unreachable!("no such interface")
    }
}
