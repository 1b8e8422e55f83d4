//! Changing how containers of an image run, and what is said of it.

use std::collections::BTreeMap;

use serde_json::Map;
use store::oci::{Annotations, ImageConfig, Manifest, Platform};

use super::{Edited, replace};
use crate::copy::{CopyError, Tree};

/// What is changed. Whatever is absent or empty stays.
#[derive(Clone, Debug, Default)]
pub struct Mutation {
    /// Variables, added or replaced.
    pub env: Vec<(String, String)>,
    /// Variables that are removed.
    pub unset_env: Vec<String>,
    /// Labels, added or replaced; an empty value removes one.
    pub labels: Vec<(String, String)>,
    /// The entry point; empty for none. With a new one, the command of the old one goes unless there is a new one, too.
    pub entrypoint: Option<Vec<String>>,
    /// The command; empty for none.
    pub cmd: Option<Vec<String>>,
    /// The user.
    pub user: Option<String>,
    /// The working directory.
    pub workdir: Option<String>,
    /// Ports, added: `80/tcp`.
    pub ports: Vec<String>,
    /// Volumes, added.
    pub volumes: Vec<String>,
    /// The signal that ends a container.
    pub stop_signal: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// The platform that it says it is for; of an image that stands alone.
    pub platform: Option<Platform>,
    /// Annotations of images, added or replaced; an empty value removes one.
    pub annotations: Vec<(String, String)>,
    /// Annotations of indexes, likewise.
    pub index_annotations: Vec<(String, String)>,
}

/// A tree whose images are changed, each in the same way.
pub async fn mutate(tree: &Tree, mutation: &Mutation) -> Result<Tree, CopyError> {
    let images = tree.real_images();
    if images.is_empty() {
        return Err(tree.unfit("there is no image in it"));
    }
    if mutation.platform.is_some() && images.len() > 1 {
        return Err(tree.unfit("it has images for several platforms: choose one of them"));
    }
    let mut edited = BTreeMap::new();
    for (digest, manifest) in images {
        let config = tree.config(&manifest).await?;
        let mut one = Edited {
            manifest: manifest.clone(),
            config: config.clone(),
            keeps_config: false,
            blobs: Vec::new(),
        };
        change_config(&mut one.config, mutation);
        change_annotations(&mut one.manifest, &mutation.annotations);
        // What would be written again byte by byte is not written again: its bytes may be of another make.
        if one.config != config || one.manifest != manifest {
            edited.insert(digest, one);
        }
    }
    let annotations = &mutation.index_annotations;
    replace(tree, &edited, |index| {
        annotate(&mut index.annotations, annotations);
    })
}

fn change_annotations(manifest: &mut Manifest, changes: &[(String, String)]) {
    annotate(&mut manifest.annotations, changes);
}

/// Adds, replaces and removes annotations.
pub(crate) fn annotate(annotations: &mut Option<Annotations>, changes: &[(String, String)]) {
    if changes.is_empty() {
        return;
    }
    let mut all = annotations.take().unwrap_or_default();
    change_map(&mut all, changes);
    *annotations = (!all.is_empty()).then_some(all);
}

fn change_map(map: &mut BTreeMap<String, String>, changes: &[(String, String)]) {
    for (key, value) in changes {
        match value.is_empty() {
            true => map.remove(key),
            false => map.insert(key.clone(), value.clone()),
        };
    }
}

fn change_config(config: &mut ImageConfig, mutation: &Mutation) {
    let run = &mut config.config;
    let named = |entry: &String, name: &str| {
        entry.split_once('=').map_or(entry.as_str(), |(key, _)| key) == name
    };
    run.env
        .retain(|entry| !mutation.unset_env.iter().any(|name| named(entry, name)));
    for (key, value) in &mutation.env {
        let text = format!("{key}={value}");
        match run.env.iter_mut().find(|entry| named(entry, key)) {
            Some(entry) => *entry = text,
            None => run.env.push(text),
        }
    }
    if !mutation.labels.is_empty() {
        let mut labels = run.labels.take().unwrap_or_default();
        change_map(&mut labels, &mutation.labels);
        run.labels = (!labels.is_empty()).then_some(labels);
    }
    let words = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
    if let Some(entrypoint) = &mutation.entrypoint {
        run.entrypoint = words(entrypoint);
        run.cmd = None;
    }
    if let Some(cmd) = &mutation.cmd {
        run.cmd = words(cmd);
    }
    for (field, value) in [
        (&mut run.user, &mutation.user),
        (&mut run.working_dir, &mutation.workdir),
    ] {
        if let Some(value) = value {
            field.clone_from(value);
        }
    }
    let add = |set: &mut Option<BTreeMap<String, Map<String, serde_json::Value>>>,
               more: &[String]| {
        if !more.is_empty() {
            let set = set.get_or_insert_default();
            set.extend(more.iter().map(|key| (key.clone(), Map::new())));
        }
    };
    add(&mut run.exposed_ports, &mutation.ports);
    add(&mut run.volumes, &mutation.volumes);
    for (field, value) in [
        (&mut run.stop_signal, &mutation.stop_signal),
        (&mut config.author, &mutation.author),
        (&mut config.created, &mutation.created),
    ] {
        if value.is_some() {
            field.clone_from(value);
        }
    }
    if let Some(platform) = &mutation.platform {
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
        config.variant.clone_from(&platform.variant);
    }
}
