//! The rules: names, what they ask for, and where their pages stand.
//!
//! The first 22 are BuildKit's, by its names and conditions. The rest are longshore's own, and experimental: they are
//! silent until they are asked for.

use crate::dockerfile::{Diagnostic, Span};

/// A rule that a Dockerfile may break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "`Rule::description` says what each asks for")]
pub enum Rule {
    StageNameCasing,
    FromAsCasing,
    NoEmptyContinuation,
    ConsistentInstructionCasing,
    DuplicateStageName,
    ReservedStageName,
    JSONArgsRecommended,
    MaintainerDeprecated,
    UndefinedArgInFrom,
    WorkdirRelativePath,
    UndefinedVar,
    MultipleInstructionsDisallowed,
    LegacyKeyValueFormat,
    InvalidBaseImagePlatform,
    RedundantTargetPlatform,
    SecretsUsedInArgOrEnv,
    InvalidDefaultArgInFrom,
    FromPlatformFlagConstDisallowed,
    CopyIgnoredFile,
    InvalidDefinitionDescription,
    ExposeProtoCasing,
    ExposeInvalidFormat,
    UnpinnedBaseImage,
    MissingCacheMount,
    CopyAllBeforeInstall,
    SecretsInCopiedFiles,
    AptListsKept,
    LastUserIsRoot,
    CurlPipeShell,
    SudoInRun,
    AddInsteadOfCopy,
    CdWithoutEffect,
}

/// Whether a rule speaks without being asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Set {
    /// Unless it is skipped.
    Stable,
    /// Only where `experimental=` names it.
    Experimental,
}

use Rule::*;
use Set::{Experimental, Stable};

/// Rule, name, name of its page, set, what it asks for; in the order of [`Rule`].
const TABLE: [(Rule, &str, &str, Set, &str); 32] = [
    (
        StageNameCasing,
        "StageNameCasing",
        "stage-name-casing",
        Stable,
        "names of stages are in lower case",
    ),
    (
        FromAsCasing,
        "FromAsCasing",
        "from-as-casing",
        Stable,
        "`AS` is in the same case as `FROM`",
    ),
    (
        NoEmptyContinuation,
        "NoEmptyContinuation",
        "no-empty-continuation",
        Stable,
        "no blank line stands inside a continued instruction",
    ),
    (
        ConsistentInstructionCasing,
        "ConsistentInstructionCasing",
        "consistent-instruction-casing",
        Stable,
        "all instructions of a file are in the same case",
    ),
    (
        DuplicateStageName,
        "DuplicateStageName",
        "duplicate-stage-name",
        Stable,
        "no two stages have the same name",
    ),
    (
        ReservedStageName,
        "ReservedStageName",
        "reserved-stage-name",
        Stable,
        "no stage is named `scratch` or `context`",
    ),
    (
        JSONArgsRecommended,
        "JSONArgsRecommended",
        "json-args-recommended",
        Stable,
        "`CMD` and `ENTRYPOINT` are JSON arrays, so that signals reach the program",
    ),
    (
        MaintainerDeprecated,
        "MaintainerDeprecated",
        "maintainer-deprecated",
        Stable,
        "the label `org.opencontainers.image.authors` replaces `MAINTAINER`",
    ),
    (
        UndefinedArgInFrom,
        "UndefinedArgInFrom",
        "undefined-arg-in-from",
        Stable,
        "`FROM` uses only variables that an `ARG` before the first `FROM` declares",
    ),
    (
        WorkdirRelativePath,
        "WorkdirRelativePath",
        "workdir-relative-path",
        Stable,
        "the first `WORKDIR` is absolute, whatever the base image sets",
    ),
    (
        UndefinedVar,
        "UndefinedVar",
        "undefined-var",
        Stable,
        "variables are set before they are used",
    ),
    (
        MultipleInstructionsDisallowed,
        "MultipleInstructionsDisallowed",
        "multiple-instructions-disallowed",
        Stable,
        "a stage has one `CMD`, one `ENTRYPOINT` and one `HEALTHCHECK`: only the last of each counts",
    ),
    (
        LegacyKeyValueFormat,
        "LegacyKeyValueFormat",
        "legacy-key-value-format",
        Stable,
        "`ENV` and `LABEL` are written as `key=value`",
    ),
    (
        InvalidBaseImagePlatform,
        "InvalidBaseImagePlatform",
        "invalid-base-image-platform",
        Stable,
        "a base image is for the platform that is built for",
    ),
    (
        RedundantTargetPlatform,
        "RedundantTargetPlatform",
        "redundant-target-platform",
        Stable,
        "`--platform=$TARGETPLATFORM` says what holds anyway",
    ),
    (
        SecretsUsedInArgOrEnv,
        "SecretsUsedInArgOrEnv",
        "secrets-used-in-arg-or-env",
        Stable,
        "no secret goes through `ARG` or `ENV`: both stay in the image",
    ),
    (
        InvalidDefaultArgInFrom,
        "InvalidDefaultArgInFrom",
        "invalid-default-arg-in-from",
        Stable,
        "with the defaults of its variables alone, `FROM` names an image",
    ),
    (
        FromPlatformFlagConstDisallowed,
        "FromPlatformFlagConstDisallowed",
        "from-platform-flag-const-disallowed",
        Stable,
        "`FROM --platform` is not a constant",
    ),
    (
        CopyIgnoredFile,
        "CopyIgnoredFile",
        "copy-ignored-file",
        Stable,
        "nothing is copied that the ignore file excludes",
    ),
    (
        InvalidDefinitionDescription,
        "InvalidDefinitionDescription",
        "invalid-definition-description",
        Experimental,
        "a comment right above `FROM` or `ARG` describes it: `# name text`",
    ),
    (
        ExposeProtoCasing,
        "ExposeProtoCasing",
        "expose-proto-casing",
        Stable,
        "the protocol of `EXPOSE` is in lower case",
    ),
    (
        ExposeInvalidFormat,
        "ExposeInvalidFormat",
        "expose-invalid-format",
        Stable,
        "`EXPOSE` names ports of the container only",
    ),
    (
        UnpinnedBaseImage,
        "UnpinnedBaseImage",
        "unpinned-base-image",
        Experimental,
        "a base image has a digest, or a tag other than `latest`",
    ),
    (
        MissingCacheMount,
        "MissingCacheMount",
        "missing-cache-mount",
        Experimental,
        "a package manager keeps its downloads in a cache mount",
    ),
    (
        CopyAllBeforeInstall,
        "CopyAllBeforeInstall",
        "copy-all-before-install",
        Experimental,
        "dependencies are installed before the whole context is copied",
    ),
    (
        SecretsInCopiedFiles,
        "SecretsInCopiedFiles",
        "secrets-in-copied-files",
        Experimental,
        "files that usually hold secrets are not copied into the image",
    ),
    (
        AptListsKept,
        "AptListsKept",
        "apt-lists-kept",
        Experimental,
        "the step that runs `apt-get update` leaves no package lists in its layer",
    ),
    (
        LastUserIsRoot,
        "LastUserIsRoot",
        "last-user-is-root",
        Experimental,
        "an image that runs something does not run it as root",
    ),
    (
        CurlPipeShell,
        "CurlPipeShell",
        "curl-pipe-shell",
        Experimental,
        "a download that fails or is cut short is not run as a script",
    ),
    (
        SudoInRun,
        "SudoInRun",
        "sudo-in-run",
        Experimental,
        "`USER` decides who runs a step, not `sudo`",
    ),
    (
        AddInsteadOfCopy,
        "AddInsteadOfCopy",
        "add-instead-of-copy",
        Experimental,
        "`COPY` copies plain files of the context, `ADD` the rest",
    ),
    (
        CdWithoutEffect,
        "CdWithoutEffect",
        "cd-without-effect",
        Experimental,
        "`WORKDIR` changes the directory for later instructions, `cd` cannot",
    ),
];

impl Rule {
    /// All rules: BuildKit's first.
    pub fn all() -> impl Iterator<Item = Rule> {
        TABLE.iter().map(|entry| entry.0)
    }

    fn entry(self) -> &'static (Rule, &'static str, &'static str, Set, &'static str) {
        &TABLE[self as usize]
    }

    /// The rule of a name, case and all.
    pub fn named(name: &str) -> Option<Rule> {
        Rule::all().find(|rule| rule.name() == name)
    }

    /// Its name: `StageNameCasing`.
    pub fn name(self) -> &'static str {
        self.entry().1
    }

    /// Its name as file names have it: `stage-name-casing`.
    pub fn slug(self) -> &'static str {
        self.entry().2
    }

    /// The page about it, from the root of longshore's tree.
    pub fn page(self) -> String {
        format!("docs/reference/checks/{}.md", self.slug())
    }

    /// Whether it is silent unless `experimental=` names it.
    pub fn is_experimental(self) -> bool {
        self.entry().3 == Experimental
    }

    /// What it asks for: one line, lower case, no full stop.
    pub fn description(self) -> &'static str {
        self.entry().4
    }

    /// A violation of it.
    pub fn at(self, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            rule: Some(self),
            ..Diagnostic::warning(span, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_rules() {
        for (index, entry) in TABLE.iter().enumerate() {
            assert_eq!(entry.0 as usize, index, "{}", entry.1);
            assert_eq!(entry.1, format!("{:?}", entry.0));
            assert_eq!(entry.2.replace('-', ""), entry.1.to_lowercase());
        }
    }
}
