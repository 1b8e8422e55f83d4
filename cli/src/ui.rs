//! Everything longshore says: data on stdout, words for people on stderr. Nothing else in the workspace prints.
//!
//! | module | shows |
//! |---|---|
//! | [`table`] | listings |
//! | [`human`] | sizes, ages and times |
//! | [`text`] | foreign text on a terminal |
//! | [`verdict`] | why steps ran |
//! | [`graph_page`] | a build as a page for the browser |
//! | [`progress`] | a build, a pull or a push while it runs: [`plain`], [`tty`], [`quiet`] or [`rawjson`] |
//! | [`lines`], [`tally`], [`transfers`], [`region`], [`colours`] | what those are made of |

pub mod colours;
pub mod graph_page;
pub mod human;
pub mod lines;
pub mod plain;
pub mod progress;
pub mod quiet;
pub mod rawjson;
pub mod region;
pub mod table;
pub mod tally;
pub mod text;
pub mod transfers;
pub mod tty;
pub mod verdict;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::error::{Blame, CliError, Kind};
use colours::Colours;

/// The terminal, or what stands in for it.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    /// Whether stderr takes colours.
    pub colour: bool,
    /// Whether stderr is a terminal that can be redrawn.
    pub live: bool,
    /// The colours of progress.
    pub colours: Colours,
    /// Lines of output that are shown of each running step, where the screen has room for them.
    pub log_lines: usize,
}

/// How many of a running step's lines are shown if nothing else is said: as many as docker shows.
const LOG_LINES: usize = 6;

impl Ui {
    /// Looks at stderr; `colour` is what the environment asks for, `dumb` a terminal that cannot be redrawn.
    pub fn new(colour: Option<bool>, dumb: bool) -> Ui {
        let terminal = io::stderr().is_terminal() && !dumb;
        Ui {
            colour: colour.unwrap_or(terminal),
            live: terminal,
            colours: Colours::default(),
            log_lines: LOG_LINES,
        }
    }

    /// Writes data to stdout as it is.
    ///
    /// A reader that has gone away is [`Kind::OutputClosed`], which ends the command without complaint.
    pub fn data(&self, text: impl AsRef<[u8]>) -> Result<(), CliError> {
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(text.as_ref())
            .and_then(|()| stdout.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(CliError::new(Kind::OutputClosed, error))
            }
            written => written.blame(Kind::Environment),
        }
    }

    /// Writes what a container wrote to its stderr to ours.
    pub fn error_data(&self, text: impl AsRef<[u8]>) -> Result<(), CliError> {
        let written = io::stderr().lock().write_all(text.as_ref());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(CliError::new(Kind::OutputClosed, error))
            }
            written => written.blame(Kind::Environment),
        }
    }

    /// Whether somebody would see data on a terminal.
    pub fn stdout_is_a_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Whether somebody can be asked: who reads stderr, and types on stdin.
    pub fn can_ask(&self) -> bool {
        io::stderr().is_terminal() && io::stdin().is_terminal()
    }

    /// Stdout as a file, for whoever writes data to it from another thread.
    pub fn stdout_file(&self) -> io::Result<std::fs::File> {
        use std::os::fd::AsFd;
        Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
    }

    /// Lets `write` write data to stdout as it comes.
    pub fn stream<E: Into<CliError>>(
        &self,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), CliError> {
        let mut stdout = Watched {
            out: io::stdout().lock(),
            closed: false,
        };
        let written = write(&mut stdout);
        if stdout.closed {
            let message = "nobody reads stdout any more";
            return Err(CliError::new(Kind::OutputClosed, message));
        }
        written.map_err(Into::into)?;
        stdout.flush().blame(Kind::Environment)
    }

    /// Writes one line of data.
    pub fn line(&self, text: &str) -> Result<(), CliError> {
        self.data(format!("{text}\n"))
    }

    /// Writes one JSON object on one line.
    pub fn json_line(&self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).expect("our own types have text keys");
        self.line(&text)
    }

    /// Writes a JSON document over several lines, as `docker inspect` indents it.
    pub fn json_document(&self, value: &impl Serialize) -> Result<(), CliError> {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        value
            .serialize(&mut serializer)
            .expect("our own types have text keys");
        text.push(b'\n');
        self.data(text)
    }

    /// Tells people something that is no data.
    pub fn note(&self, text: &str) {
        say(&format!("{text}\n"));
    }

    /// Tells people about something odd.
    pub fn warning(&self, text: &str) {
        say(&format!("{}: {text}\n", self.paint("33;1", "warning")));
    }

    /// Tells people what went wrong, why, and what to do.
    pub fn error(&self, error: &CliError) {
        if let Some(rendered) = error.rendered_text() {
            say(&format!("{rendered}\n"));
            return;
        }
        let chain = error.chain();
        let mut text = format!("{}: {}\n", self.paint("31;1", "error"), chain[0]);
        for cause in &chain[1..] {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        if let Some(hint) = error.hint_text() {
            text.push_str(&format!("{}: {hint}\n", self.paint("36;1", "hint")));
        }
        say(&text);
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Stdout, remembering whether its reader has gone away: whoever writes through it may hide why it failed.
struct Watched<W> {
    out: W,
    closed: bool,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes);
        self.closed |= matches!(&written, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes to stderr. Where that fails there is nobody left to tell.
fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Asks on the terminal for a line; without its newline.
pub fn ask(question: &str) -> io::Result<String> {
    say(question);
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The same; `None` where there are no more lines.
pub fn ask_or_end(question: &str) -> io::Result<Option<String>> {
    say(question);
    let mut line = String::new();
    let length = io::stdin().read_line(&mut line)?;
    Ok((length > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Asks on the terminal for a line that is not shown while it is typed.
pub fn ask_secret(question: &str) -> io::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let answer = ask(question);
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    say("\n");
    answer
}

/// Columns and rows of the terminal behind stderr.
pub fn terminal_size() -> (usize, usize) {
    /// What a terminal has that does not say: a VT100's.
    const FALLBACK: (usize, usize) = (80, 24);
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            (usize::from(size.ws_col), usize::from(size.ws_row))
        }
        _ => FALLBACK,
    }
}
