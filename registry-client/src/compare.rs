//! What there is to compare of an image: its configuration, its layers, and what they add up to: files and packages.
//!
//! ```text
//! Source ─► layers ─ merged, as a container would see them ─► tar ─ pipe ─► files, hashed ─► databases of packages
//! ```
//!
//! Nothing is unpacked. Layers of a registry lie in the temporary folder meanwhile, since merging reads each twice.

pub mod packages;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use store::layer::tar::read::{Kind, ReadError, Reader};
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Hasher, ImageConfig, Manifest, Platform};

use self::packages::{Databases, Package};
use crate::blocking::blocking;
use crate::copy::{CopyError, Source, Tree, Wanted};
use crate::edit::layers::export;

/// Most files of one image.
const FILES_MAX: u64 = 10_000_000;

/// How much is read at once, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// An image, for comparing.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The digest of its manifest.
    pub digest: Digest,
    /// Its layers, oldest first.
    pub layers: Vec<Descriptor>,
    /// Its configuration.
    pub config: ImageConfig,
    /// What a container of it would see, unless only the rest was asked for.
    pub root: Option<Root>,
}

/// What the layers of an image add up to.
#[derive(Clone, Debug, Default)]
pub struct Root {
    /// By path, without a slash before it.
    pub files: BTreeMap<Vec<u8>, FileFacts>,
    /// What is installed: versions, by who manages it and its name.
    pub packages: BTreeMap<Package, String>,
    /// Whether it has a database of RPM's, which is not read.
    pub has_rpm: bool,
}

/// A file, for comparing; times are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// In bytes, of a regular file.
    pub size: u64,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Of a regular file.
    pub content: Option<Digest>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

impl FileFacts {
    /// What it is, in a word.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::File | Kind::HardLink => "file",
            Kind::Symlink => "link",
            Kind::Char => "character device",
            Kind::BlockDevice => "block device",
            Kind::Directory => "directory",
            Kind::Fifo => "pipe",
        }
    }
}

impl Facts {
    /// Reads the image for a platform, by default this machine's; with `root` also its layers, which may need `spool`, a folder.
    pub async fn read(
        source: &Source,
        platform: Option<&Platform>,
        root: bool,
        spool: &Path,
    ) -> Result<Facts, CopyError> {
        let wanted = Wanted {
            platforms: vec![platform.cloned().unwrap_or_else(Platform::host)],
            lone: platform.is_none(),
            ..Wanted::default()
        };
        let tree = Tree::read(source, &wanted).await?;
        let ParsedManifest::Image(image) = tree.root_manifest().parsed() else {
            return Err(tree.unfit("it is an index of indexes: name one of its images"));
        };
        let image = Manifest::clone(image);
        let config = tree.config(&image).await?;
        let (digest, layers) = (tree.root(), image.layers.clone());
        let root = match root {
            false => None,
            true => {
                let spool = spool.to_owned();
                Some(blocking(move || read_root(&tree, &image, &spool)).await?)
            }
        };
        Ok(Facts {
            digest,
            layers,
            config,
            root,
        })
    }

    /// The sum of its layers' sizes, as they are packed.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// Merges the layers into a pipe that a thread reads.
fn read_root(tree: &Tree, image: &Manifest, spool: &Path) -> Result<Root, CopyError> {
    let (reader, writer) = io::pipe().map_err(CopyError::file("read", spool))?;
    let scanning = std::thread::Builder::new()
        .name("compare".to_owned())
        .spawn(move || scan(BufReader::with_capacity(READ_BYTES, reader)));
    let scanning = scanning.map_err(CopyError::file("read", spool))?;
    let mut out = io::BufWriter::with_capacity(READ_BYTES, writer);
    let written = export(tree, image, spool, &mut out).map(drop);
    let flushed = out.flush();
    drop(out);
    let scanned = scanning
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    // Why nobody reads on goes before that nobody does.
    let root = scanned.map_err(|error| tree.unfit(error.to_string()))?;
    written?;
    flushed.map_err(CopyError::file("read", spool))?;
    Ok(root)
}

fn scan(stream: impl Read) -> Result<Root, ReadError> {
    let mut root = Root::default();
    let mut databases = Databases::default();
    let mut tar = Reader::new(stream);
    let mut buffer = vec![0; READ_BYTES];
    let mut links = Vec::new();
    let mut count = 0;
    while let Some(entry) = tar.next_entry()? {
        count += 1;
        if count > FILES_MAX {
            return Err(ReadError::Limit {
                offset: entry.offset,
                what: "the number of files",
                limit: FILES_MAX,
            });
        }
        let path = bare(&entry.path).to_vec();
        root.has_rpm |= packages::is_rpms(&path);
        let mut content = None;
        if entry.kind == Kind::File {
            let mut hasher = Hasher::new(store::oci::DigestAlgorithm::Sha256);
            let mut kept = databases.keep(&path, entry.size);
            loop {
                let read = tar.read_content(&mut buffer)?;
                if read == 0 {
                    break;
                }
                hasher.update(&buffer[..read]);
                if let Some(kept) = &mut kept {
                    kept.extend_from_slice(&buffer[..read]);
                }
            }
            content = Some(hasher.finish());
            if let Some(kept) = kept {
                databases.read(&path, &kept, &mut root.packages);
            }
        }
        if entry.kind == Kind::HardLink {
            links.push((path.clone(), bare(&entry.link).to_vec()));
        }
        let facts = FileFacts {
            kind: entry.kind,
            mode: entry.metadata.mode,
            owner: (entry.metadata.uid, entry.metadata.gid),
            size: entry.size,
            link: entry.link,
            content,
            device: entry.device,
        };
        if !path.is_empty() {
            root.files.insert(path, facts);
        }
    }
    // Which of a file's names is the first is nobody's business.
    for (path, target) in links {
        if let Some(facts) = root.files.get(&target).cloned() {
            root.files.insert(path, facts);
        }
    }
    Ok(root)
}

/// A path without what does not tell it from others.
fn bare(path: &[u8]) -> &[u8] {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./").or(path.strip_prefix(b"/")) {
        path = rest;
    }
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path == b"." { b"" } else { path }
}
