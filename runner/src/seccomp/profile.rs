//! Profiles in docker's JSON format (`--security-opt seccomp=FILE`), checked and made a program for this machine.
//!
//! The meaning is docker's: `includes` and `excludes` choose rules by the sandbox's capabilities, the architecture and the kernel;
//! several conditions of a rule hold together, but each for itself if two are about the same argument; what is newer than every
//! call of the profile answers `ENOSYS`, for programs to fall back. Where docker's library drops a rule with conditions because of
//! one without, here it holds if it is the stricter one. What cannot be kept is an error with its place in the file: a name that no
//! kernel knows in a rule that refuses, an action that needs a second process, a field that there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use libc::{
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD,
    SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_TRAP,
};
use serde::de::{Error as _, Unexpected};
use serde::{Deserialize, Deserializer};

use super::assemble::{Action, Comparison, Condition, Plan, Rule, Verdict, assemble};
use super::calls::{self, Arch};
use super::{Filter, audit, errno};
use crate::spec::{CAPABILITIES, Capabilities};

/// The longest program that the kernel takes.
const INSTRUCTIONS_MAX: usize = 4096;
/// The largest error number that a filter can return.
const ERRNO_MAX: u16 = 4095;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// It is no JSON, or says something that the format has not; the message has the line and the column.
    #[error("{0}")]
    Format(#[from] serde_json::Error),
    /// Two fields contradict each other.
    #[error("{place}: `{one}` and `{other}` say the same, only one of them is taken")]
    Both {
        /// Where, such as `syscalls[3]`.
        place: String,
        /// A field.
        one: &'static str,
        /// The other one.
        other: &'static str,
    },
    /// A rule without a call.
    #[error("syscalls[{rule}]: a rule without `names`")]
    Nameless {
        /// Its position in `syscalls`, from 0.
        rule: usize,
    },
    /// A call that no kernel has in a rule that is to refuse it.
    #[error("syscalls[{rule}]: there is no system call `{name}` that could be refused")]
    UnknownCall {
        /// The rule's position in `syscalls`, from 0.
        rule: usize,
        /// The name.
        name: String,
    },
    /// It is not for this machine.
    #[error("the profile is for {found}, not for {native}")]
    Architecture {
        /// What it names.
        found: String,
        /// What this machine is.
        native: &'static str,
    },
    /// The kernel would not take it.
    #[error(
        "its rules need a program of {found} instructions: the kernel takes {INSTRUCTIONS_MAX}"
    )]
    TooLarge {
        /// How many.
        found: usize,
    },
}

impl ProfileError {
    /// The call whose name may be a slip, and all names that there are.
    pub fn unknown_call(&self) -> Option<(&str, Vec<&'static str>)> {
        match self {
            Self::UnknownCall { name, .. } => Some((name, calls::names().collect())),
            _ => None,
        }
    }
}

/// A profile as it was read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    default_action: ActionName,
    default_errno_ret: Option<Errno>,
    /// podman's name for it.
    #[serde(rename = "defaultErrno")]
    _default_errno: Option<serde::de::IgnoredAny>,
    architectures: Option<Vec<ArchName>>,
    arch_map: Option<Vec<ArchEntry>>,
    #[serde(default)]
    flags: Option<Vec<Flag>>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchEntry {
    architecture: ArchName,
    sub_architectures: Option<Vec<ArchName>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: ActionName,
    errno_ret: Option<Errno>,
    #[serde(rename = "errno")]
    _errno: Option<serde::de::IgnoredAny>,
    args: Option<Vec<Argument>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Choice>,
    excludes: Option<Choice>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: Index,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Choice {
    arches: Option<Vec<String>>,
    caps: Option<Vec<Capability>>,
    min_kernel: Option<KernelVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum ActionName {
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

impl ActionName {
    fn action(self, data: Option<Errno>) -> Action {
        let data = data.map_or(libc::EPERM.unsigned_abs(), |errno| errno.0.into());
        match self {
            Self::KillThread => SECCOMP_RET_KILL_THREAD,
            Self::KillProcess => SECCOMP_RET_KILL_PROCESS,
            Self::Trap => SECCOMP_RET_TRAP,
            Self::Errno => SECCOMP_RET_ERRNO | data,
            Self::Trace => SECCOMP_RET_TRACE | data,
            Self::Allow => SECCOMP_RET_ALLOW,
            Self::Log => SECCOMP_RET_LOG,
        }
    }

    /// Whether the call is made.
    fn permits(self) -> bool {
        matches!(self, Self::Allow | Self::Log)
    }
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    AtMost,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    AtLeast,
    #[serde(rename = "SCMP_CMP_GT")]
    Above,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Flag {
    /// For processes of several threads: there is one when the filter is installed.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Threads,
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    Speculation,
}

/// `SCMP_ARCH_*`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ArchName(String);

impl<'de> Deserialize<'de> for ArchName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.strip_prefix("SCMP_ARCH_") {
            Some(rest) if !rest.is_empty() => Ok(Self(name)),
            _ => Err(D::Error::invalid_value(
                Unexpected::Str(&name),
                &"an architecture such as `SCMP_ARCH_X86_64`",
            )),
        }
    }
}

impl ArchName {
    fn arch(&self) -> Option<Arch> {
        match self.0.as_str() {
            "SCMP_ARCH_X86_64" => Some(Arch::X86_64),
            "SCMP_ARCH_X86" => Some(Arch::I386),
            "SCMP_ARCH_AARCH64" => Some(Arch::Aarch64),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Errno(u16);

impl<'de> Deserialize<'de> for Errno {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        match u16::try_from(number) {
            Ok(errno) if errno <= ERRNO_MAX => Ok(Self(errno)),
            _ => Err(D::Error::invalid_value(
                Unexpected::Unsigned(number),
                &"an error number of 0 to 4095",
            )),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Index(u8);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            number @ 0..=5 => Ok(Self(u8::try_from(number).unwrap_or(5))),
            number => Err(D::Error::invalid_value(
                Unexpected::Unsigned(number),
                &"an argument of 0 to 5",
            )),
        }
    }
}

/// A capability's number.
#[derive(Clone, Copy, Debug)]
struct Capability(u32);

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let bare = name.strip_prefix("CAP_");
        let number = bare.and_then(|bare| (0..).zip(CAPABILITIES).find(|known| known.1 == bare));
        number.map(|known| Self(known.0)).ok_or_else(|| {
            D::Error::invalid_value(
                Unexpected::Str(&name),
                &"a capability such as `CAP_SYS_ADMIN`",
            )
        })
    }
}

/// `VERSION.MAJOR`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KernelVersion(u32, u32);

impl fmt::Debug for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl KernelVersion {
    fn parse(text: &str) -> Option<Self> {
        let (version, rest) = text.split_once('.')?;
        let major: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(Self(version.parse().ok()?, major.parse().ok()?))
    }

    fn running() -> Self {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        Self::parse(&release).unwrap_or(Self(u32::MAX, 0))
    }
}

impl<'de> Deserialize<'de> for KernelVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .filter(|_| text.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
            .ok_or_else(|| {
                D::Error::invalid_value(Unexpected::Str(&text), &"a kernel such as `4.8`")
            })
    }
}

/// A call's rules, in order of the file.
#[derive(Default)]
struct Rules(Vec<Rule>);

impl Rules {
    /// A rule without conditions decides in place of the default, the first of several as with docker's library; one with conditions
    /// decides if it is stricter than that, the strictest of those that match.
    fn verdict(self, default: Action) -> Verdict {
        let (plain, mut rules): (Vec<Rule>, Vec<Rule>) = self
            .0
            .into_iter()
            .partition(|rule| rule.conditions.is_empty());
        let plain = plain.first().map(|rule| rule.action);
        if let Some(plain) = plain {
            rules.retain(|rule| strictness(rule.action) < strictness(plain));
        }
        rules.sort_by_key(|rule| strictness(rule.action));
        Verdict {
            rules,
            otherwise: plain.unwrap_or(default),
        }
    }
}

/// The kernel's own order: the least is the strictest.
fn strictness(action: Action) -> i32 {
    (action & 0xffff_0000).cast_signed()
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    ///
    /// [`ProfileError::Format`], with line and column.
    pub fn parse(json: &[u8]) -> Result<Self, ProfileError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// The filter for a sandbox with these capabilities on this machine; and the names of calls that rules allow but no kernel
    /// knows, which have no effect.
    ///
    /// # Errors
    ///
    /// The other [`ProfileError`]s.
    pub fn filter(
        &self,
        capabilities: Capabilities,
    ) -> Result<(Filter, Vec<String>), ProfileError> {
        let default = self.default_action.action(self.default_errno_ret);
        let mut unknown = BTreeSet::new();
        let mut plans = Vec::new();
        for arch in self.arches()? {
            let calls = self.rules(arch, capabilities, &mut unknown)?;
            let last = calls.keys().next_back().copied();
            let refuses = !self.default_action.permits();
            plans.push(Plan {
                arch: audit(arch),
                calls: calls
                    .into_iter()
                    .map(|(number, rules)| (number, rules.verdict(default)))
                    .collect(),
                default,
                last: last.unwrap_or(calls::LAST),
                beyond: match refuses && last.is_some() {
                    true => errno(libc::ENOSYS),
                    false => default,
                },
                x32: errno(libc::ENOSYS),
            });
        }
        let program = assemble(&plans);
        if program.len() > INSTRUCTIONS_MAX {
            return Err(ProfileError::TooLarge {
                found: program.len(),
            });
        }
        let filter = Filter {
            program: program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect(),
            flags: self.flags.iter().flatten().fold(0, |flags, flag| {
                flags
                    | match flag {
                        Flag::Threads => 0,
                        Flag::Log => 2,
                        Flag::Speculation => 4,
                    }
            }),
        };
        Ok((filter, unknown.into_iter().collect()))
    }

    /// The native architecture, and those of which it runs programs too if the profile is for them.
    fn arches(&self) -> Result<Vec<Arch>, ProfileError> {
        let names: Vec<&ArchName> = match (&self.architectures, &self.arch_map) {
            (Some(list), Some(map)) if !list.is_empty() && !map.is_empty() => {
                return Err(ProfileError::Both {
                    place: "the profile".into(),
                    one: "architectures",
                    other: "archMap",
                });
            }
            (Some(list), _) if !list.is_empty() => list.iter().collect(),
            (_, Some(map)) if !map.is_empty() => {
                let own = map
                    .iter()
                    .find(|entry| entry.architecture.arch() == Some(calls::NATIVE));
                match own {
                    Some(entry) => std::iter::once(&entry.architecture)
                        .chain(entry.sub_architectures.iter().flatten())
                        .collect(),
                    None => map.iter().map(|entry| &entry.architecture).collect(),
                }
            }
            _ => return Ok(vec![calls::NATIVE]),
        };
        let mut arches: Vec<Arch> = names.iter().filter_map(|name| name.arch()).collect();
        arches.retain(|arch| super::arches().contains(arch));
        arches.dedup();
        if !arches.contains(&calls::NATIVE) {
            let found: Vec<String> = names.iter().map(|name| format!("`{}`", name.0)).collect();
            return Err(ProfileError::Architecture {
                found: found.join(", "),
                native: native_name(),
            });
        }
        Ok(arches)
    }

    fn rules(
        &self,
        arch: Arch,
        capabilities: Capabilities,
        unknown: &mut BTreeSet<String>,
    ) -> Result<BTreeMap<u32, Rules>, ProfileError> {
        let kernel = KernelVersion::running();
        let mut calls: BTreeMap<u32, Rules> = BTreeMap::new();
        for (position, entry) in self.syscalls.iter().flatten().enumerate() {
            let names = match (&entry.name, &entry.names) {
                (Some(_), Some(names)) if !names.is_empty() => {
                    return Err(ProfileError::Both {
                        place: format!("syscalls[{position}]"),
                        one: "name",
                        other: "names",
                    });
                }
                (Some(name), _) => std::slice::from_ref(name),
                (None, Some(names)) => names,
                (None, None) => return Err(ProfileError::Nameless { rule: position }),
            };
            if !entry.applies(capabilities, kernel) {
                continue;
            }
            let action = entry.action.action(entry.errno_ret);
            for name in names {
                match calls::number(arch, name) {
                    Some(Some(number)) => {
                        let rules = calls.entry(number).or_default();
                        rules.0.extend(
                            entry
                                .conditions(arch)
                                .into_iter()
                                .map(|conditions| Rule { conditions, action }),
                        );
                    }
                    Some(None) => {}
                    None if entry.action.permits() => {
                        unknown.insert(name.clone());
                    }
                    None => {
                        return Err(ProfileError::UnknownCall {
                            rule: position,
                            name: name.clone(),
                        });
                    }
                }
            }
        }
        Ok(calls)
    }
}

impl Entry {
    fn applies(&self, capabilities: Capabilities, kernel: KernelVersion) -> bool {
        let native = |arches: &Vec<String>| arches.iter().any(|arch| arch == native_name());
        let has = |capability: &Capability| capabilities.contains(capability.0);
        let excluded = self.excludes.as_ref().is_some_and(|excludes| {
            excludes.arches.as_ref().is_some_and(native)
                || excludes.caps.iter().flatten().any(has)
                || excludes.min_kernel.is_some_and(|least| kernel >= least)
        });
        let included = self.includes.as_ref().is_none_or(|includes| {
            includes
                .arches
                .as_ref()
                .is_none_or(|list| list.is_empty() || native(list))
                && includes.caps.iter().flatten().all(has)
                && includes.min_kernel.is_none_or(|least| kernel >= least)
        });
        included && !excluded
    }

    /// Lists of conditions that hold together, any of which is enough.
    fn conditions(&self, arch: Arch) -> Vec<Vec<Condition>> {
        let conditions: Vec<Condition> = self
            .args
            .iter()
            .flatten()
            .map(|argument| argument.condition(arch))
            .collect();
        let indices: BTreeSet<u8> = conditions.iter().map(|condition| condition.index).collect();
        match indices.len() == conditions.len() {
            true => vec![conditions],
            false => conditions
                .into_iter()
                .map(|condition| vec![condition])
                .collect(),
        }
    }
}

impl Argument {
    fn condition(&self, arch: Arch) -> Condition {
        let (comparison, mask, value) = match self.op {
            Operator::NotEqual => (Comparison::NotEqual, u64::MAX, self.value),
            Operator::Less => (Comparison::Less, u64::MAX, self.value),
            Operator::AtMost => (Comparison::AtMost, u64::MAX, self.value),
            Operator::Equal => (Comparison::Equal, u64::MAX, self.value),
            Operator::AtLeast => (Comparison::AtLeast, u64::MAX, self.value),
            Operator::Above => (Comparison::Above, u64::MAX, self.value),
            Operator::MaskedEqual => (Comparison::Equal, self.value, self.value_two),
        };
        // A 64-bit program that calls the 32-bit interface may have anything in the upper half of a register.
        let mask = match arch {
            Arch::I386 => mask & 0xffff_ffff,
            _ => mask,
        };
        Condition {
            index: self.index.0,
            mask,
            comparison,
            value,
        }
    }
}

/// What docker's profiles call this machine.
fn native_name() -> &'static str {
    match calls::NATIVE {
        Arch::X86_64 => "amd64",
        Arch::I386 => "x86",
        Arch::Aarch64 => "arm64",
    }
}

#[cfg(test)]
mod tests;
