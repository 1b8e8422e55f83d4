//! TLS: rustls with ring, given explicitly so that no process-wide provider is needed. Built only for hosts that are
//! reached by https.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::ClientError;

/// A configuration that trusts nobody, for connections that are never encrypted: the HTTP library wants one, and its
/// own would load every root certificate first.
pub(crate) fn unused() -> ClientConfig {
    builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// What a host's connections trust and prove.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    roots: Vec<CertificateDer<'static>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Extra {
    /// Adds files that are named one by one: authorities, and the client's certificate and key. Blocks.
    pub(crate) fn add(
        &mut self,
        ca: &[PathBuf],
        identity: Option<&(PathBuf, PathBuf)>,
    ) -> Result<(), ClientError> {
        for path in ca {
            self.roots.extend(certificates(path)?);
        }
        if let Some((certificate, key)) = identity {
            let read = PrivateKeyDer::from_pem_file(key);
            let read = read.map_err(|error| setup(key, &error))?;
            self.identity = Some((certificates(certificate)?, read));
        }
        Ok(())
    }

    /// Adds what a directory in the form of `certs.d/HOST` has.
    fn add_all(&mut self, entries: fs::ReadDir) -> Result<(), ClientError> {
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.roots.extend(certificates(&path)?),
                Some("cert") => {
                    let key = path.with_extension("key");
                    self.add(&[], Some(&(path, key)))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads docker's `certs.d` for a host: in each of `directories`, `HOST/*.crt` are trusted authorities, and
/// `HOST/NAME.cert` with `HOST/NAME.key` prove the client. Blocks.
pub(crate) fn certs_d(directories: &[PathBuf], host: &str) -> Result<Extra, ClientError> {
    let mut extra = Extra::default();
    for directory in directories {
        if let Ok(entries) = fs::read_dir(directory.join(host)) {
            extra.add_all(entries)?;
        }
    }
    Ok(extra)
}

/// Reads such files in one directory, which has to be there. Blocks.
pub(crate) fn certificates_in(directory: &Path) -> Result<Extra, ClientError> {
    let mut extra = Extra::default();
    let entries = fs::read_dir(directory).map_err(|error| setup(directory, &error))?;
    extra.add_all(entries)?;
    Ok(extra)
}

/// The certificates of a PEM file. Blocks.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| setup(path, &error))?
        .collect();
    certificates.map_err(|error| setup(path, &error))
}

/// The roots that the system trusts. Blocks for some milliseconds.
pub(crate) fn native_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "some system certificates cannot be read");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The configuration for a host: `roots` and the host's own are trusted; with `unverified` everybody is.
pub(crate) fn config(
    roots: &RootCertStore,
    extra: Extra,
    unverified: bool,
) -> Result<ClientConfig, ClientError> {
    let wants_client = if unverified {
        builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(ring::default_provider())))
    } else {
        let mut roots = roots.clone();
        roots.add_parsable_certificates(extra.roots);
        builder().with_root_certificates(roots)
    };
    let mut config = match extra.identity {
        Some((chain, key)) => wants_client
            .with_client_auth_cert(chain, key)
            .map_err(|error| ClientError::Setup {
                what: "client certificate".to_owned(),
                reason: error.to_string(),
            })?,
        None => wants_client.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
}

fn setup(path: &Path, error: &dyn std::fmt::Display) -> ClientError {
    ClientError::Setup {
        what: path.display().to_string(),
        reason: error.to_string(),
    }
}

/// Takes any certificate, for hosts that the user named as insecure; the handshake's signatures still have to be right.
#[derive(Debug)]
struct Unverified(CryptoProvider);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
