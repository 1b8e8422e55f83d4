//! What a context's files contained the last time, so that an unchanged file need not be read again.
//!
//! One file per context, read with one call, searched where it lies, replaced by rename:
//!
//! ```text
//! magic (32 bytes)   count u32   offsets (count + 1) × u32   records   BLAKE3 of all before (32 bytes)
//! record: dev ino size u64 · mtime ctime i64 + u32 each · mode u32 · BLAKE3 of the content (32) · path
//! ```
//!
//! Numbers are little endian, records are sorted by path, offsets count from the first record. A file that is damaged or
//! of another version counts as absent: it only ever saves time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use store::fs::Lock;

use crate::ops::tree::{Meta, Time};

const MAGIC: &[u8; 32] = b"longshore stat cache 1\n\0\0\0\0\0\0\0\0\0";
const FIXED_BYTES: usize = 3 * 8 + 2 * 12 + 4 + 32;
const CHECKSUM_BYTES: usize = 32;

/// What must be unchanged for a file's content to be taken as unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: Time,
    ctime: Time,
    mode: u32,
}

impl Stamp {
    /// When the file last changed in any way.
    pub(crate) fn changed(&self) -> Time {
        self.ctime
    }

    /// The same wherever the file is mounted.
    pub(crate) fn without_device(mut self) -> Stamp {
        self.dev = 0;
        self
    }

    pub(crate) fn of(meta: &Meta) -> Stamp {
        Stamp {
            dev: meta.dev,
            ino: meta.ino,
            size: meta.size,
            mtime: meta.mtime,
            ctime: meta.ctime,
            mode: meta.mode,
        }
    }
}

/// One remembered file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) stamp: Stamp,
    pub(crate) hash: [u8; 32],
}

/// The records of one context; empty if there were none that could be used.
#[derive(Debug, Default)]
pub(crate) struct StatCache {
    bytes: Vec<u8>,
    count: usize,
}

impl StatCache {
    /// Loads `file`.
    fn load(file: &Path) -> StatCache {
        fs::read(file).map_or_else(|_| StatCache::default(), StatCache::parse)
    }

    pub(super) fn parse(bytes: Vec<u8>) -> StatCache {
        let cache = StatCache { count: 0, bytes };
        let Some(split) = cache.bytes.len().checked_sub(CHECKSUM_BYTES) else {
            return StatCache::default();
        };
        let (body, checksum) = cache.bytes.split_at(split);
        if !body.starts_with(MAGIC) || blake3::hash(body).as_bytes() != checksum {
            return StatCache::default();
        }
        let count = number32(body, MAGIC.len()) as usize;
        let cache = StatCache { count, ..cache };
        // The checksum is no proof of the writer's good will: every record must lie inside.
        if (0..count).all(|index| cache.record(index).is_some()) {
            cache
        } else {
            StatCache::default()
        }
    }

    /// All records, sorted by path.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.count).filter_map(|index| self.record(index))
    }

    /// What `path` contained, if it still has the same stamp.
    pub(crate) fn recall(&self, path: &[u8], stamp: &Stamp) -> Option<[u8; 32]> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.record(middle)?;
            match record.path.cmp(path) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    return (record.stamp == *stamp).then_some(record.hash);
                }
            }
        }
        None
    }

    fn record(&self, index: usize) -> Option<Record<'_>> {
        let body = &self.bytes[..self.bytes.len() - CHECKSUM_BYTES];
        let table = MAGIC.len() + 4;
        let first = table.checked_add(self.count.checked_add(1)?.checked_mul(4)?)?;
        body.get(table..first)?;
        let start = first.checked_add(number32(body, table + index * 4) as usize)?;
        let end = first.checked_add(number32(body, table + index * 4 + 4) as usize)?;
        let record = body.get(start..end)?;
        let (fixed, path) = record.split_at_checked(FIXED_BYTES)?;
        let time = |at: usize| Time {
            seconds: number64(fixed, at).cast_signed(),
            nanos: number32(fixed, at + 8),
        };
        Some(Record {
            path,
            stamp: Stamp {
                dev: number64(fixed, 0),
                ino: number64(fixed, 8),
                size: number64(fixed, 16),
                mtime: time(24),
                ctime: time(36),
                mode: number32(fixed, 48),
            },
            hash: fixed[52..].try_into().ok()?,
        })
    }
}

/// What is to be remembered: by path.
pub(crate) type Records = BTreeMap<Vec<u8>, (Stamp, [u8; 32])>;

/// Where one memory lies, below a store's root.
#[derive(Clone, Debug)]
pub(crate) struct Location {
    file: PathBuf,
    lock: PathBuf,
    tmp: PathBuf,
}

impl Location {
    pub(crate) fn new(root: &Path, name: &str) -> Location {
        Location {
            file: root.join("contexts").join(name),
            lock: root.join("locks").join(format!("context-{name}")),
            tmp: root.join("tmp"),
        }
    }

    /// Loads what is remembered, and notes that it is used: a collection takes what was not used for longest.
    pub(crate) fn load(&self) -> StatCache {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        // It need not be there.
        let _ = rustix::fs::utimensat(CWD, &self.file, &times, AtFlags::SYMLINK_NOFOLLOW);
        StatCache::load(&self.file)
    }

    /// Replaces what is remembered by what `merge` makes of it: of what it is now, whoever wrote that. Processes take turns.
    pub(crate) fn update(&self, merge: impl FnOnce(&StatCache) -> Records) -> std::io::Result<()> {
        for folder in [&self.file, &self.lock].map(|path| path.parent()) {
            fs::create_dir_all(folder.unwrap_or(Path::new(".")))?;
        }
        fs::create_dir_all(&self.tmp)?;
        let other = std::io::Error::other::<store::fs::FsError>;
        let _turn = Lock::exclusive(&self.lock).map_err(other)?;
        let records = merge(&StatCache::load(&self.file));
        let records: Vec<_> = records
            .iter()
            .map(|(path, (stamp, hash))| Record {
                path,
                stamp: *stamp,
                hash: *hash,
            })
            .collect();
        let bytes = encode(&records).ok_or(std::io::ErrorKind::FileTooLarge)?;
        store::fs::write_atomic(&self.tmp, &self.file, &bytes).map_err(other)
    }
}

/// `None` if it would not fit 32-bit offsets.
fn encode(records: &[Record<'_>]) -> Option<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(u32::try_from(records.len()).ok()?.to_le_bytes());
    let mut offset = 0;
    bytes.extend(u32::to_le_bytes(0));
    for record in records {
        offset += FIXED_BYTES + record.path.len();
        bytes.extend(u32::try_from(offset).ok()?.to_le_bytes());
    }
    for Record { path, stamp, hash } in records {
        for number in [stamp.dev, stamp.ino, stamp.size] {
            bytes.extend(number.to_le_bytes());
        }
        for time in [stamp.mtime, stamp.ctime] {
            bytes.extend(time.seconds.to_le_bytes());
            bytes.extend(time.nanos.to_le_bytes());
        }
        bytes.extend(stamp.mode.to_le_bytes());
        bytes.extend(hash);
        bytes.extend(*path);
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    Some(bytes)
}

/// Zero where the bytes end too early; the record is then refused for its length.
fn number32(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map_or(0, u32::from_le_bytes)
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes
        .get(at..at + 8)
        .and_then(|eight| eight.try_into().ok());
    eight.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(ino: u64) -> Stamp {
        let time = |seconds| Time { seconds, nanos: 7 };
        Stamp {
            dev: 1,
            ino,
            size: 3,
            mtime: time(-5),
            ctime: time(9),
            mode: 0o644,
        }
    }

    fn sample() -> Vec<u8> {
        let paths: [&[u8]; 3] = [b"a", b"dir/\xff", b"z"];
        let records: Vec<_> = paths
            .iter()
            .zip(10..)
            .map(|(path, ino)| Record {
                path,
                stamp: stamp(ino),
                hash: [u8::try_from(ino).unwrap(); 32],
            })
            .collect();
        encode(&records).unwrap()
    }

    #[test]
    fn recalls_what_was_saved_and_nothing_else() {
        let cache = StatCache::parse(sample());
        assert_eq!(cache.records().count(), 3);
        assert_eq!(cache.recall(b"a", &stamp(10)), Some([10; 32]));
        assert_eq!(cache.recall(b"dir/\xff", &stamp(11)), Some([11; 32]));
        assert_eq!(cache.recall(b"z", &stamp(12)), Some([12; 32]));
        assert_eq!(cache.recall(b"z", &stamp(13)), None);
        assert_eq!(cache.recall(b"dir", &stamp(11)), None);
    }

    #[test]
    fn damage_anywhere_empties_it() {
        let good = sample();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(StatCache::parse(bad).records().count(), 0, "byte {at}");
            assert_eq!(StatCache::parse(good[..at].to_vec()).records().count(), 0);
        }
    }

    #[test]
    fn offsets_are_not_trusted_even_with_a_good_checksum() {
        for at in MAGIC.len()..MAGIC.len() + 20 {
            let mut bad = sample();
            bad.truncate(bad.len() - CHECKSUM_BYTES);
            bad[at] = 0xff;
            let checksum = blake3::hash(&bad);
            bad.extend(checksum.as_bytes());
            // Whatever it makes of it, it neither panics nor reads outside.
            let cache = StatCache::parse(bad);
            assert!(cache.records().count() <= 3);
        }
    }
}
