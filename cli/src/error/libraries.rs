//! Of each library's error, whose fault it is and what to do about it: the one table.

use registry_client::{ClientError, CredentialError, ErrorKind};
use runner::UserNsError;
use store::StoreError;
use store::images::ImageError;
use store::oci::ReferenceError;

use super::{CliError, Kind};

impl From<ReferenceError> for CliError {
    fn from(error: ReferenceError) -> CliError {
        CliError::new(Kind::Input, error)
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> CliError {
        let kind = match error {
            ImageError::Missing { .. }
            | ImageError::Ambiguous { .. }
            | ImageError::SeveralNames { .. }
            | ImageError::BadConfig { .. }
            | ImageError::BadManifest { .. }
            | ImageError::ConfigTooLarge { .. } => Kind::Input,
            _ => Kind::Environment,
        };
        CliError::new(kind, error)
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> CliError {
        match error {
            StoreError::Image(error) => error.into(),
            error => CliError::new(Kind::Environment, error),
        }
    }
}

impl From<UserNsError> for CliError {
    fn from(error: UserNsError) -> CliError {
        CliError::new(Kind::Environment, error).hint(
            "run as root, or allow user namespaces and give this user ids in /etc/subuid and /etc/subgid",
        )
    }
}

impl From<CredentialError> for CliError {
    fn from(error: CredentialError) -> CliError {
        CliError::new(Kind::Environment, error)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        let (kind, hint) = client(&error);
        let error = CliError::new(kind, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// Whose fault a registry's error is, and what to do about it.
pub fn client(error: &ClientError) -> (Kind, Option<String>) {
    let (kind, hint) = match error.kind() {
        ErrorKind::Unreachable => (
            Kind::Environment,
            Some(
                "is the registry running, and is its name right? `longshore registry serve` starts one here",
            ),
        ),
        ErrorKind::Tls => (
            Kind::Environment,
            Some("put its certificate authority into ~/.config/docker/certs.d/HOST:PORT/ca.crt"),
        ),
        ErrorKind::Local => (Kind::Environment, None),
        ErrorKind::Unauthorized => (Kind::Registry, Some("log in with `longshore login`")),
        ErrorKind::RateLimited => (
            Kind::Registry,
            Some("wait, or log in: users may ask more often"),
        ),
        _ => (Kind::Registry, None),
    };
    (kind, hint.map(str::to_owned))
}
