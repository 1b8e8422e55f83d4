//! `logs`: what a container has printed.

use std::collections::VecDeque;
use std::process::ExitCode;

use runner::container::log::{Line, Reader, Source};
use store::oci::time::unix_time;

use super::Known;
use super::lifecycle::moment;
use super::watch::Watch;
use crate::args::LogsArgs;
use crate::context::Context;
use crate::error::{CliError, Kind};

/// `longshore logs`.
pub fn logs(context: &Context, args: &LogsArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let known = Known::find(&store, &args.container)?;
    drop(store);
    if known.record.log.is_none() {
        let message = format!(
            "nothing is kept of what `{}` prints (--log-driver none)",
            args.container
        );
        return Err(CliError::new(Kind::Input, message));
    }
    let since = args.since.as_deref().map(moment).transpose()?;
    let until = args.until.as_deref().map(moment).transpose()?;
    let tail = match args.tail.as_str() {
        "all" => None,
        // As docker: a negative number is all of them.
        count if count.parse::<i64>().is_ok_and(|count| count < 0) => None,
        count => Some(count.parse::<usize>().map_err(|_| {
            CliError::new(Kind::Usage, format!("`{count}` is no number of lines"))
                .hint("expected a number, or all")
        })?),
    };
    let is_wanted = |line: &Line| {
        let time = unix_time(&line.time).unwrap_or(0);
        since.is_none_or(|since| time >= since) && until.is_none_or(|until| time <= until)
    };
    let watch = match args.follow {
        true => Some(Watch::on(known.container.path())?),
        false => None,
    };
    let mut reader = Reader::open(&known.folder)?;
    let mut last: VecDeque<Line> = VecDeque::new();
    while let Some(line) = reader.next_line()? {
        if !is_wanted(&line) {
            continue;
        }
        match tail {
            None => print(context, &line, args)?,
            Some(count) => {
                last.push_back(line);
                while last.len() > count {
                    last.pop_front();
                }
            }
        }
    }
    for line in &last {
        print(context, line, args)?;
    }
    let Some(watch) = watch else {
        return Ok(ExitCode::SUCCESS);
    };
    loop {
        // Before what it has written is read: then nothing comes after.
        let is_live = known.folder.state()?.status.is_live();
        while let Some(line) = reader.next_line()? {
            if is_wanted(&line) {
                print(context, &line, args)?;
            }
        }
        if !is_live {
            return Ok(ExitCode::SUCCESS);
        }
        watch.wait()?;
    }
}

/// Each line to the stream that it came from.
fn print(context: &Context, line: &Line, args: &LogsArgs) -> Result<(), CliError> {
    let text = match args.timestamps {
        true => format!("{} {}", line.time, line.log),
        false => line.log.clone(),
    };
    match line.stream {
        Source::Stdout => context.ui.data(text),
        Source::Stderr => context.ui.error_data(text),
    }
}
