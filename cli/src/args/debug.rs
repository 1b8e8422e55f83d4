//! `build --on-error` and `debug`: looking around in steps.

use std::str::FromStr;

/// What is done when a step fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The build fails.
    Fail,
    /// A shell is opened, and then the build fails: this one, or the one that there is.
    Shell(Option<String>),
}

impl FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<OnError, String> {
        match text.split_once('=').unwrap_or((text, "")) {
            ("fail", "") => Ok(OnError::Fail),
            ("shell", "") => Ok(OnError::Shell(None)),
            ("shell", path) if path.starts_with('/') => Ok(OnError::Shell(Some(path.to_owned()))),
            ("shell", path) => Err(format!("the shell `{path}` is no absolute path")),
            _ => Err("expected fail, shell or shell=PATH".to_owned()),
        }
    }
}
