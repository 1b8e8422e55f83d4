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
    Wanted::Ranges(merge_overlaps(ranges))
}

struct Malformed;

/// `Ok(None)` is a range that is well formed but outside the blob.
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
            if last < start {
                return Err(Malformed);
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
fn merge_overlaps(ranges: Vec<ByteRange>) -> Vec<ByteRange> {
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
