//! `--insecure`, `--tls-verify`, `--cert-dir`, `--authfile` and `--creds`: how the registries that a command names are reached.

use std::path::Path;

use registry_client::{Credential, DockerConfig, Keychain, Options};
use store::oci::Reference;

use crate::args::{ReachArgs, SidesArgs, TlsArgs};
use crate::error::{CliError, Kind};

/// What a command names in registries: a repository, or a whole registry.
#[derive(Clone, Debug)]
pub struct Named {
    /// `host[:port]`
    pub host: String,
    /// Empty for a whole registry.
    pub repository: String,
}

impl Named {
    /// A whole registry.
    pub fn registry(host: impl Into<String>) -> Named {
        Named {
            host: host.into(),
            repository: String::new(),
        }
    }

    /// What its credentials are kept by.
    fn key(&self) -> String {
        match self.repository.as_str() {
            "" => self.host.clone(),
            repository => format!("{}/{repository}", self.host),
        }
    }
}

impl From<&Reference> for Named {
    fn from(reference: &Reference) -> Named {
        Named {
            host: reference.registry().to_owned(),
            repository: reference.repository().to_owned(),
        }
    }
}

/// Adds to `options` what the command line says of the registries that it names.
pub fn apply(reach: &ReachArgs, named: &[Named], options: &mut Options) -> Result<(), CliError> {
    if let Some(path) = &reach.authfile {
        must_be_there(path)?;
        options.keychain = Keychain::files([path.clone()]);
    }
    apply_alone(reach, named, options)
}

/// The same for both sides of a copy: what is said of one of them goes before what is said of both.
pub fn apply_sides(
    sides: &SidesArgs,
    source: &[Named],
    target: &[Named],
    options: &mut Options,
) -> Result<(), CliError> {
    for (reach, named) in [(sides.source(), source), (sides.target(), target)] {
        if let Some(path) = &reach.authfile {
            must_be_there(path)?;
            let file = DockerConfig::read(path)?;
            for one in named {
                if let Some(credential) = file.lookup(&one.host, &one.repository)? {
                    options.keychain = options.keychain.clone().with(&one.key(), credential);
                }
            }
        }
        apply_alone(&reach, named, options)?;
    }
    Ok(())
}

/// What is said of a registry's certificates.
pub fn apply_tls(tls: &TlsArgs, hosts: &[String], options: &mut Options) {
    if tls.is_insecure() {
        options.insecure.extend_from_slice(hosts);
    }
    if let Some(folder) = &tls.cert_dir {
        for host in hosts {
            options.certs_of.insert(host.clone(), folder.clone());
        }
    }
}

fn apply_alone(reach: &ReachArgs, named: &[Named], options: &mut Options) -> Result<(), CliError> {
    let hosts: Vec<String> = named.iter().map(|one| one.host.clone()).collect();
    apply_tls(&reach.tls, &hosts, options);
    if let Some(text) = &reach.creds {
        let credential = credential(text)?;
        for one in named {
            let keychain = options.keychain.clone();
            options.keychain = keychain.with(&one.key(), credential.clone());
        }
    }
    Ok(())
}

/// `USER:PASSWORD`; what was given is not shown again.
fn credential(text: &str) -> Result<Credential, CliError> {
    match text.split_once(':') {
        Some((username, password)) if !username.is_empty() && !password.is_empty() => {
            Ok(Credential::Basic {
                username: username.to_owned(),
                password: password.to_owned(),
            })
        }
        _ => {
            let message = "`--creds` is not USER:PASSWORD";
            Err(CliError::new(Kind::Usage, message).hint("`longshore login` asks for a password"))
        }
    }
}

/// A file that is named is meant to be read.
fn must_be_there(path: &Path) -> Result<(), CliError> {
    if path.exists() {
        return Ok(());
    }
    let message = format!("there is no `{}`", path.display());
    Err(CliError::new(Kind::Input, message).hint("`longshore login --authfile` writes it"))
}
