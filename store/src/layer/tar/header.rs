//! The 512-byte header block: numbers, checksum and the fields that all of tar's dialects share.

/// Size of a header and the unit that content is padded to.
pub(crate) const BLOCK: usize = 512;

/// Where a field lies in the header.
pub(crate) type Field = std::ops::Range<usize>;

pub(crate) const NAME: Field = 0..100;
pub(crate) const MODE: Field = 100..108;
pub(crate) const UID: Field = 108..116;
pub(crate) const GID: Field = 116..124;
pub(crate) const SIZE: Field = 124..136;
pub(crate) const MTIME: Field = 136..148;
pub(crate) const CHECKSUM: Field = 148..156;
pub(crate) const TYPE: usize = 156;
pub(crate) const LINK: Field = 157..257;
pub(crate) const MAGIC: Field = 257..265;
pub(crate) const MAJOR: Field = 329..337;
pub(crate) const MINOR: Field = 337..345;
pub(crate) const PREFIX: Field = 345..500;

/// POSIX's magic and version.
pub(crate) const USTAR: &[u8; 8] = b"ustar\x0000";

/// Largest value of an eight-byte octal field.
pub(crate) const OCTAL_8_MAX: u64 = 0o7_777_777;
/// Largest value of a twelve-byte octal field.
pub(crate) const OCTAL_12_MAX: u64 = 0o77_777_777_777;

/// A header block.
pub(crate) type Block = [u8; BLOCK];

/// Bytes of padding after `size` bytes of content.
pub(crate) fn padding(size: u64) -> usize {
    usize::try_from(size.wrapping_neg() % BLOCK as u64).expect("below 512")
}

/// The bytes of a text field up to its first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number: octal with blanks or NULs around it, or base 256 with the first bit set, which may be negative.
///
/// An empty field is zero. `None` if it is no number or does not fit.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, whose first bit is taken by the flag: the second one is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let bits = if index == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = value.checked_mul(256)?.checked_add(i64::from(bits))?;
        }
        return Some(value);
    }
    let digits = field
        .iter()
        .skip_while(|byte| matches!(byte, b' ' | 0))
        .take_while(|byte| !matches!(byte, b' ' | 0));
    let mut value: i64 = 0;
    for digit in digits {
        if !matches!(digit, b'0'..=b'7') {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

/// Whether the checksum field holds the sum of the header's bytes, added as unsigned (POSIX) or signed (old tars) ones.
pub(crate) fn checksum_matches(block: &Block) -> bool {
    let Some(stated) = number(&block[CHECKSUM]) else {
        return false;
    };
    let mut unsigned: i64 = 0;
    let mut signed: i64 = 0;
    for (index, byte) in block.iter().enumerate() {
        let byte = if CHECKSUM.contains(&index) {
            b' '
        } else {
            *byte
        };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    stated == unsigned || stated == signed
}

/// Writes `value` in octal, zero-filled, with a closing NUL. The caller knows that it fits.
pub(crate) fn put_octal(block: &mut Block, field: Field, value: u64) {
    let mut rest = value;
    let digits = &mut block[field.start..field.end - 1];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    debug_assert_eq!(rest, 0, "{value:o} does not fit {field:?}");
}

/// Fills in the checksum, in the form that every tar writes: six digits, NUL, blank.
pub(crate) fn seal(block: &mut Block) {
    block[CHECKSUM].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    put_octal(block, CHECKSUM.start..CHECKSUM.end - 1, sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_numbers_of_every_dialect() {
        let check =
            |field: &[u8], expected: Option<i64>| assert_eq!(number(field), expected, "{field:x?}");
        check(b"0000644\0", Some(0o644));
        check(b"   644 \0", Some(0o644));
        check(b"644\0\0\0\0\0", Some(0o644));
        check(b"\0\0\0\0\0\0\0\0", Some(0));
        check(b"77777777", Some(0o77_777_777));
        check(b"9\0\0\0\0\0\0\0", None);
        check(b"-1\0\0\0\0\0\0", None);
        check(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0], Some(3_000_000));
        check(&[0xff; 12], Some(-1));
        check(
            &[
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfb,
            ],
            Some(-5),
        );
        check(
            &[
                0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            Some(i64::MAX),
        );
        check(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None);
        check(
            &[
                0xff, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            None,
        );
    }

    #[test]
    fn padding_fills_a_block() {
        for (size, expected) in [
            (0, 0),
            (1, 511),
            (511, 1),
            (512, 0),
            (513, 511),
            (u64::MAX, 1),
        ] {
            assert_eq!(padding(size), expected);
        }
    }
}
