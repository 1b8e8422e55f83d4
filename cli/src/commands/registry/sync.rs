//! `[[sync]]` of a registry's configuration, and `registry sync`, which runs it once by hand.

use std::process::ExitCode;
use std::sync::Arc;

use registry_server::storage::RegistryStorage;
use registry_server::storage::disk::DiskStorage;
use registry_server::sync::{Mirror, SyncLine, SyncReport, SyncStep, once};
use serde_json::json;

use super::serve::{Place, Settings};
use super::{bucket, upstream};
use crate::args::RegistrySyncArgs;
use crate::config::serve::sync::SyncConfig;
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::human;

/// The syncs that a configuration says, ready to be run.
pub(super) fn syncs(context: &Context, configs: &[SyncConfig]) -> Result<Vec<Mirror>, CliError> {
    let made = configs.iter().map(|config| {
        let source = upstream::Remote::new(context, &config.source)?;
        let mut sync = Mirror::new(&config.name, Arc::new(source), config.choice.clone());
        sync.prefix.clone_from(&config.source.prefix);
        sync.platforms.clone_from(&config.platforms);
        sync.referrers = config.referrers;
        sync.delete = config.delete;
        sync.every = config.every;
        sync.rate = config.rate;
        if let Some(transfers) = config.transfers {
            sync.transfers_max = usize::try_from(transfers).unwrap_or(usize::MAX);
        }
        Ok(sync)
    });
    made.collect()
}

/// `longshore registry sync`. Fails where something could not be mirrored, after everything else was.
pub fn sync(context: &Context, args: &RegistrySyncArgs) -> Result<ExitCode, CliError> {
    // What `--config` names is the server's.
    let context = &context.with_usual_config();
    let settings = Settings::read(context, &args.as_serve())?;
    let names = || settings.config.syncs.iter().map(|sync| sync.name.as_str());
    if let Some(unknown) = args
        .names
        .iter()
        .find(|name| names().all(|known| known != **name))
    {
        let known: Vec<&str> = names().collect();
        let message = format!("there is no sync `{unknown}` in the configuration");
        let hint = match known.as_slice() {
            [] => "it has no [[sync]]".to_owned(),
            known => format!("it has {}", known.join(", ")),
        };
        return Err(CliError::new(Kind::Usage, message).hint(hint));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .blame(Kind::Environment)?;
    let storage: Arc<dyn RegistryStorage> = match &settings.place {
        Place::Bucket(text) => Arc::new(bucket::open(context, &runtime, text, false)?),
        Place::Folder(folder) => Arc::new(DiskStorage::open(folder).blame(Kind::Environment)?),
    };
    let tell = |line: &SyncLine| {
        if args.json {
            // A reader that is gone does not keep the rest from being mirrored.
            let _ = context.ui.json_line(line);
            return;
        }
        let step = match line.step {
            SyncStep::New => "new",
            SyncStep::Changed => "changed",
            SyncStep::Same => "same",
            SyncStep::Deleted => "deleted",
        };
        let digest = line.digest.as_deref().unwrap_or_default();
        let text = format!("{step:<8} {}:{} {digest}", line.repository, line.tag);
        let _ = context.ui.line(text.trim_end());
    };
    let running = once(
        settings.config.clone(),
        storage,
        &args.names,
        args.dry_run,
        &tell,
    );
    let reports = runtime.block_on(running)?;
    let mut code = ExitCode::SUCCESS;
    for (name, report) in &reports {
        if !report.failures.is_empty() {
            code = ExitCode::from(Kind::Registry.exit_code());
        }
        summary(context, args, name, report)?;
    }
    Ok(code)
}

fn summary(
    context: &Context,
    args: &RegistrySyncArgs,
    name: &str,
    report: &SyncReport,
) -> Result<(), CliError> {
    for failure in &report.failures {
        let repository = failure.repository.as_deref().unwrap_or("the source");
        let tag = failure.tag.as_ref().map(|tag| format!(":{tag}"));
        let tag = tag.unwrap_or_default();
        let reason = &failure.reason;
        context
            .ui
            .warning(&format!("{name}: {repository}{tag}: {reason}"));
    }
    if args.json {
        return context
            .ui
            .json_line(&json!({"sync": name, "dryRun": args.dry_run, "report": report}));
    }
    let would = if args.dry_run { "would set" } else { "set" };
    context.ui.line(&format!(
        "{name}: {} tags are the same, {would} {}, deleted {}; fetched {} blobs ({}), mounted {}; {} failed",
        report.same,
        report.set,
        report.deleted,
        report.blobs,
        human::size(report.bytes),
        report.mounted,
        report.failures.len(),
    ))
}
