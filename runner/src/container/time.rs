//! Times as docker writes them: RFC 3339 in UTC, with nanoseconds.

use std::time::{SystemTime, UNIX_EPOCH};

/// `2024-02-29T12:00:00.000000001Z`; times before 1970 count as 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_nanos()
    )
}

/// The Gregorian date of a day since 1970, counted in years that begin in March: then the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let era = days / DAYS_OF_400_YEARS;
    let day = days % DAYS_OF_400_YEARS;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_times() {
        let check = |seconds: u64, expected: &str| {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(7);
            assert_eq!(rfc3339(time), expected);
        };
        check(0, "1970-01-01T00:00:00.000000007Z");
        check(951_782_399, "2000-02-28T23:59:59.000000007Z");
        check(951_782_400, "2000-02-29T00:00:00.000000007Z");
        check(1_709_251_199, "2024-02-29T23:59:59.000000007Z");
        check(4_107_542_400, "2100-03-01T00:00:00.000000007Z");
    }
}
