//! `[gc]`: what is collected by itself, at the end of builds and pulls.

use std::time::Duration;

use store::content::collect::{CacheKind, Limits, Policy, Rule};
use store::failed::KeepFailed;
use store::fs::DiskSpace;

use super::table::{Table, TableError};

/// Defaults are BuildKit's: a tenth of the disk is always the cache's, but no more than this …
const RESERVED_MAX: u64 = 10_000_000_000;
const RESERVED_PERCENT: u64 = 10;

/// … it may grow to four fifths of it, but not beyond this …
const USED_MAX: u64 = 100_000_000_000;
const USED_PERCENT: u64 = 80;

/// … and a fifth is to be free.
const FREE_PERCENT: u64 = 20;

/// What is cheap to get again goes first, if it was not used for two days and there is more of it than this.
const CHEAP_UNUSED: Duration = Duration::from_secs(48 * 60 * 60);
const CHEAP_MAX: u64 = 512_000_000;

/// What was not used for two months goes before the rest.
const OLD_UNUSED: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// Collecting costs nothing while there is nothing to collect, but looking costs a little.
const INTERVAL: Duration = Duration::from_secs(10 * 60);

/// The names of kinds, as `gc.policy.kinds` and filters have them.
pub const KINDS: [(&str, CacheKind); 5] = [
    ("records", CacheKind::Records),
    ("images", CacheKind::NamelessImages),
    ("cache-mounts", CacheKind::CacheMounts),
    ("git", CacheKind::GitMirrors),
    ("contexts", CacheKind::StatCaches),
];

/// A size, or a share of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the disk.
    Percent(u64),
    /// Hundredths of the disk, but at most so many bytes.
    Less(u64, u64),
}

impl Amount {
    fn bytes(self, disk: DiskSpace) -> u64 {
        let share = |percent: u64| disk.total / 100 * percent;
        match self {
            Amount::Bytes(bytes) => bytes,
            Amount::Percent(percent) => share(percent),
            Amount::Less(percent, bytes) => share(percent).min(bytes),
        }
    }

    fn percent(text: &str) -> Option<Amount> {
        let percent: u64 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
        (percent <= 100).then_some(Amount::Percent(percent))
    }
}

/// Sizes as a table has them; what it does not say is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    max_used: Option<Amount>,
    reserved: Option<Amount>,
    min_free: Option<Amount>,
}

impl Sizes {
    fn read(table: &mut Table<'_>) -> Result<Sizes, TableError> {
        let mut size = |key| {
            let share = ", or a share of the disk such as 10%";
            table.size(key, Amount::Bytes, Amount::percent, share)
        };
        Ok(Sizes {
            max_used: size("max_used")?,
            reserved: size("reserved")?,
            min_free: size("min_free")?,
        })
    }

    /// What they come to on a disk; zero for what is not said.
    fn limits(&self, disk: DiskSpace) -> Limits {
        let bytes = |amount: Option<Amount>| amount.map_or(0, |amount| amount.bytes(disk));
        Limits {
            reserved: bytes(self.reserved),
            max_used: bytes(self.max_used),
            min_free: bytes(self.min_free),
        }
    }
}

/// `[[gc.policy]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    kinds: Option<Vec<CacheKind>>,
    keep_duration: Duration,
    sizes: Sizes,
}

/// `[gc]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcConfig {
    /// Whether anything is collected by itself.
    pub enabled: bool,
    /// How long after one collection there is no other.
    pub interval: Duration,
    sizes: Sizes,
    /// Rules in place of the usual ones.
    pub policy: Option<Vec<PolicyRule>>,
    /// How much of what failed steps left is kept.
    pub failed: KeepFailed,
}

impl Default for GcConfig {
    fn default() -> GcConfig {
        GcConfig {
            enabled: true,
            interval: INTERVAL,
            sizes: Sizes::default(),
            policy: None,
            failed: KeepFailed::default(),
        }
    }
}

impl GcConfig {
    pub(super) fn read(table: &mut Table<'_>) -> Result<GcConfig, TableError> {
        let usual = GcConfig::default();
        let sizes = Sizes::read(table)?;
        let enabled = table.boolean("enabled")?.unwrap_or(usual.enabled);
        let interval = table.duration("interval")?.unwrap_or(usual.interval);
        let failed = KeepFailed {
            steps: table.number("failed_steps")?.unwrap_or(usual.failed.steps),
            bytes: table
                .size("failed_max_used", |bytes| bytes, |_| None, "")?
                .unwrap_or(usual.failed.bytes),
            age: table
                .duration("failed_keep_duration")?
                .unwrap_or(usual.failed.age),
        };
        let mut policy = None;
        for mut rule in table.tables("policy")?.into_iter().flatten() {
            let read = PolicyRule {
                kinds: rule.words("kinds", &KINDS)?,
                keep_duration: rule.duration("keep_duration")?.unwrap_or_default(),
                sizes: Sizes::read(&mut rule)?,
            };
            rule.finish()?;
            policy.get_or_insert_with(Vec::new).push(read);
        }
        Ok(GcConfig {
            enabled,
            interval,
            sizes,
            policy,
            failed,
        })
    }

    /// The policy on a disk of this size; none where nothing is to be collected.
    pub fn policy_on(&self, disk: DiskSpace) -> Option<Policy> {
        let rules = match &self.policy {
            Some(rules) => rules.iter().map(|rule| self.rule(rule, disk)).collect(),
            None => self.usual_rules(disk),
        };
        let interval = self.interval;
        self.enabled.then_some(Policy { rules, interval })
    }

    /// A rule of the file; one that says no size has those of `[gc]`.
    fn rule(&self, rule: &PolicyRule, disk: DiskSpace) -> Rule {
        let limits = match rule.sizes == Sizes::default() {
            true => self.general_limits(disk),
            false => rule.sizes.limits(disk),
        };
        let kinds = match &rule.kinds {
            Some(kinds) => kinds.iter().copied().collect(),
            None => CacheKind::CACHE.into(),
        };
        Rule {
            kinds,
            unused_for: rule.keep_duration,
            limits,
            ..Rule::default()
        }
    }

    fn general_limits(&self, disk: DiskSpace) -> Limits {
        let sizes = Sizes {
            max_used: self
                .sizes
                .max_used
                .or(Some(Amount::Less(USED_PERCENT, USED_MAX))),
            reserved: self
                .sizes
                .reserved
                .or(Some(Amount::Less(RESERVED_PERCENT, RESERVED_MAX))),
            min_free: self.sizes.min_free.or(Some(Amount::Percent(FREE_PERCENT))),
        };
        sizes.limits(disk)
    }

    fn usual_rules(&self, disk: DiskSpace) -> Vec<Rule> {
        let limits = self.general_limits(disk);
        let everything = Rule {
            kinds: CacheKind::CACHE.into(),
            limits,
            ..Rule::default()
        };
        let cheap = Rule {
            kinds: [
                CacheKind::CacheMounts,
                CacheKind::GitMirrors,
                CacheKind::StatCaches,
            ]
            .into(),
            unused_for: CHEAP_UNUSED,
            limits: Limits {
                max_used: CHEAP_MAX,
                ..Limits::default()
            },
            ..Rule::default()
        };
        let old = Rule {
            unused_for: OLD_UNUSED,
            ..everything.clone()
        };
        vec![cheap, old, everything]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const DISK: DiskSpace = DiskSpace {
        total: 50_000_000_000,
        free: 0,
    };

    fn policy(text: &str) -> Option<Policy> {
        Config::parse(text).unwrap().gc.policy_on(DISK)
    }

    #[test]
    fn the_usual_policy_goes_by_the_disk() {
        let usual = policy("").unwrap();
        assert_eq!(usual.rules.len(), 3);
        let limits = Limits {
            reserved: 5_000_000_000,
            max_used: 40_000_000_000,
            min_free: 10_000_000_000,
        };
        assert_eq!(usual.rules[2].limits, limits);
        let large = DiskSpace {
            total: 5_000_000_000_000,
            free: 0,
        };
        let large = GcConfig::default().policy_on(large).unwrap();
        assert_eq!(large.rules[2].limits.max_used, USED_MAX);
        assert_eq!(large.rules[2].limits.reserved, RESERVED_MAX);
    }

    #[test]
    fn what_the_file_says_goes_before_it() {
        assert_eq!(policy("[gc]\nenabled = false\n"), None);
        let said = policy("[gc]\nmax_used = \"1GB\"\nmin_free = \"0%\"\n").unwrap();
        let limits = Limits {
            reserved: 5_000_000_000,
            max_used: 1_000_000_000,
            min_free: 0,
        };
        assert_eq!(said.rules[1].limits, limits);
        let text = "[gc]\nreserved = 0\n[[gc.policy]]\nkinds = [\"git\"]\nkeep_duration = \"1h\"\nmax_used = \"5%\"\n[[gc.policy]]\n";
        let said = policy(text).unwrap();
        assert_eq!(said.rules.len(), 2);
        assert_eq!(said.rules[0].kinds, [CacheKind::GitMirrors].into());
        assert_eq!(said.rules[0].unused_for, Duration::from_secs(3_600));
        assert_eq!(said.rules[0].limits.max_used, 2_500_000_000);
        assert_eq!(said.rules[0].limits.min_free, 0);
        // One without sizes has the general ones.
        assert_eq!(said.rules[1].limits.reserved, 0);
        assert_eq!(said.rules[1].limits.min_free, 10_000_000_000);
    }
}
