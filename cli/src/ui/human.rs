//! Sizes and ages as people read them, in docker's words.

/// `1.23MB`: three significant digits, powers of 1000, as `docker images` prints sizes.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // 999.5 would round to four digits.
    scaled(bytes, &UNITS, (1000.0, 999.5), 3)
}

/// `1.234MiB`: four significant digits, powers of 1024, as `docker stats` prints memory.
pub fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    scaled(bytes, &UNITS, (1024.0, 1024.0), 4)
}

/// `bytes` in the largest unit that fits: each is `step` of the one before, and is used from `from` of that on.
fn scaled(bytes: u64, units: &[&str], (step, from): (f64, f64), digits: usize) -> String {
    let mut unit = 0;
    // Exact up to 2^53 bytes, and few digits are shown.
    let mut value = bytes as f64;
    while value >= from && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let whole = format!("{:.0}", value.trunc()).len();
    let mut decimals = match unit {
        0 => 0,
        _ => digits.saturating_sub(whole),
    };
    // What rounds up to one digit more before the point has one fewer behind it.
    if format!("{value:.decimals$}").len() > digits + 1 {
        decimals -= 1;
    }
    let text = format!("{value:.decimals$}");
    let text = match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => &text,
    };
    format!("{text}{}", units[unit])
}

/// `12ms`, `1.2s`, `2m05s`, `1h02m`, from microseconds.
pub fn micros(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    match seconds {
        0 if micros < 100_000 => format!("{}ms", micros.div_ceil(1000)),
        0..60 => format!("{}.{}s", seconds, micros % 1_000_000 / 100_000),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The same of a duration.
pub fn duration(time: std::time::Duration) -> String {
    micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// `3 hours ago`, from a distance in seconds; a time to come counts as now.
pub fn ago(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = minutes / 60;
    let days = hours / 24;
    let text = match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if days < 14 => format!("{days} days"),
        () if days < 60 => format!("{} weeks", days / 7),
        () if days < 730 => format!("{} months", days / 30),
        () => format!("{} years", days / 365),
    };
    format!("{text} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |value, text: &str| assert_eq!(micros(value), text);
        check(0, "0ms");
        check(1, "1ms");
        check(99_000, "99ms");
        check(100_000, "0.1s");
        check(59_999_999, "59.9s");
        check(60_000_000, "1m00s");
        check(3_599_000_000, "59m59s");
        check(3_720_000_000, "1h02m");
    }

    #[test]
    fn sizes() {
        let check = |bytes, text: &str| assert_eq!(size(bytes), text);
        check(0, "0B");
        check(999, "999B");
        check(1000, "1kB");
        check(1234, "1.23kB");
        check(999_600, "1MB");
        check(4_270_000, "4.27MB");
        check(77_800_000, "77.8MB");
        check(187_400_000, "187MB");
        check(1_020_000_000, "1.02GB");
        check(9_994_000, "9.99MB");
        check(9_996_000, "10MB");
        check(99_960_000, "100MB");

        let check = |bytes, text: &str| assert_eq!(binary_size(bytes), text);
        check(1023, "1023B");
        check(1024, "1KiB");
        check(1234, "1.205KiB");
        check(10_239, "9.999KiB");
        check(1_048_575, "1024KiB");
        check(123_456_789, "117.7MiB");
        check(10_000, "9.766KiB");
    }

    #[test]
    fn ages() {
        let check = |seconds, text: &str| assert_eq!(ago(seconds), text);
        check(-5, "Less than a second ago");
        check(59, "59 seconds ago");
        check(61, "About a minute ago");
        check(3 * 3600, "3 hours ago");
        check(13 * 86_400, "13 days ago");
        check(20 * 86_400, "2 weeks ago");
        check(800 * 86_400, "2 years ago");
    }
}
