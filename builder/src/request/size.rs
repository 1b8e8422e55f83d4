//! Sizes as people write them: `64m`, `1.5g`, `1048576`.

/// Bytes in a text: a number, with a fraction or without, and perhaps `b`, `k`, `m`, `g`, `t` or `p` (times 1024 each), itself
/// perhaps followed by `b` or `ib`; `None` if it is anything else.
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let split = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let power = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let factor = 1024_u64.pow(power);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u64 = whole.parse().ok()?;
    let mut total = whole.checked_mul(factor)?;
    // Nine digits of a fraction are more than anybody means.
    if let Some(digits) = fraction
        .get(..fraction.len().min(9))
        .filter(|d| !d.is_empty())
    {
        let part: u64 = digits.parse().ok()?;
        let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
        let part = u128::from(part) * u128::from(factor) / scale;
        total = total.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(bytes(text), expect, "{text}");
        check("0", Some(0));
        check("1048576", Some(1 << 20));
        check("10b", Some(10));
        check("64m", Some(64 << 20));
        check("64MB", Some(64 << 20));
        check("2GiB", Some(2 << 30));
        check("1.5g", Some(3 << 29));
        check("0.0000000001k", Some(0));
        check("16 k", Some(16 << 10));
        check("", None);
        check("m", None);
        check("-1", None);
        check("1x", None);
        check("1.2.3", None);
        check("99999999999p", None);
    }
}
