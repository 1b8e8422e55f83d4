//! The Dockerfile language and its companion, `.dockerignore`: text in, values out, no I/O.
//!
//! ```text
//! text ─ lexer ─► logical lines ─ parser ─► Dockerfile (AST) + diagnostics
//!                                             │ lowering expands its words
//!                                             ▼
//!                                           words
//! ```
//!
//! Parsing cannot fail: it returns what it understood and says what it did not, several errors at once, each with the
//! bytes that it is about. [`parse`] is the entrance.

pub mod ast;
pub mod ignore;
mod lexer;
pub mod parser;
pub mod render;
pub mod source;
pub mod suggest;
pub mod words;

pub use ast::{Dockerfile, Escape, Instruction, InstructionKind, Stage, Word};
pub use parser::{parse, parse_trigger};
pub use render::Problems;
pub use source::{Diagnostic, Severity, SourceFile, Span};
