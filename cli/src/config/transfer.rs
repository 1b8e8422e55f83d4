//! `[transfer]`: how patiently and how many at once registries are asked.

use std::time::Duration;

use registry_client::Options;

use super::table::{Table, TableError};

/// What the table says; what it does not say stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferConfig {
    parallel: Option<usize>,
    attempts: Option<u32>,
    retry_wait: Option<Duration>,
    connect_timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    answer_timeout: Option<Duration>,
}

impl TransferConfig {
    pub(super) fn read(table: &mut Table<'_>) -> Result<TransferConfig, TableError> {
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let parallel = table.number_from(1, "parallel")?.map(count);
        Ok(TransferConfig {
            parallel: parallel.map(|count| count as usize),
            attempts: table.number_from(1, "attempts")?.map(count),
            retry_wait: table.duration("retry_wait")?,
            connect_timeout: table.duration("connect_timeout")?,
            idle_timeout: table.duration("idle_timeout")?,
            answer_timeout: table.duration("answer_timeout")?,
        })
    }

    /// Options that behave so.
    pub fn applied_to(&self, mut options: Options) -> Options {
        let timeouts = &mut options.timeouts;
        timeouts.connect = self.connect_timeout.unwrap_or(timeouts.connect);
        timeouts.idle = self.idle_timeout.unwrap_or(timeouts.idle);
        timeouts.answer = self.answer_timeout.unwrap_or(timeouts.answer);
        options.parallel = self.parallel.unwrap_or(options.parallel);
        options.retry.attempts = self.attempts.unwrap_or(options.retry.attempts);
        options.retry.base = self.retry_wait.unwrap_or(options.retry.base);
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_said_replaces_and_all_else_stays() {
        let text =
            "[transfer]\nparallel = 2\nattempts = 9\nretry_wait = \"1s\"\nidle_timeout = \"90s\"\n";
        let config = Config::parse(text).unwrap().transfer;
        let (usual, options) = (Options::default(), config.applied_to(Options::default()));
        assert_eq!((options.parallel, options.retry.attempts), (2, 9));
        assert_eq!(options.retry.base, Duration::from_secs(1));
        assert_eq!(options.timeouts.idle, Duration::from_secs(90));
        assert_eq!(options.timeouts.connect, usual.timeouts.connect);
        assert_eq!(options.timeouts.answer, usual.timeouts.answer);
        let error = Config::parse("[transfer]\nparallel = 0\n").unwrap_err();
        assert!(error.to_string().contains("at least 1"), "{error}");
    }
}
