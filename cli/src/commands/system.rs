//! `version` and `info`.

use std::process::ExitCode;

use serde_json::json;

use crate::args::{InfoArgs, VersionArgs};
use crate::context::Context;
use crate::error::CliError;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `longshore version`.
pub fn version(context: &Context, args: &VersionArgs) -> Result<ExitCode, CliError> {
    if args.json {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        let value = json!({ "version": VERSION, "os": os, "arch": arch });
        context.ui.json_line(&value)?;
    } else {
        context.ui.line(&format!("longshore {VERSION}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `longshore info`.
pub fn info(context: &Context, args: &InfoArgs) -> Result<ExitCode, CliError> {
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy();
    let root = context.root()?;
    let privilege = runner::userns::privilege().to_string();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if args.json {
        context.ui.json_line(&json!({
            "version": VERSION,
            "root": root,
            "kernel": kernel,
            "privilege": privilege,
            "cpus": cpus,
        }))?;
    } else {
        context.ui.data(format!(
            "Version:    {VERSION}\nRoot:       {}\nKernel:     {kernel}\nPrivilege:  {privilege}\nCPUs:       {cpus}\n",
            root.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
