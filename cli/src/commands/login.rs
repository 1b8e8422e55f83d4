//! `login` and `logout`, which keep docker's `config.json`.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use registry_client::{Client, Credential, DockerConfig};
use store::oci::reference::DOCKER_HUB;

use crate::args::{LoginArgs, LogoutArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui;

/// Longest password that is read from stdin, in bytes: tokens have a few thousand.
const PASSWORD_BYTES_MAX: u64 = 64 * 1024;

/// `longshore login`. Nothing is kept that the registry did not take.
pub fn login(context: &Context, args: &LoginArgs) -> Result<ExitCode, CliError> {
    let registry = registry(args.server.as_deref());
    let mut config = DockerConfig::read(&context.docker_config()?)?;
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .blame(Kind::Environment)?;
    let client = Client::new(context.client_options()?)?;
    runtime.block_on(client.check_login(&registry, &credential))?;
    config.store(&registry, &credential)?;
    config.write()?;
    context.ui.line("Login Succeeded")?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore logout`.
pub fn logout(context: &Context, args: &LogoutArgs) -> Result<ExitCode, CliError> {
    let registry = registry(args.server.as_deref());
    let mut config = DockerConfig::read(&context.docker_config()?)?;
    if config.erase(&registry)? {
        config.write()?;
        context
            .ui
            .line(&format!("Removing login credentials for {registry}"))?;
    } else {
        context.ui.note(&format!("Not logged in to {registry}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Host and port of what people write: docker takes URLs too.
fn registry(server: Option<&str>) -> String {
    let server = server.unwrap_or(DOCKER_HUB);
    let bare = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    let host = bare.split('/').next().unwrap_or(bare);
    match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
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
        let check = |text, expected: &str| assert_eq!(registry(text), expected);
        check(None, "docker.io");
        check(Some("https://index.docker.io/v1/"), "docker.io");
        check(Some("localhost:5000"), "localhost:5000");
        check(Some("http://r.example/v2/"), "r.example");
    }
}
