//! Platforms as people write them: `linux/arm64`, `arm/v7`, `x86_64`.

use store::oci::Platform;

/// The architectures that images are made for, as Go names them.
pub(crate) const ARCHITECTURES: [&str; 14] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "wasm",
];

/// Why a text names no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// Not of the form.
    #[error(
        "`{text}` is not a platform: expected OS/ARCHITECTURE[/VARIANT], such as `linux/amd64` or `linux/arm/v7`"
    )]
    Form {
        /// What was written.
        text: String,
    },
    /// Of an architecture that there is not.
    #[error("there is no architecture `{name}`: known are `{}`", ARCHITECTURES.join("`, `"))]
    Architecture {
        /// Its name.
        name: String,
    },
}

/// Reads a platform: `os/architecture[/variant]`, or one of the two with the other one as on this machine.
///
/// Other names of an architecture are understood (`x86_64`, `aarch64`, `armhf`), and variants that mean nothing are
/// dropped (`arm64/v8`), as containerd does.
pub fn parse_platform(text: &str) -> Result<Platform, PlatformError> {
    parse_on(text, &Platform::host())
}

/// Reads a platform; what is not written is as in `default`.
pub(crate) fn parse_on(text: &str, default: &Platform) -> Result<Platform, PlatformError> {
    let platform = split(text, default).ok_or_else(|| PlatformError::Form {
        text: text.to_owned(),
    })?;
    if !ARCHITECTURES.contains(&platform.architecture.as_str()) {
        return Err(PlatformError::Architecture {
            name: platform.architecture,
        });
    }
    Ok(platform)
}

fn split(text: &str, default: &Platform) -> Option<Platform> {
    let word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let lower = text.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split('/').collect();
    if !parts.iter().all(|part| word(part)) {
        return None;
    }
    let (os, architecture, variant) = match parts.as_slice() {
        ["linux"] => ("linux", default.architecture.as_str(), None),
        [architecture] => (default.os.as_str(), *architecture, None),
        [os, architecture] => (*os, *architecture, None),
        [os, architecture, variant] => (*os, *architecture, Some(*variant)),
        _ => return None,
    };
    let (architecture, variant) = match (architecture, variant) {
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64", variant) => ("arm64", variant),
        ("i386" | "i686", variant) => ("386", variant),
        ("armhf", _) => ("arm", Some("v7")),
        ("armel", _) => ("arm", Some("v6")),
        other => other,
    };
    let variant = match (architecture, variant) {
        ("amd64", Some("v1")) | ("arm64", Some("v8" | "8")) => None,
        (_, variant) => variant,
    };
    Some(Platform {
        architecture: architecture.to_owned(),
        os: os.to_owned(),
        os_version: None,
        os_features: Vec::new(),
        variant: variant.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_many_spellings() {
        let check = |text: &str, expected: &str| {
            let default = parse_on("linux/riscv64", &Platform::host()).unwrap();
            let found = match parse_on(text, &default) {
                Ok(platform) => platform.to_string(),
                Err(error) => error.to_string(),
            };
            assert!(found.starts_with(expected), "{text}: {found}");
        };
        check("linux/amd64", "linux/amd64");
        check("Linux/AMD64/v1", "linux/amd64");
        check("amd64/v2", "there is no architecture `v2`");
        check("linux/amd64/v2", "linux/amd64/v2");
        check("linux/arm64/v8", "linux/arm64");
        check("aarch64", "linux/arm64");
        check("linux/armhf", "linux/arm/v7");
        check("linux/arm/v6", "linux/arm/v6");
        check("x86_64", "linux/amd64");
        check("linux", "linux/riscv64");
        check("windows/amd64", "windows/amd64");
        check(
            "linux/amd46",
            "there is no architecture `amd46`: known are `386`",
        );
        check("", "`` is not a platform: expected OS/ARCHITECTURE");
        check("a/b/c/d", "`a/b/c/d` is not a platform");
        check("linux/", "`linux/` is not a platform");
        check("linux/a b", "`linux/a b` is not a platform");
    }
}
