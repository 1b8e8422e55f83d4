//! Flags of docker's that are on unless `=false` is said.

use clap::{Arg, ArgAction};

/// For `#[arg(toggle = "true")]`.
pub trait Toggle {
    /// A flag that may be given with a value or without, which means `true`, and that has this value where it is not given.
    fn toggle(self, default: &'static str) -> Self;
}

impl Toggle for Arg {
    fn toggle(self, default: &'static str) -> Arg {
        self.value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_value(default)
            .default_missing_value("true")
            .action(ArgAction::Set)
    }
}
