//! `blob …`: single blobs of a repository.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;

use registry_client::copy::{CopyError, Source};
use registry_client::edit::file_blob;
use registry_client::{Client, ClientError, Pushed, Silent};
use serde_json::json;
use store::oci::{Descriptor, Digest, Reference};

use super::{Session, repository, tell, with_digest};
use crate::args::{BlobArgs, BlobGetArgs, BlobPutArgs};
use crate::commands::reach::Named;
use crate::context::Context;
use crate::error::{CliError, Kind};

/// What blobs are where nobody says.
const BYTES: &str = "application/octet-stream";

/// `longshore remote blob head`.
pub fn head(context: &Context, args: &BlobArgs) -> Result<ExitCode, CliError> {
    let (name, digest) = with_digest(&args.name, "a blob")?;
    let session = Session::with(context, &args.common.reach, &[Named::from(&name)])?;
    let size = size(&session, &name, &digest)?;
    let value = json!({ "name": name.familiar_name(), "digest": digest, "size": size });
    tell(context, &args.common.tell, &value, || format!("{size}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn size(session: &Session<'_>, name: &Reference, digest: &Digest) -> Result<u64, CliError> {
    let found = session.run(|client| async move { client.blob_exists(name, digest).await })?;
    found.ok_or_else(|| {
        let message = format!("`{}` has no blob {digest}", name.familiar_name());
        CliError::new(Kind::Registry, message)
    })
}

/// `longshore remote blob delete`.
pub fn delete(context: &Context, args: &BlobArgs) -> Result<ExitCode, CliError> {
    let (name, digest) = with_digest(&args.name, "a blob")?;
    let session = Session::with(context, &args.common.reach, &[Named::from(&name)])?;
    let (of, which) = (&name, &digest);
    session.run(|client| async move { client.delete_blob(of, which).await })?;
    let value = json!({ "removed": name.familiar() });
    tell(context, &args.common.tell, &value, || {
        format!("Removed: {}\n", name.familiar())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore remote blob get`. A file appears under its name when it is whole and right.
pub fn get(context: &Context, args: &BlobGetArgs) -> Result<ExitCode, CliError> {
    let (name, digest) = with_digest(&args.name, "a blob")?;
    let session = Session::with(context, &args.reach, &[Named::from(&name)])?;
    let size = size(&session, &name, &digest)?;
    let descriptor = Descriptor::new(BYTES, digest, size);
    let of = &name;
    let reader = session.run(|client| async move { open(client, of, &descriptor).await })?;
    match &args.output {
        None => context.ui.stream(|out| pump(reader, out))?,
        Some(path) => {
            let folder = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => std::path::Path::new("."),
            };
            let file = store::fs::TempFile::create(folder).map_err(CopyError::from)?;
            pump(reader, &mut file.file())?;
            file.publish(path).map_err(CopyError::from)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(
    client: Client,
    name: &Reference,
    descriptor: &Descriptor,
) -> Result<Box<dyn Read + Send>, CopyError> {
    let source = Source::Registry {
        client,
        reference: name.clone(),
    };
    registry_client::copy::open_blob(&source, descriptor)
}

fn pump(mut reader: Box<dyn Read + Send>, out: &mut dyn Write) -> Result<(), CliError> {
    std::io::copy(&mut reader, out).map_err(
        |error| match registry_client::BlobReader::client_error(&error) {
            Some(client) => CliError::from(client),
            None if error.kind() == std::io::ErrorKind::InvalidData => {
                CliError::new(Kind::Registry, error)
            }
            None => CliError::new(Kind::Environment, error),
        },
    )?;
    Ok(())
}

/// `longshore remote blob put`.
pub fn put(context: &Context, args: &BlobPutArgs) -> Result<ExitCode, CliError> {
    let name = repository(&args.name)?;
    let session = Session::with(context, &args.common.reach, &[Named::from(&name)])?;
    let (descriptor, source) = file_blob(&args.file, BYTES)?;
    let (of, blob) = (&name, &descriptor);
    let pushed = session.run(|client| async move {
        let pushed = client
            .push_blob(of, blob, source, &[], Arc::new(Silent))
            .await?;
        Ok::<_, ClientError>(pushed)
    })?;
    let value = json!({
        "name": name.familiar_name(),
        "digest": descriptor.digest,
        "size": descriptor.size,
        "uploaded": pushed == Pushed::Uploaded,
    });
    tell(context, &args.common.tell, &value, || {
        format!("{}\n", name.with_digest(descriptor.digest).familiar())
    })?;
    Ok(ExitCode::SUCCESS)
}
