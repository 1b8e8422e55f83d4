//! Who builds: longshore, and the tools that it is compared with.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::base;
use super::case::{Case, Origin};
use super::image::describe;
use crate::support::{LONGSHORE, Ran};

/// How a build ended.
pub enum Built {
    /// With this image.
    Image(String),
    /// With a refusal.
    Refused {
        /// The exit code.
        code: i32,
        /// What was said, with `CASE` for the folder.
        stderr: String,
    },
}

/// Builds cases, one at a time.
pub trait Builder: Send {
    /// Builds a case.
    fn build(&mut self, case: &Case) -> Built;
}

/// Makes a case's folder below `place`, has it built into an archive, and reads that.
fn build_in(
    place: &Path,
    case: &Case,
    build: impl FnOnce(&Path, &Path) -> Result<(), Built>,
) -> Built {
    let folder = place.join("cases").join(case.name());
    std::fs::create_dir_all(&folder).unwrap();
    case.set_up(&folder);
    let archive = place.join("image.tar");
    match build(&folder, &archive) {
        Ok(()) => Built::Image(describe(&archive)),
        Err(refused) => refused,
    }
}

/// Runs a build; a refusal with the case's folder taken out of its words.
fn run(command: &mut Command, folder: &Path) -> Result<(), Built> {
    let ran = Ran::of(command.current_dir(folder).stdin(Stdio::null()));
    match ran.code {
        Some(0) => Ok(()),
        code => Err(Built::Refused {
            code: code.unwrap_or(-1),
            stderr: ran.stderr.replace(&folder.display().to_string(), "CASE"),
        }),
    }
}

/// Which images of the name `base` and others a builder's store has now.
#[derive(Default)]
struct Loaded(Option<String>);

impl Loaded {
    /// Loads the base images of a case, unless they are those that are there.
    fn ensure(&mut self, place: &Path, case: &Case, load: impl FnOnce(&Path)) {
        let wanted = serde_json::to_string(&case.request.images).unwrap();
        if self.0.as_ref() != Some(&wanted) {
            let archive = place.join("base.tar");
            base::write_archive(&archive, &case.request.images);
            load(&archive);
            self.0 = Some(wanted);
        }
    }
}

/// The binary under test, on a store of its own.
pub struct Longshore {
    place: PathBuf,
    loaded: Loaded,
}

impl Longshore {
    /// A builder with an empty store below a folder.
    pub fn new(place: &Path) -> Longshore {
        std::fs::create_dir_all(place).unwrap();
        Longshore {
            place: place.to_owned(),
            loaded: Loaded::default(),
        }
    }

    fn command(place: &Path) -> Command {
        let mut command = Command::new(LONGSHORE);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", place.join("home"))
            .env("LONGSHORE_ROOT", place.join("store"));
        command
    }
}

impl Builder for Longshore {
    fn build(&mut self, case: &Case) -> Built {
        let place = &self.place;
        self.loaded.ensure(place, case, |archive| {
            Ran::of(Longshore::command(place).args(["load", "-i"]).arg(archive)).ok();
        });
        build_in(place, case, |folder, archive| {
            let output = format!("type=docker,dest={}", archive.display());
            let mut command = Longshore::command(place);
            command.args(["build", "-q", "-o", &output]);
            if case.request.host_ids {
                command.arg("--userns=host");
            }
            run(command.args(case.arguments()), folder)
        })
    }
}

/// Another tool, as `testdata/dockerfiles/collect` has set it up.
pub struct Peer {
    /// What its results are.
    pub origin: Origin,
    program: String,
    place: tempfile::TempDir,
    loaded: Loaded,
}

impl Peer {
    /// The tool that `COLLECT` names: a docker with a daemon to talk to, or a buildah.
    pub fn asked_for() -> Option<Peer> {
        let program = std::env::var("COLLECT").ok()?;
        let origin = match program.ends_with("buildah") {
            true => Origin::Buildah,
            false => Origin::BuildKit,
        };
        Some(Peer {
            origin,
            program,
            place: tempfile::tempdir().unwrap(),
            loaded: Loaded::default(),
        })
    }

    /// Some cases are the end of docker 20.10, which the script then starts again.
    fn wait_until_it_answers(&self) {
        for _ in 0..100 {
            let ran = Ran::of(self.command().arg("version"));
            if ran.code == Some(0) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        panic!("{} does not answer", self.program);
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("DOCKER_BUILDKIT", "1");
        command
    }
}

impl Builder for Peer {
    fn build(&mut self, case: &Case) -> Built {
        self.wait_until_it_answers();
        let place = self.place.path().to_owned();
        let mut loaded = std::mem::take(&mut self.loaded);
        loaded.ensure(&place, case, |archive| match self.origin {
            Origin::Buildah => {
                for (index, name) in base::all(&case.request.images).keys().enumerate() {
                    let from = format!("docker-archive:{}:@{index}", archive.display());
                    let pulled = Ran::of(self.command().args(["pull", "-q", &from])).ok();
                    Ran::of(self.command().args(["tag", &pulled, name])).ok();
                }
            }
            Origin::Hand | Origin::BuildKit | Origin::BuildKitButHistory => {
                Ran::of(self.command().args(["load", "-q", "-i"]).arg(archive)).ok();
            }
        });
        self.loaded = loaded;
        if self.origin == Origin::BuildKit {
            // It takes files of the same name, size and time for those of the case before.
            Ran::of(self.command().args(["builder", "prune", "-a", "-f"])).ok();
        }
        let built = build_in(&place, case, |folder, archive| {
            let name = "longshore-case";
            let mut command = self.command();
            match self.origin {
                Origin::Buildah => command.args([
                    "bud",
                    "--runtime",
                    "runc",
                    "--format",
                    "docker",
                    "--pull-never",
                ]),
                Origin::Hand | Origin::BuildKit | Origin::BuildKitButHistory => {
                    command.args(["build", "--network", "host", "--progress", "plain"])
                }
            };
            command.args(["--no-cache", "-t", name]);
            run(command.args(case.arguments()), folder)?;
            let mut save = self.command();
            match self.origin {
                Origin::Buildah => {
                    let to = format!("docker-archive:{}", archive.display());
                    save.args(["push", "-q", name, &to])
                }
                Origin::Hand | Origin::BuildKit | Origin::BuildKitButHistory => {
                    save.args(["save", name, "-o"]).arg(archive)
                }
            };
            let _gone = std::fs::remove_file(archive);
            // Of an image without layers docker cannot.
            run(&mut save, folder)
        });
        match built {
            // Where `/etc/hosts` was mounted, which later versions leave no trace of.
            Built::Image(text) => Built::Image(text.replace("\nd 0755 0:0 /etc\n", "\n")),
            refused @ Built::Refused { .. } => refused,
        }
    }
}
