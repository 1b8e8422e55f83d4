//! What every test gets: a busybox root in directories of its own, and a way to run things in it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use runner::{
    ExitStatus, MountKind, MountPoint, Privilege, ProcessSpec, Root, Sandbox, SandboxError,
    SandboxSpec, Stdio, Stream, UserNamespace,
};

const APPLETS: [&str; 36] = [
    "cat", "chmod", "chown", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip",
    "kill", "ln", "ls", "mkdir", "mknod", "mount", "mv", "ps", "pwd", "rm", "rmdir", "sh", "sleep",
    "stat", "stty", "test", "touch", "true", "tty", "umount", "unshare", "wc", "readlink", "sort",
];

/// Directories for one test.
pub(crate) struct World {
    pub(crate) privilege: Privilege,
    ids: UserNamespace,
    dir: tempfile::TempDir,
}

/// How a process went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    pub(crate) fn new(privilege: Privilege, ids: UserNamespace) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("runner-it-")
            .tempdir()
            .unwrap();
        let world = Self {
            privilege,
            ids,
            dir,
        };
        for name in ["base/bin", "base/tmp", "base/etc", "stubs", "upper", "work"] {
            fs::create_dir_all(world.path(name)).unwrap();
        }
        fs::copy("/bin/busybox", world.path("base/bin/busybox"))
            .expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", world.path("base/bin").join(applet)).unwrap();
        }
        fs::set_permissions(world.path("base/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(world.path("base/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        runner::make_stubs(&world.path("stubs")).unwrap();
        world
    }

    /// Whether root inside is root of the host.
    pub(crate) fn host_ids(&self) -> bool {
        self.root() && self.ids == UserNamespace::Host
    }

    /// Whether the sandbox has a user namespace of its own.
    pub(crate) fn own_ids(&self) -> bool {
        self.root() && self.ids == UserNamespace::Own
    }

    pub(crate) fn root(&self) -> bool {
        self.privilege == Privilege::Root
    }

    /// Whether other ids than the own one exist.
    pub(crate) fn many_ids(&self) -> bool {
        self.privilege != Privilege::RootlessSingleId
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The base over the stubs, as a builder stacks them.
    pub(crate) fn overlay(&self) -> Root {
        self.layers(&["base", "stubs"])
    }

    pub(crate) fn layers(&self, lower: &[&str]) -> Root {
        Root::Overlay {
            lower: lower.iter().map(|name| self.path(name)).collect(),
            upper: self.path("upper"),
            work: self.path("work"),
            volatile: true,
        }
    }

    pub(crate) fn spec<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> SandboxSpec {
        let mut spec = SandboxSpec::new(self.overlay(), ProcessSpec::new(argv));
        spec.user_namespace = self.ids;
        spec
    }

    pub(crate) fn script(&self, script: &str) -> SandboxSpec {
        self.spec(["sh", "-ec", script])
    }

    /// This very test program, with its libraries, as a command inside: see `probe`.
    pub(crate) fn probe(&self, args: &[&str]) -> SandboxSpec {
        let mut spec = self.spec(
            ["/probe", "--probe"]
                .into_iter()
                .chain(args.iter().copied()),
        );
        let own = std::env::current_exe().unwrap();
        for (source, target) in [
            (own.as_path(), "/probe"),
            (Path::new("/lib"), "/lib"),
            (Path::new("/usr/lib"), "/usr/lib"),
        ] {
            spec.mounts.push(bind(source, target, true));
        }
        if Path::new("/lib64").exists() {
            spec.mounts.push(bind(Path::new("/lib64"), "/lib64", true));
        }
        spec
    }

    /// A shell script's standard output; it must succeed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let outcome = run(&self.script(script)).unwrap();
        assert_eq!(outcome.status, ExitStatus::Code(0), "{script}: {outcome:?}");
        outcome.stdout
    }

    /// What the process left in the upper directory: paths with type, mode and modification time.
    pub(crate) fn upper(&self) -> Vec<String> {
        let mut entries = Vec::new();
        list(&self.path("upper"), "", &mut entries);
        entries.sort();
        entries
    }
}

fn list(dir: &Path, prefix: &str, entries: &mut Vec<String>) {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::symlink_metadata(dir).unwrap();
    entries.push(format!(
        "/{prefix} {:o} {}.{:09}",
        meta.mode(),
        meta.mtime(),
        meta.mtime_nsec()
    ));
    if meta.is_dir() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if prefix.is_empty() {
                name
            } else {
                format!("{prefix}/{name}")
            };
            list(&entry.path(), &path, entries);
        }
    }
}

pub(crate) fn bind(source: &Path, target: &str, read_only: bool) -> MountPoint {
    let kind = MountKind::Bind {
        source: source.to_owned(),
        beneath: String::new(),
        read_only,
    };
    MountPoint {
        target: target.into(),
        kind,
    }
}

/// Runs to the end, with the output collected.
pub(crate) fn run(spec: &SandboxSpec) -> Result<Outcome, SandboxError> {
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Pipe,
        stderr: Stream::Pipe,
    };
    let mut sandbox = Sandbox::spawn(spec, stdio)?;
    let (mut out, mut err) = (
        sandbox.stdout.take().unwrap(),
        sandbox.stderr.take().unwrap(),
    );
    let (mut stdout, mut stderr) = (String::new(), String::new());
    std::thread::scope(|scope| {
        scope.spawn(|| err.read_to_string(&mut stderr).unwrap());
        out.read_to_string(&mut stdout).unwrap();
    });
    let status = sandbox.wait()?;
    Ok(Outcome {
        status,
        stdout,
        stderr,
    })
}

pub(crate) fn write_executable(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
