//! What a Dockerfile says, with the place of every part.
//!
//! Words are kept as written: quotes, escapes and variables are resolved by lowering, which knows the variables'
//! values. [`Dockerfile::pieces`] tile the text, so every byte belongs to exactly one of them.

use std::ops::Range;

use super::source::Span;

/// A parsed Dockerfile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// Parser directives (`# syntax=`, `# escape=`, `# check=`), in order.
    pub directives: Vec<Directive>,
    /// The escape character, `\` unless a directive says otherwise.
    pub escape: Escape,
    /// All of the text, piece by piece.
    pub pieces: Vec<Piece>,
    /// The instructions, in order.
    pub instructions: Vec<Instruction>,
    /// The stages, in order; what stands before the first one are global `ARG`s.
    pub stages: Vec<Stage>,
}

impl Dockerfile {
    /// The instructions before the first `FROM`.
    pub fn globals(&self) -> &[Instruction] {
        let end = self
            .stages
            .first()
            .map_or(self.instructions.len(), |stage| stage.from);
        &self.instructions[..end]
    }
}

/// The character that continues lines and escapes characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Escape(pub char);

impl Default for Escape {
    fn default() -> Escape {
        Escape('\\')
    }
}

/// One line of the head of the file that speaks to the parser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// Its name, in lower case.
    pub name: String,
    /// Its value.
    pub value: Word,
    /// The line without its end.
    pub span: Span,
}

/// A part of the text; the pieces of a file follow on each other without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its bytes, with the end of its last line.
    pub span: Span,
    /// What it is.
    pub kind: PieceKind,
}

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// A byte order mark, or lines with nothing in them.
    Blank,
    /// A line that begins with `#`.
    Comment,
    /// The directive of this index.
    Directive(usize),
    /// All that follows the last instruction that is read, where there are too many.
    Unread,
    /// The instruction of this index, with its continuation lines, the comments between them and its here-documents.
    Instruction(usize),
}

/// `FROM` and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Index of its `FROM`.
    pub from: usize,
    /// Indices of its other instructions.
    pub body: Range<usize>,
}

/// A text as written, continuation lines joined, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// The text; quotes, escapes and variables untouched.
    pub text: String,
    /// From its first to its last byte, and so perhaps over several lines.
    pub span: Span,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// From the first letter of its name to the end of its last line, here-documents included.
    pub span: Span,
    /// From the first letter of its name to the end of its arguments, here-documents not included.
    pub head: Span,
    /// Its name as written.
    pub keyword: Word,
    /// The whole of it with continuation lines joined, here-documents not included.
    pub line: String,
    /// Its `--flags`, all of them, in order.
    pub flags: Vec<Flag>,
    /// What it says.
    pub kind: InstructionKind,
    /// The here-documents that it opens, in order.
    pub heredocs: Vec<Heredoc>,
}

impl Instruction {
    /// The last flag of a name.
    pub fn flag(&self, name: &str) -> Option<&Flag> {
        self.flags.iter().rev().find(|flag| flag.name == name)
    }
}

/// `--name` or `--name=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its name without dashes.
    pub name: String,
    /// What follows `=`, with quotes and escapes removed.
    pub value: Option<String>,
    /// Where it stands.
    pub span: Span,
}

/// `<<NAME` and the lines that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The number before `<<`; 0 if there is none.
    pub fd: u32,
    /// The word that ends it, without quotes.
    pub name: String,
    /// Whether variables in it are expanded: no part of the name is quoted.
    pub expand: bool,
    /// `<<-`: tabs at the start of its lines are dropped.
    pub strip_tabs: bool,
    /// Where the word stands, with its `<<`.
    pub word: Span,
    /// Its lines, with their ends, without the line that ends it.
    pub body: Span,
}

/// What an instruction says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionKind {
    /// `FROM image [AS name]`
    From(From),
    /// `RUN command`
    Run(Command),
    /// `COPY source… dest`
    Copy(Copy),
    /// `ADD source… dest`
    Add(Copy),
    /// `ENV key=value…`
    Env(KeyValues),
    /// `LABEL key=value…`
    Label(KeyValues),
    /// `ARG name[=default]…`
    Arg(Vec<ArgDeclaration>),
    /// `WORKDIR path`
    Workdir(Word),
    /// `USER user[:group]`
    User(Word),
    /// `CMD command`
    Cmd(Command),
    /// `ENTRYPOINT command`
    Entrypoint(Command),
    /// `EXPOSE port…`
    Expose(Vec<Word>),
    /// `VOLUME path…`
    Volume(Vec<Word>),
    /// `STOPSIGNAL signal`
    StopSignal(Word),
    /// `SHELL ["program", "argument"…]`
    Shell(Vec<Word>),
    /// `HEALTHCHECK …`
    Healthcheck(Healthcheck),
    /// `MAINTAINER name`
    Maintainer(Word),
    /// `ONBUILD instruction`
    Onbuild(Box<Instruction>),
    /// Something that a diagnostic has been given for.
    Invalid,
}

/// The arguments of `FROM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// The image, or the name of an earlier stage.
    pub image: Word,
    /// The stage's name as written.
    pub name: Option<Word>,
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// For the shell.
    Shell(Word),
    /// Program and arguments, from a JSON array.
    Exec(Vec<Word>),
}

/// The arguments of `COPY` and `ADD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What to copy, here-documents left out.
    pub sources: Vec<Word>,
    /// Where to.
    pub dest: Word,
}

/// The arguments of `ENV` and `LABEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValues {
    /// The pairs, in order.
    pub pairs: Vec<KeyValue>,
    /// Written as `key value`, without `=`.
    pub legacy: bool,
}

/// `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// Before the first `=`.
    pub key: Word,
    /// After it.
    pub value: Word,
}

/// `name[=default]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// Its name.
    pub name: Word,
    /// What follows `=`.
    pub default: Option<Word>,
}

/// The arguments of `HEALTHCHECK`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `NONE`: no check, whatever the base image says.
    None,
    /// `CMD command`, with its flags.
    Check {
        /// What is run.
        command: Command,
        /// `--interval`, in nanoseconds.
        interval: Option<u64>,
        /// `--timeout`, in nanoseconds.
        timeout: Option<u64>,
        /// `--start-period`, in nanoseconds.
        start_period: Option<u64>,
        /// `--start-interval`, in nanoseconds.
        start_interval: Option<u64>,
        /// `--retries`.
        retries: Option<u32>,
    },
}
