//! `Range` of downloads and `Content-Range` of upload chunks, pure.
//!
//! A download may ask for up to [`RANGES_MAX`] ranges at once (containers/image does, for zstd:chunked). Ranges
//! that overlap are merged, so that a request cannot make an answer larger than the blob; ranges that only
//! touch are not, because that client counts on one part for each range it asked for.

/// Most ranges that one request is answered with; more are answered with the whole blob.
pub const RANGES_MAX: usize = 1024;

/// Bytes `start..end` of a blob; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// Length in bytes.
    pub fn size(self) -> u64 {
        self.end - self.start
    }
}

/// What a `Range` header asks of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything: the header is absent, malformed, or asks for too many ranges.
    Whole,
    /// These, in the order asked for, none overlapping another; at least one.
    Ranges(Vec<ByteRange>),
    /// Nothing that the blob has: 416.
    Unsatisfiable,
}

/// Reads a `Range` header for a blob of `size` bytes (RFC 9110, section 14.2).
pub fn parse_range(header: &str, size: u64) -> Wanted {
    let Some((unit, specs)) = header.split_once('=') else {
        return Wanted::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let mut ranges = Vec::new();
    for (index, spec) in specs.split(',').enumerate() {
        if index >= RANGES_MAX {
            return Wanted::Whole;
        }
        match one_range(spec.trim(), size) {
            Ok(Some(range)) => ranges.push(range),
            Ok(None) => {}
            Err(Malformed) => return Wanted::Whole,
        }
    }
    if ranges.is_empty() {
        return Wanted::Unsatisfiable;
    }
    Wanted::Ranges(merge_overlaps(&ranges))
}

struct Malformed;

/// `Ok(None)` is a range of nothing that the blob has: outside it, or backwards.
fn one_range(spec: &str, size: u64) -> Result<Option<ByteRange>, Malformed> {
    let (first, last) = spec.split_once('-').ok_or(Malformed)?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        let suffix = number(last)?.min(size);
        return Ok((suffix > 0).then_some(ByteRange {
            start: size - suffix,
            end: size,
        }));
    }
    let start = number(first)?;
    let end = match last {
        "" => size,
        _ => {
            let last = number(last)?;
            // What ends before it begins asks for nothing that there is.
            if last < start {
                return Ok(None);
            }
            last.saturating_add(1).min(size)
        }
    };
    Ok((start < end).then_some(ByteRange { start, end }))
}

fn number(text: &str) -> Result<u64, Malformed> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Malformed);
    }
    // Larger than any blob: saturating keeps `0-99999999999999999999` meaning "to the end".
    Ok(text.parse().unwrap_or(u64::MAX))
}

/// Merges ranges that share bytes into the place of the one asked for first; the others keep their order.
fn merge_overlaps(ranges: &[ByteRange]) -> Vec<ByteRange> {
    let mut by_start: Vec<usize> = (0..ranges.len()).collect();
    by_start.sort_by_key(|&index| (ranges[index].start, index));
    // Groups of overlapping ranges: (index of the one asked for first, union).
    let mut groups: Vec<(usize, ByteRange)> = Vec::with_capacity(ranges.len());
    for index in by_start {
        let range = ranges[index];
        match groups.last_mut() {
            Some((first, union)) if range.start < union.end => {
                *first = (*first).min(index);
                union.end = union.end.max(range.end);
            }
            _ => groups.push((index, range)),
        }
    }
    groups.sort_by_key(|&(first, _)| first);
    groups.into_iter().map(|(_, range)| range).collect()
}

/// Reads the `Content-Range` of an upload's chunk: `first-last`, both inclusive. `bytes first-last/…`, as some
/// clients write, means the same.
pub fn parse_content_range(header: &str) -> Option<ByteRange> {
    let text = header.trim();
    let text = text.strip_prefix("bytes").unwrap_or(text);
    let text = text.trim_start_matches([' ', '=']);
    let text = text.split_once('/').map_or(text, |(range, _)| range);
    let (first, last) = text.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let start: u64 = first.parse().ok()?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    (start < end).then_some(ByteRange { start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u64, u64)]) -> Wanted {
        let range = |&(start, end): &(u64, u64)| ByteRange { start, end };
        Wanted::Ranges(pairs.iter().map(range).collect())
    }

    #[test]
    fn reads_ranges() {
        let check = |header: &str, expected: Wanted| {
            assert_eq!(parse_range(header, 100), expected, "{header}");
        };
        check("bytes=0-9", ranges(&[(0, 10)]));
        check("Bytes = 0-9", ranges(&[(0, 10)]));
        check("bytes=90-", ranges(&[(90, 100)]));
        check("bytes=-10", ranges(&[(90, 100)]));
        check("bytes=-1000", ranges(&[(0, 100)]));
        check("bytes=0-99999999999999999999999", ranges(&[(0, 100)]));
        check(
            "bytes=0-0, 50-59 ,99-99",
            ranges(&[(0, 1), (50, 60), (99, 100)]),
        );
        check("bytes=50-59,0-9", ranges(&[(50, 60), (0, 10)]));
        // Touching ranges are parts of their own, overlapping ones are not.
        check("bytes=0-9,10-19", ranges(&[(0, 10), (10, 20)]));
        check("bytes=10-19,0-10", ranges(&[(0, 20)]));
        check("bytes=0-,0-,0-", ranges(&[(0, 100)]));
        check("bytes=80-89,0-9,5-20", ranges(&[(80, 90), (0, 21)]));
        // Outside is dropped as long as something is left.
        check("bytes=200-300,0-9", ranges(&[(0, 10)]));
        check("bytes=200-300", Wanted::Unsatisfiable);
        check("bytes=100-", Wanted::Unsatisfiable);
        check("bytes=-0", Wanted::Unsatisfiable);
        check("bytes=9-0", Wanted::Unsatisfiable);
        check("bytes=9-0,0-9", ranges(&[(0, 10)]));
        for malformed in [
            "",
            "0-9",
            "bytes",
            "bytes=",
            "bytes=a-b",
            "bytes=-",
            "bytes=0-9,x",
            "lines=0-9",
            "bytes=+1-2",
            "bytes=1-+2",
            "bytes=0-9,",
        ] {
            check(malformed, Wanted::Whole);
        }
        assert_eq!(parse_range("bytes=0-", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn bounds_the_number_of_ranges() {
        let header = |count: usize| {
            let list: Vec<_> = (0..count).map(|i| format!("{0}-{0}", i * 2)).collect();
            format!("bytes={}", list.join(","))
        };
        let Wanted::Ranges(found) = parse_range(&header(RANGES_MAX), 1 << 20) else {
            panic!("refused");
        };
        assert_eq!(found.len(), RANGES_MAX);
        assert_eq!(parse_range(&header(RANGES_MAX + 1), 1 << 20), Wanted::Whole);
    }

    #[test]
    fn reads_content_ranges() {
        let check = |header: &str, expected: Option<(u64, u64)>| {
            let expected = expected.map(|(start, end)| ByteRange { start, end });
            assert_eq!(parse_content_range(header), expected, "{header}");
        };
        check("0-9", Some((0, 10)));
        check(" 5-5 ", Some((5, 6)));
        check("bytes 0-9/*", Some((0, 10)));
        check("bytes=0-9", Some((0, 10)));
        for malformed in [
            "",
            "-",
            "0-",
            "-9",
            "9-0",
            "a-b",
            "0-18446744073709551615",
            "+1-2",
            "0-9-10",
            "0 - 9",
        ] {
            check(malformed, None);
        }
    }

    /// Any header at all: ranges lie inside the blob, are not empty, and share no byte.
    #[test]
    fn mutated_headers_stay_inside() {
        let alphabet = b"0123456789-,= bytes+\xff";
        let mut random = crate::testing::Random(3);
        for _ in 0..20_000 {
            let mut header = b"bytes=".to_vec();
            for _ in 0..random.below(24) {
                header.push(alphabet[random.below(alphabet.len())]);
            }
            let header = String::from_utf8_lossy(&header);
            let size = random.next() % 1000;
            if let Wanted::Ranges(mut found) = parse_range(&header, size) {
                assert!(!found.is_empty(), "{header}");
                found.sort_by_key(|range| range.start);
                assert!(
                    found
                        .iter()
                        .all(|range| range.start < range.end && range.end <= size),
                    "{header}"
                );
                assert!(
                    found.windows(2).all(|pair| pair[0].end <= pair[1].start),
                    "{header}"
                );
            }
            if let Some(range) = parse_content_range(&header) {
                assert!(range.start < range.end, "{header}");
            }
        }
    }
}
