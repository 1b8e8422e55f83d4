//! `login` and `logout`, which keep docker's `config.json`.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use builder::remote::Remote;
use builder::solve::cancel::Cancel;
use registry_client::{Credential, DockerConfig};
use serde_json::json;
use store::oci::Reference;
use store::oci::reference::{DOCKER_HUB, ReferenceError};

use super::interrupt::Watch;
use super::reach;
use crate::args::{LoginArgs, LogoutArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui;

/// Longest password that is read from stdin, in bytes: tokens have a few thousand.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// `longshore login`. Nothing is kept that the registry did not take.
pub fn login(context: &Context, args: &LoginArgs) -> Result<ExitCode, CliError> {
    let server = Server::read(args.server.as_deref())?;
    let mut config = DockerConfig::read(&file(context, args.authfile.as_deref())?)?;
    if args.get_login {
        return get_login(context, &config, &server);
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None => {
            only_from_a_terminal("user name", "--username")?;
            ui::ask("Username: ").blame(Kind::Environment)?
        }
    };
    let password = match &args.password {
        Some(password) => {
            context
                .ui
                .warning("others on this machine can see --password: --password-stdin is safer");
            password.clone()
        }
        None if args.password_stdin => read_password()?,
        None => {
            only_from_a_terminal("password", "--password-stdin")?;
            ui::ask_secret("Password: ").blame(Kind::Environment)?
        }
    };
    if username.is_empty() || password.is_empty() {
        let message = "neither the user name nor the password may be empty";
        return Err(CliError::new(Kind::Usage, message));
    }
    let credential = Credential::Basic { username, password };
    let mut options = context.client_options()?;
    reach::apply_tls(&args.tls, std::slice::from_ref(&server.host), &mut options);
    let cancel = Cancel::new().blame(Kind::Environment)?;
    let watch = Watch::start(&cancel)?;
    let remote = Remote::new(Box::new(move || options.clone())).with_cancel(&cancel);
    let (host, shown) = (&server.host, &credential);
    let checked = remote.run(|client| async move { client.check_login(host, shown).await });
    watch.stop();
    config.store(&server.key(), &checked?)?;
    config.write()?;
    match args.json {
        true => context.ui.json_line(&json!({
            "registry": server.key(),
            "username": credential.username(),
        }))?,
        false => context.ui.line("Login Succeeded")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `--get-login`: who is known, in one file.
fn get_login(
    context: &Context,
    config: &DockerConfig,
    server: &Server,
) -> Result<ExitCode, CliError> {
    let found = config.lookup(&server.host, &server.path)?;
    let Some(username) = found.as_ref().and_then(Credential::username) else {
        let message = format!("not logged in to {}", server.key());
        return Err(CliError::new(Kind::Input, message));
    };
    context.ui.line(username)?;
    Ok(ExitCode::SUCCESS)
}

/// The file that is read and written.
fn file(context: &Context, given: Option<&Path>) -> Result<PathBuf, CliError> {
    match given {
        Some(path) => Ok(path.to_owned()),
        None => context.docker_config(),
    }
}

/// `longshore logout`.
pub fn logout(context: &Context, args: &LogoutArgs) -> Result<ExitCode, CliError> {
    let key = Server::read(args.server.as_deref())?.key();
    let mut config = DockerConfig::read(&file(context, args.authfile.as_deref())?)?;
    let found = config.erase(&key)?;
    if found {
        config.write()?;
    }
    match (args.json, found) {
        (true, _) => {
            let value = json!({ "registry": key, "removed": found });
            context.ui.json_line(&value)?;
        }
        (false, true) => {
            let text = format!("Removing login credentials for {key}");
            context.ui.line(&text)?;
        }
        (false, false) => context.ui.note(&format!("Not logged in to {key}")),
    }
    Ok(ExitCode::SUCCESS)
}

/// Where somebody logs in.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    /// `host[:port]`
    host: String,
    /// The repositories that it is for, all those below a path; empty for the whole registry.
    path: String,
}

impl Server {
    /// Reads what people write. Docker's form is a host or a URL, of which the path means nothing; containers' tools have
    /// `host/path` for a part of a registry.
    fn read(text: Option<&str>) -> Result<Server, CliError> {
        let text = text.unwrap_or(DOCKER_HUB);
        let url = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        let bare = url.unwrap_or(text).trim_end_matches('/');
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            host => host,
        };
        let path = match path {
            "v1" | "v2" => "",
            _ if url.is_some() => "",
            path => path,
        };
        let name = match path {
            "" => format!("{host}/x"),
            path => format!("{host}/{path}"),
        };
        let wrong = |reason: &str| {
            let message = format!("`{text}` is no registry: {reason}");
            CliError::new(Kind::Usage, message).hint("give HOST[:PORT] or HOST[:PORT]/PATH")
        };
        let reference: Reference = name
            .parse()
            .map_err(|error: ReferenceError| wrong(&error.reason))?;
        if reference.registry() != host {
            return Err(wrong("its host has neither a dot nor a port"));
        }
        if path.contains([':', '@']) {
            return Err(wrong("it has a tag or a digest"));
        }
        Ok(Server {
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }

    /// What its credentials are kept under.
    fn key(&self) -> String {
        match self.path.as_str() {
            "" => self.host.clone(),
            path => format!("{}/{path}", self.host),
        }
    }
}

pub(super) fn only_from_a_terminal(what: &str, flag: &str) -> Result<(), CliError> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    let message = format!("cannot ask for the {what}: stdin is not a terminal");
    Err(CliError::new(Kind::Usage, message).hint(format!("give it with {flag}")))
}

/// The password on stdin, without the end of its line.
pub(super) fn read_password() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin()
        .take(PASSWORD_BYTES_MAX)
        .read_to_string(&mut text)
        .blame(Kind::Input)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_called_by_host_and_port() {
        let check = |text, expected: &str| {
            let server = Server::read(text);
            let key = server.map_or_else(|error| error.to_string(), |server| server.key());
            assert_eq!(key, expected);
        };
        check(None, "docker.io");
        check(Some("https://index.docker.io/v1/"), "docker.io");
        check(Some("index.docker.io/v1/"), "docker.io");
        check(Some("localhost:5000"), "localhost:5000");
        check(Some("localhost"), "localhost");
        check(Some("[::1]:5000"), "[::1]:5000");
        check(Some("http://r.example/v2/"), "r.example");
        check(Some("https://r.example/team"), "r.example");
        check(Some("r.example/team/web"), "r.example/team/web");
        let tagged = "`r.example/web:1` is no registry: it has a tag or a digest";
        check(Some("r.example/web:1"), tagged);
        let short = "`team` is no registry: its host has neither a dot nor a port";
        check(Some("team"), short);
    }
}
