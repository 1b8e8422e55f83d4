//! From solved steps to an image: DiffIDs, configuration, names, and the outputs that were asked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use store::content::archive::{ArchiveFormat, SavedImage};
use store::images::ImageId;
use store::layer::LayerId;
use store::layer::apply::{Form, UnpackOptions, unpack_into};
use store::layer::compress::CompressionChoice;
use store::layer::tar::{write_folders, write_tar};
use store::oci::{DiffId, Digest, ImageConfig, Platform, Reference, time};
use store::snapshot::View;
use store::{Store, StoreError};

use crate::BuildEnvironment;
use crate::cache::shared::{export as cache_export, inline};
use crate::error::{BuildError, ExportError};
use crate::joint::JointPlan;
use crate::lower::Plan;
use crate::ops::Operations;
use crate::request::{BuildOutcome, BuildRequest, Destination, Output};
use crate::transfer;

/// Whether layers will be needed as tars, so that it pays to prepare them while the build still runs.
pub(crate) fn wants_layers(request: &BuildRequest) -> Prepare {
    let mut prepare = Prepare::Nothing;
    for output in outputs(request) {
        prepare = prepare.max(match output {
            Output::Tar { .. } | Output::Local { .. } => Prepare::Nothing,
            Output::Image { push: false, .. } | Output::Docker { .. } => Prepare::Hash,
            Output::Image { push: true, layers } | Output::Oci { layers, .. } => {
                Prepare::Compress(layers)
            }
        });
    }
    prepare
}

/// Whether an output reads the files of the result, so that its layers have to be here.
pub(crate) fn reads_files(request: &BuildRequest) -> bool {
    let mut all = outputs(request).into_iter();
    all.any(|output| matches!(output, Output::Tar { .. } | Output::Local { .. }))
}

/// Whether an output reads the layers, be it as blobs.
pub(crate) fn reads_layers(request: &BuildRequest) -> bool {
    let mut all = outputs(request).into_iter();
    all.any(|output| !matches!(output, Output::Image { .. }))
}

/// What is done with a layer as soon as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Prepare {
    /// Nothing: nobody wants it as a tar.
    Nothing,
    /// Its DiffID is computed.
    Hash,
    /// It is compressed, too.
    Compress(CompressionChoice),
}

/// Prepares one layer. What fails here fails again, and is reported, when the layer is exported.
pub(crate) fn prepare_layer(store: &Store, layer: &LayerId, prepare: Prepare) {
    if prepare == Prepare::Nothing {
        return;
    }
    if let Ok(diff_id) = store.ensure_diff_id(layer)
        && let Prepare::Compress(choice) = prepare
    {
        let _made = store.layer_as(&diff_id, choice);
    }
}

/// Puts the results of a solved plan wherever the request wants them.
pub(crate) fn export(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    plan: &JointPlan,
    operations: &Operations<'_>,
    outcome: &mut BuildOutcome,
) -> Result<(), BuildError> {
    let store = environment.store;
    let mut built = Vec::new();
    for (platform, plan) in request.platforms.iter().zip(&plan.images) {
        let (id, names) = keep(store, request, plan, operations)?;
        built.push(Built {
            platform,
            plan,
            id,
            names,
        });
    }
    // An index needs the manifests, and those compressed layers: it is made where it is wanted.
    let makes_index = request.makes_index();
    let here = built
        .iter()
        .find(|built| built.platform.satisfies(&Platform::host()))
        .unwrap_or(&built[0]);
    outcome.image = Some(here.id.0);
    for output in outputs(request) {
        if environment.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        match output {
            Output::Image { push, layers } => {
                name(store, request, here)?;
                if push && makes_index {
                    push_index(environment, request, &built, layers, operations, outcome)
                        .map_err(failed)?;
                } else if push {
                    push_image(environment, request, &here.id, layers, operations, outcome)
                        .map_err(failed)?;
                }
            }
            Output::Oci { dest, layers } if makes_index => {
                let index = index_archive(store, request, &built, layers, &dest).map_err(failed)?;
                outcome.image = Some(index);
            }
            Output::Oci { dest, layers } => {
                let format = ArchiveFormat::Oci(layers);
                archive(store, request, &here.id, format, &dest).map_err(failed)?;
            }
            Output::Docker { dest } => {
                one(&built, "docker").map_err(failed)?;
                archive(store, request, &here.id, ArchiveFormat::Docker, &dest).map_err(failed)?;
            }
            Output::Tar { dest } if built.len() > 1 => {
                folders(store, &built, operations, &dest).map_err(failed)?;
            }
            Output::Tar { dest } => {
                tar(store, here.plan, operations, &dest).map_err(failed)?;
            }
            Output::Local { dest } if built.len() > 1 => {
                for built in &built {
                    let folder = dest.join(built.folder());
                    local(store, built.plan, operations, &folder).map_err(failed)?;
                }
            }
            Output::Local { dest } => {
                local(store, here.plan, operations, &dest).map_err(failed)?;
            }
        }
    }
    Ok(())
}

/// An image for one platform.
struct Built<'a> {
    platform: &'a Platform,
    plan: &'a Plan,
    id: ImageId,
    /// What it was called before this build.
    names: Vec<Reference>,
}

impl Built<'_> {
    /// The folder it has to itself beside others: `linux_arm_v7`.
    fn folder(&self) -> String {
        self.platform.to_string().replace('/', "_")
    }
}

/// Refuses several images where the format has room for one.
fn one(built: &[Built<'_>], kind: &'static str) -> Result<(), ExportError> {
    match built.len() {
        1 => Ok(()),
        count => Err(ExportError::SeveralPlatforms { kind, count }),
    }
}

/// Writes the image's configuration into the store; its id, and the names that it has there.
fn keep(
    store: &Store,
    request: &BuildRequest,
    plan: &Plan,
    operations: &Operations<'_>,
) -> Result<(ImageId, Vec<Reference>), BuildError> {
    let config = config(store, request, plan, operations).map_err(failed)?;
    let bytes = serde_json::to_vec(&config).expect("a configuration has only text keys");
    let id = ImageId(Digest::of(&bytes));
    // An image that is here already is not written again: a build in which nothing changed changes nothing.
    let known = store.images().image(&id).map_err(StoreError::from)?;
    match known {
        Some(image) => Ok((id, image.names)),
        None => {
            let kept = store.images().put_image(&bytes, None);
            Ok((kept.map_err(StoreError::from)?, Vec::new()))
        }
    }
}

/// Gives the image the names that were asked for.
fn name(store: &Store, request: &BuildRequest, built: &Built<'_>) -> Result<(), BuildError> {
    let new = request.tags.iter().filter(|tag| !built.names.contains(tag));
    for tag in new {
        let tagged = store.images().tag(tag, &built.id);
        tagged.map_err(StoreError::from)?;
    }
    Ok(())
}

fn failed(error: ExportError) -> BuildError {
    BuildError::Export(Box::new(error))
}

/// The outputs, with the default where none were named.
fn outputs(request: &BuildRequest) -> Vec<Output> {
    if request.outputs.is_empty() {
        return vec![Output::Image {
            push: false,
            layers: CompressionChoice::AS_THEY_ARE,
        }];
    }
    request.outputs.clone()
}

/// The image's configuration: lowering's, with DiffIDs, history and times filled in.
///
/// Every time in it is that of a step which once ran, never of this build, so that a build in which everything hits gives
/// the same image again.
fn config(
    store: &Store,
    request: &BuildRequest,
    plan: &Plan,
    operations: &Operations<'_>,
) -> Result<ImageConfig, ExportError> {
    let mut config = plan.config.clone();
    let mut created = config.created.as_deref().and_then(time::unix_time);
    let mut diff_ids: Vec<DiffId> = plan
        .root
        .map(|root| operations.base_diff_ids(root))
        .unwrap_or_default();
    let mut history = plan.base_history.clone();
    for step in &plan.history {
        let mut entry = step.entry.clone();
        let layer = step.vertex.and_then(|vertex| operations.layer(vertex));
        if let Some(ran) = step.vertex.and_then(|vertex| operations.created(vertex)) {
            created = Some(created.map_or(ran, |known| known.max(ran)));
        }
        match layer {
            Some(layer) => diff_ids.push(store.ensure_diff_id(&layer)?),
            None => entry.empty_layer = true,
        }
        entry.created = Some(time::rfc3339(request.epoch.or(created).unwrap_or(0)));
        history.push(entry);
    }
    config.created = Some(time::rfc3339(request.epoch.or(created).unwrap_or(0)));
    config.rootfs.diff_ids = diff_ids;
    config.history = history;
    // A base image's is of its own steps.
    config.extra.remove(inline::FIELD);
    if request.cache_to.iter().any(|export| export.place.is_none()) {
        let roots: Vec<usize> = plan.root.iter().map(|root| root.0).collect();
        let records = cache_export::inline(operations, &roots)?;
        let value = inline::encode(&records);
        config.extra.insert(inline::FIELD.to_owned(), value);
    }
    Ok(config)
}

fn push_image(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    id: &ImageId,
    layers: CompressionChoice,
    operations: &Operations<'_>,
    outcome: &mut BuildOutcome,
) -> Result<(), ExportError> {
    if request.tags.is_empty() {
        return Err(ExportError::NoTag);
    }
    for tag in &request.tags {
        let report = transfer::push(
            environment.store,
            environment.remote,
            id,
            tag,
            layers,
            operations.progress,
        )?;
        outcome.pushed.push((tag.clone(), report.digest));
    }
    Ok(())
}

/// Pushes every image under its digest, and then under each name the index of them.
fn push_index(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    built: &[Built<'_>],
    layers: CompressionChoice,
    operations: &Operations<'_>,
    outcome: &mut BuildOutcome,
) -> Result<(), ExportError> {
    if request.tags.is_empty() {
        return Err(ExportError::NoTag);
    }
    let store = environment.store;
    let ids: Vec<ImageId> = built.iter().map(|built| built.id).collect();
    let mut done = BTreeSet::new();
    for tag in &request.tags {
        // Two tags of one repository need the images there once.
        let is_new = done.insert((tag.registry(), tag.repository()));
        for id in ids.iter().filter(|_| is_new) {
            let progress = operations.progress;
            transfer::push_untagged(store, environment.remote, id, tag, layers, progress)?;
        }
        let index = store.index_to_push(&ids, layers)?;
        let digest = transfer::push_index(environment.remote, tag, &index)?;
        outcome.image = Some(digest);
        outcome.pushed.push((tag.clone(), digest));
    }
    Ok(())
}

/// Writes a layout whose names are those of an index; its digest.
fn index_archive(
    store: &Store,
    request: &BuildRequest,
    built: &[Built<'_>],
    layers: CompressionChoice,
    dest: &Destination,
) -> Result<Digest, ExportError> {
    let ids: Vec<ImageId> = built.iter().map(|built| built.id).collect();
    match dest {
        Destination::Folder(folder) => {
            Ok(store.save_index_directory(&ids, &request.tags, layers, folder)?)
        }
        Destination::Stdout | Destination::File(_) => write_to(dest, |out| {
            Ok(store.save_index(&ids, &request.tags, layers, out)?)
        }),
    }
}

fn archive(
    store: &Store,
    request: &BuildRequest,
    id: &ImageId,
    format: ArchiveFormat,
    dest: &Destination,
) -> Result<(), ExportError> {
    let images = [SavedImage {
        id: *id,
        names: request.tags.clone(),
    }];
    match dest {
        Destination::Folder(folder) => Ok(store.save_directory(&images, format, folder)?),
        Destination::Stdout | Destination::File(_) => {
            write_to(dest, |out| Ok(store.save(&images, format, out)?))
        }
    }
}

/// The root file system as one tar.
fn tar(
    store: &Store,
    plan: &Plan,
    operations: &Operations<'_>,
    dest: &Destination,
) -> Result<(), ExportError> {
    let view = view(store, plan, operations)?;
    write_to(dest, |out| {
        write_tar(&path_of(&view), out)?;
        Ok(())
    })
}

/// The root file systems of several images as one tar, each in a folder.
fn folders(
    store: &Store,
    built: &[Built<'_>],
    operations: &Operations<'_>,
    dest: &Destination,
) -> Result<(), ExportError> {
    let views = built
        .iter()
        .map(|built| view(store, built.plan, operations));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    let named = built.iter().zip(&views);
    let named: Vec<_> = named
        .map(|(built, view)| (built.folder(), path_of(view)))
        .collect();
    write_to(dest, |out| Ok(write_folders(&named, out)?))
}

/// The root file system as a folder: through a tar, so that owners, links and devices come out right.
fn local(
    store: &Store,
    plan: &Plan,
    operations: &Operations<'_>,
    dest: &Path,
) -> Result<(), ExportError> {
    let write = |source| ExportError::Write {
        path: dest.to_path_buf(),
        source,
    };
    std::fs::create_dir_all(dest).map_err(write)?;
    let folder = File::open(dest).map_err(write)?;
    let view = view(store, plan, operations)?;
    let (reader, writer) = io::pipe().map_err(write)?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut out = BufWriter::with_capacity(PIPE_BYTES, writer);
            write_tar(&path_of(&view), &mut out)?;
            out.flush().map_err(write)
        });
        let unpacked = unpack_into(folder.as_fd(), reader, &UnpackOptions::new(Form::Tree));
        // Where unpacking failed, packing fails for want of a reader; the first is the reason.
        let packed = packing
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        unpacked?;
        packed
    })
}

/// Bytes handed from the packing to the unpacking thread at a time.
const PIPE_BYTES: usize = 64 * 1024;

fn view(store: &Store, plan: &Plan, operations: &Operations<'_>) -> Result<View, ExportError> {
    let layers = plan
        .root
        .map(|root| operations.layers(root.0))
        .unwrap_or_default();
    Ok(store.snapshots().view(&layers)?)
}

/// A path to a detached tree; the dot makes it one of the directory, not of the link in `/proc`.
fn path_of(view: &View) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", view.as_fd().as_raw_fd()))
}

/// Writes a file aside and renames it once it is whole; standard output gets the bytes as they come.
fn write_to<T>(
    dest: &Destination,
    write: impl FnOnce(&mut dyn Write) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    let Destination::File(path) = dest else {
        let mut out = BufWriter::new(io::stdout().lock());
        let written = write(&mut out)?;
        out.flush().map_err(|source| ExportError::Write {
            path: PathBuf::from("/dev/stdout"),
            source,
        })?;
        return Ok(written);
    };
    let failed = |source| ExportError::Write {
        path: path.clone(),
        source,
    };
    let mut aside = path.clone().into_os_string();
    aside.push(format!(".{}.partial", std::process::id()));
    let aside = PathBuf::from(aside);
    let result = (|| {
        let mut out = BufWriter::new(File::create(&aside).map_err(failed)?);
        let written = write(&mut out)?;
        out.flush().map_err(failed)?;
        std::fs::rename(&aside, path).map_err(failed)?;
        Ok(written)
    })();
    if result.is_err() {
        // Nothing half-written stays; what went wrong is told already.
        let _removed = std::fs::remove_file(&aside);
    }
    result
}
