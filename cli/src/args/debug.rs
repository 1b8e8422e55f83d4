//! `build --on-error` and `debug`: looking around in steps.

use std::str::FromStr;

use clap::{Args, ValueEnum};

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

/// Which files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DebugState {
    /// Those that the step began with.
    Before,
    /// Those that it left when it failed.
    Failed,
    /// Those that it ended with.
    After,
}

/// `longshore debug`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  longshore debug latest 4
  longshore debug 3f9a 'RUN make'
  longshore debug latest 4 -- cat config.log
  longshore debug latest 4 --state before --secret id=npm,src=$HOME/.npmrc
  longshore debug latest 4 -- tar -c src > src.tar")]
pub struct DebugArgs {
    /// The start of its ID, or `latest`
    #[arg(value_name = "BUILD")]
    pub build: String,
    /// The step: its number, or a part of its name
    #[arg(value_name = "STEP")]
    pub step: String,
    /// What to run instead of a shell; its exit code becomes that of this command
    #[arg(value_name = "COMMAND", last = true)]
    pub command: Vec<String>,
    /// With which files [default: failed, if they are kept, else before]
    ///
    /// Those that the step began with, those that it left when it failed, or those that it ended with.
    #[arg(long, value_name = "STATE")]
    pub state: Option<DebugState>,
    /// The shell to open [default: the step's own, else the image's]
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    pub shell: Option<String>,
    /// Set a variable, over the step's own; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Give the step a secret, as `build` does: no history keeps it; may be repeated
    #[arg(long = "secret", value_name = "id=ID[,src=FILE|env=NAME]")]
    pub secrets: Vec<String>,
    /// Give the step an SSH agent or private keys, as `build` does; may be repeated
    #[arg(long, value_name = "ID[=SOCKET|KEY[,KEY...]]")]
    pub ssh: Vec<String>,
}
