//! How much a compressed stream may become. A decompression bomb is a few kilobytes that become terabytes: whoever unpacks it has
//! a full disk, or hashes for a day.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that any stream may become, however small it is: a file of zeros that somebody made on purpose.
const FREE_BYTES: u64 = 16 * 1024 * 1024 * 1024;

/// Past those, the times of its own size that it may. gzip comes to 1,032 at most, zstd and bzip2 to tens of thousands; a real
/// layer to 50 where it is large.
const TIMES_MAX: u64 = 200;

/// Counts a stream's bytes on both sides of its decoder.
pub(super) struct Expansion {
    read: Arc<AtomicU64>,
    given: u64,
    free: u64,
}

/// The compressed side.
pub(super) struct Counted<R> {
    inner: R,
    read: Arc<AtomicU64>,
}

impl Expansion {
    /// A count for what comes out, and the reader that counts what goes in.
    pub(super) fn of<R>(inner: R) -> (Expansion, Counted<R>) {
        Expansion::past(FREE_BYTES, inner)
    }

    fn past<R>(free: u64, inner: R) -> (Expansion, Counted<R>) {
        let read = Arc::<AtomicU64>::default();
        let counted = Counted {
            inner,
            read: Arc::clone(&read),
        };
        let expansion = Expansion {
            read,
            given: 0,
            free,
        };
        (expansion, counted)
    }

    /// Takes note of bytes that came out.
    ///
    /// # Errors
    /// They are more than what went in may become.
    pub(super) fn gave(&mut self, bytes: usize) -> io::Result<()> {
        self.given += bytes as u64;
        if self.given <= self.free {
            return Ok(());
        }
        let read = self.read.load(Ordering::Relaxed);
        if self.given <= read.saturating_mul(TIMES_MAX) {
            return Ok(());
        }
        let (given, free) = (self.given, self.free);
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "a decompression bomb: {read} bytes became {given}; more than {free} may be {TIMES_MAX} times as many at most"
            ),
        ))
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.read.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a stream of these pieces, each of so many compressed bytes and of so many others, comes to.
    fn check(free: u64, pieces: &[(u64, usize)], expect: Result<(), u64>) {
        let (mut expansion, mut counted) = Expansion::past(free, io::repeat(0));
        let mut given = 0;
        for (read, bytes) in pieces {
            io::copy(&mut (&mut counted).take(*read), &mut io::sink()).unwrap();
            given += *bytes as u64;
            match (expansion.gave(*bytes), expect) {
                (Ok(()), Err(at)) => assert!(given < at, "{given} bytes were let through"),
                (Ok(()), Ok(())) => {}
                (Err(error), Err(at)) => {
                    assert_eq!(given, at);
                    assert!(
                        error.to_string().contains("a decompression bomb"),
                        "{error}"
                    );
                    return;
                }
                (Err(error), Ok(())) => panic!("{error}"),
            }
        }
        assert_eq!(expect, Ok(()));
    }

    #[test]
    fn bombs_are_stopped_where_they_become_too_much() {
        // However small: the first bytes are free.
        check(1000, &[(1, 500), (0, 500)], Ok(()));
        check(1000, &[(1, 500), (0, 500), (0, 1)], Err(1001));
        // Past them the size counts, and all of the stream's.
        check(1000, &[(10, 1000), (0, 1000)], Ok(()));
        check(1000, &[(10, 1000), (0, 1001)], Err(2001));
        check(1000, &[(10, 2000), (1, 200), (0, 1)], Err(2201));
        check(0, &[(1, 200), (1, 200)], Ok(()));
        check(0, &[(0, 1)], Err(1));
    }
}
