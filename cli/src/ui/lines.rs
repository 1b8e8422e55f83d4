//! What processes write, cut into lines and kept within bounds.

use std::collections::VecDeque;

use builder::solve::OutputStream;

/// Longest line that is waited for, in bytes: of a longer one, each part is a line.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Most output of one step that is kept to be shown if the step fails; what is older is dropped, and that is said.
const LOG_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds bytes and returns the lines that are complete with them, without their newlines.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(&rest[..end]);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            lines.push(line);
            rest = &rest[end + 1..];
        }
        self.partial.extend_from_slice(rest);
        if self.partial.len() > LINE_BYTES_MAX {
            lines.push(std::mem::take(&mut self.partial));
        }
        lines
    }

    /// The last line, where it came without a newline.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }

    /// What there is of a line that is not complete.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }
}

/// The two streams of a process, each cut into lines of its own.
#[derive(Debug, Default)]
pub struct Streams {
    stdout: Lines,
    stderr: Lines,
}

impl Streams {
    /// Adds bytes of one of them and returns the lines that are complete with them.
    pub fn push(&mut self, stream: OutputStream, bytes: &[u8]) -> Vec<Vec<u8>> {
        match stream {
            OutputStream::Stdout => self.stdout.push(bytes),
            OutputStream::Stderr => self.stderr.push(bytes),
        }
    }

    /// The last lines, where they came without a newline.
    pub fn rest(&mut self) -> Vec<Vec<u8>> {
        let rests = [self.stdout.rest(), self.stderr.rest()];
        rests.into_iter().flatten().collect()
    }

    /// Lines that are not complete.
    pub fn partials(&self) -> impl Iterator<Item = &[u8]> {
        let partials = [self.stdout.partial(), self.stderr.partial()];
        partials.into_iter().filter(|partial| !partial.is_empty())
    }
}

/// The lines that a step wrote, kept to be shown while it runs, and if it fails.
#[derive(Debug, Default)]
pub struct Log {
    streams: Streams,
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: usize,
}

impl Log {
    /// Adds what was written.
    pub fn push(&mut self, stream: OutputStream, bytes: &[u8]) {
        for line in self.streams.push(stream, bytes) {
            self.line(line);
        }
    }

    /// Nothing more will be written.
    pub fn end(&mut self) {
        for line in self.streams.rest() {
            self.line(line);
        }
    }

    fn line(&mut self, line: Vec<u8>) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > LOG_BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len() + 1;
            self.dropped += 1;
        }
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The newest lines, oldest first, with those that are not complete.
    pub fn tail(&self, count: usize) -> Vec<&[u8]> {
        let partials: Vec<&[u8]> = self.streams.partials().collect();
        let mut tail = Vec::new();
        let lines = self.lines.iter().rev().map(Vec::as_slice);
        let newest = partials.into_iter().rev().chain(lines);
        tail.extend(newest.take(count));
        tail.reverse();
        tail
    }

    /// The last `count` lines between two rules and below the step's name, as buildctl shows the output of a failed step;
    /// each as `show` writes it. `whole` says where all of it is, if not here.
    pub fn report(
        &self,
        name: &str,
        count: usize,
        whole: Option<&str>,
        show: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Vec<u8> {
        let mut text = format!("------\n > {name}:\n").into_bytes();
        let skipped = self.lines.len().saturating_sub(count);
        if self.dropped + skipped > 0 {
            let note = format!("[{} lines before these", self.dropped + skipped);
            text.extend_from_slice(note.as_bytes());
            if let Some(whole) = whole {
                text.extend_from_slice(format!(": {whole}").as_bytes());
            }
            text.extend_from_slice(b"]\n");
        }
        for line in self.lines.range(skipped..) {
            text.extend_from_slice(&show(line));
            text.push(b'\n');
        }
        text.extend_from_slice(b"------\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: OutputStream = OutputStream::Stdout;
    const ERR: OutputStream = OutputStream::Stderr;

    #[test]
    fn bytes_become_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb"), [b"a"]);
        assert!(lines.push(b"c").is_empty());
        assert_eq!(lines.push(b"\r\n\n"), [b"bc".to_vec(), Vec::new()]);
        assert_eq!(lines.rest(), None);
        lines.push(b"end");
        assert_eq!(lines.rest(), Some(b"end".to_vec()));
    }

    #[test]
    fn a_line_without_an_end_is_not_waited_for() {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for _ in 0..5 {
            all.extend(lines.push(&vec![b'x'; LINE_BYTES_MAX / 2]).concat());
            assert!(lines.partial().len() <= LINE_BYTES_MAX);
        }
        all.extend(lines.rest().unwrap_or_default());
        assert_eq!(all, vec![b'x'; 5 * (LINE_BYTES_MAX / 2)]);
    }

    #[test]
    fn streams_do_not_tear_each_others_lines() {
        let mut log = Log::default();
        log.push(OUT, b"one and ");
        log.push(ERR, b"error\npart");
        assert_eq!(log.tail(9), [&b"error"[..], b"one and ", b"part"]);
        log.push(OUT, b"two\n");
        log.end();
        assert_eq!(log.tail(9), [&b"error"[..], b"one and two", b"part"]);
        assert_eq!(log.tail(1), [b"part"]);
    }

    #[test]
    fn logs_are_bounded_and_say_so() {
        let mut log = Log::default();
        for _ in 0..20 {
            log.push(OUT, &vec![b'x'; LINE_BYTES_MAX - 1]);
            log.push(OUT, b"\n");
        }
        assert!(log.bytes <= LOG_BYTES_MAX);
        let report = log.report("[1/1] RUN x", 3, Some("elsewhere"), <[u8]>::to_vec);
        let start = b"------\n > [1/1] RUN x:\n[17 lines before these: elsewhere]\n";
        assert!(report.starts_with(start));
        assert!(Log::default().is_empty() && !log.is_empty());
    }
}
