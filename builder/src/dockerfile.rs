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
//!
//! Every byte belongs to one piece of the tree, so that an editor can change one and write the rest back as it was:
//!
//! ```
//! let text = "# syntax=docker/dockerfile:1\r\nFROM scratch\n\nCOPY a \\\n  # why\n  b /\nRNU x";
//! let (dockerfile, diagnostics) = builder::dockerfile::parse(text);
//! let pieces = dockerfile.pieces.iter().map(|piece| &text[piece.span.range()]);
//! assert_eq!(pieces.collect::<String>(), text);
//! assert_eq!(diagnostics.len(), 1, "the last line is no instruction, the rest is understood");
//! ```

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
