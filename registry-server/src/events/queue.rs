//! What waits for an endpoint.
//!
//! ```text
//! _webhooks/<name>/<millis>-<uuid>.events     lines: a mark (`-` waits, `+` is done), an event as JSON, a newline
//! ```
//!
//! A file belongs to the process that holds its lock: several servers on one folder each write their own, and what a process
//! left that is dead is taken over by whoever finds it. A line counts once it is whole, so a process may be killed anywhere; a
//! mark is one byte, written in place. Files go when all their lines are done. Where there is no folder, what waits is in
//! memory and ends with the process.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;
use tokio::sync::Notify;

use crate::routes::UploadId;
use crate::storage::StorageError;

/// How a file's name ends.
const SUFFIX: &str = ".events";

/// A file that is longer gets no more lines, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Longest line that is read; ours are far shorter.
const LINE_BYTES_MAX: u64 = 64 * 1024;

const WAITS: u8 = b'-';
const DONE: u8 = b'+';

/// Events in the order in which they came.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    folder: Option<PathBuf>,
    /// Told of each that comes.
    pub(super) more: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Entry>,
    /// The file that lines are added to.
    writing: Option<Arc<LogFile>>,
}

/// One that waits.
#[derive(Clone, Debug)]
pub(super) struct Entry(Place);

#[derive(Clone, Debug)]
enum Place {
    Memory(Arc<[u8]>),
    File {
        file: Arc<LogFile>,
        offset: u64,
        len: usize,
    },
}

/// A file of lines, locked; removed when nobody needs it any more and all in it is done.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    counts: Mutex<LogCounts>,
}

#[derive(Debug, Default)]
struct LogCounts {
    /// Where the next line goes.
    end: u64,
    waiting: usize,
}

impl Drop for LogFile {
    fn drop(&mut self) {
        if self.counts().waiting == 0 {
            // It is found, and removed, the next time.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl LogFile {
    fn counts(&self) -> MutexGuard<'_, LogCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// The queue in a folder, with what was left there; without a folder, one in memory.
    pub(super) fn open(folder: Option<PathBuf>) -> Result<Queue, StorageError> {
        let queue = Queue {
            state: Mutex::default(),
            folder,
            more: Notify::new(),
        };
        if let Some(folder) = &queue.folder {
            let made = fs::create_dir_all(folder);
            made.map_err(|source| StorageError::Io {
                action: "make",
                path: folder.clone(),
                source,
            })?;
        }
        queue.adopt()?;
        Ok(queue)
    }

    /// Whether what waits outlives the process.
    pub(super) fn lasts(&self) -> bool {
        self.folder.is_some()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event unless `most` wait; whether it did. Blocks.
    pub(super) fn put(&self, line: &[u8], most: usize) -> Result<bool, StorageError> {
        let mut state = self.state();
        if state.waiting.len() >= most {
            return Ok(false);
        }
        let place = match &self.folder {
            None => Place::Memory(line.into()),
            Some(folder) => self.write(&mut state, folder, line)?,
        };
        state.waiting.push_back(Entry(place));
        drop(state);
        self.more.notify_one();
        Ok(true)
    }

    fn write(&self, state: &mut State, folder: &Path, line: &[u8]) -> Result<Place, StorageError> {
        let full = |file: &Arc<LogFile>| file.counts().end >= FILE_BYTES_MAX;
        if state.writing.as_ref().is_none_or(full) {
            state.writing = Some(new_file(folder)?);
        }
        let file = state.writing.clone().expect("it was just set");
        let mut counts = file.counts();
        let mut bytes = Vec::with_capacity(line.len() + 2);
        bytes.push(WAITS);
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
        let offset = counts.end;
        let written = file.file.write_all_at(&bytes, offset);
        if let Err(source) = written {
            // What came of it has no end, or is overwritten by the next.
            let _ = file.file.set_len(offset);
            return Err(StorageError::Io {
                action: "write",
                path: file.path.clone(),
                source,
            });
        }
        counts.end += bytes.len() as u64;
        counts.waiting += 1;
        drop(counts);
        Ok(Place::File {
            file,
            offset,
            len: line.len(),
        })
    }

    /// The one that came first of those that wait.
    pub(super) fn first(&self) -> Option<Entry> {
        self.state().waiting.front().cloned()
    }

    /// The first one waits no more. Blocks.
    pub(super) fn done(&self) -> io::Result<()> {
        let mut state = self.state();
        let Some(Entry(place)) = state.waiting.pop_front() else {
            return Ok(());
        };
        let Place::File { file, offset, .. } = place else {
            return Ok(());
        };
        let marked = file.file.write_all_at(&[DONE], offset);
        let idle = {
            let mut counts = file.counts();
            counts.waiting -= 1;
            counts.waiting == 0 && counts.end >= FILE_BYTES_MAX / 64
        };
        // A queue that is empty takes no room.
        let is_writing = |writing: &Arc<LogFile>| Arc::ptr_eq(writing, &file);
        if idle && state.writing.as_ref().is_some_and(is_writing) {
            state.writing = None;
        }
        marked
    }

    /// Takes over what processes left that are dead. Blocks.
    pub(super) fn adopt(&self) -> Result<(), StorageError> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let failed = |source| StorageError::Io {
            action: "read",
            path: folder.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if name.to_str().is_some_and(|name| name.ends_with(SUFFIX)) {
                names.push(name);
            }
        }
        // Their names begin with when they were made.
        names.sort_unstable();
        for name in names {
            let path = folder.join(name);
            if let Some((file, found)) = take_over(&path).map_err(failed)? {
                tracing::debug!(path = %path.display(), count = found.len(), "found events of before");
                let mut state = self.state();
                for (offset, len) in found {
                    let file = Arc::clone(&file);
                    state
                        .waiting
                        .push_back(Entry(Place::File { file, offset, len }));
                }
                drop(state);
                self.more.notify_one();
            }
        }
        Ok(())
    }
}

impl Entry {
    /// The event. Blocks.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        match &self.0 {
            Place::Memory(bytes) => Ok(bytes.to_vec()),
            Place::File { file, offset, len } => {
                let mut bytes = vec![0; *len];
                file.file.read_exact_at(&mut bytes, offset + 1)?;
                Ok(bytes)
            }
        }
    }
}

fn new_file(folder: &Path) -> Result<Arc<LogFile>, StorageError> {
    loop {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let millis = since.unwrap_or_default().as_millis();
        let path = folder.join(format!("{millis:015}-{}{SUFFIX}", UploadId::random()));
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let opened = options.open(&path).and_then(|file| {
            // Somebody who looks for what was left may have been quicker, and taken it for that.
            let mine = is_locked(&file)? && file.metadata()?.nlink() > 0;
            Ok(mine.then_some(file))
        });
        let opened = opened.map_err(|source| StorageError::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        if let Some(file) = opened {
            let counts = Mutex::default();
            return Ok(Arc::new(LogFile { path, file, counts }));
        }
    }
}

/// Tries to lock a file; false if somebody else has it.
fn is_locked(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A file that nobody holds, and where in it lines wait.
type Found = (Arc<LogFile>, Vec<(u64, usize)>);

fn take_over(path: &Path) -> io::Result<Option<Found>> {
    let opened = File::options().read(true).write(true).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !is_locked(&file)? || file.metadata()?.nlink() == 0 {
        return Ok(None);
    }
    let mut waiting = Vec::new();
    let mut reader = BufReader::new(&file);
    let (mut offset, mut line) = (0u64, Vec::new());
    loop {
        line.clear();
        let count = (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)?;
        // One without an end was being written when its process died; so nobody was told that it is there.
        if count == 0 || line.last() != Some(&b'\n') {
            break;
        }
        if line[0] == WAITS {
            waiting.push((offset, line.len() - 2));
        }
        offset += count as u64;
    }
    let counts = Mutex::new(LogCounts {
        end: offset,
        waiting: waiting.len(),
    });
    let path = path.to_owned();
    Ok(Some((Arc::new(LogFile { path, file, counts }), waiting)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(queue: &Queue) -> Vec<String> {
        let waiting: Vec<Entry> = queue.state().waiting.iter().cloned().collect();
        let read = |entry: Entry| String::from_utf8(entry.read().unwrap()).unwrap();
        waiting.into_iter().map(read).collect()
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_waits_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let place = Some(folder.path().join("hook"));
        let queue = Queue::open(place.clone()).unwrap();
        for text in ["one", "two", "three"] {
            assert!(queue.put(text.as_bytes(), 3).unwrap());
        }
        assert!(!queue.put(b"four", 3).unwrap(), "three may wait");
        queue.done().unwrap();
        drop(queue);
        let queue = Queue::open(place).unwrap();
        assert_eq!(texts(&queue), ["two", "three"]);
        queue.put(b"five", 9).unwrap();
        assert_eq!(texts(&queue), ["two", "three", "five"]);
        for _ in 0..3 {
            queue.done().unwrap();
        }
        drop(queue);
        assert_eq!(files(&folder.path().join("hook")), 0);
    }

    #[test]
    fn what_another_process_writes_is_its_own_until_it_is_dead() {
        let folder = tempfile::tempdir().unwrap();
        let place = Some(folder.path().to_owned());
        let (mine, theirs) = (
            Queue::open(place.clone()).unwrap(),
            Queue::open(place).unwrap(),
        );
        mine.put(b"mine", 9).unwrap();
        theirs.put(b"theirs", 9).unwrap();
        mine.adopt().unwrap();
        assert_eq!(texts(&mine), ["mine"]);
        drop(theirs);
        mine.adopt().unwrap();
        assert_eq!(texts(&mine), ["mine", "theirs"]);
        mine.adopt().unwrap();
        assert_eq!(mine.len(), 2);
    }

    #[test]
    fn a_line_that_was_being_written_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("000-x.events");
        fs::write(&file, "+done\n-whole\n-cut").unwrap();
        let queue = Queue::open(Some(folder.path().to_owned())).unwrap();
        assert_eq!(texts(&queue), ["whole"]);
        queue.done().unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn files_that_are_done_go_and_long_ones_are_followed_by_others() {
        let folder = tempfile::tempdir().unwrap();
        let queue = Queue::open(Some(folder.path().to_owned())).unwrap();
        let line = vec![b'x'; 60_000];
        let count = usize::try_from(FILE_BYTES_MAX / 60_000 + 5).unwrap();
        for _ in 0..count {
            queue.put(&line, usize::MAX).unwrap();
        }
        assert_eq!(files(folder.path()), 2);
        for _ in 0..count {
            assert_eq!(queue.first().unwrap().read().unwrap(), line);
            queue.done().unwrap();
        }
        assert!(queue.first().is_none());
        assert_eq!(files(folder.path()), 0, "it was longer than is kept");
        queue.put(b"next", 1).unwrap();
        assert_eq!(texts(&queue), ["next"]);
    }

    #[test]
    fn memory_forgets() {
        let queue = Queue::open(None).unwrap();
        assert!(queue.put(b"one", 1).unwrap());
        assert!(!queue.put(b"two", 1).unwrap());
        assert_eq!(texts(&queue), ["one"]);
        queue.done().unwrap();
        assert_eq!(queue.len(), 0);
        assert!(!queue.lasts());
    }
}
