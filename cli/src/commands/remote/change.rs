//! `manifest put` and `delete`, `tag`, `rm` and `attach`: small changes in a registry.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use registry_client::copy::{self, Target};
use registry_client::edit::{Attachment, artifact};
use registry_client::referrers::descriptor_of;
use registry_client::{Client, ClientError, Silent};
use serde_json::json;
use store::MANIFEST_BYTES_MAX;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, RawManifest, Reference};

use super::{Session, image_for, pairs, reference, tell, written};
use crate::args::{
    ManifestDeleteArgs, ManifestPutArgs, RemoteAttachArgs, RemoteRmArgs, RemoteTagArgs, TellArgs,
};
use crate::commands::reach::Named;
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use registry_client::copy::Place;

/// `longshore remote manifest put`.
pub fn put(context: &Context, args: &ManifestPutArgs) -> Result<ExitCode, CliError> {
    let to = reference(&args.name)?;
    let bytes = read_manifest(args.file.as_deref())?;
    let raw = RawManifest::parse(bytes, args.media_type.as_deref()).blame(Kind::Input)?;
    if let Some(digest) = to.digest()
        && digest != raw.digest()
    {
        let message = format!("the manifest has digest {}, not {digest}", raw.digest());
        return Err(CliError::new(Kind::Input, message));
    }
    let place = Place::Registry(to.clone());
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let (name, manifest) = (&to, &raw);
    let digest = session.run(|client| async move {
        let digest = client.put_manifest(name, manifest).await?;
        if let Some(subject) = subject(manifest)
            && !client.lists_referrers(name).await?
        {
            let listed = [descriptor_of(manifest)];
            client
                .add_fallback_referrers(name, &subject, &listed)
                .await?;
        }
        Ok::<_, ClientError>(digest)
    })?;
    wrote(context, &args.common.tell, &to, &digest)
}

fn subject(raw: &RawManifest) -> Option<Digest> {
    let subject: Option<&Descriptor> = match raw.parsed() {
        ParsedManifest::Image(image) => image.subject.as_ref(),
        ParsedManifest::Index(index) => index.subject.as_ref(),
    };
    subject.map(|subject| subject.digest)
}

fn read_manifest(file: Option<&Path>) -> Result<Vec<u8>, CliError> {
    let limit = MANIFEST_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => std::fs::File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(|error| format!("cannot read `{}`: {error}", path.display()))
            .blame(Kind::Input)?,
        None => std::io::stdin()
            .take(limit)
            .read_to_end(&mut bytes)
            .blame(Kind::Input)?,
    };
    Ok(bytes)
}

/// Tells what was written, or removed.
fn wrote(
    context: &Context,
    how: &TellArgs,
    name: &Reference,
    digest: &Digest,
) -> Result<ExitCode, CliError> {
    let value = json!({ "name": name.familiar(), "digest": digest });
    tell(context, how, &value, || {
        let place = Place::Registry(name.clone());
        format!("{}\n", written(&place, digest))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore remote manifest delete`.
pub fn delete(context: &Context, args: &ManifestDeleteArgs) -> Result<ExitCode, CliError> {
    let name = reference(&args.name)?;
    if name.digest().is_none() && !args.force_tag_dereference {
        let message = format!("`{}` is a tag, and its manifest may have others", args.name);
        return Err(CliError::new(Kind::Usage, message).hint(
            "give NAME@sha256:…, or --force-tag-dereference; `longshore remote rm` removes a tag alone",
        ));
    }
    let place = Place::Registry(name.clone());
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let of = &name;
    let digest = session.run(|client| async move { remove_manifest(&client, of).await })?;
    wrote(context, &args.common.tell, &name, &digest)
}

/// Removes a manifest, and its entry in a list of referrers that the registry does not keep itself.
async fn remove_manifest(client: &Client, name: &Reference) -> Result<Digest, ClientError> {
    let raw = client.manifest(name).await?;
    let digest = name.digest().unwrap_or(raw.digest());
    client.delete_manifest(&name.with_digest(digest)).await?;
    if let Some(subject) = subject(&raw)
        && !client.lists_referrers(name).await?
    {
        client
            .remove_fallback_referrer(name, &subject, &digest)
            .await?;
    }
    Ok(digest)
}

/// `longshore remote rm`. What cannot be removed does not keep the rest from being removed.
pub fn rm(context: &Context, args: &RemoteRmArgs) -> Result<ExitCode, CliError> {
    let names: Vec<Reference> = args
        .names
        .iter()
        .map(|text| reference(text))
        .collect::<Result<_, _>>()?;
    for (text, name) in args.names.iter().zip(&names) {
        // `latest` is filled in for other commands; here it would be a trap.
        let said = name
            .tag()
            .is_none_or(|tag| text.ends_with(&format!(":{tag}")));
        if name.digest().is_none() && !said {
            let message = format!("`{text}` has neither tag nor digest");
            return Err(CliError::new(Kind::Usage, message).hint("give NAME:TAG or NAME@DIGEST"));
        }
    }
    let named: Vec<Named> = names.iter().map(Named::from).collect();
    let session = Session::with(context, &args.common.reach, &named)?;
    let mut code = ExitCode::SUCCESS;
    for name in &names {
        let removed = session.run(|client| async move {
            match name.digest() {
                Some(_) => remove_manifest(&client, name).await.map(drop),
                None => client.remove_tag(name).await,
            }
        });
        match removed {
            Ok(()) => {
                let value = json!({ "removed": name.familiar() });
                tell(context, &args.common.tell, &value, || {
                    format!("Removed: {}\n", name.familiar())
                })?;
            }
            Err(error) if error.kind == Kind::Interrupted => return Err(error),
            Err(error) => {
                context.ui.error(&error);
                code = ExitCode::from(&error);
            }
        }
    }
    Ok(code)
}

/// `longshore remote tag`.
pub fn tag(context: &Context, args: &RemoteTagArgs) -> Result<ExitCode, CliError> {
    let name = reference(&args.name)?;
    let tagged: Vec<Reference> = args
        .tags
        .iter()
        .map(|tag| name.with_tag(tag))
        .collect::<Result<_, _>>()?;
    let place = Place::Registry(name.clone());
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let (of, to) = (&name, &tagged);
    let digest = session.run(|client| async move {
        let raw = client.manifest(of).await?;
        for tagged in to {
            client.put_manifest(tagged, &raw).await?;
        }
        Ok::<_, ClientError>(of.digest().unwrap_or(raw.digest()))
    })?;
    for tagged in &tagged {
        let value = json!({ "name": tagged.familiar(), "digest": digest });
        tell(context, &args.common.tell, &value, || {
            format!("{}\n", tagged.familiar())
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `longshore remote attach`.
pub fn attach(context: &Context, args: &RemoteAttachArgs) -> Result<ExitCode, CliError> {
    let name = reference(&args.name)?;
    let annotations = pairs(&args.annotations, "annotation")?;
    let files = args.files.iter().map(|text| file(text)).collect();
    let place = Place::Registry(name.clone());
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let source = session.look(&place)?;
    let (of, platform) = (&source, args.platform.as_ref());
    let (subject, raw) = session.run(|_| async move { image_for(of, platform).await })?;
    let kind = raw.media_type().as_str();
    let about = Descriptor::new(kind, subject, raw.bytes().len() as u64);
    let attachment = Attachment {
        artifact_type: args.artifact_type.clone(),
        files,
        annotations: annotations.into_iter().collect(),
        subject: Some(about),
    };
    let tree = artifact(&args.name, &attachment)?;
    let (tree, to) = (&tree, name.with_digest(tree.root()));
    let report = session.run(|client| async move {
        let target = Target::Registry {
            client,
            reference: to,
            tags: Vec::new(),
            force: false,
        };
        copy::write(tree, &target, Arc::new(Silent)).await
    })?;
    wrote(context, &args.common.tell, &name, &report.digest)
}

/// A file and its media type.
fn file(text: &str) -> (PathBuf, String) {
    match text.rsplit_once(':') {
        Some((path, kind)) if kind.contains('/') && !path.is_empty() => {
            (PathBuf::from(path), kind.to_owned())
        }
        _ => (PathBuf::from(text), "application/octet-stream".to_owned()),
    }
}
