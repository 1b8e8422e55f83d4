//! Sizes, ages and times as people read them, in docker's words.

/// `1.23MB`: three significant digits, powers of 1000, as `docker images` prints sizes.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    // Exact up to 2^53 bytes, and three digits are shown.
    let mut value = bytes as f64;
    // 999.5 would round to four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    let digits = format!("{value:.decimals$}");
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => &digits,
    };
    format!("{digits}{}", UNITS[unit])
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

/// Seconds since 1970 of an RFC 3339 time, such as `2026-01-02T03:04:05.678+01:00`; fractions are dropped.
pub fn unix_time(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        digits.parse().ok()
    };
    let at =
        |position: usize, allowed: &[u8]| bytes.get(position).is_some_and(|b| allowed.contains(b));
    let separators = at(4, b"-") && at(7, b"-") && at(10, b"Tt ") && at(13, b":") && at(16, b":");
    separators.then_some(())?;
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    in_range.then_some(())?;
    let rest = text.get(19..)?;
    let fraction = rest.strip_prefix('.').map_or(0, |digits| {
        1 + digits.bytes().take_while(u8::is_ascii_digit).count()
    });
    let offset = match rest.get(fraction..)? {
        "Z" | "z" => 0,
        zone => {
            let sign = match zone.as_bytes() {
                [b'+', _, _, b':', _, _] => 1,
                [b'-', _, _, b':', _, _] => -1,
                _ => return None,
            };
            let start = 19 + fraction;
            sign * (number(start + 1..start + 3)? * 3600 + number(start + 4..start + 6)? * 60)
        }
    };
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

/// Days from 1970-01-01 in the Gregorian calendar, counting years from March so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// The inverse of [`unix_time`]: `2026-01-02T03:04:05Z`.
pub fn rfc3339(seconds: i64) -> String {
    let (mut days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    days += 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn times() {
        let check = |text, seconds| assert_eq!(unix_time(text), seconds, "{text}");
        check("1970-01-01T00:00:00Z", Some(0));
        check("2026-01-02T03:04:05Z", Some(1_767_323_045));
        check("2026-01-02T04:04:05.123456+01:00", Some(1_767_323_045));
        check("2000-02-29T23:59:59-00:30", Some(951_870_599));
        check("0001-01-01T00:00:00Z", Some(-62_135_596_800));
        check("2026-13-02T03:04:05Z", None);
        check("2026-01-02", None);
        check("2026-01-02T03:04:05", None);
        check("ä", None);
        for seconds in [
            0,
            951_870_599,
            1_767_323_045,
            -1,
            -62_135_596_800,
            4_102_444_800,
        ] {
            assert_eq!(unix_time(&rfc3339(seconds)), Some(seconds));
        }
    }
}
