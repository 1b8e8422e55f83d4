//! `digest`, `config`, `inspect`, `manifest get` and `referrers`: what there is to see of one image.

use std::collections::BTreeSet;
use std::process::ExitCode;

use registry_client::copy::{CopyError, Place, Source};
use registry_client::edit::{is_image_config, read_config};
use serde_json::{Value, json};
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Platform, RawManifest};

use super::{Session, image_for, place, tell, written};
use crate::args::{DigestArgs, OneImageArgs, ReferrersArgs, RemoteInspectArgs, TellArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::template::Format;

/// Most referrers of one listing, and of how many levels.
const REFERRERS_MAX: usize = 10_000;
const LEVELS_MAX: usize = 8;

struct Seen {
    place: Place,
    source: Source,
}

/// Opens what a command looks at and runs `job` on it.
fn see<'a>(context: &'a Context, args: &OneImageArgs) -> Result<(Session<'a>, Seen), CliError> {
    let place = place(&args.image)?;
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let source = session.look(&place)?;
    Ok((session, Seen { place, source }))
}

/// `longshore remote digest`.
pub fn digest(context: &Context, args: &DigestArgs) -> Result<ExitCode, CliError> {
    let (args, full_ref) = (&args.one, args.full_ref);
    let (session, seen) = see(context, args)?;
    let platform = args.platform.as_ref();
    let digest = match (&seen.source, platform) {
        // Without reading the manifest, where the registry says it.
        (Source::Registry { reference, .. }, None) => {
            let found = session.run(|client| async move { client.resolve(reference).await })?;
            found.digest
        }
        (source, platform) => {
            session
                .run(|_| async move { image_for(source, platform).await })?
                .0
        }
    };
    let value = json!({ "name": seen.place.to_string(), "digest": digest });
    tell(context, &args.common.tell, &value, || match full_ref {
        true => format!("{}\n", written(&seen.place, &digest)),
        false => format!("{digest}\n"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore remote manifest get`.
pub fn manifest(context: &Context, args: &OneImageArgs) -> Result<ExitCode, CliError> {
    let (session, seen) = see(context, args)?;
    let (source, platform) = (&seen.source, args.platform.as_ref());
    let (_, raw) = session.run(|_| async move { image_for(source, platform).await })?;
    document(context, &args.common.tell, raw.bytes())
}

/// Prints a document byte for byte, so that its digest can be checked; or what a template makes of it.
fn document(context: &Context, how: &TellArgs, bytes: &[u8]) -> Result<ExitCode, CliError> {
    match &how.format {
        None | Some(Format::Table) => context.ui.data(bytes)?,
        Some(_) => {
            let value: Value = serde_json::from_slice(bytes).blame(Kind::Input)?;
            tell(context, how, &value, String::new)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An image's configuration, as bytes.
async fn config_bytes(
    source: &Source,
    platform: Option<&Platform>,
) -> Result<(RawManifest, Vec<u8>), CopyError> {
    let host = Platform::host();
    let (_, raw) = source.image(platform.unwrap_or(&host)).await?;
    let bytes = match raw.parsed() {
        ParsedManifest::Image(image) => source.read_small(&image.config, 16 * 1024 * 1024).await?,
        ParsedManifest::Index(_) => Vec::new(),
    };
    Ok((raw, bytes))
}

/// `longshore remote config`.
pub fn config(context: &Context, args: &OneImageArgs) -> Result<ExitCode, CliError> {
    let (session, seen) = see(context, args)?;
    let (source, platform) = (&seen.source, args.platform.as_ref());
    let (_, bytes) = session.run(|_| async move { config_bytes(source, platform).await })?;
    document(context, &args.common.tell, &bytes)
}

/// `longshore remote inspect`: the fields of `skopeo inspect`.
pub fn inspect(context: &Context, args: &RemoteInspectArgs) -> Result<ExitCode, CliError> {
    if args.raw {
        return manifest(context, &args.one);
    }
    let (lists_tags, args) = (!args.no_tags, &args.one);
    let (session, seen) = see(context, args)?;
    let (source, platform) = (&seen.source, args.platform.as_ref());
    let value = session.run(|_| async move { describe(source, platform, lists_tags).await })?;
    match &args.common.tell.format {
        None | Some(Format::Table) => context.ui.json_document(&value)?,
        Some(_) => tell(context, &args.common.tell, &value, String::new)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn describe(
    source: &Source,
    platform: Option<&Platform>,
    lists_tags: bool,
) -> Result<Value, CopyError> {
    let (digest, root) = source.root().await?;
    let host = Platform::host();
    let (_, raw) = source.image(platform.unwrap_or(&host)).await?;
    let ParsedManifest::Image(image) = raw.parsed() else {
        return Ok(Value::Null);
    };
    let mut value = json!({
        "Name": match source {
            Source::Registry { reference, .. } => reference.name(),
            Source::Local { local, .. } => local.name().to_owned(),
        },
        "Digest": digest,
        "MediaType": root.media_type(),
        "Layers": image.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(),
        "LayersData": image.layers.iter().map(layer_data).collect::<Vec<_>>(),
        "Annotations": image.annotations,
    });
    if lists_tags && let Source::Registry { client, reference } = source {
        // Not every registry lists tags, and nobody asked for them alone.
        value["RepoTags"] = json!(client.tags(reference).await.unwrap_or_default());
    }
    if let ParsedManifest::Index(index) = root.parsed() {
        value["Platforms"] = json!(platforms(&index.manifests));
    }
    if is_image_config(image.config.media_type.as_str()) {
        let config = read_config(source, &image.config).await?;
        value["Created"] = json!(config.created);
        value["Architecture"] = json!(config.architecture);
        value["Os"] = json!(config.os);
        value["Labels"] = json!(config.config.labels);
        value["Env"] = json!(config.config.env);
    } else {
        let own = image.artifact_type.clone();
        value["ArtifactType"] = json!(own.unwrap_or_else(|| image.config.media_type.0.clone()));
    }
    Ok(value)
}

fn layer_data(layer: &Descriptor) -> Value {
    json!({
        "MIMEType": layer.media_type,
        "Digest": layer.digest,
        "Size": layer.size,
        "Annotations": layer.annotations,
    })
}

fn platforms(entries: &[Descriptor]) -> Vec<String> {
    let stated = entries.iter().filter_map(|entry| entry.platform.as_ref());
    stated.map(Platform::to_string).collect()
}

/// One referrer, with what is about it.
struct Node {
    entry: Descriptor,
    about: Vec<Node>,
}

/// `longshore remote referrers`.
pub fn referrers(context: &Context, args: &ReferrersArgs) -> Result<ExitCode, CliError> {
    let place = place(&args.image)?;
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let source = session.look(&place)?;
    let (of, platform) = (&source, args.platform.as_ref());
    let wanted = args.artifact_type.as_deref();
    let (digest, nodes) = session.run(|_| async move {
        let (digest, _) = image_for(of, platform).await?;
        let mut seen = BTreeSet::from([digest]);
        let nodes = about(of, digest, wanted, &mut seen).await?;
        Ok::<_, CopyError>((digest, nodes))
    })?;
    let value = json!({
        "name": place.to_string(),
        "digest": digest,
        "referrers": nodes.iter().map(node_json).collect::<Vec<_>>(),
    });
    tell(context, &args.common.tell, &value, || {
        let mut text = format!("{}\n", written(&place, &digest));
        draw(&mut text, &nodes, "");
        text
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What is about a manifest, level by level; each once.
async fn about(
    source: &Source,
    digest: Digest,
    wanted: Option<&str>,
    seen: &mut BTreeSet<Digest>,
) -> Result<Vec<Node>, CopyError> {
    // Flat, with each one's parent before it: a tree is made of it at the end.
    let mut flat: Vec<(Option<usize>, Descriptor)> = Vec::new();
    let mut level: Vec<(Option<usize>, Digest)> = vec![(None, digest)];
    for depth in 0..LEVELS_MAX {
        let mut next = Vec::new();
        for (parent, subject) in level {
            for entry in source.referrers(&subject).await? {
                let fits = wanted.is_none_or(|kind| entry.artifact_type.as_deref() == Some(kind));
                if (depth == 0 && !fits) || !seen.insert(entry.digest) {
                    continue;
                }
                next.push((Some(flat.len()), entry.digest));
                flat.push((parent, entry));
            }
        }
        if flat.len() > REFERRERS_MAX {
            return Err(CopyError::TooMuch {
                place: source.name(),
                what: "referrers",
                max: REFERRERS_MAX as u64,
            });
        }
        if next.is_empty() {
            break;
        }
        level = next;
    }
    let mut children: Vec<Vec<Node>> = flat.iter().map(|_| Vec::new()).collect();
    let mut roots = Vec::new();
    for (at, (parent, entry)) in flat.into_iter().enumerate().rev() {
        let mut about = std::mem::take(&mut children[at]);
        about.reverse();
        let node = Node { entry, about };
        match parent {
            Some(parent) => children[parent].push(node),
            None => roots.push(node),
        }
    }
    roots.reverse();
    Ok(roots)
}

fn node_json(node: &Node) -> Value {
    json!({
        "digest": node.entry.digest,
        "mediaType": node.entry.media_type,
        "artifactType": node.entry.artifact_type,
        "size": node.entry.size,
        "annotations": node.entry.annotations,
        "referrers": node.about.iter().map(node_json).collect::<Vec<_>>(),
    })
}

fn draw(text: &mut String, nodes: &[Node], indent: &str) {
    for (at, node) in nodes.iter().enumerate() {
        let last = at + 1 == nodes.len();
        let (branch, rest) = if last {
            ("└── ", "    ")
        } else {
            ("├── ", "│   ")
        };
        let kind = node.entry.artifact_type.as_deref().unwrap_or("-");
        let kind = crate::ui::text::one_line(kind);
        *text += &format!("{indent}{branch}{kind} {}\n", node.entry.digest);
        draw(text, &node.about, &format!("{indent}{rest}"));
    }
}
