//! SSH agents for a step: a socket of its own, behind which the caller's agent, or keys from files, answer.
//!
//! Only listing keys and signing is passed on, so a step can use keys but neither add, remove nor lock them. The step's socket
//! has the owner and mode that the mount asks for, which the agent's own has not.

mod keys;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Gid, Mode, Uid};
use store::fs::TempDir;

use super::super::Operations;
use crate::error::StepError;
use crate::graph::exec::SshMount;
use keys::Key;

/// Largest message in bytes, as OpenSSH has it.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

// The messages of the agent protocol that are known here.
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// The name of a socket in a directory of its own.
const SOCKET: &str = "agent";

/// Who answers.
#[derive(Clone)]
enum Source {
    /// The agent that listens here.
    Socket(PathBuf),
    /// These.
    Keys(Arc<Vec<Key>>),
}

/// An agent that serves one step.
pub(super) struct Agent {
    dir: TempDir,
    /// Closed when it is to end.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// The socket that the step is given.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join(SOCKET)
    }

    /// Ends all connections.
    pub(super) fn stop(self) {
        drop(self);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of an SSH agent panicked");
        }
    }
}

/// Starts what `mount` asks for; none if it was not given and the step can do without.
pub(super) fn prepare(
    operations: &Operations<'_>,
    mount: &SshMount,
) -> Result<Option<Agent>, StepError> {
    let Some(paths) = operations.run.ssh.get(&mount.id) else {
        return match mount.required {
            true => Err(StepError::SshMissing {
                id: mount.id.clone(),
            }),
            false => Ok(None),
        };
    };
    let fail = |what: String| {
        let id = mount.id.clone();
        move |source| StepError::Ssh { id, what, source }
    };
    let source = source(paths).map_err(|(what, error)| fail(what)(error))?;
    let dir = operations.store.temp_dir()?;
    let listen = || -> io::Result<(UnixListener, OwnedFd, OwnedFd)> {
        // A socket's path may be 107 bytes long, which a store's may exceed: this way it is short.
        let handle = store::fs::open_dir(dir.path()).map_err(|error| error.source)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let mode = Mode::from_raw_mode(mount.mode);
        rustix::fs::chmodat(&handle, SOCKET, mode, AtFlags::empty())?;
        if (mount.uid, mount.gid) != (0, 0) {
            let (uid, gid) = (Uid::from_raw(mount.uid), Gid::from_raw(mount.gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&handle, SOCKET, Some(uid), Some(gid), flags)?;
        }
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((listener, stopped, stop))
    };
    let (listener, stopped, stop) = listen().map_err(fail("make a socket".to_owned()))?;
    let thread = std::thread::Builder::new()
        .name("ssh-agent".to_owned())
        .spawn(move || serve(&listener, &stopped, &source))
        .map_err(fail("start a thread".to_owned()))?;
    Ok(Some(Agent {
        dir,
        stop: Some(stop),
        thread: Some(thread),
    }))
}

/// One socket, or keys in files.
fn source(paths: &[PathBuf]) -> Result<Source, (String, io::Error)> {
    let mut keys = Vec::new();
    for path in paths {
        let fail = |error| (format!("read `{}`", path.display()), error);
        let is_socket = std::fs::metadata(path)
            .map_err(fail)?
            .file_type()
            .is_socket();
        match is_socket {
            true if paths.len() == 1 => return Ok(Source::Socket(path.clone())),
            true => {
                let error = io::Error::other("a socket stands alone, not beside other paths");
                return Err(fail(error));
            }
            false => keys.push(keys::read(path).map_err(fail)?),
        }
    }
    Ok(Source::Keys(Arc::new(keys)))
}

/// Accepts connections until the other end of `stopped` is closed, then ends them all.
fn serve(listener: &UnixListener, stopped: &OwnedFd, source: &Source) {
    let open: Mutex<Vec<UnixStream>> = Mutex::default();
    std::thread::scope(|scope| {
        loop {
            let mut fds = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::new(stopped, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
            if !fds[1].revents().is_empty() {
                break;
            }
            let Ok((client, _)) = listener.accept() else {
                continue;
            };
            if let Err(error) = connect(scope, client, source, &open) {
                tracing::debug!(%error, "an SSH agent's connection failed");
            }
        }
        for stream in open.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            // It may be closed already.
            let _closed = stream.shutdown(Shutdown::Both);
        }
    });
}

fn connect<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    client: UnixStream,
    source: &Source,
    open: &Mutex<Vec<UnixStream>>,
) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let mut streams = vec![client.try_clone()?];
    let mut answering = match source {
        Source::Socket(path) => {
            let agent = connect_to(path)?;
            streams.push(agent.try_clone()?);
            Answering::Agent(agent)
        }
        Source::Keys(keys) => Answering::Keys(Arc::clone(keys)),
    };
    open.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(streams);
    let worker = std::thread::Builder::new().name("ssh-agent-connection".to_owned());
    worker.spawn_scoped(scope, move || {
        let mut client = client;
        // The step is told by the end of its connection.
        if let Err(error) = converse(&mut client, &mut answering) {
            tracing::debug!(%error, "an SSH agent's connection ended");
        }
        let _closed = client.shutdown(Shutdown::Both);
    })?;
    Ok(())
}

/// Connects to a socket whose path may be too long for a socket's address.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd()))
}

enum Answering {
    Agent(UnixStream),
    Keys(Arc<Vec<Key>>),
}

/// Answers requests until the client is gone.
fn converse(client: &mut UnixStream, answering: &mut Answering) -> io::Result<()> {
    while let Some(request) = receive(client)? {
        let answer = match (request.first(), &mut *answering) {
            (Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)), Answering::Agent(agent)) => {
                send(agent, &request)?;
                receive(agent)?.ok_or(io::ErrorKind::UnexpectedEof)?
            }
            (Some(&REQUEST_IDENTITIES), Answering::Keys(keys)) => identities(keys),
            (Some(&SIGN_REQUEST), Answering::Keys(keys)) => {
                sign(keys, &request[1..]).unwrap_or_else(|| vec![FAILURE])
            }
            _ => vec![FAILURE],
        };
        send(client, &answer)?;
    }
    Ok(())
}

fn identities(keys: &[Key]) -> Vec<u8> {
    let mut answer = vec![IDENTITIES_ANSWER];
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    answer.extend(count.to_be_bytes());
    for key in keys {
        keys::put(&mut answer, key.public());
        keys::put(&mut answer, key.comment().as_bytes());
    }
    answer
}

/// Signs what a request holds: the public key, the data and flags.
fn sign(keys: &[Key], request: &[u8]) -> Option<Vec<u8>> {
    let mut request = keys::Reader(request);
    let public = request.string()?;
    let data = request.string()?;
    let flags = request.number()?;
    let key = keys.iter().find(|key| key.public() == public)?;
    let mut answer = vec![SIGN_RESPONSE];
    keys::put(&mut answer, &key.sign(data, flags)?);
    Some(answer)
}

/// One message without its length; none at the end of the stream.
fn receive(stream: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("a message is too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message)?;
    Ok(Some(message))
}

fn send(stream: &mut UnixStream, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.extend(message);
    stream.write_all(&whole)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Serves `source` on a socket in `dir` while `work` runs.
    fn serving(dir: &Path, source: &Source, work: impl FnOnce(&Path)) {
        let socket = dir.join("served");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stopped, stop) = rustix::pipe::pipe().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&listener, &stopped, source));
            // Closed by a failed assertion too: the thread would be waited for for ever.
            let stop = stop;
            work(&socket);
            drop(stop);
        });
    }

    fn ssh(program: &str, socket: &Path, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(program);
        let output = command
            .args(arguments)
            .env("SSH_AUTH_SOCK", socket)
            .output()
            .expect("the tools of OpenSSH are installed: `./test` installs them");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    }

    fn opened(paths: &[PathBuf]) -> Source {
        source(paths).unwrap_or_else(|(what, error)| panic!("{what}: {error}"))
    }

    /// OpenSSH lists the keys and signs with them, and verifies what was signed.
    #[test]
    fn keys_in_files_sign() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut keys = Vec::new();
        let kinds = [
            ("ed25519", "256", "RFC4716"),
            ("ecdsa", "256", "RFC4716"),
            ("ecdsa", "384", "RFC4716"),
            ("rsa", "2048", "RFC4716"),
            ("rsa", "3072", "PEM"),
            ("rsa", "2048", "PKCS8"),
        ];
        for (number, (kind, bits, form)) in kinds.into_iter().enumerate() {
            let key = path(&format!("key{number}"));
            let what = [
                "-q", "-t", kind, "-b", bits, "-m", form, "-N", "", "-f", &key,
            ];
            assert!(ssh("ssh-keygen", dir.path(), &what).0, "{what:?}");
            keys.push(key);
        }
        let paths: Vec<PathBuf> = keys.iter().map(PathBuf::from).collect();
        let data = path("data");
        std::fs::write(&data, "what is signed").unwrap();
        serving(dir.path(), &opened(&paths), |socket| {
            let (listed, text) = ssh("ssh-add", socket, &["-L"]);
            assert!(listed);
            assert_eq!(text.lines().count(), keys.len());
            for key in &keys {
                let public = std::fs::read_to_string(format!("{key}.pub")).unwrap();
                let blob = public.split(' ').nth(1).unwrap();
                assert!(text.contains(blob), "{key} is not in {text}");
                let file = format!("{key}.pub");
                let what = ["-Y", "sign", "-n", "test", "-f", &file, &data];
                assert!(ssh("ssh-keygen", socket, &what).0, "{key}");
                std::fs::write(path("allowed"), format!("me {public}")).unwrap();
                let check = format!(
                    "ssh-keygen -Y verify -f {} -I me -n test -s {data}.sig < {data}",
                    path("allowed")
                );
                assert!(ssh("sh", socket, &["-c", &check]).0, "{key}");
                std::fs::remove_file(format!("{data}.sig")).unwrap();
            }
            // Nothing can be added or removed.
            assert!(!ssh("ssh-add", socket, &["-D"]).0);
            assert!(!ssh("ssh-add", socket, &[&keys[0]]).0);
        });
    }

    /// An agent that is passed on answers the same, and is as safe.
    #[test]
    fn agents_answer_through_the_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key").to_str().unwrap().to_owned();
        let what = ["-q", "-t", "ed25519", "-N", "", "-f", &key];
        assert!(ssh("ssh-keygen", dir.path(), &what).0);
        // The agent behind the proxy is one of our own.
        serving(dir.path(), &opened(&[PathBuf::from(&key)]), |agent| {
            let inner = tempfile::tempdir().unwrap();
            serving(inner.path(), &opened(&[agent.to_owned()]), |socket| {
                let (listed, keys) = ssh("ssh-add", socket, &["-L"]);
                assert!(listed);
                assert_eq!(keys, ssh("ssh-add", agent, &["-L"]).1);
                assert!(!ssh("ssh-add", socket, &["-D"]).0);
            });
        });
        assert!(source(&[dir.path().join("none")]).is_err());
    }

    #[test]
    fn broken_messages_end_a_connection() {
        let dir = tempfile::tempdir().unwrap();
        let none = Source::Keys(Arc::default());
        serving(dir.path(), &none, |socket| {
            let exchange = |bytes: &[u8]| {
                let mut stream = UnixStream::connect(socket).unwrap();
                stream.write_all(bytes).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap_or_default();
                answer
            };
            let no_keys = [0, 0, 0, 5, IDENTITIES_ANSWER, 0, 0, 0, 0];
            assert_eq!(exchange(&[0, 0, 0, 1, REQUEST_IDENTITIES]), no_keys);
            assert_eq!(exchange(&[0, 0, 0, 1, 99]), [0, 0, 0, 1, FAILURE]);
            assert_eq!(exchange(&[0, 0, 0, 1, SIGN_REQUEST]), [0, 0, 0, 1, FAILURE]);
            assert_eq!(exchange(&[0, 0, 0, 0]), [0, 0, 0, 1, FAILURE]);
            assert!(exchange(&[255, 255, 255, 255]).is_empty());
            assert!(exchange(&[0, 0, 0, 9, 1]).is_empty());
        });
    }
}
