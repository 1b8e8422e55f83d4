//! What is asked of a build, and what comes out of it.

pub mod cache;
pub mod run;
pub mod size;

pub use cache::{CacheExport, CacheImport};
pub use run::{Entitlement, RunSettings, SecretSource, SecretText};

use std::collections::BTreeMap;
use std::path::PathBuf;

use store::layer::compress::CompressionChoice;
use store::oci::{Digest, Platform, Reference};

use crate::contexts::{MainContext, NamedContexts};
use crate::dockerfile::Problems;
use crate::lower::is_true;

/// One build.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// How the Dockerfile is called in messages.
    pub dockerfile_name: String,
    /// The Dockerfile.
    pub dockerfile: String,
    /// The main context; none when the Dockerfile came alone, on standard input or from a URL.
    pub context: Option<MainContext>,
    /// Patterns of the main context's ignore file, in order.
    pub ignore: Vec<String>,
    /// `--build-context`, by [`context_key`](crate::contexts::context_key).
    pub contexts: NamedContexts,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// `--target`: a stage's name or number; none for the last.
    pub target: Option<String>,
    /// What is built for: an image for each, put together in an index where there are several. Never empty, none twice.
    pub platforms: Vec<Platform>,
    /// `-t`, in the order given.
    pub tags: Vec<Reference>,
    /// `--no-cache`: run everything.
    pub no_cache: bool,
    /// `--pull`: ask the registry for base images even if they are here.
    pub pull: bool,
    /// `-o`. Empty: keep the image in the store.
    pub outputs: Vec<Output>,
    /// Most steps at a time.
    pub jobs: usize,
    /// One time for everything in the image, in seconds since 1970. `SOURCE_DATE_EPOCH` among the build arguments, or as a
    /// global `ARG` with a default, goes before it.
    pub epoch: Option<i64>,
    /// What `RUN` steps are given, and may do.
    pub run: RunSettings,
    /// `--cache-from`.
    pub cache_from: Vec<CacheImport>,
    /// `--cache-to`.
    pub cache_to: Vec<CacheExport>,
    /// When the main context was made, for `SOURCE_DATE_EPOCH=context`, in seconds since 1970; none for a folder.
    pub made: Option<i64>,
}

impl BuildRequest {
    /// Whether the result is an index of images, also where that has only one: `BUILDKIT_MULTI_PLATFORM` asks for it.
    pub fn makes_index(&self) -> bool {
        let asked = self.build_args.get("BUILDKIT_MULTI_PLATFORM");
        self.platforms.len() > 1 || asked.is_some_and(|text| is_true(text))
    }

    /// The platforms as people write them, in the order given.
    pub(crate) fn platform_list(&self) -> String {
        let names = self.platforms.iter().map(ToString::to_string);
        names.collect::<Vec<_>>().join(",")
    }
}

/// Where a result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Into the store, under the request's tags; and to their registries.
    Image {
        /// Whether to push.
        push: bool,
        /// How the layers that are pushed are compressed.
        layers: CompressionChoice,
    },
    /// An OCI layout.
    Oci {
        /// Where to.
        dest: Destination,
        /// How its layers are compressed.
        layers: CompressionChoice,
    },
    /// An archive as `docker save` writes it.
    Docker {
        /// Where to.
        dest: Destination,
    },
    /// The root file system as a tar.
    Tar {
        /// Where to.
        dest: Destination,
    },
    /// The root file system as a folder.
    Local {
        /// The folder; made if it is missing.
        dest: PathBuf,
    },
}

/// Where bytes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file, written aside and renamed.
    File(PathBuf),
    /// A folder (OCI layout only).
    Folder(PathBuf),
}

/// What came out.
#[derive(Clone, Debug)]
pub struct BuildOutcome {
    /// The image's id: the digest of its configuration; of images for several platforms, of their index.
    pub image: Option<Digest>,
    /// What was pushed, with the manifest's digest.
    pub pushed: Vec<(Reference, Digest)>,
    /// Warnings about the Dockerfile.
    pub warnings: Vec<Problems>,
    /// Steps that ran.
    pub ran: usize,
    /// Steps that the cache had.
    pub cached: usize,
}
