//! Notes that servers on one storage leave each other of what they are about to add; pure but for the clock.
//!
//! A note is all in its name, so that a list of names tells everything: `<milliseconds since 1970, 12 hex digits>-<random, 8 hex
//! digits>-<size, hex>-<algorithm>_<hex>`. In the order of their names notes are in that of their times.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use store::oci::Digest;

use super::QuotaRule;

/// That somebody adds content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// When, in milliseconds since 1970, by the clock of who says it.
    pub(super) time: u64,
    /// What tells it from others.
    random: u32,
    pub(super) bytes: u64,
    pub(super) digest: Digest,
}

impl Note {
    /// One of now.
    pub(super) fn new(digest: Digest, bytes: u64) -> Note {
        let mut random = [0; 4];
        SystemRandom::new()
            .fill(&mut random)
            .expect("the kernel gives random bytes");
        Note {
            time: now(),
            random: u32::from_ne_bytes(random),
            bytes,
            digest,
        }
    }

    /// Reads a name; `None` if it is not of this form.
    pub(super) fn parse(text: &str) -> Option<Note> {
        let mut parts = text.splitn(4, '-');
        let time = u64::from_str_radix(parts.next()?, 16).ok()?;
        let random = u32::from_str_radix(parts.next()?, 16).ok()?;
        let bytes = u64::from_str_radix(parts.next()?, 16).ok()?;
        let digest = parts.next()?.replacen('_', ":", 1).parse().ok()?;
        let note = Note {
            time,
            random,
            bytes,
            digest,
        };
        // One that is written in another way would not be found under its name.
        (note.to_string() == text).then_some(note)
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Note {
            time,
            random,
            bytes,
            digest,
        } = self;
        let digest = digest.to_string().replacen(':', "_", 1);
        write!(f, "{time:012x}-{random:08x}-{bytes:x}-{digest}")
    }
}

/// What comes before all notes of this time and later.
pub(super) fn from(time: u64) -> String {
    format!("{time:012x}")
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Where notes about a quota are: servers with the same patterns share it, whatever sizes they are configured with.
pub(super) fn topic(rule: &QuotaRule) -> String {
    let mut patterns = rule.repositories.clone();
    patterns.sort_unstable();
    let hash = digest(&SHA256, patterns.join("\n").as_bytes());
    let hex: String = hash.as_ref()[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("quota-{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_everything_and_sort_by_time() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let early = Note {
            time: 0x0192_0000_0000,
            random: u32::MAX,
            bytes: 70_000,
            digest: b,
        };
        let late = Note {
            time: 0x0192_0000_0001,
            random: 0,
            bytes: 0,
            digest: a,
        };
        let text = early.to_string();
        assert!(
            text.starts_with("019200000000-ffffffff-11170-sha256_3e23e816"),
            "{text}"
        );
        assert_eq!(Note::parse(&text), Some(early.clone()));
        assert!(early.to_string() < late.to_string());
        assert!(early.to_string() > from(early.time));
        assert!(early.to_string() < from(late.time));
        for wrong in ["", "x", "1-1-1-sha256_00", &format!("{text}0"), &text[1..]] {
            assert_eq!(Note::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn topics_are_of_patterns() {
        let rule = |patterns: &[&str], bytes| QuotaRule {
            repositories: patterns.iter().map(|&text| text.to_owned()).collect(),
            bytes,
        };
        let one = topic(&rule(&["a/*", "b"], 1));
        assert_eq!(one, topic(&rule(&["b", "a/*"], 2)));
        assert_ne!(one, topic(&rule(&["a/*"], 1)));
        assert!(
            one.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        );
    }
}
