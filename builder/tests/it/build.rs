//! Whole builds without processes: what runs, what the cache has, and that results do not change by themselves.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use builder::contexts::MainContext;
use builder::error::BuildError;
use builder::remote::Remote;
use builder::request::{BuildOutcome, BuildRequest, Destination, Output};
use builder::solve::cancel::Cancel;
use builder::solve::{ProgressEvent, ProgressSink};
use builder::{BuildEnvironment, build};
use store::Store;
use store::oci::Platform;
use tempfile::TempDir;

/// A store, and a folder to build from.
pub(crate) struct Bench {
    pub(crate) store: Arc<Store>,
    pub(crate) context: TempDir,
    root: TempDir,
}

/// Notes which steps ran.
#[derive(Default)]
struct Ran(Mutex<Vec<String>>);

impl ProgressSink for Ran {
    fn event(&self, event: ProgressEvent) {
        if let ProgressEvent::Started { name, .. } = event {
            self.0.lock().unwrap().push(name);
        }
    }
}

impl Bench {
    pub(crate) fn new(dockerfile: &str, files: &[(&str, &str)]) -> Bench {
        let root = tempfile::tempdir().unwrap();
        let bench = Bench {
            store: Arc::new(Store::open(root.path()).unwrap()),
            context: tempfile::tempdir().unwrap(),
            root,
        };
        bench.write("Dockerfile", dockerfile);
        for (path, text) in files {
            bench.write(path, text);
        }
        bench
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.context.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn request(&self) -> BuildRequest {
        let dockerfile = fs::read_to_string(self.context.path().join("Dockerfile")).unwrap();
        BuildRequest {
            dockerfile_name: "Dockerfile".to_owned(),
            dockerfile,
            context: Some(MainContext::Folder(self.context.path().to_path_buf())),
            contexts: [].into(),
            ignore: Vec::new(),
            build_args: [].into(),
            labels: [].into(),
            target: None,
            platforms: vec![Platform::host()],
            tags: vec!["test".parse().unwrap()],
            no_cache: false,
            pull: false,
            outputs: Vec::new(),
            jobs: 4,
            epoch: None,
            run: builder::request::RunSettings::default(),
            cache_from: Vec::new(),
            cache_to: Vec::new(),
            made: None,
        }
    }

    /// Builds, telling `sink` how it goes.
    pub(crate) fn build_telling(
        &self,
        request: &BuildRequest,
        sink: &Arc<dyn ProgressSink>,
    ) -> Result<BuildOutcome, BuildError> {
        let remote = Remote::new(Box::new(registry_client::Options::default));
        let cancel = Cancel::new().unwrap();
        let environment = BuildEnvironment {
            store: &self.store,
            remote: &remote,
            cancel: &cancel,
        };
        build(environment, request, sink)
    }

    pub(crate) fn try_build(
        &self,
        request: &BuildRequest,
    ) -> (Result<BuildOutcome, BuildError>, Vec<String>) {
        let ran = Arc::new(Ran::default());
        let sink: Arc<dyn ProgressSink> = Arc::clone(&ran) as _;
        let result = self.build_telling(request, &sink);
        let mut names = ran.0.lock().unwrap().clone();
        names.sort();
        (result, names)
    }

    /// Builds, and returns the image's id and what ran, in order of the names.
    pub(crate) fn build(&self) -> (String, Vec<String>) {
        let (result, ran) = self.try_build(&self.request());
        (result.unwrap().image.unwrap().to_string(), ran)
    }
}

fn set_mtime(path: &Path, time: SystemTime) {
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

const TWO_STAGES: &str = "\
FROM scratch AS assets
COPY assets /assets/
FROM scratch AS unused
COPY missing /
FROM scratch
WORKDIR /srv
COPY code/*.c src/
COPY --from=assets /assets/logo ./
LABEL a=b
";

fn two_stages() -> Bench {
    let files = [
        ("assets/logo", "logo"),
        ("assets/other", "x"),
        ("code/a.c", "a"),
        ("code/b.h", "b"),
    ];
    Bench::new(TWO_STAGES, &files)
}

#[test]
fn an_unchanged_tree_runs_nothing_and_gives_the_same_image() {
    let bench = two_stages();
    let (first, ran) = bench.build();
    assert_eq!(ran.len(), 4, "{ran:?}");
    let (second, ran) = bench.build();
    assert_eq!(ran, [""; 0]);
    assert_eq!(first, second);
}

#[test]
fn touched_files_run_nothing() {
    let bench = two_stages();
    let (first, _) = bench.build();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for path in ["assets/logo", "code/a.c", "code/b.h"] {
        set_mtime(&bench.context.path().join(path), hour_ago);
    }
    let (second, ran) = bench.build();
    assert_eq!(ran, [""; 0]);
    assert_eq!(first, second);
}

#[test]
fn a_change_reruns_what_depends_on_it_and_nothing_else() {
    let bench = two_stages();
    bench.build();
    // Selected by no pattern.
    bench.write("code/b.h", "changed");
    assert_eq!(bench.build().1, [""; 0]);
    // The stage's copy runs; the copy from it selects another file, and the chain above it stays.
    bench.write("assets/other", "changed");
    assert_eq!(bench.build().1, ["[assets 1/1] COPY assets /assets/"]);
    // All above the changed one.
    bench.write("code/a.c", "changed");
    let (_, ran) = bench.build();
    assert_eq!(
        ran,
        [
            "[stage-2 2/3] COPY code/*.c src/",
            "[stage-2 3/3] COPY --from=assets /assets/logo ./"
        ]
    );
    // A new name under the pattern.
    fs::rename(
        bench.context.path().join("code/a.c"),
        bench.context.path().join("code/z.c"),
    )
    .unwrap();
    assert_eq!(bench.build().1.len(), 2);
}

#[test]
fn a_step_that_does_the_same_again_keeps_its_layer() {
    let bench = two_stages();
    let (first, _) = bench.build();
    let mut request = bench.request();
    request.no_cache = true;
    let (second, ran) = bench.try_build(&request);
    assert_eq!(ran.len(), 4);
    assert_eq!(second.unwrap().image.unwrap().to_string(), first);
    assert_eq!(bench.build(), (first, Vec::new()));
}

#[test]
fn the_same_input_gives_the_same_image_in_any_store() {
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let image = || {
        let bench = two_stages();
        for path in ["assets/logo", "assets/other", "code/a.c", "assets", "code"] {
            let path = bench.context.path().join(path);
            let file = fs::File::open(path).unwrap();
            file.set_modified(hour_ago).unwrap();
        }
        let mut request = bench.request();
        request.epoch = Some(1_700_000_000);
        bench.try_build(&request).0.unwrap().image.unwrap()
    };
    assert_eq!(image(), image());
}

#[test]
fn two_builds_at_once_run_each_step_once() {
    let bench = two_stages();
    let request = bench.request();
    let ran: Vec<String> = std::thread::scope(|scope| {
        let builds: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    // Each like a process of its own.
                    let other = Bench {
                        store: Arc::new(Store::open(bench.root.path()).unwrap()),
                        context: tempfile::tempdir().unwrap(),
                        root: tempfile::tempdir().unwrap(),
                    };
                    let (result, ran) = other.try_build(&request);
                    result.unwrap();
                    ran
                })
            })
            .collect();
        builds
            .into_iter()
            .flat_map(|build| build.join().unwrap())
            .collect()
    });
    assert_eq!(ran.len(), 4, "{ran:?}");
}

#[test]
fn a_failure_names_the_step_and_the_line_and_tags_nothing() {
    let bench = Bench::new(
        "FROM scratch\nCOPY there /\nCOPY not-there /\n",
        &[("there", "x")],
    );
    let (result, _) = bench.try_build(&bench.request());
    let error = result.unwrap_err();
    assert!(matches!(error, BuildError::Step { .. }), "{error:?}");
    let shown = error.problems()[0].render(false);
    assert!(shown.contains("Dockerfile:3:1"), "{shown}");
    assert!(shown.contains("COPY not-there /"), "{shown}");
    assert!(shown.starts_with("error: ") && shown.lines().next().unwrap().contains("not-there"));
    assert!(bench.store.images().resolve("test").unwrap().is_none());
}

#[test]
fn an_empty_image_is_an_image() {
    let bench = Bench::new("FROM scratch\nCMD [\"/x\"]\n", &[]);
    let (id, _) = bench.build();
    assert_eq!(bench.build().0, id);
}

#[test]
fn a_folder_and_a_tar_hold_the_root() {
    let bench = two_stages();
    let out = tempfile::tempdir().unwrap();
    let (folder, tar) = (out.path().join("folder"), out.path().join("root.tar"));
    let mut request = bench.request();
    request.outputs = vec![
        Output::Local {
            dest: folder.clone(),
        },
        Output::Tar {
            dest: Destination::File(tar.clone()),
        },
    ];
    bench.try_build(&request).0.unwrap();
    assert_eq!(fs::read_to_string(folder.join("srv/logo")).unwrap(), "logo");
    let mut names: Vec<_> = tar::Archive::new(fs::File::open(tar).unwrap())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["srv/", "srv/logo", "srv/src/", "srv/src/a.c"]);
    // Outputs elsewhere leave no name in the store.
    assert!(bench.store.images().resolve("test").unwrap().is_none());
}
