//! What a container printed, as docker's `json-file` driver keeps it.
//!
//! `log.json` has one line per line: `{"log":"text\n","stream":"stdout","time":"…"}`. A line that is longer than
//! [`LINE_BYTES_MAX`], or the last one if nothing ends it, has a `log` without a line feed. Full files move on to
//! `log.json.1`, `log.json.2` and so on, the oldest last.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::folder::{Folder, FolderError, failed};
use super::plan::LogLimits;
use super::time::rfc3339;

/// The longest line that is kept in one piece, as in docker.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// The longest encoded line: each byte may become `\u0000`, and the rest is short.
const ENCODED_BYTES_MAX: u64 = 8 * LINE_BYTES_MAX as u64;

const NAME: &str = "log.json";

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What was printed, with its line feed.
    pub log: String,
    /// Where.
    pub stream: Source,
    /// When its end was read, RFC 3339.
    pub time: String,
}

/// The supervisor's end.
#[derive(Debug)]
pub(super) struct Writer {
    limits: LogLimits,
    file: File,
    bytes: u64,
    /// What was read of lines that have not ended, by stream.
    begun: [Vec<u8>; 2],
}

impl Writer {
    pub(super) fn open(folder: &Folder, limits: LogLimits) -> Result<Writer, FolderError> {
        let (file, bytes) = open_to_append(folder)?;
        Ok(Writer {
            limits,
            file,
            bytes,
            begun: [Vec::new(), Vec::new()],
        })
    }

    /// Adds what was printed.
    pub(super) fn write(
        &mut self,
        folder: &Folder,
        source: Source,
        mut printed: &[u8],
    ) -> Result<(), FolderError> {
        let mut lines = Vec::new();
        let time = rfc3339(SystemTime::now());
        while !printed.is_empty() {
            let begun = &mut self.begun[source as usize];
            let room = LINE_BYTES_MAX - begun.len();
            let end = printed.iter().take(room).position(|byte| *byte == b'\n');
            let taken = end.map_or(room.min(printed.len()), |end| end + 1);
            begun.extend_from_slice(&printed[..taken]);
            printed = &printed[taken..];
            if end.is_some() || begun.len() >= LINE_BYTES_MAX {
                encode(&mut lines, begun, source, &time);
                begun.clear();
            }
        }
        self.append(folder, &lines)
    }

    /// Adds what no line feed has ended: nothing more will come.
    pub(super) fn finish(&mut self, folder: &Folder) -> Result<(), FolderError> {
        let mut lines = Vec::new();
        let time = rfc3339(SystemTime::now());
        for source in [Source::Stdout, Source::Stderr] {
            let begun = std::mem::take(&mut self.begun[source as usize]);
            if !begun.is_empty() {
                encode(&mut lines, &begun, source, &time);
            }
        }
        self.append(folder, &lines)
    }

    fn append(&mut self, folder: &Folder, lines: &[u8]) -> Result<(), FolderError> {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let added = line.len() as u64;
            let is_full = self
                .limits
                .bytes_max
                .is_some_and(|max| self.bytes + added > max);
            if is_full && self.bytes > 0 {
                self.rotate(folder)?;
            }
            let written = self.file.write_all(line);
            written.map_err(|error| failed("write", &folder.path().join(NAME), error))?;
            self.bytes += added;
        }
        Ok(())
    }

    fn rotate(&mut self, folder: &Folder) -> Result<(), FolderError> {
        let fail =
            |errno: rustix::io::Errno| failed("rotate", &folder.path().join(NAME), errno.into());
        if self.limits.files_max <= 1 {
            rustix::fs::ftruncate(&self.file, 0).map_err(fail)?;
            self.bytes = 0;
            return Ok(());
        }
        for number in (0..self.limits.files_max - 1).rev() {
            let (from, to) = (name(number), name(number + 1));
            match rustix::fs::renameat(folder, &from, folder, &to) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(fail(errno)),
            }
        }
        (self.file, self.bytes) = open_to_append(folder)?;
        Ok(())
    }
}

fn encode(lines: &mut Vec<u8>, printed: &[u8], stream: Source, time: &str) {
    let line = Line {
        log: String::from_utf8_lossy(printed).into_owned(),
        stream,
        time: time.to_owned(),
    };
    serde_json::to_writer(&mut *lines, &line).expect("a struct of texts can be encoded");
    lines.push(b'\n');
}

fn open_to_append(folder: &Folder) -> Result<(File, u64), FolderError> {
    let fail = |error| failed("open", &folder.path().join(NAME), error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, NAME, flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(file.map_err(|errno| fail(errno.into()))?);
    let bytes = file.metadata().map_err(fail)?.len();
    Ok((file, bytes))
}

/// The file that was rotated so often.
fn name(number: u32) -> String {
    match number {
        0 => NAME.to_owned(),
        number => format!("{NAME}.{number}"),
    }
}

/// Reads a log from its oldest line on, also while it is written.
#[derive(Debug)]
pub struct Reader<'a> {
    folder: &'a Folder,
    /// Older files that are still to be read, the next one last.
    older: Vec<File>,
    now: Option<BufReader<File>>,
}

impl<'a> Reader<'a> {
    /// Begins with the oldest line that is kept.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn open(folder: &'a Folder) -> Result<Reader<'a>, FolderError> {
        let mut older = Vec::new();
        for number in 0.. {
            match open(folder, &name(number))? {
                Some(file) => older.push(file),
                // There is no newest one for a moment while files are moved on.
                None if number == 0 => {}
                None => break,
            }
        }
        let now = older.pop().map(BufReader::new);
        Ok(Reader { folder, older, now })
    }

    /// The next line; `None` if there is none yet.
    ///
    /// # Errors
    /// A file cannot be read, or a line of it makes no sense.
    pub fn next_line(&mut self) -> Result<Option<Line>, FolderError> {
        loop {
            if self.now.is_none() {
                self.now = open(self.folder, NAME)?.map(BufReader::new);
            }
            let Some(file) = &mut self.now else {
                return Ok(None);
            };
            let path = self.folder.path().join(NAME);
            let fail = |error| failed("read", &path, error);
            let mut text = Vec::new();
            let count = (&mut *file)
                .take(ENCODED_BYTES_MAX)
                .read_until(b'\n', &mut text)
                .map_err(fail)?;
            if text.ends_with(b"\n") {
                let line = serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
                return Ok(Some(line));
            }
            // A line that is being written, or one that a crash tore: it is looked at again.
            let back = i64::try_from(count).unwrap_or(0);
            file.seek_relative(-back).map_err(fail)?;
            if let Some(next) = self.older.pop() {
                self.now = Some(BufReader::new(next));
            } else if !self.go_on().map_err(fail)? {
                return Ok(None);
            }
        }
    }

    /// Goes on where the writer does, after it has begun a new file; whether it has.
    fn go_on(&mut self) -> io::Result<bool> {
        let Some(file) = &mut self.now else {
            return Ok(false);
        };
        let own = rustix::fs::fstat(file.get_ref().as_fd())?;
        let at = file.stream_position()?;
        if u64::try_from(own.st_size).unwrap_or(0) < at {
            file.seek(SeekFrom::Start(0))?;
            return Ok(own.st_size > 0);
        }
        loop {
            // What was written before it was moved on has been read, unless it came this moment.
            let len = rustix::fs::fstat(file.get_ref())?.st_size;
            let next = match find(self.folder, own.st_ino)? {
                Some(0) => return Ok(false),
                _ if u64::try_from(len).unwrap_or(0) > at => return Ok(true),
                Some(number) => number - 1,
                // So many came since that it is gone: on with the oldest.
                None => count(self.folder)?.saturating_sub(1),
            };
            let opened = open(self.folder, &name(next)).map_err(|error| error.source)?;
            // Unless they were moved on between the two looks.
            let expected = next + 1;
            let found = find(self.folder, own.st_ino)?;
            if let Some(opened) = opened
                && found.is_none_or(|number| number == expected)
            {
                self.now = Some(BufReader::new(opened));
                return Ok(true);
            }
        }
    }
}

/// Where the file with this inode stands.
fn find(folder: &Folder, inode: u64) -> io::Result<Option<u32>> {
    for number in 0.. {
        match rustix::fs::statat(folder, name(number), rustix::fs::AtFlags::empty()) {
            Ok(named) if named.st_ino == inode => return Ok(Some(number)),
            Ok(_) => {}
            // There is no newest one for a moment while files are moved on.
            Err(rustix::io::Errno::NOENT) if number == 0 => {}
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// How many files there are.
fn count(folder: &Folder) -> io::Result<u32> {
    for number in 0.. {
        match rustix::fs::statat(folder, name(number), rustix::fs::AtFlags::empty()) {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) if number == 0 => {}
            Err(rustix::io::Errno::NOENT) => return Ok(number),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(u32::MAX)
}

fn open(folder: &Folder, name: &str) -> Result<Option<File>, FolderError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(failed("open", &folder.path().join(name), errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(reader: &mut Reader<'_>) -> Vec<String> {
        std::iter::from_fn(|| reader.next_line().unwrap())
            .map(|line| line.log)
            .collect()
    }

    #[test]
    fn lines_are_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut writer = Writer::open(&folder, LogLimits::default()).unwrap();
        let mut reader = Reader::open(&folder).unwrap();
        let mut add = |source, text: &[u8]| writer.write(&folder, source, text).unwrap();
        add(Source::Stdout, b"one\ntw");
        add(Source::Stderr, b"\xff\n");
        assert_eq!(read(&mut reader), ["one\n", "\u{fffd}\n"]);
        add(Source::Stdout, b"o\nrest");
        assert_eq!(read(&mut reader), ["two\n"]);
        add(Source::Stderr, &[b'x'; LINE_BYTES_MAX + 1]);
        assert_eq!(read(&mut reader), ["x".repeat(LINE_BYTES_MAX)]);
        writer.finish(&folder).unwrap();
        assert_eq!(read(&mut reader), ["rest", "x"]);
        let text = std::fs::read_to_string(dir.path().join("log.json")).unwrap();
        assert!(text.starts_with("{\"log\":\"one\\n\",\"stream\":\"stdout\",\"time\":\"2"));
    }

    #[test]
    fn full_files_move_on() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let limits = LogLimits {
            bytes_max: Some(200),
            files_max: 3,
        };
        let mut writer = Writer::open(&folder, limits).unwrap();
        let mut follower = Reader::open(&folder).unwrap();
        let mut followed = Vec::new();
        for number in 0..20 {
            let line = format!("{number}\n");
            writer
                .write(&folder, Source::Stdout, line.as_bytes())
                .unwrap();
            followed.extend(read(&mut follower));
        }
        let all: Vec<String> = (0..20).map(|number| format!("{number}\n")).collect();
        assert_eq!(followed, all, "who follows misses nothing");
        let kept = read(&mut Reader::open(&folder).unwrap());
        assert!((3..10).contains(&kept.len()), "{kept:?}");
        assert_eq!(
            kept,
            all[20 - kept.len()..],
            "the newest are kept, in order"
        );
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 3);
    }

    #[test]
    fn a_single_file_begins_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let limits = LogLimits {
            bytes_max: Some(150),
            files_max: 1,
        };
        let mut writer = Writer::open(&folder, limits).unwrap();
        for number in 0..9 {
            let line = format!("{number}\n");
            writer
                .write(&folder, Source::Stdout, line.as_bytes())
                .unwrap();
        }
        let kept = read(&mut Reader::open(&folder).unwrap());
        assert_eq!(kept.last().map(String::as_str), Some("8\n"));
        assert!(kept.len() <= 2, "{kept:?}");
    }
}
