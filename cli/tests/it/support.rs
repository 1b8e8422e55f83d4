//! Running the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test.
pub const LONGSHORE: &str = env!("CARGO_BIN_EXE_longshore");

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.parent()
        .expect("`cli` is in the workspace")
        .to_path_buf()
}

/// Runs the binary with arguments alone: no store of its own.
pub fn longshore(arguments: &[&str]) -> Output {
    Command::new(LONGSHORE)
        .args(arguments)
        .output()
        .expect("the binary under test starts")
}

/// What a process wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("our output is UTF-8")
}
