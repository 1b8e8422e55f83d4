//! `--filter` of `du` and `prune`: `KEY=VALUE` with docker's and buildx's keys.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use builder::dockerfile::suggest::nearest;
use store::content::collect::{CacheKind, LabelTest};
use store::oci::time::unix_time;

use crate::config::gc::KINDS;
use crate::quantity;

/// The keys that are understood.
const KEYS: [&str; 6] = ["id", "inuse", "label", "type", "unused-for", "until"];

/// Keys of buildx that say nothing here: there are no such records.
const FOREIGN: [&str; 6] = [
    "description",
    "immutable",
    "mutable",
    "parents",
    "private",
    "shared",
];

/// What buildx calls the kinds.
const BUILDX_KINDS: [(&str, CacheKind); 4] = [
    ("regular", CacheKind::Records),
    ("exec.cachemount", CacheKind::CacheMounts),
    ("source.git.checkout", CacheKind::GitMirrors),
    ("source.local", CacheKind::StatCaches),
];

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Only what was last used before: so long ago, or then (seconds since 1970).
    Until(Until),
    /// Only this kind; several are alternatives.
    Kind(CacheKind),
    /// Only what has this name, or a longer one; several are alternatives.
    Id(String),
    /// Only what is, or is not, in use.
    InUse(bool),
    /// Only images with, or without, a label.
    Label(LabelTest),
}

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// So long ago.
    Ago(Duration),
    /// Seconds since 1970.
    At(u64),
}

impl Until {
    /// How long ago that is; a time to come is now.
    pub fn ago(self, now: SystemTime) -> Duration {
        match self {
            Until::Ago(ago) => ago,
            Until::At(seconds) => {
                let at = UNIX_EPOCH + Duration::from_secs(seconds);
                now.duration_since(at).unwrap_or_default()
            }
        }
    }
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        let (key, rest) = text.split_at(text.find(['=', '!']).unwrap_or(text.len()));
        let (absent, value) = match rest.strip_prefix("!=") {
            Some(value) => (true, Some(value)),
            // buildkitd's own files have two.
            None => (
                false,
                rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')),
            ),
        };
        if absent && key != "label" {
            return Err(format!("`{key}` cannot be negated: only `label` can"));
        }
        let wanted = || {
            value
                .filter(|value| !value.is_empty())
                .ok_or(format!("expected `{key}=VALUE`"))
        };
        match key {
            "until" | "unused-for" => until(wanted()?).map(Filter::Until),
            "type" => kind(wanted()?).map(Filter::Kind),
            "id" => Ok(Filter::Id(wanted()?.to_owned())),
            "inuse" => match value {
                None | Some("true" | "1") => Ok(Filter::InUse(true)),
                Some("false" | "0") => Ok(Filter::InUse(false)),
                Some(value) => Err(format!("`inuse` is `{value}`: expected true or false")),
            },
            "label" => {
                let (key, value) = match wanted()?.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (wanted()?, None),
                };
                let key = key.to_owned();
                Ok(Filter::Label(LabelTest { key, value, absent }))
            }
            "label!" => Err("expected `label!=KEY[=VALUE]`".to_owned()),
            key if FOREIGN.contains(&key) => Err(format!(
                "longshore's cache has no such property as `{key}`: expected one of {}",
                KEYS.join(", ")
            )),
            key => Err(format!("unknown filter `{key}`: {}", meant(key, &KEYS))),
        }
    }
}

fn until(text: &str) -> Result<Until, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Until::At(seconds));
    }
    if let Some(seconds) = unix_time(text) {
        return Ok(Until::At(u64::try_from(seconds).unwrap_or(0)));
    }
    let ago = quantity::duration(text).map(Until::Ago);
    ago.map_err(|error| format!("`{text}`: {error}, or a time such as 2026-01-31T12:00:00Z"))
}

fn kind(text: &str) -> Result<CacheKind, String> {
    let mut known = KINDS.iter().chain(&BUILDX_KINDS);
    let found = known.find(|(name, _)| *name == text);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        if ["frontend", "internal"].contains(&text) {
            return format!("longshore keeps nothing of type `{text}`");
        }
        let names = KINDS.map(|(name, _)| name);
        format!("unknown type `{text}`: {}", meant(text, &names))
    })
}

fn meant(text: &str, known: &[&str]) -> String {
    match nearest(text, known.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("expected one of {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_as_docker_and_buildx_spell_them() {
        let check = |text: &str, expect: Filter| assert_eq!(text.parse::<Filter>(), Ok(expect));
        let ago = |hours: u64| Filter::Until(Until::Ago(Duration::from_secs(hours * 3_600)));
        check("until=24h", ago(24));
        check("unused-for=2d", ago(48));
        check("until=1700000000", Filter::Until(Until::At(1_700_000_000)));
        check(
            "until=1970-01-02T00:00:00Z",
            Filter::Until(Until::At(86_400)),
        );
        check("type=exec.cachemount", Filter::Kind(CacheKind::CacheMounts));
        check("type==cache-mounts", Filter::Kind(CacheKind::CacheMounts));
        check("type=regular", Filter::Kind(CacheKind::Records));
        check("id=abc", Filter::Id("abc".to_owned()));
        check("inuse", Filter::InUse(true));
        check("inuse=false", Filter::InUse(false));
        let label = |value: Option<&str>, absent| {
            Filter::Label(LabelTest {
                key: "stage".to_owned(),
                value: value.map(str::to_owned),
                absent,
            })
        };
        check("label=stage", label(None, false));
        check("label=stage=test", label(Some("test"), false));
        check("label!=stage=test", label(Some("test"), true));
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let check = |text: &str, expect: &str| {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        };
        check("untl=24h", "did you mean `until`?");
        check(
            "until=yesterday",
            "`yesterday`: expected a duration such as",
        );
        check("until", "expected `until=VALUE`");
        check("type=cache-mount", "did you mean `cache-mounts`?");
        check("type=frontend", "keeps nothing of type `frontend`");
        check("shared", "no such property as `shared`: expected one of id");
        check(
            "dangling=true",
            "unknown filter `dangling`: expected one of id",
        );
        check("inuse=maybe", "expected true or false");
        check("id!=x", "only `label` can");
    }
}
