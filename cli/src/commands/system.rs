//! `version` and `info`.

use std::process::ExitCode;

use runner::mode::{Lack, Mode};
use serde_json::json;

use crate::args::{InfoArgs, VersionArgs};
use crate::context::Context;
use crate::error::CliError;
use crate::networks;

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
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut survey = runner::mode::survey(&root);
    let network = match networks::of_steps(context) {
        // Which the mode lacks, with all else.
        _ if survey.mode >= Mode::Chroot => "host",
        Ok(name) => name,
        Err(why) => {
            survey.lacks.push(Lack {
                what: format!("a network of their own for steps, which are on the host's: {why}"),
                better: "Debian's package `slirp4netns`, or its like; or longshore as root"
                    .to_owned(),
            });
            "host"
        }
    };
    let privilege = survey.privilege.to_string();
    let layers = match survey.copies {
        true => "copied",
        false => "overlayfs",
    };
    if args.json {
        let lacks: Vec<_> = survey
            .lacks
            .iter()
            .map(|lack| json!({ "what": lack.what, "better": lack.better }))
            .collect();
        context.ui.json_line(&json!({
            "version": VERSION,
            "root": root,
            "kernel": kernel,
            "privilege": privilege,
            "mode": survey.mode.name(),
            "why": survey.why,
            "lacks": lacks,
            "limits": survey.limits,
            "layers": layers,
            "network": network,
            "cpus": cpus,
        }))?;
    } else {
        let mut text = format!(
            "Version:    {VERSION}\nRoot:       {}\nKernel:     {kernel}\nPrivilege:  {privilege}\nCPUs:       {cpus}\n",
            root.display()
        );
        let mode = survey.mode.name();
        let limits = match survey.limits.as_slice() {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        text.push_str(&format!(
            "Mode:       {mode}\nWhy:        {}\nLimits:     {limits}\nLayers:     {layers}\nNetwork:    {network}\n",
            survey.why
        ));
        for Lack { what, better } in &survey.lacks {
            text.push_str(&format!("Lacks:      {what}\nBetter:     {better}\n"));
        }
        context.ui.data(text)?;
    }
    Ok(ExitCode::SUCCESS)
}
