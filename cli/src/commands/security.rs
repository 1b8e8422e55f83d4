//! `--security-opt` of `run`, `create` and `build`: docker's options, read.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use builder::dockerfile::suggest::nearest;
use runner::{Capabilities, Confinement, Filter, Profile, Seccomp};

use crate::error::{CliError, Kind};

/// The largest profile; docker's own has 13 KiB.
const PROFILE_BYTES_MAX: u64 = 4 << 20;

/// Changes `confinement`, whose capabilities are settled, as `options` say; the last of those that contradict each other counts.
pub fn apply(options: &[String], confinement: &mut Confinement) -> Result<(), CliError> {
    for option in options {
        // Docker takes both.
        let option = match option.split_once(['=', ':']) {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        match option {
            ("no-new-privileges", None | Some("true")) => confinement.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => confinement.no_new_privileges = false,
            ("seccomp", Some("unconfined")) => confinement.seccomp = Seccomp::Unconfined,
            ("seccomp", Some("builtin")) => confinement.seccomp = Seccomp::Default,
            ("seccomp", Some(path)) if !path.is_empty() => {
                let filter = profile(Path::new(path), confinement.capabilities)?;
                confinement.seccomp = Seccomp::Profile(filter);
            }
            ("systempaths", Some("unconfined")) => confinement.mask_paths = false,
            // There is no profile to be confined by.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            (name, value) => {
                let value = value.map(|value| format!("={value}")).unwrap_or_default();
                let message = format!("the security option `{name}{value}` is not supported");
                return Err(CliError::new(Kind::Usage, message).hint(
                    "there are no-new-privileges, seccomp=FILE, seccomp=unconfined and systempaths=unconfined",
                ));
            }
        }
    }
    Ok(())
}

fn profile(path: &Path, capabilities: Capabilities) -> Result<Filter, CliError> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| {
        CliError::new(
            Kind::Input,
            format!("cannot read the seccomp profile `{shown}`: {error}"),
        )
    };
    let mut json = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(PROFILE_BYTES_MAX + 1)
        .read_to_end(&mut json)
        .map_err(unreadable)?;
    if json.len() as u64 > PROFILE_BYTES_MAX {
        let message = format!("the seccomp profile `{shown}` has more than 4 MiB");
        return Err(CliError::new(Kind::Input, message));
    }
    let made = Profile::parse(&json).and_then(|profile| profile.filter(capabilities));
    match made {
        Ok((filter, unknown)) => {
            for name in unknown {
                tracing::debug!(profile = %shown, name, "the profile allows a call that there is not");
            }
            Ok(filter)
        }
        Err(error) => {
            let near = error
                .unknown_call()
                .and_then(|(name, names)| nearest(name, names))
                .map(|near| format!("did you mean `{near}`?"));
            let message = format!("cannot use the seccomp profile `{shown}`: {error}");
            let error = CliError::new(Kind::Input, message);
            Err(match near {
                Some(hint) => error.hint(hint),
                None => error,
            })
        }
    }
}
