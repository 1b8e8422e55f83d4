//! The binary as its users meet it. One test binary, so that it is linked once.
//!
//! | module | asserts |
//! |---|---|
//! | [`help`] | the text of every `--help` |
//! | [`tidy`] | the house rules: layering, unsafe code, printing, names of this machine |

mod help;
mod support;
mod tidy;
