//! Pure parsers of the header values that registries send. Each takes foreign text and answers `None` for what it
//! does not understand.

use std::time::{Duration, SystemTime};

/// First and last byte, both inclusive, and the whole length where it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) total: Option<u64>,
}

/// `bytes 0-99/200` or `bytes 0-99/*` of a 206 answer.
pub(crate) fn content_range(text: &str) -> Option<ContentRange> {
    let (span, total) = text
        .trim()
        .strip_prefix("bytes")?
        .trim_start()
        .split_once('/')?;
    let (first, last) = span.trim().split_once('-')?;
    let range = ContentRange {
        first: number(first)?,
        last: number(last)?,
        total: match total.trim() {
            "*" => None,
            total => Some(number(total)?),
        },
    };
    let sound = range.first <= range.last && range.total.is_none_or(|total| range.last < total);
    sound.then_some(range)
}

/// How many bytes an upload session holds, from its `Range: 0-N` (some servers write `bytes=0-N`).
///
/// `0-0` may mean none or one byte; it is read as none, as registries send it for a fresh session.
pub(crate) fn upload_offset(text: &str) -> Option<u64> {
    let text = text.trim();
    let span = text.strip_prefix("bytes=").unwrap_or(text);
    let (first, last) = span.split_once('-')?;
    match (number(first)?, number(last)?) {
        (0, 0) => Some(0),
        (0, last) => last.checked_add(1),
        _ => None,
    }
}

/// The target of `rel="next"` in a `Link` header.
pub(crate) fn next_link(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, parameters) = after.split_once('>')?;
        // Parameters end at a comma outside quotes.
        let mut quoted = false;
        let end = parameters
            .bytes()
            .position(|byte| {
                quoted ^= byte == b'"';
                byte == b',' && !quoted
            })
            .unwrap_or(parameters.len());
        let next = parameters[..end].split(';').any(|parameter| {
            let Some((name, value)) = parameter.split_once('=') else {
                return false;
            };
            name.trim().eq_ignore_ascii_case("rel")
                && value
                    .trim()
                    .trim_matches('"')
                    .split_ascii_whitespace()
                    .any(|relation| relation.eq_ignore_ascii_case("next"))
        });
        if next {
            return Some(target.trim());
        }
        rest = &parameters[end..];
    }
    None
}

/// The text of a `Warning: 299 - "text"` header; other codes and agents are not the specification's.
pub(crate) fn warning(text: &str) -> Option<String> {
    let quoted = text.trim().strip_prefix("299")?.trim_start();
    let quoted = quoted.strip_prefix('-')?.trim_start().strip_prefix('"')?;
    unquote(quoted).map(|(text, _)| text)
}

/// `Retry-After`: seconds, or a date, against `now`.
pub(crate) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs(seconds));
    }
    let date = http_date(text)?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// How many requests a registry allows, as Docker Hub and others tell: `RateLimit-Limit` and `RateLimit-Remaining`, each a number
/// and perhaps the seconds that it is for, `100;w=21600`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in all.
    pub limit: u64,
    /// Requests that are left.
    pub remaining: u64,
    /// The time that they are for, where it is told.
    pub window: Option<Duration>,
}

impl RateLimit {
    /// Whether less than a tenth is left.
    pub fn is_low(&self) -> bool {
        self.remaining < self.limit.div_ceil(10)
    }

    /// What is allowed, in words: `100 requests per 6 h`.
    pub fn allowance(&self) -> String {
        let per = self.window.map(|window| match window.as_secs() {
            seconds if seconds % 3600 == 0 => format!(" per {} h", seconds / 3600),
            seconds if seconds % 60 == 0 => format!(" per {} min", seconds / 60),
            seconds => format!(" per {seconds} s"),
        });
        format!("{} requests{}", self.limit, per.unwrap_or_default())
    }
}

/// The two headers together.
pub(crate) fn rate_limit(limit: &str, remaining: &str) -> Option<RateLimit> {
    let first = |text: &str| number(text.split([';', ',']).next()?.trim());
    let limit_is = first(limit).filter(|limit| *limit > 0)?;
    let mut parameters = limit.split(';').skip(1).map(str::trim);
    let window = parameters.find_map(|parameter| number(parameter.strip_prefix("w=")?));
    Some(RateLimit {
        limit: limit_is,
        remaining: first(remaining)?,
        window: window.filter(|w| *w > 0).map(Duration::from_secs),
    })
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that may still be sent.
pub(crate) fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(',')?.1.split_ascii_whitespace();
    let day = number(words.next()?).filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year = number(words.next()?).filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':');
    let mut field = |limit| clock.next().and_then(number).filter(|n| *n < limit);
    let (hour, minute, second) = (field(24)?, field(60)?, field(61)?);
    if words.next() != Some("GMT") || words.next().is_some() {
        return None;
    }
    // Days since 1970, counting years from March so that the leap day is the last of the year.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The content of a quoted string whose opening quote was taken, and what follows its closing one.
pub(crate) fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// Decimal digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let check = |text: &str, expect: Option<(u64, u64, Option<u64>)>| {
            let got = content_range(text).map(|r| (r.first, r.last, r.total));
            assert_eq!(got, expect, "{text}");
        };
        check("bytes 0-99/200", Some((0, 99, Some(200))));
        check("bytes 5-9/*", Some((5, 9, None)));
        check(" bytes  5-9/10 ", Some((5, 9, Some(10))));
        check("bytes 5-9/9", None);
        check("bytes 9-5/10", None);
        check("bytes */10", None);
        check("0-9/10", None);
        check("bytes +0-9/10", None);
        check("bytes 0-99999999999999999999/*", None);
    }

    #[test]
    fn upload_offsets() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(upload_offset(text), expect);
        check("0-0", Some(0));
        check("0-41", Some(42));
        check("bytes=0-41", Some(42));
        check("5-41", None);
        check("0--1", None);
        check("0-18446744073709551615", None);
        check("", None);
    }

    #[test]
    fn links() {
        let check =
            |text: &str, expect: Option<&str>| assert_eq!(next_link(text), expect, "{text}");
        check(
            "</v2/_catalog?last=b&n=2>; rel=\"next\"",
            Some("/v2/_catalog?last=b&n=2"),
        );
        check("</a>; rel=next", Some("/a"));
        check(
            "</a>; rel=\"prev\", </b,c>; title=\"x,y\"; rel=\"last next\"",
            Some("/b,c"),
        );
        check("</a>", None);
        check("</a; rel=next", None);
        check("<>;rel=next", Some(""));
        check("rel=next", None);
    }

    #[test]
    fn warnings() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(warning(text).as_deref(), expect);
        check(
            "299 - \"this \\\"tag\\\" is old\"",
            Some("this \"tag\" is old"),
        );
        check("199 - \"x\"", None);
        check("299 agent \"x\"", None);
        check("299 - \"x", None);
        check("299 - \"x\\", None);
    }

    #[test]
    fn rate_limits() {
        let check = |limit: &str, remaining: &str, expect: Option<(&str, u64, bool)>| {
            let found = rate_limit(limit, remaining);
            let found = found.map(|found| (found.allowance(), found.remaining, found.is_low()));
            let expect = expect.map(|(text, left, low)| (text.to_owned(), left, low));
            assert_eq!(found, expect, "{limit} {remaining}");
        };
        check(
            "100;w=21600",
            "76;w=21600",
            Some(("100 requests per 6 h", 76, false)),
        );
        check(
            "100;w=21600",
            "9;w=21600",
            Some(("100 requests per 6 h", 9, true)),
        );
        check("5;w=90", "0", Some(("5 requests per 90 s", 0, true)));
        check("5;w=120;x=1", "1", Some(("5 requests per 2 min", 1, false)));
        check(
            "1000, 1000;window=60",
            "10",
            Some(("1000 requests", 10, true)),
        );
        check("0", "0", None);
        check("many", "1", None);
        check("1", "", None);
    }

    #[test]
    fn waits() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(
                retry_after(text, now),
                expect.map(Duration::from_secs),
                "{text}"
            );
        };
        check("120", Some(120));
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(0));
        check("Sun, 06 Nov 1994 08:50:07 GMT", Some(30));
        check("Thu, 01 Jan 1970 00:00:00 GMT", Some(0));
        check(
            "Tue, 29 Feb 2000 00:00:00 GMT",
            Some(951_782_400 - 784_111_777),
        );
        check("-1", None);
        check("soon", None);
        check("Sun, 99 Nov 1994 08:49:37 GMT", None);
    }

    /// Whatever bytes come, the parsers neither panic nor loop.
    #[test]
    fn mutations_do_no_harm() {
        let seeds = [
            "bytes 0-99/200",
            "0-41",
            "</v2/_catalog?last=b&n=2>; rel=\"next\", <x>; a=\"\\\"\"",
            "299 - \"this \\\"tag\\\" is old\"",
            "100;w=21600",
            "Sun, 06 Nov 1994 08:49:37 GMT",
        ];
        let mut mutations = crate::mutate::Mutations::new(0x5eed_0001);
        for _ in 0..20_000 {
            for seed in seeds {
                let text = mutations.of(seed);
                let _ = content_range(&text);
                let _ = upload_offset(&text);
                let _ = next_link(&text);
                let _ = warning(&text);
                let _ = rate_limit(&text, &text);
                let _ = retry_after(&text, SystemTime::UNIX_EPOCH);
            }
        }
    }
}
