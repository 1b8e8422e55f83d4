//! One function per command. Each takes the context and its flags, and returns the exit code.

mod archive;
mod build;
mod cache;
mod call;
mod check;
mod collect;
mod container;
mod debug;
mod explain;
mod history;
mod images;
mod inspect;
mod interrupt;
mod login;
mod network;
mod outcome;
mod reach;
mod registry;
mod remote;
mod security;
mod short_name;
mod sources;
mod space;
mod steps;
mod sync;
mod system;
mod transfer;

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use store::Store;
use store::images::ImageRow;

use crate::args::{Command, ContainerCommand, RegistryCommand, StoreCommand};
use crate::context::Context;
use crate::error::{CliError, Kind};

/// Runs a command.
pub fn run(context: &Context, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Build(args) => build::build(context, &args),
        Command::Save(args) => archive::save(context, &args),
        Command::Load(args) => archive::load(context, &args),
        Command::Push(args) => transfer::push(context, &args),
        Command::Pull(args) => transfer::pull(context, &args),
        Command::Run(args) => container::run::run(context, &args),
        Command::Create(args) => container::create::create(context, &args),
        Command::Start(args) => container::run::start(context, &args),
        Command::Stop(args) => container::lifecycle::stop(context, &args),
        Command::Restart(args) => container::lifecycle::restart(context, &args),
        Command::Kill(args) => container::lifecycle::kill(context, &args),
        Command::Wait(args) => container::lifecycle::wait(context, &args),
        Command::Pause(args) => container::lifecycle::pause(context, &args, true),
        Command::Unpause(args) => container::lifecycle::pause(context, &args, false),
        Command::Rm(args) => container::lifecycle::rm(context, &args),
        Command::Rename(args) => container::lifecycle::rename(context, &args),
        Command::Update(args) => container::update::update(context, &args),
        Command::Ps(args) => container::ps::ps(context, &args),
        Command::Logs(args) => container::logs::logs(context, &args),
        Command::Exec(args) => container::exec::exec(context, &args),
        Command::Attach(args) => container::exec::attach(context, &args),
        Command::Cp(args) => container::copy::cp(context, &args),
        Command::Top(args) => container::look::top(context, &args),
        Command::Stats(args) => container::look::stats(context, &args),
        Command::Port(args) => container::ports::port(context, &args),
        Command::Diff(args) => container::look::diff(context, &args),
        Command::Commit(args) => container::image::commit(context, &args),
        Command::Export(args) => container::image::export(context, &args),
        Command::Import(args) => container::image::import(context, &args),
        Command::Container(ContainerCommand::Prune(args)) => {
            container::lifecycle::prune(context, &args)
        }
        Command::Volume(command) => container::volume::volume(context, &command),
        Command::Images(args) => images::images(context, &args),
        Command::Inspect(args) => inspect::inspect(context, &args),
        Command::Tag(args) => images::tag(context, &args),
        Command::Rmi(args) => images::rmi(context, &args),
        Command::History(args) => history::history(context, &args),
        Command::Explain(args) => explain::explain(context, &args),
        Command::Cache(command) => cache::cache(context, &command),
        Command::Network(command) => network::network(context, &command),
        Command::Debug(args) => debug::debug(context, &args),
        Command::Du(args) => space::du(context, &args),
        Command::Prune(args) => space::prune(context, &args),
        Command::Store(StoreCommand::Check(args)) => check::check(context, &args),
        Command::Copy(args) => remote::copy::copy(context, &args),
        Command::Search(args) => remote::search::search(context, &args),
        Command::Remote(command) => remote::run(context, &command),
        Command::Login(args) => login::login(context, &args),
        Command::Logout(args) => login::logout(context, &args),
        Command::Registry(RegistryCommand::Serve(args)) => registry::serve(context, &args),
        Command::Registry(RegistryCommand::Gc(args)) => registry::gc(context, &args),
        Command::Registry(RegistryCommand::Verify(args)) => registry::verify(context, &args),
        Command::Registry(RegistryCommand::Sync(args)) => registry::sync(context, &args),
        Command::Registry(RegistryCommand::Stats(args)) => registry::stats(context, &args),
        Command::Registry(RegistryCommand::Migrate(args)) => registry::migrate(context, &args),
        Command::Registry(RegistryCommand::Htpasswd(args)) => registry::htpasswd(context, &args),
        Command::Version(args) => system::version(context, &args),
        Command::StoreSync => sync::sync(context),
        Command::ContainerNames(args) => container::wiring::names(context, &args),
        Command::ContainerFiles(args) => container::copy::inside(context, &args),
        Command::Info(args) => system::info(context, &args),
    }
}

/// The image that a text names.
fn find_image(context: &Context, store: &Store, text: &str) -> Result<ImageRow, CliError> {
    let found = short_name::find(context, store, text)?;
    found.ok_or_else(|| {
        CliError::new(Kind::Input, format!("no such image: `{text}`"))
            .hint("`longshore images` lists what is here, `longshore pull` fetches what is not")
    })
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}
