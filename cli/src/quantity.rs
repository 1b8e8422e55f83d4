//! Sizes and durations as people write them, in flags and in the configuration file.

use std::time::Duration;

/// What a text should have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// No size.
    #[error("expected a size such as 500MB, 1.5GB or 2GiB")]
    Size,
    /// No duration.
    #[error("expected a duration such as 30m, 24h, 1h30m or 7d")]
    Duration,
}

/// Units of sizes, in lower case: `kB`, `MB`, … are powers of 1000, as `du` prints them; `KiB`, `MiB`, … powers of 1024.
const SIZES: [(&str, u64); 14] = [
    ("", 1),
    ("b", 1),
    ("k", 1_000),
    ("kb", 1_000),
    ("m", 1_000_000),
    ("mb", 1_000_000),
    ("g", 1_000_000_000),
    ("gb", 1_000_000_000),
    ("t", 1_000_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Units of durations, in microseconds.
const DURATIONS: [(&str, u64); 7] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60 * 1_000_000),
    ("h", 3_600 * 1_000_000),
    ("d", 24 * 3_600 * 1_000_000),
    ("w", 7 * 24 * 3_600 * 1_000_000),
];

/// Bytes: `512`, `500MB`, `1.5 GiB`.
pub fn size(text: &str) -> Result<u64, QuantityError> {
    let text = text.trim();
    let (number, unit) = split(text);
    let unit = unit.trim().to_lowercase();
    let found = SIZES.iter().find(|(name, _)| *name == unit);
    let (_, factor) = found.ok_or(QuantityError::Size)?;
    scaled(number, *factor).ok_or(QuantityError::Size)
}

/// Go's durations, and days and weeks: `90s`, `1h30m`, `7d`; and `0`.
pub fn duration(text: &str) -> Result<Duration, QuantityError> {
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut micros = 0_u64;
    loop {
        let (number, after) = split(rest);
        let length = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at(length.unwrap_or(after.len()));
        let found = DURATIONS.iter().find(|(name, _)| *name == unit);
        let (_, factor) = found.ok_or(QuantityError::Duration)?;
        let part = scaled(number, *factor).ok_or(QuantityError::Duration)?;
        micros = micros.checked_add(part).ok_or(QuantityError::Duration)?;
        if after.is_empty() {
            return Ok(Duration::from_micros(micros));
        }
        rest = after;
    }
}

/// The digits at the start, with a point in them, and what follows.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    text.split_at(end.unwrap_or(text.len()))
}

/// A decimal number times a factor, exactly; `None` if it is no number or too large.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let has_digits = !(whole.is_empty() && fraction.is_empty());
    if !has_digits || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let digits = |text: &str| match text {
        "" => Some(0),
        text => text.parse::<u128>().ok(),
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let value = digits(whole)?
        .checked_mul(scale)?
        .checked_add(digits(fraction)?)?;
    u64::try_from(value.checked_mul(u128::from(factor))? / scale).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(size(text).ok(), expect, "{text}");
        check("0", Some(0));
        check("512", Some(512));
        check("10GB", Some(10_000_000_000));
        check("10gb", Some(10_000_000_000));
        check("1.5k", Some(1_500));
        check(" 2 GiB ", Some(2 << 30));
        check(".5MiB", Some(512 << 10));
        for bad in [
            "",
            "GB",
            "1.2.3",
            "-1",
            "1XB",
            "1e3",
            "10%",
            "99999999999TB",
            ".",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn durations_are_read() {
        let check = |text: &str, seconds: Option<u64>| {
            let expect = seconds.map(Duration::from_secs);
            assert_eq!(duration(text).ok(), expect, "{text}");
        };
        check("0", Some(0));
        check("90s", Some(90));
        check("1h30m", Some(5_400));
        check("1.5h", Some(5_400));
        check("7d", Some(7 * 86_400));
        check("2w", Some(14 * 86_400));
        for bad in ["", "h", "24", "1x", "1h30", "-1h", "1 h", "9999999999w"] {
            check(bad, None);
        }
    }
}
