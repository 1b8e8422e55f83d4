//! What went wrong, whose fault it is, and what to do about it.
//!
//! Libraries return their own errors; a command says of each which [`Kind`] it is. The kind decides the exit code (the
//! table of `docs/reference/exit-codes.md`), the chain of causes is printed below the message, a hint ends it.

mod libraries;

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What was given is wrong: a Dockerfile, a step that failed, a name that is not there.
    Input,
    /// The command line is wrong.
    Usage,
    /// This machine: its kernel, its disk, its network.
    Environment,
    /// A registry said no.
    Registry,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// Nobody reads stdout any more: not an error.
    OutputClosed,
    /// `run` could not start its container.
    Run,
    /// The command of `run` cannot be executed.
    RunNotExecutable,
    /// The command of `run` is not there.
    RunNotFound,
}

impl Kind {
    /// The exit code, as `docs/reference/exit-codes.md` lists them.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::OutputClosed => 0,
            Kind::Input => 1,
            Kind::Usage => 2,
            Kind::Environment => 3,
            Kind::Registry => 4,
            Kind::Run => 125,
            Kind::RunNotExecutable => 126,
            Kind::RunNotFound => 127,
            Kind::Interrupted => 130,
        }
    }
}

/// The exit code of a panic, which Rust has chosen: a bug in longshore.
pub const BUG_EXIT_CODE: i32 = 101;

/// What to do about a full disk.
const FULL_HINT: &str = "the disk is full: `longshore du` tells what longshore has on it, `longshore prune --all` frees the build cache";

/// An error on its way to the user.
#[derive(Debug)]
pub struct CliError {
    /// Whose fault it is.
    pub kind: Kind,
    source: Box<dyn Error + Send + Sync>,
    rendered: Option<String>,
    hint: Option<String>,
}

impl CliError {
    /// An error of a kind: a text, or any error with its causes.
    pub fn new(kind: Kind, source: impl Into<Box<dyn Error + Send + Sync>>) -> CliError {
        CliError {
            kind,
            source: source.into(),
            rendered: None,
            hint: None,
        }
    }

    /// The same error, shown as this text in place of its message and causes.
    pub fn rendered(mut self, text: impl Into<String>) -> CliError {
        self.rendered = Some(text.into());
        self
    }

    /// How it is to be shown, where that is not by its message and causes.
    pub fn rendered_text(&self) -> Option<&str> {
        self.rendered.as_deref()
    }

    /// The same error, saying what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> CliError {
        self.hint = Some(hint.into());
        self
    }

    /// The same error, as somebody else's fault.
    pub fn of_kind(mut self, kind: Kind) -> CliError {
        self.kind = kind;
        self
    }

    /// Whether SQLite cannot make sense of the store's index.
    pub fn is_index_damaged(&self) -> bool {
        let store = self.source.downcast_ref::<store::StoreError>();
        store.is_some_and(store::StoreError::is_index_damaged)
    }

    /// What to do about it.
    pub fn hint_text(&self) -> Option<&str> {
        let full = || store::is_disk_full(self.source.as_ref()).then_some(FULL_HINT);
        self.hint.as_deref().or_else(full)
    }

    /// The message and its causes, outermost first; a cause whose text its parent already ends with is left out.
    pub fn chain(&self) -> Vec<String> {
        let mut chain = vec![self.source.to_string()];
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let text = error.to_string();
            let said = chain.last().is_some_and(|last| last.ends_with(&text));
            if !said {
                chain.push(text);
            }
            cause = error.source();
        }
        chain
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain().join(": "))
    }
}

impl From<&CliError> for ExitCode {
    fn from(error: &CliError) -> ExitCode {
        ExitCode::from(error.kind.exit_code())
    }
}

/// Says of a library's error whose fault it is.
pub trait Blame<T> {
    /// Turns the error into a [`CliError`] of `kind`.
    fn blame(self, kind: Kind) -> Result<T, CliError>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> Blame<T> for Result<T, E> {
    fn blame(self, kind: Kind) -> Result<T, CliError> {
        self.map_err(|error| CliError::new(kind, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_told_once() {
        let error = CliError::new(Kind::Input, Outer(std::io::Error::other("inner")));
        assert_eq!(error.chain(), ["outer", "inner"]);
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Repeats(#[source] std::io::Error);
        let error = CliError::new(Kind::Input, Repeats(std::io::Error::other("inner")));
        assert_eq!(error.chain(), ["outer: inner"]);
    }
}
