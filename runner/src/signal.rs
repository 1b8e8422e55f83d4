//! Signals by name and number, as docker and the shell write them.

/// Linux's names, without `SIG`, by number.
const NAMES: [(&str, i32); 35] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    ("UNUSED", libc::SIGSYS),
];

/// The first real-time signal that is a program's own; glibc keeps the two below it.
const RTMIN: i32 = 34;
/// The last signal of Linux.
const RTMAX: i32 = 64;

/// The number of a signal: by its name, with or without `SIG`, in any case, or by its number.
pub fn number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| rest.parse::<i32>().ok().filter(|n| (0..=30).contains(n));
    match name {
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => {
            if let Some(rest) = name.strip_prefix("RTMIN+") {
                return Some(RTMIN + offset(rest)?);
            }
            if let Some(rest) = name.strip_prefix("RTMAX-") {
                return Some(RTMAX - offset(rest)?);
            }
            let known = NAMES.iter().find(|(known, _)| *known == name);
            known.map(|(_, number)| *number)
        }
    }
}

/// What asks a process to end, where nothing else is said.
pub const TERM: i32 = libc::SIGTERM;
/// What ends a process.
pub const KILL: i32 = libc::SIGKILL;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let check =
            |text: &str, expected: Option<i32>| assert_eq!(number(text), expected, "{text}");
        check("TERM", Some(15));
        check("sigint", Some(2));
        check("9", Some(9));
        check("RTMIN+3", Some(37));
        check("SIGRTMAX-1", Some(63));
        for bad in ["", "0", "65", "-1", "TERMINATE", "RTMIN+99", "SIG"] {
            check(bad, None);
        }
    }
}
