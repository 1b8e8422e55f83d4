//! `cp`: between a container and this machine, as tars in a pipe.
//!
//! Paths in a container are looked up beneath its root, with links taken as the container sees them: none leads out.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use runner::container::Held;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use store::Store;
use store::layer::apply::{Form, UnpackOptions, unpack_into};
use store::layer::compress::decompressor;
use store::layer::tar::{Mounts, write_named, write_tree, write_tree_with};

use super::Known;
use super::lifecycle::connect;
use crate::args::{ContainerFilesArgs, CpArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// `longshore cp`.
pub fn cp(context: &Context, args: &CpArgs) -> Result<ExitCode, CliError> {
    let (from, to) = (End::parse(&args.source), End::parse(&args.target));
    let store = context.store()?;
    let done = match (&from, &to) {
        (End::Container { .. }, End::Container { .. }) => Err(CliError::new(
            Kind::Usage,
            "copying between containers is not supported",
        )
        .hint("copy to this machine first")),
        (End::Host(_) | End::Stream, End::Host(_) | End::Stream) => {
            Err(CliError::new(Kind::Usage, "neither side is in a container")
                .hint("expected CONTAINER:PATH for one of them"))
        }
        (End::Container { name, path }, to) => {
            let root = Root::open(&store, name)?;
            let side = Side::Container(&root);
            match to {
                End::Stream => {
                    let source = Source::find(side, path, args.follow_link)?;
                    let name = source.name_for_stream();
                    context.ui.stream(|out| source.write(Some(&name), out))
                }
                End::Host(target) => copy(side, path, Side::Host, target, args),
                End::Container { .. } => Ok(()),
            }
        }
        (from, End::Container { name, path }) => {
            let root = Root::open(&store, name)?;
            let side = Side::Container(&root);
            match from {
                End::Stream => {
                    let target = Target {
                        directory: Some(side.directory(path)?),
                        path,
                        side,
                        make: false,
                    };
                    let input = decompressor(io::stdin().lock()).blame(Kind::Input)?;
                    target.unpack(input, None)
                }
                End::Host(source) => copy(Side::Host, source, side, path, args),
                End::Container { .. } => Ok(()),
            }
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// One of the two things that are named.
enum End {
    Host(String),
    Container { name: String, path: String },
    Stream,
}

impl End {
    /// As docker: what begins like a path is one, and so is what has no colon.
    fn parse(text: &str) -> End {
        if text == "-" {
            return End::Stream;
        }
        match text.split_once(':') {
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.is_empty() => {
                End::Container {
                    name: name.to_owned(),
                    path: path.to_owned(),
                }
            }
            _ => End::Host(text.to_owned()),
        }
    }
}

/// The root of a container, running or not.
pub struct Root {
    directory: OwnedFd,
    /// Where its ids are not the host's.
    inside: Option<Inside>,
    /// One that does not run is kept from being started.
    _held: Option<Held>,
}

/// A container with a user namespace of its own, which runs: what its files belong to, only a process in there sees.
#[derive(Clone)]
struct Inside {
    pid: u32,
    namespace: PathBuf,
}

impl Inside {
    /// Of a container that runs, by its process 1.
    fn of(pid: u32) -> Option<Inside> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let own = namespace("self")?;
        let namespace = namespace(&pid.to_string())?;
        (own != namespace).then_some(Inside { pid, namespace })
    }

    /// This program again, to go in there.
    fn command(&self, folder: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("container-files")
            .args(["--pid", &self.pid.to_string()])
            .arg("--namespace")
            .arg(&self.namespace)
            .args(arguments)
            .args(["--", folder]);
        command
    }
}

fn ended(status: io::Result<std::process::ExitStatus>) -> Result<(), CliError> {
    match status.blame(Kind::Environment)? {
        status if status.success() => Ok(()),
        // It has said why.
        status => Err(CliError::new(
            Kind::Input,
            format!("copying in the container failed ({status})"),
        )),
    }
}

impl Root {
    /// Opens it: from its process if it runs, else from what lies on disk.
    pub fn open(store: &Store, name: &str) -> Result<Root, CliError> {
        let known = Known::find(store, name)?;
        if let Some(client) = connect(&known.folder)? {
            let directory = client.root()?;
            return Ok(Root {
                directory,
                inside: Inside::of(known.folder.state()?.pid),
                _held: None,
            });
        }
        let held = known.folder.hold()?;
        if known.folder.state()?.status.is_live() {
            let message = format!("container `{name}` was started this moment: try again");
            return Err(CliError::new(Kind::Input, message));
        }
        Ok(Root {
            directory: store.open_container(&known.container)?,
            inside: None,
            _held: Some(held),
        })
    }

    /// Writes all of it as a tar, without what is mounted in it.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), CliError> {
        let source = Source::find(Side::Container(self), "/", false)?;
        match &source.inside {
            Some(inside) => source.write_inside(inside, None, &["--without-mounts"], out),
            None => {
                let written = write_tree_with(source.directory.as_fd(), Mounts::None, out);
                written.map(drop).blame(Kind::Environment)
            }
        }
    }
}

/// Where a path is looked up.
#[derive(Clone, Copy)]
enum Side<'a> {
    Host,
    Container(&'a Root),
}

impl Side<'_> {
    fn open(self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        match self {
            Side::Host => rustix::fs::open(path, flags, Mode::empty()),
            Side::Container(root) => {
                let path = match path {
                    "" => "/",
                    path => path,
                };
                let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(&root.directory, path, flags, Mode::empty(), resolve)
            }
        }
    }

    fn inside(self) -> Option<Inside> {
        match self {
            Side::Host => None,
            Side::Container(root) => root.inside.clone(),
        }
    }

    fn failed(self, path: &str) -> impl FnOnce(Errno) -> CliError {
        let of = match self {
            Side::Host => "",
            Side::Container(_) => " of the container",
        };
        let text = format!("cannot use `{path}`{of}");
        move |errno| {
            let text = format!("{text}: {}", io::Error::from(errno));
            CliError::new(Kind::Input, text)
        }
    }

    fn directory(self, path: &str) -> Result<OwnedFd, CliError> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(self.failed(path))
    }

    /// What lies at a path, links followed: whether it is a directory; `None` if there is nothing.
    fn is_directory(self, path: &str) -> Result<Option<bool>, CliError> {
        match self.open(path, OFlags::PATH) {
            Ok(found) => {
                let stat = rustix::fs::fstat(&found).map_err(self.failed(path))?;
                Ok(Some(
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                ))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed(path)(errno)),
        }
    }
}

/// The directory of a path, and the name in it.
fn parent_of(path: &str) -> (&str, &str) {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None if path.starts_with('/') => ("/", ""),
        None => (".", trimmed),
    }
}

/// What is copied.
struct Source {
    directory: OwnedFd,
    /// Where that is, and who has to read it.
    path: String,
    inside: Option<Inside>,
    /// In that directory; none if its content is copied.
    name: Option<String>,
    is_directory: bool,
}

impl Source {
    fn find(side: Side<'_>, path: &str, follow: bool) -> Result<Source, CliError> {
        let (parent, name) = parent_of(path);
        let whole = |path: &str| -> Result<Source, CliError> {
            Ok(Source {
                directory: side.directory(path)?,
                path: path.to_owned(),
                inside: side.inside(),
                name: None,
                is_directory: true,
            })
        };
        // `dir/.` is what is in it, and a root has no name.
        if matches!(name, "" | "." | "..") {
            return whole(path);
        }
        let directory = side.directory(parent)?;
        let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(side.failed(path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink && (follow || path.ends_with('/')) {
            return Source::followed(side, path, &directory, name);
        }
        if path.ends_with('/') && kind != FileType::Directory {
            return Err(side.failed(path)(Errno::NOTDIR));
        }
        Ok(Source {
            directory,
            path: parent.to_owned(),
            inside: side.inside(),
            name: Some(name.to_owned()),
            is_directory: kind == FileType::Directory,
        })
    }

    /// What a link leads to, one step at a time: each is looked up on its side.
    fn followed(
        side: Side<'_>,
        path: &str,
        directory: &OwnedFd,
        name: &str,
    ) -> Result<Source, CliError> {
        let target =
            rustix::fs::readlinkat(directory, name, Vec::new()).map_err(side.failed(path))?;
        let target = target
            .to_str()
            .map_err(|_| side.failed(path)(Errno::ILSEQ))?;
        let (parent, _) = parent_of(path);
        let next = match target.starts_with('/') {
            true => target.to_owned(),
            false => format!("{parent}/{target}"),
        };
        // A circle of links is what the kernel says it is.
        side.open(&next, OFlags::PATH).map_err(side.failed(path))?;
        Source::find(side, &next, true)
    }

    /// What a tar calls it.
    fn name_for_stream(&self) -> String {
        self.name.clone().unwrap_or_else(|| ".".to_owned())
    }

    /// Writes it as a tar, under a name or without one.
    fn write(&self, written_as: Option<&str>, out: &mut dyn Write) -> Result<(), CliError> {
        if let Some(inside) = &self.inside {
            return self.write_inside(inside, written_as, &[], out);
        }
        let written = match (&self.name, written_as) {
            (Some(name), Some(written_as)) => write_named(
                self.directory.as_fd(),
                name.as_bytes(),
                written_as.as_bytes(),
                out,
            ),
            (None, _) => write_tree(self.directory.as_fd(), out),
            (Some(name), None) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inside =
                    rustix::fs::openat(&self.directory, name.as_str(), flags, Mode::empty());
                let inside = inside.map_err(Side::Host.failed(name))?;
                write_tree(inside.as_fd(), out)
            }
        };
        written.map(drop).blame(Kind::Environment)
    }
}

impl Source {
    fn write_inside(
        &self,
        inside: &Inside,
        written_as: Option<&str>,
        more: &[&str],
        out: &mut dyn Write,
    ) -> Result<(), CliError> {
        let mut arguments = vec!["--pack"];
        arguments.extend(more);
        let folder;
        let folder = match (&self.name, written_as) {
            (Some(name), Some(written_as)) => {
                arguments.extend(["--name", name, "--written-as", written_as]);
                &self.path
            }
            (Some(name), None) => {
                folder = format!("{}/{name}", self.path.trim_end_matches('/'));
                &folder
            }
            (None, _) => &self.path,
        };
        let mut child = inside
            .command(rooted(folder), &arguments)
            .stdout(Stdio::piped())
            .spawn()
            .blame(Kind::Environment)?;
        let mut tar = child.stdout.take().expect("it was asked for");
        let copied = io::copy(&mut tar, out);
        drop(tar);
        ended(child.wait())?;
        copied.map(drop).blame(Kind::Environment)
    }
}

/// A path as the container's root sees it.
fn rooted(path: &str) -> &str {
    match path {
        "" | "." => "/",
        path => path,
    }
}

/// Where what is copied goes.
struct Target<'a> {
    /// None if only a process in the container can make it.
    directory: Option<OwnedFd>,
    path: &'a str,
    side: Side<'a>,
    make: bool,
}

impl Target<'_> {
    fn unpack(&self, mut tar: impl Read, owner: Option<(u32, u32)>) -> Result<(), CliError> {
        if let Some(inside) = self.side.inside() {
            let mut arguments = Vec::new();
            if self.make {
                arguments.push("--make");
            }
            if owner.is_some() {
                arguments.push("--owned-by-root");
            }
            let mut child = inside
                .command(rooted(self.path), &arguments)
                .stdin(Stdio::piped())
                .spawn()
                .blame(Kind::Environment)?;
            let mut input = child.stdin.take().expect("it was asked for");
            let copied = io::copy(&mut tar, &mut input);
            drop(input);
            ended(child.wait())?;
            return copied.map(drop).blame(Kind::Environment);
        }
        match &self.directory {
            Some(directory) => unpack(directory, tar, owner),
            None => Err(self.side.failed(self.path)(Errno::NOENT)),
        }
    }
}

/// `longshore container-files`: the part of copying that is done as the container's root.
pub fn inside(context: &Context, args: &ContainerFilesArgs) -> Result<ExitCode, CliError> {
    runner::join::enter_files(args.pid, &args.namespace).blame(Kind::Environment)?;
    if args.make {
        make_directory_at(&args.folder).map_err(Side::Host.failed(&args.folder))?;
    }
    let directory = Side::Host.directory(&args.folder)?;
    match (args.pack, &args.name) {
        (false, _) => {
            let owner = args.owned_by_root.then_some((0, 0));
            unpack(&directory, io::stdin().lock(), owner)?;
        }
        (true, name) => {
            let source = Source {
                directory,
                path: args.folder.clone(),
                inside: None,
                name: name.clone(),
                is_directory: true,
            };
            let written_as = args.written_as.as_deref();
            context.ui.stream(|out| match args.without_mounts {
                true => write_tree_with(source.directory.as_fd(), Mounts::None, out)
                    .map(drop)
                    .blame(Kind::Environment),
                false => source.write(written_as, out),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn make_directory_at(path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        outcome => outcome,
    }
}

/// Copies as docker does: into a directory that is there, else under the name that is given.
fn copy(
    from: Side<'_>,
    source_path: &str,
    to: Side<'_>,
    target_path: &str,
    args: &CpArgs,
) -> Result<(), CliError> {
    let source = Source::find(from, source_path, args.follow_link)?;
    let target = |directory, path, make| Target {
        directory,
        path,
        side: to,
        make,
    };
    let (target, written_as) = match (to.is_directory(target_path)?, source.is_directory) {
        (Some(true), _) => {
            let directory = to.directory(target_path)?;
            (
                target(Some(directory), target_path, false),
                source.name.clone(),
            )
        }
        (Some(false), true) => {
            let message = format!("cannot copy a folder to `{target_path}`, which is a file");
            return Err(CliError::new(Kind::Input, message));
        }
        (None, false) if target_path.ends_with('/') => {
            let message = format!("there is no folder `{target_path}`");
            return Err(CliError::new(Kind::Input, message));
        }
        (found, _) => {
            let (parent_path, name) = parent_of(target_path);
            let parent = to.directory(parent_path)?;
            if !(source.is_directory && found.is_none()) {
                let target = target(Some(parent), parent_path, false);
                (target, Some(name.to_owned()))
            } else if to.inside().is_some() {
                (target(None, target_path, true), None)
            } else {
                // Its content goes into a new folder.
                make_directory(&parent, name).map_err(to.failed(target_path))?;
                let directory = to.directory(target_path)?;
                (target(Some(directory), target_path, false), None)
            }
        }
    };
    let owner = match (args.archive, to) {
        (true, _) => None,
        // As docker: root in the container, the user here.
        (false, Side::Container(_)) => Some((0, 0)),
        (false, Side::Host) => Some((
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        )),
    };
    let (reading, mut writing) = io::pipe().blame(Kind::Environment)?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || source.write(written_as.as_deref(), &mut writing));
        let unpacked = target.unpack(io::BufReader::new(reading), owner);
        let written = writer.join().expect("writing a tar does not panic");
        // If reading stopped first, that is why writing did.
        unpacked.and(written)
    })
}

fn make_directory(parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    match rustix::fs::mkdirat(
        parent,
        OsStr::from_bytes(name.as_bytes()),
        Mode::from_raw_mode(0o755),
    ) {
        Err(Errno::EXIST) => Ok(()),
        outcome => outcome,
    }
}

fn unpack(target: &OwnedFd, tar: impl Read, owner: Option<(u32, u32)>) -> Result<(), CliError> {
    let mut options = UnpackOptions::new(Form::Tree);
    options.owner = owner;
    options.keep_own_if_unmapped = true;
    options.keep_root = true;
    unpack_into(target, tar, &options)
        .map(drop)
        .blame(Kind::Input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_their_parents() {
        let check = |path: &str, expected: (&str, &str)| assert_eq!(parent_of(path), expected);
        check("/a/b", ("/a", "b"));
        check("/a/b/", ("/a", "b"));
        check("/a", ("/", "a"));
        check("a", (".", "a"));
        check("a/.", ("a", "."));
        check("/", ("/", ""));
        check(".", (".", "."));
    }
}
