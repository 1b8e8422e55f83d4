//! The signals of `STOPSIGNAL`.

use crate::dockerfile::suggest::nearest;

/// Linux's names, in the order of no number.
const NAMES: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "UNUSED", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
];

/// The largest signal of Linux.
const NUMBER_MAX: u32 = 64;

/// Whether a text is the name, with or without `SIG`, or the number of a signal.
pub(super) fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=NUMBER_MAX).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, bound: u32| {
        rest.parse::<u32>()
            .is_ok_and(|offset| (1..=bound).contains(&offset))
    };
    if let Some(rest) = name.strip_prefix("RTMIN+") {
        return offset(rest, 15);
    }
    if let Some(rest) = name.strip_prefix("RTMAX-") {
        return offset(rest, 14);
    }
    name == "RTMAX" || NAMES.contains(&name)
}

/// The name nearest to a text that is none.
pub(super) fn nearest_name(text: &str) -> Option<String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    nearest(name, NAMES).map(|near| format!("SIG{near}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_signals() {
        for text in [
            "9",
            "64",
            "SIGTERM",
            "term",
            "SIGRTMIN+3",
            "RTMAX-14",
            "SIGRTMAX",
            "RTMIN",
        ] {
            assert!(is_signal(text), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "SIGFOO", "RTMIN+16", "RTMAX-15"] {
            assert!(!is_signal(text), "{text}");
        }
        assert_eq!(nearest_name("SIGTREM").as_deref(), Some("SIGTERM"));
    }
}
