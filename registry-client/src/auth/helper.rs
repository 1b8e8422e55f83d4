//! The credential helper protocol: `docker-credential-NAME get|store|erase`, a registry or JSON on its input, JSON on
//! its output. Everything here blocks.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{Credential, CredentialError};
use crate::error::printable;

/// The user name under which helpers keep identity tokens.
const TOKEN_USER: &str = "<token>";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    username: String,
    secret: String,
}

/// The credential that helper `name` keeps for `key`; `None` where it says that it has none.
pub(crate) fn load(name: &str, key: &str) -> Result<Option<Credential>, CredentialError> {
    let run = run(name, "get", key.as_bytes())?;
    if !run.success {
        // Helpers tell "there is none" by their words only.
        let words = format!("{} {}", run.output, run.errors).to_ascii_lowercase();
        if words.contains("credentials not found") {
            return Ok(None);
        }
        return Err(run.failed());
    }
    let entry: Entry = serde_json::from_str(&run.output).map_err(|_| CredentialError::Helper {
        program: run.program.clone(),
        action: "get",
        reason: "its output is not the protocol's JSON".to_owned(),
    })?;
    Ok(match (entry.username.as_str(), entry.secret.as_str()) {
        ("", "") => None,
        (TOKEN_USER, _) => Some(Credential::IdentityToken {
            username: None,
            token: entry.secret,
        }),
        _ => Some(Credential::Basic {
            username: entry.username,
            password: entry.secret,
        }),
    })
}

/// Has helper `name` keep a credential.
pub(crate) fn store(name: &str, key: &str, credential: &Credential) -> Result<(), CredentialError> {
    let (username, secret) = match credential {
        Credential::Basic { username, password } => (username.as_str(), password),
        Credential::IdentityToken { token, .. } | Credential::RegistryToken(token) => {
            (TOKEN_USER, token)
        }
    };
    let entry = Entry {
        server_url: key.to_owned(),
        username: username.to_owned(),
        secret: secret.clone(),
    };
    let input = serde_json::to_vec(&entry).expect("three texts are JSON");
    let run = run(name, "store", &input)?;
    if run.success {
        Ok(())
    } else {
        Err(run.failed())
    }
}

/// Has helper `name` forget a credential; it is no error that there was none.
pub(crate) fn erase(name: &str, key: &str) -> Result<(), CredentialError> {
    let run = run(name, "erase", key.as_bytes())?;
    let words = format!("{} {}", run.output, run.errors).to_ascii_lowercase();
    if run.success || words.contains("credentials not found") {
        return Ok(());
    }
    Err(run.failed())
}

struct Run {
    program: String,
    action: &'static str,
    success: bool,
    output: String,
    errors: String,
}

impl Run {
    fn failed(&self) -> CredentialError {
        // A helper's standard output may hold a secret only where it succeeded.
        let words = match self.errors.trim() {
            "" => self.output.trim(),
            errors => errors,
        };
        CredentialError::Helper {
            program: self.program.clone(),
            action: self.action,
            reason: match words {
                "" => "it said nothing".to_owned(),
                words => printable(words),
            },
        }
    }
}

fn run(name: &str, action: &'static str, input: &[u8]) -> Result<Run, CredentialError> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| CredentialError::Helper {
        program: program.clone(),
        action,
        reason,
    };
    // The name comes from a file: it may choose among programs on PATH, not name any file.
    if name.is_empty() || name.contains('/') {
        return Err(failed(format!("`{name}` is no helper's name")));
    }
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut stdin = child.stdin.take().expect("it was asked to be piped");
    // A helper may answer without reading; its exit code tells.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    Ok(Run {
        program,
        action,
        success: output.status.success(),
        output: String::from_utf8_lossy(&output.stdout).into_owned(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
