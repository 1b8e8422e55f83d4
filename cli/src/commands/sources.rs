//! Where a build's files come from, as the command line says it.

use std::collections::BTreeMap;
use std::io::{Read, Stdin};

use builder::contexts::main_context::MainRequest;
use builder::contexts::{NamedContext, NamedContexts, RESERVED_NAMES, context_key, dockerfile};
use builder::lower::KEEP_GIT_DIR;
use builder::request::RunSettings;
use builder::solve::cancel::Cancel;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::args::BuildArgs;
use crate::error::{Blame, CliError, Kind};

/// `--build-context NAME=SOURCE`, each folder with its ignore file.
pub fn named_contexts(given: &[String]) -> Result<NamedContexts, CliError> {
    let mut contexts = NamedContexts::new();
    for text in given {
        let wrong = |reason: &str| {
            let message = format!("invalid build context `{text}`: {reason}");
            CliError::new(Kind::Usage, message)
        };
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("expected NAME=SOURCE"))?;
        let key = context_key(name)
            .ok_or_else(|| wrong("its name is none that an image or a stage could have"))?;
        let plain = key.split_once("::").map_or(&*key, |(name, _)| name);
        if RESERVED_NAMES.contains(&plain) {
            return Err(wrong(&format!("`{plain}` cannot stand for anything else")));
        }
        let mut context = NamedContext::parse(value).blame(Kind::Usage)?;
        if let NamedContext::Folder { path, ignore } = &mut context {
            *ignore = dockerfile::ignore(path, None, None).blame(Kind::Input)?;
        }
        contexts.insert(key, context);
    }
    Ok(contexts)
}

/// What the positional argument, `-f` and `--ignorefile` say.
pub fn main_request(
    args: &BuildArgs,
    build_args: &BTreeMap<String, String>,
    run: RunSettings,
) -> MainRequest {
    MainRequest {
        context: args.context.clone(),
        file: args.file.clone(),
        ignore_file: args.ignore_file.clone(),
        keep_git_dir: build_args.get(KEEP_GIT_DIR).cloned(),
        run,
    }
}

/// Standard input, until the build is cancelled: who waits for input must not wait for more of it then.
pub struct Input<'a> {
    cancel: &'a Cancel,
    stdin: Stdin,
}

impl Input<'_> {
    pub fn new(cancel: &Cancel) -> Input<'_> {
        Input {
            cancel,
            stdin: std::io::stdin(),
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut fds = [
            PollFd::new(&self.stdin, PollFlags::IN),
            PollFd::new(self.cancel, PollFlags::IN),
        ];
        while let Err(Errno::INTR) = poll(&mut fds, None) {}
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        // Past the buffer of the library's own handle, which `poll` does not see.
        Ok(rustix::io::read(&self.stdin, buffer)?)
    }
}
