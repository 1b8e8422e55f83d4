//! Collecting by the policy of the configuration file, at the end of commands that make or fetch something.

use store::Store;

use crate::context::Context;

/// Collects if it is time. What goes wrong is not worth an error: what the command was for is done.
pub fn if_due(context: &Context, store: &Store) {
    let policy = match (context.config(), store.disk()) {
        (Ok(config), Ok(disk)) => config.gc.policy_on(disk),
        (Err(error), _) => {
            tracing::debug!(%error, "nothing is collected");
            None
        }
        (_, Err(error)) => {
            tracing::debug!(%error, "nothing is collected");
            None
        }
    };
    let Some(policy) = policy else {
        return;
    };
    match store.collect_if_due(&policy) {
        Ok(None) => {}
        Ok(Some(report)) => {
            tracing::info!(
                items = report.items.len(),
                bytes = report.bytes,
                "collected"
            );
        }
        Err(error) => tracing::warn!(%error, "the cache could not be collected"),
    }
}
